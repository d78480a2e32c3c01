/* Segment registers: descriptors, loads with their checks, logical to linear addresses.
 * SDM vol. 3 3.4, 5.2 to 5.7; instruction reference MOV, POP, LDS; APM vol. 2 4.12.2 (LMSLE).
 *
 *  1. A load that raises has changed nothing, but perhaps accessed bits in memory.
 *  2. A null selector loads as unusable, with base 0 and limit 0.
 *  3. Real and V86 mode check limits but neither types nor null. */
#include "cpu/seg.h"

/* ---- descriptors */

struct segment desc_segment(u16 sel, u64 d)
{
	u32 limit = (d & 0xffff) | ((d >> 32) & 0xf0000);
	u32 attr = desc_attr(d);
	return (struct segment){
		.sel = sel, .attr = attr,
		.limit = attr & SEG_G ? limit << 12 | 0xfff : limit,
		.base = ((d >> 16) & 0xffffff) | ((d >> 56) << 24),
	};
}

struct segment desc_segment_sys(struct cpu *c, u16 sel, const u64 d[2])
{
	struct segment s = desc_segment(sel, d[0]);
	if (cpu_long(c))
		s.base |= d[1] << 32;
	return s;
}

/* Linear address of the descriptor of sel. */
static u64 desc_lin(struct cpu *c, u16 sel)
{
	u64 lin = (sel & 4 ? c->seg[S_LDTR].base : c->gdtr.base) + (sel & 0xfff8);
	return cpu_long(c) ? lin : (u32)lin;
}

bool desc_read(struct cpu *c, u16 sel, unsigned bytes, u64 d[2])
{
	if ((sel & 4) && (c->seg[S_LDTR].attr & SEG_UNUSABLE))
		return false;
	u32 limit = sel & 4 ? c->seg[S_LDTR].limit : c->gdtr.limit;
	if ((sel & 0xfff8u) + bytes - 1 > limit)
		return false;
	u64 lin = desc_lin(c, sel);
	d[0] = sys_ld(c, lin, 8);
	d[1] = bytes == 16 ? sys_ld(c, lin + 8, 8) : 0;
	return true;
}

void desc_need(struct cpu *c, u16 sel, unsigned bytes, u64 d[2], unsigned vector)
{
	if (!desc_read(c, sel, bytes, d))
		cpu_raise_err(c, vector, sel_err(sel));
}

void desc_accessed(struct cpu *c, struct segment *s)
{
	if (s->attr & (1 | SEG_UNUSABLE))
		return;
	s->attr |= 1;
	sys_st(c, desc_lin(c, s->sel) + 5, (u8)s->attr, 1);
}

void desc_busy(struct cpu *c, u16 sel, bool busy)
{
	u64 lin = desc_lin(c, sel & 0xfff8) + 5;
	u8 b = (u8)sys_ld(c, lin, 1);
	sys_st(c, lin, busy ? b | SYS_BUSY : b & ~SYS_BUSY, 1);
}

/* ---- loads */

void seg_load_real(struct cpu *c, unsigned s, u16 sel)
{
	if (cpu_v86(c)) {
		c->seg[s] = seg_v86(sel);
	} else {
		/* Limit and D/B stay: what protected mode left there is unreal mode. */
		struct segment *g = &c->seg[s];
		if (g->attr & SEG_UNUSABLE)
			g->limit = 0xffff;
		g->attr = (g->attr & (SEG_DB | SEG_G | SEG_AVL)) | ATTR_REAL;
		g->sel = sel;
		g->base = (u64)sel << 4;
	}
	if (s == S_CS)
		cpu_update_mode(c);
	else
		cpu_update_segs(c);
}

static void load_ss(struct cpu *c, u16 sel)
{
	if (sel_null(sel)) {
		if (!cpu_code64(c) || c->cpl == 3 || sel_rpl(sel) != c->cpl)
			cpu_gp0(c);
		c->seg[S_SS] = seg_null(sel, c->cpl);
		return;
	}
	u64 d[2];
	desc_need(c, sel, 8, d, V_GP);
	u32 a = desc_attr(d[0]);
	if (sel_rpl(sel) != c->cpl || !attr_writable(a) || attr_dpl(a) != c->cpl)
		cpu_raise_err(c, V_GP, sel_err(sel));
	if (!(a & SEG_P))
		cpu_raise_err(c, V_SS, sel_err(sel));
	struct segment g = desc_segment(sel, d[0]);
	desc_accessed(c, &g);
	c->seg[S_SS] = g;
}

