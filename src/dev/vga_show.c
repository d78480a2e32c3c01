/* What the card shows: text as characters, anything as pixels. IBM PS/2 Hardware Interface
 * Technical Reference, "Video Subsystem": CRT controller (3d5), attribute controller (3c0).
 *
 * A reader's view of the registers; nothing here changes them. Machine lock held. Every address
 * is masked to the planes, or lies within vram by vga_vbe.c's invariant, so that any register
 * values show something. */
#include "dev/vga_impl.h"

#include <stdlib.h>
#include <string.h>

#define MAX_TEXT_COLUMNS 256u

static bool is_blank(const struct vga *v)
{
	return (v->seq[SEQ_CLOCKING] & CLOCKING_OFF) || !(v->ar_index & ATTR_ON);
}

static bool is_text(const struct vga *v)
{
	return !vga_dispi_on(v) && !(v->gr[GR_MISC] & MISC_GRAPHICS);
}

/* ---- geometry ---------------------------------------------------------------------------------- */

/* Lines of the display, of a row: 3d5, 12, 7, 9. */
static u32 lines_shown(const struct vga *v)
{
	u8 over = v->cr[CR_OVERFLOW];

	return (v->cr[CR_V_END] | (over & 0x02) << 7 | (over & 0x40) << 3) + 1u;
}

static u32 row_lines(const struct vga *v) { return (v->cr[CR_MAX_SCAN] & 0x1fu) + 1; }

static u32 line_compare(const struct vga *v)
{
	return v->cr[CR_LINE_COMPARE] | (v->cr[CR_OVERFLOW] & 0x10u) << 4 | (v->cr[CR_MAX_SCAN] & 0x40u) << 3;
}

static u32 start_address(const struct vga *v) { return (u32)(v->cr[CR_START_HIGH] << 8 | v->cr[CR_START_LOW]); }

static u32 row_step(const struct vga *v) { return 2u * v->cr[CR_OFFSET]; }

/* The address counter's value as an offset in the planes. Doubleword mode is taken for byte mode:
 * vga_impl.h says why. */
static u32 offset_of(const struct vga *v, u32 counter, u32 line_in_row)
{
	u32 off = counter;

	if (!(v->cr[CR_MODE] & CR_MODE_BYTES) && !(v->cr[CR_UNDERLINE] & 0x40))
		off = counter << 1 | (counter >> (v->cr[CR_MODE] & CR_MODE_WRAP16 ? 15 : 13) & 1);
	if (!(v->cr[CR_MODE] & CR_MODE_NO_BANK)) /* CGA: odd lines 8 KiB further */
		off = (off & ~0x2000u) | (line_in_row & 1) << 13;
	return off & PLANE_MASK;
}

/* ---- colours ------------------------------------------------------------------------------------- */

static u32 dac_color(const struct vga *v, u8 index)
{
	const u8 *c = v->dac + 3 * (index & v->dac_mask);
	u32 r = c[0], g = c[1], b = c[2];

	if (!(v->dispi[DISPI_ENABLE] & DISPI_8BIT_DAC)) {
		r = (r & 63) * 255 / 63;
		g = (g & 63) * 255 / 63;
		b = (b & 63) * 255 / 63;
	}
	return r << 16 | g << 8 | b;
}

/* Four bits through the attribute controller's palette: 3c0, 0 to f, 10, 14. */
static u32 palette_color(const struct vga *v, unsigned index)
{
	u8 c = v->ar[index & v->ar[AR_PLANES] & 15], select = v->ar[AR_COLOR_SELECT];

	if (v->ar[AR_MODE] & ATTR_COLOR_SELECT)
		c = (c & 0x0f) | (select & 3) << 4;
	return dac_color(v, (u8)((c & 0x3f) | (select & 0x0c) << 4));
}

/* ---- text ------------------------------------------------------------------------------------------ */

static u32 text_columns(const struct vga *v) { return MIN(v->cr[CR_H_END] + 1u, MAX_TEXT_COLUMNS); }
static u32 text_rows(const struct vga *v) { return MAX(lines_shown(v) / row_lines(v), 1u); }

/* Character in the low byte, attribute in the high one. */
static u16 cell_at(const struct vga *v, u32 row, u32 column)
{
	const u8 *p = v->vram + 4 * offset_of(v, start_address(v) + row * row_step(v) + column, 0);

	return (u16)(p[0] | p[1] << 8);
}

