/* MSRs: what may be written, what is read back, what does not exist. */
#include "cpu_rig.h"

static struct rig r;
static struct clock clk;
static struct cpu *c;
static u64 told_adjust;

static void on_adjust(void *arg, u64 v) { told_adjust = v; }

static void start(const char *spec)
{
	if (r.c)
		rig_stop(&r);
	rig_start(&r, 1 << 20, spec);
	struct error e;
	assert_true(clock_init(&clk, true, &e));
	r.hooks.set_tsc_adjust = on_adjust;
	c = r.c;
	c->clock = &clk;
}

static u64 get(u32 msr)
{
	u64 v;
	if (!msr_read(c, msr, &v))
		fail_msg("RDMSR %#x: #GP", msr);
	return v;
}
static bool has(u32 msr)
{
	u64 v;
	return msr_read(c, msr, &v);
}
static void put(u32 msr, u64 v)
{
	if (!msr_write(c, msr, v))
		fail_msg("WRMSR %#x, %#llx: #GP", msr, (unsigned long long)v);
	assert_int_equal(get(msr), v);
}
static void refused(u32 msr, u64 v)
{
	u64 before = get(msr);
	if (msr_write(c, msr, v))
		fail_msg("WRMSR %#x takes %#llx", msr, (unsigned long long)v);
	assert_int_equal(get(msr), before);
}

static void unknown(void **state)
{
	static const u32 none[] = { 2, 0x1234, 0x80000000, 0xffffffff, 0xc0000105, 0x186, 0x492, 0xe7, 0x345 };
	start("max,vendor=intel");
	for (unsigned k = 0; k < ARRAY_LEN(none); k++) {
		assert_false(has(none[k]));
		assert_false(msr_write(c, none[k], 0));
	}
}

/* Each register is there with its feature and gone without. */
static void gates(void **state)
{
	static const struct { u32 msr; const char *with, *without; } t[] = {
		{ 0xc0000103, "max", "max,-rdtscp,-rdpid" },   { 0x3b, "max", "max,-tsc_adjust" },
		{ 0x277, "max", "max,-pat" },                  { 0x2ff, "max", "max,-mtrr" },
		{ 0xda0, "max", "max,-xsaves" },               { 0x179, "max", "max,-mca" },
		{ 0x174, "max", "max,-sep" },                  { 0xc0000082, "max", "max,-lm" },
		{ 0x1a0, "max,vendor=intel", "max,vendor=amd" }, { 0xc0010015, "max,vendor=amd", "max,vendor=intel" },
		{ 0x10a, "max,vendor=intel", "max,vendor=intel,-arch_capabilities" },
		{ 0x48, "max,vendor=intel", "max,vendor=intel,-spec_ctrl" },
		{ 0x48, "max,vendor=amd", "max,vendor=amd,-stibp,-ssbd" },
		{ 0x10, "max", "max,-tsc" },                   { 0x480, "max,vendor=intel", "max,vendor=intel,-vmx" },
		{ 0x491, "max,vendor=intel", "max,vendor=amd" },
	};
	for (unsigned k = 0; k < ARRAY_LEN(t); k++) {
		start(t[k].with);
		if (!has(t[k].msr))
			fail_msg("%#x is missing with %s", t[k].msr, t[k].with);
		start(t[k].without);
		if (has(t[k].msr))
			fail_msg("%#x is there with %s", t[k].msr, t[k].without);
	}
}

/* ---- EFER ------------------------------------------------------------------------------------ */

static void efer(void **state)
{
	static const struct { u64 bit; const char *off; } bits[] = {
		{ EFER_SCE, "max,vendor=amd,-syscall" }, { EFER_LME, "max,vendor=amd,-lm" }, { EFER_NXE, "max,vendor=amd,-nx" },
		{ EFER_LMSLE, "max,vendor=amd,-lmsle" }, { EFER_FFXSR, "max,vendor=amd,-fxsr_opt" },
		{ EFER_AIBRSE, "max,vendor=amd,-auto_ibrs" }, { EFER_SVME, "max,vendor=amd,-svm" },
	};
	for (unsigned k = 0; k < ARRAY_LEN(bits); k++) {
		start("max,vendor=amd");
		put(0xc0000080, bits[k].bit);
		start(bits[k].off);
		refused(0xc0000080, bits[k].bit);
	}
	start("max,vendor=amd");
	for (unsigned b = 0; b < 64; b++)
		if (!((EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE | EFER_LMSLE | EFER_FFXSR | EFER_SVME | (u64)EFER_AIBRSE) >> b & 1))
			refused(0xc0000080, 1ull << b);
}

