/* x87 and MMX in 64-bit code, as a translator sees them: where FIP, FDP and FOP point after other
 * blocks, calls, faults and interrupts; pending errors and what waits for them; TS between blocks;
 * x87 and MMX sharing registers. SDM vol. 1 8.1.8, 8.7, 9.5; vol. 3 2.5. Each is done several
 * times, so that it also runs warm. What instructions compute is tests/diff's business. */
#include "guest.h"

const char guest_name[] = "fpu64";

enum { MP = 2, EM = 4, TS_ = 8, NE = 32, ROUNDS = 3 };
#define NOWHERE 0x600000000000ull
#define TWIN (3ull << 40) /* not mapped either; differs from what is in high bits alone */
static void cr0(uptr set, uptr clear) { write_cr0((read_cr0() & ~clear) | set); }

struct fx { u16 cw, sw; u8 tag, r; u16 op; u64 ip, dp; u32 mxcsr, mask; u8 st[8][16]; u8 rest[352]; };
extern struct fx fx, image;
struct fx fx __attribute__((aligned(64)));
struct fx image __attribute__((aligned(64)));
u8 pages[8192] __attribute__((aligned(4096)));
#define MEM (pages + 4096)
static void look(void) { __asm__ volatile("fxsave64 %0" : "=m"(fx)); }

/* What FOP is made of. */
static u16 fop_at(u64 ip)
{
	const u8 *p = (const u8 *)ip;
	while ((*p & 0xf0) == 0x40 || *p == 0x64 || *p == 0x65)
		p++;
	return (u16)((p[0] & 7) << 8 | p[1]);
}

/* ---- pointers -------------------------------------------------------------------------------------- */

/* Functions; label NAME_ip: where FIP is to point; then FDP. RDI: MEM. Other blocks follow. */
#define POINTERS(X) \
	X(memory, "fldz\n memory_ip: fldl (%rdi)", (u64)MEM) \
	X(later, "fldl (%rdi)\n later_ip: fld1", (u64)MEM) \
	X(control, "control_ip: flds 8(%rdi)\n fnstcw 16(%rdi)\n fldcw 16(%rdi)\n fnstsw %ax\n fnstsw 18(%rdi)\n fwait\n" \
		"stmxcsr 20(%rdi)\n ldmxcsr 20(%rdi)\n movq %mm0,24(%rdi)\n emms", (u64)MEM + 8) \
	X(callee, "fldl (%rdi)\n call 5f\n jmp 6f\n 5: callee_ip: fld1\n ret\n 6: nop", (u64)MEM) \
	X(caller, "caller_ip: fldl 8(%rdi)\n call 5f\n jmp 6f\n 5: nop\n ret\n 6: nop", (u64)MEM + 8) \
	X(both, "fldl 8(%rdi)\n call 5f\n nop\n both_ip: fld1\n jmp 6f\n 5: fstpl 16(%rdi)\n ret\n 6: nop", (u64)MEM + 16) \
	X(loop, "mov $5,%ecx\n 7: fld1\n nop\n loop_ip: fstpl (%rdi,%rcx,8)\n dec %ecx\n jnz 7b", (u64)MEM + 8) \
	X(init_first, "mov $3,%ecx\n 7: fninit\n nop\n init_first_ip: fld1\n dec %ecx\n jnz 7b", 0) \
	X(r11, "mov %rdi,%r11\n r11_ip: fldl 8(%r11)", (u64)MEM + 8) \
	X(r15, "push %r15\n mov %rdi,%r15\n r15_ip: fldl 8(%r15)\n pop %r15", (u64)MEM + 8) \
	X(r11_r15, "push %r15\n mov %rdi,%r15\n mov $4,%r11d\n r11_r15_ip: fldl 8(%r15,%r11,4)\n pop %r15", (u64)MEM + 24) \
	X(r15_index, "push %r15\n mov $2,%r15d\n r15_index_ip: fldl 8(%rdi,%r15,8)\n pop %r15", (u64)MEM + 24) \
	X(written, "mov %rdi,%rax\n fldl (%rax)\n written_ip: fstpl 8(%rax)\n xor %eax,%eax", (u64)MEM + 8) \
	X(in_fs, "in_fs_ip: fldl %fs:16", 16) \
	X(in_gs, "mov $8,%eax\n in_gs_ip: fldl %gs:(%rax)", 8) \
	X(absolute, "absolute_ip: fldl pages+4096+32", (u64)MEM + 32) \
	X(relative, "relative_ip: fldl pages+4096+40(%rip)", (u64)MEM + 40) \
	X(ten, "ten_ip: fldt 16(%rdi)", (u64)MEM + 16) \
	X(ten_across, "fld1\n ten_across_ip: fstpt -5(%rdi)", (u64)MEM - 5) \
	X(across, "across_ip: fldl -3(%rdi)", (u64)MEM - 3) \
	X(flags, "cmp $1,%edi\n flags_ip: fldl 8(%rdi)\n jc 5f\n nop\n 5: nop", (u64)MEM + 8)
