/* The verifier: reads a block's host code again, byte by byte, as if someone else had written it, and
 * proves that running it, whatever the guest's registers and memory hold, ends in one of the ways
 * out that bt.h knows and touches nothing but the guest's RAM and its own context.
 *
 * It shares nothing with the translator but bt.h: instructions are decoded with Zydis, the
 * code of each guest instruction is carried out on symbolic values, along every path, from every
 * place where the block may be entered.
 *
 *  1. All bytes are whole instructions of the kinds in verify_form.c; branches lead to starts of
 *     such inside the block, to exit_common, gates and lookup, or are links to block heads or their stubs (verify_branch.c).
 *  2. Guest memory is accessed through T as verify_path.c says; the space (gs) only at the known
 *     places for the known ends; RSP only by CALL and RET, as the return stack.
 *  3. Where the block may be left (exits, faults, kicks up to insn_map.commit) every guest register
 *     is in its place with the value that it had at the instruction's start; at the instruction's
 *     end those that it does not write. ctx.exit names this block and a way out that fits.
 *  4. The first instruction is reached only after the ok slots of its page(s) were looked at, where
 *     the entry is `checked`, and vector and x87 code only after their units were.
 *     Where the block checks itself, after each of the guest's bytes was compared with what the block was
 *     made from, but for immediates that are read from there; nothing but its last instruction stores.
 *  5. With the guest's bytes at hand: the address accessed is the operand's, the guest's own
 *     instruction stands there once with its own registers and immediates (verify_guest.c).
 *
 * Not looked at: status flags, but for their coming back where they are kept; which are live. Threading:
 * a verifier belongs to a vCPU. */
#define LOG_TOPIC "bt"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bt/verify.h"

#define FORKS_MAX 64u    /* one inside the other */
#define STEPS_MAX 4000u /* host instructions on the paths of one guest instruction */
#define SAMPLE 256u
#define DIVERSION 5u   /* bytes that cache.c writes over an entry of a block that is no longer valid */

static bool walk(struct verifier *v, struct path p);

bool verify_bad(struct verifier *v, u32 off, const char *fmt, ...)
{
	char what[256];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	return error_set(v->e, "at +%#x of guest instruction %u: %s", off, v->k_insn, what);
}

/* ---- places ---------------------------------------------------------------------------------------
 * A block's code is in two parts; a place is a number for a byte of either: those of the first, a
 * gap, those of the second. The first part is decoded from its first byte to its last; the second,
 * which has constants in it too, where paths lead. */
enum { GAP = 16 };

static u32 cold_place(const struct verifier *v) { return v->k->bytes + GAP; }

const u8 *verify_pc(const struct verifier *v, u32 place)
{
	return place < v->k->bytes ? v->k->checked + place : v->k->cold + (place - cold_place(v));
}

u32 verify_place(const struct verifier *v, const u8 *pc)
{
	const struct block *k = v->k;
	if (pc >= k->checked && pc < k->checked + k->bytes)
		return (u32)(pc - k->checked);
	if (pc >= k->cold && pc < k->cold + k->cold_bytes)
		return cold_place(v) + (u32)(pc - k->cold);
	return ~0u;
}

static bool room(struct verifier *v, u32 places)
{
	if (places > v->cap) { /* an instruction a byte at most */
		free(v->number);
		free(v->owned);
		free(v->insn);
		free(v->seen);
		v->number = malloc(places * sizeof(*v->number));
		v->owned = malloc(places);
		v->insn = malloc(places * sizeof(*v->insn));
		v->seen = malloc(places);
		v->cap = v->number && v->owned && v->insn && v->seen ? places : 0;
	}
	v->places = places;
	return v->cap >= places;
}

