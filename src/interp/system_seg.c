/* Segment registers, descriptor tables, far transfers, interrupts by instruction. What a load
 * checks and a transfer does is cpu/'s (segment.c, far.c, task.c, exception.c, syscall.c); here
 * are operands, privilege and modes. Intel SDM volume 2. */
#include "interp/system.h"

static inline u16 ld_rm16_m(struct cpu *c, const struct insn *i)
{
	return mem_ld16(c, insn_lin(c, i, 2, ACC_READ));
}

/* ---- descriptor-table registers ---------------------------------------------------------------- */

static void table_load(struct cpu *c, const struct insn *i, struct dtable *t, enum intercept x)
{
	need_cpl0(c);
	nested_check(c, x, 0);
	unsigned n = cpu_code64(c) ? 8 : 4;
	u64 lin = insn_lin(c, i, n + 2, ACC_READ);
	u16 limit = mem_ld16(c, lin);
	u64 base = mem_ld(c, lin_add(c, lin, 2), n);
	if (n == 4 && i->opsz == 2)
		base &= 0xffffff;
	if (!cpu_address_valid(c, base))
		cpu_gp0(c);
	*t = (struct dtable){ base, limit };
}

static void table_store(struct cpu *c, const struct insn *i, const struct dtable *t, enum intercept x)
{
	need_no_umip(c);
	nested_check(c, x, 0);
	unsigned n = cpu_code64(c) ? 8 : 4;
	u8 image[10];
	st16(image, t->limit);
	st64(image + 2, t->base); /* all 32 bits with any operand size */
	mem_st_bytes(c, insn_lin(c, i, n + 2, ACC_WRITE), image, n + 2);
}

OP_END(op_lgdt) { table_load(c, i, &c->gdtr, ICPT_GDTR_WRITE); }
OP_END(op_lidt) { table_load(c, i, &c->idtr, ICPT_IDTR_WRITE); }
OP(op_sgdt) { table_store(c, i, &c->gdtr, ICPT_GDTR_READ); }
OP(op_sidt) { table_store(c, i, &c->idtr, ICPT_IDTR_READ); }

static inline void sel_store_checks(struct cpu *c, enum intercept x)
{
	need_protected(c);
	need_no_umip(c);
	nested_check(c, x, 0);
}

static inline void sel_load_checks(struct cpu *c, enum intercept x)
{
	need_protected(c);
	need_cpl0(c);
	nested_check(c, x, 0);
}

OP(op_sldt_r) { sel_store_checks(c, ICPT_LDTR_READ); reg_st(c, i->r, c->seg[S_LDTR].sel, i->opsz); }
OP(op_sldt_m) { sel_store_checks(c, ICPT_LDTR_READ); mem_st16(c, insn_lin(c, i, 2, ACC_WRITE), c->seg[S_LDTR].sel); }
OP(op_str_r) { sel_store_checks(c, ICPT_TR_READ); reg_st(c, i->r, c->seg[S_TR].sel, i->opsz); }
OP(op_str_m) { sel_store_checks(c, ICPT_TR_READ); mem_st16(c, insn_lin(c, i, 2, ACC_WRITE), c->seg[S_TR].sel); }

OP_END(op_lldt_r) { sel_load_checks(c, ICPT_LDTR_WRITE); seg_lldt(c, reg_ld16(c, i->r)); }
OP_END(op_lldt_m) { sel_load_checks(c, ICPT_LDTR_WRITE); seg_lldt(c, ld_rm16_m(c, i)); }
OP_END(op_ltr_r) { sel_load_checks(c, ICPT_TR_WRITE); seg_ltr(c, reg_ld16(c, i->r)); }
OP_END(op_ltr_m) { sel_load_checks(c, ICPT_TR_WRITE); seg_ltr(c, ld_rm16_m(c, i)); }

/* ---- looking at descriptors ------------------------------------------------------------------------ */

static void zf_set(struct cpu *c, bool on) { flags_set(c, on ? FL_ZF : 0, FL_ZF); }

static void lar(struct cpu *c, const struct insn *i, u16 sel)
{
	u32 v;
	bool ok = seg_lar(c, sel, &v);
	if (ok)
		reg_st(c, i->r, v, i->opsz);
	zf_set(c, ok);
}

static void lsl(struct cpu *c, const struct insn *i, u16 sel)
{
	u32 v;
	bool ok = seg_lsl(c, sel, &v);
	if (ok)
		reg_st(c, i->r, v, i->opsz);
	zf_set(c, ok);
}

OP(op_lar_rr) { need_protected(c); lar(c, i, reg_ld16(c, i->rm)); }
OP(op_lar_rm) { need_protected(c); lar(c, i, ld_rm16_m(c, i)); }
OP(op_lsl_rr) { need_protected(c); lsl(c, i, reg_ld16(c, i->rm)); }
OP(op_lsl_rm) { need_protected(c); lsl(c, i, ld_rm16_m(c, i)); }
OP(op_verr_r) { need_protected(c); zf_set(c, seg_verify(c, reg_ld16(c, i->r), false)); }
OP(op_verr_m) { need_protected(c); zf_set(c, seg_verify(c, ld_rm16_m(c, i), false)); }
OP(op_verw_r) { need_protected(c); zf_set(c, seg_verify(c, reg_ld16(c, i->r), true)); }
OP(op_verw_m) { need_protected(c); zf_set(c, seg_verify(c, ld_rm16_m(c, i), true)); }

