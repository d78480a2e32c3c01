/* The interval timer: counts at known ticks, OUT by port 0x61 and irq 0 through the pair. */
#include "board.h"

#define HZ 1193182ull
#define IRQ0 0x20

/* Lets time pass until the tick number is t (from power-on), by a hair. */
static void to_tick(struct board *b, u64 t)
{
	u64 ns = (t * 1000000000ull + HZ - 1) / HZ;

	assert_true(ns >= b->clock.icount);
	board_run(b, ns - b->clock.icount);
}

static u16 read16(struct board *b, u16 port)
{
	u8 lo = in8(b, port);

	return (u16)(lo | in8(b, port) << 8);
}

static void program(struct board *b, unsigned ch, unsigned mode, bool bcd, u16 count)
{
	out8(b, 0x43, (u8)(ch << 6 | 0x30 | mode << 1 | bcd));
	out8(b, (u16)(0x40 + ch), (u8)count);
	out8(b, (u16)(0x40 + ch), (u8)(count >> 8));
}

static bool out2(struct board *b)
{
	return in8(b, 0x61) & 0x20;
}

/* Status byte of a channel by read-back. */
static u8 status(struct board *b, unsigned ch)
{
	out8(b, 0x43, (u8)(0xe0 | 2 << ch));
	return in8(b, (u16)(0x40 + ch));
}

static void test_mode_0(void **state)
{
	struct board *b = board_new(&i8254_class);

	out8(b, 0x61, 1);
	to_tick(b, 100);
	program(b, 2, 0, false, 1000);
	assert_false(out2(b));
	assert_int_equal(status(b, 2), 0x70); /* OUT low, null count, both bytes, mode 0 */
	to_tick(b, 101); /* loaded */
	assert_int_equal(status(b, 2), 0x30);
	assert_int_equal(read16(b, 0x42), 1000);
	to_tick(b, 601);
	assert_int_equal(read16(b, 0x42), 500);
	to_tick(b, 1100);
	assert_int_equal(read16(b, 0x42), 1);
	assert_false(out2(b));
	to_tick(b, 1101);
	assert_int_equal(read16(b, 0x42), 0);
	assert_true(out2(b));
	to_tick(b, 1102);
	assert_int_equal(read16(b, 0x42), 0xffff); /* it counts on */
	/* The first byte of a new count stops it, and OUT falls. */
	out8(b, 0x42, 5);
	assert_false(out2(b));
	to_tick(b, 2000);
	out8(b, 0x42, 0);
	to_tick(b, 2006);
	assert_true(out2(b));
	board_free(b);
}

static void test_mode_0_gate(void **state)
{
	struct board *b = board_new(&i8254_class);

	out8(b, 0x61, 1);
	program(b, 2, 0, false, 100);
	to_tick(b, 41);
	assert_int_equal(read16(b, 0x42), 60);
	out8(b, 0x61, 0);
	to_tick(b, 500);
	assert_int_equal(read16(b, 0x42), 60);
	assert_false(out2(b));
	out8(b, 0x61, 1);
	to_tick(b, 559);
	assert_false(out2(b));
	to_tick(b, 560);
	assert_true(out2(b));
	board_free(b);
}

static void test_mode_1(void **state)
{
	struct board *b = board_new(&i8254_class);

	program(b, 2, 1, false, 50);
	assert_true(out2(b));
	to_tick(b, 100);
	assert_true(out2(b));
	assert_int_equal(status(b, 2), 0xf2); /* waits for its trigger: null count */
	out8(b, 0x61, 1);
	to_tick(b, 101);
	assert_false(out2(b));
	to_tick(b, 130);
	out8(b, 0x61, 0); /* a low gate changes nothing; a new edge starts it again */
	out8(b, 0x61, 1);
	assert_false(out2(b));
	to_tick(b, 180);
	assert_false(out2(b));
	to_tick(b, 181);
	assert_true(out2(b));
	board_free(b);
}

