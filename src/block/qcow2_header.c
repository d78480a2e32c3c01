/* qcow2: opening and closing, the header.
 *
 * A header is read once, checked, and from then on changed field by field: each lies within one sector of the
 * file, so that a crash leaves the old one or the new. */
#define LOG_TOPIC "block"
#include "block/qcow2_tool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define EXT_END 0u
#define EXT_BACKING_FORMAT 0xe2792acau
#define EXT_FEATURE_NAMES 0x6803f857u
#define EXT_BITMAPS 0x23852875u
#define EXT_ENCRYPTION 0x0537be77u
#define EXT_DATA_FILE 0x44415441u

#define L2_CACHE (32u << 20)
#define BLOCK_CACHE (8u << 20)

/* A repair at opening may read this much of tables: about a second's worth. */
#define MAX_REPAIR (512ull << 20)
#define MAX_REPAIR_CLUSTERS (16u << 20)

static u32 be32(const u8 *p) { return be32toh(ld32(p)); }
static u64 be64(const u8 *p) { return be64toh(ld64(p)); }

int header_write(struct qcow2 *q, u32 at, const void *buf, u32 len)
{
	return file_write(q->img.file, at, buf, len);
}

static int write_features(struct qcow2 *q)
{
	u8 field[24];

	st64(field, htobe64(q->incompatible));
	st64(field + 8, htobe64(q->compatible));
	st64(field + 16, htobe64(q->autoclear));
	return q->version < 3 ? 0 : header_write(q, H_FEATURES, field, sizeof(field));
}

int header_set_dirty(struct qcow2 *q, bool dirty)
{
	if (q->version < 3 || !!(q->incompatible & INCOMPAT_DIRTY) == dirty)
		return 0;
	q->incompatible ^= INCOMPAT_DIRTY;
	int err = write_features(q);
	return err ? err : file_sync(q->img.file);
}

int corrupt(struct qcow2 *q, const char *fmt, ...)
{
	va_list ap;

	if (q->checking || q->broken)
		return EIO;
	va_start(ap, fmt);
	vsnprintf(q->why, sizeof(q->why), fmt, ap);
	va_end(ap);
	if (q->opening)
		return EIO;
	log_error("%s: the image is damaged: %s; ring3 img check says more", q->img.file->path, q->why);
	if (!q->img.read_only) {
		q->incompatible |= INCOMPAT_CORRUPT;
		write_features(q);
	}
	q->broken = true;
	return EIO;
}

/* ---- reading it --------------------------------------------------------------------------- */

static bool refuse(const struct qcow2 *q, struct error *e, const char *why)
{
	return error_set(e, "%s: %s", q->img.file->path, why);
}

static void unknown_features(const u8 *names, u32 len, u64 bits, char *buf, size_t cap)
{
	size_t n = 0;

	for (unsigned bit = 0; bit < 64 && n < cap; bit++) {
		if (!(bits >> bit & 1))
			continue;
		const u8 *name = NULL;
		for (u32 k = 0; k + 48 <= len; k += 48)
			if (names[k] == 0 && names[k + 1] == bit)
				name = names + k + 2;
		n += (size_t)snprintf(buf + n, cap - n, "%s%.*s (bit %u)", n ? ", " : "", name ? 46 : 7, name ? (const char *)name : "unknown", bit);
	}
	for (char *c = buf; *c; c++) /* what an image calls it goes to a terminal */
		if (*c < ' ' || *c > '~')
			*c = '?';
}

struct extensions {
	const u8 *feature_names;
	u32 feature_names_len;
	bool data_file, encryption;
};

