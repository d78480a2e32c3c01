/* Private to cpu/: what walk.c, tlb.c and access.c share.
 *
 * Whose access it is, is an mmu index: MMU_USER (CPL 3, explicit), MMU_SMAP (supervisor,
 * user pages refused: explicit with AC clear, or implicit), MMU_KERNEL (supervisor). */
#ifndef RING3_CPU_MMU_H
#define RING3_CPU_MMU_H

#include "cpu/cpu.h"

enum { MAY_READ = 1, MAY_WRITE = 2, MAY_EXEC = 4, MAY_PKEY = 8 /* refused by a protection key */, MAY_ALL = 7 };

/* Walks the tables for lin; sets the accessed bits, and dirty for a write, if the access is
 * allowed. False: *err is the #PF error code. lin is canonical. Never raises, but in guest mode leaves
 * the guest where the second level refuses. */
bool mmu_walk(struct cpu *c, u64 lin, enum access acc, enum mmu_index who, struct walk *w, u32 *err);
/* MAY_* of a page for an index (MAY_EXEC by the user/supervisor half of it alone). */
unsigned mmu_rights(const struct cpu *c, const struct walk *w, enum mmu_index who);

/* One translated byte. host NULL: neither RAM nor ROM, go by gpa. code NULL: not RAM. */
struct mmu_page { u8 *host; struct page_code *code; u64 gpa; };
/* Through the TLB of `who`; fills it; raises #PF, #GP, #SS. lin already cut to the mode's width. */
void mmu_resolve(struct cpu *c, u64 lin, enum access acc, enum mmu_index who, struct mmu_page *p);

/* #GP(0) or #SS(0) unless lin is canonical; nothing outside of long mode. */
void mmu_check_canonical(struct cpu *c, u64 lin);

/* The index for explicit accesses now, breakpoints and alignment checks aside. */
static inline enum mmu_index mmu_index_explicit(const struct cpu *c)
{
	if (c->cpl == 3)
		return MMU_USER;
	return (c->cr4 & CR4_SMAP) && !(c->rflags & FL_AC) ? MMU_SMAP : MMU_KERNEL;
}
/* And for implicit supervisor accesses: AC does not count. */
static inline enum mmu_index mmu_index_implicit(const struct cpu *c)
{
	return c->cr4 & CR4_SMAP ? MMU_SMAP : MMU_KERNEL;
}

/* The page_code of a host pointer into RAM. */
static inline struct page_code *mmu_code_of(struct cpu *c, const u8 *host)
{
	return &c->mem->code[(u64)(host - c->mem->ram) >> 12];
}

#endif
