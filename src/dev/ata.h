/* ATA disks and ATAPI CD drives, whatever carries their commands: the IDE channels (ide*.c) and the
 * ports of the AHCI controller (ahci*.c). ata.c has a disk's commands, ata_log.c its logs and SMART,
 * ata_identify.c what drives say of themselves, atapi.c a CD drive's packets.
 *
 * A command goes: the carrier puts its registers into the drive and asks ata_command, which checks all
 * of it and answers with a struct ata_task: what the carrier is to do. What was asked for being done, the
 * carrier calls ata_end and tells the host in its own way. Nothing here moves data or waits.
 *
 * Invariant: a task of READ, WRITE or TRIM lies within the disk, and the disk may be written to
 * where it says so.
 *
 * Machine lock held everywhere. */
#ifndef RING3_ATA_H
#define RING3_ATA_H

#include "dev/dev.h"

#define ATA_BUFFER 0x1000u      /* what answers and ranges take at most */
#define ATA_TRIM_BLOCKS 8u      /* of ranges, in a DATA SET MANAGEMENT */
#define ATA_RANGES (BLOCK_SECTOR / 8)
#define PACKET_BYTES 12u

enum { ST_ERR = 0x01, ST_DRQ = 0x08, ST_DSC = 0x10, ST_DF = 0x20, ST_DRDY = 0x40, ST_BSY = 0x80 };
enum { ERR_ABRT = 0x04, ERR_IDNF = 0x10, ERR_UNC = 0x40, ERR_ICRC = 0x80 };
enum { DEV_SECOND = 0x10, DEV_LBA = 0x40, DEV_FUA = 0x80 };
/* ATAPI interrupt reason, in the count register */
enum { REASON_CD = 1, REASON_IO = 2 };

struct ata_drive {
	/* what it is */
	struct block *blk;        /* NULL: no drive, or a CD drive without a medium */
	bool present, cd;
	bool queues;              /* the carrier has queued commands */
	char serial[21];
	struct block_geometry geometry;
	/* registers; [1] is what was there before, the "high order byte" of 48-bit commands */
	u8 feature[2], count[2], lba[3][2];
	u8 device, status, error;
	/* settings */
	u8 heads, sectors;        /* of CHS addresses */
	u8 multiple;              /* sectors of a DRQ block of READ, WRITE MULTIPLE; 0: not set */
	u8 mode;                  /* transfer mode as SET FEATURES gave it */
	u8 write_cache;
	u8 smart;                 /* its commands are on */
	/* CD: why the last command failed */
	u8 sense_key, asc, ascq, locked;
	/* CD: the tray is open, with or without a medium on it; the next command is to be told of another medium;
	 * what GET EVENT STATUS tells next (MMC-4 6.7.1.3, media events) */
	u8 tray_open, attention, event;
	/* SMART: sectors moved, requests that the host's disk failed */
	u64 sectors_read, sectors_written;
	u32 failures;
	/* the queued command that failed last: log 10h */
	struct ata_queued_error { u8 tag, status, error, device, count, lba[6]; } queued_error;
};

#define ATA_DRIVE_STATE(type, d) \
	STATE(type, d.feature), STATE(type, d.count), STATE(type, d.lba), STATE(type, d.device), STATE(type, d.status), \
	STATE(type, d.error), STATE(type, d.heads), STATE(type, d.sectors), STATE(type, d.multiple), STATE(type, d.mode), \
	STATE(type, d.write_cache), STATE(type, d.smart), STATE(type, d.sense_key), STATE(type, d.asc), STATE(type, d.ascq), \
	STATE(type, d.locked), STATE(type, d.tray_open), STATE(type, d.attention), STATE(type, d.event), STATE(type, d.sectors_read), STATE(type, d.sectors_written), STATE(type, d.failures), \
	STATE(type, d.queued_error)

