/* An engine as one side: a guest in 64-bit long mode with the windows of diff.h mapped for the
 * user, Linux's GDT, and an IDT whose gates lead to one HLT each on a stack of their own. A test
 * starts at CPL 3 and runs until a gate has been taken; the outcome is what the processor pushed
 * there. So delivery is under test, too, and nothing but struct engine_ops is asked of an engine.
 * An engine that translates does so only when it runs without a limit: then a thread stops what
 * does not end.
 *
 * Guest-physical memory: page tables from 1 MiB, the supervisor's pages at 2 MiB, the code and
 * data windows at 3 MiB. Supervisor pages are mapped in the upper half. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "diff.h"

enum { RAM_BYTES = 8 << 20, TABLES = 0x100000, SYS = 0x200000, CODE = 0x300000, DATA = 0x310000 };
/* The supervisor's pages. */
enum { IDT = SYS, GDT = SYS + 0x1000, TSS = SYS + 0x2000, LDT = SYS + 0x3000, STUBS = SYS + 0x4000,
       STACK = SYS + 0x5000, SYS_END = SYS + 0x6000 };
#define SYS_LIN 0xffffc00000000000ull
#define LIN(phys) (SYS_LIN + (phys) - SYS)
enum { STACK_TOP = 0xff0, STUB_STEP = 16, MAX_STEPS = 100000 };
enum { KERNEL_CS = 0x10, SEL_TSS = 0x40, SEL_LDT = 0x50 };

struct side {
	const struct engine_ops *ops;
	struct mem mem;
	struct clock clock;
	struct cpu_model model;
	struct cpu_hooks hooks;
	struct cpu *c;
	u32 next_table;
	struct segment user_cs[2], user_ds, null_ds, ldt[N_LDT]; /* user_cs: 32-bit, 64-bit */
	struct segment tr, ldtr;
	bool translates;
	_Atomic u64 runs;        /* that have begun */
	_Atomic bool running;
};

static void *stop_endless(void *arg)
{
	struct side *s = arg;
	for (u64 seen = 0;; sleep(2)) {
		u64 now = atomic_load(&s->runs);
		if (now == seen && atomic_load(&s->running)) {
			cpu_post_event(s->c, EV_EXIT);
			s->ops->kick(s->c);
		}
		seen = now;
	}
	return NULL;
}

static unsigned run_freely(struct side *s)
{
	enum run_exit why = RUN_EVENT;
	atomic_fetch_add(&s->runs, 1);
	atomic_store(&s->running, true);
	while (why == RUN_EVENT && !(atomic_load(&s->c->events) & EV_EXIT))
		why = s->ops->run(s->c);
	atomic_store(&s->running, false);
	return why == RUN_EVENT ? MAX_STEPS : 0;
}

static u8 *ram(struct side *s, u64 gpa) { return mem_ram(&s->mem, gpa); }
const u8 *side_data(const struct side *s) { return mem_ram((struct mem *)&s->mem, DATA); }
const struct cpu *side_cpu(const struct side *s) { return s->c; }

/* ---- tables -------------------------------------------------------------------------------------- */

enum { P = 1, W = 2, U = 4 };
#define NX (1ull << 63)

static void map_page(struct side *s, u64 lin, u64 phys, u64 bits)
{
	u64 table = TABLES;
	for (int sh = 39; sh > 12; sh -= 9) {
		u64 *e = (u64 *)(void *)ram(s, table) + (lin >> sh & 511);
		if (!*e) {
			*e = s->next_table | P | W | U;
			s->next_table += 4096;
		}
		table = *e & 0xffffffffff000ull;
	}
	((u64 *)(void *)ram(s, table))[lin >> 12 & 511] = phys | P | bits;
}

static void map_window(struct side *s, u64 lin, u64 phys, const char *letters)
{
	for (unsigned k = 0; letters[k]; k++) {
		u64 bits = letters[k] == 'x' ? U : letters[k] == 'w' ? U | W | NX : U | NX;
		if (letters[k] != '-')
			map_page(s, lin + k * 4096ull, phys + k * 4096ull, bits);
	}
}

static void make_paging(struct side *s)
{
	s->next_table = TABLES + 4096;
	map_window(s, CODE_BASE, CODE, CODE_PAGES);
	map_window(s, DATA_BASE, DATA, DATA_PAGES);
	map_window(s, DATA_HIGH, DATA, DATA_PAGES);
	for (u64 p = SYS; p < SYS_END; p += 4096)
		map_page(s, LIN(p), p, p == STUBS ? 0 : W);
}