/* APM vol. 2 15.30, 15.31. */
static void svm_registers(void **state)
{
	enum { VM_CR = 0xc0010114, HSAVE = 0xc0010117, KEY = 0xc0010118, RATIO = 0xc0000104 };
	static const char *const off[] = { "max,vendor=amd,-svm", "max,vendor=intel" };
	for (unsigned k = 0; k < ARRAY_LEN(off); k++) {
		start(off[k]);
		assert_false(has(VM_CR) || has(HSAVE) || has(RATIO));
		assert_false(msr_write(c, VM_CR, 0) || msr_write(c, HSAVE, 0) || msr_write(c, RATIO, 1) || msr_write(c, KEY, 0));
	}
	start("max,vendor=amd");
	assert_int_equal(get(VM_CR), 0);
	assert_int_equal(get(RATIO), 1ull << 32);
	put(HSAVE, 0x123000);
	refused(HSAVE, 0x123001);
	refused(HSAVE, 1ull << 50);
	refused(VM_CR, 1 << 5);
	refused(RATIO, 1ull << 40);
	/* SVMDIS and EFER.SVME shut each other out; LOCK keeps both of its bits. */
	put(VM_CR, 16);
	refused(0xc0000080, EFER_SVME);
	put(VM_CR, 0);
	put(0xc0000080, EFER_SVME);
	refused(VM_CR, 16);
	put(0xc0000080, 0);
	assert_true(msr_write(c, KEY, 0x1234));
	put(VM_CR, 8 | 16);
	assert_true(msr_write(c, VM_CR, 2));
	assert_int_equal(get(VM_CR), 2 | 8 | 16);
	assert_true(msr_write(c, KEY, 0x1233));
	assert_int_equal(get(VM_CR), 2 | 8 | 16);
	assert_true(msr_write(c, KEY, 0x1234));
	assert_int_equal(get(VM_CR), 2 | 16);
	/* INIT leaves them alone. */
	cpu_reset(c, true);
	assert_int_equal(get(VM_CR), 2 | 16);
	assert_int_equal(get(HSAVE), 0x123000);
}

static void efer_lma_is_read_only(void **state)
{
	start("max");
	assert_true(msr_write(c, 0xc0000080, EFER_LMA));
	assert_int_equal(get(0xc0000080), 0);
	c->efer = EFER_LME | EFER_LMA;
	c->cr0 |= CR0_PE | CR0_PG;
	assert_true(msr_write(c, 0xc0000080, EFER_LME | EFER_SCE));
	assert_int_equal(get(0xc0000080), EFER_LME | EFER_LMA | EFER_SCE);
	refused(0xc0000080, EFER_SCE); /* LME under paging */
	assert_true(cpu_long(c));
}

/* ---- addresses --------------------------------------------------------------------------------- */

static void canonical(void **state)
{
	static const u32 regs[] = { 0xc0000082, 0xc0000083, 0xc0000100, 0xc0000101, 0xc0000102, 0x175, 0x176 };
	for (unsigned la57 = 0; la57 < 2; la57++) {
		start(la57 ? "max" : "max,-la57");
		u64 edge = 1ull << (la57 ? 56 : 47);
		for (unsigned k = 0; k < ARRAY_LEN(regs); k++) {
			put(regs[k], edge - 1);
			put(regs[k], -edge);
			refused(regs[k], edge);
			refused(regs[k], -edge - 1);
		}
	}
	put(0xc0000101, 0x123456789000);
	assert_int_equal(c->seg[S_GS].base, 0x123456789000);
	assert_int_equal(c->ebase[S_GS], 0x123456789000);
}

