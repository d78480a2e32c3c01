/* The local APIC of a processor: priorities, acknowledgment and EOI, local vectors, reset.
 * SDM vol. 3, chapter 11 (APIC), 11.12 (x2APIC). Registers are in lapic_reg.c, the page and
 * the bus in lapic_bus.c, messages in lapic_ipi.c, the timer in lapic_timer.c.
 *
 * Invariants
 *  1. intr is what the processor was last told by set_intr, and equals "a vector in IRR has a
 *     class above PPR, or an ExtINT is there that this LAPIC passes": every change of what
 *     that depends on ends in lapic_update_intr.
 *  2. While software-disabled, each LVT entry has its mask bit set and no fixed interrupt
 *     gets into IRR; what is there already stays deliverable.
 *  3. A LAPIC that IA32_APIC_BASE disables is in its reset state (TPR, which is CR8, excepted).
 *  4. x2APIC mode: an access that xAPIC mode would ignore is #GP.
 *
 * Threading: machine lock, which the MSR and CR8 functions take themselves.
 * Left out: CMCI (the version register says so), the focus-processor check. */
#define LOG_TOPIC "lapic"
#include "dev/lapic_impl.h"

#include <string.h>

/* ---- priorities --------------------------------------------------------------------- */

static bool bit_get(const u32 *v, u8 n) { return v[n >> 5] >> (n & 31) & 1; }
static void bit_set(u32 *v, u8 n) { v[n >> 5] |= 1u << (n & 31); }
static void bit_clear(u32 *v, u8 n) { v[n >> 5] &= ~(1u << (n & 31)); }

/* The highest vector, or -1. */
static int highest(const u32 *v)
{
	for (int i = 7; i >= 0; i--)
		if (v[i])
			return i * 32 + 31 - __builtin_clz(v[i]);
	return -1;
}

u32 lapic_ppr(const struct lapic *l)
{
	int in_service = highest(l->isr);
	u32 class = in_service < 0 ? 0 : (u32)in_service & 0xf0;

	return (l->tpr & 0xf0) >= class ? l->tpr : class;
}

u32 lapic_apr(const struct lapic *l)
{
	u32 tpr = l->tpr & 0xf0;
	u32 isr = (u32)MAX(highest(l->isr), 0) & 0xf0, irr = (u32)MAX(highest(l->irr), 0) & 0xf0;

	return tpr >= irr && tpr > isr ? l->tpr : MAX(tpr, MAX(isr, irr));
}

/* The vector to deliver now, or -1. */
static int deliverable(const struct lapic *l)
{
	int v = highest(l->irr);

	return v >= 0 && ((u32)v & 0xf0) > (lapic_ppr(l) & 0xf0) ? v : -1;
}

bool lapic_accepts_pic(const struct lapic *l)
{
	u32 lint0 = l->lvt[LVT_LINT0];

	return !lapic_enabled(l) || l->extint || (!(lint0 & LVT_MASKED) && LVT_MODE(lint0) == APIC_EXTINT);
}

void lapic_update_intr(struct lapic *l)
{
	bool level = lapic_lent(l) ? l->lint0 : deliverable(l) >= 0 || l->extint || (l->lint0 && lapic_accepts_pic(l));

	if (level == l->intr)
		return;
	l->intr = level;
	if (l->sink.set_intr)
		l->sink.set_intr(l->sink.cpu, level);
}

bool lapic_accept_fixed(struct lapic *l, u8 vector, bool level)
{
	if (!lapic_soft_enabled(l))
		return false;
	if (vector < 16) {
		lapic_error(l, ESR_RECEIVE_ILLEGAL);
		return false;
	}
	bit_set(l->irr, vector);
	if (level)
		bit_set(l->tmr, vector);
	else
		bit_clear(l->tmr, vector);
	lapic_update_intr(l);
	return true;
}

/* The error interrupt is armed by a write of ESR: one for all errors until the next. */
void lapic_error(struct lapic *l, u32 bit)
{
	bool armed = !l->esr_pending;

	l->esr_pending |= bit;
	if (armed)
		lapic_lvt_deliver(l, LVT_ERROR);
}

