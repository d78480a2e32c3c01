/* virtio-balloon: memory that the guest gives back to the host. VIRTIO 1.2, 5.5.
 *
 *   queue 0 pages given (inflate)   1 pages taken back (deflate): arrays of u32 page numbers, 4 KiB each
 *   queue 2 statistics: { u16 tag, u64 value }
 *   queue 3 free pages that the guest reports, as buffers: their content is not needed
 *
 * A page that was given reads as zeros when the guest touches it again: its host memory is gone (a
 * hole in the memfd), which costs nothing until then. Taking one back needs nothing from the host.
 *
 * Invariants
 *  1. Only whole pages of RAM are dropped, and never one that an engine knows as code: its blocks
 *     would outlive their bytes. The guest names any page that it likes; the worst is its own.
 *  2. The chain of statistics is the device's between two requests; a reset drops it.
 * Left out: the machine does not ask for memory back by itself: virtio_balloon_set_target does. */
#define LOG_TOPIC "virtio"
#include "dev/virtio.h"

#include <string.h>
#include <sys/mman.h>

#define QUEUE_SIZE 128u
#define PFNS_AT_ONCE 256u
#define STAT_BYTES 10u

enum { Q_INFLATE, Q_DEFLATE, Q_STATS, Q_REPORT, QUEUES };
enum { F_STATS_VQ = 1 << 1, F_DEFLATE_ON_OOM = 1 << 2, F_REPORTING = 1 << 5 };
enum { CFG_TARGET = 0, CFG_ACTUAL = 4, CFG_BYTES = 8 };

struct virtio_balloon {
	struct virtio v;
	/* State. */
	u32 target, actual;       /* pages */
	u64 stats[VIRTIO_BALLOON_STATS];
	bool stats_held;
	struct virtq_chain stats_chain;
};

static struct virtio_balloon *balloon_of(struct virtio *v) { return container_of(v, struct virtio_balloon, v); }

/* Gives the host memory behind whole pages of the range back. */
static void drop(struct mem *m, u8 *host, u64 len)
{
	u64 off = (u64)(host - m->ram), end = (off + len) & ~PAGE_MASK;

	for (off = (off + PAGE_MASK) & ~PAGE_MASK; off < end;) {
		u64 n = 0;

		while (off + n < end && !atomic_load(&m->code[(off + n) / PAGE_SIZE].lines))
			n += PAGE_SIZE;
		if (n && madvise(m->ram + off, n, MADV_REMOVE))
			return; /* a host that cannot: the guest has less, nobody has more */
		off += n + PAGE_SIZE;
	}
}

/* ---- queues ------------------------------------------------------------------------------- */

static void inflate(struct virtio *v, struct virtq_chain *c)
{
	u8 raw[PFNS_AT_ONCE * 4];
	size_t n = chain_read(c, 0, raw, sizeof(raw)) / 4;

	for (size_t k = 0; k < n; k++) {
		u64 len = PAGE_SIZE;
		u8 *host = mem_dma(v->d.mem, (u64)ld32(raw + 4 * k) * PAGE_SIZE, &len);

		if (host && len == PAGE_SIZE)
			drop(v->d.mem, host, PAGE_SIZE);
	}
	virtq_push(v, c, 0);
}

static void deflate(struct virtio *v, struct virtq_chain *c) { virtq_push(v, c, 0); }

static void report(struct virtio *v, struct virtq_chain *c)
{
	u64 left = v->d.mem->ram_size; /* who names the same memory again and again is not heard */

	for (unsigned k = c->n_out; k < c->n_out + c->n_in; k++) {
		u64 len = MIN(c->iov[k].iov_len, left);

		drop(v->d.mem, c->iov[k].iov_base, len);
		left -= len;
	}
	virtq_push(v, c, 0);
}

static void take_stats(struct virtio_balloon *b)
{
	struct virtq_chain c;
	u8 raw[STAT_BYTES];

	for (unsigned n = 0; n < QUEUE_SIZE && virtq_pop(&b->v, Q_STATS, &c); n++) {
		for (unsigned k = 0; k < 64 && chain_read(&c, k * STAT_BYTES, raw, sizeof(raw)) == sizeof(raw); k++)
			if (ld16(raw) < VIRTIO_BALLOON_STATS)
				b->stats[ld16(raw)] = ld64(raw + 2);
		if (b->stats_held)
			virtq_push(&b->v, &b->stats_chain, 0);
		b->stats_chain = c;
		b->stats_held = true;
	}
	if (virtq_kicks_on(&b->v, Q_STATS))
		virtio_kick(&b->v, Q_STATS);
}

