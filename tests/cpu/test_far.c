/* Far jumps, calls, returns, and IRET, across levels and modes. */
#include "world.h"

enum { CALL32 = 0x8c, CALL16 = 0x84, U = 0x60, TO = 0x11234 };

static void jmp(u16 sel, u64 off) { far_jmp(w.c, sel, off, 4); }
static void call(u16 sel, u64 off) { far_call(w.c, sel, off, 4); }

/* A frame for RET and IRET at the current stack's top. */
static void frame(unsigned size, unsigned n, const u64 *v)
{
	u64 at = (w.c->regs[R_SP] & w.c->sp_mask) + w.c->ebase[S_SS];
	for (unsigned i = 0; i < n; i++)
		memcpy(w.m.ram + at + i * size, &v[i], size);
}
#define FRAME(size, ...) frame(size, sizeof((u64[]){ __VA_ARGS__ }) / 8, (const u64[]){ __VA_ARGS__ })

/* ---- JMP and CALL to code segments: the same checks */

static void direct_refused(void **state)
{
	static const struct { u8 cpl; u16 sel; u32 off; u8 vector; u16 error; } t[] = {
		{ 0, 0, TO, V_GP, 0 },
		{ 0, 3, TO, V_GP, 0 },
		{ 0, 0x200, TO, V_GP, 0x200 },
		{ 0, 0x104, TO, V_GP, 0x104 },
		{ 0, D0, TO, V_GP, D0 },
		{ 0, C3, TO, V_GP, C3 & ~3 },            /* nonconforming: DPL != CPL */
		{ 3, C0, TO, V_GP, C0 },
		{ 0, C0 | 1, TO, V_GP, C0 },             /* RPL > CPL */
		{ 0, CONF3, TO, V_GP, CONF3 & ~3 },      /* conforming: DPL > CPL */
		{ 0, NPC0, TO, V_NP, NPC0 },
		{ 0, C16, 0x10000, V_GP, 0 },            /* beyond the limit */
		{ 0, SEL_TSS, 0, V_GP, SEL_TSS },        /* busy */
		{ 0, SEL_LDT, 0, V_GP, SEL_LDT },
		{ 3, SEL_B, 0, V_GP, SEL_B },            /* DPL < CPL */
		{ 0, SEL_B | 1, 0, V_GP, SEL_B },        /* RPL > DPL */
	};
	for (unsigned i = 0; i < ARRAY_LEN(t); i++) {
		world_protected(t[i].cpl);
		FAULTS(jmp(t[i].sel, t[i].off), t[i].vector, t[i].error);
		FAULTS(call(t[i].sel, t[i].off), t[i].vector, t[i].error);
	}
}

static void direct_works(void **state)
{
	world_protected(3);
	WORKS(jmp(CONF, TO)); /* keeps CPL and puts it into RPL */
	assert_int_equal(w.c->seg[S_CS].sel, CONF | 3);
	assert_int_equal(w.c->cpl, 3);
	assert_int_equal(w.c->rip, TO);
	world_protected(0);
	gdt_set(SCRATCH, desc(0, 0xfffff, 0xe09a)); /* L means nothing outside long mode */
	WORKS(jmp(SCRATCH, TO));
	assert_int_equal(w.c->code_mode, CODE32);
	gdt_set(SCRATCH, desc(0, 0xfffff, 0xc094)); /* data whose type, with S clear, is a call gate's */
	FAULTS(jmp(SCRATCH, TO), V_GP, SCRATCH);
	world_protected(0);
	WORKS(jmp(C16, 0x1234));
	assert_int_equal(w.c->code_mode, CODE16);
	assert_int_equal(w.m.ram[GDT + C16 + 5], 0x9b);
	world_protected(0);
	u32 sp = (u32)w.c->regs[R_SP];
	WORKS(call(C0, TO));
	assert_int_equal(w.c->regs[R_SP], sp - 8);
	assert_int_equal(ram32(sp - 8), CODE);
	assert_int_equal(ram32(sp - 4), C0);
	WORKS(far_call(w.c, C0, 0xffff1234, 2));
	assert_int_equal(w.c->rip, 0x1234);
	assert_int_equal(w.c->regs[R_SP], sp - 12);
	assert_int_equal(ram16(sp - 12), TO & 0xffff);
	/* no room: before the offset is looked at */
	world_protected(0);
	gdt_set(SCRATCH, desc(0, 0xfff, 0x4092));
	seg_load(w.c, S_SS, SCRATCH);
	w.c->regs[R_SP] = 7;
	FAULTS(call(C16, 0x10000), V_SS, 0);
}

