/* The control socket: a Unix socket by the machine's name, in a folder that is the user's alone.
 * A client sends a line, and gets "ok LENGTH\n" and so many bytes, or "error TEXT\n"; again and
 * again, as it likes. Commands are below, in one table.
 *
 * Invariants
 *  1. Nothing here waits for a client: an answer is sent as it can be taken, and no command is
 *     read before the last answer is gone.
 *  2. The client does what touches files: an answer may be a picture, but the machine writes none; a
 *     file that the machine is to read comes as a descriptor, with its command.
 * Threading: the loop's thread. */
#define LOG_TOPIC "control"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "control/control.h"

#define CLIENTS 8
#define LINE_MAX_LEN 4096u

struct client {
	struct control *c;
	int fd;                  /* -1: nobody */
	char line[LINE_MAX_LEN];
	size_t n_line;
	int file;                /* a descriptor that came with it, or -1 */
	char *out;               /* the answer, from at on */
	size_t n_out, at;
};
struct control {
	struct machine *m;
	int listener;
	char path[108];
	struct client clients[CLIENTS];
};

/* ---- commands -------------------------------------------------------------------------------- */

struct answer { char *data; size_t len; int file; }; /* file: what came with the command, or -1 */

static bool say(struct answer *a, const char *text)
{
	a->data = strdup(text);
	a->len = a->data ? strlen(text) : 0;
	return true;
}

static bool do_status(struct machine *m, const char *arg, struct answer *a, struct error *e)
{
	return say(a, machine_is_paused(m) ? "paused\n" : "running\n");
}

static bool do_pause(struct machine *m, const char *arg, struct answer *a, struct error *e)
{
	machine_pause(m);
	return true;
}

static bool do_resume(struct machine *m, const char *arg, struct answer *a, struct error *e)
{
	machine_resume(m);
	return true;
}

static bool do_reset(struct machine *m, const char *arg, struct answer *a, struct error *e)
{
	machine_reset(m);
	return true;
}

static bool do_powerdown(struct machine *m, const char *arg, struct answer *a, struct error *e)
{
	machine_power_button(m);
	return true;
}

static bool do_stop(struct machine *m, const char *arg, struct answer *a, struct error *e)
{
	machine_quit(m);
	return true;
}

static bool do_screen(struct machine *m, const char *arg, struct answer *a, struct error *e)
{
	a->data = machine_screen_text(m, e);
	a->len = a->data ? strlen(a->data) : 0;
	return a->data != NULL;
}

static bool do_screenshot(struct machine *m, const char *arg, struct answer *a, struct error *e)
{
	struct screen_image s;

	if (!machine_screen_image(m, &s, e))
		return false;
	a->data = (char *)screen_image_png(&s, &a->len, e);
	free(s.pixels);
	return a->data != NULL;
}

static bool do_press(struct machine *m, const char *arg, struct answer *a, struct error *e)
{
	char keys[LINE_MAX_LEN], *rest = keys, *word;

	for (strcpy(keys, arg); (word = strsep(&rest, " "));)
		if (*word && !machine_press(m, word, e))
			return false;
	return *arg || error_set(e, "press: which key? as in press ctrl-alt-delete, or press down down enter");
}

static bool do_type(struct machine *m, const char *arg, struct answer *a, struct error *e)
{
	return machine_type(m, arg, e);
}

static bool do_mouse(struct machine *m, const char *arg, struct answer *a, struct error *e)
{
	int dx, dy, wheel = 0;
	unsigned buttons = 0;

	if (sscanf(arg, "%d %d %u %d", &dx, &dy, &buttons, &wheel) < 2)
		return error_set(e, "mouse: counts to the right and up, then buttons, then turns of the wheel, as in mouse 10 -5 1");
	return machine_mouse(m, dx, dy, wheel, buttons, e);
}

