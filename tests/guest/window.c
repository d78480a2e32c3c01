/* User programs whose memory changes under them: mappings, rights, dirty bits, address spaces, code, large
 * pages, devices; accesses over the edges of pages and of 512 GiB. What an engine that keeps user memory mapped
 * on the host (bt/window.c) could get wrong. SDM vol. 3 4.7, 4.8, 4.10. */
#include "guest.h"

const char guest_name[] = "window";

enum { P = 1, W = 2, U = 4, A = 0x20, D = 0x40, BIG = 0x80 };
#define NX (1ull << 63)
/* A program's addresses: low, of a position-independent program, of its libraries; the second 512 GiB. */
#define LOW 0x1000000000ull
#define PIE 0x555555400000ull
#define LIB 0x7f8040200000ull
#define EDGE 0x8000000000ull
#define PAGES 64

extern u64 boot_pml4[512], boot_pdpt[512];
static u64 tables[64][512] __attribute__((aligned(4096)));
static unsigned n_tables;
static u8 ram[PAGES + 8][4096] __attribute__((aligned(4096)));
static u8 large[2 << 20] __attribute__((aligned(2 << 20)));

/* ---- paging ------------------------------------------------------------------------------------------- */

static u64 *next_level(u64 *e)
{
	if (!(*e & P)) {
		if (n_tables == ARRAY_LEN(tables))
			die("no more tables");
		memset(tables[n_tables], 0, 4096);
		*e = (uptr)tables[n_tables++] | P | W | U | A;
	}
	return (u64 *)(uptr)(*e & 0xffffffffff000ull);
}

static u64 *pde_of(u64 *root, u64 va) { return &next_level(&next_level(&root[va >> 39 & 511])[va >> 30 & 511])[va >> 21 & 511]; }
static u64 *pte_of(u64 va) { return &next_level(pde_of(boot_pml4, va))[va >> 12 & 511]; }
static void map(u64 va, const void *to, u64 bits) { *pte_of(va) = (uptr)to | bits; }
static void invlpg(u64 va) { __asm__ volatile("invlpg (%0)" : : "r"(va) : "memory"); }
static void flush(void) { write_cr3(read_cr3()); }

/* ---- user code ------------------------------------------------------------------------------------------ */

extern const u8 u_call[];
__asm__(".text\nu_call: call *%rax\nint $0x80\n");

/* f(a, b, c) at CPL 3. Its value is in trap.f.ax. */
static int call(void *f, u64 a, u64 b, u64 c)
{
	struct regs g = user_regs(u_call);
	g.ax = (uptr)f;
	g.di = a;
	g.si = b;
	g.dx = c;
	return go(&g);
}
static u64 value(void *f, u64 a, u64 b, u64 c) { return call(f, a, b, c) == DONE ? trap.f.ax : ~0ull - (u64)trap.vec; }

static noinline u64 u_sum(const u64 *p, u64 n, u64 step)
{
	u64 sum = 0;
	for (u64 k = 0; k < n; k++)
		sum = sum * 3 + *(const volatile u64 *)((uptr)p + k * step);
	return sum;
}
static noinline u64 u_load(const u64 *p) { return *(const volatile u64 *)p; }
static noinline u64 u_store(u64 *p, u64 v) { *(volatile u64 *)p = v; return 1; }
static noinline u64 u_add(u64 *p, u64 v, u64 times)
{
	for (u64 k = 0; k < times; k++)
		*(volatile u64 *)p += v;
	return *(volatile u64 *)p;
}
/* The same load goes to each of n places, again and again. */
static noinline u64 u_here_and_there(u64 *const *places, u64 n, u64 times)
{
	u64 sum = 0;
	for (u64 k = 0; k < times; k++)
		sum = sum * 5 + *(volatile u64 *)places[k % n];
	return sum;
}
/* Several accesses by one register. */
static noinline u64 u_fields(volatile u64 *p, u64 far)
{
	p[0]++;
	p[1] += p[0];
	p[2] = p[1] ^ p[3];
	return p[2] + *(volatile u64 *)((uptr)p + far) + p[511];
}
extern u64 u_near(u64 base), u_below(u64 base); /* one base, places around it */
extern u64 u_both(u64 base), u_leave(u64 frame, u64 times), u_index(u64 p, u64 times), u_rbp(u64 p, u64 times);
__asm__(".text\nu_both: mov (%rdi),%rax\nmov 0x1030(%rdi),%ecx\nadd %rcx,%rax\nret\n"
	"u_leave: push %rbp\nmov %rsp,%rdx\n1: mov %rdi,%rbp\nleave\nmov %rbp,%rax\nmov %rdx,%rsp\ndec %rsi\njnz 1b\npop %rbp\nret\n"
	"u_index: sub %rsp,%rdi\n1: mov (%rsp,%rdi),%rax\ndec %rsi\njnz 1b\nret\n"
	"u_rbp: push %rbp\nmov %rdi,%rbp\n1: mov (%rbp),%rax\ndec %rsi\njnz 1b\npop %rbp\nret\n");
