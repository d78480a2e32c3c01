/* Addresses: base, index and displacement such that memory operands land in the data window: a
 * third across a page boundary (of those, four in ten onto a page that is missing or read-only),
 * a third aligned, the others anywhere, a few in read-only, missing or non-canonical memory. */
#include <string.h>

#include "state.h"

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
		return (m->t->r.rip + m->d->zi.length) & width_mask(bits);
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

u64 address_linear(struct maker *m, const ZydisDecodedOperand *o)
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
		u64 at = base == RIP_REG ? m->t->r.rip + m->d->zi.length : 0;
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
unsigned address_below(const struct maker *m, const ZydisDecodedOperand *o, unsigned size)
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

void address_place(struct maker *m, unsigned k)
{
	const ZydisDecodedOperand *o = &m->d->zo[k];
	unsigned size = operand_bytes(o), bits = m->d->zi.address_width;
	u64 lin = pick_linear(m, size), *base = segment_base(m, o->mem.segment), off;
	bool seg = mode64(m) && (o->mem.segment == ZYDIS_REGISTER_FS || o->mem.segment == ZYDIS_REGISTER_GS);
	bool bare = address_reg(o->mem.base) >= NO_REG; /* at best a displacement of 32 bits */
	off = lin - *base + address_below(m, o, size);
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
		off = lin - *base + address_below(m, o, size);
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

int memory_operand_of(const struct maker *m, bool hidden)
{
	for (unsigned k = 0; k < m->d->zi.operand_count; k++)
		if (is_access(&m->d->zo[k]) && hidden == (m->d->zo[k].visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT))
			return (int)k;
	return -1;
}

u64 operand_effective(const struct test *t, const struct decoded *d, unsigned k)
{
	struct maker m = { .t = (struct test *)(uintptr_t)t, .d = (struct decoded *)(uintptr_t)d };
	return effective(&m, &d->zo[k]);
}
u64 operand_linear(const struct test *t, const struct decoded *d, unsigned k)
{
	struct maker m = { .t = (struct test *)(uintptr_t)t, .d = (struct decoded *)(uintptr_t)d };
	return address_linear(&m, &d->zo[k]);
}
