/* Flash: commands, what they leave, where reads come from. */
#include <sys/mman.h>

#include "board.h"

#define BASE 0xffc00000u
#define SIZE 0x10000u

static struct board *b;
static u8 *bytes;

static int setup(void **state)
{
	b = board_new(&pflash_class);
	bytes = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(bytes, 0xff, SIZE);
	mem_lock(&b->mem);
	pflash_attach(b->dev, BASE, bytes, SIZE);
	mem_unlock(&b->mem);
	return 0;
}
static int teardown(void **state)
{
	board_free(b);
	munmap(bytes, SIZE);
	return 0;
}

static void wr(u32 off, u8 v) { mem_phys_write(&b->mem, BASE + off, v, 1); }
static u8 rd(u32 off) { return (u8)mem_phys_read(&b->mem, BASE + off, 1); }
static bool is_mapped(void) { return mem_page(&b->mem, BASE).host != NULL; }

/* As OVMF looks whether it is flash. */
static void is_told_from_rom_and_ram(void **state)
{
	wr(0, 0x50);
	assert_int_equal(rd(0), 0xff);
	wr(0, 0x70);
	assert_int_equal(rd(0), 0x00);
	assert_false(is_mapped());
	wr(0, 0xff);
	assert_int_equal(rd(0), 0xff);
	assert_true(is_mapped());
}

static void programs_and_erases(void **state)
{
	wr(0x1234, 0x10);
	wr(0x1234, 0x5a);
	assert_int_equal(rd(0), 0x80);
	wr(0, 0xff);
	assert_int_equal(rd(0x1234), 0x5a);
	wr(0x1234, 0x40);
	wr(0x1234, 0xa5); /* only clears bits */
	wr(0, 0xff);
	assert_int_equal(rd(0x1234), 0x00);
	assert_int_equal(rd(0x1235), 0xff);
	wr(0x2000, 0x10);
	wr(0x2000, 0);
	wr(0x1fff, 0x20);
	wr(0x1fff, 0x11); /* not confirmed */
	assert_int_equal(rd(0) & 0x30, 0x30);
	wr(0x1fff, 0x50);
	wr(0x1fff, 0x20);
	wr(0x1fff, 0xd0);
	wr(0, 0xff);
	assert_int_equal(rd(0x1234), 0xff);
	assert_int_equal(rd(0x2000), 0x00); /* another sector */
	assert_int_equal(bytes[0x2000], 0);
}

static void programs_a_buffer(void **state)
{
	wr(0x100, 0xe8);
	assert_int_equal(rd(0), 0x80);
	wr(0x100, 3);
	for (u32 k = 0; k < 4; k++)
		wr(0x100 + k, (u8)(k + 1));
	assert_int_equal(bytes[0x100], 0xff);
	wr(0x100, 0xd0);
	assert_memory_equal(bytes + 0x100, "\1\2\3\4\377", 5);
	wr(0x100, 0xe8);
	wr(0x100, 0xff); /* more than it holds */
	assert_int_equal(rd(0) & 0x30, 0x30);
	wr(0, 0xff);
}

static void identifies_and_resets(void **state)
{
	wr(0x55, 0x98);
	assert_int_equal(rd(0x10), 'Q');
	assert_int_equal(rd(0x27), 16); /* 64 KiB */
	assert_int_equal(rd(0x2d), SIZE / 4096 - 1);
	wr(0, 0x90);
	assert_int_equal(rd(0), 0x89);
	round_trip(b->dev);
	assert_int_equal(rd(0), 0x89);
	mem_lock(&b->mem);
	b->dev->cls->reset(b->dev);
	mem_unlock(&b->mem);
	assert_int_equal(rd(0), 0xff);
	assert_true(is_mapped());
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(is_told_from_rom_and_ram), T(programs_and_erases), T(programs_a_buffer), T(identifies_and_resets),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
