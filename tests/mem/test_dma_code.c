/* DMA over RAM, holes, ROM and devices; code marks and who counts up their generation. */
#include <pthread.h>
#include <sched.h>

#include "test.h"
#include "mem/mem.h"

static struct mem m;
static struct error e;

static int set_up(void **state)
{
	return !mem_init(&m, 4ull << 30, &e);
}

static int tear_down(void **state)
{
	mem_destroy(&m);
	return 0;
}

static bool all_are(const u8 *p, size_t n, u8 v)
{
	for (size_t i = 0; i < n; i++) {
		if (p[i] != v)
			return false;
	}
	return true;
}

/* ---- DMA ----------------------------------------------------------------------------- */

static void dma_ram(void **state)
{
	u8 out[10000], in[10000];

	for (size_t i = 0; i < sizeof(out); i++)
		out[i] = (u8)(i * 7);
	assert_true(mem_write(&m, 0x100123, out, sizeof(out)));
	assert_true(mem_read(&m, 0x100123, in, sizeof(in)));
	assert_memory_equal(in, out, sizeof(in));
	assert_memory_equal(m.ram + 0x100123, out, sizeof(out));
	assert_int_equal(m.ram[0x100122], 0);
	assert_int_equal(m.ram[0x100123 + sizeof(out)], 0);
	assert_true(mem_write(&m, 0, NULL, 0));
	assert_true(mem_read(&m, 0xa0000, NULL, 0));
	for (unsigned n = 1; n <= 9; n++) {
		assert_true(mem_write(&m, 0x2ffb, out + 100, n));
		assert_true(mem_read(&m, 0x2ffb, in, n));
		assert_memory_equal(in, out + 100, n);
	}
}

static void dma_over_vga_hole(void **state)
{
	static u8 out[0x30000], in[0x30000];

	memset(out, 0x55, sizeof(out));
	memset(in, 0xee, sizeof(in));
	assert_false(mem_write(&m, 0x98000, out, sizeof(out))); /* 32 K, the hole, 32 K */
	assert_true(all_are(m.ram + 0x98000, 0x8000, 0x55));
	assert_true(all_are(m.ram + 0xa0000, 0x20000, 0));
	assert_true(all_are(m.ram + 0xc0000, 0x8000, 0x55));
	assert_false(mem_read(&m, 0x98000, in, sizeof(in)));
	assert_true(all_are(in, 0x8000, 0x55));
	assert_true(all_are(in + 0x8000, 0x20000, 0));
	assert_true(all_are(in + 0x28000, 0x8000, 0x55));
}

static void dma_over_4g(void **state)
{
	u8 out[64], in[64];

	memset(out, 0x66, sizeof(out));
	assert_false(mem_write(&m, MEM_HOLE_START - 32, out, 64));
	assert_true(all_are(m.ram + MEM_HOLE_START - 32, 32, 0x66));
	assert_true(all_are(m.ram + MEM_HOLE_START, 32, 0)); /* that is at 4 GiB */
	assert_false(mem_write(&m, MEM_4G - 32, out, 64));
	assert_true(all_are(m.ram + MEM_HOLE_START, 32, 0x66));
	assert_false(mem_read(&m, MEM_4G - 32, in, 64));
	assert_true(all_are(in, 32, 0) && all_are(in + 32, 32, 0x66));
	memset(in, 0xee, sizeof(in));
	assert_false(mem_read(&m, UINT64_MAX - 15, in, 64)); /* wraps: not to address 0 */
	assert_true(all_are(in, 64, 0));
	assert_false(mem_write(&m, UINT64_MAX - 15, out, 64));
	assert_true(all_are(m.ram, 64, 0));
	assert_false(mem_read(&m, UINT64_MAX, in, 1));
}

static u64 never_read(void *dev, u64 off, unsigned size)
{
	fail_msg("DMA reached a device");
	return 0;
}

static void never_write(void *dev, u64 off, u64 val, unsigned size)
{
	fail_msg("DMA reached a device");
}