static bool read_extensions(struct qcow2 *q, const u8 *h, u64 end, struct extensions *x, struct error *e)
{
	for (u64 at = q->header_length; at + 8 <= end;) {
		u32 type = be32(h + at), len = be32(h + at + 4);
		const u8 *body = h + at + 8;
		if (type == EXT_END)
			break;
		if (len > end - at - 8)
			return refuse(q, e, "a header extension goes beyond its place");
		if (type == EXT_BACKING_FORMAT) {
			q->backing_format = len == 3 && !memcmp(body, "raw", 3) ? BLOCK_RAW : len == 5 && !memcmp(body, "qcow2", 5) ? BLOCK_QCOW2 : BLOCK_AUTO;
			if (q->backing_format == BLOCK_AUTO && len)
				return error_set(e, "%s: the format \"%.*s\" of the image below is none that can be read; raw and qcow2 can", q->img.file->path,
						 (int)MIN(len, 16u), (const char *)body);
		} else if (type == EXT_FEATURE_NAMES) {
			x->feature_names = body;
			x->feature_names_len = len;
		} else if (type == EXT_BITMAPS && len >= 24) {
			q->n_bitmaps = be32(body);
			q->bitmaps_size = be64(body + 8);
			q->bitmaps_offset = be64(body + 16);
		} else if (type == EXT_ENCRYPTION) {
			x->encryption = true;
		} else if (type == EXT_DATA_FILE) {
			x->data_file = true;
		}
		at += 8 + ((u64)len + 7) / 8 * 8;
	}
	return true;
}

static bool check_features(struct qcow2 *q, const struct extensions *x, u32 crypt, struct error *e)
{
	u64 known = INCOMPAT_DIRTY | INCOMPAT_CORRUPT | INCOMPAT_COMPRESSION;
	char names[256] = "";

	if (crypt || x->encryption)
		return refuse(q, e, "encrypted images cannot be used; qemu-img convert makes a plain one of it");
	if (q->incompatible & INCOMPAT_DATA_FILE || x->data_file)
		return refuse(q, e, "images with an external data file cannot be used; qemu-img convert makes one without");
	if (q->incompatible & INCOMPAT_EXTENDED_L2)
		return refuse(q, e, "images with extended L2 entries cannot be used; qemu-img convert -o extended_l2=off makes one without");
	if (q->incompatible & ~known) {
		unknown_features(x->feature_names, x->feature_names_len, q->incompatible & ~known, names, sizeof(names));
		return error_set(e, "%s: the image uses what this program does not know: %s", q->img.file->path, names);
	}
	if (q->compression > 1 || !q->compression != !(q->incompatible & INCOMPAT_COMPRESSION))
		return refuse(q, e, "its compression is neither zlib nor zstd");
	return true;
}

static bool read_backing_name(struct qcow2 *q, const u8 *h, u64 have, struct error *e)
{
	u64 at = be64(h + 8);
	u32 len = be32(h + 16);

	if (!at || !len)
		return true;
	if (len > MAX_BACKING_NAME || at > have || len > have - at)
		return refuse(q, e, "the name of the image below lies outside its place");
	if (!(q->backing_name = strndup((const char *)h + at, len)))
		return refuse(q, e, "out of memory");
	return true;
}

static bool read_fields(struct qcow2 *q, const u8 *h, struct error *e)
{
	if (be32(h) != QCOW2_MAGIC)
		return refuse(q, e, "not a qcow2 image; format=raw takes it as it is");
	q->version = be32(h + 4);
	if (q->version < 2 || q->version > 3)
		return error_set(e, "%s: qcow2 version %u; 2 and 3 can be used", q->img.file->path, q->version);
	q->cluster_bits = be32(h + 20);
	if (q->cluster_bits < 9 || q->cluster_bits > 21)
		return error_set(e, "%s: clusters of 2^%u bytes; 2^9 to 2^21 can be", q->img.file->path, q->cluster_bits);
	q->cluster_size = 1ull << q->cluster_bits;
	q->l2_bits = q->cluster_bits - 3;
	q->img.size = be64(h + H_SIZE);
	q->l1_size = be32(h + H_L1);
	q->l1_offset = be64(h + H_L1 + 4);
	q->reft_offset = be64(h + H_REFTABLE);
	q->reft_clusters = be32(h + H_REFTABLE + 8);
	q->n_snapshots = be32(h + H_SNAPSHOTS);
	q->snapshots_offset = be64(h + H_SNAPSHOTS + 4);
	q->header_length = HEADER_V2;
	q->refcount_order = 4;
	if (q->version < 3)
		return true;
	q->incompatible = be64(h + H_FEATURES);
	q->compatible = be64(h + H_FEATURES + 8);
	q->autoclear = be64(h + H_FEATURES + 16);
	q->refcount_order = be32(h + 96);
	q->header_length = be32(h + 100);
	if (q->header_length < HEADER_V3 || q->header_length > q->cluster_size)
		return refuse(q, e, "the header's length is wrong");
	q->compression = q->header_length > HEADER_V3 ? h[104] : 0;
	return q->refcount_order <= 6 || refuse(q, e, "refcounts of more than 64 bits");
}

