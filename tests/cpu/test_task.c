/* Hardware task switches. */
#include "world.h"

enum { EIP_B = 0x12000, STACK_B = 0x30000 };

/* The 32-bit TSS B: a task at CPL 0. */
static void task_b(void)
{
	static const u32 regs[] = { 0x1a, 0x1c, 0x1d, 0x1b, STACK_B, 0x1e, 0x1f, 0x20 };
	memset(w.m.ram + TSS_B, 0, 0x68);
	put32(TSS_B + 0x1c, PD);
	put32(TSS_B + 0x20, EIP_B);
	put32(TSS_B + 0x24, 2 | FL_CF);
	for (unsigned i = 0; i < 8; i++)
		put32(TSS_B + 0x28 + 4 * i, regs[i]);
	put16(TSS_B + 0x48, D0);
	put16(TSS_B + 0x4c, C0);
	put16(TSS_B + 0x50, D0);
	put16(TSS_B + 0x54, D0);
	put16(TSS_B + 0x58, D3 & ~3);
	put16(TSS_B + 0x60, SEL_LDT);
}

static void task_16(void)
{
	memset(w.m.ram + TSS_16, 0, 0x2c);
	put16(TSS_16 + 0x0e, 0x3456);
	put16(TSS_16 + 0x10, 2 | FL_ZF);
	for (unsigned i = 0; i < 8; i++)
		put16(TSS_16 + 0x12 + 2 * i, (u16)(0x100 + i));
	put16(TSS_16 + 0x22, D0);
	put16(TSS_16 + 0x24, C0);
	put16(TSS_16 + 0x26, D0);
	put16(TSS_16 + 0x28, D0);
}

static void world_task(void)
{
	world_protected(0);
	task_b();
	task_16();
	for (unsigned i = 0; i < 8; i++) {
		if (i != R_SP)
			w.c->regs[i] = 0xa0 + i;
	}
	w.c->cr0 &= ~(u64)CR0_TS;
}

static u8 type_of(u16 sel) { return w.m.ram[GDT + sel + 5]; }

static void jump(void **state)
{
	world_task();
	u32 sp = (u32)w.c->regs[R_SP];
	w.c->dr[7] = 0x7ff;
	WORKS(far_jmp(w.c, SEL_B, 0, 4));
	/* the old one is saved and free */
	assert_int_equal(ram32(TSS + 0x20), CODE);
	assert_int_equal(ram32(TSS + 0x24), 2);
	assert_int_equal(ram32(TSS + 0x28), 0xa0);
	assert_int_equal(ram32(TSS + 0x38), sp);
	assert_int_equal(ram32(TSS + 0x44), 0xa7);
	assert_int_equal(ram16(TSS + 0x4c), C0);
	assert_int_equal(ram16(TSS + 0x5c), D0);
	assert_int_equal(type_of(SEL_TSS), 0x89);
	/* the new one is there and busy */
	assert_int_equal(type_of(SEL_B), 0x8b);
	assert_int_equal(w.c->seg[S_TR].sel, SEL_B);
	assert_int_equal(w.c->seg[S_TR].attr, 0x8b);
	assert_int_equal(w.c->rip, EIP_B);
	assert_int_equal(w.c->rflags, 2 | FL_CF);
	assert_int_equal(w.c->regs[R_AX], 0x1a);
	assert_int_equal(w.c->regs[R_SP], STACK_B);
	assert_int_equal(w.c->regs[R_DI], 0x20);
	assert_int_equal(w.c->seg[S_FS].sel, D3 & ~3);
	assert_true(w.c->seg[S_GS].attr & SEG_UNUSABLE);
	assert_int_equal(w.c->seg[S_LDTR].base, LDT);
	assert_int_equal(ram16(TSS_B), 0);            /* no link */
	assert_true(w.c->cr0 & CR0_TS);
	assert_int_equal(w.c->dr[7], 0x7ff & ~0x155);
	assert_false(w.c->keep_rip);
	assert_int_equal(w.c->cr3, 0);                /* no paging: none loaded */
	assert_false(atomic_load(&w.c->events) & EV_TRAP);
}

