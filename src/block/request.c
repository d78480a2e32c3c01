/* What becomes of a request: reads are split where the images' tables say so, writes go in place, or
 * into new clusters together with what these held before (copy on write).
 *
 * Invariants
 *  1. A cluster that is being made (struct alloc) belongs to one request: another that would write, zero
 *     or discard it waits until the tables name it, then looks again. Reads go on seeing what was before.
 *  2. Tables name a cluster only when all its bytes have been written (link follows the last write).
 *  3. No request holds a cluster while it waits for another: what it has begun ends by itself.
 *  4. img->begun and img->oldest are right whenever a format is called.
 * Threading: the disk's thread, or who polls. */
#define LOG_TOPIC "block"
#include "block/disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAX_COW_BYTES (64ull << 20)
#define MAX_ZERO_WRITE (16ull << 20)

/* Several operations that end as one. */
struct join {
	unsigned pending;
	int error; /* the first */
	void (*done)(struct join *j);
};

/* A request that was begun. */
struct work {
	struct join join;
	struct block *b;
	struct block_request *r;
	struct work *prev, *next; /* of all, in order */
	struct work *next_waiting;
	u64 seq;
	u64 at;                   /* so much of it has been begun */
	u64 gen;                  /* of a flush */
	bool flushing;
	u8 *first;                /* what is written to the first sector; NULL: what the request's buffers hold */
};

/* Clusters that are being made. */
struct alloc {
	struct join join;
	struct work *work;
	struct alloc *prev, *next;
	struct work *waiting, **waiting_end;
	struct plan plan;
	u64 done_before;          /* where in the request plan.offset is */
	u8 *head, *tail;          /* what the clusters hold around plan.offset and len; NULL: nothing to write */
	u64 head_len, tail_len;
};

struct piece {
	struct aio_op op;
	struct join *join;
	struct iovec iov[];
};

static const u8 zeros[64 << 10];

/* ---- buffers ------------------------------------------------------------------------ */

/* Takes len bytes from `from` bytes into the iov on (NULL: zeros) to out, or counts how many
 * elements that needs. */
static int slice(const struct iovec *iov, u64 from, u64 len, struct iovec *out)
{
	int n = 0;

	if (!iov) {
		for (u64 part; len; len -= part, n++) {
			part = MIN(len, sizeof(zeros));
			if (out)
				out[n] = (struct iovec){ (void *)(uintptr_t)zeros, part };
		}
		return n;
	}
	for (; len; iov++) {
		if (from >= iov->iov_len) {
			from -= iov->iov_len;
			continue;
		}
		u64 part = MIN(len, iov->iov_len - from);
		if (out)
			out[n] = (struct iovec){ (u8 *)iov->iov_base + from, part };
		n++;
		from = 0;
		len -= part;
	}
	return n;
}

static void copy_to(const struct iovec *iov, u64 from, const u8 *src, u64 len)
{
	for (; len; iov++) {
		if (from >= iov->iov_len) {
			from -= iov->iov_len;
			continue;
		}
		u64 part = MIN(len, iov->iov_len - from);
		if (src) {
			memcpy((u8 *)iov->iov_base + from, src, part);
			src += part;
		} else {
			memset((u8 *)iov->iov_base + from, 0, part);
		}
		from = 0;
		len -= part;
	}
}

/* ---- pieces ------------------------------------------------------------------------- */

static void join_put(struct join *j, int error)
{
	if (error && !j->error)
		j->error = error;
	if (!--j->pending)
		j->done(j);
}

static void piece_done(struct aio_op *op)
{
	struct piece *p = container_of(op, struct piece, op);
	struct join *j = p->join;
	int error = op->error;

	free(p);
	join_put(j, error);
}

static struct piece *piece_new(struct join *j, enum file_what what, struct file *f, u64 offset, u64 len, int n_iov)
{
	struct piece *p = malloc(sizeof(*p) + (size_t)n_iov * sizeof(p->iov[0]));

	if (!p) {
		if (!j->error)
			j->error = ENOMEM;
		return NULL;
	}
	p->op = (struct aio_op){ .what = what, .file = f, .offset = offset, .len = len, .iov = p->iov, .n_iov = n_iov, .done = piece_done };
	p->join = j;
	j->pending++;
	return p;
}

