/* Blocks that check themselves: for pages that are written often and run often, where telling of each
 * write costs more than looking before each run. Such a block compares the guest's code with what it was
 * made from, at `checked`; nobody watches its bytes, and stores to its page go at full speed.
 *
 * Invariants
 *  1. All blocks of a code_page check themselves, or none does; of one that crosses, both pages' do.
 *  2. They are entered only at `checked`: links to them and the run loop see to that.
 *  3. A store by translated code is a block's last instruction, since what comes after it may have been
 *     written by it. After one by the interpreter the block goes on only if it holds.
 *  4. What is read is RAM at the host's address of the code_page: the ok slot, looked at before, says that
 *     it is mapped there.
 * So a processor's own writes count from the next instruction on, and those of others at the latest
 * when it serializes, for then it leaves the block. SDM vol. 3, 10.1.3.
 *
 * An immediate that has changed is not compared any more, but read whenever its instruction runs. Where
 * other bytes have, the old block stays, for the case that they come back: a place has up to VERSIONS.
 *
 * Which pages: those with CHURN_LIMIT of costs (selfcheck_churn) within a CHURN_WINDOW, for a term, that
 * is prolonged while their code does change, and twice as long when they are soon at it again. */
#define LOG_TOPIC "bt"
#include <string.h>

#include "bt/tr.h"

#define VERSIONS 4u
/* TSC ticks. A page at the limit costs about a tenth of the time. */
#define CHURN_LIMIT 48u
#define CHURN_WINDOW (1u << 18)
#define TERM_MIN (1u << 21)
#define TERM_MAX (1u << 31)

/* ---- which pages ------------------------------------------------------------------------------- */

bool selfcheck_wanted(const struct bt *b, const struct page_code *c)
{
	if (c == &b->rom_code || b->code != CODE_AUTO)
		return b->code == CODE_CHECKED && c != &b->rom_code;
	u64 until = atomic_load(&((struct page_code *)(uintptr_t)c)->check_until);
	return until && __builtin_ia32_rdtsc() < until;
}

static void term_begin(struct bt *b, struct page_code *c, u64 now)
{
	u64 last = atomic_load(&c->check_until);
	u32 term = atomic_load(&c->check_term);
	bool again = last && now < last + 64ull * term;
	term = !again ? TERM_MIN : now < last || term >= TERM_MAX ? term : term * 2;
	atomic_store(&c->check_term, term);
	atomic_store(&c->check_until, now + term);
	b->stats.check_terms++;
	shoot_code(b, c, 0, 4096);
}

static void term_prolong(struct page_code *c)
{
	u64 until = __builtin_ia32_rdtsc() + atomic_load(&c->check_term);
	if (atomic_load(&c->check_until) < until)
		atomic_store(&c->check_until, until);
}

/* What several vCPUs count at once may be lost: only the time of the change depends on it. */
void selfcheck_churn(struct bt *b, struct page_code *c, unsigned cost)
{
	if (b->code != CODE_AUTO)
		return;
	u64 now = __builtin_ia32_rdtsc();
	if (now - atomic_load(&c->churn_since) > CHURN_WINDOW) {
		atomic_store(&c->churn_since, now);
		atomic_store(&c->churn, 0);
	}
	if (atomic_fetch_add(&c->churn, cost) + cost < CHURN_LIMIT)
		return;
	atomic_store(&c->churn, 0);
	term_begin(b, c, now);
}

static bool turn_to_checked(struct bt *b, struct code_page *p, const struct code_page *as)
{
	if (p->code == &b->rom_code)
		return false;
	cache_page_drop(b, p);
	p->selfcheck = true;
	atomic_store(&p->code->check_term, atomic_load(&as->code->check_term));
	term_prolong(p->code);
	return true;
}

bool selfcheck_agree(struct bt *b, struct code_page *p, struct code_page *q)
{
	if (p->selfcheck == q->selfcheck)
		return true;
	return p->selfcheck ? turn_to_checked(b, q, p) : turn_to_checked(b, p, q);
}

