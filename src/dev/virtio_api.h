/* virtio devices, as the machine makes and connects them. Each is a PCI function of its own, in the
 * first free slot; transitional where the device has a legacy interface. Configured after device_new
 * and before the machine runs. */
#ifndef RING3_VIRTIO_API_H
#define RING3_VIRTIO_API_H

#include "dev/dev.h"

extern const struct device_class virtio_rng_class;     /* bytes of the host's random number generator */

#endif
