/* virtio-net: a network card. VIRTIO 1.2, 5.1. Queue 0 receives, 1 sends, 2 takes commands.
 *
 * A frame is preceded by a header of 12 bytes (10 for legacy drivers without mergeable buffers):
 *   u8 flags, u8 gso_type, u16 hdr_len, u16 gso_size, u16 csum_start, u16 csum_offset, u16 num_buffers
 *
 * Offloads are what they say: a driver may leave a checksum to the device, and either the back end
 * takes it so, or it is computed here. Segmentation is offered only over a back end that does it.
 *
 * Invariants
 *  1. A frame is received as a whole or not at all: the chains for it are taken back where they do
 *     not do (virtq_unpop), and the back end holds it until the driver has added some.
 *  2. The machine lock is not held while a back end works.
 * Left out: several pairs of queues, VLAN and address filters: every frame is passed on. */
#define LOG_TOPIC "virtio"
#include "dev/virtio.h"

#include <string.h>

#define QUEUE_SIZE 256u
#define CONTROL_SIZE 64u
#define MAX_MERGED 64u
#define MTU 1500u

enum { Q_RECEIVE, Q_SEND, Q_CONTROL, QUEUES };
enum { F_CSUM = 1 << 0, F_GUEST_CSUM = 1 << 1, F_GUEST_OFFLOADS = 1 << 2, F_MTU = 1 << 3, F_MAC = 1 << 5, F_GUEST_TSO4 = 1 << 7,
       F_GUEST_TSO6 = 1 << 8, F_GUEST_ECN = 1 << 9, F_HOST_TSO4 = 1 << 11, F_HOST_TSO6 = 1 << 12, F_HOST_ECN = 1 << 13,
       F_MRG_RXBUF = 1 << 15, F_STATUS = 1 << 16, F_CTRL_VQ = 1 << 17, F_CTRL_RX = 1 << 18, F_CTRL_MAC = 1 << 23 };
#define F_SEGMENTS (F_GUEST_OFFLOADS | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN)
enum { CFG_MAC = 0, CFG_STATUS = 6, CFG_MAX_PAIRS = 8, CFG_MTU = 10, CFG_BYTES = 12, STATUS_LINK_UP = 1 };
enum { HEADER = 12, HEADER_LEGACY = 10, NUM_BUFFERS = 10 };
enum { CTRL_RX = 0, CTRL_MAC = 1, CTRL_MAC_TABLE = 0, CTRL_MAC_ADDR = 1, CTRL_OFFLOADS = 5, CTRL_OK = 0, CTRL_ERR = 1 };

struct virtio_net {
	struct virtio v;
	struct net *net;          /* NULL: no cable */
	u8 mac[NET_MAC_BYTES];    /* state */
	u8 own_mac[NET_MAC_BYTES];/* after a reset */
	struct virtq_chain merged[MAX_MERGED];
	struct virtq_chain sending;
	u8 frame[NET_FRAME_MAX];  /* of one whose checksum is computed here */
};

static struct virtio_net *net_of(struct virtio *v) { return container_of(v, struct virtio_net, v); }

static unsigned header_bytes(const struct virtio *v)
{
	return virtio_has(v, VIRTIO_F_VERSION_1 | F_MRG_RXBUF) ? HEADER : HEADER_LEGACY;
}

/* ---- receiving --------------------------------------------------------------------------- */

/* Takes chains for len bytes; how many, 0: there are not enough; UINT32_MAX: they are too small, drop it. */
static unsigned take_chains(struct virtio_net *n, size_t len)
{
	unsigned most = virtio_has(&n->v, F_MRG_RXBUF) ? MAX_MERGED : 1, k = 0;
	u64 room = 0;

	while (room < len && k < most && virtq_pop(&n->v, Q_RECEIVE, &n->merged[k]))
		room += n->merged[k++].in_len;
	if (room >= len)
		return k;
	bool never = k == most; /* they are too small, and more of them would not be taken */
	while (k > never)
		virtq_unpop(&n->v, &n->merged[--k]);
	if (never) { /* the first of them, which is the one that the queue's index is behind now */
		virtq_push(&n->v, &n->merged[0], 0);
		virtq_notify(&n->v, Q_RECEIVE);
	}
	return never ? UINT32_MAX : 0;
}

static void fill_chains(struct virtio_net *n, unsigned chains, const u8 *header, unsigned header_len, const u8 *frame, size_t len)
{
	size_t done = 0;

	for (unsigned k = 0; k < chains; k++) {
		struct virtq_chain *c = &n->merged[k];
		size_t at = k ? 0 : chain_write(c, 0, header, header_len);
		size_t part = chain_write(c, at, frame + done, len - done);

		done += part;
		virtq_push(&n->v, c, at + part);
	}
	virtq_notify(&n->v, Q_RECEIVE);
}

