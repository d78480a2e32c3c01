/* Translation of one block: decoding, its entries, and its instructions one after the other (copy.c and the others);
 * which status flags are live says flags.c, what to do with each instruction classify.c. */
#define LOG_TOPIC "bt"
#include <string.h>

#include "bt/host.h"
#include "bt/tr.h"

static bool ends(enum kind k)
{
	return k >= K_INTERP_LAST || (k >= K_JMP && k <= K_RET);
}

/* ---- the block --------------------------------------------------------------------------------------- */

/* Whether the block goes on behind a conditional branch: one ahead, which is as likely as not to be
 * taken, and where nothing else has begun a block yet. */
static bool goes_on(struct translation *t, unsigned k)
{
	const struct tins *i = &t->ins[k];
	if (i->kind != K_JCC)
		return false;
	u64 next = next_lin_of(t, k);
	return branch_target(t, k) > next && !((next ^ t->lin) & ~PAGE_MASK) && !cache_known(t->b, t->page, next);
}

/* Decodes from t->bytes, which hold `have` bytes; those beyond `in_page` are of the second page. False: the
 * first instruction is not valid. */
static void decode_block(struct translation *t, unsigned have, unsigned in_page)
{
	unsigned off = 0, sides = 0;
	t->n = 0;
	t->units = false;
	t->classes = 0;
	while (t->n < BLOCK_INSNS && off < in_page) {
		struct tins *i = &t->ins[t->n];
		i->bytes = t->bytes + off;
		i->off = (u16)off;
		i->fop = 0;
		i->varies = false;
		const struct known *known = memo_find(t->b->memo, &t->b->in, t->page->mode, i->bytes, MIN(15u, have - off));
		if (!known)
			break;
		memo_take(known, i->bytes, &i->zi, i->zo);
		if (off + i->zi.length > in_page && t->n)
			break; /* it crosses: a block of its own */
		if (t->page->selfcheck && off + i->zi.length > SELFCHECK_BYTES)
			break;
		i->op = known->op;
		if (!i->op)
			break;
		bool units = t->units;
		u8 classes = t->classes;
		i->kind = classify(t, i);
		if (sides && t->classes != classes) { /* perhaps not reached: no reason to ask for a unit */
			t->units = units;
			t->classes = classes;
			break;
		}
		off += i->zi.length;
		t->n++;
		if (t->page->selfcheck && (ends(i->kind) || selfcheck_ends(i)))
			break;
		if (ends(i->kind) && (sides == SIDES_MAX || !goes_on(t, t->n - 1)))
			break;
		sides += ends(i->kind);
	}
	t->sides = t->n_sides = 0;
	for (unsigned k = 0; k + 1 < t->n; k++)
		t->n_sides += t->ins[k].kind == K_JCC;
	t->guest_bytes = (u16)off;
}

/* A check at an entry: the context's word at m has the value, or the block is not entered. keep: the
 * host's flags are live. */
static u8 *entry_check(struct emit *e, struct marg m, u32 value, bool keep)
{
	if (!keep) {
		e_mem(e, E_GS | 0x81, 7, m); /* cmp */
		e32(e, value);
		return e_jcc(e, CC_NZ);
	}
	e_ctx_store(e, RCX, M_CTX(save_rcx));
	e_mem(e, E_GS | 0x8b, RCX, m);
	if (value)
		e_mem(e, 0x8d, RCX, M_BASE(RCX, -(i32)value));
	u8 *good = e_jrcxz(e);
	e_ctx_load(e, RCX, M_CTX(save_rcx));
	u8 *fail = e_jmp(e);
	e_here8(e, good);
	e_ctx_load(e, RCX, M_CTX(save_rcx));
	return fail;
}

static struct marg ok_slot(const struct code_page *p) { return M_ABS(OK_AT + (i32)p->slot * 4); }

/* `checked`, with flags in ctx.flags, then `host`, with flags in the host's; and where both lead when
 * the block may not be entered. */
