/* Hardware task switches, 16- and 32-bit. SDM vol. 3 ch. 7, table 7-1.
 *
 *  1. Up to the commit a fault belongs to the old task and has changed nothing; the stores into
 *     the old TSS are probed before the first one.
 *  2. After it a fault belongs to the new task: rip is already its own, so keep_rip is set.
 *     Segment registers that were not reached hold their selectors but are unusable.
 * Privilege of the gate or TSS descriptor is the caller's check. */
#include "cpu/nested_api.h"
#include "cpu/seg.h"

/* Offsets in a TSS, 16- and 32-bit, by [32-bit]. */
static const struct {
	u8 min_limit, ip, flags, regs, reg_size, segs, seg_step, n_segs, ldt;
} layout[2] = {
	{ 0x2b, 0x0e, 0x10, 0x12, 2, 0x22, 2, 4, 0x2a },
	{ 0x67, 0x20, 0x24, 0x28, 4, 0x48, 4, 6, 0x60 },
};
enum { TSS32_CR3 = 0x1c, TSS32_TRAP = 0x64 };

struct task { u32 cr3, ip, flags, regs[8]; u16 segs[6], ldt; bool trap; };

static struct task task_read(struct cpu *c, u64 base, bool t32)
{
	struct task t = { 0 };
	unsigned size = layout[t32].reg_size;
	u32 high = t32 ? 0 : 0xffff0000; /* what a 16-bit TSS leaves in the upper halves */
	t.ip = (u32)sys_ld(c, base + layout[t32].ip, size);
	t.flags = (u32)sys_ld(c, base + layout[t32].flags, size);
	for (unsigned i = 0; i < 8; i++)
		t.regs[i] = (u32)sys_ld(c, base + layout[t32].regs + i * size, size) | high;
	for (unsigned i = 0; i < layout[t32].n_segs; i++)
		t.segs[i] = (u16)sys_ld(c, base + layout[t32].segs + i * layout[t32].seg_step, 2);
	t.ldt = (u16)sys_ld(c, base + layout[t32].ldt, 2);
	if (t32) {
		t.cr3 = (u32)sys_ld(c, base + TSS32_CR3, 4);
		t.trap = sys_ld(c, base + TSS32_TRAP, 2) & 1;
	}
	return t;
}

/* Raises what a write there would raise. */
static void probe_write(struct cpu *c, u64 lin, unsigned size)
{
	sys_st(c, lin, sys_ld(c, lin, size), size);
}

static void task_save(struct cpu *c, u64 base, bool t32, u32 flags)
{
	unsigned size = layout[t32].reg_size;
	sys_st(c, base + layout[t32].ip, c->rip, size);
	sys_st(c, base + layout[t32].flags, flags, size);
	for (unsigned i = 0; i < 8; i++)
		sys_st(c, base + layout[t32].regs + i * size, c->regs[i], size);
	for (unsigned i = 0; i < layout[t32].n_segs; i++)
		sys_st(c, base + layout[t32].segs + i * layout[t32].seg_step, c->seg[i].sel, 2);
}

/* ---- in the new task: its segments. Each takes effect before the next can fault. */

static struct segment task_descriptor(struct cpu *c, u16 sel)
{
	u64 d[2];
	desc_need(c, sel, 8, d, V_TS);
	return desc_segment(sel, d[0]);
}

static void load_ldt(struct cpu *c, u16 sel)
{
	if (sel_null(sel))
		return;
	if (sel & 4)
		cpu_raise_err(c, V_TS, sel_err(sel));
	struct segment g = task_descriptor(c, sel);
	if ((g.attr & (SEG_S | SEG_TYPE)) != SYS_LDT || !(g.attr & SEG_P))
		cpu_raise_err(c, V_TS, sel_err(sel));
	c->seg[S_LDTR] = g;
}

static void load_code(struct cpu *c, u16 sel)
{
	if (sel_null(sel))
		cpu_raise_err(c, V_TS, 0);
	struct segment g = task_descriptor(c, sel);
	unsigned dpl = attr_dpl(g.attr);
	if (!attr_code(g.attr) || (attr_conforming(g.attr) ? dpl > sel_rpl(sel) : dpl != sel_rpl(sel)))
		cpu_raise_err(c, V_TS, sel_err(sel));
	if (!(g.attr & SEG_P))
		cpu_raise_err(c, V_NP, sel_err(sel));
	desc_accessed(c, &g);
	c->seg[S_CS] = g;
	cpu_update_mode(c);
}

static void load_stack(struct cpu *c, u16 sel)
{
	if (sel_null(sel))
		cpu_raise_err(c, V_TS, 0);
	struct segment g = task_descriptor(c, sel);
	if (sel_rpl(sel) != c->cpl || attr_dpl(g.attr) != c->cpl || !attr_writable(g.attr))
		cpu_raise_err(c, V_TS, sel_err(sel));
	if (!(g.attr & SEG_P))
		cpu_raise_err(c, V_SS, sel_err(sel));
	desc_accessed(c, &g);
	c->seg[S_SS] = g;
	cpu_update_segs(c);
}

static void load_data(struct cpu *c, unsigned s, u16 sel)
{
	if (sel_null(sel))
		return;
	struct segment g = task_descriptor(c, sel);
	unsigned dpl = attr_dpl(g.attr);
	if (!attr_readable(g.attr) || (!attr_conforming(g.attr) && (dpl < c->cpl || dpl < sel_rpl(sel))))
		cpu_raise_err(c, V_TS, sel_err(sel));
	if (!(g.attr & SEG_P))
		cpu_raise_err(c, V_NP, sel_err(sel));
	desc_accessed(c, &g);
	c->seg[s] = g;
	cpu_update_segs(c);
}

