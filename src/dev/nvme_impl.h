/* The NVMe controller, private to nvme*.c: nvme.c is the controller and its registers, nvme_queue.c the queues and
 * interrupts, nvme_admin.c the admin commands, nvme_identify.c what it says of itself, nvme_io.c commands of the
 * namespace, nvme_prp.c the guest's memory that they name.
 *
 * A command goes: fetched from its submission queue once its completion queue is sure to have room; carried out,
 * or held while the host's disk is asked; told by an entry of the completion queue.
 *
 * Machine lock held everywhere but in req.done. */
#ifndef RING3_NVME_IMPL_H
#define RING3_NVME_IMPL_H

#include "dev/dev.h"

#define NVME_QUEUES 33u         /* of each kind, the admin queue included; as many vectors */
#define NVME_ENTRIES 1024u      /* of a queue at most */
#define NVME_PAGE 4096u
#define NVME_MDTS 8u            /* 5.15.2.2: 1 MiB a command */
#define NVME_MAX_BYTES (NVME_PAGE << NVME_MDTS)
#define NVME_PIECES (NVME_MAX_BYTES / NVME_PAGE + 1)
#define NVME_IN_FLIGHT 256u
#define NVME_AERS 4u
#define NVME_RANGES 256u        /* of a DATASET MANAGEMENT */

/* 4.6.1.2: status code type << 8 | status code, and Do Not Retry */
enum nvme_status {
	NVME_OK = 0, NVME_DNR = 0x4000,
	NVME_BAD_OPCODE = NVME_DNR | 0x01, NVME_BAD_FIELD = NVME_DNR | 0x02, NVME_TRANSFER_ERROR = 0x04, NVME_INTERNAL = 0x06,
	NVME_BAD_NAMESPACE = NVME_DNR | 0x0b, NVME_BAD_SGL = NVME_DNR | 0x11, NVME_BAD_PRP = NVME_DNR | 0x13, NVME_PROTECTED = NVME_DNR | 0x20,
	NVME_OUT_OF_RANGE = NVME_DNR | 0x80,
	NVME_BAD_CQ = NVME_DNR | 0x100, NVME_BAD_QUEUE = NVME_DNR | 0x101, NVME_BAD_SIZE = NVME_DNR | 0x102,
	NVME_TOO_MANY_AERS = NVME_DNR | 0x105, NVME_BAD_VECTOR = NVME_DNR | 0x108, NVME_BAD_LOG = NVME_DNR | 0x109,
	NVME_BAD_DELETION = NVME_DNR | 0x10c, NVME_NOT_SAVEABLE = NVME_DNR | 0x10d,
	NVME_WRITE_FAULT = 0x280, NVME_READ_ERROR = 0x281,
};

/* 5.21.1 */
enum nvme_feature { FEAT_ARBITRATION = 1, FEAT_POWER = 2, FEAT_TEMPERATURE = 4, FEAT_RECOVERY = 5, FEAT_CACHE = 6, FEAT_QUEUES = 7,
		    FEAT_COALESCING = 8, FEAT_VECTOR = 9, FEAT_ATOMICITY = 10, FEAT_EVENTS = 11, NVME_FEATURES = 12 };

struct nvme_sq {
	u64 base;                 /* 0: there is none */
	u16 size, head, tail, cq;
};

struct nvme_cq {
	u64 base;
	u16 size, head, tail, vector;
	u8 phase, interrupts;
	u8 pad[6];                /* state is plain bytes */
};

struct nvme;
struct nvme_command {
	struct nvme *n;
	struct nvme_command *next; /* of the free ones */
	u16 sq, id;
	u8 entry[64];
	u32 result;
	struct block_request req;
	int pieces;
	struct iovec iov[NVME_PIECES];
	u32 range, ranges;        /* DATASET MANAGEMENT */
	u8 range_list[NVME_RANGES * 16];
};

struct nvme {
	struct device d;
	struct pci_function pci;
	struct block *blk;        /* NULL: none */
	char serial[21];
	/* registers */
	u32 cc, aqa, intms;
	u64 asq, acq;
	u8 ready, failed, shut;   /* CSTS */
	struct nvme_sq sq[NVME_QUEUES];
	struct nvme_cq cq[NVME_QUEUES];
	u32 feature[NVME_FEATURES];
	u16 aer[NVME_AERS];       /* identifiers of those that wait */
	u8 aers;
	/* logs; units of 512 bytes */
	u64 read_units, written_units, reads, writes, media_errors, errors;
	u8 last_error[64];        /* log 1's first entry */
	/* what is under way; nothing is when state is saved */
	unsigned in_flight;
	bool ending;              /* CC.EN has fallen, and some are */
	u16 busy[NVME_QUEUES];    /* fetched and not told, of a submission queue */
	u16 owed[NVME_QUEUES];    /* of a completion queue */
	struct nvme_command *deleting[NVME_QUEUES]; /* DELETE I/O SUBMISSION QUEUE, until busy is 0 */
	struct nvme_command *free;
};

static inline u32 nvme_dword(const struct nvme_command *c, unsigned n) { return ld32(c->entry + 4 * n); }

/* nvme.c */
void nvme_disable(struct nvme *n);                            /* all queues go */
void nvme_fail(struct nvme *n, const char *why);              /* CSTS.CFS */
/* nvme_queue.c */
void nvme_run(struct nvme *n, unsigned sq);                   /* fetches what can be */
void nvme_run_all(struct nvme *n);
void nvme_doorbell(struct nvme *n, unsigned which, u32 val);
void nvme_update_pin(struct nvme *n);
/* Tells that c is done, and frees it. */
void nvme_end(struct nvme_command *c, u16 status);
void nvme_drop(struct nvme_command *c);                       /* without telling */
/* nvme_admin.c, nvme_io.c: end it now or later. */
void nvme_admin(struct nvme_command *c);
void nvme_io(struct nvme_command *c);
void nvme_delete_now(struct nvme *n, unsigned sq);            /* nothing of it is busy any more */
/* nvme_identify.c: 4096 bytes. False: no such structure. */
bool nvme_identify(const struct nvme *n, u8 cns, u32 namespace, u8 *out);
/* nvme_prp.c: pieces of memory for bytes, at most NVME_MAX_BYTES, into c->iov. A status. */
u16 nvme_map(struct nvme_command *c, u32 bytes);
u16 nvme_copy_out(struct nvme_command *c, const u8 *from, u32 bytes);
u16 nvme_copy_in(struct nvme_command *c, u8 *to, u32 bytes);

#endif
