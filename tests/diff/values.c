/* Random numbers, and values worth trying: at the edges of their type, near each other, of
 * every floating-point class. Stateless but for the stream. */
#include <string.h>

#include "diff.h"

u64 rnd(struct rng *g) /* splitmix64 */
{
	u64 z = g->s += 0x9e3779b97f4a7c15ull;
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

static u64 ones(unsigned bits) { return bits >= 64 ? ~0ull : (1ull << bits) - 1; }

u64 value_int(struct rng *g, unsigned bits)
{
	u64 m = ones(bits), v;
	switch (rnd_below(g, 10)) {
	case 0: v = 0; break;
	case 1: v = 1 + rnd_below(g, 3); break;
	case 2: v = ~0ull - rnd_below(g, 3); break;
	case 3: v = (1ull << (bits - 1)) - 1 + rnd_below(g, 3); break; /* around the most negative */
	case 4: v = 1ull << rnd_below(g, bits); break;
	case 5: v = rnd_below(g, 256); break;
	case 6: v = ones(8u << rnd_below(g, 4)) - 1 + rnd_below(g, 3); break;
	case 7: v = rnd(g) & ones(1 + rnd_below(g, bits)); break;
	default: v = rnd(g); break;
	}
	return v & m;
}

/* A binary floating-point number of `exp` exponent and `frac` fraction bits, by class. */
static u64 value_float(struct rng *g, unsigned exp, unsigned frac)
{
	u64 sign = (rnd(g) & 1) << (exp + frac), f = rnd(g) & ones(frac), e_max = ones(exp), bias = e_max >> 1, e;
	switch (rnd_below(g, 16)) {
	case 0: return sign;
	case 1: return sign | (f >> rnd_below(g, frac) ? f >> rnd_below(g, frac) : 1); /* denormal */
	case 2: return sign | 1;
	case 3: return sign | ones(frac);                         /* largest denormal */
	case 4: return sign | 1ull << frac;                       /* least normal */
	case 5: return sign | ((e_max << frac) - 1);                /* largest */
	case 6: return sign | e_max << frac;                      /* infinity */
	case 7: return sign | e_max << frac | 1ull << (frac - 1) | f; /* quiet */
	case 8: return sign | e_max << frac | (f & ones(frac - 1)) | 1; /* signalling */
	case 9: return sign | bias << frac;                       /* 1.0 */
	case 10: e = bias + (rnd(g) & 1 ? 30 : 62) + rnd_below(g, 3); break; /* where integers end */
	case 11: e = rnd_below(g, (u32)MIN(frac + 3, e_max)); break;         /* products underflow */
	case 12: e = e_max - 1 - rnd_below(g, 3); break;
	case 13: f &= ~ones(frac > 8 ? frac - 6 : 2); e = bias + rnd_below(g, 6); break; /* few bits: ties */
	default: e = bias - 8 + rnd_below(g, 17); break;
	}
	return sign | (e & e_max) << frac | f;
}

static void value_f80(struct rng *g, u8 p[10])
{
	u64 f = rnd(g), top = 1ull << 63;
	u32 e = 0x3fff - 16 + rnd_below(g, 33);
	switch (rnd_below(g, 20)) {
	case 0: f = 0; e = 0; break;
	case 1: f &= ~top; e = 0; break;             /* denormal */
	case 2: f |= top; e = 0; break;              /* pseudo-denormal */
	case 3: f = top; e = 0x7fff; break;          /* infinity */
	case 4: f |= 3ull << 62; e = 0x7fff; break;  /* quiet */
	case 5: f = (f & ~(3ull << 62)) | top | 1; e = 0x7fff; break; /* signalling */
	case 6: f &= ~top; e = 0x7fff; break;        /* pseudo-NaN, pseudo-infinity */
	case 7: f &= ~top; break;                    /* unnormal */
	case 8: f = top; e = 0x3fff; break;          /* 1.0 */
	case 9: f |= top; e = 0x7ffe; break;
	case 10: f |= top; e = 1 + rnd_below(g, 70); break;
	case 11: f |= top; e = 0x3fff + (rnd(g) & 1 ? 14 : 30) + rnd_below(g, 34); break;
	case 12: f = top | f << 52; break;           /* few bits */
	case 13: f = 0xc90fdaa22168c235ull; e = 0x4000; break; /* pi */
	case 14: f |= top; e = rnd_below(g, 0x7fff); break;
	default: f |= top; break;
	}
	st64(p, f);
	st16(p + 8, (u16)(e | (rnd(g) & 1) << 15));
}

static void value_bcd(struct rng *g, u8 p[10])
{
	for (unsigned k = 0; k < 9; k++)
		p[k] = (u8)(rnd_below(g, 10) | rnd_below(g, 10) << 4);
	p[9] = (u8)((rnd(g) & 1) << 7);
	if (rnd_pct(g, 10)) /* not decimal: the result is the processor's own */
		p[rnd_below(g, 10)] = (u8)rnd(g);
}

static void element(struct rng *g, enum value_kind kind, u8 *p)
{
	switch (kind) {
	case VAL_I8: *p = (u8)value_int(g, 8); break;
	case VAL_I16: st16(p, (u16)value_int(g, 16)); break;
	case VAL_I32: st32(p, (u32)value_int(g, 32)); break;
	case VAL_F16: st16(p, (u16)value_float(g, 5, 10)); break;
	case VAL_F32: st32(p, (u32)value_float(g, 8, 23)); break;
	case VAL_F64: st64(p, value_float(g, 11, 52)); break;
	case VAL_F80: value_f80(g, p); break;
	case VAL_BCD: value_bcd(g, p); break;
	default: st64(p, value_int(g, 64)); break;
	}
}

static const u8 element_bytes[N_VALS] = {
	[VAL_I8] = 1, [VAL_I16] = 2, [VAL_I32] = 4, [VAL_I64] = 8, [VAL_F16] = 2, [VAL_F32] = 4, [VAL_F64] = 8,
	[VAL_F80] = 10, [VAL_BCD] = 10,
};

void value_fill(struct rng *g, enum value_kind kind, u8 *p, unsigned n)
{
	if (kind == VAL_ANY) {
		static const u8 any[] = { VAL_I8, VAL_I16, VAL_I32, VAL_I64, VAL_F32, VAL_F64, VAL_I64 };
		kind = any[rnd_below(g, ARRAY_LEN(any))];
	}
	unsigned size = element_bytes[kind], style = rnd_below(g, 8);
	u8 e[16];
	for (unsigned at = 0; at < n; at += size) {
		/* Of style 0 all elements are one; of style 1 (bytes) they come from a small alphabet. */
		if (style || !at)
			element(g, kind, e);
		if (style == 1 && size == 1)
			e[0] = (u8)("\0abcA"[rnd_below(g, 5)]);
		memcpy(p + at, e, MIN(size, n - at));
	}
}

enum value_kind value_kind_of(const ZydisDecodedOperand *o)
{
	switch (o->element_type) {
	case ZYDIS_ELEMENT_TYPE_FLOAT16: return VAL_F16;
	case ZYDIS_ELEMENT_TYPE_FLOAT32: return VAL_F32;
	case ZYDIS_ELEMENT_TYPE_FLOAT64: return VAL_F64;
	case ZYDIS_ELEMENT_TYPE_FLOAT80: return VAL_F80;
	case ZYDIS_ELEMENT_TYPE_LONGBCD: return VAL_BCD;
	case ZYDIS_ELEMENT_TYPE_INT:
	case ZYDIS_ELEMENT_TYPE_UINT:
		return o->element_size == 8 ? VAL_I8 : o->element_size == 16 ? VAL_I16 :
		       o->element_size == 32 ? VAL_I32 : VAL_I64;
	default: return VAL_ANY;
	}
}
