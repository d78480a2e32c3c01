/* Paging by products: entries x control bits x kinds of access, each held against a
 * specification written here from the manual's words (SDM vol. 3 4.3 to 4.7), not from the walk. */
#include <stdio.h>

#include "cpu_rig.h"

enum { RAM = 16 << 20, ROOT = 0x200000, TABLES = 0x201000, PAGE = 0x400000, OFF = 0xabc };
enum { A = 0x20, D = 0x40, PS = 0x80 };

/* ---- the specification --------------------------------------------------------------------- */

enum kind { LD, ST, FETCH, SYS_LD, SYS_ST, N_KINDS };
static const char *const kind_name[] = {"load", "store", "fetch", "implicit load", "implicit store"};

enum form { F_32, F_32_4M, F_PAE, F_PAE_2M, F_4L, F_4L_2M, F_4L_1G, F_5L, N_FORMS_ };
static const struct { const char *name; unsigned levels; bool wide, lma, la57; } forms[] = {
	[F_32] = {"32-bit", 2, false, false, false},  [F_32_4M] = {"32-bit 4M", 1, false, false, false},
	[F_PAE] = {"PAE", 2, true, false, false},     [F_PAE_2M] = {"PAE 2M", 1, true, false, false},
	[F_4L] = {"4-level", 4, true, true, false},   [F_4L_2M] = {"4-level 2M", 3, true, true, false},
	[F_4L_1G] = {"4-level 1G", 2, true, true, false}, [F_5L] = {"5-level", 5, true, true, true},
};

/* One entry: what varies of it. */
struct ent { bool p, w, u, nx, rsvd; };
struct cfg { unsigned cpl; bool wp, smep, smap, ac, nxe, pke, ad, wd; };
struct outcome { bool fault; u32 err; };

static struct outcome spec(enum form f, const struct ent *e, const struct cfg *g, enum kind k)
{
	bool implicit = k == SYS_LD || k == SYS_ST;
	bool user_mode = g->cpl == 3 && !implicit;
	bool write = k == ST || k == SYS_ST, fetch = k == FETCH;
	bool xd_exists = forms[f].wide, xd_on = xd_exists && g->nxe;
	struct outcome bad = {true, (write ? 2u : 0) | (user_mode ? 4u : 0) | (fetch && (xd_on || g->smep) ? 16u : 0)};
	bool user_page = true, writable = true, no_exec = false;
	for (unsigned k2 = 0; k2 < forms[f].levels; k2++) {
		if (!e[k2].p)
			return bad;
		if ((e[k2].rsvd) || (xd_exists && e[k2].nx && !g->nxe)) {
			bad.err |= 1 | 8;
			return bad;
		}
		user_page &= e[k2].u;
		writable &= e[k2].w;
		no_exec |= xd_exists && e[k2].nx;
	}
	bad.err |= 1;
	bool ok;
	if (user_mode) {
		if (!user_page)
			ok = false;
		else if (fetch)
			ok = !no_exec;
		else
			ok = !write || writable;
	} else {
		bool smap_stops = user_page && g->smap && (implicit || !g->ac);
		if (fetch)
			ok = !no_exec && !(user_page && g->smep);
		else if (write)
			ok = (!g->wp || writable) && !smap_stops;
		else
			ok = !smap_stops;
	}
	if (forms[f].lma && g->pke && user_page && !fetch) {
		bool stops = g->ad || (g->wd && write && (user_mode || g->wp));
		if (stops) {
			ok = false;
			bad.err |= 32;
		}
	}
	return ok ? (struct outcome){false, 0} : bad;
}

/* ---- the machine under test --------------------------------------------------------------- */

static struct rig r;
static u64 lin_of[N_FORMS_];

static u64 *entry64(unsigned depth) { return rig_ram(&r, (depth ? TABLES + 0x1000 * (depth - 1) : ROOT)); }

/* Index of lin in the table at a depth (0: root) of a form with `levels` tables above 4-KiB pages. */
static unsigned slot(enum form f, unsigned depth)
{
	u64 lin = lin_of[f];
	if (!forms[f].wide)
		return depth ? (lin >> 12) & 1023 : lin >> 22;
	unsigned top = f == F_5L ? 48 : forms[f].lma ? 39 : 21;
	return (lin >> (top - 9 * depth)) & 511;
}

