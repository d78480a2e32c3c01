/* Exceptions and interrupts: raising, the double-fault rules, and delivery through the
 * real-mode vector table, legacy gates and long-mode gates. SDM vol. 3 6.9 to 6.15, 20.1.4,
 * 20.3; instruction reference INT n.
 *
 *  1. A delivery that faults has changed no register (a task switch past its commit aside), so
 *     c->rip is still the address that the next attempt pushes.
 *  2. delivering >= 0 from the first check of a delivery to its commit. INT n, INT3 and INTO
 *     leave it at -1: a fault on their way is an ordinary one of the instruction.
 *  3. EXT is put into error codes by cpu_raise_err alone.
 *  4. In guest mode an exception is offered to the hypervisor before anything of it is to be seen (CR2, DR6),
 *     each of a row by itself, and then what becomes of two. An exit, also of an access that a delivery makes,
 *     comes to the frame of the delivery, which ends (nested_finish).
 * Left out: CET, FRED. */
#define LOG_TOPIC "cpu"
#include <string.h>

#include "cpu/nested_api.h"
#include "cpu/seg.h"

enum event_kind { EVT_EXCEPTION, EVT_EXTERNAL, EVT_NMI, EVT_INT1, EVT_INT_N, EVT_INT3_INTO };
struct event {
	enum event_kind kind;
	u8 vector;
	bool has_error;
	u32 error;
	u64 flags, ip;  /* the images to push */
};

static bool soft(const struct event *e) { return e->kind >= EVT_INT_N; }

/* As struct nested has it. */
static u64 vectoring(const struct event *e)
{
	static const u8 type[] = { [EVT_EXCEPTION] = VEC_EXCEPTION, [EVT_EXTERNAL] = VEC_INTR, [EVT_NMI] = VEC_NMI,
				   [EVT_INT1] = VEC_INT1, [EVT_INT_N] = VEC_SOFT_INT, [EVT_INT3_INTO] = VEC_SOFT_EXCEPTION };
	return VEC_VALID | (u64)type[e->kind] << 8 | e->vector | (e->has_error ? VEC_HAS_ERROR | (u64)e->error << 32 : 0);
}

/* ---- raising ------------------------------------------------------------------------------ */

static _Noreturn void raise_exc(struct cpu *c, struct exception e)
{
	priv_leave(c);
	c->exc = e;
	longjmp(c->jb, 1);
}

_Noreturn void cpu_raise(struct cpu *c, unsigned vector)
{
	raise_exc(c, (struct exception){ .vector = (u8)vector });
}

_Noreturn void cpu_raise_err(struct cpu *c, unsigned vector, u32 error)
{
	if (c->delivering_ext && vector >= V_TS && vector <= V_GP)
		error |= 1;
	raise_exc(c, (struct exception){ .vector = (u8)vector, .has_error = true, .error = error });
}

_Noreturn void cpu_raise_pf(struct cpu *c, u64 cr2, u32 error)
{
	raise_exc(c, (struct exception){ .vector = V_PF, .has_error = true, .error = error, .cr2 = cr2 });
}

/* exc.vector: no exception. */
#define V_NONE 0xff
_Noreturn void cpu_restart(struct cpu *c)
{
	raise_exc(c, (struct exception){ .vector = V_NONE });
}

_Noreturn void cpu_raise_db(struct cpu *c, u64 dr6)
{
	raise_exc(c, (struct exception){ .vector = V_DB, .dr6 = dr6 });
}

_Noreturn void nested_unwind(struct cpu *c)
{
	if (!c->cur)
		c->keep_rip = true; /* between instructions: an event may have been delivered since the last one */
	raise_exc(c, (struct exception){ .vector = V_VMEXIT });
}

/* ---- delivery ------------------------------------------------------------------------------ */

static u32 idt_err(const struct event *e) { return e->vector * 8u + 2; }

/* After the frame is on its stack: flags as the handler finds them, and the new CS. */
static void enter_handler(struct cpu *c, struct segment cs, unsigned cpl, u64 rip, bool mask_if)
{
	c->rflags &= ~(u64)(FL_TF | FL_NT | FL_RF | FL_VM | (mask_if ? FL_IF : 0));
	seg_commit_cs(c, cs, cpl, rip);
}