/* Whether n bytes at offset may be a table: at a cluster's begin, in the file. */
static bool table_place(const struct qcow2 *q, u64 offset, u64 n, u64 file_size)
{
	return !(offset & (q->cluster_size - 1)) && offset >= q->cluster_size && offset <= file_size && n <= file_size - offset;
}

static bool check_places(const struct qcow2 *q, u64 file_size, struct error *e)
{
	u64 per_l1 = q->cluster_bits + q->l2_bits;
	u64 need = (q->img.size >> per_l1) + !!(q->img.size & ((1ull << per_l1) - 1));

	if (q->img.size > INT64_MAX / 2)
		return refuse(q, e, "its size is more than 4 EiB");
	if (q->l1_size * 8ull > MAX_L1_BYTES)
		return refuse(q, e, "its L1 table is larger than 32 MiB");
	if (q->l1_size < need)
		return refuse(q, e, "its L1 table is too small for its size");
	if (q->l1_size && !table_place(q, q->l1_offset, q->l1_size * 8ull, file_size))
		return refuse(q, e, "its L1 table lies outside the file");
	if (q->checking)
		return true;
	if (!q->reft_clusters || (u64)q->reft_clusters << q->cluster_bits > MAX_REFTABLE_BYTES)
		return refuse(q, e, "its refcount table is empty or larger than 8 MiB");
	if (!table_place(q, q->reft_offset, 1, file_size))
		return refuse(q, e, "its refcount table lies outside the file");
	if (q->n_snapshots > MAX_SNAPSHOTS || (q->n_snapshots && !table_place(q, q->snapshots_offset, 1, file_size)))
		return refuse(q, e, "its snapshots lie outside the file, or are more than 65536");
	return true;
}

static bool read_header(struct qcow2 *q, u64 file_size, struct error *e)
{
	u8 small[HEADER_MAX], *h = NULL;
	struct extensions x = { 0 };
	bool ok = false;
	int err = file_read(q->img.file, 0, small, sizeof(small));

	if (!err && !read_fields(q, small, e))
		return false;
	if (!err)
		err = (h = malloc(q->cluster_size)) ? file_read(q->img.file, 0, h, q->cluster_size) : ENOMEM;
	if (err) {
		free(h);
		return error_set(e, "%s: its header: %s", q->img.file->path, strerror(err));
	}
	u64 end = be64(h + 8) && be64(h + 8) < q->cluster_size ? be64(h + 8) : q->cluster_size;
	if (read_extensions(q, h, end, &x, e) && check_features(q, &x, be32(h + 32), e) && read_backing_name(q, h, q->cluster_size, e))
		ok = check_places(q, file_size, e);
	free(h);
	return ok;
}

/* ---- tables ----------------------------------------------------------------------------- */

static u64 *load_table(struct qcow2 *q, u64 offset, u64 n, const char *what, struct error *e)
{
	u64 *table = malloc(n * 8 + 8);
	int err = table ? file_read(q->img.file, offset, table, n * 8) : ENOMEM;

	if (err) {
		error_set(e, "%s: its %s: %s", q->img.file->path, what, strerror(err));
		free(table);
		return NULL;
	}
	for (u64 k = 0; k < n; k++)
		table[k] = be64toh(table[k]);
	return table;
}

static int take(struct qcow2 *q, u64 offset, u64 bytes)
{
	bool was = false;

	for (u64 k = 0; k < to_clusters(q, bytes); k++) {
		u64 c = (offset >> q->cluster_bits) + k;
		if (!cluster_set_add(&q->tables_at, c, &was))
			return ENOMEM;
		if (was)
			return corrupt(q, "two tables share the cluster at 0x%llx", (unsigned long long)c << q->cluster_bits);
	}
	return 0;
}

