/* Far JMP, CALL and RET: code segments, call gates with stack switch, task gates and TSSs.
 * SDM vol. 2 JMP, CALL, RET; vol. 3 5.8.
 *
 *  1. Everything is checked, then pushed, then committed: a fault leaves registers as they were.
 *  2. opsz is in bytes; c->rip is the next instruction and becomes the return address. */
#include "cpu/features.h"
#include "cpu/seg.h"

/* ---- real and V86 mode */

static void real_goto(struct cpu *c, u16 sel, u64 off)
{
	c->rip = off;
	seg_load_real(c, S_CS, sel);
}

static void real_check_ip(struct cpu *c, u64 off)
{
	if (off > (cpu_v86(c) ? 0xffff : c->seg[S_CS].limit))
		cpu_gp0(c);
}

/* ---- checks of a destination */

/* A code segment named by the instruction itself. */
static struct segment direct_cs(struct cpu *c, u16 sel, u64 d)
{
	u32 a = desc_attr(d);
	unsigned dpl = attr_dpl(a);
	if (attr_conforming(a) ? dpl > c->cpl : sel_rpl(sel) > c->cpl || dpl != c->cpl)
		cpu_raise_err(c, V_GP, sel_err(sel));
	if (cpu_long(c) && (a & SEG_L) && (a & SEG_DB))
		cpu_raise_err(c, V_GP, sel_err(sel));
	if (!(a & SEG_P))
		cpu_raise_err(c, V_NP, sel_err(sel));
	return desc_segment(sel, d);
}

/* A code segment named by a call gate. */
static struct segment gate_cs(struct cpu *c, u16 sel, bool call)
{
	u64 d[2];
	if (sel_null(sel))
		cpu_gp0(c);
	desc_need(c, sel, 8, d, V_GP);
	u32 a = desc_attr(d[0]);
	unsigned dpl = attr_dpl(a);
	if (!attr_code(a) || dpl > c->cpl || (!call && !attr_conforming(a) && dpl != c->cpl) ||
	    (cpu_long(c) && (a & (SEG_L | SEG_DB)) != SEG_L))
		cpu_raise_err(c, V_GP, sel_err(sel));
	if (!(a & SEG_P))
		cpu_raise_err(c, V_NP, sel_err(sel));
	return desc_segment(sel, d[0]);
}

/* ---- call gates */

/* To an inner level: the old stack, parameters and the return address go on the TSS's stack. */
static void gate_call_inner(struct cpu *c, struct segment cs, u64 rip, unsigned size, unsigned params)
{
	unsigned cpl = attr_dpl(cs.attr), n = 0;
	u64 v[2 + 31 + 2];
	struct stack st = size == 8 ? stack_tss64(c, 4 + 8 * cpl, cpl) : stack_tss(c, cpl);
	stack_room(c, &st, params + 4, size);
	seg_check_ip(c, &cs, rip);
	v[n++] = c->seg[S_SS].sel;
	v[n++] = c->regs[R_SP];
	for (unsigned i = params; i-- > 0; )
		v[n++] = stack_at(c, i * size, size);
	v[n++] = c->seg[S_CS].sel;
	v[n++] = c->rip;
	desc_accessed(c, &cs);
	desc_accessed(c, &st.ss);
	stack_push(c, &st, v, n, size);
	c->seg[S_SS] = st.ss;
	stack_commit(c, &st);
	seg_commit_cs(c, cs, cpl, rip);
}

/* CS:IP on the current stack, then to cs:rip at the same level. */
static void call_same(struct cpu *c, struct segment cs, u64 rip, unsigned size, bool wide)
{
	struct stack st = stack_current(c);
	u64 v[] = { c->seg[S_CS].sel, c->rip };
	if (wide) {
		st.flat = true;
		st.mask = ~0ull;
	} else if (cpu_code64(c) && !seg_code64(c, &cs) && model_is_amd(c->model)) {
		st.flat = false; /* AMD pushes as the new mode does */
		st.mask = stack_mask(&st.ss);
	}
	stack_room(c, &st, 2, size);
	seg_check_ip(c, &cs, rip);
	desc_accessed(c, &cs);
	stack_push(c, &st, v, 2, size);
	stack_commit(c, &st);
	seg_commit_cs(c, cs, c->cpl, rip);
}

static void jump_same(struct cpu *c, struct segment cs, u64 rip)
{
	seg_check_ip(c, &cs, rip);
	desc_accessed(c, &cs);
	seg_commit_cs(c, cs, c->cpl, rip);
}

static void through_call_gate(struct cpu *c, u16 sel, u64 gate, bool call)
{
	u64 rip = gate_off(gate);
	unsigned size = desc_attr(gate) & 8 ? 4 : 2, params = (gate >> 32) & 31;
	if (cpu_long(c)) {
		u64 d[2];
		desc_need(c, sel, 16, d, V_GP);
		if (d[1] >> 40 & 0x1f)
			cpu_raise_err(c, V_GP, sel_err(sel));
		rip |= d[1] << 32;
		size = 8;
		params = 0;
	}
	struct segment cs = gate_cs(c, gate_sel(gate), call);
	if (!call)
		jump_same(c, cs, rip);
	else if (!attr_conforming(cs.attr) && attr_dpl(cs.attr) < c->cpl)
		gate_call_inner(c, cs, rip, size, params);
	else
		call_same(c, cs, rip, size, size == 8);
}