/* As the processor does: where Zydis takes F3 90 for PAUSE, REX.B makes it XCHG with r8 (isa/decode.c). */
static bool decoded(struct verifier *v, const u8 *pc, u32 left, struct hinsn *h)
{
	if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&v->decoder, pc, left, &h->zi, h->zo)))
		return false;
	if (h->zi.mnemonic != ZYDIS_MNEMONIC_PAUSE || !(h->zi.attributes & ZYDIS_ATTRIB_HAS_REX) || !h->zi.raw.rex.B)
		return true;
	u8 bytes[15];
	memcpy(bytes, pc, h->zi.length);
	for (unsigned k = 0; k < h->zi.length; k++)
		bytes[k] = bytes[k] == 0xf3 ? 0x3e : bytes[k];
	return ZYAN_SUCCESS(ZydisDecoderDecodeFull(&v->decoder, bytes, h->zi.length, &h->zi, h->zo));
}

/* Decodes what begins at a place. */
static bool decode_at(struct verifier *v, u32 place)
{
	const struct block *k = v->k;
	struct hinsn *h = &v->insn[v->n];
	u32 left = (place < k->bytes ? k->bytes : v->places) - place;
	if (!decoded(v, verify_pc(v, place), left, h))
		return verify_bad(v, place, "no instruction");
	h->off = place;
	h->len = h->zi.length;
	const char *why = form_check(h);
	if (why)
		return verify_bad(v, place, "%s", why);
	for (unsigned n = 0; n < h->len; n++)
		if (v->owned[place + n])
			return verify_bad(v, place, "an instruction across another");
	memset(v->owned + place, 1, h->len);
	v->seen[v->n] = 0;
	v->number[place] = (u16)++v->n;
	return true;
}

static bool decode(struct verifier *v)
{
	const struct block *k = v->k;
	if (!room(v, k->bytes + GAP + k->cold_bytes))
		return error_set(v->e, "no memory to verify %u bytes", k->bytes);
	memset(v->number, 0, v->places * sizeof(*v->number));
	memset(v->owned, 0, v->places);
	v->n = 0;
	for (u32 off = 0; off < k->bytes; off += v->insn[v->n - 1].len)
		if (!decode_at(v, off))
			return false;
	return true;
}

const struct hinsn *verify_insn_at(struct verifier *v, u32 place)
{
	if (place >= v->places)
		return NULL;
	if (!v->number[place] && (place < cold_place(v) || !decode_at(v, place)))
		return NULL;
	return &v->insn[v->number[place] - 1];
}

static bool in_region(const struct verifier *v, u32 off)
{
	const struct insn_map *m = v->k->map + v->k_insn;
	return v->root == ROOT_INSN && off >= m[0].host && off < m[1].host;
}

/* The main code of another guest instruction. */
static bool in_another(const struct verifier *v, u32 off)
{
	const struct block *k = v->k;
	if (v->root == ROOT_DEAD || v->root == ROOT_RETURN)
		return false;
	return off >= k->map[0].host && off < k->map[k->n].host && !in_region(v, off);
}

/* ---- from one instruction to the next -------------------------------------------------------------------- */

static bool slot_looked_at(struct verifier *v, const struct path *p, i64 at, u32 value)
{
	sym w = sym_atom(&v->syms, AT_WORD, 0, SYM_NONE, (u32)at);
	return path_fact(v, p, FACT_ZERO, sym_low(&v->syms, sym_add_const(&v->syms, w, (u64)-(i64)value), 32), 0);
}

static bool insn_begin(struct verifier *v, unsigned insn);

/* Between two instructions: sums of registers become values of their own, lest they grow without end. What they
 * were made of they are then no longer known to be. */
static void condense(struct verifier *v, struct path *p)
{
	struct syms *s = &v->syms;
	struct expr was[16];
	sym now[16];
	for (unsigned g = 0; g < 16; g++) {
		struct expr x = s->exprs[guest_value(p, g)];
		u64 konst = x.konst;
		x.konst = 0;
		was[g] = x;
		now[g] = SYM_NONE;
		if (!x.n || (x.n == 1 && x.times[0] == 1))
			continue;
		for (unsigned k = 0; k < g && now[g] == SYM_NONE; k++)
			if (now[k] != SYM_NONE && sym_expr_equal(&was[k], &x))
				now[g] = now[k];
		if (now[g] == SYM_NONE)
			now[g] = sym_fresh(s);
		guest_set(p, g, sym_add_const(s, now[g], konst));
	}
}

