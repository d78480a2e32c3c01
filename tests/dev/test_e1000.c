/* The 82540EM, programmed as a driver would: EEPROM, PHY, interrupts, filters, the receive ring, sending with
 * checksums and in segments, and rings that cannot be. A back end of the test's own keeps what is sent. */
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zlib.h>

#include "board.h"
#include "dev/e1000_impl.h"
#include "net/net_impl.h"

#define RX_RING 0x10000ull
#define TX_RING 0x20000ull
#define DATA 0x100000ull
#define N 16u                 /* descriptors of a ring */
#define MAX_SENT 64u

static const u8 own[6] = { 0x52, 0x54, 0, 1, 2, 3 };

static struct {
	struct board *b;
	struct net *net;
	u64 bar;
	unsigned n_sent, refuse;  /* refuse: so many sends are, before the next is not */
	bool reset;               /* the driver resets the card while the back end has the frame */
	size_t len[MAX_SENT];
	u8 frame[MAX_SENT][2048];
	u32 tx_tail;
} t;

static bool keep(struct net *n, const struct net_offload *o, const struct iovec *iov, unsigned n_iov)
{
	if (t.refuse) {
		t.refuse--;
		return false;
	}
	assert_true(t.n_sent < MAX_SENT);
	if (t.reset)
		mem_phys_write(&t.b->mem, t.bar + R_CTRL, CTRL_RST, 4);
	t.len[t.n_sent] = iov_read(iov, n_iov, 0, t.frame[t.n_sent], sizeof(t.frame[0]));
	t.n_sent++;
	return true;
}
static ssize_t none(struct net *n, struct net_offload *o) { return 0; }
static const struct net_ops ops = { .read = none, .send = keep };

static u32 get(u32 reg) { return (u32)mem_phys_read(&t.b->mem, t.bar + reg, 4); }
static void set(u32 reg, u32 val) { mem_phys_write(&t.b->mem, t.bar + reg, val, 4); }

static int setup(void **state)
{
	struct error e;

	memset(&t, 0, sizeof(t));
	t.b = board_new(&e1000_class);
	t.net = net_open(&(struct net_options){ .kind = NET_NONE }, true, t.b->loop, &e);
	t.net->ops = &ops;
	t.net->fd = eventfd(0, 0);
	e1000_attach(t.b->dev, t.net, own);
	struct e1000 *c = container_of(t.b->dev, struct e1000, d);
	t.bar = ld32(c->pci.config + PCI_BAR0) & ~15u;
	mem_lock(&t.b->mem);
	c->pci.config[PCI_COMMAND] |= PCI_CMD_MASTER;
	pci_config_written(&c->pci, PCI_COMMAND, 2);
	mem_unlock(&t.b->mem);
	return 0;
}

static int teardown(void **state)
{
	device_free(t.b->dev);
	t.b->dev = NULL;
	net_close(t.net);
	board_free(t.b);
	return 0;
}

static void rings_up(void)
{
	set(R_RDBAL, (u32)RX_RING);
	set(R_RDLEN, N * 16);
	set(R_RDH, 0);
	for (unsigned k = 0; k < N; k++) {
		u8 d[16] = { 0 };
		st64(d, DATA + 0x800 * k);
		mem_write(&t.b->mem, RX_RING + 16 * k, d, 16);
	}
	set(R_RDT, N - 1);
	set(R_TDBAL, (u32)TX_RING);
	set(R_TDLEN, N * 16);
	set(R_TDH, 0);
	set(R_TDT, 0);
	set(R_RCTL, RCTL_EN | RCTL_BAM);
	set(R_TCTL, TCTL_EN | TCTL_PSP);
}

/* ---- EEPROM, PHY --------------------------------------------------------------------------------- */

/* As Linux reads a word: command by the clock's edges, then 16 bits. */
static u16 microwire(unsigned word)
{
	u32 base = 1 << 6 | 1 << 1, command = 6u << 6 | word;
	u16 val = 0;

	set(R_EECD, 1 << 6);
	assert_true(get(R_EECD) & 1 << 7); /* granted */
	set(R_EECD, base);
	for (int k = 8; k >= 0; k--) {
		u32 bit = command >> k & 1 ? 1 << 2 : 0;
		set(R_EECD, base | bit);
		set(R_EECD, base | bit | 1);
		set(R_EECD, base | bit);
	}
	for (int k = 0; k < 16; k++) {
		set(R_EECD, base | 1);
		val = (u16)(val << 1 | (get(R_EECD) >> 3 & 1));
		set(R_EECD, base);
	}
	set(R_EECD, 0);
	return val;
}

