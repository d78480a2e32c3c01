/* Near control flow, and the ways out of a block.
 *
 * A direct branch is a jump to the next block once that is known (cache_link), its exit stub
 * before. An indirect one looks its target up in the jump cache (glue.c). A call leaves the host
 * address of its return site on the return stack, so that a guest's return is a host's return,
 * which the processor predicts; the site compares what the guest's stack said (T) with what it
 * stands for.
 *
 * Only the target knows which status flags are live. Where it is in the same page that has been
 * looked at (live_at), and flags that are live are in the host's; everywhere else they are in
 * ctx.flags, and the target's `checked` fetches them if it needs them. */
#include "bt/tr.h"

bool branch_far(const struct translation *t, u64 target)
{
	return t->page2 || t->page->selfcheck || (target & ~PAGE_MASK) != t->page->lin;
}

static void link_of(struct translation *t, unsigned k, unsigned n, u8 *site, u64 target, bool checked)
{
	t->block->link[n] = (struct link){ .from = t->block, .site = site, .target = target, .insn = (u8)k,
					   .checked = checked || branch_far(t, target) };
}

void branch_link(struct translation *t, unsigned n, u8 *site, u64 target, bool checked)
{
	link_of(t, t->n - 1, n, site, target, checked);
}

/* A jump to another block by way of link n; flags are in the host's and may be live there. */
void branch_jump(struct translation *t, struct emit *e, unsigned n, u64 target)
{
	if (branch_far(t, target))
		flags_save(e, T_FREE);
	branch_link(t, n, e_jmp(e), target, false);
}

void branch_fall(struct translation *t)
{
	u64 target = next_lin_of(t, t->n - 1);
	if (!t->saved) {
		branch_jump(t, &t->e, 1, target);
		return;
	}
	if (!branch_far(t, target))
		flags_restore(&t->e, T_FREE);
	branch_link(t, 1, e_jmp(&t->e), target, false);
}

void branch_stubs(struct translation *t)
{
	for (unsigned n = 0; n < t->block->n_links; n++) {
		struct link *l = &t->block->link[n];
		if (!l->site)
			continue;
		l->stub = emit_here(&t->out);
		e_set32(&t->e, l->site, l->stub);
		emit_exit(t, &t->out, l->insn, n == LINK_ON ? X_LINK1 : X_LINK0, l->checked);
	}
}

u64 branch_target(const struct translation *t, unsigned k)
{
	if (t->page->mode != CODE64)
		return legacy_target(t, k);
	return next_lin_of(t, k) + t->ins[k].zo[0].imm.value.u;
}

/* LOOP, JRCXZ: short jumps only. */
void branch_loop(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	mark_commit(t, k);
	if (i->zi.address_width == 32)
		e8(e, 0x67);
	e8(e, i->zi.opcode);
	e8(e, 0);
	u8 *taken = e->p - 1;
	branch_jump(t, e, 1, next_lin_of(t, k));
	e_here8(e, taken);
	branch_jump(t, e, 0, branch_target(t, k));
}

void branch_jcc(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	bool last = k == t->n - 1;
	unsigned n = last ? LINK_TAKEN : LINKS_LAST + t->sides++;
	u64 target = branch_target(t, k);
	mark_commit(t, k);
	u8 *taken = e_jcc(e, t->ins[k].zi.opcode & 15);
	if (branch_far(t, target)) {
		e_here32(&t->out, taken);
		flags_save(&t->out, T_FREE);
		taken = e_jmp(&t->out);
	}
	link_of(t, k, n, taken, target, false);
	if (last)
		branch_jump(t, e, LINK_ON, next_lin_of(t, k));
}

/* Pushes the return address and moves RSP. */
static void push_return(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	struct enc x = { 0 };
	u64 ret = next_lin_of(t, k);
	mem_operand(t, k, &(struct ea){ .base = HOST_SP, .index = ENC_NONE, .disp = -8 }, 8, true, MAY_CROSS, RBX, &x);
	struct marg m = { x.base, x.index, x.scale, x.disp };
	mark_commit(t, k);
	if (ret == (u64)(i64)(i32)ret) {
		e_mem(e, E_W | 0xc7, 0, m);
		e32(e, (u32)ret);
	} else {
		e_ctx_store(e, RBX, M_CTX(save_v));
		mark_victim(t, k, RBX);
		e_const(e, RBX, ret);
		e_store(e, RBX, m);
		e_ctx_load(e, RBX, M_CTX(save_v));
	}
	e_lea(e, HOST_SP, M_BASE(HOST_SP, -8));
}