static bool is_large(enum form f) { return f == F_32_4M || f == F_PAE_2M || f == F_4L_2M || f == F_4L_1G; }

static u64 entry_bits(enum form f, const struct ent *e, unsigned depth)
{
	bool leaf = depth == forms[f].levels - 1;
	u64 base = leaf ? (f == F_4L_1G ? 0 : PAGE) : TABLES + 0x1000u * depth;
	u64 v = base | e->p | e->w << 1 | e->u << 2;
	if (leaf && is_large(f))
		v |= PS;
	if (forms[f].wide)
		v |= (u64)e->nx << 63 | (u64)e->rsvd << 51;
	else if (e->rsvd)
		v |= 1u << 21;
	return v;
}

static void put_entry(enum form f, unsigned depth, u64 v)
{
	if (forms[f].wide)
		entry64(depth)[slot(f, depth)] = v;
	else
		((u32 *)entry64(depth))[slot(f, depth)] = (u32)v;
}
static u64 get_entry(enum form f, unsigned depth)
{
	return forms[f].wide ? entry64(depth)[slot(f, depth)] : ((u32 *)entry64(depth))[slot(f, depth)];
}

static void set_cfg(enum form f, const struct cfg *g)
{
	struct cpu *c = r.c;
	c->cr0 = CR0_PE | CR0_PG | (g->wp ? CR0_WP : 0);
	c->cr3 = ROOT;
	c->cr4 = (forms[f].wide ? CR4_PAE : CR4_PSE) | (forms[f].la57 ? CR4_LA57 : 0) | (g->smep ? CR4_SMEP : 0) |
		 (g->smap ? CR4_SMAP : 0) | (g->pke ? CR4_PKE : 0);
	c->efer = (g->nxe ? EFER_NXE : 0) | (forms[f].lma ? EFER_LME | EFER_LMA : 0);
	c->rflags = 2 | (g->ac ? FL_AC : 0);
	c->pkru = g->ad | g->wd << 1;
	for (unsigned k = 0; k < 4; k++)
		c->pdpte[k] = ROOT | 1;
	rig_mode(&r, forms[f].lma ? CODE64 : CODE32, g->cpl);
	mmu_flush_all(c);
}

static struct cfg cfg_of(unsigned n)
{
	return (struct cfg){.cpl = n & 1 ? 3 : 0, .wp = n & 2, .smep = n & 4, .smap = n & 8, .ac = n & 16,
			    .nxe = n & 32, .pke = n & 64, .ad = n & 128, .wd = n & 256};
}
enum { N_CFG = 512 };

static struct outcome attempt(enum kind k, u64 lin)
{
	struct cpu *c = r.c;
	int v = RIG_TRY(c,
		switch (k) {
		case LD: mem_ld8(c, lin); break;
		case ST: mem_st8(c, lin, 0x5a); break;
		case FETCH: mmu_fetch_page(c, lin); break;
		case SYS_LD: sys_ld(c, lin, 1); break;
		default: sys_st(c, lin, 0x5a, 1); break;
		});
	if (v < 0)
		return (struct outcome){false, 0};
	if (v != V_PF || c->exc.cr2 != lin)
		fail_msg("vector %d cr2 %llx", v, (unsigned long long)c->exc.cr2);
	return (struct outcome){true, c->exc.error};
}

static _Noreturn void report(enum form f, const struct ent *e, const struct cfg *g, enum kind k,
			     struct outcome got, struct outcome want, const char *what)
{
	char t[256], *p = t;
	for (unsigned d = 0; d < forms[f].levels; d++)
		p += sprintf(p, " %s%s%s%s%s", e[d].p ? "P" : "-", e[d].w ? "W" : "-", e[d].u ? "U" : "-",
			     e[d].nx ? "X" : "-", e[d].rsvd ? "R" : "-");
	print_error("%s: %s %s, entries%s, CPL %u WP %d SMEP %d SMAP %d AC %d NXE %d PKE %d AD %d WD %d: "
		 "fault %d error %x, should be %d %x\n", what, forms[f].name, kind_name[k], t, g->cpl, g->wp, g->smep,
		 g->smap, g->ac, g->nxe, g->pke, g->ad, g->wd, got.fault, got.err, want.fault, want.err);
	fail();
	abort();
}

