/* VT-x: the exits that vmx.c has not, so that together every reason that can be is seen, with what it tells: the rest of
 * the instructions, task switches, external interrupts, NMIs, INIT and SIPI, the virtual APIC's; and what ends the
 * activity states. Intel SDM vol. 3 25.1 to 25.4, 26.6, 26.7, 27.2, chapter 29.
 *
 * Never here: RSM and SMM's (there is no SMM), GETSEC (no SMX), XSAVES and XRSTORS (IA32_XSS has no bit). A second processor
 * sends what a guest at rest is to get. */
#include "lib/vmx.h"

const char guest_name[] = "vmx_exits";

/* ---- the second processor --------------------------------------------------------------------------------------- */

static volatile u32 ap_up, ap_send, ap_sent; /* ap_send: an ICR's low half, sent to processor 0 again and again */
void ap_entry(void)
{
	ap_up = 1;
	for (;;) {
		while (!ap_send)
			__asm__ volatile("pause");
		apic_write(0x310, 0);
		apic_write(0x300, ap_send);
		ap_sent++;
		for (u64 end = rdtsc() + 200000; rdtsc() < end;)
			__asm__ volatile("pause");
		if (!ap_send)
			ap_sent = 0;
	}
}

static volatile u32 host_nmis;
static bool on_event(struct frame *f)
{
	if (f->vec == NMI)
		host_nmis++;
	else if (f->vec >= 0x60 && f->vec < DONE)
		apic_write(0xb0, 0);
	else
		return false;
	return true;
}

/* Ends blocking by NMI, which an exit by one leaves. */
static void iret(void)
{
	__asm__ volatile("mov %%rsp,%%rax; push %0; push %%rax; pushf; push %1; lea 1f(%%rip),%%rax; push %%rax; iretq; 1:"
			 : : "i"(DATA), "i"(CODE) : "rax", "memory", "cc");
}

/* Runs the guest while the second processor sends to this one. */
static u32 run_and_send(u32 icr)
{
	ap_send = icr;
	u32 r = run();
	ap_send = 0;
	iret();
	while (ap_sent)
		__asm__ volatile("pause");
	iret();
	return r;
}

/* The guest's own IDT: g_handler for one vector. */
static u64 guest_idt[512] PAGE;
SNIPPET(g_handler, "nop");
static void guest_handles(unsigned vector)
{
	idt_set64(vector, CODE, at(g_handler), A_INT32, 0);
	memcpy(guest_idt, idt, sizeof(guest_idt));
	set_idt(vector, A_INT32);
	wr(G_IDTR, at(guest_idt));
}

/* ---- instructions ----------------------------------------------------------------------------------------------- */

SNIPPET(g_rdpmc, "xor %ecx,%ecx; 2: rdpmc");
SNIPPET(g_mwait, "lea scratch(%rip),%rax; xor %ecx,%ecx; xor %edx,%edx; monitor; xor %eax,%eax; 2: mwait");
SNIPPET(g_mwait_unarmed, "xor %eax,%eax; xor %ecx,%ecx; 2: mwait");
SNIPPET(g_vmlaunch, "vmlaunch");
SNIPPET(g_vmresume, "vmresume");
SNIPPET(g_vmptrld, "vmptrld 16(%rsp)");
SNIPPET(g_vmptrst, "vmptrst 16(%rsp)");
SNIPPET(g_vmxon, "vmxon 16(%rsp)");
SNIPPET(g_vmwrite, "vmwrite %rbx,%r9");
SNIPPET(g_invept, "invept 16(%rsp),%rcx");
SNIPPET(g_invvpid, "invvpid 16(%rsp),%rdx");
SNIPPET(g_invpcid, "invpcid 16(%rsp),%r10");
SNIPPET(g_xsetbv, "xor %ecx,%ecx; xor %edx,%edx; mov $1,%eax; 2: xsetbv");
SNIPPET(g_rdseed, "rdseed %r11d");
SNIPPET(g_pause_loop, "mov $20000,%ecx; 2: pause; dec %ecx; jnz 2b");

