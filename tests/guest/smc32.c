/* Self-modifying 16- and 32-bit code: the same programs in real mode, V86 mode and a 16-bit segment,
 * others in 32-bit segments with and without a base and under paging. SDM vol. 3 11.6. */
#include "guest.h"

const char guest_name[] = "smc32";

/* ---- 16 bits: DS has the base of CS -------------------------------------------------------------- */

#define S(name, text) CODE16_SNIPPET(name, text)
S(s_next, "movb $0x77,1f+1-s_next; 1: movb $0x11,%al");
S(s_ahead, "movb $0x77,1f+1-s_ahead; inc %bx; mov %bx,%cx; add %cx,%bx; 1: movb $0x11,%al");
S(s_opcode, "movw $0x9090,1f-s_opcode; mov $0x77,%al; 1: xor %ax,%ax");
S(s_loop, "xor %ax,%ax; mov $1000,%cx; 1: .byte 0x05; 2: .word 0; incw 2b-s_loop; loop 1b");
S(s_flip, "mov $0x77,%ax; mov $1000,%cx; 1: inc %ax; xorb $8,1b-s_flip; loop 1b");
S(s_back, "mov $3,%cx; xor %ax,%ax; 1: add $1,%ax; movb $0x36,1b+2-s_back; mov $10,%dx; 2: dec %dx; jnz 2b; loop 1b; add $10,%ax");
S(s_movs, "push %ds; pop %es; mov $2f-s_movs,%si; mov $1f-s_movs,%di; mov $3,%cx; rep movsb; 1: mov $0x1111,%ax; jmp 3f; 2: .byte 0xb8,0x77,0; 3:");
S(s_stos, "push %ds; pop %es; mov $1f-s_stos,%di; mov $0x90,%al; mov $4,%cx; rep stosb; mov $0x77,%al; 1: ud2; ud2");
S(s_data, "xor %ax,%ax; mov $1000,%cx; 1: incw 2f-s_data; add 2f-s_data,%ax; loop 1b; sub $0xa314-0x77,%ax; jmp 3f; 2: .word 0; 3:");
S(s_prefix, "movb $0x66,1f-s_prefix; mov $-1,%eax; 1: nop; mov $0x77,%ax; nop; nop; shr $8,%eax; mov $0x77,%al");
S(s_short, "movb $0,1f+1-s_short; mov $0x77,%al; 1: jmp 2f; jmp 3f; 2: mov $1,%al; 3:");

static const struct { const u8 *from, *end; const char *name; } snips[] = {
#define L(name, text) { s_##name, s_##name##_end, text }
	L(next, "the next instruction"), L(ahead, "an instruction ahead"), L(opcode, "two opcode bytes ahead"), L(loop, "an immediate, each of 1000 turns"),
	L(flip, "an opcode, each of 1000 turns"), L(back, "an instruction behind, in a loop"), L(movs, "rep movsb over what follows"), L(stos, "rep stosb over what follows"),
	L(data, "data beside the code, each of 1000 turns"), L(prefix, "a prefix that comes"), L(short, "a branch's distance") };
/* The immediate's sum of s_loop, s_back's 1 + 2 * 54 + 10: */
static u8 want_of(unsigned k) { return snips[k].from == s_loop ? (u8)(999 * 1000 / 2) : 0x77; }

static void sixteen(void)
{
	gdt[FREE] = desc(SNIP_LIN, 0xffff, A_XR, 0);
	gdt[FREE + 1] = desc(SNIP_LIN, 0xffff, A_RW, 0);
	static const char *const modes[] = { "real mode", "V86 mode", "a 16-bit segment", "unreal mode" };
	for (unsigned mode = 0; mode < 4; mode++)
		for (unsigned k = 0; k < ARRAY_LEN(snips); k++) {
			unsigned bad = 0, last = 0;
			for (unsigned turn = 0; turn < 5; turn++) { /* put there anew each time */
				struct regs r = regs16();
				put16(snips[k].from, snips[k].end);
				r.ds = SNIP_SEG;
				if (mode == 2) {
					r.flags = 2;
					r.cs = sel(FREE, 0);
					r.ds = r.es = r.fs = r.gs = sel(FREE + 1, 0);
					r.ss = DATA;
				}
				int vec = mode == 0 ? real_run(&r, false) : mode == 3 ? real_run(&r, true) : go(&r);
				bad += vec != DONE || (u8)trap.f.ax != want_of(k);
				last = (u8)trap.f.ax;
			}
			if (bad)
				say("last: %x\n", last);
			check_eq(fmt("%s changed: %s", modes[mode], snips[k].name), bad, 0);
		}
}

/* ---- 32 bits ------------------------------------------------------------------------------------------- */

