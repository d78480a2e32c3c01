/* PCI and virtio without an operating system: the bus is scanned, MSI-X delivers, a rng fills, a disk
 * reads, writes, zeroes and flushes; rings that are broken on purpose break their device alone, and
 * a reset mends it. Run with --rng and a disk of 1 MiB. */
#include "guest.h"

const char guest_name[] = "virtio";

/* ---- PCI ------------------------------------------------------------------------------- */

static u32 pci_read(unsigned slot, unsigned reg)
{
	outl(0xcf8, 0x80000000u | slot << 11 | reg);
	return inl(0xcfc);
}
static void pci_write(unsigned slot, unsigned reg, u32 v)
{
	outl(0xcf8, 0x80000000u | slot << 11 | reg);
	outl(0xcfc, v);
}
static unsigned find(u32 id)
{
	for (unsigned s = 0; s < 32; s++)
		if (pci_read(s, 0) == id)
			return s;
	return 0;
}
static unsigned find_cap(unsigned slot, u8 id, u8 type)
{
	for (u32 at = pci_read(slot, 0x34) & 0xff; at; at = pci_read(slot, at) >> 8 & 0xff) {
		u32 head = pci_read(slot, at);
		if ((head & 0xff) == id && (id != 9 || head >> 24 == type))
			return at;
	}
	return 0;
}

/* ---- a driver ---------------------------------------------------------------------------- */

enum { SIZE = 16, D_NEXT = 1, D_WRITE = 2, D_INDIRECT = 4, VECTOR = 0x60 };
struct desc { u64 addr; u32 len; u16 flags, next; };
struct queue {
	struct desc desc[SIZE] __attribute__((aligned(4096)));
	struct { u16 flags, idx, ring[SIZE], event; } avail __attribute__((aligned(64)));
	struct { u16 flags, idx; struct { u32 id, len; } ring[SIZE]; u16 event; } used __attribute__((aligned(64)));
};
struct dev { unsigned slot; uptr regs, table; struct queue *q; };

static volatile u32 interrupts;
static bool on_interrupt(struct frame *f)
{
	if (f->vec != VECTOR)
		return false;
	interrupts++;
	apic_write(0xb0, 0);
	return true;
}

static u8 r8(const struct dev *d, unsigned off) { return *(volatile u8 *)(d->regs + off); }
static u32 r32(const struct dev *d, unsigned off) { return *(volatile u32 *)(d->regs + off); }
static void w8(const struct dev *d, unsigned off, u8 v) { *(volatile u8 *)(d->regs + off) = v; }
static void w16(const struct dev *d, unsigned off, u16 v) { *(volatile u16 *)(d->regs + off) = v; }
static void w32(const struct dev *d, unsigned off, u32 v) { *(volatile u32 *)(d->regs + off) = v; }

static bool wait_for(volatile u16 *p, u16 v)
{
	for (unsigned k = 0; k < 5000; k++) {
		if (*p == v)
			return true;
		delay_us(1000);
	}
	return false;
}

/* Up to DRIVER_OK with one queue; vector 0 of MSI-X to this processor. */
static bool start(struct dev *d)
{
	memset(d->q, 0, sizeof(*d->q));
	w8(d, 0x14, 0);
	for (unsigned k = 0; r8(d, 0x14) && k < 5000; k++)
		delay_us(1000);
	w8(d, 0x14, 3);
	w32(d, 8, 0);
	w32(d, 12, 1u << 28 | 1 << 14 | 1 << 13 | 1 << 9); /* indirect; of a disk: zeroes, discard, flush */
	w32(d, 0, 0);
	w32(d, 12, r32(d, 4) & (1u << 28 | 1 << 14 | 1 << 13 | 1 << 9));
	w32(d, 8, 1);
	w32(d, 12, 1);
	w8(d, 0x14, 11);
	if (r8(d, 0x14) != 11)
		return false;
	w16(d, 0x16, 0);
	w16(d, 0x18, SIZE);
	w16(d, 0x1a, 0);
	w32(d, 0x20, (u32)(uptr)d->q->desc);
	w32(d, 0x24, 0);
	w32(d, 0x28, (u32)(uptr)&d->q->avail);
	w32(d, 0x2c, 0);
	w32(d, 0x30, (u32)(uptr)&d->q->used);
	w32(d, 0x34, 0);
	w16(d, 0x1c, 1);
	w8(d, 0x14, 15);
	return r8(d, 0x14) == 15;
}

