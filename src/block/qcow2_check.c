/* qcow2: is an image sound? Counts what all tables name, holds that against the refcounts, and repairs.
 *
 * Each L1 and each L2 table is read once, however many entries name it, and what it names counts that many
 * times: the work is bounded by the file's size, whatever the file says. */
#include "block/qcow2_tool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MAX_CLUSTERS (1ull << 30)
#define REGION 4096

struct check {
	struct qcow2 *q;
	enum repair repair;
	struct image_check *r;
	image_message_fn *say;
	void *arg;
	u64 n;            /* clusters of the file */
	u32 *refs;        /* of each: how many entries name it */
	u32 *l2_refs;     /* and of these, L1 entries */
	u32 *tables;      /* and how many name a table other than an L2 that is there; see overlaps() */
	u8 *touched;      /* of each REGION clusters: whether any is named; files may be holes for the most part */
	bool refcounts_bad; /* the refcount tables themselves */
	bool uncounted;     /* a table cannot be read, or lies in another's place: nothing is mended */
};

static void PRINTF_LIKE(3, 4) found(struct check *c, u64 *what, const char *fmt, ...)
{
	char text[256];
	va_list ap;

	++*what;
	if (!c->say)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	c->say(c->arg, text);
}

/* ---- counting --------------------------------------------------------------------------- */

static bool inside(const struct check *c, u64 offset, u64 len)
{
	u64 end = c->n << c->q->cluster_bits;

	return offset <= end && len <= end - offset;
}

static bool in_place(const struct check *c, u64 offset, u64 len)
{
	return !(offset & (c->q->cluster_size - 1)) && offset && inside(c, offset, len);
}

static void count(struct check *c, u64 offset, u64 len, u32 times)
{
	u64 first = offset >> c->q->cluster_bits, last = (offset + len - 1) >> c->q->cluster_bits;

	for (u64 k = first; len && k <= last; k++) {
		c->refs[k] = c->refs[k] > UINT32_MAX - times ? UINT32_MAX : c->refs[k] + times;
		c->touched[k / REGION] = 1;
	}
}

/* The same of a table, or of other bytes that say where things are. */
static void count_table(struct check *c, u64 offset, u64 len, u32 times)
{
	u64 first = offset >> c->q->cluster_bits, last = (offset + len - 1) >> c->q->cluster_bits;

	count(c, offset, len, times);
	for (u64 k = first; len && k <= last; k++)
		c->tables[k] = c->tables[k] ? UINT32_MAX : times;
}

/* The first cluster from k on that may be named, or end. */
static u64 next_touched(const struct check *c, u64 k, u64 end)
{
	while (k < end && !c->touched[k / REGION])
		k = (k / REGION + 1) * REGION;
	return MIN(k, end);
}

/* Writes an entry that is wrong anew. */
static int mend_entry(struct check *c, u64 at, u64 entry)
{
	u64 raw = htobe64(entry);
	return c->repair == REPAIR_ALL ? file_write(c->q->img.file, at, &raw, 8) : 0;
}

static int count_l1(struct check *c, u64 at, u64 *l1, u32 n, u32 times, const char *whose)
{
	struct qcow2 *q = c->q;
	int err = 0;

	count_table(c, at, n * 8ull, times);
	for (u32 k = 0; k < n && !err; k++) {
		u64 l2 = l1[k] & ENTRY_OFFSET;
		if (!l2)
			continue;
		if (!in_place(c, l2, 1)) {
			found(c, &c->r->corruptions, "%s L1 entry %u names 0x%llx, where no table is", whose, k, (unsigned long long)l2);
			err = mend_entry(c, at + k * 8ull, 0);
			if (c->repair == REPAIR_ALL)
				l1[k] = 0;
			continue;
		}
		count(c, l2, 1, times);
		u64 i = l2 >> q->cluster_bits;
		c->l2_refs[i] = c->l2_refs[i] > UINT32_MAX - times ? UINT32_MAX : c->l2_refs[i] + times;
	}
	return err;
}

