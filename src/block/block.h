/* block: disk images for devices and for `ring3 img`.
 *
 * A struct block is an open disk: an image file, raw or qcow2, with the chain of images that it is
 * based on. Devices hand it requests; a thread of the disk's own carries them out (io_uring, or a pool
 * of threads where the kernel has none), and the event loop's thread is told of each that is done. No
 * call here waits for the host's disk but block_open, block_close, block_drain and what is said to.
 *
 * What a device may rely on
 *  1. Requests may be submitted while others are under way, also on the same sectors. Those are done in
 *     any order, as on a disk with a queue; a sector is never half of one request and half of another.
 *  2. A flush that is done without error has made durable what writes, discards and zeroes were *done*
 *     before it was submitted: fdatasync has returned, metadata included. One still under way then is
 *     not covered. After a failed flush all later ones fail: the host may have dropped what it held.
 *  3. Offsets and lengths of any request that is outside the disk or not of whole sectors: EINVAL.
 *     Writes, discards and zeroes of a read-only disk: EACCES.
 *  4. Reads of what was never written are zeros.
 *  5. done is called once, on the loop's thread, never from inside block_submit, and not with any lock
 *     of this folder's held; it may submit again, also the same request.
 * Threading: block_submit and the block_* that only ask, any thread; the others on the loop's thread. */
#ifndef RING3_BLOCK_H
#define RING3_BLOCK_H

#include <sys/uio.h>

#include "base/base.h"

#define BLOCK_SECTOR 512u
/* The most that one request may have; a longer one is EINVAL. Discards and zeroes: any length. */
#define BLOCK_MAX_TRANSFER (64u << 20)
#define BLOCK_MAX_IOV 1022

struct block;
struct file_hooks;

/* ---- opening ------------------------------------------------------------------------ */

enum block_format { BLOCK_AUTO, BLOCK_RAW, BLOCK_QCOW2 };
enum block_cache {
	BLOCK_WRITEBACK,    /* durable after a flush */
	BLOCK_WRITETHROUGH, /* every write is durable when it is done */
	BLOCK_UNSAFE,       /* flushes do nothing: for disks that may be lost */
};
enum block_aio { BLOCK_AIO_AUTO, BLOCK_AIO_URING, BLOCK_AIO_THREADS, BLOCK_AIO_INLINE /* tests: at once, by the caller */ };

struct block_options {
	char *file;
	u32 format;      /* enum block_format; auto: qcow2 by its magic number, else raw */
	bool read_only;
	bool snapshot;   /* writes go to a file without a name in $TMPDIR (/var/tmp) and are lost at close */
	bool no_discard; /* discards are accepted and do nothing; zeroes never free */
	u32 cache;       /* enum block_cache */
	u32 aio;         /* enum block_aio */
	bool in_order;   /* one request after the other, done in the order of their submission; aio does not count then */
	const struct file_hooks *hooks; /* tests: block/file.h; NULL */
	/* 0, or a descriptor of the file plus one, which stays the caller's: for a process that opens files no
	 * more. Read-only, raw, a regular file; file is its name for people. */
	int handed;
};
/* Rows of a kv_key table for the options at `member` of `type`: file comes first. */
extern const char *const block_format_words[], *const block_cache_words[], *const block_aio_words[]; /* NULL at the end */
#define BLOCK_KEYS(type, member) \
	{ "file", KV_STR, offsetof(type, member.file), "the image: a file or a block device" }, \
	{ "format", KV_WORD, offsetof(type, member.format), "auto: qcow2 by its content, else raw", .words = block_format_words }, \
	{ "read-only", KV_BOOL, offsetof(type, member.read_only), "the guest cannot write" }, \
	{ "snapshot", KV_BOOL, offsetof(type, member.snapshot), "what is written is thrown away at the end" }, \
	{ "no-discard", KV_BOOL, offsetof(type, member.no_discard), "what the guest discards stays allocated" }, \
	{ "cache", KV_WORD, offsetof(type, member.cache), "when writes are durable; default writeback", .words = block_cache_words }, \
	{ "aio", KV_WORD, offsetof(type, member.aio), "how the host does it; default auto", .words = block_aio_words }

/* Opens and locks the image and those below it. loop: whose thread is told; NULL: there is no thread and
 * no loop, and the caller turns it with block_poll (tools, tests). Another process that writes the image,
 * ring3 or qemu, makes this fail, and one that reads it makes opening for writing fail. NULL: e says why. */
struct block *block_open(const struct block_options *o, struct loop *loop, struct error *e);
/* Finishes what is under way (done is called), makes all durable, unlocks, closes. After it nothing of
 * the disk is called. False: the last flush failed, and e says how; it is closed all the same. */
bool block_close(struct block *b, struct error *e);
/* Waits until nothing is under way; done is called for what was. */
void block_drain(struct block *b);

/* ---- what it is --------------------------------------------------------------------- */

struct block_geometry {
	u32 cylinders; /* at most 16383, as ATA says for large disks */
	u32 heads, sectors; /* 16 and 63, less on tiny disks */
};
struct block_limits {
	u32 physical_sector; /* bytes: what the host's disk writes at once */
	u32 granularity;     /* bytes: what the image allocates at once; a good alignment and least discard */
	bool discard;        /* discards have an effect */
};

bool block_is_busy(struct block *b);   /* a request has been submitted and done is not called yet, or is being called */
u64 block_size(const struct block *b); /* bytes, a multiple of BLOCK_SECTOR */
bool block_read_only(const struct block *b);
const char *block_path(const struct block *b);
enum block_format block_image_format(const struct block *b);
void block_get_geometry(const struct block *b, struct block_geometry *g);
void block_get_limits(const struct block *b, struct block_limits *l);
/* "qcow2 /var/lib/x.qcow2, 10 GiB, io_uring": a line for people. */
void block_describe(const struct block *b, char *buf, size_t cap);

/* ---- requests ----------------------------------------------------------------------- */

enum block_op { BLOCK_READ, BLOCK_WRITE, BLOCK_FLUSH, BLOCK_DISCARD, BLOCK_WRITE_ZEROES };

struct block_request {
	enum block_op op;
	bool fua;    /* write, zeroes: durable when done */
	bool unmap;  /* zeroes: may be freed instead of written */
	u64 offset;  /* bytes */
	u64 len;     /* bytes; reads and writes: what the iov holds */
	const struct iovec *iov; /* it and its buffers stay valid until done */
	int n_iov;
	void (*done)(struct block_request *r);
	void *arg;   /* the caller's */
	int error;   /* at done: 0 or an errno (EIO, ENOSPC, EINVAL, EACCES, ...) */
	/* The block layer's, from block_submit to done. */
	struct block_request *next;
	void *state;
};

/* The caller owns r and keeps it until done. r needs no clearing but of the fields above `error`. */
void block_submit(struct block *b, struct block_request *r);
/* Without a loop: calls done for what is done; waits for at least one if wait and any is under way.
 * Returns how many are under way still. */
unsigned block_poll(struct block *b, bool wait);
/* Without a loop: one request from begin to end; 0 or an errno. */
int block_read(struct block *b, u64 offset, void *buf, u64 len);
int block_write(struct block *b, u64 offset, const void *buf, u64 len);
int block_zero(struct block *b, u64 offset, u64 len, bool unmap);
int block_discard(struct block *b, u64 offset, u64 len);
int block_flush(struct block *b);

#endif
