/* Local APICs that somebody else runs: what goes to the runner, what stays, and the way back. */
#include "apic_rig.h"

#define IOAPIC 0xfec00000ull
#define LEVEL 0x8000u
#define MASKED 0x10000u

struct runner { struct msi sent[8], pins[24]; unsigned n, tables; bool takes; };

static bool on_send(void *arg, struct msi m)
{
	struct runner *r = arg;
	assert_true(r->n < ARRAY_LEN(r->sent));
	r->sent[r->n++] = m;
	return r->takes;
}

static void on_pins(void *arg, const struct msi *m, unsigned n)
{
	struct runner *r = arg;
	assert_int_equal(n, 24);
	memcpy(r->pins, m, sizeof(r->pins));
	r->tables++;
}

static struct runner runner;
static const struct apic_runner to_runner = { &runner, on_send, on_pins };

static int setup(void **state)
{
	struct apic_rig *a = *state = apic_rig_new();
	memset(&runner, 0, sizeof(runner));
	runner.takes = true;
	apic_enable_all(a);
	return 0;
}

static int teardown(void **state)
{
	apic_rig_free(*state);
	return 0;
}

static void lend(struct apic_rig *a, const struct apic_runner *r)
{
	mem_lock(&a->b->mem);
	lapic_bus_lend(a->bus, r);
	mem_unlock(&a->b->mem);
}

static void route(struct apic_rig *a, unsigned pin, u32 low, u8 dest)
{
	mem_phys_write(&a->b->mem, IOAPIC, 0x11 + 2 * pin, 4);
	mem_phys_write(&a->b->mem, IOAPIC + 0x10, (u32)dest << 24, 4);
	mem_phys_write(&a->b->mem, IOAPIC, 0x10 + 2 * pin, 4);
	mem_phys_write(&a->b->mem, IOAPIC + 0x10, low, 4);
}

static void line(struct apic_rig *a, unsigned gsi, bool level)
{
	mem_lock(&a->b->mem);
	irq_set(&a->b->irqs, gsi, level);
	mem_unlock(&a->b->mem);
}

static void messages(void **state)
{
	struct apic_rig *a = *state;
	lend(a, &to_runner);
	mem_lock(&a->b->mem);
	irq_msi(&a->b->irqs, 0xfee02004, 0x4155); /* logical, lowest priority */
	lapic_bus_lend(a->bus, NULL);
	irq_msi(&a->b->irqs, 0xfee02000, 0x4055);
	mem_unlock(&a->b->mem);
	assert_int_equal(runner.n, 1);
	assert_int_equal(runner.sent[0].addr, 0xfee02004);
	assert_int_equal(runner.sent[0].data, 0x4155);
	assert_false(apic_bit(a, 0, A_IRR, 0x55));
	assert_true(apic_bit(a, 2, A_IRR, 0x55));
}

/* The IOAPIC's table is told at once and at each change; a level waits for the EOI, or until it is taken. */
static void levels(void **state)
{
	struct apic_rig *a = *state;
	route(a, 20, LEVEL | 0x61, 1);
	lend(a, &to_runner);
	assert_int_equal(runner.tables, 1);
	assert_int_equal(runner.pins[20].addr, 0xfee01000);
	assert_int_equal(runner.pins[20].data, 0xc061);
	assert_int_equal(runner.pins[21].addr, 0);
	route(a, 21, LEVEL | MASKED | 0x62, 1);
	assert_int_equal(runner.pins[21].addr, 0);
	route(a, 21, 0x62, 3);
	assert_int_equal(runner.pins[21].addr, 0xfee03000);
	assert_int_equal(runner.pins[21].data, 0x4062);
	line(a, 20, true);
	line(a, 20, true);
	assert_int_equal(runner.n, 1);
	assert_int_equal(runner.sent[0].data, 0xc061);
	mem_lock(&a->b->mem);
	ioapic_eoi(a->io, 0x61);
	mem_unlock(&a->b->mem);
	assert_int_equal(runner.n, 2);
	line(a, 20, false);
	mem_lock(&a->b->mem);
	ioapic_eoi(a->io, 0x61);
	mem_unlock(&a->b->mem);
	runner.takes = false;
	line(a, 20, true);
	line(a, 20, true);
	assert_int_equal(runner.n, 4); /* not taken: offered again */
}

