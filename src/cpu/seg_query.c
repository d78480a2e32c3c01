/* What asks about descriptors rather than loading a segment: LAR LSL VERR VERW, and LLDT, LTR
 * and the I/O permission bitmap, which concern system segments. SDM vol. 2; vol. 3 table 3-2,
 * 5.10; vol. 1 19.5.2. Whether the instruction exists in the mode, and CPL 0 for LLDT and LTR,
 * is for the handler to check first. */
#include "cpu/seg.h"

/* Bit n: system descriptor type n is accepted. In long mode 16-bit TSSs, task gates and 286
 * gates are not. */
enum {
	LAR_LEGACY = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 9 | 1 << 11 | 1 << 12,
	LAR_LONG = 1 << 2 | 1 << 9 | 1 << 11 | 1 << 12,
	LSL_LEGACY = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 9 | 1 << 11,
	LSL_LONG = 1 << 2 | 1 << 9 | 1 << 11,
};

/* The descriptor if it exists, its type is accepted and it is visible at CPL and RPL. */
static bool query(struct cpu *c, u16 sel, unsigned legacy, unsigned lng, u64 d[2])
{
	if (sel_null(sel) || !desc_read(c, sel, 8, d))
		return false;
	u32 a = desc_attr(d[0]);
	if (!(a & SEG_S) && !((cpu_long(c) ? lng : legacy) >> (a & SEG_TYPE) & 1))
		return false;
	return attr_conforming(a) || (c->cpl <= attr_dpl(a) && sel_rpl(sel) <= attr_dpl(a));
}

/* ar: the descriptor's second word & 00FFFF00h, as silicon gives it. */
bool seg_lar(struct cpu *c, u16 sel, u32 *ar)
{
	u64 d[2];
	if (!query(c, sel, LAR_LEGACY, LAR_LONG, d))
		return false;
	*ar = (d[0] >> 32) & 0x00ffff00;
	return true;
}

bool seg_lsl(struct cpu *c, u16 sel, u32 *limit)
{
	u64 d[2];
	if (!query(c, sel, LSL_LEGACY, LSL_LONG, d))
		return false;
	*limit = desc_segment(sel, d[0]).limit;
	return true;
}

bool seg_verify(struct cpu *c, u16 sel, bool write)
{
	u64 d[2];
	if (!query(c, sel, 0, 0, d))
		return false;
	u32 a = desc_attr(d[0]);
	return write ? attr_writable(a) : attr_readable(a);
}

/* LDT or TSS of one of types; raises for everything but present. */
static struct segment sys_segment(struct cpu *c, u16 sel, unsigned types)
{
	u64 d[2];
	if (sel & 4)
		cpu_raise_err(c, V_GP, sel_err(sel));
	desc_need(c, sel, cpu_long(c) ? 16 : 8, d, V_GP);
	u32 a = desc_attr(d[0]);
	if ((a & SEG_S) || !(types >> (a & SEG_TYPE) & 1))
		cpu_raise_err(c, V_GP, sel_err(sel));
	if (!(a & SEG_P))
		cpu_raise_err(c, V_NP, sel_err(sel));
	struct segment g = desc_segment_sys(c, sel, d);
	if (cpu_long(c) && ((d[1] >> 40 & 0x1f) || !cpu_address_valid(c, g.base)))
		cpu_raise_err(c, V_GP, sel_err(sel));
	return g;
}

void seg_lldt(struct cpu *c, u16 sel)
{
	if (sel_null(sel))
		c->seg[S_LDTR] = seg_null(sel, 0);
	else
		c->seg[S_LDTR] = sys_segment(c, sel, 1 << SYS_LDT);
}

void seg_ltr(struct cpu *c, u16 sel)
{
	if (sel_null(sel))
		cpu_gp0(c);
	struct segment g = sys_segment(c, sel, cpu_long(c) ? 1 << SYS_TSS32 : 1 << SYS_TSS32 | 1 << SYS_TSS16);
	desc_busy(c, sel, true);
	g.attr |= SYS_BUSY;
	c->seg[S_TR] = g;
}

/* The bitmap is asked at CPL > IOPL and always in V86 mode; two bytes of it are read, so both
 * must lie within the TSS. */
bool cpu_io_allowed(struct cpu *c, u16 port, unsigned size)
{
	if (cpu_real(c) || (!cpu_v86(c) && c->cpl <= cpu_iopl(c)))
		return true;
	const struct segment *tr = &c->seg[S_TR];
	if (!(tr->attr & SEG_P) || !(tr->attr & 8) || tr->limit < 0x67)
		return false;
	u32 at = (u32)sys_ld(c, tr->base + 0x66, 2) + port / 8;
	if (at + 1 > tr->limit)
		return false;
	u32 bits = (u32)sys_ld(c, tr->base + at, 2);
	return !(bits >> (port & 7) & ((1u << size) - 1));
}
