/* Delivery of exceptions, interrupts and INT n in every mode; the double-fault rules. */
#include "world.h"

enum { INT32 = 0x8e, TRAP32 = 0x8f, INT16 = 0x86, TRAP16 = 0x87, TASKG = 0x85, U = 0x60, HANDLER = 0x11234 };

static void raise_now(unsigned vector, bool has_error, u32 error)
{
	w.c->exc = (struct exception){ .vector = (u8)vector, .has_error = has_error, .error = error };
	cpu_exception(w.c);
}

static void int_n(unsigned vector) { cpu_soft_int(w.c, vector, false, false); }
static void int3(void) { cpu_soft_int(w.c, 3, true, false); }
static void int1(void) { cpu_soft_int(w.c, 1, false, true); }

/* ---- real mode */

static void real_mode(void **state)
{
	world_real();
	put16(0x40 * 4, 0x5678);
	put16(0x40 * 4 + 2, 0x2345);
	w.c->rflags |= FL_TF | FL_AC;
	WORKS(int_n(0x40));
	assert_int_equal(w.c->rip, 0x5678);
	assert_int_equal(w.c->seg[S_CS].base, 0x23450);
	assert_int_equal(w.c->rflags & (FL_IF | FL_TF | FL_AC), 0);
	assert_int_equal(w.c->regs[R_SP], 0x7fa);
	assert_int_equal(ram16(0x107fa), 0x100);
	assert_int_equal(ram16(0x107fc), 0x1000);
	assert_int_equal(ram16(0x107fe), 0x302);
	/* a fault pushes no error code; RF is above what is pushed */
	world_real();
	raise_now(V_GP, true, 0x50);
	assert_int_equal(w.c->regs[R_SP], 0x7fa);
	/* table too small for the vector: #GP, which is too far as well: shutdown */
	world_real();
	w.c->idtr.limit = 0x40 * 4 + 2;
	FAULTS(int_n(0x40), V_GP, 0x202);
	w.c->idtr.limit = 4;
	raise_now(V_UD, false, 0);
	assert_int_equal(w.triple, 1);
	assert_true(w.c->stopped);
	assert_int_equal(w.c->activity, ACT_SHUTDOWN);
	/* no room */
	world_real();
	w.c->regs[R_SP] = 1;
	FAULTS(int_n(0x40), V_SS, 0);
}

/* ---- protected mode: which gate faults how */

static void gate_faults(void **state)
{
	static const struct { u8 cpl; u8 attr; u16 sel; u32 off; u8 vector; u16 error; } t[] = {
		{ 0, 0x8c, C0, HANDLER, V_GP, 0x182 },         /* a call gate in the IDT */
		{ 0, 0x9e, C0, HANDLER, V_GP, 0x182 },         /* S set */
		{ 3, INT32, C0, HANDLER, V_GP, 0x182 },        /* DPL < CPL */
		{ 3, INT32 & 0x7f, C0, HANDLER, V_GP, 0x182 }, /* DPL before present */
		{ 0, INT32 & 0x7f, C0, HANDLER, V_NP, 0x182 },
		{ 0, INT32, 0, HANDLER, V_GP, 0 },
		{ 0, INT32, 3, HANDLER, V_GP, 0 },
		{ 0, INT32, 0x200, HANDLER, V_GP, 0x200 },
		{ 0, INT32, D0, HANDLER, V_GP, D0 },           /* not code */
		{ 0, INT32, C3, HANDLER, V_GP, C3 & ~3 },      /* DPL > CPL */
		{ 0, INT32, NPC0, HANDLER, V_NP, NPC0 },
		{ 0, TASKG, SEL_TSS, 0, V_GP, SEL_TSS },       /* busy */
		{ 0, TASKG, SEL_B | 4, 0, V_GP, SEL_B | 4 },
		{ 0, TASKG, D0, 0, V_GP, D0 },
		{ 0, INT32, C16, 0x10000, V_GP, 0 },           /* beyond the code segment */
	};
	for (unsigned i = 0; i < ARRAY_LEN(t); i++) {
		world_protected(t[i].cpl);
		idt_set(0x30, gate(t[i].attr, t[i].sel, t[i].off, 0));
		FAULTS(int_n(0x30), t[i].vector, t[i].error);
	}
	world_protected(0);
	idt_set(0x30, gate(INT32, C0, HANDLER, 0));
	w.c->idtr.limit = 0x30 * 8 + 6;
	FAULTS(int_n(0x30), V_GP, 0x182);
}

