/* Registers, priorities, EOI, IPIs, modes and local interrupts of the local APIC. */
#include "apic_rig.h"

#define FIXED 0x4000u
#define SELF 0x40000u
#define ALL 0x80000u
#define OTHERS 0xc0000u
#define LOGICAL 0x800u

static int setup(void **state)
{
	*state = apic_rig_new();
	return 0;
}

static int teardown(void **state)
{
	apic_rig_free(*state);
	return 0;
}

static void locked_lint0(struct apic_rig *a, unsigned n, bool level)
{
	mem_lock(&a->b->mem);
	lapic_set_lint0(a->l[n], level);
	mem_unlock(&a->b->mem);
}

static void locked_msi(struct apic_rig *a, u64 addr, u32 data)
{
	mem_lock(&a->b->mem);
	irq_msi(&a->b->irqs, addr, data);
	mem_unlock(&a->b->mem);
}

static u64 msr(struct apic_rig *a, unsigned n, u32 m)
{
	u64 v = 0;

	assert_true(lapic_msr_read(a->l[n], m, &v));
	return v;
}

static void self_ipi(struct apic_rig *a, u8 vector)
{
	apic_set(a, 0, A_ICR, SELF | FIXED | vector);
}

static void reset_values(void **state)
{
	struct apic_rig *a = *state;

	assert_int_equal(apic_get(a, 2, A_ID), 2u << 24);
	assert_int_equal(apic_get(a, 0, A_VERSION), 0x01050014);
	assert_int_equal(apic_get(a, 0, A_SVR), 0xff);
	assert_int_equal(apic_get(a, 0, A_DFR), 0xffffffff);
	for (u32 lvt = A_TIMER; lvt <= A_ERROR; lvt += 0x10)
		assert_int_equal(apic_get(a, 0, lvt), 0x10000);
	assert_int_equal(msr(a, 0, MSR_BASE), APIC | BASE_EN | BASE_BSP);
	assert_int_equal(msr(a, 1, MSR_BASE), APIC | BASE_EN);
}

static void access_sizes(void **state)
{
	struct apic_rig *a = *state;
	struct mem *m = &a->b->mem;

	lapic_set_current(a->l[0]);
	assert_int_equal(mem_phys_read(m, APIC + A_VERSION, 1), 0x14);
	assert_int_equal(mem_phys_read(m, APIC + A_VERSION + 2, 1), 0x05);
	assert_int_equal(mem_phys_read(m, APIC + A_VERSION + 2, 2), 0x0105);
	assert_int_equal(mem_phys_read(m, APIC + A_VERSION + 4, 4), 0);
	assert_int_equal(mem_phys_read(m, APIC + A_VERSION, 8), 0x01050014);
	mem_phys_write(m, APIC + A_TPR, 0x30, 1);
	mem_phys_write(m, APIC + A_TPR, 0x30, 2);
	mem_phys_write(m, APIC + A_TPR, 0x30, 8);
	mem_phys_write(m, APIC + A_TPR + 4, 0x30, 4);
	assert_int_equal(apic_get(a, 0, A_TPR), 0);
	mem_phys_write(m, APIC + A_TPR, 0x12345630, 4);
	assert_int_equal(apic_get(a, 0, A_TPR), 0x30);
}

static void ack_and_eoi(void **state)
{
	struct apic_rig *a = *state;

	apic_enable_all(a);
	self_ipi(a, 0x61);
	assert_true(a->cpu[0].intr);
	assert_true(apic_bit(a, 0, A_IRR, 0x61));
	assert_int_equal(lapic_ack(a->l[0]), 0x61);
	assert_false(a->cpu[0].intr);
	assert_false(apic_bit(a, 0, A_IRR, 0x61));
	assert_true(apic_bit(a, 0, A_ISR, 0x61));
	assert_int_equal(apic_get(a, 0, A_PPR), 0x60);
	/* The same class waits, a higher one nests. */
	self_ipi(a, 0x6f);
	assert_false(a->cpu[0].intr);
	self_ipi(a, 0x70);
	assert_true(a->cpu[0].intr);
	assert_int_equal(lapic_ack(a->l[0]), 0x70);
	apic_set(a, 0, A_EOI, 0);
	assert_false(apic_bit(a, 0, A_ISR, 0x70));
	assert_true(apic_bit(a, 0, A_ISR, 0x61));
	assert_false(a->cpu[0].intr);
	apic_set(a, 0, A_EOI, 0);
	assert_true(a->cpu[0].intr);
	assert_int_equal(lapic_ack(a->l[0]), 0x6f);
	apic_set(a, 0, A_EOI, 0);
	assert_int_equal(apic_get(a, 0, A_PPR), 0);
	apic_set(a, 0, A_EOI, 0); /* nothing in service: no effect */
	assert_false(a->cpu[0].intr);
}

