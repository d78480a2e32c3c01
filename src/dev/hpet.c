/* High precision event timer, three timers at 0xfed00000. IA-PC HPET specification 1.0a, 2.3.
 *
 *   0x000 capabilities   0x010 configuration   0x020 interrupt status (write 1 to clear)
 *   0x0f0 main counter, 64 bits, 10 ns a tick
 *   0x100 + 0x20 n       timer n: configuration, comparator (+8), FSB route (+16, not there)
 *
 * Invariants
 *  1. The counter is base + (now - start) / 10 ns while enabled, base while not; a timer
 *     interrupts no earlier than its comparator is reached, once each time it is.
 *  2. In periodic mode `comparator` is the next match, and moves on by `period` at each.
 *  3. A level-triggered timer's line is high exactly while its status bit is set, it is
 *     enabled, and the whole HPET is.
 *  4. With legacy replacement timers 0 and 1 are irq 0 and 8 and the i8254 and mc146818 are
 *     cut off from them (irq_set_hpet_legacy); without, a timer uses its route, of 16..23.
 *
 *  5. `due` is when the next match is. The host's timer is armed for it only while somebody could
 *     see it happen: an interrupt, or the status bit of a level-triggered timer. Else a periodic
 *     comparator, which Linux leaves running, is brought up to date when it is looked at (settle).
 *  6. Edges of a periodic timer that the host was too busy to give in time are owed, up to OWED_NS
 *     of them: a guest that counts its ticks, as Linux does when it tries the timer at boot, finds
 *     them all. They follow each other in a quarter of the period, in half of a short one.
 *
 * A comparator that the counter has passed matches when the counter comes round again, as on
 * the chip: never at once. A period below PERIOD_FLOOR interrupts no more often than that.
 * Left out: FSB (MSI) delivery, which the capability bits say. Machine lock held. */
#define LOG_TOPIC "hpet"
#include "dev/dev.h"

#define HPET_BASE 0xfed00000ull
#define TIMERS 3u
#define TICK_NS 10u
#define PERIOD_FLOOR 20000u            /* ns */
#define CATCH_UP_NS 250000u            /* periodic matches that were missed are made up for no more often than that */
#define OWED_NS 125000000u             /* as many of them as this time has */
#define FAR_FUTURE (1ull << 62)        /* ns; not armed beyond */
#define NEVER UINT64_MAX
#define ROUTES 0x00ff0000u             /* IOAPIC pins that a timer may use */

/* Period in femtoseconds, vendor, legacy route, 64 bits, number of timers, revision. */
#define CAPABILITIES ((u64)TICK_NS * 1000000 << 32 | 0x8086u << 16 | 1u << 15 | 1u << 13 | (TIMERS - 1) << 8 | 1)
#define CFG_ENABLE 1u
#define CFG_LEGACY 2u

#define T_LEVEL (1u << 1)
#define T_ENABLE (1u << 2)
#define T_PERIODIC (1u << 3)
#define T_PERIODIC_CAP (1u << 4)
#define T_SIZE_CAP (1u << 5)
#define T_VAL_SET (1u << 6)
#define T_32BIT (1u << 8)
#define T_ROUTE(c) ((c) >> 9 & 31)
#define T_ROUTE_MASK (31u << 9)
#define T_WRITABLE (T_LEVEL | T_ENABLE | T_PERIODIC | T_VAL_SET | T_32BIT | T_ROUTE_MASK)

enum { REG_CAP = 0x00, REG_CFG = 0x10, REG_STATUS = 0x20, REG_COUNTER = 0xf0, REG_TIMERS = 0x100 };
enum { T_REG_CONFIG = 0x00, T_REG_COMPARATOR = 0x08 };

struct hpet_timer {
	struct hpet *hpet;
	struct timer timer;
	unsigned n;
	/* State. */
	u32 config;
	u8 pulsed;        /* edge-triggered: the line was left high by the last match */
	u8 set_high;      /* the write with VAL_SET was of the low half: the high half may follow */
	u64 comparator, period;
	u64 due;          /* ns of the clock; NEVER */
	u32 owed;         /* edges */
};

struct hpet {
	struct device d;
	struct hpet_timer t[TIMERS];
	u32 config, status;
	u64 base, start_ns;
};

/* ---- time --------------------------------------------------------------------------- */

static u64 counter(const struct hpet *h)
{
	if (!(h->config & CFG_ENABLE))
		return h->base;
	return h->base + (clock_ns(h->d.clock) - h->start_ns) / TICK_NS;
}

