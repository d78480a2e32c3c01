/* A disk's commands, and those that all drives have. ATA8-ACS (INCITS 452) and ACS-3 (INCITS 522), chapter
 * 7; CHS addresses and MULTIPLE as in ATA/ATAPI-6 (INCITS 361), chapter 8. Numbers are those of the commands.
 *
 * Sector addresses are checked here, once: what reaches the block layer is within the disk. */
#include "dev/ata.h"

#include <stdio.h>
#include <string.h>

#define MULTIPLE_MAX 16u
#define TRIM 0x01u

void ata_signature(struct ata_drive *d)
{
	d->count[0] = d->lba[0][0] = 1;
	d->lba[1][0] = d->cd ? 0x14 : 0;
	d->lba[2][0] = d->cd ? 0xeb : 0;
}

/* ---- life --------------------------------------------------------------------------------------- */

void ata_reset(struct ata_drive *d)
{
	d->multiple = 0;
	d->heads = (u8)d->geometry.heads;
	d->sectors = (u8)d->geometry.sectors;
	d->error = 1; /* diagnostics passed */
	d->status = d->cd ? 0 : ST_DRDY | ST_DSC;
	d->sense_key = d->asc = d->ascq = d->locked = 0;
	d->queued_error = (struct ata_queued_error){ .tag = 0x80 };
	ata_signature(d);
}

void ata_power_on(struct ata_drive *d)
{
	d->write_cache = d->smart = 1;
	d->mode = 0;
	ata_reset(d);
}

void ata_attach(struct ata_drive *d, const struct ata_drive_config *cfg, unsigned unit)
{
	*d = (struct ata_drive){ .blk = cfg->blk, .present = true, .cd = cfg->cd };
	if (cfg->serial)
		snprintf(d->serial, sizeof(d->serial), "%s", cfg->serial);
	else
		snprintf(d->serial, sizeof(d->serial), "R3%05u", unit + 1);
	if (cfg->blk && !cfg->cd)
		block_get_geometry(cfg->blk, &d->geometry);
	ata_power_on(d);
}

void ata_loaded(struct ata_drive *d)
{
	if (d->multiple > MULTIPLE_MAX || (d->multiple & (d->multiple - 1)))
		d->multiple = 0;
	d->tray_open = d->cd && d->tray_open;
	d->event &= 3;
}

/* ---- ends --------------------------------------------------------------------------------------- */

void ata_end(struct ata_drive *d, bool packet, u8 error)
{
	d->error = error;
	d->status = ST_DRDY | ST_DSC | (error ? ST_ERR : 0);
	if (packet)
		d->count[0] = REASON_IO | REASON_CD;
}

void ata_moved(struct ata_drive *d, bool write, u64 sectors)
{
	*(write ? &d->sectors_written : &d->sectors_read) += sectors;
}

u8 ata_medium_error(struct ata_drive *d, bool packet, bool write, u64 lba)
{
	d->failures++;
	if (packet)
		return atapi_sense(d, 3, 0x11, 0); /* medium error, unrecovered read */
	for (unsigned k = 0; k < 6; k++)
		d->lba[k % 3][k / 3] = (u8)(lba >> 8 * k);
	return write ? ERR_ABRT : ERR_UNC;
}

/* ---- addresses ---------------------------------------------------------------------------------- */

struct extent { u64 lba; u32 sectors; };

static bool within(const struct ata_drive *d, u64 lba, u64 sectors)
{
	return lba < ata_sectors(d) && sectors <= ata_sectors(d) - lba;
}

static u64 low_lba(const struct ata_drive *d) { return d->lba[0][0] | (u64)d->lba[1][0] << 8 | (u64)d->lba[2][0] << 16; }

static u64 lba48(const struct ata_drive *d)
{
	return low_lba(d) | (u64)d->lba[0][1] << 24 | (u64)d->lba[1][1] << 32 | (u64)d->lba[2][1] << 40;
}

/* 28 bits of address (or cylinder, head, sector) and 8 of count, or 48 and 16; a
 * count of 0 is the largest. False: outside the disk. */
static bool get_extent(const struct ata_drive *d, bool ext, struct extent *x)
{
	if (ext) {
		x->lba = lba48(d);
		x->sectors = d->count[0] | (u32)d->count[1] << 8;
		x->sectors = x->sectors ? x->sectors : 0x10000;
	} else {
		x->sectors = d->count[0] ? d->count[0] : 0x100;
		if (d->device & DEV_LBA) {
			x->lba = low_lba(d) | (u64)(d->device & 15) << 24;
		} else { /* sectors count from 1 */
			u64 cylinder = low_lba(d) >> 8, head = d->device & 15, sector = d->lba[0][0];
			if (!sector || sector > d->sectors || head >= d->heads)
				return false;
			x->lba = (cylinder * d->heads + head) * d->sectors + sector - 1;
		}
	}
	return within(d, x->lba, x->sectors);
}