/* Where a RET comes back to: T is where the guest wants to go. */
void branch_return_site(struct translation *t, unsigned k)
{
	struct emit *e = &t->e, *out = &t->out;
	u64 here = next_lin_of(t, k);
	if (here == (u64)(i64)(i32)here) {
		e_reg(e, E_W | 0x81, 7, T);             /* cmp r11, imm32 */
		e32(e, (u32)here);
	} else {                                        /* cmp r11, [rip + ...] */
		e8(out, 0);
		while ((u64)emit_here(out) & 7)
			e8(out, 0);
		u8 *at = emit_here(out);
		e64(out, here);
		static const u8 cmp[] = { 0x4c, 0x3b, 0x1d };
		ebytes(e, cmp, sizeof(cmp));
		e32(e, 0);
		e_set32(e, e->p - 4, at);
	}
	e_jcc_to(e, CC_NZ, t->b->lookup);
	branch_link(t, 1, e_jmp(e), here, true);
}

void branch_call_found(struct translation *t, unsigned k, unsigned target)
{
	struct emit *e = &t->e;
	if (target == T)
		mark_commit(t, k);
	cold_add(t, glue_find(e, target), k);
	cold_last(t)->rcx = target == T;
	mark_commit(t, k);
	e_ctx_store(e, T, M_CTX(target));
}

void branch_jump_found(struct translation *t, unsigned k, unsigned target)
{
	if (target == T)
		mark_commit(t, k);
	cold_add(t, glue_jump(&t->e, target), k);
	struct cold *c = cold_last(t);
	c->kind = X_INDIRECT;
	c->rcx = target == T;
	c->addr = (u8)target;
}

/* The register that has an indirect branch's target: the guest's own, or T. */
static unsigned load_target(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	const ZydisDecodedOperand *o = &i->zo[0];
	if (o->type == ZYDIS_OPERAND_TYPE_REGISTER) {
		unsigned r = host_of((unsigned)ZydisRegisterGetId(o->reg.value));
		if (!at_home(r))
			return r;
		e_ctx_load(e, T, home_of(r));
		return T;
	}
	struct ea a;
	struct enc x = { 0 };
	operand_ea(t, i, o, &a);
	mem_operand(t, k, &a, 8, false, MAY_CROSS, unused_register(i), &x);
	e_load(e, T, (struct marg){ x.base, x.index, x.scale, x.disp });
	return T;
}

static void emit_call_indirect(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	/* Looked up before anything is pushed: a target that is not known may not be canonical. */
	branch_call_found(t, k, load_target(t, k));
	push_return(t, k);
	e_mem(e, E_GS | 0xff, 2, M_CTX(target));        /* call */
	branch_return_site(t, k);
}

static void emit_ret(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	unsigned pop = 8 + (i->zi.operand_count_visible ? (unsigned)i->zo[0].imm.value.u & 0xffff : 0);
	struct enc x = { 0 };
	mem_operand(t, k, &(struct ea){ .base = HOST_SP, .index = ENC_NONE }, 8, false, MAY_CROSS, RBX, &x);
	e_load(e, T, (struct marg){ x.base, x.index, x.scale, x.disp });
	mark_commit(t, k);
	e_lea(e, HOST_SP, M_BASE(HOST_SP, pop));
	t->block->sp_back = -(i32)pop;
	e_ctx_imm(e, M_CTX(exit), exit_id(t->index, k, X_INDIRECT));
	e8(e, 0xc3);
}

void branch_emit(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	switch (i->kind) {
	case K_JMP:
		branch_link(t, 0, e_jmp(e), branch_target(t, k), false);
		break;
	case K_JCC:
		branch_jcc(t, k);
		break;
	case K_LOOP:
		branch_loop(t, k);
		break;
	case K_CALL:
		push_return(t, k);
		if (t->saved && !branch_far(t, branch_target(t, k)))
			flags_restore(e, T_FREE);
		branch_link(t, 0, e_call(e), branch_target(t, k), false);
		branch_return_site(t, k);
		break;
	case K_CALL_IND:
		emit_call_indirect(t, k);
		break;
	case K_JMP_IND:
		branch_jump_found(t, k, load_target(t, k));
		break;
	default:
		emit_ret(t, k);
	}
}
