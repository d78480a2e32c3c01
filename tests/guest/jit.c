/* Code that is made and changed in the ways of JIT compilers, loaders and kernels: patches ahead in
 * the same block, data on code pages, pages with several addresses, code over page boundaries,
 * strings that run over code, DMA into code, another processor's code patched while it
 * runs. SDM vol. 3 8.1.3, 11.6. smc.c has each kind of store. */
#include "map.h"

const char guest_name[] = "jit";

#define VA (MAP_VA + 0x300000)
#define VB (MAP_VA + 0x400000)
#define VC (MAP_VA + 0x500000)
static u8 code[8][4096] __attribute__((aligned(4096)));
static u64 seed = 3;
static u32 rnd(u32 n) { seed = seed * 6364136223846793005ull + 1442695040888963407ull; return (u32)(seed >> 33) % n; }

static u64 run(u64 at)
{
	u64 v;
	__asm__ volatile("call *%1" : "=a"(v) : "r"(at) : "memory", "rcx", "rdx", "rsi", "rdi", "cc");
	return v;
}
static void hot(u64 at)
{
	for (unsigned k = 0; k < 300; k++)
		run(at);
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

/* ---- ahead in the same block ------------------------------------------------------------------- */

static void ahead(void)
{
	/* mov [rip + d], imm8; n NOPs and INCs; mov al, 0x11; ret: for each distance, first and hot. */
	unsigned bad = 0, bad_hot = 0;
	u8 *p = code[0];
	for (unsigned n = 0; n < 100; n++) {
		memset(p, 0x90, 128);
		static const u8 store[] = { 0x31, 0xc0, 0xc6, 0x05, 0, 0, 0, 0, 0x77 };
		memcpy(p, store, sizeof(store));
		p[4] = (u8)(n + 1);
		for (unsigned k = 0; k + 1 < n; k += 3)
			memcpy(p + 9 + k, "\xff\xc1", 2); /* inc ecx */
		memcpy(p + 9 + n, "\xb0\x11\xc3", 3);
		bad += run((uptr)p) != 0x77;
		for (unsigned k = 0; k < 20; k++) {
			p[9 + n + 1] = (u8)k;
			bad_hot += run((uptr)p) != 0x77;
		}
	}
	check_eq("a patch ahead in the same block, each distance", bad, 0);
	check_eq("the same, 20 times more", bad_hot, 0);
	/* Several instructions at once. */
	BLOB(vec, "movups 2f(%rip),%xmm0; xor %eax,%eax; movups %xmm0,1f(%rip); 1: .fill 16,1,0x90; ret; 2: .byte 0xb8,1,2,3,4,0xff,0xc0,0xff,0xc0,0x90,0x90,0x90,0x90,0xff,0xc8,0x90");
	for (unsigned k = 0; k < 3; k++) {
		PUT(code[1], vec);
		check_eq(fmt("16 bytes stored over what follows, %u", k), run((uptr)code[1]), 0x04030202);
	}
	/* Changed back and forth within one turn of a loop. */
	BLOB(flip, "xor %eax,%eax; mov $1000,%ecx; 1: movb $1,2f+2(%rip); 2: add $7,%eax; movb $2,3f+2(%rip); 3: add $7,%eax; movb $9,2b+2(%rip); dec %ecx; jnz 1b; ret");
	PUT(code[2], flip);
	check_eq("two patches ahead and one back each turn", run((uptr)code[2]), 3000);
	/* A counter beside the code that counts, in its very line. */
	BLOB(beside, "mov $20000,%ecx; xor %eax,%eax; mov %eax,2f(%rip); 1: incl 2f(%rip); add 2f(%rip),%eax; dec %ecx; jnz 1b; ret; 2: .long 0");
	PUT(code[3], beside);
	check_eq("data written each turn beside the code", (u32)run((uptr)code[3]), 20000u * 20001 / 2);
	BLOB(far_beside, "mov $20000,%ecx; xor %eax,%eax; mov %eax,2048+2f(%rip); 1: incl 2048+2f(%rip); add 2048+2f(%rip),%eax; dec %ecx; jnz 1b; ret; 2:");
	PUT(code[3], far_beside);
	check_eq("data written each turn elsewhere on the page", (u32)run((uptr)code[3]), 20000u * 20001 / 2);
	/* Code on the stack, made anew for each call. */
	bad = 0;
	for (u32 k = 0; k < 1000; k++) {
		u64 v;
		__asm__ volatile("push %2; push %1; call *%%rsp; add $16,%%rsp" : "=a"(v) : "r"(0x90909000000000b8ull | (u64)k << 8), "r"(0xc3ull) : "memory");
		bad += v != k;
	}
	check_eq("code pushed on the stack and called: 1000 times", bad, 0);
}

/* ---- the same places again and again -------------------------------------------------------------- */

/* OP eax/rax/al, imm; ret, with each kind of immediate: patched often, by stores of its size. */
static const struct immediate { const char *name; u8 op[3], n_op, size; } immediates[] = {
	{ "mov eax, imm32", { 0xb8 }, 1, 4 }, { "mov rax, imm32", { 0x48, 0xc7, 0xc0 }, 3, 4 }, { "mov rax, imm64", { 0x48, 0xb8 }, 2, 8 },
	{ "add eax, imm32", { 0x05 }, 1, 4 }, { "add rax, imm32", { 0x48, 0x05 }, 2, 4 }, { "add rax, imm8", { 0x48, 0x83, 0xc0 }, 3, 1 },
	{ "xor eax, imm32", { 0x35 }, 1, 4 }, { "sub rax, imm8", { 0x48, 0x83, 0xe8 }, 3, 1 }, { "and al, imm8", { 0x24 }, 1, 1 }, { "mov al, imm8", { 0xb0 }, 1, 1 },
	{ "or eax, imm8", { 0x83, 0xc8 }, 2, 1 }, { "adc eax, imm32", { 0x15 }, 1, 4 },
};

static u64 does(const struct immediate *m, u64 a, i64 v)
{
	u8 op = m->op[m->n_op - 1];
	u64 r = m->name[0] == 'm' ? (u64)v : op == 0x05 || op == 0xc0 ? a + (u64)v : op == 0x35 ? a ^ (u64)v : op == 0xe8 ? a - (u64)v :
		op == 0x24 ? a & (u64)v : op == 0xc8 ? a | (u64)v : a + (u64)v + 1;
	return m->op[0] == 0x48 ? r : m->op[0] == 0x24 || m->op[0] == 0xb0 ? (a & ~0xffull) | (r & 0xff) : (u32)r;
}

static void immediates_patched(void)
{
	u8 *p = code[1] + 0x200;
	for (unsigned n = 0; n < sizeof(immediates) / sizeof(*immediates); n++) {
		const struct immediate *m = &immediates[n];
		unsigned bad = 0;
		memcpy(p, m->op, m->n_op);
		p[m->n_op + m->size] = 0xc3;
		for (u32 k = 0; k < 1000; k++) {
			u64 bits = (u64)rnd(1u << 31) << 33 | (u64)rnd(1u << 31) << 2 | rnd(4), a = (u64)rnd(1u << 31) << 17 | k, got = a;
			i64 v = m->size == 1 ? (i8)bits : m->size == 4 ? (i32)bits : (i64)bits;
			memcpy(p + m->n_op, &bits, m->size);
			__asm__ volatile("stc; call *%1" : "+a"(got) : "r"(p) : "memory", "cc");
			bad += got != does(m, a, v);
		}
		check_eq(fmt("the immediate of %s, 1000 times", m->name), bad, 0);
	}
}

static u32 steps;
static bool on_step(struct frame *f)
{
	steps += f->vec == DB;
	return f->vec == DB;
}

static void again(void)
{
	immediates_patched();
	/* A few programs in turns at one place, and now and then one that was never there. */
	static const u8 ops[6][2] = { { 0xff, 0xc0 }, { 0xff, 0xc8 }, { 0xf7, 0xd8 }, { 0xf7, 0xd0 }, { 0x31, 0xc0 }, { 0x01, 0xc0 } };
	static const u32 results[6] = { 8, 6, (u32)-7, ~7u, 0, 14 };
	u8 *p = code[1] + 0x300;
	unsigned bad = 0;
	memcpy(p, "\xb8\7\0\0\0", 5);
	p[7] = 0xc3;
	for (u32 k = 0; k < 3000; k++) {
		unsigned n = k < 1000 ? k % 2 : k < 2000 ? k % 6 : rnd(6);
		*(volatile u16 *)(p + 5) = (u16)(ops[n][0] | ops[n][1] << 8);
		bad += (u32)run((uptr)p) != results[n];
	}
	check_eq("2 and 6 instructions in turns at one place", bad, 0);
	/* A byte of the opcode and the length of what follows it. */
	bad = 0;
	for (u32 k = 0; k < 1000; k++) {
		memcpy(p, k % 2 ? "\xb8\1\2\3\4\xc3\xc3\xc3\xc3\xc3" : "\x48\xb8\2\3\4\xc3\xc3\xc3\xc3\xc3\xc3", 11);
		bad += run((uptr)p) != (k % 2 ? 0x04030201 : 0xc3c3c3c3c3040302);
		if (k % 100 == 0)
			hot((uptr)p);
	}
	check_eq("instructions of other lengths at one place", bad, 0);
	/* It calls and comes back into code that has changed meanwhile. */
	BLOB(back, "mov $300,%edx; xor %ecx,%ecx; 1: call 3f; 2: add $1,%ecx; dec %edx; jnz 1b; mov %ecx,%eax; ret; 3: movb %dl,2b+2(%rip); ret");
	PUT(code[2], back);
	u32 want = 0;
	for (u32 k = 300; k; k--)
		want += (u32)(i8)k;
	check_eq("a call that changes what it returns to", (u32)run((uptr)code[2]), want);
	/* Stepped over, with a store ahead at each turn. */
	BLOB(stepped, "xor %eax,%eax; mov $50,%ecx; 1: mov %cl,2f+2(%rip); 2: add $1,%eax; dec %ecx; jnz 1b; ret");
	PUT(code[2], stepped);
	hot((uptr)code[2]);
	trap_hook = on_step;
	steps = 0;
	u64 sum;
	__asm__ volatile("pushfq; orl $0x100,(%%rsp); popfq; call *%1; pushfq; andl $~0x100,(%%rsp); popfq" : "=a"(sum) : "r"(code[2]) : "memory", "rcx", "cc");
	trap_hook = NULL;
	check("single steps over patches ahead", sum == 50 * 51 / 2 && steps >= 2 + 4 * 50 + 1);
	/* A fault behind a store in the same block: RIP and the store are exact. */
	BLOB(faults, "mov $7,%eax; movb $9,1f+1(%rip); 1: mov $1,%al; movb $2,1b+1(%rip); mov %al,(%rdi); ret");
	bad = 0;
	for (u32 k = 0; k < 50; k++) {
		PUT(code[2], faults);
		TRY(__asm__ volatile("call *%0" : : "r"(code[2]), "D"(MAP_VA + 0x7ff000) : "memory", "rax"));
		bad += trap.vec != PF || code[2][13] != 2;
	}
	check_eq("a fault behind two patches of its block", bad, 0);
}

/* ---- strings over code ------------------------------------------------------------------------------ */

static void strings(void)
{
	BLOB(over, "lea 2f(%rip),%rsi; lea 1f(%rip),%rdi; mov $5,%ecx; rep movsb; 1: mov $0x11111111,%eax; ret; 2: .byte 0xb8,0x22,0x33,0x44,0x55");
	unsigned bad = 0;
	for (unsigned k = 0; k < 20; k++) {
		PUT(code[0], over);
		bad += run((uptr)code[0]) != 0x55443322;
	}
	check_eq("rep movsb over the code behind it", bad, 0);
	BLOB(stos, "lea 1f(%rip),%rdi; mov $0x90,%al; mov $4,%ecx; rep stosb; mov $7,%eax; 1: ud2; ud2; ret");
	bad = 0;
	for (unsigned k = 0; k < 20; k++) {
		PUT(code[0], stos);
		bad += run((uptr)code[0]) != 7;
	}
	check_eq("rep stosb over UD2 ahead", bad, 0);
	/* Down to its own prefix, which is the last byte that it writes: NOP takes its place. */
	BLOB(self, "lea 1f+7(%rip),%rdi; lea 2f+7(%rip),%rsi; mov $8,%ecx; std; 1: rep movsb; inc %eax; cld; ret; nop; nop; 2: .byte 0x90,0xa4,0xff,0xc8,0xfc,0xc3,0x90,0x90");
	bad = 0;
	for (unsigned k = 0; k < 20; k++) {
		PUT(code[0], self);
		u64 v = 10;
		__asm__ volatile("call *%1; cld" : "+a"(v) : "r"(code[0]) : "memory", "rcx", "rsi", "rdi", "cc");
		bad += v != 9 || code[0][self_end - self - 18] == 0xf3;
	}
	check_eq("rep movsb over what follows and itself", bad, 0);
	/* A copy of a whole program over another that runs next. */
	bad = 0;
	for (u32 k = 0; k < 200; k++) {
		put_mov(code[1] + 100, k);
		memset(code[1], 0x90, 100);
		const u8 *s = code[1];
		u8 *d = code[2];
		u64 n = 512;
		__asm__ volatile("rep movsq" : "+S"(s), "+D"(d), "+c"(n) : : "memory");
		bad += run((uptr)code[2]) != k;
	}
	check_eq("a page of code copied over another: 200 times", bad, 0);
}

/* ---- a compiler's pages ----------------------------------------------------------------------------- */

/* 128 functions of 64 bytes on two pages; n of them made anew, all called. write, exec: the pages' addresses. */
static unsigned compile(u64 write, u64 exec, u64 exec2)
{
	static u32 want[128];
	unsigned bad = 0;
	for (unsigned k = 0; k < 128; k++)
		want[k] = 0;
	for (unsigned turn = 0; turn < 60; turn++) {
		for (unsigned n = 0; n < (turn ? 10 : 128); n++) {
			unsigned k = turn ? rnd(128) : n, len = rnd(40);
			u8 *p = (u8 *)write + 64 * k;
			u32 v = rnd(1u << 30);
			put_mov(p, v);
			for (unsigned i = 0; i < len; i++) /* and so many INC EAX of 2 bytes at most */
				if (i + 1 < len && rnd(2)) {
					p[5 + i] = 0xff;
					p[6 + i] = 0xc0;
					i++;
					v++;
				} else {
					p[5 + i] = 0x90;
				}
			p[5 + len] = 0xc3;
			want[k] = v;
		}
		for (unsigned k = 0; k < 128; k++) {
			bad += (u32)run(exec + 64 * k) != want[k];
			bad += (u32)run(exec2 + 64 * (127 - k)) != want[127 - k];
		}
	}
	return bad;
}

static void compilers(void)
{
	for (unsigned k = 0; k < 2; k++) {
		map_page(VA + 4096 * k, code[4 + k], P | W);
		map_page(VB + 4096 * k, code[4 + k], P);
		map_page(VC + 4096 * k, code[4 + k], P | W | NX);
	}
	check_eq("functions made and called at one writable address", compile(VA, VA, VA), 0);
	check_eq("written at one address, called at another that is read-only", compile(VC, VB, VB), 0);
	check_eq("written at one, called at two others", compile(VC, VA, VB), 0);
	check_eq("written by the identity map, called at two others", compile((uptr)code[4], VB, VA), 0);
	TRY(run(VC));
	check("the address to write at does not run", trap.vec == PF && trap.err == (EC_P | EC_I));
	TRY(*(volatile u8 *)VB = 0);
	check("the address to run at cannot be written", trap.vec == PF && trap.err == (EC_P | EC_W));
	/* One page for two kinds of use in turns: data, code, data. */
	unsigned bad = 0;
	for (u32 k = 0; k < 300; k++) {
		put_mov((u8 *)VC + 0x100, k);
		bad += run(VB + 0x100) != k;
		for (u32 i = 0; i < 64; i++)
			((volatile u32 *)VC)[i + 64] = k + i;
		for (u32 i = 0; i < 64; i++)
			bad += ((volatile u32 *)VB)[i + 64] != k + i;
	}
	check_eq("code, data and code again in one place: 300 times", bad, 0);
	/* Two pages change places under one address. */
	put_mov(code[4], 4);
	put_mov(code[5], 5);
	bad = 0;
	for (u32 k = 0; k < 200; k++) {
		map_page(VA, code[4 + k % 2], P | W);
		bad += run(VA) != 4 + k % 2;
		if (k % 3 == 0) { /* the one that is not mapped there changes meanwhile */
			put_mov(code[5 - k % 2], 99);
			put_mov(code[5 - k % 2], 5 - k % 2);
		}
	}
	check_eq("two pages of code in turns at one address", bad, 0);
}

/* ---- across pages ------------------------------------------------------------------------------------- */

static void across(void)
{
	/* mov rax, imm64; ret at each split; pages apart in memory; either half patched, at another address. */
	map_page(VA, code[0], P | W);
	map_page(VA + 4096, code[2], P | W);
	unsigned bad = 0, bad_map = 0, bad_store = 0;
	for (unsigned split = 1; split < 10; split++) {
		u64 want = 0x1122334455667788;
		u8 insn[11] = { 0x48, 0xb8 };
		memcpy(insn + 2, &want, 8);
		insn[10] = 0xc3;
		memcpy(code[0] + 4096 - split, insn, split);
		memcpy(code[2], insn + split, 11 - split);
		memset(code[1], 0xcc, 16);
		u64 at = VA + 4096 - split;
		hot(at);
		for (unsigned k = 2; k < 10; k++) {
			u8 v = (u8)rnd(256);
			*(k < split ? &code[0][4096 - split + k] : &code[2][k - split]) = v;
			want = (want & ~(0xffull << 8 * (k - 2))) | (u64)v << 8 * (k - 2);
			bad += run(at) != want;
		}
		/* The second page remapped, and back. */
		memcpy(code[3], code[2], 16);
		code[3][9 - split] ^= 0xff;
		hot(at);
		map_page(VA + 4096, code[3], P | W);
		bad_map += run(at) != (want ^ 0xffull << 56);
		map_page(VA + 4096, code[2], P | W);
		bad_map += run(at) != want;
		/* One store over both halves, through the address itself. */
		u64 imm = at + 2, v = (u64)rnd(1u << 30) << 33 | rnd(1u << 30);
		*(volatile u64 *)imm = v;
		bad_store += run(at) != v;
	}
	check_eq("an instruction over two pages, each split, each byte patched", bad, 0);
	check_eq("its second page remapped and back", bad_map, 0);
	check_eq("one store over both pages", bad_store, 0);
	/* A block that patches the next page and runs into it. */
	BLOB(into, "movb $0x77,1f(%rip); nop; 1:");
	u64 n = (u64)(into_end - into);
	memcpy(code[0] + 4096 - n, into, n);
	code[0][4096 - n + 2] = 2; /* the immediate at 1 of the next page */
	bad = 0;
	for (u32 k = 0; k < 50; k++) {
		put_mov(code[2], 0);
		bad += run(VA + 4096 - n) != 0x77;
	}
	check_eq("a patch of the next page's first instruction, then into it", bad, 0);
	/* A store from a page of data into the first bytes of a page of code. */
	map_page(VB, code[1], P | W);
	map_page(VB + 4096, code[2], P | W);
	bad = 0;
	for (u32 k = 0; k < 30; k++) {
		put_mov(code[2], 5);
		hot(VA + 4096);
		*(volatile u64 *)(VB + 4096 - 3) = 0x00000000b8000000ull | (u64)k << 32;
		bad += run(VA + 4096) != k;
	}
	check_eq("a store over the boundary from data into code", bad, 0);
}

/* ---- DMA into code --------------------------------------------------------------------------------------- */

static void dma(void)
{
	outw(0x510, 0);
	u8 sig[4];
	for (unsigned k = 0; k < 4; k++)
		sig[k] = inb(0x511);
	if (memcmp(sig, "QEMU", 4) || inl(0x514) != 0x554d4551) {
		skip("DMA into code", "no fw_cfg with DMA");
		return;
	}
	static volatile struct { u32 control, length; u64 address; } d __attribute__((aligned(16)));
	unsigned bad = 0;
	for (u32 k = 0; k < 50; k++) {
		put_mov(code[6], k);
		hot((uptr)code[6]);
		bad += run((uptr)code[6]) != k;
		d.control = __builtin_bswap32(8 | 2); /* select item 0, read */
		d.length = __builtin_bswap32(4);
		d.address = __builtin_bswap64((uptr)code[6] + 1);
		outl(0x514, 0);
		outl(0x518, __builtin_bswap32((u32)(uptr)&d));
		while (d.control & ~__builtin_bswap32(1))
			;
		bad += d.control || run((uptr)code[6]) != 0x554d4551;
	}
	check_eq("fw_cfg's DMA over an immediate of hot code: 50 times", bad, 0);
}

/* ---- the other processor ---------------------------------------------------------------------------------- */

static volatile u32 ap_up, ap_turns, ap_bad, acks, stop, old_value, new_value, traps;
static u8 *const poked = code[7] + 0x40;

static u32 call_poked(void) { return (u32)run((uptr)poked); }

void ap_entry(void)
{
	apic_write(0xf0, 0x1ff);
	ap_up = 1;
	__asm__ volatile("sti");
	while (!stop) {
		u32 old = old_value; /* it may change between the call and the look at it */
		u32 v = call_poked();
		ap_bad += v != old && v != old_value && v != new_value;
		__atomic_fetch_add(&ap_turns, 1, __ATOMIC_SEQ_CST);
	}
	__asm__ volatile("cli");
	ap_up = 2;
}

/* IPI 61 makes the other one serialize, by its IRET; INT3 stands for the instruction that is to be. */
static bool on_poke(struct frame *f)
{
	if (f->vec == 0x61) {
		apic_write(0xb0, 0);
		acks++;
		return true;
	}
	if (f->vec == BP && f->ip == (uptr)poked + 1) {
		traps++;
		f->ax = new_value;
		f->ip = (uptr)poked + 5;
		return true;
	}
	return false;
}
static bool wait_until(volatile u32 *p, u32 least)
{
	for (unsigned k = 0; k < 20000; k++) {
		if ((i32)(*p - least) >= 0)
			return true;
		delay_us(500);
	}
	return false;
}
static bool sync_other(void)
{
	u32 before = acks;
	apic_write(0x310, 1u << 24);
	apic_write(0x300, 0x4061);
	for (u32 k = 0; k < 2000000000u; k++)
		if (acks != before)
			return true;
	return false;
}

static void other_processor(void)
{
	put_mov(poked, 1);
	old_value = new_value = 1;
	trap_hook = on_poke;
	start_ap(1);
	if (!wait_until(&ap_up, 1) || !wait_until(&ap_turns, 100)) {
		trap_hook = NULL;
		skip("code patched under another processor", "one processor");
		return;
	}
	/* Functions around the one that runs there, in its page and its line. */
	unsigned bad = 0, lost = 0, stale = 0;
	for (u32 k = 0; k < 300; k++) {
		put_mov(poked + 16, k);
		put_mov(code[7] + 0x800, k + 1);
		bad += run((uptr)poked + 16) != k || run((uptr)code[7] + 0x800) != k + 1;
	}
	check("code made here beside code that runs there", !bad && !ap_bad);
	for (u32 k = 2; k < 120 && !lost; k++) {
		old_value = new_value;
		new_value = 0x01010101 * k;
		*(volatile u8 *)poked = 0xcc;
		lost += !sync_other();
		memcpy(poked + 1, (const void *)&new_value, 4);
		lost += !sync_other();
		*(volatile u8 *)poked = 0xb8;
		lost += !sync_other();
		/* From here on nothing else may come back. A plain store could wait for longer than the other processor's
		 * next turns take (SDM vol. 3, 10.2.3.4), and then both variables change at once. */
		__atomic_store_n(&old_value, new_value, __ATOMIC_SEQ_CST);
		u32 t = ap_turns;
		while (ap_turns - t < 3)
			__asm__ volatile("pause");
		stale += ap_bad;
	}
	check_eq("the other processor answers each IPI", lost, 0);
	check_eq("patched by INT3 and IPIs while it runs there: old or new, and then new", stale + ap_bad, 0);
	/* It runs what was changed before it was told, however often. */
	stop = 1;
	check("the other processor ends", wait_until(&ap_up, 2));
	say("INT3 was met %u times in %u turns\n", traps, ap_turns);
	trap_hook = NULL;
}

int main(void)
{
	map_init();
	ahead();
	again();
	strings();
	compilers();
	across();
	dma();
	other_processor();
	return 0;
}
