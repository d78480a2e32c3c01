/* The 82093AA: registers, edges, levels and their EOI. */
#include "apic_rig.h"

#define IOAPIC 0xfec00000ull
#define LEVEL 0x8000u
#define REMOTE_IRR 0x4000u
#define MASKED 0x10000u

static int setup(void **state)
{
	struct apic_rig *a = *state = apic_rig_new();

	apic_enable_all(a);
	return 0;
}

static int teardown(void **state)
{
	apic_rig_free(*state);
	return 0;
}

static u32 io_get(struct apic_rig *a, u8 index)
{
	mem_phys_write(&a->b->mem, IOAPIC, index, 4);
	return (u32)mem_phys_read(&a->b->mem, IOAPIC + 0x10, 4);
}

static void io_set(struct apic_rig *a, u8 index, u32 val)
{
	mem_phys_write(&a->b->mem, IOAPIC, index, 4);
	mem_phys_write(&a->b->mem, IOAPIC + 0x10, val, 4);
}

static void route(struct apic_rig *a, unsigned pin, u32 low, u8 dest)
{
	io_set(a, (u8)(0x11 + 2 * pin), (u32)dest << 24);
	io_set(a, (u8)(0x10 + 2 * pin), low);
}

static void line(struct apic_rig *a, unsigned gsi, bool level)
{
	mem_lock(&a->b->mem);
	irq_set(&a->b->irqs, gsi, level);
	mem_unlock(&a->b->mem);
}

/* The vector that processor n takes now, 0 if none; without EOI. */
static int take(struct apic_rig *a, unsigned n)
{
	return a->cpu[n].intr ? lapic_ack(a->l[n]) : 0;
}

static void eoi(struct apic_rig *a, unsigned n)
{
	apic_set(a, n, A_EOI, 0);
}

static void registers(void **state)
{
	struct apic_rig *a = *state;

	assert_int_equal(io_get(a, 1), 0x00170020);
	io_set(a, 0, 0xffffffff);
	assert_int_equal(io_get(a, 0), 0x0f000000);
	io_set(a, 1, 0);
	assert_int_equal(io_get(a, 1), 0x00170020);
	for (unsigned pin = 0; pin < 24; pin++) {
		assert_int_equal(io_get(a, (u8)(0x10 + 2 * pin)), MASKED);
		io_set(a, (u8)(0x10 + 2 * pin), 0xffffffff);
		io_set(a, (u8)(0x11 + 2 * pin), 0xffffffff);
		/* Not the read-only bits 12 and 14. */
		assert_int_equal(io_get(a, (u8)(0x10 + 2 * pin)), 0x1afff);
		assert_int_equal(io_get(a, (u8)(0x11 + 2 * pin)), 0xff000000);
	}
	assert_int_equal(io_get(a, 0x40), 0);
	/* The selector is a byte register. */
	mem_phys_write(&a->b->mem, IOAPIC, 1, 1);
	assert_int_equal(mem_phys_read(&a->b->mem, IOAPIC + 0x10, 1), 0x20);
	assert_int_equal(mem_phys_read(&a->b->mem, IOAPIC + 0x12, 1), 0x17);
	assert_int_equal(mem_phys_read(&a->b->mem, IOAPIC, 4), 1);
}

static void edge(void **state)
{
	struct apic_rig *a = *state;

	route(a, 14, 0x77, 1);
	line(a, 14, true);
	assert_int_equal(take(a, 1), 0x77);
	assert_false(apic_bit(a, 1, A_TMR, 0x77));
	line(a, 14, true); /* no new edge */
	eoi(a, 1);
	assert_int_equal(take(a, 1), 0);
	line(a, 14, false);
	assert_int_equal(take(a, 1), 0);
	line(a, 14, true);
	assert_int_equal(take(a, 1), 0x77);
	eoi(a, 1);
	line(a, 14, false);
	/* An edge while masked is lost. */
	route(a, 14, MASKED | 0x77, 1);
	line(a, 14, true);
	route(a, 14, 0x77, 1);
	assert_int_equal(take(a, 1), 0);
	line(a, 14, false);
	line(a, 14, true);
	assert_int_equal(take(a, 1), 0x77);
}