static void submit(struct block *b, struct join *j, enum file_what what, struct file *f, u64 host, const struct iovec *iov, u64 from, u64 len)
{
	bool moves = what == FILE_READ || what == FILE_WRITE;
	struct piece *p = piece_new(j, what, f, host, len, moves ? slice(iov, from, len, NULL) : 0);

	if (!p)
		return;
	if (moves)
		slice(iov, from, len, p->iov);
	aio_submit(b->aio, &p->op);
}

static int read_compressed(const struct map *m, u64 offset, const struct iovec *iov, u64 from)
{
	u8 *buf = malloc(m->len);
	int err = buf ? m->image->ops->read_compressed(m->image, offset, buf, m->len) : ENOMEM;

	if (!err)
		copy_to(iov, from, buf, m->len);
	free(buf);
	return err;
}

static void read_range(struct block *b, struct join *j, const struct iovec *iov, u64 from, u64 offset, u64 len)
{
	struct map m;
	int err = 0;

	for (; len && !err; offset += m.len, from += m.len, len -= m.len) {
		err = image_map(b->img, offset, len, &m);
		if (err)
			break;
		if (m.kind == MAP_DATA)
			submit(b, j, FILE_READ, m.image->file, m.host, iov, from, m.len);
		else if (m.kind == MAP_COMPRESSED)
			err = read_compressed(&m, offset, iov, from);
		else
			copy_to(iov, from, NULL, m.len);
	}
	if (err && !j->error)
		j->error = err;
}

/* ---- begin and end of requests --------------------------------------------------------- */

static void keep_clock(struct block *b)
{
	b->img->begun = b->seq;
	b->img->oldest = b->oldest ? b->oldest->seq : b->seq + 1;
}

static void finish(struct block *b, struct block_request *r, int error)
{
	r->error = error;
	r->next = NULL;
	*b->finished_end = r;
	b->finished_end = &r->next;
}

static void work_free(struct work *w)
{
	free(w->first);
	free(w);
}

static void work_end(struct work *w)
{
	struct block *b = w->b;

	*(w->prev ? &w->prev->next : &b->oldest) = w->next;
	*(w->next ? &w->next->prev : &b->newest) = w->prev;
	keep_clock(b);
	finish(b, w->r, w->join.error);
	work_free(w);
}

static void flush_done(struct join *j)
{
	struct work *w = container_of(j, struct work, join);

	if (!j->error && w->b->img->ops->committed)
		w->b->img->ops->committed(w->b->img, w->gen);
	work_end(w);
}

static void flush(struct work *w)
{
	struct image *img = w->b->img;

	w->flushing = true;
	w->join = (struct join){ .pending = 1, .done = flush_done };
	int err = img->read_only || !img->ops->commit ? 0 : img->ops->commit(img, &w->gen);
	if (!err && !img->read_only)
		submit(w->b, &w->join, FILE_SYNC, img->file, 0, NULL, 0, 0);
	join_put(&w->join, err);
}

static void work_done(struct join *j)
{
	struct work *w = container_of(j, struct work, join);
	bool writes = w->r->op == BLOCK_WRITE || w->r->op == BLOCK_WRITE_ZEROES;

	if (!j->error && writes && (w->r->fua || w->b->writethrough))
		flush(w);
	else
		work_end(w);
}

/* ---- new clusters ------------------------------------------------------------------- */

static struct alloc *alloc_at(struct block *b, u64 offset)
{
	for (struct alloc *a = b->allocs; a; a = a->next)
		if (offset >= a->plan.start && offset < a->plan.end)
			return a;
	return NULL;
}

/* From offset, which no alloc holds, to the next that one does: at most len. */
static u64 until_alloc(struct block *b, u64 offset, u64 len)
{
	for (struct alloc *a = b->allocs; a; a = a->next)
		if (a->plan.start > offset)
			len = MIN(len, a->plan.start - offset);
	return len;
}

static void wait_for(struct work *w, struct alloc *a)
{
	w->next_waiting = NULL;
	*a->waiting_end = w;
	a->waiting_end = &w->next_waiting;
}

static void alloc_end(struct alloc *a, int error)
{
	struct work *w = a->work;
	struct block *b = w->b;

	if (!error)
		error = b->img->ops->link(b->img, &a->plan);
	else
		b->img->ops->abandon(b->img, &a->plan);
	*(a->prev ? &a->prev->next : &b->allocs) = a->next;
	if (a->next)
		a->next->prev = a->prev;
	if (a->waiting) {
		*b->runnable_end = a->waiting;
		b->runnable_end = a->waiting_end;
	}
	b->cow_bytes -= a->head_len + a->tail_len;
	free(a->head);
	free(a->tail);
	free(a);
	join_put(&w->join, error);
}

