/* What a viewer sees: rectangles of tiles that have changed, in its format, raw or as ZRLE (RFC 6143, 7.7).
 *
 * ZRLE goes through tiles of 64x64 pixels; of its kinds those of one colour, of up to 16 colours and raw
 * ones are used: text and most of a desktop are one of the first two, and zlib finds the runs. */
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <sys/socket.h>

#include "display/vnc_impl.h"

enum { ENC_RAW = 0, ENC_ZRLE = 16, ENC_SIZE = -223, ENC_POINTER_CHANGE = -257, ENC_EXTENDED_KEYS = -258 };
#define ZRLE_TILE 64u
#define PALETTE_MAX 16u

/* ---- bytes ------------------------------------------------------------------------------------- */

/* Room for len bytes behind what there is; NULL, and the viewer goes, where there is no memory. */
static u8 *reserve(struct vnc_client *c, size_t len)
{
	if (c->cap - c->n_out < len) {
		size_t cap = MAX(2 * c->cap, c->n_out + len + 4096);
		u8 *out = realloc(c->out, cap);
		if (!out) {
			vnc_drop(c);
			return NULL;
		}
		c->out = out;
		c->cap = cap;
	}
	return c->out + c->n_out;
}

void vnc_put(struct vnc_client *c, const void *data, size_t len)
{
	u8 *p = reserve(c, len);

	if (p)
		memcpy(p, data, len);
	c->n_out += p ? len : 0;
}

static void set16(u8 *p, u32 v) { st16(p, __builtin_bswap16((u16)v)); }
static void set32(u8 *p, u32 v) { st32(p, __builtin_bswap32(v)); }
void vnc_put8(struct vnc_client *c, u32 v) { vnc_put(c, &(u8){ (u8)v }, 1); }
void vnc_put16(struct vnc_client *c, u32 v) { vnc_put(c, &(u16){ __builtin_bswap16((u16)v) }, 2); }
void vnc_put32(struct vnc_client *c, u32 v) { vnc_put(c, &(u32){ __builtin_bswap32(v) }, 4); }

void vnc_flush(struct vnc_client *c)
{
	while (!c->gone && c->sent < c->n_out) {
		ssize_t n = send(c->fd, c->out + c->sent, c->n_out - c->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n <= 0)
			vnc_drop(c);
		else
			c->sent += (size_t)n;
	}
	c->n_out = c->sent = 0;
}

/* ---- pixels ---------------------------------------------------------------------------------------- */

static void set_levels(struct vnc_format *f, const u32 max[3], const u8 shift[3])
{
	for (unsigned k = 0; k < 3; k++)
		for (u32 v = 0; v < 256; v++)
			f->level[k][v] = (v * max[k] + 127) / 255 << shift[k];
}

bool vnc_set_format(struct vnc_client *c, const u8 *raw)
{
	u32 max[3] = { (u32)raw[4] << 8 | raw[5], (u32)raw[6] << 8 | raw[7], (u32)raw[8] << 8 | raw[9] };
	u8 bits = raw[0], shift[3] = { raw[10], raw[11], raw[12] };
	struct vnc_format *f = &c->format;
	bool mapped = !raw[3];

	if (bits != 8 && bits != 16 && bits != 32)
		return false;
	if (mapped) { /* a palette of its own, which we fill with 3, 3 and 2 bits of the colours */
		if (bits != 8)
			return false;
		memcpy(max, (const u32[]){ 7, 7, 3 }, sizeof(max));
		memcpy(shift, (const u8[]){ 0, 3, 6 }, sizeof(shift));
	}
	u32 used = 0;
	for (unsigned k = 0; k < 3; k++) {
		if (shift[k] >= bits || (u64)max[k] << shift[k] >> bits)
			return false;
		used |= max[k] << shift[k];
	}
	c->tell_palette = mapped;
	f->bytes = bits / 8;
	f->big_endian = raw[2] != 0;
	f->packed = f->bytes;
	f->packed_at = 0;
	if (bits == 32 && raw[1] <= 24 && (!(used >> 24) || !(used & 0xff))) {
		f->packed = 3;
		f->packed_at = !(used >> 24) == f->big_endian; /* the byte that is left out comes first */
	}
	set_levels(f, max, shift);
	return true;
}

void vnc_put_format(struct vnc_client *c)
{
	static const u8 own[16] = { 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0 };

	vnc_put(c, own, sizeof(own));
	vnc_set_format(c, own);
}

/* 7.6.2: the palette whose numbers are colours of 3, 3 and 2 bits. */
static void put_palette(struct vnc_client *c)
{
	vnc_put16(c, 0x0100);
	vnc_put16(c, 0);
	vnc_put16(c, 256);
	for (u32 k = 0; k < 256; k++) {
		vnc_put16(c, (k & 7) * 65535 / 7);
		vnc_put16(c, (k >> 3 & 7) * 65535 / 7);
		vnc_put16(c, (k >> 6) * 65535 / 3);
	}
}

