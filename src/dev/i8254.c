/* i8254: the programmable interval timer, and port 0x61. Intel 8254 datasheet (231164).
 *
 *   0x40..0x42  counters 0 (irq 0), 1 (refresh), 2 (speaker; gate and OUT at port 0x61)
 *   0x43        control word, counter latch, read-back
 *   0x61        bit 0 gate of counter 2, 1 speaker data, 2:3 kept, 4 refresh toggle, 5 OUT of counter 2
 *
 * Nothing ticks. A counter remembers the tick at which its count was loaded; value, OUT and the
 * next edge follow from the clock, whose tick number is floor(ns * 1193182 / 1e9) from an
 * absolute origin, so no error builds up. A count is loaded by the tick after its write.
 *
 *   mode  elapsed ticks e (0 at loading), count n     OUT high
 *   0     runs on past 0                              e >= n
 *   1, 5  starts at a rising gate                     1: e >= n; 5: e != n
 *   2     value n - e mod n                           e mod n != n - 1
 *   3     value by twos                               first half of e mod n (the longer one)
 *   4     runs on past 0                              e != n
 *
 * Invariants
 *  1. n is 1..65536 for binary counts and 1..16665 for BCD ones (digits may exceed 9).
 *  2. sync() is called before any look at a counter: a count that waits for the end of the
 *     cycle (modes 2 and 3) has then been taken over.
 *  3. Irq 0 is told the level of OUT when the guest changes something, and a pulse low, high at
 *     each rising edge. In mode 3 it so stays high through the low half: a stalled processor
 *     loses nothing.
 *  4. Edges that a busy host has let pass (`owed`, those of an eighth of a second at most) are made
 *     up for, one every quarter of a period, so that a guest that counts them is late but not wrong.
 *
 * Left out: sound. Threading: machine lock held. */
#include "dev/dev.h"

#define PIT_HZ 1193182
#define NS_PER_S 1000000000
#define SHORT_CYCLE 12     /* counts below this take less than */
#define MIN_EDGE_NS 10000  /* and are heard no more often than that */
#define CATCH_UP_NS 250000 /* but made up for no more often than that */
#define REFRESH_TICKS 18   /* the BIOS's count for counter 1: toggles each 15 us */

enum { RW_LATCH, RW_LSB, RW_MSB, RW_BOTH };

struct counter {
	i64 start;       /* tick at which e is 0, while running */
	i64 held_e;      /* e while the gate holds the counter */
	i64 switch_tick; /* modes 2, 3: when next_n takes over; valid while switching */
	u32 n, next_n;
	u16 reg;         /* count register CR as written */
	u16 old_value;   /* what is read, and OUT, until the count is loaded */
	u8 old_out;
	u16 latch;
	u8 control;      /* as written: RW, mode, BCD */
	u8 loaded;       /* a count was written (and, in modes 1 and 5, triggered) */
	u8 written;      /* modes 1, 5: a count is there for the next trigger */
	u8 switching;
	u8 switch_low;   /* mode 3: what begins at switch_tick is the low half */
	u8 gate;
	u8 latched;      /* bytes of latch still to be read: bit 0 LSB, bit 1 MSB */
	u8 status, status_latched;
	u8 write_msb, read_msb; /* RW_BOTH: which byte is next */
	u8 new_count;    /* a count is in CR that has not reached the counter: null count */
};

struct i8254 {
	struct device d;
	struct counter ch[3];
	u8 port61;       /* bits 0..3 */
	struct timer irq_timer;
	u8 timer_rises;  /* irq_timer is armed for a rise of OUT, not for a change of counts only */
	i64 heard;       /* rises up to this tick are counted */
	u32 owed;        /* rises that are still to be told */
};

/* ---- time ----------------------------------------------------------------------------- */

static i64 tick_of(u64 ns)
{
	return (i64)((u128)ns * PIT_HZ / NS_PER_S);
}

/* The first ns that belongs to tick t. */
static u64 ns_of(i64 t)
{
	return t <= 0 ? 0 : (u64)(((u128)t * NS_PER_S + PIT_HZ - 1) / PIT_HZ);
}

static i64 now_tick(const struct i8254 *p)
{
	return tick_of(clock_ns(p->d.clock));
}

