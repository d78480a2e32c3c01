/* An NVMe controller with one namespace, on PCI. NVM Express 1.4, chapter 3 and 7.
 *
 *   1b36:0010, BAR 0: 0000 registers   1000 doorbells, submission and completion queue by turns, 4 bytes each
 *              BAR 4: MSI-X, a vector for each queue
 *
 * Invariant: CSTS.RDY stays set after CC.EN falls until nothing is in flight: memory that the guest takes back is
 * not written to.
 *
 * Left out: scatter-gather lists, memory of the controller's own, subsystem reset, formats with other blocks or metadata,
 * COMPARE, fused commands, several namespaces, arbitration by weight.
 * Threading: machine lock held, but for what nvme_io.c says. */
#define LOG_TOPIC "nvme"
#include "dev/nvme_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REG_CAP = 0x00, REG_VS = 0x08, REG_INTMS = 0x0c, REG_INTMC = 0x10, REG_CC = 0x14, REG_CSTS = 0x1c, REG_AQA = 0x24, REG_ASQ = 0x28,
       REG_ACQ = 0x30, REG_DOORBELLS = 0x1000, BAR_BYTES = 0x4000 };
/* 3.1.1: the NVM command set, 10 s to be ready, queues in one piece of memory */
#define CAP (1ull << 37 | 20ull << 24 | 1ull << 16 | (NVME_ENTRIES - 1))
#define VERSION 0x00010400u
enum { CC_EN = 1 };
#define CC_MODES 0x3ff0u        /* command set, page size, arbitration: 0 is all there is */
#define CC_SHN 0xc000u
#define CC_SIZES 0xff0000u
enum { CSTS_RDY = 1, CSTS_CFS = 2, CSTS_SHUT = 2 << 2 };

/* ---- on and off ----------------------------------------------------------------------------------- */

void nvme_fail(struct nvme *n, const char *why)
{
	log_guest("%s", why);
	n->failed = 1;
}

/* 7.3.1: what a driver does before it sets CC.EN. */
static void enable(struct nvme *n)
{
	u32 submissions = (n->aqa & 0xfff) + 1, completions = (n->aqa >> 16 & 0xfff) + 1;

	if (n->cc & CC_MODES || submissions < 2 || completions < 2 || !n->asq || !n->acq) {
		nvme_fail(n, "enabled with a command set, page size, arbitration or admin queues that are not there");
		return;
	}
	n->sq[0] = (struct nvme_sq){ .base = n->asq, .size = (u16)submissions };
	n->cq[0] = (struct nvme_cq){ .base = n->acq, .size = (u16)completions, .phase = 1, .interrupts = 1 };
	n->ready = 1;
}

static void forget_queues(struct nvme *n)
{
	for (unsigned k = 0; k < NVME_QUEUES; k++) {
		if (n->deleting[k])
			nvme_drop(n->deleting[k]);
		n->deleting[k] = NULL;
	}
	memset(n->sq, 0, sizeof(n->sq));
	memset(n->cq, 0, sizeof(n->cq));
	memset(n->feature, 0, sizeof(n->feature));
	n->feature[FEAT_TEMPERATURE] = 343;
	n->feature[FEAT_CACHE] = 1;
	n->aers = n->ready = n->failed = n->shut = 0;
	n->ending = false;
	nvme_update_pin(n);
}

void nvme_disable(struct nvme *n)
{
	forget_queues(n);
	if (n->cc & CC_EN) /* again, meanwhile */
		enable(n);
}

static void cc_write(struct nvme *n, u32 val)
{
	u32 was = n->cc;

	n->cc = val & (CC_EN | CC_MODES | CC_SHN | CC_SIZES);
	if (val & ~was & CC_EN && !n->ending) {
		enable(n);
	} else if (was & ~val & CC_EN) {
		n->ending = n->in_flight > 0;
		if (!n->ending)
			nvme_disable(n);
	}
	/* What has been told is durable as far as flushes went: there is nothing more to do. */
	n->shut = (n->cc & CC_SHN) != 0;
}

/* ---- registers ---------------------------------------------------------------------------------------- */

static u64 reg_read(void *dev, u64 off, unsigned size)
{
	const struct nvme *n = dev;

	switch (off) {
	case REG_CAP: return (u32)CAP;
	case REG_CAP + 4: return CAP >> 32;
	case REG_VS: return VERSION;
	case REG_INTMS: case REG_INTMC: return n->intms;
	case REG_CC: return n->cc;
	case REG_CSTS: return (n->ready ? CSTS_RDY : 0) | (n->failed ? CSTS_CFS : 0) | (n->shut ? CSTS_SHUT : 0);
	case REG_AQA: return n->aqa;
	case REG_ASQ: return (u32)n->asq;
	case REG_ASQ + 4: return n->asq >> 32;
	case REG_ACQ: return (u32)n->acq;
	case REG_ACQ + 4: return n->acq >> 32;
	default: return 0;
	}
}

static void reg_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct nvme *n = dev;

	switch (off) {
	case REG_INTMS: n->intms |= (u32)val; break;
	case REG_INTMC: n->intms &= ~(u32)val; break;
	case REG_CC: cc_write(n, (u32)val); return;
	case REG_AQA: n->aqa = (u32)val & 0x0fff0fff; return;
	case REG_ASQ: n->asq = (n->asq & ~0xffffffffull) | (val & ~0xfffull); return;
	case REG_ASQ + 4: n->asq = (u32)n->asq | val << 32; return;
	case REG_ACQ: n->acq = (n->acq & ~0xffffffffull) | (val & ~0xfffull); return;
	case REG_ACQ + 4: n->acq = (u32)n->acq | val << 32; return;
	default:
		if (off >= REG_DOORBELLS && off < REG_DOORBELLS + 8 * NVME_QUEUES)
			nvme_doorbell(n, (unsigned)(off - REG_DOORBELLS) / 4, (u32)val);
		return;
	}
	nvme_update_pin(n);
}

