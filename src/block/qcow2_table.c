/* Caches of L2 tables and of refcount blocks, bounded, written back.
 *
 * Invariants
 *  1. A table that was changed is on the dirty list until it is written.
 *  2. Refcount blocks may be written at any time: counts only ever rise early and fall late. L2 tables
 *     are written by a commit, so one that must make room makes the whole image commit. */
#include "block/qcow2.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

bool tables_init(struct tables *c, bool are_l2, u32 max)
{
	*c = (struct tables){ .are_l2 = are_l2, .max = max, .n_buckets = 16 };
	while (c->n_buckets < max)
		c->n_buckets *= 2;
	c->buckets = calloc(c->n_buckets, sizeof(*c->buckets));
	return c->buckets;
}

static struct table **bucket(const struct tables *c, u64 offset)
{
	return &c->buckets[(offset * 0x9e3779b97f4a7c15ull >> 32) & (c->n_buckets - 1)];
}

static void unlink_lru(struct tables *c, struct table *t)
{
	*(t->newer ? &t->newer->older : &c->newest) = t->older;
	*(t->older ? &t->older->newer : &c->oldest) = t->newer;
}

static void push_lru(struct tables *c, struct table *t)
{
	t->newer = NULL;
	t->older = c->newest;
	*(c->newest ? &c->newest->newer : &c->oldest) = t;
	c->newest = t;
}

static bool is_dirty(const struct table *t)
{
	return t->dirty_lo != t->dirty_hi;
}

static void drop(struct tables *c, struct table *t)
{
	struct table **p = bucket(c, t->offset);

	while (*p != t)
		p = &(*p)->hash_next;
	*p = t->hash_next;
	unlink_lru(c, t);
	if (is_dirty(t)) {
		for (p = &c->dirty; *p != t; p = &(*p)->dirty_next)
			;
		*p = t->dirty_next;
	}
	c->n--;
	free(t->data);
	free(t);
}

void tables_destroy(struct tables *c)
{
	while (c->newest)
		drop(c, c->newest);
	free(c->buckets);
	*c = (struct tables){ 0 };
}

void table_changed(struct tables *c, struct table *t, u32 lo, u32 hi)
{
	if (!is_dirty(t)) {
		t->dirty_lo = lo;
		t->dirty_hi = hi;
		t->dirty_next = c->dirty;
		c->dirty = t;
	}
	t->dirty_lo = MIN(t->dirty_lo, lo);
	t->dirty_hi = MAX(t->dirty_hi, hi);
}

int tables_write(struct qcow2 *q, struct tables *c)
{
	while (c->dirty) {
		struct table *t = c->dirty;
		/* Whole sectors, so that the host need not read what is around them. */
		u32 lo = t->dirty_lo & ~(BLOCK_SECTOR - 1), hi = (t->dirty_hi + BLOCK_SECTOR - 1) & ~(BLOCK_SECTOR - 1);
		int err = file_write(q->img.file, t->offset + lo, t->data + lo, hi - lo);
		if (err)
			return err;
		c->dirty = t->dirty_next;
		t->dirty_lo = t->dirty_hi = 0;
	}
	return 0;
}

static int make_room(struct qcow2 *q, struct tables *c)
{
	u64 gen;
	int err = 0;

	if (c->n < c->max)
		return 0;
	if (is_dirty(c->oldest))
		err = c->are_l2 ? qcow2_commit(&q->img, &gen) : tables_write(q, c);
	if (!err)
		drop(c, c->oldest);
	return err;
}

static struct table *find(struct tables *c, u64 offset)
{
	struct table *t = *bucket(c, offset);

	while (t && t->offset != offset)
		t = t->hash_next;
	return t;
}

int tables_get(struct qcow2 *q, struct tables *c, u64 offset, bool fresh, struct table **out)
{
	struct table *t = find(c, offset);

	if (t) {
		unlink_lru(c, t);
		push_lru(c, t);
	} else {
		int err = make_room(q, c);
		if (err)
			return err;
		t = calloc(1, sizeof(*t));
		if (!t || !(t->data = malloc(q->cluster_size)) ||
		    (err = fresh ? 0 : file_read(q->img.file, offset, t->data, q->cluster_size))) {
			if (t)
				free(t->data);
			free(t);
			return err ? err : ENOMEM;
		}
		t->offset = offset;
		t->hash_next = *bucket(c, offset);
		*bucket(c, offset) = t;
		push_lru(c, t);
		c->n++;
	}
	if (fresh) {
		memset(t->data, 0, q->cluster_size);
		table_changed(c, t, 0, (u32)q->cluster_size);
	}
	*out = t;
	return 0;
}

void tables_forget(struct tables *c, u64 offset)
{
	struct table *t = find(c, offset);

	if (t)
		drop(c, t);
}

void l2_entry_set(struct qcow2 *q, struct table *t, u64 i, u64 entry)
{
	((u64 *)(void *)t->data)[i] = htobe64(entry);
	table_changed(&q->l2s, t, (u32)i * 8, (u32)i * 8 + 8);
}
