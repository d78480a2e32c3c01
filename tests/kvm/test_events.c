/* Interrupts, NMIs and exceptions at the moment that a processor's state is fetched from KVM or given to it: what KVM has
 * half-way delivered is delivered once, and what comes meanwhile is not lost. */
#include "box.h"

/* What KVM had begun is carried out here, once, and KVM does not do it again. */
static void half_way(void **state)
{
	static const struct { struct kvm_vcpu_events e; u8 vector; bool nmi; } cases[] = {
		{ { .interrupt = { .injected = 1, .nr = 0x31 } }, 0x31, false },
		{ { .nmi.injected = 1 }, 2, true },
		{ { .exception = { .injected = 1, .nr = 6 } }, 6, false },
		{ { .exception = { .pending = 1, .nr = 4 } }, 4, false },
		{ { .exception = { .injected = 1, .nr = 6 }, .interrupt = { .injected = 1, .nr = 0x31 } }, 6, false },
	};
	for (unsigned k = 0; k < ARRAY_LEN(cases); k++) {
		struct rig *g = box_real_mode();
		struct cpu *c = g->cpu;
		struct kvm_vcpu_events *e = &g->box[0].events;
		*e = cases[k].e;
		box_fetch(g, 0);
		if (c->rip != 0x1000u + 16 * cases[k].vector)
			fail_msg("case %u: rip %llx", k, (unsigned long long)c->rip);
		assert_int_equal(c->regs[R_SP], 0x6000 - 6);
		assert_int_equal(ld16(g->mem.ram + 0x6000 - 6), 0x7c05);
		assert_true(ld16(g->mem.ram + 0x6000 - 2) & FL_IF);
		assert_int_equal(c->nmi_blocked, cases[k].nmi);
		assert_true(state_put(g->v[0]));
		assert_int_equal(g->box[0].regs.rip, c->rip);
		assert_false(e->exception.injected || e->exception.pending || e->interrupt.injected || e->nmi.injected);
		assert_int_equal(e->nmi.masked, cases[k].nmi);
		box_rig_free(g);
	}
}

/* An NMI that waits in KVM is an event of ours, and given to KVM anew. */
static void an_nmi_that_waits(void **state)
{
	struct rig *g = box_real_mode();
	g->box[0].events.nmi.pending = g->box[0].events.nmi.masked = 1;
	box_fetch(g, 0);
	assert_true(atomic_load(&g->cpu->events) & EV_NMI);
	assert_true(g->cpu->nmi_blocked);
	assert_int_equal(g->cpu->rip, 0x7c05);
	assert_true(state_put(g->v[0]));
	assert_int_equal(g->box[0].events.nmi.pending, 0);
	assert_int_equal(g->box[0].events.nmi.masked, 1);
	box_rig_free(g);
}

/* With KVM's LAPICs it may come from another processor, between fetching and putting: that one stays KVM's. */
static void an_nmi_that_comes_meanwhile(void **state)
{
	struct rig *g = box_rig_new("max", true);
	struct kvm_vcpu_events *e = &g->box[0].events;
	box_any_state(g, &g->box[0], false);
	box_fetch(g, 0);
	e->nmi.pending = 1;
	assert_true(state_put(g->v[0]));
	assert_int_equal(e->nmi.pending, 1);
	box_fetch(g, 0);
	assert_true(atomic_load(&g->cpu->events) & EV_NMI);
	assert_true(state_put(g->v[0]));
	assert_int_equal(e->nmi.pending, 0); /* ours */
	box_rig_free(g);
}

/* For a hop. */
static void leave(struct rig *g)
{
	g->vm.vcpu[0] = g->v[0];
	g->vm.n_vcpus = 1;
	g->vm.lent = true;
	irqchip_leaves(g->v[0]);
}

