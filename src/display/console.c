/* The host's end of a serial line: terminal, file, pty, Unix socket, nothing.
 *
 * Invariants
 *  1. No call here blocks: console_write runs with the machine lock held, and the loop's thread
 *     is the one that ends the machine. What the host does not take at once waits in a ring of
 *     OUT_CAP bytes; when that is full, the guest waits, but a pty or socket, which need not
 *     have a reader, drops the oldest.
 *  2. Standard output is shared with others, so its O_NONBLOCK is not ours to set: it is opened
 *     once more, or each write is preceded by a look whether it would block.
 *  3. What the loop watches is changed on its own thread only (update_watch), from what there is
 *     to read and write then; other threads post that.
 *  4. A socket's client that leaves while the guest takes no input is `gone`: no longer watched,
 *     since its hang-up would be told without end. What it sent is kept until the guest takes it
 *     or another client comes.
 *  5. On a terminal the escape is Ctrl-A: x quits, h helps, s shows the screen, b sends a break, Ctrl-A itself.
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
#include <sys/stat.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#include "display/display.h"
#include "display/terminal.h"

#define OUT_CAP 65536u
#define IN_CAP 4096u
#define POLLED_CHUNK 64u /* a terminal that polls writable may have little more room */

enum kind { NONE, STDIO, FILE_OUT, PTY, SOCKET };
static const char *const kind_names[] = { "none", "stdio", "file", "pty", "socket" };

/* How writing is kept from blocking: a regular file does not; O_NONBLOCK; MSG_DONTWAIT; poll. */
enum out_how { OUT_PLAIN, OUT_NONBLOCK, OUT_SEND, OUT_POLLED };

struct console {
	enum kind kind;
	struct loop *loop;
	struct console_ops ops;
	int in, out, listener;     /* -1: none */
	bool out_owned;            /* stdio: `out` is a descriptor of ours */
	enum out_how out_how;
	u32 in_events, out_events; /* what the loop watches; in == out: in_events is of both */
	bool raw, escape;
	bool gone;                 /* invariant 4 */
	bool lossy;                /* drops when nobody reads */
	char *path;                /* to remove at close: socket, pty link */
	char text[300];
	pthread_mutex_t lock;      /* of the ring and of what follows, to `used` */
	bool update_posted;
	bool complained;
	u8 ring[OUT_CAP];
	size_t head, used;
	u8 input[IN_CAP];          /* what the guest has not taken yet */
	size_t in_len;
	_Atomic bool in_waits;     /* input is there that the guest had no room for */
};

/* ---- output ------------------------------------------------------------------------------- */

static void ring_drop(struct console *c, size_t n)
{
	c->head = (c->head + n) % OUT_CAP;
	c->used -= n;
}

static ssize_t host_write(const struct console *c, const u8 *p, size_t n)
{
	if (c->out_how == OUT_SEND)
		return send(c->out, p, n, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (c->out_how == OUT_POLLED) {
		struct pollfd f = { .fd = c->out, .events = POLLOUT };
		if (poll(&f, 1, 0) <= 0) {
			errno = EAGAIN;
			return -1;
		}
		n = MIN(n, POLLED_CHUNK);
	}
	return write(c->out, p, n);
}

/* Writes what the host takes now. Lock held. False: the other side is gone. */
static bool ring_flush(struct console *c)
{
	while (c->used && c->out >= 0) {
		ssize_t w = host_write(c, c->ring + c->head, MIN(c->used, OUT_CAP - c->head));
		if (w < 0 && errno == EINTR)
			continue;
		if (w < 0 && errno == EAGAIN)
			return true;
		if (w < 0) {
			/* A closed pipe, a full disk: nothing that waiting would mend. A socket's next reader gets it. */
			if (!c->complained && c->kind != SOCKET)
				log_warn("%s: %m; the guest's output is lost", c->text);
			c->complained = true;
			if (c->kind != SOCKET)
				c->used = 0;
			return false;
		}
		c->complained = false;
		ring_drop(c, (size_t)w);
	}
	return true;
}

static void update_posted(void *arg);

/* Lock held. */
static void post_update(struct console *c)
{
	if (c->update_posted)
		return;
	c->update_posted = true;
	loop_post(c->loop, update_posted, c);
}

size_t console_write(struct console *c, const u8 *buf, size_t len)
{
	if (c->kind == NONE)
		return len;
	pthread_mutex_lock(&c->lock);
	if (len > OUT_CAP - c->used)
		ring_flush(c);
	size_t room = OUT_CAP - c->used;
	if (len > room && c->lossy) {
		ring_drop(c, MIN(c->used, len - room));
		room = OUT_CAP - c->used;
	}
	size_t n = MIN(len, room);
	for (size_t k = 0; k < n; k++)
		c->ring[(c->head + c->used + k) % OUT_CAP] = buf[k];
	c->used += n;
	ring_flush(c);
	u32 watched = c->in == c->out ? c->in_events : c->out_events;
	if (c->used && c->out >= 0 && c->out_how != OUT_PLAIN && !(watched & EPOLLOUT))
		post_update(c);
	pthread_mutex_unlock(&c->lock);
	return n;
}

/* ---- input -------------------------------------------------------------------------------- */

static const char help_text[] =
	"\r\nCtrl-A x  leave    Ctrl-A h  this help    Ctrl-A s  show the screen    Ctrl-A b  send a break    Ctrl-A Ctrl-A  send Ctrl-A\r\n";

/* The screen as text, between the lines of the console. */
static void show_screen(struct console *c)
{
	char *text = c->ops.screen ? c->ops.screen(c->ops.arg) : NULL;

	for (size_t len = text ? strlen(text) : 0; len && text[len - 1] == '\n'; len--)
		text[len - 1] = 0;
	if (text)
		dprintf(STDERR_FILENO, "\n%s\n", text);
	free(text);
}

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
		else if (b == 's' || b == 'S')
			show_screen(c);
		else if (b == 'h' || b == 'H' || b == '?')
			(void)!write(STDERR_FILENO, help_text, sizeof(help_text) - 1);
	}
	return n;
}

