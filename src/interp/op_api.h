/* What handlers are written with: operands, results, chaining. For interp/ and, as what it leaves to it, bt/.
 *
 * A handler is OP(name) { body }: the body may return early; afterwards the next instruction
 * of the block is called in tail position. OP_END(name) ends its block: c->rip already holds
 * the next instruction when the body starts, and the body may change it. Every OP_END form
 * has OF_ENDS in ops.def, and the other way round. A body commits state only after its last
 * access that can fault. */
#ifndef RING3_INTERP_OP_H
#define RING3_INTERP_OP_H

#include "cpu/cpu.h"
#include "interp/interp.h"

#define OP(name) \
	static inline __attribute__((always_inline)) void name##_body(struct cpu *c, const struct insn *i); \
	op_fn name; \
	void name(struct cpu *c, const struct insn *i) \
	{ \
		name##_body(c, i); \
		i++; \
		c->cur = i; \
		return i->fn(c, i); \
	} \
	static inline __attribute__((always_inline)) void name##_body(struct cpu *c, const struct insn *i)

#define OP_END(name) \
	static inline __attribute__((always_inline)) void name##_body(struct cpu *c, const struct insn *i); \
	op_fn name; \
	void name(struct cpu *c, const struct insn *i) \
	{ \
		c->rip = insn_next_rip(c, i); \
		name##_body(c, i); \
	} \
	static inline __attribute__((always_inline)) void name##_body(struct cpu *c, const struct insn *i)

static inline u64 insn_rip(const struct cpu *c, const struct insn *i) { return c->regs[R_BLOCK] + i->off; }
static inline u64 rip_mask(const struct cpu *c, u64 rip) { return c->code_mode == CODE64 ? rip : (u32)rip; }
static inline u64 insn_next_rip(const struct cpu *c, const struct insn *i)
{
	return rip_mask(c, c->regs[R_BLOCK] + i->off + i->len);
}

/* ---- registers. 8-bit ones are byte offsets in regs (AH is 1). Writing 32 bits clears 63:32. */
static inline u8 reg_ld8(const struct cpu *c, unsigned r) { return ((const u8 *)c->regs)[r]; }
static inline u16 reg_ld16(const struct cpu *c, unsigned r) { return (u16)c->regs[r]; }
static inline u32 reg_ld32(const struct cpu *c, unsigned r) { return (u32)c->regs[r]; }
static inline u64 reg_ld64(const struct cpu *c, unsigned r) { return c->regs[r]; }
static inline void reg_st8(struct cpu *c, unsigned r, u8 v) { ((u8 *)c->regs)[r] = v; }
static inline void reg_st16(struct cpu *c, unsigned r, u16 v) { *(u16 *)(void *)&c->regs[r] = v; }
static inline void reg_st32(struct cpu *c, unsigned r, u32 v) { c->regs[r] = v; }
static inline void reg_st64(struct cpu *c, unsigned r, u64 v) { c->regs[r] = v; }
/* By run-time size. */
static inline u64 reg_ld(const struct cpu *c, unsigned r, unsigned size)
{
	switch (size) {
	case 1: return reg_ld8(c, r);
	case 2: return reg_ld16(c, r);
	case 4: return reg_ld32(c, r);
	default: return reg_ld64(c, r);
	}
}
static inline void reg_st(struct cpu *c, unsigned r, u64 v, unsigned size)
{
	switch (size) {
	case 1: reg_st8(c, r, (u8)v); break;
	case 2: reg_st16(c, r, (u16)v); break;
	case 4: reg_st32(c, r, (u32)v); break;
	default: reg_st64(c, r, v);
	}
}

/* ---- memory operand */
static inline u64 addr_mask(unsigned adsz)
{
	return adsz == 8 ? ~0ull : adsz == 4 ? 0xffffffffull : 0xffffull;
}
/* Offset within the segment (LEA). */
static inline u64 insn_ea(const struct cpu *c, const struct insn *i)
{
	u64 ea = c->regs[i->base] + (c->regs[i->index] << i->scale) + (u64)i->disp;
	return likely(i->adsz == 8) ? ea : ea & addr_mask(i->adsz);
}
static inline u64 insn_lin(struct cpu *c, const struct insn *i, unsigned size, enum access acc)
{
	return cpu_linear(c, i->seg, insn_ea(c, i), size, acc);
}
static inline u64 mem_ld(struct cpu *c, u64 lin, unsigned size)
{
	switch (size) {
	case 1: return mem_ld8(c, lin);
	case 2: return mem_ld16(c, lin);
	case 4: return mem_ld32(c, lin);
	default: return mem_ld64(c, lin);
	}
}
static inline void mem_st(struct cpu *c, u64 lin, u64 v, unsigned size)
{
	switch (size) {
	case 1: mem_st8(c, lin, (u8)v); break;
	case 2: mem_st16(c, lin, (u16)v); break;
	case 4: mem_st32(c, lin, (u32)v); break;
	default: mem_st64(c, lin, v);
	}
}

