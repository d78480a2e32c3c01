/* Translation of 16- and 32-bit code: protected mode, compatibility mode, V86, real mode.
 *
 * Host code is 64-bit code, so guest addresses are cut to 32 (16) bits by the LEA that makes them,
 * and the instructions that 64-bit mode lacks are written in another form (isa/encode) or left to
 * the interpreter. The guest has no r8-r14, so the host's are free here:
 *
 *     lea  r11d, [ea]                 the offset (movzx r11d, r11w: of 16 bits)
 *     lea  r10, [r11 + size]          where the segment is not flat: within its limit?
 *     cmp  r10, gs:[end]; ja ...
 *     add  r11d, gs:[base]
 *     test r11, size - 1; jnz ...     as in mempath.c
 *     rorx r10, r11, 12
 *     mov  r10, gs:[r10 * 8]
 *     test r10, 1; jz ...
 *     op   reg, [r11 + r10 - 1]
 *
 * Invariants
 *  1. A block is made for a class: mode, base and limit of CS, which of ES, SS and DS are flat, the
 *     size of the stack pointer. All of that ends a block where it changes, and a space's ok slots
 *     are those of one class (space_class).
 *  2. Bases and limits that are not in the class are in the context, by code_class.
 *  3. A block's bytes lie within CS's limit, and so does its every direct target; an indirect one is
 *     compared where it may not.
 *  4. Linear addresses, also of links and of the jump cache, have 32 bits; RIP is that minus CS's
 *     base (rip_of).
 *  5. r8-r14 of the guest's 64-bit mode are put back by the run loop.
 * Left to the interpreter: decimal adjustments, PUSHA and its kin, POP to memory, ENTER, segment
 * registers, expand-down segments, VEX of general registers alone. SDM vol. 1 3.3, vol. 2. */
#define LOG_TOPIC "bt"
#include <string.h>

#include "bt/tr.h"

enum { E = R10, V = R12 }; /* beside T */

/* ---- classes --------------------------------------------------------------------------------- */

static bool is_flat(const struct cpu *c, unsigned s)
{
	return (c->seg_fast >> (2 * s) & 3) == 3 && !c->ebase[s];
}

/* Offsets from `end` on are out of bounds; 0: all, or it is not that simple. */
static u64 end_of(const struct cpu *c, unsigned s, bool write)
{
	const struct segment *g = &c->seg[s];
	bool code = g->attr & 8;
	if (c->cr0 & CR0_PE) {
		if ((g->attr & SEG_UNUSABLE) || !(g->attr & SEG_S) || (!code && (g->attr & 4)))
			return 0;
		if (!(c->rflags & FL_VM) && (write ? code || !(g->attr & 2) : code && !(g->attr & 2)))
			return 0;
	} else if ((g->attr & 0x1c) == 0x14) {
		return 0;
	}
	return (u64)g->limit + 1;
}

void code_class(struct bt *b)
{
	struct cpu *c = b->cpu;
	struct seg_class *x = &b->klass;
	u32 m = system_made_for(c);
	if (c->code_mode == CODE64) {
		*x = (struct seg_class){ .made_for = m, .mode = CODE64 };
		return;
	}
	*x = (struct seg_class){ .made_for = m, .mode = c->code_mode, .cs_base = (u32)c->ebase[S_CS], .cs_limit = c->seg[S_CS].limit,
				 .sp16 = c->sp_mask == 0xffff };
	for (unsigned s = S_ES; s <= S_GS; s++) {
		if (s != S_CS && s < S_FS && is_flat(c, s)) {
			x->flat |= (u8)(1u << s);
			continue;
		}
		b->ctx->seg_base[s] = c->ebase[s];
		b->ctx->seg_end[2 * s] = end_of(c, s, false);
		b->ctx->seg_end[2 * s + 1] = end_of(c, s, true);
	}
}

static bool flat(const struct translation *t, unsigned s) { return t->page->klass.flat >> s & 1; }
static unsigned sp_bytes(const struct translation *t) { return t->page->klass.sp16 ? 2 : 4; }

/* ---- addresses ----------------------------------------------------------------------------------- */

/* Parts are host registers. */
struct la { u8 base, index, scale, adsz, seg; i32 disp; };