static bool do_balloon(struct machine *m, const char *arg, struct answer *a, struct error *e)
{
	u64 bytes, asked, given;
	char text[80];

	if (*arg)
		return parse_size(arg, &bytes) ? machine_set_balloon(m, bytes, e)
					       : error_set(e, "balloon %s: not a size; as in 256M, or 0", arg);
	if (!machine_get_balloon(m, &asked, &given, e))
		return false;
	snprintf(text, sizeof(text), "asked for %lluM, has %lluM\n", (unsigned long long)asked >> 20, (unsigned long long)given >> 20);
	return say(a, text);
}

static bool do_engine(struct machine *m, const char *arg, struct answer *a, struct error *e)
{
	char text[80];

	if (*arg)
		return machine_set_engine(m, arg, e);
	snprintf(text, sizeof(text), "%s\n", machine_engine(m));
	return say(a, text);
}

static bool do_eject(struct machine *m, const char *arg, struct answer *a, struct error *e)
{
	static const struct kv_key keys[] = { CD_EJECT_KEYS };
	struct cd_options o = { .drive = 0 };

	if (!strcmp(arg, "force")) /* a bare first item would be the drive's */
		o.force = true;
	else if (!kv_parse("eject", arg, keys, ARRAY_LEN(keys), &o, e))
		return false;
	return machine_eject(m, o.drive, o.force, e);
}

static bool do_insert(struct machine *m, const char *arg, struct answer *a, struct error *e)
{
	static const struct kv_key keys[] = { CD_INSERT_KEYS };
	struct cd_options o = { .drive = 0 };
	bool ok = kv_parse("insert", arg, keys, ARRAY_LEN(keys), &o, e);

	if (ok && (!o.file || a->file < 0))
		ok = error_set(e, "insert: which file? ring3 ctl opens it and sends it along");
	ok = ok && machine_insert(m, o.drive, o.file, a->file, e);
	free(o.file);
	return ok;
}

static const struct command {
	const char *name;
	bool (*fn)(struct machine *m, const char *arg, struct answer *a, struct error *e);
} commands[] = {
	{ "status", do_status }, { "pause", do_pause }, { "resume", do_resume }, { "reset", do_reset },
	{ "powerdown", do_powerdown }, { "stop", do_stop }, { "screen", do_screen }, { "screenshot", do_screenshot },
	{ "press", do_press }, { "type", do_type }, { "mouse", do_mouse }, { "balloon", do_balloon },
	{ "engine", do_engine },
	{ "eject", do_eject }, { "insert", do_insert },
};

static bool carry_out(struct machine *m, char *line, struct answer *a, struct error *e)
{
	const char *names[ARRAY_LEN(commands)];
	char *arg = line + strcspn(line, " ");

	if (*arg)
		*arg++ = 0;
	for (size_t k = 0; k < ARRAY_LEN(commands); k++) {
		names[k] = commands[k].name;
		if (!strcmp(line, commands[k].name))
			return commands[k].fn(m, arg, a, e);
	}
	const char *near = nearest_word(line, names, ARRAY_LEN(names));
	return error_set(e, "%s: no such command; %s%s%s", line, near ? "did you mean " : "see ring3 ctl --help", near ? near : "", near ? "?" : "");
}

/* ---- clients ------------------------------------------------------------------------------------- */

static void drop(struct client *k)
{
	loop_del_fd(machine_loop(k->c->m), k->fd);
	close(k->fd);
	free(k->out);
	if (k->file >= 0)
		close(k->file);
	*k = (struct client){ .c = k->c, .fd = -1, .file = -1 };
}

static void answer(struct client *k, char *line)
{
	struct answer a = { .file = k->file };
	struct error e;
	char head[sizeof(e.msg) + 16];
	bool ok = carry_out(k->c->m, line, &a, &e);

	if (ok)
		snprintf(head, sizeof(head), "ok %zu\n", a.len);
	else
		snprintf(head, sizeof(head), "error %s\n", e.msg);
	k->n_out = strlen(head) + (ok ? a.len : 0);
	k->at = 0;
	k->out = malloc(k->n_out);
	if (k->out) {
		memcpy(k->out, head, strlen(head));
		if (ok && a.len)
			memcpy(k->out + strlen(head), a.data, a.len);
	}
	free(a.data);
	if (k->file >= 0)
		close(k->file);
	k->file = -1;
}

