/* The PIIX3's bus master. 82371SB (PIIX3) datasheet, 2.7; "Programming Interface for Bus Master IDE
 * Controller", revision 1.0.
 *
 *   each channel: 0 command (start, direction)   2 status (active, error, interrupt)
 *                 4..7 address of the table: entries of 8 bytes, u32 address, u16 bytes (0: 64 K), bit 31
 *                 of the second word: the last one
 *
 * Data goes through a buffer of the channel's, IDE_BOUNCE at a time: entries may be of any even
 * length, while the disk takes sectors. What an entry names outside RAM reads as zeros and loses
 * what is written. A table that ends before the data does fails the command.
 *
 * Machine lock held. */
#include "dev/ide_impl.h"

static void run(struct ide_channel *c);

/* ---- the table ---------------------------------------------------------------------------------- */

static void table_start(struct ide_channel *c)
{
	c->bm_next = c->bm_table;
	c->bm_left = 0;
	c->bm_last = 0;
}

/* False: there is no more. */
static bool next_entry(struct ide_channel *c)
{
	u8 entry[8];

	if (c->bm_last || !mem_read(c->ide->d.mem, c->bm_next, entry, sizeof(entry)))
		return false;
	c->bm_addr = ld32(entry) & ~1u;
	c->bm_left = ld16(entry + 4) & ~1u;
	if (!c->bm_left)
		c->bm_left = 0x10000;
	c->bm_last = entry[7] >> 7;
	/* A table does not cross 64 KiB: the address's low half counts around. */
	c->bm_next = (c->bm_next & 0xffff0000) | ((c->bm_next + 8) & 0xffff);
	return true;
}

/* Moves n bytes between buf and what the table names next. */
static bool move(struct ide_channel *c, u8 *buf, u32 n, bool to_memory)
{
	while (n) {
		if (!c->bm_left && !next_entry(c))
			return false;
		u32 part = MIN(n, c->bm_left);
		if (to_memory)
			mem_write(c->ide->d.mem, c->bm_addr, buf, part);
		else
			mem_read(c->ide->d.mem, c->bm_addr, buf, part);
		buf += part;
		n -= part;
		c->bm_addr += part;
		c->bm_left -= part;
	}
	return true;
}

/* ---- transfers ------------------------------------------------------------------------------------ */

static void table_end(struct ide_channel *c)
{
	if (!c->bm_left && c->bm_last)
		c->bm_status &= (u8)~BM_ACTIVE; /* a longer table leaves it active, which drivers look at */
}

static void end(struct ide_channel *c)
{
	table_end(c);
	ide_end(c, 0);
}

/* The table ended too soon. */
static void fail(struct ide_channel *c)
{
	c->bm_status = (c->bm_status & (u8)~BM_ACTIVE) | BM_ERROR;
	ide_end(c, c->packet ? atapi_sense(ide_drive(c), 4, 0x08, 0) : ERR_ABRT);
}

static u32 step(const struct ide_channel *c) { return MIN(c->left, IDE_BOUNCE / c->sector); }

static void disk_has_done(struct ide_channel *c, int error)
{
	u32 n = step(c);

	if (error) {
		c->bm_status &= (u8)~BM_ACTIVE;
		ide_fail_medium(c);
		return;
	}
	if (!c->write && !move(c, c->bounce, n * c->sector, true)) {
		fail(c);
		return;
	}
	ata_moved(ide_drive(c), c->write, (u64)n * c->sector / BLOCK_SECTOR);
	c->lba += n;
	c->left -= n;
	if (c->left)
		run(c);
	else
		end(c);
}

static void run_buffer(struct ide_channel *c)
{
	if (!move(c, c->buffer, c->filled, !c->write))
		fail(c);
	else if (c->trim) {
		table_end(c);
		ide_trim(c);
	} else
		end(c);
}

/* One step, if the bus master is on; else when it is. */
static void run(struct ide_channel *c)
{
	c->phase = IDE_DMA;
	ide_drive(c)->status = ST_DRDY | ST_DSC | ST_DRQ;
	if (!(c->bm_status & BM_ACTIVE) || !pci_is_master(&c->ide->pci))
		return;
	if (!c->left) {
		run_buffer(c);
		return;
	}
	u32 n = step(c);
	if (c->write && !move(c, c->bounce, n * c->sector, false))
		fail(c);
	else
		ide_ask_disk(c, c->write ? BLOCK_WRITE : BLOCK_READ, c->bounce, c->lba, n, disk_has_done);
}

void ide_dma_sectors(struct ide_channel *c)
{
	c->at = c->end = c->filled = 0;
	run(c);
}

void ide_dma_buffer(struct ide_channel *c)
{
	c->left = 0;
	c->at = 0;
	c->end = c->filled;
	run(c);
}

/* ---- registers ---------------------------------------------------------------------------------------- */

static void command_write(struct ide_channel *c, u8 val)
{
	bool starts = val & ~c->bm_command & BM_START;

	c->bm_command = val & (BM_START | BM_TO_MEMORY);
	if (!(val & BM_START)) {
		c->bm_status &= (u8)~BM_ACTIVE;
	} else if (starts) {
		c->bm_status |= BM_ACTIVE;
		table_start(c);
		if (c->phase == IDE_DMA)
			run(c);
	}
}

static u64 bm_read(void *dev, u64 off, unsigned size)
{
	struct ide *ide = dev;
	const struct ide_channel *c = &ide->channel[off >> 3 & 1];
	u8 bytes[8] = { c->bm_command, 0xff, c->bm_status, 0xff };
	u64 val = 0;

	st32(bytes + 4, c->bm_table);
	for (unsigned k = 0; k < size && (off & 7) + k < 8; k++)
		val |= (u64)bytes[(off & 7) + k] << 8 * k;
	return val;
}

static void bm_byte_write(struct ide_channel *c, unsigned reg, u8 val)
{
	if (reg == 0) {
		command_write(c, val);
	} else if (reg == 2) { /* interrupt and error: ones clear; what drives can: kept for software */
		c->bm_status = (u8)((c->bm_status & ~(val & (BM_INT | BM_ERROR)) & ~BM_DRIVES) | (val & BM_DRIVES));
	} else if (reg >= 4) {
		u8 bytes[4];
		st32(bytes, c->bm_table);
		bytes[reg - 4] = reg == 4 ? val & 0xfc : val;
		c->bm_table = ld32(bytes);
	}
}

static void bm_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct ide *ide = dev;

	for (unsigned k = 0; k < size && (off & 7) + k < 8; k++)
		bm_byte_write(&ide->channel[off >> 3 & 1], (unsigned)(off & 7) + k, (u8)(val >> 8 * k));
}

void ide_dma_reset(struct ide_channel *c)
{
	c->bm_command = 0;
	c->bm_status &= BM_DRIVES;
	c->bm_table = 0;
	table_start(c);
}

const struct mmio_ops ide_bm_ops = { bm_read, bm_write, 1, 4 };
