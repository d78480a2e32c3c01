/* Groups: several accesses of a block through the same registers, so close together that one check and one
 * page-table entry serve them all. The first leaves unless all lie in one page; where they are in the host's
 * memory is then in T, and, once another instruction needs T, in a slot of the context (mempath.c).
 *
 * Registers are the same where their values are known to be: a number stands for what a register held when it
 * was last written, and copies and sums with constants (MOV, LEA, ADD, SUB, INC, DEC, PUSH, POP, LEAVE) keep it.
 *
 * Invariants
 *  1. Groups lie between instructions that could change the page table, the space or a segment's base: those of
 *     the interpreter, system.c's, strings.c's.
 *  2. Nothing resumes inside a group, nor between it and the copies of registers that it counts on, so that all
 *     that has always been there before: after an exit the interpreter carries out the rest of it (bt.c), or a
 *     block of its own goes on. A group that keeps missing is given up (cache_ungroup); in a window none misses.
 *  3. Where one of them stores, all go by the store entry: who may store there may load. */
#include <string.h>

#include "bt/tr.h"

/* The longer a group, the more often it crosses a page, and to leave costs what hundreds of checks do: an object
 * on the heap, anywhere in a page, may have so many bytes for n accesses; a stack frame stays where it is for long. */
#define HEAP_SPAN(n) (16 + 8 * (i64)(n))
#define STACK_SPAN 256
_Static_assert(STACK_SPAN <= LIMIT_MAX && HEAP_SPAN(BLOCK_INSNS) <= LIMIT_MAX, "there is a limit for each");
/* In a window there are no pages to cross. */
#define WINDOW_SPAN (1 << 20)
_Static_assert(WINDOW_SPAN < WINDOW_REACH, "all in the window of the first, or faulting");
#define SLOTS ARRAY_LEN(((struct ctx *)0)->group)

/* ---- values of registers ------------------------------------------------------------------------- */

struct value { u16 of; u8 since; u64 plus; }; /* since: the instruction that first gave it to a second register; NEVER */
struct values { struct value reg[16]; u16 next; };
#define NEVER 0xff

static void forget(struct values *v, unsigned r) { v->reg[r] = (struct value){ v->next++, NEVER, 0 }; }
static void forget_all(struct values *v)
{
	for (unsigned r = 0; r < 16; r++)
		forget(v, r);
}

static int gpr(const ZydisDecodedOperand *o)
{
	if (o->type != ZYDIS_OPERAND_TYPE_REGISTER)
		return -1;
	ZydisRegisterClass c = ZydisRegisterGetClass(o->reg.value);
	if (c < ZYDIS_REGCLASS_GPR8 || c > ZYDIS_REGCLASS_GPR64)
		return -1;
	int id = ZydisRegisterGetId(o->reg.value);
	return c == ZYDIS_REGCLASS_GPR8 && id >= 4 ? id - 4 : id;
}
static bool high8_operand(const ZydisDecodedOperand *o)
{
	return o->type == ZYDIS_OPERAND_TYPE_REGISTER && o->reg.value >= ZYDIS_REGISTER_AH && o->reg.value <= ZYDIS_REGISTER_BH;
}

/* The value of register r, which instruction n gives to another. */
static struct value copied(struct values *v, unsigned r, unsigned n)
{
	struct value *from = &v->reg[r];
	from->since = MIN(from->since, (u8)n);
	return *from;
}

/* What an instruction of registers only leaves in its first operand, where that is a known value. */
static bool result(struct values *v, const struct tins *i, unsigned n, struct value *to)
{
	const ZydisDecodedOperand *d = &i->zo[0], *a = &i->zo[1];
	if (gpr(d) < 0 || d->size != 64 || (i->kind != K_COPY && i->kind != K_LEA))
		return false;
	*to = v->reg[gpr(d)];
	bool imm = i->zi.operand_count_visible > 1 && a->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && !i->varies;
	switch (i->zi.mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
		if (gpr(a) < 0)
			return false;
		*to = copied(v, (unsigned)gpr(a), n);
		return true;
	case ZYDIS_MNEMONIC_LEA:
		if (i->zi.address_width != 64 || a->mem.base == ZYDIS_REGISTER_NONE || a->mem.base == ZYDIS_REGISTER_RIP || a->mem.index != ZYDIS_REGISTER_NONE)
			return false;
		*to = copied(v, (unsigned)ZydisRegisterGetId(a->mem.base), n);
		to->plus += (u64)a->mem.disp.value;
		return true;
	case ZYDIS_MNEMONIC_ADD:
		to->plus += a->imm.value.u;
		return imm;
	case ZYDIS_MNEMONIC_SUB:
		to->plus -= a->imm.value.u;
		return imm;
	case ZYDIS_MNEMONIC_INC:
		to->plus++;
		return true;
	case ZYDIS_MNEMONIC_DEC:
		to->plus--;
		return true;
	default:
		return false;
	}
}