int tables_at_fill(struct qcow2 *q)
{
	u64 n = 0;

	for (u32 k = 0; k < q->reft_size; k++)
		n += !!q->reft[k];
	for (u32 k = 0; k < q->l1_size; k++)
		n += !!(q->l1[k] & ENTRY_OFFSET);
	cluster_set_destroy(&q->tables_at);
	int err = cluster_set_reserve(&q->tables_at, n) ? take(q, 0, q->cluster_size) : ENOMEM;
	if (!err)
		err = take(q, q->l1_offset, q->l1_size * 8ull);
	if (!err)
		err = take(q, q->reft_offset, (u64)q->reft_clusters << q->cluster_bits);
	if (!err && q->n_snapshots)
		err = take(q, q->snapshots_offset, q->snapshots_bytes);
	for (u32 k = 0; k < q->reft_size && !err; k++)
		if (q->reft[k])
			err = q->reft[k] & (q->cluster_size - 1) || q->reft[k] > ENTRY_OFFSET ? corrupt(q, "refcount table entry %u is 0x%llx", k,
				(unsigned long long)q->reft[k]) : take(q, q->reft[k], 1);
	for (u32 k = 0; k < q->l1_size && !err; k++) {
		u64 at = q->l1[k] & ENTRY_OFFSET;
		if (at & (q->cluster_size - 1))
			err = corrupt(q, "L1 entry %u is 0x%llx", k, (unsigned long long)q->l1[k]);
		else if (at && (q->l1[k] & ENTRY_COPIED || !cluster_set_has(&q->tables_at, at >> q->cluster_bits)))
			err = take(q, at, 1); /* one that is shared, a repair may have left to two entries */
	}
	return err;
}

static bool load_for_writing(struct qcow2 *q, u64 file_size, struct error *e)
{
	q->reft_size = (u32)(((u64)q->reft_clusters << q->cluster_bits) / 8);
	if (!(q->reft = load_table(q, q->reft_offset, q->reft_size, "refcount table", e)) || !snapshots_load(q, e))
		return false;
	q->zero_from = q->img.file->device ? UINT64_MAX : to_clusters(q, file_size) << q->cluster_bits;
	return true;
}

static u64 work_to_check(const struct qcow2 *q)
{
	u64 n = 0;

	for (u32 k = 0; k < q->l1_size; k++)
		n += !!(q->l1[k] & ENTRY_OFFSET);
	for (u32 k = 0; k < q->reft_size; k++)
		n += !!q->reft[k];
	for (u32 k = 0; k < q->n_snapshots; k++)
		n += (q->snapshots[k].l1_size >> q->l2_bits) + 1 + q->snapshots[k].l1_size;
	return n << q->cluster_bits;
}

/* Not closed the last time: refcounts may be wrong, the rest is as it was committed. */
static bool mend(struct qcow2 *q, u64 file_size, struct error *e)
{
	struct image_check r;

	if (work_to_check(q) > MAX_REPAIR || to_clusters(q, file_size) > MAX_REPAIR_CLUSTERS)
		return refuse(q, e, "it was not closed, and is large: ring3 img check --repair mends it");
	log_info("%s: it was not closed; its refcounts are mended", q->img.file->path);
	q->checking = true;
	bool ok = qcow2_check(q, REPAIR_COUNTS, &r, NULL, NULL, e);
	q->checking = false;
	return ok && (r.corruptions == r.corruptions_mended || refuse(q, e, "it is damaged; ring3 img check says more"));
}

static bool prepare_writing(struct qcow2 *q, u64 file_size, struct error *e)
{
	if (q->incompatible & INCOMPAT_CORRUPT)
		return refuse(q, e, "it is marked as damaged; ring3 img check --repair mends it, read-only it can be looked at");
	if (q->incompatible & INCOMPAT_DIRTY && !mend(q, file_size, e))
		return false;
	q->opening = true;
	int err = tables_at_fill(q);
	q->opening = false;
	if (err && q->why[0])
		return error_set(e, "%s: it is damaged: %s; ring3 img check says more", q->img.file->path, q->why);
	if (!err && q->autoclear) {
		q->autoclear = 0; /* what these bits stand for is not kept up */
		err = write_features(q);
	}
	return !err || error_set(e, "%s: %s", q->img.file->path, strerror(err));
}

