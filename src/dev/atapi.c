/* A CD drive's commands. MMC-4 (INCITS 401), SPC-3 (INCITS 408), by ATA's PACKET; numbers are
 * those of the commands.
 *
 * One data track, from sector 0 to the image's end. Sectors have 2048 bytes.
 * Media come and go by the guest's commands and by the host's (atapi_push_button, atapi_change_medium). A
 * medium stays the drive's while the tray is open: closed by the guest, it is there again.
 * Left out: audio, raw sectors, writing. */
#include "dev/ata.h"

#include <string.h>

enum { NOT_READY = 2, ILLEGAL_REQUEST = 5, UNIT_ATTENTION = 6 };
enum { ASC_BAD_COMMAND = 0x20, ASC_BAD_ADDRESS = 0x21, ASC_BAD_FIELD = 0x24, ASC_MEDIUM_CHANGED = 0x28, ASC_NO_MEDIUM = 0x3a,
       ASC_REMOVAL = 0x53 };
enum { EVENT_NONE, EVENT_EJECT_REQUEST, EVENT_NEW_MEDIUM, EVENT_REMOVAL };

static u16 be16(const u8 *p) { return (u16)(p[0] << 8 | p[1]); }
static u32 be32(const u8 *p) { return __builtin_bswap32(ld32(p)); }
static void put16(u8 *p, u32 v) { st16(p, __builtin_bswap16((u16)v)); }
static void put32(u8 *p, u32 v) { st32(p, __builtin_bswap32(v)); }

static u32 cd_sectors(const struct ata_drive *d) { return atapi_has_medium(d) ? (u32)MIN(block_size(d->blk) / 2048, 0xffffffffull) : 0; }

u8 atapi_sense(struct ata_drive *d, u8 key, u8 asc, u8 ascq)
{
	d->sense_key = key;
	d->asc = asc;
	d->ascq = ascq;
	return (u8)(key << 4 | ERR_ABRT);
}

static struct ata_task refused(struct ata_drive *d, u8 key, u8 asc) { return ata_failed(atapi_sense(d, key, asc, 0)); }

/* ---- answers ------------------------------------------------------------------------------------ */

/* The most bytes that the host takes at once through the data port, 7.21: in the cylinder registers; even. */
static u32 byte_limit(const struct ata_drive *d)
{
	u32 n = (d->lba[1][0] | (u32)d->lba[2][0] << 8) & ~1u;

	return n ? n : 0xfffe;
}

/* bytes of buffer, of which the host allows so many. */
static struct ata_task reply(const struct ata_drive *d, u32 bytes, u32 allowed)
{
	bytes = MIN(bytes, allowed);
	return bytes ? (struct ata_task){ .what = ATA_SEND, .bytes = bytes, .block = byte_limit(d) } : ata_done();
}

static struct ata_task request_sense(struct ata_drive *d, u32 allowed, u8 *p)
{
	memset(p, 0, 18);
	p[0] = 0x70;
	p[2] = d->sense_key;
	p[7] = 10;
	p[12] = d->asc;
	p[13] = d->ascq;
	d->sense_key = d->asc = d->ascq = 0;
	return reply(d, 18, allowed);
}

static struct ata_task inquiry(struct ata_drive *d, u32 allowed, u8 *p)
{
	memset(p, 0, 36);
	p[0] = 5;                  /* a CD drive, */
	p[1] = 0x80;               /* removable */
	p[3] = 0x21;
	p[4] = 31;
	memcpy(p + 8, "RING3   CD-ROM          ", 24);
	memcpy(p + 32, "1.0 ", 4);
	return reply(d, 36, allowed);
}

static struct ata_task read_capacity(struct ata_drive *d, u8 *p)
{
	put32(p, cd_sectors(d) - 1);
	put32(p + 4, 2048);
	return reply(d, 8, 8);
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
static struct ata_task read_toc(struct ata_drive *d, u8 format, bool msf, u8 first, u32 allowed, u8 *p)
{
	static const u8 points[] = { 0xa0, 0xa1, 0xa2, 0x01 };
	u32 end = cd_sectors(d), n = 4;

