/* VMRUN: what the VMCB must not say, and how it becomes the processor's state; VMLOAD and VMSAVE. AMD APM
 * vol. 2 15.5.1 (consistency checks), appendix B.
 *
 *  1. All checks come before the first change.
 *  2. Bases of ES, CS, SS and DS have 32 bits, others are made canonical: so silicon does it. */
#include <string.h>

#include "cpu/control.h"
#include "cpu/mmu.h"
#include "cpu/msr.h"
#include "cpu/seg.h"
#include "cpu/svm.h"

#define HIGH_HALF 0xffffffff00000000ull

/* ---- segments --------------------------------------------------------------------------------- */

static u64 canonical(const struct cpu *c, u64 v)
{
	unsigned shift = 64 - c->model->lin_bits;
	return (u64)((i64)(v << shift) >> shift);
}

/* Attributes: of ours 7:0 and 15:12, there in 11:0. Not present means unusable, but for CS and TR. */
struct segment svm_segment_get(const struct cpu *c, const u8 *p, bool wide_base)
{
	u32 a = ld16(p + 2);
	struct segment s = { .sel = ld16(p), .attr = (a & 0xff) | (a & 0xf00) << 4, .limit = ld32(p + 4),
			     .base = wide_base ? canonical(c, ld64(p + 8)) : ld32(p + 8) };
	if (!(s.attr & SEG_P))
		s.attr |= SEG_UNUSABLE;
	return s;
}

void svm_segment_put(u8 *p, const struct segment *s)
{
	u32 a = s->attr & SEG_UNUSABLE ? s->attr & ~(u32)SEG_P : s->attr;
	st16(p, s->sel);
	st16(p + 2, (u16)((a & 0xff) | (a >> 4 & 0xf00)));
	st32(p + 4, s->limit);
	st64(p + 8, s->base);
}

void svm_vmload(struct cpu *c, const u8 *v)
{
	c->seg[S_FS] = svm_segment_get(c, v + VMCB_FS, true);
	c->seg[S_GS] = svm_segment_get(c, v + VMCB_GS, true);
	c->seg[S_LDTR] = svm_segment_get(c, v + VMCB_LDTR, true);
	c->seg[S_TR] = svm_segment_get(c, v + VMCB_TR, true);
	c->seg[S_TR].attr &= ~(u32)SEG_UNUSABLE;
	c->msr.kernel_gs_base = canonical(c, ld64(v + VMCB_KERNEL_GS));
	c->msr.star = ld64(v + VMCB_STAR);
	c->msr.lstar = canonical(c, ld64(v + VMCB_LSTAR));
	c->msr.cstar = canonical(c, ld64(v + VMCB_CSTAR));
	c->msr.fmask = ld32(v + VMCB_SFMASK);
	c->msr.sysenter_cs = ld64(v + VMCB_SYSENTER_CS);
	c->msr.sysenter_esp = canonical(c, ld64(v + VMCB_SYSENTER_ESP));
	c->msr.sysenter_eip = canonical(c, ld64(v + VMCB_SYSENTER_EIP));
	cpu_update_segs(c);
}

void svm_vmsave(const struct cpu *c, u8 *v)
{
	svm_segment_put(v + VMCB_FS, &c->seg[S_FS]);
	svm_segment_put(v + VMCB_GS, &c->seg[S_GS]);
	svm_segment_put(v + VMCB_LDTR, &c->seg[S_LDTR]);
	svm_segment_put(v + VMCB_TR, &c->seg[S_TR]);
	st64(v + VMCB_KERNEL_GS, c->msr.kernel_gs_base);
	st64(v + VMCB_STAR, c->msr.star);
	st64(v + VMCB_LSTAR, c->msr.lstar);
	st64(v + VMCB_CSTAR, c->msr.cstar);
	st64(v + VMCB_SFMASK, c->msr.fmask);
	st64(v + VMCB_SYSENTER_CS, c->msr.sysenter_cs);
	st64(v + VMCB_SYSENTER_ESP, c->msr.sysenter_esp);
	st64(v + VMCB_SYSENTER_EIP, c->msr.sysenter_eip);
}

