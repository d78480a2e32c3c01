/* The VNC server, private to vnc*.c: vnc.c listens and looks at the screen, vnc_client.c reads what
 * viewers send, vnc_send.c writes what they see, vnc_auth.c knows the password.
 *
 * The protocol is RFB 3.8 (RFC 6143), with 3.3 and 3.7 for old viewers; numbers in comments are its sections.
 *
 * Why not neatvnc. Its release in Debian 12, 0.5.4, can ask for a password only inside TLS with a
 * certificate (VeNCrypt X509Plain, no "VNC authentication"), lets a viewer in that answers the offer of that
 * with the security type "none" (CVE-2024-42458: tried, it is so), and has no relative pointer, without which
 * a PS/2 mouse is of little use.
 *
 * Invariants
 *  1. A viewer's message is carried out when it is there as a whole, or in pieces of fixed size; in never
 *     holds more than the longest of those.
 *  2. An update is made only when the last one has left: out is bounded by the picture's size.
 *  3. Nothing is sent of the screen, and no key taken, before the handshake is through (VNC_RUNS).
 *  4. dirty is a byte for each tile of what this viewer was told is the screen's size.
 *  5. A client is freed in sweep alone (vnc.c), at the end of what the loop called: vnc_drop marks it.
 * Threading: the loop's thread. */
#ifndef RING3_VNC_IMPL_H
#define RING3_VNC_IMPL_H

#include <zlib.h>

#include "display/display.h"

#define VNC_CLIENTS 8
#define VNC_TILE_W 64u
#define VNC_TILE_H 16u
#define VNC_CHALLENGE 16u
#define VNC_PASSWORD 8u

enum vnc_state {
	VNC_VERSION, VNC_SECURITY, VNC_RESPONSE, VNC_REFUSED /* waits before it says so */, VNC_INIT, VNC_RUNS
};

/* 7.4: how a viewer wants its pixels; and from that, what each level of a colour adds to a pixel. */
struct vnc_format {
	u8 bytes;                  /* of a pixel: 1, 2, 4 */
	bool big_endian;
	u8 packed_at, packed;      /* ZRLE's CPIXEL, 7.7.6: bytes from packed_at on of those above */
	u32 level[3][256];         /* red, green, blue */
};

struct vnc_client {
	struct vnc *vnc;
	int fd;                    /* -1: nobody */
	bool gone;
	enum vnc_state state;
	int minor;                 /* of the protocol's version: 3, 7, 8 */
	u64 deadline;              /* ns, CLOCK_MONOTONIC: of the handshake; of a refusal */
	u8 challenge[VNC_CHALLENGE];
	/* in */
	u8 in[64];
	size_t n_in;
	u64 skip;                  /* bytes of a text that nobody reads */
	u32 encodings_left;        /* of a list that is being read */
	/* what it can do */
	struct vnc_format format;
	bool zrle, resizes, extended_keys, relative;
	bool tell_extended_keys, tell_relative, tell_palette;
	/* out */
	u8 *out;
	size_t n_out, cap, sent;
	z_stream z;
	bool z_open;
	/* what it sees */
	u32 width, height;         /* as it was told */
	u8 *dirty;
	bool wants;                /* has asked for an update */
	u32 want[4];               /* of x, y, to x, y */
	/* what it does */
	bool placed;               /* x, y: where its pointer was */
	int x, y;
	u8 buttons;
	struct { u32 from; u16 code; } held[16]; /* keys that are down, by keysym or by number; code 0: a free place */
};

struct vnc {
	struct loop *loop;
	struct vnc_seat seat;
	const char *name;
	int listener, timer;       /* -1: none */
	char text[160], path[108]; /* path: a Unix socket that is ours to remove */
	bool asks;                 /* for the password */
	u8 password[VNC_PASSWORD];
	struct vnc_client client[VNC_CLIENTS];
	/* the screen as it was when last looked at */
	struct screen_image frame;
	u64 looked_at, changed_at; /* ns */
};

static inline u32 vnc_columns(const struct vnc_client *c) { return (c->width + VNC_TILE_W - 1) / VNC_TILE_W; }
static inline u32 vnc_rows(const struct vnc_client *c) { return (c->height + VNC_TILE_H - 1) / VNC_TILE_H; }

/* vnc.c */
bool vnc_look(struct vnc *v);                      /* frame, and every viewer's dirty tiles; false: there is no picture */
void vnc_drop(struct vnc_client *c);
u64 vnc_now(void);                                 /* ns */
/* A viewer at the other end of fd, which becomes the server's. False: no place for it. */
bool vnc_add_client(struct vnc *v, int fd);
/* vnc_client.c */
void vnc_greet(struct vnc_client *c);
void vnc_receive(struct vnc_client *c);            /* what there is */
void vnc_refuse(struct vnc_client *c);             /* the password was wrong; its time has come */
void vnc_release_keys(struct vnc_client *c);
/* vnc_send.c */
void vnc_put(struct vnc_client *c, const void *data, size_t len);
void vnc_put8(struct vnc_client *c, u32 v);
void vnc_put16(struct vnc_client *c, u32 v);
void vnc_put32(struct vnc_client *c, u32 v);
void vnc_flush(struct vnc_client *c);              /* as much as the socket takes */
bool vnc_set_size(struct vnc_client *c, u32 width, u32 height); /* all of it is dirty */
void vnc_update(struct vnc_client *c);             /* if it wants one and there is something to say */
/* raw: 16 bytes, 7.4. False: no pixel can be like that. */
bool vnc_set_format(struct vnc_client *c, const u8 *raw);
void vnc_put_format(struct vnc_client *c);         /* the server's own */
/* vnc_auth.c */
bool vnc_read_password(const char *path, u8 password[VNC_PASSWORD], struct error *e);
bool vnc_make_challenge(u8 challenge[VNC_CHALLENGE]);
bool vnc_response_is_right(const u8 password[VNC_PASSWORD], const u8 challenge[VNC_CHALLENGE], const u8 response[VNC_CHALLENGE]);

#endif