/* DPL counts for INT n, INT3, INTO, not for INT1, exceptions, interrupts; these set EXT. */
static void gate_privilege(void **state)
{
	world_protected(3);
	idt_set(3, gate(INT32, C0, HANDLER, 0));
	idt_set(1, gate(INT32, C0, HANDLER, 0));
	FAULTS(int3(), V_GP, 3 * 8 + 2);
	WORKS(int1());
	assert_int_equal(w.c->rip, HANDLER);
	world_protected(3);
	idt_set(1, gate(INT32, NPC0, HANDLER, 0));
	FAULTS(int1(), V_NP, NPC0 | 1); /* EXT */
	world_protected(3);
	idt_set(0x30, gate(INT32, C0, HANDLER, 0));
	exception_external(w.c, 0x30, false);
	assert_int_equal(w.c->rip, HANDLER);
	/* the error code of a fault while an interrupt is delivered has EXT: here #NP with its own handler */
	world_protected(0);
	idt_set(0x30, gate(INT32, NPC0, HANDLER, 0));
	idt_set(V_NP, gate(INT32, C0, HANDLER + 4, 0));
	exception_external(w.c, 0x30, false);
	assert_int_equal(w.c->rip, HANDLER + 4);
	assert_int_equal(ram32(w.c->regs[R_SP]), NPC0 | 1);
	assert_int_equal(ram32(w.c->regs[R_SP] + 4), CODE);
}

static void same_level(void **state)
{
	world_protected(0);
	u32 sp = (u32)w.c->regs[R_SP];
	idt_set(0x30, gate(INT32, C0, HANDLER, 0));
	idt_set(0x31, gate(TRAP32, C0, HANDLER, 0));
	idt_set(0x32, gate(INT16, C0, 0xdead1234, 0)); /* bits 31:16 of a 286 gate's offset are not there */
	idt_set(0x33, gate(TRAP16, C16, 0x1234, 0));
	w.c->rflags |= FL_IF | FL_TF | FL_NT | FL_RF;
	WORKS(int_n(0x30));
	assert_int_equal(w.c->regs[R_SP], sp - 12);
	assert_int_equal(ram32(sp - 12), CODE);
	assert_int_equal(ram32(sp - 8), C0);
	assert_int_equal(ram32(sp - 4), FL_IF | FL_TF | FL_NT | 2); /* RF is pushed clear by INT n */
	assert_int_equal(w.c->rflags, 2);
	assert_true(w.c->step_skip);
	w.c->rflags |= FL_IF;
	WORKS(int_n(0x31));
	assert_int_equal(w.c->rflags, 2 | FL_IF); /* a trap gate leaves IF */
	sp = (u32)w.c->regs[R_SP];
	WORKS(int_n(0x32));
	assert_int_equal(w.c->rip, 0x1234);
	assert_int_equal(w.c->rflags, 2);
	assert_int_equal(w.c->regs[R_SP], sp - 6);
	assert_int_equal(ram16(sp - 6), HANDLER & 0xffff);
	assert_int_equal(ram16(sp - 4), C0);
	WORKS(int_n(0x33));
	assert_int_equal(w.c->code_mode, CODE16);
	/* accessed bit of the handler's segment */
	assert_int_equal(w.m.ram[GDT + C16 + 5], 0x9b);
	/* conforming: stays at CPL 3 */
	world_protected(3);
	idt_set(0x30, gate(INT32 | U, CONF, HANDLER, 0));
	WORKS(int_n(0x30));
	assert_int_equal(w.c->cpl, 3);
	assert_int_equal(w.c->seg[S_CS].sel, CONF | 3);
	/* no room on the current stack */
	world_protected(0);
	idt_set(0x30, gate(INT32, C0, HANDLER, 0));
	w.c->seg[S_SS].limit = STACK0 - 0x400 - 1;
	w.c->seg[S_SS].attr |= 4; /* expand-down */
	cpu_update_mode(w.c);
	FAULTS(int_n(0x30), V_SS, 0);
}