/* Where the cursor is: a cell's number, or UINT32_MAX when it is off or not on the screen. */
static u32 cursor_cell(const struct vga *v)
{
	u32 at = (u32)(v->cr[CR_CURSOR_HIGH] << 8 | v->cr[CR_CURSOR_LOW]) - start_address(v), step = row_step(v);
	u32 row = step ? at / step : 0, column = step ? at % step : at;

	if ((v->cr[CR_CURSOR_START] & 0x20) || row >= text_rows(v) || column >= text_columns(v))
		return UINT32_MAX;
	return row * text_columns(v) + column;
}

bool vga_text(const struct device *d, struct screen_text *t)
{
	const struct vga *v = (const struct vga *)d;

	mem_posted(d->mem);
	if (!is_text(v))
		return false;
	*t = (struct screen_text){ .columns = text_columns(v), .rows = text_rows(v), .cursor = cursor_cell(v) };
	t->cells = calloc((size_t)t->columns * t->rows, sizeof(*t->cells));
	if (!t->cells)
		return false;
	for (u32 row = 0; row < t->rows && !is_blank(v); row++)
		for (u32 column = 0; column < t->columns; column++)
			t->cells[row * t->columns + column] = cell_at(v, row, column);
	return true;
}

/* 3c5, 3: the fonts of attribute bit 3 = 0 and 1, in plane 2, 32 bytes a character. */
static const u8 *glyph(const struct vga *v, u16 cell)
{
	u8 s = v->seq[SEQ_FONT];
	unsigned b = (s & 3) | (s >> 2 & 4), a = (s >> 2 & 3) | (s >> 3 & 4), bank = cell & 0x800 ? a : b;
	u32 base = (bank & 3) * 0x4000 + (bank & 4 ? 0x2000 : 0);

	return v->vram + 4 * (base + (cell & 0xffu) * 32) + 2;
}

struct text_look { u32 width, height, cursor; };

static void draw_cell(const struct vga *v, const struct text_look *k, u16 cell, bool cursor, u32 *out, u32 pitch)
{
	u8 attr = (u8)(cell >> 8), from = v->cr[CR_CURSOR_START] & 0x1f, to = v->cr[CR_CURSOR_END] & 0x1f;
	bool blink = v->ar[AR_MODE] & ATTR_BLINK, line = (v->ar[AR_MODE] & ATTR_LINE_GRAPHICS) && (cell & 0xe0) == 0xc0;
	u32 fg = palette_color(v, attr & 15), bg = palette_color(v, attr >> 4 & (blink ? 7 : 15));
	const u8 *g = glyph(v, cell);

	for (u32 y = 0; y < k->height; y++, out += pitch) {
		u32 bits = (u32)g[4 * y] << 1;
		if (line)
			bits |= bits >> 1 & 1;
		if (cursor && y >= from && y <= to)
			bits = 0x1ff;
		for (u32 x = 0; x < k->width; x++)
			out[x] = bits >> (8 - x) & 1 ? fg : bg;
	}
}

static void draw_text(const struct vga *v, struct screen_image *s)
{
	struct text_look k = { v->seq[SEQ_CLOCKING] & CLOCKING_8_DOTS ? 8 : 9, row_lines(v), cursor_cell(v) };
	u32 columns = text_columns(v), rows = text_rows(v);

	for (u32 row = 0; row < rows; row++)
		for (u32 column = 0; column < columns; column++)
			draw_cell(v, &k, cell_at(v, row, column), row * columns + column == k.cursor,
				  s->pixels + (size_t)row * k.height * s->width + column * k.width, s->width);
}

/* ---- graphics ---------------------------------------------------------------------------------------- */

/* Eight pixels from one offset: 3cf, 5, bits 5 and 6. */
static void planar_pixels(const struct vga *v, const u8 *p, u32 *out)
{
	for (unsigned x = 0; x < 8; x++) {
		unsigned c = 0;
		if (v->gr[GR_MODE] & MODE_CGA) { /* pairs of bits, planes 0 and 2 then 1 and 3 */
			unsigned shift = 6 - 2 * (x & 3), k = x >> 2;
			c = (p[k] >> shift & 3) | (unsigned)(p[k + 2] >> shift & 3) << 2;
		} else {
			for (unsigned plane = 0; plane < 4; plane++)
				c |= (unsigned)(p[plane] >> (7 - x) & 1) << plane;
		}
		out[x] = palette_color(v, c);
	}
}

static bool is_256(const struct vga *v) { return v->gr[GR_MODE] & MODE_256; }

static u32 graphics_width(const struct vga *v) { return (v->cr[CR_H_END] + 1u) * (is_256(v) ? 4 : 8); }