static void long_direct(void **state)
{
	world_long(0, false);
	gdt_set(SCRATCH, desc(0, 0xfffff, 0xe09a));
	FAULTS(jmp(SCRATCH, TO), V_GP, SCRATCH);  /* L and D */
	FAULTS(jmp(SEL_B, 0), V_GP, SEL_B);       /* no tasks */
	FAULTS(far_jmp(w.c, L0, 1ull << 47, 8), V_GP, 0);
	WORKS(jmp(C0, TO));
	assert_int_equal(w.c->code_mode, CODE32);
	WORKS(jmp(L0, TO));
	assert_int_equal(w.c->code_mode, CODE64);
	u64 sp = w.c->regs[R_SP];
	w.c->rip = 0xffff800000000123ull;
	WORKS(far_call(w.c, L0, TO, 8));
	assert_int_equal(w.c->regs[R_SP], sp - 16);
	assert_true(ram64(sp - 16) == 0xffff800000000123ull && ram64(sp - 8) == L0);
	WORKS(far_ret(w.c, 8, 0));
	assert_true(w.c->rip == 0xffff800000000123ull && w.c->regs[R_SP] == sp);
	w.c->regs[R_SP] = 0x800000000000ull + 8;
	FAULTS(far_call(w.c, L0, TO, 8), V_SS, 0); /* stack not canonical */
	FAULTS(far_ret(w.c, 8, 0), V_SS, 0);
	FAULTS(cpu_iret(w.c, 8), V_SS, 0);
}

static void real_and_v86(void **state)
{
	world_real();
	FAULTS(jmp(0x2000, 0x10000), V_GP, 0);
	WORKS(far_call(w.c, 0x2000, 0x1234, 2));
	assert_int_equal(w.c->seg[S_CS].base, 0x20000);
	assert_int_equal(ram16(0x107fc), 0x100);
	assert_int_equal(ram16(0x107fe), 0x1000);
	WORKS(far_ret(w.c, 2, 6));
	assert_int_equal(w.c->regs[R_SP], 0x806);
	assert_int_equal(w.c->rip, 0x100);
	FRAME(4, 0x10000, 0x1000);
	FAULTS(far_ret(w.c, 4, 0), V_GP, 0);
	w.c->regs[R_SP] = 0xffff;
	FAULTS(far_ret(w.c, 2, 0), V_SS, 0);
	w.c->regs[R_SP] = 1;
	FAULTS(far_call(w.c, 0x2000, 0, 2), V_SS, 0);
	world_v86(0);
	WORKS(jmp(0x2000, 0x1234));
	assert_int_equal(w.c->seg[S_CS].attr, 0xf3);
	FAULTS(jmp(0x2000, 0x10000), V_GP, 0);
}

/* ---- call gates */

