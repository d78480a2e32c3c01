/* A state in which an instruction has something to do: registers, flags and memory full of corner
 * cases of the type that it works on. */
#include <string.h>

#include "state.h"

bool maker_redecode(struct maker *m)
{
	int row = m->d->row;
	return finder_decode(m->find, m->t->mode, m->t->bytes, m->t->len, m->d, NULL) && m->d->row == row &&
	       m->d->zi.length == m->t->len;
}

/* ---- where the code is ------------------------------------------------------------------------------ */

static u64 pick_rip(struct rng *g, unsigned len)
{
	unsigned k = len > 1 ? 1 + rnd_below(g, len - 1) : 1; /* bytes before the boundary */
	switch (rnd_below(g, 40)) {
	case 0: case 1: case 2: return CODE_BASE + 0x1000 - k;
	case 3: return CODE_BASE + 0x2000 - len;  /* what follows is not there */
	case 4: return CODE_BASE + 0x2000 - k;    /* part of it is not there */
	case 5: return CODE_BASE + 0x4000 - k;    /* part of it cannot be executed */
	default: return CODE_BASE + 0x100 + rnd_below(g, 0xd00);
	}
}

u64 pick_target(struct maker *m)
{
	struct rng *g = m->g;
	u64 rip = m->t->r.rip;
	switch (rnd_below(g, 40)) {
	case 0: return CODE_BASE + 0x4000 + rnd_below(g, 0x1000);
	case 1: return DATA_BASE + 0x1000 + rnd_below(g, 0x1000);
	case 2: return DATA_BASE + rnd_below(g, 0x1000);
	case 3: return mode64(m) ? 0x0000800000000000ull + value_int(g, 46) : CODE_BASE;
	case 4: return mode64(m) ? 0xffff900000000000ull + rnd_below(g, 1u << 30) : CODE_BASE + 0x1fff;
	default: break;
	}
	for (;;) {
		u64 to = CODE_BASE + rnd_below(g, 0x2000);
		if (to - rip >= m->t->len)
			return to;
	}
}

/* ---- registers ------------------------------------------------------------------------------------------ */

static void fill_gprs(struct maker *m)
{
	struct rng *g = m->g;
	for (unsigned k = 0; k < (mode64(m) ? 16 : 8); k++) {
		u64 v = value_int(g, rnd_pct(g, 70) ? 64 : 8u << rnd_below(g, 4));
		if (k && rnd_pct(g, 12))
			v = m->t->r.gpr[rnd_below(g, k)] + rnd_below(g, 3) - 1;
		m->t->r.gpr[k] = mode64(m) ? v : (u32)v;
	}
}

static void fill_flags(struct maker *m)
{
	struct rng *g = m->g;
	bool string = m->d->zi.meta.category == ZYDIS_CATEGORY_STRINGOP;
	u64 f = FL_1 | FL_IF | (rnd(g) & FL_STATUS);
	static const struct { u32 bit; u8 percent; } rare[] = { { FL_NT, 4 }, { FL_AC, 4 }, { FL_ID, 10 }, { FL_RF, 2 },
		{ FL_TF, 3 } };
	if (rnd_pct(g, string ? 35 : 8))
		f |= FL_DF;
	for (unsigned k = 0; k < ARRAY_LEN(rare); k++)
		if (rnd_pct(g, rare[k].percent))
			f |= rare[k].bit;
	m->t->r.rflags = f;
}

/* What the instruction works on, if its operands say. */
static enum value_kind kind_here(const struct maker *m)
{
	for (unsigned k = 0; k < m->d->zi.operand_count; k++) {
		enum value_kind v = value_kind_of(&m->d->zo[k]);
		unsigned n;
		if (v != VAL_ANY && (m->d->zo[k].type == ZYDIS_OPERAND_TYPE_MEMORY ||
				     (m->d->zo[k].type == ZYDIS_OPERAND_TYPE_REGISTER && is_vector(m->d->zo[k].reg.value, &n))))
			return v;
	}
	return VAL_ANY;
}

