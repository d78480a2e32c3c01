/* AMD-V's nested paging: the product of rights at both levels with its error codes, accessed and dirty bits,
 * tables of the guest's that lie in pages that may not be written, large pages, reserved bits; guests without
 * paging, with 32-bit and PAE paging, in real mode; flushes by ASID; virtual VMLOAD and VMSAVE. AMD APM vol. 2
 * 15.16, 15.25, 15.33. */
#include "lib/svm.h"

const char guest_name[] = "svm_npt";

enum { P = 1, W = 2, U = 4, A = 0x20, D = 0x40, PS = 0x80 };
#define NX (1ull << 63)
#define MiB (1ull << 20)
extern u64 boot_pml4[512], boot_pd[2048];
#define PAGE __attribute__((aligned(4096)))

/* Nested: 4 GiB by 2-MiB pages, of which one is split. The page under test lies in it. */
static u64 npml4[512] PAGE, npdpt[512] PAGE, npd[4][512] PAGE, npt[512] PAGE;
/* The guest's own tables: all of 4 GiB by 2-MiB pages, WINDOW in 4-KiB pages. */
static u64 gpml4[512] PAGE, gpdpt[512] PAGE, gpd[512] PAGE, gpt[512] PAGE;
enum { SPLIT = 40, PAGE_NO = 7 };           /* the 2-MiB region at 80 MiB, and its page */
#define GPA (SPLIT * 2 * MiB + PAGE_NO * 4096ull)
#define GVA (GPA + 0x18)
static u64 *const leaf = &npt[PAGE_NO];
static u64 *const guest_leaf = &gpt[PAGE_NO];

static void tables(void)
{
	npml4[0] = (uptr)npdpt | P | W | U;
	for (unsigned k = 0; k < 4; k++)
		npdpt[k] = (uptr)npd[k] | P | W | U;
	for (unsigned k = 0; k < 2048; k++)
		npd[k / 512][k % 512] = k * 2 * MiB | P | W | U | PS;
	npd[0][SPLIT] = (uptr)npt | P | W | U;
	for (unsigned k = 0; k < 512; k++) {
		npt[k] = (SPLIT * 2 * MiB + k * 4096ull) | P | W | U;
		gpt[k] = (SPLIT * 2 * MiB + k * 4096ull) | P | W | U;
	}
	gpml4[0] = (uptr)gpdpt | P | W | U;
	gpdpt[0] = (uptr)gpd | P | W | U;
	for (unsigned k = 1; k < 4; k++)
		gpdpt[k] = k << 30 | P | W | U | PS;
	for (unsigned k = 0; k < 512; k++)
		gpd[k] = k * 2 * MiB | P | W | U | PS;
	gpd[SPLIT] = (uptr)gpt | P | W | U;
}

static void init(void)
{
	tables();
	vmcb_init();
	vmcb.np = 1;
	vmcb.ncr3 = (uptr)npml4;
	vmcb.cr3 = (uptr)gpml4;
	vmcb.icpt[2] = 1u << PF;
	vmcb.rax = GVA;
	vmcb.tlb_control = 3;
}

SNIP(rd, "mov (%rax),%rbx");
SNIP(wr, "mov %rbx,(%rax)");
SNIP(ex, "call *%rax");

/* ---- rights ------------------------------------------------------------------------------------ */

enum { READ, WRITE, FETCH };
static void product(void)
{
	static const char *const access[] = { "read", "write", "fetch" };
	const u8 *const code[] = { rd, wr, ex };
	init();
	*(u8 *)GVA = 0xc3; /* RET */
	unsigned bad = 0, n = 0;
	for (unsigned g = 0; g < 16; g++)
		for (unsigned h = 0; h < 16; h++)
			for (unsigned acc = 0; acc < 3; acc++) {
				u64 gbits = (g & 1 ? P : 0) | (g & 2 ? W : 0) | U | (g & 8 ? NX : 0);
				u64 hbits = (h & 1 ? P : 0) | (h & 2 ? W : 0) | (h & 4 ? U : 0) | (h & 8 ? NX : 0);
				init();
				*guest_leaf = GPA | gbits;
				*leaf = GPA | hbits;
				bool gok = (g & 1) && !(acc == WRITE && !(g & 2)) && !(acc == FETCH && (g & 8));
				bool hok = (h & 1) && (h & 4) && !(acc == WRITE && !(h & 2)) && !(acc == FETCH && (h & 8));
				u64 info = (h & 1 ? 1 : 0) | 4 | (acc == WRITE ? 2 : 0) | (acc == FETCH ? 16 : 0) | 1ull << 32;
				run_at(code[acc]);
				u64 want_code = !gok ? X_EXCEPTION + PF : !hok ? X_NPF : X_VMMCALL;
				bool ok = vmcb.exitcode == want_code;
				if (ok && gok && !hok)
					ok = vmcb.info1 == info && vmcb.info2 == GVA;
				/* Accessed and dirty bits of both, once each level has let it through. */
				ok &= (*guest_leaf & (A | D)) == (gok ? (acc == WRITE ? A | D : A) : 0);
				ok &= (*leaf & (A | D)) == (gok && hok ? (acc == WRITE ? A | D : A) : 0);
				n++;
				if (!ok && bad++ < 8)
					say("%s, guest %X, nested %X: exit %X, %X, %X; entries %X, %X\n", access[acc], gbits, hbits, vmcb.exitcode,
					    vmcb.info1, vmcb.info2, *guest_leaf, *leaf);
			}
	check_eq(fmt("rights of both levels: %u cases", n), bad, 0);
}

