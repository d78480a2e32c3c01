/* Model-specific registers: one table, sorted by number. What is not in it is #GP(0), as is a
 * register whose feature the model lacks. Listed beside the architectural ones is what stock
 * kernels read or write of the two vendors' families without a guard. Intel SDM volume 4; AMD
 * APM volume 2 appendix A; AMD PPR for family 19h.
 *
 * Invariants
 *  1. A write that returns false has changed nothing.
 *  2. The guest's TSC is clock_tsc() + msr.tsc_adjust: writing the TSC moves IA32_TSC_ADJUST by
 *     as much, and the LAPIC is told (hooks->set_tsc_adjust).
 * Left out: performance counters, thermal and power control. */
#define LOG_TOPIC "msr"
#include <string.h>

#include "cpu/msr.h"
#include "cpu/svm.h"
#include "cpu/vmx.h"

enum {
	MISC_ENABLE_RESET = 1 | 1 << 11 | 1 << 12 | 1 << 18, /* fast strings, no BTS, no PEBS, MONITOR */
	MISC_ENABLE_READ_ONLY = 1 << 7 | 1 << 11 | 1 << 12,
	/* TCC, SpeedStep, MONITOR, maximal CPUID leaf, no xTPR messages */
	MISC_ENABLE_VALID = 1 | 1 << 3 | 1 << 16 | 1 << 18 | 1 << 22 | 1 << 23,
	HWCR_TSC_FREQ_SEL = 1 << 24,
	LFENCE_SERIALIZE = 2,
};
/* Not affected by Meltdown, L1TF, MDS, TAA, MMIO stale data, SSB, GDS, RFDS, BHI, ITS; enhanced IBRS. */
#define ARCH_CAP_VALUE (1ull << 0 | 1ull << 1 | 1ull << 3 | 1ull << 4 | 1ull << 5 | 1ull << 6 | 1ull << 8 | \
	1ull << 13 | 1ull << 14 | 1ull << 15 | 1ull << 20 | 1ull << 24 | 1ull << 26 | 1ull << 27 | 1ull << 62)

/* ---- plain registers ----------------------------------------------------------------------- */

static u64 *field_of(struct cpu *c, const struct msr_desc *d, u32 msr)
{
	return (u64 *)(void *)((u8 *)c + d->field) + (msr - d->first);
}

static bool plain_read(struct cpu *c, const struct msr_desc *d, u32 msr, u64 *v)
{
	*v = *field_of(c, d, msr);
	return true;
}

static bool plain_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	*field_of(c, d, msr) = v;
	return true;
}

static bool const_read(struct cpu *c, const struct msr_desc *d, u32 msr, u64 *v)
{
	*v = d->value;
	return true;
}

static bool ignored_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v) { return true; }

static bool address_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	return cpu_address_valid(c, v) && plain_write(c, d, msr, v);
}

static bool base_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	if (!cpu_address_valid(c, v))
		return false;
	c->seg[msr == 0xc0000100 ? S_FS : S_GS].base = v;
	cpu_update_segs(c);
	return true;
}

static bool tsc_aux_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	if (v >> 32 && !model_is_amd(c->model))
		return false;
	c->msr.tsc_aux = (u32)v;
	return true;
}

/* ---- EFER ------------------------------------------------------------------------------------ */

u64 cpu_efer_valid(const struct cpu *c)
{
	static const struct { u32 bits; u16 feature; } known[] = {
		{ EFER_SCE, FEAT_SYSCALL }, { EFER_LME | EFER_LMA, FEAT_LM }, { EFER_NXE, FEAT_NX },
		{ EFER_SVME, FEAT_SVM }, { EFER_LMSLE, FEAT_LMSLE }, { EFER_FFXSR, FEAT_FXSR_OPT },
		{ EFER_TCE, FEAT_TCE }, { EFER_AIBRSE, FEAT_AUTO_IBRS },
	};
	u64 v = 0;
	for (unsigned k = 0; k < ARRAY_LEN(known); k++)
		if (cpu_has(c, known[k].feature))
			v |= known[k].bits;
	return c->msr.misc_enable & MISC_ENABLE_NO_NX ? v & ~(u64)EFER_NXE : v;
}