/* NEVER, or the first ns at which the counter is `ticks` beyond what it is at start_ns + elapsed ticks. */
static u64 counter_ns(const struct hpet *h, u64 now_count, u64 ticks)
{
	u128 ns = (u128)(now_count - h->base + (u128)ticks) * TICK_NS + h->start_ns;

	return ns > FAR_FUTURE ? NEVER : (u64)ns;
}

static u64 width(const struct hpet_timer *t)
{
	return t->config & T_32BIT ? UINT32_MAX : UINT64_MAX;
}

static bool periodic(const struct hpet_timer *t)
{
	return (t->config & T_PERIODIC) && (t->period & width(t));
}

static void disarm(struct hpet_timer *t)
{
	if (timer_armed(&t->timer))
		timer_cancel(&t->timer);
}

static u64 period_ns(const struct hpet_timer *t) { return (t->period & width(t)) * TICK_NS; }

/* The host's timer for the next match, or for an edge that is owed, where that shows. */
static void watch(struct hpet_timer *t)
{
	u64 at = t->due;

	if (at == NEVER || !(t->config & (T_ENABLE | T_LEVEL))) {
		disarm(t);
		return;
	}
	u64 now = clock_ns(t->hpet->d.clock);
	if (t->owed)
		at = MIN(at, now + MIN(MAX(period_ns(t) / 4, CATCH_UP_NS), period_ns(t) / 2));
	if (periodic(t) && period_ns(t) < PERIOD_FLOOR)
		at = MAX(at, now + PERIOD_FLOOR);
	timer_arm(&t->timer, at);
}

/* When the next match is. matched: the comparator's present value has had its interrupt. */
static void arm(struct hpet_timer *t, bool matched)
{
	struct hpet *h = t->hpet;
	u64 now = counter(h), ticks = (t->comparator - now) & width(t);

	if (!(h->config & CFG_ENABLE) || (!ticks && matched && !(t->config & T_32BIT)))
		t->due = NEVER;
	else
		t->due = counter_ns(h, now, !ticks && matched ? 1ull << 32 : ticks);
	watch(t);
}

/* ---- interrupts --------------------------------------------------------------------- */

/* The line of a timer, or -1 if it has none. */
static int line(const struct hpet_timer *t)
{
	if ((t->hpet->config & CFG_LEGACY) && t->n < 2)
		return t->n ? 8 : 0;
	return ROUTES >> T_ROUTE(t->config) & 1 ? (int)T_ROUTE(t->config) : -1;
}

/* Timers may share a line: it is high while any of them holds it. */
static void update_line(struct hpet *h, int gsi)
{
	bool level = false;

	if (gsi < 0)
		return;
	for (unsigned i = 0; i < TIMERS; i++) {
		const struct hpet_timer *t = &h->t[i];

		level |= line(t) == gsi && (h->config & CFG_ENABLE) && (t->config & T_ENABLE) &&
			 (t->config & T_LEVEL ? h->status >> i & 1 : t->pulsed);
	}
	irq_set_source(h->d.irqs, (unsigned)gsi, IRQ_SOURCE_HPET, level);
}

static void match(struct hpet_timer *t)
{
	struct hpet *h = t->hpet;
	int gsi = line(t);

	if (t->config & T_LEVEL) {
		h->status |= 1u << t->n;
		update_line(h, gsi);
	} else if ((t->config & T_ENABLE) && gsi >= 0) {
		irq_set_source(h->d.irqs, (unsigned)gsi, IRQ_SOURCE_HPET, false);
		irq_set_source(h->d.irqs, (unsigned)gsi, IRQ_SOURCE_HPET, true);
		t->pulsed = true;
	}
}

/* One of so many matches is told now. */
static void owe(struct hpet_timer *t, u64 matches)
{
	bool edges = periodic(t) && (t->config & T_ENABLE) && !(t->config & T_LEVEL) && period_ns(t) >= PERIOD_FLOOR;
	u64 most = edges ? OWED_NS / period_ns(t) : 0;

	t->owed = (u32)MIN(most, t->owed + matches - 1);
}

static void timer_fire(void *arg)
{
	struct hpet_timer *t = arg;
	u64 now = clock_ns(t->hpet->d.clock);

	if (now >= t->due) {
		u64 matches = 1;
		if (periodic(t)) {
			u64 period = t->period & width(t);

			matches = (now - t->due) / TICK_NS / period + 1;
			t->comparator = (t->comparator + matches * period) & width(t);
		}
		owe(t, matches);
		arm(t, true);
	} else if (t->owed) {
		t->owed--;
		watch(t);
	} else {
		return;
	}
	match(t);
}

