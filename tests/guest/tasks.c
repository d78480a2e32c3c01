/* Hardware task switches: JMP, CALL, IRET and task gates, between 16- and 32-bit TSSs; busy bits,
 * NT, back link, TS, LDT, CR3, T bit, errors. SDM vol. 3 ch. 7. A task ends by INT DONE, so trap
 * shows its registers; afterwards home() makes the guest's own TSS current again. */
#include "guest.h"

const char guest_name[] = "tasks";

enum { T = FREE, U = FREE + 1, GATE = FREE + 2, LDT_SEL = FREE + 3, MISC = FREE + 4, H = FREE + 5 };
struct tss16 { u16 link, sp0, ss0, sp1, ss1, sp2, ss2, ip, flags, ax, cx, dx, bx, sp, bp, si, di, es, cs, ss, ds, ldt; };
static struct tss32 t32;
static struct tss16 t16, u16t;
static u8 stack[1024];
static u8 access_of(unsigned n) { return (u8)(gdt[n] >> 40); }
static struct { u32 off; u16 s; } __attribute__((packed)) target;

extern const u8 task_done[], task_iret[], task_nop[];
__asm__(".text\n.globl task_done\ntask_done: int $0x80\ntask_iret: iret\nint $0x81\ntask_nop: nop\nint $0x80\n");

/* What DS etc. of the task were is in trap.f; the handler ran in the task. */
static void home(void)
{
	gdt[5] = desc((uptr)&tss, sizeof(tss) - 1, A_TSS32, 0);
	__asm__ volatile("ltr %w0; clts; lldt %w1" : : "r"(TSS_SEL), "r"(0));
	__asm__ volatile("push $2; popf");
}

static void fresh(void)
{
	t32 = (struct tss32){ .esp0 = (uptr)trap_stack_end, .ss0 = DATA, .eip = (uptr)task_done, .eflags = 2, .eax = 0x11111111, .ecx = 0x22222222,
			      .edx = 0x33333333, .ebx = 0x44444444, .esp = (uptr)stack + sizeof(stack), .ebp = 0x66666666, .esi = 0x77777777,
			      .edi = 0x88888888, .es = DATA, .cs = CODE, .ss = DATA, .ds = DATA, .fs = DATA, .gs = DATA, .iomap = 104 };
	gdt[T] = desc((uptr)&t32, 103, A_TSS32, 0);
	gdt[GATE] = gate(sel(T, 0), 0, A_TASK | A_DPL3, 0);
	memcpy((void *)0x10000, task_done, 2);
	t16 = (struct tss16){ .sp0 = 0xf000, .ss0 = DATA, .ip = 0, .flags = 2, .ax = 0x1111, .cx = 0x2222, .dx = 0x3333, .bx = 0x4444, .sp = 0x8000,
			      .bp = 0x6666, .si = 0x7777, .di = 0x8888, .es = UDATA, .cs = sel(MISC, 3), .ss = UDATA, .ds = UDATA };
	/* at CPL 3, so that its handlers find a stack below 64 KiB; the upper half of ESP is not defined */
	gdt[MISC] = desc(0x10000, 0xffff, A_XR | A_DPL3, F_B);
	gdt[U] = desc((uptr)&t16, 43, A_TSS16, 0);
	memset(&tss.t.eip, 0, 36);
	tss.t.link = 0;
	trap.vec = NONE;
}

static noinline int call_to(u32 s)
{
	target.s = (u16)s;
	target.off = 0xdddddddd;
	int v = TRY(__asm__ volatile("lcall *%0" : : "m"(target) : "memory"));
	return v;
}
static noinline int jump_to(u32 s)
{
	target.s = (u16)s;
	return TRY(__asm__ volatile("mov %%esp,%%ebx; ljmp *%0" : : "m"(target) : "memory", "ebx"));
}