static bool is_segment(const ZydisDecodedOperand *o)
{
	return o->type == ZYDIS_OPERAND_TYPE_REGISTER && o->reg.value >= ZYDIS_REGISTER_ES && o->reg.value <= ZYDIS_REGISTER_GS;
}
bool legacy_flat(const struct translation *t, const ZydisDecodedOperand *o)
{
	return o->mem.segment >= ZYDIS_REGISTER_ES && o->mem.segment <= ZYDIS_REGISTER_GS && flat(t, (unsigned)(o->mem.segment - ZYDIS_REGISTER_ES));
}

static unsigned gpr(ZydisRegister r) { return host_of((unsigned)ZydisRegisterGetId(r)); }

static bool address_of(const struct tins *i, const ZydisDecodedOperand *o, struct la *a)
{
	*a = (struct la){ .base = ENC_NONE, .index = ENC_NONE, .adsz = (u8)(i->zi.address_width / 8), .disp = (i32)o->mem.disp.value };
	if (o->mem.segment < ZYDIS_REGISTER_ES || o->mem.segment > ZYDIS_REGISTER_GS)
		return false;
	a->seg = (u8)(o->mem.segment - ZYDIS_REGISTER_ES);
	if (o->mem.base != ZYDIS_REGISTER_NONE)
		a->base = (u8)gpr(o->mem.base);
	if (o->mem.index != ZYDIS_REGISTER_NONE) {
		ZydisRegisterClass k = ZydisRegisterGetClass(o->mem.index);
		if (k != ZYDIS_REGCLASS_GPR16 && k != ZYDIS_REGCLASS_GPR32)
			return false; /* VSIB */
		a->index = (u8)gpr(o->mem.index);
		a->scale = o->mem.scale == 8 ? 3 : o->mem.scale == 4 ? 2 : o->mem.scale == 2 ? 1 : 0;
	}
	return true;
}

static bool is_const(const struct la *a) { return a->base == ENC_NONE && a->index == ENC_NONE; }
static u32 const_of(const struct la *a) { return (u32)a->disp & (a->adsz == 2 ? 0xffff : 0xffffffff); }
static bool const_crosses(const struct translation *t, const struct la *a, unsigned size)
{
	return is_const(a) && flat(t, a->seg) && (const_of(a) & PAGE_MASK) + size > 4096;
}

/* r = the offset. */
static void offset_into(struct emit *e, unsigned r, const struct la *a)
{
	if (is_const(a)) {
		e_const(e, r, const_of(a));
		return;
	}
	e_mem(e, 0x8d, r, (struct marg){ a->base, a->index, a->scale, a->disp });
	if (a->adsz == 2)
		e_reg(e, 0x0fb7, r, r); /* movzx r32, r16 */
}

/* The operand at offset T, with T and E in use. */
static struct marg mem_at_t(struct translation *t, unsigned k, const struct la *a, unsigned size, bool store, enum crossing how)
{
	struct emit *e = &t->e;
	if (!flat(t, a->seg)) {
		e_lea(e, E, M_BASE(T, size));
		e_mem(e, E_W | E_GS | 0x3b, E, M_ABS(CTX(seg_end) + 8 * (2 * a->seg + store)));
		cold_add(t, e_jcc(e, CC_NBE), k);
		e_mem(e, E_GS | 0x03, T, M_ABS(CTX(seg_base) + 8 * a->seg));
	}
	page_of(t, k, E, T, size, how, X_INSN);
	e_mem(e, E_W | E_GS | E_A32 | 0x8b, E, M_SIB(ENC_NONE, E, 3, store ? (i32)STORE_HALF : 0));
	cold_add(t, test_jump(e, E, 1, CC_Z), k);
	return M_SIB(T, E, 0, -1);
}

static struct marg mem(struct translation *t, unsigned k, const struct la *a, unsigned size, bool store, enum crossing how)
{
	offset_into(&t->e, T, a);
	return mem_at_t(t, k, a, size, store, is_const(a) && flat(t, a->seg) ? NO_CROSSING /* const_crosses */ : how);
}

/* Loads that extend with zeros, stores. */
static void load(struct emit *e, unsigned r, struct marg m, unsigned size) { e_mem(e, size == 2 ? 0x0fb7 : 0x8b, r, m); }
static void store(struct emit *e, unsigned r, struct marg m, unsigned size)
{
	if (size == 2)
		e8(e, 0x66);
	e_mem(e, 0x89, r, m);
}

