/* The cache of decoded blocks: that nothing stale runs, however control comes to it (by a link, the
 * jump cache, a walk), and that instructions are counted one by one. Programs run in the engine's
 * own loop until HLT; what they leave in memory and registers is checked. Between two processors:
 * tests/engine/test_smp.c. */
#include "sys_rig.h"

extern const struct engine_ops interp_engine;

/* ---- programs ----------------------------------------------------------------------------------- */

static u8 *ram(u64 at) { return s.mem.ram + at; }

/* Code is written as a device would, which the cache must notice. */
static void code_at(u64 at, const u8 *bytes, unsigned n) { mem_write(&s.mem, at, bytes, n); }
#define CODE_AT(at, ...) code_at(at, (const u8[]){ __VA_ARGS__ }, sizeof((const u8[]){ __VA_ARGS__ }))

/* From rip until HLT: true; until the processor stops by a triple fault: false. */
static bool run_from(u64 rip)
{
	s.c->rip = rip;
	s.c->activity = ACT_RUN;
	s.c->stopped = false;
	s.c->icount_limit = UINT64_MAX;
	interp_engine.run(s.c);
	return !s.c->stopped && s.c->activity == ACT_HLT;
}

/* ---- CS's limit -------------------------------------------------------------------------------------- */

static void limit_at_every_entry(void **state)
{
	sys_protected(0);
	/* Twice through the block at +10h, so that it is linked; INC EAX; MOV EBX, 5; HLT. */
	CODE_AT(CODE, 0xe8, 0x0b, 0, 0, 0, 0xe8, 0x06, 0, 0, 0, 0xf4);
	CODE_AT(CODE + 0x10, 0x40, 0xbb, 5, 0, 0, 0, 0xc3);
	assert_true(run_from(CODE));
	assert_int_equal(s.c->regs[R_AX], 2);
	/* Cut in its middle: what is before the limit runs, what is not does not. */
	s.c->seg[S_CS].limit = CODE + 0x13;
	cpu_update_mode(s.c);
	s.c->regs[R_BX] = 0;
	assert_false(run_from(CODE));
	assert_int_equal(s.c->regs[R_AX], 3);
	assert_int_equal(s.c->regs[R_BX], 0);
}

/* ---- counting -------------------------------------------------------------------------------------------- */

/* The count and RIP after each number of instructions are those of single steps. */
static void same_as_steps(u64 rip, unsigned n, void (*prepare)(void))
{
	u64 rips[64], at = 0;
	prepare();
	s.c->rip = rip;
	u64 base = s.c->icount;
	for (unsigned k = 0; k < n; k++) {
		interp_engine.step(s.c);
		rips[k] = s.c->rip;
		assert_int_equal(s.c->icount, base + k + 1);
	}
	for (unsigned k = 1; k <= n; k++) {
		prepare();
		s.c->rip = rip;
		at = s.c->icount;
		s.c->icount_limit = at + k;
		assert_int_equal(interp_engine.run(s.c), RUN_LIMIT);
		assert_int_equal(s.c->icount, at + k);
		assert_int_equal(s.c->rip, rips[k - 1]);
	}
}

static void loop_program(void)
{
	sys_long(0);
	/* MOV ECX, 4; again: INC EAX; TEST AL, 1; JZ over; INC EBX; over: LOOP again; JMP $ */
	CODE_AT(CODE, 0xb9, 4, 0, 0, 0, 0xff, 0xc0, 0xa8, 1, 0x74, 2, 0xff, 0xc3, 0xe2, 0xf6, 0xeb, 0xfe);
}
static void count_of_loops(void **state) { same_as_steps(CODE, 40, loop_program); }

/* A store into the block under way cuts it, the more so before its last instruction. */
static void cutting_program(void)
{
	sys_long(0);
	/* NOP; MOV [rdi], AL; JMP +1; HLT; INC EBX; JMP $. rdi: the JMP's displacement, which stays. */
	CODE_AT(CODE, 0x90, 0x88, 0x07, 0xeb, 1, 0xf4, 0xff, 0xc3, 0xeb, 0xfe);
	s.c->regs[R_AX] = 1;
	s.c->regs[R_DI] = CODE + 4;
}
static void count_of_a_cut_block(void **state)
{
	same_as_steps(CODE, 8, cutting_program);
	/* The limit makes steps of a block's instructions: here the block itself runs and is cut. */
	cutting_program();
	CODE_AT(CODE + 8, 0xf4);
	u64 before = s.c->icount;
	assert_true(run_from(CODE));
	assert_int_equal(s.c->icount - before, 5);
}