static void task_priority(void **state)
{
	struct apic_rig *a = *state;

	apic_enable_all(a);
	apic_set(a, 0, A_TPR, 0x65);
	assert_int_equal(apic_get(a, 0, A_PPR), 0x65);
	self_ipi(a, 0x6a);
	assert_false(a->cpu[0].intr);
	lapic_set_tpr(a->l[0], 0x50);
	assert_true(a->cpu[0].intr);
	assert_int_equal(lapic_get_tpr(a->l[0]), 0x50);
	/* It rises between INTR and INTA: the spurious vector, and nothing in service. */
	lapic_set_tpr(a->l[0], 0x60);
	assert_false(a->cpu[0].intr);
	assert_int_equal(lapic_ack(a->l[0]), 0xff);
	for (unsigned v = 0; v < 256; v++)
		assert_false(apic_bit(a, 0, A_ISR, v));
	assert_true(apic_bit(a, 0, A_IRR, 0x6a));
	assert_int_equal(apic_get(a, 0, A_APR), 0x60);
}

static void software_disable(void **state)
{
	struct apic_rig *a = *state;

	apic_enable_all(a);
	apic_set(a, 0, A_LINT0, 0x700);
	apic_set(a, 0, A_TPR, 0xf0);
	self_ipi(a, 0x50);
	apic_set(a, 0, A_SVR, 0xff);
	assert_int_equal(apic_get(a, 0, A_LINT0), 0x10700);
	apic_set(a, 0, A_LINT0, 0x700); /* the mask cannot be taken away */
	assert_int_equal(apic_get(a, 0, A_LINT0), 0x10700);
	self_ipi(a, 0x51);
	assert_false(apic_bit(a, 0, A_IRR, 0x51));
	/* What was there is still deliverable, and NMIs arrive. */
	apic_set(a, 0, A_TPR, 0);
	assert_true(a->cpu[0].intr);
	assert_int_equal(lapic_ack(a->l[0]), 0x50);
	apic_set(a, 1, A_ICR2, 0);
	apic_set(a, 1, A_ICR, 0x400 | FIXED);
	assert_int_equal(a->cpu[0].nmis, 1);
}

static void ipi_modes(void **state)
{
	struct apic_rig *a = *state;

	apic_enable_all(a);
	apic_set(a, 0, A_ICR2, 2u << 24);
	apic_set(a, 0, A_ICR, FIXED | 0x41);
	assert_true(a->cpu[2].intr);
	assert_false(a->cpu[0].intr || a->cpu[1].intr || a->cpu[3].intr);
	assert_int_equal(apic_get(a, 0, A_ICR), FIXED | 0x41);
	apic_set(a, 0, A_ICR, FIXED | 0x200);
	assert_int_equal(a->cpu[2].smis, 1);
	apic_set(a, 0, A_ICR, 0x400); /* NMI without the level bit */
	assert_int_equal(a->cpu[2].nmis, 1);
	apic_set(a, 0, A_ICR, 0xc500); /* INIT, level, assert */
	assert_int_equal(a->cpu[2].inits, 1);
	assert_true(a->cpu[2].intr); /* while the processor holds it back, or gives it to a hypervisor */
	assert_int_equal(apic_get(a, 2, A_SVR), 0x1ff);
	lapic_init_taken(a->l[2]);
	assert_false(a->cpu[2].intr);
	assert_int_equal(apic_get(a, 2, A_SVR), 0xff);
	apic_set(a, 0, A_ICR, 0x8500); /* INIT level de-assert */
	assert_int_equal(a->cpu[2].inits, 1);
	apic_set(a, 0, A_ICR, FIXED | 0x600 | 0x9a);
	assert_int_equal(a->cpu[2].sipis, 1);
	assert_int_equal(a->cpu[2].sipi_vector, 0x9a);
	/* Reserved modes go nowhere. */
	apic_set(a, 0, A_ICR, FIXED | 0x300 | 0x42);
	apic_set(a, 0, A_ICR, FIXED | 0x700 | 0x42);
	assert_false(a->cpu[2].intr);
}

static unsigned intr_set(struct apic_rig *a)
{
	unsigned set = 0;

	for (unsigned i = 0; i < RIG_CPUS; i++)
		set |= (unsigned)a->cpu[i].intr << i;
	return set;
}

/* Takes all that is pending everywhere. */
static void drain(struct apic_rig *a)
{
	for (unsigned i = 0; i < RIG_CPUS; i++)
		while (a->cpu[i].intr) {
			u64 base = msr(a, i, MSR_BASE);

			assert_true(lapic_ack(a->l[i]) >= 16);
			if (base & BASE_X2)
				assert_true(lapic_msr_write(a->l[i], MSR_X2(A_EOI), 0));
			else
				apic_set(a, i, A_EOI, 0);
		}
}

static unsigned ipi_reaches(struct apic_rig *a, u32 icr, u32 dest)
{
	apic_set(a, 1, A_ICR2, dest << 24);
	apic_set(a, 1, A_ICR, icr);
	unsigned set = intr_set(a);
	drain(a);
	return set;
}

