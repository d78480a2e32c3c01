/* The IDE function of the PIIX3: two channels of two drives each, at the ports and interrupts that
 * they have had since the AT, with bus-master DMA. 82371SB (PIIX3) datasheet 2.3, 3.4 and 4;
 * ATA/ATAPI-6 (INCITS 361) chapters 7 and 9.
 *
 *   1f0..1f7, 3f6, irq 14   170..177, 376, irq 15
 *     0 data   1 error, features   2 count   3..5 LBA   6 device   7 status, command
 *     3f6 alternate status, device control
 *   00:01.1 8086:7010, BAR 4: 16 ports of bus master (ide_dma.c)
 *
 * Invariants
 *  1. at <= end <= filled <= IDE_BUFFER; the data port moves bytes only in IN, OUT and PACKET.
 *  2. While req is with the disk the phase is DISK and BSY is set: registers but the device's and the
 *     control's do not change, and nothing of the channel is reused until req.done.
 *  3. A channel whose command register is written while it is busy ignores that.
 * Both channels are decoded always, whatever IDETIM says.
 * Threading: machine lock held, but for disk_done, which takes it: the loop's thread. */
#define LOG_TOPIC "ide"
#include "dev/ide_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static struct ata_drive *selected(struct ide_channel *c) { return &c->drive[!!(c->device & DEV_SECOND)]; }

/* ---- interrupts, ends ------------------------------------------------------------------------- */

static void update_irq(struct ide_channel *c)
{
	irq_set(c->ide->d.irqs, 14u + c->index, c->irq && !(c->control & CTL_NIEN));
}

static void raise_irq(struct ide_channel *c)
{
	c->irq = 1;
	c->bm_status |= BM_INT;
	update_irq(c);
}

static void lower(struct ide_channel *c)
{
	c->irq = 0;
	update_irq(c);
}

void ide_end(struct ide_channel *c, u8 error)
{
	c->phase = IDE_IDLE;
	ata_end(ide_drive(c), c->packet, error);
	raise_irq(c);
}

void ide_fail_medium(struct ide_channel *c) { ide_end(c, ata_medium_error(ide_drive(c), c->packet, c->write, c->lba)); }

/* ---- the host's disk ---------------------------------------------------------------------------- */

static void reset_channel(struct ide_channel *c);

static void disk_done(struct block_request *r)
{
	struct ide_channel *c = r->arg;

	mem_lock(c->ide->d.mem);
	if (c->phase == IDE_DISK) {
		c->phase = IDE_IDLE;
		if (c->reset_waits)
			reset_channel(c);
		else
			c->then(c, r->error);
	}
	mem_unlock(c->ide->d.mem);
}

void ide_ask_disk(struct ide_channel *c, enum block_op op, u8 *buf, u64 lba, u32 sectors,
		  void (*then)(struct ide_channel *c, int error))
{
	struct ata_drive *d = ide_drive(c);

	if (!d->blk) { /* a CD that was taken out in the middle of a command */
		c->phase = IDE_IDLE;
		then(c, ENOMEDIUM);
		return;
	}
	c->phase = IDE_DISK;
	d->status = ST_BSY;
	c->then = then;
	c->iov = (struct iovec){ buf, (size_t)sectors * c->sector };
	c->req = (struct block_request){ .op = op, .offset = lba * c->sector, .len = c->iov.iov_len, .iov = &c->iov,
					 .n_iov = op == BLOCK_FLUSH ? 0 : 1, .done = disk_done, .arg = c };
	if (op == BLOCK_FLUSH)
		c->req.offset = c->req.len = 0;
	else if (op == BLOCK_WRITE)
		c->req.fua = c->fua;
	block_submit(d->blk, &c->req);
}

/* ---- data through the port ------------------------------------------------------------------------ */

/* The host may move up to a block from at on. In the middle of a command that is told by an
 * interrupt; the first block of a write is not. */
static void offer(struct ide_channel *c, enum ide_phase phase, bool interrupt)
{
	struct ata_drive *d = ide_drive(c);

	c->phase = phase;
	c->end = MIN(c->at + c->block, c->filled);
	d->status = ST_DRDY | ST_DSC | ST_DRQ;
	if (c->packet) {
		d->count[0] = phase == IDE_IN ? REASON_IO : 0;
		d->lba[1][0] = (u8)(c->end - c->at);
		d->lba[2][0] = (u8)((c->end - c->at) >> 8);
	}
	if (interrupt)
		raise_irq(c);
}

