/* Posted writes: the ring is carried out in its order, by exits and by looks, and zones follow the map. */
#include <errno.h>

#include "test.h"
#include "kvm/kvm_impl.h"

#define WINDOW 0xa0000ull

struct rig {
	struct mem m;
	struct vm vm;
	struct kvm_vcpu v;
	struct kvm_host host;
	u8 *run;                   /* kvm_run, then a page between, then the ring */
	struct kvm_coalesced_mmio_zone zone[4];
	unsigned zones, gone;
	u8 wrote[4096];
	u64 at[4096];
	unsigned n;
	bool busy;                 /* another processor writes as fast as writes are carried out */
};

static void keep(struct rig *g, u64 gpa, u32 val, u32 len);

static int zone_ioctl(void *arg, int fd, unsigned long request, void *p)
{
	struct rig *g = arg;
	if (request == KVM_SET_USER_MEMORY_REGION)
		return 0;
	assert_true(request == KVM_REGISTER_COALESCED_MMIO || request == KVM_UNREGISTER_COALESCED_MMIO);
	g->zone[g->zones % 4] = *(struct kvm_coalesced_mmio_zone *)p;
	*(request == KVM_REGISTER_COALESCED_MMIO ? &g->zones : &g->gone) += 1;
	return 0;
}

static u64 no_read(void *dev, u64 off, unsigned size) { return 0; }
static void note(void *dev, u64 off, u64 val, unsigned size)
{
	struct rig *g = dev;
	assert_true(g->n < ARRAY_LEN(g->wrote));
	g->at[g->n] = off;
	g->wrote[g->n++] = (u8)val;
	if (g->busy)
		keep(g, WINDOW, 0, 1);
}
static const struct mmio_ops window = { no_read, note, 1, 4, .posted = true };
static const struct mmio_ops other = { no_read, note, 1, 4 };

static int setup(void **state)
{
	struct rig *g = calloc(1, sizeof(*g));
	struct error e;
	assert_non_null(g);
	assert_true(mem_init(&g->m, 1 << 20, &e));
	assert_true(mem_add_mmio(&g->m, "window", WINDOW, 0x20000, &window, g, 0, &e));
	assert_true(mem_add_mmio(&g->m, "other", 0xfed00000, 0x1000, &other, g, 0, &e));
	g->run = aligned_alloc(PAGE_SIZE, 3 * PAGE_SIZE);
	memset(g->run, 0, 3 * PAGE_SIZE);
	g->host = (struct kvm_host){ .arg = g, .name = "a ring", .ioctl = zone_ioctl };
	g->vm = (struct vm){ .host = &g->host, .mem = &g->m, .max_slots = 16, .ring_page = 2, .run_bytes = 3 * PAGE_SIZE };
	g->m.engine = &g->vm;
	g->v.vm = &g->vm;
	g->v.run = (struct kvm_run *)g->run;
	posted_joined(&g->v);
	assert_true(slots_follow(&g->vm, &e));
	*state = g;
	return 0;
}

static int teardown(void **state)
{
	struct rig *g = *state;
	mem_destroy(&g->m);
	free(g->vm.slots);
	free(g->run);
	free(g);
	return 0;
}

static void keep(struct rig *g, u64 gpa, u32 val, u32 len)
{
	struct kvm_coalesced_mmio_ring *r = g->vm.ring;
	struct kvm_coalesced_mmio *w = &r->coalesced_mmio[r->last];
	w->phys_addr = gpa;
	w->len = len;
	memcpy(w->data, &val, 4);
	r->last = (r->last + 1) % KVM_COALESCED_MMIO_MAX;
}

static void zones(void **state)
{
	struct rig *g = *state;
	struct error e;
	assert_int_equal(g->zones, 1);
	assert_int_equal(g->zone[0].addr, WINDOW);
	assert_int_equal(g->zone[0].size, 0x20000);
	assert_true(slots_follow(&g->vm, &e));
	assert_int_equal(g->zones, 1);
	/* RAM shows in the window, as in linear modes: the zone goes, and what is left of the window is one. */
	assert_true(mem_add_ram(&g->m, "linear", WINDOW, 0x10000, mem_device_ram(&g->m, 0x10000), 1, &e));
	assert_true(slots_follow(&g->vm, &e));
	assert_int_equal(g->gone, 1);
	assert_int_equal(g->zones, 2);
	assert_int_equal(g->zone[1].addr, WINDOW + 0x10000);
}

static void order(void **state)
{
	struct rig *g = *state;
	keep(g, WINDOW + 5, 1, 1);
	keep(g, WINDOW + 6, 0x0302, 2);
	posted_carry_out(&g->v);
	assert_int_equal(g->n, 2);
	assert_int_equal(g->at[0], 5);
	assert_int_equal(g->wrote[1], 2);
	assert_int_equal(g->v.stats.posted, 2);
	posted_carry_out(&g->v);
	assert_int_equal(g->n, 2);
}

/* Once around the ring, with somebody who looks in between. */
static void around(void **state)
{
	struct rig *g = *state;
	for (unsigned k = 0; k < 2 * KVM_COALESCED_MMIO_MAX; k++) {
		keep(g, WINDOW + k, k & 0xff, 1);
		if (k % 50 == 49) {
			mem_lock(&g->m);
			mem_posted(&g->m);
			mem_unlock(&g->m);
			assert_int_equal(g->n, k + 1);
		}
	}
	posted_leaves(&g->v);
	assert_int_equal(g->n, 2 * KVM_COALESCED_MMIO_MAX);
	for (unsigned k = 0; k < g->n; k++)
		assert_int_equal(g->wrote[k], k & 0xff);
	assert_null(g->m.posted);
}

static void a_busy_writer_keeps_nobody(void **state)
{
	struct rig *g = *state;
	g->busy = true;
	keep(g, WINDOW, 0, 1);
	posted_carry_out(&g->v);
	assert_int_equal(g->n, KVM_COALESCED_MMIO_MAX);
	g->busy = false;
	posted_carry_out(&g->v);
	assert_int_equal(g->n, KVM_COALESCED_MMIO_MAX + 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(zones, setup, teardown),
		cmocka_unit_test_setup_teardown(order, setup, teardown),
		cmocka_unit_test_setup_teardown(around, setup, teardown),
		cmocka_unit_test_setup_teardown(a_busy_writer_keeps_nobody, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
