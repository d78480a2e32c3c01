/* Loads of segment registers, addresses through them, and what asks about descriptors. */
#include "world.h"

/* ---- seg_load: who may load what, and with which error */

static void load_refused(void **state)
{
	static const struct { u8 cpl, s; u16 sel; u8 vector; u16 error; } t[] = {
		{ 0, S_SS, 0, V_GP, 0 },               /* null */
		{ 0, S_SS, 3, V_GP, 0 },
		{ 0, S_SS, 0x200, V_GP, 0x200 },       /* outside the GDT */
		{ 0, S_SS, 0x104, V_GP, 0x104 },       /* outside the LDT, TI in the code */
		{ 0, S_SS, D0 | 3, V_GP, D0 },         /* RPL != CPL */
		{ 0, S_SS, D3 & ~3, V_GP, D3 & ~3 },   /* DPL != CPL */
		{ 3, S_SS, RO3, V_GP, RO3 & ~3 },      /* read-only */
		{ 3, S_SS, C3, V_GP, C3 & ~3 },        /* code */
		{ 0, S_SS, SEL_LDT, V_GP, SEL_LDT },   /* system */
		{ 3, S_SS, NP3, V_SS, NP3 & ~3 },      /* not present: #SS */
		{ 0, S_SS, NPS0, V_SS, NPS0 },
		{ 0, S_DS, 0x200, V_GP, 0x200 },
		{ 0, S_DS, 0x1f9 | 7, V_GP, 0x1fc },   /* LDT index */
		{ 3, S_DS, D0, V_GP, D0 },             /* CPL > DPL */
		{ 0, S_DS, D0 | 1, V_GP, D0 },         /* RPL > DPL */
		{ 3, S_ES, C0, V_GP, C0 },             /* nonconforming code is no better */
		{ 3, S_FS, XO3, V_GP, XO3 & ~3 },      /* execute-only */
		{ 0, S_GS, SEL_TSS, V_GP, SEL_TSS },   /* system */
		{ 3, S_DS, NP3, V_NP, NP3 & ~3 },      /* not present: #NP */
		{ 0, S_GS, NPC0, V_NP, NPC0 },
	};
	for (unsigned i = 0; i < ARRAY_LEN(t); i++) {
		world_protected(t[i].cpl);
		gdt_set(0, desc(0, 0xfffff, 0xc092));
		FAULTS(seg_load(w.c, t[i].s, t[i].sel), t[i].vector, t[i].error);
	}
}

static void load_works(void **state)
{
	world_protected(3);
	gdt_set(SCRATCH, desc(0x12345678, 0xabcde, 0xf0f2));
	WORKS(seg_load(w.c, S_ES, SCRATCH | 3));
	assert_int_equal(w.c->seg[S_ES].base, 0x12345678);
	assert_int_equal(w.c->seg[S_ES].limit, 0xabcdefff);
	assert_int_equal(w.c->seg[S_ES].attr, 0xf0f3); /* accessed, here and in memory */
	assert_int_equal(w.m.ram[GDT + SCRATCH + 5], 0xf3);
	WORKS(seg_load(w.c, S_DS, CONF)); /* conforming code: no privilege check */
	assert_int_equal(w.c->seg[S_DS].sel, CONF);
	WORKS(seg_load(w.c, S_DS, 2));
	assert_int_equal(w.c->seg[S_DS].sel, 2);
	assert_true(w.c->seg[S_DS].attr & SEG_UNUSABLE);
	put64(LDT + 8, desc(0x1000, 0xff, 0xf2));
	WORKS(seg_load(w.c, S_FS, 0xf));
	assert_int_equal(w.c->seg[S_FS].base, 0x1000);
	assert_int_equal(w.c->seg[S_FS].limit, 0xff);
	w.c->seg[S_LDTR].attr |= SEG_UNUSABLE;
	FAULTS(seg_load(w.c, S_FS, 0xf), V_GP, 0xc);
}

