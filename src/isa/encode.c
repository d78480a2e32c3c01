/* See encode_api.h. */
#include "isa/encode_api.h"

struct code { u8 *b; unsigned n; };
static void put(struct code *c, unsigned v) { c->b[c->n++] = (u8)v; }

static bool bit(unsigned v, unsigned n) { return v >> n & 1; }

static bool is_long(const ZydisDecodedInstruction *zi) { return zi->machine_mode == ZYDIS_MACHINE_MODE_LONG_64; }
static bool has_modrm(const ZydisDecodedInstruction *zi) { return zi->attributes & ZYDIS_ATTRIB_HAS_MODRM; }

/* Bits of the REX kind: R X B as they are (not inverted). */
struct rxb { bool r, x, b; };
static struct rxb rxb_of(const struct enc *x)
{
	struct rxb v = { .r = bit(x->reg, 3) };
	if (x->mem) {
		v.x = x->index != ENC_NONE && bit(x->index, 3);
		v.b = x->base != ENC_NONE && bit(x->base, 3);
	} else {
		v.b = bit(x->rm, 3);
	}
	return v;
}

/* ---- operands ------------------------------------------------------------------------------ */

static u8 number(ZydisRegister r)
{
	int id = ZydisRegisterGetId(r);
	if (ZydisRegisterGetClass(r) == ZYDIS_REGCLASS_GPR8 && id >= 4)
		return (u8)(id < 8 ? id : id - 4); /* AH..BH are 4..7; SPL.. follow them */
	return (u8)(id < 0 ? 0 : id);
}

static bool is_high8(ZydisRegister r) { return r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH; }

void enc_of(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo, struct enc *x)
{
	*x = (struct enc){ .reg = zi->raw.modrm.reg, .rm = zi->raw.modrm.rm, .base = ENC_NONE, .index = ENC_NONE };
	for (unsigned k = 0; k < zi->operand_count; k++) {
		const ZydisDecodedOperand *o = &zo[k];
		if (o->type == ZYDIS_OPERAND_TYPE_MEMORY && o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM) {
			x->mem = true;
			x->base = o->mem.base == ZYDIS_REGISTER_NONE ? ENC_NONE : number(o->mem.base);
			x->index = o->mem.index == ZYDIS_REGISTER_NONE ? ENC_NONE : number(o->mem.index);
			x->scale = (u8)(o->mem.scale == 8 ? 3 : o->mem.scale == 4 ? 2 : o->mem.scale == 2 ? 1 : 0);
			x->disp = (i32)o->mem.disp.value;
		} else if (o->type == ZYDIS_OPERAND_TYPE_REGISTER) {
			if (o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG)
				x->reg = number(o->reg.value);
			else if (o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM || o->encoding == ZYDIS_OPERAND_ENCODING_OPCODE)
				x->rm = number(o->reg.value);
			else if (o->encoding == ZYDIS_OPERAND_ENCODING_NDSNDD)
				x->vvvv = number(o->reg.value);
		}
	}
}

/* ---- ModRM and what follows ------------------------------------------------------------------ */

static void put_memory(struct code *c, const struct enc *x, bool wide)
{
	unsigned reg = (x->reg & 7u) << 3;
	if (x->base == ENC_NONE) { /* SIB without base: the displacement has 32 bits */
		put(c, reg | 4);
		put(c, (unsigned)x->scale << 6 | (x->index == ENC_NONE ? 4 : x->index & 7u) << 3 | 5);
		st32(c->b + c->n, (u32)x->disp);
		c->n += 4;
		return;
	}
	unsigned mod = x->disp == 0 && !wide && (x->base & 7) != 5 ? 0 : x->disp == (i8)x->disp && !wide ? 1 : 2;
	if (x->index == ENC_NONE && (x->base & 7) != 4) {
		put(c, mod << 6 | reg | (x->base & 7u));
	} else {
		put(c, mod << 6 | reg | 4);
		put(c, (unsigned)x->scale << 6 | (x->index == ENC_NONE ? 4 : x->index & 7u) << 3 | (x->base & 7u));
	}
	if (mod == 1) {
		put(c, (u8)x->disp);
	} else if (mod == 2) {
		st32(c->b + c->n, (u32)x->disp);
		c->n += 4;
	}
}

