/* Virtqueues, split and packed: the one walker of descriptors. VIRTIO 1.2, 2.7 and 2.8.
 *
 *   split:  desc    16 bytes each: u64 address, u32 length, u16 flags, u16 next
 *           driver  u16 flags, u16 index, u16 heads[size], u16 used_event
 *           device  u16 flags, u16 index, { u32 id, u32 length }[size], u16 avail_event
 *   packed: desc    16 bytes each: u64 address, u32 length, u16 id, u16 flags (bits 7, 15: available, used)
 *           driver, device   u16 offset and wrap, u16 flags: which notifications are wanted
 *
 * Invariants: virtio.h. Here: a walk reads each descriptor once, and at most as many as the queue
 * has entries; an indirect table adds at most that many again, once. Bytes of a chain are
 * bounded by that and by 4 GiB each, so what a device does for a chain it bounds itself.
 * Who may write what: the guest everything but the used ring and the device area, and those too;
 * nothing here is believed that was not just read, and nothing written is read again. */
#define LOG_TOPIC "virtio"
#include "dev/virtio.h"

#include <string.h>

enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4, DESC_AVAIL = 1 << 7, DESC_USED = 1 << 15 };
enum { DESC_BYTES = 16, NO_INTERRUPT = 1, NO_NOTIFY = 1 };
enum { EVENT_ENABLE = 0, EVENT_DISABLE = 1, EVENT_DESC = 2 };

struct desc { u64 addr; u32 len; u16 flags, next; }; /* packed: next is the id */

static bool packed(const struct virtio *v) { return virtio_has(v, VIRTIO_F_RING_PACKED); }

/* ---- guest memory: false breaks the device ------------------------------------------------ */

static bool get16(struct virtio *v, u64 gpa, u16 *val)
{
	if (mem_read(v->d.mem, gpa, val, 2))
		return true;
	virtio_break(v, "a queue that is not in RAM");
	return false;
}

static bool put16(struct virtio *v, u64 gpa, u16 val)
{
	if (mem_write(v->d.mem, gpa, &val, 2))
		return true;
	virtio_break(v, "a queue that is not in RAM");
	return false;
}

static bool get_desc(struct virtio *v, u64 gpa, struct desc *d)
{
	u8 raw[DESC_BYTES];

	if (!mem_read(v->d.mem, gpa, raw, sizeof(raw))) {
		virtio_break(v, "a descriptor that is not in RAM");
		return false;
	}
	bool p = packed(v);
	*d = (struct desc){ ld64(raw), ld32(raw + 8), ld16(raw + (p ? 14 : 12)), ld16(raw + (p ? 12 : 14)) };
	return true;
}

/* ---- a chain ------------------------------------------------------------------------------ */

static bool bad(struct virtio *v, const char *why)
{
	virtio_break(v, why);
	return false;
}

/* Takes one buffer into the chain. */
static bool add_buffer(struct virtio *v, struct virtq_chain *c, const struct desc *d)
{
	bool in = d->flags & DESC_WRITE;
	u64 addr = d->addr, left = d->len;

	if (!in && c->n_in)
		return bad(v, "a buffer to read behind one to write");
	while (left) {
		u64 n = left;
		u8 *host = mem_dma(v->d.mem, addr, &n);
		unsigned used = c->n_out + c->n_in;

		if (!host)
			return bad(v, "a buffer that is not RAM");
		if (used == VIRTQ_MAX_IOV)
			return bad(v, "a chain of too many pieces");
		c->iov[used] = (struct iovec){ host, n };
		*(in ? &c->n_in : &c->n_out) += 1;
		*(in ? &c->in_len : &c->out_len) += n;
		addr += n;
		left -= n;
	}
	return true;
}

