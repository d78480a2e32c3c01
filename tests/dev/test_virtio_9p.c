/* virtio-9p: messages to a folder's server and back, its tag, what breaks it, a reset while it works. */
#include <stdlib.h>
#include <unistd.h>

#include "virtio_rig.h"

static char folder[32];
static struct share *share;

static int setup(void **state)
{
	struct error e;

	strcpy(folder, "/tmp/ring3-test-XXXXXX");
	assert_non_null(mkdtemp(folder));
	rig_setup_with(&virtio_9p_class);
	share = share_open(&(struct share_options){ .path = folder, .tag = "the tag" }, false, rig.b->loop, &e);
	assert_non_null(share);
	virtio_9p_attach(rig.b->dev, share);
	return 0;
}

static int teardown(void **state)
{
	share_close(share);
	rig_teardown(state);
	return rmdir(folder);
}

static void put_version(u64 at)
{
	static const u8 message[] = "\x15\0\0\0\x64\xff\xff\0\0\2\0\10\0009P2000.L";

	mem_write(&rig.b->mem, at, message, 21);
}

static void a_message(void **state)
{
	u8 reply[21];

	rig_up(0);
	put_version(RIG_DATA);
	rig_desc(0, RIG_DATA, 9, D_NEXT, 1); /* in pieces */
	rig_desc(1, RIG_DATA + 9, 12, D_NEXT, 2);
	rig_desc(2, RIG_DATA + 0x1000, 5, D_WRITE | D_NEXT, 3);
	rig_desc(3, RIG_DATA + 0x1005, 4096, D_WRITE, 0);
	rig_offer(0);
	rig_kick();
	share_drain(share);
	assert_int_equal(rig_used(), 1);
	assert_int_equal(rig_used_len(0), 21);
	mem_read(&rig.b->mem, RIG_DATA + 0x1000, reply, sizeof(reply));
	assert_memory_equal(reply, "\x15\0\0\0\x65\xff\xff\0\0\2\0\10\0009P2000.L", 21);
	assert_int_equal(rig_get(R_ISR, 1), 1);
}

static void its_tag(void **state)
{
	char tag[8] = { 0 };

	assert_int_equal(rig_get(0x2000, 2), 7);
	for (unsigned k = 0; k < 7; k++)
		tag[k] = (char)rig_get(0x2002 + k, 1);
	assert_string_equal(tag, "the tag");
	rig_set(R_FEATURE_SELECT, 0, 4);
	assert_int_equal(rig_get(R_FEATURE, 4) & 1, 1);
}

static void what_is_no_request(void **state)
{
	for (unsigned k = 0; k < 2; k++) {
		rig_up(0);
		put_version(RIG_DATA);
		rig_desc(0, RIG_DATA, k ? 6 : 21, D_NEXT, 1);
		rig_desc(1, RIG_DATA + 0x1000, k ? 4096 : 10, D_WRITE, 0);
		rig_offer(0);
		rig_kick();
		assert_int_equal(rig_status() & VS_NEEDS_RESET, VS_NEEDS_RESET);
		assert_int_equal(rig.v->in_flight, 0);
	}
}

/* Requests that are under way keep a reset from being complete; what they say is for nobody. */
static void a_reset_while_it_works(void **state)
{
	rig_up(0);
	put_version(RIG_DATA);
	rig_desc(0, RIG_DATA, 21, D_NEXT, 1);
	rig_desc(1, RIG_DATA + 0x1000, 4096, D_WRITE, 0);
	for (unsigned k = 0; k < RIG_SIZE; k++)
		rig_offer(0);
	rig_set(R_NOTIFY, 0, 2);
	loop_turn(rig.b->loop, 0); /* they are with the share */
	assert_true(rig.v->in_flight > 0 || rig_used() == RIG_SIZE);
	rig_set(R_STATUS, 0, 1);
	share_drain(share);
	assert_int_equal(rig.v->in_flight, 0);
	assert_int_equal(rig_status(), 0);
	a_message(state); /* and anew */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_message, setup, teardown),
		cmocka_unit_test_setup_teardown(its_tag, setup, teardown),
		cmocka_unit_test_setup_teardown(what_is_no_request, setup, teardown),
		cmocka_unit_test_setup_teardown(a_reset_while_it_works, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
