/* Single bits and bit scans: BT BTS BTR BTC BSF BSR BSWAP SETcc. A register bit offset with a
 * memory operand reaches outside it: the address moves by whole operands, signed. SDM vol. 2. */
#include "interp/cond.h"
#include "interp/flags.h"

/* BT family: only CF is defined and changed; OF SF AF PF are undefined, ZF is kept. The host
 * leaves all but CF as they were, which is what we do. */
#define BT_FN(name, mn, bits, m) \
static inline u##bits name##_##bits(struct cpu *c, u##bits a, u##bits off) \
{ \
	u8 cf; \
	off &= bits - 1; \
	asm(mn " %" m "2, %" m "0\n\tsetc %1" : "+r"(a), "=q"(cf) : "r"(off) : "cc"); \
	flags_set(c, cf, FL_CF); \
	return a; \
}
#define BT_MEM_FN(name, mn, bits, m, sfx) \
static inline void name##_mem_##bits(struct cpu *c, const struct insn *i, u64 lin, u##bits off) \
{ \
	struct mem_ref r; \
	u8 cf; \
	off &= bits - 1; \
	u##bits *p = (void *)mem_begin(c, &r, lin, bits / 8, true, true, i->flags & IF_LOCK); \
	if (i->flags & IF_LOCK) \
		asm volatile("lock " mn sfx " %" m "2, %0\n\tsetc %1" : "+m"(*p), "=q"(cf) : "r"(off) : "cc", "memory"); \
	else \
		asm volatile(mn sfx " %" m "2, %0\n\tsetc %1" : "+m"(*p), "=q"(cf) : "r"(off) : "cc", "memory"); \
	flags_set(c, cf, FL_CF); \
	mem_end(c, &r); \
}
/* Linear address of the operand-sized cell that holds bit off (signed) of the bit string. */
#define BT_ADDR(bits) \
static inline u64 bt_lin_##bits(struct cpu *c, const struct insn *i, u##bits off, enum access acc) \
{ \
	i64 cell = (i##bits)off >> (bits == 16 ? 4 : bits == 32 ? 5 : 6); \
	u64 ea = (insn_ea(c, i) + (u64)cell * (bits / 8)) & addr_mask(i->adsz); \
	return cpu_linear(c, i->seg, ea, bits / 8, acc); \
}
#define BT_REG_OPS(name, bits) \
OP(op_##name##_rr_##bits) { reg_st##bits(c, i->r, name##_##bits(c, reg_ld##bits(c, i->r), reg_ld##bits(c, i->rm))); } \
OP(op_##name##_ri_##bits) { reg_st##bits(c, i->r, name##_##bits(c, reg_ld##bits(c, i->r), (u##bits)i->imm)); }
#define BT_RMW_OPS(name, bits) \
OP(op_##name##_mr_##bits) \
{ \
	u##bits off = reg_ld##bits(c, i->r); \
	name##_mem_##bits(c, i, bt_lin_##bits(c, i, off, ACC_WRITE), off); \
} \
OP(op_##name##_mi_##bits) { name##_mem_##bits(c, i, insn_lin(c, i, bits / 8, ACC_WRITE), (u##bits)i->imm); }
#define BT_ALL(bits, m, sfx) \
	BT_ADDR(bits) \
	BT_FN(bts, "bts", bits, m) BT_FN(btr, "btr", bits, m) BT_FN(btc, "btc", bits, m) BT_FN(bt, "bt", bits, m) \
	BT_MEM_FN(bts, "bts", bits, m, sfx) BT_MEM_FN(btr, "btr", bits, m, sfx) BT_MEM_FN(btc, "btc", bits, m, sfx) \
	BT_REG_OPS(bts, bits) BT_REG_OPS(btr, bits) BT_REG_OPS(btc, bits) \
	BT_RMW_OPS(bts, bits) BT_RMW_OPS(btr, bits) BT_RMW_OPS(btc, bits) \
	OP(op_bt_rr_##bits) { bt_##bits(c, reg_ld##bits(c, i->r), reg_ld##bits(c, i->rm)); } \
	OP(op_bt_ri_##bits) { bt_##bits(c, reg_ld##bits(c, i->r), (u##bits)i->imm); } \
	OP(op_bt_mr_##bits) \
	{ \
		u##bits off = reg_ld##bits(c, i->r); \
		bt_##bits(c, mem_ld##bits(c, bt_lin_##bits(c, i, off, ACC_READ)), off); \
	} \
	OP(op_bt_mi_##bits) { bt_##bits(c, mem_ld##bits(c, insn_lin(c, i, bits / 8, ACC_READ)), (u##bits)i->imm); }
BT_ALL(16, "w", "w")
BT_ALL(32, "k", "l")
BT_ALL(64, "q", "q")

/* BSF, BSR: with a source of 0 only ZF is defined and the destination is kept, as on all
 * processors that people own (AMD documents it); a 32-bit destination is then kept whole on
 * AMD and zero-extended or kept on Intel: the host decides. */
#define SCAN_FN(name, mn, bits, m) \
static inline void name##_##bits(struct cpu *c, unsigned r, u##bits src) \
{ \
	unsigned f; \
	u64 dst = c->regs[r]; \
	asm(mn " %" m "2, %" m "0\n\t" GRAB : "+r"(dst), "=&a"(f) : "r"(src) : "cc"); \
	c->regs[r] = dst; \
	flags_put(c, f); \
} \
OP(op_##name##_rr_##bits) { name##_##bits(c, i->r, reg_ld##bits(c, i->rm)); } \
OP(op_##name##_rm_##bits) { name##_##bits(c, i->r, mem_ld##bits(c, insn_lin(c, i, bits / 8, ACC_READ))); }
#define X(bits, m) SCAN_FN(bsf, "bsf", bits, m) SCAN_FN(bsr, "bsr", bits, m)
WSIZES(X)
#undef X

/* Undefined by the manual: the host decides. */
OP(op_bswap_16) { asm(".byte 0x66, 0x0f, 0xc8" : "+a"(c->regs[i->r])); }
OP(op_bswap_32) { reg_st32(c, i->r, __builtin_bswap32(reg_ld32(c, i->r))); }
OP(op_bswap_64) { reg_st64(c, i->r, __builtin_bswap64(reg_ld64(c, i->r))); }

#define X(cc, n) \
OP(op_set_r_##cc) { reg_st8(c, i->r, cond_##cc(c)); } \
OP(op_set_m_##cc) { mem_st8(c, insn_lin(c, i, 1, ACC_WRITE), cond_##cc(c)); }
CONDITIONS(X)
#undef X
