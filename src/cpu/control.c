/* Control, debug and extended control registers: which values may be written, and what a write
 * changes. Intel SDM volume 3, 2.5 (control registers), 4.1 (paging modes), 10.8.5 (activating
 * IA-32e mode), 17.2 (debug registers), 2.6 (XCR0); AMD APM volume 2, 3.1.
 *
 * Invariants
 *  1. A write is checked whole before anything changes: #GP(0) leaves all as it was.
 *  2. EFER.LMA is CR0.PG and EFER.LME, set and cleared here alone.
 *  3. Whatever cached translations depend on (tlb.c lists it) is flushed here when it changes.
 *  4. Reserved bits: CR0's low ones are dropped, CR0 63:32 and all of CR4's raise #GP(0).
 * Privilege (CPL 0) and #UD of unknown register numbers are the callers', but for debug registers. */
#include "cpu/features.h"
#include "cpu/vmx.h"

#define HIGH_HALF 0xffffffff00000000ull

static bool pae_paging(u64 cr0, u64 cr4, u64 efer)
{
	return (cr0 & CR0_PG) && (cr4 & CR4_PAE) && !(efer & EFER_LMA);
}

/* ---- CR0 ------------------------------------------------------------------------------- */

/* PG goes from 0 to 1 with EFER.LME set. Only Intel's look at the TSS (SDM vol. 3, 10.8.5): KVM's reset
 * on AMD-V leaves a 16-bit one in TR, with which every processor that SIPI starts goes to long mode. */
static bool may_activate_long(const struct cpu *c)
{
	unsigned tss = c->seg[S_TR].attr & (SEG_TYPE | SEG_S);
	return (c->cr4 & CR4_PAE) && !(c->seg[S_CS].attr & SEG_L) && (model_is_amd(c->model) || (tss != 1 && tss != 3));
}

static bool cr0_allowed(const struct cpu *c, u64 v)
{
	if (v & HIGH_HALF)
		return false;
	if ((v & CR0_PG) && !(v & CR0_PE))
		return false;
	if (c->vmx->on && !vmx_cr0_valid(v, vmx_proc2(c, PROC2_UNRESTRICTED)))
		return false;
	if ((v & CR0_NW) && !(v & CR0_CD))
		return false;
	bool was = c->cr0 & CR0_PG, is = v & CR0_PG;
	if (!was && is && (c->efer & EFER_LME) && !may_activate_long(c))
		return false;
	if (was && !is && ((c->cr4 & CR4_PCIDE) || cpu_code64(c)))
		return false;
	return true;
}

void cpu_write_cr0(struct cpu *c, u64 v)
{
	if (!cr0_allowed(c, v))
		cpu_gp0(c);
	v = (v & CR0_DEFINED) | CR0_ET;
	u64 changed = c->cr0 ^ v, efer = c->efer;
	if (changed & CR0_PG)
		efer = (v & CR0_PG) && (efer & EFER_LME) ? efer | EFER_LMA : efer & ~(u64)EFER_LMA;
	if (pae_paging(v, c->cr4, efer) && (changed & (CR0_PG | CR0_CD | CR0_NW)) && !mmu_load_pdptes(c, c->cr3))
		cpu_gp0(c);
	c->cr0 = v;
	c->efer = efer;
	if (changed & (CR0_PG | CR0_PE | CR0_WP))
		mmu_flush_all(c);
	cpu_update_mode(c);
}

/* ---- CR3 ------------------------------------------------------------------------------- */

#define CR3_NOFLUSH (1ull << 63)

void cpu_write_cr3(struct cpu *c, u64 v)
{
	bool noflush = false;
	if (cpu_long(c)) {
		if ((c->cr4 & CR4_PCIDE) && (v & CR3_NOFLUSH)) {
			noflush = true;
			v &= ~CR3_NOFLUSH;
		}
		if (v & ~c->maxphyaddr_mask)
			cpu_gp0(c);
	} else {
		v = (u32)v;
		if (pae_paging(c->cr0, c->cr4, c->efer) && !mmu_load_pdptes(c, v))
			cpu_gp0(c);
	}
	mmu_set_cr3(c, v, noflush);
}

/* ---- CR4 ------------------------------------------------------------------------------- */

u64 cpu_cr4_valid(const struct cpu *c)
{
	static const struct { u32 bit; u16 feature; } bits[] = {
		{ CR4_VME | CR4_PVI, FEAT_VME }, { CR4_TSD, FEAT_TSC }, { CR4_DE, FEAT_DE }, { CR4_PSE, FEAT_PSE },
		{ CR4_PAE, FEAT_PAE }, { CR4_MCE, FEAT_MCE }, { CR4_PGE, FEAT_PGE }, { CR4_OSFXSR, FEAT_FXSR },
		{ CR4_OSXMMEXCPT, FEAT_SSE }, { CR4_UMIP, FEAT_UMIP }, { CR4_LA57, FEAT_LA57 },
		{ CR4_VMXE, FEAT_VMX }, { CR4_SMXE, FEAT_SMX }, { CR4_FSGSBASE, FEAT_FSGSBASE },
		{ CR4_PCIDE, FEAT_PCID }, { CR4_OSXSAVE, FEAT_XSAVE }, { CR4_SMEP, FEAT_SMEP },
		{ CR4_SMAP, FEAT_SMAP }, { CR4_PKE, FEAT_PKU }, { CR4_PKS, FEAT_PKS },
	};
	u64 v = CR4_PCE; /* RDPMC at CPL 3: there with or without counters */
	for (unsigned k = 0; k < ARRAY_LEN(bits); k++)
		if (cpu_has(c, bits[k].feature))
			v |= bits[k].bit;
	return v;
}