static void switches(void)
{
	u32 tr;
	for (unsigned how = 0; how < 5; how++) {
		static const char *const names[] = { "jmp TSS", "call TSS", "jmp gate", "call gate", "int gate" };
		const char *n = names[how];
		fresh();
		if (how == 4) {
			idt[0x50] = gate(sel(T, 0), 0, A_TASK, 0);
			TRY(__asm__ volatile("int $0x50"));
		} else if (how & 1) {
			call_to(how == 1 ? sel(T, 0) : sel(GATE, 0));
		} else {
			jump_to(how == 0 ? sel(T, 0) : sel(GATE, 0));
		}
		bool nested = how == 1 || how >= 3;
		__asm__ volatile("str %0" : "=r"(tr));
		check(fmt("%s: the task runs with its registers", n), trap.vec == DONE && trap.f.ax == 0x11111111 && trap.f.cx == 0x22222222 &&
		      trap.f.dx == 0x33333333 && trap.f.bx == 0x44444444 && trap.f.bp == 0x66666666 && trap.f.si == 0x77777777 && trap.f.di == 0x88888888 &&
		      trap.f.sp == (uptr)stack + sizeof(stack));
		check_eq(fmt("%s: TR", n), (u16)tr, sel(T, 0));
		check_eq(fmt("%s: new TSS busy", n), access_of(T), A_TSS32 | 2);
		check_eq(fmt("%s: old TSS busy only when nested", n), access_of(5), A_TSS32 | (nested ? 2 : 0));
		check_eq(fmt("%s: NT", n), trap.f.flags & FL_NT, nested ? FL_NT : 0);
		check_eq(fmt("%s: back link", n), (u16)t32.link, nested ? TSS_SEL : 0);
		check(fmt("%s: CR0.TS", n), read_cr0() & 8);
		check(fmt("%s: old state saved: ESP, CS, SS", n), tss.t.esp > 0x100000 && (u16)tss.t.cs == CODE && (u16)tss.t.ss == DATA && (u16)tss.t.ds == DATA);
		check(fmt("%s: old EFLAGS saved without NT", n), (tss.t.eflags & 2) && !(tss.t.eflags & FL_NT));
		check(fmt("%s: old EIP saved is after the instruction", n), tss.t.eip > 0x100000 && *(u8 *)tss.t.eip != 0xff && *(u8 *)tss.t.eip != 0xcd);
		home();
	}
	/* There and back. */
	volatile u32 before = 0, after = 0;
	fresh();
	t32.eip = (uptr)task_iret;
	target.s = sel(T, 0);
	TRY(__asm__ volatile("mov %%esp,%0; mov $0x1234567,%%esi; stc; lcall *%2; mov %%esp,%1; setc %%al; cmp $0x1234567,%%esi; sete %%ah; mov %%eax,%%ecx"
		: "=m"(before), "=m"(after) : "m"(target) : "eax", "esi", "ecx", "memory"));
	check("call and iret: back with ESP", trap.vec == NONE && before == after);
	__asm__ volatile("str %0" : "=r"(tr));
	check_eq("iret: TR is the old task", (u16)tr, TSS_SEL);
	check("iret: busy bits", access_of(T) == A_TSS32 && access_of(5) == (A_TSS32 | 2));
	check("iret: saved the task's EIP after it, NT clear", t32.eip == (uptr)task_iret + 1 && !(t32.eflags & FL_NT));
	check_eq("NT of the caller", get_flags() & FL_NT, 0);
	call_to(sel(T, 0));
	check_eq("a second call goes on after the iret", trap.vec, 0x81);
	home();
	/* 16-bit */
	fresh();
	call_to(sel(U, 0));
	check("to a 16-bit TSS: registers", trap.vec == DONE && (u16)trap.f.ax == 0x1111 && (u16)trap.f.cx == 0x2222 && (u16)trap.f.di == 0x8888 &&
	      trap.f.cs == sel(MISC, 3) && trap.f.ip == 2 && trap.at == 0xf000 - 20);
	check("to a 16-bit TSS: busy, link, NT", access_of(U) == (A_TSS16 | 2) && t16.link == TSS_SEL && (trap.f.flags & FL_NT));
	check("to a 16-bit TSS: FS and GS are null", trap.f.fs == 0 && trap.f.gs == 0);
	home();
	/* 16-bit to 32-bit: words saved. */
	fresh();
	u16t = t16;
	gdt[U] = desc((uptr)&u16t, 43, A_TSS16, 0);
	__asm__ volatile("ltr %w0" : : "r"(sel(U, 0)));
	target.s = sel(T, 0);
	u16t.ax = 0;
	TRY(__asm__ volatile("mov $0xabcd9876,%%eax; mov $0xaaaa5555,%%edi; lcall *%0" : : "m"(target) : "eax", "edi", "memory"));
	check("from a 16-bit TSS: words saved", trap.vec == DONE && u16t.ax == 0x9876 && u16t.di == 0x5555 && u16t.cs == CODE && u16t.ds == DATA);
	check("from a 16-bit TSS: link", (u16)t32.link == sel(U, 0));
	home();
	/* To CPL 3 and to V86 mode. */
	fresh();
	t32.cs = UCODE;
	t32.ss = t32.ds = t32.es = UDATA;
	t32.esp = (uptr)user_stack_end;
	t32.fs = t32.gs = 0;
	t32.eflags = 2 | FL_IOPL | FL_IF;
	jump_to(sel(T, 0));
	check("to a task at CPL 3", trap.vec == DONE && trap.f.cs == UCODE && trap.f.ss == UDATA && (trap.f.flags & (FL_IOPL | FL_IF)) == (FL_IOPL | FL_IF));
	check("its interrupts take the stack of its own TSS", trap.at == (uptr)trap_stack_end - 20);
	home();
	fresh();
	*(u8 *)0x18000 = 0xf4;
	t32.eflags = 2 | FL_VM;
	t32.cs = 0x1800; t32.eip = 0; t32.ss = 0x4000; t32.esp = 0x8000; t32.ds = 0x1234; t32.es = 0x2345; t32.fs = 0x3456; t32.gs = 0x4567;
	jump_to(sel(T, 0));
	check("to a V86 task", trap.vec == GP && (trap.f.flags & FL_VM) && trap.f.cs == 0x1800 && trap.f.vds == 0x1234 && trap.f.vgs == 0x4567);
	home();
	/* LDT */
	static u64 ldt[4];
	fresh();
	ldt[1] = desc(0, 0xfffff, A_RW, F_G | F_B);
	gdt[LDT_SEL] = desc((uptr)ldt, sizeof(ldt) - 1, A_LDT, 0);
	t32.ldt = sel(LDT_SEL, 0);
	t32.fs = sel(1, 4);
	jump_to(sel(T, 0));
	check("LDT of the task, a segment out of it", trap.vec == DONE && (u16)trap.f.fs == sel(1, 4) && ((u8 *)&ldt[1])[5] == (A_RW | 1));
	__asm__ volatile("sldt %0" : "=r"(tr));
	check_eq("LDTR", (u16)tr, sel(LDT_SEL, 0));
	home();
	/* T bit */
	fresh();
	t32.trace = 1;
	t32.eip = (uptr)task_nop;
	write_dr6(0xffff0ff0);
	jump_to(sel(T, 0));
	check("T bit: #DB before the first instruction, DR6.BT", trap.vec == DB && trap.f.ip == (uptr)task_nop && (read_dr6() & 0x8000));
	write_dr6(0xffff0ff0);
	home();
	/* TF in the new EFLAGS: after its first instruction. */
	fresh();
	t32.eflags = 2 | FL_TF;
	t32.eip = (uptr)task_nop;
	jump_to(sel(T, 0));
	check("TF of the task: #DB after its first instruction", trap.vec == DB && trap.f.ip == (uptr)task_nop + 1 && (read_dr6() & 0x4000));
	write_dr6(0xffff0ff0);
	home();
	/* DR7's local bits go. */
	fresh();
	write_dr7(0x700 | 0x3);
	jump_to(sel(T, 0));
	check_eq("DR7: L0 cleared, G0 kept", read_dr7() & 3, 2);
	write_dr7(0x400);
	home();
	/* Error code on the task's stack, for a fault through a task gate. */
	fresh();
	idt[GP] = gate(sel(T, 0), 0, A_TASK, 0);
	TRY(__asm__ volatile("mov $0xff8,%eax; mov %ax,%fs"));
	check("fault through a task gate: error code on the new stack", trap.vec == DONE && trap.f.sp == (uptr)stack + sizeof(stack) - 4 && *(u32 *)trap.f.sp == 0xff8);
	check("saved EFLAGS have RF", tss.t.eflags & FL_RF);
	set_idt(GP, A_INT32);
	home();
	/* CR3, with paging: the same map by another directory. */
	static u32 dirs[2][1024] __attribute__((aligned(4096)));
	for (unsigned k = 0; k < 1024; k++)
		dirs[0][k] = dirs[1][k] = k << 22 | 0x87;
	fresh();
	write_cr4(read_cr4() | 0x10);
	write_cr3((uptr)dirs[0]);
	t32.cr3 = (uptr)dirs[1];
	write_cr0(read_cr0() | 0x80000000);
	call_to(sel(T, 0));
	check_eq("CR3 of the task", read_cr3(), (uptr)dirs[1]);
	check_eq("CR3 is not saved into the old TSS", tss.t.cr3, 0);
	write_cr0(read_cr0() & ~0x80000000ul);
	home();
}