static void give_input(struct console *c)
{
	if (!c->in_len)
		return;
	/* Before the attempt: room that comes up right after it is told to console_ready. */
	atomic_store(&c->in_waits, true);
	size_t n = c->ops.receive(c->ops.arg, c->input, c->in_len);
	memmove(c->input, c->input + n, c->in_len - n);
	c->in_len -= n;
	if (!c->in_len)
		atomic_store(&c->in_waits, false);
}

static void on_in(void *arg, u32 events);
static void on_out(void *arg, u32 events);
static void on_both(void *arg, u32 events);

/* Makes the loop watch fd for `want`. */
static void watch(struct console *c, int fd, loop_fd_fn *fn, u32 *now, u32 want)
{
	struct error e;
	if (*now == want)
		return;
	if (!want)
		loop_del_fd(c->loop, fd);
	else if (*now)
		loop_mod_fd(c->loop, fd, want);
	else if (!loop_add_fd(c->loop, fd, want, fn, c, &e))
		want = 0;
	*now = want;
}

static void update_watch(struct console *c)
{
	pthread_mutex_lock(&c->lock);
	c->update_posted = false;
	u32 out = c->used && c->out >= 0 && c->out_how != OUT_PLAIN && !c->gone ? EPOLLOUT : 0;
	/* A terminal is read also when the guest takes nothing, so that Ctrl-A x works. */
	u32 in = c->in >= 0 && c->ops.receive && (c->raw || c->in_len < IN_CAP) ? EPOLLIN : 0;
	if (c->kind == SOCKET && c->in >= 0 && !in && !c->gone)
		in = EPOLLRDHUP;
	if (c->in == c->out) {
		watch(c, c->in, on_both, &c->in_events, in | out);
	} else {
		watch(c, c->in, on_in, &c->in_events, in);
		watch(c, c->out, on_out, &c->out_events, out);
	}
	pthread_mutex_unlock(&c->lock);
}

static void update_posted(void *arg) { update_watch(arg); }

/* No more input: the end of a pipe, a socket's reader who left. */
static void hang_up(struct console *c)
{
	pthread_mutex_lock(&c->lock);
	watch(c, c->in, on_in, &c->in_events, 0);
	if (c->kind == SOCKET) {
		close(c->in);
		c->out = -1;
		c->gone = false;
	}
	c->in = -1;
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
	/* A terminal goes on being read: what no guest takes is dropped. */
	if (c->in_len == IN_CAP && c->raw)
		c->in_len = IN_CAP / 2;
}

static void on_out(void *arg, u32 events)
{
	struct console *c = arg;
	(void)events;
	pthread_mutex_lock(&c->lock);
	ring_flush(c);
	pthread_mutex_unlock(&c->lock);
	update_watch(c);
	if (c->ops.writable)
		c->ops.writable(c->ops.arg);
}

static void on_in(void *arg, u32 events)
{
	struct console *c = arg;
	(void)events;
	if (c->in >= 0)
		read_input(c);
	update_watch(c);
}

static void on_both(void *arg, u32 events)
{
	struct console *c = arg;
	if ((events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) && c->kind == SOCKET && c->in_len == IN_CAP) {
		c->gone = true;
		update_watch(c);
		return;
	}
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		on_in(arg, events);
	if (events & EPOLLOUT)
		on_out(arg, events);
}

static void ready_on_loop(void *arg)
{
	struct console *c = arg;
	give_input(c);
	update_watch(c);
}
void console_ready(struct console *c)
{
	if (atomic_load(&c->in_waits))
		loop_post(c->loop, ready_on_loop, c);
}

/* ---- kinds ---------------------------------------------------------------------------------- */

