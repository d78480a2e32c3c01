/* A CD drive's commands. MMC-4 (INCITS 401), SPC-3 (INCITS 408), by ATA's PACKET; numbers are
 * those of the commands.
 *
 * One data track, from sector 0 to the image's end. Sectors have 2048 bytes.
 * Left out: audio, raw sectors, writing, eject (the tray stays shut). */
#include "dev/ide_impl.h"

#include <string.h>

enum { NOT_READY = 2, ILLEGAL_REQUEST = 5 };
enum { ASC_BAD_COMMAND = 0x20, ASC_BAD_ADDRESS = 0x21, ASC_BAD_FIELD = 0x24, ASC_NO_MEDIUM = 0x3a };

static u16 be16(const u8 *p) { return (u16)(p[0] << 8 | p[1]); }
static u32 be32(const u8 *p) { return __builtin_bswap32(ld32(p)); }
static void put16(u8 *p, u32 v) { st16(p, __builtin_bswap16((u16)v)); }
static void put32(u8 *p, u32 v) { st32(p, __builtin_bswap32(v)); }

static u32 cd_sectors(const struct ide_drive *d) { return d->blk ? (u32)MIN(block_size(d->blk) / 2048, 0xffffffffull) : 0; }

void atapi_fail(struct ide_channel *c, u8 key, u8 asc, u8 ascq)
{
	struct ide_drive *d = ide_drive(c);

	d->sense_key = key;
	d->asc = asc;
	d->ascq = ascq;
	ide_fail(c, (u8)(key << 4 | ERR_ABRT));
}

/* ---- answers ------------------------------------------------------------------------------------ */

/* The most bytes that the host takes at once, 8.25.2: in the cylinder registers; even. */
static u32 byte_limit(const struct ide_drive *d)
{
	u32 n = (d->lba[1][0] | (u32)d->lba[2][0] << 8) & ~1u;

	return n ? n : 0xfffe;
}

/* bytes of buffer, of which the host allows so many. */
static void reply(struct ide_channel *c, u32 bytes, u32 allowed)
{
	bytes = MIN(bytes, allowed);
	if (!bytes)
		ide_finish(c);
	else if (c->dma)
		ide_dma_reply(c, bytes);
	else
		ide_reply(c, bytes, byte_limit(ide_drive(c)));
}

static void request_sense(struct ide_channel *c, u32 allowed)
{
	struct ide_drive *d = ide_drive(c);
	u8 *p = c->buffer;

	memset(p, 0, 18);
	p[0] = 0x70;
	p[2] = d->sense_key;
	p[7] = 10;
	p[12] = d->asc;
	p[13] = d->ascq;
	d->sense_key = d->asc = d->ascq = 0;
	reply(c, 18, allowed);
}

static void inquiry(struct ide_channel *c, u32 allowed)
{
	u8 *p = c->buffer;

	memset(p, 0, 36);
	p[0] = 5;                  /* a CD drive, */
	p[1] = 0x80;               /* removable */
	p[3] = 0x21;
	p[4] = 31;
	memcpy(p + 8, "RING3   CD-ROM          ", 24);
	memcpy(p + 32, "1.0 ", 4);
	reply(c, 36, allowed);
}

static void read_capacity(struct ide_channel *c)
{
	put32(c->buffer, cd_sectors(ide_drive(c)) - 1);
	put32(c->buffer + 4, 2048);
	reply(c, 8, 8);
}

static void put_address(u8 *p, u32 lba, bool msf)
{
	put32(p, lba);
	if (msf) { /* minutes, seconds, frames, with the two seconds before sector 0 */
		lba += 150;
		p[0] = 0;
		p[1] = (u8)(lba / (75 * 60));
		p[2] = (u8)(lba / 75 % 60);
		p[3] = (u8)(lba % 75);
	}
}

