/* PUSH POP PUSHA POPA ENTER LEAVE. The stack's address size is SS.B's (64 bits in 64-bit mode),
 * whatever the instruction's. PUSHF and POPF are in system.c. SDM vol. 2. */
#include "interp/op_api.h"

#define X(bits) \
OP(op_push_r_##bits) { push(c, reg_ld##bits(c, i->r), bits / 8); } \
OP(op_push_i_##bits) { push(c, (u##bits)i->imm, bits / 8); } \
OP(op_push_m_##bits) { push(c, mem_ld##bits(c, insn_lin(c, i, bits / 8, ACC_READ)), bits / 8); } \
OP(op_pop_r_##bits) \
{ \
	u##bits v = (u##bits)pop_peek(c, 0, bits / 8); \
	sp_set(c, c->regs[R_SP] + bits / 8); \
	reg_st##bits(c, i->r, v); \
} \
/* An address based on SP is computed after the increment. */ \
OP(op_pop_m_##bits) \
{ \
	u##bits v = (u##bits)pop_peek(c, 0, bits / 8); \
	u64 sp = c->regs[R_SP]; \
	sp_set(c, sp + bits / 8); \
	u64 ea = insn_ea(c, i); \
	u64 new_sp = c->regs[R_SP]; \
	c->regs[R_SP] = sp; /* so that a fault below finds it as it was */ \
	mem_st##bits(c, cpu_linear(c, i->seg, ea, bits / 8, ACC_WRITE), v); \
	c->regs[R_SP] = new_sp; \
}
X(16) X(32) X(64)
#undef X

OP(op_pusha)
{
	unsigned n = i->opsz;
	u64 sp = c->regs[R_SP];
	/* All are probed before the first is stored: all or nothing. */
	for (unsigned k = 0; k < 8; k++) {
		u64 lin = cpu_linear(c, S_SS, (sp - (k + 1) * n) & c->sp_mask, n, ACC_WRITE);
		mem_check_aligned(c, lin, n);
		mem_probe(c, lin, n, ACC_WRITE);
	}
	for (unsigned k = 0; k < 8; k++)
		mem_st(c, cpu_linear(c, S_SS, (sp - (k + 1) * n) & c->sp_mask, n, ACC_WRITE), c->regs[k], n);
	sp_set(c, sp - 8 * n);
}

OP(op_popa)
{
	unsigned n = i->opsz;
	u64 v[8];
	for (unsigned k = 0; k < 8; k++)
		v[k] = pop_peek(c, k * n, n);
	for (unsigned k = 0; k < 8; k++) {
		if (7 - k != R_SP)
			reg_st(c, 7 - k, v[k], n);
	}
	sp_set(c, c->regs[R_SP] + 8 * n);
}

/* ENTER: the frame pointer, `level` copies of outer frame pointers, then room. A fault on the way
 * leaves the words stored so far below RSP, and RSP and RBP as they were. The final stack top is
 * probed for writing as the manual asks. */
OP(op_enter)
{
	unsigned n = i->opsz, level = i->imm2 & 31;
	u64 size = (u16)i->imm, sp = c->regs[R_SP], bp = c->regs[R_BP];
	u64 frame = (sp - n) & c->sp_mask;
	mem_st(c, cpu_linear(c, S_SS, frame, n, ACC_WRITE), bp, n);
	u64 at = frame;
	for (unsigned k = 1; k < level; k++) {
		bp -= n;
		u64 v = mem_ld(c, cpu_linear(c, S_SS, bp & c->sp_mask, n, ACC_READ), n);
		at = (at - n) & c->sp_mask;
		mem_st(c, cpu_linear(c, S_SS, at, n, ACC_WRITE), v, n);
	}
	if (level) {
		at = (at - n) & c->sp_mask;
		u64 v = (sp & ~c->sp_mask) | frame;
		mem_st(c, cpu_linear(c, S_SS, at, n, ACC_WRITE), v, n);
	}
	u64 top = (at - size) & c->sp_mask;
	u64 probe = cpu_linear(c, S_SS, top, n, ACC_WRITE);
	mem_check_aligned(c, probe, n);
	mem_probe(c, probe, n, ACC_WRITE);
	/* BP takes the frame's address in the operand size (SDM: "FrameTemp"). */
	u64 new_bp = c->sp_mask == 0xffff ? (c->regs[R_BP] & ~0xffffull) | frame : frame;
	reg_st(c, R_BP, n == 2 ? frame : new_bp, n);
	sp_set(c, top);
}

OP(op_leave)
{
	unsigned n = i->opsz;
	u64 sp = c->regs[R_BP] & c->sp_mask;
	u64 v = mem_ld(c, cpu_linear(c, S_SS, sp, n, ACC_READ), n);
	sp_set(c, sp + n);
	reg_st(c, R_BP, v, n);
}
