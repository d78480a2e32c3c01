/* The host's end of a serial line: terminal, file, pty, Unix socket, nothing.
 *
 * Invariants
 *  1. console_write never blocks: what the host does not take at once waits in a ring of
 *     OUT_CAP bytes; a pty or socket without a reader, and a full ring there, drop the oldest.
 *  2. On a terminal the escape is Ctrl-A: x quits, h helps, b sends a break, Ctrl-A itself.
 *  3. The terminal's settings come back on close, and by console_restore_terminal from a
 *     signal handler.
 * Threading: the loop's thread, except console_write and console_ready (any one thread). */
#define LOG_TOPIC "console"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#include "display/display.h"

#define OUT_CAP 65536u
#define IN_CAP 4096u

enum kind { NONE, STDIO, FILE_OUT, PTY, SOCKET };
static const char *const kind_names[] = { "none", "stdio", "file", "pty", "socket" };

struct console {
	enum kind kind;
	struct loop *loop;
	struct console_ops ops;
	int in, out, listener;     /* -1: none */
	bool in_watched, out_watched;
	bool in_pollable, out_pollable;
	bool raw, escape;
	bool lossy;                /* drops when nobody reads */
	char *path;                /* to remove at close: socket, pty link */
	char text[300];
	pthread_mutex_t lock;      /* of the ring */
	u8 ring[OUT_CAP];
	size_t head, used;
	u8 input[IN_CAP];          /* what the guest has not taken yet */
	size_t in_len;
};

/* The terminal's settings are the process's, so they live here once. */
static struct termios saved_terminal;
static _Atomic bool terminal_is_raw;

void console_restore_terminal(void)
{
	if (atomic_exchange(&terminal_is_raw, false))
		tcsetattr(STDIN_FILENO, TCSANOW, &saved_terminal);
}

static void terminal_raw(struct console *c)
{
	if (!isatty(STDIN_FILENO) || atomic_load(&terminal_is_raw) || tcgetattr(STDIN_FILENO, &saved_terminal))
		return;
	struct termios t = saved_terminal;
	cfmakeraw(&t);
	t.c_oflag |= OPOST; /* so that our own messages have line ends */
	atomic_store(&terminal_is_raw, true);
	tcsetattr(STDIN_FILENO, TCSANOW, &t);
	c->raw = true;
}

/* ---- output ------------------------------------------------------------------------------- */

static void ring_drop(struct console *c, size_t n)
{
	c->head = (c->head + n) % OUT_CAP;
	c->used -= n;
}

/* Writes what the host takes now. Ring lock held. False: the other side is gone. */
static bool ring_flush(struct console *c)
{
	while (c->used && c->out >= 0) {
		size_t n = MIN(c->used, OUT_CAP - c->head);
		ssize_t w = write(c->out, c->ring + c->head, n);
		if (w < 0 && errno == EINTR)
			continue;
		if (w < 0)
			return errno == EAGAIN;
		ring_drop(c, (size_t)w);
	}
	return true;
}

static void watch_output(void *arg);

size_t console_write(struct console *c, const u8 *buf, size_t len)
{
	if (c->kind == NONE)
		return len;
	pthread_mutex_lock(&c->lock);
	size_t room = OUT_CAP - c->used;
	if (len > room && c->lossy) {
		ring_drop(c, MIN(c->used, len - room));
		room = OUT_CAP - c->used;
	}
	size_t n = MIN(len, room);
	for (size_t k = 0; k < n; k++)
		c->ring[(c->head + c->used + k) % OUT_CAP] = buf[k];
	c->used += n;
	bool ok = ring_flush(c);
	if (!ok && c->kind != SOCKET)
		c->used = 0; /* a closed pipe or a full disk: nothing that waiting would mend */
	bool wait = c->used && c->out_pollable && !c->out_watched;
	if (wait)
		c->out_watched = true;
	pthread_mutex_unlock(&c->lock);
	if (wait)
		loop_post(c->loop, watch_output, c);
	return n;
}

/* ---- input -------------------------------------------------------------------------------- */

static const char help_text[] =
	"\r\nCtrl-A x  leave    Ctrl-A h  this help    Ctrl-A b  send a break    Ctrl-A Ctrl-A  send Ctrl-A\r\n";

/* Takes escapes out of what the terminal sent; returns what is the guest's. */
static size_t take_escapes(struct console *c, const u8 *in, size_t len, u8 *out)
{
	size_t n = 0;
	for (size_t k = 0; k < len; k++) {
		u8 b = in[k];
		if (!c->escape) {
			if (b == 1)
				c->escape = true;
			else
				out[n++] = b;
			continue;
		}
		c->escape = false;
		if (b == 1)
			out[n++] = b;
		else if ((b == 'x' || b == 'X') && c->ops.quit)
			c->ops.quit(c->ops.arg);
		else if ((b == 'b' || b == 'B') && c->ops.brk)
			c->ops.brk(c->ops.arg);
		else if (b == 'h' || b == 'H' || b == '?')
			(void)!write(STDERR_FILENO, help_text, sizeof(help_text) - 1);
	}
	return n;
}

