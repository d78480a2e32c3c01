/* Where control goes in 16- and 32-bit code: IP that wraps, the end of a code segment's limit (and a
 * limit that shrinks under code which ran before), 16-bit branches of 32-bit code, far calls
 * between the two, returns that were changed. SDM vol. 2 JMP, CALL, RET, LOOP; vol. 3 5.3. */
#include "guest.h"

const char guest_name[] = "branch32";

static u8 *at(u32 lin) { u8 *p = (u8 *)(uptr)lin; __asm__("" : "+r"(p)); return p; }
static void put(u32 off, const char *bytes, unsigned n) { memcpy(at(SNIP_LIN + off), bytes, n); }

/* ---- 16 bits: the 64 KiB at 1000:0 ------------------------------------------------------------------ */

enum { REAL_MODE, V86_MODE, SEG_16 };
static const char *const modes[] = { "real mode", "V86 mode", "a 16-bit segment" };
static int go16(unsigned mode, u32 ip, u32 cx)
{
	struct regs r = regs16();
	r.ip = ip;
	r.cx = cx;
	if (mode == SEG_16) {
		gdt[FREE] = desc(SNIP_LIN, 0xffff, A_XR, 0);
		gdt[FREE + 1] = desc(0x40000, 0xffff, A_RW, 0);
		r.flags = 2;
		r.cs = sel(FREE, 0);
		r.ds = r.es = r.fs = r.gs = DATA;
		r.ss = sel(FREE + 1, 0);
	}
	return mode == REAL_MODE ? real_run(&r, false) : go(&r);
}

static void wraps(void)
{
	for (unsigned mode = 0; mode < 3; mode++) {
		const char *m = modes[mode];
		memset(at(SNIP_LIN), 0xf4, 0x10000);
		put(0xfff0, "\xeb\x1e", 2); /* jmp to fff2 + 1e */
		put(0x0010, "\xcd\x80", 2);
		check_eq(fmt("%s: jmp rel8 wraps forward", m), go16(mode, 0xfff0, 0), DONE);
		check_eq(fmt("%s: to 0010", m), (u16)trap.f.ip, 0x12);
		put(0x0020, "\xe9\xdd\xff", 3); /* 0023 - 23 */
		put(0x0000, "\xeb\xee", 2);     /* 0002 - 12 */
		check_eq(fmt("%s: jmp rel16, jmp rel8 wrap backward", m), go16(mode, 0x20, 0), DONE);
		/* A loop over the wrap: inc bx; jmp 0 (ahead); loop back. */
		put(0xfff8, "\x43\xeb\x05", 3);
		put(0x0000, "\xe2\xf6\xcd\x80", 4);
		u32 bx = (u32)regs16().bx;
		check_eq(fmt("%s: a loop over the wrap: 1000 turns", m), (go16(mode, 0xfff8, 1000), (u16)(trap.f.bx - bx)), 1000);
		/* call over it: the return IP is 16 bits. */
		put(0xfff0, "\xe8\x2d\x00\x40\xcd\x80", 6); /* call fff3 + 2d = 0020; inc ax */
		put(0x0020, "\x58\x50\xc3", 3);              /* pop ax; push ax; ret */
		go16(mode, 0xfff0, 0);
		check_eq(fmt("%s: a call over the wrap, and its ret", m), (u16)trap.f.ax, 0xfff4);
		/* A conditional branch and LOOP that are not taken do not wrap anything. */
		put(0xfff4, "\x31\xc0\x75\x7f\xcd\x80", 6);
		check_eq(fmt("%s: a branch over the wrap that is not taken", m), (go16(mode, 0xfff4, 0), (u16)trap.f.ip), 0xfffa);
		/* Targets by register have 16 bits; 66 takes 32, and they are checked. */
		put(0x0100, "\x66\xb8\x10\x00\x01\x00\xff\xe0", 8); /* mov eax, 10010; jmp ax */
		check_eq(fmt("%s: jmp ax drops the upper half", m), (go16(mode, 0x100, 0), (u16)trap.f.ip), 0x12);
		put(0x0106, "\x66\xff\xe0", 3);
		go16(mode, 0x100, 0);
		check(fmt("%s: jmp eax beyond the segment: #GP at the jump", m), trap.vec == GP && (u16)trap.f.ip == 0x106);
		put(0x0106, "\x66\xe9\x00\x00\x01\x00", 6);
		go16(mode, 0x100, 0);
		check(fmt("%s: jmp rel32 beyond the segment: #GP at the jump", m), trap.vec == GP && (u16)trap.f.ip == 0x106);
	}
}

