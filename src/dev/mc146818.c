/* mc146818: real-time clock and CMOS memory. Motorola MC146818A datasheet; the 256 bytes are
 * the PIIX3's and its followers'.
 *
 *   0x70, 0x71  index (bit 7: NMI mask) and data; the index cannot be read
 *   0x72, 0x73  the same for the upper 128 bytes
 *
 *   00 02 04    seconds, minutes, hours       01 03 05  their alarms; 11xxxxxx: any
 *   06..09, 32  weekday, day, month, year, century
 *   0a  7 UIP; 6:4 divider: 11x holds it in reset; 3:0 rate of the periodic interrupt
 *   0b  7 SET; 6 PIE; 5 AIE; 4 UIE; 2 binary; 1 24-hour
 *   0c  7 IRQF; 6 PF; 5 AF; 4 UF; a read clears it
 *   0d  7 battery good
 *
 * The divider is a count of ns since div_base. A second of its is a second of the clock:
 * seconds since 1970 = sec_base + divider / 1 s. With SET the update stops, the divider goes
 * on, and the registers hold what the guest puts there; in reset the divider stands, and the
 * first update comes half a second after its release.
 *
 * Invariants
 *  1. Bytes 00, 02, 04, 06..09, 32 are only up to date after regs_refresh(), and only the
 *     guest's own while updates are stopped.
 *  2. Flags of register C up to now are set by sync(); it runs before anything looks at them or
 *     changes what they depend on. Flags do not wait for their enable bits.
 *  3. The timer is armed only while an enabled flag is clear, for the time when that one sets.
 *
 * The date is the host's UTC at init; with the clock in icount mode it is ICOUNT_EPOCH, so that
 * two runs are equal. Left out: square wave, daylight saving, dividers for other crystals.
 * Threading: machine lock held. */
#include "dev/dev.h"

#include <time.h>

#define NS 1000000000ll
#define DAY 86400ll
#define ICOUNT_EPOCH 1735689600ll       /* 2025-01-01 00:00:00 UTC, a Wednesday */
#define UIP_NS (244000 + 1984000)       /* warning, then the update cycle at 32.768 kHz */
#define CRYSTAL_HZ 32768

enum {
	SECONDS = 0, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM,
	WEEKDAY, DAY_OF_MONTH, MONTH, YEAR, REG_A, REG_B, REG_C, REG_D,
	EQUIPMENT = 0x14, CHECKSUM = 0x2e, CENTURY = 0x32,
};
enum { A_UIP = 0x80, A_DIVIDER_RESET = 0x60, A_RATE = 0x0f };
enum { B_SET = 0x80, B_PIE = 0x40, B_AIE = 0x20, B_UIE = 0x10, B_SQWE = 0x08, B_BINARY = 0x04, B_24H = 0x02 };
enum { C_IRQF = 0x80, C_PF = 0x40, C_AF = 0x20, C_UF = 0x10, C_FLAGS = 0x70 };
#define D_VRT 0x80

struct mc146818 {
	struct device d;
	u8 cmos[256];
	u8 index, index_high;
	u8 weekday_shift; /* days that the guest's weekday differs from the calendar's */
	i64 div_base;     /* ns of the machine's clock at which the divider was 0 */
	i64 sec_base;     /* seconds since 1970 when the divider was 0 */
	i64 synced;       /* divider, ns, up to which flags are set */
	struct timer timer;
};

/* ---- calendar: proleptic Gregorian, days since 1970 -------------------------------------- */

struct date { i64 year; int month, day, hour, minute, second, weekday; };

/* Floor division: both results right for times before the origin. */
static i64 div_floor(i64 a, i64 b)
{
	return a / b - (a % b < 0);
}

static i64 mod_floor(i64 a, i64 b)
{
	return a - div_floor(a, b) * b;
}

/* month 1..12 of any year; day may lie outside the month. Years begin in March here, so that
 * the leap day comes last; 400 of them have 146097 days. */
static i64 days_of(i64 year, i64 month, i64 day)
{
	i64 y = year - (month <= 2), era = div_floor(y, 400), yoe = y - era * 400;
	i64 doy = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1;

	return era * 146097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719468;
}

