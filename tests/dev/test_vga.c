/* The display: registers, planes, linear modes, and what it shows. IBM PS/2 Hardware Interface
 * Technical Reference; Bochs' VBE DISPI. */
#include "board.h"
#include "dev/vga_impl.h"

static struct board *b;

static int setup(void **state)
{
	b = board_new(&vga_class);
	return 0;
}
static int teardown(void **state)
{
	board_free(b);
	return 0;
}

static void seq(u8 k, u8 v) { out8(b, 0x3c4, k); out8(b, 0x3c5, v); }
static void gr(u8 k, u8 v) { out8(b, 0x3ce, k); out8(b, 0x3cf, v); }
static void cr(u8 k, u8 v) { out8(b, 0x3d4, k); out8(b, 0x3d5, v); }
static void ar(u8 k, u8 v) { in8(b, 0x3da); out8(b, 0x3c0, k); out8(b, 0x3c0, v); }
static void dispi(u16 k, u16 v) { mem_port_write(&b->mem, 0x1ce, k, 2); mem_port_write(&b->mem, 0x1cf, v, 2); }
static u16 dispi_get(u16 k) { mem_port_write(&b->mem, 0x1ce, k, 2); return (u16)mem_port_read(&b->mem, 0x1cf, 2); }
static void poke(u32 gpa, u64 v, unsigned size) { mem_phys_write(&b->mem, gpa, v, size); }
static u64 peek(u32 gpa, unsigned size) { return mem_phys_read(&b->mem, gpa, size); }
static bool is_ram(u64 gpa) { return mem_page(&b->mem, gpa).writable; }

/* The palette is the colours' own numbers, colour n is (n, n, n). */
static void gray_palette(void)
{
	for (u8 k = 0; k < 16; k++)
		ar(k, k);
	ar(AR_PLANES, 15);
	out8(b, 0x3c8, 0);
	for (unsigned k = 0; k < 3 * 256; k++)
		out8(b, 0x3c9, (u8)(k / 3 & 63));
}

/* 640 wide, so many lines, in planes; as BIOS's mode 12. */
static void planar_mode(void)
{
	seq(SEQ_CLOCKING, 1); seq(SEQ_MAP_MASK, 15); seq(SEQ_MEMORY, 6);
	gr(GR_MODE, 0); gr(GR_MISC, 5); gr(GR_DONT_CARE, 15); gr(GR_BIT_MASK, 0xff); gr(GR_ROTATE, 0); gr(GR_ENABLE_SET_RESET, 0);
	cr(CR_V_SYNC_END, 0); cr(CR_H_END, 79); cr(CR_V_END, 0xdf); cr(CR_OVERFLOW, 0x12); cr(CR_MAX_SCAN, 0x40); cr(CR_OFFSET, 40);
	cr(CR_MODE, 0xe3); cr(CR_LINE_COMPARE, 0xff); cr(CR_START_HIGH, 0); cr(CR_START_LOW, 0);
	gray_palette();
	in8(b, 0x3da);
	out8(b, 0x3c0, 0x20);
}

/* 80x25, as mode 3. */
static void text_mode(void)
{
	planar_mode();
	seq(SEQ_CLOCKING, 0); seq(SEQ_MAP_MASK, 3); seq(SEQ_MEMORY, 2); seq(SEQ_FONT, 0);
	gr(GR_MODE, 0x10); gr(GR_MISC, 0x0e);
	cr(CR_V_END, 0x8f); cr(CR_OVERFLOW, 0x12); cr(CR_MAX_SCAN, 0x4f); cr(CR_MODE, 0xa3);
	cr(CR_CURSOR_START, 0x0d); cr(CR_CURSOR_END, 0x0e); cr(CR_CURSOR_HIGH, 0); cr(CR_CURSOR_LOW, 81);
}

/* ---- registers ------------------------------------------------------------------------------------- */

static void registers(void **state)
{
	seq(SEQ_MAP_MASK, 0xff);
	assert_int_equal(in8(b, 0x3c5), 15);
	gr(GR_MODE, 0xff);
	assert_int_equal(in8(b, 0x3cf), 0x7b);
	cr(CR_V_SYNC_END, 0x80); /* protects 0 to 7 */
	cr(CR_H_END, 0x55);
	assert_int_equal(in8(b, 0x3d5), 0);
	cr(CR_V_SYNC_END, 0);
	cr(CR_H_END, 0x55);
	assert_int_equal(in8(b, 0x3d5), 0x55);
	ar(3, 0x2a);
	in8(b, 0x3da);
	out8(b, 0x3c0, 3);
	assert_int_equal(in8(b, 0x3c1), 0x2a);
	assert_int_equal(in8(b, 0x3b5), 0xff); /* monochrome's are not there */
	out8(b, 0x3c2, 0x02);
	assert_int_equal(in8(b, 0x3d5), 0xff);
	assert_int_equal(in8(b, 0x3b5), 0x55);
}