/* ---- a limit ------------------------------------------------------------------------------------------ */

static u8 code[0x12000] __attribute__((aligned(4096)));
static int in_segment(u32 limit, u32 eip, u32 cx)
{
	gdt[FREE] = desc((uptr)code, limit, A_XR | A_DPL3, F_B);
	struct regs r = user_regs(NULL);
	r.cs = sel(FREE, 3);
	r.ip = eip;
	r.cx = cx;
	r.bx = 0;
	return go(&r);
}

static void limits(void)
{
	memset(code, 0x90, 0x3000);
	/* ff0: inc ebx; dec ecx; jnz ff0; jmp 1000 ... 1ffe: int 80 */
	memcpy(code + 0xff0, "\x43\x49\x75\xfc\xe9\x07\x00\x00\x00", 9);
	memcpy(code + 0x1ffe, "\xcd\x80", 2);
	check_eq("code up to the last byte of the limit", (in_segment(0x1fff, 0xff0, 500), (u32)trap.vec), DONE);
	check_eq("it ran", trap.f.bx, 500);
	in_segment(0x1ffe, 0xff0, 500);
	check("the limit one less, the same code: #GP(0) at the instruction that it cuts", trap.vec == GP && trap.err == 0 && trap.f.ip == 0x1ffe && trap.f.bx == 500);
	in_segment(0x1ffd, 0xff0, 500);
	check("two less: #GP(0) behind the last that fits", trap.vec == GP && trap.f.ip == 0x1ffe);
	in_segment(0x17ff, 0xff0, 500);
	check("in the middle of a row of NOPs: #GP(0) there", trap.vec == GP && trap.f.ip == 0x1800);
	in_segment(0xfff, 0xff0, 500);
	check("jmp to limit + 1: #GP(0) at the jump", trap.vec == GP && trap.f.ip == 0xff4 && trap.f.bx == 500);
	in_segment(0xff6, 0xff0, 500);
	check("the jump itself is cut: #GP(0) at it", trap.vec == GP && trap.f.ip == 0xff4 && trap.f.bx == 500);
	in_segment(0xff2, 0xff0, 500);
	check("the branch of a loop is cut", trap.vec == GP && trap.f.ip == 0xff2 && trap.f.bx == 1);
	in_segment(0xfef, 0xff0, 500);
	check("nothing fits: #GP(0) at the first", trap.vec == GP && trap.f.bx == 0);
	unsigned bad = 0;
	for (u32 k = 0; k < 50; k++) { /* the same code by turns with a limit that is right and one that is not */
		bad += in_segment(0x1fff, 0xff0, 3) != DONE;
		bad += in_segment(0x10ff + k, 0xff0, 3) != GP || trap.f.ip != 0x1100 + k;
	}
	check_eq("two limits in turns: 50 times", bad, 0);
	/* call, ret, jmp r and jcc at the limit. */
	static const struct { const char *bytes; u8 n, at; const char *name; } ways[] = {
		{ "\xe8\xfb\x0f\x00\x00", 5, 0, "call" }, { "\x68\x00\x20\x00\x00\xc3", 6, 5, "ret" }, { "\xb8\x00\x20\x00\x00\xff\xe0", 7, 5, "jmp r" },
		{ "\x39\xc0\x0f\x84\xf8\x0f\x00\x00", 8, 2, "jz" }, { "\x39\xc0\x0f\x85\xf8\x0f\x00\x00\xcd\x80", 10, 0xff, "jnz, not taken" } };
	for (unsigned k = 0; k < ARRAY_LEN(ways); k++) {
		memcpy(code + 0x1000, ways[k].bytes, ways[k].n);
		in_segment(0x1fff, 0x1000, 0);
		if (ways[k].at == 0xff)
			check(fmt("%s: no fault", ways[k].name), trap.vec == DONE);
		else
			check(fmt("%s to limit + 1: #GP(0) at it", ways[k].name), trap.vec == GP && trap.f.ip == 0x1000u + ways[k].at);
		memcpy(code + 0x2000, "\xcd\x80", 2);
		if (ways[k].at != 0xff)
			check(fmt("%s within a larger limit", ways[k].name), in_segment(0x2fff, 0x1000, 0) == DONE && trap.f.ip == 0x2002);
	}
}

/* ---- 16-bit branches of 32-bit code -------------------------------------------------------------------------- */