static struct date date_of(i64 t)
{
	i64 days = div_floor(t, DAY), sod = t - days * DAY;
	i64 z = days + 719468, era = div_floor(z, 146097), doe = z - era * 146097;
	i64 yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
	i64 doy = doe - (365 * yoe + yoe / 4 - yoe / 100), mp = (5 * doy + 2) / 153;
	int month = (int)(mp < 10 ? mp + 3 : mp - 9);

	return (struct date){
		.year = yoe + era * 400 + (month <= 2), .month = month,
		.day = (int)(doy - (153 * mp + 2) / 5 + 1),
		.hour = (int)(sod / 3600), .minute = (int)(sod / 60 % 60), .second = (int)(sod % 60),
		.weekday = (int)mod_floor(days + 4, 7), /* 1970-01-01 was a Thursday */
	};
}

/* ---- the registers' number formats --------------------------------------------------------- */

static u8 encode(const struct mc146818 *r, int v)
{
	return (u8)(r->cmos[REG_B] & B_BINARY ? v : v / 10 << 4 | v % 10);
}

/* Any byte has a value; those that are no date are folded into one where they are used. */
static int decode(const struct mc146818 *r, u8 v)
{
	return r->cmos[REG_B] & B_BINARY ? v : (v >> 4) * 10 + (v & 15);
}

static u8 encode_hour(const struct mc146818 *r, int h)
{
	if (r->cmos[REG_B] & B_24H)
		return encode(r, h);
	return encode(r, h % 12 ? h % 12 : 12) | (h >= 12 ? 0x80 : 0);
}

static int decode_hour(const struct mc146818 *r, u8 v)
{
	if (r->cmos[REG_B] & B_24H)
		return decode(r, v);
	return decode(r, v & 0x7f) % 12 + (v & 0x80 ? 12 : 0);
}

/* ---- time ------------------------------------------------------------------------------------ */

static bool divider_runs(const struct mc146818 *r)
{
	return (r->cmos[REG_A] & A_DIVIDER_RESET) != A_DIVIDER_RESET;
}

static bool updates_run(const struct mc146818 *r)
{
	return divider_runs(r) && !(r->cmos[REG_B] & B_SET);
}

static i64 divider(const struct mc146818 *r)
{
	return (i64)clock_ns(r->d.clock) - r->div_base;
}

static i64 seconds_now(const struct mc146818 *r)
{
	return r->sec_base + div_floor(divider(r), NS);
}

/* Brings the registers of date and time up to now. */
static void regs_refresh(struct mc146818 *r)
{
	if (!updates_run(r))
		return;
	struct date t = date_of(seconds_now(r));

	r->cmos[SECONDS] = encode(r, t.second);
	r->cmos[MINUTES] = encode(r, t.minute);
	r->cmos[HOURS] = encode_hour(r, t.hour);
	r->cmos[WEEKDAY] = encode(r, (t.weekday + r->weekday_shift) % 7 + 1);
	r->cmos[DAY_OF_MONTH] = encode(r, t.day);
	r->cmos[MONTH] = encode(r, t.month);
	r->cmos[YEAR] = encode(r, (int)mod_floor(t.year, 100));
	r->cmos[CENTURY] = encode(r, (int)mod_floor(div_floor(t.year, 100), 100));
}

/* Time goes on from what the registers say. */
static void regs_apply(struct mc146818 *r)
{
	i64 year = decode(r, r->cmos[CENTURY]) * 100 + decode(r, r->cmos[YEAR]);
	i64 month = mod_floor(decode(r, r->cmos[MONTH]) - 1, 12) + 1;
	i64 days = days_of(year, month, decode(r, r->cmos[DAY_OF_MONTH]));
	i64 t = days * DAY + decode_hour(r, r->cmos[HOURS]) * 3600 +
		decode(r, r->cmos[MINUTES]) * 60 + decode(r, r->cmos[SECONDS]);

	r->sec_base = t - div_floor(divider(r), NS);
	r->weekday_shift = (u8)mod_floor(decode(r, r->cmos[WEEKDAY]) - 1 - date_of(t).weekday, 7);
}

