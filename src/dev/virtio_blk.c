/* virtio-blk: a disk. VIRTIO 1.2, 5.2. Requests go to block/, straight from and into the buffers that the
 * guest gave; they are done in any order.
 *
 *   readable: u32 type, u32 reserved, u64 sector; data of a write; ranges to discard or zero
 *   writable: data of a read; u8 status, the last byte
 *
 * Invariants
 *  1. A request that is with block/ holds its chain until done is called, also over a reset.
 *  2. At most MAX_IN_FLIGHT are, however many a driver makes available.
 *  3. Writes are durable when they are done unless the driver can flush and has left the cache on. */
#define LOG_TOPIC "virtio"
#include "dev/virtio.h"

#include <stdlib.h>
#include <string.h>

#define MAX_QUEUES 8u
#define QUEUE_SIZE 256u
#define MAX_IN_FLIGHT 512u
#define HEADER 16u
#define ID_BYTES 20u
#define RANGE_BYTES 16u
#define RANGE_UNMAP 1u
#define MAX_RANGE_SECTORS (1u << 22) /* 2 GiB: one request does not take forever */

enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13 };
enum { S_OK = 0, S_IOERR = 1, S_UNSUPP = 2 };
enum { F_SEG_MAX = 1 << 2, F_GEOMETRY = 1 << 4, F_RO = 1 << 5, F_BLK_SIZE = 1 << 6, F_FLUSH = 1 << 9, F_TOPOLOGY = 1 << 10,
       F_CONFIG_WCE = 1 << 11, F_MQ = 1 << 12, F_DISCARD = 1 << 13, F_WRITE_ZEROES = 1 << 14 };
/* struct virtio_blk_config */
enum { CFG_CAPACITY = 0, CFG_SEG_MAX = 12, CFG_CYLINDERS = 16, CFG_HEADS = 18, CFG_SECTORS = 19, CFG_BLK_SIZE = 20, CFG_PHYSICAL = 24,
       CFG_MIN_IO = 26, CFG_OPT_IO = 28, CFG_WRITEBACK = 32, CFG_QUEUES = 34, CFG_DISCARD_MAX = 36, CFG_DISCARD_SEG = 40,
       CFG_DISCARD_ALIGN = 44, CFG_ZEROES_MAX = 48, CFG_ZEROES_SEG = 52, CFG_ZEROES_UNMAP = 56, CFG_BYTES = 60 };

struct virtio_blk;
struct request {
	struct virtio_blk *b;
	struct request *next;     /* in the list of free ones */
	struct block_request r;
	struct virtq_chain c;
	struct iovec iov[VIRTQ_MAX_IOV];
};

struct virtio_blk {
	struct virtio v;
	struct block *disk;       /* NULL: none; every request is an error */
	struct request *free;
	unsigned n_requests;      /* with block/ */
	u32 waiting;              /* queues that invariant 2 has stopped */
	char id[ID_BYTES + 1];
	u8 writeback;             /* state: what the driver last wrote, or 1 */
};

/* ---- answers --------------------------------------------------------------------------- */

/* A chain that is longer than any request may be only gets its status: to go through all of it, page by page
 * (mem_dma_written), could take minutes, since its buffers may overlap. */
static void answer(struct virtio *v, struct virtq_chain *c, u8 status)
{
	struct iovec last;
	bool too_long = c->in_len > BLOCK_MAX_TRANSFER + 1;

	chain_write(c, c->in_len - 1, &status, 1);
	if (too_long && iov_slice(c->iov + c->n_out, c->n_in, c->in_len - 1, 1, &last) == 1)
		mem_dma_written(v->d.mem, last.iov_base, 1);
	virtq_push(v, c, too_long ? 0 : c->in_len);
}

static struct request *request_get(struct virtio_blk *b)
{
	struct request *q = b->free;

	if (!q)
		return malloc(sizeof(*q));
	b->free = q->next;
	return q;
}

static void request_put(struct virtio_blk *b, struct request *q)
{
	q->next = b->free;
	b->free = q;
}

static void request_done(struct block_request *r)
{
	struct request *q = container_of(r, struct request, r);
	struct virtio_blk *b = q->b;
	struct virtio *v = &b->v;

	virtio_lock(v);
	unsigned queue = q->c.q;
	answer(v, &q->c, r->error ? S_IOERR : S_OK);
	virtq_notify(v, queue);
	request_put(b, q);
	b->n_requests--;
	for (; b->waiting; b->waiting &= b->waiting - 1)
		virtio_kick(v, (unsigned)__builtin_ctz(b->waiting));
	virtio_unlock(v);
}

/* ---- requests ---------------------------------------------------------------------------- */

static bool cache_on(const struct virtio_blk *b)
{
	return virtio_has(&b->v, F_FLUSH) && b->writeback;
}

