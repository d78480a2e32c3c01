/* What happens between instructions: interrupts, INIT and SIPI, waking; debug exceptions. */
#include "world.h"

enum { INT32 = 0x8e, TRAP32 = 0x8f };

static void raise_now(unsigned vector)
{
	w.c->exc = (struct exception){ .vector = (u8)vector };
	cpu_exception(w.c);
}

/* ---- events */

static void events(void **state)
{
	world_protected(0);
	idt_set(V_NMI, gate(TRAP32, C0, 0x200, 0));
	idt_set(0x30, gate(INT32, C0, 0x3000, 0));
	w.vector = 0x30;
	cpu_post_event(w.c, EV_INTR);
	w.c->activity = ACT_HLT;
	assert_false(cpu_service_events(w.c)); /* masked: stays halted */
	w.c->rflags |= FL_IF;
	w.c->shadow = SHADOW_STI;
	assert_false(cpu_service_events(w.c));
	w.c->shadow = 0;
	assert_true(cpu_service_events(w.c));
	assert_int_equal(w.c->rip, 0x3000);
	assert_int_equal(w.c->activity, ACT_RUN);
	/* NMI before INTR, once; blocked until IRET */
	w.c->rflags |= FL_IF;
	w.c->rip = CODE;
	w.c->shadow = SHADOW_SS;
	cpu_post_event(w.c, EV_NMI);
	assert_true(cpu_service_events(w.c));
	assert_int_equal(w.c->rip, CODE);
	w.c->shadow = 0;
	assert_true(cpu_service_events(w.c));
	assert_int_equal(w.c->rip, 0x200);
	assert_true(w.c->nmi_blocked);
	assert_int_equal(atomic_load(&w.c->events), EV_INTR);
	assert_false(w.c->event_mask & EV_NMI);
	assert_true(cpu_service_events(w.c)); /* the trap gate left IF set */
	assert_int_equal(w.c->rip, 0x3000);
	cpu_clear_event(w.c, EV_INTR);
	cpu_post_event(w.c, EV_NMI);
	assert_true(cpu_service_events(w.c));
	assert_int_equal(w.c->rip, 0x3000);
	WORKS(cpu_iret(w.c, 4));
	assert_false(w.c->nmi_blocked);
	assert_true(cpu_service_events(w.c));
	assert_int_equal(w.c->rip, 0x200);
	/* two at once are two, any number while blocked is one */
	WORKS(cpu_iret(w.c, 4));
	u64 back = w.c->rip;
	for (unsigned k = 0; k < 3; k++)
		cpu_post_event(w.c, EV_NMI);
	for (unsigned k = 0; k < 2; k++) {
		assert_true(cpu_service_events(w.c));
		assert_int_equal(w.c->rip, 0x200);
		for (unsigned n = 0; k && n < 3; n++)
			cpu_post_event(w.c, EV_NMI);
		WORKS(cpu_iret(w.c, 4));
		assert_int_equal(w.c->rip, back);
	}
	assert_true(cpu_service_events(w.c)); /* those of the second handler */
	assert_int_equal(w.c->rip, 0x200);
	WORKS(cpu_iret(w.c, 4));
	assert_int_equal(atomic_load(&w.c->events) & EV_NMI, 0);
	/* the shadow of STI holds it off */
	w.c->shadow = SHADOW_STI;
	cpu_post_event(w.c, EV_NMI);
	assert_true(cpu_service_events(w.c));
	assert_int_equal(w.c->rip, back);
	w.c->shadow = 0;
	assert_true(cpu_service_events(w.c));
	assert_int_equal(w.c->rip, 0x200);
	/* none; withdrawn */
	w.c->rip = CODE;
	w.c->rflags |= FL_IF;
	assert_true(cpu_service_events(w.c));
	cpu_post_event(w.c, EV_INTR);
	w.vector = -1;
	assert_true(cpu_service_events(w.c));
	assert_int_equal(w.c->rip, CODE);
	cpu_clear_event(w.c, EV_INTR);
	/* MWAIT wakes without IF */
	w.c->rflags &= ~(u64)FL_IF;
	w.c->activity = ACT_MWAIT;
	w.c->monitor_armed = true;
	assert_false(cpu_service_events(w.c));
	cpu_post_event(w.c, EV_INTR);
	assert_true(cpu_service_events(w.c));
	cpu_post_event(w.c, EV_EXIT);
	assert_false(cpu_service_events(w.c));
	cpu_clear_event(w.c, EV_EXIT | EV_INTR);
	u64 epoch = w.c->epoch;
	cpu_post_event(w.c, EV_TLB | EV_SMI);
	assert_true(cpu_service_events(w.c));
	assert_int_equal(atomic_load(&w.c->events), 0);
	assert_true(w.c->epoch != epoch);
	w.c->nmi_blocked = false;
	w.c->activity = ACT_SHUTDOWN;
	cpu_post_event(w.c, EV_INTR); /* does not end a shutdown; an NMI does (tests/guest/vmx_exits.c) */
	assert_false(cpu_service_events(w.c));
	assert_int_equal(w.c->rip, CODE);
	cpu_clear_event(w.c, EV_INTR);
	cpu_post_event(w.c, EV_NMI);
	w.c->activity = ACT_RUN;
	w.c->stopped = true;
	assert_false(cpu_service_events(w.c));
	assert_int_equal(w.c->rip, CODE);
	cpu_clear_event(w.c, EV_NMI);
	w.c->stopped = false;
	/* a reset forgets them */
	cpu_post_event(w.c, EV_NMI);
	cpu_post_event(w.c, EV_NMI);
	cpu_reset(w.c, false);
	assert_int_equal(atomic_load(&w.c->events), 0);
	assert_int_equal(atomic_load(&w.c->nmis), 0);
}

