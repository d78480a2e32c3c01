/* The local APIC's timer: exactly once, never early, in each mode. */
#include "apic_rig.h"

#define VECTOR 0x60
#define PERIODIC 0x20000u
#define DEADLINE 0x40000u
#define MASKED 0x10000u

static int setup(void **state)
{
	struct apic_rig *a = *state = apic_rig_new();

	apic_enable_all(a);
	apic_set(a, 0, A_TIMER, VECTOR);
	apic_set(a, 0, A_TDCR, 0xb);
	return 0;
}

static int teardown(void **state)
{
	apic_rig_free(*state);
	return 0;
}

/* How many timer interrupts are there now: 0 or 1. Takes it. */
static int fired(struct apic_rig *a)
{
	if (!a->cpu[0].intr)
		return 0;
	assert_int_equal(lapic_ack(a->l[0]), VECTOR);
	apic_set(a, 0, A_EOI, 0);
	assert_false(a->cpu[0].intr);
	return 1;
}

static u64 deadline(struct apic_rig *a)
{
	u64 v;

	assert_true(lapic_msr_read(a->l[0], MSR_DEADLINE, &v));
	return v;
}

static void set_deadline(struct apic_rig *a, u64 v)
{
	assert_true(lapic_msr_write(a->l[0], MSR_DEADLINE, v));
}

static void one_shot(void **state)
{
	struct apic_rig *a = *state;
	struct board *b = a->b;

	board_at(b, 12345);
	apic_set(a, 0, A_TICR, 1000);
	assert_int_equal(apic_get(a, 0, A_TICR), 1000);
	assert_int_equal(apic_get(a, 0, A_TCCR), 1000);
	board_at(b, 12345 + 400);
	assert_int_equal(apic_get(a, 0, A_TCCR), 600);
	board_at(b, 12345 + 999);
	assert_int_equal(fired(a), 0);
	assert_int_equal(apic_get(a, 0, A_TCCR), 1);
	board_at(b, 12345 + 1000);
	assert_int_equal(fired(a), 1);
	assert_int_equal(apic_get(a, 0, A_TCCR), 0);
	board_advance(b, 1000000);
	assert_int_equal(fired(a), 0);
	/* 0 stops it; a new count starts over. */
	apic_set(a, 0, A_TICR, 1000);
	board_advance(b, 500);
	apic_set(a, 0, A_TICR, 1000);
	board_advance(b, 999);
	assert_int_equal(fired(a), 0);
	apic_set(a, 0, A_TICR, 0);
	board_advance(b, 5000);
	assert_int_equal(fired(a), 0);
	assert_int_equal(apic_get(a, 0, A_TCCR), 0);
}

static void dividers(void **state)
{
	struct apic_rig *a = *state;
	static const u32 code[] = { 0xb, 0, 1, 2, 3, 8, 9, 0xa };

	for (unsigned i = 0; i < 8; i++) {
		apic_set(a, 0, A_TDCR, code[i] | 4); /* bit 2 is not there */
		assert_int_equal(apic_get(a, 0, A_TDCR), code[i]);
		apic_set(a, 0, A_TICR, 100);
		board_advance(a->b, (100ull << i) - 1);
		assert_int_equal(fired(a), 0);
		assert_int_equal(apic_get(a, 0, A_TCCR), 1);
		board_advance(a->b, 1);
		assert_int_equal(fired(a), 1);
	}
	/* While it counts: the count stays, the rate changes. */
	apic_set(a, 0, A_TDCR, 0xb);
	apic_set(a, 0, A_TICR, 1000);
	board_advance(a->b, 600);
	apic_set(a, 0, A_TDCR, 0); /* by 2 */
	assert_int_equal(apic_get(a, 0, A_TCCR), 400);
	board_advance(a->b, 799);
	assert_int_equal(fired(a), 0);
	board_advance(a->b, 1);
	assert_int_equal(fired(a), 1);
}