static u64 descriptor(u32 base, u32 limit, u32 attr) /* attr: bytes 5 and 6 as in struct segment */
{
	return (limit & 0xffff) | (u64)(base & 0xffffff) << 16 | (u64)(attr & 0xff) << 40 |
	       (u64)(limit >> 16 & 15) << 48 | (u64)(attr >> 12 & 15) << 52 | (u64)(base >> 24) << 56;
}

static struct segment segment(u16 sel, u64 base, u32 limit, u32 attr)
{
	return (struct segment){ .sel = sel, .base = base, .attr = attr,
				 .limit = attr & SEG_G ? limit << 12 | 0xfff : limit };
}

enum { USER = SEG_DPL | SEG_P | SEG_S, FLAT = 0xfffff };

static void make_segments(struct side *s)
{
	u64 *gdt = (u64 *)(void *)ram(s, GDT), *ldt = (u64 *)(void *)ram(s, LDT);
	/* The accessed bit is set in all, as Linux has them. */
	static const u32 attr[] = { 0, 0x9b | SEG_DB | SEG_G, 0x9b | SEG_L | SEG_G, 0x93 | SEG_DB | SEG_G,
				    0xfb | SEG_DB | SEG_G, 0xf3 | SEG_DB | SEG_G, 0xfb | SEG_L | SEG_G };
	for (unsigned k = 1; k < ARRAY_LEN(attr); k++)
		gdt[k] = descriptor(0, FLAT, attr[k]);
	gdt[15] = descriptor(0, host_cpu_node(), 0xf5 | SEG_DB); /* processor and node, for LSL */
	s->user_cs[0] = segment(SEL_CODE32, 0, FLAT, attr[4]);
	s->user_cs[1] = segment(SEL_CODE64, 0, FLAT, attr[6]);
	s->user_ds = segment(SEL_DATA, 0, FLAT, attr[5]);
	s->null_ds = segment(0, 0, 0, SEG_UNUSABLE);
	s->tr = segment(SEL_TSS, LIN(TSS), 0x67, 0x8b);
	s->ldtr = segment(SEL_LDT, LIN(LDT), N_LDT * 8 - 1, 0x82);
	gdt[SEL_TSS / 8] = descriptor((u32)s->tr.base, 0x67, 0x8b);
	gdt[SEL_TSS / 8 + 1] = s->tr.base >> 32;
	gdt[SEL_LDT / 8] = descriptor((u32)s->ldtr.base, N_LDT * 8 - 1, 0x82);
	gdt[SEL_LDT / 8 + 1] = s->ldtr.base >> 32;
	const u32 attr_ldt = 0xf3 | SEG_AVL | SEG_DB | SEG_G; /* as modify_ldt makes them */
	for (unsigned k = 0; k < N_LDT; k++) {
		const struct ldt_entry *l = &ldt_entries[k];
		ldt[k] = descriptor(l->base, l->limit_pages, attr_ldt);
		s->ldt[k] = segment((u16)(SEL_LDT0 + 8 * k), l->base, l->limit_pages, attr_ldt);
	}
	st64(ram(s, TSS) + 4, LIN(STACK) + STACK_TOP);      /* RSP0 */
	st64(ram(s, TSS) + 36, LIN(STACK) + STACK_TOP);     /* IST1 */
	st16(ram(s, TSS) + 102, 0x68);                      /* no I/O bitmap */
	memset(ram(s, STUBS), 0xf4, 4096);
	for (unsigned v = 0; v < 256; v++) {
		/* As Linux has them: INT3 and INTO are for the user, too. */
		u64 dpl = v == V_BP || v == V_OF ? 3 : 0, at = LIN(STUBS) + v * STUB_STEP;
		u8 *g = ram(s, IDT) + 16 * v;
		st64(g, (at & 0xffff) | (u64)KERNEL_CS << 16 | 1ull << 32 | (0x8e | dpl << 5) << 40 |
		     (at >> 16 & 0xffff) << 48);
		st64(g + 8, at >> 32);
	}
}