/* ISA irq 0 is pin 2. */
static void timer_pin(void **state)
{
	struct apic_rig *a = *state;

	route(a, 0, 0x30, 0);
	route(a, 2, 0x32, 0);
	line(a, 0, true);
	assert_int_equal(take(a, 0), 0x32);
	eoi(a, 0);
	assert_int_equal(take(a, 0), 0);
}

static void level(void **state)
{
	struct apic_rig *a = *state;

	route(a, 11, LEVEL | 0x55, 0);
	line(a, 11, true);
	assert_int_equal(io_get(a, 0x26), LEVEL | REMOTE_IRR | 0x55);
	assert_int_equal(take(a, 0), 0x55);
	assert_true(apic_bit(a, 0, A_TMR, 0x55));
	line(a, 11, true);
	assert_int_equal(take(a, 0), 0);
	/* Still asserted at EOI: delivered again. */
	eoi(a, 0);
	assert_int_equal(io_get(a, 0x26), LEVEL | REMOTE_IRR | 0x55);
	assert_int_equal(take(a, 0), 0x55);
	/* Released before EOI: not. */
	line(a, 11, false);
	eoi(a, 0);
	assert_int_equal(io_get(a, 0x26), LEVEL | 0x55);
	assert_int_equal(take(a, 0), 0);
	/* Released and asserted again within the handler: again. */
	line(a, 11, true);
	assert_int_equal(take(a, 0), 0x55);
	line(a, 11, false);
	line(a, 11, true);
	assert_int_equal(take(a, 0), 0);
	eoi(a, 0);
	assert_int_equal(take(a, 0), 0x55);
	line(a, 11, false);
	eoi(a, 0);
	/* A level that is there is seen when unmasked. */
	route(a, 11, MASKED | LEVEL | 0x55, 0);
	line(a, 11, true);
	assert_int_equal(take(a, 0), 0);
	route(a, 11, LEVEL | 0x55, 0);
	assert_int_equal(take(a, 0), 0x55);
	/* Masked with remote IRR set: the EOI clears it, nothing comes. */
	route(a, 11, MASKED | LEVEL | 0x55, 0);
	eoi(a, 0);
	assert_int_equal(io_get(a, 0x26), MASKED | LEVEL | 0x55);
	assert_int_equal(take(a, 0), 0);
}

static void eoi_register(void **state)
{
	struct apic_rig *a = *state;

	apic_set(a, 0, A_SVR, 0x11ff); /* no EOI broadcast */
	route(a, 11, LEVEL | 0x55, 0);
	line(a, 11, true);
	assert_int_equal(take(a, 0), 0x55);
	eoi(a, 0);
	assert_int_equal(io_get(a, 0x26), LEVEL | REMOTE_IRR | 0x55);
	assert_int_equal(take(a, 0), 0);
	mem_phys_write(&a->b->mem, IOAPIC + 0x40, 0x56, 4); /* another vector */
	assert_int_equal(take(a, 0), 0);
	mem_phys_write(&a->b->mem, IOAPIC + 0x40, 0x55, 4);
	assert_int_equal(take(a, 0), 0x55);
	/* The other way, for software that does not know the register: through edge mode. */
	line(a, 11, false);
	route(a, 11, MASKED | 0x55, 0);
	route(a, 11, MASKED | LEVEL | 0x55, 0);
	assert_int_equal(io_get(a, 0x26), MASKED | LEVEL | 0x55);
}

/* An edge-triggered vector's EOI does not touch level entries of the same vector. */
static void tmr_decides(void **state)
{
	struct apic_rig *a = *state;

	route(a, 11, LEVEL | 0x55, 0);
	line(a, 11, true);
	assert_int_equal(take(a, 0), 0x55);
	route(a, 10, 0x55, 0);
	eoi(a, 0);
	assert_int_equal(take(a, 0), 0x55);
	line(a, 10, true); /* the edge takes the vector's TMR bit */
	assert_false(apic_bit(a, 0, A_TMR, 0x55));
	eoi(a, 0);
	assert_int_equal(io_get(a, 0x26), LEVEL | REMOTE_IRR | 0x55);
}

