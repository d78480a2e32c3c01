/* Images: what a format gives to the rest of block/, and chains of them. Private to block/.
 *
 * A format answers where things are; it moves no data. Its calls are made by one thread, block while
 * they read or write tables, and return 0 or an errno. */
#ifndef RING3_BLOCK_IMAGE_H
#define RING3_BLOCK_IMAGE_H

#include "block/block.h"
#include "block/file.h"

#define MAX_CHAIN 64

struct image;
enum map_kind {
	MAP_ZERO,       /* reads as zeros */
	MAP_DATA,       /* at `host` of `file` */
	MAP_COMPRESSED, /* read_compressed */
	MAP_BELOW,      /* the image does not say: what it is based on does */
};
struct map {
	enum map_kind kind;
	struct image *image; /* that answered */
	u64 host;            /* MAP_DATA: offset in image->file */
	u64 len;             /* bytes from the offset asked for, for which this is so; at least 1 */
};

enum plan_kind {
	PLAN_DIRECT,  /* write (or zero) [host, host+len) of the file; nothing else to do */
	PLAN_ALLOC,   /* write there, and what else [start, end) holds, all before `link` */
	PLAN_DONE,    /* zeroes and discards: done */
	PLAN_WRITE,   /* zeroes: not so; write zeros */
};
struct plan {
	enum plan_kind kind;
	u64 offset, len;     /* guest bytes that it is for: from what was asked for, perhaps shorter */
	u64 host;            /* of `offset` */
	u64 start, end;      /* ALLOC: guest bytes of the clusters that change */
	bool fresh;          /* ALLOC: the host's bytes are zeros where nobody has written */
	bool keep;           /* ALLOC: the clusters are those that the tables name already */
};

struct format_ops {
	const char *name;
	int (*map)(struct image *img, u64 offset, u64 len, struct map *m);
	/* Of the whole cluster, or what `map` took for it, that holds offset: bytes [offset, offset+len). */
	int (*read_compressed)(struct image *img, u64 offset, void *buf, u64 len);
	int (*plan_write)(struct image *img, u64 offset, u64 len, struct plan *p);
	/* ALLOC: its bytes are written, so that the tables may name them; or they could not be. */
	int (*link)(struct image *img, const struct plan *p);
	void (*abandon)(struct image *img, const struct plan *p);
	/* Makes [offset, offset+len) zeros or, discard, forgets it. unmap: may free. A discard may also do
	 * nothing for ranges that it cannot forget. */
	int (*plan_zero)(struct image *img, u64 offset, u64 len, bool discard, bool unmap, struct plan *p);
	/* Writes all that must be before the sync which makes it durable; *gen: what to tell `committed`
	 * after that sync. NULL: nothing to do. */
	int (*commit)(struct image *img, u64 *gen);
	void (*committed)(struct image *img, u64 gen);
	int (*resize)(struct image *img, u64 size);
	/* Everything durable and tidy, then freed; for writing images also: no more requests. */
	int (*close)(struct image *img);
};

struct image {
	const struct format_ops *ops;
	struct file *file;
	struct image *backing; /* opened read-only; NULL: none */
	u64 size;              /* bytes, of whole sectors */
	u32 granularity;
	bool read_only;
	bool probed_raw;       /* found to be raw, not said to be */
	bool free_host;        /* what is freed may be given back to the host */
	/* Kept by request.c: numbers of requests. What an image frees while request `begun` is the newest may
	 * be used again once `oldest`, the oldest under way, is newer: those before may still write there. */
	u64 begun, oldest;
};

enum open_flags {
	OPEN_WRITE = 1,
	OPEN_NO_BACKING = 2,
	OPEN_CHECK = 4,   /* for check and repair: also what is dirty, corrupt, partly wrong; no repair by itself */
	OPEN_NO_LOCK = 8, /* only to look: what another program changes meanwhile is its own affair */
};
struct image *image_open(const char *path, enum block_format format, unsigned flags, const struct file_hooks *hooks, struct error *e);
/* The image of an open file, which becomes its own (also on failure). */
/* One raw image by itself, of a descriptor: see block_options. */
struct image *image_open_handed(int fd, const char *path, struct error *e);
struct image *image_of_file(struct file *f, enum block_format format, unsigned flags, unsigned depth, struct error *e);
int image_close(struct image *img); /* and those below it; the first error */
/* Through the chain: never MAP_BELOW. */
int image_map(struct image *img, u64 offset, u64 len, struct map *m);
/* The same, also asking the host for holes in files. */
int image_status(struct image *img, u64 offset, u64 len, struct map *m);
struct image *image_open_below(const char *path, enum block_format format, unsigned flags, unsigned depth, struct error *e);
/* Reads through the chain, now. */
int image_read(struct image *img, u64 offset, void *buf, u64 len);
/* The image that `name`, as written in `of`, means: beside it, if relative. malloced. */
char *image_backing_path(const char *of, const char *name);
bool image_probe(struct file *f, enum block_format *format, struct error *e);

struct image *raw_open(struct file *f, unsigned flags, struct error *e);
struct image *qcow2_open(struct file *f, unsigned flags, unsigned depth, struct error *e);
/* A new image in f, on top of `below` (which becomes its own), that no file name leads to. */
struct image *qcow2_overlay(struct file *f, struct image *below, struct error *e);

#endif
