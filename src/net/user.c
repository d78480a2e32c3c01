/* The user-mode network: libslirp's TCP/IP in a process of its own, which needs no privilege and holds
 * nothing of the machine but one socket. Frames are packets of that socket.
 *
 *   10.0.2.2 the host   10.0.2.3 its name servers   10.0.2.15 the guest, by DHCP   fec0::/64 the same by RA
 *
 * Invariants
 *  1. The helper is forked before the machine has memory or threads, and closes all but its socket
 *     and standard error. It ends when that socket's other end does.
 *  2. It tells by one message whether it could set up what was asked for, before any frame.
 *  3. Its sends wait when the guest takes no frames: so slirp's own windows close, and nothing is lost.
 *  4. It is contained (sandbox.h) before any frame: it has sockets of the Internet, and no files.
 * Whom it connects to is up to libslirp: with the rights of this user, from this host. */
#define LOG_TOPIC "net"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <slirp/libslirp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "net/net_impl.h"
#include "sandbox/sandbox.h"

#define SOCKET_BUFFER (4 << 20)
#define BURST 64
#define MAX_TIMERS 4

struct helper {
	Slirp *slirp;
	int fd;
	struct pollfd *fds;      /* fds[0] is the machine's */
	int n_fds, cap_fds;
	struct { bool used; SlirpTimerId id; void *arg; i64 at_ms; } timers[MAX_TIMERS]; /* at_ms: -1 not set */
};

/* ---- what slirp asks of its host ------------------------------------------------------------ */

static i64 now_ns(void *opaque)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (i64)t.tv_sec * 1000000000 + t.tv_nsec;
}

static ssize_t send_frame(const void *buf, size_t len, void *opaque)
{
	struct helper *h = opaque;

	if (send(h->fd, buf, len, MSG_NOSIGNAL) < 0 && errno == EPIPE)
		_exit(0); /* the machine has ended */
	return (ssize_t)len;
}

static void guest_error(const char *msg, void *opaque) { (void)msg; }

static void *timer_make(SlirpTimerId id, void *arg, void *opaque)
{
	struct helper *h = opaque;

	for (int k = 0; k < MAX_TIMERS; k++)
		if (!h->timers[k].used) {
			h->timers[k].used = true;
			h->timers[k].id = id;
			h->timers[k].arg = arg;
			h->timers[k].at_ms = -1;
			return &h->timers[k];
		}
	abort(); /* slirp has SLIRP_TIMER_NUM kinds, one each */
}

static void timer_drop(void *timer, void *opaque)
{
	struct helper *h = opaque;

	for (int k = 0; k < MAX_TIMERS; k++)
		if (timer == &h->timers[k])
			h->timers[k].used = false;
}

static void timer_set(void *timer, i64 at_ms, void *opaque)
{
	struct helper *h = opaque;

	for (int k = 0; k < MAX_TIMERS; k++)
		if (timer == &h->timers[k])
			h->timers[k].at_ms = at_ms;
}

static void poll_fd_ignored(int fd, void *opaque) { (void)fd; }
static void notify_ignored(void *opaque) { }

static void *old_timer_ignored(SlirpTimerCb cb, void *cb_opaque, void *opaque) { return NULL; }

static const SlirpCb callbacks = {
	.send_packet = send_frame,
	.guest_error = guest_error,
	.clock_get_ns = now_ns,
	.timer_new = old_timer_ignored,
	.timer_free = timer_drop,
	.timer_mod = timer_set,
	.register_poll_fd = poll_fd_ignored,
	.unregister_poll_fd = poll_fd_ignored,
	.notify = notify_ignored,
	.timer_new_opaque = timer_make,
};

/* ---- the helper's loop ------------------------------------------------------------------------ */