/* The accessed bit is written only when it is clear: a read-only table is fine otherwise. */
static void accessed_bit(void **state)
{
	world_protected(0);
	world_paging();
	gdt_set(SCRATCH, desc(0, 0xfffff, 0xc093));
	put32(PT + (GDT >> 12) * 4, GDT | 1);
	mmu_flush_all(w.c);
	WORKS(seg_load(w.c, S_DS, SCRATCH));
	FAULTS(seg_load(w.c, S_DS, D0), V_PF, PF_P | PF_W);
	assert_int_equal(w.c->exc.cr2, GDT + D0 + 5);
}

/* Null SS: 64-bit mode below CPL 3 with RPL = CPL, nowhere else. */
static void null_ss(void **state)
{
	world_long(0, false);
	WORKS(seg_load(w.c, S_SS, 0));
	assert_true(w.c->seg[S_SS].attr & SEG_UNUSABLE);
	FAULTS(seg_load(w.c, S_SS, 1), V_GP, 0);
	world_long(3, false);
	FAULTS(seg_load(w.c, S_SS, 3), V_GP, 0);
	FAULTS(seg_load(w.c, S_SS, 0), V_GP, 0);
	world_long(0, true);
	FAULTS(seg_load(w.c, S_SS, 0), V_GP, 0);
}

static void real_and_v86(void **state)
{
	world_real();
	w.c->seg[S_DS].limit = 0xffffffff; /* unreal */
	w.c->seg[S_DS].attr = 0xc093;
	WORKS(seg_load(w.c, S_DS, 0x1234));
	assert_int_equal(w.c->seg[S_DS].base, 0x12340);
	assert_int_equal(w.c->seg[S_DS].limit, 0xffffffff);
	w.c->seg[S_DS] = seg_null(0, 0); /* what protected mode left unusable works again */
	WORKS(seg_load(w.c, S_DS, 0x1234));
	assert_int_equal(w.c->seg[S_DS].limit, 0xffff);
	assert_int_equal(w.c->seg[S_DS].attr, 0x93);
	world_v86(3);
	w.c->seg[S_DS].limit = 0xffffffff;
	WORKS(seg_load(w.c, S_DS, 0x1234));
	assert_int_equal(w.c->seg[S_DS].limit, 0xffff);
	assert_int_equal(w.c->seg[S_DS].attr, 0xf3);
}

/* ---- seg_linear */

static u64 lin;
static void linear(unsigned s, u64 off, unsigned size, enum access acc) { lin = seg_linear(w.c, s, off, size, acc); }

static void limits(void **state)
{
	world_protected(3);
	gdt_set(SCRATCH, desc(0x1000, 0xfff, 0x40f2));
	seg_load(w.c, S_ES, SCRATCH | 3);
	WORKS(linear(S_ES, 0xffc, 4, ACC_WRITE));
	assert_int_equal(lin, 0x1ffc);
	FAULTS(linear(S_ES, 0xffd, 4, ACC_READ), V_GP, 0);
	FAULTS(linear(S_ES, 0x1000, 1, ACC_READ), V_GP, 0);
	FAULTS(linear(S_ES, 0xffffffff, 2, ACC_READ), V_GP, 0);
	seg_load(w.c, S_SS, SCRATCH | 3);
	FAULTS(linear(S_SS, 0xffd, 4, ACC_WRITE), V_SS, 0);
	/* expand-down, B = 1: above the limit to 4 GiB */
	seg_load(w.c, S_ES, DOWN3);
	FAULTS(linear(S_ES, 0xfff, 1, ACC_WRITE), V_GP, 0);
	WORKS(linear(S_ES, 0x1000, 1, ACC_WRITE));
	WORKS(linear(S_ES, 0xfffffffc, 4, ACC_WRITE));
	FAULTS(linear(S_ES, 0xfffffffd, 4, ACC_WRITE), V_GP, 0);
	/* B = 0: to 64 KiB */
	gdt_set(SCRATCH, desc(0, 0xfff, 0xf6));
	seg_load(w.c, S_ES, SCRATCH | 3);
	WORKS(linear(S_ES, 0xfffe, 2, ACC_WRITE));
	FAULTS(linear(S_ES, 0xffff, 2, ACC_WRITE), V_GP, 0);
	FAULTS(linear(S_ES, 0x10000, 1, ACC_WRITE), V_GP, 0);
	/* base + offset wraps at 4 GiB, and a 4-GiB segment has no end */
	gdt_set(SCRATCH, desc(0xfffff000, 0xfffff, 0xc0f2));
	seg_load(w.c, S_ES, SCRATCH | 3);
	WORKS(linear(S_ES, 0x1004, 4, ACC_READ));
	assert_int_equal(lin, 4);
	WORKS(linear(S_ES, 0xfffffffe, 4, ACC_READ));
}

