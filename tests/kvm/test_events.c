/* Interrupts, NMIs and exceptions at the moment that a processor's state is fetched from KVM or given to it: what KVM has
 * half-way delivered is delivered once, and what comes meanwhile is not lost. */
#include <errno.h>

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
		g->cpu->bsp = false;
		box_any_state(g, b, false);
		b->sregs.efer &= ~(u64)EFER_SVME;
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

/* INIT, SIPI or both between fetching, or joining, and a hop: they are events of ours. */
static void late(u8 activity, bool bsp, bool ran, bool init, bool sipi)
{
	struct rig *g = box_rig_new("max", true);
	struct box *b = &g->box[0];
	struct error e;
	bool waits = activity == ACT_WAIT_SIPI, starts = sipi && !bsp && (init || waits);
	g->cpu->bsp = bsp;
	box_any_state(g, b, false);
	b->sregs.efer &= ~(u64)EFER_SVME; /* no hypervisor's */
	g->cpu->activity = activity;
	b->mp.mp_state = mp_state(g->cpu);
	if (ran)
		box_fetch(g, 0);
	else
		assert_true(irqchip_prime(g->v[0], &e));
	assert_int_equal(g->cpu->activity, activity);
	b->init = init;
	b->sipi = sipi ? 0x9a : 0;
	b->events.nmi.pending = 1;
	st32(b->lapic.regs + 0xf0, 0x1ff);
	leave(g);
	u32 ev = atomic_load(&g->cpu->events) & (EV_INIT | EV_SIPI), want = (init ? EV_INIT : 0) | (starts ? EV_SIPI : 0);
	if (ev != want)
		fail_msg("activity %u%s%s%s%s: events %x, not %x", activity, bsp ? ", first" : "", ran ? ", ran" : "", init ? ", INIT" : "", sipi ? ", SIPI" : "", ev, want);
	if (starts)
		assert_int_equal(g->cpu->sipi_vector, 0x9a);
	if (ran)
		assert_int_equal(ld32(g->board.page + 0xf0), init ? 0xff : 0x1ff);
	box_rig_free(g);
}

static void an_init_that_comes_late(void **state)
{
	static const u8 activities[] = { ACT_RUN, ACT_HLT, ACT_WAIT_SIPI };
	for (unsigned a = 0; a < ARRAY_LEN(activities); a++)
		for (unsigned k = 0; k < 8; k++) {
			late(activities[a], false, k & 1, k & 2, k & 4);
			if (activities[a] != ACT_WAIT_SIPI)
				late(activities[a], true, k & 1, k & 2, k & 4);
		}
}

/* The processor's next one in KVM, for a hop. */
static void join(struct rig *g)
{
	struct error e;
	nested_keep(g->v[1] ? g->v[1] : g->v[0]);
	box_vcpu_free(g->v[1]);
	g->v[1] = box_vcpu_new(g, 1);
	assert_true(nested_take(g->v[1], &e));
	assert_true(irqchip_prime(g->v[1], &e));
}

static void leave_again(struct rig *g)
{
	g->vm.vcpu[0] = g->v[1];
	g->vm.n_vcpus = 1;
	g->vm.lent = true;
	irqchip_leaves(g->v[1]);
}

/* INIT before a hop, SIPI behind it, and another hop before it has run. */
static void a_sipi_behind_a_late_init(void **state)
{
	struct rig *g = box_rig_new("max", true);
	g->cpu->bsp = false;
	box_any_state(g, &g->box[0], false);
	g->box[0].sregs.efer &= ~(u64)EFER_SVME;
	g->box[0].mp.mp_state = KVM_MP_STATE_RUNNABLE;
	box_fetch(g, 0);
	g->box[0].init = true;
	leave(g);
	join(g);
	g->box[1].sipi = 0x9a;
	leave_again(g);
	assert_int_equal(atomic_load(&g->cpu->events) & (EV_INIT | EV_SIPI), EV_INIT | EV_SIPI);
	assert_int_equal(g->cpu->sipi_vector, 0x9a);
	join(g);
	g->box[1].init = true;
	leave_again(g);
	assert_int_equal(atomic_load(&g->cpu->events) & (EV_INIT | EV_SIPI), EV_INIT); /* another one, with no SIPI behind it */
	box_rig_free(g);
}