static void inner_level(void **state)
{
	world_protected(3);
	idt_set(0x30, gate(INT32 | U, C0, HANDLER, 0));
	w.c->rflags |= FL_IF;
	WORKS(int_n(0x30));
	assert_int_equal(w.c->cpl, 0);
	assert_int_equal(w.c->seg[S_SS].sel, D0);
	assert_int_equal(w.c->regs[R_SP], STACK0 - 20);
	assert_int_equal(ram32(STACK0 - 4), D3);
	assert_int_equal(w.m.ram[GDT + D0 + 5], 0x93); /* accessed, in memory */
	assert_int_equal(w.c->seg[S_DS].sel, D3);      /* data segments stay */
	assert_int_equal(ram32(STACK0 - 8), STACK3);
	assert_int_equal(ram32(STACK0 - 12), 2 | FL_IF);
	assert_int_equal(ram32(STACK0 - 16), C3);
	assert_int_equal(ram32(STACK0 - 20), CODE);
	/* with an error code and RF, from CPL 3 to 1 */
	world_protected(3);
	idt_set(V_GP, gate(INT32, C1 & ~3, HANDLER, 0));
	raise_now(V_GP, true, 0x1234);
	assert_int_equal(w.c->cpl, 1);
	assert_int_equal(w.c->seg[S_CS].sel, C1);
	assert_int_equal(w.c->regs[R_SP], STACK1 - 24);
	assert_int_equal(ram32(STACK1 - 24), 0x1234);
	assert_int_equal(ram32(STACK1 - 12), 2 | FL_RF);
	/* a 286 gate pushes words */
	world_protected(3);
	idt_set(V_GP, gate(INT16, C0, 0x1234, 0));
	raise_now(V_GP, true, 0x1234);
	assert_int_equal(w.c->regs[R_SP], STACK0 - 12);
	assert_int_equal(ram16(STACK0 - 12), 0x1234);
	/* a 16-bit TSS */
	world_protected(3);
	idt_set(0x30, gate(INT32 | U, C0, HANDLER, 0));
	w.c->seg[S_TR].attr = 0x83;
	put16(TSS + 2, 0x8000);
	put16(TSS + 4, D16);
	WORKS(int_n(0x30));
	assert_int_equal(w.c->seg[S_SS].sel, D16);
	assert_int_equal(w.c->regs[R_SP] & 0xffff, 0x8000 - 20);
}

/* The stack that the TSS names: each way to be wrong. */
static void inner_stack_faults(void **state)
{
	static const struct { u32 sp; u16 sel; u16 tss_limit; u8 vector; u16 error; } t[] = {
		{ STACK0, D0, 8, V_TS, SEL_TSS },           /* 4..9 do not fit */
		{ STACK0, 0, 0x67, V_TS, 0 },
		{ STACK0, 0x200, 0x67, V_TS, 0x200 },
		{ STACK0, D0 | 1, 0x67, V_TS, D0 },         /* RPL */
		{ STACK0, D1 & ~3, 0x67, V_TS, D1 & ~3 },   /* DPL */
		{ STACK0, C0, 0x67, V_TS, C0 },
		{ STACK0, SEL_LDT, 0x67, V_TS, SEL_LDT },
		{ STACK0, NPS0, 0x67, V_SS, NPS0 },
		{ 19, SCRATCH, 0x67, V_SS, SCRATCH },       /* 20 bytes needed; 4 GiB stacks wrap, this one not */
	};
	for (unsigned i = 0; i < ARRAY_LEN(t); i++) {
		world_protected(3);
		idt_set(0x30, gate(INT32 | U, C0, HANDLER, 0));
		gdt_set(0, desc(0, 0xfffff, 0xc092));
		gdt_set(SCRATCH, desc(0, 0xfff, 0x4092));
		put32(TSS + 4, t[i].sp);
		put16(TSS + 8, t[i].sel);
		w.c->seg[S_TR].limit = t[i].tss_limit;
		FAULTS(int_n(0x30), t[i].vector, t[i].error);
	}
	world_protected(3);
	idt_set(0x30, gate(INT32 | U, C0, HANDLER, 0));
	gdt_set(SCRATCH, desc(0, 0xfff, 0x4092));
	put32(TSS + 4, 20);
	put16(TSS + 8, SCRATCH);
	WORKS(int_n(0x30));
	assert_int_equal(w.c->regs[R_SP], 0);
}

