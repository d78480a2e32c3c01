/* The memory path: how translated code reaches guest memory (DESIGN.md, "tagless").
 *
 *     lea  T, [ea]               the address
 *     rorx T, T, 12              the page number, above it the place in the page
 *     cmp  T, gs:[limit]; ja ... so high in the page that it may cross into the next (a byte cannot)
 *     mov  T, gs:[T * 8]         the page's entry; 67h cuts the index to 29 bits
 *     test T, 1; jz ...          there is none
 *     op   reg, [base + T + disp - 1]
 *
 * An entry is host address - guest address + 1. Only T is needed: the operand's own registers are
 * still there to be added again. All this overwrites the status flags: where they are live they
 * have been moved to ctx.flags before (translate.c), and come back when something reads them.
 *
 * The first access of a group (group.c) does this for all of them, and leaves in T the host's address of its own,
 * but for its displacement; the others are op reg, [T + disp], after mov T, gs:[slot] where T was lost. */
#include "bt/tr.h"

#define SECONDS_MAX 4u /* of a block: each doubles the verifier's paths through a group */

bool mem_possible(const struct ea *a)
{
	if (a->konst)
		return !a->seg || a->lin - 1 == (u64)(i64)(i32)(a->lin - 1);
	return a->disp != INT32_MIN;
}

/* ---- out of line ----------------------------------------------------------------------------- */

void cold_add(struct translation *t, u8 *site, unsigned k)
{
	if (t->n_cold < ARRAY_LEN(t->cold))
		t->cold[t->n_cold++] = (struct cold){ .site = site, .insn = (u8)k, .saved = t->saved, .kind = X_INSN, .second = N_WINDOWS };
	else
		t->e.full = true;
}

/* RAX out of the way and back: in T, whose moves the processor makes for nothing. */
static void rax_away(struct emit *e, enum t_use t)
{
	if (t == T_FREE)
		e_mov(e, T, RAX);
	else
		e_ctx_store(e, RAX, M_CTX(save_rax));
}
static void rax_back(struct emit *e, enum t_use t)
{
	if (t == T_FREE)
		e_mov(e, RAX, T);
	else
		e_ctx_load(e, RAX, M_CTX(save_rax));
}
void flags_save(struct emit *e, enum t_use t)
{
	rax_away(e, t);
	e8(e, 0x9f);                            /* lahf */
	e8(e, 0x0f); e8(e, 0x90); e8(e, 0xc0);  /* seto al */
	e8(e, 0x66);
	e_mem(e, E_GS | 0x89, RAX, M_CTX(flags));
	rax_back(e, t);
}
void flags_restore(struct emit *e, enum t_use t)
{
	rax_away(e, t);
	e_mem(e, E_GS | 0x0fb7, RAX, M_CTX(flags));
	e8(e, 0x04); e8(e, 0x7f);               /* add al, 7fh: OF */
	e8(e, 0x9e);                            /* sahf */
	rax_back(e, t);
}

void emit_exit(struct translation *t, struct emit *e, unsigned k, enum exit_kind kind, bool saved)
{
	e_ctx_imm(e, M_CTX(exit), exit_id(t->index, k, kind));
	e_jmp_to(e, saved ? t->b->exit_saved : t->b->exit_common);
}

/* Jumps of one instruction that leave alike share what they lead to. */
static bool leaves_as(const struct cold *a, const struct cold *b)
{
	return a->second == N_WINDOWS && b->second == N_WINDOWS && a->insn == b->insn && a->kind == b->kind && a->saved == b->saved && a->rcx == b->rcx && a->addr == b->addr;
}