static void widths(void **state)
{
	start("max,vendor=intel");
	put(0xc0000084, 0xffffffff);
	refused(0xc0000084, 1ull << 32);
	put(0xc0000081, ~0ull);
	put(0xc0000103, 0xffffffff);
	refused(0xc0000103, 1ull << 32);
	start("max,vendor=amd");
	assert_true(msr_write(c, 0xc0000103, 0x500000007));
	assert_int_equal(get(0xc0000103), 7);
}

/* ---- memory types ------------------------------------------------------------------------------- */

static bool type_ok(unsigned t, bool pat) { return t == 0 || t == 1 || t == 4 || t == 5 || t == 6 || (pat && t == 7); }

static void types(void **state)
{
	start("max");
	assert_int_equal(get(0x277), 0x0007040600070406);
	for (unsigned t = 0; t < 256; t++)
		for (unsigned k = 0; k < 8; k++) {
			u64 v = (u64)t << 8 * k;
			(type_ok(t, true) ? put : refused)(0x277, v);
			(type_ok(t, false) ? put : refused)(0x250, v);
			(type_ok(t, false) ? put : refused)(0x26f, v);
			if (k == 0) {
				(type_ok(t, false) ? put : refused)(0x2ff, v);
				(type_ok(t, false) ? put : refused)(0x200, v);
			}
		}
}

static void mtrr(void **state)
{
	start("max");
	unsigned pairs = get(0xfe) & 0xff;
	assert_true(pairs >= 8 && (get(0xfe) & 0x100));
	put(0x2ff, 0xc06);
	for (unsigned b = 8; b < 64; b++)
		if (b != 10 && b != 11)
			refused(0x2ff, 1ull << b);
	u64 top = 1ull << c->model->phys_bits;
	for (unsigned k = 0; k < pairs; k++) {
		put(0x200 + 2 * k, (top - 4096) | 6);
		put(0x201 + 2 * k, (top - 4096) | 0x800);
		refused(0x200 + 2 * k, top | 6);
		refused(0x201 + 2 * k, top | 0x800);
		refused(0x200 + 2 * k, 0x106);
		refused(0x201 + 2 * k, 0x400);
	}
	assert_false(has(0x200 + 2 * pairs));
	assert_false(msr_write(c, 0xfe, 0));
	/* All eleven fixed ones are apart. */
	static const u32 fixed[] = { 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f };
	for (unsigned k = 0; k < 11; k++)
		put(fixed[k], (k & 1 ? 6 : 4) | (u64)(k & 2 ? 5 : 1) << 8 | (u64)(k & 4 ? 6 : 0) << 16 | (u64)(k & 8 ? 1 : 0) << 24);
	for (unsigned k = 0; k < 11; k++)
		assert_int_equal(get(fixed[k]) & 0xffffffff,
				 (k & 1 ? 6 : 4) | (k & 2 ? 5 : 1) << 8 | (k & 4 ? 6 : 0) << 16 | (k & 8 ? 1 : 0) << 24);
}

/* ---- machine check ---------------------------------------------------------------------------------- */

static void machine_check(void **state)
{
	start("max,vendor=amd");
	unsigned banks = get(0x179) & 0xff;
	assert_true(banks > 0);
	for (unsigned k = 0; k < banks; k++) {
		put(0x400 + 4 * k, ~0ull);
		refused(0x400 + 4 * k, ~0ull << 20); /* all ones, or zeros */
		for (unsigned m = 1; m < 4; m++)
			put(0x400 + 4 * k + m, 0);
		refused(0x401 + 4 * k, 1);
		put(0x402 + 4 * k, ~0ull);
		put(0x403 + 4 * k, ~0ull);
	}
	assert_false(has(0x400 + 4 * banks));
	put(0xc0010015, 1 << 24 | 1 << 18); /* HWCR.McStatusWrEn */
	put(0x401, 5);
	put(0x17b, ~0ull);
	refused(0x17b, 2);
	refused(0x17a, 8);
	put(0x410, ~0ull & ~(1ull << 10)); /* as systems do */
	put(0x404, ~1ull);
	refused(0x404, ~0ull & ~(1ull << 10));
}

