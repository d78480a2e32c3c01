/* The guest-physical map: RAM, the VGA hole, the 32-bit hole, overlays, what it refuses. */
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "test.h"
#include "mem/mem.h"

static struct mem m;
static struct error e;
static const struct mmio_ops no_ops;

static void start(u64 size)
{
	if (!mem_init(&m, size, &e))
		fail_msg("%s", e.msg);
}

static int stop(void **state)
{
	mem_destroy(&m);
	return 0;
}

static u8 *pages(size_t n)
{
	u8 *p = aligned_alloc(PAGE_SIZE, n * PAGE_SIZE);

	assert_non_null(p);
	memset(p, 0xc3, n * PAGE_SIZE);
	return p;
}

static bool is_ram(u64 gpa, u64 ram_off)
{
	struct mem_page p = mem_page(&m, gpa);

	return p.host == m.ram + (ram_off & ~PAGE_MASK) && p.writable && p.code == &m.code[ram_off >> 12] &&
	       mem_ram(&m, gpa) == m.ram + ram_off;
}

static bool is_nothing(u64 gpa)
{
	return !mem_page(&m, gpa).host && !mem_ram(&m, gpa);
}

static void assert_sane(void)
{
	for (int i = 0; i + 1 < m.n_regions; i++)
		assert_true(m.regions[i].base + m.regions[i].size <= m.regions[i + 1].base);
}

static void low_ram(void **state)
{
	start(64 << 20);
	assert_true(is_ram(0, 0));
	assert_true(is_ram(0x9ffff, 0x9ffff));
	assert_true(is_nothing(0xa0000));
	assert_true(is_nothing(0xbffff));
	assert_true(is_ram(0xc0000, 0xc0000));
	assert_true(is_ram(0xfffff, 0xfffff));
	assert_true(is_ram(0x100000, 0x100000));
	assert_true(is_ram((64 << 20) - 1, (64 << 20) - 1));
	assert_true(is_nothing(64 << 20));
	assert_true(is_nothing(MEM_4G));
	assert_true(is_nothing(UINT64_MAX));
	assert_sane();
}

static void ram_above_4g(void **state)
{
	start(5ull << 30);
	assert_int_equal(m.low_size, MEM_HOLE_START);
	assert_true(is_ram(MEM_HOLE_START - 1, MEM_HOLE_START - 1));
	assert_true(is_nothing(MEM_HOLE_START));
	assert_true(is_nothing(MEM_4G - 1));
	assert_true(is_ram(MEM_4G, MEM_HOLE_START));
	assert_true(is_ram((6ull << 30) - 1, (5ull << 30) - 1));
	assert_true(is_nothing(6ull << 30));
}

static void refuses_size(u64 size, const char *says)
{
	assert_false(mem_init(&m, size, &e));
	if (!strstr(e.msg, says))
		fail_msg("\"%s\" does not say \"%s\"", e.msg, says);
}

static void sizes(void **state)
{
	refuses_size(0, "at least 1M");
	refuses_size((1 << 20) - 4096, "at least 1M");
	refuses_size((1 << 20) + 512, "nearest is 1024K");
	refuses_size(1ull << 62, "at most 1024G");
	refuses_size(UINT64_MAX, "at most");
	start(1 << 20);
	assert_true(is_ram(0xfffff, 0xfffff));
	assert_true(is_nothing(1 << 20));
}

static void sealed(void **state)
{
	start(2 << 20);
	assert_int_equal(ftruncate(m.fd, 4096), -1);
	assert_true(fcntl(m.fd, F_GET_SEALS) & F_SEAL_SHRINK);
}