static void instructions(void)
{
	enum { SP_16 = 2 << 7 | SEG_SS << 15 | 1 << 22 | 4 << 23 }; /* 16(%rsp), as the instruction information has it */
	static const struct { const char *name; const u8 *code; u32 proc, proc2, reason, len, info; u64 qual; } t[] = {
		{ "RDPMC", g_rdpmc, X_RDPMC, 0, R_RDPMC, 2, 0, 0 }, { "MWAIT", g_mwait, X_MWAIT, 0, R_MWAIT, 3, 0, 1 },
		{ "MWAIT, not armed", g_mwait_unarmed, X_MWAIT, 0, R_MWAIT, 3, 0, 0 },
		{ "VMCALL", g_nothing, 0, 0, R_VMCALL, 3, 0, 0 }, { "VMLAUNCH", g_vmlaunch, 0, 0, R_VMLAUNCH, 3, 0, 0 },
		{ "VMRESUME", g_vmresume, 0, 0, R_VMRESUME, 3, 0, 0 }, { "VMPTRLD", g_vmptrld, 0, 0, R_VMPTRLD, 5, SP_16, 16 },
		{ "VMPTRST", g_vmptrst, 0, 0, R_VMPTRST, 5, SP_16, 16 }, { "VMXON", g_vmxon, 0, 0, R_VMXON, 6, SP_16, 16 },
		{ "VMWRITE", g_vmwrite, 0, 0, R_VMWRITE, 4, 2 << 7 | 1 << 10 | 3 << 3 | 9u << 28, 0 },
		{ "INVEPT", g_invept, 0, 0, R_INVEPT, 7, SP_16 | 1 << 28, 16 }, { "INVVPID", g_invvpid, 0, 0, R_INVVPID, 7, SP_16 | 2 << 28, 16 },
		{ "INVPCID", g_invpcid, X_INVLPG, INVPCID, R_INVPCID, 8, SP_16 | 10u << 28, 16 }, { "XSETBV", g_xsetbv, 0, 0, R_XSETBV, 3, 0, 0 },
		{ "RDSEED", g_rdseed, 0, X_RDSEED, R_RDSEED, 4, 11 << 3 | 1 << 11, 0 },
	};
	for (unsigned k = 0; k < ARRAY_LEN(t); k++) {
		fresh(t[k].code);
		set_controls(0, t[k].proc, t[k].proc2);
		check_eq(fmt("%s exits", t[k].name), run(), t[k].reason);
		check_eq(fmt("%s: length", t[k].name), rd(INSN_LEN), t[k].len);
		check_eq(fmt("%s: qualification", t[k].name), rd(QUAL), t[k].qual);
		/* Whether VMREAD's and VMWRITE's of registers have an address size is nowhere said. */
		u32 known = t[k].reason == R_VMWRITE ? ~0x380u : ~0u;
		if (t[k].info)
			check_eq(fmt("%s: information", t[k].name), rd(INSN_INFO) & known, t[k].info & known);
	}
	fresh(g_pause_loop);
	set_controls(0, 0, PAUSE_LOOP);
	wr(PLE_GAP, 0xffffffff);
	wr(PLE_WINDOW, 1000);
	check_eq("a loop of PAUSE", run(), R_PAUSE);
	fresh(g_pause_loop);
	set_controls(0, 0, PAUSE_LOOP);
	wr(PLE_GAP, 0);
	wr(PLE_WINDOW, 1000);
	check_eq("... too far from each other to be one", run(), R_VMCALL);
}

/* ---- task switches ---------------------------------------------------------------------------------------------- */

#define TASK 0x50 /* FREE * 8 */
#define SNIPPET32(name, text) SNIPPET(name, ".code32\n" text "\n.code64\n")
SNIPPET32(g_task_jmp, "ljmp $0x50,$0");
SNIPPET32(g_task_call, "lcall $0x50,$0");
SNIPPET32(g_task_iret, "pushf; orl $0x4000,(%esp); popf; 2: iret");
SNIPPET32(g_task_int, "int $0x70");

