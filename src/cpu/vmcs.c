/* The VMCS: its fields by encoding, its region in memory. Intel SDM vol. 3 24.2, 24.11, appendix B.
 *
 * A region is: revision identifier, abort indicator, launch state (4 bytes each, the third ring3's own),
 * from byte 64 on each field in 8 bytes in the order of vmcs.def. Fields of 16 and 32 bits and high halves
 * never hold more than they have bits (vmcs_field_write), and a region is cut to that when it is loaded,
 * since a guest may write to it as to any memory. */
#include <string.h>

#include "cpu/mmu.h"
#include "cpu/vmx.h"

enum { REGION_FIELDS = 64 };

static const u16 encodings[N_VMCS_FIELDS] = {
#define VMCS(name, encoding) encoding,
#include "cpu/vmcs.def"
#undef VMCS
};
_Static_assert(REGION_FIELDS + 8 * N_VMCS_FIELDS <= 4096, "a VMCS region is a page");

/* By bits 14:10 and 9:1 of the encoding: slot + 1. */
static const u8 slots[32][32] = {
#define VMCS(name, encoding) [(encoding) >> 10][((encoding) >> 1) & 31] = VMCS_##name + 1,
#include "cpu/vmcs.def"
#undef VMCS
};

const u8 vmcs_segments[8] = { S_ES, S_CS, S_SS, S_DS, S_FS, S_GS, S_LDTR, S_TR };

int vmcs_slot(u64 encoding)
{
	bool high = encoding & 1, wide = (encoding >> 13 & 3) == 1;
	if (encoding >> 15 || (encoding & 0x3c0) || (high && !wide))
		return -1;
	return (int)slots[encoding >> 10][(encoding >> 1) & 31] - 1;
}

static u64 width_mask(u64 encoding)
{
	static const u64 mask[] = { 0xffff, ~0ull, 0xffffffff, ~0ull };
	return mask[encoding >> 13 & 3];
}

u64 vmcs_field_read(const struct vmcs *m, u64 encoding, unsigned slot)
{
	return encoding & 1 ? m->f[slot] >> 32 : m->f[slot];
}

static u64 merge(u64 old, u64 encoding, u64 v)
{
	return encoding & 1 ? (u32)old | v << 32 : v & width_mask(encoding);
}

void vmcs_field_write(struct vmcs *m, u64 encoding, unsigned slot, u64 v)
{
	m->f[slot] = merge(m->f[slot], encoding, v);
}

/* ---- the region ----------------------------------------------------------------------------- */

void vmx_phys_store(struct cpu *c, u64 addr, u64 v, unsigned size)
{
	mem_phys_write(c->mem, addr, v, size);
	u8 *host = mem_ram(c->mem, addr);
	if (host)
		mem_code_hit(c, mmu_code_of(c, host), addr & PAGE_MASK, size);
}

/* The page of addr in the host, if it is RAM: regions are then copied at once. */
static u64 *region_ram(struct cpu *c, u64 addr) { return (u64 *)(void *)mem_ram(c->mem, addr); }

void vmcs_store(struct cpu *c)
{
	const struct vmcs *m = &c->vmx->vmcs;
	u64 at = c->vmx->current;
	if (at == VMCS_NONE)
		return;
	vmx_phys_store(c, at + 4, m->abort, 4);
	vmx_phys_store(c, at + 8, m->launched, 4);
	u64 *ram = region_ram(c, at);
	if (ram) {
		memcpy(ram + REGION_FIELDS / 8, m->f, sizeof(m->f));
		mem_code_hit(c, mmu_code_of(c, (const u8 *)ram), REGION_FIELDS, sizeof(m->f));
		return;
	}
	for (unsigned k = 0; k < N_VMCS_FIELDS; k++)
		vmx_phys_store(c, at + REGION_FIELDS + 8 * k, m->f[k], 8);
}

void vmcs_load(struct cpu *c, u64 addr)
{
	struct vmcs *m = &c->vmx->vmcs;
	const u64 *ram = region_ram(c, addr);
	m->revision = (u32)mem_phys_read(c->mem, addr, 4);
	m->abort = (u32)mem_phys_read(c->mem, addr + 4, 4);
	m->launched = (u32)mem_phys_read(c->mem, addr + 8, 4);
	if (ram)
		memcpy(m->f, ram + REGION_FIELDS / 8, sizeof(m->f));
	for (unsigned k = 0; k < N_VMCS_FIELDS; k++) {
		u64 v = ram ? m->f[k] : mem_phys_read(c->mem, addr + REGION_FIELDS + 8 * k, 8);
		m->f[k] = v & width_mask(encodings[k]);
	}
	c->vmx->current = addr;
}

void vmcs_region_clear(struct cpu *c, u64 addr) { vmx_phys_store(c, addr + 8, 0, 4); }

u64 vmcs_region_read(struct cpu *c, u64 addr, u64 encoding, unsigned slot)
{
	u64 v = mem_phys_read(c->mem, addr + REGION_FIELDS + 8 * slot, 8) & width_mask(encodings[slot]);
	return encoding & 1 ? v >> 32 : v;
}

void vmcs_region_write(struct cpu *c, u64 addr, u64 encoding, unsigned slot, u64 v)
{
	u64 at = addr + REGION_FIELDS + 8 * slot;
	vmx_phys_store(c, at, merge(mem_phys_read(c->mem, at, 8), encoding, v), 8);
}
