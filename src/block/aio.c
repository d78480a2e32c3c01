/* Asynchronous operations on files.
 *
 * io_uring where the kernel gives one, restricted to the five operations below, so that a process that
 * is taken over gains nothing by it; else threads that make the blocking calls. A part that the host has
 * left undone is submitted again; a read behind the end of the file is zeros.
 *
 * Invariants
 *  1. done is called from aio_turn only, on the owner's thread.
 *  2. The pool's threads touch an op only between its being taken from `waiting` and put on `finished`,
 *     both under the lock.
 * Threading: aio.h. */
#define LOG_TOPIC "block"
#include "block/aio.h"
#include "base/signals_api.h"

#include <errno.h>
#include <linux/falloc.h>
#include <liburing.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#define RING_ENTRIES 256
#define MAX_THREADS 8

struct aio {
	bool uring, blocks;        /* neither: threads */
	struct io_uring ring;
	int wakefd;                /* io_uring: read by an operation that is always under way */
	u64 wake_count;
	bool wake_armed;
	struct aio_op *inline_done; /* failed before they began */
	unsigned under_way;

	pthread_mutex_t lock;      /* pool, all that follows */
	pthread_cond_t work, told;
	pthread_t threads[MAX_THREADS];
	int n_threads, idle;
	bool quit, woken;
	struct aio_op *waiting, **waiting_end, *finished;
};

/* ---- both --------------------------------------------------------------------------- */

static void finish(struct aio *a, struct aio_op *op, int error)
{
	int none = 0;

	if (op->what == FILE_SYNC && error)
		atomic_compare_exchange_strong(&op->file->sync_error, &none, error);
	file_end(op->file, op->what, op->hook_id, error);
	op->error = error;
	a->under_way--;
	op->done(op);
}

/* n more bytes of a read or write are done. */
static void advance(struct aio_op *op, u64 n)
{
	op->offset += n;
	op->left -= n;
	while (n) {
		u64 part = MIN(n, op->iov->iov_len);
		op->iov->iov_base = (u8 *)op->iov->iov_base + part;
		op->iov->iov_len -= part;
		n -= part;
		if (!op->iov->iov_len) {
			op->iov++;
			op->n_iov--;
		}
	}
}

static void zero_rest(struct aio_op *op)
{
	for (int k = 0; k < op->n_iov; k++)
		memset(op->iov[k].iov_base, 0, op->iov[k].iov_len);
}

/* What a system call or a completion said: whether the op is complete, and then its error. */
static bool took(struct aio_op *op, i64 res, int *error)
{
	*error = res < 0 ? (int)-res : 0;
	if (res == -EINTR || res == -EAGAIN)
		return false;
	if (res < 0 || (op->what != FILE_READ && op->what != FILE_WRITE))
		return true;
	if (!res && op->left) {
		if (op->what == FILE_READ)
			zero_rest(op);
		else
			*error = EIO;
		return true;
	}
	advance(op, (u64)res);
	return !op->left;
}

/* ---- io_uring ----------------------------------------------------------------------- */

static struct io_uring_sqe *get_sqe(struct aio *a)
{
	struct io_uring_sqe *sqe;

	while (!(sqe = io_uring_get_sqe(&a->ring)))
		if (io_uring_submit(&a->ring) < 0)
			usleep(100); /* the host is out of memory for a moment */
	return sqe;
}

static void uring_start(struct aio *a, struct aio_op *op)
{
	struct io_uring_sqe *sqe = get_sqe(a);

	switch (op->what) {
	case FILE_READ: io_uring_prep_readv(sqe, op->file->fd, op->iov, (unsigned)op->n_iov, op->offset); break;
	case FILE_WRITE: io_uring_prep_writev(sqe, op->file->fd, op->iov, (unsigned)op->n_iov, op->offset); break;
	case FILE_SYNC: io_uring_prep_fsync(sqe, op->file->fd, IORING_FSYNC_DATASYNC); break;
	case FILE_PUNCH:
		io_uring_prep_fallocate(sqe, op->file->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)op->offset, (off_t)op->len);
		break;
	case FILE_ZERO:
		io_uring_prep_fallocate(sqe, op->file->fd, FALLOC_FL_ZERO_RANGE, (off_t)op->offset, (off_t)op->len);
		break;
	default: bug("operation %d", op->what);
	}
	io_uring_sqe_set_data(sqe, op);
}

static void arm_wake(struct aio *a)
{
	struct io_uring_sqe *sqe = get_sqe(a);

	io_uring_prep_read(sqe, a->wakefd, &a->wake_count, sizeof(a->wake_count), 0);
	io_uring_sqe_set_data(sqe, NULL);
	a->wake_armed = true;
}

