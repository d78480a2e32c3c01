/* A disk as devices see it: what is refused, errors of the host, locks, read-only and snapshot disks, closing. */
#include "rig.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static struct error e;
static char *path;
static u8 buf[1 << 20];

static int set_up(void **state)
{
	path = scratch_file("disk");
	return 0;
}

static int tear_down(void **state)
{
	remove(path);
	free(path);
	return 0;
}

static void make(enum block_format format, u64 size)
{
	must_create(path, &(struct image_create){ .format = format, .size = size });
}

static struct block *open_with(struct block_options o)
{
	o.file = path;
	struct block *b = block_open(&o, NULL, &e);
	if (!b)
		fail_msg("%s", e.msg);
	return b;
}

static void must_close(struct block *b)
{
	if (!block_close(b, &e))
		fail_msg("%s", e.msg);
}

static void no_open(struct block_options o, const char *why)
{
	o.file = o.file ? o.file : path;
	assert_null(block_open(&o, NULL, &e));
	if (!strstr(e.msg, why))
		fail_msg("\"%s\" is not in: %s", why, e.msg);
}

/* ---- requests ----------------------------------------------------------------------------- */

static void refuses_what_is_outside(void **state)
{
	make(BLOCK_QCOW2, 1 << 20);
	struct block *b = open_with((struct block_options){ 0 });

	assert_int_equal(block_size(b), 1 << 20);
	assert_int_equal(block_read(b, 1 << 20, buf, 512), EINVAL);
	assert_int_equal(block_read(b, (1 << 20) - 512, buf, 1024), EINVAL);
	assert_int_equal(block_read(b, UINT64_MAX - 511, buf, 512), EINVAL);
	assert_int_equal(block_write(b, 0, buf, 100), EINVAL);
	assert_int_equal(block_write(b, 100, buf, 512), EINVAL);
	assert_int_equal(block_discard(b, 512, 1 << 20), EINVAL);
	assert_int_equal(block_zero(b, 512, UINT64_MAX - 511, true), EINVAL);
	assert_int_equal(block_read(b, 0, buf, 0), 0);
	assert_int_equal(block_write(b, (1 << 20) - 512, buf, 512), 0);
	must_close(b);
}

static void read_only(void **state)
{
	make(BLOCK_QCOW2, 1 << 20);
	struct block *b = open_with((struct block_options){ .read_only = true });
	struct block *c = open_with((struct block_options){ .read_only = true }); /* readers share */

	assert_true(block_read_only(b));
	assert_int_equal(block_write(b, 0, buf, 512), EACCES);
	assert_int_equal(block_zero(b, 0, 512, false), EACCES);
	assert_int_equal(block_discard(b, 0, 512), EACCES);
	assert_int_equal(block_flush(b), 0);
	assert_int_equal(block_read(b, 0, buf, 512), 0);
	must_close(c);
	must_close(b);
}

static void locks(void **state)
{
	make(BLOCK_RAW, 1 << 20);
	struct block *b = open_with((struct block_options){ 0 });

	no_open((struct block_options){ 0 }, "in use");
	no_open((struct block_options){ .read_only = true }, "in use");
	no_open((struct block_options){ .snapshot = true }, "in use");
	must_close(b);
	b = open_with((struct block_options){ .snapshot = true }); /* reads only */
	no_open((struct block_options){ 0 }, "in use");
	must_close(open_with((struct block_options){ .read_only = true }));
	must_close(b);
	must_close(open_with((struct block_options){ 0 }));
}

static void snapshot_is_thrown_away(void **state)
{
	make(BLOCK_RAW, 1 << 20);
	u64 size, size_after;
	u8 *before = load_file(path, &size);
	struct block *b = open_with((struct block_options){ .snapshot = true });

	memset(buf, 7, sizeof(buf));
	assert_int_equal(block_image_format(b), BLOCK_RAW);
	assert_int_equal(block_write(b, 4096, buf, 8192), 0);
	assert_int_equal(block_flush(b), 0);
	assert_int_equal(block_read(b, 4096, buf, 512), 0);
	assert_int_equal(buf[0], 7);
	assert_int_equal(block_read(b, 0, buf, 512), 0);
	assert_int_equal(buf[0], 0);
	must_close(b);
	u8 *after = load_file(path, &size_after);
	assert_int_equal(size, size_after);
	assert_memory_equal(before, after, size);
	free(before);
	free(after);
}

