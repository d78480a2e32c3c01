/* Private to dev/: what virtio devices share. Virtual I/O Device (VIRTIO) Version 1.2.
 *
 *   virtio_X.c           a device: its configuration, what it does with requests
 *   virtio.c             status, features, reset, when a queue is looked at, life
 *   virtq.c              the queues: the one walker of descriptors
 *   virtio_pci.c, virtio_pci_legacy.c   the registers as a PCI function shows them
 *   virtio_bell.c        notifications that the host's kernel takes
 *
 * A device embeds struct virtio as its first member and has one const struct virtio_type. A driver's
 * notification makes the loop's thread call the type's run; that takes chains from a queue, does
 * what they ask, pushes them back and notifies.
 *
 * Invariants
 *  1. Nothing of guest memory is read twice: rings, descriptors and headers are copied, then judged.
 *  2. A chain holds RAM only, at most VIRTQ_MAX_IOV pieces; what a driver must not do (loops, ranges
 *     that are not RAM, too long chains, readable after writable buffers, indices that run
 *     away) breaks the device: DEVICE_NEEDS_RESET, and no queue is looked at until a reset.
 *  3. One run takes at most as many chains as the queue has entries; the rest waits for the next
 *     turn of the loop. So no driver keeps the loop's thread to itself.
 *  4. From virtq_pop to virtq_push or virtq_drop a chain is the device's, and counts as in flight. A
 *     driver's reset is complete (status reads 0) only when none is in flight: device memory
 *     accesses end before it. Meanwhile no chain is taken.
 * Threading: machine lock held, except where a device gives it up in run (virtio_unlock); another
 * thread may reset or break the device then, which virtq_push and virtq_pop notice. */
#ifndef RING3_VIRTIO_H
#define RING3_VIRTIO_H

#include <sys/uio.h>

#include "dev/virtio_api.h"

#define VIRTIO_MAX_QUEUES 16u
#define VIRTQ_MAX_SIZE 256u
#define VIRTQ_MAX_IOV (VIRTQ_MAX_SIZE + 8u) /* a buffer may lie across two pieces of RAM */
#define VIRTIO_NO_VECTOR 0xffffu

enum { VIRTIO_ID_NET = 1, VIRTIO_ID_BLK = 2, VIRTIO_ID_CONSOLE = 3, VIRTIO_ID_RNG = 4, VIRTIO_ID_BALLOON = 5, VIRTIO_ID_9P = 9 };
/* Bits of device status (2.1). */
enum { VS_ACKNOWLEDGE = 1, VS_DRIVER = 2, VS_DRIVER_OK = 4, VS_FEATURES_OK = 8, VS_NEEDS_RESET = 0x40, VS_FAILED = 0x80 };
/* Features of all devices (6). */
#define VIRTIO_F_NOTIFY_ON_EMPTY (1ull << 24)
#define VIRTIO_F_ANY_LAYOUT (1ull << 27)
#define VIRTIO_F_INDIRECT_DESC (1ull << 28)
#define VIRTIO_F_EVENT_IDX (1ull << 29)
#define VIRTIO_F_VERSION_1 (1ull << 32)
#define VIRTIO_F_RING_PACKED (1ull << 34)

/* Plain bytes: the state of a queue as it is saved. */
struct virtq {
	u64 desc, driver, device; /* split: descriptor table, available ring, used ring; packed: ring, event suppression */
	u16 size;                 /* entries */
	u16 vector;               /* of MSI-X */
	u16 next_avail;           /* split: counts on; packed: index into the ring */
	u16 next_used;
	u16 signalled;            /* next_used when the driver was last notified */
	u8 enabled;
	u8 signalled_valid;
	u8 to_signal;             /* something was pushed since */
	u8 avail_wrap, used_wrap; /* packed */
	u8 pad[5];
};

struct virtio;
struct virtio_type {
	const char *name;
	u16 id;
	u32 class_code;           /* of the PCI function */
	bool modern_only;         /* has no legacy interface */
	u64 features;             /* of the device, beside those that all have */
	void (*config_read)(struct virtio *v, u8 *config);      /* fills config_size bytes */
	void (*config_write)(struct virtio *v, unsigned off, const u8 *buf, unsigned len); /* NULL: read-only */
	void (*run)(struct virtio *v, unsigned q);              /* the queue may hold something; loop's thread */
	void (*reset)(struct virtio *v);  /* give back or drop what is held and can be; may be NULL */
	void (*status)(struct virtio *v); /* after DRIVER_OK was set; may be NULL */
};