static bool efer_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	u64 changed = c->efer ^ v;
	if ((v & ~cpu_efer_valid(c)) || ((changed & EFER_LME) && (c->cr0 & CR0_PG)))
		return false;
	if ((changed & v & EFER_SVME) && !svm_allowed(c))
		return false;
	c->efer = (v & ~(u64)EFER_LMA) | (c->efer & EFER_LMA);
	if (changed & EFER_NXE)
		mmu_flush_all(c);
	cpu_update_mode(c);
	return true;
}

/* ---- time ------------------------------------------------------------------------------------- */

u64 cpu_tsc(struct cpu *c)
{
	cpu_clock_sync(c);
	return clock_tsc(c->clock) + c->msr.tsc_adjust;
}

static void set_adjust(struct cpu *c, u64 v)
{
	c->msr.tsc_adjust = v;
	if (c->hooks && c->hooks->set_tsc_adjust)
		c->hooks->set_tsc_adjust(c->hooks->arg, v);
}

static bool tsc_read(struct cpu *c, const struct msr_desc *d, u32 msr, u64 *v)
{
	*v = cpu_tsc(c);
	return true;
}

static bool tsc_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	set_adjust(c, v - clock_tsc(c->clock));
	return true;
}

static bool tsc_adjust_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	set_adjust(c, v);
	return true;
}

/* ---- the local APIC's ---------------------------------------------------------------------------- */

static bool apic_read(struct cpu *c, const struct msr_desc *d, u32 msr, u64 *v)
{
	return c->hooks && c->hooks->apic_msr_read && c->hooks->apic_msr_read(c->hooks->arg, msr, v);
}

static bool apic_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	return c->hooks && c->hooks->apic_msr_write && c->hooks->apic_msr_write(c->hooks->arg, msr, v);
}

/* ---- identification and features ----------------------------------------------------------------- */

static bool microcode_read(struct cpu *c, const struct msr_desc *d, u32 msr, u64 *v)
{
	*v = model_is_amd(c->model) ? 0x0a0011d5 : 1ull << 32;
	return true;
}

/* Ratios of 100 MHz: bits 15:8 are the base frequency, in PLATFORM_INFO 47:40 the lowest too. */
static bool ratio_read(struct cpu *c, const struct msr_desc *d, u32 msr, u64 *v)
{
	u64 ratio = MIN(c->model->tsc_khz / 100000, 255u);
	*v = msr == 0xce ? ratio << 8 | ratio << 40 : ratio << 8;
	return true;
}

static bool misc_enable_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	c->msr.misc_enable = (v & ~(u64)MISC_ENABLE_READ_ONLY) | (c->msr.misc_enable & MISC_ENABLE_READ_ONLY);
	return true;
}

static bool spec_ctrl_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	u64 valid = 0;
	if (cpu_has(c, FEAT_SPEC_CTRL) || cpu_has(c, FEAT_IBRS))
		valid |= 1;
	if (cpu_has(c, FEAT_SPEC_CTRL) || cpu_has(c, FEAT_STIBP))
		valid |= 2;
	if (cpu_has(c, FEAT_SPEC_CTRL_SSBD) || cpu_has(c, FEAT_SSBD))
		valid |= 4;
	if (cpu_has(c, FEAT_BHI_CTRL))
		valid |= 1 << 10;
	if (v & ~valid)
		return false;
	c->msr.spec_ctrl = v;
	return true;
}

static bool debugctl_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	if (v & ~(model_is_amd(c->model) ? 0x3full : 3ull))
		return false;
	c->msr.debugctl = v;
	cpu_update_events(c);
	return true;
}

static bool xss_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	if (v & ~c->model->xss_mask)
		return false;
	c->xss = v;
	return true;
}

