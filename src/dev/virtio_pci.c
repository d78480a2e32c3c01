/* A virtio device as a PCI function: VIRTIO 1.2, 4.1.
 *
 *   BAR 0  the legacy registers (transitional devices; virtio_pci_legacy.c)
 *   BAR 1  MSI-X
 *   BAR 4  0000 common configuration   1000 ISR   2000 the device's configuration
 *          3000 notifications, 4 bytes for each queue
 *
 * Capabilities say so, and give access to BAR 4 through configuration space. A register changes by
 * an access of its own width; 64-bit ones also by halves. */
#define LOG_TOPIC "virtio"
#include "dev/virtio.h"

#include <string.h>

#define VENDOR_VIRTIO 0x1af4u
#define DEVICE_MODERN 0x1040u
#define BAR_LEGACY 0u
#define BAR_MSIX 1u
#define BAR_MODERN 4u
#define AREA 0x1000u
enum { AREA_COMMON, AREA_ISR, AREA_DEVICE, AREA_NOTIFY, AREAS };
enum { CAP_COMMON = 1, CAP_NOTIFY, CAP_ISR, CAP_DEVICE, CAP_ACCESS };
/* struct virtio_pci_cap: id, next, length, type, BAR, ... */
enum { CAP_LEN = 2, CAP_TYPE = 3, CAP_BAR = 4, CAP_OFFSET = 8, CAP_LENGTH = 12, CAP_BYTES = 16, CAP_NOTIFY_STEP = 16,
       CAP_NOTIFY_BYTES = 20, CAP_DATA = 16, CAP_ACCESS_BYTES = 20 };

/* struct virtio_pci_common_cfg */
enum {
	C_FEATURE_SELECT = 0x00, C_FEATURE = 0x04, C_DRIVER_FEATURE_SELECT = 0x08, C_DRIVER_FEATURE = 0x0c, C_CONFIG_VECTOR = 0x10,
	C_QUEUES = 0x12, C_STATUS = 0x14, C_GENERATION = 0x15, C_QUEUE_SELECT = 0x16, C_QUEUE_SIZE = 0x18, C_QUEUE_VECTOR = 0x1a,
	C_QUEUE_ENABLE = 0x1c, C_NOTIFY_OFF = 0x1e, C_DESC = 0x20, C_DRIVER = 0x28, C_DEVICE = 0x30, C_BYTES = 0x38,
};

/* ---- the device's configuration ----------------------------------------------------------- */

u64 virtio_config_get(struct virtio *v, unsigned off, unsigned size)
{
	u8 config[256] = { 0 };
	u64 val = ~0ull;

	if (off >= v->config_size)
		return val;
	v->type->config_read(v, config);
	memcpy(&val, config + off, MIN(size, v->config_size - off));
	return val;
}

void virtio_config_put(struct virtio *v, unsigned off, u64 val, unsigned size)
{
	if (v->type->config_write && off < v->config_size && size <= v->config_size - off)
		v->type->config_write(v, off, (const u8 *)&val, size);
}

/* ---- common configuration -------------------------------------------------------------------- */

static u32 half(u64 val, u32 select) { return select > 1 ? 0 : (u32)(val >> 32 * select); }

/* All of it as it reads now. */
static void common_image(const struct virtio *v, u8 *p)
{
	static const struct virtq none;
	const struct virtq *q = v->queue_select < v->n_queues ? &v->vq[v->queue_select] : &none;

	st32(p + C_FEATURE_SELECT, v->feature_select);
	st32(p + C_FEATURE, half(v->offered, v->feature_select));
	st32(p + C_DRIVER_FEATURE_SELECT, v->driver_feature_select);
	st32(p + C_DRIVER_FEATURE, half(v->features, v->driver_feature_select));
	st16(p + C_CONFIG_VECTOR, v->config_vector);
	st16(p + C_QUEUES, (u16)v->n_queues);
	p[C_STATUS] = v->status;
	p[C_GENERATION] = v->generation;
	st16(p + C_QUEUE_SELECT, v->queue_select);
	st16(p + C_QUEUE_SIZE, q->size);
	st16(p + C_QUEUE_VECTOR, q == &none ? VIRTIO_NO_VECTOR : q->vector);
	st16(p + C_QUEUE_ENABLE, q->enabled);
	st16(p + C_NOTIFY_OFF, v->queue_select);
	st64(p + C_DESC, q->desc);
	st64(p + C_DRIVER, q->driver);
	st64(p + C_DEVICE, q->device);
}

