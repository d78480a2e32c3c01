/* Snapshots inside a qcow2 image: read, made, gone back to, deleted. The image has no other user then.
 *
 * A snapshot is an L1 table of its own and a row in the table of snapshots; making one counts all that the
 * active L1 names once more, and takes COPIED from its entries. In each of the three operations the counts rise
 * first, then the header switches to the new state, then counts fall: what a crash leaves behind are counts that
 * are too high and, with them, COPIED bits that do not fit; version 3 has its dirty bit set meanwhile, so
 * that the next opening for writing sets that right. */
#include "block/qcow2_tool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ROW 40          /* bytes of a row's fixed part */
#define EXTRA 16        /* of the extra data that is written: vm_state_size, disk_size */

/* ---- the table -------------------------------------------------------------------------- */

static void snapshot_free(struct snapshot *s)
{
	free(s->id);
	free(s->name);
	free(s->extra);
}

void snapshots_free(struct qcow2 *q)
{
	for (u32 k = 0; q->snapshots && k < q->n_snapshots; k++)
		snapshot_free(&q->snapshots[k]);
	free(q->snapshots);
	q->snapshots = NULL;
}

/* Reads the row at *at. */
static int read_row(struct qcow2 *q, u64 *at, u64 end, struct snapshot *s)
{
	u8 row[ROW];
	int err = *at + ROW > end ? EIO : file_read(q->img.file, *at, row, ROW);

	if (err)
		return err;
	u32 id_len = be16toh(ld16(row + 12)), name_len = be16toh(ld16(row + 14));
	s->l1_offset = be64toh(ld64(row));
	s->l1_size = be32toh(ld32(row + 8));
	s->date_sec = be32toh(ld32(row + 16));
	s->date_nsec = be32toh(ld32(row + 20));
	s->vm_clock_ns = be64toh(ld64(row + 24));
	s->vm_state_size = be32toh(ld32(row + 32));
	s->extra_size = be32toh(ld32(row + 36));
	s->disk_size = q->img.size;
	u64 len = (u64)s->extra_size + id_len + name_len;
	if (s->extra_size > 1024 || *at + ROW + len > end)
		return EIO;
	u8 *rest = malloc(len + 1);
	err = rest ? file_read(q->img.file, *at + ROW, rest, len) : ENOMEM;
	if (!err) {
		if (s->extra_size >= 8)
			s->vm_state_size = be64toh(ld64(rest));
		if (s->extra_size >= 16)
			s->disk_size = be64toh(ld64(rest + 8));
		s->extra = malloc(s->extra_size + 1);
		s->id = strndup((char *)rest + s->extra_size, id_len);
		s->name = strndup((char *)rest + s->extra_size + id_len, name_len);
		if (!s->extra || !s->id || !s->name)
			err = ENOMEM;
		else
			memcpy(s->extra, rest, s->extra_size);
	}
	free(rest);
	*at += (ROW + len + 7) & ~7ull;
	return err;
}

static bool l1_is_sound(const struct qcow2 *q, const struct snapshot *s)
{
	return s->l1_size * 8ull <= MAX_L1_BYTES && !(s->l1_offset & (q->cluster_size - 1)) && s->l1_offset < ENTRY_OFFSET && s->disk_size <= INT64_MAX / 2;
}

bool snapshots_load(struct qcow2 *q, struct error *e)
{
	u64 size = 0, at = q->snapshots_offset;

	if (q->n_snapshots > MAX_SNAPSHOTS)
		return error_set(e, "%s: its snapshots are more than %u", q->img.file->path, MAX_SNAPSHOTS);
	int err = file_size(q->img.file, &size);
	q->snapshots = calloc(q->n_snapshots + 1ull, sizeof(*q->snapshots));
	if (!q->snapshots)
		err = ENOMEM;
	u64 end = MIN(size, at + MAX_SNAPSHOT_BYTES);
	for (u32 k = 0; k < q->n_snapshots && !err; k++) {
		err = read_row(q, &at, end, &q->snapshots[k]);
		if (!err && !l1_is_sound(q, &q->snapshots[k]))
			err = EIO;
	}
	q->snapshots_bytes = at - q->snapshots_offset;
	return !err || error_set(e, "%s: its snapshots: %s", q->img.file->path, err == EIO ? "the table is damaged" : strerror(err));
}