static void eeprom(void **state)
{
	u16 sum = 0;

	for (unsigned k = 0; k < 64; k++) {
		u16 word = microwire(k);
		set(R_EERD, k << 8 | 1);
		assert_true(get(R_EERD) & 1 << 4);
		assert_int_equal(get(R_EERD) >> 16, word);
		sum = (u16)(sum + word);
	}
	assert_int_equal(sum, 0xbaba);
	assert_int_equal(microwire(0), ld16(own));
	assert_int_equal(microwire(2), ld16(own + 4));
	assert_int_equal(get(R_RA), ld32(own));
	assert_int_equal(get(R_RA + 4), 0x80000000 | ld16(own + 4));
}

static u16 phy(unsigned n)
{
	set(R_MDIC, 2u << 26 | 1 << 21 | n << 16);
	assert_int_equal(get(R_MDIC) >> 28, 1);
	return (u16)get(R_MDIC);
}

static void phy_registers(void **state)
{
	assert_int_equal(phy(2), 0x0141);
	assert_int_equal(phy(3) & 0xfff0, 0x0c20);
	assert_int_equal(phy(1) & 0x24, 0x24); /* link, agreed */
	assert_int_equal(get(R_STATUS) & 3, 3);
	set(R_IMS, INT_LSC);
	set(R_MDIC, 1u << 26 | 1 << 21 | 0 << 16 | 0x1340); /* agree anew */
	assert_int_equal(get(R_ICR), INT_LSC);
	assert_int_equal(phy(0), 0x1140);
	set(R_MDIC, 1u << 26 | 1 << 21 | 0 << 16 | 0x1940); /* power down */
	assert_int_equal(phy(1) & 0x24, 0);
	assert_int_equal(get(R_STATUS) & 2, 0);
	set(R_CTRL, 1u << 31); /* PHY reset */
	assert_int_equal(get(R_STATUS) & 2, 2);
	set(R_MDIC, 2u << 26 | 5 << 21 | 2 << 16); /* nobody's address */
	assert_int_equal(get(R_MDIC) >> 28, 5);
}

/* ---- interrupts ------------------------------------------------------------------------------------ */

static bool pin(void) { return container_of(t.b->dev, struct e1000, d)->pci.pin; }

static void interrupts(void **state)
{
	set(R_ICS, INT_TXDW);
	assert_false(pin());
	set(R_IMS, INT_TXDW | INT_RXT0);
	assert_true(pin());
	set(R_IMC, INT_TXDW);
	assert_false(pin());
	assert_int_equal(get(R_IMS), INT_RXT0);
	set(R_ICS, INT_RXT0);
	assert_true(pin());
	assert_int_equal(get(R_ICR), INT_TXDW | INT_RXT0);
	assert_false(pin());
	assert_int_equal(get(R_ICR), 0);
	set(R_ICS, INT_RXT0);
	set(R_ICR, INT_RXT0); /* ones clear, too */
	assert_false(pin());
}

static void throttled(void **state)
{
	set(R_ITR, 1000); /* 256 us */
	set(R_IMS, INT_RXT0);
	set(R_ICS, INT_RXT0);
	assert_true(pin()); /* the first comes at once */
	get(R_ICR);
	set(R_ICS, INT_RXT0);
	assert_false(pin());
	board_advance(t.b, 255000);
	assert_false(pin());
	board_advance(t.b, 1000);
	assert_true(pin());
	get(R_ICR);
	set(R_ICS, INT_RXT0);
	get(R_ICR);
	board_advance(t.b, 256000);
	assert_false(pin()); /* nobody waits any more */
}

/* ---- receiving --------------------------------------------------------------------------------------- */

static bool give(const u8 *frame, size_t len)
{
	return t.net->card.receive(t.net->card.arg, &(struct net_offload){ 0 }, frame, len);
}

static void make_frame(u8 *f, size_t len, const u8 *to)
{
	for (size_t k = 0; k < len; k++)
		f[k] = (u8)(k * 7);
	memcpy(f, to, 6);
	memcpy(f + 6, "\2\0\0\0\0\1", 6);
	f[12] = 0x88;
	f[13] = 0xb5;
}

