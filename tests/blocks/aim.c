/* Where memory operands point: at plain pages, over page ends, at pages that are missing or forbidden, at
 * addresses that only look like others, at the program itself. A base or index whose value is not known
 * is loaded first; what a displacement can reach, it reaches. */
#include "gen.h"

static enum window pick_window(struct gen *e)
{
	unsigned how = below(e, 100);
	if (e->p->cpl)
		return how < 3 && e->risk ? WIN_KERN : how < 52 ? WIN_LOW : WIN_HIGH;
	if (e->p->options & OPT_SMAP)
		return how < 3 && e->risk ? WIN_LOW : WIN_KERN;
	return how < 50 ? WIN_KERN : how < 75 ? WIN_LOW : WIN_HIGH;
}

static const u8 writable[] = { 1, 2, 4, 6, 8, 10, 13 };

u64 good_target(struct gen *e, unsigned size)
{
	u64 base = data_base(e->p->mode, pick_window(e));
	unsigned span = MIN(MAX(size, 1u), 4096u), align = 1;
	if (pct(e, 25) && size > 1) /* pages 1 and 2 are side by side */
		return base + 2 * 4096 - 1 - below(e, span - 1);
	u64 page = base + writable[below(e, ARRAY_LEN(writable))] * 4096ull;
	while (align < size && align < 64)
		align *= 2;
	u64 off = below(e, 4096 - span + 1);
	return page + (pct(e, 60) ? off & ~(align - 1ull) : off);
}

/* Into the program's own code, through the window that it runs in or another. */
static u64 code_target(struct gen *e)
{
	return code_base(e->p->mode, pct(e, 70) ? e->p->run[0].window : pick_window(e)) + e->p->at + below(e, 200) - 20;
}

u64 pick_target(struct gen *e, unsigned size)
{
	enum window w = pick_window(e);
	u64 base = data_base(e->p->mode, w), good = good_target(e, size);
	unsigned span = MIN(MAX(size, 2u), 4096u);
	if (!pct(e, e->risk))
		return pct(e, 5) ? big_base(e->p->mode, w) + (good_target(e, size) & 0x1fffff) : good;
	switch (below(e, 14)) {
	case 0: return base + 3 * 4096 + below(e, 4096);                    /* read-only */
	case 1: case 2: return base + 5 * 4096 + below(e, 4096);            /* absent, can be had */
	case 3: return base + (pct(e, 50) ? 7 : 11) * 4096ull + below(e, 4096); /* supervisor */
	case 4: return base + 9 * 4096 + below(e, 4096);                    /* read-only, can be had */
	case 5: return base + (pct(e, 50) ? 14 : 15) * 4096ull + below(e, 4096); /* absent, reserved bit */
	case 6: case 7: return base + (1 + below(e, 15)) * 4096ull - 1 - below(e, span - 1); /* any two pages */
	case 8: return base + N_DATA_LETTERS * 4096 - below(e, 64);
	case 9: return e->p->mode != CODE64 ? base : pct(e, 50) ? 0x0000800000000000ull - below(e, 40) + below(e, 20) :
			(rnd(e->g) & 0xffffffffffffull) | 0x8000000000000000ull;
	case 10: return good + ((u64)(1 + below(e, 30)) << 41) * (pct(e, 70) ? 1 : -1ull);
	case 11: return good + ((u64)(1 + 2 * below(e, 30)) << 40) * (pct(e, 70) ? 1 : -1ull);
	default: return code_target(e);
	}
}

/* ---- operands ---------------------------------------------------------------------------------------------- */

enum { NO_REG = 16, RIP_REG = 17 };
static unsigned address_reg(ZydisRegister r)
{
	if (r == ZYDIS_REGISTER_NONE)
		return NO_REG;
	return r == ZYDIS_REGISTER_RIP || r == ZYDIS_REGISTER_EIP ? RIP_REG : (unsigned)ZydisRegisterGetId(r);
}

static u64 segment_base(const struct gen *e, ZydisRegister s)
{
	return s == ZYDIS_REGISTER_FS ? e->p->run[0].fs_base : s == ZYDIS_REGISTER_GS ? e->p->run[0].gs_base : 0;
}

static bool fits(u64 disp, unsigned bits) { return (u64)((i64)(disp << (64 - bits)) >> (64 - bits)) == disp; }