/* ---- time ------------------------------------------------------------------------------------------------ */

static void tsc(void **state)
{
	start("max");
	clock_advance(&clk, 1000);
	assert_int_equal(get(0x10), 1000);
	assert_true(msr_write(c, 0x10, 5000));
	assert_int_equal(get(0x3b), 4000);
	assert_int_equal(told_adjust, 4000);
	clock_advance(&clk, 10);
	assert_int_equal(cpu_tsc(c), 5010);
	put(0x3b, (u64)-10);
	assert_int_equal(get(0x10), 1000);
	assert_int_equal(told_adjust, (u64)-10);
}

/* ---- the rest --------------------------------------------------------------------------------------------- */

static void speculation(void **state)
{
	start("max,vendor=intel");
	put(0x48, 0x407);
	refused(0x48, 8);
	assert_false(has(0x49));
	assert_true(msr_write(c, 0x49, 1));
	assert_false(msr_write(c, 0x49, 2));
	assert_true(get(0x10a) & 1); /* RDCL_NO */
	assert_false(msr_write(c, 0x10a, 0));
	assert_true(msr_write(c, 0x10b, 1));
	start("max,vendor=intel,-bhi_ctrl");
	refused(0x48, 0x400);
	start("max,vendor=intel,-spec_ctrl");
	assert_false(msr_write(c, 0x49, 1));
}

/* IA32_FEATURE_CONTROL: until it is locked; without VMX locked with nothing enabled. What the capability MSRs say of
 * controls agrees with itself and with the features. SDM vol. 3 A.3 to A.5. */
static void vt_x(void **state)
{
	static const u32 words[] = { 0x481, 0x482, 0x483, 0x484, 0x48b, 0x48d, 0x48e, 0x48f, 0x490 };
	start("max,vendor=intel,-vmx");
	assert_int_equal(get(0x3a), 1);
	assert_false(msr_write(c, 0x3a, 5));
	start("max,vendor=intel");
	assert_int_equal(get(0x3a), 0);
	refused(0x3a, 2);
	put(0x3a, 4);
	put(0x3a, 5);
	assert_false(msr_write(c, 0x3a, 0)); /* locked */
	cpu_reset(c, true);
	assert_int_equal(get(0x3a), 5);
	for (unsigned k = 0; k < ARRAY_LEN(words); k++) {
		u64 v = get(words[k]);
		assert_false((u32)v & ~(v >> 32)); /* what must be 1 may be 1 */
		assert_false(msr_write(c, words[k], v));
	}
	for (unsigned k = 0; k < 4; k++) { /* the TRUE words ask for no more, and allow the same */
		u64 old = get(0x481 + k), true_word = get(0x48d + k);
		assert_false((u32)true_word & ~(u32)old);
		assert_true(true_word >> 32 == old >> 32);
	}
	assert_true(get(0x48b) >> 32 & 8); /* RDTSCP */
	assert_true((get(0x486) & get(0x487)) == get(0x486) && (get(0x488) & get(0x489)) == get(0x488));
	start("max,vendor=intel,-rdtscp");
	assert_false(get(0x48b) >> 32 & 8);
}

static void misc_enable(void **state)
{
	start("max,vendor=intel");
	u64 v = get(0x1a0);
	assert_int_equal(v >> 18 & 1, 1);
	assert_int_equal(v >> 11 & 3, 3); /* no BTS, no PEBS: read-only */
	assert_true(msr_write(c, 0x1a0, 1 << 22));
	assert_int_equal(get(0x1a0), 1 << 22 | 3 << 11);
	u32 out[4];
	cpu_cpuid(c, 0, 0, out);
	assert_int_equal(out[0], 2);
	refused(0x1a0, 1ull << 35);
	/* No execute-disable: CPUID does not show it, EFER does not take it. */
	assert_true(msr_write(c, 0xc0000080, 0x800));
	assert_true(msr_write(c, 0xc0000080, 0));
	assert_true(msr_write(c, 0x1a0, 0x400c51809)); /* SpeedStep and xTPR bits are there, too */
	assert_int_equal(get(0x1a0), 0x400c51809);
	cpu_cpuid(c, 0x80000001, 0, out);
	assert_int_equal(out[3] >> 20 & 1, 0);
	refused(0xc0000080, 0x800);
	assert_true(msr_write(c, 0x1a0, 1 << 18));
	cpu_cpuid(c, 0x80000001, 0, out);
	assert_int_equal(out[3] >> 20 & 1, 1);
}

