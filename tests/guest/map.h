/* 4-KiB pages of a 64-bit guest's own: 16 MiB of linear addresses at MAP_VA, nothing of which
 * lies near the identity map. And the guest's memory made the supervisor's, so that SMEP and
 * SMAP can be on, with an alias of it at USER_VA for CPL 3. */
#ifndef MAP_H
#define MAP_H
#include "guest.h"

enum { P = 1, W = 2, U = 4, A = 0x20, D = 0x40 };
#define NX (1ull << 63)
enum { EC_P = 1, EC_W = 2, EC_U = 4, EC_I = 16 };
enum { CR4_PCIDE = 0x20000, CR4_OSXSAVE = 0x40000, CR4_SMEP = 1 << 20, CR4_SMAP = 1 << 21 };

#define MAP_VA 0x8000000000ull
#define USER_VA 0x10000000000ull
extern u64 boot_pml4[512], boot_pd[2048];
static u64 map_pdpt[512] __attribute__((aligned(4096))), map_pd[512] __attribute__((aligned(4096))), map_pt[8][512] __attribute__((aligned(4096)));

static inline void invlpg(u64 va) { __asm__ volatile("invlpg (%0)" : : "r"(va) : "memory"); }
static inline void flush(void) { write_cr3(read_cr3()); }
static inline u64 *pte(u64 va) { return &map_pt[0][0] + ((va - MAP_VA) >> 12); }
static inline void map_page(u64 va, const void *page, u64 bits)
{
	*pte(va) = (uptr)page | bits;
	invlpg(va);
}
static inline void map_init(void)
{
	boot_pml4[1] = (uptr)map_pdpt | P | W | U;
	map_pdpt[0] = (uptr)map_pd | P | W | U;
	for (unsigned k = 0; k < 8; k++)
		map_pd[k] = (uptr)map_pt[k] | P | W | U;
	flush();
}
static inline void map_supervisor(void)
{
	static u64 pdpt[512] __attribute__((aligned(4096))), pd[512] __attribute__((aligned(4096)));
	boot_pml4[2] = (uptr)pdpt | P | W | U;
	pdpt[0] = (uptr)pd | P | W | U;
	for (unsigned k = 0; k < 8; k++) {
		boot_pd[k] = (u64)k << 21 | 0xe3;
		pd[k] = (u64)k << 21 | 0xe7;
	}
	flush();
}
/* Handlers on a stack of their own: code under test may have any RSP. */
static inline void map_own_stacks(void)
{
	static u8 stack[8192] __attribute__((aligned(16)));
	tss.ist[0] = (uptr)stack + sizeof(stack);
	for (unsigned v = 0; v < 256; v++)
		idt[2 * v] |= 1ull << 32;
}

#endif
