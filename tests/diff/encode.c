/* One instruction of an encoding: what the encoding leaves open is drawn, what came out is
 * decoded again and thrown away if it is not of the same row and sub-form. */
#include <string.h>

#include "encode.h"

static void put(struct bytes *o, unsigned v) { o->b[o->n++] = (u8)v; }

/* Legacy prefixes in the order given by pre[], then REX. */
static void put_legacy_prefixes(const struct enc *e, const struct fields *f, enum code_mode mode, struct bytes *o)
{
	for (unsigned k = 0; k < f->n_pre; k++)
		put(o, f->pre[k]);
	if (e->pfx & PFX_LOCK)
		put(o, 0xf0);
	if (e->pfx & PFX_66)
		put(o, 0x66);
	if (e->pfx & PFX_F3)
		put(o, 0xf3);
	if (e->pfx & PFX_F2)
		put(o, 0xf2);
	if (e->pfx & PFX_67)
		put(o, 0x67);
	unsigned rex = (unsigned)f->w << 3 | (f->reg >> 3 & 1u) << 2 | (f->index >> 3 & 1u) << 1 | (f->rm >> 3 & 1u);
	if (mode == CODE64 && (rex || f->rex))
		put(o, 0x40 | rex);
}

static void put_legacy(const struct enc *e, const struct fields *f, enum code_mode mode, struct bytes *o)
{
	put_legacy_prefixes(e, f, mode, o);
	if (e->map)
		put(o, 0x0f);
	if (e->kind == ENC_3DNOW) {
		put(o, 0x0f); /* the opcode proper comes after ModRM */
		return;
	}
	if (e->map == 2)
		put(o, 0x38);
	if (e->map == 3)
		put(o, 0x3a);
	put(o, e->opcode);
}

/* Bit n of a register number, inverted as VEX and EVEX have them. */
static unsigned inv(unsigned reg, unsigned n) { return ~reg >> n & 1; }

static void put_vex(const struct enc *e, const struct fields *f, struct bytes *o)
{
	unsigned last = (~(unsigned)f->vvvv & 15) << 3 | (unsigned)f->l << 2 | e->pfx;
	unsigned r = inv(f->reg, 3), x = inv(f->index, 3), b = inv(f->rm, 3);
	for (unsigned k = 0; k < f->n_pre; k++)
		put(o, f->pre[k]);
	if (f->short_vex && e->kind == ENC_VEX && e->map == 1 && !f->w && x && b) {
		put(o, 0xc5);
		put(o, r << 7 | last);
	} else {
		put(o, e->kind == ENC_XOP ? 0x8f : 0xc4);
		put(o, r << 7 | x << 6 | b << 5 | e->map);
		put(o, (unsigned)f->w << 7 | last);
	}
	put(o, e->opcode);
}

static void put_evex(const struct enc *e, const struct fields *f, struct bytes *o)
{
	/* X extends rm of a register operand, and the index; V' extends vvvv, and a vector index. */
	unsigned x = e->mem ? inv(f->index, 3) : inv(f->rm, 4);
	unsigned v = e->vsib ? inv(f->index, 4) : inv(f->vvvv, 4);
	for (unsigned k = 0; k < f->n_pre; k++)
		put(o, f->pre[k]);
	put(o, 0x62);
	put(o, inv(f->reg, 3) << 7 | x << 6 | inv(f->rm, 3) << 5 | inv(f->reg, 4) << 4 | e->map);
	put(o, (unsigned)f->w << 7 | (~(unsigned)f->vvvv & 15) << 3 | 4 | e->pfx);
	put(o, (unsigned)f->z << 7 | (unsigned)f->l << 5 | (unsigned)e->b << 4 | v << 3 | f->aaa);
	put(o, e->opcode);
}

unsigned enc_bytes(const struct enc *e, const struct fields *f, enum code_mode mode, u8 *out)
{
	u8 room[48];
	struct bytes o = { room, 0 };
	switch (e->kind) {
	case ENC_VEX: case ENC_XOP: put_vex(e, f, &o); break;
	case ENC_EVEX: put_evex(e, f, &o); break;
	default: put_legacy(e, f, mode, &o); break;
	}
	if (e->modrm) {
		put(&o, (unsigned)f->mod << 6 | (f->reg & 7u) << 3 | (f->sib ? 4u : f->rm & 7u));
		if (f->sib)
			put(&o, (unsigned)f->scale << 6 | (f->index & 7u) << 3 | (f->rm & 7u));
	}
	if (e->kind == ENC_3DNOW)
		put(&o, e->opcode);
	unsigned n = MIN(o.n, 15u);
	memcpy(out, room, n);
	memcpy(out + n, f->tail, 15 - n);
	return n;
}

