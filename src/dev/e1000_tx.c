/* The 82540EM sends: descriptors (manual 3.3), segmentation (3.5), checksums (3.6). The loop's thread takes
 * packets from the ring, once they are there to their end.
 *
 *   legacy    u64 address; u16 length, u8 CSO, u8 command; u8 status, u8 CSS, u16 special
 *   data      u64 address; u32 length (20 bits), type (4), command (8); u8 status, u8 options, u16 special
 *   context   what checksums and segments of the data that follows are made of: struct e1000_context */
#define LOG_TOPIC "e1000"
#include "dev/e1000_impl.h"

#include <stdlib.h>
#include <string.h>

#define DESC_BYTES 16u
#define MAX_PIECES 256u          /* descriptors of a packet */
#define BURST 128u               /* packets, or segments of them, a turn of the loop */
#define FRAME_MIN 60u
#define FRAME_MAX 16288u         /* that is not segmented: 3.3.3 */
enum { CMD_EOP = 1, CMD_IFCS = 2, CMD_IC = 4, CMD_TSE = 4, CMD_RS = 8, CMD_DEXT = 0x20, CMD_VLE = 0x40 };
enum { TYPE_CONTEXT = 0, TYPE_DATA = 1 };
enum { OPTION_IP = 1, OPTION_TU = 2 };
enum { TU_TCP = 1, TU_IPV4 = 2 };
enum { PLAIN, SEGMENTED };       /* which context */
enum { TCP_FIN_PSH = 0x09 };

struct desc { u64 addr; u32 word, status; };

/* A packet as it lies in the ring. */
struct packet {
	u32 pieces, len;
	u8 command[MAX_PIECES];  /* of its descriptors */
	u8 first_command, options, sum_at, sum_start; /* the latter two: legacy */
	u16 tag;                 /* of its VLAN, if tagged */
	bool extended, bad, tagged;
};

/* ---- checksums ------------------------------------------------------------------------------------ */

u16 e1000_sum(const u8 *p, size_t len, u64 sum)
{
	size_t k = 0;

	for (; k + 4 <= len; k += 4)
		sum += ld32(p + k);
	for (; k + 2 <= len; k += 2)
		sum += ld16(p + k);
	if (k < len)
		sum += p[k];
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (u16)sum;
}

/* Puts the sum of the bytes from start to end (the last one; 0: to the end) at `at`. */
static void put_sum(u8 *frame, size_t len, size_t start, size_t end, size_t at, bool udp)
{
	size_t stop = end && end + 1 < len ? end + 1 : len;

	if (start >= stop || at + 2 > len)
		return;
	u16 sum = (u16)~e1000_sum(frame + start, stop - start, 0);
	st16(frame + at, udp && !sum ? 0xffff : sum); /* UDP's 0 means none */
}

static void put_sums(u8 *frame, size_t len, const struct e1000_context *c, u8 options)
{
	if (options & OPTION_TU)
		put_sum(frame, len, c->tu_start, c->tu_end, c->tu_at, !(c->command & TU_TCP));
	if (options & OPTION_IP)
		put_sum(frame, len, c->ip_start, c->ip_end, c->ip_at, false);
}

/* ---- a frame leaves --------------------------------------------------------------------------------- */

static void count(struct e1000 *e, const u8 *frame, size_t len)
{
	e1000_count(e, R_TPT, 1, false);
	e1000_count(e, R_GPTC, 1, false);
	e1000_count(e, R_TOTL, len + 4, true);
	e1000_count(e, R_GOTCL, len + 4, true);
	if (frame[0] & 1)
		e1000_count(e, ld32(frame) == 0xffffffff && ld16(frame + 4) == 0xffff ? R_BPTC : R_MPTC, 1, false);
}

static void put_be16(u8 *p, size_t val) { st16(p, __builtin_bswap16((u16)val)); }
static u16 be16(const u8 *p) { return __builtin_bswap16(ld16(p)); }

/* Behind both addresses, which move to the front. */
static u8 *put_tag(struct e1000 *e, u8 *frame, u16 tag)
{
	memmove(frame - E1000_TAG, frame, 12);
	put_be16(frame + 8, *e1000_reg(e, R_VET));
	put_be16(frame + 10, tag);
	return frame - E1000_TAG;
}

