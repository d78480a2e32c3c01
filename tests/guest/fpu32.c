/* x87, MMX and MXCSR in 32- and 16-bit code, as a translator sees them: where FIP, FDP, FOP, FCS and FDS point after
 * other blocks, through segments with a base, in protected, V86 and real mode, in the environment's image of each; SDM
 * vol. 1 8.1.8 to 8.1.10. String instructions through segments and over pages. Each is done several times, so that it also runs warm. */
#include "guest.h"

const char guest_name[] = "fpu32";

enum { ROUNDS = 3, BASED = FREE, CODE_AT, SMALL, CODE_16, BASED_16 }; /* in the GDT */
extern u8 page[];
u8 page[8192] __attribute__((aligned(4096)));
#define MEM (page + 4096)
struct env32 { u16 cw, r0, sw, r1, tw, r2, ip, ip_high, cs, op, dp, dp_high, ds, r3; };
static struct env32 env;

static u16 fop_at(const u8 *p)
{
	while (*p == 0x64 || *p == 0x65 || *p == 0x2e || *p == 0x36 || *p == 0x3e || *p == 0x26 || *p == 0x66 || *p == 0x67)
		p++;
	return (u16)((p[0] & 7) << 8 | p[1]);
}

/* ---- 32-bit code: label NAME_ip: where FIP points to; then FDP, FDS. EDI: MEM. Other blocks follow. ---- */

#define POINTERS(X) \
	X(memory, "fldz\n memory_ip: fldl (%edi)", (uptr)MEM, DATA) \
	X(later, "fldl (%edi)\n later_ip: fld1", (uptr)MEM, DATA) \
	X(control, "control_ip: flds 8(%edi)\n fnstcw 16(%edi)\n fldcw 16(%edi)\n fnstsw %ax\n fnstsw 18(%edi)\n fwait\n" \
		"stmxcsr 20(%edi)\n ldmxcsr 20(%edi)\n movq %mm0,24(%edi)\n emms", (uptr)MEM + 8, DATA) \
	X(callee, "fldl (%edi)\n call 5f\n jmp 6f\n 5: callee_ip: fld1\n ret\n 6: nop", (uptr)MEM, DATA) \
	X(caller, "caller_ip: fldl 8(%edi)\n call 5f\n jmp 6f\n 5: nop\n ret\n 6: nop", (uptr)MEM + 8, DATA) \
	X(both, "fldl 8(%edi)\n call 5f\n nop\n both_ip: fld1\n jmp 6f\n 5: fstpl 16(%edi)\n ret\n 6: nop", (uptr)MEM + 16, DATA) \
	X(loop, "mov $5,%ecx\n 7: fld1\n nop\n loop_ip: fstpl (%edi,%ecx,8)\n dec %ecx\n jnz 7b", (uptr)MEM + 8, DATA) \
	X(stack, "push %edi\n push %edi\n mov %esp,%edx\n stack_ip: fldl (%esp)\n lea 8(%esp),%esp", trap_edx, DATA) \
	X(based, "based_ip: fldl %fs:16(,%eax,4)", 16 + 4 * 3, BASED * 8) \
	X(es_loaded, "mov %es,%edx\n mov %fs,%ecx\n mov %ecx,%es\n es_loaded_ip: fldl %es:8\n mov %edx,%es", 8, BASED * 8) \
	X(ten, "ten_ip: fldt 16(%edi)", (uptr)MEM + 16, DATA) \
	X(ten_across, "fld1\n ten_across_ip: fstpt -5(%edi)", (uptr)MEM - 5, DATA) \
	X(across, "across_ip: fldl -3(%edi)", (uptr)MEM - 3, DATA) \
	X(absolute, "absolute_ip: fldl page+4096+32", (uptr)MEM + 32, DATA) \
	X(flags, "cmp $1,%edi\n flags_ip: fldl 8(%edi)\n jc 5f\n nop\n 5: nop", (uptr)MEM + 8, DATA)
