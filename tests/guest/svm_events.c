/* AMD-V: exceptions and shutdown intercepted, events injected and interrupted on their way, virtual interrupts and
 * V_TPR, physical ones in guest mode, the global interrupt flag and what it holds, single steps over VMRUN. AMD APM
 * vol. 2 15.12 to 15.13, 15.17, 15.20 to 15.22. */
#include "lib/svm.h"

const char guest_name[] = "svm_events";

static volatile u32 count[256];
static volatile u64 last_ip, last_err;
static bool on_event(struct frame *f)
{
	if (f->vec < 0x20 && f->vec != NMI && f->vec != DB && f->vec != DE && f->vec != GP && f->vec != BP)
		return false;
	if (catch_armed)
		return false;
	count[f->vec]++;
	last_ip = f->ip;
	last_err = f->err;
	if (f->vec == DB)
		f->flags &= ~(u64)FL_TF;
	if (f->vec == GP)
		f->ip += 2; /* over RDMSR */
	if (f->vec > 0x30 && f->vec != 0x42)
		apic_write(0xb0, 0);
	return true;
}
static void forget(void) { memset((void *)count, 0, sizeof(count)); }
static void self_ipi(u32 what)
{
	apic_write(0x310, 0);
	apic_write(0x300, 0x40000 | what);
}

/* ---- exceptions ----------------------------------------------------------------------------- */

SNIP(x_de, "xor %ecx,%ecx; .globl x_de_at; x_de_at: div %ecx");
SNIP(x_bp, "int3");
SNIP(x_ud, "ud2");
SNIP(x_gp, "mov $0x12345,%ecx; .globl x_gp_at; x_gp_at: rdmsr");
SNIP(x_pf_r, "movabs $0x600000000123,%rax; .globl x_pf_r_at; x_pf_r_at: mov (%rax),%ecx");
SNIP(x_pf_w, "movabs $0x600000000123,%rax; .globl x_pf_w_at; x_pf_w_at: mov %ecx,(%rax)");
SNIP(x_nm, "mov %cr0,%rax; or $8,%rax; mov %rax,%cr0; .globl x_nm_at; x_nm_at: fnop");
SNIP(x_ss, "movabs $0x8000000000000000,%rbp; .globl x_ss_at; x_ss_at: mov (%rbp),%eax");
SNIP(x_db, "pushf; orl $0x100,(%rsp); popf; nop; .globl x_db_at; x_db_at: nop");
SNIP(x_icebp, ".byte 0xf1");
SNIP(x_gd, "mov %dr0,%rax");
extern const u8 x_de_at[], x_gp_at[], x_pf_r_at[], x_pf_w_at[], x_nm_at[], x_ss_at[], x_db_at[];

