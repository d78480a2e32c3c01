/* Shifts and rotates: SHL SHR SAR ROL ROR RCL RCR, SHLD SHRD. Counts are masked to 5 bits (6 with
 * 64-bit operands); a masked count of 0 changes no flag. Rotates change CF and OF alone. For
 * counts other than 1 OF is undefined and comes out as the host's. SDM vol. 2. */
#include "interp/flags.h"

#define FL_SHIFT ((u64)FL_STATUS)
#define FL_ROT ((u64)(FL_CF | FL_OF))
#define COUNT_MASK(bits) ((bits) == 64 ? 63 : 31)

/* The guest's status flags are loaded first (SAHF, and OF by an add), since what an
 * instruction leaves alone must be the guest's: flags_put_mask does that for the others. */
#define SHIFT_FN(name, mn, bits, m, mask) \
static inline u##bits name##_##bits(struct cpu *c, u##bits a, u8 count) \
{ \
	unsigned f; \
	count &= COUNT_MASK(bits); \
	if (!count) \
		return a; \
	asm(LOAD_CF("%k3") mn " %%cl, %" m "0\n\t" GRAB : "+q"(a), "=&a"(f) : "c"(count), "r"((u32)c->rflags) : "cc"); \
	flags_put_mask(c, f, mask); \
	return a; \
} \
OP(op_##name##_ri_##bits) { reg_st##bits(c, i->r, name##_##bits(c, reg_ld##bits(c, i->r), (u8)i->imm)); } \
OP(op_##name##_rc_##bits) { reg_st##bits(c, i->r, name##_##bits(c, reg_ld##bits(c, i->r), reg_ld8(c, R_CX * 8))); } \
static inline void name##_mem_##bits(struct cpu *c, const struct insn *i, u8 count) \
{ \
	struct mem_ref r; \
	u##bits *p = (void *)mem_begin(c, &r, insn_lin(c, i, bits / 8, ACC_WRITE), bits / 8, true, true, false); \
	*p = name##_##bits(c, *p, count); \
	mem_end(c, &r); \
} \
OP(op_##name##_mi_##bits) { name##_mem_##bits(c, i, (u8)i->imm); } \
OP(op_##name##_mc_##bits) { name##_mem_##bits(c, i, reg_ld8(c, R_CX * 8)); }

#define X(bits, m) \
	SHIFT_FN(shl, "shl", bits, m, FL_SHIFT) SHIFT_FN(shr, "shr", bits, m, FL_SHIFT) \
	SHIFT_FN(sar, "sar", bits, m, FL_SHIFT) SHIFT_FN(rol, "rol", bits, m, FL_ROT) \
	SHIFT_FN(ror, "ror", bits, m, FL_ROT) SHIFT_FN(rcl, "rcl", bits, m, FL_ROT) SHIFT_FN(rcr, "rcr", bits, m, FL_ROT)
SIZES(X)
#undef X

/* ---- double shifts. 16-bit ones with a count above 16: the host's result. */

#define DOUBLE_FN(name, mn, bits, m) \
static inline u##bits name##_##bits(struct cpu *c, u##bits a, u##bits b, u8 count) \
{ \
	unsigned f; \
	count &= COUNT_MASK(bits); \
	if (!count) \
		return a; \
	asm(mn " %%cl, %" m "3, %" m "0\n\t" GRAB : "+r"(a), "=&a"(f) : "c"(count), "r"(b) : "cc"); \
	flags_put_mask(c, f, FL_SHIFT); \
	return a; \
} \
OP(op_##name##_rri_##bits) \
{ \
	reg_st##bits(c, i->r, name##_##bits(c, reg_ld##bits(c, i->r), reg_ld##bits(c, i->rm), (u8)i->imm)); \
} \
OP(op_##name##_rrc_##bits) \
{ \
	reg_st##bits(c, i->r, name##_##bits(c, reg_ld##bits(c, i->r), reg_ld##bits(c, i->rm), reg_ld8(c, R_CX * 8))); \
} \
static inline void name##_mem_##bits(struct cpu *c, const struct insn *i, u8 count) \
{ \
	struct mem_ref r; \
	u##bits *p = (void *)mem_begin(c, &r, insn_lin(c, i, bits / 8, ACC_WRITE), bits / 8, true, true, false); \
	*p = name##_##bits(c, *p, reg_ld##bits(c, i->r), count); \
	mem_end(c, &r); \
} \
OP(op_##name##_mri_##bits) { name##_mem_##bits(c, i, (u8)i->imm); } \
OP(op_##name##_mrc_##bits) { name##_mem_##bits(c, i, reg_ld8(c, R_CX * 8)); }

#define X(bits, m) DOUBLE_FN(shld, "shld", bits, m) DOUBLE_FN(shrd, "shrd", bits, m)
WSIZES(X)
#undef X