static const struct mmio_ops never = { never_read, never_write, 0, 0 };

static void dma_rom_and_devices(void **state)
{
	u8 *rom = aligned_alloc(PAGE_SIZE, PAGE_SIZE), out[32], in[32];

	memset(rom, 0x77, PAGE_SIZE);
	memset(out, 0x88, sizeof(out));
	assert_true(mem_add_rom(&m, "rom", 0xf0000, PAGE_SIZE, rom, 1, &e));
	assert_true(mem_add_mmio(&m, "dev", 0xe0008, 8, &never, NULL, 1, &e));
	assert_true(mem_read(&m, 0xf0ff0, in, 32)); /* ROM, then RAM */
	assert_true(all_are(in, 16, 0x77) && all_are(in + 16, 16, 0));
	assert_false(mem_write(&m, 0xf0ff0, out, 32));
	assert_true(all_are(rom, PAGE_SIZE, 0x77));
	assert_true(all_are(m.ram + 0xf0ff0, 16, 0)); /* nor what is below the ROM */
	assert_true(all_are(m.ram + 0xf1000, 16, 0x88));
	assert_false(mem_write(&m, 0xe0000, out, 32));
	assert_false(mem_read(&m, 0xe0000, in, 32));
	assert_true(all_are(in, 8, 0x88) && all_are(in + 8, 8, 0) && all_are(in + 16, 16, 0x88));
	free(rom);
}

/* ---- code marks ---------------------------------------------------------------------- */

static struct page_code *page_of(u64 gpa)
{
	return mem_page(&m, gpa).code;
}

static void mark_lines(void **state)
{
	struct page_code *p = page_of(0x200000);

	assert_int_equal(mem_code_mark(p, 0x10, 4), 0);
	assert_int_equal(p->lines, 1);
	mem_code_mark(p, 0x7f, 2); /* lines 1 and 2 */
	assert_int_equal(p->lines, 7);
	mem_code_mark(p, 0xfff, 1);
	assert_true(p->lines == (7 | 1ull << 63));
	mem_code_mark(p, 0, 4096);
	assert_true(p->lines == ~0ull);
	assert_int_equal(page_of(0x201000)->lines, 0);
}

static void write_hits(void **state)
{
	struct page_code *p = page_of(0x200000);

	assert_false(mem_code_written(p, 0, 4096)); /* no code in the page */
	mem_code_mark(p, 0x100, 0x40); /* line 4 */
	assert_false(mem_code_written(p, 0xff, 1));
	assert_false(mem_code_written(p, 0x140, 8));
	assert_int_equal(p->gen, 0);
	assert_true(mem_code_written(p, 0xff, 2));
	assert_true(mem_code_written(p, 0x13f, 1));
	assert_true(mem_code_written(p, 0, 4096));
	assert_int_equal(p->gen, 3);
	assert_int_equal(mem_code_mark(p, 0x100, 0x40), 3);
}