/* ---- page faults on the way, double and triple faults */

static void page_faults(void **state)
{
	world_protected(3);
	world_paging();
	idt_set(0x30, gate(INT32 | U, C0, HANDLER, 0));
	world_unmap(STACK0 - 0x1000);
	FAULTS(int_n(0x30), V_PF, PF_W); /* a supervisor's write */
	assert_int_equal(w.c->exc.cr2, STACK0 - 4);
	assert_int_equal(w.c->priv_back, 0);
	/* the TSS is read as supervisor too */
	world_protected(3);
	world_paging();
	idt_set(0x30, gate(INT32 | U, C0, HANDLER, 0));
	put32(PT + (TSS >> 12) * 4, TSS | 3);
	world_unmap(IDT);
	FAULTS(int_n(0x30), V_PF, 0);
}

/* first is on its way and meets second: what is delivered in the end? The gate of first names
 * something that raises second. */
static unsigned meet(unsigned first, unsigned second)
{
	world_protected(0);
	world_paging();
	for (unsigned v = 0; v < 32; v++)
		idt_set(v, gate(INT32, C0, 0x100 * v, 0));
	switch (second) {
	case V_NP: idt_set(first, gate(INT32, NPC0, 0, 0)); break;
	case V_GP: idt_set(first, gate(INT32, D0, 0, 0)); break;
	case V_PF: idt_set(first, gate(INT32, SCRATCH + 4, 0, 0)); break; /* an LDT that is not mapped */
	}
	world_unmap(LDT);
	raise_now(first, first == V_PF || first >= V_TS, 0);
	return w.triple ? 0xff : (unsigned)w.c->rip >> 8;
}

static void double_fault(void **state)
{
	static const u8 contributory[] = { V_DE, V_TS, V_NP, V_SS, V_GP };
	for (unsigned i = 0; i < ARRAY_LEN(contributory); i++) {
		unsigned v = contributory[i];
		assert_int_equal(meet(v, v == V_NP ? V_GP : V_NP), V_DF);
		assert_int_equal(meet(v, V_PF), V_PF);
	}
	assert_int_equal(meet(V_PF, V_NP), V_DF);
	assert_int_equal(meet(V_PF, V_GP), V_DF);
	assert_int_equal(meet(V_UD, V_NP), V_NP);
	assert_int_equal(meet(V_DB, V_GP), V_GP);
	assert_int_equal(meet(V_AC, V_PF), V_PF);
	assert_int_equal(meet(V_DF, V_NP), 0xff);
	assert_int_equal(meet(V_DF, V_PF), 0xff);
	/* #DF has error code 0 and RF as it was */
	meet(V_GP, V_NP);
	assert_int_equal(ram32(w.c->regs[R_SP]), 0);
	assert_int_equal(ram32(w.c->regs[R_SP] + 12), 2);
	assert_int_equal(w.c->delivering, -1);
}

static void double_page_fault(void **state)
{
	world_protected(0);
	world_paging();
	idt_set(V_DF, gate(INT32, C0, HANDLER, 0));
	idt_set(V_PF, gate(INT32, SCRATCH + 4, 0, 0));
	world_unmap(LDT);
	w.c->exc = (struct exception){ .vector = V_PF, .has_error = true, .error = 2, .cr2 = 0x1234 };
	cpu_exception(w.c);
	assert_int_equal(w.c->rip, HANDLER);
	assert_int_equal(w.c->cr2, LDT + SCRATCH); /* of the second */
	/* an interrupt is benign, whatever its number */
	world_protected(0);
	idt_set(V_GP, gate(INT32, NPC0, 0, 0));
	idt_set(V_NP, gate(INT32, C0, HANDLER, 0));
	exception_external(w.c, V_GP, false);
	assert_int_equal(w.c->rip, HANDLER);
}