static void gate_refused(void **state)
{
	static const struct { u8 cpl; u8 attr; u16 gate_rpl, sel; u32 off; u8 vector; u16 error; bool jump_too; } t[] = {
		{ 3, CALL32, 3, C0, TO, V_GP, SCRATCH, 1 },           /* gate DPL < CPL */
		{ 0, CALL32, 1, C0, TO, V_GP, SCRATCH, 1 },           /* gate DPL < RPL */
		{ 0, CALL32 & 0x7f, 0, C0, TO, V_NP, SCRATCH, 1 },
		{ 0, CALL32, 0, 0, TO, V_GP, 0, 1 },
		{ 0, CALL32, 0, 0x200, TO, V_GP, 0x200, 1 },
		{ 0, CALL32, 0, D0, TO, V_GP, D0, 1 },
		{ 0, CALL32, 0, C3, TO, V_GP, C3 & ~3, 1 },           /* DPL > CPL */
		{ 0, CALL32, 0, NPC0, TO, V_NP, NPC0, 1 },
		{ 0, CALL32, 0, C16, 0x10000, V_GP, 0, 1 },
		{ 0, 0x86, 0, C0, TO, V_GP, SCRATCH, 1 },             /* an interrupt gate */
	};
	for (unsigned i = 0; i < ARRAY_LEN(t); i++) {
		world_protected(t[i].cpl);
		gdt_set(SCRATCH, gate(t[i].attr, t[i].sel, t[i].off, 0));
		FAULTS(call(SCRATCH | t[i].gate_rpl, 0), t[i].vector, t[i].error);
		FAULTS(jmp(SCRATCH | t[i].gate_rpl, 0), t[i].vector, t[i].error);
	}
	/* JMP may not go inward */
	world_protected(3);
	gdt_set(SCRATCH, gate(CALL32 | U, C0, TO, 0));
	FAULTS(jmp(SCRATCH | 3, 0), V_GP, C0);
	gdt_set(SCRATCH, gate(CALL32 | U, CONF, TO, 0));
	WORKS(jmp(SCRATCH | 3, 0));
	assert_int_equal(w.c->cpl, 3);
	assert_int_equal(w.c->regs[R_SP], STACK3);
	WORKS(call(SCRATCH | 3, 0)); /* conforming: no change of level or stack */
	assert_int_equal(w.c->cpl, 3);
	assert_int_equal(w.c->regs[R_SP], STACK3 - 8);
}

static void gate_inner(void **state)
{
	world_protected(3);
	gdt_set(SCRATCH, gate(CALL32 | U, C0, TO, 3));
	w.c->regs[R_SP] = STACK3 - 12;
	FRAME(4, 0xaaaa, 0xbbbb, 0xcccc);
	WORKS(call(SCRATCH | 3, 0xdeadbeef)); /* the offset of the instruction does not count */
	static const u32 expect[] = { CODE, C3, 0xaaaa, 0xbbbb, 0xcccc, STACK3 - 12, D3 };
	assert_int_equal(w.c->regs[R_SP], STACK0 - 28);
	for (unsigned i = 0; i < 7; i++)
		assert_int_equal(ram32(STACK0 - 28 + 4 * i), expect[i]);
	assert_int_equal(w.c->cpl, 0);
	assert_int_equal(w.c->seg[S_CS].sel, C0);
	assert_int_equal(w.c->seg[S_SS].sel, D0);
	assert_int_equal(w.m.ram[GDT + D0 + 5], 0x93); /* accessed, in memory */
	assert_int_equal(w.c->rip, TO);
	/* and back, dropping the parameters of both stacks */
	WORKS(far_ret(w.c, 4, 12));
	assert_int_equal(w.c->cpl, 3);
	assert_int_equal(w.c->regs[R_SP], STACK3);
	assert_int_equal(w.c->rip, CODE);
	/* 16-bit gate */
	world_protected(3);
	gdt_set(SCRATCH, gate(CALL16 | U, C0, 0xdead1234, 1));
	w.c->regs[R_SP] = STACK3 - 2;
	FRAME(2, 0xaaaa);
	WORKS(call(SCRATCH | 3, 0));
	assert_int_equal(w.c->rip, 0x1234);
	assert_int_equal(w.c->regs[R_SP], STACK0 - 10);
	assert_int_equal(ram16(STACK0 - 6), 0xaaaa);
	/* same level: no stack switch, no parameters */
	world_protected(0);
	u32 sp = (u32)w.c->regs[R_SP];
	gdt_set(SCRATCH, gate(CALL32, C0, TO, 3));
	WORKS(call(SCRATCH, 0));
	assert_int_equal(w.c->regs[R_SP], sp - 8);
}