/* ---- flags and the interrupt ----------------------------------------------------------------- */

/* Ticks of the crystal a period of the periodic flag takes; 0: none. */
static i64 period(const struct mc146818 *r)
{
	unsigned rate = r->cmos[REG_A] & A_RATE;

	if (rate == 0)
		return 0;
	return 1ll << (rate < 3 ? rate + 6 : rate - 1);
}

static i64 periods_until(i64 div, i64 ticks)
{
	return div <= 0 ? 0 : (i64)((u128)div * CRYSTAL_HZ / NS) / ticks;
}

static bool alarm_is(const struct mc146818 *r, unsigned reg, u8 val)
{
	return (r->cmos[reg] & 0xc0) == 0xc0 || r->cmos[reg] == val;
}

static bool alarm_possible(const struct mc146818 *r, unsigned reg, int n)
{
	for (int v = 0; v < n; v++)
		if (alarm_is(r, reg, reg == HOURS_ALARM ? encode_hour(r, v) : encode(r, v)))
			return true;
	return false;
}

/* The first second after t at which the alarm is due; -1: never. Steps over hours and minutes
 * that do not match, and each part has a match, so it ends after 24 + 60 + 60 steps and some. */
static i64 alarm_after(const struct mc146818 *r, i64 t)
{
	if (!alarm_possible(r, HOURS_ALARM, 24) || !alarm_possible(r, MINUTES_ALARM, 60) ||
	    !alarm_possible(r, SECONDS_ALARM, 60))
		return -1;
	for (i64 s = t + 1; s <= t + DAY; ) {
		i64 sod = mod_floor(s, DAY);

		if (!alarm_is(r, HOURS_ALARM, encode_hour(r, (int)(sod / 3600))))
			s += 3600 - sod % 3600;
		else if (!alarm_is(r, MINUTES_ALARM, encode(r, (int)(sod / 60 % 60))))
			s += 60 - sod % 60;
		else if (!alarm_is(r, SECONDS_ALARM, encode(r, (int)(sod % 60))))
			s++;
		else
			return s;
	}
	return -1;
}

static void sync(struct mc146818 *r)
{
	i64 now = divider(r), ticks = period(r);

	if (!divider_runs(r) || now <= r->synced)
		return;
	if (ticks && periods_until(now, ticks) > periods_until(r->synced, ticks))
		r->cmos[REG_C] |= C_PF;
	if (updates_run(r)) {
		i64 from = r->sec_base + div_floor(r->synced, NS), to = seconds_now(r);

		if (to > from) {
			i64 alarm = alarm_after(r, from);

			r->cmos[REG_C] |= C_UF;
			if (alarm >= 0 && alarm <= to)
				r->cmos[REG_C] |= C_AF;
		}
	}
	r->synced = now;
}

/* The time, on the divider, at which a flag that is enabled and clear sets next. */
static i64 next_flag(const struct mc146818 *r)
{
	u8 wanted = r->cmos[REG_B] & ~r->cmos[REG_C] & C_FLAGS;
	i64 next = INT64_MAX, ticks = period(r);

	if (!divider_runs(r))
		return next;
	if ((wanted & C_PF) && ticks) {
		u128 at = (u128)(periods_until(r->synced, ticks) + 1) * (u128)ticks * NS;

		next = (i64)((at + CRYSTAL_HZ - 1) / CRYSTAL_HZ);
	}
	if (!updates_run(r))
		return next;
	if (wanted & C_UF)
		next = MIN(next, (div_floor(r->synced, NS) + 1) * NS);
	if (wanted & C_AF) {
		i64 alarm = alarm_after(r, r->sec_base + div_floor(r->synced, NS));

		if (alarm >= 0)
			next = MIN(next, (alarm - r->sec_base) * NS);
	}
	return next;
}

/* After sync() and a change: the interrupt line, and when to look again. */
static void update(struct mc146818 *r)
{
	bool irq = r->cmos[REG_B] & r->cmos[REG_C] & C_FLAGS;
	i64 next = next_flag(r);

	r->cmos[REG_C] = (r->cmos[REG_C] & C_FLAGS) | (irq ? C_IRQF : 0);
	irq_set(r->d.irqs, 8, irq);
	if (next != INT64_MAX)
		timer_arm(&r->timer, (u64)MAX(next + r->div_base, 0));
	else if (timer_armed(&r->timer))
		timer_cancel(&r->timer);
}