/* n pixels as the viewer wants them; from, count: which bytes of each. Returns bytes written. */
static size_t convert(const struct vnc_format *f, const u32 *px, size_t n, unsigned from, unsigned count, u8 *to)
{
	for (size_t k = 0; k < n; k++) {
		u32 v = f->level[0][px[k] >> 16 & 0xff] | f->level[1][px[k] >> 8 & 0xff] | f->level[2][px[k] & 0xff];
		if (f->big_endian)
			v = __builtin_bswap32(v) >> (32 - 8 * f->bytes);
		for (unsigned b = 0; b < count; b++)
			*to++ = (u8)(v >> 8 * (from + b));
	}
	return n * count;
}

/* Pixels of a line of the screen; black where it has none: a viewer may have been told another size. */
static void fetch(const struct vnc_client *c, u32 x, u32 y, u32 n, u32 *out)
{
	const struct screen_image *s = &c->vnc->frame;
	u32 there = y < s->height && x < s->width ? MIN(n, s->width - x) : 0;

	if (there)
		memcpy(out, s->pixels + (size_t)y * s->width + x, there * sizeof(u32));
	memset(out + there, 0, (n - there) * sizeof(u32));
}

/* ---- rectangles -------------------------------------------------------------------------------------- */

struct rect { u32 x, y, w, h; };

static void put_head(struct vnc_client *c, const struct rect *r, i32 encoding)
{
	vnc_put16(c, r->x);
	vnc_put16(c, r->y);
	vnc_put16(c, r->w);
	vnc_put16(c, r->h);
	vnc_put32(c, (u32)encoding);
}

static void put_raw(struct vnc_client *c, const struct rect *r)
{
	u32 line[VNC_TILE_W];

	for (u32 y = 0; y < r->h; y++)
		for (u32 x = 0; x < r->w; x += VNC_TILE_W) {
			u32 n = MIN(VNC_TILE_W, r->w - x);
			u8 *to = reserve(c, (size_t)n * 4);
			fetch(c, r->x + x, r->y + y, n, line);
			if (to)
				c->n_out += convert(&c->format, line, n, 0, c->format.bytes, to);
		}
}

/* The colours of n pixels, and each pixel's number among them. 0: more than PALETTE_MAX. */
static unsigned find_palette(const u32 *px, size_t n, u32 *palette, u8 *number)
{
	unsigned colours = 0;

	for (size_t k = 0; k < n; k++) {
		unsigned i = 0;
		if (k && px[k] == px[k - 1]) {
			number[k] = number[k - 1];
			continue;
		}
		while (i < colours && palette[i] != px[k])
			i++;
		if (i == colours && colours++ == PALETTE_MAX)
			return 0;
		palette[i] = px[k];
		number[k] = (u8)i;
	}
	return colours;
}

/* 7.7.6: w x h pixels, at most 64x64; out: room for one byte and 4 a pixel. */
static size_t zrle_tile(const struct vnc_format *f, const u32 *px, u32 w, u32 h, u8 *out)
{
	u8 number[ZRLE_TILE * ZRLE_TILE], *p = out + 1;
	u32 palette[PALETTE_MAX];
	unsigned colours = find_palette(px, (size_t)w * h, palette, number), bits = colours > 4 ? 4 : colours > 2 ? 2 : 1;

	out[0] = (u8)colours; /* 0 raw, 1 one colour, else a packed palette */
	if (!colours)
		return 1 + convert(f, px, (size_t)w * h, f->packed_at, f->packed, p);
	p += convert(f, palette, colours, f->packed_at, f->packed, p);
	for (u32 y = 0; y < h && colours > 1; y++) {
		u32 byte = 0, have = 0;
		for (u32 x = 0; x < w; x++) {
			byte = byte << bits | number[y * w + x];
			if ((have += bits) == 8) {
				*p++ = (u8)byte;
				byte = have = 0;
			}
		}
		if (have)
			*p++ = (u8)(byte << (8 - have));
	}
	return (size_t)(p - out);
}

/* What zlib has for us of len bytes; flush: all of it. */
static void compress_to_out(struct vnc_client *c, u8 *data, size_t len, int flush)
{
	c->z.next_in = data;
	c->z.avail_in = (uInt)len;
	do {
		u8 *to = reserve(c, 8192);
		if (!to)
			return;
		c->z.next_out = to;
		c->z.avail_out = 8192;
		deflate(&c->z, flush);
		c->n_out += 8192 - c->z.avail_out;
	} while (!c->z.avail_out);
}

static void put_zrle(struct vnc_client *c, const struct rect *r)
{
	u32 px[ZRLE_TILE * ZRLE_TILE];
	u8 tile[1 + 4 * ZRLE_TILE * ZRLE_TILE];
	size_t head = c->n_out;

	vnc_put32(c, 0); /* the length, which comes to be known */
	for (u32 y = 0; y < r->h; y += ZRLE_TILE)
		for (u32 x = 0; x < r->w; x += ZRLE_TILE) {
			u32 w = MIN(ZRLE_TILE, r->w - x), h = MIN(ZRLE_TILE, r->h - y);
			for (u32 k = 0; k < h; k++)
				fetch(c, r->x + x, r->y + y + k, w, px + k * w);
			compress_to_out(c, tile, zrle_tile(&c->format, px, w, h, tile), Z_NO_FLUSH);
		}
	compress_to_out(c, NULL, 0, Z_SYNC_FLUSH);
	if (!c->gone)
		set32(c->out + head, (u32)(c->n_out - head - 4));
}

