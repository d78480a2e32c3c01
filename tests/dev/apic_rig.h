/* A board with four local APICs and an IOAPIC, and processors that note what they are told. */
#ifndef TESTS_DEV_APIC_RIG_H
#define TESTS_DEV_APIC_RIG_H

#include "board.h"

struct fake_cpu {
	bool intr;
	int nmis, smis, inits, sipis;
	u8 sipi_vector;
};

static inline void fake_set_intr(void *c, bool level) { ((struct fake_cpu *)c)->intr = level; }
static inline void fake_nmi(void *c) { ((struct fake_cpu *)c)->nmis++; }
static inline void fake_smi(void *c) { ((struct fake_cpu *)c)->smis++; }
static inline void fake_init(void *c) { ((struct fake_cpu *)c)->inits++; }
static inline void fake_sipi(void *c, u8 v)
{
	((struct fake_cpu *)c)->sipis++;
	((struct fake_cpu *)c)->sipi_vector = v;
}

static inline struct irq_sink fake_sink(struct fake_cpu *c)
{
	return (struct irq_sink){ c, fake_set_intr, fake_nmi, fake_smi, fake_init, fake_sipi };
}

/* ---- the board ------------------------------------------------------------------------ */

#define APIC 0xfee00000ull
enum {
	A_ID = 0x20, A_VERSION = 0x30, A_TPR = 0x80, A_APR = 0x90, A_PPR = 0xa0, A_EOI = 0xb0, A_LDR = 0xd0,
	A_DFR = 0xe0, A_SVR = 0xf0, A_ISR = 0x100, A_TMR = 0x180, A_IRR = 0x200, A_ESR = 0x280,
	A_ICR = 0x300, A_ICR2 = 0x310, A_TIMER = 0x320, A_THERMAL = 0x330, A_PERF = 0x340, A_LINT0 = 0x350,
	A_LINT1 = 0x360, A_ERROR = 0x370, A_TICR = 0x380, A_TCCR = 0x390, A_TDCR = 0x3e0,
};
#define MSR_BASE 0x1bu
#define MSR_DEADLINE 0x6e0u
#define MSR_X2(off) (0x800u + ((off) >> 4))
#define BASE_BSP 0x100ull
#define BASE_X2 0x400ull
#define BASE_EN 0x800ull

#define RIG_CPUS 4
struct apic_rig {
	struct board *b;
	struct lapic_bus *bus;
	struct ioapic *io;
	struct fake_cpu cpu[RIG_CPUS];
	struct lapic *l[RIG_CPUS];
};

static inline struct apic_rig *apic_rig_new(void)
{
	struct apic_rig *a = calloc(1, sizeof(*a));

	assert_non_null(a);
	a->b = board_bare();
	a->bus = (struct lapic_bus *)board_device(a->b, &lapic_bus_class);
	a->io = (struct ioapic *)board_device(a->b, &ioapic_class);
	ioapic_connect(a->io, a->bus);
	a->b->irqs.ioapic = a->io;
	a->b->irqs.lapic_bus = a->bus;
	for (unsigned i = 0; i < RIG_CPUS; i++) {
		struct irq_sink sink = fake_sink(&a->cpu[i]);

		a->l[i] = lapic_add(a->bus, i, i == 0, &sink);
		assert_non_null(a->l[i]);
	}
	lapic_set_current(a->l[0]);
	return a;
}

static inline void apic_rig_free(struct apic_rig *a)
{
	device_free((struct device *)a->io);
	device_free((struct device *)a->bus);
	board_free(a->b);
	free(a);
}

/* Registers of processor n. */
static inline u32 apic_get(struct apic_rig *a, unsigned n, u32 off)
{
	lapic_set_current(a->l[n]);
	return (u32)mem_phys_read(&a->b->mem, APIC + off, 4);
}

static inline void apic_set(struct apic_rig *a, unsigned n, u32 off, u32 val)
{
	lapic_set_current(a->l[n]);
	mem_phys_write(&a->b->mem, APIC + off, val, 4);
}

static inline void apic_enable_all(struct apic_rig *a)
{
	for (unsigned i = 0; i < RIG_CPUS; i++)
		apic_set(a, i, A_SVR, 0x1ff);
}

/* Bit of a 256-bit register. */
static inline bool apic_bit(struct apic_rig *a, unsigned n, u32 reg, unsigned vector)
{
	return apic_get(a, n, reg + vector / 32 * 16) >> vector % 32 & 1;
}

static inline bool apic_to_x2(struct apic_rig *a, unsigned n)
{
	u64 base;

	return lapic_msr_read(a->l[n], MSR_BASE, &base) && lapic_msr_write(a->l[n], MSR_BASE, base | BASE_X2);
}

#endif
