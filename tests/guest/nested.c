/* Guests of this guest (AMD-V), as far as an engine that keeps translations may get them wrong: the same code in the host
 * and in its guest, with intercepts and without; interrupts that other things than IF let in; address spaces that are kept
 * by ASID; code that one changes and the other runs; nested paging. What AMD-V itself is, is tested by svm.c.
 * AMD APM vol. 2 chapter 15. */
#include "guest.h"

const char guest_name[] = "nested";

/* ---- the VMCB (APM vol. 2 appendix B) ---------------------------------------------------------------- */

static u8 vmcb[4096] __attribute__((aligned(4096))), hsave[4096] __attribute__((aligned(4096)));
static u8 iopm[3 * 4096] __attribute__((aligned(4096))), msrpm[2 * 4096] __attribute__((aligned(4096)));
#define AT(offset, type) (*(volatile type *)(vmcb + (offset)))
#define CR_READS AT(0, u16)
#define EXCEPTIONS AT(8, u32)
#define INTERCEPTS AT(0xc, u32)
#define TSC_OFFSET AT(0x50, u64)
#define ASID AT(0x58, u32)
#define TLB_CONTROL AT(0x5c, u8)
#define VINTR AT(0x60, u64)
#define SHADOW AT(0x68, u64)
#define EXITCODE AT(0x70, u64)
#define EXITINFO1 AT(0x78, u64)
#define EXITINFO2 AT(0x80, u64)
#define EXITINTINFO AT(0x88, u64)
#define NP_ENABLE AT(0x90, u64)
#define EVENTINJ AT(0xa8, u64)
#define N_CR3 AT(0xb0, u64)
#define S_CR4 AT(0x548, u64)
#define S_CR3 AT(0x550, u64)
#define S_RFLAGS AT(0x570, u64)
#define S_RIP AT(0x578, u64)
#define S_RSP AT(0x5d8, u64)
#define S_RAX AT(0x5f8, u64)
#define CR2 AT(0x640, u64)
enum { I_INTR = 1 << 0, I_VINTR = 1 << 4, I_RDTSC = 1 << 14, I_PUSHF = 1 << 16, I_POPF = 1 << 17, I_PAUSE = 1 << 23, I_HLT = 1 << 24, I_SHUTDOWN = 1u << 31 };
enum { X_CR2_READ = 2, X_EXCEPTION = 0x40, X_INTR = 0x60, X_VINTR = 0x64, X_RDTSC = 0x6e, X_PUSHF = 0x70, X_POPF = 0x71, X_PAUSE = 0x77, X_HLT = 0x78, X_VMMCALL = 0x81, X_INVPCID = 0xa2,
       X_NPF = 0x400 };
enum { V_IRQ = 1 << 8, V_IGN_TPR = 1 << 20, V_INTR_MASKING = 1 << 24 };
#define V_VECTOR(n) ((u64)(n) << 32)
enum { VM_HSAVE_PA = 0xc0010117, EFER_SVME = 1 << 12 };

extern u64 boot_pml4[512];
static u8 stack[16384] __attribute__((aligned(16)));
extern const u8 l2_call[];
__asm__(".text\nl2_call: call *%rbx\nvmmcall\nud2\n");

static void segment(unsigned at, u16 sel, u16 attr, u32 limit, u64 base)
{
	AT(0x400 + at, u16) = sel;
	AT(0x402 + at, u16) = attr;
	AT(0x404 + at, u32) = limit;
	AT(0x408 + at, u64) = base;
}

