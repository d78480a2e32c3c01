/* Commands of the NVMe namespace. NVM Express 1.4, chapter 6; numbers are those of the commands.
 *
 * Data goes straight from and to the guest's memory, a command by one request to the host's disk.
 *
 * Threading: machine lock held, but for disk_done, which takes it: the loop's thread. */
#include "dev/nvme_impl.h"

#include <string.h>

enum { OP_FLUSH = 0x00, OP_WRITE = 0x01, OP_READ = 0x02, OP_WRITE_ZEROES = 0x08, OP_DATASET = 0x09 };
#define DW12_FUA (1u << 30)
#define DW12_DEALLOCATE (1u << 25)
#define DW11_DEALLOCATE (1u << 2)
#define ALL_NAMESPACES 0xffffffffu

static u64 capacity(const struct nvme *n) { return block_size(n->blk) / BLOCK_SECTOR; }

static void next_range(struct nvme_command *c);

/* ---- ends -------------------------------------------------------------------------------------------- */

static u16 failure(struct nvme *n, enum block_op op)
{
	n->media_errors++;
	return op == BLOCK_READ ? NVME_READ_ERROR : op == BLOCK_WRITE ? NVME_WRITE_FAULT : NVME_INTERNAL;
}

static void count(struct nvme *n, const struct block_request *r)
{
	if (r->op == BLOCK_READ) {
		n->reads++;
		n->read_units += r->len / BLOCK_SECTOR;
	} else if (r->op == BLOCK_WRITE) {
		n->writes++;
		n->written_units += r->len / BLOCK_SECTOR;
	}
}

static void go_on(struct nvme_command *c)
{
	if (c->req.error) {
		nvme_end(c, failure(c->n, c->req.op));
	} else if (c->req.op == BLOCK_DISCARD) {
		next_range(c);
	} else {
		count(c->n, &c->req);
		nvme_end(c, NVME_OK);
	}
}

static void disk_done(struct block_request *r)
{
	struct nvme_command *c = r->arg;
	struct nvme *n = c->n;
	struct mem *m = n->d.mem;

	mem_lock(m);
	for (int k = 0; r->op == BLOCK_READ && k < r->n_iov; k++)
		mem_dma_written(m, r->iov[k].iov_base, r->iov[k].iov_len);
	n->in_flight--;
	if (!n->ending) {
		go_on(c);
		if (n->in_flight == NVME_IN_FLIGHT - 1)
			nvme_run_all(n); /* those that stood at the limit */
	} else {
		nvme_drop(c);
		if (!n->in_flight)
			nvme_disable(n);
	}
	mem_unlock(m);
}

/* ---- commands ---------------------------------------------------------------------------------------------- */

static void ask(struct nvme_command *c, enum block_op op, u64 lba, u64 sectors)
{
	bool moves = op == BLOCK_READ || op == BLOCK_WRITE;

	c->req = (struct block_request){ .op = op, .offset = lba * BLOCK_SECTOR, .len = sectors * BLOCK_SECTOR, .iov = c->iov,
					 .n_iov = moves ? c->pieces : 0, .done = disk_done, .arg = c };
	c->req.fua = op != BLOCK_FLUSH && op != BLOCK_DISCARD && (nvme_dword(c, 12) & DW12_FUA || !c->n->feature[FEAT_CACHE]);
	c->req.unmap = op == BLOCK_WRITE_ZEROES && nvme_dword(c, 12) & DW12_DEALLOCATE;
	c->n->in_flight++;
	block_submit(c->n->blk, &c->req);
}

static bool within(const struct nvme *n, u64 lba, u64 sectors) { return lba < capacity(n) && sectors <= capacity(n) - lba; }

static void move_blocks(struct nvme_command *c, enum block_op op)
{
	u64 lba = ld64(c->entry + 40);
	u32 sectors = (nvme_dword(c, 12) & 0xffff) + 1;
	u16 status = NVME_OK;

	if (op != BLOCK_READ && block_read_only(c->n->blk))
		status = NVME_PROTECTED;
	else if (!within(c->n, lba, sectors))
		status = NVME_OUT_OF_RANGE;
	else if (op != BLOCK_WRITE_ZEROES)
		status = sectors * BLOCK_SECTOR > NVME_MAX_BYTES ? (u16)NVME_BAD_FIELD : nvme_map(c, sectors * BLOCK_SECTOR);
	if (status)
		nvme_end(c, status);
	else
		ask(c, op, lba, sectors);
}

static void range_at(const struct nvme_command *c, u32 k, u64 *lba, u32 *sectors)
{
	*sectors = ld32(c->range_list + 16 * k + 4);
	*lba = ld64(c->range_list + 16 * k + 8);
}

static void next_range(struct nvme_command *c)
{
	u64 lba;
	u32 sectors = 0;

	while (c->range < c->ranges && !sectors)
		range_at(c, c->range++, &lba, &sectors);
	if (sectors)
		ask(c, BLOCK_DISCARD, lba, sectors);
	else
		nvme_end(c, NVME_OK);
}

/* Deallocate is all that it knows; hints are taken and have no effect. */
static void manage_dataset(struct nvme_command *c)
{
	u32 sectors;
	u64 lba;

	c->range = 0;
	c->ranges = (nvme_dword(c, 10) & 0xff) + 1;
	u16 status = nvme_copy_in(c, c->range_list, 16 * c->ranges);
	if (!status && block_read_only(c->n->blk))
		status = NVME_PROTECTED;
	for (u32 k = 0; k < c->ranges && !status; k++) {
		range_at(c, k, &lba, &sectors);
		if (sectors && !within(c->n, lba, sectors))
			status = NVME_OUT_OF_RANGE;
	}
	if (status || !(nvme_dword(c, 11) & DW11_DEALLOCATE))
		nvme_end(c, status);
	else
		next_range(c);
}

void nvme_io(struct nvme_command *c)
{
	u32 namespace = nvme_dword(c, 1);
	u8 op = c->entry[0];

	if (!c->n->blk || (namespace != 1 && !(op == OP_FLUSH && namespace == ALL_NAMESPACES))) {
		nvme_end(c, NVME_BAD_NAMESPACE);
		return;
	}
	switch (op) {
	case OP_FLUSH: ask(c, BLOCK_FLUSH, 0, 0); break;
	case OP_WRITE: move_blocks(c, BLOCK_WRITE); break;
	case OP_READ: move_blocks(c, BLOCK_READ); break;
	case OP_WRITE_ZEROES: move_blocks(c, BLOCK_WRITE_ZEROES); break;
	case OP_DATASET: manage_dataset(c); break;
	default: nvme_end(c, NVME_BAD_OPCODE);
	}
}