/* One case: entries, then `first`, then `second` through whatever the first has cached. */
static void one(enum form f, const struct ent *e, const struct cfg *g, enum kind first, int second)
{
	unsigned n = forms[f].levels;
	u64 before[5];
	for (unsigned d = 0; d < n; d++)
		put_entry(f, d, before[d] = entry_bits(f, &e[d], d));
	mmu_flush_current(r.c);
	for (int turn = 0; turn < (second < 0 ? 1 : 2); turn++) {
		enum kind k = turn ? (enum kind)second : first;
		struct outcome want = spec(f, e, g, k), got = attempt(k, lin_of[f]);
		if (got.fault != want.fault || got.err != want.err)
			report(f, e, g, k, got, want, turn ? "after another access" : "access");
		for (unsigned d = 0; d < n && !want.fault; d++)
			before[d] |= A | (d == n - 1 && (k == ST || k == SYS_ST) ? D : 0);
		for (unsigned d = 0; d < n; d++) {
			if (get_entry(f, d) != before[d])
				report(f, e, g, k, got, want, "accessed and dirty bits");
		}
	}
}

static struct ent ent_of(unsigned n)
{
	return (struct ent){.p = !(n & 1), .w = n & 2, .u = n & 4, .nx = n & 8, .rsvd = n & 16};
}
static u32 rng = 1;
static u32 rnd(void) { return rng = rng * 1664525 + 1013904223, rng >> 8; }

static bool rsvd_possible(enum form f, unsigned depth)
{
	return forms[f].wide || (f == F_32_4M && depth == 0);
}

/* All pairs of entries in two levels, the others permissive, under all control bits. */
static void product(enum form f)
{
	unsigned n = forms[f].levels;
	for (unsigned gi = 0; gi < N_CFG; gi++) {
		struct cfg g = cfg_of(gi);
		if (!forms[f].lma && (gi >= 64))
			continue;
		set_cfg(f, &g);
		for (unsigned d = 0; d < n; d++) {
			for (unsigned pair = 0; pair < (n > 1 ? 1024 : 32); pair++) {
				if (d == n - 1 && n > 1)
					continue;
				struct ent e[5];
				for (unsigned k = 0; k < n; k++)
					e[k] = ent_of(2 | 4);
				e[n - 1] = ent_of(pair & 31);
				if (n > 1)
					e[d] = ent_of(pair >> 5);
				for (unsigned k = 0; k < n; k++) {
					if (!rsvd_possible(f, k))
						e[k].rsvd = false;
				}
				u32 x = rnd();
				one(f, e, &g, x % N_KINDS, (x >> 8) % N_KINDS);
			}
		}
		/* The leaf alone with every pair of accesses. */
		for (unsigned leaf = 0; leaf < 32; leaf++) {
			struct ent e[5];
			for (unsigned k = 0; k < n; k++)
				e[k] = ent_of(2 | 4);
			e[n - 1] = ent_of(leaf);
			e[n - 1].rsvd = e[n - 1].rsvd && rsvd_possible(f, n - 1);
			for (unsigned k = 0; k < N_KINDS * N_KINDS; k++)
				one(f, e, &g, k % N_KINDS, (int)(k / N_KINDS));
		}
		for (unsigned k = 0; k < 200; k++) {
			struct ent e[5];
			for (unsigned d = 0; d < n; d++) {
				u32 x = rnd();
				e[d] = ent_of(x & 31 & ~((x >> 5 & 7) ? 17u : 0)); /* mostly present */
				e[d].rsvd = e[d].rsvd && rsvd_possible(f, d);
			}
			one(f, e, &g, rnd() % N_KINDS, (int)(rnd() % N_KINDS));
		}
	}
}

static int start(void **state)
{
	rig_start(&r, RAM, "max");
	r.model.phys_bits = 46;
	lin_of[F_32] = 0x40400000 + OFF;
	lin_of[F_32_4M] = lin_of[F_32];
	lin_of[F_PAE] = lin_of[F_PAE_2M] = 0x80400000 + OFF;
	lin_of[F_4L] = lin_of[F_4L_2M] = 0xffff812340400000ull + OFF;
	lin_of[F_4L_1G] = 0x0000123440000000ull + PAGE + OFF;
	lin_of[F_5L] = 0xff12345640400000ull + OFF;
	return 0;
}
static int stop(void **state)
{
	rig_stop(&r);
	return 0;
}

