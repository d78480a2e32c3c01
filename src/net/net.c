/* What all back ends share: frames between a descriptor and a card, and who waits for whom.
 *
 * Invariants
 *  1. A frame that the card has no room for is held, one at most; the descriptor is not read until
 *     the card has said that it is ready and has taken it.
 *  2. At most BURST frames are read in one turn of the loop. */
#define LOG_TOPIC "net"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <unistd.h>

#include "net/net_impl.h"

#define BURST 64

const char *const net_kind_words[] = { "none", "user", "tap", "socket", NULL };
const char *const net_model_words[] = { "virtio", "e1000", NULL };

/* ---- from the host ----------------------------------------------------------------------- */

static void on_event(void *arg, u32 events);

void net_watch(struct net *n)
{
	struct error e;
	u32 want = n->fd < 0 ? 0 : (n->held ? 0 : EPOLLIN) | (n->blocked ? EPOLLOUT : 0);

	if (want == n->watched)
		return;
	if (!n->watched && !loop_add_fd(n->loop, n->fd, want, on_event, n, &e)) {
		log_error("%s: %s", n->text, e.msg);
		return;
	}
	if (n->watched && want)
		loop_mod_fd(n->loop, n->fd, want);
	else if (n->watched)
		loop_del_fd(n->loop, n->fd);
	n->watched = want;
}

void net_unwatch(struct net *n)
{
	if (n->watched)
		loop_del_fd(n->loop, n->fd);
	n->watched = 0;
}

void net_lost(struct net *n)
{
	net_unwatch(n);
	close(n->fd);
	n->fd = -1;
	if (n->blocked && n->card.writable)
		n->card.writable(n->card.arg);
	n->blocked = false;
}

static bool give(struct net *n)
{
	n->held = n->card.receive && !n->card.receive(n->card.arg, &n->held_offload, n->frame, n->held_len);
	return !n->held;
}

static void read_frames(struct net *n)
{
	for (int k = 0; k < BURST && n->fd >= 0; k++) {
		n->held_offload = (struct net_offload){ 0 };
		ssize_t len = n->ops->read(n, &n->held_offload);
		if (len <= 0)
			return;
		n->held_len = (size_t)len;
		if (!give(n))
			return;
	}
}

static void on_event(void *arg, u32 events)
{
	struct net *n = arg;

	if ((events & EPOLLOUT) && n->blocked && (!n->ops->flush || n->ops->flush(n))) {
		n->blocked = false;
		if (n->card.writable)
			n->card.writable(n->card.arg);
	}
	if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && !n->held)
		read_frames(n);
	net_watch(n);
}

static void resume(void *arg)
{
	struct net *n = arg;

	if (n->held && give(n))
		net_watch(n);
}

void net_ready(struct net *n)
{
	loop_schedule(n->loop, &n->resume);
}

/* ---- to the host --------------------------------------------------------------------------- */

bool net_send(struct net *n, const struct net_offload *o, const struct iovec *iov, unsigned n_iov)
{
	if (n->fd < 0 || n->ops->send(n, o, iov, n_iov))
		return true;
	n->blocked = true;
	net_watch(n);
	return false;
}

bool net_checksum(const struct net_offload *o, u8 *frame, size_t len)
{
	size_t start = o->csum_start, at = start + o->csum_offset;
	u64 sum = 0;

	if (!(o->flags & NET_NEEDS_CSUM))
		return true;
	if (at + 2 > len)
		return false;
	for (size_t k = start; k + 1 < len; k += 2)
		sum += ld16(frame + k);
	if ((len - start) & 1)
		sum += frame[len - 1];
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	u16 c = (u16)~sum;
	st16(frame + at, c ? c : 0xffff); /* UDP's 0 means none; to TCP they are the same */
	return true;
}

/* ---- opening -------------------------------------------------------------------------------- */

static bool open_kind(struct net *n, const struct net_options *o, bool dry_run, struct error *e)
{
	snprintf(n->text, sizeof(n->text), "%s", net_kind_words[o->kind]);
	if (o->forward && o->kind != NET_USER)
		return error_set(e, "forward=%s: only the user network forwards; use --net user", o->forward);
	if (o->ifname && o->kind != NET_TAP)
		return error_set(e, "ifname=%s: only for tap", o->ifname);
	if (o->path && o->kind != NET_SOCKET)
		return error_set(e, "path=%s: only for socket", o->path);
	if (o->kind == NET_SOCKET && !o->path)
		return error_set(e, "socket: needs path=FILE");
	if (dry_run)
		return true;
	switch (o->kind) {
	case NET_USER: return net_user_open(n, o, e);
	case NET_TAP: return net_tap_open(n, o, e);
	case NET_SOCKET: return net_socket_open(n, o, e);
	default: return true;
	}
}

struct net *net_open(const struct net_options *o, bool dry_run, struct loop *loop, struct error *e)
{
	struct net *n = calloc(1, sizeof(*n));

	if (!n) {
		error_set(e, "out of memory");
		return NULL;
	}
	n->loop = loop;
	n->fd = n->listener = -1;
	n->resume = (struct loop_task){ .fn = resume, .arg = n };
	if (open_kind(n, o, dry_run, e))
		return n;
	net_close(n);
	return NULL;
}

void net_attach(struct net *n, const struct net_card *card)
{
	n->card = *card;
	net_watch(n);
}

void net_close(struct net *n)
{
	loop_cancel(n->loop, &n->resume);
	net_unwatch(n);
	if (n->ops && n->ops->close)
		n->ops->close(n);
	if (n->fd >= 0)
		close(n->fd);
	free(n);
}

bool net_offloads(const struct net *n) { return n->offloads; }
bool net_is_valid(const struct net *n) { return n->valid; }
const char *net_describe(const struct net *n) { return n->text; }

void net_set_offloads(struct net *n, unsigned can)
{
	if (n->offloads)
		net_tap_set_offloads(n, can);
}

/* ---- addresses ------------------------------------------------------------------------------- */

bool net_mac(const struct net_options *o, unsigned k, u8 mac[NET_MAC_BYTES], struct error *e)
{
	/* Others may be on a TAP's or a socket's network: addresses must differ. */
	static const u8 first[NET_MAC_BYTES] = { 0x52, 0x54, 0x00, 0x12, 0x34, 0x56 };
	bool shared = o->kind == NET_TAP || o->kind == NET_SOCKET;
	char end;

	memcpy(mac, first, NET_MAC_BYTES);
	mac[5] = (u8)(mac[5] + k);
	if (!o->mac)
		return !shared || getrandom(mac + 3, 3, 0) == 3 || error_set(e, "no random numbers: %s", strerror(errno));
	if (strlen(o->mac) != 17 || sscanf(o->mac, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%c", &mac[0], &mac[1], &mac[2], &mac[3],
					  &mac[4], &mac[5], &end) != 6)
		return error_set(e, "mac=%s: not an address; as in 52:54:00:12:34:56", o->mac);
	return !(mac[0] & 1) || error_set(e, "mac=%s: that is a group's address; the first byte must be even", o->mac);
}
