/* Refcounts: how many table entries name a cluster.
 *
 * A range of clusters that no block counts is free as a whole, so a block that is made lies at the
 * beginning of its own range and counts itself. When the refcount table is full a larger one is made,
 * with the blocks that count it, behind all that was counted before, and the header is switched over. */
#include "block/qcow2.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

u64 refcount_in(const u8 *block, u64 i, u32 order)
{
	switch (order) {
	case 3: return block[i];
	case 4: return be16toh(((const u16 *)(const void *)block)[i]);
	case 5: return be32toh(((const u32 *)(const void *)block)[i]);
	case 6: return be64toh(((const u64 *)(const void *)block)[i]);
	default: { /* 1, 2 or 4 bits, the lowest first */
		u64 bit = i << order;
		return block[bit / 8] >> (bit % 8) & ((1u << (1u << order)) - 1);
	}
	}
}

void refcount_into(u8 *block, u64 i, u32 order, u64 v)
{
	switch (order) {
	case 3: block[i] = (u8)v; break;
	case 4: ((u16 *)(void *)block)[i] = htobe16((u16)v); break;
	case 5: ((u32 *)(void *)block)[i] = htobe32((u32)v); break;
	case 6: ((u64 *)(void *)block)[i] = htobe64(v); break;
	default: {
		u64 bit = i << order;
		unsigned mask = (1u << (1u << order)) - 1;
		block[bit / 8] = (u8)((block[bit / 8] & ~(mask << bit % 8)) | (unsigned)v << bit % 8);
	}
	}
}

u64 refcount_max(const struct qcow2 *q)
{
	return q->refcount_order == 6 ? UINT64_MAX : (1ull << (1u << q->refcount_order)) - 1;
}

u64 refcounts_per_block(const struct qcow2 *q)
{
	return q->cluster_size * 8 >> q->refcount_order;
}

static void reft_set(struct qcow2 *q, u32 i, u64 offset)
{
	q->reft[i] = offset;
	if (q->reft_dirty_lo == q->reft_dirty_hi)
		q->reft_dirty_lo = i, q->reft_dirty_hi = i + 1;
	q->reft_dirty_lo = MIN(q->reft_dirty_lo, i);
	q->reft_dirty_hi = MAX(q->reft_dirty_hi, i + 1);
}

int refcount_block_of(struct qcow2 *q, u64 cluster, struct table **t)
{
	u64 i = cluster / refcounts_per_block(q);

	*t = NULL;
	if (i >= q->reft_size || !q->reft[i])
		return 0;
	if (q->reft[i] & (q->cluster_size - 1) || q->reft[i] > ENTRY_OFFSET)
		return corrupt(q, "refcount table entry %llu is 0x%llx", (unsigned long long)i, (unsigned long long)q->reft[i]);
	return tables_get(q, &q->blocks, q->reft[i], false, t);
}

int refcount_get(struct qcow2 *q, u64 cluster, u64 *v)
{
	struct table *t;
	int err = refcount_block_of(q, cluster, &t);

	*v = err || !t ? 0 : refcount_in(t->data, cluster % refcounts_per_block(q), q->refcount_order);
	return err;
}

static void block_set(struct qcow2 *q, struct table *t, u64 i, u64 v)
{
	refcount_into(t->data, i, q->refcount_order, v);
	u32 at = (u32)((i << q->refcount_order) / 8);
	table_changed(&q->blocks, t, at, at + MAX(1u, (1u << q->refcount_order) / 8));
}

int refcount_set(struct qcow2 *q, u64 cluster, u64 v)
{
	struct table *t;
	int err = refcount_block_of(q, cluster, &t);

	if (!err && !t) {
		err = refcount_make_block(q, cluster);
		if (!err)
			err = refcount_block_of(q, cluster, &t);
	}
	if (!err)
		block_set(q, t, cluster % refcounts_per_block(q), v);
	return err;
}

/* ---- a larger refcount table -------------------------------------------------------------- */

struct layout {
	u64 first_block, n_blocks, n_table, entries; /* first_block: an index of the table, and where its clusters begin */
};

