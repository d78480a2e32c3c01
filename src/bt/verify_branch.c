/* The verifier: where a path leaves the code of one guest instruction: the exits that bt.h knows, gates, indirect
 * branches by the jump cache and as calls and returns, links to other blocks; and branches inside the block. */
#include "bt/verify.h"

/* ---- ways out -------------------------------------------------------------------------------------------- */

static bool exit_checked(struct verifier *v, const struct path *p, const struct hinsn *h, bool saved)
{
	const struct block *k = v->k;
	unsigned kind = p->exit & 15, insn = p->exit >> 4 & 63;
	if (!p->exit_set || p->foreign_exit)
		return verify_bad(v, h->off, "leaves without a word why");
	if (p->exit >> 10 != k->index || insn >= k->n)
		return verify_bad(v, h->off, "leaves in the name of another block");
	bool entry = v->root == ROOT_CHECKED || v->root == ROOT_HOST || v->root == ROOT_STALE_CHECKED || v->root == ROOT_STALE;
	switch (kind) {
	case X_GOTO:
		if (!entry || insn)
			return verify_bad(v, h->off, "goes to the dispatcher from the middle");
		if (saved && !p->ctx_flags)
			return verify_bad(v, h->off, "status flags are not there");
		if (!saved && !p->host_flags && v->root != ROOT_STALE)
			v->entry_lost = true;
		break;
	case X_INSN: case X_GROUP: case X_WINDOW:
		if (kind == X_GROUP && (v->root != ROOT_INSN || !k->map[v->k_insn + 1].no_resume))
			return verify_bad(v, h->off, "leaves a group that is none");
		if ((v->root != ROOT_INSN && v->root != ROOT_DEAD) || insn != v->k_insn)
			return verify_bad(v, h->off, "leaves for guest instruction %u", insn);
		if ((saved && !p->ctx_flags) || !guest_flags(v, p, h->off, saved, "where it leaves"))
			return verify_bad(v, h->off, "status flags are not there");
		break;
	case X_LINK0: case X_LINK1:
		if (!p->link || insn != k->link[p->link - 1].insn || (kind == X_LINK1) != (p->link - 1 == LINK_ON))
			return verify_bad(v, h->off, "leaves by a link that it is not on");
		/* Registers were looked at where the link is. */
		return saved == k->link[p->link - 1].checked || verify_bad(v, h->off, "status flags are not there");
	default:
		return verify_bad(v, h->off, "leaves in a way that is none");
	}
	return guest_untouched(v, p, h->off, -1, "where it leaves");
}

/* Calls units_load: leaves with the host's flags, or goes on with the vectors there. */
static bool units_loaded(struct verifier *v, struct path *p, const struct hinsn *h)
{
	if (v->root != ROOT_CHECKED && v->root != ROOT_HOST)
		return verify_bad(v, h->off, "asks for the vectors elsewhere than at its entry");
	if (!exit_checked(v, p, h, false))
		return false;
	p->exit_set = p->ctx_flags = false;
	p->reg[T] = sym_fresh(&v->syms);
	p->slot[SL_RAX] = sym_fresh(&v->syms);
	p->test.kind = TEST_NONE;
	path_add_fact(p, FACT_ZERO, sym_low(&v->syms, sym_atom(&v->syms, AT_WORD, 0, SYM_NONE, (u32)CTX(units_off)), 32), 0);
	p->at = h->off + h->len;
	return true;
}

/* To gate.c: an exit for the interpreter, of an instruction that has this gate. */
static bool gate_checked(struct verifier *v, const struct path *p, const struct hinsn *h, bool saved)
{
	if (!v->k->map[v->k_insn].gate || (p->exit & 15) != X_INSN || (v->guest && !guest_gate(v)))
		return verify_bad(v, h->off, "a gate that is not the instruction's");
	return exit_checked(v, p, h, saved);
}