/* A guest that has this one's tables and mode, and intercepts VMMCALL and what must be. */
static void begin(void)
{
	struct dtr d;
	memset(vmcb, 0, sizeof(vmcb));
	INTERCEPTS = I_SHUTDOWN;
	AT(0x10, u32) = 3; /* VMRUN, VMMCALL */
	AT(0x40, u64) = (uptr)iopm;
	AT(0x48, u64) = (uptr)msrpm;
	ASID = 1;
	TLB_CONTROL = 1;
	segment(0x10, CODE, 0xa9b, ~0u, 0);
	for (unsigned s = 0; s < 4; s++)
		if (s != 1)
			segment(s * 0x10, DATA, 0xc93, ~0u, 0);
	__asm__ volatile("sgdt %0" : "=m"(d));
	segment(0x60, 0, 0, d.limit, d.base);
	__asm__ volatile("sidt %0" : "=m"(d));
	segment(0x80, 0, 0, d.limit, d.base);
	AT(0x4d0, u64) = rdmsr(EFER);
	S_CR4 = read_cr4();
	S_CR3 = read_cr3();
	AT(0x558, u64) = read_cr0();
	AT(0x560, u64) = 0x400;
	AT(0x568, u64) = 0xffff0ff0;
	AT(0x668, u64) = 0x0007040600070406;
	S_RFLAGS = 2;
}

/* From where the guest is on, with these registers; the exit code. */
static u64 g_rdi, g_rsi, g_rdx, g_rbx;
static u64 resume(void)
{
	__asm__ volatile("push %%rbp\n"
			 "clgi\n"
			 "vmrun %%rax\n"
			 "stgi\n"
			 "pop %%rbp"
			 : "+D"(g_rdi), "+S"(g_rsi), "+d"(g_rdx), "+b"(g_rbx)
			 : "a"((uptr)vmcb)
			 : "rcx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc");
	TLB_CONTROL = 0;
	return EXITCODE;
}
/* f(a, b) in the guest, until it exits. */
static u64 start(void *f, u64 a, u64 b)
{
	g_rbx = (uptr)f;
	g_rdi = a;
	g_rsi = b;
	S_RIP = (uptr)l2_call;
	S_RSP = (uptr)stack + sizeof(stack);
	return resume();
}
/* What it returns; an exit that is no VMMCALL: ~ its code. */
static u64 value(void *f, u64 a, u64 b)
{
	u64 x = start(f, a, b);
	return x == X_VMMCALL ? S_RAX : ~x;
}

/* ---- the same code on both sides ------------------------------------------------------------------------ */

#define ROUNDS 300

static noinline u64 c_sum(u64 n, u64 step)
{
	u64 s = 0;
	for (u64 k = 0; k < n; k++)
		s = s * 5 + k * step;
	return s;
}
extern u64 c_pushf(u64, u64), c_popf(u64, u64), c_rdtsc(u64, u64), c_pause(u64, u64), c_cr2(u64, u64), c_sse(u64, u64), c_if(u64, u64);
__asm__(".text\n"
	"c_pushf: pushfq\npop %rax\nand $1, %eax\nadd $77, %eax\nret\n"
	"c_popf: push $2\npopfq\nmov $78, %eax\nret\n"
	"c_rdtsc: rdtsc\nshl $32, %rdx\nor %rdx, %rax\nret\n"
	"c_pause: pause\nmov $79, %eax\nret\n"
	"c_cr2: mov %cr2, %rax\nret\n"
	"c_sse: xorps %xmm0, %xmm0\nmov $80, %eax\nret\n"
	"c_if: mov %rdi, %rcx\n1: sti\nnop\ncli\ndec %rcx\njnz 1b\nmov $81, %eax\nret\n");

/* Of each: unseen in the guest, seen there, in the host. All is to come out the same, in whatever order. */
static void intercepted(const char *name, u64 (*f)(u64, u64), volatile u32 *where, u32 bit, u64 code, u64 want)
{
	u32 wrong = 0, missed = 0, here = 0;
	begin();
	CR2 = 0x1234567000;
	for (unsigned k = 0; k < ROUNDS; k++) {
		*where = *where & ~bit;
		wrong += value(f, 0, 0) != want;
		*where = *where | bit;
		missed += start(f, 0, 0) != code;
		here += f(0, 0) != want;
	}
	check_eq(fmt("%s: in the guest, not intercepted", name), wrong, 0);
	check_eq(fmt("%s: in the guest, intercepted", name), missed, 0);
	check_eq(fmt("%s: in the host", name), here, 0);
}

