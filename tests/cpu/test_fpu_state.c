/* x87, SSE and extended state: what lies in memory is held against the host's own FXSAVE,
 * FNSTENV, FNSAVE and XSAVE of the same registers. */
#include "cpu_rig.h"

enum { RAM = 16 << 20, ROOT = 0x200000, PT = 0x203000, DATA = 0x400000, P = 1, W = 2 };
#define LIN 0x7f0000000000ull

static struct rig r;
static u32 rng = 7;
static u32 rnd(void) { return rng = rng * 1664525 + 1013904223, rng >> 8; }
static void fill(void *p, unsigned n)
{
	for (u8 *b = p; n--; b++)
		*b = (u8)rnd();
}
static u8 *area(void) { return (u8 *)rig_ram(&r, DATA); }

static u64 host_xcr0(void)
{
	u32 a, d, ax = 1, cx = 0, bx, dx;
	__asm__ volatile("cpuid" : "+a"(ax), "=b"(bx), "+c"(cx), "=d"(dx));
	if (!(cx & 1u << 27))
		return 0;
	__asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
	return (u64)d << 32 | a;
}
static bool host_has_xsavec(void)
{
	u32 a = 0xd, b, cx = 1, d;
	__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(cx), "=d"(d));
	return host_xcr0() && (a & 2);
}

static int start(void **state)
{
	rig_start(&r, RAM, "max");
	struct cpu *c = r.c;
	for (unsigned d = 0; d < 3; d++)
		rig_ram(&r, ROOT + 0x1000 * d)[d ? 0 : LIN >> 39 & 511] = (ROOT + 0x1000 * (d + 1)) | P | W;
	for (unsigned n = 0; n < 512; n++)
		rig_ram(&r, PT)[n] = (DATA + 0x1000 * n) | P | W;
	c->cr0 = CR0_PE | CR0_PG;
	c->cr3 = ROOT;
	c->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXSAVE;
	c->efer = EFER_LME | EFER_LMA;
	c->xcr0 = r.model.xcr0_mask;
	mmu_flush_all(c);
	rig_mode(&r, CODE64, 0);
	fpu_reset(c, false);
	return 0;
}
static int stop(void **state)
{
	fpu_save(r.c);
	rig_stop(&r);
	return 0;
}

/* Random, but such that the host takes it: valid MXCSR, everything masked or not as it comes. */
static void random_x87(struct cpu *c)
{
	bool live = c->fpu_live;
	fpu_save(c);
	fill(c->fxarea, 512);
	st16(c->fxarea, (u16)((rnd() & 0x1f3f) | 0x40));
	c->fxarea[5] = 0;
	memset(c->fxarea + 6, 0, 18); /* the host's own pointers */
	st32(c->fxarea + 24, rnd() & 0xffff);
	for (unsigned k = 0; k < 8; k++) {
		memset(c->fxarea + 32 + 16 * k + 10, 0, 6);
		if (rnd() & 1) /* of each class: zero, denormal, infinity or NaN */
			st16(c->fxarea + 32 + 16 * k + 8, rnd() & 1 ? 0x7fff : 0);
		if (!(rnd() & 3))
			st64(c->fxarea + 32 + 16 * k, 0);
	}
	c->fop = rnd() & 0x7ff;
	c->fip = (u64)rnd() << 20;
	c->fdp = (u64)rnd() << 20;
	c->fcs = 0;
	c->fds = 0;
	if (live)
		fpu_load(c);
}

static void load_and_save(void **state)
{
	struct cpu *c = r.c;
	u8 before[160];
	for (unsigned k = 0; k < 200; k++) {
		u16 fcw;
		u32 mxcsr;
		random_x87(c);
		fpu_load(c);
		__asm__ volatile("fnstcw %0\n\tstmxcsr %1" : "=m"(fcw), "=m"(mxcsr));
		assert_int_equal(fcw, ld16(c->fxarea));
		assert_int_equal(mxcsr, ld32(c->fxarea + 24));
		fpu_save(c);
		memcpy(before, c->fxarea, 160);
		fpu_load(c);
		fpu_load(c); /* twice is as once */
		memset(c->fxarea, 0, 512);
		fpu_save(c);
		assert_memory_equal(c->fxarea, before, 28);
		assert_memory_equal(c->fxarea + 32, before + 32, 128);
		__asm__ volatile("fnstcw %0\n\tstmxcsr %1" : "=m"(fcw), "=m"(mxcsr));
		assert_int_equal(fcw, 0x37f); /* the host has its own again */
		assert_int_equal(mxcsr, 0x1f80);
	}
}

