/* Which clusters of the file are used, and the freeing of them.
 *
 * A cluster that a table named is freed in two steps: free_later puts it on a queue when the table in memory
 * names it no more; free_due counts it down when that table is durable (its commit's generation) and all
 * requests are over that were under way (they may still read or write there). See qcow2.h, 2. */
#include "block/qcow2.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FREED 65536 /* runs of clusters; then a commit comes by itself */

/* ---- allocation ----------------------------------------------------------------------- */

/* Moves *at to a cluster that is free, and says how many follow that are, up to want. */
static int find_run(struct qcow2 *q, u64 *at, u64 want, u64 *n)
{
	u64 v = 0;
	int err;

	*n = 0;
	while (*n < want) {
		u64 c = *at + *n;
		if (c << q->cluster_bits > ENTRY_OFFSET)
			return EFBIG;
		u64 block = c / refcounts_per_block(q);
		if (block >= q->reft_size || !q->reft[block]) {
			if (*n)
				return 0;
			err = refcount_make_block(q, c);
			if (err)
				return err;
		}
		err = refcount_get(q, c, &v);
		if (err)
			return err;
		if (!v)
			++*n;
		else if (*n)
			return 0;
		else
			++*at;
	}
	return 0;
}

int alloc_clusters(struct qcow2 *q, u64 want, bool exact, u64 *cluster, u64 *got, bool *fresh)
{
	u64 at, n;
	int err;

	free_due(q);
	err = find_run(q, &q->hint, 1, &n);
	at = q->hint;
	while (!err) {
		err = find_run(q, &at, want, &n);
		if (err || n == want || !exact)
			break;
		at += n;
	}
	for (u64 k = 0; !err && k < n; k++) {
		if (cluster_set_has(&q->tables_at, at + k))
			err = corrupt(q, "cluster 0x%llx holds a table and counts as free", (unsigned long long)(at + k) << q->cluster_bits);
		else
			err = refcount_set(q, at + k, 1);
	}
	if (err)
		return err;
	if (at == q->hint)
		q->hint = at + n;
	*cluster = at;
	*got = n;
	*fresh = at << q->cluster_bits >= q->zero_from;
	q->zero_from = MAX(q->zero_from, (at + n) << q->cluster_bits);
	return 0;
}

int alloc_table(struct qcow2 *q, u64 n, u64 *offset)
{
	u64 cluster, got;
	bool fresh, was;
	int err = alloc_clusters(q, n, true, &cluster, &got, &fresh);

	for (u64 k = 0; !err && k < n; k++)
		if (!cluster_set_add(&q->tables_at, cluster + k, &was))
			err = ENOMEM;
	*offset = cluster << q->cluster_bits;
	return err;
}

/* ---- freeing -------------------------------------------------------------------------- */

static void count_down(struct qcow2 *q, u64 cluster)
{
	u64 v;

	if (refcount_get(q, cluster, &v))
		return; /* a leak; the image is marked corrupt if that is what it is */
	if (!v) {
		corrupt(q, "cluster 0x%llx is freed and counts as free", (unsigned long long)cluster << q->cluster_bits);
		return;
	}
	if (refcount_set(q, cluster, v - 1) || v > 1)
		return;
	tables_forget(&q->l2s, cluster << q->cluster_bits);
	cluster_set_remove(&q->tables_at, cluster);
	q->hint = MIN(q->hint, cluster);
}

void free_now(struct qcow2 *q, u64 cluster, u64 n)
{
	for (u64 k = 0; k < n; k++)
		count_down(q, cluster + k);
}

void free_later(struct qcow2 *q, u64 cluster, u64 n)
{
	struct freed *last = q->freed_n ? &q->freed[(q->freed_first + q->freed_n - 1) % q->freed_cap] : NULL;
	u64 gen = q->gen + 1, seq = q->img.begun;

	if (last && last->gen == gen && last->seq == seq && last->cluster + last->n == cluster) {
		last->n += n;
		return;
	}
	if (q->freed_n == q->freed_cap) {
		size_t cap = q->freed_cap ? q->freed_cap * 2 : 64;
		struct freed *bigger = malloc(cap * sizeof(*bigger));
		if (!bigger)
			return; /* a leak */
		for (size_t k = 0; k < q->freed_n; k++)
			bigger[k] = q->freed[(q->freed_first + k) % q->freed_cap];
		free(q->freed);
		q->freed = bigger;
		q->freed_cap = cap;
		q->freed_first = 0;
	}
	q->freed[(q->freed_first + q->freed_n++) % q->freed_cap] = (struct freed){ cluster, n, gen, seq };
}

void free_entry_later(struct qcow2 *q, u64 entry)
{
	enum entry_kind kind;
	u64 offset, len;

	if (entry_decode(q, entry, &kind) || kind == ENTRY_NONE || kind == ENTRY_ZERO)
		return;
	offset = entry & ENTRY_OFFSET;
	len = 1;
	if (kind == ENTRY_COMPRESSED)
		compressed_extent(q, entry, &offset, &len);
	u64 first = offset >> q->cluster_bits, last = (offset + len - 1) >> q->cluster_bits;
	for (u64 c = first; c <= last; c++) {
		if (cluster_set_has(&q->tables_at, c)) {
			corrupt(q, "an L2 entry 0x%llx names a table's cluster for data", (unsigned long long)entry);
			return;
		}
	}
	free_later(q, first, last - first + 1);
}

/* What is free now is given back to the host. */
static void give_back(struct qcow2 *q, u64 cluster, u64 n)
{
	u64 v, run = 0;

	for (u64 k = 0; k <= n; k++) {
		if (k < n && !refcount_get(q, cluster + k, &v) && !v) {
			run++;
			continue;
		}
		if (run)
			file_punch(q->img.file, (cluster + k - run) << q->cluster_bits, run << q->cluster_bits); /* or it stays */
		run = 0;
	}
}

void free_due(struct qcow2 *q)
{
	while (q->freed_n) {
		struct freed f = q->freed[q->freed_first];
		if (f.gen > q->durable_gen || f.seq >= q->img.oldest)
			break;
		q->freed_first = (q->freed_first + 1) % q->freed_cap;
		q->freed_n--;
		free_now(q, f.cluster, f.n);
		if (q->img.free_host && !q->img.file->device)
			give_back(q, f.cluster, f.n);
	}
}

int free_bound(struct qcow2 *q)
{
	u64 gen;

	if (q->freed_n <= MAX_FREED || q->freed[q->freed_first].gen <= q->durable_gen)
		return 0;
	int err = qcow2_commit(&q->img, &gen);
	if (!err)
		err = file_sync(q->img.file);
	if (!err)
		q->durable_gen = gen;
	return err;
}
