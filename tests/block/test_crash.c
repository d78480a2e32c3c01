/* Crashes: the writes to an image's file are recorded; at random points of the record the file is made as a crash
 * then could have left it: what was synced, and of what was not yet, all, nothing, or any sectors. Each must be a
 * sound image (ring3's and qemu-img's checks: leaks at most), with all that was flushed before.
 *
 * RING3_CRASH_POINTS: how many in all with qemu-img's check; 100. Three times as many have ring3's only. */
#include "rig.h"

#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#define HEADER_POINTS 80

struct kind {
	const char *name;
	struct image_create create;
	u64 sectors, ops;
	bool backed, snapshots, resizes;
	enum block_aio aio;
};
#define Q(...) { .format = BLOCK_QCOW2, __VA_ARGS__ }
static const struct kind kinds[] = {
	{ "4K", Q(.cluster_size = 4096), 4096, 500 },
	{ "64K", Q(), 20000, 400 },
	{ "512", Q(.cluster_size = 512), 4096, 300 },
	{ "512, 64 bits, threads", Q(.cluster_size = 512, .refcount_bits = 64), 8192, 300, .aio = BLOCK_AIO_THREADS },
	{ "1K, version 2", Q(.cluster_size = 1024, .version = 2), 4096, 400 },
	{ "4K, lazy", Q(.cluster_size = 4096, .lazy_refcounts = true), 4096, 500 },
	{ "4K, backed", Q(.cluster_size = 4096), 4096, 400, .backed = true },
	{ "1K, other sizes", Q(.cluster_size = 1024), 4096, 200, .resizes = true },
	{ "512, other sizes, version 2", Q(.cluster_size = 512, .version = 2), 2048, 200, .resizes = true },
	{ "1K, snapshots", Q(.cluster_size = 1024), 4096, 300, .snapshots = true },
	{ "4K, snapshots, backed", Q(.cluster_size = 4096), 4096, 300, .backed = true, .snapshots = true },
};

static bool have_qemu_img(void)
{
	static int have = -1;

	if (have < 0)
		have = !system("qemu-img --version >/dev/null 2>&1");
	return have;
}

/* 0 sound, 2 corrupt, 3 leaks. */
static int qemu_check(const char *path)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		(void)!freopen("/dev/null", "w", stdout);
		(void)!freopen("/dev/null", "w", stderr);
		execlp("qemu-img", "qemu-img", "check", "-f", "qcow2", path, (char *)NULL);
		_exit(99);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static bool is_dirty(const char *path)
{
	u64 size;
	u8 *image = load_file(path, &size);
	bool dirty = size > 80 && be32toh(ld32(image + 4)) >= 3 && be64toh(ld64(image + H_FEATURES)) & INCOMPAT_DIRTY;

	free(image);
	return dirty;
}

static void tell(void *arg, const char *text)
{
	print_message("%s\n", text);
}

static void check_sound(const char *path, u64 point, bool with_qemu)
{
	struct image_check r;
	struct error e;

	if (!image_check(path, BLOCK_QCOW2, false, &r, NULL, NULL, &e))
		fail_msg("point %llu: %s", (unsigned long long)point, e.msg);
	if (r.corruptions) {
		image_check(path, BLOCK_QCOW2, false, &r, tell, NULL, &e);
		fail_msg("point %llu: %llu corruptions", (unsigned long long)point, (unsigned long long)r.corruptions);
	}
	int qemu = with_qemu && have_qemu_img() ? qemu_check(path) : 0;
	if (qemu != 0 && qemu != 3)
		fail_msg("point %llu: qemu-img check says %d", (unsigned long long)point, qemu);
}

static void try_point(struct crash *c, struct rig *r, u64 point, u64 seed, const char *path, bool with_qemu)
{
	crash_state(c, point, seed, path);
	bool dirty = is_dirty(path);
	if (!dirty)
		check_sound(path, point, with_qemu);
	crash_verify(r, point, path);
	if (dirty)
		check_sound(path, point, with_qemu);
}

static void snapshot(struct rig *r, const char *path, int round)
{
	struct error e;
	struct image *img = image_open(path, BLOCK_QCOW2, OPEN_WRITE | OPEN_NO_BACKING, &r->hooks, &e);
	const char *names[] = { "a", "b", "c", "d" };

	assert_non_null(img);
	struct qcow2 *q = container_of(img, struct qcow2, img);
	if (!qcow2_snapshot_make(q, names[round], &e) || (round && !qcow2_snapshot_delete(q, names[round - 1], &e)))
		fail_msg("%s", e.msg);
	assert_int_equal(image_close(img), 0);
}

