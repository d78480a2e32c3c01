/* What viewers send: the handshake (RFC 6143, 7.1 to 7.3), then messages (7.5) and QEMU's extended keys.
 * Each state, and each message, is a number of bytes and what to do with them. */
#define LOG_TOPIC "vnc"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "display/vnc_impl.h"

#define HANDSHAKE_NS 20000000000ull
#define REFUSE_NS 1000000000ull /* so many guesses a second and connection */

enum { SECURITY_NONE = 1, SECURITY_VNC = 2 };
enum {
	MSG_FORMAT = 0, MSG_ENCODINGS = 2, MSG_REQUEST = 3, MSG_KEY = 4, MSG_POINTER = 5, MSG_TEXT = 6, MSG_QEMU = 255,
};

static u16 get16(const u8 *p) { return (u16)(p[0] << 8 | p[1]); }
static u32 get32(const u8 *p) { return __builtin_bswap32(ld32(p)); }

/* ---- the handshake ------------------------------------------------------------------------------ */

void vnc_greet(struct vnc_client *c)
{
	c->state = VNC_VERSION;
	c->deadline = vnc_now() + HANDSHAKE_NS;
	vnc_put(c, "RFB 003.008\n", 12);
	vnc_flush(c);
}

static void put_reason(struct vnc_client *c, const char *why)
{
	vnc_put32(c, (u32)strlen(why));
	vnc_put(c, why, strlen(why));
}

static void ask_password(struct vnc_client *c)
{
	c->state = VNC_RESPONSE;
	if (!vnc_make_challenge(c->challenge))
		vnc_drop(c);
	vnc_put(c, c->challenge, sizeof(c->challenge));
}

static void let_in(struct vnc_client *c)
{
	if (c->minor >= 8 || c->vnc->asks)
		vnc_put32(c, 0);
	c->state = VNC_INIT;
}

/* "RFB 003.00x\n"; Apple's says 003.889. */
static void take_version(struct vnc_client *c, const u8 *p)
{
	u8 type = c->vnc->asks ? SECURITY_VNC : SECURITY_NONE;

	if (memcmp(p, "RFB 003.", 8) || p[11] != '\n') {
		vnc_drop(c);
		return;
	}
	unsigned minor = (p[8] - '0') * 100u + (p[9] - '0') * 10u + (p[10] - '0');
	c->minor = minor >= 8 ? 8 : minor == 7 ? 7 : 3;
	if (c->minor >= 7) {
		vnc_put16(c, 0x0100u | type);
		c->state = VNC_SECURITY;
		return;
	}
	vnc_put32(c, type);
	c->state = VNC_INIT;
	if (c->vnc->asks)
		ask_password(c);
}

/* Only what was offered. */
static void take_security(struct vnc_client *c, const u8 *p)
{
	if (*p != (c->vnc->asks ? SECURITY_VNC : SECURITY_NONE))
		vnc_drop(c);
	else if (c->vnc->asks)
		ask_password(c);
	else
		let_in(c);
}

static void take_response(struct vnc_client *c, const u8 *p)
{
	if (vnc_response_is_right(c->vnc->password, c->challenge, p)) {
		let_in(c);
		return;
	}
	static struct ratelimit often;
	if (ratelimit_ok(&often))
		log_warn("a viewer had a wrong password");
	c->state = VNC_REFUSED;
	c->deadline = vnc_now() + REFUSE_NS;
}

void vnc_refuse(struct vnc_client *c)
{
	vnc_put32(c, 1);
	if (c->minor >= 8)
		put_reason(c, "The password is wrong");
	vnc_flush(c);
	vnc_drop(c);
}

/* Who does not want to share gets the others out, as the protocol has it. */
static void take_init(struct vnc_client *c, const u8 *p)
{
	struct vnc *v = c->vnc;

	for (int k = 0; k < VNC_CLIENTS && !*p; k++)
		if (&v->client[k] != c && v->client[k].fd >= 0 && v->client[k].state == VNC_RUNS)
			vnc_drop(&v->client[k]);
	if (!vnc_look(v) || !vnc_set_size(c, v->frame.width, v->frame.height)) {
		vnc_drop(c);
		return;
	}
	c->state = VNC_RUNS;
	vnc_put16(c, c->width);
	vnc_put16(c, c->height);
	vnc_put_format(c);
	put_reason(c, v->name);
}

/* ---- keys ------------------------------------------------------------------------------------------- */

static void send_key(struct vnc_client *c, u16 code, bool down) { c->vnc->seat.key(c->vnc->seat.arg, code, down); }

static bool is_held(const struct vnc_client *c, u16 code)
{
	for (size_t k = 0; k < ARRAY_LEN(c->held); k++)
		if (c->held[k].code == code)
			return true;
	return false;
}

