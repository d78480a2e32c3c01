/* AMD-V by a 32-bit hypervisor: nested tables of the format that its own paging has, 32-bit and PAE. AMD APM vol.
 * 2 15.25.3, 15.25.8. */
#include "lib/svm.h"

const char guest_name[] = "svm32";

enum { P = 1, W = 2, U = 4, A = 0x20, D = 0x40, PS = 0x80 };
#define PAGE __attribute__((aligned(4096)))
enum { GPA = 0x5007018, SPLIT_32 = GPA >> 22, SPLIT_PAE = GPA >> 21 };

static u32 own32[1024] PAGE, nested32[1024] PAGE, table32[1024] PAGE;
static u64 own_pdpt[4] PAGE, own_pd[4][512] PAGE, nested_pdpt[4] PAGE, nested_pd[4][512] PAGE, table_pae[512] PAGE;

SNIP(rd, "mov (%eax),%ebx");
SNIP(wr, "mov %ebx,(%eax)");

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

int main(void)
{
	if (!svm_there()) {
		skip("svm32", "this processor has no AMD-V");
		return 0;
	}
	svm_on();
	init(own32);
	vmcb.rip = (uptr)rd;
	vmrun_once();
	stgi();
	check_eq("nested paging of a hypervisor without paging", vmcb.exitcode, X_INVALID);
	format32();
	round("32-bit tables", nested32, &table32[GPA >> 12 & 1023]);
	format_pae();
	round("PAE tables", nested_pdpt, (u32 *)&table_pae[GPA >> 12 & 511]);
	return 0;
}