static u64 row_size(const struct snapshot *s)
{
	return (ROW + MAX(s->extra_size, (u32)EXTRA) + strlen(s->id) + strlen(s->name) + 7) & ~7ull;
}

static void put_row(u8 *row, const struct snapshot *s)
{
	u32 extra = MAX(s->extra_size, (u32)EXTRA);

	st64(row, htobe64(s->l1_offset));
	st32(row + 8, htobe32(s->l1_size));
	st16(row + 12, htobe16((u16)strlen(s->id)));
	st16(row + 14, htobe16((u16)strlen(s->name)));
	st32(row + 16, htobe32(s->date_sec));
	st32(row + 20, htobe32(s->date_nsec));
	st64(row + 24, htobe64(s->vm_clock_ns));
	st32(row + 32, htobe32(s->vm_state_size > UINT32_MAX ? 0 : (u32)s->vm_state_size));
	st32(row + 36, htobe32(extra));
	u8 *p = row + ROW;
	if (s->extra_size)
		memcpy(p, s->extra, s->extra_size);
	st64(p, htobe64(s->vm_state_size));
	st64(p + 8, htobe64(s->disk_size));
	memcpy(p + extra, s->id, strlen(s->id));
	memcpy(p + extra + strlen(s->id), s->name, strlen(s->name));
}

/* Writes the table elsewhere and switches the header to it. */
static int write_table(struct qcow2 *q, const struct snapshot *list, u32 n)
{
	u64 bytes = 0, at = 0, old = q->snapshots_offset >> q->cluster_bits, n_old = to_clusters(q, q->snapshots_bytes);
	u8 field[12];
	int err = 0;

	for (u32 k = 0; k < n; k++)
		bytes += row_size(&list[k]);
	if (bytes > MAX_SNAPSHOT_BYTES)
		return EFBIG;
	if (n)
		err = alloc_table(q, to_clusters(q, bytes), &at);
	u8 *buf = err ? NULL : calloc(1, (to_clusters(q, bytes) << q->cluster_bits) + 1);
	if (!buf)
		return err ? err : ENOMEM;
	u8 *row = buf;
	for (u32 k = 0; k < n; row += row_size(&list[k]), k++)
		put_row(row, &list[k]);
	if (n)
		err = file_write(q->img.file, at, buf, to_clusters(q, bytes) << q->cluster_bits);
	free(buf);
	if (!err)
		err = qcow2_settle(q);
	st32(field, htobe32(n));
	st64(field + 4, htobe64(at));
	if (!err)
		err = header_write(q, H_SNAPSHOTS, field, sizeof(field));
	if (!err)
		err = file_sync(q->img.file);
	if (err)
		return err;
	if (q->n_snapshots)
		free_later(q, old, n_old);
	q->snapshots_offset = at;
	q->snapshots_bytes = bytes;
	return 0;
}

/* ---- counts ----------------------------------------------------------------------------- */

static int add_count(struct qcow2 *q, u64 first, u64 n, int by)
{
	u64 v;
	int err = 0;

	for (u64 k = 0; k < n && !err; k++) {
		err = refcount_get(q, first + k, &v);
		if (!err && by > 0 && v >= refcount_max(q))
			return EOVERFLOW;
		if (!err && by < 0)
			free_later(q, first + k, 1);
		else if (!err)
			err = refcount_set(q, first + k, v + 1);
	}
	return err;
}

static int add_entry(struct qcow2 *q, u64 entry, int by)
{
	enum entry_kind kind;
	u64 offset, len;
	int err = entry_decode(q, entry, &kind);

	if (err || kind == ENTRY_NONE || kind == ENTRY_ZERO)
		return err;
	if (kind != ENTRY_COMPRESSED)
		return add_count(q, (entry & ENTRY_OFFSET) >> q->cluster_bits, 1, by);
	compressed_extent(q, entry, &offset, &len);
	return add_count(q, offset >> q->cluster_bits, ((offset + len - 1) >> q->cluster_bits) - (offset >> q->cluster_bits) + 1, by);
}

