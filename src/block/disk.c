/* A disk: its opening and end, its thread, the way of requests there and back.
 *
 * block_submit puts a request on `queue` and wakes the thread if it sleeps; the thread begins it
 * (request.c), turns its aio, and puts what is finished on `done`, of which the loop learns by donefd.
 * Without a loop block_poll is that thread's turn.
 *
 * Invariants
 *  1. The thread sleeps only after it has seen `queue` empty under the lock, with `sleeping` set there:
 *     no request is left behind.
 *  2. done functions run on the loop's thread without the lock. */
#define LOG_TOPIC "block"
#include "block/disk.h"

#include "base/signals_api.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

const char *const block_cache_words[] = { "writeback", "writethrough", "unsafe", NULL };
const char *const block_aio_words[] = { "auto", "io_uring", "threads", NULL };

/* ---- turns -------------------------------------------------------------------------- */

static void begin_queued(struct block *b)
{
	pthread_mutex_lock(&b->lock);
	struct block_request *r = b->queue;
	b->queue = NULL;
	b->queue_end = &b->queue;
	b->sleeping = false;
	pthread_mutex_unlock(&b->lock);
	for (struct block_request *next; r; r = next) {
		next = r->next;
		request_begin(b, r);
		while (b->in_order && b->oldest) {
			aio_turn(b->aio, false);
			request_run(b);
		}
	}
	request_run(b);
}

static void tell_finished(struct block *b)
{
	if (!b->finished)
		return;
	pthread_mutex_lock(&b->lock);
	bool first = !b->done;
	*b->done_end = b->finished;
	b->done_end = b->finished_end;
	b->finished = NULL;
	b->finished_end = &b->finished;
	pthread_cond_signal(&b->told);
	pthread_mutex_unlock(&b->lock);
	u64 one = 1;
	if (first && b->donefd >= 0)
		(void)!write(b->donefd, &one, sizeof(one));
}

static void turn(struct block *b, bool wait)
{
	begin_queued(b);
	tell_finished(b);
	pthread_mutex_lock(&b->lock);
	wait = wait && !b->queue && !b->quit;
	b->sleeping = wait;
	pthread_mutex_unlock(&b->lock);
	aio_turn(b->aio, wait);
	request_run(b);
	tell_finished(b);
}

static void *disk_thread(void *arg)
{
	struct block *b = arg;
	bool quit = false;

	while (!quit) {
		turn(b, true);
		pthread_mutex_lock(&b->lock);
		quit = b->quit && !b->queue && !b->oldest;
		pthread_mutex_unlock(&b->lock);
	}
	return NULL;
}

/* Calls done for what is on `done`. */
static void deliver(struct block *b)
{
	pthread_mutex_lock(&b->lock);
	struct block_request *r = b->done;
	b->done = NULL;
	b->done_end = &b->done;
	for (const struct block_request *k = r; k; k = k->next)
		b->in_flight--;
	pthread_mutex_unlock(&b->lock);
	for (struct block_request *next; r; r = next) {
		next = r->next;
		r->done(r);
	}
}

static void on_done(void *arg, u32 events)
{
	deliver(arg); /* edge-triggered: the counter need not be read */
}

/* ---- requests ----------------------------------------------------------------------- */

void block_submit(struct block *b, struct block_request *r)
{
	r->next = NULL;
	r->error = 0;
	pthread_mutex_lock(&b->lock);
	*b->queue_end = r;
	b->queue_end = &r->next;
	b->in_flight++;
	bool wake = b->sleeping;
	b->sleeping = false;
	pthread_mutex_unlock(&b->lock);
	if (wake)
		aio_wake(b->aio);
}

unsigned block_poll(struct block *b, bool wait)
{
	pthread_mutex_lock(&b->lock);
	unsigned n = b->in_flight;
	pthread_mutex_unlock(&b->lock);
	if (!n)
		return 0;
	begin_queued(b);
	while (wait && !b->finished) {
		aio_turn(b->aio, true);
		request_run(b);
	}
	if (!wait)
		aio_turn(b->aio, false);
	request_run(b);
	tell_finished(b);
	deliver(b);
	pthread_mutex_lock(&b->lock);
	n = b->in_flight;
	pthread_mutex_unlock(&b->lock);
	return n;
}