enum ata_what {
	ATA_FAIL,      /* nothing more; error says why */
	ATA_DONE,      /* nothing more */
	ATA_SIGNATURE, /* nothing more: registers, status and error are those after a reset */
	ATA_SEND,      /* `bytes` of buffer go to the host */
	ATA_READ,      /* sectors of the disk go to the host */
	ATA_WRITE,     /* and the other way */
	ATA_FLUSH,     /* the disk is to be flushed */
	ATA_TRIM,      /* `bytes` of ranges come from the host; then ata_trim_check, ata_trim_next */
	ATA_PACKET,    /* PACKET_BYTES come from the host; then atapi_packet */
};

struct ata_task {
	enum ata_what what;
	u8 error;      /* FAIL: of the error register */
	bool dma;      /* how data moves: by DMA, or through the data port */
	bool fua;      /* WRITE: durable when done */
	u16 sector;    /* READ, WRITE: bytes of a sector, 512 or 2048 */
	u32 sectors;
	u64 lba;
	u32 bytes;     /* SEND, TRIM */
	u32 block;     /* data port: bytes between two interrupts */
};

static inline struct ata_task ata_failed(u8 error) { return (struct ata_task){ .what = ATA_FAIL, .error = error }; }
static inline struct ata_task ata_done(void) { return (struct ata_task){ .what = ATA_DONE }; }
static inline u64 ata_sectors(const struct ata_drive *d) { return block_size(d->blk) / BLOCK_SECTOR; }

/* unit: for a serial number where the configuration has none. */
void ata_attach(struct ata_drive *d, const struct ata_drive_config *cfg, unsigned unit);
/* ata_reset: what settings SET FEATURES and SMART made stay; ata_power_on: they go as well. */
void ata_reset(struct ata_drive *d);
void ata_power_on(struct ata_drive *d);
/* Values that only a damaged file can hold become ones that the code can meet. */
void ata_loaded(struct ata_drive *d);
void ata_signature(struct ata_drive *d);

/* The command in the drive's registers. buffer has ATA_BUFFER bytes. */
struct ata_task ata_command(struct ata_drive *d, u8 command, u8 *buffer);
/* A CD drive's packet; it may be where the answer goes. */
struct ata_task atapi_packet(struct ata_drive *d, const u8 *packet, bool dma, u8 *buffer);
static inline bool atapi_has_medium(const struct ata_drive *d) { return d->blk && !d->tray_open; }
/* Status, error and, of a packet, the interrupt reason as they are after a command. error: the error register, 0: none. */
void ata_end(struct ata_drive *d, bool packet, u8 error);
/* What the host's disk has done counts, and what it failed to do, in 512-byte sector lba. The error register; of a CD
 * drive with its sense. */
void ata_moved(struct ata_drive *d, bool write, u64 sectors);
u8 ata_medium_error(struct ata_drive *d, bool packet, bool write, u64 lba);
u8 atapi_sense(struct ata_drive *d, u8 key, u8 asc, u8 ascq);

/* 7.16, 60 and 61: READ, WRITE FPDMA QUEUED. */
bool ata_is_queued(u8 command);
struct ata_task ata_queued(const struct ata_drive *d, u8 command);
/* Keeps for log 10h which one it was. */
void ata_queued_failed(struct ata_drive *d, u8 tag, u8 error, u64 lba);

/* Ranges of a TRIM: all within the disk? The next one that is not empty, from the *at'th on; false: none. */
bool ata_trim_check(const struct ata_drive *d, const u8 *ranges, u32 bytes);
bool ata_trim_next(const u8 *ranges, u32 bytes, u32 *at, u64 *lba, u32 *sectors);

/* Private to these files. */
void ata_identify(const struct ata_drive *d, u8 *out);        /* 512 bytes */
void atapi_identify(const struct ata_drive *d, u8 *out);
void ata_put_sum(u8 *page);                                   /* byte 511: all 512 add to 0 */
struct ata_task ata_smart(struct ata_drive *d, u8 *buffer);   /* B0 */
struct ata_task ata_read_log(struct ata_drive *d, bool dma, u8 *buffer); /* 2F, 47 */

#endif