__asm__(".text\nu_near: mov (%rdi),%rax\nadd 0x2000(%rdi),%rax\nmov 8(%rdi),%rcx\nlea (%rax,%rcx,2),%rax\nret\n"
	"u_below: mov -0x40000000(%rdi),%rax\nadd (%rdi),%rax\nret\n");

static void fill_ram(void)
{
	for (unsigned k = 0; k < PAGES + 8; k++)
		for (unsigned n = 0; n < 512; n++)
			((u64 *)ram[k])[n] = k * 0x10001ull + n * 0x100000001ull;
}
static u64 sum_of(unsigned first, int by, u64 off)
{
	u64 sum = 0;
	for (unsigned k = 0; k < PAGES; k++)
		sum = sum * 3 + *(u64 *)(ram[first + (unsigned)((int)k * by)] + off);
	return sum;
}

/* ---- mappings that change --------------------------------------------------------------------------------- */

static void changes(u64 va, const char *name)
{
	for (unsigned k = 0; k < PAGES; k++)
		map(va + k * 4096, ram[PAGES - 1 - k], P | W | U);
	flush();
	check_eq(fmt("%s: pages in reverse", name), value(u_sum, va + 16, PAGES, 4096), sum_of(PAGES - 1, -1, 16));
	check_eq(fmt("%s: once more", name), value(u_sum, va + 24, PAGES, 4096), sum_of(PAGES - 1, -1, 24));
	map(va + 3 * 4096, ram[PAGES], P | W | U);
	invlpg(va + 3 * 4096);
	check_eq(fmt("%s: another page after INVLPG", name), value(u_load, va + 3 * 4096 + 8, 0, 0), *(u64 *)(ram[PAGES] + 8));
	for (unsigned k = 0; k < PAGES; k++)
		map(va + k * 4096, ram[k], P | W | U);
	flush();
	check_eq(fmt("%s: others after MOV CR3", name), value(u_sum, va, PAGES, 4096), sum_of(0, 1, 0));
	map(va, NULL, 0);
	invlpg(va);
	check(fmt("%s: gone", name), call(u_load, va + 40, 0, 0) == PF && trap.cr2 == va + 40 && trap.err == 4);
	map(va, ram[0], P | W | U);
	check_eq(fmt("%s: there without a flush", name), value(u_load, va + 40, 0, 0), *(u64 *)(ram[0] + 40));
}

static void rights(u64 va, const char *name)
{
	for (unsigned how = 0; how < 2; how++) {
		map(va, ram[0], P | W | U);
		flush();
		check_eq(fmt("%s: a store", name), value(u_store, va + 64, 5, 0), 1);
		map(va, ram[0], P | U | A | D);
		how ? invlpg(va) : flush();
		check(fmt("%s: read-only after it", name), call(u_store, va + 64, 6, 0) == PF && trap.err == 7 && trap.cr2 == va + 64);
		check_eq(fmt("%s: can be read", name), value(u_load, va + 64, 0, 0), 5);
		map(va, ram[0], P | W);
		how ? invlpg(va) : flush();
		check(fmt("%s: the kernel's", name), call(u_load, va + 64, 0, 0) == PF && trap.err == 5);
		map(va, ram[0], P | W | U);
		how ? invlpg(va) : flush();
		check_eq(fmt("%s: not dirty by a load", name), value(u_load, va + 64, 0, 0) == 5 && (*pte_of(va) & (A | D)) == A, true);
		value(u_store, va + 64, 7, 0);
		check(fmt("%s: dirty by a store", name), *pte_of(va) & D);
		*pte_of(va) &= ~(u64)(A | D);
		how ? invlpg(va) : flush();
		value(u_store, va + 64, 8, 0);
		check(fmt("%s: dirty once more", name), (*pte_of(va) & (A | D)) == (A | D));
	}
}

/* ---- edges ----------------------------------------------------------------------------------------------------- */