static void balloon_run(struct virtio *v, unsigned q)
{
	switch (q) {
	case Q_INFLATE: virtq_each(v, q, inflate); break;
	case Q_DEFLATE: virtq_each(v, q, deflate); break;
	case Q_STATS: take_stats(balloon_of(v)); break;
	default: virtq_each(v, q, report);
	}
}

/* ---- the host's side --------------------------------------------------------------------------- */

void virtio_balloon_set_target(struct device *d, u64 bytes)
{
	struct virtio_balloon *b = container_of(d, struct virtio_balloon, v.d);

	b->target = (u32)MIN(bytes / PAGE_SIZE, UINT32_MAX);
	virtio_config_changed(&b->v);
}

u64 virtio_balloon_target(const struct device *d)
{
	return (u64)container_of(d, struct virtio_balloon, v.d)->target * PAGE_SIZE;
}

u64 virtio_balloon_actual(const struct device *d)
{
	return (u64)container_of(d, struct virtio_balloon, v.d)->actual * PAGE_SIZE;
}

bool virtio_balloon_stats(struct device *d, u64 stats[VIRTIO_BALLOON_STATS])
{
	struct virtio_balloon *b = container_of(d, struct virtio_balloon, v.d);
	bool held = b->stats_held;

	memcpy(stats, b->stats, sizeof(b->stats));
	if (held) { /* giving it back asks for the next */
		b->stats_held = false;
		virtq_push(&b->v, &b->stats_chain, 0);
		virtq_notify(&b->v, Q_STATS);
	}
	return held;
}

/* ---- configuration -------------------------------------------------------------------------------- */

static void balloon_config_read(struct virtio *v, u8 *cfg)
{
	st32(cfg + CFG_TARGET, balloon_of(v)->target);
	st32(cfg + CFG_ACTUAL, balloon_of(v)->actual);
}

static void balloon_config_write(struct virtio *v, unsigned off, const u8 *buf, unsigned len)
{
	if (off == CFG_ACTUAL && len == 4)
		balloon_of(v)->actual = ld32(buf);
}

static void balloon_forget(struct virtio *v)
{
	struct virtio_balloon *b = balloon_of(v);

	b->actual = 0;
	memset(b->stats, 0, sizeof(b->stats));
	if (b->stats_held) {
		b->stats_held = false;
		virtq_drop(v, &b->stats_chain);
	}
}

static const struct virtio_type balloon_type = {
	.name = "virtio-balloon",
	.id = VIRTIO_ID_BALLOON,
	.class_code = 0x00ff00,
	.features = F_STATS_VQ | F_DEFLATE_ON_OOM | F_REPORTING,
	.config_read = balloon_config_read,
	.config_write = balloon_config_write,
	.run = balloon_run,
	.reset = balloon_forget,
};

/* ---- class ---------------------------------------------------------------------------------------- */

static bool balloon_init(struct device *d, struct error *e)
{
	struct virtio_balloon *b = container_of(d, struct virtio_balloon, v.d);

	b->v.n_queues = QUEUES;
	for (unsigned k = 0; k < QUEUES; k++)
		b->v.queue_size[k] = QUEUE_SIZE;
	b->v.config_size = CFG_BYTES;
	return virtio_init(&b->v, &balloon_type, e);
}

static void balloon_reset(struct device *d) { virtio_reset(container_of(d, struct virtio, d)); }

/* The chain of statistics goes back, so that a saved state has none in flight. */
static void balloon_drain(struct device *d)
{
	struct virtio_balloon *b = container_of(d, struct virtio_balloon, v.d);

	virtio_lock(&b->v);
	if (b->stats_held) {
		b->stats_held = false;
		virtq_push(&b->v, &b->stats_chain, 0);
		virtq_notify(&b->v, Q_STATS);
	}
	virtio_unlock(&b->v);
}

static void balloon_loaded(struct device *d)
{
	struct virtio_balloon *b = container_of(d, struct virtio_balloon, v.d);

	if (b->stats_held) {
		b->stats_held = false;
		virtq_drop(&b->v, &b->stats_chain);
	}
	virtio_loaded(&b->v);
}

static void balloon_destroy(struct device *d) { virtio_destroy(container_of(d, struct virtio, d)); }

static const struct state_field balloon_state[] = {
	VIRTIO_STATE(struct virtio_balloon), STATE(struct virtio_balloon, target), STATE(struct virtio_balloon, actual),
	STATE(struct virtio_balloon, stats), STATE_END
};

const struct device_class virtio_balloon_class = {
	.name = "virtio_balloon",
	.help = "virtio memory balloon",
	.size = sizeof(struct virtio_balloon),
	.init = balloon_init,
	.reset = balloon_reset,
	.destroy = balloon_destroy,
	.loaded = balloon_loaded,
	.drain = balloon_drain,
	.state = balloon_state,
};