static void task_switches(void)
{
	static const struct { const char *name; const u8 *code; u64 qual; u32 len, busy, vectoring; } t[] = {
		{ "CALL", g_task_call, TASK, 7, 0, 0 }, { "IRET", g_task_iret, TASK | 1ull << 30, 1, 2, 0 },
		{ "JMP", g_task_jmp, TASK | 2ull << 30, 7, 0, 0 }, { "INT n", g_task_int, TASK | 3ull << 30, 2, 0, 0x80000470 },
	};
	static u64 idt32[256] PAGE;
	u32 was = tss.r0; /* the link to the task before is there */
	idt32[0x70] = gate(TASK, 0, A_P | A_TASK, 0);
	for (unsigned k = 0; k < ARRAY_LEN(t); k++) {
		gdt[FREE] = desc((u32)at(&tss), 0x67, A_TSS32 | t[k].busy, 0);
		tss.r0 = TASK;
		fresh(t[k].code);
		pae_guest();
		wr(G_IDTR, at(idt32));
		wr(G_IDTR_LIMIT, 0x7ff);
		check_eq(fmt("task switch by %s exits", t[k].name), run(), R_TASK);
		check_eq(fmt("task switch by %s: qualification", t[k].name), rd(QUAL), t[k].qual);
		check_eq(fmt("task switch by %s: length", t[k].name), rd(INSN_LEN), t[k].len);
		check_eq(fmt("task switch by %s: IDT-vectoring information", t[k].name), rd(IDT_INFO), t[k].vectoring);
	}
	tss.r0 = was;
	gdt[FREE] = 0;
}

/* ---- interrupts, NMI, INIT, SIPI ---------------------------------------------------------------------------------- */

SNIPPET(g_sti, "sti; nop; nop");
static void self_ipi(u32 vector) { apic_write(0x310, 0), apic_write(0x300, 0x40000 | vector); }
static void take_interrupts(void) { __asm__ volatile("sti; nop; cli" : : : "memory"); }

static void external(void)
{
	enum { VECTOR = 0x60 };
	fresh(g_nothing);
	set_controls(PIN_EXT, 0, 0);
	self_ipi(VECTOR);
	check_eq("external interrupt exits, whatever IF is", run(), R_INTR);
	check_eq("... acknowledged: information", rd(INTR_INFO), 0x80000000 | VECTOR);
	check_eq("... before the first instruction", rd(G_RIP), at(g_nothing));
	apic_write(0xb0, 0);
	fresh(g_nothing);
	set_controls(PIN_EXT, 0, 0);
	wr(EXIT, must(0x48f, HOST64));
	wr(G_ACTIVITY, 1);
	self_ipi(VECTOR);
	check_eq("external interrupt of a halted guest", run(), R_INTR);
	check_eq("... not acknowledged: information", rd(INTR_INFO) >> 31, 0);
	check_eq("... the activity state", rd(G_ACTIVITY), 1);
	check_eq("... it is pending still", apic_read(0x200 + VECTOR / 32 * 16) >> VECTOR % 32 & 1, 1);
	take_interrupts();
	fresh(g_sti);
	guest_handles(VECTOR);
	self_ipi(VECTOR);
	check_eq("without the control", run(), R_VMCALL);
	check_eq("... it is the guest's", rd(G_RIP), at(g_handler) + 1);
	apic_write(0xb0, 0);
}

static void nmi_and_control(void)
{
	enum { SHUT_DOWN = 2, WAITING = 3, NMI_ICR = 0x4400, INIT_ICR = 0x4500, SIPI_ICR = 0x4600 };
	for (unsigned activity = 0; activity <= SHUT_DOWN; activity++) {
		fresh(g_pause_loop);
		set_controls(PIN_NMI, 0, 0);
		wr(G_ACTIVITY, activity);
		u32 r = run_and_send(NMI_ICR);
		/* Where the sender is too slow the running guest comes to its end. */
		if (activity || r != R_VMCALL) {
			check_eq(fmt("an NMI exits in activity state %u", activity), r, R_EXC);
			check_eq("... information", rd(INTR_INFO), 0x80000202);
			check_eq("... the activity state is saved", rd(G_ACTIVITY), activity);
		}
		if (!activity)
			continue;
		fresh(g_nothing);
		guest_handles(NMI);
		wr(G_ACTIVITY, activity);
		check_eq(fmt("without the control it ends activity state %u", activity), run_and_send(NMI_ICR), R_VMCALL);
		check_eq("... in the guest's handler", rd(G_RIP), at(g_handler) + 1);
		check_eq("... active", rd(G_ACTIVITY), 0);
		check_eq("... NMIs are blocked", rd(G_BLOCK), 8);
	}
	fresh(g_nothing);
	apic_write(0x310, 0);
	apic_write(0x300, INIT_ICR); /* blocked in root operation */
	check_eq("INIT exits", run(), R_INIT);
	check_eq("... once", (wr(G_RIP, at(g_nothing)), run()), R_VMCALL);
	/* What does not end wait-for-SIPI: windows, timer, trap flag. */
	fresh(g_nothing);
	set_controls(PIN_NMI | PIN_VNMI | PIN_TIMER, NMI_WINDOW | INTR_WINDOW | MTF, 0);
	wr(TIMER, 0);
	wr(G_RFLAGS, 0x202);
	wr(G_ACTIVITY, WAITING);
	check_eq("SIPI exits", run_and_send(SIPI_ICR | 0x9a), R_SIPI);
	check_eq("... its vector", rd(QUAL), 0x9a);
	check_eq("... the activity state", rd(G_ACTIVITY), WAITING);
	fresh(g_nothing);
	set_controls(PIN_TIMER, 0, 0);
	wr(TIMER, 100);
	wr(G_ACTIVITY, SHUT_DOWN);
	check_eq("the preemption timer in shutdown", run(), R_TIMER);
	fresh(g_nothing);
	set_controls(PIN_NMI | PIN_VNMI, NMI_WINDOW, 0);
	wr(G_ACTIVITY, SHUT_DOWN);
	check_eq("an NMI window in shutdown", run(), R_NMI_WINDOW);
	check_eq("... the activity state", rd(G_ACTIVITY), SHUT_DOWN);
}