static void make_control(struct side *s)
{
	struct cpu *c = s->c;
	c->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
	c->cr3 = TABLES;
	c->cr4 = CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT;
	static const struct { u16 feature; u32 bit; } bits[] = {
		{ FEAT_FSGSBASE, CR4_FSGSBASE }, { FEAT_XSAVE, CR4_OSXSAVE }, { FEAT_SMEP, CR4_SMEP },
		{ FEAT_SMAP, CR4_SMAP }, { FEAT_UMIP, CR4_UMIP },
	};
	for (unsigned k = 0; k < ARRAY_LEN(bits); k++)
		if (cpu_has(c, bits[k].feature))
			c->cr4 |= bits[k].bit;
	c->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
	c->xcr0 = c->model->xcr0_mask & 0xe7;
	c->gdtr = (struct dtable){ LIN(GDT), 0x7f };
	c->idtr = (struct dtable){ LIN(IDT), 0xfff };
	c->seg[S_LDTR] = s->ldtr;
	c->seg[S_TR] = s->tr;
	mmu_flush_all(c);
}

/* ---- a run ------------------------------------------------------------------------------------------- */

static void store_code(struct side *s, u64 rip, const u8 *bytes, unsigned n)
{
	for (unsigned k = 0; k < n; k++) {
		u64 gpa = CODE + (rip - CODE_BASE) + k;
		*ram(s, gpa) = bytes ? bytes[k] : 0xcc;
		mem_code_written(&s->mem.code[gpa >> 12], gpa & PAGE_MASK, 1);
	}
}

/* Selectors that regs may hold when a test starts. */
static struct segment segment_of(const struct side *s, u16 sel, u64 base)
{
	struct segment g = sel == SEL_CODE32 ? s->user_cs[0] : sel == SEL_CODE64 ? s->user_cs[1] :
			   sel == SEL_DATA ? s->user_ds :
			   (sel & 7) == SEL_LDT0 && sel / 8 < N_LDT ? s->ldt[sel / 8] : s->null_ds;
	if (g.attr & SEG_UNUSABLE)
		g.base = base;
	return g;
}

static void fpu_put(struct cpu *c, const struct vec_state *v)
{
	u8 *x = c->fxarea;
	memset(x, 0, 32);
	st16(x, v->fcw);
	st16(x + 2, v->fsw);
	x[4] = v->ftw;
	st32(x + 24, v->mxcsr);
	memcpy(x + 32, v->st, sizeof(v->st));
	c->fop = v->fop;
	c->fip = v->fip;
	c->fdp = v->fdp;
	c->fcs = c->fds = 0;
	memcpy(c->zmm, v->zmm, sizeof(c->zmm));
	memcpy(c->k, v->k, sizeof(c->k));
}

static void fpu_get(const struct cpu *c, struct vec_state *v)
{
	const u8 *x = c->fxarea;
	memset(v, 0, sizeof(*v));
	v->fcw = ld16(x);
	v->fsw = ld16(x + 2);
	v->ftw = x[4];
	v->mxcsr = ld32(x + 24);
	for (unsigned k = 0; k < 8; k++)
		memcpy(v->st[k], x + 32 + 16 * k, 10);
	v->fop = c->fop;
	v->fip = c->fip;
	v->fdp = c->fdp;
	memcpy(v->zmm, c->zmm, sizeof(v->zmm));
	memcpy(v->k, c->k, sizeof(v->k));
}

static void start(struct side *s, const struct test *t)
{
	struct cpu *c = s->c;
	const struct regs *r = &t->r;
	memcpy(c->regs, r->gpr, sizeof(r->gpr));
	c->regs[R_ZERO] = 0;
	c->rip = r->rip;
	c->rflags = r->rflags;
	c->seg[S_CS] = segment_of(s, r->cs, 0);
	c->seg[S_SS] = segment_of(s, r->ss, 0);
	c->seg[S_DS] = segment_of(s, r->ds, 0);
	c->seg[S_ES] = segment_of(s, r->es, 0);
	c->seg[S_FS] = segment_of(s, r->fs, r->fs_base);
	c->seg[S_GS] = segment_of(s, r->gs, r->gs_base);
	c->cpl = 3;
	c->cr2 = 0;
	c->shadow = 0;
	c->activity = ACT_RUN;
	c->stopped = c->nmi_blocked = false;
	c->delivering = -1;
	atomic_store(&c->events, 0);
	fpu_put(c, &r->v);
	cpu_update_mode(c);
	store_code(s, r->rip, t->bytes, t->len);
	for (unsigned k = 0; k < t->n_patches; k++)
		memcpy(ram(s, DATA) + t->patch[k].off, t->pool + t->patch[k].at, t->patch[k].len);
}