static void gate_inner_stack(void **state)
{
	static const struct { u32 sp; u16 sel; u16 tss_limit; u8 vector; u16 error; } t[] = {
		{ STACK0, D0, 8, V_TS, SEL_TSS },
		{ STACK0, 0, 0x67, V_TS, 0 },
		{ STACK0, 0x204, 0x67, V_TS, 0x204 },
		{ STACK0, D0 | 3, 0x67, V_TS, D0 },
		{ STACK0, D3 & ~3, 0x67, V_TS, D3 & ~3 },
		{ STACK0, CONF, 0x67, V_TS, CONF },
		{ STACK0, NPS0, 0x67, V_SS, NPS0 },
		{ 19, SCRATCH + 8, 0x67, V_SS, SCRATCH + 8 },
	};
	for (unsigned i = 0; i < ARRAY_LEN(t); i++) {
		world_protected(3);
		gdt_set(SCRATCH, gate(CALL32 | U, C0, TO, 1)); /* 16 bytes and one parameter */
		gdt_set(0, desc(0, 0xfffff, 0xc092));
		gdt_set(SCRATCH + 8, desc(0, 0xfff, 0x4092));
		put32(TSS + 4, t[i].sp);
		put16(TSS + 8, t[i].sel);
		w.c->seg[S_TR].limit = t[i].tss_limit;
		FAULTS(call(SCRATCH | 3, 0), t[i].vector, t[i].error);
	}
	/* a parameter that the old stack does not have */
	world_protected(3);
	gdt_set(SCRATCH, gate(CALL32 | U, C0, TO, 1));
	w.c->seg[S_SS].limit = 0x1000;
	cpu_update_mode(w.c);
	FAULTS(call(SCRATCH | 3, 0), V_SS, 0);
}

static void gate_long(void **state)
{
	const u64 high = 0xffff800000012345ull;
	world_long(3, true);
	gdt_set(SCRATCH, gate(CALL32 | U, L0, (u32)high, 0));
	gdt_set(SCRATCH + 8, high >> 32);
	WORKS(call(SCRATCH | 3, 0));
	assert_int_equal(w.c->code_mode, CODE64);
	assert_true(w.c->rip == high);
	assert_int_equal(w.c->seg[S_SS].sel, 0);
	assert_int_equal(w.c->regs[R_SP], STACK0 - 32);
	assert_true(ram64(STACK0 - 32) == CODE && ram64(STACK0 - 24) == C3 && ram64(STACK0 - 16) == STACK3 &&
		    ram64(STACK0 - 8) == D3);
	WORKS(far_ret(w.c, 8, 0));
	assert_int_equal(w.c->code_mode, CODE32);
	assert_int_equal(w.c->cpl, 3);
	assert_int_equal(w.c->regs[R_SP], STACK3);

	/* same level, from a 16-bit stack with a base: RSP as it is, flat */
	world_long(3, true);
	gdt_set(SCRATCH, gate(CALL32 | U, L3, TO, 0));
	gdt_set(SCRATCH + 8, 0);
	gdt_set(SCRATCH + 16, desc(0x1000, 0xffff, 0xf2));
	seg_load(w.c, S_SS, (SCRATCH + 16) | 3);
	WORKS(call(SCRATCH | 3, 0));
	assert_int_equal(w.c->regs[R_SP], STACK3 - 16);
	assert_int_equal(ram64(STACK3 - 16), CODE);

	world_long(3, false);
	gdt_set(SCRATCH, gate(CALL32 | U, C0, TO, 0));
	FAULTS(call(SCRATCH | 3, 0), V_GP, C0);            /* only to 64-bit code */
	gdt_set(SCRATCH, gate(CALL32 | U, L0, TO, 0));
	gdt_set(SCRATCH + 8, 1ull << 40);
	FAULTS(call(SCRATCH | 3, 0), V_GP, SCRATCH);       /* type of the upper half */
	gdt_set(SCRATCH + 8, 0x8000);
	FAULTS(call(SCRATCH | 3, 0), V_GP, 0);             /* not canonical */
	gdt_set(SCRATCH, gate(CALL16 | U, L0, TO, 0));
	FAULTS(call(SCRATCH | 3, 0), V_GP, SCRATCH);
	gdt_set(SCRATCH, gate(CALL32 | U, L0, TO, 0));
	gdt_set(SCRATCH + 8, 0);
	w.c->seg[S_TR].limit = 10;
	FAULTS(call(SCRATCH | 3, 0), V_TS, SEL_TSS);
	gdt_set(0x1f8, gate(CALL32 | U, L0, TO, 0));
	FAULTS(call(0x1fb, 0), V_GP, 0x1f8);               /* 16 bytes do not fit */
}