static void edges(void)
{
	map(LIB, ram[5], P | W | U);
	map(LIB + 4096, ram[2], P | W | U);
	map(LIB + 8192, NULL, 0);
	flush();
	memset(ram[5] + 4092, 0x11, 4);
	memset(ram[2], 0x22, 4);
	check_eq("over a page's edge", value(u_load, LIB + 4092, 0, 0), 0x2222222211111111);
	value(u_store, LIB + 4091, 0x0807060504030201, 0);
	check("a store there", ram[5][4091] == 1 && ram[5][4095] == 5 && ram[2][0] == 6 && ram[2][2] == 8);
	*(u32 *)(ram[2] + 4092) = 77;
	check("into a page that is not there", call(u_store, LIB + 8192 - 4, ~0ull, 0) == PF && trap.cr2 == LIB + 8192 && trap.err == 6);
	check_eq("nothing was stored", *(u32 *)(ram[2] + 4092), 77);
	check_eq("a sum over an edge, many times", (*(u64 *)(ram[5] + 4093) = 0, memset(ram[2], 0, 8), value(u_add, LIB + 4093, 3, 100)), 300);

	map(EDGE - 4096, ram[9], P | W | U);
	map(EDGE, ram[4], P | W | U);
	map(EDGE + 4096, ram[6], P | W | U);
	flush();
	memset(ram[9] + 4092, 0x33, 4);
	memset(ram[4], 0x44, 4);
	check_eq("over the edge of 512 GiB", value(u_load, EDGE - 4, 0, 0), 0x4444444433333333);
	u64 *a = (u64 *)ram[9], *b = (u64 *)ram[4];
	a[0] = 1, a[1] = 100, *(u64 *)ram[6] = 20;
	*(u64 *)(ram[4] + 0) = 9;
	b[1] = 5;
	for (unsigned k = 0; k < 20; k++)
		check_eq("one base, both sides", value(u_near, EDGE - 4096, 0, 0), 1 + 20 + 200);
	check("a base below, a place that is not there", call(u_below, EDGE, 0, 0) == PF && trap.cr2 == EDGE - 0x40000000 && trap.err == 4);
	map(EDGE - 0x40000000, ram[7], P | W | U);
	*(u64 *)ram[7] = 1000;
	check_eq("and there", value(u_below, EDGE, 0, 0), 1009);
	a[3] = 0;
	check_eq("fields", value(u_fields, EDGE - 4096, 0x2000, 0), ({ u64 x = 2, y = 102, z = y; (void)x; z + 20 + ((u64 *)ram[9])[511]; }));

	check("not canonical", call(u_load, 1ull << 47, 0, 0) == GP && call(u_load, 0x4000000000000000, 0, 0) == GP);
	check("the kernel's half", call(u_load, 0xffff800000000000, 0, 0) == PF && trap.cr2 == 0xffff800000000000 && trap.err == 4);
	check("around zero", call(u_below, 0x1000, 0, 0) == PF && trap.cr2 == 0x1000 - 0x40000000ull);
	check("the last page of the user's half", call(u_load, 0x7ffffffffffc, 0, 0) == PF || trap.vec == GP);
}

/* ---- here and there ------------------------------------------------------------------------------------------------ */

static void many_windows(void)
{
	static u64 *places[5];
	static const u64 at[5] = { LOW, PIE, LIB, EDGE, 0x100000000000 };
	u64 sum = 0;
	for (unsigned k = 0; k < 5; k++) {
		map(at[k], ram[10 + k], P | W | U);
		places[k] = (u64 *)(at[k] + 8 * k);
	}
	flush();
	for (unsigned k = 0; k < 500; k++)
		sum = sum * 5 + *(u64 *)(ram[10 + k % 5] + 8 * (k % 5));
	check_eq("one load, five places", value(u_here_and_there, (uptr)places, 5, 500), sum);
	check_eq("and again", value(u_here_and_there, (uptr)places, 5, 500), sum);
	check_eq("LEAVE from elsewhere than the stack", value(u_leave, LIB + 64, 200, 0), *(u64 *)(ram[12] + 64));
	check_eq("RSP and an index to elsewhere", value(u_index, LIB + 72, 200, 0), *(u64 *)(ram[12] + 72));
	check_eq("RBP elsewhere than the stack", value(u_rbp, 0x100000000010, 200, 0), *(u64 *)(ram[14] + 16));
	map(PIE + 4096, ram[12], P | W | U);
	invlpg(PIE + 4096);
	value(u_store, LIB + 128, 4711, 0);
	check_eq("one page at two places", value(u_load, PIE + 4096 + 128, 0, 0), 4711);
	value(u_store, PIE + 4096 + 128, 4712, 0);
	check_eq("the other way", value(u_load, LIB + 128, 0, 0), 4712);
}

/* ---- address spaces ----------------------------------------------------------------------------------------------------- */