static void uring_completion(struct aio *a, struct aio_op *op, i64 res)
{
	int error;

	if (!op) {
		a->wake_armed = false;
		return;
	}
	if (op->what == FILE_PUNCH || op->what == FILE_ZERO) {
		/* Hosts that cannot: by other means, which take a while. */
		if (res == -EOPNOTSUPP || res == -EINVAL || res == -ENODEV)
			res = -(op->what == FILE_PUNCH ? file_raw_punch(op->file, op->offset, op->len)
						       : file_raw_zero(op->file, op->offset, op->len));
	}
	if (took(op, res, &error))
		finish(a, op, error);
	else
		uring_start(a, op);
}

static void uring_turn(struct aio *a, bool wait)
{
	struct io_uring_cqe *cqe;
	unsigned head, n = 0;
	struct { void *op; i64 res; } batch[64];

	if (!a->wake_armed)
		arm_wake(a);
	if (wait && !io_uring_cq_ready(&a->ring))
		io_uring_submit_and_wait(&a->ring, 1);
	else
		io_uring_submit(&a->ring);
	io_uring_for_each_cqe(&a->ring, head, cqe) {
		batch[n].op = io_uring_cqe_get_data(cqe);
		batch[n].res = cqe->res;
		if (++n == ARRAY_LEN(batch))
			break;
	}
	io_uring_cq_advance(&a->ring, n);
	for (unsigned k = 0; k < n; k++)
		uring_completion(a, batch[k].op, batch[k].res);
}

static int restrict_ring(struct io_uring *ring)
{
	static const u8 allowed[] = { IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC, IORING_OP_FALLOCATE, IORING_OP_READ };
	struct io_uring_restriction r[ARRAY_LEN(allowed) + 1];

	memset(r, 0, sizeof(r));
	for (size_t k = 0; k < ARRAY_LEN(allowed); k++) {
		r[k].opcode = IORING_RESTRICTION_SQE_OP;
		r[k].sqe_op = allowed[k];
	}
	r[ARRAY_LEN(allowed)].opcode = IORING_RESTRICTION_REGISTER_OP;
	r[ARRAY_LEN(allowed)].register_op = IORING_REGISTER_ENABLE_RINGS;
	/* Not by liburing: Debian 12's library does not export the two. */
	if (syscall(SYS_io_uring_register, ring->ring_fd, IORING_REGISTER_RESTRICTIONS, r, ARRAY_LEN(r)) ||
	    syscall(SYS_io_uring_register, ring->ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0))
		return -errno;
	return 0;
}

static bool uring_init(struct aio *a, struct error *e)
{
	int err = io_uring_queue_init(RING_ENTRIES, &a->ring, IORING_SETUP_R_DISABLED);

	if (!err) {
		err = restrict_ring(&a->ring);
		a->wakefd = err ? -1 : eventfd(0, EFD_CLOEXEC);
		if (!err && a->wakefd < 0)
			err = -errno;
		if (err)
			io_uring_queue_exit(&a->ring);
	}
	return !err || error_set(e, "io_uring: %s", strerror(-err));
}

/* ---- threads ------------------------------------------------------------------------ */

static i64 blocking(struct aio_op *op)
{
	ssize_t n;

	switch (op->what) {
	case FILE_READ: n = preadv(op->file->fd, op->iov, op->n_iov, (off_t)op->offset); break;
	case FILE_WRITE: n = pwritev(op->file->fd, op->iov, op->n_iov, (off_t)op->offset); break;
	case FILE_SYNC: return -file_raw_sync(op->file);
	case FILE_PUNCH: return -file_raw_punch(op->file, op->offset, op->len);
	case FILE_ZERO: return -file_raw_zero(op->file, op->offset, op->len);
	default: bug("operation %d", op->what);
	}
	return n < 0 ? -errno : n;
}

static void *pool_thread(void *arg)
{
	struct aio *a = arg;

	pthread_mutex_lock(&a->lock);
	for (;;) {
		struct aio_op *op = a->waiting;
		if (!op) {
			if (a->quit)
				break;
			a->idle++;
			pthread_cond_wait(&a->work, &a->lock);
			a->idle--;
			continue;
		}
		if (!(a->waiting = op->next))
			a->waiting_end = &a->waiting;
		pthread_mutex_unlock(&a->lock);
		while (!took(op, blocking(op), &op->error))
			;
		pthread_mutex_lock(&a->lock);
		op->next = a->finished;
		a->finished = op;
		pthread_cond_signal(&a->told);
	}
	pthread_mutex_unlock(&a->lock);
	return NULL;
}

