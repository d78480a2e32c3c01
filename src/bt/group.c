/* Groups: several accesses through one base register, so close together that one check and one
 * page-table entry serve them all. The first leaves unless all lie in one page; T then holds the
 * entry until the last.
 *
 * Invariants
 *  1. Between a group's first and last instruction nothing touches T, nor the base but by amounts
 *     that are known (PUSH, POP, CALL, RET, ADD and SUB of RSP).
 *  2. Nothing resumes inside a group: after an exit in it a block of its own goes on. A block whose
 *     groups keep crossing pages is made anew without (cache_ungroup).
 *  3. Where one of them stores, all go by the store entry: who may store there may load. */
#include "bt/tr.h"

#define GROUP_SPAN 512

/* One access of an instruction, as base + disp; what it does to T and to the base. */
struct member { unsigned base; i64 disp; unsigned size; bool store; bool ends; i64 moves; };

static bool is_sp(const ZydisDecodedOperand *o) { return o->type == ZYDIS_OPERAND_TYPE_REGISTER && o->reg.value == ZYDIS_REGISTER_RSP; }

static bool names_homeless(const struct tins *i)
{
	for (unsigned k = 0; k < i->zi.operand_count; k++) {
		const ZydisDecodedOperand *o = &i->zo[k];
		if (o->type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		ZydisRegisterClass c = ZydisRegisterGetClass(o->reg.value);
		if (c < ZYDIS_REGCLASS_GPR8 || c > ZYDIS_REGCLASS_GPR64)
			continue;
		int id = ZydisRegisterGetId(o->reg.value);
		if (c == ZYDIS_REGCLASS_GPR8) {
			if (id >= 4 && id < 8)
				return true; /* AH..BH need T as well */
			id = id >= 8 ? id - 4 : id;
		}
		if (is_homeless((unsigned)id))
			return true;
	}
	return false;
}

static bool writes_register(const struct tins *i, unsigned guest)
{
	for (unsigned k = 0; k < i->zi.operand_count; k++) {
		const ZydisDecodedOperand *o = &i->zo[k];
		if (o->type != ZYDIS_OPERAND_TYPE_REGISTER || !(o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
			continue;
		ZydisRegisterClass c = ZydisRegisterGetClass(o->reg.value);
		int id = ZydisRegisterGetId(o->reg.value);
		if (c == ZYDIS_REGCLASS_GPR8)
			id = id < 4 ? id : id - 4;
		if (c >= ZYDIS_REGCLASS_GPR8 && c <= ZYDIS_REGCLASS_GPR64 && (unsigned)id == guest)
			return true;
	}
	return false;
}

/* False: not an access that a group can have. */
static bool access_of(const struct translation *t, unsigned k, struct member *a)
{
	const struct tins *i = &t->ins[k];
	*a = (struct member){ .base = HOST_SP, .size = 8 };
	switch ((enum kind)i->kind) {
	case K_PUSH:
		if (i->zo[0].type == ZYDIS_OPERAND_TYPE_MEMORY)
			return false;
		*a = (struct member){ .base = HOST_SP, .disp = -8, .size = 8, .store = true, .moves = -8 };
		return true;
	case K_CALL:
		*a = (struct member){ .base = HOST_SP, .disp = -8, .size = 8, .store = true, .ends = true };
		return true;
	case K_POP:
		a->moves = 8;
		a->ends = is_sp(&i->zo[0]) || names_homeless(i);
		return true;
	case K_RET:
		a->ends = true;
		return true;
	case K_MEM: {
		struct ea e;
		const ZydisDecodedOperand *m = memory_of(i);
		if (i->fop || !operand_ea(t, i, m, &e) || e.konst || e.seg || e.index != ENC_NONE || e.base == ENC_NONE || at_home(e.base))
			return false;
		*a = (struct member){ .base = e.base, .disp = e.disp, .size = m->size / 8u, .store = m->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE };
		a->ends = names_homeless(i);
		return true;
	}
	default:
		return false;
	}
}

/* Whether a group may go on over instruction k, which is no member; adds to *moved what it adds to the base. */
static bool passes(const struct translation *t, unsigned k, unsigned base, i64 *moved)
{
	const struct tins *i = &t->ins[k];
	unsigned guest = base == HOST_SP ? R_SP : base;
	if (i->kind == K_NOP || i->kind == K_JCC) /* not taken */
		return true;
	if ((i->kind != K_COPY && i->kind != K_LEA) || i->fop || names_homeless(i))
		return false;
	if (i->kind == K_LEA) {
		struct ea e;
		if (!operand_ea(t, i, &i->zo[1], &e) || (e.base != ENC_NONE && at_home(e.base)) || (e.index != ENC_NONE && at_home(e.index)))
			return false;
	}
	if (!writes_register(i, guest))
		return true;
	bool add = i->zi.mnemonic == ZYDIS_MNEMONIC_ADD, sub = i->zi.mnemonic == ZYDIS_MNEMONIC_SUB;
	if (!(add || sub) || i->zi.operand_width != 64 || i->zo[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
		return false;
	i64 by = (i64)i->zo[1].imm.value.s;
	if (by < -GROUP_SPAN || by > GROUP_SPAN)
		return false;
	*moved += add ? by : -by;
	return true;
}

/* The group that begins with k, if it has two members. Returns its last instruction, or k. */
static unsigned plan(struct translation *t, unsigned k)
{
	struct member a;
	if (!access_of(t, k, &a))
		return k;
	unsigned base = a.base, guest = base == HOST_SP ? R_SP : base, last = k, count = 0;
	i64 lo = a.disp, hi = a.disp, moved = 0;
	bool store = false;
	u64 members = 0;
	for (unsigned n = k; n < t->n; n++) {
		const struct tins *i = &t->ins[n];
		if (!access_of(t, n, &a)) {
			if (!passes(t, n, base, &moved))
				break;
			continue;
		}
		if (a.base != base)
			break;
		i64 from = moved + a.disp, to = from + a.size, new_lo = from < lo ? from : lo, new_hi = to > hi ? to : hi;
		if (new_hi - new_lo > GROUP_SPAN)
			break;
		lo = new_lo;
		hi = new_hi;
		store |= a.store;
		members |= 1ull << n;
		last = n;
		count++;
		moved += a.moves;
		bool stack = i->kind != K_MEM;
		if (a.ends || (!stack && writes_register(i, guest)) || (stack && base != HOST_SP))
			break;
		if (i->kind == K_POP && writes_register(i, guest) && a.ends)
			break;
	}
	if (count < 2)
		return k;
	for (unsigned n = k; n <= last; n++) {
		t->ins[n].group = n == k ? GROUP_FIRST : members >> n & 1 ? GROUP_MEMBER : GROUP_PASSES;
		t->ins[n].group_store = store;
	}
	t->ins[k].group_lo = (i32)lo;
	t->ins[k].group_span = (u16)(hi - lo);
	return last;
}

void groups_plan(struct translation *t)
{
	for (unsigned k = 0; k < t->n; k++)
		t->ins[k].group = GROUP_NONE;
	if (t->ungrouped || t->page->mode != CODE64)
		return;
	for (unsigned k = 0; k < t->n; k++)
		k = plan(t, k);
}