/* The path has reached the first guest instruction, or the next one. *go_on: which it then carries
 * out, too: nothing else leads there (a group: an entry that serves several). */
static bool fell_through(struct verifier *v, struct path *p, bool *go_on)
{
	const struct block *k = v->k;
	*go_on = false;
	if (v->root == ROOT_INSN) {
		unsigned next = v->k_insn + 1;
		if (v->g.known && v->g.kind >= G_CALL && v->g.kind <= G_RET && (v->g.kind != G_JCC || p->taken))
			return verify_bad(v, p->at, "a branch that falls through");
		if (!guest_done(v, p, p->at) || !guest_flags(v, p, p->at, k->map[next].saved, "at the next instruction"))
			return false;
		for (; next < k->n && k->map[next].no_resume && k->map[next].host == k->map[next + 1].host; next++)
			if (!guest_prepare(v, next) || (v->g.known && v->g.kind != G_NOP))
				return *v->e->msg ? false : verify_bad(v, p->at, "an instruction without code");
		if (!k->map[next].no_resume)
			return true;
		condense(v, p);
		for (unsigned g = 0; g < 16; g++)
			v->start[g] = guest_value(p, g);
		v->start_gs = p->slot[SL_GS];
		v->start_kernel_gs = p->slot[SL_KERNEL_GS];
		p->n_touch = p->own = 0;
		p->outs = 0;
		p->taken = -1;
		p->cpu_done = 0;
		p->exit_set = p->dirty = p->space_set = false;
		p->kept = p->ctx_flags = k->map[next].saved; /* as where a root begins */
		p->host_flags = !p->ctx_flags;
		p->half_flags = false;
		p->packing = 0;
		*go_on = true;
		return insn_begin(v, next);
	}
	if (!guest_untouched(v, p, p->at, -1, "at the first instruction") || !guest_flags(v, p, p->at, k->map[0].saved, "at the first instruction"))
		return false;
	if (v->root == ROOT_CHECKED)
		v->entry_live |= p->host_flags;
	else
		v->entry_lost |= !p->host_flags;
	if (k->units && !slot_looked_at(v, p, CTX(units_off), 0))
		return verify_bad(v, p->at, "the units were not looked at");
	if ((k->classes & X87_CLASSES) && !slot_looked_at(v, p, CTX(x87_off), 0))
		return verify_bad(v, p->at, "whether x87 is usable was not looked at");
	if (p->exit_set)
		return verify_bad(v, p->at, "an entry that does more than look");
	if (k->made_from && v->root == ROOT_CHECKED && (p->code | k->varies | ~0ull << 1 << (k->guest_bytes - 1)) != ~0ull)
		return verify_bad(v, p->at, "not all of the guest's code is looked at");
	for (unsigned n = v->root == ROOT_HOST; n < 2; n++) {
		const struct code_page *page = n ? k->page2 : k->page;
		if (page && !slot_looked_at(v, p, OK_AT + (i64)page->slot * 4, page->id))
			return verify_bad(v, p->at, "the ok slot of page %u was not looked at", n);
	}
	return true;
}

/* ---- paths ------------------------------------------------------------------------------------------------------ */

/* At a string instruction, perhaps in its middle: RDI and RSI hold host addresses, which the signal's
 * handler undoes (string_back). */