static void error_codes(void)
{
	init();
	*leaf = GPA | P | W | U | 1ull << 51;
	run_at(rd);
	check_eq("a reserved bit: exit", vmcb.exitcode, X_NPF);
	check_eq("a reserved bit: EXITINFO1", vmcb.info1, 1ull << 32 | 8 | 4 | 1);
	/* The guest's own tables: read as a write. */
	npd[0][0] = 0 | P | W | U | PS;
	init();
	static u64 spt[512] PAGE;
	u64 region = (uptr)gpml4 >> 21;
	for (unsigned k = 0; k < 512; k++)
		spt[k] = region << 21 | (u64)k << 12 | P | W | U;
	npd[0][region] = (uptr)spt | P | W | U;
	u64 *own = &spt[(uptr)gpt >> 12 & 511];
	*own &= ~(u64)W;
	check_eq("a table in a read-only page: exit", run_at(rd), X_NPF);
	check_eq("a table in a read-only page: EXITINFO1", vmcb.info1, 1ull << 33 | 7);
	check_eq("a table in a read-only page: EXITINFO2", vmcb.info2, (uptr)guest_leaf);
	*own |= W;
	check_eq("mended", run_at(rd), X_VMMCALL);
	check("tables' pages are dirty", (*own & (A | D)) == (A | D));
	*own &= ~(u64)W; /* by now there is nothing to be set in them */
	vmcb.tlb_control = 3;
	check_eq("a table in a read-only page, accessed: exit", run_at(rd), X_NPF);
	check_eq("a table in a read-only page, accessed: EXITINFO1", vmcb.info1, 1ull << 33 | 7);
	npml4[0] |= PS;
	check_eq("PS in a PML4E", (run_at(rd), vmcb.info1), 1ull << 33 | 15);
	init();
	npd[0][SPLIT] = SPLIT * 2 * MiB | P | W | U | PS | 1 << 13;
	check_eq("2 MiB, bit 13", (run_at(rd), vmcb.info1), 1ull << 32 | 13);
	/* Without NXE there is no NX, and a fetch is not told from a read. */
	u64 efer = rdmsr(EFER);
	init();
	wrmsr(EFER, efer & ~0x800ull);
	*leaf |= NX;
	check_eq("NX without EFER.NXE", (run_at(rd), vmcb.info1), 1ull << 32 | 13);
	*leaf = 0;
	check_eq("a fetch without EFER.NXE", (run_at(ex), vmcb.info1), 1ull << 32 | 4);
	wrmsr(EFER, efer);
	check_eq("a fetch with it", (run_at(ex), vmcb.info1), 1ull << 32 | 20);
	/* Bytes of the instruction, and none for a fetch. */
	init();
	run_at(rd); /* VMMCALL has a next RIP */
	*leaf = 0;
	run_at(rd);
	check_eq("NPF after another exit: no next RIP", vmcb.nrip, 0);
	check("NPF: bytes of the instruction", vmcb.n_bytes == 15 && !memcmp(vmcb.bytes, rd, 15));
	run_at(ex);
	check_eq("NPF of a fetch: none", vmcb.n_bytes, 0);
	check_eq("NPF of a fetch: RIP", vmcb.rip, GVA);
}

/* ---- sizes -------------------------------------------------------------------------------------------- */

static void sizes(void)
{
	volatile u64 *there = (u64 *)GVA, *other = (u64 *)(GVA + 4096);
	init();
	*there = 0x1111, *other = 0x2222;
	gpd[SPLIT] = SPLIT * 2 * MiB | P | W | U | PS; /* 2 MiB over nested 4 KiB */
	*leaf = (GPA + 4096) | P | W | U;
	run_at(rd);
	check_eq("2 MiB over 4 KiB", nested_rbx, 0x2222);
	vmcb.rax = GVA + 4096;
	run_at(rd);
	check_eq("... its other page", nested_rbx, 0x2222);
	init();
	npd[0][SPLIT] = SPLIT * 2 * MiB | P | W | U | PS; /* 4 KiB over nested 2 MiB */
	*guest_leaf = (GPA + 4096) | P | W | U;
	run_at(rd);
	check_eq("4 KiB over 2 MiB", nested_rbx, 0x2222);
	init();
	npdpt[0] = 0 | P | W | U | PS;
	run_at(rd);
	check_eq("over 1 GiB", nested_rbx, 0x1111);
}

