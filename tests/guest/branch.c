/* Where control goes, in 64-bit mode: indirect branches with many targets that look alike, deep
 * calls, returns that were changed on the stack, far transfers, code that overlaps itself, targets
 * whose page changes or goes away under a branch that ran often before. Each function of a page
 * says which page it lies on. SDM vol. 3 4.10.4, vol. 2 CALL, RET, JMP. */
#include "map.h"

const char guest_name[] = "branch";

#define VA (MAP_VA + 0x200000)
static u8 code[16][4096] __attribute__((aligned(4096)));
static u64 seed = 7;
static u32 rnd(u32 n) { seed = seed * 6364136223846793005ull + 1442695040888963407ull; return (u32)(seed >> 33) % n; }

static u64 call(u64 at)
{
	u64 v;
	__asm__ volatile("call *%1" : "=a"(v) : "r"(at) : "memory", "rcx", "rdx", "cc");
	return v;
}
/* mov eax, v; ret */
static void put_mov(u8 *p, u32 v)
{
	p[0] = 0xb8;
	memcpy(p + 1, &v, 4);
	p[5] = 0xc3;
}
static void put_jmp(u8 *p, u64 from, u64 to)
{
	i32 rel = (i32)(to - from - 5);
	p[0] = 0xe9;
	memcpy(p + 1, &rel, 4);
}
static void hot(u64 at)
{
	for (unsigned k = 0; k < 300; k++)
		call(at);
}

/* ---- many targets ------------------------------------------------------------------------------ */

extern u64 by_call(const u64 *targets, const u8 *which, u64 n), by_jmp(const u64 *targets, const u8 *which, u64 n), by_ret(const u64 *targets, const u8 *which, u64 n),
	by_call_m(const u64 *targets, const u8 *which, u64 n), by_push(const u64 *targets, const u8 *which, u64 n);
#define DISPATCH(name, go) \
	__asm__(".text\n.globl " #name "\n" #name ": push %rbx; push %rbp; mov %rdx,%rbp; xor %ebx,%ebx\n" \
		"1: movzbl (%rsi),%ecx; mov (%rdi,%rcx,8),%r8; " go "\n2: rol $1,%rbx; add %rax,%rbx; inc %rsi; dec %rbp; jnz 1b; mov %rbx,%rax; pop %rbp; pop %rbx; ret\n")
DISPATCH(by_call, "call *%r8");
DISPATCH(by_call_m, "call *(%rdi,%rcx,8)");
DISPATCH(by_jmp, "lea 2f(%rip),%r9; push %r9; jmp *%r8");
DISPATCH(by_ret, "lea 2f(%rip),%r9; push %r9; push %r8; ret");
DISPATCH(by_push, "lea 2f(%rip),%r9; push %r9; jmp *(%rdi,%rcx,8)");

static void many_of(const char *what, const u64 *targets, const u64 *values, unsigned n)
{
	static u8 which[4096];
	static const struct { u64 (*fn)(const u64 *, const u8 *, u64); const char *name; } ways[] = {
		{ by_call, "call r" }, { by_call_m, "call m" }, { by_jmp, "jmp r" }, { by_push, "jmp m" }, { by_ret, "ret" } };
	for (unsigned w = 0; w < ARRAY_LEN(ways); w++) {
		unsigned bad = 0;
		for (unsigned turn = 0; turn < 4; turn++) {
			u64 want = 0;
			for (unsigned k = 0; k < sizeof(which); k++) {
				which[k] = (u8)(turn == 0 ? k % n : turn == 1 ? k / 64 % n : rnd(n));
				want = (want << 1 | want >> 63) + values[which[k]];
			}
			bad += ways[w].fn(targets, which, sizeof(which)) != want;
		}
		check_eq(fmt("%s among %u targets %s", ways[w].name, n, what), bad, 0);
	}
}