/* Counts what an L1 table names, and what the L2 tables do that it names, up or down by one. */
static int add_tree(struct qcow2 *q, const u64 *l1, u32 n, int by)
{
	u8 *copy = malloc(q->cluster_size);
	struct table *t;
	int err = copy ? 0 : ENOMEM;

	for (u32 k = 0; k < n && !err; k++) {
		u64 at = l1[k] & ENTRY_OFFSET;
		if (!at)
			continue;
		err = at & (q->cluster_size - 1) ? corrupt(q, "an L1 entry is 0x%llx", (unsigned long long)l1[k]) : tables_get(q, &q->l2s, at, false, &t);
		if (err)
			break;
		memcpy(copy, t->data, q->cluster_size); /* counting may drop it */
		for (u64 i = 0; i < 1ull << q->l2_bits && !err; i++)
			err = add_entry(q, be64toh(((u64 *)(void *)copy)[i]), by);
		if (!err)
			err = add_count(q, at >> q->cluster_bits, 1, by);
	}
	free(copy);
	return err;
}

static int copied(struct qcow2 *q, u64 entry, u64 *new)
{
	u64 host = entry & ENTRY_OFFSET, v = 0;
	int err = host ? refcount_get(q, host >> q->cluster_bits, &v) : 0;

	*new = (entry & ~ENTRY_COPIED) | (v == 1 ? ENTRY_COPIED : 0);
	return err;
}

int qcow2_fix_copied(struct qcow2 *q, u64 *fixed)
{
	struct table *t;
	u64 new;
	int err = 0;

	for (u32 k = 0; k < q->l1_size && !err; k++) {
		u64 at = q->l1[k] & ENTRY_OFFSET;
		if (!at || at & (q->cluster_size - 1))
			continue;
		err = copied(q, q->l1[k], &new);
		if (!err && new != q->l1[k]) {
			l1_entry_set(q, k, new);
			++*fixed;
		}
		if (!err)
			err = tables_get(q, &q->l2s, at, false, &t);
		for (u64 i = 0; i < 1ull << q->l2_bits && !err; i++) {
			u64 entry = l2_entry_get(t, i);
			if (!entry || entry & ENTRY_COMPRESSED_BIT)
				continue;
			err = copied(q, entry, &new);
			if (!err && new != entry) {
				l2_entry_set(q, t, i, new);
				++*fixed;
			}
		}
	}
	return err;
}

/* ---- operations ------------------------------------------------------------------------- */

static struct snapshot *find_name(struct qcow2 *q, const char *name)
{
	for (u32 k = 0; k < q->n_snapshots; k++)
		if (!strcmp(q->snapshots[k].name, name))
			return &q->snapshots[k];
	return NULL;
}

static struct snapshot *find(struct qcow2 *q, const char *name)
{
	struct snapshot *s = find_name(q, name);

	for (u32 k = 0; k < q->n_snapshots && !s; k++)
		if (!strcmp(q->snapshots[k].id, name))
			s = &q->snapshots[k];
	return s;
}

static bool none_such(struct qcow2 *q, const char *name, struct error *e)
{
	const char **names = calloc(q->n_snapshots + 1ull, sizeof(*names));
	const char *near = NULL;

	for (u32 k = 0; names && k < q->n_snapshots; k++)
		names[k] = q->snapshots[k].name;
	if (names)
		near = nearest_word(name, names, q->n_snapshots);
	error_set(e, "%s: no snapshot \"%s\"%s%s%s", q->img.file->path, name, near ? "; did you mean \"" : q->n_snapshots ? "" : "; it has none",
		  near ? near : "", near ? "\"?" : "");
	free(names);
	return false;
}

static bool outcome(struct qcow2 *q, int err, struct error *e)
{
	return !err || error_set(e, "%s: %s", q->img.file->path,
				 err == EOVERFLOW ? "its refcounts have too few bits for another snapshot" : strerror(err));
}

static u64 next_id(const struct qcow2 *q)
{
	u64 id = 0, v;

	for (u32 k = 0; k < q->n_snapshots; k++)
		if (parse_number(q->snapshots[k].id, &v) && v < UINT64_MAX)
			id = MAX(id, v);
	return id + 1;
}

static int l1_write(struct qcow2 *q, u64 at, const u64 *l1, u32 n)
{
	u64 bytes = MAX(to_clusters(q, n * 8ull), 1ull) << q->cluster_bits;
	u64 *raw = calloc(1, bytes);

	if (!raw)
		return ENOMEM;
	for (u32 k = 0; k < n; k++)
		raw[k] = htobe64(l1[k] & ~ENTRY_COPIED);
	int err = file_write(q->img.file, at, raw, bytes);
	free(raw);
	return err;
}