static void exceptions(void)
{
	static const struct { const char *name; int vector; const u8 *from, *at; u64 info1, info2; } all[] = {
		{ "#DE", DE, x_de, x_de_at, 0, 0 }, { "INT3", BP, x_bp, x_bp, 0, 0 }, { "#UD", UD, x_ud, x_ud, 0, 0 },
		{ "#GP", GP, x_gp, x_gp_at, 0, 0 }, { "#PF, a read", PF, x_pf_r, x_pf_r_at, 0, 0x600000000123 },
		{ "#PF, a write", PF, x_pf_w, x_pf_w_at, 2, 0x600000000123 }, { "#NM", NM, x_nm, x_nm_at, 0, 0 },
		{ "#SS", SS, x_ss, x_ss_at, 0, 0 }, { "#DB", DB, x_db, x_db_at, 0, 0 },
	};
	for (unsigned k = 0; k < ARRAY_LEN(all); k++) {
		vmcb_init();
		vmcb.icpt[2] = 1u << all[k].vector;
		vmcb.cr2 = 0x77;
		check_eq(fmt("%s: exit code", all[k].name), run_at(all[k].from), X_EXCEPTION + (u32)all[k].vector);
		check_eq(fmt("%s: RIP", all[k].name), vmcb.rip, (uptr)all[k].at);
		check_eq(fmt("%s: EXITINFO1", all[k].name), vmcb.info1, all[k].info1);
		check_eq(fmt("%s: EXITINFO2", all[k].name), vmcb.info2, all[k].info2);
		check_eq(fmt("%s: CR2 stays", all[k].name), vmcb.cr2, 0x77);
		if (all[k].vector == PF) {
			check_eq(fmt("%s: bytes of the instruction", all[k].name), vmcb.n_bytes, 15);
			check(fmt("%s: those very bytes", all[k].name), !memcmp(vmcb.bytes, all[k].at, 15));
		}
	}
	check_eq("#DB: DR6 is set", vmcb.dr6 & 0xe00f, 0x4000);
	vmcb_init();
	vmcb.icpt[2] = 1u << DB;
	vmcb.dr7 |= 1 << 13;
	check_eq("DR7.GD: exit code", run_at(x_gd), X_EXCEPTION + DB);
	check_eq("DR7.GD: DR6.BD", vmcb.dr6 & 0xe00f, 0x2000);
	check_eq("DR7.GD is clear, as in the handler", vmcb.dr7, 0x400);
	/* What nobody wants goes to the guest's own handler. */
	forget();
	vmcb_init();
	check_eq("#DE, not wanted", (run_at(x_bp), vmcb.exitcode), X_VMMCALL);
	check_eq("its handler has run", count[BP], 1);
	/* A #PF whose delivery fails: the second is offered, with the first on its way. */
	vmcb_init();
	vmcb.idtr.limit = 0xff; /* vectors up to 15 */
	vmcb.idtr.base = 0x700000000000;
	vmcb.icpt[2] = 1u << PF;
	vmcb.exitcode = 0;
	run_at(x_ud);
	check_eq("#PF on the way of #UD: exit code", vmcb.exitcode, X_EXCEPTION + PF);
	check_eq("#PF on the way of #UD: EXITINTINFO", vmcb.exitintinfo, EVENT(EV_EXCEPTION, UD));
	check_eq("#PF on the way of #UD: EXITINFO2", vmcb.info2, 0x700000000000 + 16 * UD);
	check_eq("#PF on the way of #UD: RIP", vmcb.rip, (uptr)x_ud);
	run_at(x_bp);
	check_eq("#PF on the way of INT3: EXITINTINFO", vmcb.exitintinfo, EVENT(EV_EXCEPTION, BP));
	run_at(x_icebp);
	check_eq("#PF on the way of INT1: EXITINTINFO", vmcb.exitintinfo, EVENT(EV_EXCEPTION, DB));
	vmcb.icpt[2] = 1u << DF;
	run_at(x_gp);
	check_eq("#DF", vmcb.exitcode, X_EXCEPTION + DF);
	check_eq("#DF: EXITINTINFO: #GP became #PF, and that #DF", vmcb.exitintinfo, EVENT(EV_EXCEPTION, PF) | 1 << 11);
	vmcb.icpt[2] = 0;
	check_eq("shutdown", run_at(x_gp), X_SHUTDOWN);
}

/* ---- injection ---------------------------------------------------------------------------------- */

SNIP(idle, "nop; nop");
static void injection(void)
{
	forget();
	vmcb_init();
	vmcb.eventinj = EVENT(EV_INTR, 0x42);
	check_eq("an interrupt: exit", run_at(idle), X_VMMCALL);
	check_eq("an interrupt, IF clear: taken", count[0x42], 1);
	check_eq("an interrupt: returns to", last_ip, (uptr)idle);
	check_eq("EVENTINJ.V is cleared", vmcb.eventinj & 1u << 31, 0);
	vmcb.eventinj = EVENT(EV_NMI, 0x55);
	run_at(idle);
	check_eq("NMI: the vector is ignored", count[NMI], 1);
	vmcb.eventinj = EVENT(EV_EXCEPTION, DE);
	run_at(idle);
	check_eq("#DE", count[DE], 1);
	vmcb.eventinj = EVENT(EV_EXCEPTION, GP) | 1 << 11 | 0x1234ull << 32;
	run_at(x_gp_at - 0);
	check_eq("#GP: error code", last_err, 0x1234);
	vmcb.eventinj = EVENT(EV_SOFT, 0x42);
	vmcb.nrip = (uptr)idle + 1;
	run_at(idle);
	check_eq("INT n returns to the next RIP", last_ip, (uptr)idle + 1);
	vmcb.shadow = 1;
	vmcb.eventinj = EVENT(EV_INTR, 0x42);
	forget();
	run_at(idle);
	check_eq("an interrupt in the shadow", count[0x42], 1);
	/* On its way it meets a page fault. */
	vmcb_init();
	vmcb.idtr.base = 0x700000000000;
	vmcb.icpt[2] = 1u << PF;
	vmcb.eventinj = EVENT(EV_INTR, 0x42);
	check_eq("its delivery faults", run_at(idle), X_EXCEPTION + PF);
	check_eq("... EXITINTINFO", vmcb.exitintinfo, EVENT(EV_INTR, 0x42));
	check_eq("... RIP", vmcb.rip, (uptr)idle);
	vmcb.eventinj = EVENT(EV_SOFT, 0x42);
	vmcb.nrip = (uptr)idle + 1;
	check_eq("INT n's delivery faults", run_at(idle), X_EXCEPTION + PF);
	check_eq("... EXITINTINFO", vmcb.exitintinfo, EVENT(EV_SOFT, 0x42));
	check_eq("... RIP is the old one", vmcb.rip, (uptr)idle);
	/* An injected exception is not intercepted. */
	vmcb_init();
	forget();
	vmcb.icpt[2] = ~0u;
	vmcb.eventinj = EVENT(EV_EXCEPTION, DE);
	check_eq("an injected exception is not offered", run_at(idle), X_VMMCALL);
	check_eq("... but taken", count[DE], 1);
}

