/* One instruction of a form, with what must come before it: registers loaded for its addresses, counts
 * and divisors. */
#include "gen.h"

/* Registers that a translator has its own ideas about, and those whose encodings are odd. */
static unsigned base_reg(struct gen *e)
{
	static const u8 odd[] = { R_SP, R_BP, R_11, R_12, R_13, R_15, R_8 };
	if (pct(e, 45))
		return odd[below(e, ARRAY_LEN(odd))];
	for (unsigned tries = 0; tries < 3; tries++) {
		unsigned r = below(e, 16);
		if (e->known[r])
			return r;
	}
	return below(e, 16);
}

static void draw_address(struct gen *e, const struct enc *c, struct fields *f)
{
	if (c->kind == ENC_3DNOW)
		return;
	unsigned how = below(e, 100);
	f->mod = (u8)below(e, 3);
	f->sib = c->vsib;
	f->index = 4;
	f->scale = (u8)below(e, 4);
	f->rm = (u8)base_reg(e);
	if (c->vsib) {
		f->index = (u8)(pct(e, 80) ? 4 * below(e, 4) + 1 : below(e, 16)); /* small ones: program.c */
		if ((f->rm & 7) == 5 && !f->mod)
			f->mod = 1;
	} else if (how < 8) {           /* RIP-relative */
		f->mod = 0;
		f->rm = 5;
	} else if (how < 12) {          /* an address alone */
		f->mod = 0;
		f->sib = true;
		f->rm = 5;
	} else if (how < 45 || (f->rm & 7) == 4) {
		f->sib = true;
		if (how < 40)
			f->index = (u8)(pct(e, 50) ? base_reg(e) : below(e, 16));
	}
	if ((f->rm & 7) == 5 && !f->mod && !f->sib && how >= 8)
		f->mod = 1;
}