static bool open_dev(struct dev *d, u32 id)
{
	d->slot = find(id);
	if (!d->slot)
		return false;
	pci_write(d->slot, 4, 6); /* memory, bus master */
	unsigned common = find_cap(d->slot, 9, 1), msix = find_cap(d->slot, 0x11, 0);
	u32 bar = pci_read(d->slot, common + 4) & 0xff;
	d->regs = (pci_read(d->slot, 0x10 + 4 * bar) & ~15u) + pci_read(d->slot, common + 8);
	u32 where = pci_read(d->slot, msix + 4);
	d->table = (pci_read(d->slot, 0x10 + 4 * (where & 7)) & ~15u) + (where & ~7u);
	volatile u32 *t = (volatile u32 *)d->table;
	t[0] = 0xfee00000;
	t[1] = 0;
	t[2] = VECTOR;
	t[3] = 0;
	pci_write(d->slot, msix, pci_read(d->slot, msix) | 1u << 31);
	return common && msix;
}

static void put(struct dev *d, unsigned k, const volatile void *p, u32 len, u16 flags, u16 next)
{
	d->q->desc[k] = (struct desc){ (uptr)p, len, flags, next };
}

static void kick(struct dev *d, u16 head)
{
	d->q->avail.ring[d->q->avail.idx % SIZE] = head;
	__sync_synchronize();
	d->q->avail.idx++;
	__sync_synchronize();
	w16(d, 0x3000, 0);
}

static struct queue queues[2];
static volatile u8 buffer[8192] __attribute__((aligned(4096)));

/* ---- rng ------------------------------------------------------------------------------------ */

static void check_rng(struct dev *d)
{
	u32 before = interrupts, zeros = 0;

	check("rng starts", start(d));
	put(d, 0, buffer, 64, D_WRITE, 0);
	kick(d, 0);
	check("rng answers", wait_for(&d->q->used.idx, 1));
	for (unsigned k = 0; k < 64; k++)
		zeros += !buffer[k];
	check("rng fills", zeros < 16);
	check_eq("rng writes no further", buffer[64], 0);
	check_eq("its length", d->q->used.ring[0].len, 64);
	for (unsigned k = 0; k < 1000 && interrupts == before; k++)
		delay_us(1000);
	check_eq("one interrupt by MSI-X", interrupts - before, 1);
	/* Masked in the table: pending, and comes with the unmasking. */
	volatile u32 *t = (volatile u32 *)d->table;
	t[3] = 1;
	kick(d, 0);
	check("rng answers while masked", wait_for(&d->q->used.idx, 2));
	delay_us(20000);
	check_eq("no interrupt while masked", interrupts - before, 1);
	check_eq("pending", t[0x200] & 1, 1);
	t[3] = 0;
	delay_us(1000);
	check_eq("then it comes", interrupts - before, 2);
	check_eq("pending no more", t[0x200] & 1, 0);
}

/* ---- disk ------------------------------------------------------------------------------------- */

static struct { u32 type, reserved; u64 sector; } header;
static struct { u64 sector; u32 n, flags; } range;
static volatile u8 status;

static u8 request(struct dev *d, u32 type, u64 sector, volatile void *data, u32 len, bool in)
{
	u16 want = (u16)(d->q->used.idx + 1);

	header.type = type;
	header.sector = sector;
	status = 0xee;
	put(d, 0, &header, 16, D_NEXT, len ? 1 : 2);
	put(d, 1, data, len, D_NEXT | (in ? D_WRITE : 0), 2);
	put(d, 2, &status, 1, D_WRITE, 0);
	kick(d, 0);
	return wait_for(&d->q->used.idx, want) ? status : 0xff;
}