/* ---- one counter ------------------------------------------------------------------------ */

static unsigned mode_of(const struct counter *c)
{
	unsigned m = c->control >> 1 & 7;

	return m > 5 ? m - 4 : m; /* bit 2 of modes 2 and 3 is not decoded */
}

static unsigned rw_of(const struct counter *c)
{
	return c->control >> 4 & 3;
}

static bool periodic(const struct counter *c)
{
	return mode_of(c) == 2 || mode_of(c) == 3;
}

static bool hardware_triggered(const struct counter *c)
{
	return mode_of(c) == 1 || mode_of(c) == 5;
}

static u32 count_of(u16 reg, bool bcd)
{
	if (!bcd)
		return reg ? reg : 65536;
	return reg ? (reg >> 12) * 1000u + (reg >> 8 & 15) * 100u + (reg >> 4 & 15) * 10u + (reg & 15) : 10000;
}

static u16 to_bcd(u32 v)
{
	return (u16)(v / 1000 % 10 << 12 | v / 100 % 10 << 8 | v / 10 % 10 << 4 | v % 10);
}

/* The first half of mode 3, in which OUT is high: the longer one of an odd count. */
static u32 high_half(u32 n)
{
	return (n + 1) / 2;
}

static bool counting(const struct counter *c)
{
	return c->gate || hardware_triggered(c);
}

static i64 elapsed(const struct counter *c, i64 now)
{
	return counting(c) ? now - c->start : c->held_e;
}

static void sync(struct counter *c, i64 now)
{
	if (c->switching && now >= c->switch_tick) {
		c->switching = 0;
		c->n = c->next_n;
		c->start = c->switch_tick - (c->switch_low ? high_half(c->n) : 0);
	}
	if (!hardware_triggered(c) && !c->switching && c->loaded && elapsed(c, now) >= 0)
		c->new_count = 0;
}

static bool out(const struct counter *c, i64 now)
{
	i64 e = elapsed(c, now);
	unsigned mode = mode_of(c);

	if (!c->loaded)
		return mode != 0;
	if (periodic(c) && !c->gate)
		return true;
	if (e < 0)
		return c->old_out;
	switch (mode) {
	case 2:
		return e % c->n != c->n - 1;
	case 3:
		return e % c->n < high_half(c->n);
	case 4: case 5:
		return e != c->n;
	default:
		return e >= c->n;
	}
}

/* The counting element as the guest reads it. */
static u16 value(const struct counter *c, i64 now)
{
	bool bcd = c->control & 1;
	i64 e = elapsed(c, now), modulus = bcd ? 10000 : 65536, v;

	if (!c->loaded || e < 0)
		return c->old_value;
	if (mode_of(c) == 2) {
		v = c->n - e % c->n;
	} else if (mode_of(c) == 3) {
		i64 in = e % c->n, half = high_half(c->n);

		v = (c->n & ~1u) - 2 * (in < half ? in : in - half);
	} else {
		v = (c->n - e) % modulus;
	}
	v = (v + modulus) % modulus;
	return bcd ? to_bcd((u32)v) : (u16)v;
}

/* The first tick after now at which OUT rises; -1 for none without the guest's doing. */
static i64 next_rise(const struct counter *c, i64 now)
{
	i64 e = elapsed(c, now), rise;

	if (!c->loaded || !counting(c))
		return -1;
	if (periodic(c)) { /* OUT is high from loading on, so the first rise ends the first cycle */
		if (c->n == 1)
			return -1;
		return e < 0 ? c->start + c->n : c->start + (e / c->n + 1) * (i64)c->n;
	}
	rise = c->start + c->n + (mode_of(c) >= 4);
	return rise > now ? rise : -1;
}

/* CR goes to the counter at the next tick. */
static void load(struct counter *c, i64 now)
{
	c->old_value = value(c, now);
	c->old_out = mode_of(c) != 0 && out(c, now);
	c->n = count_of(c->reg, c->control & 1);
	c->loaded = 1;
	c->switching = 0;
	c->start = now + 1;
	c->held_e = 0;
}