static void same_code(void)
{
	begin();
	u32 wrong = 0;
	for (u64 k = 1; k < ROUNDS; k++)
		wrong += value(c_sum, k, 7) != c_sum(k, 7);
	check_eq("a function in host and guest", wrong, 0);
	intercepted("PUSHF", c_pushf, &INTERCEPTS, I_PUSHF, X_PUSHF, 77);
	intercepted("POPF", c_popf, &INTERCEPTS, I_POPF, X_POPF, 78);
	intercepted("PAUSE", c_pause, &INTERCEPTS, I_PAUSE, X_PAUSE, 79);
	intercepted("MOV from CR2", c_cr2, (volatile u32 *)(void *)vmcb, 1 << 2, X_CR2_READ, 0x1234567000);
}

extern u64 c_invpcid(u64, u64);
__asm__(".text\nc_invpcid: invpcid 8(%rsi), %rdi\nmov $82, %eax\nret\n");
/* Its exit tells where the descriptor is, and the type: software that shadows page tables goes by them. */
static void invpcid(void)
{
	static u64 d[3];
	if (!has(7, 1, 10)) {
		skip("INVPCID", "this processor has none");
		return;
	}
	begin();
	check_eq("INVPCID in the guest", value(c_invpcid, 2, (uptr)d), 82);
	AT(0x14, u32) = 4;
	check_eq("... intercepted", start(c_invpcid, 2, (uptr)d), X_INVPCID);
	check_eq("... EXITINFO1: the descriptor's address", EXITINFO1, (uptr)d + 8);
	check_eq("... EXITINFO2: the type", EXITINFO2, 2);
}

static void tsc(void)
{
	const u64 far = 1ull << 50;
	u32 wrong = 0, exits = 0;
	begin();
	TSC_OFFSET = far;
	for (unsigned k = 0; k < ROUNDS; k++) {
		u64 before = rdtsc(), in = value(c_rdtsc, 0, 0), after = rdtsc();
		wrong += in - far < before || in - far > after;
		INTERCEPTS |= I_RDTSC;
		exits += start(c_rdtsc, 0, 0) != X_RDTSC;
		INTERCEPTS &= ~I_RDTSC;
	}
	check_eq("RDTSC in the guest lies between the host's, and TSC_OFFSET", wrong, 0);
	check_eq("RDTSC intercepted", exits, 0);
}

/* Control registers that blocks depend on are the guest's own, while the host's remain. */
static void units(void)
{
	u32 wrong = 0, here = 0;
	if (!(read_cr4() & 0x200))
		write_cr4(read_cr4() | 0x200);
	begin();
	EXCEPTIONS = 1 << UD;
	for (unsigned k = 0; k < ROUNDS; k++) {
		S_CR4 = read_cr4() & ~0x200ull;
		wrong += start(c_sse, 0, 0) != X_EXCEPTION + UD;
		S_CR4 = read_cr4();
		wrong += value(c_sse, 0, 0) != 80;
		here += TRY(c_sse(0, 0)) != NONE;
	}
	check_eq("SSE without and with CR4.OSFXSR in the guest", wrong, 0);
	check_eq("SSE in the host meanwhile", here, 0);
}

/* ---- interrupts -------------------------------------------------------------------------------------------- */

static volatile u32 taken, taken_at;
static bool count_it(struct frame *f)
{
	if (f->vec != 0x50)
		return false;
	taken++;
	taken_at = (u32)f->ip;
	apic_write(0xb0, 0);
	return true;
}
static void self_interrupt(void) { apic_write(0x300, 0x40050); } /* fixed, to itself */
extern u64 c_spin(u64, u64);
__asm__(".text\nc_spin: cli\n1: sti\nnop\ncli\nadd $1, %rax\njmp 1b\n");
extern u64 c_closed(u64, u64);
__asm__(".text\nc_closed: cli\n1: add $1, %rax\njmp 1b\n");

/* The guest never ends by itself: the host's interrupt ends it, whatever the guest's IF. */
static void host_interrupts(void)
{
	u32 wrong = 0, early = 0;
	begin();
	INTERCEPTS |= I_INTR;
	VINTR = V_INTR_MASKING;
	trap_hook = count_it;
	for (unsigned k = 0; k < 20; k++) {
		taken = 0;
		__asm__ volatile("clgi");
		self_interrupt();
		__asm__ volatile("sti\nnop\nnop");
		early += taken;
		/* RFLAGS.IF is 1 here, and counts in the guest */
		wrong += start(k & 1 ? c_spin : c_closed, 0, 0) != X_INTR;
		__asm__ volatile("cli");
		wrong += taken != 1;
	}
	trap_hook = NULL;
	check_eq("interrupts while GIF is 0", early, 0);
	check_eq("an interrupt ends the guest, and is taken by the host", wrong, 0);
}

