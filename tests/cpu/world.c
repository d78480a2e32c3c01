#include "world.h"

struct world w;

u64 desc(u32 base, u32 limit, u32 attr)
{
	return (limit & 0xffff) | (u64)(base & 0xffffff) << 16 | (u64)(attr & 0xf0ff) << 40 |
	       (u64)(limit & 0xf0000) << 32 | (u64)(base >> 24) << 56;
}

u64 gate(u32 attr, u16 sel, u32 off, unsigned params)
{
	return (off & 0xffff) | (u64)sel << 16 | (u64)params << 32 | (u64)(attr & 0xff) << 40 | (u64)(off >> 16) << 48;
}

void gdt_set(u16 sel, u64 d) { put64(GDT + (sel & 0xfff8), d); }
void idt_set(unsigned vector, u64 g) { put64(IDT + vector * 8, g); }
void idt_set64(unsigned vector, u32 attr, u16 sel, u64 off, unsigned ist)
{
	put64(IDT + vector * 16, gate(attr, sel, (u32)off, ist));
	put64(IDT + vector * 16 + 8, off >> 32);
}

static void triple(void *arg) { w.triple++; }
static int int_ack(void *arg) { return w.vector; }

int world_up(void **state)
{
	struct error e;
	memset(&w, 0, sizeof(w));
	if (!mem_init(&w.m, 4 << 20, &e))
		return -1;
	strcpy(w.model.vendor, "GenuineIntel");
	w.model.phys_bits = 40;
	w.model.lin_bits = 48;
	w.hooks = (struct cpu_hooks){ .triple_fault = triple, .int_ack = int_ack };
	w.c = cpu_new(0, &w.m, &w.clock, &w.model, &w.hooks);
	return w.c ? 0 : -1;
}

int world_down(void **state)
{
	cpu_free(w.c);
	mem_destroy(&w.m);
	return 0;
}

static void tables(bool lng)
{
	static const struct { u16 sel; u32 attr; } flat[] = {
		{ C0, 0xc09a }, { D0, 0xc092 }, { C3, 0xc0fa }, { D3, 0xc0f2 }, { L0, 0xa09a }, { L3, 0xa0fa },
		{ CONF, 0xc09e }, { RO3, 0xc0f0 }, { XO3, 0xc0f8 }, { NP3, 0xc072 }, { NPC0, 0xc01a },
		{ C1, 0xc0ba }, { D1, 0xc0b2 }, { NPS0, 0xc012 }, { CONF3, 0xc0fe },
	};
	memset(w.m.ram, 0, 1 << 20);
	for (unsigned i = 0; i < ARRAY_LEN(flat); i++)
		gdt_set(flat[i].sel, desc(0, 0xfffff, flat[i].attr));
	gdt_set(0, desc(0, 0xfffff, 0xc09a)); /* looks good, must never be used */
	gdt_set(DOWN3, desc(0, 0xfff, 0x40f6));
	gdt_set(C16, desc(CODE, 0xffff, 0x9a));
	gdt_set(D16, desc(STACK0 - 0x1000, 0xffff, 0x92));
	gdt_set(SEL_TSS, desc(TSS, 0x1ff, 0x8b));
	gdt_set(SEL_LDT, desc(LDT, 0xff, 0x82));
	gdt_set(SEL_B, desc(TSS_B, 0x67, 0x89));
	gdt_set(SEL_16, desc(TSS_16, 0x2b, 0x81));
	if (lng) {
		put64(TSS + 4, STACK0);
		put64(TSS + 12, STACK1);
		put64(TSS + 0x24, IST1 + 8);
	} else {
		put32(TSS + 4, STACK0);
		put32(TSS + 8, D0);
		put32(TSS + 12, STACK1);
		put32(TSS + 16, D1);
	}
	put16(TSS + 0x66, 0x88);
}

static void load(unsigned s, u16 sel)
{
	u64 d[2];
	desc_read(w.c, sel, 8, d);
	w.c->seg[s] = desc_segment(sel, d[0] | 1ull << 40);
}

static void start(bool lng)
{
	struct cpu *c = w.c;
	cpu_reset(c, false);
	tables(lng);
	w.triple = 0;
	c->gdtr = (struct dtable){ GDT, GDT_LIMIT };
	c->idtr = (struct dtable){ IDT, lng ? 0xfff : 0x7ff };
	c->rip = CODE;
}