static void write_features(struct virtio *v, u32 val)
{
	unsigned shift = 32 * v->driver_feature_select;

	if (v->driver_feature_select > 1 || (v->status & (VS_FEATURES_OK | VS_DRIVER_OK)))
		return;
	v->features = (v->features & ~(0xffffffffull << shift)) | (u64)val << shift;
}

static u16 checked_vector(const struct virtio *v, u64 val)
{
	return val < v->pci.msix_n ? (u16)val : VIRTIO_NO_VECTOR;
}

static void enable_queue(struct virtio *v, struct virtq *q)
{
	bool is_packed = virtio_has(v, VIRTIO_F_RING_PACKED);

	if (!is_packed && (q->size & (q->size - 1)))
		return;
	q->enabled = 1;
	q->avail_wrap = q->used_wrap = 1;
	if (virtio_live(v))
		virtio_kick(v, (unsigned)(q - v->vq));
}

/* Where a queue's parts are, half a register: the queue stands still. */
static void write_address(struct virtq *q, u64 off, u64 val)
{
	u64 *reg = off < C_DRIVER ? &q->desc : off < C_DEVICE ? &q->driver : &q->device;
	unsigned shift = off & 4 ? 32 : 0;

	*reg = (*reg & ~(0xffffffffull << shift)) | val << shift;
}

static void write_queue(struct virtio *v, u64 off, u64 val, unsigned size)
{
	if (v->queue_select >= v->n_queues)
		return;
	struct virtq *q = &v->vq[v->queue_select];
	if (off == C_QUEUE_VECTOR && size == 2)
		q->vector = checked_vector(v, val);
	if (q->enabled)
		return;
	if (off == C_QUEUE_SIZE && size == 2 && val && val <= v->queue_size[v->queue_select])
		q->size = (u16)val;
	else if (off == C_QUEUE_ENABLE && size == 2 && val == 1)
		enable_queue(v, q);
	else if (off >= C_DESC && size == 4 && !(off & 3))
		write_address(q, off, val);
}

static void common_write(struct virtio *v, u64 off, u64 val, unsigned size)
{
	if (v->resetting)
		return;
	v->modern = 1;
	if (off == C_FEATURE_SELECT && size == 4)
		v->feature_select = (u32)val;
	else if (off == C_DRIVER_FEATURE_SELECT && size == 4)
		v->driver_feature_select = (u32)val;
	else if (off == C_DRIVER_FEATURE && size == 4)
		write_features(v, (u32)val);
	else if (off == C_CONFIG_VECTOR && size == 2)
		v->config_vector = checked_vector(v, val);
	else if (off == C_STATUS && size == 1)
		virtio_set_status(v, (u8)val);
	else if (off == C_QUEUE_SELECT && size == 2)
		v->queue_select = (u16)val;
	else if (off >= C_QUEUE_SIZE && off < C_BYTES)
		write_queue(v, off, val, size);
}

/* ---- BAR 4 ---------------------------------------------------------------------------------- */

static u64 modern_read(void *dev, u64 off, unsigned size)
{
	struct virtio *v = dev;
	unsigned at = off % AREA;
	u8 image[C_BYTES];
	u64 val = 0;

	switch (off / AREA) {
	case AREA_COMMON:
		if (at >= C_BYTES)
			return 0;
		common_image(v, image);
		memcpy(&val, image + at, MIN(size, C_BYTES - at));
		return val;
	case AREA_ISR:
		if (at)
			return 0;
		val = v->isr;
		v->isr = 0;
		pci_irq(&v->pci, false);
		return val;
	case AREA_DEVICE:
		return virtio_config_get(v, at, size);
	default:
		return 0;
	}
}

static void modern_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct virtio *v = dev;
	unsigned at = off % AREA;

	switch (off / AREA) {
	case AREA_COMMON: common_write(v, at, val, size); break;
	case AREA_DEVICE: virtio_config_put(v, at, val, size); break;
	case AREA_NOTIFY: virtio_kick(v, at / 4); break;
	default: break;
	}
}

static int notify_bell(void *dev, unsigned n, u64 *off)
{
	*off = AREA_NOTIFY * AREA + 4 * n;
	return virtio_bell(dev, n);
}

static const struct mmio_ops modern_ops = { modern_read, modern_write, 1, 4, .doorbell = notify_bell };

/* ---- access through configuration space (4.1.4.9) -------------------------------------------- */

/* Where the capability points to. False: to nothing, or its data was not what was accessed. */
static bool access_target(const struct virtio *v, unsigned off, unsigned size, u32 *at, u32 *len)
{
	const u8 *cap = v->pci.config + v->pci.config[PCI_CAPS]; /* it was added last */

	*at = ld32(cap + CAP_OFFSET);
	*len = ld32(cap + CAP_LENGTH);
	return off < (unsigned)(cap - v->pci.config) + CAP_DATA + 4 && off + size > (unsigned)(cap - v->pci.config) + CAP_DATA &&
	       cap[CAP_BAR] == BAR_MODERN && (*len == 1 || *len == 2 || *len == 4) && !(*at % *len) && *at < AREAS * AREA;
}