/* Real mode, and V86 mode by way of the redirection bitmap: flags, CS and IP on the current
 * stack, CS:IP from the table at base. */
static void deliver_ivt(struct cpu *c, const struct event *e, u64 base, u64 clear)
{
	u32 v = (u32)sys_ld(c, base + e->vector * 4u, 4);
	struct stack st = stack_current(c);
	u64 frame[] = { e->flags, c->seg[S_CS].sel, e->ip };
	stack_push(c, &st, frame, 3, 2);
	stack_commit(c, &st);
	c->rflags &= ~clear;
	c->rip = v & 0xffff;
	seg_load_real(c, S_CS, (u16)(v >> 16)); /* derives everything */
}

static void deliver_real(struct cpu *c, const struct event *e)
{
	if (e->vector * 4u + 3 > c->idtr.limit)
		cpu_raise_err(c, V_GP, idt_err(e));
	deliver_ivt(c, e, c->idtr.base, FL_IF | FL_TF | FL_AC | FL_RF);
}

/* The code segment of a gate, checked; V_NP last. */
static struct segment handler_cs(struct cpu *c, u16 sel)
{
	u64 d[2];
	if (sel_null(sel))
		cpu_gp0(c);
	desc_need(c, sel, 8, d, V_GP);
	u32 a = desc_attr(d[0]);
	if (!attr_code(a) || attr_dpl(a) > c->cpl || (cpu_long(c) && (a & (SEG_L | SEG_DB)) != SEG_L))
		cpu_raise_err(c, V_GP, sel_err(sel));
	if (!(a & SEG_P))
		cpu_raise_err(c, V_NP, sel_err(sel));
	return desc_segment(sel, d[0]);
}

static u64 gate_read(struct cpu *c, const struct event *e, u64 *high)
{
	unsigned size = cpu_long(c) ? 16 : 8;
	if (e->vector * size + size - 1 > c->idtr.limit)
		cpu_raise_err(c, V_GP, idt_err(e));
	u64 lin = c->idtr.base + e->vector * size;
	u64 gate = sys_ld(c, lin, 8);
	*high = size == 16 ? sys_ld(c, lin + 8, 8) : 0;
	u32 a = desc_attr(gate);
	unsigned types = cpu_long(c) ? 3u << SYS_INT32 : 3u << SYS_INT32 | 3u << SYS_INT16 | 1u << SYS_TASK;
	if ((a & SEG_S) || !(types >> (a & SEG_TYPE) & 1))
		cpu_raise_err(c, V_GP, idt_err(e));
	if (soft(e) && attr_dpl(a) < c->cpl)
		cpu_raise_err(c, V_GP, idt_err(e));
	if (!(a & SEG_P))
		cpu_raise_err(c, V_NP, idt_err(e));
	return gate;
}

/* 16- and 32-bit gates, from protected and V86 mode. */
static void deliver_legacy(struct cpu *c, const struct event *e)
{
	u64 high, v[10];
	u64 gate = gate_read(c, e, &high);
	unsigned type = desc_attr(gate) & SEG_TYPE, n = 0;
	if (type == SYS_TASK) {
		task_switch_flags(c, gate_sel(gate), TASK_GATE, e->has_error, e->error, (u32)e->flags);
		return;
	}
	struct segment cs = handler_cs(c, gate_sel(gate));
	bool v86 = cpu_v86(c), inner = !attr_conforming(cs.attr) && attr_dpl(cs.attr) < c->cpl;
	unsigned size = type & 8 ? 4 : 2, cpl = inner ? attr_dpl(cs.attr) : c->cpl;
	if (v86 && (!inner || cpl))
		cpu_raise_err(c, V_GP, sel_err(cs.sel));
	struct stack st = inner ? stack_tss(c, cpl) : stack_current(c);
	if (v86) {
		v[n++] = c->seg[S_GS].sel;
		v[n++] = c->seg[S_FS].sel;
		v[n++] = c->seg[S_DS].sel;
		v[n++] = c->seg[S_ES].sel;
	}
	if (inner) {
		v[n++] = c->seg[S_SS].sel;
		v[n++] = c->regs[R_SP];
	}
	v[n++] = e->flags;
	v[n++] = c->seg[S_CS].sel;
	v[n++] = e->ip;
	if (e->has_error)
		v[n++] = e->error;
	stack_room(c, &st, n, size);
	seg_check_ip(c, &cs, gate_off(gate));
	desc_accessed(c, &cs);
	if (inner)
		desc_accessed(c, &st.ss);
	stack_push(c, &st, v, n, size);

	c->seg[S_SS] = st.ss;
	stack_commit(c, &st);
	if (v86)
		c->seg[S_ES] = c->seg[S_DS] = c->seg[S_FS] = c->seg[S_GS] = seg_null(0, 0);
	enter_handler(c, cs, cpl, gate_off(gate), !(type & 1));
}