/* ---- updates --------------------------------------------------------------------------------------------- */

bool vnc_set_size(struct vnc_client *c, u32 width, u32 height)
{
	c->width = MIN(width, 0xffffu);
	c->height = MIN(height, 0xffffu);
	free(c->dirty);
	c->dirty = malloc((size_t)vnc_columns(c) * vnc_rows(c));
	if (c->dirty)
		memset(c->dirty, 1, (size_t)vnc_columns(c) * vnc_rows(c));
	return c->dirty != NULL;
}

/* Tiles of what the viewer asked for: columns and rows from [0], [1] to before [2], [3]. */
static void wanted_tiles(const struct vnc_client *c, u32 t[4])
{
	t[0] = c->want[0] / VNC_TILE_W;
	t[1] = c->want[1] / VNC_TILE_H;
	t[2] = MIN(vnc_columns(c), (c->want[2] + VNC_TILE_W - 1) / VNC_TILE_W);
	t[3] = MIN(vnc_rows(c), (c->want[3] + VNC_TILE_H - 1) / VNC_TILE_H);
}

static bool all_dirty(const struct vnc_client *c, u32 row, u32 from, u32 to)
{
	return !memchr(c->dirty + row * vnc_columns(c) + from, 0, to - from);
}

/* Sends dirty tiles of t as few rectangles: along a row, then down. Returns how many. */
static u32 put_tiles(struct vnc_client *c, const u32 t[4])
{
	u32 n = 0, columns = vnc_columns(c);

	for (u32 row = t[1]; row < t[3]; row++)
		for (u32 from = t[0], to; from < t[2]; from = to) {
			for (to = from; to < t[2] && c->dirty[row * columns + to]; to++)
				;
			if (to == from) {
				to++;
				continue;
			}
			u32 below = row + 1;
			while (below < t[3] && all_dirty(c, below, from, to))
				below++;
			for (u32 k = row; k < below; k++)
				memset(c->dirty + k * columns + from, 0, to - from);
			u32 x = from * VNC_TILE_W, y = row * VNC_TILE_H;
			struct rect r = { x, y, MIN(to * VNC_TILE_W, c->width) - x, MIN(below * VNC_TILE_H, c->height) - y };
			put_head(c, &r, c->zrle ? ENC_ZRLE : ENC_RAW);
			(c->zrle ? put_zrle : put_raw)(c, &r);
			n++;
		}
	return n;
}

static bool any_dirty(const struct vnc_client *c, const u32 t[4])
{
	for (u32 row = t[1]; row < t[3]; row++)
		if (t[2] > t[0] && memchr(c->dirty + row * vnc_columns(c) + t[0], 1, t[2] - t[0]))
			return true;
	return false;
}

/* What is no picture: told once each. */
static u32 put_news(struct vnc_client *c)
{
	u32 n = 0;

	if (c->tell_extended_keys) {
		put_head(c, &(struct rect){ 0 }, ENC_EXTENDED_KEYS);
		n++;
	}
	if (c->tell_relative) {
		put_head(c, &(struct rect){ .x = 0 }, ENC_POINTER_CHANGE); /* x: 1 absolute, 0 relative */
		n++;
	}
	c->tell_extended_keys = c->tell_relative = false;
	return n;
}

static bool start_zlib(struct vnc_client *c)
{
	if (c->zrle && !c->z_open)
		c->z_open = deflateInit(&c->z, 3) == Z_OK;
	return !c->zrle || c->z_open;
}

void vnc_update(struct vnc_client *c)
{
	u32 t[4], n;

	if (c->state != VNC_RUNS || c->gone || !c->wants || c->sent < c->n_out)
		return;
	const struct screen_image *s = &c->vnc->frame;
	bool tell_size = c->resizes && s->pixels && (c->width != s->width || c->height != s->height);
	wanted_tiles(c, t);
	if (!tell_size && !c->tell_extended_keys && !c->tell_relative && !any_dirty(c, t))
		return;
	if (!start_zlib(c) || (tell_size && !vnc_set_size(c, s->width, s->height))) {
		vnc_drop(c);
		return;
	}
	if (c->tell_palette)
		put_palette(c);
	c->tell_palette = false;
	size_t head = c->n_out;
	vnc_put32(c, 0); /* an update of so many rectangles, 7.6.1 */
	n = put_news(c);
	if (tell_size) { /* the last of its update: 7.8.2; the viewer asks anew */
		put_head(c, &(struct rect){ .w = c->width, .h = c->height }, ENC_SIZE);
		n++;
	} else {
		n += put_tiles(c, t);
	}
	c->wants = false;
	if (!c->gone)
		set16(c->out + head + 2, n);
	vnc_flush(c);
}
