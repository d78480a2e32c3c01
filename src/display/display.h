/* display: what a person or a program sees of a machine: terminals, files, ptys, sockets
 * behind a serial port (console.c); a screen as text or as a picture (screen.c); keys (keys.c);
 * a screen, keyboard and mouse for VNC viewers (vnc*.c). */
#ifndef RING3_DISPLAY_H
#define RING3_DISPLAY_H

#include "base/base.h"

/* One end of a serial line on the host. */
struct console;
struct console_ops {
	/* Host to guest; returns bytes taken; the rest is offered again after console_ready(). */
	size_t (*receive)(void *arg, const u8 *buf, size_t len);
	/* The host side can take more output. */
	void (*writable)(void *arg);
	/* Ctrl-A x on a terminal. */
	void (*quit)(void *arg);
	void (*brk)(void *arg);  /* Ctrl-A b: a serial break */
	/* Ctrl-A s: the screen as text, or why there is none; malloced. NULL: no memory. */
	char *(*screen)(void *arg);
	void *arg;
};
/* dry_run: nothing is opened, made or changed: console_describe works, what is written vanishes,
 * and a file that cannot be written is an error where that can be seen.
 * kind: "stdio" (terminal raw with Ctrl-A escapes, or a pipe as it is), "file", "pty", "socket",
 * "none". Everything runs on the loop's thread, except console_write. */
struct console *console_open(const char *kind, const char *path, bool dry_run, struct loop *loop,
			     const struct console_ops *ops, struct error *e);
/* Guest to host. Never blocks; returns bytes taken (buffers up to 64 KiB for a slow reader; a
 * socket or pty without a reader drops). Any thread, but one at a time. */
size_t console_write(struct console *c, const u8 *buf, size_t len);
void console_ready(struct console *c);  /* the guest has room for input again; any thread */
bool console_is_terminal(const struct console *c);
const char *console_describe(const struct console *c); /* "pty /dev/pts/3" */
/* Flushes what is buffered (waits at most a second), restores the terminal. */
void console_close(struct console *c);
/* Restores the terminal at once: async-signal-safe, for crashes. */
void console_restore_terminal(void);
/* After a stop: who had the terminal meanwhile has set it as they like. Async-signal-safe. */
void console_raw_again(void);
/* Forks a process that restores it if this one is killed. Before there are threads, and before
 * console_open; nothing if standard input is no terminal. */
void console_guard_terminal(void);

/* ---- screens (screen.c) ------------------------------------------------------------------ */

/* A text screen: cells row by row, the character in the low byte (code page 437), its attribute
 * in the high one. Whoever fills it mallocs the cells; the caller frees them. */
struct screen_text { u32 columns, rows, cursor; u16 *cells; }; /* cursor: a cell's number, or UINT32_MAX */
/* A picture: 0xRRGGBB, row by row; as above. */
struct screen_image { u32 width, height; u32 *pixels; };

/* The rows as UTF-8, a newline after each, without the blanks at their ends; malloced, NULL: no memory. */
char *screen_text_utf8(const struct screen_text *t);
/* As a PNG file of *len bytes; malloced, NULL: e says why. */
u8 *screen_image_png(const struct screen_image *s, size_t *len, struct error *e);

/* ---- keys (keys.c) ------------------------------------------------------------------------- */

/* What a PS/2 keyboard (scan code set 2) sends for keys that are pressed together and let go, as in
 * "a", "A", "ctrl-alt-delete", "f12", "enter". NULL: no such key, and e says which is near. */
#define KEY_BYTES_MAX 64
struct key_bytes { u8 make[KEY_BYTES_MAX], release[KEY_BYTES_MAX]; size_t n_make, n_release; };
bool key_parse(const char *text, struct key_bytes *k, struct error *e);
/* The name for key_parse of an ASCII character that a key types; NULL: none does. buf: 2 bytes. */
const char *key_of_char(char c, char *buf);

/* One key is known by its code in set 2, e0xx with the prefix; two have codes here that they send more for. */
enum { KEY_PRINT = 0xe07c, KEY_PAUSE = 0xe114, KEY_LEFT_SHIFT = 0x12, KEY_RIGHT_SHIFT = 0x59 };
#define KEY_CODE_BYTES 8
size_t key_code_bytes(u16 code, bool down, u8 *to); /* what it sends, at most KEY_CODE_BYTES; how many */
/* By its code in set 1, with bit 7 for the prefix e0, as VNC's extended key events have it. 0: no such key. */
u16 key_of_set1(u8 code);
/* By an X11 keysym; *shift: how shift must be for it to type that character. 0: no key of a US keyboard. */
enum key_shift { KEY_SHIFT_ANY, KEY_SHIFT_UP, KEY_SHIFT_DOWN };
u16 key_of_keysym(u32 keysym, enum key_shift *shift);

/* ---- VNC (vnc*.c) ---------------------------------------------------------------------------- */

struct vnc_options {
	char *at;            /* [ADDRESS:]PORT, or the path of a Unix socket; NULL: no server */
	char *password_file; /* its first line; NULL: none is asked for */
};
#define VNC_KEYS(type, member) \
	{ "at", KV_STR, offsetof(type, member.at), "[ADDRESS:]PORT, 127.0.0.1 unless said otherwise, port 0: any that is free; or a Unix socket's path" }, \
	{ "password-file", KV_STR, offsetof(type, member.password_file), "its first line is the password; 8 characters count" }
/* What viewers look at and touch; called on the loop's thread. */
struct vnc_seat {
	void *arg;
	/* The picture as it is now, and a byte for each line: whether it may have changed since the last call.
	 * Valid until the next call; NULL: there is none now. */
	const struct screen_image *(*look)(void *arg, const u8 **changed);
	void (*key)(void *arg, u16 code, bool down);
	/* Counts to the right and down, turns of the wheel towards the user; buttons: 1 left, 2 right, 4 middle, 8, 16. */
	void (*pointer)(void *arg, int dx, int dy, int wheel, unsigned buttons);
};
struct vnc;
/* name: what viewers show as title. dry_run: only looks whether the options make sense. Loop's thread, as vnc_close. */
struct vnc *vnc_open(const struct vnc_options *o, const char *name, bool dry_run, struct loop *loop, const struct vnc_seat *seat,
		     struct error *e);
const char *vnc_describe(const struct vnc *v); /* "127.0.0.1:5900" */
void vnc_close(struct vnc *v);

#endif