static void pool_submit(struct aio *a, struct aio_op *op)
{
	sigset_t old;

	op->next = NULL;
	pthread_mutex_lock(&a->lock);
	*a->waiting_end = op;
	a->waiting_end = &op->next;
	if (!a->idle && a->n_threads < MAX_THREADS) {
		signals_for_others(&old);
		if (!pthread_create(&a->threads[a->n_threads], NULL, pool_thread, a))
			a->n_threads++;
		else if (!a->n_threads)
			bug("no thread for the disks");
		pthread_sigmask(SIG_SETMASK, &old, NULL);
	}
	pthread_cond_signal(&a->work);
	pthread_mutex_unlock(&a->lock);
}

static void pool_turn(struct aio *a, bool wait)
{
	pthread_mutex_lock(&a->lock);
	while (wait && !a->finished && !a->woken)
		pthread_cond_wait(&a->told, &a->lock);
	struct aio_op *op = a->finished;
	a->finished = NULL;
	a->woken = false;
	pthread_mutex_unlock(&a->lock);
	for (struct aio_op *next; op; op = next) {
		next = op->next;
		finish(a, op, op->error);
	}
}

/* ---- for the rest of block/ ----------------------------------------------------------- */

struct aio *aio_new(enum block_aio kind, struct error *e)
{
	struct aio *a = calloc(1, sizeof(*a));

	if (!a) {
		error_set(e, "out of memory");
		return NULL;
	}
	a->waiting_end = &a->waiting;
	a->wakefd = -1;
	pthread_mutex_init(&a->lock, NULL);
	pthread_cond_init(&a->work, NULL);
	pthread_cond_init(&a->told, NULL);
	a->blocks = kind == BLOCK_AIO_INLINE;
	a->uring = (kind == BLOCK_AIO_AUTO || kind == BLOCK_AIO_URING) && uring_init(a, e);
	if (kind == BLOCK_AIO_URING && !a->uring) {
		aio_free(a);
		return NULL;
	}
	if (kind == BLOCK_AIO_AUTO && !a->uring)
		log_info("%s; threads do it", e->msg);
	return a;
}

void aio_free(struct aio *a)
{
	if (!a)
		return;
	if (a->under_way)
		bug("%u operations are under way", a->under_way);
	if (a->uring)
		io_uring_queue_exit(&a->ring);
	if (a->wakefd >= 0)
		close(a->wakefd);
	pthread_mutex_lock(&a->lock);
	a->quit = true;
	pthread_cond_broadcast(&a->work);
	pthread_mutex_unlock(&a->lock);
	for (int k = 0; k < a->n_threads; k++)
		pthread_join(a->threads[k], NULL);
	pthread_cond_destroy(&a->told);
	pthread_cond_destroy(&a->work);
	pthread_mutex_destroy(&a->lock);
	free(a);
}

bool aio_is_uring(const struct aio *a)
{
	return a->uring;
}

/* Whether there is nothing for the host to do. */
static bool ends_at_once(struct aio_op *op)
{
	op->error = op->what == FILE_SYNC ? atomic_load(&op->file->sync_error) : 0;
	return op->what == FILE_SYNC && (op->error || op->file->unsafe);
}

void aio_submit(struct aio *a, struct aio_op *op)
{
	op->left = op->len;
	op->hook_id = 0;
	a->under_way++;
	op->error = file_begin(op->file, op->what, op->offset, op->len, op->iov, op->n_iov, &op->hook_id);
	while (a->blocks && !op->error && !took(op, blocking(op), &op->error))
		;
	if (a->blocks || op->error || ends_at_once(op)) {
		op->next = a->inline_done;
		a->inline_done = op;
	} else if (a->uring) {
		uring_start(a, op);
	} else {
		pool_submit(a, op);
	}
}

void aio_turn(struct aio *a, bool wait)
{
	struct aio_op *op = a->inline_done;

	a->inline_done = NULL;
	wait &= !op;
	for (struct aio_op *next; op; op = next) {
		next = op->next;
		finish(a, op, op->error);
	}
	if (a->uring)
		uring_turn(a, wait);
	else
		pool_turn(a, wait);
}

void aio_wake(struct aio *a)
{
	u64 one = 1;

	if (a->uring) {
		(void)!write(a->wakefd, &one, sizeof(one));
		return;
	}
	pthread_mutex_lock(&a->lock);
	a->woken = true;
	pthread_cond_signal(&a->told);
	pthread_mutex_unlock(&a->lock);
}
