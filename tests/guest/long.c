/* 64-bit mode: canonical addresses, IST and the aligned frame, 64-bit call gates, SYSCALL, SYSRET,
 * SYSENTER, SYSEXIT, compatibility mode, FS and GS bases, CR and EFER transitions, IRETQ's forms,
 * far returns. SDM vol. 3 5.8, 6.14, 10.8; vol. 2 of each instruction; APM vol. 2 4.12.2, 6.1. */
#include "guest.h"

const char guest_name[] = "long";

static u8 buf[64] __attribute__((aligned(64)));
static u8 stack2[4096] __attribute__((aligned(64)));
#define NONCANON 0x800000000000ull
/* Tables and MSRs hold 57 bits where the processor knows 5 levels, whatever CR4.LA57 is. */
#define NONCANON57 0x100000000000000ull
enum { G = FREE, G2 = FREE + 1, C = FREE + 2 };

static void canonical(void)
{
	u64 v;
	TRY(v = *(volatile u64 *)NONCANON);
	check_trap("read of a non-canonical address: #GP(0)", GP, 0);
	TRY(*(volatile u64 *)0xffff7fffffffffffull = 1);
	check_trap("write across into the hole: #GP(0)", GP, 0);
	TRY(v = *(volatile u64 *)0x7ffffffffffcull);
	check("read that starts in an absent page and ends non-canonical: #GP or #PF", trap.vec == GP || trap.vec == PF);
	TRY(__asm__ volatile("mov %%rbp,%%rbx; mov %1,%%rbp; mov (%%rbp),%0; mov %%rbx,%%rbp" : "=r"(v) : "r"(NONCANON) : "rbx"));
	check_trap("through RBP: #SS(0)", SS, 0);
	TRY(__asm__ volatile("mov %%rbp,%%rbx; mov %1,%%rbp; mov %%ds:(%%rbp),%0; mov %%rbx,%%rbp" : "=r"(v) : "r"(NONCANON) : "rbx"));
	check_trap("through RBP with a DS prefix, which counts for nothing: #SS(0)", SS, 0);
	TRY(__asm__ volatile("mov %1,%%rcx; mov %%ss:(%%rcx),%0" : "=r"(v) : "r"(NONCANON) : "rcx"));
	check_trap("SS prefix on RCX", GP, 0);
	TRY(__asm__ volatile("mov %0,%%rax; jmp *%%rax" : : "r"(NONCANON) : "rax"));
	check("jmp to a non-canonical address: #GP(0) at the jump", trap.vec == GP && trap.err == 0 && *(u16 *)trap.f.ip == 0xe0ff);
	TRY(__asm__ volatile("mov %0,%%rax; call *%%rax" : : "r"(NONCANON) : "rax"));
	check("call: #GP(0) at the call", trap.vec == GP && *(u16 *)trap.f.ip == 0xd0ff);
	TRY(__asm__ volatile("push %0; ret" : : "r"(NONCANON)));
	check("ret: #GP(0) at the ret", trap.vec == GP && *(u8 *)trap.f.ip == 0xc3);
	/* A stack that is not: the handler needs an IST. */
	tss.ist[1] = (uptr)stack2 + sizeof(stack2);
	idt[2 * SS] |= 2ull << 32;
	idt[2 * GP] |= 2ull << 32;
	idt[2 * PF] |= 2ull << 32;
	idt[2 * DF] |= 2ull << 32;
	TRY(__asm__ volatile("mov %0,%%rsp; push %%rax" : : "r"(NONCANON + 64)));
	check_trap("push on a non-canonical stack: #SS(0)", SS, 0);
	TRY(__asm__ volatile("mov %0,%%rsp; pop %%rax" : : "r"(NONCANON + 64) : "rax"));
	check_trap("pop: #SS(0)", SS, 0);
	TRY(__asm__ volatile("mov %0,%%rsp; call 1f; 1:" : : "r"(NONCANON + 64)));
	check_trap("call: #SS(0)", SS, 0);
	set_idt(SS, A_INT32);
	set_idt(GP, A_INT32);
	set_idt(PF, A_INT32);
	set_idt(DF, A_INT32);
	static struct dtr d;
	d = (struct dtr){ 0xff, NONCANON57 };
	TRY(__asm__ volatile("lgdt %0" : : "m"(d)));
	check_trap("lgdt of a non-canonical base: #GP(0)", GP, 0);
	TRY(__asm__ volatile("lidt %0" : : "m"(d)));
	check_trap("lidt of a non-canonical base: #GP(0)", GP, 0);
	static const u32 msrs[] = { LSTAR, CSTAR, FS_BASE, GS_BASE, KERNEL_GS_BASE, 0x175, 0x176 };
	for (unsigned k = 0; k < ARRAY_LEN(msrs); k++) {
		TRY(wrmsr(msrs[k], NONCANON57));
		check_trap(fmt("wrmsr %x of a non-canonical address: #GP(0)", msrs[k]), GP, 0);
	}
	TRY(__asm__ volatile("invlpg (%0)" : : "r"(NONCANON)));
	check_trap("invlpg of a non-canonical address: no fault", NONE, 0);
	TRY(__asm__ volatile("prefetcht0 (%0)" : : "r"(NONCANON)));
	check_trap("prefetch of a non-canonical address: no fault", NONE, 0);
	TRY(__asm__ volatile("lea (%1),%0" : "=r"(v) : "r"(NONCANON)));
	check_trap("lea of a non-canonical address: no fault", NONE, 0);
}