/* A hypervisor's INIT, blocked or not, goes on in KVM, whenever it comes; so does its guest's NMI. */
static void a_hypervisors_late_events(void **state)
{
	for (unsigned k = 0; k < 12; k++) {
		bool l2 = k & 1, early = k / 4 == 0;
		struct rig *g = box_rig_new(hypervisors[k >> 1 & 1], true);
		struct kvm_vcpu_events *e = &g->box[1].events;
		box_any_state(g, &g->box[0], false);
		box_hypervisors_state(g, &g->box[0], l2);
		box_any_msrs(g, &g->box[0]);
		g->box[0].events.nmi.pending = 0;
		box_fetch(g, 0);
		g->box[0].init = early;
		leave(g);
		join(g);
		if (k / 4 == 1) { /* to one that has joined */
			g->box[1].init = true;
			e->nmi.pending = 1;
		} else if (k / 4 == 2) { /* and that hops before it has run */
			g->box[1].init = true;
			e->nmi.pending = l2;
			leave_again(g);
			g->box[1].init = false;
			e->nmi.pending = 0;
			join(g);
		}
		assert_false(atomic_load(&g->cpu->events) & EV_INIT);
		assert_true(state_put(g->v[1]));
		if (!g->box[1].init || (e->nmi.pending != 0) != (k / 4 == 1 || (k / 4 == 2 && l2)))
			fail_msg("case %u: INIT %d, NMI %d", k, g->box[1].init, e->nmi.pending);
		box_rig_free(g);
	}
}

static int (*real_ioctl)(void *, int, unsigned long, void *);
static int refuse_nested(void *arg, int fd, unsigned long request, void *p)
{
	return request == KVM_SET_NESTED_STATE ? -EINVAL : real_ioctl(arg, fd, request, p);
}