static bool string_may_leave(struct verifier *v, const struct path *p, const struct hinsn *h, const struct insn_map *m)
{
	struct syms *s = &v->syms;
	struct path q = *p;
	if (m->string != h->string || h->off - m->host != m->string_from)
		return verify_bad(v, h->off, "a string instruction that the map does not tell of");
	q.reg[RDI] = sym_add_const(s, sym_add(s, q.reg[RDI], sym_scale(s, q.slot[SL_T], ~0ull)), 1);
	if (h->string == MAP_MOVS)
		q.reg[RSI] = sym_add_const(s, sym_add(s, q.reg[RSI], sym_scale(s, q.slot[SL_TARGET], ~0ull)), 1);
	return guest_untouched(v, &q, h->off, -1, "where a string is left") && guest_flags(v, &q, h->off, m->saved_then, "where a string is left") &&
	       guest_flags(v, &q, h->off, m->saved_fault, "where a string is left");
}

/* Where a kick or a fault may leave the block, the instruction can begin again. */
static bool may_leave(struct verifier *v, const struct path *p, const struct hinsn *h)
{
	const struct insn_map *m = &v->k->map[v->k_insn];
	if (!in_region(v, h->off))
		return true;
	u32 in = h->off - m->host;
	if (in <= m->commit && (in == 0 || in >= m->prelude) && !m->held &&
	    (!guest_untouched(v, p, h->off, -1, "where a kick may leave it") || !guest_flags(v, p, h->off, in ? m->saved_then : m->saved, "where a kick may leave it")))
		return false;
	if (h->string)
		return string_may_leave(v, p, h, m);
	u64 at;
	bool faults = (h->mem >= 0 && !h->gs && !path_at_cpu(v, p, h, &at)) || (h->zi.mnemonic != ZYDIS_MNEMONIC_LEA && guest_is_own(v, h));
	if (!faults)
		return true;
	int victim = in >= m->victim_from && m->victim != ENC_NONE ? m->victim : -1;
	if (victim >= 0 && p->slot[victim == RCX ? SL_RCX : SL_V] != guest_start(v, (unsigned)victim))
		return verify_bad(v, h->off, "the register that was borrowed is not kept");
	return guest_untouched(v, p, h->off, victim, "where it may fault") && guest_flags(v, p, h->off, m->saved_fault, "where it may fault");
}

static bool walk(struct verifier *v, struct path p)
{
	bool first = true, go_on;
	for (;;) {
		if (!v->budget--)
			return verify_bad(v, p.at, "paths without end");
		if (p.at == v->end && !(first && v->root == ROOT_INSN && p.at == v->k->map[v->k_insn].host)) {
			if (!fell_through(v, &p, &go_on) || !go_on)
				return *v->e->msg == 0;
			first = true;
			continue;
		}
		first = false;
		/* After the last instruction: a kick may leave here. */
		if (v->root == ROOT_INSN && v->k_insn == v->k->n - 1u && p.at == v->k->map[v->k->n].host && !p.link &&
		    (!guest_done(v, &p, p.at) || !guest_flags(v, &p, p.at, v->k->map[v->k->n].saved, "at the block's end")))
			return false;
		const struct hinsn *h = verify_insn_at(v, p.at);
		if (!h)
			return *v->e->msg ? false : verify_bad(v, p.at, "runs on past the block's end");
		if (in_another(v, p.at))
			return verify_bad(v, p.at, "runs into another guest instruction");
		v->seen[v->number[p.at] - 1] = 1;
		if (!may_leave(v, &p, h))
			return false;
		if (h->branch) {
			if (!path_branch(v, &p, h, &go_on))
				return false;
			if (!go_on)
				return true;
		} else if (!path_step(v, &p, h)) {
			return false;
		}
		if (v->syms.full)
			return verify_bad(v, p.at, "too many values");
	}
}