/* Read, and where Linux also writes, written, without a guard against #GP. */
static void what_linux_takes_for_granted(void **state)
{
	static const u32 amd[] = { 0xc0010010, 0xc0010015, 0xc001001a, 0xc001001d, 0xc001001f, 0xc0011029, 0x8b, 0x10, 0xfe, 0x179 };
	static const u32 intel[] = { 0x17, 0x8b, 0x1a0, 0x10, 0xfe, 0x179, 0x3a };
	start("max,vendor=amd");
	for (unsigned k = 0; k < ARRAY_LEN(amd); k++)
		get(amd[k]);
	assert_int_equal(get(0xc0010015) >> 24 & 1, 1); /* the TSC counts at P0's rate */
	assert_int_equal(get(0xc0011029) & 2, 2);       /* LFENCE serializes */
	put(0xc001001f, 1ull << 46);
	for (u32 k = 0xc0010000; k <= 0xc0010007; k++) { /* counters that all AMD processors have */
		assert_true(msr_write(c, k, 0x130076));
		assert_int_equal(get(k), 0); /* not there to use */
	}
	start("max,vendor=intel");
	for (unsigned k = 0; k < ARRAY_LEN(intel); k++)
		get(intel[k]);
	assert_true(msr_write(c, 0x8b, 0));
	assert_true(get(0x8b) >> 32);
}

/* A refused write changes nothing; a taken one never breaks reading. */
static void random_writes(void **state)
{
	static const u32 around[] = { 0, 0x10, 0x30, 0x48, 0x80, 0xc0, 0xf0, 0x100, 0x170, 0x190, 0x1a0, 0x1d0, 0x200, 0x250,
				      0x260, 0x270, 0x2f8, 0x400, 0x6e0, 0x800, 0xda0, 0xc0000080, 0xc0000100, 0xc0010010,
				      0xc0010050, 0xc0010110, 0xc0011020 };
	u64 x = 88172645463325252ull;
	unsigned taken = 0;
	for (unsigned v = 0; v < 2; v++) {
		start(v ? "max,vendor=amd" : "max,vendor=intel");
		for (unsigned n = 0; n < 100000; n++) {
			x ^= x << 13, x ^= x >> 7, x ^= x << 17;
			u32 msr = around[x % ARRAY_LEN(around)] + (x >> 32) % 16;
			u64 val = (x >> 8) & (n & 1 ? ~0ull : 0x0706050401000607), before = 0, after = 0;
			bool there = msr_read(c, msr, &before);
			bool ok = msr_write(c, msr, val);
			taken += ok;
			assert_int_equal(msr_read(c, msr, &after), there);
			if (!ok)
				assert_int_equal(before, after);
		}
	}
	assert_true(taken > 10000);
}

static int down(void **state)
{
	rig_stop(&r);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(unknown), cmocka_unit_test(gates), cmocka_unit_test(efer), cmocka_unit_test(svm_registers),
		cmocka_unit_test(efer_lma_is_read_only), cmocka_unit_test(canonical), cmocka_unit_test(widths),
		cmocka_unit_test(types), cmocka_unit_test(mtrr), cmocka_unit_test(machine_check), cmocka_unit_test(tsc),
		cmocka_unit_test(speculation), cmocka_unit_test(vt_x), cmocka_unit_test(misc_enable),
		cmocka_unit_test(what_linux_takes_for_granted), cmocka_unit_test(random_writes),
	};
	return cmocka_run_group_tests(tests, NULL, down);
}
