/* A virtio device and its driver for tests: the device answers each chain by filling what it may write;
 * the driver is these functions, over the registers of BAR 4. */
#ifndef TESTS_DEV_VIRTIO_RIG_H
#define TESTS_DEV_VIRTIO_RIG_H

#include "board.h"
#include "dev/virtio.h"

#define RIG_SIZE 8u            /* entries of the queue */
#define RIG_DESC 0x10000ull    /* descriptor table, or packed ring */
#define RIG_DRIVER 0x11000ull  /* available ring */
#define RIG_DEVICE 0x12000ull  /* used ring */
#define RIG_DATA 0x20000ull
#define RIG_FILL 0xab

struct rig {
	struct board *b;
	struct virtio *v;
	u64 bar;                   /* of the registers */
	/* What the device has seen. */
	unsigned chains;
	u64 out_len, in_len;       /* of the last one */
	unsigned n_out, n_in;
	u8 out[64];                /* its first bytes */
	bool keep;                 /* chains stay in flight */
	struct virtq_chain kept;
};
extern struct rig rig;

int rig_setup(void **state);
int rig_setup_with(const struct device_class *cls); /* a device that it is, in place of the one that only fills */
int rig_teardown(void **state);
/* Up to DRIVER_OK with these features (VERSION_1 added), the queue enabled at the addresses above. */
void rig_up(u64 features);
u32 rig_get(unsigned off, unsigned size);
void rig_set(unsigned off, u32 val, unsigned size);
u8 rig_status(void);
void rig_kick(void);               /* and what the loop does for it */
void rig_desc(unsigned k, u64 addr, u32 len, u16 flags, u16 next);
void rig_desc_at(u64 at, u64 addr, u32 len, u16 flags, u16 next);
void rig_offer(u16 head);          /* puts it into the available ring */
u16 rig_used(void);                /* the used index */
u32 rig_used_len(unsigned k);
u16 rig_read16(u64 gpa);
void rig_write16(u64 gpa, u16 val);
enum { D_NEXT = 1, D_WRITE = 2, D_INDIRECT = 4 };
enum { R_FEATURE_SELECT = 0, R_FEATURE = 4, R_DRIVER_SELECT = 8, R_DRIVER = 12, R_STATUS = 0x14, R_QUEUE_SELECT = 0x16, R_SIZE = 0x18,
       R_VECTOR = 0x1a, R_ENABLE = 0x1c, R_DESC = 0x20, R_AVAIL = 0x28, R_USED = 0x30, R_NOTIFY = 0x3000, R_ISR = 0x1000 };

#endif