static void periodic(void **state)
{
	struct apic_rig *a = *state;
	struct board *b = a->b;

	apic_set(a, 0, A_TIMER, PERIODIC | VECTOR);
	apic_set(a, 0, A_TICR, 100000);
	for (int i = 1; i < 20; i++) {
		board_at(b, 100000ull * i - 1);
		assert_int_equal(fired(a), 0);
		board_at(b, 100000ull * i);
		assert_int_equal(fired(a), 1);
		assert_int_equal(apic_get(a, 0, A_TCCR), 100000);
	}
	/* Late by some periods: one interrupt, then in step again. */
	board_at(b, 2550000);
	assert_int_equal(fired(a), 1);
	assert_int_equal(b->clock.timers.next_deadline, 2600000);
	assert_int_equal(apic_get(a, 0, A_TCCR), 50000);
	board_at(b, 2599999);
	assert_int_equal(fired(a), 0);
	board_at(b, 2600000);
	assert_int_equal(fired(a), 1);
	/* The count can be read before the late interrupt came. */
	clock_advance_to(&b->clock, 2730000);
	assert_int_equal(apic_get(a, 0, A_TCCR), 70000);
	/* Masked: nothing comes, the count goes on. */
	apic_set(a, 0, A_TIMER, MASKED | PERIODIC | VECTOR);
	board_at(b, 2850000);
	assert_int_equal(fired(a), 0);
	assert_int_equal(apic_get(a, 0, A_TCCR), 50000);
	apic_set(a, 0, A_TIMER, PERIODIC | VECTOR);
	board_at(b, 2900000);
	assert_int_equal(fired(a), 1);
	/* Very late: not one call of the handler for each period. */
	board_at(b, 3600000050000);
	assert_int_equal(fired(a), 1);
	assert_int_equal(b->clock.timers.next_deadline, 3600000100000);
}

/* A period of a nanosecond must not keep the host from all else. */
static void shortest_period(void **state)
{
	struct apic_rig *a = *state;
	int n = 0;

	apic_set(a, 0, A_TIMER, PERIODIC | VECTOR);
	apic_set(a, 0, A_TICR, 1);
	for (int i = 0; i < 100000; i++) {
		board_advance(a->b, 10);
		n += fired(a);
	}
	assert_in_range(n, 20, 60); /* 1 ms, at most one each 20 us */
}

static void mode_change(void **state)
{
	struct apic_rig *a = *state;

	/* One-shot to periodic in the middle: the count goes on, then wraps. */
	apic_set(a, 0, A_TICR, 100000);
	board_advance(a->b, 60000);
	apic_set(a, 0, A_TIMER, PERIODIC | VECTOR);
	assert_int_equal(apic_get(a, 0, A_TCCR), 40000);
	assert_int_equal(apic_get(a, 0, A_TICR), 100000);
	board_advance(a->b, 40000);
	assert_int_equal(fired(a), 1);
	assert_int_equal(apic_get(a, 0, A_TCCR), 100000);
	/* And back: it ends, and stays at its end in whatever mode. */
	apic_set(a, 0, A_TIMER, VECTOR);
	board_advance(a->b, 100000);
	assert_int_equal(fired(a), 1);
	apic_set(a, 0, A_TIMER, PERIODIC | VECTOR);
	board_advance(a->b, 1000000);
	assert_int_equal(fired(a), 0);
	assert_int_equal(apic_get(a, 0, A_TCCR), 0);
	/* Also where the host's timer is late: it has ended when the mode changes. */
	apic_set(a, 0, A_TIMER, VECTOR);
	apic_set(a, 0, A_TICR, 1000);
	clock_advance_to(&a->b->clock, clock_ns(&a->b->clock) + 1000);
	assert_int_equal(fired(a), 0);
	apic_set(a, 0, A_TIMER, PERIODIC | VECTOR);
	assert_int_equal(fired(a), 1);
	assert_int_equal(apic_get(a, 0, A_TCCR), 0);
	board_advance(a->b, 1000000);
	assert_int_equal(fired(a), 0);
	/* TSC deadline shares nothing with the count. */
	apic_set(a, 0, A_TICR, 100000);
	apic_set(a, 0, A_TIMER, DEADLINE | VECTOR);
	assert_int_equal(apic_get(a, 0, A_TCCR), 0);
	apic_set(a, 0, A_TICR, 5000);
	assert_int_equal(apic_get(a, 0, A_TICR), 0);
	set_deadline(a, clock_tsc(&a->b->clock) + 5000);
	apic_set(a, 0, A_TIMER, VECTOR);
	assert_int_equal(deadline(a), 0);
	board_advance(a->b, 1000000);
	assert_int_equal(fired(a), 0);
}