/* ---- RET and IRET to code and stack selectors: the same checks */

static void ret(void) { far_ret(w.c, 4, 0); }
static void iret(void) { cpu_iret(w.c, 4); }

static void return_refused(void **state)
{
	static const struct { u8 cpl; u16 cs; u32 ip; u16 ss; u8 vector; u16 error; } t[] = {
		{ 0, 0, TO, D0, V_GP, 0 },
		{ 0, 0x200, TO, D0, V_GP, 0x200 },
		{ 0, D0, TO, D0, V_GP, D0 },
		{ 3, C0, TO, D0, V_GP, C0 },                  /* RPL < CPL */
		{ 0, C0 | 3, TO, D3, V_GP, C0 },              /* nonconforming: DPL != RPL */
		{ 0, (CONF3 & ~3) | 1, TO, D1, V_GP, CONF3 & ~3 }, /* conforming: DPL > RPL */
		{ 0, NPC0, TO, D0, V_NP, NPC0 },
		{ 0, C16, 0x10000, D0, V_GP, 0 },
		{ 0, C3, TO, 0, V_GP, 0 },                    /* outward, null SS */
		{ 0, C3, TO, 3, V_GP, 0 },
		{ 0, C3, TO, 0x203, V_GP, 0x200 },
		{ 0, C3, TO, D3 & ~3, V_GP, D3 & ~3 },        /* SS RPL */
		{ 0, C3, TO, D0 | 3, V_GP, D0 },              /* SS DPL */
		{ 0, C3, TO, RO3, V_GP, RO3 & ~3 },
		{ 0, C3, TO, C3, V_GP, C3 & ~3 },
		{ 0, C3, TO, NP3, V_SS, NP3 & ~3 },
	};
	for (unsigned i = 0; i < ARRAY_LEN(t); i++) {
		world_protected(t[i].cpl);
		w.c->regs[R_SP] -= 20;
		FRAME(4, t[i].ip, t[i].cs, STACK3, t[i].ss);
		FAULTS(ret(), t[i].vector, t[i].error);
		FRAME(4, t[i].ip, t[i].cs, 2, STACK3, t[i].ss);
		FAULTS(iret(), t[i].vector, t[i].error);
	}
	/* frames that do not fit: three words, then five */
	world_protected(0);
	gdt_set(SCRATCH, desc(0, 0xfff, 0x4092));
	seg_load(w.c, S_SS, SCRATCH);
	w.c->regs[R_SP] = 0xff5;
	FAULTS(iret(), V_SS, 0);
	w.c->regs[R_SP] = 0xff4;
	FRAME(4, TO, C3, 2);
	FAULTS(iret(), V_SS, 0);
	FRAME(4, TO, C0, 2);
	WORKS(iret());
	assert_int_equal(w.c->regs[R_SP], 0x1000);
}

