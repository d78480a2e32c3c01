/* Private to the fake. */
#ifndef TESTS_FAKE_KVM_IMPL_H
#define TESTS_FAKE_KVM_IMPL_H

#include <pthread.h>

#include "fake_kvm.h"
#include "interp/interp.h"
#include "interp/op_api.h"

enum { MAX_VCPUS = 4, MAX_SLOTS = 64, MAX_FILTERS = 16, RUN_BYTES = 12288, DATA_AT = 4096 };
enum { H_KVM, H_VM, H_VCPU, N_HANDLES = H_VCPU + MAX_VCPUS };
#define ARENA_BYTES (1ull << 30)

struct fake_slot { u64 gpa, size, userspace; u32 flags; char name[16]; u8 *logged; /* as it was when the log was last read; NULL: none is kept */ };
struct fake_bell { u64 gpa; u32 len; int fd; bool used; };
/* A mapping of the user's that is here once more, in the arena. */
struct fake_alias { u64 userspace, size, at; };

struct fake_vcpu {
	struct fake_kvm *f;
	struct cpu *c;
	struct cpu_hooks hooks;
	struct clock clock;      /* each has a TSC of its own */
	struct kvm_run *run;
	struct kvm_cpuid2 *cpuid;
	int vector;              /* KVM_INTERRUPT's, until it is taken; -1 */
	u8 cr8;
	bool lowered;            /* by the instruction under way */
	unsigned steps;          /* since KVM_RUN began */
	/* between its thread and KVM_RUN */
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool ours, end;          /* it is the thread's turn */
	bool in_exit;            /* it stands in the middle of an instruction */
	int result;
};

struct fake_kvm {
	struct kvm_host host;
	struct cpu_model model;
	struct mem mem;
	u64 arena_used;
	struct fake_slot slot[MAX_SLOTS];
	struct fake_alias alias[8];
	unsigned n_aliases;
	struct fake_bell bell[64];
	struct { u32 flags, base, n; u8 *bits; } filter[MAX_FILTERS];
	bool filtered;
	struct fake_vcpu vcpu[MAX_VCPUS];
	bool open[N_HANDLES];
	unsigned opens;          /* of H_KVM */
	/* what a test has asked for */
	pthread_mutex_t lock;
	unsigned long fail_request, hang_request;
	bool fast;
	unsigned fail_after, exit_after, storm;
	int fail_errno, lack;
	u32 exit_reason;
	u64 exit_subcode;
	bool exit_wanted;
	bool failed;             /* a request was made to: what follows is a report's */
	struct { unsigned long request; unsigned n; } counts[64];
	char complaint[200];
};

void fake_complain(struct fake_kvm *f, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* fake_state.c: requests of a processor's state. -ENOTTY: not one of them. */
int fake_state(struct fake_vcpu *v, unsigned long request, void *p);
/* Leaf by leaf, of the model; malloced. */
int fake_supported_cpuid(struct fake_kvm *f, struct kvm_cpuid2 *to);

/* fake_kvm.c: a write that an eventfd is rung for; lock of mem held. */
bool fake_bell_rings(struct fake_kvm *f, u64 gpa, unsigned size);

/* fake_run.c */
bool fake_vcpu_start(struct fake_vcpu *v);
void fake_vcpu_end(struct fake_vcpu *v);
int fake_run(struct fake_vcpu *v);
extern const struct mmio_ops fake_mmio, fake_rom, fake_ports; /* fake_rom's device is its slot */

#endif
