/* ACPI power management: timer, status, SCI, sleep. */
#include "board.h"

#define EVT 0x600
#define CNT 0x604
#define TMR 0x608
#define GPE 0x620
#define SCI 9

static struct board *b;
static struct device *pm;

static int setup(void **state)
{
	b = board_bare();
	pm = board_device(b, &acpi_pm_class);
	return 0;
}

static int teardown(void **state)
{
	device_free(pm);
	board_free(b);
	return 0;
}

static u32 in(u16 port, unsigned size) { return mem_port_read(&b->mem, port, size); }
static void out(u16 port, u32 val, unsigned size) { mem_port_write(&b->mem, port, val, size); }
static bool sci(void) { return b->irqs.level[SCI]; }

static void button(void)
{
	mem_lock(&b->mem);
	acpi_pm_power_button(pm);
	mem_unlock(&b->mem);
}

static void timer(void **state)
{
	assert_int_equal(in(TMR, 4), 0);
	board_at(b, 1000000000);
	assert_int_equal(in(TMR, 4), 3579545);
	board_at(b, 3600000000000);
	assert_int_equal(in(TMR, 4), (u32)(3579545ull * 3600));
	out(TMR, 0, 4);
	assert_int_equal(in(TMR, 4), (u32)(3579545ull * 3600));
	assert_int_equal(in(TMR + 1, 2), (u16)(3579545ull * 3600 >> 8));
}

/* First ns at which the timer's count is there. */
static u64 at_count(u64 count)
{
	return (u64)(((u128)count * 1000000000 + 3579544) / 3579545);
}

static void timer_wrap(void **state)
{
	out(0xb2, ACPI_ENABLE_CMD, 1);
	out(EVT + 2, 1, 2);
	for (u64 n = 1; n < 6; n++) {
		board_at(b, at_count(n << 31) - 1);
		assert_int_equal(in(TMR, 4), (u32)((n << 31) - 1));
		assert_int_equal(in(EVT, 2), 0);
		assert_false(sci());
		board_at(b, at_count(n << 31));
		assert_int_equal(in(TMR, 4), (u32)(n << 31));
		assert_true(sci());
		assert_int_equal(in(EVT, 2), 1);
		out(EVT, 1, 2);
		assert_false(sci());
		assert_int_equal(in(EVT, 2), 0);
	}
	/* The status is right even when nobody ran the timers. */
	clock_advance_to(&b->clock, at_count((7ull << 31) + 1000));
	assert_int_equal(in(EVT, 2), 1);
	assert_true(sci());
	out(EVT, 1, 2);
	board_at(b, at_count(8ull << 31) - 1);
	assert_int_equal(in(EVT, 2), 0);
	board_at(b, at_count(8ull << 31));
	assert_int_equal(in(EVT, 2), 1);
}

static void sci_rules(void **state)
{
	button();
	assert_int_equal(in(EVT, 4), 0x100);
	out(EVT + 2, 0x100, 2);
	assert_false(sci()); /* not without SCI_EN */
	out(0xb2, ACPI_ENABLE_CMD, 1);
	assert_int_equal(in(CNT, 2), 1);
	assert_int_equal(in(0xb2, 1), ACPI_ENABLE_CMD);
	assert_true(sci());
	out(EVT + 2, 0, 2);
	assert_false(sci());
	out(EVT + 2, 0x100, 2);
	out(EVT, 0xfeff, 2); /* all but its bit */
	assert_true(sci());
	out(EVT + 1, 1, 1); /* its byte alone */
	assert_false(sci());
	assert_int_equal(in(EVT + 2, 2), 0x100);
	button();
	out(0xb2, ACPI_DISABLE_CMD, 1);
	assert_false(sci());
	assert_int_equal(in(CNT, 2), 0);
	/* A dword write clears status and sets enable in one. */
	out(EVT, 0x00010100, 4);
	assert_int_equal(in(EVT, 4), 0x00010000);
	/* An unaligned word is the last byte of one register and the first of the next. */
	out(EVT + 3, 0x0101, 2);
	assert_int_equal(in(EVT + 2, 2), 0x101);
	assert_int_equal(in(CNT, 2), 1);
	assert_int_equal(in(EVT + 3, 2), 0x0101);
	/* The status byte of the command port is plain. */
	out(0xb3, 0x5a, 1);
	assert_int_equal(in(0xb3, 1), 0x5a);
}

static void gpe(void **state)
{
	out(0xb2, ACPI_ENABLE_CMD, 1);
	mem_lock(&b->mem);
	acpi_pm_gpe(pm, 2);
	acpi_pm_gpe(pm, 16); /* not there */
	mem_unlock(&b->mem);
	assert_int_equal(in(GPE, 4), 4);
	assert_false(sci());
	out(GPE + 2, 0xffff, 2);
	assert_true(sci());
	out(GPE, 4, 1);
	assert_false(sci());
	assert_int_equal(in(GPE, 4), 0xffff0000);
}

static void sleep_types(void **state)
{
	out(CNT, 5 << 10, 2); /* no SLP_EN */
	assert_int_equal(b->power_offs, 0);
	assert_int_equal(in(CNT, 2), 5 << 10);
	out(CNT, 5 << 10 | 0x2000, 2);
	assert_int_equal(b->power_offs, 1);
	assert_int_equal(in(CNT, 2), 5 << 10); /* SLP_EN reads as 0 */
	out(CNT, 1 << 10 | 0x2000, 2);
	assert_int_equal(b->sleeps, 1);
	assert_int_equal(b->sleep_typ, 1);
	mem_lock(&b->mem);
	acpi_pm_wake(pm);
	mem_unlock(&b->mem);
	assert_int_equal(in(EVT, 2), 0x8000);
	out(CNT, 3 << 10 | 0x2000, 2);
	assert_int_equal(b->power_offs, 1);
	assert_int_equal(b->sleeps, 1);
	/* Firmware's place and type; a byte is enough. */
	out(0xb004, 0x2000, 2);
	assert_int_equal(b->power_offs, 2);
	out(CNT + 1, 5 << 2 | 0x20, 1);
	assert_int_equal(b->power_offs, 3);
	assert_int_equal(in(0xb008, 4), in(TMR, 4));
}

static void fuzz(void **state)
{
	u64 s = 5;
	int sci_seen = 0;

	for (int i = 0; i < 100000; i++) {
		u64 v = random_value(&s), pick = next_random(&s);
		u16 port = pick & 7 ? (u16)(EVT + (pick >> 8 & 63)) : 0xb2 + (pick >> 8 & 1);
		unsigned size = 1u << (pick >> 16) % 3;

		if ((pick & 7) == 1)
			v = pick & 8 ? ACPI_ENABLE_CMD : ACPI_DISABLE_CMD, port = 0xb2, size = 1;
		if (pick & 0x80)
			in(port, size);
		else
			out(port, (u32)v, size);
		if ((pick & 0x70) == 0)
			button();
		board_advance(b, pick >> 32 & 0xffffff);
		u32 evt = in(EVT, 4), g = in(GPE, 4);
		bool want = (in(CNT, 2) & 1) && ((evt & evt >> 16 & 0x4721) || (g & g >> 16 & 0xffff));
		assert_int_equal(sci(), want);
		sci_seen += want;
	}
	assert_in_range(sci_seen, 500, 99500);
	round_trip(pm);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(timer), T(timer_wrap), T(sci_rules), T(gpe), T(sleep_types), T(fuzz),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
