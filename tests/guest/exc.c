/* Exceptions in 32-bit protected mode: every vector, priorities, double faults, RIP and RF of
 * faults and traps, shadows of STI and MOV SS, single step, debug registers. SDM vol. 3 ch. 6 and
 * 17.2, 17.3; vol. 2 of each instruction. exc64.c has what differs in 64-bit mode. */
#include "guest.h"

const char guest_name[] = "exc";

static u8 buf[64] __attribute__((aligned(64)));
#define CLEAN() write_dr6(0xffff0ff0)

static void vectors(void)
{
	TRY(__asm__ volatile("xor %%edx,%%edx; xor %%ecx,%%ecx; div %%ecx" : : : "eax", "ecx", "edx"));
	check("#DE: a fault, EIP at the DIV", trap.vec == DE && *(u16 *)trap.f.ip == 0xf1f7);
	check("#DE: RF in the image", trap.f.flags & FL_RF);
	TRY(__asm__ volatile("mov $0x80000000,%%eax; mov $-1,%%edx; mov $-1,%%ecx; xor %%edx,%%edx; dec %%edx; idiv %%ecx" : : : "eax", "ecx", "edx"));
	check("#DE: idiv overflow", trap.vec == DE && trap.f.ax == 0x80000000);
	TRY(__asm__ volatile("int3"));
	check("#BP: a trap, EIP after it", trap.vec == BP && ((u8 *)trap.f.ip)[-1] == 0xcc && !(trap.f.flags & FL_RF));
	TRY(__asm__ volatile("mov $0x7f,%%al; add $1,%%al; into" : : : "eax"));
	check("#OF: EIP after INTO", trap.vec == OF && ((u8 *)trap.f.ip)[-1] == 0xce);
	u32 bounds[2] = { 10, 20 };
	for (u32 v = 9; v < 22; v += v == 10 ? 10 : 1) {
		TRY(__asm__ volatile("bound %0,%1" : : "r"(v), "m"(bounds)));
		check_eq(fmt("bound %u in 10..20", v), (u64)trap.vec, (u64)(v < 10 || v > 20 ? BR : NONE));
	}
	TRY(__asm__ volatile("ud2"));
	check("#UD: ud2", trap.vec == UD && *(u16 *)trap.f.ip == 0x0b0f && (trap.f.flags & FL_RF));
	static const struct { const char *name; u8 code[8]; int vec, n; } bytes[] = {
		{ "ud0", { 0x0f, 0xff, 0xc0 }, UD, 3 }, { "ud1", { 0x0f, 0xb9, 0xc0 }, UD, 3 }, { "lock nop", { 0xf0, 0x90 }, UD, 2 },
		{ "lock mov", { 0xf0, 0x89, 0x03 }, UD, 3 }, { "lock add to a register", { 0xf0, 0x01, 0xc0 }, UD, 3 }, { "lock cmp", { 0xf0, 0x39, 0x03 }, UD, 3 },
		{ "lea of a register", { 0x8d, 0xc0 }, UD, 2 }, { "les of a register: VEX", { 0xc4, 0xc0, 0, 0 }, UD, 4 }, { "bound of a register: EVEX", { 0x62, 0xc0, 0, 0 }, UD, 4 },
		{ "C6 /1", { 0xc6, 0x48, 0, 0 }, UD, 4 }, { "8F /1", { 0x8f, 0xc8 }, UD, 2 }, { "FE /2", { 0xfe, 0x10 }, UD, 2 }, { "FF /7", { 0xff, 0x38 }, UD, 2 },
		{ "invlpg of a register", { 0x0f, 0x01, 0xfd }, UD, 3 }, { "mov cr1", { 0x0f, 0x20, 0xc8 }, UD, 3 }, { "mov cr5", { 0x0f, 0x20, 0xe8 }, UD, 3 },
		 { "0F 04", { 0x0f, 0x04 }, UD, 2 }, { "0F 0A", { 0x0f, 0x0a }, UD, 2 }, { "0F A6", { 0x0f, 0xa6 }, UD, 2 },
		{ "movntdq of a register", { 0x66, 0x0f, 0xe7, 0xc0 }, UD, 4 }, { "F6 /1 is TEST", { 0xf6, 0xc8, 0 }, NONE, 3 }, { "cmpxchg8b of a register", { 0x0f, 0xc7, 0xc8 }, UD, 3 },
		{ "salc", { 0xd6 }, NONE, 1 }, { "long nop", { 0x0f, 0x1f, 0x40, 0 }, NONE, 4 },
		{ "prefixes", { 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90 }, NONE, 8 },
	};
	for (unsigned k = 0; k < ARRAY_LEN(bytes); k++) {
		static u8 code[32] __attribute__((aligned(32)));
		memset(code, 0xc3, sizeof(code));
		memcpy(code, bytes[k].code, bytes[k].n);
		TRY(__asm__ volatile("call *%0" : : "r"(code), "b"(buf), "a"(buf) : "memory", "ecx", "edx"));
		if (bytes[k].vec == UD)
			check(fmt("#UD: %s", bytes[k].name), trap.vec == UD && trap.f.ip == (uptr)code);
		else
			check_trap(fmt("no #UD: %s", bytes[k].name), NONE, 0);
	}
	static u8 longer[20];
	memset(longer, 0x66, 15);
	longer[15] = 0x90;
	longer[16] = 0xc3;
	TRY(__asm__ volatile("call *%0" : : "r"(longer)));
	check("16 bytes: #GP(0)", trap.vec == GP && trap.err == 0 && trap.f.ip == (uptr)longer);
	TRY(__asm__ volatile("call *%0" : : "r"(longer + 1)));
	check_trap("15 bytes", NONE, 0);
	/* #NM */
	write_cr0(read_cr0() | 8);
	TRY(__asm__ volatile("fnop"));
	check("#NM: x87 with TS", trap.vec == NM && *(u16 *)trap.f.ip == 0xd0d9);
	TRY(__asm__ volatile("fwait"));
	check_trap("#NM: WAIT with TS and MP", NM, 0);
	write_cr0(read_cr0() & ~8ul);
	write_cr0(read_cr0() | 4);
	TRY(__asm__ volatile("fnop"));
	check_trap("#NM: x87 with EM", NM, 0);
	TRY(__asm__ volatile("fwait"));
	check_trap("WAIT with EM alone", NONE, 0);
	write_cr0(read_cr0() & ~4ul);
	/* #NP, #SS, #GP, #TS are in seg, gates, tasks; here the plain ones. */
	TRY(__asm__ volatile("mov %0,%%ds" : : "r"(0xfff8)));
	check_trap("#GP(selector)", GP, 0xfff8);
	TRY(__asm__ volatile("wrmsr" : : "c"(0x12345), "a"(0), "d"(0)));
	check_trap("#GP: wrmsr of no MSR", GP, 0);
	TRY(__asm__ volatile("rdmsr" : : "c"(0x12345) : "eax", "edx"));
	check_trap("#GP: rdmsr of no MSR", GP, 0);
	TRY(__asm__ volatile("mov %0,%%cr4" : : "r"(1 << 15)));
	check_trap("#GP: reserved bit of CR4", GP, 0);
	TRY(__asm__ volatile("mov %0,%%cr0" : : "r"(0x80000010)));
	check_trap("#GP: PG without PE", GP, 0);
	TRY(__asm__ volatile("mov %0,%%cr0" : : "r"(0x20000031)));
	check_trap("#GP: NW without CD", GP, 0);
	/* #AC: at CPL 3 with AM and AC only. */
	extern const u8 ac_ld4[], ac_ld2[], ac_st4[], ac_fld8[], ac_ld1[];
	struct regs r;
	for (unsigned m = 0; m < 8; m++) {
		bool am = m & 1, ac = m & 2, cpl3 = m & 4;
		write_cr0(am ? read_cr0() | 0x40000 : read_cr0() & ~0x40000ul);
		r = user_regs(ac_ld4);
		r.flags = 2 | (ac ? FL_AC : 0);
		r.bx = (uptr)buf + 1;
		if (!cpl3) {
			r.cs = CODE1;
			r.ss = DATA1;
			r.ds = r.es = DATA1;
		}
		go(&r);
		check(fmt("misaligned read: AM %d AC %d CPL %d", am, ac ? 1 : 0, cpl3 ? 3 : 1), am && ac && cpl3 ? trap.vec == AC && trap.err == 0 : trap.vec == DONE);
	}
	write_cr0(read_cr0() | 0x40000);
	static const struct { const u8 *code; unsigned align; const char *name; } al[] = { { ac_ld1, 1, "byte" }, { ac_ld2, 2, "word" }, { ac_ld4, 4, "dword" },
		{ ac_st4, 4, "store" }, { ac_fld8, 8, "fld m64" } };
	for (unsigned k = 0; k < ARRAY_LEN(al); k++) {
		unsigned bad = 0;
		for (unsigned off = 0; off < 8; off++) {
			r = user_regs(al[k].code);
			r.flags = 2 | FL_AC;
			r.bx = (uptr)buf + off;
			go(&r);
			bad += trap.vec != (off % al[k].align ? AC : DONE);
		}
		check_eq(fmt("#AC: %s at each offset", al[k].name), bad, 0);
	}
	__asm__ volatile("fninit");
	write_cr0(read_cr0() & ~0x40000ul);
	/* #MF */
	TRY(__asm__ volatile("fninit; fldcw %0; fld1; fldz; fdivrp; nop; fwait; nop" : : "m"((const u16[]){ 0x37b })));
	check("#MF: at the next waiting instruction", trap.vec == MF && *(u8 *)trap.f.ip == 0x9b);
	__asm__ volatile("fnclex");
	/* #XM */
	write_cr4(read_cr4() | 0x600);
	u32 mxcsr = 0x1f00;
	TRY(__asm__ volatile("ldmxcsr %0; xorps %%xmm0,%%xmm0; divss %%xmm0,%%xmm0" : : "m"(mxcsr)));
	check("#XM: invalid operation unmasked", trap.vec == XM && (*(u32 *)trap.f.ip & 0xffffff) == 0x5e0ff3);
	__asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
	check_eq("MXCSR.IE", mxcsr & 0x3f, 1);
	write_cr4(read_cr4() & ~0x400ul);
	TRY(__asm__ volatile("divss %xmm0,%xmm0"));
	check_trap("without CR4.OSXMMEXCPT: #UD", UD, 0);
	mxcsr = 0x1f80;
	__asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
	mxcsr = 0x10000;
	TRY(__asm__ volatile("ldmxcsr %0" : : "m"(mxcsr)));
	check_trap("ldmxcsr with reserved bits: #GP(0)", GP, 0);
	TRY(__asm__ volatile("movaps (%0),%%xmm0" : : "r"(buf + 4)));
	check_trap("movaps misaligned: #GP(0)", GP, 0);
	write_cr4(read_cr4() & ~0x600ul);
	TRY(__asm__ volatile("movaps (%0),%%xmm0" : : "r"(buf)));
	check_trap("SSE without CR4.OSFXSR: #UD", UD, 0);
}
__asm__(".text\n.globl ac_ld4,ac_ld2,ac_ld1,ac_st4,ac_fld8\nac_ld4: movl (%ebx),%eax; int $0x80\nac_ld2: movw (%ebx),%ax; int $0x80\nac_ld1: movb (%ebx),%al; int $0x80\n"
	"ac_st4: movl %eax,(%ebx); int $0x80\nac_fld8: fldl (%ebx); int $0x80\n");