static void power_on_and_fninit(void **state)
{
	struct cpu *c = r.c;
	for (unsigned live = 0; live < 2; live++) {
		random_x87(c);
		if (live)
			fpu_load(c);
		u8 regs[128];
		fpu_save(c);
		memcpy(regs, c->fxarea + 32, 128);
		unsigned top = ld16(c->fxarea + 2) >> 11 & 7;
		u32 mxcsr = ld32(c->fxarea + 24);
		if (live)
			fpu_load(c);
		fpu_reset(c, true);
		assert_int_equal(c->fpu_live, live);
		fpu_save(c);
		assert_int_equal(ld16(c->fxarea), 0x37f);
		assert_int_equal(ld16(c->fxarea + 2), 0);
		assert_int_equal(c->fxarea[4], 0);
		assert_int_equal(ld32(c->fxarea + 24), mxcsr);
		assert_int_equal(c->fip | c->fdp | c->fop, 0);
		for (unsigned k = 0; k < 8; k++) /* TOP is 0 now: the registers stay, their names have moved */
			assert_memory_equal(c->fxarea + 32 + 16 * k, regs + 16 * ((k - top) & 7), 10);
		if (live)
			fpu_load(c);
		fpu_reset(c, false);
		fpu_save(c);
		assert_int_equal(ld16(c->fxarea), 0x40);
		assert_int_equal(c->fxarea[4], 0xff);
		assert_int_equal(ld32(c->fxarea + 24), 0x1f80);
		assert_int_equal(ld64(c->fxarea + 32), 0);
	}
}

static void fxsave(void **state)
{
	struct cpu *c = r.c;
	u8 host[512] __attribute__((aligned(64)));
	for (unsigned k = 0; k < 300; k++) {
		bool wide = k & 1, code64 = !(k & 2), live = k & 4;
		rig_mode(&r, code64 ? CODE64 : CODE32, 0);
		u64 lin = code64 ? LIN : 0;
		if (!code64) { /* the same page at linear 0 in compatibility mode */
			rig_ram(&r, ROOT)[0] = (ROOT + 0x1000) | P | W;
			mmu_flush_all(c);
		}
		random_x87(c);
		fill(c->zmm, sizeof(c->zmm));
		c->fcs = 0x1234;
		c->fds = 0x5678;
		c->fip = 0x1122334455667788;
		c->fdp = 0x99aabbccddeeff00;
		c->fop = 0x5a5;
		fpu_load(c);
		__asm__ volatile("fxsave64 %0" : "=m"(host));
		if (!live)
			fpu_save(c);
		memset(area(), 0xaa, 1024);
		assert_int_equal(RIG_TRY(c, fpu_fxsave(c, lin, wide ? 8 : 4)), -1);
		u8 *a = area();
		assert_memory_equal(a, host, 6);
		assert_int_equal(ld16(a + 6), 0x5a5);
		if (wide) {
			assert_int_equal(ld64(a + 8), c->fip);
			assert_int_equal(ld64(a + 16), c->fdp);
		} else {
			assert_int_equal(ld64(a + 8), 0x123455667788);
			assert_int_equal(ld64(a + 16), 0x5678ddeeff00);
		}
		assert_int_equal(ld32(a + 24), ld32(host + 24));
		assert_int_equal(ld32(a + 28), fpu_mxcsr_mask(c));
		assert_memory_equal(a + 32, host + 32, 128);
		for (unsigned x = 0; x < (code64 ? 16u : 8u); x++)
			assert_memory_equal(a + 160 + 16 * x, c->zmm[x], 16);
		for (unsigned x = code64 ? 416 : 288; x < 1024; x++)
			assert_int_equal(a[x], 0xaa);
		/* And back into a processor that has something else. */
		u8 upper[16];
		memcpy(upper, c->zmm[0] + 16, 16);
		u8 image[512];
		memcpy(image, a, 512);
		random_x87(c);
		for (unsigned x = 0; x < 32; x++)
			memset(c->zmm[x], 0, 16);
		c->fip = c->fdp = 0;
		c->fcs = c->fds = 1;
		c->fop = 0;
		assert_int_equal(RIG_TRY(c, fpu_fxrstor(c, lin, wide ? 8 : 4)), -1);
		assert_memory_equal(c->zmm[0] + 16, upper, 16);
		assert_int_equal(c->fcs, wide ? 0 : 0x1234);
		memset(area(), 0xaa, 512);
		assert_int_equal(RIG_TRY(c, fpu_fxsave(c, lin, wide ? 8 : 4)), -1);
		assert_memory_equal(area(), image, 512);
		if (!code64) { /* XMM8 and up were not touched */
			for (unsigned x = 0; x < 16; x++)
				assert_int_equal(c->zmm[8][x], 0);
		}
		fpu_save(c);
	}
}