/* Lock held; it is given up meanwhile. False: not now, or the card was reset. frame is one of the buffers. */
static bool send_frame(struct e1000 *e, const struct packet *p, u8 *frame, size_t len)
{
	u32 epoch = e->epoch;
	bool sent = true;

	if (len < 14)
		return true;
	if (p->tagged && (*e1000_reg(e, R_CTRL) & CTRL_VME)) {
		frame = put_tag(e, frame, p->tag);
		len += E1000_TAG;
	}
	if (len < FRAME_MIN && (*e1000_reg(e, R_TCTL) & TCTL_PSP)) {
		memset(frame + len, 0, FRAME_MIN - len);
		len = FRAME_MIN;
	}
	if (e1000_loops_back(e)) {
		(void)e1000_receive(e, frame, len, false);
	} else if (e1000_link(e)) {
		struct iovec iov = { frame, len };

		mem_unlock(e->d.mem);
		sent = net_send(e->net, &(struct net_offload){ 0 }, &iov, 1);
		mem_lock(e->d.mem);
	}
	if (epoch != e->epoch)
		return false;
	if (sent)
		count(e, frame, len);
	return sent;
}

/* ---- segmentation ------------------------------------------------------------------------------------ */

/* Whether what a segment's headers get lies within them. */
static bool context_fits(const struct e1000_context *c)
{
	unsigned ip = c->command & TU_IPV4 ? 12 : 6, tu = c->command & TU_TCP ? 14 : 6;

	return c->mss && c->header >= 14 && c->ip_start + ip <= c->header && c->tu_start + tu <= c->header && c->tu_at + 2u <= c->header;
}

/* The headers of the segment that begins at byte `at` of the payload. */
static void segment_headers(u8 *frame, size_t len, const struct e1000_context *c, u32 at, bool last)
{
	u8 *ip = frame + c->ip_start, *tu = frame + c->tu_start;

	if (c->command & TU_IPV4) {
		put_be16(ip + 2, len - c->ip_start);
		put_be16(ip + 4, be16(ip + 4) + at / c->mss);
	} else {
		put_be16(ip + 4, len - c->ip_start - 40);
	}
	if (c->command & TU_TCP) {
		st32(tu + 4, __builtin_bswap32(__builtin_bswap32(ld32(tu + 4)) + at));
		if (!last)
			tu[13] &= (u8)~TCP_FIN_PSH;
	} else {
		put_be16(tu + 4, len - c->tu_start);
	}
	/* The driver has put the sum of the pseudo header there, without a length. */
	u8 *sum = frame + c->tu_at;
	st16(sum, e1000_sum(sum, 2, __builtin_bswap16((u16)(len - c->tu_start))));
}

/* False: not now; tx_sent says how far it came. */
static bool send_segments(struct e1000 *e, const struct packet *p)
{
	const struct e1000_context c = e->context[SEGMENTED];
	u32 payload = p->len - c.header;

	if (!context_fits(&c) || c.header + c.mss > FRAME_MAX || p->len < c.header) {
		log_guest("the driver asks for segments that cannot be");
		return true;
	}
	for (; e->tx_sent < payload; e->budget -= e->budget > 0) {
		if (!e->budget)
			return false; /* and goes on with the next turn */
		u32 part = MIN(c.mss, payload - e->tx_sent), at = e->tx_sent;
		size_t len = c.header + part;

		memcpy(e->segment, e->packet, c.header);
		memcpy(e->segment + c.header, e->packet + c.header + at, part);
		segment_headers(e->segment, len, &c, at, at + part == payload);
		put_sums(e->segment, len, &c, p->options);
		if (!send_frame(e, p, e->segment, len))
			return false;
		e->tx_sent = at + part;
	}
	e1000_count(e, R_TSCTC, 1, false);
	return true;
}

static bool send_packet(struct e1000 *e, const struct packet *p)
{
	u32 len = p->len;

	if (p->bad)
		return true;
	if (p->extended && (p->first_command & CMD_TSE))
		return send_segments(e, p);
	if (len > FRAME_MAX)
		return true;
	if (p->extended)
		put_sums(e->packet, len, &e->context[PLAIN], p->options);
	else if (p->first_command & CMD_IC)
		put_sum(e->packet, len, p->sum_start, 0, p->sum_at, false);
	/* With an FCS of the driver's own: the wire has none. */
	bool own_fcs = !(p->command[p->pieces - 1] & CMD_IFCS) && len > 4;
	return send_frame(e, p, e->packet, own_fcs ? len - 4 : len);
}

/* ---- the ring --------------------------------------------------------------------------------------------- */

static u64 ring_at(struct e1000 *e, u32 k)
{
	return ((u64)*e1000_reg(e, R_TDBAH) << 32 | *e1000_reg(e, R_TDBAL)) + (u64)k * DESC_BYTES;
}

static struct desc read_desc(struct e1000 *e, u32 k)
{
	u8 raw[DESC_BYTES];

	mem_read(e->d.mem, ring_at(e, k), raw, sizeof(raw));
	return (struct desc){ ld64(raw), ld32(raw + 8), ld32(raw + 12) };
}

static u8 command(const struct desc *d) { return (u8)(d->word >> 24); }
static unsigned type(const struct desc *d) { return d->word >> 20 & 15; }
static bool is_context(const struct desc *d) { return (command(d) & CMD_DEXT) && type(d) == TYPE_CONTEXT; }

