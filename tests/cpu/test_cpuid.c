/* CPUID: the table, the models made from --cpu, and each leaf against the manuals' encodings. */
#include <stdio.h>

#include "cpu_rig.h"
#include "cpu/features.h"

static struct mem mem;
static struct cpu_model model;
static struct cpu_hooks hooks;
static struct cpu *c;
static struct error err;

static bool parse(const char *spec)
{
	struct clock k = { .tsc_hz = 2595636000 };
	err.msg[0] = 0;
	return cpu_model_parse(&model, spec, &k, &err);
}

static void must_parse(const char *spec)
{
	if (!parse(spec))
		fail_msg("%s: %s", spec, err.msg);
}

static u32 reg(u32 leaf, u32 sub, unsigned r)
{
	u32 out[4];
	cpu_cpuid(c, leaf, sub, out);
	return out[r];
}
enum { A, B, C, D };

static u32 feature_bit(unsigned f)
{
	const struct feature_info *i = &feature_table[f];
	return reg(i->leaf, i->sub, i->reg) >> i->bit & 1;
}

static int up(void **state)
{
	if (!mem_init(&mem, 1 << 20, &err) || !parse("max"))
		return -1;
	c = cpu_new(0, &mem, NULL, &model, &hooks);
	return c ? 0 : -1;
}

static int down(void **state)
{
	cpu_free(c);
	mem_destroy(&mem);
	return 0;
}

/* ---- the table ------------------------------------------------------------------------------ */

static void table_has_no_doubles(void **state)
{
	for (unsigned a = 0; a < N_FEATURES; a++)
		for (unsigned b = a + 1; b < N_FEATURES; b++) {
			const struct feature_info *x = &feature_table[a], *y = &feature_table[b];
			if (!strcmp(x->name, y->name))
				fail_msg("%s is there twice", x->name);
			if (x->leaf == y->leaf && x->sub == y->sub && x->reg == y->reg && x->bit == y->bit)
				fail_msg("%s and %s are one bit", x->name, y->name);
		}
}

/* Each feature's own bit follows its switch, and an absent one shows nothing. */
static void bits_follow_switches(void **state)
{
	char spec[80];
	unsigned offered = 0;
	for (unsigned v = 0; v < 2; v++) {
		const char *vendor = v ? "amd" : "intel";
		for (unsigned f = 0; f < N_FEATURES; f++) {
			const char *name = feature_table[f].name;
			bool inverted = feature_table[f].how == INV;
			snprintf(spec, sizeof(spec), "max,vendor=%s,-%s", vendor, name);
			must_parse(spec);
			assert_false(model.has[f]);
			if (!inverted && feature_bit(f))
				fail_msg("%s shows with %s", name, spec);
			snprintf(spec, sizeof(spec), "max,vendor=%s,+%s", vendor, name);
			if (!parse(spec))
				continue;
			offered++;
			assert_true(model.has[f]);
			c->msr.misc_enable = 1 << 18;
			c->efer = EFER_LMA;
			c->seg[S_CS].attr |= SEG_L;
			cpu_update_mode(c);
			if (feature_bit(f) == inverted)
				fail_msg("%s does not show with %s", name, spec);
		}
	}
	assert_true(offered > 150);
}

/* ---- models ----------------------------------------------------------------------------------- */

static void dependents_go(void **state)
{
	must_parse("max,-xsave");
	assert_false(model.has[FEAT_AVX] || model.has[FEAT_AVX2] || model.has[FEAT_FMA] || model.has[FEAT_AVX512F]);
	assert_false(model.has[FEAT_PKU] || model.has[FEAT_XSAVES]);
	assert_int_equal(model.xcr0_mask, 0);
	assert_true(model.has[FEAT_SSE4_2]);
	must_parse("max,-avx");
	assert_false(model.has[FEAT_AVX2] || model.has[FEAT_AVX512BW] || model.has[FEAT_VAES]);
	assert_int_equal(model.xcr0_mask & 0xe4, 0);
	assert_true(model.has[FEAT_XSAVE] && model.has[FEAT_AES]);
	must_parse("max,-lm");
	assert_false(model.has[FEAT_PCID] || model.has[FEAT_LA57] || model.has[FEAT_FSGSBASE]);
}

