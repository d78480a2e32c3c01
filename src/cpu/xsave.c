/* XSAVE, XSAVEOPT, XSAVEC, XSAVES, XRSTOR, XRSTORS. SDM vol. 1 chapter 13.
 *
 * Invariants
 *  1. Guest vectors are in zmm[] and k[], x87 and MXCSR behind fpu_image_get/put, PKRU in pkru.
 *  2. A save translates every byte that it will write before it writes one; a restore reads and
 *     checks all that it needs before it changes anything.
 *  3. A component is in use exactly when it differs from its initial configuration (13.6).
 *     Outside 64-bit mode registers 8 and up count for that, but do not move.
 *  4. Sizes and standard offsets are the model's; the compacted layout has no aligned components.
 * The modified optimization of XSAVEOPT and XSAVES is not taken, as the manual allows. */
#include <string.h>

#include "cpu/features.h"
#include "cpu/fpu.h"

enum { XC_MAX = 16, XS_LEGACY = 512, XS_HEADER = 64, XS_IMAGE_MAX = 4096 };
#define XCOMP_COMPACT XC_BIT(63)

struct xs_image { _Alignas(64) u8 b[XS_IMAGE_MAX]; };

static unsigned reg_count(const struct cpu *c) { return cpu_code64(c) ? 16 : 8; }

/* ---- one component ------------------------------------------------------------------------------- */

/* Which bytes of struct cpu a register of a component is, and how many registers there are. */
struct comp_shape { u8 *first; unsigned stride, bytes, count; };

/* n: how many of 16 vector registers count. */
static struct comp_shape comp_shape(struct cpu *c, unsigned comp, unsigned n)
{
	switch (comp) {
	case XC_SSE:       return (struct comp_shape){c->zmm[0], 64, 16, n};
	case XC_AVX:       return (struct comp_shape){c->zmm[0] + 16, 64, 16, n};
	case XC_OPMASK:    return (struct comp_shape){(u8 *)c->k, 8, 8, 8};
	case XC_ZMM_HI256: return (struct comp_shape){c->zmm[0] + 32, 64, 32, n};
	case XC_HI16_ZMM:  return (struct comp_shape){c->zmm[16], 64, 64, n == 16 ? 16 : 0};
	case XC_PKRU:      return (struct comp_shape){(u8 *)&c->pkru, 4, 4, 1};
	default:           return (struct comp_shape){0};
	}
}

/* Between registers and an image: count pieces of so many bytes, each so far from the one before. */
static void pieces_move(u8 *to, unsigned to_step, const u8 *from, unsigned from_step, unsigned bytes, unsigned count)
{
#define EACH(n) case n: for (unsigned k = 0; k < count; k++, to += to_step, from += from_step) memcpy(to, from, n); break
	switch (bytes) {
	EACH(4); EACH(8); EACH(16); EACH(32); EACH(64);
	}
#undef EACH
}

static bool bytes_zero(const u8 *p, unsigned n)
{
	for (; n >= 8; n -= 8, p += 8) {
		if (ld64(p))
			return false;
	}
	while (n--) {
		if (*p++)
			return false;
	}
	return true;
}

/* x: fpu_image_get's, wide. */
static bool x87_in_use(const struct cpu *c, const struct fx_image *x)
{
	static const u8 clear[FX_FTW + 1] = { 0x7f, 3 }; /* FCW, FSW, abridged FTW */
	if (c->fcs || c->fds || memcmp(x->b, clear, sizeof(clear)) || !bytes_zero(x->b + FX_FOP, FX_MXCSR - FX_FOP))
		return true;
	for (unsigned r = 0; r < 8; r++) {
		if (!bytes_zero(x->b + FX_ST + 16 * r, 10))
			return true;
	}
	return false;
}

/* What is set in registers first to first + 15: of their quarters of 128 bits. */
struct quarters { u64 q[4]; };
static struct quarters quarters_of(const struct cpu *c, unsigned first)
{
	u64 x[8] = { 0 };
	for (unsigned r = first; r < first + 16; r++)
		for (unsigned n = 0; n < 8; n++)
			x[n] |= ld64(c->zmm[r] + 8 * n);
	return (struct quarters){ { x[0] | x[1], x[2] | x[3], x[4] | x[5], x[6] | x[7] } };
}