/* A count is complete in CR. */
static void count_written(struct counter *c, i64 now)
{
	i64 e = elapsed(c, now);

	c->new_count = 1;
	if (hardware_triggered(c)) {
		c->written = 1;
	} else if (periodic(c) && c->loaded && c->gate && e >= 0) {
		i64 in = e % c->n, half = high_half(c->n);

		c->switching = 1;
		c->switch_low = mode_of(c) == 3 && in < half;
		c->switch_tick = now - in + (c->switch_low ? half : (i64)c->n);
		c->next_n = count_of(c->reg, c->control & 1);
	} else {
		load(c, now);
	}
}

static void gate_set(struct counter *c, bool level, i64 now)
{
	i64 e = elapsed(c, now);

	if (level == c->gate)
		return;
	c->gate = level;
	if (hardware_triggered(c)) {
		if (level && c->written) {
			load(c, now);
			c->new_count = 0;
		}
	} else if (!level) { /* holds the count; the reload at the rise stands for a pending switch */
		c->held_e = MAX(e, 0);
		c->switching = 0;
	} else if (periodic(c) && c->loaded) { /* the cycle starts anew, with what is in CR */
		load(c, now);
	} else {
		c->start = now - c->held_e;
	}
}

/* ---- irq 0 -------------------------------------------------------------------------------- */

static void irq_schedule(struct i8254 *p)
{
	struct counter *c = &p->ch[0];
	u64 ns = clock_ns(p->d.clock), at;
	i64 rise = next_rise(c, tick_of(ns));
	bool change_first = c->switching && c->switch_low && (rise < 0 || c->switch_tick < rise);

	p->timer_rises = !change_first || p->owed;
	if (p->owed) {
		timer_arm(&p->irq_timer, ns + MAX(ns_of(c->n) / 4, CATCH_UP_NS));
		return;
	}
	if (!change_first && rise < 0) {
		if (timer_armed(&p->irq_timer))
			timer_cancel(&p->irq_timer);
		return;
	}
	at = ns_of(change_first ? c->switch_tick : rise);
	/* The floor bounds the host's work, whatever a guest writes. */
	timer_arm(&p->irq_timer, periodic(c) && c->n < SHORT_CYCLE ? MAX(at, ns + MIN_EDGE_NS) : at);
}

/* How often OUT of counter 0 has risen since that was last asked. */
static u32 rises(struct i8254 *p, i64 now)
{
	struct counter *c = &p->ch[0];
	i64 from = elapsed(c, p->heard), to = elapsed(c, now);
	bool by_cycles = periodic(c) && c->loaded && c->gate && c->n >= SHORT_CYCLE && !c->switching && from >= 0 && p->heard <= now;

	p->heard = now;
	return by_cycles ? (u32)MIN(to / c->n - from / c->n, (i64)(PIT_HZ / c->n)) : p->timer_rises;
}

static void irq_timer_fn(void *arg)
{
	struct i8254 *p = arg;
	i64 now = now_tick(p);

	u32 owed = p->owed + rises(p, now), most = PIT_HZ / 8 / MAX(p->ch[0].n, 1u) + 1;
	p->owed = MIN(owed, most);
	sync(&p->ch[0], now);
	if (p->owed) {
		p->owed--;
		irq_set(p->d.irqs, 0, false);
		irq_set(p->d.irqs, 0, true);
	}
	irq_schedule(p);
}

/* Before the guest changes counter 0: an edge that is due but has not been heard is not lost. */
static void irq_catch_up(struct i8254 *p)
{
	if (timer_armed(&p->irq_timer) && p->irq_timer.deadline <= clock_ns(p->d.clock)) {
		timer_cancel(&p->irq_timer);
		irq_timer_fn(p);
	}
}

/* After the guest changed counter 0. */
static void irq_follow(struct i8254 *p)
{
	i64 now = now_tick(p);

	sync(&p->ch[0], now);
	p->heard = now;
	p->owed = 0;
	irq_set(p->d.irqs, 0, periodic(&p->ch[0]) || out(&p->ch[0], now));
	irq_schedule(p);
}

/* ---- registers ------------------------------------------------------------------------------ */

