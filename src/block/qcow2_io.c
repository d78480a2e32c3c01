/* Where the bytes of a qcow2 disk are, and where they go: L2 tables read and changed; commits. */
#include "block/qcow2.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- entries -------------------------------------------------------------------------- */

int entry_decode(struct qcow2 *q, u64 entry, enum entry_kind *kind)
{
	u64 host = entry & ENTRY_OFFSET;

	if (entry & ENTRY_COMPRESSED_BIT) {
		*kind = ENTRY_COMPRESSED;
		return entry & ENTRY_COPIED ? corrupt(q, "a compressed cluster's entry 0x%llx says it may be written", (unsigned long long)entry) : 0;
	}
	if (host & (q->cluster_size - 1))
		return corrupt(q, "an L2 entry 0x%llx is not of a cluster's begin", (unsigned long long)entry);
	if (entry & ENTRY_ZERO_BIT) {
		if (q->version < 3)
			return corrupt(q, "an L2 entry 0x%llx says zeros, which version 2 has not", (unsigned long long)entry);
		*kind = host ? ENTRY_ZERO_HOST : ENTRY_ZERO;
	} else {
		*kind = host ? ENTRY_HOST : ENTRY_NONE;
	}
	return 0;
}

void compressed_extent(const struct qcow2 *q, u64 entry, u64 *offset, u64 *len)
{
	unsigned shift = 62 - (q->cluster_bits - 8);

	*offset = entry & ((1ull << shift) - 1);
	*len = ((entry >> shift & ((1u << (q->cluster_bits - 8)) - 1)) + 1) * 512 - (*offset & 511);
}

static u64 l2_index(const struct qcow2 *q, u64 offset)
{
	return offset >> q->cluster_bits & ((1ull << q->l2_bits) - 1);
}

static u64 l1_index(const struct qcow2 *q, u64 offset)
{
	return offset >> (q->cluster_bits + q->l2_bits);
}

/* The table that the L1 entry names; *t NULL: none. */
static int l2_get(struct qcow2 *q, u64 index, struct table **t)
{
	u64 at = q->l1[index] & ENTRY_OFFSET;

	*t = NULL;
	if (!at)
		return 0;
	if (at & (q->cluster_size - 1))
		return corrupt(q, "L1 entry %llu is 0x%llx", (unsigned long long)index, (unsigned long long)q->l1[index]);
	return tables_get(q, &q->l2s, at, false, t);
}

/* The end of the range that the L2 table of offset is for, or offset + len if that comes first. */
static u64 l2_end(const struct qcow2 *q, u64 offset, u64 len)
{
	u64 range = 1ull << (q->cluster_bits + q->l2_bits);

	return MIN(offset + len, (offset & ~(range - 1)) + range);
}

/* How many clusters [offset, end) touches. */
static u64 span(const struct qcow2 *q, u64 offset, u64 end)
{
	return ((end - 1) >> q->cluster_bits) - (offset >> q->cluster_bits) + 1;
}

/* ---- reading -------------------------------------------------------------------------- */

static int qcow2_map(struct image *img, u64 offset, u64 len, struct map *m)
{
	struct qcow2 *q = qcow2_of(img);
	static const enum map_kind kinds[] = { MAP_BELOW, MAP_ZERO, MAP_ZERO, MAP_DATA, MAP_COMPRESSED };
	u64 end = l2_end(q, offset, len), i = l2_index(q, offset), in = offset & (q->cluster_size - 1);
	enum entry_kind first, kind;
	struct table *t;
	int err = l2_get(q, l1_index(q, offset), &t);

	*m = (struct map){ MAP_BELOW, img, 0, end - offset };
	if (err || !t)
		return err;
	u64 entry = l2_entry_get(t, i), n = span(q, offset, end), k = 1;
	err = entry_decode(q, entry, &first);
	if (err)
		return err;
	m->kind = kinds[first];
	if (m->kind == MAP_DATA)
		m->host = (entry & ENTRY_OFFSET) + in;
	for (; k < n && m->kind != MAP_COMPRESSED; k++) {
		u64 next = l2_entry_get(t, i + k);
		if (entry_decode(q, next, &kind) || kinds[kind] != m->kind)
			break;
		if (m->kind == MAP_DATA && (next & ENTRY_OFFSET) != (entry & ENTRY_OFFSET) + (k << q->cluster_bits))
			break;
	}
	m->len = MIN(end, (offset & ~(q->cluster_size - 1)) + (k << q->cluster_bits)) - offset;
	return 0;
}

