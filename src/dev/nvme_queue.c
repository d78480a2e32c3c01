/* The NVMe controller's queues: commands fetched, completions told, interrupts. NVM Express 1.4, 3.1.24, 4.1,
 * 4.6, 7.5.
 *
 * Invariants
 *  1. A command is fetched only when its completion queue has an entry that nobody else is owed: completions
 *     never wait. At most NVME_IN_FLIGHT are under way.
 *  2. The controller's own indices (head of submissions, tail of completions) and the guest's are below the queue's size. */
#define LOG_TOPIC "nvme"
#include "dev/nvme_impl.h"

#include <stdlib.h>
#include <string.h>

#define SQ_ENTRY 64u
#define CQ_ENTRY 16u

/* ---- interrupts ------------------------------------------------------------------------------------- */

/* Without MSI-X: the pin is high while a queue that interrupts has entries and its vector is not masked. */
void nvme_update_pin(struct nvme *n)
{
	bool high = false;

	for (unsigned k = 0; k < NVME_QUEUES && !pci_msix_on(&n->pci); k++) {
		const struct nvme_cq *q = &n->cq[k];
		high |= q->base && q->interrupts && q->head != q->tail && !(n->intms >> (q->vector & 31) & 1);
	}
	pci_irq(&n->pci, high);
}

/* ---- completions -------------------------------------------------------------------------------------- */

static void post(struct nvme *n, struct nvme_cq *q, const struct nvme_command *c, u16 status)
{
	u8 entry[CQ_ENTRY] = { 0 };

	st32(entry, c->result);
	st16(entry + 8, n->sq[c->sq].head);
	st16(entry + 10, c->sq);
	st16(entry + 12, c->id);
	u16 told = (u16)(status << 1 | q->phase);
	u64 at = q->base + CQ_ENTRY * q->tail;
	/* The phase last: the driver may be looking. */
	mem_write(n->d.mem, at, entry, 14);
	mem_write(n->d.mem, at + 14, &told, 2);
	if (++q->tail == q->size) {
		q->tail = 0;
		q->phase ^= 1;
	}
	if (!q->interrupts)
		return;
	if (pci_msix_on(&n->pci))
		pci_msg(&n->pci, q->vector);
	else
		nvme_update_pin(n);
}

static struct nvme_command *take(struct nvme *n)
{
	struct nvme_command *c = n->free;

	if (!c)
		c = malloc(sizeof(*c));
	else
		n->free = c->next;
	return c;
}

static void put(struct nvme_command *c)
{
	struct nvme *n = c->n;

	c->next = n->free;
	n->free = c;
}

void nvme_drop(struct nvme_command *c)
{
	struct nvme *n = c->n;

	n->busy[c->sq]--;
	n->owed[n->sq[c->sq].cq]--;
	put(c);
}

/* 5.14.1.1: the last one that failed. */
static void keep_error(struct nvme *n, const struct nvme_command *c, u16 status)
{
	u8 *e = n->last_error;

	memset(e, 0, sizeof(n->last_error));
	st64(e, ++n->errors);
	st16(e + 8, c->sq);
	st16(e + 10, c->id);
	st16(e + 12, (u16)(status << 1));
	st16(e + 14, 0xffff);
	st64(e + 16, ld64(c->entry + 40));
	st32(e + 24, nvme_dword(c, 1));
}

void nvme_end(struct nvme_command *c, u16 status)
{
	struct nvme *n = c->n;
	unsigned sq = c->sq;

	if (status)
		keep_error(n, c, status);
	post(n, &n->cq[n->sq[sq].cq], c, status);
	nvme_drop(c);
	if (n->deleting[sq] && !n->busy[sq])
		nvme_delete_now(n, sq);
}

/* ---- submissions ---------------------------------------------------------------------------------------- */

/* Entries of q that are neither taken nor owed to somebody; one stays empty, by which full and empty differ. */
static bool has_room(const struct nvme *n, unsigned cq)
{
	const struct nvme_cq *q = &n->cq[cq];
	unsigned used = (q->tail + q->size - q->head) % q->size;

	return used + n->owed[cq] + 1u < q->size;
}

static bool can_fetch(const struct nvme *n, unsigned sq)
{
	const struct nvme_sq *q = &n->sq[sq];

	return n->ready && !n->failed && !n->ending && q->base && q->head != q->tail && !n->deleting[sq] && has_room(n, q->cq) &&
	       n->in_flight < NVME_IN_FLIGHT && pci_is_master(&n->pci);
}

void nvme_run(struct nvme *n, unsigned sq)
{
	struct nvme_sq *q = &n->sq[sq];

	while (can_fetch(n, sq)) {
		struct nvme_command *c = take(n);

		if (!c)
			return; /* at the next doorbell */
		c->n = n;
		c->sq = (u16)sq;
		c->result = 0;
		n->busy[sq]++;
		n->owed[q->cq]++;
		if (!mem_read(n->d.mem, q->base + SQ_ENTRY * q->head, c->entry, SQ_ENTRY)) {
			nvme_drop(c);
			nvme_fail(n, "a submission queue is outside RAM");
			return;
		}
		c->id = ld16(c->entry + 2);
		if (++q->head == q->size)
			q->head = 0;
		if (c->entry[1] & 3) /* fused */
			nvme_end(c, NVME_BAD_FIELD);
		else
			(sq ? nvme_io : nvme_admin)(c);
	}
}

void nvme_run_all(struct nvme *n)
{
	for (unsigned k = 0; k < NVME_QUEUES; k++)
		nvme_run(n, k);
}

void nvme_doorbell(struct nvme *n, unsigned which, u32 val)
{
	unsigned k = which >> 1;
	struct nvme_sq *sq = &n->sq[k];
	struct nvme_cq *cq = &n->cq[k];

	if (!n->ready || n->ending)
		return;
	if (which & 1 ? !cq->base || val >= cq->size : !sq->base || val >= sq->size) {
		log_guest("queue %u: doorbell %u of no queue, or behind its end", k, which & 1);
	} else if (which & 1) {
		cq->head = (u16)val;
		nvme_update_pin(n);
		nvme_run_all(n);
	} else {
		sq->tail = (u16)val;
		nvme_run(n, k);
	}
}