static int count_entry(struct check *c, u64 at, u64 entry, u32 times)
{
	struct qcow2 *q = c->q;
	u64 offset = entry & ENTRY_OFFSET, len = 1;

	if (entry & ENTRY_COMPRESSED_BIT) {
		compressed_extent(q, entry, &offset, &len);
		if (inside(c, offset, 1) && inside(c, offset, (c->n << q->cluster_bits) - offset) && !(entry & ENTRY_COPIED)) {
			len = MIN(len, (c->n << q->cluster_bits) - offset); /* the last sector need not be all there */
			c->r->compressed++;
			c->r->data_clusters++;
			count(c, offset, len, times);
			return 0;
		}
	} else if (!offset || in_place(c, offset, 1)) {
		if (!(entry & ENTRY_ZERO_BIT) || q->version >= 3) {
			c->r->data_clusters += !!offset;
			if (offset)
				count(c, offset, 1, times);
			return 0;
		}
	}
	found(c, &c->r->corruptions, "L2 entry at 0x%llx is 0x%llx, which names nothing that is there", (unsigned long long)at, (unsigned long long)entry);
	return mend_entry(c, at, q->version >= 3 && q->backing_name ? ENTRY_ZERO_BIT : 0);
}

static int count_l2s(struct check *c)
{
	struct qcow2 *q = c->q;
	u64 *l2 = malloc(q->cluster_size);
	int err = l2 ? 0 : ENOMEM;

	for (u64 k = next_touched(c, 0, c->n); k < c->n && !err; k = next_touched(c, k + 1, c->n)) {
		if (!c->l2_refs[k])
			continue;
		err = file_read(q->img.file, k << q->cluster_bits, l2, q->cluster_size);
		for (u64 i = 0; i < 1ull << q->l2_bits && !err; i++)
			if (l2[i])
				err = count_entry(c, (k << q->cluster_bits) + i * 8, be64toh(l2[i]), c->l2_refs[k]);
	}
	free(l2);
	return err;
}

static int by_place(const void *a, const void *b)
{
	const struct snapshot *const *x = a, *const *y = b;

	return (*x)->l1_offset < (*y)->l1_offset ? -1 : (*x)->l1_offset > (*y)->l1_offset;
}

/* Snapshots' L1 tables; those at the same place are read once. */
static int count_snapshots(struct check *c)
{
	struct qcow2 *q = c->q;
	const struct snapshot **order = calloc(q->n_snapshots + 1ull, sizeof(*order));
	u64 read = 0;
	int err = order ? 0 : ENOMEM;

	for (u32 k = 0; !err && k < q->n_snapshots; k++)
		order[k] = &q->snapshots[k];
	if (!err)
		qsort(order, q->n_snapshots, sizeof(*order), by_place);
	for (u32 k = 0, same; k < q->n_snapshots && !err; k += same) {
		const struct snapshot *s = order[k];
		for (same = 1; k + same < q->n_snapshots && order[k + same]->l1_offset == s->l1_offset && order[k + same]->l1_size == s->l1_size; same++)
			;
		read += s->l1_size * 8ull;
		if (!s->l1_size)
			continue;
		if (!in_place(c, s->l1_offset, s->l1_size * 8ull) || read > (c->n << q->cluster_bits)) {
			found(c, &c->r->corruptions, "snapshot %s: its L1 table is outside the file, or shares it with others", s->id);
			c->uncounted = true;
			continue;
		}
		u64 *l1 = malloc(s->l1_size * 8ull);
		err = l1 ? file_read(q->img.file, s->l1_offset, l1, s->l1_size * 8ull) : ENOMEM;
		for (u32 i = 0; !err && i < s->l1_size; i++)
			l1[i] = be64toh(l1[i]);
		if (!err)
			err = count_l1(c, s->l1_offset, l1, s->l1_size, same, "a snapshot's");
		free(l1);
	}
	free(order);
	return err;
}