	memset(p, 0, 64);
	p[2] = p[3] = 1;
	if (format == 0) {
		if (first > 1 && first != 0xaa)
			return refused(d, ILLEGAL_REQUEST, ASC_BAD_FIELD);
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
		return refused(d, ILLEGAL_REQUEST, ASC_BAD_FIELD);
	}
	put16(p, n - 2);
	return reply(d, n, allowed);
}

/* 46: profiles CD-ROM and DVD-ROM, the latter where the image is too large for a CD. */
static struct ata_task get_configuration(struct ata_drive *d, u32 allowed, u8 *p)
{
	u32 sectors = cd_sectors(d);
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
	return reply(d, 40, allowed);
}

/* 4A: no events but the medium's. */
static struct ata_task get_event(struct ata_drive *d, bool polled, u8 classes, u32 allowed, u8 *p)
{
	if (!polled)
		return refused(d, ILLEGAL_REQUEST, ASC_BAD_FIELD);
	memset(p, 0, 8);
	p[3] = 0x10;
	if (!(classes & 0x10)) {
		put16(p, 2);
		p[2] = 0x80;
		return reply(d, 4, allowed);
	}
	put16(p, 6);
	p[2] = 4;
	p[4] = d->event;
	p[5] = (u8)(d->tray_open | (atapi_has_medium(d) ? 2 : 0));
	d->event = EVENT_NONE;
	return reply(d, 8, allowed);
}

/* 5A: pages 01 (errors), 2A (what it can do). */
static struct ata_task mode_sense(struct ata_drive *d, u8 page, u32 allowed, u8 *p)
{
	u32 n = 8;

	memset(p, 0, 64);
	p[2] = atapi_has_medium(d) ? 0x01 : d->tray_open ? 0x71 : 0x70;
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
		p[n + 6] = (u8)(0x29 | (d->locked ? 2 : 0)); /* a tray, lock */
		put16(p + n + 8, 706);             /* KB/s */
		put16(p + n + 12, 512);            /* KB of buffer */
		put16(p + n + 14, 706);
		n += 20;
	}
	if (n == 8)
		return refused(d, ILLEGAL_REQUEST, ASC_BAD_FIELD);
	put16(p, n - 2);
	return reply(d, n, allowed);
}

static struct ata_task disc_information(struct ata_drive *d, u32 allowed, u8 *p)
{
	memset(p, 0, 34);
	put16(p, 32);
	p[2] = 0x0e;                           /* complete */
	p[3] = p[4] = p[5] = p[6] = 1;
	p[7] = 0x20;
	return reply(d, 34, allowed);
}

/* ---- reading -------------------------------------------------------------------------------------- */

static struct ata_task read_sectors(struct ata_drive *d, u32 lba, u32 n)
{
	u32 sectors = cd_sectors(d);

	if (lba > sectors || n > sectors - lba)
		return refused(d, ILLEGAL_REQUEST, ASC_BAD_ADDRESS);
	if (!n)
		return ata_done();
	return (struct ata_task){ .what = ATA_READ, .sector = 2048, .lba = lba, .sectors = n, .block = byte_limit(d) };
}

/* BE: user data is all that this drive gives. */
static struct ata_task read_cd(struct ata_drive *d, const u8 *cmd)
{
	u32 n = (u32)cmd[6] << 16 | be16(cmd + 7);

	if (!(cmd[9] & 0xf8))
		return ata_done();
	if ((cmd[9] & 0xf8) != 0x10)
		return refused(d, ILLEGAL_REQUEST, ASC_BAD_FIELD);
	return read_sectors(d, be32(cmd + 2), n);
}

/* MECHANISM STATUS: no changer. */
static struct ata_task mechanism_status(struct ata_drive *d, u32 allowed, u8 *p)
{
	memset(p, 0, 8);
	p[1] = (u8)(d->tray_open << 4);
	return reply(d, 8, allowed);
}

/* ---- media ------------------------------------------------------------------------------------------- */

static void open_tray(struct ata_drive *d)
{
	if (atapi_has_medium(d))
		d->event = EVENT_REMOVAL;
	d->tray_open = 1;
	d->attention = 0;
}

static void close_tray(struct ata_drive *d)
{
	d->tray_open = 0;
	d->attention = d->blk != NULL;
	if (d->blk)
		d->event = EVENT_NEW_MEDIUM;
}

