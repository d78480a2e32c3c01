/* An open disk: private to block/. disk.c has its life and its thread, request.c what it does. */
#ifndef RING3_BLOCK_DISK_H
#define RING3_BLOCK_DISK_H

#include <pthread.h>

#include "block/aio.h"
#include "block/image.h"

struct work;
struct alloc;

struct block {
	struct image *img;
	const struct image *named; /* not the overlay of a snapshot */
	struct aio *aio;
	struct loop *loop;
	bool no_discard, writethrough, unsafe, in_order;
	char *path;

	/* ---- under lock ---- */
	pthread_mutex_t lock;
	pthread_cond_t told;                          /* done is no longer empty */
	struct block_request *queue, **queue_end;     /* submitted, not begun */
	struct block_request *done, **done_end;       /* carried out, not told */
	unsigned in_flight;                           /* submitted, not told */
	bool sleeping, quit;
	int donefd;                                   /* written when `done` is no longer empty */
	pthread_t thread;

	/* ---- the disk's thread, or who polls ---- */
	struct work *oldest, *newest;                 /* begun, in order */
	u64 seq;
	struct work *runnable, **runnable_end;        /* what they waited for is over */
	struct alloc *allocs;                         /* clusters that are being made */
	u64 cow_bytes;                                /* buffers of these */
	struct block_request *finished, **finished_end; /* for `done`, at the turn's end */
};

void request_begin(struct block *b, struct block_request *r);
/* Goes on with requests that waited for others. */
void request_run(struct block *b);

#endif
