/* Control registers by products of bits, each outcome held against the manual's conditions
 * written out here; debug registers and XCR0 likewise. */
#include "cpu_rig.h"

static struct rig r;
static struct cpu *c;
static u8 tpr;

static u8 get_tpr(void *arg) { return tpr; }
static void set_tpr(void *arg, u8 v) { tpr = v; }

static int up(void **state)
{
	rig_start(&r, 4 << 20, "max");
	c = r.c;
	r.hooks.get_tpr = get_tpr;
	r.hooks.set_tpr = set_tpr;
	return 0;
}
static int down(void **state)
{
	rig_stop(&r);
	return 0;
}

static void fresh(void)
{
	cpu_reset(c, false);
	memset(r.mem.ram, 0, 4096);
}

/* Long mode, 64-bit or compatibility code, without touching tables. */
static void long_mode(bool code64)
{
	fresh();
	c->cr0 = CR0_PE | CR0_PG | CR0_ET;
	c->cr4 = CR4_PAE;
	c->efer = EFER_LME | EFER_LMA;
	c->seg[S_CS].attr = 0x9b | (code64 ? SEG_L : SEG_DB);
	cpu_update_mode(c);
}

#define GP(call) assert_int_equal(RIG_TRY(c, call), V_GP)
#define OK(call) assert_int_equal(RIG_TRY(c, call), -1)

/* ---- CR0 -------------------------------------------------------------------------------------- */

/* From every state of (paging, LME, PAE, CS.L, PCIDE) to every (PE, PG, NW, CD). */
static void cr0_product(void **state)
{
	for (unsigned s = 0; s < 32; s++)
		for (unsigned n = 0; n < 16; n++) {
			bool pg = s & 1, lme = s & 2, pae = s & 4, cs_l = s & 8, pcide = s & 16;
			bool to_pe = n & 1, to_pg = n & 2, nw = n & 4, cd = n & 8;
			bool lma = pg && lme;
			if (lma && !pae)
				continue; /* cannot be */
			fresh();
			c->cr0 = CR0_PE | CR0_ET | (pg ? CR0_PG : 0);
			c->cr4 = (pae ? CR4_PAE : 0) | (pcide && lma ? CR4_PCIDE : 0);
			c->efer = (lme ? EFER_LME : 0) | (lma ? EFER_LMA : 0);
			c->seg[S_CS].attr = 0x9b | (cs_l ? SEG_L : SEG_DB);
			cpu_update_mode(c);
			u64 v = (to_pe ? CR0_PE : 0) | (to_pg ? CR0_PG : 0) | (nw ? CR0_NW : 0) | (cd ? CR0_CD : 0);
			bool gp = (to_pg && !to_pe) || (nw && !cd) || (!pg && to_pg && lme && (!pae || cs_l)) ||
				  (pg && !to_pg && ((pcide && lma) || (lma && cs_l)));
			u64 old = c->cr0;
			int got = RIG_TRY(c, cpu_write_cr0(c, v));
			if (got != (gp ? V_GP : -1))
				fail_msg("state %x to %x: %d", s, n, got);
			assert_int_equal(c->cr0, gp ? old : (v | CR0_ET));
			assert_int_equal(!!(c->efer & EFER_LMA), gp ? lma : to_pg && lme);
			assert_int_equal(!!cpu_long(c) && cs_l, cpu_code64(c));
		}
}

static void cr0_bits(void **state)
{
	fresh();
	OK(cpu_write_cr0(c, 0x7fffffffull & ~(u64)CR0_NW));
	assert_int_equal(c->cr0, CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_CD);
	GP(cpu_write_cr0(c, 1ull << 32 | CR0_PE));
	GP(cpu_write_cr0(c, 1ull << 63));
}

/* A 16-bit TSS cannot go to long mode, on Intel's. */
static void long_mode_and_the_tss(void **state)
{
	static const char *const vendors[] = { "GenuineIntel", "AuthenticAMD" };
	for (unsigned k = 0; k < 2; k++) {
		fresh();
		const struct cpu_model *was = c->model;
		struct cpu_model m = *was;
		memcpy(m.vendor, vendors[k], 12);
		c->model = &m;
		c->cr0 |= CR0_PE;
		c->cr4 = CR4_PAE;
		c->efer = EFER_LME;
		c->seg[S_TR].attr = SEG_P | 3;
		cpu_update_mode(c);
		if (k == 0) {
			GP(cpu_write_cr0(c, CR0_PE | CR0_PG));
			c->seg[S_TR].attr = SEG_P | 11;
		}
		OK(cpu_write_cr0(c, CR0_PE | CR0_PG));
		assert_true(cpu_long(c));
		c->model = was;
	}
}

