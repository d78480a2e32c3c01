/* The timer of a local APIC. SDM vol. 3, 11.5.4: one-shot, periodic, TSC deadline.
 *
 * Invariants
 *  1. Nothing fires before its time: the host timer is armed at the first ns that is not too
 *     early, and the handler looks at the clock again before it delivers.
 *  2. One expiry of a count or a deadline delivers once; the state that says "pending"
 *     (timer_counting in one-shot mode, tsc_deadline) is cleared before the delivery.
 *  3. The count is not stored: it follows from timer_expiry and the clock, so that it can be
 *     read at any time, also while the host's timer is late.
 *
 * The bus clock is 1 GHz, so one tick is `divide` ns and has no rounding.
 * A period below PERIOD_FLOOR counts as the guest programmed it but interrupts no more often
 * than the floor, and not while the last one is in service: IRR holds one interrupt a vector anyway, the
 * host must stay usable, and a slow processor come to more than its handler. */
#define LOG_TOPIC "lapic"
#include "dev/lapic_impl.h"

#define PERIOD_FLOOR 20000u            /* ns */
#define FAR_FUTURE (1ull << 62)        /* ns; 146 years */

/* Divide configuration: bits 0, 1 and 3; 111b is 1. */
static u32 divide(const struct lapic *l)
{
	u32 v = (l->timer_divide & 3) | (l->timer_divide >> 1 & 4);

	return v == 7 ? 1 : 2u << v;
}

static unsigned timer_mode(const struct lapic *l)
{
	return LVT_TIMER_MODE(l->lvt[LVT_TIMER]);
}

static bool below_floor(const struct lapic *l)
{
	return timer_mode(l) == TIMER_PERIODIC && l->timer_period < PERIOD_FLOOR;
}

static bool in_service(const struct lapic *l)
{
	u8 vector = (u8)l->lvt[LVT_TIMER];

	return l->isr[vector / 32] >> (vector % 32) & 1;
}

static void arm_count(struct lapic *l)
{
	u64 at = l->timer_expiry;

	if (lapic_lent(l))
		return;
	if (below_floor(l))
		at = MAX(at, clock_ns(l->d.clock) + PERIOD_FLOOR);
	timer_arm(&l->timer, at);
}

static u64 guest_tsc(const struct lapic *l)
{
	return clock_tsc(l->d.clock) + l->tsc_adjust;
}

static void disarm(struct lapic *l)
{
	if (timer_armed(&l->timer))
		timer_cancel(&l->timer);
}

/* Arms the host timer for tsc_deadline, or fires when it has passed. */
static void arm_deadline(struct lapic *l)
{
	u64 tsc = guest_tsc(l), now = clock_ns(l->d.clock);
	u64 hz = l->d.clock->tsc_hz ? l->d.clock->tsc_hz : 1000000000;

	if (lapic_lent(l))
		return;
	if (tsc >= l->tsc_deadline) {
		l->tsc_deadline = 0;
		disarm(l);
		lapic_lvt_deliver(l, LVT_TIMER);
		return;
	}
	u128 ns = ((u128)(l->tsc_deadline - tsc) * 1000000000 + hz - 1) / hz;
	timer_arm(&l->timer, now + (ns > FAR_FUTURE ? FAR_FUTURE : (u64)ns));
}

static void timer_fire(void *arg)
{
	struct lapic *l = arg;
	u64 now = clock_ns(l->d.clock);

	if (timer_mode(l) == TIMER_TSC_DEADLINE) {
		if (l->tsc_deadline)
			arm_deadline(l); /* fires, or arms again if the TSC is behind */
		return;
	}
	if (!l->timer_counting)
		return;
	if (now < l->timer_expiry) {
		arm_count(l);
		return;
	}
	if (timer_mode(l) == TIMER_PERIODIC && l->timer_period) {
		/* Periods missed while the host was busy are one interrupt, as IRR would have it. */
		l->timer_expiry += ((now - l->timer_expiry) / l->timer_period + 1) * l->timer_period;
		arm_count(l);
		if (below_floor(l) && in_service(l))
			return;
	} else {
		l->timer_counting = false;
	}
	lapic_lvt_deliver(l, LVT_TIMER);
}

void lapic_timer_setup(struct lapic *l)
{
	timer_init(&l->timer, l->d.clock, timer_fire, l);
}

