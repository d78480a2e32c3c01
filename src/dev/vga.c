/* The display card: a VGA with Bochs' linear modes on PCI (1234:1111), QEMU's "standard VGA"
 * (its docs/specs/standard-vga), which firmware and kernels have drivers for.
 *
 *   ports 3b0..3df            the VGA (vga_regs.c)
 *   ports 1ce, 1cf (1d0)      DISPI: index, data, words (vga_vbe.c)
 *   a0000..bffff              the window (vga_mem.c)
 *   BAR 0                     all of its memory, 16 MiB, prefetchable
 *   BAR 2                     4 KiB: 400..41f ports 3c0..3df, 500..515 DISPI's registers
 *
 * In linear and chained modes the window is mapped as RAM, so that writes cost what RAM costs;
 * where planes are written through the chip's logic each access comes here.
 *
 * Invariants
 *  1. What is mapped at a0000 follows from the registers alone: vga_map_window after each change.
 *  2. vram is the machine's until it ends; a reset keeps its contents, as the chip does.
 * Left out: EDID, the decode enable of PCI's command register for the window and ports,
 * pel panning, interlace, the light pen. Machine lock held. */
#define LOG_TOPIC "vga"
#include "dev/vga_impl.h"

#define WINDOW 0xa0000u
#define WINDOW_SIZE 0x20000u
#define PORTS 0x3b0u
#define PORT_COUNT 0x30u
enum { BAR_VRAM = 0, BAR_REGS = 2 };
enum { REGS_PORTS = 0x400, REGS_DISPI = 0x500 };

/* ---- the window -------------------------------------------------------------------------------- */

static const char linear_name[] = "vga window, linear";

void vga_map_window(struct vga *v)
{
	struct error e;
	u32 at, size;
	bool linear = vga_is_linear(v, &at, &size);

	if (linear == v->linear && (!linear || (at == v->linear_at && size == v->linear_size)))
		return;
	if (v->linear)
		mem_remove(v->d.mem, linear_name, WINDOW);
	v->linear = linear && mem_add_ram(v->d.mem, linear_name, WINDOW, size, v->vram + at, 1, &e);
	v->linear_at = at;
	v->linear_size = size;
	if (linear && !v->linear)
		log_error("%s", e.msg);
}

static u64 window_read(void *dev, u64 off, unsigned size)
{
	u64 val = 0;

	for (unsigned k = 0; k < size; k++)
		val |= (u64)vga_mem_read(dev, (u32)off + k) << 8 * k;
	return val;
}

static void window_write(void *dev, u64 off, u64 val, unsigned size)
{
	for (unsigned k = 0; k < size; k++)
		vga_mem_write(dev, (u32)off + k, (u8)(val >> 8 * k));
}

/* ---- ports ---------------------------------------------------------------------------------------- */

static u64 port_read(void *dev, u64 off, unsigned size)
{
	return vga_port_read(dev, (u16)(PORTS + off));
}

static void port_write(void *dev, u64 off, u64 val, unsigned size)
{
	vga_port_write(dev, (u16)(PORTS + off), (u8)val);
}

static u64 dispi_port_read(void *dev, u64 off, unsigned size)
{
	struct vga *v = dev;

	if (size != 2)
		return UINT64_MAX;
	return off ? vga_dispi_read(v, v->dispi_index) : v->dispi_index;
}

static void dispi_port_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct vga *v = dev;

	if (size != 2)
		return;
	if (off)
		vga_dispi_write(v, v->dispi_index, (u16)val);
	else
		v->dispi_index = (u16)val;
}

static u64 regs_read(void *dev, u64 off, unsigned size)
{
	struct vga *v = dev;

	if (off >= REGS_PORTS && off < REGS_PORTS + 0x20) {
		u64 val = vga_port_read(v, (u16)(0x3c0 + off - REGS_PORTS));
		return size == 1 ? val : val | (u64)vga_port_read(v, (u16)(0x3c1 + off - REGS_PORTS)) << 8;
	}
	if (size == 2 && off >= REGS_DISPI && off < REGS_DISPI + 2 * DISPI_REGS)
		return vga_dispi_read(v, (u16)((off - REGS_DISPI) / 2));
	return 0;
}

static void regs_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct vga *v = dev;

	if (off >= REGS_PORTS && off < REGS_PORTS + 0x20) {
		for (unsigned k = 0; k < size; k++)
			vga_port_write(v, (u16)(0x3c0 + off - REGS_PORTS + k), (u8)(val >> 8 * k));
	} else if (size == 2 && off >= REGS_DISPI && off < REGS_DISPI + 2 * DISPI_REGS) {
		vga_dispi_write(v, (u16)((off - REGS_DISPI) / 2), (u16)val);
	}
}

