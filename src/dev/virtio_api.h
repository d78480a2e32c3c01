/* virtio devices, as the machine makes and connects them. Each is a PCI function of its own, in the
 * first free slot; transitional where the device has a legacy interface. Configured after device_new
 * and before the machine runs. */
#ifndef RING3_VIRTIO_API_H
#define RING3_VIRTIO_API_H

#include "block/block.h"
#include "dev/dev.h"
#include "net/net.h"
#include "share/share.h"

extern const struct device_class virtio_rng_class;     /* bytes of the host's random number generator */

extern const struct device_class virtio_blk_class;
/* disk stays the caller's: closed (block_close, which ends what is under way) before the device is freed.
 * queues: 1 to 8; id: what the guest reads as serial number, at most 20 characters. */
void virtio_blk_attach(struct device *d, struct block *disk, unsigned queues, const char *id);

extern const struct device_class virtio_net_class;
/* net stays the caller's: closed after the device is freed. Before there are threads, or with the lock. */
void virtio_net_attach(struct device *d, struct net *net, const u8 mac[NET_MAC_BYTES]);

extern const struct device_class virtio_console_class;
#define VIRTIO_CONSOLE_PORTS 7u
#define VIRTIO_CONSOLE_NAME 32u
/* The next port, at most VIRTIO_CONSOLE_PORTS; its number. name NULL: a console of the guest's; else a
 * channel of at most VIRTIO_CONSOLE_NAME - 1 characters. The back end's calls and these: lock held. */
unsigned virtio_console_add(struct device *d, const struct char_backend *be, const char *name);
size_t virtio_console_receive(struct device *d, unsigned port, const u8 *buf, size_t len); /* bytes taken */
void virtio_console_can_write(struct device *d, unsigned port);

extern const struct device_class virtio_9p_class;
/* share stays the caller's: closed (share_close, which ends what is under way) before the device is freed. */
void virtio_9p_attach(struct device *d, struct share *share);

extern const struct device_class virtio_balloon_class;
#define VIRTIO_BALLOON_STATS 10u /* by their tags: VIRTIO 1.2, 5.5.6.3 */
/* How much the guest is to give back, and how much it says it has; bytes. Lock held. */
void virtio_balloon_set_target(struct device *d, u64 bytes);
u64 virtio_balloon_target(const struct device *d);
u64 virtio_balloon_actual(const struct device *d);
/* The guest's last statistics, and asks for new ones. False: the guest has not answered yet. */
bool virtio_balloon_stats(struct device *d, u64 stats[VIRTIO_BALLOON_STATS]);

#endif
