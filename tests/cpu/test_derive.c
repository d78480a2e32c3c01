/* Reset, INIT and the derived state, against tables written from the manual. */
#include <stdio.h>

#include "cpu_rig.h"

static struct rig r;
static int start(void **state) { rig_start(&r, 2 << 20, "max"); return 0; }
static int stop(void **state) { rig_stop(&r); return 0; }

/* SDM vol. 3 table 9-1. */
static void power_on(void **state)
{
	struct cpu *c = r.c;
	assert_int_equal(c->rflags, 2);
	assert_int_equal(c->rip, 0xfff0);
	assert_int_equal(c->cr0, 0x60000010);
	assert_int_equal(c->cr2 | c->cr3 | c->cr4 | c->efer, 0);
	assert_int_equal(c->seg[S_CS].sel, 0xf000);
	assert_int_equal(c->seg[S_CS].base, 0xffff0000);
	for (unsigned s = S_ES; s < N_SREGS; s++) {
		assert_int_equal(c->seg[s].limit, 0xffff);
		assert_true(c->seg[s].attr & SEG_P);
		if (s != S_CS)
			assert_int_equal(c->seg[s].base | c->seg[s].sel, 0);
	}
	assert_int_equal(c->gdtr.limit, 0xffff);
	assert_int_equal(c->idtr.limit, 0xffff);
	assert_int_equal(c->dr[6], 0xffff0ff0);
	assert_int_equal(c->dr[7], 0x400);
	assert_int_equal(c->xcr0, 1);
	assert_int_equal(ld16(c->fxarea), 0x40);
	assert_int_equal(ld32(c->fxarea + 24), 0x1f80);
	unsigned family = (c->regs[R_DX] >> 8 & 15) == 15 ? 15 + (c->regs[R_DX] >> 20 & 255) : c->regs[R_DX] >> 8 & 15;
	assert_int_equal(family, r.model.family);
	assert_int_equal((c->regs[R_DX] >> 4 & 15) | (c->regs[R_DX] >> 12 & 0xf0), r.model.model);
	for (unsigned k = 0; k < 16; k++)
		assert_true(k == R_DX || c->regs[k] == 0);
	assert_int_equal(c->activity, ACT_RUN);
	assert_int_equal(c->cpl, 0);
	assert_int_equal(c->code_mode, CODE16);
	assert_int_equal(c->delivering, -1);
	assert_in_range(c->epoch, 1, 0xfff);
	struct cpu *ap = cpu_new(1, &r.mem, &r.clock, &r.model, &r.hooks);
	assert_int_equal(ap->activity, ACT_WAIT_SIPI);
	cpu_free(ap);
}

static void init_keeps(void **state)
{
	struct cpu *c = r.c;
	c->cr0 = CR0_PE | CR0_PG | CR0_NW | CR0_WP;
	c->efer = EFER_LMA | EFER_LME;
	c->cr3 = c->cr2 = 0x1000;
	c->cr4 = CR4_PAE;
	c->rflags = 0x3202;
	c->dr[0] = 5;
	c->xcr0 = 7;
	c->msr.star = 9;
	c->zmm[3][3] = 1;
	c->fxarea[40] = 2;
	c->pkru = 4;
	c->nmi_blocked = true;
	c->shadow = SHADOW_SS;
	rig_mode(&r, CODE64, 3);
	u64 epoch = c->epoch;
	cpu_reset(c, true);
	assert_int_equal(c->cr0, CR0_NW | CR0_ET);
	assert_int_equal(c->efer | c->cr3 | c->cr2 | c->cr4 | c->dr[0], 0);
	assert_int_equal(c->rflags, 2);
	assert_int_equal(c->cpl, 0);
	assert_int_equal(c->code_mode, CODE16);
	assert_int_equal(c->mmu, MMU_KERNEL);
	assert_int_not_equal(c->epoch, epoch);
	assert_int_equal(c->xcr0, 7);
	assert_int_equal(c->msr.star, 9);
	assert_int_equal(c->zmm[3][3], 1);
	assert_int_equal(c->fxarea[40], 2);
	assert_int_equal(c->pkru, 4);
	assert_false(c->nmi_blocked);
	assert_int_equal(c->slow, 0);
	cpu_reset(c, false);
	assert_int_equal(c->cr0, 0x60000010);
	assert_int_equal(c->xcr0, 1);
	assert_int_equal(c->msr.star, 0);
	assert_int_equal(c->zmm[3][3], 0);
	assert_int_equal(c->pkru, 0);
}