/* Persistent dirty bitmaps, which others keep there. */
static int count_bitmaps(struct check *c)
{
	struct qcow2 *q = c->q;

	if (!(q->autoclear & AUTOCLEAR_BITMAPS) || !q->bitmaps_size)
		return 0;
	if (!in_place(c, q->bitmaps_offset, q->bitmaps_size)) {
		found(c, &c->r->corruptions, "the directory of bitmaps lies outside the file");
		c->uncounted = true;
		return 0;
	}
	count_table(c, q->bitmaps_offset, q->bitmaps_size, 1);
	for (u64 at = 0; at + 24 <= q->bitmaps_size;) {
		u8 row[24];
		int err = file_read(q->img.file, q->bitmaps_offset + at, row, sizeof(row));
		u64 table = be64toh(ld64(row)), n = be32toh(ld32(row + 8)), cluster;
		if (err)
			return err;
		if (n && !in_place(c, table, n * 8)) {
			found(c, &c->r->corruptions, "a bitmap's table lies outside the file");
			c->uncounted = true;
			return 0;
		}
		count(c, table, n * 8, 1);
		for (u64 k = 0; k < n && !err; k++) {
			err = file_read(q->img.file, table + k * 8, &cluster, 8);
			cluster = be64toh(cluster) & ENTRY_OFFSET;
			if (!err && cluster && in_place(c, cluster, 1))
				count(c, cluster, 1, 1);
		}
		if (err)
			return err;
		at += (24ull + be16toh(ld16(row + 18)) + be32toh(ld32(row + 20)) + 7) & ~7ull;
	}
	return 0;
}

static void count_refcounts(struct check *c)
{
	struct qcow2 *q = c->q;

	u64 bytes = (u64)q->reft_clusters << q->cluster_bits;
	if (!q->reft || !in_place(c, q->reft_offset, bytes)) { /* or some of it */
		found(c, &c->r->corruptions, "the refcount table lies outside the file");
		c->refcounts_bad = true;
		return;
	}
	count(c, q->reft_offset, bytes, 1);
	for (u32 k = 0; k < q->reft_size; k++) {
		u64 at = q->reft[k];
		if (!at)
			continue;
		if (at & ~ENTRY_OFFSET || !in_place(c, at, 1) || c->refs[at >> q->cluster_bits]) {
			found(c, &c->r->corruptions, "refcount table entry %u names 0x%llx, %s", k, (unsigned long long)at,
			      in_place(c, at, 1) ? "which something else has" : "where no block is");
			c->refcounts_bad = true;
			q->reft[k] = 0;
			continue;
		}
		count(c, at, 1, 1);
	}
}

/* A table that is written in place, in a cluster that something else has as well: to write one would change the
 * other, and which is right cannot be told. (An L2 table that is named twice is copied when it is written.) */
static void overlaps(struct check *c)
{
	for (u64 k = next_touched(c, 0, c->n); k < c->n; k = next_touched(c, k + 1, c->n)) {
		if (!c->tables[k] || c->refs[k] == c->tables[k])
			continue;
		found(c, &c->r->corruptions, "cluster %llu has a table, and something else has it as well", (unsigned long long)k);
		c->uncounted = true;
	}
}

/* refcounts: those of the refcount tables as well. */
static int count_all(struct check *c, bool refcounts)
{
	struct qcow2 *q = c->q;

	c->r->compressed = c->r->data_clusters = 0;
	madvise(c->refs, c->n * sizeof(u32) + 1, MADV_DONTNEED); /* zeros again */
	madvise(c->l2_refs, c->n * sizeof(u32) + 1, MADV_DONTNEED);
	madvise(c->tables, c->n * sizeof(u32) + 1, MADV_DONTNEED);
	memset(c->touched, 0, c->n / REGION + 1);
	count_table(c, 0, q->cluster_size, 1);
	if (q->n_snapshots)
		count_table(c, q->snapshots_offset, q->snapshots_bytes, 1);
	int err = count_l1(c, q->l1_offset, q->l1, q->l1_size, 1, "the");
	if (!err)
		err = count_snapshots(c);
	if (!err)
		err = count_l2s(c);
	if (!err)
		err = count_bitmaps(c);
	if (!err && refcounts) {
		overlaps(c); /* refcounts can be made anew, wherever they are */
		count_refcounts(c);
	}
	return err;
}

/* ---- comparing -------------------------------------------------------------------------- */