static void odd_raw_size(void **state)
{
	FILE *f = fopen(path, "w");
	fputs("hello", f);
	fclose(f);
	struct block *b = open_with((struct block_options){ 0 });

	assert_int_equal(block_size(b), 512);
	memset(buf, 1, 512);
	assert_int_equal(block_read(b, 0, buf, 512), 0);
	assert_memory_equal(buf, "hello\0\0\0", 8);
	assert_int_equal(buf[511], 0);
	assert_int_equal(block_write(b, 0, buf, 512), 0);
	must_close(b);
}

static void no_end(void *arg, enum file_what what, u64 id, int error) { }

/* A guest that writes a qcow2 header must not get a file of the host below its disk at the next start. */
static void guest_cannot_change_the_format(void **state)
{
	make(BLOCK_RAW, 1 << 20);
	memset(buf, 0, 1024);
	memcpy(buf, "QFI\xfb", 4);
	struct block *b = open_with((struct block_options){ 0 });
	assert_int_equal(block_write(b, 0, buf, 512), EPERM);
	assert_int_equal(block_write(b, 512, buf, 512), 0);
	must_close(b);
	b = open_with((struct block_options){ .format = BLOCK_RAW }); /* said to be raw: then it may */
	assert_int_equal(block_write(b, 0, buf, 512), 0);
	must_close(b);
}

/* Nor by a change of its buffer between the look at it and the write: here another processor's store comes just
 * when the file is about to be written. */
static int store_magic(void *arg, enum file_what what, u64 offset, u64 len, const struct iovec *iov, int n, u64 *id)
{
	if (what == FILE_WRITE)
		memcpy(arg, "QFI\xfb", 4);
	return 0;
}

static void nor_by_a_race(void **state)
{
	for (int aio = BLOCK_AIO_AUTO; aio <= BLOCK_AIO_THREADS; aio++)
		for (u64 len = 512; len <= 4096; len *= 8) {
			struct file_hooks hooks = { store_magic, no_end, buf };
			make(BLOCK_RAW, 1 << 20);
			memset(buf, 5, sizeof(buf));
			struct block *b = open_with((struct block_options){ .aio = (u32)aio, .hooks = &hooks });
			assert_int_equal(block_write(b, 0, buf, len), 0);
			assert_int_equal(block_read(b, 0, buf, 4096), 0);
			must_close(b);
			for (u64 k = 0; k < 4096; k++)
				assert_int_equal(buf[k], k < len ? 5 : 0);
		}
}

/* ---- errors of the host ---------------------------------------------------------------------- */

struct faults { enum file_what what; int skip, error; };

static int fault(void *arg, enum file_what what, u64 offset, u64 len, const struct iovec *iov, int n, u64 *id)
{
	struct faults *f = arg;

	return what == f->what && f->error && !f->skip-- ? f->error : 0;
}

static void errors_reach_the_request(void **state)
{
	struct faults f = { 0 };
	struct file_hooks hooks = { fault, no_end, &f };

	for (int aio = BLOCK_AIO_URING; aio <= BLOCK_AIO_THREADS; aio++) {
		make(BLOCK_RAW, 1 << 20);
		struct block *b = open_with((struct block_options){ .aio = (u32)aio, .hooks = &hooks });
		f = (struct faults){ FILE_READ, 0, EIO };
		assert_int_equal(block_read(b, 0, buf, 512), EIO);
		assert_int_equal(block_read(b, 0, buf, 512), 0);
		f = (struct faults){ FILE_WRITE, 0, ENOSPC };
		assert_int_equal(block_write(b, 0, buf, 512), ENOSPC);
		assert_int_equal(block_write(b, 0, buf, 512), 0);
		f = (struct faults){ FILE_SYNC, 0, EIO };
		assert_int_equal(block_flush(b), EIO);
		assert_int_equal(block_flush(b), EIO); /* what the host has dropped it will not say again */
		assert_false(block_close(b, &e));
		assert_non_null(strstr(e.msg, "may be lost"));
	}
}

