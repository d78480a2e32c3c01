/* The clock in both modes, and the order in which timers fire. */
#include <time.h>

#include "test.h"
#include "base/base.h"

#define MAX_FIRED 4096

static struct clock c;
static struct error e;
static int fired[MAX_FIRED], n_fired;

struct numbered {
	struct timer t;
	int id;
	struct timer *then; /* armed by the callback, at then_at */
	u64 then_at;
};

static void fire(void *arg)
{
	struct numbered *t = arg;

	assert_false(timer_armed(&t->t));
	assert_true(n_fired < MAX_FIRED);
	fired[n_fired++] = t->id;
	if (t->then)
		timer_arm(t->then, t->then_at);
}

static void number(struct numbered *t, int id)
{
	memset(t, 0, sizeof(*t));
	t->id = id;
	timer_init(&t->t, &c, fire, t);
}

static int init_icount(void **state)
{
	n_fired = 0;
	return !clock_init(&c, true, &e);
}

static int init_real(void **state)
{
	n_fired = 0;
	return !clock_init(&c, false, &e);
}

static int destroy(void **state)
{
	clock_destroy(&c);
	return 0;
}

static void heap_order(void **state)
{
	enum { N = 1000 };
	static struct numbered t[N];
	u32 seed = 12345;
	u64 last = 0;

	for (int i = 0; i < N; i++)
		number(&t[i], i);
	for (int i = 0; i < 3 * N; i++) { /* arm, arm again, cancel a third */
		seed = seed * 1664525 + 1013904223;
		timer_arm(&t[i % N].t, 1 + (seed >> 8) % 500);
		if (seed % 3 == 0)
			timer_cancel(&t[(seed >> 12) % N].t);
		assert_int_equal(c.timers.next_deadline, c.timers.len ? c.timers.heap[0]->deadline : UINT64_MAX);
	}
	int armed = 0;
	for (int i = 0; i < N; i++)
		armed += timer_armed(&t[i].t);
	assert_true(armed > N / 3);
	clock_advance(&c, 1000);
	assert_int_equal(timer_queue_run(&c.timers), UINT64_MAX);
	assert_int_equal(n_fired, armed);
	u64 last_seq = 0;
	for (int i = 0; i < n_fired; i++) {
		struct timer *f = &t[fired[i]].t;
		assert_true(f->deadline > last || (f->deadline == last && f->seq > last_seq) || i == 0);
		last = f->deadline;
		last_seq = f->seq;
	}
}

static void same_deadline(void **state)
{
	struct numbered t[50];

	for (int i = 0; i < 50; i++)
		number(&t[i], i);
	for (int i = 49; i >= 0; i--)
		timer_arm(&t[i].t, 100);
	timer_arm(&t[30].t, 100); /* armed again: now the last */
	clock_advance(&c, 99);
	assert_int_equal(timer_queue_run(&c.timers), 1);
	assert_int_equal(n_fired, 0);
	clock_advance(&c, 1);
	timer_queue_run(&c.timers);
	assert_int_equal(n_fired, 50);
	int want = 49;
	for (int i = 0; i < 49; i++, want--) {
		want -= want == 30;
		assert_int_equal(fired[i], want);
	}
	assert_int_equal(fired[49], 30);
}

static void arm_from_callback(void **state)
{
	struct numbered a, b, p;

	number(&a, 1);
	number(&b, 2);
	number(&p, 3);
	a.then = &b.t; /* due already: same run */
	a.then_at = 15;
	b.then = &a.t; /* later: next run */
	b.then_at = 500;
	timer_arm(&a.t, 10);
	clock_advance(&c, 20);
	assert_int_equal(timer_queue_run(&c.timers), 480);
	assert_int_equal(n_fired, 2);
	assert_int_equal(fired[1], 2);
	assert_true(timer_armed(&a.t));
	timer_cancel(&a.t);
	timer_cancel(&a.t);
	assert_int_equal(c.timers.next_deadline, UINT64_MAX);

	/* One that arms itself for now, always, does not hold the lock for ever. */
	n_fired = 0;
	p.then = &p.t;
	timer_arm(&p.t, 20);
	p.then_at = 20;
	assert_int_equal(timer_queue_run(&c.timers), 0);
	assert_true(n_fired > 1);
	assert_true(timer_armed(&p.t));
}

static int wakes;

static void count_wake(void *arg)
{
	wakes++;
}

