/* The walker of descriptors, held against what drivers may and may not do; reset, events, packed rings. */
#include "virtio_rig.h"

static void is_broken(const char *what)
{
	if (!(rig_status() & VS_NEEDS_RESET))
		fail_msg("%s: the device is not broken", what);
	assert_int_equal(rig.v->in_flight, 0);
}

static u8 byte_at(u64 gpa)
{
	u8 v = 0;

	mem_read(&rig.b->mem, gpa, &v, 1);
	return v;
}

static void a_chain(void **state)
{
	rig_up(0);
	mem_write(&rig.b->mem, RIG_DATA, "hello ", 6);
	mem_write(&rig.b->mem, RIG_DATA + 0x1000, "world", 5);
	rig_desc(3, RIG_DATA, 6, D_NEXT, 5);
	rig_desc(5, RIG_DATA + 0x1000, 5, D_NEXT, 0);
	rig_desc(0, RIG_DATA + 0x2000, 100, D_NEXT | D_WRITE, 7);
	rig_desc(7, RIG_DATA + 0x3000, 3, D_WRITE, 0);
	rig_offer(3);
	rig_kick();
	assert_int_equal(rig.chains, 1);
	assert_int_equal(rig.n_out, 2);
	assert_int_equal(rig.n_in, 2);
	assert_string_equal((char *)rig.out, "hello world");
	assert_int_equal(rig.in_len, 103);
	assert_int_equal(rig_used(), 1);
	assert_int_equal(rig_used_len(0), 103);
	assert_int_equal(rig_read16(RIG_DEVICE + 4), 3);
	assert_int_equal(byte_at(RIG_DATA + 0x2000 + 99), RIG_FILL);
	assert_int_equal(byte_at(RIG_DATA + 0x2000 + 100), 0);
	assert_int_equal(byte_at(RIG_DATA + 0x3002), RIG_FILL);
	assert_int_equal(rig_get(R_ISR, 1), 1);
	assert_int_equal(rig_get(R_ISR, 1), 0); /* cleared by the read */
	assert_int_equal(rig_status() & VS_NEEDS_RESET, 0);
}

/* Twice around the ring, several at once. */
static void many(void **state)
{
	rig_up(0);
	for (unsigned k = 0; k < RIG_SIZE; k++)
		rig_desc(k, RIG_DATA + 64 * k, 64, D_WRITE, 0);
	for (u16 n = 0; n < 3 * RIG_SIZE; n += 3) {
		for (u16 k = 0; k < 3; k++)
			rig_offer((u16)((n + k) % RIG_SIZE));
		rig_kick();
		assert_int_equal(rig_used(), n + 3);
	}
	assert_int_equal(rig.chains, 24);
}

static void a_buffer_of_no_bytes_is_nothing(void **state)
{
	rig_up(0);
	rig_desc(0, 0xdead0000, 0, D_NEXT, 1); /* not even its address counts */
	rig_desc(1, RIG_DATA, 4, D_WRITE, 0);
	rig_offer(0);
	rig_kick();
	assert_int_equal(rig.chains, 1);
	assert_int_equal(rig.n_out, 0);
	assert_int_equal(rig_used(), 1);
}

static void indirect(void **state)
{
	rig_up(VIRTIO_F_INDIRECT_DESC);
	rig_desc_at(RIG_DATA, RIG_DATA + 0x1000, 5, D_NEXT, 2);
	rig_desc_at(RIG_DATA + 32, RIG_DATA + 0x2000, 7, D_WRITE, 0);
	rig_desc(4, RIG_DATA, 48, D_INDIRECT, 0);
	rig_offer(4);
	rig_kick();
	assert_int_equal(rig.chains, 1);
	assert_int_equal(rig.out_len, 5);
	assert_int_equal(rig_used_len(0), 7);
}

/* ---- what breaks it --------------------------------------------------------------------------- */

static void one(u64 features, const char *what, u64 addr, u32 len, u16 flags, u16 next)
{
	rig_up(features);
	unsigned before = rig.chains;
	rig_desc(0, addr, len, flags, next);
	rig_offer(0);
	rig_kick();
	is_broken(what);
	assert_int_equal(rig.chains, before);
	assert_int_equal(rig_used(), 0);
	rig_kick(); /* and stays so */
	assert_int_equal(rig_get(R_ISR, 1) & 2, 2);
}

