/* Memory slots: what KVM is told of the guest's memory as the map changes. KVM here is a table that keeps the slots
 * as the kernel would, and refuses what the kernel refuses: a change of a slot, two over one another. */
#include <errno.h>

#include "test.h"
#include "kvm/kvm_impl.h"

#define N_SLOTS 6u
#define MIB 0x100000ull

struct table { struct kvm_userspace_memory_region r[N_SLOTS]; unsigned calls; int fail; };

static int table_ioctl(void *arg, int fd, unsigned long request, void *p)
{
	struct table *t = arg;
	const struct kvm_userspace_memory_region *r = p;
	assert_int_equal(request, KVM_SET_USER_MEMORY_REGION);
	t->calls++;
	if (t->fail || r->slot >= N_SLOTS)
		return t->fail ? t->fail : -EINVAL;
	if (r->memory_size) {
		assert_int_equal((r->guest_phys_addr | r->memory_size | r->userspace_addr) & PAGE_MASK, 0);
		assert_int_equal(t->r[r->slot].memory_size, 0);
		for (unsigned k = 0; k < N_SLOTS; k++)
			if (t->r[k].memory_size && r->guest_phys_addr < t->r[k].guest_phys_addr + t->r[k].memory_size &&
			    t->r[k].guest_phys_addr < r->guest_phys_addr + r->memory_size)
				return -EEXIST;
	}
	t->r[r->slot] = *r;
	return 0;
}

struct rig { struct mem m; struct vm vm; struct table t; struct kvm_host host; u8 *rom; };

static int setup(void **state)
{
	struct rig *g = calloc(1, sizeof(*g));
	struct error e;
	assert_non_null(g);
	assert_true(mem_init(&g->m, 4 * MIB, &e));
	g->host = (struct kvm_host){ .arg = &g->t, .name = "a table", .ioctl = table_ioctl };
	g->vm = (struct vm){ .host = &g->host, .mem = &g->m, .max_slots = N_SLOTS };
	g->rom = aligned_alloc(PAGE_SIZE, 0x20000);
	*state = g;
	return 0;
}

static int teardown(void **state)
{
	struct rig *g = *state;
	mem_destroy(&g->m);
	free(g->vm.slots);
	free(g->rom);
	free(g);
	return 0;
}

static void follow(struct rig *g)
{
	struct error e;
	if (!slots_follow(&g->vm, &e))
		fail_msg("%s", e.msg);
}

/* The slot that holds gpa, or NULL; and that it shows what the map has there. */
static const struct kvm_userspace_memory_region *at(struct rig *g, u64 gpa)
{
	const struct kvm_userspace_memory_region *found = NULL;
	for (unsigned k = 0; k < N_SLOTS; k++)
		if (gpa - g->t.r[k].guest_phys_addr < g->t.r[k].memory_size)
			found = &g->t.r[k];
	struct mem_page p = mem_page(&g->m, gpa);
	if (found)
		assert_ptr_equal((u8 *)(uintptr_t)found->userspace_addr + (gpa - found->guest_phys_addr), p.host + (gpa & PAGE_MASK));
	return found;
}

static u64 no_read(void *dev, u64 off, unsigned size) { return 0; }
static void no_write(void *dev, u64 off, u64 val, unsigned size) {}
static const struct mmio_ops nothing = { no_read, no_write, 1, 4 };

static void ram(void **state)
{
	struct rig *g = *state;
	follow(g);
	assert_int_equal(g->t.calls, 2); /* below and above the VGA card's */
	assert_non_null(at(g, 0));
	assert_null(at(g, 0xa0000));
	assert_int_equal(at(g, 0xc0000)->memory_size, 4 * MIB - 0xc0000);
	assert_int_equal(at(g, 0xc0000)->flags, 0);
	assert_null(at(g, 4 * MIB));
	follow(g);
	assert_int_equal(g->t.calls, 2);
}

/* As PAM does it: RAM, read-only, ROM, a device, RAM again. Untouched slots stay as they are. */
static void changes(void **state)
{
	struct rig *g = *state;
	struct error e;
	follow(g);
	assert_true(mem_add_rom(&g->m, "shadow", 0xf0000, 0x10000, g->m.ram + 0xf0000, 1, &e));
	unsigned before = g->t.calls;
	follow(g);
	assert_int_equal(g->t.calls - before, 4); /* one goes, three come */
	assert_int_equal(at(g, 0xf0000)->flags, KVM_MEM_READONLY);
	assert_int_equal(at(g, 0xeffff)->flags, 0);
	assert_int_equal(at(g, 0x100000)->flags, 0);
	mem_remove(&g->m, "shadow", 0xf0000);
	assert_true(mem_add_rom(&g->m, "rom", 0xe0000, 0x20000, g->rom, 1, &e));
	follow(g);
	assert_ptr_equal((u8 *)(uintptr_t)at(g, 0xe0000)->userspace_addr, g->rom);
	mem_remove(&g->m, "rom", 0xe0000);
	assert_true(mem_add_mmio(&g->m, "device", 0xe0000, 0x20000, &nothing, NULL, 1, &e));
	follow(g);
	assert_null(at(g, 0xe0000));
	assert_null(at(g, 0xfffff));
	mem_remove(&g->m, "device", 0xe0000);
	follow(g);
	assert_int_equal(at(g, 0xf0000)->memory_size, 4 * MIB - 0xc0000);
}

/* A device over part of a page: the page comes out to us whole. */
static void part_of_a_page(void **state)
{
	struct rig *g = *state;
	struct error e;
	assert_true(mem_add_mmio(&g->m, "device", 0x200800, 0x100, &nothing, NULL, 1, &e));
	follow(g);
	assert_non_null(at(g, 0x1ff000));
	assert_null(at(g, 0x200000));
	assert_null(at(g, 0x200900));
	assert_non_null(at(g, 0x201000));
}

static void refused(void **state)
{
	struct rig *g = *state;
	struct error e;
	g->t.fail = -ENOMEM;
	assert_false(slots_follow(&g->vm, &e));
	assert_string_equal(e.msg, "a table refuses 640 KiB of memory at 0: Cannot allocate memory");
	g->t.fail = 0;
	follow(g); /* not taken for done */
	assert_non_null(at(g, 0));
}

static void too_many(void **state)
{
	struct rig *g = *state;
	struct error e;
	for (u64 k = 0; k < N_SLOTS; k++)
		assert_true(mem_add_mmio(&g->m, "device", 0x200000 + 0x10000 * k, PAGE_SIZE, &nothing, NULL, 1, &e));
	assert_false(slots_follow(&g->vm, &e));
	assert_string_equal(e.msg, "a table has 6 memory slots, and the guest's memory map has more pieces");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(ram, setup, teardown),
		cmocka_unit_test_setup_teardown(changes, setup, teardown),
		cmocka_unit_test_setup_teardown(part_of_a_page, setup, teardown),
		cmocka_unit_test_setup_teardown(refused, setup, teardown),
		cmocka_unit_test_setup_teardown(too_many, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
