/* A board without processors for tests of single devices: memory, a clock that stands until it
 * is moved, an interrupt router, hooks that count, and processors that note what they are told. */
#ifndef TESTS_DEV_RIG_H
#define TESTS_DEV_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "dev/dev.h"

struct rig {
	struct mem mem;
	struct clock clock;
	struct irq_router irqs;
	struct machine_hooks hooks;
	struct device links;
	int resets, power_offs, cpu_inits, sleeps;
	unsigned sleep_typ;
};

static inline void rig_reset(void *arg) { ((struct rig *)arg)->resets++; }
static inline void rig_power_off(void *arg) { ((struct rig *)arg)->power_offs++; }
static inline void rig_cpu_init(void *arg) { ((struct rig *)arg)->cpu_inits++; }
static inline void rig_sleep(void *arg, unsigned typ)
{
	((struct rig *)arg)->sleeps++;
	((struct rig *)arg)->sleep_typ = typ;
}

static inline struct rig *rig_new(void)
{
	struct rig *r = calloc(1, sizeof(*r));
	struct error e;

	assert_non_null(r);
	if (!mem_init(&r->mem, 8 << 20, &e) || !clock_init(&r->clock, true, &e))
		fail_msg("%s", e.msg);
	r->hooks = (struct machine_hooks){ .arg = r, .reset = rig_reset, .power_off = rig_power_off,
					   .cpu_init_signal = rig_cpu_init, .acpi_sleep = rig_sleep };
	r->links = (struct device){ .mem = &r->mem, .clock = &r->clock, .irqs = &r->irqs, .hooks = &r->hooks };
	return r;
}

static inline void rig_free(struct rig *r)
{
	clock_destroy(&r->clock);
	mem_destroy(&r->mem);
	free(r);
}

static inline struct device *rig_device(struct rig *r, const struct device_class *cls)
{
	struct error e;
	struct device *d = device_new(cls, &r->links, &e);

	if (!d)
		fail_msg("%s", e.msg);
	return d;
}

/* Moves the clock to ns and runs what is due there. */
static inline void rig_at(struct rig *r, u64 ns)
{
	clock_advance_to(&r->clock, ns);
	mem_lock(&r->mem);
	clock_run_due(&r->clock);
	mem_unlock(&r->mem);
}

static inline void rig_advance(struct rig *r, u64 ns)
{
	rig_at(r, clock_ns(&r->clock) + ns);
}

/* Save, load into the same device, save: equal, and loading succeeds. */
static inline void rig_round_trip(struct device *d)
{
	static u8 a[65536], b[65536];
	struct error e;
	size_t n = device_save(d, a, sizeof(a));

	mem_lock(d->mem);
	if (!device_load(d, a, n, &e))
		fail_msg("%s", e.msg);
	mem_unlock(d->mem);
	assert_int_equal(device_save(d, b, sizeof(b)), n);
	assert_memory_equal(a, b, n);
}

/* xorshift: the same accesses in each run. */
static inline u64 rig_random(u64 *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

/* Mostly small or full of ones, at times anything: what finds borders. */
static inline u64 rig_random_value(u64 *s)
{
	u64 v = rig_random(s), pick = v >> 60;

	v = rig_random(s);
	if (pick < 4)
		return v & 0xff;
	if (pick < 7)
		return v & 0xfffff;
	if (pick < 8)
		return UINT64_MAX << (v & 63);
	if (pick < 9)
		return 1ull << (v & 63);
	return v;
}

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

/* ---- a rig with local APICs ---------------------------------------------------------- */

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
	struct rig *r;
	struct lapic_bus *bus;
	struct ioapic *io;
	struct fake_cpu cpu[RIG_CPUS];
	struct lapic *l[RIG_CPUS];
};

static inline struct apic_rig *apic_rig_new(void)
{
	struct apic_rig *a = calloc(1, sizeof(*a));

	assert_non_null(a);
	a->r = rig_new();
	a->bus = (struct lapic_bus *)rig_device(a->r, &lapic_bus_class);
	a->io = (struct ioapic *)rig_device(a->r, &ioapic_class);
	ioapic_connect(a->io, a->bus);
	a->r->irqs.ioapic = a->io;
	a->r->irqs.lapic_bus = a->bus;
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
	rig_free(a->r);
	free(a);
}

/* Registers of processor n. */
static inline u32 apic_get(struct apic_rig *a, unsigned n, u32 off)
{
	lapic_set_current(a->l[n]);
	return (u32)mem_phys_read(&a->r->mem, APIC + off, 4);
}

static inline void apic_set(struct apic_rig *a, unsigned n, u32 off, u32 val)
{
	lapic_set_current(a->l[n]);
	mem_phys_write(&a->r->mem, APIC + off, val, 4);
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