/* 43, format 0: the tracks; 1: the sessions; 2: what the lead-in says. */
static void read_toc(struct ide_channel *c, u8 format, bool msf, u8 first, u32 allowed)
{
	static const u8 points[] = { 0xa0, 0xa1, 0xa2, 0x01 };
	u32 end = cd_sectors(ide_drive(c)), n = 4;
	u8 *p = c->buffer;

	memset(p, 0, 64);
	p[2] = p[3] = 1;
	if (format == 0) {
		if (first > 1 && first != 0xaa) {
			atapi_fail(c, ILLEGAL_REQUEST, ASC_BAD_FIELD, 0);
			return;
		}
		for (unsigned k = first == 0xaa; k < 2; k++, n += 8) {
			p[n + 1] = 0x14;           /* a data track */
			p[n + 2] = k ? 0xaa : 1;   /* the lead-out */
			put_address(p + n + 4, k ? end : 0, msf);
		}
	} else if (format == 1) {
		p[n + 1] = 0x14;
		p[n + 2] = 1;
		put_address(p + n + 4, 0, msf);
		n += 8;
	} else if (format == 2) {
		for (unsigned k = 0; k < ARRAY_LEN(points); k++, n += 11) {
			p[n] = 1;
			p[n + 1] = 0x14;
			p[n + 3] = points[k];
			if (points[k] == 0xa0 || points[k] == 0xa1)
				p[n + 8] = 1;
			else
				put_address(p + n + 7, points[k] == 0xa2 ? end : 0, true);
		}
	} else {
		atapi_fail(c, ILLEGAL_REQUEST, ASC_BAD_FIELD, 0);
		return;
	}
	put16(p, n - 2);
	reply(c, n, allowed);
}

/* 46: profiles CD-ROM and DVD-ROM, the latter where the image is too large for a CD. */
static void get_configuration(struct ide_channel *c, u32 allowed)
{
	u8 *p = c->buffer;
	u32 sectors = cd_sectors(ide_drive(c));
	bool dvd = sectors > 360000;

	memset(p, 0, 40);
	put16(p + 6, !sectors ? 0 : dvd ? 0x10 : 0x08);
	p[10] = 3;                         /* feature 0, profiles: persistent, current */
	p[11] = 8;
	put16(p + 12, 0x10);
	p[14] = sectors && dvd;
	put16(p + 16, 0x08);
	p[18] = sectors && !dvd;
	put16(p + 20, 1);                  /* feature 1, core: ATAPI */
	p[22] = 0x0b;
	p[23] = 8;
	put32(p + 24, 2);
	p[28] = 1;
	put16(p + 32, 3);                  /* feature 3, removable medium: a tray */
	p[34] = 3;
	p[35] = 4;
	p[36] = 0x29;
	put32(p, 40 - 4);
	reply(c, 40, allowed);
}

/* 4A: no event but the medium's, which never changes. */
static void get_event(struct ide_channel *c, bool polled, u8 classes, u32 allowed)
{
	u8 *p = c->buffer;

	if (!polled) {
		atapi_fail(c, ILLEGAL_REQUEST, ASC_BAD_FIELD, 0);
		return;
	}
	memset(p, 0, 8);
	p[3] = 0x10;
	if (!(classes & 0x10)) {
		put16(p, 2);
		p[2] = 0x80;
		reply(c, 4, allowed);
		return;
	}
	put16(p, 6);
	p[2] = 4;
	p[5] = ide_drive(c)->blk ? 2 : 0;  /* a medium is there */
	reply(c, 8, allowed);
}

/* 5A: pages 01 (errors), 2A (what it can do). */
static void mode_sense(struct ide_channel *c, u8 page, u32 allowed)
{
	u8 *p = c->buffer;
	u32 n = 8;

	memset(p, 0, 64);
	p[2] = ide_drive(c)->blk ? 0x01 : 0x70;
	if (page == 0x01 || page == 0x3f) {
		p[n] = 0x01;
		p[n + 1] = 6;
		p[n + 3] = 5;                      /* retries */
		n += 8;
	}
	if (page == 0x2a || page == 0x3f) {
		p[n] = 0x2a;
		p[n + 1] = 18;
		p[n + 2] = 3;                      /* reads CD-R, CD-RW */
		p[n + 4] = 0x70;                   /* mode 2, sessions */
		p[n + 6] = (u8)(0x29 | (ide_drive(c)->locked ? 2 : 0)); /* a tray, lock */
		put16(p + n + 8, 706);             /* KB/s */
		put16(p + n + 12, 512);            /* KB of buffer */
		put16(p + n + 14, 706);
		n += 20;
	}
	if (n == 8) {
		atapi_fail(c, ILLEGAL_REQUEST, ASC_BAD_FIELD, 0);
		return;
	}
	put16(p, n - 2);
	reply(c, n, allowed);
}