static void timer_stop(struct lapic *l)
{
	disarm(l);
	l->timer_counting = false;
	l->timer_initial = 0;
	l->timer_expiry = l->timer_period = 0;
	l->tsc_deadline = 0;
}

void lapic_timer_reset(struct lapic *l)
{
	timer_stop(l);
	l->timer_divide = 0;
}

/* A write of the initial count starts the countdown anew; 0 stops it. */
void lapic_timer_set_initial(struct lapic *l, u32 count)
{
	if (timer_mode(l) == TIMER_TSC_DEADLINE)
		return;
	timer_stop(l);
	l->timer_initial = count;
	if (!count)
		return;
	l->timer_period = (u64)count * divide(l);
	l->timer_expiry = clock_ns(l->d.clock) + l->timer_period;
	l->timer_counting = true;
	arm_count(l);
}

u32 lapic_timer_current(const struct lapic *l)
{
	u64 now = clock_ns(l->d.clock), left;

	if (!l->timer_counting || timer_mode(l) == TIMER_TSC_DEADLINE)
		return 0;
	if (now < l->timer_expiry)
		left = l->timer_expiry - now;
	else if (timer_mode(l) == TIMER_PERIODIC && l->timer_period)
		left = l->timer_period - (now - l->timer_expiry) % l->timer_period;
	else
		left = 0;
	return (u32)((left + divide(l) - 1) / divide(l));
}

/* The count stays as it is and goes on at the new rate. */
void lapic_timer_set_divide(struct lapic *l, u32 val)
{
	u32 count = lapic_timer_current(l);

	l->timer_divide = val & 0xb;
	if (!l->timer_counting || !count)
		return; /* stopped, or due: the handler runs as it stands */
	l->timer_period = (u64)l->timer_initial * divide(l);
	l->timer_expiry = clock_ns(l->d.clock) + (u64)count * divide(l);
	arm_count(l);
}

/* The end of a one-shot that the clock shows and the host's timer has not come to: it belongs to
 * the mode as it is, so this is called before the LVT entry changes. */
void lapic_timer_settle(struct lapic *l)
{
	if (l->timer_counting && timer_mode(l) == TIMER_ONE_SHOT && clock_ns(l->d.clock) >= l->timer_expiry)
		timer_fire(l);
}

/* One-shot and periodic share a running count; TSC deadline shares nothing with them. */
void lapic_timer_mode_changed(struct lapic *l, u32 old_lvt)
{
	bool was = LVT_TIMER_MODE(old_lvt) == TIMER_TSC_DEADLINE;

	if (was != (timer_mode(l) == TIMER_TSC_DEADLINE))
		timer_stop(l);
	else if (l->timer_counting)
		arm_count(l);
}

u64 lapic_tsc_deadline_read(const struct lapic *l)
{
	/* Passed and not yet carried out: as on the processor, it is gone in that moment. */
	return l->tsc_deadline && guest_tsc(l) >= l->tsc_deadline ? 0 : l->tsc_deadline;
}

void lapic_tsc_deadline_write(struct lapic *l, u64 deadline)
{
	if (timer_mode(l) != TIMER_TSC_DEADLINE)
		return;
	l->tsc_deadline = deadline;
	if (deadline)
		arm_deadline(l);
	else
		disarm(l);
}

void lapic_timer_lend(struct lapic *l) { disarm(l); }

void lapic_timer_back(struct lapic *l)
{
	if (timer_mode(l) == TIMER_TSC_DEADLINE && l->tsc_deadline)
		arm_deadline(l);
	else if (l->timer_counting)
		arm_count(l);
}

void lapic_timer_load(struct lapic *l, u32 initial, u32 current, u64 deadline)
{
	bool deadlines = timer_mode(l) == TIMER_TSC_DEADLINE;

	l->timer_initial = deadlines ? 0 : initial;
	l->timer_counting = !deadlines && current;
	l->timer_period = deadlines ? 0 : (u64)initial * divide(l);
	l->timer_expiry = l->timer_counting ? clock_ns(l->d.clock) + (u64)current * divide(l) : 0;
	l->tsc_deadline = deadlines ? deadline : 0;
}

void lapic_tsc_changed(struct lapic *l)
{
	if (lapic_lent(l))
		return;
	if (timer_mode(l) == TIMER_TSC_DEADLINE && l->tsc_deadline)
		arm_deadline(l);
}