static void rx_desc(unsigned k, u8 d[16]) { mem_read(&t.b->mem, RX_RING + 16 * k, d, 16); }

static void a_frame(void **state)
{
	u8 f[100], got[128], d[16];

	rings_up();
	make_frame(f, sizeof(f), own);
	assert_true(give(f, sizeof(f)));
	rx_desc(0, d);
	assert_int_equal(ld16(d + 8), 104); /* with FCS */
	assert_int_equal(d[12], 1 | 2 | 4); /* done, end, no checksums */
	assert_int_equal(get(R_RDH), 1);
	mem_read(&t.b->mem, DATA, got, 104);
	assert_memory_equal(got, f, 100);
	assert_int_equal(ld32(got + 100), crc32(0, f, 100));
	assert_true(get(R_ICR) & INT_RXT0);
	set(R_RCTL, RCTL_EN | RCTL_SECRC);
	assert_true(give(f, 20)); /* short ones are filled up */
	rx_desc(1, d);
	assert_int_equal(ld16(d + 8), 60);
	assert_int_equal(get(R_GPRC), 2);
	assert_int_equal(get(R_GPRC), 0); /* read, cleared */
	assert_int_equal(get(R_TORL), 104 + 64);
}

/* A frame in several buffers, and one that waits for room. */
static void buffers(void **state)
{
	u8 f[1500], got[256], d[16];

	rings_up();
	set(R_RCTL, RCTL_EN | RCTL_SECRC | 3 << 16); /* of 256 bytes */
	make_frame(f, sizeof(f), own);
	assert_true(give(f, sizeof(f)));
	for (unsigned k = 0; k < 6; k++) {
		rx_desc(k, d);
		assert_int_equal(ld16(d + 8), k < 5 ? 256 : 1500 - 5 * 256);
		assert_int_equal(d[12] & 3, k < 5 ? 1 : 3);
		mem_read(&t.b->mem, DATA + 0x800 * k, got, ld16(d + 8));
		assert_memory_equal(got, f + 256 * k, ld16(d + 8));
	}
	assert_true(give(f, sizeof(f)));
	assert_false(give(f, sizeof(f))); /* 3 of 15 are left */
	assert_int_equal(get(R_RDH), 12);
	assert_true(get(R_ICR) & INT_RXO);
	set(R_RDT, 11);
	assert_true(give(f, sizeof(f)));
	assert_int_equal(get(R_RDH), 2); /* around the end */
	assert_true(give(f, sizeof(f)));
	set(R_RDLEN, 0);
	assert_true(give(f, sizeof(f))); /* lost: it would never fit */
}

static bool hears(const u8 *to)
{
	u32 before = get(R_RDH);
	u8 f[64];

	make_frame(f, sizeof(f), to);
	assert_true(give(f, sizeof(f)));
	set(R_RDT, (get(R_RDH) + N - 1) % N);
	return get(R_RDH) != before;
}

static void filters(void **state)
{
	static const u8 all[6] = { 255, 255, 255, 255, 255, 255 }, other[6] = { 0x52, 0x54, 0, 1, 2, 4 }, group[6] = { 1, 0, 0x5e, 0, 0x12, 0x34 };

	assert_true(give(all, 6)); /* nobody listens yet */
	rings_up();
	assert_true(hears(own));
	assert_true(hears(all));
	assert_false(hears(other));
	assert_false(hears(group));
	set(R_RCTL, RCTL_EN);
	assert_false(hears(all));
	set(R_RCTL, RCTL_EN | RCTL_UPE);
	assert_true(hears(other));
	assert_false(hears(group));
	set(R_RCTL, RCTL_EN | RCTL_MPE);
	assert_true(hears(group));
	for (unsigned mo = 0; mo < 4; mo++) { /* which 12 of the last 16 bits, 0x3412 */
		unsigned hash = 0x3412 >> (const unsigned[]){ 4, 3, 2, 0 }[mo] & 0xfff;
		set(R_RCTL, RCTL_EN | mo << 12);
		assert_false(hears(group));
		set(R_MTA + 4 * (hash >> 5), 1u << (hash & 31));
		assert_true(hears(group));
		set(R_MTA + 4 * (hash >> 5), 0);
	}
	set(R_RA + 8, ld32(other));
	set(R_RA + 12, ld16(other + 4));
	assert_false(hears(other)); /* not valid */
	set(R_RA + 12, ld16(other + 4) | 1u << 31);
	assert_true(hears(other));
	set(R_CTRL, CTRL_RST);
	assert_int_equal(get(R_RCTL), 0);
	assert_int_equal(get(R_RA + 12), 0);
	assert_int_equal(get(R_RA), ld32(own));
}

