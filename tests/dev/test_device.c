/* What holds for each class of devices.def: a state that comes back as it was saved, damaged
 * states that are refused or survived, and registers that survive anything. */
#include "board.h"

#define STATE_CAP (1 << 20)
#define FUZZ_ACCESSES 100000
#define WARM_UP 3000

/* ---- random programming ------------------------------------------------------------------ */

static struct board *board_of(const struct device_class *cls)
{
	struct board *b = board_new(cls);

	if (cls == &ns16550_class) {
		ns16550_configure(b->dev, 0x3f8, 4);
		ns16550_attach(b->dev, &b->be);
	}
	return b;
}

/* One access to a register of the device; the board's ranges come first and are left out. */
static void access_any(struct board *b, u64 *seed)
{
	int own_ports = b->own_ports;
	u64 pick = next_random(seed), val = next_random(seed);
	bool write = pick >> 20 & 1;
	unsigned size = 1u << (pick >> 21 & 3);
	int n_mmio = 0;

	if (pick >> 24 & 1)
		val &= 0xff;
	for (int i = 0; i < b->mem.n_declared; i++) {
		const struct region *r = &b->mem.declared[i];

		if (r->kind != REGION_MMIO || (b->mem.n_ports > own_ports && (pick >> 30 & 3)))
			continue;
		u64 at = r->base + ((pick >> 25 & 1) ? val % 0x400 : val % r->size) % r->size;
		n_mmio++;
		if (write)
			mem_phys_write(&b->mem, at, next_random(seed), size);
		else
			mem_phys_read(&b->mem, at, size);
	}
	if (n_mmio || b->mem.n_ports == own_ports)
		return;
	const struct port_range *p = &b->mem.ports[own_ports + (int)((pick & 0xffff) % (unsigned)(b->mem.n_ports - own_ports))];
	u16 port = (u16)(p->base + (pick >> 32) % p->count);

	size = MIN(size, 4u);
	if (write)
		mem_port_write(&b->mem, port, (u32)val, size);
	else
		mem_port_read(&b->mem, port, size);
}

static void program_any(struct board *b, u64 *seed, int accesses)
{
	static const u8 text[] = "input";

	for (int i = 0; i < accesses; i++) {
		u64 pick = next_random(seed);

		access_any(b, seed);
		if (pick % 16 == 0)
			board_run(b, pick >> 32 & 0xffff);
		else if (pick % 4096 == 1)
			board_stall(b, pick >> 24);
		if (b->dev->cls == &ns16550_class && pick % 16 == 2) {
			b->be_room = pick >> 40 & 31;
			b->n_sent = 0;
			mem_lock(&b->mem);
			ns16550_receive(b->dev, text, sizeof(text));
			ns16550_can_write(b->dev);
			ns16550_break(b->dev);
			mem_unlock(&b->mem);
		}
		if (b->dev->cls == &i8042_class && pick % 16 == 3) {
			mem_lock(&b->mem);
			i8042_key(b->dev, text, 3);
			i8042_mouse(b->dev, text[0], text[1], text[2], text[3]);
			mem_unlock(&b->mem);
		}
		while (pick % 8 == 4 && board_take(b) >= 0)
			;
	}
}

/* ---- each class ---------------------------------------------------------------------------- */

static bool load(struct device *d, const u8 *buf, size_t len, struct error *e)
{
	mem_lock(d->mem);
	bool ok = device_load(d, buf, len, e);
	mem_unlock(d->mem);
	return ok;
}

/* Device to device: what is saved, loaded into a new one and saved again is equal, and both
 * then do the same. */
static void test_round_trip(void **state)
{
	u8 *first = malloc(STATE_CAP), *second = malloc(STATE_CAP);
	struct error e;

	for (const struct device_class *const *cls = device_classes; *cls; cls++) {
		struct board *from = board_of(*cls), *to = board_of(*cls);
		u64 seed = 0x9e3779b97f4a7c15, seeds[2];
		size_t n;

		program_any(from, &seed, WARM_UP);
		from->be_room = 0;
		if (*cls == &ns16550_class) { /* with bytes that the backend did not take */
			out8(from, 0x3fb, 3);
			out8(from, 0x3fc, 0);
			out8(from, 0x3f8, 'a');
		}
		from->n_sent = 0;
		n = device_save(from->dev, first, STATE_CAP);
		if ((*cls)->state && (*cls)->state->name)
			assert_int_not_equal(n, 0);
		clock_set(&to->clock, clock_ns(&from->clock), clock_tsc(&from->clock));
		if (!load(to->dev, first, n, &e))
			fail_msg("%s: %s", (*cls)->name, e.msg);
		assert_int_equal(device_save(to->dev, second, STATE_CAP), n);
		if (memcmp(first, second, n))
			fail_msg("%s: saved, loaded and saved state differs", (*cls)->name);
		/* One that saves too little would part here. */
		seeds[0] = seeds[1] = seed;
		from->be_room = to->be_room = sizeof(from->sent);
		if (*cls == &ns16550_class) {
			ns16550_can_write(from->dev);
			ns16550_can_write(to->dev);
		}
		assert_int_equal(from->n_sent, to->n_sent);
		assert_memory_equal(from->sent, to->sent, from->n_sent);
		program_any(from, &seeds[0], 200);
		program_any(to, &seeds[1], 200);
		n = device_save(from->dev, first, STATE_CAP);
		assert_int_equal(device_save(to->dev, second, STATE_CAP), n);
		if (memcmp(first, second, n))
			fail_msg("%s: goes on differently after a load", (*cls)->name);
		board_free(from);
		board_free(to);
	}
	free(first);
	free(second);
}