static void many_targets(void)
{
	static u64 targets[64], values[64];
	/* 64 KiB apart: alike in their 16 low bits. Four physical pages behind them, same offset. */
	for (unsigned k = 0; k < 64; k++) {
		put_mov(code[k % 16] + 0x120 + 16 * (k / 16), 1000 + k);
		u64 va = VA + 0x10000 * (u64)k;
		map_page(va, code[k % 16], P | W);
		targets[k] = va + 0x120 + 16 * (k / 16);
		values[k] = 1000 + k;
	}
	many_of("64 KiB apart", targets, values, 64);
	/* One physical page at addresses that differ in high bits alone; it returns its own address. */
	static const u8 where[] = { 0x48, 0x8d, 0x05, 0xf9, 0xff, 0xff, 0xff, 0xc3 };
	memcpy(code[0] + 0x800, where, sizeof(where));
	static u64 pdpt[512] __attribute__((aligned(4096)));
	for (unsigned k = 0; k < 512; k++)
		pdpt[k] = map_pdpt[0];
	for (unsigned k = 16; k < 32; k++)
		boot_pml4[k] = (uptr)pdpt | P | W | U;
	boot_pml4[256 + 16] = (uptr)pdpt | P | W | U;
	flush();
	u64 low = (VA & ((1ull << 30) - 1)) + 0x800;
	for (unsigned k = 0; k < 32; k++)
		targets[k] = values[k] = (k & 1 ? 0xffff880000000000 : (u64)(16 + k / 2) << 39) + ((u64)(k * 37 % 512) << 30) + low;
	many_of("alike in their 30 low bits", targets, values, 32);
	for (unsigned k = 16; k < 32; k++)
		boot_pml4[k] = 0;
	boot_pml4[256 + 16] = 0;
	flush();
}

/* ---- calls and returns ------------------------------------------------------------------------------ */

extern u64 deep(u64 n), three_sites(u64 n), skip_ret(void), grand_ret(void), ret_n(void), call_pop(void), unwind(u64 n), coroutines(u64 n, void *stack), thunk(u64 n);
__asm__(".text\n.globl deep,three_sites,skip_ret,grand_ret,ret_n,call_pop,unwind,coroutines,thunk\n"
	"deep: test %rdi,%rdi; jz 1f; dec %rdi; call deep; inc %rax; ret\n1: xor %eax,%eax; ret\n"
	/* sum over a ternary tree: each node returns to one of three places */
	"three_sites: test %rdi,%rdi; jz 1f; push %rbx; dec %rdi; call three_sites; lea (%rax,%rax),%rbx; call three_sites; add %rax,%rbx; call three_sites; xor %rbx,%rax; inc %rax; inc %rdi; pop %rbx; ret\n"
	"1: mov $1,%eax; ret\n"
	"skip_ret: xor %eax,%eax; call 1f; or $1,%eax; or $2,%eax; ret\n1: addq $3,(%rsp); ret\n"
	"grand_ret: xor %eax,%eax; call 1f; or $4,%eax; ret\n1: call 2f; or $8,%eax; ret\n2: add $8,%rsp; or $16,%eax; ret\n"
	"ret_n: push %rbp; mov %rsp,%rbp; push $5; push $6; call 1f; sub %rsp,%rbp; mov %rbp,%rax; pop %rbp; ret\n1: ret $16\n"
	"call_pop: call 1f\n1: pop %rax; lea 1b(%rip),%rcx; sub %rcx,%rax; ret\n"
	"unwind: mov %rsp,%r8; call 1f; ret\n1: test %rdi,%rdi; jz 2f; dec %rdi; call 1b; ud2\n2: lea -8(%r8),%rsp; mov $77,%eax; ret\n"
	/* two stacks that hand over by RET */
	"coroutines: push %rbx; push %rbp; xor %eax,%eax; mov %rdi,%rbp; lea 3f(%rip),%rcx; mov %rcx,(%rsi)\n"
	"1: lea 2f(%rip),%rcx; push %rcx; xchg %rsp,%rsi; ret\n2: add $1,%rax; dec %rbp; jnz 1b; pop %rbp; pop %rbx; ret\n"
	"3: add $0x10000,%rax; lea 3b(%rip),%rcx; push %rcx; xchg %rsp,%rsi; ret\n"
	/* as compilers' indirect thunks */
	"thunk: push %rbx; xor %ebx,%ebx\n1: lea 3f(%rip),%rax; call 2f; dec %rdi; jnz 1b; mov %rbx,%rax; pop %rbx; ret\n2: call 4f\n5: pause; lfence; jmp 5b\n4: mov %rax,(%rsp); ret\n3: inc %rbx; ret\n");