static void destinations_xapic(void **state)
{
	struct apic_rig *a = *state;

	apic_enable_all(a);
	assert_int_equal(ipi_reaches(a, FIXED | 0x41, 0xff), 0xf);
	assert_int_equal(ipi_reaches(a, FIXED | 0x41, 3), 0x8);
	assert_int_equal(ipi_reaches(a, FIXED | 0x41, 9), 0);
	assert_int_equal(ipi_reaches(a, FIXED | ALL | 0x41, 9), 0xf);
	assert_int_equal(ipi_reaches(a, FIXED | OTHERS | 0x41, 9), 0xd);
	assert_int_equal(ipi_reaches(a, FIXED | SELF | 0x41, 9), 0x2);
	/* To self by shorthand go fixed ones, NMI and SMI alone; to all fixed ones. */
	for (u32 mode = 1; mode < 7; mode++) {
		assert_int_equal(ipi_reaches(a, mode << 8 | SELF | 0x41, 9), 0);
		assert_int_equal(ipi_reaches(a, mode << 8 | ALL | 0x41, 9), 0);
	}
	for (unsigned i = 0; i < RIG_CPUS; i++)
		assert_int_equal(a->cpu[i].nmis + a->cpu[i].inits, i == 1);
	for (unsigned i = 0; i < RIG_CPUS; i++)
		apic_set(a, i, A_LDR, 1u << (24 + i));
	assert_int_equal(ipi_reaches(a, LOGICAL | 0x41, 0x5), 0x5);
	assert_int_equal(ipi_reaches(a, LOGICAL | 0x41, 0x80), 0);
	assert_int_equal(ipi_reaches(a, LOGICAL | 0x41, 0xff), 0xf);
	/* Cluster: processors 0, 1 in cluster 2, the others in cluster 3. */
	for (unsigned i = 0; i < RIG_CPUS; i++) {
		apic_set(a, i, A_DFR, 0x0fffffff);
		apic_set(a, i, A_LDR, (i < 2 ? 0x20u : 0x30u) << 24 | 1u << (24 + i % 2));
	}
	assert_int_equal(ipi_reaches(a, LOGICAL | 0x41, 0x21), 0x1);
	assert_int_equal(ipi_reaches(a, LOGICAL | 0x41, 0x33), 0xc);
	assert_int_equal(ipi_reaches(a, LOGICAL | 0x41, 0x4f), 0);
	assert_int_equal(ipi_reaches(a, LOGICAL | 0x41, 0xff), 0xf);
	/* A LAPIC that is off does not listen. */
	assert_true(lapic_msr_write(a->l[3], MSR_BASE, APIC));
	assert_int_equal(ipi_reaches(a, FIXED | ALL | 0x41, 0), 0x7);
	assert_int_equal(ipi_reaches(a, FIXED | 0x41, 3), 0);
}

static unsigned x2_reaches(struct apic_rig *a, u64 icr)
{
	assert_true(lapic_msr_write(a->l[1], MSR_X2(A_ICR), icr));
	unsigned set = intr_set(a);
	drain(a);
	return set;
}

static void destinations_x2apic(void **state)
{
	struct apic_rig *a = *state;

	apic_enable_all(a);
	for (unsigned i = 0; i < 3; i++) /* processor 3 stays in xAPIC mode */
		assert_true(apic_to_x2(a, i));
	assert_int_equal(msr(a, 2, MSR_X2(A_ID)), 2);
	assert_int_equal(msr(a, 2, MSR_X2(A_LDR)), 4);
	assert_int_equal(x2_reaches(a, 2ull << 32 | FIXED | 0x41), 0x4);
	assert_int_equal(x2_reaches(a, 3ull << 32 | FIXED | 0x41), 0x8);
	assert_int_equal(x2_reaches(a, 0xffffffffull << 32 | FIXED | 0x41), 0xf);
	assert_int_equal(x2_reaches(a, 0xffull << 32 | FIXED | 0x41), 0);
	assert_int_equal(x2_reaches(a, 0x102ull << 32 | FIXED | 0x41), 0);
	assert_int_equal(x2_reaches(a, 5ull << 32 | LOGICAL | FIXED | 0x41), 0x5);
	assert_int_equal(x2_reaches(a, 0x10005ull << 32 | LOGICAL | FIXED | 0x41), 0);
	apic_set(a, 3, A_LDR, 8u << 24);
	assert_int_equal(x2_reaches(a, 8ull << 32 | LOGICAL | FIXED | 0x41), 0x8);
	assert_int_equal(x2_reaches(a, 0x10008ull << 32 | LOGICAL | FIXED | 0x41), 0);
	assert_int_equal(x2_reaches(a, OTHERS | FIXED | 0x41), 0xd);
	assert_int_equal(msr(a, 1, MSR_X2(A_ICR)), OTHERS | FIXED | 0x41);
	/* From the xAPIC one to all. */
	apic_set(a, 3, A_ICR2, 0xffu << 24);
	apic_set(a, 3, A_ICR, FIXED | 0x41);
	assert_int_equal(intr_set(a), 0xf);
}