/* ---- the stack --------------------------------------------------------------------------------------- */

static struct la stack_place(const struct translation *t, unsigned base, i32 disp)
{
	return (struct la){ .base = (u8)base, .index = ENC_NONE, .adsz = (u8)sp_bytes(t), .seg = S_SS, .disp = disp };
}

/* SP = base + by; with 16 bits the upper ones stay. */
static void sp_move(struct translation *t, unsigned base, i32 by)
{
	if (sp_bytes(t) == 2)
		e8(&t->e, 0x66);
	e_mem(&t->e, 0x8d, HOST_SP, M_BASE(base, by));
}

static struct marg push_place(struct translation *t, unsigned k, unsigned n)
{
	struct la a = stack_place(t, HOST_SP, -(i32)n);
	return mem(t, k, &a, n, true, MAY_CROSS);
}
static void push_const(struct translation *t, unsigned k, unsigned n, u32 v)
{
	struct emit *e = &t->e;
	struct marg m = push_place(t, k, n);
	if (n == 2)
		e8(e, 0x66);
	e_mem(e, 0xc7, 0, m);
	e8(e, v & 255);
	e8(e, v >> 8 & 255);
	if (n == 4) {
		e8(e, v >> 16 & 255);
		e8(e, v >> 24);
	}
	mark_commit(t, k);
	sp_move(t, HOST_SP, -(i32)n);
}

void legacy_push_target(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	unsigned n = t->ins[k].zi.operand_width / 8u;
	struct marg m = push_place(t, k, n);
	e_mem(e, E_GS | 0x8b, V, M_CTX(target));
	store(e, V, m, n);
	sp_move(t, HOST_SP, -(i32)n);
}

/* Intel stores only 16 bits of a 32-bit slot, AMD zero-extends. */
static void push_segment(struct translation *t, unsigned k, unsigned s, unsigned n)
{
	struct emit *e = &t->e;
	struct marg m = push_place(t, k, n);
	e_ctx_load(e, V, M_CTX(cpu));
	e_mem(e, 0x0fb7, V, M_BASE(V, offsetof(struct cpu, seg) + s * sizeof(struct segment) + offsetof(struct segment, sel)));
	store(e, V, m, t->b->cpu->model->vendor[0] == 'A' ? n : 2);
	sp_move(t, HOST_SP, -(i32)n);
}

static bool emit_push(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	const ZydisDecodedOperand *o = &i->zo[0];
	unsigned n = i->zi.operand_width / 8u;
	if (o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
		push_const(t, k, n, (u32)o->imm.value.u);
		return true;
	}
	unsigned r = V;
	if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
		struct la a;
		if (!address_of(i, o, &a))
			return false;
		load(e, V, mem(t, k, &a, n, false, MAY_CROSS), n);
	} else if (is_segment(o)) {
		push_segment(t, k, (unsigned)(o->reg.value - ZYDIS_REGISTER_ES), n);
		return true;
	} else {
		r = gpr(o->reg.value);
	}
	store(e, r, push_place(t, k, n), n);
	sp_move(t, HOST_SP, -(i32)n);
	return true;
}

static bool emit_pop(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	unsigned n = i->zi.operand_width / 8u, r = gpr(i->zo[0].reg.value);
	struct la a = stack_place(t, HOST_SP, 0);
	struct marg m = mem(t, k, &a, n, false, MAY_CROSS);
	mark_commit(t, k);
	if (n == 2)
		e8(e, 0x66);
	e_mem(e, 0x8b, r, m);
	if (r != HOST_SP)
		sp_move(t, HOST_SP, (i32)n);
	return true;
}

static bool emit_leave(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	unsigned n = t->ins[k].zi.operand_width / 8u;
	struct la a = stack_place(t, RBP, 0);
	load(e, V, mem(t, k, &a, n, false, MAY_CROSS), n);
	mark_commit(t, k); /* from here on an interrupt's frame may lie over the saved EBP */
	sp_move(t, RBP, (i32)n);
	if (n == 2)
		e8(e, 0x66);
	e_reg(e, 0x89, V, RBP);
	return true;
}

/* ---- data ------------------------------------------------------------------------------------------------ */