static void modes(void **state)
{
	struct cpu *c = r.c;
	rig_mode(&r, CODE32, 3);
	assert_int_equal(c->code_mode, CODE32);
	assert_int_equal(c->cpl, 3);
	assert_int_equal(c->sp_mask, 0xffffffff);
	/* The D bit of CS outlives CR0.PE, until CS is loaded. */
	c->cr0 &= ~(u64)CR0_PE;
	cpu_update_mode(c);
	assert_int_equal(c->code_mode, CODE32);
	assert_int_equal(c->cpl, 0);
	c->cr0 |= CR0_PE;
	c->seg[S_SS].attr &= ~(u32)SEG_DB;
	cpu_set_rflags(c, FL_VM, FL_VM);
	assert_int_equal(c->code_mode, CODE16);
	assert_int_equal(c->cpl, 3);
	assert_int_equal(c->sp_mask, 0xffff);
	assert_int_equal(c->mmu, MMU_USER);
	cpu_set_rflags(c, 0, FL_VM);
	c->efer = EFER_LMA;
	rig_mode(&r, CODE64, 0);
	assert_int_equal(c->code_mode, CODE64);
	assert_int_equal(c->sp_mask, ~0ull);
	c->efer = 0; /* L means nothing outside long mode */
	cpu_update_mode(c);
	assert_int_equal(c->code_mode, CODE16);
}

static void segments(void **state)
{
	struct cpu *c = r.c;
	rig_mode(&r, CODE32, 0);
	/* Type: which of read (1) and write (2) need no check; SDM vol. 3 3.4.5.1. */
	static const u8 fast[16] = {1, 1, 3, 3, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1};
	for (unsigned type = 0; type < 16; type++) {
		c->seg[S_DS].attr = SEG_P | SEG_S | type;
		c->seg[S_DS].base = 0x12345;
		cpu_update_segs(c);
		assert_int_equal(c->seg_fast >> (2 * S_DS) & 3, fast[type]);
		assert_int_equal(c->ebase[S_DS], 0x12345);
	}
	static const u32 bad[] = {SEG_S | 2, SEG_P | 2, SEG_P | SEG_S | SEG_UNUSABLE | 2};
	for (unsigned k = 0; k < ARRAY_LEN(bad); k++) {
		c->seg[S_DS].attr = bad[k];
		cpu_update_segs(c);
		assert_int_equal(c->seg_fast >> (2 * S_DS) & 3, 0);
	}
	c->seg[S_DS] = (struct segment){.attr = SEG_P | SEG_S | 2, .limit = 0xfffffffe};
	cpu_update_segs(c);
	assert_int_equal(c->seg_fast >> (2 * S_DS) & 3, 0);
	assert_true(c->seg_check);
	assert_int_equal(c->seg_fast >> (2 * S_NONE) & 3, 3);
	/* Real mode: 64-KiB segments are checked, unreal ones not. */
	c->cr0 = 0;
	c->seg[S_DS] = (struct segment){.attr = 0x93, .limit = 0xffff};
	c->seg[S_ES] = (struct segment){.attr = 0x93, .limit = 0xffffffff, .base = 0x400};
	cpu_update_mode(c);
	assert_int_equal(c->seg_fast >> (2 * S_DS) & 3, 0);
	assert_int_equal(c->seg_fast >> (2 * S_ES) & 3, 3);
	c->seg[S_ES].attr = 0x90; /* and no types */
	cpu_update_mode(c);
	assert_int_equal(c->seg_fast >> (2 * S_ES) & 3, 3);
	/* 64-bit: bases of FS and GS only; LMSLE brings the checks back. */
	c->efer = EFER_LMA;
	rig_mode(&r, CODE64, 0);
	for (unsigned s = S_ES; s <= S_GS; s++)
		c->seg[s].base = 0x1000 * (s + 1);
	cpu_update_segs(c);
	for (unsigned s = S_ES; s <= S_GS; s++)
		assert_int_equal(c->ebase[s], s < S_FS ? 0 : 0x1000 * (s + 1));
	assert_int_equal(c->ebase[S_NONE], 0);
	assert_false(c->seg_check);
	c->efer |= EFER_LMSLE;
	cpu_update_segs(c);
	assert_true(c->seg_check);
	assert_int_equal(c->seg_fast, 0);
}

static void mmu_index(void **state)
{
	struct cpu *c = r.c;
	for (unsigned k = 0; k < 64; k++) {
		unsigned cpl = k & 3;
		bool smap = k & 4, ac = k & 8, am = k & 16, dr = k & 32;
		c->cr4 = smap ? CR4_SMAP : 0;
		c->cr0 = CR0_PE | (am ? CR0_AM : 0);
		c->rflags = 2 | (ac ? FL_AC : 0);
		c->dr[7] = 0x400 | (dr ? 1u << 4 | 1u << 24 : 0); /* DR2, writes */
		rig_mode(&r, CODE32, cpl);
		enum mmu_index want = dr || (am && ac && cpl == 3) ? MMU_CHECK : cpl == 3 ? MMU_USER : smap && !ac ? MMU_SMAP : MMU_KERNEL;
		assert_int_equal(c->mmu, want);
		assert_ptr_equal(c->tlb, c->tlbs[want]);
	}
	c->rflags = 2;
	/* Instruction and I/O breakpoints, and disabled ones, are no data breakpoints. */
	for (unsigned rw = 0; rw < 4; rw++) {
		for (unsigned en = 0; en < 4; en++) {
			c->dr[7] = 0x400 | en << 6 | rw << 28;
			cpu_update_mode(c);
			assert_int_equal(c->mmu == MMU_CHECK, en && (rw & 1));
			assert_int_equal((c->slow & SLOW_DR7) != 0, en != 0);
		}
	}
}