/* With the host's IF at 0 it is not let in, however often the guest sets its own. */
static void closed(void)
{
	begin();
	INTERCEPTS |= I_INTR;
	VINTR = V_INTR_MASKING;
	trap_hook = count_it;
	taken = 0;
	self_interrupt(); /* IF is 0 */
	check_eq("STI in the guest lets in none of the host's", value(c_if, 1000, 0), 81);
	check_eq("... nor has one been taken", taken, 0);
	__asm__ volatile("sti\nnop\ncli");
	check_eq("until the host does", taken, 1);
	/* Without V_INTR_MASKING the guest's IF is the host's. */
	VINTR = 0;
	self_interrupt();
	check_eq("without V_INTR_MASKING it does", start(c_if, 1000, 0), X_INTR);
	__asm__ volatile("sti\nnop\ncli");
	trap_hook = NULL;
}

static void virtual_interrupts(void)
{
	u32 wrong = 0;
	begin();
	trap_hook = count_it;
	for (unsigned k = 0; k < 20; k++) {
		taken = 0;
		VINTR = V_INTR_MASKING | V_IRQ | V_IGN_TPR | V_VECTOR(0x50);
		S_RFLAGS = 2;
		wrong += value(c_if, 50, 0) != 81 || taken != 1 || (VINTR & V_IRQ);
	}
	check_eq("a virtual interrupt is taken once, when the guest sets IF", wrong, 0);
	INTERCEPTS |= I_VINTR;
	VINTR = V_INTR_MASKING | V_IRQ | V_IGN_TPR | V_VECTOR(0x50);
	taken = 0;
	check_eq("or ends the guest then", start(c_if, 50, 0), X_VINTR);
	check_eq("... and is not taken", taken, 0);
	trap_hook = NULL;
}

/* ---- address spaces -------------------------------------------------------------------------------------------- */

#define VA 0x4000000000ull
enum { P = 1, W = 2, U = 4, BIG = 0x80 };
static u64 roots[3][4][512] __attribute__((aligned(4096)));
static u64 pages[4][512] __attribute__((aligned(4096)));
static u64 *space(unsigned n, const void *page)
{
	u64 (*t)[512] = roots[n];
	memcpy(t[0], boot_pml4, 4096);
	memcpy(t[1], (void *)(uptr)(boot_pml4[VA >> 39] & ~0xfffull), 4096);
	memset(t[2], 0, 4096);
	memset(t[3], 0, 4096);
	t[0][VA >> 39] = (uptr)t[1] | P | W | U;
	t[1][VA >> 30 & 511] = (uptr)t[2] | P | W | U;
	t[2][0] = (uptr)t[3] | P | W | U;
	t[3][0] = (uptr)page | P | W | U;
	return t[0];
}
static noinline u64 c_load(u64 p, u64 unused) { return *(volatile u64 *)p; }
static noinline u64 c_store(u64 p, u64 v) { return *(volatile u64 *)p = v; }

