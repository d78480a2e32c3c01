/* Floating-point state and its gates: #NM by TS, EM, MP; FXSAVE and XSAVE images and their #GPs;
 * XCR0's rules; CR4.OSFXSR and OSXSAVE; x87 errors with CR0.NE set and clear (IRQ 13); MXCSR. SDM
 * vol. 1 ch. 8, 10, 11.6, 13; vol. 3 2.5, 13.1. What instructions compute is tests/diff's business. */
#include "guest.h"

const char guest_name[] = "fpu";

static u8 area[4096] __attribute__((aligned(64))), area2[4096] __attribute__((aligned(64)));
static u16 w(const u8 *p, unsigned at) { return (u16)(p[at] | p[at + 1] << 8); }
static u32 d(const u8 *p, unsigned at) { return w(p, at) | (u32)w(p, at + 2) << 16; }
static void cr0(uptr set, uptr clear) { write_cr0((read_cr0() & ~clear) | set); }
static void cr4(uptr set, uptr clear) { write_cr4((read_cr4() & ~clear) | set); }
enum { MP = 2, EM = 4, TS_ = 8, NE = 32, OSFXSR = 0x200, OSXMM = 0x400, OSXSAVE = 0x40000 };

#define INSNS(X) X(x87, "fld1; fstp %%st(0)") X(wait, "fwait") X(mmx, "emms") X(sse, "xorps %%xmm0,%%xmm0") X(fxsave, "fxsave area") \
	X(ldmxcsr, "stmxcsr area") X(fnstsw, "fnstsw %%ax")
#define MAKE(n, text) static int do_##n(void) { return TRY(__asm__ volatile(text : : : "eax", "memory")); }
INSNS(MAKE)

static void gates(void)
{
	cr4(OSFXSR | OSXMM, 0);
	for (unsigned m = 0; m < 8; m++) {
		bool ts = m & 1, em = m & 2, mp = m & 4;
		cr0((ts ? TS_ : 0) | (em ? EM : 0) | (mp ? MP : 0), TS_ | EM | MP);
		int x87 = do_x87(), wait = do_wait(), mmx = do_mmx(), sse = do_sse(), fx = do_fxsave(), mx = do_ldmxcsr(), st = do_fnstsw();
		cr0(MP, TS_ | EM);
		const char *n = fmt("TS %d EM %d MP %d", ts, em, mp);
		check_eq(fmt("x87, %s", n), (u64)x87, (u64)(ts || em ? NM : NONE));
		check_eq(fmt("fnstsw, %s", n), (u64)st, (u64)(ts || em ? NM : NONE));
		check_eq(fmt("wait, %s", n), (u64)wait, (u64)(ts && mp ? NM : NONE));
		check_eq(fmt("mmx, %s", n), (u64)mmx, (u64)(em ? UD : ts ? NM : NONE));
		check_eq(fmt("sse, %s", n), (u64)sse, (u64)(em ? UD : ts ? NM : NONE));
		check_eq(fmt("stmxcsr, %s", n), (u64)mx, (u64)(em ? UD : ts ? NM : NONE));
		check_eq(fmt("fxsave, %s", n), (u64)fx, (u64)(em ? UD : ts ? NM : NONE));
	}
	cr4(0, OSFXSR);
	check_eq("sse without OSFXSR", (u64)do_sse(), UD);
	check_eq("stmxcsr without OSFXSR", (u64)do_ldmxcsr(), UD);
	check_eq("mmx without OSFXSR", (u64)do_mmx(), (u64)NONE);
	check_eq("fxsave without OSFXSR", (u64)do_fxsave(), (u64)NONE);
	cr4(OSFXSR, 0);
}