/* #AC by the push of its own delivery, for ever: nothing ends that but a shutdown. The same where
 * #AC's gate is bad and it is #GP whose handler has the misaligned stack. */
static void endless_alignment(void **state)
{
	for (unsigned bad = 0; bad < 2; bad++) {
		world_protected(3);
		w.c->cr0 |= CR0_AM;
		w.c->rflags |= FL_AC;
		w.c->regs[R_SP] = STACK3 - 2;
		cpu_update_mode(w.c);
		idt_set(V_UD, gate(INT32, C3, HANDLER, 0));
		idt_set(V_GP, gate(INT32, C3, HANDLER, 0));
		idt_set(V_AC, gate(INT32, bad ? D0 : C3, HANDLER, 0));
		raise_now(V_UD, false, 0);
		assert_int_equal(w.triple, 1);
		assert_int_equal(w.c->activity, ACT_SHUTDOWN);
		assert_int_equal(w.c->delivering, -1);
	}
}

/* RF in the image: faults set it, traps and aborts leave it. */
static void resume_flag(void **state)
{
	static const struct { u8 vector; bool rf; } t[] = {
		{ V_DE, 1 }, { V_UD, 1 }, { V_GP, 1 }, { V_PF, 1 }, { V_MF, 1 }, { V_AC, 1 }, { V_XM, 1 },
		{ V_DB, 0 }, { V_BP, 0 }, { V_OF, 0 }, { V_DF, 0 }, { V_MC, 0 },
	};
	for (unsigned i = 0; i < ARRAY_LEN(t); i++) {
		world_protected(0);
		idt_set(t[i].vector, gate(INT32, C0, HANDLER, 0));
		w.c->dr[6] = 0xffff0ff3;
		w.c->dr[7] = 0x400 | DR7_GD;
		w.c->cr2 = 0x1234;
		raise_now(t[i].vector, false, 0);
		assert_int_equal(ram32(w.c->regs[R_SP] + 8) & FL_RF, t[i].rf ? FL_RF : 0);
		/* who else leaves its mark */
		assert_int_equal(w.c->cr2, t[i].vector == V_PF ? 0 : 0x1234);
		assert_int_equal(w.c->dr[6], t[i].vector == V_DB ? 0xffff0ff0 : 0xffff0ff3);
		assert_int_equal(w.c->dr[7] & DR7_GD, t[i].vector == V_DB ? 0 : DR7_GD);
	}
}

/* ---- V86 */

static void v86_to_ring0(void **state)
{
	world_v86(3);
	idt_set(0x30, gate(INT32 | U, C0, HANDLER, 0));
	WORKS(int_n(0x30));
	assert_int_equal(w.c->cpl, 0);
	assert_int_equal(w.c->rflags & FL_VM, 0);
	assert_int_equal(w.c->regs[R_SP], STACK0 - 36);
	static const u32 frame[] = { 0x100, 0x1001, 2 | FL_VM | FL_IOPL | FL_IF, 0x800, 0x2800, 0x1000, 0x1003, 0x1004,
				     0x1005 };
	for (unsigned i = 0; i < 9; i++)
		assert_int_equal(ram32(STACK0 - 36 + 4 * i), frame[i]);
	static const u8 data[] = { S_ES, S_DS, S_FS, S_GS };
	for (unsigned i = 0; i < 4; i++)
		assert_true(w.c->seg[data[i]].sel == 0 && (w.c->seg[data[i]].attr & SEG_UNUSABLE));
	/* only ring 0 handlers */
	world_v86(3);
	idt_set(0x30, gate(INT32 | U, C1 & ~3, HANDLER, 0));
	FAULTS(int_n(0x30), V_GP, C1 & ~3);
	idt_set(0x30, gate(INT32 | U, CONF, HANDLER, 0));
	FAULTS(int_n(0x30), V_GP, CONF);
	idt_set(0x30, gate(INT32, C0, HANDLER, 0));
	FAULTS(int_n(0x30), V_GP, 0x182);
	/* INT n is IOPL-sensitive, INT3 and INTO are not, INT1 neither */
	world_v86(0);
	idt_set(0x30, gate(INT32 | U, C0, HANDLER, 0));
	idt_set(3, gate(INT32 | U, C0, HANDLER, 0));
	FAULTS(int_n(0x30), V_GP, 0);
	WORKS(int3());
	assert_int_equal(w.c->rip, HANDLER);
}

