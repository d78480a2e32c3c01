/* Host code of one guest instruction that is no branch. Register-only instructions are copied, with RSP named r15; a
 * memory operand is replaced by what mempath.c makes; R11 and R15 are used where they are at home, or moved
 * between T or a borrowed register and their homes. */
#include "bt/tr.h"

struct data { u8 n; struct { u8 guest; bool read, write; } r[2]; bool too_many; };

/* Homeless registers among the explicit register operands. */
static void data_registers(const struct tins *i, struct data *d)
{
	*d = (struct data){ 0 };
	for (unsigned k = 0; k < i->zi.operand_count; k++) {
		const ZydisDecodedOperand *o = &i->zo[k];
		if (!gpr_operand(o) || is_high8(o->reg.value) || !is_homeless(gpr_of(o->reg.value)))
			continue;
		u8 g = (u8)gpr_of(o->reg.value);
		bool write = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
		/* BSF and BSR leave it where there is no bit. */
		bool keeps = i->zi.mnemonic == ZYDIS_MNEMONIC_BSF || i->zi.mnemonic == ZYDIS_MNEMONIC_BSR;
		bool read = keeps || (o->actions & (ZYDIS_OPERAND_ACTION_MASK_READ | ZYDIS_OPERAND_ACTION_CONDWRITE)) || o->size < 32;
		unsigned n = 0;
		while (n < d->n && d->r[n].guest != g)
			n++;
		if (n == 2) {
			d->too_many = true;
			return;
		}
		if (n == d->n)
			d->n++;
		d->r[n].guest = g;
		d->r[n].read |= read;
		d->r[n].write |= write;
	}
}

/* Puts host registers for guest ones into the fields of x. */
static void rename_fields(const struct tins *i, struct enc *x, const struct data *d, const u8 *stand_in)
{
	for (unsigned k = 0; k < i->zi.operand_count; k++) {
		const ZydisDecodedOperand *o = &i->zo[k];
		if (!gpr_operand(o) || is_high8(o->reg.value) || !is_explicit(o))
			continue;
		unsigned g = gpr_of(o->reg.value), h = host_of(g);
		for (unsigned n = 0; n < d->n; n++)
			if (d->r[n].guest == g)
				h = stand_in[n];
		if (o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG)
			x->reg = (u8)h;
		else if (o->encoding == ZYDIS_OPERAND_ENCODING_NDSNDD)
			x->vvvv = (u8)h;
		else
			x->rm = (u8)h;
	}
}

static bool put_insn(struct translation *t, const struct tins *i, const struct enc *x)
{
	u8 code[ENC_MAX + 8];
	unsigned n = enc_put(&i->zi, i->zo, i->bytes, x, code);
	ebytes(&t->e, code, n);
	return n != 0;
}

/* Whether the instruction does the same to a register and to memory of that size: no other address
 * by the other operand, no lock, no rest of the register to clear. */
static bool takes_memory(const struct tins *i)
{
	switch (i->zi.mnemonic) {
	case ZYDIS_MNEMONIC_ADD: case ZYDIS_MNEMONIC_ADC: case ZYDIS_MNEMONIC_SUB: case ZYDIS_MNEMONIC_SBB: case ZYDIS_MNEMONIC_AND:
	case ZYDIS_MNEMONIC_OR: case ZYDIS_MNEMONIC_XOR: case ZYDIS_MNEMONIC_CMP: case ZYDIS_MNEMONIC_TEST: case ZYDIS_MNEMONIC_MOV:
	case ZYDIS_MNEMONIC_MOVZX: case ZYDIS_MNEMONIC_MOVSX: case ZYDIS_MNEMONIC_MOVSXD:
	case ZYDIS_MNEMONIC_IMUL: case ZYDIS_MNEMONIC_MUL: case ZYDIS_MNEMONIC_DIV: case ZYDIS_MNEMONIC_IDIV:
	case ZYDIS_MNEMONIC_NOT: case ZYDIS_MNEMONIC_NEG: case ZYDIS_MNEMONIC_INC: case ZYDIS_MNEMONIC_DEC:
	case ZYDIS_MNEMONIC_SHL: case ZYDIS_MNEMONIC_SHR: case ZYDIS_MNEMONIC_SAR: case ZYDIS_MNEMONIC_ROL: case ZYDIS_MNEMONIC_ROR:
	case ZYDIS_MNEMONIC_POPCNT: case ZYDIS_MNEMONIC_LZCNT: case ZYDIS_MNEMONIC_TZCNT:
	case ZYDIS_MNEMONIC_CVTSI2SD: case ZYDIS_MNEMONIC_CVTSI2SS:
		return true;
	default:
		return i->zi.meta.category == ZYDIS_CATEGORY_CMOV || i->zi.meta.category == ZYDIS_CATEGORY_SETCC;
	}
}

