/* What must be equal after a run: every register, hidden segment state, control and debug registers,
 * floating point and vectors, all memory that a program or a handler can have written, page tables
 * with their accessed and dirty bits. */
#include <string.h>

#include "cells.h"
#include "world.h"

/* ---- registers: fields of struct cpu ------------------------------------------------------------------ */

struct field { const char *name; u32 offset; u16 size, count, stride; };
#define F(name, f) { name, offsetof(struct cpu, f), sizeof(((struct cpu *)0)->f), 1, 0 }
#define FX(name, at, size, count, stride) { name, offsetof(struct cpu, fxarea) + (at), size, count, stride }
#define SEG(name, n) F(name, seg[n].sel), F(name "_attr", seg[n].attr), F(name "_limit", seg[n].limit), F(name "_base", seg[n].base)
static const struct field fields[] = {
	F("rip", rip), /* first: CELL_RIP */
	 F("rax", regs[0]), F("rcx", regs[1]), F("rdx", regs[2]), F("rbx", regs[3]), F("rsp", regs[4]),
	F("rbp", regs[5]), F("rsi", regs[6]), F("rdi", regs[7]), F("r8", regs[8]), F("r9", regs[9]), F("r10", regs[10]),
	F("r11", regs[11]), F("r12", regs[12]), F("r13", regs[13]), F("r14", regs[14]), F("r15", regs[15]),
	F("rflags", rflags), F("cpl", cpl), F("mode", code_mode), F("activity", activity), F("stopped", stopped),
	F("shadow", shadow), F("nmi_blocked", nmi_blocked),
	SEG("es", 0), SEG("cs", 1), SEG("ss", 2), SEG("ds", 3), SEG("fs", 4), SEG("gs", 5), SEG("ldtr", 6), SEG("tr", 7),
	F("cr0", cr0), F("cr2", cr2), F("cr3", cr3), F("cr4", cr4), F("efer", efer), F("xcr0", xcr0), F("pkru", pkru),
	{ "dr", offsetof(struct cpu, dr), 8, 8, 8 },
	F("gdt_base", gdtr.base), F("gdt_limit", gdtr.limit), F("idt_base", idtr.base), F("idt_limit", idtr.limit),
	F("star", msr.star), F("lstar", msr.lstar), F("kernel_gs", msr.kernel_gs_base),
	FX("fcw", 0, 2, 1, 0), FX("fsw", 2, 2, 1, 0), FX("ftw", 4, 1, 1, 0), FX("mxcsr", 24, 4, 1, 0),
	FX("st", 32, 10, 8, 16),
	F("fop", fop), F("fip", fip), F("fdp", fdp), F("fcs", fcs), F("fds", fds),
	{ "k", offsetof(struct cpu, k), 8, 8, 8 }, { "zmm", offsetof(struct cpu, zmm), 64, 32, 64 },
};

/* FOP, FIP, FDP and their selectors, which are neighbours. */
static bool is_pointer(const struct field *f)
{
	return f->offset >= offsetof(struct cpu, fop) && f->offset <= offsetof(struct cpu, fds);
}

bool cell_is_flags(u32 id)
{
	return id < CELL_MEM && fields[(id - CELL_REG) / 64].offset == offsetof(struct cpu, rflags);
}

void cells_add(struct cells *s, u32 id, u64 bits)
{
	if (!bits)
		return;
	if (s->n == MAX_CELLS) {
		s->overflow = true;
		return;
	}
	s->cell[s->n++] = (struct cell){ id, bits };
}

/* The bits in which two numbers differ; of long fields whether each byte does. */
static u64 differing(const u8 *a, const u8 *b, unsigned n)
{
	u64 x = 0, y = 0;
	if (n <= 8) {
		memcpy(&x, a, n);
		memcpy(&y, b, n);
		return x ^ y;
	}
	for (unsigned k = 0; k < n; k++)
		x |= (u64)(a[k] != b[k]) << k;
	return x;
}

