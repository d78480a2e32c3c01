/* VT-x: what outlives an entry or an exit, and what does not: blocking by NMI and NMIs that came meanwhile, debug
 * exceptions that are put off, the host's own. Intel SDM vol. 3 6.7.1, 25.3, 26.4, 26.7, 26.8, 27.2.2, 27.3.4, 27.5.5. */
#include "lib/vmx.h"

const char guest_name[] = "vmx_held";

enum { MOV_SS = 2, NMIS = 8, B0 = 1, ENABLED = 0x1000, BS = 0x4000 };
static volatile u32 host_nmis, host_steps;
static bool on_event(struct frame *f)
{
	if (f->vec != NMI && f->vec != DB)
		return false;
	++*(f->vec == NMI ? &host_nmis : &host_steps);
	if (f->vec == DB)
		f->flags &= ~(u64)FL_TF;
	return true;
}
static void send_nmi(void)
{
	apic_write(0x310, 0);
	apic_write(0x300, 0x4400);
	__asm__ volatile("nop; nop" : : : "memory");
}
/* Ends blocking by NMI. */
static void iret(void)
{
	__asm__ volatile("mov %%rsp,%%rax; push %0; push %%rax; pushf; push %1; lea 1f(%%rip),%%rax; push %%rax; iretq; 1: nop"
			 : : "i"(DATA), "i"(CODE) : "rax", "memory", "cc");
}
static u32 nmis(void) { u32 n = host_nmis; host_nmis = 0; return n; }

#define IRET_TO(label) "mov %rsp,%rax; push $0x10; push %rax; pushf; push $8; lea " label "(%rip),%rax; push %rax; iretq\n"
SNIPPET(g_send, "mov $0xfee00310,%eax; movl $0,(%rax); movl $0x4400,-16(%rax); jmp 4f; 4: nop");
SNIPPET(g_iret_send, IRET_TO("3f") "3: mov $0xfee00310,%eax; movl $0,(%rax); movl $0x4400,-16(%rax); jmp 4f; 4: nop");
SNIPPET(g_bad_iret, "mov $0x700000001000,%rsp; 2: iretq");
SNIPPET(g_nops, "nop; nop");
SNIPPET(g_handler, "nop");
static u64 guest_idt[512] PAGE;
static void guest_handles(unsigned vector)
{
	idt_set64(vector, CODE, at(g_handler), A_INT32, 0);
	memcpy(guest_idt, idt, sizeof(guest_idt));
	set_idt(vector, A_INT32);
	wr(G_IDTR, at(guest_idt));
}

/* ---- NMIs ---------------------------------------------------------------------------------------------------- */

/* The host is in the state that an exit by an NMI leaves. */
static void exit_by_nmi(void)
{
	fresh(g_send);
	set_controls(PIN_NMI, 0, 0);
	check_eq("an NMI of the guest's own exits", run(), R_EXC);
}

static void host_blocking(void)
{
	exit_by_nmi();
	send_nmi();
	send_nmi();
	check_eq("after it the host gets none", nmis(), 0);
	fresh(g_nothing);
	set_controls(PIN_NMI, 0, 0);
	check_eq("an entry ends blocking: one that waited exits", run(), R_EXC);
	check_eq("... is an NMI", rd(INTR_INFO), 0x80000202);
	check_eq("... before an instruction", rd(G_RIP), at(g_nothing));
	check_eq("... there is no second one", run(), R_VMCALL);
	send_nmi();
	check_eq("after another exit the host gets its NMIs", nmis(), 1);
	iret();
	exit_by_nmi();
	send_nmi();
	iret();
	check_eq("the host's IRET ends blocking", nmis(), 1);
	iret();
}

