/* Local APICs that somebody else runs: a kernel that virtualizes them (apic_api.h).
 *
 * Meanwhile struct lapic is where their state lies while it is looked at: no timer of it is armed, no vector of it
 * is delivered, and what comes for a LAPIC on the bus goes to the runner as an MSI. The 8259s stay here: their
 * output, which is the first processor's LINT0, is its set_intr.
 *
 * The page's layout is the architecture's: SDM vol. 3, table 11-1. ISR, TMR and IRR are eight registers each. */
#define LOG_TOPIC "lapic"
#include <string.h>

#include "dev/lapic_impl.h"

/* ---- messages ------------------------------------------------------------------------------ */

struct msi lapic_msi_of(const struct apic_msg *m)
{
	return (struct msi){ APIC_BASE_DEFAULT | (u64)(m->dest & 0xff) << 12 | (m->logical ? 4 : 0),
			     m->vector | (u32)m->mode << 8 | (m->level ? 0xc000u : 0x4000u) };
}

bool lapic_lent_send(struct lapic_bus *b, const struct apic_msg *m)
{
	return b->runner->send(b->runner->arg, lapic_msi_of(m));
}

/* ---- state --------------------------------------------------------------------------------------- */

static u32 *vectors_of(struct lapic *l, unsigned k)
{
	u32 *const v[] = { l->isr, l->tmr, l->irr };
	return v[k];
}

/* The registers that are one field each. */
static const struct { u8 reg; u16 field; } plain[] = {
	{ R_TPR, offsetof(struct lapic, tpr) }, { R_LDR, offsetof(struct lapic, ldr) }, { R_DFR, offsetof(struct lapic, dfr) },
	{ R_SVR, offsetof(struct lapic, svr) }, { R_ESR, offsetof(struct lapic, esr) }, { R_ICR, offsetof(struct lapic, icr) },
	{ R_ICR_HIGH, offsetof(struct lapic, icr_high) }, { R_TIMER_DIVIDE, offsetof(struct lapic, timer_divide) },
};

static void page_put(u8 *page, unsigned reg, u32 v) { st32(page + 16 * reg, v); }
static u32 page_get(const u8 *page, unsigned reg) { return ld32(page + 16 * reg); }

void lapic_get_state(struct lapic *l, struct apic_state *s)
{
	static const u8 first[] = { R_ISR, R_TMR, R_IRR };

	*s = (struct apic_state){ .base = l->base, .tsc_deadline = l->tsc_deadline };
	for (size_t k = 0; k < ARRAY_LEN(plain); k++)
		page_put(s->page, plain[k].reg, *(const u32 *)(const void *)((const u8 *)l + plain[k].field));
	for (unsigned k = 0; k < ARRAY_LEN(first); k++)
		for (unsigned n = 0; n < 8; n++)
			page_put(s->page, first[k] + n, vectors_of(l, k)[n]);
	for (unsigned k = 0; k < LVT_COUNT; k++)
		page_put(s->page, R_LVT + k, l->lvt[k]);
	page_put(s->page, R_ID, (lapic_is_x2(l) ? l->x2id : l->id) << 24);
	page_put(s->page, R_VERSION, LAPIC_VERSION);
	if (lapic_is_x2(l))
		page_put(s->page, R_LDR, (l->x2id >> 4) << 16 | 1u << (l->x2id & 15));
	page_put(s->page, R_TIMER_INITIAL, l->timer_initial);
	u32 left = lapic_timer_current(l);
	page_put(s->page, R_TIMER_CURRENT, l->timer_counting ? MAX(left, 1u) : left); /* due, and not over yet */
}

void lapic_set_state(struct lapic *l, const struct apic_state *s)
{
	static const u8 first[] = { R_ISR, R_TMR, R_IRR };
	u64 was = l->base;

	l->base = s->base;
	for (size_t k = 0; k < ARRAY_LEN(plain); k++)
		if (plain[k].reg != R_LDR || !lapic_is_x2(l))
			*(u32 *)(void *)((u8 *)l + plain[k].field) = page_get(s->page, plain[k].reg);
	for (unsigned k = 0; k < ARRAY_LEN(first); k++)
		for (unsigned n = 0; n < 8; n++)
			vectors_of(l, k)[n] = page_get(s->page, first[k] + n);
	for (unsigned k = 0; k < LVT_COUNT; k++)
		l->lvt[k] = page_get(s->page, R_LVT + k);
	if (!lapic_is_x2(l))
		l->id = page_get(s->page, R_ID) >> 24;
	l->tpr &= 0xff;
	l->timer_divide &= 0xb;
	lapic_timer_load(l, page_get(s->page, R_TIMER_INITIAL), page_get(s->page, R_TIMER_CURRENT), s->tsc_deadline);
	if (l->base != was)
		lapic_place_window(l);
	lapic_update_intr(l);
}

/* ---- lending ------------------------------------------------------------------------------------------ */

void lapic_bus_lend(struct lapic_bus *b, const struct apic_runner *r)
{
	b->runner = r;
	for (unsigned k = 0; k < b->n; k++) {
		if (r)
			lapic_timer_lend(b->cpus[k]);
		else
			lapic_timer_back(b->cpus[k]);
		lapic_update_intr(b->cpus[k]);
	}
	if (r && b->ioapic)
		ioapic_tell_pins(b->ioapic);
}