/* An indirect table: all of it (packed), or as its links say from entry 0 (split). */
static bool add_indirect(struct virtio *v, struct virtq_chain *c, const struct desc *table)
{
	u32 n = table->len / DESC_BYTES, at = 0;
	struct desc d;

	if (!virtio_has(v, VIRTIO_F_INDIRECT_DESC) || table->len % DESC_BYTES || !n)
		return bad(v, "an indirect table that cannot be");
	for (u32 seen = 0;; seen++) {
		if (seen == v->vq[c->q].size || at >= n)
			return bad(v, "an indirect table with a loop, or links beyond its end");
		if (!get_desc(v, table->addr + (u64)at * DESC_BYTES, &d))
			return false;
		if (d.flags & DESC_INDIRECT)
			return bad(v, "an indirect table in an indirect table");
		if (!add_buffer(v, c, &d))
			return false;
		if (packed(v) ? ++at == n : !(d.flags & DESC_NEXT))
			return true;
		if (!packed(v))
			at = d.next;
	}
}

static bool walk_split(struct virtio *v, struct virtq_chain *c, u16 head)
{
	const struct virtq *q = &v->vq[c->q];
	struct desc d = { .flags = DESC_NEXT, .next = head };

	for (u32 seen = 0; d.flags & DESC_NEXT; seen++) {
		if (seen == q->size)
			return bad(v, "a chain with a loop");
		if (d.next >= q->size)
			return bad(v, "a descriptor beyond the table");
		if (!get_desc(v, q->desc + (u64)d.next * DESC_BYTES, &d))
			return false;
		if (d.flags & DESC_INDIRECT) {
			if (d.flags & DESC_NEXT)
				return bad(v, "a chain that goes on behind an indirect table");
			return add_indirect(v, c, &d);
		}
		if (!add_buffer(v, c, &d))
			return false;
	}
	return true;
}

static void chain_begin(struct virtio *v, unsigned q, struct virtq_chain *c)
{
	c->epoch = v->epoch;
	c->q = (u16)q;
	c->n_out = c->n_in = 0;
	c->out_len = c->in_len = 0;
	c->n_desc = 1;
}

static bool pop_split(struct virtio *v, struct virtq *q, struct virtq_chain *c)
{
	u16 avail, head;

	if (!get16(v, q->driver + 2, &avail) || avail == q->next_avail)
		return false;
	if ((u16)(avail - q->next_avail) > q->size)
		return bad(v, "more available than the queue has entries");
	atomic_thread_fence(memory_order_acquire); /* the index before what it stands for */
	if (!get16(v, q->driver + 4 + 2ull * (q->next_avail % q->size), &head))
		return false;
	c->id = head;
	if (!walk_split(v, c, head))
		return false;
	q->next_avail++;
	return true;
}

/* ---- packed ------------------------------------------------------------------------------- */

static bool is_available(const struct virtq *q, u16 flags)
{
	bool avail = flags & DESC_AVAIL, used = flags & DESC_USED;

	return avail == (bool)q->avail_wrap && used != (bool)q->avail_wrap;
}

static void advance(u16 *index, u8 *wrap, u16 by, u16 size)
{
	*index = (u16)(*index + by);
	if (*index >= size) {
		*index = (u16)(*index - size);
		*wrap ^= 1;
	}
}

static bool walk_packed(struct virtio *v, const struct virtq *q, struct virtq_chain *c, struct desc *d)
{
	u16 at = q->next_avail;

	for (c->n_desc = 1;; c->n_desc++) {
		c->id = d->next; /* that of the last one counts */
		if (d->flags & DESC_INDIRECT) {
			if (c->n_desc > 1 || (d->flags & DESC_NEXT))
				return bad(v, "an indirect table within a chain");
			return add_indirect(v, c, d);
		}
		if (!add_buffer(v, c, d))
			return false;
		if (!(d->flags & DESC_NEXT))
			return true;
		if (c->n_desc == q->size)
			return bad(v, "a chain with a loop");
		at = (u16)(at + 1 == q->size ? 0 : at + 1);
		if (!get_desc(v, q->desc + (u64)at * DESC_BYTES, d))
			return false;
	}
}