static void product_32(void **s) { product(F_32); }
static void product_32_4m(void **s) { product(F_32_4M); }
static void product_pae(void **s) { product(F_PAE); }
static void product_pae_2m(void **s) { product(F_PAE_2M); }
static void product_4_level(void **s) { product(F_4L); }
static void product_4_level_2m(void **s) { product(F_4L_2M); }
static void product_4_level_1g(void **s) { product(F_4L_1G); }
static void product_5_level(void **s) { product(F_5L); }

/* ---- reserved bits, one by one ---------------------------------------------------------------- */

/* Bits 12..62 (and PS) of a 64-bit entry that must be clear, from the figures of SDM 4.3 to 4.5;
 * M = 46. what: 'n' table, 'p' 4-KiB leaf, '2' 2-MiB leaf, '1' 1-GiB leaf, 't' PML4E/PML5E. */
static bool must_be_clear(bool lma, char what, unsigned bit)
{
	if (bit >= 46 && bit <= 51)
		return true;
	if (bit >= 52 && bit <= 62)
		return !lma;
	if (what == 't')
		return bit == 7;
	if (what == '2')
		return bit >= 13 && bit <= 20;
	if (what == '1')
		return bit >= 13 && bit <= 29;
	return false;
}

static void reserved_bits(void **state)
{
	static const struct { enum form f; const char *what; } t[] = {
		{F_PAE, "np"}, {F_PAE_2M, "2"}, {F_4L, "tnnp"}, {F_4L_2M, "tn2"}, {F_4L_1G, "t1"}, {F_5L, "ttnnp"}};
	struct cfg g = {.cpl = 0, .nxe = true};
	for (unsigned k = 0; k < ARRAY_LEN(t); k++) {
		enum form f = t[k].f;
		set_cfg(f, &g);
		for (unsigned d = 0; d < forms[f].levels; d++) {
			for (unsigned bit = 7; bit <= 62; bit++) {
				if (bit == 7 && t[k].what[d] != 't')
					continue;
				bool table = t[k].what[d] == 't' || t[k].what[d] == 'n';
				if (table && bit >= 12 && bit < 46)
					continue; /* its address: the walk goes elsewhere */
				for (unsigned x = 0; x < forms[f].levels; x++)
					put_entry(f, x, entry_bits(f, &(struct ent){.p = true}, x) | (x == d ? 1ull << bit : 0));
				mmu_flush_current(r.c);
				int v = RIG_TRY(r.c, mem_ld8(r.c, lin_of[f]));
				bool rsvd = v == V_PF && r.c->exc.error == (PF_P | PF_RSVD);
				if (rsvd != must_be_clear(forms[f].lma, t[k].what[d], bit))
					fail_msg("%s level %u bit %u: vector %d error %x", forms[f].name, d, bit, v, r.c->exc.error);
			}
		}
	}
	/* A processor without 1-GiB pages: PS in a PDPTE is reserved. */
	set_cfg(F_4L_1G, &g);
	for (unsigned x = 0; x < 2; x++)
		put_entry(F_4L_1G, x, entry_bits(F_4L_1G, &(struct ent){.p = true}, x));
	assert_int_equal(RIG_TRY(r.c, mem_ld8(r.c, lin_of[F_4L_1G])), -1);
	r.model.has[FEAT_PDPE1GB] = false;
	mmu_flush_current(r.c);
	assert_int_equal(RIG_TRY(r.c, mem_ld8(r.c, lin_of[F_4L_1G])), V_PF);
	assert_int_equal(r.c->exc.error, PF_P | PF_RSVD);
	r.model.has[FEAT_PDPE1GB] = true;
}