static u64 in_use(struct cpu *c, const struct fx_image *x)
{
	struct quarters lo = quarters_of(c, 0), hi = quarters_of(c, 16);
	u64 used = x87_in_use(c, x) ? XC_BIT(XC_X87) : 0;
	used |= lo.q[0] ? XC_BIT(XC_SSE) : 0;
	used |= lo.q[1] ? XC_BIT(XC_AVX) : 0;
	used |= lo.q[2] | lo.q[3] ? XC_BIT(XC_ZMM_HI256) : 0;
	used |= hi.q[0] | hi.q[1] | hi.q[2] | hi.q[3] ? XC_BIT(XC_HI16_ZMM) : 0;
	used |= bytes_zero((const u8 *)c->k, sizeof(c->k)) ? 0 : XC_BIT(XC_OPMASK);
	return used | (c->pkru ? XC_BIT(XC_PKRU) : 0);
}

u64 fpu_xinuse(struct cpu *c)
{
	struct fx_image x;
	fpu_image_get(c, &x, true);
	return in_use(c, &x);
}

/* comp >= XC_SSE, but PKRU is written through comp_init/comp_load. p: where it lies in an image. */
static unsigned comp_store(struct cpu *c, unsigned comp, u8 *p)
{
	struct comp_shape s = comp_shape(c, comp, reg_count(c));
	pieces_move(p, s.bytes, s.first, s.stride, s.bytes, s.count);
	if (comp != XC_PKRU)
		return s.count * s.bytes;
	st32(p + 4, 0);
	return 8;
}

/* p NULL: the initial configuration. */
static void comp_load(struct cpu *c, unsigned comp, const u8 *p)
{
	static const u8 zeros[64];
	struct comp_shape s = comp_shape(c, comp, reg_count(c));
	if (comp == XC_PKRU) {
		mmu_set_pkru(c, p ? ld32(p) : 0);
		return;
	}
	pieces_move(s.first, s.stride, p ? p : zeros, p ? s.bytes : 0, s.bytes, s.count);
}

/* Offset of a component >= 2; xcomp: XCOMP_BV, or 0 for the standard layout. */
static unsigned comp_offset(const struct cpu *c, unsigned comp, u64 xcomp)
{
	if (!(xcomp & XCOMP_COMPACT))
		return c->model->xsave_offset[comp];
	unsigned off = XSAVE_LEGACY_SIZE;
	for (unsigned k = 2; k < comp; k++) {
		if (xcomp & XC_BIT(k))
			off += c->model->xsave_size[k];
	}
	return off;
}

static void common_checks(struct cpu *c, u64 lin)
{
	if (!(c->cr4 & CR4_OSXSAVE))
		cpu_ud(c);
	if (c->cr0 & CR0_TS)
		cpu_raise(c, V_NM);
	if (lin & 63)
		cpu_gp0(c);
}

static u64 requested(const struct cpu *c, bool supervisor)
{
	u64 mask = (u64)(u32)c->regs[R_DX] << 32 | (u32)c->regs[R_AX];
	return mask & (c->xcr0 | (supervisor ? c->xss : 0));
}

/* ---- saving ------------------------------------------------------------------------------------------ */

/* The byte ranges of an image that a save writes. */
struct ranges { struct { unsigned off, n; } r[XC_MAX + 4]; unsigned n; };

static void range_add(struct ranges *g, unsigned off, unsigned n)
{
	if (!n)
		return;
	g->r[g->n].off = off;
	g->r[g->n++].n = n;
}

