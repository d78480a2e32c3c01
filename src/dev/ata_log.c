/* A disk's logs and SMART. ACS-3 (INCITS 522), 7.24, 7.48 and annex A; SFF-8035i, which systems read
 * attributes by.
 *
 * Attributes are what this drive can know: sectors moved, and requests that the host's disk failed. That last
 * one predicts the drive's end: from 100 it counts down, and SMART RETURN STATUS tells when it comes to its threshold.
 *
 * Logs: 00h the directory; 10h the queued command that failed. */
#include "dev/ata.h"

#include <string.h>

enum { LOG_DIRECTORY = 0x00, LOG_QUEUED_ERROR = 0x10 };
enum { ATTR_FAILURES = 187, ATTR_WRITTEN = 241, ATTR_READ = 242 };
enum { ATTR_PREFAILURE = 0x01, ATTR_ONLINE = 0x02, ATTR_COUNT = 0x10, ATTR_KEEPS = 0x20 };
#define FAILURES_THRESHOLD 10u

void ata_put_sum(u8 *page)
{
	u8 sum = 0;

	for (unsigned k = 0; k < BLOCK_SECTOR - 1; k++)
		sum = (u8)(sum + page[k]);
	page[BLOCK_SECTOR - 1] = (u8)-sum;
}

static struct ata_task send_page(bool dma)
{
	return (struct ata_task){ .what = ATA_SEND, .bytes = BLOCK_SECTOR, .block = BLOCK_SECTOR, .dma = dma };
}

/* ---- SMART -------------------------------------------------------------------------------------- */

static u8 health(const struct ata_drive *d) { return (u8)(100 - MIN(d->failures, 99u)); }

static void put_attribute(u8 *p, u8 id, unsigned flags, u8 value, u64 raw)
{
	p[0] = id;
	st16(p + 1, (u16)flags);
	p[3] = p[4] = value;                   /* now, and the worst that it was */
	st32(p + 5, (u32)raw);
	st16(p + 9, (u16)(raw >> 32));
}

static void put_data(const struct ata_drive *d, u8 *p)
{
	memset(p, 0, BLOCK_SECTOR);
	st16(p, 0x10);
	put_attribute(p + 2, ATTR_FAILURES, ATTR_PREFAILURE | ATTR_ONLINE | ATTR_COUNT | ATTR_KEEPS, health(d), d->failures);
	put_attribute(p + 14, ATTR_WRITTEN, ATTR_ONLINE | ATTR_COUNT | ATTR_KEEPS, 100, d->sectors_written);
	put_attribute(p + 26, ATTR_READ, ATTR_ONLINE | ATTR_COUNT | ATTR_KEEPS, 100, d->sectors_read);
	st16(p + 368, 0x0003);                 /* keeps attributes by itself */
	ata_put_sum(p);
}

static void put_thresholds(u8 *p)
{
	static const u8 ids[] = { ATTR_FAILURES, ATTR_WRITTEN, ATTR_READ };

	memset(p, 0, BLOCK_SECTOR);
	st16(p, 0x10);
	for (unsigned k = 0; k < ARRAY_LEN(ids); k++) {
		p[2 + 12 * k] = ids[k];
		p[3 + 12 * k] = ids[k] == ATTR_FAILURES ? FAILURES_THRESHOLD : 0;
	}
	ata_put_sum(p);
}

/* DA: the key in the LBA registers stays, or is turned round. */
static struct ata_task return_status(struct ata_drive *d)
{
	bool ends = health(d) <= FAILURES_THRESHOLD;

	d->lba[1][0] = ends ? 0xf4 : 0x4f;
	d->lba[2][0] = ends ? 0x2c : 0xc2;
	return ata_done();
}

struct ata_task ata_smart(struct ata_drive *d, u8 *buffer)
{
	if (d->lba[1][0] != 0x4f || d->lba[2][0] != 0xc2 || (!d->smart && d->feature[0] != 0xd8))
		return ata_failed(ERR_ABRT);
	switch (d->feature[0]) {
	case 0xd0: put_data(d, buffer); return send_page(false);
	case 0xd1: put_thresholds(buffer); return send_page(false);
	case 0xd2: case 0xd3: return ata_done();           /* attributes are kept always */
	case 0xd8: d->smart = 1; return ata_done();
	case 0xd9: d->smart = 0; return ata_done();
	case 0xda: return return_status(d);
	default: return ata_failed(ERR_ABRT);
	}
}

/* ---- logs ------------------------------------------------------------------------------------------ */

void ata_queued_failed(struct ata_drive *d, u8 tag, u8 error, u64 lba)
{
	struct ata_queued_error *q = &d->queued_error;

	*q = (struct ata_queued_error){ tag, ST_DRDY | ST_DSC | ST_ERR, error, DEV_LBA, (u8)(tag << 3), { 0 } };
	for (unsigned k = 0; k < 6; k++)
		q->lba[k] = (u8)(lba >> 8 * k);
}

static void put_directory(const struct ata_drive *d, u8 *p)
{
	st16(p, 1);
	st16(p + 2 * LOG_QUEUED_ERROR, d->queues ? 1 : 0);
}

/* A.14: registers of the command, by which the host knows which one it was. Reading forgets it. */
static void put_queued_error(struct ata_drive *d, u8 *p)
{
	struct ata_queued_error *q = &d->queued_error;

	p[0] = q->tag;
	p[2] = q->status;
	p[3] = q->error;
	p[4] = q->lba[0];
	p[5] = q->lba[1];
	p[6] = q->lba[2];
	p[7] = q->device;
	p[8] = q->lba[3];
	p[9] = q->lba[4];
	p[10] = q->lba[5];
	p[12] = q->count;
	ata_put_sum(p);
	*q = (struct ata_queued_error){ .tag = 0x80 }; /* none */
}

struct ata_task ata_read_log(struct ata_drive *d, bool dma, u8 *buffer)
{
	u32 pages = d->count[0] | (u32)d->count[1] << 8, first = d->lba[1][0] | (u32)d->lba[1][1] << 8;
	u8 log = d->lba[0][0];

	if (pages != 1 || first || (log != LOG_DIRECTORY && (log != LOG_QUEUED_ERROR || !d->queues)))
		return ata_failed(ERR_ABRT);
	memset(buffer, 0, BLOCK_SECTOR);
	if (log == LOG_DIRECTORY)
		put_directory(d, buffer);
	else
		put_queued_error(d, buffer);
	return send_page(dma);
}