static void v86_redirect(void **state)
{
	put32(0, 0);
	for (unsigned iopl = 0; iopl <= 3; iopl += 3) {
		world_v86(iopl);
		w.c->cr4 |= CR4_VME;
		w.c->rflags |= FL_TF;
		w.c->rflags ^= iopl ? 0 : FL_IF | FL_VIF;
		put32(0x30 * 4, 0x23455678);
		put32(0x31 * 4, 0);
		WORKS(int_n(0x30));
		assert_int_equal(w.c->rip, 0x5678);
		assert_int_equal(w.c->seg[S_CS].base, 0x23450);
		assert_true(cpu_v86(w.c));
		assert_int_equal(w.c->rflags & (FL_TF | (iopl ? FL_IF : FL_VIF)), 0);
		assert_int_equal(ram16(0x28000 + 0x7fe), 2 | FL_TF | FL_IF | FL_IOPL); /* VIF as IF, IOPL 3 */
		/* a set bit: not for the program */
		w.m.ram[TSS + 0x88 - 32 + 6] = 2;
		idt_set(0x31, gate(INT32 | U, C0, HANDLER, 0));
		if (iopl) {
			WORKS(int_n(0x31));
			assert_int_equal(w.c->rip, HANDLER);
		} else {
			FAULTS(int_n(0x31), V_GP, 0);
		}
	}
	world_v86(0);
	w.c->cr4 |= CR4_VME;
	WORKS(int_n(0x30)); /* VIF clear, IF set: pushed clear */
	assert_int_equal(ram16(0x28000 + 0x7fe), 2 | FL_IOPL);
	/* no bitmap: #GP */
	world_v86(3);
	w.c->cr4 |= CR4_VME;
	w.c->seg[S_TR].attr = 0x83;
	FAULTS(int_n(0x30), V_GP, 0);
	w.c->seg[S_TR].attr = 0x8b;
	put16(TSS + 0x66, 0x40);
	w.c->seg[S_TR].limit = 0x66;
	FAULTS(int_n(0x30), V_GP, 0);
	put16(TSS + 0x66, 0x88);
	w.c->seg[S_TR].limit = 0x67;
	FAULTS(int_n(0x30), V_GP, 0);
	world_v86(3);
	w.c->cr4 |= CR4_VME;
	idt_set(3, gate(INT32 | U, C0, HANDLER, 0));
	WORKS(int3()); /* never redirected */
	assert_int_equal(w.c->rip, HANDLER);
}

/* ---- long mode */

static void long_mode(void **state)
{
	const u64 high = 0xffffffff80001000ull;
	world_long(3, false);
	idt_set64(0x30, INT32 | U, L0, high, 0);
	w.c->rflags |= FL_IF;
	w.c->regs[R_SP] = 0x28003;
	WORKS(int_n(0x30));
	assert_true(w.c->rip == high);
	assert_int_equal(w.c->cpl, 0);
	assert_int_equal(w.c->regs[R_SP], STACK0 - 40);
	assert_int_equal(w.c->seg[S_SS].sel, 0);
	assert_true(w.c->seg[S_SS].attr & SEG_UNUSABLE);
	assert_true(ram64(STACK0 - 40) == CODE && ram64(STACK0 - 32) == L3 && ram64(STACK0 - 24) == (2 | FL_IF) &&
		    ram64(STACK0 - 16) == 0x28003 && ram64(STACK0 - 8) == D3);
	/* to CPL 1: a null selector with RPL 1 */
	gdt_set(SCRATCH, desc(0, 0xfffff, 0xa0ba));
	world_long(3, false);
	gdt_set(SCRATCH, desc(0, 0xfffff, 0xa0ba));
	idt_set64(0x30, INT32 | U, SCRATCH, HANDLER, 0);
	WORKS(int_n(0x30));
	assert_int_equal(w.c->seg[S_SS].sel, 1);
	assert_int_equal(w.c->cpl, 1);
	/* same level: the frame is aligned, SS stays; then an IST */
	world_long(0, false);
	idt_set64(0x30, INT32, L0, HANDLER, 0);
	idt_set64(V_GP, INT32, L0, HANDLER, 1);
	w.c->regs[R_SP] = 0x27fff;
	WORKS(int_n(0x30));
	assert_int_equal(w.c->regs[R_SP], 0x27ff0 - 40);
	assert_int_equal(w.c->seg[S_SS].sel, D0);
	raise_now(V_GP, true, 0x1234);
	assert_int_equal(w.c->regs[R_SP], IST1 - 48); /* IST1 + 8 in the TSS, aligned down */
	assert_int_equal(ram64(IST1 - 48), 0x1234);
	assert_int_equal(w.c->seg[S_SS].sel, D0);
}