static void types(void **state)
{
	world_protected(3);
	seg_load(w.c, S_ES, RO3);
	WORKS(linear(S_ES, 0, 4, ACC_READ));
	FAULTS(linear(S_ES, 0, 4, ACC_WRITE), V_GP, 0);
	FAULTS(linear(S_CS, 0, 4, ACC_WRITE), V_GP, 0);
	w.c->seg[S_CS].attr &= ~2u; /* execute-only */
	FAULTS(linear(S_CS, 0, 4, ACC_READ), V_GP, 0);
	seg_load(w.c, S_ES, 0);
	FAULTS(linear(S_ES, 0, 1, ACC_READ), V_GP, 0);
	WORKS(linear(S_NONE, 0x1234, 1, ACC_WRITE));
	assert_int_equal(lin, 0x1234);
	w.c->seg[S_SS].attr |= SEG_UNUSABLE;
	FAULTS(linear(S_SS, 0, 1, ACC_READ), V_SS, 0);
	world_real();
	w.c->seg[S_CS].attr = 0x9b;
	WORKS(linear(S_CS, 0, 4, ACC_WRITE)); /* no types in real mode, only limits */
	FAULTS(linear(S_DS, 0xffff, 2, ACC_WRITE), V_GP, 0);
	FAULTS(linear(S_SS, 0xffff, 2, ACC_WRITE), V_SS, 0);
}

static void lmsle(void **state)
{
	const u64 top = 0xffffffff00000000ull;
	world_long(3, false);
	w.c->efer |= EFER_LMSLE;
	w.c->seg[S_DS].limit = w.c->seg[S_SS].limit = w.c->seg[S_GS].limit = 0xfff;
	cpu_update_mode(w.c);
	WORKS(linear(S_DS, top + 0xffc, 4, ACC_READ));
	FAULTS(linear(S_DS, top + 0xffd, 4, ACC_READ), V_GP, 0);
	FAULTS(linear(S_SS, top + 0x1000, 1, ACC_WRITE), V_SS, 0);
	WORKS(linear(S_GS, top + 0x1000, 1, ACC_WRITE)); /* GS is free */
	WORKS(linear(S_DS, 0x1000, 8, ACC_WRITE));
	WORKS(linear(S_NONE, top + 0x1000, 1, ACC_READ));
	w.c->seg[S_ES] = seg_null(0, 0);
	WORKS(linear(S_ES, top + 0x1000, 1, ACC_READ));
	w.c->seg[S_CS].limit = 0xfff;
	WORKS(linear(S_CS, top + 0x1000, 1, ACC_READ));
	w.c->efer &= ~(u64)EFER_LMSLE;
	WORKS(linear(S_DS, top + 0x1000, 1, ACC_READ));
	world_long(0, false);
	w.c->efer |= EFER_LMSLE;
	w.c->seg[S_DS].limit = 0xfff;
	cpu_update_mode(w.c);
	WORKS(linear(S_DS, top + 0x1000, 4, ACC_READ)); /* CPL 0 is free */
	w.c->efer &= ~(u64)EFER_LMSLE;
}

/* ---- LAR LSL VERR VERW */