OP(op_arpl_rr)
{
	need_protected(c);
	u16 dst = reg_ld16(c, i->r), src = reg_ld16(c, i->rm);
	bool raise = (dst & 3) < (src & 3);
	if (raise)
		reg_st16(c, i->r, (u16)((dst & ~3) | (src & 3)));
	zf_set(c, raise);
}

/* A destination that stays as it is is only read: it may lie in a segment or page that cannot be
 * written (so on silicon; the manual's pseudocode too writes in one branch only). */
OP(op_arpl_mr)
{
	need_protected(c);
	u16 dst = ld_rm16_m(c, i), src = reg_ld16(c, i->r);
	bool raise = (dst & 3) < (src & 3);
	if (raise)
		mem_st16(c, insn_lin(c, i, 2, ACC_WRITE), (u16)((dst & ~3) | (src & 3)));
	zf_set(c, raise);
}

/* ---- segment registers -------------------------------------------------------------------------------- */

OP(op_mov_rs) { reg_st(c, i->r, c->seg[i->rm].sel, i->opsz); }
OP(op_mov_ms) { mem_st16(c, insn_lin(c, i, 2, ACC_WRITE), c->seg[i->r].sel); }

/* SS holds off interrupts and traps for one instruction, so that ESP can follow. */
static void load_sreg(struct cpu *c, unsigned s, u16 sel)
{
	if (s == S_CS)
		cpu_ud(c);
	seg_load(c, s, sel);
	if (s != S_SS)
		return;
	c->shadow |= SHADOW_SS;
	cpu_update_events(c);
}

OP_END(op_mov_sr) { load_sreg(c, i->r, reg_ld16(c, i->rm)); }
OP_END(op_mov_sm) { load_sreg(c, i->r, ld_rm16_m(c, i)); }

/* Intel stores only 16 bits of a 32-bit slot, AMD zero-extends. */
OP(op_push_s)
{
	u16 sel = c->seg[i->r].sel;
	if (i->opsz != 4 || c->model->vendor[0] == 'A') {
		push(c, sel, i->opsz);
		return;
	}
	u64 sp = (c->regs[R_SP] - 4) & c->sp_mask;
	mem_st16(c, cpu_linear(c, S_SS, sp, 4, ACC_WRITE), sel);
	sp_set(c, sp);
}

/* The stack pointer moves in the width of the stack that the selector was popped from. */
OP_END(op_pop_s)
{
	u64 mask = c->sp_mask, sp = c->regs[R_SP] + i->opsz;
	load_sreg(c, i->r, (u16)pop_peek(c, 0, i->opsz));
	c->regs[R_SP] = mask == 0xffff ? (c->regs[R_SP] & ~mask) | (sp & mask) : sp & mask;
}

/* AMD has no 64-bit offsets in memory: with REX.W they are 32-bit ones. */
static void far_pointer(struct cpu *c, const struct insn *i, u64 *off, u16 *sel)
{
	unsigned n = i->opsz == 8 && c->model->vendor[0] == 'A' ? 4 : i->opsz;
	*off = mem_ld(c, insn_lin(c, i, n, ACC_READ), n);
	*sel = mem_ld16(c, cpu_linear(c, i->seg, (insn_ea(c, i) + n) & addr_mask(i->adsz), 2, ACC_READ));
}

static void load_pointer(struct cpu *c, const struct insn *i, unsigned s)
{
	u64 off;
	u16 sel;
	far_pointer(c, i, &off, &sel);
	seg_load(c, s, sel);
	reg_st(c, i->r, off, i->opsz);
}

OP_END(op_les) { load_pointer(c, i, S_ES); }
OP_END(op_lds) { load_pointer(c, i, S_DS); }
OP_END(op_lss) { load_pointer(c, i, S_SS); }
OP_END(op_lfs) { load_pointer(c, i, S_FS); }
OP_END(op_lgs) { load_pointer(c, i, S_GS); }

/* ---- far transfers ----------------------------------------------------------------------------------------- */

static void far_target(struct cpu *c, const struct insn *i, u64 *off, u16 *sel)
{
	if (i->flags & IF_MEM) {
		far_pointer(c, i, off, sel);
		return;
	}
	*off = i->opsz == 2 ? (u16)i->imm : (u32)i->imm;
	*sel = (u16)i->imm2;
}

OP_END(op_jmp_far)
{
	u64 off;
	u16 sel;
	far_target(c, i, &off, &sel);
	far_jmp(c, sel, off, i->opsz);
}

OP_END(op_call_far)
{
	u64 off;
	u16 sel;
	far_target(c, i, &off, &sel);
	far_call(c, sel, off, i->opsz);
}

OP_END(op_ret_far) { far_ret(c, i->opsz, (u16)i->imm); }
OP_END(op_iret)
{
	nested_check(c, ICPT_IRET, 0);
	cpu_iret(c, i->opsz);
}

OP_END(op_int)
{
	nested_check(c, ICPT_INTN, (u8)i->imm);
	cpu_soft_int(c, (u8)i->imm, false, false);
}

OP_END(op_int3) { cpu_soft_int(c, V_BP, true, false); }

OP_END(op_int1)
{
	nested_check(c, ICPT_ICEBP, 0);
	cpu_soft_int(c, V_DB, false, true);
}

OP_END(op_into)
{
	if (c->rflags & FL_OF)
		cpu_soft_int(c, V_OF, true, false);
}

OP_END(op_syscall) { cpu_syscall(c); }
OP_END(op_sysret) { cpu_sysret(c, i->opsz); }
OP_END(op_sysenter) { cpu_sysenter(c); }
OP_END(op_sysexit) { cpu_sysexit(c, i->opsz); }