/* A trap waits for the end of MOV SS's shadow; without a cause it is none. */
static void trap_event(void **state)
{
	world_protected(0);
	idt_set(V_DB, gate(INT32, C0, 0x100, 0));
	cpu_post_event(w.c, EV_TRAP);
	assert_true(cpu_service_events(w.c));
	assert_int_equal(w.c->rip, CODE);
	assert_int_equal(atomic_load(&w.c->events), 0);
	w.c->dr6_pending = 1;
	cpu_post_event(w.c, EV_TRAP);
	w.c->shadow = SHADOW_SS;
	assert_true(cpu_service_events(w.c));
	assert_int_equal(w.c->rip, CODE);
	w.c->shadow = 0;
	assert_true(cpu_service_events(w.c));
	assert_int_equal(w.c->rip, 0x100);
	assert_int_equal(w.c->dr6_pending, 0);
}

static void init_sipi(void **state)
{
	world_protected(0);
	w.c->bsp = false;
	cpu_post_event(w.c, EV_SIPI);
	w.c->sipi_vector = 0x9a;
	assert_true(cpu_service_events(w.c)); /* not waiting: ignored */
	assert_int_equal(w.c->rip, CODE);
	cpu_post_event(w.c, EV_INIT);
	assert_false(cpu_service_events(w.c));
	assert_int_equal(w.c->activity, ACT_WAIT_SIPI);
	cpu_post_event(w.c, EV_NMI | EV_INTR);
	assert_false(cpu_service_events(w.c));
	cpu_clear_event(w.c, EV_NMI | EV_INTR);
	cpu_post_event(w.c, EV_SIPI);
	assert_true(cpu_service_events(w.c));
	assert_int_equal(w.c->seg[S_CS].sel, 0x9a00);
	assert_int_equal(w.c->seg[S_CS].base, 0x9a000);
	assert_int_equal(w.c->rip, 0);
	w.c->bsp = true;
}

/* ---- debug */

static void single_step(void **state)
{
	world_protected(0);
	idt_set(V_DB, gate(INT32, C0, 0x100, 0));
	w.c->dr[6] = 0xffff0ff0 | DR6_BT | 1;
	cpu_after_insn(w.c, false);
	assert_int_equal(w.c->rip, CODE);
	w.c->shadow = SHADOW_SS;
	cpu_after_insn(w.c, true); /* after MOV SS: not yet */
	assert_int_equal(w.c->rip, CODE);
	w.c->shadow = 0;
	w.c->step_skip = true;
	cpu_after_insn(w.c, true); /* INT n: not at all */
	assert_int_equal(w.c->rip, CODE);
	cpu_after_insn(w.c, true);
	assert_int_equal(w.c->rip, 0x100);
	assert_int_equal(w.c->dr[6], 0xffff0ff0 | DR6_BT | DR6_BS); /* B0-B3 anew, the rest stays */
	assert_int_equal(ram32(w.c->regs[R_SP] + 8), 2);            /* a trap: no RF */
}