static void queries(void **state)
{
	u32 v;
	world_protected(3);
	assert_false(seg_lar(w.c, 0, &v));
	assert_false(seg_lar(w.c, 0x200, &v));
	assert_false(seg_lar(w.c, D0, &v));      /* CPL > DPL */
	assert_true(seg_lar(w.c, CONF, &v));     /* conforming: visible */
	assert_true(seg_lar(w.c, D3, &v));
	assert_int_equal(v, 0xcff200);           /* bits of the limit too */
	assert_true(seg_lar(w.c, NP3, &v));      /* present does not matter */
	assert_true(seg_lsl(w.c, D3, &v));
	assert_int_equal(v, 0xffffffff);
	assert_true(seg_lsl(w.c, DOWN3, &v));
	assert_int_equal(v, 0xfff);
	world_protected(0);
	assert_false(seg_lar(w.c, D0 | 1, &v));  /* RPL > DPL */
	assert_true(seg_verify(w.c, D0, true));
	assert_true(seg_verify(w.c, D0, false));
	assert_false(seg_verify(w.c, RO3, true));
	assert_true(seg_verify(w.c, RO3, false));
	assert_false(seg_verify(w.c, XO3, false));
	assert_false(seg_verify(w.c, C0, true));
	assert_true(seg_verify(w.c, C0, false));
	assert_false(seg_verify(w.c, SEL_TSS, false));
	assert_false(seg_verify(w.c, 0, false));
}

/* Which of the 16 system types LAR and LSL take. */
static void query_types(void **state)
{
	static const u16 lar[2] = { 0x1a3e, 0x1a04 }, lsl[2] = { 0x0a0e, 0x0a04 };
	for (unsigned lng = 0; lng < 2; lng++) {
		if (lng)
			world_long(0, false);
		else
			world_protected(0);
		for (unsigned type = 0; type < 16; type++) {
			u32 v;
			gdt_set(SCRATCH, desc(0, 0x67, 0x80 | type));
			assert_int_equal(seg_lar(w.c, SCRATCH, &v), lar[lng] >> type & 1);
			assert_int_equal(seg_lsl(w.c, SCRATCH, &v), lsl[lng] >> type & 1);
		}
	}
}

/* ---- LLDT LTR */

static void lldt_ltr(void **state)
{
	world_protected(0);
	WORKS(seg_lldt(w.c, 3));
	assert_true(w.c->seg[S_LDTR].attr & SEG_UNUSABLE);
	WORKS(seg_lldt(w.c, SEL_LDT));
	assert_int_equal(w.c->seg[S_LDTR].base, LDT);
	put64(LDT + SEL_LDT, desc(LDT, 0xff, 0x82)); /* good, but in the LDT */
	put64(LDT + SEL_B, desc(TSS_B, 0x67, 0x89));
	FAULTS(seg_lldt(w.c, SEL_LDT | 4), V_GP, SEL_LDT | 4);
	FAULTS(seg_lldt(w.c, 0x200), V_GP, 0x200);
	FAULTS(seg_lldt(w.c, D0), V_GP, D0);
	FAULTS(seg_lldt(w.c, SEL_TSS), V_GP, SEL_TSS);
	gdt_set(SCRATCH, desc(LDT, 0xff, 0x02));
	FAULTS(seg_lldt(w.c, SCRATCH), V_NP, SCRATCH);
	gdt_set(0, desc(TSS, 0x67, 0x89));
	FAULTS(seg_ltr(w.c, 0), V_GP, 0);
	FAULTS(seg_ltr(w.c, SEL_TSS), V_GP, SEL_TSS);       /* busy */
	FAULTS(seg_ltr(w.c, SEL_B | 4), V_GP, SEL_B | 4);
	FAULTS(seg_ltr(w.c, SEL_LDT), V_GP, SEL_LDT);
	gdt_set(SCRATCH, desc(TSS, 0x67, 0x09));
	FAULTS(seg_ltr(w.c, SCRATCH), V_NP, SCRATCH);
	WORKS(seg_ltr(w.c, SEL_B));
	assert_int_equal(w.c->seg[S_TR].attr, 0x8b);
	assert_int_equal(w.m.ram[GDT + SEL_B + 5], 0x8b);   /* busy in memory */
	WORKS(seg_ltr(w.c, SEL_16));
	assert_int_equal(w.c->seg[S_TR].attr, 0x83);

	world_long(0, false);
	gdt_set(SCRATCH, desc(0x1000, 0x67, 0x89));
	gdt_set(SCRATCH + 8, 0xffff8000);
	WORKS(seg_ltr(w.c, SCRATCH));
	assert_true(w.c->seg[S_TR].base == 0xffff800000001000ull);
	gdt_set(SCRATCH, desc(0x1000, 0x67, 0x89));
	gdt_set(SCRATCH + 8, 0x00008000);                    /* not canonical */
	FAULTS(seg_ltr(w.c, SCRATCH), V_GP, SCRATCH);
	w.model.lin_bits = 57; /* counts in place of CR4.LA57 */
	WORKS(seg_ltr(w.c, SCRATCH));
	w.model.lin_bits = 48;
	gdt_set(SCRATCH, desc(0x1000, 0x67, 0x89));
	gdt_set(SCRATCH + 8, 0xffff8000 | 1ull << 40);       /* type of the upper half */
	FAULTS(seg_ltr(w.c, SCRATCH), V_GP, SCRATCH);
	gdt_set(0x1f8, desc(0x1000, 0x67, 0x89));            /* 16 bytes do not fit */
	FAULTS(seg_ltr(w.c, 0x1f8), V_GP, 0x1f8);
	gdt_set(SCRATCH, desc(0x1000, 0x67, 0x81));          /* no 16-bit TSS */
	FAULTS(seg_ltr(w.c, SCRATCH), V_GP, SCRATCH);
}

