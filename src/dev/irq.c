/* Where interrupt lines go on this board.
 *
 *   source          i8259 pair      IOAPIC pin
 *   ISA irq 0       IR0             2           (the MADT says so by an override)
 *   ISA irq 1       IR1             1
 *   GSI 2           -               2           (IR2 is the cascade)
 *   GSI 3..15       IR3..IR15       3..15
 *   GSI 16..23      -               16..23
 *
 * GSI 9 is the SCI; the MADT's override makes it active high, so it passes as it is.
 * Pin 0 of the IOAPIC is not connected: the pair's output reaches processors by LINT0 alone.
 *
 * Invariant: a line is high while any of its sources holds it high. Chips are told the level
 * at every call, changed or not: they find edges themselves, and after a load they and the
 * router agree again as soon as each device has repeated its levels. */
#include "dev/dev.h"

#define ISA_LINES 16u
#define TIMER_IRQ 0u
#define RTC_IRQ 8u
#define CASCADE_IRQ 2u
#define TIMER_PIN 2u

/* The level of a line; the HPET's legacy replacement cuts off the i8254 and the mc146818. */
static bool line_level(const struct irq_router *r, unsigned gsi)
{
	u8 sources = r->level[gsi];

	if (r->hpet_legacy && (gsi == TIMER_IRQ || gsi == RTC_IRQ))
		sources &= (u8)~(1u << IRQ_SOURCE_DEVICE);
	return sources != 0;
}

static void line_drive(struct irq_router *r, unsigned gsi)
{
	bool level = line_level(r, gsi);

	if (r->pic && gsi < ISA_LINES && gsi != CASCADE_IRQ)
		i8259_set_irq(r->pic, gsi, level);
	if (!r->ioapic)
		return;
	if (gsi == TIMER_IRQ || gsi == TIMER_PIN)
		ioapic_set_irq(r->ioapic, TIMER_PIN, line_level(r, TIMER_IRQ) || line_level(r, TIMER_PIN));
	else
		ioapic_set_irq(r->ioapic, gsi, level);
}

void irq_set_source(struct irq_router *r, unsigned gsi, unsigned source, bool level)
{
	u8 bit = (u8)(1u << (source & 7));

	if (!r || gsi >= ARRAY_LEN(r->level))
		return;
	if (level)
		r->level[gsi] |= bit;
	else
		r->level[gsi] &= (u8)~bit;
	line_drive(r, gsi);
}

void irq_set(struct irq_router *r, unsigned gsi, bool level)
{
	irq_set_source(r, gsi, IRQ_SOURCE_DEVICE, level);
}

void irq_set_hpet_legacy(struct irq_router *r, bool on)
{
	if (!r || r->hpet_legacy == on)
		return;
	r->hpet_legacy = on;
	line_drive(r, TIMER_IRQ);
	line_drive(r, RTC_IRQ);
}

void irq_msi(struct irq_router *r, u64 addr, u32 data)
{
	if (r && r->lapic_bus)
		lapic_bus_msi(r->lapic_bus, addr, data);
}