static void guest_blocking(void)
{
	fresh(g_iret_send);
	guest_handles(NMI);
	wr(G_BLOCK, NMIS);
	check_eq("IRET of a guest whose NMIs do not exit", run(), R_VMCALL);
	check_eq("... lets the next one in", rd(G_RIP), at(g_handler) + 1);
	check_eq("... which blocks others", rd(G_BLOCK), NMIS);
	iret();
	fresh(g_iret_send);
	set_controls(PIN_NMI, 0, 0);
	wr(G_BLOCK, NMIS);
	check_eq("IRET where they exit, without virtual NMIs: none comes", run(), R_VMCALL);
	check_eq("... it has not ended blocking", rd(G_BLOCK), NMIS);
	check_eq("... nor has the exit", nmis(), 0);
	iret();
	check_eq("... it waits for the host", nmis(), 1);
	for (unsigned blocked = 0; blocked < 2; blocked++) {
		fresh(g_bad_iret);
		wr(EXC_BITMAP, 1 << PF);
		wr(G_BLOCK, blocked ? NMIS : 0);
		check_eq("an IRET that faults", run(), R_EXC);
		check_eq(fmt("... blocking by NMI before: %u, is told", blocked), rd(INTR_INFO), 0x80000b0e | blocked << 12);
		check_eq("... has ended", rd(G_BLOCK), 0);
	}
	send_nmi();
	check_eq("... for the host, too", nmis(), 1);
}

/* ---- entries that fail late --------------------------------------------------------------------------------------- */

static u64 list[4] __attribute__((aligned(16)));
static void bad_list(u64 blocking)
{
	fresh(g_nothing);
	list[0] = 0x12345678;
	wr(ENTRY_LOAD, at(list));
	wr(ENTRY_LOAD_N, 1);
	wr(G_BLOCK, blocking);
	check_eq("an entry that fails at its MSRs", run(), R_BAD_MSR | FAILED);
	wr(ENTRY_LOAD_N, 0);
}

static void failures(void)
{
	bad_list(NMIS);
	send_nmi();
	check_eq("... leaves the host's NMIs open", nmis(), 1);
	exit_by_nmi();
	bad_list(0);
	send_nmi();
	check_eq("... or blocked", nmis(), 0);
	iret();
	check_eq("... until its IRET", nmis(), 1);
}

/* The LAPIC stays in x2APIC mode. */
static void x2apic(void)
{
	static const struct { u32 msr; bool good; } t[] = { { 0x808, false }, { 0x83f, false }, { 0xc0000082, true } };
	u64 star = rdmsr(0xc0000082);
	wrmsr(0x1b, rdmsr(0x1b) | 0xc00);
	for (unsigned k = 0; k < ARRAY_LEN(t); k++) {
		fresh(g_nothing);
		list[0] = 0xc0000082, list[1] = star;
		list[2] = t[k].msr, list[3] = t[k].good ? star : 0x20;
		wr(ENTRY_LOAD, at(list));
		wr(ENTRY_LOAD_N, 2);
		check_eq(fmt("MSR %x in x2APIC mode, loaded by an entry", t[k].msr), run(), t[k].good ? R_VMCALL : R_BAD_MSR | FAILED);
		check_eq("... which one", rd(QUAL), t[k].good ? 0 : 2);
	}
	wr(ENTRY_LOAD_N, 0);
	check_eq("... nothing was written", rdmsr(0x808), 0);
}

/* ---- debug exceptions ------------------------------------------------------------------------------------------------ */

u16 ss_at = DATA;
SNIPPET(g_ss_cpuid, "mov ss_at(%rip),%ss; cpuid; nop");
SNIPPET(g_ss_ud2, "mov ss_at(%rip),%ss; .globl g_ss_ud2_at; g_ss_ud2_at: ud2; nop");
SNIPPET(g_watched, "mov ss_at(%rip),%eax; nop");
SNIPPET(g_sti, "sti; .globl g_sti_end; g_sti_end: nop");
extern u8 g_ss_ud2_at[], g_sti_end[];

/* A guest with breakpoint 0 on reads of ss_at. */
static void watched(const void *code, u64 flags)
{
	fresh(code);
	wr(ENTRY, must(0x490, IA32E | LOAD_DEBUG));
	write_dr0((uptr)&ss_at);
	wr(G_DR7, 0x401 | 3 << 16 | 1 << 18);
	wr(G_RFLAGS, 2 | flags);
}