/* What is between them needs a repair if it is not completed; qcow2_close takes the bit away. */
static int begin(struct qcow2 *q)
{
	q->unclean = true;
	return header_set_dirty(q, true);
}

static int end(struct qcow2 *q)
{
	int err = qcow2_settle(q);

	q->unclean = err;
	return err;
}

static int make(struct qcow2 *q, struct snapshot *s)
{
	u64 fixed = 0;
	int err = begin(q);

	if (!err)
		err = alloc_table(q, MAX(to_clusters(q, q->l1_size * 8ull), 1ull), &s->l1_offset);
	if (!err)
		err = add_tree(q, q->l1, q->l1_size, 1);
	if (!err)
		err = qcow2_fix_copied(q, &fixed);
	if (!err)
		err = l1_write(q, s->l1_offset, q->l1, q->l1_size);
	struct snapshot *list = calloc(q->n_snapshots + 1ull, sizeof(*list));
	if (!err && !list)
		err = ENOMEM;
	if (!err) {
		if (q->n_snapshots)
			memcpy(list, q->snapshots, q->n_snapshots * sizeof(*list));
		list[q->n_snapshots] = *s;
		err = write_table(q, list, q->n_snapshots + 1);
	}
	if (err) {
		free(list);
		return err;
	}
	free(q->snapshots);
	q->snapshots = list;
	q->n_snapshots++;
	return end(q);
}

/* Would a count overflow? Asked before anything is changed. */
static int may_count(struct qcow2 *q)
{
	return refcount_max(q) < 2 ? EOVERFLOW : 0;
}

bool qcow2_snapshot_make(struct qcow2 *q, const char *name, struct error *e)
{
	struct snapshot s = { .l1_size = q->l1_size, .disk_size = q->img.size };
	struct timespec now;
	char id[24];

	if (!*name || strlen(name) > 255)
		return error_set(e, "a snapshot's name has 1 to 255 characters");
	if (find_name(q, name))
		return error_set(e, "%s: there is a snapshot \"%s\" already", q->img.file->path, name);
	if (q->n_snapshots == MAX_SNAPSHOTS)
		return error_set(e, "%s: it has as many snapshots as can be, %u", q->img.file->path, MAX_SNAPSHOTS);
	clock_gettime(CLOCK_REALTIME, &now);
	s.date_sec = (u32)now.tv_sec;
	s.date_nsec = (u32)now.tv_nsec;
	snprintf(id, sizeof(id), "%llu", (unsigned long long)next_id(q));
	s.id = strdup(id);
	s.name = strdup(name);
	int err = !s.id || !s.name ? ENOMEM : may_count(q);
	if (!err)
		err = qcow2_settle(q);
	if (!err)
		err = make(q, &s);
	if (err)
		snapshot_free(&s);
	return outcome(q, err, e);
}

static int load_l1(struct qcow2 *q, const struct snapshot *s, u64 **l1)
{
	*l1 = malloc(s->l1_size * 8ull + 8);
	int err = *l1 ? file_read(q->img.file, s->l1_offset, *l1, s->l1_size * 8ull) : ENOMEM;

	for (u32 k = 0; !err && k < s->l1_size; k++)
		(*l1)[k] = be64toh((*l1)[k]);
	if (err) {
		free(*l1);
		*l1 = NULL;
	}
	return err;
}

/* The disk is as the L1 table at `at` says: size, L1's size and place are neighbours in the header. */
static int switch_l1(struct qcow2 *q, u64 size, u64 at, u32 n)
{
	u8 field[24];
	int err = file_read(q->img.file, H_SIZE, field, sizeof(field));

	st64(field, htobe64(size));
	st32(field + (H_L1 - H_SIZE), htobe32(n));
	st64(field + (H_L1 - H_SIZE) + 4, htobe64(at));
	if (!err)
		err = header_write(q, H_SIZE, field, sizeof(field));
	return err ? err : file_sync(q->img.file);
}