static void load_segments(struct cpu *c, const struct task *t)
{
	static const u8 data[] = { S_ES, S_DS, S_FS, S_GS };
	load_ldt(c, t->ldt);
	if (cpu_v86(c))
		return; /* done by the commit */
	load_code(c, t->segs[S_CS]);
	load_stack(c, t->segs[S_SS]);
	for (unsigned i = 0; i < ARRAY_LEN(data); i++)
		load_data(c, data[i], t->segs[data[i]]);
}

/* ---- the switch */

/* The new TSS's descriptor: step 1 to 4 of the table. */
static struct segment new_tss(struct cpu *c, u16 sel, enum task_why why)
{
	u64 d[2];
	unsigned bad = why == TASK_IRET ? V_TS : V_GP;
	if (sel & 4)
		cpu_raise_err(c, bad, sel_err(sel));
	desc_need(c, sel, 8, d, bad);
	struct segment g = desc_segment(sel, d[0]);
	unsigned type = g.attr & (SEG_S | SEG_TYPE), want = why == TASK_IRET ? SYS_BUSY : 0;
	if (type != (SYS_TSS16 | want) && type != (SYS_TSS32 | want))
		cpu_raise_err(c, bad, sel_err(sel));
	if (!(g.attr & SEG_P))
		cpu_raise_err(c, V_NP, sel_err(sel));
	if (g.limit < layout[(g.attr & 8) != 0].min_limit)
		cpu_raise_err(c, V_TS, sel_err(sel));
	return g;
}

/* Registers of the new task; segments by selector only. */
static void commit(struct cpu *c, const struct task *t, struct segment tr)
{
	c->seg[S_TR] = tr;
	c->cr0 |= CR0_TS;
	c->dr[7] &= ~0x155ull; /* L0 to L3, LE */
	c->keep_rip = true;
	c->rip = t->ip;
	c->rflags = (t->flags & (FL_STATUS | FL_TF | FL_IF | FL_DF | FL_IOPL | FL_NT | FL_RF | FL_VM | FL_AC |
				 FL_VIF | FL_VIP | FL_ID)) | FL_1;
	for (unsigned i = 0; i < 8; i++)
		c->regs[i] = t->regs[i];
	c->cpl = cpu_v86(c) ? 3 : sel_rpl(t->segs[S_CS]);
	for (unsigned s = S_ES; s <= S_GS; s++)
		c->seg[s] = cpu_v86(c) ? seg_v86(t->segs[s]) : seg_null(t->segs[s], c->cpl);
	c->seg[S_LDTR] = seg_null(t->ldt, 0);
	cpu_update_mode(c);
}

static void load_cr3(struct cpu *c, u32 cr3)
{
	if ((c->cr4 & CR4_PAE) && !mmu_load_pdptes(c, cr3))
		cpu_gp0(c);
	mmu_set_cr3(c, cr3, false);
}

void task_switch_flags(struct cpu *c, u16 sel, enum task_why why, bool push_error, u32 error, u32 flags)
{
	struct segment tr = new_tss(c, sel, why), old = c->seg[S_TR];
	nested_check(c, ICPT_TASK_SWITCH, sel | (u64)why << 16 | (u64)push_error << 24 | (flags & FL_RF ? ICPT_TASK_RF : 0) | (u64)error << 32);
	bool t32 = tr.attr & 8, old32 = old.attr & 8, stepping = flags & FL_TF;
	bool nested = why == TASK_CALL || why == TASK_GATE;
	unsigned size = layout[old32].reg_size;
	if (old.limit < layout[old32].min_limit)
		cpu_raise_err(c, V_TS, sel_err(old.sel));
	struct task t = task_read(c, tr.base, t32);
	probe_write(c, old.base + layout[old32].ip, size);
	probe_write(c, old.base + layout[old32].segs + (layout[old32].n_segs - 1u) * layout[old32].seg_step, 2);
	if (nested)
		probe_write(c, tr.base, 2);

	desc_busy(c, old.sel, true); /* which it is: probes the table */
	if (why != TASK_IRET)
		desc_busy(c, sel, true);
	if (!nested)
		desc_busy(c, old.sel, false);
	task_save(c, old.base, old32, why == TASK_IRET ? flags & ~(u32)FL_NT : flags);
	if (nested) {
		sys_st(c, tr.base, old.sel, 2);
		t.flags |= FL_NT;
	}
	tr.attr |= SYS_BUSY;
	commit(c, &t, tr);

	if (t32 && (c->cr0 & CR0_PG))
		load_cr3(c, t.cr3);
	load_segments(c, &t);
	if (push_error) {
		struct stack st = stack_current(c);
		u64 v = error;
		stack_push(c, &st, &v, 1, t32 ? 4 : 2);
		stack_commit(c, &st);
	}
	seg_check_ip(c, &c->seg[S_CS], c->rip);
	c->keep_rip = false;
	c->step_skip = stepping;
	if (t.trap) {
		c->dr6_pending |= DR6_BT;
		cpu_post_event(c, EV_TRAP);
	}
}

void task_switch(struct cpu *c, u16 sel, enum task_why why, bool push_error, u32 error)
{
	task_switch_flags(c, sel, why, push_error, error, (u32)c->rflags);
}
