/* x87 and MXCSR state: between struct cpu and the host's registers, and as FXSAVE, FNSTENV and
 * FNSAVE lay it out in memory. SDM vol. 1 8.1, 10.5; vol. 2 FXSAVE, FSTENV, FSAVE.
 *
 * Invariants
 *  1. fpu_live: the guest's x87 registers, its control, status and tag words and MXCSR are in
 *     the host's; else in fxarea. FOP, FIP, FDP, FCS, FDS are c->fop.. in both cases: the
 *     host's own hold addresses of the monitor and are never shown to the guest.
 *  2. What this file does to the live registers, it does with whole-state host instructions, so
 *     that the silicon defines the result. It never runs a waiting x87 instruction while an
 *     unmasked exception is pending.
 *  3. The host's vector registers hold nothing of the guest between two host instructions.
 *  4. Memory is read or written, and has faulted, before any state changes.
 * The caller has done the #NM and #UD checks (nofpu[]) and, for FLDENV and FRSTOR, #MF. */
#include <string.h>

#include "cpu/fpu.h"
#include "cpu/mmu.h"

#define CLOBBER_VECTORS "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", \
	"xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

static void host_fxsave(u8 *p) { __asm__ volatile("fxsave64 (%0)" :: "r"(p) : "memory"); }
static void host_fxrstor(const u8 *p) { __asm__ volatile("fxrstor64 (%0)" :: "r"(p) : "memory", CLOBBER_VECTORS); }

static void host_default(void)
{
	u32 mxcsr = MXCSR_DEFAULT;
	__asm__ volatile("fninit\n\tldmxcsr %0" :: "m"(mxcsr));
}

void fpu_load(struct cpu *c)
{
	if (c->fpu_live)
		return;
	host_fxrstor(c->fxarea);
	c->fpu_live = true;
}

void fpu_save(struct cpu *c)
{
	if (!c->fpu_live)
		return;
	host_fxsave(c->fxarea);
	host_default();
	c->fpu_live = false;
}

static void pointers_clear(struct cpu *c)
{
	c->fop = 0;
	c->fip = c->fdp = 0;
	c->fcs = c->fds = 0;
}

void fpu_reset(struct cpu *c, bool init_only_x87)
{
	struct fx_image x;
	pointers_clear(c);
	fpu_image_get(c, &x, true);
	if (init_only_x87) {
		/* The registers stay; ST0 is again the first of them. */
		unsigned top = ld16(x.b + FX_FSW) >> 11 & 7;
		u8 st[8 * 16];
		memcpy(st, x.b + FX_ST, sizeof(st));
		for (unsigned r = 0; r < 8; r++)
			memcpy(x.b + FX_ST + 16 * r, st + 16 * ((r - top) & 7), 16);
		st16(x.b + FX_FCW, 0x37f);
		x.b[FX_FTW] = 0;
	} else {
		memset(x.b, 0, sizeof(x.b));
		st16(x.b + FX_FCW, 0x40);
		x.b[FX_FTW] = 0xff; /* tag word 5555h: eight zeros */
		st32(x.b + FX_MXCSR, MXCSR_DEFAULT);
	}
	st16(x.b + FX_FSW, 0);
	fpu_image_put(c, &x, true);
}

/* SDM vol. 1 11.6.6. */
static u32 host_mxcsr_mask(void)
{
	static _Atomic u32 known; /* of the host's processor: the same for all */
	struct fx_image x;
	u32 mask = known;
	if (mask)
		return mask;
	host_fxsave(x.b);
	mask = ld32(x.b + FX_MXCSR_MASK);
	if (!mask)
		mask = 0xffbf;
	known = mask;
	return mask;
}
u32 fpu_mxcsr_mask(const struct cpu *c)
{
	return host_mxcsr_mask() & (cpu_has(c, FEAT_MISALIGNSSE) ? 0x2ffff : 0xffff);
}

/* ---- the image ---------------------------------------------------------------------------------- */

void fpu_image_get(const struct cpu *c, struct fx_image *x, bool wide)
{
	if (c->fpu_live)
		host_fxsave(x->b);
	else
		memcpy(x->b, c->fxarea, sizeof(x->b));
	st16(x->b + FX_FOP, c->fop & 0x7ff);
	st64(x->b + FX_FIP, c->fip);
	st64(x->b + FX_FDP, c->fdp);
	if (!wide)
		fpu_image_narrow(c, x);
}

void fpu_image_narrow(const struct cpu *c, struct fx_image *x)
{
	st64(x->b + FX_FIP, (u32)c->fip | (u64)c->fcs << 32);
	st64(x->b + FX_FDP, (u32)c->fdp | (u64)c->fds << 32);
}

