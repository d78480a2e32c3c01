/* VT-x's extended page tables: the product of rights at two levels of them with what a violation tells, every bit that makes
 * a misconfiguration at every level and those beside it that do not, accessed and dirty flags, the guest's own tables in
 * pages that cannot be written, the page-modification log, violations of an event on its way. Intel SDM vol. 3 28.3. */
#include "lib/vmx.h"

const char guest_name[] = "vmx_ept";

enum { READ = 1, WRITE = 2, FETCH = 4, PAGE_BIT = 0x80, A = 0x100, D = 0x200, WB = 6 << 3 };
enum { SPLIT = 40, NO = 7, LINEAR = 0x80, TRANSLATED = 0x100, RIGHTS = 3 };
#define AT (SPLIT * 0x200000ul + NO * 4096)   /* the page under test, 0x5007000 */
#define GIB2 0x80000000ul                     /* nothing is there */
_Static_assert(AT == 0x5007000, "the snippets'");
static u64 table[512] PAGE;
static u64 *const leaf = &table[NO], *const dir = &pd[0][SPLIT];

SNIPPET(g_read, "mov $0x5007018,%ebx; .globl g_read_at; g_read_at: mov (%rbx),%eax");
SNIPPET(g_write, "mov $0x5007018,%ebx; .globl g_write_at; g_write_at: mov %eax,(%rbx)");
SNIPPET(g_write2, "mov $0x5007018,%ebx; mov %eax,(%rbx); mov %eax,8(%rbx); .globl g_write_next; g_write_next: mov %eax,0x5008018");
SNIPPET(g_call, "mov $0x5007018,%ebx; call *%rbx");
SNIPPET(g_read_2g, "mov $0x80000018,%ebx; mov (%rbx),%eax");
SNIPPET(g_int, ".globl g_int_at; g_int_at: int $0x41");
SNIPPET(g_nops, "nop");
extern u8 g_read_at[], g_write_at[], g_write_next[], g_int_at[];

static void init(const void *code, u64 eptp_flags)
{
	ept_identity(pml4);
	for (unsigned k = 0; k < 512; k++)
		table[k] = (SPLIT * 0x200000ul + k * 4096) | WB | 7;
	*dir = at(table) | 7;
	fresh(code);
	ept_on(0, eptp_flags);
	flush();
}

/* ---- rights -------------------------------------------------------------------------------------------------- */

/* Whether an entry with these rights can be at all. */
static bool writes_alone(unsigned rights) { return (rights & 3) == WRITE; }

static u32 expected(unsigned upper, unsigned lower, unsigned access, u64 *qual)
{
	unsigned rights = upper && lower ? upper & lower : 0;
	*qual = access | rights << RIGHTS | LINEAR | TRANSLATED;
	if (writes_alone(upper) || (upper && writes_alone(lower)))
		return R_MISCONFIG;
	return rights & access ? R_VMCALL : R_EPT;
}

static void product(void)
{
	static const struct { unsigned access; const u8 *code, *rip; } t[] = {
		{ READ, g_read, g_read_at }, { WRITE, g_write, g_write_at }, { FETCH, g_call, (u8 *)AT + 0x18 },
	};
	unsigned bad = 0, n = 0;
	for (unsigned upper = 0; upper < 8; upper++)
		for (unsigned lower = 0; lower < 8; lower++)
			for (unsigned k = 0; k < ARRAY_LEN(t); k++, n++) {
				u64 qual;
				u32 want = expected(upper, lower, t[k].access, &qual);
				init(t[k].code, 0);
				*(u8 *)(AT + 0x18) = 0xc3; /* RET */
				*dir = at(table) | upper;
				*leaf = AT | WB | lower;
				u32 got = run();
				bool ok = got == want;
				if (want != R_VMCALL)
					ok &= rd(GPA) == AT + 0x18 && rd(G_RIP) == at(t[k].rip) && (rd(G_RFLAGS) & FL_RF) == (want == R_EPT ? FL_RF : rd(G_RFLAGS) & FL_RF);
				if (want == R_EPT)
					ok &= rd(QUAL) == qual && rd(GLA) == AT + 0x18;
				if (!ok && bad++ < 8)
					say("rights %x over %x, access %x: exit %x, %X, %X at %X\n", upper, lower, t[k].access, got, rd(QUAL), rd(GPA), rd(G_RIP));
			}
	check_eq(fmt("rights of two levels: %u cases", n), bad, 0);
}

/* ---- misconfigurations ------------------------------------------------------------------------------------------- */

/* Bits that must be 0 of an entry that refers to a table, and of one that maps a page. All others are left to software or
 * the processor, but for the memory type. */
#define WIDTH (0x3full << 46)
static void bits(const char *name, const void *code, u64 *entry, u64 good, u64 reserved)
{
	unsigned bad = 0;
	for (unsigned bit = 3; bit < 63; bit++) {
		u64 mask = 1ull << bit;
		bool page = good & PAGE_BIT || entry == leaf, type = page && bit < 6;
		bool address = bit >= 12 && bit < 46 && !(reserved & mask);
		if (type || address || (bit == 7 && !(reserved & mask)))
			continue;
		init(code, 0);
		*entry = good | mask;
		u32 want = reserved & mask ? R_MISCONFIG : R_VMCALL, got = run();
		if (got != want && bad++ < 4)
			say("%s, bit %u: exit %x\n", name, bit, got);
	}
	check_eq(fmt("%s: bits that must be 0", name), bad, 0);
}

