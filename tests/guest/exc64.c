/* What exceptions do differently in 64-bit mode: double faults with stacks of their own, 8-byte
 * breakpoints, TF through SYSCALL and POP SS's absence, #AC of 8 and 16 bytes, NMI. SDM vol. 3 6.14,
 * 6.15 (#DF, table 6-5), 17.2.4. */
#include "guest.h"

const char guest_name[] = "exc64";

static u8 buf[128] __attribute__((aligned(64)));
static u8 df_stack[2048] __attribute__((aligned(16)));
#define CLEAN() write_dr6(0xffff0ff0)
extern u64 boot_pml4[512];

static void doubles(void)
{
	/* Which pairs make a double fault: first by class, second by what its gate does. */
	tss.ist[0] = (uptr)df_stack + sizeof(df_stack);
	idt[2 * DF] |= 1ull << 32;
	static const struct { int first; const char *name; bool contributory; } firsts[] = {
		{ DE, "#DE", true }, { UD, "#UD", false }, { BP, "INT3", false }, { GP, "#GP", true }, { SS, "#SS", true }, { NP, "#NP", true }, { PF, "#PF", true },
		{ DB, "#DB", false }, { NM, "#NM", false },
	};
	static const struct { const char *name; int vec; } seconds[] = { { "#GP", GP }, { "#NP", NP }, { "#PF", PF } };
	gdt[FREE] = desc(0, 0xfffff, (A_RW | A_DPL3) & 0x7f, F_G | F_B);
	/* The gate of the first is made bad: zero (#GP), not present (#NP), or the handler's stack is absent (#PF). */
	for (unsigned k = 0; k < ARRAY_LEN(firsts); k++)
		for (unsigned n = 0; n < ARRAY_LEN(seconds); n++) {
			int v = firsts[k].first;
			u64 keep = idt[2 * v], keep1 = idt[2 * v + 1];
			tss.ist[1] = 0x700000001000;
			idt[2 * v] = n == 0 ? 0 : n == 1 ? keep & ~(0x80ull << 40) : keep | 2ull << 32;
			if (v == NM)
				write_cr0(read_cr0() | 8);
			TRY(switch (v) {
			case DE: __asm__ volatile("xor %%ecx,%%ecx; div %%ecx" : : : "rax", "rcx", "rdx"); break;
			case UD: __asm__ volatile("ud2"); break;
			case BP: __asm__ volatile("int3"); break;
			case GP: __asm__ volatile("rdmsr" : : "c"(0x12345) : "rax", "rdx"); break;
			case SS: __asm__ volatile("mov %%rbp,%%rbx; mov %0,%%rbp; mov (%%rbp),%%eax; mov %%rbx,%%rbp" : : "r"(0x800000000000) : "rax", "rbx"); break;
			case NP: __asm__ volatile("mov %0,%%ds" : : "r"(FREE * 8)); break;
			case PF: *(volatile u8 *)0x600000000000 = 1; break;
			case DB: __asm__ volatile(".byte 0xf1"); break;
			case NM: __asm__ volatile("fnop"); break;
			});
			write_cr0(read_cr0() & ~8ul);
			idt[2 * v] = keep;
			idt[2 * v + 1] = keep1;
			/* #PF after a contributory one is served by itself; after #PF all make #DF. */
			int want = v == PF || (firsts[k].contributory && n < 2) ? DF : seconds[n].vec;
			u32 ec = want == DF ? 0 : n == 2 ? EC_ANY : (u32)v * 8 + 2 + (v != BP);
			/* While the first's gate is the same as the second's the second fails again. */
			if ((v == GP && n == 0) || (v == NP && n == 1))
				want = DF, ec = 0;
			check_trap(fmt("%s, then %s on its way", firsts[k].name, seconds[n].name), want, ec);
			if (want == PF)
				check_eq(fmt("%s, then #PF: CR2", firsts[k].name), trap.cr2 & ~0xfffull, 0x700000000000);
		}
	idt[2 * DF] &= ~(7ull << 32);
}

static u32 probe(unsigned off, unsigned size, bool write)
{
	CLEAN();
	u8 *p = buf + off;
	if (size == 8 && write)
		TRY(__asm__ volatile("movq %%rax,(%0); nop" : : "r"(p) : "memory"));
	else if (size == 8)
		TRY(__asm__ volatile("movq (%0),%%rax; nop" : : "r"(p) : "rax"));
	else if (write)
		TRY(__asm__ volatile("movb %%al,(%0); nop" : : "r"(p) : "memory"));
	else
		TRY(__asm__ volatile("movb (%0),%%al; nop" : : "r"(p) : "rax"));
	return trap.vec == DB ? read_dr6() & 15 : trap.vec == NONE ? 0x100 : 0x200;
}