static void control_write(struct counter *c, u8 val, i64 now)
{
	c->old_value = value(c, now);
	c->old_out = (val >> 1 & 7) != 0;
	c->control = val & 0x3f;
	c->loaded = c->written = c->switching = 0;
	c->write_msb = c->read_msb = 0;
	c->latched = c->status_latched = 0;
	c->held_e = 0;
	c->start = now;
	c->new_count = 1;
}

static void latch_count(struct counter *c, i64 now)
{
	static const u8 bytes[] = { [RW_LSB] = 1, [RW_MSB] = 2, [RW_BOTH] = 3 };

	if (c->latched) /* the first one is kept until it has been read */
		return;
	c->latch = value(c, now);
	c->latched = bytes[rw_of(c)];
	c->read_msb = 0;
}

static void latch_status(struct counter *c, i64 now)
{
	if (c->status_latched)
		return;
	c->status = (u8)(c->control | c->new_count << 6 | out(c, now) << 7);
	c->status_latched = 1;
}

static void control_port_write(struct i8254 *p, u8 val)
{
	i64 now = now_tick(p);
	unsigned sel = val >> 6;

	for (unsigned i = 0; i < 3; i++)
		sync(&p->ch[i], now);
	if (sel < 3) {
		if ((val >> 4 & 3) == RW_LATCH) {
			latch_count(&p->ch[sel], now);
		} else if (sel == 0) {
			irq_catch_up(p);
			control_write(&p->ch[0], val, now);
			irq_follow(p);
		} else {
			control_write(&p->ch[sel], val, now);
		}
		return;
	}
	for (unsigned i = 0; i < 3; i++) { /* read-back; its two selects are active low */
		if (!(val >> (i + 1) & 1))
			continue;
		if (!(val & 0x20))
			latch_count(&p->ch[i], now);
		if (!(val & 0x10))
			latch_status(&p->ch[i], now);
	}
}

static void pit_write(void *dev, u64 off, u64 val64, unsigned size)
{
	struct i8254 *p = dev;
	u8 val = (u8)val64;

	if (off == 3) {
		control_port_write(p, val);
		return;
	}
	struct counter *c = &p->ch[off];
	i64 now = now_tick(p);

	if (off == 0)
		irq_catch_up(p);
	sync(c, now);
	switch (rw_of(c)) {
	case RW_LSB:
		c->reg = val;
		break;
	case RW_MSB:
		c->reg = (u16)(val << 8);
		break;
	default:
		c->write_msb ^= 1;
		if (c->write_msb) {
			c->reg = (u16)((c->reg & 0xff00) | val);
			if (mode_of(c) == 0) { /* the first byte stops the count, OUT goes low */
				c->old_value = value(c, now);
				c->loaded = 0;
				if (off == 0)
					irq_follow(p);
			}
			return;
		}
		c->reg = (u16)((c->reg & 0xff) | val << 8);
		break;
	}
	count_written(c, now);
	if (off == 0)
		irq_follow(p);
}

static u64 pit_read(void *dev, u64 off, unsigned size)
{
	struct i8254 *p = dev;

	if (off == 3) /* nothing drives the bus */
		return 0xff;
	struct counter *c = &p->ch[off];
	i64 now = now_tick(p);

	sync(c, now);
	if (c->status_latched) {
		c->status_latched = 0;
		return c->status;
	}
	if (c->latched) {
		bool msb = !(c->latched & 1);

		c->latched &= msb ? 0 : 2;
		return msb ? c->latch >> 8 : c->latch & 0xff;
	}
	u16 v = value(c, now);
	bool msb = rw_of(c) == RW_MSB || (rw_of(c) == RW_BOTH && c->read_msb);

	if (rw_of(c) == RW_BOTH)
		c->read_msb ^= 1;
	return msb ? v >> 8 : v & 0xff;
}

static u64 port61_read(void *dev, u64 off, unsigned size)
{
	struct i8254 *p = dev;
	i64 now = now_tick(p);

	sync(&p->ch[2], now);
	return p->port61 | (now / REFRESH_TICKS & 1) << 4 | (u64)out(&p->ch[2], now) << 5;
}

static void port61_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct i8254 *p = dev;
	i64 now = now_tick(p);

	p->port61 = val & 0x0f;
	sync(&p->ch[2], now);
	gate_set(&p->ch[2], val & 1, now);
}

