/* The HPET: counter, one-shot, periodic, levels, legacy replacement. */
#include "apic_rig.h"

#define HPET 0xfed00000ull
#define CFG 0x10
#define STATUS 0x20
#define COUNTER 0xf0
#define T_CFG(n) (0x100 + 0x20 * (n))
#define T_CMP(n) (0x108 + 0x20 * (n))
#define LEVEL 2u
#define ENABLE 4u
#define PERIODIC 8u
#define VAL_SET 0x40u
#define BITS32 0x100u
#define ROUTE(n) ((unsigned)(n) << 9)

/* Edges that reached irq 0 (IOAPIC pin 2), 8 and 20; all level lines go through the router. */
struct hpet_rig {
	struct apic_rig *a;
	struct board *b;
	struct device *hpet;
};

static u64 rd(struct hpet_rig *h, u32 off)
{
	return mem_phys_read(&h->b->mem, HPET + off, 8);
}

static void wr(struct hpet_rig *h, u32 off, u64 v)
{
	mem_phys_write(&h->b->mem, HPET + off, v, 8);
}

static void wr32(struct hpet_rig *h, u32 off, u32 v)
{
	mem_phys_write(&h->b->mem, HPET + off, v, 4);
}

static void route(struct hpet_rig *h, unsigned pin, u8 vector)
{
	mem_phys_write(&h->b->mem, 0xfec00000, 0x10 + 2 * pin, 4);
	mem_phys_write(&h->b->mem, 0xfec00010, vector, 4);
}

static int setup(void **state)
{
	struct hpet_rig *h = calloc(1, sizeof(*h));

	assert_non_null(h);
	h->a = apic_rig_new();
	h->b = h->a->b;
	apic_enable_all(h->a);
	h->hpet = board_device(h->b, &hpet_class);
	route(h, 2, 0x42);
	route(h, 8, 0x58);
	route(h, 20, 0x74);
	*state = h;
	return 0;
}

static int teardown(void **state)
{
	struct hpet_rig *h = *state;

	device_free(h->hpet);
	apic_rig_free(h->a);
	free(h);
	return 0;
}

/* The vector of the interrupt that is there, 0 if none; ends it. */
static int take(struct hpet_rig *h)
{
	if (!h->a->cpu[0].intr)
		return 0;
	int v = lapic_ack(h->a->l[0]);
	apic_set(h->a, 0, A_EOI, 0);
	return v;
}

static void capabilities(void **state)
{
	struct hpet_rig *h = *state;

	assert_int_equal(rd(h, 0) >> 32, 10000000); /* fs */
	assert_int_equal(rd(h, 0) & 0xffffffff, 0x8086a201);
	wr(h, 0, 0);
	assert_int_equal(mem_phys_read(&h->b->mem, HPET + 4, 4), 10000000);
	assert_int_equal(rd(h, T_CFG(0)), 0x00ff000000000030);
	wr(h, T_CFG(0), UINT64_MAX & ~(u64)ROUTE(31));
	/* No FSB; the route 0 is none of its own and is not taken. */
	assert_int_equal((u32)rd(h, T_CFG(0)), 0x17e);
	wr(h, T_CFG(0), ROUTE(20));
	assert_int_equal((u32)rd(h, T_CFG(0)), 0x30 | ROUTE(20));
	wr(h, T_CFG(0), ROUTE(3));
	assert_int_equal((u32)rd(h, T_CFG(0)), 0x30 | ROUTE(20));
	assert_int_equal(rd(h, 0x1000 - 8), 0);
}

static void counter(void **state)
{
	struct hpet_rig *h = *state;

	board_at(h->b, 5000);
	assert_int_equal(rd(h, COUNTER), 0);
	wr(h, CFG, 1);
	board_at(h->b, 5000 + 12345);
	assert_int_equal(rd(h, COUNTER), 1234);
	wr(h, CFG, 0);
	board_advance(h->b, 100000);
	assert_int_equal(rd(h, COUNTER), 1234);
	wr32(h, COUNTER + 4, 0x12);
	wr32(h, COUNTER, 0xfffffff0);
	assert_int_equal(rd(h, COUNTER), 0x12fffffff0);
	wr(h, CFG, 1);
	board_advance(h->b, 160);
	assert_int_equal(rd(h, COUNTER), 0x1300000000);
	assert_int_equal(mem_phys_read(&h->b->mem, HPET + COUNTER + 4, 4), 0x13);
}

