/* What the guest sees of the processor: CPUID and MSRs, by the same tables as with any engine.
 *
 *   CPUID  cpuid.c's leaves for our model, given to KVM whole. The model has been cut to what KVM offers
 *          (model_fit), so that a bit never promises what is not there. KVM itself keeps up the bits that
 *          follow the processor's state (OSXSAVE, OSPKE, the sizes of leaf 0xd).
 *   MSRs   those with an effect on the processor are KVM's (kept[] below), and moved with the state. A filter
 *          sends all others out to us, so that msr.c's table answers, #GP included. KVM lets nobody filter
 *          the x2APIC's; with no LAPIC of its own it sends them out, too.
 *
 * Source: Documentation/virt/kvm/api.rst, 4.97 and 7.21 (filters), 4.20 (CPUID); x86/msr.rst (the clock). */
#define LOG_TOPIC "kvm"
#include <linux/kvm_para.h>
#include <stdlib.h>
#include <string.h>

#include "kvm/kvm_impl.h"

/* ---- the model ----------------------------------------------------------------------------------- */

static const struct kvm_cpuid_entry2 *entry_of(const struct kvm_cpuid2 *s, u32 leaf, u32 sub)
{
	for (u32 k = 0; k < s->nent; k++)
		if (s->entries[k].function == leaf && s->entries[k].index == sub)
			return &s->entries[k];
	return NULL;
}

/* The interrupt controllers are ours, with whatever KVM has. */
static bool ours(u32 leaf, unsigned reg, unsigned bit)
{
	const u32 ecx = 1u << 21 | 1u << 31; /* x2APIC, hypervisor */
	return (leaf == 1 && reg == 2 && ecx >> bit & 1) || (leaf == 1 && reg == 3 && bit == 9) || (leaf == 6 && reg == 0 && bit == 2);
}

/* What a KVM has: its CPUID; whether LAPICs of its own would take TSC deadlines; whether guests are hypervisors. */
struct offer { const struct kvm_cpuid2 *cpuid; bool deadline, nested; };

/* What KVM would do behind our back. VMX, SVM: a hypervisor in the guest runs within KVM; an interrupt that is to end its
 * guest's turn must then be KVM's own, and what KVM keeps of it be told (nested.c). LBRV: the branch records are not moved with the state.
 * The TSC deadline with LAPICs that are ours: where the processor has VMX's preemption timer, KVM takes writes of that MSR before it looks at its
 * filter, and drops them without a LAPIC of its own (handle_fastpath_set_tscdeadline() of Linux 6.1). PKS: IA32_PKRS would not be moved
 * with the state. */
static bool behind_us(u32 leaf, unsigned reg, unsigned bit)
{
	return (reg == 2 && ((leaf == 1 && (bit == 5 || bit == 24)) || (leaf == 0x80000001 && bit == 2) || (leaf == 7 && bit == 31))) ||
	       (leaf == 0x8000000a && reg == 3 && bit == 1);
}

static bool of_hypervisors(u32 leaf, unsigned reg, unsigned bit)
{
	return reg == 2 && ((leaf == 1 && bit == 5) || (leaf == 0x80000001 && bit == 2));
}

/* Its CPUID says nothing of TSC deadlines: whose LAPICs there will be it does not know yet (api.rst, 4.46). */
static bool of_its_lapics(const struct offer *o, u32 leaf, unsigned reg, unsigned bit)
{
	return o->deadline && leaf == 1 && reg == 2 && bit == 24;
}

static bool kvm_can(void *arg, u32 leaf, u32 sub, unsigned reg, unsigned bit)
{
	const struct offer *o = arg;
	const struct kvm_cpuid_entry2 *x = entry_of(o->cpuid, leaf, sub);
	const u32 r[4] = { x ? x->eax : 0, x ? x->ebx : 0, x ? x->ecx : 0, x ? x->edx : 0 };
	if (o->nested && of_hypervisors(leaf, reg, bit))
		return r[reg] >> bit & 1;
	return ours(leaf, reg, bit) || of_its_lapics(o, leaf, reg, bit) || (!behind_us(leaf, reg, bit) && r[reg] >> bit & 1);
}