/* For every operation on the file, in turn: it fails, the request it was for fails or not, and the image stays sound. */
static void every_operation_fails_once(void **state)
{
	static const enum file_what kinds[] = { FILE_READ, FILE_WRITE, FILE_PUNCH };

	for (size_t k = 0; k < ARRAY_LEN(kinds); k++) {
		bool hit = true;
		for (int nth = 0; hit && nth < 400; nth++) {
			struct faults f = { 0 };
			struct file_hooks hooks = { fault, no_end, &f };
			struct image_check check;
			struct rig r;
			rig_init(&r, 1024, 77);
			must_create(path, &(struct image_create){ .format = BLOCK_QCOW2, .size = 1024 * BLOCK_SECTOR, .cluster_size = 512 });
			struct block_options o = { .file = path, .hooks = &hooks };
			r.b = block_open(&o, NULL, &e);
			assert_non_null(r.b);
			r.errors_allowed = true;
			f = (struct faults){ kinds[k], nth, k == 1 ? ENOSPC : EIO };
			rig_run(&r, 60);
			rig_finish(&r);
			hit = f.skip < 0;
			f.error = 0;
			rig_verify(&r);
			rig_close(&r);
			rig_destroy(&r);
			if (!image_check(path, BLOCK_QCOW2, false, &check, NULL, NULL, &e))
				fail_msg("%s", e.msg);
			assert_int_equal(check.corruptions, 0);
		}
		assert_false(hit && k);
	}
}

static void full_file(void **state)
{
	make(BLOCK_QCOW2, 1 << 20);
	struct faults f = { FILE_WRITE, 0, 0 };
	struct file_hooks hooks = { fault, no_end, &f };
	struct block *b = open_with((struct block_options){ .hooks = &hooks });

	memset(buf, 5, 1 << 17);
	assert_int_equal(block_write(b, 0, buf, 1 << 16), 0);
	f.error = ENOSPC;
	assert_int_equal(block_write(b, 1 << 16, buf, 512), ENOSPC);
	assert_int_equal(block_read(b, 0, buf, 1 << 17), 0);
	assert_int_equal(buf[0], 5);
	assert_int_equal(buf[1 << 16], 0);
	memset(buf, 6, 512);
	assert_int_equal(block_write(b, 1 << 16, buf, 512), 0);
	assert_int_equal(block_flush(b), 0);
	must_close(b);
}

/* ---- clusters that are freed -------------------------------------------------------------- */

static u64 host_of(struct qcow2 *q, u64 offset)
{
	struct map m;

	assert_int_equal(image_map(&q->img, offset, 512, &m), 0);
	return m.kind == MAP_DATA ? m.host : 0;
}

static u64 write_cluster(struct qcow2 *q, u64 offset)
{
	struct plan p;

	assert_int_equal(q->img.ops->plan_write(&q->img, offset, 65536, &p), 0);
	assert_int_equal(p.kind, PLAN_ALLOC);
	assert_int_equal(file_write(q->img.file, p.host, buf, 65536), 0);
	assert_int_equal(q->img.ops->link(&q->img, &p), 0);
	return p.host;
}

static void flush_image(struct qcow2 *q)
{
	u64 gen;

	assert_int_equal(qcow2_commit(&q->img, &gen), 0);
	assert_int_equal(file_sync(q->img.file), 0);
	qcow2_committed(&q->img, gen);
}

/* A request that began before a cluster was discarded may still read or write there. */
static void freed_clusters_wait(void **state)
{
	make(BLOCK_QCOW2, 8 << 20);
	struct image *img = image_open(path, BLOCK_AUTO, OPEN_WRITE, NULL, &e);
	struct qcow2 *q = qcow2_of(img);
	struct plan p;

	img->begun = 5;
	img->oldest = 6;
	u64 first = write_cluster(q, 0);
	assert_int_equal(host_of(q, 0), first);
	img->begun = 8;
	img->oldest = 7; /* request 7 is under way, on that cluster */
	assert_int_equal(img->ops->plan_zero(img, 0, 65536, true, true, &p), 0);
	assert_int_equal(host_of(q, 0), 0);
	assert_int_not_equal(write_cluster(q, 65536), first);    /* not durable yet */
	flush_image(q);
	assert_int_not_equal(write_cluster(q, 2 * 65536), first); /* and 7 is under way still */
	img->oldest = 9;
	assert_int_equal(write_cluster(q, 3 * 65536), first);
	assert_int_equal(image_close(img), 0);
}

/* ---- the way of requests -------------------------------------------------------------------- */

struct told { struct block *b; int n; pthread_t thread; bool again; };

static void count_told(struct block_request *r)
{
	struct told *t = r->arg;

	assert_true(pthread_equal(pthread_self(), t->thread));
	t->n++;
	if (t->again) { /* from inside: the same request */
		t->again = false;
		block_submit(t->b, r);
	}
}