static void pse36(void **state)
{
	struct cfg g = {.cpl = 0};
	u64 gpa;
	set_cfg(F_32_4M, &g);
	/* Bits 20:13 are address bits 39:32; 21 is reserved. */
	put_entry(F_32_4M, 0, 0x00400000 | PS | 1 | 0xa5u << 13);
	assert_true(mmu_peek(r.c, lin_of[F_32_4M], &gpa));
	assert_int_equal(gpa, 0xa500400000ull + OFF);
	/* Fewer physical bits: those above are reserved. */
	r.c->maxphyaddr_mask = 0xfffffffffull; /* 36 */
	for (unsigned bit = 13; bit <= 21; bit++) {
		put_entry(F_32_4M, 0, 0x00400000 | PS | 1 | 1u << bit);
		mmu_flush_current(r.c);
		int v = RIG_TRY(r.c, mem_ld8(r.c, lin_of[F_32_4M]));
		assert_int_equal(v, bit > 16 ? V_PF : -1);
		if (v == V_PF)
			assert_int_equal(r.c->exc.error, PF_P | PF_RSVD);
	}
	r.model.has[FEAT_PSE36] = false;
	put_entry(F_32_4M, 0, 0x00400000 | PS | 1 | 1u << 13);
	mmu_flush_current(r.c);
	assert_int_equal(RIG_TRY(r.c, mem_ld8(r.c, lin_of[F_32_4M])), V_PF);
	/* Without CR4.PSE the bit means nothing: the entry names a table. */
	r.c->cr4 = 0;
	mmu_flush_all(r.c);
	put_entry(F_32, 0, TABLES | PS | 1);
	put_entry(F_32, 1, PAGE | 1);
	assert_true(mmu_peek(r.c, lin_of[F_32], &gpa));
	assert_int_equal(gpa, PAGE + OFF);
	r.model.has[FEAT_PSE36] = true;
	r.c->maxphyaddr_mask = (1ull << 46) - 1;
}

static void pdptes(void **state)
{
	struct cpu *c = r.c;
	struct cfg g = {.cpl = 0};
	set_cfg(F_PAE, &g);
	u64 *t = rig_ram(&r, 0x208020); /* 32-byte aligned, and bits 4:0 of CR3 do not count */
	for (unsigned k = 0; k < 4; k++)
		t[k] = 0x300000 + 0x1000 * k + (k != 2);
	assert_true(mmu_load_pdptes(c, 0x208038));
	for (unsigned k = 0; k < 4; k++)
		assert_int_equal(c->pdpte[k], 0x300000 + 0x1000 * k + (k != 2));
	for (unsigned bit = 1; bit < 64; bit++) {
		bool reserved = bit == 1 || bit == 2 || (bit >= 5 && bit <= 8) || bit >= 46;
		u64 old = t[3], reg = c->pdpte[3];
		t[3] |= 1ull << bit;
		assert_int_equal(mmu_load_pdptes(c, 0x208020), !reserved);
		if (reserved)
			assert_int_equal(c->pdpte[3], reg);
		t[3] = old;
		/* Not present: nothing is looked at. */
		t[2] = 1ull << bit;
		assert_true(mmu_load_pdptes(c, 0x208020));
		t[2] = 0;
		assert_true(mmu_load_pdptes(c, 0x208020));
	}
	/* What is in memory later does not matter: they are registers. */
	c->pdpte[2] = 0;
	assert_int_equal(RIG_TRY(c, mem_ld8(c, lin_of[F_PAE])), V_PF);
	assert_int_equal(c->exc.error, 0);
}

/* ---- what is cached -------------------------------------------------------------------------------- */

/* 4-level tables that map lin_of[F_4L] to `page`, kernel, writable. */
static void map_4l(u64 page)
{
	for (unsigned d = 0; d < 3; d++)
		put_entry(F_4L, d, (TABLES + 0x1000 * d) | 3);
	put_entry(F_4L, 3, page | 3);
}
static void go_long(void)
{
	struct cfg g = {.cpl = 0, .wp = true, .nxe = true};
	set_cfg(F_4L, &g);
	map_4l(PAGE);
}

static void dirty_bit(void **state)
{
	struct cpu *c = r.c;
	u64 lin = lin_of[F_4L];
	go_long();
	assert_int_equal(RIG_TRY(c, mem_ld8(c, lin)), -1);
	assert_int_equal(get_entry(F_4L, 3), PAGE | 3 | A);
	assert_int_equal(tlb_slot(c, lin)->rtag & PAGE_MASK, c->epoch);
	assert_int_equal(tlb_slot(c, lin)->wtag, 0); /* clean: the next store must walk */
	assert_int_equal(RIG_TRY(c, mem_st8(c, lin, 1)), -1);
	assert_int_equal(get_entry(F_4L, 3), PAGE | 3 | A | D);
	assert_int_equal(tlb_slot(c, lin)->wtag, tlb_slot(c, lin)->rtag);
	/* Already dirty: a load makes it writable at once. */
	mmu_flush_current(c);
	assert_int_equal(RIG_TRY(c, mem_ld8(c, lin)), -1);
	assert_int_equal(tlb_slot(c, lin)->wtag, tlb_slot(c, lin)->rtag);
}

