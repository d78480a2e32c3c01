/* PCI configuration, PIRQ routing, the reset register. */
#include "board.h"

static struct board *b;
static struct device *host;
static struct pci_function nic, disk;
static unsigned written_off, written_size;

static void nic_written(struct pci_function *f, unsigned off, unsigned size)
{
	written_off = off;
	written_size = size;
}

static int setup(void **state)
{
	b = board_bare();
	host = board_device(b, &pci_host_class);
	memset(&nic, 0, sizeof(nic));
	nic.dev = 3;
	nic.written = nic_written;
	st32(nic.config, 0x12345678);
	nic.config[0x3d] = 1;
	st32(nic.wmask + 0x10, ~0xfffu);      /* BAR 0: 4 KiB */
	st16(nic.wmask + 0x04, 0x0007);
	nic.config[0x3c] = 0;
	nic.wmask[0x3c] = 0xff;
	st16(nic.config + 0x06, 0xf900);
	st16(nic.w1c + 0x06, 0xf900);
	assert_true(pci_add(host, &nic));
	memset(&disk, 0, sizeof(disk));
	disk.dev = 7; /* on the same PIRQ as slot 3 */
	disk.config[0x3d] = 1;
	assert_true(pci_add(host, &disk));
	return 0;
}

static int teardown(void **state)
{
	device_free(host);
	board_free(b);
	return 0;
}

static u32 in(u16 port, unsigned size) { return mem_port_read(&b->mem, port, size); }
static void out(u16 port, u32 val, unsigned size) { mem_port_write(&b->mem, port, val, size); }

static void address(unsigned bus, unsigned dev, unsigned fn, unsigned reg)
{
	out(0xcf8, 0x80000000 | bus << 16 | dev << 11 | fn << 8 | reg, 4);
}

static u32 rd(unsigned dev, unsigned fn, unsigned reg)
{
	address(0, dev, fn, reg & ~3u);
	return in((u16)(0xcfc + (reg & 3)), 4 - (reg & 3));
}

static void wr8(unsigned dev, unsigned fn, unsigned reg, u8 v)
{
	address(0, dev, fn, reg & ~3u);
	out((u16)(0xcfc + (reg & 3)), v, 1);
}

static void lanes(void **state)
{
	address(0, 3, 0, 0);
	assert_int_equal(in(0xcf8, 4), 0x80001800);
	assert_int_equal(in(0xcfc, 4), 0x12345678);
	assert_int_equal(in(0xcfc, 2), 0x5678);
	assert_int_equal(in(0xcfe, 2), 0x1234);
	assert_int_equal(in(0xcfd, 1), 0x56);
	assert_int_equal(in(0xcff, 1), 0x12);
	/* Read-only, and bytes in their lanes. */
	out(0xcfc, 0, 4);
	assert_int_equal(in(0xcfc, 4), 0x12345678);
	address(0, 3, 0, 0x3c);
	out(0xcfc, 0xab, 1);
	assert_int_equal(written_off, 0x3c);
	assert_int_equal(written_size, 1);
	out(0xcfd, 0xcd, 1);
	assert_int_equal(in(0xcfc, 4), 0x01ab);
	assert_int_equal(written_off, 0x3d);
	/* Without the enable bit there is nothing. */
	out(0xcf8, 0x1800, 4);
	assert_int_equal(in(0xcfc, 4), 0xffffffff);
	/* Bytes at 0xcf8 and words are not the address register. */
	address(0, 3, 0, 0x10);
	out(0xcf8, 0, 1);
	out(0xcf8, 0, 2);
	out(0xcfa, 0, 2);
	assert_int_equal(in(0xcf8, 4), 0x80001810);
}

static void bar_and_w1c(void **state)
{
	address(0, 3, 0, 0x10);
	out(0xcfc, 0xffffffff, 4);
	assert_int_equal(in(0xcfc, 4), 0xfffff000);
	out(0xcfc, 0xfebc1234, 4);
	assert_int_equal(in(0xcfc, 4), 0xfebc1000);
	out(0xcff, 0xe0, 1);
	assert_int_equal(in(0xcfc, 4), 0xe0bc1000);
	address(0, 3, 0, 0x04);
	assert_int_equal(in(0xcfc, 4), 0xf9000000);
	out(0xcfc, 0x0800ffff, 4);
	assert_int_equal(in(0xcfc, 4), 0xf1000007);
	out(0xcfe, 0xffff, 2);
	assert_int_equal(in(0xcfc, 4), 0x00000007);
}

static void what_is_there(void **state)
{
	assert_int_equal(rd(0, 0, 0), 0x12378086);
	assert_int_equal(rd(1, 0, 0), 0x70008086);
	assert_int_equal(rd(1, 0, 0x0c) >> 16, 0x80);
	assert_int_equal(rd(1, 3, 0), 0x71138086);
	assert_int_equal(rd(0, 0, 8) >> 8, 0x060000);
	assert_int_equal(rd(1, 0, 8) >> 8, 0x060100);
	assert_int_equal(rd(1, 1, 0), 0xffffffff);
	assert_int_equal(rd(31, 7, 0), 0xffffffff);
	address(1, 3, 0, 0);
	assert_int_equal(in(0xcfc, 4), 0xffffffff);
	out(0xcfc, 0, 4);
	assert_false(pci_add(host, &(struct pci_function){ .dev = 3 }));
	assert_false(pci_add(host, &(struct pci_function){ .bus = 1, .dev = 9 }));
	assert_false(pci_add(host, &(struct pci_function){ .dev = 32 }));
}