/* Discard and write zeroes: one range. Status, or S_OK when the request is ready for block/. */
static u8 take_range(struct virtio_blk *b, struct request *q, bool discard)
{
	u8 raw[RANGE_BYTES];
	u64 feature = discard ? F_DISCARD : F_WRITE_ZEROES;

	if (!virtio_has(&b->v, feature))
		return S_UNSUPP;
	if (q->c.out_len != HEADER + RANGE_BYTES || chain_read(&q->c, HEADER, raw, sizeof(raw)) != sizeof(raw))
		return S_UNSUPP; /* more than one range: the configuration says one */
	u64 sector = ld64(raw);
	u32 sectors = ld32(raw + 8), flags = ld32(raw + 12);
	if ((flags & ~RANGE_UNMAP) || (discard && flags))
		return S_UNSUPP;
	if (sectors > MAX_RANGE_SECTORS || sector > UINT64_MAX / BLOCK_SECTOR)
		return S_IOERR;
	q->r.op = discard ? BLOCK_DISCARD : BLOCK_WRITE_ZEROES;
	q->r.unmap = flags & RANGE_UNMAP;
	q->r.offset = sector * BLOCK_SECTOR;
	q->r.len = (u64)sectors * BLOCK_SECTOR;
	return S_OK;
}

static u8 take_transfer(struct request *q, bool write, u64 sector)
{
	const struct virtq_chain *c = &q->c;

	q->r.op = write ? BLOCK_WRITE : BLOCK_READ;
	q->r.len = write ? c->out_len - HEADER : c->in_len - 1;
	if (sector > UINT64_MAX / BLOCK_SECTOR || q->r.len > BLOCK_MAX_TRANSFER)
		return S_IOERR;
	q->r.offset = sector * BLOCK_SECTOR;
	q->r.n_iov = (int)(write ? iov_slice(c->iov, c->n_out, HEADER, q->r.len, q->iov) :
			   iov_slice(c->iov + c->n_out, c->n_in, 0, q->r.len, q->iov));
	q->r.iov = q->iov;
	return S_OK;
}

static u8 give_id(struct virtio_blk *b, struct virtq_chain *c)
{
	if (c->in_len < ID_BYTES + 1)
		return S_IOERR;
	chain_write(c, 0, b->id, ID_BYTES);
	return S_OK;
}

/* Makes a request for block/ of the chain. False: it is answered already. */
static bool take(struct virtio_blk *b, struct request *q)
{
	u8 header[HEADER], status;
	struct virtq_chain *c = &q->c;
	bool local = false;

	chain_read(c, 0, header, sizeof(header));
	q->r = (struct block_request){ .done = request_done, .fua = !cache_on(b) };
	switch (ld32(header)) {
	case T_IN: status = take_transfer(q, false, ld64(header + 8)); break;
	case T_OUT: status = take_transfer(q, true, ld64(header + 8)); break;
	case T_DISCARD: status = take_range(b, q, true); break;
	case T_WRITE_ZEROES: status = take_range(b, q, false); break;
	case T_FLUSH:
		q->r.op = BLOCK_FLUSH;
		status = S_OK;
		break;
	case T_GET_ID:
		status = give_id(b, c);
		local = true;
		break;
	default: status = S_UNSUPP;
	}
	if (status == S_OK && !local && b->disk)
		return true;
	answer(&b->v, c, !local && status == S_OK ? S_IOERR : status);
	return false;
}

static bool start_one(struct virtio_blk *b, unsigned queue)
{
	struct request *q = request_get(b);

	if (!q)
		return false;
	q->b = b;
	if (!virtq_pop(&b->v, queue, &q->c)) {
		request_put(b, q);
		return false;
	}
	if (q->c.out_len < HEADER || !q->c.in_len) {
		virtio_break(&b->v, "a request without header or status byte");
		virtq_drop(&b->v, &q->c);
		request_put(b, q);
	} else if (take(b, q)) {
		b->n_requests++;
		block_submit(b->disk, &q->r);
	} else {
		request_put(b, q);
	}
	return true;
}

static void blk_run(struct virtio *v, unsigned queue)
{
	struct virtio_blk *b = container_of(v, struct virtio_blk, v);

	virtq_kicks_off(v, queue);
	for (unsigned n = 0; n < QUEUE_SIZE && b->n_requests < MAX_IN_FLIGHT && start_one(b, queue); n++)
		;
	virtq_notify(v, queue);
	if (b->n_requests >= MAX_IN_FLIGHT)
		b->waiting |= 1u << queue;
	else if (virtq_kicks_on(v, queue))
		virtio_kick(v, queue);
}

/* ---- configuration ------------------------------------------------------------------------- */