static void take_context(struct e1000 *e, const struct desc *d)
{
	e->context[command(d) & CMD_TSE ? SEGMENTED : PLAIN] = (struct e1000_context){
		.ip_start = (u8)d->addr, .ip_at = (u8)(d->addr >> 8), .ip_end = (u16)(d->addr >> 16),
		.tu_start = (u8)(d->addr >> 32), .tu_at = (u8)(d->addr >> 40), .tu_end = (u16)(d->addr >> 48),
		.payload = d->word & 0xfffff, .command = command(d), .header = (u8)(d->status >> 8), .mss = (u16)(d->status >> 16) };
}

static void add_piece(struct e1000 *e, struct packet *p, const struct desc *d)
{
	u32 len = p->extended ? d->word & 0xfffff : d->word & 0xffff;

	if (len > E1000_FRAME_MAX - p->len || (bool)(command(d) & CMD_DEXT) != p->extended || is_context(d)) {
		p->bad = true;
	} else {
		mem_read(e->d.mem, d->addr, e->packet + p->len, len);
		p->len += len;
	}
	if (command(d) & CMD_VLE) {
		p->tagged = true;
		p->tag = (u16)(d->status >> 16);
	}
}

/* The packet that begins at the head of the ring, with d. False: its end is not there yet. */
static bool gather(struct e1000 *e, struct packet *p, struct desc d, u32 n, u32 tail)
{
	u32 k = *e1000_reg(e, R_TDH);

	*p = (struct packet){ .first_command = command(&d), .options = (u8)(d.status >> 8), .sum_at = (u8)(d.word >> 16),
			      .sum_start = (u8)(d.status >> 8), .extended = command(&d) & CMD_DEXT };
	for (;;) {
		add_piece(e, p, &d);
		p->command[p->pieces++] = command(&d);
		k = k + 1 == n ? 0 : k + 1;
		if (command(&d) & CMD_EOP)
			return true;
		if (p->pieces == MAX_PIECES || p->pieces >= n - 1) { /* a packet without end: what there is of it is dropped */
			p->bad = true;
			return true;
		}
		if (k == tail)
			return false;
		d = read_desc(e, k);
	}
}

/* Moves the head over pieces that are done; says so where the driver asked for that. */
static void complete(struct e1000 *e, const u8 *commands, u32 pieces, u32 n)
{
	u32 *head = e1000_reg(e, R_TDH);
	u8 done = 1, asked = 0;

	for (u32 k = 0; k < pieces; k++) {
		if (commands[k] & CMD_RS)
			mem_write(e->d.mem, ring_at(e, *head) + 12, &done, 1);
		asked |= commands[k] & CMD_RS;
		*head = *head + 1 >= n ? 0 : *head + 1;
	}
	e->tx_sent = 0;
	e1000_cause(e, (asked ? INT_TXDW : 0) | (*head == *e1000_reg(e, R_TDT) ? INT_TXQE : 0));
}

/* The next packet or context. False: there is none, or it cannot be sent now. */
static bool send_one(struct e1000 *e)
{
	struct packet p;
	u32 n = *e1000_reg(e, R_TDLEN) / DESC_BYTES, head = *e1000_reg(e, R_TDH), tail = *e1000_reg(e, R_TDT);

	if (!(*e1000_reg(e, R_TCTL) & TCTL_EN) || !pci_is_master(&e->pci) || head >= n || tail >= n || head == tail)
		return false;
	struct desc d = read_desc(e, head);
	if (is_context(&d)) {
		u8 cmd = command(&d);

		take_context(e, &d);
		complete(e, &cmd, 1, n);
		return true;
	}
	if (!gather(e, &p, d, n, tail) || !send_packet(e, &p))
		return false;
	complete(e, p.command, p.pieces, *e1000_reg(e, R_TDLEN) / DESC_BYTES);
	return true;
}

void e1000_send_all(void *arg)
{
	struct e1000 *e = arg;

	mem_lock(e->d.mem);
	e->budget = BURST;
	while (e->budget && send_one(e))
		e->budget -= e->budget > 0;
	if (!e->budget)
		loop_schedule(e->d.loop, &e->task);
	mem_unlock(e->d.mem);
}

bool e1000_send_buffers(struct e1000 *e)
{
	u8 *packet = malloc(E1000_TAG + E1000_FRAME_MAX), *segment = malloc(E1000_TAG + NET_FRAME_MAX);

	if (!packet || !segment) {
		free(packet);
		free(segment);
		return false;
	}
	e->packet = packet + E1000_TAG;
	e->segment = segment + E1000_TAG;
	return true;
}

void e1000_free_buffers(struct e1000 *e)
{
	free(e->packet - E1000_TAG);
	free(e->segment - E1000_TAG);
}
