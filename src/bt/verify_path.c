/* One host instruction on a path: what it does to symbolic values, and whether it may.
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
#include <string.h>

#include "bt/verify.h"

/* ---- facts --------------------------------------------------------------------------------------- */

void path_add_fact(struct path *p, enum fact_kind kind, sym of, u32 n)
{
	if (p->n_facts < FACTS)
		p->facts[p->n_facts++] = (struct fact){ (u8)kind, of, n };
}

bool path_fact(const struct verifier *v, const struct path *p, enum fact_kind kind, sym of, u32 n)
{
	(void)v;
	for (unsigned k = 0; k < p->n_facts; k++) {
		const struct fact *f = &p->facts[k];
		if (f->kind != kind || f->of != of)
			continue;
		if (kind == FACT_FITS ? f->n >= n : kind == FACT_AT_MOST ? f->n <= n : f->n == n)
			return true;
	}
	return false;
}

/* So many bytes from `of` lie in one page. */
static bool fits(const struct verifier *v, const struct path *p, sym of, u32 n)
{
	return path_fact(v, p, FACT_FITS, of, n);
}

/* The entry's lowest bit is in the lowest bit of this value: it, or NULL. odd: the other parts are. */
static const struct atom *parity_of_entry(const struct verifier *v, sym a, bool *odd, sym *entry)
{
	const struct expr *x = &v->syms.exprs[a];
	if (x->n != 1 || x->times[0] != 1)
		return NULL;
	const struct atom *t = &v->syms.atoms[x->atom[0]];
	*odd = x->konst & 1;
	*entry = x->atom[0];
	return t->kind == AT_ENTRY || t->kind == AT_ENTRY_AT ? t : NULL;
}

/* The guest's code is, from a byte of the block on, what it was compared with: is that what the block was
 * made from? */
static void code_seen(const struct verifier *v, struct path *p)
{
	unsigned at = p->test.of, n = p->test.n >> 32;
	u32 value = (u32)p->test.n;
	if (!memcmp(v->k->made_from + at, &value, n)) /* little-endian */
		p->code |= ((1ull << n) - 1) << at;
}

void path_condition(struct verifier *v, struct path *p, ZydisMnemonic m, bool taken)
{
	bool zero;
	if (m == ZYDIS_MNEMONIC_JZ)
		zero = taken;
	else if (m == ZYDIS_MNEMONIC_JNZ)
		zero = !taken;
	else if (p->test.kind == TEST_EQUAL && (m == ZYDIS_MNEMONIC_JNBE || m == ZYDIS_MNEMONIC_JBE)) {
		u64 most;
		if ((m == ZYDIS_MNEMONIC_JNBE) == taken || !sym_is_const(&v->syms, (sym)p->test.n, &most))
			return;
		const struct atom *t = sym_single(&v->syms, p->test.of);
		if (t && t->kind == AT_ROR && t->n == 12) /* the upper bits are the place in the page */
			path_add_fact(p, FACT_FITS, t->of, 4096 - (u32)(most >> 52));
		else if (most <= INT32_MAX)
			path_add_fact(p, FACT_AT_MOST, p->test.of, (u32)most);
		return;
	} else {
		return;
	}
	if (p->test.kind == TEST_CODE && zero)
		code_seen(v, p);
	if (p->test.kind == TEST_CMP && zero)
		path_add_fact(p, FACT_ZERO, sym_low(&v->syms, sym_add_const(&v->syms, p->test.of, -p->test.n), 32), 0);
	if (p->test.kind == TEST_EQUAL && zero)
		path_add_fact(p, FACT_EQUAL, p->test.of, (u32)p->test.n);
	if (p->test.kind == TEST_TAG && zero)
		path_add_fact(p, FACT_TAG, p->test.of, (u32)p->test.n);
	if (p->test.kind != TEST_AND)
		return;
	u64 mask = p->test.n;
	if (mask == ~0ull) {
		const struct atom *a = sym_single(&v->syms, p->test.of);
		path_add_fact(p, zero ? FACT_ZERO : FACT_NOT_ZERO, p->test.of, 0);
		if (!zero && a && a->kind == AT_ENTRY) /* entries are 0 or there */
			path_add_fact(p, FACT_PRESENT, v->syms.exprs[p->test.of].atom[0], 0);
		return;
	}
	if (zero)
		path_add_fact(p, FACT_CLEAR, p->test.of, (u32)mask);
	bool odd;
	sym entry;
	if (mask == 1 && parity_of_entry(v, p->test.of, &odd, &entry) && odd == zero)
		path_add_fact(p, FACT_PRESENT, entry, 0);
}

/* ---- addresses ---------------------------------------------------------------------------------------- */

static sym reg_of(struct verifier *v, const struct path *p, ZydisRegister r)
{
	return r == ZYDIS_REGISTER_NONE ? sym_const(&v->syms, 0) : p->reg[ZydisRegisterGetId(r) & 15];
}

static sym address_of(struct verifier *v, const struct path *p, const ZydisDecodedOperand *o)
{
	sym a = sym_add(&v->syms, reg_of(v, p, o->mem.base), sym_scale(&v->syms, reg_of(v, p, o->mem.index), o->mem.scale ? o->mem.scale : 1));
	return sym_add_const(&v->syms, a, (u64)o->mem.disp.value);
}

static const ZydisDecodedOperand *memory(const struct hinsn *h) { return &h->zo[h->mem]; }

/* ---- the block's own guest code ------------------------------------------------------------------------------ */