/* ---- checks ---------------------------------------------------------------------------------------- */

static bool registers_fit(const struct cpu *c, const u8 *v)
{
	u64 efer = ld64(v + VMCB_EFER), cr0 = ld64(v + VMCB_CR0), cr4 = ld64(v + VMCB_CR4);
	u32 cs = ld16(v + VMCB_CS + 2);
	bool lng = (efer & EFER_LME) && (cr0 & CR0_PG), l = cs & 0x200, d = cs & 0x400;
	if (!(efer & EFER_SVME) || (efer & ~cpu_efer_valid(c)))
		return false;
	if ((cr0 & HIGH_HALF) || (!(cr0 & CR0_CD) && (cr0 & CR0_NW)))
		return false;
	if ((ld64(v + VMCB_CR3) & ~c->maxphyaddr_mask) || (cr4 & ~cpu_cr4_valid(c)))
		return false;
	if ((ld64(v + VMCB_DR6) & HIGH_HALF) || (ld64(v + VMCB_DR7) & HIGH_HALF))
		return false;
	return !lng || ((cr4 & CR4_PAE) && (cr0 & CR0_PE) && !(l && d));
}

/* The maps must end below the last physical address; the I/O map may end there. */
static bool maps_fit(const struct cpu *c, const u8 *v)
{
	u64 end = c->maxphyaddr_mask + 1, iopm = ld64(v + VMCB_IOPM) & ~PAGE_MASK, msrpm = ld64(v + VMCB_MSRPM) & ~PAGE_MASK;
	return iopm < end && iopm + 3 * PAGE_SIZE <= end && msrpm < end && msrpm + 2 * PAGE_SIZE < end;
}

static bool nested_paging_fits(const struct cpu *c, const u8 *v)
{
	if (!(ld64(v + VMCB_NP_ENABLE) & 1))
		return true;
	return cpu_has(c, FEAT_NPT) && (c->cr0 & CR0_PG) && !(ld64(v + VMCB_NCR3) & ~c->maxphyaddr_mask) && pat_valid(ld64(v + VMCB_PAT));
}

static bool injection_fits(const u8 *v)
{
	u32 e = ld32(v + VMCB_EVENTINJ);
	unsigned type = e >> 8 & 7, vector = e & 0xff;
	if (!(e & VEC_VALID))
		return true;
	switch (type) {
	case VEC_INTR: case VEC_NMI: case VEC_SOFT_INT: return true;
	case VEC_EXCEPTION: return vector < 32 && vector != V_NMI;
	default: return false;
	}
}

static bool vmcb_fits(const struct cpu *c, const u8 *v)
{
	u32 asid = ld32(v + VMCB_ASID);
	bool vmrun = ld32(v + VMCB_INTERCEPTS + 4 * (SVM_EXIT_VMRUN / 32)) >> (SVM_EXIT_VMRUN % 32) & 1;
	return vmrun && asid && asid < SVM_ASIDS && registers_fit(c, v) && maps_fit(c, v) && nested_paging_fits(c, v) && injection_fits(v);
}

/* ---- loading ------------------------------------------------------------------------------------------ */

static void save_host(struct cpu *c)
{
	struct svm_host *h = &c->svm->host;
	*h = (struct svm_host){ .es = c->seg[S_ES], .cs = c->seg[S_CS], .ss = c->seg[S_SS], .ds = c->seg[S_DS], .gdtr = c->gdtr,
				.idtr = c->idtr, .efer = c->efer, .cr0 = c->cr0, .cr3 = c->cr3, .cr4 = c->cr4,
				.rflags = c->rflags & ~(u64)FL_RF, .rip = c->rip, .rsp = c->regs[R_SP], .rax = c->regs[R_AX], .pat = c->msr.pat,
				.debugctl = c->msr.debugctl };
	memcpy(h->pdpte, c->pdpte, sizeof(h->pdpte));
	memcpy(h->lbr, c->lbr, sizeof(h->lbr));
}

