/* The legacy registers of a transitional device, in an I/O BAR. VIRTIO 1.2, 4.1.4.10 and 2.7.2.
 *
 *   00 device features (32)  04 driver features (32)  08 queue address >> 12 (32)  0c queue size (16)
 *   0e queue select (16)     10 queue notify (16)     12 status (8)                13 ISR (8)
 *   with MSI-X: 14 configuration vector (16)  16 queue vector (16)
 *   then the device's configuration
 *
 * A queue is one piece: descriptors, available ring, and from the next page on the used ring. There is
 * no FEATURES_OK; features count when they are written. */
#define LOG_TOPIC "virtio"
#include "dev/virtio.h"

enum { L_FEATURES = 0x00, L_DRIVER_FEATURES = 0x04, L_QUEUE_PFN = 0x08, L_QUEUE_SIZE = 0x0c, L_QUEUE_SELECT = 0x0e,
       L_NOTIFY = 0x10, L_STATUS = 0x12, L_ISR = 0x13, L_CONFIG_VECTOR = 0x14, L_QUEUE_VECTOR = 0x16 };

static unsigned config_start(const struct virtio *v)
{
	return pci_msix_on(&v->pci) ? VIRTIO_LEGACY_CONFIG : L_CONFIG_VECTOR;
}

static struct virtq *selected(struct virtio *v)
{
	return v->queue_select < v->n_queues ? &v->vq[v->queue_select] : NULL;
}

static u8 read_isr(struct virtio *v)
{
	u8 val = v->isr;

	v->isr = 0;
	pci_irq(&v->pci, false);
	return val;
}

static u64 legacy_read(void *dev, u64 off, unsigned size)
{
	struct virtio *v = dev;
	const struct virtq *q = selected(v);

	if (off >= config_start(v))
		return virtio_config_get(v, (unsigned)off - config_start(v), size);
	switch (off) {
	case L_FEATURES: return (u32)v->offered;
	case L_DRIVER_FEATURES: return (u32)v->features;
	case L_QUEUE_PFN: return q && q->enabled ? q->desc >> 12 : 0;
	case L_QUEUE_SIZE: return q ? q->size : 0;
	case L_QUEUE_SELECT: return v->queue_select;
	case L_STATUS: return v->status;
	case L_ISR: return read_isr(v);
	case L_CONFIG_VECTOR: return v->config_vector;
	case L_QUEUE_VECTOR: return q ? q->vector : VIRTIO_NO_VECTOR;
	default: return 0;
	}
}

/* 0 takes the queue away. */
static void place_queue(struct virtio *v, struct virtq *q, u64 pfn)
{
	u16 vector = q->vector;

	*q = (struct virtq){ .size = v->queue_size[q - v->vq], .vector = vector };
	if (!pfn)
		return;
	q->desc = pfn << 12;
	q->driver = q->desc + 16ull * q->size;
	q->device = (q->driver + 4 + 2ull * q->size + 2 + PAGE_MASK) & ~PAGE_MASK;
	q->enabled = 1;
	if (virtio_live(v))
		virtio_kick(v, v->queue_select);
}

static u16 checked_vector(const struct virtio *v, u64 val)
{
	return val < v->pci.msix_n ? (u16)val : VIRTIO_NO_VECTOR;
}

static void legacy_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct virtio *v = dev;
	struct virtq *q = selected(v);

	if (v->resetting)
		return;
	if (off >= config_start(v)) {
		virtio_config_put(v, (unsigned)off - config_start(v), val, size);
		return;
	}
	if (off == L_DRIVER_FEATURES && size == 4 && !(v->status & VS_DRIVER_OK))
		v->features = val & (u32)v->offered;
	else if (off == L_QUEUE_PFN && size == 4 && q)
		place_queue(v, q, val);
	else if (off == L_QUEUE_SELECT && size == 2)
		v->queue_select = (u16)val;
	else if (off == L_NOTIFY && size == 2)
		virtio_kick(v, (unsigned)val);
	else if (off == L_CONFIG_VECTOR && size == 2)
		v->config_vector = checked_vector(v, val);
	else if (off == L_QUEUE_VECTOR && size == 2 && q)
		q->vector = checked_vector(v, val);
	if (off == L_STATUS && size == 1) {
		v->modern = 0;
		virtio_set_status(v, (u8)val);
	}
}

const struct mmio_ops virtio_legacy_ops = { legacy_read, legacy_write, 1, 4 };