/* SP is another register here. */
static void rename_sp(const struct tins *i, struct enc *x)
{
	for (unsigned k = 0; k < i->zi.operand_count; k++) {
		const ZydisDecodedOperand *o = &i->zo[k];
		if (o->type != ZYDIS_OPERAND_TYPE_REGISTER || (o->reg.value != ZYDIS_REGISTER_SP && o->reg.value != ZYDIS_REGISTER_ESP))
			continue;
		if (o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG)
			x->reg = HOST_SP;
		else if (o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM || o->encoding == ZYDIS_OPERAND_ENCODING_OPCODE)
			x->rm = HOST_SP;
	}
}

static bool names_gpr(const struct tins *i)
{
	for (unsigned k = 0; k < i->zi.operand_count; k++) {
		ZydisRegisterClass r = i->zo[k].type == ZYDIS_OPERAND_TYPE_REGISTER ? ZydisRegisterGetClass(i->zo[k].reg.value) : ZYDIS_REGCLASS_INVALID;
		if (r >= ZYDIS_REGCLASS_GPR8 && r <= ZYDIS_REGCLASS_GPR64)
			return true;
	}
	return false;
}

/* W would choose 64 bits, and means nothing here. */
static bool wide_by_w(const struct tins *i)
{
	switch (i->zi.mnemonic) {
	case ZYDIS_MNEMONIC_VMOVD: case ZYDIS_MNEMONIC_VMOVQ: case ZYDIS_MNEMONIC_VPEXTRD: case ZYDIS_MNEMONIC_VPINSRD:
	case ZYDIS_MNEMONIC_VCVTSI2SD: case ZYDIS_MNEMONIC_VCVTSI2SS: case ZYDIS_MNEMONIC_VPCMPESTRI: case ZYDIS_MNEMONIC_VPCMPESTRM:
	case ZYDIS_MNEMONIC_VCVTUSI2SD: case ZYDIS_MNEMONIC_VCVTUSI2SS: case ZYDIS_MNEMONIC_VCVTSI2SH: case ZYDIS_MNEMONIC_VCVTUSI2SH:
		return true;
	default:
		return names_gpr(i);
	}
}

static bool put(struct translation *t, const struct tins *i, const struct enc *x)
{
	u8 code[ENC_MAX + 8];
	ZydisDecodedInstruction zi = i->zi;
	if (zi.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX && wide_by_w(i))
		zi.raw.vex.W = 0;
	unsigned n = enc_put(&zi, i->zo, i->bytes, x, code);
	ebytes(&t->e, code, n);
	return n != 0;
}

/* FDP. */
bool legacy_offset(struct translation *t, const struct tins *i, struct marg to)
{
	struct la a;
	if (!address_of(i, memory_of(i), &a))
		return false;
	offset_into(&t->e, T, &a);
	e_ctx_store(&t->e, T, to);
	return true;
}

/* VZEROUPPER and VZEROALL of the registers that there are here; the host's would do it to 8-15 too. */
static void zero_vectors(struct translation *t, unsigned k, bool all)
{
	struct emit *e = &t->e;
	mark_commit(t, k);
	for (unsigned n = 0; n < 8; n++) {
		e8(e, 0xc5); /* vpxor xmm, xmm, xmm; vmovaps xmm, xmm */
		e8(e, all ? 0x81u | (15 - n) << 3 : 0xf8);
		e8(e, all ? 0xef : 0x28);
		e8(e, 0xc0u | n << 3 | n);
	}
}

static bool emit_copy(struct translation *t, unsigned k)
{
	const struct tins *i = &t->ins[k];
	struct enc x;
	switch (i->zi.mnemonic) {
	case ZYDIS_MNEMONIC_PAUSE:
		e8(&t->e, 0xf3);
		e8(&t->e, 0x90);
		return true;
	case ZYDIS_MNEMONIC_VZEROUPPER: case ZYDIS_MNEMONIC_VZEROALL:
		zero_vectors(t, k, i->zi.mnemonic == ZYDIS_MNEMONIC_VZEROALL);
		return true;
	default:
		break;
	}
	enc_of(&i->zi, i->zo, &x);
	rename_sp(i, &x);
	if (i->fop)
		mark_commit(t, k);
	return put(t, i, &x);
}

