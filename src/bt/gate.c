/* The short way: instructions that translated code cannot do itself, but that are too frequent to leave
 * for. glue.c stores the general registers, calls gate_run(), and goes on where that says; vector and
 * x87 registers stay where they are.
 *
 * Invariants
 *  1. Nothing here touches a vector register: the file is compiled for the general ones, and calls
 *     nothing but what is inline.
 *  2. What is not the usual case has changed nothing, and goes to the interpreter: an exit as X_INSN.
 *  3. Guest memory is reached as translated code does it, by the space's entries: they lead to RAM only,
 *     and a host address outside of it is that of another page that shares the entry.
 *  4. From its call to `gate_tail` (glue.c) a kick sets ctx.kicked, which is looked at there. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("general-regs-only"))), apply_to = function)
#else
#pragma GCC target("general-regs-only")
#endif
#include "bt/gate.h"
#include "cpu/quick_api.h"

/* ---- ways on ---------------------------------------------------------------------------------------- */

/* The space for what the processor is now, if there is one. */
static struct space *space_known(struct bt *b)
{
	const struct cpu *c = b->cpu;
	struct space *s = space_near(b, c->mmu);
	for (unsigned k = 0; k < N_SPACES && !s; k++) {
		struct space *x = &b->spaces[k];
		if (x->epoch == c->epoch && x->mmu < N_MMU && x->user == (x->mmu == MMU_USER) && space_fits(b, x))
			b->near[x->mmu] = x;
	}
	return s ? s : space_near(b, c->mmu);
}

/* At c->rip, in another block, with c->rflags; privilege may have changed. */
static const u8 *go_to(const struct at *a)
{
	struct cpu *c = a->c;
	struct bt *b = a->b;
	a->x->flags = flags_pack(c->rflags);
	a->x->ac = (u32)c->rflags & FL_AC;
	a->x->target = c->rip;
	a->x->exit = exit_id(a->k->index, a->n, X_INDIRECT);
	if (atomic_load_explicit(&c->events, memory_order_seq_cst) & c->event_mask)
		a->x->kicked = 1;
	struct space *s = space_known(b);
	if (s)
		space_enter(b, s);
	else
		b->space = NULL; /* the run loop chooses */
	if (!s || c->slow) /* RF */
		return NULL;
	u32 n = (u32)(c->rip >> 2) & (N_JUMP - 1);
	return b->jump_tag[n] == c->rip ? b->jump_host[n] : NULL;
}

/* ---- privilege -------------------------------------------------------------------------------------- */

static const u8 *change_level(const struct at *a, enum gate g)
{
	struct cpu *c = a->c;
	u64 old = c->rflags;
	if (a->x->x87_last || a->x->x87_seg || (a->k->classes & X87_CLASSES))
		return NULL; /* FCS and FDS are yet to be told, of the selectors as they are */
	c->rflags = (flags_unpack(old, a->x->flags) & ~(u64)FL_AC) | a->x->ac;
	bool done = g == GATE_SYSCALL ? quick_syscall(c, a->k->lin + a->k->map[a->n + 1].guest) :
		    g == GATE_SYSRET ? quick_sysret(c, a->b->amd) : quick_iret(c);
	if (done)
		return go_to(a);
	c->rflags = old;
	return NULL;
}

/* To an address space of which translations are kept, as kernels do it whenever they change to another process. */
static const u8 *write_cr3(const struct at *a)
{
	struct cpu *c = a->c;
	u64 v = c->regs[a->k->map[a->n].gate_arg], to = v & ~(1ull << 63);
	u16 epoch = c->pcid_epoch[to & 0xfff];
	if (!(c->cr4 & CR4_PCIDE) || v == to || (to & ~c->maxphyaddr_mask) || !epoch || a->x->ac != ((u32)c->rflags & FL_AC))
		return NULL;
	c->cr3 = to;
	c->epoch = epoch;
	c->rflags = flags_unpack(c->rflags, a->x->flags);
	c->rip = a->k->lin + a->k->map[a->n + 1].guest;
	return go_to(a);
}

/* ---- registers ---------------------------------------------------------------------------------------- */