/* ---- virtual interrupts --------------------------------------------------------------------------- */

SNIP(sti_nop, "sti; nop; nop; cli");
SNIP(sti_cpuid, "sti; cpuid; cli");
SNIP(tpr_down, "sti; nop; mov $4,%eax; mov %rax,%cr8; nop; cli");
SNIP(tpr_read, "mov %cr8,%rbx; mov $3,%eax; mov %rax,%cr8");
SNIP(gif_round, "clgi; sti; nop; mov $7,%ebx; stgi; nop; nop; cli");

static void virtual_interrupts(void)
{
	vmcb_init();
	forget();
	vmcb.vintr = V_INTR_MASKING | V_IRQ | 15 * V_PRIO;
	vmcb.vector = 0x42;
	run_at(idle);
	check("V_IRQ waits for IF", !count[0x42] && (vmcb.vintr & V_IRQ));
	run_at(sti_nop);
	check("V_IRQ is taken", count[0x42] == 1 && !(vmcb.vintr & V_IRQ));
	check_eq("after the shadow of STI", last_ip, (uptr)sti_nop + 2);
	vmcb.rflags |= FL_IF;
	vmcb.vintr |= V_IRQ;
	run_at(idle);
	check_eq("V_IRQ at VMRUN: before the first instruction", last_ip, (uptr)idle);
	vmcb.rflags |= FL_IF;
	vmcb.vintr |= V_IRQ;
	vmcb.shadow = 1;
	run_at(idle);
	check_eq("... in an interrupt shadow after it", last_ip, (uptr)idle + 1);
	vmcb.rflags = 2;
	want(X_CPUID);
	check_eq("CPUID in the shadow of STI", run_at(sti_cpuid), X_CPUID);
	check_eq("... the shadow is told", vmcb.shadow & 1, 1);
	unwant(X_CPUID);
	vmcb.shadow = 0;
	want(X_VINTR);
	vmcb.vintr |= V_IRQ;
	check_eq("VINTR is intercepted", run_at(sti_nop), X_VINTR);
	check("... and still waits", vmcb.vintr & V_IRQ);
	unwant(X_VINTR);
	forget();
	vmcb.vintr = V_INTR_MASKING | V_IRQ | 5 * V_PRIO | 6;
	run_at(sti_nop);
	check_eq("V_TPR holds it off", count[0x42], 0);
	run_at(tpr_down);
	check_eq("CR8 lets it in", count[0x42], 1);
	check_eq("V_TPR is what CR8 was set to", vmcb.vintr & 15, 4);
	vmcb.vintr = V_INTR_MASKING | V_IRQ | V_IGN_TPR | 9;
	run_at(sti_nop);
	check_eq("V_IGN_TPR", count[0x42], 2);
	vmcb.vintr = V_INTR_MASKING | 9;
	u64 tpr = apic_read(0x80);
	run_at(tpr_read);
	check_eq("CR8 is V_TPR", nested_rbx, 9);
	check_eq("our TPR stays", apic_read(0x80), tpr);
	/* The guest's own GIF. */
	vmcb.vintr = V_INTR_MASKING | V_IRQ | 15 * V_PRIO | V_GIF_ENABLE | V_GIF;
	forget();
	run_at(gif_round);
	check_eq("virtual GIF: taken after STGI", count[0x42], 1);
	check("virtual GIF: not before", last_ip > (uptr)gif_round + 10);
	check("virtual GIF is set", vmcb.vintr & V_GIF);
	vmcb.vintr = V_INTR_MASKING | V_IRQ | 15 * V_PRIO | V_GIF_ENABLE;
	run_at(sti_nop);
	check_eq("virtual GIF clear", count[0x42], 1);
}