static void one_shot(void **state)
{
	struct hpet_rig *h = *state;

	wr(h, T_CFG(2), ENABLE | ROUTE(20));
	wr(h, CFG, 1);
	wr(h, T_CMP(2), 1000);
	board_at(h->b, 9999);
	assert_int_equal(take(h), 0);
	board_at(h->b, 10000);
	assert_int_equal(take(h), 0x74);
	board_advance(h->b, 1000000);
	assert_int_equal(take(h), 0);
	/* The counter has passed it: it does not come at once. */
	wr(h, T_CMP(2), 1000);
	board_advance(h->b, 1000000);
	assert_int_equal(take(h), 0);
	/* Stopped in between: that time does not count. */
	wr(h, T_CMP(2), rd(h, COUNTER) + 1000);
	board_advance(h->b, 5000);
	wr(h, CFG, 0);
	board_advance(h->b, 100000);
	assert_int_equal(take(h), 0);
	wr(h, CFG, 1);
	board_advance(h->b, 4999);
	assert_int_equal(take(h), 0);
	board_advance(h->b, 1);
	assert_int_equal(take(h), 0x74);
	/* Without its enable bit a match is silent, and leaves nothing behind. */
	wr(h, T_CFG(2), ROUTE(20));
	wr(h, T_CMP(2), rd(h, COUNTER) + 100);
	board_advance(h->b, 100000);
	wr(h, T_CFG(2), ENABLE | ROUTE(20));
	assert_int_equal(take(h), 0);
}

static void wrap_32(void **state)
{
	struct hpet_rig *h = *state;

	wr(h, T_CFG(2), ENABLE | BITS32 | ROUTE(20));
	wr(h, COUNTER, 0xfffffff0);
	wr(h, T_CMP(2), 0x10);
	wr(h, CFG, 1);
	board_at(h->b, 319);
	assert_int_equal(take(h), 0);
	board_at(h->b, 320);
	assert_int_equal(take(h), 0x74);
	assert_int_equal(rd(h, COUNTER), 0x100000010);
	/* Each time round. */
	board_at(h->b, 320 + (10ull << 32) - 1);
	assert_int_equal(take(h), 0);
	board_at(h->b, 320 + (10ull << 32));
	assert_int_equal(take(h), 0x74);
}

static void periodic(void **state)
{
	struct hpet_rig *h = *state;

	/* As Linux programs it: first match, then the period. */
	wr(h, CFG, 3);
	wr32(h, T_CFG(0), ENABLE | PERIODIC | VAL_SET | BITS32);
	wr32(h, T_CMP(0), 5000);
	assert_int_equal(rd(h, T_CFG(0)) & VAL_SET, 0);
	wr32(h, T_CMP(0), 10000);
	board_at(h->b, 49999);
	assert_int_equal(take(h), 0);
	board_at(h->b, 50000);
	assert_int_equal(take(h), 0x42);
	for (int i = 1; i < 20; i++) {
		board_at(h->b, 50000 + 100000ull * i - 1);
		assert_int_equal(take(h), 0);
		board_at(h->b, 50000 + 100000ull * i);
		assert_int_equal(take(h), 0x42);
		assert_int_equal(rd(h, T_CMP(0)), 5000 + 10000 * (i + 1));
	}
	/* Late: one, the others one by one soon after, and in step. */
	u64 at = 50000 + 100000ull * 25 + 30000;
	board_at(h->b, at);
	assert_int_equal(take(h), 0x42);
	assert_int_equal(take(h), 0);
	assert_int_equal(rd(h, T_CMP(0)), 5000 + 10000 * 26);
	int told = 1;
	for (u64 end = 50000 + 100000ull * 40 + 1; at < end; at += 1000) {
		board_at(h->b, at);
		told += take(h) == 0x42;
		assert_int_equal(take(h), 0);
	}
	assert_int_equal(told, 40 - 19); /* 20 to 40 */
	/* So many, and not a day's. */
	board_at(h->b, at += 86400ull * 1000000000);
	told = take(h) == 0x42;
	for (u64 end = at + 100000ull * 1500; at < end; at += 10000) {
		board_at(h->b, at);
		told += take(h) == 0x42;
	}
	assert_true(told > 2700 && told < 2800); /* 1,500 of their own, an eighth of a second's */
	/* One write with VAL_SET is both. Two halves are one write. */
	wr(h, T_CFG(1), ENABLE | PERIODIC | VAL_SET);
	wr32(h, T_CMP(1), 0);
	wr32(h, T_CMP(1) + 4, 1);
	assert_int_equal(rd(h, T_CMP(1)), 1ull << 32);
	wr(h, CFG, 2);
	wr(h, COUNTER, (1ull << 32) - 10);
	wr32(h, T_CFG(0), 0);
	wr(h, CFG, 3);
	board_advance(h->b, 100);
	assert_int_equal(take(h), 0x58);
	assert_int_equal(rd(h, T_CMP(1)), 2ull << 32);
}