/* The machine ends, and its processors leave as ever. */
static void a_hypervisor_refused(void **state)
{
	struct rig *g = box_rig_new(hypervisors[0], true);
	box_any_state(g, &g->box[0], false);
	box_hypervisors_state(g, &g->box[0], true);
	box_fetch(g, 0);
	leave(g);
	join(g);
	g->box[1].events.nmi.pending = 1;
	g->box[1].init = true;
	real_ioctl = g->host.ioctl;
	g->host.ioctl = refuse_nested;
	assert_false(state_put(g->v[1]));
	assert_int_equal(g->failures, 1);
	leave_again(g);
	box_rig_free(g);
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

/* What has come to the board meanwhile, before the LAPICs are lent or by a reset, is not undone. */
static void a_board_that_has_changed(void **state)
{
	for (unsigned reset = 0; reset < 2; reset++) {
		struct rig *g = box_rig_new("max", true);
		struct error e;
		g->board.base = 0xfee00d00;
		st32(g->board.page + 0xf0, 0x1ff);
		if (reset) {
			box_any_state(g, &g->box[0], false);
			g->v[0]->in_kvm = true;
			assert_true(state_fetch(g->v[0])); /* a triple fault */
			memset(g->board.page, 0, sizeof(g->board.page));
			st32(g->board.page + 0xf0, 0xff);
		} else {
			assert_true(irqchip_prime(g->v[0], &e));
			st32(g->board.page + 0x220, 1 << 7);
		}
		leave(g);
		assert_int_equal(ld32(g->board.page + 0xf0), reset ? 0xff : 0x1ff);
		assert_int_equal(ld32(g->board.page + 0x220), reset ? 0 : 1 << 7);
		box_rig_free(g);
	}
}

/* KVM's timer goes on while the machine stands still, and runs out there: its interrupt is not lost, nor early, nor there
 * twice. 31h is its vector. */
static void a_timer_runs_out_meanwhile(void **state)
{
	static const struct { const char *name; u32 lvt, left, now, irr_before, irr, isr, want; bool never; } cases[] = {
		{ "it runs", 0x31, 400, 300, 0, 0, 0, 400 }, { "it has run out within KVM", 0x31, 400, 0, 0, 0, 0, 400 },
		{ "it has come", 0x31, 400, 0, 0, 1, 0, 0 }, { "one before has come", 0x31, 400, 0, 1, 1, 0, 400 },
		{ "perhaps it is due", 0x31, 0, 0, 0, 0, 0, 1 }, { "it waits", 0x31, 0, 0, 1, 1, 0, 0 }, { "it is in service", 0x31, 0, 0, 0, 0, 1, 0 },
		{ "masked", 0x10031, 0, 0, 0, 0, 0, 0 }, { "by deadline", 0x40031, 0, 0, 0, 0, 0, 0 }, { "never begun", 0x31, 0, 0, 0, 0, 0, 0, true }, { "periodic", 0x20031, 400, 900, 0, 0, 0, 400 },
	};
	for (unsigned k = 0; k < ARRAY_LEN(cases); k++) {
		struct rig *g = box_rig_new("max", true);
		u8 *lapic = (u8 *)g->box[0].lapic.regs;
		st32(lapic + 0x320, cases[k].lvt);
		st32(lapic + 0x380, cases[k].never ? 0 : 1000);
		st32(lapic + 0x390, cases[k].left);
		st32(lapic + 0x210, cases[k].irr_before << 17);
		st32(lapic + 0x110, cases[k].isr << 17);
		box_fetch(g, 0);
		st32(lapic + 0x390, cases[k].now);
		st32(lapic + 0x210, cases[k].irr << 17);
		leave(g);
		if (ld32(g->board.page + 0x390) != cases[k].want || ld32(g->board.page + 0x380) != (cases[k].never ? 0 : 1000))
			fail_msg("%s: %u left", cases[k].name, ld32(g->board.page + 0x390));
		assert_int_equal(ld32(g->board.page + 0x210), cases[k].irr << 17);
		box_rig_free(g);
	}
}

/* A processor whose state KVM would not give up: the machine ends, and the board's LAPIC is left as it is. */
static void one_that_does_not_come_out(void **state)
{
	struct rig *g = box_rig_new("max", true);
	box_any_state(g, &g->box[0], false);
	g->v[0]->in_kvm = true;
	leave(g);
	assert_int_equal(g->board.page[0x80], 0);
	assert_int_equal(atomic_load(&g->cpu->events), 0);
	box_rig_free(g);
}

static int refuse_msrs(void *arg, int fd, unsigned long request, void *p)
{
	return request == KVM_SET_MSRS ? 0 /* of 1 */ : real_ioctl(arg, fd, request, p);
}

static void a_lapic_refused(void **state)
{
	struct rig *g = box_rig_new("max", true);
	struct error e;
	real_ioctl = g->host.ioctl;
	g->host.ioctl = refuse_msrs;
	assert_false(irqchip_prime(g->v[0], &e));
	assert_non_null(strstr(e.msg, "the LAPIC of processor 0"));
	box_rig_free(g);
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
		cmocka_unit_test(an_init_that_comes_late), cmocka_unit_test(an_interrupt_that_comes_early), cmocka_unit_test(a_sipi_behind_a_late_init),
		cmocka_unit_test(a_hypervisors_late_events), cmocka_unit_test(a_hypervisor_refused), cmocka_unit_test(a_board_that_has_changed),
		cmocka_unit_test(a_timer_runs_out_meanwhile), cmocka_unit_test(a_lapic_refused), cmocka_unit_test(one_that_does_not_come_out), cmocka_unit_test(payloads),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
