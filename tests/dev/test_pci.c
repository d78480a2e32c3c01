/* A function of the PCI bus: BARs, capabilities, INTx, MSI and MSI-X. */
#include "board.h"

static struct board *b;
static struct device *host;
static struct pci_function f;
static u64 last_off, last_val;

static u64 bar_read(void *dev, u64 off, unsigned size) { return 0x11223344 + off; }
static void bar_write(void *dev, u64 off, u64 val, unsigned size)
{
	last_off = off;
	last_val = val;
}
static const struct mmio_ops bar_ops = { bar_read, bar_write, 1, 4 };

/* Messages are seen by a LAPIC of processor 0. */
static struct lapic *lapic;
static int intr;
static void on_intr(void *arg, bool level) { intr += level; }
static void nothing(void *arg) { }
static void nothing_v(void *arg, u8 v) { }

static int setup(void **state)
{
	struct error e;

	b = board_bare();
	b->irqs.lapic_bus = (struct lapic_bus *)(b->pic = board_device(b, &lapic_bus_class));
	lapic = lapic_add(b->irqs.lapic_bus, 0, true, &(struct irq_sink){ NULL, on_intr, nothing, nothing, nothing, nothing_v });
	lapic_mmio_write(lapic, 0xf0, 0x1ff, 4);
	host = board_device(b, &pci_host_class);
	b->links.pci = host;
	memset(&f, 0, sizeof(f));
	pci_init(&f, &(struct pci_ids){ .vendor = 0x1234, .device = 0x5678, .sub_vendor = 1, .sub_device = 2, .revision = 3,
					.class_code = 0x020000, .intx = true });
	pci_add_bar(&f, 0, PCI_BAR_IO, false, 64, &bar_ops, NULL);
	pci_add_bar(&f, 1, PCI_BAR_MEM32, false, 0x2000, &bar_ops, NULL);
	pci_add_bar(&f, 2, PCI_BAR_MEM64, true, 0x100000, &bar_ops, NULL);
	pci_add_msi(&f);
	pci_add_msix(&f, 4, 3);
	assert_true(pci_plug(&f, &b->links, &e));
	pci_reset(&f);
	intr = 0;
	return 0;
}

static int teardown(void **state)
{
	pci_unplug(&f);
	device_free(host);
	board_free(b);
	return 0;
}

static u32 rd(unsigned reg)
{
	mem_port_write(&b->mem, 0xcf8, 0x80000000 | (u32)f.dev << 11 | (reg & 0xfc), 4);
	return mem_port_read(&b->mem, 0xcfc, 4);
}

static void wr(unsigned reg, u32 val, unsigned size)
{
	mem_port_write(&b->mem, 0xcf8, 0x80000000 | (u32)f.dev << 11 | (reg & 0xfc), 4);
	mem_port_write(&b->mem, (u16)(0xcfc + (reg & 3)), val, size);
}

static void identity_and_sizing(void **state)
{
	assert_int_equal(f.dev, 2);
	assert_int_equal(rd(0), 0x56781234);
	assert_int_equal(rd(8), 0x02000003);
	assert_int_equal(rd(0x2c), 0x00020001);
	assert_int_equal(rd(0x3c) >> 8, 1);
	wr(0, 0xffffffff, 4);
	assert_int_equal(rd(0), 0x56781234);
	static const u32 sizes[] = { 0xffffffc1, 0xffffe000, 0xfff0000c, 0xffffffff, 0xfffff000, 0 };
	for (unsigned k = 0; k < 6; k++) {
		wr(0x10 + 4 * k, 0xffffffff, 4);
		assert_int_equal(rd(0x10 + 4 * k), sizes[k]);
	}
	wr(0x30, 0xffffffff, 4); /* no expansion ROM */
	assert_int_equal(rd(0x30), 0);
	assert_int_equal(rd(0x04) >> 16 & 0x10, 0x10);
	assert_int_equal(rd(rd(0x34)) & 0xff, 0x11);
	assert_int_equal(rd(rd(rd(0x34)) >> 8 & 0xff) & 0xff, 0x05);
	assert_int_equal(rd(rd(rd(0x34)) >> 8 & 0xff) >> 8 & 0xff, 0);
}