static bool emit_memory(struct translation *t, unsigned k)
{
	const struct tins *i = &t->ins[k];
	const ZydisDecodedOperand *o = memory_of(i);
	unsigned size = o->size / 8u;
	struct la a;
	struct enc x;
	if (!address_of(i, o, &a) || const_crosses(t, &a, size))
		return false;
	enum crossing how = size == 1 || checks_alignment(&i->zi, size) ? NO_CROSSING : MAY_CROSS;
	struct marg m = mem(t, k, &a, size, o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE, how);
	flags_for_insn(t, k);
	enc_of(&i->zi, i->zo, &x);
	rename_sp(i, &x);
	x.mem = true;
	x.base = m.base;
	x.index = m.index;
	x.scale = 0;
	x.disp = m.disp;
	if (i->fop)
		mark_commit(t, k);
	return has_high8(i) ? with_high8(t, k, &x) : put(t, i, &x);
}

/* BT, BTS, BTR, BTC of memory by a register: of the doubleword that it says, whose bit it is. */
static bool emit_bits(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	unsigned bit = gpr(i->zo[1].reg.value);
	struct la a;
	struct enc x;
	if (!address_of(i, &i->zo[0], &a))
		return false;
	e_reg(e, 0x8b, V, bit);
	e_reg(e, 0xc1, 7, V); e8(e, 5);         /* sar r12d, 5 */
	offset_into(e, T, &a);
	e_mem(e, 0x8d, T, M_SIB(T, V, 2, 0));   /* lea r11d, [r11 + r12 * 4] */
	if (a.adsz == 2)
		e_reg(e, 0x0fb7, T, T);
	struct marg m = mem_at_t(t, k, &a, 4, i->zo[0].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE, MAY_CROSS);
	e_reg(e, 0x8b, V, bit);
	e_reg(e, 0x83, 4, V); e8(e, 31);        /* and r12d, 31 */
	flags_for_insn(t, k);
	enc_of(&i->zi, i->zo, &x);
	x.reg = V;
	x.mem = true;
	x.base = m.base;
	x.index = m.index;
	x.scale = 0;
	x.disp = m.disp;
	return put(t, i, &x);
}
static bool is_bits(const struct tins *i)
{
	switch (i->zi.mnemonic) {
	case ZYDIS_MNEMONIC_BT: case ZYDIS_MNEMONIC_BTS: case ZYDIS_MNEMONIC_BTR: case ZYDIS_MNEMONIC_BTC:
		return i->zo[0].type == ZYDIS_OPERAND_TYPE_MEMORY && i->zo[0].size == 32 && i->zo[1].type == ZYDIS_OPERAND_TYPE_REGISTER;
	default:
		return false;
	}
}

/* LODS, SCAS, CMPS without REP: bytes of the operand; 0: not one of them, or not here. */
static unsigned scan_size(const struct tins *i)
{
	for (unsigned k = 0; k < i->zi.raw.prefix_count; k++)
		if (i->zi.raw.prefixes[k].value == 0xf2 || i->zi.raw.prefixes[k].value == 0xf3)
			return 0;
	if (i->zi.opcode_map != ZYDIS_OPCODE_MAP_DEFAULT || i->zi.address_width != 32)
		return 0;
	switch (i->zi.opcode) {
	case 0xa6: case 0xac: case 0xae: return 1;
	case 0xa7: case 0xad: case 0xaf: return i->zi.operand_width / 8u;
	default: return 0;
	}
}