static bool pkrs_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	bool changes = c->msr.pkrs != v;
	c->msr.pkrs = v;
	if (changes && (c->cr4 & CR4_PKS))
		mmu_flush_all(c);
	return true;
}

static bool hwcr_read(struct cpu *c, const struct msr_desc *d, u32 msr, u64 *v)
{
	*v = c->msr.hwcr | HWCR_TSC_FREQ_SEL;
	return true;
}

static bool de_cfg_read(struct cpu *c, const struct msr_desc *d, u32 msr, u64 *v)
{
	*v = *field_of(c, d, msr) | LFENCE_SERIALIZE;
	return true;
}

/* ---- VT-x ------------------------------------------------------------------------------------------ */

static bool feature_control_read(struct cpu *c, const struct msr_desc *d, u32 msr, u64 *v)
{
	*v = cpu_has(c, FEAT_VMX) ? c->vmx->feature_control : FEATURE_LOCK;
	return true;
}

/* Firmware sets it up and locks it; until then anybody may. */
static bool feature_control_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	if (!cpu_has(c, FEAT_VMX) || (c->vmx->feature_control & FEATURE_LOCK))
		return false;
	c->vmx->feature_control = v;
	return true;
}

static bool vmx_read_msr(struct cpu *c, const struct msr_desc *d, u32 msr, u64 *v) { return vmx_msr_read(c, msr, v); }

/* ---- AMD-V ------------------------------------------------------------------------------------------ */

static bool tsc_ratio_read(struct cpu *c, const struct msr_desc *d, u32 msr, u64 *v)
{
	*v = c->svm->tsc_ratio;
	return true;
}

static bool tsc_ratio_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	c->svm->tsc_ratio = v;
	return true;
}

static bool vm_cr_read(struct cpu *c, const struct msr_desc *d, u32 msr, u64 *v)
{
	*v = c->svm->vm_cr;
	return true;
}

/* While LOCK is set, it and SVMDIS stay. SVMDIS cannot be set under EFER.SVME. */
static bool vm_cr_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	const u64 locked = VM_CR_LOCK | VM_CR_SVMDIS;
	u64 old = c->svm->vm_cr;
	if (old & VM_CR_LOCK)
		v = (v & ~locked) | (old & locked);
	if ((v & ~old & VM_CR_SVMDIS) && (c->efer & EFER_SVME))
		return false;
	c->svm->vm_cr = v;
	return true;
}

static bool hsave_read(struct cpu *c, const struct msr_desc *d, u32 msr, u64 *v)
{
	*v = c->svm->hsave_pa;
	return true;
}

static bool hsave_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	if (v & (PAGE_MASK | ~c->maxphyaddr_mask))
		return false;
	c->svm->hsave_pa = v;
	return true;
}

/* Whoever locked SVM with a key may open it with that key. 0: no key. APM vol. 2 15.31. */
static bool svm_key_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	if (!(c->svm->vm_cr & VM_CR_LOCK))
		c->svm->key = v;
	else if (v && v == c->svm->key)
		c->svm->vm_cr &= ~(u64)VM_CR_LOCK;
	return true;
}

/* ---- the table --------------------------------------------------------------------------------------- */

#define F(name) offsetof(struct cpu, name)
#define ANY (~0ull)
#define LOW32 0xffffffffull
#define G(f) FEAT_##f
#define PLAIN(n, name, gate, valid, f) { n, n, name, gate, plain_read, plain_write, valid, F(f), 0 }
#define ADDR(n, name, gate, f) { n, n, name, gate, plain_read, address_write, ANY, F(f), 0 }
#define CONST(n, last, name, gate, value) { n, last, name, gate, const_read, NULL, 0, 0, value }
#define IGNORED(n, name, gate, value) { n, n, name, gate, const_read, ignored_write, ANY, 0, value }
#define WRITE(n, name, gate, valid) { n, n, name, gate, NULL, ignored_write, valid, 0, 0 }
#define FUNC(n, last, name, gate, rd, wr, valid, f) { n, last, name, gate, rd, wr, valid, f, 0 }
#define OTHER(n, name, slot) PLAIN(n, name, MSR_AMD, ANY, msr.other[slot])