/* sel names a system descriptor: a call gate, or outside long mode a task gate or a free TSS. */
static void through_system(struct cpu *c, u16 sel, u64 d, bool call)
{
	u32 a = desc_attr(d);
	unsigned type = a & SEG_TYPE;
	unsigned types = 1 << SYS_CALL32;
	if (!cpu_long(c))
		types |= 1 << SYS_CALL16 | 1 << SYS_TASK | 1 << SYS_TSS16 | 1 << SYS_TSS32;
	if (!(types >> type & 1) || attr_dpl(a) < c->cpl || attr_dpl(a) < sel_rpl(sel))
		cpu_raise_err(c, V_GP, sel_err(sel));
	if (!(a & SEG_P))
		cpu_raise_err(c, V_NP, sel_err(sel));
	if (type == SYS_CALL16 || type == SYS_CALL32)
		through_call_gate(c, sel, d, call);
	else
		task_switch(c, type == SYS_TASK ? gate_sel(d) : sel, call ? TASK_CALL : TASK_JMP, false, 0);
}

/* ---- the three instructions */

static u64 cut(u64 off, unsigned opsz)
{
	return opsz == 2 ? off & 0xffff : opsz == 4 ? (u32)off : off;
}

/* Protected mode; true: *cs is a code segment that may be entered, else it has been done. */
static bool far_target(struct cpu *c, u16 sel, bool call, struct segment *cs)
{
	u64 d[2];
	if (sel_null(sel))
		cpu_gp0(c);
	desc_need(c, sel, 8, d, V_GP);
	u32 a = desc_attr(d[0]);
	if (attr_code(a)) {
		*cs = direct_cs(c, sel, d[0]);
		return true;
	}
	if (a & SEG_S)
		cpu_raise_err(c, V_GP, sel_err(sel));
	through_system(c, sel, d[0], call);
	return false;
}

void far_jmp(struct cpu *c, u16 sel, u64 off, unsigned opsz)
{
	struct segment cs;
	off = cut(off, opsz);
	if (!cpu_protected(c)) {
		real_check_ip(c, off);
		real_goto(c, sel, off);
	} else if (far_target(c, sel, false, &cs)) {
		jump_same(c, cs, off);
	}
}

void far_call(struct cpu *c, u16 sel, u64 off, unsigned opsz)
{
	struct segment cs;
	off = cut(off, opsz);
	if (!cpu_protected(c)) {
		struct stack st = stack_current(c);
		u64 v[] = { c->seg[S_CS].sel, c->rip };
		stack_room(c, &st, 2, opsz);
		real_check_ip(c, off);
		stack_push(c, &st, v, 2, opsz);
		stack_commit(c, &st);
		real_goto(c, sel, off);
	} else if (far_target(c, sel, true, &cs)) {
		call_same(c, cs, off, opsz, false);
	}
}

static void ret_outer(struct cpu *c, struct segment cs, u64 rip, unsigned opsz, unsigned pop_bytes)
{
	unsigned cpl = sel_rpl(cs.sel);
	u64 sp = stack_at(c, 2 * opsz + pop_bytes, opsz);
	u16 sel = (u16)stack_at(c, 3 * opsz + pop_bytes, opsz);
	struct segment ss = seg_outer_ss(c, sel, &cs);
	seg_check_ip(c, &cs, rip);
	desc_accessed(c, &cs);
	desc_accessed(c, &ss);
	struct stack st = { .sp = sp + pop_bytes, .mask = seg_code64(c, &cs) ? ~0ull : stack_mask(&ss) };
	c->seg[S_SS] = ss;
	stack_commit(c, &st);
	seg_leave_inner(c, cpl);
	seg_commit_cs(c, cs, cpl, rip);
}

void far_ret(struct cpu *c, unsigned opsz, unsigned pop_bytes)
{
	u64 rip = stack_at(c, 0, opsz);
	u16 sel = (u16)stack_at(c, opsz, opsz);
	struct stack st = stack_current(c);
	st.sp += 2 * opsz + pop_bytes;
	if (!cpu_protected(c)) {
		real_check_ip(c, rip);
		stack_commit(c, &st);
		real_goto(c, sel, rip);
		return;
	}
	struct segment cs = seg_return_cs(c, sel);
	if (sel_rpl(sel) > c->cpl) {
		ret_outer(c, cs, rip, opsz, pop_bytes);
		return;
	}
	seg_check_ip(c, &cs, rip);
	desc_accessed(c, &cs);
	stack_commit(c, &st);
	seg_commit_cs(c, cs, c->cpl, rip);
}
