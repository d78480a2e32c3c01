/* qcow2 images: what the files qcow2_*.c share. Source: QEMU's docs/interop/qcow2.txt, versions 2 and 3.
 *
 * The tables: the header names the L1 table, whose entries name L2 tables (a cluster each), whose entries
 * name clusters of data; and the refcount table, whose entries name refcount blocks (a cluster each), which
 * count for every cluster of the file how many entries name it. Snapshots have L1 tables of their own, and share
 * the rest; an entry with COPIED set is known to be the only one that names its cluster.
 *
 * How writes are ordered, so that whatever part of them a crash leaves is a sound image (at worst with leaks:
 * clusters that are counted and that nothing names)
 *  1. L2 entries and refcounts change in memory only; `commit` writes them: first the refcount blocks, new
 *     ones before the refcount table's entries that name them; then a sync, which makes durable the data as
 *     well; then L2 tables; then, after another sync, the L1 entries that name new L2 tables.
 *  2. A cluster that is not named any more keeps its count until the tables without it are durable, and
 *     until no request is under way that was begun before (qcow2_alloc.c); only then is it counted down, and
 *     may be used again. So no count is ever lower than on disk it must be.
 *  3. A table that moves (refcount table, L1, snapshots) is written elsewhere and durable before the header,
 *     in one write within one sector, names it.
 *  4. What cannot be ordered so (making and deleting snapshots, lazy refcounts) is done with the header's dirty
 *     bit set; an image that is opened for writing with that bit is repaired first.
 *
 * Nothing in an image is believed: each offset is checked before it is used, and no cluster that holds a
 * table in use is ever given to data (q->tables_at). A violation makes the image read-only and, version 3,
 * marks it corrupt. */
#ifndef RING3_BLOCK_QCOW2_H
#define RING3_BLOCK_QCOW2_H

#include <endian.h>

#include "block/cluster_set.h"
#include "block/image.h"

#define QCOW2_MAGIC 0x514649fbu
#define HEADER_V2 72
#define HEADER_V3 104
#define HEADER_MAX 112
/* Offsets of header fields that are written by themselves. */
#define H_SIZE 24
#define H_L1 36        /* u32 size, u64 offset */
#define H_REFTABLE 48  /* u64 offset, u32 clusters */
#define H_SNAPSHOTS 60 /* u32 number, u64 offset */
#define H_FEATURES 72  /* u64 incompatible, compatible, autoclear */

#define INCOMPAT_DIRTY 1ull
#define INCOMPAT_CORRUPT 2ull
#define INCOMPAT_DATA_FILE 4ull
#define INCOMPAT_COMPRESSION 8ull
#define INCOMPAT_EXTENDED_L2 16ull
#define COMPAT_LAZY_REFCOUNTS 1ull
#define AUTOCLEAR_BITMAPS 1ull

#define ENTRY_COPIED (1ull << 63)
#define ENTRY_COMPRESSED_BIT (1ull << 62)
#define ENTRY_ZERO_BIT 1ull
#define ENTRY_OFFSET 0x00fffffffffffe00ull

/* As QEMU's limits: larger images are refused. */
#define MAX_L1_BYTES (32u << 20)
#define MAX_REFTABLE_BYTES (8u << 20)
#define MAX_SNAPSHOTS 65536u
#define MAX_SNAPSHOT_BYTES (64u << 20)
#define MAX_BACKING_NAME 1023

/* ---- caches of tables (qcow2_table.c) -------------------------------------------------- */

struct table {
	u64 offset;
	u8 *data;              /* a cluster, as in the file */
	u32 dirty_lo, dirty_hi; /* bytes; equal: clean */
	struct table *hash_next, *newer, *older, *dirty_next;
};
struct tables {
	struct table **buckets, *newest, *oldest, *dirty;
	u32 n, max, n_buckets;
	bool are_l2;
};

/* A cluster that was freed, for when it may be used again. */
struct freed {
	u64 cluster, n, gen, seq;
};

struct snapshot {
	u64 l1_offset, disk_size, vm_state_size, vm_clock_ns;
	u32 l1_size, date_sec, date_nsec;
	char *id, *name;
	u8 *extra;       /* all of the extra data, as in the file */
	u32 extra_size;
};

struct qcow2 {
	struct image img;
	u32 version, cluster_bits, l2_bits, refcount_order, header_length;
	u64 cluster_size;
	u64 incompatible, compatible, autoclear;
	u8 compression;              /* 0 zlib, 1 zstd */
	char *backing_name;          /* NULL: none */
	enum block_format backing_format;
	u64 bitmaps_offset, bitmaps_size; /* the bitmap directory; size 0: none */
	u32 n_bitmaps;

	u64 l1_offset;
	u32 l1_size;                 /* entries */
	u64 *l1;                     /* host's byte order */
	u32 l1_dirty_lo, l1_dirty_hi;
	u64 reft_offset;
	u32 reft_clusters, reft_size;
	u64 *reft;
	u32 reft_dirty_lo, reft_dirty_hi;
	u64 snapshots_offset, snapshots_bytes;
	u32 n_snapshots;
	struct snapshot *snapshots;

	struct tables l2s, blocks;
	struct cluster_set tables_at; /* clusters of the header and of all tables in use */
	bool broken;                 /* something is wrong with it: no more writes */
	bool checking;               /* opened by OPEN_CHECK */
	bool opening;                /* what is wrong goes into `why`, for the error */
	char why[160];
	bool unclean;                /* an operation that needs the dirty bit has not come to its end */

