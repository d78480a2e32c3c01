/* The host of inside.h by AMD-V with nested paging. AMD APM vol. 2 chapter 15. */
#include "inside.h"
#include "svm.h"

#define NX (1ull << 63)
#define R(n) "inside_regs + 8 * " #n

u64 host_entry(u64 hpa, unsigned rights, bool page)
{
	const u64 there = 5, writable = 2; /* P, U */
	if (!page)
		return hpa | there | writable;
	return hpa | there | (rights & INSIDE_WRITE ? writable : 0) | (rights & INSIDE_FETCH ? 0 : NX);
}

void host_flush(void) { vmcb.tlb_control = 1; }

void host_call(struct inside_regs *r)
{
	__asm__ volatile("vmmcall" : "+a"(r->ax), "=b"(r->bx), "=c"(r->cx), "=d"(r->dx) : : "memory");
}

/* All general registers are the guest's meanwhile; RAX and RSP are in the VMCB. What VMLOAD loads stays the guest's: we
 * need none of it. */
static noinline void enter(void)
{
	vmcb.rax = inside_regs.ax;
	__asm__ volatile("push %%rbp; push %%rbx; push %%r12; push %%r13; push %%r14; push %%r15\n"
			 "mov " R(1) ",%%rcx; mov " R(2) ",%%rdx; mov " R(3) ",%%rbx; mov " R(5) ",%%rbp; mov " R(6) ",%%rsi; mov " R(7) ",%%rdi\n"
			 "mov " R(8) ",%%r8; mov " R(9) ",%%r9; mov " R(10) ",%%r10; mov " R(11) ",%%r11\n"
			 "mov " R(12) ",%%r12; mov " R(13) ",%%r13; mov " R(14) ",%%r14; mov " R(15) ",%%r15\n"
			 "vmload; vmrun; vmsave\n"
			 "mov %%rcx," R(1) "; mov %%rdx," R(2) "; mov %%rbx," R(3) "; mov %%rbp," R(5) "; mov %%rsi," R(6) "; mov %%rdi," R(7) "\n"
			 "mov %%r8," R(8) "; mov %%r9," R(9) "; mov %%r10," R(10) "; mov %%r11," R(11) "\n"
			 "mov %%r12," R(12) "; mov %%r13," R(13) "; mov %%r14," R(14) "; mov %%r15," R(15) "\n"
			 "pop %%r15; pop %%r14; pop %%r13; pop %%r12; pop %%rbx; pop %%rbp"
			 : : "a"(&vmcb) : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory", "cc");
	stgi();
	inside_regs.ax = vmcb.rax;
	vmcb.tlb_control = 0;
	inside_count_exit();
}

/* ---- exits ------------------------------------------------------------------------------------------ */

static bool has_error(int vec) { return vec == DF || (vec >= TS && vec <= PF) || vec == AC; }

static void raise(int vec, u64 error)
{
	u64 was = vmcb.exitintinfo;
	vec = inside_combine(was >> 31 & 1 && (was >> 8 & 7) == EV_EXCEPTION ? (int)(was & 255) : -1, vec);
	if (vec < 0)
		inside_lost("a triple fault at", vmcb.rip, was);
	if (vec != DB && vec != DF)
		vmcb.rflags |= FL_RF; /* a fault's image has it */
	vmcb.eventinj = EVENT(EV_EXCEPTION, vec) | (has_error(vec) ? 1 << 11 | (vec == DF ? 0 : error << 32) : 0);
}

/* To behind the instruction, and the trap of a step. */
static void done(void)
{
	vmcb.rip = vmcb.nrip;
	vmcb.shadow &= ~1ull;
	vmcb.rflags &= ~(u64)FL_RF;
	if (vmcb.rflags & FL_TF) {
		vmcb.dr6 |= 0x4000;
		raise(DB, 0);
	}
}

/* An event that was on its way goes on; software's are executed again. */
static void again(void)
{
	u64 was = vmcb.exitintinfo;
	unsigned type = was >> 8 & 7, vec = was & 255;
	bool soft = type == EV_SOFT || (type == EV_EXCEPTION && (vec == BP || vec == OF));
	if (was >> 31 & 1 && !soft)
		vmcb.eventinj = was;
}

static void nested_fault(void)
{
	u64 e = vmcb.info1;
	second_map(vmcb.info2, INSIDE_READ | (e & 2 ? INSIDE_WRITE : 0) | (e & 16 ? INSIDE_FETCH : 0));
	again();
}

static bool ours(u32 msr) { return msr == VM_CR || msr == VM_HSAVE_PA; }

static void handle(void)
{
	switch (vmcb.exitcode) {
	case X_NPF: nested_fault(); break;
	case X_EXCEPTION + PF:
		vmcb.cr2 = vmcb.info2;
		raise(PF, vmcb.info1);
		break;
	case X_EXCEPTION + GP: raise(GP, vmcb.info1); break;
	case X_EXCEPTION + UD: raise(UD, 0); break;
	case X_CPUID: inside_cpuid(), done(); break;
	case X_MSR:
		if (!ours((u32)inside_regs.cx) && (vmcb.info1 ? inside_wrmsr() : inside_rdmsr()))
			done();
		else
			raise(GP, 0);
		break;
	case X_VMMCALL:
		if (!vmcb.cpl && inside_regs.ax == INSIDE_CALL)
			inside_answer(&inside_regs), done();
		else
			raise(UD, 0);
		break;
	case X_VMRUN: case X_VMLOAD: case X_VMSAVE: case X_STGI: case X_CLGI: case X_SKINIT: case X_INVLPGA: raise(UD, 0); break;
	case X_IOIO:
		guest_exit((u32)inside_regs.ax);
	default: inside_lost("exit, RIP", vmcb.exitcode, vmcb.rip);
	}
}

void host_run(void)
{
	static const u32 wanted[] = { X_EXCEPTION + PF, X_EXCEPTION + GP, X_EXCEPTION + UD, X_CPUID, X_MSR, X_VMLOAD, X_VMSAVE, X_STGI, X_CLGI, X_SKINIT, X_INVLPGA,
		X_IOIO, X_INIT };
	extern void guest_start(void);
	extern u8 main_stack_end[];
	svm_on();
	vmcb_init();
	for (unsigned k = 0; k < ARRAY_LEN(wanted); k++)
		want(wanted[k]);
	iopm[0xf4 / 8] |= 1 << 0xf4 % 8;
	for (unsigned msr = VM_CR & 0x1fff; msr <= (VM_HSAVE_PA & 0x1fff); msr++)
		msrpm[0x1000 + msr / 4] |= ours(0xc0010000 + msr) ? 3 << msr % 4 * 2 : 0;
	vmcb.np = 1;
	vmcb.ncr3 = (uptr)second_root;
	vmcb.rip = (uptr)guest_start;
	vmcb.rsp = (uptr)main_stack_end - 8;
	for (;;) {
		enter();
		vmcb.eventinj = 0;
		handle();
	}
}