/* What depends on CR0 follows it. */
static void cr0_derived(void **state)
{
	fresh();
	OK(cpu_write_cr0(c, CR0_PE | CR0_TS));
	assert_int_equal(c->nofpu[FC_X87], V_NM);
	OK(cpu_write_cr0(c, CR0_PE));
	assert_int_equal(c->nofpu[FC_X87], 0);
	u64 epoch = c->epoch;
	OK(cpu_write_cr0(c, CR0_PE | CR0_WP));
	assert_int_not_equal(c->epoch, epoch); /* translations were dropped */
}

/* ---- PAE's table ---------------------------------------------------------------------------------- */

static void pae_table(void **state)
{
	fresh();
	u64 *table = rig_ram(&r, 0x2000);
	c->cr0 |= CR0_PE;
	c->cr3 = 0x2000;
	table[0] = 0x3001;
	table[3] = 0x6001;
	OK(cpu_write_cr4(c, CR4_PAE));
	assert_int_equal(c->pdpte[3], 0);
	OK(cpu_write_cr0(c, CR0_PE | CR0_PG));
	assert_int_equal(c->pdpte[3], 0x6001);
	table[3] = 0x6003; /* reserved bit 1 */
	GP(cpu_write_cr3(c, 0x2000));
	assert_int_equal(c->pdpte[3], 0x6001);
	u64 cr0 = c->cr0;
	GP(cpu_write_cr0(c, cr0 | CR0_CD));
	assert_int_equal(c->cr0, cr0);
	OK(cpu_write_cr0(c, cr0 | CR0_WP)); /* does not load it */
	GP(cpu_write_cr4(c, CR4_PAE | CR4_PGE));
	assert_int_equal(c->cr4, CR4_PAE);
	table[3] = 0x6000;
	OK(cpu_write_cr3(c, 0x2000));
	table[3] = 0x9002; /* not present: nothing else counts */
	OK(cpu_write_cr3(c, 0x2018)); /* bits 4:3 are ignored */
	assert_int_equal(c->pdpte[3], 0x9002);
}

/* ---- CR3 --------------------------------------------------------------------------------------------- */

static void cr3(void **state)
{
	long_mode(true);
	u64 top = 1ull << c->model->phys_bits;
	OK(cpu_write_cr3(c, top - 4096));
	GP(cpu_write_cr3(c, top));
	GP(cpu_write_cr3(c, 1ull << 63)); /* only with PCIDE */
	GP(cpu_write_cr3(c, 1ull << 61));
	c->cr3 = 0;
	OK(cpu_write_cr4(c, CR4_PAE | CR4_PCIDE));
	OK(cpu_write_cr3(c, 1ull << 63 | 0x5007));
	assert_int_equal(c->cr3, 0x5007);
	/* Without bit 63 the PCID's translations go, with it they stay. */
	u64 epoch = c->epoch;
	OK(cpu_write_cr3(c, 1ull << 63 | 0x6008));
	OK(cpu_write_cr3(c, 1ull << 63 | 0x5007));
	assert_int_equal(c->epoch, epoch);
	OK(cpu_write_cr3(c, 0x5007));
	assert_int_not_equal(c->epoch, epoch);
}

/* ---- CR4 --------------------------------------------------------------------------------------------- */

