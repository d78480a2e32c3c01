/* Copies a disk from one image into a new one: what reads as zeros is left out, several pieces are under way
 * at a time, and with `compress` clusters are packed. */
#include "block/qcow2_tool.h"
#include "block/disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PIECE (1u << 20)
#define PIECES 8

struct piece {
	struct block_request r;
	struct iovec iov;
	struct copy *copy;
	u64 from;       /* the request is for bytes [from, ...) of buf */
	u64 len;
	u8 *buf;
	bool busy;
};

struct copy {
	struct block *from, *to;
	struct piece pieces[PIECES];
	bool dense;     /* what is not written there need not be zeros */
	int error;
	bool reading;   /* the error was the source's */
};

/* ---- pieces ----------------------------------------------------------------------------- */

/* The next bytes of buf that are not all zeros, to the next 4 KiB that are. */
static bool next_data(const struct piece *p, u64 *at, u64 *len)
{
	static const u8 zeros[4096];
	u64 k = *at;

	*len = 0;
	while (k < p->len) {
		u64 n = MIN(sizeof(zeros), p->len - k);
		bool zero = !memcmp(p->buf + k, zeros, n);
		if (zero && *len)
			return true;
		if (!zero && !*len)
			*at = k;
		if (!zero)
			*len += n;
		k += n;
	}
	return *len;
}

static void piece_step(struct block_request *r);

static void write_next(struct piece *p, u64 at)
{
	u64 len;

	bool more = p->copy->dense ? (len = p->len - at) != 0 : next_data(p, &at, &len);
	if (p->copy->error || !more) {
		p->busy = false;
		return;
	}
	u64 base = p->r.offset - p->from;
	p->from = at;
	p->iov = (struct iovec){ p->buf + at, len };
	p->r = (struct block_request){ .op = BLOCK_WRITE, .offset = base + at, .len = len, .iov = &p->iov, .n_iov = 1, .done = piece_step, .arg = p };
	block_submit(p->copy->to, &p->r);
}

static void piece_step(struct block_request *r)
{
	struct piece *p = r->arg;

	if (r->error && !p->copy->error) {
		p->copy->error = r->error;
		p->copy->reading = r->op == BLOCK_READ;
	}
	write_next(p, r->op == BLOCK_READ ? 0 : p->from + r->len);
}

static struct piece *free_piece(struct copy *c)
{
	for (;;) {
		for (int k = 0; k < PIECES; k++)
			if (!c->pieces[k].busy)
				return &c->pieces[k];
		unsigned reads = block_poll(c->from, false), writes = block_poll(c->to, false);
		if (writes)
			block_poll(c->to, true);
		else if (reads)
			block_poll(c->from, true);
	}
}

static void wait_all(struct copy *c)
{
	bool busy = true;

	while (busy) {
		busy = false;
		for (int k = 0; k < PIECES; k++)
			busy |= c->pieces[k].busy;
		if (busy && !block_poll(c->to, true))
			block_poll(c->from, true);
	}
}

static void copy_piece(struct copy *c, u64 offset, u64 len)
{
	struct piece *p = free_piece(c);

	p->busy = true;
	p->copy = c;
	p->from = 0;
	p->len = len;
	p->iov = (struct iovec){ p->buf, len };
	p->r = (struct block_request){ .op = BLOCK_READ, .offset = offset, .len = len, .iov = &p->iov, .n_iov = 1, .done = piece_step, .arg = p };
	block_submit(c->from, &p->r);
}

/* ---- packing ---------------------------------------------------------------------------- */

static int pack_cluster(struct copy *c, u64 offset, u64 len, u8 *buf, u8 *packed)
{
	struct qcow2 *q = qcow2_of(c->to->img);
	int err = block_read(c->from, offset, buf, len);

	c->reading = err;
	if (err)
		return err;
	memset(buf + len, 0, q->cluster_size - len);
	u64 n = qcow2_pack(q, buf, packed, q->cluster_size - 1);
	return n ? qcow2_write_packed(&q->img, offset, packed, n) : block_write(c->to, offset, buf, len);
}

/* ---- all of it -------------------------------------------------------------------------- */

static u64 disk_end(const struct copy *c)
{
	return MIN(c->from->img->size, c->to->img->size);
}

/* What is at `at`, and how far; errors are the source's. */
static bool look(struct copy *c, const struct image_convert *o, u64 at, struct map *m)
{
	u64 size = disk_end(c);

	if (o->progress)
		o->progress(o->arg, at, size);
	c->error = image_status(c->from->img, at, MIN(size - at, (u64)PIECE * 64), m);
	c->reading = c->error;
	return !c->error;
}