/* ---- drawing --------------------------------------------------------------------------------------- */

static void draw_prefixes(const struct enc *e, struct fields *f, struct rng *g, enum code_mode mode)
{
	static const u8 flat[] = { 0x26, 0x2e, 0x36, 0x3e };
	bool addr16 = mode == CODE32 && f->n_pre; /* 67h was drawn */
	if (e->mem && rnd_pct(g, addr16 ? 60 : 15))
		f->pre[f->n_pre++] = rnd(g) & 1 ? 0x64 : 0x65;
	else if (rnd_pct(g, 4))
		f->pre[f->n_pre++] = flat[rnd_below(g, 4)];
	/* One that should mean nothing here; the decoder says whether it does. */
	if (e->kind == ENC_LEGACY && rnd_pct(g, 3))
		f->pre[f->n_pre++] = (u8)("\x66\xf2\xf3"[rnd_below(g, 3)]);
}

void enc_draw(const struct enc *e, struct fields *f, struct rng *g, enum code_mode mode)
{
	unsigned regs = mode != CODE64 ? 8 : e->kind == ENC_EVEX && host_vector_regs() == 32 ? 32 : 16;
	memset(f, 0, sizeof(*f));
	for (unsigned k = 0; k < 16; k += 8)
		st64(f->tail + k, rnd(g));
	f->reg = (u8)(e->reg >= 0 ? (unsigned)e->reg : rnd_below(g, regs));
	f->rm = (u8)(e->rm >= 0 ? (unsigned)e->rm : rnd_below(g, e->mem ? MIN(regs, 16u) : regs));
	f->vvvv = (u8)(e->vvvv >= 0 ? (unsigned)e->vvvv : rnd_below(g, regs));
	/* A register number of 8 and up is EVEX's R' alone for what has no such registers. */
	if (e->kind == ENC_EVEX && rnd_pct(g, 50))
		f->reg &= 15;
	f->w = e->w ^ (rnd_pct(g, 12) && (e->kind != ENC_LEGACY || mode == CODE64));
	f->l = e->kind == ENC_EVEX && e->b && !e->mem ? (u8)rnd_below(g, 3) : e->l;
	if ((e->kind == ENC_VEX || e->kind == ENC_XOP) && rnd_pct(g, 10))
		f->l ^= 1;
	f->z = e->z;
	f->aaa = (u8)(e->mask ? 1 + rnd_below(g, 7) : 0);
	f->rex = rnd_pct(g, 25);
	f->short_vex = rnd(g) & 1;
	f->mod = e->mem ? (u8)rnd_below(g, 3) : 3;
	if (e->mem && rnd_pct(g, 10) && !(e->pfx & PFX_67))
		f->pre[f->n_pre++] = 0x67;
	draw_prefixes(e, f, g, mode);
	if (!e->mem)
		return;
	if (e->kind == ENC_3DNOW) { /* no displacement */
		f->mod = 0;
		f->rm = (f->rm & 9) | 2;
		return;
	}
	bool addr16 = mode == CODE32 && (f->n_pre && f->pre[0] == 0x67);
	f->sib = !addr16 && (e->vsib || (f->rm & 7) == 4 || rnd_pct(g, 35));
	if (f->sib) {
		f->index = (u8)rnd_below(g, e->vsib ? regs : MIN(regs, 16u));
		f->scale = (u8)rnd_below(g, 4);
	} else if (rnd_pct(g, 10) && !addr16) {
		f->mod = 0, f->rm = (f->rm & 8) | 5; /* RIP-relative, or an address alone */
	}
}

/* Half of the immediates are corner cases. */
static void patch_immediates(struct test *t, const struct decoded *d, struct rng *g)
{
	for (unsigned k = 0; k < 2; k++) {
		unsigned size = d->zi.raw.imm[k].size / 8u, at = d->zi.raw.imm[k].offset;
		if (!size || size > 8 || at + size > t->len || !rnd_pct(g, 50))
			continue;
		u64 v = value_int(g, size * 8);
		memcpy(t->bytes + at, &v, size);
	}
}

bool enc_random(const struct enc *e, const struct finder *find, struct rng *g, struct test *t, struct decoded *d)
{
	for (unsigned tries = 0; tries < 200; tries++) {
		struct fields f;
		enc_draw(e, &f, g, t->mode);
		enc_bytes(e, &f, t->mode, t->bytes);
		if (!finder_decode(find, t->mode, t->bytes, 15, d, NULL) || d->row != e->row || d->group != e->group)
			continue;
		t->len = d->zi.length;
		patch_immediates(t, d, g);
		if (finder_decode(find, t->mode, t->bytes, t->len, d, NULL) && d->row == e->row && d->group == e->group)
			return true;
	}
	return false;
}
