/* String instructions of any length, in either direction: MOVS, STOS, LODS, SCAS and CMPS, by the host's own
 * instruction page by page. Segments are flat, and addresses as wide as the code's. An element that lies in two pages is
 * done in a copy. A REP can be interrupted between two pages. See gate.c; SDM vol. 2 REP. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("general-regs-only"))), apply_to = function)
#else
#pragma GCC target("general-regs-only")
#endif
#include "bt/gate.h"

struct string {
	const struct at *a;
	const u8 *gs;
	enum gate_string_op op;
	unsigned log, size;      /* of an element */
	bool rep, repne, down, wide;
};
/* Some elements that are together, forward or back from d and s; or one, in the copies. */
struct run { u8 *d; const u8 *s; u64 n; bool copied; u8 to[8], from[8]; };

static bool reads_source(const struct string *s) { return s->op == STRING_MOVS || s->op == STRING_LODS || s->op == STRING_CMPS; }
static bool has_destination(const struct string *s) { return s->op != STRING_LODS; }
static bool stores(const struct string *s) { return s->op == STRING_MOVS || s->op == STRING_STOS; }
static bool compares(const struct string *s) { return s->op == STRING_SCAS || s->op == STRING_CMPS; }

static u64 cut(const struct string *s, u64 v) { return s->wide ? v : (u32)v; }

/* Elements from lin on that lie in its page whole. */
static u64 in_page(const struct string *s, u64 lin)
{
	unsigned off = lin & PAGE_MASK;
	if (!s->down)
		return (4096 - off) >> s->log;
	return off + s->size <= 4096 ? (off >> s->log) + 1 : 0;
}

/* One element in two pages. */
static bool copy_in(const struct string *s, u64 lin, u8 *to)
{
	for (unsigned n = 0; n < s->size; n++) {
		const u8 *p = gate_reach(s->a, s->gs, cut(s, lin + n), false);
		if (!p)
			return false;
		to[n] = *(const volatile u8 *)p;
	}
	return true;
}
static void copy_out(const struct string *s, u64 lin, const u8 *from)
{
	for (unsigned n = 0; n < s->size; n++)
		*(volatile u8 *)gate_reach(s->a, s->gs, cut(s, lin + n), true) = from[n];
}

/* As many elements as can be done at once, at most `most`; false: none here. */
static bool place(const struct string *s, u64 src, u64 dst, u64 most, struct run *r)
{
	r->n = MIN(most, 4096u);
	if (reads_source(s))
		r->n = MIN(r->n, in_page(s, src));
	if (has_destination(s))
		r->n = MIN(r->n, in_page(s, dst));
	r->copied = !r->n;
	if (!r->copied) {
		r->s = reads_source(s) ? gate_reach(s->a, s->gs, src, false) : NULL;
		r->d = has_destination(s) ? gate_reach(s->a, s->gs, dst, stores(s)) : NULL;
		return (r->s || !reads_source(s)) && (r->d || !has_destination(s));
	}
	r->n = 1;
	r->s = r->from;
	r->d = r->to;
	if (reads_source(s) && !copy_in(s, src, r->from))
		return false;
	if (stores(s)) /* both pages, before either is changed */
		return gate_reach(s->a, s->gs, dst, true) && gate_reach(s->a, s->gs, cut(s, dst + s->size - 1), true);
	return !has_destination(s) || copy_in(s, dst, r->to);
}

#define HOST(insn) \
	do { \
		if (s->down) \
			__asm__ volatile("std\n\trep " insn "\n\tcld" : "+D"(d), "+S"(from), "+c"(left) : "a"(ax) : "memory"); \
		else \
			__asm__ volatile("rep " insn : "+D"(d), "+S"(from), "+c"(left) : "a"(ax) : "memory"); \
	} while (0)
/* Status flags to *flags as LAHF and SETO leave them. */
#define FLAGS "\n\tlahf\n\tseto %%al"
#define HOST_COMPARE(rep, insn) \
	do { \
		u64 v = ax; \
		if (s->down) \
			__asm__ volatile("std\n\t" rep " " insn "\n\tcld" FLAGS : "+D"(d), "+S"(from), "+c"(left), "+a"(v) : : "memory", "cc"); \
		else \
			__asm__ volatile(rep " " insn FLAGS : "+D"(d), "+S"(from), "+c"(left), "+a"(v) : : "memory", "cc"); \
		*flags = (u16)v; \
	} while (0)