/* 64-bit gates: always SS:RSP, an aligned frame, perhaps one of the seven interrupt stacks. */
static void deliver_long(struct cpu *c, const struct event *e)
{
	u64 high, v[6];
	u64 gate = gate_read(c, e, &high);
	unsigned ist = (gate >> 32) & 7, n = 0;
	u64 rip = gate_off(gate) | high << 32;
	struct segment cs = handler_cs(c, gate_sel(gate));
	bool inner = !attr_conforming(cs.attr) && attr_dpl(cs.attr) < c->cpl;
	unsigned cpl = inner ? attr_dpl(cs.attr) : c->cpl;
	struct stack st;
	if (ist || inner) {
		st = stack_tss64(c, ist ? 28 + 8 * ist : 4 + 8 * cpl, cpl);
	} else {
		st = stack_current(c);
		st.flat = true;
		st.mask = ~0ull;
	}
	if (!inner)
		st.ss = c->seg[S_SS];
	st.sp &= ~15ull;
	v[n++] = c->seg[S_SS].sel;
	v[n++] = cpu_code64(c) ? c->regs[R_SP] : (u32)c->regs[R_SP];
	v[n++] = e->flags;
	v[n++] = c->seg[S_CS].sel;
	v[n++] = e->ip;
	if (e->has_error)
		v[n++] = e->error;
	stack_room(c, &st, n, 8);
	seg_check_ip(c, &cs, rip);
	desc_accessed(c, &cs);
	stack_push(c, &st, v, n, 8);

	c->seg[S_SS] = st.ss;
	stack_commit(c, &st);
	enter_handler(c, cs, cpl, rip, !(desc_attr(gate) & 1));
}

static void deliver(struct cpu *c, const struct event *e)
{
	if (cpu_real(c))
		deliver_real(c, e);
	else if (cpu_long(c))
		deliver_long(c, e);
	else
		deliver_legacy(c, e);
}

/* ---- double and triple faults ----------------------------------------------------------------- */

enum fault_class { BENIGN, CONTRIBUTORY, PAGE_FAULT };

static enum fault_class fault_class(int vector)
{
	switch (vector) {
	case V_DE: case V_TS: case V_NP: case V_SS: case V_GP: case V_CP: return CONTRIBUTORY;
	case V_PF: case V_VE: return PAGE_FAULT;
	default: return BENIGN;
	}
}

/* Faults push RF set, so that the instruction's own breakpoint does not hit again; a fault-class
 * #DB only for general detect. Traps and aborts push it as it is. SDM vol. 3 17.3.1.1. */
static bool pushes_rf(const struct exception *x)
{
	switch (x->vector) {
	case V_DB: return x->dr6 & DR6_BD;
	case V_NMI: case V_BP: case V_OF: case V_DF: case V_MC: return false;
	default: return true;
	}
}

void cpu_shut_down(struct cpu *c)
{
	log_debug("cpu %u: triple fault at %04x:%llx", c->index, c->seg[S_CS].sel, (unsigned long long)c->rip);
	c->delivering = -1;
	c->delivering_ext = false;
	c->activity = ACT_SHUTDOWN;
	c->stopped = true;
	if (c->hooks && c->hooks->triple_fault)
		c->hooks->triple_fault(c->hooks->arg);
}