static bool pop_packed(struct virtio *v, struct virtq *q, struct virtq_chain *c)
{
	u64 at = q->desc + (u64)q->next_avail * DESC_BYTES;
	struct desc d;
	u16 flags;

	if (!get16(v, at + 14, &flags) || !is_available(q, flags))
		return false;
	atomic_thread_fence(memory_order_acquire);
	if (!get_desc(v, at, &d))
		return false;
	d.flags = (u16)((d.flags & ~(DESC_AVAIL | DESC_USED)));
	if (!walk_packed(v, q, c, &d))
		return false;
	advance(&q->next_avail, &q->avail_wrap, c->n_desc, q->size);
	return true;
}

static bool push_packed(struct virtio *v, struct virtq *q, const struct virtq_chain *c, u32 written)
{
	u64 at = q->desc + (u64)q->next_used * DESC_BYTES;
	u8 id_len[6];

	st32(id_len, written);
	st16(id_len + 4, c->id);
	if (!mem_write(v->d.mem, at + 8, id_len, sizeof(id_len)))
		return bad(v, "a queue that is not in RAM");
	atomic_thread_fence(memory_order_release); /* the flags come last */
	u16 flags = (u16)((q->used_wrap ? DESC_AVAIL | DESC_USED : 0) | (c->in_len ? DESC_WRITE : 0));
	if (!put16(v, at + 14, flags))
		return false;
	advance(&q->next_used, &q->used_wrap, c->n_desc, q->size);
	return true;
}

/* ---- taking and giving back ----------------------------------------------------------------- */

bool virtq_pop(struct virtio *v, unsigned qi, struct virtq_chain *c)
{
	if (!virtio_queue_usable(v, qi))
		return false;
	chain_begin(v, qi, c);
	if (!(packed(v) ? pop_packed(v, &v->vq[qi], c) : pop_split(v, &v->vq[qi], c)))
		return false;
	v->in_flight++;
	return true;
}

static bool push_split(struct virtio *v, struct virtq *q, const struct virtq_chain *c, u32 written)
{
	u8 elem[8];

	st32(elem, c->id);
	st32(elem + 4, written);
	if (!mem_write(v->d.mem, q->device + 4 + 8ull * (q->next_used % q->size), elem, sizeof(elem)))
		return bad(v, "a queue that is not in RAM");
	atomic_thread_fence(memory_order_release);
	return put16(v, q->device + 2, ++q->next_used);
}

/* What was written in place may be code. */
static void tell_written(struct virtio *v, const struct virtq_chain *c, u64 written)
{
	for (unsigned k = c->n_out; written && k < c->n_out + c->n_in; k++) {
		u64 n = MIN(written, c->iov[k].iov_len);

		mem_dma_written(v->d.mem, c->iov[k].iov_base, n);
		written -= n;
	}
}

void virtq_push(struct virtio *v, struct virtq_chain *c, u64 written)
{
	struct virtq *q = &v->vq[c->q];

	tell_written(v, c, written);
	if (c->epoch == v->epoch && virtio_queue_usable(v, c->q)) {
		u32 len = (u32)MIN(written, UINT32_MAX);

		packed(v) ? push_packed(v, q, c, len) : push_split(v, q, c, len);
		q->to_signal = true;
	}
	virtq_drop(v, c);
}

void virtq_unpop(struct virtio *v, struct virtq_chain *c)
{
	struct virtq *q = &v->vq[c->q];

	if (c->epoch == v->epoch && !packed(v)) {
		q->next_avail--;
	} else if (c->epoch == v->epoch) {
		q->avail_wrap ^= q->next_avail < c->n_desc;
		q->next_avail = (u16)(q->next_avail - c->n_desc + (q->next_avail < c->n_desc ? q->size : 0));
	}
	virtq_drop(v, c);
}

bool virtq_is_empty(struct virtio *v, unsigned qi)
{
	const struct virtq *q = &v->vq[qi];
	u16 val;

	if (!virtio_queue_usable(v, qi))
		return true;
	if (packed(v))
		return !get16(v, q->desc + (u64)q->next_avail * DESC_BYTES + 14, &val) || !is_available(q, val);
	return !get16(v, q->driver + 2, &val) || val == q->next_avail;
}