/* Every way that a store takes to RAM counts. */
static void stores_are_told(void **state)
{
	u8 buf[0x3000] = { 0 };

	for (u64 gpa = 0x200000; gpa < 0x203000; gpa += 0x1000)
		mem_code_mark(page_of(gpa), 0x800, 1);
	mem_phys_write(&m, 0x200800, 1, 1);
	assert_int_equal(page_of(0x200000)->gen, 1);
	mem_phys_write(&m, 0x2007fc, 1, 8);
	assert_int_equal(page_of(0x200000)->gen, 2);
	mem_phys_write(&m, 0x200700, 1, 8);
	assert_int_equal(page_of(0x200000)->gen, 2);
	mem_write(&m, 0x200000, buf, sizeof(buf));
	for (u64 gpa = 0x200000; gpa < 0x203000; gpa += 0x1000)
		assert_int_equal(page_of(gpa)->gen, gpa == 0x200000 ? 3 : 1);
	mem_write(&m, 0x202840, buf, 0x100); /* behind the line */
	assert_int_equal(page_of(0x202000)->gen, 1);
	/* A store across a page boundary, code only in the second. */
	mem_code_mark(page_of(0x301000), 0, 1);
	mem_phys_write(&m, 0x300ffc, 1, 8);
	assert_int_equal(page_of(0x301000)->gen, 1);
	mem_phys_write(&m, 0x300ff8, 1, 8);
	assert_int_equal(page_of(0x301000)->gen, 1);
	/* And one that also meets a device, so that it goes byte by byte. */
	assert_true(mem_add_mmio(&m, "dev", 0x302000, 8, &(struct mmio_ops){ 0 }, NULL, 1, &e));
	mem_code_mark(page_of(0x301000), 0xfff, 1);
	mem_phys_write(&m, 0x301fff, 0, 2);
	assert_int_equal(page_of(0x301000)->gen, 2);
	/* RAM above 4 GiB has pages of its own. */
	mem_code_mark(page_of(MEM_4G), 0, 1);
	mem_phys_write(&m, MEM_4G, 0, 1);
	assert_int_equal(page_of(MEM_4G)->gen, 1);
	assert_ptr_equal(page_of(MEM_4G), &m.code[MEM_HOLE_START >> 12]);
}

/* The protocol against races. Both sides walk over the same pages at the same time, the writer
 * storing 1 and looking at the marks, the decoder marking and reading. On each page at least one
 * must have seen the other: the decoder read 1, or the writer counted up gen. Without the barrier
 * in mem_code_mark this fails in some of the rounds, the store still being in the writer's
 * store buffer when it reads the marks. */
enum { RACE_PAGES = 1024, RACE_ROUNDS = 1500 };
static _Atomic int round_go, round_done;

static void meet(_Atomic int *at, int round)
{
	for (int spin = 0; atomic_load(at) < round; spin++) {
		if (spin > 2000)
			sched_yield();
	}
}

static u64 *race_word(int i)
{
	return (u64 *)(m.ram + 0x400000 + (size_t)i * PAGE_SIZE + 64 * (i & 31));
}

static void *writer(void *arg)
{
	struct page_code *p = page_of(0x400000);

	for (int round = 1; round <= RACE_ROUNDS; round++) {
		meet(&round_go, round);
		for (int i = 0; i < RACE_PAGES; i++) {
			*(volatile u64 *)race_word(i) = 1;
			mem_code_written(&p[i], 64 * (i & 31), 8);
		}
		atomic_store(&round_done, round);
	}
	return NULL;
}

static void race(void **state)
{
	struct page_code *p = page_of(0x400000);
	static u64 seen[RACE_PAGES];
	static u32 gen[RACE_PAGES];
	pthread_t t;
	int missed = 0;

	pthread_create(&t, NULL, writer, NULL);
	for (int round = 1; round <= RACE_ROUNDS; round++) {
		for (int i = 0; i < RACE_PAGES; i++) {
			*race_word(i) = 0;
			atomic_store(&p[i].lines, 0);
		}
		atomic_store(&round_go, round);
		/* Begin anywhere, so that the two meet somewhere whichever is faster. */
		for (int k = 0, i = round * 37 % RACE_PAGES; k < RACE_PAGES; k++, i = (i + 1) % RACE_PAGES) {
			gen[i] = mem_code_mark(&p[i], 64 * (i & 31), 8);
			seen[i] = *(volatile u64 *)race_word(i);
		}
		meet(&round_done, round);
		for (int i = 0; i < RACE_PAGES; i++)
			missed += seen[i] == 0 && atomic_load(&p[i].gen) == gen[i];
	}
	pthread_join(t, NULL);
	assert_int_equal(missed, 0);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(dma_ram), TEST(dma_over_vga_hole), TEST(dma_over_4g), TEST(dma_rom_and_devices),
		TEST(mark_lines), TEST(write_hits), TEST(stores_are_told), TEST(race),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