static void lowest_priority(void **state)
{
	struct apic_rig *a = *state;
	unsigned taken = 0;

	apic_enable_all(a);
	apic_set(a, 0, A_TPR, 0x20);
	apic_set(a, 1, A_TPR, 0x20);
	apic_set(a, 3, A_TPR, 0x20);
	assert_int_equal(ipi_reaches(a, 0x100 | FIXED | 0x41, 0xff), 0x4);
	apic_set(a, 2, A_TPR, 0x30);
	/* Among equals it goes round. */
	for (int i = 0; i < 3; i++) {
		unsigned one = ipi_reaches(a, 0x100 | FIXED | 0x41, 0xff);

		assert_int_equal(__builtin_popcount(one), 1);
		taken |= one;
	}
	assert_int_equal(taken, 0xb);
	apic_set(a, 0, A_SVR, 0xff); /* a disabled one is not asked, lowest or not */
	apic_set(a, 0, A_TPR, 0);
	unsigned one = ipi_reaches(a, 0x100 | FIXED | 0x41, 0xff);
	assert_int_equal(one & 1, 0);
	assert_int_equal(__builtin_popcount(one), 1);
}

static void error_status(void **state)
{
	struct apic_rig *a = *state;

	apic_enable_all(a);
	apic_set(a, 0, A_ERROR, 0xfe);
	apic_set(a, 0, A_ICR, SELF | FIXED | 0x0f);
	assert_int_equal(apic_get(a, 0, A_ESR), 0); /* not before a write */
	assert_int_equal(lapic_ack(a->l[0]), 0xfe);
	apic_set(a, 0, A_EOI, 0);
	/* The next error is noted; the interrupt comes again only after a write. */
	locked_msi(a, APIC, 0x05);
	assert_false(a->cpu[0].intr);
	apic_set(a, 0, A_ESR, 0xdead);
	assert_int_equal(apic_get(a, 0, A_ESR), 0x60);
	apic_set(a, 0, A_ESR, 0);
	assert_int_equal(apic_get(a, 0, A_ESR), 0);
	apic_get(a, 0, 0x40); /* no register there */
	assert_true(a->cpu[0].intr);
	apic_set(a, 0, A_ESR, 0);
	assert_int_equal(apic_get(a, 0, A_ESR), 0x80);
	apic_set(a, 0, 0x3f0, 0x41); /* self IPI is x2APIC only */
	apic_set(a, 0, A_ESR, 0);
	assert_int_equal(apic_get(a, 0, A_ESR), 0x80);
	assert_false(apic_bit(a, 0, A_IRR, 0x41));
}

static void mode_transitions(void **state)
{
	struct apic_rig *a = *state;
	static const struct { u64 from[3], to; bool ok; } cases[] = {
		{ { BASE_EN }, 0, true },
		{ { BASE_EN }, BASE_EN, true },
		{ { BASE_EN }, BASE_X2, false },
		{ { BASE_EN }, BASE_EN | BASE_X2, true },
		{ { 0 }, BASE_EN, true },
		{ { 0 }, BASE_X2, false },
		{ { 0 }, BASE_EN | BASE_X2, false },
		{ { BASE_EN, BASE_EN | BASE_X2 }, BASE_EN, false },
		{ { BASE_EN, BASE_EN | BASE_X2 }, BASE_X2, false },
		{ { BASE_EN, BASE_EN | BASE_X2 }, BASE_EN | BASE_X2, true },
		{ { BASE_EN, BASE_EN | BASE_X2 }, 0, true },
	};

	for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
		mem_lock(&a->b->mem);
		lapic_reset(a->l[0]);
		mem_unlock(&a->b->mem);
		for (int s = 0; s < 3 && (s == 0 || cases[i].from[s]); s++)
			assert_true(lapic_msr_write(a->l[0], MSR_BASE, APIC | BASE_BSP | cases[i].from[s]));
		u64 before = msr(a, 0, MSR_BASE);
		assert_int_equal(lapic_msr_write(a->l[0], MSR_BASE, APIC | BASE_BSP | cases[i].to), cases[i].ok);
		assert_int_equal(msr(a, 0, MSR_BASE),
				 cases[i].ok ? APIC | BASE_BSP | cases[i].to : before);
		assert_int_equal(lapic_enabled(a->l[0]), !!(msr(a, 0, MSR_BASE) & BASE_EN));
	}
}

static void base_reserved_bits(void **state)
{
	struct apic_rig *a = *state;
	u64 base = msr(a, 0, MSR_BASE);
	struct lapic_features f = { .maxphyaddr = 40, .x2apic = false, .tsc_deadline = false };

	for (unsigned bit = 0; bit < 64; bit++) {
		bool ok = bit >= 12 ? bit < 36 : bit == 8 || bit == 11;
		if (bit == 10)
			continue;
		assert_int_equal(lapic_msr_write(a->l[0], MSR_BASE, base | 1ull << bit), ok);
		assert_true(lapic_msr_write(a->l[0], MSR_BASE, base));
	}
	lapic_set_features(a->l[0], &f);
	assert_true(lapic_msr_write(a->l[0], MSR_BASE, base | 1ull << 39));
	assert_false(lapic_msr_write(a->l[0], MSR_BASE, base | 1ull << 40));
	assert_true(lapic_msr_write(a->l[0], MSR_BASE, base));
	assert_false(lapic_msr_write(a->l[0], MSR_BASE, base | BASE_X2));
	assert_false(lapic_msr_write(a->l[0], MSR_DEADLINE, 1));
	assert_false(lapic_msr_read(a->l[0], MSR_DEADLINE, &base));
}