/* ---- errors: before the switch the old task sees them, after it the new one ------------------------ */

/* A fault in the new task may find no usable stack, so each handler is a task: its link says which
 * task faulted, its stack holds the error code. */
static struct tss32 handler[4];
static u8 handler_stack[512];
extern const u8 handle_ts[], handle_np[], handle_ss[], handle_gp[];
__asm__(".text\n.globl handle_ts,handle_np,handle_ss,handle_gp\n"
	"handle_ts: movl $10,trap; jmp 1f\nhandle_np: movl $11,trap; jmp 1f\nhandle_ss: movl $12,trap; jmp 1f\nhandle_gp: movl $13,trap\n"
	"1: popl trap+4; jmp catch_return\n");

static void by_tasks(bool on)
{
	static const u8 *const entry[4] = { handle_ts, handle_np, handle_ss, handle_gp };
	for (unsigned k = 0; k < 4; k++) {
		handler[k] = t32;
		handler[k].cs = CODE;
		handler[k].ss = handler[k].ds = handler[k].es = handler[k].fs = handler[k].gs = DATA;
		handler[k].ldt = handler[k].link = handler[k].trace = 0;
		handler[k].eflags = 2;
		handler[k].eip = (uptr)entry[k];
		handler[k].esp = (uptr)handler_stack + sizeof(handler_stack);
		gdt[H + k] = desc((uptr)&handler[k], 103, A_TSS32, 0);
		if (on)
			idt[TS + k] = gate(sel(H + k, 0), 0, A_TASK, 0);
		else
			set_idt(TS + k, A_INT32);
	}
}