static void fxsave_faults(void **state)
{
	struct cpu *c = r.c;
	memset(area(), 0, 1024);
	for (unsigned off = 1; off < 16; off++) {
		assert_int_equal(RIG_TRY(c, fpu_fxsave(c, LIN + off, 8)), V_GP);
		assert_int_equal(RIG_TRY(c, fpu_fxrstor(c, LIN + off, 8)), V_GP);
	}
	assert_int_equal(RIG_TRY(c, fpu_fxsave(c, LIN + 16, 8)), -1);
	/* Reserved bits of MXCSR. */
	for (unsigned bit = 0; bit < 32; bit++) {
		st32(area() + 16 + 24, 1u << bit);
		int v = RIG_TRY(c, fpu_fxrstor(c, LIN + 16, 8));
		assert_int_equal(v, bit < 16 || (bit == 17 && cpu_has(c, FEAT_MISALIGNSSE)) ? -1 : V_GP);
	}
	/* A page that is not there: nothing changed on either side. */
	rig_ram(&r, PT)[1] = 0;
	mmu_flush_all(c);
	memset(area() + 0xf00, 0x77, 256);
	u8 before[512];
	memcpy(before, c->fxarea, 512);
	assert_int_equal(RIG_TRY(c, fpu_fxsave(c, LIN + 0xf00, 8)), V_PF);
	assert_int_equal(c->exc.cr2, LIN + 0x1000);
	assert_int_equal(area()[0xf00], 0x77);
	assert_int_equal(RIG_TRY(c, fpu_fxrstor(c, LIN + 0xf00, 8)), V_PF);
	assert_memory_equal(c->fxarea, before, 512);
}

/* ---- environments ------------------------------------------------------------------------------- */

static void environment(void **state)
{
	struct cpu *c = r.c;
	u8 h32[108], h16[94], *a = area();
	for (unsigned k = 0; k < 400; k++) {
		bool live = k & 1, save = k & 2, narrow = k & 4;
		unsigned n = narrow ? 14 : 28;
		random_x87(c);
		fpu_load(c);
		u8 keep[512] __attribute__((aligned(64)));
		__asm__ volatile("fxsave64 %0" : "=m"(keep));
		__asm__ volatile("fnsave %0\n\tfrstor %0" : "=m"(h32));
		__asm__ volatile("data16 fnsave %0" : "=m"(h16));
		__asm__ volatile("fxrstor64 %0" :: "m"(keep));
		if (!live)
			fpu_save(c);
		c->fcs = 0x1234;
		c->fds = 0x5678;
		memset(a, 0xaa, 256);
		assert_int_equal(RIG_TRY(c, fpu_fnstenv(c, LIN + 3, narrow ? 2 : 4, save)), -1);
		assert_int_equal(c->fpu_live, live);
		a += 3;
		if (narrow) {
			assert_memory_equal(a, h16, 6);
			assert_int_equal(ld16(a + 6), c->fip & (save ? 0 : 0xffff));
			assert_int_equal(ld16(a + 8), 0x1234);
			assert_int_equal(ld16(a + 12), 0x5678);
		} else {
			assert_memory_equal(a, h32, 12);
			assert_int_equal(ld16(a + 16), 0x1234);
			assert_int_equal(ld16(a + 24), 0x5678);
			assert_int_equal(ld16(a + 26), 0xffff);
			if (!save) {
				assert_int_equal(ld32(a + 12), (u32)c->fip);
				assert_int_equal(ld16(a + 18), c->fop);
				assert_int_equal(ld32(a + 20), (u32)c->fdp);
			}
		}
		if (save)
			assert_memory_equal(a + n, h32 + 28, 80);
		assert_int_equal(a[save ? n + 80 : n], 0xaa);
		/* Afterwards: FNINIT's state, or all exceptions masked. */
		fpu_save(c);
		if (save) {
			assert_int_equal(ld16(c->fxarea), 0x37f);
			assert_int_equal(ld16(c->fxarea + 2), 0);
			assert_int_equal(c->fxarea[4], 0);
			assert_int_equal(c->fip, 0);
		} else {
			assert_int_equal(ld16(c->fxarea), ld16(keep) | 0x3f);
			assert_int_equal(ld16(c->fxarea + 2), ld16(keep + 2) & 0x7f7f); /* ES and B are gone */
			assert_memory_equal(c->fxarea + 32, keep + 32, 128);
		}
		/* Restored into another state, and as the host does it. */
		random_x87(c);
		fpu_load(c);
		u8 other[512] __attribute__((aligned(64))), want[512] __attribute__((aligned(64)));
		__asm__ volatile("fxsave64 %0" : "=m"(other));
		u8 scratch[28];
		if (save)
			__asm__ volatile("fnstenv %2\n\tfrstor %1\n\tfxsave64 %0" : "=m"(want) : "m"(h32), "m"(scratch));
		else
			__asm__ volatile("fnstenv %2\n\tfldenv %1\n\tfxsave64 %0" : "=m"(want) : "m"(h32), "m"(scratch));
		__asm__ volatile("fxrstor64 %0" :: "m"(other));
		if (!live)
			fpu_save(c);
		assert_int_equal(RIG_TRY(c, fpu_fldenv(c, LIN + 3, narrow ? 2 : 4, save)), -1);
		assert_int_equal(c->fcs, 0x1234);
		assert_int_equal(c->fds, 0x5678);
		fpu_save(c);
		assert_memory_equal(c->fxarea, want, 6);
		assert_memory_equal(c->fxarea + 32, want + 32, 128);
		assert_int_equal(ld32(c->fxarea + 24), ld32(other + 24));
		a -= 3;
	}
}