static void needs_come(void **state)
{
	must_parse("base,+avx2");
	assert_true(model.has[FEAT_XSAVE] && model.has[FEAT_AVX] && model.has[FEAT_SSSE3]);
	assert_false(model.has[FEAT_FMA] || model.has[FEAT_SMEP]);
	assert_int_equal(model.xcr0_mask, 7);
	must_parse("max,-avx,+avx");
	assert_true(model.has[FEAT_AVX]);
	assert_false(model.has[FEAT_AVX2]);
	must_parse("base,SSE4.2=on");
	assert_true(model.has[FEAT_SSE4_2]);
	must_parse("");
	assert_true(model.has[FEAT_SMAP]);
}

static void deterministic_time_has_no_chance(void **state)
{
	struct clock k = { .tsc_hz = 1000000000, .icount_mode = true };
	struct cpu_model m;
	must_parse("max");
	if (!model.has[FEAT_RDRAND])
		skip(); /* this host has none */
	assert_true(cpu_model_parse(&m, "max", &k, &err));
	assert_false(m.has[FEAT_RDRAND] || m.has[FEAT_RDSEED]);
	assert_true(cpu_model_parse(&m, "max,+rdrand", &k, &err));
	assert_true(m.has[FEAT_RDRAND]);
}

static void mistakes_are_named(void **state)
{
	static const struct { const char *spec, *says; } bad[] = {
		{ "max,+avx512vmbi", "avx512vbmi" },     { "max,-smmp", "smep" },     { "max,smap=yes", "on or off" },
		{ "max,vendor=via", "intel or amd" }, { "max,+smx", "cannot do it yet" }, { "maxx", "did you mean max" },
		{ "max,+smap=on", "either" }, { "max,zzzzzzzzzzz", "--help" },
	};
	for (unsigned k = 0; k < ARRAY_LEN(bad); k++) {
		assert_false(parse(bad[k].spec));
		if (!strstr(err.msg, bad[k].says) || !strstr(err.msg, "--cpu"))
			fail_msg("%s: \"%s\" does not say %s", bad[k].spec, err.msg, bad[k].says);
	}
}

static void vendors_differ(void **state)
{
	must_parse("max,vendor=amd");
	assert_true(model.has[FEAT_LMSLE] && model.has[FEAT_CLZERO]);
	assert_false(model.has[FEAT_ARCH_CAPABILITIES]);
	assert_int_equal(reg(0, 0, B), 0x68747541);
	assert_int_equal(reg(1, 0, A) >> 8 & 15, 15);
	assert_true((reg(1, 0, A) >> 20 & 0xff) >= 8); /* family 17h or later */
	assert_int_equal(reg(0x80000001, 0, D) & 0x1ff, reg(1, 0, D) & 0x1ff);
	must_parse("max,vendor=intel");
	assert_true(model.has[FEAT_ARCH_CAPABILITIES]);
	assert_false(model.has[FEAT_LMSLE] || model.has[FEAT_CLZERO]);
	assert_int_equal(reg(0, 0, B), 0x756e6547);
	assert_int_equal(reg(1, 0, A) >> 8 & 15, 6);
	assert_int_equal(reg(0x80000001, 0, D) & 0x1ff, 0);
}

/* ---- leaves --------------------------------------------------------------------------------------- */

static void beyond_the_last_leaf(void **state)
{
	must_parse("max,vendor=amd");
	assert_int_equal(reg(0x1000, 0, A) | reg(0x1000, 0, B), 0);
	must_parse("max,vendor=intel");
	c->n_cpus = 6;
	assert_int_equal(reg(0x1000, 1, B), 6); /* as leaf 1fh, sub-leaf 1 */
	assert_int_equal(reg(0x80000100, 1, B), 6);
	c->n_cpus = 1;
}

static void hypervisor_leaf(void **state)
{
	u32 r[4];
	must_parse("max");
	cpu_cpuid(c, 0x40000000, 0, r);
	assert_memory_equal(&r[1], "ring3 ring3 ", 12);
	assert_int_equal(r[0], 0x40000000);
	must_parse("max,-hypervisor");
	assert_int_equal(reg(0x40000000, 0, B), 0);
	assert_int_equal(reg(1, 0, C) >> 31, 0);
}

static bool apic_on;
static bool apic_read(void *arg, u32 msr, u64 *v)
{
	*v = 0xfee00000 | (apic_on ? 0x800 : 0);
	return msr == 0x1b;
}

