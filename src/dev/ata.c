/* ATA commands. ATA/ATAPI-6 (INCITS 361), chapter 8; numbers are those of the commands.
 *
 * Sector addresses are checked here, once: what reaches the block layer is within the disk. */
#include "dev/ide_impl.h"

#include <string.h>

#define MULTIPLE_MAX 16u

void ata_signature(struct ide_drive *d)
{
	d->count[0] = d->lba[0][0] = 1;
	d->lba[1][0] = d->cd ? 0x14 : 0;
	d->lba[2][0] = d->cd ? 0xeb : 0;
}

/* ---- addresses ---------------------------------------------------------------------------------- */

struct extent { u64 lba; u32 sectors; };

static u64 disk_sectors(const struct ide_drive *d) { return block_size(d->blk) / BLOCK_SECTOR; }

/* 8.27 and others: 28 bits of address (or cylinder, head, sector) and 8 of count, or 48 and 16; a
 * count of 0 is the largest. False: outside the disk. */
static bool get_extent(const struct ide_channel *c, const struct ide_drive *d, bool ext, struct extent *x)
{
	u64 low = d->lba[0][0] | (u64)d->lba[1][0] << 8 | (u64)d->lba[2][0] << 16;

	if (ext) {
		x->lba = low | (u64)d->lba[0][1] << 24 | (u64)d->lba[1][1] << 32 | (u64)d->lba[2][1] << 40;
		x->sectors = d->count[0] | (u32)d->count[1] << 8;
		x->sectors = x->sectors ? x->sectors : 0x10000;
	} else {
		x->sectors = d->count[0] ? d->count[0] : 0x100;
		if (c->device & DEV_LBA) {
			x->lba = low | (u64)(c->device & 15) << 24;
		} else { /* sectors count from 1 */
			u64 cylinder = low >> 8, head = c->device & 15, sector = low & 0xff;
			if (!sector || sector > d->sectors || head >= d->heads)
				return false;
			x->lba = (cylinder * d->heads + head) * d->sectors + sector - 1;
		}
	}
	return x->lba < disk_sectors(d) && x->sectors <= disk_sectors(d) - x->lba;
}

/* ---- reading and writing -------------------------------------------------------------------------- */

enum how { PIO, MULTIPLE, DMA };

static void transfer(struct ide_channel *c, bool ext, bool write, enum how how)
{
	struct ide_drive *d = ide_drive(c);
	struct extent x;

	if (how == MULTIPLE && !d->multiple) {
		ide_fail(c, ERR_ABRT);
	} else if (!get_extent(c, d, ext, &x)) {
		ide_fail(c, ERR_IDNF);
	} else if (write && block_read_only(d->blk)) {
		ide_fail(c, ERR_ABRT);
	} else if (how == DMA) {
		ide_dma_sectors(c, x.lba, x.sectors, write);
	} else {
		u32 block = BLOCK_SECTOR * (how == MULTIPLE ? d->multiple : 1);
		(write ? ide_write_pio : ide_read_pio)(c, x.lba, x.sectors, block);
	}
}

static void verify(struct ide_channel *c, bool ext)
{
	struct extent x;

	if (get_extent(c, ide_drive(c), ext, &x))
		ide_finish(c);
	else
		ide_fail(c, ERR_IDNF);
}

static void flushed(struct ide_channel *c, int error)
{
	if (error)
		ide_fail(c, ERR_ABRT);
	else
		ide_finish(c);
}

static void read_native_max(struct ide_channel *c, bool ext)
{
	struct ide_drive *d = ide_drive(c);
	u64 last = disk_sectors(d) - 1;

	if (!ext)
		last = MIN(last, 0x0fffffffull);
	for (unsigned k = 0; k < 3; k++) {
		d->lba[k][0] = (u8)(last >> 8 * k);
		if (ext)
			d->lba[k][1] = (u8)(last >> (24 + 8 * k));
	}
	if (!ext)
		c->device = (u8)((c->device & 0xf0) | (last >> 24 & 15));
	ide_finish(c);
}

/* ---- settings ---------------------------------------------------------------------------------------- */

/* EF: subcommand in features. */
static void set_features(struct ide_channel *c)
{
	struct ide_drive *d = ide_drive(c);

	switch (d->feature[0]) {
	case 0x02: d->write_cache = 1; break;
	case 0x82: d->write_cache = 0; break;
	case 0x03: d->mode = d->count[0]; break;
	case 0x55: case 0xaa: /* read look-ahead: has no effect */
	case 0x66: case 0xcc: break;
	default: ide_fail(c, ERR_ABRT); return;
	}
	ide_finish(c);
}

/* C6: sectors of a block, a power of two. */
static void set_multiple(struct ide_channel *c)
{
	struct ide_drive *d = ide_drive(c);
	u8 n = d->count[0];

	if (n > MULTIPLE_MAX || (n & (n - 1))) {
		ide_fail(c, ERR_ABRT);
		return;
	}
	d->multiple = n;
	ide_finish(c);
}

