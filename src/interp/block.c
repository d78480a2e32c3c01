/* The decoded-block cache: finding, decoding, invalidating. See block.h for the invariants.
 * One cache a vCPU, touched by its thread alone; writes by others are noticed through the
 * generation of the page. */
#define LOG_TOPIC "interp"
#include <stdlib.h>
#include <sys/mman.h>

#include "interp/block.h"

void op_end(struct cpu *c, const struct insn *i)
{
	c->rip = rip_mask(c, c->regs[R_BLOCK] + i->off);
	return block_chain(c);
}

/* ---- flushes */

static u64 *seen_word(struct block_cache *bc, u64 lin) { return &bc->seen[(lin >> 12) % SEEN_PAGES / 64]; }
static u64 seen_bit(u64 lin) { return 1ull << ((lin >> 12) & 63); }

/* All tags end, unless no block can be meant. */
static void forget_jumps(struct cpu *c, u64 lin, u64 mask)
{
	struct block_cache *bc = interp_of(c)->blocks;
	if (mask == PAGE_MASK && !(*seen_word(bc, lin) & seen_bit(lin)))
		return;
	bc->jump_gen++;
	__builtin_memset(bc->seen, 0, sizeof(bc->seen));
}

/* b was found at RIP by a walk. */
static void found(struct cpu *c, struct block *b)
{
	struct block_cache *bc = interp_of(c)->blocks;
	u64 lin = c->rip + c->ebase[S_CS];
	b->lin = lin;
	b->tag = jump_tag(c, bc);
	*block_jump(bc, lin) = b;
	*seen_word(bc, lin) |= seen_bit(lin);
	if (b->host2)
		*seen_word(bc, lin + 4096) |= seen_bit(lin + 4096);
}

/* The block under way ends after the current instruction, and is decoded anew next time: every
 * instruction from the next on becomes op_end. */
static void leave_block(struct cpu *c)
{
	struct block_cache *bc = interp_of(c)->blocks;
	struct block *b = bc->current;
	if (b == &bc->none)
		return;
	for (unsigned k = 0; k <= b->n; k++) {
		if (&b->insn[k] > c->cur) {
			b->insn[k].fn = op_end;
			b->insn[k].flags &= (u8)~IF_LAST; /* not executed: not to be counted */
		}
	}
	b->gen = atomic_load(&b->code->gen) - 1;
}

/* Our own store hit decoded code: maybe the block under way. */
static void code_written(struct cpu *c, struct page_code *p, unsigned off, unsigned len)
{
	(void)p, (void)off, (void)len;
	if (!block_valid(interp_of(c)->blocks->current))
		leave_block(c);
}

/* No block, and no pointer to one. */
static void make_empty(struct block_cache *bc)
{
	__builtin_memset(bc->hash, 0, sizeof(bc->hash));
	for (unsigned k = 0; k < JUMP_SIZE; k++)
		bc->jump[k] = &bc->none;
	bc->none = (struct block){ .code = &bc->rom_code, .link = { &bc->none, &bc->none } };
	bc->used = BLOCK_PHASE;
	bc->current = &bc->none;
}

void block_cache_flush(struct cpu *c)
{
	struct block_cache *bc = interp_of(c)->blocks;
	make_empty(bc);
	bc->flushes++;
	native_reset(c);
}

bool block_cache_init(struct cpu *c, struct error *e)
{
	struct block_cache *bc = calloc(1, sizeof(*bc));
	if (!bc)
		return error_set(e, "interp: no memory for the block cache");
	bc->arena = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (bc->arena == MAP_FAILED) {
		free(bc);
		return error_set(e, "interp: cannot map %u MiB for decoded blocks", ARENA_BYTES >> 20);
	}
	make_empty(bc);
	interp_of(c)->blocks = bc;
	c->on_tlb_flush = forget_jumps;
	c->on_code_written = code_written;
	c->on_device = leave_block;
	return true;
}

