/* Long mode: two address spaces of four levels, 64-bit gates, IST. Each space has tables of its
 * own, but for the system's half, so that what a handler changes is never cached for the other. */
#include <string.h>

#include "world.h"

enum { P = 1, W = 2, U = 4, PS = 0x80, SELF = 510 /* the tables map themselves */ };
#define NX (1ull << 63)
#define ADDR 0xffffffffff000ull
#define SELF_LIN 0xffffff0000000000ull

static u64 *table(struct world *w, u64 phys) { return (u64 *)(void *)(w->base + phys); }

/* The entry for lin at the level whose index begins at bit `low`; makes tables above it. */
static u64 *entry(struct world *w, u64 root, u64 lin, int low)
{
	u64 t = root;
	for (int sh = 39; sh > low; sh -= 9) {
		u64 *e = table(w, t) + (lin >> sh & 511);
		if (!*e) {
			*e = w->next_table | P | W | U;
			w->next_table += 4096;
		}
		t = *e & ADDR;
	}
	return table(w, t) + (lin >> low & 511);
}

/* ---- paging --------------------------------------------------------------------------------------- */

struct fixes { u64 page[MAX_FIX], entry[MAX_FIX]; unsigned n; };

static void map(struct world *w, unsigned space, u64 lin, u64 phys, char letter, bool kernel, struct fixes *f)
{
	unsigned fix;
	u64 bits = letter_bits(letter, kernel, true, &fix);
	if (letter == '-')
		return;
	*entry(w, w->cr3[space], lin, 12) = phys | bits;
	if (fix && space == 0) { /* the same in both */
		f->page[f->n] = lin >> 12;
		f->entry[f->n++] = (SELF_LIN + (lin >> 9 & 0x7ffffffff8)) | fix;
	}
}

static void map_window(struct world *w, unsigned space, enum window win, struct fixes *f)
{
	bool kernel = win == WIN_KERN;
	for (unsigned k = 0; k < N_CODE_LETTERS; k++)
		map(w, space, code_base(CODE64, win) + k * 4096ull, code_phys(space, k), code_letters[win][k], kernel, f);
	for (unsigned k = 0; k < N_DATA_LETTERS; k++)
		map(w, space, data_base(CODE64, win) + k * 4096ull, k ? data_phys(space, win, (k - 1) % N_DATA_PHYS) : 0,
		    DATA_LETTERS[k], kernel, f);
	u64 *e = entry(w, w->cr3[space], big_base(CODE64, win), 21);
	*e = REGION | P | W | (kernel ? 0 : U) | PS | NX;
	w->big_pde[space][win] = (u64)((u8 *)e - w->base);
}

static void make_paging(struct world *w)
{
	struct fixes f = { .n = 0 };
	w->next_table = TABLES;
	for (unsigned s = 0; s < N_SPACES; s++) {
		w->cr3[s] = w->next_table;
		w->next_table += 4096;
		for (unsigned win = 0; win < N_WINDOWS; win++)
			map_window(w, s, win, &f);
		table(w, w->cr3[s])[SELF] = w->cr3[s] | P | W | NX;
	}
	for (unsigned k = 0; k < N_SYS; k++)
		*entry(w, w->cr3[0], sys_lin(w, k), 12) = (SYS + k * 4096ull) | P |
			(k == SYS_STUBS || k == SYS_GO_STUBS || k == SYS_HANDLERS ? 0 : W | NX);
	unsigned top = sys_lin(w, 0) >> 39 & 511;
	table(w, w->cr3[1])[top] = table(w, w->cr3[0])[top];
	u8 *v = sys_page(w, SYS_VARS) + VAR_FIX;
	memcpy(v, f.page, sizeof(f.page));
	memcpy(v + sizeof(f.page), f.entry, sizeof(f.entry));
}

/* ---- descriptors ------------------------------------------------------------------------------------ */

static struct segment flat(u16 sel, u32 attr)
{
	return (struct segment){ .sel = sel, .attr = attr, .limit = 0xffffffff };
}

static u64 descriptor(const struct segment *s, u32 limit)
{
	return (limit & 0xffff) | (s->base & 0xffffff) << 16 | (u64)(s->attr & 0xff) << 40 | (u64)(limit >> 16 & 15) << 48 |
	       (u64)(s->attr >> 12 & 15) << 52 | (s->base >> 24 & 0xff) << 56;
}

static void make_segments(struct world *w)
{
	u64 *gdt = (u64 *)(void *)sys_page(w, SYS_GDT);
	u8 *tss = sys_page(w, SYS_TSS);
	for (unsigned cpl = 0; cpl < 4; cpl += 3) {
		w->cs[cpl] = flat(cpl ? U_CS : K_CS, 0xa09b | cpl << 5);
		w->ds[cpl] = flat(cpl ? U_DS : K_DS, 0xc093 | cpl << 5);
		gdt[w->cs[cpl].sel / 8] = descriptor(&w->cs[cpl], 0xfffff);
		gdt[w->ds[cpl].sel / 8] = descriptor(&w->ds[cpl], 0xfffff);
	}
	w->tr = (struct segment){ .sel = TSS_SEL, .attr = 0x8b, .limit = 0x67, .base = sys_lin(w, SYS_TSS) };
	gdt[TSS_SEL / 8] = descriptor(&w->tr, 0x67);
	gdt[TSS_SEL / 8 + 1] = w->tr.base >> 32;
	w->gdt = sys_lin(w, SYS_GDT);
	w->gdt_limit = 0x7f;
	st64(tss + 4, sys_lin(w, SYS_STACK) + STACK_TOP);
	st64(tss + 36, sys_lin(w, SYS_IST) + STACK_TOP);
	st16(tss + 102, 0x68);
}

static void gate(u8 *g, u64 at, bool ist, unsigned dpl)
{
	st64(g, (at & 0xffff) | (u64)K_CS << 16 | (u64)ist << 32 | (0x8eull | dpl << 5) << 40 | (at >> 16 & 0xffff) << 48);
	st64(g + 8, at >> 32);
}

static void make_gates(struct world *w)
{
	for (unsigned k = 0; k < N_IDTS; k++) {
		bool go = k == IDT_GO || k == IDT_GO_STACK, ist = k == IDT_HALT || k == IDT_GO;
		w->idt[k] = sys_lin(w, SYS_IDT + k);
		for (unsigned v = 0; v < 256; v++) {
			gate(sys_page(w, SYS_IDT + k) + 16 * v, sys_lin(w, go ? SYS_GO_STUBS : SYS_STUBS) + v * STUB_STEP,
			     ist || v == V_DF, v == V_BP || v == V_OF || v >= 32 ? 3 : 0);
		}
		if (k == IDT_GO_STACK)
			gate(sys_page(w, SYS_IDT + k) + 16 * V_PF, sys_lin(w, SYS_HANDLERS) + PF_STACK_AT, false, 0);
		for (unsigned v = INTR_VECTORS; k == IDT_GO_STACK && v < 256; v++)
			gate(sys_page(w, SYS_IDT + k) + 16 * v, sys_lin(w, SYS_HANDLERS) + INTR_STACK_AT, false, 3);
	}
	w->idt_limit = 0xfff;
}

bool world64_build(struct world *w, bool exact_flags)
{
	make_paging(w);
	make_segments(w);
	make_gates(w);
	handlers64(w, exact_flags);
	return true;
}
