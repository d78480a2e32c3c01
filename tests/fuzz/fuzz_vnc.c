/* What VNC viewers send: two of them, in pieces, to a server whose screen changes its content and size
 * at times. The first byte says whether a password is asked for; then, again and again, a byte (which
 * viewer, how many bytes) and the bytes. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fuzz.h"
#include "display/vnc_impl.h"

struct screen { struct screen_image image; u8 changed[256]; u32 turn; int down; };

static const struct screen_image *look(void *arg, const u8 **changed)
{
	struct screen *s = arg;

	s->turn++;
	if (s->turn % 7 == 0) {
		free(s->image.pixels);
		s->image = (struct screen_image){ 1 + s->turn * 37 % 200, 1 + s->turn * 53 % 200, NULL };
	}
	if (!s->image.pixels) {
		s->image.pixels = calloc((size_t)s->image.width * s->image.height, sizeof(u32));
		memset(s->changed, 1, sizeof(s->changed));
	} else {
		memset(s->changed, 0, sizeof(s->changed));
	}
	for (u32 k = 0; k < s->turn % 40; k++) {
		u32 at = s->turn * 2654435761u + k * 7919u;
		at %= s->image.width * s->image.height;
		s->image.pixels[at] = s->turn * 0x10203u * (k % 20);
		s->changed[at / s->image.width] = 1;
	}
	*changed = s->changed;
	return s->turn % 31 == 30 ? NULL : &s->image;
}

/* What goes down comes up, and no key that there is not. */
static void key(void *arg, u16 code, bool down)
{
	u8 bytes[KEY_CODE_BYTES];

	if (!code || key_code_bytes(code, down, bytes) > KEY_CODE_BYTES)
		bug("key %x", code);
}

static void pointer(void *arg, int dx, int dy, int wheel, unsigned buttons)
{
	if (abs(dx) > 65535 || abs(dy) > 65535 || abs(wheel) > 1 || buttons > 31)
		bug("pointer %d %d %d %u", dx, dy, wheel, buttons);
}

static void turn(struct loop *loop, const int *ends)
{
	u8 sink[65536];

	loop_turn(loop, 0);
	for (int k = 0; k < 2; k++)
		while (recv(ends[k], sink, sizeof(sink), MSG_DONTWAIT) > 0)
			;
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	struct screen s = { .image = { 100, 60, NULL } };
	const struct vnc_seat seat = { &s, look, key, pointer };
	struct vnc_options o = { "0", NULL };
	struct error e;
	struct loop *loop = loop_new(&e);
	struct vnc *v = vnc_open(&o, "fuzz", true, loop, &seat, &e);
	int ends[2];

	log_configure("error", NULL, &e);
	if (!v)
		bug("%s", e.msg);
	v->asks = size && (data[0] & 1);
	for (int k = 0; k < 2; k++) {
		int pair[2];
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair))
			bug("%s", strerror(errno));
		ends[k] = pair[1];
		vnc_add_client(v, pair[0]);
	}
	for (size_t at = 1; at < size;) {
		u8 head = data[at++];
		size_t n = MIN(head & 0x7fu, size - at);
		(void)!send(ends[head >> 7], data + at, n, MSG_NOSIGNAL);
		at += n;
		turn(loop, ends);
	}
	turn(loop, ends);
	vnc_close(v);
	for (int k = 0; k < 2; k++)
		close(ends[k]);
	loop_free(loop);
	free(s.image.pixels);
	return 0;
}