/* Returns how many it was; a comparison ends early. */
static u64 move(const struct string *s, const struct run *r)
{
	u64 left = r->n, ax = s->a->c->regs[R_AX];
	u8 *d = r->d;
	const u8 *from = r->s;
	switch (s->log | (s->op == STRING_MOVS ? 4u : 0u)) {
	case 0: HOST("stosb"); break;
	case 1: HOST("stosw"); break;
	case 2: HOST("stosl"); break;
	case 3: HOST("stosq"); break;
	case 4: HOST("movsb"); break;
	case 5: HOST("movsw"); break;
	case 6: HOST("movsl"); break;
	default: HOST("movsq"); break;
	}
	return r->n;
}
static u64 compare(const struct string *s, const struct run *r, u16 *flags)
{
	u64 left = r->n, ax = s->a->c->regs[R_AX];
	u8 *d = r->d;
	const u8 *from = r->s;
	switch (s->log | (s->op == STRING_CMPS ? 4u : 0u) | (s->repne ? 8u : 0u)) {
	case 0: HOST_COMPARE("repe", "scasb"); break;
	case 1: HOST_COMPARE("repe", "scasw"); break;
	case 2: HOST_COMPARE("repe", "scasl"); break;
	case 3: HOST_COMPARE("repe", "scasq"); break;
	case 4: HOST_COMPARE("repe", "cmpsb"); break;
	case 5: HOST_COMPARE("repe", "cmpsw"); break;
	case 6: HOST_COMPARE("repe", "cmpsl"); break;
	case 7: HOST_COMPARE("repe", "cmpsq"); break;
	case 8: HOST_COMPARE("repne", "scasb"); break;
	case 9: HOST_COMPARE("repne", "scasw"); break;
	case 10: HOST_COMPARE("repne", "scasl"); break;
	case 11: HOST_COMPARE("repne", "scasq"); break;
	case 12: HOST_COMPARE("repne", "cmpsb"); break;
	case 13: HOST_COMPARE("repne", "cmpsw"); break;
	case 14: HOST_COMPARE("repne", "cmpsl"); break;
	default: HOST_COMPARE("repne", "cmpsq"); break;
	}
	return r->n - left;
}

/* The last one's value. */
static void load(const struct string *s, const struct run *r)
{
	u64 *ax = &s->a->c->regs[R_AX], back = (r->n - 1) << s->log;
	const u8 *p = s->down ? r->s - back : r->s + back;
	switch (s->log) {
	case 0: *ax = (*ax & ~0xffull) | *(const volatile u8 *)p; break;
	case 1: *ax = (*ax & ~0xffffull) | ld16(p); break;
	case 2: *ax = ld32(p); break;
	default: *ax = ld64(p); break;
	}
}

static u64 run_of(const struct string *s, const struct run *r)
{
	if (compares(s))
		return compare(s, r, &s->a->x->flags);
	if (!stores(s)) {
		load(s, r);
		return r->n;
	}
	return move(s, r);
}

/* Whether a REP ends here, by what was compared. */
static bool found(const struct string *s)
{
	bool equal = s->a->x->flags >> 8 & FL_ZF;
	return compares(s) && equal == s->repne;
}

static void advance(const struct string *s, u64 n)
{
	u64 *regs = s->a->c->regs, by = s->down ? -(n << s->log) : n << s->log;
	if (reads_source(s))
		regs[R_SI] = cut(s, regs[R_SI] + by);
	if (has_destination(s))
		regs[R_DI] = cut(s, regs[R_DI] + by);
	if (s->rep)
		regs[R_CX] = cut(s, regs[R_CX]) - n;
}

const u8 *gate_string(const struct at *a)
{
	struct cpu *c = a->c;
	unsigned arg = a->k->map[a->n].gate_arg;
	const struct string s = { .a = a, .gs = gate_table(), .op = arg >> GATE_OP, .log = arg & 3, .size = 1u << (arg & 3), .rep = arg & GATE_REP,
				  .repne = arg & GATE_REPNE, .down = c->rflags & FL_DF, .wide = a->k->page->mode == CODE64 };
	for (u64 left = s.rep ? cut(&s, c->regs[R_CX]) : 1; left;) {
		struct run r;
		u64 dst = cut(&s, c->regs[R_DI]);
		if (!place(&s, cut(&s, c->regs[R_SI]), dst, left, &r))
			return NULL;
		u64 n = run_of(&s, &r);
		if (r.copied && stores(&s))
			copy_out(&s, dst, r.to);
		advance(&s, n);
		left -= n;
		if (found(&s))
			break;
		if (left && __atomic_load_n(&a->x->kicked, __ATOMIC_RELAXED)) {
			a->x->exit = exit_id(a->k->index, a->n, X_KICK);
			return NULL;
		}
	}
	return gate_go_on(a);
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