static void emit_entries(struct translation *t)
{
	struct emit *e = &t->e, *out = &t->out;
	struct block *b = t->block;
	u8 *fail[2] = { NULL }, *fail_host[2] = { NULL };
	bool live = t->ins[0].live;
	b->stale_checked = emit_here(out);
	emit_exit(t, out, 0, X_GOTO, true);
	b->stale = emit_here(out);
	emit_exit(t, out, 0, X_GOTO, false);
	b->checked = emit_here(e);
	fail[0] = entry_check(e, ok_slot(t->page), t->page->id, false);
	if (t->page2)
		fail[1] = entry_check(e, ok_slot(t->page2), t->page2->id, false);
	if (t->page->selfcheck)
		selfcheck_entry(t);
	if (live)
		flags_restore(e, T_FREE);
	b->host = emit_here(e);
	if (t->page2)
		fail_host[0] = entry_check(e, ok_slot(t->page2), t->page2->id, live);
	u8 *units = t->units ? entry_check(e, M_CTX(units_off), 0, live) : NULL, *units_there = emit_here(e);
	b->host_units = t->units && !t->page2 && !(t->classes & X87_CLASSES) ? units_there : b->host;
	if (t->classes & X87_CLASSES)
		fail_host[1] = entry_check(e, M_CTX(x87_off), 0, live);
	if (e->full)
		return;
	for (unsigned k = 0; k < ARRAY_LEN(fail); k++)
		if (fail[k])
			e_set32(e, fail[k], b->stale_checked);
	for (unsigned k = 0; k < ARRAY_LEN(fail_host); k++)
		if (fail_host[k])
			e_set32(e, fail_host[k], b->stale);
	if (units) {
		e_here32(out, units);
		e_ctx_imm(out, M_CTX(exit), exit_id(t->index, 0, X_GOTO));
		e_set32(out, e_call(out), t->b->units_load);
		e_jmp_to(out, units_there);
	}
	t->saved = false;
}

/* False: instruction k must be left to the interpreter, but others count on it (groups). */
static bool emit_one(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	u8 *before = e->p;
	unsigned n_cold = t->n_cold;
	bool saved = t->saved;
	const struct tins *i = &t->ins[k];
	struct insn_map m = { .host = (u16)(e->p - t->start), .guest = i->off, .commit = COMMIT_NEVER, .victim = ENC_NONE };
	m.held = k && t->ins[k - 1].kind == K_SYSTEM && t->ins[k - 1].zi.mnemonic == ZYDIS_MNEMONIC_STI;
	m.no_resume = i->no_resume;
	m.by_store = i->group == GROUP_FIRST && i->group_store;
	m.saved = m.saved_then = m.saved_fault = saved;
	t->map[k] = m;
	bool gate = i->kind == K_GATE || i->kind == K_GATE_LAST;
	if (i->kind != K_INTERP && i->kind != K_INTERP_LAST && !gate) {
		prelude(t, k);
		if (emit_insn(t, k) && x87_after(t, k)) {
			if (i->writes && i->kind != K_SYSTEM)
				t->saved = false; /* all that are live are the instruction's own, or were brought */
			return true;
		}
		if (i->group != GROUP_NONE || i->no_resume)
			return false;
		e->p = before; /* not so: begin again, without */
		t->n_cold = n_cold;
		t->map[k] = m;
	}
	if (gate) {
		t->map[k].gate = (u8)system_gate(t, i);
		t->map[k].gate_arg = system_gate_arg(i, t->map[k].gate);
		gate_emit(t, e, k, saved);
	} else {
		t->map[k].fop = FOP_INTERP;
		emit_exit(t, e, k, X_INSN, saved);
	}
	t->saved = false; /* both are right after it */
	return true;
}

/* All instructions. */
static void emit_body(struct translation *t)
{
	const struct emit e = t->e, out = t->out;
	for (unsigned k = 0; k < t->n; k++) {
		if (!k) {
			t->e = e;
			t->out = out;
			t->n_cold = t->sides = 0;
			t->n_seconds = 0;
			emit_entries(t);
		}
		if (emit_one(t, k))
			continue;
		t->ins[k].kind = K_INTERP; /* once more, then, with groups that end there */
		liveness(t);
		groups_plan(t);
		k = ~0u;
	}
}

