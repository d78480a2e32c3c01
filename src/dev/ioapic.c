/* 82093AA I/O APIC, as version 0x20 (which adds the EOI register), 24 pins at 0xfec00000.
 * 82093AA datasheet, 3.1 and 3.2; the EOI register as in the ICH family.
 *
 *   +0x00 IOREGSEL (8 bits)   index of a register
 *   +0x10 IOWIN               that register: 0 ID, 1 version, 2 arbitration, 0x10.. REDTBL
 *   +0x40 EOIR (write)        vector: as an EOI broadcast
 *
 * Invariants
 *  1. lines holds the present level of each pin; an edge is seen only in ioapic_set_irq, and
 *     an edge that comes while its entry is masked is lost.
 *  2. Remote IRR of a level-triggered entry is set exactly from when a LAPIC took the
 *     interrupt until its EOI; while set, the pin delivers nothing.
 *  3. A level-triggered pin that is high, unmasked and without remote IRR has been offered to
 *     the LAPICs after the last event that could change the outcome: line, entry, EOI, or a
 *     LAPIC that was enabled.
 *
 * The levels of irq_set mean "asserted", so the polarity bit is kept and changes nothing.
 * Left out: interrupt remapping. Machine lock held. */
#define LOG_TOPIC "ioapic"
#include "dev/lapic_impl.h"

#define IOAPIC_BASE 0xfec00000ull
#define PINS 24u
#define VERSION (0x20u | (PINS - 1) << 16)

#define RTE_LOGICAL (1u << 11)
#define RTE_REMOTE_IRR (1ull << 14)
#define RTE_LEVEL (1ull << 15)
#define RTE_MASKED (1ull << 16)
#define RTE_WRITABLE 0xff0000000001afffull /* not bits 12 and 14, which are read-only */

enum { REG_SELECT = 0x00, REG_WINDOW = 0x10, REG_EOI = 0x40 };
enum { INDEX_ID = 0, INDEX_VERSION = 1, INDEX_ARBITRATION = 2, INDEX_REDTBL = 0x10 };

struct ioapic {
	struct device d;
	struct lapic_bus *bus;
	u64 redtbl[PINS];
	u32 id;      /* bits 27:24 in place */
	u32 lines;   /* bit n: pin n is asserted */
	u8 select;
};

static bool is_level(u64 e)
{
	unsigned mode = e >> 8 & 7;

	/* SMI, NMI, INIT and ExtINT are edges whatever the entry says. */
	return (e & RTE_LEVEL) && (mode == APIC_FIXED || mode == APIC_LOWEST);
}

static struct apic_msg message(u64 e)
{
	return (struct apic_msg){ .dest = (u32)(e >> 56), .logical = e & RTE_LOGICAL, .level = is_level(e), .mode = e >> 8 & 7, .vector = (u8)e };
}

void ioapic_tell_pins(struct ioapic *io)
{
	const struct apic_runner *r = io->bus ? io->bus->runner : NULL;
	struct msi m[PINS] = { 0 };

	for (unsigned n = 0; r && n < PINS; n++) {
		struct apic_msg k = message(io->redtbl[n]);
		if (!(io->redtbl[n] & RTE_MASKED) && k.mode != APIC_SIPI && k.mode != APIC_RESERVED)
			m[n] = lapic_msi_of(&k);
	}
	if (r)
		r->pins(r->arg, m, PINS);
}

/* Sends what pin n has to say now. */
static void deliver(struct ioapic *io, unsigned n)
{
	u64 e = io->redtbl[n];
	struct apic_msg m = message(e);

	if ((e & RTE_MASKED) || (m.level && (e & RTE_REMOTE_IRR)) || !io->bus)
		return;
	if (m.mode == APIC_SIPI || m.mode == APIC_RESERVED)
		return;
	/* Before the delivery: an EOI must find it, and what the delivery causes may come back here. */
	if (m.level)
		io->redtbl[n] |= RTE_REMOTE_IRR;
	if (!lapic_bus_deliver(io->bus, &m) && m.level)
		io->redtbl[n] &= ~RTE_REMOTE_IRR;
}

static void deliver_level(struct ioapic *io, unsigned n)
{
	if ((io->lines >> n & 1) && is_level(io->redtbl[n]))
		deliver(io, n);
}

void ioapic_set_irq(struct ioapic *io, unsigned pin, bool level)
{
	if (pin >= PINS)
		return;
	u32 bit = 1u << pin;
	bool rose = level && !(io->lines & bit);

	io->lines = level ? io->lines | bit : io->lines & ~bit;
	if (rose && !is_level(io->redtbl[pin]))
		deliver(io, pin);
	else
		deliver_level(io, pin);
}