/* ---- whether a block holds ------------------------------------------------------------------------- */

static const u8 *guest_byte(const struct block *k, unsigned n)
{
	unsigned off = (unsigned)(k->lin & PAGE_MASK) + n;
	return off < 4096 ? k->page->host + off : k->page2->host + off - 4096;
}

bool selfcheck_holds(const struct block *k)
{
	if (!k->varies && !k->page2)
		return !memcmp(k->made_from, guest_byte(k, 0), k->guest_bytes);
	for (unsigned n = 0; n < k->guest_bytes; n++)
		if (!(k->varies >> n & 1) && k->made_from[n] != *guest_byte(k, n))
			return false;
	return true;
}

/* The newest version at or after k of the chain. */
static struct block *version(const struct translation *t, struct block *k)
{
	while (k && !(k->lin == t->lin && k->page == t->page && k->made_from && k != t->block))
		k = k->hash_next;
	return k;
}
static struct block *newest(const struct translation *t) { return version(t, *block_hash_of(t->b, t->lin, t->page)); }

static u64 bits(unsigned from, unsigned n) { return ((1ull << n) - 1) << from; }

/* What has varied from version k to the block in the making, k's own such bytes too. */
static u64 varied(const struct translation *t, const struct block *k)
{
	u64 v = k->varies;
	for (unsigned n = 0; n < MIN(t->guest_bytes, k->guest_bytes); n++)
		v |= (u64)(t->bytes[n] != k->made_from[n]) << n;
	return v;
}

/* ---- immediates that vary ---------------------------------------------------------------------------- */

/* OP r/m, r that does what OP r, imm does: the opcode for whole registers. 0: not here. */
static unsigned register_form(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_ADD: return 0x01;
	case ZYDIS_MNEMONIC_OR: return 0x09;
	case ZYDIS_MNEMONIC_ADC: return 0x11;
	case ZYDIS_MNEMONIC_SBB: return 0x19;
	case ZYDIS_MNEMONIC_AND: return 0x21;
	case ZYDIS_MNEMONIC_SUB: return 0x29;
	case ZYDIS_MNEMONIC_XOR: return 0x31;
	case ZYDIS_MNEMONIC_CMP: return 0x39;
	case ZYDIS_MNEMONIC_TEST: return 0x85;
	case ZYDIS_MNEMONIC_MOV: return 0x89;
	default: return 0;
	}
}