static void delivery(void)
{
	for (unsigned off = 0; off < 16; off += 1) {
		TRY(__asm__ volatile("mov %%rsp,%%rbx; and $-64,%%rsp; sub $128,%%rsp; add %0,%%rsp; mov %%rsp,%%rcx; ud2" : : "r"((u64)off) : "rbx", "rcx"));
		if (off == 0 || off == 1 || off == 8 || off == 15)
			check(fmt("frame aligned to 16, SP %u over", off), trap.at == (trap.f.cx & ~15ull) - 40 && trap.f.sp == trap.f.cx && trap.f.ss == DATA);
	}
	TRY(__asm__ volatile("mov %%rsp,%%rbx; and $-64,%%rsp; mov %%rsp,%%rcx; mov %0,%%ds" : : "r"(0xfff8) : "rbx", "rcx"));
	check("with an error code below the frame", trap.vec == GP && trap.at == trap.f.cx - 48 && trap.raw[0] == 0xfff8);
	for (unsigned ist = 1; ist < 8; ist++) {
		tss.ist[ist - 1] = (uptr)stack2 + 512 * ist + 5;
		idt_set64(UD, CODE, (idt[2 * UD] & 0xffff) | (idt[2 * UD] >> 32 & 0xffff0000), A_INT32, ist);
		TRY(__asm__ volatile("ud2"));
		check(fmt("IST %u", ist), trap.vec == UD && trap.at == (((uptr)stack2 + 512 * ist + 5) & ~15ul) - 40);
	}
	/* A null SS as CPL changes; on IST without a change SS stays. */
	check_eq("IST at CPL 0 keeps SS", trap.entry_ss, DATA);
	user((const u8 *)"\x0f\x0b");
	check("from CPL 3: SS is null, the pushed one is the user's", trap.entry_ss == 0 && trap.f.ss == UDATA && trap.f.sp == (uptr)user_stack_end);
	tss.ist[6] = NONCANON + 64;
	TRY(__asm__ volatile("ud2"));
	check_trap("IST not canonical: #SS(0) with EXT", SS, 1);
	set_idt(UD, A_INT32);
	static const struct { u32 access; u16 cs; int vec; u32 ec; const char *name; } gates[] = {
		{ A_INT16, CODE, GP, 0x50 * 8 + 2, "286 gate" }, { A_TASK, TSS_SEL, GP, 0x50 * 8 + 2, "task gate" },
		{ A_INT32, CODE32, GP, CODE32, "to compatibility code" }, { A_INT32, DATA, GP, DATA, "to data" },
		{ A_INT32 & 0x7f, CODE, NP, 0x50 * 8 + 2, "not present" }, { A_INT32, 0, GP, 0, "null CS" },
	};
	for (unsigned k = 0; k < ARRAY_LEN(gates); k++) {
		idt_set64(0x50, gates[k].cs, 0x100000, gates[k].access, 0);
		TRY(__asm__ volatile("int $0x50"));
		check_trap(fmt("IDT gate: %s", gates[k].name), gates[k].vec, gates[k].ec);
	}
	idt_set64(0x50, CODE, NONCANON, A_INT32, 0);
	TRY(__asm__ volatile("int $0x50"));
	check_trap("IDT gate to a non-canonical address: #GP(0)", GP, 0);
	struct dtr d = { 0x50 * 16 + 14, (uptr)idt };
	set_idt(0x50, A_INT32);
	TRY(__asm__ volatile("lidt %0; int $0x50" : : "m"(d)));
	load_tables();
	check_trap("IDT limit one short of 16 bytes", GP, 0x50 * 8 + 2);
	tss.rsp[0] = NONCANON + 64;
	idt[2 * SS] |= 1ull << 32;
	tss.ist[0] = (uptr)stack2 + 1024;
	user((const u8 *)"\x0f\x0b");
	check_trap("RSP0 not canonical: #SS(0) with EXT", SS, 1);
	tss.rsp[0] = (uptr)trap_stack_end;
	set_idt(SS, A_INT32);
}

/* ---- IRETQ, far returns, NT --------------------------------------------------------------------- */

extern const u8 done64[], done32[];
__asm__(".text\n.globl done64,done32\ndone64: int $0x80\ndone32: int $0x80\n");

static int iretq(u64 ip, u64 cs, u64 fl, u64 sp, u64 ss)
{
	volatile u64 f[5] = { ip, cs, fl, sp, ss };
	return TRY(__asm__ volatile("push 32(%0); push 24(%0); push 16(%0); push 8(%0); push (%0); iretq" : : "a"(f) : "memory"));
}
static int lretq(u64 ip, u64 cs, u64 sp, u64 ss)
{
	volatile u64 f[5] = { ip, cs, sp, ss };
	return TRY(__asm__ volatile("push 24(%0); push 16(%0); push 8(%0); push (%0); lretq" : : "a"(f) : "memory"));
}