#define MAKE(name, text, dp) \
	extern const u8 p_##name[], name##_ip[]; \
	__asm__(".pushsection .text\np_" #name ":\n" text "\njmp 91f\n.skip 13,0x90\n91: nop\njmp 92f\n92: ret\n.popsection\n");
POINTERS(MAKE)
#undef MAKE

static void run(const u8 *code) { __asm__ volatile("call *%0" : : "r"(code), "D"(MEM) : "rax", "rcx", "r11", "memory", "cc"); }

static void zero_pointers(const char *name)
{
	look();
	check(name, !fx.ip && !fx.dp && !fx.op);
}

extern const u8 p_init[], p_init_here[], p_init_loop[], p_restore[];
__asm__(".text\n"
	"p_init: fldl (%rdi); nop; fninit; nop; jmp 1f; 1: ret\n"
	"p_init_here: fldl (%rdi); fninit; nop; fxsave64 fx(%rip); ret\n"
	"p_init_loop: mov $3,%ecx; 1: fldl (%rdi); fninit; nop; dec %ecx; jnz 1b; ret\n"
	"p_restore: fldl (%rdi); nop; fxrstor64 image(%rip); nop; jmp 1f; 1: nop; ret\n");

static void pointers(void)
{
	wrmsr(FS_BASE, (u64)MEM);
	wrmsr(GS_BASE, (u64)MEM);
	memset(pages, 0, sizeof(pages));
	for (unsigned k = 0; k < ROUNDS; k++) {
#define TEST(name, text, want) { \
		__asm__ volatile("fninit"); \
		run(p_##name); \
		look(); \
		check_eq(fmt("%s, round %d: FIP", #name, k), fx.ip, (u64)name##_ip); \
		check_eq(fmt("%s, round %d: FDP", #name, k), fx.dp, (want)); \
		check_eq(fmt("%s, round %d: FOP", #name, k), fx.op, fop_at((u64)name##_ip)); }
		POINTERS(TEST)
		run(p_init);
		zero_pointers("fninit between: no pointers");
		run(p_init_here);
		check("fninit, then fxsave: no pointers", !fx.ip && !fx.dp && !fx.op);
		run(p_init_loop);
		zero_pointers("fninit in a loop: no pointers");
		__asm__ volatile("fxsave64 %0" : "=m"(image));
		image.ip = 0x123456789a, image.dp = 0xfedcba98, image.op = 0x345;
		run(p_restore);
		look();
		check("fxrstor between: its pointers", fx.ip == 0x123456789a && fx.dp == 0xfedcba98 && fx.op == 0x345);
	}
	/* Selectors, in the format that has them. */
	u32 env[7];
	__asm__ volatile("fninit; push $0; fldl (%%rsp); pop %%rax; jmp 1f; 1: nop; fnstenv %0" : "=m"(env) : : "rax");
	check_eq("fnstenv: FCS", env[4] & 0xffff, CODE);
	check_eq("fnstenv: FDS is SS for an operand by RSP", env[6] & 0xffff, DATA);
	__asm__ volatile("mov %1,%%fs; fninit; fldl %%fs:(%2); fld1; jmp 1f; 1: nop; fnstenv %0" : "=m"(env) : "r"(UDATA), "r"(MEM) : "rax");
	check_eq("fnstenv: FDS is FS for an operand by FS", env[6] & 0xffff, UDATA);
	__asm__ volatile("mov %0,%%fs" : : "r"(DATA));
	wrmsr(FS_BASE, (u64)MEM);
	/* An instruction that faults leaves them as they were. */
	static const u64 bad[] = { NOWHERE, TWIN, 0x800000000000 };
	for (unsigned k = 0; k < ROUNDS * ARRAY_LEN(bad); k++) {
		u64 at = bad[k % ARRAY_LEN(bad)] + (k % ARRAY_LEN(bad) == 1 ? (u64)MEM : 0);
		__asm__ volatile("fninit");
		run(p_memory);
		TRY(__asm__ volatile("nop; fldl (%0)" : : "r"(at)));
		look();
		check(fmt("fault %d: pointers stay", k), trap.vec == (k % 3 == 2 ? GP : PF) && fx.ip == (u64)memory_ip && fx.dp == (u64)MEM);
		TRY(__asm__ volatile("fld1; 1: fld1; fstpl (%0)" : : "r"(at)));
		look();
		check(fmt("fault %d after fld1: FOP of that, nothing popped", k), trap.vec == (k % 3 == 2 ? GP : PF) && fx.op == 0x1e8 && fx.dp == (u64)MEM && (fx.sw >> 11 & 7) == 4);
	}
	__asm__ volatile("fninit");
}

/* ---- pending errors ------------------------------------------------------------------------------------ */

#define PENDING(name) "fninit; fldcw 48(%rdi); fld1; fldz; w_" #name "_bad: fdivrp %st,%st(1); jmp 31f; .skip 9,0x90; 31: nop; jmp 32f; 32: "
#define WAITS(X) \
	X(fwait, "fwait") X(fld1, "fld1") X(fldl, "fldl (%rdi)") X(fstpl, "fstpl 8(%rdi)") X(fstpt, "fstpt 8(%rdi)") X(fistp, "fistpll 8(%rdi)") \
	X(fldt, "fldt -5(%rdi)") X(fstpt_across, "fstpt -5(%rdi)") X(fldcw, "fldcw 48(%rdi)") X(emms, "emms") X(movq_load, "movq (%rdi),%mm1") \
	X(movq_store, "movq %mm1,8(%rdi)") X(paddb, "paddb %mm0,%mm1") X(fxch, "fxch") X(fcomi, "fcomi %st(1),%st") X(fnop, "fnop") \
	X(fld_nowhere, "fldl (%rsi)") X(fst_nowhere, "fstl (%rsi)") X(mmx_nowhere, "movq %mm0,(%rsi)") X(fldcw_nowhere, "fldcw (%rsi)")
#define MAKE_W(name, text) \
	extern const u8 w_##name[], w_##name##_ip[], w_##name##_bad[]; \
	__asm__(".pushsection .text\nw_" #name ": " PENDING(name) "w_" #name "_ip: " text "; nop; ret\n.popsection\n");
WAITS(MAKE_W)
extern const u8 w_none[];
__asm__(".text\nw_none: " PENDING(none) "fnstsw %ax; fnstcw 8(%rdi); fnstsw 10(%rdi); stmxcsr 12(%rdi); fnclex; fwait; fld1; ret\n");

static volatile u32 irq13;
static bool on_irq13(struct frame *f)
{
	if (f->vec != 0x2d)
		return false;
	irq13++;
	outb(0xf0, 0);
	__asm__ volatile("fnclex");
	outb(0xa0, 0x20);
	outb(0x20, 0x20);
	return true;
}

static void call_with(const u8 *code, u64 si)
{
	__asm__ volatile("call *%0" : : "r"(code), "D"(MEM), "S"(si) : "rax", "rcx", "memory", "cc");
}

static void errors(void)
{
	u16 cw = 0x37b;
	cr0(NE, TS_ | EM);
	for (unsigned k = 0; k < ROUNDS; k++) {
#define TEST_W(name, text) { \
		memset(pages, 0, sizeof(pages)); \
		memset(MEM + 8, 0x55, 16); \
		memcpy(MEM + 48, &cw, 2); \
		TRY(call_with(w_##name, NOWHERE)); \
		look(); \
		check(fmt("pending, %s, round %d: #MF there", #name, k), trap.vec == MF && trap.f.ip == (uptr)w_##name##_ip); \
		check(fmt("pending, %s: nothing stored, FOP of the culprit, FSW", #name), \
		      MEM[8] == 0x55 && MEM[17] == 0x55 && fx.ip == (u64)w_##name##_bad && fx.op == fop_at(fx.ip) && (fx.sw & 0x8084) == 0x8084); \
		__asm__ volatile("fnclex"); }
		WAITS(TEST_W)
		memcpy(MEM + 48, &cw, 2);
		TRY(call_with(w_none, 0));
		u16 sw;
		memcpy(&sw, MEM + 10, 2);
		check("pending: what does not wait does not mind", trap.vec == NONE && (sw & 0x8084) == 0x8084);
	}
	/* NE clear: IRQ 13. */
	outb(0x20, 0x11); outb(0x21, 0x20); outb(0x21, 4); outb(0x21, 1);
	outb(0xa0, 0x11); outb(0xa1, 0x28); outb(0xa1, 2); outb(0xa1, 1);
	outb(0x21, 0xfb); outb(0xa1, 0xdf);
	apic_write(0xf0, 0x1ff);
	apic_write(0x350, 0x700);
	cr0(0, NE);
	trap_hook = on_irq13;
	irq13 = 0;
	for (unsigned k = 0; k < ROUNDS; k++) {
		memset(MEM, 0x55, 48);
		memcpy(MEM + 48, &cw, 2);
		TRY(__asm__ volatile("sti"); call_with(w_fwait, 0); call_with(w_fstpl, 0); call_with(w_movq_load, 0); __asm__ volatile("cli"));
		check(fmt("NE clear, round %d: IRQ 13, then the instruction goes on", k), trap.vec == NONE && irq13 == 3 * (k + 1) && MEM[8] == 0);
	}
	__asm__ volatile("cli");
	trap_hook = NULL;
	outb(0x21, 0xff); outb(0xa1, 0xff);
	cr0(NE, 0);
	/* MXCSR. */
	for (unsigned k = 0; k < ROUNDS; k++) {
		u32 in = 0x1f80 & ~0x200u, out = 0, reserved = 0x80001f80;
		static const float one = 1, zero = 0;
		TRY(__asm__ volatile("ldmxcsr %0; stmxcsr %1; nop; movss %2,%%xmm0; divss %3,%%xmm0" : : "m"(in), "m"(out), "m"(one), "m"(zero)));
		check(fmt("ldmxcsr, stmxcsr, round %d", k), trap.vec == XM && out == in);
		TRY(__asm__ volatile("ldmxcsr %0" : : "m"(reserved)));
		check_trap("ldmxcsr of reserved bits: #GP(0)", GP, 0);
		__asm__ volatile("stmxcsr %0" : "=m"(out));
		check_eq("and MXCSR stays", out, in | 4);
		in = 0x1f80;
		__asm__ volatile("ldmxcsr %0" : : "m"(in));
	}
}

/* ---- TS ------------------------------------------------------------------------------------------------ */

static volatile u32 nms;
static bool on_nm(struct frame *f)
{
	if (f->vec != NM)
		return false;
	nms++;
	__asm__ volatile("clts");
	return true;
}
extern const u8 t_loop[], t_mmx[], t_callee[], t_wait[], t_flags[];
__asm__(".text\n"
	"ts: mov %cr0,%rax; or $8,%rax; mov %rax,%cr0; ret\n"
	"t_loop: mov $5,%ecx; 1: mov %cr0,%rax; or $8,%rax; mov %rax,%cr0; fld1; fstp %st(0); dec %ecx; jnz 1b; ret\n"
	"t_mmx: mov $5,%ecx; 1: mov %cr0,%rax; or $8,%rax; mov %rax,%cr0; paddb %mm0,%mm1; emms; dec %ecx; jnz 1b; ret\n"
	"t_callee: mov $5,%ecx; 1: fld1; call ts; fstp %st(0); nop; dec %ecx; jnz 1b; ret\n"
	"t_wait: mov $5,%ecx; 1: mov %cr0,%rax; or $8,%rax; mov %rax,%cr0; fwait; dec %ecx; jnz 1b; ret\n"
	"t_flags: mov $5,%ecx; 1: call ts; stc; jmp 2f; 2: fld1; fstp %st(0); jnc 3f; dec %ecx; jnz 1b; ret; 3: ud2\n");

static void lazy(void)
{
	trap_hook = on_nm;
	static const struct { const char *name; const u8 *code; } t[] = { { "loop", t_loop }, { "mmx", t_mmx }, { "callee", t_callee }, { "flags", t_flags } };
	for (unsigned k = 0; k < ROUNDS * ARRAY_LEN(t); k++) {
		__asm__ volatile("clts; fninit");
		nms = 0;
		TRY(run(t[k / ROUNDS].code));
		check_eq(fmt("TS, %s: #NM each time", t[k / ROUNDS].name), trap.vec == NONE ? nms : 99, 5);
		cr0(0, TS_);
		look();
		check_eq(fmt("TS, %s: the stack is even", t[k / ROUNDS].name), fx.sw >> 11 & 7, 0);
	}
	for (unsigned k = 0; k < 2 * ROUNDS; k++) {
		cr0(k & 1 ? MP : 0, TS_ | (k & 1 ? 0 : MP));
		nms = 0;
		run(t_wait);
		check_eq(fmt("fwait with TS, MP %d", k & 1), nms, k & 1 ? 5 : 0);
	}
	cr0(MP, TS_);
	trap_hook = NULL;
	for (unsigned k = 0; k < ROUNDS; k++) {
		__asm__ volatile("clts; fninit");
		TRY(run(p_memory));
		check_trap("before EM: x87 runs", NONE, 0);
		cr0(EM, 0);
		TRY(run(p_memory));
		int x87 = trap.vec;
		TRY(__asm__ volatile("paddb %mm0,%mm1"));
		int mmx = trap.vec;
		TRY(__asm__ volatile("cvttsd2si (%0),%%rax" : : "r"(MEM) : "rax"));
		int sse = trap.vec;
		cr0(TS_, EM);
		TRY(__asm__ volatile("cvttsd2si (%0),%%rax" : : "r"(MEM) : "rax"));
		check(fmt("cvttsd2si of memory, round %d: #UD by EM, #NM by TS", k), sse == UD && trap.vec == NM);
		cr0(0, TS_);
		look();
		check(fmt("EM, round %d: x87 #NM, MMX #UD, nothing done", k), x87 == NM && mmx == UD && (fx.sw >> 11 & 7) == 6);
	}
	__asm__ volatile("fninit");
}

/* ---- MMX -------------------------------------------------------------------------------------------------- */

static void mmx(void)
{
	for (unsigned k = 0; k < ROUNDS; k++) {
		u64 a = 0x0102030405060708, b = 0x1010101010101010, r = 0, s = 0;
		__asm__ volatile("fninit; fld1; fld1; fld1; movq %2,%%mm2; paddb %3,%%mm2; movq %%mm2,%0; fxsave64 %1"
				 : "=m"(r), "=m"(fx) : "m"(a), "m"(b));
		check_eq("paddb", r, a + b);
		check("MMX takes the registers: TOP 0, all tags, exponent of ones", (fx.sw >> 11 & 7) == 0 && fx.tag == 0xff && fx.st[2][8] == 0xff && fx.st[2][9] == 0xff);
		__asm__ volatile("movq2dq %%mm2,%%xmm3; movq %%xmm3,%1; movd %%mm2,%%r11d; movd %%r11d,%%mm4; emms; fxsave64 %0" : "=m"(fx), "=m"(s) : : "r11");
		check_eq("movq2dq", s, a + b);
		check_eq("emms: all empty", fx.tag, 0);
		check_eq("movd through r11", *(u64 *)fx.st[4], (u32)(a + b));
		__asm__ volatile("movdq2q %%xmm3,%%mm1; pmovmskb %%mm1,%%r11d; movq %%r11,%0; emms; fldz; fnstsw %%ax; fxsave64 %1" : "=m"(r), "=m"(fx) : : "r11", "rax");
		check("fld after emms", fx.tag == 0x80 && !(fx.sw & 0x41) && r == 0);
		__asm__ volatile("movq %%mm0,%%mm1; fldz; fxsave64 %0" : "=m"(fx));
		check("fld after MMX without emms: stack fault", (fx.sw & 0x241) == 0x241);
		__asm__ volatile("fninit");
	}
}

/* ---- interrupts --------------------------------------------------------------------------------------------- */

extern const u8 i_loop[], i_1[], i_2[], i_3[], i_4[], i_5[], i_6[], i_end[];
__asm__(".text\n"
	"i_loop: i_1: fldl (%rdi); nop; i_2: fmull 8(%rdi); add $1,%rcx; i_3: fld1; i_4: faddp; mov (%rdi),%rdx; jmp 1f; 1: add %rdx,%rcx\n"
	"i_5: fstpl 16(%rdi); nop; i_6: fldl 24(%rdi); fstp %st(0); i_end: sub $1,%eax; jnz i_loop; ret\n");
static volatile u32 ticks, wrong;
static bool on_tick(struct frame *f)
{
	if (f->vec != 0x20)
		return false;
	static const struct { const u8 *ip; u8 dp; } at[] = { { i_1, 0 }, { i_2, 8 }, { i_3, 8 }, { i_4, 8 }, { i_5, 16 }, { i_6, 24 }, { i_end - 2, 24 } };
	ticks++;
	look();
	/* The last of them before where it was interrupted. */
	unsigned n = ARRAY_LEN(at);
	while (n && (u64)at[n - 1].ip >= f->ip)
		n--;
	if (f->ip > (u64)i_1 && f->ip <= (u64)i_end + 3) {
		if (fx.ip != (u64)at[n - 1].ip || fx.op != fop_at(fx.ip) || fx.dp != (u64)MEM + at[n - 1].dp)
			wrong++;
	}
	outb(0x20, 0x20);
	return true;
}

static void interrupts(void)
{
	memset(MEM, 0, 64);
	trap_hook = on_tick;
	outb(0x43, 0x34);
	outb(0x40, 0x80);
	outb(0x40, 0);
	outb(0x21, 0xfe);
	__asm__ volatile("fninit");
	for (u32 k = 0, n; n = 2000, k < 2000 && ticks < 1000; k++)
		__asm__ volatile("sti; call i_loop; cli" : "+a"(n) : "D"(MEM) : "rcx", "rdx", "cc", "memory");
	outb(0x21, 0xff);
	trap_hook = NULL;
	check("interrupts in x87 code came", ticks > 20);
	check_eq("pointers at each of them", wrong, 0);
	look();
	check("no instruction was done twice: TOP 0, no stack fault", !(fx.sw & 0x3841));
}

/* ---- vectors of which only some bits are not 0 --------------------------------------------------------------- */

/* They go to memory and come back around an instruction that leaves translated code. */
static void upper_halves(void)
{
	static u8 in[64] __attribute__((aligned(64))), out[64] __attribute__((aligned(64)));
	bool avx = has(1, 2, 28), avx512 = avx && has(7, 1, 16);
	if (!avx) {
		skip("upper halves of vectors", "no AVX");
		return;
	}
	write_cr4(read_cr4() | 1ul << 18 | 3ul << 9);
	__asm__ volatile("xsetbv" : : "a"(avx512 ? 0xe7 : 7), "d"(0), "c"(0));
	for (unsigned at = 0; at < (avx512 ? 64u : 32u); at += 8) {
		u32 a = 0, b, c = 0, d;
		memset(in, 0, 64);
		memset(out, 0xff, 64);
		in[at] = 0x5a;
		if (avx512)
			__asm__ volatile("vzeroall\n vmovups %5, %%zmm5\n cpuid\n vmovups %%zmm5, %4\n vzeroall"
					 : "+a"(a), "=b"(b), "+c"(c), "=d"(d), "=m"(out) : "m"(in) : "memory");
		else
			__asm__ volatile("vzeroall\n vmovups %5, %%ymm5\n cpuid\n vmovups %%ymm5, %4\n vzeroall"
					 : "+a"(a), "=b"(b), "+c"(c), "=d"(d), "=m"(out) : "m"(in) : "memory");
		check(fmt("a vector's byte %u alone, across an exit", at), !memcmp(in, out, avx512 ? 64 : 32));
	}
}

int main(void)
{
	pointers();
	errors();
	lazy();
	mmx();
	interrupts();
	upper_halves();
	return 0;
}