static void nofpu(void **state)
{
	struct cpu *c = r.c;
	for (unsigned k = 0; k < 512; k++) {
		bool em = k & 1, ts = k & 2, mp = k & 4, fxsr = k & 8, osx = k & 16, sse = k & 32, avx = k & 64, z = k & 128, pe = k & 256;
		c->cr0 = (em ? CR0_EM : 0) | (ts ? CR0_TS : 0) | (mp ? CR0_MP : 0) | (pe ? CR0_PE : 0);
		c->cr4 = (fxsr ? CR4_OSFXSR : 0) | (osx ? CR4_OSXSAVE : 0);
		c->xcr0 = 1 | (sse ? 2 : 0) | (avx ? 4 : 0) | (z ? 0xe0 : 0);
		cpu_update_fpu(c);
		unsigned want[6] = {
			[FC_X87] = em || ts ? V_NM : 0,
			[FC_WAIT] = mp && ts ? V_NM : 0,
			[FC_MMX] = em ? V_UD : ts ? V_NM : 0,
			[FC_SSE] = em ? V_UD : !fxsr ? V_UD : ts ? V_NM : 0,
			[FC_AVX] = !pe || !osx || !sse || !avx ? V_UD : ts ? V_NM : 0,
			[FC_AVX512] = !pe || !osx || !sse || !avx || !z ? V_UD : ts ? V_NM : 0,
		};
		for (unsigned f = 0; f < 6; f++)
			assert_int_equal(c->nofpu[f], want[f]);
	}
}

static void events(void **state)
{
	struct cpu *c = r.c;
	for (unsigned k = 0; k < 64; k++) {
		bool intf = k & 1, sti = k & 2, ss = k & 4, nmi = k & 8, tf = k & 16, rf = k & 32;
		c->shadow = (sti ? SHADOW_STI : 0) | (ss ? SHADOW_SS : 0);
		c->nmi_blocked = nmi;
		c->slow = SLOW_DR7;
		cpu_set_rflags(c, 0, FL_IF | FL_TF | FL_RF);
		cpu_set_rflags(c, (intf ? FL_IF : 0) | (tf ? FL_TF : 0) | (rf ? FL_RF : 0) | FL_CF, FL_IF | FL_TF | FL_RF);
		assert_false(c->rflags & FL_CF); /* not in the mask */
		cpu_update_events(c);
		assert_int_equal((c->event_mask & EV_INTR) != 0, intf && !sti && !ss);
		assert_int_equal((c->event_mask & EV_NMI) != 0, !nmi && !ss && !sti);
		assert_int_equal(c->event_mask & (EV_EXIT | EV_TLB | EV_INIT), EV_EXIT | EV_TLB | EV_INIT);
		assert_int_equal(c->slow, (tf ? SLOW_TF : 0) | (rf ? SLOW_RF : 0) | (sti || ss ? SLOW_SHADOW : 0));
	}
	/* cpu_set_rflags tells who depends on it. */
	c->shadow = 0;
	cpu_set_rflags(c, 0, FL_IF);
	assert_false(c->event_mask & EV_INTR);
	cpu_set_rflags(c, FL_IF, FL_IF);
	assert_true(c->event_mask & EV_INTR);
	cpu_set_rflags(c, 0, FL_TF | FL_RF);
	assert_int_equal(c->slow, 0);
	cpu_set_rflags(c, FL_TF, FL_TF);
	assert_int_equal(c->slow, SLOW_TF);
	cpu_set_rflags(c, FL_RF, FL_RF | FL_TF);
	assert_int_equal(c->slow, SLOW_RF);
	cpu_post_event(c, EV_NMI | EV_EXIT);
	cpu_clear_event(c, EV_NMI);
	assert_int_equal(atomic_load(&c->events), EV_EXIT);
}

static void dump(void **state)
{
	char buf[4096], small[4096];
	r.c->regs[R_8] = 0xdeadbeef12345678;
	cpu_dump(r.c, buf, sizeof(buf));
	assert_non_null(strstr(buf, "r8  deadbeef12345678"));
	assert_non_null(strstr(buf, "real mode"));
	assert_non_null(strstr(buf, "cs   f000 base 00000000ffff0000"));
	assert_true(strlen(buf) < sizeof(buf) - 1);
	memset(small, 1, sizeof(small));
	cpu_dump(r.c, small, 50);
	assert_int_equal(strlen(small), 49);
	for (unsigned k = 50; k < sizeof(small); k++)
		assert_int_equal(small[k], 1);
}

#define T(name) cmocka_unit_test_setup_teardown(name, start, stop)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(power_on), T(init_keeps), T(modes), T(segments), T(mmu_index), T(nofpu), T(events), T(dump),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