static void check_disk(struct dev *d)
{
	u32 capacity = r32(d, 0x2000);

	check("disk starts", start(d));
	check_eq("sectors", capacity, 2048);
	for (unsigned k = 0; k < 4096; k++)
		buffer[k] = (u8)(k * 7 + 1);
	check_eq("write", request(d, 1, 5, buffer, 4096, false), 0);
	check_eq("flush", request(d, 4, 0, NULL, 0, false), 0);
	for (unsigned k = 0; k < 4096; k++)
		buffer[k] = 0;
	check_eq("read", request(d, 0, 6, buffer, 512, true), 0);
	bool same = true;
	for (unsigned k = 0; k < 512; k++)
		same &= buffer[k] == (u8)((k + 512) * 7 + 1);
	check("what was written", same);
	check_eq("no further", buffer[512], 0);
	range.sector = 6;
	range.n = 1;
	range.flags = 0;
	check_eq("write zeroes", request(d, 13, 0, &range, 16, false), 0);
	buffer[0] = buffer[511] = 9;
	check_eq("read again", request(d, 0, 6, buffer, 512, true), 0);
	check("zeros", !buffer[0] && !buffer[511]);
	range.flags = 1;
	check_eq("discard with a flag", request(d, 11, 0, &range, 16, false), 2);
	check_eq("its name", request(d, 8, 0, buffer, 20, true), 0);
	check_eq("beyond the end", request(d, 0, 2048, buffer, 512, true), 1);
	check_eq("over the end", request(d, 0, 2047, buffer, 1024, true), 1);
	check_eq("a sector that overflows", request(d, 0, ~0ull, buffer, 512, true), 1);
	check_eq("half a sector", request(d, 0, 0, buffer, 100, true), 1);
	check_eq("no such request", request(d, 77, 0, buffer, 512, true), 2);
}

static void check_code(struct dev *d)
{
	/* Code read from a disk over code that has run: MOV EAX, n; RET. */
	static const u8 one[6] = { 0xb8, 1, 0, 0, 0, 0xc3 };
	u32 sum = 0;

	for (unsigned n = 1; n <= 3; n++) {
		for (unsigned k = 0; k < 6; k++)
			buffer[k] = one[k];
		buffer[1] = (u8)n;
		request(d, 1, 20 + n, buffer, 512, false);
	}
	for (unsigned round = 0; round < 20; round++)
		for (unsigned n = 1; n <= 3; n++) {
			request(d, 0, 20 + n, buffer, 512, true);
			sum += ((u32 (*)(void))(uptr)buffer)() == n;
		}
	check_eq("code that a disk brought", sum, 60);
}

/* ---- broken rings -------------------------------------------------------------------------------- */

static void breaks(struct dev *d, const char *what, u64 addr, u32 len, u16 flags, u16 next, u16 idx)
{
	start(d);
	put(d, 0, (void *)(uptr)addr, len, flags, next);
	d->q->avail.idx = idx;
	w16(d, 0x3000, 0);
	for (unsigned k = 0; k < 3000 && !(r8(d, 0x14) & 0x40); k++)
		delay_us(1000);
	check_eq(what, r8(d, 0x14) & 0x40, 0x40);
}

static void check_broken(struct dev *d)
{
	breaks(d, "a loop", (uptr)buffer, 16, D_NEXT, 0, 1);
	breaks(d, "a link out of the table", (uptr)buffer, 16, D_NEXT, SIZE, 1);
	breaks(d, "a buffer in nowhere", 0x700000000000ull, 16, D_WRITE, 0, 1);
	breaks(d, "a buffer that is a device", 0xfee00000, 16, D_WRITE, 0, 1);
	breaks(d, "an index that runs away", (uptr)buffer, 16, D_WRITE, 0, 0x7000);
	breaks(d, "an indirect table of odd size", (uptr)buffer, 17, D_INDIRECT, 0, 1);
	check("a reset mends it", start(d));
	put(d, 0, buffer, 8, D_WRITE, 0);
	kick(d, 0);
	check("it works again", wait_for(&d->q->used.idx, 1));
}

int main(void)
{
	struct dev rng = { .q = &queues[0] }, disk = { .q = &queues[1] };

	trap_hook = on_interrupt;
	apic_write(0xf0, 0x1ff);
	check("the rng is found", open_dev(&rng, 0x10051af4));
	check("the disk is found", open_dev(&disk, 0x10011af4));
	__asm__ volatile("sti");
	check_rng(&rng);
	check_disk(&disk);
	check_code(&disk);
	check_broken(&rng);
	return 0;
}