static void fill_vectors(struct maker *m)
{
	struct rng *g = m->g;
	struct vec_state *v = &m->t->r.v;
	unsigned bytes = host_vector_bytes(), regs = host_vector_regs(), last = 0, n;
	for (unsigned k = 0; k < regs; k++)
		for (unsigned at = 0; at < bytes; at += 8)
			st64(v->zmm[k] + at, rnd(g));
	enum value_kind here = kind_here(m);
	for (unsigned k = 0, used = 0; k < m->d->zi.operand_count; k++) {
		const ZydisDecodedOperand *o = &m->d->zo[k];
		if (o->type != ZYDIS_OPERAND_TYPE_REGISTER || !is_vector(o->reg.value, &n))
			continue;
		enum value_kind own = value_kind_of(o);
		value_fill(g, rnd_pct(g, 75) ? (own == VAL_ANY ? here : own) : VAL_ANY, v->zmm[n], bytes);
		if (used++ && rnd_pct(g, 12))
			memcpy(v->zmm[n], v->zmm[last], bytes);
		last = n;
	}
	for (unsigned k = 0; k < 8 && bytes == 64; k++)
		v->k[k] = rnd_pct(g, 25) ? ~0ull : rnd_pct(g, 10) ? 0 : rnd(g) & rnd(g);
	if (bytes == 64 && rnd_pct(g, 50))
		v->k[rnd_below(g, 8)] = rnd(g);
	u32 x = 0x1f80;
	if (rnd_pct(g, 25))
		x = rnd(g) & 0x1f80;
	x |= (rnd(g) & 0x6000) | (rnd_pct(g, 20) ? 0x8000 : 0) | (rnd_pct(g, 20) ? 0x40 : 0) | (rnd_pct(g, 50) ? rnd(g) & 0x3f : 0);
	if (cpu_has(m->find->cpu, FEAT_MISALIGNSSE) && rnd_pct(g, 6))
		x |= 0x20000;
	v->mxcsr = x;
}

static bool is_x87(const struct maker *m) { return m->d->zi.meta.category == ZYDIS_CATEGORY_X87_ALU || m->d->zi.meta.isa_ext == ZYDIS_ISA_EXT_X87; }
static bool is_mmx(const struct maker *m)
{
	for (unsigned k = 0; k < m->d->zi.operand_count; k++)
		if (m->d->zo[k].type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    ZydisRegisterGetClass(m->d->zo[k].reg.value) == ZYDIS_REGCLASS_MMX)
			return true;
	return false;
}

static void fill_x87(struct maker *m)
{
	struct rng *g = m->g;
	struct vec_state *v = &m->t->r.v;
	bool x87 = is_x87(m), mmx = is_mmx(m);
	for (unsigned k = 0; k < 8; k++) {
		if (mmx) {
			value_fill(g, VAL_ANY, v->st[k], 8);
			st16(v->st[k] + 8, rnd_pct(g, 80) ? 0xffff : (u16)rnd(g));
		} else if (x87) {
			value_fill(g, VAL_F80, v->st[k], 10);
		} else {
			st64(v->st[k], rnd(g) | 1ull << 63);
			st16(v->st[k] + 8, (u16)rnd(g));
		}
	}
	if (x87 && rnd_pct(g, 15))
		memcpy(v->st[rnd_below(g, 8)], v->st[0], 10);
	v->fcw = (u16)(0x40 | (rnd(g) & 0xc00) | (rnd_pct(g, 60) ? 0x300 : rnd(g) & 0x300) | (rnd_pct(g, 75) ? 0x3f : rnd(g) & 0x3f) |
		       (rnd_pct(g, 5) ? 0x1000 : 0));
	u16 flags = rnd_pct(g, 30) ? (u16)(rnd(g) & 0x7f) : 0;
	if (rnd_pct(g, 80))
		flags &= (u16)(v->fcw | 0x40); /* nothing pending */
	v->fsw = (u16)(flags | (rnd(g) & 0x4700) | (rnd_pct(g, x87 ? 70 : 50) ? 0 : rnd(g) & 0x3800));
	if (flags & ~v->fcw & 0x3f)
		v->fsw |= 0x8080;
	v->ftw = (u8)(rnd_pct(g, 50) ? 0xff : rnd_pct(g, 20) ? 0 : rnd(g));
	if (x87 && rnd_pct(g, 60)) /* room for a load, operands for the rest */
		v->ftw = (u8)~(1u << (((v->fsw >> 11) - 1) & 7));
	v->fop = (u16)(rnd(g) & 0x7ff);
	v->fip = rnd(g) & 0x7fffffffffff;
	v->fdp = rnd(g) & 0x7fffffffffff;
	if (!mode64(m)) {
		v->fip = (u32)v->fip;
		v->fdp = (u32)v->fdp;
	}
	if (!host_keeps_fpu_pointers() && !(v->fsw & 0x80))
		v->fop = 0, v->fip = v->fdp = 0;
}

