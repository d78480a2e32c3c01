/* Private to kvm/: a machine's VM, its memory slots, a processor's part.
 *
 *   host.c    the door to the kernel; opens.c whether it opens at all
 *   vm.c      what KVM must offer; the VM, made by the first processor and gone with the last
 *   slots.c   guest memory: the map's RAM and ROM as memory slots
 *   gate.c    all processors out of the guest while slots change
 *   dirty.c   which pages of a device's memory were written
 *   posted.c  writes to device memory that KVM keeps for a while
 *   doorbells.c  writes for which KVM rings an eventfd
 *   model.c   CPUID and MSRs: what the guest sees is our model, cut to what KVM offers
 *   state.c   between struct cpu and KVM, both ways
 *   nested.c  hypervisors in the guest
 *   irqchip.c irqchip=split: KVM's LAPICs
 *   irqfd.c   messages to them
 *   exit.c    what KVM leaves to us
 *   kvm.c     the run loop, interrupts, life
 *   fail.c    what is said when KVM cannot go on
 *
 * Invariants
 *  1. A processor's state is in struct cpu, exact, whenever run() and step() are not under way. Inside of
 *     run() it is in KVM's while `in_kvm`, and struct cpu is what it was then.
 *  2. state_get() comes after what KVM still has to complete (port input, a read of device memory or of
 *     an MSR), and carries out by our own means what KVM has taken and not yet delivered: an interrupt or
 *     exception half-way. So there is no state in KVM that struct cpu cannot hold, but a hypervisor's
 *     (nested.c): while its guest runs, struct cpu has that one's registers, and what is half-way stays KVM's.
 *  3. The slots follow the map before each entry: map_seq, which a change moves. Who changes it posts EV_TLB
 *     to all processors, which brings them out. A slot goes while nobody is in the guest (gate.c).
 *  4. A kick sets immediate_exit and sends SIG_KICK; the thread clears immediate_exit, then looks at
 *     events, then enters. So none is lost, wherever it comes.
 *  5. What KVM refuses ends the machine with status 70 and a report; nothing is tried for ever.
 * Threading: all but kick on the vCPU's thread; slots under the machine lock. */
#ifndef RING3_KVM_IMPL_H
#define RING3_KVM_IMPL_H

/* Structures of Linux's that end in a list without a length: here the list follows, with its length. */
#ifdef __clang__
#pragma clang diagnostic ignored "-Wgnu-variable-sized-type-not-at-end"
#endif

#include <pthread.h>
#include <signal.h>

#include "interp/interp.h"
#include "interp/op_api.h"
#include "kvm/kvm.h"

#define KVM_SIG_KICK SIGUSR2

enum irqchip_mode { IRQCHIP_OWN, IRQCHIP_SPLIT };
struct kvm_options {
	char *name;
	bool pvclock;
	u32 irqchip;              /* enum irqchip_mode */
};

/* ---- a machine's ------------------------------------------------------------------------------- */

#define KVM_VCPUS 64 /* machine.h's MAX_CPUS */
struct slot { u64 gpa, size; u8 *host; u32 flags; bool used; };

struct zone { u64 gpa; u32 size; bool used; };
#define POSTED_ZONES 4
#define IOAPIC_PINS 24u
#define MSI_ROUTES 48u
struct msi_route { struct msi m; int fd; bool on; u32 hits; u64 used; }; /* on: fd raises it */
struct bell { u64 gpa; int fd; bool used; };
struct kvm_vcpu;
struct vm {
	const struct kvm_host *host;
	struct mem *mem;
	unsigned users;           /* processors */
	int kvm_fd, fd;
	size_t nested_bytes;      /* of KVM_GET_NESTED_STATE; 0: guests are no hypervisors */
	size_t run_bytes;         /* of struct kvm_run and what follows it */
	struct kvm_cpuid2 *supported;
	u32 xsave_offset[16];     /* of components from 2 on, as KVM lays them out; 0: not there */
	bool sregs2, tsc_offset;  /* KVM_GET_SREGS2; the TSC's offset is an attribute */
	bool pvclock, split;      /* split: the LAPICs are KVM's (irqchip.c) */
	bool lent;                /* now; machine lock, as for what follows */
	struct kvm_vcpu *vcpu[KVM_VCPUS]; /* by index */
	unsigned n_vcpus;         /* split: how many have joined */
	pthread_mutex_t gate_lock;
	pthread_cond_t gate_moved;
	_Atomic bool changing;    /* the gate is closed */
	struct apic_runner runner;
	bool irqfd;               /* KVM has them; for what follows, split: machine lock */
	struct msi pin[IOAPIC_PINS];
	struct msi_route route[MSI_ROUTES];
	u64 messages;
	unsigned ring_page;       /* where the ring of posted writes is behind kvm_run; 0: there is none */
	struct kvm_coalesced_mmio_ring *ring;
	struct zone zone[POSTED_ZONES];
	bool ioeventfd, any_length; /* KVM rings eventfds; for writes of any size */
	struct bell *bells;
	unsigned n_bells;
	struct slot *slots;       /* by their number */
	unsigned n_slots, max_slots;
	u32 slots_seq;            /* the map's when they followed it */
	bool slots_valid;
};