static void call_and_back(void **state)
{
	world_task();
	WORKS(far_call(w.c, SEL_B, 0, 4));
	assert_int_equal(type_of(SEL_TSS), 0x8b);     /* both busy */
	assert_int_equal(type_of(SEL_B), 0x8b);
	assert_int_equal(ram16(TSS_B), SEL_TSS);
	assert_int_equal(w.c->rflags, 2 | FL_CF | FL_NT);
	w.c->rip = EIP_B + 1;
	w.c->nmi_blocked = true;
	WORKS(cpu_iret(w.c, 4));
	assert_int_equal(w.c->seg[S_TR].sel, SEL_TSS);
	assert_int_equal(type_of(SEL_TSS), 0x8b);
	assert_int_equal(type_of(SEL_B), 0x89);
	assert_int_equal(w.c->rip, CODE);
	assert_int_equal(w.c->rflags, 2);
	assert_int_equal(w.c->regs[R_AX], 0xa0);
	assert_int_equal(ram32(TSS_B + 0x20), EIP_B + 1);
	assert_int_equal(ram32(TSS_B + 0x24), 2 | FL_CF); /* NT is clear in the image */
	assert_false(w.c->nmi_blocked);
	/* a task that was left can be entered again; through a task gate too */
	gdt_set(SCRATCH, gate(0x85, SEL_B, 0, 0));
	WORKS(far_call(w.c, SCRATCH, 0, 4));
	assert_int_equal(w.c->rip, EIP_B + 1);
}

static void sixteen_bit(void **state)
{
	world_task();
	world_paging();
	put32(TSS_16 + 0x1c, 0); /* these have no CR3 and no T bit */
	put16(TSS_16 + 0x64, 1);
	WORKS(far_call(w.c, SEL_16, 0, 4));
	assert_int_equal(w.c->cr3, PD);
	assert_false(atomic_load(&w.c->events) & EV_TRAP);
	assert_int_equal(w.c->rip, 0x3456);
	assert_int_equal(w.c->rflags, 2 | FL_ZF | FL_NT);
	assert_int_equal(w.c->regs[R_AX], 0xffff0100);
	assert_int_equal(w.c->regs[R_DI], 0xffff0107);
	assert_true(w.c->seg[S_FS].attr & SEG_UNUSABLE);
	assert_int_equal(w.c->seg[S_TR].attr, 0x83);
	assert_int_equal(ram16(TSS_16), SEL_TSS);
	w.c->regs[R_AX] = 0x12345678;
	w.c->rip = 0x4444;
	WORKS(far_jmp(w.c, SEL_B, 0, 4));
	assert_int_equal(ram16(TSS_16 + 0x0e), 0x4444);
	assert_int_equal(ram16(TSS_16 + 0x12), 0x5678);
	assert_int_equal(ram16(TSS_16 + 0x14), 0x101);
}

/* Before the commit: the old task's faults, nothing changed. */
static void refused(void **state)
{
	world_task();
	gdt_set(SCRATCH, desc(TSS_B, 0x66, 0x89));
	FAULTS(far_jmp(w.c, SCRATCH, 0, 4), V_TS, SCRATCH);
	gdt_set(SCRATCH, desc(TSS_16, 0x2a, 0x81));
	FAULTS(far_jmp(w.c, SCRATCH, 0, 4), V_TS, SCRATCH);
	gdt_set(SCRATCH, desc(TSS_B, 0x67, 0x09));
	FAULTS(far_jmp(w.c, SCRATCH, 0, 4), V_NP, SCRATCH);
	put64(LDT + SEL_B, desc(TSS_B, 0x67, 0x89)); /* good, but in the LDT */
	gdt_set(SCRATCH, gate(0x85, SEL_B | 4, 0, 0));
	FAULTS(far_jmp(w.c, SCRATCH, 0, 4), V_GP, SEL_B | 4);
	gdt_set(SCRATCH, gate(0x85, 0x200, 0, 0));
	FAULTS(far_jmp(w.c, SCRATCH, 0, 4), V_GP, 0x200);
	gdt_set(SCRATCH, gate(0x85, SEL_TSS, 0, 0));
	FAULTS(far_jmp(w.c, SCRATCH, 0, 4), V_GP, SEL_TSS); /* busy */
	gdt_set(SCRATCH, gate(0x05, SEL_B, 0, 0));
	FAULTS(far_jmp(w.c, SCRATCH, 0, 4), V_NP, SCRATCH);
	w.c->seg[S_TR].limit = 0x66;
	FAULTS(far_jmp(w.c, SEL_B, 0, 4), V_TS, SEL_TSS);   /* no room to save */
	/* IRET: the link must name a busy TSS */
	world_task();
	w.c->rflags |= FL_NT;
	put16(TSS, SEL_B);
	FAULTS(cpu_iret(w.c, 4), V_TS, SEL_B);
	put16(TSS, SEL_B | 4);
	FAULTS(cpu_iret(w.c, 4), V_TS, SEL_B | 4);
	put16(TSS, 0x200);
	FAULTS(cpu_iret(w.c, 4), V_TS, 0x200);
	put16(TSS, SCRATCH);
	gdt_set(SCRATCH, desc(TSS_B, 0x67, 0x0b));
	FAULTS(cpu_iret(w.c, 4), V_NP, SCRATCH);
	/* page faults on either TSS */
	world_task();
	world_paging();
	put32(PT + (TSS >> 12) * 4, 0);
	mmu_flush_all(w.c);
	FAULTS(far_jmp(w.c, SEL_B, 0, 4), V_PF, 0);
	world_task();
	world_paging();
	put32(PT + (TSS >> 12) * 4, TSS | 1); /* read-only, WP set */
	mmu_flush_all(w.c);
	FAULTS(far_jmp(w.c, SEL_B, 0, 4), V_PF, PF_P | PF_W);
	assert_int_equal(type_of(SEL_B), 0x89);
	world_task();
	world_paging();
	put32(PT + (TSS_B >> 12) * 4, TSS_B | 1); /* the link cannot be written: only a nested switch minds */
	mmu_flush_all(w.c);
	FAULTS(far_call(w.c, SEL_B, 0, 4), V_PF, PF_P | PF_W);
	WORKS(far_jmp(w.c, SEL_B, 0, 4));
}