static void compare_one(struct check *c, u64 k, u64 v, u64 *too_low, u64 *too_high)
{
	if (c->refs[k])
		c->r->end = (k + 1) << c->q->cluster_bits;
	if (v < c->refs[k])
		found(c, too_low, "cluster %llu: refcount %llu, named %u times", (unsigned long long)k, (unsigned long long)v, c->refs[k]);
	else if (v > c->refs[k])
		found(c, too_high, "cluster %llu leaked: refcount %llu, named %u times", (unsigned long long)k, (unsigned long long)v, c->refs[k]);
}

static int compare(struct check *c, u64 *too_low, u64 *too_high)
{
	struct qcow2 *q = c->q;
	u64 per = refcounts_per_block(q);
	struct table *t;
	int err = 0;

	for (u64 first = 0; first < c->n && !err; first += per) {
		err = refcount_block_of(q, first, &t);
		u64 end = MIN(first + per, c->n);
		for (u64 k = t ? first : next_touched(c, first, end); k < end; k = t ? k + 1 : next_touched(c, k + 1, end))
			compare_one(c, k, t ? refcount_in(t->data, k - first, q->refcount_order) : 0, too_low, too_high);
	}
	return err;
}

static void check_copied(struct check *c, u64 entry, u64 at, u64 *wrong)
{
	u64 v = 0, host = entry & ENTRY_OFFSET;

	if (entry & ENTRY_COMPRESSED_BIT || !in_place(c, host, 1) || refcount_get(c->q, host >> c->q->cluster_bits, &v))
		return;
	if ((v == 1) != !!(entry & ENTRY_COPIED))
		found(c, wrong, "entry at 0x%llx: COPIED is %d, refcount %llu", (unsigned long long)at, !!(entry & ENTRY_COPIED), (unsigned long long)v);
}

static int compare_copied(struct check *c, u64 *wrong)
{
	struct qcow2 *q = c->q;
	u64 *l2 = malloc(q->cluster_size);
	int err = l2 ? 0 : ENOMEM;

	for (u32 k = 0; k < q->l1_size && !err; k++) {
		u64 at = q->l1[k] & ENTRY_OFFSET;
		if (!in_place(c, at, 1))
			continue;
		check_copied(c, q->l1[k], q->l1_offset + k * 8ull, wrong);
		if (c->l2_refs[at >> q->cluster_bits] > q->n_snapshots + 1u)
			continue; /* named again and again: once is too often already */
		err = file_read(q->img.file, at, l2, q->cluster_size);
		for (u64 i = 0; i < 1ull << q->l2_bits && !err; i++)
			check_copied(c, be64toh(l2[i]), at + i * 8, wrong);
	}
	free(l2);
	return err;
}

/* ---- repairing -------------------------------------------------------------------------- */

static bool any_in_block(const struct check *c, u64 block)
{
	u64 per = refcounts_per_block(c->q);

	u64 end = MIN((block + 1) * per, c->n);

	for (u64 k = next_touched(c, block * per, end); k < end; k = next_touched(c, k + 1, end))
		if (c->refs[k])
			return true;
	return false;
}

/* Where new refcount tables go: blocks, then the table, behind the end of the file. */
struct rebuilt {
	u64 n_blocks, n_table, end; /* clusters */
	u64 *table;
};

static void lay_out(const struct check *c, struct rebuilt *r)
{
	u64 per = refcounts_per_block(c->q), per_cluster = c->q->cluster_size / 8, blocks = 0;

	*r = (struct rebuilt){ .n_blocks = 1, .n_table = 1 };
	for (;;) {
		r->end = c->n + r->n_blocks + r->n_table;
		u64 entries = (r->end + per - 1) / per;
		blocks = 0;
		for (u64 b = 0; b < entries; b++)
			blocks += (b + 1) * per > c->n || any_in_block(c, b);
		u64 table = (entries + per_cluster - 1) / per_cluster;
		if (blocks <= r->n_blocks && table <= r->n_table)
			return;
		r->n_blocks = MAX(r->n_blocks, blocks);
		r->n_table = MAX(r->n_table, table);
	}
}

