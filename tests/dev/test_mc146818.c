/* Clock and CMOS. In icount mode the clock starts on 2025-01-01 00:00:00 UTC, a Wednesday. */
#include "board.h"

#include <time.h>

#define S 1000000000ull
#define IRQ8 0x28

static u8 get(struct board *b, u8 reg)
{
	out8(b, 0x70, reg);
	return in8(b, 0x71);
}

static void set(struct board *b, u8 reg, u8 val)
{
	out8(b, 0x70, reg);
	out8(b, 0x71, val);
}

/* Compares hour, minute, second, day, month, year, century as they stand in the registers. */
static void is_time(struct board *b, u8 h, u8 m, u8 s, u8 day, u8 month, u8 year, u8 century)
{
	assert_int_equal(get(b, 0), s);
	assert_int_equal(get(b, 2), m);
	assert_int_equal(get(b, 4), h);
	assert_int_equal(get(b, 7), day);
	assert_int_equal(get(b, 8), month);
	assert_int_equal(get(b, 9), year);
	assert_int_equal(get(b, 0x32), century);
}

/* As Linux sets it: stopped by SET, the divider reset meanwhile. */
static void set_time(struct board *b, u8 h, u8 m, u8 s, u8 day, u8 month, u8 year, u8 century)
{
	u8 reg_b = get(b, 0xb), reg_a = get(b, 0xa) & 0x7f;

	set(b, 0xb, reg_b | 0x80);
	set(b, 0xa, reg_a | 0x70);
	set(b, 9, year);
	set(b, 8, month);
	set(b, 7, day);
	set(b, 4, h);
	set(b, 2, m);
	set(b, 0, s);
	set(b, 0x32, century);
	set(b, 0xb, reg_b);
	set(b, 0xa, reg_a);
}

static void test_start_and_advance(void **state)
{
	struct board *b = board_new(&mc146818_class);

	assert_int_equal(get(b, 0xa), 0x26);
	assert_int_equal(get(b, 0xb), 0x02);
	assert_int_equal(get(b, 0xd), 0x80);
	is_time(b, 0, 0, 0, 1, 1, 0x25, 0x20);
	assert_int_equal(get(b, 6), 4);
	board_run(b, 59 * S);
	is_time(b, 0, 0, 0x59, 1, 1, 0x25, 0x20);
	board_run(b, (23 * 3600 + 58 * 60 + 59) * S); /* 23:59 ... */
	is_time(b, 0x23, 0x59, 0x58, 1, 1, 0x25, 0x20);
	board_run(b, 2 * S);
	is_time(b, 0, 0, 0, 2, 1, 0x25, 0x20);
	assert_int_equal(get(b, 6), 5);
	assert_int_equal(in8(b, 0x70), 0xff);
	board_free(b);
}

static void test_host_date(void **state)
{
	struct board *b = board_new(NULL);
	struct error e;
	struct clock real;
	struct device links = b->links, *d;
	time_t now = time(NULL);
	struct tm tm;

	assert_true(clock_init(&real, false, &e));
	links.clock = &real;
	d = device_new(&mc146818_class, &links, &e);
	assert_non_null(d);
	gmtime_r(&now, &tm);
	u8 year = get(b, 9), century = get(b, 0x32);
	int got = ((century >> 4) * 10 + (century & 15)) * 100 + (year >> 4) * 10 + (year & 15);
	assert_in_range(got, tm.tm_year + 1900, tm.tm_year + 1901);
	u8 minute = get(b, 2);
	assert_in_range((((minute >> 4) * 10 + (minute & 15)) - tm.tm_min + 60) % 60, 0, 1);
	device_free(d);
	clock_destroy(&real);
	board_free(b);
}

static void test_formats(void **state)
{
	struct board *b = board_new(&mc146818_class);

	set_time(b, 0x13, 0x45, 0x30, 0x31, 0x12, 0x99, 0x19);
	is_time(b, 0x13, 0x45, 0x30, 0x31, 0x12, 0x99, 0x19);
	set(b, 0xb, 0x06);
	is_time(b, 13, 45, 30, 31, 12, 99, 19);
	set(b, 0xb, 0x04);
	assert_int_equal(get(b, 4), 0x81);
	set(b, 0xb, 0x00);
	is_time(b, 0x81, 0x45, 0x30, 0x31, 0x12, 0x99, 0x19);
	set(b, 4, 0x12); /* 12 in the morning is midnight */
	set(b, 0xb, 0x02);
	assert_int_equal(get(b, 4), 0);
	set(b, 0xb, 0x00);
	set(b, 4, 0x92);
	set(b, 0xb, 0x02);
	assert_int_equal(get(b, 4), 0x12);
	board_free(b);
}