/* Long frames, only where they are asked for; with the sum from any byte. */
static void long_frames(void **state)
{
	static u8 f[9000];
	u8 d[16];

	rings_up();
	make_frame(f, sizeof(f), own);
	assert_true(give(f, 1519));
	assert_int_equal(get(R_RDH), 0);
	set(R_RCTL, RCTL_EN | RCTL_LPE | RCTL_SECRC);
	set(R_RXCSUM, 14);
	assert_true(give(f, 9000));
	assert_int_equal(get(R_RDH), 5);
	rx_desc(4, d);
	assert_int_equal(ld16(d + 10), e1000_sum(f + 14, 9000 - 14, 0));
}

/* Tags that go into descriptors, where VME says so; filtered, where VFE does. */
static void vlan_received(void **state)
{
	u8 f[100], got[100], d[16];

	rings_up();
	make_frame(f, sizeof(f), own);
	memcpy(f + 12, "\x81\0\xa1\x23", 4);
	set(R_RCTL, RCTL_EN | RCTL_SECRC);
	assert_true(give(f, sizeof(f)));
	rx_desc(0, d);
	assert_int_equal(ld16(d + 8), 100);
	assert_int_equal(d[12], 1 | 2 | 4);
	set(R_CTRL, get(R_CTRL) | CTRL_VME);
	assert_true(give(f, sizeof(f)));
	rx_desc(1, d);
	assert_int_equal(ld16(d + 8), 96);
	assert_int_equal(d[12], 1 | 2 | 4 | 8);
	assert_int_equal(ld16(d + 14), 0xa123);
	mem_read(&t.b->mem, DATA + 0x800, got, 96);
	assert_memory_equal(got, f, 12);
	assert_memory_equal(got + 12, f + 16, 84);
	set(R_RCTL, RCTL_EN | RCTL_SECRC | RCTL_VFE);
	assert_true(give(f, sizeof(f)));
	assert_int_equal(get(R_RDH), 2);
	set(R_VFTA + 4 * (0x123 >> 5), 1u << (0x123 & 31));
	assert_true(give(f, sizeof(f)));
	assert_int_equal(get(R_RDH), 3);
}

/* An IPv4 packet of TCP or UDP, its sums right. */
static size_t make_ip(u8 *f, u8 protocol, size_t payload, const u8 *to)
{
	size_t head = protocol == 6 ? 20 : 8, tu = head + payload, len = 34 + tu;
	u8 *ip = f + 14, *p = f + 34;

	memset(f, 0, 34 + head);
	memcpy(f, to, 6);
	f[12] = 8;
	ip[0] = 0x45;
	ip[2] = (u8)((20 + tu) >> 8);
	ip[3] = (u8)(20 + tu);
	ip[5] = 9;
	ip[8] = 64;
	ip[9] = protocol;
	memcpy(ip + 12, "\12\0\2\17\12\0\2\2", 8);
	st16(ip + 10, (u16)~e1000_sum(ip, 20, 0));
	for (size_t k = 0; k < payload; k++)
		p[head + k] = (u8)(k * 13 + (k >> 8));
	memcpy(p, "\4\322\0\120", 4);
	if (protocol == 6) {
		memcpy(p + 4, "\0\0\377\360\0\0\0\1\120\31\1\0", 12);
	} else {
		p[4] = (u8)(tu >> 8);
		p[5] = (u8)tu;
	}
	u8 pseudo[12];
	memcpy(pseudo, ip + 12, 8);
	pseudo[8] = 0;
	pseudo[9] = protocol;
	pseudo[10] = (u8)(tu >> 8);
	pseudo[11] = (u8)tu;
	u16 sum = (u16)~e1000_sum(p, tu, e1000_sum(pseudo, 12, 0));
	st16(p + (protocol == 6 ? 16 : 6), sum ? sum : 0xffff);
	return len;
}

