/* Self-modifying code, and code modified by the other processor. SDM vol. 3 8.1.3 and 11.6: on one
 * processor a store to code is seen by the next branch at the latest (here: by the next instruction,
 * as all P6 and later do); across processors after a serializing instruction. Each test runs its
 * code before it changes it, so that whatever keeps decoded code has it. */
#include "guest.h"

const char guest_name[] = "smc";

static u8 code[4 * 4096] __attribute__((aligned(4096)));
extern u64 boot_pml4[512];
static u64 pdpt[512] __attribute__((aligned(4096))), pd[512] __attribute__((aligned(4096))), pt[512] __attribute__((aligned(4096)));
#define ALIAS 0x8000000000ul

static u32 run(const void *p)
{
	u32 v;
	__asm__ volatile("call *%1" : "=a"(v) : "r"(p) : "memory", "rcx", "rdx");
	return v;
}
/* mov eax, v; ret */
static void put_mov(u8 *p, u32 v)
{
	p[0] = 0xb8;
	memcpy(p + 1, &v, 4);
	p[5] = 0xc3;
}
static void hot(const void *p)
{
	for (unsigned k = 0; k < 5000; k++)
		run(p);
}

static void alone(void)
{
	put_mov(code, 1);
	check_eq("code", run(code), 1);
	put_mov(code, 2);
	check_eq("rewritten between two calls", run(code), 2);
	hot(code);
	*(u32 *)(code + 1) = 3;
	check_eq("immediate of hot code", run(code), 3);
	code[1] = 4;
	check_eq("one byte of it", run(code), 4);
	unsigned bad = 0;
	for (u32 k = 0; k < 3000; k++) {
		*(volatile u32 *)(code + 1) = k;
		bad += run(code) != k;
	}
	check_eq("3000 times in a row", bad, 0);
	/* The next instruction: movb $v, next+1; next: mov al. */
	static const u8 next[] = { 0xc6, 0x05, 1, 0, 0, 0, 0x77, 0xb0, 0x11, 0x0f, 0xb6, 0xc0, 0xc3 };
	memcpy(code, next, sizeof(next));
	check_eq("a store into the next instruction", run(code), 0x77);
	code[8] = 0x11;
	check_eq("again", run(code), 0x77);
	hot(code);
	code[8] = 0x12;
	check_eq("and when hot", run(code), 0x77);
	/* A loop that counts its own increments: inc byte of the immediate; each turn uses the new one. */
	static const u8 loop[] = { 0x31, 0xc0, 0xb9, 100, 0, 0, 0,
				   /* 7: */ 0x05, 0, 0, 0, 0,                     /* add eax, imm */
				   /* 12: */ 0xfe, 0x05, 0xf6, 0xff, 0xff, 0xff,  /* inc byte [rip - 10] = 8 */
				   /* 18: */ 0xff, 0xc9, 0x75, 0xf1, 0xc3 };
	memcpy(code, loop, sizeof(loop));
	check_eq("a loop that changes itself each turn", run(code), 99 * 100 / 2);
	/* Its opcode: from INC to DEC and back. */
	memset(code, 0x90, 64);
	static const u8 flip[] = { 0x31, 0xc0, 0xb9, 10, 0, 0, 0,
				   /* 7: */ 0xff, 0xc0,                           /* inc eax / dec eax (c8) */
				   /* 9: */ 0x80, 0x35, 0xf8, 0xff, 0xff, 0xff, 8, /* xor byte [rip - 8], 8: ends at 16, so 8 */
				   /* 16: */ 0xff, 0xc9, 0x75, 0xf3, 0xc3 };
	memcpy(code, flip, sizeof(flip));
	check_eq("an opcode that flips each turn", run(code), 0);
	/* Backward in the same line, forward in the same page, by each size of store. */
	for (unsigned size = 1; size <= 8; size *= 2) {
		put_mov(code + 256, 0x01010101);
		hot(code + 256);
		u8 *at = code + 257;
		if (size == 1)
			*(volatile u8 *)at = 2;
		else if (size == 2)
			*(volatile u16 *)at = 0x0202;
		else if (size == 4)
			*(volatile u32 *)at = 0x02020202;
		else
			*(volatile u64 *)at = 0x909090c302020202ull;
		check_eq(fmt("a store of %u bytes", size), run(code + 256) & (size >= 4 ? ~0u : (1u << 8 * size) - 1), 0x02020202 & (size >= 4 ? ~0u : (1u << 8 * size) - 1));
	}
	/* Stores of other kinds. */
	put_mov(code + 512, 1);
	put_mov(code + 1024, 0x99);
	hot(code + 512);
	__asm__ volatile("rep movsb" : : "D"(code + 512), "S"(code + 1024), "c"(6) : "memory");
	check_eq("rep movsb", run(code + 512), 0x99);
	__asm__ volatile("rep stosb" : : "D"(code + 513), "a"(0x42), "c"(4) : "memory");
	check_eq("rep stosb", run(code + 512), 0x42424242);
	__asm__ volatile("lock addl $1,%0" : "+m"(*(u32 *)(code + 513)));
	check_eq("lock add", run(code + 512), 0x42424243);
	u32 x = 7;
	__asm__ volatile("xchgl %0,%1" : "+r"(x), "+m"(*(u32 *)(code + 513)));
	check_eq("xchg", run(code + 512), 7);
	__asm__ volatile("movd %1,%%xmm0; movd %%xmm0,%0" : "=m"(*(u32 *)(code + 513)) : "r"(8));
	check_eq("an SSE store", run(code + 512), 8);
	static const u32 nine = 9;
	__asm__ volatile("fildl %1; fistpl %0" : "=m"(*(u32 *)(code + 513)) : "m"(nine));
	check_eq("an x87 store", run(code + 512), 9);
	__asm__ volatile("mov %%rsp,%%rbx; mov %0,%%rsp; push %1; mov %%rbx,%%rsp" : : "r"(code + 512 + 8), "r"(0x9090c30000000ab8ull) : "rbx", "memory");
	check_eq("a push", run(code + 512), 10);
	__asm__ volatile("cmpxchgl %2,%0" : "+m"(*(u32 *)(code + 513)) : "a"(10), "r"(11));
	check_eq("cmpxchg", run(code + 512), 11);
	__asm__ volatile("sgdt %0" : "=m"(code[1100]));
	put_mov(code + 1100, 5);
	check_eq("over what sgdt wrote", run(code + 1100), 5);
	__asm__ volatile("fxsave %0" : "=m"(code[2048]));
	put_mov(code + 2048 + 160, 6);
	hot(code + 2048 + 160);
	__asm__ volatile("pcmpeqd %%xmm0,%%xmm0; movdqa %1,%%xmm0; fxsave %0" : "=m"(code[2048]) : "m"(*(u8 (*)[16])({ put_mov(code + 3072, 12); code + 3072; })));
	check_eq("fxsave over code", run(code + 2048 + 160), 12);
	/* An instruction over two pages. */
	u8 *cross = code + 4096 - 3;
	put_mov(cross, 0x11223344);
	hot(cross);
	check_eq("code across two pages", run(cross), 0x11223344);
	cross[4] = 0x55;
	check_eq("its half in the second page changes", run(cross), 0x55223344);
	hot(cross);
	cross[1] = 0x66;
	check_eq("its half in the first page changes", run(cross), 0x55223366);
	*(u64 *)(code + 4096 - 4) = 0xc3aabbccddb890ull | (u64)0x90 << 56;
	check_eq("one store over both", run(cross), 0xaabbccdd);
	/* Data on a page of code: must work, quickly or not. */
	put_mov(code, 1);
	u32 sum = 0;
	for (u32 k = 0; k < 2000; k++) {
		*(volatile u32 *)(code + 128) = k;
		sum += run(code) + *(volatile u32 *)(code + 128);
	}
	check_eq("data beside code", sum, 2000 + 1999 * 2000 / 2);
	/* A code page becomes data and code again; freed and mapped elsewhere. */
	memset(code + 4096, 0xcc, 4096);
	TRY(run(code + 4096));
	check_trap("int3", BP, 0);
	memset(code + 4096, 0xc3, 4096);
	TRY(run(code + 4096));
	check_trap("ret in its place", NONE, 0);
	memset(code + 4096, 0x0f, 1);
	memset(code + 4097, 0x0b, 1);
	TRY(run(code + 4096));
	check_trap("ud2 in its place", UD, 0);
}

