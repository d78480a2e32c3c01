/* Symbolic values of the verifier: see verify.h. Sums are kept sorted by atom, so that equal ones
 * are found by comparing. */
#include <string.h>

#include "bt/verify.h"

void syms_reset(struct syms *s)
{
	s->n_atoms = s->n_exprs = s->serial = 0;
	s->full = false;
	memset(s->atom_head, 0, sizeof(s->atom_head));
	memset(s->expr_head, 0, sizeof(s->expr_head));
}

static unsigned hash(u64 v) { return (unsigned)((v * 0x9e3779b97f4a7c15) >> 56); }

bool sym_expr_equal(const struct expr *a, const struct expr *b)
{
	if (a->konst != b->konst || a->n != b->n)
		return false;
	for (unsigned k = 0; k < a->n; k++)
		if (a->atom[k] != b->atom[k] || a->times[k] != b->times[k])
			return false;
	return true;
}

static sym intern(struct syms *s, const struct expr *x)
{
	u64 sum = x->konst;
	for (unsigned k = 0; k < x->n; k++)
		sum += (x->atom[k] + 1) * x->times[k] << 8;
	u16 *head = &s->expr_head[hash(sum)];
	for (unsigned k = *head; k; k = s->expr_next[k - 1])
		if (sym_expr_equal(&s->exprs[k - 1], x))
			return (sym)(k - 1);
	if (s->n_exprs == SYMS_MAX) {
		s->full = true;
		return 0;
	}
	s->exprs[s->n_exprs] = *x;
	s->expr_next[s->n_exprs] = *head;
	*head = s->n_exprs + 1;
	return s->n_exprs++;
}

sym sym_atom(struct syms *s, enum atom_kind kind, unsigned n, sym of, u32 at)
{
	u16 *head = &s->atom_head[hash(kind + n * 16 + of * 4096ull + (u64)at * 65537)];
	unsigned k = *head;
	while (k && (s->atoms[k - 1].kind != kind || s->atoms[k - 1].n != n || s->atoms[k - 1].of != of || s->atoms[k - 1].at != at))
		k = s->atom_next[k - 1];
	if (!k && s->n_atoms == SYMS_MAX) {
		s->full = true;
		k = 1;
	} else if (!k) {
		s->atoms[s->n_atoms] = (struct atom){ (u8)kind, (u8)n, of, at };
		s->atom_next[s->n_atoms] = *head;
		*head = s->n_atoms + 1;
		k = ++s->n_atoms;
	}
	return intern(s, &(struct expr){ .n = 1, .atom = { (u16)(k - 1) }, .times = { 1 } });
}

sym sym_fresh(struct syms *s) { return sym_atom(s, AT_FRESH, 0, SYM_NONE, ++s->serial); }
sym sym_const(struct syms *s, u64 v) { return intern(s, &(struct expr){ .konst = v }); }

sym sym_add(struct syms *s, sym a, sym b)
{
	const struct expr *x = &s->exprs[a], *y = &s->exprs[b];
	struct expr sum = { .konst = x->konst + y->konst };
	unsigned i = 0, j = 0;
	while (i < x->n || j < y->n) {
		u16 atom;
		u64 times = 0;
		if (j == y->n || (i < x->n && x->atom[i] <= y->atom[j]))
			atom = x->atom[i];
		else
			atom = y->atom[j];
		if (i < x->n && x->atom[i] == atom)
			times += x->times[i++];
		if (j < y->n && y->atom[j] == atom)
			times += y->times[j++];
		if (!times)
			continue;
		if (sum.n == TERMS)
			return sym_fresh(s);
		sum.atom[sum.n] = atom;
		sum.times[sum.n++] = times;
	}
	return intern(s, &sum);
}

sym sym_add_const(struct syms *s, sym a, u64 v)
{
	struct expr x = s->exprs[a];
	x.konst += v;
	return intern(s, &x);
}

sym sym_scale(struct syms *s, sym a, u64 times)
{
	struct expr x = s->exprs[a], y = { .konst = x.konst * times };
	for (unsigned k = 0; k < x.n; k++) {
		if (x.times[k] * times == 0)
			continue;
		y.atom[y.n] = x.atom[k];
		y.times[y.n++] = x.times[k] * times;
	}
	return intern(s, &y);
}

bool sym_is_const(const struct syms *s, sym a, u64 *v)
{
	if (s->exprs[a].n)
		return false;
	*v = s->exprs[a].konst;
	return true;
}

const struct atom *sym_single(const struct syms *s, sym a)
{
	const struct expr *x = &s->exprs[a];
	return x->n == 1 && x->times[0] == 1 && !x->konst ? &s->atoms[x->atom[0]] : NULL;
}

sym sym_low(struct syms *s, sym a, unsigned bits)
{
	u64 v;
	if (bits >= 64)
		return a;
	if (sym_is_const(s, a, &v))
		return sym_const(s, v & ((1ull << bits) - 1));
	const struct atom *t = sym_single(s, a);
	if (t && t->kind == AT_LOW)
		return t->n <= bits ? a : sym_atom(s, AT_LOW, bits, t->of, 0);
	if (t && t->kind == AT_WORD && bits >= 32)
		return a;
	return sym_atom(s, AT_LOW, bits, a, 0);
}

sym sym_ror(struct syms *s, sym a, unsigned n)
{
	return n ? sym_atom(s, AT_ROR, n, a, 0) : a;
}

sym sym_shl(struct syms *s, sym a, unsigned n)
{
	return sym_atom(s, AT_SHL, n, a, 0);
}

sym sym_shr(struct syms *s, sym a, unsigned n)
{
	return sym_atom(s, AT_SHR, n, a, 0);
}

sym sym_xor(struct syms *s, sym a, sym b)
{
	return sym_atom(s, AT_XOR, 0, a, b);
}

sym sym_sar(struct syms *s, sym a, unsigned n)
{
	const struct atom *t = sym_single(s, a);
	if (t && t->kind == AT_LOW && t->n <= n) /* not negative, and nothing is left: what the guest has cut itself */
		return sym_const(s, 0);
	return sym_atom(s, AT_SAR, n, a, 0);
}

sym sym_extend(struct syms *s, sym a, unsigned bits)
{
	const struct atom *t = sym_single(s, a);
	if (t && t->kind == AT_LOW && t->n < bits)
		return a;
	return sym_atom(s, AT_EXTEND, bits, a, 0);
}

sym sym_bit_word(struct syms *s, sym bit, unsigned width)
{
	const struct atom *t = sym_single(s, bit);
	if (t && t->kind == AT_LOW && t->n <= (width == 64 ? 6 : 5))
		return sym_const(s, 0);
	return width == 64 ? sym_scale(s, sym_sar(s, bit, 6), 8) : sym_scale(s, sym_sar(s, sym_extend(s, bit, 32), 5), 4);
}