#define MAKE(name, text, dp, ds) \
	extern const u8 p_##name[], name##_ip[]; \
	__asm__(".pushsection .text\np_" #name ":\n" text "\njmp 91f\n.skip 13,0x90\n91: nop\njmp 92f\n92: ret\n.popsection\n");
static u32 trap_edx; /* EDX after it */
POINTERS(MAKE)
#undef MAKE

static void run(const u8 *code)
{
	__asm__ volatile("call *%1; fnstenv %2" : "=d"(trap_edx) : "r"(code), "m"(env), "D"(MEM), "a"(3) : "ecx", "memory", "cc");
}

static void see(const char *name, uptr ip, u16 cs, u16 op, uptr dp, u16 ds)
{
	check_eq(fmt("%s: FIP", name), env.ip | (u32)env.ip_high << 16, ip);
	check_eq(fmt("%s: FCS", name), env.cs, cs);
	check_eq(fmt("%s: FOP", name), env.op & 0x7ff, op);
	check_eq(fmt("%s: FDP", name), env.dp | (u32)env.dp_high << 16, dp);
	check_eq(fmt("%s: FDS", name), env.ds, ds);
}

static void segments(void)
{
	gdt[BASED] = desc((uptr)MEM, 0xfff, A_RW, F_B);
	gdt[CODE_AT] = desc(0x1000, 0xfffff, A_XR | A_DPL3, F_B | F_G);
	gdt[SMALL] = desc((uptr)MEM, 15, A_RW, F_B);
	gdt[CODE_16] = desc(SNIP_LIN, 0xffff, A_XR | A_DPL3, 0);
	gdt[BASED_16] = desc(0x20000, 0xffff, A_RW | A_DPL3, 0);
}

static void protected32(void)
{
	for (unsigned k = 0; k < ROUNDS; k++) {
		__asm__ volatile("mov %0,%%fs" : : "r"(BASED * 8)); /* an exception's end takes it away */
#define TEST(name, text, dp, ds) \
		__asm__ volatile("fninit"); \
		run(p_##name); \
		see(fmt("%s, round %d", #name, k), (uptr)name##_ip, CODE, fop_at(name##_ip), (dp), (ds));
		POINTERS(TEST)
		/* One that faults leaves them as they were; the limit is looked at. */
		__asm__ volatile("mov %0,%%gs; fninit" : : "r"(SMALL * 8));
		run(p_memory);
		TRY(__asm__ volatile("nop; fldl %gs:9"));
		check_trap("fldl beyond the limit", GP, 0);
		__asm__ volatile("fnstenv %0" : "=m"(env));
		see("and no pointers of it", (uptr)memory_ip, CODE, fop_at(memory_ip), (uptr)MEM, DATA);
		TRY(__asm__ volatile("nop; fldl %gs:8; fstpl %gs:8"));
		check_trap("fldl up to the limit", NONE, 0);
	}
}

/* Code whose segment has a base: FIP is an offset. */
extern const u8 p_base[], base_ip[];
__asm__(".pushsection .text\np_base: nop; base_ip: fldl (%edi); jmp 1f; 1: nop; int $0x80\n.popsection\n");
static void code_base(void)
{
	for (unsigned k = 0; k < ROUNDS; k++) {
		struct regs r = user_regs(p_base - 0x1000);
		r.cs = sel(CODE_AT, 3);
		r.di = (uptr)MEM;
		__asm__ volatile("fninit");
		check_eq("code with a base ran", (u64)go(&r), DONE);
		__asm__ volatile("fnstenv %0" : "=m"(env));
		see(fmt("code with a base, round %d", k), (uptr)base_ip - 0x1000, sel(CODE_AT, 3), fop_at(base_ip), (uptr)MEM, UDATA);
	}
}

/* ---- 16-bit code: the image of 14 bytes at DS:40h ---- */

#define CODE16_TEXT "fninit; mov $0x10,%bx; nop; nop; " ".globl s_env_ip; s_env_ip: fldl 8(%bx); nop; jmp 1f; 1: fnstenv 0x40; mov $7,%si"
CODE16_SNIPPET(s_env, CODE16_TEXT);
extern const u8 s_env_ip[];

static void image16(const char *name, bool protected, u16 cs, u16 ds)
{
	const u16 *e = (const u16 *)0x20040;
	u16 at = (u16)(s_env_ip - s_env), op = fop_at(s_env_ip);
	u32 ip = protected ? at : SNIP_LIN + at, dp = protected ? 0x18 : 0x20018;
	check_eq(fmt("%s: FIP", name), e[3], ip & 0xffff);
	check_eq(fmt("%s: FCS, or FIP and FOP", name), e[4], protected ? cs : (ip >> 16 & 15) << 12 | op);
	check_eq(fmt("%s: FDP", name), e[5], dp & 0xffff);
	check_eq(fmt("%s: FDS, or FDP", name), e[6], protected ? ds : (dp >> 16 & 15) << 12);
}

static void code16(void)
{
	for (unsigned k = 0; k < ROUNDS; k++) {
		struct regs r = regs16();
		memset((void *)0x20000, 0, 0x80);
		check("V86 ran", V86(s_env, &r) == DONE && trap.f.si == 7);
		image16(fmt("V86, round %d", k), false, 0, 0);
		memset((void *)0x20000, 0, 0x80);
		REAL(s_env, &r);
		check("real mode ran", trap.f.si == 7);
		image16(fmt("real mode, round %d", k), false, 0, 0);
		r = user_regs(NULL);
		r.cs = sel(CODE_16, 3);
		r.ds = sel(BASED_16, 3);
		memset((void *)0x20000, 0, 0x80);
		put16(s_env, s_env_end);
		check("16-bit protected mode ran", go(&r) == DONE && (trap.f.si & 0xffff) == 7);
		image16(fmt("16-bit protected mode, round %d", k), true, sel(CODE_16, 3), sel(BASED_16, 3));
	}
}

/* ---- what is computed, MMX and x87 sharing registers, upper halves that stay ---- */

static void values(void)
{
	for (unsigned k = 0; k < ROUNDS; k++) {
		u32 lo = 0, sum = 0, mx = 0x1f80 | k << 13, got = 0;
		u16 tw, sw;
		__asm__ volatile("fninit; fld1; fld1; faddp; fistl %0; movd %2,%%mm1; paddd %%mm1,%%mm1; movd %%mm1,%1" : "=m"(lo), "=m"(sum) : "r"(77 + k));
		__asm__ volatile("fnstenv %0; fldenv %0" : "+m"(env));
		tw = env.tw;
		check_eq("1 + 1", lo, 2);
		check_eq("paddd", sum, 2 * (77 + k));
		check("MMX: no tag is empty", (tw & 3) != 3 && (tw >> 14) != 3);
		__asm__ volatile("emms; fnstenv %0; fldenv %0; fnstsw %1" : "+m"(env), "=m"(sw));
		check_eq("EMMS: all tags are empty", env.tw, 0xffff);
		check_eq("EMMS: TOP is 0", sw >> 11 & 7, 0);
		__asm__ volatile("ldmxcsr %1; stmxcsr %0" : "=m"(got) : "m"(mx));
		check_eq("LDMXCSR, STMXCSR", got, mx);
		mx = 1u << 31;
		TRY(__asm__ volatile("ldmxcsr %0" : : "m"(mx)));
		check_trap("LDMXCSR of reserved bits", GP, 0);
		mx = 0x1f80;
		__asm__ volatile("ldmxcsr %0" : : "m"(mx));
	}
}

/* Strings through SS. */
static void strings(void)
{
	for (unsigned k = 0; k < ROUNDS; k++) {
		u32 here[2] = { 0x11223344 + k, 0 }, to[2] = { 0, 0 }, ax = 0;
		const u32 *si = here;
		u32 *di = to;
		__asm__ volatile("cld; lodsb %%ss:(%%esi),%%al" : "+S"(si), "+a"(ax) : "m"(here));
		check_eq("lodsb through SS", ax, 0x44 + k);
		si = here;
		__asm__ volatile("movsl %%ss:(%%esi),%%es:(%%edi)" : "+S"(si), "+D"(di) : : "memory");
		check_eq("movsl through SS", to[0], 0x11223344 + k);
		si = here, di = to;
		bool same;
		__asm__ volatile("cmpsl %%es:(%%edi),%%ss:(%%esi)" : "+S"(si), "+D"(di), "=@ccz"(same) : : "memory");
		check("cmpsl through SS", same && si == here + 1 && di == to + 1);
		u32 n = 7;
		si = here, di = to;
		__asm__ volatile("mov %%esp,%%edx; mov $-1,%%esp; repe cmpsb %%es:(%%edi),%%ss:(%%esi); mov %%edx,%%esp" : "+S"(si), "+D"(di), "+c"(n), "=@ccz"(same) : : "edx", "memory");
		check("repe cmpsb through SS", same && n == 0 && (u8 *)si == (u8 *)here + 7 && (u8 *)di == (u8 *)to + 7);
	}
}

/* Over several pages, forward and backward, elements across two. */
static u8 from[3 * 4096], to[3 * 4096];
#define REP(text, count, source, dest, acc) ({ \
	struct { const u8 *si; u8 *di; u32 cx, ax; bool z; } o_ = { (source), (dest), (count), (acc), false }; \
	__asm__ volatile(text "; cld" : "+S"(o_.si), "+D"(o_.di), "+c"(o_.cx), "+a"(o_.ax), "=@ccz"(o_.z) : : "memory"); \
	o_; })
static void long_strings(void)
{
	for (unsigned k = 0; k < ROUNDS; k++) {
		for (unsigned n = 0; n < sizeof(from); n++)
			from[n] = (u8)(n * 7 + (n >> 8) + k) | 1;
		memset(to, 0, sizeof(to));
		check("rep movsl ends", REP("rep movsl", 2500, from + 1, to + 2, 0).cx == 0);
		bool same = to[1] == 0 && to[2 + 10000] == 0;
		for (unsigned n = 0; n < 10000; n++)
			same &= to[2 + n] == from[1 + n];
		check("rep movsl over pages", same);
		check("repe cmpsb finds no difference", REP("repe cmpsb", 10000, from + 1, to + 2, 0).z);
		to[2 + 9000] ^= 0x40;
		check_eq("repe cmpsb finds one", REP("repe cmpsb", 10000, from + 1, to + 2, 0).cx, 999);
		check_eq("repe cmpsw backward finds it", REP("std; repe cmpsw", 5000, from + 1 + 9998, to + 2 + 9998, 0).cx, 4500);
		check_eq("rep lodsl", REP("rep lodsl", 2000, from + 3, to, 0).ax, from[7999] | (u32)from[8000] << 8 | (u32)from[8001] << 16 | (u32)from[8002] << 24);
		check("rep stosw ends", REP("rep stosw", 5001, from, to + 1, 0x1234).di == to + 1 + 10002);
		check("rep stosw over pages", to[0] == 0 && to[1] == 0x34 && to[4096] == 0x12 && to[10002] == 0x12 && to[10003] == 0);
		check_eq("repne scasb", REP("repne scasb", 12000, from, to + 10004 - 9000, 0).cx, 12000 - 9000);
		to[1000] = 0;
		check_eq("repne scasb backward", REP("std; repne scasb", 12000, from, to + 9990, 0).cx, 12000 - 8991);
		memcpy(to, from, sizeof(to));
		REP("std; rep movsb", 9000, to + 8999, to + 9999, 0);
		same = true;
		for (unsigned n = 0; n < 9000; n++)
			same &= to[1000 + n] == from[n];
		check("rep movsb backward, over itself", same && to[999] == from[999] && to[10000] == from[10000]);
	}
}

int main(void)
{
	write_cr4(read_cr4() | 0x600);
	write_cr0((read_cr0() & ~(uptr)0xc) | 0x22);
	segments();
	protected32();
	code_base();
	code16();
	values();
	strings();
	long_strings();
	return 0;
}