/* ---- priorities ---------------------------------------------------------------------------------- */

static void priorities(void)
{
	CLEAN();
	/* #UD before #NM; #NM before #GP of an operand; #GP(0) of privilege before the operand's. */
	write_cr0(read_cr0() | 8);
	TRY(__asm__ volatile(".byte 0xf0,0xd9,0xd0")); /* lock fnop */
	check_trap("lock fnop with TS: #UD before #NM", UD, 0);
	TRY(__asm__ volatile("xor %%eax,%%eax; mov %%ax,%%fs; fldl %%fs:0; " : : : "eax"));
	check_trap("x87 load through a null segment with TS: #NM first", NM, 0);
	write_cr0(read_cr0() & ~8ul);
	/* A code breakpoint before the instruction's own fault. */
	extern const u8 at_ud[];
	write_dr0((uptr)at_ud);
	write_dr7(0x401);
	TRY(__asm__ volatile("at_ud: ud2"));
	check("code breakpoint on UD2: #DB first", trap.vec == DB && trap.f.ip == (uptr)at_ud && (read_dr6() & 1));
	write_dr7(0x400);
	CLEAN();
	/* A trap of the last instruction before the fault of the next. */
	TRY(__asm__ volatile("pushf; orl $0x100,(%esp); popf; nop; ud2"));
	check("single step before the next instruction's #UD", trap.vec == DB && *(u16 *)trap.f.ip == 0x0b0f);
	CLEAN();
	/* The fault of an instruction under TF comes without a single-step trap; then TF is in the image. */
	TRY(__asm__ volatile("pushf; orl $0x100,(%esp); popf; ud2"));
	check("ud2 under TF: #UD, TF in the image", trap.vec == UD && (trap.f.flags & FL_TF) && !(read_dr6() & 0x4000));
	CLEAN();
	/* Segment limit before alignment. */
	write_cr0(read_cr0() | 0x40000);
	gdt[FREE] = desc((uptr)buf, 3, A_RW | A_DPL3, F_B);
	extern const u8 ac_es[];
	struct regs r = user_regs(ac_es);
	r.es = sel(FREE, 3);
	r.bx = 1;
	r.flags = 2 | FL_AC;
	go(&r);
	check_trap("limit and alignment: #GP first", GP, 0);
	write_cr0(read_cr0() & ~0x40000ul);
}
__asm__(".text\n.globl ac_es\nac_es: movl %es:(%ebx),%eax; int $0x80\n");