/* Disabled and x2APIC: the page is not there; CR8 works on. */
static void page_gone(void **state)
{
	struct apic_rig *a = *state;

	for (int x2 = 0; x2 < 2; x2++) {
		lapic_set_tpr(a->l[0], 0x50);
		if (x2)
			assert_true(apic_to_x2(a, 0));
		else
			assert_true(lapic_msr_write(a->l[0], MSR_BASE, APIC | BASE_BSP));
		for (u64 off = 0; off < PAGE_SIZE; off += 4)
			apic_set(a, 0, (u32)off, 0xffffffff);
		assert_int_equal(apic_get(a, 0, A_VERSION), 0xffffffff);
		assert_int_equal(mem_phys_read(&a->b->mem, APIC + A_VERSION, 8), UINT64_MAX);
		assert_int_equal(lapic_get_tpr(a->l[0]), 0x50);
		lapic_set_tpr(a->l[0], 0xa0);
		assert_int_equal(lapic_get_tpr(a->l[0]), 0xa0);
		assert_true(lapic_msr_write(a->l[0], MSR_BASE, APIC | BASE_BSP));
		assert_true(lapic_msr_write(a->l[0], MSR_BASE, APIC | BASE_BSP | BASE_EN));
		assert_int_equal(apic_get(a, 0, A_TPR), 0xa0);
		assert_int_equal(apic_get(a, 0, A_VERSION), 0x01050014);
	}
	/* A new ID does not survive being off. */
	apic_set(a, 1, A_ID, 9u << 24);
	assert_int_equal(apic_get(a, 1, A_ID), 9u << 24);
	assert_true(lapic_msr_write(a->l[1], MSR_BASE, APIC));
	assert_true(lapic_msr_write(a->l[1], MSR_BASE, APIC | BASE_EN));
	assert_int_equal(apic_get(a, 1, A_ID), 1u << 24);
}

static void relocation(void **state)
{
	struct apic_rig *a = *state;
	struct mem *m = &a->b->mem;
	static const u64 places[] = { 0xfed40000, 0x200000 };
	int declared = m->n_declared;

	mem_phys_write(m, 0x200030, 0x11223344, 4);
	for (unsigned i = 0; i < ARRAY_LEN(places); i++) {
		assert_true(lapic_msr_write(a->l[0], MSR_BASE, places[i] | BASE_BSP | BASE_EN));
		lapic_set_current(a->l[0]);
		assert_int_equal(mem_phys_read(m, places[i] + A_VERSION, 4), 0x01050014);
		assert_int_equal(mem_phys_read(m, APIC + A_VERSION, 4), 0xffffffff);
		lapic_set_current(a->l[1]);
		assert_int_equal(mem_phys_read(m, APIC + A_VERSION, 4), 0x01050014);
		assert_int_equal(mem_phys_read(m, places[i] + A_VERSION, 4), i ? 0x11223344 : 0xffffffff);
	}
	/* Two at one place, each sees its own. */
	assert_true(lapic_msr_write(a->l[1], MSR_BASE, 0x200000 | BASE_EN));
	assert_int_equal(mem_phys_read(m, 0x200000 + A_ID, 4), 1u << 24);
	lapic_set_current(a->l[0]);
	assert_int_equal(mem_phys_read(m, 0x200000 + A_ID, 4), 0);
	assert_true(lapic_msr_write(a->l[0], MSR_BASE, APIC | BASE_BSP | BASE_EN));
	assert_int_equal(mem_phys_read(m, 0x200000 + A_VERSION, 4), 0x11223344);
	assert_true(lapic_msr_write(a->l[1], MSR_BASE, APIC | BASE_EN));
	assert_int_equal(mem_phys_read(m, 0x200000 + A_VERSION, 4), 0x11223344);
	assert_int_equal(m->n_declared, declared);
}

enum { RD = 1, WR = 2 };
static int x2_access(u32 reg)
{
	switch (reg) {
	case 0x02: case 0x03: case 0x0a: case 0x0d: case 0x10 ... 0x27: case 0x39: return RD;
	case 0x0b: case 0x3f: return WR;
	case 0x08: case 0x0f: case 0x28: case 0x30: case 0x32 ... 0x38: case 0x3e: return RD | WR;
	default: return 0;
	}
}