static void checked_sums(void **state)
{
	u8 f[1600], d[16];

	rings_up();
	set(R_RXCSUM, 1 << 8 | 1 << 9);
	for (unsigned k = 0; k < 6; k++) { /* right; wrong in the header; wrong in the data; UDP; UDP without; a fragment */
		static const u8 status[] = { 0x67, 0x67, 0x67, 0x67, 0x47, 0x47 }, errors[] = { 0, 0x40, 0x20, 0, 0, 0 };
		size_t len = make_ip(f, k >= 3 ? 17 : 6, 101, own);

		if (k == 1)
			f[14 + 8] ^= 1;
		if (k == 2)
			f[len - 1] ^= 1;
		if (k == 4)
			st16(f + 40, 0);
		if (k == 5) {
			f[14 + 6] = 0x20;
			st16(f + 24, 0);
			st16(f + 24, (u16)~e1000_sum(f + 14, 20, 0));
		}
		assert_true(give(f, len));
		rx_desc(k, d);
		if ((d[12] & ~4) != (status[k] & ~4) || d[13] != errors[k])
			fail_msg("packet %u: status %02x, errors %02x", k, d[12], d[13]);
	}
}

/* ---- sending ---------------------------------------------------------------------------------------------- */

static void tx(u64 addr, u32 word, u32 status)
{
	u8 d[16];

	st64(d, addr);
	st32(d + 8, word);
	st32(d + 12, status);
	mem_write(&t.b->mem, TX_RING + 16 * t.tx_tail, d, 16);
	t.tx_tail = (t.tx_tail + 1) % N;
}

static void go(void)
{
	set(R_TDT, t.tx_tail);
	board_turn(t.b);
}

static u8 tx_status(unsigned k)
{
	u8 s;

	mem_read(&t.b->mem, TX_RING + 16 * k + 12, &s, 1);
	return s;
}

#define EOP (1u << 24)
#define IFCS (2u << 24)
#define IC (4u << 24)
#define TSE (4u << 24)
#define RS (8u << 24)
#define VLE (0x40u << 24)
#define DEXT (0x20u << 24)
#define DTYP (1u << 20)

static void legacy(void **state)
{
	u8 f[200];

	rings_up();
	make_frame(f, sizeof(f), own);
	mem_write(&t.b->mem, DATA, f, sizeof(f));
	tx(DATA, 150 | IFCS, 0);
	go();
	assert_int_equal(t.n_sent, 0); /* its end is not there yet */
	assert_int_equal(get(R_TDH), 0);
	tx(DATA + 150, 50 | IFCS | EOP | RS, 0);
	tx(DATA, 20 | IFCS | EOP, 0);
	tx(DATA, 64 | EOP | RS, 0); /* with an FCS of its own */
	go();
	assert_int_equal(t.n_sent, 3);
	assert_int_equal(t.len[0], 200);
	assert_memory_equal(t.frame[0], f, 200);
	assert_int_equal(t.len[1], 60);
	assert_int_equal(t.frame[1][20], 0);
	assert_int_equal(t.len[2], 60);
	assert_int_equal(t.frame[2][20], f[20]);
	assert_int_equal(get(R_TDH), 4);
	assert_int_equal(tx_status(0), 0);
	assert_int_equal(tx_status(1), 1);
	assert_int_equal(tx_status(2), 0);
	assert_int_equal(get(R_ICR) & 3, INT_TXDW | INT_TXQE);
	assert_int_equal(get(R_GPTC), 3);
	/* A sum from byte 14 on, at byte 16. */
	tx(DATA, 61 | 16 << 16 | IC | IFCS | EOP, 14 << 8);
	go();
	assert_int_equal(e1000_sum(t.frame[3] + 14, 61 - 14, 0), (u16)~ld16(f + 16)); /* all but what was there */
}

static bool sums_are_right(const u8 *f, size_t len)
{
	const u8 *ip = f + 14;
	u16 tu = (u16)(len - 34);
	u8 pseudo[4] = { 0, ip[9], (u8)(tu >> 8), (u8)tu };

	return e1000_sum(ip, 20, 0) == 0xffff && e1000_sum(f + 34, tu, e1000_sum(ip + 12, 8, e1000_sum(pseudo, 4, 0))) == 0xffff;
}