static void returns(void)
{
	u64 usp = (uptr)user_stack_end, ksp = (uptr)stack2 + sizeof(stack2);
	iretq((uptr)done64, CODE, 2, ksp, DATA);
	check("iretq at the same level pops SS:RSP", trap.vec == DONE && trap.f.sp == ksp && trap.f.ss == DATA);
	iretq((uptr)done64, CODE, 2, ksp, 0);
	check("iretq to CPL 0 with a null SS", trap.vec == DONE && trap.f.ss == 0);
	iretq((uptr)done64, UCODE, 2, usp, UDATA);
	check("iretq to CPL 3", trap.vec == DONE && trap.f.cs == UCODE && trap.f.sp == usp);
	iretq((uptr)done64, UCODE, 2, usp, 3);
	check_trap("iretq to 64-bit CPL 3 with a null SS: #GP(0)", GP, 0);
	iretq((uptr)done32, UCODE32, 2, usp, UDATA);
	check("iretq to compatibility mode", trap.vec == DONE && trap.f.cs == UCODE32);
	iretq((uptr)done32, UCODE32, 2, usp, 3);
	check_trap("iretq to compatibility mode with a null SS: #GP(0)", GP, 0);
	iretq((uptr)done32, CODE32, 2, ksp, 0);
	check_trap("iretq to CPL 0 compatibility code with a null SS: #GP(0)", GP, 0);
	iretq(NONCANON, CODE, 2, ksp, DATA);
	check_trap("iretq to a non-canonical RIP: #GP(0)", GP, 0);
	iretq(NONCANON, UCODE, 2, usp, UDATA);
	check("iretq to CPL 3 and a non-canonical RIP: #GP(0) at CPL 0", trap.vec == GP && trap.err == 0 && trap.f.cs == CODE);
	iretq(0x100000000ull | (uptr)done32, UCODE32, 2, usp, UDATA);
	check("iretq to compatibility code: RIP's upper half does not count", trap.vec == DONE || trap.vec == GP);
	iretq((uptr)done64, UCODE, 2, NONCANON, UDATA);
	check("iretq takes any RSP", trap.vec == DONE && trap.f.sp == NONCANON);
	gdt[C] = desc(0, 0xfffff, A_XR | A_DPL3, F_G | F_L | F_B);
	iretq((uptr)done64, C * 8 + 3, 2, usp, UDATA);
	check_trap("CS with L and D: #GP(CS)", GP, C * 8);
	iretq((uptr)done64, UCODE, 2 | FL_VM | FL_IF, usp, UDATA);
	check("iretq ignores VM in the image", trap.vec == DONE && !(trap.f.flags & FL_VM));
	TRY(__asm__ volatile("pushfq; orl $0x4000,(%rsp); popfq; iretq"));
	check_trap("iretq with NT: #GP(0)", GP, 0);
	/* IRETD and IRETW in 64-bit mode pop SS:SP too. */
	TRY(__asm__ volatile("sub $20,%%rsp; movl %0,(%%rsp); movl $8,4(%%rsp); movl $2,8(%%rsp); movl %1,12(%%rsp); movl $0x10,16(%%rsp); iretl"
		: : "i"(done64), "r"((u32)ksp)));
	check("iretd in 64-bit mode: five doublewords", trap.vec == DONE && trap.f.sp == ksp);
	lretq((uptr)done64, CODE, 0, 0);
	check("lretq at the same level", trap.vec == DONE && trap.f.cs == CODE);
	lretq((uptr)done64, UCODE, usp, UDATA);
	check("lretq to CPL 3", trap.vec == DONE && trap.f.cs == UCODE && trap.f.sp == usp && trap.f.ss == UDATA);
	lretq((uptr)done32, UCODE32, usp, UDATA);
	check("lretq to compatibility mode", trap.vec == DONE && trap.f.cs == UCODE32);
	lretq(NONCANON, CODE, 0, 0);
	check_trap("lretq to a non-canonical RIP: #GP(0)", GP, 0);
	lretq((uptr)done64, 0, 0, 0);
	check_trap("lretq to a null CS: #GP(0)", GP, 0);
	/* What 64-bit mode takes away. */
	static const struct { u8 code[8], n; const char *name; } gone[] = { { { 0x06 }, 1, "push es" }, { { 0x0e }, 1, "push cs" }, { { 0x1f }, 1, "pop ds" }, { { 0x27 }, 1, "daa" },
		{ { 0x37 }, 1, "aaa" }, { { 0x60 }, 1, "pusha" }, { { 0x61 }, 1, "popa" }, { { 0xd4, 10 }, 2, "aam" }, { { 0xd5, 10 }, 2, "aad" }, { { 0xd6 }, 1, "salc" },
		{ { 0xce }, 1, "into" }, { { 0x9a }, 1, "far call" }, { { 0xea }, 1, "far jmp" }, { { 0x82, 0xc0, 1 }, 3, "82 /0" }, { { 0xc5, 0x00 }, 2, "lds" } };
	static u8 code[64];
	for (unsigned k = 0; k < ARRAY_LEN(gone); k++) {
		memset(code, 0xc3, sizeof(code));
		memcpy(code, gone[k].code, gone[k].n);
		TRY(__asm__ volatile("call *%0" : : "r"(code), "a"(buf)));
		if (k != ARRAY_LEN(gone) - 1)
			check(fmt("#UD in 64-bit mode: %s", gone[k].name), trap.vec == UD && trap.f.ip == (uptr)code);
	}
	u32 lahf = has(0x80000001, 2, 0);
	TRY(__asm__ volatile("lahf" : : : "rax"));
	check_eq("lahf as CPUID says", (u64)trap.vec, (u64)(lahf ? NONE : UD));
	/* Far jmp and call through memory: m16:16, m16:32, m16:64. */
	struct { u32 off; u16 s; } __attribute__((packed)) f32 = { (uptr)done64, CODE };
	struct { u64 off; u16 s; } __attribute__((packed)) f64 = { (uptr)done64, CODE };
	TRY(__asm__ volatile("ljmp *%0" : : "m"(f32)));
	check_trap("ljmp m16:32", DONE, 0);
	if (!is_amd()) {
		TRY(__asm__ volatile("rex.w ljmp *%0" : : "m"(f64)));
		check_trap("ljmp m16:64", DONE, 0);
	}
	f32.s = UCODE;
	TRY(__asm__ volatile("ljmp *%0" : : "m"(f32)));
	check_trap("ljmp to CPL 3: #GP(CS)", GP, UCODE & ~3);
	f32.s = TSS_SEL;
	TRY(__asm__ volatile("ljmp *%0" : : "m"(f32)));
	check_trap("ljmp to a TSS in long mode: #GP", GP, TSS_SEL);
}

