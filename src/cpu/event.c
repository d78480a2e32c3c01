/* What happens between instructions, by the priority of SDM vol. 3 table 6-2: reset and INIT,
 * traps of the instruction before, SMI, NMI, external interrupts; and waking from HLT, MWAIT
 * and wait-for-SIPI. Runs on the vCPU's thread; c->events is set from any.
 *
 * In guest mode a hypervisor is asked first: an event that it intercepts leaves the guest and stays
 * pending. While the global interrupt flag is 0 (AMD-V) all but RESET is held.
 *
 * The shadow of STI holds off NMI, too, as processors may: STI; HLT does not sleep through one.
 * SMI is logged and ignored: there is no SMM. INTR is a level that the interrupt controllers
 * keep, the others are edges that are taken here. */
#define LOG_TOPIC "cpu"
#include "cpu/nested_api.h"
#include "cpu/seg.h"
#include "cpu/svm.h"

static void start_at(struct cpu *c, u8 page)
{
	c->seg[S_CS].sel = (u16)(page << 8);
	c->seg[S_CS].base = (u64)page << 12;
	c->rip = 0;
	c->activity = ACT_RUN;
	cpu_update_mode(c);
}

/* Reset-like and housekeeping events; these come even while a processor waits for SIPI. */
static void service_control(struct cpu *c, u32 ev)
{
	if (ev & EV_TLB) {
		cpu_clear_event(c, EV_TLB);
		mmu_spaces_flush(c);
	}
	ev &= c->event_mask;
	if (ev & EV_INIT) {
		nested_check(c, ICPT_INIT, 0);
		cpu_clear_event(c, EV_INIT);
		if (svm_redirects_init(c)) {
			c->exc = (struct exception){ .vector = V_SX, .has_error = true, .error = 1 };
			cpu_exception(c);
		} else {
			if (c->hooks && c->hooks->init)
				c->hooks->init(c->hooks->arg);
			cpu_reset(c, true);
			c->stopped = false;
		}
	}
	if (ev & EV_SIPI) {
		cpu_clear_event(c, EV_SIPI);
		nested_check(c, ICPT_SIPI, c->sipi_vector);
		if (c->activity == ACT_WAIT_SIPI)
			start_at(c, c->sipi_vector);
	}
	if (ev & EV_SMI) {
		nested_check(c, ICPT_SMI, 0);
		cpu_clear_event(c, EV_SMI);
		log_guest("cpu %u: SMI ignored, there is no SMM", c->index);
	}
}

/* NMI, else INTR, else a virtual interrupt. ev: those that may be taken. True: one was delivered. */
static bool service_interrupts(struct cpu *c, u32 ev)
{
	if (ev & EV_NMI) {
		if (atomic_load(&c->nmis))
			nested_check(c, ICPT_NMI, 0);
		atomic_fetch_and(&c->events, ~(u32)EV_NMI); /* before the count, or one would be lost */
		u32 n = atomic_exchange(&c->nmis, 0);
		if (!n)
			return false; /* the poster's second step, after it was taken */
		if (n > 1)
			cpu_post_event(c, EV_NMI);
		c->nmi_blocked = true;
		exception_external(c, V_NMI, true);
		return true;
	}
	int vector = -1;
	if (ev & EV_INTR) {
		if (nested_wants(c, ICPT_INTR))
			nested_intercept(c, ICPT_INTR, 0); /* returns where it was withdrawn, or but a notification */
		else
			vector = c->hooks->int_ack(c->hooks->arg);
	}
	if (vector < 0 && (ev & EV_VINTR))
		vector = nested_vintr(c);
	if (vector < 0)
		return false;
	exception_external(c, (unsigned)vector, false);
	return true;
}

/* Of those that came while they were blocked one is taken. */
void cpu_unblock_nmi(struct cpu *c)
{
	if (atomic_load(&c->nmis) > 1)
		atomic_store(&c->nmis, 1);
	c->nmi_blocked = false;
	cpu_update_events(c);
}

/* What guest mode wants at a boundary, also at that which a delivery has come to. */
static void service_nested(struct cpu *c)
{
	if (atomic_load_explicit(&c->events, memory_order_relaxed) & EV_NESTED)
		nested_service(c);
}

bool cpu_service_events(struct cpu *c)
{
	u32 ev = atomic_load_explicit(&c->events, memory_order_acquire);
	cpu_update_events(c); /* event_mask may have too many */
	service_nested(c);
	ev = atomic_load_explicit(&c->events, memory_order_acquire);
	service_control(c, ev);
	if ((ev & EV_EXIT) || c->stopped)
		return false;
	if (c->activity == ACT_WAIT_SIPI)
		return false;
	if (c->activity == ACT_SHUTDOWN)
		ev &= EV_NMI; /* a guest of VT-x can be there and go on: SDM 26.7.2 */
	if ((ev & EV_TRAP) && !(c->shadow & SHADOW_SS)) {
		if (c->dr6_pending) {
			debug_trap(c, c->dr6_pending);
			service_nested(c);
		} else
			cpu_clear_event(c, EV_TRAP);
	}
	if (service_interrupts(c, ev & c->event_mask))
		service_nested(c);
	/* MWAIT may end for any reason: a masked interrupt is one, a store to the line another. */
	if (c->activity == ACT_MWAIT && (!c->monitor_armed || (ev & (EV_INTR | EV_NMI))))
		c->activity = ACT_RUN;
	return c->activity == ACT_RUN && !c->stopped;
}
