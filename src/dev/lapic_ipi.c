/* Messages between local APICs, from IOAPICs and from devices. SDM vol. 3, 11.6 (IPIs),
 * 11.6.2 (destinations), 11.11 (MSI), 11.12.9 and .10 (x2APIC ICR and logical IDs).
 *
 * Invariants
 *  1. A LAPIC that IA32_APIC_BASE disables receives nothing.
 *  2. 0xff is everybody for an 8-bit destination, 0xffffffff for a 32-bit one, physical and
 *     logical alike. LAPICs in xAPIC and x2APIC mode may be mixed.
 *  3. IPIs other than INIT are edge-triggered and asserted, whatever ICR bits 14 and 15 say
 *     (since the Pentium 4); INIT level de-assert does nothing.
 *
 * Left out: remote read, MSI destinations above 255 (interrupt remapping), bus arbitration.
 * ESR's send and receive accept errors do not exist on this kind of bus. */
#define LOG_TOPIC "lapic"
#include "dev/lapic_impl.h"

#define ICR_LOGICAL (1u << 11)
#define ICR_ASSERT (1u << 14)
#define ICR_LEVEL (1u << 15)

#define DFR_FLAT 0xfu
#define DFR_CLUSTER 0u

enum { SHORT_NONE, SHORT_SELF, SHORT_ALL, SHORT_OTHERS };

static bool is_broadcast(const struct apic_msg *m)
{
	return m->dest32 ? m->dest == UINT32_MAX : (m->dest & 0xff) == 0xff;
}

static bool matches_physical(const struct lapic *l, const struct apic_msg *m)
{
	return m->dest == (lapic_is_x2(l) ? l->x2id : l->id);
}

static bool matches_logical(const struct lapic *l, const struct apic_msg *m)
{
	if (lapic_is_x2(l)) {
		u32 ldr = (l->x2id >> 4) << 16 | 1u << (l->x2id & 15);

		return ldr >> 16 == m->dest >> 16 && (ldr & m->dest & 0xffff);
	}
	u32 mine = l->ldr >> 24, dest = m->dest & 0xff;

	/* A 32-bit destination outside cluster 0 cannot mean a LAPIC with an 8-bit logical ID. */
	if (m->dest >> 16)
		return false;
	switch (l->dfr >> 28) {
	case DFR_FLAT:
		return mine & dest;
	case DFR_CLUSTER:
		return mine >> 4 == dest >> 4 && (mine & dest & 15);
	default:
		return false;
	}
}

static bool is_destination(const struct lapic *l, const struct apic_msg *m)
{
	if (!lapic_enabled(l))
		return false;
	if (is_broadcast(m))
		return true;
	return m->logical ? matches_logical(l, m) : matches_physical(l, m);
}

/* One LAPIC receives; true if it took the message. */
static bool receive(struct lapic *l, const struct apic_msg *m)
{
	switch (m->mode) {
	case APIC_FIXED:
	case APIC_LOWEST:
		return lapic_accept_fixed(l, m->vector, m->level);
	case APIC_SMI:
		if (l->sink.smi)
			l->sink.smi(l->sink.cpu);
		return true;
	case APIC_NMI:
		if (l->sink.nmi)
			l->sink.nmi(l->sink.cpu);
		return true;
	case APIC_INIT:
		if (l->sink.init)
			l->sink.init(l->sink.cpu);
		return true;
	case APIC_SIPI:
		if (l->sink.sipi)
			l->sink.sipi(l->sink.cpu, m->vector);
		return true;
	case APIC_EXTINT:
		if (!lapic_soft_enabled(l))
			return false;
		l->extint = true;
		lapic_update_intr(l);
		return true;
	default:
		return false;
	}
}

/* The lower priority; among equals who had fewer of these, so that the choice goes round and
 * is the same in each run. */
static bool is_lower(const struct lapic *a, const struct lapic *b)
{
	u32 pa = lapic_ppr(a) >> 4, pb = lapic_ppr(b) >> 4;

	return pa != pb ? pa < pb : (i32)(a->lowest_count - b->lowest_count) < 0;
}

