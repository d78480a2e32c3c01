/* Every class of devices.def, programmed by fuzz bytes: registers read and written through the
 * buses, time passing, DMA from RAM that holds fuzz bytes, its state saved, loaded (damaged, too).
 *
 * Input: u8 class, then operations: u8 what, and what it needs. */
#include <stdio.h>

#include "fuzz.h"
#include "dev/dev.h"

#define RAM (1ull << 20)
struct board {
	struct mem mem;
	struct clock clock;
	struct irq_router irqs;
	struct machine_hooks hooks;
	struct device links, *pic, *bus, *io, *pci, *dev;
	struct loop *loop;
	struct lapic *lapic;
};

static void ignore(void *arg) { (void)arg; }
static void ignore_u32(void *arg, u32 v) { (void)arg; (void)v; }
static void ignore_unsigned(void *arg, unsigned v) { (void)arg; (void)v; }
static void ignore_u64(void *arg, u64 v) { (void)arg; (void)v; }
static void ignore_level(void *arg, bool v) { (void)arg; (void)v; }
static void ignore_vector(void *arg, u8 v) { (void)arg; (void)v; }
static void lint0(void *arg, bool level) { lapic_set_lint0(arg, level); }
static size_t no_host(void *arg, const u8 *buf, size_t len) { (void)arg; (void)buf; return len / 2; }
static void no_room(void *arg, size_t room) { (void)arg; (void)room; }

static struct device *make(struct board *b, const struct device_class *cls)
{
	struct error e;
	struct device *d = device_new(cls, &b->links, &e);

	if (!d)
		bug("%s: %s", cls->name, e.msg);
	return d;
}

static bool is_base(const struct device_class *cls)
{
	return cls == &i8259_class || cls == &lapic_bus_class || cls == &ioapic_class;
}

static void build(struct board *b, const struct device_class *cls)
{
	struct error e;

	memset(b, 0, sizeof(*b));
	if (!mem_init(&b->mem, RAM, &e) || !clock_init(&b->clock, true, &e))
		bug("%s", e.msg);
	b->hooks = (struct machine_hooks){ b, ignore, ignore, ignore_u32, ignore, ignore_u64, ignore_unsigned };
	if (!(b->loop = loop_new(&e)))
		bug("%s", e.msg);
	b->links = (struct device){ .mem = &b->mem, .clock = &b->clock, .irqs = &b->irqs, .hooks = &b->hooks, .loop = b->loop };
	b->pic = make(b, &i8259_class);
	b->bus = make(b, &lapic_bus_class);
	b->io = make(b, &ioapic_class);
	b->irqs.pic = (struct i8259 *)b->pic;
	b->irqs.ioapic = (struct ioapic *)b->io;
	b->irqs.lapic_bus = (struct lapic_bus *)b->bus;
	ioapic_connect(b->irqs.ioapic, b->irqs.lapic_bus);
	struct irq_sink sink = { b, ignore_level, ignore, ignore, ignore, ignore_vector };
	b->lapic = lapic_add(b->irqs.lapic_bus, 0, true, &sink);
	lapic_set_current(b->lapic);
	i8259_set_output(b->irqs.pic, lint0, b->lapic);
	if (cls != &pci_host_class)
		b->links.pci = b->pci = make(b, &pci_host_class);
	b->dev = cls == &i8259_class ? b->pic : cls == &lapic_bus_class ? b->bus : cls == &ioapic_class ? b->io : make(b, cls);
	if (b->pci)
		pci_assign(b->pci, (const u8[4]){ 10, 11, 10, 11 });
	if (cls == &ns16550_class) {
		ns16550_configure(b->dev, 0x3f8, 4);
		ns16550_attach(b->dev, &(struct char_backend){ b, no_host, no_room });
	}
}

static void destroy(struct board *b)
{
	if (!is_base(b->dev->cls))
		device_free(b->dev);
	device_free(b->pci);
	device_free(b->io);
	device_free(b->bus);
	device_free(b->pic);
	loop_free(b->loop);
	clock_destroy(&b->clock);
	mem_destroy(&b->mem);
}

static void round_trip(struct board *b, struct input *in)
{
	static u8 a[1 << 20], c[1 << 20];
	struct error e;
	size_t n = device_save(b->dev, a, sizeof(a));

	mem_lock(&b->mem);
	if (!device_load(b->dev, a, n, &e))
		bug("%s: its own state is refused: %s", b->dev->cls->name, e.msg);
	if (device_save(b->dev, c, sizeof(c)) != n || memcmp(a, c, n))
		bug("%s: save, load, save differ", b->dev->cls->name);
	unsigned damage = (unsigned)take(in, 1);
	for (unsigned k = 0; k < damage % 8 && n; k++)
		a[take(in, 2) % n] ^= (u8)take(in, 1);
	(void)device_load(b->dev, a, n, &e);
	mem_unlock(&b->mem);
}