/* Who asks is in ctx.exit, should the target not be known. */
static bool named(struct verifier *v, const struct path *p, const struct hinsn *h)
{
	const struct block *k = v->k;
	if (v->root == ROOT_RETURN && p->foreign_exit)
		return true; /* the block that returned */
	if (!p->exit_set || p->exit != exit_id(k->index, k->n - 1u, X_INDIRECT))
		return verify_bad(v, h->off, "an indirect branch without its name");
	if (!k->page->klass.sp16 && !guest_equal(v, guest_value(p, R_SP), sym_add_const(&v->syms, guest_start(v, R_SP), (u64)-(i64)k->sp_back)))
		return verify_bad(v, h->off, "sp_back does not undo what was done to RSP");
	return true;
}

/* An indirect branch to `target`, a guest address. */
static bool indirect(struct verifier *v, const struct path *p, const struct hinsn *h, sym target)
{
	if (!p->ctx_flags)
		return verify_bad(v, h->off, "an indirect branch with status flags that are not in the context");
	if (v->root == ROOT_RETURN)
		return guest_untouched(v, p, h->off, -1, "where it comes back elsewhere") &&
		       (target == v->arrived || verify_bad(v, h->off, "T is not where it comes back"));
	if (v->root != ROOT_INSN || v->k_insn != v->k->n - 1u)
		return verify_bad(v, h->off, "an indirect branch that is not the block's last instruction");
	return guest_done(v, p, h->off) && guest_target(v, p, h, target);
}

/* To lookup, or to where that fails. */
static bool looked_up(struct verifier *v, const struct path *p, const struct hinsn *h)
{
	if (v->g.known && v->g.kind != G_JMP_IND && v->root != ROOT_RETURN)
		return verify_bad(v, h->off, "an indirect branch that the guest does not have");
	return named(v, p, h) && indirect(v, p, h, p->reg[T]);
}

/* A jump or call to the host's address that the jump cache had. */
static bool to_found(struct verifier *v, const struct path *p, const struct hinsn *h, sym to)
{
	const struct atom *a = sym_single(&v->syms, to);
	if (!a || a->kind != AT_JUMP)
		return verify_bad(v, h->off, "a branch to what is not from the jump cache");
	if (v->g.known && v->root == ROOT_INSN && v->g.kind != (h->zi.mnemonic == ZYDIS_MNEMONIC_CALL ? G_CALL_IND : G_JMP_IND))
		return verify_bad(v, h->off, "an indirect branch that the guest does not have");
	return indirect(v, p, h, a->of);
}

/* ---- branches ---------------------------------------------------------------------------------------------- */

static const u8 *goes_to(const struct verifier *v, const struct hinsn *h)
{
	return verify_pc(v, h->off) + h->len + (i64)h->zo[0].imm.value.u;
}