static bool emit_scan(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	unsigned n = scan_size(i), op = i->zi.opcode & 0xfe;
	enum crossing how = n == 1 ? NO_CROSSING : MAY_CROSS;
	struct la from = { .base = RSI, .index = ENC_NONE, .adsz = 4, .seg = S_DS }, to = { .base = RDI, .index = ENC_NONE, .adsz = 4, .seg = S_ES };
	for (unsigned j = 0; j < i->zi.operand_count; j++)
		if (i->zo[j].type == ZYDIS_OPERAND_TYPE_MEMORY && i->zo[j].mem.base == ZYDIS_REGISTER_ESI)
			from.seg = (u8)(i->zo[j].mem.segment - ZYDIS_REGISTER_ES);
	e_ctx_load(e, T, M_CTX(cpu));
	e_mem(e, 0xf7, 0, M_BASE(T, offsetof(struct cpu, rflags))); /* test dword, DF */
	e32(e, FL_DF);
	cold_add(t, e_jcc(e, CC_NZ), k);
	struct marg m = mem(t, k, op == 0xae ? &to : &from, n, false, how);
	unsigned r = RAX;
	if (op == 0xa6) {
		e_mem(e, n == 1 ? 0x0fb6 : n == 2 ? 0x0fb7 : 0x8b, V, m);
		r = V;
		m = mem(t, k, &to, n, false, how);
	}
	mark_commit(t, k);
	if (n == 2)
		e8(e, 0x66);
	/* MOV or CMP r, m */
	e_mem(e, (op == 0xac ? 0x8a : 0x3a) | (n > 1), r, m);
	if (op != 0xae)
		e_mem(e, 0x8d, RSI, M_BASE(RSI, n));
	if (op != 0xac)
		e_mem(e, 0x8d, RDI, M_BASE(RDI, n));
	return true;
}

static bool emit_lea(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	unsigned r = gpr(i->zo[0].reg.value);
	struct la a;
	if (!address_of(i, &i->zo[1], &a))
		return false;
	if (i->zi.operand_width == 32) {
		mark_commit(t, k); /* two steps, where the address has 16 bits */
		offset_into(e, r, &a);
		return true;
	}
	offset_into(e, T, &a);
	e8(e, 0x66);
	e_reg(e, 0x89, T, r);
	return true;
}

/* ---- branches ---------------------------------------------------------------------------------------------- */

static u32 target_rip(const struct translation *t, const struct tins *i)
{
	u32 rip = (u32)(t->lin + i->off + i->zi.length - t->page->klass.cs_base) + (u32)i->zo[0].imm.value.u;
	return i->zi.operand_width == 16 ? rip & 0xffff : rip;
}

u64 legacy_target(const struct translation *t, unsigned k)
{
	return (u32)(target_rip(t, &t->ins[k]) + t->page->klass.cs_base);
}

/* LOOP, JCXZ with CX, which 64-bit mode does not have. */
static void emit_loop16(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	bool jcxz = i->zi.mnemonic == ZYDIS_MNEMONIC_JCXZ;
	mark_commit(t, k);
	if (!jcxz) {
		e8(e, 0x66);
		e_mem(e, 0x8d, RCX, M_BASE(RCX, -1));
	}
	e_mov(e, E, RCX);
	e_reg(e, 0x0fb7, RCX, RCX);
	u8 *zero = e_jrcxz(e), *past = NULL;
	e_mov(e, RCX, E);
	if (jcxz) {
		branch_jump(t, e, 1, next_lin_of(t, k));
	} else {
		if (i->zi.mnemonic != ZYDIS_MNEMONIC_LOOP)
			past = e_jcc(e, i->zi.mnemonic == ZYDIS_MNEMONIC_LOOPE ? CC_NZ : CC_Z);
		branch_jump(t, e, 0, legacy_target(t, k));
	}
	e_here8(e, zero);
	e_mov(e, RCX, E);
	if (past)
		e_here32(e, past);
	if (jcxz)
		branch_jump(t, e, 0, legacy_target(t, k));
	else
		branch_jump(t, e, 1, next_lin_of(t, k));
}

/* T, an indirect branch's target of n bytes: within CS's limit, or the interpreter raises #GP. Then T is
 * its linear address. */
static void to_linear(struct translation *t, unsigned k, unsigned n)
{
	struct emit *e = &t->e;
	u32 limit = t->page->klass.cs_limit;
	if (limit < (n == 2 ? 0xffff : 0xffffffff)) {
		e_reg(e, 0x81, 7, T); /* cmp r11d, limit */
		e32(e, limit);
		cold_add(t, e_jcc(e, CC_NBE), k);
	}
	if (t->page->klass.cs_base)
		e_mem(e, 0x8d, T, M_BASE(T, t->page->klass.cs_base));
}

static bool load_target(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	const ZydisDecodedOperand *o = &i->zo[0];
	unsigned n = i->zi.operand_width / 8u;
	if (o->type == ZYDIS_OPERAND_TYPE_REGISTER) {
		e_reg(e, n == 2 ? 0x0fb7 : 0x8b, T, gpr(o->reg.value));
	} else {
		struct la a;
		if (!address_of(i, o, &a) || const_crosses(t, &a, n))
			return false;
		load(e, T, mem(t, k, &a, n, false, MAY_CROSS), n);
	}
	to_linear(t, k, n);
	return true;
}