/* ---- a processor's ------------------------------------------------------------------------------ */

#define STATE_MSRS 20

/* All that is moved. Zeroed before it is filled, so that it can be compared as bytes. */
struct state {
	struct kvm_regs regs;
	struct kvm_sregs2 sregs;
	struct kvm_xsave xsave;
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debugregs;
	struct kvm_vcpu_events events;
	u64 msr[STATE_MSRS];
	u64 tsc_offset;
	struct apic_state apic;   /* split */
	struct kvm_mp_state mp;   /* split */
};

/* A hypervisor's, in KVM's own form; state.size bytes of it are there. */
struct hypervisor {
	struct kvm_vcpu_events events; /* of its guest, where that runs; an INIT that waits */
	struct kvm_nested_state state;
};

struct kvm_stats { u64 enters, kicks, io, mmio, rdmsr, wrmsr, hlt, window, tpr, posted, interpreted, gets, puts, injected; };

struct kvm_vcpu {
	struct interp in;         /* first: handlers find it by cpu->engine */
	struct cpu *cpu;
	struct vm *vm;
	int fd;
	struct kvm_run *run;
	pthread_t self;
	_Atomic bool inside;      /* may be in KVM_RUN */
	_Atomic bool in_run;      /* is, or is about to look at the gate */
	bool in_kvm;              /* invariant 1 */
	bool completing;          /* KVM has yet to take what the last exit asked for */
	bool ready;               /* KVM takes an interrupt now */
	bool fresh;               /* split: whether it does is not known since the state was put */
	bool known;               /* `last` is what KVM has */
	bool hypervisor, l2;      /* when last fetched: VT-x or AMD-V was on; its guest ran (nested.c) */
	bool untold;              /* `nested` is what another processor of KVM's had: this one is yet to be told */
	struct hypervisor *nested;    /* as last fetched; NULL: not yet, or told */
	bool msr_there[STATE_MSRS];
	struct state *last;
	struct kvm_stats stats;
};
static inline struct kvm_vcpu *kvm_of(const struct cpu *c) { return c->engine; }

static inline int kvm_call(const struct vm *vm, int fd, unsigned long request, void *p)
{
	return vm->host->ioctl(vm->host->arg, fd, request, p);
}
static inline int vcpu_call(const struct kvm_vcpu *v, unsigned long request, void *p)
{
	return kvm_call(v->vm, v->fd, request, p);
}

/* vm.c */
struct vm *vm_join(struct mem *m, const struct kvm_options *o, struct error *e); /* the machine's, made if it is not there */
void vm_leave(struct vm *vm);
struct kvm_cpuid2 *vm_supported_cpuid(const struct kvm_host *h, int kvm_fd, struct error *e); /* malloced */
bool vm_has(const struct kvm_host *h, int kvm_fd, int cap); /* an extension */

/* slots.c. Takes the machine lock. False: KVM refused one; *e says which. */
bool slots_follow(struct vm *vm, struct error *e);
bool slots_log(struct vm *vm, unsigned k); /* KVM keeps a log of writes to slot k from now on; machine lock held */

/* gate.c. gate_kvm_run: KVM_RUN. Close and open with the machine lock, out of KVM_RUN. */
int gate_kvm_run(struct kvm_vcpu *v);
void gate_close(struct vm *vm);
void gate_open(struct vm *vm);
void gate_joined(struct kvm_vcpu *v);
void gate_leaves(struct kvm_vcpu *v);