static void aliases(void)
{
	boot_pml4[1] = (uptr)pdpt | 7;
	pdpt[0] = (uptr)pd | 7;
	pd[0] = (uptr)pt | 7;
	for (unsigned k = 0; k < 4; k++)
		pt[k] = ((uptr)code + 4096 * k) | 7;
	write_cr3(read_cr3());
	u8 *alias = (u8 *)ALIAS;
	put_mov(code, 1);
	hot(code);
	check_eq("code through another address", run(alias), 1);
	hot(alias);
	*(volatile u32 *)(alias + 1) = 2;
	check_eq("written through an alias", run(code), 2);
	check_eq("and the alias itself", run(alias), 2);
	*(volatile u32 *)(code + 1) = 3;
	check_eq("written directly, run by the alias", run(alias), 3);
	/* The page's mapping changes under a virtual address. */
	put_mov(code + 4096, 44);
	put_mov(code, 33);
	hot(alias);
	pt[0] = ((uptr)code + 4096) | 7;
	__asm__ volatile("invlpg (%0)" : : "r"(alias) : "memory");
	check_eq("remapped: the new page's code", run(alias), 44);
	pt[0] = (uptr)code | 7;
	write_cr3(read_cr3());
	check_eq("and back", run(alias), 33);
	/* The second page of an instruction is remapped. */
	put_mov(code + 4096 - 3, 0x11223344);
	memset(code + 8192, 0, 16);
	code[8192] = 0x77;
	code[8192 + 1] = 0x66;
	code[8192 + 2] = 0xc3;
	hot(alias + 4096 - 3);
	pt[1] = ((uptr)code + 8192) | 7;
	__asm__ volatile("invlpg (%0)" : : "r"(alias + 4096) : "memory");
	check_eq("the second half's page is remapped", run(alias + 4096 - 3), 0x66773344);
	/* Mode changes meaning: the same bytes as 64- and 32-bit code. */
	static const u8 both[] = { 0x48, 0x31, 0xc0, 0xcd, 0x80 }; /* xor rax,rax / dec eax; xor eax,eax */
	memcpy(code, both, 5);
	struct regs r = user_regs(code);
	r.ax = ~0ull;
	go(&r);
	check("bytes as 64-bit code", trap.vec == DONE && trap.f.ax == 0);
	static const u8 inc[] = { 0x40, 0x90, 0xcd, 0x80 };
	memcpy(code, inc, 4);
	r.ax = 1;
	go(&r);
	check_eq("40 90 is NOP in 64-bit mode", trap.f.ax, 1);
	r.cs = UCODE32;
	go(&r);
	check_eq("and INC EAX in compatibility mode", trap.f.ax, 2);
	r.cs = UCODE;
	go(&r);
	check_eq("and NOP again", trap.f.ax, 1);
}