/* Matches that nobody saw (invariant 5); before what they depend on is looked at or changed. */
static void settle(struct hpet_timer *t)
{
	if (!timer_armed(&t->timer) && clock_ns(t->hpet->d.clock) >= t->due)
		timer_fire(t);
}

/* ---- registers ---------------------------------------------------------------------- */

static u64 t_read(struct hpet_timer *t, unsigned reg)
{
	settle(t);
	switch (reg) {
	case T_REG_CONFIG: return (u64)ROUTES << 32 | t->config | T_PERIODIC_CAP | T_SIZE_CAP;
	case T_REG_COMPARATOR: return t->comparator & width(t);
	default: return 0;
	}
}

static u64 reg_read(struct hpet *h, unsigned reg)
{
	switch (reg) {
	case REG_CAP: return CAPABILITIES;
	case REG_CFG: return h->config;
	case REG_STATUS: return h->status;
	case REG_COUNTER: return counter(h);
	default:
		if (reg >= REG_TIMERS && reg < REG_TIMERS + TIMERS * 0x20)
			return t_read(&h->t[(reg - REG_TIMERS) / 0x20], reg & 0x18);
		return 0;
	}
}

static u64 merge(u64 old, u64 val, u64 mask)
{
	return (old & ~mask) | (val & mask);
}

static void t_config_write(struct hpet_timer *t, u32 val)
{
	u32 old = t->config;
	int old_line = line(t);

	settle(t);
	val &= T_WRITABLE;
	/* A route that this timer does not have is not taken. */
	if (!(ROUTES >> T_ROUTE(val) & 1))
		val = (val & ~T_ROUTE_MASK) | (old & T_ROUTE_MASK);
	t->config = val;
	t->owed = 0;
	if (val & T_32BIT) {
		t->comparator = (u32)t->comparator;
		t->period = (u32)t->period;
	}
	if (!(val & T_LEVEL))
		t->hpet->status &= ~(1u << t->n);
	if (!(val & T_ENABLE) || (val & T_LEVEL) || line(t) != old_line)
		t->pulsed = false;
	update_line(t->hpet, old_line);
	update_line(t->hpet, line(t));
	if ((old ^ val) & (T_PERIODIC | T_32BIT))
		arm(t, true);
	else
		watch(t);
}

/* Periodic: any write is the period; with VAL_SET the next match as well. Written as two
 * halves, low first, VAL_SET covers both. */
static void t_comparator_write(struct hpet_timer *t, u64 val, u64 mask)
{
	bool high_only = mask == (u64)UINT32_MAX << 32;
	bool set = !(t->config & T_PERIODIC) || (t->config & T_VAL_SET) || (high_only && t->set_high);

	settle(t);
	if (set)
		t->comparator = merge(t->comparator, val, mask) & width(t);
	if (t->config & T_PERIODIC)
		t->period = merge(t->period, val, mask) & width(t);
	t->set_high = (t->config & T_VAL_SET) && mask == UINT32_MAX;
	t->config &= ~T_VAL_SET;
	t->owed = 0;
	arm(t, !set);
}

static void config_write(struct hpet *h, u32 val)
{
	u32 old = h->config;
	u64 now = counter(h);
	int old_line[TIMERS];

	for (unsigned i = 0; i < TIMERS; i++) {
		settle(&h->t[i]);
		old_line[i] = line(&h->t[i]);
	}
	h->config = val & (CFG_ENABLE | CFG_LEGACY);
	if ((old ^ h->config) & CFG_ENABLE) {
		h->base = now;
		h->start_ns = clock_ns(h->d.clock);
		for (unsigned i = 0; i < TIMERS; i++) {
			h->t[i].owed = 0;
			arm(&h->t[i], false);
		}
	}
	if ((old ^ h->config) & CFG_LEGACY)
		irq_set_hpet_legacy(h->d.irqs, h->config & CFG_LEGACY);
	if (old != h->config)
		for (unsigned i = 0; i < TIMERS; i++)
			h->t[i].pulsed = false;
	for (unsigned i = 0; i < TIMERS; i++) {
		update_line(h, old_line[i]);
		update_line(h, line(&h->t[i]));
	}
}

static void counter_write(struct hpet *h, u64 val)
{
	for (unsigned i = 0; i < TIMERS; i++)
		settle(&h->t[i]);
	h->base = val;
	h->start_ns = clock_ns(h->d.clock);
	for (unsigned i = 0; i < TIMERS; i++)
		arm(&h->t[i], false);
}