static void copy_plain(struct copy *c, const struct image_convert *o)
{
	struct map m;

	for (u64 at = 0, end, size = disk_end(c); at < size && !c->error && look(c, o, at, &m); at = end) {
		end = at + m.len;
		if (m.kind == MAP_ZERO && c->dense)
			c->error = block_zero(c->to, at, m.len, true);
		for (u64 k = at, n; m.kind != MAP_ZERO && k < end && !c->error; k += n) {
			n = MIN(end - k, PIECE);
			copy_piece(c, k, n);
		}
	}
	wait_all(c);
}

static void copy_packed(struct copy *c, const struct image_convert *o)
{
	u64 cluster = qcow2_of(c->to->img)->cluster_size, n;
	u8 *buf = malloc(2 * cluster);
	struct map m;

	c->error = buf ? 0 : ENOMEM;
	for (u64 at = 0, size = disk_end(c); at < size && !c->error && look(c, o, at, &m); at += n) {
		n = MIN(cluster, size - at);
		if (m.kind == MAP_ZERO && m.len >= n) {
			n = MAX(n, m.len / cluster * cluster);
			c->error = c->dense ? block_zero(c->to, at, n, true) : 0;
		}
		else
			c->error = pack_cluster(c, at, n, buf, buf + cluster);
	}
	free(buf);
}

static int copy_all(struct copy *c, const struct image_convert *o)
{
	if (o->compress)
		copy_packed(c, o);
	else
		copy_plain(c, o);
	if (o->progress && !c->error)
		o->progress(o->arg, disk_end(c), disk_end(c));
	return c->error;
}

static bool same_file(const char *a, const struct block *b)
{
	struct error e;
	struct file *f = !access(a, F_OK) ? file_open(a, true, &e) : NULL;
	bool same = false;

	for (const struct image *img = b->img; f && img; img = img->backing)
		same |= img->file->dev == f->dev && img->file->ino == f->ino;
	file_close(f);
	return same;
}

static bool run(struct copy *c, const struct image_convert *o, struct error *e)
{
	struct image_create create = o->to;
	struct block_options to = { .file = (char *)(uintptr_t)o->to.file };

	if (!create.size)
		create.size = c->from->img->size;
	if (same_file(o->to.file, c->from))
		return error_set(e, "%s: it would be written over while it is read", o->to.file);
	if (create.size < c->from->img->size)
		return error_set(e, "%s: %llu bytes do not hold the %llu of the disk", o->to.file, (unsigned long long)create.size,
				 (unsigned long long)c->from->img->size);
	if (!image_create(&create, e))
		return false;
	/* What was made says which it is; a raw one could be mistaken by what is copied into it. */
	struct error ignored;
	struct file *f = file_open(o->to.file, true, &ignored);
	enum block_format made = BLOCK_RAW;
	if (f && create.format != BLOCK_RAW)
		image_probe(f, &made, &ignored);
	file_close(f);
	to.format = made;
	if (o->compress && made != BLOCK_QCOW2)
		return error_set(e, "%s: a raw image has no compressed clusters; format qcow2 has", o->to.file);
	c->to = block_open(&to, NULL, e);
	if (!c->to)
		return false;
	c->dense = c->to->img->backing || (made == BLOCK_RAW && c->to->img->file->device);
	int err = copy_all(c, o);
	if (!err)
		err = block_flush(c->to);
	bool closed = block_close(c->to, e);
	return err ? error_set(e, "%s: %s", c->reading ? o->from : o->to.file, strerror(err)) : closed;
}

bool image_convert(const struct image_convert *o, struct error *e)
{
	struct block_options from = { .file = (char *)(uintptr_t)o->from, .format = o->from_format, .read_only = true };
	struct copy c = { .from = block_open(&from, NULL, e) };
	struct error ignored;
	bool ok = c.from;

	if (ok && o->from_snapshot) {
		if (!strcmp(c.from->img->ops->name, "raw"))
			ok = error_set(e, "%s: a raw image has no snapshots", o->from);
		else
			ok = qcow2_snapshot_show(qcow2_of(c.from->img), o->from_snapshot, e);
	}
	for (int k = 0; ok && k < PIECES; k++)
		if (!(c.pieces[k].buf = malloc(PIECE)))
			ok = error_set(e, "out of memory");
	ok = ok && run(&c, o, e);
	for (int k = 0; k < PIECES; k++)
		free(c.pieces[k].buf);
	if (c.from)
		block_close(c.from, &ignored);
	return ok;
}