/* ---- double faults ---------------------------------------------------------------------------------- */

static void doubles(void)
{
	u64 gp = idt[GP], de = idt[DE], ud = idt[UD];
	/* Contributory after contributory. */
	idt[GP] = 0;
	TRY(__asm__ volatile("mov %0,%%ds" : : "r"(0xfff8)));
	check_trap("#GP whose gate is bad: #DF(0)", DF, 0);
	idt[GP] = gp;
	idt[DE] = de & ~(0x80ull << 40);
	TRY(__asm__ volatile("xor %%ecx,%%ecx; div %%ecx" : : : "eax", "ecx", "edx"));
	check_trap("#DE then #NP: #DF(0)", DF, 0);
	idt[DE] = de;
	/* Benign then contributory: serially. */
	idt[UD] = ud & ~(0x80ull << 40);
	TRY(__asm__ volatile("ud2"));
	check_trap("#UD then #NP: #NP(gate, EXT)", NP, UD * 8 + 3);
	idt[UD] = ud;
	idt[UD] = 0;
	idt[GP] = gp & ~(0x80ull << 40);
	TRY(__asm__ volatile("ud2"));
	check_trap("#UD, #GP, #NP: #DF", DF, 0);
	idt[UD] = ud;
	idt[GP] = gp;
	/* INT n is no exception: what it meets is the first one. */
	idt[0x50] = 0;
	TRY(__asm__ volatile("int $0x50"));
	check_trap("INT n to a bad gate: #GP alone", GP, 0x50 * 8 + 2);
	/* Page faults: see also exc64. Handler's stack unmapped under #PF. */
	static u32 dir[1024] __attribute__((aligned(4096)));
	for (unsigned k = 0; k < 512; k++)
		dir[k] = k << 22 | 0x87;
	write_cr4(read_cr4() | 0x10);
	write_cr3((uptr)dir);
	write_cr0(read_cr0() | 0x80000000);
	TRY(*(volatile u32 *)0x80001234 = 1);
	check_trap("#PF: write to an absent page", PF, 2);
	check("#PF: CR2, RF", trap.cr2 == 0x80001234 && (trap.f.flags & FL_RF));
	u64 pf = idt[PF];
	idt[PF] = 0;
	TRY(*(volatile u32 *)0x80001234 = 1);
	check_trap("#PF then #GP: #DF(0)", DF, 0);
	check_eq("CR2 is of the #PF", trap.cr2, 0x80001234);
	idt[PF] = pf;
	extern const u8 user_push[];
	struct regs r = user_regs(user_push);
	r.sp = 0x80000010;
	go(&r);
	check_trap("push to an absent page at CPL 3", PF, 6);
	check_eq("its CR2", trap.cr2, 0x8000000c);
	write_cr0(read_cr0() & ~0x80000000ul);
}
__asm__(".text\n.globl user_push\nuser_push: push %eax; int $0x80\n");