static void fill_segments(struct maker *m)
{
	struct rng *g = m->g;
	struct regs *r = &m->t->r;
	if (mode64(m)) {
		u64 *base[2] = { &r->fs_base, &r->gs_base };
		for (unsigned k = 0; k < 2; k++) {
			switch (rnd_below(g, 4)) {
			case 0: *base[k] = 0; break;
			case 1: *base[k] = rnd_below(g, 1u << 24); break;
			case 2: *base[k] = rnd(g) & 0x7fffffffffff; break;
			default: *base[k] = ~(rnd(g) & 0x7fffffffffff);
			}
		}
		return;
	}
	r->fs = (u16)(SEL_LDT0 + 8 * rnd_below(g, N_LDT));
	r->gs = (u16)(SEL_LDT0 + 8 * rnd_below(g, N_LDT));
}

static void fill_memory(struct maker *m)
{
	enum value_kind here = kind_here(m);
	for (unsigned k = 0; k < m->d->zi.operand_count; k++) {
		const ZydisDecodedOperand *o = &m->d->zo[k];
		if (!is_access(o))
			continue;
		u8 bytes[512];
		unsigned n = MIN(operand_bytes(o), sizeof(bytes));
		u64 at = m->ea[k] = address_linear(m, o) - address_below(m, o, operand_bytes(o));
		if (o->mem.type == ZYDIS_MEMOP_TYPE_VSIB)
			n = 256, at -= 64;
		enum value_kind own = value_kind_of(o);
		value_fill(m->g, rnd_pct(m->g, 80) ? (own == VAL_ANY ? here : own) : VAL_ANY, bytes, n);
		test_patch(m->t, at, bytes, n);
	}
}

/* FNSTENV behind an x87 instruction shows its FOP, FIP and FDP, which XSAVE of AMD's processors
 * shows only while an exception is pending. To a page that can be written. */
static void append_fnstenv(struct maker *m)
{
	u32 at = DATA_BASE + 0x6000 + rnd_below(m->g, 0x3f0) * 4;
	u8 *p = m->t->bytes + m->t->len;
	unsigned n = mode64(m) ? 3 : 2;
	if (m->t->len + n + 4 > sizeof(m->t->bytes))
		return;
	memcpy(p, mode64(m) ? "\xd9\x34\x25" : "\xd9\x35", n);
	st32(p + n, at);
	m->t->len = (u8)(m->t->len + n + 4);
}

bool state_make(struct test *t, struct decoded *d, struct rng *g, const struct finder *find)
{
	struct maker m = { .t = t, .d = d, .g = g, .find = find };
	t->r.rip = pick_rip(g, t->len);
	t->by_run = rnd(g) & 1;
	fill_gprs(&m);
	fill_flags(&m);
	fill_segments(&m);
	fill_vectors(&m);
	fill_x87(&m);
	special_registers(&m);
	for (unsigned k = 0; k < d->zi.operand_count; k++)
		if (is_access(&d->zo[k]) && d->zo[k].visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
			address_place(&m, k);
	for (unsigned k = 0; k < d->zi.operand_count; k++)
		if (is_access(&d->zo[k]) && d->zo[k].visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
			address_place(&m, k);
	fill_memory(&m);
	if (!special_memory(&m))
		return false;
	if (is_x87(&m) && rnd_pct(g, 40))
		append_fnstenv(&m);
	return true;
}