/* ---- reading and writing -------------------------------------------------------------------------- */

enum how { PIO, MULTIPLE, DMA };

static struct ata_task move_sectors(const struct ata_drive *d, bool write, struct extent x)
{
	return (struct ata_task){ .what = write ? ATA_WRITE : ATA_READ, .fua = !d->write_cache, .sector = BLOCK_SECTOR,
				  .lba = x.lba, .sectors = x.sectors, .dma = true };
}

static struct ata_task transfer(const struct ata_drive *d, bool ext, bool write, enum how how)
{
	struct extent x;

	if (how == MULTIPLE && !d->multiple)
		return ata_failed(ERR_ABRT);
	if (!get_extent(d, ext, &x))
		return ata_failed(ERR_IDNF);
	if (write && block_read_only(d->blk))
		return ata_failed(ERR_ABRT);
	struct ata_task t = move_sectors(d, write, x);
	t.dma = how == DMA;
	t.block = BLOCK_SECTOR * (how == MULTIPLE ? d->multiple : 1);
	return t;
}

static struct ata_task write_through(const struct ata_drive *d, enum how how)
{
	struct ata_task t = transfer(d, true, true, how);

	t.fua = true;
	return t;
}

bool ata_is_queued(u8 command) { return command == 0x60 || command == 0x61; }

struct ata_task ata_queued(const struct ata_drive *d, u8 command)
{
	struct extent x = { lba48(d), d->feature[0] | (u32)d->feature[1] << 8 };
	bool write = command == 0x61;

	x.sectors = x.sectors ? x.sectors : 0x10000;
	if (!d->queues || d->cd)
		return ata_failed(ERR_ABRT);
	if (!within(d, x.lba, x.sectors))
		return ata_failed(ERR_IDNF);
	if (write && block_read_only(d->blk))
		return ata_failed(ERR_ABRT);
	struct ata_task t = move_sectors(d, write, x);
	t.fua |= d->device & DEV_FUA;
	return t;
}

static struct ata_task verify(const struct ata_drive *d, bool ext)
{
	struct extent x;

	return get_extent(d, ext, &x) ? ata_done() : ata_failed(ERR_IDNF);
}

static struct ata_task read_native_max(struct ata_drive *d, bool ext)
{
	u64 last = ata_sectors(d) - 1;

	if (!ext)
		last = MIN(last, 0x0fffffffull);
	for (unsigned k = 0; k < (ext ? 6 : 3); k++)
		d->lba[k % 3][k / 3] = (u8)(last >> 8 * k);
	if (!ext)
		d->device = (u8)((d->device & 0xf0) | (last >> 24 & 15));
	return ata_done();
}

/* ---- DATA SET MANAGEMENT ----------------------------------------------------------------------------- */

/* 06: count blocks of ranges come by DMA; TRIM is all that it knows. */
static struct ata_task manage_data_set(const struct ata_drive *d)
{
	u32 blocks = d->count[0] | (u32)d->count[1] << 8;

	if (d->feature[0] != TRIM || !blocks || blocks > ATA_TRIM_BLOCKS || block_read_only(d->blk))
		return ata_failed(ERR_ABRT);
	return (struct ata_task){ .what = ATA_TRIM, .bytes = blocks * BLOCK_SECTOR, .dma = true };
}

bool ata_trim_next(const u8 *ranges, u32 bytes, u32 *at, u64 *lba, u32 *sectors)
{
	while (*at < bytes / 8) {
		u64 range = ld64(ranges + 8 * (*at)++);

		*lba = range & 0xffffffffffffull;
		*sectors = (u32)(range >> 48);
		if (*sectors)
			return true;
	}
	return false;
}

bool ata_trim_check(const struct ata_drive *d, const u8 *ranges, u32 bytes)
{
	u32 at = 0, sectors;
	u64 lba;

	while (ata_trim_next(ranges, bytes, &at, &lba, &sectors))
		if (!within(d, lba, sectors))
			return false;
	return true;
}

/* ---- settings ---------------------------------------------------------------------------------------- */

/* EF: subcommand in features. */
static struct ata_task set_features(struct ata_drive *d)
{
	switch (d->feature[0]) {
	case 0x02: d->write_cache = 1; break;
	case 0x82: d->write_cache = 0; break;
	case 0x03: d->mode = d->count[0]; break;
	case 0x55: case 0xaa: /* read look-ahead: has no effect */
	case 0x66: case 0xcc: break;
	default: return ata_failed(ERR_ABRT);
	}
	return ata_done();
}