static void breakpoints(void)
{
	unsigned bad = 0;
	write_dr0((uptr)buf + 32);
	write_dr7(0x401 | 1 << 16 | 2 << 18);
	for (unsigned off = 20; off < 48; off++)
		for (unsigned size = 1; size <= 8; size *= 8)
			for (unsigned w = 0; w < 2; w++)
				bad += probe(off, size, w) != (w && off < 40 && off + size > 32 ? 1 : 0x100);
	check_eq("8-byte breakpoint: all overlaps", bad, 0);
	/* REP MOVS: after the iteration that met it. */
	write_dr0((uptr)buf + 70);
	write_dr7(0x401 | 1 << 16);
	CLEAN();
	TRY(__asm__ volatile("rep movsb" : : "D"(buf + 64), "S"(buf), "c"(16) : "memory"));
	check("breakpoint in REP MOVSB: after that iteration", trap.vec == DB && trap.f.cx >= 8 && trap.f.cx <= 9 && trap.f.di == (uptr)buf + 64 + 16 - trap.f.cx && trap.f.cx == 9);
	check_eq("RF in its image", trap.f.flags & FL_RF, FL_RF);
	/* The stack of PUSH, the second word of a pair. */
	write_dr0((uptr)buf + 40);
	write_dr7(0x401 | 1 << 16 | 2 << 18);
	CLEAN();
	TRY(__asm__ volatile("mov %%rsp,%%rbx; mov %0,%%rsp; push %%rax; mov %%rbx,%%rsp; nop" : : "r"(buf + 48) : "rbx", "memory"));
	check("breakpoint on a PUSH", trap.vec == DB && (read_dr6() & 1));
	/* Aligned down to its length. */
	write_dr0((uptr)buf + 35);
	check_eq("an 8-byte breakpoint's low address bits are ignored", probe(32, 1, true), 1);
	write_dr7(0x400);
	/* All 64 bits of an address count. */
	write_dr0((1ull << 40) | (uptr)buf);
	write_dr7(0x401 | 1 << 16);
	check_eq("upper half of DR0 counts", probe(0, 1, true), 0x100);
	write_dr7(0x400);
	CLEAN();
}

/* ---- shadows, with an interrupt pending ---------------------------------------------------- */

static volatile u64 nmi_ip;
static void apic_nmi_self(void)
{
	*(volatile u32 *)0xfee00310 = 0;
	*(volatile u32 *)0xfee00300 = 0x4400; /* NMI to APIC ID 0; the shorthand for self takes fixed ones alone */
}
static void apic_self(u8 v)
{
	*(volatile u32 *)0xfee00300 = 0x44000 | v;
}
static volatile u64 irq_ip, irq_count;
static bool on_irq(struct frame *f)
{
	if (f->vec == 0x60 || f->vec == NMI) {
		irq_ip = f->ip;
		irq_count++;
		if (f->vec == 0x60)
			*(volatile u32 *)0xfee000b0 = 0;
		return true;
	}
	return false;
}

extern const u8 sti_a[], sti_b[], ss_x[], cli_b[];
static void shadows(void)
{
	*(volatile u32 *)0xfee000f0 = 0x1ff;
	trap_hook = on_irq;
	irq_count = 0;
	apic_self(0x60);
	for (volatile unsigned k = 0; k < 1000; k++)
		;
	check_eq("no interrupt with IF clear", irq_count, 0);
	__asm__ volatile("sti; sti_a: nop; sti_b: nop; nop; nop; nop; nop; nop; nop; cli" : : : "memory");
	check("STI: taken after the next instruction", irq_count == 1 && irq_ip == (uptr)sti_b);
	apic_self(0x60);
	irq_count = 0;
	for (volatile unsigned k = 0; k < 1000; k++)
		;
	__asm__ volatile("sti; cli; cli_b: nop; nop; nop" : : : "memory");
	check_eq("STI CLI: no window", irq_count, 0);
	__asm__ volatile("sti; mov %%ss,%%eax; mov %%ax,%%ss; nop; ss_x: nop; nop; nop; cli" : : : "rax", "memory");
	check("then it is taken", irq_count == 1);
	/* MOV SS with IF set and an interrupt that arrives by the instruction before. */
	irq_count = 0;
	apic_nmi_self();
	for (volatile unsigned k = 0; k < 1000; k++)
		;
	check_eq("NMI ignores IF", irq_count, 1);
	/* HLT right after STI: wakes. */
	irq_count = 0;
	apic_self(0x60);
	__asm__ volatile("sti; hlt; cli" : : : "memory");
	check_eq("STI HLT with one pending: one interrupt, and it goes on", irq_count, 1);
	trap_hook = NULL;
}

