/* The AHCI controller, private to ahci*.c: ahci.c is the controller and its interrupts, ahci_port.c a port's
 * registers, its link and its start and stop, ahci_command.c the commands in its slots. Commands are ata.h's.
 *
 * A slot's command goes:
 *
 *   PxCI bit set        the guest's; nothing is known of it
 *   fetched, not queued BSY until its end, nothing else is fetched; then the bit falls
 *   fetched, queued     the bit falls at once, PxSACT's at its end; others are fetched meanwhile
 *
 * `active` is a command that has been fetched and is not at its end; in_flight counts what the host's disk has
 * been asked for. A stop or reset makes commands inactive at once; the port is `ending` until those in flight
 * have come back, shows that by PxCMD.CR, and fetches nothing.
 *
 * Machine lock held everywhere but in req.done. */
#ifndef RING3_AHCI_IMPL_H
#define RING3_AHCI_IMPL_H

#include "dev/ata.h"

#define AHCI_SLOTS 32u
#define AHCI_PIECES 256         /* of memory, in one request to the host's disk */
#define AHCI_STEP (4u << 20)    /* bytes that one such request moves at most */

/* 3.3.5, PxIS */
enum ahci_is { IS_DHRS = 1 << 0, IS_PSS = 1 << 1, IS_SDBS = 1 << 3, IS_DPS = 1 << 5, IS_PCS = 1 << 6, IS_PRCS = 1 << 22,
	       IS_OFS = 1 << 24, IS_IFS = 1 << 27, IS_HBFS = 1 << 29, IS_TFES = 1 << 30 };
/* 3.3.7, PxCMD */
enum ahci_cmd { CMD_ST = 1 << 0, CMD_SUD = 1 << 1, CMD_POD = 1 << 2, CMD_CLO = 1 << 3, CMD_FRE = 1 << 4, CMD_FR = 1 << 14,
		CMD_CR = 1 << 15, CMD_ATAPI = 1 << 24, CMD_DLAE = 1 << 25 };
/* 3.3.12, PxSERR */
enum ahci_serr { SERR_N = 1 << 16, SERR_X = 1 << 26 };

enum ahci_reset { RESET_NONE, RESET_SOFT, RESET_LINK };

struct ahci_port;
struct ahci_command {
	struct ahci_port *p;
	u8 slot;
	bool active;
	bool queued, packet, write, fua, pio;
	u64 header, table;        /* guest addresses */
	u32 entries;              /* of its table of memory */
	u32 entry, entry_at;      /* the next byte there */
	u32 moved;                /* bytes */
	u64 lba;                  /* next sector of 512 bytes */
	u32 left;                 /* sectors from there on */
	u32 range, range_bytes;   /* TRIM: the next range, bytes of them */
	struct block_request req;
	struct iovec iov[AHCI_PIECES];
};

struct ahci_port {
	struct ahci *ahci;
	u8 index;
	struct ata_drive drive;
	/* registers; PxTFD is the drive's status and error */
	u64 clb, fb;
	u32 is, ie, cmd, sctl, serr, sact, ci, sig;
	u8 ccs;
	u8 halted;                /* by an error, until ST falls */
	u8 fis_waits;             /* the first FIS after a reset, until FRE rises */
	u8 srst;                  /* of the drive's control register */
	/* what is under way; nothing is when state is saved */
	u32 queued;               /* slots with active queued commands */
	unsigned in_flight;
	bool ending;
	enum ahci_reset reset;    /* when it has ended */
	struct ahci_command *command; /* AHCI_SLOTS; NULL: no drive */
	u8 buffer[ATA_BUFFER];    /* of the command that is not queued */
};

struct ahci {
	struct device d;
	struct pci_function pci;
	u32 ghc, is;              /* GHC: IE and HR only */
	u32 told;                 /* bits of `is` that a message has gone out for */
	struct ahci_port port[AHCI_PORTS];
};

static inline bool ahci_present(const struct ahci_port *p) { return p->drive.present; }

/* ahci.c */
void ahci_update_irq(struct ahci *a);                         /* after any change of PxIS, PxIE, PxSERR */
void ahci_port_idle(struct ahci_port *p);                     /* ending is over */
/* ahci_port.c */
u32 ahci_port_read(struct ahci_port *p, unsigned reg);
void ahci_port_write(struct ahci_port *p, unsigned reg, u32 val);
u32 ahci_port_is(const struct ahci_port *p);                  /* PxIS */
void ahci_port_clear(struct ahci_port *p);                    /* registers; the link comes up anew */
void ahci_port_loaded(struct ahci_port *p);
void ahci_port_abort(struct ahci_port *p);                    /* makes all commands inactive */
void ahci_port_reset(struct ahci_port *p, enum ahci_reset r); /* now, or when it has ended */
void ahci_port_reset_now(struct ahci_port *p);
void ahci_post(struct ahci_port *p, unsigned off, const u8 *fis, unsigned bytes); /* to the receive area */
void ahci_post_registers(struct ahci_port *p, bool interrupt); /* D2H Register FIS */
/* ahci_command.c */
void ahci_run(struct ahci_port *p);                           /* fetches what can be */

#endif