static void load_control(struct cpu *c, const u8 *v)
{
	struct svm *s = c->svm;
	for (unsigned k = 0; k < ARRAY_LEN(s->intercept); k++)
		s->intercept[k] = ld32(v + VMCB_INTERCEPTS + 4 * k);
	s->iopm = ld64(v + VMCB_IOPM) & ~PAGE_MASK;
	s->msrpm = ld64(v + VMCB_MSRPM) & ~PAGE_MASK;
	s->tsc_offset = ld64(v + VMCB_TSC_OFFSET);
	s->ncr3 = ld64(v + VMCB_NCR3);
	s->vintr = ld32(v + VMCB_VINTR);
	if (!cpu_has(c, FEAT_VGIF))
		s->vintr &= ~(u32)V_GIF_ENABLE;
	s->vector = v[VMCB_VECTOR];
	s->virt_ext = ld32(v + VMCB_VIRT_EXT);
	if (!cpu_has(c, FEAT_LBRV))
		s->virt_ext &= ~(u32)VIRT_LBR;
	if (!cpu_has(c, FEAT_V_VMSAVE_VMLOAD) || !(ld64(v + VMCB_NP_ENABLE) & 1))
		s->virt_ext &= ~(u32)VIRT_VMLOAD;
	s->pause_count = cpu_has(c, FEAT_PAUSEFILTER) ? ld16(v + VMCB_PAUSE_COUNT) : 0;
	s->pause_left = s->pause_count;
	s->pause_threshold = cpu_has(c, FEAT_PFTHRESHOLD) ? ld16(v + VMCB_PAUSE_THRESHOLD) : 0;
	s->pause_last = 0;
	u64 e = ld64(v + VMCB_EVENTINJ);
	if ((e >> 8 & 7) == VEC_NMI) /* the vector is ignored: APM vol. 2, 15.20 */
		e = (e & ~0xffull) | V_NMI;
	s->event = e & VEC_VALID ? e : 0;
	s->event_rip = ld64(v + VMCB_RIP);
	bool soft = (e >> 8 & 7) == VEC_SOFT_INT || ((e >> 8 & 7) == VEC_EXCEPTION && ((u8)e == V_BP || (u8)e == V_OF));
	if (soft && cpu_has(c, FEAT_NRIPS) && ld64(v + VMCB_NRIP))
		s->event_rip = ld64(v + VMCB_NRIP);
}