static u8 code[4 * 4096] __attribute__((aligned(4096)));
static u32 run(const void *p)
{
	u32 v;
	__asm__ volatile("call *%1" : "=a"(v) : "r"(p) : "memory", "ecx", "edx", "cc");
	return v;
}
static void hot(const void *p)
{
	for (unsigned k = 0; k < 300; k++)
		run(p);
}
static void put_mov(u8 *p, u32 v)
{
	p[0] = 0xb8;
	memcpy(p + 1, &v, 4);
	p[5] = 0xc3;
}
#define BLOB(name, text) \
	extern const u8 name[], name##_end[]; \
	__asm__(".section .rodata\n" #name ": " text "\n" #name "_end:\n.text\n")
#define PUT(to, name) memcpy(to, name, (uptr)(name##_end - name))
BLOB(b_next, "movb $0x77,code+8; mov $0x11,%eax; ret");
BLOB(b_ahead, "movl $0x77,code+15; inc %ecx; lea 1(%ecx),%ecx; mov $0x11,%eax; ret");
BLOB(b_loop, "xor %eax,%eax; mov $5000,%ecx; .byte 0x05; .long 0; incl code+8; dec %ecx; jnz .-12; ret");
BLOB(b_push, "mov %esp,%edx; mov $code+16,%esp; push $0x77; mov %edx,%esp; mov $0x11,%eax; ret");
BLOB(b_call, "mov %esp,%edx; mov $code+19,%esp; call .+5; mov %edx,%esp; mov $0x11,%eax; ret; nop; nop; nop");

static void thirty_two(void)
{
	for (unsigned k = 0; k < 3; k++) {
		PUT(code, b_next);
		check_eq(fmt("32 bits: the next instruction, %u", k), run(code), 0x77);
		PUT(code, b_ahead);
		check_eq(fmt("32 bits: an instruction ahead, %u", k), run(code), 0x77);
		PUT(code, b_loop);
		check_eq(fmt("32 bits: an immediate, each of 5000 turns, %u", k), run(code), 4999u * 5000 / 2);
		PUT(code, b_push);
		check_eq(fmt("32 bits: by a push, %u", k), run(code), 0x77);
	}
	PUT(code, b_call); /* the pushed return address becomes the immediate */
	check_eq("32 bits: by a call", run(code), (uptr)code + 12);
	/* Two code segments with bases of their own over one piece of code. */
	extern u32 call_far(u32 off, u32 s);
	for (unsigned k = 0; k < 2; k++)
		gdt[FREE + k] = desc((uptr)code - 0x1000 * k, 0xfffff, A_XR, F_G | F_B);
	unsigned bad = 0;
	for (u32 k = 0; k < 200; k++) {
		put_mov(code + 0x40, k);
		code[0x45] = 0xcb; /* lret */
		bad += call_far(0x40, sel(FREE, 0)) != k;
		code[0x41] ^= 0x55;
		bad += call_far(0x1040, sel(FREE + 1, 0)) != (k ^ 0x55);
	}
	check_eq("32 bits: one piece of code in two segments, patched between", bad, 0);
	/* An EIP of its own in each: call and pop. */
	static const u8 where[] = { 0xe8, 0, 0, 0, 0, 0x58, 0xcb };
	memcpy(code + 0x80, where, sizeof(where));
	bad = 0;
	for (u32 k = 0; k < 50; k++)
		bad += call_far(0x80, sel(FREE, 0)) != 0x85 || call_far(0x1080, sel(FREE + 1, 0)) != 0x1085;
	check_eq("32 bits: each segment has its own EIP", bad, 0);
}
__asm__(".text\n.globl call_far\ncall_far: lcall *4(%esp); ret\n");

/* ---- 32 bits under paging -------------------------------------------------------------------------------- */

static void paged(void)
{
	static u32 dir[1024] __attribute__((aligned(4096))), dir2[1024] __attribute__((aligned(4096))), table[1024] __attribute__((aligned(4096))),
		table2[1024] __attribute__((aligned(4096)));
	u8 *va = (u8 *)0x80000000;
	for (unsigned k = 0; k < 32; k++)
		dir[k] = dir2[k] = k << 22 | 0x87;
	dir[1023 - 4] = dir2[1023 - 4] = 0xfec00087;
	dir[512] = (uptr)table | 7;
	dir2[512] = (uptr)table2 | 7;
	table[0] = table[2] = (uptr)code | 7;
	table[1] = table2[0] = ((uptr)code + 4096) | 7;
	table[3] = ((uptr)code + 8192) | 7;
	write_cr4(read_cr4() | 0x10);
	write_cr3((uptr)dir);
	write_cr0(read_cr0() | 0x80010000);
	put_mov(code, 1);
	put_mov(code + 4096, 2);
	hot(va);
	va[0x2001] = 3;
	check_eq("paging: patched through another address", run(va), 3);
	table[0] = ((uptr)code + 4096) | 7;
	__asm__ volatile("invlpg (%0)" : : "r"(va) : "memory");
	check_eq("paging: another page behind the address, INVLPG", run(va), 2);
	table[0] = (uptr)code | 7;
	write_cr3((uptr)dir);
	check_eq("paging: and back by MOV CR3", run(va), 3);
	unsigned bad = 0;
	for (u32 k = 0; k < 200; k++) {
		write_cr3((uptr)dir2);
		bad += run(va) != 2;
		write_cr3((uptr)dir);
		bad += run(va) != 3;
	}
	check_eq("paging: two address spaces in turns", bad, 0);
	/* mov eax, imm32 over pages 2 and 3, which are not neighbours in memory. */
	bad = 0;
	for (unsigned split = 1; split < 5; split++)
		for (u32 k = 0; k < 20; k++) {
			u8 insn[6];
			put_mov(insn, 0x01010101 * k);
			memcpy(code + 4096 - split, insn, split);
			memcpy(code + 8192, insn + split, 6 - split);
			bad += run(va + 0x3000 - split) != 0x01010101 * k;
			code[8192 + 4 - split] ^= 0x80;
			bad += run(va + 0x3000 - split) != (0x01010101 * k ^ 0x80000000);
		}
	check_eq("paging: an instruction over two pages, patched", bad, 0);
	table[0] = 0;
	__asm__ volatile("invlpg (%0)" : : "r"(va) : "memory");
	TRY(run(va));
	check("paging: the page goes away", trap.vec == PF && trap.err == 0 && trap.cr2 == (uptr)va && trap.f.ip == (uptr)va);
	write_cr0(read_cr0() & ~0x80010000ul);
	check_eq("paging off: the code at its physical address", run(code), 3);
}

int main(void)
{
	sixteen();
	thirty_two();
	paged();
	return 0;
}
