/* qcow2: a new image. Header, refcount table, refcount blocks, L1 table, one after the other; the header
 * is written last, so that a file that was left half made is no image. */
#include "block/qcow2.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct shape {
	u64 cluster, per_block, l1_entries, l1, blocks, table, all; /* bytes; then clusters */
};

static bool shape_of(const struct qcow2_create *c, struct shape *s, const char *path, struct error *e)
{
	u32 per_l1 = 2 * c->cluster_bits - 3;

	*s = (struct shape){ 0 };
	s->cluster = 1ull << c->cluster_bits;
	s->per_block = s->cluster * 8 >> c->refcount_order;
	s->l1_entries = (c->size >> per_l1) + !!(c->size & ((1ull << per_l1) - 1));
	s->l1_entries = MAX(s->l1_entries, 1ull);
	if (s->l1_entries * 8 > MAX_L1_BYTES)
		return error_set(e, "%s: clusters of %llu bytes are too small for so large a disk; larger ones (cluster-size, at most 2M) would do", path,
				 (unsigned long long)s->cluster);
	s->l1 = (s->l1_entries * 8 + s->cluster - 1) / s->cluster;
	s->blocks = s->table = 1;
	for (;;) {
		s->all = 1 + s->table + s->blocks + s->l1;
		u64 blocks = (s->all + s->per_block - 1) / s->per_block, table = (blocks * 8 + s->cluster - 1) / s->cluster;
		if (blocks <= s->blocks && table <= s->table)
			return true;
		s->blocks = MAX(blocks, s->blocks);
		s->table = MAX(table, s->table);
	}
}

static u32 put_extension(u8 *h, u32 at, u32 type, const void *body, u32 len)
{
	st32(h + at, htobe32(type));
	st32(h + at + 4, htobe32(len));
	memcpy(h + at + 8, body, len);
	return at + 8 + (len + 7) / 8 * 8;
}

static void put_feature(u8 *names, u32 *n, u8 type, u8 bit, const char *name)
{
	u8 *row = names + *n;

	row[0] = type;
	row[1] = bit;
	memcpy(row + 2, name, strlen(name));
	*n += 48;
}

static void fill_header(u8 *h, const struct qcow2_create *c, const struct shape *s)
{
	u8 names[48 * 4] = { 0 };
	u32 at = c->version < 3 ? HEADER_V2 : HEADER_MAX, n = 0;

	st32(h, htobe32(QCOW2_MAGIC));
	st32(h + 4, htobe32(c->version));
	st32(h + 20, htobe32(c->cluster_bits));
	st64(h + H_SIZE, htobe64(c->size));
	st32(h + H_L1, htobe32((u32)s->l1_entries));
	st64(h + H_L1 + 4, htobe64((1 + s->table + s->blocks) * s->cluster));
	st64(h + H_REFTABLE, htobe64(s->cluster));
	st32(h + H_REFTABLE + 8, htobe32((u32)s->table));
	if (c->version >= 3) {
		st64(h + H_FEATURES, htobe64(c->compression ? INCOMPAT_COMPRESSION : 0));
		st64(h + H_FEATURES + 8, htobe64(c->lazy_refcounts ? COMPAT_LAZY_REFCOUNTS : 0));
		st32(h + 96, htobe32(c->refcount_order));
		st32(h + 100, htobe32(HEADER_MAX));
		h[104] = c->compression;
	}
	if (c->backing_name && c->backing_format)
		at = put_extension(h, at, 0xe2792acau, block_format_words[c->backing_format], (u32)strlen(block_format_words[c->backing_format]));
	put_feature(names, &n, 0, 0, "dirty bit");
	put_feature(names, &n, 0, 1, "corrupt bit");
	put_feature(names, &n, 0, 3, "compression type");
	put_feature(names, &n, 1, 0, "lazy refcounts");
	if (c->version >= 3 && at + 8 + n + 8 + (c->backing_name ? strlen(c->backing_name) : 0) <= s->cluster)
		at = put_extension(h, at, 0x6803f857u, names, n);
	at += 8; /* the end of extensions: zeros */
	if (c->backing_name) {
		st64(h + 8, htobe64(at));
		st32(h + 16, htobe32((u32)strlen(c->backing_name)));
		memcpy(h + at, c->backing_name, strlen(c->backing_name));
	}
}

static int write_shape(struct file *f, const struct qcow2_create *c, const struct shape *s)
{
	u8 *buf = calloc(1, s->cluster);
	int err = buf ? 0 : ENOMEM;

	for (u64 k = 0; k < s->table && !err; k++) {
		memset(buf, 0, s->cluster);
		for (u64 i = 0; i < s->cluster / 8 && k * s->cluster / 8 + i < s->blocks; i++)
			st64(buf + i * 8, htobe64((1 + s->table + k * s->cluster / 8 + i) * s->cluster));
		err = file_write(f, (1 + k) * s->cluster, buf, s->cluster);
	}
	struct qcow2 counts = { .refcount_order = c->refcount_order };
	for (u64 k = 0; k < s->blocks && !err; k++) {
		memset(buf, 0, s->cluster);
		for (u64 i = 0; i < s->per_block && k * s->per_block + i < s->all; i++)
			refcount_into(buf, i, counts.refcount_order, 1);
		err = file_write(f, (1 + s->table + k) * s->cluster, buf, s->cluster);
	}
	if (buf)
		memset(buf, 0, s->cluster);
	for (u64 k = 0; k < s->l1 && !err; k++)
		err = file_write(f, (1 + s->table + s->blocks + k) * s->cluster, buf, s->cluster);
	if (!err)
		err = file_sync(f);
	if (!err) {
		fill_header(buf, c, s);
		err = file_write(f, 0, buf, s->cluster);
	}
	if (!err)
		err = file_sync(f);
	free(buf);
	return err;
}

bool qcow2_create(struct file *f, const struct qcow2_create *c, struct error *e)
{
	struct shape s;

	if (c->backing_name && strlen(c->backing_name) > MAX_BACKING_NAME)
		return error_set(e, "%s: the name of the image below is longer than %d characters", f->path, MAX_BACKING_NAME);
	if (c->backing_name && 160 + strlen(c->backing_name) > 1ull << c->cluster_bits)
		return error_set(e, "%s: the name of the image below does not fit into a cluster of %u bytes; larger ones would do", f->path, 1u << c->cluster_bits);
	if (!shape_of(c, &s, f->path, e))
		return false;
	int err = write_shape(f, c, &s);
	return !err || error_set(e, "%s: cannot be written: %s", f->path, strerror(err));
}