static void let_time_pass(struct board *b, u64 ns)
{
	clock_advance_to(&b->clock, clock_ns(&b->clock) + ns);
	mem_lock(&b->mem);
	for (int k = 0; k < 8 && !clock_run_due(&b->clock); k++)
		;
	mem_unlock(&b->mem);
}

/* From the outside of single devices. */
static void poke(struct board *b, struct input *in)
{
	u8 bytes[4];

	st32(bytes, (u32)take(in, 4));
	mem_lock(&b->mem);
	if (b->dev->cls == &ns16550_class) {
		ns16550_receive(b->dev, bytes, 4);
		ns16550_can_write(b->dev);
		ns16550_break(b->dev);
	} else if (b->dev->cls == &i8042_class) {
		i8042_key(b->dev, bytes, bytes[3] & 3);
		i8042_mouse(b->dev, bytes, 3);
	} else if (b->dev->cls == &acpi_pm_class) {
		acpi_pm_power_button(b->dev);
		acpi_pm_gpe(b->dev, bytes[0] & 15);
		acpi_pm_wake(b->dev);
	} else {
		irq_set(&b->irqs, bytes[0] % 24, bytes[1] & 1);
	}
	mem_unlock(&b->mem);
	if (bytes[2] & 1)
		(void)lapic_ack(b->lapic);
	if ((bytes[2] & 2) && i8259_output(b->irqs.pic))
		(void)i8259_ack(b->irqs.pic);
}

static void access_register(struct board *b, struct input *in, u8 what)
{
	u64 where = take(in, 3), val = take(in, what & 0x40 ? 8 : 1);
	unsigned size = 1u << (what >> 4 & 3);
	int n_mmio = 0;

	for (int k = 0; k < b->mem.n_declared; k++)
		n_mmio += b->mem.declared[k].kind == REGION_MMIO;
	u64 pick = where % (unsigned)(b->mem.n_ports + n_mmio);
	where >>= 6;
	if (pick < (u64)b->mem.n_ports) {
		const struct port_range *p = &b->mem.ports[b->mem.n_ports - 1 - (int)pick]; /* the device's own come last */
		u16 port = (u16)(p->base + where % p->count);
		if (what & 0x80)
			mem_port_write(&b->mem, port, (u32)val, MIN(size, 4u));
		else
			mem_port_read(&b->mem, port, MIN(size, 4u));
		return;
	}
	pick -= (u64)b->mem.n_ports;
	for (int k = b->mem.n_declared - 1; k >= 0; k--) {
		const struct region *r = &b->mem.declared[k];
		if (r->kind != REGION_MMIO || pick--)
			continue;
		if (what & 0x80)
			mem_phys_write(&b->mem, r->base + where % r->size, val, size);
		else
			mem_phys_read(&b->mem, r->base + where % r->size, size);
		return;
	}
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	struct input in = { data, size };
	struct board b;
	int n = 0;

	while (device_classes[n])
		n++;
	build(&b, device_classes[take(&in, 1) % (unsigned)n]);
	/* What DMA finds. */
	for (u64 at = 0; at < 0x10000 && size; at += size)
		mem_write(&b.mem, at, data, size);
	for (int ops = 0; in.left && ops < 2000; ops++) {
		u8 what = (u8)take(&in, 1);
		switch (what & 15) {
		case 0: let_time_pass(&b, take(&in, 2) * 100); break;
		case 1: let_time_pass(&b, take(&in, 5)); break;
		case 2: round_trip(&b, &in); break;
		case 3: poke(&b, &in); break;
		case 4:
			if (b.dev->cls->reset) {
				mem_lock(&b.mem);
				b.dev->cls->reset(b.dev);
				mem_unlock(&b.mem);
			}
			break;
		case 5: {
			u64 v;
			u32 msr = (u32)take(&in, 1);
			msr = msr < 4 ? (const u32[]){ 0x1b, 0x6e0, 0x83f, 0x830 }[msr] : 0x800 + msr;
			if (what & 0x80)
				lapic_msr_write(b.lapic, msr, take(&in, 8));
			else
				lapic_msr_read(b.lapic, msr, &v);
			break;
		}
		default: access_register(&b, &in, what);
		}
	}
	destroy(&b);
	return 0;
}
