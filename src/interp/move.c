/* Moves and exchanges: MOV MOVZX MOVSX LEA XCHG XADD CMPXCHG CMPXCHG8B/16B CMOVcc XLAT, flag
 * moves, NOP. XCHG with memory is always locked. SDM vol. 2. */
#include "interp/cond.h"
#include "interp/flags.h"

#define X(bits, m) \
OP(op_mov_rr_##bits) { reg_st##bits(c, i->r, reg_ld##bits(c, i->rm)); } \
OP(op_mov_ri_##bits) { reg_st##bits(c, i->r, (u##bits)i->imm); } \
OP(op_mov_rm_##bits) { reg_st##bits(c, i->r, mem_ld##bits(c, insn_lin(c, i, bits / 8, ACC_READ))); } \
OP(op_mov_mr_##bits) { mem_st##bits(c, insn_lin(c, i, bits / 8, ACC_WRITE), reg_ld##bits(c, i->r)); } \
OP(op_mov_mi_##bits) { mem_st##bits(c, insn_lin(c, i, bits / 8, ACC_WRITE), (u##bits)i->imm); }
SIZES(X)
#undef X

/* Handlers by source size; the destination's size is opsz. */
static inline void extend_st(struct cpu *c, const struct insn *i, u64 v)
{
	if (i->opsz == 4)
		reg_st32(c, i->r, (u32)v);
	else if (i->opsz == 8)
		reg_st64(c, i->r, v);
	else
		reg_st16(c, i->r, (u16)v);
}
#define X(bits, m) \
OP(op_movzx_rr_##bits) { extend_st(c, i, reg_ld##bits(c, i->rm)); } \
OP(op_movzx_rm_##bits) { extend_st(c, i, mem_ld##bits(c, insn_lin(c, i, bits / 8, ACC_READ))); } \
OP(op_movsx_rr_##bits) { extend_st(c, i, (u64)(i64)(i##bits)reg_ld##bits(c, i->rm)); } \
OP(op_movsx_rm_##bits) { extend_st(c, i, (u64)(i64)(i##bits)mem_ld##bits(c, insn_lin(c, i, bits / 8, ACC_READ))); }
SIZES(X)
#undef X

#define X(bits, m) OP(op_lea_##bits) { reg_st##bits(c, i->r, (u##bits)insn_ea(c, i)); }
WSIZES(X)
#undef X

/* ---- exchanges */

#define X(bits, m) \
OP(op_xchg_rr_##bits) \
{ \
	u##bits a = reg_ld##bits(c, i->r), b = reg_ld##bits(c, i->rm); \
	reg_st##bits(c, i->r, b); \
	reg_st##bits(c, i->rm, a); \
} \
OP(op_xchg_mr_##bits) \
{ \
	struct mem_ref r; \
	u##bits *p = (void *)mem_begin(c, &r, insn_lin(c, i, bits / 8, ACC_WRITE), bits / 8, true, true, true); \
	u##bits v = reg_ld##bits(c, i->r); \
	asm volatile("xchg %" m "0, %1" : "+q"(v), "+m"(*p) : : "memory"); \
	mem_end(c, &r); \
	reg_st##bits(c, i->r, v); \
} \
OP(op_xadd_rr_##bits) \
{ \
	u##bits a = reg_ld##bits(c, i->r), b = reg_ld##bits(c, i->rm); \
	unsigned f; \
	asm("xadd %" m "1, %" m "0\n\t" GRAB : "+q"(a), "+q"(b), "=&a"(f) : : "cc"); \
	reg_st##bits(c, i->rm, b); \
	reg_st##bits(c, i->r, a); \
	flags_put(c, f); \
} \
OP(op_xadd_mr_##bits) \
{ \
	struct mem_ref r; \
	u##bits *p = (void *)mem_begin(c, &r, insn_lin(c, i, bits / 8, ACC_WRITE), bits / 8, true, true, i->flags & IF_LOCK); \
	u##bits v = reg_ld##bits(c, i->r); \
	unsigned f; \
	if (i->flags & IF_LOCK) \
		asm volatile("lock xadd %" m "0, %1\n\t" GRAB : "+q"(v), "+m"(*p), "=&a"(f) : : "cc", "memory"); \
	else \
		asm volatile("xadd %" m "0, %1\n\t" GRAB : "+q"(v), "+m"(*p), "=&a"(f) : : "cc", "memory"); \
	mem_end(c, &r); \
	reg_st##bits(c, i->r, v); \
	flags_put(c, f); \
}
SIZES(X)
#undef X

/* CMPXCHG: the accumulator is written only on failure (with 32 bits, the upper half is then
 * cleared; on success it is left alone), the register destination of a failed one keeps its value. */
#define X(bits, m) \
static inline void cmpxchg_done_##bits(struct cpu *c, u64 acc, unsigned f) \
{ \
	flags_put(c, f); \
	if (!(c->rflags & FL_ZF)) \
		reg_st##bits(c, bits == 8 ? R_AX * 8 : R_AX, (u##bits)acc); \
} \
OP(op_cmpxchg_rr_##bits) \
{ \
	u##bits d = reg_ld##bits(c, i->r), s = reg_ld##bits(c, i->rm); \
	u64 acc = c->regs[R_AX], old; \
	asm("cmpxchg %" m "3, %" m "0\n\tmov %%rax, %1\n\t" GRAB : "+&q"(d), "=&r"(old), "+a"(acc) : "q"(s) : "cc"); \
	unsigned f = (unsigned)acc; \
	cmpxchg_done_##bits(c, old, f); \
	if (c->rflags & FL_ZF) /* else not even bits 63:32 change */ \
		reg_st##bits(c, i->r, d); \
} \
OP(op_cmpxchg_mr_##bits) \
{ \
	struct mem_ref r; \
	u##bits *p = (void *)mem_begin(c, &r, insn_lin(c, i, bits / 8, ACC_WRITE), bits / 8, true, true, i->flags & IF_LOCK); \
	u##bits s = reg_ld##bits(c, i->r); \
	u64 acc = c->regs[R_AX], old; \
	if (i->flags & IF_LOCK) \
		asm volatile("lock cmpxchg %" m "3, %2\n\tmov %%rax, %0\n\t" GRAB : "=&r"(old), "+a"(acc), "+m"(*p) : "q"(s) : "cc", "memory"); \
	else \
		asm volatile("cmpxchg %" m "3, %2\n\tmov %%rax, %0\n\t" GRAB : "=&r"(old), "+a"(acc), "+m"(*p) : "q"(s) : "cc", "memory"); \
	unsigned f = (unsigned)acc; \
	mem_end(c, &r); \
	cmpxchg_done_##bits(c, old, f); \
}
SIZES(X)
#undef X

OP(op_cmpxchg8b)
{
	struct mem_ref r;
	u64 *p = (void *)mem_begin(c, &r, insn_lin(c, i, 8, ACC_WRITE), 8, true, true, i->flags & IF_LOCK);
	u64 expect = (u64)(u32)c->regs[R_DX] << 32 | (u32)c->regs[R_AX];
	u64 want = (u64)(u32)c->regs[R_CX] << 32 | (u32)c->regs[R_BX];
	bool ok = true;
	if (i->flags & IF_LOCK) {
		asm volatile("lock cmpxchg %3, %1\n\tsete %2" : "+a"(expect), "+m"(*p), "=q"(ok) : "r"(want) : "cc", "memory");
	} else if (*p == expect) {
		*p = want;
	} else {
		expect = *p;
		ok = false;
	}
	mem_end(c, &r);
	flags_set(c, ok ? FL_ZF : 0, FL_ZF);
	if (!ok) {
		reg_st32(c, R_AX, (u32)expect);
		reg_st32(c, R_DX, (u32)(expect >> 32));
	}
}

OP(op_cmpxchg16b)
{
	struct mem_ref r;
	u64 lin = insn_lin(c, i, 16, ACC_WRITE);
	if (lin & 15)
		cpu_gp0(c);
	u8 *p = mem_begin(c, &r, lin, 16, true, true, i->flags & IF_LOCK);
	u64 lo = c->regs[R_AX], hi = c->regs[R_DX];
	bool ok;
	asm volatile("lock cmpxchg16b %0\n\tsete %3"
		     : "+m"(*(u8(*)[16])p), "+a"(lo), "+d"(hi), "=q"(ok)
		     : "b"(c->regs[R_BX]), "c"(c->regs[R_CX]) : "cc", "memory");
	mem_end(c, &r);
	flags_set(c, ok ? FL_ZF : 0, FL_ZF);
	if (!ok) {
		c->regs[R_AX] = lo;
		c->regs[R_DX] = hi;
	}
}

/* CMOVcc reads its memory operand and clears bits 63:32 of a 32-bit destination in any case. */
#define CMOV(cc, bits) \
OP(op_cmov_rr_##cc##_##bits) \
{ \
	u##bits v = reg_ld##bits(c, i->rm); \
	reg_st##bits(c, i->r, cond_##cc(c) ? v : reg_ld##bits(c, i->r)); \
} \
OP(op_cmov_rm_##cc##_##bits) \
{ \
	u##bits v = mem_ld##bits(c, insn_lin(c, i, bits / 8, ACC_READ)); \
	reg_st##bits(c, i->r, cond_##cc(c) ? v : reg_ld##bits(c, i->r)); \
}
#define X(cc, n) CMOV(cc, 16) CMOV(cc, 32) CMOV(cc, 64)
CONDITIONS(X)
#undef X

/* The segment and address size are in the memory operand; the index is AL, zero-extended. */
OP(op_xlat)
{
	u64 ea = (c->regs[R_BX] + reg_ld8(c, R_AX * 8)) & addr_mask(i->adsz);
	reg_st8(c, R_AX * 8, mem_ld8(c, cpu_linear(c, i->seg, ea, 1, ACC_READ)));
}

/* ---- flags and nothing */
#define FL_LAHF ((u64)(FL_SF | FL_ZF | FL_AF | FL_PF | FL_CF))
OP(op_lahf) { reg_st8(c, R_AX * 8 + 1, (u8)((c->rflags & FL_LAHF) | FL_1)); }
OP(op_sahf) { flags_set(c, reg_ld8(c, R_AX * 8 + 1), FL_LAHF); }
OP(op_clc) { c->rflags &= ~(u64)FL_CF; }
OP(op_stc) { c->rflags |= FL_CF; }
OP(op_cmc) { c->rflags ^= FL_CF; }
OP(op_cld) { c->rflags &= ~(u64)FL_DF; }
OP(op_std) { c->rflags |= FL_DF; }
OP(op_nop) { }
OP(op_salc) { reg_st8(c, R_AX * 8, c->rflags & FL_CF ? 0xff : 0); }