static void test_calendar(void **state)
{
	struct board *b = board_new(&mc146818_class);

	set_time(b, 0x23, 0x59, 0x59, 0x28, 2, 0x24, 0x20);
	board_run(b, S / 2 - 1); /* half a second after the divider's release */
	is_time(b, 0x23, 0x59, 0x59, 0x28, 2, 0x24, 0x20);
	board_run(b, 1);
	is_time(b, 0, 0, 0, 0x29, 2, 0x24, 0x20);
	board_run(b, 86400 * S);
	is_time(b, 0, 0, 0, 1, 3, 0x24, 0x20);
	set_time(b, 0x23, 0x59, 0x59, 0x28, 2, 0, 0x21); /* 2100 has no leap day */
	board_run(b, S);
	is_time(b, 0, 0, 0, 1, 3, 0, 0x21);
	set_time(b, 0x23, 0x59, 0x59, 0x31, 0x12, 0x99, 0x19);
	board_run(b, S);
	is_time(b, 0, 0, 0, 1, 1, 0, 0x20);
	board_free(b);
}

static void test_set_stops_updates(void **state)
{
	struct board *b = board_new(&mc146818_class);

	board_run(b, 10 * S + 300);
	set(b, 0xb, 0x82);
	board_run(b, 5 * S);
	assert_int_equal(get(b, 0), 0x10);
	set(b, 0, 0x77); /* kept as it is while stopped */
	assert_int_equal(get(b, 0), 0x77);
	set(b, 0, 0x20);
	set(b, 0xb, 0x02);
	board_run(b, 2 * S);
	assert_int_equal(get(b, 0), 0x22);
	/* Nonsense goes on as some date. */
	for (u8 i = 0; i < 10; i++)
		set(b, i, 0xff);
	set(b, 0x32, 0xff);
	board_run(b, 2 * S);
	get(b, 0);
	board_free(b);
}

static void test_update_in_progress(void **state)
{
	struct board *b = board_new(&mc146818_class);

	assert_int_equal(get(b, 0xa) & 0x80, 0);
	board_run(b, S - 2000000);
	assert_int_equal(get(b, 0xa) & 0x80, 0x80);
	assert_int_equal(get(b, 0), 0);
	board_run(b, 2000000);
	assert_int_equal(get(b, 0xa) & 0x80, 0);
	assert_int_equal(get(b, 0), 1);
	set(b, 0xb, 0x82);
	board_run(b, S - 2000000);
	assert_int_equal(get(b, 0xa) & 0x80, 0);
	board_free(b);
}

static void test_update_interrupt(void **state)
{
	struct board *b = board_new(&mc146818_class);

	get(b, 0xc);
	board_run(b, 3 * S);
	assert_int_equal(get(b, 0xc) & 0x90, 0x10); /* the flag sets without its enable */
	assert_int_equal(get(b, 0xc) & 0x10, 0);
	set(b, 0xb, 0x12);
	board_run(b, S - 1);
	assert_int_equal(board_take(b), -1);
	board_run(b, 1);
	assert_int_equal(board_take(b), IRQ8);
	board_run(b, 5 * S); /* no read of register C, no further edge */
	assert_int_equal(board_take(b), -1);
	assert_int_equal(get(b, 0xc) & 0x90, 0x90);
	assert_int_equal(get(b, 0xc), 0);
	board_run(b, S);
	assert_int_equal(board_take(b), IRQ8);
	get(b, 0xc);
	set(b, 0xb, 0x92); /* SET clears UIE */
	assert_int_equal(get(b, 0xb), 0x82);
	board_free(b);
}

static void test_periodic_interrupt(void **state)
{
	struct board *b = board_new(&mc146818_class);
	static const struct { u8 rate; unsigned hz; } rates[] = {
		{ 1, 256 }, { 2, 128 }, { 3, 8192 }, { 6, 1024 }, { 13, 8 }, { 15, 2 },
	};

	for (unsigned i = 0; i < ARRAY_LEN(rates); i++) {
		unsigned n = 0;

		set(b, 0xa, (u8)(0x20 | rates[i].rate));
		set(b, 0xb, 0x42);
		get(b, 0xc);
		while (board_take(b) >= 0)
			;
		for (u64 end = b->clock.icount + 2 * S; b->clock.icount < end; ) {
			board_run(b, 10000);
			if (board_take(b) == IRQ8) {
				assert_int_equal(get(b, 0xc) & 0xc0, 0xc0);
				n++;
			}
		}
		assert_in_range(n, 2 * rates[i].hz - 1, 2 * rates[i].hz + 1);
	}
	set(b, 0xa, 0x20); /* rate 0: none */
	get(b, 0xc);
	board_run(b, S);
	assert_int_equal(get(b, 0xc) & 0x40, 0);
	/* It goes on with SET, and not with the divider in reset. */
	set(b, 0xa, 0x26);
	set(b, 0xb, 0xc2);
	board_run(b, S / 100);
	assert_int_equal(get(b, 0xc) & 0xc0, 0xc0);
	set(b, 0xa, 0x76);
	get(b, 0xc);
	board_run(b, S);
	assert_int_equal(get(b, 0xc), 0);
	board_free(b);
}