bool model_fit(struct cpu_model *m, const void *options, struct error *e)
{
	const struct kvm_options *o = options;
	char names[1024];
	const char *asked;
	const struct kvm_host *h = kvm_host();
	int fd = kvm_open(e);
	struct kvm_cpuid2 *s = fd < 0 ? NULL : vm_supported_cpuid(h, fd, e);
	bool split = s && o && o->irqchip == IRQCHIP_SPLIT;
	struct offer offer = { s, split && vm_has(h, fd, KVM_CAP_TSC_DEADLINE_TIMER), split && vm_has(h, fd, KVM_CAP_NESTED_STATE) };
	if (fd >= 0)
		h->close(h->arg, fd);
	if (!s)
		return false;
	unsigned n = cpu_model_limit(m, kvm_can, &offer, names, sizeof(names), &asked);
	const struct kvm_cpuid_entry2 *widths = entry_of(s, 0x80000008, 0);
	if (widths && (widths->eax & 0xff) >= 32)
		m->phys_bits = (u8)MIN(m->phys_bits, widths->eax & 0xff);
	free(s);
	if (asked)
		return error_set(e, "--cpu: %s: not with --engine kvm on this host; --engine bt may have it", asked);
	if (n)
		log_info("without %s: --engine kvm does not have %s on this host", names, n > 1 ? "them" : "it");
	return true;
}

/* ---- CPUID ------------------------------------------------------------------------------------------ */

#define MAX_ENTRIES 200
struct leaves { struct cpu *c; struct kvm_cpuid2 *to; };

static u32 add(struct leaves *l, u32 leaf, u32 sub, bool indexed)
{
	u32 r[4];
	cpu_cpuid(l->c, leaf, sub, r);
	if (l->to->nent < MAX_ENTRIES)
		l->to->entries[l->to->nent++] = (struct kvm_cpuid_entry2){ .function = leaf, .index = sub,
			.flags = indexed ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0, .eax = r[0], .ebx = r[1], .ecx = r[2], .edx = r[3] };
	return r[0];
}

/* How many subleaves of a leaf say something; 0: it has none. */
static u32 subleaves(u32 leaf)
{
	switch (leaf) {
	case 4: case 0x8000001d: return 5; /* the last one ends the list */
	case 7: return 3;
	case 0xb: case 0x1f: return 3;
	case 0xd: return 16;
	default: return 0;
	}
}

static void add_range(struct leaves *l, u32 first)
{
	u32 r[4];
	cpu_cpuid(l->c, first, 0, r);
	for (u32 leaf = first; leaf <= r[0]; leaf++) {
		u32 n = subleaves(leaf);
		for (u32 sub = 0; sub < MAX(n, 1u); sub++)
			add(l, leaf, sub, n);
	}
}

/* KVM's own leaves, behind ours: its clock alone, since all else changes how the guest waits or tells others. */
static void add_pvclock(struct leaves *l, const struct kvm_cpuid2 *supported)
{
	const u32 clock = 1u << KVM_FEATURE_CLOCKSOURCE | 1u << KVM_FEATURE_CLOCKSOURCE2 | 1u << KVM_FEATURE_CLOCKSOURCE_STABLE_BIT;
	const struct kvm_cpuid_entry2 *f = entry_of(supported, KVM_CPUID_FEATURES, 0);
	struct kvm_cpuid_entry2 *to = &l->to->entries[l->to->nent];
	u32 name[3];
	memcpy(name, KVM_SIGNATURE, sizeof(name));
	to[0] = (struct kvm_cpuid_entry2){ .function = KVM_CPUID_SIGNATURE + 0x100, .eax = KVM_CPUID_FEATURES + 0x100,
					   .ebx = name[0], .ecx = name[1], .edx = name[2] };
	to[1] = (struct kvm_cpuid_entry2){ .function = KVM_CPUID_FEATURES + 0x100, .eax = f ? f->eax & clock : 0 };
	l->to->nent += 2;
}