static void what_drivers_must_not_do(void **state)
{
	u64 ind = VIRTIO_F_INDIRECT_DESC, ram = rig.b->mem.ram_size;

	one(0, "a loop", RIG_DATA, 16, D_NEXT, 0);
	one(0, "a link out of the table", RIG_DATA, 16, D_NEXT, RIG_SIZE);
	one(0, "beyond RAM", ram, 1, D_WRITE, 0);
	one(0, "over the end of RAM", ram - 8, 9, D_WRITE, 0);
	one(0, "over the end of addresses", ~0ull - 3, 16, D_WRITE, 0);
	one(0, "the whole address space", 0, ~0u, D_WRITE, 0);
	one(0, "a device", rig.bar, 16, D_WRITE, 0);
	one(0, "the VGA hole", 0xa0000, 16, D_WRITE, 0);
	one(0, "indirect, not negotiated", RIG_DATA, 32, D_INDIRECT, 0);
	one(ind, "indirect and goes on", RIG_DATA, 32, D_INDIRECT | D_NEXT, 1);
	one(ind, "an empty table", RIG_DATA, 0, D_INDIRECT, 0);
	one(ind, "half a descriptor", RIG_DATA, 24, D_INDIRECT, 0);
	one(ind, "a table beyond RAM", ram, 32, D_INDIRECT, 0);
	rig_desc_at(RIG_DATA, RIG_DATA, 16, D_NEXT, 0);
	one(ind, "a loop in a table", RIG_DATA, 32, D_INDIRECT, 0);
	rig_desc_at(RIG_DATA, RIG_DATA, 16, D_NEXT, 2);
	one(ind, "a link out of an indirect table", RIG_DATA, 32, D_INDIRECT, 0);
	rig_desc_at(RIG_DATA, RIG_DATA, 16, D_INDIRECT, 0);
	one(ind, "a table in a table", RIG_DATA, 16, D_INDIRECT, 0);
}

static void readable_after_writable(void **state)
{
	rig_up(0);
	rig_desc(0, RIG_DATA, 4, D_WRITE | D_NEXT, 1);
	rig_desc(1, RIG_DATA, 4, 0, 0);
	rig_offer(0);
	rig_kick();
	is_broken("readable after writable");
}

static void indices_that_run_away(void **state)
{
	rig_up(0);
	rig_desc(0, RIG_DATA, 4, D_WRITE, 0);
	rig_write16(RIG_DRIVER + 2, RIG_SIZE + 1);
	rig_kick();
	is_broken("more available than there are entries");
	rig_up(0);
	rig_write16(RIG_DRIVER + 2, 0xffff);
	rig_kick();
	is_broken("an index that went backwards");
	rig_up(0);
	rig_offer(RIG_SIZE); /* a head out of the table */
	rig_kick();
	is_broken("a head out of the table");
}

static void rings_that_are_nowhere(void **state)
{
	rig_up(0);
	rig_set(R_STATUS, 0, 1);
	rig_set(R_STATUS, 3, 1);
	rig_set(R_DRIVER_SELECT, 1, 4);
	rig_set(R_DRIVER, 1, 4);
	rig_set(R_STATUS, 11, 1);
	rig_set(R_DESC, 0xfffffff0, 4);
	rig_set(R_DESC + 4, 0xffffffff, 4);
	rig_set(R_AVAIL, 0xfffffffe, 4);
	rig_set(R_AVAIL + 4, 0xffffffff, 4);
	rig_set(R_USED, 0xe0000000, 4);
	rig_set(R_ENABLE, 1, 2);
	rig_set(R_STATUS, 15, 1);
	rig_kick();
	is_broken("rings outside of memory");
	/* A used ring that is not RAM is found when something is pushed. */
	rig_up(0);
	rig.v->vq[0].device = 0xa0000;
	rig_desc(0, RIG_DATA, 4, D_WRITE, 0);
	rig_offer(0);
	rig_kick();
	is_broken("a used ring that is not RAM");
}

/* A buffer that lies over two pieces of RAM is two pieces; the walk is bounded by them. */
static void too_many_pieces(void **state)
{
	rig_up(VIRTIO_F_INDIRECT_DESC);
	rig_set(R_STATUS, 0, 1);
	rig_up(VIRTIO_F_INDIRECT_DESC);
	for (unsigned k = 0; k < RIG_SIZE; k++)
		rig_desc_at(RIG_DATA + 16 * k, RIG_DATA + 0x1000, 1, D_NEXT, (u16)(k + 1));
	rig_desc_at(RIG_DATA + 16 * (RIG_SIZE - 1), RIG_DATA + 0x1000, 1, 0, 0);
	rig_desc(0, RIG_DATA, 16 * RIG_SIZE, D_INDIRECT, 0);
	rig_offer(0);
	rig_kick();
	assert_int_equal(rig.chains, 1); /* as many as the queue has entries are fine */
	assert_int_equal(rig.n_out, RIG_SIZE);
	rig_desc_at(RIG_DATA + 16 * (RIG_SIZE - 1), RIG_DATA + 0x1000, 1, D_NEXT, RIG_SIZE);
	rig_desc_at(RIG_DATA + 16 * RIG_SIZE, RIG_DATA + 0x1000, 1, 0, 0);
	rig_desc(0, RIG_DATA, 16 * (RIG_SIZE + 1), D_INDIRECT, 0);
	rig_offer(0);
	rig_kick();
	is_broken("an indirect chain longer than the queue");
}

