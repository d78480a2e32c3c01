/* Linear modes: the registers of Bochs' VBE extension ("VBE Display API", bochs-vbe), as QEMU's
 * standard VGA has them (docs/specs/standard-vga).
 *
 * Invariant: while a mode is on, its lines lie within vram: xres <= virt_width, and
 * (y_offset + yres) lines of that width do, x_offset included. */
#define LOG_TOPIC "vga"
#include "dev/vga_impl.h"

#include <string.h>

#define ID_FIRST 0xb0c0u
#define ID_LAST 0xb0c5u
#define MAX_X 8192u
#define MAX_Y 8192u
#define MAX_BPP 32u

static u32 pitch_of(u32 width, u32 bpp)
{
	return bpp == 4 ? width / 2 : width * ((bpp + 7) / 8);
}

u32 vga_dispi_pitch(const struct vga *v)
{
	return pitch_of(v->dispi[DISPI_VIRT_WIDTH], v->dispi[DISPI_BPP]);
}

static bool depth_is_known(u16 bpp)
{
	return bpp == 4 || bpp == 8 || bpp == 15 || bpp == 16 || bpp == 24 || bpp == 32;
}

/* How many lines there is memory for. 4 bits a pixel: in planes, of which the VGA has 256 KiB. */
static u32 lines_max(const struct vga *v)
{
	u32 pitch = vga_dispi_pitch(v), memory = v->dispi[DISPI_BPP] == 4 ? 4 * (PLANE_MASK + 1) : VRAM_SIZE;

	return pitch ? memory / pitch : 0;
}

static void fit(struct vga *v)
{
	u16 *r = v->dispi;

	r[DISPI_VIRT_WIDTH] = MAX(r[DISPI_VIRT_WIDTH], r[DISPI_XRES]);
	u32 lines = lines_max(v);

	r[DISPI_VIRT_HEIGHT] = (u16)MIN(lines, 0xffffu);
	r[DISPI_X_OFFSET] = (u16)MIN(r[DISPI_X_OFFSET], r[DISPI_VIRT_WIDTH] - r[DISPI_XRES]);
	r[DISPI_Y_OFFSET] = (u16)MIN(r[DISPI_Y_OFFSET], lines > r[DISPI_YRES] ? lines - r[DISPI_YRES] : 0);
	if (lines < r[DISPI_YRES])
		r[DISPI_ENABLE] &= (u16)~DISPI_ON;
}

/* A mode is set by writing the enable register; the others are looked at then. */
static void enable(struct vga *v, u16 val)
{
	u16 *r = v->dispi;
	bool was_on = vga_dispi_on(v);

	r[DISPI_ENABLE] = val & (DISPI_ON | DISPI_GETCAPS | DISPI_8BIT_DAC | DISPI_LFB | DISPI_NOCLEAR);
	if ((val & DISPI_ON) && !was_on) {
		if (!r[DISPI_XRES] || !r[DISPI_YRES] || !depth_is_known(r[DISPI_BPP])) {
			log_guest("a mode of %ux%u pixels of %u bits is none", r[DISPI_XRES], r[DISPI_YRES], r[DISPI_BPP]);
			r[DISPI_ENABLE] &= (u16)~DISPI_ON;
			return;
		}
		r[DISPI_VIRT_WIDTH] = r[DISPI_XRES];
		r[DISPI_X_OFFSET] = r[DISPI_Y_OFFSET] = r[DISPI_BANK] = 0;
		fit(v);
		if (vga_dispi_on(v) && !(val & DISPI_NOCLEAR)) {
			memset(v->vram, 0, MIN((u64)vga_dispi_pitch(v) * r[DISPI_YRES], (u64)VRAM_SIZE));
			mem_device_wrote(v->d.mem);
		}
	}
}

u16 vga_dispi_read(const struct vga *v, u16 index)
{
	if (index == DISPI_MEMORY_64K)
		return VRAM_SIZE >> 16;
	if (index >= DISPI_REGS)
		return 0;
	if ((v->dispi[DISPI_ENABLE] & DISPI_GETCAPS) && index >= DISPI_XRES && index <= DISPI_BPP)
		return (const u16[]){ MAX_X, MAX_Y, MAX_BPP }[index - DISPI_XRES];
	return v->dispi[index];
}

void vga_dispi_write(struct vga *v, u16 index, u16 val)
{
	u16 *r = v->dispi;
	bool on = vga_dispi_on(v);

	switch (index) {
	case DISPI_ID:
		if (val >= ID_FIRST && val <= ID_LAST)
			r[index] = val;
		break;
	case DISPI_XRES: case DISPI_YRES: case DISPI_BPP: /* of the next mode */
		if (!on)
			r[index] = index == DISPI_BPP ? (val ? val : 8) : MIN(val, index == DISPI_XRES ? MAX_X : MAX_Y);
		break;
	case DISPI_ENABLE: enable(v, val); break;
	case DISPI_BANK: r[index] = val & ((VRAM_SIZE >> 16) - 1); break;
	case DISPI_VIRT_WIDTH: case DISPI_X_OFFSET: case DISPI_Y_OFFSET:
		r[index] = val;
		if (on)
			fit(v);
		break;
	default: break;
	}
	vga_map_window(v);
}

void vga_dispi_sane(struct vga *v)
{
	u16 *r = v->dispi;

	r[DISPI_XRES] = MIN(r[DISPI_XRES], MAX_X);
	r[DISPI_YRES] = MIN(r[DISPI_YRES], MAX_Y);
	r[DISPI_BANK] &= (VRAM_SIZE >> 16) - 1;
	if (!r[DISPI_XRES] || !r[DISPI_YRES] || !depth_is_known(r[DISPI_BPP]))
		r[DISPI_ENABLE] &= (u16)~DISPI_ON;
	if (vga_dispi_on(v))
		fit(v);
}