/* INVLPG of the guest's ends all of its page, whatever the nested ones are. */
SNIP(inv, "mov (%rax),%rbx; mov 4096(%rax),%rcx; mov nested_pd_entry,%rdx; mov nested_pd_value,%rsi; mov %rsi,(%rdx); invlpg (%rax); mov 4096(%rax),%rcx");
u64 nested_pd_entry, nested_pd_value;
static void invalidation(void)
{
	init();
	*(volatile u64 *)(GVA + 4096) = 0x2222;
	*(volatile u64 *)(GVA + 2 * MiB + 4096) = 0x3333;
	gpd[SPLIT] = SPLIT * 2 * MiB | P | W | U | PS;
	nested_pd_entry = (uptr)&gpd[SPLIT];
	nested_pd_value = (SPLIT + 1) * 2 * MiB | P | W | U | PS;
	check_eq("INVLPG: exit", run_at(inv), X_VMMCALL);
	check_eq("INVLPG of a large page over small ones", nested_rcx, 0x3333);
	/* By ASID. */
	init();
	*(volatile u64 *)GVA = 0x1111;
	vmcb.tlb_control = 0;
	vmcb.asid = 5;
	run_at(rd);
	*leaf = (GPA + 4096) | P | W | U;
	vmcb.tlb_control = 3;
	run_at(rd);
	check_eq("flush by ASID", nested_rbx, 0x2222);
	*leaf = GPA | P | W | U;
	vmcb.tlb_control = 1;
	run_at(rd);
	check_eq("flush of all", nested_rbx, 0x1111);
	*leaf = (GPA + 4096) | P | W | U;
	vmcb.tlb_control = 7;
	run_at(rd);
	check_eq("flush by ASID but for global ones", nested_rbx, 0x2222);
	*leaf = GPA | P | W | U;
	vmcb.tlb_control = 1;
	run_at(rd);
	vmcb.tlb_control = 0;
	vmcb.asid = 6;
	*leaf = (GPA + 4096) | P | W | U;
	run_at(rd);
	check_eq("another ASID", nested_rbx, 0x2222);
	*leaf = GPA | P | W | U;
	__asm__ volatile("invlpga" : : "a"(GVA), "c"(6) : "memory");
	run_at(rd);
	check_eq("INVLPGA", nested_rbx, 0x1111);
	/* Another nested root is another space. */
	static u64 root[512] PAGE;
	memcpy(root, npml4, 4096);
	static u64 pdpt[512] PAGE, pd[512] PAGE, pt[512] PAGE;
	memcpy(pdpt, npdpt, 4096), memcpy(pd, npd[0], 4096), memcpy(pt, npt, 4096);
	root[0] = (uptr)pdpt | P | W | U, pdpt[0] = (uptr)pd | P | W | U, pd[SPLIT] = (uptr)pt | P | W | U;
	pt[PAGE_NO] = (GPA + 4096) | P | W | U;
	vmcb.ncr3 = (uptr)root;
	run_at(rd);
	check_eq("another nCR3", nested_rbx, 0x2222);
	vmcb.ncr3 = (uptr)npml4;
	run_at(rd);
	check_eq("... and back", nested_rbx, 0x1111);
}

/* ---- other guests -------------------------------------------------------------------------------------- */

/* 32-bit code: reads at EAX. */
extern const u8 rd32[], rd16[];
__asm__(".pushsection .text\n.code32\n.globl rd32\nrd32: mov (%eax),%ebx; vmmcall; hlt\n"
	".code16\n.globl rd16\nrd16: mov %ds:(0x18),%bx; vmmcall; hlt\n.code64\n.popsection");

static void guest32(u64 cr0_pg, u64 cr4, u64 cr3)
{
	vmcb.efer &= ~0x500ull;
	vmcb.cr0 = (vmcb.cr0 & ~0x80000000ull) | cr0_pg;
	vmcb.cr4 = cr4;
	vmcb.cr3 = cr3;
	vmcb.cs = vmcb_flat(0x18, 0xc9b);
	nested_rbx = 0;
	run_at(rd32);
}