static void test_mode_2(void **state)
{
	struct board *b = board_new(&i8254_class);

	out8(b, 0x61, 1);
	program(b, 2, 2, false, 10);
	for (unsigned t = 1; t < 45; t++) {
		to_tick(b, t);
		unsigned left = 10 - (t - 1) % 10;
		assert_int_equal(read16(b, 0x42), left);
		assert_int_equal(out2(b), left != 1);
	}
	/* A new count waits for the end of the cycle. */
	program(b, 2, 2, false, 100); /* control word: at once */
	to_tick(b, 50);
	assert_int_equal(read16(b, 0x42), 95);
	out8(b, 0x42, 20);
	out8(b, 0x42, 0);
	assert_int_equal(status(b, 2) & 0x40, 0x40);
	to_tick(b, 144);
	assert_int_equal(read16(b, 0x42), 1);
	to_tick(b, 145);
	assert_int_equal(status(b, 2) & 0x40, 0);
	assert_int_equal(read16(b, 0x42), 20);
	to_tick(b, 164);
	assert_int_equal(read16(b, 0x42), 1);
	/* The gate: OUT high while low, a new cycle after. */
	assert_false(out2(b));
	out8(b, 0x61, 0);
	assert_true(out2(b));
	to_tick(b, 200);
	out8(b, 0x61, 1);
	to_tick(b, 201);
	assert_int_equal(read16(b, 0x42), 20);
	board_free(b);
}

static void test_mode_3(void **state)
{
	struct board *b = board_new(&i8254_class);
	static const u16 odd[] = { 4, 2, 0, 4, 2 }, even[] = { 6, 4, 2, 6, 4, 2 };

	out8(b, 0x61, 1);
	program(b, 2, 3, false, 5);
	for (unsigned t = 1; t < 21; t++) {
		to_tick(b, t);
		assert_int_equal(read16(b, 0x42), odd[(t - 1) % 5]);
		assert_int_equal(out2(b), (t - 1) % 5 < 3);
	}
	program(b, 2, 7, false, 6); /* 7 is 3 */
	for (unsigned t = 21; t < 40; t++) {
		to_tick(b, t);
		assert_int_equal(read16(b, 0x42), even[(t - 21) % 6]);
		assert_int_equal(out2(b), (t - 21) % 6 < 3);
	}
	board_free(b);
}

static void test_mode_3_half_cycle(void **state)
{
	struct board *b = board_new(&i8254_class);

	out8(b, 0x61, 1);
	program(b, 2, 3, false, 100); /* high 1..50, low 51..100 */
	to_tick(b, 20);
	out8(b, 0x42, 20);
	out8(b, 0x42, 0);
	to_tick(b, 50);
	assert_true(out2(b));
	to_tick(b, 51);
	assert_false(out2(b)); /* the low half of the new count */
	assert_int_equal(read16(b, 0x42), 20);
	to_tick(b, 60);
	assert_false(out2(b));
	to_tick(b, 61);
	assert_true(out2(b));
	board_free(b);
}

static void test_modes_4_and_5(void **state)
{
	struct board *b = board_new(&i8254_class);

	out8(b, 0x61, 1);
	program(b, 2, 4, false, 10);
	to_tick(b, 10);
	assert_true(out2(b));
	to_tick(b, 11);
	assert_false(out2(b)); /* for one tick */
	to_tick(b, 12);
	assert_true(out2(b));
	assert_int_equal(read16(b, 0x42), 0xffff);
	out8(b, 0x61, 0);
	program(b, 2, 5, false, 10);
	to_tick(b, 30);
	out8(b, 0x61, 1);
	to_tick(b, 40);
	assert_true(out2(b));
	to_tick(b, 41);
	assert_false(out2(b));
	to_tick(b, 42);
	assert_true(out2(b));
	board_free(b);
}

static void test_bcd(void **state)
{
	struct board *b = board_new(&i8254_class);

	out8(b, 0x61, 1);
	program(b, 2, 0, true, 0x1000);
	to_tick(b, 2);
	assert_int_equal(read16(b, 0x42), 0x0999);
	to_tick(b, 1002);
	assert_int_equal(read16(b, 0x42), 0x9999);
	program(b, 2, 2, true, 0); /* 10000 */
	to_tick(b, 1004);
	assert_int_equal(read16(b, 0x42), 0x9999);
	to_tick(b, 11003);
	assert_int_equal(read16(b, 0x42), 0x0000);
	board_free(b);
}

