/* The VNC server: where it listens, who is there, and the screen, looked at as often as somebody waits
 * for it. vnc_impl.h has the whole.
 *
 * It looks every LOOK_NS while the screen changes, every IDLE_NS once it has stood for a second, and not
 * at all while no viewer waits. Only tiles whose pixels differ are sent again. */
#define LOG_TOPIC "vnc"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "display/vnc_impl.h"

#define LOOK_NS 30000000ull
#define IDLE_NS 100000000ull
#define STANDS_NS 1000000000ull
#define VIEWERS_WAITING 4

u64 vnc_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (u64)t.tv_sec * 1000000000u + (u64)t.tv_nsec;
}

/* ---- the screen --------------------------------------------------------------------------------- */

static void mark(struct vnc *v, u32 column, u32 row)
{
	for (int k = 0; k < VNC_CLIENTS; k++) {
		struct vnc_client *c = &v->client[k];
		if (c->dirty && column < vnc_columns(c) && row < vnc_rows(c))
			c->dirty[row * vnc_columns(c) + column] = 1;
	}
	v->changed_at = v->looked_at;
}

/* The tiles of these lines that differ from frame, which gets them. */
static void compare(struct vnc *v, const struct screen_image *s, u32 y0, u32 y1)
{
	for (u32 x = 0; x < s->width; x += VNC_TILE_W) {
		size_t n = MIN(VNC_TILE_W, s->width - x) * sizeof(u32);
		bool differs = false;

		for (u32 y = y0; y < y1; y++) {
			size_t at = (size_t)y * s->width + x;
			if (memcmp(v->frame.pixels + at, s->pixels + at, n)) {
				memcpy(v->frame.pixels + at, s->pixels + at, n);
				differs = true;
			}
		}
		if (differs)
			mark(v, x / VNC_TILE_W, y0 / VNC_TILE_H);
	}
}

static bool set_frame_size(struct vnc *v, u32 width, u32 height)
{
	if (v->frame.pixels && v->frame.width == width && v->frame.height == height)
		return true;
	free(v->frame.pixels);
	v->frame = (struct screen_image){ width, height, calloc((size_t)width * height, sizeof(u32)) };
	for (int k = 0; k < VNC_CLIENTS; k++) {
		struct vnc_client *c = &v->client[k];
		if (c->dirty) /* who cannot be told sees what fits of it */
			memset(c->dirty, 1, (size_t)vnc_columns(c) * vnc_rows(c));
	}
	v->changed_at = v->looked_at;
	return v->frame.pixels != NULL;
}

bool vnc_look(struct vnc *v)
{
	const u8 *changed;
	const struct screen_image *s = v->seat.look(v->seat.arg, &changed);
	bool begins = !v->frame.pixels;

	v->looked_at = vnc_now();
	if (!s || !set_frame_size(v, s->width, s->height))
		return false;
	for (u32 y0 = 0; y0 < s->height; y0 += VNC_TILE_H) {
		u32 y1 = MIN(y0 + VNC_TILE_H, s->height);
		if (begins || memchr(changed + y0, 1, y1 - y0))
			compare(v, s, y0, y1);
	}
	return true;
}

/* ---- the timer, and ends ------------------------------------------------------------------------- */

static void arm(struct vnc *v, u64 ns)
{
	struct itimerspec t = { .it_value = { (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) } };

	timerfd_settime(v->timer, 0, &t, NULL);
}

/* It could be told of a change now. */
static bool waits(const struct vnc_client *c) { return c->fd >= 0 && c->state == VNC_RUNS && c->wants && c->sent == c->n_out; }

/* When the timer is to come again: for the screen, for the end of a handshake, or not. */
static void plan(struct vnc *v)
{
	u64 now = vnc_now(), next = UINT64_MAX;

	for (int k = 0; k < VNC_CLIENTS; k++) {
		const struct vnc_client *c = &v->client[k];
		if (c->fd < 0)
			continue;
		if (c->state != VNC_RUNS)
			next = MIN(next, c->deadline);
		else if (waits(c))
			next = MIN(next, v->looked_at + (now - v->changed_at < STANDS_NS ? LOOK_NS : IDLE_NS));
	}
	arm(v, next == UINT64_MAX ? 0 : next > now ? next - now : 1);
}

void vnc_drop(struct vnc_client *c) { c->gone = true; }

static void free_client(struct vnc_client *c)
{
	struct vnc *v = c->vnc;

	vnc_release_keys(c);
	loop_del_fd(v->loop, c->fd);
	close(c->fd);
	if (c->z_open)
		deflateEnd(&c->z);
	free(c->out);
	free(c->dirty);
	*c = (struct vnc_client){ .vnc = v, .fd = -1 };
}

