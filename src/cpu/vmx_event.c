/* VMX non-root operation between two instructions: what an entry injects, exits that come after an
 * instruction, windows, NMIs and interrupts, the preemption timer, the monitor trap flag. Intel SDM vol. 3
 * 25.2, 25.5, 26.6, 26.7.
 *
 *  1. EV_NESTED is posted for whatever vmx_service() is to look at, and stays while one of it must be looked at
 *     before each instruction (monitor trap flag, an NMI window in a shadow).
 *  2. Interrupt windows and virtual interrupts are EV_VINTR, which IF and shadows gate.
 *  3. The preemption timer is a deadline on the TSC; the machine's timer only wakes (hooks->set_wakeup). */
#include "cpu/seg.h"
#include "cpu/vmx.h"

/* ---- the preemption timer ----------------------------------------------------------------------- */

void vmx_timer_start(struct cpu *c)
{
	u64 now = cpu_tsc(c);
	if (!vmx_pin(c, PIN_PREEMPTION))
		return;
	c->vmx->timer_end = ((now >> VMX_TIMER_SHIFT) + VF(PREEMPTION_TIMER)) << VMX_TIMER_SHIFT;
	if (c->hooks && c->hooks->set_wakeup)
		c->hooks->set_wakeup(c->hooks->arg, c->vmx->timer_end);
}

u32 vmx_timer_left(struct cpu *c)
{
	u64 now = cpu_tsc(c), end = c->vmx->timer_end;
	return now >= end ? 0 : (u32)((end - now) >> VMX_TIMER_SHIFT);
}

/* ---- injection ------------------------------------------------------------------------------------- */

static bool soft_type(unsigned type) { return type == INTR_SOFT_INT || type == INTR_PRIV_SOFT || type == INTR_SOFT_EXC; }

/* Delivers what the entry injects. A software event's handler returns to behind its instruction, but
 * an exit on the way is at the instruction. */
static void inject(struct cpu *c)
{
	struct vmx *v = c->vmx;
	u64 vec = v->inject;
	unsigned type = vec >> 8 & 7;
	v->inject = 0;
	if (type == INTR_OTHER) { /* the monitor trap flag */
		v->trap = (struct vmx_exit){ .reason = EXIT_MTF };
		v->trapped = true;
		return;
	}
	if (type == INTR_NMI) {
		if (vmx_pin(c, PIN_VIRTUAL_NMI))
			v->virtual_nmi_blocked = true;
		else
			c->nmi_blocked = true;
	}
	v->soft_len = soft_type(type) ? v->inject_len : 0;
	u64 ip = c->rip + v->soft_len;
	exception_inject(c, vec, cpu_code64(c) ? ip : (u32)ip);
	v->soft_len = 0;
}

/* ---- between two instructions ------------------------------------------------------------------------ */

static bool nmi_window_open(const struct cpu *c)
{
	return vmx_proc(c, PROC_NMI_WINDOW) && !c->vmx->virtual_nmi_blocked && !c->shadow;
}

static bool step_due(struct cpu *c)
{
	struct vmx *v = c->vmx;
	if (!vmx_proc(c, PROC_MTF))
		return false;
	if (v->step_armed)
		return true;
	v->step_armed = true; /* after the instruction that comes now */
	return false;
}

static void between(struct cpu *c, unsigned reason)
{
	vmx_exit_between(c, (struct vmx_exit){ .reason = reason });
}

void vmx_service(struct cpu *c)
{
	struct vmx *v = c->vmx;
	cpu_clear_event(c, EV_NESTED);
	if (c->nested.mode != NEST_VMX)
		return;
	bool injected = v->inject != 0;
	if (injected) {
		inject(c);
		if (c->nested.mode != NEST_VMX || c->stopped)
			return;
	}
	if (v->trapped) {
		v->trapped = false;
		vmx_exit_between(c, v->trap);
		return;
	}
	if (c->activity == ACT_WAIT_SIPI)
		return; /* nothing of what follows ends that */
	if (injected ? vmx_proc(c, PROC_MTF) : step_due(c)) {
		between(c, EXIT_MTF);
		return;
	}
	if (!c->dr6_pending && vmx_pin(c, PIN_PREEMPTION) && cpu_tsc(c) >= v->timer_end) {
		between(c, EXIT_TIMER);
		return;
	}
	if (!c->dr6_pending && nmi_window_open(c)) {
		between(c, EXIT_NMI_WINDOW);
		return;
	}
	bool again = vmx_proc(c, PROC_MTF) || (vmx_proc(c, PROC_NMI_WINDOW) && !v->virtual_nmi_blocked) || c->dr6_pending;
	if (again)
		cpu_post_event(c, EV_NESTED);
}

/* ---- NMI, INTR, INIT, SIPI ------------------------------------------------------------------------------ */

void vmx_nmi(struct cpu *c)
{
	atomic_fetch_and(&c->events, ~(u32)EV_NMI); /* before the count, or one would be lost */
	u32 n = atomic_exchange(&c->nmis, 0);
	if (!n)
		return;
	if (n > 1)
		cpu_post_event(c, EV_NMI);
	vmx_leave_with(c, (struct vmx_exit){ .reason = EXIT_EXCEPTION, .intr_info = INTR_VALID | INTR_NMI << 8 | V_NMI });
}

static bool intr_window_open(const struct cpu *c)
{
	return vmx_proc(c, PROC_INTR_WINDOW) && (c->rflags & FL_IF) && !c->shadow;
}

void vmx_intr(struct cpu *c)
{
	if (intr_window_open(c))
		vmx_leave(c, EXIT_INTR_WINDOW, 0);
	struct vmx_exit x = { .reason = EXIT_INTERRUPT };
	if (VF(EXIT_CONTROLS) & EXIT_ACK_INTR) {
		int vector = c->hooks->int_ack(c->hooks->arg);
		if (vector < 0)
			return;
		if (vmx_pin(c, PIN_POSTED) && (unsigned)vector == VF(POSTED_VECTOR)) {
			vmx_posted(c);
			return;
		}
		x.intr_info = INTR_VALID | INTR_EXTERNAL << 8 | (u32)vector;
	}
	vmx_leave_with(c, x);
}

int vmx_vintr(struct cpu *c)
{
	if (intr_window_open(c))
		vmx_leave(c, EXIT_INTR_WINDOW, 0);
	return vmx_virtual_interrupt(c);
}
