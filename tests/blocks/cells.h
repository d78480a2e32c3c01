/* Differences as a set: what compare.c finds, and what undefined.c may explain. */
#ifndef RING3_TESTS_BLOCKS_CELLS_H
#define RING3_TESTS_BLOCKS_CELLS_H

#include "blocks.h"

enum { MAX_CELLS = 4096, CELL_REG = 0, CELL_RIP = CELL_REG, CELL_MEM = 0x10000 };
struct cell { u32 id; u64 bits; }; /* bits: those that differ; of long registers one a byte */
struct cells { unsigned n; bool overflow; struct cell cell[MAX_CELLS]; };

struct compare_rules {
	unsigned ignore;   /* IGNORE_* */
	bool dead_flags;   /* status flags need not be equal: it ended in a fault that nobody handled */
	u32 frame_flags;   /* physical address of RFLAGS in an exception frame whose status flags need not be; 0: none */
};
void cells_compare(struct cells *s, const struct world *w, struct rig *a, struct rig *b, const struct compare_rules *r);
void cells_add(struct cells *s, u32 id, u64 bits);
bool cell_is_flags(u32 id);
void cell_name(u32 id, char *out, size_t cap);
void cell_show(u32 id, const char *const names[2], struct rig *a, struct rig *b, FILE *out);

#endif