static void x2apic_faults(void **state)
{
	struct apic_rig *a = *state;
	static const struct { u32 reg; u64 valid; } masks[] = {
		{ 0x08, 0xff }, { 0x0b, 0 }, { 0x0f, 0x13ff }, { 0x28, 0 },
		{ 0x32, 0x710ff }, { 0x33, 0x117ff }, { 0x34, 0x117ff }, { 0x35, 0x1f7ff }, { 0x36, 0x1f7ff },
		{ 0x37, 0x110ff }, { 0x38, 0xffffffff }, { 0x3e, 0xb }, { 0x3f, 0xff },
		{ 0x30, 0xffffffff000cdfffull },
	};
	u64 v;

	/* Nothing is there in xAPIC mode. */
	for (u32 reg = 0; reg < 0x100; reg++) {
		assert_false(lapic_msr_read(a->l[0], 0x800 + reg, &v));
		assert_false(lapic_msr_write(a->l[0], 0x800 + reg, 0));
	}
	apic_enable_all(a);
	assert_true(apic_to_x2(a, 0));
	for (u32 reg = 0; reg < 0x100; reg++) {
		assert_int_equal(lapic_msr_read(a->l[0], 0x800 + reg, &v), !!(x2_access(reg) & RD));
		if (reg != 0x30 && reg != 0x3f)
			assert_int_equal(lapic_msr_write(a->l[0], 0x800 + reg, 0), !!(x2_access(reg) & WR));
	}
	for (unsigned i = 0; i < ARRAY_LEN(masks); i++)
		for (unsigned bit = 0; bit < 64; bit++)
			assert_int_equal(lapic_msr_write(a->l[0], 0x800 + masks[i].reg, 1ull << bit),
					 masks[i].valid >> bit & 1);
}

static void x2apic_self_ipi(void **state)
{
	struct apic_rig *a = *state;

	apic_enable_all(a);
	assert_true(apic_to_x2(a, 0));
	assert_true(lapic_msr_write(a->l[0], MSR_X2(0x3f0), 0x77));
	assert_int_equal(lapic_ack(a->l[0]), 0x77);
	assert_true(msr(a, 0, MSR_X2(A_ISR) + 3) >> 0x17 & 1);
	assert_true(lapic_msr_write(a->l[0], MSR_X2(A_EOI), 0));
	assert_int_equal(msr(a, 0, MSR_X2(A_ISR) + 3), 0);
	/* INIT keeps the mode. */
	apic_set(a, 1, A_ICR2, 0);
	apic_set(a, 1, A_ICR, 0x4500);
	assert_int_equal(a->cpu[0].inits, 1);
	lapic_init_taken(a->l[0]);
	assert_int_equal(msr(a, 0, MSR_BASE), APIC | BASE_BSP | BASE_EN | BASE_X2);
	assert_int_equal(msr(a, 0, MSR_X2(A_SVR)), 0xff);
}

static void pic_through_lint0(void **state)
{
	struct apic_rig *a = *state;

	locked_lint0(a, 0, true); /* masked after reset */
	assert_false(a->cpu[0].intr);
	apic_enable_all(a);
	apic_set(a, 0, A_LINT0, 0x700);
	assert_true(a->cpu[0].intr);
	assert_true(lapic_accepts_pic(a->l[0]));
	assert_int_equal(lapic_ack(a->l[0]), -1);
	assert_true(a->cpu[0].intr); /* until the PIC's output falls */
	/* A vector of its own comes first. */
	self_ipi(a, 0x31);
	assert_int_equal(lapic_ack(a->l[0]), 0x31);
	apic_set(a, 0, A_EOI, 0);
	locked_lint0(a, 0, false);
	assert_false(a->cpu[0].intr);
	apic_set(a, 0, A_LINT0, 0x10700);
	locked_lint0(a, 0, true);
	assert_false(a->cpu[0].intr);
	/* Without an APIC the pin is INTR. */
	assert_true(lapic_msr_write(a->l[0], MSR_BASE, APIC | BASE_BSP));
	assert_true(a->cpu[0].intr);
	assert_int_equal(lapic_ack(a->l[0]), -1);
}

static void local_pins(void **state)
{
	struct apic_rig *a = *state;

	apic_enable_all(a);
	apic_set(a, 0, A_LINT0, 0x400); /* NMI on an edge of the PIC's output: the old watchdog */
	locked_lint0(a, 0, true);
	locked_lint0(a, 0, true);
	assert_int_equal(a->cpu[0].nmis, 1);
	locked_lint0(a, 0, false);
	/* Level: remote IRR until EOI, then again while the pin is high. */
	apic_set(a, 0, A_LINT0, 0x8000 | 0x55);
	locked_lint0(a, 0, true);
	assert_int_equal(apic_get(a, 0, A_LINT0), 0x8000 | 0x4000 | 0x55);
	assert_int_equal(lapic_ack(a->l[0]), 0x55);
	assert_false(a->cpu[0].intr);
	apic_set(a, 0, A_EOI, 0);
	assert_int_equal(lapic_ack(a->l[0]), 0x55);
	locked_lint0(a, 0, false);
	apic_set(a, 0, A_EOI, 0);
	assert_false(a->cpu[0].intr);
	assert_int_equal(apic_get(a, 0, A_LINT0), 0x8000 | 0x55);
	/* A level that came while masked is seen when unmasked. */
	apic_set(a, 0, A_LINT0, 0x18000 | 0x55);
	locked_lint0(a, 0, true);
	assert_false(a->cpu[0].intr);
	apic_set(a, 0, A_LINT0, 0x8000 | 0x55);
	assert_int_equal(lapic_ack(a->l[0]), 0x55);
	locked_lint0(a, 0, false);
	apic_set(a, 0, A_EOI, 0);
	/* LINT1: masked, then NMI, then with the APIC off. */
	mem_lock(&a->b->mem);
	lapic_nmi_lint1(a->l[0]);
	mem_unlock(&a->b->mem);
	assert_int_equal(a->cpu[0].nmis, 1);
	apic_set(a, 0, A_LINT1, 0x400);
	mem_lock(&a->b->mem);
	lapic_nmi_lint1(a->l[0]);
	mem_unlock(&a->b->mem);
	assert_int_equal(a->cpu[0].nmis, 2);
}

