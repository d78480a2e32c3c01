/* Images as a whole: made, described, checked, resized; snapshots in them. */
#define LOG_TOPIC "block"
#include "block/qcow2_tool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- create ----------------------------------------------------------------------------- */

static bool log2_of(const char *what, u64 v, u64 lo, u64 hi, u32 *bits, struct error *e)
{
	if (v < lo || v > hi || v & (v - 1))
		return error_set(e, "%s %llu: a power of two from %llu to %llu", what, (unsigned long long)v, (unsigned long long)lo, (unsigned long long)hi);
	*bits = (u32)__builtin_ctzll(v);
	return true;
}

/* The size and format of the image that a new one shall be on top of. */
static bool look_below(const struct image_create *c, u64 *size, enum block_format *format, struct error *e)
{
	char *path = image_backing_path(c->file, c->backing);
	struct image *below = path ? image_open(path, c->backing_format, 0, NULL, e) : NULL;

	struct stat a, b;
	bool same = path && !stat(path, &a) && !stat(c->file, &b) && a.st_dev == b.st_dev && a.st_ino == b.st_ino;

	if (!path)
		error_set(e, "out of memory");
	free(path);
	if (!below)
		return error_prefix(e, "the image below");
	if (same) {
		image_close(below);
		return error_set(e, "%s: an image cannot be below itself", c->file);
	}
	*size = below->size;
	*format = strcmp(below->ops->name, "raw") ? BLOCK_QCOW2 : BLOCK_RAW;
	image_close(below);
	return true;
}

static bool qcow2_options(const struct image_create *c, struct qcow2_create *q, struct error *e)
{
	q->version = c->version ? (u32)MIN(c->version, 99ull) : 3;
	q->lazy_refcounts = c->lazy_refcounts;
	q->compression = (u8)c->compression;
	if (!log2_of("cluster-size", c->cluster_size ? c->cluster_size : 64 << 10, 512, 2 << 20, &q->cluster_bits, e) ||
	    !log2_of("refcount-bits", c->refcount_bits ? c->refcount_bits : 16, 1, 64, &q->refcount_order, e))
		return false;
	if (q->version != 2 && q->version != 3)
		return error_set(e, "version %llu: 2 or 3", (unsigned long long)c->version);
	if (q->version == 2 && (q->refcount_order != 4 || q->lazy_refcounts || q->compression))
		return error_set(e, "version 2 has neither lazy-refcounts nor compression=zstd, and refcount-bits=16; version 3 has");
	return true;
}

static enum block_format format_of_name(const struct image_create *c)
{
	size_t n = strlen(c->file);

	if (c->format)
		return c->format;
	return c->backing || (n > 6 && !strcmp(c->file + n - 6, ".qcow2")) ? BLOCK_QCOW2 : BLOCK_RAW;
}

static bool create_raw(const struct image_create *c, struct error *e)
{
	u64 have = 0;
	struct file *f = file_create(c->file, e);

	if (!f)
		return false;
	int err = f->device ? file_size(f, &have) : file_truncate(f, c->size);
	bool small = !err && f->device && have < c->size;
	file_close(f);
	if (small)
		return error_set(e, "%s: the device has %llu bytes only", c->file, (unsigned long long)have);
	return !err || error_set(e, "%s: %s", c->file, strerror(err));
}

bool image_create(const struct image_create *c, struct error *e)
{
	enum block_format format = format_of_name(c), below_format = BLOCK_AUTO;
	struct qcow2_create q = { .size = c->size, .backing_name = c->backing };
	u64 below = 0;

	if (c->size % BLOCK_SECTOR)
		return error_set(e, "a size of %llu bytes: not of whole sectors, %u bytes each", (unsigned long long)c->size, BLOCK_SECTOR);
	if (c->size > INT64_MAX / 2)
		return error_set(e, "a size of %llu bytes: at most 4 EiB", (unsigned long long)c->size);
	if (format == BLOCK_RAW && (c->backing || c->cluster_size || c->version || c->refcount_bits || c->lazy_refcounts || c->compression))
		return error_set(e, "%s: a raw image has no options and nothing below it; format qcow2 has", c->file);
	if (format == BLOCK_RAW)
		return create_raw(c, e);
	if (!qcow2_options(c, &q, e) || (c->backing && !look_below(c, &below, &below_format, e)))
		return false;
	q.backing_format = below_format;
	if (!q.size)
		q.size = below;
	struct file *f = file_create(c->file, e);
	bool ok = f && qcow2_create(f, &q, e);
	file_close(f);
	return ok;
}

/* ---- info ------------------------------------------------------------------------------- */

static bool qcow2_info(struct qcow2 *q, struct image_info *info, struct error *e)
{
	info->cluster_size = q->cluster_size;
	info->version = q->version;
	info->refcount_bits = 1u << q->refcount_order;
	info->lazy_refcounts = q->compatible & COMPAT_LAZY_REFCOUNTS;
	info->dirty = q->incompatible & INCOMPAT_DIRTY;
	info->corrupt = q->incompatible & INCOMPAT_CORRUPT;
	info->zstd = q->compression;
	info->n_bitmaps = q->autoclear & AUTOCLEAR_BITMAPS ? q->n_bitmaps : 0;
	info->backing_format = q->backing_format;
	if (q->backing_name) {
		info->backing = strdup(q->backing_name);
		info->backing_path = image_backing_path(info->file, q->backing_name);
	}
	if (!snapshots_load(q, e))
		return false;
	info->snapshots = calloc(q->n_snapshots + 1ull, sizeof(*info->snapshots));
	for (u32 k = 0; info->snapshots && k < q->n_snapshots; k++) {
		struct snapshot *s = &q->snapshots[k];
		info->snapshots[k] = (struct image_snapshot){ strdup(s->id), strdup(s->name), s->disk_size, s->vm_state_size, s->date_sec, s->vm_clock_ns };
		info->n_snapshots++;
	}
	return true;
}