/* Bits of c->icpt by intercept bits. */
static u64 intercept_bits(const struct cpu *c)
{
	static const struct { u8 code, icpt; } known[] = {
		{ SVM_EXIT_INTR, ICPT_INTR }, { SVM_EXIT_NMI, ICPT_NMI }, { SVM_EXIT_SMI, ICPT_SMI }, { SVM_EXIT_INIT, ICPT_INIT },
		{ SVM_EXIT_CR0_SELECTIVE, ICPT_CR_WRITE }, { SVM_EXIT_IDTR_READ, ICPT_IDTR_READ },
		{ SVM_EXIT_GDTR_READ, ICPT_GDTR_READ }, { SVM_EXIT_LDTR_READ, ICPT_LDTR_READ }, { SVM_EXIT_TR_READ, ICPT_TR_READ },
		{ SVM_EXIT_IDTR_WRITE, ICPT_IDTR_WRITE }, { SVM_EXIT_GDTR_WRITE, ICPT_GDTR_WRITE },
		{ SVM_EXIT_LDTR_WRITE, ICPT_LDTR_WRITE }, { SVM_EXIT_TR_WRITE, ICPT_TR_WRITE }, { SVM_EXIT_RDTSC, ICPT_RDTSC },
		{ SVM_EXIT_RDPMC, ICPT_RDPMC }, { SVM_EXIT_PUSHF, ICPT_PUSHF }, { SVM_EXIT_POPF, ICPT_POPF },
		{ SVM_EXIT_CPUID, ICPT_CPUID }, { SVM_EXIT_RSM, ICPT_RSM }, { SVM_EXIT_IRET, ICPT_IRET }, { SVM_EXIT_INTN, ICPT_INTN },
		{ SVM_EXIT_INVD, ICPT_INVD }, { SVM_EXIT_PAUSE, ICPT_PAUSE }, { SVM_EXIT_HLT, ICPT_HLT }, { SVM_EXIT_INVLPG, ICPT_INVLPG },
		{ SVM_EXIT_IOIO, ICPT_IO }, { SVM_EXIT_TASK_SWITCH, ICPT_TASK_SWITCH }, { SVM_EXIT_FERR_FREEZE, ICPT_FERR_FREEZE },
		{ SVM_EXIT_SHUTDOWN, ICPT_SHUTDOWN }, { SVM_EXIT_RDTSCP, ICPT_RDTSCP }, { SVM_EXIT_ICEBP, ICPT_ICEBP },
		{ SVM_EXIT_WBINVD, ICPT_WBINVD }, { SVM_EXIT_MONITOR, ICPT_MONITOR }, { SVM_EXIT_MWAIT, ICPT_MWAIT },
		{ SVM_EXIT_MWAIT_ARMED, ICPT_MWAIT }, { SVM_EXIT_XSETBV, ICPT_XSETBV }, { SVM_EXIT_INVPCID, ICPT_INVPCID },
	};
	const u32 *w = c->svm->intercept;
	u64 bits = ICPT_BIT(ICPT_VM);
	for (unsigned k = 0; k < ARRAY_LEN(known); k++)
		if (svm_wants(c, known[k].code))
			bits |= ICPT_BIT(known[k].icpt);
	bits |= w[0] & 0xffff ? ICPT_BIT(ICPT_CR_READ) : 0;
	bits |= w[0] >> 16 ? ICPT_BIT(ICPT_CR_WRITE) : 0;
	bits |= w[1] & 0xffff ? ICPT_BIT(ICPT_DR_READ) : 0;
	bits |= w[1] >> 16 ? ICPT_BIT(ICPT_DR_WRITE) : 0;
	bits |= w[2] ? ICPT_BIT(ICPT_EXCEPTION) : 0;
	return bits;
}

static void load_registers(struct cpu *c, const u8 *v)
{
	u64 efer = ld64(v + VMCB_EFER) & ~(u64)EFER_LMA;
	c->cr0 = (ld64(v + VMCB_CR0) & CR0_DEFINED) | CR0_ET;
	c->cr3 = ld64(v + VMCB_CR3);
	c->cr4 = ld64(v + VMCB_CR4);
	c->efer = efer | ((efer & EFER_LME) && (c->cr0 & CR0_PG) ? EFER_LMA : 0);
	c->cr2 = ld64(v + VMCB_CR2);
	c->dr[6] = (ld64(v + VMCB_DR6) & DR6_WRITABLE) | DR6_FIXED;
	c->dr[7] = (ld64(v + VMCB_DR7) & DR7_WRITABLE) | DR7_FIXED;
	c->rflags = (ld64(v + VMCB_RFLAGS) & 0x3f7fd5) | FL_1;
	c->rip = ld64(v + VMCB_RIP);
	c->regs[R_SP] = ld64(v + VMCB_RSP);
	c->regs[R_AX] = ld64(v + VMCB_RAX);
	c->seg[S_ES] = svm_segment_get(c, v + VMCB_ES, false);
	c->seg[S_CS] = svm_segment_get(c, v + VMCB_CS, false);
	c->seg[S_CS].attr &= ~(u32)SEG_UNUSABLE;
	c->seg[S_SS] = svm_segment_get(c, v + VMCB_SS, false);
	c->seg[S_DS] = svm_segment_get(c, v + VMCB_DS, false);
	c->gdtr = (struct dtable){ canonical(c, ld64(v + VMCB_GDTR + 8)), ld16(v + VMCB_GDTR + 4) };
	c->idtr = (struct dtable){ canonical(c, ld64(v + VMCB_IDTR + 8)), ld16(v + VMCB_IDTR + 4) };
	c->cpl = v[VMCB_CPL] & 3;
	c->shadow = ld64(v + VMCB_SHADOW) & 1 ? SHADOW_STI : 0;
	if (c->nested.paging)
		c->msr.pat = ld64(v + VMCB_PAT);
	if (!(c->svm->virt_ext & VIRT_LBR))
		return;
	c->msr.debugctl = ld64(v + VMCB_DEBUGCTL) & 0x3f;
	for (unsigned k = 0; k < ARRAY_LEN(c->lbr); k++)
		c->lbr[k] = ld64(v + VMCB_LBR + 8 * k);
}

