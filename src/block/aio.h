/* Asynchronous operations on files: io_uring, or a pool of threads. Private to block/.
 * One struct aio belongs to one thread, which submits and waits; aio_wake is for the others. */
#ifndef RING3_BLOCK_AIO_H
#define RING3_BLOCK_AIO_H

#include "block/block.h"
#include "block/file.h"

struct aio;
struct aio_op {
	enum file_what what;    /* not FILE_TRUNCATE */
	struct file *file;
	u64 offset, len;
	struct iovec *iov;      /* read, write; changed when the host does a part only */
	int n_iov;
	void (*done)(struct aio_op *op);
	int error;              /* at done: 0 or an errno */
	/* aio.c's */
	struct aio_op *next;
	u64 hook_id, left;
};

struct aio *aio_new(enum block_aio kind, struct error *e);
void aio_free(struct aio *a);             /* nothing is under way */
bool aio_is_uring(const struct aio *a);
void aio_submit(struct aio *a, struct aio_op *op);
/* Hands what was submitted to the host, and calls done for what is done. wait: until at least one is,
 * or aio_wake was called since the last wait. */
void aio_turn(struct aio *a, bool wait);
void aio_wake(struct aio *a);             /* any thread */

#endif