/* What a model cut to this KVM would lack. */
static bool check_model(const struct kvm_vcpu *v, struct error *e)
{
	struct cpu_model m = *v->cpu->model;
	const struct vm *vm = v->vm;
	struct offer offer = { vm->supported, vm->split && vm_has(vm->host, vm->kvm_fd, KVM_CAP_TSC_DEADLINE_TIMER), vm->nested_bytes != 0 };
	char names[384];
	const char *asked;
	return !cpu_model_limit(&m, kvm_can, &offer, names, sizeof(names), &asked) ||
	       error_set(e, "kvm: the machine's processors have %s, which --engine kvm does not have on this host; leave it out by --cpu", names);
}

bool model_put_cpuid(struct kvm_vcpu *v, struct error *e)
{
	struct cpu *c = v->cpu;
	struct kvm_cpuid2 *to = calloc(1, sizeof(*to) + (MAX_ENTRIES + 2) * sizeof(to->entries[0]));
	struct leaves l = { c, to };
	if (!to)
		return error_set(e, "kvm: out of memory for CPUID");
	if (!check_model(v, e)) {
		free(to);
		return false;
	}
	add_range(&l, 0);
	add_range(&l, 0x80000000);
	add(&l, 0x40000000, 0, false);
	if (v->vm->pvclock)
		add_pvclock(&l, v->vm->supported);
	for (u32 k = 0; k < to->nent; k++) {
		struct kvm_cpuid_entry2 *x = &to->entries[k];
		if (x->function == 0x80000001 && cpu_has(c, FEAT_SYSCALL))
			x->edx |= 1u << 11; /* Intel's shows it to 64-bit code alone */
		if (x->function == 0xd && x->index >= 2 && x->eax && x->index < ARRAY_LEN(v->vm->xsave_offset))
			x->ebx = v->vm->xsave_offset[x->index]; /* its XSAVE is the host's */
	}
	int r = vcpu_call(v, KVM_SET_CPUID2, to);
	free(to);
	return r >= 0 || error_set(e, "%s: KVM_SET_CPUID2: %s", v->vm->host->name, strerror(-r));
}

/* ---- MSRs ----------------------------------------------------------------------------------------------- */

enum { RD = 1, WR = 2 };
#define FS_GS_EFER_MSRS { 0xc0000080, RD | WR }, { 0xc0000100, RD | WR }, { 0xc0000101, RD | WR }

/* Moved with the state, in this order. */
static const u32 kept[] = {
	0x174, 0x175, 0x176, 0x277, 0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000102, 0xc0000103, 0xda0, 0x48, 0x1d9,
	0x3a, 0xc0000104, 0xc0010114, 0xc0010117,
};
_Static_assert(ARRAY_LEN(kept) <= STATE_MSRS, "struct state has room for them");

/* KVM's as well, by other ways of the state, or without any. The TSC is read there; a write moves TSC_ADJUST and
 * the LAPIC's deadline, which are ours. */
static const struct { u32 msr; u8 how; } passed[] = {
	FS_GS_EFER_MSRS, { 0x10, RD }, { 0x49, WR }, { 0x10b, WR },
};
/* Of kept: a hypervisor's. VM_HSAVE_PA, say: KVM refuses VMRUN, with #GP, where it has not been told. */
enum { FEATURE_CONTROL = 0x3a, TSC_RATIO = 0xc0000104, VM_CR = 0xc0010114, VM_HSAVE_PA = 0xc0010117 };
enum { VMX_FIRST = 0x480, VMX_LAST = 0x491 }; /* VMX's capabilities: read only */
static const u32 apic_msrs[] = { 0x1b, 0x6e0 }; /* where the LAPICs are KVM's */
static const u32 clock_msrs[] = { 0x11, 0x12, MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_SYSTEM_TIME_NEW };