void seg_load(struct cpu *c, unsigned s, u16 sel)
{
	if (!cpu_protected(c)) {
		seg_load_real(c, s, sel);
		return;
	}
	if (s == S_SS) {
		load_ss(c, sel);
	} else if (sel_null(sel)) {
		c->seg[s] = seg_null(sel, 0);
	} else {
		u64 d[2];
		desc_need(c, sel, 8, d, V_GP);
		u32 a = desc_attr(d[0]);
		if (!attr_readable(a) ||
		    (!attr_conforming(a) && (sel_rpl(sel) > attr_dpl(a) || c->cpl > attr_dpl(a))))
			cpu_raise_err(c, V_GP, sel_err(sel));
		if (!(a & SEG_P))
			cpu_raise_err(c, V_NP, sel_err(sel));
		struct segment g = desc_segment(sel, d[0]);
		desc_accessed(c, &g);
		c->seg[s] = g;
	}
	cpu_update_segs(c);
}

/* ---- far returns and jumps share these */

struct segment seg_return_cs(struct cpu *c, u16 sel)
{
	if (sel_null(sel))
		cpu_gp0(c);
	u64 d[2];
	desc_need(c, sel, 8, d, V_GP);
	u32 a = desc_attr(d[0]);
	unsigned rpl = sel_rpl(sel), dpl = attr_dpl(a);
	if (!attr_code(a) || rpl < c->cpl || (attr_conforming(a) ? dpl > rpl : dpl != rpl) ||
	    (cpu_long(c) && (a & SEG_L) && (a & SEG_DB)))
		cpu_raise_err(c, V_GP, sel_err(sel));
	if (!(a & SEG_P))
		cpu_raise_err(c, V_NP, sel_err(sel));
	return desc_segment(sel, d[0]);
}

struct segment seg_outer_ss(struct cpu *c, u16 sel, const struct segment *cs)
{
	unsigned cpl = sel_rpl(cs->sel);
	if (sel_null(sel)) {
		if (!seg_code64(c, cs) || cpl == 3)
			cpu_gp0(c);
		return seg_null(sel, cpl);
	}
	u64 d[2];
	desc_need(c, sel, 8, d, V_GP);
	u32 a = desc_attr(d[0]);
	if (sel_rpl(sel) != cpl || !attr_writable(a) || attr_dpl(a) != cpl)
		cpu_raise_err(c, V_GP, sel_err(sel));
	if (!(a & SEG_P))
		cpu_raise_err(c, V_SS, sel_err(sel));
	return desc_segment(sel, d[0]);
}

/* The base stays: that of FS or GS may be in use in 64-bit mode. */
void seg_leave_inner(struct cpu *c, unsigned cpl)
{
	static const u8 data[] = { S_ES, S_DS, S_FS, S_GS };
	for (unsigned i = 0; i < ARRAY_LEN(data); i++) {
		struct segment *g = &c->seg[data[i]];
		if (!(g->attr & SEG_UNUSABLE) && !attr_conforming(g->attr) && attr_dpl(g->attr) < cpl)
			*g = (struct segment){ .attr = SEG_UNUSABLE, .base = g->base };
	}
}

void seg_commit_cs(struct cpu *c, struct segment cs, unsigned cpl, u64 rip)
{
	cs.sel = (u16)(sel_err(cs.sel) | cpl);
	c->seg[S_CS] = cs;
	c->cpl = (u8)cpl;
	c->rip = seg_code64(c, &cs) ? rip : (u32)rip;
	cpu_update_mode(c);
}

/* ---- addresses */

/* LMSLE: at CPL > 0, DS, ES, FS and SS reach up to limit in the top 4 GiB of the address space.
 * Null segments: undefined, not limited here. */
static bool within_64(const struct cpu *c, unsigned s, u64 lin, unsigned size)
{
	if (!(c->efer & EFER_LMSLE) || !c->cpl || s == S_GS || s == S_CS || s >= S_NONE ||
	    (c->seg[s].attr & SEG_UNUSABLE))
		return true;
	u64 max = 0xffffffff00000000ull + c->seg[s].limit;
	return lin <= max && (max == ~0ull || max - lin >= size - 1);
}

u64 seg_linear(struct cpu *c, unsigned s, u64 off, unsigned size, enum access acc)
{
	unsigned vector = s == S_SS ? V_SS : V_GP;
	if (cpu_code64(c)) {
		u64 lin = off + c->ebase[s];
		if (!within_64(c, s, lin, size))
			cpu_raise_err(c, vector, 0);
		return lin;
	}
	if (s >= S_NONE)
		return (u32)off;
	const struct segment *g = &c->seg[s];
	if (cpu_protected(c)) {
		if (g->attr & SEG_UNUSABLE)
			cpu_raise_err(c, vector, 0);
		if (acc == ACC_WRITE ? !attr_writable(g->attr) : !attr_readable(g->attr))
			cpu_raise_err(c, vector, 0);
	}
	if (!seg_within(g, (u32)off, size))
		cpu_raise_err(c, vector, 0);
	return (u32)(g->base + off);
}
