/* Arithmetic and logic with flags: ADD OR ADC SBB AND SUB XOR CMP TEST INC DEC NEG NOT, in every
 * size and operand form. The host's instruction computes both result and flags, so that flags
 * which the manual leaves undefined are the silicon's. With LOCK the host's locked instruction
 * works on guest memory itself. SDM vol. 2. */
#include "interp/flags.h"

#define UT(bits) u##bits

/* dst op= src; cf: the instruction reads CF. */
#define ALU_FN(name, mn, bits, m) \
static inline UT(bits) name##_##bits(struct cpu *c, UT(bits) a, UT(bits) b) \
{ \
	unsigned f; \
	asm(mn " %" m "2, %" m "0\n\t" GRAB : "+q"(a), "=&a"(f) : "q"(b) : "cc"); \
	flags_put(c, f); \
	return a; \
} \
static inline void name##_mem_##bits(struct cpu *c, u8 *p, UT(bits) b, bool lock) \
{ \
	unsigned f; \
	if (unlikely(lock)) \
		asm volatile("lock " mn " %" m "2, %1\n\t" GRAB : "=&a"(f), "+m"(*(UT(bits) *)(void *)p) : "q"(b) : "cc", "memory"); \
	else \
		asm volatile(mn " %" m "2, %1\n\t" GRAB : "=&a"(f), "+m"(*(UT(bits) *)(void *)p) : "q"(b) : "cc", "memory"); \
	flags_put(c, f); \
}
#define ALU_CF_FN(name, mn, bits, m) \
static inline UT(bits) name##_##bits(struct cpu *c, UT(bits) a, UT(bits) b) \
{ \
	unsigned f; \
	asm(LOAD_CF("%k3") mn " %" m "2, %" m "0\n\t" GRAB : "+q"(a), "=&a"(f) : "q"(b), "r"((u32)c->rflags) : "cc"); \
	flags_put(c, f); \
	return a; \
} \
static inline void name##_mem_##bits(struct cpu *c, u8 *p, UT(bits) b, bool lock) \
{ \
	unsigned f; \
	if (unlikely(lock)) \
		asm volatile(LOAD_CF("%k3") "lock " mn " %" m "2, %1\n\t" GRAB \
			     : "=&a"(f), "+m"(*(UT(bits) *)(void *)p) : "q"(b), "r"((u32)c->rflags) : "cc", "memory"); \
	else \
		asm volatile(LOAD_CF("%k3") mn " %" m "2, %1\n\t" GRAB \
			     : "=&a"(f), "+m"(*(UT(bits) *)(void *)p) : "q"(b), "r"((u32)c->rflags) : "cc", "memory"); \
	flags_put(c, f); \
}

