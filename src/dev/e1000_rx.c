/* The 82540EM receives: filters (manual 3.2.1, 13.4.22, 13.5), descriptors (3.2.3), checksums (3.2.9). Called
 * with the machine lock held. */
#include "dev/e1000_impl.h"

#include <string.h>
#include <zlib.h>

#define DESC_BYTES 16u
#define FRAME_MIN 60u            /* shorter ones are filled up */
#define FRAME_MAX 1518u          /* 1522 with FCS; longer ones if RCTL.LPE */
#define FRAME_LPE_MAX 16384u
#define FCS_BYTES 4u
enum { RX_DD = 1, RX_EOP = 2, RX_IXSM = 4, RX_VP = 8, RX_TCPCS = 0x20, RX_IPCS = 0x40, RX_PIF = 0x80 };
enum { RX_TCPE = 0x20, RX_IPE = 0x40 };
enum { RXCSUM_IP = 1 << 8, RXCSUM_TU = 1 << 9 };
enum { RAH_AV = 31 };

/* What descriptors say of a frame. */
struct verdict { u8 status, errors; u16 sum, tag; };

/* ---- filters --------------------------------------------------------------------------------------- */

static bool is_ours(struct e1000 *e, const u8 *to)
{
	for (unsigned k = 0; k < 16; k++) {
		u32 high = *e1000_reg(e, R_RA + 8 * k + 4);

		if (high >> RAH_AV && ld32(to) == *e1000_reg(e, R_RA + 8 * k) && ld16(to + 4) == (u16)high)
			return true;
	}
	return false;
}

/* The table of multicast addresses: by 12 of the last 16 bits. */
static bool in_table(struct e1000 *e, const u8 *to)
{
	static const u8 shifts[4] = { 4, 3, 2, 0 };
	u32 hash = (u32)ld16(to + 4) >> shifts[*e1000_reg(e, R_RCTL) >> 12 & 3] & 0xfff;

	return *e1000_reg(e, R_MTA + 4 * (hash >> 5)) >> (hash & 31) & 1;
}

/* The tag of a frame of a VLAN's. False: it has none. */
static bool tag_of(struct e1000 *e, const u8 *frame, size_t len, u16 *tag)
{
	if (len < 14 + E1000_TAG || __builtin_bswap16(ld16(frame + 12)) != (u16)*e1000_reg(e, R_VET))
		return false;
	*tag = __builtin_bswap16(ld16(frame + 14));
	return true;
}

static bool vlan_passes(struct e1000 *e, u16 tag)
{
	unsigned id = tag & 0xfff;

	return !(*e1000_reg(e, R_RCTL) & RCTL_VFE) || (*e1000_reg(e, R_VFTA + 4 * (id >> 5)) >> (id & 31) & 1);
}

/* False: it is not for this card. status: what the descriptor says of how it passed. */
static bool passes(struct e1000 *e, const u8 *to, u8 *status)
{
	static const u8 all[NET_MAC_BYTES] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
	u32 rctl = *e1000_reg(e, R_RCTL);
	bool group = to[0] & 1;

	if (!memcmp(to, all, sizeof(all)) && (rctl & RCTL_BAM))
		return true;
	if ((rctl & (group ? RCTL_MPE : RCTL_UPE)) || is_ours(e, to))
		return true;
	*status |= RX_PIF;
	return group && in_table(e, to);
}

/* ---- checksums --------------------------------------------------------------------------------------- */

/* The sum of a TCP or UDP packet's pseudo header; the rest follows it. */
static u64 pseudo_sum(const u8 *ip, u16 tu_len)
{
	return (u64)__builtin_bswap16(ip[9]) + e1000_sum(ip + 12, 8, 0) + __builtin_bswap16(tu_len);
}

/* What the card says of an IPv4 packet's sums. known: whoever sent it vouches for them. */
static void judge(u32 wanted, const u8 *frame, size_t len, bool known, struct verdict *v)
{
	const u8 *ip = frame + 14;

	if (len < 34 || frame[12] != 8 || frame[13] || ip[0] >> 4 != 4)
		return;
	size_t head = (ip[0] & 15u) * 4, total = (size_t)(ip[2] << 8 | ip[3]);
	if (head < 20 || total < head || total > len - 14)
		return;
	if (wanted & RXCSUM_IP) {
		v->status |= RX_IPCS;
		if (!known && e1000_sum(ip, head, 0) != 0xffff)
			v->errors |= RX_IPE;
	}
	const u8 *tu = ip + head;
	size_t tu_len = total - head;
	bool fragment = (ip[6] & 0x3f) || ip[7], udp = ip[9] == 17;
	if (!(wanted & RXCSUM_TU) || fragment || (ip[9] != 6 && !udp) || tu_len < (udp ? 8 : 20) || (udp && !ld16(tu + 6)))
		return;
	v->status |= RX_TCPCS;
	if (!known && e1000_sum(tu, tu_len, pseudo_sum(ip, (u16)tu_len)) != 0xffff)
		v->errors |= RX_TCPE;
}

/* ---- the ring -------------------------------------------------------------------------------------------- */

static u32 buffer_bytes(u32 rctl)
{
	u32 k = rctl >> 16 & 3;

	return (rctl & RCTL_BSEX) && k ? 32768u >> k : 2048u >> k;
}