static bool deliver(struct lapic_bus *b, const struct apic_msg *m, struct lapic *from, unsigned shorthand)
{
	struct lapic *lowest = NULL;
	bool taken = false;

	if (b->runner && shorthand == SHORT_NONE)
		return lapic_lent_send(b, m);
	for (unsigned i = 0; i < b->n; i++) {
		struct lapic *l = b->cpus[i];

		if (shorthand == SHORT_OTHERS ? l == from || !lapic_enabled(l)
		    : shorthand == SHORT_ALL ? !lapic_enabled(l) : !is_destination(l, m))
			continue;
		if (b->runner)
			taken |= lapic_lent_send(b, &(struct apic_msg){ .dest = l->x2id, .level = m->level, .mode = m->mode, .vector = m->vector });
		else if (m->mode != APIC_LOWEST)
			taken |= receive(l, m);
		else if (lapic_soft_enabled(l) && (!lowest || is_lower(l, lowest)))
			lowest = l;
	}
	if (!lowest)
		return taken;
	lowest->lowest_count++;
	return receive(lowest, m);
}

bool lapic_bus_deliver(struct lapic_bus *b, const struct apic_msg *m)
{
	return deliver(b, m, NULL, SHORT_NONE);
}

void lapic_bus_msi(struct lapic_bus *b, u64 addr, u32 data)
{
	struct apic_msg m = {
		.dest = addr >> 12 & 0xff,
		.logical = addr & 4,
		.mode = data >> 8 & 7,
		.vector = (u8)data,
		.level = data & 0x8000,
	};

	if (addr >> 20 != APIC_BASE_DEFAULT >> 20)
		return; /* not the interrupt range: nobody listens */
	if (m.level && !(data & 0x4000))
		return; /* a level-triggered message that says "deasserted" */
	if (m.mode == APIC_SIPI || m.mode == APIC_RESERVED) {
		log_guest("MSI with a reserved delivery mode: address %#llx, data %#x",
			  (unsigned long long)addr, data);
		return;
	}
	if (m.mode != APIC_FIXED && m.mode != APIC_LOWEST)
		m.level = false;
	if (m.mode == APIC_FIXED && (addr & 8)) /* redirection hint: one of those named */
		m.mode = APIC_LOWEST;
	lapic_bus_deliver(b, &m);
}

void lapic_icr_write(struct lapic *l, u32 low, u32 dest)
{
	unsigned shorthand = low >> 18 & 3;
	struct apic_msg m = {
		.dest = dest,
		.dest32 = lapic_is_x2(l),
		.logical = low & ICR_LOGICAL,
		.mode = low >> 8 & 7,
		.vector = (u8)low,
	};

	if (m.mode == APIC_RESERVED || m.mode == APIC_EXTINT) {
		log_guest("IPI with reserved delivery mode %u", m.mode);
		return;
	}
	/* SDM vol. 3, table 11-3 has fixed ones alone; NMI and SMI to self by shorthand processors deliver all the same. */
	bool to_self = shorthand == SHORT_SELF && (m.mode == APIC_NMI || m.mode == APIC_SMI);
	if ((shorthand == SHORT_SELF || shorthand == SHORT_ALL) && m.mode != APIC_FIXED && !to_self) {
		log_guest("IPI to self by shorthand with delivery mode %u: not valid", m.mode);
		return;
	}
	if (m.mode == APIC_INIT && (low & ICR_LEVEL) && !(low & ICR_ASSERT))
		return;
	if ((m.mode == APIC_FIXED || m.mode == APIC_LOWEST) && m.vector < 16) {
		lapic_error(l, ESR_SEND_ILLEGAL);
		return;
	}
	if (shorthand == SHORT_SELF)
		receive(l, &m);
	else if (l->bus)
		deliver(l->bus, &m, l, shorthand);
}

void lapic_self_ipi(struct lapic *l, u8 vector)
{
	lapic_accept_fixed(l, vector, false);
}