static void spaces(void)
{
	static u64 root[512] __attribute__((aligned(4096))), pdpt[512] __attribute__((aligned(4096))), pd[512] __attribute__((aligned(4096))),
		pt[512] __attribute__((aligned(4096)));
	u64 own = read_cr3();
	bool pcid = has(1, 2, 17);
	memcpy(root, boot_pml4, 4096);
	root[LIB >> 39 & 511] = (uptr)pdpt | P | W | U;
	pdpt[LIB >> 30 & 511] = (uptr)pd | P | W | U;
	pd[LIB >> 21 & 511] = (uptr)pt | P | W | U;
	pt[LIB >> 12 & 511] = (uptr)ram[20] | P | W | U;
	map(LIB, ram[21], P | W | U);
	*(u64 *)ram[20] = *(u64 *)ram[21] = 0;
	for (unsigned how = 0; how < (pcid ? 2u : 1u); how++) {
		write_cr4(how ? read_cr4() | 1u << 17 : read_cr4());
		for (unsigned k = 0; k < 20; k++) {
			write_cr3(how ? ((uptr)root | 1 | (k ? 1ull << 63 : 0)) : (uptr)root);
			value(u_add, LIB, 1, 3);
			write_cr3(how ? (own | 2 | (k ? 1ull << 63 : 0)) : own);
			value(u_add, LIB, 100, 2);
		}
		check_eq(how ? "two address spaces with PCIDs: one" : "two address spaces: one", *(u64 *)ram[20], 60 * (how + 1));
		check_eq(how ? "the other" : "two address spaces: the other", *(u64 *)ram[21], 4000 * (how + 1));
		write_cr3(own);
	}
	if (pcid)
		write_cr4(read_cr4() & ~(1ul << 17));
	else
		skip("two address spaces with PCIDs", "no PCID");
}

/* ---- large pages ------------------------------------------------------------------------------------------------------------ */

static void large_pages(void)
{
	u64 *pde = pde_of(boot_pml4, PIE + (2 << 20)), va = PIE + (2 << 20);
	va &= ~(u64)((2 << 20) - 1);
	for (unsigned k = 0; k < 512; k++)
		*(u64 *)(large + k * 4096) = k * 7;
	*pde = (uptr)large | P | W | U | BIG;
	u64 sum = 0;
	for (unsigned k = 0; k < 512; k++)
		sum = sum * 3 + k * 7;
	check_eq("a page of 2 MiB", value(u_sum, va, 512, 4096), sum);
	value(u_store, va + 0x5008, 3, 0);
	check("stored there", *(u64 *)(large + 0x5008) == 3 && *pde & D);
	if (n_tables == ARRAY_LEN(tables))
		die("no more tables");
	u64 *pt = tables[n_tables++];
	for (unsigned k = 0; k < 512; k++)
		pt[k] = (uptr)(k == 5 ? ram[30] : large + k * 4096) | P | (k == 6 ? 0 : W) | U;
	*pde = (uptr)pt | P | W | U;
	invlpg(va + 0x7000);
	*(u64 *)(ram[30] + 8) = 99;
	check_eq("comes apart: another page", value(u_load, va + 0x5008, 0, 0), 99);
	check("one that is read-only", call(u_store, va + 0x6000, 1, 0) == PF && trap.err == 7);
	check_eq("the rest is as it was", value(u_load, va + 0x1ff000, 0, 0), 511 * 7);
}

/* The first 2 MiB have a hole where the display is. */
static void large_page_with_a_hole(void)
{
	u64 hole = *(volatile u64 *)0xa0000, rom = *(volatile u64 *)0xffff0;
	u64 *pde = pde_of(boot_pml4, LOW + (4 << 20)), va = LOW + (4 << 20);
	*pde = P | W | U | BIG;
	flush();
	check_eq("a page of 2 MiB over the display's memory", (value(u_load, va + 0x500, 0, 0), value(u_load, va + 0x500, 0, 0), value(u_load, va + 0xa0000, 0, 0)), hole);
	check_eq("and over ROM", value(u_load, va + 0xffff0, 0, 0), rom);
}