static void fxsave(void)
{
	u32 mx = 0x1fa0;
	u16 cw = 0x0e7f;
	memset(area, 0xee, sizeof(area));
	__asm__ volatile("fninit; fldcw %0; fld1; fldz; ldmxcsr %1; pcmpeqd %%xmm3,%%xmm3; fxsave %2" : : "m"(cw), "m"(mx), "m"(area));
	check_eq("fxsave: FCW", w(area, 0), cw);
	check_eq("fxsave: TOP 6 in FSW", w(area, 2) >> 11 & 7, 6);
	check_eq("fxsave: abridged tag word", area[4], 0xc0);
	check_eq("fxsave: MXCSR", d(area, 24), mx);
	check("fxsave: MXCSR_MASK says no more than 16 bits", d(area, 28) && !(d(area, 28) >> 18));
	check("fxsave: ST(0) is 0, ST(1) is 1", d(area, 32) == 0 && w(area, 40) == 0 && d(area, 52) == 0x80000000 && w(area, 56) == 0x3fff);
	check("fxsave: XMM3", d(area, 160 + 48) == 0xffffffff && d(area, 160 + 60) == 0xffffffff);
	check("fxsave: XMM8 and on are not written outside 64-bit mode", area[160 + 8 * 16] == 0xee);
	check("fxsave: bytes 464 to 511 are the program's", area[464] == 0xee && area[511] == 0xee);
	__asm__ volatile("fninit; pxor %%xmm3,%%xmm3; fxrstor %0; fxsave %1" : : "m"(area), "m"(area2));
	check("fxrstor", !memcmp(area, area2, 6) && !memcmp(area + 24, area2 + 24, 160 + 128 - 24));
	TRY(__asm__ volatile("fxsave %0" : : "m"(area[8])));
	check_trap("fxsave misaligned: #GP(0)", GP, 0);
	TRY(__asm__ volatile("fxrstor %0" : : "m"(area[8])));
	check_trap("fxrstor misaligned: #GP(0)", GP, 0);
	area[26] = 0xff;
	TRY(__asm__ volatile("fxrstor %0" : : "m"(area)));
	check_trap("fxrstor with MXCSR's reserved bits: #GP(0)", GP, 0);
	mx = 0x1f80;
	__asm__ volatile("fninit; ldmxcsr %0" : : "m"(mx));
	/* FNSAVE: both sizes; it initializes. */
	memset(area, 0xee, 128);
	__asm__ volatile("fninit; fld1; fnsave %0; fnstcw %1" : "=m"(area), "=m"(cw));
	check("fnsave: 108 bytes, FCW 37f, then initialized", w(area, 0) == 0x37f && w(area, 36 - 8) != 0xeeee && area[107] != 0xee && area[108] == 0xee && cw == 0x37f);
	check_eq("fnsave: full tag word", w(area, 8), 0x3fff);
	memset(area, 0xee, 128);
	__asm__ volatile("fld1; data16 fnsave %0" : "=m"(area));
	check("16-bit fnsave: 94 bytes", area[93] != 0xee && area[94] == 0xee && w(area, 4) == 0x3fff);
	__asm__ volatile("fninit; fld1; fnstenv %0" : "=m"(area));
	check_eq("fnstenv masks the exceptions", (({ __asm__ volatile("fnstcw %0" : "=m"(cw)); }), cw & 0x3f), 0x3f);
	__asm__ volatile("fninit");
}

static int xsetbv(u32 n, u64 v) { return TRY(__asm__ volatile("xsetbv" : : "c"(n), "a"((u32)v), "d"((u32)(v >> 32)))); }
static u64 xgetbv(u32 n) { u32 a, b; __asm__ volatile("xgetbv" : "=a"(a), "=d"(b) : "c"(n)); return (u64)b << 32 | a; }