/* The 8259s' output is INTR as it is, and theirs to acknowledge. */
static void pic(void **state)
{
	struct apic_rig *a = *state;
	lend(a, &to_runner);
	mem_lock(&a->b->mem);
	lapic_set_lint0(a->l[0], true);
	mem_unlock(&a->b->mem);
	assert_true(a->cpu[0].intr);
	assert_int_equal(lapic_ack(a->l[0]), -1);
	struct apic_state s;
	const struct { u32 lint0; bool accepts; } cases[] = { { 0x10700, false }, { 0x700, true }, { 0x20, false } };
	for (unsigned k = 0; k < ARRAY_LEN(cases); k++) { /* as whoever runs it says that it is */
		mem_lock(&a->b->mem);
		lapic_get_state(a->l[0], &s);
		st32(s.page + 0x350, cases[k].lint0);
		lapic_set_state(a->l[0], &s);
		assert_int_equal(lapic_accepts_pic(a->l[0]), cases[k].accepts);
		mem_unlock(&a->b->mem);
		assert_int_equal(lapic_ack(a->l[0]), -1);
	}
	lend(a, NULL); /* LINT0 is masked */
	assert_false(a->cpu[0].intr);
}

static void state(void **st)
{
	struct apic_rig *a = *st;
	struct apic_state s, again;
	apic_set(a, 1, A_TPR, 0x20);
	apic_set(a, 1, A_LDR, 0x02000000);
	apic_set(a, 1, A_LINT1, 0x400);
	apic_set(a, 1, A_ICR2, 0x01000000);
	apic_set(a, 1, A_ICR, 0x4071);
	apic_set(a, 1, A_TDCR, 0xb);
	apic_set(a, 1, A_TIMER, MASKED | 0x33);
	apic_set(a, 1, A_TICR, 1000000000);
	mem_lock(&a->b->mem);
	lapic_get_state(a->l[1], &s);
	lapic_set_state(a->l[2], &s);
	lapic_get_state(a->l[2], &again);
	mem_unlock(&a->b->mem);
	assert_int_equal(ld32(s.page + A_TPR), 0x20);
	assert_int_equal(ld32(s.page + A_ID), 1u << 24);
	assert_int_equal(ld32(s.page + A_IRR + 0x30) >> 0x11 & 1, 1);
	assert_in_range(ld32(s.page + A_TCCR), 1, 1000000000);
	assert_in_range(ld32(again.page + A_TCCR), 1, ld32(s.page + A_TCCR));
	st32(again.page + A_TCCR, ld32(s.page + A_TCCR));
	assert_memory_equal(&s, &again, sizeof(s));
}

/* A timer stands still as long as they are lent, and what is due comes when they are back. */
static void timers(void **state)
{
	struct apic_rig *a = *state;
	apic_set(a, 0, A_TDCR, 0xb);
	apic_set(a, 0, A_TIMER, 0x44);
	apic_set(a, 0, A_TICR, 1000);
	lend(a, &to_runner);
	assert_int_equal(atomic_load(&a->b->clock.timers.next_deadline), UINT64_MAX);
	board_run(a->b, 5000);
	struct apic_state due;
	lapic_get_state(a->l[0], &due);
	assert_int_equal(ld32(due.page + A_TCCR), 1); /* 0 would say that it is over */
	assert_false(apic_bit(a, 0, A_IRR, 0x44));
	lend(a, NULL);
	board_run(a->b, 1);
	assert_true(apic_bit(a, 0, A_IRR, 0x44));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(messages, setup, teardown),
		cmocka_unit_test_setup_teardown(levels, setup, teardown),
		cmocka_unit_test_setup_teardown(pic, setup, teardown),
		cmocka_unit_test_setup_teardown(state, setup, teardown),
		cmocka_unit_test_setup_teardown(timers, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