/* ---- call gates ------------------------------------------------------------------------------------ */

static void gate64(unsigned n, u16 s, u64 off, u32 access)
{
	gdt[n] = gate(s, (u32)off, access, 0);
	gdt[n + 1] = off >> 32;
}
extern const u8 user_lcall[], user_lcall32[];
static struct { u32 off; u16 s; } __attribute__((packed)) far_target;
__asm__(".text\n.globl user_lcall,user_lcall32\nuser_lcall: lcall *(%rbx)\nint $0x81\n.code32\nuser_lcall32: lcall *(%ebx)\nint $0x81\n.code64\n");

static void call_gates(void)
{
	struct regs r = user_regs(user_lcall);
	r.bx = (uptr)&far_target;
	far_target.s = sel(G, 3);
	gate64(G, CODE, (uptr)done64, A_CALL32 | A_DPL3);
	go(&r);
	u64 *s = (u64 *)trap.f.sp;
	check("call gate from CPL 3: CPL 0 on RSP0, SS null", trap.vec == DONE && trap.f.cs == CODE && trap.f.ss == 0 && trap.f.sp == (uptr)trap_stack_end - 32);
	check("call gate: SS, RSP, CS, RIP pushed", s[0] == (uptr)user_lcall + 2 && s[1] == UCODE && s[2] == (uptr)user_stack_end && s[3] == UDATA);
	r.ip = (uptr)user_lcall32;
	r.cs = UCODE32;
	go(&r);
	s = (u64 *)trap.f.sp;
	check("call gate from compatibility mode", trap.vec == DONE && trap.f.cs == CODE && s[1] == UCODE32 && s[0] == (uptr)user_lcall32 + 2);
	TRY(__asm__ volatile("mov %%rsp,%%rcx; lcall *%0" : : "m"(far_target) : "rcx"));
	check("call gate at the same level: 16 bytes", trap.vec == DONE && trap.f.sp == trap.f.cx - 16);
	r = user_regs(user_lcall);
	r.bx = (uptr)&far_target;
	gate64(G, CODE32, (uptr)done64, A_CALL32 | A_DPL3);
	go(&r);
	check_trap("call gate to compatibility code: #GP(CS)", GP, CODE32);
	gate64(G, CODE, NONCANON, A_CALL32 | A_DPL3);
	go(&r);
	check_trap("call gate to a non-canonical RIP: #GP(0)", GP, 0);
	gate64(G, CODE, (uptr)done64, A_CALL16 | A_DPL3);
	go(&r);
	check_trap("286 call gate in long mode: #GP(gate)", GP, G * 8);
	gate64(G, CODE, (uptr)done64, A_CALL32 | A_DPL3);
	gdt[G2] |= 1ull << 40;
	go(&r);
	check_trap("call gate whose upper half has a type: #GP(gate)", GP, G * 8);
	gate64(G, CODE, (uptr)done64, A_CALL32);
	go(&r);
	check_trap("call gate of DPL 0 from CPL 3: #GP(gate)", GP, G * 8);
	gate64(G, CODE, (uptr)done64, (A_CALL32 | A_DPL3) & 0x7f);
	go(&r);
	check_trap("call gate not present: #NP(gate)", NP, G * 8);
}

/* ---- SYSCALL, SYSENTER -------------------------------------------------------------------------------- */

extern const u8 do_syscall[], do_syscall32[], sys_entry[], do_sysenter[], do_sysenter32[], sysenter_entry[];
__asm__(".text\n.globl do_syscall,do_syscall32,sys_entry,do_sysenter,do_sysenter32,sysenter_entry\n"
	"do_syscall: syscall; int $0x81\n.code32\ndo_syscall32: syscall; int $0x81\ndo_sysenter32: sysenter; int $0x81\n.code64\n"
	"do_sysenter: sysenter; int $0x81\n"
	"sys_entry: mov %rsp,%rbp; mov $stack_for_sys,%rsp; int $0x80\n"
	"sysenter_entry: int $0x80\n.data\n.align 16\n.space 512\n.globl stack_for_sys\nstack_for_sys:\n.space 16\n.text\n");

/* RBX rounds in and out, back by SYSRET and IRETQ in turn: flags, vector registers and all others survive. */
extern const u8 do_often[], often_entry[];
__asm__(".text\n.globl do_often,often_entry\n"
	"do_often: movq %rdi,%xmm0; movq %rsi,%xmm15; mov %rsp,%r10\n"
	"1: test $1,%bl; mov %rbx,%r15; syscall\n2: setz %al; lea 2b(%rip),%rdx; cmp %rdx,%rcx; jne 9f; mov %bl,%dl; xor $1,%dl; and $1,%dl; cmp %al,%dl; jne 9f\n"
	"movq %xmm0,%rax; cmp %rax,%rdi; jne 9f; movq %xmm15,%rax; cmp %rax,%rsi; jne 9f; cmp %r10,%rsp; jne 9f; cmp %rbx,%r15; jne 9f\n"
	"mov %cs,%ax; cmp %ax,%r14w; jne 9f; mov %ss,%ax; cmp %ax,%r13w; jne 9f; dec %rbx; jnz 1b; int $0x80\n9: int $0x81\n"
	"often_entry: mov %cs,%ax; test $3,%al; jnz 4f; inc %r8d; test $1,%r8b; jz 3f; sysretq\n"
	"3: mov %rsp,%r9; mov $stack_for_sys,%rsp; push %r13; push %r9; push %r11; push %r14; push %rcx; iretq\n4: int $0x81\n");