static void xsave(void)
{
	if (!has(1, 2, 26)) {
		skip("XSAVE", "not there");
		return;
	}
	u32 r[4];
	TRY(__asm__ volatile("xgetbv" : : "c"(0) : "eax", "edx"));
	check_trap("xgetbv without OSXSAVE: #UD", UD, 0);
	xsetbv(0, 3);
	check_trap("xsetbv without OSXSAVE: #UD", UD, 0);
	TRY(__asm__ volatile("xsave %0" : : "m"(area), "a"(3), "d"(0)));
	check_trap("xsave without OSXSAVE: #UD", UD, 0);
	check("CPUID.OSXSAVE is clear", !has(1, 2, 27));
	cr4(OSXSAVE, 0);
	check("CPUID.OSXSAVE follows CR4", has(1, 2, 27));
	check_eq("XCR0 starts as 1", xgetbv(0), 1);
	cpuid(13, 0, r);
	u64 all = (u64)r[3] << 32 | r[0];
	bool avx = all & 4;
	static const struct { u64 v; const char *name; } bad[] = { { 0, "0" }, { 2, "no x87" }, { 5, "AVX without SSE" }, { 1ull << 62 | 1, "bit 62" }, { 0x27, "opmask alone" },
		{ 0xe3, "AVX-512 without AVX" }, { 1ull << 63 | 1, "bit 63" } };
	for (unsigned k = 0; k < ARRAY_LEN(bad); k++) {
		xsetbv(0, bad[k].v);
		check_trap(fmt("XCR0: %s: #GP(0)", bad[k].name), GP, 0);
	}
	xsetbv(1, 1);
	check_trap("XCR1: #GP(0)", GP, 0);
	TRY(__asm__ volatile("xgetbv" : : "c"(7) : "eax", "edx"));
	check_trap("xgetbv of XCR7: #GP(0)", GP, 0);
	extern const u8 user_xsetbv[], user_xgetbv[];
	user(user_xsetbv);
	check_trap("xsetbv at CPL 3: #GP(0)", GP, 0);
	user(user_xgetbv);
	check_trap("xgetbv at CPL 3", DONE, 0);
	check_eq("XCR0 := 3", (u64)xsetbv(0, 3), (u64)NONE);
	cpuid(13, 0, r);
	check_eq("CPUID.13.EBX: 576 bytes", r[1], 576);
	/* AVX by XCR0. */
	if (avx) {
		TRY(__asm__ volatile("vxorps %ymm0,%ymm0,%ymm0"));
		check_trap("AVX without XCR0.AVX: #UD", UD, 0);
		check_eq("XCR0 := 7", (u64)xsetbv(0, 7), (u64)NONE);
		cpuid(13, 0, r);
		check_eq("CPUID.13.EBX: 832 bytes", r[1], 832);
		TRY(__asm__ volatile("vxorps %ymm0,%ymm0,%ymm0"));
		check_trap("AVX with it", NONE, 0);
		cr0(TS_, 0);
		TRY(__asm__ volatile("vxorps %ymm0,%ymm0,%ymm0"));
		check_trap("AVX with TS: #NM", NM, 0);
		cr0(0, TS_);
		cr4(0, OSXSAVE);
		TRY(__asm__ volatile("vxorps %ymm0,%ymm0,%ymm0"));
		check_trap("AVX without OSXSAVE: #UD", UD, 0);
		cr4(OSXSAVE, 0);
	}
	/* XSAVE's image. */
	memset(area, 0, sizeof(area));
	memset(area + 512, 0xff, 8); /* XSTATE_BV as the program left it: requested bits replaced */
	memset(area + 520, 0, 56);
	__asm__ volatile("fninit; pcmpeqd %%xmm1,%%xmm1; xsave %0" : "+m"(area) : "a"(3), "d"(0));
	check("xsave: XMM1, XSTATE_BV of what is asked", d(area, 160 + 16) == 0xffffffff && (area[512] & 2) && area[512] >> 2 == 0x3f && area[513] == 0xff);
	memset(area + 512, 0, 64);
	__asm__ volatile("pxor %%xmm1,%%xmm1; pcmpeqd %%xmm2,%%xmm2; xrstor %1; movdqu %%xmm2,%0" : "=m"(area2) : "m"(area), "a"(2), "d"(0));
	check("xrstor: a clear XSTATE_BV bit initializes", d(area2, 0) == 0);
	TRY(__asm__ volatile("xsave %0" : : "m"(area[16]), "a"(3), "d"(0)));
	check_trap("xsave not at 64: #GP(0)", GP, 0);
	area[520] = 1;
	TRY(__asm__ volatile("xrstor %0" : : "m"(area), "a"(3), "d"(0)));
	check_trap("xrstor: XCOMP_BV not 0: #GP(0)", GP, 0);
	area[520] = 0;
	area[512 + 7] = 0x40;
	TRY(__asm__ volatile("xrstor %0" : : "m"(area), "a"(3), "d"(0)));
	check_trap("xrstor: XSTATE_BV beyond XCR0: #GP(0)", GP, 0);
	area[512 + 7] = 0;
	area[528] = 1;
	TRY(__asm__ volatile("xrstor %0" : : "m"(area), "a"(3), "d"(0)));
	check_trap("xrstor: header bytes 16 to 23 not 0: #GP(0)", GP, 0);
	area[528] = 0;
	area[512] = 2;
	area[26] = 0xff;
	TRY(__asm__ volatile("xrstor %0" : : "m"(area), "a"(2), "d"(0)));
	check_trap("xrstor: MXCSR's reserved bits: #GP(0)", GP, 0);
	area[26] = 0;
	cpuid(13, 1, r);
	if (r[0] & 2) {
		memset(area, 0, sizeof(area));
		__asm__ volatile("fninit; pcmpeqd %%xmm1,%%xmm1; xsavec %0" : "+m"(area) : "a"(3), "d"(0));
		check("xsavec: XCOMP_BV", area[527] == 0x80 && area[520] == 3);
		__asm__ volatile("pxor %%xmm1,%%xmm1; xrstor %1; movdqu %%xmm1,%0" : "=m"(area2) : "m"(area), "a"(3), "d"(0));
		check_eq("xrstor of the compacted form", d(area2, 0), 0xffffffff);
	}
	if (r[0] & 4) {
		__asm__ volatile("fninit; fld1"); /* its initial state may or may not be noticed */
		check_eq("xgetbv 1: in use", xgetbv(1) & 1, 1);
		__asm__ volatile("fninit");
	}
	if (avx) {
		memset(area, 0, sizeof(area));
		__asm__ volatile("vpcmpeqd %%xmm5,%%xmm5,%%xmm5; vinsertf128 $1,%%xmm5,%%ymm5,%%ymm5; xsave %0" : "+m"(area) : "a"(7), "d"(0));
		check("xsave: upper half of YMM5 at 576 + 80", d(area, 576 + 80) == 0xffffffff);
		__asm__ volatile("vzeroupper; xsave %0" : "+m"(area) : "a"(7), "d"(0));
		check("vzeroupper: initial state, or zeros", !(area[512] & 4) || d(area, 576 + 80) == 0);
	}
	xsetbv(0, 1);
	cr4(0, OSXSAVE);
}
__asm__(".text\n.globl user_xsetbv,user_xgetbv\nuser_xsetbv: mov $3,%eax; xor %edx,%edx; xor %ecx,%ecx; xsetbv; int $0x80\nuser_xgetbv: xor %ecx,%ecx; xgetbv; int $0x80\n");

