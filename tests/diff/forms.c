/* The forms: the whole encoding space (legacy maps with their prefixes and REX.W, VEX, XOP, EVEX, 3DNow!, all
 * ModRM.reg and, where they select, ModRM.rm), decoded, and sorted by row of isa/ops.def and by
 * sub-form. Nobody lists instructions for the harness: a row that decodes is tested, one that
 * does not shows up as a form without states. */
#include <stdlib.h>
#include <string.h>

#include "encode.h"

/* ---- one instruction ------------------------------------------------------------------------------- */

/* Equal sizes and kinds of operands: a sub-form, which gets its share of the states. */
static u32 group_of(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo)
{
	u64 h = zi->operand_width | (u64)zi->encoding << 8 | (u64)zi->avx.vector_length << 16 |
		(u64)(zi->avx.broadcast.mode != 0) << 32 | (u64)(zi->avx.rounding.mode != 0) << 33 |
		(u64)zi->avx.has_sae << 34 | (u64)zi->avx.mask.mode << 36 |
		(u64)!!(zi->attributes & ZYDIS_ATTRIB_HAS_LOCK) << 40 |
		(u64)!!(zi->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE)) << 41 |
		(u64)!!(zi->attributes & ZYDIS_ATTRIB_HAS_REPNE) << 42;
	for (unsigned k = 0; k < zi->operand_count_visible; k++)
		h = mix(h, zo[k].type | (u64)zo[k].size << 8 | (u64)zo[k].encoding << 24 |
			(zo[k].type == ZYDIS_OPERAND_TYPE_REGISTER ?
			 (u64)ZydisRegisterGetClass(zo[k].reg.value) << 32 : 0));
	return (u32)(h ^ h >> 32);
}

bool finder_decode(const struct finder *f, enum code_mode mode, const u8 *bytes, unsigned len, struct decoded *d,
		   bool *offered)
{
	if (isa_decode(mode, f->quirks, bytes, len, &d->zi, d->zo) != ISA_OK)
		return false;
	const struct op *o = op_of_insn(f->index, &d->zi, d->zo);
	d->row = o ? (int)(o - isa_ops) : -1;
	bool has = o && cpu_offers_isa(f->cpu, d->zi.meta.isa_set);
	if (offered)
		*offered = has;
	if (!o || (!offered && !has))
		return false;
	d->group = group_of(&d->zi, d->zo);
	return true;
}

/* ---- collecting --------------------------------------------------------------------------------------- */

struct builder { struct forms *f; const struct finder *find; };

static bool operand_uses(const struct decoded *d, ZydisOperandEncoding how)
{
	for (unsigned k = 0; k < d->zi.operand_count; k++)
		if (d->zo[k].encoding == how)
			return true;
	return false;
}
static bool has_vsib(const struct decoded *d)
{
	for (unsigned k = 0; k < d->zi.operand_count; k++)
		if (d->zo[k].type == ZYDIS_OPERAND_TYPE_MEMORY && d->zo[k].mem.type == ZYDIS_MEMOP_TYPE_VSIB)
			return true;
	return false;
}

static void add(struct builder *b, const struct enc *e)
{
	struct forms *f = b->f;
	if (f->n == f->cap) {
		f->cap = f->cap ? 2 * f->cap : 4096;
		f->enc = realloc(f->enc, f->cap * sizeof(*f->enc));
		if (!f->enc)
			bug("out of memory");
	}
	f->enc[f->n] = *e;
	f->enc[f->n].seq = f->n;
	f->n++;
}

static const u8 encoding_of[] = {
	[ENC_LEGACY] = ZYDIS_INSTRUCTION_ENCODING_LEGACY, [ENC_VEX] = ZYDIS_INSTRUCTION_ENCODING_VEX,
	[ENC_EVEX] = ZYDIS_INSTRUCTION_ENCODING_EVEX, [ENC_XOP] = ZYDIS_INSTRUCTION_ENCODING_XOP,
	[ENC_3DNOW] = ZYDIS_INSTRUCTION_ENCODING_3DNOW,
};