/* ---- physical interrupts, GIF ------------------------------------------------------------------------ */

SNIP(spin, "sti; mov $100000,%ecx; 1: dec %ecx; jnz 1b; cli");
static void physical(void)
{
	apic_write(0xf0, 0x1ff);
	vmcb_init();
	forget();
	want(X_INTR);
	vmcb.vintr = V_INTR_MASKING;
	clgi();
	__asm__ volatile("sti");
	self_ipi(0x61);
	vmcb.rip = (uptr)idle;
	check_eq("an interrupt that waits: at once", vmrun_once(), X_INTR);
	check_eq("... before the guest's first instruction", vmcb.rip, (uptr)idle);
	check_eq("... held while GIF is 0", count[0x61], 0);
	stgi();
	__asm__ volatile("nop");
	check_eq("... and taken after STGI", count[0x61], 1);
	/* An injected event first: the exit is at its handler's first instruction. */
	clgi();
	self_ipi(0x61);
	vmcb.rip = (uptr)idle;
	vmcb.eventinj = EVENT(EV_INTR, 0x42);
	check_eq("an event is injected and an interrupt waits", vmrun_once(), X_INTR);
	check_eq("... RIP is the handler's", vmcb.rip, (idt[2 * 0x42] & 0xffff) | (idt[2 * 0x42] >> 32 & 0xffff0000) | idt[2 * 0x42 + 1] << 32);
	check_eq("... nothing is left on its way", vmcb.exitintinfo, 0);
	stgi();
	__asm__ volatile("nop; cli");
	count[0x61] = 1;
	self_ipi(0x61);
	check_eq("our IF clear: not for V_INTR_MASKING", run_at(spin), X_VMMCALL);
	vmcb.vintr = 0;
	check_eq("without it the guest's IF counts", run_at(spin), X_INTR);
	unwant(X_INTR);
	check_eq("not intercepted: the guest takes it", (run_at(spin), vmcb.exitcode), X_VMMCALL);
	check_eq("... by its own table", count[0x61], 2);
	/* NMI */
	forget();
	clgi();
	self_ipi(0x400);
	__asm__ volatile("nop");
	check_eq("GIF holds NMI", count[NMI], 0);
	stgi();
	check_eq("NMI after STGI", count[NMI], 1);
	want(X_NMI);
	vmcb.rip = (uptr)idle;
	clgi();
	self_ipi(0x400);
	check_eq("NMI is intercepted", vmrun_once(), X_NMI);
	check_eq("... and pending", count[NMI], 1);
	stgi();
	check_eq("... and taken after STGI", count[NMI], 2);
	forget();
	unwant(X_NMI);
	vmcb.asid = 0;
	check_eq("a VMRUN that is refused", vmrun_once(), X_INVALID);
	self_ipi(0x400);
	__asm__ volatile("nop");
	check_eq("... leaves GIF clear", count[NMI], 0);
	stgi();
	check_eq("... NMI after STGI", count[NMI], 1);
	vmcb.asid = 1;
	want(X_SMI);
	vmcb.rip = (uptr)idle;
	clgi();
	self_ipi(0x200);
	check_eq("SMI is intercepted", vmrun_once(), X_SMI);
	stgi();
}

/* ---- single steps ---------------------------------------------------------------------------------------- */

static void steps(void)
{
	vmcb_init();
	forget();
	vmcb.rflags |= FL_TF;
	run_at(idle);
	check_eq("the guest's TF: a trap", count[DB], 1);
	check_eq("... after its first instruction", last_ip, (uptr)idle + 1);
	forget();
	vmcb.rflags = 2;
	vmcb.rip = (uptr)idle;
	__asm__ volatile("push %%rbx; push %%rbp; pushf; orl $0x100,(%%rsp); popf\n.globl step_run; step_run: vmrun; nop; pop %%rbp; pop %%rbx"
			 : : "a"(&vmcb) : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc");
	stgi();
	extern const u8 step_run[];
	check_eq("our TF: traps", count[DB], 1);
	check_eq("... behind VMRUN, after the exit", last_ip, (uptr)step_run + 3);
}

int main(void)
{
	if (!svm_there()) {
		skip("svm_events", "this processor has no AMD-V");
		return 0;
	}
	trap_hook = on_event;
	svm_on();
	exceptions();
	injection();
	virtual_interrupts();
	physical();
	steps();
	return 0;
}