/* What Linux leaves in a packet's sums: none in IP's, the pseudo header's in the other. */
static void leave_undone(u8 *f, size_t len, bool with_len)
{
	u8 *ip = f + 14, *at = f + 34 + (ip[9] == 6 ? 16 : 6);
	size_t tu = with_len ? len - 34 : 0;
	u8 pseudo[4] = { 0, ip[9], (u8)(tu >> 8), (u8)tu };

	st16(ip + 10, 0);
	st16(at, e1000_sum(ip + 12, 8, e1000_sum(pseudo, 4, 0)));
}

static void context(u8 protocol, u8 header, u16 mss, u32 payload, u32 commands)
{
	u8 tu = 34 + (protocol == 6 ? 16 : 6);

	tx(14u | 24u << 8 | 33u << 16 | (u64)34 << 32 | (u64)tu << 40, payload | DEXT | commands | (protocol == 6 ? 1u : 0) << 24 | 2u << 24,
	   (u32)header << 8 | (u32)mss << 16);
}

static void extended_sums(void **state)
{
	u8 f[1600];

	rings_up();
	for (unsigned k = 0; k < 2; k++) {
		u8 protocol = k ? 17 : 6;
		size_t len = make_ip(f, protocol, 333, own);

		leave_undone(f, len, true);
		mem_write(&t.b->mem, DATA, f, len);
		context(protocol, 0, 0, 0, RS);
		tx(DATA, 50 | DEXT | DTYP | IFCS, 3 << 8);
		tx(DATA + 50, (u32)(len - 50) | DEXT | DTYP | IFCS | EOP | RS, 3 << 8);
		go();
		assert_int_equal(t.n_sent, k + 1);
		assert_int_equal(t.len[k], len);
		assert_true(sums_are_right(t.frame[k], len));
		assert_int_equal(tx_status(3 * k), 1); /* of a context, too */
		assert_int_equal(tx_status(3 * k + 2), 1);
	}
}

static void check_segments(size_t payload, unsigned mss)
{
	u8 want[8192];
	size_t done = 0;

	make_ip(want, 6, payload, own);
	for (unsigned k = 0; k < t.n_sent; k++) {
		const u8 *f = t.frame[k];
		size_t part = MIN(mss, payload - done);

		assert_int_equal(t.len[k], 54 + part);
		assert_true(sums_are_right(f, t.len[k]));
		assert_int_equal(f[16] << 8 | f[17], 40 + part);
		assert_int_equal(f[18] << 8 | f[19], 9 + k);                         /* IP's identification */
		assert_int_equal(__builtin_bswap32(ld32(f + 38)), 0xfff0 + done);      /* TCP's sequence number */
		assert_int_equal(f[47], done + part == payload ? 0x19 : 0x10);         /* FIN and PSH with the last */
		assert_memory_equal(f + 54, want + 54 + done, part);
		done += part;
	}
	assert_int_equal(done, payload);
}

static void segments(void **state)
{
	u8 f[8192];
	size_t len = make_ip(f, 6, 5000, own);

	for (unsigned refused = 0; refused < 2; refused++) {
		t.n_sent = t.tx_tail = 0;
		rings_up();
		leave_undone(f, len, false);
		st16(f + 16, 0);
		mem_write(&t.b->mem, DATA, f, len);
		context(6, 54, 1448, 5000, TSE);
		tx(DATA, 54 | DEXT | DTYP | TSE | IFCS, 3 << 8);
		tx(DATA + 54, 5000 | DEXT | DTYP | TSE | IFCS | EOP | RS, 0);
		if (refused) { /* the second segment, at first: none is sent twice */
			t.refuse = 0;
			set(R_TDT, t.tx_tail);
			t.refuse = 1;
			board_turn(t.b);
			assert_int_equal(t.n_sent, 0);
			assert_int_equal(get(R_TDH), 1);
			board_turn(t.b);
			board_turn(t.b);
		} else {
			go();
		}
		assert_int_equal(get(R_TDH), 3);
		assert_int_equal(tx_status(2), 1);
		check_segments(5000, 1448);
	}
}

