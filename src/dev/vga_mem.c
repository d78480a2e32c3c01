/* The VGA's window at a0000: how an address becomes an offset and planes, and what writes do on
 * their way. IBM PS/2 Hardware Interface Technical Reference, "Video Subsystem", graphics
 * controller (3cf, 0 to 8) and sequencer (3c5, 2 and 4).
 *
 * All four planes of an offset are one 32-bit word, plane 0 in the low byte. */
#include "dev/vga_impl.h"

/* A byte for each plane of mask: ff where its bit is set. */
static u32 spread(unsigned mask)
{
	static const u32 of[16] = {
		0x00000000, 0x000000ff, 0x0000ff00, 0x0000ffff, 0x00ff0000, 0x00ff00ff, 0x00ffff00, 0x00ffffff,
		0xff000000, 0xff0000ff, 0xff00ff00, 0xff00ffff, 0xffff0000, 0xffff00ff, 0xffffff00, 0xffffffff,
	};
	return of[mask & 15];
}

static u32 all_planes(u8 val) { return val * 0x01010101u; }

static u8 *word_at(struct vga *v, u32 offset) { return v->vram + 4 * (offset & PLANE_MASK); }

/* 3cf, 6, bits 2 and 3: where the window is. False: not at addr. *addr becomes relative to it. */
static bool in_window(const struct vga *v, u32 *addr)
{
	static const struct { u32 base, size; } windows[4] = {
		{ 0, 0x20000 }, { 0, 0x10000 }, { 0x10000, 0x8000 }, { 0x18000, 0x8000 },
	};
	unsigned k = v->gr[GR_MISC] >> 2 & 3;

	*addr -= windows[k].base;
	return (v->misc & MISC_RAM) && *addr < windows[k].size;
}

bool vga_is_linear(const struct vga *v, u32 *at, u32 *size)
{
	bool vbe = vga_dispi_on(v) && v->dispi[DISPI_BPP] > 4;

	*at = vga_dispi_on(v) ? (u32)v->dispi[DISPI_BANK] << 16 : 0;
	*size = 0x10000;
	if (vbe)
		return true;
	return (v->misc & MISC_RAM) && !(v->gr[GR_MISC] & 0x08) && (v->seq[SEQ_MEMORY] & MEMORY_CHAIN4) && v->seq[SEQ_MAP_MASK] == 15;
}

/* ---- reading --------------------------------------------------------------------------------- */

/* Read mode 1: a bit for each pixel whose colour is that of 3cf, 2, in the planes of 3cf, 7. */
static u8 compare(const struct vga *v)
{
	u32 differs = (v->latch ^ spread(v->gr[GR_COMPARE])) & spread(v->gr[GR_DONT_CARE]);

	differs |= differs >> 16;
	return (u8)~(differs | differs >> 8);
}

u8 vga_mem_read(struct vga *v, u32 addr)
{
	if (!in_window(v, &addr))
		return 0xff;
	if (v->seq[SEQ_MEMORY] & MEMORY_CHAIN4)
		return v->vram[addr & 0xffff];
	unsigned plane = v->gr[GR_READ_MAP];
	if (v->gr[GR_MODE] & MODE_ODD_EVEN) {
		plane = (plane & 2) | (addr & 1);
		addr &= ~1u;
	}
	v->latch = ld32(word_at(v, addr));
	return v->gr[GR_MODE] & MODE_READ ? compare(v) : (u8)(v->latch >> 8 * plane);
}

/* ---- writing ---------------------------------------------------------------------------------- */

static u32 combine(const struct vga *v, u32 val)
{
	switch (v->gr[GR_ROTATE] >> 3) {
	case 1: return val & v->latch;
	case 2: return val | v->latch;
	case 3: return val ^ v->latch;
	default: return val;
	}
}

static u8 rotate(const struct vga *v, u8 val)
{
	unsigned n = v->gr[GR_ROTATE] & 7;

	return (u8)(val >> n | val << (8 - n));
}

/* What the four planes get, 3cf, 5: write modes 0 to 3. */
static u32 written(const struct vga *v, u8 val)
{
	u32 mask = all_planes(v->gr[GR_BIT_MASK]), set, out;

	switch (v->gr[GR_MODE] & 3) {
	case 0:
		set = spread(v->gr[GR_ENABLE_SET_RESET]);
		out = combine(v, (all_planes(rotate(v, val)) & ~set) | (spread(v->gr[GR_SET_RESET]) & set));
		break;
	case 1:
		return v->latch;
	case 2:
		out = combine(v, spread(val));
		break;
	default:
		mask &= all_planes(rotate(v, val));
		out = combine(v, spread(v->gr[GR_SET_RESET]));
		break;
	}
	return (out & mask) | (v->latch & ~mask);
}

void vga_mem_write(struct vga *v, u32 addr, u8 val)
{
	unsigned planes = v->seq[SEQ_MAP_MASK];

	if (!in_window(v, &addr))
		return;
	mem_device_wrote(v->d.mem);
	if (v->seq[SEQ_MEMORY] & MEMORY_CHAIN4) {
		if (planes >> (addr & 3) & 1)
			v->vram[addr & 0xffff] = val;
		return;
	}
	if (!(v->seq[SEQ_MEMORY] & MEMORY_SEQUENTIAL)) { /* odd addresses are planes 1 and 3 */
		planes &= addr & 1 ? 0xa : 5;
		addr &= ~1u;
	}
	u8 *p = word_at(v, addr);
	u32 keep = ~spread(planes);
	st32(p, (ld32(p) & keep) | (written(v, val) & ~keep));
}