/* From the back end. Machine lock not held. */
static bool receive(void *arg, const struct net_offload *o, const u8 *frame, size_t len)
{
	struct virtio_net *n = arg;
	struct virtio *v = &n->v;
	u8 header[HEADER] = { 0 };
	bool taken = true;

	virtio_lock(v);
	if (!virtio_queue_usable(v, Q_RECEIVE)) {
		virtio_unlock(v);
		return true; /* a card that is off hears nothing */
	}
	unsigned header_len = header_bytes(v);
	unsigned chains = take_chains(n, header_len + len);
	if (!chains && virtq_kicks_on(v, Q_RECEIVE))
		chains = take_chains(n, header_len + len);
	if (!chains) {
		taken = false;
	} else if (chains <= MAX_MERGED) {
		memcpy(header, o, sizeof(*o));
		if (virtio_has(v, F_GUEST_CSUM) && net_is_valid(n->net))
			header[0] |= NET_DATA_VALID;
		if (!virtio_has(v, F_GUEST_CSUM))
			header[0] = 0;
		st16(header + NUM_BUFFERS, (u16)chains);
		fill_chains(n, chains, header, header_len, frame, len);
		virtq_kicks_off(v, Q_RECEIVE);
	}
	virtio_unlock(v);
	return taken;
}

/* ---- sending ------------------------------------------------------------------------------- */

/* Hands a frame to the back end, without the lock. False: not now. */
static bool send_frame(struct virtio_net *n, const struct virtq_chain *c, const u8 *header, unsigned header_len)
{
	struct net_offload o;
	struct iovec iov[VIRTQ_MAX_IOV];
	u64 len = c->out_len - header_len;
	unsigned n_iov;

	memcpy(&o, header, sizeof(o));
	if (net_offloads(n->net)) {
		n_iov = iov_slice(c->iov, c->n_out, header_len, len, iov);
		return net_send(n->net, &o, iov, n_iov);
	}
	if (o.gso_type)
		return true; /* not negotiated */
	if (o.flags & NET_NEEDS_CSUM) {
		chain_read(c, header_len, n->frame, len);
		if (!net_checksum(&o, n->frame, len))
			return true;
		iov[0] = (struct iovec){ n->frame, len };
		n_iov = 1;
	} else {
		n_iov = iov_slice(c->iov, c->n_out, header_len, len, iov);
	}
	return net_send(n->net, &(struct net_offload){ 0 }, iov, n_iov);
}

enum sent { SENT, NOTHING, REFUSED };

/* The next frame of the send queue. */
static enum sent send_one(struct virtio_net *n)
{
	struct virtio *v = &n->v;
	struct virtq_chain *c = &n->sending;
	unsigned header_len = header_bytes(v);
	u8 header[HEADER];
	bool sent = true;

	if (!virtq_pop(v, Q_SEND, c))
		return NOTHING;
	bool whole = c->out_len > header_len && c->out_len - header_len <= NET_FRAME_MAX;
	if (whole && n->net) {
		chain_read(c, 0, header, header_len);
		virtio_unlock(v);
		sent = send_frame(n, c, header, header_len);
		virtio_lock(v);
	}
	if (sent)
		virtq_push(v, c, 0);
	else
		virtq_unpop(v, c);
	return sent ? SENT : REFUSED;
}

static void send_all(struct virtio_net *n)
{
	enum sent last = SENT;

	virtq_kicks_off(&n->v, Q_SEND);
	for (unsigned k = 0; k < QUEUE_SIZE && last == SENT; k++)
		last = send_one(n);
	virtq_notify(&n->v, Q_SEND);
	/* Refused: writable goes on. */
	if (last == SENT || (last == NOTHING && virtq_kicks_on(&n->v, Q_SEND)))
		virtio_kick(&n->v, Q_SEND);
}

/* The back end takes frames again. Machine lock not held. */
static void writable(void *arg)
{
	struct virtio_net *n = arg;

	virtio_lock(&n->v);
	virtio_kick(&n->v, Q_SEND);
	virtio_unlock(&n->v);
}

/* ---- commands -------------------------------------------------------------------------------- */

static void apply_offloads(struct virtio_net *n, u64 features)
{
	if (n->net)
		net_set_offloads(n->net, (features & F_GUEST_CSUM ? NET_CAN_CSUM : 0) | (features & F_GUEST_TSO4 ? NET_CAN_TSO4 : 0) |
				 (features & F_GUEST_TSO6 ? NET_CAN_TSO6 : 0) | (features & F_GUEST_ECN ? NET_CAN_ECN : 0));
}