/* ---- stack. sp changes only after the access. */
static inline void sp_set(struct cpu *c, u64 sp)
{
	c->regs[R_SP] = (c->regs[R_SP] & ~c->sp_mask) | (sp & c->sp_mask);
	if (c->sp_mask == 0xffffffff)
		c->regs[R_SP] = (u32)sp;
}
static inline void push(struct cpu *c, u64 v, unsigned size)
{
	u64 sp = (c->regs[R_SP] - size) & c->sp_mask;
	mem_st(c, cpu_linear(c, S_SS, sp, size, ACC_WRITE), v, size);
	sp_set(c, sp);
}
static inline u64 pop_peek(struct cpu *c, unsigned skip, unsigned size)
{
	u64 sp = (c->regs[R_SP] + skip) & c->sp_mask;
	return mem_ld(c, cpu_linear(c, S_SS, sp, size, ACC_READ), size);
}

/* ---- flags */
static inline void flags_set(struct cpu *c, u64 val, u64 mask)
{
	c->rflags = (c->rflags & ~mask) | (val & mask);
}

/* ---- string instructions: MOVS and its kin, INS, OUTS */

/* Adds to an index or the counter: 16-bit ones keep the upper part, 32-bit ones clear it. */
static inline void str_add(struct cpu *c, unsigned r, i64 by, u64 mask)
{
	u64 v = (c->regs[r] + (u64)by) & mask;
	c->regs[r] = mask == 0xffff ? (c->regs[r] & ~mask) | v : v;
}
/* After an iteration or a run: true if the instruction must be left for an event or a trap.
 * RIP then points back at it, with RF set: what is pushed has it, and its own code breakpoint
 * does not hit again (SDM vol. 3 17.3.1.1). */
static inline bool rep_leave(struct cpu *c, const struct insn *i, u64 mask)
{
	if (likely(!c->slow && !(atomic_load_explicit(&c->events, memory_order_relaxed) & c->event_mask)))
		return false;
	if (c->regs[R_CX] & mask) {
		c->rip = insn_rip(c, i);
		c->rflags |= FL_RF;
		cpu_update_events(c);
	}
	return true;
}

/* The engine's decode of vector, x87 and other host-executed instructions (native.c). Fills fn,
 * aux and what its handlers need. 0 or -1 (#UD). */
struct native;
int native_decode(struct cpu *c, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo,
		  const u8 *bytes, struct insn *out);
bool native_init(struct cpu *c, struct error *e);  /* per vCPU: stub arena; sets nothing global but the signal handlers */
void native_destroy(struct cpu *c);
/* Before an x87 instruction that waits: a pending exception is #MF or, with CR0.NE clear, FERR#, and
 * the instruction starts again. After one that leaves none pending: FERR# is taken back. */
void x87_wait(struct cpu *c);
void x87_nothing_pending(struct cpu *c);
/* True when the stub arena must be emptied: the engine drops all blocks and calls native_reset. */
bool native_full(const struct cpu *c);
void native_reset(struct cpu *c);
u64 native_resets(const struct cpu *c); /* how often: decoded instructions of before are no more */

/* isa_ops by mnemonic (ops.c). */
#define MAX_OPS 4096
struct op_index { u16 first[ZYDIS_MNEMONIC_MAX_VALUE + 1]; u16 next[MAX_OPS]; };
void op_index_build(struct op_index *x);
const struct op *op_find(const struct op_index *x, unsigned mnemonic, enum op_form form, bool string);
const struct op *op_of_insn(const struct op_index *x, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo);

/* The interpreter's state of one vCPU: c->engine (first member of any engine that uses handlers). */
struct interp {
	struct native *native;
	struct block_cache *blocks;
	struct op_index ops;
	unsigned quirks;   /* enum isa_quirk of this model */
};
static inline struct interp *interp_of(const struct cpu *c) { return c->engine; }

#endif