/* The operand is some of it, in one of its pages, by the host's address: from which byte of the block on. */
static bool code_at(struct verifier *v, const struct path *p, const struct hinsn *h, unsigned *n)
{
	const struct block *k = v->k;
	if (h->mem < 0 || h->gs || !k->made_from || writes_operand(memory(h)) || (h->zi.attributes & ZYDIS_ATTRIB_HAS_SEGMENT))
		return false;
	unsigned size = memory(h)->size / 8u, off = (unsigned)(k->lin & PAGE_MASK), first = MIN(k->guest_bytes, 4096 - off);
	u64 at;
	if (!sym_is_const(&v->syms, address_of(v, p, memory(h)), &at))
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

static bool guest_memory(struct verifier *v, const struct path *p, const struct hinsn *h, struct touch *t)
{
	const ZydisDecodedOperand *o = memory(h);
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
	sym host = address_of(v, p, o);
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
static bool string_memory(struct verifier *v, struct path *p, const struct hinsn *h)
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

static bool cpl0(const struct verifier *v) { return v->k->page->cpl == 0; }

/* ---- the space: context, ok slots, page table ---------------------------------------------------------------- */

static const struct { i32 at; u8 slot; } slots[] = {
	{ CTX(home11), SL_HOME11 }, { CTX(home15), SL_HOME15 }, { CTX(save_rax), SL_RAX }, { CTX(save_rcx), SL_RCX },
	{ CTX(save_v), SL_V }, { CTX(save_t), SL_T }, { CTX(target), SL_TARGET }, { CTX(gs_base), SL_GS }, { CTX(kernel_gs_base), SL_KERNEL_GS },
};
static int slot_at(i64 disp)
{
	for (unsigned k = 0; k < ARRAY_LEN(slots); k++)
		if (slots[k].at == disp)
			return slots[k].slot;
	for (unsigned k = 0; k < N_SLOTS - SL_GROUP; k++)
		if (disp == CTX(group) + 8 * (i64)k)
			return SL_GROUP + (int)k;
	return -1;
}

/* A load of 8 bytes under 67h: a page-table entry. */
static bool table_load(struct verifier *v, const struct path *p, const struct hinsn *h, sym *value)
{
	const ZydisDecodedOperand *o = memory(h);
	struct syms *s = &v->syms;
	if (o->size != 64 || writes_operand(o))
		return verify_bad(v, h->off, "the page table is only read, and by whole entries");
	if (o->mem.base == ZYDIS_REGISTER_NONE && o->mem.index == ZYDIS_REGISTER_NONE) {
		u32 at = (u32)o->mem.disp.value;
		if (at & 7)
			return verify_bad(v, h->off, "part of an entry");
		/* The same place is an entry for loads and, of another address, for stores: which it is here
		 * the access will say. */
		*value = sym_atom(s, AT_ENTRY_AT, 2, ++s->serial, at);
		return true;
	}
	if (o->mem.base != ZYDIS_REGISTER_NONE || o->mem.scale != 8 || ZydisRegisterGetClass(o->mem.index) != ZYDIS_REGCLASS_GPR32)
		return verify_bad(v, h->off, "a table entry that is not [index * 8]");
	const struct atom *index = sym_single(s, reg_of(v, p, o->mem.index));
	if (!index || index->kind != AT_ROR || index->n != 12)
		return verify_bad(v, h->off, "a table entry by what is no page number");
	u32 disp = (u32)o->mem.disp.value;
	if (disp != 0 && disp != STORE_HALF)
		return verify_bad(v, h->off, "a table entry in neither half");
	*value = sym_atom(s, AT_ENTRY, disp == STORE_HALF, index->of, ++s->serial);
	return true;
}

/* Of the jump cache: a tag to compare with, or, once that is known to be right, the host's address. */
bool path_jump_load(struct verifier *v, const struct path *p, const struct hinsn *h, sym *value)
{
	const ZydisDecodedOperand *o = memory(h);
	struct syms *s = &v->syms;
	sym index = reg_of(v, p, o->mem.index);
	const struct atom *a = sym_single(s, index), *of;
	if (h->zi.address_width != 64 || o->size != 64 || writes_operand(o) || o->mem.base != ZYDIS_REGISTER_NONE || o->mem.scale != 8 || !a || a->kind != AT_LOW || a->n != 16 ||
	    !(of = sym_single(s, a->of)) || of->kind != AT_ROR || of->n != 2)
		return verify_bad(v, h->off, "a computed address in the space that is no place of the jump cache");
	if (o->mem.disp.value == JUMP_TAG_AT && h->zi.mnemonic == ZYDIS_MNEMONIC_CMP) {
		*value = index;
		return true;
	}
	if (o->mem.disp.value != JUMP_HOST_AT || (h->zi.mnemonic != ZYDIS_MNEMONIC_MOV && h->zi.mnemonic != ZYDIS_MNEMONIC_JMP) || !path_fact(v, p, FACT_TAG, of->of, index))
		return verify_bad(v, h->off, "the jump cache, but not for an address that is known to be in it");
	*value = sym_atom(s, AT_JUMP, 0, of->of, 0);
	return true;
}

/* The value of the operand gs:[...] that is read. */
static bool space_load(struct verifier *v, struct path *p, const struct hinsn *h, sym *value)
{
	const ZydisDecodedOperand *o = memory(h);
	i64 disp = o->mem.disp.value;
	if (h->zi.address_width == 32)
		return table_load(v, p, h, value);
	if (o->mem.base != ZYDIS_REGISTER_NONE || o->mem.index != ZYDIS_REGISTER_NONE)
		return path_jump_load(v, p, h, value);
	int n = slot_at(disp);
	i64 limit = disp - CTX(limit);
	if (o->size == 64 && limit >= 0 && limit < (i64)sizeof(v->b->ctx->limit) && !(limit & 7))
		*value = sym_const(&v->syms, limit_value((unsigned)limit / 8));
	else if (o->size == 16 && disp == CTX(flags)) {
		*value = sym_fresh(&v->syms);
		p->loads_flags = true;
	} else if (o->size == 8 && (disp == CTX(flags) || disp == CTX(flags) + 1))
		*value = sym_fresh(&v->syms);
	else if (o->size == 64 && disp >= WINDOW_AT && disp < WINDOW_AT + 8 * N_WINDOWS && !(disp & 7))
		*value = sym_atom(&v->syms, AT_WINDOW, (unsigned)(disp - WINDOW_AT) / 8, SYM_NONE, 0);
	else if (o->size == 64 && n >= 0)
		*value = p->slot[n];
	else if ((n == SL_HOME11 || n == SL_HOME15) && o->size < 64)
		*value = o->size == 32 ? sym_low(&v->syms, p->slot[n], 32) : sym_fresh(&v->syms);
	else if (o->size == 64 && disp == CTX(fs_base))
		*value = sym_atom(&v->syms, AT_SEGMENT, S_FS, SYM_NONE, 0);
	else if (o->size == 64 && disp == CTX(cpu))
		*value = sym_atom(&v->syms, AT_CPU, 0, SYM_NONE, 0);
	else if (o->size == 64 && (disp == CTX(gs_ac[0]) || disp == CTX(gs_ac[1])))
		*value = sym_atom(&v->syms, AT_SPACE, disp == CTX(gs_ac[1]), SYM_NONE, 0);
	else if (v->legacy && o->size == 32 && disp >= CTX(seg_base) && disp < CTX(seg_base) + 64 && !((disp - CTX(seg_base)) & 7))
		*value = sym_atom(&v->syms, AT_SEGMENT, 32 + (unsigned)(disp - CTX(seg_base)) / 8, SYM_NONE, 0);
	else if (v->legacy && ((o->size == 64 && disp >= CTX(seg_end) && disp < CTX(seg_end) + 128 && !((disp - CTX(seg_end)) & 7)) || (o->size == 32 && disp == CTX(target))))
		*value = sym_fresh(&v->syms);
	else if ((o->size == 64 && (disp == CTX(tsc_offset) || disp == CTX(tsc_aux))) || (o->size == 32 && disp == CTX(ac)))
		*value = sym_fresh(&v->syms);
	else if (o->size == 32 && (disp == CTX(units_off) || disp == CTX(x87_off) || (disp >= OK_AT && disp < OK_AT + (i64)N_OK * 4 && !(disp & 3))))
		*value = sym_atom(&v->syms, AT_WORD, 0, SYM_NONE, (u32)disp);
	else
		return verify_bad(v, h->off, "reads %u bits at gs:[%ld], which is nothing that a block may read", o->size, (long)disp);
	return true;
}

static bool x87_store(struct verifier *v, struct path *p, const struct hinsn *h, i64 disp);

static bool space_store(struct verifier *v, struct path *p, const struct hinsn *h)
{
	const ZydisDecodedOperand *o = memory(h), *from = &h->zo[1];
	i64 disp = o->mem.disp.value;
	if (v->root == ROOT_INSN && guest_is_own(v, h)) { /* a register at home */
		sym *home = &p->slot[slot_at(disp)];
		u64 by = from->type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? from->imm.value.u : 0;
		bool sum = o->size == 64 && from->type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
		if (sum && h->zi.mnemonic == ZYDIS_MNEMONIC_ADD)
			*home = sym_add_const(&v->syms, *home, by);
		else if (sum && h->zi.mnemonic == ZYDIS_MNEMONIC_SUB)
			*home = sym_add_const(&v->syms, *home, -by);
		else if (o->size == 64 && h->zi.mnemonic == ZYDIS_MNEMONIC_INC)
			*home = sym_add_const(&v->syms, *home, 1);
		else if (o->size == 64 && h->zi.mnemonic == ZYDIS_MNEMONIC_DEC)
			*home = sym_add_const(&v->syms, *home, ~0ull);
		else
			*home = sym_fresh(&v->syms);
		return true;
	}
	bool or_target = h->zi.mnemonic == ZYDIS_MNEMONIC_OR && disp == CTX(target) && h->zo[1].type == ZYDIS_OPERAND_TYPE_REGISTER;
	if (h->zi.mnemonic != ZYDIS_MNEMONIC_MOV && !or_target)
		return verify_bad(v, h->off, "writes to the space by another way than MOV");
	if (h->zi.address_width != 64 || o->mem.base != ZYDIS_REGISTER_NONE || o->mem.index != ZYDIS_REGISTER_NONE)
		return verify_bad(v, h->off, "writes to a computed address in the space");
	if (o->size == 32 && disp == CTX(exit) && from->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
		p->exit = (u32)from->imm.value.u;
		p->exit_set = true;
		p->foreign_exit = false;
		return true;
	}
	if (o->size == 32 && disp == CTX(ac) && from->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && cpl0(v) &&
	    ((u32)from->imm.value.u == 0 || (u32)from->imm.value.u == FL_AC)) {
		p->dirty = true;
		p->ac = from->imm.value.u != 0;
		return true;
	}
	if (o->size == 16 && disp == CTX(flags) && gpr_number(from) == RAX) {
		p->ctx_flags = p->packing == 2 && p->reg[RAX] == p->packed;
		p->kept = true;
		return true;
	}
	if (disp == CTX(x87_last) || disp == CTX(x87_seg) || disp == CTX(fdp))
		return x87_store(v, p, h, disp);
	int n = slot_at(disp);
	if ((n == SL_GS || n == SL_KERNEL_GS) && !cpl0(v))
		return verify_bad(v, h->off, "changes a GS base outside of the kernel");
	bool imm = from->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && (n == SL_HOME11 || n == SL_HOME15);
	if (n >= 0 && o->size == 64 && imm) {
		p->slot[n] = sym_const(&v->syms, from->imm.value.u);
		return true;
	}
	if (n < 0 || o->size != 64 || gpr_number(from) < 0)
		return verify_bad(v, h->off, "writes %u bits at gs:[%ld], which is nothing that a block may write", o->size, (long)disp);
	p->slot[n] = or_target ? sym_fresh(&v->syms) : p->reg[gpr_number(from)];
	return true;
}

/* What x87.c keeps of the instruction that has just run. */
static bool x87_store(struct verifier *v, struct path *p, const struct hinsn *h, i64 disp)
{
	const ZydisDecodedOperand *o = memory(h), *from = &h->zo[1];
	u16 fop = v->root == ROOT_INSN ? v->k->map[v->k_insn].fop : 0;
	bool imm = from->type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
	u64 value = imm ? from->imm.value.u : 0;
	if (h->zi.mnemonic != ZYDIS_MNEMONIC_MOV || o->size != (disp == CTX(fdp) ? 64 : 32) || !(fop & FOP_X87) || ((v->g.known || v->g.x87) && !p->own))
		return verify_bad(v, h->off, "x87 pointers that are not the instruction's to write");
	if (disp == CTX(x87_last)) {
		p->x87 |= X87_LAST;
		return (imm && (u32)value == exit_id(v->k->index, v->k_insn, X_INSN)) || verify_bad(v, h->off, "FIP of another instruction");
	}
	if (disp == CTX(x87_seg)) {
		p->x87 |= X87_SEG;
		return (imm && (fop & FOP_MEM) && value == (8u | (fop >> FOP_SEG & 7))) || verify_bad(v, h->off, "FDS of another segment");
	}
	p->x87 |= X87_FDP;
	sym s = imm ? sym_const(&v->syms, value) : gpr_number(from) >= 0 ? p->reg[gpr_number(from)] : SYM_NONE;
	return !(v->g.known || v->g.x87) || s == guest_offset(v) || verify_bad(v, h->off, "FDP that is not the operand's offset");
}

/* WRGSBASE: to the space that goes with ctx.ac. */
static bool space_change(struct verifier *v, struct path *p, const struct hinsn *h)
{
	sym to = p->reg[gpr_number(&h->zo[0])];
	const struct atom *a = sym_single(&v->syms, to);
	if (!a || a->kind != AT_SPACE || !cpl0(v) || h->zo[0].size != 64)
		return verify_bad(v, h->off, "a change of the space to what is none");
	if (!path_fact(v, p, FACT_NOT_ZERO, to, 0))
		return verify_bad(v, h->off, "a change of the space to one that may not be there");
	if (!p->dirty || p->ac != a->n)
		return verify_bad(v, h->off, "a change of the space that ctx.ac does not say");
	p->space_set = true;
	for (unsigned n = 0; n < p->n_facts;) /* entries of the other space */
		if (p->facts[n].kind == FACT_PRESENT)
			p->facts[n] = p->facts[--p->n_facts];
		else
			n++;
	return true;
}

/* ---- struct cpu ------------------------------------------------------------------------------------------------- */

#define CPU(field) offsetof(struct cpu, field)
static const struct { u32 at; u16 size; u16 mnemonic; u32 imm; u16 guest; bool cpl0; } of_cpu[] = {
	{ CPU(rflags), 32, ZYDIS_MNEMONIC_AND, ~(u32)FL_IF, ZYDIS_MNEMONIC_CLI, true },
	{ CPU(event_mask), 32, ZYDIS_MNEMONIC_AND, ~(u32)EV_INTR, ZYDIS_MNEMONIC_CLI, true },
	{ CPU(events), 32, ZYDIS_MNEMONIC_CMP, 0, ZYDIS_MNEMONIC_STI, true },
	{ CPU(rflags), 32, ZYDIS_MNEMONIC_OR, FL_IF, ZYDIS_MNEMONIC_STI, true },
	{ CPU(event_mask), 32, ZYDIS_MNEMONIC_OR, EV_INTR, ZYDIS_MNEMONIC_STI, true },
	{ CPU(rflags), 64, ZYDIS_MNEMONIC_MOV, 0, ZYDIS_MNEMONIC_PUSHFQ, false },
	{ CPU(rflags), 32, ZYDIS_MNEMONIC_TEST, FL_DF, 0, false },
	{ CPU(rflags), 32, ZYDIS_MNEMONIC_AND, ~(u32)FL_DF, ZYDIS_MNEMONIC_CLD, false },
	{ CPU(rflags), 32, ZYDIS_MNEMONIC_OR, FL_DF, ZYDIS_MNEMONIC_STD, false },
};

u32 path_cpu_asked(const struct verifier *v)
{
	u32 set = 0;
	for (unsigned k = 0; k < ARRAY_LEN(of_cpu); k++)
		if (of_cpu[k].guest ? of_cpu[k].guest == v->g.zi.mnemonic : v->g.kind == G_STRING)
			set |= 1u << k;
	return v->g.kind == G_SYSTEM && v->g.zi.mnemonic == ZYDIS_MNEMONIC_MOV ? 1u << ARRAY_LEN(of_cpu) : set;
}

bool path_at_cpu(struct verifier *v, const struct path *p, const struct hinsn *h, u64 *at)
{
	const struct expr *x = &v->syms.exprs[address_of(v, p, memory(h))];
	*at = x->konst;
	return x->n == 1 && x->times[0] == 1 && v->syms.atoms[x->atom[0]].kind == AT_CPU;
}

static bool cpu_access(struct verifier *v, struct path *p, const struct hinsn *h, u64 at)
{
	const ZydisDecodedOperand *o = memory(h), *other = &h->zo[1 - h->mem];
	bool write = writes_operand(o);
	if (o->mem.index != ZYDIS_REGISTER_NONE || (h->zi.attributes & ZYDIS_ATTRIB_HAS_SEGMENT))
		return verify_bad(v, h->off, "struct cpu by an odd address");
	bool lets_in = h->zi.mnemonic == ZYDIS_MNEMONIC_OR && !(other->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && (u32)other->imm.value.u == FL_DF);
	if (lets_in && !path_fact(v, p, FACT_ZERO, sym_low(&v->syms, p->events, 32), 0))
		return verify_bad(v, h->off, "lets interrupts in while one may be pending");
	if (write)
		p->dirty = true;
	for (unsigned k = 0; k < ARRAY_LEN(of_cpu); k++) {
		if (of_cpu[k].at != at || of_cpu[k].size != o->size || of_cpu[k].mnemonic != h->zi.mnemonic || (of_cpu[k].cpl0 && !cpl0(v)) ||
		    (v->g.known && (of_cpu[k].guest ? v->g.zi.mnemonic != of_cpu[k].guest : v->g.kind != G_STRING)))
			continue;
		p->cpu_done |= 1u << k;
		if (h->zi.mnemonic == ZYDIS_MNEMONIC_MOV ? !write : other->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && (u32)other->imm.value.u == of_cpu[k].imm)
			return true;
	}
	p->cpu_done |= 1u << ARRAY_LEN(of_cpu);
	bool zx = h->zi.mnemonic == ZYDIS_MNEMONIC_MOVZX, of_system = !v->g.known || v->g.kind == G_SYSTEM;
	if (at == CPU(cr2) && o->size == 64 && h->zi.mnemonic == ZYDIS_MNEMONIC_MOV && !write && cpl0(v) && of_system &&
	    (!v->g.known || v->g.zo[1].reg.value == ZYDIS_REGISTER_CR2))
		return true;
	for (unsigned s = S_ES; s <= S_GS; s++)
		if (at == CPU(seg) + s * sizeof(struct segment) + offsetof(struct segment, sel) && o->size == 16 && (zx || h->zi.mnemonic == ZYDIS_MNEMONIC_MOV) &&
		    !write && (!v->g.known || (v->g.kind == G_SYSTEM && ZydisRegisterGetId(v->g.zo[1].reg.value) == (int)s)))
			return true;
	return verify_bad(v, h->off, "an access to struct cpu that no instruction asks for");
}

/* The constant of 8 bytes that it names lies out of line and is no code. */
static bool constant_of(struct verifier *v, const struct hinsn *h, sym *value)
{
	const struct block *k = v->k;
	u64 at = (u64)verify_pc(v, h->off) + h->len + (u64)memory(h)->mem.disp.value - (u64)k->cold;
	if (at + 8 > k->cold_bytes || at > k->cold_bytes)
		return false;
	u8 *owned = v->owned + v->places - k->cold_bytes + at;
	for (unsigned n = 0; n < 8; n++)
		if (owned[n] == 1)
			return false;
	memset(owned, 2, 8); /* not to become code */
	*value = sym_const(&v->syms, ld64(k->cold + at));
	return true;
}

/* ---- what is done ------------------------------------------------------------------------------------------------ */

static bool keeps_flags(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_MOV: case ZYDIS_MNEMONIC_LEA: case ZYDIS_MNEMONIC_RORX: case ZYDIS_MNEMONIC_SHLX:
	case ZYDIS_MNEMONIC_LAHF: case ZYDIS_MNEMONIC_SETO:
		return true;
	default:
		return false;
	}
}

/* The immediate, as it is used at the operand's width. */
static u64 immediate(const ZydisDecodedOperand *o, unsigned width)
{
	return width == 64 ? o->imm.value.u : o->imm.value.u & ((1ull << width) - 1);
}

/* Results that are followed; false: none of these. */
static bool followed(struct verifier *v, struct path *p, const struct hinsn *h, int to, sym *result)
{
	struct syms *s = &v->syms;
	const ZydisDecodedOperand *d = &h->zo[0], *a = &h->zo[1];
	unsigned w = d->size;
	if (to < 0 || (w != 32 && w != 64))
		return false;
	sym r;
	switch (h->zi.mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
		if (a->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
			r = sym_const(s, immediate(a, w));
		else if (gpr_number(a) >= 0)
			r = p->reg[gpr_number(a)];
		else
			return false;
		break;
	case ZYDIS_MNEMONIC_MOVZX:
		if (gpr_number(a) < 0 || a->size != 16)
			return false;
		r = sym_low(s, p->reg[gpr_number(a)], 16);
		break;
	case ZYDIS_MNEMONIC_LEA:
		r = address_of(v, p, a);
		if (h->zi.address_width != 64)
			r = sym_low(s, r, h->zi.address_width);
		break;
	case ZYDIS_MNEMONIC_ADD:
		if (a->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
			r = sym_add_const(s, p->reg[to], a->imm.value.u);
		else if (gpr_number(a) >= 0)
			r = sym_add(s, p->reg[to], p->reg[gpr_number(a)]);
		else
			return false;
		break;
	case ZYDIS_MNEMONIC_SUB:
		if (a->type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
			return false;
		r = sym_add_const(s, p->reg[to], -a->imm.value.u);
		break;
	case ZYDIS_MNEMONIC_INC: case ZYDIS_MNEMONIC_DEC:
		r = sym_add_const(s, p->reg[to], h->zi.mnemonic == ZYDIS_MNEMONIC_INC ? 1 : ~0ull);
		break;
	case ZYDIS_MNEMONIC_XOR:
		if (w != 64 || gpr_number(a) < 0)
			return false;
		r = sym_xor(s, p->reg[to], p->reg[gpr_number(a)]);
		break;
	case ZYDIS_MNEMONIC_SHR:
		if (w != 64 || a->type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
			return false;
		r = sym_shr(s, p->reg[to], a->imm.value.u & 63);
		break;
	case ZYDIS_MNEMONIC_SAR:
		if (w != 64 || a->type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
			return false;
		r = sym_sar(s, p->reg[to], a->imm.value.u & 63);
		break;
	case ZYDIS_MNEMONIC_MOVSXD:
		if (w != 64 || gpr_number(a) < 0 || a->size != 32)
			return false;
		r = sym_extend(s, p->reg[gpr_number(a)], 32);
		break;
	case ZYDIS_MNEMONIC_AND: {
		u64 mask = a->type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? immediate(a, w) : 0;
		if (!mask || (mask & (mask + 1)))
			return false;
		r = sym_low(s, p->reg[to], (unsigned)__builtin_popcountll(mask));
		break;
	}
	case ZYDIS_MNEMONIC_RORX:
		if (w != 64 || gpr_number(a) < 0)
			return false;
		r = sym_ror(s, p->reg[gpr_number(a)], h->zo[2].imm.value.u & 63);
		break;
	case ZYDIS_MNEMONIC_SHLX: {
		u64 n;
		if (w != 64 || gpr_number(a) < 0 || !sym_is_const(s, p->reg[gpr_number(&h->zo[2])], &n))
			return false;
		r = sym_shl(s, p->reg[gpr_number(a)], n & 63);
		break;
	}
	default:
		return false;
	}
	*result = w == 32 ? sym_low(s, r, 32) : r;
	return true;
}

static void set_test(struct verifier *v, struct path *p, const struct hinsn *h, sym operand)
{
	const ZydisDecodedOperand *d = &h->zo[0], *a = &h->zo[1];
	bool test = h->zi.mnemonic == ZYDIS_MNEMONIC_TEST;
	if (test && d->size == 64 && a->type == ZYDIS_OPERAND_TYPE_REGISTER && a->reg.value == d->reg.value) {
		p->test.kind = TEST_AND;
		p->test.of = operand;
		p->test.n = ~0ull;
		return;
	}
	if (a->type != ZYDIS_OPERAND_TYPE_IMMEDIATE || operand_is_high8(d) || !(test || h->zi.mnemonic == ZYDIS_MNEMONIC_CMP))
		return;
	if (test) {
		u64 mask = immediate(a, d->size);
		p->test.kind = TEST_AND;
		p->test.of = operand;
		p->test.n = mask;
	} else if (d->size == 64) {
		p->test.kind = TEST_EQUAL;
		p->test.of = operand;
		p->test.n = sym_const(&v->syms, a->imm.value.u);
	} else if (d->size == 32) {
		p->test.kind = TEST_CMP;
		p->test.of = sym_low(&v->syms, operand, 32);
		p->test.n = immediate(a, 32);
	}
}

/* Status flags on their way between the host's and ctx.flags, by way of RAX: LAHF, SETO AL, a store
 * of AX; a load of it, ADD AL, 7fh, SAHF. After the step; rax: what it was before. */
static void follow_flags(struct path *p, const struct hinsn *h, bool own, sym rax)
{
	const ZydisAccessedFlags *f = h->zi.cpu_flags;
	const ZydisDecodedOperand *d = &h->zo[0];
	bool al = gpr_number(d) == RAX && d->size == 8 && !operand_is_high8(d) && h->mem < 0, on = rax == p->packed;
	switch (own ? ZYDIS_MNEMONIC_INVALID : h->zi.mnemonic) {
	case ZYDIS_MNEMONIC_LAHF:
		p->packing = p->host_flags ? 1 : 0;
		p->kept = true;
		break;
	case ZYDIS_MNEMONIC_SETO:
		p->packing = al && on && p->packing == 1 && p->host_flags ? 2 : 0;
		break;
	case ZYDIS_MNEMONIC_ADD:
		p->host_flags = p->half_flags = false;
		if (!al || !on || p->packing != 2 || h->zo[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE || h->zo[1].imm.value.u != 0x7f)
			return;
		p->packing = 3;
		p->half_flags = true;
		break;
	case ZYDIS_MNEMONIC_SAHF:
		p->host_flags = on && p->half_flags && p->packing == 3;
		p->half_flags = false;
		return;
	default:
		if (!f || !(f->modified | f->set_0 | f->set_1 | f->undefined))
			return;
		p->host_flags = p->half_flags = false;
		if (own) { /* they are the instruction's now, and in the host's */
			p->host_flags = true;
			p->ctx_flags = false;
		}
		return;
	}
	p->packed = p->reg[RAX];
}

/* An instruction of the translator's own, rather than the guest's. */
static bool is_scaffold(struct verifier *v, const struct path *p, const struct hinsn *h)
{
	bool g_system = v->root == ROOT_INSN && v->g.kind == G_SYSTEM, g_string = v->root == ROOT_INSN && v->g.kind == G_STRING;
	if (h->string)
		return false;
	const ZydisDecodedOperand *d = &h->zo[0], *a = &h->zo[1];
	bool on_t = gpr_number(d) == T && !operand_is_high8(d);
	unsigned n;
	if (h->gs || code_at(v, p, h, &n))
		return true;
	switch (h->zi.mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
		return h->mem >= 0 || a->type == ZYDIS_OPERAND_TYPE_IMMEDIATE || d->size == 64 || (d->size == 32 && on_t) || g_system;
	case ZYDIS_MNEMONIC_LEA: case ZYDIS_MNEMONIC_RORX: case ZYDIS_MNEMONIC_SHLX: case ZYDIS_MNEMONIC_LAHF: case ZYDIS_MNEMONIC_SAHF:
		return true;
	case ZYDIS_MNEMONIC_AND: case ZYDIS_MNEMONIC_CMP:
		if (h->zi.mnemonic == ZYDIS_MNEMONIC_CMP && on_t && d->size == 64)
			return v->root == ROOT_RETURN || (h->mem < 0 && a->type == ZYDIS_OPERAND_TYPE_IMMEDIATE);
		return (on_t && d->size == 32 && a->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) || g_system || (g_string && gpr_number(d) == RCX);
	case ZYDIS_MNEMONIC_TEST:
		return (h->mem < 0 && (a->type == ZYDIS_OPERAND_TYPE_IMMEDIATE || g_system)) || g_string;
	case ZYDIS_MNEMONIC_SAR: case ZYDIS_MNEMONIC_MOVSXD:
		return on_t && v->root == ROOT_INSN && v->g.known && reaches_bits(&v->g.zi, v->g.zo);
	case ZYDIS_MNEMONIC_XOR:
		return g_string && on_t;
	case ZYDIS_MNEMONIC_SUB:
		return g_string && d->size == 64;
	case ZYDIS_MNEMONIC_SETO:
		return h->mem < 0 && gpr_number(d) == RAX && !operand_is_high8(d);
	case ZYDIS_MNEMONIC_ADD:
		return (p->packing == 2 && gpr_number(d) == RAX && d->size == 8) || g_system || (g_string && d->size == 64);
	case ZYDIS_MNEMONIC_SHR:
		return g_system || (g_string && on_t) || (on_t && a->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && a->imm.value.u == WINDOW_BITS);
	case ZYDIS_MNEMONIC_OR: case ZYDIS_MNEMONIC_SHL: case ZYDIS_MNEMONIC_MOVZX:
	case ZYDIS_MNEMONIC_RDTSC: case ZYDIS_MNEMONIC_RDTSCP: case ZYDIS_MNEMONIC_WRGSBASE:
		return g_system || (h->zi.mnemonic == ZYDIS_MNEMONIC_MOVZX && h->mem < 0 && a->size == 16);
	default:
		return false;
	}
}

bool path_step(struct verifier *v, struct path *p, const struct hinsn *h)
{
	struct syms *s = &v->syms;
	bool own = v->root == ROOT_INSN && guest_is_own(v, h);
	if (!own && v->g.known && v->root == ROOT_INSN && !is_scaffold(v, p, h))
		return verify_bad(v, h->off, "an instruction that is neither the guest's nor the translator's");
	if (!own && v->root != ROOT_INSN && v->root != ROOT_DEAD && !is_scaffold(v, p, h))
		return verify_bad(v, h->off, "an instruction that does not belong here");
	if (h->vector && !v->k->units)
		return verify_bad(v, h->off, "vector code in a block that does not ask for the units");
	if (h->x87 && !h->vector && !(v->k->classes & X87_CLASSES))
		return verify_bad(v, h->off, "x87 code in a block that does not ask for it");
	if (own && !guest_own_before(v, p, h))
		return false;
	if (v->g.x87 && h->x87 && v->root == ROOT_INSN && (!guest_same_x87(v, h) || p->own++))
		return verify_bad(v, h->off, "an x87 instruction that is not the guest's");
	if (h->string)
		return string_memory(v, p, h);
	if (h->zi.mnemonic == ZYDIS_MNEMONIC_WRGSBASE && !space_change(v, p, h))
		return false;
	struct touch t = { 0 };
	u64 at;
	unsigned of_code = 0;
	bool code = !own && code_at(v, p, h, &of_code);
	sym loaded = SYM_NONE, result = SYM_NONE;
	if (h->constant) {
		if (v->root != ROOT_RETURN || !constant_of(v, h, &loaded))
			return verify_bad(v, h->off, "a constant that is none of the block's");
	} else if (h->mem >= 0 && h->gs) {
		if (writes_operand(memory(h))) {
			if (!space_store(v, p, h))
				return false;
		} else if (!space_load(v, p, h, &loaded)) {
			return false;
		}
	} else if (h->mem >= 0 && path_at_cpu(v, p, h, &at)) {
		if (!cpu_access(v, p, h, at))
			return false;
		loaded = sym_fresh(s);
		if (h->zi.mnemonic == ZYDIS_MNEMONIC_CMP)
			p->events = loaded;
		else if (h->zi.mnemonic == ZYDIS_MNEMONIC_TEST)
			p->rflags = loaded;
	} else if (h->mem >= 0 && !code) {
		if (!guest_memory(v, p, h, &t))
			return false;
		loaded = sym_fresh(s);
		u64 imm;
		t.value = loaded;
		if (h->zi.mnemonic == ZYDIS_MNEMONIC_MOV && t.write && h->zo[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
			t.value = sym_const(s, (imm = h->zo[1].imm.value.u));
		else if (h->zi.mnemonic == ZYDIS_MNEMONIC_MOV && t.write && gpr_number(&h->zo[1]) >= 0)
			t.value = p->reg[gpr_number(&h->zo[1])];
		if (p->n_touch == TOUCHES)
			return verify_bad(v, h->off, "too many accesses to guest memory");
		if (v->g.known && !guest_access(v, p, h, &t))
			return false;
		p->touch[p->n_touch++] = t;
	}
	int to = gpr_number(&h->zo[0]);
	bool simple = to >= 0 && !operand_is_high8(&h->zo[0]) && writes_operand(&h->zo[0]);
	bool mov_load = h->zi.mnemonic == ZYDIS_MNEMONIC_MOV && loaded != SYM_NONE && simple;
	if (h->mem < 0 || h->zi.mnemonic == ZYDIS_MNEMONIC_LEA) {
		if (!simple || !followed(v, p, h, to, &result))
			result = SYM_NONE;
	} else if (code && simple) {
		result = path_code(v, of_code, memory(h)->size / 8u, h->zo[0].size);
	} else if (mov_load && h->zo[0].size >= 32) {
		result = h->zo[0].size == 32 ? sym_low(s, loaded, 32) : loaded;
	} else if (h->gs && h->zi.mnemonic == ZYDIS_MNEMONIC_ADD && simple && h->zo[0].size >= 32) {
		result = sym_low(s, sym_add(s, p->reg[to], loaded), h->zo[0].size);
	} else if (h->gs && h->zi.mnemonic == ZYDIS_MNEMONIC_SUB && simple && h->zo[0].size == 64) {
		result = sym_add(s, p->reg[to], sym_scale(s, loaded, ~0ull));
	} else if (h->gs && !own && h->zi.mnemonic != ZYDIS_MNEMONIC_CMP && h->zi.mnemonic != ZYDIS_MNEMONIC_MOVZX && !writes_operand(memory(h))) {
		return verify_bad(v, h->off, "reads the space by another way than MOV, MOVZX, ADD or CMP");
	}
	sym before = simple ? p->reg[to] : SYM_NONE, rax = p->reg[RAX];
	u32 written = gprs_written(&h->zi, h->zo);
	for (unsigned r = 0; r < 16; r++)
		if (written >> r & 1)
			p->reg[r] = r == (unsigned)to && result != SYM_NONE ? result : sym_fresh(s);
	if (!keeps_flags(h->zi.mnemonic)) {
		p->test.kind = TEST_NONE;
		if (code && h->zi.mnemonic == ZYDIS_MNEMONIC_CMP) {
			p->test.kind = TEST_CODE;
			p->test.of = (sym)of_code;
			p->test.n = (u64)(memory(h)->size / 8u) << 32 | immediate(&h->zo[1], memory(h)->size);
		} else if (own && h->gs) {
			;
		} else if (h->zi.mnemonic == ZYDIS_MNEMONIC_CMP && h->mem == 1 && to >= 0) {
			p->test.kind = h->constant || (h->gs && sym_is_const(s, loaded, &at)) ? TEST_EQUAL : h->gs ? TEST_TAG : TEST_NONE;
			p->test.of = p->reg[to];
			p->test.n = loaded;
		} else if (h->zi.mnemonic == ZYDIS_MNEMONIC_SHR && result != SYM_NONE && h->zo[0].size == 64) {
			p->test.kind = TEST_AND;
			p->test.of = result;
			p->test.n = ~0ull;
		} else if (h->mem < 0 && to >= 0)
			set_test(v, p, h, writes_operand(&h->zo[0]) ? before : p->reg[to]);
		else if ((h->zi.mnemonic == ZYDIS_MNEMONIC_CMP || h->zi.mnemonic == ZYDIS_MNEMONIC_TEST) && loaded != SYM_NONE)
			set_test(v, p, h, loaded);
	}
	follow_flags(p, h, own, rax);
	if (p->loads_flags) { /* MOVZX EAX, word ctx.flags */
		bool eax = h->zi.mnemonic == ZYDIS_MNEMONIC_MOVZX && to == RAX && h->zo[0].size == 32;
		p->packing = eax && p->ctx_flags ? 2 : 0;
		p->kept |= eax;
		p->packed = p->reg[RAX];
		p->loads_flags = false;
	}
	if (own)
		guest_own_after(v, p, h);
	p->at = h->off + h->len;
	return true;
}