static void give_input(struct console *c)
{
	size_t n = c->in_len ? c->ops.receive(c->ops.arg, c->input, c->in_len) : 0;
	memmove(c->input, c->input + n, c->in_len - n);
	c->in_len -= n;
}

static void unwatch_input(struct console *c)
{
	if (c->in_watched && c->in == c->out && c->out_watched)
		loop_mod_fd(c->loop, c->in, EPOLLOUT);
	else if (c->in_watched)
		loop_del_fd(c->loop, c->in);
	c->in_watched = false;
}

static void hang_up(struct console *c)
{
	if (c->kind != SOCKET) {
		unwatch_input(c);
		c->in = -1;
		return;
	}
	loop_del_fd(c->loop, c->in);
	pthread_mutex_lock(&c->lock);
	close(c->in);
	c->in = c->out = -1;
	c->in_watched = c->out_watched = false;
	pthread_mutex_unlock(&c->lock);
}

static void read_input(struct console *c)
{
	u8 buf[1024];
	size_t want = MIN(sizeof(buf), IN_CAP - c->in_len);
	ssize_t n = read(c->in, buf, want);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n < 0 && c->kind == PTY)
		return; /* EIO: nobody has it open */
	if (n <= 0) {
		hang_up(c);
		return;
	}
	if (c->raw)
		c->in_len += take_escapes(c, buf, (size_t)n, c->input + c->in_len);
	else {
		memcpy(c->input + c->in_len, buf, (size_t)n);
		c->in_len += (size_t)n;
	}
	give_input(c);
	/* Full: stop reading until the guest takes some; on a terminal go on, so that Ctrl-A x works. */
	if (c->in_len == IN_CAP) {
		if (c->raw)
			c->in_len = IN_CAP / 2;
		else
			unwatch_input(c);
	}
}

static void on_fd(void *arg, u32 events)
{
	struct console *c = arg;
	if (events & EPOLLOUT) {
		pthread_mutex_lock(&c->lock);
		bool alive = ring_flush(c), empty = !c->used;
		if (!alive)
			c->used = 0;
		if (empty || !alive)
			c->out_watched = false;
		pthread_mutex_unlock(&c->lock);
		if (!c->out_watched) {
			if (c->out == c->in && c->in_watched)
				loop_mod_fd(c->loop, c->out, EPOLLIN);
			else
				loop_del_fd(c->loop, c->out);
		}
		if (c->ops.writable)
			c->ops.writable(c->ops.arg);
	}
	if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && c->in >= 0 && c->in_watched)
		read_input(c);
}

static void watch_output(void *arg)
{
	struct console *c = arg;
	struct error e;
	if (c->out < 0)
		return;
	if (c->out == c->in && c->in_watched)
		loop_mod_fd(c->loop, c->out, EPOLLIN | EPOLLOUT);
	else if (!loop_add_fd(c->loop, c->out, EPOLLOUT, on_fd, c, &e))
		c->out_watched = false;
}

static void watch_input(struct console *c)
{
	struct error e;
	if (c->in < 0 || c->in_watched || !c->ops.receive)
		return;
	if (c->in == c->out && c->out_watched) {
		loop_mod_fd(c->loop, c->in, EPOLLIN | EPOLLOUT);
		c->in_watched = true;
	} else {
		/* A regular file or /dev/null as standard input cannot be polled: no input then. */
		c->in_watched = loop_add_fd(c->loop, c->in, EPOLLIN, on_fd, c, &e);
	}
}

static void ready_on_loop(void *arg)
{
	struct console *c = arg;
	give_input(c);
	if (c->in_len < IN_CAP)
		watch_input(c);
}
void console_ready(struct console *c)
{
	if (c->in_len)
		loop_post(c->loop, ready_on_loop, c);
}

/* ---- kinds ---------------------------------------------------------------------------------- */

static bool open_stdio(struct console *c)
{
	terminal_raw(c);
	c->in = STDIN_FILENO;
	c->out = STDOUT_FILENO;
	struct pollfd p = { .fd = c->out, .events = POLLOUT };
	c->out_pollable = poll(&p, 1, 0) >= 0;
	snprintf(c->text, sizeof(c->text), "%s", c->raw ? "this terminal (Ctrl-A h for help)" : "standard input and output");
	return true;
}

static bool open_file(struct console *c, const char *path, struct error *e)
{
	if (!path)
		return error_set(e, "file: needs path=FILE");
	c->out = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, 0644);
	if (c->out < 0)
		return error_set(e, "file %s: cannot be written: %s", path, strerror(errno));
	snprintf(c->text, sizeof(c->text), "file %s", path);
	return true;
}