/* New blocks from first_block on, at the beginning of what they count, then the table. */
static bool plan_larger(const struct qcow2 *q, u64 need, struct layout *l)
{
	u64 per_block = refcounts_per_block(q), per_cluster = q->cluster_size / 8;

	l->first_block = MAX((u64)q->reft_size, need);
	l->n_blocks = 1;
	for (;;) {
		u64 entries = MAX(l->first_block + l->n_blocks, (u64)q->reft_size * 3 / 2);
		l->n_table = (entries + per_cluster - 1) / per_cluster;
		l->entries = l->n_table * per_cluster;
		u64 blocks = (l->n_blocks + l->n_table + per_block - 1) / per_block;
		if (blocks <= l->n_blocks)
			break;
		l->n_blocks = blocks;
	}
	return l->entries * 8 <= MAX_REFTABLE_BYTES;
}

static int write_larger(struct qcow2 *q, const struct layout *l, u64 *table, u64 table_offset)
{
	u64 per_block = refcounts_per_block(q), start = l->first_block * per_block, used = l->n_blocks + l->n_table;
	int err = 0;

	for (u64 k = 0; k < l->n_blocks && !err; k++) {
		struct table *t;
		u64 offset = (start + k) << q->cluster_bits;
		err = tables_get(q, &q->blocks, offset, true, &t);
		for (u64 i = 0; !err && i < per_block && k * per_block + i < used; i++)
			refcount_into(t->data, i, q->refcount_order, 1);
		table[l->first_block + k] = offset;
	}
	if (!err)
		err = tables_write(q, &q->blocks); /* the others, too: the new table names all blocks there are */
	u64 *raw = malloc(l->entries * 8);
	if (!raw)
		return ENOMEM;
	for (u64 k = 0; k < l->entries; k++)
		raw[k] = htobe64(table[k]);
	if (!err)
		err = file_write(q->img.file, table_offset, raw, l->entries * 8);
	free(raw);
	return err ? err : file_sync(q->img.file);
}

static int switch_table(struct qcow2 *q, const struct layout *l, u64 *table, u64 table_offset)
{
	u8 field[12];
	bool was;

	st64(field, htobe64(table_offset));
	st32(field + 8, htobe32((u32)l->n_table));
	int err = header_write(q, H_REFTABLE, field, sizeof(field));
	if (!err)
		err = file_sync(q->img.file);
	if (err)
		return err;
	u64 old = q->reft_offset >> q->cluster_bits, n_old = q->reft_clusters;
	free(q->reft);
	q->reft = table;
	q->reft_offset = table_offset;
	q->reft_clusters = (u32)l->n_table;
	q->reft_size = (u32)l->entries;
	q->reft_dirty_lo = q->reft_dirty_hi = 0;
	u64 start = l->first_block * refcounts_per_block(q);
	for (u64 k = 0; k < l->n_blocks + l->n_table; k++)
		if (!cluster_set_add(&q->tables_at, start + k, &was))
			return ENOMEM;
	q->zero_from = MAX(q->zero_from, (start + l->n_blocks + l->n_table) << q->cluster_bits);
	for (u64 k = 0; k < n_old; k++)
		cluster_set_remove(&q->tables_at, old + k);
	free_now(q, old, n_old);
	return 0;
}

static int grow_table(struct qcow2 *q, u64 need)
{
	struct layout l;

	if (!plan_larger(q, need, &l))
		return EFBIG;
	u64 *table = calloc(l.entries, 8);
	if (!table)
		return ENOMEM;
	memcpy(table, q->reft, (size_t)q->reft_size * 8);
	u64 at = (l.first_block * refcounts_per_block(q) + l.n_blocks) << q->cluster_bits;
	int err = write_larger(q, &l, table, at);
	if (!err)
		err = switch_table(q, &l, table, at);
	if (err && q->reft != table)
		free(table);
	return err;
}

int refcount_make_block(struct qcow2 *q, u64 cluster)
{
	u64 per_block = refcounts_per_block(q), i = cluster / per_block;
	struct table *t;
	bool was;

	if (i >= q->reft_size) {
		int err = grow_table(q, i);
		if (err || q->reft[i])
			return err;
	}
	u64 first = i * per_block;
	if (first << q->cluster_bits > ENTRY_OFFSET)
		return EFBIG;
	if (!cluster_set_add(&q->tables_at, first, &was))
		return ENOMEM;
	if (was)
		return corrupt(q, "a table lies at 0x%llx, where no refcount block counts", (unsigned long long)first << q->cluster_bits);
	int err = tables_get(q, &q->blocks, first << q->cluster_bits, true, &t);
	if (err)
		return err;
	block_set(q, t, 0, 1);
	reft_set(q, (u32)i, first << q->cluster_bits);
	q->zero_from = MAX(q->zero_from, (first + 1) << q->cluster_bits);
	return 0;
}