/* ---- single step and shadows ---------------------------------------------------------------------- */

static volatile u32 steps, step_ip[64], step_flags[64];
static bool on_step(struct frame *f)
{
	if (f->vec == DB) {
		if (steps < 64) {
			step_ip[steps] = f->ip;
			step_flags[steps] = f->flags;
		}
		steps++;
		return true;
	}
	return false;
}

extern const u8 ss_a[], ss_b[], ss_c[], rep_a[], rep_b[], pf_a[], pf_b[], int_a[];
static noinline void step_ss(void)
{
	__asm__ volatile("mov %%ss,%%eax; pushf; orl $0x100,(%%esp); popf; nop; ss_a: mov %%ax,%%ss; nop; ss_b: nop; pushf; andl $~0x100,(%%esp); popf; ss_c: nop"
		: : : "eax", "memory");
}
static noinline void step_rep(void)
{
	__asm__ volatile("mov $3,%%ecx; pushf; orl $0x100,(%%esp); popf; rep_a: rep lodsb; rep_b: nop; pushf; andl $~0x100,(%%esp); popf"
		: : "S"(buf) : "eax", "ecx", "memory");
}
static noinline void step_int(void)
{
	__asm__ volatile("pushf; orl $0x100,(%%esp); popf; int $0x51; int_a: nop; pushf; andl $~0x100,(%%esp); popf" : : : "memory");
}