bool verify_fork(struct verifier *v, struct path p)
{
	unsigned insn = v->k_insn;
	sym start[16], gs = v->start_gs, kernel_gs = v->start_kernel_gs;
	memcpy(start, v->start, sizeof(start));
	if (v->forks == FORKS_MAX)
		return verify_bad(v, p.at, "paths without end");
	v->forks++;
	if (!walk(v, p))
		return false;
	v->forks--;
	if (v->k_insn == insn)
		return true;
	memcpy(v->start, start, sizeof(start));
	v->start_gs = gs;
	v->start_kernel_gs = kernel_gs;
	return insn_begin(v, insn);
}

/* v->start is known. */
static bool insn_begin(struct verifier *v, unsigned insn)
{
	const struct insn_map *m = &v->k->map[insn];
	v->k_insn = insn;
	v->end = insn + 1u < v->k->n ? m[1].host : ~0u;
	v->shares = m->no_resume || m[1].no_resume;
	return guest_prepare(v, insn);
}

static struct path fresh_path(struct verifier *v, u32 at)
{
	struct path p = { .at = at, .taken = -1 };
	for (unsigned r = 0; r < 16; r++)
		p.reg[r] = sym_fresh(&v->syms);
	for (unsigned n = 0; n < N_SLOTS; n++)
		p.slot[n] = sym_fresh(&v->syms);
	p.slot[SL_GS] = sym_atom(&v->syms, AT_SEGMENT, S_GS, SYM_NONE, 0);
	p.slot[SL_KERNEL_GS] = sym_atom(&v->syms, AT_SEGMENT, N_SREGS, SYM_NONE, 0);
	p.packed = SYM_NONE;
	p.events = sym_fresh(&v->syms);
	p.rflags = sym_fresh(&v->syms);
	for (unsigned g = 0; g < (v->legacy ? 8 : 16); g++) {
		if (is_homeless(g))
			p.slot[g == R_11 ? SL_HOME11 : SL_HOME15] = guest_start(v, g);
		else
			p.reg[g == R_SP ? (unsigned)HOST_SP : g] = guest_start(v, g);
	}
	return p;
}

/* Guest registers with values of their own. */
static void starts(struct verifier *v)
{
	syms_reset(&v->syms);
	for (unsigned g = 0; g < 16; g++)
		v->start[g] = sym_atom(&v->syms, AT_GUEST, g, SYM_NONE, 0);
	v->start_gs = sym_atom(&v->syms, AT_SEGMENT, S_GS, SYM_NONE, 0);
	v->start_kernel_gs = sym_atom(&v->syms, AT_SEGMENT, N_SREGS, SYM_NONE, 0);
}

static bool walk_root(struct verifier *v, enum root root, unsigned insn, u32 at, u32 end)
{
	v->root = root;
	v->k_insn = insn;
	v->end = end;
	v->budget = STEPS_MAX;
	v->forks = 0;
	starts(v);
	v->g.known = v->shares = false;
	if (root == ROOT_INSN && !insn_begin(v, insn))
		return false;
	struct path p = fresh_path(v, at);
	p.ctx_flags = root == ROOT_CHECKED || root == ROOT_STALE_CHECKED || root == ROOT_RETURN || (root == ROOT_INSN && v->k->map[insn].saved);
	p.host_flags = !p.ctx_flags;
	p.kept = root == ROOT_RETURN || (root == ROOT_INSN && p.ctx_flags);
	if (root == ROOT_RETURN) { /* T is the target; the block that returns has set ctx.exit */
		v->arrived = p.reg[T];
		p.exit_set = p.foreign_exit = true;
	}
	return walk(v, p);
}

static bool insn_verified(struct verifier *v, unsigned n)
{
	const struct insn_map *m = &v->k->map[n];
	if (m[0].no_resume)
		return n > 0 || verify_bad(v, m->host, "a first instruction that nothing may lead to");
	if (m[0].host != m[1].host || n + 1u == v->k->n)
		return walk_root(v, ROOT_INSN, n, m[0].host, ~0u);
	v->k_insn = n;
	starts(v);
	if (!guest_prepare(v, n))
		return false;
	return !v->g.known || v->g.kind == G_NOP || verify_bad(v, m->host, "an instruction without code");
}