static void narrow(void)
{
	/* At 10100, with operand size 16: targets are cut to 16 bits. */
	memset(code, 0x90, sizeof(code));
	memcpy(code + 0x200, "\xcd\x80", 2);
	static const struct { const char *bytes; u8 n; const char *name; } ways[] = {
		{ "\x66\xe9\xfc\x00", 4, "66 jmp rel16" }, { "\x66\xeb\x7d", 3, "66 jmp rel8" }, { "\x39\xc0\x66\x0f\x84\xf9\x00", 7, "66 jz rel16" }, { "\x66\xe8\xfc\x00", 4, "66 call rel16" },
		{ "\xb8\x00\x02\x05\x00\x66\xff\xe0", 8, "66 jmp ax" }, { "\x68\x00\x02\x05\x00\x66\xc3", 7, "66 ret" } };
	for (unsigned k = 0; k < ARRAY_LEN(ways); k++) {
		memset(code + 0x10100, 0x90, 64);
		memcpy(code + 0x10100, ways[k].bytes, ways[k].n);
		int v = in_segment(0x11fff, 0x10100, 0);
		check(fmt("%s in 32-bit code: EIP of 16 bits", ways[k].name), v == DONE && trap.f.ip == 0x202);
		if (k == 3)
			check("it pushes two bytes", trap.f.sp == (uptr)user_stack_end - 2 && *(u16 *)trap.f.sp == 0x104);
	}
	/* LOOP by CX, JCXZ against JECXZ. */
	memcpy(code + 0x100, "\x43\x67\xe2\xfc\xcd\x80", 6);
	check("67 loop counts CX", in_segment(0x1fff, 0x100, 0x50003) == DONE && trap.f.bx == 3 && trap.f.cx == 0x50000);
	memcpy(code + 0x100, "\x67\xe3\x01\x43\xcd\x80", 6);
	check("67 jcxz looks at CX", in_segment(0x1fff, 0x100, 0x50000) == DONE && trap.f.bx == 0);
	memcpy(code + 0x100, "\xe3\x01\x43\xcd\x80", 5);
	check("jecxz looks at ECX", in_segment(0x1fff, 0x100, 0x50000) == DONE && trap.f.bx == 1);
}

/* ---- far, and returns ------------------------------------------------------------------------------------------ */

static struct { u32 off; u16 s; } __attribute__((packed, may_alias)) far_16 __attribute__((used));
extern u32 rounds16(u32 n), deep(u32 n), hops(u32 n);
__asm__(".text\n.globl rounds16,deep,hops\nrounds16: mov 4(%esp),%ecx; xor %eax,%eax\n1: lcall *far_16; dec %ecx; jnz 1b; ret\n"
	"deep: mov 4(%esp),%eax; test %eax,%eax; jz 1f; dec %eax; push %eax; call deep; add $4,%esp; inc %eax; ret\n1: ret\n"
	"hops: mov 4(%esp),%ecx; xor %eax,%eax\n1: call 2f; .byte 0x05; .long 0x1000000; inc %eax; dec %ecx; jnz 1b; ret\n2: addl $5,(%esp); ret\n");

static void far_and_back(void)
{
	/* 40 66 cb: inc ax, and a return of 32 bits. */
	memcpy(code, "\x40\x83\xc0\x02\x66\xcb", 6);
	gdt[FREE] = desc((uptr)code, 0xffff, A_XR, 0);
	gdt[FREE + 1] = desc((uptr)code, 0xffff, A_XR, F_B);
	far_16.off = 0;
	far_16.s = sel(FREE, 0);
	check_eq("far calls into a 16-bit segment: 1000 times", rounds16(1000), 3000);
	memcpy(code + 4, "\xcb", 1);
	far_16.s = sel(FREE + 1, 0);
	check_eq("the same code in a 32-bit segment", rounds16(1000), 3000);
	memcpy(code, "\xb8\x01\x00\x01\x00\xcb\x66\xcb", 8);
	check_eq("b8 takes four bytes there", rounds16(1), 0x10001);
	memcpy(code, "\xb8\x01\x00\x66\xcb\x90\x90\x90", 8);
	far_16.s = sel(FREE, 0);
	check_eq("and two here", (u16)rounds16(1), 1);
	check_eq("calls 700 deep", deep(700), 700);
	check_eq("returns behind an instruction: 1000 times", hops(1000), 1000);
}

int main(void)
{
	wraps();
	limits();
	narrow();
	far_and_back();
	return 0;
}