static void stepping(void)
{
	CLEAN();
	trap_hook = on_step;
	steps = 0;
	step_ss();
	unsigned at_a = 0, after_ss = 0, at_b = 0;
	for (unsigned k = 0; k < steps; k++) {
		at_a += step_ip[k] == (uptr)ss_a;
		after_ss += step_ip[k] == (uptr)ss_a + 2;
		at_b += step_ip[k] == (uptr)ss_b;
	}
	check("TF: a trap after each instruction", at_a == 1 && at_b == 1);
	check_eq("TF: none after MOV SS", after_ss, 0);
	check("TF: DR6.BS", read_dr6() & 0x4000);
	check("TF: image has TF, not RF", (step_flags[0] & FL_TF) && !(step_flags[0] & FL_RF));
	CLEAN();
	steps = 0;
	step_rep();
	unsigned in = 0, after = 0, in_rf = 0;
	for (unsigned k = 0; k < steps; k++) {
		in += step_ip[k] == (uptr)rep_a;
		in_rf += step_ip[k] == (uptr)rep_a && (step_flags[k] & FL_RF);
		after += step_ip[k] == (uptr)rep_b;
	}
	check("TF through REP: a trap after each iteration", in == 2 && after == 1);
	check_eq("its image has RF but for the last iteration (SDM 3 17.3.1.1)", in_rf, 2);
	CLEAN();
	/* INT under TF: the handler runs without TF; no trap at its first instruction. */
	extern const u8 iret_only[];
	idt[0x51] = gate(CODE, (uptr)iret_only, A_INT32, 0);
	steps = 0;
	step_int();
	unsigned in_handler = 0, back = 0;
	for (unsigned k = 0; k < steps; k++) {
		in_handler += step_ip[k] == (uptr)iret_only;
		back += step_ip[k] == (uptr)int_a;
	}
	check_eq("TF: none in the handler of INT", in_handler, 0);
	check_eq("TF: IRET brings TF back: no trap after the IRET itself", back, 0);
	trap_hook = NULL;
	CLEAN();
}
__asm__(".text\n.globl iret_only\niret_only: iret\n");