int qcow2_read_compressed(struct image *img, u64 offset, void *buf, u64 len)
{
	struct qcow2 *q = qcow2_of(img);
	const u8 *plain;
	struct table *t;
	int err = l2_get(q, l1_index(q, offset), &t);

	if (!err)
		err = qcow2_decompress(q, l2_entry_get(t, l2_index(q, offset)), &plain);
	if (!err)
		memcpy(buf, plain + (offset & (q->cluster_size - 1)), len);
	return err;
}

/* ---- tables for writing ------------------------------------------------------------------ */

void l1_entry_set(struct qcow2 *q, u32 i, u64 entry)
{
	q->l1[i] = entry;
	if (q->l1_dirty_lo == q->l1_dirty_hi)
		q->l1_dirty_lo = i, q->l1_dirty_hi = i + 1;
	q->l1_dirty_lo = MIN(q->l1_dirty_lo, i);
	q->l1_dirty_hi = MAX(q->l1_dirty_hi, i + 1);
}

int l2_for_write(struct qcow2 *q, u64 index, struct table **out)
{
	u64 entry = q->l1[index], at;
	struct table *old, *t;
	int err = l2_get(q, index, &old);

	if (err || (old && entry & ENTRY_COPIED)) {
		*out = old;
		return err;
	}
	u8 *copy = old ? malloc(q->cluster_size) : NULL;
	if (old && !copy)
		return ENOMEM;
	if (old)
		memcpy(copy, old->data, q->cluster_size);
	err = alloc_table(q, 1, &at);
	if (!err)
		err = tables_get(q, &q->l2s, at, true, &t);
	if (!err) {
		if (old) {
			memcpy(t->data, copy, q->cluster_size);
			free_later(q, (entry & ENTRY_OFFSET) >> q->cluster_bits, 1);
		}
		l1_entry_set(q, (u32)index, at | ENTRY_COPIED);
		*out = t;
	}
	free(copy);
	return err;
}

/* ---- planning writes --------------------------------------------------------------------- */

enum write_class { WRITE_IN_PLACE, WRITE_KEEP, WRITE_NEW };

static int write_class(struct qcow2 *q, u64 entry, enum write_class *c)
{
	enum entry_kind kind;
	int err = entry_decode(q, entry, &kind);

	*c = WRITE_NEW;
	if (!err && entry & ENTRY_COPIED && (kind == ENTRY_HOST || kind == ENTRY_ZERO_HOST)) {
		*c = kind == ENTRY_HOST ? WRITE_IN_PLACE : WRITE_KEEP;
		if (cluster_set_has(&q->tables_at, (entry & ENTRY_OFFSET) >> q->cluster_bits))
			err = corrupt(q, "an L2 entry 0x%llx names a table's cluster for data", (unsigned long long)entry);
	}
	return err;
}

/* Entries from i on, at most n, that are to be written alike: in the host one after the other. */
static u64 alike(struct qcow2 *q, const struct table *t, u64 i, u64 n, enum write_class class)
{
	u64 first = l2_entry_get(t, i) & ENTRY_OFFSET, k = 1;
	enum write_class c;

	for (; k < n; k++) {
		u64 entry = l2_entry_get(t, i + k);
		if (write_class(q, entry, &c) || c != class)
			break;
		if (class != WRITE_NEW && (entry & ENTRY_OFFSET) != first + (k << q->cluster_bits))
			break;
	}
	return k;
}