static void io_bitmap(void **state)
{
	world_protected(3);
	memset(w.m.ram + TSS + 0x88, 0, 0x178);
	w.m.ram[TSS + 0x88 + 2] = 0x80;   /* port 23 */
	assert_true(cpu_io_allowed(w.c, 22, 1));
	assert_false(cpu_io_allowed(w.c, 23, 1));
	assert_false(cpu_io_allowed(w.c, 22, 2));
	assert_false(cpu_io_allowed(w.c, 20, 4));
	assert_true(cpu_io_allowed(w.c, 24, 4));
	assert_true(cpu_io_allowed(w.c, 0xbb0, 1));  /* both bytes within: 0x1fe, 0x1ff */
	assert_false(cpu_io_allowed(w.c, 0xbb8, 1)); /* 0x200 is not */
	w.c->rflags |= 3 << 12;
	assert_true(cpu_io_allowed(w.c, 23, 1));
	world_protected(0);
	w.c->rflags &= ~(u64)FL_IOPL;
	w.m.ram[TSS + 0x88] = 0xff;
	assert_true(cpu_io_allowed(w.c, 0, 1));
	world_v86(3);                                 /* IOPL says nothing in V86 mode */
	w.m.ram[TSS + 0x88] = 0xff;
	assert_false(cpu_io_allowed(w.c, 0, 1));
	world_protected(3);
	w.c->seg[S_TR].attr = 0x83;                   /* a 16-bit TSS has no bitmap */
	assert_false(cpu_io_allowed(w.c, 0, 1));
	world_protected(3);
	put16(TSS + 0x66, 0x10); /* clear bits there */
	w.c->seg[S_TR].limit = 0x66;
	assert_false(cpu_io_allowed(w.c, 1, 1));
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(load_refused), cmocka_unit_test(load_works),
		cmocka_unit_test(accessed_bit), cmocka_unit_test(null_ss),
		cmocka_unit_test(real_and_v86), cmocka_unit_test(limits), cmocka_unit_test(types),
		cmocka_unit_test(lmsle), cmocka_unit_test(queries), cmocka_unit_test(query_types),
		cmocka_unit_test(lldt_ltr), cmocka_unit_test(io_bitmap),
	};
	return cmocka_run_group_tests(tests, world_up, world_down);
}
