/* Stacks of other privilege levels: where call gates, exceptions and returns put their frames,
 * and the accesses made on another level's behalf. SDM vol. 3 5.8.5, 6.12.1, 6.14.
 *
 *  1. All limit and canonical checks of a frame come before its first byte is written; a page
 *     fault may leave words above the new top written, as on silicon, and no register changed.
 *  2. While priv_back is set, cpl and code_mode are borrowed: cpu_raise() gives them back. */
#include "cpu/seg.h"

void priv_enter(struct cpu *c, unsigned cpl, bool wide)
{
	if (c->cpl == cpl && (!wide || cpu_code64(c)))
		return;
	c->priv_back = (u8)(1 + c->cpl + 16 * c->code_mode);
	c->cpl = (u8)cpl;
	if (wide)
		c->code_mode = CODE64; /* addresses are not cut to 32 bits */
	cpu_update_mmu(c);
}

void priv_leave(struct cpu *c)
{
	if (!c->priv_back)
		return;
	c->cpl = (c->priv_back - 1) & 15;
	c->code_mode = (c->priv_back - 1) >> 4;
	c->priv_back = 0;
	cpu_update_mmu(c);
}

struct stack stack_current(struct cpu *c)
{
	return (struct stack){ .sp = c->regs[R_SP], .mask = c->sp_mask, .ss = c->seg[S_SS], .cpl = c->cpl,
			       .flat = cpu_code64(c), .limited = cpu_code64(c) && c->seg_check };
}

struct stack stack_tss(struct cpu *c, unsigned dpl)
{
	const struct segment *tr = &c->seg[S_TR];
	bool t32 = tr->attr & 8;
	unsigned size = t32 ? 4 : 2, off = t32 ? dpl * 8 + 4 : dpl * 4 + 2;
	if (off + size + 1 > tr->limit)
		cpu_raise_err(c, V_TS, sel_err(tr->sel));
	u64 sp = sys_ld(c, tr->base + off, size);
	u16 sel = (u16)sys_ld(c, tr->base + off + size, 2);
	if (sel_null(sel))
		cpu_raise_err(c, V_TS, 0);
	u64 d[2];
	desc_need(c, sel, 8, d, V_TS);
	u32 a = desc_attr(d[0]);
	if (sel_rpl(sel) != dpl || attr_dpl(a) != dpl || !attr_writable(a))
		cpu_raise_err(c, V_TS, sel_err(sel));
	if (!(a & SEG_P))
		cpu_raise_err(c, V_SS, sel_err(sel));
	struct stack st = { .sp = sp, .ss = desc_segment(sel, d[0]), .err = sel_err(sel), .cpl = dpl };
	st.mask = stack_mask(&st.ss);
	return st;
}

struct stack stack_tss64(struct cpu *c, unsigned off, unsigned cpl)
{
	const struct segment *tr = &c->seg[S_TR];
	if (off + 7 > tr->limit)
		cpu_raise_err(c, V_TS, sel_err(tr->sel));
	return (struct stack){ .sp = sys_ld(c, tr->base + off, 8), .mask = ~0ull, .ss = seg_null(cpl, cpl),
			       .cpl = cpl, .flat = true };
}

static u64 stack_lin(struct cpu *c, const struct stack *st, u64 sp, unsigned size)
{
	if (st->flat) {
		if (unlikely(!cpu_canonical(c, sp) || !cpu_canonical(c, sp + size - 1)))
			cpu_raise_err(c, V_SS, st->err);
		return unlikely(st->limited) ? seg_linear(c, S_SS, sp, size, ACC_WRITE) : sp;
	}
	if (unlikely((st->ss.attr & SEG_UNUSABLE) || !seg_within(&st->ss, (u32)sp, size)))
		cpu_raise_err(c, V_SS, st->err);
	return (u32)(st->ss.base + sp);
}

void stack_room(struct cpu *c, const struct stack *st, unsigned n, unsigned size)
{
	for (unsigned i = 1; i <= n; i++)
		stack_lin(c, st, (st->sp - i * size) & st->mask, size);
}

void stack_push(struct cpu *c, struct stack *st, const u64 *v, unsigned n, unsigned size)
{
	stack_room(c, st, n, size);
	priv_enter(c, st->cpl, st->flat);
	for (unsigned i = 0; i < n; i++) {
		u64 lin = stack_lin(c, st, (st->sp - (i + 1) * size) & st->mask, size);
		switch (size) {
		case 2: mem_st16(c, lin, (u16)v[i]); break;
		case 4: mem_st32(c, lin, (u32)v[i]); break;
		default: mem_st64(c, lin, v[i]);
		}
	}
	priv_leave(c);
	st->sp = (st->sp & ~st->mask) | ((st->sp - n * size) & st->mask);
}

void stack_commit(struct cpu *c, const struct stack *st)
{
	u64 keep = st->mask == 0xffff ? c->regs[R_SP] & 0xffff0000 : 0;
	c->regs[R_SP] = keep | (st->sp & st->mask);
}

u64 stack_at(struct cpu *c, unsigned skip, unsigned size)
{
	u64 sp = (c->regs[R_SP] + skip) & c->sp_mask;
	if (cpu_code64(c) && unlikely(!cpu_canonical(c, sp) || !cpu_canonical(c, sp + size - 1)))
		cpu_raise_err(c, V_SS, 0);
	u64 lin = cpu_linear(c, S_SS, sp, size, ACC_READ);
	switch (size) {
	case 2: return mem_ld16(c, lin);
	case 4: return mem_ld32(c, lin);
	default: return mem_ld64(c, lin);
	}
}