static void dac(void **state)
{
	out8(b, 0x3c8, 5);
	for (u8 k = 0; k < 6; k++)
		out8(b, 0x3c9, 0x40 | (10 + k));
	out8(b, 0x3c7, 5);
	assert_int_equal(in8(b, 0x3c7), 3);
	for (u8 k = 0; k < 6; k++)
		assert_int_equal(in8(b, 0x3c9), 10 + k); /* six bits */
	assert_int_equal(in8(b, 0x3c8), 7);
}

/* Programs wait for its edges. */
static void retrace(void **state)
{
	unsigned seen[2] = { 0 }, edges = 0;
	u8 before = in8(b, 0x3da) & 8;

	for (unsigned k = 0; k < 3400; k++) {
		board_run(b, 10000);
		u8 now = in8(b, 0x3da);
		seen[now >> 3 & 1]++;
		edges += (now & 8) != before;
		before = now & 8;
		assert_true(!(now & 8) || (now & 1));
	}
	assert_in_range(edges, 3, 5); /* in two frames */
	assert_in_range(seen[1], 200, 400);
}

/* ---- planes ------------------------------------------------------------------------------------------ */

static void write_modes(void **state)
{
	planar_mode();
	assert_false(is_ram(0xa0000));
	seq(SEQ_MAP_MASK, 5);
	poke(0xa0000, 0x81, 1);
	for (u8 plane = 0; plane < 4; plane++) {
		gr(GR_READ_MAP, plane);
		assert_int_equal(peek(0xa0000, 1), plane & 1 ? 0 : 0x81);
	}
	seq(SEQ_MAP_MASK, 15);
	gr(GR_MODE, 2); /* a colour, in the pixels of the bit mask; the others from the latch */
	gr(GR_BIT_MASK, 0x18);
	peek(0xa0000, 1);
	poke(0xa0000, 0x0a, 1);
	static const u8 want[] = { 0x81, 0x18, 0x81, 0x18 };
	for (u8 plane = 0; plane < 4; plane++) {
		gr(GR_READ_MAP, plane);
		assert_int_equal(peek(0xa0000, 1), want[plane]);
	}
	gr(GR_MODE, 1); /* a copy of all planes */
	peek(0xa0000, 1);
	poke(0xa0050, 0, 1);
	gr(GR_READ_MAP, 3);
	assert_int_equal(peek(0xa0050, 1), 0x18);
	gr(GR_MODE, 8); /* which pixels have colour 5? */
	gr(GR_COMPARE, 5);
	assert_int_equal(peek(0xa0050, 1), 0x81);
	gr(GR_MODE, 0);
	gr(GR_BIT_MASK, 0xff);
	gr(GR_ROTATE, 0x18 | 1); /* rotated by one, XOR */
	gr(GR_READ_MAP, 0);
	assert_int_equal(peek(0xa0000, 1), 0x81);
	poke(0xa0000, 0x03, 1);
	assert_int_equal(peek(0xa0000, 1), 0x00);
	gr(GR_ROTATE, 0);
	gr(GR_MODE, 3); /* set/reset where both masks are */
	gr(GR_SET_RESET, 1);
	peek(0xa0000, 1);
	poke(0xa0000, 0xf0, 1);
	assert_int_equal(peek(0xa0000, 1), 0xf0);
	gr(GR_MISC, 0x0d); /* the window is at b8000 now */
	assert_int_equal(peek(0xa0000, 1), 0xff);
}

static void planar_picture(void **state)
{
	struct screen_image s;

	planar_mode();
	seq(SEQ_MAP_MASK, 9);
	poke(0xa0000 + 80 * 2 + 1, 0x40, 1);
	assert_true(vga_image(b->dev, &s));
	assert_int_equal(s.width, 640);
	assert_int_equal(s.height, 480);
	assert_int_equal(s.pixels[2 * 640 + 9], 9u * 255 / 63 * 0x010101);
	assert_int_equal(s.pixels[2 * 640 + 10], 0);
	free(s.pixels);
	cr(CR_START_LOW, 80); /* a line up */
	assert_true(vga_image(b->dev, &s));
	assert_int_equal(s.pixels[640 + 9], 9u * 255 / 63 * 0x010101);
	free(s.pixels);
}