static void environment_real(void **state)
{
	struct cpu *c = r.c;
	u8 *a = area();
	c->cr0 = 0;
	c->efer = 0;
	rig_mode(&r, CODE16, 0);
	c->cr0 = 0;
	cpu_update_mode(c);
	mmu_flush_all(c);
	for (unsigned narrow = 0; narrow < 2; narrow++) {
		c->fcs = 0xf123;
		c->fip = 0x4567;
		c->fds = 0x2345;
		c->fdp = 0x9abc;
		c->fop = 0x6d9;
		u32 ip = 0xf1230 + 0x4567, dp = 0x23450 + 0x9abc;
		memset(a, 0, 128);
		assert_int_equal(RIG_TRY(c, fpu_fnstenv(c, DATA, narrow ? 2 : 4, false)), -1);
		if (narrow) {
			assert_int_equal(ld16(a + 6), ip & 0xffff);
			assert_int_equal(ld16(a + 8), (ip >> 16) << 12 | 0x6d9);
			assert_int_equal(ld16(a + 10), dp & 0xffff);
			assert_int_equal(ld16(a + 12), (dp >> 16) << 12);
		} else {
			assert_int_equal(ld16(a + 12), ip & 0xffff);
			assert_int_equal(ld32(a + 16), (ip >> 16) << 12 | 0x6d9);
			assert_int_equal(ld16(a + 20), dp & 0xffff);
			assert_int_equal(ld32(a + 24), (dp >> 16) << 12);
		}
		c->fcs = c->fds = c->fop = 0;
		c->fip = c->fdp = 0;
		assert_int_equal(RIG_TRY(c, fpu_fldenv(c, DATA, narrow ? 2 : 4, false)), -1);
		assert_int_equal(((u32)c->fcs << 4) + c->fip, ip);
		assert_int_equal(((u32)c->fds << 4) + c->fdp, dp);
		assert_int_equal(c->fop, 0x6d9);
	}
}

static void environment_faults(void **state)
{
	struct cpu *c = r.c;
	u8 before[512];
	rig_ram(&r, PT)[1] = 0;
	mmu_flush_all(c);
	random_x87(c);
	fpu_load(c);
	fpu_save(c);
	memcpy(before, c->fxarea, 512);
	u64 fip = c->fip;
	memset(area() + 0xff0, 0x77, 16);
	for (unsigned k = 0; k < 4; k++) {
		fpu_load(c);
		int v = RIG_TRY(c, k & 1 ? fpu_fnstenv(c, LIN + 0xff8, 4, k & 2) : fpu_fldenv(c, LIN + 0xff8, 4, k & 2));
		fpu_save(c);
		assert_int_equal(v, V_PF);
		assert_memory_equal(c->fxarea, before, 160);
		assert_int_equal(c->fip, fip);
		assert_int_equal(area()[0xff8], 0x77);
	}
}