static const struct msr_desc table[] = {
	IGNORED(0x0, "P5_MC_ADDR", MSR_INTEL, 0),
	IGNORED(0x1, "P5_MC_TYPE", MSR_INTEL, 0),
	FUNC(0x10, 0x10, "TSC", G(TSC), tsc_read, tsc_write, ANY, 0),
	CONST(0x17, 0x17, "PLATFORM_ID", MSR_INTEL, 0),
	FUNC(0x1b, 0x1b, "APIC_BASE", G(APIC), apic_read, apic_write, ANY, 0),
	IGNORED(0x2a, "EBL_CR_POWERON", MSR_INTEL, 0),
	CONST(0x34, 0x34, "SMI_COUNT", MSR_INTEL, 0),
	FUNC(0x3a, 0x3a, "FEATURE_CONTROL", MSR_INTEL, feature_control_read, feature_control_write,
	     FEATURE_LOCK | FEATURE_VMX_OUTSIDE_SMX, 0),
	FUNC(0x3b, 0x3b, "TSC_ADJUST", G(TSC_ADJUST), plain_read, tsc_adjust_write, ANY, F(msr.tsc_adjust)),
	FUNC(0x48, 0x48, "SPEC_CTRL", MSR_SPEC_CTRL, plain_read, spec_ctrl_write, ANY, F(msr.spec_ctrl)),
	WRITE(0x49, "PRED_CMD", MSR_PRED_CMD, 1),
	FUNC(0x8b, 0x8b, "BIOS_SIGN_ID", MSR_ALWAYS, microcode_read, ignored_write, ANY, 0),
	FUNC(0xce, 0xce, "PLATFORM_INFO", MSR_INTEL, ratio_read, NULL, 0, 0),
	CONST(0xfe, 0xfe, "MTRRCAP", G(MTRR), MTRR_VARIABLE | 1 << 8 | 1 << 10), /* fixed ranges, WC */
	CONST(0x10a, 0x10a, "ARCH_CAPABILITIES", G(ARCH_CAPABILITIES), ARCH_CAP_VALUE),
	WRITE(0x10b, "FLUSH_CMD", G(FLUSH_L1D), 1),
	PLAIN(0x174, "SYSENTER_CS", G(SEP), ANY, msr.sysenter_cs),
	ADDR(0x175, "SYSENTER_ESP", G(SEP), msr.sysenter_esp),
	ADDR(0x176, "SYSENTER_EIP", G(SEP), msr.sysenter_eip),
	CONST(0x179, 0x179, "MCG_CAP", G(MCA), MC_BANKS | 1 << 8), /* MCG_CTL is there */
	PLAIN(0x17a, "MCG_STATUS", G(MCA), 7, msr.mcg_status),
	FUNC(0x17b, 0x17b, "MCG_CTL", G(MCA), plain_read, mcg_ctl_write, ANY, F(msr.mcg_ctl)),
	FUNC(0x198, 0x198, "PERF_STATUS", MSR_INTEL, ratio_read, ignored_write, ANY, 0),
	FUNC(0x199, 0x199, "PERF_CTL", MSR_INTEL, ratio_read, ignored_write, ANY, 0),
	FUNC(0x1a0, 0x1a0, "MISC_ENABLE", MSR_INTEL, plain_read, misc_enable_write,
	     MISC_ENABLE_READ_ONLY | MISC_ENABLE_VALID | MISC_ENABLE_NO_NX, F(msr.misc_enable)),
	FUNC(0x1d9, 0x1d9, "DEBUGCTL", MSR_ALWAYS, plain_read, debugctl_write, ANY, F(msr.debugctl)),
	FUNC(0x1db, 0x1de, "LAST_BRANCH", MSR_ALWAYS, plain_read, NULL, 0, F(lbr)),
	FUNC(0x200, 0x200 + 2 * MTRR_VARIABLE - 1, "MTRR_PHYS", G(MTRR), mtrr_var_read, mtrr_var_write, ANY, 0),
	FUNC(0x250, 0x250, "MTRR_FIX64K", G(MTRR), mtrr_fixed_read, mtrr_fixed_write, ANY, 0),
	FUNC(0x258, 0x259, "MTRR_FIX16K", G(MTRR), mtrr_fixed_read, mtrr_fixed_write, ANY, 0),
	FUNC(0x268, 0x26f, "MTRR_FIX4K", G(MTRR), mtrr_fixed_read, mtrr_fixed_write, ANY, 0),
	FUNC(0x277, 0x277, "PAT", G(PAT), plain_read, pat_write, ANY, F(msr.pat)),
	FUNC(0x2ff, 0x2ff, "MTRR_DEF_TYPE", G(MTRR), plain_read, mtrr_def_write, 0xcff, F(msr.mtrr_def_type)),
	FUNC(0x400, 0x400 + 4 * MC_BANKS - 1, "MCi", G(MCA), plain_read, mc_bank_write, ANY, F(msr.mc)),
	FUNC(0x480, 0x491, "VMX", G(VMX), vmx_read_msr, NULL, 0, 0),
	FUNC(0x6e0, 0x6e0, "TSC_DEADLINE", G(TSC_DEADLINE), apic_read, apic_write, ANY, 0),
	FUNC(0x6e1, 0x6e1, "PKRS", G(PKS), plain_read, pkrs_write, LOW32, F(msr.pkrs)),
	FUNC(0x800, 0x8ff, "X2APIC", G(X2APIC), apic_read, apic_write, ANY, 0),
	FUNC(0xda0, 0xda0, "XSS", G(XSAVES), plain_read, xss_write, ANY, F(xss)),
	FUNC(0xc0000080, 0xc0000080, "EFER", MSR_ALWAYS, plain_read, efer_write, ANY, F(efer)),
	PLAIN(0xc0000081, "STAR", G(SYSCALL), ANY, msr.star),
	ADDR(0xc0000082, "LSTAR", G(LM), msr.lstar),
	ADDR(0xc0000083, "CSTAR", G(LM), msr.cstar),
	PLAIN(0xc0000084, "FMASK", G(LM), LOW32, msr.fmask),
	FUNC(0xc0000100, 0xc0000100, "FS_BASE", G(LM), plain_read, base_write, ANY, F(seg[S_FS].base)),
	FUNC(0xc0000101, 0xc0000101, "GS_BASE", G(LM), plain_read, base_write, ANY, F(seg[S_GS].base)),
	ADDR(0xc0000102, "KERNEL_GS_BASE", G(LM), msr.kernel_gs_base),
	FUNC(0xc0000103, 0xc0000103, "TSC_AUX", MSR_TSC_AUX, plain_read, tsc_aux_write, ANY, F(msr.tsc_aux)),
	FUNC(0xc0000104, 0xc0000104, "TSC_RATIO", G(TSCRATEMSR), tsc_ratio_read, tsc_ratio_write, 0xffffffffffull, 0),
	/* Every AMD processor has these four counters; here they select and count nothing. */
	FUNC(0xc0010000, 0xc0010007, "PERF_LEGACY", MSR_AMD, const_read, ignored_write, ANY, 0),
	PLAIN(0xc0010010, "SYSCFG", MSR_AMD, LOW32, msr.syscfg),
	FUNC(0xc0010015, 0xc0010015, "HWCR", MSR_AMD, hwcr_read, plain_write, 0x7ffffffffull, F(msr.hwcr)),
	OTHER(0xc0010016, "IORR_BASE0", 0),
	OTHER(0xc0010017, "IORR_MASK0", 1),
	OTHER(0xc0010018, "IORR_BASE1", 2),
	OTHER(0xc0010019, "IORR_MASK1", 3),
	OTHER(0xc001001a, "TOP_MEM", 4),
	OTHER(0xc001001d, "TOP_MEM2", 5),
	OTHER(0xc001001f, "NB_CFG", 6),
	WRITE(0xc0010020, "PATCH_LOADER", MSR_AMD, ANY),
	OTHER(0xc0010055, "INT_PENDING", 7),
	OTHER(0xc0010058, "MMIO_CFG_BASE", 8),
	CONST(0xc0010061, 0xc0010063, "PSTATE", MSR_AMD, 0),
	OTHER(0xc0010112, "SMM_ADDR", 9),
	OTHER(0xc0010113, "SMM_MASK", 10),
	FUNC(0xc0010114, 0xc0010114, "VM_CR", G(SVM), vm_cr_read, vm_cr_write, VM_CR_VALID, 0),
	IGNORED(0xc0010115, "IGNNE", G(SVM), 0),
	FUNC(0xc0010117, 0xc0010117, "VM_HSAVE_PA", G(SVM), hsave_read, hsave_write, ANY, 0),
	FUNC(0xc0010118, 0xc0010118, "SVM_KEY", G(SVML), NULL, svm_key_write, ANY, 0),
	OTHER(0xc0011020, "LS_CFG", 11),
	OTHER(0xc0011021, "IC_CFG", 12),
	OTHER(0xc0011022, "DC_CFG", 13),
	FUNC(0xc0011029, 0xc0011029, "DE_CFG", MSR_AMD, de_cfg_read, plain_write, ANY, F(msr.other[14])),
	OTHER(0xc001102a, "BU_CFG2", 15),
};