static u8 command(struct virtio_net *n, const struct virtq_chain *c)
{
	u8 head[2], data[8];

	if (chain_read(c, 0, head, sizeof(head)) != sizeof(head))
		return CTRL_ERR;
	if (head[0] == CTRL_RX)
		return virtio_has(&n->v, F_CTRL_RX) ? CTRL_OK : CTRL_ERR; /* it hears everything anyway */
	if (head[0] == CTRL_MAC && head[1] == CTRL_MAC_TABLE)
		return virtio_has(&n->v, F_CTRL_RX) ? CTRL_OK : CTRL_ERR;
	if (head[0] == CTRL_MAC && head[1] == CTRL_MAC_ADDR && virtio_has(&n->v, F_CTRL_MAC))
		return chain_read(c, 2, n->mac, sizeof(n->mac)) == sizeof(n->mac) ? CTRL_OK : CTRL_ERR;
	if (head[0] == CTRL_OFFLOADS && head[1] == 0 && virtio_has(&n->v, F_GUEST_OFFLOADS) && chain_read(c, 2, data, 8) == 8) {
		apply_offloads(n, ld64(data) & n->v.features);
		return CTRL_OK;
	}
	return CTRL_ERR;
}

static void serve_command(struct virtio *v, struct virtq_chain *c)
{
	u8 ack = command(net_of(v), c);

	virtq_push(v, c, chain_write(c, 0, &ack, 1));
}

static void net_run(struct virtio *v, unsigned q)
{
	struct virtio_net *n = net_of(v);

	if (q == Q_SEND)
		send_all(n);
	else if (q == Q_CONTROL)
		virtq_each(v, q, serve_command);
	else if (n->net)
		net_ready(n->net);
}

/* ---- configuration ---------------------------------------------------------------------------- */

static void net_config_read(struct virtio *v, u8 *cfg)
{
	struct virtio_net *n = net_of(v);

	memcpy(cfg + CFG_MAC, n->mac, NET_MAC_BYTES);
	st16(cfg + CFG_STATUS, n->net ? STATUS_LINK_UP : 0);
	st16(cfg + CFG_MAX_PAIRS, 1);
	st16(cfg + CFG_MTU, MTU);
}

/* Legacy drivers set the address so. */
static void net_config_write(struct virtio *v, unsigned off, const u8 *buf, unsigned len)
{
	if (!virtio_has(v, VIRTIO_F_VERSION_1) && off + len <= NET_MAC_BYTES)
		memcpy(net_of(v)->mac + off, buf, len);
}

static void net_forget(struct virtio *v)
{
	struct virtio_net *n = net_of(v);

	memcpy(n->mac, n->own_mac, sizeof(n->mac));
	apply_offloads(n, 0);
	if (n->net)
		net_ready(n->net); /* what it holds is for nobody */
}

static void net_status(struct virtio *v) { apply_offloads(net_of(v), v->features); }

static const struct virtio_type net_type = {
	.name = "virtio-net",
	.id = VIRTIO_ID_NET,
	.class_code = 0x020000,
	.features = F_CSUM | F_GUEST_CSUM | F_MTU | F_MAC | F_MRG_RXBUF | F_STATUS | F_CTRL_VQ | F_CTRL_RX | F_CTRL_MAC,
	.config_read = net_config_read,
	.config_write = net_config_write,
	.run = net_run,
	.reset = net_forget,
	.status = net_status,
};

void virtio_net_attach(struct device *d, struct net *net, const u8 mac[NET_MAC_BYTES])
{
	struct virtio_net *n = container_of(d, struct virtio_net, v.d);

	memcpy(n->own_mac, mac, sizeof(n->own_mac));
	memcpy(n->mac, mac, sizeof(n->mac));
	n->net = net;
	if (net_offloads(net))
		n->v.offered |= F_SEGMENTS;
	net_attach(net, &(struct net_card){ n, receive, writable });
}

/* ---- class --------------------------------------------------------------------------------------- */

static bool net_init(struct device *d, struct error *e)
{
	struct virtio_net *n = container_of(d, struct virtio_net, v.d);

	n->v.n_queues = QUEUES;
	n->v.queue_size[Q_RECEIVE] = n->v.queue_size[Q_SEND] = QUEUE_SIZE;
	n->v.queue_size[Q_CONTROL] = CONTROL_SIZE;
	n->v.config_size = CFG_BYTES;
	return virtio_init(&n->v, &net_type, e);
}

static void net_reset(struct device *d) { virtio_reset(container_of(d, struct virtio, d)); }

static void net_loaded(struct device *d)
{
	struct virtio_net *n = container_of(d, struct virtio_net, v.d);

	virtio_loaded(&n->v);
	apply_offloads(n, n->v.features);
}

static void net_destroy(struct device *d) { virtio_destroy(container_of(d, struct virtio, d)); }

static const struct state_field net_state[] = {
	VIRTIO_STATE(struct virtio_net), STATE(struct virtio_net, mac), STATE_END
};

const struct device_class virtio_net_class = {
	.name = "virtio_net",
	.help = "virtio network card",
	.size = sizeof(struct virtio_net),
	.init = net_init,
	.reset = net_reset,
	.destroy = net_destroy,
	.loaded = net_loaded,
	.state = net_state,
};