static u64 tree(u64 n)
{
	u64 v = 1;
	while (n--)
		v = ((2 * v + v) ^ v) + 1;
	return v;
}

static void calls(void)
{
	static u8 stack[65536 * 4] __attribute__((aligned(16)));
	for (unsigned turn = 0; turn < 3; turn++) {
		u64 v, n = turn == 0 ? 100 : turn == 1 ? 5000 : 16000;
		__asm__ volatile("mov %%rsp,%%rbx; mov %2,%%rsp; call deep; mov %%rbx,%%rsp" : "=a"(v), "+D"(n) : "r"(stack + sizeof(stack)) : "rbx", "memory", "cc");
		check_eq(fmt("calls %u deep", turn == 0 ? 100 : turn == 1 ? 5000 : 16000), v, turn == 0 ? 100 : turn == 1 ? 5000 : 16000);
	}
	check_eq("a tree of calls, each from one of three places", three_sites(9), tree(9));
	static const struct { u64 (*fn)(void); u64 want; const char *name; } ways[] = {
		{ skip_ret, 2, "a return address changed to skip an instruction" }, { grand_ret, 16 | 4, "a return to the caller's caller" }, { ret_n, 0, "ret 16" },
		{ call_pop, 0, "call and pop" } };
	for (unsigned k = 0; k < ARRAY_LEN(ways); k++) {
		unsigned bad = 0;
		for (unsigned n = 0; n < 500; n++)
			bad += ways[k].fn() != ways[k].want;
		check_eq(fmt("%s: 500 times", ways[k].name), bad, 0);
	}
	unsigned bad = 0;
	for (u64 n = 0; n < 200; n++)
		bad += unwind(n) != 77;
	check_eq("stack thrown away from any depth", bad, 0);
	check_eq("two stacks that return into one another: 1000 times", coroutines(1000, stack + 4096), 1000 * 0x10001ull);
	check_eq("an indirect thunk: 1000 times", thunk(1000), 1000);
}

/* ---- far ---------------------------------------------------------------------------------------------- */

extern u64 far_rounds(u64 n), mode_rounds(u64 n);
static struct { u32 off; u16 s; } __attribute__((packed, may_alias)) far_fn __attribute__((used)), far_32 __attribute__((used));
__asm__(".text\n.globl far_rounds,mode_rounds,far_callee,mode_callee\nfar_rounds: xor %eax,%eax\n1: lcall *far_fn; dec %rdi; jnz 1b; ret\nfar_callee: mov %cs,%ecx; add %rcx,%rax; lretl\n"
	"mode_rounds: xor %eax,%eax\n1: lcall *far_32; dec %rdi; jnz 1b; ret\n.code32\nmode_callee: .byte 0x40; nop; lret\n.code64\n");

