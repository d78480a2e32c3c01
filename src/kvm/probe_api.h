/* Whether /dev/kvm is worth having: opened, asked, and measured in a throw-away virtual machine. What --engine auto
 * goes by, and what `ring3 doctor` tells. */
#ifndef RING3_KVM_PROBE_API_H
#define RING3_KVM_PROBE_API_H

#include "kvm/host.h"

enum kvm_verdict {
	KVM_GOOD,
	KVM_ABSENT,     /* no such file or device */
	KVM_FORBIDDEN,  /* this user may not open it */
	KVM_UNOPENED,   /* it cannot be opened for another reason */
	KVM_OTHER_API,  /* not version 12 */
	KVM_LACKS,      /* an extension that ring3 needs */
	KVM_NO_MACHINE, /* it makes no virtual machine, or runs none */
	KVM_SLOW,       /* it interprets kernel code */
};
struct kvm_finding {
	enum kvm_verdict verdict;
	int err;            /* errno, where a request failed; else 0 */
	int api;            /* its version; 0: not asked */
	const char *lacks;  /* the first extension that is missing: "KVM_CAP_XSAVE"; NULL */
	u64 ips;            /* instructions of kernel code a second; 0: not measured */
	u64 exit_ns;        /* a port access: out of the guest and back in, ns of processor time; likewise */
	char why[160];      /* all of that in words, as in "/dev/kvm runs ring-0 code at 2 MIPS: a software KVM" */
};

/* About 10 ms where KVM is as it should be, 30 ms where it is not, 1 s at most; on any thread that is not a
 * processor's. Through the door (kvm/host.h). */
void kvm_probe(struct kvm_finding *f);
/* Opens it and closes it again, in a child: 0, -errno, or -ETIMEDOUT where it does not open within a second. Any thread; about
 * 1 ms. */
int kvm_try_open(const struct kvm_host *h);
bool kvm_worth(struct error *found); /* engine_ops.worth */

#endif