bool branch_loads_units(const struct verifier *v, const struct hinsn *h)
{
	return h->zi.mnemonic == ZYDIS_MNEMONIC_CALL && h->zo[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && goes_to(v, h) == v->b->units_load;
}

/* The link whose displacement is this branch's. -1: none. */
static int link_of(const struct verifier *v, const struct hinsn *h)
{
	const u8 *site = verify_pc(v, h->off) + h->len - 4;
	for (int n = 0; n < v->k->n_links; n++)
		if (v->k->link[n].site && v->k->link[n].site - v->b->rw + v->b->rx == site)
			return h->zi.raw.imm[0].size == 32 ? n : -1;
	return -1;
}

static bool link_checked(struct verifier *v, struct path *p, const struct hinsn *h, int n)
{
	const struct block *k = v->k;
	const struct link *l = &k->link[n];
	const u8 *to = l->to ? link_entry(l) : l->stub;
	if (p->link)
		return verify_bad(v, h->off, "a link behind a link");
	if (l->from != k || (l->to && !l->to->valid))
		return verify_bad(v, h->off, "a link that is not in order");
	if (l->to && to == l->to->host_units && to != l->to->host && !k->units)
		return verify_bad(v, h->off, "link %d leads past the look at the units from where they may not be usable", n);
	if (goes_to(v, h) != to)
		return verify_bad(v, h->off, "link %d does not go where it should", n);
	if (verify_place(v, l->stub) == ~0u)
		return verify_bad(v, h->off, "the stub of link %d is elsewhere", n);
	bool same_page = !k->page2 && (l->target & ~PAGE_MASK) == k->page->lin;
	if (!l->checked && (!same_page || v->root == ROOT_RETURN || k->made_from || (l->to && l->to->made_from)))
		return verify_bad(v, h->off, "link %d to another page or a block that checks itself does not check", n);
	if (!guest_flags(v, p, h->off, l->checked, "at a link"))
		return false;
	if (v->root == ROOT_INSN) {
		if (v->k_insn != l->insn || (l->insn != k->n - 1u) != (n >= LINKS_LAST))
			return verify_bad(v, h->off, "a link of another instruction");
		if (!guest_done(v, p, h->off) || !guest_link(v, p, h, (unsigned)n))
			return false;
	} else if (v->root == ROOT_RETURN || v->root == ROOT_DEAD) {
		if (!guest_untouched(v, p, h->off, -1, "at a link"))
			return false;
		if (v->root == ROOT_RETURN && !path_fact(v, p, FACT_EQUAL, v->arrived, sym_const(&v->syms, l->target)))
			return verify_bad(v, h->off, "comes back to here without looking where");
	} else {
		return verify_bad(v, h->off, "a link at the entry");
	}
	struct path q = *p;
	q.link = (u8)(n + 1);
	q.at = verify_place(v, l->stub);
	return verify_fork(v, q);
}

/* RCX is zero where the branch is taken. */
static void rcx_condition(struct verifier *v, struct path *p, bool taken)
{
	struct syms *s = &v->syms;
	sym rcx = p->reg[RCX];
	const struct atom *a = sym_single(s, rcx);
	if (taken)
		path_add_fact(p, FACT_ZERO, rcx, 0);
	else if (a && a->kind == AT_ENTRY) /* entries are 0 or there */
		path_add_fact(p, FACT_PRESENT, s->exprs[rcx].atom[0], 0);
}

/* The guest's instruction is a conditional branch. */
static bool guest_condition(const struct verifier *v)
{
	return v->g.known && v->root == ROOT_INSN && (v->g.kind == G_LOOP || v->g.kind == G_JCC);
}

/* This is it. */
static bool guest_branches(struct verifier *v, const struct path *p, const struct hinsn *h)
{
	if (h->zi.mnemonic != v->g.zi.mnemonic || p->taken >= 0 || (v->g.kind == G_LOOP && h->zi.address_width != v->g.zi.address_width))
		return verify_bad(v, h->off, "another condition than the guest's");
	bool flags = h->zi.cpu_flags && h->zi.cpu_flags->tested;
	return !flags || guest_flags(v, p, h->off, false, "at a conditional branch");
}

static bool conditional(struct verifier *v, struct path *p, const struct hinsn *h, const u8 *to, bool *go_on)
{
	struct path q = *p;
	q.at = verify_place(v, to);
	ZydisMnemonic m = h->zi.mnemonic;
	if (guest_condition(v)) {
		if (!guest_branches(v, p, h))
			return false;
		q.taken = 1;
		p->taken = 0;
		if (gprs_written(&h->zi, h->zo)) {
			p->reg[RCX] = q.reg[RCX] = p->out[RCX] = q.out[RCX] = sym_fresh(&v->syms);
			p->outs |= 1u << RCX;
			q.outs |= 1u << RCX;
		}
	} else if (m == ZYDIS_MNEMONIC_JRCXZ) {
		rcx_condition(v, &q, true);
		rcx_condition(v, p, false);
	} else if (m == ZYDIS_MNEMONIC_JECXZ || m == ZYDIS_MNEMONIC_LOOP || m == ZYDIS_MNEMONIC_LOOPE || m == ZYDIS_MNEMONIC_LOOPNE) {
		if (v->g.known || v->root != ROOT_INSN)
			return verify_bad(v, h->off, "a loop that the guest does not have");
		if (gprs_written(&h->zi, h->zo))
			p->reg[RCX] = q.reg[RCX] = sym_fresh(&v->syms);
	} else {
		path_condition(v, &q, m, true);
		path_condition(v, p, m, false);
	}
	p->at = h->off + h->len;
	*go_on = true;
	if (to == v->b->lookup || to == v->b->lookup_miss)
		return looked_up(v, &q, h);
	return verify_fork(v, q);
}

bool path_branch(struct verifier *v, struct path *p, const struct hinsn *h, bool *go_on)
{
	ZydisMnemonic m = h->zi.mnemonic;
	*go_on = false;
	if (m == ZYDIS_MNEMONIC_RET) {
		if (v->root == ROOT_RETURN || (v->g.known && v->g.kind != G_RET))
			return verify_bad(v, h->off, "a return that the guest does not have");
		return named(v, p, h) && indirect(v, p, h, p->reg[T]);
	}
	if (h->zo[0].type == ZYDIS_OPERAND_TYPE_REGISTER)
		return to_found(v, p, h, p->reg[T]);
	if (h->zo[0].type == ZYDIS_OPERAND_TYPE_MEMORY) {
		const ZydisDecodedOperand *o = &h->zo[0];
		sym to;
		if (m == ZYDIS_MNEMONIC_JMP)
			return path_jump_load(v, p, h, &to) && to_found(v, p, h, to);
		if (o->mem.base != ZYDIS_REGISTER_NONE || o->mem.index != ZYDIS_REGISTER_NONE || h->zi.address_width != 64 || o->mem.disp.value != CTX(target) || o->size != 64)
			return verify_bad(v, h->off, "a call by what is not ctx.target");
		return to_found(v, p, h, p->slot[SL_TARGET]);
	}
	const u8 *to = goes_to(v, h);
	int n = link_of(v, h);
	if (n >= 0) {
		struct path q = *p;
		if (m != ZYDIS_MNEMONIC_JMP && m != ZYDIS_MNEMONIC_CALL) {
			if (v->root != ROOT_INSN || (guest_condition(v) && !guest_branches(v, p, h)))
				return v->root == ROOT_INSN ? false : verify_bad(v, h->off, "a condition where there is none");
			q.taken = 1;
			p->taken = 0;
		}
		if (!link_checked(v, &q, h, n))
			return false;
		*go_on = m != ZYDIS_MNEMONIC_JMP && m != ZYDIS_MNEMONIC_CALL;
		p->at = h->off + h->len;
		return true; /* what comes after a CALL is a root of its own */
	}
	bool jmp = m == ZYDIS_MNEMONIC_JMP;
	if (jmp && (to == v->b->exit_common || to == v->b->exit_saved))
		return exit_checked(v, p, h, to == v->b->exit_saved);
	if (jmp && (to == v->b->gate_common || to == v->b->gate_saved))
		return gate_checked(v, p, h, to == v->b->gate_saved);
	if (jmp && (to == v->b->lookup || to == v->b->lookup_miss))
		return looked_up(v, p, h);
	if (branch_loads_units(v, h))
		return *go_on = units_loaded(v, p, h);
	bool looks = to == v->b->lookup || to == v->b->lookup_miss;
	if (m == ZYDIS_MNEMONIC_CALL || (!looks && !verify_insn_at(v, verify_place(v, to))))
		return verify_bad(v, h->off, "a branch to where no code of the block begins");
	if (!jmp)
		return conditional(v, p, h, to, go_on);
	p->at = verify_place(v, to);
	*go_on = true;
	return true;
}