void fpu_image_put(struct cpu *c, const struct fx_image *x, bool wide)
{
	struct fx_image h = *x;
	u64 fip = ld64(x->b + FX_FIP), fdp = ld64(x->b + FX_FDP);
	c->fop = ld16(x->b + FX_FOP) & 0x7ff;
	c->fip = wide ? fip : (u32)fip;
	c->fdp = wide ? fdp : (u32)fdp;
	c->fcs = wide ? 0 : (u16)(fip >> 32);
	c->fds = wide ? 0 : (u16)(fdp >> 32);
	/* FIP must be canonical for the host's instruction; it is ours to keep anyway. */
	st16(h.b + FX_FOP, 0);
	st64(h.b + FX_FIP, 0);
	st64(h.b + FX_FDP, 0);
	h.b[5] = 0;
	if (c->fpu_live)
		host_fxrstor(h.b);
	else
		memcpy(c->fxarea, h.b, sizeof(h.b));
}

void fpu_image_init_x87(struct fx_image *x)
{
	memset(x->b, 0, FX_MXCSR);
	st16(x->b + FX_FCW, 0x37f);
	memset(x->b + FX_ST, 0, 8 * 16);
}

u32 fpu_mxcsr_get(const struct cpu *c)
{
	u32 v;
	if (!c->fpu_live)
		return ld32(c->fxarea + FX_MXCSR);
	__asm__ volatile("stmxcsr %0" : "=m"(v));
	return v;
}

void fpu_mxcsr_set(struct cpu *c, u32 v)
{
	if (c->fpu_live)
		__asm__ volatile("ldmxcsr %0" :: "m"(v));
	else
		st32(c->fxarea + FX_MXCSR, v);
}

/* ---- FXSAVE, FXRSTOR ------------------------------------------------------------------------------- */

static unsigned fx_xmm_count(const struct cpu *c)
{
	if ((c->efer & EFER_FFXSR) && cpu_code64(c) && c->cpl == 0)
		return 0;
	return cpu_code64(c) ? 16 : 8;
}

void fpu_fxsave(struct cpu *c, u64 lin, unsigned opsz)
{
	struct fx_image x;
	unsigned n = fx_xmm_count(c);
	mmu_check_canonical(c, lin);
	if (lin & 15)
		cpu_gp0(c);
	mem_probe(c, lin, sizeof(x.b), ACC_WRITE);
	fpu_image_get(c, &x, opsz == 8);
	st32(x.b + FX_MXCSR_MASK, fpu_mxcsr_mask(c));
	x.b[5] = 0;
	for (unsigned r = 0; r < 8; r++)
		memset(x.b + FX_ST + 16 * r + 10, 0, 6);
	for (unsigned r = 0; r < n; r++)
		memcpy(x.b + FX_XMM + 16 * r, c->zmm[r], 16);
	mem_st_bytes(c, lin, x.b, FX_XMM + 16 * n);
}

void fpu_fxrstor(struct cpu *c, u64 lin, unsigned opsz)
{
	struct fx_image x;
	unsigned n = fx_xmm_count(c);
	mmu_check_canonical(c, lin);
	if (lin & 15)
		cpu_gp0(c);
	mem_ld_bytes(c, lin, x.b, sizeof(x.b));
	if (ld32(x.b + FX_MXCSR) & ~fpu_mxcsr_mask(c))
		cpu_gp0(c);
	fpu_image_put(c, &x, opsz == 8);
	for (unsigned r = 0; r < n; r++)
		memcpy(c->zmm[r], x.b + FX_XMM + 16 * r, 16);
}

/* ---- FNSTENV, FNSAVE, FLDENV, FRSTOR ---------------------------------------------------------------- */

/* The host's 32-bit protected-mode format: seven doublewords, then ST0..ST7 of 10 bytes. */
enum { ENV_FCW = 0, ENV_FSW = 4, ENV_FTW = 8, ENV_FIP = 12, ENV_FCS_FOP = 16, ENV_FDP = 20, ENV_FDS = 24,
       ENV_SIZE = 28, SAVE_SIZE = 108 };

/* Runs body with the guest's x87 state in the host's registers. */
#define WITH_LIVE(c, ...) do { \
	bool was_live_ = (c)->fpu_live; \
	fpu_load(c); \
	__VA_ARGS__; \
	if (!was_live_) \
		fpu_save(c); \
} while (0)

/* Reads env and registers; the state stays as it is. Both fnsave and fnstenv do not wait, and
 * leave no exception unmasked for frstor to wait on. */
static void host_save_keep(u8 *p)
{
	__asm__ volatile("fnsave (%0)\n\tfrstor (%0)" :: "r"(p) : "memory");
}
static void host_mask_all(void)
{
	u8 p[ENV_SIZE];
	__asm__ volatile("fnstenv %0" : "=m"(p));
}
static void host_frstor(const u8 *p) { __asm__ volatile("fninit\n\tfrstor (%0)" :: "r"(p) : "memory"); }
static void host_fldenv(const u8 *p)
{
	__asm__ volatile("fninit\n\tfldenv (%0)" :: "r"(p) : "memory"); /* the registers stay */
}

/* Segment-and-offset pointers become linear ones in the real-mode formats. */
static u32 real_pointer(u16 seg, u64 off) { return ((u32)seg << 4) + (u32)off; }

