/* The firmware configuration device: items, directory, DMA. */
#include "board.h"

static struct board *b;
static struct device *fw;

enum { ERR = 1, READ = 2, SKIP = 4, SELECT = 8, WRITE = 16 };

static int setup(void **state)
{
	b = board_bare();
	fw = board_device(b, &fw_cfg_class);
	return 0;
}

static int teardown(void **state)
{
	device_free(fw);
	board_free(b);
	return 0;
}

static void select_key(u16 key) { mem_port_write(&b->mem, 0x510, key, 2); }
static u8 next(void) { return (u8)mem_port_read(&b->mem, 0x511, 1); }

static u32 next_be32(void)
{
	u32 v = 0;

	for (int i = 0; i < 4; i++)
		v = v << 8 | next();
	return v;
}

static u64 next_le(unsigned n)
{
	u64 v = 0;

	for (unsigned i = 0; i < n; i++)
		v |= (u64)next() << i * 8;
	return v;
}

/* Starts the descriptor at 0x1000; returns what became of its control word. */
static u32 dma(u32 control, u32 len, u64 addr)
{
	u8 desc[16];

	st32(desc, __builtin_bswap32(control));
	st32(desc + 4, __builtin_bswap32(len));
	st64(desc + 8, __builtin_bswap64(addr));
	assert_true(mem_write(&b->mem, 0x1000, desc, sizeof(desc)));
	mem_port_write(&b->mem, 0x514, 0, 4);
	mem_port_write(&b->mem, 0x518, __builtin_bswap32(0x1000), 4);
	assert_true(mem_read(&b->mem, 0x1000, desc, 4));
	return __builtin_bswap32(ld32(desc));
}

static void fixed_items(void **state)
{
	u8 cpus[2] = { 4, 0 };

	select_key(0);
	assert_int_equal(next_be32(), 0x51454d55);
	assert_int_equal(next(), 0); /* past the end */
	select_key(1);
	assert_int_equal(next_le(4), 3);
	select_key(3);
	assert_int_equal(next_le(8), 8 << 20);
	select_key(5);
	assert_int_equal(next_le(2), 0);
	assert_true(fw_cfg_add_key(fw, 5, cpus, 2));
	assert_true(fw_cfg_add_key(fw, 0xf, cpus, 2));
	select_key(5);
	assert_int_equal(next_le(2), 4);
	cpus[0] = 7; /* data is copied; a second time replaces */
	assert_true(fw_cfg_add_key(fw, 5, cpus, 2));
	select_key(0x4005); /* the write channel's bit does not change the key */
	assert_int_equal(next_le(2), 7);
	select_key(0xf);
	assert_int_equal(next_le(2), 4);
	select_key(0x8005);
	assert_int_equal(next_le(2), 0);
	assert_false(fw_cfg_add_key(fw, 0x19, cpus, 2));
	assert_false(fw_cfg_add_key(fw, 0x20, cpus, 2));
	/* A byte write to the data port, and a byte to the selector, do nothing. */
	select_key(5);
	mem_port_write(&b->mem, 0x511, 9, 1);
	mem_port_write(&b->mem, 0x510, 0, 1);
	assert_int_equal(next_le(2), 7);
}

static const char *const names[] = { "opt/b", "etc/acpi/tables", "bootorder", "etc/zzz", "etc/acpi/rsdp" };
static const char *const sorted[] = { "bootorder", "etc/acpi/rsdp", "etc/acpi/tables", "etc/zzz", "opt/b" };

static void directory(void **state)
{
	char name[56];

	select_key(0x19);
	assert_int_equal(next_be32(), 0);
	/* In two orders: the directory is the same. */
	for (int order = 0; order < 2; order++) {
		teardown(NULL);
		setup(NULL);
		for (unsigned i = 0; i < 5; i++) {
			const char *n = names[order ? 4 - i : i];

			assert_true(fw_cfg_add_file(fw, n, n, strlen(n)));
		}
		assert_true(fw_cfg_add_file(fw, "bootorder", "new", 3)); /* replaced, not doubled */
		select_key(0x19);
		assert_int_equal(next_be32(), 5);
		for (unsigned i = 0; i < 5; i++) {
			assert_int_equal(next_be32(), i ? strlen(sorted[i]) : 3);
			assert_int_equal(next_be32(), (0x20 + i) << 16);
			for (int c = 0; c < 56; c++)
				name[c] = (char)next();
			assert_string_equal(name, sorted[i]);
		}
		select_key(0x20);
		assert_int_equal(next_be32(), 0x6e657700);
		select_key(0x24);
		assert_int_equal(next_be32(), 0x6f70742f);
		select_key(0x25);
		assert_int_equal(next_be32(), 0);
	}
	char longest[57];
	memset(longest, 'x', 56);
	longest[56] = 0;
	assert_false(fw_cfg_add_file(fw, longest, "", 0));
	assert_false(fw_cfg_add_file(fw, "", "", 0));
	longest[55] = 0;
	assert_true(fw_cfg_add_file(fw, longest, "", 0));
}