static bool decode_sample(struct builder *b, const struct enc *e, unsigned reg, unsigned rm, unsigned vvvv,
			  bool sib, struct decoded *d, bool *offered)
{
	struct fields f = { .reg = (u8)reg, .rm = (u8)rm, .vvvv = (u8)vvvv, .index = 2, .mod = e->mem ? 0 : 3, .w = e->w,
			    .l = e->l, .z = e->z, .aaa = e->mask, .sib = sib };
	u8 bytes[15];
	enc_bytes(e, &f, b->f->mode, bytes);
	return finder_decode(b->find, b->f->mode, bytes, 15, d, offered) && d->zi.encoding == encoding_of[e->kind];
}

/* Whether a prefix or W of e changes nothing: then the encoding without it stands for both. */
static bool redundant(struct builder *b, const struct enc *e, const struct decoded *with, unsigned reg, unsigned rm,
		      unsigned vvvv, bool sib)
{
	bool offered;
	for (unsigned k = 0; k < 4; k++) {
		struct enc less = *e;
		if (k == 3)
			less.w = 0;
		else if (e->kind == ENC_LEGACY)
			less.pfx &= (u8)~(1u << k);
		if (less.pfx == e->pfx && less.w == e->w)
			continue;
		struct decoded d;
		if (decode_sample(b, &less, reg, rm, vvvv, sib, &d, &offered) && d.row == with->row &&
		    d.group == with->group)
			return true;
	}
	return false;
}

/* One encoding with reg and rm as given; true if it exists. */
static bool try_one(struct builder *b, struct enc e, unsigned reg, unsigned rm, bool *reg_free, bool *rm_free)
{
	struct decoded d;
	bool offered, sib = false;
	unsigned vvvv = 0;
	if (!decode_sample(b, &e, reg, rm, vvvv, sib, &d, &offered)) {
		sib = true; /* a vector index */
		if (!e.mem || !decode_sample(b, &e, reg, rm, vvvv, sib, &d, &offered)) {
			vvvv = 7; /* gathers want three different registers */
			if (!e.mem || e.kind != ENC_VEX || !decode_sample(b, &e, reg, rm, vvvv, sib, &d, &offered))
				return false;
		}
	}
	e.modrm = d.zi.attributes & ZYDIS_ATTRIB_HAS_MODRM;
	*reg_free = !e.modrm || operand_uses(&d, ZYDIS_OPERAND_ENCODING_MODRM_REG);
	*rm_free = !e.modrm || e.mem || operand_uses(&d, ZYDIS_OPERAND_ENCODING_MODRM_RM);
	if (!offered) {
		b->f->absent[d.row]++;
		return true;
	}
	if (redundant(b, &e, &d, reg, rm, vvvv, sib))
		return true;
	e.reg = *reg_free ? -1 : (i8)reg;
	e.rm = *rm_free ? -1 : (i8)rm;
	e.vvvv = operand_uses(&d, ZYDIS_OPERAND_ENCODING_NDSNDD) ? -1 : 0;
	e.vsib = has_vsib(&d);
	if (!e.modrm)
		e.mem = false;
	e.row = (u16)d.row;
	e.group = d.group;
	add(b, &e);
	return true;
}

/* All ModRM of an opcode with everything else fixed; true if any exists. */
static bool try_modrm(struct builder *b, struct enc e, bool mem)
{
	bool any = false, reg_free, rm_free;
	e.modrm = true;
	e.mem = mem;
	for (unsigned reg = 0; reg < 8; reg++) {
		for (unsigned rm = 0; rm < (mem ? 1 : 8u); rm++) {
			reg_free = rm_free = false;
			if (!try_one(b, e, reg, rm, &reg_free, &rm_free))
				continue;
			any = true;
			if (rm_free)
				break;
		}
		if (any && reg_free)
			break;
	}
	return any;
}

static void legacy_opcode(struct builder *b, unsigned map, unsigned opcode)
{
	static const u8 prefixes[] = { 0, PFX_66, PFX_F3, PFX_F2, PFX_66 | PFX_F3, PFX_66 | PFX_F2, PFX_LOCK,
				       PFX_LOCK | PFX_66 };
	/* Address size selects the form of these alone: JCXZ. */
	for (unsigned p = 0; p < 2 * ARRAY_LEN(prefixes); p++) {
		u8 pfx = prefixes[p / 2] | (p & 1 ? PFX_67 : 0);
		if ((pfx & PFX_67) && (map || opcode != 0xe3))
			continue;
		for (u8 w = 0; w < (b->f->mode == CODE64 ? 2 : 1); w++) {
			struct enc e = { .kind = ENC_LEGACY, .map = (u8)map, .opcode = (u8)opcode, .pfx = pfx, .w = w };
			unsigned before = b->f->n;
			try_modrm(b, e, true);
			if (b->f->n == before || b->f->enc[before].modrm)
				try_modrm(b, e, false);
		}
	}
}