static void timer_fn(void *arg)
{
	sync(arg);
	update(arg);
}

/* ---- registers --------------------------------------------------------------------------------- */

static bool is_clock_reg(u8 i)
{
	return i == SECONDS || i == MINUTES || i == HOURS || (i >= WEEKDAY && i <= YEAR) || i == CENTURY;
}

/* UIP comes up before an update and falls with it, when the registers have the new second. */
static bool update_in_progress(const struct mc146818 *r)
{
	return updates_run(r) && mod_floor(divider(r), NS) >= NS - UIP_NS;
}

static u8 reg_read(struct mc146818 *r, u8 i)
{
	u8 val;

	if (is_clock_reg(i))
		regs_refresh(r);
	switch (i) {
	case REG_A:
		return r->cmos[REG_A] | (update_in_progress(r) ? A_UIP : 0);
	case REG_C:
		sync(r);
		update(r);
		val = r->cmos[REG_C];
		r->cmos[REG_C] = 0;
		update(r);
		return val;
	default:
		return r->cmos[i];
	}
}

static void reg_a_write(struct mc146818 *r, u8 val)
{
	bool ran = divider_runs(r);

	r->cmos[REG_A] = val & (u8)~A_UIP;
	if (ran == divider_runs(r))
		return;
	if (!ran) { /* released: half a second to the first update */
		r->div_base = (i64)clock_ns(r->d.clock) - NS / 2;
		r->synced = NS / 2;
		if (updates_run(r))
			regs_apply(r);
	}
}

static void reg_b_write(struct mc146818 *r, u8 val)
{
	bool ran = updates_run(r);

	r->cmos[REG_B] = val & B_SET ? val & (u8)~B_UIE : val; /* SET clears UIE */
	if (!ran && updates_run(r))
		regs_apply(r);
}

static void reg_write(struct mc146818 *r, u8 i, u8 val)
{
	sync(r);
	regs_refresh(r); /* before SET or the divider's reset freezes them, or one of them changes */
	switch (i) {
	case REG_A:
		reg_a_write(r, val);
		break;
	case REG_B:
		reg_b_write(r, val);
		break;
	case REG_C: case REG_D:
		break;
	default:
		r->cmos[i] = val;
		if (is_clock_reg(i) && updates_run(r))
			regs_apply(r);
		break;
	}
	if (i < REG_D || i == CENTURY)
		update(r);
}

static u64 rtc_read(void *dev, u64 off, unsigned size)
{
	struct mc146818 *r = dev;

	switch (off) {
	case 1: return reg_read(r, r->index & 0x7f);
	case 3: return r->cmos[0x80 | r->index_high];
	default: return 0xff;
	}
}

static void rtc_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct mc146818 *r = dev;

	switch (off) {
	case 0: r->index = (u8)val; break;
	case 1: reg_write(r, r->index & 0x7f, (u8)val); break;
	case 2: r->index_high = val & 0x7f; break;
	default: r->cmos[0x80 | r->index_high] = (u8)val; break;
	}
}

static const struct mmio_ops rtc_ops = { rtc_read, rtc_write, 1, 1 };

/* ---- what firmware reads there ------------------------------------------------------------------ */

void mc146818_set_byte(struct device *d, u8 index, u8 val)
{
	struct mc146818 *r = (struct mc146818 *)d;
	u16 sum = 0;

	if (index <= REG_D || index == CENTURY)
		return;
	r->cmos[index] = val;
	/* The BIOS's sum over 10..2d. */
	for (unsigned i = 0x10; i < CHECKSUM; i++)
		sum = (u16)(sum + r->cmos[i]);
	r->cmos[CHECKSUM] = (u8)(sum >> 8);
	r->cmos[CHECKSUM + 1] = (u8)sum;
}