static void push_return(struct translation *t, unsigned k)
{
	u32 rip = (u32)(next_lin_of(t, k) - t->page->klass.cs_base);
	push_const(t, k, t->ins[k].zi.operand_width / 8u, rip);
}

static bool emit_call_indirect(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	if (!load_target(t, k))
		return false;
	branch_call_found(t, k, T);
	push_return(t, k);
	e_mem(e, E_GS | 0xff, 2, M_CTX(target));        /* call */
	branch_return_site(t, k);
	return true;
}

static void emit_ret(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	unsigned n = i->zi.operand_width / 8u;
	i32 pop = (i32)(n + (i->zi.operand_count_visible ? (unsigned)i->zo[0].imm.value.u & 0xffff : 0));
	struct la a = stack_place(t, HOST_SP, 0);
	load(e, T, mem(t, k, &a, n, false, MAY_CROSS), n);
	to_linear(t, k, n);
	mark_commit(t, k);
	sp_move(t, HOST_SP, pop);
	t->block->sp_back = -pop;
	e_ctx_imm(e, M_CTX(exit), exit_id(t->index, k, X_INDIRECT));
	e8(e, 0xc3);
}

static bool emit_branch(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	switch (i->kind) {
	case K_JMP:
		branch_link(t, 0, e_jmp(e), legacy_target(t, k), false);
		return true;
	case K_JCC:
		branch_jcc(t, k);
		return true;
	case K_LOOP:
		if (i->zi.address_width == 16)
			emit_loop16(t, k);
		else
			branch_loop(t, k);
		return true;
	case K_CALL:
		push_return(t, k);
		if (t->saved && !branch_far(t, legacy_target(t, k)))
			flags_restore(e, T_FREE);
		branch_link(t, 0, e_call(e), legacy_target(t, k), false);
		branch_return_site(t, k);
		return true;
	case K_CALL_IND:
		return emit_call_indirect(t, k);
	case K_JMP_IND:
		if (!load_target(t, k))
			return false;
		branch_jump_found(t, k, T);
		return true;
	default:
		emit_ret(t, k);
		return true;
	}
}

/* ---- what an instruction is ------------------------------------------------------------------------------------ */

static enum kind branch_kind(const struct translation *t, const struct tins *i)
{
	const ZydisDecodedOperand *o = &i->zo[0];
	struct la a;
	bool direct = o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE, ret = i->zi.mnemonic == ZYDIS_MNEMONIC_RET;
	if (ret)
		return K_RET;
	if (direct && target_rip(t, i) > t->page->klass.cs_limit)
		return K_INTERP_LAST;
	if (o->type == ZYDIS_OPERAND_TYPE_MEMORY && (!address_of(i, o, &a) || const_crosses(t, &a, i->zi.operand_width / 8u)))
		return K_INTERP_LAST;
	switch (i->zi.mnemonic) {
	case ZYDIS_MNEMONIC_JMP: return direct ? K_JMP : K_JMP_IND;
	case ZYDIS_MNEMONIC_CALL: return direct ? K_CALL : K_CALL_IND;
	case ZYDIS_MNEMONIC_LOOP: case ZYDIS_MNEMONIC_LOOPE: case ZYDIS_MNEMONIC_LOOPNE:
	case ZYDIS_MNEMONIC_JCXZ: case ZYDIS_MNEMONIC_JECXZ:
		return K_LOOP;
	default: return K_JCC;
	}
}

static enum kind stack_kind(const struct translation *t, const struct tins *i)
{
	const ZydisDecodedOperand *o = &i->zo[0];
	struct la a;
	switch (i->zi.mnemonic) {
	case ZYDIS_MNEMONIC_PUSH:
		return o->type != ZYDIS_OPERAND_TYPE_MEMORY || (address_of(i, o, &a) && !const_crosses(t, &a, i->zi.operand_width / 8u)) ?
		       K_PUSH : K_INTERP;
	case ZYDIS_MNEMONIC_POP:
		return o->type == ZYDIS_OPERAND_TYPE_REGISTER && o->reg.value != ZYDIS_REGISTER_SP ? K_POP : K_INTERP;
	default: return K_LEAVE;
	}
}