static void destinations(void **state)
{
	struct apic_rig *a = *state;

	for (unsigned i = 0; i < RIG_CPUS; i++)
		apic_set(a, i, A_LDR, 1u << (24 + i));
	route(a, 5, 0x800 | 0x41, 0x6); /* logical */
	line(a, 5, true);
	assert_int_equal(take(a, 0), 0);
	assert_int_equal(take(a, 1), 0x41);
	assert_int_equal(take(a, 2), 0x41);
	assert_int_equal(take(a, 3), 0);
	route(a, 6, 0x52, 0xff);
	line(a, 6, true);
	for (unsigned i = 0; i < RIG_CPUS; i++)
		assert_int_equal(take(a, i), 0x52);
	route(a, 7, 0x900 | 0x63, 0xf); /* lowest priority: exactly one */
	line(a, 7, true);
	int n = 0;
	for (unsigned i = 0; i < RIG_CPUS; i++)
		n += take(a, i) == 0x63;
	assert_int_equal(n, 1);
	/* NMI, said to be level-triggered: an edge all the same. */
	route(a, 9, LEVEL | 0x400, 3);
	line(a, 9, true);
	line(a, 9, true);
	assert_int_equal(a->cpu[3].nmis, 1);
	assert_int_equal(io_get(a, 0x22), LEVEL | 0x400);
	route(a, 10, 0x200, 2);
	line(a, 10, true);
	assert_int_equal(a->cpu[2].smis, 1);
}

/* A level that no LAPIC took stays on offer. */
static void nobody_listens(void **state)
{
	struct apic_rig *a = *state;

	apic_set(a, 0, A_SVR, 0xff);
	route(a, 11, LEVEL | 0x55, 0);
	line(a, 11, true);
	assert_int_equal(io_get(a, 0x26), LEVEL | 0x55);
	apic_set(a, 0, A_SVR, 0x1ff);
	assert_int_equal(take(a, 0), 0x55);
	assert_int_equal(io_get(a, 0x26), LEVEL | REMOTE_IRR | 0x55);
}

static void save_and_load(void **state)
{
	struct apic_rig *a = *state;

	route(a, 11, LEVEL | 0x55, 0);
	line(a, 11, true);
	round_trip((struct device *)a->io);
	assert_int_equal(take(a, 0), 0x55);
	eoi(a, 0);
	assert_int_equal(take(a, 0), 0x55);
}

static void fuzz(void **state)
{
	struct apic_rig *a = *state;
	u64 s = 7;
	u32 high = 0;
	int taken = 0;

	for (int i = 0; i < 100000; i++) {
		u64 v = random_value(&s);
		unsigned pick = next_random(&s) % 16, n = next_random(&s) % RIG_CPUS, gsi = 3 + next_random(&s) % 21;

		if (pick < 4) {
			/* No INIT, which would end all interrupts soon. */
			io_set(a, (u8)(v >> 32), (v & 0x700) == 0x500 ? (u32)v & ~0x10500u : (u32)v & ~0x10000u);
		} else if (pick < 5) {
			mem_phys_write(&a->b->mem, IOAPIC + (v & 0xfff), v >> 12, 1u << (v >> 61 & 3));
			mem_phys_read(&a->b->mem, IOAPIC + (v & 0xfff), 1u << (v >> 61 & 3));
		} else if (pick < 10) {
			high ^= 1u << gsi;
			line(a, gsi, high >> gsi & 1);
		} else if (a->cpu[n].intr) {
			taken += lapic_ack(a->l[n]) >= 16;
		} else {
			eoi(a, n);
		}
		/* What is asserted and could be delivered to somebody has been. */
		gsi = 3 + (unsigned)i % 21;
		u32 low = io_get(a, (u8)(0x10 + 2 * gsi)), dest = io_get(a, (u8)(0x11 + 2 * gsi)) >> 24;
		assert_int_equal(low & ~0x1efffu, 0);
		if ((high >> gsi & 1) && (low & 0x1ff00 & ~0x6000u) == LEVEL && dest < RIG_CPUS && (low & 0xff) >= 16)
			assert_int_equal(low & REMOTE_IRR, REMOTE_IRR);
	}
	assert_in_range(taken, 500, 100000);
	round_trip((struct device *)a->io);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(registers), T(edge), T(timer_pin), T(level), T(eoi_register), T(tmr_decides),
		T(destinations), T(nobody_listens), T(save_and_load), T(fuzz),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