static void cr4_reserved(void **state)
{
	static const struct { u32 bit; const char *off; } t[] = {
		{ CR4_VME, "max,-vme" }, { CR4_PVI, "max,-vme" }, { CR4_TSD, "max,-tsc" }, { CR4_DE, "max,-de" },
		{ CR4_PSE, "max,-pse" }, { CR4_PAE, "max,-pae" }, { CR4_MCE, "max,-mce" }, { CR4_PGE, "max,-pge" },
		{ CR4_OSFXSR, "max,-fxsr" }, { CR4_OSXMMEXCPT, "max,-sse" }, { CR4_UMIP, "max,-umip" },
		{ CR4_LA57, "max,-la57" }, { CR4_FSGSBASE, "max,-fsgsbase" }, { CR4_OSXSAVE, "max,-xsave" },
		{ CR4_SMEP, "max,-smep" }, { CR4_SMAP, "max,-smap" }, { CR4_PKE, "max,-pku" }, { CR4_PCE, NULL },
	};
	u64 known = CR4_PCIDE;
	for (unsigned k = 0; k < ARRAY_LEN(t); k++) {
		struct error e;
		known |= t[k].bit;
		fresh();
		OK(cpu_write_cr4(c, t[k].bit));
		assert_int_equal(c->cr4, t[k].bit);
		if (!t[k].off)
			continue;
		assert_true(cpu_model_parse(&r.model, t[k].off, NULL, &e));
		fresh();
		if (RIG_TRY(c, cpu_write_cr4(c, t[k].bit)) != V_GP)
			fail_msg("%s takes CR4 bit %#x", t[k].off, t[k].bit);
		assert_int_equal(c->cr4, 0);
		assert_true(cpu_model_parse(&r.model, "max", NULL, &e));
	}
	fresh();
	for (unsigned b = 0; b < 64; b++)
		if (!(known >> b & 1))
			GP(cpu_write_cr4(c, 1ull << b));
}

static void cr4_long_mode(void **state)
{
	long_mode(true);
	GP(cpu_write_cr4(c, 0)); /* PAE must stay */
	GP(cpu_write_cr4(c, CR4_PAE | CR4_LA57));
	c->cr3 = 1;
	GP(cpu_write_cr4(c, CR4_PAE | CR4_PCIDE));
	c->cr3 = 0x1000;
	OK(cpu_write_cr4(c, CR4_PAE | CR4_PCIDE));
	c->cr3 = 0x1001;
	OK(cpu_write_cr4(c, CR4_PAE | CR4_PCIDE | CR4_TSD)); /* PCIDE does not change: CR3 may be anything */
	fresh();
	GP(cpu_write_cr4(c, CR4_PAE | CR4_PCIDE)); /* not in long mode */
}

/* A bit that translations depend on drops them, another does not. */
static void cr4_flushes(void **state)
{
	static const u32 bits[] = { CR4_PGE, CR4_PSE, CR4_SMEP, CR4_PKE };
	for (unsigned k = 0; k < ARRAY_LEN(bits); k++) {
		long_mode(true);
		u64 epoch = c->epoch;
		OK(cpu_write_cr4(c, CR4_PAE | bits[k]));
		assert_int_not_equal(c->epoch, epoch);
	}
	long_mode(true);
	u64 epoch = c->epoch;
	OK(cpu_write_cr4(c, CR4_PAE | CR4_TSD | CR4_OSFXSR));
	assert_int_equal(c->epoch, epoch);
}

/* ---- CR8, reading ---------------------------------------------------------------------------------------- */

static void cr8_and_reading(void **state)
{
	fresh();
	OK(cpu_write_cr8(c, 9));
	assert_int_equal(tpr, 0x90);
	GP(cpu_write_cr8(c, 16));
	tpr = 0x5f;
	assert_int_equal(cpu_read_cr(c, 8), 5);
	c->cr2 = 0x1234;
	assert_int_equal(cpu_read_cr(c, 2), 0x1234);
	static const unsigned none[] = { 1, 5, 6, 7, 9, 15 };
	for (unsigned k = 0; k < ARRAY_LEN(none); k++)
		assert_int_equal(RIG_TRY(c, cpu_read_cr(c, none[k])), V_UD);
}

/* ---- debug registers ----------------------------------------------------------------------------------------- */