/* A character that this keyboard types with shift otherwise than the viewer's keyboard does. */
static void send_with_shift(struct vnc_client *c, u16 code, bool shift)
{
	u16 held = is_held(c, KEY_LEFT_SHIFT) ? KEY_LEFT_SHIFT : is_held(c, KEY_RIGHT_SHIFT) ? KEY_RIGHT_SHIFT : 0;

	if (shift == (held != 0)) {
		send_key(c, code, true);
		return;
	}
	send_key(c, held ? held : KEY_LEFT_SHIFT, !held);
	send_key(c, code, true);
	send_key(c, held ? held : KEY_LEFT_SHIFT, held != 0);
}

/* from: by what the viewer knows the key, so that what goes up is what went down. */
static void take_key(struct vnc_client *c, u32 from, u16 code, enum key_shift shift, bool down)
{
	size_t k = 0, free_place = ARRAY_LEN(c->held);

	for (; k < ARRAY_LEN(c->held) && !(c->held[k].code && c->held[k].from == from); k++)
		if (!c->held[k].code && free_place == ARRAY_LEN(c->held))
			free_place = k;
	if (!down) { /* some viewers let "a" go where "A" was pressed, once shift is up */
		for (size_t j = 0; k == ARRAY_LEN(c->held) && j < ARRAY_LEN(c->held); j++)
			if (code && c->held[j].code == code)
				k = j;
		if (k < ARRAY_LEN(c->held)) {
			send_key(c, c->held[k].code, false);
			c->held[k].code = 0;
		}
		return;
	}
	if (!code || (k == ARRAY_LEN(c->held) && free_place == ARRAY_LEN(c->held)))
		return;
	if (k == ARRAY_LEN(c->held)) { /* else it repeats */
		c->held[free_place].from = from;
		c->held[free_place].code = code;
	}
	if (shift == KEY_SHIFT_ANY)
		send_key(c, code, true);
	else
		send_with_shift(c, code, shift == KEY_SHIFT_DOWN);
}

void vnc_release_keys(struct vnc_client *c)
{
	for (size_t k = 0; k < ARRAY_LEN(c->held); k++)
		if (c->held[k].code)
			send_key(c, c->held[k].code, false);
	if (c->buttons)
		c->vnc->seat.pointer(c->vnc->seat.arg, 0, 0, 0, 0);
}

/* 7.5.4 */
static void take_keysym(struct vnc_client *c, const u8 *p)
{
	enum key_shift shift;
	u32 keysym = get32(p + 4);
	u16 code = key_of_keysym(keysym, &shift);

	take_key(c, keysym, code, shift, p[1]);
}

/* { 255, 0, u16 down, u32 keysym, u32 key's number } */
static void take_extended_key(struct vnc_client *c, const u8 *p)
{
	u32 number = get32(p + 8);

	take_key(c, 0x80000000u | number, number < 256 ? key_of_set1((u8)number) : 0, KEY_SHIFT_ANY, get16(p + 2) != 0);
}

/* ---- the pointer -------------------------------------------------------------------------------------- */

/* 7.5.5: places, of which the mouse gets the differences; relative ones (QEMU's pointer motion change)
 * count from 7fff. Buttons: 1 left, 2 middle, 4 right, 8 and 16 the wheel up and down, 128 a fourth. */
static void take_pointer(struct vnc_client *c, const u8 *p)
{
	u8 mask = p[1], pressed = mask & (u8)~c->buttons;
	int x = get16(p + 2), y = get16(p + 4), dx = c->placed ? x - c->x : 0, dy = c->placed ? y - c->y : 0;
	unsigned buttons = (mask & 1) | (mask & 2) << 1 | (mask & 4) >> 1 | (mask & 0x80) >> 4;

	if (c->relative) {
		dx = x - 0x7fff;
		dy = y - 0x7fff;
	}
	c->placed = true;
	c->x = x;
	c->y = y;
	c->buttons = mask;
	c->vnc->seat.pointer(c->vnc->seat.arg, dx, dy, !!(pressed & 16) - !!(pressed & 8), buttons);
}

/* ---- messages -------------------------------------------------------------------------------------------- */

static void take_encoding(struct vnc_client *c, i32 encoding)
{
	switch (encoding) {
	case 16: c->zrle = true; break;
	case -223: c->resizes = true; break;
	case -257: c->relative = c->tell_relative = true; break;
	case -258: c->extended_keys = c->tell_extended_keys = true; break;
	default: break;
	}
}

