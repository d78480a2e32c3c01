/* testdev: what tests of x86 virtual machines expect under the name pc-testdev.
 *
 *   0xe0..0xe3      a latch of 4 bytes, read and written by any size and place
 *   0xe4            4-byte write: forget cached translations of the page at that guest address
 *   0xe8..0xeb      the same latch, byte by byte whatever the access
 *   0x2000 + n      write: GSI n, 0..23, goes high (not 0) or low (0); read: its level
 *   0xff000000      64 KiB that keep what is written but trap on each access
 *
 * Threading: machine lock held. */
#include "dev/dev.h"

#include <string.h>

#define IRQ_PORTS 24u
#define IOMEM_BASE 0xff000000ull
#define IOMEM_SIZE 0x10000u

struct testdev {
	struct device d;
	u8 latch[4];
	u8 level[IRQ_PORTS];
	u8 iomem[IOMEM_SIZE];
};

/* size bytes of a store of n at off, little-endian; what lies beyond its end reads as 0. */
static u64 store_read(const u8 *store, u64 n, u64 off, unsigned size)
{
	u64 val = 0;

	if (off < n)
		memcpy(&val, store + off, MIN(size, n - off));
	return val;
}

static void store_write(u8 *store, u64 n, u64 off, u64 val, unsigned size)
{
	if (off < n)
		memcpy(store + off, &val, MIN(size, n - off));
}

static u64 latch_read(void *dev, u64 off, unsigned size)
{
	const struct testdev *t = dev;

	return store_read(t->latch, sizeof(t->latch), off, size);
}

static void latch_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct testdev *t = dev;

	store_write(t->latch, sizeof(t->latch), off, val, size);
}

static u64 flush_read(void *dev, u64 off, unsigned size)
{
	return ~0ull;
}

static void flush_write(void *dev, u64 off, u64 val, unsigned size)
{
	const struct device *d = dev;

	if (off == 0 && size == 4 && d->hooks && d->hooks->drop_page)
		d->hooks->drop_page(d->hooks->arg, (u32)val & ~PAGE_MASK);
}

static u64 line_read(void *dev, u64 off, unsigned size)
{
	return ((const struct testdev *)dev)->level[off];
}

static void line_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct testdev *t = dev;

	t->level[off] = (u8)val != 0;
	irq_set_source(t->d.irqs, (unsigned)off, IRQ_SOURCE_TEST, t->level[off]);
}

static u64 iomem_read(void *dev, u64 off, unsigned size)
{
	return store_read(((const struct testdev *)dev)->iomem, IOMEM_SIZE, off, size);
}

static void iomem_write(void *dev, u64 off, u64 val, unsigned size)
{
	store_write(((struct testdev *)dev)->iomem, IOMEM_SIZE, off, val, size);
}

static const struct mmio_ops latch_ops = { latch_read, latch_write, 1, 4 };
static const struct mmio_ops latch_byte_ops = { latch_read, latch_write, 1, 1 };
static const struct mmio_ops flush_ops = { flush_read, flush_write, 1, 4 };
static const struct mmio_ops line_ops = { line_read, line_write, 1, 1 };
static const struct mmio_ops iomem_ops = { iomem_read, iomem_write, 1, 8 };

static bool testdev_init(struct device *d, struct error *e)
{
	return mem_add_ports(d->mem, "testdev latch", 0xe0, 4, &latch_ops, d, e) &&
	       mem_add_ports(d->mem, "testdev flush", 0xe4, 4, &flush_ops, d, e) &&
	       mem_add_ports(d->mem, "testdev latch bytes", 0xe8, 4, &latch_byte_ops, d, e) &&
	       mem_add_ports(d->mem, "testdev lines", 0x2000, IRQ_PORTS, &line_ops, d, e) &&
	       mem_add_mmio(d->mem, "testdev", IOMEM_BASE, IOMEM_SIZE, &iomem_ops, d, 0, e);
}

static void testdev_reset(struct device *d)
{
	struct testdev *t = (struct testdev *)d;

	for (unsigned i = 0; i < IRQ_PORTS; i++) {
		t->level[i] = 0;
		irq_set_source(d->irqs, i, IRQ_SOURCE_TEST, false);
	}
	memset(t->latch, 0, sizeof(t->latch));
	memset(t->iomem, 0, sizeof(t->iomem));
}

static void testdev_loaded(struct device *d)
{
	struct testdev *t = (struct testdev *)d;

	for (unsigned i = 0; i < IRQ_PORTS; i++)
		irq_set_source(d->irqs, i, IRQ_SOURCE_TEST, t->level[i]);
}

static const struct state_field testdev_state[] = {
	STATE(struct testdev, latch),
	STATE(struct testdev, level),
	STATE(struct testdev, iomem),
	STATE_END
};

const struct device_class testdev_class = {
	.name = "testdev",
	.help = "pc-testdev: latch, interrupt lines, translation drop and trapping memory for tests",
	.size = sizeof(struct testdev),
	.init = testdev_init,
	.reset = testdev_reset,
	.loaded = testdev_loaded,
	.state = testdev_state,
};