static void bits_that_follow_state(void **state)
{
	must_parse("max");
	c->cr4 = 0;
	assert_int_equal(reg(1, 0, C) >> 27 & 1, 0);
	assert_int_equal(reg(7, 0, C) >> 4 & 1, 0);
	c->cr4 = CR4_OSXSAVE | CR4_PKE;
	assert_int_equal(reg(1, 0, C) >> 27 & 1, 1);
	assert_int_equal(reg(7, 0, C) >> 4 & 1, 1);
	c->cr4 = 0;
	hooks.apic_msr_read = apic_read;
	apic_on = false;
	assert_int_equal(reg(1, 0, D) >> 9 & 1, 0);
	apic_on = true;
	assert_int_equal(reg(1, 0, D) >> 9 & 1, 1);
	hooks.apic_msr_read = NULL;
	must_parse("max,vendor=intel");
	c->msr.misc_enable = 0;
	assert_int_equal(reg(1, 0, C) >> 3 & 1, 0);
	c->msr.misc_enable = 1 << 18;
	assert_int_equal(reg(1, 0, C) >> 3 & 1, 1);
}

static void topology(void **state)
{
	static const struct { unsigned n, shift; } of[] = { { 1, 0 }, { 2, 1 }, { 3, 2 }, { 4, 2 }, { 5, 3 }, { 64, 6 } };
	must_parse("max,vendor=amd");
	for (unsigned k = 0; k < ARRAY_LEN(of); k++) {
		c->n_cpus = of[k].n;
		c->index = of[k].n - 1;
		assert_int_equal(reg(0xb, 0, A), 0);
		assert_int_equal(reg(0xb, 0, B), 1);
		assert_int_equal(reg(0xb, 1, A), of[k].shift);
		assert_int_equal(reg(0xb, 1, B), of[k].n);
		assert_int_equal(reg(0xb, 1, C), 0x201);
		assert_int_equal(reg(0xb, 2, C), 2);
		assert_int_equal(reg(0xb, 7, D), c->index);
		assert_int_equal(reg(1, 0, B) >> 24, c->index);
		assert_int_equal(reg(1, 0, D) >> 28 & 1, of[k].n > 1);
		assert_int_equal(reg(0x80000008, 0, C), (of[k].n - 1) | of[k].shift << 12);
		assert_int_equal(reg(0x8000001d, 3, A) >> 14 & 0xfff, of[k].n - 1);
		assert_int_equal(reg(0x8000001e, 0, A), c->index);
	}
	must_parse("max,vendor=intel");
	c->n_cpus = 3;
	assert_int_equal(reg(4, 3, A) >> 26, 3);
	assert_int_equal(reg(4, 3, A) >> 14 & 0xfff, 3);
	assert_int_equal(reg(4, 0, A) >> 14 & 0xfff, 0);
	assert_int_equal(reg(4, 4, A), 0);
	c->n_cpus = 1;
	c->index = 0;
}

/* (ways)(partitions)(line)(sets) of each cache, in bytes. */
static void caches(void **state)
{
	static const u32 size[] = { 32 << 10, 32 << 10, 1 << 20, 16 << 20 };
	must_parse("max,vendor=intel");
	for (unsigned k = 0; k < 4; k++) {
		u32 b = reg(4, k, B), s = reg(4, k, C);
		assert_int_equal(((b >> 22) + 1) * ((b >> 12 & 0x3ff) + 1) * ((b & 0xfff) + 1) * (s + 1), size[k]);
	}
	must_parse("max,vendor=amd");
	assert_int_equal(reg(0x80000005, 0, C) >> 24, 32);
	assert_int_equal(reg(0x80000006, 0, C) >> 16, 1024);
	assert_int_equal(reg(0x80000006, 0, D) >> 18, 32); /* of 512 KiB */
}

