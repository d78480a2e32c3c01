/* What state.c (registers, memory, code), address.c and special.c (what single instructions need)
 * share. */
#ifndef RING3_TESTS_DIFF_STATE_H
#define RING3_TESTS_DIFF_STATE_H

#include "diff.h"

struct maker {
	struct test *t;
	struct decoded *d;
	struct rng *g;
	const struct finder *find;
	u32 fixed;          /* general registers that hold an address */
	u64 ea[ZYDIS_MAX_OPERAND_COUNT]; /* linear address of each memory operand */
};

static inline ZydisMnemonic mnemonic(const struct maker *m) { return m->d->zi.mnemonic; }
static inline bool mode64(const struct maker *m) { return m->t->mode == CODE64; }
/* Unless it holds an address already. */
static inline void gpr_set(struct maker *m, unsigned r, u64 v)
{
	if (!(m->fixed >> r & 1))
		m->t->r.gpr[r] = mode64(m) ? v : (u32)v;
}
/* The first memory operand that is an access, or -1. */
int memory_operand_of(const struct maker *m, bool hidden);
/* Where a branch may go: mostly into the code window, beside the instruction. */
u64 pick_target(struct maker *m);
/* Bytes of the instruction changed: decode again. */
bool maker_redecode(struct maker *m);

static inline bool is_access(const ZydisDecodedOperand *o)
{
	return o->type == ZYDIS_OPERAND_TYPE_MEMORY && o->mem.type != ZYDIS_MEMOP_TYPE_AGEN;
}
static inline unsigned operand_bytes(const ZydisDecodedOperand *o) { return o->size ? o->size / 8u : 1; }
static inline bool is_vector(ZydisRegister r, unsigned *number)
{
	switch (ZydisRegisterGetClass(r)) {
	case ZYDIS_REGCLASS_XMM:
	case ZYDIS_REGCLASS_YMM:
	case ZYDIS_REGCLASS_ZMM: *number = (unsigned)ZydisRegisterGetId(r); return true;
	default: return false;
	}
}

/* address.c. Chooses an address for memory operand k and makes it so. */
void address_place(struct maker *m, unsigned k);
/* What the instruction subtracts from the address register before the access: pushes go below it. */
unsigned address_below(const struct maker *m, const ZydisDecodedOperand *o, unsigned size);
u64 address_linear(struct maker *m, const ZydisDecodedOperand *o);

/* special.c. Before addresses are chosen; after memory is filled (false: no sensible state). */
void special_registers(struct maker *m);
bool special_memory(struct maker *m);

#endif