static void often(void)
{
	wrmsr(LSTAR, (uptr)often_entry);
	struct regs r = user_regs(do_often);
	r.flags = 2 | FL_IF;
	r.bx = 3000;
	r.di = 0x123456789abcdef0;
	r.si = 0xfedcba9876543210;
	r.r13 = UDATA;
	r.r14 = UCODE;
	r.r8 = 0;
	go(&r);
	check_trap("3000 times SYSCALL, SYSRET, IRETQ", DONE, 0);
	check("... all rounds, IF as it was, at CPL 3", trap.f.bx == 0 && trap.f.r8 == 3000 && (trap.f.flags & FL_IF) && trap.f.cs == UCODE);
	wrmsr(LSTAR, (uptr)sys_entry);
}

/* LSTAR may hold an address that is canonical with 57 bits only: #GP there, after one SYSCALL. */
static void to_no_address(void)
{
	const u64 at = 0x800000000000;
	if (read_cr4() & 1ul << 12)
		return;
	TRY(wrmsr(LSTAR, at));
	if (trap.vec != NONE)
		return;
	u64 mask = rdmsr(FMASK);
	wrmsr(FMASK, FL_CF);
	for (unsigned k = 0; k < 3; k++) {
		struct regs r = user_regs(do_syscall);
		r.flags = 2 | FL_CF;
		go(&r);
		check_trap("SYSCALL to an address that is not canonical: #GP", GP, 0);
		check("... at it, with the flags of before in R11", trap.f.ip == at && (trap.f.r11 & FL_CF) && !(trap.f.flags & FL_CF));
	}
	wrmsr(FMASK, mask);
	wrmsr(LSTAR, (uptr)sys_entry);
}

static void syscalls(void)
{
	wrmsr(STAR, (u64)(UCODE32 & ~3u) << 48 | (u64)CODE << 32);
	wrmsr(LSTAR, (uptr)sys_entry);
	wrmsr(CSTAR, (uptr)sys_entry);
	wrmsr(FMASK, FL_IF | FL_DF | FL_TF);
	struct regs r = user_regs(do_syscall);
	r.flags = 2 | FL_IF | FL_DF | FL_CF | FL_IOPL;
	go(&r);
	check("syscall: RCX, R11, CS, SS, RSP kept", trap.vec == DONE && trap.f.cx == (uptr)do_syscall + 2 && trap.f.cs == CODE && trap.f.ss == DATA &&
	      trap.f.bp == (uptr)user_stack_end);
	check_eq("syscall: R11 is RFLAGS", trap.f.r11, r.flags);
	check_eq("syscall: FMASK clears", trap.f.flags & (FL_IF | FL_DF | FL_CF | FL_IOPL), FL_CF | FL_IOPL);
	r.ip = (uptr)do_syscall32;
	r.cs = UCODE32;
	go(&r);
	check_trap(is_amd() ? "syscall in compatibility mode (AMD)" : "syscall in compatibility mode: #UD (Intel)", is_amd() ? DONE : UD, 0);
	wrmsr(EFER, rdmsr(EFER) & ~1ull);
	user(do_syscall);
	check_trap("syscall without EFER.SCE: #UD", UD, 0);
	TRY(__asm__ volatile("sysretq"));
	check_trap("sysret without EFER.SCE: #UD", UD, 0);
	wrmsr(EFER, rdmsr(EFER) | 1);
	TRY(__asm__ volatile("mov %0,%%rsp; mov %1,%%rcx; mov $0x246,%%r11; sysretq" : : "i"(user_stack_end), "i"(done64) : "rcx", "r11"));
	check("sysretq: CPL 3, selectors from STAR", trap.vec == DONE && trap.f.cs == UCODE && trap.f.ss == UDATA && (trap.f.flags & 0x246) == 0x246);
	TRY(__asm__ volatile("mov %0,%%rsp; mov %1,%%rcx; mov $0x37ed7,%%r11; sysretq" : : "i"(user_stack_end), "i"(done64) : "rcx", "r11"));
	check_eq("sysretq: RF and VM of R11 are dropped, IOPL and NT not", trap.f.flags & (FL_RF | FL_VM | FL_IOPL | FL_NT), FL_IOPL | FL_NT);
	TRY(__asm__ volatile("mov %0,%%rsp; mov %1,%%rcx; mov $2,%%r11; sysretl" : : "i"(user_stack_end), "i"(done32) : "rcx", "r11"));
	check("sysretl: compatibility mode", trap.vec == DONE && trap.f.cs == UCODE32 && trap.f.ss == UDATA);
	if (!is_amd()) {
		TRY(__asm__ volatile("mov %0,%%rcx; mov $2,%%r11; sysretq" : : "r"(NONCANON) : "rcx", "r11"));
		check("sysretq to a non-canonical RIP: #GP(0) at CPL 0", trap.vec == GP && trap.f.cs == CODE);
	}
	extern const u8 user_sysret[];
	user(user_sysret);
	check_trap("sysret at CPL 3: #GP(0)", GP, 0);
	if (is_amd()) {
		user(do_sysenter);
		check_trap("sysenter in long mode: #UD (AMD)", UD, 0);
		return;
	}
	wrmsr(0x174, 0);
	user(do_sysenter);
	check_trap("sysenter with a null SYSENTER_CS: #GP(0)", GP, 0);
	wrmsr(0x174, CODE);
	wrmsr(0x175, (uptr)stack2 + 2048);
	wrmsr(0x176, (uptr)sysenter_entry);
	r = user_regs(do_sysenter);
	r.flags = 2 | FL_IF | FL_CF;
	go(&r);
	check("sysenter: CS, SS, RSP, RIP", trap.vec == DONE && trap.f.cs == CODE && trap.f.ss == DATA && trap.f.sp == (uptr)stack2 + 2048 && trap.f.ip == (uptr)sysenter_entry + 2);
	check_eq("sysenter clears IF only", trap.f.flags & (FL_IF | FL_CF), FL_CF);
	r.ip = (uptr)do_sysenter32;
	r.cs = UCODE32;
	go(&r);
	check("sysenter from compatibility mode goes to 64-bit code", trap.vec == DONE && trap.f.cs == CODE);
	/* SYSEXIT: CS+16 (32-bit), CS+32 (64-bit): 0x1b/0x23, 0x2b/0x33. */
	TRY(__asm__ volatile("mov %0,%%rcx; mov %1,%%rdx; sysexitl" : : "i"(user_stack_end), "i"(done32) : "rcx", "rdx"));
	check("sysexit to 32 bits", trap.vec == DONE && trap.f.cs == UCODE32 && trap.f.ss == UDATA);
	TRY(__asm__ volatile("mov %0,%%rcx; mov %1,%%rdx; sysexitq" : : "i"(user_stack_end), "i"(done64) : "rcx", "rdx"));
	check("sysexit to 64 bits", trap.vec == DONE && trap.f.cs == UCODE && trap.f.ss == 0x33);
	TRY(__asm__ volatile("mov %0,%%rcx; mov %1,%%rdx; sysexitq" : : "i"(user_stack_end), "r"(NONCANON) : "rcx", "rdx"));
	check_trap("sysexit to a non-canonical RIP: #GP(0)", GP, 0);
	extern const u8 user_sysexit[];
	user(user_sysexit);
	check_trap("sysexit at CPL 3: #GP(0)", GP, 0);
}
__asm__(".text\n.globl user_sysret,user_sysexit\nuser_sysret: sysretq\nuser_sysexit: sysexitl\n");