static bool open_backing(struct qcow2 *q, unsigned flags, unsigned depth, struct error *e)
{
	if (!q->backing_name || flags & OPEN_NO_BACKING)
		return true;
	const char *name = !strncmp(q->backing_name, "file:", 5) ? q->backing_name + 5 : q->backing_name;
	char *path = image_backing_path(q->img.file->path, name);
	if (!path)
		return refuse(q, e, "out of memory");
	q->img.backing = image_open_below(path, q->backing_format, flags, depth + 1, e);
	free(path);
	if (!q->img.backing && !depth) /* the one that cannot be opened names itself */
		error_prefix(e, "%s: the image below", q->img.file->path);
	return q->img.backing;
}

static u32 cache_size(const struct qcow2 *q, u64 bytes)
{
	return (u32)MAX(bytes >> q->cluster_bits, 8ull);
}

static bool load(struct qcow2 *q, unsigned flags, unsigned depth, struct error *e)
{
	u64 size;
	int err = file_size(q->img.file, &size);

	if (err)
		return error_set(e, "%s: its size: %s", q->img.file->path, strerror(err));
	if (!read_header(q, size, e))
		return false;
	q->img.granularity = (u32)q->cluster_size;
	/* A disk is of whole sectors; what is above reads as zeros. */
	q->img.size = (q->img.size + BLOCK_SECTOR - 1) & ~(u64)(BLOCK_SECTOR - 1);
	u32 l2s = cache_size(q, L2_CACHE); /* no more than there are, with some room for snapshots' */
	if (!tables_init(&q->l2s, true, MIN(l2s, q->l1_size + 64)) || !tables_init(&q->blocks, false, cache_size(q, BLOCK_CACHE)))
		return refuse(q, e, "out of memory");
	if (!(q->l1 = load_table(q, q->l1_offset, q->l1_size, "L1 table", e)))
		return false;
	if (!open_backing(q, flags, depth, e))
		return false;
	if (flags & OPEN_CHECK || q->img.read_only)
		return true;
	return load_for_writing(q, size, e) && prepare_writing(q, size, e);
}

static void qcow2_free(struct qcow2 *q)
{
	tables_destroy(&q->l2s);
	tables_destroy(&q->blocks);
	cluster_set_destroy(&q->tables_at);
	snapshots_free(q);
	free(q->l1);
	free(q->reft);
	free(q->freed);
	free(q->plain);
	free(q->packed);
	free(q->backing_name);
	file_close(q->img.file);
	free(q);
}

struct image *qcow2_open(struct file *f, unsigned flags, unsigned depth, struct error *e)
{
	struct qcow2 *q = calloc(1, sizeof(*q));

	if (!q) {
		error_set(e, "%s: out of memory", f->path);
		file_close(f);
		return NULL;
	}
	q->img.ops = &qcow2_ops;
	q->img.file = f;
	q->img.read_only = f->read_only;
	q->img.oldest = 1;
	q->checking = flags & OPEN_CHECK;
	if (load(q, flags, depth, e))
		return &q->img;
	image_close(q->img.backing);
	qcow2_free(q);
	return NULL;
}

struct image *qcow2_overlay(struct file *f, struct image *below, struct error *e)
{
	struct qcow2_create c = { .size = below->size, .version = 3, .cluster_bits = 16, .refcount_order = 4 };
	struct image *img = NULL;

	if (qcow2_create(f, &c, e))
		img = qcow2_open(f, OPEN_WRITE | OPEN_NO_BACKING, 0, e);
	else
		file_close(f);
	if (img)
		img->backing = below;
	else
		image_close(below);
	return img;
}

int qcow2_close(struct image *img)
{
	struct qcow2 *q = qcow2_of(img);
	int err = 0;

	if (!img->read_only && !q->checking && !q->broken) {
		err = qcow2_settle(q);
		if (!err && !q->unclean)
			err = header_set_dirty(q, false);
	}
	qcow2_free(q);
	return err;
}