static void blk_config_read(struct virtio *v, u8 *cfg)
{
	const struct virtio_blk *b = container_of(v, struct virtio_blk, v);
	struct block_geometry g = { 0 };
	struct block_limits l = { .physical_sector = BLOCK_SECTOR, .granularity = BLOCK_SECTOR };

	if (b->disk) {
		st64(cfg + CFG_CAPACITY, block_size(b->disk) / BLOCK_SECTOR);
		block_get_geometry(b->disk, &g);
		block_get_limits(b->disk, &l);
	}
	st32(cfg + CFG_SEG_MAX, QUEUE_SIZE - 2);
	st16(cfg + CFG_CYLINDERS, (u16)g.cylinders);
	cfg[CFG_HEADS] = (u8)g.heads;
	cfg[CFG_SECTORS] = (u8)g.sectors;
	st32(cfg + CFG_BLK_SIZE, BLOCK_SECTOR);
	cfg[CFG_PHYSICAL] = (u8)__builtin_ctz(MAX(l.physical_sector / BLOCK_SECTOR, 1u));
	st16(cfg + CFG_MIN_IO, (u16)MIN(MAX(l.physical_sector / BLOCK_SECTOR, 1u), 0xffffu));
	cfg[CFG_WRITEBACK] = b->writeback;
	st16(cfg + CFG_QUEUES, (u16)v->n_queues);
	st32(cfg + CFG_DISCARD_MAX, MAX_RANGE_SECTORS);
	st32(cfg + CFG_DISCARD_SEG, 1);
	st32(cfg + CFG_DISCARD_ALIGN, MAX(l.granularity / BLOCK_SECTOR, 1u));
	st32(cfg + CFG_ZEROES_MAX, MAX_RANGE_SECTORS);
	st32(cfg + CFG_ZEROES_SEG, 1);
	cfg[CFG_ZEROES_UNMAP] = l.discard;
}

static void blk_config_write(struct virtio *v, unsigned off, const u8 *buf, unsigned len)
{
	struct virtio_blk *b = container_of(v, struct virtio_blk, v);

	if (off == CFG_WRITEBACK && len == 1 && virtio_has(v, F_CONFIG_WCE))
		b->writeback = buf[0] & 1;
}

static void blk_forget(struct virtio *v) { container_of(v, struct virtio_blk, v)->writeback = 1; }

static const struct virtio_type blk_type = {
	.name = "virtio-blk",
	.id = VIRTIO_ID_BLK,
	.class_code = 0x010000,
	.features = F_SEG_MAX | F_GEOMETRY | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_CONFIG_WCE | F_MQ | F_DISCARD | F_WRITE_ZEROES,
	.config_read = blk_config_read,
	.config_write = blk_config_write,
	.run = blk_run,
	.reset = blk_forget,
};

void virtio_blk_attach(struct device *d, struct block *disk, unsigned queues, const char *id)
{
	struct virtio_blk *b = container_of(d, struct virtio_blk, v.d);

	b->disk = disk;
	b->v.n_queues = MIN(MAX(queues, 1u), MAX_QUEUES);
	if (block_read_only(disk))
		b->v.offered = (b->v.offered & ~(u64)(F_DISCARD | F_WRITE_ZEROES)) | F_RO;
	memset(b->id, 0, sizeof(b->id));
	strncpy(b->id, id, ID_BYTES);
}

/* ---- class ----------------------------------------------------------------------------------- */

static bool blk_init(struct device *d, struct error *e)
{
	struct virtio_blk *b = container_of(d, struct virtio_blk, v.d);

	b->v.n_queues = MAX_QUEUES;
	for (unsigned k = 0; k < MAX_QUEUES; k++)
		b->v.queue_size[k] = QUEUE_SIZE;
	b->v.config_size = CFG_BYTES;
	return virtio_init(&b->v, &blk_type, e);
}

static void blk_reset(struct device *d) { virtio_reset(container_of(d, struct virtio, d)); }

static void blk_loaded(struct device *d)
{
	struct virtio_blk *b = container_of(d, struct virtio_blk, v.d);

	b->writeback &= 1;
	virtio_loaded(&b->v);
}

static void blk_drain(struct device *d)
{
	struct virtio_blk *b = container_of(d, struct virtio_blk, v.d);

	if (b->disk)
		block_drain(b->disk);
}

static void blk_destroy(struct device *d)
{
	struct virtio_blk *b = container_of(d, struct virtio_blk, v.d);

	virtio_destroy(&b->v);
	for (struct request *q = b->free, *next; q; q = next) {
		next = q->next;
		free(q);
	}
}

static const struct state_field blk_state[] = {
	VIRTIO_STATE(struct virtio_blk), STATE(struct virtio_blk, writeback), STATE_END
};

const struct device_class virtio_blk_class = {
	.name = "virtio_blk",
	.help = "virtio disk",
	.size = sizeof(struct virtio_blk),
	.init = blk_init,
	.reset = blk_reset,
	.destroy = blk_destroy,
	.loaded = blk_loaded,
	.drain = blk_drain,
	.state = blk_state,
};