/* NMI is let in by an IRET that faults, too: its handler's first instruction may be interrupted. */
static void iret_faults_with_nmi_blocked(void)
{
	w.c->nmi_blocked = true;
	if (!setjmp(w.c->jb)) {
		iret();
		fail();
	}
	check_fault(V_GP, 0, __FILE__, __LINE__);
	assert_false(w.c->nmi_blocked);
	assert_true(w.c->event_mask & EV_NMI);
}

static void iret_that_faults_unblocks_nmi(void **state)
{
	world_protected(0);
	for (unsigned k = 0; k < 3; k++)
		cpu_post_event(w.c, EV_NMI);
	FRAME(4, TO, 0, 2);
	iret_faults_with_nmi_blocked();
	assert_int_equal(atomic_load(&w.c->nmis), 1); /* those that came meanwhile are one */
	/* the manual's example: V86 mode, IOPL below 3 */
	world_protected(0);
	cpu_set_rflags(w.c, FL_VM, FL_VM | FL_IOPL);
	cpu_update_mode(w.c);
	iret_faults_with_nmi_blocked();
}

static void ret_nulls_segments(void **state)
{
	world_protected(0);
	seg_load(w.c, S_ES, D3);
	seg_load(w.c, S_FS, CONF);
	seg_load(w.c, S_GS, C0);
	w.c->regs[R_SP] -= 16;
	FRAME(4, TO, C3, STACK3, D3);
	WORKS(ret());
	assert_int_equal(w.c->seg[S_DS].sel, 0); /* DPL 0 data */
	assert_true(w.c->seg[S_DS].attr & SEG_UNUSABLE);
	assert_int_equal(w.c->seg[S_ES].sel, D3);
	assert_int_equal(w.c->seg[S_FS].sel, CONF);
	assert_int_equal(w.c->seg[S_GS].sel, 0); /* nonconforming code */
	world_protected(0);
	w.c->regs[R_SP] -= 20;
	FRAME(4, TO, C3, 2, STACK3, D3);
	WORKS(iret());
	assert_int_equal(w.c->seg[S_DS].sel, 0);
	/* in long mode a null FS keeps the base that WRMSR gave it */
	world_long(0, false);
	w.c->seg[S_FS] = seg_null(0, 0);
	w.c->seg[S_FS].base = 0x7f0000001000ull;
	w.c->regs[R_SP] -= 40;
	FRAME(8, TO, L3, 2, STACK3, D3);
	WORKS(cpu_iret(w.c, 8));
	assert_true(w.c->ebase[S_FS] == 0x7f0000001000ull);
	/* and so does one that becomes null on the way out */
	world_long(0, false);
	seg_load(w.c, S_GS, D0);
	w.c->seg[S_GS].base = 0x7f0000002000ull;
	w.c->regs[R_SP] -= 40;
	FRAME(8, TO, L3, 2, STACK3, D3);
	WORKS(cpu_iret(w.c, 8));
	assert_int_equal(w.c->seg[S_GS].sel, 0);
	assert_true(w.c->seg[S_GS].attr & SEG_UNUSABLE);
	assert_true(w.c->ebase[S_GS] == 0x7f0000002000ull);
}

/* ---- IRET and flags */

static u64 iret_flags(unsigned cpl, unsigned iopl, unsigned opsz, u64 image)
{
	world_protected(cpl);
	w.c->rflags = 2 | iopl << 12;
	w.c->regs[R_SP] -= 12;
	FRAME(opsz, TO, cpl ? C3 : C0, image);
	if (setjmp(w.c->jb))
		fail_msg("vector %u", w.c->exc.vector);
	cpu_iret(w.c, opsz);
	return w.c->rflags;
}