static void reply(struct ide_channel *c)
{
	c->at = 0;
	c->left = 0;
	offer(c, IDE_IN, true);
}

static u32 chunk_of(const struct ide_channel *c) { return MIN(c->left, IDE_BUFFER / c->sector); }

static void filled(struct ide_channel *c, int error)
{
	u32 n = chunk_of(c);

	if (error) {
		ide_fail_medium(c);
		return;
	}
	c->at = 0;
	c->filled = n * c->sector;
	ata_moved(ide_drive(c), false, c->filled / BLOCK_SECTOR);
	c->lba += n;
	c->left -= n;
	offer(c, IDE_IN, true);
}

static void fill(struct ide_channel *c) { ide_ask_disk(c, BLOCK_READ, c->buffer, c->lba, chunk_of(c), filled); }

static void take_next(struct ide_channel *c, bool interrupt)
{
	c->at = 0;
	c->filled = chunk_of(c) * c->sector;
	offer(c, IDE_OUT, interrupt);
}

static void written(struct ide_channel *c, int error)
{
	u32 n = chunk_of(c);

	if (error) {
		ide_fail_medium(c);
		return;
	}
	ata_moved(ide_drive(c), true, n);
	c->lba += n;
	c->left -= n;
	if (c->left)
		take_next(c, true);
	else
		ide_end(c, 0);
}

static void carry_out(struct ide_channel *c, struct ata_task t);

/* The host has moved the block's last byte. */
static void block_done(struct ide_channel *c)
{
	if (c->phase == IDE_PACKET)
		carry_out(c, atapi_packet(ide_drive(c), c->buffer, c->dma, c->buffer));
	else if (c->at < c->filled)
		offer(c, (enum ide_phase)c->phase, true);
	else if (c->phase == IDE_OUT)
		ide_ask_disk(c, BLOCK_WRITE, c->buffer, c->lba, chunk_of(c), written);
	else if (c->left)
		fill(c);
	else if (c->packet)
		ide_end(c, 0);
	else { /* the end of a read is not told */
		c->phase = IDE_IDLE;
		ide_drive(c)->status = ST_DRDY | ST_DSC;
	}
}

static bool selected_moves(const struct ide_channel *c) { return c->active == !!(c->device & DEV_SECOND); }

static u64 data_read(struct ide_channel *c, unsigned size)
{
	u64 val = 0;

	if (c->phase != IDE_IN || !selected_moves(c))
		return UINT64_MAX;
	for (unsigned k = 0; k < size && c->at < c->end; k++)
		val |= (u64)c->buffer[c->at++] << 8 * k;
	if (c->at == c->end)
		block_done(c);
	return val;
}

static void data_write(struct ide_channel *c, u64 val, unsigned size)
{
	if ((c->phase != IDE_OUT && c->phase != IDE_PACKET) || !selected_moves(c))
		return;
	for (unsigned k = 0; k < size && c->at < c->end; k++)
		c->buffer[c->at++] = (u8)(val >> 8 * k);
	if (c->at == c->end)
		block_done(c);
}

/* ---- commands ---------------------------------------------------------------------------------------- */

static void flushed(struct ide_channel *c, int error) { ide_end(c, error ? ERR_ABRT : 0); }

static void trim_on(struct ide_channel *c, int error)
{
	u64 lba;
	u32 sectors;

	if (error)
		ide_end(c, ERR_ABRT);
	else if (ata_trim_next(c->buffer, c->filled, &c->at, &lba, &sectors))
		ide_ask_disk(c, BLOCK_DISCARD, NULL, lba, sectors, trim_on);
	else
		ide_end(c, 0);
}

void ide_trim(struct ide_channel *c)
{
	c->at = 0;
	if (ata_trim_check(ide_drive(c), c->buffer, c->filled))
		trim_on(c, 0);
	else
		ide_end(c, ERR_IDNF);
}

/* The host moves the packet, always through the port. */
static void take_packet(struct ide_channel *c, bool dma)
{
	struct ata_drive *d = ide_drive(c);

	c->packet = 1;
	c->dma = dma;
	c->at = 0;
	c->end = c->filled = c->block = PACKET_BYTES;
	c->phase = IDE_PACKET;
	d->count[0] = REASON_CD;
	d->status = ST_DRDY | ST_DSC | ST_DRQ;
}