static const struct mmio_ops pit_ops = { pit_read, pit_write, 1, 1 };
static const struct mmio_ops port61_ops = { port61_read, port61_write, 1, 1 };

/* ---- class -------------------------------------------------------------------------------- */

static bool i8254_init(struct device *d, struct error *e)
{
	struct i8254 *p = (struct i8254 *)d;

	timer_init(&p->irq_timer, d->clock, irq_timer_fn, p);
	return mem_add_ports(d->mem, "i8254", 0x40, 4, &pit_ops, d, e) &&
	       mem_add_ports(d->mem, "port 61", 0x61, 1, &port61_ops, d, e);
}

/* The chip wakes up in no defined state; ours in the one that a BIOS leaves: mode 3, longest count. */
static void i8254_reset(struct device *d)
{
	struct i8254 *p = (struct i8254 *)d;
	i64 now = now_tick(p);

	for (unsigned i = 0; i < 3; i++) {
		p->ch[i] = (struct counter){ .gate = i != 2, .n = 65536, .next_n = 65536 };
		control_write(&p->ch[i], RW_BOTH << 4 | 3 << 1, now);
		p->ch[i].reg = i == 1 ? REFRESH_TICKS : 0;
		count_written(&p->ch[i], now);
	}
	p->port61 = 0;
	irq_follow(p);
}

/* Values that only a damaged file can hold become ones that the code above can meet. */
static void i8254_loaded(struct device *d)
{
	struct i8254 *p = (struct i8254 *)d;
	i64 now = now_tick(p), span = (i64)1 << 52; /* days of ticks: sums stay far from overflow */

	for (unsigned i = 0; i < 3; i++) {
		struct counter *c = &p->ch[i];

		c->n = c->n >= 1 && c->n <= 65536 ? c->n : 65536;
		c->next_n = c->next_n >= 1 && c->next_n <= 65536 ? c->next_n : 65536;
		c->start = MAX(MIN(c->start, span), -span);
		c->held_e = MAX(MIN(c->held_e, span), 0);
		c->switch_tick = MAX(MIN(c->switch_tick, span), -span);
		c->latched &= 3;
		c->old_out &= 1;
		c->new_count &= 1;
		c->gate = i == 2 ? p->port61 & 1 : 1;
	}
	irq_set(d->irqs, 0, periodic(&p->ch[0]) || out(&p->ch[0], now));
}

#define COUNTER_STATE(i)                                                                        \
	STATE(struct i8254, ch[i].start), STATE(struct i8254, ch[i].held_e),                    \
	STATE(struct i8254, ch[i].switch_tick), STATE(struct i8254, ch[i].n),                   \
	STATE(struct i8254, ch[i].next_n), STATE(struct i8254, ch[i].reg),                      \
	STATE(struct i8254, ch[i].old_value), STATE(struct i8254, ch[i].latch),                 \
	STATE(struct i8254, ch[i].old_out), STATE(struct i8254, ch[i].switch_low),              \
	STATE(struct i8254, ch[i].control), STATE(struct i8254, ch[i].loaded),                  \
	STATE(struct i8254, ch[i].written), STATE(struct i8254, ch[i].switching),               \
	STATE(struct i8254, ch[i].gate), STATE(struct i8254, ch[i].latched),                    \
	STATE(struct i8254, ch[i].status), STATE(struct i8254, ch[i].status_latched),           \
	STATE(struct i8254, ch[i].write_msb), STATE(struct i8254, ch[i].read_msb),              \
	STATE(struct i8254, ch[i].new_count)

static const struct state_field i8254_state[] = {
	COUNTER_STATE(0),
	COUNTER_STATE(1),
	COUNTER_STATE(2),
	STATE(struct i8254, port61),
	STATE(struct i8254, timer_rises), STATE(struct i8254, heard), STATE(struct i8254, owed),
	STATE_TIMER(struct i8254, irq_timer),
	STATE_END
};

const struct device_class i8254_class = {
	.name = "i8254",
	.help = "8254 interval timer with the speaker's port 0x61",
	.size = sizeof(struct i8254),
	.init = i8254_init,
	.reset = i8254_reset,
	.loaded = i8254_loaded,
	.state = i8254_state,
};