static void far_transfers(void)
{
	extern const u8 far_callee[], mode_callee[];
	gdt[FREE] = desc(0, 0xfffff, A_XR | 1, F_G | F_L);
	far_fn.off = (u32)(uptr)far_callee;
	far_fn.s = sel(FREE, 0);
	check_eq("far calls to another selector and back: 1000 times", far_rounds(1000), 1000 * 8ull * FREE);
	far_32.off = (u32)(uptr)mode_callee;
	far_32.s = CODE32;
	check_eq("far calls to 32-bit code, where 40 is INC: 1000 times", mode_rounds(1000), 1000);
	far_32.s = CODE;
	check_eq("the same bytes as 64-bit code: a prefix", mode_rounds(1000), 0);
	far_32.s = CODE32;
	check_eq("and as 32-bit code again", mode_rounds(10), 10);
}

/* ---- code that overlaps ----------------------------------------------------------------------------------- */

extern u64 overlap(u64 n);
/* add eax, 0x11b8; add al, al; ret. One byte later: mov eax, 0x11; rol bl, 8; ret. */
__asm__(".text\n.globl overlap\noverlap: push %rbx; push %rbp; xor %ebx,%ebx; mov %rdi,%rbp\n"
	"1: xor %eax,%eax; call 2f; add %rax,%rbx; xor %eax,%eax; call 2f+1; rol $1,%rbx; add %rax,%rbx; dec %rbp; jnz 1b; mov %rbx,%rax; pop %rbp; pop %rbx; ret\n"
	"2: .byte 0x05,0xb8,0x11,0x00,0x00,0x00,0xc0,0xc3,0x08,0xc3\n");
static void overlapping(void)
{
	u64 want = 0;
	for (unsigned k = 0; k < 2000; k++) {
		want += 0x1170;
		want = (want << 1 | want >> 63) + 0x11;
	}
	check_eq("into the middle of an instruction, in turns", overlap(2000), want);
	u8 *p = code[3];
	for (unsigned k = 0; k < 64; k++)
		p[k] = (u8)(k & 1 ? 0xc0 : 0xff); /* inc eax each two bytes */
	p[64] = 0xc3;
	map_page(VA, p, P | W);
	unsigned bad = 0;
	for (unsigned turn = 0; turn < 50; turn++)
		for (unsigned k = 0; k <= 64; k += 2) {
			u64 v = 0;
			__asm__ volatile("call *%1" : "+a"(v) : "r"(VA + k) : "memory", "cc");
			bad += v != (64 - k) / 2;
		}
	check_eq("33 entries into one piece of straight code", bad, 0);
}

/* ---- targets that change ------------------------------------------------------------------------------------- */

enum { T_JMP, T_JCC, T_CALL, T_FALL, T_IND, T_RET, N_WAYS };
static const char *const way_names[] = { "jmp", "jcc", "call", "the next page", "jmp r", "ret" };

/* At VA + 4096 - 32 code that goes to VA + 4096 by some way. */
static u64 make_way(unsigned way)
{
	u64 at = VA + 4096 - 32, to = VA + 4096;
	u8 *p = code[0] + 4096 - 32;
	memset(p, 0x90, 32);
	switch (way) {
	case T_JMP: put_jmp(p, at, to); break;
	case T_JCC: memcpy(p, "\x39\xc0\x74\x1c", 4); break; /* cmp eax, eax; je to the end of 32 bytes */
	case T_CALL: put_jmp(p, at, to); p[0] = 0xe8; p[5] = 0xc3; break;
	case T_IND: memcpy(p, "\x48\xb8", 2); memcpy(p + 2, &to, 8); memcpy(p + 10, "\xff\xe0", 2); break;
	case T_RET: memcpy(p, "\x48\xb8", 2); memcpy(p + 2, &to, 8); memcpy(p + 10, "\x50\xc3", 2); break;
	}
	return at;
}

static int run_at(u64 at, bool cpl3)
{
	extern const u8 call_done[];
	struct regs r = user_regs(call_done);
	r.ax = at;
	if (!cpl3) {
		r.cs = CODE;
		r.ss = r.ds = r.es = DATA;
	} else {
		r.ip += USER_VA;
		r.sp += USER_VA;
	}
	return go(&r);
}
__asm__(".text\n.globl call_done\ncall_done: call *%rax; int $0x80\n");