/* ---- the virtual APIC ---------------------------------------------------------------------------------------------- */

SNIPPET(g_tpr, "mov $2,%eax; mov %rax,%cr8; .globl g_tpr_end; g_tpr_end: nop");
SNIPPET(g_eoi, "mov $0x80b,%ecx; xor %eax,%eax; xor %edx,%edx; wrmsr; .globl g_eoi_end; g_eoi_end: nop");
SNIPPET(g_self, "mov $0x83f,%ecx; mov $5,%eax; xor %edx,%edx; wrmsr; .globl g_self_end; g_self_end: nop");
extern u8 g_tpr_end[], g_eoi_end[], g_self_end[];

static void virtual_apic(void)
{
	u32 *page = (u32 *)other, *posted = (u32 *)shadow;
	memset(other, 0, sizeof(other));
	fresh(g_tpr);
	set_controls(0, TPR_SHADOW, 0);
	wr(VAPIC, at(other));
	page[0x80 / 4] = 0x50;
	wr(TPR_THRESHOLD, 3);
	check_eq("TPR below its threshold", run(), R_TPR);
	check_eq("... after the instruction", rd(G_RIP), at(g_tpr_end));
	check_eq("... the virtual TPR", page[0x80 / 4], 0x20);
	wr(TPR_THRESHOLD, 2);
	check_eq("TPR at its threshold", run_at(g_tpr), R_VMCALL);
	wr(TPR_THRESHOLD, 0);

	fresh(g_eoi);
	set_controls(PIN_EXT, TPR_SHADOW | MSR_BITMAPS, VIRTUAL_INTR | X2APIC);
	wr(MSR_BITMAP, at(zeros));
	page[0x80 / 4] = 0;
	page[(0x100 + 0x55 / 32 * 16) / 4] = 1u << 0x55 % 32;
	wr(INTR_STATUS, 0x55 << 8);
	wr(EOI_EXIT + 2, 1ull << 0x55 % 64);
	check_eq("virtualized EOI exits", run(), R_EOI);
	check_eq("... its vector", rd(QUAL), 0x55);
	check_eq("... after the instruction", rd(G_RIP), at(g_eoi_end));
	check_eq("... nothing is in service", rd(INTR_STATUS) | page[(0x100 + 0x55 / 32 * 16) / 4], 0);
	wr(EOI_EXIT + 2, 0);
	page[(0x100 + 0x55 / 32 * 16) / 4] = 1u << 0x55 % 32;
	wr(INTR_STATUS, 0x55 << 8);
	check_eq("... by its bitmap alone", run_at(g_eoi), R_VMCALL);
	check_eq("a self-IPI of a vector that there is not", run_at(g_self), R_APIC_WRITE);
	check_eq("... its register", rd(QUAL), 0x3f0);
	check_eq("... after the instruction", rd(G_RIP), at(g_self_end));

	/* A posted interrupt comes without an exit. */
	enum { NOTIFY = 0x61, VECTOR = 0x70 };
	memset(shadow, 0, sizeof(shadow));
	posted[VECTOR / 32] = 1u << VECTOR % 32;
	posted[8] = 1;
	fresh(g_sti);
	guest_handles(VECTOR);
	set_controls(PIN_EXT | PIN_POSTED, TPR_SHADOW, VIRTUAL_INTR);
	wr(POSTED_VECTOR, NOTIFY);
	wr(POSTED_DESC, at(shadow));
	wr(INTR_STATUS, 0);
	self_ipi(NOTIFY);
	check_eq("a posted interrupt", run(), R_VMCALL);
	check_eq("... is in its handler", rd(G_RIP), at(g_handler) + 1);
	check_eq("... is in service", rd(INTR_STATUS), VECTOR << 8);
	check_eq("... and no longer in the descriptor", posted[VECTOR / 32] | posted[8], 0);
}

