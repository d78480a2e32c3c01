/* A virtio device's bells: an eventfd does what a write to the notification register does. */
#include "virtio_rig.h"

#include <unistd.h>

static const struct region *registers(void)
{
	for (int k = 0; k < rig.b->mem.n_regions; k++)
		if (rig.b->mem.regions[k].base == rig.bar)
			return &rig.b->mem.regions[k];
	fail_msg("the registers are not in the map");
	return NULL;
}

static int bell(unsigned n, u64 *off)
{
	const struct region *r = registers();
	mem_lock(&rig.b->mem);
	int fd = r->ops->doorbell(r->dev, n, off);
	mem_unlock(&rig.b->mem);
	return fd;
}

static void ring(int fd)
{
	const u64 once = 1;
	assert_int_equal(write(fd, &once, sizeof(once)), sizeof(once));
	board_turn(rig.b);
}

static void one_for_each_queue(void **state)
{
	u64 off = 0;
	int first = bell(0, &off);
	assert_true(first >= 0);
	assert_int_equal(off, R_NOTIFY);
	int second = bell(1, &off);
	assert_true(second >= 0 && second != first);
	assert_int_equal(off, R_NOTIFY + 4);
	assert_int_equal(bell(2, &off), -1);
	assert_int_equal(bell(0, &off), first);
}

static void it_kicks_its_queue(void **state)
{
	u64 off;
	int fd = bell(0, &off);
	rig_up(0);
	rig_desc(0, RIG_DATA, 16, D_WRITE, 0);
	rig_offer(0);
	board_turn(rig.b);
	assert_int_equal(rig.chains, 0); /* nobody has said so */
	ring(bell(1, &off));
	assert_int_equal(rig.chains, 0);
	ring(fd);
	assert_int_equal(rig.chains, 1);
	assert_int_equal(rig_used(), 1);
	board_turn(rig.b);
	assert_int_equal(rig.chains, 1);
}

/* Rung before anybody listened, and by a driver that has gone since. */
static void early_and_late(void **state)
{
	const u64 once = 1;
	u64 off;
	rig_up(0);
	rig_desc(0, RIG_DATA, 16, D_WRITE, 0);
	rig_offer(0);
	int fd = bell(0, &off);
	assert_int_equal(write(fd, &once, sizeof(once)), sizeof(once));
	board_turn(rig.b);
	board_turn(rig.b);
	assert_int_equal(rig.chains, 1);
	rig_offer(0);
	rig_set(R_STATUS, 0, 1);
	ring(fd);
	assert_int_equal(rig.chains, 1);
	rig_up(0);
	rig_offer(0);
	ring(fd);
	assert_int_equal(rig.chains, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(one_for_each_queue, rig_setup, rig_teardown),
		cmocka_unit_test_setup_teardown(it_kicks_its_queue, rig_setup, rig_teardown),
		cmocka_unit_test_setup_teardown(early_and_late, rig_setup, rig_teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