static bool gate_open(const struct cpu *c, unsigned gate)
{
	switch (gate) {
	case MSR_ALWAYS: return true;
	case MSR_INTEL: return !model_is_amd(c->model);
	case MSR_AMD: return model_is_amd(c->model);
	case MSR_SPEC_CTRL:
		return cpu_has(c, FEAT_SPEC_CTRL) || cpu_has(c, FEAT_IBRS) || cpu_has(c, FEAT_STIBP) ||
		       cpu_has(c, FEAT_SSBD);
	case MSR_PRED_CMD: return cpu_has(c, FEAT_SPEC_CTRL) || cpu_has(c, FEAT_IBPB);
	case MSR_TSC_AUX: return cpu_has(c, FEAT_RDTSCP) || cpu_has(c, FEAT_RDPID);
	default: return cpu_has(c, (enum cpu_feature)gate);
	}
}

static const struct msr_desc *find(const struct cpu *c, u32 msr)
{
	unsigned lo = 0, hi = ARRAY_LEN(table);
	while (lo < hi) {
		unsigned mid = (lo + hi) / 2;
		if (msr > table[mid].last)
			lo = mid + 1;
		else if (msr < table[mid].first)
			hi = mid;
		else
			return gate_open(c, table[mid].gate) ? &table[mid] : NULL;
	}
	return NULL;
}

bool msr_read(struct cpu *c, u32 msr, u64 *v)
{
	cpu_clock_sync(c); /* some are clocks and timers */
	const struct msr_desc *d = find(c, msr);
	*v = 0;
	if (d && d->read && d->read(c, d, msr, v))
		return true;
	log_guest("cpu %u: RDMSR of %#x at %#llx: #GP", c->index, msr, (unsigned long long)c->rip);
	return false;
}

bool msr_write(struct cpu *c, u32 msr, u64 v)
{
	cpu_clock_sync(c); /* some are clocks and timers */
	const struct msr_desc *d = find(c, msr);
	if (d && d->write && !(v & ~d->valid) && d->write(c, d, msr, v))
		return true;
	log_guest("cpu %u: WRMSR of %#llx to %#x at %#llx: #GP", c->index, (unsigned long long)v, msr,
		  (unsigned long long)c->rip);
	return false;
}

void msr_power_on(struct cpu *c)
{
	memset(&c->msr, 0, sizeof(c->msr));
	c->msr.pat = 0x0007040600070406ull;
	c->msr.misc_enable = MISC_ENABLE_RESET;
}