/* More changes of single pages than a host allows mappings of a process. */
static void large_pages_in_pieces(void)
{
	enum { N = 320 };
	static u64 pt[512] __attribute__((aligned(4096)));
	u64 va = LOW + (1 << 30);
	memset(large, 0, sizeof(large));
	for (unsigned k = 0; k < N; k++)
		*pde_of(boot_pml4, va + ((u64)k << 21)) = (uptr)large | P | W | U | BIG;
	flush();
	check_eq("many large pages", value(u_sum, va, N, 2 << 20), 0);
	*(u64 *)ram[0] = 7;
	for (unsigned k = 0; k < 512; k++)
		pt[k] = (uptr)(k % 4 == 3 ? ram[0] : large + k * 4096) | P | W | U | A | D;
	for (unsigned k = 0; k < N; k++)
		*pde_of(boot_pml4, va + ((u64)k << 21)) = (uptr)pt | P | W | U | A;
	flush();
	check_eq("in pieces, one", value(u_load, va + 0x1000, 0, 0), 0);
	check_eq("in pieces, another", value(u_load, va + 0x3000, 0, 0), 7);
	check_eq("in pieces, all", value(u_sum, va + 0x3000, N, 2 << 20), ({ u64 s = 0; for (unsigned k = 0; k < N; k++) s = s * 3 + 7; s; }));
}

static void accessed(void)
{
	u64 *pde = pde_of(boot_pml4, LIB);
	map(LIB, ram[0], P | W | U);
	flush();
	value(u_load, LIB, 0, 0);
	*pde &= ~(u64)A;
	boot_pml4[LIB >> 39 & 511] &= ~(u64)A;
	flush();
	value(u_load, LIB, 0, 0);
	check("accessed bits of tables above come back", *pde & A && boot_pml4[LIB >> 39 & 511] & A);
}

/* ---- code, devices, breakpoints ------------------------------------------------------------------------------------------------ */

static void code(void)
{
	static const u8 f[] = { 0xb8, 1, 0, 0, 0, 0xc3 }; /* mov eax, 1; ret */
	u8 *at = ram[40];
	map(LOW + 8192, at, P | W | U);
	flush();
	bool right = true;
	value(u_store, LOW + 8192 + 256, 1, 0); /* data of the page, before it has code */
	memcpy(at, f, sizeof(f));
	for (u32 k = 1; k < 40; k++) {
		value(u_store, LOW + 8192, 0xc300000000b8 | (u64)k << 8, 0);
		right &= value((void *)(LOW + 8192), 0, 0, 0) == k;
		value(u_add, LOW + 8192 + 512, 1, 2);
		right &= value((void *)(LOW + 8192), 0, 0, 0) == k;
	}
	check("code that is written through another address than it runs at", right && *(u64 *)(at + 512) == 40 * 0x10001ull + 64 * 0x100000001ull + 78);
	right = true;
	for (u32 k = 1; k < 40; k++) {
		*(volatile u8 *)(at + 1) = (u8)k; /* the kernel's store */
		right &= value((void *)(LOW + 8192), 0, 0, 0) == k;
	}
	check("code that the kernel writes", right);
}

static void devices(void)
{
	map(LIB + 0x5000, (void *)0xfee00000, P | W | U);
	flush();
	u32 want = *(volatile u32 *)0xfee00030;
	bool right = true;
	for (unsigned k = 0; k < 60; k++)
		right &= (u32)value(u_load, LIB + 0x5030, 0, 0) == want;
	check("a device's register, many times", right);
	map(LIB + 0x4000, ram[41], P | W | U);
	right = true;
	for (unsigned k = 0; k < 60; k++)
		right &= value(u_both, LIB + 0x4000, 0, 0) == *(u64 *)ram[41] + want;
	check("one access to RAM and one to a device by one register", right);
	map(LIB + 0x5000, ram[41], P | W | U);
	invlpg(LIB + 0x5000);
	check_eq("RAM in its place", value(u_load, LIB + 0x5030, 0, 0), *(u64 *)(ram[41] + 0x30));
}

static void breakpoints(void)
{
	map(LIB, ram[42], P | W | U);
	flush();
	value(u_add, LIB + 32, 1, 4);
	write_dr0(LIB + 32);
	write_dr7(0x000d0001 & ~0x10000u); /* DR0: writes of 8 bytes; see below */
	write_dr7(1 | 1u << 16 | 2u << 18); /* RW 01, LEN 10: 8 bytes */
	check("a watchpoint on a page in use", call(u_store, LIB + 32, 1, 0) == DB && trap.f.ax != 1);
	write_dr7(0);
	check_eq("none any more", value(u_store, LIB + 32, 2, 0), 1);
}

int main(void)
{
	fill_ram();
	changes(LOW, "low");
	fill_ram();
	changes(PIE, "program");
	fill_ram();
	changes(LIB, "library");
	rights(LOW, "low");
	rights(LIB, "library");
	fill_ram();
	edges();
	fill_ram();
	many_windows();
	spaces();
	large_pages();
	large_page_with_a_hole();
	large_pages_in_pieces();
	accessed();
	fill_ram();
	code();
	devices();
	breakpoints();
	return 0;
}