static void read_out(struct side *s, struct outcome *o)
{
	struct cpu *c = s->c;
	struct regs *r = &o->r;
	memcpy(r->gpr, c->regs, sizeof(r->gpr));
	r->ds = c->seg[S_DS].sel;
	r->es = c->seg[S_ES].sel;
	r->fs = c->seg[S_FS].sel;
	r->gs = c->seg[S_GS].sel;
	r->fs_base = c->seg[S_FS].base;
	r->gs_base = c->seg[S_GS].base;
	fpu_get(c, &r->v);
	const u8 *frame = ram(s, STACK) + STACK_TOP - 40;
	o->vector = (u8)((c->rip - LIN(STUBS)) / STUB_STEP);
	o->error = c->regs[R_SP] == LIN(STACK) + STACK_TOP - 48 ? ld32(frame - 8) : 0;
	o->cr2 = o->vector == V_PF ? c->cr2 : 0;
	r->rip = ld64(frame);
	r->cs = ld16(frame + 8);
	r->rflags = ld64(frame + 16);
	r->gpr[R_SP] = ld64(frame + 24);
	r->ss = ld16(frame + 32);
}

void side_run(struct side *s, const struct test *t, struct outcome *o)
{
	struct cpu *c = s->c;
	start(s, t);
	memset(o, 0, sizeof(*o));
	unsigned steps = 0;
	enum run_exit why = RUN_LIMIT;
	if (s->translates) {
		steps = run_freely(s);
	} else if (t->by_run) {
		c->icount_limit = c->icount + MAX_STEPS;
		why = s->ops->run(c);
		c->icount_limit = UINT64_MAX;
		steps = why == RUN_LIMIT ? MAX_STEPS : 0;
	} else {
		while (c->cpl == 3 && steps++ < MAX_STEPS && why == RUN_LIMIT)
			why = s->ops->step(c);
	}
	read_out(s, o);
	store_code(s, t->r.rip, NULL, t->len);
	if (c->cpl != 0 || c->stopped || c->rip - LIN(STUBS) >= 4096) {
		o->lost = true;
		o->reason = c->stopped ? "the processor is shut down" : steps >= MAX_STEPS ? "it does not end" :
			    "it left without an exception";
		o->r.rip = c->rip;
		o->r.rflags = c->rflags;
		o->r.cs = c->seg[S_CS].sel;
		o->r.ss = c->seg[S_SS].sel;
		memcpy(o->r.gpr, c->regs, sizeof(o->r.gpr));
	}
}

void side_restore(struct side *s) { memcpy(ram(s, DATA), data_image(), DATA_BYTES); }

/* ---- life ---------------------------------------------------------------------------------------------- */

static void triple_fault(void *arg) { (void)arg; }

struct side *side_new(const struct engine_ops *ops, const char *model, struct error *e)
{
	struct side *s = calloc(1, sizeof(*s));
	if (!s) {
		error_set(e, "out of memory");
		return NULL;
	}
	s->ops = ops;
	s->hooks.triple_fault = triple_fault;
	if (!mem_init(&s->mem, RAM_BYTES, e) || !clock_init(&s->clock, false, e) ||
	    !cpu_model_parse(&s->model, model, &s->clock, e))
		return NULL;
	/* Images of XSAVE are compared byte by byte: the components lie where the host has them. */
	for (unsigned k = 2; k < 16; k++)
		s->model.xsave_offset[k] = host_xsave_offset(k);
	s->model.lin_bits = host_linear_bits();
	s->c = cpu_new(0, &s->mem, &s->clock, &s->model, &s->hooks);
	if (!s->c) {
		error_set(e, "no memory for a processor");
		return NULL;
	}
	make_paging(s);
	make_segments(s);
	make_control(s);
	memset(ram(s, CODE), 0xcc, CODE_BYTES);
	side_restore(s);
	if (!ops->vcpu_init(s->c, e))
		return NULL;
	s->translates = !strcmp(ops->name, "bt");
	pthread_t stopper;
	if (s->translates) {
		bt_exact(s->c);
		if (pthread_create(&stopper, NULL, stop_endless, s))
			return error_set(e, "no thread"), NULL;
	}
	return s;
}

void side_free(struct side *s)
{
	if (!s)
		return;
	s->ops->vcpu_destroy(s->c);
	cpu_free(s->c);
	clock_destroy(&s->clock);
	mem_destroy(&s->mem);
	free(s);
}
