/* AMD-V by a 32-bit hypervisor: nested tables of the format that its own paging has, 32-bit and PAE. AMD APM vol.
 * 2 15.25.3, 15.25.8; task switches, 15.14.1. */
#include "lib/svm.h"

const char guest_name[] = "svm32";

enum { P = 1, W = 2, U = 4, A = 0x20, D = 0x40, PS = 0x80 };
#define PAGE __attribute__((aligned(4096)))
enum { GPA = 0x5007018, SPLIT_32 = GPA >> 22, SPLIT_PAE = GPA >> 21 };

static u32 own32[1024] PAGE, nested32[1024] PAGE, table32[1024] PAGE;
static u64 own_pdpt[4] PAGE, own_pd[4][512] PAGE, nested_pdpt[4] PAGE, nested_pd[4][512] PAGE, table_pae[512] PAGE;

SNIP(rd, "mov (%eax),%ebx");
SNIP(wr, "mov %ebx,(%eax)");

SNIP(read_by_cs, "mov %cs:absent_cs,%ebx");
u32 absent_cs = 0x1234;
static void code_segment(void)
{
	vmcb_init();
	vmcb.cs.attr &= ~0x80;
	check_eq("CS that is not present in the VMCB is usable", run_at(read_by_cs), X_VMMCALL);
	check_eq("... also for reads", (u32)nested_rbx, 0x1234);
}

static void format32(void)
{
	for (u32 k = 0; k < 1024; k++) {
		own32[k] = nested32[k] = k << 22 | P | W | U | PS;
		table32[k] = SPLIT_32 << 22 | k << 12 | P | W | U;
	}
	nested32[SPLIT_32] = (uptr)table32 | P | W | U;
	write_cr4(read_cr4() | 0x10);
	write_cr3((uptr)own32);
	write_cr0(read_cr0() | 0x80000000);
}

static void format_pae(void)
{
	write_cr0(read_cr0() & 0x7fffffff);
	for (u32 k = 0; k < 2048; k++)
		own_pd[k / 512][k % 512] = nested_pd[k / 512][k % 512] = k << 21 | P | W | U | PS;
	for (u32 k = 0; k < 512; k++)
		table_pae[k] = SPLIT_PAE << 21 | k << 12 | P | W | U;
	for (u32 k = 0; k < 4; k++) {
		own_pdpt[k] = (uptr)own_pd[k] | P;
		nested_pdpt[k] = (uptr)nested_pd[k] | P;
	}
	nested_pd[0][SPLIT_PAE] = (uptr)table_pae | P | W | U;
	write_cr4(read_cr4() | 0x20);
	write_cr3((uptr)own_pdpt);
	write_cr0(read_cr0() | 0x80000000);
}

static void init(const void *root)
{
	vmcb_init();
	vmcb.cr0 &= 0x7fffffff; /* without paging of its own */
	vmcb.np = 1;
	vmcb.ncr3 = (uptr)root;
	vmcb.rax = GPA;
}

/* leaf: of GPA's page, in the low 32 bits. */
static void round(const char *name, const void *root, volatile u32 *leaf)
{
	*(volatile u32 *)GPA = 0x1111, *(volatile u32 *)(GPA + 4096) = 0x2222;
	init(root);
	check_eq(fmt("%s: exit", name), run_at(rd), X_VMMCALL);
	check_eq(fmt("%s: a read", name), (u32)nested_rbx, 0x1111);
	check_eq(fmt("%s: accessed", name), *leaf & (A | D), A);
	*leaf += 4096;
	run_at(rd);
	check_eq(fmt("%s: moved", name), (u32)nested_rbx, 0x2222);
	run_at(wr);
	check_eq(fmt("%s: dirty", name), *leaf & (A | D), A | D);
	*leaf &= ~(u32)W;
	check_eq(fmt("%s: a write: exit", name), run_at(wr), X_NPF);
	check_eq(fmt("%s: a write: EXITINFO1", name), vmcb.info1, 1ull << 32 | 7);
	check_eq(fmt("%s: a write: EXITINFO2", name), vmcb.info2, GPA);
	*leaf = 0;
	run_at(rd);
	check_eq(fmt("%s: not present: EXITINFO1", name), vmcb.info1, 1ull << 32 | 4);
}

/* What is no page of theirs. */
static void limits(const char *name, const void *root)
{
	static u64 pdpt[4] PAGE, pd[512] PAGE;
	for (u32 k = 0; k < 512; k++)
		pd[k] = k << 21 | P | W | U | PS;
	pd[SPLIT_PAE] |= 1ull << 32;
	pdpt[0] = (uptr)pd | P;
	init(root);
	vmcb.cr0 |= 0x80000000;
	vmcb.cr4 |= 0x20;
	vmcb.cr3 = (uptr)pdpt;
	check_eq(fmt("%s: a guest-physical address of 33 bits: exit", name), run_at(rd), X_NPF);
	check_eq(fmt("%s: a guest-physical address of 33 bits: EXITINFO1", name), vmcb.info1, 1ull << 32 | 4);
	check_eq(fmt("%s: a guest-physical address of 33 bits: EXITINFO2", name), vmcb.info2, 1ull << 32 | GPA);
}