/* Immediates, is4, 3DNow!'s opcode: all after ModRM, SIB and displacement, or after the opcode. */
static void put_tail(struct code *c, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo, const u8 *bytes)
{
	unsigned imm = 0;
	if (has_modrm(zi)) {
		for (unsigned at = zi->raw.modrm.offset + 1u + (zi->raw.sib.offset ? 1 : 0) + zi->raw.disp.size / 8; at < zi->length; at++)
			put(c, bytes[at]);
	} else {
		for (unsigned k = 0; k < 2; k++)
			imm += zi->raw.imm[k].size / 8;
		for (unsigned at = zi->length - imm; at < zi->length; at++)
			put(c, bytes[at]);
	}
	for (unsigned k = 0; k < zi->operand_count; k++)
		if (zo[k].encoding == ZYDIS_OPERAND_ENCODING_IS4 && !is_long(zi))
			c->b[c->n - 1] &= 0x7f;
}

/* ---- prefixes and opcode ----------------------------------------------------------------------- */

static bool is_moffs(const ZydisDecodedInstruction *zi)
{
	return zi->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && (zi->opcode & 0xfc) == 0xa0;
}

/* Whether 66h chooses between 16 and 32 bits; elsewhere it is another instruction's, or nothing. */
static bool sized_by_66(const ZydisDecodedInstruction *zi)
{
	unsigned op = zi->opcode;
	switch (zi->opcode_map) {
	case ZYDIS_OPCODE_MAP_DEFAULT: return op < 0xd8 || op > 0xdf;
	case ZYDIS_OPCODE_MAP_0F:
		return (op & 0xf0) == 0x40 || op == 0x1f || (op >= 0xa3 && op <= 0xa5) || (op >= 0xab && op <= 0xad) || op == 0xaf ||
		       (op >= 0xb0 && op <= 0xbf) || op == 0xc0 || op == 0xc1 ||
		       zi->mnemonic == ZYDIS_MNEMONIC_RDRAND || zi->mnemonic == ZYDIS_MNEMONIC_RDSEED;
	default: return zi->mnemonic == ZYDIS_MNEMONIC_MOVBE || zi->mnemonic == ZYDIS_MNEMONIC_CRC32;
	}
}

/* 66h in 64-bit mode for what the instruction of 16-bit code does. */
static bool size16_of_code16(const ZydisDecodedInstruction *zi)
{
	for (unsigned k = 0; k < zi->raw.prefix_count; k++)
		if (zi->raw.prefixes[k].value == 0x66 && zi->raw.prefixes[k].type == ZYDIS_PREFIX_TYPE_MANDATORY)
			return true;
	return zi->operand_width == 16 && sized_by_66(zi);
}

static bool put_legacy(struct code *c, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo, const struct enc *x)
{
	u8 rep = 0;
	bool size16 = false, lock = false, rex_seen = zi->attributes & ZYDIS_ATTRIB_HAS_REX, high8 = false;
	for (unsigned k = 0; k < zi->raw.prefix_count; k++) {
		u8 v = zi->raw.prefixes[k].value;
		if (v == 0xf2 || v == 0xf3) {
			if (zi->raw.prefixes[k].type != ZYDIS_PREFIX_TYPE_IGNORED)
				rep = v;
		} else if (v == 0x66) {
			size16 |= zi->raw.prefixes[k].type != ZYDIS_PREFIX_TYPE_IGNORED || zi->operand_width == 16;
		} else if (v == 0xf0) {
			lock = true;
		}
	}
	for (unsigned k = 0; k < zi->operand_count; k++)
		if (zo[k].type == ZYDIS_OPERAND_TYPE_REGISTER)
			high8 |= is_high8(zo[k].reg.value) && zo[k].visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN;
	if (zi->machine_mode == ZYDIS_MACHINE_MODE_LEGACY_16)
		size16 = size16_of_code16(zi);
	if (lock)
		put(c, 0xf0);
	if (size16)
		put(c, 0x66);
	if (rep)
		put(c, rep);
	struct rxb v = rxb_of(x);
	unsigned rex = (rex_seen && zi->raw.rex.W ? 8u : 0) | v.r << 2 | v.x << 1 | v.b;
	/* Kept where there was one: of SPL..DIL it is part of the name. */
	if (rex || (rex_seen && !high8)) {
		if (high8)
			return false;
		put(c, 0x40 | rex);
	}
	switch (zi->opcode_map) {
	case ZYDIS_OPCODE_MAP_0F: put(c, 0x0f); break;
	case ZYDIS_OPCODE_MAP_0F38: put(c, 0x0f); put(c, 0x38); break;
	case ZYDIS_OPCODE_MAP_0F3A: put(c, 0x0f); put(c, 0x3a); break;
	case ZYDIS_OPCODE_MAP_0F0F: put(c, 0x0f); put(c, 0x0f); return true; /* the opcode is the last byte */
	default: break;
	}
	if (!is_long(zi) && zi->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && (zi->opcode & 0xf0) == 0x40) { /* there it is REX */
		put(c, 0xff);
		put(c, 0xc0 | (zi->opcode & 8u) | (x->rm & 7u));
		return true;
	}
	if (x->mem && is_moffs(zi)) {
		put(c, 0x88 | (zi->opcode & 1u) | (zi->opcode & 2 ? 0 : 2));
		return true;
	}
	if (zi->opcode == 0x82 && zi->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT) {
		put(c, 0x80);
		return true;
	}
	bool in_opcode = false;
	for (unsigned k = 0; k < zi->operand_count; k++)
		in_opcode |= zo[k].type == ZYDIS_OPERAND_TYPE_REGISTER && zo[k].encoding == ZYDIS_OPERAND_ENCODING_OPCODE;
	put(c, in_opcode ? (zi->opcode & 0xf8u) | (x->rm & 7u) : zi->opcode);
	return true;
}

