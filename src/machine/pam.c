/* C0000..FFFFF as the host bridge's PAM registers say: RAM, or what is on PCI there, reads and
 * writes apart. 82441FX (PMC) datasheet, 3.2.13. After power-on all is PCI: the firmware's ROM
 * at its end; firmware copies itself into the RAM behind and works on there.
 *
 * Invariants
 *  1. RAM is under all of it (mem.c). An area adds at most one region above: none where both
 *     reads and writes go to RAM.
 *  2. Where reads do not go to RAM and writes do, the area is a device; what it writes to RAM is
 *     told to mem_dma_written as any device's.
 * Threading: machine lock held. */
#define LOG_TOPIC "machine"
#include <string.h>

#include "machine/machine_impl.h"

enum { PAM_RE = 1, PAM_WE = 2 };
#define AREAS_START 0xc0000ull
#define AREA_SIZE 0x4000ull   /* of all but area 0, which is F0000..FFFFF */

static u64 area_base(const struct pam_area *a)
{
	unsigned k = (unsigned)(a - a->m->pam);
	return k ? AREAS_START + (k - 1) * AREA_SIZE : 0xf0000;
}

static u64 area_size(const struct pam_area *a) { return a == a->m->pam ? 0x10000 : AREA_SIZE; }

/* The firmware's last 128 KiB are seen below 1 MiB. NULL: nothing is there. */
static u8 *rom_at(const struct machine *m, u64 gpa)
{
	u64 low = MIN(m->firmware.size, 0x20000ull);
	return gpa >= MEM_1M - low ? m->firmware.data + m->firmware.size - (MEM_1M - gpa) : NULL;
}

static u64 area_read(void *dev, u64 off, unsigned size)
{
	const struct pam_area *a = dev;
	const u8 *rom = rom_at(a->m, area_base(a) + off);
	u64 v = ~0ull;
	if (rom)
		memcpy(&v, rom, size);
	return v;
}

static void area_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct pam_area *a = dev;
	struct mem *mem = &a->m->mem;
	u64 gpa = area_base(a) + off;
	if (!(a->state & PAM_WE))
		return;
	memcpy(mem->ram + gpa, &val, size);
	mem_dma_written(mem, mem->ram + gpa, size);
}

static const struct mmio_ops area_ops = { area_read, area_write, 1, 8 };

static void area_map(struct pam_area *a, u8 state)
{
	static const char *const names[] = { "PCI, C0000-FFFFF", "shadow RAM, read-only", "shadow RAM, write-only", NULL };
	struct mem *mem = &a->m->mem;
	u64 base = area_base(a), size = area_size(a);
	u8 *rom = rom_at(a->m, base);
	struct error e;
	bool ok = true;
	if (names[a->state])
		mem_remove(mem, names[a->state], base);
	a->state = state;
	if (state == PAM_RE)
		ok = mem_add_rom(mem, names[state], base, size, mem->ram + base, 1, &e);
	else if (state == 0 && rom)
		ok = mem_add_rom(mem, names[state], base, size, rom, 1, &e);
	else if (!(state & PAM_RE))
		ok = mem_add_mmio(mem, names[state], base, size, &area_ops, a, 1, &e);
	if (!ok)
		log_error("%s", e.msg);
}

/* Register 0 has area 0 in its high half; each of the others has two, the lower one first. */
static void on_pam(void *arg, const u8 *pam)
{
	struct machine *m = arg;
	for (unsigned k = 0; k < PAM_AREAS; k++) {
		u8 state = pam[(k + 1) / 2] >> (k & 1 ? 0 : 4) & (PAM_RE | PAM_WE);
		if (m->pam[k].state != state)
			area_map(&m->pam[k], state);
	}
}

void pam_init(struct machine *m)
{
	for (unsigned k = 0; k < PAM_AREAS; k++)
		m->pam[k] = (struct pam_area){ m, PAM_RE | PAM_WE };
	pci_host_on_pam(m->pci, on_pam, m);
}

void pam_firmware_loaded(struct machine *m)
{
	mem_lock(&m->mem);
	for (unsigned k = 0; k < PAM_AREAS; k++)
		area_map(&m->pam[k], m->pam[k].state);
	mem_unlock(&m->mem);
}

void pam_all_ram(struct machine *m)
{
	static const u32 regs[][2] = { { 0x58, 0x33333000 }, { 0x5c, 0x33333333 } };
	for (unsigned k = 0; k < ARRAY_LEN(regs); k++) {
		mem_port_write(&m->mem, 0xcf8, 0x80000000 | regs[k][0], 4);
		mem_port_write(&m->mem, 0xcfc, regs[k][1], 4);
	}
	mem_port_write(&m->mem, 0xcf8, 0, 4);
}
