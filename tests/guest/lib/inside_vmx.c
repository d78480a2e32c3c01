/* The host of inside.h by VT-x with EPT. Intel SDM vol. 3 chapters 24 to 28. */
#include "inside.h"
#include "vmx.h"

#define R(n) "inside_regs + 8 * " #n
enum { SAVE_DEBUG = 1 << 2, SAVE_EFER = 1 << 20, CR4_VMXE = 0x2000, VALID_ERROR = 1 << 11 };
enum { TYPE_NMI = 2, TYPE_HARD = 3, TYPE_SOFT = 6 };
#define VALID 0x80000000u

u64 host_entry(u64 hpa, unsigned rights, bool page)
{
	return hpa | (page ? 6 << 3 | 1 | rights : 7); /* write-back */
}

void host_flush(void) { flush(); }

void host_call(struct inside_regs *r)
{
	__asm__ volatile("vmcall" : "+a"(r->ax), "=b"(r->bx), "=c"(r->cx), "=d"(r->dx) : : "memory");
}

/* All general registers are the guest's meanwhile; RSP is in the VMCS. */
static noinline bool enter_guest(void)
{
	u64 f;
	__asm__ volatile("push %%rbp; push %%rbx; push %%r12; push %%r13; push %%r14; push %%r15\n"
			 "mov %[hrsp],%%edx; vmwrite %%rsp,%%rdx; mov %[hrip],%%edx; lea 3f(%%rip),%%rax; vmwrite %%rax,%%rdx\n"
			 "cmpl $0,%[l]\n"
			 "mov " R(0) ",%%rax; mov " R(1) ",%%rcx; mov " R(2) ",%%rdx; mov " R(3) ",%%rbx; mov " R(5) ",%%rbp; mov " R(6) ",%%rsi; mov " R(7) ",%%rdi\n"
			 "mov " R(8) ",%%r8; mov " R(9) ",%%r9; mov " R(10) ",%%r10; mov " R(11) ",%%r11\n"
			 "mov " R(12) ",%%r12; mov " R(13) ",%%r13; mov " R(14) ",%%r14; mov " R(15) ",%%r15\n"
			 "jne 1f; vmlaunch; jmp 2f\n1: vmresume\n2: pushf; pop %%rax; jmp 4f\n"
			 "3: mov %%rax," R(0) "; mov %%rcx," R(1) "; mov %%rdx," R(2) "; mov %%rbx," R(3) "; mov %%rbp," R(5) "; mov %%rsi," R(6) "; mov %%rdi," R(7) "\n"
			 "mov %%r8," R(8) "; mov %%r9," R(9) "; mov %%r10," R(10) "; mov %%r11," R(11) "\n"
			 "mov %%r12," R(12) "; mov %%r13," R(13) "; mov %%r14," R(14) "; mov %%r15," R(15) "\n"
			 "xor %%eax,%%eax\n"
			 "4: pop %%r15; pop %%r14; pop %%r13; pop %%r12; pop %%rbx; pop %%rbp"
			 : "=a"(f) : [hrsp] "i"(H_RSP), [hrip] "i"(H_RIP), [l] "m"(launched)
			 : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "cc", "memory");
	launched = 1;
	inside_count_exit();
	return status(f) == SUCCEED;
}

/* ---- exits ------------------------------------------------------------------------------------------ */

static void raise(int vec, u32 error)
{
	u32 was = (u32)rd(IDT_INFO);
	vec = inside_combine(was & VALID && (was >> 8 & 7) == TYPE_HARD ? (int)(was & 255) : -1, vec);
	if (vec < 0)
		inside_lost("a triple fault at", rd(G_RIP), was);
	bool has_error = vec == DF || (vec >= TS && vec <= PF) || vec == AC;
	wr(INJECT, VALID | TYPE_HARD << 8 | (has_error ? VALID_ERROR : 0) | (u32)vec);
	wr(INJECT_ERR, vec == DF ? 0 : error);
}

