/* Near control flow, and the ways out of a block.
 *
 * A direct branch is a jump to the next block once that is known (cache_link), its exit stub
 * before. An indirect one looks its target up in the jump cache (glue.c). A call leaves the host
 * address of its return site on the return stack, so that a guest's return is a host's return,
 * which the processor predicts; the site compares what the guest's stack said (T) with what it
 * stands for. Status flags are kept throughout: only the target knows which are live. */
#include "bt/tr.h"

static void link_site(struct translation *t, unsigned n, u8 *site, u64 target, bool checked)
{
	t->block->link[n] = (struct link){ .from = t->block, .site = site, .target = target,
					   .checked = checked || t->page2 || (target & ~PAGE_MASK) != t->page->lin };
}

void branch_fall(struct translation *t)
{
	link_site(t, 1, e_jmp(&t->e), t->lin + t->guest_bytes, false);
}

void branch_stubs(struct translation *t)
{
	static const enum exit_kind kinds[] = { X_LINK0, X_LINK1 };
	for (unsigned n = 0; n < 2; n++) {
		struct link *l = &t->block->link[n];
		if (!l->site)
			continue;
		l->stub = emit_here(&t->out);
		e_set32(&t->e, l->site, l->stub);
		emit_exit(t, &t->out, t->n - 1, kinds[n]);
	}
}

static u64 target_of(const struct translation *t, unsigned k)
{
	return next_lin_of(t, k) + t->ins[k].zo[0].imm.value.u;
}

/* LOOP, JRCXZ: short jumps only. */
static void emit_loop(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	if (i->zi.address_width == 32)
		e8(e, 0x67);
	e8(e, i->zi.opcode);
	e8(e, 0);
	u8 *taken = e->p - 1;
	link_site(t, 1, e_jmp(e), next_lin_of(t, k), false);
	e_here8(e, taken);
	link_site(t, 0, e_jmp(e), target_of(t, k), false);
}

/* Pushes the return address and moves RSP. */
static void push_return(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	struct enc x = { 0 };
	u64 ret = next_lin_of(t, k);
	mem_operand(t, k, &(struct ea){ .base = HOST_SP, .index = ENC_NONE, .disp = -8 }, 8, true, BY_ALIGNMENT, RBX, &x);
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

/* Where a RET comes back to: T is where the guest wants to go, RCX is spilled. */
static void return_site(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	u64 minus = -next_lin_of(t, k);
	if (minus == (u64)(i64)(i32)minus) {
		e_lea(e, RCX, M_BASE(T, minus));
	} else {
		e_const(e, RCX, minus);
		e_lea(e, RCX, M_SIB(RCX, T, 0, 0));
	}
	u8 *same = e_jrcxz(e);
	e_jmp_to(e, t->b->lookup_spilled);
	e_here8(e, same);
	e_ctx_load(e, RCX, M_CTX(save_rcx));
	link_site(t, 1, e_jmp(e), next_lin_of(t, k), true);
}

/* T = an indirect branch's target. */
static void load_target(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	const ZydisDecodedOperand *o = &i->zo[0];
	if (o->type == ZYDIS_OPERAND_TYPE_REGISTER) {
		unsigned r = host_of((unsigned)ZydisRegisterGetId(o->reg.value));
		if (at_home(r))
			e_ctx_load(e, T, home_of(r));
		else
			e_mov(e, T, r);
		return;
	}
	struct ea a;
	struct enc x = { 0 };
	operand_ea(t, i, o, &a);
	mem_operand(t, k, &a, 8, false, BY_ALIGNMENT, unused_register(i), &x);
	e_load(e, T, (struct marg){ x.base, x.index, x.scale, x.disp });
}

static void emit_call_indirect(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	load_target(t, k);
	e_ctx_store(e, T, M_CTX(target));
	push_return(t, k);
	e_ctx_load(e, T, M_CTX(target));
	t->block->sp_back = 8;
	e_ctx_imm(e, M_CTX(exit), exit_id(t->index, k, X_INDIRECT));
	e_set32(e, e_call(e), t->b->lookup);
	return_site(t, k);
}

static void emit_ret(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	unsigned pop = 8 + (i->zi.operand_count_visible ? (unsigned)i->zo[0].imm.value.u & 0xffff : 0);
	t->map[k].commit = 0;
	e_ctx_store(e, RCX, M_CTX(save_rcx));
	mark_victim(t, k, RCX);
	e_const(e, RCX, 61);
	e_shlx(e, RCX, HOST_SP, RCX);           /* RSP's low three bits alone */
	u8 *aligned = e_jrcxz(e);
	u8 *leave = e->p;
	e_ctx_load(e, RCX, M_CTX(save_rcx));
	emit_exit(t, e, k, X_INSN);
	e_here8(e, aligned);
	e_rorx(e, RCX, HOST_SP, 12);
	e_mem(e, E_W | E_GS | E_A32 | 0x8b, RCX, M_SIB(ENC_NONE, RCX, 3, 0));
	u8 *none = e_jrcxz(e);
	if (!e->full)
		*none = (u8)(leave - (none + 1));
	e_load(e, T, M_SIB(HOST_SP, RCX, 0, -1));
	e_lea(e, HOST_SP, M_BASE(HOST_SP, pop));
	t->block->sp_back = (i16)-(i32)pop;
	e_ctx_imm(e, M_CTX(exit), exit_id(t->index, k, X_INDIRECT));
	e8(e, 0xc3);
}

void branch_emit(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	switch (i->kind) {
	case K_JMP:
		link_site(t, 0, e_jmp(e), target_of(t, k), false);
		break;
	case K_JCC:
		link_site(t, 0, e_jcc(e, i->zi.opcode & 15), target_of(t, k), false);
		link_site(t, 1, e_jmp(e), next_lin_of(t, k), false);
		break;
	case K_LOOP:
		emit_loop(t, k);
		break;
	case K_CALL:
		push_return(t, k);
		link_site(t, 0, e_call(e), target_of(t, k), false);
		return_site(t, k);
		break;
	case K_CALL_IND:
		emit_call_indirect(t, k);
		break;
	case K_JMP_IND:
		load_target(t, k);
		e_ctx_imm(e, M_CTX(exit), exit_id(t->index, k, X_INDIRECT));
		t->map[k].commit = 0;
		e_ctx_store(e, RCX, M_CTX(save_rcx));
		glue_lookup(t->b, e);
		break;
	default:
		emit_ret(t, k);
	}
}