static void done_on_the_loops_thread(void **state)
{
	struct loop *loop = loop_new(&e);
	struct block_options o = { .file = path };

	make(BLOCK_QCOW2, 1 << 20);
	struct block *b = block_open(&o, loop, &e);
	assert_non_null(b);
	struct told t = { b, 0, pthread_self(), true };
	struct iovec iov = { buf, 4096 };
	struct block_request r = { .op = BLOCK_WRITE, .len = 4096, .iov = &iov, .n_iov = 1, .done = count_told, .arg = &t };
	block_submit(b, &r);
	while (t.n < 2)
		loop_turn(loop, UINT64_MAX);
	struct block_request many[50];
	for (int k = 0; k < 50; k++) {
		many[k] = r;
		many[k].offset = (u64)k * 4096;
		block_submit(b, &many[k]);
	}
	block_drain(b);
	assert_int_equal(t.n, 52);
	block_submit(b, &r);
	must_close(b); /* with one under way, of which it tells */
	assert_int_equal(t.n, 53);
	loop_turn(loop, 0);
	loop_free(loop);
}

static struct block_request *told_order[60];
static unsigned n_told_order;
static void note_order(struct block_request *r) { told_order[n_told_order++] = r; }

/* Reads of what is not there have nothing to wait for; writes of parts of clusters do. */
static void done_in_order(void **state)
{
	struct loop *loop = loop_new(&e);
	struct block_options o = { .file = path, .in_order = true };
	struct block_request r[ARRAY_LEN(told_order)];
	struct iovec iov = { buf, 4096 };

	make(BLOCK_QCOW2, 8 << 20);
	struct block *b = block_open(&o, loop, &e);
	assert_non_null(b);
	assert_false(block_is_busy(b));
	n_told_order = 0;
	for (unsigned k = 0; k < ARRAY_LEN(r); k++) {
		r[k] = (struct block_request){ .op = k % 3 == 0 ? BLOCK_WRITE : k % 3 == 1 ? BLOCK_READ : k % 2 ? BLOCK_FLUSH : BLOCK_WRITE_ZEROES,
					       .offset = (u64)(k % 7) * 65536 + 4096, .len = 4096, .iov = &iov, .n_iov = 1, .done = note_order };
		block_submit(b, &r[k]);
		assert_true(block_is_busy(b));
	}
	while (n_told_order < ARRAY_LEN(r))
		loop_turn(loop, UINT64_MAX);
	assert_false(block_is_busy(b));
	for (unsigned k = 0; k < ARRAY_LEN(r); k++) {
		assert_ptr_equal(told_order[k], &r[k]);
		assert_int_equal(r[k].error, 0);
	}
	must_close(b);
	loop_free(loop);
}

static void geometry(void **state)
{
	static const struct { u64 size; u32 c, h, s; } rows[] = {
		{ 64 << 20, 130, 16, 63 }, { 512ull << 30, 16383, 16, 63 }, { 512, 1, 1, 1 }, { 1024 * 512, 1, 16, 63 },
	};
	for (size_t k = 0; k < ARRAY_LEN(rows); k++) {
		struct block_geometry g;
		make(BLOCK_RAW, rows[k].size);
		struct block *b = open_with((struct block_options){ 0 });
		block_get_geometry(b, &g);
		assert_int_equal(g.cylinders, rows[k].c);
		assert_int_equal(g.heads, rows[k].h);
		assert_int_equal(g.sectors, rows[k].s);
		must_close(b);
	}
}

static void wrong_files(void **state)
{
	no_open((struct block_options){ .file = "/nonexistent/disk" }, "No such file");
	no_open((struct block_options){ .file = "/dev/null" }, "not a regular file");
	no_open((struct block_options){ .file = "/tmp" }, "irectory");
	assert_int_equal(mkfifo(path, 0600), 0);
	no_open((struct block_options){ .read_only = true }, "not a regular file");
	remove(path);
	make(BLOCK_RAW, 512);
	no_open((struct block_options){ .format = BLOCK_QCOW2 }, "not a qcow2 image");
	assert_null(block_open(&(struct block_options){ 0 }, NULL, &e));
	assert_non_null(strstr(e.msg, "file=PATH"));
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(refuses_what_is_outside), TEST(read_only), TEST(locks), TEST(snapshot_is_thrown_away), TEST(odd_raw_size),
		TEST(guest_cannot_change_the_format), TEST(nor_by_a_race), TEST(errors_reach_the_request), TEST(every_operation_fails_once), TEST(full_file),
		TEST(freed_clusters_wait), TEST(done_on_the_loops_thread), TEST(done_in_order), TEST(geometry), TEST(wrong_files),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