static void dma_transfers(void **state)
{
	u8 content[10000], got[10016];

	for (unsigned i = 0; i < sizeof(content); i++)
		content[i] = (u8)(i * 7 + i / 256);
	assert_true(fw_cfg_add_file(fw, "file", content, sizeof(content)));
	assert_int_equal(mem_port_read(&b->mem, 0x514, 4), 0x554d4551); /* "QEMU CFG" as bytes */
	assert_int_equal(mem_port_read(&b->mem, 0x518, 4), 0x47464320);
	/* More than there is: zeros after it. */
	memset(got, 0xee, sizeof(got));
	assert_true(mem_write(&b->mem, 0x20ff3, got, sizeof(got)));
	assert_int_equal(dma(0x20 << 16 | SELECT | READ, sizeof(content) + 8, 0x20ff3), 0);
	assert_true(mem_read(&b->mem, 0x20ff3, got, sizeof(got)));
	assert_memory_equal(got, content, sizeof(content));
	for (unsigned i = 0; i < 16; i++)
		assert_int_equal(got[sizeof(content) + i], i < 8 ? 0 : 0xee);
	/* Select, skip, then go on where that ended, also by the data port. */
	assert_int_equal(dma(0x20 << 16 | SELECT | SKIP, 5000, 0), 0);
	assert_int_equal(dma(READ, 100, 0x3000), 0);
	assert_true(mem_read(&b->mem, 0x3000, got, 100));
	assert_memory_equal(got, content + 5000, 100);
	assert_int_equal(next(), content[5100]);
	assert_int_equal(dma(SKIP, 0xffffffff, 0), 0);
	assert_int_equal(next(), 0);
	assert_int_equal(dma(0x20 << 16 | SELECT, 0, 0), 0);
	assert_int_equal(next(), content[0]);
	/* Errors: a write, and memory that is not there. */
	assert_int_equal(dma(WRITE, 4, 0x3000), ERR);
	assert_int_equal(dma(0x20 << 16 | SELECT | READ, 100, 8 << 20), ERR);
	assert_int_equal(dma(0x20 << 16 | SELECT | READ, 100, UINT64_MAX - 50), ERR);
	/* Zeros past an item's end, but no more than take no time. */
	u64 mark = ~0ull, was;
	mem_write(&b->mem, 0x110000, &mark, 8);
	mem_write(&b->mem, 0x120000, &mark, 8);
	assert_int_equal(dma(0x77 << 16 | SELECT | READ, 0x10001, 0x110000), ERR);
	assert_true(mem_read(&b->mem, 0x110000, &was, 8) && was == mark);
	assert_int_equal(dma(READ, 0x10000, 0x110000), 0);
	assert_true(mem_read(&b->mem, 0x110000, &was, 8) && was == 0);
	assert_true(mem_read(&b->mem, 0x120000, &was, 8) && was == mark);
	assert_int_equal(dma(READ, 0xffffffff, 0x100000), ERR);
	/* A descriptor outside memory is ignored. */
	mem_port_write(&b->mem, 0x514, __builtin_bswap32(0x10), 4);
	mem_port_write(&b->mem, 0x518, 0, 4);
	/* The high half counts once: now the low half alone names the descriptor. */
	u8 desc[16] = { 0, 0, 0, WRITE };
	assert_true(mem_write(&b->mem, 0x1000, desc, sizeof(desc)));
	mem_port_write(&b->mem, 0x518, __builtin_bswap32(0x1000), 4);
	assert_true(mem_read(&b->mem, 0x1000, desc, sizeof(desc)));
	assert_int_equal(desc[3], ERR);
}

static void fuzz(void **state)
{
	u64 s = 3;
	int moved = 0;

	assert_true(fw_cfg_add_file(fw, "a", "0123456789", 10));
	assert_true(fw_cfg_add_file(fw, "b", "abcdefghij", 10));
	for (int i = 0; i < 100000; i++) {
		u64 v = random_value(&s), pick = next_random(&s);

		if ((pick & 63) == 0) {
			u64 addr = pick & 64 ? 0x100000 + (v & 0x7fffff) : v;
			u32 len = pick & 128 ? (u32)(v & 0xff) : (u32)v & 0xfffff;

			moved += dma((u32)(pick >> 8 & 0x3f) << 16 | (u32)(pick >> 16 & 31), len, addr) == 0;
			continue;
		}
		if (pick & 64)
			mem_port_write(&b->mem, (u16)(0x510 + (pick >> 8) % 12), (u32)v, 1u << (pick >> 16) % 3);
		else
			mem_port_read(&b->mem, (u16)(0x510 + (pick >> 8) % 12), 1u << (pick >> 16) % 3);
	}
	assert_in_range(moved, 200, 100000);
	round_trip(fw);
	select_key(0x20);
	assert_int_equal(next_be32(), 0x30313233);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
	const struct CMUnitTest tests[] = { T(fixed_items), T(directory), T(dma_transfers), T(fuzz) };
	return cmocka_run_group_tests(tests, NULL, NULL);
}