/* Or before the processor goes for a hop: it is an event of ours then; a hypervisor's guest's goes on with that one's state. */
static void an_nmi_that_comes_late(void **state)
{
	for (unsigned k = 0; k < 4; k++) {
		bool l2 = k & 1, known = k & 2;
		struct rig *g = box_rig_new(hypervisors[0], true);
		struct kvm_vcpu *v = g->v[0];
		box_any_state(g, &g->box[0], false);
		if (l2)
			box_hypervisors_state(g, &g->box[0], true);
		g->box[0].events.nmi.pending = known;
		box_fetch(g, 0);
		assert_int_equal(atomic_load(&g->cpu->nmis), !l2 && known);
		g->box[0].events.nmi.pending = 1;
		leave(g);
		assert_int_equal(g->lends, 1);
		assert_int_equal(g->vm.n_vcpus, 0);
		assert_int_equal(atomic_load(&g->cpu->nmis), !l2); /* once */
		nested_keep(v);
		if (l2)
			assert_int_equal(((struct hypervisor *)g->cpu->engine_keeps)->events.nmi.pending, 1);
		box_rig_free(g);
	}
}

/* An INIT that waits where the state is fetched: all of it is that after the INIT. */
static void an_init_that_waits(void **state)
{
	for (u8 sipi = 0; sipi < 2; sipi++) {
		struct rig *g = box_rig_new("max", true);
		struct box *b = &g->box[0];
		box_any_state(g, b, false);
		b->init = true;
		b->sipi = sipi ? 0x9a : 0;
		box_fetch(g, 0);
		assert_int_equal(g->cpu->rip, sipi ? 0 : 0xfff0);
		assert_int_equal(g->cpu->regs[R_DX], 0xa20f10);
		assert_int_equal(g->cpu->seg[S_CS].sel, sipi ? 0x9a00 : 0xf000);
		assert_int_equal(g->cpu->cr0, 0x60000010);
		assert_int_equal(g->cpu->activity, sipi ? ACT_RUN : ACT_WAIT_SIPI);
		leave(g);
		assert_int_equal(atomic_load(&g->cpu->events), 0); /* not once more */
		box_rig_free(g);
	}
}

/* INIT, SIPI or both that come between fetching and a hop, for a processor that runs, halts or waits, or that has not yet
 * run in this engine: they are events of ours. */
static void an_init_that_comes_late(void **state)
{
	static const u8 activities[] = { ACT_RUN, ACT_HLT, ACT_WAIT_SIPI };
	for (unsigned k = 0; k < 24; k++) {
		bool init = k & 1, sipi = k & 2, ran = k & 4, waits = k / 8 == 2;
		struct rig *g = box_rig_new("max", true);
		struct box *b = &g->box[0];
		struct error e;
		box_any_state(g, b, false);
		if (ran) {
			b->mp.mp_state = k / 8 == 0 ? KVM_MP_STATE_RUNNABLE : waits ? KVM_MP_STATE_INIT_RECEIVED : KVM_MP_STATE_HALTED;
			box_fetch(g, 0);
		} else {
			g->cpu->activity = activities[k / 8];
			b->regs = (struct kvm_regs){ .rip = 0xfff0, .rdx = 0xa20f10, .rflags = 2 }; /* as KVM makes it: INIT alone changes nothing */
			b->sregs.cs.selector = 0xf000;
			b->sregs.cr0 = 0x60000010;
			assert_true(irqchip_prime(g->v[0], &e));
		}
		assert_int_equal(g->cpu->activity, activities[k / 8]);
		b->init = init;
		b->sipi = sipi ? 0x9a : 0;
		leave(g);
		u32 ev = atomic_load(&g->cpu->events), want = (init && !waits ? EV_INIT : 0) | (sipi && (init || waits) ? EV_SIPI : 0);
		if ((ev & (EV_INIT | EV_SIPI)) != want)
			fail_msg("case %u: events %x, not %x", k, ev, want);
		if (want & EV_SIPI)
			assert_int_equal(g->cpu->sipi_vector, 0x9a);
		box_rig_free(g);
	}
}

/* What is sent to a processor that has not yet run in this engine: it has its LAPIC, but for the timer, which would run before
 * guest time does. */