/* Nothing can be seen of the matches of a timer without interrupt and status: the host is not woken for them,
 * and the comparator is where it would be all the same. */
static void unseen(void **state)
{
	struct hpet_rig *h = *state;

	wr(h, CFG, 3);
	wr32(h, T_CFG(0), ENABLE | PERIODIC | VAL_SET | BITS32);
	wr32(h, T_CMP(0), 5000);
	wr32(h, T_CMP(0), 10000);
	board_at(h->b, 50000);
	assert_int_equal(take(h), 0x42);
	wr32(h, T_CFG(0), PERIODIC | BITS32);
	assert_int_equal(h->b->clock.timers.next_deadline, UINT64_MAX);
	board_at(h->b, 50000 + 100000ull * 7 + 1);
	assert_int_equal(rd(h, T_CMP(0)), 5000 + 10000 * 8);
	/* The counter has come round some times: still in step, and on time once it is enabled again. */
	const u64 rounds = 10ull * (1ull << 32) * 7 / 100000 + 1;
	board_at(h->b, 50000 + 100000ull * rounds + 1);
	wr32(h, T_CFG(0), ENABLE | PERIODIC | BITS32);
	assert_int_equal(rd(h, T_CMP(0)), (u32)(5000 + 10000 * (rounds + 1)));
	board_at(h->b, 50000 + 100000ull * (rounds + 1) - 1);
	assert_int_equal(take(h), 0);
	board_at(h->b, 50000 + 100000ull * (rounds + 1));
	assert_int_equal(take(h), 0x42);
	/* A status bit is seen. */
	wr32(h, T_CFG(0), LEVEL | PERIODIC | BITS32);
	board_at(h->b, 50000 + 100000ull * (rounds + 2));
	assert_int_equal(rd(h, STATUS), 1);
}

static void shortest_period(void **state)
{
	struct hpet_rig *h = *state;
	int n = 0;

	wr(h, CFG, 3);
	wr(h, T_CFG(0), ENABLE | PERIODIC | VAL_SET);
	wr(h, T_CMP(0), 1);
	for (int i = 0; i < 100000; i++) {
		board_advance(h->b, 10);
		n += take(h) == 0x42;
	}
	assert_in_range(n, 20, 60);
}

static void level(void **state)
{
	struct hpet_rig *h = *state;

	wr(h, T_CFG(2), ENABLE | LEVEL | ROUTE(20));
	wr(h, CFG, 1);
	wr(h, T_CMP(2), 100);
	board_at(h->b, 1000);
	assert_int_equal(rd(h, STATUS), 4);
	assert_true(h->b->irqs.level[20]);
	wr(h, STATUS, 3);
	assert_true(h->b->irqs.level[20]);
	wr(h, STATUS, 4);
	assert_int_equal(rd(h, STATUS), 0);
	assert_false(h->b->irqs.level[20]);
	/* Status without enable; the line follows when it is enabled. */
	wr(h, T_CFG(2), LEVEL | ROUTE(20));
	wr(h, T_CMP(2), 200);
	board_at(h->b, 2000);
	assert_int_equal(rd(h, STATUS), 4);
	assert_false(h->b->irqs.level[20]);
	wr(h, T_CFG(2), ENABLE | LEVEL | ROUTE(21));
	assert_true(h->b->irqs.level[21]);
	wr(h, T_CFG(2), ENABLE | LEVEL | ROUTE(20));
	assert_false(h->b->irqs.level[21]);
	assert_true(h->b->irqs.level[20]);
	wr(h, CFG, 0);
	assert_false(h->b->irqs.level[20]);
}

static void isa(struct hpet_rig *h, unsigned irq, bool on)
{
	mem_lock(&h->b->mem);
	irq_set(&h->b->irqs, irq, on);
	mem_unlock(&h->b->mem);
}