static void modes(void)
{
	static u32 pd32[1024] PAGE;
	static u64 pdpt[4] PAGE, pd[4][512] PAGE;
	*(volatile u64 *)GVA = 0x1111, *(volatile u64 *)(GVA + 4096) = 0x2222;
	for (unsigned k = 0; k < 1024; k++)
		pd32[k] = k << 22 | P | W | U | PS;
	for (unsigned k = 0; k < 2048; k++)
		pd[k / 512][k % 512] = k * 2 * MiB | P | W | U | PS;
	for (unsigned k = 0; k < 4; k++)
		pdpt[k] = (uptr)pd[k] | P;
	init();
	*leaf = (GPA + 4096) | P | W | U;
	guest32(0, 0, 0);
	check_eq("no paging: exit", vmcb.exitcode, X_VMMCALL);
	check_eq("no paging", nested_rbx, 0x2222);
	guest32(0x80000000, 0x10, (uptr)pd32);
	check_eq("32-bit paging: exit", vmcb.exitcode, X_VMMCALL);
	check_eq("32-bit paging", nested_rbx, 0x2222);
	guest32(0x80000000, 0x20, (uptr)pdpt);
	check_eq("PAE: exit", vmcb.exitcode, X_VMMCALL);
	check_eq("PAE", nested_rbx, 0x2222);
	pdpt[0] |= 1ull << 52;
	guest32(0x80000000, 0x20, (uptr)pdpt);
	check_eq("PAE: a reserved bit of a PDPTE, when it is walked", vmcb.exitcode, X_EXCEPTION + PF);
	pdpt[0] &= ~(1ull << 52);
	vmcb.np = 0;
	pdpt[3] |= 1ull << 52;
	guest32(0x80000000, 0x20, (uptr)pdpt);
	check_eq("PAE without nested paging: VMRUN looks at them", vmcb.exitcode, X_INVALID);
	pdpt[3] &= ~(1ull << 52);
	guest32(0x80000000, 0x20, (uptr)pdpt);
	check_eq("PAE without nested paging", nested_rbx, 0x1111);
	/* Real mode, with and without paging (15.19). */
	init();
	*leaf = (GPA + 4096) | P | W | U;
	memcpy((void *)0x8000, rd16, 16);
	for (unsigned paged = 0; paged < 2; paged++) {
		vmcb.efer &= ~0x500ull;
		vmcb.cr0 = 0x10 | (paged ? 0x80000000u : 0);
		vmcb.cr4 = 0x10;
		vmcb.cr3 = (uptr)pd32;
		vmcb.cs = (struct vmcb_seg){ 0x800, 0x9b, 0xffff, 0x8000 };
		vmcb.ds = (struct vmcb_seg){ 0, 0x93, 0xffff, GPA };
		vmcb.ss = (struct vmcb_seg){ 0, 0x93, 0xffff, 0 };
		nested_rbx = 0;
		vmcb.rip = 0;
		vmcb.rsp = 0x7000;
		vmrun_once();
		stgi();
		check_eq(fmt("real mode, paging %u: exit", paged), vmcb.exitcode, X_VMMCALL);
		check_eq(fmt("real mode, paging %u", paged), nested_rbx & 0xffff, 0x2222);
	}
}

/* ---- virtual VMLOAD and VMSAVE --------------------------------------------------------------------------- */

SNIP(vmsave_there, "and $~0xfff,%rax; .globl vmsave_at; vmsave_at: vmsave");
extern const u8 vmsave_at[];
static void vmload_vmsave(void)
{
	struct vmcb *there = (struct vmcb *)GPA, *other = (struct vmcb *)(GPA + 4096);
	memset(there, 0, 2 * sizeof(*there));
	init();
	*leaf = (GPA + 4096) | P | W | U;
	check_eq("VMSAVE: a physical address", (run_at(vmsave_there), vmcb.exitcode), X_VMMCALL);
	check("... that is not translated", there->tr.sel == TSS_SEL && !other->tr.sel);
	memset(there, 0, 2 * sizeof(*there));
	vmcb.virt_ext = 2;
	vmcb.rax = GVA;
	check_eq("virtual VMSAVE", (run_at(vmsave_there), vmcb.exitcode), X_VMMCALL);
	check("... is translated", !there->tr.sel && other->tr.sel == TSS_SEL);
	*leaf = 0;
	vmcb.rax = GVA;
	vmcb.tlb_control = 3;
	check_eq("... and faults", run_at(vmsave_there), X_NPF);
	check_eq("... at the instruction", vmcb.rip, (uptr)vmsave_at);
	*leaf = GPA | P | W | U;
}

int main(void)
{
	if (!svm_there()) {
		skip("svm_npt", "this processor has no AMD-V");
		return 0;
	}
	svm_on();
	product();
	error_codes();
	sizes();
	invalidation();
	modes();
	vmload_vmsave();
	return 0;
}