/* ---- notifications ------------------------------------------------------------------------------ */

static void event_index(void **state)
{
	const u64 used_event = RIG_DRIVER + 4 + 2 * RIG_SIZE, avail_event = RIG_DEVICE + 4 + 8 * RIG_SIZE;

	rig_up(VIRTIO_F_EVENT_IDX);
	rig_desc(0, RIG_DATA, 4, D_WRITE, 0);
	rig_write16(used_event, 2); /* tell me of the third */
	rig_offer(0);
	rig_kick();
	rig_get(R_ISR, 1); /* the first is always told: nothing is known of before */
	assert_int_equal(rig_read16(avail_event), 1);
	rig_offer(0);
	rig_kick();
	assert_int_equal(rig_get(R_ISR, 1), 0);
	rig_offer(0);
	rig_kick();
	assert_int_equal(rig_get(R_ISR, 1), 1);
	rig_offer(0);
	rig_kick();
	assert_int_equal(rig_get(R_ISR, 1), 0);
	assert_int_equal(rig_read16(avail_event), 4);
}

static void no_interrupt_flag(void **state)
{
	rig_up(0);
	rig_desc(0, RIG_DATA, 4, D_WRITE, 0);
	rig_write16(RIG_DRIVER, 1);
	rig_offer(0);
	rig_kick();
	assert_int_equal(rig_used(), 1);
	assert_int_equal(rig_get(R_ISR, 1), 0);
	assert_int_equal(rig_read16(RIG_DEVICE), 0); /* notifications are wanted again */
	rig_write16(RIG_DRIVER, 0);
	rig_offer(0);
	rig_kick();
	assert_int_equal(rig_get(R_ISR, 1), 1);
}

static void without_bus_master_nothing_happens(void **state)
{
	rig_up(0);
	rig_desc(0, RIG_DATA, 4, D_WRITE, 0);
	rig_offer(0);
	mem_port_write(&rig.b->mem, 0xcf8, 0x80001004, 4);
	mem_port_write(&rig.b->mem, 0xcfc, PCI_CMD_MEM, 2);
	rig_kick();
	assert_int_equal(rig_used(), 0);
	mem_port_write(&rig.b->mem, 0xcfc, PCI_CMD_MEM | PCI_CMD_MASTER, 2);
	board_turn(rig.b);
	assert_int_equal(rig_used(), 1);
}

/* ---- reset ------------------------------------------------------------------------------------------ */

static void a_reset_waits_for_what_is_in_flight(void **state)
{
	rig_up(0);
	rig_desc(0, RIG_DATA, 4, D_WRITE, 0);
	rig.keep = true;
	rig_offer(0);
	rig_kick();
	assert_int_equal(rig.v->in_flight, 1);
	rig_set(R_STATUS, 0, 1);
	assert_int_not_equal(rig_status(), 0);
	rig_set(R_STATUS, 15, 1); /* has no effect now */
	rig_offer(0);
	rig_kick();
	assert_int_equal(rig.chains, 1);
	mem_lock(&rig.b->mem);
	virtq_push(rig.v, &rig.kept, 0);
	mem_unlock(&rig.b->mem);
	assert_int_equal(rig_status(), 0);
	assert_int_equal(rig_used(), 0); /* nobody was told */
	rig.keep = false;
	rig_up(0);
	rig_desc(0, RIG_DATA, 4, D_WRITE, 0);
	rig_offer(0);
	rig_kick();
	assert_int_equal(rig_used(), 1);
	round_trip(rig.b->dev);
}