static void changing(void)
{
	bool smep = has(7, 1, 7), pcid = has(1, 2, 17);
	static const char *const flushes[] = { "INVLPG", "MOV CR3" };
	for (unsigned way = 0; way < N_WAYS; way++) {
		const char *w = way_names[way];
		put_mov(code[1], 0x111);
		put_mov(code[2], 0x222);
		map_page(VA, code[0], P | W | U);
		map_page(VA + 4096, code[1], P | W | U);
		u64 at = make_way(way), to = VA + 4096;
		hot(at);
		for (unsigned f = 0; f < 2; f++) {
			check_eq(fmt("%s, to a page", w), call(at), 0x111);
			*pte(to) = (uptr)code[2] | P | W | U;
			if (f)
				flush();
			else
				invlpg(to);
			check_eq(fmt("%s, the target remapped, %s", w, flushes[f]), call(at), 0x222);
			hot(at);
			map_page(to, code[1], P | W | U);
			hot(at);
		}
		/* Accessed again after it was cleared. */
		map_page(to, code[1], P | W | U);
		call(at);
		check(fmt("%s, the target's A bit", w), *pte(to) & A);
		*pte(to) &= ~(u64)A;
		invlpg(to);
		call(at);
		check(fmt("%s, the target's A bit, set again", w), *pte(to) & A);
		static const struct { u64 bits; bool cpl3, smep; u32 ec; const char *name; } gone[] = {
			{ 0, false, false, EC_I, "absent" }, { P | W | U | NX, false, false, EC_I | EC_P, "NX" }, { P | W, true, false, EC_I | EC_P | EC_U, "supervisor's, CPL 3" },
			{ P | W | U | NX, true, false, EC_I | EC_P | EC_U, "NX, CPL 3" }, { 0, true, false, EC_I | EC_U, "absent, CPL 3" } };
		for (unsigned g = 0; g < ARRAY_LEN(gone); g++) {
			map_page(to, code[1], P | W | U);
			hot(at);
			for (unsigned k = 0; k < 20; k++)
				run_at(at, gone[g].cpl3);
			check(fmt("%s, before: %s", w, gone[g].name), trap.vec == DONE && trap.f.ax == 0x111);
			*pte(to) = (gone[g].bits & P ? (uptr)code[1] : 0) | gone[g].bits;
			invlpg(to);
			run_at(at, gone[g].cpl3);
			check(fmt("%s, the target %s: #PF there", w, gone[g].name), trap.vec == PF && trap.err == gone[g].ec && trap.cr2 == to && trap.f.ip == to);
			map_page(to, code[1], P | W | U);
			run_at(at, gone[g].cpl3);
			check(fmt("%s, mended: %s", w, gone[g].name), trap.vec == DONE && trap.f.ax == 0x111);
		}
		/* The same page for CPL 0 after CPL 3 found it the supervisor's, without a flush. */
		map_page(to, code[1], P | W);
		run_at(at, false);
		bool zero = trap.vec == DONE;
		run_at(at, true);
		bool three = trap.vec == PF;
		run_at(at, false);
		check(fmt("%s, a supervisor's page: CPL 0, CPL 3, CPL 0", w), zero && three && trap.vec == DONE);
		if (smep) {
			map_page(VA, code[0], P | W);
			map_page(to, code[1], P | W | U);
			run_at(at, false);
			zero = trap.vec == DONE;
			write_cr4(read_cr4() | CR4_SMEP);
			run_at(at, false);
			write_cr4(read_cr4() & ~(u64)CR4_SMEP);
			check(fmt("%s, a user's page: CR4.SMEP acts at once", w), zero && trap.vec == PF && trap.err == (EC_I | EC_P) && trap.f.ip == to);
			run_at(at, false);
			check(fmt("%s, and its end, too", w), trap.vec == DONE);
			map_page(VA, code[0], P | W | U);
		}
		if (pcid) { /* two address spaces with other code behind the branch, and no flush between them */
			static u64 pml4[512] __attribute__((aligned(4096))), pdpt[512] __attribute__((aligned(4096))), pd[512] __attribute__((aligned(4096))), pt[8][512] __attribute__((aligned(4096)));
			map_page(to, code[1], P | W | U);
			memcpy(pml4, boot_pml4, 4096);
			memcpy(pt, map_pt, sizeof(pt));
			pml4[1] = (uptr)pdpt | P | W | U;
			pdpt[0] = (uptr)pd | P | W | U;
			for (unsigned k = 0; k < 8; k++)
				pd[k] = (uptr)pt[k] | P | W | U;
			(&pt[0][0])[(to - MAP_VA) >> 12] = (uptr)code[2] | P | W | U;
			write_cr4(read_cr4() | CR4_PCIDE);
			unsigned bad = 0;
			for (unsigned k = 0; k < 100; k++) {
				write_cr3(((uptr)boot_pml4 | 1) | (k ? 1ull << 63 : 0));
				bad += call(at) != 0x111;
				write_cr3(((uptr)pml4 | 2) | (k ? 1ull << 63 : 0));
				bad += call(at) != 0x222;
			}
			write_cr3((uptr)boot_pml4);
			write_cr4(read_cr4() & ~(u64)CR4_PCIDE);
			check_eq(fmt("%s, two address spaces by PCID in turns", w), bad, 0);
		}
		unsigned bad = 0;
		static u64 pml4b[512] __attribute__((aligned(4096)));
		memcpy(pml4b, boot_pml4, 4096);
		pml4b[1] = 0; /* nothing there */
		for (unsigned k = 0; k < 20; k++) {
			u64 keep = read_cr3();
			write_cr3((uptr)pml4b);
			run_at(at, false);
			bad += trap.vec != PF || trap.f.ip != at;
			write_cr3(keep);
			bad += call(at) != 0x111;
		}
		check_eq(fmt("%s, an address space without it in turns", w), bad, 0);
	}
	if (!pcid)
		skip("PCID", "not there");
}