/* C6: sectors of a block, a power of two. */
static struct ata_task set_multiple(struct ata_drive *d)
{
	u8 n = d->count[0];

	if (n > MULTIPLE_MAX || (n & (n - 1)))
		return ata_failed(ERR_ABRT);
	d->multiple = n;
	return ata_done();
}

/* 91: the geometry of CHS addresses. */
static struct ata_task set_parameters(struct ata_drive *d)
{
	if (!d->count[0])
		return ata_failed(ERR_ABRT);
	d->heads = (u8)((d->device & 15) + 1);
	d->sectors = d->count[0];
	return ata_done();
}

static struct ata_task identify(struct ata_drive *d, bool packet, u8 *buffer)
{
	if (d->cd != packet) {
		ata_signature(d); /* by which the host knows what it is */
		return ata_failed(ERR_ABRT);
	}
	(packet ? atapi_identify : ata_identify)(d, buffer);
	return (struct ata_task){ .what = ATA_SEND, .bytes = BLOCK_SECTOR, .block = BLOCK_SECTOR };
}

/* ---- commands ------------------------------------------------------------------------------------------ */

/* 08, DEVICE RESET, of packet devices, and 90, EXECUTE DEVICE DIAGNOSTIC. */
static struct ata_task reset_by_command(struct ata_drive *d)
{
	ata_reset(d);
	return (struct ata_task){ .what = ATA_SIGNATURE };
}

static struct ata_task cd_command(struct ata_drive *d, u8 command)
{
	switch (command) {
	case 0x08: return reset_by_command(d);
	case 0x20: ata_signature(d); return ata_failed(ERR_ABRT);
	case 0xa0: return (struct ata_task){ .what = ATA_PACKET, .bytes = PACKET_BYTES, .dma = d->feature[0] & 1 };
	default: return ata_failed(ERR_ABRT);
	}
}

static struct ata_task disk_command(struct ata_drive *d, u8 command, u8 *buffer)
{
	switch (command) {
	case 0x06: return manage_data_set(d);
	case 0x10: case 0x70: return ata_done();                      /* RECALIBRATE, SEEK */
	case 0x20: case 0x21: return transfer(d, false, false, PIO);
	case 0x24: return transfer(d, true, false, PIO);
	case 0x25: return transfer(d, true, false, DMA);
	case 0x27: return read_native_max(d, true);
	case 0x29: return transfer(d, true, false, MULTIPLE);
	case 0x2f: return ata_read_log(d, false, buffer);
	case 0x30: case 0x31: return transfer(d, false, true, PIO);
	case 0x34: return transfer(d, true, true, PIO);
	case 0x35: return transfer(d, true, true, DMA);
	case 0x39: return transfer(d, true, true, MULTIPLE);
	case 0x3d: return write_through(d, DMA);
	case 0x40: case 0x41: return verify(d, false);
	case 0x42: return verify(d, true);
	case 0x47: return ata_read_log(d, true, buffer);
	case 0x91: return set_parameters(d);
	case 0xb0: return ata_smart(d, buffer);
	case 0xc4: return transfer(d, false, false, MULTIPLE);
	case 0xc5: return transfer(d, false, true, MULTIPLE);
	case 0xc6: return set_multiple(d);
	case 0xc8: case 0xc9: return transfer(d, false, false, DMA);
	case 0xca: case 0xcb: return transfer(d, false, true, DMA);
	case 0xce: return write_through(d, MULTIPLE);
	case 0xe7: case 0xea: return (struct ata_task){ .what = ATA_FLUSH };
	case 0xf8: return read_native_max(d, false);
	default: return ata_failed(ERR_ABRT);
	}
}

struct ata_task ata_command(struct ata_drive *d, u8 command, u8 *buffer)
{
	switch (command) {
	case 0x00: return ata_failed(ERR_ABRT);                       /* NOP */
	case 0x90: return reset_by_command(d);
	case 0xa1: return identify(d, true, buffer);
	case 0xec: return identify(d, false, buffer);
	case 0xef: return set_features(d);
	case 0xe0: case 0xe1: case 0xe2: case 0xe3: case 0xe6: return ata_done(); /* standby, idle, sleep */
	case 0xe5: d->count[0] = 0xff; return ata_done();                         /* power mode: active */
	default: return d->cd ? cd_command(d, command) : disk_command(d, command, buffer);
	}
}