/* Finds a way to write to c->out without blocking; fd: what is to be written to. */
static void choose_output(struct console *c, int fd)
{
	struct stat st;
	c->out = fd;
	c->out_how = OUT_PLAIN;
	if (fstat(fd, &st))
		c->out = -1;
	else if (S_ISSOCK(st.st_mode))
		c->out_how = OUT_SEND;
	else if (!S_ISREG(st.st_mode)) {
		char name[32];
		snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
		int again = open(name, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
		c->out_how = again >= 0 ? OUT_NONBLOCK : OUT_POLLED;
		c->out_owned = again >= 0;
		if (again >= 0)
			c->out = again;
	}
}

static bool open_stdio(struct console *c)
{
	c->raw = terminal_make_raw();
	c->in = STDIN_FILENO;
	choose_output(c, STDOUT_FILENO);
	snprintf(c->text, sizeof(c->text), "%s", c->raw ? "this terminal (Ctrl-A h for help)" : "standard input and output");
	return true;
}

static bool no_path(struct error *e) { return error_set(e, "file: needs path=FILE"); }

static bool open_file(struct console *c, const char *path, struct error *e)
{
	if (!path)
		return no_path(e);
	/* O_NONBLOCK: a FIFO without a reader is an error, not a wait. */
	c->out = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0644);
	if (c->out < 0)
		return error_set(e, "file %s: cannot be written: %s%s", path, strerror(errno), errno == ENXIO ? " (a FIFO that nobody reads)" : "");
	struct stat st;
	c->out_how = !fstat(c->out, &st) && S_ISREG(st.st_mode) ? OUT_PLAIN : OUT_NONBLOCK;
	snprintf(c->text, sizeof(c->text), "file %s", path);
	return true;
}

/* A link of an earlier run may be replaced; a user's file may not. */
static bool make_link(const char *target, const char *link, struct error *e)
{
	struct stat st;
	if (!lstat(link, &st) && S_ISLNK(st.st_mode))
		unlink(link);
	return !symlink(target, link) || error_set(e, "pty %s: cannot make the link: %s", link, strerror(errno));
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
	if (link && !make_link(name, link, e))
		return false;
	c->path = link ? strdup(link) : NULL;
	if (link)
		leftover_add(link);
	c->lossy = true;
	c->out_how = OUT_NONBLOCK;
	snprintf(c->text, sizeof(c->text), "pty %s%s%s", name, link ? " = " : "", link ? link : "");
	return true;
}

static void on_connect(void *arg, u32 events)
{
	struct console *c = arg;
	(void)events;
	int fd = accept4(c->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd < 0)
		return;
	if (c->gone)
		hang_up(c);
	if (c->in >= 0) {
		close(fd); /* one reader at a time */
		return;
	}
	pthread_mutex_lock(&c->lock);
	c->in = c->out = fd;
	ring_flush(c);
	pthread_mutex_unlock(&c->lock);
	update_watch(c);
}

static bool open_socket(struct console *c, const char *path, struct error *e)
{
	if (!path)
		return error_set(e, "socket: needs path=FILE");
	c->listener = listen_at_path(path, 1, e);
	if (c->listener < 0)
		return error_prefix(e, "socket");
	c->path = strdup(path);
	c->lossy = true;
	c->out_how = OUT_SEND;
	snprintf(c->text, sizeof(c->text), "socket %s", path);
	return loop_add_fd(c->loop, c->listener, EPOLLIN, on_connect, c, e);
}

static bool open_kind(struct console *c, const char *path, struct error *e)
{
	switch (c->kind) {
	case STDIO: return open_stdio(c);
	case FILE_OUT: return open_file(c, path, e);
	case PTY: return open_pty(c, path, e);
	case SOCKET: return open_socket(c, path, e);
	default: return true;
	}
}

static bool open_dry(struct console *c, const char *path, struct error *e)
{
	const char *name = kind_names[c->kind];
	bool is_file = c->kind == FILE_OUT;

	snprintf(c->text, sizeof(c->text), "%s%s%s", name, path ? " " : "", path ? path : "");
	c->kind = NONE;
	if (is_file && !path)
		return no_path(e);
	return !is_file || file_check_writable("file", path, e);
}

struct console *console_open(const char *kind, const char *path, bool dry_run, struct loop *loop,
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
		ok = dry_run ? open_dry(c, path, e) : open_kind(c, path, e);
	}
	if (!ok) {
		console_close(c);
		return NULL;
	}
	update_watch(c);
	return c;
}

bool console_is_terminal(const struct console *c) { return c->raw; }

const char *console_describe(const struct console *c) { return c->text; }

void console_close(struct console *c)
{
	pthread_mutex_lock(&c->lock);
	for (int tries = 0; c->used && c->out >= 0 && tries < 100; tries++) {
		struct pollfd p = { .fd = c->out, .events = POLLOUT };
		poll(&p, 1, 10);
		if (!ring_flush(c))
			break;
	}
	pthread_mutex_unlock(&c->lock);
	watch(c, c->in, on_in, &c->in_events, 0);
	watch(c, c->out, on_out, &c->out_events, 0);
	if (c->raw)
		console_restore_terminal();
	if (c->kind == SOCKET && c->listener >= 0)
		loop_del_fd(c->loop, c->listener);
	if (c->out >= 0 && (c->kind != STDIO || c->out_owned))
		close(c->out);
	if (c->listener >= 0)
		close(c->listener);
	if (c->path)
		leftover_remove(c->path);
	free(c->path);
	pthread_mutex_destroy(&c->lock);
	free(c);
}