static void bars_move(void **state)
{
	wr(0x10, 0xc000, 4);
	wr(0x14, 0xe0000000, 4);
	wr(0x18, 0x00000000, 4);
	wr(0x1c, 0x10, 4); /* 64 GiB */
	assert_int_equal(mem_phys_read(&b->mem, 0xe0000000, 4), 0xffffffff); /* not enabled yet */
	wr(4, PCI_CMD_MEM, 2);
	assert_int_equal(mem_phys_read(&b->mem, 0xe0000010, 4), 0x11223354);
	assert_int_equal(mem_phys_read(&b->mem, 0x1000000020, 4), 0x11223364);
	assert_int_equal(mem_port_read(&b->mem, 0xc004, 4), 0xffffffff);
	wr(4, PCI_CMD_MEM | PCI_CMD_IO, 2);
	assert_int_equal(mem_port_read(&b->mem, 0xc004, 4), 0x11223348);
	mem_phys_write(&b->mem, 0xe0001ffc, 0x77, 1);
	assert_int_equal(last_off, 0x1ffc);
	assert_int_equal(last_val, 0x77);
	/* While enabled, by the byte. */
	wr(0x17, 0xe1, 1);
	assert_int_equal(mem_phys_read(&b->mem, 0xe0000010, 4), 0xffffffff);
	assert_int_equal(mem_phys_read(&b->mem, 0xe1000010, 4), 0x11223354);
	wr(4, 0, 2);
	assert_int_equal(mem_phys_read(&b->mem, 0xe1000010, 4), 0xffffffff);
	assert_int_equal(mem_port_read(&b->mem, 0xc004, 4), 0xffffffff);
}

static void bars_in_odd_places(void **state)
{
	u32 word = 0x12345678;

	wr(4, PCI_CMD_MEM | PCI_CMD_IO, 2);
	mem_write(&b->mem, 0x100000, &word, 4);
	wr(0x14, 0x100000, 4); /* over RAM: it is not seen */
	assert_int_equal(mem_phys_read(&b->mem, 0x100000, 4), 0x12345678);
	wr(0x1c, 0xffffffff, 4); /* beyond any processor's addresses */
	wr(0x18, 0xfff00000, 4);
	wr(0x10, 0xffc0, 4); /* the last ports */
	assert_int_equal(mem_port_read(&b->mem, 0xffc0, 4), 0x11223344);
	wr(0x10, 0xffffffff, 4); /* sizing with decoding on: beyond them */
	assert_int_equal(mem_port_read(&b->mem, 0xffc0, 4), 0xffffffff);
	wr(0x14, 0xffffe000, 4); /* up to the last byte of 4 GiB */
	assert_int_equal(mem_phys_read(&b->mem, 0xfffff000, 4), 0x11223344 + 0x1000);
	wr(0x14, 0, 4); /* 0 is nowhere */
	assert_int_equal(f.bar[1].mapped, false);
	wr(0x10, 0xc000, 4);
	mem_lock(&b->mem);
	pci_reset(&f);
	mem_unlock(&b->mem);
	assert_int_equal(rd(0x10), 1);
	assert_int_equal(mem_port_read(&b->mem, 0xc000, 4), 0xffffffff);
}

static void set_irq(bool level)
{
	mem_lock(&b->mem);
	pci_irq(&f, level);
	mem_unlock(&b->mem);
}

static bool message(unsigned n)
{
	mem_lock(&b->mem);
	bool ok = pci_msg(&f, n);
	mem_unlock(&b->mem);
	return ok;
}

static void intx(void **state)
{
	/* Slot 2, INTA: PIRQB. */
	mem_port_write(&b->mem, 0xcf8, 0x80000860, 4);
	mem_port_write(&b->mem, 0xcfd, 11, 1);
	set_irq(true);
	assert_true(b->irqs.level[11]);
	assert_int_equal(rd(4) >> 16 & 8, 8);
	wr(4, PCI_CMD_NO_INTX, 2);
	assert_false(b->irqs.level[11]);
	assert_int_equal(rd(4) >> 16 & 8, 8); /* it still asks */
	wr(4, 0, 2);
	assert_true(b->irqs.level[11]);
	wr(f.msix_cap + 2u, 0x8000, 2); /* MSI-X takes over */
	assert_false(b->irqs.level[11]);
	wr(f.msix_cap + 2u, 0, 2);
	assert_true(b->irqs.level[11]);
	set_irq(false);
	assert_false(b->irqs.level[11]);
	assert_int_equal(rd(4) >> 16 & 8, 0);
}