void block_cache_destroy(struct cpu *c)
{
	struct block_cache *bc = interp_of(c)->blocks;
	munmap(bc->arena, ARENA_BYTES);
	free(bc);
	c->on_tlb_flush = NULL;
	c->on_code_written = NULL;
	c->on_code_marked = NULL;
	c->on_device = NULL;
}

/* ---- fetching */

/* Up to n bytes at page offset off of page t; RAM and ROM are copied, a device is read. */
static void fetch_bytes(struct cpu *c, const struct code_tlb_entry *t, unsigned off, u8 *buf, unsigned n)
{
	if (likely(t->host != NULL)) {
		__builtin_memcpy(buf, t->host + off, n);
		return;
	}
	for (unsigned k = 0; k < n; k++)
		buf[k] = (u8)mem_phys_read(c->mem, t->gpa_page + off + k, 1);
}

_Noreturn static void raise_status(struct cpu *c, enum isa_status st)
{
	if (st == ISA_INVALID)
		cpu_ud(c);
	cpu_gp0(c); /* too long, or cut by CS's limit */
}

/* What fetching n bytes at RIP may do: outside 64-bit mode all must lie within CS's limit. */
static unsigned cs_room(const struct cpu *c, unsigned want)
{
	if (c->code_mode == CODE64)
		return want;
	if ((u32)c->rip > c->seg[S_CS].limit)
		return 0;
	u64 room = (u64)c->seg[S_CS].limit - (u32)c->rip + 1;
	return room < want ? (unsigned)room : want;
}

static struct page_code *code_of(struct block_cache *bc, const struct code_tlb_entry *t)
{
	return t->code ? t->code : &bc->rom_code;
}

static u32 mark(struct cpu *c, struct page_code *p, unsigned off, unsigned len)
{
	u32 gen = mem_code_mark(p, off, len);
	if (c->on_code_marked)
		c->on_code_marked(c, p);
	return gen;
}

struct fetched {
	struct code_tlb_entry page1, page2; /* copies: a second walk may evict the first */
	bool crosses;
	u32 gen2;                /* of page2, from before its bytes were read */
};

/* Decodes the instruction at lin. Where it needs bytes of the next page they are fetched, which may
 * raise, if the instruction is the one to execute now (`now`: at RIP); else f->crosses is all. */
static enum isa_status decode_at(struct cpu *c, struct fetched *f, u64 lin, unsigned room, bool now, struct insn *out)
{
	u8 buf[16];
	unsigned off = lin & PAGE_MASK, in_page = 4096 - off;
	unsigned want = MIN(15u, room), have = MIN(want, in_page);
	fetch_bytes(c, &f->page1, off, buf, have);
	enum isa_status st = interp_decode(c, c->code_mode, buf, have, out);
	f->crosses = false;
	if (st != ISA_SHORT)
		return st;
	if (have == want) /* the limit cut it */
		return want == 15 ? ISA_TOO_LONG : ISA_SHORT;
	f->crosses = true;
	if (!now)
		return ISA_SHORT;
	f->page2 = *mmu_fetch_page(c, (lin | PAGE_MASK) + 1);
	f->gen2 = mark(c, code_of(interp_of(c)->blocks, &f->page2), 0, 15);
	fetch_bytes(c, &f->page2, 0, buf + have, want - have);
	st = interp_decode(c, c->code_mode, buf, want, out);
	return st == ISA_SHORT && want == 15 ? ISA_TOO_LONG : st;
}

static void relocate(struct insn *i, unsigned off)
{
	i->off = (u16)off;
	if (i->base == R_BLOCK)
		i->disp += off;
	if (isa_ops[i->op].form == FORM_J)
		i->imm += off;
}

/* ---- blocks */

/* Room for a block of BLOCK_MAX instructions; empties the cache when it is full. */
static struct block *block_alloc(struct cpu *c)
{
	struct block_cache *bc = interp_of(c)->blocks;
	size_t most = sizeof(struct block) + (BLOCK_MAX + 1) * sizeof(struct insn);
	if (bc->used + most > ARENA_BYTES || native_full(c))
		block_cache_flush(c);
	return (struct block *)(void *)(bc->arena + bc->used);
}