static void tsc_deadline(void **state)
{
	struct apic_rig *a = *state;
	struct board *b = a->b;

	/* Outside its mode the MSR takes nothing. */
	set_deadline(a, 100);
	assert_int_equal(deadline(a), 0);
	board_advance(b, 200);
	assert_int_equal(fired(a), 0);
	apic_set(a, 0, A_TIMER, DEADLINE | VECTOR);
	u64 at = clock_tsc(&b->clock) + 1000;
	set_deadline(a, at);
	assert_int_equal(deadline(a), at);
	assert_int_equal(b->clock.timers.next_deadline, at); /* the host sleeps until then */
	board_at(b, at - 1);
	assert_int_equal(fired(a), 0);
	assert_int_equal(deadline(a), at);
	board_at(b, at);
	assert_int_equal(fired(a), 1);
	assert_int_equal(deadline(a), 0);
	board_advance(b, 100000);
	lapic_set_tsc_adjust(a->l[0], 0);
	assert_int_equal(fired(a), 0);
	/* Now, and in the past: at once. 0: never. A later one replaces an earlier one. */
	set_deadline(a, clock_tsc(&b->clock));
	assert_int_equal(fired(a), 1);
	assert_int_equal(deadline(a), 0);
	set_deadline(a, 1);
	assert_int_equal(fired(a), 1);
	at = clock_tsc(&b->clock);
	set_deadline(a, at + 1000);
	set_deadline(a, 0);
	board_advance(b, 2000);
	assert_int_equal(fired(a), 0);
	at = clock_tsc(&b->clock);
	set_deadline(a, at + 1000);
	set_deadline(a, at + 3000);
	board_at(b, at + 2999);
	assert_int_equal(fired(a), 0);
	board_at(b, at + 3000);
	assert_int_equal(fired(a), 1);
	set_deadline(a, UINT64_MAX);
	board_advance(b, 1ull << 40);
	assert_int_equal(fired(a), 0);
	assert_true(deadline(a) == UINT64_MAX);
	/* Masked, the deadline passes without an interrupt. */
	apic_set(a, 0, A_TIMER, MASKED | DEADLINE | VECTOR);
	set_deadline(a, clock_tsc(&b->clock) + 10);
	board_advance(b, 10);
	assert_int_equal(deadline(a), 0);
	apic_set(a, 0, A_TIMER, DEADLINE | VECTOR);
	assert_int_equal(fired(a), 0);
}

static void tsc_adjusted(void **state)
{
	struct apic_rig *a = *state;
	struct board *b = a->b;

	apic_set(a, 0, A_TIMER, DEADLINE | VECTOR);
	board_at(b, 10000);
	lapic_set_tsc_adjust(a->l[0], 500000);
	set_deadline(a, 511000);
	board_at(b, 10999);
	assert_int_equal(fired(a), 0);
	board_at(b, 11000);
	assert_int_equal(fired(a), 1);
	/* While one is pending: backwards puts it off, forwards over it fires it. */
	set_deadline(a, 512000);
	lapic_set_tsc_adjust(a->l[0], 400000);
	board_at(b, 50000);
	assert_int_equal(fired(a), 0);
	lapic_set_tsc_adjust(a->l[0], 500000);
	assert_int_equal(fired(a), 1);
	lapic_set_tsc_adjust(a->l[0], -40000ull); /* the guest's TSC is 10000 */
	set_deadline(a, 10100);
	board_at(b, 50099);
	assert_int_equal(fired(a), 0);
	board_at(b, 50100);
	assert_int_equal(fired(a), 1);
}