/* A REP that was interrupted is resumed with RF set: one single instruction all the same, and not one
 * for each of its iterations. */
static void rep_resumed_with_rf(void **state)
{
	sys_long(0);
	CODE_AT(CODE, 0xf3, 0xaa, 0xf4); /* REP STOSB; HLT */
	s.c->regs[R_DI] = DATA;
	s.c->regs[R_CX] = 3000;
	cpu_set_rflags(s.c, FL_RF, FL_RF);
	s.c->rip = CODE;
	interp_engine.step(s.c);
	assert_int_equal(s.c->regs[R_CX], 0);
	assert_int_equal(s.c->rip, CODE + 2);
	assert_false(s.c->rflags & FL_RF);
	/* With TF it is one step an iteration. */
	s.c->regs[R_CX] = 3000;
	cpu_set_rflags(s.c, FL_TF, FL_TF);
	s.c->rip = CODE;
	interp_engine.step(s.c);
	assert_int_equal(s.c->regs[R_CX], 2999);
}

/* ---- self-modifying code ------------------------------------------------------------------------------------ */

static void store_into_the_next_instruction(void **state)
{
	for (unsigned n = 0; n < 3; n++) {
		sys_long(0);
		/* MOV BYTE [CODE + 8], n; MOV EBX, 55h; HLT */
		CODE_AT(CODE, 0xc6, 0x04, 0x25, 0x08 + 1, 0, 1, 0, (u8)(n + 7), 0xbb, 0x55, 0, 0, 0, 0xf4);
		st32(ram(CODE + 3), CODE + 9);
		assert_true(run_from(CODE));
		assert_int_equal(s.c->regs[R_BX], n + 7);
	}
}

/* ---- translations ----------------------------------------------------------------------------------------------- */

/* V is mapped by small pages, far from the large one of the rest. */
enum { TABLE = 0xb000, V = 0x800000, V_ENTRY = 4 * 8 /* in the page directory */, FRAME_A = 0x11000, FRAME_B = 0x12000, FRAME_C = 0x13000 };

static void map(u64 lin, u64 frame) { st64(ram(TABLE + (lin - V) / 4096 * 8), frame | 7); }

static void long_with_small_pages(void)
{
	sys_long(0);
	memset(ram(TABLE), 0, 4096);
	st64(ram(0xa000 + V_ENTRY), TABLE | 7);
	mmu_flush_all(s.c);
}

/* MOV EAX, v; RET */
static void returns(u64 at, u8 v) { CODE_AT(at, 0xb8, v, 0, 0, 0, 0xc3); }

/* MOV ESI, V; CALL rsi; CALL rsi; HLT */
static void caller(u64 at, u32 target)
{
	CODE_AT(at, 0xbe, 0, 0, 0, 0, 0xff, 0xd6, 0xff, 0xd6, 0xf4);
	u8 b[4];
	st32(b, target);
	code_at(at + 1, b, 4);
}

static void invlpg_of_code(void **state)
{
	long_with_small_pages();
	returns(FRAME_A, 10);
	returns(FRAME_B, 11);
	caller(CODE, V);
	for (unsigned n = 0; n < 40; n++) {
		map(V, n & 1 ? FRAME_B : FRAME_A);
		for (unsigned data = 1; data < n; data++)
			mmu_invlpg(s.c, V + data * 4096ull); /* others, which say nothing about it */
		mmu_invlpg(s.c, V);
		assert_true(run_from(CODE));
		assert_int_equal(s.c->regs[R_AX], 10 + (n & 1));
	}
}

/* A JMP begins in one page and ends in the next, which alone is exchanged, and where nothing else is. */
static void invlpg_of_the_second_page(void **state)
{
	long_with_small_pages();
	CODE_AT(FRAME_A + 4095, 0xe9);
	CODE_AT(FRAME_B, 0xfc, 0xf0, 0xff, 0xff); /* to V + 100h */
	CODE_AT(FRAME_C, 0xfc, 0xf1, 0xff, 0xff); /* to V + 200h */
	returns(FRAME_A + 0x100, 20);
	returns(FRAME_A + 0x200, 21);
	map(V, FRAME_A);
	caller(CODE, V + 4095);
	for (unsigned n = 0; n < 10; n++) {
		map(V + 4096, n & 1 ? FRAME_C : FRAME_B);
		mmu_invlpg(s.c, V + 4096);
		assert_true(run_from(CODE));
		assert_int_equal(s.c->regs[R_AX], 20 + (n & 1));
	}
}