static void move_sectors(struct ide_channel *c, const struct ata_task *t)
{
	c->sector = t->sector;
	c->lba = t->lba;
	c->left = t->sectors;
	c->write = t->what == ATA_WRITE;
	c->fua = t->fua;
	if (t->dma)
		ide_dma_sectors(c);
	else if (c->write)
		take_next(c, false);
	else
		fill(c);
}

static void move_buffer(struct ide_channel *c, const struct ata_task *t)
{
	c->filled = t->bytes;
	c->trim = c->write = t->what == ATA_TRIM;
	if (t->dma)
		ide_dma_buffer(c);
	else
		reply(c);
}

static void carry_out(struct ide_channel *c, struct ata_task t)
{
	c->phase = IDE_IDLE;
	c->write = c->trim = 0;
	if (t.block)
		c->block = t.block;
	switch (t.what) {
	case ATA_FAIL: ide_end(c, t.error); break;
	case ATA_DONE: ide_end(c, 0); break;
	case ATA_SIGNATURE: raise_irq(c); break;
	case ATA_SEND: case ATA_TRIM: move_buffer(c, &t); break;
	case ATA_READ: case ATA_WRITE: move_sectors(c, &t); break;
	case ATA_FLUSH: ide_ask_disk(c, BLOCK_FLUSH, NULL, 0, 0, flushed); break;
	case ATA_PACKET: take_packet(c, t.dma); break;
	}
}

static void reset_selected(struct ide_channel *c)
{
	if (c->phase == IDE_DISK) {
		c->reset_waits = 1; /* both drives then: nobody waits for the other */
		return;
	}
	c->phase = IDE_IDLE;
	ata_reset(selected(c));
}

/* 90: both drives; the first one answers for both. */
static void diagnose(struct ide_channel *c)
{
	ata_reset(&c->drive[0]);
	ata_reset(&c->drive[1]);
	c->device = 0;
	raise_irq(c);
}

static void command_write(struct ide_channel *c, u8 command)
{
	struct ata_drive *d = selected(c);

	c->command = command;
	if (command == 0x08) { /* DEVICE RESET, of packet devices; also when busy */
		if (d->cd)
			reset_selected(c);
		return;
	}
	c->active = !!(c->device & DEV_SECOND);
	c->packet = 0;
	c->sector = BLOCK_SECTOR;
	c->block = BLOCK_SECTOR;
	if (command == 0x90) {
		diagnose(c);
		return;
	}
	d->device = c->device;
	struct ata_task t = ata_command(d, command, c->buffer);
	c->device = d->device;
	carry_out(c, t);
}

/* ---- registers -------------------------------------------------------------------------------------- */

static bool is_busy(const struct ide_channel *c)
{
	return (c->drive[0].status | c->drive[1].status) & (ST_BSY | ST_DRQ) || c->phase != IDE_IDLE;
}

static u8 register_read(struct ide_channel *c, unsigned reg)
{
	const struct ata_drive *d = selected(c);
	unsigned hob = c->control & CTL_HOB ? 1 : 0;

	if (!c->drive[0].present && !c->drive[1].present)
		return 0; /* as with the bus's pull-downs */
	switch (reg) {
	case 1: return d->present ? d->error : 0;
	case 2: return d->count[hob];
	case 3: case 4: case 5: return d->lba[reg - 3][hob];
	case 6: return c->device | 0xa0;
	default:
		lower(c);
		return d->present ? d->status : 0;
	}
}

/* Both drives hear all writes. */
static void register_write(struct ide_channel *c, unsigned reg, u8 val)
{
	c->control &= (u8)~CTL_HOB;
	if (reg == 7) {
		lower(c);
		if ((is_busy(c) && val != 0x08) || !(selected(c)->present || val == 0x90))
			return;
		command_write(c, val);
		return;
	}
	if (reg == 6) {
		c->device = val;
		return;
	}
	if (c->phase != IDE_IDLE)
		return;
	for (unsigned k = 0; k < 2; k++) {
		struct ata_drive *d = &c->drive[k];
		u8 *r = reg == 1 ? d->feature : reg == 2 ? d->count : d->lba[reg - 3];
		r[1] = r[0];
		r[0] = val;
	}
}