	u64 hint;                    /* no cluster before it is free */
	u64 zero_from;               /* the file's bytes from here on have never been written */
	struct freed *freed;         /* a queue */
	size_t freed_first, freed_n, freed_cap;
	u64 gen, durable_gen;        /* commits: begun; made durable */

	u8 *plain;                   /* the cluster decompressed last */
	u64 plain_entry;
	u8 *packed;
	u64 pack_end;                /* convert: where the last packed cluster ended */
};

static inline struct qcow2 *qcow2_of(struct image *img) { return container_of(img, struct qcow2, img); }
static inline u64 to_clusters(const struct qcow2 *q, u64 bytes) { return (bytes >> q->cluster_bits) + !!(bytes & (q->cluster_size - 1)); }
static inline u64 l2_entry_get(const struct table *t, u64 i) { return be64toh(((const u64 *)(const void *)t->data)[i]); }

/* ---- tables --------------------------------------------------------------------------- */

bool tables_init(struct tables *c, bool are_l2, u32 max);
void tables_destroy(struct tables *c);
/* The table at offset: from the cache, or read (fresh: all zeros, dirty). It stays until the next call. */
int tables_get(struct qcow2 *q, struct tables *c, u64 offset, bool fresh, struct table **t);
void table_changed(struct tables *c, struct table *t, u32 lo, u32 hi);
int tables_write(struct qcow2 *q, struct tables *c);
void tables_forget(struct tables *c, u64 offset);
void l1_entry_set(struct qcow2 *q, u32 i, u64 entry);
void l2_entry_set(struct qcow2 *q, struct table *t, u64 i, u64 entry);

/* ---- refcounts ------------------------------------------------------------------------ */

u64 refcount_in(const u8 *block, u64 i, u32 order);
void refcount_into(u8 *block, u64 i, u32 order, u64 v);
u64 refcount_max(const struct qcow2 *q);
u64 refcounts_per_block(const struct qcow2 *q);
/* The block that counts the cluster, until the next call; *t NULL: there is none. */
int refcount_block_of(struct qcow2 *q, u64 cluster, struct table **t);
int refcount_get(struct qcow2 *q, u64 cluster, u64 *v); /* 0 for what no block counts */
int refcount_set(struct qcow2 *q, u64 cluster, u64 v);
/* Makes sure that a block counts the cluster. Its first ones may be taken for that. */
int refcount_make_block(struct qcow2 *q, u64 cluster);

/* ---- allocation ----------------------------------------------------------------------- */

/* A run of 1 to want free clusters (exact: want), counted as used. fresh: never written before. */
int alloc_clusters(struct qcow2 *q, u64 want, bool exact, u64 *cluster, u64 *got, bool *fresh);
int alloc_table(struct qcow2 *q, u64 n, u64 *offset); /* clusters for a table, into tables_at */
void free_now(struct qcow2 *q, u64 cluster, u64 n);   /* never named by a table on disk */
void free_later(struct qcow2 *q, u64 cluster, u64 n);
void free_entry_later(struct qcow2 *q, u64 entry);
void free_due(struct qcow2 *q);
int free_bound(struct qcow2 *q);                      /* before a change: keeps the queue short */

/* ---- input and output (qcow2_io.c) -------------------------------------------------------- */

extern const struct format_ops qcow2_ops;
enum entry_kind { ENTRY_NONE, ENTRY_ZERO, ENTRY_ZERO_HOST, ENTRY_HOST, ENTRY_COMPRESSED };
/* What an L2 entry says; EIO: nothing that it may. */
int entry_decode(struct qcow2 *q, u64 entry, enum entry_kind *kind);
void compressed_extent(const struct qcow2 *q, u64 entry, u64 *offset, u64 *len);
int qcow2_commit(struct image *img, u64 *gen);
void qcow2_committed(struct image *img, u64 gen);
/* Commit, sync, committed, until nothing is left to do. */
int qcow2_settle(struct qcow2 *q);
int qcow2_read_compressed(struct image *img, u64 offset, void *buf, u64 len);
int qcow2_decompress(struct qcow2 *q, u64 entry, const u8 **plain);
/* The L2 table for writing. */
int l2_for_write(struct qcow2 *q, u64 l1_index, struct table **t);

/* ---- header (qcow2_header.c), resize, corruption -------------------------------------------- */

int header_write(struct qcow2 *q, u32 at, const void *buf, u32 len); /* a field, now */
int header_set_dirty(struct qcow2 *q, bool dirty);                  /* durable before it returns; version 3 */
int corrupt(struct qcow2 *q, const char *fmt, ...) PRINTF_LIKE(2, 3); /* EIO */
int qcow2_resize(struct image *img, u64 size);
int qcow2_close(struct image *img);
int tables_at_fill(struct qcow2 *q);
bool snapshots_load(struct qcow2 *q, struct error *e);
void snapshots_free(struct qcow2 *q);

struct qcow2_create {
	u64 size;
	u32 version, cluster_bits, refcount_order;
	bool lazy_refcounts;
	u8 compression;
	const char *backing_name;    /* NULL: none */
	enum block_format backing_format;
};
bool qcow2_create(struct file *f, const struct qcow2_create *c, struct error *e);

#endif