static bool may_vary(const struct translation *t, const struct tins *i)
{
	const ZydisDecodedOperand *d = &i->zo[0];
	if (t->page->mode != CODE64 || t->page2 || i->kind != K_COPY || !register_form(i->zi.mnemonic))
		return false;
	if (d->type != ZYDIS_OPERAND_TYPE_REGISTER || i->zo[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE || d->size == 16)
		return false;
	if (d->size == 8 && i->zi.mnemonic == ZYDIS_MNEMONIC_MOV)
		return false;
	if (d->reg.value >= ZYDIS_REGISTER_AH && d->reg.value <= ZYDIS_REGISTER_BH)
		return false;
	int r = ZydisRegisterGetId(d->reg.value);
	return !is_homeless((unsigned)(d->size == 8 && r >= 4 ? r - 4 : r));
}

static u64 immediate(const struct tins *i) { return bits(i->off + i->zi.raw.imm[0].offset, i->zi.raw.imm[0].size / 8u); }

/* What has varied since the version that differs in immediates alone; else since the newest. */
static u64 varied_so_far(const struct translation *t)
{
	u64 can = 0;
	for (unsigned k = 0; k < t->n; k++)
		can |= may_vary(t, &t->ins[k]) ? immediate(&t->ins[k]) : 0;
	for (struct block *k = newest(t); k; k = version(t, k->hash_next))
		if (!(varied(t, k) & ~can))
			return varied(t, k);
	return varied(t, newest(t)) & can;
}

void selfcheck_plan(struct translation *t)
{
	if (!newest(t))
		return;
	t->b->stats.checks_failed++;
	term_prolong(t->page->code);
	u64 v = varied_so_far(t);
	for (unsigned k = 0; k < t->n; k++) {
		struct tins *i = &t->ins[k];
		i->varies = (v & bits(i->off, i->zi.length)) && may_vary(t, i);
		if (i->varies)
			t->varies |= immediate(i);
	}
}

/* Drops the versions that say less than the new one, and the oldest of too many. */
void selfcheck_made(struct translation *t)
{
	unsigned n = 0;
	t->b->stats.checks_made++;
	for (struct block *k = newest(t), *next; k; k = next) {
		next = version(t, k->hash_next);
		if ((k->guest_bytes == t->guest_bytes && !(varied(t, k) & ~t->varies)) || ++n >= VERSIONS)
			block_drop(t->b, k);
	}
}

void selfcheck_operand(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	unsigned id = (unsigned)ZydisRegisterGetId(i->zo[0].reg.value), w = i->zo[0].size, n = i->zi.raw.imm[0].size;
	unsigned r = host_of(w == 8 && id >= 4 ? id - 4 : id), op = register_form(i->zi.mnemonic);
	bool mov = i->zi.mnemonic == ZYDIS_MNEMONIC_MOV;
	u32 wide = w == 64 ? E_W : 0;
	u32 load = n == 8 ? 0x0fbe : n < w ? 0x63 : 0x8b; /* MOVSX, MOVSXD, MOV */
	e_const(e, T, (u64)(t->page->host + (t->lin & PAGE_MASK) + i->off + i->zi.raw.imm[0].offset));
	e_mem(e, wide | load, mov ? r : T, M_BASE(T, 0));
	if (!mov)
		e_reg(e, wide | (w == 8 ? E_B | (op - 1) : op), T, r);
}

/* ---- the rest of a block ------------------------------------------------------------------------------- */

bool selfcheck_ends(const struct tins *i)
{
	if (i->kind == K_INTERP)
		return false;
	for (unsigned k = 0; k < i->zi.operand_count; k++)
		if (i->zo[k].type == ZYDIS_OPERAND_TYPE_MEMORY && (i->zo[k].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
			return true;
	return false;
}

static void compare(struct translation *t, unsigned n, unsigned size)
{
	struct emit *e = &t->e;
	e_mem(e, size == 4 ? 0x81 : 0x80, 7, M_BASE(T, n)); /* cmp [r11 + n], imm */
	if (size == 4)
		e32(e, ld32(t->bytes + n));
	else
		e8(e, t->bytes[n]);
	e_jcc_to(e, CC_NZ, t->block->stale_checked);
}

/* Those of the bytes from..to-1 that do not vary; T + n is byte n. */
static void compare_bytes(struct translation *t, unsigned from, unsigned to)
{
	while (from < to) {
		unsigned end = from;
		while (end < to && !(t->varies >> end & 1))
			end++;
		bool words = end - from >= 4;
		for (; from + 4 <= end; from += 4)
			compare(t, from, 4);
		if (words && from < end)
			compare(t, end - 4, 4); /* some of them once more */
		for (; !words && from < end; from++)
			compare(t, from, 1);
		for (from = end; from < to && (t->varies >> from & 1); from++)
			;
	}
}

void selfcheck_entry(struct translation *t)
{
	unsigned off = (unsigned)(t->lin & PAGE_MASK), first = MIN(t->guest_bytes, 4096 - off);
	e_const(&t->e, T, (u64)(t->page->host + off));
	compare_bytes(t, 0, first);
	if (first < t->guest_bytes) {
		e_const(&t->e, T, (u64)(t->page2->host - first));
		compare_bytes(t, first, t->guest_bytes);
	}
}