static void reset_channel(struct ide_channel *c)
{
	c->reset_waits = 0;
	c->phase = IDE_IDLE;
	c->device = c->active = c->packet = 0;
	c->at = c->end = c->filled = c->left = 0;
	lower(c);
	for (unsigned k = 0; k < 2; k++)
		ata_reset(&c->drive[k]);
}

static void control_write(struct ide_channel *c, u8 val)
{
	bool starts = val & ~c->control & CTL_SRST;

	c->control = val;
	update_irq(c);
	if (!starts)
		return;
	if (c->phase == IDE_DISK) {
		c->reset_waits = 1;
		c->drive[0].status = c->drive[1].status = ST_BSY;
	} else {
		reset_channel(c);
	}
}

static u64 ports_read(void *dev, u64 off, unsigned size)
{
	u64 val = 0;

	if (off == 0)
		return data_read(dev, size);
	for (unsigned k = 0; k < size; k++)
		val |= (u64)register_read(dev, (unsigned)off + k) << 8 * k;
	return val;
}

static void ports_write(void *dev, u64 off, u64 val, unsigned size)
{
	if (off == 0) {
		data_write(dev, val, size);
		return;
	}
	for (unsigned k = 0; k < size; k++)
		register_write(dev, (unsigned)off + k, (u8)(val >> 8 * k));
}

static u64 control_port_read(void *dev, u64 off, unsigned size)
{
	struct ide_channel *c = dev;

	return selected(c)->present ? selected(c)->status : 0;
}

static void control_port_write(void *dev, u64 off, u64 val, unsigned size) { control_write(dev, (u8)val); }

static const struct mmio_ops ports_ops = { ports_read, ports_write, 1, 4 };
static const struct mmio_ops control_ops = { control_port_read, control_port_write, 1, 1 };

/* ---- drives -------------------------------------------------------------------------------------------- */

void ide_attach(struct device *dev, unsigned unit, const struct ata_drive_config *cfg)
{
	struct ide *ide = container_of(dev, struct ide, d);

	ata_attach(&ide->channel[unit >> 1 & 1].drive[unit & 1], cfg, unit);
}

struct ata_drive *ide_drive_at(struct device *dev, unsigned unit)
{
	return &container_of(dev, struct ide, d)->channel[unit >> 1 & 1].drive[unit & 1];
}

/* ---- life ------------------------------------------------------------------------------------------------ */

static bool ide_init(struct device *dev, struct error *e)
{
	static const u16 base[2] = { 0x1f0, 0x170 }, control[2] = { 0x3f6, 0x376 };
	struct ide *ide = container_of(dev, struct ide, d);

	for (unsigned k = 0; k < 2; k++) {
		struct ide_channel *c = &ide->channel[k];
		c->ide = ide;
		c->index = (u8)k;
		c->bounce = malloc(IDE_BOUNCE);
		if (!c->bounce || !mem_add_ports(dev->mem, "ide", base[k], 8, &ports_ops, c, e) ||
		    !mem_add_ports(dev->mem, "ide control", control[k], 1, &control_ops, c, e)) {
			for (unsigned j = 0; j < 2; j++)
				free(ide->channel[j].bounce);
			return c->bounce ? false : error_set(e, "out of memory");
		}
	}
	pci_init(&ide->pci, &(struct pci_ids){ .vendor = 0x8086, .device = 0x7010, .sub_vendor = 0x1af4, .sub_device = 0x1100,
						.class_code = 0x010180 });
	ide->pci.dev = 1;
	ide->pci.fn = 1;
	/* IDETIM, 2.3.9: both channels decoded; what a driver writes there is its own. */
	st32(ide->pci.config + 0x40, 0x80008000);
	st32(ide->pci.wmask + 0x40, 0xffffffff);
	ide->pci.wmask[0x44] = 0xff;
	pci_add_bar(&ide->pci, 4, PCI_BAR_IO, false, 16, &ide_bm_ops, ide);
	return pci_plug(&ide->pci, dev, e);
}

static void ide_reset(struct device *dev)
{
	struct ide *ide = container_of(dev, struct ide, d);

	for (unsigned k = 0; k < 2; k++) {
		struct ide_channel *c = &ide->channel[k];
		c->control = c->command = 0;
		c->bm_status = 0;
		for (unsigned j = 0; j < 2; j++) {
			ata_power_on(&c->drive[j]);
			if (c->drive[j].present)
				c->bm_status |= (u8)(0x20u << j);
		}
		ide_dma_reset(c);
		reset_channel(c);
	}
	pci_reset(&ide->pci);
}