/* ---- what comes with an entry ---------------------------------------------------------------------------------------- */

SNIPPET(g_nops, "nop; nop");
static void entries(void)
{
	enum { VECTOR = 0x50, B0 = 0x1001 };
	fresh(g_nops);
	wr(EXC_BITMAP, 1 << DB);
	wr(G_DEBUG, B0);
	check_eq("a pending debug exception", run(), R_EXC);
	check_eq("... is #DB", rd(INTR_INFO), 0x80000301);
	check_eq("... by breakpoint 0", rd(QUAL), 1);
	check_eq("... before the first instruction", rd(G_RIP), at(g_nops));
	fresh(g_nops);
	wr(INJECT, 0x80000700);
	wr(G_DEBUG, B0);
	wr(G_ACTIVITY, 1);
	check_eq("the trap flag's exit injected", run(), R_MTF);
	check_eq("... comes first", rd(G_RIP), at(g_nops));
	check_eq("... the debug exception still pends", rd(G_DEBUG), B0);
	check_eq("... nothing has ended HLT", rd(G_ACTIVITY), 1);
	static const struct { const char *name; u32 info, block; bool kept; } t[] = {
		{ "an interrupt", 0x80000050, 0, false }, { "INT n", 0x80000450, 0, false }, { "INT n behind MOV SS", 0x80000450, 2, true },
		{ "INT1 behind MOV SS", 0x80000550, 2, false }, { "INT3 behind MOV SS", 0x80000603, 2, true },
	};
	for (unsigned k = 0; k < ARRAY_LEN(t); k++) {
		fresh(g_nops);
		guest_handles(t[k].info & 0xff);
		wr(EXC_BITMAP, 1 << DB);
		wr(G_RFLAGS, 0x202);
		wr(G_BLOCK, t[k].block);
		wr(G_DEBUG, B0);
		wr(INJECT, t[k].info);
		wr(INJECT_LEN, 1);
		check_eq(fmt("%s injected, a debug exception pends", t[k].name), run(), t[k].kept ? R_EXC : R_VMCALL);
		check_eq("... the handler is entered", rd(G_RIP), at(g_handler) + !t[k].kept);
		check_eq("... none pends any more", rd(G_DEBUG), 0);
	}
	if (!has(7, 2, 31))
		return;
	fresh(g_nops);
	wr(ENTRY, must(0x490, IA32E | LOAD_PKRS));
	wr(EXIT, must(0x48f, HOST64 | EXIT_LOAD_PKRS));
	wr(G_PKRS, 0x1234);
	wr(H_PKRS, 0x5678);
	wr(EXC_BITMAP, 0);
	run();
	check_eq("IA32_PKRS is loaded and saved", rd(G_PKRS), 0x1234);
	check_eq("... and the host's loaded", rdmsr(0x6e1), 0x5678);
	wrmsr(0x6e1, 0);
}

int main(void)
{
	if (!vmx_there()) {
		skip("vmx_exits", "this processor has no VT-x");
		return 0;
	}
	trap_hook = on_event;
	start_ap(1);
	for (u64 end = rdtsc() + 20000000000; !ap_up && rdtsc() < end;)
		__asm__ volatile("pause");
	if (!ap_up)
		die("the second processor does not start");
	vmx_on();
	ept_identity(pml4);
	write_cr4(read_cr4() | 1ul << 18); /* OSXSAVE: XSETBV */
	instructions();
	task_switches();
	external();
	nmi_and_control();
	virtual_apic();
	entries();
	return 0;
}
