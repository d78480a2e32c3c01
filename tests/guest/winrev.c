#include "guest.h"
const char guest_name[] = "winrev";
enum { P = 1, W = 2, U = 4, A = 0x20, D = 0x40, BIG = 0x80 };
#define LOW 0x1000000000ull
#define LIB 0x7f8040200000ull
extern u64 boot_pml4[512];
static u64 tables[64][512] __attribute__((aligned(4096)));
static unsigned n_tables;
static u8 ram[80][4096] __attribute__((aligned(4096)));
static u8 large[2 << 20] __attribute__((aligned(2 << 20)));
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
static void flush(void) { write_cr3(read_cr3()); }
extern const u8 u_call[];
__asm__(".text\nu_call: call *%rax\nint $0x80\n");
static int call(void *f, u64 a, u64 b, u64 c)
{
	struct regs g = user_regs(u_call);
	g.ax = (uptr)f, g.di = a, g.si = b, g.dx = c;
	return go(&g);
}
static u64 value(void *f, u64 a, u64 b, u64 c) { return call(f, a, b, c) == DONE ? trap.f.ax : ~0ull - (u64)trap.vec; }
static noinline u64 u_load(const u64 *p) { return *(const volatile u64 *)p; }
static noinline u64 u_store(u64 *p, u64 v) { *(volatile u64 *)p = v; return 1; }
static noinline u64 u_sum(const u64 *p, u64 n, u64 step)
{
	u64 sum = 0;
	for (u64 k = 0; k < n; k++)
		sum = sum * 3 + *(const volatile u64 *)((uptr)p + k * step);
	return sum;
}
static noinline u64 u_many(const u64 *p, u64 n, u64 times)
{
	u64 sum = 0;
	for (u64 t = 0; t < times; t++)
		for (u64 k = 0; k < n; k++)
			sum += *(const volatile u64 *)((uptr)p + k * 4096);
	return sum;
}
static noinline u64 u_group(volatile u64 *p, u64 n)
{
	u64 sum = 0;
	for (u64 k = 0; k < n; k++)
		sum += p[0] + p[512];
	return sum;
}
static noinline u64 u_single(volatile u64 *p, u64 n)
{
	u64 sum = 0;
	for (u64 k = 0; k < n; k++)
		sum += p[512];
	return sum;
}
extern u64 u_leave(u64 frame, u64 n), u_index(u64 p, u64 n);
__asm__(".text\nu_leave: push %rbp\nmov %rsp,%rdx\n1: mov %rdi,%rbp\nleave\nmov %rdx,%rsp\ndec %rsi\njnz 1b\npop %rbp\nmov $1,%eax\nret\n"
	"u_index: sub %rsp,%rdi\n1: mov (%rsp,%rdi),%rax\ndec %rsi\njnz 1b\nret\n");
__asm__(".text\nu_rbp: push %rbp\nmov %rdi,%rbp\n1: mov (%rbp),%rax\ndec %rsi\njnz 1b\npop %rbp\nret\n"
	"u_rbx: push %rbx\nmov %rdi,%rbx\n1: mov (%rbx),%rax\ndec %rsi\njnz 1b\npop %rbx\nret\n");
static u64 timed(void *f, u64 a, u64 b, u64 c) { u64 t = rdtsc(); value(f, a, b, c); return rdtsc() - t; }
#define PER(name, f, a, n, c) do { u64 q = timed(f, a, n, c); say("%s: %u ticks each\n", name, (u32)(q / (n) / ((u64)(c) && (c) < 1000 ? (c) : 1))); } while (0)