bool image_info_get(const char *file, enum block_format format, struct image_info *info, struct error *e)
{
	struct stat st;

	memset(info, 0, sizeof(*info));
	struct image *img = image_open(file, format, OPEN_NO_BACKING | OPEN_NO_LOCK | OPEN_CHECK, NULL, e);
	if (!img)
		return false;
	bool raw = !strcmp(img->ops->name, "raw");
	info->file = strdup(file);
	info->format = raw ? BLOCK_RAW : BLOCK_QCOW2;
	info->size = img->size;
	if (!fstat(img->file->fd, &st))
		info->allocated = (u64)st.st_blocks * 512;
	bool ok = raw || qcow2_info(container_of(img, struct qcow2, img), info, e);
	image_close(img);
	if (!ok)
		image_info_free(info);
	return ok;
}

void image_info_free(struct image_info *info)
{
	for (u32 k = 0; k < info->n_snapshots; k++) {
		free((char *)(uintptr_t)info->snapshots[k].id);
		free((char *)(uintptr_t)info->snapshots[k].name);
	}
	free(info->snapshots);
	free(info->file);
	free(info->backing);
	free(info->backing_path);
	memset(info, 0, sizeof(*info));
}

/* ---- check, resize, snapshots -------------------------------------------------------------- */

static struct qcow2 *open_qcow2(const char *file, enum block_format format, unsigned flags, const char *what, struct error *e)
{
	struct image *img = image_open(file, format, flags | OPEN_NO_BACKING, NULL, e);

	if (!img)
		return NULL;
	img->free_host = true;
	if (strcmp(img->ops->name, "raw"))
		return qcow2_of(img);
	image_close(img);
	error_set(e, "%s: a raw image %s; a qcow2 one can (ring3 img convert makes one)", file, what);
	return NULL;
}

static bool close_image(struct image *img, const char *file, bool ok, struct error *e)
{
	int err = image_close(img);

	return ok && (!err || error_set(e, "%s: %s", file, strerror(err)));
}

bool image_check(const char *file, enum block_format format, bool repair, struct image_check *result, image_message_fn *say, void *arg,
		 struct error *e)
{
	struct qcow2 *q = open_qcow2(file, format, OPEN_CHECK | (repair ? OPEN_WRITE : 0), "cannot be checked", e);

	return q && close_image(&q->img, file, qcow2_check(q, repair ? REPAIR_ALL : REPAIR_NOTHING, result, say, arg, e), e);
}

bool image_snapshot(const char *file, enum block_format format, enum image_snapshot_op op, const char *name, struct error *e)
{
	struct qcow2 *q = open_qcow2(file, format, OPEN_WRITE, "has no snapshots inside", e);

	if (!q)
		return false;
	bool ok = op == SNAPSHOT_MAKE ? qcow2_snapshot_make(q, name, e) : op == SNAPSHOT_APPLY ? qcow2_snapshot_apply(q, name, e)
		: qcow2_snapshot_delete(q, name, e);
	return close_image(&q->img, file, ok, e);
}

/* What is new reads as zeros, also where an image below goes on, or a cluster that was cut. */
static int zero_new(const char *file, enum block_format format, u64 from, u64 size, struct error *e)
{
	struct block_options o = { .file = (char *)(uintptr_t)file, .format = format };
	struct block *b = block_open(&o, NULL, e);

	if (!b)
		return EIO;
	int err = block_zero(b, from, size - from, true);
	bool ok = block_close(b, e);
	if (err)
		error_set(e, "%s: %s", file, strerror(err));
	return err ? err : !ok;
}

bool image_resize(const char *file, enum block_format format, u64 size, bool shrink, struct error *e)
{
	struct image *img = image_open(file, format, OPEN_WRITE, NULL, e);

	if (!img)
		return false;
	img->free_host = true;
	u64 before = img->size;
	bool raw = !strcmp(img->ops->name, "raw"), ok = true;
	if (size > INT64_MAX / 2)
		ok = error_set(e, "a size of %llu bytes: at most 4 EiB", (unsigned long long)size);
	else if (size % BLOCK_SECTOR)
		ok = error_set(e, "a size of %llu bytes: not of whole sectors, %u bytes each", (unsigned long long)size, BLOCK_SECTOR);
	else if (size < before && !shrink)
		ok = error_set(e, "%s: it has %llu bytes; what is behind the new end would be lost: --shrink says that this is meant", file,
			       (unsigned long long)before);
	else if (raw && img->file->device)
		ok = error_set(e, "%s: a block device has the size that it has", file);
	int err = ok && size != before ? img->ops->resize(img, size) : 0;
	if (err)
		ok = error_set(e, "%s: %s", file, err == EFBIG ? "too large for clusters of its size" : strerror(err));
	ok = close_image(img, file, ok, e);
	return ok && (raw || size <= before || !zero_new(file, BLOCK_QCOW2, before, size, e));
}