static bool writes_reg(const struct decoded *d, unsigned r)
{
	for (unsigned k = 0; k < d->zi.operand_count; k++) {
		const ZydisDecodedOperand *o = &d->zo[k];
		if (o->type != ZYDIS_OPERAND_TYPE_REGISTER || !(o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
			continue;
		switch (ZydisRegisterGetClass(o->reg.value)) {
		case ZYDIS_REGCLASS_GPR8:
			if (o->reg.value >= ZYDIS_REGISTER_AH && o->reg.value <= ZYDIS_REGISTER_BH) {
				if (r == (unsigned)(o->reg.value - ZYDIS_REGISTER_AH))
					return true;
				continue;
			}
			/* fall through */
		case ZYDIS_REGCLASS_GPR16: case ZYDIS_REGCLASS_GPR32: case ZYDIS_REGCLASS_GPR64:
			if ((unsigned)ZydisRegisterGetId(o->reg.value) == r)
				return true;
			break;
		default: break;
		}
	}
	return false;
}

/* What it would spoil: counters never, RSP and what addresses are made of seldom. */
static bool spoils(struct gen *e, const struct decoded *d)
{
	for (unsigned r = 0; r < 16; r++) {
		if (!writes_reg(d, r))
			continue;
		bool own = r == R_SP && (d->zi.meta.category == ZYDIS_CATEGORY_PUSH || d->zi.meta.category == ZYDIS_CATEGORY_POP);
		if (kept(e, r) || (r == R_SP && !own && !pct(e, 5)) || (e->known[r] && !own && pct(e, 50)))
			return true;
	}
	return false;
}

static bool draw(struct gen *e, const struct enc *c, struct slot *s, struct decoded *d)
{
	struct fields f;
	for (unsigned tries = 0; tries < 6; tries++) {
		memset(s, 0, sizeof(*s));
		enc_draw(c, &f, e->g, e->p->mode);
		if (c->mem && e->p->mode == CODE64)
			draw_address(e, c, &f);
		enc_bytes(c, &f, e->p->mode, s->bytes);
		if (!finder_decode(e->find, e->p->mode, s->bytes, 15, d, NULL) || spoils(e, d))
			continue;
		s->len = d->zi.length;
		return true;
	}
	return false;
}

/* ---- what single instructions need --------------------------------------------------------------------- */

static void immediates(struct gen *e, const struct decoded *d, struct slot *s)
{
	for (unsigned k = 0; k < 2; k++) {
		unsigned size = d->zi.raw.imm[k].size / 8u;
		if (!size || size > 8 || d->zi.raw.imm[k].offset + size > s->len || !pct(e, 50))
			continue;
		u64 v = value_int(e->g, size * 8);
		memcpy(s->bytes + d->zi.raw.imm[k].offset, &v, size);
	}
	if (d->zi.mnemonic == ZYDIS_MNEMONIC_ENTER && s->len >= 3)
		s->bytes[s->len - 1] &= 7;
}

static void divisor(struct gen *e)
{
	if (kept(e, R_DX) || kept(e, R_AX) || pct(e, 30))
		return;
	load(e, R_DX, pct(e, 60) ? 0 : ~0ull);
	if (pct(e, 50))
		load(e, R_AX, value_int(e->g, 32));
}

static void prepare(struct gen *e, const struct decoded *d)
{
	unsigned r;
	switch (d->zi.mnemonic) {
	case ZYDIS_MNEMONIC_DIV: case ZYDIS_MNEMONIC_IDIV: divisor(e); break;
	case ZYDIS_MNEMONIC_BT: case ZYDIS_MNEMONIC_BTS: case ZYDIS_MNEMONIC_BTR: case ZYDIS_MNEMONIC_BTC:
		if (d->zo[0].type != ZYDIS_OPERAND_TYPE_MEMORY || d->zo[1].type != ZYDIS_OPERAND_TYPE_REGISTER || pct(e, 20))
			break;
		r = (unsigned)ZydisRegisterGetId(d->zo[1].reg.value);
		if (!kept(e, r) && r != R_SP)
			load(e, r, (u64)((i64)below(e, 1024) - 300));
		break;
	case ZYDIS_MNEMONIC_LEAVE: case ZYDIS_MNEMONIC_ENTER:
		if (!kept(e, R_BP))
			load(e, R_BP, pick_target(e, 8));
		break;
	case ZYDIS_MNEMONIC_CLZERO:
		if (!kept(e, R_AX))
			load(e, R_AX, pick_target(e, 64));
		break;
	default: break;
	}
}

/* After it: what is known of registers still. */
static void follow(struct gen *e, const struct decoded *d)
{
	for (unsigned r = 0; r < 16; r++) {
		if (!writes_reg(d, r))
			continue;
		bool push = d->zi.meta.category == ZYDIS_CATEGORY_PUSH, pop = d->zi.meta.category == ZYDIS_CATEGORY_POP;
		if (r == R_SP && (push || pop))
			e->value[r] += (u64)(push ? -(i64)(d->zi.operand_width / 8) : d->zi.operand_width / 8);
		else
			e->known[r] = false;
	}
}

bool plain_of(struct gen *e, enum class c)
{
	struct slot s;
	struct decoded d;
	if (!pool_has(e->pool, c) || !draw(e, pool_draw(e->pool, c, e->g), &s, &d))
		return false;
	unit_begin(e);
	immediates(e, &d, &s);
	prepare(e, &d);
	aim(e, &d, &s);
	struct slot *o = emit(e, s.bytes, s.len);
	if (o && s.fix)
		*o = s;
	follow(e, &d);
	return true;
}

bool plain(struct gen *e)
{
	unsigned sum = 0;
	for (unsigned k = 0; k < N_CLASSES; k++)
		sum += e->weight[k];
	unsigned at = below(e, sum), c = 0;
	while (at >= e->weight[c])
		at -= e->weight[c++];
	return plain_of(e, (enum class)c);
}