/* ---- text ---------------------------------------------------------------------------------------------- */

static void text(void **state)
{
	struct screen_text t;
	struct screen_image s;
	static const char words[] = "Hello, ring3";

	text_mode();
	for (u32 k = 0; k < sizeof(words) - 1; k++)
		poke(0xb8000 + 160 + 2 * k, (u64)(0x1f00 | words[k]), 2);
	poke(0xb8000, 0x07c9, 2); /* a corner of a frame, */
	assert_int_equal(peek(0xb8000, 2), 0x07c9);
	assert_true(vga_text(b->dev, &t));
	assert_int_equal(t.columns, 80);
	assert_int_equal(t.rows, 25);
	assert_int_equal(t.cursor, 81);
	char *u = screen_text_utf8(&t);
	assert_memory_equal(u, "\u2554\nHello, ring3\n\n", 18);
	free(u);
	free(t.cells);
	/* Its font: all of 'H' one row, as BIOS loads it. */
	seq(SEQ_MAP_MASK, 4); seq(SEQ_MEMORY, 6); gr(GR_MODE, 0); gr(GR_MISC, 4);
	poke(0xa0000 + 'H' * 32 + 3, 0xc0, 1);
	seq(SEQ_MAP_MASK, 3); seq(SEQ_MEMORY, 2); gr(GR_MODE, 0x10); gr(GR_MISC, 0x0e);
	assert_true(vga_image(b->dev, &s));
	assert_int_equal(s.width, 720);
	assert_int_equal(s.height, 400);
	const u32 *row = s.pixels + (16 + 3) * 720;
	assert_int_equal(row[0], 15u * 255 / 63 * 0x010101);
	assert_int_equal(row[2], 1u * 255 / 63 * 0x010101); /* background 1 */
	size_t len;
	struct error e;
	u8 *png = screen_image_png(&s, &len, &e);
	assert_non_null(png);
	assert_memory_equal(png, "\x89PNG\r\n\x1a\n", 8);
	free(png);
	free(s.pixels);
	planar_mode();
	assert_false(vga_text(b->dev, &t));
}

/* ---- chained and linear modes ---------------------------------------------------------------------------- */

static void mode_13(void **state)
{
	struct screen_image s;

	planar_mode();
	seq(SEQ_MEMORY, 0x0e);
	gr(GR_MODE, 0x40); gr(GR_MISC, 5);
	cr(CR_V_END, 0x8f); cr(CR_MAX_SCAN, 0x41); cr(CR_UNDERLINE, 0x40); cr(CR_MODE, 0xa3);
	assert_true(is_ram(0xa0000)); /* no exit for a pixel */
	poke(0xa0000 + 320 * 3 + 5, 33, 1);
	assert_true(vga_image(b->dev, &s));
	assert_int_equal(s.width, 320);
	assert_int_equal(s.height, 200);
	assert_int_equal(s.pixels[320 * 3 + 5], 33u * 255 / 63 * 0x010101);
	free(s.pixels);
	seq(SEQ_MAP_MASK, 1); /* masked: through the chip again */
	assert_false(is_ram(0xa0000));
	poke(0xa0000, 0x0202, 2);
	assert_int_equal(peek(0xa0000, 2), 0x0002);
}