/* 91: the geometry of CHS addresses. */
static void set_parameters(struct ide_channel *c)
{
	struct ide_drive *d = ide_drive(c);

	if (!d->count[0]) {
		ide_fail(c, ERR_ABRT);
		return;
	}
	d->heads = (u8)((c->device & 15) + 1);
	d->sectors = d->count[0];
	ide_finish(c);
}

static void identify(struct ide_channel *c, bool packet)
{
	struct ide_drive *d = ide_drive(c);

	if (d->cd != packet) {
		ata_signature(d); /* 8.15: by which the host knows what it is */
		ide_fail(c, ERR_ABRT);
		return;
	}
	if (packet)
		atapi_identify(d, c->buffer);
	else
		ata_identify(d, c->buffer);
	ide_reply(c, BLOCK_SECTOR, BLOCK_SECTOR);
}

/* ---- commands ------------------------------------------------------------------------------------------ */

/* 90: both drives; the first one answers for both. */
static void diagnose(struct ide_channel *c)
{
	for (unsigned k = 0; k < 2; k++) {
		c->drive[k].error = 1;
		c->drive[k].status = c->drive[k].cd ? 0 : ST_DRDY | ST_DSC;
		ata_signature(&c->drive[k]);
	}
	c->device = 0;
	ide_raise(c);
}

static void packet(struct ide_channel *c)
{
	struct ide_drive *d = ide_drive(c);

	c->packet = 1;
	c->dma = d->feature[0] & 1;
	c->sector = 2048;
	c->at = 0;
	c->end = c->filled = c->block = PACKET_BYTES;
	c->phase = IDE_PACKET;
	d->count[0] = REASON_CD;
	d->status = ST_DRDY | ST_DSC | ST_DRQ;
}

/* Those that both kinds have. False: none of them. */
static bool common_command(struct ide_channel *c)
{
	switch (c->command) {
	case 0x00: ide_fail(c, ERR_ABRT); return true;                   /* NOP */
	case 0x90: diagnose(c); return true;
	case 0xa1: identify(c, true); return true;
	case 0xec: identify(c, false); return true;
	case 0xef: set_features(c); return true;
	case 0xe0: case 0xe1: case 0xe2: case 0xe3: case 0xe6: ide_finish(c); return true; /* standby, idle, sleep */
	case 0xe5: ide_drive(c)->count[0] = 0xff; ide_finish(c); return true;              /* power mode: active */
	default: return false;
	}
}

static void disk_command(struct ide_channel *c)
{
	switch (c->command) {
	case 0x10: case 0x70: ide_finish(c); break;                      /* RECALIBRATE, SEEK */
	case 0x20: case 0x21: transfer(c, false, false, PIO); break;
	case 0x24: transfer(c, true, false, PIO); break;
	case 0x25: transfer(c, true, false, DMA); break;
	case 0x27: read_native_max(c, true); break;
	case 0x29: transfer(c, true, false, MULTIPLE); break;
	case 0x30: case 0x31: transfer(c, false, true, PIO); break;
	case 0x34: transfer(c, true, true, PIO); break;
	case 0x35: transfer(c, true, true, DMA); break;
	case 0x39: transfer(c, true, true, MULTIPLE); break;
	case 0x40: case 0x41: verify(c, false); break;
	case 0x42: verify(c, true); break;
	case 0x91: set_parameters(c); break;
	case 0xc4: transfer(c, false, false, MULTIPLE); break;
	case 0xc5: transfer(c, false, true, MULTIPLE); break;
	case 0xc6: set_multiple(c); break;
	case 0xc8: case 0xc9: transfer(c, false, false, DMA); break;
	case 0xca: case 0xcb: transfer(c, false, true, DMA); break;
	case 0xe7: case 0xea: ide_ask_disk(c, BLOCK_FLUSH, NULL, 0, 0, flushed); break;
	case 0xf8: read_native_max(c, false); break;
	default: ide_fail(c, ERR_ABRT); break;
	}
}

void ata_command(struct ide_channel *c)
{
	if (c->command == 0x08) { /* DEVICE RESET, of packet devices; also when busy */
		if (c->drive[!!(c->device & DEV_SECOND)].cd)
			ide_reset_drive(c);
		return;
	}
	c->active = !!(c->device & DEV_SECOND);
	c->packet = 0;
	c->sector = BLOCK_SECTOR;
	c->block = BLOCK_SECTOR;
	if (common_command(c))
		return;
	if (!ide_drive(c)->cd)
		disk_command(c);
	else if (c->command == 0xa0)
		packet(c);
	else {
		if (c->command == 0x20) /* 8.34: packet devices give their signature */
			ata_signature(ide_drive(c));
		ide_fail(c, ERR_ABRT);
	}
}