static int apply(struct qcow2 *q, const struct snapshot *s, u64 *l1)
{
	u64 at, fixed = 0, old_at = q->l1_offset, *old = q->l1;
	u32 old_n = q->l1_size;
	int err = begin(q);

	if (!err)
		err = add_tree(q, l1, s->l1_size, 1);
	if (!err)
		err = alloc_table(q, MAX(to_clusters(q, s->l1_size * 8ull), 1ull), &at);
	if (!err)
		err = l1_write(q, at, l1, s->l1_size);
	if (!err)
		err = qcow2_settle(q);
	if (!err)
		err = switch_l1(q, s->disk_size, at, s->l1_size);
	if (err)
		return err;
	for (u32 k = 0; k < s->l1_size; k++)
		l1[k] &= ~ENTRY_COPIED;
	q->l1 = l1;
	q->l1_size = s->l1_size;
	q->l1_offset = at;
	q->img.size = s->disk_size;
	err = add_tree(q, old, old_n, -1);
	if (!err && old_n)
		free_later(q, old_at >> q->cluster_bits, to_clusters(q, old_n * 8ull));
	free(old);
	if (!err)
		err = qcow2_settle(q);
	if (!err)
		err = tables_at_fill(q);
	if (!err)
		err = qcow2_fix_copied(q, &fixed);
	return err ? err : qcow2_settle(q);
}

bool qcow2_snapshot_apply(struct qcow2 *q, const char *name, struct error *e)
{
	struct snapshot *s = find(q, name);
	u64 *l1 = NULL;

	if (!s)
		return none_such(q, name, e);
	u64 per_l1 = q->cluster_bits + q->l2_bits;
	if (s->l1_size < (s->disk_size >> per_l1) + !!(s->disk_size & ((1ull << per_l1) - 1)))
		return error_set(e, "%s: snapshot \"%s\": its L1 table is too small for its size", q->img.file->path, name);
	int err = qcow2_settle(q);
	if (!err)
		err = load_l1(q, s, &l1);
	if (!err)
		err = apply(q, s, l1);
	if (err && l1 != q->l1)
		free(l1);
	return outcome(q, err, e);
}

bool qcow2_snapshot_delete(struct qcow2 *q, const char *name, struct error *e)
{
	struct snapshot *s = find(q, name);
	u64 *l1 = NULL, fixed = 0;

	if (!s)
		return none_such(q, name, e);
	u32 i = (u32)(s - q->snapshots), after = q->n_snapshots - i - 1;
	struct snapshot gone = *s;
	int err = qcow2_settle(q);
	if (!err)
		err = load_l1(q, s, &l1);
	if (!err)
		err = begin(q);
	if (!err) {
		memmove(s, s + 1, after * sizeof(*s));
		q->snapshots[q->n_snapshots - 1] = gone;
		err = write_table(q, q->snapshots, q->n_snapshots - 1);
	}
	if (!err) {
		q->n_snapshots--;
		err = add_tree(q, l1, gone.l1_size, -1);
		if (!err && gone.l1_size)
			free_later(q, gone.l1_offset >> q->cluster_bits, to_clusters(q, gone.l1_size * 8ull));
		snapshot_free(&gone);
	}
	if (!err)
		err = qcow2_settle(q);
	if (!err)
		err = qcow2_fix_copied(q, &fixed);
	if (!err)
		err = end(q);
	free(l1);
	return outcome(q, err, e);
}

/* ---- reading one ------------------------------------------------------------------------ */

bool qcow2_snapshot_show(struct qcow2 *q, const char *name, struct error *e)
{
	u64 *l1;

	if (!snapshots_load(q, e))
		return false;
	struct snapshot *s = find(q, name);
	if (!s)
		return none_such(q, name, e);
	u64 per_l1 = q->cluster_bits + q->l2_bits;
	if (s->l1_size < (s->disk_size >> per_l1) + !!(s->disk_size & ((1ull << per_l1) - 1)))
		return error_set(e, "%s: snapshot \"%s\": its L1 table is too small for its size", q->img.file->path, name);
	int err = load_l1(q, s, &l1);
	if (err)
		return outcome(q, err, e);
	free(q->l1);
	q->l1 = l1;
	q->l1_size = s->l1_size;
	q->img.size = (s->disk_size + BLOCK_SECTOR - 1) & ~(u64)(BLOCK_SECTOR - 1);
	return true;
}
