/* The IDE controller, private to ide*.c, ata*.c and atapi.c: ide.c is the controller, its registers
 * and the way of data through the data port, ide_dma.c the bus master, ata.c a disk's commands,
 * atapi.c a CD drive's.
 *
 * A channel carries out one command at a time. Its phases:
 *
 *   IDLE      nothing under way
 *   DISK      the host's disk is asked (req); BSY. What comes after is in `then`
 *   IN, OUT   DRQ: the data port moves bytes at..end-1 of buffer; at end, ide_block_done
 *   PACKET    as OUT, the 12 bytes of an ATAPI command
 *   DMA       waits for the bus master's start bit, then DISK by turns
 *
 * Machine lock held everywhere but in req.done. */
#ifndef RING3_IDE_IMPL_H
#define RING3_IDE_IMPL_H

#include "dev/dev.h"

#define IDE_BUFFER 0x10000u
#define IDE_BOUNCE (1u << 20)   /* bytes that one step of DMA moves at most */
#define PACKET_BYTES 12u

enum { ST_ERR = 0x01, ST_DRQ = 0x08, ST_DSC = 0x10, ST_DF = 0x20, ST_DRDY = 0x40, ST_BSY = 0x80 };
enum { ERR_ABRT = 0x04, ERR_IDNF = 0x10, ERR_UNC = 0x40 };
enum { DEV_SECOND = 0x10, DEV_LBA = 0x40 };
enum { CTL_NIEN = 0x02, CTL_SRST = 0x04, CTL_HOB = 0x80 };
/* ATAPI interrupt reason, in the count register */
enum { REASON_CD = 1, REASON_IO = 2 };
enum { BM_START = 0x01, BM_TO_MEMORY = 0x08 };
enum { BM_ACTIVE = 0x01, BM_ERROR = 0x02, BM_INT = 0x04, BM_DRIVES = 0x60 };

enum ide_phase { IDE_IDLE, IDE_DISK, IDE_IN, IDE_OUT, IDE_PACKET, IDE_DMA };

struct ide_drive {
	/* what it is */
	struct block *blk;        /* NULL: no drive, or a CD drive without a medium */
	bool present, cd;
	char serial[21];
	struct block_geometry geometry;
	/* registers; [1] is what was there before, the "high order byte" of 48-bit commands */
	u8 feature[2], count[2], lba[3][2];
	u8 status, error;
	/* settings */
	u8 heads, sectors;        /* of CHS addresses */
	u8 multiple;              /* sectors of a DRQ block of READ, WRITE MULTIPLE; 0: not set */
	u8 mode;                  /* transfer mode as SET FEATURES gave it */
	u8 write_cache;
	/* CD: why the last command failed */
	u8 sense_key, asc, ascq, locked;
};

struct ide_channel {
	struct ide *ide;
	u8 index;
	struct ide_drive drive[2];
	u8 device, control, irq;  /* irq: INTRQ, before nIEN */
	/* the command under way */
	u8 phase, command, active; /* active: whose it is */
	u8 packet;                /* it is an ATAPI one */
	u8 write;
	u8 dma;
	u16 sector;               /* bytes of a sector: 512, 2048 */
	u32 at, end, filled;      /* in buffer */
	u32 block;                /* bytes of a DRQ block */
	u64 lba;                  /* next sector to ask the disk for */
	u32 left;                 /* sectors from there on */
	u8 reset_waits;           /* SRST came while the disk was asked */
	u8 buffer[IDE_BUFFER];
	/* the bus master */
	u8 bm_command, bm_status;
	u32 bm_table;             /* as the guest wrote it */
	u32 bm_next, bm_addr, bm_left; /* the next entry; what is left of the one before */
	u8 bm_last;               /* that was the last one */
	/* the host's disk; nothing of it is under way when state is saved */
	struct block_request req;
	struct iovec iov;
	void (*then)(struct ide_channel *c, int error);
	u8 *bounce;
};

struct ide {
	struct device d;
	struct pci_function pci;
	struct ide_channel channel[2];
};

static inline struct ide_drive *ide_drive(struct ide_channel *c) { return &c->drive[c->active & 1]; }

/* ide.c */
void ide_raise(struct ide_channel *c);                        /* INTRQ */
void ide_finish(struct ide_channel *c);                       /* the command is done, without error; raises */
void ide_fail(struct ide_channel *c, u8 error);               /* with these bits of the error register */
void ide_reply(struct ide_channel *c, u32 bytes, u32 block);  /* buffer holds bytes for the host */
void ide_ask_disk(struct ide_channel *c, enum block_op op, u8 *buf, u64 lba, u32 sectors,
		  void (*then)(struct ide_channel *c, int error));
void ide_read_pio(struct ide_channel *c, u64 lba, u32 sectors, u32 block);
void ide_write_pio(struct ide_channel *c, u64 lba, u32 sectors, u32 block);
void ide_reset_drive(struct ide_channel *c);                  /* the selected one */
/* ide_dma.c: sectors of the disk; or bytes that are in buffer already (atapi.c's answers). */
void ide_dma_sectors(struct ide_channel *c, u64 lba, u32 sectors, bool write);
void ide_dma_reply(struct ide_channel *c, u32 bytes);
void ide_dma_reset(struct ide_channel *c);
extern const struct mmio_ops ide_bm_ops;                      /* 16 ports */
/* ata.c, ata_identify.c */
void ata_command(struct ide_channel *c);
void ata_signature(struct ide_drive *d);
void ata_identify(const struct ide_drive *d, u8 *out);        /* 512 bytes */
void atapi_identify(const struct ide_drive *d, u8 *out);
/* atapi.c */
void atapi_packet(struct ide_channel *c);                     /* buffer holds it */
void atapi_fail(struct ide_channel *c, u8 key, u8 asc, u8 ascq);

#endif