static void wake_when_earlier(void **state)
{
	struct numbered a, b;

	number(&a, 1);
	number(&b, 2);
	c.timers.wake = count_wake;
	wakes = 0;
	timer_arm(&a.t, 100);
	assert_int_equal(wakes, 1);
	timer_arm(&b.t, 200);
	assert_int_equal(wakes, 1);
	timer_arm(&b.t, 50);
	assert_int_equal(wakes, 2);
	a.then = &b.t; /* not from inside: the caller of timer_queue_run learns it */
	a.then_at = 120;
	clock_advance(&c, 110);
	assert_int_equal(timer_queue_run(&c.timers), 10);
	assert_int_equal(wakes, 2);
}

static void icount_time(void **state)
{
	assert_int_equal(clock_ns(&c), 0);
	clock_advance(&c, 1000);
	assert_int_equal(clock_ns(&c), 1000);
	assert_int_equal(clock_tsc(&c), 1000);
	c.icount_ns_mul = 3 << 14; /* 0.75 ns an instruction */
	assert_int_equal(clock_ns(&c), 750);
	clock_advance_to(&c, 1000);
	assert_in_range(clock_ns(&c), 1000, 1001);
	clock_advance_to(&c, 10);
	assert_in_range(clock_ns(&c), 1000, 1001);
	clock_set(&c, 600, 7000);
	assert_in_range(clock_ns(&c), 600, 601);
	assert_int_equal(clock_tsc(&c), 7000);
	clock_pause(&c);
	assert_int_equal(clock_tsc(&c), 7000);
	clock_resume(&c);
}

static void sleep_ms(long ms)
{
	struct timespec ts = { 0, ms * 1000000 };

	nanosleep(&ts, NULL);
}

/* How far the TSC, taken as time, is from ns; the best of some, since we may be preempted. */
static i64 apart(void)
{
	i64 best = INT64_MAX;

	for (int i = 0; i < 50; i++) {
		i64 ns = (i64)clock_ns(&c);
		i64 by_tsc = (i64)((u128)clock_tsc(&c) * 1000000000u / c.tsc_hz);
		if (llabs(by_tsc - ns) < llabs(best))
			best = by_tsc - ns;
	}
	return best;
}

static void real_time(void **state)
{
	struct timespec a, b;

	assert_true(c.tsc_hz > 100000000);
	assert_true(llabs(apart()) < 20000);
	clock_gettime(CLOCK_MONOTONIC, &a);
	u64 ns = clock_ns(&c);
	sleep_ms(50);
	u64 ns2 = clock_ns(&c);
	clock_gettime(CLOCK_MONOTONIC, &b);
	u64 real = (u64)(b.tv_sec - a.tv_sec) * 1000000000u + (u64)b.tv_nsec - (u64)a.tv_nsec;
	assert_true(ns2 - ns >= 50000000 && ns2 - ns <= real);
	/* 50 ms at 200 ppm are 10 us: a wrong rate shows. */
	assert_true(llabs(apart()) < 30000);
}

static void real_pause(void **state)
{
	clock_pause(&c);
	u64 ns = clock_ns(&c), tsc = clock_tsc(&c);
	struct numbered t;
	number(&t, 1);
	timer_arm(&t.t, 0);
	sleep_ms(250);
	assert_int_equal(clock_ns(&c), ns);
	assert_int_equal(clock_tsc(&c), tsc);
	assert_int_equal(timer_queue_run(&c.timers), UINT64_MAX);
	clock_pause(&c); /* a second one changes nothing */
	assert_int_equal(clock_ns(&c), ns);
	clock_resume(&c);
	assert_true(clock_ns(&c) >= ns && clock_ns(&c) - ns < 200000000);
	assert_true(clock_tsc(&c) >= tsc && clock_tsc(&c) - tsc < c.tsc_hz / 5);
	assert_true(llabs(apart()) < 30000);
	timer_queue_run(&c.timers);
	assert_int_equal(n_fired, 1);
	clock_set(&c, 5000000000ull, 9000000000ull);
	assert_true(clock_ns(&c) >= 5000000000ull && clock_ns(&c) < 6000000000ull);
	assert_true(clock_tsc(&c) >= 9000000000ull && clock_tsc(&c) < 9000000000ull + c.tsc_hz);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(heap_order, init_icount, destroy),
		cmocka_unit_test_setup_teardown(same_deadline, init_icount, destroy),
		cmocka_unit_test_setup_teardown(arm_from_callback, init_icount, destroy),
		cmocka_unit_test_setup_teardown(wake_when_earlier, init_icount, destroy),
		cmocka_unit_test_setup_teardown(icount_time, init_icount, destroy),
		cmocka_unit_test_setup_teardown(real_time, init_real, destroy),
		cmocka_unit_test_setup_teardown(real_pause, init_real, destroy),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