/* Two guests and the host, each with another page at the same address. */
static void asids(void)
{
	u32 wrong[3] = { 0 };
	u64 own = read_cr3();
	for (unsigned k = 0; k < 4; k++)
		pages[k][0] = 1000 + k;
	u64 *root[3] = { space(0, pages[0]), space(1, pages[1]), space(2, pages[2]) };
	write_cr3((uptr)root[0]);
	begin();
	for (unsigned k = 0; k < ROUNDS; k++)
		for (u32 n = 1; n < 3; n++) {
			S_CR3 = (uptr)root[n];
			ASID = n;
			wrong[n] += value(c_load, VA, 0) != 1000 + n + k * 10;
			wrong[n] += value(c_store, VA, 1000 + n + (k + 1) * 10) != 1000 + n + (k + 1) * 10;
			wrong[0] += c_load(VA, 0) != 1000;
		}
	check_eq("the host's page", wrong[0], 0);
	check_eq("the first guest's", wrong[1], 0);
	check_eq("the second guest's", wrong[2], 0);
	/* Another page there: to be seen once the guest's translations are flushed. */
	ASID = 1;
	S_CR3 = (uptr)root[1];
	roots[1][3][0] = (uptr)pages[3] | P | W | U;
	TLB_CONTROL = 1;
	check_eq("after a flush by TLB_CONTROL", value(c_load, VA, 0), 1003);
	roots[0][3][0] = (uptr)pages[3] | P | W | U;
	write_cr3((uptr)root[0]);
	check_eq("after the host's flush", c_load(VA, 0), 1003);
	write_cr3(own);
}

/* ---- nested paging --------------------------------------------------------------------------------------------------- */

static void nested_paging(void)
{
	u64 own = read_cr3();
	u32 wrong = 0;
	u64 *guest = space(0, (void *)VA), *np = space(1, pages[0]); /* guest-physical VA is page 0 */
	begin();
	NP_ENABLE = 1;
	S_CR3 = (uptr)guest;
	N_CR3 = (uptr)np;
	pages[0][0] = 2000;
	pages[1][0] = 2001;
	for (unsigned k = 0; k < ROUNDS; k++) {
		wrong += value(c_load, VA, 0) != 2000 + k;
		wrong += value(c_store, VA, 2001 + k) != 2001 + k;
	}
	check_eq("loads and stores through both tables", wrong, 0);
	roots[1][3][0] = (uptr)pages[0] | P | U;
	TLB_CONTROL = 1;
	check_eq("a store where the second refuses", start(c_store, VA, 1), X_NPF);
	check_eq("... EXITINFO1", EXITINFO1, 1ull << 32 | 7);
	check_eq("... EXITINFO2", EXITINFO2, VA);
	check_eq("... it has not been made", pages[0][0], 2000 + ROUNDS);
	roots[1][3][0] = (uptr)pages[1] | P | W | U;
	TLB_CONTROL = 1;
	check_eq("... it goes on where it was", resume(), X_VMMCALL);
	check_eq("... and is made", pages[1][0], 1);
	check_eq("... where the second level now leads", pages[0][0], 2000 + ROUNDS);
	roots[1][3][0] = 0;
	TLB_CONTROL = 1;
	check_eq("a load of what is not there", start(c_load, VA, 0), X_NPF);
	check_eq("... EXITINFO1", EXITINFO1, 1ull << 32 | 4);
	check_eq("the host has its own", read_cr3(), own);
}

/* An event that VMRUN injects, also where its delivery is refused halfway. */
static void injection(void)
{
	u32 wrong = 0;
	u64 *np = space(1, pages[0]);
	begin();
	trap_hook = count_it;
	for (unsigned k = 0; k < 20; k++) {
		taken = 0;
		EVENTINJ = 0x80000050;
		wrong += value(c_load, (uptr)pages[0], 0) != pages[0][0] || taken != 1 || (EVENTINJ >> 31 & 1);
	}
	check_eq("an interrupt that is injected", wrong, 0);
	/* One of the host's waits meanwhile: the guest is left in the handler. */
	taken = 0;
	INTERCEPTS |= I_INTR;
	VINTR = V_INTR_MASKING;
	EVENTINJ = 0x80000050;
	__asm__ volatile("clgi");
	self_interrupt();
	__asm__ volatile("sti");
	check_eq("... with one of the host's behind it", start(c_load, (uptr)pages[0], 0), X_INTR);
	check_eq("... the guest is left after its delivery", S_RIP != (uptr)l2_call && !EXITINTINFO, 1);
	__asm__ volatile("cli");
	check_eq("... the host's is taken", taken, 1);
	check_eq("... then the guest's", resume() == X_VMMCALL && taken == 2, 1);
	INTERCEPTS &= ~I_INTR;
	VINTR = 0;
	taken = 0;
	NP_ENABLE = 1;
	N_CR3 = (uptr)np;
	TLB_CONTROL = 1;
	EVENTINJ = 0x80000050;
	AT(0x488, u64) = VA + 4096; /* the IDT: not there */
	S_CR3 = (uptr)space(0, pages[0]);
	roots[0][3][1] = VA + 4096 + (P | W | U);
	check_eq("... with an IDT that the second level refuses", start(c_load, (uptr)pages[0], 0), X_NPF);
	check_eq("... EXITINTINFO", EXITINTINFO, 0x80000050);
	check_eq("... EXITINFO2", EXITINFO2, VA + 4096 + 0x500);
	check_eq("... and EVENTINJ is no longer valid", EVENTINJ >> 31 & 1, 0);
	struct dtr d;
	__asm__ volatile("sidt %0" : "=m"(d));
	AT(0x488, u64) = d.base;
	EVENTINJ = EXITINTINFO;
	check_eq("... injected again", resume(), X_VMMCALL);
	check_eq("... it is taken", taken, 1);
	trap_hook = NULL;
}

