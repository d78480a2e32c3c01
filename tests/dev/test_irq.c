/* Where lines go: to the pair, to the IOAPIC's pins, as messages to a local APIC. */
#include "board.h"

#define IOAPIC 0xfec00000ull
#define APIC 0xfee00000ull

struct wired {
	struct board *b;
	struct device *bus, *io;
	struct lapic *l;
};

static void sink_intr(void *cpu, bool level) { }
static void sink_none(void *cpu) { }
static void sink_sipi(void *cpu, u8 vector) { }

static struct wired wired_new(void)
{
	struct wired w = { .b = board_new(NULL) };
	struct irq_sink sink = { NULL, sink_intr, sink_none, sink_none, sink_none, sink_sipi };
	struct error e;

	w.bus = device_new(&lapic_bus_class, &w.b->links, &e);
	w.io = device_new(&ioapic_class, &w.b->links, &e);
	assert_non_null(w.bus);
	assert_non_null(w.io);
	ioapic_connect((struct ioapic *)w.io, (struct lapic_bus *)w.bus);
	w.l = lapic_add((struct lapic_bus *)w.bus, 0, true, &sink);
	lapic_set_current(w.l);
	mem_phys_write(&w.b->mem, APIC + 0xf0, 0x1ff, 4);
	for (u32 pin = 0; pin < 24; pin++) { /* vector 0x40 + pin, edge, active high */
		mem_phys_write(&w.b->mem, IOAPIC, 0x10 + 2 * pin, 4);
		mem_phys_write(&w.b->mem, IOAPIC + 0x10, 0x40 + pin, 4);
	}
	w.b->irqs.ioapic = (struct ioapic *)w.io;
	w.b->irqs.lapic_bus = (struct lapic_bus *)w.bus;
	return w;
}

static void wired_free(struct wired *w)
{
	lapic_set_current(NULL);
	device_free(w->io);
	device_free(w->bus);
	board_free(w->b);
}

/* The next vector, with EOI; -1: none, which the APIC tells by its spurious vector, 0xff here. */
static int apic_take(struct wired *w)
{
	int v = lapic_ack(w->l);

	if (v < 0 || v == 0xff)
		return -1;
	mem_phys_write(&w->b->mem, APIC + 0xb0, 0, 4);
	return v;
}

static void test_routes(void **state)
{
	struct wired w = wired_new();

	for (unsigned gsi = 0; gsi < 26; gsi++) {
		int pic = gsi < 16 && gsi != 2 ? (int)(0x20 + gsi) : -1;
		int apic = gsi == 0 ? 0x42 : gsi < 24 ? (int)(0x40 + gsi) : -1;

		irq_set(&w.b->irqs, gsi, true);
		assert_int_equal(board_take(w.b), pic);
		assert_int_equal(apic_take(&w), apic);
		irq_set(&w.b->irqs, gsi, true); /* no edge */
		assert_int_equal(board_take(w.b), -1);
		assert_int_equal(apic_take(&w), -1);
		irq_set(&w.b->irqs, gsi, false);
	}
	wired_free(&w);
}

static void test_sources_share_a_line(void **state)
{
	struct wired w = wired_new();

	irq_set_source(&w.b->irqs, 11, IRQ_SOURCE_PCI, true);
	assert_int_equal(board_take(w.b), 0x2b);
	irq_set_source(&w.b->irqs, 11, IRQ_SOURCE_PCI + 1, true);
	irq_set_source(&w.b->irqs, 11, IRQ_SOURCE_PCI, false);
	irq_set_source(&w.b->irqs, 11, IRQ_SOURCE_PCI, true);
	assert_int_equal(board_take(w.b), -1); /* the line never fell */
	irq_set_source(&w.b->irqs, 11, IRQ_SOURCE_PCI, false);
	irq_set_source(&w.b->irqs, 11, IRQ_SOURCE_PCI + 1, false);
	irq_set_source(&w.b->irqs, 11, IRQ_SOURCE_PCI, true);
	assert_int_equal(board_take(w.b), 0x2b);
	wired_free(&w);
}

static void test_timer_pin_has_two_lines(void **state)
{
	struct wired w = wired_new();

	irq_set(&w.b->irqs, 0, true);
	assert_int_equal(apic_take(&w), 0x42);
	irq_set(&w.b->irqs, 2, true);
	irq_set(&w.b->irqs, 2, false);
	irq_set(&w.b->irqs, 0, true);
	assert_int_equal(apic_take(&w), -1); /* irq 0 held it */
	wired_free(&w);
}

static void test_hpet_legacy(void **state)
{
	struct wired w = wired_new();

	irq_set_hpet_legacy(&w.b->irqs, true);
	irq_set(&w.b->irqs, 0, true);
	irq_set(&w.b->irqs, 8, true);
	assert_int_equal(board_take(w.b), -1);
	assert_int_equal(apic_take(&w), -1);
	irq_set_source(&w.b->irqs, 0, IRQ_SOURCE_HPET, true);
	assert_int_equal(board_take(w.b), 0x20);
	irq_set_source(&w.b->irqs, 0, IRQ_SOURCE_HPET, false);
	irq_set_hpet_legacy(&w.b->irqs, false); /* what the chips say counts again */
	assert_int_equal(board_take(w.b), 0x20);
	assert_int_equal(board_take(w.b), 0x28);
	wired_free(&w);
}

static void test_messages(void **state)
{
	struct wired w = wired_new();

	irq_msi(&w.b->irqs, APIC, 0x55);
	assert_int_equal(apic_take(&w), 0x55);
	w.b->irqs.lapic_bus = NULL;
	irq_msi(&w.b->irqs, APIC, 0x55); /* nobody to hear it */
	wired_free(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_routes),
		cmocka_unit_test(test_sources_share_a_line),
		cmocka_unit_test(test_timer_pin_has_two_lines),
		cmocka_unit_test(test_hpet_legacy),
		cmocka_unit_test(test_messages),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