void lapic_eoi(struct lapic *l)
{
	int v = highest(l->isr);

	if (v < 0)
		return;
	bit_clear(l->isr, (u8)v);
	u32 *lint0 = &l->lvt[LVT_LINT0];
	if ((*lint0 & LVT_REMOTE_IRR) && (*lint0 & 0xff) == (u32)v) {
		*lint0 &= ~LVT_REMOTE_IRR;
		if (l->lint0)
			lapic_lvt_deliver(l, LVT_LINT0);
	}
	if (bit_get(l->tmr, (u8)v) && !(l->svr & SVR_EOI_SUPPRESS) && l->bus && l->bus->ioapic)
		ioapic_eoi(l->bus->ioapic, (u8)v);
	lapic_update_intr(l);
}

void lapic_eoi_processor(struct lapic *l)
{
	mem_lock(l->d.mem);
	lapic_eoi(l);
	mem_unlock(l->d.mem);
}

int lapic_ack(struct lapic *l)
{
	mem_lock(l->d.mem);
	int v = lapic_lent(l) ? -1 : deliverable(l);

	if (v >= 0) {
		bit_clear(l->irr, (u8)v);
		bit_set(l->isr, (u8)v);
	} else if (!lapic_lent(l) && !lapic_accepts_pic(l)) {
		v = (int)(l->svr & 0xff); /* INTR went away in between: no ISR bit, no EOI */
	}
	if (v < 0)
		l->extint = false;
	lapic_update_intr(l);
	mem_unlock(l->d.mem);
	return v;
}

/* ---- local sources ------------------------------------------------------------------ */

void lapic_lvt_deliver(struct lapic *l, enum lapic_lvt n)
{
	u32 v = l->lvt[n];
	/* The timer's and the error's entries have no mode field; they are fixed. */
	unsigned mode = n == LVT_TIMER || n == LVT_ERROR ? APIC_FIXED : LVT_MODE(v);

	if (!lapic_enabled(l) || (v & LVT_MASKED))
		return;
	switch (mode) {
	case APIC_FIXED: {
		bool level = n == LVT_LINT0 && (v & LVT_LEVEL);

		if (level && (v & LVT_REMOTE_IRR))
			return;
		if (lapic_accept_fixed(l, (u8)v, level) && level)
			l->lvt[n] |= LVT_REMOTE_IRR;
		return;
	}
	case APIC_SMI:
		if (l->sink.smi)
			l->sink.smi(l->sink.cpu);
		return;
	case APIC_NMI:
		if (l->sink.nmi)
			l->sink.nmi(l->sink.cpu);
		return;
	case APIC_INIT:
		if (l->sink.init)
			l->sink.init(l->sink.cpu);
		return;
	default: /* ExtINT is a level that lapic_update_intr looks at */
		return;
	}
}

void lapic_set_lint0(struct lapic *l, bool level)
{
	bool rose = level && !l->lint0;

	l->lint0 = level;
	if (rose && !lapic_lent(l))
		lapic_lvt_deliver(l, LVT_LINT0);
	lapic_update_intr(l);
}

void lapic_nmi_lint1(struct lapic *l)
{
	if (lapic_enabled(l))
		lapic_lvt_deliver(l, LVT_LINT1);
	else if (l->sink.nmi) /* without an APIC the pin is NMI itself */
		l->sink.nmi(l->sink.cpu);
}

void lapic_set_tsc_adjust(struct lapic *l, u64 adjust)
{
	mem_lock(l->d.mem);
	l->tsc_adjust = adjust;
	lapic_tsc_changed(l);
	mem_unlock(l->d.mem);
}

u8 lapic_get_tpr(struct lapic *l)
{
	mem_lock(l->d.mem);
	u8 tpr = (u8)l->tpr;

	mem_unlock(l->d.mem);
	return tpr;
}

void lapic_set_tpr(struct lapic *l, u8 tpr)
{
	mem_lock(l->d.mem);
	l->tpr = tpr;
	lapic_update_intr(l);
	mem_unlock(l->d.mem);
}