static void linear_mode(void **state)
{
	struct screen_image s;
	u32 lfb = ld32(b->dev->function->config + 0x10) & ~15u;

	assert_int_equal(dispi_get(DISPI_ID), 0xb0c5);
	assert_int_equal(dispi_get(DISPI_MEMORY_64K), 256);
	dispi(DISPI_XRES, 800); dispi(DISPI_YRES, 600); dispi(DISPI_BPP, 32);
	poke(lfb, 0x123456, 4);
	dispi(DISPI_ENABLE, DISPI_ON | DISPI_LFB);
	assert_int_equal(peek(lfb, 4), 0); /* cleared */
	assert_true(is_ram(lfb) && is_ram(0xa0000));
	poke(lfb + 4 * (800 * 7 + 3), 0x00abcdef, 4);
	assert_true(vga_image(b->dev, &s));
	assert_int_equal(s.width, 800);
	assert_int_equal(s.height, 600);
	assert_int_equal(s.pixels[800 * 7 + 3], 0xabcdef);
	free(s.pixels);
	dispi(DISPI_Y_OFFSET, 7);
	assert_true(vga_image(b->dev, &s));
	assert_int_equal(s.pixels[3], 0xabcdef);
	free(s.pixels);
	dispi(DISPI_BANK, 2);
	poke(0xa0010, 0x77, 1);
	assert_int_equal(peek(lfb + 0x20010, 1), 0x77);
	dispi(DISPI_Y_OFFSET, 0xffff);
	assert_true(dispi_get(DISPI_Y_OFFSET) + 600 <= (16 << 20) / 3200);
	dispi(DISPI_ENABLE, 0);
	dispi(DISPI_XRES, 8000); dispi(DISPI_YRES, 8000); /* more than there is memory for */
	dispi(DISPI_ENABLE, DISPI_ON);
	assert_false(dispi_get(DISPI_ENABLE) & DISPI_ON);
	u32 regs = ld32(b->dev->function->config + 0x18) & ~15u;
	assert_int_equal(peek(regs + 0x500, 2), 0xb0c5); /* the same by BAR 2 */
	round_trip(b->dev);
}

/* ---- followed ----------------------------------------------------------------------------------- */

/* A look shows what a picture taken now does; returns how many lines may have changed. */
static unsigned look(struct vga_view *v)
{
	const u8 *changed;
	const struct screen_image *seen = vga_view_look(v, &changed);
	struct screen_image s;
	unsigned n = 0;

	assert_true(vga_image(b->dev, &s));
	assert_int_equal(seen->width, s.width);
	assert_int_equal(seen->height, s.height);
	assert_memory_equal(seen->pixels, s.pixels, (size_t)s.width * s.height * sizeof(u32));
	for (u32 y = 0; y < s.height; y++)
		n += changed[y];
	free(s.pixels);
	return n;
}

static void followed(void **state)
{
	struct vga_view *v = vga_view_new(b->dev);

	text_mode();
	assert_int_equal(look(v), 400);
	assert_int_equal(look(v), 0);
	poke(0xb8000 + 2 * 85, 0x1f41, 2);
	assert_int_equal(look(v), 400);
	gr(GR_BIT_MASK, 0x55); /* changes nothing that is seen */
	in8(b, 0x3da);
	assert_int_equal(look(v), 0);
	cr(CR_CURSOR_LOW, 3);
	assert_int_equal(look(v), 400);
	for (u16 bpp = 8; bpp <= 32; bpp += 8) {
		dispi(DISPI_ENABLE, 0);
		dispi(DISPI_XRES, 200);
		dispi(DISPI_YRES, 150);
		dispi(DISPI_BPP, bpp);
		dispi(DISPI_ENABLE, DISPI_ON);
		assert_int_equal(look(v), 150);
		assert_int_equal(look(v), 0);
		poke(0xa0000 + 200 * bpp / 8 * 7, 0x37, 1);
		poke(0xa0000 + 200 * bpp / 8 * 9 - 1, 0x38, 1);
		assert_int_equal(look(v), 2);
		dispi(DISPI_VIRT_WIDTH, 220);
		dispi(DISPI_X_OFFSET, 10);
		assert_int_equal(look(v), 150);
		poke(0xa0000 + 220 * bpp / 8 * 4 + 9, 0xff, 1); /* left of what is shown */
		assert_int_equal(look(v), 0);
		out8(b, 0x3c8, 0x37);
		for (int k = 0; k < 3; k++)
			out8(b, 0x3c9, (u8)(bpp / 8 + k));
		look(v);
	}
	dispi(DISPI_ENABLE, 0);
	dispi(DISPI_BPP, 4);
	dispi(DISPI_XRES, 203);
	dispi(DISPI_ENABLE, DISPI_ON);
	look(v);
	dispi(DISPI_ENABLE, 0);
	planar_mode();
	assert_int_equal(look(v), 480);
	poke(0xa0000 + 5, 0x81, 1);
	assert_int_equal(look(v), 480);
	seq(SEQ_CLOCKING, 0x21); /* dark */
	assert_int_equal(look(v), 480);
	assert_int_equal(look(v), 0);
	vga_view_free(v);
}

static struct { bool known; u64 pages[4]; } written;

