/* kvm: the engine that runs the guest by the processor's own virtualization, through /dev/kvm. */
#ifndef RING3_KVM_H
#define RING3_KVM_H

#include "cpu/engine_api.h"
#include "kvm/host.h"

extern const struct engine_ops kvm_engine; /* listed in engine/engines.c */

/* What the engine cannot do without: extensions of KVM_CHECK_EXTENSION, and since which Linux they are there. */
struct kvm_extension { int cap; const char *name, *since; };
extern const struct kvm_extension kvm_required[];
extern const unsigned n_kvm_required;

/* Opens it and looks at its version and extensions. The handle of KVM, or -1: e says what is missing. */
int kvm_open(struct error *e);
/* Whether that would do; a KVM that does not open within a second is one that cannot be opened. */
bool kvm_usable(struct error *why_not);

#endif