bool lapic_enabled(const struct lapic *l)
{
	return __atomic_load_n(&l->base, __ATOMIC_RELAXED) & APIC_BASE_EN;
}

/* ---- life --------------------------------------------------------------------------- */

void lapic_reset_registers(struct lapic *l)
{
	l->tpr = l->ldr = l->esr = l->esr_pending = l->icr = l->icr_high = 0;
	l->dfr = UINT32_MAX;
	l->svr = 0xff;
	for (int i = 0; i < LVT_COUNT; i++)
		l->lvt[i] = LVT_MASKED;
	memset(l->isr, 0, sizeof(l->isr));
	memset(l->irr, 0, sizeof(l->irr));
	memset(l->tmr, 0, sizeof(l->tmr));
	l->lowest_count = 0;
	l->extint = false;
	lapic_timer_reset(l);
}

void lapic_reset(struct lapic *l)
{
	lapic_reset_registers(l);
	l->base = APIC_BASE_DEFAULT | APIC_BASE_EN | (l->bsp ? APIC_BASE_BSP : 0);
	l->id = l->x2id & 0xff;
	lapic_place_window(l);
	lapic_update_intr(l);
}

void lapic_init_taken(struct lapic *l)
{
	mem_lock(l->d.mem);
	lapic_reset_registers(l);
	lapic_update_intr(l);
	mem_unlock(l->d.mem);
}

static bool lapic_init(struct device *d, struct error *e)
{
	struct lapic *l = container_of(d, struct lapic, d);

	l->features = (struct lapic_features){ .maxphyaddr = 36, .x2apic = true, .tsc_deadline = true };
	lapic_timer_setup(l);
	return true;
}

static void lapic_device_reset(struct device *d)
{
	lapic_reset(container_of(d, struct lapic, d));
}

static void lapic_destroy(struct device *d)
{
	lapic_unplug(container_of(d, struct lapic, d));
}

static void lapic_loaded(struct device *d)
{
	struct lapic *l = container_of(d, struct lapic, d);

	/* The state may come from anywhere: bits that cannot be there would break invariants. */
	l->tpr &= 0xff;
	l->timer_divide &= 0xb;
	if (!(l->base & APIC_BASE_EN))
		l->base &= ~APIC_BASE_X2;
	l->base &= ((1ull << l->features.maxphyaddr) - 1) & ~0x2ffull;
	if (!l->timer_initial || !l->timer_period)
		l->timer_counting = false;
	l->lint0 = !!l->lint0;
	l->extint = !!l->extint;
	lapic_place_window(l);
	/* Whatever the processor was told before: tell it again. */
	l->intr = 2;
	lapic_update_intr(l);
}

static const struct state_field lapic_state[] = {
	STATE(struct lapic, base), STATE(struct lapic, id), STATE(struct lapic, tpr),
	STATE(struct lapic, ldr), STATE(struct lapic, dfr), STATE(struct lapic, svr),
	STATE(struct lapic, esr), STATE(struct lapic, esr_pending),
	STATE(struct lapic, icr), STATE(struct lapic, icr_high), STATE(struct lapic, lvt),
	STATE(struct lapic, isr), STATE(struct lapic, irr), STATE(struct lapic, tmr),
	STATE(struct lapic, lowest_count), STATE(struct lapic, lint0), STATE(struct lapic, extint),
	STATE(struct lapic, timer_initial), STATE(struct lapic, timer_divide),
	STATE(struct lapic, timer_counting), STATE(struct lapic, timer_expiry),
	STATE(struct lapic, timer_period), STATE(struct lapic, tsc_deadline),
	STATE(struct lapic, tsc_adjust), STATE_TIMER(struct lapic, timer),
	STATE_END
};

const struct device_class lapic_class = {
	.name = "lapic",
	.help = "local APIC of one processor, xAPIC and x2APIC",
	.size = sizeof(struct lapic),
	.init = lapic_init,
	.reset = lapic_device_reset,
	.destroy = lapic_destroy,
	.loaded = lapic_loaded,
	.state = lapic_state,
};