static int qcow2_plan_write(struct image *img, u64 offset, u64 len, struct plan *p)
{
	struct qcow2 *q = qcow2_of(img);
	u64 end = l2_end(q, offset, len), i = l2_index(q, offset), in = offset & (q->cluster_size - 1);
	enum write_class class;
	struct table *t;

	int err = q->broken ? EIO : free_bound(q);
	if (!err)
		err = l2_for_write(q, l1_index(q, offset), &t);
	if (err)
		return err;
	u64 entry = l2_entry_get(t, i), cluster;
	err = write_class(q, entry, &class);
	if (err)
		return err;
	u64 n = alike(q, t, i, span(q, offset, end), class);
	*p = (struct plan){ .kind = class == WRITE_IN_PLACE ? PLAN_DIRECT : PLAN_ALLOC, .offset = offset, .keep = class == WRITE_KEEP };
	if (class == WRITE_NEW) {
		err = alloc_clusters(q, n, false, &cluster, &n, &p->fresh);
		if (err)
			return err;
		p->fresh = p->fresh && !img->file->device;
	} else {
		cluster = (entry & ENTRY_OFFSET) >> q->cluster_bits;
	}
	p->start = offset - in;
	p->end = p->start + (n << q->cluster_bits);
	p->host = (cluster << q->cluster_bits) + in;
	p->len = MIN(end, p->end) - offset;
	return 0;
}

static u64 plan_cluster(const struct qcow2 *q, const struct plan *p)
{
	return p->host >> q->cluster_bits;
}

static int qcow2_link(struct image *img, const struct plan *p)
{
	struct qcow2 *q = qcow2_of(img);
	struct table *t;
	int err = q->broken ? EIO : l2_for_write(q, l1_index(q, p->start), &t);

	if (err) {
		if (!p->keep)
			free_now(q, plan_cluster(q, p), (p->end - p->start) >> q->cluster_bits);
		return err;
	}
	u64 i = l2_index(q, p->start), n = (p->end - p->start) >> q->cluster_bits;
	for (u64 k = 0; k < n; k++) {
		u64 old = l2_entry_get(t, i + k);
		l2_entry_set(q, t, i + k, (plan_cluster(q, p) + k) << q->cluster_bits | ENTRY_COPIED);
		if (!p->keep)
			free_entry_later(q, old);
	}
	return 0;
}

static void qcow2_abandon(struct image *img, const struct plan *p)
{
	struct qcow2 *q = qcow2_of(img);

	if (!p->keep)
		free_now(q, plan_cluster(q, p), (p->end - p->start) >> q->cluster_bits);
}

/* ---- zeroes and discards ------------------------------------------------------------------ */

/* What an entry becomes when its cluster shall read as zeros (or, discard, may). */
static u64 zero_entry(const struct qcow2 *q, u64 entry, enum entry_kind kind, bool unmap)
{
	bool below = q->img.backing;

	switch (kind) {
	case ENTRY_NONE: return below ? ENTRY_ZERO_BIT : 0;
	case ENTRY_ZERO: return entry;
	case ENTRY_ZERO_HOST:
	case ENTRY_HOST:
		if (!unmap && entry & ENTRY_COPIED && q->version >= 3)
			return entry | ENTRY_ZERO_BIT;
		break;
	case ENTRY_COMPRESSED: break;
	}
	return below ? ENTRY_ZERO_BIT : 0;
}

static int zero_clusters(struct qcow2 *q, u64 offset, u64 n, bool unmap)
{
	struct table *t;
	enum entry_kind kind;
	int err = l2_get(q, l1_index(q, offset), &t);

	if (err || (!t && !q->img.backing))
		return err;
	u64 i = l2_index(q, offset);
	bool writable = false;
	for (u64 k = 0; k < n; k++) {
		u64 old = t ? l2_entry_get(t, i + k) : 0;
		err = entry_decode(q, old, &kind);
		if (err)
			return err;
		u64 new = zero_entry(q, old, kind, unmap);
		if (new == old)
			continue;
		if (!writable) {
			err = l2_for_write(q, l1_index(q, offset), &t);
			if (err)
				return err;
			writable = true;
		}
		l2_entry_set(q, t, i + k, new);
		if (!(new & ENTRY_OFFSET))
			free_entry_later(q, old);
	}
	return 0;
}