void world_real(void)
{
	start(false);
	w.c->idtr = (struct dtable){ 0, 0x3ff };
	for (unsigned s = S_ES; s <= S_GS; s++)
		w.c->seg[s] = (struct segment){ .sel = 0x1000, .base = 0x10000, .limit = 0xffff, .attr = 0x93 };
	w.c->rip = 0x100;
	w.c->regs[R_SP] = 0x800;
	w.c->rflags = 0x202;
	cpu_update_mode(w.c);
}

static void enter_protected(unsigned cpl)
{
	struct cpu *c = w.c;
	static const u16 code[] = { C0, C1, 0, C3 }, data[] = { D0, D1, 0, D3 };
	static const u32 stack[] = { STACK0, STACK1, 0, STACK3 };
	c->cr0 |= CR0_PE | CR0_WP;
	load(S_CS, code[cpl]);
	for (unsigned s = S_ES; s <= S_GS; s++) {
		if (s != S_CS)
			load(s, data[cpl]);
	}
	load(S_TR, SEL_TSS);
	load(S_LDTR, SEL_LDT);
	c->regs[R_SP] = stack[cpl] - (cpl ? 0 : 0x400);
	c->cpl = (u8)cpl;
	cpu_update_mode(c);
}

void world_protected(unsigned cpl)
{
	start(false);
	enter_protected(cpl);
}

void world_v86(unsigned iopl)
{
	struct cpu *c = w.c;
	start(false);
	enter_protected(0);
	c->rflags |= FL_VM | iopl << 12 | FL_IF;
	for (unsigned s = S_ES; s <= S_GS; s++)
		c->seg[s] = seg_v86((u16)(0x1000 + s));
	c->seg[S_SS] = seg_v86(0x2800);
	c->regs[R_SP] = 0x800;
	c->rip = 0x100;
	cpu_update_mode(c);
}

void world_long(unsigned cpl, bool compat)
{
	struct cpu *c = w.c;
	start(true);
	put64(PML4, PDPT | 7);
	put64(PML4 + 0xff8, PDPT | 7);
	put64(PDPT, PD | 7);
	put64(PD, 0 | 0x87);
	put64(PD + 8, 0x200000 | 0x87);
	c->cr4 |= CR4_PAE;
	c->efer = EFER_LME | EFER_LMA | EFER_SCE;
	c->cr0 |= CR0_PG;
	mmu_set_cr3(c, PML4, false);
	enter_protected(cpl);
	if (!compat)
		load(S_CS, cpl ? L3 : L0);
	cpu_update_mode(c);
}

void world_paging(void)
{
	put32(PD, PT | 7);
	for (unsigned i = 0; i < 1024; i++)
		put32(PT + 4 * i, i << 12 | 7);
	mmu_set_cr3(w.c, PD, false);
	w.c->cr0 |= CR0_PG;
	cpu_update_mode(w.c);
	mmu_flush_all(w.c);
}

void world_unmap(u32 page)
{
	put32(PT + (page >> 12) * 4, 0);
	mmu_flush_all(w.c);
}

struct snapshot snapshot(void)
{
	struct cpu *c = w.c;
	struct snapshot s;
	memset(&s, 0, sizeof(s));
	memcpy(s.regs, c->regs, sizeof(s.regs));
	for (unsigned i = 0; i < N_SREGS; i++) { /* not the padding */
		s.seg[i].sel = c->seg[i].sel;
		s.seg[i].attr = c->seg[i].attr;
		s.seg[i].limit = c->seg[i].limit;
		s.seg[i].base = c->seg[i].base;
	}
	s.rflags = c->rflags;
	s.rip = c->rip;
	s.cr0 = c->cr0;
	s.cr3 = c->cr3;
	s.cpl = c->cpl;
	s.code_mode = c->code_mode;
	s.mmu = c->mmu;
	s.nmi = c->nmi_blocked;
	return s;
}

void unchanged(const struct snapshot *before, const char *file, int line)
{
	struct snapshot now = snapshot();
	if (memcmp(before, &now, sizeof(now)))
		fail_msg("%s:%d: the fault changed registers", file, line);
}

void check_fault(unsigned vector, u32 error, const char *file, int line)
{
	const struct exception *x = &w.c->exc;
	if (x->vector != vector || (x->has_error ? x->error : 0) != error)
		fail_msg("%s:%d: vector %u error %x, expected %u error %x", file, line, x->vector, x->error, vector, error);
}