/* After it: the new task's. */
static void faults_in_new_task(void **state)
{
	static const struct { u8 field; u16 sel; u8 vector; u16 error; } t[] = {
		{ 0x60, SEL_LDT | 4, V_TS, SEL_LDT | 4 },
		{ 0x60, D0, V_TS, D0 },
		{ 0x60, 0x200, V_TS, 0x200 },
		{ 0x60, SCRATCH, V_TS, SCRATCH },       /* LDT not present */
		{ 0x4c, 0, V_TS, 0 },
		{ 0x4c, D0, V_TS, D0 },
		{ 0x4c, C0 | 3, V_TS, C0 },             /* DPL != RPL */
		{ 0x4c, CONF3 & ~3, V_TS, CONF3 & ~3 }, /* conforming: DPL > RPL */
		{ 0x4c, NPC0, V_NP, NPC0 },
		{ 0x4c, 0x200, V_TS, 0x200 },
		{ 0x50, 0, V_TS, 0 },
		{ 0x50, D0 | 3, V_TS, D0 },
		{ 0x50, D3 & ~3, V_TS, D3 & ~3 },
		{ 0x50, C0, V_TS, C0 },
		{ 0x50, NPS0, V_SS, NPS0 },
		{ 0x50, 0x200, V_TS, 0x200 },
		{ 0x54, D0 | 3, V_TS, D0 },             /* DPL < RPL */
		{ 0x54, XO3 & ~3, V_TS, XO3 & ~3 },
		{ 0x54, NP3 & ~3, V_NP, NP3 & ~3 },
		{ 0x5c, 0x200, V_TS, 0x200 },
		{ 0x48, SEL_LDT, V_TS, SEL_LDT },
	};
	for (unsigned i = 0; i < ARRAY_LEN(t); i++) {
		world_task();
		gdt_set(SCRATCH, desc(LDT, 0xff, 0x02));
		put64(LDT + SEL_LDT, desc(LDT, 0xff, 0x82));
		if (t[i].field == 0x50)
			gdt_set(0, desc(0, 0xfffff, 0xc092));
		put16(TSS_B + t[i].field, t[i].sel);
		if (!setjmp(w.c->jb)) {
			far_jmp(w.c, SEL_B, 0, 4);
			fail_msg("row %u: no fault", i);
		}
		check_fault(t[i].vector, t[i].error, __FILE__, (int)i);
		assert_true(w.c->keep_rip);
		assert_int_equal(w.c->rip, EIP_B);
		assert_int_equal(w.c->seg[S_TR].sel, SEL_B);
		assert_int_equal(w.c->regs[R_AX], 0x1a);
	}
	/* the instruction pointer last */
	world_task();
	put16(TSS_B + 0x4c, C16);
	put32(TSS_B + 0x20, 0x10000);
	if (!setjmp(w.c->jb)) {
		far_jmp(w.c, SEL_B, 0, 4);
		fail_msg("no fault");
	}
	check_fault(V_GP, 0, __FILE__, __LINE__);
	assert_int_equal(w.c->seg[S_CS].sel, C16);
}

