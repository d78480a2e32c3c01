/* The decoded-block cache, through the engine's run loop: what a block may assume of the pages
 * that its bytes came from. Code that modifies itself is tests/guest/smc.c. */
#include "sys_rig.h"

extern const struct engine_ops interp_engine;

enum { IDT = 0x2000, PAGE_TABLE = 0xb000, HANDLERS = 0xe000 };

/* Runs from rip to HLT, by blocks. Returns where it halted. */
static u64 run_to_halt(u64 rip)
{
	struct cpu *c = s.c;
	c->rip = rip;
	c->activity = ACT_RUN;
	c->icount_limit = c->icount + 1000;
	assert_int_equal(interp_engine.run(c), RUN_HALT);
	return c->rip - 1;
}

static void put(u64 at, const u8 *bytes, unsigned n) { assert_true(mem_write(&s.mem, at, bytes, n)); }
#define PUT(at, ...) put(at, (const u8[]){ __VA_ARGS__ }, sizeof((const u8[]){ __VA_ARGS__ }))

/* 4-KiB pages below 2 MiB, and for each vector a handler that halts at HANDLERS + vector. */
static void world(void)
{
	sys_long(0);
	st64(s.mem.ram + 0xa000, PAGE_TABLE | 7);
	for (u64 k = 0; k < 512; k++)
		st64(s.mem.ram + PAGE_TABLE + 8 * k, k << 12 | 7);
	st64(s.mem.ram + GDT + 8, 0x00af9b000000ffff);
	for (u64 v = 0; v < 32; v++) {
		st64(s.mem.ram + IDT + 16 * v, (HANDLERS + v) | 8ull << 16 | 0x8eull << 40);
		st64(s.mem.ram + IDT + 16 * v + 8, 0);
		PUT(HANDLERS + v, 0xf4);
	}
	s.c->idtr = (struct dtable){ IDT, 0x1ff };
	mmu_flush_all(s.c);
}

/* An instruction that runs over into a page that is absent faults when it is reached, not when the
 * block before it is decoded: here a division by zero comes first. */
static void next_page_faults_in_its_turn(void **state)
{
	world();
	st64(s.mem.ram + PAGE_TABLE + 8 * (CODE + 0x1000) / 4096, 0);
	u64 at = CODE + 0x1000 - 6;
	PUT(at, 0x31, 0xc9, 0xf7, 0xf1, 0xb8, 0x00); /* xor ecx, ecx; div ecx; mov eax, imm32 */
	assert_int_equal(run_to_halt(at), HANDLERS + V_DE);
	assert_int_equal(ld64(s.mem.ram + s.c->regs[R_SP]), at + 2);
	PUT(at + 2, 0x90, 0x90);
	assert_int_equal(run_to_halt(at), HANDLERS + V_PF);
	assert_int_equal(ld64(s.mem.ram + s.c->regs[R_SP] + 8), at + 4);
	assert_int_equal(s.c->cr2, CODE + 0x1000);
}

/* What is at a physical address is not always the same memory. */
static void map_changes_under_code(void **state)
{
	enum { AT = 0xd0000 };
	static _Alignas(4096) u8 rom[2][4096] = {
		{ 0xb8, 2, 0, 0, 0, 0xf4 }, { 0xb8, 3, 0, 0, 0, 0xf4 }, /* mov eax, imm32; hlt */
	};
	struct error e;
	world();
	PUT(AT, 0xb8, 1, 0, 0, 0, 0xf4);
	for (unsigned k = 1; k <= 3; k++) {
		if (k > 1)
			assert_true(mem_add_rom(&s.mem, "rom", AT, 4096, rom[k - 2], 10, &e));
		cpu_post_event(s.c, EV_TLB);
		run_to_halt(AT);
		assert_int_equal(s.c->regs[R_AX], k);
	}
	mem_remove(&s.mem, "rom", AT);
	mem_remove(&s.mem, "rom", AT);
	cpu_post_event(s.c, EV_TLB);
	run_to_halt(AT);
	assert_int_equal(s.c->regs[R_AX], 1);
}

static void post_nmi(void *dev, u64 off, u64 val, unsigned size) { cpu_post_event(s.c, EV_NMI); }

/* With deterministic time, what a port raises is seen right after the instruction. */
static void port_event_comes_at_once(void **state)
{
	static const struct mmio_ops ops = { .write = post_nmi, .min_size = 1, .max_size = 1 };
	struct error e;
	world();
	assert_true(mem_add_ports(&s.mem, "nmi", 0x70, 1, &ops, NULL, &e));
	PUT(CODE, 0x90, 0x6e, 0x90, 0x90, 0xf4); /* nop; outsb; nop; nop; hlt */
	s.c->regs[R_DX] = 0x70;
	s.c->regs[R_SI] = DATA;
	assert_int_equal(run_to_halt(CODE), HANDLERS + V_NMI);
	assert_int_equal(ld64(s.mem.ram + s.c->regs[R_SP]), CODE + 2);
}

#define T(f) cmocka_unit_test_setup_teardown(f, sys_up, sys_down)

int main(void)
{
	const struct CMUnitTest tests[] = { T(next_page_faults_in_its_turn), T(map_changes_under_code),
					    T(port_event_comes_at_once) };
	return cmocka_run_group_tests(tests, NULL, NULL);
}