static bool is_prefix(enum code_mode mode, unsigned map, unsigned op)
{
	if (map == 1)
		return op == 0x38 || op == 0x3a || op == 0x0f;
	if (map)
		return false;
	return op == 0x0f || (op & ~0x18u) == 0x26 || (op >= 0x64 && op <= 0x67) || op == 0xf0 || op == 0xf2 ||
	       op == 0xf3 || (mode == CODE64 && ((op & 0xf0) == 0x40 || op == 0xc4 || op == 0xc5 || op == 0x62));
}

static void vex_opcode(struct builder *b, enum enc_kind kind, unsigned map, unsigned opcode)
{
	for (unsigned k = 0; k < 16; k++) {
		struct enc e = { .kind = (u8)kind, .map = (u8)map, .opcode = (u8)opcode, .pfx = k & 3, .w = k >> 2 & 1,
				 .l = k >> 3 & 1 };
		unsigned before = b->f->n;
		try_modrm(b, e, true);
		if (b->f->n == before || b->f->enc[before].modrm)
			try_modrm(b, e, false);
	}
}

static void evex_opcode(struct builder *b, unsigned map, unsigned opcode)
{
	for (unsigned k = 0; k < 8; k++) {
		for (unsigned mem = 0; mem < 2; mem++) {
			struct enc e = { .kind = ENC_EVEX, .map = (u8)map, .opcode = (u8)opcode, .pfx = k & 3,
					 .w = k >> 2 & 1 };
			unsigned any = 0;
			for (e.l = 0; e.l < 3; e.l++) {
				for (unsigned m = 0; m < 3; m++) {
					e.mask = m > 0;
					e.z = m == 2;
					any |= (unsigned)try_modrm(b, e, mem) << m;
				}
			}
			/* Broadcast, or rounding with any vector length. */
			e.b = true;
			for (e.l = mem ? 0 : 2; any && e.l < 3; e.l++) {
				for (unsigned m = 0; m < 3; m++) {
					e.mask = m > 0;
					e.z = m == 2;
					if (any >> m & 1)
						try_modrm(b, e, mem);
				}
			}
		}
	}
}

static int by_row(const void *a, const void *b)
{
	const struct enc *x = a, *y = b;
	if (x->row != y->row)
		return x->row < y->row ? -1 : 1;
	if (x->group != y->group)
		return x->group < y->group ? -1 : 1;
	return x->seq < y->seq ? -1 : 1;
}

void forms_build(struct forms *f, const struct finder *find, enum code_mode mode)
{
	struct builder b = { f, find };
	memset(f, 0, sizeof(*f));
	f->mode = mode;
	f->first = calloc(isa_n_ops + 1, sizeof(*f->first));
	f->absent = calloc(isa_n_ops, sizeof(*f->absent));
	if (!f->first || !f->absent)
		bug("out of memory");
	for (unsigned map = 0; map < 4; map++)
		for (unsigned op = 0; op < 256; op++)
			if (!is_prefix(mode, map, op))
				legacy_opcode(&b, map, op);
	for (unsigned map = 1; map < 4; map++)
		for (unsigned op = 0; op < 256; op++)
			vex_opcode(&b, ENC_VEX, map, op);
	for (unsigned map = 8; map < 11; map++)
		for (unsigned op = 0; op < 256; op++)
			vex_opcode(&b, ENC_XOP, map, op);
	for (unsigned op = 0; op < 512; op++)
		try_modrm(&b, (struct enc){ .kind = ENC_3DNOW, .map = 1, .opcode = (u8)op }, op < 256);
	for (unsigned map = 1; map < 7; map++)
		for (unsigned op = 0; op < 256; op++)
			evex_opcode(&b, map, op);
	qsort(f->enc, f->n, sizeof(*f->enc), by_row);
	for (unsigned k = 0, row = 0; row <= isa_n_ops; row++) {
		while (k < f->n && f->enc[k].row < row)
			k++;
		f->first[row] = k;
	}
}

void forms_free(struct forms *f)
{
	free(f->enc);
	free(f->first);
	free(f->absent);
}