/* IPv6's header has a length without itself, and no sum. */
static void segments_of_ipv6(void **state)
{
	u8 f[74 + 2500] = { 0 }, pseudo[40];

	rings_up();
	memcpy(f, own, 6);
	f[12] = 0x86;
	f[13] = 0xdd;
	f[14] = 0x60;
	f[20] = 6;
	for (unsigned k = 0; k < 32; k++)
		f[22 + k] = (u8)(k * 11);
	memset(pseudo, 0, sizeof(pseudo));
	memcpy(pseudo, f + 22, 32);
	pseudo[39] = 6;
	f[54 + 12] = 0x50;
	f[54 + 13] = 0x18;
	st16(f + 70, e1000_sum(pseudo, 40, 0));
	for (unsigned k = 0; k < 2500; k++)
		f[74 + k] = (u8)(k * 5);
	mem_write(&t.b->mem, DATA, f, sizeof(f));
	tx(14u | (u64)54 << 32 | (u64)70 << 40, 2500 | DEXT | 1u << 24 | TSE, 74u << 8 | 1000u << 16);
	tx(DATA, (u32)sizeof(f) | DEXT | DTYP | TSE | IFCS | EOP | RS, 2 << 8);
	go();
	assert_int_equal(t.n_sent, 3);
	for (unsigned k = 0; k < 3; k++) {
		const u8 *s = t.frame[k];
		unsigned part = k < 2 ? 1000 : 500;

		assert_int_equal(t.len[k], 74 + part);
		assert_int_equal(s[18] << 8 | s[19], 20 + part);
		assert_int_equal(__builtin_bswap32(ld32(s + 58)), 1000 * k);
		pseudo[34] = (u8)((20 + part) >> 8);
		pseudo[35] = (u8)(20 + part);
		assert_int_equal(e1000_sum(s + 54, 20 + part, e1000_sum(pseudo, 40, 0)), 0xffff);
		assert_memory_equal(s + 74, f + 74 + 1000 * k, part);
	}
}

static void vlan_sent(void **state)
{
	u8 f[3100];
	size_t len = make_ip(f, 6, 3000, own);

	rings_up();
	leave_undone(f, len, false);
	mem_write(&t.b->mem, DATA, f, len);
	context(6, 54, 1448, 3000, TSE);
	tx(DATA, (u32)len | DEXT | DTYP | TSE | IFCS | EOP | VLE, 3 << 8 | 0x2007u << 16);
	set(R_CTRL, get(R_CTRL) | CTRL_VME);
	go();
	assert_int_equal(t.n_sent, 3);
	for (unsigned k = 0; k < 3; k++) {
		u8 *s = t.frame[k];

		assert_memory_equal(s, f, 12);
		assert_memory_equal(s + 12, "\x81\0\x20\7\10\0", 6);
		t.len[k] -= 4;
		memmove(s + 12, s + 16, t.len[k] - 12);
	}
	check_segments(3000, 1448);
	set(R_CTRL, get(R_CTRL) & ~(u32)CTRL_VME);
	tx(DATA, 100 | IFCS | EOP | VLE, 7u << 16);
	go();
	assert_int_equal(t.len[3], 100);
	set(R_CTRL, get(R_CTRL) | CTRL_VME);
	tx(DATA, 100 | IFCS | EOP | VLE, 7u << 16);
	go();
	assert_int_equal(t.len[4], 104);
	assert_memory_equal(t.frame[4] + 16, f + 12, 88);
}

/* Segments that would write behind their headers, and the like: nothing is sent, the ring goes on. */
static void contexts_that_cannot_be(void **state)
{
	u8 f[200];

	rings_up();
	make_frame(f, sizeof(f), own);
	mem_write(&t.b->mem, DATA, f, sizeof(f));
	static const struct { u8 ip, tu, at, header; u16 mss; } bad[] = {
		{ 14, 34, 50, 54, 0 }, { 14, 34, 50, 0, 100 }, { 50, 34, 50, 54, 100 }, { 14, 50, 50, 54, 100 }, { 14, 34, 53, 54, 100 },
		{ 14, 34, 50, 255, 100 }, { 255, 255, 255, 255, 0xffff }, { 14, 34, 50, 54, 0xffff },
	};
	for (unsigned k = 0; k < ARRAY_LEN(bad); k++) {
		tx(bad[k].ip | 24u << 8 | (u64)bad[k].tu << 32 | (u64)bad[k].at << 40, DEXT | 3u << 24 | TSE, (u32)bad[k].header << 8 | (u32)bad[k].mss << 16);
		tx(DATA, 200 | DEXT | DTYP | TSE | IFCS | EOP | RS, 3 << 8);
		go();
		assert_int_equal(t.n_sent, 0);
		assert_int_equal(get(R_TDH), t.tx_tail);
	}
	/* Sums that go where no byte is. */
	tx(14u | 255u << 8 | (u64)250 << 32 | (u64)254 << 40, DEXT | RS, 0);
	tx(DATA, 100 | DEXT | DTYP | IFCS | EOP | RS, 3 << 8);
	go();
	assert_int_equal(t.n_sent, 1);
	assert_memory_equal(t.frame[0], f, 100);
}