static void test_bytes_and_latches(void **state)
{
	struct board *b = board_new(&i8254_class);

	out8(b, 0x61, 1);
	program(b, 2, 2, false, 0x1234);
	to_tick(b, 0x35);
	out8(b, 0x43, 0x80); /* latch */
	to_tick(b, 0x100);
	out8(b, 0x43, 0x80); /* the first is kept */
	assert_int_equal(in8(b, 0x42), 0x00);
	to_tick(b, 0x200);
	assert_int_equal(in8(b, 0x42), 0x12);
	assert_int_equal(in8(b, 0x42), 0x35); /* live: 0x1234 - 0x1ff */
	assert_int_equal(in8(b, 0x42), 0x10);
	/* Read-back of status and count of two channels: status first. */
	out8(b, 0x43, 0xc0 | 1 << 3 | 1 << 1);
	assert_int_equal(in8(b, 0x42), 0xb4);
	assert_int_equal(in8(b, 0x42), 0x35);
	assert_int_equal(in8(b, 0x42), 0x10);
	assert_int_equal(in8(b, 0x40) & 0x3f, 0x36);
	/* One byte only. */
	out8(b, 0x43, 0x90 | 2 << 1);
	out8(b, 0x42, 0x40);
	to_tick(b, 0x202);
	assert_int_equal(in8(b, 0x42), 0x3f);
	assert_int_equal(in8(b, 0x42), 0x3f);
	out8(b, 0x43, 0xa0 | 2 << 1);
	out8(b, 0x42, 0x40);
	to_tick(b, 0x204);
	assert_int_equal(in8(b, 0x42), 0x3f);
	out8(b, 0x43, 0x80);
	assert_int_equal(in8(b, 0x42), 0x3f);
	assert_int_equal(in8(b, 0x43), 0xff);
	board_free(b);
}

static void test_port_61(void **state)
{
	struct board *b = board_new(&i8254_class);
	int toggles = 0;
	u8 last = in8(b, 0x61) & 0x10;

	out8(b, 0x61, 0xff);
	assert_int_equal(in8(b, 0x61) & 0xcf, 0x0f);
	for (int i = 0; i < 1000; i++) {
		board_run(b, 1000);
		toggles += (in8(b, 0x61) & 0x10) != last;
		last = in8(b, 0x61) & 0x10;
	}
	assert_in_range(toggles, 65, 67); /* one each 15.085 us */
	board_free(b);
}

/* 1000 Hz for an hour: each edge is there, and none drifts. */
static void test_irq_does_not_drift(void **state)
{
	struct board *b = board_new(&i8254_class);
	u64 expected;

	program(b, 0, 2, false, 1193);
	board_run_counting(b, 1000, IRQ0); /* what OUT's first rise left */
	expected = (3600ull * HZ - 1) / 1193;
	int n = board_run_counting(b, 3600ull * 1000000000ull - b->clock.icount, IRQ0);
	assert_in_range(n, expected - 1, expected);
	/* The next one comes at its tick, not sooner. */
	u64 tick = 1 + (expected + 1) * 1193;
	to_tick(b, tick - 1);
	assert_false(i8259_output(b->irqs.pic));
	to_tick(b, tick);
	assert_int_equal(board_take(b), IRQ0);
	board_free(b);
}

static void test_irq_modes(void **state)
{
	struct board *b = board_new(&i8254_class);

	while (board_take(b) >= 0)
		;
	program(b, 0, 0, false, 1000); /* once */
	assert_int_equal(board_run_counting(b, 800000, IRQ0), 0);
	assert_int_equal(board_run_counting(b, 100000000, IRQ0), 1);
	program(b, 0, 4, false, 1000); /* once, after the strobe */
	assert_int_equal(board_run_counting(b, 800000, IRQ0), 0);
	assert_int_equal(board_run_counting(b, 100000000, IRQ0), 1);
	to_tick(b, 1000000);
	program(b, 0, 4, false, 1000);
	to_tick(b, 1001001); /* the strobe begins; it ends with the rise */
	assert_int_equal(board_take(b), -1);
	to_tick(b, 1001002);
	assert_int_equal(board_take(b), IRQ0);
	program(b, 0, 3, false, 0); /* 18.2 Hz */
	assert_int_equal(board_run_counting(b, 1000000000, IRQ0), 18);
	program(b, 0, 0, false, 0); /* the way in which Linux stops it */
	out8(b, 0x43, 0x30);
	assert_int_equal(board_run_counting(b, 1000000000, IRQ0), 0);
	program(b, 0, 1, false, 10); /* no gate, no trigger */
	while (board_take(b) >= 0)
		;
	assert_int_equal(board_run_counting(b, 1000000000, IRQ0), 0);
	board_free(b);
}