/* val and mask: of the whole 64-bit register. */
static void reg_write(struct hpet *h, unsigned reg, u64 val, u64 mask)
{
	switch (reg) {
	case REG_CFG:
		config_write(h, (u32)merge(h->config, val, mask));
		return;
	case REG_STATUS:
		h->status &= ~(u32)(val & mask);
		for (unsigned i = 0; i < TIMERS; i++)
			if (h->t[i].config & T_LEVEL)
				update_line(h, line(&h->t[i]));
		return;
	case REG_COUNTER:
		counter_write(h, merge(counter(h), val, mask));
		return;
	default:
		break;
	}
	if (reg < REG_TIMERS || reg >= REG_TIMERS + TIMERS * 0x20)
		return;
	struct hpet_timer *t = &h->t[(reg - REG_TIMERS) / 0x20];

	if ((reg & 0x18) == T_REG_CONFIG)
		t_config_write(t, (u32)merge(t->config, val, mask));
	else if ((reg & 0x18) == T_REG_COMPARATOR)
		t_comparator_write(t, val, mask);
}

/* The bus gives 4 or 8 aligned bytes. */
static u64 hpet_read(void *dev, u64 off, unsigned size)
{
	return reg_read(dev, (unsigned)off & ~7u) >> (off & 4) * 8;
}

static void hpet_write(void *dev, u64 off, u64 val, unsigned size)
{
	unsigned shift = (unsigned)(off & 4) * 8;
	u64 mask = size == 8 ? UINT64_MAX : (u64)UINT32_MAX << shift;

	reg_write(dev, (unsigned)off & ~7u, val << shift, mask);
}

/* ---- life --------------------------------------------------------------------------- */

static const struct mmio_ops hpet_ops = { hpet_read, hpet_write, 4, 8 };

static bool hpet_init(struct device *d, struct error *e)
{
	struct hpet *h = container_of(d, struct hpet, d);

	for (unsigned i = 0; i < TIMERS; i++) {
		h->t[i].hpet = h;
		h->t[i].n = i;
		timer_init(&h->t[i].timer, d->clock, timer_fire, &h->t[i]);
	}
	return mem_add_mmio(d->mem, "hpet", HPET_BASE, PAGE_SIZE, &hpet_ops, h, 8, e);
}

static void hpet_reset(struct device *d)
{
	struct hpet *h = container_of(d, struct hpet, d);

	config_write(h, 0);
	h->base = h->start_ns = 0;
	h->status = 0;
	for (unsigned i = 0; i < TIMERS; i++) {
		struct hpet_timer *t = &h->t[i];

		disarm(t);
		t->config = 0;
		t->pulsed = t->set_high = 0;
		t->comparator = UINT64_MAX;
		t->period = 0;
		t->due = NEVER;
		t->owed = 0;
	}
	for (int gsi = 0; gsi < 24; gsi++)
		irq_set_source(d->irqs, (unsigned)gsi, IRQ_SOURCE_HPET, false);
}

static void hpet_loaded(struct device *d)
{
	struct hpet *h = container_of(d, struct hpet, d);

	h->config &= CFG_ENABLE | CFG_LEGACY;
	h->status &= (1u << TIMERS) - 1;
	irq_set_hpet_legacy(d->irqs, h->config & CFG_LEGACY);
	for (unsigned i = 0; i < TIMERS; i++) {
		h->t[i].config &= T_WRITABLE;
		h->t[i].comparator &= width(&h->t[i]);
		update_line(h, line(&h->t[i]));
	}
}

#define TIMER_STATE(i) \
	STATE(struct hpet, t[i].config), \
	STATE(struct hpet, t[i].pulsed), STATE(struct hpet, t[i].set_high), \
	STATE(struct hpet, t[i].comparator), STATE(struct hpet, t[i].period), STATE(struct hpet, t[i].due), STATE(struct hpet, t[i].owed), \
	STATE_TIMER(struct hpet, t[i].timer)

static const struct state_field hpet_state[] = {
	STATE(struct hpet, config), STATE(struct hpet, status),
	STATE(struct hpet, base), STATE(struct hpet, start_ns),
	TIMER_STATE(0), TIMER_STATE(1), TIMER_STATE(2),
	STATE_END
};

const struct device_class hpet_class = {
	.name = "hpet",
	.help = "high precision event timer: three timers, 10 ns",
	.size = sizeof(struct hpet),
	.init = hpet_init,
	.reset = hpet_reset,
	.loaded = hpet_loaded,
	.state = hpet_state,
};