static void messages(void **state)
{
	struct apic_rig *a = *state;

	apic_enable_all(a);
	locked_msi(a, APIC | 2 << 12, 0x4041);
	assert_int_equal(intr_set(a), 0x4);
	drain(a);
	locked_msi(a, APIC | 0xff << 12, 0x41);
	assert_int_equal(intr_set(a), 0xf);
	drain(a);
	locked_msi(a, APIC, 0x8041); /* level, deasserted */
	assert_int_equal(intr_set(a), 0);
	locked_msi(a, APIC, 0xc041);
	assert_true(apic_bit(a, 0, A_TMR, 0x41));
	drain(a);
	locked_msi(a, APIC, 0x41);
	assert_false(apic_bit(a, 0, A_TMR, 0x41));
	drain(a);
	for (unsigned i = 0; i < RIG_CPUS; i++)
		apic_set(a, i, A_LDR, 1u << (24 + i));
	locked_msi(a, APIC | 0x6 << 12 | 4, 0x41);
	assert_int_equal(intr_set(a), 0x6);
	drain(a);
	locked_msi(a, APIC | 0x6 << 12 | 0xc, 0x41); /* redirection hint: one of them */
	assert_int_equal(__builtin_popcount(intr_set(a)), 1);
	drain(a);
	locked_msi(a, 0xfed00000, 0x41); /* elsewhere */
	locked_msi(a, APIC | 1ull << 32, 0x41);
	locked_msi(a, APIC, 0x641); /* SIPI is not for devices */
	assert_int_equal(intr_set(a), 0);
	assert_int_equal(a->cpu[0].sipis, 0);
	locked_msi(a, APIC | 1 << 12, 0x400);
	assert_int_equal(a->cpu[1].nmis, 1);
	locked_msi(a, APIC, 0x741); /* ExtINT: the PIC is asked, once */
	assert_true(a->cpu[0].intr);
	assert_true(lapic_accepts_pic(a->l[0]));
	assert_int_equal(lapic_ack(a->l[0]), -1);
	assert_false(a->cpu[0].intr);
}

static void save_and_load(void **state)
{
	struct apic_rig *a = *state;
	u8 buf[4096];
	struct error e;

	apic_enable_all(a);
	assert_true(lapic_msr_write(a->l[0], MSR_BASE, 0x300000 | BASE_BSP | BASE_EN));
	lapic_set_current(a->l[0]);
	mem_phys_write(&a->b->mem, 0x300000 + A_ICR, SELF | FIXED | 0x66, 4);
	mem_phys_write(&a->b->mem, 0x300000 + A_TICR, 5000, 4);
	board_advance(a->b, 4000); /* divided by two after reset */
	size_t n = device_save((struct device *)a->l[0], buf, sizeof(buf));
	assert_true(n > 0);
	mem_lock(&a->b->mem);
	lapic_reset(a->l[0]);
	assert_false(a->cpu[0].intr);
	if (!device_load((struct device *)a->l[0], buf, n, &e))
		fail_msg("%s", e.msg);
	mem_unlock(&a->b->mem);
	assert_true(a->cpu[0].intr);
	assert_int_equal(mem_phys_read(&a->b->mem, 0x300000 + A_TCCR, 4), 3000);
	/* Whatever the processor believed before a load, it is told. */
	a->cpu[0].intr = false;
	round_trip((struct device *)a->l[0]);
	assert_true(a->cpu[0].intr);
	assert_int_equal(lapic_ack(a->l[0]), 0x66);
	round_trip((struct device *)a->l[0]);
}

static void two_machines(void **state)
{
	struct apic_rig *a = *state, *b = apic_rig_new();

	apic_set(a, 3, A_TPR, 0x30);
	/* The thread's LAPIC is of machine a: on b it is the first processor's. */
	assert_ptr_equal(lapic_current(b->bus), b->l[0]);
	assert_ptr_equal(lapic_current(a->bus), a->l[3]);
	mem_phys_write(&b->b->mem, APIC + A_TPR, 0x50, 4);
	assert_int_equal(apic_get(a, 3, A_TPR), 0x30);
	assert_int_equal(lapic_get_tpr(b->l[0]), 0x50);
	apic_rig_free(b);
	assert_ptr_equal(lapic_current(a->bus), a->l[3]);
}