/* Lines of the display that show the same line of memory: 3d5, 9. */
static u32 line_repeat(const struct vga *v)
{
	u32 n = v->cr[CR_MAX_SCAN] & 0x80 ? 2 : 1;

	return v->cr[CR_MODE] & CR_MODE_NO_BANK ? n * row_lines(v) : n;
}

static void draw_graphics(const struct vga *v, struct screen_image *s)
{
	u32 repeat = line_repeat(v), bank = v->cr[CR_MODE] & CR_MODE_NO_BANK ? 1 : 2, split = line_compare(v) / repeat;

	for (u32 y = 0; y < s->height; y++) {
		bool below = y > split;
		u32 counter = (below ? 0 : start_address(v)) + (below ? y - split - 1 : y) / bank * row_step(v);
		u32 *out = s->pixels + (size_t)y * s->width;
		if (is_256(v))
			for (u32 x = 0; x < s->width; x++)
				out[x] = dac_color(v, v->vram[4 * offset_of(v, counter + x / 4, y) + x % 4]);
		else
			for (u32 x = 0; x < s->width; x += 8)
				planar_pixels(v, v->vram + 4 * offset_of(v, counter + x / 8, y), out + x);
	}
}

/* ---- linear modes --------------------------------------------------------------------------------------- */

static u32 widen(u32 c, unsigned shift, unsigned bits)
{
	u32 max = (1u << bits) - 1;

	return (c >> shift & max) * 255 / max;
}

static u32 linear_pixel(const struct vga *v, const u8 *line, u32 x)
{
	u32 c;

	switch (v->dispi[DISPI_BPP]) {
	case 8: return dac_color(v, line[x]);
	case 15:
		c = ld16(line + 2 * x);
		return widen(c, 10, 5) << 16 | widen(c, 5, 5) << 8 | widen(c, 0, 5);
	case 16:
		c = ld16(line + 2 * x);
		return widen(c, 11, 5) << 16 | widen(c, 5, 6) << 8 | widen(c, 0, 5);
	case 24: return line[3 * x] | (u32)line[3 * x + 1] << 8 | (u32)line[3 * x + 2] << 16;
	default: return ld32(line + 4 * x) & 0xffffff;
	}
}

u32 vga_linear_at(const struct vga *v, u32 y) { return (v->dispi[DISPI_Y_OFFSET] + y) * vga_dispi_pitch(v); }

void vga_draw_linear(const struct vga *v, u32 y, u32 width, u32 *out)
{
	u32 at = vga_linear_at(v, y), x0 = v->dispi[DISPI_X_OFFSET];

	if (v->dispi[DISPI_BPP] == 4) { /* planes; at counts pixels of half a byte */
		for (u32 x = 0; x + 8 <= width; x += 8)
			planar_pixels(v, v->vram + 4 * ((at / 4 + (x0 + x) / 8) & PLANE_MASK), out + x);
		memset(out + (width & ~7u), 0, (width & 7) * sizeof(*out));
		return;
	}
	for (u32 x = 0; x < width; x++)
		out[x] = linear_pixel(v, v->vram + at, x0 + x);
}

/* ---- all of it --------------------------------------------------------------------------------------------- */

void vga_image_size(const struct vga *v, u32 *width, u32 *height)
{
	if (vga_dispi_on(v)) {
		*width = v->dispi[DISPI_XRES];
		*height = v->dispi[DISPI_YRES];
	} else if (is_text(v)) {
		*width = text_columns(v) * (v->seq[SEQ_CLOCKING] & CLOCKING_8_DOTS ? 8 : 9);
		*height = text_rows(v) * row_lines(v);
	} else {
		*width = graphics_width(v);
		*height = MAX(lines_shown(v) / line_repeat(v), 1u);
	}
}

void vga_draw(const struct vga *v, struct screen_image *s)
{
	if (vga_dispi_on(v))
		for (u32 y = 0; y < s->height; y++)
			vga_draw_linear(v, y, s->width, s->pixels + (size_t)y * s->width);
	else if (is_blank(v))
		memset(s->pixels, 0, (size_t)s->width * s->height * sizeof(*s->pixels));
	else if (is_text(v))
		draw_text(v, s);
	else
		draw_graphics(v, s);
}

bool vga_image(const struct device *d, struct screen_image *s)
{
	const struct vga *v = (const struct vga *)d;

	mem_posted(d->mem);
	vga_image_size(v, &s->width, &s->height);
	s->pixels = calloc((size_t)s->width * s->height, sizeof(*s->pixels));
	if (s->pixels)
		vga_draw(v, s);
	return s->pixels != NULL;
}