static void misconfigurations(void)
{
	init(g_read, 0);
	bits("PML4E", g_read, &pml4[0], pml4[0], WIDTH | 0xf8);
	bits("PDPTE", g_read, &pdpt[0], pdpt[0], WIDTH | 0x78);
	bits("PDE", g_read, dir, at(table) | 7, WIDTH | 0x78);
	bits("PTE", g_read, leaf, AT | WB | 7, WIDTH);
	bits("PDE of 2 MiB", g_read, dir, SPLIT * 0x200000ul | PAGE_BIT | WB | 7, WIDTH | 0x1ff000);
	bits("PDPTE of 1 GiB", g_read_2g, &pdpt[2], GIB2 | PAGE_BIT | WB | 7, WIDTH | 0x3ffff000);
	for (unsigned type = 0; type < 8; type++) {
		init(g_read, 0);
		*leaf = AT | type << 3 | 7;
		check_eq(fmt("memory type %u", type), run(), type == 2 || type == 3 || type == 7 ? R_MISCONFIG : R_VMCALL);
	}
}

/* ---- flags ---------------------------------------------------------------------------------------------------------- */

static void flags(void)
{
	static const struct { const char *name; const u8 *code; u64 eptp, leaf, dir; } t[] = {
		{ "a read without accessed and dirty flags", g_read, 0, 0, 0 }, { "a write without", g_write, 0, 0, 0 },
		{ "a read with them", g_read, 1 << 6, A, A }, { "a write with them", g_write, 1 << 6, A | D, A },
	};
	for (unsigned k = 0; k < ARRAY_LEN(t); k++) {
		init(t[k].code, t[k].eptp);
		run();
		check_eq(fmt("%s: the leaf", t[k].name), *leaf & (A | D), t[k].leaf);
		check_eq(fmt("%s: above", t[k].name), *dir & (A | D), t[k].dir);
	}
	/* A walk sets the accessed flag of the guest's own PML4E: a write, with flags of EPT and without. */
	for (unsigned ad = 0; ad < 2; ad++) {
		init(g_nops, ad << 6);
		memcpy((void *)AT, (void *)(uptr)(read_cr3() & ~0xfffull), 4096);
		((u64 *)AT)[0] &= ~0x20ull;
		*leaf = AT | WB | READ;
		wr(G_CR3, AT);
		check_eq(fmt("the guest's PML4E is to be marked in a read-only page, flags %u", ad), run(), R_EPT);
		check_eq("... what it tells", rd(QUAL), READ | WRITE | READ << RIGHTS | LINEAR);
		check_eq("... the entry's address", rd(GPA), AT);
		check_eq("... the address that was translated", rd(GLA), at(g_nops));
	}
}

/* ---- the page-modification log ---------------------------------------------------------------------------------------- */

static void modification_log(void)
{
	init(g_write2, 1 << 6);
	if (!(rdmsr(0x48b) >> 32 & PML))
		return;
	set_controls(0, 0, EPT | PML);
	for (unsigned n = 0; n < 512; n++) /* what else the guest writes is dirty already */
		pd[0][n] |= n == SPLIT ? 0 : D;
	pt[at(stack) >> 12 & 511] |= D;
	memset(pml, 0, sizeof(pml));
	wr(PML_ADDR, at(pml));
	wr(PML_INDEX, 0);
	for (unsigned n = 0; n < 512; n++)
		pt[n] |= D;
	check_eq("a log of one entry: the second page is too many", run(), R_PML);
	check_eq("... before its write", rd(G_RIP), at(g_write_next));
	check_eq("... the first is there, once", pml[0], AT);
	check_eq("... the index has gone below 0", rd(PML_INDEX), 0xffff);
	check_eq("... the page is not marked", table[NO + 1] & D, 0);
	wr(PML_INDEX, 511);
	check_eq("emptied", run(), R_VMCALL);
	check_eq("... it has the second page", pml[511], AT + 4096);
	check_eq("... and no other", rd(PML_INDEX), 510);
}

/* ---- events ---------------------------------------------------------------------------------------------------------------- */

static void delivery(void)
{
	init(g_int, 0);
	*leaf = 0;
	wr(G_RSP, AT + 4096);
	check_eq("INT n whose stack is not there", run(), R_EPT);
	check_eq("... is on its way", rd(IDT_INFO), 0x80000441);
	check_eq("... at the instruction", rd(G_RIP), at(g_int_at));
	check_eq("... its length", rd(INSN_LEN), 2);
	check_eq("... RF is the interrupted code's", rd(G_RFLAGS) & FL_RF, 0);
	check_eq("... a write", rd(QUAL) & 7, WRITE);
}

int main(void)
{
	if (!vmx_there()) {
		skip("vmx_ept", "no VMX");
		return 0;
	}
	vmx_on();
	product();
	misconfigurations();
	flags();
	modification_log();
	delivery();
	return 0;
}