void block_drain(struct block *b)
{
	for (;;) {
		if (!b->loop) {
			if (!block_poll(b, true))
				return;
			continue;
		}
		pthread_mutex_lock(&b->lock);
		while (b->in_flight && !b->done)
			pthread_cond_wait(&b->told, &b->lock);
		bool more = b->in_flight;
		pthread_mutex_unlock(&b->lock);
		if (!more)
			return;
		deliver(b);
	}
}

static void synchronous_done(struct block_request *r)
{
	*(bool *)r->arg = true;
}

static int synchronous(struct block *b, struct block_request *r)
{
	bool done = false;

	r->done = synchronous_done;
	r->arg = &done;
	block_submit(b, r);
	while (!done)
		block_poll(b, true);
	return r->error;
}

static int transfer(struct block *b, enum block_op op, u64 offset, u8 *buf, u64 len)
{
	int err = 0;

	for (u64 n; len && !err; offset += n, buf += n, len -= n) {
		n = MIN(len, BLOCK_MAX_TRANSFER);
		struct iovec iov = { buf, n };
		struct block_request r = { .op = op, .offset = offset, .len = n, .iov = &iov, .n_iov = 1 };
		err = synchronous(b, &r);
	}
	return err;
}

int block_read(struct block *b, u64 offset, void *buf, u64 len)
{
	return transfer(b, BLOCK_READ, offset, buf, len);
}

int block_write(struct block *b, u64 offset, const void *buf, u64 len)
{
	return transfer(b, BLOCK_WRITE, offset, (u8 *)(uintptr_t)buf, len);
}

int block_zero(struct block *b, u64 offset, u64 len, bool unmap)
{
	return synchronous(b, &(struct block_request){ .op = BLOCK_WRITE_ZEROES, .offset = offset, .len = len, .unmap = unmap });
}

int block_discard(struct block *b, u64 offset, u64 len)
{
	return synchronous(b, &(struct block_request){ .op = BLOCK_DISCARD, .offset = offset, .len = len });
}

int block_flush(struct block *b)
{
	return synchronous(b, &(struct block_request){ .op = BLOCK_FLUSH });
}

bool block_is_busy(struct block *b)
{
	pthread_mutex_lock(&b->lock);
	bool busy = b->in_flight;
	pthread_mutex_unlock(&b->lock);
	return busy;
}

/* ---- what it is --------------------------------------------------------------------- */

u64 block_size(const struct block *b) { return b->img->size; }
bool block_read_only(const struct block *b) { return b->img->read_only; }
const char *block_path(const struct block *b) { return b->path; }

enum block_format block_image_format(const struct block *b)
{
	return strcmp(b->named->ops->name, "raw") ? BLOCK_QCOW2 : BLOCK_RAW;
}

void block_get_geometry(const struct block *b, struct block_geometry *g)
{
	u64 sectors = b->img->size / BLOCK_SECTOR;

	*g = (struct block_geometry){ .heads = 16, .sectors = 63 };
	if (sectors < 16 * 63) { /* a floppy's worth: no head more than there is */
		g->heads = 1;
		g->sectors = (u32)MAX(MIN(sectors, 63ull), 1ull);
	}
	u64 cylinders = sectors / ((u64)g->heads * g->sectors);
	g->cylinders = (u32)MAX(MIN(cylinders, 16383ull), 1ull);
}

void block_get_limits(const struct block *b, struct block_limits *l)
{
	*l = (struct block_limits){ b->img->file->block_bytes, b->img->granularity, !b->no_discard && !b->img->read_only };
}

