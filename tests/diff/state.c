/* A state in which an instruction has something to do: registers full of corner cases, address
 * registers such that memory operands land in the data window: a third across a page boundary
 * (of those, four in ten onto a page that is missing or read-only), a third aligned, the others
 * anywhere, a few in read-only, missing or non-canonical memory. */
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
	static const struct { u32 bit; u8 percent; } rare[] = { { FL_NT, 4 }, { FL_AC, 4 }, { FL_ID, 10 }, { FL_RF, 2 } };
	if (rnd_pct(g, string ? 35 : 8))
		f |= FL_DF;
	for (unsigned k = 0; k < ARRAY_LEN(rare); k++)
		if (rnd_pct(g, rare[k].percent))
			f |= rare[k].bit;
	m->t->r.rflags = f;
}

static bool is_vector(ZydisRegister r, unsigned *number)
{
	switch (ZydisRegisterGetClass(r)) {
	case ZYDIS_REGCLASS_XMM:
	case ZYDIS_REGCLASS_YMM:
	case ZYDIS_REGCLASS_ZMM: *number = (unsigned)ZydisRegisterGetId(r); return true;
	default: return false;
	}
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

/* ---- addresses ------------------------------------------------------------------------------------------- */

/* In the data window, for an access of size bytes. */
static u64 pick_linear(struct maker *m, unsigned size)
{
	struct rng *g = m->g;
	u64 base = mode64(m) && (rnd(g) & 1) ? DATA_HIGH : DATA_BASE;
	static const u8 writable[] = { 1, 2, 4, 6 };
	unsigned how = rnd_below(g, 100), span = MIN(size, 4096u);
	if (how < 34 && size > 1) {
		/* Page boundaries, by the pages on both sides. */
		static const u8 ww = 2, wr = 3, rw = 4, w_[] = { 5, 7 }, _w[] = { 6, 1 };
		unsigned b = rnd_below(g, 100);
		unsigned page = b < 60 ? ww : b < 70 ? wr : b < 78 ? rw : b < 90 ? w_[b & 1] : _w[b & 1];
		return base + page * 4096ull - 1 - rnd_below(g, span - 1);
	}
	u64 page = base + writable[rnd_below(g, 4)] * 4096ull;
	unsigned align = 1;
	while (align < size && align < 64)
		align *= 2;
	if (how < 68)
		return page + (rnd_below(g, 4096 - span + 1) & ~(align - 1));
	if (how < 91)
		return page + rnd_below(g, 4096 - span + 1);
	if (how < 94)
		return base + 3 * 4096 + rnd_below(g, 4096 - span + 1); /* read-only */
	if (how < 96)
		return base + (rnd(g) & 1 ? 5 : 0) * 4096ull + rnd_below(g, 4096);
	if (how < 97 || !mode64(m))
		return CODE_BASE + 0x3000 + rnd_below(g, 0x2000);
	if (how < 99)
		return (rnd(g) & 1 ? 0x0000800000000000ull + value_int(g, 46) : 0xffff7fffffffffffull - value_int(g, 46));
	return 0xffff900000000000ull + (rnd(g) & 0xfffffff);
}

enum { NO_REG = 16, RIP_REG = 17 };
static unsigned address_reg(ZydisRegister r)
{
	if (r == ZYDIS_REGISTER_NONE)
		return NO_REG;
	if (r == ZYDIS_REGISTER_RIP || r == ZYDIS_REGISTER_EIP)
		return RIP_REG;
	return (unsigned)ZydisRegisterGetId(r);
}

static u64 width_mask(unsigned bits) { return bits >= 64 ? ~0ull : (1ull << bits) - 1; }

static u64 *segment_base(struct maker *m, ZydisRegister s)
{
	static _Thread_local u64 value;
	struct regs *r = &m->t->r;
	value = 0;
	if (s != ZYDIS_REGISTER_FS && s != ZYDIS_REGISTER_GS)
		return &value;
	if (mode64(m))
		return s == ZYDIS_REGISTER_FS ? &r->fs_base : &r->gs_base;
	value = ldt_entries[(s == ZYDIS_REGISTER_FS ? r->fs : r->gs) / 8].base;
	return &value;
}

static u64 reg_part(const struct maker *m, ZydisRegister r, unsigned bits)
{
	unsigned n = address_reg(r);
	if (n == NO_REG)
		return 0;
	if (n == RIP_REG)
		return (m->t->r.rip + m->t->len) & width_mask(bits);
	if (ZydisRegisterGetClass(r) == ZYDIS_REGCLASS_GPR8) /* XLAT's AL */
		return m->t->r.gpr[n] & 0xff;
	return m->t->r.gpr[n] & width_mask(bits);
}

/* Offset in its segment, with the vector index as 0. */
static u64 effective(const struct maker *m, const ZydisDecodedOperand *o)
{
	unsigned bits = m->d->zi.address_width;
	u64 index = o->mem.type == ZYDIS_MEMOP_TYPE_VSIB ? 0 : reg_part(m, o->mem.index, bits);
	return (reg_part(m, o->mem.base, bits) + index * MAX(o->mem.scale, 1) + (u64)o->mem.disp.value) & width_mask(bits);
}

static u64 linear(struct maker *m, const ZydisDecodedOperand *o)
{
	u64 lin = effective(m, o) + *segment_base(m, o->mem.segment);
	return mode64(m) ? lin : (u32)lin;
}

static bool set_disp(struct maker *m, u64 disp)
{
	unsigned size = m->d->zi.raw.disp.size / 8u;
	if (!size || (size < 8 && (u64)((i64)(disp << (64 - 8 * size)) >> (64 - 8 * size)) != disp &&
		      disp != (disp & width_mask(8 * size))))
		return false;
	if (size == 4 && mode64(m) && m->d->zi.address_width == 64 && (u64)(i64)(i32)disp != disp)
		return false;
	memcpy(m->t->bytes + m->d->zi.raw.disp.offset, &disp, size);
	return maker_redecode(m);
}

/* Makes the operand's offset `off` by its base register, its index, or its displacement. */
static void aim(struct maker *m, const ZydisDecodedOperand *o, u64 off)
{
	unsigned bits = m->d->zi.address_width, base = address_reg(o->mem.base), index = address_reg(o->mem.index);
	u64 mask = width_mask(bits), scale = MAX(o->mem.scale, 1), v, n = 1;
	unsigned reg = base;
	off &= mask;
	if (o->mem.type == ZYDIS_MEMOP_TYPE_VSIB)
		index = NO_REG;
	if (base >= NO_REG && index == NO_REG) {
		u64 at = base == RIP_REG ? m->t->r.rip + m->t->len : 0;
		set_disp(m, bits == 64 ? off - at : (u64)(i64)(i32)(off - at));
		return;
	}
	u64 rest = (off - (u64)o->mem.disp.value) & mask;
	if (base >= NO_REG || (base < NO_REG && m->fixed >> base & 1 && index < NO_REG)) {
		reg = index;
		n = scale;
		rest = (rest - (base < NO_REG ? reg_part(m, o->mem.base, bits) : 0)) & mask;
	} else if (index < NO_REG && index == base) {
		n = 1 + scale;
		if (ZydisRegisterGetClass(o->mem.index) == ZYDIS_REGCLASS_GPR8)
			n = 1;
	} else if (index < NO_REG) {
		rest = (rest - reg_part(m, o->mem.index, bits) * scale) & mask;
	}
	if (reg >= NO_REG || m->fixed >> reg & 1)
		return;
	v = rest / n;
	m->t->r.gpr[reg] = (m->t->r.gpr[reg] & ~mask & (mode64(m) ? ~0ull : 0xffffffff)) | (v & mask);
	m->fixed |= 1u << reg;
	if (index < NO_REG)
		m->fixed |= 1u << index;
}

/* What is added to the address register before the access: pushes go below it. */
static unsigned below(const struct maker *m, const ZydisDecodedOperand *o, unsigned size)
{
	bool stack = address_reg(o->mem.base) == R_SP && o->visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT;
	(void)m;
	return stack && !(o->actions & ZYDIS_OPERAND_ACTION_MASK_READ) ? size : 0;
}

/* Lanes of a gather's or scatter's index register: near each other, a few far away. */
static void fill_index(struct maker *m, const ZydisDecodedOperand *o)
{
	struct rng *g = m->g;
	const char *name = ZydisMnemonicGetString(m->d->zi.mnemonic);
	const char *at = strstr(name, "gather");
	bool wide = (at ? at[6] : strstr(name, "scatter")[7]) == 'q';
	unsigned n;
	if (!is_vector(o->mem.index, &n))
		return;
	unsigned near = 128u << rnd_below(g, 6);
	for (unsigned k = 0; k < 64; k += wide ? 8 : 4) {
		i64 v = (i64)rnd_below(g, near) / (i64)MAX(o->mem.scale, 1) - (rnd_pct(g, 40) ? near / MAX(o->mem.scale, 1) / 2 : 0);
		if (rnd_pct(g, 2))
			v = (i64)value_int(g, wide ? 64 : 32);
		if (wide)
			st64(m->t->r.v.zmm[n] + k, (u64)v);
		else
			st32(m->t->r.v.zmm[n] + k, (u32)v);
	}
	if (host_vector_bytes() < 64)
		memset(m->t->r.v.zmm[n] + host_vector_bytes(), 0, 64 - host_vector_bytes());
}

static unsigned operand_bytes(const ZydisDecodedOperand *o)
{
	return o->size ? o->size / 8u : 1;
}

static void place_operand(struct maker *m, unsigned k)
{
	const ZydisDecodedOperand *o = &m->d->zo[k];
	unsigned size = operand_bytes(o), bits = m->d->zi.address_width;
	u64 lin = pick_linear(m, size), *base = segment_base(m, o->mem.segment), off;
	bool seg = mode64(m) && (o->mem.segment == ZYDIS_REGISTER_FS || o->mem.segment == ZYDIS_REGISTER_GS);
	bool bare = address_reg(o->mem.base) >= NO_REG; /* at best a displacement of 32 bits */
	off = lin - *base + below(m, o, size);
	if (bits < 64 || bare) {
		if (seg && rnd_pct(m->g, 80)) {
			/* The base is chosen to fit, canonical. */
			*base = lin - (bits < 64 ? (u32)rnd(m->g) : (u64)(i64)(i32)rnd(m->g));
			*base = (u64)((i64)(*base << 16) >> 16);
		} else if (mode64(m)) {
			if (seg)
				*base = 0;
			lin = DATA_BASE + (lin & (DATA_BYTES - 1));
		}
		off = lin - *base + below(m, o, size);
	}
	if (bits == 16 && data_offset(lin) >= 0 && (off & ~0xffffull) && *base != DATA_BASE &&
	    (o->mem.segment == ZYDIS_REGISTER_FS || o->mem.segment == ZYDIS_REGISTER_GS)) {
		*(o->mem.segment == ZYDIS_REGISTER_FS ? &m->t->r.fs : &m->t->r.gs) = SEL_LDT0 + 8;
		off = lin - DATA_BASE;
	}
	aim(m, o, off);
	if (o->mem.type == ZYDIS_MEMOP_TYPE_VSIB)
		fill_index(m, o);
}

static bool is_access(const ZydisDecodedOperand *o)
{
	return o->type == ZYDIS_OPERAND_TYPE_MEMORY && o->mem.type != ZYDIS_MEMOP_TYPE_AGEN;
}

int memory_operand_of(const struct maker *m, bool hidden)
{
	for (unsigned k = 0; k < m->d->zi.operand_count; k++)
		if (is_access(&m->d->zo[k]) && hidden == (m->d->zo[k].visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT))
			return (int)k;
	return -1;
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
		u64 at = m->ea[k] = linear(m, o) - below(m, o, operand_bytes(o));
		if (o->mem.type == ZYDIS_MEMOP_TYPE_VSIB)
			n = 256, at -= 64;
		enum value_kind own = value_kind_of(o);
		value_fill(m->g, rnd_pct(m->g, 80) ? (own == VAL_ANY ? here : own) : VAL_ANY, bytes, n);
		test_patch(m->t, at, bytes, n);
	}
}

u64 operand_effective(const struct test *t, const struct decoded *d, unsigned k)
{
	struct maker m = { .t = (struct test *)(uintptr_t)t, .d = (struct decoded *)(uintptr_t)d };
	return effective(&m, &d->zo[k]);
}
u64 operand_linear(const struct test *t, const struct decoded *d, unsigned k)
{
	struct maker m = { .t = (struct test *)(uintptr_t)t, .d = (struct decoded *)(uintptr_t)d };
	return linear(&m, &d->zo[k]);
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
			place_operand(&m, k);
	for (unsigned k = 0; k < d->zi.operand_count; k++)
		if (is_access(&d->zo[k]) && d->zo[k].visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
			place_operand(&m, k);
	fill_memory(&m);
	return special_memory(&m);
}