static int add_poll(int fd, int events, void *opaque)
{
	struct helper *h = opaque;

	if (h->n_fds == h->cap_fds) {
		h->cap_fds = 2 * h->cap_fds + 16;
		h->fds = realloc(h->fds, (size_t)h->cap_fds * sizeof(*h->fds));
		if (!h->fds)
			abort();
	}
	h->fds[h->n_fds] = (struct pollfd){ .fd = fd, .events = (short)((events & SLIRP_POLL_IN ? POLLIN : 0) |
		(events & SLIRP_POLL_OUT ? POLLOUT : 0) | (events & SLIRP_POLL_PRI ? POLLPRI : 0)) };
	return h->n_fds++;
}

static int get_revents(int idx, void *opaque)
{
	const struct helper *h = opaque;
	int r = h->fds[idx].revents;

	return (r & POLLIN ? SLIRP_POLL_IN : 0) | (r & POLLOUT ? SLIRP_POLL_OUT : 0) | (r & POLLPRI ? SLIRP_POLL_PRI : 0) |
	       (r & (POLLERR | POLLNVAL) ? SLIRP_POLL_ERR : 0) | (r & POLLHUP ? SLIRP_POLL_HUP : 0);
}

static void run_timers(struct helper *h, u32 *wait_ms)
{
	for (int k = 0; k < MAX_TIMERS; k++) {
		i64 now = now_ns(NULL) / 1000000;

		if (!h->timers[k].used || h->timers[k].at_ms < 0)
			continue;
		if (h->timers[k].at_ms <= now) {
			h->timers[k].at_ms = -1;
			slirp_handle_timer(h->slirp, h->timers[k].id, h->timers[k].arg);
		}
		if (h->timers[k].at_ms >= 0)
			*wait_ms = (u32)MIN((i64)*wait_ms, MAX(h->timers[k].at_ms - now, 0));
	}
}

static void take_frames(struct helper *h)
{
	static u8 frame[NET_FRAME_MAX];

	for (int k = 0; k < BURST; k++) {
		ssize_t n = recv(h->fd, frame, sizeof(frame), MSG_DONTWAIT);

		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
			_exit(0); /* the machine has ended */
		if (n < 0)
			return;
		slirp_input(h->slirp, frame, (int)n);
	}
}

static _Noreturn void helper_loop(struct helper *h)
{
	for (;;) {
		u32 wait_ms = 3600000;

		run_timers(h, &wait_ms);
		h->n_fds = 0;
		add_poll(h->fd, SLIRP_POLL_IN, h);
		slirp_pollfds_fill(h->slirp, &wait_ms, add_poll, h);
		int r = poll(h->fds, (nfds_t)h->n_fds, (int)MIN(wait_ms, 3600000u));
		slirp_pollfds_poll(h->slirp, r < 0, get_revents, h);
		if (r > 0 && h->fds[0].revents)
			take_frames(h);
	}
}

/* ---- setting up --------------------------------------------------------------------------------- */

static bool add_forwards(Slirp *s, const char *rules, struct error *e)
{
	struct in_addr guest = { 0 }; /* whoever has the lease */

	while (rules && *rules) {
		size_t len = strcspn(rules, "\n");
		struct forward f;
		if (!forward_parse(rules, len, &f, e))
			return false;
		if (slirp_add_hostfwd(s, f.udp, (struct in_addr){ htonl(f.addr) }, f.host_port, guest, f.guest_port))
			return error_set(e, "forward=%.*s: port %u of this host: %s", (int)len, rules, f.host_port, strerror(errno));
		rules += len + (rules[len] == '\n');
	}
	return true;
}