/* The host's idea of the TSC's rate is off: too high a rate wakes the timer too early. */
static void never_early(void **state)
{
	struct apic_rig *a = *state;
	struct board *b = a->b;

	b->clock.tsc_hz = 3000000000; /* it is 1 GHz here */
	apic_set(a, 0, A_TIMER, DEADLINE | VECTOR);
	set_deadline(a, 100000);
	for (u64 ns = 0; ns < 100000; ns += 7) {
		board_at(b, ns);
		assert_int_equal(fired(a), 0);
	}
	board_at(b, 99999);
	assert_int_equal(fired(a), 0);
	board_at(b, 100001);
	assert_int_equal(fired(a), 1);
}

/* Random programming against a model: each interrupt that comes was due, and comes once. */
static void random_one_shots(void **state)
{
	struct apic_rig *a = *state;
	struct board *b = a->b;
	u64 s = 42, due = UINT64_MAX;
	int n = 0;
	bool tsc = false;

	for (int i = 0; i < 20000; i++) {
		u64 v = next_random(&s);

		switch (v & 7) {
		case 0:
			tsc = !tsc;
			apic_set(a, 0, A_TIMER, (tsc ? DEADLINE : 0) | VECTOR);
			due = UINT64_MAX;
			break;
		case 1:
		case 2: {
			u32 count = v >> 8 & 0x3fff;

			if (tsc)
				set_deadline(a, clock_tsc(&b->clock) + count);
			else
				apic_set(a, 0, A_TICR, count);
			due = count || tsc ? clock_ns(&b->clock) + count : UINT64_MAX;
			break;
		}
		default:
			board_advance(b, v >> 8 & 0xfff);
		}
		bool is_due = clock_ns(&b->clock) >= due;
		assert_int_equal(fired(a), is_due);
		if (is_due) {
			due = UINT64_MAX;
			n++;
		}
	}
	assert_in_range(n, 1000, 20000);
}

/* A period that no handler keeps up with: the next interrupt comes once the last one is over, and a while later. */
static void not_on_top_of_itself(void **state)
{
	struct apic_rig *a = *state;
	struct board *b = a->b;

	apic_set(a, 0, A_TIMER, PERIODIC | VECTOR);
	apic_set(a, 0, A_TICR, 1000);
	board_advance(b, 100000);
	assert_int_equal(lapic_ack(a->l[0]), VECTOR);
	for (int i = 0; i < 10; i++) {
		board_advance(b, 100000);
		assert_false(a->cpu[0].intr || apic_bit(a, 0, A_IRR, VECTOR));
	}
	apic_set(a, 0, A_EOI, 0);
	assert_false(a->cpu[0].intr);
	board_advance(b, 20000);
	assert_int_equal(fired(a), 1);
	/* One that is long enough is kept, as ever. */
	apic_set(a, 0, A_TICR, 50000);
	board_advance(b, 50000);
	assert_int_equal(lapic_ack(a->l[0]), VECTOR);
	board_advance(b, 50000);
	assert_true(apic_bit(a, 0, A_IRR, VECTOR));
	apic_set(a, 0, A_EOI, 0);
	assert_int_equal(fired(a), 1);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(one_shot), T(not_on_top_of_itself), T(dividers), T(periodic), T(shortest_period), T(mode_change),
		T(tsc_deadline), T(tsc_adjusted), T(never_early), T(random_one_shots),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