/* done may ask the disk again, until the command is through. */
static void ide_drain(struct device *dev)
{
	struct ide *ide = container_of(dev, struct ide, d);

	for (unsigned k = 0; k < 4; k++) {
		struct ide_channel *c = &ide->channel[k >> 1];
		while (c->phase == IDE_DISK && c->drive[k & 1].blk && c->active == (k & 1))
			block_drain(c->drive[k & 1].blk);
	}
}

static void ide_destroy(struct device *dev)
{
	struct ide *ide = container_of(dev, struct ide, d);

	pci_unplug(&ide->pci);
	for (unsigned k = 0; k < 2; k++)
		free(ide->channel[k].bounce);
}

/* Values that only a damaged file can hold become ones that the code can meet: a channel whose
 * state does not make sense is reset. */
static void ide_loaded(struct device *dev)
{
	struct ide *ide = container_of(dev, struct ide, d);

	for (unsigned k = 0; k < 2; k++) {
		struct ide_channel *c = &ide->channel[k];
		const struct ata_drive *d = &c->drive[c->active & 1];
		ata_loaded(&c->drive[0]);
		ata_loaded(&c->drive[1]);
		u64 sectors = d->blk && c->sector ? block_size(d->blk) / c->sector : 0;
		bool ok = c->phase != IDE_DISK && c->phase <= IDE_DMA && c->active < 2 && c->at <= c->end && c->end <= c->filled &&
			  c->filled <= IDE_BUFFER && (c->sector == 512 || c->sector == 2048) && d->present &&
			  (!c->left || (c->lba <= sectors && c->left <= sectors - c->lba)) && (c->at < c->end || c->phase == IDE_DMA) &&
			  c->block && (c->phase != IDE_PACKET || c->filled == PACKET_BYTES) &&
			  (c->phase != IDE_OUT || c->filled == chunk_of(c) * c->sector) && (!c->packet || d->cd) &&
			  (!c->trim || (c->phase == IDE_DMA && c->write && !c->left && c->filled && c->filled <= ATA_BUFFER && !d->cd));
		if (c->phase != IDE_IDLE && !ok)
			reset_channel(c);
		c->active &= 1;
		update_irq(c);
	}
	pci_loaded(&ide->pci);
}

#define CHANNEL_STATE(c) \
	ATA_DRIVE_STATE(struct ide, channel[c].drive[0]), ATA_DRIVE_STATE(struct ide, channel[c].drive[1]), STATE(struct ide, channel[c].device), STATE(struct ide, channel[c].control), \
	STATE(struct ide, channel[c].irq), STATE(struct ide, channel[c].phase), STATE(struct ide, channel[c].command), \
	STATE(struct ide, channel[c].active), STATE(struct ide, channel[c].packet), STATE(struct ide, channel[c].write), \
	STATE(struct ide, channel[c].dma), STATE(struct ide, channel[c].fua), STATE(struct ide, channel[c].trim), STATE(struct ide, channel[c].sector), STATE(struct ide, channel[c].at), \
	STATE(struct ide, channel[c].end), STATE(struct ide, channel[c].filled), STATE(struct ide, channel[c].block), \
	STATE(struct ide, channel[c].lba), STATE(struct ide, channel[c].left), STATE(struct ide, channel[c].reset_waits), \
	STATE(struct ide, channel[c].buffer), STATE(struct ide, channel[c].bm_command), STATE(struct ide, channel[c].bm_status), \
	STATE(struct ide, channel[c].bm_table), STATE(struct ide, channel[c].bm_next), STATE(struct ide, channel[c].bm_addr), \
	STATE(struct ide, channel[c].bm_left), STATE(struct ide, channel[c].bm_last)

static const struct state_field ide_state[] = { CHANNEL_STATE(0), CHANNEL_STATE(1), PCI_STATE(struct ide, pci), STATE_END };

const struct device_class ide_class = {
	.name = "ide",
	.help = "IDE controller of the PIIX3: disks and CD drives",
	.size = sizeof(struct ide),
	.init = ide_init,
	.reset = ide_reset,
	.destroy = ide_destroy,
	.loaded = ide_loaded,
	.drain = ide_drain,
	.state = ide_state,
};