/* 7.5.3 */
static void take_request(struct vnc_client *c, const u8 *p)
{
	u32 x = get16(p + 2), y = get16(p + 4);

	c->want[0] = MIN(x, c->width);
	c->want[1] = MIN(y, c->height);
	c->want[2] = MIN(x + get16(p + 6), c->width);
	c->want[3] = MIN(y + get16(p + 8), c->height);
	c->wants = true;
	if (!p[1]) { /* all of it, changed or not */
		u32 t[4] = { c->want[0] / VNC_TILE_W, c->want[1] / VNC_TILE_H, (c->want[2] + VNC_TILE_W - 1) / VNC_TILE_W,
			     (c->want[3] + VNC_TILE_H - 1) / VNC_TILE_H };
		for (u32 row = t[1]; row < t[3] && t[2] > t[0]; row++)
			memset(c->dirty + row * vnc_columns(c) + t[0], 1, t[2] - t[0]);
		if (vnc_now() - c->vnc->looked_at > 10000000u)
			vnc_look(c->vnc);
	}
	vnc_update(c);
}

/* Bytes of the message that begins with p, n of them there: 0 if that is not to be told yet. */
static size_t message_length(const u8 *p, size_t n)
{
	switch (p[0]) {
	case MSG_FORMAT: return 20;
	case MSG_ENCODINGS: return 4;
	case MSG_REQUEST: return 10;
	case MSG_KEY: case MSG_TEXT: return 8;
	case MSG_POINTER: return 6;
	case MSG_QEMU: return n < 2 || p[1] ? 2 : 12;
	default: return 1;
	}
}

static void take_message(struct vnc_client *c, const u8 *p)
{
	i32 len;

	switch (p[0]) {
	case MSG_FORMAT:
		if (!vnc_set_format(c, p + 4))
			vnc_drop(c);
		else if (c->dirty)
			memset(c->dirty, 1, (size_t)vnc_columns(c) * vnc_rows(c));
		break;
	case MSG_ENCODINGS:
		c->encodings_left = get16(p + 2);
		c->zrle = c->resizes = c->relative = c->extended_keys = false;
		c->placed = false;
		break;
	case MSG_REQUEST: take_request(c, p); break;
	case MSG_KEY: take_keysym(c, p); break;
	case MSG_POINTER: take_pointer(c, p); break;
	case MSG_TEXT: /* nobody to paste it; an extended clipboard's length is negative */
		len = (i32)get32(p + 4);
		c->skip = len < 0 ? (u32)-(i64)len : (u32)len;
		break;
	default:
		if (p[0] == MSG_QEMU && !p[1] && c->extended_keys) {
			take_extended_key(c, p);
			break;
		}
		log_guest("a viewer sent message %u, which was not offered", p[0]);
		vnc_drop(c);
		break;
	}
}

/* Bytes that what comes next has; those at p are n. */
static size_t length_of_next(const struct vnc_client *c, const u8 *p, size_t n)
{
	switch (c->state) {
	case VNC_VERSION: return 12;
	case VNC_RESPONSE: return VNC_CHALLENGE;
	case VNC_SECURITY: case VNC_INIT: return 1;
	case VNC_RUNS: return c->encodings_left ? 4 : message_length(p, n);
	default: return SIZE_MAX; /* until it is refused nothing is read */
	}
}

static void take(struct vnc_client *c, const u8 *p)
{
	switch (c->state) {
	case VNC_VERSION: take_version(c, p); break;
	case VNC_SECURITY: take_security(c, p); break;
	case VNC_RESPONSE: take_response(c, p); break;
	case VNC_INIT: take_init(c, p); break;
	default:
		if (c->encodings_left) {
			c->encodings_left--;
			take_encoding(c, (i32)get32(p));
		} else {
			take_message(c, p);
		}
	}
}

/* All that is there as a whole. */
static void take_all(struct vnc_client *c, const u8 *buf, size_t n)
{
	while (n && !c->gone) {
		if (c->skip) {
			size_t k = MIN(c->skip, n);
			c->skip -= k;
			buf += k;
			n -= k;
			continue;
		}
		/* One at a time through in, which has what came before. */
		size_t len = length_of_next(c, c->n_in ? c->in : buf, c->n_in ? c->n_in : n);
		if (len == SIZE_MAX)
			return;
		size_t k = c->n_in < len ? MIN(len - c->n_in, n) : 0;
		memcpy(c->in + c->n_in, buf, k);
		c->n_in += k;
		buf += k;
		n -= k;
		if (c->n_in < length_of_next(c, c->in, c->n_in))
			continue;
		c->n_in = 0;
		take(c, c->in);
	}
}

void vnc_receive(struct vnc_client *c)
{
	u8 buf[4096];
	ssize_t n = recv(c->fd, buf, sizeof(buf), MSG_DONTWAIT);

	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
		vnc_drop(c);
		return;
	}
	if (n > 0)
		take_all(c, buf, (size_t)n);
	if (!c->gone)
		vnc_flush(c);
}