static u8 peek8(u64 lin)
{
	volatile u8 v = 0;
	assert_int_equal(RIG_TRY(r.c, v = mem_ld8(r.c, lin)), -1);
	return v;
}

static unsigned flushes;
static void count_flush(struct cpu *c, u64 lin, u64 mask) { flushes++; }

static void invlpg(void **state)
{
	struct cpu *c = r.c;
	u64 lin = lin_of[F_4L];
	go_long();
	*(u8 *)rig_ram(&r, PAGE + OFF) = 1;
	*(u8 *)rig_ram(&r, PAGE + 0x1000 + OFF) = 2;
	assert_int_equal(peek8(lin), 1);
	mmu_fetch_page(c, lin);
	put_entry(F_4L, 3, (PAGE + 0x1000) | 3);
	assert_int_equal(peek8(lin), 1); /* cached: the change is not seen yet */
	flushes = 0;
	c->on_tlb_flush = count_flush;
	mmu_invlpg(c, lin ^ 0x1000); /* another page: may be seen or not; the hook is told */
	mmu_invlpg(c, lin);
	assert_int_equal(flushes, 2);
	c->on_tlb_flush = NULL;
	assert_int_equal(peek8(lin), 2);
	assert_int_equal(mmu_fetch_page(c, lin)->gpa_page, PAGE + 0x1000);
	/* One INVLPG anywhere in a large page drops all of it, in every array. */
	static const enum form large[] = {F_4L_2M, F_4L_1G};
	for (unsigned k = 0; k < 2; k++) {
		enum form f = large[k];
		u64 base = lin_of[f] & ~PAGE_MASK;
		for (unsigned d = 0; d < forms[f].levels; d++)
			put_entry(f, d, entry_bits(f, &(struct ent){.p = true, .w = true}, d));
		mmu_flush_all(c);
		*(u8 *)rig_ram(&r, PAGE) = 7;
		*(u8 *)rig_ram(&r, PAGE + 0x33000) = 8;
		assert_int_equal(peek8(base), 7);
		assert_int_equal(peek8(base + 0x33000), 8);
		mmu_fetch_page(c, base + 0x33000);
		put_entry(f, forms[f].levels - 1, 0);
		mmu_invlpg(c, base + 0x1ff000);
		assert_int_equal(RIG_TRY(c, mem_ld8(c, base)), V_PF);
		assert_int_equal(RIG_TRY(c, mem_ld8(c, base + 0x33000)), V_PF);
		assert_int_equal(RIG_TRY(c, mmu_fetch_page(c, base + 0x33000)), V_PF);
	}
}