/* 1B: the tray, where LoEj is set; a disc that turns or not is all the same. */
static struct ata_task start_stop(struct ata_drive *d, u8 what)
{
	if (!(what & 2))
		return ata_done();
	if (what & 1) {
		if (d->tray_open)
			close_tray(d);
	} else if (d->locked) {
		return ata_failed(atapi_sense(d, ILLEGAL_REQUEST, ASC_REMOVAL, 2)); /* prevented */
	} else {
		open_tray(d);
	}
	return ata_done();
}

bool atapi_push_button(struct mem *m, struct ata_drive *d)
{
	mem_lock(m);
	bool locked = d->locked && atapi_has_medium(d);
	if (locked)
		d->event = EVENT_EJECT_REQUEST;
	mem_unlock(m);
	return !locked;
}

/* What is under way of the old one comes to its end, and commands in the middle go on with the new one, or fail. */
struct block *atapi_change_medium(struct mem *m, struct ata_drive *d, struct block *blk)
{
	mem_lock(m);
	struct block *old = d->blk;
	open_tray(d);
	d->blk = blk;
	if (blk)
		close_tray(d);
	mem_unlock(m);
	if (old)
		block_drain(old);
	return old;
}

/* ---- commands ---------------------------------------------------------------------------------------- */

/* Commands that look at the medium. */
static bool needs_medium(u8 op)
{
	static const u8 ops[] = { 0x00, 0x25, 0x28, 0x2b, 0x42, 0x43, 0x44, 0x51, 0x52, 0xa8, 0xad, 0xb9, 0xbe };

	return memchr(ops, op, sizeof(ops)) != NULL;
}

/* SPC-3, 4.5: all but REQUEST SENSE, INQUIRY, GET CONFIGURATION, GET EVENT STATUS. */
static bool tells_of_changes(u8 op) { return op != 0x03 && op != 0x12 && op != 0x46 && op != 0x4a; }

static struct ata_task carry_out(struct ata_drive *d, const u8 *cmd, u8 *p)
{
	if (d->attention && tells_of_changes(cmd[0])) {
		d->attention = 0;
		return refused(d, UNIT_ATTENTION, ASC_MEDIUM_CHANGED);
	}
	if (!atapi_has_medium(d) && needs_medium(cmd[0]))
		return ata_failed(atapi_sense(d, NOT_READY, ASC_NO_MEDIUM, d->tray_open ? 2 : 0));
	switch (cmd[0]) {
	case 0x00: case 0x2b: case 0xbb: return ata_done(); /* ready?, seek, speed */
	case 0x03: return request_sense(d, cmd[4], p);
	case 0x12: return inquiry(d, cmd[4], p);
	case 0x1b: return start_stop(d, cmd[4]);
	case 0x1e: d->locked = cmd[4] & 1; return ata_done();
	case 0x25: return read_capacity(d, p);
	case 0x28: return read_sectors(d, be32(cmd + 2), be16(cmd + 7));
	case 0x43: return read_toc(d, cmd[2] & 15 ? cmd[2] & 15 : cmd[9] >> 6, cmd[1] & 2, cmd[6], be16(cmd + 7), p);
	case 0x46: return get_configuration(d, be16(cmd + 7), p);
	case 0x4a: return get_event(d, cmd[1] & 1, cmd[4], be16(cmd + 7), p);
	case 0x51: return disc_information(d, be16(cmd + 7), p);
	case 0x5a: return mode_sense(d, cmd[2] & 0x3f, be16(cmd + 7), p);
	case 0xa8: return read_sectors(d, be32(cmd + 2), be32(cmd + 6));
	case 0xbd: return mechanism_status(d, be16(cmd + 8), p);
	case 0xbe: return read_cd(d, cmd);
	default: return refused(d, ILLEGAL_REQUEST, ASC_BAD_COMMAND);
	}
}

struct ata_task atapi_packet(struct ata_drive *d, const u8 *packet, bool dma, u8 *buffer)
{
	u8 cmd[PACKET_BYTES];

	memcpy(cmd, packet, sizeof(cmd));
	struct ata_task t = carry_out(d, cmd, buffer);
	t.dma = dma;
	return t;
}