static void through_idt(void **state)
{
	/* an exception by a task gate: its error code on the new stack, RF in the old task's image */
	world_task();
	idt_set(V_GP, gate(0x85, SEL_B, 0, 0));
	w.c->exc = (struct exception){ .vector = V_GP, .has_error = true, .error = 0x1234 };
	cpu_exception(w.c);
	assert_int_equal(w.c->rip, EIP_B);
	assert_int_equal(w.c->regs[R_SP], STACK_B - 4);
	assert_int_equal(ram32(STACK_B - 4), 0x1234);
	assert_int_equal(ram32(TSS + 0x24), 2 | FL_RF);
	assert_int_equal(ram32(TSS + 0x20), CODE);
	assert_true(w.c->rflags & FL_NT);
	/* a 16-bit task gets 16 bits */
	world_task();
	idt_set(V_GP, gate(0x85, SEL_16, 0, 0));
	put16(TSS_16 + 0x1a, 0x8000);
	w.c->exc = (struct exception){ .vector = V_GP, .has_error = true, .error = 0x1234 };
	w.c->seg[S_SS].attr = 0x93;
	put16(TSS_16 + 0x26, D16);
	cpu_exception(w.c);
	assert_int_equal(w.c->regs[R_SP] & 0xffff, 0x7ffe);
	assert_int_equal(ram16(STACK0 - 0x1000 + 0x7ffe), 0x1234);
	/* a fault of the new task while an external event is delivered has EXT */
	world_task();
	idt_set(0x30, gate(0x85, SEL_B, 0, 0));
	idt_set(V_TS, gate(0x8e, C0, 0x100, 0));
	put16(TSS_B + 0x54, 0x200);
	exception_external(w.c, 0x30, false);
	assert_int_equal(w.c->rip, 0x100);
	assert_int_equal(ram32(STACK_B - 16), 0x201);
	assert_int_equal(ram32(STACK_B - 12), EIP_B); /* in the new task */
}

static void debug_trap_bit(void **state)
{
	world_task();
	put16(TSS_B + 0x64, 1);
	idt_set(V_DB, gate(0x8e, C0, 0x100, 0));
	WORKS(far_jmp(w.c, SEL_B, 0, 4));
	assert_true(atomic_load(&w.c->events) & EV_TRAP);
	assert_true(cpu_service_events(w.c));
	assert_int_equal(w.c->rip, 0x100);
	assert_int_equal(w.c->dr[6] & 0xe00f, DR6_BT);
	assert_int_equal(ram32(w.c->regs[R_SP]), EIP_B);
}

static void to_v86(void **state)
{
	world_task();
	put32(TSS_B + 0x24, 2 | FL_VM | FL_IOPL);
	put16(TSS_B + 0x4c, 0x2000);
	put16(TSS_B + 0x50, 0x3000);
	put16(TSS_B + 0x58, 0x4000);
	put32(TSS_B + 0x20, 0x100);
	WORKS(far_jmp(w.c, SEL_B, 0, 4));
	assert_true(cpu_v86(w.c));
	assert_int_equal(w.c->cpl, 3);
	assert_int_equal(w.c->seg[S_CS].base, 0x20000);
	assert_int_equal(w.c->seg[S_SS].base, 0x30000);
	assert_int_equal(w.c->seg[S_FS].attr, 0xf3);
}

static void page_tables(void **state)
{
	world_task();
	world_paging();
	/* B has tables of its own, in which the page of its stack is another */
	memcpy(w.m.ram + PDPT, w.m.ram + PD, 4096);
	put32(TSS_B + 0x1c, PDPT);
	WORKS(far_jmp(w.c, SEL_B, 0, 4));
	assert_int_equal(w.c->cr3, PDPT);
	/* PAE: the four PDPTEs are loaded and checked */
	world_task();
	put64(PDPT, PD | 1);
	put64(PD, 0x87);
	w.c->cr4 |= CR4_PAE;
	mmu_load_pdptes(w.c, PDPT);
	mmu_set_cr3(w.c, PDPT, false);
	w.c->cr0 |= CR0_PG;
	cpu_update_mode(w.c);
	put32(TSS_B + 0x1c, PML4);
	put64(PML4, PD | 1);
	WORKS(far_call(w.c, SEL_B, 0, 4));
	assert_int_equal(w.c->cr3, PML4);
	put32(TSS + 0x1c, PDPT);
	WORKS(cpu_iret(w.c, 4));
	assert_int_equal(w.c->cr3, PDPT);
	put32(TSS_B + 0x20, EIP_B);
	put64(PML4, PD | 1 | 2); /* reserved bit */
	if (!setjmp(w.c->jb)) {
		far_jmp(w.c, SEL_B, 0, 4);
		fail_msg("no fault");
	}
	check_fault(V_GP, 0, __FILE__, __LINE__);
	assert_int_equal(w.c->rip, EIP_B);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(jump), cmocka_unit_test(call_and_back), cmocka_unit_test(sixteen_bit),
		cmocka_unit_test(refused), cmocka_unit_test(faults_in_new_task), cmocka_unit_test(through_idt),
		cmocka_unit_test(debug_trap_bit), cmocka_unit_test(to_v86), cmocka_unit_test(page_tables),
	};
	return cmocka_run_group_tests(tests, world_up, world_down);
}