struct virtio {
	struct device d;
	struct pci_function pci;
	const struct virtio_type *type;
	u64 offered;              /* features, as configured */
	unsigned n_queues;
	u16 queue_size[VIRTIO_MAX_QUEUES]; /* the most that each may have */
	unsigned config_size;
	struct loop_task task;
	u32 kicked;               /* bit q: to be run */
	u32 epoch;                /* counts resets */
	unsigned in_flight;
	struct ratelimit complaints;
	struct virtio_bells *bells; /* NULL: nobody has asked for one */
	/* State. */
	struct virtq vq[VIRTIO_MAX_QUEUES];
	u64 features;             /* as negotiated */
	u32 feature_select, driver_feature_select;
	u16 queue_select, config_vector;
	u8 status, isr, generation;
	u8 resetting;             /* invariant 4 */
	u8 modern;                /* the driver uses the modern registers */
};

#define VIRTIO_STATE(type) \
	PCI_STATE(type, v.pci), STATE(type, v.vq), STATE(type, v.features), STATE(type, v.feature_select), \
	STATE(type, v.driver_feature_select), STATE(type, v.queue_select), STATE(type, v.config_vector), \
	STATE(type, v.status), STATE(type, v.isr), STATE(type, v.generation), STATE(type, v.resetting), STATE(type, v.modern)

/* ---- devices (virtio.c) ------------------------------------------------------------- */

/* In init: with v->n_queues, queue_size, config_size set. */
bool virtio_init(struct virtio *v, const struct virtio_type *type, struct error *e);
void virtio_destroy(struct virtio *v);
void virtio_reset(struct virtio *v);   /* of the machine; after a drain: nothing is in flight */
void virtio_loaded(struct virtio *v);
bool virtio_has(const struct virtio *v, u64 feature); /* negotiated */
bool virtio_live(const struct virtio *v);             /* DRIVER_OK, whole, allowed to do DMA */
/* The queue will be run by the loop's thread soon. */
void virtio_kick(struct virtio *v, unsigned q);
void virtio_kick_all(struct virtio *v);
void virtio_config_changed(struct virtio *v);
/* DEVICE_NEEDS_RESET, with the reason for the log. */
void virtio_break(struct virtio *v, const char *why);
void virtio_lock(struct virtio *v);
void virtio_unlock(struct virtio *v);

/* For the registers. */
void virtio_set_status(struct virtio *v, u8 status);
bool virtio_queue_usable(const struct virtio *v, unsigned q);
void virtio_interrupt(struct virtio *v, u16 vector, u8 isr_bit);

/* ---- queues (virtq.c) --------------------------------------------------------------- */

struct virtq_chain {
	u32 epoch;
	u16 q, id;                /* id: what the used ring says */
	u16 n_desc;               /* entries of the ring that it takes: packed */
	u16 n_out, n_in;          /* pieces for the device to read; to write, behind them */
	u64 out_len, in_len;      /* bytes */
	struct iovec iov[VIRTQ_MAX_IOV];
};

/* The next available chain. False: none, or the device is broken (or was by this). */
bool virtq_pop(struct virtio *v, unsigned q, struct virtq_chain *c);
/* Done; written: the bytes from the begin of the writable part that have been written. */
void virtq_push(struct virtio *v, struct virtq_chain *c, u64 written);
/* Given up without an answer: its device is being reset. */
void virtq_drop(struct virtio *v, struct virtq_chain *c);
/* The chain popped last becomes available again; several: in reverse order of their pops. */
void virtq_unpop(struct virtio *v, struct virtq_chain *c);
/* Interrupts the driver, if it asked for that, for what was pushed since the last time. */
void virtq_notify(struct virtio *v, unsigned q);
/* Has serve answer (push) each available chain, one run's worth of them, and notifies. For run. */
void virtq_each(struct virtio *v, unsigned q, void (*serve)(struct virtio *v, struct virtq_chain *c));
/* Before work on a queue: no notifications, please. After: true if more came meanwhile. */
void virtq_kicks_off(struct virtio *v, unsigned q);
bool virtq_kicks_on(struct virtio *v, unsigned q);
bool virtq_is_empty(struct virtio *v, unsigned q);

/* Bytes at `off` of a chain's readable or writable part; how many there were. */
size_t chain_read(const struct virtq_chain *c, u64 off, void *buf, size_t len);
size_t chain_write(struct virtq_chain *c, u64 off, const void *buf, size_t len);

/* ---- notifications by the host's kernel (virtio_bell.c) ----------------------------- */

/* The eventfd that kicks queue q; made when it is first asked for. -1: there is no such queue, or no descriptor. */
int virtio_bell(struct virtio *v, unsigned q);
void virtio_bells_free(struct virtio *v);

/* ---- PCI (virtio_pci*.c) ------------------------------------------------------------ */

bool virtio_pci_init(struct virtio *v, struct error *e);
extern const struct mmio_ops virtio_legacy_ops;
#define VIRTIO_LEGACY_CONFIG 0x18u  /* where the device's configuration begins at the latest */
/* The device's configuration, size bytes at off; ones behind its end. */
u64 virtio_config_get(struct virtio *v, unsigned off, unsigned size);
void virtio_config_put(struct virtio *v, unsigned off, u64 val, unsigned size);

#endif