/* ---- x87 errors ------------------------------------------------------------------------------------ */

static volatile u32 irq13;
static bool on_irq(struct frame *f)
{
	if (f->vec != 0x2d)
		return false;
	irq13++;
	outb(0xf0, 0); /* lowers IGNNE#, FERR# goes */
	__asm__ volatile("fnclex");
	outb(0xa0, 0x20);
	outb(0x20, 0x20);
	return true;
}

static void errors(void)
{
	static const struct { u16 cw; const char *name; u8 flag; } e[] = { { 0x37e, "invalid", 1 }, { 0x37b, "divide by zero", 4 }, { 0x35f, "precision", 32 }, { 0x37d, "denormal", 2 } };
	cr0(NE, TS_ | EM);
	for (unsigned k = 0; k < ARRAY_LEN(e); k++) {
		volatile u16 sw = 0;
		static const u32 denormal = 1;
		__asm__ volatile("fninit; fldcw %0" : : "m"(e[k].cw));
		TRY(switch (k) {
		case 0: __asm__ volatile("fldz; fldz; fdivrp"); break;
		case 1: __asm__ volatile("fld1; fldz; fdivrp %%st,%%st(1)" : ); break;
		case 2: __asm__ volatile("fld1; fldpi; fdivrp"); break;
		default: __asm__ volatile("flds %0" : : "m"(denormal)); break;
		});
		int at_once = trap.vec;
		TRY(__asm__ volatile("fnstsw %0" : "=m"(sw)));
		int no_wait = trap.vec;
		TRY(__asm__ volatile("fwait"));
		check(fmt("x87 %s with NE: deferred to the next waiting instruction: #MF", e[k].name), at_once == NONE && no_wait == NONE && trap.vec == MF);
		check(fmt("x87 %s: FSW has it, ES and B", e[k].name), (sw & e[k].flag) && (sw & 0x8080) == 0x8080);
		TRY(__asm__ volatile("fld1"));
		check_eq(fmt("x87 %s: FLD waits too", e[k].name), trap.vec, MF);
		TRY(__asm__ volatile("fnclex; fwait; fninit"));
		check_trap(fmt("x87 %s: gone after fnclex", e[k].name), NONE, 0);
	}
	/* MMX waits as well. */
	u16 cw = 0x37e;
	TRY(__asm__ volatile("fninit; fldcw %0; fldz; fldz; fdivrp; emms" : : "m"(cw)));
	check_trap("mmx with a pending x87 error: #MF", MF, 0);
	TRY(__asm__ volatile("xorps %xmm0,%xmm0"));
	check_trap("sse does not care", NONE, 0);
	__asm__ volatile("fninit");
	/* FIP, FDP, FOP. */
	static u32 mem = 0x3f800000;
	u32 env[7];
	__asm__ volatile("fninit; fldcw %2; 1: flds %1; movl $1b,%%eax; fnstenv %0" : "=m"(env) : "m"(mem), "m"(cw) : "eax");
	u32 ip;
	__asm__ volatile("fninit; fldz; fldz; call 1f; 1: pop %%eax; 2: fdivs %1; fnstenv %0; add $2b-1b,%%eax" : "=m"(env), "+m"(mem), "=&a"(ip));
	check_eq("fnstenv: FIP", env[3], ip);
	check_eq("fnstenv: FDP", env[5], (uptr)&mem);
	__asm__ volatile("fninit");
	/* NE = 0: FERR# through IRQ 13. */
	outb(0x20, 0x11); outb(0x21, 0x20); outb(0x21, 4); outb(0x21, 1);
	outb(0xa0, 0x11); outb(0xa1, 0x28); outb(0xa1, 2); outb(0xa1, 1);
	outb(0x21, 0xfb); outb(0xa1, 0xdf);
	*(volatile u32 *)0xfee000f0 = 0x1ff;
	*(volatile u32 *)0xfee00350 = 0x700;
	cr0(0, NE);
	trap_hook = on_irq;
	irq13 = 0;
	TRY(__asm__ volatile("sti; fninit; fldcw %0; fldz; fldz; fdivrp; nop; fwait; nop; nop; cli; fninit" : : "m"(cw)));
	check("NE clear: no #MF, IRQ 13 instead", trap.vec == NONE && irq13 == 1);
	trap_hook = NULL;
	cr0(NE, 0);
	outb(0x21, 0xff); outb(0xa1, 0xff);
	/* SSE: each unmasked exception. */
	static const float one = 1, zero = 0, big = 3e38f, tiny = 1.2e-38f, den = 1e-40f, third = 3;
	for (unsigned k = 0; k < 6; k++) {
		static const char *const n[] = { "invalid", "denormal", "divide by zero", "overflow", "underflow", "precision" };
		u32 mx = 0x1f80 & ~(0x80u << k), got = 0;
		const float *a = k == 0 ? &zero : k == 1 ? &den : k == 3 ? &big : k == 4 ? &tiny : &one;
		const float *b = k == 0 || k == 2 ? &zero : k == 3 ? &tiny : k == 4 ? &big : k == 1 ? &one : &third;
		TRY(__asm__ volatile("ldmxcsr %0; movss %1,%%xmm0; divss %2,%%xmm0" : : "m"(mx), "m"(*a), "m"(*b)));
		__asm__ volatile("stmxcsr %0" : "=m"(got));
		check(fmt("#XM: %s", n[k]), trap.vec == XM && (got >> k & 1));
	}
	u32 mx = 0x1f80;
	__asm__ volatile("ldmxcsr %0" : : "m"(mx));
}

int main(void)
{
	gates();
	fxsave();
	xsave();
	errors();
	return 0;
}