/* From the host's image to the guest's in the format of opsz and mode; returns its size. */
static unsigned env_build(const struct cpu *c, const u8 *h, unsigned opsz, u8 *out)
{
	bool real = !cpu_protected(c);
	u32 ip = real ? real_pointer(c->fcs, c->fip) : (u32)c->fip;
	u32 dp = real ? real_pointer(c->fds, c->fdp) : (u32)c->fdp;
	u16 fop = c->fop & 0x7ff;
	u16 w[3] = {ld16(h + ENV_FCW), ld16(h + ENV_FSW), ld16(h + ENV_FTW)};
	if (opsz == 2) {
		for (unsigned k = 0; k < 3; k++)
			st16(out + 2 * k, w[k]);
		st16(out + 6, (u16)ip);
		st16(out + 8, real ? (u16)(((ip >> 16) & 15) << 12 | fop) : c->fcs);
		st16(out + 10, (u16)dp);
		st16(out + 12, real ? (u16)(((dp >> 16) & 15) << 12) : c->fds);
		return 14;
	}
	for (unsigned k = 0; k < 3; k++)
		st32(out + 4 * k, 0xffff0000u | w[k]);
	if (real) {
		st32(out + ENV_FIP, 0xffff0000u | (ip & 0xffff));
		st32(out + ENV_FCS_FOP, (ip >> 16) << 12 | fop);
		st32(out + ENV_FDP, 0xffff0000u | (dp & 0xffff));
		st32(out + ENV_FDS, (dp >> 16) << 12);
	} else {
		st32(out + ENV_FIP, ip);
		st32(out + ENV_FCS_FOP, (u32)fop << 16 | c->fcs);
		st32(out + ENV_FDP, dp);
		st32(out + ENV_FDS, 0xffff0000u | c->fds);
	}
	return ENV_SIZE;
}

struct fpu_pointers { u16 fop, fcs, fds; u64 fip, fdp; };

/* The other way: the control words into h, the pointers into p. 16-bit protected images have no
 * FOP: it becomes 0. */
static void env_parse(const struct cpu *c, const u8 *in, unsigned opsz, u8 *h, struct fpu_pointers *p)
{
	bool real = !cpu_protected(c);
	unsigned s = opsz == 2 ? 2 : 4;
	memset(h, 0, ENV_SIZE);
	*p = (struct fpu_pointers){0};
	st16(h + ENV_FCW, ld16(in));
	st16(h + ENV_FSW, ld16(in + s));
	st16(h + ENV_FTW, ld16(in + 2 * s));
	const u8 *ip = in + 3 * s, *cs = in + 4 * s, *dp = in + 5 * s, *ds = in + 6 * s;
	if (real) {
		u32 hi_ip = s == 2 ? ld16(cs) : ld32(cs), hi_dp = s == 2 ? ld16(ds) : ld32(ds);
		p->fip = ld16(ip) | ((hi_ip >> 12) & 0xffff) << 16;
		p->fdp = ld16(dp) | ((hi_dp >> 12) & 0xffff) << 16;
		p->fop = hi_ip & 0x7ff;
		return;
	}
	p->fip = s == 2 ? ld16(ip) : ld32(ip);
	p->fdp = s == 2 ? ld16(dp) : ld32(dp);
	p->fcs = ld16(cs);
	p->fds = ld16(ds);
	p->fop = s == 2 ? 0 : ld16(cs + 2) & 0x7ff;
}

void fpu_fnstenv(struct cpu *c, u64 lin, unsigned opsz, bool save)
{
	u8 h[SAVE_SIZE], out[SAVE_SIZE];
	WITH_LIVE(c, host_save_keep(h));
	unsigned n = env_build(c, h, opsz, out);
	if (save) {
		memcpy(out + n, h + ENV_SIZE, SAVE_SIZE - ENV_SIZE);
		n += SAVE_SIZE - ENV_SIZE;
	}
	mem_st_bytes(c, lin, out, n);
	if (save)
		fpu_reset(c, true);
	else
		WITH_LIVE(c, host_mask_all());
}

void fpu_fldenv(struct cpu *c, u64 lin, unsigned opsz, bool rstor)
{
	u8 h[SAVE_SIZE], in[SAVE_SIZE];
	unsigned n = opsz == 2 ? 14 : ENV_SIZE;
	struct fpu_pointers p;
	mem_ld_bytes(c, lin, in, rstor ? n + SAVE_SIZE - ENV_SIZE : n);
	env_parse(c, in, opsz, h, &p);
	if (rstor) {
		memcpy(h + ENV_SIZE, in + n, SAVE_SIZE - ENV_SIZE);
		WITH_LIVE(c, host_frstor(h));
	} else {
		WITH_LIVE(c, host_fldenv(h));
	}
	c->fop = p.fop;
	c->fip = p.fip;
	c->fdp = p.fdp;
	c->fcs = p.fcs;
	c->fds = p.fds;
}