/* ---- bases ------------------------------------------------------------------------------------------------ */

extern const u8 user_swapgs[], user_rdfs[];
__asm__(".text\n.globl user_swapgs,user_rdfs\nuser_swapgs: swapgs; int $0x80\nuser_rdfs: rdfsbase %rax; int $0x80\n");

/* IRET to CPL 3 makes GS null where CPL 3 may not have it, and loads nothing: the base, which is
 * an MSR to 64-bit code, stays. Every system with a null GS and SWAPGS on its way out needs that. */
extern const u8 user_gs[], user_null_gs[], iret_swapgs[];
__asm__(".text\n.globl user_gs,user_null_gs,iret_swapgs\nuser_gs: mov %gs,%eax; mov %gs:8,%rbx; int $0x80\n"
	"user_null_gs: xor %eax,%eax; mov %eax,%gs; mov %gs,%eax; int $0x80\niret_swapgs: swapgs; iretq\n");

static void gs_over_iret(void)
{
	static const struct { u16 in, out; const char *name; } sels[] = {
		{ 0, 0, "null" }, { UDATA, UDATA, "of DPL 3" }, { DATA, 0, "of DPL 0" } };
	static u64 of_user[2] = { 0, 0x1111 }, of_kernel[2] = { 0, 0x2222 };
	for (unsigned k = 0; k < ARRAY_LEN(sels); k++) {
		__asm__ volatile("mov %0,%%gs" : : "r"((u32)sels[k].in));
		wrmsr(GS_BASE, (uptr)of_user);
		wrmsr(KERNEL_GS_BASE, (uptr)of_kernel);
		user(user_gs);
		check_eq(fmt("iretq to CPL 3 with a GS %s: selector", sels[k].name), (u32)trap.f.ax, sels[k].out);
		if (sels[k].out == sels[k].in) {
			check_eq(fmt("iretq to CPL 3 with a GS %s: base", sels[k].name), trap.f.bx, 0x1111);
			check_eq(fmt("and back, GS %s: the MSR", sels[k].name), rdmsr(GS_BASE), (uptr)of_user);
		}
	}
	/* Out with SWAPGS and in again, as kernels do. */
	__asm__ volatile("mov %0,%%gs" : : "r"(0));
	wrmsr(GS_BASE, (uptr)of_kernel);
	wrmsr(KERNEL_GS_BASE, (uptr)of_user);
	for (unsigned k = 0; k < 3; k++) {
		u64 v = 0;
		volatile u64 f[5] = { (uptr)user_gs, UCODE, 2, (uptr)user_stack_end, UDATA };
		TRY(__asm__ volatile("push 32(%0); push 24(%0); push 16(%0); push 8(%0); push (%0); jmp iret_swapgs" : : "a"(f) : "memory"));
		check(fmt("swapgs, iretq, %u: CPL 3 has its base", k), trap.vec == DONE && trap.f.bx == 0x1111);
		__asm__ volatile("swapgs; mov %%gs:8,%0" : "=r"(v));
		check_eq(fmt("INT, swapgs, %u: the kernel's base is back", k), v, 0x2222);
	}
	wrmsr(GS_BASE, (uptr)of_user);
	wrmsr(KERNEL_GS_BASE, (uptr)of_kernel);
	user(user_null_gs);
	check_eq(is_amd() ? "a null GS loaded at CPL 3 keeps the base (AMD)" : "a null GS loaded at CPL 3 clears the base (Intel)", rdmsr(GS_BASE),
		 is_amd() && !has(0x80000021, 0, 6) ? (uptr)of_user : 0);
	check_eq("and leaves KERNEL_GS_BASE", rdmsr(KERNEL_GS_BASE), (uptr)of_kernel);
}