static bool loads_data_segment(const struct tins *i)
{
	return (i->zi.mnemonic == ZYDIS_MNEMONIC_MOV || i->zi.mnemonic == ZYDIS_MNEMONIC_POP) && is_segment(&i->zo[0]) &&
	       i->zo[0].reg.value != ZYDIS_REGISTER_SS && i->zo[0].reg.value != ZYDIS_REGISTER_CS;
}

/* Those of general registers alone are left: they are #UD in real and V86 mode. */
static bool vex_possible(const struct tins *i, int unit)
{
	if (unit < 0)
		return false;
	if (i->zi.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX)
		return unit == FC_AVX || !wide_by_w(i);
	return i->zi.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && !wide_by_w(i);
}

static bool is_moffs(const struct tins *i)
{
	return i->zi.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && (i->zi.opcode & 0xfc) == 0xa0 && i->zi.mnemonic == ZYDIS_MNEMONIC_MOV;
}

enum kind legacy_kind(struct translation *t, struct tins *i)
{
	const struct op *o = i->op;
	if (o->op_class == OC_BRANCH)
		return branch_kind(t, i);
	if (is_hint(&i->zi))
		return K_NOP;
	if (system_possible(t, i))
		return K_SYSTEM;
	if (string_possible(t, i))
		return K_STRING;
	if (i->zi.mnemonic == ZYDIS_MNEMONIC_PUSH)
		return stack_kind(t, i);
	if (scan_size(i))
		return K_MEM;
	if (system_gate(t, i))
		return K_GATE;
	if (loads_data_segment(i))
		return K_INTERP; /* goes on here where the class is the same */
	if (o->op_class == OC_CALL || (o->flags & (OF_ENDS | OF_STRING | OF_PRIV)))
		return interp_kind(i);
	switch (i->zi.mnemonic) {
	case ZYDIS_MNEMONIC_LEA: return K_LEA;
	case ZYDIS_MNEMONIC_POP: case ZYDIS_MNEMONIC_LEAVE: return stack_kind(t, i);
	case ZYDIS_MNEMONIC_DAA: case ZYDIS_MNEMONIC_DAS: case ZYDIS_MNEMONIC_AAA: case ZYDIS_MNEMONIC_AAS: case ZYDIS_MNEMONIC_AAM:
	case ZYDIS_MNEMONIC_AAD: case ZYDIS_MNEMONIC_SALC:
	case ZYDIS_MNEMONIC_XLAT:
		return K_INTERP;
	case ZYDIS_MNEMONIC_BSWAP:
		if (i->zi.operand_width == 16)
			return K_INTERP;
		break;
	default: break;
	}
	int unit = unit_of(i);
	if (is_left(t->b->cpu, &i->zi) || unit == -2 || (unit >= FC_SSE && t->b->cpu->nofpu[unit] == V_UD))
		return K_INTERP;
	if ( (i->zi.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY && !vex_possible(i, unit)))
		return K_INTERP;
	const ZydisDecodedOperand *m = memory_of(i);
	struct la a;
	if (is_bits(i))
		return address_of(i, m, &a) ? K_BITS : K_INTERP;
	if (m && ((!is_moffs(i) && !one_operand_of_memory(i)) || !address_of(i, m, &a)))
		return K_INTERP;
	if (unit >= 0)
		i->fop = x87_fop(i);
	use_unit(t, unit);
	return m ? K_MEM : K_COPY;
}

bool legacy_emit(struct translation *t, unsigned k)
{
	switch (t->ins[k].kind) {
	case K_COPY: return emit_copy(t, k);
	case K_MEM: return scan_size(&t->ins[k]) ? emit_scan(t, k) : emit_memory(t, k);
	case K_BITS: return emit_bits(t, k);
	case K_LEA: return emit_lea(t, k);
	case K_PUSH: return emit_push(t, k);
	case K_POP: return emit_pop(t, k);
	case K_LEAVE: return emit_leave(t, k);
	case K_NOP: return true;
	case K_SYSTEM: return system_emit(t, k);
	case K_STRING: string_emit(t, k); return true;
	case K_INTERP: case K_INTERP_LAST: case K_GATE: return false;
	default: return emit_branch(t, k);
	}
}