static void breakpoints(void **state)
{
	struct cpu *c;
	world_protected(0);
	c = w.c;
	idt_set(V_DB, gate(INT32, C0, 0x100, 0));
	c->dr[0] = CODE;
	c->dr[1] = 0x5004;
	c->dr[2] = 0x5004;
	c->dr[7] = 0x400 | 1 | 8 | 0xdull << 20; /* L0 code; G1 4 bytes write; DR2 disabled code */
	cpu_update_mode(c);
	FAULTS(cpu_code_breakpoint(c), V_DB, 0);
	assert_true(c->keep_rip);
	assert_int_equal(c->exc.dr6, 1);
	cpu_exception(c);
	assert_int_equal(c->dr[6], 0xffff0ff1);
	assert_int_equal(ram32(c->regs[R_SP] + 8), 2); /* RF is not pushed for an instruction breakpoint */
	c->rip = CODE;
	c->rflags |= FL_RF;
	WORKS(cpu_code_breakpoint(c)); /* RF, once */
	assert_int_equal(c->rflags & FL_RF, 0);
	c->shadow = SHADOW_SS;
	WORKS(cpu_code_breakpoint(c)); /* after MOV SS only AMD's processors take it */
	strcpy(w.model.vendor, "AuthenticAMD");
	FAULTS(cpu_code_breakpoint(c), V_DB, 0);
	strcpy(w.model.vendor, "GenuineIntel");
	c->keep_rip = false;
	c->shadow = 0;
	c->rip = CODE + 1;
	WORKS(cpu_code_breakpoint(c)); /* none */
	c->rip = 0x5004;
	WORKS(cpu_code_breakpoint(c)); /* a disabled one, and one of data */
	/* data: writes that touch 0x5004 to 0x5007 */
	cpu_data_breakpoint(c, 0x5004, 4, false, false);
	cpu_data_breakpoint(c, 0x5000, 4, true, false);
	cpu_data_breakpoint(c, 0x5008, 4, true, false);
	assert_int_equal(c->dr6_pending, 0);
	cpu_data_breakpoint(c, 0x5007, 2, true, false);
	assert_int_equal(c->dr6_pending, 2);
	assert_true(atomic_load(&c->events) & EV_TRAP);
	assert_true(cpu_service_events(c));
	assert_int_equal(c->rip, 0x100);
	assert_int_equal(c->dr[6], 0xffff0ff2);
	assert_int_equal(atomic_load(&c->events), 0);
	/* reads too with type 3; a fault drops what is pending; I/O asks for DE */
	c->dr[7] = 0x400 | 8 | 0xfull << 20;
	cpu_data_breakpoint(c, 0x5000, 8, false, false);
	assert_int_equal(c->dr6_pending, 2);
	idt_set(V_UD, gate(INT32, C0, 0x600, 0));
	raise_now(V_UD);
	assert_int_equal(c->dr6_pending, 0);
	cpu_clear_event(c, EV_TRAP);
	c->dr[1] = 0x60;
	c->dr[7] = 0x400 | 8 | 2ull << 20;
	cpu_data_breakpoint(c, 0x60, 1, false, true);
	assert_int_equal(c->dr6_pending, 0);
	c->cr4 |= CR4_DE;
	cpu_data_breakpoint(c, 0x60, 1, false, true);
	assert_int_equal(c->dr6_pending, 2);
	/* What is pending after MOV SS and INT1 are one exception. */
	c->shadow = SHADOW_SS;
	u64 sp = c->regs[R_SP];
	WORKS(cpu_soft_int(c, V_DB, false, true));
	assert_int_equal(c->dr[6] & 15, 2);
	assert_int_equal(c->dr6_pending, 0);
	assert_true(cpu_service_events(c));
	assert_int_equal(c->rip, 0x100);
	assert_int_equal(c->regs[R_SP], sp - 12);
}

/* General detect: a fault, RF set, GD cleared for the handler. */
static void general_detect(void **state)
{
	world_protected(0);
	idt_set(V_DB, gate(INT32, C0, 0x100, 0));
	w.c->dr[7] = 0x400 | DR7_GD;
	FAULTS(cpu_raise_db(w.c, DR6_BD), V_DB, 0);
	cpu_exception(w.c);
	assert_int_equal(w.c->dr[7], 0x400);
	assert_int_equal(w.c->dr[6], 0xffff0ff0 | DR6_BD);
	assert_int_equal(ram32(w.c->regs[R_SP] + 8), 2 | FL_RF);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(events), cmocka_unit_test(trap_event), cmocka_unit_test(init_sipi), cmocka_unit_test(single_step),
		cmocka_unit_test(breakpoints), cmocka_unit_test(general_detect),
	};
	return cmocka_run_group_tests(tests, world_up, world_down);
}