/* To behind the instruction, and the trap of a step. */
static void done(void)
{
	u64 flags = rd(G_RFLAGS);
	wr(G_RIP, rd(G_RIP) + rd(INSN_LEN));
	wr(G_BLOCK, rd(G_BLOCK) & ~3ull);
	wr(G_RFLAGS, flags & ~(u64)FL_RF);
	if (flags & FL_TF)
		wr(G_DEBUG, rd(G_DEBUG) | 0x4000);
}
static void done_or_gp(bool ok)
{
	if (ok)
		done();
	else
		raise(GP, 0);
}

/* An event that was on its way goes on. */
static void again(void)
{
	u32 was = (u32)rd(IDT_INFO);
	if (!(was & VALID))
		return;
	wr(INJECT, was & ~0x1000u);
	wr(INJECT_ERR, rd(IDT_INFO + 2));
	wr(INJECT_LEN, rd(INSN_LEN));
}

static void ept_violation(void)
{
	u64 q = rd(QUAL);
	if (q & 0x1000) /* it was an IRET's, which has ended blocking by NMI */
		wr(G_BLOCK, rd(G_BLOCK) | 8);
	second_map(rd(GPA), q & 7);
	again();
}

static void exception(void)
{
	u32 info = (u32)rd(INTR_INFO), vec = info & 255;
	if (info & 0x1000 && vec != DF)
		wr(G_BLOCK, rd(G_BLOCK) | 8);
	if (vec == PF)
		write_cr2(rd(QUAL));
	raise((int)vec, (u32)rd(INTR_ERR));
}

static void handle(void)
{
	u32 why = (u32)rd(REASON);
	switch (why) {
	case R_EPT: ept_violation(); break;
	case R_EXC: exception(); break;
	case R_CPUID: inside_cpuid(), done(); break;
	case R_RDMSR: done_or_gp(inside_rdmsr()); break;
	case R_WRMSR: done_or_gp(inside_wrmsr()); break;
	case R_XSETBV: done_or_gp(inside_xsetbv()); break;
	case R_VMCALL:
		if (!(rd(G_AR + 2 * SEG_SS) & 0x60) && inside_regs.ax == INSIDE_CALL)
			inside_answer(&inside_regs), done();
		else
			raise(UD, 0);
		break;
	case R_IO:
		if (rd(QUAL) >> 16 == 0xf4)
			guest_exit((u32)inside_regs.ax);
		done(); /* behind the last port */
		break;
	case R_INVD: done(); break;
	default:
		if (why < R_VMCLEAR || (why > R_VMXON && why != R_INVEPT && why != R_INVVPID && why != R_VMFUNC))
			inside_lost("exit, RIP", why, rd(G_RIP));
		raise(UD, 0); /* VMX's own */
	}
}

void host_run(void)
{
	extern void guest_start(void);
	extern u8 main_stack_end[];
	if (!vmx_begin())
		inside_lost("no VMX operation", 0, 0);
	write_cr4(read_cr4() | (has(1, 2, 26) ? 0x40000 : 0)); /* OSXSAVE: we do the guest's XSETBV */
	fresh(guest_start);
	set_controls(0, IO_BITMAPS | MSR_BITMAPS, EPT | UNRESTRICTED | USE_VPID | RDTSCP | INVPCID | XSAVES);
	wr(EXIT, must(0x48f, HOST64 | SAVE_DEBUG | SAVE_EFER | EXIT_LOAD_EFER));
	wr(ENTRY, must(0x490, IA32E | LOAD_DEBUG | LOAD_EFER));
	wr(EXC_BITMAP, 1 << PF | 1 << GP | 1 << UD);
	wr(EPTP, at(second_root) | 3 << 3 | 6);
	wr(VPID, 1);
	wr(IO_A, at(bitmap));
	wr(IO_B, at(zeros));
	wr(MSR_BITMAP, at(zeros));
	bitmap[0xf4 / 64] |= 1ull << 0xf4 % 64;
	wr(G_CR4, (read_cr4() & ~0x40000ull));
	wr(CR4_MASK, CR4_VMXE);
	wr(CR4_SHADOW, 0);
	wr(G_RSP, at(main_stack_end) - 8);
	while (enter_guest()) {
		if (rd(REASON) & FAILED)
			break;
		handle();
	}
	inside_lost("no entry: reason, error", rd(REASON), rd(ERROR));
}