/* ---- notifications ---------------------------------------------------------------------------- */

static u64 used_event(const struct virtq *q) { return q->driver + 4 + 2ull * q->size; }
static u64 avail_event(const struct virtq *q) { return q->device + 4 + 8ull * q->size; }

/* Did the index pass event, going from was to now? */
static bool passed(u16 event, u16 now, u16 was)
{
	return (u16)(now - event - 1) < (u16)(now - was);
}

static bool wants_split(struct virtio *v, struct virtq *q)
{
	u16 val;

	if (!virtio_has(v, VIRTIO_F_EVENT_IDX))
		return get16(v, q->driver, &val) && !(val & NO_INTERRUPT);
	return get16(v, used_event(q), &val) && (!q->signalled_valid || passed(val, q->next_used, q->signalled));
}

static bool wants_packed(struct virtio *v, struct virtq *q)
{
	u16 off, flags;

	if (!get16(v, q->driver, &off) || !get16(v, q->driver + 2, &flags))
		return false;
	if (!virtio_has(v, VIRTIO_F_EVENT_IDX) || (flags & 3) != EVENT_DESC)
		return (flags & 3) != EVENT_DISABLE;
	/* As counters that do not wrap at the ring's size but at 2^16. */
	u16 event = off & 0x7fff;
	if ((off >> 15) != q->used_wrap)
		event = (u16)(event - q->size);
	u16 was = q->signalled >= q->next_used ? (u16)(q->signalled - q->size) : q->signalled;
	return !q->signalled_valid || passed(event, q->next_used, was);
}

void virtq_notify(struct virtio *v, unsigned qi)
{
	struct virtq *q = &v->vq[qi];

	if (!virtio_queue_usable(v, qi) || !q->to_signal)
		return;
	atomic_thread_fence(memory_order_seq_cst); /* the used index before the driver's wish */
	bool wants = packed(v) ? wants_packed(v, q) : wants_split(v, q);
	q->signalled = q->next_used;
	q->signalled_valid = true;
	q->to_signal = false;
	if (wants)
		virtio_interrupt(v, q->vector, 1);
}

void virtq_kicks_off(struct virtio *v, unsigned qi)
{
	const struct virtq *q = &v->vq[qi];

	if (!virtio_queue_usable(v, qi))
		return;
	if (packed(v))
		put16(v, q->device + 2, EVENT_DISABLE);
	else if (!virtio_has(v, VIRTIO_F_EVENT_IDX)) /* an event that is passed is as good as none wanted */
		put16(v, q->device, NO_NOTIFY);
}

bool virtq_kicks_on(struct virtio *v, unsigned qi)
{
	const struct virtq *q = &v->vq[qi];

	if (!virtio_queue_usable(v, qi))
		return false;
	if (packed(v))
		put16(v, q->device + 2, EVENT_ENABLE);
	else if (virtio_has(v, VIRTIO_F_EVENT_IDX))
		put16(v, avail_event(q), q->next_avail);
	else
		put16(v, q->device, 0);
	atomic_thread_fence(memory_order_seq_cst);
	return !virtq_is_empty(v, qi);
}

void virtq_each(struct virtio *v, unsigned qi, void (*serve)(struct virtio *v, struct virtq_chain *c))
{
	struct virtq_chain c;

	virtq_kicks_off(v, qi);
	for (unsigned n = 0; n < v->vq[qi].size && virtq_pop(v, qi, &c); n++)
		serve(v, &c);
	virtq_notify(v, qi);
	if (virtq_kicks_on(v, qi))
		virtio_kick(v, qi);
}

/* ---- bytes of chains ---------------------------------------------------------------------------- */

size_t chain_read(const struct virtq_chain *c, u64 off, void *buf, size_t len)
{
	return iov_read(c->iov, c->n_out, off, buf, len);
}

size_t chain_write(struct virtq_chain *c, u64 off, const void *buf, size_t len)
{
	return iov_write(c->iov + c->n_out, c->n_in, off, buf, len);
}