/* ---- XSAVE ------------------------------------------------------------------------------------------ */

static const struct { unsigned comp, first, stride, reg_off, bytes; } part[] = {
	/* comp, first register, ..., which bytes of each 64-byte register */
	{1, 0, 64, 0, 16}, {2, 0, 64, 16, 16}, {6, 0, 64, 32, 32}, {7, 16, 64, 0, 64}};

/* Each component in its initial configuration or not. */
static void random_vectors(struct cpu *c, u64 used)
{
	memset(c->zmm, 0, sizeof(c->zmm));
	memset(c->k, 0, sizeof(c->k));
	for (unsigned k = 0; k < ARRAY_LEN(part); k++) {
		for (unsigned n = 0; n < 16 && (used >> part[k].comp & 1); n++)
			fill(c->zmm[part[k].first + n] + part[k].reg_off, part[k].bytes);
	}
	if (used >> 5 & 1)
		fill(c->k, sizeof(c->k));
	c->pkru = used >> 9 & 1 ? rnd() | 1 : 0;
}

static void xinuse(void **state)
{
	struct cpu *c = r.c;
	fpu_reset(c, false);
	assert_int_equal(fpu_xinuse(c), 1); /* power-on: FCW is 40h */
	fpu_reset(c, true);
	assert_int_equal(fpu_xinuse(c), 0);
	for (unsigned k = 0; k < ARRAY_LEN(part); k++) {
		for (unsigned n = 0; n < 16 * part[k].bytes; n++) {
			u8 *b = c->zmm[part[k].first + n / part[k].bytes] + part[k].reg_off + n % part[k].bytes;
			*b = 1;
			assert_int_equal(fpu_xinuse(c), 1u << part[k].comp);
			rig_mode(&r, CODE32, 0); /* registers that need 64-bit mode count also where they cannot move */
			assert_int_equal(fpu_xinuse(c), 1u << part[k].comp);
			rig_mode(&r, CODE64, 0);
			*b = 0;
		}
	}
	c->k[7] = 1ull << 63;
	assert_int_equal(fpu_xinuse(c), 1u << 5);
	c->k[7] = 0;
	c->pkru = 4;
	assert_int_equal(fpu_xinuse(c), 1u << 9);
	c->pkru = 0;
	c->fip = 1ull << 40;
	assert_int_equal(fpu_xinuse(c), 1);
	c->fip = 0;
	c->fds = 1;
	assert_int_equal(fpu_xinuse(c), 1);
	c->fds = 0;
	c->fxarea[32 + 7 * 16 + 9] = 1;
	assert_int_equal(fpu_xinuse(c), 1);
	c->fxarea[32 + 7 * 16 + 9] = 0;
	st32(c->fxarea + 24, 0x1fa0); /* MXCSR is not part of it */
	assert_int_equal(fpu_xinuse(c), 0);
}

