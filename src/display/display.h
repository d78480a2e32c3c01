/* display: what a person or a program sees of a machine: terminals, files, ptys, sockets
 * behind a serial port (console.c); a screen as text or as a picture (screen.c); keys (keys.c). */
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

#endif