static struct block *block_build(struct cpu *c, const struct code_tlb_entry *t, u64 lin, u64 key)
{
	struct interp *in = interp_of(c);
	struct block_cache *bc = in->blocks;
	struct block *b = block_alloc(c);
	struct fetched f = { .page1 = *t };
	unsigned start = lin & PAGE_MASK, off = 0, room = cs_room(c, 4096 + 15);
	*b = (struct block){ .key = key, .host = t->host, .code = code_of(bc, &f.page1), .link = { &bc->none, &bc->none } };
	while (b->n < BLOCK_MAX && off < 4096 - start) {
		struct insn *i = &b->insn[b->n];
		u32 gen = mark(c, b->code, start + off, MIN(15u, 4096 - start - off));
		if (!b->n)
			b->gen = gen;
		else if (gen != b->gen)
			break; /* written meanwhile: the check at entry sees it */
		enum isa_status st = decode_at(c, &f, lin + off, room > off ? room - off : 0, !b->n, i);
		if (st != ISA_OK || f.crosses) {
			if (b->n)
				break; /* it gets its own block when control reaches it */
			if (st != ISA_OK)
				raise_status(c, st);
		}
		relocate(i, off);
		off += i->len;
		b->n++;
		if (f.crosses) {
			b->host2 = f.page2.host;
			b->code2 = code_of(bc, &f.page2);
			b->gen2 = f.gen2;
			break;
		}
		if (i->flags & IF_LAST)
			break;
	}
	b->bytes = (u16)off;
	b->insn[b->n] = (struct insn){ .fn = op_end, .off = (u16)off };
	bc->used += (sizeof(*b) + (b->n + 1u) * sizeof(struct insn) + 63) & ~63ull;
	bc->built++;
	bc->decoded += b->n;
	return b;
}

struct block *block_get(struct cpu *c)
{
	struct block_cache *bc = interp_of(c)->blocks;
	u64 lin = c->rip + c->ebase[S_CS];
	if (c->code_mode != CODE64)
		lin = (u32)lin;
	c->regs[R_BLOCK] = c->rip;
	c->cur = NULL;
	if (!cs_room(c, 1))
		cpu_gp0(c);
	const struct code_tlb_entry *t = mmu_fetch_page(c, lin);
	u64 phys = t->gpa_page | (lin & PAGE_MASK);
	u64 key = phys | (u64)c->code_mode << 60;
	struct block **head = &bc->hash[(phys ^ phys >> 14) & (HASH_SIZE - 1)];
	struct block **at = head, *b = NULL;
	for (; (b = *at); at = &b->hash_next) {
		if (b->key != key)
			continue;
		if (b->host == t->host && block_valid(b) && b->bytes <= cs_room(c, b->bytes) &&
		    (!b->host2 || mmu_fetch_page(c, (lin | PAGE_MASK) + 1)->host == b->host2))
			break;
		*at = b->hash_next; /* stale: its room comes back with the next flush */
		b = NULL;
		break;
	}
	if (!b) {
		b = block_build(c, t, lin, key);
		if (!b->host || (b->code2 && !b->host2)) /* a device's bytes may change unseen */
			return b;
		b->hash_next = *head;
		*head = b;
	}
	found(c, b);
	return b;
}

const struct insn *block_single(struct cpu *c)
{
	struct block_cache *bc = interp_of(c)->blocks;
	u64 lin = c->rip + c->ebase[S_CS];
	if (c->code_mode != CODE64)
		lin = (u32)lin;
	c->regs[R_BLOCK] = c->rip;
	c->cur = NULL;
	unsigned room = cs_room(c, 15);
	if (!room)
		cpu_gp0(c);
	if (native_full(c))
		block_cache_flush(c);
	struct fetched f = { .page1 = *mmu_fetch_page(c, lin) };
	enum isa_status st = decode_at(c, &f, lin, room, true, &bc->one[0]);
	if (st != ISA_OK)
		raise_status(c, st);
	relocate(&bc->one[0], 0);
	bc->one[1] = (struct insn){ .fn = op_end, .off = bc->one[0].len };
	return bc->one;
}