static bool open_pty(struct console *c, const char *link, struct error *e)
{
	char name[128];
	c->in = c->out = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	if (c->in < 0 || grantpt(c->in) || unlockpt(c->in) || ptsname_r(c->in, name, sizeof(name)))
		return error_set(e, "pty: cannot make one: %s", strerror(errno));
	int slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
	struct termios t;
	if (slave >= 0 && !tcgetattr(slave, &t)) {
		cfmakeraw(&t);
		tcsetattr(slave, TCSANOW, &t);
	}
	/* Kept open, so that the master does not hang up when a reader leaves. */
	c->listener = slave;
	if (link) {
		unlink(link);
		if (symlink(name, link))
			return error_set(e, "pty %s: cannot make the link: %s", link, strerror(errno));
		c->path = strdup(link);
	}
	c->lossy = c->out_pollable = true;
	snprintf(c->text, sizeof(c->text), "pty %s%s%s", name, link ? " = " : "", link ? link : "");
	fprintf(stderr, "serial: %s\n", c->text);
	return true;
}

static void on_connect(void *arg, u32 events)
{
	struct console *c = arg;
	(void)events;
	int fd = accept4(c->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd < 0)
		return;
	if (c->in >= 0) {
		close(fd); /* one reader at a time */
		return;
	}
	pthread_mutex_lock(&c->lock);
	c->in = c->out = fd;
	pthread_mutex_unlock(&c->lock);
	watch_input(c);
	console_write(c, NULL, 0);
}

static bool open_socket(struct console *c, const char *path, struct error *e)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	if (!path || strlen(path) >= sizeof(a.sun_path))
		return error_set(e, "socket: needs path=FILE of at most %zu characters", sizeof(a.sun_path) - 1);
	strcpy(a.sun_path, path);
	c->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (c->listener < 0 || bind(c->listener, (struct sockaddr *)&a, sizeof(a)) || listen(c->listener, 1))
		return error_set(e, "socket %s: %s%s", path, strerror(errno), errno == EADDRINUSE ? " (remove the file if no other machine uses it)" : "");
	c->path = strdup(path);
	c->lossy = c->out_pollable = true;
	snprintf(c->text, sizeof(c->text), "socket %s", path);
	return loop_add_fd(c->loop, c->listener, EPOLLIN, on_connect, c, e);
}

struct console *console_open(const char *kind, const char *path, struct loop *loop,
			     const struct console_ops *ops, struct error *e)
{
	struct console *c = calloc(1, sizeof(*c));
	if (!c) {
		error_set(e, "out of memory");
		return NULL;
	}
	c->loop = loop;
	c->ops = *ops;
	c->in = c->out = c->listener = -1;
	pthread_mutex_init(&c->lock, NULL);
	snprintf(c->text, sizeof(c->text), "none");
	size_t k = 0;
	while (k < ARRAY_LEN(kind_names) && strcmp(kind, kind_names[k]))
		k++;
	bool ok = true;
	if (k == ARRAY_LEN(kind_names)) {
		const char *near = nearest_word(kind, kind_names, ARRAY_LEN(kind_names));
		ok = error_set(e, "%s: no such kind; %s%s", kind, near ? "did you mean " : "one of stdio, file, pty, socket, none",
			       near ? near : "");
	} else {
		c->kind = (enum kind)k;
		switch (c->kind) {
		case NONE: break;
		case STDIO: ok = open_stdio(c); break;
		case FILE_OUT: ok = open_file(c, path, e); break;
		case PTY: ok = open_pty(c, path, e); break;
		case SOCKET: ok = open_socket(c, path, e); break;
		}
	}
	if (!ok) {
		console_close(c);
		return NULL;
	}
	watch_input(c);
	return c;
}

const char *console_describe(const struct console *c) { return c->text; }

void console_close(struct console *c)
{
	for (int tries = 0; c->used && c->out >= 0 && tries < 100; tries++) {
		struct pollfd p = { .fd = c->out, .events = POLLOUT };
		poll(&p, 1, 10);
		if (!ring_flush(c))
			break;
	}
	if (c->in_watched || c->out_watched) {
		loop_del_fd(c->loop, c->in >= 0 && c->in_watched ? c->in : c->out);
	}
	if (c->raw)
		console_restore_terminal();
	if (c->kind == SOCKET && c->listener >= 0)
		loop_del_fd(c->loop, c->listener);
	if (c->kind != STDIO && c->out >= 0)
		close(c->out);
	if (c->listener >= 0)
		close(c->listener);
	if (c->path)
		unlink(c->path);
	free(c->path);
	pthread_mutex_destroy(&c->lock);
	free(c);
}
