/* Random requests, many at a time, held against a model; then the image closed, opened again, checked. */
#include "rig.h"

#include <stdio.h>

struct kind {
	const char *name;
	struct image_create create;
	u64 sectors;
	enum block_aio aio;
	bool backed, thread, snapshots, readback;
};

static void check_sound(const char *path, bool leaks_too)
{
	struct image_check r;
	struct error e;

	if (!image_check(path, BLOCK_QCOW2, false, &r, NULL, NULL, &e))
		fail_msg("%s", e.msg);
	assert_int_equal(r.corruptions, 0);
	if (leaks_too)
		assert_int_equal(r.leaks, 0);
}

/* An image below, shorter than the disk, with values of its own. */
static void make_below(struct rig *r, const char *path, enum block_format format, u64 sectors)
{
	struct image_create c = { .format = format, .size = sectors * BLOCK_SECTOR };
	struct block_options o = { .file = (char *)(uintptr_t)path, .format = format };
	struct error e;

	must_create(path, &c);
	struct block *b = block_open(&o, NULL, &e);
	assert_non_null(b);
	u8 buf[BLOCK_SECTOR];
	for (u64 s = 0; s < sectors; s++) {
		if (s / 40 % 3 == 1)
			continue;
		rig_fill(buf, s, 1 + (u32)(s / 7));
		assert_int_equal(block_write(b, s * BLOCK_SECTOR, buf, sizeof(buf)), 0);
		rig_base(r, 1 + (u32)(s / 7), s, 1);
	}
	assert_true(block_close(b, &e));
	r->last_value = 100000;
}

static void exercise(const struct kind *k, u64 seed)
{
	char *path = scratch_file("disk"), *below = scratch_file("below");
	struct image_create c = k->create;
	struct block_options o = { .file = path, .format = c.format, .aio = k->aio };
	struct error e;
	struct loop *loop = k->thread ? loop_new(&e) : NULL;
	struct rig r;

	rig_init(&r, k->sectors, seed);
	c.size = k->sectors * BLOCK_SECTOR;
	if (k->backed) {
		make_below(&r, below, seed % 2 ? BLOCK_RAW : BLOCK_QCOW2, k->sectors * 3 / 4);
		c.backing = "below";
	}
	must_create(path, &c);
	for (int round = 0; round < 3; round++) {
		rig_open(&r, &o, loop);
		rig_run(&r, 700);
		rig_finish(&r);
		if (!loop)
			rig_verify(&r);
		rig_close(&r);
		if (c.format == BLOCK_QCOW2)
			check_sound(path, true);
		if (k->snapshots && !image_snapshot(path, BLOCK_AUTO, SNAPSHOT_MAKE, (const char *[]){ "a", "b", "c" }[round], &e))
			fail_msg("%s", e.msg);
		if (k->snapshots && round == 1 && !image_snapshot(path, BLOCK_AUTO, SNAPSHOT_DELETE, "a", &e))
			fail_msg("%s", e.msg);
		if (k->snapshots)
			check_sound(path, true);
	}
	rig_open(&r, &o, NULL);
	rig_verify(&r);
	rig_close(&r);
	rig_destroy(&r);
	loop_free(loop);
	remove(path);
	remove(below);
	free(path);
	free(below);
}

#define Q(...) { .format = BLOCK_QCOW2, __VA_ARGS__ }
static const struct kind kinds[] = {
	{ "raw", { .format = BLOCK_RAW }, 8192 },
	{ "raw, threads", { .format = BLOCK_RAW }, 8192, BLOCK_AIO_THREADS },
	{ "raw, own thread", { .format = BLOCK_RAW }, 8192, .thread = true },
	{ "64K", Q(), 40000 },
	{ "64K, threads", Q(), 40000, BLOCK_AIO_THREADS },
	{ "64K, own thread", Q(), 40000, .thread = true },
	{ "64K, own thread and threads", Q(), 40000, BLOCK_AIO_THREADS, .thread = true },
	{ "512", Q(.cluster_size = 512), 8192 },
	{ "512, 64 bits", Q(.cluster_size = 512, .refcount_bits = 64), 16384 },
	{ "1K, 1 bit", Q(.cluster_size = 1024, .refcount_bits = 1), 8192 },
	{ "4K, version 2", Q(.cluster_size = 4096, .version = 2), 8192 },
	{ "2M", Q(.cluster_size = 2 << 20), 100000 },
	{ "4K, lazy", Q(.cluster_size = 4096, .lazy_refcounts = true), 8192 },
	{ "4K, backed", Q(.cluster_size = 4096), 8192, .backed = true },
	{ "64K, backed", Q(), 40000, .backed = true },
	{ "4K, backed, version 2", Q(.cluster_size = 4096, .version = 2), 8192, .backed = true },
	{ "512, backed, own thread", Q(.cluster_size = 512), 8192, .backed = true, .thread = true },
	{ "4K, snapshots", Q(.cluster_size = 4096), 8192, .snapshots = true },
	{ "1K, snapshots, backed, 8 bits", Q(.cluster_size = 1024, .refcount_bits = 8), 8192, .backed = true, .snapshots = true },
	{ "4K, snapshots, version 2", Q(.cluster_size = 4096, .version = 2), 8192, .snapshots = true },
	{ "4K, snapshots, lazy", Q(.cluster_size = 4096, .lazy_refcounts = true), 8192, .snapshots = true },
};

static void model(void **state)
{
	const char *rounds = getenv("RING3_MODEL_ROUNDS");

	for (size_t k = 0; k < ARRAY_LEN(kinds); k++)
		for (int round = 0; round < (rounds ? atoi(rounds) : 2); round++) {
			print_message("%s, %d\n", kinds[k].name, round);
			exercise(&kinds[k], (u64)round * 100 + k + 1);
		}
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(model) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
