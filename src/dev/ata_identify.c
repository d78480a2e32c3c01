/* What drives say of themselves: IDENTIFY DEVICE and IDENTIFY PACKET DEVICE. ATA8-ACS (INCITS 452) and
 * ACS-3 (INCITS 522), 7.12 and 7.13; numbers are those of words. */
#include "dev/ata.h"

#include <string.h>

static void word(u8 *out, unsigned n, unsigned val) { st16(out + 2 * n, (u16)val); }

/* Two characters a word, the first one in the high byte, padded with blanks. */
static void text(u8 *out, unsigned n, unsigned words, const char *s)
{
	size_t len = strlen(s);

	for (unsigned k = 0; k < 2 * words; k++)
		out[2 * n + (k ^ 1)] = k < len ? (u8)s[k] : ' ';
}

/* Modes 0 to 2 of multiword DMA and 0 to 5 of Ultra DMA, and which one is selected. */
static void modes(const struct ata_drive *d, u8 *out)
{
	unsigned n = 1u << (d->mode & 7);

	word(out, 63, 0x07 | ((d->mode & 0xf8) == 0x20 ? (n & 0x07) << 8 : 0));
	word(out, 64, 0x03);
	for (unsigned k = 65; k <= 68; k++)
		word(out, k, 120);
	word(out, 88, 0x3f | ((d->mode & 0xf8) == 0x40 ? (n & 0x3f) << 8 : 0));
}

/* Words that a serial drive has, and what goes with queues. */
static void serial_ata(const struct ata_drive *d, u8 *out)
{
	if (!d->queues)
		return;
	word(out, 76, (d->cd ? 0 : 0x0100) | 0x0006); /* queued commands, 1.5 and 3 Gbit/s */
	word(out, 78, 0x0040);                 /* settings outlast resets, */
	word(out, 79, 0x0040);                 /* and that is on */
	word(out, 93, 0);                      /* no cable of the parallel kind */
	if (!d->cd)
		word(out, 75, 31);             /* 32 of them */
}

void ata_identify(const struct ata_drive *d, u8 *out)
{
	struct block_limits limits;
	u64 sectors = ata_sectors(d), small = MIN(sectors, 0x0fffffffull);
	u64 cylinders = d->heads && d->sectors ? MIN(sectors / (d->heads * d->sectors), 0xffffull) : 0;
	u64 chs = cylinders * d->heads * d->sectors;

	block_get_limits(d->blk, &limits);
	memset(out, 0, BLOCK_SECTOR);
	word(out, 0, 0x0040);
	word(out, 1, d->geometry.cylinders);
	word(out, 3, d->geometry.heads);
	word(out, 6, d->geometry.sectors);
	text(out, 10, 10, d->serial);
	text(out, 23, 4, RING3_VERSION);
	text(out, 27, 20, "RING3 DISK");
	word(out, 47, 0x8010);                 /* READ MULTIPLE: up to 16 sectors */
	word(out, 49, 0x0f00);                 /* LBA, DMA, IORDY */
	word(out, 50, 0x4000);
	word(out, 53, 0x0007);
	word(out, 54, (unsigned)cylinders);
	word(out, 55, d->heads);
	word(out, 56, d->sectors);
	st32(out + 2 * 57, (u32)chs);
	word(out, 59, d->multiple ? 0x100u | d->multiple : 0);
	st32(out + 2 * 60, (u32)small);
	modes(d, out);
	word(out, 80, 0x03f0);                 /* ATA/ATAPI-4 to ACS-2 */
	word(out, 82, 0x0021);                 /* write cache, SMART */
	word(out, 83, 0x7400);                 /* 48-bit addresses, FLUSH CACHE, FLUSH CACHE EXT */
	word(out, 84, 0x4060);                 /* general purpose logs, FUA */
	word(out, 85, (d->write_cache ? 0x0020 : 0) | (d->smart ? 1 : 0));
	word(out, 86, 0xb400);                 /* and words 119, 120 */
	word(out, 87, 0x4060);
	word(out, 93, 0x6003);                 /* an 80-wire cable */
	st64(out + 2 * 100, sectors);
	word(out, 106, 0x6000 | (unsigned)__builtin_ctz(MAX(limits.physical_sector / BLOCK_SECTOR, 1u)));
	word(out, 119, 0x4008);                /* READ LOG DMA EXT */
	word(out, 120, 0x4008);
	if (!block_read_only(d->blk)) {
		word(out, 105, ATA_TRIM_BLOCKS);
		word(out, 169, 1);             /* TRIM */
	}
	word(out, 217, 1);                     /* nothing turns */
	serial_ata(d, out);
	out[510] = 0xa5;
	ata_put_sum(out);
}

void atapi_identify(const struct ata_drive *d, u8 *out)
{
	memset(out, 0, BLOCK_SECTOR);
	word(out, 0, 0x8580);                  /* packets of 12 bytes, CD-ROM, removable */
	text(out, 10, 10, d->serial);
	text(out, 23, 4, RING3_VERSION);
	text(out, 27, 20, "RING3 CD-ROM");
	word(out, 49, 0x0f00);
	word(out, 53, 0x0006);
	modes(d, out);
	word(out, 80, 0x0070);
	word(out, 82, 0x0210);                 /* packets, DEVICE RESET */
	word(out, 83, 0x4000);
	word(out, 84, 0x4000);
	word(out, 85, 0x0210);
	word(out, 87, 0x4000);
	word(out, 93, 0x6003);
	serial_ata(d, out);
}
