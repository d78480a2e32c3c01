/* Every class of devices.def, programmed by fuzz bytes: registers read and written through the
 * buses, time passing, DMA from RAM that holds fuzz bytes, its state saved, loaded (damaged, too).
 *
 * Input: u8 class, then operations: u8 what, and what it needs. RING3_FUZZ_DEVICE=name: that class alone. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz.h"
#include "dev/dev.h"
#include "net/net_impl.h"

#define RAM (1ull << 20)
struct board {
	struct mem mem;
	struct clock clock;
	struct irq_router irqs;
	struct machine_hooks hooks;
	struct device links, *pic, *bus, *io, *pci, *dev;
	struct loop *loop;
	struct net *net;
	struct share *share;
	struct lapic *lapic;
	u8 nvme_tails[4];
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

/* ---- what devices are connected to --------------------------------------------------------------------------- */

/* One disk for the whole process; its requests are begun and ended within one input. */
static struct block *disk(void)
{
	static struct block *d;
	char path[64];
	struct error e;
	int fd;

	if (d)
		return d;
	fd = memfd_create("disk", 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (ftruncate(fd, 1 << 20))
		bug("no disk");
	d = block_open(&(struct block_options){ .file = path, .format = BLOCK_RAW, .aio = BLOCK_AIO_THREADS }, NULL, &e);
	if (!d)
		bug("%s", e.msg);
	return d;
}

static bool has_disk(const struct board *b) { return b->dev->cls == &virtio_blk_class || b->dev->cls == &ide_class || b->dev->cls == &ahci_class || b->dev->cls == &nvme_class; }

/* A network that hears nothing, and takes two frames of three at once. */
static bool net_take(struct net *n, const struct net_offload *o, const struct iovec *iov, unsigned n_iov)
{
	static u8 frame[NET_FRAME_MAX];

	iov_read(iov, n_iov, 0, frame, sizeof(frame));
	return ++n->out_len % 3;
}
static ssize_t net_silent(struct net *n, struct net_offload *o) { return 0; }
static const struct net_ops fuzz_net = { .read = net_silent, .send = net_take };

#define FLASH (64u << 10)

static void connect_device(struct board *b, const struct device_class *cls)
{
	static _Alignas(PAGE_SIZE) u8 flash[FLASH];
	struct char_backend be = { b, no_host, no_room };
	struct error e;

	if (cls == &ide_class) {
		ide_attach(b->dev, 0, &(struct ata_drive_config){ disk(), false, "serial" });
		ide_attach(b->dev, 2, &(struct ata_drive_config){ disk(), true, NULL });
		ide_attach(b->dev, 3, &(struct ata_drive_config){ NULL, true, NULL });
	} else if (cls == &ahci_class) {
		if (!ahci_attach(b->dev, 0, &(struct ata_drive_config){ disk(), false, "serial" }, &e) ||
		    !ahci_attach(b->dev, 1, &(struct ata_drive_config){ disk(), true, NULL }, &e) ||
		    !ahci_attach(b->dev, 2, &(struct ata_drive_config){ NULL, true, NULL }, &e))
			bug("%s", e.msg);
	} else if (cls == &nvme_class) {
		nvme_attach(b->dev, disk(), "serial");
	} else if (cls == &pflash_class) {
		memset(flash, 0xff, FLASH);
		pflash_attach(b->dev, 0xffc00000, flash, FLASH);
	} else if (cls == &virtio_blk_class) {
		virtio_blk_attach(b->dev, disk(), 2, "serial");
	} else if (cls == &virtio_console_class) {
		virtio_console_add(b->dev, &be, NULL);
		virtio_console_add(b->dev, &be, "channel");
	} else if (cls == &virtio_9p_class) {
		/* A folder that nothing is to be made in: what the server does has a target of its own. */
		b->share = share_open(&(struct share_options){ .path = "/proc/self/task", .tag = "tag", .read_only = true }, false, b->loop, &e);
		if (!b->share)
			bug("%s", e.msg);
		virtio_9p_attach(b->dev, b->share);
	} else if (cls == &virtio_net_class || cls == &e1000_class) {
		b->net = net_open(&(struct net_options){ .kind = NET_NONE }, true, b->loop, &e);
		b->net->ops = &fuzz_net;
		b->net->fd = eventfd(0, EFD_NONBLOCK);
		(cls == &e1000_class ? e1000_attach : virtio_net_attach)(b->dev, b->net, (const u8[6]){ 2 });
	}
}

/* What is left to the loop, and to the disk. */
static void turn(struct board *b)
{
	loop_turn(b->loop, 0);
	if (has_disk(b))
		while (block_poll(disk(), true))
			;
	if (b->share)
		share_drain(b->share);
}

/* The registers of the function under test: virtio's second memory BAR, the e1000's first. */
static const struct region *registers(const struct board *b)
{
	for (int k = 0; k < b->mem.n_declared; k++)
		if (b->mem.declared[k].size == (b->dev->cls == &e1000_class ? 0x20000 : 0x4000))
			return &b->mem.declared[k];
	return NULL;
}

static void be_master(struct board *b)
{
	mem_port_write(&b->mem, 0xcf8, 0x80001004, 4);
	mem_port_write(&b->mem, 0xcfc, 7, 2);
}

/* Both rings in memory that holds fuzz bytes, on; every address is heard, or as the input says. */
static void e1000_up(struct board *b, struct input *in, u64 at)
{
	u32 rctl = (u32)take(in, 4), tctl = (u32)take(in, 1);

	be_master(b);
	for (unsigned ring = 0x2800; ring <= 0x3800; ring += 0x1000) {
		mem_phys_write(&b->mem, at + ring, 0x1000 * (1 + take(in, 1) % 12), 4);
		mem_phys_write(&b->mem, at + ring + 8, 128 * (1 + take(in, 1) % 32), 4);
		mem_phys_write(&b->mem, at + ring + 0x10, take(in, 1) % 16, 4);
		mem_phys_write(&b->mem, at + ring + 0x18, take(in, 1), 4);
	}
	mem_phys_write(&b->mem, at + 0x5000, take(in, 2), 4);
	mem_phys_write(&b->mem, at + 0xd0, take(in, 3), 4);
	mem_phys_write(&b->mem, at + 0x100, rctl | (rctl & 1 ? 0x1a : 2), 4);
	mem_phys_write(&b->mem, at + 0x400, tctl | 2, 4);
}

/* A context, and data that goes by it. */
static void e1000_offer(struct board *b, struct input *in, u64 at)
{
	u64 ring = mem_phys_read(&b->mem, at + 0x3800, 4), n = mem_phys_read(&b->mem, at + 0x3808, 4) / 16;
	u32 tail = (u32)mem_phys_read(&b->mem, at + 0x3818, 4);
	u8 pieces = 1 + (u8)take(in, 1) % 4, tse = (u8)take(in, 1) & 4, d[16];

	for (u8 k = 0; n && k < pieces; k++, tail++) {
		bool context = k == 0 && pieces > 1;

		st64(d, context ? take(in, 8) : 0x10000 + take(in, 2));
		st32(d + 8, (u32)take(in, 2) | (context ? 0 : 1u << 20) | (u32)((take(in, 1) & 0x1b) | tse | 0x20 | (k + 1 == pieces)) << 24);
		st32(d + 12, (u32)take(in, 4) & ~0xffu);
		mem_write(&b->mem, ring + 16 * (tail % n), d, sizeof(d));
	}
	mem_phys_write(&b->mem, at + 0x3818, n ? tail % n : tail, 4);
}

/* As a driver does it, so that fuzz bytes reach the queues: which features, how large, packed or
 * not is from the input; the rings lie in memory full of it. */
static void bring_up(struct board *b, struct input *in)
{
	const struct region *r = registers(b);
	u64 features = take(in, 4) | (take(in, 1) & 7) << 32;

	if (!r)
		return;
	u64 at = r->base;
	if (b->dev->cls == &e1000_class) {
		e1000_up(b, in, at);
		return;
	}
	mem_phys_write(&b->mem, at + 0x14, 0, 1);
	mem_phys_write(&b->mem, at + 0x14, 3, 1);
	for (unsigned k = 0; k < 2; k++) {
		mem_phys_write(&b->mem, at, k, 4);
		mem_phys_write(&b->mem, at + 8, k, 4);
		u64 offered = mem_phys_read(&b->mem, at + 4, 4);
		mem_phys_write(&b->mem, at + 12, offered & ((features | 1ull << 32) >> 32 * k), 4);
	}
	mem_phys_write(&b->mem, at + 0x14, 11, 1);
	for (unsigned q = 0; q < mem_phys_read(&b->mem, at + 0x12, 2); q++) {
		u64 place = 0x1000 * (1 + take(in, 1) % 12);

		mem_phys_write(&b->mem, at + 0x16, q, 2);
		mem_phys_write(&b->mem, at + 0x18, 1u << take(in, 1) % 9, 2);
		mem_phys_write(&b->mem, at + 0x20, place, 4);
		mem_phys_write(&b->mem, at + 0x28, place + 0x1000, 4);
		mem_phys_write(&b->mem, at + 0x30, place + 0x1800, 4);
		mem_phys_write(&b->mem, at + 0x1c, 1, 2);
	}
	be_master(b);
	mem_phys_write(&b->mem, at + 0x14, 15, 1);
}

/* Entries of a ring, as a driver would make one available: an index that moves on, few descriptors. */
static void offer(struct board *b, struct input *in)
{
	u64 place = 0x1000 * (1 + take(in, 1) % 12), data = 0x10000 + take(in, 2);
	u8 n = 1 + (u8)take(in, 1) % 4, desc[16];
	u16 idx;

	if (b->dev->cls == &e1000_class) {
		if (registers(b))
			e1000_offer(b, in, registers(b)->base);
		return;
	}
	for (u8 k = 0; k < n; k++) {
		u8 kind = (u8)take(in, 1);

		st64(desc, data + k * 0x1000);
		st32(desc + 8, kind & 0x40 ? (u32)take(in, 4) : (u32)take(in, 1) + 16);
		st16(desc + 12, (u16)((k + 1 < n ? 1 : 0) | (kind & 2) | (kind & 0x3c ? 0 : 4)));
		st16(desc + 14, kind & 0x80 ? kind : k + 1);
		mem_write(&b->mem, place + 16u * k, desc, sizeof(desc));
	}
	mem_read(&b->mem, place + 0x1002, &idx, 2);
	idx++;
	mem_write(&b->mem, place + 0x1002, &idx, 2);
	u8 header[16];
	st64(header, take(in, 1));
	st64(header + 8, take(in, 2));
	if (b->share) { /* a message of 9P: its size, its type */
		header[4] = header[0];
		st32(header, 16 + header[8] % 32);
	}
	mem_write(&b->mem, data, header, sizeof(header));
	const struct region *r = registers(b);
	for (unsigned q = 0; r && q < 4; q++)
		mem_phys_write(&b->mem, r->base + 0x3000 + 4 * q, q, 2);
}

/* The AHCI controller's registers: the 4 KiB BAR of the function under test. */
static u64 ahci_registers(const struct board *b) { return b->dev->function->bar[5].base; }

/* Ports that run, their lists and receive areas in memory full of the input. */
static void ahci_start(struct board *b, struct input *in)
{
	u64 at = ahci_registers(b);

	mem_port_write(&b->mem, 0xcf8, 0x80000004 | (u32)b->dev->function->dev << 11, 4);
	mem_port_write(&b->mem, 0xcfc, 6, 2);
	mem_phys_write(&b->mem, at + 4, 2, 4);
	for (unsigned k = 0; k < 3; k++) {
		u64 port = at + 0x100 + 0x80 * k;
		mem_phys_write(&b->mem, port, 0x1000 * (k + 1) + 0x400 * (take(in, 1) & 3), 4);
		mem_phys_write(&b->mem, port + 8, 0x8000, 4);
		mem_phys_write(&b->mem, port + 0x14, ~0u, 4);
		mem_phys_write(&b->mem, port + 0x18, 0, 4);
		mem_phys_write(&b->mem, port + 0x18, 0x11, 4);
	}
}

/* A command as a driver would issue it; what is in its table besides is the input's. */
static void ahci_issue(struct board *b, struct input *in)
{
	static const u8 commands[] = { 0x60, 0x61, 0x25, 0x35, 0xc8, 0xca, 0x24, 0x34, 0xa0, 0xec, 0xa1, 0x06, 0xb0, 0x2f, 0xea, 0xef, 0x90, 0x08 };
	u8 kind = (u8)take(in, 1), pick = (u8)take(in, 1), header[16] = { 5 }, fis[20] = { 0x27, 0x80 }, entry[16] = { 0 };
	unsigned n = kind % 3, slot = kind >> 3, pieces = 1 + pick % 3;
	u64 port = ahci_registers(b) + 0x100 + 0x80 * n, list = mem_phys_read(&b->mem, port, 4), table = 0xa000 + 0x200 * slot;

	fis[2] = pick & 0x80 ? (u8)take(in, 1) : commands[pick % sizeof(commands)];
	st32(fis + 3, (u32)take(in, 3));
	fis[7] = 0x40;
	st16(fis + 12, (u16)take(in, 2));
	if (fis[2] == 0x60 || fis[2] == 0x61)
		fis[12] = (u8)(slot << 3);
	st16(header + 2, (u16)pieces);
	st64(header + 8, table);
	mem_write(&b->mem, list + 32 * slot, header, sizeof(header));
	mem_write(&b->mem, table, fis, sizeof(fis));
	for (unsigned k = 0; k < pieces; k++) {
		u64 where = take(in, 2);
		st64(entry, (pick & 0x40 ? RAM : 0x20000) + where * 8);
		st32(entry + 12, (u32)take(in, 2) | 1);
		mem_write(&b->mem, table + 0x80 + 16 * k, entry, sizeof(entry));
	}
	mem_phys_write(&b->mem, port + 0x34, 1u << slot, 4);
	mem_phys_write(&b->mem, port + 0x38, 1u << slot, 4);
}

/* ---- NVMe ---- */

/* The admin queues are at 0x1000 and 0x2000, the others' submissions and completions at 0x3000 and 0x9000 and each 0x1000 behind. */
static void nvme_put(struct board *b, unsigned queue, const u8 *command)
{
	u64 at = b->dev->function->bar[0].base, doorbell = at + 0x1000 + 8 * queue, base = queue ? 0x2000 + 0x1000 * queue : 0x1000;
	u8 *tails = b->nvme_tails;

	mem_write(&b->mem, base + 64 * (tails[queue] % 16), command, 64);
	tails[queue]++;
	mem_phys_write(&b->mem, doorbell, tails[queue] % 16, 4);
}

static void nvme_create(struct board *b, u8 opcode, unsigned queue, u64 base, u32 how)
{
	u8 command[64] = { opcode };

	st64(command + 24, base);
	st32(command + 40, queue | 15u << 16);
	st32(command + 44, how);
	nvme_put(b, 0, command);
}

static void nvme_start(struct board *b, struct input *in)
{
	u64 at = b->dev->function->bar[0].base;
	u8 how = (u8)take(in, 1);

	mem_port_write(&b->mem, 0xcf8, 0x80000004 | (u32)b->dev->function->dev << 11, 4);
	mem_port_write(&b->mem, 0xcfc, 6, 2);
	memset(b->nvme_tails, 0, sizeof(b->nvme_tails));
	mem_phys_write(&b->mem, at + 0x14, 0, 4);
	mem_phys_write(&b->mem, at + 0x24, 15 | 15 << 16, 4);
	mem_phys_write(&b->mem, at + 0x28, 0x1000, 4);
	mem_phys_write(&b->mem, at + 0x30, 0x2000, 4);
	mem_phys_write(&b->mem, at + 0x14, 0x460001, 4);
	for (unsigned k = 1; k < 4; k++) {
		nvme_create(b, 5, k, 0x8000 + 0x1000 * k, how & 1 ? 3 : 1);
		nvme_create(b, 1, k, 0x2000 + 0x1000 * k, 1 | (how & 2 ? 1 : k) << 16);
	}
}

static void nvme_issue(struct board *b, struct input *in)
{
	static const u8 admin[] = { 0, 1, 2, 4, 5, 6, 8, 9, 10, 12 }, io[] = { 0, 1, 2, 8, 9, 1, 2, 1, 2 };
	u8 kind = (u8)take(in, 1), command[64] = { 0 };
	unsigned queue = kind & 3;

	command[0] = kind & 0x80 ? (u8)take(in, 1) : queue ? io[(kind >> 2) % sizeof(io)] : admin[(kind >> 2) % sizeof(admin)];
	st16(command + 2, kind);
	st32(command + 4, kind & 0x40 ? (u32)take(in, 1) : queue || command[0] == 6);
	st64(command + 24, (take(in, 1) & 0x1f) << 12 | take(in, 1) << 2);
	st64(command + 32, kind & 0x20 ? take(in, 3) : 0x20000);
	st32(command + 40, (u32)take(in, 2));
	st32(command + 44, (u32)take(in, 1) << 16 * (take(in, 1) & 1));
	st32(command + 48, (u32)take(in, 2) | (u32)take(in, 1) << 24);
	nvme_put(b, queue, command);
	mem_phys_write(&b->mem, b->dev->function->bar[0].base + 0x1004 + 8 * queue, take(in, 1) & 15, 4);
}

static void virtio_from_outside(struct board *b, struct input *in)
{
	static u8 frame[4096];
	size_t len = take_length(in, 2) % sizeof(frame);

	memcpy(frame, in->p, MIN(len, in->left));
	if (b->net && len)
		b->net->card.receive(b->net->card.arg, &(struct net_offload){ .flags = 1 }, frame, len);
	if (b->dev->cls == &virtio_console_class) {
		mem_lock(&b->mem);
		virtio_console_receive(b->dev, len & 1, frame, len);
		virtio_console_can_write(b->dev, len & 1);
		mem_unlock(&b->mem);
	}
}

static const struct device_class *choose(u8 pick)
{
	const char *only = getenv("RING3_FUZZ_DEVICE");
	unsigned n = 0;

	for (; device_classes[n]; n++)
		if (only && !strcmp(device_classes[n]->name, only))
			return device_classes[n];
	if (only)
		bug("RING3_FUZZ_DEVICE=%s: devices.def has no such class", only);
	return device_classes[pick % n];
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
	connect_device(b, cls);
	if (cls == &ns16550_class) {
		ns16550_configure(b->dev, 0x3f8, 4);
		ns16550_attach(b->dev, &(struct char_backend){ b, no_host, no_room });
	}
}

static void destroy(struct board *b)
{
	turn(b);
	if (b->share)
		share_close(b->share);
	if (!is_base(b->dev->cls))
		device_free(b->dev);
	if (b->net)
		net_close(b->net);
	device_free(b->pci);
	device_free(b->io);
	device_free(b->bus);
	device_free(b->pic);
	loop_free(b->loop);
	clock_destroy(&b->clock);
	mem_destroy(&b->mem);
}

/* The field of two saved states (dev/device.c) that differs. */
static const char *first_difference(const u8 *a, const u8 *c, size_t n)
{
	static char name[256];

	for (size_t at = 0, end; at < n; at = end) {
		size_t len = a[at];

		end = at + 1 + len + 4 + ld32(a + at + 1 + len);
		snprintf(name, sizeof(name), "%.*s", (int)len, (const char *)a + at + 1);
		if (end > n || memcmp(a + at, c + at, end - at))
			break;
	}
	return name;
}

static void round_trip(struct board *b, struct input *in)
{
	static u8 a[1 << 20], c[1 << 20];
	struct error e;
	turn(b);
	size_t n = device_save(b->dev, a, sizeof(a));

	mem_lock(&b->mem);
	if (!device_load(b->dev, a, n, &e))
		bug("%s: its own state is refused: %s", b->dev->cls->name, e.msg);
	if (device_save(b->dev, c, sizeof(c)) != n || memcmp(a, c, n))
		bug("%s: save, load, save differ in %s", b->dev->cls->name, first_difference(a, c, n));
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
	for (int k = 0; k < 8 && !timer_queue_run(&b->clock.timers); k++)
		;
	mem_unlock(&b->mem);
}

/* Whatever the registers say: a picture of a few mebibytes at most, now and then. */
static void look_at_screen(const struct device *vga)
{
	struct screen_text t;
	struct screen_image s;

	if (vga_text(vga, &t)) {
		free(screen_text_utf8(&t));
		free(t.cells);
	}
	if (vga_image(vga, &s))
		free(s.pixels);
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
		i8042_mouse(b->dev, (i8)bytes[0], (i8)bytes[1], (i8)bytes[2], bytes[3]);
	} else if (b->dev->cls == &acpi_pm_class) {
		acpi_pm_power_button(b->dev);
		acpi_pm_gpe(b->dev, bytes[0] & 15);
		acpi_pm_wake(b->dev);
	} else if (b->dev->cls == &vga_class) {
		look_at_screen(b->dev);
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

	build(&b, choose((u8)take(&in, 1)));
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
			turn(&b);
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
		case 6: (b.dev->cls == &ahci_class ? ahci_start : b.dev->cls == &nvme_class ? nvme_start : bring_up)(&b, &in); break;
		case 7: (b.dev->cls == &ahci_class ? ahci_issue : b.dev->cls == &nvme_class ? nvme_issue : offer)(&b, &in); break;
		case 8: virtio_from_outside(&b, &in); break;
		default: access_register(&b, &in, what);
		}
		if (what < 0x80 || (what & 15) != 7) /* else it stays under way while the next is done */
			turn(&b);
	}
	destroy(&b);
	return 0;
}