static void set_word(struct device *d, u8 index, u64 val)
{
	val = MIN(val, 0xffff);
	mc146818_set_byte(d, index, (u8)val);
	mc146818_set_byte(d, index + 1, (u8)(val >> 8));
}

/* low_bytes: RAM below 4 GiB, from address 0; high_bytes: RAM from 4 GiB on. */
void mc146818_set_memory(struct device *d, u64 low_bytes, u64 high_bytes)
{
	const u64 mib = 1 << 20;
	u64 above_1m = low_bytes > mib ? low_bytes - mib : 0;
	u64 above_16m = low_bytes > 16 * mib ? low_bytes - 16 * mib : 0;

	set_word(d, 0x15, 640);                 /* KiB of base memory */
	set_word(d, 0x17, above_1m >> 10);      /* KiB above 1 MiB, as far as 16 bits go */
	set_word(d, 0x30, above_1m >> 10);
	set_word(d, 0x34, above_16m >> 16);     /* 64 KiB above 16 MiB */
	for (unsigned i = 0; i < 3; i++)        /* 64 KiB above 4 GiB, 24 bits */
		mc146818_set_byte(d, (u8)(0x5b + i), (u8)(high_bytes >> (16 + 8 * i)));
}

/* ---- class ---------------------------------------------------------------------------------------- */

static bool mc146818_init(struct device *d, struct error *e)
{
	struct mc146818 *r = (struct mc146818 *)d;
	struct timespec ts = { .tv_sec = ICOUNT_EPOCH };

	if (!d->clock->icount_mode)
		clock_gettime(CLOCK_REALTIME, &ts);
	r->cmos[REG_A] = 0x26; /* 32.768 kHz, 1024 Hz */
	r->cmos[REG_B] = B_24H;
	r->cmos[REG_D] = D_VRT;
	r->div_base = (i64)clock_ns(d->clock) - ts.tv_nsec;
	r->sec_base = ts.tv_sec;
	r->synced = ts.tv_nsec;
	mc146818_set_byte(d, EQUIPMENT, 0x06); /* FPU, PS/2 mouse; no floppy drive, VGA */
	timer_init(&r->timer, d->clock, timer_fn, r);
	return mem_add_ports(d->mem, "mc146818", 0x70, 4, &rtc_ops, d, e);
}

/* The battery keeps time and memory; the reset pin clears enables and flags. */
static void mc146818_reset(struct device *d)
{
	struct mc146818 *r = (struct mc146818 *)d;

	sync(r);
	r->cmos[REG_B] &= (u8)~(B_PIE | B_AIE | B_UIE | B_SQWE);
	r->cmos[REG_C] = 0;
	r->index = r->index_high = 0;
	update(r);
}

/* Values that only a damaged file can hold become ones that the code above can meet. */
static void mc146818_loaded(struct device *d)
{
	struct mc146818 *r = (struct mc146818 *)d;
	const i64 span = 1ll << 60; /* ns, 36 years around the clock's origin */

	r->index_high &= 0x7f;
	r->weekday_shift %= 7;
	r->cmos[REG_A] &= (u8)~A_UIP;
	r->div_base = MAX(MIN(r->div_base, span), -span);
	r->sec_base = MAX(MIN(r->sec_base, span), -span);
	r->synced = MAX(MIN(r->synced, 2 * span), -span);
	irq_set(d->irqs, 8, r->cmos[REG_B] & r->cmos[REG_C] & C_FLAGS);
}

static const struct state_field mc146818_state[] = {
	STATE(struct mc146818, cmos),
	STATE(struct mc146818, index),
	STATE(struct mc146818, index_high),
	STATE(struct mc146818, weekday_shift),
	STATE(struct mc146818, div_base),
	STATE(struct mc146818, sec_base),
	STATE(struct mc146818, synced),
	STATE_TIMER(struct mc146818, timer),
	STATE_END
};

const struct device_class mc146818_class = {
	.name = "mc146818",
	.help = "real-time clock with 256 bytes of CMOS memory",
	.size = sizeof(struct mc146818),
	.init = mc146818_init,
	.reset = mc146818_reset,
	.loaded = mc146818_loaded,
	.state = mc146818_state,
};