/* False: it is gone. */
static bool send_out(struct client *k)
{
	while (k->out && k->at < k->n_out) {
		ssize_t n = send(k->fd, k->out + k->at, k->n_out - k->at, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return true;
		if (n <= 0)
			return false;
		k->at += (size_t)n;
	}
	free(k->out);
	k->out = NULL;
	return true;
}

/* False: it is gone, or sends no lines. */
static bool read_in(struct client *k)
{
	union { struct cmsghdr head; char room[CMSG_SPACE(sizeof(int))]; } c;
	struct iovec iov = { k->line + k->n_line, sizeof(k->line) - 1 - k->n_line };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof(c.room) };
	ssize_t n = recvmsg(k->fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	struct cmsghdr *h = n > 0 ? CMSG_FIRSTHDR(&m) : NULL;

	if (h && h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_RIGHTS && h->cmsg_len == CMSG_LEN(sizeof(int))) {
		if (k->file >= 0)
			close(k->file);
		memcpy(&k->file, CMSG_DATA(h), sizeof(int));
	}
	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	k->n_line += (size_t)n;
	return n > 0;
}

static void on_client(void *arg, u32 events)
{
	struct client *k = arg;
	bool here = !(events & EPOLLERR);

	if (here && (events & EPOLLOUT))
		here = send_out(k);
	if (here && (events & (EPOLLIN | EPOLLHUP)) && !k->out)
		here = read_in(k);
	for (char *end; here && !k->out && (end = memchr(k->line, '\n', k->n_line));) {
		size_t len = (size_t)(end - k->line) + 1;
		*end = 0;
		answer(k, k->line);
		k->n_line -= len;
		memmove(k->line, k->line + len, k->n_line);
		here = k->out && send_out(k);
	}
	if (!here || k->n_line == sizeof(k->line) - 1)
		drop(k);
	else
		loop_mod_fd(machine_loop(k->c->m), k->fd, k->out ? EPOLLOUT : EPOLLIN);
}

static void on_connect(void *arg, u32 events)
{
	struct control *c = arg;
	struct error e;
	int fd = accept4(c->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), n = 0;

	while (n < CLIENTS && c->clients[n].fd >= 0)
		n++;
	if (fd < 0)
		return;
	if (n == CLIENTS || !loop_add_fd(machine_loop(c->m), fd, EPOLLIN, on_client, &c->clients[n], &e)) {
		close(fd);
		return;
	}
	c->clients[n].fd = fd;
}

/* ---- life -------------------------------------------------------------------------------------------- */

struct control *control_open(struct machine *m, const char *name, struct error *e)
{
	struct control *c = calloc(1, sizeof(*c));

	if (!c) {
		error_set(e, "out of memory");
		return NULL;
	}
	c->m = m;
	for (int k = 0; k < CLIENTS; k++)
		c->clients[k] = (struct client){ .c = c, .fd = -1, .file = -1 };
	char path[sizeof(c->path)];
	c->listener = -1;
	if (control_path(name, path, sizeof(path), e) && (c->listener = listen_at_path(path, 4, e)) < 0)
		error_prefix(e, "--name %s", name);
	if (c->listener >= 0) {
		strcpy(c->path, path); /* from here on ours to remove */
		if (loop_add_fd(machine_loop(m), c->listener, EPOLLIN, on_connect, c, e))
			return c;
	}
	if (c->listener >= 0)
		close(c->listener);
	if (c->path[0])
		leftover_remove(c->path);
	free(c);
	return NULL;
}

void control_close(struct control *c)
{
	if (!c)
		return;
	for (int k = 0; k < CLIENTS; k++)
		if (c->clients[k].fd >= 0)
			drop(&c->clients[k]);
	loop_del_fd(machine_loop(c->m), c->listener);
	close(c->listener);
	leftover_remove(c->path);
	free(c);
}