static void features(void **state)
{
	rig_up(0);
	rig_set(R_STATUS, 0, 1);
	assert_int_equal(rig_status(), 0);
	rig_set(R_STATUS, 3, 1);
	rig_set(R_STATUS, 11, 1); /* without VERSION_1 */
	assert_int_equal(rig_status(), 3);
	rig_set(R_DRIVER_SELECT, 1, 4);
	rig_set(R_DRIVER, 0x80000001, 4); /* bit 63 was not offered */
	rig_set(R_STATUS, 11, 1);
	assert_int_equal(rig_status(), 3);
	rig_set(R_DRIVER, 1, 4);
	rig_set(R_STATUS, 11, 1);
	assert_int_equal(rig_status(), 11);
	rig_set(R_DRIVER, 0, 4); /* too late */
	assert_int_equal(rig_get(R_DRIVER, 4), 1);
}

/* ---- packed ---------------------------------------------------------------------------------------------- */

static void packed_desc(unsigned at, u32 len, u16 id, u16 flags)
{
	rig_desc(at, RIG_DATA + 256 * at, len, id, flags); /* id and flags have changed places */
}

static void packed_ring(void **state)
{
	enum { AVAIL = 1 << 7, USED = 1 << 15 };
	unsigned at = 0, seen = 0;
	bool wrap = true;

	rig_up(VIRTIO_F_RING_PACKED);
	/* Chains of one to three, several times around the ring. */
	for (unsigned n = 0; n < 40; n++) {
		unsigned len = 1 + n % 3, first = at;
		u16 first_flags = 0;
		bool first_wrap = wrap;

		for (unsigned k = 0; k < len; k++) {
			u16 flags = (u16)((wrap ? AVAIL : USED) | (k + 1 < len ? D_NEXT : D_WRITE));

			if (k)
				packed_desc(at, 10, (u16)n, flags);
			else
				first_flags = flags;
			if (++at == RIG_SIZE) {
				at = 0;
				wrap = !wrap;
			}
		}
		packed_desc(first, 10, (u16)n, first_flags);
		rig_kick();
		assert_int_equal(rig.chains, ++seen);
		assert_int_equal(rig.out_len, 10 * (len - 1));
		u16 flags = rig_read16(RIG_DESC + 16 * first + 14), used = first_wrap ? AVAIL | USED : 0;
		assert_int_equal(flags & (AVAIL | USED), used);
		assert_int_equal(rig_read16(RIG_DESC + 16 * first + 12), n);
		assert_int_equal(rig_read16(RIG_DESC + 16 * first + 8), 10);
		assert_int_equal(rig_get(R_ISR, 1), 1);
	}
	assert_int_equal(rig_status() & VS_NEEDS_RESET, 0);
	/* A chain without end. */
	rig_up(VIRTIO_F_RING_PACKED);
	for (unsigned k = 0; k < RIG_SIZE; k++)
		packed_desc(k, 1, 0, AVAIL | D_NEXT);
	rig_kick();
	is_broken("a packed chain with a loop");
}

/* ---- anything ------------------------------------------------------------------------------------------------ */

/* Rings of noise: whatever they say, the device ends it soon, and a reset mends it. */
static void noise(void **state)
{
	u64 s = 4711;

	for (int round = 0; round < 2000; round++) {
		u64 f = next_random(&s) & (VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_RING_PACKED);
		u8 bytes[512];

		rig_up(f);
		for (size_t k = 0; k < sizeof(bytes); k += 8)
			st64(bytes + k, random_value(&s) & (next_random(&s) & 1 ? 0x2ffff : ~0ull));
		mem_write(&rig.b->mem, RIG_DESC, bytes, 16 * RIG_SIZE);
		mem_write(&rig.b->mem, RIG_DATA, bytes, sizeof(bytes));
		mem_write(&rig.b->mem, RIG_DRIVER + 4, bytes + 100, 40);
		rig_write16(RIG_DRIVER + 2, (u16)(next_random(&s) % 10));
		rig_kick();
		rig_kick();
		assert_int_equal(rig.v->in_flight, 0);
	}
	rig_up(0);
	rig_desc(0, RIG_DATA, 4, D_WRITE, 0);
	rig_offer(0);
	rig_kick();
	assert_int_equal(rig_used(), 1);
}

#define T(f) cmocka_unit_test_setup_teardown(f, rig_setup, rig_teardown)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(a_chain), T(many), T(a_buffer_of_no_bytes_is_nothing), T(indirect), T(what_drivers_must_not_do), T(readable_after_writable),
		T(indices_that_run_away), T(rings_that_are_nowhere), T(too_many_pieces), T(event_index), T(no_interrupt_flag),
		T(without_bus_master_nothing_happens), T(a_reset_waits_for_what_is_in_flight), T(features), T(packed_ring), T(noise),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
