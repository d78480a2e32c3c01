/* kill -9 under load: a child writes, zeroes and flushes; after its end by SIGKILL the image opens, is sound, and has of
 * each sector what was flushed last, or something written later.
 *
 * RING3_KILLS: how many for each kind of image; 3. */
#include "rig.h"

#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SECTORS 8192
#define REQUESTS 8

/* What the child says, in memory that outlives it. Values of a sector only rise. */
struct shared {
	u32 submitted[SECTORS], done[SECTORS], flushed[SECTORS], flushing[SECTORS];
	u64 flushes, writes;
};
struct slot {
	struct block_request r;
	struct iovec iov;
	u8 buf[64 * BLOCK_SECTOR];
	u64 first, n;
	bool busy;
};
static struct shared *shared;
static struct slot slots[REQUESTS], flusher;
static bool busy[SECTORS];

static void slot_done(struct block_request *r)
{
	struct slot *s = r->arg;

	if (r->error)
		_exit(1);
	if (r->op == BLOCK_FLUSH) {
		memcpy(shared->flushed, shared->flushing, sizeof(shared->flushed));
		shared->flushes++;
	}
	for (u64 k = s->first; k < s->first + s->n; k++) {
		shared->done[k] = shared->submitted[k];
		busy[k] = false;
	}
	shared->writes += s->n != 0;
	s->busy = false;
}

static void submit_write(struct block *b, struct rig *rnd, struct slot *s, u32 value)
{
	s->n = 1 + rig_random(rnd, 63);
	s->first = rig_random(rnd, SECTORS - s->n);
	for (u64 k = s->first; k < s->first + s->n; k++)
		if (busy[k])
			return;
	for (u64 k = 0; k < s->n; k++) {
		busy[s->first + k] = true;
		shared->submitted[s->first + k] = value;
		rig_fill(s->buf + k * BLOCK_SECTOR, s->first + k, value);
	}
	s->busy = true;
	s->iov = (struct iovec){ s->buf, s->n * BLOCK_SECTOR };
	s->r = (struct block_request){ .op = BLOCK_WRITE, .offset = s->first * BLOCK_SECTOR, .len = s->n * BLOCK_SECTOR, .iov = &s->iov, .n_iov = 1,
				       .done = slot_done, .arg = s };
	block_submit(b, &s->r);
}

static _Noreturn void child(const char *path, u64 seed, u32 value, int ready)
{
	struct error e;
	struct rig rnd = { .seed = seed * 0x9e3779b97f4a7c15ull + 99 };
	struct block_options o = { .file = (char *)(uintptr_t)path };
	struct loop *loop = loop_new(&e);
	struct block *b = block_open(&o, loop, &e);

	if (!b) {
		fprintf(stderr, "%s\n", e.msg);
		_exit(1);
	}
	(void)!write(ready, "", 1);
	for (;;) {
		for (int k = 0; k < REQUESTS; k++)
			if (!slots[k].busy)
				submit_write(b, &rnd, &slots[k], ++value);
		if (!flusher.busy && !rig_random(&rnd, 20)) {
			memcpy(shared->flushing, shared->done, sizeof(shared->done));
			flusher.busy = true;
			flusher.r = (struct block_request){ .op = BLOCK_FLUSH, .done = slot_done, .arg = &flusher };
			block_submit(b, &flusher.r);
		}
		loop_turn(loop, UINT64_MAX);
	}
}

static u32 verify(const char *path)
{
	struct block_options o = { .file = (char *)(uintptr_t)path };
	struct error e;
	struct image_check check;
	struct block *b = block_open(&o, NULL, &e); /* the lock has gone with the process */
	u8 *buf = malloc(SECTORS * BLOCK_SECTOR);
	u32 highest = 0;

	if (!b)
		fail_msg("%s", e.msg);
	assert_int_equal(block_read(b, 0, buf, SECTORS * BLOCK_SECTOR), 0);
	for (u64 k = 0; k < SECTORS; k++) {
		u32 v = ld32(buf + k * BLOCK_SECTOR);
		if (!rig_is(buf + k * BLOCK_SECTOR, k, v) || v < shared->flushed[k] || v > shared->submitted[k])
			fail_msg("sector %llu has %u; flushed was %u, written %u", (unsigned long long)k, v, shared->flushed[k], shared->submitted[k]);
		highest = MAX(highest, shared->submitted[k]);
		shared->submitted[k] = shared->done[k] = shared->flushed[k] = v;
	}
	free(buf);
	assert_true(block_close(b, &e));
	if (!image_check(path, BLOCK_QCOW2, false, &check, NULL, NULL, &e))
		fail_msg("%s", e.msg);
	assert_int_equal(check.corruptions, 0);
	return highest;
}

static void kills(void **state)
{
	static const struct image_create kinds[] = {
		{ .cluster_size = 4096 }, { .cluster_size = 65536 }, { .cluster_size = 4096, .lazy_refcounts = true }, { .cluster_size = 1024, .version = 2 },
	};
	const char *text = getenv("RING3_KILLS");
	char *path = scratch_file("disk");

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (size_t k = 0; k < ARRAY_LEN(kinds); k++) {
		struct image_create c = kinds[k];
		u32 value = 0;
		c.format = BLOCK_QCOW2;
		c.size = SECTORS * BLOCK_SECTOR;
		must_create(path, &c);
		memset(shared, 0, sizeof(*shared));
		for (int n = 0; n < (text ? atoi(text) : 3); n++) {
			int ready[2], status;
			char byte;
			assert_int_equal(pipe(ready), 0);
			pid_t pid = fork();
			if (!pid)
				child(path, k * 100 + (u64)n, value + 1, ready[1]);
			close(ready[1]);
			assert_int_equal(read(ready[0], &byte, 1), 1);
			close(ready[0]);
			usleep(20000 + 13000 * (unsigned)(n % 7));
			kill(pid, SIGKILL);
			assert_int_equal(waitpid(pid, &status, 0), pid);
			assert_true(WIFSIGNALED(status));
			value = verify(path);
		}
		print_message("%llu writes, %llu flushes\n", (unsigned long long)shared->writes, (unsigned long long)shared->flushes);
		assert_true(shared->writes);
	}
	munmap(shared, sizeof(*shared));
	remove(path);
	free(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(kills) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
