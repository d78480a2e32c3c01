/* Debug exceptions: single step, breakpoints, the task-switch trap. SDM vol. 3 ch. 17.2, 17.3.
 *
 *  1. Conditions met during an instruction gather in dr6_pending and become one trap after it;
 *     an instruction that faults loses them (it will meet them again).
 *  2. After MOV SS and POP SS nothing is taken until the next instruction is over, or its
 *     handler entered.
 *  3. RF is cleared when an instruction begins, so that IRET, POPF and task switches that set
 *     it set it for the next.
 * LE and GE of DR7 mean nothing: breakpoints are always exact. Left out: single step on
 * branches (DEBUGCTL.BTF), RTM, bus-lock traps. Of last-branch records there is one, as AMD's
 * processors have it (APM vol. 2 13.1.1.5). */
#include "cpu/seg.h"

static unsigned bp_type(const struct cpu *c, unsigned k) { return (c->dr[7] >> (16 + 4 * k)) & 3; }
static unsigned bp_len(const struct cpu *c, unsigned k)
{
	static const u8 len[4] = { 1, 2, 8, 4 };
	return len[(c->dr[7] >> (18 + 4 * k)) & 3];
}

/* L or G of the breakpoints in hits, a mask of B0 to B3. */
static bool any_enabled(const struct cpu *c, unsigned hits)
{
	for (unsigned k = 0; k < 4; k++) {
		if ((hits >> k & 1) && (c->dr[7] >> (2 * k) & 3))
			return true;
	}
	return false;
}

void cpu_record_branch(struct cpu *c, u64 from, u64 to, bool exception)
{
	if (exception) {
		c->lbr[2] = c->lbr[0];
		c->lbr[3] = c->lbr[1];
	}
	c->lbr[0] = from;
	c->lbr[1] = to;
}

void debug_trap(struct cpu *c, u64 hits)
{
	cpu_clear_event(c, EV_TRAP);
	c->exc = (struct exception){ .vector = V_DB, .dr6 = hits };
	cpu_exception(c);
}

void cpu_after_insn(struct cpu *c, bool tf)
{
	if (c->shadow & SHADOW_SS)
		return;
	u64 hits = c->dr6_pending | (tf && !c->step_skip ? DR6_BS : 0);
	c->step_skip = false;
	if (hits && c->nested.step) { /* a hypervisor comes before the trap */
		c->dr6_pending = hits;
		cpu_post_event(c, EV_TRAP);
	} else if (hits) {
		debug_trap(c, hits);
	}
}

/* Breakpoints are linear addresses of an instruction's first byte, prefixes included. B bits
 * are set for disabled ones that match too, once an enabled one does. */
void cpu_code_breakpoint(struct cpu *c)
{
	if (c->rflags & FL_RF) {
		c->rflags &= ~(u64)FL_RF;
		cpu_update_events(c);
		return;
	}
	/* After MOV SS: Intel's are put off, and so never hit; AMD's hit. */
	if (!(c->dr[7] & 0xff) || ((c->shadow & SHADOW_SS) && c->model->vendor[0] != 'A'))
		return;
	u64 lin = cpu_code64(c) ? c->rip : (u32)(c->seg[S_CS].base + c->rip);
	unsigned hits = 0;
	for (unsigned k = 0; k < 4; k++) {
		if (bp_type(c, k) == 0 && c->dr[k] == lin) /* a length other than 0 is undefined */
			hits |= 1u << k;
	}
	if (any_enabled(c, hits)) {
		c->keep_rip = true; /* no instruction has begun */
		cpu_raise_db(c, hits);
	}
}

/* lin: a linear address, or the port if io. The range of a breakpoint is aligned to its length. */
void cpu_data_breakpoint(struct cpu *c, u64 lin, unsigned size, bool write, bool io)
{
	unsigned hits = 0;
	for (unsigned k = 0; k < 4; k++) {
		unsigned type = bp_type(c, k), len = bp_len(c, k);
		u64 first = c->dr[k] & ~(u64)(len - 1);
		if (io ? type != 2 || !(c->cr4 & CR4_DE) : type != 3 && !(type == 1 && write))
			continue;
		if (lin + size - 1 >= first && lin <= first + len - 1)
			hits |= 1u << k;
	}
	if (any_enabled(c, hits)) {
		c->dr6_pending |= hits;
		cpu_post_event(c, EV_TRAP);
	}
}
