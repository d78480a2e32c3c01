/* A KVM that is a box: it keeps what it is given for a processor and gives it back, and refuses what a Linux refuses; no guest
 * runs. With a board's LAPIC and a processor, for tests of what goes between struct cpu and KVM.
 * Threading: a test's own. */
#ifndef TESTS_KVM_BOX_H
#define TESTS_KVM_BOX_H

#include "test.h"
#include "kvm/kvm_impl.h"

enum { FD_KVM = 8, FD_VM };
enum { NESTED_BYTES = sizeof(struct kvm_nested_state) + 4096, N_MSRS = 64, N_BOXES = 2 };

/* A processor of KVM's. */
struct box {
	struct kvm_regs regs;
	struct kvm_sregs2 sregs;
	struct kvm_xsave xsave;
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debugregs;
	struct kvm_vcpu_events events;
	struct kvm_lapic_state lapic;
	struct kvm_mp_state mp;
	struct { u32 index; u64 data; } msr[N_MSRS];
	u64 tsc_offset;
	union { struct kvm_nested_state nested; u8 nested_bytes[NESTED_BYTES]; };
	unsigned nested_sets;
	bool init;                /* one that waits: carried out where the activity is asked for, unless it is blocked; then a SIPI */
	u8 sipi;                  /* its vector; 0: none */
};

struct rig {
	struct kvm_host host;
	struct vm vm;
	struct mem mem;
	struct clock clock;
	struct cpu_model model;
	struct cpu_hooks hooks;
	struct cpu *cpu;
	struct kvm_vcpu *v[N_BOXES];
	struct box box[N_BOXES];
	struct apic_state board;
	u64 seed;
	unsigned failures, lends, vcpus;
	struct kvm_run run;
	u8 cr8;                   /* when KVM_RUN came */
	u32 caps[8];              /* of KVM_ENABLE_CAP */
	unsigned n_caps;
	struct kvm_msr_filter filter;
	u8 bits[KVM_MSR_FILTER_MAX_RANGES][0x600];
};

/* One with VT-x, one with AMD-V. */
static const char *const hypervisors[] = { "max,vendor=intel,+vmx", "max,vendor=amd,+svm" };

struct rig *box_rig_new(const char *model, bool split); /* v[0] is there */
void box_rig_free(struct rig *g);
struct kvm_vcpu *box_vcpu_new(struct rig *g, int k);    /* the processor's next one in KVM: box[k] */
void box_vcpu_free(struct kvm_vcpu *v);
u64 *box_msr(struct box *b, u32 index);
void box_fetch(struct rig *g, unsigned k);              /* as if v[k] had run */

/* What KVM has of a processor; vectors and MSRs come with CR4 as it is. */
void box_any_state(struct rig *g, struct box *b, bool pae);
void box_any_vectors(struct rig *g, struct box *b);
void box_any_msrs(struct rig *g, struct box *b);
void box_hypervisors_state(struct rig *g, struct box *b, bool l2);
/* A processor in real mode at 7c05h, SP 6000h; the handler of vector N is at N * 16 + 1000h. */
struct rig *box_real_mode(void);

#endif