static void bases(void)
{
	u64 v = 0;
	*(u64 *)buf = 0x1122334455667788;
	wrmsr(FS_BASE, (uptr)buf);
	__asm__ volatile("mov %%fs:0,%0" : "=r"(v));
	check_eq("FS base by MSR", v, 0x1122334455667788);
	wrmsr(GS_BASE, 0xffff800000000000ull);
	wrmsr(KERNEL_GS_BASE, (uptr)buf - 8);
	__asm__ volatile("swapgs; mov %%gs:8,%0; swapgs" : "=r"(v));
	check_eq("swapgs", v, 0x1122334455667788);
	check("swapgs twice", rdmsr(GS_BASE) == 0xffff800000000000ull && rdmsr(KERNEL_GS_BASE) == (uptr)buf - 8);
	user(user_swapgs);
	check_trap("swapgs at CPL 3: #GP(0)", GP, 0);
	gdt[C] = desc((u32)(uptr)buf + 8, 0xfff, A_RW, F_B);
	*(u64 *)(buf + 8) = 0x99;
	__asm__ volatile("mov %1,%%fs; mov %%fs:0,%0" : "=r"(v) : "r"(C * 8));
	check_eq("a load of FS takes the descriptor's base", v, 0x99);
	check_eq("and shows in the MSR", rdmsr(FS_BASE), (u32)(uptr)buf + 8);
	gdt[C] = desc(0xfffff000, 0, A_RW, F_B);
	__asm__ volatile("mov %1,%%es; mov %%es:(%2),%0; mov %3,%%es" : "=r"(v) : "r"(C * 8), "r"(buf), "r"(DATA));
	check_eq("ES: base and limit ignored", v, 0x1122334455667788);
	__asm__ volatile("mov %0,%%ds; mov %0,%%es" : : "r"(0));
	check_trap("null DS in 64-bit mode", TRY(v = *(volatile u64 *)buf), 0);
	__asm__ volatile("mov %0,%%ds; mov %0,%%es" : : "r"(DATA));
	__asm__ volatile("mov %0,%%fs" : : "r"(0));
	check_eq(is_amd() ? "null FS keeps its base (AMD)" : "null FS clears its base (Intel)", rdmsr(FS_BASE), is_amd() && !has(0x80000021, 0, 6) ? 0xfffff000 - 0xfffff000 + (u32)(uptr)buf + 8 : 0);
	if (has(7, 1, 0)) {
		TRY(__asm__ volatile("rdfsbase %%rax" : : : "rax"));
		check_trap("rdfsbase without CR4.FSGSBASE: #UD", UD, 0);
		write_cr4(read_cr4() | 0x10000);
		TRY(__asm__ volatile("wrfsbase %1; rdfsbase %0" : "=r"(v) : "r"(0x123456789abull)));
		check_eq("wrfsbase, rdfsbase", v, 0x123456789abull);
		TRY(__asm__ volatile("wrgsbase %1; rdgsbase %0" : "=r"(v) : "r"(0xffff923456789abcull)));
		check_eq("wrgsbase, rdgsbase", v, 0xffff923456789abcull);
		TRY(__asm__ volatile("wrfsbase %k1; rdfsbase %0" : "=r"(v) : "r"(0xffffffff87654321ull)));
		check_eq("32-bit wrfsbase", v, 0x87654321);
		TRY(__asm__ volatile("wrfsbase %0" : : "r"(NONCANON57)));
		check_trap("wrfsbase non-canonical: #GP(0)", GP, 0);
		user(user_rdfs);
		check("rdfsbase at CPL 3", trap.vec == DONE && trap.f.ax == 0x87654321);
		write_cr4(read_cr4() & ~0x10000ul);
	}
	gs_over_iret();
	wrmsr(FS_BASE, 0);
	wrmsr(GS_BASE, 0);
}

/* ---- CR, EFER ------------------------------------------------------------------------------------------------- */