void ioapic_retry(struct ioapic *io)
{
	for (unsigned n = 0; n < PINS; n++)
		deliver_level(io, n);
}

void ioapic_eoi(struct ioapic *io, u8 vector)
{
	for (unsigned n = 0; n < PINS; n++) {
		u64 *e = &io->redtbl[n];

		if ((u8)*e != vector || !(*e & RTE_REMOTE_IRR))
			continue;
		*e &= ~RTE_REMOTE_IRR;
		deliver_level(io, n);
	}
}

static u32 index_read(const struct ioapic *io)
{
	unsigned n = (unsigned)(io->select - INDEX_REDTBL) / 2;

	switch (io->select) {
	case INDEX_ID: return io->id;
	case INDEX_VERSION: return VERSION;
	case INDEX_ARBITRATION: return io->id;
	case INDEX_REDTBL ... INDEX_REDTBL + 2 * PINS - 1:
		return (u32)(io->select & 1 ? io->redtbl[n] >> 32 : io->redtbl[n]);
	default: return 0;
	}
}

static void entry_write(struct ioapic *io, unsigned n, unsigned shift, u32 val)
{
	u64 mask = (u64)UINT32_MAX << shift & RTE_WRITABLE, e = io->redtbl[n];

	e = (e & ~mask) | ((u64)val << shift & mask);
	/* Going through edge-triggered is how software without EOIR takes an interrupt back. */
	if (!(e & RTE_LEVEL))
		e &= ~RTE_REMOTE_IRR;
	io->redtbl[n] = e;
	ioapic_tell_pins(io);
	deliver_level(io, n);
}

static void index_write(struct ioapic *io, u32 val)
{
	switch (io->select) {
	case INDEX_ID:
		io->id = val & 0x0f000000;
		break;
	case INDEX_REDTBL ... INDEX_REDTBL + 2 * PINS - 1:
		entry_write(io, (unsigned)(io->select - INDEX_REDTBL) / 2, io->select & 1 ? 32 : 0, val);
		break;
	default:
		log_guest("write of %#x to register %#x, which is read-only or not there", val, io->select);
	}
}

static u64 ioapic_read(void *dev, u64 off, unsigned size)
{
	struct ioapic *io = dev;

	/* Parts of a register read as they lie in memory. */
	unsigned shift = (off & 3) * 8;

	switch (off & 0xfc) {
	case REG_SELECT: return (u64)io->select >> shift;
	case REG_WINDOW: return (u64)index_read(io) >> shift;
	default: return 0;
	}
}

/* Narrow writes are taken as the low part of a dword, as chipsets do. */
static void ioapic_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct ioapic *io = dev;

	switch (off & 0xff) {
	case REG_SELECT: io->select = (u8)val; break;
	case REG_WINDOW: index_write(io, (u32)val); break;
	case REG_EOI: ioapic_eoi(io, (u8)val); break;
	default: break;
	}
}

void ioapic_connect(struct ioapic *io, struct lapic_bus *bus)
{
	io->bus = bus;
	bus->ioapic = io;
}

static const struct mmio_ops ioapic_ops = { ioapic_read, ioapic_write, 1, 4 };

static bool ioapic_init(struct device *d, struct error *e)
{
	return mem_add_mmio(d->mem, "ioapic", IOAPIC_BASE, PAGE_SIZE, &ioapic_ops, d, 8, e);
}

/* Lines belong to the devices that drive them and stay. */
static void ioapic_reset(struct device *d)
{
	struct ioapic *io = container_of(d, struct ioapic, d);

	for (unsigned n = 0; n < PINS; n++)
		io->redtbl[n] = RTE_MASKED;
	io->id = 0;
	io->select = 0;
	ioapic_tell_pins(io);
}

static void ioapic_destroy(struct device *d)
{
	struct ioapic *io = container_of(d, struct ioapic, d);

	if (io->bus && io->bus->ioapic == io)
		io->bus->ioapic = NULL;
}

static void ioapic_loaded(struct device *d)
{
	struct ioapic *io = container_of(d, struct ioapic, d);

	for (unsigned n = 0; n < PINS; n++)
		io->redtbl[n] &= RTE_WRITABLE | RTE_REMOTE_IRR;
	io->lines &= (1u << PINS) - 1;
}

static const struct state_field ioapic_state[] = {
	STATE(struct ioapic, redtbl), STATE(struct ioapic, id),
	STATE(struct ioapic, lines), STATE(struct ioapic, select),
	STATE_END
};

const struct device_class ioapic_class = {
	.name = "ioapic",
	.help = "82093AA I/O APIC, 24 pins",
	.size = sizeof(struct ioapic),
	.init = ioapic_init,
	.reset = ioapic_reset,
	.destroy = ioapic_destroy,
	.loaded = ioapic_loaded,
	.state = ioapic_state,
};
