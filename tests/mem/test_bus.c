/* Accesses on the memory bus and the port bus: what each handler is given. */
#include <errno.h>
#include <stdio.h>

#include "test.h"
#include "mem/mem.h"

static struct mem m;
static struct error e;

/* A device that writes down what it is asked, and answers each byte with its offset + base. */
struct probe {
	char log[256];
	u8 base;
};

static void note(struct probe *p, const char *fmt, ...) PRINTF_LIKE(2, 3);

static void note(struct probe *p, const char *fmt, ...)
{
	size_t len = strlen(p->log);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(p->log + len, sizeof(p->log) - len, fmt, ap);
	va_end(ap);
}

static u64 probe_read(void *dev, u64 off, unsigned size)
{
	struct probe *p = dev;
	u64 v = 0;

	assert_int_equal(pthread_mutex_trylock(&m.lock), EBUSY);
	note(p, "r%u@%llx ", size, (unsigned long long)off);
	for (unsigned i = 0; i < 8; i++) /* also above size: the bus must cut that off */
		v |= (u64)(u8)(p->base + off + i) << (8 * i);
	return v;
}

static void probe_write(void *dev, u64 off, u64 val, unsigned size)
{
	assert_int_equal(pthread_mutex_trylock(&m.lock), EBUSY);
	note(dev, "w%u@%llx=%llx ", size, (unsigned long long)off, (unsigned long long)val);
}

static const struct mmio_ops ops_default = { probe_read, probe_write, 0, 0 };
static const struct mmio_ops ops_byte = { probe_read, probe_write, 1, 1 };
static const struct mmio_ops ops_8 = { probe_read, probe_write, 1, 8 };
static const struct mmio_ops ops_dword = { probe_read, probe_write, 4, 4 };
static const struct mmio_ops ops_word = { probe_read, probe_write, 2, 2 };
static const struct mmio_ops ops_none = { NULL, NULL, 0, 0 };

static struct probe a, b;

static int set_up(void **state)
{
	memset(&a, 0, sizeof(a));
	memset(&b, 0, sizeof(b));
	b.base = 0x80;
	return !mem_init(&m, 2 << 20, &e);
}

static int tear_down(void **state)
{
	mem_destroy(&m);
	return 0;
}

static void said(struct probe *p, const char *want)
{
	assert_string_equal(p->log, want);
	p->log[0] = 0;
}

static void add(const char *name, u64 base, u64 size, const struct mmio_ops *ops, struct probe *p)
{
	if (!mem_add_mmio(&m, name, base, size, ops, p, 1, &e))
		fail_msg("%s", e.msg);
}

static void read_is(u64 gpa, unsigned size, u64 want)
{
	u64 got = mem_phys_read(&m, gpa, size);

	if (got != want)
		fail_msg("read %u at %llx: %llx, not %llx", size, (unsigned long long)gpa,
			 (unsigned long long)got, (unsigned long long)want);
}

static void ram_access(void **state)
{
	mem_phys_write(&m, 0x5000, 0x8877665544332211ull, 8);
	for (unsigned size = 1; size <= 8; size++)
		read_is(0x5000, size, 0x8877665544332211ull & (size == 8 ? ~0ull : (1ull << 8 * size) - 1));
	mem_phys_write(&m, 0x5ffd, 0xaabbccddeeull, 5); /* crosses a page, odd size */
	read_is(0x5ffd, 5, 0xaabbccddeeull);
	read_is(0x6000, 2, 0xaabb);
	read_is(0x6002, 1, 0);
	read_is(0x5ffc, 1, 0);
}

static void nothing_there(void **state)
{
	read_is(0xa0000, 1, 0xff);
	read_is(0xb0000, 8, ~0ull);
	read_is(0xd0000000, 4, 0xffffffff);
	mem_phys_write(&m, 0xa0000, 0x1234, 8);
	assert_int_equal(m.ram[0xa0000], 0);
	m.ram[0x9ffff] = 0x12;
	read_is(0x9ffff, 2, 0xff12); /* from RAM into the hole */
	mem_phys_write(&m, 0x9fffe, 0x44332211, 4);
	read_is(0x9fffe, 4, 0xffff2211);
	m.ram[(2 << 20) - 1] = 0x77;
	read_is((2 << 20) - 1, 8, 0xffffffffffffff77ull);
	add("none", 0xd0000000, 0x1000, &ops_none, NULL);
	read_is(0xd0000000, 2, 0xffff);
	mem_phys_write(&m, 0xd0000000, 1, 4);
}

