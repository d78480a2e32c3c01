/* The VGA card, private to vga*.c: vga.c is the device, vga_regs.c its registers, vga_mem.c the
 * window onto its planes, vga_vbe.c the linear modes, vga_show.c what it shows, vga_view.c that over time.
 *
 * Memory. 16 MiB, of which the VGA itself uses 256 KiB as four planes of 64 KiB. The byte of plane p
 * at offset o is vram[4 * o + p], so that a latch is one 32-bit word, and so that chained addresses
 * (chain 4: address a is plane a & 3 at offset a >> 2) are linear. On the original chip chain 4
 * uses offset a & ~3, of which a program sees nothing unless it unchains what it wrote chained.
 *
 * Machine lock held everywhere, but where vga_view.c says otherwise. */
#ifndef RING3_VGA_IMPL_H
#define RING3_VGA_IMPL_H

#include "dev/dev.h"

#define VRAM_SIZE (16u << 20)
#define PLANE_MASK 0xffffu  /* of an offset in a plane */

enum vga_seq { SEQ_RESET, SEQ_CLOCKING, SEQ_MAP_MASK, SEQ_FONT, SEQ_MEMORY };
enum { CLOCKING_8_DOTS = 0x01, CLOCKING_HALF = 0x08, CLOCKING_OFF = 0x20 };
enum { MEMORY_SEQUENTIAL = 0x04, MEMORY_CHAIN4 = 0x08 };
enum vga_gr { GR_SET_RESET, GR_ENABLE_SET_RESET, GR_COMPARE, GR_ROTATE, GR_READ_MAP, GR_MODE, GR_MISC, GR_DONT_CARE, GR_BIT_MASK };
enum { MODE_READ = 0x08, MODE_ODD_EVEN = 0x10, MODE_CGA = 0x20, MODE_256 = 0x40 };
enum { MISC_GRAPHICS = 0x01 };
enum vga_cr {
	CR_H_END = 0x01, CR_OVERFLOW = 0x07, CR_MAX_SCAN = 0x09, CR_CURSOR_START = 0x0a, CR_CURSOR_END = 0x0b,
	CR_START_HIGH = 0x0c, CR_START_LOW = 0x0d, CR_CURSOR_HIGH = 0x0e, CR_CURSOR_LOW = 0x0f, CR_V_SYNC_END = 0x11,
	CR_V_END = 0x12, CR_OFFSET = 0x13, CR_UNDERLINE = 0x14, CR_MODE = 0x17, CR_LINE_COMPARE = 0x18,
};
enum { CR_MODE_NO_BANK = 0x01, CR_MODE_BYTES = 0x40, CR_MODE_WRAP16 = 0x20 };
enum vga_ar { AR_MODE = 0x10, AR_OVERSCAN, AR_PLANES, AR_PAN, AR_COLOR_SELECT };
enum { ATTR_BLINK = 0x08, ATTR_LINE_GRAPHICS = 0x04, ATTR_COLOR_SELECT = 0x80, ATTR_ON = 0x20 };
enum { MISC_COLOR = 0x01, MISC_RAM = 0x02 };

/* Bochs VBE DISPI registers, by index. */
enum vga_dispi {
	DISPI_ID, DISPI_XRES, DISPI_YRES, DISPI_BPP, DISPI_ENABLE, DISPI_BANK, DISPI_VIRT_WIDTH, DISPI_VIRT_HEIGHT,
	DISPI_X_OFFSET, DISPI_Y_OFFSET, DISPI_MEMORY_64K, DISPI_REGS
};
enum { DISPI_ON = 0x01, DISPI_GETCAPS = 0x02, DISPI_8BIT_DAC = 0x20, DISPI_LFB = 0x40, DISPI_NOCLEAR = 0x80 };

struct vga {
	struct device d;
	struct pci_function pci;
	u8 *vram;
	/* the window: what is at a0000 now */
	bool linear;              /* linear_size bytes from linear_at of vram are mapped as RAM */
	u32 linear_at, linear_size;
	/* registers */
	u8 misc, feature;
	u8 seq_index, seq[8];
	u8 gr_index, gr[16];
	u8 cr_index, cr[32];
	u8 ar_index, ar_data, ar[32]; /* ar_data: the next write to 3c0 is data */
	u8 dac_mask, dac_read, dac_write, dac_at, dac_reading, dac[768], dac_latch[2];
	u32 latch;
	u16 dispi_index, dispi[DISPI_REGS];
};

/* vga_regs.c: port is 3b0..3df. */
u8 vga_port_read(struct vga *v, u16 port);
void vga_port_write(struct vga *v, u16 port, u8 val);
void vga_regs_reset(struct vga *v);
/* vga_mem.c: addr counts from a0000. */
u8 vga_mem_read(struct vga *v, u32 addr);
void vga_mem_write(struct vga *v, u32 addr, u8 val);
bool vga_is_linear(const struct vga *v, u32 *at, u32 *size);  /* and the window is that part of vram */
/* vga_vbe.c */
u16 vga_dispi_read(const struct vga *v, u16 index);
void vga_dispi_write(struct vga *v, u16 index, u16 val);
void vga_dispi_sane(struct vga *v);  /* after a load: no register says more than there is */
u32 vga_dispi_pitch(const struct vga *v); /* bytes from line to line */
static inline bool vga_dispi_on(const struct vga *v) { return v->dispi[DISPI_ENABLE] & DISPI_ON; }
/* vga_show.c: any struct vga whose vram is VRAM_SIZE bytes; all of s->pixels is written. */
void vga_image_size(const struct vga *v, u32 *width, u32 *height);
void vga_draw(const struct vga *v, struct screen_image *s);
void vga_draw_linear(const struct vga *v, u32 y, u32 width, u32 *out); /* one line; a linear mode is on */
u32 vga_linear_at(const struct vga *v, u32 y);                        /* and where in vram it begins */
/* vga.c: after what decides on the window has changed. */
void vga_map_window(struct vga *v);

#endif