/* Three-byte VEX and XOP; all bits but W, L and pp inverted. */
static void put_vex(struct code *c, unsigned first, unsigned map, bool w, unsigned l, unsigned pp, const struct enc *x)
{
	struct rxb v = rxb_of(x);
	put(c, first);
	put(c, !v.r << 7 | !v.x << 6 | !v.b << 5 | map);
	put(c, (unsigned)w << 7 | (~x->vvvv & 15u) << 3 | l << 2 | pp);
}

static void put_evex(struct code *c, const ZydisDecodedInstruction *zi, const struct enc *x)
{
	const struct ZydisDecodedInstructionRawEvex *e = &zi->raw.evex;
	struct rxb v = rxb_of(x);
	if (!x->mem)
		v.x = bit(x->rm, 4);
	put(c, 0x62);
	put(c, !v.r << 7 | !v.x << 6 | !v.b << 5 | !bit(x->reg, 4) << 4 | e->mmm);
	put(c, (unsigned)e->W << 7 | (~x->vvvv & 15u) << 3 | 4 | e->pp);
	put(c, (unsigned)e->z << 7 | (unsigned)e->L2 << 6 | (unsigned)e->L << 5 | (unsigned)e->b << 4 | !bit(x->vvvv, 4) << 3 | e->aaa);
}

unsigned enc_put(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo, const u8 *bytes, const struct enc *x, u8 *out)
{
	struct code c = { out, 0 };
	if (x->mem && x->seg)
		put(&c, x->seg);
	if (x->mem && x->a32)
		put(&c, 0x67);
	switch (zi->encoding) {
	case ZYDIS_INSTRUCTION_ENCODING_LEGACY:
	case ZYDIS_INSTRUCTION_ENCODING_3DNOW:
		if (!put_legacy(&c, zi, zo, x))
			return 0;
		break;
	case ZYDIS_INSTRUCTION_ENCODING_VEX:
		put_vex(&c, 0xc4, zi->raw.vex.m_mmmm, zi->raw.vex.W, zi->raw.vex.L, zi->raw.vex.pp, x);
		put(&c, zi->opcode);
		break;
	case ZYDIS_INSTRUCTION_ENCODING_XOP:
		put_vex(&c, 0x8f, zi->raw.xop.m_mmmm, zi->raw.xop.W, zi->raw.xop.L, zi->raw.xop.pp, x);
		put(&c, zi->opcode);
		break;
	case ZYDIS_INSTRUCTION_ENCODING_EVEX:
		put_evex(&c, zi, x);
		put(&c, zi->opcode);
		break;
	default:
		return 0;
	}
	if (has_modrm(zi) || (x->mem && is_moffs(zi))) {
		if (x->mem)
			put_memory(&c, x, x->wide || zi->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX);
		else
			put(&c, 0xc0 | (x->reg & 7u) << 3 | (x->rm & 7u));
	}
	put_tail(&c, zi, zo, bytes);
	return c.n;
}
