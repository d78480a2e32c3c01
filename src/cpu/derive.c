/* Derived state: what the fast paths look at, computed from the architectural state. The
 * only file that writes code_mode, ebase, seg_fast, seg_check, sp_mask, mmu, tlb, nofpu,
 * event_mask and slow; but for quick_api.h, which changes what follows from CPL and RFLAGS.
 *
 * CPL is not derived: far transfers, IRET, tasks, SYSCALL and the rest set c->cpl together
 * with CS and SS and then call cpu_update_mode(), which forces 0 in real and 3 in V86 mode. */
#include "cpu/mmu.h"
#include "cpu/vmx.h"

static bool lmsle(const struct cpu *c)
{
	return cpu_code64(c) && (c->efer & EFER_LMSLE);
}

/* ---- segments ------------------------------------------------------------------------------- */

/* Bits 0 (read) and 1 (write): whether only the wrap at 4 GiB is left to check. */
static u32 seg_fast_bits(const struct cpu *c, const struct segment *s)
{
	if (s->limit != 0xffffffff)
		return 0;
	if (cpu_real(c))
		return 3; /* no types in real mode: only the limit counts */
	if ((s->attr & SEG_UNUSABLE) || !(s->attr & SEG_P) || !(s->attr & SEG_S))
		return 0;
	unsigned type = s->attr & SEG_TYPE;
	if (type & 8)
		return (type & 2) ? 1 : 0;           /* code: readable or not */
	if (type & 4)
		return 0;                            /* expand-down */
	return (type & 2) ? 3 : 1;
}

void cpu_update_segs(struct cpu *c)
{
	bool code64 = cpu_code64(c);
	c->seg_fast = 0;
	for (unsigned s = S_ES; s <= S_GS; s++) {
		c->ebase[s] = code64 && s < S_FS ? 0 : c->seg[s].base;
		if (!code64)
			c->seg_fast |= seg_fast_bits(c, &c->seg[s]) << (2 * s);
	}
	c->ebase[S_NONE] = c->ebase[7] = 0;
	if (!code64)
		c->seg_fast |= 3u << (2 * S_NONE);
	/* LMSLE: nothing is fast, since the fast path of cpu_linear cuts to 32 bits. */
	c->seg_check = !code64 || lmsle(c);
	if (code64)
		c->sp_mask = ~0ull;
	else
		c->sp_mask = c->seg[S_SS].attr & SEG_DB ? 0xffffffff : 0xffff;
}

/* ---- memory ------------------------------------------------------------------------------------ */

/* DR7: L or G of breakpoint k set, and its R/W field. */
static bool dr7_enabled(u64 dr7, unsigned k) { return (dr7 >> (2 * k)) & 3; }
static unsigned dr7_rw(u64 dr7, unsigned k) { return (dr7 >> (16 + 4 * k)) & 3; }

static bool data_breakpoints(const struct cpu *c)
{
	for (unsigned k = 0; k < 4; k++) {
		if (dr7_enabled(c->dr[7], k) && dr7_rw(c->dr[7], k) & 1)
			return true; /* 01 writes, 11 reads and writes */
	}
	return false;
}

void cpu_update_mmu(struct cpu *c)
{
	bool align = c->cpl == 3 && (c->cr0 & CR0_AM) && (c->rflags & FL_AC);
	c->mmu = align || data_breakpoints(c) ? MMU_CHECK : mmu_index_explicit(c);
	c->tlb = c->tlbs[c->mmu];
}

/* ---- floating point ------------------------------------------------------------------------------ */

void cpu_update_fpu(struct cpu *c)
{
	const u64 avx = 6, avx512 = 0xe6; /* XCR0: SSE, AVX; and opmask, ZMM_Hi256, Hi16_ZMM */
	bool em = c->cr0 & CR0_EM, ts = c->cr0 & CR0_TS, mp = c->cr0 & CR0_MP;
	bool vex = (c->cr4 & CR4_OSXSAVE) && cpu_protected(c);
	u8 nm = ts ? V_NM : 0;
	c->nofpu[FC_X87] = em ? V_NM : nm;
	c->nofpu[FC_WAIT] = mp ? nm : 0;
	c->nofpu[FC_MMX] = em ? V_UD : nm;
	c->nofpu[FC_SSE] = em || !(c->cr4 & CR4_OSFXSR) ? V_UD : nm;
	c->nofpu[FC_AVX] = vex && (c->xcr0 & avx) == avx ? nm : V_UD;
	c->nofpu[FC_AVX512] = vex && (c->xcr0 & avx512) == avx512 ? nm : V_UD;
}

/* ---- events ---------------------------------------------------------------------------------------- */

void cpu_update_events(struct cpu *c)
{
	u32 m = EV_SMI | EV_INIT | EV_SIPI | EV_EXIT | EV_TLB | EV_TRAP | EV_NESTED;
	c->if_events = EV_INTR;
	if (unlikely(c->nested.mode)) {
		c->if_events = EV_VINTR | (c->nested.intr_gate == INTR_BY_IF ? EV_INTR : 0);
		if (c->nested.intr_gate == INTR_OPEN && !c->shadow)
			m |= EV_INTR;
	}
	if ((c->rflags & FL_IF) && !c->shadow)
		m |= c->if_events;
	if (!c->nmi_blocked && !c->shadow)
		m |= EV_NMI;
	if (unlikely(c->vmx->on) && !c->nested.mode)
		m &= ~(u32)EV_INIT; /* blocked in VMX root operation */
	if (unlikely(c->nested.held))
		m &= EV_EXIT | EV_TLB | EV_TRAP | EV_NESTED;
	c->event_mask = m;

	u32 slow = 0;
	if (c->rflags & FL_TF)
		slow |= SLOW_TF;
	if (c->rflags & FL_RF)
		slow |= SLOW_RF;
	if (c->shadow)
		slow |= SLOW_SHADOW;
	if (c->dr[7] & 0xff)
		slow |= SLOW_DR7;
	if (c->nested.step)
		slow |= SLOW_NESTED;
	if (c->msr.debugctl & 1)
		slow |= SLOW_LBR;
	c->slow = slow;
}

/* ---- all of it -------------------------------------------------------------------------------------- */

void cpu_update_mode(struct cpu *c)
{
	if (cpu_real(c))
		c->cpl = 0;
	else if (cpu_v86(c))
		c->cpl = 3;
	u32 cs = c->seg[S_CS].attr;
	if (cpu_long(c) && (cs & SEG_L))
		c->code_mode = CODE64;
	else
		c->code_mode = (cs & SEG_DB) && !cpu_v86(c) ? CODE32 : CODE16;
	cpu_update_segs(c);
	cpu_update_mmu(c);
	cpu_update_fpu(c);
	cpu_update_events(c);
}

void cpu_set_rflags(struct cpu *c, u64 val, u64 mask)
{
	u64 old = c->rflags;
	c->rflags = (old & ~mask) | (val & mask) | FL_1;
	u64 changed = old ^ c->rflags;
	if (changed & FL_VM) {
		cpu_update_mode(c);
		return;
	}
	if (changed & FL_AC)
		cpu_update_mmu(c);
	if (changed & (FL_IF | FL_TF | FL_RF))
		cpu_update_events(c);
}
