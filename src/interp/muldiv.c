/* MUL, IMUL, DIV, IDIV in all forms and the sign extensions of the accumulator. The host's
 * instruction computes; DIV and IDIV are checked first (#DE by zero and by overflow) so that
 * the host never traps. SDM vol. 2. */
#include "interp/flags.h"

/* ---- MUL, IMUL: accumulator forms */

#define MUL8(name, mn) \
static inline void name##_8(struct cpu *c, u8 b) \
{ \
	u32 ax = reg_ld8(c, 0); \
	u32 f = flags_for_load(c); \
	asm(LOAD_STATUS "movl %k0, %%eax\n\t" mn " %b2\n\tmovl %%eax, %k0\n\t" GRAB : "+&r"(ax), "+&a"(f) : "q"(b) : "cc"); \
	reg_st16(c, R_AX, (u16)ax); \
	flags_put(c, f); \
}
#define MULW(name, mn, bits, m) \
static inline void name##_##bits(struct cpu *c, u##bits b) \
{ \
	u##bits lo = (u##bits)c->regs[R_AX], hi; \
	u64 f = flags_for_load(c); \
	asm(LOAD_STATUS "mov %" m "0, %" m "1\n\t" mn " %" m "3\n\tmov %" m "1, %" m "0\n\t" GRAB \
	    : "+&r"(lo), "+&a"(f), "=&d"(hi) : "r"(b) : "cc"); \
	reg_st##bits(c, R_AX, lo); \
	reg_st##bits(c, R_DX, hi); \
	flags_put(c, (unsigned)f); \
}
MUL8(mul, "mulb") MUL8(imul, "imulb")
#define X(bits, m) MULW(mul, "mul", bits, m) MULW(imul, "imul", bits, m)
WSIZES(X)
#undef X