static bool lands(const struct gen *e, u64 lin)
{
	for (unsigned w = 0; w < N_WINDOWS; w++)
		if (lin - data_base(e->p->mode, w) - 4096 < N_DATA_PHYS * 4096)
			return (w == WIN_KERN) == (e->p->cpl == 0);
	return false;
}

/* RIP-relative: the bytes are filled in when the instruction has its place. */
static void aim_rip(struct gen *e, const struct decoded *d, struct slot *s, u64 target)
{
	s->fix = 'r';
	s->fix_at = d->zi.raw.disp.offset;
	s->fix_size = 4;
	s->label = -1;
	s->to = (i64)target;
	if (pct(e, 8)) { /* its own neighbours */
		s->label = (i16)(UNIT_LABEL + below(e, e->n_units + 3));
		s->to = (i64)below(e, 12);
	}
}

static void aim_explicit(struct gen *e, const struct decoded *d, const ZydisDecodedOperand *o, struct slot *s)
{
	unsigned base = address_reg(o->mem.base), index = address_reg(o->mem.index), disp_bits = d->zi.raw.disp.size;
	u64 target = pick_target(e, o->size / 8u) - segment_base(e, o->mem.segment), scale = MAX(o->mem.scale, 1);
	bool wide = d->zi.address_width == 64;
	if (o->mem.type == ZYDIS_MEMOP_TYPE_VSIB)
		index = NO_REG;
	if (!wide && !lands(e, (u32)target))
		target = data_base(e->p->mode, WIN_LOW) + (target & 0xffff);
	if (base == RIP_REG) {
		aim_rip(e, d, s, target);
		return;
	}
	if (index < NO_REG && !e->known[index] && !kept(e, index) && index != R_SP)
		load(e, index, pct(e, 50) ? below(e, 16) : pct(e, 50) ? (u64)-(i64)below(e, 16) : rnd(e->g) >> (2 + below(e, 60)));
	if (base < NO_REG && !e->known[base] && !kept(e, base))
		load(e, base, target - (disp_bits && pct(e, 50) ? rnd(e->g) >> (e->g->s & 1 ? 34 : 57) : 0));
	u64 sum = (base < NO_REG ? e->value[base] : 0) + (index < NO_REG ? e->value[index] * scale : 0);
	u64 disp = target - sum;
	if (disp_bits == 32 && (fits(disp, 32) || !wide)) {
		st32(s->bytes + d->zi.raw.disp.offset, (u32)disp);
		return;
	}
	if (disp_bits == 8 && fits(disp, 8) && (u64)o->mem.disp.value == (u64)(i64)(i8)s->bytes[d->zi.raw.disp.offset]) {
		s->bytes[d->zi.raw.disp.offset] = (u8)disp;
		return;
	}
	if (pct(e, 60) && lands(e, sum + (u64)o->mem.disp.value))
		return;
	u64 rest = target - (u64)o->mem.disp.value - (index < NO_REG ? e->value[index] * scale : 0);
	if (base >= NO_REG || kept(e, base) || base == R_SP)
		return;
	if (index == base)
		rest = (target - (u64)o->mem.disp.value) / (1 + scale);
	load(e, base, rest);
}

static void aim_hidden(struct gen *e, const ZydisDecodedOperand *o)
{
	unsigned base = address_reg(o->mem.base);
	if (base >= NO_REG || base == R_SP || kept(e, base) || (e->known[base] && pct(e, 60)))
		return;
	load(e, base, pick_target(e, MAX(o->size / 8u, 1u)));
}

/* Counts of REP: mostly few; some are of more than a page. */
static void count(struct gen *e)
{
	if (!kept(e, R_CX) && pct(e, 95))
		load(e, R_CX, pct(e, 85) ? below(e, 20) : below(e, pct(e, 70) ? 700 : 7000));
}

void aim(struct gen *e, struct decoded *d, struct slot *s)
{
	for (unsigned k = 0; k < d->zi.operand_count; k++) {
		const ZydisDecodedOperand *o = &d->zo[k];
		if (o->type != ZYDIS_OPERAND_TYPE_MEMORY || o->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
			continue;
		if (o->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
			aim_explicit(e, d, o, s);
		else
			aim_hidden(e, o);
	}
	if (d->zi.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE))
		count(e);
}