/* The end of whatever the loop called: who is gone goes, the others are asked to be writable or not. */
static void sweep(struct vnc *v)
{
	for (int k = 0; k < VNC_CLIENTS; k++) {
		struct vnc_client *c = &v->client[k];
		if (c->fd >= 0 && c->gone)
			free_client(c);
		else if (c->fd >= 0)
			loop_mod_fd(v->loop, c->fd, c->sent < c->n_out ? EPOLLIN | EPOLLOUT : EPOLLIN);
	}
	plan(v);
}

static void on_timer(void *arg, u32 events)
{
	struct vnc *v = arg;
	u64 count, now = vnc_now();
	ssize_t ignored = read(v->timer, &count, sizeof(count));
	bool look = false;

	(void)ignored;
	for (int k = 0; k < VNC_CLIENTS; k++) {
		struct vnc_client *c = &v->client[k];
		if (c->fd < 0)
			continue;
		look |= waits(c);
		if (c->state == VNC_REFUSED && now >= c->deadline)
			vnc_refuse(c);
		else if (c->state != VNC_RUNS && now >= c->deadline)
			vnc_drop(c);
	}
	if (look && vnc_look(v))
		for (int k = 0; k < VNC_CLIENTS; k++)
			if (v->client[k].fd >= 0 && !v->client[k].gone)
				vnc_update(&v->client[k]);
	sweep(v);
}

static void on_client(void *arg, u32 events)
{
	struct vnc_client *c = arg;
	struct vnc *v = c->vnc;

	if (events & EPOLLERR)
		vnc_drop(c);
	if (!c->gone && (events & EPOLLOUT)) {
		vnc_flush(c);
		vnc_update(c);
	}
	if (!c->gone && (events & (EPOLLIN | EPOLLHUP)))
		vnc_receive(c);
	sweep(v);
}

bool vnc_add_client(struct vnc *v, int fd)
{
	struct error e;
	int k = 0;

	while (k < VNC_CLIENTS && v->client[k].fd >= 0)
		k++;
	if (k == VNC_CLIENTS || !loop_add_fd(v->loop, fd, EPOLLIN, on_client, &v->client[k], &e)) {
		close(fd);
		return false;
	}
	v->client[k].fd = fd;
	vnc_greet(&v->client[k]);
	sweep(v);
	return true;
}

static void on_connect(void *arg, u32 events)
{
	struct vnc *v = arg;
	int fd = accept4(v->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), on = 1;

	if (fd < 0)
		return;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); /* a Unix socket has none, and needs none */
	static struct ratelimit often;
	if (!vnc_add_client(v, fd) && ratelimit_ok(&often))
		log_warn("a viewer was turned away: %d are there already", VNC_CLIENTS);
}

/* ---- where it listens ------------------------------------------------------------------------------ */

struct place { union { struct sockaddr any; struct sockaddr_in in; struct sockaddr_in6 in6; struct sockaddr_un un; } a; socklen_t len; };

static bool is_loopback(const struct place *p)
{
	if (p->a.any.sa_family == AF_INET)
		return ntohl(p->a.in.sin_addr.s_addr) >> 24 == 127;
	return p->a.any.sa_family == AF_UNIX || IN6_IS_ADDR_LOOPBACK(&p->a.in6.sin6_addr);
}

/* "5900", "127.0.0.1:5900", "[::1]:5900", "localhost:5900", a path. */
static bool parse_place(const char *at, struct place *p, struct error *e)
{
	const char *colon = strrchr(at, ':'), *port = colon ? colon + 1 : at, *path = strncmp(at, "unix:", 5) ? at : at + 5;
	char host[64] = "127.0.0.1";
	u64 n;

	*p = (struct place){ .len = 0 };
	if (path != at || strchr(at, '/')) {
		p->a.un.sun_family = AF_UNIX;
		p->len = sizeof(p->a.un);
		if (strlen(path) >= sizeof(p->a.un.sun_path) || !*path)
			return error_set(e, "%s: the path of a socket has 1 to %zu characters", at, sizeof(p->a.un.sun_path) - 1);
		strcpy(p->a.un.sun_path, path);
		return true;
	}
	if (!parse_number(port, &n) || n > 65535)
		return error_set(e, "%s: not a port; [ADDRESS:]PORT, as in 5900 or 127.0.0.1:5900, or a Unix socket's path with a / in it", at);
	if (colon && (size_t)(colon - at) < sizeof(host)) {
		bool brackets = *at == '[' && colon > at && colon[-1] == ']';
		snprintf(host, sizeof(host), "%.*s", (int)(colon - at) - 2 * brackets, at + brackets);
	}
	if (!strcmp(host, "localhost"))
		strcpy(host, "127.0.0.1");
	if (inet_pton(AF_INET, host, &p->a.in.sin_addr) == 1) {
		p->a.in.sin_family = AF_INET;
		p->a.in.sin_port = htons((u16)n);
		p->len = sizeof(p->a.in);
	} else if (inet_pton(AF_INET6, host, &p->a.in6.sin6_addr) == 1) {
		p->a.in6.sin6_family = AF_INET6;
		p->a.in6.sin6_port = htons((u16)n);
		p->len = sizeof(p->a.in6);
	} else {
		return error_set(e, "%s: not an address of this host; in numbers, as in 127.0.0.1:5900, [::1]:5900 or 0.0.0.0:5900", at);
	}
	return true;
}

