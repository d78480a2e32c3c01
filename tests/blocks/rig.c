/* An engine and the memory around it. Nothing but struct engine_ops is asked of the engine; between
 * programs memory is put back page by page where it changed, as a device would write it, and the
 * processor's registers are set where it stands between two instructions. */
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"
#include "hops.h"
#include "world.h"
#include "planted.h"
#include "watch.h"

struct rig {
	struct world *w;
	struct engine_spec spec;
	struct mem mem;
	struct clock clock;
	struct cpu_model model;
	struct cpu_hooks hooks;
	struct cpu *c;
	const struct program *p; /* loaded */
	u64 seed;                /* of hops */
	int vector;              /* pending interrupt; -1: none */
};

struct cpu *rig_cpu(struct rig *r) { return r->c; }
u8 *rig_ram(struct rig *r) { return r->mem.ram; }
const struct world *rig_world(const struct rig *r) { return r->w; }

/* ---- memory ------------------------------------------------------------------------------------------ */

/* As a device writes. */
static void dma(struct rig *r, u64 phys, const u8 *bytes, unsigned n)
{
	mem_lock(&r->mem);
	mem_write(&r->mem, phys, bytes, n);
	mem_unlock(&r->mem);
}

static void put_page(struct rig *r, unsigned page)
{
	u8 *to = r->mem.ram + page * 4096, *from = r->w->image + page * 4096;
	if (!memcmp(to, from, 4096))
		return;
	dma(r, page * 4096ull, from, 4096);
}

static bool large_page_written(const struct rig *r)
{
	for (unsigned s = 0; s < N_SPACES; s++)
		for (unsigned win = 0; win < N_WINDOWS; win++)
			if (r->w->big_pde[s][win] && r->mem.ram[r->w->big_pde[s][win]] & 0x40)
				return true;
	return false;
}

static void put_memory(struct rig *r)
{
	if (large_page_written(r))
		for (unsigned page = REGION >> 12; page < (REGION + REGION_BYTES) >> 12; page++)
			put_page(r, page);
	for (unsigned k = 0; k < r->w->n_pages; k++)
		put_page(r, r->w->page[k]);
}

/* ---- registers --------------------------------------------------------------------------------------- */

static void put_fpu(struct cpu *c, const struct vec_state *v)
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

static void put_control(struct rig *r, const struct program *p)
{
	struct cpu *c = r->c;
	const struct world *w = r->w;
	c->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_AM | CR0_PG | (p->options & OPT_NOWP ? 0 : CR0_WP);
	c->cr4 = CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT;
	const struct { u16 feature; u32 bit; bool wanted; } bits[] = {
		{ FEAT_FSGSBASE, CR4_FSGSBASE, true }, { FEAT_XSAVE, CR4_OSXSAVE, true },
		{ FEAT_SMEP, CR4_SMEP, p->options & OPT_SMEP }, { FEAT_SMAP, CR4_SMAP, p->options & OPT_SMAP },
		{ FEAT_UMIP, CR4_UMIP, p->options & OPT_UMIP }, { FEAT_PCID, CR4_PCIDE, p->options & OPT_PCID },
	};
	for (unsigned k = 0; k < ARRAY_LEN(bits); k++)
		if (bits[k].wanted && cpu_has(c, bits[k].feature))
			c->cr4 |= bits[k].bit;
	c->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
	c->xcr0 = c->model->xcr0_mask & 0xe7;
	c->xss = 0;
	c->pkru = 0;
	c->msr.star = (u64)K_CS << 32 | (u64)(U_DS - 8) << 48;
	c->msr.lstar = c->msr.cstar = sys_lin(w, SYS_HANDLERS) + SYSCALL_AT;
	c->msr.fmask = FL_IF | FL_TF | FL_DF | FL_AC;
	c->msr.kernel_gs_base = 0;
	memset(c->dr, 0, sizeof(c->dr));
	c->dr[6] = 0xffff0ff0;
	c->dr[7] = 0x400;
	c->gdtr = (struct dtable){ w->gdt, w->gdt_limit };
	c->idtr = (struct dtable){ w->idt[p->idt], w->idt_limit };
	c->seg[S_LDTR] = (struct segment){ .attr = SEG_UNUSABLE };
	c->seg[S_TR] = w->tr;
}

static u64 cr3_of(const struct rig *r, unsigned space)
{
	return r->w->cr3[space] | (r->c->cr4 & CR4_PCIDE ? space + 1 : 0);
}

void rig_load(struct rig *r, const struct program *p)
{
	struct cpu *c = r->c;
	r->p = p;
	put_memory(r);
	cpu_reset(c, true); /* the one before may have left guest mode, GIF, VMX operation otherwise */
	put_control(r, p);
	c->cpl = 0;
	c->rflags = FL_1;
	c->cr3 = cr3_of(r, p->run[0].space);
	mmu_flush_all(c);
	planted_loaded(r, &r->spec);
}

/* The bytes that this run's edits name, as a device would write them. */
static void apply_edits(struct rig *r, unsigned run)
{
	const struct program *p = r->p;
	u32 off[MAX_SLOTS + 1];
	bool placed = false;
	for (unsigned k = 0; k < p->n_edits; k++) {
		const struct edit *e = &p->edit[k];
		if (e->run != run)
			continue;
		if (!placed)
			program_offsets(p, off);
		placed = true;
		for (unsigned n = 0; n < e->len; n++) {
			u32 at = off[e->slot] + e->off + n;
			if (at >= N_CODE_LETTERS * 4096)
				break;
			u64 phys = code_phys(0, at >> 12) + (at & PAGE_MASK);
			dma(r, phys, &e->bytes[n], 1);
		}
	}
}