static void test_new_count_keeps_ticking(void **state)
{
	struct board *b = board_new(&i8254_class);

	program(b, 0, 3, false, 10000);
	board_run_counting(b, 1000000, IRQ0);
	out8(b, 0x40, 0xe8); /* 1000, from the half cycle on */
	out8(b, 0x40, 0x03);
	/* high to tick 5001, low half of the new count to 5501, then each 1000 */
	to_tick(b, 5500);
	assert_int_equal(board_take(b), -1);
	to_tick(b, 5501);
	assert_int_equal(board_take(b), IRQ0);
	to_tick(b, 6500);
	assert_int_equal(board_take(b), -1);
	to_tick(b, 6501);
	assert_int_equal(board_take(b), IRQ0);
	board_free(b);
}

/* Those of an eighth of a second are made up for; then it goes on in phase. */
static void test_stall_is_made_up_for(void **state)
{
	struct board *b = board_new(&i8254_class);

	program(b, 0, 2, false, 1193);
	board_run_counting(b, 5000000, IRQ0);
	board_stall(b, 10000000000ull);
	assert_int_equal(board_take(b), IRQ0);
	assert_int_equal(board_take(b), -1);
	assert_int_equal(board_run_counting(b, 100000000, IRQ0), 100 + 125);
	assert_int_equal(board_run_counting(b, 100000000, IRQ0), 100);
	board_free(b);
}

/* An edge that is due when the guest writes, before the timer's thread came to it. */
static void test_late_timer_loses_nothing(void **state)
{
	struct board *b = board_new(&i8254_class);

	program(b, 0, 2, false, 1193);
	board_run_counting(b, 1500000, IRQ0);
	b->clock.icount += 1000000; /* nobody runs the timers */
	assert_int_equal(board_take(b), -1);
	program(b, 0, 2, false, 1193);
	assert_int_equal(board_take(b), IRQ0);
	board_free(b);
}

static void test_short_counts_do_not_storm(void **state)
{
	struct board *b = board_new(&i8254_class);

	program(b, 0, 2, false, 2);
	assert_in_range(board_run_counting(b, 10000000, IRQ0), 500, 1001);
	program(b, 0, 2, false, 1); /* not a count of mode 2: no edges */
	board_run_counting(b, 1000000, IRQ0);
	assert_int_equal(board_run_counting(b, 10000000, IRQ0), 0);
	board_free(b);
}

/* Linux's calibration: gate on, mode 0, wait for OUT2; the elapsed time is the count's. */
static void test_calibration(void **state)
{
	struct board *b = board_new(&i8254_class);
	u64 start;

	out8(b, 0x61, (u8)((in8(b, 0x61) & ~2) | 1));
	out8(b, 0x43, 0xb0);
	out8(b, 0x42, 0x9c); /* 50 ms: 59659 + 1 */
	out8(b, 0x42, 0xe9);
	start = b->clock.icount;
	while (!out2(b))
		board_run(b, 500);
	assert_in_range(b->clock.icount - start, 0xe99c * 1000000000ull / HZ, 0xe99c * 1000000000ull / HZ + 1500);
	board_free(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_mode_0),
		cmocka_unit_test(test_mode_0_gate),
		cmocka_unit_test(test_mode_1),
		cmocka_unit_test(test_mode_2),
		cmocka_unit_test(test_mode_3),
		cmocka_unit_test(test_mode_3_half_cycle),
		cmocka_unit_test(test_modes_4_and_5),
		cmocka_unit_test(test_bcd),
		cmocka_unit_test(test_bytes_and_latches),
		cmocka_unit_test(test_port_61),
		cmocka_unit_test(test_irq_does_not_drift),
		cmocka_unit_test(test_irq_modes),
		cmocka_unit_test(test_new_count_keeps_ticking),
		cmocka_unit_test(test_stall_is_made_up_for),
		cmocka_unit_test(test_late_timer_loses_nothing),
		cmocka_unit_test(test_short_counts_do_not_storm),
		cmocka_unit_test(test_calibration),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