/* The same instruction with its operands the other way round in ModRM, where there is one. False: none. */
static bool turned_round(ZydisDecodedInstruction *zi, struct enc *x)
{
	u8 op = zi->opcode;
	if (zi->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || zi->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT)
		return false;
	if ((op < 0x40 && (op & 7) < 4) || (op & 0xfc) == 0x88)
		zi->opcode ^= 2;
	else if ((op & 0xfe) != 0x84) /* TEST */
		return false;
	u8 r = x->reg;
	x->reg = x->rm;
	x->rm = r;
	return true;
}

/* With its only homeless register where that is at home, in memory. False: it has no such form. */
static bool at_its_home(struct translation *t, const struct tins *i, struct enc *x, const struct data *d)
{
	const ZydisDecodedOperand *home = NULL;
	if (d->n != 1 || t->page->mode != CODE64 || !takes_memory(i) || has_high8(i))
		return false;
	for (unsigned k = 0; k < i->zi.operand_count; k++) {
		const ZydisDecodedOperand *o = &i->zo[k];
		if (!gpr_operand(o) || gpr_of(o->reg.value) != d->r[0].guest)
			continue;
		if (home)
			return false;
		home = o;
	}
	if (home->size == 32 && (home->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
		return false; /* clears the upper half */
	if (home->size < 32 && (i->zi.mnemonic == ZYDIS_MNEMONIC_MOV || i->zi.mnemonic == ZYDIS_MNEMONIC_MOVSXD))
		return false;
	ZydisDecodedInstruction zi = i->zi;
	struct enc y = *x;
	rename_fields(i, &y, d, (u8[]){ T, T });
	if (home->encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM && (home->encoding != ZYDIS_OPERAND_ENCODING_MODRM_REG || !turned_round(&zi, &y)))
		return false;
	struct marg m = home_of(host_of(d->r[0].guest));
	y.mem = true;
	y.seg = 0x65;
	y.base = y.index = ENC_NONE;
	y.disp = m.disp;
	u8 code[ENC_MAX + 8];
	unsigned n = enc_put(&zi, i->zo, i->bytes, &y, code);
	ebytes(&t->e, code, n);
	return n != 0;
}

/* The instruction with stand-ins for homeless registers, around it their loads and stores. busy: T
 * is in use for the address. */
static bool with_data(struct translation *t, unsigned k, struct enc *x, bool busy)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	struct data d;
	data_registers(i, &d);
	if (!x->mem && at_its_home(t, i, x, &d))
		return true;
	u8 stand_in[2] = { T, T };
	unsigned spare = d.n ? unused_register(i) : 0;
	bool victim = false;
	for (unsigned n = 0; n < d.n; n++) {
		bool loads_only = busy && d.n == 1 && !d.r[0].read;
		if (n == 0 && (!busy || loads_only))
			continue;
		stand_in[n] = (u8)spare;
		victim = true;
	}
	if (busy && d.n == 2) /* one borrowed register only */
		return false;
	if (d.n || i->fop)
		mark_commit(t, k);
	if (victim) {
		e_ctx_store(e, spare, M_CTX(save_v));
		mark_victim(t, k, spare);
	}
	for (unsigned n = 0; n < d.n; n++)
		if (d.r[n].read)
			e_ctx_load(e, stand_in[n], home_of(host_of(d.r[n].guest)));
	rename_fields(i, x, &d, stand_in);
	if (!put_insn(t, i, x))
		return false;
	for (unsigned n = 0; n < d.n; n++)
		if (d.r[n].write)
			e_ctx_store(e, stand_in[n], home_of(host_of(d.r[n].guest)));
	if (victim)
		e_ctx_load(e, spare, M_CTX(save_v));
	return true;
}

/* Whether the translation overwrites status flags on its way. */
static bool needs_flags_away(const struct translation *t, unsigned k)
{
	const struct tins *i = &t->ins[k];
	bool member = i->group == GROUP_MEMBER;
	if (member && (i->kind == K_MEM || i->kind == K_PUSH || i->kind == K_POP || i->kind == K_LEAVE))
		return false;
	if (member && i->kind == K_CALL)
		return branch_far(t, next_lin_of(t, k) + i->zo[0].imm.value.u);
	switch ((enum kind)i->kind) {
	case K_MEM: case K_BITS: case K_PUSH: case K_POP: case K_LEAVE: case K_SYSTEM: case K_STRING: case K_CALL: case K_CALL_IND: case K_JMP_IND: case K_RET:
		return true;
	case K_JMP: return branch_far(t, branch_target(t, k));
	default: return false;
	}
}

/* Moves status flags to where the instruction wants them. The instruction itself reads them, or
 * keeps some: in the host's, when it comes to its own host instruction. */
void prelude(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	struct tins *i = &t->ins[k];
	struct insn_map *m = &t->map[k];
	m->saved = t->saved;
	if (needs_flags_away(t, k)) {
		bool far = i->kind == K_CALL_IND || i->kind == K_JMP_IND || i->kind == K_RET || is_pushf(&i->zi);
		if (!t->saved && (i->live || far)) {
			flags_save(e, t_before(t, k));
			t->saved = true;
		}
	} else if (t->saved && ((i->live && i->wants) || i->kind == K_JMP || i->kind == K_JCC || i->kind == K_LOOP)) {
		flags_restore(e, t_before(t, k));
		t->saved = false;
	}
	m->saved_then = m->saved_fault = t->saved;
	m->prelude = (u8)(e->p - (t->start + m->host));
}

/* Before the instruction's own host instruction, where the way to it has overwritten the flags. */
void flags_for_insn(struct translation *t, unsigned k)
{
	if (t->saved && t->ins[k].wants) {
		mark_commit(t, k);
		flags_restore(&t->e, T_HELD);
		t->saved = false;
		t->map[k].saved_fault = false;
	}
}

static bool emit_copy(struct translation *t, unsigned k)
{
	struct enc x;
	const struct tins *i = &t->ins[k];
	if (i->varies) {
		selfcheck_operand(t, k);
		return true;
	}
	if (i->zi.mnemonic == ZYDIS_MNEMONIC_PAUSE || !(i->zi.attributes & ZYDIS_ATTRIB_HAS_MODRM)) {
		/* Named in the opcode, or nothing at all. */
		u32 used = registers_used(i);
		if (!(used & (1u << R_SP | 1u << R_11 | 1u << R_15))) {
			ebytes(&t->e, i->bytes, i->zi.length);
			return true;
		}
	}
	enc_of(&i->zi, i->zo, &x);
	return with_data(t, k, &x, false);
}

bool has_high8(const struct tins *i)
{
	for (unsigned k = 0; k < i->zi.operand_count_visible; k++)
		if (i->zo[k].type == ZYDIS_OPERAND_TYPE_REGISTER && is_high8(i->zo[k].reg.value))
			return true;
	return false;
}

/* AH..BH beside memory: no register of the address may need REX. */
bool with_high8(struct translation *t, unsigned k, struct enc *x)
{
	struct emit *e = &t->e;
	unsigned spare = unused_register(&t->ins[k]);
	if (spare >= R8)
		return false;
	e_lea(e, T, (struct marg){ x->base, x->index, x->scale, x->disp });
	mark_commit(t, k);
	e_ctx_store(e, spare, M_CTX(save_v));
	mark_victim(t, k, spare);
	e_mov(e, spare, T);
	x->base = (u8)spare;
	x->index = ENC_NONE;
	x->disp = 0;
	if (!put_insn(t, &t->ins[k], x))
		return false;
	e_ctx_load(e, spare, M_CTX(save_v));
	return true;
}

static bool emit_memory(struct translation *t, unsigned k)
{
	const struct tins *i = &t->ins[k];
	const ZydisDecodedOperand *m = memory_of(i);
	struct enc x;
	struct ea a;
	struct data d;
	data_registers(i, &d);
	if (d.n > 1)
		return false;
	enc_of(&i->zi, i->zo, &x);
	unsigned size = m->size / 8u;
	bool store = m->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
	enum crossing how = size == 1 || checks_alignment(&i->zi, size) ? NO_CROSSING : MAY_CROSS;
	operand_ea(t, i, m, &a);
	mem_operand(t, k, &a, size, store, how, unused_register(i), &x);
	flags_for_insn(t, k);
	return has_high8(i) ? with_high8(t, k, &x) : with_data(t, k, &x, true);
}

static bool emit_lea(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	const ZydisDecodedOperand *o = &i->zo[1];
	unsigned to = host_of(gpr_of(i->zo[0].reg.value)), size = i->zi.operand_width, r = at_home(to) ? T : to;
	u32 op = (size == 64 ? E_W : 0) | (i->zi.address_width == 32 ? E_A32 : 0) | 0x8d;
	if (o->mem.base == ZYDIS_REGISTER_RIP && size != 16) {
		u64 lin = next_lin_of(t, k) + (u64)o->mem.disp.value;
		e_const(e, r, size == 64 ? lin : (u32)lin);
	} else if (size == 16 || o->mem.base == ZYDIS_REGISTER_RIP || o->mem.base == ZYDIS_REGISTER_EIP) {
		return false;
	} else {
		bool has_base = o->mem.base != ZYDIS_REGISTER_NONE, has_index = o->mem.index != ZYDIS_REGISTER_NONE;
		unsigned base = has_base ? host_of(gpr_of(o->mem.base)) : ENC_NONE, index = has_index ? host_of(gpr_of(o->mem.index)) : ENC_NONE;
		unsigned spare = RBX;
		bool both = has_base && has_index && at_home(base) && at_home(index);
		if (both) {
			spare = unused_register(i);
			mark_commit(t, k);
			e_ctx_store(e, spare, M_CTX(save_v));
			e_ctx_load(e, spare, home_of(index));
			index = spare;
		}
		if (has_base && at_home(base)) {
			e_ctx_load(e, T, home_of(base));
			base = T;
		}
		if (has_index && at_home(index)) {
			e_ctx_load(e, T, home_of(index));
			index = T;
		}
		unsigned scale = o->mem.scale == 8 ? 3 : o->mem.scale == 4 ? 2 : o->mem.scale == 2 ? 1 : 0;
		e_mem(e, op, r, (struct marg){ (u8)base, (u8)index, (u8)scale, (i32)o->mem.disp.value });
		if (both)
			e_ctx_load(e, spare, M_CTX(save_v));
	}
	if (at_home(to))
		e_ctx_store(e, T, home_of(to));
	return true;
}

/* ---- the stack ------------------------------------------------------------------------------------ */

/* The value is in ctx.target. */
void push_target(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	struct enc x = { 0 };
	mem_operand(t, k, &(struct ea){ .base = HOST_SP, .index = ENC_NONE, .disp = -8 }, 8, true, MAY_CROSS, RBX, &x);
	mark_commit(t, k);
	e_ctx_store(e, RBX, M_CTX(save_v));
	mark_victim(t, k, RBX);
	e_ctx_load(e, RBX, M_CTX(target));
	e_store(e, RBX, (struct marg){ x.base, x.index, x.scale, x.disp });
	e_ctx_load(e, RBX, M_CTX(save_v));
	e_lea(e, HOST_SP, M_BASE(HOST_SP, -8));
}

static bool emit_push_memory(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	struct ea a;
	struct enc x = { 0 };
	operand_ea(t, i, &i->zo[0], &a);
	mem_operand(t, k, &a, 8, false, MAY_CROSS, unused_register(i), &x);
	e_load(e, T, (struct marg){ x.base, x.index, x.scale, x.disp });
	e_ctx_store(e, T, M_CTX(target));
	push_target(t, k);
	return true;
}

static bool emit_push(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	if (i->zo[0].type == ZYDIS_OPERAND_TYPE_MEMORY)
		return emit_push_memory(t, k);
	struct enc x = { 0 };
	mem_operand(t, k, &(struct ea){ .base = HOST_SP, .index = ENC_NONE, .disp = -8 }, 8, true, MAY_CROSS, RBX, &x);
	struct marg m = { x.base, x.index, x.scale, x.disp };
	if (gpr_operand(&i->zo[0])) {
		unsigned r = host_of(gpr_of(i->zo[0].reg.value));
		if (at_home(r)) {
			mark_commit(t, k);
			e_ctx_store(e, RBX, M_CTX(save_v));
			mark_victim(t, k, RBX);
			e_ctx_load(e, RBX, home_of(r));
			e_store(e, RBX, m);
			e_ctx_load(e, RBX, M_CTX(save_v));
		} else {
			e_store(e, r, m);
		}
	} else {
		e_mem(e, E_W | 0xc7, 0, m);
		e32(e, (u32)i->zo[0].imm.value.u);
	}
	e_lea(e, HOST_SP, M_BASE(HOST_SP, -8));
	return true;
}

static bool emit_pop(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	unsigned r = host_of(gpr_of(t->ins[k].zo[0].reg.value));
	struct enc x = { 0 };
	mem_operand(t, k, &(struct ea){ .base = HOST_SP, .index = ENC_NONE }, 8, false, MAY_CROSS, RBX, &x);
	struct marg m = { x.base, x.index, x.scale, x.disp };
	unsigned to = at_home(r) ? T : r;
	mark_commit(t, k);
	e_load(e, to, m);
	if (at_home(r))
		e_ctx_store(e, T, home_of(r));
	if (r != HOST_SP)
		e_lea(e, HOST_SP, M_BASE(HOST_SP, 8));
	return true;
}

static bool emit_leave(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	struct enc x = { 0 };
	mem_operand(t, k, &(struct ea){ .base = RBP, .index = ENC_NONE }, 8, false, MAY_CROSS, RBX, &x);
	e_load(e, T, (struct marg){ x.base, x.index, x.scale, x.disp });
	mark_commit(t, k);
	e_lea(e, HOST_SP, M_BASE(RBP, 8));
	e_mov(e, RBP, T);
	return true;
}

bool emit_insn(struct translation *t, unsigned k)
{
	if (t->page->mode != CODE64)
		return legacy_emit(t, k);
	switch (t->ins[k].kind) {
	case K_COPY: return emit_copy(t, k);
	case K_MEM: case K_BITS: return emit_memory(t, k);
	case K_LEA: return emit_lea(t, k);
	case K_PUSH: return emit_push(t, k);
	case K_POP: return emit_pop(t, k);
	case K_LEAVE: return emit_leave(t, k);
	case K_SYSTEM: return system_emit(t, k);
	case K_STRING: string_emit(t, k); return true;
	case K_NOP: return true;
	case K_INTERP: case K_INTERP_LAST: case K_GATE: case K_GATE_LAST: return false;
	default: branch_emit(t, k); return true;
	}
}