/* Fills img with the components of `store` and notes where they are: nothing else in it is set. */
static void image_build(struct cpu *c, const struct fx_image *x, u64 store, u64 xcomp, bool with_mxcsr, struct xs_image *img, struct ranges *g)
{
	memcpy(img->b, x->b, FX_XMM);
	img->b[5] = 0;
	for (unsigned r = 0; r < 8; r++)
		memset(img->b + FX_ST + 16 * r + 10, 0, 6);
	st32(img->b + FX_MXCSR_MASK, fpu_mxcsr_mask(c));
	if (store & XC_BIT(XC_X87)) {
		range_add(g, 0, FX_MXCSR);
		range_add(g, FX_ST, 8 * 16);
	}
	if (with_mxcsr)
		range_add(g, FX_MXCSR, 8);
	if (store & XC_BIT(XC_SSE))
		range_add(g, FX_XMM, comp_store(c, XC_SSE, img->b + FX_XMM));
	for (unsigned k = XC_AVX; k < XC_MAX; k++) {
		unsigned off = comp_offset(c, k, xcomp);
		if (!(store & XC_BIT(k)) || off + c->model->xsave_size[k] > XS_IMAGE_MAX)
			continue;
		range_add(g, off, comp_store(c, k, img->b + off));
	}
}

/* All of what the components may take must be there, whatever of it is written or read; so AMD's
 * processors, which look at the first byte and the last. */
static unsigned area_size(const struct cpu *c, u64 comps, u64 xcomp)
{
	unsigned end = XSAVE_LEGACY_SIZE;
	for (unsigned k = XC_AVX; k < XC_MAX; k++) {
		if (comps & XC_BIT(k))
			end = MAX(end, comp_offset(c, k, xcomp) + c->model->xsave_size[k]);
	}
	return end;
}
static void area_probe(struct cpu *c, u64 lin, u64 comps, u64 xcomp, enum access acc)
{
	unsigned end = area_size(c, comps, xcomp);
	mem_probe(c, lin, 1, acc);
	mem_probe(c, lin + end - 1, 1, acc);
}

unsigned fpu_xsave_size(const struct cpu *c, enum xsave_kind kind)
{
	bool compact = kind == XS_C || kind == XS_S;
	u64 rfbm = requested(c, kind == XS_S);
	return area_size(c, rfbm, compact ? rfbm | XCOMP_COMPACT : 0);
}

void fpu_xsave(struct cpu *c, u64 lin, unsigned opsz, enum xsave_kind kind)
{
	struct xs_image img;
	struct fx_image x;
	struct ranges g = {.n = 0};
	bool compact = kind == XS_C || kind == XS_S;
	common_checks(c, lin);
	if (kind == XS_S && c->cpl != 0)
		cpu_gp0(c);

	u64 rfbm = requested(c, kind == XS_S);
	fpu_image_get(c, &x, true);
	u64 bv = rfbm & in_use(c, &x);
	if (opsz != 8)
		fpu_image_narrow(c, &x);
	u64 xcomp = compact ? rfbm | XCOMP_COMPACT : 0;
	bool with_mxcsr = rfbm & (XC_BIT(XC_SSE) | XC_BIT(XC_AVX));
	if (compact) {
		if ((rfbm & XC_BIT(XC_SSE)) && fpu_mxcsr_get(c) != MXCSR_DEFAULT)
			bv |= XC_BIT(XC_SSE);
		with_mxcsr = bv & XC_BIT(XC_SSE);
	}
	area_probe(c, lin, rfbm, xcomp, ACC_WRITE);
	image_build(c, &x, kind == XS_SAVE ? rfbm : bv, xcomp, with_mxcsr, &img, &g);
	/* Of the header, only these fields are written. */
	if (compact) {
		st64(img.b + XS_LEGACY, bv);
		st64(img.b + XS_LEGACY + 8, xcomp);
	} else {
		st64(img.b + XS_LEGACY, (mem_ld64(c, lin + XS_LEGACY) & ~rfbm) | bv);
	}
	range_add(&g, XS_LEGACY, compact ? 16 : 8);

	for (unsigned k = 0; k < g.n; k++)
		mem_probe(c, lin + g.r[k].off, g.r[k].n, ACC_WRITE);
	for (unsigned k = 0; k < g.n; k++)
		mem_st_bytes(c, lin + g.r[k].off, img.b + g.r[k].off, g.r[k].n);
}

/* ---- restoring ---------------------------------------------------------------------------------------- */

unsigned fpu_xrstor_size(const struct cpu *c, u64 bv, u64 xcomp, bool supervisor)
{
	u64 rfbm = requested(c, supervisor);
	return area_size(c, xcomp & XCOMP_COMPACT ? rfbm & bv : rfbm, xcomp);
}

