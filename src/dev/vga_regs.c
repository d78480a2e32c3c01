/* The VGA's registers. IBM Personal System/2 Hardware Interface Technical Reference, "Video
 * Subsystem"; numbers in comments are its ports and indexes.
 *
 *   3c0, 3c1  attribute controller: index and data by turns at 3c0 (a read of 3da starts with the
 *             index), read at 3c1
 *   3c2, 3cc  miscellaneous output; 3c2 read: input status 0
 *   3c4, 3c5  sequencer          3ce, 3cf  graphics controller
 *   3c6..3c9  colour registers (DAC)
 *   3ca, 3da  feature control; 3da read: input status 1
 *   3d4, 3d5  CRT controller; 3b4, 3b5, 3ba in monochrome modes in place of 3d4, 3d5, 3da
 *
 * Retrace follows the machine's clock: 60 frames a second of 525 lines, the last 45 of which are
 * the vertical retrace, and a fifth of each line the horizontal one. */
#define LOG_TOPIC "vga"
#include "dev/vga_impl.h"

#include <string.h>

#define CR_COUNT 0x19u
#define AR_COUNT 0x15u
#define LINE_NS 31746u
#define LINES 525u
#define LINES_SHOWN 480u

/* ---- status --------------------------------------------------------------------------------- */

static u8 status1(const struct vga *v)
{
	u64 ns = clock_ns(v->d.clock) % (LINES * LINE_NS);
	bool vertical = ns / LINE_NS >= LINES_SHOWN, horizontal = ns % LINE_NS >= LINE_NS / 5 * 4;

	return (u8)((vertical ? 0x08 : 0) | (vertical || horizontal ? 0x01 : 0));
}

/* ---- the colour registers -------------------------------------------------------------------- */

static u8 dac_bits(const struct vga *v)
{
	return v->dispi[DISPI_ENABLE] & DISPI_8BIT_DAC ? 0xff : 0x3f;
}

static void dac_write(struct vga *v, u8 val)
{
	val &= dac_bits(v);
	if (v->dac_at < 2) {
		v->dac_latch[v->dac_at++] = val;
		return;
	}
	u8 *c = v->dac + 3 * v->dac_write++;
	c[0] = v->dac_latch[0];
	c[1] = v->dac_latch[1];
	c[2] = val;
	v->dac_at = 0;
}

static u8 dac_read(struct vga *v)
{
	u8 val = v->dac[3 * v->dac_read + v->dac_at];

	if (++v->dac_at == 3) {
		v->dac_at = 0;
		v->dac_read++;
	}
	return val;
}

static void dac_select(struct vga *v, u8 index, bool reading)
{
	*(reading ? &v->dac_read : &v->dac_write) = index;
	v->dac_reading = reading;
	v->dac_at = 0;
}

/* ---- indexed registers ------------------------------------------------------------------------ */

/* Bits that exist: 3c5 (0..4), 3cf (0..8). */
static const u8 seq_bits[8] = { 0x03, 0x3d, 0x0f, 0x3f, 0x0e };
static const u8 gr_bits[16] = { 0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff };

static void cr_write(struct vga *v, u8 val)
{
	u8 k = v->cr_index;

	if (k >= CR_COUNT)
		return;
	/* 3d5, 11: bit 7 protects 0 to 7, but for line compare's bit 8 */
	if (k <= CR_OVERFLOW && (v->cr[CR_V_SYNC_END] & 0x80)) {
		if (k == CR_OVERFLOW)
			v->cr[k] = (v->cr[k] & (u8)~0x10) | (val & 0x10);
		return;
	}
	v->cr[k] = val;
}

static void ar_write(struct vga *v, u8 val)
{
	u8 k = v->ar_index & 0x1f;

	v->ar_data = !v->ar_data;
	if (v->ar_data) {
		v->ar_index = val & 0x3f;
		return;
	}
	if (k < AR_MODE) {
		if (!(v->ar_index & ATTR_ON)) /* the palette is the display's while that is on */
			v->ar[k] = val & 0x3f;
	} else if (k < AR_COUNT) {
		v->ar[k] = val;
	}
}

/* ---- ports ------------------------------------------------------------------------------------- */

/* Those of the CRT controller answer at 3dX or 3bX. */
static bool elsewhere(const struct vga *v, u16 port)
{
	bool color = port >= 0x3d0, mono = port < 0x3c0;

	return (color && !(v->misc & MISC_COLOR)) || (mono && (v->misc & MISC_COLOR));
}

u8 vga_port_read(struct vga *v, u16 port)
{
	if (elsewhere(v, port))
		return 0xff;
	switch (port) {
	case 0x3c0: return v->ar_index;
	case 0x3c1: return v->ar[v->ar_index & 0x1f];
	case 0x3c2: return 0x10; /* a monitor is there (the sense bit) */
	case 0x3c4: return v->seq_index;
	case 0x3c5: return v->seq[v->seq_index];
	case 0x3c6: return v->dac_mask;
	case 0x3c7: return v->dac_reading ? 3 : 0;
	case 0x3c8: return v->dac_write;
	case 0x3c9: return dac_read(v);
	case 0x3ca: return v->feature;
	case 0x3cc: return v->misc;
	case 0x3ce: return v->gr_index;
	case 0x3cf: return v->gr[v->gr_index];
	case 0x3b4: case 0x3d4: return v->cr_index;
	case 0x3b5: case 0x3d5: return v->cr_index < CR_COUNT ? v->cr[v->cr_index] : 0;
	case 0x3ba: case 0x3da:
		v->ar_data = 0;
		return status1(v);
	default: return 0xff;
	}
}

void vga_port_write(struct vga *v, u16 port, u8 val)
{
	if (elsewhere(v, port))
		return;
	switch (port) {
	case 0x3c0: ar_write(v, val); break;
	case 0x3c2: v->misc = val & 0xef; vga_map_window(v); break;
	case 0x3c4: v->seq_index = val & 7; break;
	case 0x3c5: v->seq[v->seq_index] = val & seq_bits[v->seq_index]; vga_map_window(v); break;
	case 0x3c6: v->dac_mask = val; break;
	case 0x3c7: dac_select(v, val, true); break;
	case 0x3c8: dac_select(v, val, false); break;
	case 0x3c9: dac_write(v, val); break;
	case 0x3ce: v->gr_index = val & 15; break;
	case 0x3cf: v->gr[v->gr_index] = val & gr_bits[v->gr_index]; vga_map_window(v); break;
	case 0x3b4: case 0x3d4: v->cr_index = val & 0x1f; break;
	case 0x3b5: case 0x3d5: cr_write(v, val); break;
	case 0x3ba: case 0x3da: v->feature = val & 0x10; break;
	default: break;
	}
}

void vga_regs_reset(struct vga *v)
{
	v->misc = MISC_COLOR | MISC_RAM;
	v->feature = v->seq_index = v->gr_index = v->cr_index = v->ar_index = v->ar_data = 0;
	memset(v->seq, 0, sizeof(v->seq));
	memset(v->gr, 0, sizeof(v->gr));
	memset(v->cr, 0, sizeof(v->cr));
	memset(v->ar, 0, sizeof(v->ar));
	memset(v->dac, 0, sizeof(v->dac));
	v->gr[GR_BIT_MASK] = 0xff;
	v->dac_mask = 0xff;
	v->dac_read = v->dac_write = v->dac_at = v->dac_reading = v->dac_latch[0] = v->dac_latch[1] = 0;
	v->latch = 0;
}