static void test_alarm(void **state)
{
	struct board *b = board_new(&mc146818_class);

	set(b, 1, 0x30);
	set(b, 3, 0x02);
	set(b, 5, 0x01);
	set(b, 0xb, 0x22);
	board_run(b, (3600 + 2 * 60 + 30) * S - 1);
	assert_int_equal(board_take(b), -1);
	board_run(b, 1);
	assert_int_equal(board_take(b), IRQ8);
	is_time(b, 1, 2, 0x30, 1, 1, 0x25, 0x20);
	assert_int_equal(get(b, 0xc) & 0xa0, 0xa0);
	board_run(b, 86400 * S - 1);
	assert_int_equal(board_take(b), -1);
	board_run(b, 1);
	assert_int_equal(board_take(b), IRQ8); /* each day */
	get(b, 0xc);
	set(b, 5, 0xc0); /* each hour */
	board_run(b, 3600 * S);
	assert_int_equal(board_take(b), IRQ8);
	get(b, 0xc);
	set(b, 1, 0xff);
	set(b, 3, 0xff); /* each second */
	board_run(b, S);
	assert_int_equal(board_take(b), IRQ8);
	get(b, 0xc);
	set(b, 1, 0x75); /* never */
	board_run(b, 2 * 86400 * S);
	assert_int_equal(get(b, 0xc) & 0x20, 0);
	board_free(b);
}

static void test_memory(void **state)
{
	struct board *b = board_new(&mc146818_class);

	for (unsigned i = 0x33; i < 0x80; i++)
		set(b, (u8)i, (u8)(i * 3));
	for (unsigned i = 0x33; i < 0x80; i++)
		assert_int_equal(get(b, (u8)(i | 0x80)), (u8)(i * 3)); /* bit 7 is the NMI mask */
	for (unsigned i = 0; i < 0x80; i++) {
		out8(b, 0x72, (u8)i);
		out8(b, 0x73, (u8)(i ^ 0x55));
	}
	out8(b, 0x72, 0x10);
	assert_int_equal(in8(b, 0x73), 0x45);
	assert_int_equal(get(b, 0x40), 0xc0);

	mc146818_set_memory(b->dev, 3ull << 30, 5ull << 30);
	assert_int_equal(get(b, 0x15) | get(b, 0x16) << 8, 640);
	assert_int_equal(get(b, 0x17) | get(b, 0x18) << 8, 0xffff);
	assert_int_equal(get(b, 0x30) | get(b, 0x31) << 8, 0xffff);
	assert_int_equal(get(b, 0x34) | get(b, 0x35) << 8, (3072 - 16) * 16);
	assert_int_equal(get(b, 0x5b) | get(b, 0x5c) << 8 | get(b, 0x5d) << 16, 5 << 14);
	mc146818_set_memory(b->dev, 8 << 20, 0);
	assert_int_equal(get(b, 0x17) | get(b, 0x18) << 8, 7 << 10);
	assert_int_equal(get(b, 0x34) | get(b, 0x35) << 8, 0);
	unsigned sum = 0;
	for (u8 i = 0x10; i < 0x2e; i++)
		sum += get(b, i);
	assert_int_equal(get(b, 0x2e) << 8 | get(b, 0x2f), sum & 0xffff);
	/* A reset of the machine keeps all that. */
	set(b, 0xb, 0x72);
	board_run(b, 5 * S);
	b->dev->cls->reset(b->dev);
	assert_int_equal(get(b, 0xb), 0x02);
	assert_int_equal(get(b, 0), 0x05);
	assert_int_equal(get(b, 0x15), 0x80);
	board_free(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_start_and_advance),
		cmocka_unit_test(test_host_date),
		cmocka_unit_test(test_formats),
		cmocka_unit_test(test_calendar),
		cmocka_unit_test(test_set_stops_updates),
		cmocka_unit_test(test_update_in_progress),
		cmocka_unit_test(test_update_interrupt),
		cmocka_unit_test(test_periodic_interrupt),
		cmocka_unit_test(test_alarm),
		cmocka_unit_test(test_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
