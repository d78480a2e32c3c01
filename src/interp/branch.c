/* Near branches: JMP CALL RET Jcc LOOP JCXZ, and BOUND. Targets are checked (code segment's
 * limit, canonical form) before anything is committed, so that the fault is the branch's.
 * Far ones are in system_far. SDM vol. 2. */
#include "interp/block.h"
#include "interp/cond.h"

static inline u64 target_checked(struct cpu *c, u64 rip)
{
	if (likely(c->code_mode == CODE64)) {
		unsigned shift = c->cr4 & CR4_LA57 ? 7 : 16;
		if (unlikely((u64)((i64)(rip << shift) >> shift) != rip))
			cpu_gp0(c);
	} else if (unlikely((u32)rip > c->seg[S_CS].limit)) {
		cpu_gp0(c);
	}
	return rip;
}
/* Of a CALL: the push faults first (as on AMD's processors; the manuals leave it open). */
static inline u64 target_call(struct cpu *c, u64 rip, unsigned n)
{
	if (likely(c->code_mode == CODE64) && unlikely(!cpu_canonical(c, rip))) {
		u64 lin = cpu_linear(c, S_SS, c->regs[R_SP] - n, n, ACC_WRITE);
		mem_check_aligned(c, lin, n);
		mem_probe(c, lin, n, ACC_WRITE);
	}
	return target_checked(c, rip);
}
/* imm: from the block's start. Operand size 2 cuts the target to 16 bits. */
static inline u64 target_j(struct cpu *c, const struct insn *i)
{
	u64 rip = c->regs[R_BLOCK] + i->imm;
	if (unlikely(i->opsz == 2))
		rip &= 0xffff;
	return target_checked(c, rip_mask(c, rip));
}

#define X(bits) \
OP_NEAR(op_jmp_j_##bits) { c->rip = target_j(c, i); } \
OP_NEAR(op_jmp_r_##bits) { c->rip = target_checked(c, reg_ld##bits(c, i->r)); } \
OP_NEAR(op_jmp_m_##bits) { c->rip = target_checked(c, mem_ld##bits(c, insn_lin(c, i, bits / 8, ACC_READ))); } \
OP_NEAR(op_call_j_##bits) \
{ \
	u64 to = target_j(c, i); \
	push(c, c->rip, bits / 8); \
	c->rip = to; \
} \
OP_NEAR(op_call_r_##bits) \
{ \
	u64 to = target_call(c, reg_ld##bits(c, i->r), bits / 8); \
	push(c, c->rip, bits / 8); \
	c->rip = to; \
} \
OP_NEAR(op_call_m_##bits) \
{ \
	u64 to = target_call(c, mem_ld##bits(c, insn_lin(c, i, bits / 8, ACC_READ)), bits / 8); \
	push(c, c->rip, bits / 8); \
	c->rip = to; \
} \
OP_NEAR(op_ret_##bits) \
{ \
	u64 to = target_checked(c, (u##bits)pop_peek(c, 0, bits / 8)); \
	sp_set(c, c->regs[R_SP] + bits / 8 + (u16)i->imm); \
	c->rip = to; \
}
X(16) X(32) X(64)
#undef X

#define X(cc, n) \
OP_NEAR(op_j_##cc##_32) { if (cond_##cc(c)) c->rip = target_j(c, i); } \
OP_NEAR(op_j_##cc##_64) { if (cond_##cc(c)) c->rip = target_j(c, i); } \
OP_NEAR(op_j_##cc##_16) { if (cond_##cc(c)) c->rip = target_j(c, i); }
CONDITIONS(X)
#undef X

/* The counter has the address size. The branch is checked before the count is committed. */
static inline void loop_core(struct cpu *c, const struct insn *i, bool cond)
{
	u64 n = (reg_ld(c, R_CX, i->adsz) - 1) & addr_mask(i->adsz);
	if (n && cond)
		c->rip = target_j(c, i);
	reg_st(c, R_CX, n, i->adsz);
}
OP_NEAR(op_loop) { loop_core(c, i, true); }
OP_NEAR(op_loope) { loop_core(c, i, cond_Z(c)); }
OP_NEAR(op_loopne) { loop_core(c, i, cond_NZ(c)); }
OP_NEAR(op_jcxz)
{
	if (!reg_ld(c, R_CX, i->adsz))
		c->rip = target_j(c, i);
}

OP(op_bound)
{
	unsigned n = i->opsz;
	u64 ea = insn_ea(c, i);
	u64 lo = mem_ld(c, cpu_linear(c, i->seg, ea, n, ACC_READ), n);
	u64 hi = mem_ld(c, cpu_linear(c, i->seg, (ea + n) & addr_mask(i->adsz), n, ACC_READ), n);
	i32 v = n == 2 ? (i16)c->regs[i->r] : (i32)c->regs[i->r];
	i32 l = n == 2 ? (i16)lo : (i32)lo, h = n == 2 ? (i16)hi : (i32)hi;
	if (v < l || v > h)
		cpu_raise(c, V_BR);
}