static const u8 *segment_base(const struct at *a, enum gate g)
{
	struct cpu *c = a->c;
	const struct insn *i = a->k->decoded ? &a->k->decoded[a->n] : NULL;
	if (!i || !i->len || !(c->cr4 & CR4_FSGSBASE))
		return NULL; /* the interpreter decodes it the first time */
	bool wide = i->opsz == 8;
	u64 *r = &c->regs[i->r], v = wide ? *r : (u32)*r;
	if (g == GATE_RDFSBASE || g == GATE_RDGSBASE) {
		v = g == GATE_RDFSBASE ? a->x->fs_base : a->x->gs_base;
		*r = wide ? v : (u32)v;
		return gate_go_on(a);
	}
	if (!cpu_address_valid(c, v))
		return NULL;
	if (g == GATE_WRFSBASE)
		a->x->fs_base = c->ebase[S_FS] = c->seg[S_FS].base = v;
	else
		a->x->gs_base = v; /* the rest on leaving (bt.c) */
	return gate_go_on(a);
}

static const u8 *pkru(const struct at *a, enum gate g)
{
	struct cpu *c = a->c;
	if (!(c->cr4 & CR4_PKE) || (u32)c->regs[R_CX])
		return NULL;
	if (g == GATE_WRPKRU)
		return !(u32)c->regs[R_DX] && (u32)c->regs[R_AX] == c->pkru ? gate_go_on(a) : NULL;
	c->regs[R_AX] = c->pkru;
	c->regs[R_DX] = 0;
	return gate_go_on(a);
}

/* ---- flags ----------------------------------------------------------------------------------------------- */

/* POPF of 32 and 64 bits, from a flat stack, that changes no more than status flags, DF and IF. */
static const u8 *popf(const struct at *a)
{
	struct cpu *c = a->c;
	unsigned n = a->k->map[a->n].gate_arg;
	u64 sp = n == 8 ? c->regs[R_SP] : (u32)c->regs[R_SP], may = FL_STATUS | FL_DF, others = FL_TF | FL_NT | FL_AC | FL_ID;
	const u8 *p = (sp & PAGE_MASK) + n <= 4096 ? gate_reach(a, gate_table(), sp, false) : NULL;
	if (!p || (c->rflags & FL_VM))
		return NULL;
	u64 v = n == 8 ? *(const volatile u64_any *)p : *(const volatile u32_any *)p, now = (c->rflags & ~(u64)FL_AC) | a->x->ac;
	if (c->cpl <= (c->rflags & FL_IOPL) >> 12)
		may |= FL_IF;
	if (!c->cpl)
		others |= FL_IOPL;
	if ((v ^ now) & others)
		return NULL;
	c->rflags = (c->rflags & ~may) | (v & may);
	a->x->flags = flags_pack(v);
	c->regs[R_SP] = n == 8 ? sp + 8 : (u32)sp + 4u;
	c->event_mask = (c->event_mask & ~c->if_events) | (c->rflags & FL_IF ? c->if_events : 0);
	if (atomic_load_explicit(&c->events, memory_order_seq_cst) & c->event_mask)
		a->x->kicked = 1;
	return gate_go_on(a);
}

/* ---- guest mode ------------------------------------------------------------------------------------------- */

static bool intercepted(const struct cpu *c, enum gate g)
{
	switch (g) {
	case GATE_CR3: return nested_wants(c, ICPT_CR_WRITE);
	case GATE_IRET: return nested_wants(c, ICPT_IRET);
	case GATE_POPF: return nested_wants(c, ICPT_POPF);
	default: return false;
	}
}

/* ---- all of it ------------------------------------------------------------------------------------------ */

const u8 *gate_run(struct bt *b)
{
	struct ctx *x = b->ctx;
	struct at a = { b, b->cpu, x, b->block_list[x->exit >> 10], x->exit >> 4 & 63 };
	enum gate g = a.k->map[a.n].gate;
	const u8 *to = NULL;
	if (unlikely(intercepted(b->cpu, g)))
		return NULL;
	switch (g) {
	case GATE_SYSCALL: case GATE_SYSRET: case GATE_IRET: to = change_level(&a, g); break;
	case GATE_CR3: to = write_cr3(&a); break;
	case GATE_STRING: to = gate_string(&a); break;
	case GATE_RDFSBASE: case GATE_RDGSBASE: case GATE_WRFSBASE: case GATE_WRGSBASE: to = segment_base(&a, g); break;
	case GATE_RDPKRU: case GATE_WRPKRU: to = pkru(&a, g); break;
	case GATE_POPF: to = popf(&a); break;
	case GATE_NONE: case N_GATES: break;
	}
	b->stats.gates[g] += to != NULL;
	return to;
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