/* Compatibility mode at CPL 3, a kernel stack above 4 GiB. */
static void long_from_compat(void **state)
{
	world_long(3, true);
	put64(TSS + 4, 0xffffffff80000000ull + STACK0);
	put64(PDPT + 0xff0, PD | 7);
	idt_set64(0x30, INT32 | U, L0, HANDLER, 0);
	WORKS(int_n(0x30));
	assert_int_equal(w.c->code_mode, CODE64);
	assert_true(w.c->regs[R_SP] == 0xffffffff80000000ull + STACK0 - 40);
	assert_int_equal(ram64(STACK0 - 40), CODE);
}

static void long_faults(void **state)
{
	static const struct { u8 attr; u16 sel; u64 off; u8 ist, vector; u16 error; } t[] = {
		{ INT16 | U, L0, HANDLER, 0, V_GP, 0x182 },     /* no 286 gates */
		{ TASKG | U, SEL_B, 0, 0, V_GP, 0x182 },        /* no task gates */
		{ INT32, L0, HANDLER, 0, V_GP, 0x182 },         /* DPL */
		{ (INT32 | U) & 0x7f, L0, HANDLER, 0, V_NP, 0x182 },
		{ INT32 | U, C0, HANDLER, 0, V_GP, C0 },        /* not 64-bit code */
		{ INT32 | U, SCRATCH, HANDLER, 0, V_GP, SCRATCH }, /* L and D */
		{ INT32 | U, SCRATCH + 8, HANDLER, 0, V_NP, SCRATCH + 8 },
		{ INT32 | U, 0, HANDLER, 0, V_GP, 0 },
		{ INT32 | U, L0, 1ull << 47, 0, V_GP, 0 },      /* not canonical */
		{ INT32 | U, L0, HANDLER, 7, V_TS, SEL_TSS },   /* outside the TSS */
		{ INT32 | U, L0, HANDLER, 2, V_SS, 0 },         /* not canonical */
	};
	for (unsigned i = 0; i < ARRAY_LEN(t); i++) {
		world_long(3, false);
		gdt_set(SCRATCH, desc(0, 0xfffff, 0xe09a));
		gdt_set(SCRATCH + 8, desc(0, 0xfffff, 0xa01a));
		put64(TSS + 0x2c, 0x8000000000000000ull);
		w.c->seg[S_TR].limit = 0x53;
		idt_set64(0x30, t[i].attr, t[i].sel, t[i].off, t[i].ist);
		FAULTS(int_n(0x30), t[i].vector, t[i].error);
	}
	world_long(0, false);
	idt_set64(0x30, INT32, L0, HANDLER, 0);
	w.c->idtr.limit = 0x30 * 16 + 14;
	FAULTS(int_n(0x30), V_GP, 0x182);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(real_mode), cmocka_unit_test(gate_faults), cmocka_unit_test(gate_privilege),
		cmocka_unit_test(same_level), cmocka_unit_test(inner_level), cmocka_unit_test(inner_stack_faults),
		cmocka_unit_test(page_faults), cmocka_unit_test(double_fault), cmocka_unit_test(double_page_fault), cmocka_unit_test(endless_alignment),
		cmocka_unit_test(resume_flag), cmocka_unit_test(v86_to_ring0), cmocka_unit_test(v86_redirect),
		cmocka_unit_test(long_mode), cmocka_unit_test(long_from_compat), cmocka_unit_test(long_faults),
	};
	return cmocka_run_group_tests(tests, world_up, world_down);
}