static bool cr4_allowed(const struct cpu *c, u64 v)
{
	u64 changed = c->cr4 ^ v;
	if ((v & ~cpu_cr4_valid(c)) || (c->vmx->on && !(v & CR4_VMXE)))
		return false;
	if (cpu_long(c) && (!(v & CR4_PAE) || (changed & CR4_LA57)))
		return false;
	if ((changed & v & CR4_PCIDE) && (!cpu_long(c) || (c->cr3 & 0xfff)))
		return false;
	return true;
}

void cpu_write_cr4(struct cpu *c, u64 v)
{
	const u64 reload = CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP;
	const u64 flush = CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP | CR4_SMAP | CR4_PKE | CR4_PKS | CR4_LA57 | CR4_PCIDE;
	if (!cr4_allowed(c, v))
		cpu_gp0(c);
	u64 changed = c->cr4 ^ v;
	if (pae_paging(c->cr0, v, c->efer) && (changed & reload) && !mmu_load_pdptes(c, c->cr3))
		cpu_gp0(c);
	c->cr4 = v;
	if (changed & flush)
		mmu_flush_all(c);
	cpu_update_mode(c);
}

/* ---- CR8, reading ------------------------------------------------------------------------ */

void cpu_write_cr8(struct cpu *c, u64 v)
{
	if (v & ~15ull)
		cpu_gp0(c);
	if (unlikely(c->nested.mode) && nested_tpr_write(c, (u8)(v << 4)))
		return;
	if (c->hooks && c->hooks->set_tpr)
		c->hooks->set_tpr(c->hooks->arg, (u8)(v << 4));
}

static u64 read_cr8(struct cpu *c)
{
	u8 tpr = 0;
	if (!(unlikely(c->nested.mode) && nested_tpr_read(c, &tpr)) && c->hooks && c->hooks->get_tpr)
		tpr = c->hooks->get_tpr(c->hooks->arg);
	return tpr >> 4;
}

u64 cpu_read_cr(struct cpu *c, unsigned n)
{
	switch (n) {
	case 0: return c->cr0;
	case 2: return c->cr2;
	case 3: return c->cr3;
	case 4: return c->cr4;
	case 8: return read_cr8(c);
	default: cpu_ud(c);
	}
}

/* ---- debug registers ---------------------------------------------------------------------- */

/* DR4 and DR5 are names of DR6 and DR7 until CR4.DE takes them away. Privilege comes first (so AMD's
 * processors have it). DR7.GD makes each access a fault, which clears GD as it is delivered. */
static unsigned dr_number(struct cpu *c, unsigned n, enum intercept x)
{
	if (c->cpl)
		cpu_gp0(c);
	if (n > 7 || ((n == 4 || n == 5) && (c->cr4 & CR4_DE)))
		cpu_ud(c);
	nested_check(c, x, n);
	if (c->dr[7] & DR7_GD)
		cpu_raise_db(c, DR6_BD);
	return n == 4 || n == 5 ? n + 2 : n;
}

void cpu_write_dr(struct cpu *c, unsigned n, u64 v)
{
	n = dr_number(c, n, ICPT_DR_WRITE);
	if (n >= 6 && (v & HIGH_HALF))
		cpu_gp0(c);
	if (n == 6)
		v = (v & DR6_WRITABLE) | DR6_FIXED;
	else if (n == 7)
		v = (v & DR7_WRITABLE) | DR7_FIXED;
	c->dr[n] = v;
	cpu_update_mmu(c);
	cpu_update_events(c);
}

u64 cpu_read_dr(struct cpu *c, unsigned n)
{
	return c->dr[dr_number(c, n, ICPT_DR_READ)];
}

/* ---- XCR0 ------------------------------------------------------------------------------------ */

void cpu_write_xcr(struct cpu *c, u32 n, u64 v)
{
	const u64 x87 = 1, sse = 2, avx = 4, avx512 = 0xe0;
	if (n || !(v & x87) || (v & ~c->model->xcr0_mask))
		cpu_gp0(c);
	if ((v & avx) && !(v & sse))
		cpu_gp0(c);
	if ((v & avx512) && ((v & avx512) != avx512 || !(v & avx)))
		cpu_gp0(c);
	c->xcr0 = v;
	cpu_update_fpu(c);
}