static void xsave_leaf(void **state)
{
	static const struct { unsigned comp; u32 offset, size; } want[] = {
		{ 2, 576, 256 }, { 5, 1088, 64 }, { 6, 1152, 512 }, { 7, 1664, 1024 }, { 9, 2688, 8 },
	};
	must_parse("max");
	u32 end = 576, sum = 576;
	for (unsigned k = 0; k < ARRAY_LEN(want); k++) {
		if (!(model.xcr0_mask >> want[k].comp & 1))
			continue;
		assert_int_equal(reg(0xd, want[k].comp, A), want[k].size);
		assert_int_equal(reg(0xd, want[k].comp, B), want[k].offset);
		assert_int_equal(reg(0xd, want[k].comp, C), 0);
		end = want[k].offset + want[k].size;
		sum += want[k].size;
	}
	assert_int_equal(reg(0xd, 0, A), model.xcr0_mask);
	assert_int_equal(reg(0xd, 0, C), end);
	assert_int_equal(reg(0xd, 3, A) | reg(0xd, 3, B), 0);
	assert_int_equal(reg(0xd, 63, A), 0);
	c->xcr0 = 1;
	assert_int_equal(reg(0xd, 0, B), 576);
	c->xcr0 = model.xcr0_mask;
	assert_int_equal(reg(0xd, 0, B), end);
	assert_int_equal(reg(0xd, 1, B), sum);
	must_parse("max,-pku");
	c->xcr0 = model.xcr0_mask;
	assert_true(reg(0xd, 0, B) < 2688 + 8);
	c->xcr0 = 1;
	must_parse("base");
	assert_int_equal(reg(0xd, 0, A) | reg(0xd, 0, C), 0);
}

/* What Linux computes from leaf 15h, in 32 bits, is the TSC's rate to a millionth. */
static void tsc_leaf(void **state)
{
	static const u32 khz[] = { 2595636, 1000000, 3699999, 4194304, 999, 2000000, 3141592, 1 };
	for (unsigned k = 0; k < ARRAY_LEN(khz); k++) {
		struct clock clock = { .tsc_hz = khz[k] * 1000ull };
		assert_true(cpu_model_parse(&model, "max,vendor=intel", &clock, &err));
		assert_int_equal(model.tsc_khz, khz[k]);
		u32 den = reg(0x15, 0, A), num = reg(0x15, 0, B), crystal_khz = reg(0x15, 0, C) / 1000;
		assert_true(den && num);
		assert_true((u64)crystal_khz * num <= 0xffffffff);
		u64 got = (u64)crystal_khz * num / den;
		u64 off = got > khz[k] ? got - khz[k] : khz[k] - got;
		if (off > khz[k] / 1000000 + 1)
			fail_msg("%u kHz reads as %llu", khz[k], (unsigned long long)got);
	}
}

static void sizes_and_name(void **state)
{
	must_parse("max");
	assert_true((reg(0x80000008, 0, A) & 0xff) >= 40);
	assert_int_equal(reg(0x80000008, 0, A) >> 8 & 0xff, 57);
	assert_int_equal(reg(0x80000007, 0, D) >> 8 & 1, 1);
	must_parse("max,-la57");
	assert_int_equal(reg(0x80000008, 0, A) >> 8 & 0xff, 48);
	u32 name[12];
	for (unsigned k = 0; k < 3; k++)
		cpu_cpuid(c, 0x80000002 + k, 0, name + 4 * k);
	assert_non_null(strstr((char *)name, "ring3"));
}

/* Any leaf answers, and only with bits of has[] in the feature leaves. */
static void every_leaf_answers(void **state)
{
	must_parse("base,vendor=intel");
	u32 r[4];
	for (u32 leaf = 0; leaf < 0x60; leaf++)
		for (u32 sub = 0; sub < 70; sub++) {
			cpu_cpuid(c, leaf, sub, r);
			cpu_cpuid(c, 0x80000000 + leaf, sub, r);
			cpu_cpuid(c, 0xfffffff0 + leaf % 16, sub, r);
		}
	assert_int_equal(reg(7, 0, B) | reg(7, 0, C) | reg(7, 0, D), 0);
	assert_int_equal(reg(1, 0, C), 1u << 31);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(table_has_no_doubles), cmocka_unit_test(bits_follow_switches),
		cmocka_unit_test(dependents_go), cmocka_unit_test(needs_come), cmocka_unit_test(deterministic_time_has_no_chance),
		cmocka_unit_test(mistakes_are_named),
		cmocka_unit_test(vendors_differ), cmocka_unit_test(beyond_the_last_leaf),
		cmocka_unit_test(hypervisor_leaf), cmocka_unit_test(bits_that_follow_state), cmocka_unit_test(topology),
		cmocka_unit_test(caches), cmocka_unit_test(xsave_leaf), cmocka_unit_test(tsc_leaf),
		cmocka_unit_test(sizes_and_name), cmocka_unit_test(every_leaf_answers),
	};
	return cmocka_run_group_tests(tests, up, down);
}