static void page_size_extension(void)
{
	init(nested32);
	*(volatile u32 *)GPA = 0x1111;
	nested32[SPLIT_32] = SPLIT_32 << 22 | P | W | U | PS | 1 << 13;
	check_eq("PSE-36: exit", run_at(rd), X_VMMCALL);
	check("PSE-36: above 4 GiB", (u32)nested_rbx != 0x1111);
	nested32[SPLIT_32] = SPLIT_32 << 22 | P | W | U | PS | 1 << 21;
	run_at(rd);
	check_eq("PSE-36: bit 21", vmcb.info1, 1ull << 32 | 13);
	nested32[SPLIT_32] = (uptr)table32 | P | W | U;
}

static void pdptes(void)
{
	static u64 pdpt[4] PAGE;
	init(nested_pdpt);
	nested_pdpt[0] |= 2;
	check_eq("a reserved bit in a PDPTE: exit", run_at(rd), X_NPF);
	check_eq("a reserved bit in a PDPTE: EXITINFO1", vmcb.info1 & 9, 9);
	nested_pdpt[0] &= ~2ull;
	/* Without nested paging the guest has PDPTEs of its own, and we have ours again after the exit. */
	for (u32 k = 0; k < 4; k++)
		pdpt[k] = own_pdpt[0];
	*(volatile u32 *)GPA = 0x1111;
	vmcb_init();
	vmcb.cr3 = (uptr)pdpt;
	vmcb.rax = 0x40000000 + GPA;
	check_eq("PDPTEs of a guest: exit", run_at(rd), X_VMMCALL);
	check_eq("PDPTEs of a guest", (u32)nested_rbx, 0x1111);
	check("... and ours", *(volatile u32 *)(0x40000000 + GPA) != 0x1111);
}

/* ---- task switches ----------------------------------------------------------------------------- */

enum { OTHER_TSS = 0x78 };
SNIP(task_jump, "ljmp $0x78,$0");
SNIP(task_call, "lcall $0x78,$0");
SNIP(task_ud, "ud2");
SNIP(task_gp, "mov $0x80,%eax; mov %eax,%fs");
SNIP(task_int3, "int3");
static void tasks(void)
{
	static u64 table[16];
	static u8 tss[104] __attribute__((aligned(8)));
	vmcb_init();
	memcpy(table, (void *)(uptr)vmcb.gdtr.base, vmcb.gdtr.limit < OTHER_TSS ? vmcb.gdtr.limit + 1 : OTHER_TSS);
	table[OTHER_TSS / 8] = 0x67 | ((uptr)tss & 0xffffffull) << 16 | 0x89ull << 40 | (u64)((uptr)tss >> 24) << 56;
	vmcb.gdtr.base = (uptr)table;
	vmcb.gdtr.limit = sizeof(table) - 1;
	want(X_TASK_SWITCH);
	check_eq("a jump to a TSS: exit", run_at(task_jump), X_TASK_SWITCH);
	check_eq("a jump to a TSS: EXITINFO1", vmcb.info1, OTHER_TSS);
	check_eq("a jump to a TSS: EXITINFO2", vmcb.info2, 1ull << 38);
	check_eq("a jump to a TSS: RIP", vmcb.rip, (uptr)task_jump);
	check_eq("a call of a TSS: exit", run_at(task_call), X_TASK_SWITCH);
	check_eq("a call of a TSS: EXITINFO2", vmcb.info2, 0);
	/* Faults by way of a task gate: the old task's flags have RF. */
	static u64 gates[32];
	for (u32 k = 0; k < ARRAY_LEN(gates); k++)
		gates[k] = OTHER_TSS << 16 | 0x85ull << 40;
	vmcb.idtr.base = (uptr)gates;
	vmcb.idtr.limit = sizeof(gates) - 1;
	check_eq("#UD by a task gate: exit", run_at(task_ud), X_TASK_SWITCH);
	check_eq("#UD by a task gate: EXITINFO2", vmcb.info2, 1ull << 48);
	check_eq("#UD by a task gate: EXITINTINFO", vmcb.exitintinfo, EVENT(EV_EXCEPTION, UD));
	check_eq("#GP by a task gate: exit", run_at(task_gp), X_TASK_SWITCH);
	check_eq("#GP by a task gate: EXITINFO2", vmcb.info2, 1ull << 48 | 1ull << 44 | 0x80);
	check_eq("INT3 by a task gate: exit", run_at(task_int3), X_TASK_SWITCH);
	check_eq("INT3 by a task gate: EXITINFO2", vmcb.info2, 0);
}

int main(void)
{
	if (!svm_there()) {
		skip("svm32", "this processor has no AMD-V");
		return 0;
	}
	svm_on();
	code_segment();
	init(own32);
	vmcb.rip = (uptr)rd;
	vmrun_once();
	stgi();
	check_eq("nested paging of a hypervisor without paging", vmcb.exitcode, X_INVALID);
	format32();
	round("32-bit tables", nested32, &table32[GPA >> 12 & 1023]);
	limits("32-bit tables", nested32);
	page_size_extension();
	tasks();
	format_pae();
	limits("PAE tables", nested_pdpt);
	pdptes();
	round("PAE tables", nested_pdpt, (u32 *)&table_pae[GPA >> 12 & 511]);
	return 0;
}