static int write_blocks(struct check *c, struct rebuilt *r)
{
	struct qcow2 *q = c->q;
	u64 per = refcounts_per_block(q), place = c->n;
	u8 *block = malloc(q->cluster_size);
	int err = block ? 0 : ENOMEM;

	for (u64 b = 0; b * per < r->end && !err; b++) {
		if ((b + 1) * per <= c->n && !any_in_block(c, b))
			continue;
		memset(block, 0, q->cluster_size);
		for (u64 k = 0; k < per && b * per + k < r->end && !err; k++) {
			u64 v = b * per + k < c->n ? c->refs[b * per + k] : 1;
			if (v > refcount_max(q))
				err = EOVERFLOW;
			refcount_into(block, k, q->refcount_order, v);
		}
		r->table[b] = place << q->cluster_bits;
		if (!err)
			err = file_write(q->img.file, place++ << q->cluster_bits, block, q->cluster_size);
	}
	free(block);
	return err;
}

static int write_reft(struct check *c, const struct rebuilt *r)
{
	struct qcow2 *q = c->q;
	u64 bytes = r->n_table << q->cluster_bits, at = (c->n + r->n_blocks) << q->cluster_bits;
	u64 *raw = malloc(bytes);
	u8 field[12];

	for (u64 k = 0; raw && k < bytes / 8; k++)
		raw[k] = htobe64(r->table[k]);
	int err = raw ? file_write(q->img.file, at, raw, bytes) : ENOMEM;
	free(raw);
	if (!err)
		err = file_sync(q->img.file);
	st64(field, htobe64(at));
	st32(field + 8, htobe32((u32)r->n_table));
	if (!err)
		err = header_write(q, H_REFTABLE, field, sizeof(field));
	return err ? err : file_sync(q->img.file);
}

/* Writes refcount tables that say what was counted, then the header. */
static int rebuild(struct check *c)
{
	struct qcow2 *q = c->q;
	struct rebuilt r;
	int err = count_all(c, false);

	if (err)
		return err;
	lay_out(c, &r);
	if (r.n_table << q->cluster_bits > MAX_REFTABLE_BYTES)
		return EFBIG;
	r.table = calloc(r.n_table, q->cluster_size);
	err = r.table ? write_blocks(c, &r) : ENOMEM;
	if (!err)
		err = write_reft(c, &r);
	if (err) {
		free(r.table);
		return err;
	}
	free(q->reft);
	q->reft = r.table;
	q->reft_offset = (c->n + r.n_blocks) << q->cluster_bits;
	q->reft_clusters = (u32)r.n_table;
	q->reft_size = (u32)(r.n_table << q->cluster_bits >> 3);
	u32 max = q->blocks.max;
	tables_destroy(&q->blocks);
	return tables_init(&q->blocks, false, max) ? 0 : ENOMEM;
}

/* Where no block counts nothing is named: else all is built anew. */
static int set_counts(struct check *c)
{
	struct qcow2 *q = c->q;
	u64 per = refcounts_per_block(q), v;
	struct table *t;
	int err = 0;

	for (u64 first = 0; first < c->n && !err; first += per) {
		err = refcount_block_of(q, first, &t);
		for (u64 k = first; t && k < MIN(first + per, c->n) && !err; k++) {
			err = refcount_get(q, k, &v);
			if (!err && v != c->refs[k])
				err = c->refs[k] > refcount_max(q) ? EOVERFLOW : refcount_set(q, k, c->refs[k]);
		}
	}
	return err;
}

/* Is there something that no block counts? */
static bool needs_rebuild(const struct check *c)
{
	const struct qcow2 *q = c->q;
	u64 per = refcounts_per_block(q);
	bool needs = c->refcounts_bad;

	for (u64 b = 0; b * per < c->n && !needs; b++)
		needs = (b >= q->reft_size || !q->reft[b]) && any_in_block(c, b);
	return needs;
}