u32 model_msr(unsigned k) { return k < ARRAY_LEN(kept) ? kept[k] : 0; }

bool model_msr_is_nested(u32 msr) { return msr == FEATURE_CONTROL || msr == TSC_RATIO || msr == VM_CR || msr == VM_HSAVE_PA; }

bool model_has_msr(const struct kvm_vcpu *v, u32 msr)
{
	enum cpu_feature f = msr == TSC_RATIO ? FEAT_TSCRATEMSR : FEAT_SVM;
	return !model_msr_is_nested(msr) || (v->vm->nested_bytes && (msr == FEATURE_CONTROL || cpu_has(v->cpu, f)));
}

bool model_msr_is_kvms(u32 msr)
{
	for (unsigned k = 0; k < ARRAY_LEN(kept); k++)
		if (kept[k] == msr)
			return true;
	for (unsigned k = 0; k < ARRAY_LEN(passed); k++)
		if (passed[k].msr == msr && passed[k].how & WR)
			return true;
	return false;
}

/* Where the filter lets something through: a bit for each MSR. */
#define RANGE_MSRS 0xe00u
static const u32 range_base[] = { 0, 0xc0000000, 0xc0010000, MSR_KVM_WALL_CLOCK_NEW & ~7u };
struct filter { u8 bits[ARRAY_LEN(range_base)][2][RANGE_MSRS / 8]; };

static void let(struct filter *f, u32 msr, unsigned how)
{
	for (unsigned k = 0; k < ARRAY_LEN(range_base); k++) {
		u32 n = msr - range_base[k];
		if (n >= RANGE_MSRS)
			continue;
		f->bits[k][0][n / 8] |= (u8)((how & RD ? 1 : 0) << (n & 7));
		f->bits[k][1][n / 8] |= (u8)((how & WR ? 1 : 0) << (n & 7));
	}
}

bool model_filter_msrs(struct vm *vm, struct error *e)
{
	struct kvm_msr_filter f = { .flags = KVM_MSR_FILTER_DEFAULT_DENY };
	struct filter *allow = calloc(1, sizeof(*allow));
	if (!allow)
		return error_set(e, "kvm: out of memory for its filter of MSRs");
	for (unsigned k = 0; k < ARRAY_LEN(kept); k++)
		if (vm->nested_bytes || !model_msr_is_nested(kept[k]))
			let(allow, kept[k], RD | WR);
	for (u32 msr = VMX_FIRST; msr <= VMX_LAST && vm->nested_bytes; msr++)
		let(allow, msr, RD);
	for (unsigned k = 0; k < ARRAY_LEN(passed); k++)
		let(allow, passed[k].msr, passed[k].how);
	for (unsigned k = 0; k < ARRAY_LEN(apic_msrs) && vm->split; k++)
		let(allow, apic_msrs[k], RD | WR);
	for (unsigned k = 0; k < ARRAY_LEN(clock_msrs) && vm->pvclock; k++)
		let(allow, clock_msrs[k], RD | WR);
	for (unsigned k = 0; k < ARRAY_LEN(range_base); k++)
		for (unsigned w = 0; w < 2; w++)
			f.ranges[2 * k + w] = (struct kvm_msr_filter_range){ .flags = w ? KVM_MSR_FILTER_WRITE : KVM_MSR_FILTER_READ,
				.nmsrs = RANGE_MSRS, .base = range_base[k], .bitmap = allow->bits[k][w] };
	int r = kvm_call(vm, vm->fd, KVM_X86_SET_MSR_FILTER, &f);
	free(allow);
	return r >= 0 || error_set(e, "%s: KVM_X86_SET_MSR_FILTER: %s", vm->host->name, strerror(-r));
}