/* The guest's vectors into the host's, then the host's own XSAVE or XSAVEC. */
static void host_save(struct cpu *c, u64 rfbm, bool compact, u8 *out)
{
	u64 x = host_xcr0();
#define LOAD(op, n, suffix) __asm__ volatile(op " %0, %%" suffix #n :: "m"(c->zmm[n]))
#define EACH16(op, s, M) M(op, 0, s); M(op, 1, s); M(op, 2, s); M(op, 3, s); M(op, 4, s); M(op, 5, s); M(op, 6, s); \
	M(op, 7, s); M(op, 8, s); M(op, 9, s); M(op, 10, s); M(op, 11, s); M(op, 12, s); M(op, 13, s); M(op, 14, s); M(op, 15, s)
	if ((x & 0xe6) == 0xe6) {
		EACH16("vmovdqu64", "zmm", LOAD);
		LOAD("vmovdqu64", 16, "zmm"); LOAD("vmovdqu64", 17, "zmm"); LOAD("vmovdqu64", 18, "zmm"); LOAD("vmovdqu64", 19, "zmm");
		LOAD("vmovdqu64", 20, "zmm"); LOAD("vmovdqu64", 21, "zmm"); LOAD("vmovdqu64", 22, "zmm"); LOAD("vmovdqu64", 23, "zmm");
		LOAD("vmovdqu64", 24, "zmm"); LOAD("vmovdqu64", 25, "zmm"); LOAD("vmovdqu64", 26, "zmm"); LOAD("vmovdqu64", 27, "zmm");
		LOAD("vmovdqu64", 28, "zmm"); LOAD("vmovdqu64", 29, "zmm"); LOAD("vmovdqu64", 30, "zmm"); LOAD("vmovdqu64", 31, "zmm");
#define KLOAD(n) __asm__ volatile("kmovq %0, %%k" #n :: "m"(c->k[n]))
		KLOAD(0); KLOAD(1); KLOAD(2); KLOAD(3); KLOAD(4); KLOAD(5); KLOAD(6); KLOAD(7);
	} else if ((x & 6) == 6) {
		EACH16("vmovdqu", "ymm", LOAD);
	} else {
		EACH16("movdqu", "xmm", LOAD);
	}
	if (compact)
		__asm__ volatile("xsavec64 (%0)" :: "r"(out), "a"((u32)rfbm), "d"(0) : "memory", "xmm0", "xmm1", "xmm2", "xmm3",
			"xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
	else
		__asm__ volatile("xsave64 (%0)" :: "r"(out), "a"((u32)rfbm), "d"(0) : "memory", "xmm0", "xmm1", "xmm2", "xmm3",
			"xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

static void set_mask(struct cpu *c, u64 rfbm)
{
	c->regs[R_AX] = (u32)rfbm;
	c->regs[R_DX] = rfbm >> 32;
}

static void xsave_against_host(void **state)
{
	struct cpu *c = r.c;
	u64 host = host_xcr0() & c->xcr0 & ~(1ull << 9);
	if (!host)
		skip();
	/* The standard offsets are the processor's own choice: take the host's. */
	for (unsigned k = 2; k < 16; k++) {
		u32 ax = 0xd, bx, cx = k, dx;
		__asm__ volatile("cpuid" : "+a"(ax), "=b"(bx), "+c"(cx), "=d"(dx));
		if (!(host >> k & 1))
			continue;
		assert_int_equal(ax, r.model.xsave_size[k]);
		r.model.xsave_offset[k] = bx;
	}
	static u8 want[4096] __attribute__((aligned(64)));
	u8 *a = area();
	unsigned compared = 0;
	for (unsigned k = 0; k < 4000; k++) {
		bool compact = (k & 1) && host_has_xsavec();
		u64 rfbm = rnd() & host, used = rnd() & host;
		random_x87(c);
		c->fop = 0;
		c->fip = c->fdp = 0;
		if (!(rnd() & 3)) {
			fpu_reset(c, true);
			memset(c->fxarea + 32, 0, 128);
			if (rnd() & 1)
				st32(c->fxarea + 24, 0x1f80);
		}
		random_vectors(c, used);
		set_mask(c, rfbm);
		memset(a, 0xaa, 4096);
		memset(a + 512, 0, 64);
		st64(a + 512, rnd() & host);
		memcpy(want, a, 4096);
		fpu_load(c);
		host_save(c, rfbm, compact, want);
		assert_int_equal(RIG_TRY(c, fpu_xsave(c, LIN, 8, compact ? XS_C : XS_SAVE)), -1);
		fpu_save(c);
		/* The host may count a component as in use that holds zeros; never the other way. */
		u64 mine = ld64(a + 512), its = ld64(want + 512);
		assert_int_equal(mine & ~its, 0);
		assert_int_equal((mine ^ its) & ~rfbm, 0);
		assert_int_equal(ld64(a + 520), ld64(want + 520));
		if (compact && mine != its)
			continue;
		compared++;
		st64(want + 512, mine);
		memcpy(want + 28, a + 28, 4); /* the mask of MXCSR is the model's */
		if (memcmp(a, want, 4096)) {
			unsigned x = 0;
			while (a[x] == want[x])
				x++;
			fail_msg("rfbm %llx used %llx compact %d: byte %u is %02x, the host's %02x", (unsigned long long)rfbm,
				 (unsigned long long)used, compact, x, a[x], want[x]);
		}
	}
	assert_true(compared > 1000);
}

/* What is saved comes back, in every form; what is not asked for stays; what is not in the image
 * becomes initial. */
static void xrstor(void **state)
{
	struct cpu *c = r.c;
	static u8 zmm[32][64], k8[64], fx[512], zmm2[32][64], k82[64], fx2[512];
	for (unsigned n = 0; n < 4000; n++) {
		enum xsave_kind kind = n & 3;
		bool live = n & 4, code64 = n & 8;
		u64 xcr0 = c->xcr0, rfbm = rnd() & xcr0, used = rnd() & xcr0, asked = rnd() & xcr0;
		if (!code64) {
			rig_ram(&r, ROOT)[0] = (ROOT + 0x1000) | P | W;
			mmu_flush_all(c);
		}
		rig_mode(&r, code64 ? CODE64 : CODE32, 0);
		u64 lin = code64 ? LIN : 0;
		unsigned regs = code64 ? 16 : 8;
		random_x87(c);
		random_vectors(c, used);
		fpu_load(c);
		fpu_save(c);
		u32 pkru = c->pkru;
		memcpy(zmm, c->zmm, sizeof(zmm));
		memcpy(k8, c->k, 64);
		memcpy(fx, c->fxarea, 512);
		memset(area(), 0xaa, 4096);
		memset(area() + 512, 0, 64);
		if (live)
			fpu_load(c);
		set_mask(c, rfbm);
		assert_int_equal(RIG_TRY(c, fpu_xsave(c, lin, 8, kind)), -1);
		u64 bv = ld64(area() + 512);
		bool mxcsr_counts = kind >= XS_C && ld32(fx + 24) != 0x1f80;
		assert_int_equal(bv, rfbm & (used | 1 | (mxcsr_counts ? 2 : 0)));
		if (kind < XS_C && !(rfbm & 6))
			st32(area() + 24, 0x1f80); /* was not saved: what the standard form would load */

		random_x87(c);
		random_vectors(c, ~0ull);
		fpu_load(c);
		fpu_save(c);
		u32 pkru2 = c->pkru;
		memcpy(zmm2, c->zmm, sizeof(zmm));
		memcpy(k82, c->k, 64);
		memcpy(fx2, c->fxarea, 512);
		if (live)
			fpu_load(c);
		set_mask(c, asked);
		assert_int_equal(RIG_TRY(c, fpu_xrstor(c, lin, 8, kind == XS_S)), -1);
		fpu_save(c);
		static const u8 zeros[64];
		for (unsigned p = 0; p < ARRAY_LEN(part); p++) {
			for (unsigned x = 0; x < 16; x++) {
				unsigned reg = part[p].first + x, o = part[p].reg_off;
				bool touched = (asked >> part[p].comp & 1) && (part[p].comp == 7 ? code64 : x < regs);
				const u8 *want = !touched ? zmm2[reg] + o : bv >> part[p].comp & 1 ? zmm[reg] + o : zeros;
				assert_memory_equal(c->zmm[reg] + o, want, part[p].bytes);
			}
		}
		assert_memory_equal(c->k, !(asked & 32) ? k82 : bv & 32 ? k8 : zeros, 64);
		assert_int_equal(c->pkru, !(asked >> 9 & 1) ? pkru2 : bv >> 9 & 1 ? pkru : 0);
		if (!(asked & 1)) {
			assert_memory_equal(c->fxarea, fx2, 5);
			assert_memory_equal(c->fxarea + 32, fx2 + 32, 128);
		} else if (bv & 1) {
			assert_memory_equal(c->fxarea, fx, 5);
			assert_memory_equal(c->fxarea + 32, fx + 32, 128);
		} else {
			assert_int_equal(ld32(c->fxarea), 0x37f);
			assert_int_equal(c->fxarea[4], 0);
			assert_int_equal(ld64(c->fxarea + 32), 0);
		}
		u32 mxcsr = ld32(c->fxarea + 24);
		if (kind < XS_C)
			assert_int_equal(mxcsr, asked & 6 ? (rfbm & 6 ? ld32(fx + 24) : 0x1f80) : ld32(fx2 + 24));
		else
			assert_int_equal(mxcsr, asked & 2 ? (bv & 2 ? ld32(fx + 24) : 0x1f80) : ld32(fx2 + 24));
	}
}

/* An image that is good, then one thing wrong with it. */
static void good_image(u64 bv, u64 xcomp)
{
	memset(area(), 0, 4096);
	st32(area() + 24, 0x1f80);
	st16(area(), 0x37f);
	st64(area() + 512, bv);
	st64(area() + 520, xcomp);
}
#define C63 (1ull << 63)

static void xrstor_refuses(void **state)
{
	struct cpu *c = r.c;
	u64 all = c->xcr0;
	set_mask(c, ~0ull);
	random_vectors(c, ~0ull);
	u8 kept = c->zmm[3][20];
	assert_int_not_equal(kept, 0);
#define REFUSED(supervisor) do { \
	assert_int_equal(RIG_TRY(c, fpu_xrstor(c, LIN, 8, supervisor)), V_GP); \
	assert_int_equal(c->zmm[3][20], kept); \
} while (0)
	for (unsigned bit = 0; bit < 64; bit++) {
		u64 b = 1ull << bit;
		if (!(all & b)) {
			good_image(b, 0);
			REFUSED(false);
			good_image(0, all | C63 | b);
			if (b != C63)
				REFUSED(false);
			good_image(b, all | C63);
			REFUSED(false);
			REFUSED(true);
		} else {
			good_image(b, (all & ~b) | C63); /* in XSTATE_BV, not in XCOMP_BV */
			REFUSED(false);
			REFUSED(true);
		}
		good_image(0, b);
		if (b != C63)
			REFUSED(false);
	}
	for (unsigned off = 16; off < 64; off++) {
		good_image(0, all | C63);
		area()[512 + off] = 1;
		REFUSED(false);
		REFUSED(true);
		good_image(0, 0);
		area()[512 + off] = 1;
		if (off < 24)
			REFUSED(false);
	}
	good_image(0, 0);
	REFUSED(true); /* XRSTORS takes the compacted form only */
	for (unsigned bit = 16; bit < 32; bit++) {
		if (bit == 17 && cpu_has(c, FEAT_MISALIGNSSE))
			continue;
		good_image(0, 0); /* standard: MXCSR counts whatever XSTATE_BV says */
		st32(area() + 24, 1u << bit);
		REFUSED(false);
		good_image(2, all | C63);
		st32(area() + 24, 1u << bit);
		REFUSED(false);
	}
	good_image(0, 0);
	for (unsigned off = 1; off < 64; off++) {
		assert_int_equal(RIG_TRY(c, fpu_xrstor(c, LIN + off, 8, false)), V_GP);
		assert_int_equal(RIG_TRY(c, fpu_xsave(c, LIN + off, 8, XS_SAVE)), V_GP);
	}
	c->cr0 |= CR0_TS;
	assert_int_equal(RIG_TRY(c, fpu_xrstor(c, LIN, 8, false)), V_NM);
	assert_int_equal(RIG_TRY(c, fpu_xsave(c, LIN, 8, XS_OPT)), V_NM);
	c->cr0 &= ~(u64)CR0_TS;
	c->cr4 &= ~(u64)CR4_OSXSAVE;
	assert_int_equal(RIG_TRY(c, fpu_xrstor(c, LIN, 8, false)), V_UD);
	assert_int_equal(RIG_TRY(c, fpu_xsave(c, LIN, 8, XS_SAVE)), V_UD);
	c->cr4 |= CR4_OSXSAVE;
	/* A page missing under the last component: neither side changes. */
	good_image(all, 0);
	memcpy((u8 *)rig_ram(&r, DATA) + 0x1000 - 1088, area(), 1088);
	rig_ram(&r, PT)[1] = 0;
	mmu_flush_all(c);
	assert_int_equal(RIG_TRY(c, fpu_xrstor(c, LIN + 0x1000 - 1088, 8, false)), V_PF);
	assert_int_equal(c->zmm[3][20], kept);
	memset((u8 *)rig_ram(&r, DATA) + 0x1000 - 1088, 0, 1088);
	assert_int_equal(RIG_TRY(c, fpu_xsave(c, LIN + 0x1000 - 1088, 8, XS_SAVE)), V_PF);
	for (unsigned x = 0x1000 - 1088; x < 0x1000; x++)
		assert_int_equal(area()[x], 0);
	good_image(0, 0);
	assert_int_equal(RIG_TRY(c, fpu_xrstor(c, LIN, 8, false)), -1); /* and the good one is taken */
	assert_int_equal(c->zmm[3][20], 0);
}

#define T(name) cmocka_unit_test_setup_teardown(name, start, stop)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(load_and_save), T(power_on_and_fninit), T(fxsave), T(fxsave_faults), T(environment), T(environment_real),
		T(environment_faults), T(xinuse), T(xsave_against_host), T(xrstor), T(xrstor_refuses),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