static void mov_ss(void)
{
	for (unsigned tf = 0; tf < 2; tf++) {
		u64 pending = B0 | ENABLED | (tf ? BS : 0);
		watched(g_ss_cpuid, tf ? FL_TF : 0);
		check_eq(fmt("CPUID behind MOV SS, TF %u", tf), run(), R_CPUID);
		check_eq("... stands in its shadow", rd(G_BLOCK), MOV_SS);
		check_eq("... what MOV SS met is pending", rd(G_DEBUG), pending);
		wr(EXC_BITMAP, 1 << DB);
		wr(G_RIP, rd(G_RIP) + 2);
		wr(G_BLOCK, 0);
		check_eq("... and comes after it", run(), R_EXC);
		check_eq("... as one #DB", rd(INTR_INFO), 0x80000301);
		check_eq("... of these", rd(QUAL), pending & ~ENABLED);
		check_eq("... and is the host's then", rd(G_DEBUG), 0);
	}
	watched(g_ss_ud2, 0);
	wr(EXC_BITMAP, 1 << UD);
	check_eq("UD2 behind MOV SS", run(), R_EXC);
	check_eq("... at the instruction", rd(G_RIP), at(g_ss_ud2_at));
	check_eq("... stands in its shadow", rd(G_BLOCK), MOV_SS);
	check_eq("... what MOV SS met is pending", rd(G_DEBUG), B0 | ENABLED);
	guest_handles(UD);
	wr(EXC_BITMAP, 1 << DB);
	wr(INJECT, 0x80000306);
	check_eq("... which #UD, injected, loses", run(), R_VMCALL);
	check_eq("... in its handler", rd(G_RIP), at(g_handler) + 1);
	fresh(g_ss_ud2);
	wr(G_RFLAGS, 2 | FL_TF);
	wr(EXC_BITMAP, 1 << UD);
	run();
	check_eq("... under TF: a step is pending", rd(G_DEBUG), BS);
	guest_handles(UD);
	wr(INJECT, 0x80000306);
	check_eq("a state with TF in the shadow of MOV SS can be entered", run(), R_VMCALL);
	fresh(g_sti);
	wr(EXC_BITMAP, 1 << DB);
	wr(G_RFLAGS, 2 | FL_TF);
	check_eq("STI under TF", run(), R_EXC);
	check_eq("... its trap", rd(G_RIP), at(g_sti_end));
	check_eq("... is the host's", rd(G_DEBUG), 0);
}

static void steps(void)
{
	fresh(g_nops);
	set_controls(0, MTF, 0);
	wr(EXC_BITMAP, 1 << DB);
	wr(G_RFLAGS, 2 | FL_TF);
	check_eq("the trap flag's exit under TF", run(), R_MTF);
	check_eq("... after one instruction", rd(G_RIP), at(g_nops) + 1);
	check_eq("... the guest's own trap is pending", rd(G_DEBUG), BS);
	check_eq("... and not the host's", host_steps, 0);
	check_eq("... the guest has it after the next entry", run(), R_EXC);
	check_eq("... before an instruction", rd(G_RIP), at(g_nops) + 1);
	check_eq("... by a step", rd(QUAL), BS);
	check_eq("... then none pends", rd(G_DEBUG), 0);
	watched(g_watched, 0);
	set_controls(0, MTF, 0);
	wr(ENTRY, must(0x490, IA32E | LOAD_DEBUG));
	check_eq("the trap flag's exit at a breakpoint", run(), R_MTF);
	check_eq("... which is pending", rd(G_DEBUG), B0 | ENABLED);
	write_dr6(0xffff0ff0);
	check_eq("... and not the host's", host_steps, 0);
	__asm__ volatile("pushf; orl $0x100,(%%rsp); popf; nop" : : : "memory", "cc");
	check_eq("a step of the host's own", host_steps, 1);
	check_eq("... is nothing else", read_dr6() & 0x600f, BS);
	host_steps = 0;
}

int main(void)
{
	if (!vmx_there()) {
		skip("vmx_held", "no VMX");
		return 0;
	}
	vmx_on();
	trap_hook = on_event;
	apic_write(0xf0, 0x1ff);
	host_blocking();
	guest_blocking();
	failures();
	mov_ss();
	steps();
	check_eq("the host had no debug exception", host_steps, 0);
	x2apic();
	return 0;
}