/* ---- the other processor -------------------------------------------------------------------- */

static volatile u32 ap_up, turn, ap_result;
void ap_entry(void)
{
	ap_up = 1;
	u32 seen = 0;
	for (;;) {
		while (turn == seen || !(turn & 1))
			__asm__ volatile("pause");
		seen = turn;
		u32 r[4];
		cpuid(0, 0, r); /* serializes */
		ap_result = run(code + 12288);
		turn = seen + 1;
		seen++;
	}
}

static void cross_processor(void)
{
	put_mov(code + 12288, 0);
	start_ap(1);
	for (unsigned k = 0; k < 200 && !ap_up; k++)
		delay_us(1000);
	if (!ap_up) {
		skip("cross-modifying code", "one processor");
		return;
	}
	unsigned bad = 0;
	for (u32 k = 1; k <= 500; k++) {
		*(volatile u32 *)(code + 12288 + 1) = k;
		__asm__ volatile("mfence" : : : "memory");
		turn = 2 * k - 1;
		for (u32 spin = 0; turn != 2 * k && spin < 100000000; spin++)
			__asm__ volatile("pause");
		bad += ap_result != k;
		hot(code + 12288);
		if (turn != 2 * k) {
			check("the other processor answers", false);
			return;
		}
		if (k == 500)
			break;
		if (k > 20)
			bad += run(code + 12288) != k;
	}
	check_eq("code written here, run there after CPUID: 500 times", bad, 0);
}

int main(void)
{
	alone();
	aliases();
	cross_processor();
	return 0;
}