static void an_interrupt_that_comes_early(void **state)
{
	for (unsigned runs = 0; runs < 2; runs++) {
		struct rig *g = box_rig_new("max", true);
		u8 *lapic = (u8 *)g->box[0].lapic.regs;
		struct error e;
		g->board.base = 0xfee00d00;
		st32(g->board.page + 0xf0, 0x1ff);
		st32(g->board.page + 0x380, 1000);
		st32(g->board.page + 0x390, 400);
		g->board.tsc_deadline = 77;
		st32(g->board.page + 0x210, 1 << 3);
		assert_true(irqchip_prime(g->v[0], &e));
		assert_true(*box_msr(&g->box[0], 0x1b) == 0xfee00d00);
		assert_int_equal(ld32(lapic + 0xf0), 0x1ff);
		assert_int_equal(ld32(lapic + 0x210), 1 << 3);
		assert_int_equal(ld32(lapic + 0x380) | ld32(lapic + 0x390), 0);
		assert_int_equal(*box_msr(&g->box[0], 0x6e0), 0);
		st32(lapic + 0x210, 1 << 3 | 1 << 5);
		if (runs)
			assert_true(state_put(g->v[0]));
		else
			leave(g);
		const u8 *page = runs ? lapic : g->board.page;
		assert_int_equal(ld32(page + 0x210), 1 << 3 | 1 << 5);
		assert_int_equal(ld32(page + 0x380), 1000);
		assert_int_equal(ld32(page + 0x390), 400);
		assert_int_equal(runs ? *box_msr(&g->box[0], 0x6e0) : g->board.tsc_deadline, 77);
		assert_true(g->board.base == 0xfee00d00);
		box_rig_free(g);
	}
}

/* Interrupts that KVM's LAPIC has got since it was fetched are not lost where it is given anew. */
static void an_interrupt_that_comes_meanwhile(void **state)
{
	struct rig *g = box_rig_new("max", true);
	u8 *lapic = (u8 *)g->box[0].lapic.regs;
	box_any_state(g, &g->box[0], false);
	memset(lapic + 0x180, 0, 0x100); /* TMR, IRR */
	st32(lapic + 0x210, 1 << 3); /* 23h waits, edge */
	box_fetch(g, 0);
	st32(lapic + 0x210, 1 << 3 | 1 << 5); /* 25h, level */
	st32(lapic + 0x190, 1 << 5);
	g->board.page[0x80] = 0x70; /* somebody else has changed it */
	st32(g->board.page + 0x220, 1);
	assert_true(state_put(g->v[0]));
	assert_int_equal(lapic[0x80], 0x70);
	assert_int_equal(ld32(lapic + 0x210), 1 << 3 | 1 << 5);
	assert_int_equal(ld32(lapic + 0x190), 1 << 5);
	assert_int_equal(ld32(lapic + 0x220), 1);
	box_rig_free(g);
}

/* #PF, #DB that KVM has taken and that have not come to CR2 and DR6 yet. */
static void payloads(void **state)
{
	struct rig *g = box_real_mode();
	g->box[0].events = (struct kvm_vcpu_events){ .exception = { .pending = 1, .nr = V_PF }, .exception_has_payload = 1, .exception_payload = 0x12345678 };
	box_fetch(g, 0);
	assert_true(g->cpu->cr2 == 0x12345678);
	box_rig_free(g);
	g = box_real_mode();
	g->box[0].debugregs.dr6 = 0xffff0ff0;
	g->box[0].events = (struct kvm_vcpu_events){ .exception = { .pending = 1, .nr = V_DB }, .exception_has_payload = 1, .exception_payload = 0x4001 };
	box_fetch(g, 0);
	assert_int_equal(g->cpu->rip, 0x1010);
	assert_true((g->cpu->dr[6] & 0xe00f) == 0x4001);
	box_rig_free(g);
}

int main(void)
{
	log_configure("error", "/dev/null", &(struct error){ "" });
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_interrupt_that_comes_meanwhile), cmocka_unit_test(half_way), cmocka_unit_test(an_nmi_that_waits),
		cmocka_unit_test(an_nmi_that_comes_meanwhile), cmocka_unit_test(an_nmi_that_comes_late), cmocka_unit_test(an_init_that_waits),
		cmocka_unit_test(an_init_that_comes_late), cmocka_unit_test(an_interrupt_that_comes_early), cmocka_unit_test(payloads),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