/* Makes c->exc, raised while c->delivering was on its way, the event to deliver now. False: shutdown. */
static bool next_exception(struct cpu *c, struct event *e)
{
	struct exception *x = &c->exc;
	int first = c->delivering;
	enum fault_class now = fault_class(x->vector), before = first >= 0 && first < 256 ? fault_class(first) : BENIGN;
	if (nested_wants(c, ICPT_EXCEPTION))
		nested_exception(c, x);
	if (x->vector == V_PF)
		c->cr2 = x->cr2;
	if (first == V_DF && now != BENIGN)
		return false;
	if ((before == CONTRIBUTORY && now == CONTRIBUTORY) || (before == PAGE_FAULT && now != BENIGN)) {
		*x = (struct exception){ .vector = V_DF, .has_error = true };
		if (nested_wants(c, ICPT_EXCEPTION))
			nested_exception(c, x);
	}
	if (x->vector == V_DB) {
		c->dr[6] = (c->dr[6] & ~15ull) | x->dr6;
		c->dr[7] &= ~(u64)DR7_GD;
		c->msr.debugctl &= ~3ull; /* LBR, BTF */
	}
	*e = (struct event){ .vector = x->vector, .has_error = x->has_error, .error = x->error,
			     .flags = c->rflags | (pushes_rf(x) ? FL_RF : 0), .ip = c->rip };
	c->delivering = x->vector;
	return true;
}

static void delivered(struct cpu *c)
{
	c->delivering = -1;
	c->delivering_ext = false;
	c->nested.vectoring = 0;
	c->keep_rip = false;
	c->activity = ACT_RUN;
	c->shadow = 0;
	cpu_update_events(c);
}

/* Exceptions in a row, each raised by the delivery of the one before. The rules above end a row
 * of contributory ones, but not of benign ones: #AC by a push on a CPL-3 handler's misaligned
 * stack raises #AC (or what a bad gate of #AC raises), and so on. No instruction boundary comes
 * between, so that nothing but a reset could end it, on silicon as here: a shutdown. */
#define EXCEPTIONS_MAX 16

/* Delivers c->exc, or *first when given, and what goes wrong on the way. */
static void deliver_framed(struct cpu *c, const struct event *first)
{
	jmp_buf outer;
	struct event e;
	volatile unsigned count = 0;
	memcpy(&outer, &c->jb, sizeof(outer));
	/* Comes back here for each fault of a delivery, and for an exit. */
	volatile bool left = false;
	bool alive = true;
	if (setjmp(c->jb) || !first) {
		left = c->exc.vector == V_VMEXIT;
		alive = !left && ++count <= EXCEPTIONS_MAX && next_exception(c, &e);
	} else {
		e = *first;
	}
	if (alive) {
		c->delivering_ext = true;
		c->nested.vectoring = vectoring(&e);
		deliver(c, &e);
		if (unlikely(c->msr.debugctl & 1))
			cpu_record_branch(c, e.ip, c->rip, true);
		delivered(c);
	} else if (!left) {
		nested_check(c, ICPT_SHUTDOWN, 0);
		cpu_shut_down(c);
	}
	memcpy(&c->jb, &outer, sizeof(outer));
	if (left) {
		c->delivering = -1;
		c->delivering_ext = false;
		c->keep_rip = false;
		nested_finish(c);
	}
}

void cpu_exception(struct cpu *c)
{
	c->exc.held_debug = (c->shadow | c->shadow_before) & SHADOW_SS ? c->dr6_pending : 0;
	c->dr6_pending = 0; /* of an instruction that did not complete */
	c->step_skip = false;
	if (unlikely(c->exc.vector == V_VMEXIT))
		nested_finish(c);
	else if (c->exc.vector != V_NONE)
		deliver_framed(c, NULL);
}