static void describe(struct vnc *v, const struct place *p)
{
	char host[64];

	if (p->a.any.sa_family == AF_UNIX)
		snprintf(v->text, sizeof(v->text), "%s", p->a.un.sun_path);
	else if (p->a.any.sa_family == AF_INET)
		snprintf(v->text, sizeof(v->text), "%s:%u", inet_ntop(AF_INET, &p->a.in.sin_addr, host, sizeof(host)), ntohs(p->a.in.sin_port));
	else
		snprintf(v->text, sizeof(v->text), "[%s]:%u", inet_ntop(AF_INET6, &p->a.in6.sin6_addr, host, sizeof(host)), ntohs(p->a.in6.sin6_port));
}

static bool listen_at(struct vnc *v, struct place *p, struct error *e)
{
	int on = 1;

	if (p->a.any.sa_family == AF_UNIX) {
		v->listener = listen_at_path(p->a.un.sun_path, VIEWERS_WAITING, e);
		if (v->listener < 0)
			return false;
		snprintf(v->path, sizeof(v->path), "%s", p->a.un.sun_path);
	} else {
		v->listener = socket(p->a.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		if (v->listener >= 0)
			setsockopt(v->listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
		if (v->listener < 0 || bind(v->listener, &p->a.any, p->len) || listen(v->listener, VIEWERS_WAITING))
			return error_set(e, "%s: %s", v->text, strerror(errno));
		getsockname(v->listener, &p->a.any, &p->len); /* the port, if any would do */
	}
	if ((v->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)) < 0)
		return error_set(e, "%s: %s", v->text, strerror(errno));
	describe(v, p);
	return loop_add_fd(v->loop, v->listener, EPOLLIN, on_connect, v, e) && loop_add_fd(v->loop, v->timer, EPOLLIN, on_timer, v, e);
}

/* ---- life ------------------------------------------------------------------------------------------- */

static bool open_it(struct vnc *v, const struct vnc_options *o, bool dry_run, struct error *e)
{
	struct place p;

	if (!parse_place(o->at, &p, e))
		return false;
	describe(v, &p);
	if (!o->password_file && !is_loopback(&p))
		return error_set(e, "%s: whoever reaches this address would have the machine; password-file=FILE asks for a password, "
				 "127.0.0.1 is this host alone", o->at);
	if (o->password_file && !vnc_read_password(o->password_file, v->password, e))
		return false;
	v->asks = o->password_file != NULL;
	return dry_run || listen_at(v, &p, e);
}

struct vnc *vnc_open(const struct vnc_options *o, const char *name, bool dry_run, struct loop *loop, const struct vnc_seat *seat,
		     struct error *e)
{
	struct vnc *v = calloc(1, sizeof(*v));

	if (!v) {
		error_set(e, "out of memory");
		return NULL;
	}
	v->loop = loop;
	v->seat = *seat;
	v->name = name;
	v->listener = v->timer = -1;
	for (int k = 0; k < VNC_CLIENTS; k++)
		v->client[k] = (struct vnc_client){ .vnc = v, .fd = -1 };
	if (open_it(v, o, dry_run, e))
		return v;
	vnc_close(v);
	return NULL;
}

const char *vnc_describe(const struct vnc *v) { return v->text; }

void vnc_close(struct vnc *v)
{
	if (!v)
		return;
	for (int k = 0; k < VNC_CLIENTS; k++)
		if (v->client[k].fd >= 0)
			free_client(&v->client[k]);
	const int fds[] = { v->listener, v->timer };
	for (size_t k = 0; k < ARRAY_LEN(fds); k++)
		if (fds[k] >= 0) {
			loop_del_fd(v->loop, fds[k]);
			close(fds[k]);
		}
	if (v->path[0])
		leftover_remove(v->path);
	free(v->frame.pixels);
	explicit_bzero(v->password, sizeof(v->password));
	free(v);
}