static const struct mmio_ops window_ops = { window_read, window_write, 1, 8, .posted = true };
static const struct mmio_ops port_ops = { port_read, port_write, 1, 1 };
static const struct mmio_ops dispi_ops = { dispi_port_read, dispi_port_write, 1, 2 };
static const struct mmio_ops regs_ops = { regs_read, regs_write, 1, 2 };

/* ---- life ------------------------------------------------------------------------------------------- */

static bool add_ports(struct vga *v, struct error *e)
{
	struct mem *m = v->d.mem;

	return mem_add_ports(m, "vga", PORTS, PORT_COUNT, &port_ops, v, e) &&
	       mem_add_ports(m, "vga dispi", 0x1ce, 3, &dispi_ops, v, e) &&
	       mem_add_mmio(m, "vga window", WINDOW, WINDOW_SIZE, &window_ops, v, 0, e);
}

static bool vga_init(struct device *d, struct error *e)
{
	struct vga *v = container_of(d, struct vga, d);

	v->vram = mem_device_ram(d->mem, VRAM_SIZE);
	if (!v->vram)
		return error_set(e, "no memory left for its %u MiB", VRAM_SIZE >> 20);
	v->dispi[DISPI_ID] = 0xb0c5;
	pci_init(&v->pci, &(struct pci_ids){ .vendor = 0x1234, .device = 0x1111, .sub_vendor = 0x1af4, .sub_device = 0x1100,
					      .revision = 2, .class_code = 0x030000 });
	pci_add_bar_ram(&v->pci, BAR_VRAM, VRAM_SIZE, v->vram);
	pci_add_bar(&v->pci, BAR_REGS, PCI_BAR_MEM32, false, PAGE_SIZE, &regs_ops, v);
	v->pci.wmask[PCI_COMMAND] |= PCI_CMD_IO; /* of the VGA's ports, which are no BAR */
	return add_ports(v, e) && pci_plug(&v->pci, d, e);
}

static void vga_reset(struct device *d)
{
	struct vga *v = container_of(d, struct vga, d);

	vga_regs_reset(v);
	v->dispi_index = 0;
	for (unsigned k = DISPI_XRES; k < DISPI_REGS; k++)
		v->dispi[k] = 0;
	v->dispi[DISPI_BPP] = 8;
	vga_map_window(v);
	pci_reset(&v->pci);
}

static void vga_destroy(struct device *d)
{
	struct vga *v = container_of(d, struct vga, d);

	pci_unplug(&v->pci);
}

/* Values that only a damaged file can hold become ones that the code can meet. */
static void vga_loaded(struct device *d)
{
	struct vga *v = container_of(d, struct vga, d);

	v->seq_index &= 7;
	v->gr_index &= 15;
	v->cr_index &= 31;
	v->dac_at %= 3;
	v->gr[GR_READ_MAP] &= 3;
	mem_device_wrote(d->mem);
	v->gr[GR_ROTATE] &= 0x1f;
	v->seq[SEQ_MAP_MASK] &= 15;
	vga_dispi_sane(v);
	vga_map_window(v);
	pci_loaded(&v->pci);
}

static const struct state_field vga_state[] = {
	STATE(struct vga, misc), STATE(struct vga, feature), STATE(struct vga, seq_index), STATE(struct vga, seq),
	STATE(struct vga, gr_index), STATE(struct vga, gr), STATE(struct vga, cr_index), STATE(struct vga, cr),
	STATE(struct vga, ar_index), STATE(struct vga, ar_data), STATE(struct vga, ar),
	STATE(struct vga, dac_mask), STATE(struct vga, dac_read), STATE(struct vga, dac_write), STATE(struct vga, dac_at),
	STATE(struct vga, dac_reading), STATE(struct vga, dac), STATE(struct vga, dac_latch), STATE(struct vga, latch),
	STATE(struct vga, dispi_index), STATE(struct vga, dispi), STATE_MEMORY(struct vga, vram, VRAM_SIZE), PCI_STATE(struct vga, pci),
	STATE_END
};

const struct device_class vga_class = {
	.name = "vga",
	.help = "display: VGA with Bochs' linear modes, on PCI",
	.size = sizeof(struct vga),
	.init = vga_init,
	.reset = vga_reset,
	.destroy = vga_destroy,
	.loaded = vga_loaded,
	.state = vga_state,
};
