/* net: what is behind a network card on the host: a user-mode network (libslirp, in a process of its
 * own), a TAP device, a socket to another machine.
 *
 * Frames are Ethernet without FCS, up to NET_FRAME_MAX bytes. With each goes a struct net_offload, what
 * the sender left undone: zeros where nothing is. A back end that takes none says so (net_offloads),
 * and its card finishes what its driver left (net_checksum).
 * Threading: the loop's thread, with no lock held, except where another is named. */
#ifndef RING3_NET_H
#define RING3_NET_H

#include <sys/uio.h>

#include "base/base.h"

#define NET_FRAME_MAX 65600u /* a header of 14 to 18 bytes and the most that IP has, rounded up */
#define NET_MAC_BYTES 6u

enum net_kind { NET_NONE, NET_USER, NET_TAP, NET_SOCKET };
enum net_model { NET_VIRTIO, NET_E1000 };
struct net_options {
	u32 kind;        /* enum net_kind */
	char *forward;   /* user: a line each, [tcp:|udp:][ADDRESS:]HOSTPORT:GUESTPORT */
	bool isolated;   /* user: no way to the host or beyond, but for forwards */
	char *ifname;    /* tap: the interface */
	char *path;      /* socket: a Unix socket; the first machine listens, the second connects */
	u32 model;       /* enum net_model: the card */
	char *mac;       /* of the card: 52:54:00:12:34:56 */
	u32 sandbox;     /* enum sandbox_mode; user: of its helper */
};
extern const char *const net_kind_words[], *const net_model_words[];
/* Rows of a kv_key table for the options at `member` of `type`; the kind comes first. */
#define NET_KEYS(type, member) \
	{ "kind", KV_WORD, offsetof(type, member.kind), "what the card is connected to", .words = net_kind_words }, \
	{ "forward", KV_LIST, offsetof(type, member.forward), "user: [udp:][ADDRESS:]HOSTPORT:GUESTPORT; may be given again" }, \
	{ "isolated", KV_BOOL, offsetof(type, member.isolated), "user: nothing outside can be reached, but forwards work" }, \
	{ "ifname", KV_STR, offsetof(type, member.ifname), "tap: the interface, made if it is not there" }, \
	{ "path", KV_STR, offsetof(type, member.path), "socket: the first machine makes it, the second connects to it" }, \
	{ "model", KV_WORD, offsetof(type, member.model), "the card: virtio (the default) or e1000", .words = net_model_words }, \
	{ "mac", KV_STR, offsetof(type, member.mac), "the card's address" }

/* As struct virtio_net_hdr and the kernel's: VIRTIO 1.2, 5.1.6. Little-endian bytes. */
struct net_offload { u8 flags, gso_type; u16 hdr_len, gso_size, csum_start, csum_offset; };
enum { NET_NEEDS_CSUM = 1, NET_DATA_VALID = 2 };
/* What frames towards the card may leave undone: bits for net_set_offloads. */
enum { NET_CAN_CSUM = 1, NET_CAN_TSO4 = 2, NET_CAN_TSO6 = 4, NET_CAN_ECN = 8 };

struct net_card {
	void *arg;
	/* A frame for the card; false: there is no room, it is offered again after net_ready. */
	bool (*receive)(void *arg, const struct net_offload *o, const u8 *frame, size_t len);
	/* After net_send had to refuse: it may be tried again. */
	void (*writable)(void *arg);
};

struct net;
/* Forks for the user network, so it comes before there are threads. dry_run: nothing is opened or made. */
struct net *net_open(const struct net_options *o, bool dry_run, struct loop *loop, struct error *e);
void net_close(struct net *n);
void net_attach(struct net *n, const struct net_card *card);
/* False: not now; card.writable follows. What cannot be sent at all is dropped, as on a wire. */
bool net_send(struct net *n, const struct net_offload *o, const struct iovec *iov, unsigned n_iov);
void net_ready(struct net *n);                       /* any thread, any lock */
bool net_offloads(const struct net *n);              /* takes frames with checksums and segmentation undone */
void net_set_offloads(struct net *n, unsigned can);  /* and gives such; only if net_offloads; any lock */
bool net_is_valid(const struct net *n);              /* frames come from a process of ours: their checksums are right */
const char *net_describe(const struct net *n);
/* The address for a card, number k of its machine: as o says, or one of its own. */
bool net_mac(const struct net_options *o, unsigned k, u8 mac[NET_MAC_BYTES], struct error *e);
/* Computes what NET_NEEDS_CSUM asks for. False: it lies outside of the frame. */
bool net_checksum(const struct net_offload *o, u8 *frame, size_t len);

#endif