static void flags(void **state)
{
	const u64 all = 0x3d7fd7; /* all but VM and NT: below as well */
	assert_int_equal(iret_flags(0, 0, 4, all | FL_NT), all | FL_NT);
	assert_int_equal(iret_flags(0, 0, 2, all), all & 0xffff);
	assert_int_equal(iret_flags(3, 0, 4, all), all & ~(u64)(FL_IF | FL_IOPL | FL_VIF | FL_VIP));
	assert_int_equal(iret_flags(3, 3, 4, 2), 2 | FL_IOPL);             /* IOPL stays */
	assert_int_equal(iret_flags(3, 3, 4, all), all & ~(u64)(FL_VIF | FL_VIP));
	assert_int_equal(iret_flags(3, 3, 4, 0), 2 | FL_IOPL);
	assert_int_equal(iret_flags(3, 0, 4, FL_VM), 2);                   /* VM from CPL 0 only */
}

static void iret_real_mode(void **state)
{
	world_real();
	FRAME(2, 0x1234, 0x2000, 0xffff);
	w.c->nmi_blocked = true;
	WORKS(cpu_iret(w.c, 2));
	assert_int_equal(w.c->rip, 0x1234);
	assert_int_equal(w.c->seg[S_CS].base, 0x20000);
	assert_int_equal(w.c->rflags, 0x7fd7);
	assert_int_equal(w.c->regs[R_SP], 0x806);
	assert_false(w.c->nmi_blocked);
	world_real();
	FRAME(4, 0x1234, 0x2000, 0xffffffff);
	WORKS(cpu_iret(w.c, 4));
	assert_int_equal(w.c->rflags, 0x257fd7);
	world_real();
	FRAME(4, 0x10000, 0x2000, 2);
	FAULTS(cpu_iret(w.c, 4), V_GP, 0);
}

static void iret_v86(void **state)
{
	/* in V86 mode with IOPL 3: IOPL, VM stay */
	world_v86(3);
	FRAME(2, 0x1234, 0x2000, 0);
	WORKS(cpu_iret(w.c, 2));
	assert_int_equal(w.c->rflags, 2 | FL_VM | FL_IOPL);
	world_v86(0);
	FRAME(2, 0x1234, 0x2000, FL_IF);
	FAULTS(cpu_iret(w.c, 2), V_GP, 0);
	/* VME: IF of the image is VIF */
	w.c->cr4 |= CR4_VME;
	FAULTS(cpu_iret(w.c, 4), V_GP, 0);
	w.c->rflags |= FL_VIP;
	FAULTS(cpu_iret(w.c, 2), V_GP, 0);
	w.c->rflags &= ~(u64)(FL_VIP | FL_IF);
	WORKS(cpu_iret(w.c, 2));
	assert_int_equal(w.c->rflags, 2 | FL_VM | FL_VIF);
	FRAME(2, 0x1234, 0x2000, FL_TF);
	FAULTS(cpu_iret(w.c, 2), V_GP, 0);
	FRAME(2, 0x1234, 0x2000, 0);
	WORKS(cpu_iret(w.c, 2));
	assert_int_equal(w.c->rflags, 2 | FL_VM);
	/* from ring 0 to V86 mode */
	world_protected(0);
	w.c->regs[R_SP] -= 36;
	FRAME(4, 0x1234, 0x2000, 2 | FL_VM | FL_IF | FL_VIP, 0x5678, 0x3000, 0x4001, 0x4002, 0x4003, 0x4004);
	WORKS(iret());
	assert_true(cpu_v86(w.c));
	assert_int_equal(w.c->cpl, 3);
	assert_int_equal(w.c->rflags, 2 | FL_VM | FL_IF | FL_VIP);
	assert_int_equal(w.c->seg[S_CS].base, 0x20000);
	assert_int_equal(w.c->seg[S_SS].base, 0x30000);
	assert_int_equal(w.c->regs[R_SP], 0x5678);
	assert_int_equal(w.c->seg[S_ES].sel, 0x4001);
	assert_int_equal(w.c->seg[S_DS].sel, 0x4002);
	assert_int_equal(w.c->seg[S_FS].sel, 0x4003);
	assert_int_equal(w.c->seg[S_GS].attr, 0xf3);
	world_protected(0);
	w.c->regs[R_SP] -= 36;
	FRAME(4, 0x10000, 0x2000, 2 | FL_VM);
	FAULTS(iret(), V_GP, 0);
}