/* The places that struct block names are where instructions begin. */
static bool layout_checked(struct verifier *v)
{
	const struct block *k = v->k;
	u32 host = verify_place(v, k->host);
	v->k_insn = 0;
	if (host > k->map[0].host || host < DIVERSION || host + DIVERSION > k->bytes)
		return verify_bad(v, 0, "the entries are not where they should be");
	if (k->host_units != k->host && (!k->units || k->page2 || (k->classes & X87_CLASSES) || verify_place(v, k->host_units) != k->map[0].host))
		return verify_bad(v, 0, "an entry past more than a look at the units");
	if (!v->number[host] || verify_place(v, k->stale) < cold_place(v) || verify_place(v, k->stale_checked) < cold_place(v))
		return verify_bad(v, 0, "an entry in the middle of an instruction");
	for (unsigned n = 0; n < k->n; n++) {
		v->k_insn = n;
		if (k->map[n].host > k->map[n + 1].host || k->map[n].guest >= k->map[n + 1].guest || k->map[n].host >= k->bytes || !v->number[k->map[n].host])
			return verify_bad(v, k->map[n].host, "the map of instructions is not in order");
	}
	if (k->map[k->n].host > k->bytes || k->map[k->n].guest != k->guest_bytes)
		return verify_bad(v, k->map[k->n].host, "the map ends elsewhere than the block");
	return true;
}

static bool entries_verified(struct verifier *v)
{
	const struct block *k = v->k;
	v->entry_live = v->entry_lost = false;
	bool ok = walk_root(v, ROOT_CHECKED, 0, 0, k->map[0].host) && walk_root(v, ROOT_HOST, 0, verify_place(v, k->host), k->map[0].host) &&
	       walk_root(v, ROOT_STALE_CHECKED, 0, verify_place(v, k->stale_checked), ~0u) && walk_root(v, ROOT_STALE, 0, verify_place(v, k->stale), ~0u);
	return ok && (!v->entry_live || !v->entry_lost || verify_bad(v, 0, "an entry that loses live status flags"));
}

/* What comes after a CALL is where a RET comes back to. */
static bool returns_verified(struct verifier *v)
{
	const struct block *k = v->k;
	for (u32 n = 0; n < v->n; n++) {
		if (v->insn[n].zi.mnemonic != ZYDIS_MNEMONIC_CALL || branch_loads_units(v, &v->insn[n]))
			continue;
		u32 back = v->insn[n].off + v->insn[n].len;
		if (back >= k->bytes || !v->number[back] || back < verify_place(v, k->host) + DIVERSION)
			return verify_bad(v, v->insn[n].off, "a call without a place to come back to");
		if (!walk_root(v, ROOT_RETURN, k->n - 1u, back, ~0u))
			return false;
	}
	return true;
}

/* What nothing leads to must be in order all the same; NOPs are there to fill. */
static bool rest_verified(struct verifier *v)
{
	for (u32 n = 0; n < v->n; n++)
		if (!v->seen[n] && v->insn[n].zi.mnemonic != ZYDIS_MNEMONIC_NOP && !walk_root(v, ROOT_DEAD, v->k->n - 1u, v->insn[n].off, ~0u))
			return false;
	return true;
}

static bool block_verified(struct verifier *v)
{
	v->k_insn = 0;
	*v->e->msg = 0;
	if (v->k->made_from && (v->k->guest_bytes > SELFCHECK_BYTES || (v->guest && memcmp(v->k->made_from, v->guest, v->k->guest_bytes))))
		return verify_bad(v, 0, "it was made from other code");
	if (!decode(v) || !layout_checked(v) || !entries_verified(v))
		return false;
	for (unsigned n = 0; n < v->k->n; n++)
		if (!insn_verified(v, n))
			return false;
	return returns_verified(v) && rest_verified(v);
}

/* ---- from outside -------------------------------------------------------------------------------------------------- */