/* ---- code that changes --------------------------------------------------------------------------------------------------- */

static u8 code[4096] __attribute__((aligned(4096)));
static void put_code(u32 v)
{
	code[0] = 0xb8; /* mov eax, v; ret */
	memcpy(code + 1, &v, 4);
	code[5] = 0xc3;
}
static noinline u64 c_put(u64 v, u64 unused)
{
	put_code((u32)v);
	return 0;
}
static void changing_code(void)
{
	u32 wrong = 0;
	u64 (*f)(u64, u64) = (void *)code;
	begin();
	for (u32 k = 0; k < ROUNDS; k++) {
		put_code(k);
		wrong += value(f, 0, 0) != k || f(0, 0) != k;
		value(c_put, k + 5000, 0);
		wrong += value(f, 0, 0) != k + 5000 || f(0, 0) != k + 5000;
	}
	check_eq("code that host and guest write in turn", wrong, 0);
}

/* ---- levels of privilege in the guest ------------------------------------------------------------------------------------------- */

extern const u8 c_levels[];
__asm__(".text\n"
	"c_levels: xor %r14d, %r14d\n"
	"mov %rdi, %r12\n" /* so many times to CPL 3 and back */
	"mov %rsp, %r13\n"
	"1: lea 2f(%rip), %rcx\n"
	"mov $2, %r11d\n"
	"sysretq\n"
	"2: inc %r14\n"
	"mov %cs, %eax\n"
	"syscall\n"
	"c_back: mov %r13, %rsp\n"
	"dec %r12\n"
	"jnz 1b\n"
	"lea (%r14, %rax), %rax\n"
	"ret\n");
extern const u8 c_back[];
static void levels(void)
{
	begin();
	AT(0x4d0, u64) |= 1; /* SCE */
	u64 efer = rdmsr(EFER), star = rdmsr(STAR), lstar = rdmsr(LSTAR), fmask = rdmsr(FMASK);
	wrmsr(STAR, (u64)(UCODE32 | 3) << 48 | (u64)CODE << 32); /* which VMRUN leaves alone */
	wrmsr(LSTAR, (uptr)c_back);
	wrmsr(FMASK, 0);
	check_eq("SYSRET and SYSCALL in the guest", value((void *)c_levels, 1, 0), UCODE + 1);
	check_eq("... many of them", value((void *)c_levels, 1001, 0), UCODE + 1001);
	wrmsr(EFER, efer);
	wrmsr(STAR, star);
	wrmsr(LSTAR, lstar);
	wrmsr(FMASK, fmask);
}

int main(void)
{
	if (!is_amd() || !has(0x80000001, 2, 2)) {
		skip("AMD-V", "this processor has none");
		return 0;
	}
	wrmsr(EFER, rdmsr(EFER) | EFER_SVME);
	wrmsr(VM_HSAVE_PA, (uptr)hsave);
	apic_write(0xf0, 0x1ff);
	same_code();
	invpcid();
	tsc();
	units();
	host_interrupts();
	closed();
	virtual_interrupts();
	asids();
	nested_paging();
	injection();
	changing_code();
	levels();
	return 0;
}