static void debug_values(void **state)
{
	fresh();
	OK(cpu_write_dr(c, 0, ~0ull));
	assert_int_equal(cpu_read_dr(c, 0), ~0ull);
	OK(cpu_write_dr(c, 6, 0));
	assert_int_equal(cpu_read_dr(c, 6), 0xffff0ff0);
	OK(cpu_write_dr(c, 6, 0xffffffff));
	assert_int_equal(cpu_read_dr(c, 6), 0xffffefff);
	OK(cpu_write_dr(c, 7, 0));
	assert_int_equal(cpu_read_dr(c, 7), 0x400);
	OK(cpu_write_dr(c, 7, 0xffffdfff));
	assert_int_equal(cpu_read_dr(c, 7), 0xffff07ff);
	assert_true(c->slow & SLOW_DR7);
	GP(cpu_write_dr(c, 6, 1ull << 32));
	GP(cpu_write_dr(c, 7, 1ull << 32));
}

static void debug_aliases(void **state)
{
	fresh();
	OK(cpu_write_dr(c, 5, 0x401));
	assert_int_equal(c->dr[7], 0x401);
	OK(cpu_write_dr(c, 4, 0x1));
	assert_int_equal(cpu_read_dr(c, 4), 0xffff0ff1);
	c->cr4 |= CR4_DE;
	assert_int_equal(RIG_TRY(c, cpu_read_dr(c, 4)), V_UD);
	assert_int_equal(RIG_TRY(c, cpu_write_dr(c, 5, 0)), V_UD);
	assert_int_equal(c->dr[7], 0x401);
}

static void debug_general_detect(void **state)
{
	fresh();
	OK(cpu_write_dr(c, 7, 0x2000));
	assert_int_equal(RIG_TRY(c, cpu_read_dr(c, 0)), V_DB);
	assert_int_equal(c->exc.dr6 & 0x2000, 0x2000);
	assert_int_equal(RIG_TRY(c, cpu_write_dr(c, 7, 0)), V_DB);
	assert_int_equal(c->dr[7], 0x2400);
}

/* Privilege, then an invalid opcode, then GD, then the value. */
static void debug_priority(void **state)
{
	fresh();
	OK(cpu_write_dr(c, 7, 0x2000));
	c->cpl = 3;
	GP(cpu_read_dr(c, 4));
	GP(cpu_write_dr(c, 7, 0));
	c->cr4 |= CR4_DE;
	GP(cpu_read_dr(c, 4));
	c->cpl = 0;
	assert_int_equal(RIG_TRY(c, cpu_read_dr(c, 4)), V_UD);
	assert_int_equal(RIG_TRY(c, cpu_write_dr(c, 5, 1ull << 32)), V_UD);
	assert_int_equal(RIG_TRY(c, cpu_write_dr(c, 5, 0)), V_UD);
	assert_int_equal(RIG_TRY(c, cpu_write_dr(c, 7, 1ull << 32)), V_DB);
}

/* ---- XCR0 ------------------------------------------------------------------------------------------------------ */

static void xcr0_product(void **state)
{
	for (u64 v = 0; v < 2048; v++) {
		u64 old = 1, m = c->model->xcr0_mask;
		bool x87 = v & 1, sse = v & 2, avx = v & 4;
		unsigned z = (unsigned)(v >> 5) & 7;
		bool ok = x87 && !(v & ~m) && (!avx || sse) && (!z || (z == 7 && avx));
		fresh();
		c->xcr0 = old;
		int got = RIG_TRY(c, cpu_write_xcr(c, 0, v));
		if (got != (ok ? -1 : V_GP))
			fail_msg("XCR0 %#llx: %d", (unsigned long long)v, got);
		assert_int_equal(c->xcr0, ok ? v : old);
	}
	GP(cpu_write_xcr(c, 1, 1));
	for (unsigned b = 11; b < 64; b++)
		GP(cpu_write_xcr(c, 0, 1 | 1ull << b));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(cr0_product), cmocka_unit_test(cr0_bits), cmocka_unit_test(long_mode_and_the_tss), cmocka_unit_test(cr0_derived),
		cmocka_unit_test(pae_table), cmocka_unit_test(cr3), cmocka_unit_test(cr4_reserved),
		cmocka_unit_test(cr4_long_mode), cmocka_unit_test(cr4_flushes), cmocka_unit_test(cr8_and_reading),
		cmocka_unit_test(debug_values), cmocka_unit_test(debug_aliases), cmocka_unit_test(debug_general_detect), cmocka_unit_test(debug_priority),
		cmocka_unit_test(xcr0_product),
	};
	return cmocka_run_group_tests(tests, up, down);
}