static void rom_shadows_ram(void **state)
{
	u8 *low = pages(16), *high = pages(1);

	start(2 << 20);
	m.ram[0xf1000] = 0x11;
	assert_true(mem_add_rom(&m, "bios", 0xf0000, 0x10000, low, 1, &e));
	assert_true(mem_add_rom(&m, "hidden", 0xf0000, 0x1000, high, -1, &e));
	struct mem_page p = mem_page(&m, 0xf1234);
	assert_ptr_equal(p.host, low + 0x1000);
	assert_false(p.writable);
	assert_null(p.code);
	assert_null(mem_ram(&m, 0xf1000));
	assert_ptr_equal(mem_page(&m, 0xf0000).host, low); /* RAM, and so the ROM, hides "hidden" */
	assert_true(is_ram(0xeffff, 0xeffff));
	assert_true(is_ram(0x100000, 0x100000));
	mem_remove(&m, "bios", 0xf0000);
	assert_true(is_ram(0xf1000, 0xf1000));
	assert_int_equal(*mem_ram(&m, 0xf1000), 0x11);
	mem_remove(&m, "ram", 0); /* never RAM */
	assert_true(is_ram(0, 0));
	mem_remove(&m, "bios", 0xf0000); /* not there: nothing */
	assert_sane();
	free(low);
	free(high);
}

static void equal_priority(void **state)
{
	u8 *a = pages(2), *b = pages(1);

	start(2 << 20);
	assert_true(mem_add_rom(&m, "a", 0xe0000000, 0x2000, a, 5, &e));
	assert_true(mem_add_rom(&m, "b", 0xe0000000, 0x1000, b, 5, &e));
	assert_ptr_equal(mem_page(&m, 0xe0000000).host, b); /* the later */
	assert_ptr_equal(mem_page(&m, 0xe0001000).host, a + 0x1000);
	mem_remove(&m, "b", 0xe0000000);
	assert_ptr_equal(mem_page(&m, 0xe0000000).host, a);
	free(a);
	free(b);
}

static void mmio_over_ram(void **state)
{
	start(2 << 20);
	/* Low priority: RAM hides it. Part of a page: the page is not given out as a whole. */
	assert_true(mem_add_mmio(&m, "bar", 0x1000, 0x1000, &no_ops, NULL, -1, &e));
	assert_true(is_ram(0x1000, 0x1000));
	assert_true(mem_add_mmio(&m, "part", 0x3100, 0x10, &no_ops, NULL, 1, &e));
	assert_true(is_nothing(0x3000));
	assert_true(is_nothing(0x3fff));
	assert_true(is_ram(0x2fff, 0x2fff));
	assert_true(is_ram(0x4000, 0x4000));
	/* A page above 1 MiB, where lookups take a short cut; the RAM comes back. */
	assert_true(is_ram(0x181000, 0x181000));
	assert_true(mem_add_mmio(&m, "page", 0x181000, 0x1000, &no_ops, NULL, 1, &e));
	assert_true(is_nothing(0x181000));
	assert_true(is_ram(0x180fff, 0x180fff));
	assert_true(is_ram(0x182000, 0x182000));
	mem_remove(&m, "page", 0x181000);
	assert_true(is_ram(0x181000, 0x181000));
	/* One in the middle of another splits it; offsets go on. */
	assert_true(mem_add_mmio(&m, "outer", 0xd0000000, 0x3000, &no_ops, NULL, 1, &e));
	assert_true(mem_add_mmio(&m, "inner", 0xd0001000, 0x1000, &no_ops, NULL, 2, &e));
	int seen = 0;
	for (int i = 0; i < m.n_regions; i++) {
		if (!strcmp(m.regions[i].name, "outer") && m.regions[i].base == 0xd0002000) {
			assert_int_equal(m.regions[i].offset, 0x2000);
			seen++;
		}
	}
	assert_int_equal(seen, 1);
	assert_sane();
}

static int changes;

static void changed(void *arg)
{
	assert_ptr_equal(arg, &changes);
	changes++;
}

static void change_is_told(void **state)
{
	start(2 << 20);
	m.map_changed = changed;
	m.map_changed_arg = &changes;
	assert_true(mem_add_mmio(&m, "a", 0xd0000000, 0x1000, &no_ops, NULL, 0, &e));
	assert_int_equal(changes, 1);
	mem_remove(&m, "a", 0xd0000000);
	assert_int_equal(changes, 2);
	mem_remove(&m, "a", 0xd0000000);
	assert_int_equal(changes, 2);
}