void cold_emit(struct translation *t)
{
	struct emit *e = &t->out;
	const u8 *at = NULL;
	for (unsigned n = 0; n < t->n_cold; n++) {
		const struct cold *c = &t->cold[n];
		if (n && leaves_as(c, c - 1)) {
			e_set32(e, c->site, at);
			continue;
		}
		at = emit_here(e);
		e_set32(e, c->site, at);
		if (c->rcx)
			e_ctx_load(e, RCX, M_CTX(save_rcx));
		if (c->second < N_WINDOWS) { /* T: what is above WINDOW_BITS */
			e_reg(e, E_W | 0x81, 7, T);              /* cmp */
			e32(e, t->b->window_of[c->second]);
			u8 *neither = e_jcc(e, CC_NZ);
			e_ctx_load(e, T, M_WINDOW(c->second));
			e_jmp_to(e, c->back);
			e_here32(e, neither);
		}
		if (c->kind == X_INDIRECT) {
			if (c->addr != T)
				e_mov(e, T, c->addr);
			e_ctx_imm(e, M_CTX(exit), exit_id(t->index, c->insn, X_INDIRECT));
			e_jmp_to(e, t->b->lookup_miss);
			continue;
		}
		if (t->map[c->insn].gate && c->kind == X_INSN)
			gate_emit(t, e, c->insn, c->saved);
		else
			emit_exit(t, e, c->insn, c->kind, c->saved);
	}
}

/* ---- inline ------------------------------------------------------------------------------------ */

void page_of(struct translation *t, unsigned k, unsigned to, unsigned addr, unsigned size, enum crossing how, enum exit_kind kind)
{
	struct emit *e = &t->e;
	e_rorx(e, to, addr, 12);
	if (how == NO_CROSSING)
		return;
	e_mem(e, E_W | E_GS | 0x3b, to, M_ABS(CTX(limit) + 8 * (i32)limit_of(size)));
	cold_add(t, e_jcc(e, CC_NBE), k);
	cold_last(t)->kind = (u8)kind;
}
/* T: a page number, then the page's entry. */
static void entry_load(struct emit *e, bool store)
{
	e_mem(e, E_W | E_GS | E_A32 | 0x8b, T, M_SIB(ENC_NONE, T, 3, store ? (i32)STORE_HALF : 0));
}
static void entry_load_at(struct emit *e, u64 lin, bool store)
{
	e_mem(e, E_W | E_GS | E_A32 | 0x8b, T, M_ABS((i32)table_at(lin, store)));
}
u8 *test_jump(struct emit *e, unsigned r, unsigned mask, enum cc cc)
{
	if (mask < 0x80) {
		e_reg(e, E_B | 0xf6, 0, r);
		e8(e, mask);
	} else {
		e_reg(e, 0xf7, 0, r);
		e32(e, mask);
	}
	return e_jcc(e, cc);
}

static struct marg seg_base(unsigned seg) { return seg == S_FS ? M_CTX(fs_base) : M_CTX(gs_base); }
static void add_ctx(struct emit *e, struct marg m) { e_mem(e, E_W | E_GS | 0x03, T, m); }

/* The address is in window n; T: that window. addr: a register, or T. */
static void window_load(struct translation *t, unsigned k, unsigned addr, unsigned n, bool by_sp)
{
	struct emit *e = &t->e;
	u32 which = t->b->window_of[n];
	if (addr != T)
		e_mov(e, T, addr);
	e_reg(e, E_W | 0xc1, 5, T);                      /* shr */
	e8(e, WINDOW_BITS);
	e_reg(e, E_W | 0x81, 7, T);                      /* cmp */
	if (!by_sp)
		t->map[k].window_at = (u16)(e->p - t->start);
	e32(e, which);
	cold_add(t, e_jcc(e, CC_NZ), k);
	cold_last(t)->kind = X_WINDOW;
	e_ctx_load(e, T, M_WINDOW(n));
	if (!by_sp && t->ins[k].window_second < N_WINDOWS && t->n_seconds < SECONDS_MAX) {
		t->n_seconds++;
		t->map[k].window_two = true;
		cold_last(t)->second = t->ins[k].window_second;
		cold_last(t)->back = emit_here(e);
	}
}