static Slirp *make_slirp(struct helper *h, const struct net_options *o, struct error *e)
{
	SlirpConfig c = {
		.version = 4,
		.restricted = o->isolated,
		.in_enabled = true,
		.in6_enabled = true,
		.vprefix_len = 64,
		.vhostname = "ring3",
		.if_mtu = 1500,
		.if_mru = 1500,
	};

	inet_pton(AF_INET, "10.0.2.0", &c.vnetwork);
	inet_pton(AF_INET, "255.255.255.0", &c.vnetmask);
	inet_pton(AF_INET, "10.0.2.2", &c.vhost);
	inet_pton(AF_INET, "10.0.2.15", &c.vdhcp_start);
	inet_pton(AF_INET, "10.0.2.3", &c.vnameserver);
	inet_pton(AF_INET6, "fec0::", &c.vprefix_addr6);
	inet_pton(AF_INET6, "fec0::2", &c.vhost6);
	inet_pton(AF_INET6, "fec0::3", &c.vnameserver6);
	Slirp *s = slirp_new(&c, &callbacks, h);
	if (!s) {
		error_set(e, "user: libslirp refuses to start");
		return NULL;
	}
	return add_forwards(s, o->forward, e) ? s : NULL;
}

static _Noreturn void helper_main(int fd, const struct net_options *o)
{
	struct helper h = { .fd = fd };
	struct error e = { "" };

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_NAME, "ring3-net");
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	signal(SIGINT, SIG_IGN); /* a terminal's, meant for the machine */
	signal(SIGTERM, SIG_DFL);
	signal(SIGPIPE, SIG_IGN);
	h.slirp = make_slirp(&h, o, &e);
	bool ok = h.slirp && sandbox_enter_net(o->sandbox, &e);
	send(fd, ok ? "ok" : e.msg, ok ? 3 : strlen(e.msg) + 1, MSG_NOSIGNAL);
	if (!ok)
		_exit(1);
	helper_loop(&h);
}

/* ---- the machine's side ----------------------------------------------------------------------------- */

static ssize_t user_read(struct net *n, struct net_offload *o)
{
	ssize_t len = recv(n->fd, n->frame, sizeof(n->frame), MSG_DONTWAIT);

	if (len > 0)
		return len;
	if (len < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	log_error("%s: the helper process has ended; the network is down", n->text);
	net_lost(n);
	return -1;
}

static bool user_send(struct net *n, const struct net_offload *o, const struct iovec *iov, unsigned n_iov)
{
	struct msghdr m = { .msg_iov = (struct iovec *)iov, .msg_iovlen = n_iov };

	return sendmsg(n->fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0 || errno != EAGAIN;
}

/* The helper ends when its socket does (a contained machine cannot signal it). Should it not, the kernel
 * ends it with this process. */
static void user_close(struct net *n)
{
	if (n->fd >= 0)
		close(n->fd);
	n->fd = -1;
	for (int k = 0; n->helper > 0 && k < 1000 && !waitpid(n->helper, NULL, WNOHANG); k++)
		usleep(1000);
}

bool net_user_open(struct net *n, const struct net_options *o, struct error *e)
{
	static const struct net_ops ops = { .read = user_read, .send = user_send, .close = user_close };
	static const int size = SOCKET_BUFFER;
	char answer[sizeof(e->msg)] = "";
	int fds[2];

	n->ops = &ops;
	n->valid = true;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds))
		return error_set(e, "user: no socket: %s", strerror(errno));
	for (int k = 0; k < 2; k++) /* what the host's limit allows of it */
		setsockopt(fds[k], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	fflush(NULL);
	n->helper = fork();
	if (n->helper == 0) {
		dup2(fds[1], STDIN_FILENO);
		close(STDOUT_FILENO);
		close_range(STDERR_FILENO + 1, ~0u, 0);
		helper_main(STDIN_FILENO, o);
	}
	close(fds[1]);
	n->fd = fds[0];
	if (n->helper < 0)
		return error_set(e, "user: no process for it: %s", strerror(errno));
	if (recv(n->fd, answer, sizeof(answer) - 1, 0) <= 0)
		return error_set(e, "user: its helper process ended at once");
	if (strcmp(answer, "ok"))
		return error_set(e, "%s", answer);
	snprintf(n->text, sizeof(n->text), "user network 10.0.2.0/24%s", o->isolated ? ", isolated" : "");
	return true;
}
