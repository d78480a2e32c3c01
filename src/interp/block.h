/* Decoded blocks of one vCPU. Private to interp/.
 *
 * Invariants
 *  1. A block lies in one physical page, save that a single instruction may run over into a
 *     second one; it is then a block of its own.
 *  2. A block is valid while the gen of its page (and of the second) is what it was when the
 *     bytes were read (struct page_code: the protocol is mem.h's).
 *  3. The jump cache maps (linear address, address space, privilege, mode) to a block; it is
 *     dropped whenever a translation may have changed (cpu->on_tlb_flush), so that a hit
 *     needs no page walk. */
#ifndef RING3_INTERP_BLOCK_H
#define RING3_INTERP_BLOCK_H

#include "interp/op.h"

#define BLOCK_MAX 48u /* instructions */

struct block {
	u64 key;                 /* physical address of the first byte | mode << 60 */
	u32 gen, gen2;
	struct page_code *code, *code2;
	u64 page2;               /* guest-physical page of the rest of a crossing instruction; ~0: none */
	u16 n, bytes;
	struct block *hash_next;
	struct insn insn[];      /* n of them, then op_end */
};

struct jump_entry { u64 lin, tag; struct block *block; };
#define JUMP_SIZE 8192u
#define HASH_SIZE 65536u
#define ARENA_BYTES (48u << 20)

struct block_cache {
	struct jump_entry jump[JUMP_SIZE];
	struct block *hash[HASH_SIZE];
	u8 *arena;
	size_t used;
	u64 jump_gen;            /* counts flushes; part of a jump entry's tag */
	const struct block *current;
	struct page_code rom_code; /* stands for pages that have none: never written */
	struct insn one[2];      /* single steps */
	u64 flushes, decoded;
};

bool block_cache_init(struct cpu *c, struct error *e);
void block_cache_destroy(struct cpu *c);
void block_cache_flush(struct cpu *c);
/* The block at c->rip. Raises what the fetch raises (#PF, #GP, #UD, with c->cur NULL and rip the
 * block's start). */
struct block *block_get(struct cpu *c);
/* One instruction at c->rip into cache->one, for single steps. Raises. */
const struct insn *block_single(struct cpu *c);

op_fn op_end;  /* what stands after a block's last instruction */

static inline u64 jump_tag(const struct cpu *c, const struct block_cache *b)
{
	return c->epoch | (u64)c->code_mode << 12 | (u64)(c->cpl == 3) << 14 | b->jump_gen << 16;
}
static inline bool block_valid(const struct block *b)
{
	return atomic_load_explicit(&b->code->gen, memory_order_acquire) == b->gen &&
	       (likely(!b->code2) || atomic_load_explicit(&b->code2->gen, memory_order_acquire) == b->gen2);
}
static inline struct block *block_lookup(struct cpu *c)
{
	struct block_cache *bc = interp_of(c)->blocks;
	u64 lin = c->rip + c->ebase[S_CS];
	struct jump_entry *j = &bc->jump[(lin ^ lin >> 13) & (JUMP_SIZE - 1)];
	if (likely(j->lin == lin && j->tag == jump_tag(c, bc) && block_valid(j->block)))
		return j->block;
	return block_get(c);
}

#endif