static void pcid(void **state)
{
	struct cpu *c = r.c;
	u64 lin = lin_of[F_4L];
	go_long();
	c->cr4 |= CR4_PCIDE;
	mmu_flush_all(c);
	*(u8 *)rig_ram(&r, PAGE + OFF) = 1;
	*(u8 *)rig_ram(&r, PAGE + 0x1000 + OFF) = 2;
	u64 other = PAGE + 0x1000;
#define SEES(n) assert_int_equal(peek8(lin), n)
	mmu_set_cr3(c, ROOT | 5, false);
	SEES(1);
	put_entry(F_4L, 3, other | 3);
	mmu_set_cr3(c, ROOT | 6, true);
	mmu_set_cr3(c, ROOT | 5, true);
	SEES(1); /* kept */
	mmu_set_cr3(c, ROOT | 6, true);
	SEES(2); /* nothing of 5 is seen here */
	mmu_set_cr3(c, ROOT | 5, false);
	SEES(2); /* flushed */
	/* INVPCID: one context, not the current one. */
	put_entry(F_4L, 3, PAGE | 3);
	mmu_invpcid(c, 1, 6, 0);
	SEES(2);
	mmu_set_cr3(c, ROOT | 6, true);
	mmu_invpcid(c, 1, 5, 0);
	mmu_set_cr3(c, ROOT | 5, true);
	SEES(1);
	/* The current one. */
	put_entry(F_4L, 3, other | 3);
	SEES(1);
	mmu_invpcid(c, 1, 5, 0);
	SEES(2);
	/* One address. */
	put_entry(F_4L, 3, PAGE | 3);
	SEES(2);
	mmu_invpcid(c, 0, 5, lin);
	SEES(1);
	/* Its address may be of the processor's full width, without CR4.LA57 too. */
	r.model.lin_bits = 57;
	assert_int_equal(RIG_TRY(c, mmu_invpcid(c, 0, 5, 0xffaaaaaaaaaaaaaaull)), -1);
	r.model.lin_bits = 48;
	assert_int_equal(RIG_TRY(c, mmu_invpcid(c, 0, 5, 0xffaaaaaaaaaaaaaaull)), V_GP);
	r.model.lin_bits = 57;
	/* All of them, with and without globals. */
	for (unsigned type = 2; type < 4; type++) {
		put_entry(F_4L, 3, PAGE | 3);
		mmu_set_cr3(c, ROOT | 9, false);
		SEES(1);
		put_entry(F_4L, 3, other | 3);
		SEES(1);
		mmu_set_cr3(c, ROOT | 10, true);
		mmu_invpcid(c, type, 0, 0);
		mmu_set_cr3(c, ROOT | 9, true);
		SEES(2);
		put_entry(F_4L, 3, PAGE | 3);
		mmu_invpcid(c, type, 0, 0);
		SEES(1);
	}
	/* A global page is dropped by INVLPG whatever the context that cached it. */
	c->cr4 |= CR4_PGE;
	mmu_flush_all(c);
	put_entry(F_4L, 3, PAGE | 3 | 0x100);
	mmu_set_cr3(c, ROOT | 5, true);
	SEES(1);
	mmu_set_cr3(c, ROOT | 6, true);
	put_entry(F_4L, 3, other | 3 | 0x100);
	mmu_invlpg(c, lin);
	mmu_set_cr3(c, ROOT | 5, true);
	SEES(2);
	/* What INVPCID refuses. */
	assert_int_equal(RIG_TRY(c, mmu_invpcid(c, 4, 0, 0)), V_GP);
	assert_int_equal(RIG_TRY(c, mmu_invpcid(c, 0, 5, 0x100000000000000ull)), V_GP);
	c->cr4 &= ~(u64)CR4_PCIDE;
	assert_int_equal(RIG_TRY(c, mmu_invpcid(c, 1, 5, 0)), V_GP);
	assert_int_equal(RIG_TRY(c, mmu_invpcid(c, 1, 0, 0)), -1);
}

/* Epochs come round: nothing of an old one is ever seen again. */
static void epoch_wrap(void **state)
{
	struct cpu *c = r.c;
	u64 lin = lin_of[F_4L];
	go_long();
	c->cr4 |= CR4_PCIDE;
	mmu_flush_all(c);
	for (unsigned k = 0; k < 64; k++)
		*(u8 *)rig_ram(&r, PAGE + 0x1000 * k + OFF) = (u8)k;
	mmu_set_cr3(c, ROOT | 77, false);
	for (unsigned k = 0; k < 10000; k++) {
		put_entry(F_4L, 3, (PAGE + 0x1000 * (k % 61)) | 3);
		mmu_set_cr3(c, ROOT | (k % 3 == 1 ? 78 : 77), false);
		assert_in_range(c->epoch, 1, 0xfff);
		SEES(k % 61);
		assert_int_equal(mmu_fetch_page(c, lin)->gpa_page, PAGE + 0x1000 * (k % 61));
	}
	/* After the wrap a PCID of before has nothing. */
	put_entry(F_4L, 3, PAGE | 3);
	mmu_set_cr3(c, ROOT | 500, false);
	SEES(0);
	put_entry(F_4L, 3, (PAGE + 0x1000) | 3);
	for (unsigned k = 0; k < 4100; k++)
		mmu_set_cr3(c, ROOT | 501, false);
	mmu_set_cr3(c, ROOT | 500, true);
	SEES(1);
	/* Nor is it given what another one cached under the same epoch since. */
	u64 epoch = c->epoch;
	do {
		mmu_set_cr3(c, ROOT | 501, false);
	} while (c->epoch != epoch);
	SEES(1);
	put_entry(F_4L, 3, PAGE | 3);
	mmu_set_cr3(c, ROOT | 500, true);
	SEES(0);
}