static void errors(void)
{
#define CASE(name, setup, how, vector, ec, in_new) do { \
		fresh(); \
		by_tasks(true); \
		setup; \
		how; \
		home(); \
		check_trap(name, vector, ec); \
		check_eq(name ": in which task", (u16)handler[vector - TS].link, (in_new) ? sel(T, 0) : TSS_SEL); \
		by_tasks(false); \
	} while (0)
	CASE("TSS not present", gdt[T] &= ~(0x80ull << 40), jump_to(sel(T, 0)), NP, sel(T, 0), false);
	CASE("TSS busy", gdt[T] |= 2ull << 40, jump_to(sel(T, 0)), GP, sel(T, 0), false);
	CASE("call of a busy TSS", gdt[T] |= 2ull << 40, call_to(sel(T, 0)), GP, sel(T, 0), false);
	CASE("TSS limit 102", gdt[T] = desc((uptr)&t32, 102, A_TSS32, 0), jump_to(sel(T, 0)), TS, sel(T, 0), false);
	CASE("gate not present", gdt[GATE] &= ~(0x80ull << 40), jump_to(sel(GATE, 0)), NP, sel(GATE, 0), false);
	CASE("gate to an LDT selector", gdt[GATE] = gate(sel(1, 4), 0, A_TASK, 0), jump_to(sel(GATE, 0)), GP, sel(1, 4), false);
	CASE("gate to code", gdt[GATE] = gate(CODE, 0, A_TASK, 0), jump_to(sel(GATE, 0)), GP, CODE, false);
	CASE("TSS RPL above DPL", , jump_to(sel(T, 1)), GP, sel(T, 0), false);
	CASE("task's CS null", t32.cs = 0, jump_to(sel(T, 0)), TS, 0, true);
	CASE("task's CS data", t32.cs = DATA, jump_to(sel(T, 0)), TS, DATA, true);
	CASE("task's CS RPL wrong", t32.cs = CODE | 3, jump_to(sel(T, 0)), TS, CODE, true);
	CASE("task's CS not present", (t32.cs = sel(MISC, 0), gdt[MISC] = desc(0, 0xfffff, A_XR & 0x7f, F_G | F_B)), jump_to(sel(T, 0)), NP, sel(MISC, 0), true);
	CASE("task's SS null", t32.ss = 0, jump_to(sel(T, 0)), TS, 0, true);
	CASE("task's SS code", t32.ss = CODE, jump_to(sel(T, 0)), TS, CODE, true);
	CASE("task's SS of DPL 3", t32.ss = UDATA & ~3, jump_to(sel(T, 0)), TS, UDATA & ~3, true);
	CASE("task's SS not present", (t32.ss = sel(MISC, 0), gdt[MISC] = desc(0, 0xfffff, A_RW & 0x7f, F_G | F_B)), jump_to(sel(T, 0)), SS, sel(MISC, 0), true);
	CASE("task's DS beyond the GDT", t32.ds = sel(GDT_N, 0), jump_to(sel(T, 0)), TS, sel(GDT_N, 0), true);
	CASE("task's ES execute-only", (t32.es = sel(MISC, 0), gdt[MISC] = desc(0, 0xfffff, A_CODE, F_G | F_B)), jump_to(sel(T, 0)), TS, sel(MISC, 0), true);
	CASE("task's FS not present", (t32.fs = sel(MISC, 0), gdt[MISC] = desc(0, 0xfffff, A_RW & 0x7f, F_G | F_B)), jump_to(sel(T, 0)), NP, sel(MISC, 0), true);
	CASE("task's LDT is data", t32.ldt = DATA, jump_to(sel(T, 0)), TS, DATA, true);
	CASE("task's LDT not present", (t32.ldt = sel(MISC, 0), gdt[MISC] = desc(0, 63, A_LDT & 0x7f, 0)), jump_to(sel(T, 0)), TS, sel(MISC, 0), true);
	CASE("task's LDT in the LDT", t32.ldt = sel(2, 4), jump_to(sel(T, 0)), TS, sel(2, 4), true);
	CASE("task's EIP beyond its CS", (t32.cs = sel(MISC, 0), t32.eip = 0x1000, gdt[MISC] = desc(0, 0xfff, A_XR, F_B)), jump_to(sel(T, 0)), GP, 0, true);
	/* IRET with NT. */
	CASE("iret: link to a TSS that is not busy", (tss.t.link = sel(T, 0)), TRY(__asm__ volatile("pushl $0x4002; popfl; iret")), TS, sel(T, 0), false);
	CASE("iret: link null", (tss.t.link = 0), TRY(__asm__ volatile("pushl $0x4002; popfl; iret")), TS, 0, false);
	CASE("iret: link to an LDT selector", (tss.t.link = sel(1, 4)), TRY(__asm__ volatile("pushl $0x4002; popfl; iret")), TS, sel(1, 4), false);
	CASE("iret: link to busy but not present", (tss.t.link = sel(T, 0), gdt[T] = desc((uptr)&t32, 103, (A_TSS32 | 2) & 0x7f, 0)),
	     TRY(__asm__ volatile("pushl $0x4002; popfl; iret")), NP, sel(T, 0), false);
	/* From CPL 3. */
	extern const u8 user_task[];
	fresh();
	struct regs r = user_regs(user_task);
	target.s = sel(GATE, 3);
	r.bx = (uptr)&target;
	go(&r);
	check("CPL 3 through a task gate of DPL 3", trap.vec == DONE && trap.f.cs == CODE && (u16)tss.t.cs == UCODE && (u16)tss.t.ss == UDATA);
	home();
	fresh();
	gdt[GATE] = gate(sel(T, 0), 0, A_TASK, 0);
	go(&r);
	check_trap("CPL 3 through a task gate of DPL 0: #GP(gate)", GP, sel(GATE, 0));
	home();
	fresh();
	target.s = sel(T, 3);
	go(&r);
	check_trap("CPL 3 to a TSS of DPL 0: #GP(TSS)", GP, sel(T, 0));
	home();
	/* The descriptor of a TSS that faulted before the switch is untouched. */
	fresh();
	t32.cr3 = 0;
	gdt[T] = desc((uptr)&t32, 50, A_TSS32, 0);
	jump_to(sel(T, 0));
	check("a switch refused for its limit leaves both descriptors", access_of(T) == A_TSS32 && access_of(5) == (A_TSS32 | 2));
	home();
}
__asm__(".text\n.globl user_task\nuser_task: ljmp *(%ebx)\n");

int main(void)
{
	switches();
	errors();
	return 0;
}