static int acked(void)
{
	int v = lapic_ack(lapic);

	if (v == 0xff) /* spurious */
		return -1;
	if (v >= 0)
		lapic_mmio_write(lapic, 0xb0, 0, 4);
	return v;
}

static void msi(void **state)
{
	u8 c = f.msi_cap;

	assert_false(message(0)); /* off: INTx's */
	wr(c + 4u, 0xfee00000, 4);
	wr(c + 0xcu, 0x41, 2);
	wr(c + 2u, 1, 2);
	wr(4, PCI_CMD_MASTER, 2);
	assert_true(message(0));
	assert_int_equal(acked(), 0x41);
	wr(c + 0x10u, 1, 4); /* masked */
	assert_true(message(0));
	assert_int_equal(acked(), -1);
	assert_int_equal(rd(c + 0x14u), 1);
	wr(c + 0x10u, 0, 4);
	assert_int_equal(acked(), 0x41);
	assert_int_equal(rd(c + 0x14u), 0);
	assert_true(message(1)); /* there is one only */
	assert_int_equal(acked(), -1);
}

static void msix(void **state)
{
	const u64 table = 0xe0004000, pba = table + 0x800;
	u8 c = f.msix_cap;

	assert_int_equal(rd(c) >> 16, 2); /* three vectors */
	assert_int_equal(rd(c + 4u), 4);
	assert_int_equal(rd(c + 8u), 0x804);
	wr(0x20, (u32)table, 4);
	wr(4, PCI_CMD_MEM | PCI_CMD_MASTER, 2);
	assert_int_equal(mem_phys_read(&b->mem, table + 12, 4), 1); /* masked after a reset */
	for (unsigned k = 0; k < 3; k++) {
		mem_phys_write(&b->mem, table + 16 * k, 0xfee00000, 8);
		mem_phys_write(&b->mem, table + 16 * k + 8, 0x51 + k, 4);
		mem_phys_write(&b->mem, table + 16 * k + 12, k == 1, 4);
	}
	assert_int_equal(mem_phys_read(&b->mem, table + 32, 8), 0xfee00000);
	assert_int_equal(mem_phys_read(&b->mem, table + 48, 4), 0); /* behind the table */
	assert_false(message(0));
	wr(c + 2u, 0x8000, 2);
	assert_true(message(0));
	assert_int_equal(acked(), 0x51);
	assert_true(message(2));
	assert_int_equal(acked(), 0x53);
	assert_true(message(1)); /* masked by itself */
	assert_int_equal(acked(), -1);
	assert_int_equal(mem_phys_read(&b->mem, pba, 8), 2);
	mem_phys_write(&b->mem, pba, 0, 8); /* read-only */
	assert_int_equal(mem_phys_read(&b->mem, pba, 8), 2);
	mem_phys_write(&b->mem, table + 16 + 12, 0, 4);
	assert_int_equal(acked(), 0x52);
	assert_int_equal(mem_phys_read(&b->mem, pba, 8), 0);
	wr(c + 2u, 0xc000, 2); /* all masked */
	message(0);
	message(2);
	assert_int_equal(acked(), -1);
	assert_int_equal(mem_phys_read(&b->mem, pba, 4), 5);
	wr(c + 2u, 0x8000, 2);
	assert_int_equal(acked(), 0x53); /* the higher first */
	assert_int_equal(acked(), 0x51);
	wr(4, PCI_CMD_MEM, 2); /* no bus master: messages wait */
	message(0);
	assert_int_equal(acked(), -1);
	wr(4, PCI_CMD_MEM | PCI_CMD_MASTER, 2);
	assert_int_equal(acked(), 0x51);
	assert_true(message(3)); /* beyond the table: lost */
	assert_int_equal(acked(), -1);
}

static void all_slots(void **state)
{
	static struct pci_function many[40];
	struct error e;
	unsigned n = 0;

	memset(many, 0, sizeof(many));
	for (bool ok = true; ok; n += ok) {
		pci_init(&many[n], &(struct pci_ids){ .vendor = 1, .device = 2 });
		ok = pci_plug(&many[n], &b->links, &e);
	}
	assert_int_equal(n, 29); /* with f, slots 2 to 31 */
	assert_non_null(strstr(e.msg, "slots"));
	while (n)
		pci_unplug(&many[--n]);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(identity_and_sizing), T(bars_move), T(bars_in_odd_places), T(intx), T(msi), T(msix), T(all_slots),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