/* A constant address. */
static void mem_constant(struct translation *t, unsigned k, u64 lin, bool store, struct enc *x)
{
	struct emit *e = &t->e;
	bool near = lin - 1 == (u64)(i64)(i32)(lin - 1);
	unsigned window = t->ins[k].window;
	if (window < N_WINDOWS && near) {
		e_ctx_load(e, T, M_WINDOW(window));
	} else if (window < N_WINDOWS) {
		e_const(e, T, lin - 1);
		add_ctx(e, M_WINDOW(window));
	} else if (near) {
		entry_load_at(e, lin, store);
		cold_add(t, test_jump(e, T, 1, CC_Z), k);
	} else { /* T = lin - 1 + entry; without an entry its lowest bit is lin - 1's */
		e_const(e, T, lin - 1);
		e_mem(e, E_W | E_GS | E_A32 | 0x03, T, M_ABS((i32)table_at(lin, store)));
		cold_add(t, test_jump(e, T, 1, lin & 1 ? CC_Z : CC_NZ), k);
	}
	x->base = T;
	x->index = ENC_NONE;
	x->disp = near ? (i32)(lin - 1) : 0;
}

/* T = the address of the word that a bit number says. With base and index in the host's registers. */
static void address_of_bit(struct emit *e, const struct ea *a)
{
	bool wide = a->bits == 64;
	unsigned r = a->bit;
	if (at_home(r)) {
		e_ctx_load(e, T, home_of(r));
		r = T;
	}
	if (!wide)
		e_reg(e, E_W | 0x63, T, r);     /* movsxd */
	else if (r != T)
		e_mov(e, T, r);
	e_reg(e, E_W | 0xc1, 7, T);             /* sar */
	e8(e, wide ? 6 : 5);
	e_lea(e, T, (struct marg){ (u8)(a->konst ? ENC_NONE : a->base), T, wide ? 3 : 2, a->konst ? (i32)a->lin : a->disp });
	if (!a->konst && a->index != ENC_NONE)
		e_lea(e, T, M_SIB(T, a->index, a->scale, 0));
}

/* The address in T, or in the register returned; but for a base at home, which is yet to be added. */
static unsigned address(struct emit *e, const struct ea *a, bool *add_base)
{
	unsigned b = a->base, i = a->index;
	*add_base = false;
	if (a->bits) {
		address_of_bit(e, a);
		return T;
	}
	if (a->konst) {
		e_const(e, T, a->lin);
		return T;
	}
	if (b != ENC_NONE && i == ENC_NONE && !a->disp && !a->seg && !at_home(b))
		return b;
	if (i != ENC_NONE && at_home(i)) {
		e_ctx_load(e, T, home_of(i));
		bool plain = b != ENC_NONE && !at_home(b);
		e_lea(e, T, M_SIB(plain ? b : ENC_NONE, T, a->scale, a->disp));
		*add_base = b != ENC_NONE && !plain;
	} else if (b != ENC_NONE && at_home(b)) {
		e_ctx_load(e, T, home_of(b));
		if (a->disp || i != ENC_NONE)
			e_lea(e, T, M_SIB(T, i, a->scale, a->disp));
	} else {
		e_lea(e, T, (struct marg){ (u8)b, (u8)i, (u8)a->scale, a->disp });
	}
	return T;
}

bool mem_offset(struct translation *t, const struct ea *a, struct marg to)
{
	bool add_base;
	if (a->konst && a->lin == (u64)(i64)(i32)a->lin) {
		e_mem(&t->e, E_W | E_GS | 0xc7, 0, to);
		e32(&t->e, (u32)a->lin);
		return true;
	}
	unsigned r = address(&t->e, a, &add_base);
	e_ctx_store(&t->e, r, to);
	return !add_base;
}