/* Raises #GP for a header that is not allowed. */
static void header_check(struct cpu *c, const u8 *h, bool supervisor)
{
	u64 bv = ld64(h), xcomp = ld64(h + 8);
	u64 allowed = c->xcr0 | (supervisor ? c->xss : 0);
	bool ok;
	if (xcomp & XCOMP_COMPACT) {
		ok = !(xcomp & ~XCOMP_COMPACT & ~allowed) && !(bv & ~xcomp) && !(bv & XCOMP_COMPACT) &&
		     bytes_zero(h + 16, XS_HEADER - 16) && cpu_has(c, FEAT_XSAVEC);
	} else {
		ok = !supervisor && !(bv & ~allowed) && bytes_zero(h + 8, 16);
	}
	if (!ok)
		cpu_gp0(c);
}

/* The x87 component from an image; img NULL: its initial configuration. */
static void x87_load(struct cpu *c, const struct xs_image *img, bool wide)
{
	struct fx_image x = { .b = { 0 } };
	if (img) {
		memcpy(x.b, img->b, FX_MXCSR);
		memcpy(x.b + FX_ST, img->b + FX_ST, 8 * 16);
	} else {
		fpu_image_init_x87(&x);
	}
	st32(x.b + FX_MXCSR, fpu_mxcsr_get(c)); /* stays */
	fpu_image_put(c, &x, wide);
}

void fpu_xrstor(struct cpu *c, u64 lin, unsigned opsz, bool supervisor)
{
	struct xs_image img;
	u8 *h = img.b + XS_LEGACY;
	common_checks(c, lin);
	if (supervisor && c->cpl != 0)
		cpu_gp0(c);
	mem_probe(c, lin, 1, ACC_READ); /* before the header */
	mem_ld_bytes(c, lin + XS_LEGACY, h, XS_HEADER);
	header_check(c, h, supervisor);

	u64 bv = ld64(h), xcomp = ld64(h + 8);
	u64 rfbm = requested(c, supervisor);
	u64 to_load = rfbm & bv, to_init = rfbm & ~bv;
	bool compact = xcomp & XCOMP_COMPACT;
	area_probe(c, lin, compact ? to_load : rfbm, xcomp, ACC_READ);

	/* The standard form takes MXCSR from memory whatever XSTATE_BV says. */
	bool set_mxcsr = compact ? rfbm & XC_BIT(XC_SSE) : rfbm & (XC_BIT(XC_SSE) | XC_BIT(XC_AVX));
	u32 mxcsr = MXCSR_DEFAULT;
	if (set_mxcsr && (!compact || (bv & XC_BIT(XC_SSE))))
		mxcsr = mem_ld32(c, lin + FX_MXCSR);
	if (mxcsr & ~fpu_mxcsr_mask(c))
		cpu_gp0(c);

	if (to_load & XC_BIT(XC_X87)) {
		mem_ld_bytes(c, lin, img.b, FX_MXCSR);
		mem_ld_bytes(c, lin + FX_ST, img.b + FX_ST, 8 * 16);
	}
	if (to_load & XC_BIT(XC_SSE))
		mem_ld_bytes(c, lin + FX_XMM, img.b + FX_XMM, 16 * reg_count(c));
	for (unsigned k = XC_AVX; k < XC_MAX; k++) {
		unsigned off = comp_offset(c, k, xcomp), n = c->model->xsave_size[k];
		if ((to_load & XC_BIT(k)) && off + n <= XS_IMAGE_MAX)
			mem_ld_bytes(c, lin + off, img.b + off, n);
	}

	if (rfbm & XC_BIT(XC_X87))
		x87_load(c, to_load & XC_BIT(XC_X87) ? &img : NULL, opsz == 8);
	if (set_mxcsr)
		fpu_mxcsr_set(c, mxcsr);
	for (unsigned k = XC_SSE; k < XC_MAX; k++) {
		unsigned off = k == XC_SSE ? FX_XMM : comp_offset(c, k, xcomp);
		if (to_load & XC_BIT(k))
			comp_load(c, k, off + c->model->xsave_size[k] <= XS_IMAGE_MAX ? img.b + off : NULL);
		else if (to_init & XC_BIT(k))
			comp_load(c, k, NULL);
	}
}
