/* A Unix stream socket to another machine. Each frame is preceded by its length, 4 bytes, big-endian,
 * as QEMU's `-netdev stream` and passt have it. The first machine listens and takes one peer at a
 * time; the second connects. Without a peer frames are lost, as without a cable. */
#define LOG_TOPIC "net"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "net/net_impl.h"

#define LENGTH_BYTES 4u

static void peer_gone(struct net *n)
{
	log_info("%s: the other machine has left", n->text);
	n->in_len = n->out_len = 0;
	net_lost(n);
}

static ssize_t socket_read(struct net *n, struct net_offload *o)
{
	for (;;) {
		u32 len = n->in_len >= LENGTH_BYTES ? __builtin_bswap32(ld32(n->in)) : 0;
		bool whole = n->in_len >= LENGTH_BYTES && n->in_len - LENGTH_BYTES >= len;

		if (n->in_len >= LENGTH_BYTES && (!len || len > NET_FRAME_MAX)) {
			log_warn("%s: a frame of %u bytes; the connection is closed", n->text, len);
			peer_gone(n);
			return -1;
		}
		if (whole) {
			memcpy(n->frame, n->in + LENGTH_BYTES, len);
			n->in_len -= LENGTH_BYTES + len;
			memmove(n->in, n->in + LENGTH_BYTES + len, n->in_len);
			return (ssize_t)len;
		}
		ssize_t got = recv(n->fd, n->in + n->in_len, sizeof(n->in) - n->in_len, MSG_DONTWAIT);
		if (got < 0 && (errno == EAGAIN || errno == EINTR))
			return 0;
		if (got <= 0) {
			peer_gone(n);
			return -1;
		}
		n->in_len += (size_t)got;
	}
}

/* Sends what is left of a frame. False: some of it still is. */
static bool flush(struct net *n)
{
	ssize_t sent = n->out_len ? send(n->fd, n->out, n->out_len, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;

	if (sent < 0)
		return errno != EAGAIN && errno != EINTR; /* the reader will find out that the peer is gone */
	n->out_len -= (size_t)sent;
	memmove(n->out, n->out + sent, n->out_len);
	return !n->out_len;
}

static bool socket_send(struct net *n, const struct net_offload *o, const struct iovec *iov, unsigned n_iov)
{
	size_t len = LENGTH_BYTES;

	if (!flush(n))
		return false;
	for (unsigned k = 0; k < n_iov; k++) {
		if (iov[k].iov_len > sizeof(n->out) - len)
			return true;
		memcpy(n->out + len, iov[k].iov_base, iov[k].iov_len);
		len += iov[k].iov_len;
	}
	st32(n->out, __builtin_bswap32((u32)(len - LENGTH_BYTES)));
	n->out_len = len;
	n->blocked = !flush(n);
	net_watch(n);
	return true;
}

static void on_connect(void *arg, u32 events)
{
	struct net *n = arg;
	int fd = accept4(n->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return;
	if (n->fd >= 0) {
		close(fd);
		return;
	}
	n->fd = fd;
	net_watch(n);
}

static void socket_close(struct net *n)
{
	if (n->listener >= 0) {
		loop_del_fd(n->loop, n->listener);
		close(n->listener);
		leftover_remove(n->path);
	}
	free(n->path);
}

static bool listen_at(struct net *n, const char *path, struct error *e)
{
	n->listener = listen_at_path(path, 1, e);
	if (n->listener < 0)
		return error_prefix(e, "socket");
	return loop_add_fd(n->loop, n->listener, EPOLLIN, on_connect, n, e);
}

bool net_socket_open(struct net *n, const struct net_options *o, struct error *e)
{
	static const struct net_ops ops = { .read = socket_read, .send = socket_send, .flush = flush, .close = socket_close };
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	n->ops = &ops;
	if (strlen(o->path) >= sizeof(a.sun_path))
		return error_set(e, "socket: path=%s: at most %zu characters", o->path, sizeof(a.sun_path) - 1);
	strcpy(a.sun_path, o->path);
	n->path = strdup(o->path);
	snprintf(n->text, sizeof(n->text), "socket %s", o->path);
	n->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (n->fd >= 0 && !connect(n->fd, (struct sockaddr *)&a, sizeof(a)))
		return true;
	if (n->fd < 0 || (errno != ENOENT && errno != ECONNREFUSED))
		return error_set(e, "socket %s: %s", o->path, strerror(errno));
	close(n->fd);
	n->fd = -1;
	return listen_at(n, o->path, e);
}