/* ---- hot, then not canonical ---------------------------------------------------------------------------------- */

static void off_the_map(void)
{
	extern const u8 jmp_rax[], call_rax[], ret_rax[];
	static const struct { const u8 *code; const char *name; u8 at; } ways[] = { { jmp_rax, "jmp", 0 }, { call_rax, "call", 0 }, { ret_rax, "ret", 1 } };
	memcpy(code[1], "\xcd\x80", 2);
	map_page(VA, code[1], P | W | U);
	for (unsigned k = 0; k < ARRAY_LEN(ways); k++) {
		struct regs r = user_regs(ways[k].code);
		r.ip += USER_VA;
		r.sp += USER_VA;
		r.ax = VA;
		for (unsigned n = 0; n < 100; n++)
			go(&r);
		check(fmt("%s to a page", ways[k].name), trap.vec == DONE);
		r.ax = VA | 1ull << 63;
		go(&r);
		check(fmt("%s to where it is not canonical: #GP(0) at the branch", ways[k].name),
		      trap.vec == GP && trap.err == 0 && trap.f.ip == r.ip + ways[k].at && trap.f.sp == r.sp - 8 * ways[k].at);
		r.ax = VA;
		go(&r);
		check(fmt("%s to the page again", ways[k].name), trap.vec == DONE);
	}
}
__asm__(".text\n.globl jmp_rax,call_rax,ret_rax\njmp_rax: jmp *%rax\ncall_rax: call *%rax\nret_rax: push %rax; ret\n");

int main(void)
{
	map_init();
	map_supervisor();
	map_own_stacks();
	many_targets();
	calls();
	far_transfers();
	overlapping();
	changing();
	off_the_map();
	return 0;
}