#define X(bits, m) \
OP(op_mul_r_##bits) { mul_##bits(c, reg_ld##bits(c, i->r)); } \
OP(op_mul_m_##bits) { mul_##bits(c, mem_ld##bits(c, insn_lin(c, i, bits / 8, ACC_READ))); } \
OP(op_imul_r_##bits) { imul_##bits(c, reg_ld##bits(c, i->r)); } \
OP(op_imul_m_##bits) { imul_##bits(c, mem_ld##bits(c, insn_lin(c, i, bits / 8, ACC_READ))); }
SIZES(X)
#undef X

/* ---- IMUL: two and three operands */

#define X(bits, m) \
static inline u##bits imul2_##bits(struct cpu *c, u##bits a, u##bits b) \
{ \
	unsigned f = flags_for_load(c); \
	asm(LOAD_STATUS "imul %" m "2, %" m "0\n\t" GRAB : "+&r"(a), "+&a"(f) : "r"(b) : "cc"); \
	flags_put(c, f); \
	return a; \
} \
OP(op_imul_rr_##bits) { reg_st##bits(c, i->r, imul2_##bits(c, reg_ld##bits(c, i->r), reg_ld##bits(c, i->rm))); } \
OP(op_imul_rm_##bits) \
{ \
	u##bits b = mem_ld##bits(c, insn_lin(c, i, bits / 8, ACC_READ)); \
	reg_st##bits(c, i->r, imul2_##bits(c, reg_ld##bits(c, i->r), b)); \
} \
OP(op_imul_rri_##bits) { reg_st##bits(c, i->r, imul2_##bits(c, reg_ld##bits(c, i->rm), (u##bits)i->imm)); } \
OP(op_imul_rmi_##bits) \
{ \
	u##bits b = mem_ld##bits(c, insn_lin(c, i, bits / 8, ACC_READ)); \
	reg_st##bits(c, i->r, imul2_##bits(c, b, (u##bits)i->imm)); \
}
WSIZES(X)
#undef X

/* ---- DIV, IDIV. Status flags are undefined: the host's are taken. */

static inline void div_8(struct cpu *c, u8 d)
{
	u16 n = reg_ld16(c, R_AX);
	if (!d || n / d > 0xff)
		cpu_raise(c, V_DE);
	u32 q = n;
	unsigned f = flags_for_load(c);
	asm(LOAD_STATUS "movl %k0, %%eax\n\tdivb %b2\n\tmovl %%eax, %k0\n\t" GRAB : "+&r"(q), "+&a"(f) : "q"(d) : "cc");
	reg_st16(c, R_AX, (u16)q);
	flags_put(c, f);
}
static inline void idiv_8(struct cpu *c, u8 d)
{
	i16 n = (i16)reg_ld16(c, R_AX);
	i32 quo = (i8)d ? (i32)n / (i8)d : 0;
	if (!d || quo > 127 || quo < -128)
		cpu_raise(c, V_DE);
	u32 q = (u16)n;
	unsigned f = flags_for_load(c);
	asm(LOAD_STATUS "movl %k0, %%eax\n\tidivb %b2\n\tmovl %%eax, %k0\n\t" GRAB : "+&r"(q), "+&a"(f) : "q"(d) : "cc");
	reg_st16(c, R_AX, (u16)q);
	flags_put(c, f);
}

/* Whether hi:lo / d overflows a signed quotient of `bits` bits. */
#define IDIV_BAD(bits, wide) \
static inline bool idiv_bad_##bits(u##bits lo, u##bits hi, u##bits d) \
{ \
	wide n = (wide)(((unsigned wide)hi << bits) | lo); \
	if (!d) \
		return true; \
	unsigned wide un = n < 0 ? -(unsigned wide)n : (unsigned wide)n; \
	unsigned wide ud = (i##bits)d < 0 ? (unsigned wide)(u##bits)-d : d; \
	unsigned wide q = un / ud; \
	unsigned wide top = (unsigned wide)1 << (bits - 1); \
	return (n < 0) != ((i##bits)d < 0) ? q > top : q >= top; \
}
IDIV_BAD(16, int)
IDIV_BAD(32, long)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
IDIV_BAD(64, __int128)
#pragma GCC diagnostic pop

#define DIVW(bits, m) \
static inline void div_core_##bits(struct cpu *c, u##bits d, bool is_signed) \
{ \
	u##bits lo = reg_ld##bits(c, R_AX), hi = reg_ld##bits(c, R_DX), q = lo; \
	u64 f = flags_for_load(c); \
	if (is_signed ? idiv_bad_##bits(lo, hi, d) : !d || hi >= d) \
		cpu_raise(c, V_DE); \
	if (is_signed) \
		asm(LOAD_STATUS "mov %" m "0, %" m "1\n\tidiv %" m "3\n\tmov %" m "1, %" m "0\n\t" GRAB \
		    : "+&r"(q), "+&a"(f), "+&d"(hi) : "r"(d) : "cc"); \
	else \
		asm(LOAD_STATUS "mov %" m "0, %" m "1\n\tdiv %" m "3\n\tmov %" m "1, %" m "0\n\t" GRAB \
		    : "+&r"(q), "+&a"(f), "+&d"(hi) : "r"(d) : "cc"); \
	reg_st##bits(c, R_AX, q); \
	reg_st##bits(c, R_DX, hi); \
	flags_put(c, (unsigned)f); \
} \
static inline void div_##bits(struct cpu *c, u##bits d) { div_core_##bits(c, d, false); } \
static inline void idiv_##bits(struct cpu *c, u##bits d) { div_core_##bits(c, d, true); }
WSIZES(DIVW)

#define X(bits, m) \
OP(op_div_r_##bits) { div_##bits(c, reg_ld##bits(c, i->r)); } \
OP(op_div_m_##bits) { div_##bits(c, mem_ld##bits(c, insn_lin(c, i, bits / 8, ACC_READ))); } \
OP(op_idiv_r_##bits) { idiv_##bits(c, reg_ld##bits(c, i->r)); } \
OP(op_idiv_m_##bits) { idiv_##bits(c, mem_ld##bits(c, insn_lin(c, i, bits / 8, ACC_READ))); }
SIZES(X)
#undef X

/* ---- sign extension of the accumulator */
OP(op_cbw) { reg_st16(c, R_AX, (u16)(i8)c->regs[R_AX]); }
OP(op_cwde) { reg_st32(c, R_AX, (u32)(i16)c->regs[R_AX]); }
OP(op_cdqe) { c->regs[R_AX] = (u64)(i32)c->regs[R_AX]; }
OP(op_cwd) { reg_st16(c, R_DX, (u16)((i16)c->regs[R_AX] >> 15)); }
OP(op_cdq) { reg_st32(c, R_DX, (u32)((i32)c->regs[R_AX] >> 31)); }
OP(op_cqo) { c->regs[R_DX] = (u64)((i64)c->regs[R_AX] >> 63); }
