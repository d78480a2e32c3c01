/* A KVM for tests where there is none, or none that can be told to fail: it stands in the door (kvm/host.h), answers
 * the requests as the kernel's documentation says, and runs the guest by ring3's interpreter on a second struct cpu, an
 * instruction at a time. What it knows of the guest came through the door, so that state which the engine does not
 * bring, or brings wrong, is missed by the guest.
 *
 * It holds its user to the rules: what it does against them (state read in the middle of an exit, an interrupt
 * that the processor does not take now, a slot that goes while a processor is in the guest) is kept as a sentence, and the test fails.
 *
 * Not there: interrupt controllers, irqfd (test_irqfd.c has a table for it), several strings' elements in one exit,
 * nested state.
 * Threading: as of the door. Each processor has a thread of its own that stands still but in KVM_RUN, since an exit may
 * come in the middle of an instruction. */
#ifndef TESTS_FAKE_KVM_H
#define TESTS_FAKE_KVM_H

#include "kvm/kvm.h"

struct fake_kvm;
struct fake_kvm *fake_kvm_new(void);
void fake_kvm_free(struct fake_kvm *f); /* all handles are closed */
const struct kvm_host *fake_kvm_host(const struct fake_kvm *f);

#define FAKE_OPEN 1ul /* stands for opening it, among requests */
/* The next-but-n request of that number fails with that errno (0 as number: none does). */
void fake_kvm_fail(struct fake_kvm *f, unsigned long request, unsigned n, int err);
/* The next-but-n KVM_RUN, or a moment after it began, ends with this exit instead; subcode: internal error's, fail entry's. */
void fake_kvm_exit(struct fake_kvm *f, u32 reason, u64 subcode, unsigned n);
/* The next request of that number waits until a signal comes, and is -EINTR then. */
void fake_kvm_hang(struct fake_kvm *f, unsigned long request);
/* A loop of DEC RCX and JNZ takes no time: KVM looks like one worth its while. */
void fake_kvm_fast(struct fake_kvm *f);
/* KVM_RUN returns -EINTR after so many instructions, again and again; 0: not. */
void fake_kvm_storm(struct fake_kvm *f, unsigned instructions);
/* Its CPUID is that of this model from now on. */
void fake_kvm_offer(struct fake_kvm *f, const struct cpu_model *m);
/* An extension that is said to be missing; 0: none. */
void fake_kvm_lack(struct fake_kvm *f, int cap);

/* How often a request came; "" or what was done against the rules first. */
unsigned fake_kvm_count(const struct fake_kvm *f, unsigned long request);
const char *fake_kvm_complaint(const struct fake_kvm *f);
unsigned fake_kvm_open_handles(const struct fake_kvm *f);

#endif