static void control(void)
{
	TRY(wrmsr(EFER, rdmsr(EFER) & ~0x100ull));
	check_trap("EFER.LME while paging: #GP(0)", GP, 0);
	TRY(wrmsr(EFER, rdmsr(EFER) | 2));
	check_trap("EFER bit 1: #GP(0)", GP, 0);
	TRY(write_cr0(read_cr0() & ~0x80000000ul));
	check_trap("CR0.PG off in 64-bit mode: #GP(0)", GP, 0);
	TRY(write_cr0(read_cr0() & ~1ul));
	check_trap("CR0.PE off with PG: #GP(0)", GP, 0);
	TRY(write_cr0(read_cr0() | 1ull << 32));
	check_trap("CR0 bit 32: #GP(0)", GP, 0);
	TRY(write_cr4(read_cr4() & ~0x20ul));
	check_trap("CR4.PAE off in long mode: #GP(0)", GP, 0);
	TRY(write_cr4(read_cr4() | 1ull << 40));
	check_trap("CR4 bit 40: #GP(0)", GP, 0);
	TRY(write_cr3(read_cr3() | 1ull << 62));
	check_trap("CR3 bit 62: #GP(0)", GP, 0);
	TRY(__asm__ volatile("mov %0,%%cr8" : : "r"(16ul)));
	check_trap("CR8 bit 4: #GP(0)", GP, 0);
	u64 v;
	TRY(__asm__ volatile("mov %1,%%cr8; mov %%cr8,%0; mov %2,%%cr8" : "=r"(v) : "r"(9ul), "r"(0ul)));
	check_eq("CR8", v, 9);
	TRY(__asm__ volatile("mov %0,%%dr7" : : "r"(1ull << 32)));
	check_trap("DR7 bit 32: #GP(0)", GP, 0);
	TRY(__asm__ volatile("mov %0,%%dr6" : : "r"(1ull << 32)));
	check_trap("DR6 bit 32: #GP(0)", GP, 0);
	TRY(__asm__ volatile("mov %%cr2,%0" : "=r"(v)));
	TRY(__asm__ volatile("mov %0,%%cr2" : : "r"(0x123456789abcdef0)));
	check_eq("CR2 takes anything", read_cr2(), 0x123456789abcdef0);
	/* Out of long mode and back, by compatibility mode. */
	extern u32 leave_and_return(void);
	u32 mid = leave_and_return();
	check_eq("paging off in compatibility mode clears EFER.LMA", mid & 0x500, 0x100);
	check("and back to 64 bits", rdmsr(EFER) & 0x400);
	/* LMSLE */
	TRY(wrmsr(EFER, rdmsr(EFER) | 0x2000));
	if (trap.vec == GP) {
		skip("EFER.LMSLE", "reserved here");
		return;
	}
	extern const u8 user_ld[];
	gdt[C] = desc(0, 0xeffff, A_RW | A_DPL3, F_G | F_B);
	struct regs r = user_regs(user_ld);
	r.ds = C * 8 + 3;
	r.bx = 0xfffffffff0000000ull;
	go(&r);
	check_trap("LMSLE: beyond DS's limit at CPL 3: #GP(0)", GP, 0);
	r.bx = 0xffffffffe0000000ull;
	go(&r);
	check_eq("LMSLE: below it goes on to paging", trap.vec, PF);
	r.bx = (uptr)buf;
	go(&r);
	check_trap("LMSLE: the lower half is free", DONE, 0);
	wrmsr(EFER, rdmsr(EFER) & ~0x2000ull);
}
__asm__(".text\n.globl leave_and_return,user_ld\nuser_ld: mov (%rbx),%al; int $0x80\n"
	"leave_and_return: push %rbx; sub $16,%rsp; movl $1f,(%rsp); movl $0x40,4(%rsp); ljmp *(%rsp)\n"
	".code32\n1: mov %cr0,%eax; and $0x7fffffff,%eax; mov %eax,%cr0; mov $0xc0000080,%ecx; rdmsr; mov %eax,%ebx\n"
	"mov %cr0,%eax; or $0x80000000,%eax; mov %eax,%cr0; ljmp $8,$1f\n.code64\n1: mov %ebx,%eax; add $16,%rsp; pop %rbx; ret\n");

/* ---- compatibility mode ------------------------------------------------------------------------------------------ */

extern const u8 c_inc[], c_wrap[], c_int[], c_limit[], c_push[], c_arpl[];
__asm__(".text\n.code32\n.globl c_inc,c_wrap,c_int,c_limit,c_push,c_arpl\nc_inc: mov $-1,%eax; .byte 0x40; int $0x80\nc_wrap: mov 0x10(%ebx),%eax; int $0x80\n"
	"c_int: int $0x50; int $0x80\nc_limit: mov %es:(%ebx),%eax; int $0x80\nc_push: push %eax; mov %esp,%ebp; int $0x80\nc_arpl: arpl %ax,%bx; into; daa; int $0x80\n.code64\n");

static void compat(void)
{
	struct regs r = user_regs(c_inc);
	r.cs = UCODE32;
	r.ax = ~0ull;
	go(&r);
	check("40 is INC in compatibility mode", trap.vec == DONE && (u32)trap.f.ax == 0);
	r.ip = (uptr)c_wrap;
	r.bx = 0x1fffffff0ull + (uptr)buf;
	*(u32 *)buf = 0xabcd0123;
	go(&r);
	check("32-bit addresses wrap", trap.vec == DONE && (u32)trap.f.ax == 0xabcd0123);
	gdt[C] = desc((u32)(uptr)buf, 15, A_RW | A_DPL3, F_B);
	r.ip = (uptr)c_limit;
	r.es = C * 8 + 3;
	r.bx = 16;
	go(&r);
	check_trap("limits hold in compatibility mode: #GP(0)", GP, 0);
	r.bx = 0;
	go(&r);
	check("bases too", trap.vec == DONE && (u32)trap.f.ax == 0xabcd0123);
	r.ip = (uptr)c_push;
	r.sp = 0x100000000ull + (uptr)user_stack_end;
	go(&r);
	check("push: 4 bytes, ESP 32 bits", trap.vec == DONE && trap.f.bp == (uptr)user_stack_end - 4);
	r.sp = (uptr)user_stack_end;
	r.ip = (uptr)c_arpl;
	go(&r);
	check_trap("arpl, into, daa are there", DONE, 0);
	set_idt(0x50, A_INT32 | A_DPL3);
	r.ip = (uptr)c_int;
	go(&r);
	check("INT from compatibility mode: a 64-bit frame", trap.vec == 0x50 && trap.f.cs == UCODE32 && trap.f.ip == (uptr)c_int + 2 && trap.entry_cs == CODE);
}

int main(void)
{
	canonical();
	delivery();
	returns();
	call_gates();
	syscalls();
	often();
	to_no_address();
	bases();
	control();
	compat();
	return 0;
}
