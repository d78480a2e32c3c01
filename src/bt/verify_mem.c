/* The guest's memory and its code, as host instructions on a path reach them.
 *
 * A guest access is in order where its address is ENTRY + A - 1 with
 *   ENTRY  the page-table entry of A's page (or of the constant address A), loaded on this very
 *          path from the half that the access asks for, and found present
 *   A      such that all of its bytes lie in one page: a single one, or known to fit, or the
 *          instruction itself faults unless they are aligned
 * or WINDOW + A - 1 with A known to be in that window, or within WINDOW_REACH of an address that is (window.c).
 * In groups (insn_map.no_resume) ENTRY may be that of an address a known distance below A, from which on
 * all up to A's last byte are known to be in one page; it may have been in a slot of the context meanwhile.
 * Then it reaches the guest's RAM, or a multiple of MEM_ALIAS_STEP from there (bt.h), and nothing else. */
#include "bt/verify.h"

/* So many bytes from `of` lie in one page. */
static bool fits(const struct verifier *v, const struct path *p, sym of, u32 n)
{
	return path_fact(v, p, FACT_FITS, of, n);
}

/* ---- the block's own guest code ------------------------------------------------------------------------------ */

bool path_code_at(struct verifier *v, const struct path *p, const struct hinsn *h, unsigned *n)
{
	const struct block *k = v->k;
	if (h->mem < 0 || h->gs || !k->made_from || writes_operand(hinsn_memory(h)) || (h->zi.attributes & ZYDIS_ATTRIB_HAS_SEGMENT))
		return false;
	unsigned size = hinsn_memory(h)->size / 8u, off = (unsigned)(k->lin & PAGE_MASK), first = MIN(k->guest_bytes, 4096 - off);
	u64 at;
	if (!sym_is_const(&v->syms, path_address(v, p, hinsn_memory(h)), &at))
		return false;
	u64 in1 = at - (u64)(k->page->host + off), in2 = k->page2 ? at - (u64)k->page2->host : ~0ull;
	if (in1 < first && in1 + size <= first)
		*n = (unsigned)in1;
	else if (in2 < 15 && first + in2 + size <= k->guest_bytes)
		*n = first + (unsigned)in2;
	else
		return false;
	switch (h->zi.mnemonic) {
	case ZYDIS_MNEMONIC_CMP:
		return v->root == ROOT_CHECKED && h->zo[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && size <= 4;
	case ZYDIS_MNEMONIC_MOV: case ZYDIS_MNEMONIC_MOVSX: case ZYDIS_MNEMONIC_MOVSXD:
		return v->root == ROOT_INSN && v->g.known && gpr_number(&h->zo[0]) >= 0 && h->zo[0].size >= 32;
	default:
		return false;
	}
}

sym path_code(struct verifier *v, unsigned at, unsigned bytes, unsigned w)
{
	sym a = sym_atom(&v->syms, AT_CODE, bytes | (w == 64 ? 64 : 0), SYM_NONE, at);
	return w == 64 ? a : sym_low(&v->syms, a, 32);
}

/* ---- the guest's memory ----------------------------------------------------------------------------------- */

/* The host address is ENTRY + *a - 1, the entry that of *a's page, there, and from the right half. */
static bool through_entry(struct verifier *v, const struct path *p, const struct hinsn *h, sym host, bool write, sym *a, struct atom *entry)
{
	struct syms *s = &v->syms;
	const struct expr x = s->exprs[host];
	int found = -1;
	for (unsigned k = 0; k < x.n; k++) {
		u8 kind = s->atoms[x.atom[k]].kind;
		if (kind != AT_ENTRY && kind != AT_ENTRY_AT)
			continue;
		if (found >= 0 || x.times[k] != 1)
			return verify_bad(v, h->off, "an address with two entries");
		found = (int)k;
	}
	if (found < 0)
		return verify_bad(v, h->off, "an access that does not go through the page table");
	const struct atom e = *entry = s->atoms[x.atom[found]];
	if (e.kind == AT_ENTRY && e.n != write && !(e.n && v->shares)) /* who may store there may load */
		return verify_bad(v, h->off, "a %s through an entry for %s", write ? "store" : "load", write ? "loads" : "stores");
	if (!path_fact(v, p, FACT_PRESENT, x.atom[found], 0))
		return verify_bad(v, h->off, "an access through an entry that may not be there");
	sym sum = sym_const(s, x.konst + 1);
	for (unsigned k = 0; k < x.n; k++) {
		const struct atom y = s->atoms[x.atom[k]];
		if ((int)k != found)
			sum = sym_add(s, sum, sym_scale(s, sym_atom(s, y.kind, y.n, y.of, y.at), x.times[k]));
	}
	*a = sum;
	u64 lin;
	if (e.kind == AT_ENTRY_AT && (!sym_is_const(s, sum, &lin) || table_at(lin, write) != e.at))
		return verify_bad(v, h->off, "the entry at %#x is not that of the address", e.at);
	if (e.kind == AT_ENTRY && e.of != sum && !v->shares)
		return verify_bad(v, h->off, "the entry is not that of the address that is accessed");
	return true;
}

/* It is an address in window n, for certain: a constant, or it was looked at, or not far from one. */
static bool in_window(struct verifier *v, const struct path *p, sym a, unsigned n)
{
	struct syms *s = &v->syms;
	u64 which = v->b->window_of[n], x;
	if (n >= v->b->n_windows)
		return false;
	if (sym_is_const(s, a, &x) && x >> WINDOW_BITS == which)
		return true;
	for (unsigned k = 0; k < p->n_facts; k++) {
		const struct fact *f = &p->facts[k];
		if (f->kind != FACT_EQUAL || !sym_is_const(s, (sym)f->n, &x) || x != which)
			continue;
		const struct atom *high = sym_single(s, f->of);
		if (high && high->kind == AT_SHR && high->n == WINDOW_BITS && sym_is_const(s, sym_add(s, a, sym_scale(s, high->of, ~0ull)), &x) &&
		    x + WINDOW_REACH <= 2 * WINDOW_REACH)
			return true;
	}
	return false;
}

/* Whether the host address is WINDOW + *a - 1. *n: the window. */
static bool through_window(struct verifier *v, sym host, sym *a, unsigned *n)
{
	struct syms *s = &v->syms;
	const struct expr x = s->exprs[host];
	*a = sym_const(s, x.konst + 1);
	bool found = false;
	for (unsigned k = 0; k < x.n; k++) {
		const struct atom y = s->atoms[x.atom[k]];
		if (y.kind == AT_WINDOW && !found && x.times[k] == 1) {
			found = true;
			*n = y.n;
			continue;
		}
		*a = sym_add(s, *a, sym_scale(s, sym_atom(s, y.kind, y.n, y.of, y.at), x.times[k]));
	}
	return found;
}

bool path_guest_memory(struct verifier *v, const struct path *p, const struct hinsn *h, struct touch *t)
{
	const ZydisDecodedOperand *o = hinsn_memory(h);
	struct syms *s = &v->syms;
	if (h->zi.attributes & ZYDIS_ATTRIB_HAS_SEGMENT)
		return verify_bad(v, h->off, "a segment prefix on an access to guest memory");
	if (v->root != ROOT_INSN)
		return verify_bad(v, h->off, "an access to guest memory that no instruction asks for");
	bool write = writes_operand(o);
	if (write && v->k->made_from && v->k_insn + 1u < v->k->n)
		return verify_bad(v, h->off, "a store before the end of a block that checks itself");
	struct atom e;
	*t = (struct touch){ .size = (u8)(o->size / 8), .write = write, .read = reads_operand(o) };
	sym host = path_address(v, p, o);
	if (reaches_bits(&h->zi, h->zo)) {
		if (o->size < 32)
			return verify_bad(v, h->off, "a bit string of 16-bit words");
		host = sym_add(s, host, sym_bit_word(s, p->reg[gpr_number(&h->zo[1])], o->size));
	}
	unsigned window;
	if (through_window(v, host, &t->at, &window))
		return in_window(v, p, t->at, window) || verify_bad(v, h->off, "an address that may not be in window %u", window);
	if (!through_entry(v, p, h, host, write, &t->at, &e))
		return false;
	u64 lin;
	if (e.kind == AT_ENTRY_AT)
		return sym_is_const(s, t->at, &lin) && (lin & PAGE_MASK) + t->size <= 4096 ? true : verify_bad(v, h->off, "%u bytes that cross into the next page", t->size);
	u64 delta;
	if (e.of == t->at && sym_is_const(s, t->at, &lin) && (lin & PAGE_MASK) + t->size <= 4096)
		return true;
	if (!sym_is_const(s, sym_add(s, t->at, sym_scale(s, e.of, ~0ull)), &delta) || delta > 4096)
		return verify_bad(v, h->off, "the entry is not that of the address that is accessed");
	if (delta + t->size > 1 && !fits(v, p, e.of, (u32)delta + t->size) && !(h->aligned && !delta))
		return verify_bad(v, h->off, "%u bytes that may cross into the next page", t->size);
	return true;
}

/* STOS, MOVS: RCX times the operand, or once. */
bool path_string(struct verifier *v, struct path *p, const struct hinsn *h)
{
	struct syms *s = &v->syms;
	unsigned size = h->zi.operand_width / 8u;
	if (v->root != ROOT_INSN)
		return verify_bad(v, h->off, "a string instruction that no instruction asks for");
	if (v->k->made_from && v->k_insn + 1u < v->k->n)
		return verify_bad(v, h->off, "a string before the end of a block that checks itself");
	if (h->rep && !path_fact(v, p, FACT_AT_MOST, p->reg[RCX], 4096 / size))
		return verify_bad(v, h->off, "a string of more than a page");
	for (unsigned n = 0; n < h->string; n++) {
		unsigned r = n ? RSI : RDI;
		struct atom e;
		sym a;
		if (!through_entry(v, p, h, p->reg[r], n == 0, &a, &e))
			return false;
		if (e.kind != AT_ENTRY || e.of != a || e.n != (n == 0))
			return verify_bad(v, h->off, "a string that does not go through its page's entry");
		sym last = sym_add_const(s, h->rep ? sym_add(s, a, sym_scale(s, p->reg[RCX], size)) : sym_add_const(s, a, size), ~0ull);
		if (!path_fact(v, p, FACT_ZERO, sym_shr(s, sym_xor(s, last, a), 12), 0))
			return verify_bad(v, h->off, "a string that may cross into the next page");
		if (v->g.known && a != guest_start(v, r))
			return verify_bad(v, h->off, "a string elsewhere than the guest's");
		sym now = sym_fresh(s); /* the guest's address after it */
		p->reg[r] = sym_add(s, now, sym_add_const(s, sym_add(s, p->reg[r], sym_scale(s, a, ~0ull)), 0));
		p->out[r] = now;
		p->outs |= (u16)(1u << r);
	}
	if (v->g.known && !path_fact(v, p, FACT_CLEAR, p->rflags, FL_DF))
		return verify_bad(v, h->off, "a string whose direction was not looked at");
	if (h->rep) {
		p->reg[RCX] = p->out[RCX] = sym_fresh(s);
		p->outs |= 1u << RCX;
	}
	p->own++;
	p->at = h->off + h->len;
	return true;
}