static void registers(struct cells *s, const struct cpu *a, const struct cpu *b, const struct compare_rules *r)
{
	for (unsigned k = 0; k < ARRAY_LEN(fields); k++) {
		const struct field *f = &fields[k];
		const u8 *pa = (const u8 *)a + f->offset, *pb = (const u8 *)b + f->offset;
		if (is_pointer(f) && r->ignore & IGNORE_FPU_POINTERS)
			continue;
		for (unsigned n = 0; n < f->count; n++, pa += f->stride, pb += f->stride) {
			if (!memcmp(pa, pb, f->size))
				continue;
			u64 bits = differing(pa, pb, f->size);
			if (f->offset == offsetof(struct cpu, rflags) && r->dead_flags)
				bits &= ~(u64)FL_STATUS;
			cells_add(s, CELL_REG + k * 64 + n, bits);
		}
	}
}

/* ---- memory ------------------------------------------------------------------------------------------------ */

static void page(struct cells *s, const u8 *a, const u8 *b, u32 phys, u64 care)
{
	if (!memcmp(a, b, 4096))
		return;
	for (unsigned at = 0; at < 4096; at += 8)
		cells_add(s, CELL_MEM + (phys + at) / 8, (ld64(a + at) ^ ld64(b + at)) & care);
}

static void memory(struct cells *s, const struct world *w, const u8 *a, const u8 *b, const struct compare_rules *r)
{
	bool big = false;
	u64 entry = ~0ull;
	if (r->ignore & IGNORE_ACCESSED)
		entry &= ~0x20ull;
	if (r->ignore & IGNORE_DIRTY)
		entry &= ~0x40ull;
	for (unsigned n = 0; n < N_SPACES; n++)
		for (unsigned win = 0; win < N_WINDOWS; win++)
			big |= w->big_pde[n][win] && (a[w->big_pde[n][win]] | b[w->big_pde[n][win]]) & 0x40;
	for (unsigned k = 0; k < w->n_pages; k++) {
		u32 phys = w->page[k] * 4096u;
		page(s, a + phys, b + phys, phys, phys < SYS ? entry : ~0ull);
	}
	for (u32 phys = REGION; big && phys < REGION + REGION_BYTES; phys += 4096)
		page(s, a + phys, b + phys, phys, ~0ull);
	/* An exception's frame on the handler's stack. */
	for (unsigned k = 0; r->frame_flags && k < s->n; k++)
		if (s->cell[k].id == CELL_MEM + r->frame_flags / 8)
			s->cell[k].bits &= ~(u64)FL_STATUS;
}

void cells_compare(struct cells *s, const struct world *w, struct rig *a, struct rig *b, const struct compare_rules *r)
{
	s->n = 0;
	s->overflow = false;
	registers(s, rig_cpu(a), rig_cpu(b), r);
	memory(s, w, rig_ram(a), rig_ram(b), r);
	unsigned n = 0;
	for (unsigned k = 0; k < s->n; k++)
		if (s->cell[k].bits)
			s->cell[n++] = s->cell[k];
	s->n = n;
}

/* ---- for people ------------------------------------------------------------------------------------------------ */

void cell_name(u32 id, char *out, size_t cap)
{
	if (id >= CELL_MEM) {
		u32 phys = (id - CELL_MEM) * 8;
		snprintf(out, cap, "%s %x", phys < SYS ? "table" : phys < REGION ? "system" : "memory", phys);
		return;
	}
	const struct field *f = &fields[(id - CELL_REG) / 64];
	if (f->count > 1)
		snprintf(out, cap, "%s%u", f->name, (id - CELL_REG) % 64);
	else
		snprintf(out, cap, "%s", f->name);
}

static const u8 *cell_bytes(u32 id, struct rig *r, unsigned *n)
{
	*n = 8;
	if (id >= CELL_MEM)
		return rig_ram(r) + (size_t)(id - CELL_MEM) * 8;
	const struct field *f = &fields[(id - CELL_REG) / 64];
	*n = f->size;
	return (const u8 *)rig_cpu(r) + f->offset + (id - CELL_REG) % 64 * f->stride;
}

void cell_show(u32 id, const char *const names[2], struct rig *a, struct rig *b, FILE *out)
{
	char name[24];
	cell_name(id, name, sizeof(name));
	for (unsigned side = 0; side < 2; side++) {
		unsigned n;
		const u8 *p = cell_bytes(id, side ? b : a, &n);
		fprintf(out, "  %-14s %-8s ", side ? "" : name, names[side]);
		for (unsigned k = n; k-- > 0;)
			fprintf(out, "%02x%s", p[k], k && k % 8 == 0 ? "_" : "");
		fputc('\n', out);
	}
}