static void refuses_regions(void **state)
{
	u8 *p = pages(2);

	start(2 << 20);
	assert_false(mem_add_mmio(&m, "empty", 0xd0000000, 0, &no_ops, NULL, 0, &e));
	assert_non_null(strstr(e.msg, "empty"));
	assert_false(mem_add_mmio(&m, "far", UINT64_MAX - 10, 100, &no_ops, NULL, 0, &e));
	assert_false(mem_add_mmio(&m, "far", 1ull << 51, 1ull << 52, &no_ops, NULL, 0, &e));
	assert_false(mem_add_rom(&m, "odd", 0xd0000100, 0x1000, p, 0, &e));
	assert_false(mem_add_rom(&m, "odd", 0xd0000000, 0x1100, p, 0, &e));
	assert_false(mem_add_rom(&m, "odd", 0xd0000000, 0x1000, p + 1, 0, &e));
	assert_non_null(strstr(e.msg, "odd"));
	assert_int_equal(m.n_declared, 2);
	free(p);
}

/* ---- lookups while the map changes --------------------------------------------------- */

static _Atomic bool stop_reading;
static _Atomic u64 lookups;
static u8 *rom;

static void *reader(void *arg)
{
	while (!stop_reading) {
		for (u64 gpa = 0; gpa < 0x100000; gpa += 0x8000) {
			struct mem_page p = mem_page(&m, gpa);
			bool hole = gpa >= 0xa0000 && gpa < 0xc0000;
			bool may_be_rom = gpa >= 0xe0000;
			bool ok = hole ? !p.host : p.host == m.ram + gpa && p.writable;
			if (!ok && may_be_rom)
				ok = p.host == rom + (gpa - 0xe0000) && !p.writable;
			if (!ok)
				return (void *)1;
			lookups++;
		}
	}
	return NULL;
}

static void change_while_read(void **state)
{
	pthread_t t[2];
	void *wrong = NULL;

	rom = pages(32);
	start(2 << 20);
	for (int i = 0; i < 2; i++)
		pthread_create(&t[i], NULL, reader, NULL);
	for (int i = 0; i < 2000 || lookups < 20000; i++) {
		assert_true(mem_add_rom(&m, "rom", 0xe0000, 0x20000, rom, 1, &e));
		/* Many regions in between: the table must grow under the readers. */
		if (i < 100)
			assert_true(mem_add_mmio(&m, "bar", 0xd0000000 + (u64)i * 0x2000, 0x1000, &no_ops, NULL, 0, &e));
		mem_remove(&m, "rom", 0xe0000);
	}
	stop_reading = true;
	for (int i = 0; i < 2; i++) {
		void *r;
		pthread_join(t[i], &r);
		wrong = r ? r : wrong;
	}
	assert_null(wrong);
	assert_int_equal(m.n_declared, 102);
	free(rom);
}

/* What the host holds no memory for is not touched to see that it is zeros. */
static void holes(void **state)
{
	start(2 << 20);
	u8 *own = mem_device_ram(&m, 1 << 20);
	assert_ptr_equal(own, m.ram + (2 << 20));
	assert_int_equal(mem_hole(&m, own), MEM_DEVICE_RAM);
	own[3 * PAGE_SIZE + 5] = 1;
	assert_int_equal(mem_hole(&m, own), 3 * PAGE_SIZE);
	assert_int_equal(mem_hole(&m, own + 3 * PAGE_SIZE), 0);
	assert_int_equal(mem_hole(&m, own + 4 * PAGE_SIZE), MEM_DEVICE_RAM - 4 * PAGE_SIZE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(low_ram, stop), cmocka_unit_test_teardown(ram_above_4g, stop),
		cmocka_unit_test_teardown(sizes, stop), cmocka_unit_test_teardown(sealed, stop),
		cmocka_unit_test_teardown(rom_shadows_ram, stop), cmocka_unit_test_teardown(equal_priority, stop),
		cmocka_unit_test_teardown(mmio_over_ram, stop), cmocka_unit_test_teardown(change_is_told, stop),
		cmocka_unit_test_teardown(refuses_regions, stop),
		cmocka_unit_test_teardown(change_while_read, stop), cmocka_unit_test_teardown(holes, stop),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