static bool emit_block(struct translation *t)
{
	struct emit *e = &t->e;
	struct block *b = t->block;
	emit_body(t);
	/* The end: a boundary too where control falls through. */
	t->map[t->n] = (struct insn_map){ .host = (u16)(e->p - t->start), .guest = t->guest_bytes, .victim = ENC_NONE,
					  .saved = t->saved };
	if (!ends(t->ins[t->n - 1].kind))
		branch_fall(t);
	cold_emit(t);
	branch_stubs(t);
	while (e->p - t->start < 32)
		e8(e, 0x90); /* room to divert the entries */
	b->bytes = (u32)(e->p - t->start);
	return !e->full && !t->out.full && b->bytes < 65000;
}

/* From here on the bytes are watched, `first` of them in the block's page, `rest` in the second; are they
 * still what was decoded? */
static bool watch(struct translation *t, unsigned off, unsigned first, unsigned rest)
{
	cache_watch(t->b, t->page, off, first);
	if (rest)
		cache_watch(t->b, t->page2, 0, rest);
	return !memcmp(t->bytes, t->page->host + off, first) && (!rest || !memcmp(t->bytes + first, t->page2->host, rest)) &&
	       atomic_load(&t->page->code->gen) == t->page->gen;
}

struct block *translate(struct bt *b, struct code_page *page, u64 lin)
{
	struct translation *t = b->scratch;
	unsigned off = lin & PAGE_MASK, in_page = 4096 - off;
	u64 room = page->mode == CODE64 ? ~0ull : (u64)page->klass.cs_limit + 1 - rip_of(b, lin); /* CS's limit */
	unsigned have = (unsigned)MIN(in_page, room);
	t->b = b;
	t->lin = lin;
	t->page = page;
	t->page2 = NULL;
	t->block = NULL;
	t->ahead = t->varies = 0;
	memcpy(t->bytes, page->host + off, MIN(in_page, BLOCK_INSNS * 15)); /* more it cannot have */
	decode_block(t, have, in_page);
	if (!t->n || t->guest_bytes > in_page) {
		/* Does the first one go on in the next page? */
		ZydisDecodedInstruction zi;
		ZydisDecodedOperand zo[ZYDIS_MAX_OPERAND_COUNT];
		if (in_page >= 15 || have < in_page || isa_decode(page->mode, b->in.quirks, t->bytes, in_page, &zi, zo) != ISA_SHORT)
			return NULL;
		struct code_page *second = cache_page(b, (lin | PAGE_MASK) + 1);
		if (!second)
			return NULL;
		if (!selfcheck_agree(b, page, second))
			return NULL;
		t->page2 = second;
		memcpy(t->bytes + in_page, second->host, 16);
		have = (unsigned)MIN(in_page + 15, room);
		decode_block(t, have, in_page);
		if (!t->n)
			return NULL;
	}
	unsigned first = MIN(t->guest_bytes, in_page), rest = t->guest_bytes - first;
	if (!page->selfcheck && !watch(t, off, first, rest))
		return NULL; /* being written: this once by the interpreter */
	if (page->selfcheck)
		selfcheck_plan(t);
	liveness(t);
	groups_plan(t);
	/* An instruction takes a few hundred bytes at most, out of line parts and all. */
	t->block = block_new(b, t->n, LINKS_LAST + t->n_sides, page->selfcheck ? t->guest_bytes : 0, 512 * t->n + 2048, &t->e, &t->out);
	if (!t->block)
		return NULL;
	if (page->selfcheck)
		memcpy(t->block->made_from, t->bytes, t->guest_bytes);
	t->start = t->e.p;
	t->index = t->block->index;
	if (!emit_block(t))
		bug("a block of %u instructions needs more than its room", t->n);
	t->block->lin = lin;
	t->block->page = page;
	t->block->page2 = t->page2;
	t->block->guest_bytes = t->guest_bytes;
	t->block->units = t->units;
	t->block->ahead = t->ahead;
	t->block->classes = t->classes;
	t->block->varies = t->varies;
	memcpy(t->block->map, t->map, (t->n + 1u) * sizeof(*t->map));
	block_finish(b, t->block, &t->e, &t->out);
	if (page->selfcheck)
		selfcheck_made(t);
	if (likely(verify_new(b, t->block, t->bytes)))
		return t->block;
	block_drop(b, t->block);
	return NULL;
}