static void step(struct values *v, const struct tins *i, unsigned n)
{
	struct value to;
	switch ((enum kind)i->kind) {
	case K_NOP: case K_JCC:
		return;
	case K_PUSH:
		v->reg[R_SP].plus -= 8;
		return;
	case K_LEAVE:
		v->reg[R_SP] = copied(v, R_BP, n);
		v->reg[R_SP].plus += 8;
		forget(v, R_BP);
		return;
	case K_POP:
		v->reg[R_SP].plus += 8;
		forget(v, (unsigned)gpr(&i->zo[0]));
		return;
	case K_COPY: case K_LEA: case K_MEM: {
		bool known = result(v, i, n, &to);
		for (unsigned k = 0; k < i->zi.operand_count; k++)
			if (gpr(&i->zo[k]) >= 0 && i->zo[k].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
				forget(v, (unsigned)gpr(&i->zo[k]));
		if (known)
			v->reg[gpr(&i->zo[0])] = to;
		return;
	}
	default:
		forget_all(v);
	}
}

/* ---- accesses ---------------------------------------------------------------------------------------- */

#define NO_VALUE 0xffffu
/* One of an instruction: at base + index << scale + at, and its displacement there; size 0: none that a group can have. */
struct reach { u16 base, index; u8 scale, seg, size, since; bool store, stack; u64 at; i32 disp; };

static struct reach stack_access(const struct value *r, i32 disp, bool store)
{
	return (struct reach){ .base = r->of, .index = NO_VALUE, .size = 8, .since = r->since, .store = store, .stack = true, .at = r->plus + (u64)(i64)disp, .disp = disp };
}

static struct reach access_of(const struct translation *t, const struct tins *i, const struct values *v)
{
	static const struct reach none;
	const struct value *sp = &v->reg[R_SP];
	switch ((enum kind)i->kind) {
	case K_PUSH: return i->zo[0].type == ZYDIS_OPERAND_TYPE_MEMORY ? none : stack_access(sp, -8, true);
	case K_CALL: return stack_access(sp, -8, true);
	case K_POP: case K_RET: return stack_access(sp, 0, false);
	case K_LEAVE: return stack_access(&v->reg[R_BP], 0, false);
	case K_MEM: break;
	default: return none;
	}
	struct ea e;
	const ZydisDecodedOperand *m = memory_of(i);
	if (i->fop || !operand_ea(t, i, m, &e) || (e.konst && !e.seg))
		return none;
	struct reach a = { .base = NO_VALUE, .index = NO_VALUE, .since = NEVER, .seg = (u8)e.seg, .size = (u8)(m->size / 8), .store = m->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE };
	a.disp = e.konst ? (i32)e.lin : e.disp;
	a.at = e.konst ? e.lin : (u64)(i64)e.disp;
	if (!e.konst && e.base != ENC_NONE) {
		const struct value *b = &v->reg[ZydisRegisterGetId(m->mem.base)];
		a.base = b->of;
		a.stack = b->of == sp->of;
		a.since = b->since;
		a.at += b->plus;
	}
	if (!e.konst && e.index != ENC_NONE) {
		const struct value *x = &v->reg[ZydisRegisterGetId(m->mem.index)];
		a.index = x->of;
		a.since = MIN(a.since, x->since);
		a.scale = (u8)e.scale;
		a.at += x->plus << e.scale;
	}
	return a;
}

static bool same_registers(const struct reach *a, const struct reach *b)
{
	return b->size && a->base == b->base && a->index == b->index && a->scale == b->scale && a->seg == b->seg;
}

/* ---- T --------------------------------------------------------------------------------------------------- */

static bool names_homeless(const struct tins *i)
{
	for (unsigned k = 0; k < i->zi.operand_count; k++)
		if (high8_operand(&i->zo[k]) /* needs T as well */ || (gpr(&i->zo[k]) >= 0 && is_homeless((unsigned)gpr(&i->zo[k]))))
			return true;
	return false;
}

/* Whether T is after instruction i what it was before; member: of the group that T is of. */
static bool keeps_t(const struct tins *i, bool member)
{
	const ZydisDecodedOperand *m = memory_of(i);
	switch ((enum kind)i->kind) {
	case K_NOP: case K_JCC: /* not taken */
		return true;
	case K_LEA:
		if ((m->mem.base != ZYDIS_REGISTER_NONE && is_homeless((unsigned)ZydisRegisterGetId(m->mem.base) & 15)) ||
		    (m->mem.index != ZYDIS_REGISTER_NONE && is_homeless((unsigned)ZydisRegisterGetId(m->mem.index) & 15)))
			return false;
		return !names_homeless(i);
	case K_COPY:
		return !i->fop && !i->varies && !names_homeless(i);
	case K_MEM: case K_POP:
		return member && !names_homeless(i);
	case K_PUSH:
		return member;
	default:
		return false;
	}
}

/* ---- groups -------------------------------------------------------------------------------------------------- */

struct plan {
	struct translation *t;
	struct reach access[BLOCK_INSNS];
	unsigned last[SLOTS];   /* of the group that has the slot; 0: none */
	u64 taken;              /* instructions that are in a group, or are to be in none */
};

static bool barrier(const struct tins *i)
{
	return i->kind == K_INTERP || i->kind == K_INTERP_LAST || i->kind == K_GATE || i->kind == K_GATE_LAST || i->kind == K_SYSTEM || i->kind == K_STRING;
}

/* Of the one access that a group can have of the instruction. */
static bool by_window(const struct tins *i)
{
	const ZydisDecodedOperand *m = i->kind == K_MEM ? memory_of(i) : NULL;
	return (m && m->mem.base != ZYDIS_REGISTER_RSP ? i->window : i->window_stack) < N_WINDOWS;
}

/* Which instructions can be in one group with k; *lo and *hi: their bytes, relative to k's address. */
static u64 members_of(const struct plan *p, unsigned k, bool windowed, i64 *lo, i64 *hi)
{
	const struct reach *first = &p->access[k];
	u64 members = 0;
	unsigned count = 1;
	*lo = 0;
	*hi = first->size;
	for (unsigned n = k + 1; n < p->t->n && !barrier(&p->t->ins[n]); n++) {
		const struct reach *a = &p->access[n];
		i64 from = (i64)(a->at - first->at), most = windowed ? WINDOW_SPAN : LIMIT_MAX;
		if (p->taken >> n & 1 || !same_registers(first, a) || from < -most || from > most || (windowed && !by_window(&p->t->ins[n])))
			continue;
		i64 new_lo = MIN(from, *lo), new_hi = MAX(from + a->size, *hi);
		if (!windowed && new_hi - new_lo > (first->stack ? STACK_SPAN : HEAP_SPAN(count + 1)))
			continue;
		count++;
		*lo = new_lo;
		*hi = new_hi;
		members |= 1ull << n;
	}
	return members;
}

/* Which of them find T lost. */
static u64 members_reload(const struct plan *p, unsigned k, u64 members)
{
	bool kept = keeps_t(&p->t->ins[k], true);
	u64 reload = 0;
	for (unsigned n = k + 1; members >> n; n++) {
		bool member = members >> n & 1;
		if (member && !kept)
			reload |= 1ull << n;
		kept = (kept || member) && keeps_t(&p->t->ins[n], member);
	}
	return reload;
}

static int free_slot(const struct plan *p, unsigned k)
{
	for (unsigned n = 0; n < SLOTS; n++)
		if (p->last[n] < k)
			return (int)n;
	return -1;
}

static void form(struct plan *p, unsigned k)
{
	struct tins *ins = p->t->ins;
	const struct reach *first = &p->access[k];
	bool windowed = by_window(&ins[k]);
	i64 lo, hi;
	u64 members = members_of(p, k, windowed, &lo, &hi), reload = members_reload(p, k, members);
	int slot = reload ? free_slot(p, k) : 0;
	if (!members || slot < 0 || (i32)((i64)first->disp + lo - 1) != first->disp + lo - 1 || (i64)first->disp + LIMIT_MAX > INT32_MAX || (i64)first->disp + hi > INT32_MAX)
		return;
	p->taken |= 1ull << k | members;
	u64 lin = insn_lin_of(p->t, k);
	if (!windowed && p->t->b->ungrouped[ungroup_slot(lin)] == lin)
		return;
	unsigned last = 63u - (unsigned)__builtin_clzll(members);
	bool store = first->store;
	unsigned since = MIN(k, first->since);
	for (unsigned n = k + 1; n <= last; n++) {
		if (!(members >> n & 1))
			continue;
		since = MIN(since, p->access[n].since);
		store |= p->access[n].store;
		ins[n].group = GROUP_MEMBER;
		ins[n].group_slot = (u8)slot;
		ins[n].group_slotted = reload >> n & 1;
		ins[n].group_disp = (i32)(first->disp - 1 + (i64)(p->access[n].at - first->at));
	}
	for (unsigned n = since + 1; n <= last; n++)
		ins[n].no_resume = true;
	bool held = false; /* from a member that finds T kept, back to the one before it */
	for (unsigned n = last; n > k; n--) {
		held = members >> n & 1 ? !(reload >> n & 1) : held;
		ins[n].t_held |= held;
	}
	ins[k].group = GROUP_FIRST;
	ins[k].group_store = store && !windowed;
	ins[k].group_slot = (u8)slot;
	ins[k].group_slotted = reload != 0;
	ins[k].group_lo = (i32)lo;
	ins[k].group_span = (u16)(windowed ? 0 : hi - lo);
	if (reload)
		p->last[slot] = last;
}

/* ---- windows ------------------------------------------------------------------------------------------------- */

static unsigned guest_of(unsigned host) { return host == HOST_SP ? R_SP : host == HOME11 ? R_11 : host == HOME15 ? R_15 : host; }

/* The general registers that it writes with something that is no sum of theirs. */
static u32 overwritten(const struct tins *i)
{
	u32 w = 0;
	if (i->kind == K_LEA || i->zi.mnemonic == ZYDIS_MNEMONIC_ADD || i->zi.mnemonic == ZYDIS_MNEMONIC_SUB)
		return 0;
	for (unsigned k = 0; k < i->zi.operand_count; k++)
		if (gpr(&i->zo[k]) >= 0 && i->zo[k].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
			w |= 1u << gpr(&i->zo[k]);
	return w;
}

/* Where the operand may lead: with the registers as they are before the block, of which it has written some. 0: who
 * knows. */
static u64 guess(const struct translation *t, const struct ea *a, u32 written)
{
	const struct cpu *c = t->b->cpu;
	u64 lin = a->seg ? c->ebase[a->seg] : 0;
	if (a->konst)
		return lin + a->lin;
	if ((a->base != ENC_NONE && written >> guest_of(a->base) & 1) || (a->base == ENC_NONE && written >> guest_of(a->index) & 1))
		return 0;
	if (a->base != ENC_NONE)
		lin += c->regs[guest_of(a->base)];
	if (a->index != ENC_NONE)
		lin += c->regs[guest_of(a->index)] << a->scale;
	return lin + (u64)(i64)a->disp;
}

static void window_plan(struct translation *t, unsigned k, u32 *written)
{
	struct tins *i = &t->ins[k];
	const ZydisDecodedOperand *m = memory_of(i);
	struct ea a;
	i->window = i->window_stack = i->window_second = N_WINDOWS;
	if (!t->page->klass.windowed)
		return;
	u64 lin = insn_lin_of(t, k);
	u8 none;
	i->window_stack = (u8)window_site(t->b, lin, true, t->b->cpu->regs[R_SP], &none);
	if (m && operand_ea(t, i, m, &a)) {
		i->window = (u8)window_site(t->b, lin, false, guess(t, &a, *written), &i->window_second);
		if (a.konst && !a.seg && i->window < N_WINDOWS)
			i->window = (u8)window_of(t->b, a.lin);
	}
	*written |= overwritten(i);
}

void groups_plan(struct translation *t)
{
	struct plan p = { .t = t };
	struct values v = { .next = 0 };
	forget_all(&v);
	u32 written = 0;
	for (unsigned k = 0; k < t->n; k++) {
		t->ins[k].group = GROUP_NONE;
		t->ins[k].no_resume = t->ins[k].t_held = false;
		window_plan(t, k, &written);
		if (t->page->mode != CODE64)
			continue;
		p.access[k] = access_of(t, &t->ins[k], &v);
		step(&v, &t->ins[k], k);
	}
	for (unsigned k = 0; k < t->n && t->page->mode == CODE64; k++)
		if (p.access[k].size && !(p.taken >> k & 1))
			form(&p, k);
}