static void rings_that_cannot_be(void **state)
{
	rings_up();
	for (unsigned k = 0; k < N; k++) /* no end anywhere */
		tx(DATA, 10, 0);
	set(R_TDT, N - 1);
	board_turn(t.b);
	assert_int_equal(t.n_sent, 0);
	assert_int_equal(get(R_TDH), N - 1);
	set(R_TDT, N + 5); /* beyond the ring */
	board_turn(t.b);
	assert_int_equal(get(R_TDH), N - 1);
	set(R_TDBAL, 0xfffffff0); /* not in memory */
	set(R_TDBAH, 0xffffffff);
	set(R_TDT, 3);
	board_turn(t.b);
	assert_int_equal(t.n_sent, 0);
	set(R_TDLEN, 0);
	board_turn(t.b);
	set(R_RDBAH, 0xffffffff);
	u8 f[100];
	make_frame(f, sizeof(f), own);
	assert_true(give(f, sizeof(f)));
}

/* Nothing of the ring that was is done then. */
static void a_reset_while_it_sends(void **state)
{
	u8 f[8192];
	size_t len = make_ip(f, 6, 5000, own);

	rings_up();
	leave_undone(f, len, false);
	mem_write(&t.b->mem, DATA, f, len);
	t.reset = true;
	context(6, 54, 1448, 5000, TSE);
	tx(DATA, (u32)len | DEXT | DTYP | TSE | IFCS | EOP | RS, 3 << 8);
	go();
	assert_int_equal(t.n_sent, 1);
	assert_int_equal(get(R_TDH), 0);
	assert_int_equal(tx_status(1), 0);
	assert_int_equal(get(R_ICR), 0);
	assert_int_equal(container_of(t.b->dev, struct e1000, d)->tx_sent, 0);
}

/* With the PHY's loopback what is sent comes back, and the cable is not there. */
static void loopback(void **state)
{
	u8 f[100], d[16];

	rings_up();
	set(R_MDIC, 1u << 26 | 1 << 21 | 0 << 16 | 0x5140);
	make_frame(f, sizeof(f), own);
	mem_write(&t.b->mem, DATA + 0x10000, f, sizeof(f));
	tx(DATA + 0x10000, 100 | IFCS | EOP, 0);
	go();
	assert_int_equal(t.n_sent, 0);
	rx_desc(0, d);
	assert_int_equal(ld16(d + 8), 104);
	assert_true(give(f, sizeof(f)));
	assert_int_equal(get(R_RDH), 1);
}

static void ports(void **state)
{
	struct e1000 *c = container_of(t.b->dev, struct e1000, d);
	u16 io = (u16)(ld32(c->pci.config + PCI_BAR0 + 8) & ~3u);

	mem_port_write(&t.b->mem, io, R_VET, 4);
	mem_port_write(&t.b->mem, io + 4, 0x8100, 4);
	assert_int_equal(get(R_VET), 0x8100);
	assert_int_equal(mem_port_read(&t.b->mem, io + 4, 4), 0x8100);
	mem_port_write(&t.b->mem, io, 0xffffffff, 4);
	assert_int_equal(mem_port_read(&t.b->mem, io + 4, 4), 0);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(eeprom), TEST(phy_registers), TEST(interrupts), TEST(throttled), TEST(a_frame), TEST(buffers), TEST(filters),
		TEST(long_frames), TEST(checked_sums), TEST(legacy), TEST(extended_sums), TEST(segments), TEST(segments_of_ipv6), TEST(vlan_received), TEST(vlan_sent), TEST(contexts_that_cannot_be),
		TEST(rings_that_cannot_be), TEST(a_reset_while_it_sends), TEST(loopback), TEST(ports),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