/* The registers and the segment's base are added to T, but for what x still names. */
static void add_parts(struct translation *t, unsigned k, const struct ea *a, unsigned spare, struct enc *x)
{
	struct emit *e = &t->e;
	unsigned b = a->konst ? ENC_NONE : a->base, i = a->konst ? ENC_NONE : a->index;
	if (a->seg)
		add_ctx(e, seg_base(a->seg));
	if (b != ENC_NONE && at_home(b)) {
		add_ctx(e, home_of(b));
		b = ENC_NONE;
	}
	if (i != ENC_NONE && at_home(i)) {
		mark_commit(t, k);
		e_ctx_store(e, spare, M_CTX(save_v));
		e_ctx_load(e, spare, home_of(i));
		e_lea(e, T, M_SIB(T, spare, a->scale, 0));
		e_ctx_load(e, spare, M_CTX(save_v));
		i = ENC_NONE;
	}
	if (b != ENC_NONE && i != ENC_NONE) {
		e_lea(e, T, M_SIB(T, b, 0, 0));
		b = ENC_NONE;
	}
	if (b != ENC_NONE) {
		x->base = (u8)b;
		x->index = T;
		x->scale = 0;
	} else {
		x->base = T;
		x->index = (u8)i;
		x->scale = (u8)a->scale;
	}
}

/* The first of a group: T is what the others are relative to. */
static void group_found(struct translation *t, unsigned k, struct enc *x)
{
	struct emit *e = &t->e;
	if (x->base != T || x->index != ENC_NONE)
		e_lea(e, T, (struct marg){ x->base, x->index, x->scale, 0 });
	x->base = T;
	x->index = ENC_NONE;
	if (t->ins[k].group_slotted)
		e_ctx_store(e, T, M_GROUP(t->ins[k].group_slot));
}

static void group_member(struct translation *t, unsigned k, struct enc *x)
{
	const struct tins *i = &t->ins[k];
	if (i->group_slotted)
		e_ctx_load(&t->e, T, M_GROUP(i->group_slot));
	x->base = T;
	x->index = ENC_NONE;
	x->disp = i->group_disp;
}

/* The lowest address of a group, of which *a is the first. */
static struct ea group_lowest(const struct tins *i, const struct ea *a)
{
	struct ea low = *a;
	if (a->konst)
		low.lin += (u64)(i64)i->group_lo;
	else
		low.disp += i->group_lo;
	return low;
}

void mem_operand(struct translation *t, unsigned k, const struct ea *a, unsigned size, bool store, enum crossing how,
		 unsigned spare, struct enc *x)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	bool add_base, first = i->group == GROUP_FIRST;
	x->mem = true;
	x->seg = 0;
	x->a32 = false;
	if (i->group == GROUP_MEMBER) {
		group_member(t, k, x);
		return;
	}
	if (a->konst && !a->seg && !a->bits) {
		mem_constant(t, k, a->lin, store, x);
		return;
	}
	unsigned window = a->bits ? N_WINDOWS : by_sp(i, a) ? i->window_stack : i->window;
	struct ea low = first && window == N_WINDOWS ? group_lowest(i, a) : *a;
	unsigned addr = address(e, &low, &add_base);
	if (add_base)
		add_ctx(e, home_of(a->base));
	if (a->seg)
		add_ctx(e, seg_base(a->seg));
	if (window < N_WINDOWS) {
		window_load(t, k, addr, window, by_sp(i, a));
	} else {
		if (first)
			page_of(t, k, T, addr, i->group_span, i->group_span > 1 ? MAY_CROSS : NO_CROSSING, X_GROUP);
		else
			page_of(t, k, T, addr, size, how, X_INSN);
		entry_load(e, first ? i->group_store : store);
		cold_add(t, test_jump(e, T, 1, CC_Z), k);
	}
	add_parts(t, k, a, spare, x);
	x->disp = (a->konst ? (i32)a->lin : a->disp) - 1;
	if (first)
		group_found(t, k, x);
}