/* INTR is what IRR, PPR and the pins say, by their values as the guest reads them. */
static bool expected_intr(struct apic_rig *a, unsigned n, bool lint0)
{
	u64 base = msr(a, n, MSR_BASE), ppr, irr, lvt;

	if (!(base & BASE_EN))
		return lint0;
	lapic_set_current(a->l[n]);
	u64 page = base & ~PAGE_MASK;
	bool x2 = base & BASE_X2;
	ppr = x2 ? msr(a, n, MSR_X2(A_PPR)) : mem_phys_read(&a->b->mem, page + A_PPR, 4);
	lvt = x2 ? msr(a, n, MSR_X2(A_LINT0)) : mem_phys_read(&a->b->mem, page + A_LINT0, 4);
	if (lint0 && (lvt & 0x10700) == 0x700)
		return true;
	for (int i = 7; i >= 0; i--) {
		irr = x2 ? msr(a, n, MSR_X2(A_IRR) + (u32)i)
			 : mem_phys_read(&a->b->mem, page + A_IRR + (u64)i * 16, 4);
		if (irr)
			return ((i * 32 + 31 - __builtin_clz((u32)irr)) & 0xf0) > (int)(ppr & 0xf0);
	}
	return false;
}

static void fuzz(void **state)
{
	struct apic_rig *a = *state;
	u64 s = 0x9e3779b97f4a7c15, v;
	bool lint0[RIG_CPUS] = { false };
	int delivered = 0, x2_seen = 0;

	apic_enable_all(a);
	for (int i = 0; i < 100000; i++) {
		unsigned n = next_random(&s) % RIG_CPUS, pick = next_random(&s) % 64;
		u64 val = random_value(&s);
		u32 reg = next_random(&s) % 64;

		/* Writes of SVR disable one; without this all would be silent before long. */
		if (i % 4 == 0) {
			apic_set(a, n, A_SVR, 0x1ff);
			lapic_msr_write(a->l[n], MSR_X2(A_SVR), 0x1ff);
		}
		lapic_set_current(a->l[n]);
		if (pick < 24) {
			u32 w = reg == 0x0f ? 0x1ff : (u32)val;

			mem_phys_write(&a->b->mem, APIC + reg * 16, w, 4);
		} else if (pick < 40) {
			lapic_msr_write(a->l[n], 0x800 + reg, reg == 0x0f ? 0x1ff : val & 0xfffff);
		} else if (pick < 44) {
			lapic_msr_read(a->l[n], 0x800 + reg, &v);
			mem_phys_read(&a->b->mem, APIC + (val & 0xfff), 1u << (reg & 3));
		} else if (pick < 46) {
			static const u64 modes[] = { 0, BASE_EN, BASE_EN, BASE_EN | BASE_X2 };

			lapic_msr_write(a->l[n], MSR_BASE, (reg & 16 ? APIC : 0x400000) | modes[val & 3]);
		} else if (pick < 50) {
			lint0[n] = val & 1;
			locked_lint0(a, n, lint0[n]);
		} else if (pick < 54) {
			/* ExtINT messages have no register that shows them. */
			u32 data = (val & 0x700) == 0x700 ? (u32)val & ~0x100u : (u32)val;

			locked_msi(a, APIC | (reg & 7) << 12 | (val & 4), data);
		} else if (pick < 56) {
			board_advance(a->b, val & 0xffff);
		} else if (pick < 57) {
			lapic_msr_write(a->l[n], MSR_DEADLINE, clock_tsc(&a->b->clock) + (val & 0xfff));
		} else if (a->cpu[n].intr) {
			delivered += lapic_ack(a->l[n]) >= 16;
		} else {
			lapic_set_tpr(a->l[n], val & 0x30);
			mem_phys_write(&a->b->mem, APIC + A_EOI, 0, 4);
			lapic_msr_write(a->l[n], MSR_X2(A_EOI), 0);
		}
		x2_seen += !!(msr(a, n, MSR_BASE) & BASE_X2);
		for (unsigned c = 0; c < RIG_CPUS; c++)
			if (a->cpu[c].intr != expected_intr(a, c, lint0[c]))
				fail_msg("step %d, processor %u: INTR is %d", i, c, a->cpu[c].intr);
	}
	/* It got somewhere. */
	assert_in_range(delivered, 500, 100000);
	assert_in_range(x2_seen, 500, 100000);
	for (unsigned c = 0; c < RIG_CPUS; c++)
		round_trip((struct device *)a->l[c]);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(reset_values), T(access_sizes), T(ack_and_eoi), T(task_priority), T(software_disable),
		T(ipi_modes), T(destinations_xapic), T(destinations_x2apic), T(lowest_priority),
		T(error_status), T(mode_transitions), T(base_reserved_bits), T(page_gone), T(relocation),
		T(x2apic_faults), T(x2apic_self_ipi), T(pic_through_lint0), T(local_pins), T(messages),
		T(save_and_load), T(two_machines), T(fuzz),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