void block_describe(const struct block *b, char *buf, size_t cap)
{
	static const char units[] = "KMGTPE";
	u64 size = b->img->size;
	double v = (double)size / 1024;
	size_t u = 0;

	while (v >= 1024 && u < 5)
		v /= 1024, u++;
	snprintf(buf, cap, "%s %s, %.*f %ciB%s%s, %s", b->named->ops->name, b->path, v < 10 && v != (double)(u64)v ? 1 : 0, v, units[u],
		 b->img->read_only ? ", read-only" : "", b->named != b->img ? ", changes are thrown away" : "",
		 aio_is_uring(b->aio) ? "io_uring" : "threads");
}

/* ---- opening and end ---------------------------------------------------------------- */

static void block_free(struct block *b)
{
	if (b->donefd >= 0)
		close(b->donefd);
	aio_free(b->aio);
	pthread_cond_destroy(&b->told);
	pthread_mutex_destroy(&b->lock);
	free(b->path);
	free(b);
}

static struct image *open_image(struct block *b, const struct block_options *o, struct error *e)
{
	unsigned flags = o->read_only || o->snapshot ? 0 : OPEN_WRITE;
	struct image *img = o->handed ? image_open_handed(o->handed - 1, o->file, e) : image_open(o->file, o->format, flags, o->hooks, e);

	b->named = img;
	if (img && !img->size) {
		image_close(img);
		error_set(e, "%s: has no bytes, so that it is no disk (ring3 img create or resize makes one)", o->file);
		return NULL;
	}
	if (!img || !o->snapshot || o->read_only)
		return img;
	struct file *f = file_temporary(e);
	if (!f) {
		image_close(img);
		return NULL;
	}
	return qcow2_overlay(f, img, e);
}

static bool start_thread(struct block *b, struct error *e)
{
	sigset_t old;

	b->donefd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (b->donefd < 0)
		return error_set(e, "%s: %s", b->path, strerror(errno));
	if (!loop_add_fd(b->loop, b->donefd, EPOLLIN | EPOLLET, on_done, b, e))
		return false;
	signals_for_others(&old);
	int err = pthread_create(&b->thread, NULL, disk_thread, b);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (!err)
		return true;
	loop_del_fd(b->loop, b->donefd);
	return error_set(e, "%s: no thread for it: %s", b->path, strerror(err));
}

struct block *block_open(const struct block_options *o, struct loop *loop, struct error *e)
{
	struct block *b = calloc(1, sizeof(*b));

	if (!o->file || !*o->file || !b || !(b->path = strdup(o->file))) {
		error_set(e, o->file && *o->file ? "out of memory" : "no file is named: file=PATH");
		free(b);
		return NULL;
	}
	b->donefd = -1;
	b->loop = loop;
	b->queue_end = &b->queue;
	b->done_end = &b->done;
	b->finished_end = &b->finished;
	b->runnable_end = &b->runnable;
	b->no_discard = o->no_discard;
	b->in_order = o->in_order;
	b->writethrough = o->cache == BLOCK_WRITETHROUGH;
	b->unsafe = o->cache == BLOCK_UNSAFE || o->snapshot;
	pthread_mutex_init(&b->lock, NULL);
	pthread_cond_init(&b->told, NULL);
	if (!(b->aio = aio_new(o->in_order ? BLOCK_AIO_INLINE : o->aio, e)) || !(b->img = open_image(b, o, e))) {
		block_free(b);
		return NULL;
	}
	b->img->free_host = !o->no_discard;
	b->img->file->unsafe |= b->unsafe;
	if (loop && !start_thread(b, e)) {
		image_close(b->img);
		block_free(b);
		return NULL;
	}
	return b;
}

bool block_close(struct block *b, struct error *e)
{
	block_drain(b);
	if (b->loop) {
		pthread_mutex_lock(&b->lock);
		b->quit = true;
		pthread_mutex_unlock(&b->lock);
		aio_wake(b->aio);
		pthread_join(b->thread, NULL);
		loop_del_fd(b->loop, b->donefd);
	}
	char path[256];
	snprintf(path, sizeof(path), "%s", b->path);
	int err = image_close(b->img);
	block_free(b);
	return !err || error_set(e, "%s: what was written last may be lost: %s", path, strerror(err));
}
