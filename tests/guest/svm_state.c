/* AMD-V: what planted faults got past svm.c, svm_events.c and svm_npt.c: CPL, bitmaps, debug registers, segments that
 * are null, addresses that are not canonical, bytes of the instruction, rights of VMSAVE and of fetches. AMD APM vol. 2
 * 15.5, 15.11, 15.25, 15.33. */
#include "lib/svm.h"

const char guest_name[] = "svm_state";

enum { P = 1, W = 2, U = 4, PS = 0x80 };
#define MiB (1ul << 20)
#define PAGE __attribute__((aligned(4096)))
/* Nested: 4 GiB by 2-MiB pages, of which one is split; the guest's own tables the same. */
static u64 npml4[512] PAGE, npdpt[512] PAGE, npd[4][512] PAGE, npt[512] PAGE;
static u64 gpml4[512] PAGE, gpdpt[512] PAGE, gpd[4][512] PAGE, gpt[512] PAGE;
enum { SPLIT = 40, NO = 7 };
#define AT (SPLIT * 2 * MiB + NO * 4096)

static void identity(u64 *root, u64 *pdpt, u64 pd[4][512], u64 *pt)
{
	root[0] = (uptr)pdpt | P | W | U;
	for (unsigned k = 0; k < 4; k++)
		pdpt[k] = (uptr)pd[k] | P | W | U;
	for (unsigned k = 0; k < 2048; k++)
		pd[k / 512][k % 512] = k * 2 * MiB | P | W | U | PS;
	pd[0][SPLIT] = (uptr)pt | P | W | U;
	for (unsigned k = 0; k < 512; k++)
		pt[k] = (SPLIT * 2 * MiB + k * 4096) | P | W | U;
}

static void init(void)
{
	identity(npml4, npdpt, npd, npt);
	identity(gpml4, gpdpt, gpd, gpt);
	vmcb_init();
	vmcb.np = 1;
	vmcb.ncr3 = (uptr)npml4;
	vmcb.cr3 = (uptr)gpml4;
	vmcb.tlb_control = 3;
}

/* ---- registers -------------------------------------------------------------------------------------- */

SNIP(privileged, "mov %cr0,%rax");
SNIP(get_dr6, "mov %dr6,%rbx");
SNIP(store_gdtr, "sgdt tables(%rip)");
SNIP(null_ds, "xor %eax,%eax; mov %eax,%ds");
struct dtr tables;

static void registers(void)
{
	u32 r[4];
	cpuid(0x80000008, 0, r);
	const u64 top = 1ull << ((r[0] >> 8 & 0xff) - 1);
	vmcb_init();
	vmcb.cs.sel = CODE | 3;
	check_eq("CPL is the VMCB's, 0: a privileged instruction", run_at(privileged), X_VMMCALL);
	vmcb_init();
	want(X_EXCEPTION + GP);
	vmcb.cpl = 3;
	check_eq("... and 3", run_at(privileged), X_EXCEPTION + GP);
	check_eq("... saved", vmcb.cpl, 3);
	vmcb_init();
	vmcb.dr6 = 0xffff4ff1;
	run_at(get_dr6);
	check_eq("DR6 of the guest", nested_rbx, 0xffff4ff1);
	vmcb_init();
	vmcb.gdtr.base = top;
	run_at(store_gdtr);
	check_eq("a base that is not canonical is made so", tables.base, -top);
	vmcb_init();
	run_at(null_ds);
	check_eq("a null DS is not present", vmcb.ds.attr & 0x80, 0);
	vmcb_init();
	vmcb.cs.attr &= ~0x80;
	check_eq("CS that is not present: usable", run_at(privileged), X_VMMCALL);
}

/* ---- debug exceptions ---------------------------------------------------------------------------------- */

SNIP(step, "pushf; orl $0x100,(%rsp); popf; nop");
u16 ss_word = DATA;
static bool on_db(struct frame *f) { return f->vec == DB; }

