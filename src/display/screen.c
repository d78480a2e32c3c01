/* A screen for those who are not in front of it: text as UTF-8, a picture as a PNG file. */
#include <png.h>
#include <stdlib.h>
#include <string.h>

#include "display/display.h"

/* ---- text ---------------------------------------------------------------------------------- */

/* Code page 437 as fonts of the PC have it, the control codes' pictures included; 0 is blank. */
static const u16 unicode_of[256] = {
	0x0020, 0x263a, 0x263b, 0x2665, 0x2666, 0x2663, 0x2660, 0x2022, 0x25d8, 0x25cb, 0x25d9, 0x2642, 0x2640, 0x266a, 0x266b, 0x263c,
	0x25ba, 0x25c4, 0x2195, 0x203c, 0x00b6, 0x00a7, 0x25ac, 0x21a8, 0x2191, 0x2193, 0x2192, 0x2190, 0x221f, 0x2194, 0x25b2, 0x25bc,
	[0x7f] = 0x2302,
	0x00c7, 0x00fc, 0x00e9, 0x00e2, 0x00e4, 0x00e0, 0x00e5, 0x00e7, 0x00ea, 0x00eb, 0x00e8, 0x00ef, 0x00ee, 0x00ec, 0x00c4, 0x00c5,
	0x00c9, 0x00e6, 0x00c6, 0x00f4, 0x00f6, 0x00f2, 0x00fb, 0x00f9, 0x00ff, 0x00d6, 0x00dc, 0x00a2, 0x00a3, 0x00a5, 0x20a7, 0x0192,
	0x00e1, 0x00ed, 0x00f3, 0x00fa, 0x00f1, 0x00d1, 0x00aa, 0x00ba, 0x00bf, 0x2310, 0x00ac, 0x00bd, 0x00bc, 0x00a1, 0x00ab, 0x00bb,
	0x2591, 0x2592, 0x2593, 0x2502, 0x2524, 0x2561, 0x2562, 0x2556, 0x2555, 0x2563, 0x2551, 0x2557, 0x255d, 0x255c, 0x255b, 0x2510,
	0x2514, 0x2534, 0x252c, 0x251c, 0x2500, 0x253c, 0x255e, 0x255f, 0x255a, 0x2554, 0x2569, 0x2566, 0x2560, 0x2550, 0x256c, 0x2567,
	0x2568, 0x2564, 0x2565, 0x2559, 0x2558, 0x2552, 0x2553, 0x256b, 0x256a, 0x2518, 0x250c, 0x2588, 0x2584, 0x258c, 0x2590, 0x2580,
	0x03b1, 0x00df, 0x0393, 0x03c0, 0x03a3, 0x03c3, 0x00b5, 0x03c4, 0x03a6, 0x0398, 0x03a9, 0x03b4, 0x221e, 0x03c6, 0x03b5, 0x2229,
	0x2261, 0x00b1, 0x2265, 0x2264, 0x2320, 0x2321, 0x00f7, 0x2248, 0x00b0, 0x2219, 0x00b7, 0x221a, 0x207f, 0x00b2, 0x25a0, 0x00a0,
};

static char *put_utf8(char *p, u32 c)
{
	if (c < 0x80) {
		*p++ = (char)c;
	} else if (c < 0x800) {
		*p++ = (char)(0xc0 | c >> 6);
		*p++ = (char)(0x80 | (c & 0x3f));
	} else {
		*p++ = (char)(0xe0 | c >> 12);
		*p++ = (char)(0x80 | (c >> 6 & 0x3f));
		*p++ = (char)(0x80 | (c & 0x3f));
	}
	return p;
}

static bool is_blank(u8 c) { return c == 0 || c == ' ' || c == 0xff; }

char *screen_text_utf8(const struct screen_text *t)
{
	char *text = malloc((size_t)t->rows * (3 * (size_t)t->columns + 1) + 1), *p = text;

	for (u32 row = 0; text && row < t->rows; row++) {
		const u16 *cells = t->cells + (size_t)row * t->columns;
		u32 n = t->columns;

		while (n && is_blank((u8)cells[n - 1]))
			n--;
		for (u32 k = 0; k < n; k++) {
			u8 c = (u8)cells[k];
			p = put_utf8(p, unicode_of[c] ? unicode_of[c] : c);
		}
		*p++ = '\n';
	}
	if (text)
		*p = 0;
	return text;
}

/* ---- pictures ------------------------------------------------------------------------------- */

static u8 *rgb_bytes(const struct screen_image *s)
{
	size_t n = (size_t)s->width * s->height;
	u8 *rgb = malloc(3 * n);

	for (size_t k = 0; rgb && k < n; k++) {
		rgb[3 * k] = (u8)(s->pixels[k] >> 16);
		rgb[3 * k + 1] = (u8)(s->pixels[k] >> 8);
		rgb[3 * k + 2] = (u8)s->pixels[k];
	}
	return rgb;
}

u8 *screen_image_png(const struct screen_image *s, size_t *len, struct error *e)
{
	png_image image = { .version = PNG_IMAGE_VERSION, .width = s->width, .height = s->height, .format = PNG_FORMAT_RGB };
	u8 *rgb = rgb_bytes(s), *file = NULL;
	png_alloc_size_t size = rgb ? PNG_IMAGE_PNG_SIZE_MAX(image) : 0;

	if (rgb && (file = malloc(size)) && png_image_write_to_memory(&image, file, &size, 0, rgb, 0, NULL)) {
		*len = size;
		free(rgb);
		return file;
	}
	error_set(e, "a picture of %ux%u: %s", s->width, s->height, file ? image.message : "out of memory");
	free(rgb);
	free(file);
	return NULL;
}
