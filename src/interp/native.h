/* Instructions run by the host's own: what native*.c share. Private to them.
 *
 * At decode an instruction becomes a stub: a small function in the arena that loads the
 * operands from struct cpu, runs the guest's instruction encoded anew, and stores what it
 * wrote. Equal stubs are one.
 *
 * Invariants
 *  1. In a stub rdi is struct cpu and rsi the host's address of the memory operand (aligned
 *     like the guest's modulo 64). It uses rax rcx rdx r8-r11, vectors and opmasks, and no
 *     stack: wherever it faults, rsp points to the return address.
 *  2. The guest's instruction can touch no memory but [rsi], and no register that holds more
 *     than its operands: general registers are mapped to r8-r11, or are rax, rcx, rdx.
 *  3. Where it faults (native_trap.c), nothing of the guest's has been stored. */
#ifndef RING3_INTERP_NATIVE_H
#define RING3_INTERP_NATIVE_H

#include "interp/op_api.h"

typedef void stub_fn(struct cpu *c, void *mem);

#define STUB_MAX 320 /* bytes of one stub at most */

struct native {
	struct cpu *cpu;
	u8 *rw, *rx;        /* the arena, twice: where it is written, where it runs */
	u32 used;           /* bytes */
	u32 n_stubs;
	u64 resets;         /* how often it was emptied: stubs of before are gone */
	u32 *table;         /* by hash: offset + 1; open addressing */
	bool zmm;           /* the host has AVX-512: whole registers are stored */
	bool opmask64;      /* and AVX512BW: KMOVQ */
	bool ferr;          /* FERR# is asserted */
	int slot;           /* in native_trap.c's list */
	int fault_sig;      /* written by the signal handler */
	unsigned fault_trap;
	u64 fault_addr;
};

#define ARENA_SIZE (16u << 20)
#define TABLE_SIZE (1u << 18)

/* What struct insn holds for the handlers here. */
static inline stub_fn *insn_stub(const struct insn *i) { return (stub_fn *)(uintptr_t)i->aux; }
/* r: enum fpu_class; r3: low address bits that must be 0. imm, imm2, rm: the handler's own. */

static inline bool bit_of(u64 set, unsigned n) { return set >> n & 1; }

/* native_emit.c: the stub of an instruction whose memory operand, if any, is [rsi]. Returns its
 * length, 0 if it cannot be encoded. */
unsigned native_emit(const struct native *n, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo,
		     const u8 *bytes, u8 code[STUB_MAX]);
/* MASKMOVQ: its two MMX registers to [rsi]. */
unsigned native_emit_maskmovq(const ZydisDecodedOperand *zo, u8 code[STUB_MAX]);
/* Only the instruction as a stub has it; for the test of the encoder. */
unsigned native_reencode(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo, const u8 *bytes, u8 *code);

/* native_arena.c */
bool arena_init(struct native *n, struct error *e);
void arena_destroy(struct native *n);
void *arena_add(struct native *n, const u8 *code, unsigned len); /* NULL: full */

/* native_trap.c */
bool trap_init(struct native *n, struct error *e);
void trap_destroy(struct native *n);
_Noreturn void native_mf(struct cpu *c); /* an x87 exception is pending */

/* native.c */
static inline unsigned reg_number(const ZydisDecodedOperand *o) { return (unsigned)ZydisRegisterGetId(o->reg.value); }
void native_ferr(struct cpu *c, bool level); /* FERR# */
bool native_misaligned(struct cpu *c, const struct insn *i); /* raises, or returns where MXCSR.MM allows it */
static inline void native_check(struct cpu *c, const struct insn *i)
{
	if (unlikely(c->nofpu[i->r]))
		cpu_raise(c, c->nofpu[i->r]);
}
/* Fast half of mem_begin: NULL where it has to do more than look. */
static inline u8 *host_read(struct cpu *c, u64 lin, unsigned n)
{
	struct tlb_entry *e = tlb_slot(c, lin);
	bool hit = e->rtag == ((lin & ~PAGE_MASK) | c->epoch) && (lin & PAGE_MASK) <= PAGE_SIZE - n;
	return likely(hit) ? (u8 *)(lin + e->addend) : NULL;
}
static inline u8 *host_write(struct cpu *c, u64 lin, unsigned n)
{
	struct tlb_entry *e = tlb_slot(c, lin);
	bool hit = e->wtag == ((lin & ~PAGE_MASK) | c->epoch) && (lin & PAGE_MASK) <= PAGE_SIZE - n;
	return likely(hit) ? (u8 *)(lin + e->addend) : NULL;
}
/* After a store through host_write. */
static inline void host_written(struct cpu *c, u64 lin, unsigned n)
{
	struct tlb_entry *e = tlb_slot(c, lin);
	if (unlikely(atomic_load_explicit(&e->code->lines, memory_order_relaxed)))
		mem_code_hit(c, e->code, lin & PAGE_MASK, n);
}

/* native_mask.c: those whose memory depends on a mask. True if it is one: fn and what it needs
 * are set. */
bool native_decode_masked(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo,
			  const ZydisDecodedOperand *mem, struct insn *out);
bool native_in_c(const ZydisDecodedInstruction *zi); /* its handler uses no stub */

#endif