static void rom_access(void **state)
{
	u8 *rom = aligned_alloc(PAGE_SIZE, PAGE_SIZE);

	memset(rom, 0x5a, PAGE_SIZE);
	assert_true(mem_add_rom(&m, "rom", 0xf0000, PAGE_SIZE, rom, 1, &e));
	mem_phys_write(&m, 0xf0000, 0, 4);
	read_is(0xf0000, 4, 0x5a5a5a5a);
	mem_phys_write(&m, 0xeffff, 0x1122, 2); /* RAM's half is written */
	read_is(0xeffff, 2, 0x5a22);
	free(rom);
}

static void splits_large(void **state)
{
	add("a", 0xd0000000, 0x1000, &ops_default, &a);
	read_is(0xd0000010, 8, 0x1716151413121110ull);
	said(&a, "r4@10 r4@14 ");
	mem_phys_write(&m, 0xd0000010, 0x1122334455667788ull, 8);
	said(&a, "w4@10=55667788 w4@14=11223344 ");
	read_is(0xd0000011, 4, 0x14131211); /* not aligned */
	said(&a, "r1@11 r2@12 r1@14 ");
	mem_phys_write(&m, 0xd0000002, 0x11223344, 4);
	said(&a, "w2@2=3344 w2@4=1122 ");
	read_is(0xd0000010, 1, 0x10);
	said(&a, "r1@10 ");

	add("b", 0xd0001000, 0x1000, &ops_byte, &b);
	read_is(0xd0001000, 4, 0x83828180);
	said(&b, "r1@0 r1@1 r1@2 r1@3 ");
	add("c", 0xd0002000, 0x1000, &ops_8, &a);
	read_is(0xd0002008, 8, 0x0f0e0d0c0b0a0908ull);
	said(&a, "r8@8 ");
}

static void widens_small(void **state)
{
	add("a", 0xd0000000, 0x1000, &ops_dword, &a);
	read_is(0xd0000022, 1, 0x22);
	said(&a, "r4@20 ");
	read_is(0xd0000022, 2, 0x2322);
	said(&a, "r4@20 ");
	read_is(0xd0000023, 2, 0x2423); /* crosses: two reads */
	said(&a, "r4@20 r4@24 ");
	mem_phys_write(&m, 0xd0000022, 0xffff4321, 1);
	said(&a, "w4@20=210000 ");
	mem_phys_write(&m, 0xd0000020, 0xffff4321, 4);
	said(&a, "w4@20=ffff4321 ");
}

static void crosses_devices(void **state)
{
	add("a", 0xd0000000, 0x10, &ops_default, &a);
	add("b", 0xd0000010, 0x10, &ops_default, &b);
	read_is(0xd000000e, 4, 0x81800f0e);
	said(&a, "r2@e ");
	said(&b, "r2@0 ");
	mem_phys_write(&m, 0xd000000f, 0x44332211, 4);
	said(&a, "w1@f=11 ");
	said(&b, "w2@0=3322 w1@2=44 ");
	/* The end of the last device: nothing follows. */
	read_is(0xd000001f, 2, 0xff8f);
	/* RAM before and after a device within one page. */
	mem_phys_write(&m, 0x3000, 0x0807060504030201ull, 8);
	add("in", 0x3002, 2, &ops_default, &b);
	said(&b, "r1@f ");
	read_is(0x3000, 8, 0x0807060581800201ull);
	said(&b, "r2@0 ");
	mem_phys_write(&m, 0x3000, 0xf8f7f6f5f4f3f2f1ull, 8);
	said(&b, "w2@0=f4f3 ");
	mem_remove(&m, "in", 0x3002);
	read_is(0x3000, 8, 0xf8f7f6f50403f2f1ull);
}

static void piece_offsets(void **state)
{
	add("outer", 0xd0000000, 0x3000, &ops_default, &a);
	assert_true(mem_add_mmio(&m, "inner", 0xd0001000, 0x1000, &ops_default, &b, 2, &e));
	read_is(0xd0002004, 1, 0x04);
	said(&a, "r1@2004 ");
	read_is(0xd0001ffe, 4, 0x01007f7e);
	said(&b, "r2@ffe ");
	said(&a, "r2@2000 ");
}

/* ---- ports --------------------------------------------------------------------------- */