/* dirty.c */
void dirty_begin(struct vm *vm);
void dirty_end(struct vm *vm);

/* posted.c */
void posted_carry_out(struct kvm_vcpu *v);
void posted_follow(struct vm *vm);
void posted_joined(struct kvm_vcpu *v);
void posted_leaves(struct kvm_vcpu *v);

/* doorbells.c */
void doorbells_follow(struct vm *vm);

/* model.c */
bool model_fit(struct cpu_model *m, const void *options, struct error *e); /* engine_ops.fit_model */
/* The processor gets its CPUID; false: the model has what KVM does not offer, or KVM refuses it. */
bool model_put_cpuid(struct kvm_vcpu *v, struct error *e);
bool model_filter_msrs(struct vm *vm, struct error *e); /* before there are processors */
bool model_msr_is_kvms(u32 msr); /* it has refused a value, and that is the answer */
bool model_msr_is_nested(u32 msr); /* of those: a hypervisor's, there with vm->nested_bytes alone */
bool model_has_msr(const struct kvm_vcpu *v, u32 msr); /* of those: it is this processor's */
u32 model_msr(unsigned k);  /* the MSRs of struct state; 0: no more. KVM keeps these, and no others of ours */

/* state.c. False: KVM refused; already reported (kvm_failed). */
bool state_get(struct kvm_vcpu *v);
bool state_put(struct kvm_vcpu *v);
bool state_fetch(struct kvm_vcpu *v); /* as it is, for a report: invariant 2 left aside */
bool state_init(struct kvm_vcpu *v, struct error *e); /* once: what KVM keeps of it */
int sregs_call(const struct kvm_vcpu *v, bool put, struct kvm_sregs2 *s);
u32 mp_state(const struct cpu *c); /* KVM_MP_STATE_* */

/* nested.c. The int: 0, or -errno. */
int nested_fetch(struct kvm_vcpu *v, const struct state *s); /* hypervisor, l2; s: what else was fetched */
int nested_forget(struct kvm_vcpu *v, const struct kvm_sregs2 *next); /* KVM's, if a reset has switched it off */
u64 nested_wider_cr4(const struct kvm_vcpu *v); /* what CR4 must have besides when that comes */
int nested_tell(struct kvm_vcpu *v);  /* KVM, what the processor before had; after KVM_SET_SREGS and MSRs */
void nested_keep(struct kvm_vcpu *v); /* it goes: for the next one */
bool nested_take(struct kvm_vcpu *v, struct error *e); /* from the one before; false: this KVM cannot have it, which stays kept */
bool nested_may_move(const struct cpu *c, const struct engine_ops *to, const void *options, struct error *e); /* engine_ops.may_move */

/* irqchip.c. The int: 0, or -errno. */
bool irqchip_set_up(struct vm *vm, struct error *e); /* before there are processors */
/* The processor gets its state when it first runs; what others send until then has a LAPIC to come to from here on. */
bool irqchip_prime(struct kvm_vcpu *v, struct error *e);
void irqchip_joined(struct kvm_vcpu *v);
void irqchip_leaves(struct kvm_vcpu *v);             /* its descriptor is there still, its state in struct cpu */
int apic_fetch(struct kvm_vcpu *v, struct apic_state *s); /* but for base */
int apic_give(struct kvm_vcpu *v, const struct apic_state *s, const struct apic_state *last);
int apic_rearm(struct kvm_vcpu *v, u64 deadline);    /* the TSC has moved */
bool apic_same(const struct apic_state *a, const struct apic_state *b);

/* irqfd.c */
bool irqfd_send(void *vm, struct msi m);             /* apic_runner.send */
void irqfd_pins(struct vm *vm, const struct msi *m, unsigned n);
void irqfd_end(struct vm *vm);

/* exit.c: the exit that run->exit_reason names. False: the machine cannot go on (already reported). */
bool exit_handle(struct kvm_vcpu *v);

/* fail.c: reports, and stops the processor. Returns false. */
bool kvm_failed(struct kvm_vcpu *v, const char *fmt, ...) PRINTF_LIKE(2, 3);
bool kvm_failed_exit(struct kvm_vcpu *v); /* an exit that nothing can be done about */

#endif