static u32 free_descriptors(struct e1000 *e, u32 *n)
{
	u32 head = *e1000_reg(e, R_RDH), tail = *e1000_reg(e, R_RDT);

	*n = *e1000_reg(e, R_RDLEN) / DESC_BYTES;
	if (head >= *n || tail >= *n)
		return 0;
	return tail >= head ? tail - head : *n - head + tail;
}

/* One buffer of a frame: bytes into memory, then the descriptor, its last word at once. */
static void fill_one(struct e1000 *e, u32 at, const u8 *bytes, u32 len, const struct verdict *v)
{
	u64 ring = (u64)*e1000_reg(e, R_RDBAH) << 32 | *e1000_reg(e, R_RDBAL), desc = ring + (u64)at * DESC_BYTES;
	u8 addr[8], word[8] = { 0 };

	mem_read(e->d.mem, desc, addr, sizeof(addr));
	mem_write(e->d.mem, ld64(addr), bytes, len);
	st16(word, (u16)len);
	st16(word + 2, v->sum);
	word[4] = v->status;
	word[5] = v->errors;
	st16(word + 6, v->tag);
	mem_write(e->d.mem, desc + 8, word, sizeof(word));
}

static void count(struct e1000 *e, const u8 *frame, size_t len)
{
	e1000_count(e, R_TPR, 1, false);
	e1000_count(e, R_GPRC, 1, false);
	e1000_count(e, R_TORL, len, true);
	e1000_count(e, R_GORCL, len, true);
	if (frame[0] & 1)
		e1000_count(e, (ld32(frame) & ld16(frame + 4)) == 0xffff && ld32(frame) == 0xffffffff ? R_BPRC : R_MPRC, 1, false);
}

/* len: with FCS, where it is kept. */
static void fill_ring(struct e1000 *e, const u8 *frame, u32 len, u32 n, const struct verdict *v)
{
	u32 size = buffer_bytes(*e1000_reg(e, R_RCTL)), *head = e1000_reg(e, R_RDH), start = *e1000_reg(e, R_RXCSUM) & 0xff;
	struct verdict more = { .status = RX_DD }, end = *v;

	end.status |= RX_DD | RX_EOP;
	end.sum = start < len ? e1000_sum(frame + start, len - start, 0) : 0;

	for (u32 done = 0; done < len; done += size) {
		u32 part = MIN(size, len - done);
		bool last = done + part == len;

		fill_one(e, *head, frame + done, part, last ? &end : &more);
		*head = *head + 1 == n ? 0 : *head + 1;
	}
}

/* The frame as it goes to memory: filled up, with FCS, without the tag that goes into the descriptor. Its length. */
static u32 prepare(struct e1000 *e, u8 *frame, const u8 *data, size_t len, bool strip)
{
	memcpy(frame, data, len);
	if (len < FRAME_MIN) {
		memset(frame + len, 0, FRAME_MIN - len);
		len = FRAME_MIN;
	}
	if (!(*e1000_reg(e, R_RCTL) & RCTL_SECRC)) {
		st32(frame + len, (u32)crc32(0, frame, (uInt)len));
		len += FCS_BYTES;
	}
	if (strip) {
		len -= E1000_TAG;
		memmove(frame + 12, frame + 12 + E1000_TAG, len - 12);
	}
	return (u32)len;
}

bool e1000_receive(struct e1000 *e, const u8 *data, size_t len, bool checked)
{
	u8 frame[FRAME_LPE_MAX + FCS_BYTES];
	struct verdict v = { 0 };
	u32 rctl = *e1000_reg(e, R_RCTL), n, wanted = *e1000_reg(e, R_RXCSUM) & (RXCSUM_IP | RXCSUM_TU);

	if (!(rctl & RCTL_EN) || !pci_is_master(&e->pci) || len < 14 || len > (rctl & RCTL_LPE ? FRAME_LPE_MAX : FRAME_MAX) ||
	    !passes(e, data, &v.status))
		return true;
	bool tagged = tag_of(e, data, len, &v.tag), strip = tagged && (*e1000_reg(e, R_CTRL) & CTRL_VME);
	if (tagged && !vlan_passes(e, v.tag))
		return true;
	u32 total = prepare(e, frame, data, len, strip);
	u32 room = free_descriptors(e, &n), size = buffer_bytes(rctl), needed = (total + size - 1) / size;
	if (room < needed) {
		if (needed >= n)
			return true; /* it never fits */
		e1000_count(e, R_RNBC, 1, false);
		e1000_cause(e, INT_RXO);
		return false;
	}
	if (wanted)
		judge(wanted, frame, total - (rctl & RCTL_SECRC ? 0 : FCS_BYTES), checked, &v);
	if (!(v.status & (RX_IPCS | RX_TCPCS)))
		v.status |= RX_IXSM;
	if (strip)
		v.status |= RX_VP;
	else
		v.tag = 0;
	count(e, frame, MAX(len, FRAME_MIN) + FCS_BYTES);
	fill_ring(e, frame, total, n, &v);
	bool few = room - needed <= n >> ((rctl >> 8 & 3) + 1);
	e1000_cause(e, INT_RXT0 | (few ? INT_RXDMT0 : 0));
	return true;
}