/* The handlers of a two-operand instruction that writes its destination. */
#define ALU_OPS(name, bits) \
OP(op_##name##_rr_##bits) \
{ \
	reg_st##bits(c, i->r, name##_##bits(c, reg_ld##bits(c, i->r), reg_ld##bits(c, i->rm))); \
} \
OP(op_##name##_ri_##bits) \
{ \
	reg_st##bits(c, i->r, name##_##bits(c, reg_ld##bits(c, i->r), (UT(bits))i->imm)); \
} \
OP(op_##name##_rm_##bits) \
{ \
	UT(bits) b = mem_ld##bits(c, insn_lin(c, i, bits / 8, ACC_READ)); \
	reg_st##bits(c, i->r, name##_##bits(c, reg_ld##bits(c, i->r), b)); \
} \
OP(op_##name##_mr_##bits) \
{ \
	struct mem_ref r; \
	u8 *p = mem_begin(c, &r, insn_lin(c, i, bits / 8, ACC_WRITE), bits / 8, true, true, i->flags & IF_LOCK); \
	name##_mem_##bits(c, p, reg_ld##bits(c, i->r), i->flags & IF_LOCK); \
	mem_end(c, &r); \
} \
OP(op_##name##_mi_##bits) \
{ \
	struct mem_ref r; \
	u8 *p = mem_begin(c, &r, insn_lin(c, i, bits / 8, ACC_WRITE), bits / 8, true, true, i->flags & IF_LOCK); \
	name##_mem_##bits(c, p, (UT(bits))i->imm, i->flags & IF_LOCK); \
	mem_end(c, &r); \
}

#define X(bits, m) \
	ALU_FN(add, "add", bits, m) ALU_FN(or, "or", bits, m) ALU_FN(and, "and", bits, m) \
	ALU_FN(sub, "sub", bits, m) ALU_FN(xor, "xor", bits, m) \
	ALU_CF_FN(adc, "adc", bits, m) ALU_CF_FN(sbb, "sbb", bits, m) \
	ALU_OPS(add, bits) ALU_OPS(or, bits) ALU_OPS(and, bits) ALU_OPS(sub, bits) ALU_OPS(xor, bits) \
	ALU_OPS(adc, bits) ALU_OPS(sbb, bits)
SIZES(X)
#undef X

/* ---- compare and test: flags only */

#define FLAG_FN(name, mn, bits, m) \
static inline void name##_##bits(struct cpu *c, UT(bits) a, UT(bits) b) \
{ \
	unsigned f; \
	asm(mn " %" m "2, %" m "1\n\t" GRAB : "=&a"(f) : "q"(a), "q"(b) : "cc"); \
	flags_put(c, f); \
} \
OP(op_##name##_rr_##bits) { name##_##bits(c, reg_ld##bits(c, i->r), reg_ld##bits(c, i->rm)); } \
OP(op_##name##_ri_##bits) { name##_##bits(c, reg_ld##bits(c, i->r), (UT(bits))i->imm); } \
OP(op_##name##_mr_##bits) \
{ \
	UT(bits) a = mem_ld##bits(c, insn_lin(c, i, bits / 8, ACC_READ)); \
	name##_##bits(c, a, reg_ld##bits(c, i->r)); \
} \
OP(op_##name##_mi_##bits) \
{ \
	name##_##bits(c, mem_ld##bits(c, insn_lin(c, i, bits / 8, ACC_READ)), (UT(bits))i->imm); \
}

#define X(bits, m) \
	FLAG_FN(cmp, "cmp", bits, m) FLAG_FN(test, "test", bits, m) \
	OP(op_cmp_rm_##bits) \
	{ \
		UT(bits) b = mem_ld##bits(c, insn_lin(c, i, bits / 8, ACC_READ)); \
		cmp_##bits(c, reg_ld##bits(c, i->r), b); \
	}
SIZES(X)
#undef X

/* ---- one operand. INC and DEC keep CF: it is loaded first. NOT touches no flag. */

#define UNARY_FN(name, mn, bits, m) \
static inline UT(bits) name##_##bits(struct cpu *c, UT(bits) a) \
{ \
	unsigned f; \
	asm(LOAD_CF("%k2") mn " %" m "0\n\t" GRAB : "+q"(a), "=&a"(f) : "r"((u32)c->rflags) : "cc"); \
	flags_put(c, f); \
	return a; \
} \
static inline void name##_mem_##bits(struct cpu *c, u8 *p, bool lock) \
{ \
	unsigned f; \
	if (unlikely(lock)) \
		asm volatile(LOAD_CF("%k2") "lock " mn " %1\n\t" GRAB \
			     : "=&a"(f), "+m"(*(UT(bits) *)(void *)p) : "r"((u32)c->rflags) : "cc", "memory"); \
	else \
		asm volatile(LOAD_CF("%k2") mn " %1\n\t" GRAB \
			     : "=&a"(f), "+m"(*(UT(bits) *)(void *)p) : "r"((u32)c->rflags) : "cc", "memory"); \
	flags_put(c, f); \
} \
UNARY_OPS(name, bits)
#define UNARY_OPS(name, bits) \
OP(op_##name##_r_##bits) { reg_st##bits(c, i->r, name##_##bits(c, reg_ld##bits(c, i->r))); } \
OP(op_##name##_m_##bits) \
{ \
	struct mem_ref r; \
	u8 *p = mem_begin(c, &r, insn_lin(c, i, bits / 8, ACC_WRITE), bits / 8, true, true, i->flags & IF_LOCK); \
	name##_mem_##bits(c, p, i->flags & IF_LOCK); \
	mem_end(c, &r); \
}
#define NOT_FN(bits, m, sfx) \
static inline UT(bits) not_##bits(struct cpu *c, UT(bits) a) { (void)c; return (UT(bits))~a; } \
static inline void not_mem_##bits(struct cpu *c, u8 *p, bool lock) \
{ \
	(void)c; \
	if (unlikely(lock)) \
		asm volatile("lock not" sfx " %0" : "+m"(*(UT(bits) *)(void *)p) : : "memory"); \
	else \
		asm volatile("not" sfx " %0" : "+m"(*(UT(bits) *)(void *)p) : : "memory"); \
} \
UNARY_OPS(not, bits)
#define UNARY(bits, m, sfx) \
	UNARY_FN(inc, "inc" sfx, bits, m) UNARY_FN(dec, "dec" sfx, bits, m) UNARY_FN(neg, "neg" sfx, bits, m) \
	NOT_FN(bits, m, sfx)
UNARY(8, "b", "b")
UNARY(16, "w", "w")
UNARY(32, "k", "l")
UNARY(64, "q", "q")