static int repair(struct check *c, u64 too_low, u64 too_high, u64 copied)
{
	struct qcow2 *q = c->q;
	u64 fixed = 0;
	int err = 0;

	if (needs_rebuild(c))
		err = rebuild(c);
	else if (too_low || too_high)
		err = set_counts(c);
	if (!err && (too_low || too_high || copied))
		err = qcow2_fix_copied(q, &fixed);
	if (!err)
		err = qcow2_settle(q);
	if (!err && q->incompatible & (INCOMPAT_DIRTY | INCOMPAT_CORRUPT)) {
		q->incompatible &= ~INCOMPAT_CORRUPT;
		q->incompatible |= INCOMPAT_DIRTY;
		err = header_set_dirty(q, false);
	}
	if (!err) { /* all of it, or nothing: what is left is said by the errors */
		c->r->corruptions_mended = c->r->corruptions;
		c->r->leaks_mended = c->r->leaks;
	}
	return err;
}

/* ---- all of it -------------------------------------------------------------------------- */

static void *big(u64 bytes)
{
	void *p = mmap(NULL, bytes + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static int load_reft(struct check *c)
{
	struct qcow2 *q = c->q;
	u64 bytes = (u64)q->reft_clusters << q->cluster_bits;

	if (q->reft || !bytes || bytes > MAX_REFTABLE_BYTES || !in_place(c, q->reft_offset, bytes))
		return 0;
	q->reft = malloc(bytes);
	q->reft_size = (u32)(bytes / 8);
	int err = q->reft ? file_read(q->img.file, q->reft_offset, q->reft, bytes) : ENOMEM;
	for (u32 k = 0; !err && k < q->reft_size; k++)
		q->reft[k] = be64toh(q->reft[k]);
	return err;
}

/* Before any entry is mended: is there what forbids it? */
static int look_first(struct check *c)
{
	image_message_fn *say = c->say;

	c->repair = REPAIR_NOTHING;
	c->say = NULL;
	int err = count_all(c, false);
	if (!err)
		overlaps(c);
	c->say = say;
	c->repair = c->uncounted ? REPAIR_NOTHING : REPAIR_ALL;
	c->r->corruptions = 0;
	return err;
}

static int run(struct check *c)
{
	u64 too_low = 0, copied = 0;
	int err = load_reft(c);

	if (!err && c->repair == REPAIR_ALL)
		err = look_first(c);
	if (!err)
		err = count_all(c, true);
	if (!err)
		err = compare(c, &too_low, &c->r->leaks);
	if (!err)
		err = compare_copied(c, &copied);
	bool explained = !c->r->corruptions;
	c->r->corruptions += too_low + copied;
	if (!err && !c->uncounted && (c->repair == REPAIR_ALL || (c->repair == REPAIR_COUNTS && explained)))
		err = repair(c, too_low, c->r->leaks, copied);
	return err;
}

bool qcow2_check(struct qcow2 *q, enum repair mend, struct image_check *result, image_message_fn *say, void *arg, struct error *e)
{
	struct check c = { .q = q, .repair = mend, .r = result, .say = say, .arg = arg };
	u64 size = 0;

	memset(result, 0, sizeof(*result));
	if (!q->snapshots && !snapshots_load(q, e))
		return false;
	int err = file_size(q->img.file, &size);
	c.n = to_clusters(q, size);
	if (c.n > MAX_CLUSTERS)
		return error_set(e, "%s: more clusters than can be counted", q->img.file->path);
	result->clusters = c.n;
	c.refs = big(c.n * sizeof(u32));
	c.l2_refs = big(c.n * sizeof(u32));
	c.tables = big(c.n * sizeof(u32));
	c.touched = calloc(c.n / REGION + 1, 1);
	if (!err)
		err = c.refs && c.l2_refs && c.tables && c.touched ? run(&c) : ENOMEM;
	free(c.touched);
	if (c.refs)
		munmap(c.refs, c.n * sizeof(u32) + 1);
	if (c.l2_refs)
		munmap(c.l2_refs, c.n * sizeof(u32) + 1);
	if (c.tables)
		munmap(c.tables, c.n * sizeof(u32) + 1);
	return !err || error_set(e, "%s: it cannot be %s: %s", q->img.file->path, mend ? "mended" : "checked",
				 err == EOVERFLOW ? "a cluster is named more often than its refcount has bits for" : strerror(err));
}