static void iret_long(void **state)
{
	/* 64-bit mode pops SS:RSP at the same level too; a null SS below CPL 3 */
	world_long(0, false);
	w.c->regs[R_SP] -= 40;
	FRAME(8, TO, L0, 2, 0x12345678, 0);
	w.c->nmi_blocked = true;
	WORKS(cpu_iret(w.c, 8));
	assert_int_equal(w.c->regs[R_SP], 0x12345678);
	assert_true(w.c->seg[S_SS].attr & SEG_UNUSABLE);
	assert_false(w.c->nmi_blocked);
	static const struct { u64 ip; u16 cs, ss; u64 fl; u8 vector; u16 error; } t[] = {
		{ TO, L3, 0, 2, V_GP, 0 },                 /* null SS at CPL 3 */
		{ TO, C0, 0, 2, V_GP, 0 },                 /* null SS for compatibility mode */
		{ 1ull << 47, L3, D3, 2, V_GP, 0 },
		{ 1ull << 32, C3, D3, 2, V_GP, 0 },        /* beyond the limit, which 64 bits are compared with */
		{ TO, L3, D0, 2, V_GP, D0 },
		{ TO, SCRATCH, D0, 2, V_GP, SCRATCH },     /* L and D */
	};
	for (unsigned i = 0; i < ARRAY_LEN(t); i++) {
		world_long(0, false);
		gdt_set(SCRATCH, desc(0, 0xfffff, 0xe09a));
		w.c->regs[R_SP] -= 40;
		FRAME(8, t[i].ip, t[i].cs, t[i].fl, STACK3, t[i].ss);
		FAULTS(cpu_iret(w.c, 8), t[i].vector, t[i].error);
	}
	world_long(0, false);
	w.c->rflags |= FL_NT;
	FAULTS(cpu_iret(w.c, 8), V_GP, 0);
	/* a 16-bit stack receives 16 bits and keeps the rest of ESP */
	world_long(0, false);
	gdt_set(SCRATCH, desc(0, 0xffff, 0xf2));
	w.c->regs[R_SP] -= 40;
	FRAME(8, TO, C3, 2, 0x55554444, SCRATCH | 3);
	u32 high = (u32)w.c->regs[R_SP] & 0xffff0000;
	WORKS(cpu_iret(w.c, 8));
	assert_int_equal(w.c->regs[R_SP], high | 0x4444);
	/* VM in the image means nothing here */
	world_long(0, false);
	w.c->regs[R_SP] -= 40;
	FRAME(4, TO, L3, 2 | FL_VM, STACK3, D3);
	WORKS(cpu_iret(w.c, 4));
	assert_int_equal(w.c->rflags, 2);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(direct_refused), cmocka_unit_test(direct_works), cmocka_unit_test(long_direct),
		cmocka_unit_test(real_and_v86), cmocka_unit_test(gate_refused), cmocka_unit_test(gate_inner),
		cmocka_unit_test(gate_inner_stack), cmocka_unit_test(gate_long), cmocka_unit_test(return_refused),
		cmocka_unit_test(iret_that_faults_unblocks_nmi), cmocka_unit_test(ret_nulls_segments), cmocka_unit_test(flags), cmocka_unit_test(iret_real_mode),
		cmocka_unit_test(iret_v86), cmocka_unit_test(iret_long),
	};
	return cmocka_run_group_tests(tests, world_up, world_down);
}