static void alloc_written(struct join *j)
{
	alloc_end(container_of(j, struct alloc, join), j->error);
}

/* The old contents are there: all is written at once. */
static void alloc_write(struct join *j)
{
	struct alloc *a = container_of(j, struct alloc, join);
	struct block *b = a->work->b;
	const struct iovec *data = a->work->r->op == BLOCK_WRITE ? a->work->r->iov : NULL;
	const struct plan *p = &a->plan;

	if (j->error) {
		alloc_end(a, j->error);
		return;
	}
	*j = (struct join){ .pending = 1, .done = alloc_written };
	int n = slice(data, a->done_before, p->len, NULL) + !!a->head + !!a->tail;
	struct piece *w = piece_new(j, FILE_WRITE, b->img->file, p->host - a->head_len, a->head_len + p->len + a->tail_len, n);
	if (w) {
		if (a->head)
			w->iov[0] = (struct iovec){ a->head, a->head_len };
		slice(data, a->done_before, p->len, w->iov + !!a->head);
		if (a->tail)
			w->iov[n - 1] = (struct iovec){ a->tail, a->tail_len };
		aio_submit(b->aio, &w->op);
	}
	join_put(j, 0);
}

static bool reads_zero(struct image *img, u64 offset, u64 len)
{
	struct map m;

	for (; len; offset += m.len, len -= m.len)
		if (image_map(img, offset, len, &m) || m.kind != MAP_ZERO)
			return false;
	return true;
}

static int alloc_begin(struct work *w, const struct plan *p)
{
	struct block *b = w->b;
	struct alloc *a = calloc(1, sizeof(*a));
	u64 head = p->offset - p->start, behind = p->offset + p->len, tail = p->end - behind;

	if (!a)
		return ENOMEM;
	a->work = w;
	a->plan = *p;
	a->done_before = w->at;
	a->waiting_end = &a->waiting;
	if (!p->fresh || !reads_zero(b->img, p->start, head) || !reads_zero(b->img, behind, tail)) {
		a->head_len = head;
		a->tail_len = tail;
		a->head = head ? malloc(head) : NULL;
		a->tail = tail ? malloc(tail) : NULL;
		if ((head && !a->head) || (tail && !a->tail)) {
			free(a->head);
			free(a->tail);
			free(a);
			return ENOMEM;
		}
	}
	b->cow_bytes += a->head_len + a->tail_len;
	a->next = b->allocs;
	if (a->next)
		a->next->prev = a;
	b->allocs = a;
	w->join.pending++;
	a->join = (struct join){ .pending = 1, .done = alloc_write };
	if (a->head)
		read_range(b, &a->join, &(struct iovec){ a->head, head }, 0, p->start, head);
	if (a->tail)
		read_range(b, &a->join, &(struct iovec){ a->tail, tail }, 0, behind, tail);
	join_put(&a->join, 0);
	return 0;
}

/* ---- writes, zeroes, discards ---------------------------------------------------------- */

/* Writes part of the request, the first of len bytes; NULL iov: zeros. */
static int write_some(struct work *w, u64 offset, u64 len, u64 *n)
{
	struct image *img = w->b->img;
	const struct iovec *iov = w->r->op == BLOCK_WRITE ? w->r->iov : NULL;
	struct plan p;
	int err = img->ops->plan_write(img, offset, iov ? len : MIN(len, MAX_ZERO_WRITE), &p);

	if (err)
		return err;
	*n = p.len;
	if (p.kind == PLAN_DIRECT) {
		u64 copied = w->first && !w->at ? BLOCK_SECTOR : 0;
		if (copied)
			submit(w->b, &w->join, FILE_WRITE, img->file, p.host, &(struct iovec){ w->first, copied }, 0, copied);
		if (p.len > copied)
			submit(w->b, &w->join, FILE_WRITE, img->file, p.host + copied, iov, w->at + copied, p.len - copied);
		return 0;
	}
	err = alloc_begin(w, &p);
	if (err)
		img->ops->abandon(img, &p);
	return err;
}

