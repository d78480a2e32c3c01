/* Private to net/. */
#ifndef RING3_NET_IMPL_H
#define RING3_NET_IMPL_H

#include "net/net.h"

struct net_ops {
	/* One frame into n->frame; its length, 0: none now, -1: the other side is gone (n->fd may be -1 then). */
	ssize_t (*read)(struct net *n, struct net_offload *o);
	/* False: would block. */
	bool (*send)(struct net *n, const struct net_offload *o, const struct iovec *iov, unsigned n_iov);
	bool (*flush)(struct net *n);      /* sends what is left of a frame; false: some still is. May be NULL */
	void (*close)(struct net *n);      /* beside fd; may be NULL */
};

struct net {
	const struct net_ops *ops;
	struct loop *loop;
	struct net_card card;
	struct loop_task resume;   /* of net_ready */
	int fd;                    /* frames come and go here; -1: not connected */
	u32 watched;               /* what the loop watches fd for; 0: it does not */
	bool held;                 /* frame[0..held_len-1] waits for room */
	bool blocked;              /* the card waits to send, or part of a frame does */
	bool offloads, valid;
	struct net_offload held_offload;
	size_t held_len;
	char text[200];
	char *path;                /* socket: to remove at the end */
	int listener;              /* socket */
	int helper;                /* user: the process */
	size_t in_len, out_len;    /* socket: bytes in `in` and `out` */
	u8 frame[NET_FRAME_MAX];
	u8 in[2 * NET_FRAME_MAX], out[NET_FRAME_MAX + 4]; /* socket */
};

bool net_user_open(struct net *n, const struct net_options *o, struct error *e);
bool net_tap_open(struct net *n, const struct net_options *o, struct error *e);
bool net_socket_open(struct net *n, const struct net_options *o, struct error *e);
void net_tap_set_offloads(struct net *n, unsigned can);
void net_watch(struct net *n);     /* after fd has changed */
void net_unwatch(struct net *n);   /* before it is closed */
void net_lost(struct net *n);      /* nobody is at fd's other end any more: what is sent is lost */

/* forward.c: one rule of user's forward. */
struct forward { bool udp; u32 addr; u16 host_port, guest_port; }; /* addr: host order */
bool forward_parse(const char *text, size_t len, struct forward *f, struct error *e);

#endif
