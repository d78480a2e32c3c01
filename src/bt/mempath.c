/* The memory path: how translated code reaches guest memory (DESIGN.md, "tagless").
 *
 *     lea  T, [ea]               the address
 *     test T, size - 1; jnz ...  it may cross into the next page
 *     rorx T, T, 12
 *     mov  T, gs:[T * 8]         the page's entry; 67h cuts the index to 29 bits
 *     test T, 1; jz ...          there is none
 *     op   reg, [base + T + disp - 1]
 *
 * An entry is host address - guest address + 1. Only T is needed: the operand's own registers are
 * still there to be added again. All this overwrites the status flags: where they are live they
 * have been moved to ctx.flags before (translate.c), and come back when something reads them. */
#include "bt/tr.h"

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
		t->cold[t->n_cold++] = (struct cold){ .site = site, .insn = (u8)k, .saved = t->saved, .kind = X_INSN };
	else
		t->e.full = true;
}

/* Not aligned, which is no crossing yet: look, and go back to after the jump. addr holds the address. */
void cold_unaligned(struct translation *t, u8 *site, unsigned k, unsigned addr, unsigned size)
{
	cold_add(t, site, k);
	if (t->e.full)
		return;
	struct cold *c = &t->cold[t->n_cold - 1];
	c->back = emit_here(&t->e);
	c->addr = (u8)addr;
	c->size = (u8)size;
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

void cold_emit(struct translation *t)
{
	struct emit *e = &t->out;
	for (unsigned n = 0; n < t->n_cold; n++) {
		struct cold *c = &t->cold[n];
		u8 *crosses = NULL;
		e_here32(e, c->site);
		if (c->back) {
			if (c->addr == T)
				e_ctx_store(e, T, M_CTX(save_t));
			else
				e_mov(e, T, c->addr);
			e_reg(e, 0x81, 4, T);                   /* and r11d, 0fffh */
			e32(e, 0xfff);
			e_reg(e, 0x81, 7, T);                   /* cmp r11d, 4096 - size */
			e32(e, 4096u - c->size);
			if (c->addr == T)
				e_ctx_load(e, T, M_CTX(save_t));
			crosses = e_jcc(e, CC_NBE);
			e_jmp_to(e, c->back);
			e_here32(e, crosses);
		}
		if (c->rcx)
			e_ctx_load(e, RCX, M_CTX(save_rcx));
		if (c->kind == X_INDIRECT) {
			if (c->addr != T)
				e_mov(e, T, c->addr);
			e_ctx_imm(e, M_CTX(exit), exit_id(t->index, c->insn, X_INDIRECT));
			e_jmp_to(e, t->b->lookup_miss);
			continue;
		}
		emit_exit(t, e, c->insn, c->kind, c->saved);
	}
}

/* ---- inline ------------------------------------------------------------------------------------ */

/* addr: T or another register that holds the address; T = its page's entry. */
static void entry_load(struct emit *e, unsigned addr, bool store)
{
	e_rorx(e, T, addr, 12);
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

/* A constant address. */
static void mem_constant(struct translation *t, unsigned k, u64 lin, bool store, struct enc *x)
{
	struct emit *e = &t->e;
	bool near = lin - 1 == (u64)(i64)(i32)(lin - 1);
	if (near) {
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

/* The address in T, or in the register returned; but for a base at home, which is yet to be added. */
static unsigned address(struct emit *e, const struct ea *a, bool *add_base)
{
	unsigned b = a->base, i = a->index;
	*add_base = false;
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

static struct marg seg_base(unsigned seg) { return seg == S_FS ? M_CTX(fs_base) : M_CTX(gs_base); }
static void add_ctx(struct emit *e, struct marg m) { e_mem(e, E_W | E_GS | 0x03, T, m); }

static void crossing_test(struct translation *t, unsigned k, const struct ea *a, unsigned addr, unsigned size)
{
	struct emit *e = &t->e;
	/* Recomputing is cheaper than a store and a load. */
	bool again = addr == T && !a->seg && !a->konst && (a->base == ENC_NONE || !at_home(a->base)) &&
		     (a->index == ENC_NONE || !at_home(a->index));
	if (addr != T)
		e_reg(e, 0x89, addr, T); /* mov r11d, addr */
	else if (!again)
		e_ctx_store(e, T, M_CTX(save_t));
	e_reg(e, 0x81, 4, T);
	e32(e, 0xfff);
	e_reg(e, 0x81, 7, T);
	e32(e, 4096u - size);
	if (addr == T && again)
		e_lea(e, T, (struct marg){ (u8)a->base, (u8)a->index, (u8)a->scale, a->disp });
	else if (addr == T)
		e_ctx_load(e, T, M_CTX(save_t));
	cold_add(t, e_jcc(e, CC_NBE), k);
}

/* The first of a group: T = the entry of the page that all of them are in. */
static void group_first(struct translation *t, unsigned k, unsigned base)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	e_lea(e, T, M_BASE(base, i->group_lo));
	e_reg(e, 0x81, 4, T);                   /* and r11d, 0fffh */
	e32(e, 0xfff);
	e_reg(e, 0x81, 7, T);                   /* cmp r11d, 4096 - span */
	e32(e, 4096u - i->group_span);
	cold_add(t, e_jcc(e, CC_NBE), k);
	cold_last(t)->kind = X_GROUP;
	if (i->group_lo) {
		e_lea(e, T, M_BASE(base, i->group_lo));
		base = T;
	}
	entry_load(e, base, i->group_store);
	cold_add(t, test_jump(e, T, 1, CC_Z), k);
}

void mem_operand(struct translation *t, unsigned k, const struct ea *a, unsigned size, bool store, enum crossing how,
		 unsigned spare, struct enc *x)
{
	struct emit *e = &t->e;
	bool add_base;
	x->mem = true;
	x->seg = 0;
	x->a32 = false;
	if (t->ins[k].group != GROUP_NONE) {
		if (t->ins[k].group == GROUP_FIRST)
			group_first(t, k, a->base);
		x->base = (u8)a->base;
		x->index = T;
		x->scale = 0;
		x->disp = a->disp - 1;
		return;
	}
	if (a->konst && !a->seg) {
		mem_constant(t, k, a->lin, store, x);
		return;
	}
	unsigned addr = address(e, a, &add_base);
	if (add_base)
		add_ctx(e, home_of(a->base));
	if (a->seg)
		add_ctx(e, seg_base(a->seg));
	if (how == BY_ALIGNMENT)
		cold_unaligned(t, test_jump(e, addr, (size == 10 ? 16 : size) - 1, CC_NZ), k, addr, size);
	else if (how == BY_TEST)
		crossing_test(t, k, a, addr, size);
	entry_load(e, addr, store);
	cold_add(t, test_jump(e, T, 1, CC_Z), k);
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
	x->disp = (a->konst ? (i32)a->lin : a->disp) - 1;
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