/* What the nested tables' format depends on, in bits that nCR3 has not. */
static u64 nested_root(const struct cpu *c)
{
	if (!c->nested.paging)
		return 0;
	const struct svm_host *h = &c->svm->host;
	return (c->svm->ncr3 & ~0x1full) | 1 | (h->efer & EFER_LMA ? 2 : 0) | (h->efer & EFER_NXE ? 4 : 0) |
	       (h->cr4 & (CR4_PAE | CR4_PSE) ? 8 : 0) | (h->cr4 & CR4_LA57 ? 16 : 0);
}

/* In PAE mode without nested paging PDPTEs are loaded, and must be right. */
static bool load_pdptes(struct cpu *c, const u8 *v)
{
	u64 cr0 = ld64(v + VMCB_CR0), cr4 = ld64(v + VMCB_CR4), efer = ld64(v + VMCB_EFER);
	bool pae = (cr0 & CR0_PG) && (cr4 & CR4_PAE) && !(efer & EFER_LME);
	return !pae || (ld64(v + VMCB_NP_ENABLE) & 1) || mmu_load_pdptes(c, ld64(v + VMCB_CR3));
}

enum { TLB_FLUSH_ALL = 1, TLB_FLUSH_GUEST = 3, TLB_FLUSH_GUEST_NON_GLOBAL = 7 };

bool svm_enter(struct cpu *c, u64 pa)
{
	struct svm *s = c->svm;
	const u8 *v = s->image;
	bool was_if = c->rflags & FL_IF, was_tf = c->rflags & FL_TF;
	if (!vmcb_fits(c, v))
		return false;
	save_host(c);
	if (!load_pdptes(c, v))
		return false;
	mmu_space_leave(c);
	load_control(c, v);
	s->vmcb = pa;
	s->gif = true;
	c->nested.mode = NEST_SVM;
	c->nested.paging = ld64(v + VMCB_NP_ENABLE) & 1;
	c->nested.held = false;
	c->nested.vectoring = 0;
	c->nested.intr_gate = !(s->vintr & V_INTR_MASKING) ? INTR_BY_IF : was_if ? INTR_OPEN : INTR_CLOSED;
	c->icpt = intercept_bits(c);
	u8 flush = v[VMCB_TLB_CONTROL];
	if (flush == TLB_FLUSH_ALL)
		mmu_spaces_flush(c);
	load_registers(c, v);
	mmu_space_enter(c, ld32(v + VMCB_ASID), nested_root(c), flush == TLB_FLUSH_GUEST || flush == TLB_FLUSH_GUEST_NON_GLOBAL);
	cpu_update_mode(c);
	svm_update_vintr(c);
	if (s->event)
		cpu_post_event(c, EV_NESTED);
	c->dr6_pending = 0;
	c->step_skip = was_tf; /* VMRUN's own trap comes after the exit */
	return true;
}
