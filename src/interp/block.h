/* Decoded blocks of one vCPU. Private to interp/.
 *
 * Invariants
 *  1. A block lies in one physical page, save that a single instruction may run over into a
 *     second one; it is then a block of its own.
 *  2. A block is valid while the gen of its page (and of the second) is what it was when the
 *     bytes were read (struct page_code: the protocol is mem.h's), and while the map has that
 *     page at its address, which a walk looks at. Blocks over a device are run once, not kept.
 *  3. A block knows the linear address and the tag (address space, privilege, mode, flushes)
 *     at which it was last found by a walk: those of block_get. Where both are the present ones
 *     it is entered without a walk. Whoever takes a translation back ends the tag with it: a
 *     new epoch, or jump_gen where a page that has blocks may be meant (cpu->on_tlb_flush).
 *  4. The jump cache and a block's links are hints of where to look: what they point at is
 *     always a block of the arena (or `none`), and is entered by rule 3 alone.
 *  5. What the tag is made of, and what the run loop looks at between blocks (events apart),
 *     changes only in instructions that are OF_ENDS and not near branches: so a near branch
 *     goes on under its block's tag. A tag is never 0.
 *  6. Outside 64-bit mode CS's limit is looked at at every entry: it is no part of the tag. */
#ifndef RING3_INTERP_BLOCK_H
#define RING3_INTERP_BLOCK_H

#include "interp/op_api.h"

#define BLOCK_MAX 48u /* instructions */

struct block {
	struct block *hash_next;
	u64 key;                 /* physical address of the first byte | mode << 60 */
	const u8 *host, *host2;  /* the page, and that of the rest of a crossing instruction; NULL: a device, none */
	/* What entering it reads: one line of the host's cache. */
	u64 lin, tag;            /* invariant 3; tag 0: never */
	struct page_code *code, *code2;
	u32 gen, gen2;
	struct block *link[2];   /* what last came after it: by a jump, by falling through */
	u16 n, bytes;
	struct insn insn[];      /* n of them, then op_end */
};

#define JUMP_SIZE 8192u
#define HASH_SIZE 65536u
#define ARENA_BYTES (48u << 20)
/* Blocks begin here modulo 64, so that the part that is read is a line. */
#define BLOCK_PHASE (64 - offsetof(struct block, lin))
#define SEEN_PAGES 4096u

struct block_cache {
	struct block *jump[JUMP_SIZE];
	struct block *hash[HASH_SIZE];
	u8 *arena;
	size_t used;
	u64 jump_gen;            /* part of the tag */
	u64 seen[SEEN_PAGES / 64]; /* linear pages, modulo, of blocks whose tag has this jump_gen */
	struct block *current;   /* the block under way or just done; &none: not known */
	struct page_code rom_code; /* stands for pages that have none: never written */
	struct insn one[2];      /* single steps */
	u64 flushes, built, decoded; /* decoded: instructions */
	struct block none;       /* matches nothing; last, since struct block has no end of its own */
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
static inline struct block **block_jump(struct block_cache *bc, u64 lin)
{
	return &bc->jump[(lin ^ lin >> 13) & (JUMP_SIZE - 1)];
}
/* Where the way from `current` to RIP is remembered. R_BLOCK is still current's. */
static inline struct block **block_link(const struct cpu *c, struct block_cache *bc)
{
	struct block *from = bc->current;
	return &from->link[c->rip - c->regs[R_BLOCK] == from->bytes];
}
static inline bool block_enterable(const struct cpu *c, const struct block *b, u64 lin, u64 tag)
{
	return b->lin == lin && b->tag == tag && block_valid(b) &&
	       (likely(c->code_mode == CODE64) || (u64)(u32)c->rip + b->bytes <= (u64)c->seg[S_CS].limit + 1);
}
/* The block at RIP if it can be entered without a walk, or NULL. */
static inline struct block *block_find(struct cpu *c, struct block_cache *bc, u64 tag)
{
	u64 lin = c->rip + c->ebase[S_CS];
	struct block **link = block_link(c, bc), *b = *link;
	if (likely(block_enterable(c, b, lin, tag)))
		return b;
	b = *block_jump(bc, lin);
	if (unlikely(!block_enterable(c, b, lin, tag)))
		return NULL;
	*link = b;
	return b;
}
/* Instructions of the block under way that are complete when its last handler is done. */
static inline u64 block_done(const struct cpu *c)
{
	return (u64)(c->cur - c->first) + !!(c->cur->flags & IF_LAST);
}
static inline void block_enter(struct cpu *c, struct block_cache *bc, struct block *b)
{
	bc->current = b;
	c->regs[R_BLOCK] = c->rip;
	c->cur = b->insn;
	c->first = b->insn;
	return b->insn[0].fn(c, b->insn);
}

/* Goes on with the block at RIP, unless the run loop has something to do first, or a single
 * instruction was asked for (`none` is current). In tail position, so that the stack does not grow;
 * where the compiler does not see to that (meson.build knows), the loop does it all. */
static inline void block_chain(struct cpu *c)
{
#ifdef RING3_TAIL_CALLS
	struct block_cache *bc = interp_of(c)->blocks;
	u64 tag = bc->current->tag, done = block_done(c);
	if (unlikely(!tag || (atomic_load_explicit(&c->events, memory_order_relaxed) & c->event_mask) | c->slow ||
		     c->icount + done + BLOCK_MAX > c->icount_limit))
		return;
	struct block *b = block_find(c, bc, tag);
	if (unlikely(!b))
		return;
	c->icount += done;
	return block_enter(c, bc, b);
#else
	(void)c;
#endif
}

/* OP_END for near branches (invariant 5). */
#define OP_NEAR(name) \
	static inline __attribute__((always_inline)) void name##_body(struct cpu *c, const struct insn *i); \
	op_fn name; \
	void name(struct cpu *c, const struct insn *i) \
	{ \
		c->rip = insn_next_rip(c, i); \
		name##_body(c, i); \
		return block_chain(c); \
	} \
	static inline __attribute__((always_inline)) void name##_body(struct cpu *c, const struct insn *i)

#endif