/* A large page's fragments go with any of its addresses. */
static void invlpg_of_a_large_page(void **state)
{
	sys_long(0);
	returns(0x211000, 30);
	returns(0x11000, 31);
	caller(CODE, 0x211000);
	for (unsigned n = 0; n < 6; n++) {
		st64(ram(0xa008), (n & 1 ? 0 : 0x200000) | 0xe7);
		mmu_invlpg(s.c, 0x3ff000);
		assert_true(run_from(CODE));
		assert_int_equal(s.c->regs[R_AX], 30 + (n & 1));
	}
}

/* Two address spaces, each with its PCID and its code at the same address; nothing is flushed. */
static void address_spaces(void **state)
{
	enum { ROOT2 = 0xc000, PDPT2 = 0xd000, PD2 = 0xe000, TABLE2 = 0xf000 };
	long_with_small_pages();
	memset(ram(ROOT2), 0, 0x4000);
	st64(ram(ROOT2), PDPT2 | 7);
	st64(ram(PDPT2), PD2 | 7);
	st64(ram(PD2), ld64(ram(0xa000)));
	st64(ram(PD2 + V_ENTRY), TABLE2 | 7);
	map(V, FRAME_A);
	st64(ram(TABLE2), FRAME_B | 7);
	returns(FRAME_A, 40);
	returns(FRAME_B, 41);
	caller(CODE, V);
	cpu_write_cr4(s.c, s.c->cr4 | CR4_PCIDE);
	for (unsigned n = 0; n < 100; n++) { /* every third time one is flushed */
		u64 keep = n % 3 ? 1ull << 63 : 0;
		cpu_write_cr3(s.c, (n & 1 ? ROOT2 | 1 : 0x8000 | 2) | keep);
		assert_true(run_from(CODE));
		assert_int_equal(s.c->regs[R_AX], 40 + (n & 1));
	}
}

/* A tag must not come back with the number of an epoch. */
static void epochs_start_over(void **state)
{
	long_with_small_pages();
	returns(FRAME_A, 60);
	returns(FRAME_B, 61);
	caller(CODE, V);
	map(V, FRAME_A);
	assert_true(run_from(CODE));
	assert_int_equal(s.c->regs[R_AX], 60);
	map(V, FRAME_B);
	u64 epoch = s.c->epoch;
	do {
		mmu_flush_all(s.c);
	} while (s.c->epoch != epoch);
	assert_true(run_from(CODE));
	assert_int_equal(s.c->regs[R_AX], 61);
}

/* A new epoch in the middle of a program (WRPKRU): what follows goes on under it. */
static void new_epoch_within_a_program(void **state)
{
	long_with_small_pages();
	returns(FRAME_A, 50);
	map(V, FRAME_A);
	cpu_write_cr4(s.c, s.c->cr4 | CR4_PKE);
	/* MOV ESI, V; XOR ECX, ECX; XOR EDX, EDX; MOV EDI, 5000; again: MOV EAX, EDI; AND EAX, 4; WRPKRU;
	 * CALL rsi; ADD EBX, EAX; DEC EDI; JNZ again; HLT */
	CODE_AT(CODE, 0xbe, 0, 0, 0x80, 0, 0x31, 0xc9, 0x31, 0xd2, 0xbf, 0x88, 0x13, 0, 0, 0x89, 0xf8, 0x83, 0xe0, 4,
		0x0f, 0x01, 0xef, 0xff, 0xd6, 0x01, 0xc3, 0xff, 0xcf, 0x75, 0xf0, 0xf4);
	s.c->regs[R_BX] = 0;
	assert_true(run_from(CODE));
	assert_int_equal(s.c->regs[R_BX], 50 * 5000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(limit_at_every_entry, sys_up, sys_down),
		cmocka_unit_test_setup_teardown(count_of_loops, sys_up, sys_down),
		cmocka_unit_test_setup_teardown(count_of_a_cut_block, sys_up, sys_down),
		cmocka_unit_test_setup_teardown(rep_resumed_with_rf, sys_up, sys_down),
		cmocka_unit_test_setup_teardown(store_into_the_next_instruction, sys_up, sys_down),
		cmocka_unit_test_setup_teardown(invlpg_of_code, sys_up, sys_down),
		cmocka_unit_test_setup_teardown(invlpg_of_the_second_page, sys_up, sys_down),
		cmocka_unit_test_setup_teardown(invlpg_of_a_large_page, sys_up, sys_down),
		cmocka_unit_test_setup_teardown(address_spaces, sys_up, sys_down),
		cmocka_unit_test_setup_teardown(epochs_start_over, sys_up, sys_down),
		cmocka_unit_test_setup_teardown(new_epoch_within_a_program, sys_up, sys_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