static const struct mmio_ops reg_ops = { reg_read, reg_write, 4, 4 };

/* A driver may make the function bus master after it has rung. MSI-X on or off changes the pin. */
static void config_written(struct pci_function *f, unsigned off, unsigned size)
{
	struct nvme *n = f->dev_arg;

	nvme_update_pin(n);
	if (off < PCI_BAR0)
		nvme_run_all(n);
}

/* ---- life ------------------------------------------------------------------------------------------------ */

void nvme_attach(struct device *dev, struct block *blk, const char *serial)
{
	struct nvme *n = container_of(dev, struct nvme, d);

	n->blk = blk;
	snprintf(n->serial, sizeof(n->serial), "%s", serial);
}

static bool nvme_init(struct device *dev, struct error *e)
{
	struct nvme *n = container_of(dev, struct nvme, d);

	pci_init(&n->pci, &(struct pci_ids){ .vendor = 0x1b36, .device = 0x0010, .sub_vendor = 0x1af4, .sub_device = 0x1100,
					      .class_code = 0x010802, .intx = true });
	n->pci.written = config_written;
	n->pci.dev_arg = n;
	pci_add_bar(&n->pci, 0, PCI_BAR_MEM64, false, BAR_BYTES, &reg_ops, n);
	pci_add_msix(&n->pci, 4, NVME_QUEUES);
	return pci_plug(&n->pci, dev, e);
}

static void nvme_reset(struct device *dev)
{
	struct nvme *n = container_of(dev, struct nvme, d);

	pci_reset(&n->pci);
	n->cc = n->aqa = n->intms = 0;
	n->asq = n->acq = 0;
	forget_queues(n);
}

static void nvme_drain(struct device *dev)
{
	struct nvme *n = container_of(dev, struct nvme, d);

	while (n->in_flight)
		block_drain(n->blk);
}

static void nvme_destroy(struct device *dev)
{
	struct nvme *n = container_of(dev, struct nvme, d);

	forget_queues(n);
	pci_unplug(&n->pci);
	for (struct nvme_command *c = n->free, *next; c; c = next) {
		next = c->next;
		free(c);
	}
}

/* A queue that only a damaged file can hold becomes none. */
static void nvme_loaded(struct device *dev)
{
	struct nvme *n = container_of(dev, struct nvme, d);

	for (unsigned k = 0; k < NVME_QUEUES; k++) {
		struct nvme_cq *q = &n->cq[k];
		u32 most = k ? NVME_ENTRIES : NVME_PAGE;
		bool ok = q->base && q->size >= 2 && q->size <= most && q->head < q->size && q->tail < q->size && q->vector < NVME_QUEUES;

		if (!ok)
			*q = (struct nvme_cq){ 0 };
		q->phase &= 1;
		q->interrupts &= 1;
		memset(q->pad, 0, sizeof(q->pad));
	}
	for (unsigned k = 0; k < NVME_QUEUES; k++) {
		struct nvme_sq *q = &n->sq[k];
		u32 most = k ? NVME_ENTRIES : NVME_PAGE;
		bool ok = q->base && q->size >= 2 && q->size <= most && q->head < q->size && q->tail < q->size && q->cq < NVME_QUEUES &&
			  !k == !q->cq && n->cq[q->cq].base;

		if (!ok)
			*q = (struct nvme_sq){ 0 };
	}
	n->cc &= CC_EN | CC_MODES | CC_SHN | CC_SIZES;
	n->aqa &= 0x0fff0fff;
	n->asq &= ~0xfffull;
	n->acq &= ~0xfffull;
	n->aers = MIN(n->aers, (u8)NVME_AERS);
	n->ready = n->ready && n->cc & CC_EN && n->sq[0].base;
	n->failed = n->failed != 0;
	n->shut = n->shut != 0;
	pci_loaded(&n->pci);
	nvme_update_pin(n);
}

static const struct state_field nvme_state[] = {
	STATE(struct nvme, cc), STATE(struct nvme, aqa), STATE(struct nvme, intms), STATE(struct nvme, asq), STATE(struct nvme, acq),
	STATE(struct nvme, ready), STATE(struct nvme, failed), STATE(struct nvme, shut), STATE(struct nvme, sq), STATE(struct nvme, cq),
	STATE(struct nvme, feature), STATE(struct nvme, aer), STATE(struct nvme, aers), STATE(struct nvme, read_units),
	STATE(struct nvme, written_units), STATE(struct nvme, reads), STATE(struct nvme, writes), STATE(struct nvme, media_errors),
	STATE(struct nvme, errors), STATE(struct nvme, last_error), PCI_STATE(struct nvme, pci), STATE_END
};

const struct device_class nvme_class = {
	.name = "nvme",
	.help = "NVMe disk",
	.size = sizeof(struct nvme),
	.init = nvme_init,
	.reset = nvme_reset,
	.destroy = nvme_destroy,
	.loaded = nvme_loaded,
	.drain = nvme_drain,
	.state = nvme_state,
};