static bool pages_written(struct mem *m, const u8 *host, u64 bytes, u64 *pages)
{
	assert_true(bytes / PAGE_SIZE >= 64 * ARRAY_LEN(written.pages));
	memcpy(pages, written.pages, sizeof(written.pages));
	memset(written.pages, 0, sizeof(written.pages));
	return written.known;
}

/* An engine that knows what was written: no other line is looked at. */
static void followed_by_pages(void **state)
{
	enum { PITCH = 200 * 4 };
	struct vga_view *v = vga_view_new(b->dev);
	const u8 *changed;

	dispi(DISPI_XRES, 200);
	dispi(DISPI_YRES, 150);
	dispi(DISPI_BPP, 32);
	dispi(DISPI_ENABLE, DISPI_ON);
	b->mem.written = pages_written;
	written.known = true;
	assert_int_equal(look(v), 150);
	assert_int_equal(look(v), 0);
	poke(0xa0000 + PITCH * 7, 0x37, 1);
	vga_view_look(v, &changed);
	assert_int_equal(changed[7], 0); /* it believes what it is told */
	written.pages[0] = 1 << (PITCH * 7 / PAGE_SIZE);
	assert_int_equal(look(v), 1);
	poke(0xa0000 + PITCH * 5 + PITCH - 1, 0x38, 1); /* a line that lies in two pages */
	written.pages[0] = 1 << 1;
	assert_int_equal(look(v), 1);
	poke(0xa0000 + PITCH * 9, 0x39, 1);
	written.known = false;
	assert_int_equal(look(v), 1);
	written.known = true;
	const u8 byte = 0x40;
	mem_write(&b->mem, 0xa0000 + PITCH * 3, &byte, 1); /* DMA: no engine's */
	assert_int_equal(look(v), 1);
	dispi(DISPI_ENABLE, 0);
	dispi(DISPI_ENABLE, DISPI_ON); /* as before, and clears it */
	assert_int_equal(look(v), 4);
	assert_int_equal(look(v), 0);
	b->mem.written = NULL;
	vga_view_free(v);
}

/* ---- state ------------------------------------------------------------------------------------------ */

/* Memory is saved with the registers, where there is something in it, and code in it is forgotten. */
static void state_has_the_memory(void **state)
{
	static u8 saved[1 << 20], again[1 << 20];
	struct vga *v = (struct vga *)b->dev;
	struct error e;

	size_t empty = device_save(b->dev, saved, sizeof(saved));
	v->vram[5] = 0x55;
	v->vram[VRAM_SIZE - 1] = 0x77;
	size_t n = device_save(b->dev, saved, sizeof(saved));
	assert_int_equal(n, empty + 2 * (4 + PAGE_SIZE));
	v->vram[5] = 0x11;
	v->vram[123456] = 0x22;
	struct page_code *code = &b->mem.code[(v->vram + 123456 - b->mem.ram) / PAGE_SIZE];
	u32 gen = mem_code_mark(code, 123456 % PAGE_SIZE, 1);
	mem_lock(&b->mem);
	assert_true(device_load(b->dev, saved, n, &e));
	mem_unlock(&b->mem);
	assert_int_equal(v->vram[5], 0x55);
	assert_int_equal(v->vram[123456], 0);
	assert_int_equal(v->vram[VRAM_SIZE - 1], 0x77);
	assert_int_not_equal(atomic_load(&code->gen), gen);
	assert_int_equal(device_save(b->dev, again, sizeof(again)), n);
	assert_memory_equal(saved, again, n);
	assert_int_equal(device_save(b->dev, again, n - 1), 0);
	/* A page too far, one twice, half of one: refused, and nothing changes. */
	u8 *record = (u8 *)memmem(saved, n, "\4vram", 5) + 9;
	static const u32 wrong[][2] = { { 0, VRAM_SIZE / PAGE_SIZE }, { 7, 7 }, { 8, 2 } };
	for (unsigned k = 0; k < ARRAY_LEN(wrong); k++) {
		memcpy(again, saved, n);
		st32(again + (record - saved), wrong[k][0]);
		st32(again + (record - saved) + 4 + PAGE_SIZE, wrong[k][1]);
		mem_lock(&b->mem);
		assert_false(device_load(b->dev, again, n, &e));
		mem_unlock(&b->mem);
		assert_non_null(strstr(e.msg, "vram"));
		assert_int_equal(v->vram[5], 0x55);
	}
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(registers), T(dac), T(retrace), T(write_modes), T(planar_picture), T(text), T(mode_13), T(linear_mode), T(followed), T(followed_by_pages), T(state_has_the_memory),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