int main(void)
{
#if TEST == 1 /* a page of 2 MiB over the hole of VGA */
	*pde_of(boot_pml4, LIB) = 0 | P | W | U | BIG;
	flush();
	u64 k_hole = *(volatile u64 *)0xa0000, k_rom = *(volatile u64 *)0xffff0;
	value(u_load, LIB + 0x500, 0, 0);
	value(u_load, LIB + 0x500, 0, 0);
	check_eq("a0000 by a page of 2 MiB", value(u_load, LIB + 0xa0000, 0, 0), k_hole);
	check_eq("ffff0 by a page of 2 MiB", value(u_load, LIB + 0xffff0, 0, 0), k_rom);
	say("kernel: %X %X\n", k_hole, k_rom);
#elif TEST == 2 /* mappings of the host's */
	enum { N = 320 };
	static u64 pt[512] __attribute__((aligned(4096)));
	for (unsigned k = 0; k < N; k++)
		*pde_of(boot_pml4, LOW + ((u64)k << 21)) = (uptr)large | P | W | U | BIG;
	flush();
	value(u_sum, LOW, N, 2 << 20);
	say("touched\n");
	for (unsigned k = 0; k < 512; k++)
		pt[k] = (uptr)(k % 4 == 3 ? ram[0] : large + k * 4096) | P | W | U | A | D;
	for (unsigned k = 0; k < N; k++)
		*pde_of(boot_pml4, LOW + ((u64)k << 21)) = (uptr)pt | P | W | U | A;
	flush();
	check_eq("after", value(u_load, LOW, 0, 0), 0);
#elif TEST == 3 /* accessed bits above the leaf */
	map(LIB, ram[0], P | W | U);
	flush();
	value(u_load, LIB, 0, 0);
	value(u_load, LIB, 0, 0);
	u64 *pde = pde_of(boot_pml4, LIB);
	*pde &= ~(u64)A;
	boot_pml4[LIB >> 39 & 511] &= ~(u64)A;
	flush();
	value(u_load, LIB, 0, 0);
	check("accessed, the PDE", *pde & A);
	check("accessed, the PML4E", boot_pml4[LIB >> 39 & 511] & A);
#elif TEST == 4 /* a member of a group that always faults */
	map(LIB, ram[0], P | W | U);
	map(LIB + 4096, (void *)0xfee00000, P | W | U);
	flush();
	PER("group: second in a device", u_group, LIB, 20000, 0);
	PER("group: second in a device", u_group, LIB, 20000, 0);
	PER("single: in a device", u_single, LIB, 20000, 0);
	PER("single: in a device", u_single, LIB, 20000, 0);
	check("x", true);
#elif TEST == 5 /* LEAVE, [rsp + index] to another window */
	map(LIB, ram[0], P | W | U);
	flush();
	PER("leave, same window", u_leave, (uptr)ram[1], 20000, 0);
	PER("leave, other window", u_leave, LIB, 20000, 0);
	PER("leave, other window", u_leave, LIB, 20000, 0);
	PER("[rsp + index], same window", u_index, (uptr)ram[1], 20000, 0);
	PER("[rsp + index], other window", u_index, LIB, 20000, 0);
	PER("[rsp + index], other window", u_index, LIB, 20000, 0);
	check("x", true);
#elif TEST == 6 /* more mappings than there may be */
	enum { N = 60 * 512 };
	for (unsigned k = 0; k < N; k++)
		map(LOW + k * 4096ull, ram[k % 2 ? 3 : 5], P | W | U);
	flush();
	PER("few pages", u_many, LOW, 1000, 20);
	PER("few pages", u_many, LOW, 1000, 20);
	PER("many pages", u_many, LOW, N, 8);
	PER("many pages", u_many, LOW, N, 8);
	PER("few pages", u_many, LOW, 1000, 20);
	check("x", true);
#elif TEST == 7 /* two runs whose places in the hash are the same */
	enum { N = 96 };
	for (unsigned k = 0; k < 2 * N; k++)
		*pde_of(boot_pml4, LOW + ((u64)(k / N) << 30) + ((u64)(k % N) << 21)) = (uptr)large | P | W | U | BIG;
	flush();
	PER("2 MiB pages, first run", u_sum, LOW, N, 2 << 20);
	PER("2 MiB pages, second run", u_sum, LOW + (1 << 30), N, 2 << 20);
	check("x", true);
#elif TEST == 8 /* only by RBP */
	map(0x200000000000, ram[0], P | W | U);
	map(LIB, ram[0], P | W | U);
	flush();
	extern u64 u_rbp(u64, u64), u_rbx(u64, u64);
	PER("by RBX", u_rbx, LIB, 100000, 0);
	PER("by RBX", u_rbx, LIB, 100000, 0);
	PER("by RBP", u_rbp, 0x200000000000, 100000, 0);
	PER("by RBP", u_rbp, 0x200000000000, 100000, 0);
	check("x", true);
#endif
	return 0;
}
