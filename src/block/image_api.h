/* Images as a whole: what `ring3 img` offers. Everything here waits until it is done, and locks the image
 * against others that would be in its way. */
#ifndef RING3_BLOCK_IMAGE_API_H
#define RING3_BLOCK_IMAGE_API_H

#include "block/block.h"

struct image_create {
	const char *file;
	u32 format;           /* enum block_format; auto: by the file's name, .qcow2 or else raw */
	u64 size;             /* bytes; 0: that of the backing image */
	const char *backing;  /* NULL: none */
	u32 backing_format;
	/* qcow2; 0: the default */
	u64 cluster_size;     /* 512 to 2M; 64K */
	u64 version;          /* 2 or 3; 3 */
	u64 refcount_bits;    /* 1 to 64; 16 */
	bool lazy_refcounts;
	u32 compression;      /* 0 zlib, 1 zstd */
};
bool image_create(const struct image_create *c, struct error *e);

struct image_snapshot {
	const char *id, *name;
	u64 disk_size, vm_state_size, date_sec, vm_clock_ns;
};
struct image_info {
	char *file;
	enum block_format format;
	u64 size, allocated;  /* bytes: of the disk; that the host holds for the file */
	u64 cluster_size;     /* 0: raw, and all that follows with it */
	u32 version, refcount_bits;
	bool lazy_refcounts, dirty, corrupt, zstd;
	char *backing, *backing_path; /* as it is written; where that leads. NULL: none */
	enum block_format backing_format;
	struct image_snapshot *snapshots;
	u32 n_snapshots, n_bitmaps;
};
/* Also of images that are in use, dirty or damaged. */
bool image_info_get(const char *file, enum block_format format, struct image_info *info, struct error *e);
void image_info_free(struct image_info *info);

struct image_check {
	u64 corruptions, leaks;               /* found; leaks in clusters */
	u64 corruptions_mended, leaks_mended;
	u64 clusters, compressed, data_clusters; /* of the file; of the guest's: compressed, and all that are there */
	u64 end;                              /* of what is used, in the file */
};
typedef void image_message_fn(void *arg, const char *text);
typedef void image_progress_fn(void *arg, u64 done, u64 all);
/* False: it could not be checked, or not be mended; else the result says. say: each thing that is wrong. */
bool image_check(const char *file, enum block_format format, bool repair, struct image_check *result, image_message_fn *say, void *arg,
		 struct error *e);

struct image_convert {
	const char *from;
	u32 from_format;
	const char *from_snapshot;   /* a snapshot in it, NULL: as it is */
	struct image_create to;      /* size 0: the same */
	bool compress;
	image_progress_fn *progress; /* NULL, or called now and then with bytes */
	void *arg;
};
bool image_convert(const struct image_convert *c, struct error *e);

enum image_snapshot_op { SNAPSHOT_MAKE, SNAPSHOT_APPLY, SNAPSHOT_DELETE };
bool image_snapshot(const char *file, enum block_format format, enum image_snapshot_op op, const char *name, struct error *e);
/* shrink: to a smaller size as well; what is behind it is lost. */
bool image_resize(const char *file, enum block_format format, u64 size, bool shrink, struct error *e);

#endif