static void rights_by_state(void **state)
{
	struct cpu *c = r.c;
	u64 lin = lin_of[F_4L];
	go_long();
	for (unsigned d = 0; d < 4; d++)
		put_entry(F_4L, d, get_entry(F_4L, d) | 4); /* a user page */
	/* AC switches arrays, no flush in between. */
	c->cr4 |= CR4_SMAP;
	cpu_set_rflags(c, FL_AC, FL_AC);
	mmu_flush_all(c);
	assert_int_equal(c->mmu, MMU_KERNEL);
	assert_int_equal(RIG_TRY(c, mem_st8(c, lin, 1)), -1);
	cpu_set_rflags(c, 0, FL_AC);
	assert_int_equal(c->mmu, MMU_SMAP);
	assert_int_equal(RIG_TRY(c, mem_ld8(c, lin)), V_PF);
	assert_int_equal(c->exc.error, PF_P);
	cpu_set_rflags(c, FL_AC, FL_AC);
	assert_int_equal(RIG_TRY(c, mem_ld8(c, lin)), -1);
	assert_int_equal(RIG_TRY(c, sys_ld(c, lin, 4)), V_PF); /* AC is nothing to implicit accesses */
	/* Implicit accesses of CPL 3 are the supervisor's. */
	rig_mode(&r, CODE64, 3);
	assert_int_equal(c->mmu, MMU_USER);
	assert_int_equal(RIG_TRY(c, mem_ld8(c, lin)), -1);
	assert_int_equal(RIG_TRY(c, sys_st(c, lin, 0, 4)), V_PF);
	assert_int_equal(c->exc.error, PF_P | PF_W);
	c->cr4 &= ~(u64)CR4_SMAP;
	for (unsigned d = 0; d < 4; d++)
		put_entry(F_4L, d, get_entry(F_4L, d) & ~4ull);
	mmu_flush_all(c);
	assert_int_equal(RIG_TRY(c, mem_ld8(c, lin)), V_PF);
	assert_int_equal(c->exc.error, PF_P | PF_U);
	assert_int_equal(RIG_TRY(c, sys_ld(c, lin, 4)), -1);
	assert_int_equal(RIG_TRY(c, mem_ld8(c, lin)), V_PF); /* what sys_ld cached is not the user's */
	/* WRPKRU takes effect on what is cached. */
	for (unsigned d = 0; d < 4; d++)
		put_entry(F_4L, d, get_entry(F_4L, d) | 4);
	c->cr4 |= CR4_PKE;
	mmu_flush_all(c);
	assert_int_equal(RIG_TRY(c, mem_st8(c, lin, 1)), -1);
	mmu_set_pkru(c, 2);
	assert_int_equal(RIG_TRY(c, mem_ld8(c, lin)), -1);
	assert_int_equal(RIG_TRY(c, mem_st8(c, lin, 1)), V_PF);
	assert_int_equal(c->exc.error, PF_P | PF_W | PF_U | PF_PK);
	put_entry(F_4L, 3, get_entry(F_4L, 3) | 9ull << 59);
	mmu_set_pkru(c, 1u << 18);
	assert_int_equal(RIG_TRY(c, mem_ld8(c, lin)), V_PF);
	assert_int_equal(c->exc.error, PF_P | PF_U | PF_PK);
	mmu_set_pkru(c, ~(3u << 18));
	assert_int_equal(RIG_TRY(c, mem_st8(c, lin, 1)), -1);
}

#define T(name) cmocka_unit_test_setup_teardown(name, start, stop)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(product_32), T(product_32_4m), T(product_pae), T(product_pae_2m), T(product_4_level),
		T(product_4_level_2m), T(product_4_level_1g), T(product_5_level), T(reserved_bits), T(pse36), T(pdptes),
		T(dirty_bit), T(invlpg), T(pcid), T(epoch_wrap), T(rights_by_state),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