static void legacy(void **state)
{
	struct hpet_rig *h = *state;

	isa(h, 0, true);
	assert_int_equal(take(h), 0x42);
	isa(h, 0, false);
	wr(h, CFG, 3);
	isa(h, 0, true); /* the i8254 is cut off */
	isa(h, 8, true);
	assert_int_equal(take(h), 0);
	wr(h, T_CFG(0), ENABLE | ROUTE(20)); /* the route does not matter */
	wr(h, T_CMP(0), rd(h, COUNTER) + 10);
	wr(h, T_CFG(1), ENABLE);
	wr(h, T_CMP(1), rd(h, COUNTER) + 20);
	board_advance(h->b, 100);
	assert_int_equal(take(h), 0x42);
	assert_int_equal(take(h), 0);
	board_advance(h->b, 100);
	assert_int_equal(take(h), 0x58);
	/* A pulse that nobody has taken survives a look at the registers. */
	isa(h, 0, false);
	isa(h, 8, false);
	wr(h, CFG, 1);
	assert_int_equal(take(h), 0);
	isa(h, 0, true);
	assert_int_equal(take(h), 0x42);
	wr(h, T_CMP(0), rd(h, COUNTER) + 10);
	board_advance(h->b, 100);
	assert_int_equal(take(h), 0x74);
	device_free(h->hpet);
	h->hpet = board_device(h->b, &hpet_class);
	assert_false(h->b->irqs.hpet_legacy);
}

static void save_and_load(void **state)
{
	struct hpet_rig *h = *state;
	u8 buf[4096];
	struct error e;

	wr(h, CFG, 3);
	wr(h, T_CFG(0), ENABLE | PERIODIC | VAL_SET);
	wr(h, T_CMP(0), 10000);
	board_at(h->b, 50000);
	size_t n = device_save(h->hpet, buf, sizeof(buf));
	mem_lock(&h->b->mem);
	hpet_class.reset(h->hpet);
	assert_false(h->b->irqs.hpet_legacy);
	if (!device_load(h->hpet, buf, n, &e))
		fail_msg("%s", e.msg);
	mem_unlock(&h->b->mem);
	assert_true(h->b->irqs.hpet_legacy);
	board_at(h->b, 99999);
	assert_int_equal(take(h), 0);
	board_at(h->b, 100000);
	assert_int_equal(take(h), 0x42);
	round_trip(h->hpet);
}

static void fuzz(void **state)
{
	struct hpet_rig *h = *state;
	u64 s = 99;
	int n = 0;

	for (int i = 0; i < 100000; i++) {
		u64 v = random_value(&s), pick = next_random(&s);
		static const u16 regs[] = { CFG, CFG, STATUS, COUNTER, T_CFG(0), T_CFG(1), T_CFG(2),
					    T_CMP(0), T_CMP(1), T_CMP(2), T_CMP(0), T_CMP(2) };
		u32 off = pick & 15 ? regs[(pick >> 8) % ARRAY_LEN(regs)] : (u32)(pick >> 8 & 0xfff);
		unsigned size = pick & 0x10000 ? 4 : 8;

		if (pick & 0x20000)
			v |= off == CFG;
		if ((pick & 0xc0000) == 0 && off >= 0x100 && (off & 8))
			v = rd(h, COUNTER) + (v & 0xff);
		mem_phys_write(&h->b->mem, HPET + off, v, size);
		mem_phys_read(&h->b->mem, HPET + (v >> 20 & 0xfff), 1u << (v >> 60 & 3));
		board_advance(h->b, pick >> 32 & 0xfff);
		n += take(h) != 0;
		/* Level lines are what status and enables say. */
		u64 cfg = rd(h, CFG), status = rd(h, STATUS);
		for (unsigned t = 0; t < 3; t++) {
			u32 c = (u32)rd(h, T_CFG(t));
			unsigned gsi = (cfg & 2) && t < 2 ? t * 8 : c >> 9 & 31;

			assert_int_equal(status >> t & 1 && !(c & LEVEL), 0);
			if ((c & LEVEL) && (c & ENABLE) && (cfg & 1) && (status >> t & 1) && (gsi >= 16 || (cfg & 2 && t < 2)))
				assert_true(h->b->irqs.level[gsi]);
		}
	}
	assert_in_range(n, 500, 100000);
	round_trip(h->hpet);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(capabilities), T(counter), T(one_shot), T(wrap_32), T(periodic), T(unseen), T(shortest_period),
		T(level), T(legacy), T(save_and_load), T(fuzz),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
