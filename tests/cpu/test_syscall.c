/* SYSCALL SYSRET SYSENTER SYSEXIT, as both vendors have them. */
#include "world.h"

enum { AMD = 1 };
static void vendor(bool amd) { strcpy(w.model.vendor, amd ? "AuthenticAMD" : "GenuineIntel"); }

static void msrs(void)
{
	w.c->msr.star = 0x00130008ull << 32 | 0x4444;
	w.c->msr.lstar = 0xffffffff81000000ull;
	w.c->msr.cstar = 0xffffffff82000000ull;
	w.c->msr.fmask = FL_IF | FL_TF | FL_DF;
	w.c->msr.sysenter_cs = 0x100 + 3;
	w.c->msr.sysenter_esp = 0xffffffff83000000ull;
	w.c->msr.sysenter_eip = 0xffffffff84000000ull;
}

static void in_long(unsigned cpl, bool compat, bool amd)
{
	world_long(cpl, compat);
	vendor(amd);
	msrs();
}

static void syscall_64(void **state)
{
	for (unsigned amd = 0; amd < 2; amd++) {
		in_long(3, false, amd);
		w.c->rflags = 2 | FL_IF | FL_CF | FL_TF | FL_RF | FL_IOPL;
		WORKS(cpu_syscall(w.c));
		assert_true(w.c->rip == 0xffffffff81000000ull);
		assert_int_equal(w.c->regs[R_CX], CODE);
		assert_int_equal(w.c->regs[R_11], 2 | FL_IF | FL_CF | FL_TF | FL_IOPL);
		assert_int_equal(w.c->rflags, 2 | FL_CF | FL_IOPL);
		assert_int_equal(w.c->seg[S_CS].sel, 8);
		assert_int_equal(w.c->seg[S_CS].attr, ATTR_CODE64);
		assert_int_equal(w.c->seg[S_SS].sel, 16);
		assert_int_equal(w.c->seg[S_SS].attr, ATTR_DATA32);
		assert_int_equal(w.c->cpl, 0);
		assert_int_equal(w.c->code_mode, CODE64);
		assert_true(w.c->step_skip); /* TF was masked: no trap */
		w.c->step_skip = false;
		w.c->efer &= ~(u64)EFER_SCE;
		FAULTS(cpu_syscall(w.c), V_UD, 0);
	}
}

static void syscall_other_modes(void **state)
{
	in_long(3, true, !AMD);
	FAULTS(cpu_syscall(w.c), V_UD, 0);
	in_long(3, true, AMD);
	WORKS(cpu_syscall(w.c));
	assert_true(w.c->rip == 0xffffffff82000000ull);
	assert_int_equal(w.c->code_mode, CODE64);
	world_protected(3);
	msrs();
	w.c->efer = EFER_SCE;
	w.c->rflags |= FL_IF;
	w.c->regs[R_11] = 0x1111;
	WORKS(cpu_syscall(w.c)); /* AMD, legacy: EIP from STAR */
	assert_int_equal(w.c->regs[R_11], 0x1111);
	assert_false(w.c->step_skip);
	assert_int_equal(w.c->rip, 0x4444);
	assert_int_equal(w.c->code_mode, CODE32);
	assert_int_equal(w.c->rflags, 2);
	WORKS(cpu_sysret(w.c, 4));
	assert_int_equal(w.c->cpl, 3);
	assert_int_equal(w.c->rflags, 2 | FL_IF);
	assert_int_equal(w.c->seg[S_CS].sel, 0x13);
	world_protected(3);
	w.c->efer = EFER_SCE;
	vendor(!AMD);
	FAULTS(cpu_syscall(w.c), V_UD, 0);
}

