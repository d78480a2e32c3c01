/* What the files of gate.c share; see there for the invariants. Included after GATE_BEGIN's pragma. */
#ifndef RING3_BT_GATE_H
#define RING3_BT_GATE_H

#include "bt/bt.h"

/* The vCPU, and the instruction that has come through a gate: number n of block k. */
struct at { struct bt *b; struct cpu *c; struct ctx *x; struct block *k; unsigned n; };

/* After the instruction, in the block. */
static inline const u8 *gate_go_on(const struct at *a)
{
	const struct block *k = a->k;
	a->x->exit = exit_id(k->index, a->n + 1, X_KICK);
	return k->map[a->n + 1].no_resume ? NULL : k->checked + k->map[a->n + 1].host;
}

/* The present space's table; b->space may be that of another EFLAGS.AC. */
static inline const u8 *gate_table(void)
{
	const u8 *gs;
	__asm__ volatile("rdgsbase %0" : "=r"(gs));
	return gs;
}

/* The host's address of guest address lin, by that table; NULL: no entry. The rest of the page is there too. */
static inline u8 *gate_reach(const struct at *a, const u8 *gs, u64 lin, bool store)
{
	u64 entry = ld64(gs + table_at(lin, store));
	u8 *host = (u8 *)(lin + entry - 1);
	return entry && (u64)(host - a->c->mem->ram) < a->c->mem->ram_size ? host : NULL;
}

const u8 *gate_string(const struct at *a); /* gate_string.c */

#endif