/* Much larger, so that L1 and refcount table move, and back. */
static void resize(struct rig *r, const char *path)
{
	struct error e;
	struct image *img = image_open(path, BLOCK_QCOW2, OPEN_WRITE | OPEN_NO_BACKING, &r->hooks, &e);
	u64 size = r->n * BLOCK_SECTOR;

	assert_non_null(img);
	img->free_host = true;
	assert_int_equal(img->ops->resize(img, size * 50), 0);
	assert_int_equal(img->ops->resize(img, size), 0);
	assert_int_equal(image_close(img), 0);
}

static int ascending(const void *a, const void *b)
{
	return *(const u64 *)a < *(const u64 *)b ? -1 : *(const u64 *)a > *(const u64 *)b;
}

static void make_below(struct rig *r, u64 sectors)
{
	char *path = scratch_file("below");
	FILE *f = fopen(path, "w");
	u8 buf[BLOCK_SECTOR];

	for (u64 s = 0; s < sectors; s++) {
		rig_fill(buf, s, 1);
		assert_int_equal(fwrite(buf, 1, sizeof(buf), f), sizeof(buf));
	}
	fclose(f);
	rig_base(r, 1, 0, sectors);
	free(path);
}

/* Where the sync after a change begins: most is undone there. */
static u64 sync_begin(const struct rig *r, u64 change)
{
	while (change + 1 < r->n_changes && r->changes[change].what != FILE_SYNC)
		change++;
	return r->changes[change].begin;
}

/* Where the sync after the nth write of the header begins, if there are so many: the header switches from one table to
 * another. */
static u64 header_write_sync(const struct rig *r, u64 nth)
{
	for (u64 k = 0; k < r->n_changes; k++)
		if (r->changes[k].what == FILE_WRITE && r->changes[k].offset < HEADER_MAX && !nth--)
			return sync_begin(r, k);
	return 0;
}

static void exercise(const struct kind *k, u64 seed, unsigned points)
{
	char *path = scratch_file("disk"), *crashed = scratch_file("crashed");
	struct image_create create = k->create;
	struct block_options o = { .file = path, .format = BLOCK_QCOW2, .aio = k->aio };
	struct rig r;
	struct crash c;
	u64 size;

	rig_init(&r, k->sectors, seed);
	create.size = k->sectors * BLOCK_SECTOR;
	if (k->backed) {
		make_below(&r, k->sectors);
		create.backing = "below";
		create.backing_format = BLOCK_RAW;
	}
	must_create(path, &create);
	u8 *before = load_file(path, &size);
	r.recording = true;
	for (int round = 0; round < 3; round++) {
		rig_open(&r, &o, NULL);
		rig_run(&r, k->ops);
		rig_close(&r);
		if (k->snapshots)
			snapshot(&r, path, round);
		if (k->resizes)
			resize(&r, path);
	}
	r.recording = false;
	crash_begin(&c, &r, before, size);
	unsigned all = 4 * points + HEADER_POINTS;
	u64 *at = calloc(all, sizeof(*at));
	for (unsigned n = 0; n < HEADER_POINTS; n++)
		at[n] = 1 + header_write_sync(&r, n / 4);
	for (unsigned n = HEADER_POINTS; n < all; n++)
		at[n] = 1 + (n % 3 ? sync_begin(&r, rig_random(&r, r.n_changes)) : rig_random(&r, r.now));
	qsort(at, all, sizeof(*at), ascending);
	for (unsigned n = 0; n < all; n++)
		try_point(&c, &r, at[n], seed * 100000 + n, crashed, n % 4 == seed % 4);
	print_message("%s: %llu changes, %llu flushes, %u points\n", k->name, (unsigned long long)r.n_changes, (unsigned long long)r.n_flushes, points);
	free(at);
	free(before);
	crash_end(&c);
	rig_destroy(&r);
	remove(path);
	free(path);
	free(crashed);
}

static void crashes(void **state)
{
	const char *text = getenv("RING3_CRASH_POINTS");
	unsigned points = text ? (unsigned)atoi(text) : 100;

	if (!have_qemu_img())
		print_message("qemu-img (qemu-utils) is not there: only ring3's own check\n");
	for (unsigned k = 0; k < ARRAY_LEN(kinds); k++)
		exercise(&kinds[k], k + 1, (points + ARRAY_LEN(kinds) - 1) / ARRAY_LEN(kinds));
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(crashes) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