static void sysret(void **state)
{
	for (unsigned amd = 0; amd < 2; amd++) {
		in_long(0, false, amd);
		w.c->regs[R_CX] = 0x7fff12345678ull;
		w.c->regs[R_11] = ~0ull & ~(u64)FL_TF;
		w.c->seg[S_SS] = seg_null(0, 0);
		WORKS(cpu_sysret(w.c, 8));
		assert_true(w.c->rip == 0x7fff12345678ull);
		assert_int_equal(w.c->rflags, 0x3c7ed7);
		assert_int_equal(w.c->seg[S_CS].sel, 0x23);
		assert_int_equal(w.c->seg[S_SS].sel, 0x1b);
		assert_int_equal(w.c->cpl, 3);
		assert_int_equal(!!(w.c->seg[S_SS].attr & SEG_UNUSABLE), amd); /* AMD leaves the rest of SS */
		assert_int_equal(attr_dpl(w.c->seg[S_SS].attr), 3);
		in_long(0, false, amd);
		w.c->regs[R_CX] = 0x7fff12345678ull;
		w.c->regs[R_11] = FL_TF;
		WORKS(cpu_sysret(w.c, 4));
		assert_int_equal(w.c->rip, 0x12345678);
		assert_int_equal(w.c->seg[S_CS].sel, 0x13);
		assert_int_equal(w.c->code_mode, CODE32);
		assert_int_equal(w.c->dr6_pending, DR6_BS); /* TF now: a trap at once */
		cpu_clear_event(w.c, EV_TRAP);
		in_long(3, false, amd);
		FAULTS(cpu_sysret(w.c, 8), V_GP, 0);
		w.c->efer &= ~(u64)EFER_SCE;
		FAULTS(cpu_sysret(w.c, 8), V_UD, 0);
	}
	in_long(0, false, !AMD);
	w.c->regs[R_CX] = 1ull << 47;
	FAULTS(cpu_sysret(w.c, 8), V_GP, 0); /* Intel: before the switch */
	WORKS(cpu_sysret(w.c, 4)); /* cut to 32 bits */
	in_long(0, false, AMD);
	w.c->regs[R_CX] = 1ull << 47;
	WORKS(cpu_sysret(w.c, 8));
	world_real();
	w.c->efer = EFER_SCE;
	FAULTS(cpu_sysret(w.c, 4), V_GP, 0);
	in_long(0, true, !AMD);
	FAULTS(cpu_sysret(w.c, 4), V_UD, 0);
}

static void sysenter(void **state)
{
	in_long(3, true, !AMD);
	w.c->rflags |= FL_IF;
	WORKS(cpu_sysenter(w.c));
	assert_true(w.c->rip == 0xffffffff84000000ull && w.c->regs[R_SP] == 0xffffffff83000000ull);
	assert_int_equal(w.c->seg[S_CS].sel, 0x100);
	assert_int_equal(w.c->seg[S_SS].sel, 0x108);
	assert_int_equal(w.c->code_mode, CODE64);
	assert_int_equal(w.c->rflags, 2);
	w.c->regs[R_DX] = 0x7fff00001000ull;
	w.c->regs[R_CX] = 0x7fff00002000ull;
	WORKS(cpu_sysexit(w.c, 8));
	assert_int_equal(w.c->seg[S_CS].sel, 0x123);
	assert_int_equal(w.c->seg[S_SS].sel, 0x12b);
	assert_int_equal(w.c->cpl, 3);
	assert_true(w.c->rip == 0x7fff00001000ull && w.c->regs[R_SP] == 0x7fff00002000ull);
	in_long(0, false, !AMD);
	WORKS(cpu_sysexit(w.c, 4));
	assert_int_equal(w.c->seg[S_CS].sel, 0x113);
	assert_int_equal(w.c->seg[S_SS].sel, 0x11b);
	assert_int_equal(w.c->code_mode, CODE32);

	in_long(0, false, !AMD);
	w.c->regs[R_DX] = 1ull << 47;
	FAULTS(cpu_sysexit(w.c, 8), V_GP, 0);
	w.c->regs[R_DX] = 0;
	w.c->regs[R_CX] = 1ull << 47;
	FAULTS(cpu_sysexit(w.c, 8), V_GP, 0);
	w.c->msr.sysenter_cs = 3;
	FAULTS(cpu_sysenter(w.c), V_GP, 0);
	FAULTS(cpu_sysexit(w.c, 4), V_GP, 0);
	in_long(3, false, !AMD);
	FAULTS(cpu_sysexit(w.c, 8), V_GP, 0);
	in_long(0, false, AMD);
	FAULTS(cpu_sysenter(w.c), V_UD, 0);
	FAULTS(cpu_sysexit(w.c, 8), V_UD, 0);
	world_protected(3);
	msrs();
	WORKS(cpu_sysenter(w.c));
	assert_int_equal(w.c->rip, 0x84000000);
	assert_int_equal(w.c->code_mode, CODE32);
	world_real();
	msrs();
	FAULTS(cpu_sysenter(w.c), V_GP, 0);
	FAULTS(cpu_sysexit(w.c, 4), V_GP, 0);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(syscall_64), cmocka_unit_test(syscall_other_modes), cmocka_unit_test(sysret),
		cmocka_unit_test(sysenter),
	};
	return cmocka_run_group_tests(tests, world_up, world_down);
}