void exception_external(struct cpu *c, unsigned vector, bool nmi)
{
	struct event e = { .kind = nmi ? EVT_NMI : EVT_EXTERNAL, .vector = (u8)vector, .flags = c->rflags, .ip = c->rip };
	c->delivering = 256 + (int)vector;
	deliver_framed(c, &e);
}

void exception_inject(struct cpu *c, u64 vec, u64 ip)
{
	static const u8 kind[8] = { [VEC_INTR] = EVT_EXTERNAL, [VEC_NMI] = EVT_NMI, [VEC_EXCEPTION] = EVT_EXCEPTION,
				    [VEC_SOFT_INT] = EVT_INT_N, [VEC_INT1] = EVT_INT1, [VEC_SOFT_EXCEPTION] = EVT_INT3_INTO };
	struct event e = { .kind = kind[vec >> 8 & 7], .vector = (u8)vec, .flags = c->rflags, .ip = ip };
	if (e.kind == EVT_EXCEPTION && vec & VEC_HAS_ERROR) {
		e.has_error = true;
		e.error = (u32)(vec >> 32);
	}
	if (e.kind == EVT_EXCEPTION)
		c->delivering = e.vector;
	else
		c->delivering = soft(&e) ? -1 : 256 + e.vector;
	deliver_framed(c, &e);
}

/* ---- INT n, INT3, INTO, INT1 -------------------------------------------------------------------- */

/* The software interrupt redirection bitmap: 32 bytes below the I/O bitmap of the TSS. A bit
 * that is clear sends INT n to the program's own table. SDM vol. 3 20.3.3. */
static bool redirected(struct cpu *c, unsigned vector)
{
	const struct segment *tr = &c->seg[S_TR];
	if (!(tr->attr & 8) || tr->limit < 0x67)
		cpu_gp0(c);
	u32 at = (u32)sys_ld(c, tr->base + 0x66, 2) - 32 + vector / 8;
	if (at > tr->limit)
		cpu_gp0(c);
	return !(sys_ld(c, tr->base + at, 1) >> (vector & 7) & 1);
}

/* INT n in V86 mode. True: done here. SDM vol. 3 table 20-2. */
static bool v86_int(struct cpu *c, struct event *e)
{
	bool iopl3 = cpu_iopl(c) == 3;
	if ((c->cr4 & CR4_VME) && redirected(c, e->vector)) {
		if (!iopl3) {
			e->flags = (e->flags & ~(u64)FL_IF) | FL_IOPL;
			if (c->rflags & FL_VIF)
				e->flags |= FL_IF;
		}
		deliver_ivt(c, e, 0, FL_TF | FL_RF | (iopl3 ? FL_IF : FL_VIF));
		return true;
	}
	if (!iopl3)
		cpu_gp0(c);
	return false;
}

void cpu_soft_int(struct cpu *c, unsigned vector, bool int3_or_into, bool int1)
{
	bool stepping = c->rflags & FL_TF;
	struct event e = { .kind = int1 ? EVT_INT1 : int3_or_into ? EVT_INT3_INTO : EVT_INT_N,
			   .vector = (u8)vector, .flags = c->rflags & ~(u64)FL_RF, .ip = c->rip };
	if (int1) { /* a hardware exception in all but its place */
		c->delivering = 256 + (int)vector;
		c->delivering_ext = true;
		c->dr[7] &= ~(u64)DR7_GD;
	}
	if (e.kind != EVT_INT_N && nested_wants(c, ICPT_EXCEPTION))
		nested_exception(c, &(struct exception){ .vector = (u8)vector, .soft = true });
	c->nested.vectoring = vectoring(&e);
	if (e.kind != EVT_INT_N || !cpu_v86(c) || !v86_int(c, &e))
		deliver(c, &e);
	if (int1 && c->dr6_pending) { /* what MOV SS left is part of the same exception */
		c->dr[6] = (c->dr[6] & ~15ull) | c->dr6_pending;
		c->dr6_pending = 0;
		cpu_clear_event(c, EV_TRAP);
	}
	delivered(c); /* what MOV SS left in dr6_pending is taken before the handler's first instruction */
	c->step_skip = stepping;
}
