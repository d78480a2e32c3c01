/* quick: SYSCALL, SYSRET and IRET of 64-bit code as operating systems use them all the time, for an
 * engine that has no time for all cases. Each function either does the whole of it, with what is
 * derived from the state, or changes nothing and returns false: then cpu_syscall(), cpu_sysret(),
 * cpu_iret() say what comes of it. SDM vol. 2; APM vol. 3.
 *
 *  1. The processor is in 64-bit mode without EFER.LMSLE, and c->slow is 0: no TF, RF, breakpoints, shadow.
 *  2. RFLAGS is whole, but c->mmu and c->tlb may be those of another EFLAGS.AC.
 *  3. Nothing here calls a function or needs another register than the general ones. */
#ifndef RING3_CPU_QUICK_API_H
#define RING3_CPU_QUICK_API_H

#include "cpu/cpu.h"

enum { QUICK_CODE64 = 0xa09b, QUICK_DATA = 0xc093 };

static inline struct segment quick_flat(u16 sel, unsigned cpl, u32 attr)
{
	return (struct segment){ .sel = sel, .attr = attr | cpl << 5, .limit = 0xffffffff };
}

/* To privilege level cpl with these flags. False: alignment is to be checked there. */
static inline bool quick_level(struct cpu *c, unsigned cpl, u64 flags)
{
	if (flags & FL_TF || (cpl == 3 && (flags & FL_AC) && (c->cr0 & CR0_AM)))
		return false;
	c->rflags = flags;
	c->slow = flags & FL_RF ? SLOW_RF : 0;
	c->event_mask = (c->event_mask & ~c->if_events) | (flags & FL_IF ? c->if_events : 0);
	c->cpl = (u8)cpl;
	c->mmu = cpl == 3 ? MMU_USER : (c->cr4 & CR4_SMAP) && !(flags & FL_AC) ? MMU_SMAP : MMU_KERNEL;
	c->tlb = c->tlbs[c->mmu];
	return true;
}

/* next: the address after it. */
static inline bool quick_syscall(struct cpu *c, u64 next)
{
	u64 flags = c->rflags;
	if (!(c->efer & EFER_SCE) || c->cpl != 3 || !cpu_canonical(c, c->msr.lstar) || !quick_level(c, 0, (flags & ~c->msr.fmask & ~(u64)FL_RF) | FL_1))
		return false;
	u16 sel = (u16)(c->msr.star >> 32);
	c->regs[R_CX] = next;
	c->regs[R_11] = flags & ~(u64)FL_RF;
	c->seg[S_SS] = quick_flat((u16)(sel + 8), 0, QUICK_DATA);
	c->seg[S_CS] = quick_flat(sel & 0xfffc, 0, QUICK_CODE64);
	c->rip = c->msr.lstar;
	return true;
}

/* SYSRET to 64-bit code. amd: of the model's vendor. */
static inline bool quick_sysret(struct cpu *c, bool amd)
{
	u64 rip = c->regs[R_CX];
	if (!(c->efer & EFER_SCE) || c->cpl || !cpu_canonical(c, rip) || !quick_level(c, 3, (c->regs[R_11] & 0x3c7fd7) | FL_1))
		return false;
	u16 sel = (u16)(c->msr.star >> 48);
	if (amd) { /* base, limit and the rest of SS stay */
		c->seg[S_SS].sel = (u16)((sel + 8) | 3);
		c->seg[S_SS].attr |= SEG_DPL;
	} else {
		c->seg[S_SS] = quick_flat((u16)((sel + 8) | 3), 3, QUICK_DATA);
	}
	c->seg[S_CS] = quick_flat((u16)((sel + 16) | 3), 3, QUICK_CODE64);
	c->rip = rip;
	return true;
}

/* Where lin is, if tlb knows that it may be read; NULL. n bytes, not beyond its page. */
static inline const u64 *quick_at(const struct cpu *c, const struct tlb_entry *tlb, u64 lin, unsigned n)
{
	const struct tlb_entry *e = &tlb[(lin >> 12) & (TLB_SIZE - 1)];
	if (e->rtag != ((lin & ~PAGE_MASK) | c->epoch) || (lin & PAGE_MASK) + n > 4096)
		return NULL;
	return (const u64 *)(const void *)(lin + e->addend);
}

/* The GDT's descriptor of sel, with the attributes `attr` apart from the bits `whatever`. */
static inline bool quick_segment(const struct cpu *c, u16 sel, u32 attr, u32 whatever, struct segment *s)
{
	const u64 *at;
	if ((sel & 4) || (sel | 7u) > c->gdtr.limit ||
	    !(at = quick_at(c, c->tlbs[c->cr4 & CR4_SMAP ? MMU_SMAP : MMU_KERNEL], c->gdtr.base + (sel & 0xfff8), 8)))
		return false;
	u64 d = *(const volatile u64 *)at;
	u32 a = (d >> 40) & 0xf0ff, limit = (d & 0xffff) | ((d >> 32) & 0xf0000);
	*s = (struct segment){ .sel = sel, .attr = a, .limit = a & SEG_G ? limit << 12 | 0xfff : limit,
			       .base = ((d >> 16) & 0xffffff) | ((d >> 56) << 24) };
	return !((a ^ attr) & ~whatever);
}

/* Level 3 may hold what DS, ES, FS and GS hold. */
static inline bool quick_data_stays(const struct cpu *c)
{
	for (unsigned s = S_ES; s <= S_GS; s++)
		if (s != S_CS && s != S_SS && !(c->seg[s].attr & SEG_UNUSABLE) && (c->seg[s].attr & SEG_DPL) != SEG_DPL)
			return false;
	return true;
}

/* IRETQ at CPL 0, to CPL 0 or to 3. */
static inline bool quick_iret(struct cpu *c)
{
	enum { KEEPS = SEG_AVL | SEG_G };
	const u64 mask = FL_STATUS | FL_DF | FL_NT | FL_AC | FL_ID | FL_TF | FL_RF | FL_IF | FL_IOPL | FL_VIF | FL_VIP;
	bool no_smap = !(c->cr4 & CR4_SMAP) || (c->rflags & FL_AC);
	const u64 *at = quick_at(c, c->tlbs[no_smap ? MMU_KERNEL : MMU_SMAP], c->regs[R_SP], 40);
	if (c->cpl || c->nmi_blocked || (c->rflags & FL_NT) || !at)
		return false;
	u64 rip = ld64(at), flags = ld64(at + 2), rsp = ld64(at + 3);
	u16 sel = (u16)ld64(at + 1), ss_sel = (u16)ld64(at + 4);
	unsigned cpl = sel & 3;
	struct segment cs, ss = { .sel = ss_sel, .attr = SEG_UNUSABLE };
	if ((cpl && cpl != 3) || !(sel & 0xfffc) || !cpu_canonical(c, rip) ||
	    !quick_segment(c, sel, SEG_P | SEG_S | 9 | cpl << 5 | SEG_L, KEEPS | 2, &cs))
		return false;
	if (ss_sel & 0xfffc ? (ss_sel & 3) != cpl || !quick_segment(c, ss_sel, SEG_P | SEG_S | 3 | cpl << 5, KEEPS | SEG_L | SEG_DB, &ss) : cpl == 3)
		return false;
	if ((cpl == 3 && !quick_data_stays(c)) || !quick_level(c, cpl, (c->rflags & ~mask) | (flags & mask) | FL_1))
		return false;
	c->regs[R_SP] = rsp;
	c->seg[S_SS] = ss;
	c->seg[S_CS] = cs;
	c->rip = rip;
	return true;
}

#endif