static void ports(const char *name, u16 base, unsigned count, const struct mmio_ops *ops, struct probe *p)
{
	if (!mem_add_ports(&m, name, base, count, ops, p, &e))
		fail_msg("%s", e.msg);
}

static void port_basic(void **state)
{
	assert_int_equal(mem_port_read(&m, 0x60, 1), 0xff);
	assert_int_equal(mem_port_read(&m, 0x60, 2), 0xffff);
	assert_int_equal(mem_port_read(&m, 0x60, 4), 0xffffffff);
	mem_port_write(&m, 0x60, 1, 4);
	ports("a", 0x60, 1, &ops_byte, &a);
	ports("b", 0x64, 1, &ops_byte, &b);
	assert_int_equal(mem_port_read(&m, 0x60, 1), 0);
	said(&a, "r1@0 ");
	assert_int_equal(mem_port_read(&m, 0x64, 1), 0x80);
	said(&b, "r1@0 ");
	assert_int_equal(mem_port_read(&m, 0x60, 4), 0xffffff00);
	said(&a, "r1@0 ");
	mem_port_write(&m, 0x64, 0xfffffed1, 1);
	said(&b, "w1@0=d1 ");
	assert_int_equal(mem_port_read(&m, 0x61, 4), 0x80ffffff);
	said(&b, "r1@0 ");
}

static void port_sizes(void **state)
{
	ports("vbe", 0x1ce, 4, &ops_word, &a);
	mem_port_write(&m, 0x1cf, 0x1234, 2); /* not aligned, and must not be split */
	said(&a, "w2@1=1234 ");
	assert_int_equal(mem_port_read(&m, 0x1ce, 4), 0x03020100);
	said(&a, "r2@0 r2@2 ");
	ports("pci", 0xcf8, 8, &ops_default, &b);
	mem_port_write(&m, 0xcf8, 0x80001234, 4);
	said(&b, "w4@0=80001234 ");
	assert_int_equal(mem_port_read(&m, 0xcfe, 2), 0x8786);
	said(&b, "r2@6 ");
	/* A dword that begins in one range and ends in another. */
	ports("pm", 0xd00, 4, &ops_default, &a);
	assert_int_equal(mem_port_read(&m, 0xcfe, 4), 0x01008786);
	said(&b, "r2@6 ");
	said(&a, "r2@0 ");
}

static void port_order(void **state)
{
	ports("a", 0x100, 16, &ops_default, &a);
	ports("b", 0x104, 2, &ops_default, &b); /* a later one wins */
	assert_int_equal(mem_port_read(&m, 0x104, 4), 0x07068180);
	said(&b, "r2@0 ");
	said(&a, "r2@6 ");
	mem_remove_ports(&m, "b", 0x104);
	assert_int_equal(mem_port_read(&m, 0x104, 4), 0x07060504);
	said(&a, "r4@4 ");
	/* Many more: the table moves and all still answer. */
	for (unsigned i = 0; i < 200; i++)
		ports("many", (u16)(0x2000 + 8 * i), 8, &ops_default, &b);
	assert_int_equal(mem_port_read(&m, 0x100, 1), 0);
	said(&a, "r1@0 ");
	assert_int_equal(mem_port_read(&m, 0x2000 + 8 * 150 + 1, 1), 0x81);
	said(&b, "r1@1 ");
	mem_remove_ports(&m, "a", 0x100);
	assert_int_equal(mem_port_read(&m, 0x100, 1), 0xff);
	assert_int_equal(mem_port_read(&m, 0x2000 + 8 * 150 + 1, 1), 0x81);
}

static void port_edges(void **state)
{
	assert_false(mem_add_ports(&m, "none", 0x100, 0, &ops_default, &a, &e));
	assert_false(mem_add_ports(&m, "past", 0xfff0, 17, &ops_default, &a, &e));
	assert_non_null(strstr(e.msg, "past"));
	ports("top", 0xfff0, 16, &ops_default, &a);
	ports("zero", 0, 4, &ops_default, &b);
	assert_int_equal(mem_port_read(&m, 0xfffe, 4), 0x81800f0e); /* 16 address lines */
	said(&a, "r2@e ");
	said(&b, "r2@0 ");
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(ram_access), TEST(nothing_there), TEST(rom_access), TEST(splits_large),
		TEST(widens_small), TEST(crosses_devices), TEST(piece_offsets), TEST(port_basic),
		TEST(port_sizes), TEST(port_order), TEST(port_edges),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