static int zero_some(struct work *w, u64 offset, u64 len, u64 *n)
{
	struct block *b = w->b;
	struct plan p;
	bool discard = w->r->op == BLOCK_DISCARD, unmap = !b->no_discard && (discard || w->r->unmap);
	int err = b->img->ops->plan_zero(b->img, offset, len, discard, unmap, &p);

	if (err)
		return err;
	*n = p.len;
	if (p.kind == PLAN_DIRECT)
		submit(b, &w->join, unmap ? FILE_PUNCH : FILE_ZERO, b->img->file, p.host, NULL, 0, p.len);
	else if (p.kind == PLAN_WRITE)
		err = write_some(w, offset, p.len, n);
	return err;
}

/* Begins as much as can be; true: all of it, or it failed. False: it waits. */
static bool change(struct work *w)
{
	struct block *b = w->b;
	const struct block_request *r = w->r;

	while (w->at < r->len && !w->join.error) {
		u64 offset = r->offset + w->at, n = 0;
		struct alloc *a = alloc_at(b, offset);
		if (!a && b->cow_bytes > MAX_COW_BYTES)
			a = b->allocs;
		if (a) {
			wait_for(w, a);
			return false;
		}
		u64 len = until_alloc(b, offset, r->len - w->at);
		int err = r->op == BLOCK_WRITE ? write_some(w, offset, len, &n) : zero_some(w, offset, len, &n);
		if (err && !w->join.error)
			w->join.error = err;
		w->at += n;
	}
	return true;
}

static void go_on(struct work *w)
{
	if (change(w))
		join_put(&w->join, 0);
}

void request_run(struct block *b)
{
	struct work *w;

	while ((w = b->runnable)) {
		if (!(b->runnable = w->next_waiting))
			b->runnable_end = &b->runnable;
		go_on(w);
	}
}

/* ---- entry -------------------------------------------------------------------------- */

/* A raw disk that was not said to be one must not become qcow2 by what its guest writes: the next
 * opening would take the guest's word for which other files of the host are below it. The guest may change its
 * buffer while it is written: so what is judged here is a copy, and the copy is what is written. */
static bool is_guarded(const struct block *b, const struct block_request *r)
{
	return b->img->probed_raw && r->op == BLOCK_WRITE && !r->offset && r->len;
}

static int copy_first_sector(struct work *w)
{
	struct iovec *part = calloc((size_t)w->r->n_iov, sizeof(*part));

	w->first = malloc(BLOCK_SECTOR);
	u8 *to = w->first;
	int n = part && to ? slice(w->r->iov, 0, BLOCK_SECTOR, part) : 0;
	for (int k = 0; k < n; to += part[k++].iov_len)
		memcpy(to, part[k].iov_base, part[k].iov_len);
	free(part);
	if (!n)
		return ENOMEM;
	return memcmp(w->first, "QFI\xfb", 4) ? 0 : EPERM;
}

static int refusal(const struct block *b, const struct block_request *r)
{
	u64 size = b->img->size, held = 0;

	if (r->op == BLOCK_FLUSH)
		return 0;
	if (r->op != BLOCK_READ && b->img->read_only)
		return EACCES;
	if ((r->offset | r->len) % BLOCK_SECTOR || r->offset > size || r->len > size - r->offset)
		return EINVAL;
	if (r->op == BLOCK_READ || r->op == BLOCK_WRITE) {
		if (r->len > BLOCK_MAX_TRANSFER || r->n_iov > BLOCK_MAX_IOV)
			return EINVAL;
		for (int k = 0; k < r->n_iov; k++)
			held += r->iov[k].iov_len;
		if (held != r->len)
			return EINVAL;
	}
	return 0;
}

void request_begin(struct block *b, struct block_request *r)
{
	int err = refusal(b, r);
	bool nothing = r->op == BLOCK_DISCARD && b->no_discard;
	struct work *w = err || nothing ? NULL : calloc(1, sizeof(*w));

	if (w) {
		w->b = b;
		w->r = r;
		err = is_guarded(b, r) ? copy_first_sector(w) : 0;
	}
	if (!w || err) {
		if (w)
			work_free(w);
		finish(b, r, err || nothing ? err : ENOMEM);
		return;
	}
	w->seq = ++b->seq;
	w->prev = b->newest;
	*(w->prev ? &w->prev->next : &b->oldest) = w;
	b->newest = w;
	keep_clock(b);
	w->join = (struct join){ .pending = 1, .done = work_done };
	switch (r->op) {
	case BLOCK_READ:
		read_range(b, &w->join, r->iov, 0, r->offset, r->len);
		join_put(&w->join, 0);
		break;
	case BLOCK_FLUSH:
		flush(w);
		break;
	default:
		go_on(w);
	}
}