/* ---- debug registers ----------------------------------------------------------------------------------- */

static u32 probe(unsigned off, unsigned size, bool write)
{
	CLEAN();
	u8 *p = buf + off;
	switch (size | write << 4) {
	case 1: TRY(__asm__ volatile("movb (%0),%%al; nop" : : "r"(p) : "eax")); break;
	case 2: TRY(__asm__ volatile("movw (%0),%%ax; nop" : : "r"(p) : "eax")); break;
	case 4: TRY(__asm__ volatile("movl (%0),%%eax; nop" : : "r"(p) : "eax")); break;
	case 17: TRY(__asm__ volatile("movb %%al,(%0); nop" : : "r"(p) : "eax")); break;
	case 18: TRY(__asm__ volatile("movw %%ax,(%0); nop" : : "r"(p) : "eax")); break;
	default: TRY(__asm__ volatile("movl %%eax,(%0); nop" : : "r"(p) : "eax")); break;
	}
	return trap.vec == DB ? read_dr6() & 15 : trap.vec == NONE ? 0x100 : 0x200;
}

static void breakpoints(void)
{
	static const unsigned lens[3] = { 1, 2, 4 }, codes[3] = { 0, 1, 3 };
	for (unsigned l = 0; l < 3; l++)
		for (unsigned rw = 1; rw <= 3; rw += 2) {
			unsigned bad = 0;
			unsigned at = 16 + (lens[l] == 1 ? 3 : 0);
			write_dr0((uptr)buf + at);
			write_dr7(0x401 | rw << 16 | codes[l] << 18);
			for (unsigned size = 1; size <= 4; size *= 2)
				for (unsigned off = 10; off < 26; off++)
					for (unsigned w = 0; w < 2; w++) {
						bool hit = off < at + lens[l] && off + size > at && (rw == 3 || w);
						bad += probe(off, size, w) != (hit ? 1 : 0x100);
					}
			check_eq(fmt("data breakpoint of %u bytes, %s: all overlaps", lens[l], rw == 1 ? "writes" : "reads and writes"), bad, 0);
		}
	check("data breakpoint: a trap, after the instruction", (probe(16, 4, true), trap.vec == DB) && *(u8 *)trap.f.ip == 0x90 && !(trap.f.flags & FL_RF));
	write_dr7(0x400);
	check_eq("disabled breakpoint", probe(16, 4, true), 0x100);
	for (unsigned k = 0; k < 4; k++) {
		write_dr0(0); write_dr1(0); write_dr2(0); write_dr3(0);
		switch (k) {
		case 0: write_dr0((uptr)buf + 16); break;
		case 1: write_dr1((uptr)buf + 16); break;
		case 2: write_dr2((uptr)buf + 16); break;
		default: write_dr3((uptr)buf + 16);
		}
		write_dr7(0x400 | 2u << (2 * k) | 1u << (16 + 4 * k));
		check_eq(fmt("DR%u, global enable", k), probe(16, 1, true), 1u << k);
	}
	write_dr0((uptr)buf + 16);
	write_dr1((uptr)buf + 17);
	write_dr7(0x405 | 1 << 16 | 1 << 20);
	check_eq("two breakpoints of one access", probe(16, 4, true), 3);
	/* Code breakpoint, RF. */
	extern const u8 bp_code[];
	write_dr0((uptr)bp_code);
	write_dr7(0x401);
	CLEAN();
	TRY(__asm__ volatile("nop; bp_code: nop; nop"));
	/* The one fault whose image has RF as it was: SDM 3 17.3.1.1. */
	check("code breakpoint: a fault, RF clear in the image", trap.vec == DB && trap.f.ip == (uptr)bp_code && !(trap.f.flags & FL_RF) && (read_dr6() & 0x400f) == 1);
	struct regs r = user_regs(bp_code);
	extern const u8 bp_user[];
	r.ip = (uptr)bp_user;
	write_dr0((uptr)bp_user);
	go(&r);
	check("code breakpoint at CPL 3", trap.vec == DB && trap.f.ip == (uptr)bp_user);
	r.flags = 2 | FL_RF;
	go(&r);
	check_trap("RF in the IRET image: passes once", DONE, 0);
	check_eq("RF is clear after the instruction", trap.f.flags & FL_RF, 0);
	/* MOV SS holds back a code breakpoint on the next instruction on Intel's processors, not on AMD's. */
	extern const u8 bp_ss[];
	write_dr0((uptr)bp_ss);
	TRY(__asm__ volatile("mov %%ss,%%eax; mov %%ax,%%ss; bp_ss: nop; nop" : : : "eax"));
	check_trap(is_amd() ? "code breakpoint in the shadow of MOV SS hits (AMD)" : "code breakpoint in the shadow of MOV SS is held back (Intel)",
		   is_amd() ? DB : NONE, 0);
	/* A data breakpoint in MOV SS's own load comes after the next instruction. */
	*(u16 *)(buf + 16) = DATA;
	write_dr0((uptr)buf + 16);
	write_dr7(0x401 | 3 << 16 | 1 << 18);
	CLEAN();
	TRY(__asm__ volatile("mov (%0),%%ss; nop; inc %%ecx; nop" : : "r"(buf + 16) : "ecx"));
	check("data breakpoint of MOV SS: after the next instruction", trap.vec == DB && *(u8 *)trap.f.ip == 0x41);
	/* I/O breakpoints need CR4.DE. */
	write_dr0(0x80);
	write_dr7(0x401 | 2 << 16);
	CLEAN();
	TRY(outb(0x80, 0));
	check_trap("I/O breakpoint without CR4.DE", NONE, 0);
	write_cr4(read_cr4() | 8);
	TRY(outb(0x80, 0));
	check("I/O breakpoint with CR4.DE", trap.vec == DB && (read_dr6() & 1));
	CLEAN();
	TRY(outb(0x81, 0));
	check_trap("another port", NONE, 0);
	TRY(__asm__ volatile("mov %%dr4,%%eax" : : : "eax"));
	check_trap("DR4 with CR4.DE: #UD", UD, 0);
	write_cr4(read_cr4() & ~8ul);
	u32 v = 0;
	write_dr7(0x400);
	TRY(__asm__ volatile("mov %%dr4,%0" : "=r"(v)));
	check_eq("DR4 without CR4.DE is DR6", v & 0xffff0ff0, 0xffff0ff0);
	/* GD */
	CLEAN();
	write_dr7(0x400 | 0x2000);
	TRY(__asm__ volatile("mov %%dr0,%%eax; nop" : : : "eax"));
	check("GD: #DB before the access, BD in DR6", trap.vec == DB && *(u8 *)trap.f.ip == 0x0f && (read_dr6() & 0x2000));
	check_eq("GD cleared on the way", read_dr7() & 0x2000, 0);
	/* ICEBP */
	CLEAN();
	u64 db = idt[DB];
	TRY(__asm__ volatile(".byte 0xf1"));
	check("icebp: a trap", trap.vec == DB && ((u8 *)trap.f.ip)[-1] == 0xf1);
	extern const u8 user_f1[];
	user(user_f1);
	check("icebp at CPL 3 ignores the gate's DPL", trap.vec == DB && trap.f.cs == UCODE);
	idt[DB] = db;
	check_eq("DR6: what is set stays set", (CLEAN(), write_dr6(0xffff0ff0 | 5), read_dr6()) & 0xf, 5);
	write_dr6(0);
	check_eq("DR6: fixed bits", read_dr6() & ~0x10000ul, 0xfffe0ff0);
	write_dr7(0);
	check_eq("DR7: bit 10", read_dr7(), 0x400);
	CLEAN();
}
__asm__(".text\n.globl bp_user,user_f1\nbp_user: nop; int $0x80\nuser_f1: .byte 0xf1; int $0x80\n");

