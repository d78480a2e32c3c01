/* The guest-physical map, private to mem/. */
#ifndef RING3_MEM_MAP_H
#define RING3_MEM_MAP_H

#include "mem/mem.h"

/* What is at gpa: a copy of the flattened region that holds it, true; or false and in *out
 * base and size of the gap around it. Any thread. */
bool map_find(const struct mem *m, u64 gpa, struct region *out);

/* Declares a region and flattens anew. Checks size, overflow and, for RAM and ROM, alignment. */
bool map_add(struct mem *m, const struct region *r, struct error *e);
void map_free(struct mem *m);

/* Registers this process for the barrier that mem_code_mark needs. */
void code_init(void);

/* The bookkeeping of RAM page that holds a host address within m->ram. */
static inline struct page_code *code_of(struct mem *m, const u8 *host)
{
	return &m->code[(size_t)(host - m->ram) / PAGE_SIZE];
}

#endif