bool verify_block(struct bt *b, const struct block *k, const u8 *guest, struct error *e)
{
	struct verifier *v = b->verifier;
	if (!v) {
		if (!(v = b->verifier = calloc(1, sizeof(*v))))
			return error_set(e, "no memory for the verifier");
		ZydisDecoderInit(&v->decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	}
	v->b = b;
	v->k = k;
	v->guest = guest;
	v->legacy = k->page->mode != CODE64;
	v->e = e;
	return block_verified(v);
}

static void hex(char *to, size_t room_for, const u8 *bytes, unsigned n)
{
	size_t at = 0;
	for (unsigned k = 0; k < n && at + 4 < room_for; k++)
		at += (size_t)snprintf(to + at, room_for - at, "%02x ", bytes[k]);
	to[at] = 0;
}

static _Noreturn void not_right(const struct block *k, const u8 *guest, const char *when, const struct error *e)
{
	char g[2048], h[8192], c[8192];
	hex(g, sizeof(g), guest, k->guest_bytes);
	hex(h, sizeof(h), k->checked, k->bytes);
	hex(c, sizeof(c), k->cold, k->cold_bytes);
	bug("the block of guest code at %#lx is not what it should be%s, %s\nguest: %s\nhost: %s\nout of line: %s", (unsigned long)k->lin, when, e->msg, g, h, c);
}

bool verify_new(struct bt *b, const struct block *k, const u8 *guest)
{
	struct error e;
	if (!b->verify_every || ++b->verify_count % b->verify_every)
		return true;
	b->stats.verified++;
	if (likely(verify_block(b, k, guest, &e)))
		return true;
	if (b->verify_every > 1) { /* in use, not under test: it is not run */
		char g[2048], h[8192];
		hex(g, sizeof(g), guest, k->guest_bytes);
		hex(h, sizeof(h), k->checked, k->bytes);
		if (b->stats.refused++ < 4)
			log_error("a block of guest code at %#lx is made anew: it is not what it should be, %s\nguest: %s\nhost: %s", (unsigned long)k->lin, e.msg, g, h);
		return false;
	}
	not_right(k, guest, "", &e);
}

void verify_again(struct bt *b, const struct block *k)
{
	struct error e;
	u8 guest[2 * 4096];
	if (b->verify_every != 1 || !k->valid)
		return;
	if (k->made_from) {
		memcpy(guest, k->made_from, k->guest_bytes);
	} else {
		unsigned off = (unsigned)(k->lin & PAGE_MASK), first = MIN(k->guest_bytes, 4096 - off);
		memcpy(guest, k->page->host + off, first);
		if (k->page2)
			memcpy(guest + first, k->page2->host, k->guest_bytes - first);
		if (atomic_load(&k->page->code->gen) != k->page->gen || (k->page2 && atomic_load(&k->page2->code->gen) != k->page2->gen))
			return; /* no longer what it was made from */
	}
	if (!verify_block(b, k, guest, &e))
		not_right(k, guest, " after a change", &e);
}

void verify_init(struct bt *b)
{
	const char *s = getenv("RING3_BT_VERIFY");
	u64 n = b->verify == VERIFY_ALL ? 1 : b->verify == VERIFY_OFF ? 0 : SAMPLE;
	if (s && !strcmp(s, "all"))
		n = 1;
	else if (s && !strcmp(s, "off"))
		n = 0;
	else if (s && *s && (!parse_number(s, &n) || n > UINT32_MAX)) {
		log_warn("RING3_BT_VERIFY=%s: all, off, or a number: one block in so many is verified", s);
		n = SAMPLE;
	}
	b->verify_every = (u32)n;
}

void verify_destroy(struct bt *b)
{
	struct verifier *v = b->verifier;
	if (!v)
		return;
	free(v->insn);
	free(v->seen);
	free(v->number);
	free(v->owned);
	free(v);
	b->verifier = NULL;
}
