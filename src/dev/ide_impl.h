/* The IDE controller, private to ide*.c: ide.c is the controller, its registers and the way of data
 * through the data port, ide_dma.c the bus master. Commands are ata.h's.
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

#include "dev/ata.h"

#define IDE_BUFFER 0x10000u
#define IDE_BOUNCE (1u << 20)   /* bytes that one step of DMA moves at most */

enum { CTL_NIEN = 0x02, CTL_SRST = 0x04, CTL_HOB = 0x80 };
enum { BM_START = 0x01, BM_TO_MEMORY = 0x08 };
enum { BM_ACTIVE = 0x01, BM_ERROR = 0x02, BM_INT = 0x04, BM_DRIVES = 0x60 };

enum ide_phase { IDE_IDLE, IDE_DISK, IDE_IN, IDE_OUT, IDE_PACKET, IDE_DMA };

struct ide_channel {
	struct ide *ide;
	u8 index;
	struct ata_drive drive[2];
	u8 device, control, irq;  /* irq: INTRQ, before nIEN */
	/* the command under way */
	u8 phase, command, active; /* active: whose it is */
	u8 packet;                /* it is an ATAPI one */
	u8 write, dma, fua;
	u8 trim;                  /* buffer gets ranges, or holds them */
	u16 sector;               /* bytes of a sector: 512, 2048 */
	u32 at, end, filled;      /* in buffer; at of a TRIM: the next range */
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

static inline struct ata_drive *ide_drive(struct ide_channel *c) { return &c->drive[c->active & 1]; }

/* ide.c */
void ide_end(struct ide_channel *c, u8 error);                /* the command is done: the error register, 0: none; raises */
void ide_fail_medium(struct ide_channel *c);                  /* the host's disk failed */
void ide_ask_disk(struct ide_channel *c, enum block_op op, u8 *buf, u64 lba, u32 sectors,
		  void (*then)(struct ide_channel *c, int error));
void ide_trim(struct ide_channel *c);                         /* the ranges in buffer */
/* ide_dma.c: sectors of the disk; or `filled` bytes of buffer, answers and TRIM's ranges. */
void ide_dma_sectors(struct ide_channel *c);
void ide_dma_buffer(struct ide_channel *c);
void ide_dma_reset(struct ide_channel *c);
extern const struct mmio_ops ide_bm_ops;                      /* 16 ports */

#endif