static u8 pam_seen[7];
static void on_pam(void *arg, const u8 *pam)
{
	memcpy(pam_seen, pam, 7);
	++*(int *)arg;
}

static void pam(void **state)
{
	int n = 0;

	pci_host_on_pam(host, on_pam, &n);
	wr8(0, 0, 0x59, 0xff);
	assert_int_equal(pam_seen[0], 0x30);
	wr8(0, 0, 0x5f, 0x33);
	assert_int_equal(pam_seen[6], 0x33);
	assert_int_equal(n, 2);
	wr8(0, 0, 0x72, 0x0a);
	assert_int_equal(n, 2);
	mem_lock(&b->mem);
	pci_host_class.reset(host);
	mem_unlock(&b->mem);
	assert_int_equal(n, 3);
	assert_int_equal(pam_seen[6], 0);
	assert_int_equal(rd(0, 0, 0x72) & 0xff, 2);
}

static void intx(struct pci_function *f, bool level)
{
	mem_lock(&b->mem);
	pci_set_intx(host, f, level);
	mem_unlock(&b->mem);
}

static void pirq(void **state)
{
	/* Slot 3, INTA: PIRQC. */
	intx(&nic, true);
	for (int i = 0; i < 24; i++)
		assert_int_equal(b->irqs.level[i], 0);
	wr8(1, 0, 0x62, 11);
	assert_true(b->irqs.level[11]);
	/* Shared: high until both are low. */
	intx(&disk, true);
	intx(&nic, false);
	assert_true(b->irqs.level[11]);
	intx(&disk, false);
	assert_false(b->irqs.level[11]);
	/* Rerouted while high. */
	intx(&disk, true);
	wr8(1, 0, 0x62, 10);
	assert_false(b->irqs.level[11]);
	assert_true(b->irqs.level[10]);
	/* Two PIRQs on one irq do not disturb each other. */
	disk.config[0x3d] = 1;
	nic.config[0x3d] = 2;
	wr8(1, 0, 0x63, 10);
	intx(&nic, true);
	intx(&nic, false);
	assert_true(b->irqs.level[10]);
	wr8(1, 0, 0x62, 0x80 | 10); /* off */
	assert_false(b->irqs.level[10]);
	for (u8 irq = 0; irq < 3; irq++) { /* reserved routes */
		wr8(1, 0, 0x62, irq);
		assert_int_equal(b->irqs.level[irq], 0);
	}
	wr8(1, 0, 0x62, 10);
	round_trip(host);
	assert_true(b->irqs.level[10]);
}

static void reset_register(void **state)
{
	out(0xcf9, 0x02, 1);
	assert_int_equal(in(0xcf9, 1), 0x02);
	assert_int_equal(b->resets, 0);
	out(0xcf9, 0x06, 1);
	assert_int_equal(b->resets, 1);
	assert_int_equal(in(0xcf9, 1), 0x02);
	assert_int_equal(b->inits, 0);
	out(0xcf9, 0x0e, 1);
	assert_int_equal(b->resets, 2);
	out(0xcf9, 0x00, 1);
	out(0xcf9, 0x04, 1);
	assert_int_equal(b->resets, 2);
	assert_int_equal(b->inits, 1);
	assert_int_equal(in(0xcf8, 4), 0);
}

static void fuzz(void **state)
{
	u64 s = 11;
	u32 shadow = 0;

	for (int i = 0; i < 100000; i++) {
		u64 v = random_value(&s), pick = next_random(&s);
		static const u8 fns[] = { 0x00, 0x08, 0x0b, 0x18, 0x38, 0x09 };
		unsigned lane = pick >> 8 & 3;

		if (pick & 1) {
			shadow = pick & 6 ? 0x80000000 | (u32)fns[(pick >> 16) % 6] << 8 | (v & 0xfc) : (u32)v;
			out(0xcf8, shadow, 4);
			assert_int_equal(in(0xcf8, 4), shadow & 0x80fffffc);
		} else {
			out((u16)(0xcfc + lane), (u32)v, 1u << (pick >> 12) % 3);
		}
		in((u16)(0xcf8 + (pick >> 20 & 7)), 1u << (pick >> 24) % 3);
		if ((pick & 0x70) == 0)
			intx(pick & 0x80 ? &nic : &disk, v & 1);
		/* One function with an interrupt: its irq is the routed one, and only that. */
		unsigned lines = 0;
		for (int g = 0; g < 24; g++)
			lines += b->irqs.level[g] != 0;
		assert_in_range(lines, 0, 1);
	}
	assert_int_equal(rd(0, 0, 0), 0x12378086);
	assert_int_equal(rd(1, 0, 0), 0x70008086);
	assert_int_equal(ld32(nic.config), 0x12345678);
	assert_int_equal(ld32(nic.config + 0x10) & 0xfff, 0);
	round_trip(host);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(lanes), T(bar_and_w1c), T(what_is_there), T(pam), T(pirq), T(reset_register), T(fuzz),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