static void access_read(struct pci_function *f, unsigned off, unsigned size)
{
	struct virtio *v = f->dev_arg;
	u32 at, len;

	if (access_target(v, off, size, &at, &len))
		st32(f->config + f->config[PCI_CAPS] + CAP_DATA, (u32)modern_read(v, at, len));
}

static void access_written(struct pci_function *f, unsigned off, unsigned size)
{
	struct virtio *v = f->dev_arg;
	u32 at, len;

	if (access_target(v, off, size, &at, &len)) {
		u32 val = ld32(f->config + f->config[PCI_CAPS] + CAP_DATA);

		modern_write(v, at, len == 4 ? val : val & ((1u << 8 * len) - 1), len);
	}
	if (off <= PCI_COMMAND && off + size > PCI_COMMAND && virtio_live(v))
		virtio_kick_all(v); /* notifications had no effect while it was no bus master */
}

/* ---- the function ------------------------------------------------------------------------------ */

static u8 add_cap(struct virtio *v, u8 type, unsigned bytes, u32 offset, u32 length)
{
	u8 c = pci_add_cap(&v->pci, PCI_CAP_VENDOR, bytes);
	u8 *p = v->pci.config + c;

	p[CAP_LEN] = (u8)bytes;
	p[CAP_TYPE] = type;
	p[CAP_BAR] = BAR_MODERN;
	st32(p + CAP_OFFSET, offset);
	st32(p + CAP_LENGTH, length);
	return c;
}

static void add_caps(struct virtio *v)
{
	u8 c;

	add_cap(v, CAP_COMMON, CAP_BYTES, AREA_COMMON * AREA, C_BYTES);
	add_cap(v, CAP_ISR, CAP_BYTES, AREA_ISR * AREA, 1);
	if (v->config_size)
		add_cap(v, CAP_DEVICE, CAP_BYTES, AREA_DEVICE * AREA, v->config_size);
	c = add_cap(v, CAP_NOTIFY, CAP_NOTIFY_BYTES, AREA_NOTIFY * AREA, 4 * v->n_queues);
	st32(v->pci.config + c + CAP_NOTIFY_STEP, 4);
	c = add_cap(v, CAP_ACCESS, CAP_ACCESS_BYTES, 0, 0);
	v->pci.wmask[c + CAP_BAR] = 0xff;
	memset(v->pci.wmask + c + CAP_OFFSET, 0xff, 12);
}

/* The ids of transitional devices (table in 4.1.2.1); 0: there is none. */
static u16 transitional_id(u16 id)
{
	static const u16 ids[] = { [VIRTIO_ID_NET] = 0x1000, [VIRTIO_ID_BLK] = 0x1001, [VIRTIO_ID_BALLOON] = 0x1002,
				   [VIRTIO_ID_CONSOLE] = 0x1003, [VIRTIO_ID_RNG] = 0x1005, [VIRTIO_ID_9P] = 0x1009 };

	return id < ARRAY_LEN(ids) ? ids[id] : 0;
}

static u64 legacy_bar_size(const struct virtio *v)
{
	u64 size = 32;

	while (size < VIRTIO_LEGACY_CONFIG + v->config_size)
		size *= 2;
	return size;
}

bool virtio_pci_init(struct virtio *v, struct error *e)
{
	u16 old = v->type->modern_only ? 0 : transitional_id(v->type->id);

	pci_init(&v->pci, &(struct pci_ids){
		.vendor = VENDOR_VIRTIO, .device = old ? old : (u16)(DEVICE_MODERN + v->type->id), .revision = old ? 0 : 1,
		.sub_vendor = VENDOR_VIRTIO, .sub_device = old ? v->type->id : 0x1100, .class_code = v->type->class_code, .intx = true });
	if (old)
		pci_add_bar(&v->pci, BAR_LEGACY, PCI_BAR_IO, false, legacy_bar_size(v), &virtio_legacy_ops, v);
	pci_add_msix(&v->pci, BAR_MSIX, v->n_queues + 1);
	pci_add_bar(&v->pci, BAR_MODERN, PCI_BAR_MEM64, true, AREAS * AREA, &modern_ops, v);
	add_caps(v);
	v->pci.dev_arg = v;
	v->pci.reading = access_read;
	v->pci.written = access_written;
	return pci_plug(&v->pci, &v->d, e);
}