/* A data breakpoint of MOV SS is put off for one instruction; where that is an INT it waits for the
 * gate to be entered, and comes before the handler's first instruction (CVE-2018-8897). INT1 is
 * a #DB itself, and takes it along. */
static volatile u32 n_seen;
static struct { u32 vec, ip, cs, dr6; } seen[8];
static bool on_seen(struct frame *f)
{
	if (n_seen < ARRAY_LEN(seen)) {
		seen[n_seen].vec = f->vec;
		seen[n_seen].ip = f->ip;
		seen[n_seen].cs = f->cs;
		seen[n_seen].dr6 = read_dr6() & 0x600f;
	}
	CLEAN();
	n_seen++;
	return f->vec != DONE;
}

extern const u8 stubs[], mov_ss_int3[], mov_ss_int1[], mov_ss_int[], mov_ss_intdb[];
__asm__(".text\nmov_ss_int3: mov (%ebx),%ss; int3; int $0x80\nmov_ss_int1: mov (%ebx),%ss; .byte 0xf1; int $0x80\n"
	"mov_ss_int: mov (%ebx),%ss; int $0x51; int $0x80\nmov_ss_intdb: mov (%ebx),%ss; int $1; int $0x80\n");

static void mov_ss_watched(void)
{
	static const struct { const u8 *code; u8 vec, len; const char *name; } ints[] = {
		{ mov_ss_int3, BP, 1, "INT3" }, { mov_ss_int, 0x51, 2, "INT 51" }, { mov_ss_intdb, DB, 2, "INT 1" } };
	set_idt(0x51, A_INT32 | A_DPL3);
	set_idt(DB, A_INT32 | A_DPL3);
	write_dr0((uptr)buf + 16);
	write_dr7(0x401 | 3 << 16 | 1 << 18);
	trap_hook = on_seen;
	for (unsigned cpl3 = 0; cpl3 < 2; cpl3++) {
		struct regs r = user_regs(NULL);
		r.cs = cpl3 ? UCODE : CODE1;
		r.ss = cpl3 ? UDATA : DATA1;
		if (!cpl3)
			r.ds = r.es = DATA1;
		*(u16 *)(buf + 16) = (u16)r.ss;
		r.bx = (uptr)buf + 16;
		for (unsigned k = 0; k < ARRAY_LEN(ints); k++) {
			set_idt(0x51, A_INT32 | A_DPL3);
			r.ip = (uptr)ints[k].code;
			CLEAN();
			n_seen = 0;
			go(&r);
			const char *name = fmt("watched MOV SS, then %s at CPL %u", ints[k].name, cpl3 ? 3 : 1);
			check(fmt("%s: #DB at the handler's first instruction", name),
			      seen[0].vec == DB && seen[0].ip == (uptr)stubs + 16 * ints[k].vec && seen[0].cs == CODE && seen[0].dr6 == 1);
			check(fmt("%s: then the handler", name),
			      n_seen == 3 && seen[1].vec == ints[k].vec && seen[1].ip == r.ip + 2 + ints[k].len && seen[1].cs == r.cs && !seen[1].dr6);
		}
		r.ip = (uptr)mov_ss_int1;
		n_seen = 0;
		go(&r);
		check(fmt("watched MOV SS, then INT1 at CPL %u: one #DB", cpl3 ? 3 : 1),
		      n_seen == 2 && seen[0].vec == DB && seen[0].ip == r.ip + 3 && seen[0].cs == r.cs && seen[0].dr6 == 1);
	}
	trap_hook = NULL;
	write_dr7(0x400);
	set_idt(DB, A_INT32);
}

int main(void)
{
	vectors();
	priorities();
	doubles();
	stepping();
	breakpoints();
	mov_ss_watched();
	return 0;
}