static void start(struct rig *r, const struct program *p, unsigned run)
{
	struct cpu *c = r->c;
	const struct run *n = &p->run[run];
	u32 off[MAX_SLOTS + 1];
	if (run) {
		apply_edits(r, run);
		mmu_set_cr3(c, cr3_of(r, n->space), n->keep);
	}
	program_offsets(p, off);
	memcpy(c->regs, n->gpr, sizeof(n->gpr));
	c->regs[R_ZERO] = 0;
	c->rip = code_base(r->w->mode, n->window) + off[p->entry];
	c->rflags = n->rflags | FL_1;
	c->seg[S_CS] = r->w->cs[p->cpl];
	c->seg[S_SS] = r->w->ds[p->cpl];
	for (unsigned s = 0; s < 6; s++)
		if (s != S_CS && s != S_SS)
			c->seg[s] = (struct segment){ .attr = SEG_UNUSABLE };
	c->seg[S_FS].base = n->fs_base;
	c->seg[S_GS].base = n->gs_base;
	c->cpl = p->cpl;
	c->cr2 = 0;
	c->shadow = 0;
	c->activity = ACT_RUN;
	c->stopped = c->nmi_blocked = c->step_skip = c->keep_rip = false;
	c->dr6_pending = 0;
	c->delivering = -1;
	c->monitor_armed = false;
	r->vector = n->vector ? n->vector : -1;
	atomic_store(&c->events, n->vector ? EV_INTR : 0);
	put_fpu(c, &p->v);
	cpu_update_mode(c);
}

/* ---- runs ---------------------------------------------------------------------------------------------- */

static int int_ack(void *arg)
{
	struct rig *r = arg;
	int v = r->vector;
	r->vector = -1;
	cpu_clear_event(r->c, EV_INTR);
	return v;
}
static void triple_fault(void *arg) { (void)arg; }

static enum rig_end how(struct rig *r, enum run_exit why)
{
	struct cpu *c = r->c;
	if (c->stopped)
		return END_STOPPED;
	if (c->activity == ACT_HLT)
		return END_HALT;
	return why == RUN_LIMIT || (atomic_load(&c->events) & EV_EXIT) ? END_ENDLESS : END_LOST;
}

/* HLT with an interrupt pending is no end. */
static bool goes_on(struct cpu *c, enum run_exit why)
{
	return why == RUN_LIMIT || (why == RUN_HALT && atomic_load(&c->events) & c->event_mask);
}

/* The engine between programs. */
static const struct engine_ops *home_of(const struct engine_spec *s) { return s->hop ? engine_find("interp") : s->ops; }

enum rig_end rig_run(struct rig *r, const struct program *p, unsigned run, u64 max_insns)
{
	struct cpu *c = r->c;
	enum run_exit why = RUN_LIMIT;
	start(r, p, run);
	if (r->spec.step || r->spec.planted) {
		for (u64 k = 0; k < MIN(max_insns, 4 * MAX_INSNS) && goes_on(c, why); k++)
			why = planted_step(r, &r->spec);
		return how(r, why);
	}
	if (r->spec.hop && max_insns == UINT64_MAX)
		return how(r, hops_run(c, home_of(&r->spec), r->spec.ops, &r->seed));
	if (max_insns != UINT64_MAX)
		c->icount_limit = c->icount + max_insns;
	watch_begin(home_of(&r->spec), c);
	why = home_of(&r->spec)->run(c);
	watch_end();
	c->icount_limit = UINT64_MAX;
	return how(r, why);
}

enum rig_end rig_walk(struct rig *r, const struct program *p, unsigned run, u64 max_insns,
		      void (*before)(void *arg, struct cpu *c), void (*after)(void *arg, struct cpu *c), void *arg)
{
	enum run_exit why = RUN_LIMIT;
	start(r, p, run);
	for (u64 k = 0; k < max_insns && goes_on(r->c, why); k++) {
		before(arg, r->c);
		why = home_of(&r->spec)->step(r->c);
		after(arg, r->c);
	}
	return how(r, why);
}

const char *rig_end_name(enum rig_end e)
{
	static const char *const names[] = { "HLT", "shutdown", "no end", "left without an end" };
	return names[e];
}

/* ---- life ------------------------------------------------------------------------------------------------- */

struct rig *rig_new(struct world *w, const struct engine_spec *s, const char *model, struct error *e)
{
	struct rig *r = calloc(1, sizeof(*r));
	if (!r) {
		error_set(e, "out of memory");
		return NULL;
	}
	r->w = w;
	r->spec = *s;
	r->vector = -1;
	r->hooks.arg = r;
	r->hooks.int_ack = int_ack;
	r->hooks.triple_fault = triple_fault;
	if (!mem_init(&r->mem, RAM_BYTES, e) || !clock_init(&r->clock, false, e) ||
	    !cpu_model_parse(&r->model, model, &r->clock, e))
		return NULL;
	r->c = cpu_new(0, &r->mem, &r->clock, &r->model, &r->hooks);
	if (!r->c) {
		error_set(e, "no memory for a processor");
		return NULL;
	}
	return home_of(s)->vcpu_init(r->c, e) ? r : NULL;
}

void rig_free(struct rig *r)
{
	if (!r)
		return;
	home_of(&r->spec)->vcpu_destroy(r->c);
	cpu_free(r->c);
	clock_destroy(&r->clock);
	mem_destroy(&r->mem);
	free(r);
}