static void debug(void)
{
	vmcb_init();
	want(X_EXCEPTION + DB);
	vmcb.virt_ext = 1;
	vmcb.debugctl = 1;
	check_eq("#DB exits", run_at(step), X_EXCEPTION + DB);
	check_eq("... branches are no longer recorded, as in its handler", vmcb.debugctl, 0);
	/* A breakpoint that our MOV SS meets just before VMRUN is none of the guest's. */
	vmcb_init();
	want(X_EXCEPTION + DB);
	trap_hook = on_db;
	write_dr0((uptr)&ss_word);
	write_dr7(0x401 | 3 << 16 | 1 << 18);
	vmcb.rip = (uptr)privileged;
	__asm__ volatile("push %%rbp; push %%rbx; push %%r12; push %%r13; push %%r14; push %%r15\n"
			 "mov ss_word,%%ss; vmrun\n"
			 "pop %%r15; pop %%r14; pop %%r13; pop %%r12; pop %%rbx; pop %%rbp"
			 : : "a"(&vmcb) : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory", "cc");
	stgi();
	write_dr7(0x400);
	trap_hook = NULL;
	check_eq("a breakpoint of MOV SS before VMRUN", vmcb.exitcode, X_VMMCALL);
}

/* ---- virtual interrupts --------------------------------------------------------------------------------- */

static void priorities(void)
{
	for (unsigned priority = 2; priority <= 4; priority++) {
		vmcb_init();
		want(X_VINTR);
		vmcb.rflags = 0x202;
		vmcb.vintr = V_INTR_MASKING | V_IRQ | priority * V_PRIO | 3;
		check_eq(fmt("a virtual interrupt of priority %u, V_TPR 3", priority), run_at(privileged), priority > 3 ? X_VINTR : X_VMMCALL);
	}
}

/* ---- the map of MSRs --------------------------------------------------------------------------------- */

SNIP(read_low, "mov $0x117,%ecx; rdmsr");
SNIP(read_high, "mov $0xc0000117,%ecx; rdmsr");
SNIP(read_amd, "mov $0xc0010117,%ecx; rdmsr");
static void map(void)
{
	const u8 *const code[] = { read_low, read_high, read_amd };
	for (unsigned range = 0; range < 3; range++)
		for (unsigned marked = 0; marked < 3; marked++) {
			vmcb_init();
			memset(msrpm, 0, sizeof(msrpm));
			msrpm[0x800 * marked + 0x117 / 4] = 1 << 0x117 % 4 * 2;
			want(X_MSR);
			want(X_EXCEPTION + GP);
			u64 x = run_at(code[range]);
			check(fmt("RDMSR of range %u, range %u marked", range, marked), (x == X_MSR) == (range == marked));
		}
	memset(msrpm, 0, sizeof(msrpm));
}

/* ---- nested faults --------------------------------------------------------------------------------------- */

SNIP(interrupt, "int $0x41");
SNIP(save, "mov $" STR(0x5007000) ",%eax; vmsave");
SNIP(call, "mov $" STR(0x5007000) ",%eax; call *%rax");
_Static_assert(AT == 0x5007000, "the snippets'");

static void bytes(void)
{
	static const u8 mov[] = { 0x48, 0x8b, 0x18 }; /* mov (%rax),%rbx */
	init();
	u8 *end = (u8 *)AT + 4096 - sizeof(mov);
	memset((u8 *)AT + 4096, 0x90, 16);
	memset((u8 *)AT + 2 * 4096, 0xcc, 16);
	memcpy(end, mov, sizeof(mov));
	for (unsigned how = 0; how < 3; how++) {
		init();
		gpt[NO + 1] = how == 0 ? 0 : (AT + how * 4096) | P | W | U;
		npt[NO + 4] = 0;
		vmcb.rax = AT + 4 * 4096;
		check_eq("a nested fault at the end of a page", run_at(end), X_NPF);
		check_eq("... how many bytes there are", vmcb.n_bytes, how ? 15 : sizeof(mov));
		check("... the instruction's", !memcmp(vmcb.bytes, mov, sizeof(mov)));
		if (how)
			check_eq("... and those of the page that comes next", vmcb.bytes[3], how == 1 ? 0x90 : 0xcc);
	}
	/* The event's stack is not there: its bytes would be those of another instruction. */
	init();
	npt[NO] = 0;
	vmcb.rip = (uptr)interrupt;
	vmcb.rsp = AT + 4096;
	vmrun_once();
	stgi();
	check_eq("a nested fault of INT n's stack", vmcb.exitcode, X_NPF);
	check_eq("... on its way", vmcb.exitintinfo, EVENT(EV_SOFT, 0x41));
	check_eq("... no bytes", vmcb.n_bytes, 0);
}

static void rights(void)
{
	init();
	vmcb.virt_ext = 2;
	npt[NO] = AT | P | U;
	check_eq("virtual VMSAVE to a page that cannot be written", run_at(save), X_NPF);
	check_eq("... is a write", vmcb.info1, 1ull << 32 | 7);
	/* A fetch is told where NX or the host's SMEP is on. */
	if (!has(7, 1, 7))
		return;
	enum { SMEP = 1 << 20 };
	extern u64 boot_pd[2048];
	u64 efer = rdmsr(EFER);
	wrmsr(EFER, efer & ~0x800ull);
	for (unsigned smep = 0; smep < 2; smep++) {
		init();
		npt[NO] = 0;
		for (unsigned k = 0; k < 8; k++) /* with SMEP our pages are the supervisor's */
			boot_pd[k] = (u64)k << 21 | (smep ? 0xe3 : 0xe7);
		write_cr3(read_cr3());
		write_cr4(read_cr4() | (smep ? SMEP : 0));
		u64 code = run_at(call);
		write_cr4(read_cr4() & ~(u64)SMEP);
		check_eq("a fetch without NX", code, X_NPF);
		check_eq(fmt("... is told, SMEP %u", smep), vmcb.info1, 1ull << 32 | 4 | (smep ? 16 : 0));
	}
	wrmsr(EFER, efer);
}

int main(void)
{
	if (!svm_there()) {
		skip("svm_state", "this processor has no AMD-V");
		return 0;
	}
	svm_on();
	registers();
	debug();
	priorities();
	map();
	bytes();
	rights();
	return 0;
}