static void test_save_needs_room(void **state)
{
	struct board *b = board_new(&i8254_class);
	u8 buf[4096];
	size_t n = device_save(b->dev, buf, sizeof(buf));

	assert_in_range(n, 100, sizeof(buf));
	for (size_t cap = 0; cap < n; cap++)
		assert_int_equal(device_save(b->dev, buf, cap), 0);
	assert_int_equal(device_save(b->dev, buf, n), n);
	board_free(b);
}

static void test_bad_states_are_refused(void **state)
{
	struct board *b = board_new(&i8254_class);
	u8 good[4096], bad[8192], after[4096];
	struct error e;
	size_t n = device_save(b->dev, good, sizeof(good));
	size_t first = 1u + good[0] + 4 + ld32(good + 1 + good[0]);

	for (size_t cut = 0; cut < n; cut++)
		assert_false(load(b->dev, good, cut, &e)); /* cut short, or fields missing */
	memcpy(bad, good, n);
	memcpy(bad + n, good, first); /* a field twice */
	assert_false(load(b->dev, bad, n + first, &e));
	memcpy(bad, good, n);
	bad[1] ^= 1; /* a name that nobody has */
	assert_false(load(b->dev, bad, n, &e));
	assert_non_null(strstr(e.msg, "i8254"));
	memcpy(bad, good, n);
	bad[1 + bad[0]] ^= 1; /* another size */
	assert_false(load(b->dev, bad, n, &e));
	assert_int_equal(device_save(b->dev, after, sizeof(after)), n);
	assert_memory_equal(good, after, n); /* nothing was changed by any of it */
	/* The order is free. */
	memcpy(bad, good + first, n - first);
	memcpy(bad + n - first, good, first);
	assert_true(load(b->dev, bad, n, &e));
	board_free(b);
}

/* Values that no device of ours would save: whatever loads must not break what follows. */
static void test_damaged_values_are_survived(void **state)
{
	u8 *buf = malloc(STATE_CAP);
	struct error e;
	u64 seed = 0x123456789abcdef1;
	int loaded = 0;

	for (const struct device_class *const *cls = device_classes; *cls; cls++) {
		for (int round = 0; round < 60; round++) {
			struct board *b = board_of(*cls);
			size_t n = device_save(b->dev, buf, STATE_CAP);

			for (int i = 0; n && i < 1 + round; i++)
				buf[next_random(&seed) % n] = (u8)next_random(&seed);
			/* Flips within names and sizes are refused; try values too. */
			loaded += load(b->dev, buf, n, &e);
			for (size_t at = 0, left = device_save(b->dev, buf, STATE_CAP); at < left; ) {
				size_t head = 1u + buf[at] + 4;
				u32 bytes = ld32(buf + at + head - 4);

				if (next_random(&seed) % 3 == 0)
					for (u32 i = 0; i < MIN(bytes, 64u); i++)
						buf[at + head + i] = (u8)next_random(&seed);
				at += head + bytes;
			}
			loaded += load(b->dev, buf, n, &e);
			program_any(b, &seed, 100);
			board_free(b);
		}
	}
	assert_true(loaded > 100);
	free(buf);
}

static void test_fuzz(void **state)
{
	for (const struct device_class *const *cls = device_classes; *cls; cls++) {
		struct board *b = board_of(*cls);
		u64 seed = 0xdeadbeefcafef00d;

		program_any(b, &seed, FUZZ_ACCESSES);
		(*cls)->reset ? (*cls)->reset(b->dev) : (void)0;
		board_free(b);
	}
}

static bool init_fails(struct device *d, struct error *e)
{
	return error_set(e, "no reason");
}

static void test_failed_init(void **state)
{
	static const struct state_field none[] = { STATE_END };
	static const struct device_class cls = { .name = "nothing", .size = sizeof(struct device),
						 .init = init_fails, .state = none };
	struct board *b = board_new(NULL);
	struct error e;

	assert_null(device_new(&cls, &b->links, &e));
	assert_string_equal(e.msg, "device nothing: no reason");
	board_free(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_save_needs_room),
		cmocka_unit_test(test_bad_states_are_refused),
		cmocka_unit_test(test_damaged_values_are_survived),
		cmocka_unit_test(test_fuzz),
		cmocka_unit_test(test_failed_init),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