static void disc_information(struct ide_channel *c, u32 allowed)
{
	u8 *p = c->buffer;

	memset(p, 0, 34);
	put16(p, 32);
	p[2] = 0x0e;                           /* complete */
	p[3] = p[4] = p[5] = p[6] = 1;
	p[7] = 0x20;
	reply(c, 34, allowed);
}

/* ---- reading -------------------------------------------------------------------------------------- */

static void read_sectors(struct ide_channel *c, u32 lba, u32 n)
{
	u32 sectors = cd_sectors(ide_drive(c));

	if (lba > sectors || n > sectors - lba)
		atapi_fail(c, ILLEGAL_REQUEST, ASC_BAD_ADDRESS, 0);
	else if (!n)
		ide_finish(c);
	else if (c->dma)
		ide_dma_sectors(c, lba, n, false);
	else
		ide_read_pio(c, lba, n, byte_limit(ide_drive(c)));
}

/* BE: user data is all that this drive gives. */
static void read_cd(struct ide_channel *c, const u8 *cmd)
{
	u32 n = (u32)cmd[6] << 16 | be16(cmd + 7);

	if (!(cmd[9] & 0xf8))
		ide_finish(c);
	else if ((cmd[9] & 0xf8) != 0x10)
		atapi_fail(c, ILLEGAL_REQUEST, ASC_BAD_FIELD, 0);
	else
		read_sectors(c, be32(cmd + 2), n);
}

/* ---- commands ---------------------------------------------------------------------------------------- */

/* Commands that look at the medium. */
static bool needs_medium(u8 op)
{
	static const u8 ops[] = { 0x00, 0x25, 0x28, 0x2b, 0x42, 0x43, 0x44, 0x51, 0x52, 0xa8, 0xad, 0xb9, 0xbe };

	return memchr(ops, op, sizeof(ops)) != NULL;
}

void atapi_packet(struct ide_channel *c)
{
	u8 cmd[PACKET_BYTES];
	struct ide_drive *d = ide_drive(c);

	memcpy(cmd, c->buffer, sizeof(cmd));
	c->phase = IDE_IDLE;
	if (!d->blk && needs_medium(cmd[0])) {
		atapi_fail(c, NOT_READY, ASC_NO_MEDIUM, 0);
		return;
	}
	switch (cmd[0]) {
	case 0x00: case 0x1b: case 0x2b: case 0xbb: ide_finish(c); break; /* ready?, start and stop, seek, speed */
	case 0x03: request_sense(c, cmd[4]); break;
	case 0x12: inquiry(c, cmd[4]); break;
	case 0x1e: d->locked = cmd[4] & 1; ide_finish(c); break;
	case 0x25: read_capacity(c); break;
	case 0x28: read_sectors(c, be32(cmd + 2), be16(cmd + 7)); break;
	case 0x43: read_toc(c, cmd[2] & 15 ? cmd[2] & 15 : cmd[9] >> 6, cmd[1] & 2, cmd[6], be16(cmd + 7)); break;
	case 0x46: get_configuration(c, be16(cmd + 7)); break;
	case 0x4a: get_event(c, cmd[1] & 1, cmd[4], be16(cmd + 7)); break;
	case 0x51: disc_information(c, be16(cmd + 7)); break;
	case 0x5a: mode_sense(c, cmd[2] & 0x3f, be16(cmd + 7)); break;
	case 0xa8: read_sectors(c, be32(cmd + 2), be32(cmd + 6)); break;
	case 0xbd: memset(c->buffer, 0, 8); reply(c, 8, be16(cmd + 8)); break; /* MECHANISM STATUS: no changer */
	case 0xbe: read_cd(c, cmd); break;
	default: atapi_fail(c, ILLEGAL_REQUEST, ASC_BAD_COMMAND, 0); break;
	}
}