static int qcow2_plan_zero(struct image *img, u64 offset, u64 len, bool discard, bool unmap, struct plan *p)
{
	struct qcow2 *q = qcow2_of(img);
	u64 end = l2_end(q, offset, len), in = offset & (q->cluster_size - 1), stop = end & ~(q->cluster_size - 1);
	struct map m;
	int err = q->broken ? EIO : free_bound(q);

	if (err)
		return err;
	if (end == img->size) /* what is behind is nobody's */
		stop = end;
	*p = (struct plan){ .kind = PLAN_DONE, .offset = offset, .len = end - offset };
	bool whole = !in && stop > offset, can = q->version >= 3 || !img->backing;
	if (whole && can) {
		p->len = stop - offset;
		return zero_clusters(q, offset, span(q, offset, stop), unmap);
	}
	if (!whole)
		p->len = MIN(end - offset, q->cluster_size - in);
	if (discard)
		return 0;
	err = image_map(img, offset, p->len, &m);
	p->kind = !err && m.kind == MAP_ZERO ? PLAN_DONE : PLAN_WRITE;
	p->len = MIN(p->len, m.len);
	return err;
}

/* ---- commits ---------------------------------------------------------------------------- */

static int write_entries(struct qcow2 *q, const u64 *table, u64 offset, u32 *lo, u32 *hi)
{
	u32 n = *hi - *lo;
	u64 *raw = malloc(n * 8ull);

	if (!raw)
		return ENOMEM;
	for (u32 k = 0; k < n; k++)
		raw[k] = htobe64(table[*lo + k]);
	int err = file_write(q->img.file, offset + *lo * 8ull, raw, n * 8ull);
	free(raw);
	if (!err)
		*lo = *hi = 0;
	return err;
}

static int write_refcounts(struct qcow2 *q)
{
	int err = tables_write(q, &q->blocks);

	if (err || q->reft_dirty_lo == q->reft_dirty_hi)
		return err;
	err = file_sync(q->img.file);
	return err ? err : write_entries(q, q->reft, q->reft_offset, &q->reft_dirty_lo, &q->reft_dirty_hi);
}

int qcow2_commit(struct image *img, u64 *gen)
{
	struct qcow2 *q = qcow2_of(img);
	bool l1_dirty = q->l1_dirty_lo != q->l1_dirty_hi, lazy = q->compatible & COMPAT_LAZY_REFCOUNTS;
	int err;

	free_due(q);
	*gen = q->gen;
	if (q->broken)
		return EIO;
	bool names = q->l2s.dirty || l1_dirty;
	err = lazy && names ? header_set_dirty(q, true) : write_refcounts(q);
	if (err)
		return err;
	if (names || q->freed_n)
		*gen = ++q->gen;
	if (!names)
		return 0;
	err = file_sync(img->file);
	if (!err)
		err = tables_write(q, &q->l2s);
	if (!err && l1_dirty)
		err = file_sync(img->file);
	if (!err && l1_dirty)
		err = write_entries(q, q->l1, q->l1_offset, &q->l1_dirty_lo, &q->l1_dirty_hi);
	return err;
}

void qcow2_committed(struct image *img, u64 gen)
{
	struct qcow2 *q = qcow2_of(img);

	q->durable_gen = MAX(q->durable_gen, gen);
	free_due(q);
}

int qcow2_settle(struct qcow2 *q)
{
	u64 gen;
	int err;

	q->img.oldest = q->img.begun + 1; /* nothing is under way */
	do {
		err = qcow2_commit(&q->img, &gen);
		if (!err)
			err = file_sync(q->img.file);
		if (err)
			return err;
		qcow2_committed(&q->img, gen);
		err = write_refcounts(q);
	} while (!err && (q->blocks.dirty || q->l2s.dirty || q->freed_n));
	return err ? err : file_sync(q->img.file);
}

const struct format_ops qcow2_ops = {
	.name = "qcow2", .map = qcow2_map, .read_compressed = qcow2_read_compressed, .plan_write = qcow2_plan_write, .link = qcow2_link,
	.abandon = qcow2_abandon, .plan_zero = qcow2_plan_zero, .commit = qcow2_commit, .committed = qcow2_committed, .resize = qcow2_resize,
	.close = qcow2_close,
};