static void alignment(void)
{
	extern const u8 a8[], a16[], a_lock[];
	struct regs r = user_regs(a8);
	write_cr0(read_cr0() | 0x40000);
	r.flags = 2 | FL_AC;
	r.bx = (uptr)buf + 4;
	go(&r);
	check_trap("8 bytes at 4: #AC(0)", AC, 0);
	r.bx = (uptr)buf + 8;
	go(&r);
	check_trap("8 bytes at 8", DONE, 0);
	r.ip = (uptr)a16;
	r.bx = (uptr)buf + 8;
	go(&r);
	check_trap("movaps at 8: #GP(0), not #AC", GP, 0);
	r.ip = (uptr)a_lock;
	r.bx = (uptr)buf + 1;
	go(&r);
	check_trap("lock add misaligned: #AC(0)", AC, 0);
	write_cr0(read_cr0() & ~0x40000ul);
	go(&r);
	check_trap("lock add misaligned without AM", DONE, 0);
	if (has(1, 2, 13)) {
		TRY(__asm__ volatile("cmpxchg16b (%0)" : : "r"(buf + 8) : "rax", "rdx", "memory", "cc"));
		check_trap("cmpxchg16b misaligned: #GP(0)", GP, 0);
	}
}
__asm__(".text\n.globl a8,a16,a_lock\na8: mov (%rbx),%rax; int $0x80\na16: movaps (%rbx),%xmm0; int $0x80\na_lock: lock addl $1,(%rbx); int $0x80\n");

/* CVE-2018-8897 in 64-bit mode: the #DB of a watched MOV SS at CPL 3 comes when the gate, or SYSCALL, has
 * been entered: at CPL 0, on the stack that the handler has by then, before its first instruction. */
static volatile u32 n_seen;
static struct { u64 vec, ip, cs, sp, flags, dr6; } seen[8];
static bool on_seen(struct frame *f)
{
	if (n_seen < ARRAY_LEN(seen)) {
		seen[n_seen].vec = f->vec;
		seen[n_seen].ip = f->ip;
		seen[n_seen].cs = f->cs;
		seen[n_seen].sp = f->sp;
		seen[n_seen].flags = f->flags;
		seen[n_seen].dr6 = read_dr6() & 0x600f;
	}
	CLEAN();
	n_seen++;
	return f->vec != DONE;
}

extern const u8 stubs[], ss_int3[], ss_int1[], ss_syscall[], syscall_in[];
__asm__(".text\n.globl ss_int3,ss_int1,ss_syscall,syscall_in\nss_int3: mov (%rbx),%ss; int3; int $0x80\nss_int1: mov (%rbx),%ss; .byte 0xf1; int $0x80\n"
	"ss_syscall: mov (%rbx),%ss; syscall; int $0x81\nsyscall_in: int $0x80\n");

static void mov_ss_watched(void)
{
	struct regs r = user_regs(ss_int3);
	*(u16 *)(buf + 16) = UDATA;
	r.bx = (uptr)buf + 16;
	write_dr0((uptr)buf + 16);
	write_dr7(0x401 | 3 << 16 | 1 << 18);
	CLEAN();
	trap_hook = on_seen;
	n_seen = 0;
	r.flags = 2 | FL_IF | FL_CF;
	go(&r);
	check("watched MOV SS, INT3: #DB at the handler's first instruction", seen[0].vec == DB && seen[0].ip == (uptr)stubs + 16 * BP && seen[0].dr6 == 1);
	check("at CPL 0, on its stack", seen[0].cs == CODE && seen[0].sp == (uptr)trap_stack_end - 40);
	check_eq("with the handler's flags", seen[0].flags & (FL_IF | FL_CF | FL_RF), FL_CF);
	check("then the handler of INT3", n_seen == 3 && seen[1].vec == BP && seen[1].ip == (uptr)ss_int3 + 3 && seen[1].cs == UCODE && !seen[1].dr6);
	r.ip = (uptr)ss_int1;
	n_seen = 0;
	go(&r);
	check("watched MOV SS, INT1: one #DB", n_seen == 2 && seen[0].vec == DB && seen[0].ip == (uptr)ss_int1 + 3 && seen[0].cs == UCODE && seen[0].dr6 == 1);
	wrmsr(STAR, (u64)(UCODE32 & ~3u) << 48 | (u64)CODE << 32);
	wrmsr(LSTAR, (uptr)syscall_in);
	wrmsr(FMASK, FL_IF);
	r.ip = (uptr)ss_syscall;
	n_seen = 0;
	go(&r);
	check("watched MOV SS, SYSCALL: #DB at its first instruction", n_seen == 2 && seen[0].vec == DB && seen[0].ip == (uptr)syscall_in && seen[0].dr6 == 1);
	check("at CPL 0, still on the user's stack", seen[0].cs == CODE && seen[0].sp == (uptr)user_stack_end);
	trap_hook = NULL;
	write_dr7(0x400);
}

int main(void)
{
	doubles();
	breakpoints();
	mov_ss_watched();
	shadows();
	alignment();
	return 0;
}
