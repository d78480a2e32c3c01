/* Drivers that mean harm to the devices on virtio, or only set up strange queues: what the walker's own tests
 * (test_virtq.c) leave to the devices. */
#include <sys/mman.h>
#include <unistd.h>

#include "virtio_rig.h"
#include "net/net_impl.h"

/* A queue whose pushes make chains available: its two rings are one, and the device's index is ahead of the
 * driver's. Descriptor 0 is offered for ever. */
static void feed_itself(unsigned q, u16 ahead)
{
	struct virtq *vq = &rig.v->vq[q];

	vq->desc = RIG_DESC;
	vq->driver = vq->device = RIG_DEVICE;
	vq->enabled = 1;
	vq->next_used = ahead;
	rig_write16(RIG_DEVICE + 2, 1);
	rig_desc(0, RIG_DATA, 10, 0, 0);
	alarm(60); /* ends the test where the device does not stop */
}

static void console_input_ends(void **state)
{
	struct char_backend none = { 0 };

	rig_setup_with(&virtio_console_class);
	virtio_console_add(&rig.v->d, &none, NULL);
	rig_up(0);
	feed_itself(0, 1);
	mem_lock(&rig.b->mem);
	assert_int_equal(virtio_console_receive(&rig.v->d, 0, (const u8 *)"x", 1), 0);
	mem_unlock(&rig.b->mem);
	assert_int_equal(rig_status() & VS_NEEDS_RESET, 0);
	assert_true(rig.v->vq[0].next_avail > 1); /* it was fed */
	alarm(0);
}

static void balloon_statistics_end(void **state)
{
	enum { STATS = 2 };

	rig_setup_with(&virtio_balloon_class);
	rig_up(1 << 1);
	feed_itself(STATS, 2);
	rig_write16(RIG_DEVICE + 2, 2);
	rig_set(R_NOTIFY + 4 * STATS, 0, 2);
	loop_turn(rig.b->loop, 0);
	assert_int_equal(rig_status() & VS_NEEDS_RESET, 0);
	assert_true(rig.v->vq[STATS].next_avail > 2);
	alarm(0);
	rig_set(R_STATUS, 0, 1); /* or it would be run for ever, a turn at a time */
	assert_int_equal(rig.v->in_flight, 0);
}

/* A frame that MAX_MERGED small buffers do not hold is lost, and costs one buffer: the first, so that none is used
 * twice and none forgotten. */
static void net_buffers_too_small(void **state)
{
	enum { SIZE = 128, BYTES = 100, MRG_RXBUF = 1 << 15 };
	static const u8 mac[6] = { 2 };
	static u8 frame[64 * BYTES];
	struct net_offload none = { 0 };
	struct error e;

	rig_setup_with(&virtio_net_class);
	struct net *net = net_open(&(struct net_options){ .kind = NET_NONE }, true, rig.b->loop, &e);
	virtio_net_attach(&rig.v->d, net, mac);
	rig_up(MRG_RXBUF);
	rig.v->vq[0].size = SIZE;
	for (u16 k = 0; k < SIZE; k++) {
		rig_desc(k, RIG_DATA + BYTES * k, BYTES, D_WRITE, 0);
		rig_write16(RIG_DRIVER + 4 + 2ull * k, k);
	}
	rig_write16(RIG_DRIVER + 2, SIZE);
	assert_true(net->card.receive(net->card.arg, &none, frame, sizeof(frame)));
	assert_int_equal(rig_used(), 1);
	assert_int_equal(rig_read16(RIG_DEVICE + 4), 0);
	assert_int_equal(rig_used_len(0), 0);
	for (u16 k = 1; k < 7; k++) {
		assert_true(net->card.receive(net->card.arg, &none, frame, 60));
		assert_int_equal(rig_used(), k + 1);
		assert_int_equal(rig_read16(RIG_DEVICE + 4 + 8ull * k), k);
		assert_int_equal(rig_used_len(k), 72);
	}
	assert_int_equal(rig.v->in_flight, 0);
	net_close(net); /* before its loop, which is the board's */
}

/* More than any request may have, by buffers that overlap: refused by its status alone. */
static void disk_request_too_long(void **state)
{
	char path[64];
	struct error e;
	int fd = memfd_create("disk", MFD_CLOEXEC);

	assert_int_equal(ftruncate(fd, 1 << 20), 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	struct block *disk = block_open(&(struct block_options){ .file = path, .format = BLOCK_RAW, .aio = BLOCK_AIO_INLINE }, NULL, &e);
	assert_non_null(disk);
	rig_setup_with(&virtio_blk_class);
	virtio_blk_attach(&rig.v->d, disk, 1, "x");
	rig_up(0);
	rig.v->vq[0].size = 16;
	rig_desc(0, RIG_DATA, 16, D_NEXT, 1); /* zeros: a read of sector 0 */
	for (unsigned k = 1; k <= 10; k++)
		rig_desc(k, 0x100000, 7 << 20, D_NEXT | D_WRITE, k + 1);
	rig_desc(11, RIG_DATA + 0x1000, 1, D_WRITE, 0);
	rig_offer(0);
	rig_kick();
	assert_int_equal(rig_used(), 1);
	assert_int_equal(rig_used_len(0), 0);
	u8 status = 0xff;
	mem_read(&rig.b->mem, RIG_DATA + 0x1000, &status, 1);
	assert_int_equal(status, 1); /* VIRTIO_BLK_S_IOERR */
	assert_true(block_close(disk, &e));
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(console_input_ends, rig_teardown), cmocka_unit_test_teardown(balloon_statistics_end, rig_teardown),
		cmocka_unit_test_teardown(net_buffers_too_small, rig_teardown), cmocka_unit_test_teardown(disk_request_too_long, rig_teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
