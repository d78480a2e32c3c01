/* The verifier against wrong code. Blocks of the real translator, made from guest code of every kind
 * (samples.h), are changed in one place: bits, bytes, whole instructions, jump targets, what struct
 * block says of them. Each change must be refused, but for those that mean the same or less
 * (harmless()), each with its reason. */
#include <stdio.h>

#include "bt/verify.h"
#include "samples.h"

static const struct sample { const char *name; const u8 *at, *end; } samples[] = {
#define X(name) { #name, asm_##name, asm_##name##_end },
	SAMPLES(X)
#undef X
};

/* ---- blocks ---------------------------------------------------------------------------------------- */

/* Where a sample is in RAM, and at which linear addresses: as low as there, and high, where addresses
 * do not fit into 32 bits; as code that is watched and as code that checks itself; as user code that goes by windows. */
static const struct way { u64 base; enum bt_code code; bool windowed; } ways[] = {
	{ 0, CODE_WATCHED }, { 0x7f1234000000, CODE_WATCHED }, { 0, CODE_CHECKED }, { 0x7f1234000000, CODE_WATCHED, true },
};
#define WATCHED (&ways[0])
#define CHECKED (&ways[2])

/* The sample with its immediates other than they will be: those that may vary do then. */
static void other_immediates(const struct sample *s, u64 phys)
{
	u8 code[256];
	unsigned n = (unsigned)(s->end - s->at);
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand zo[ZYDIS_MAX_OPERAND_COUNT];
	ZydisDecoder d;
	ZydisDecoderInit(&d, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	memcpy(code, s->at, n);
	for (unsigned off = 0; off < n && ZYAN_SUCCESS(ZydisDecoderDecodeFull(&d, code + off, n - off, &zi, zo)); off += zi.length)
		if (zi.raw.imm[0].size && !zi.raw.imm[0].is_relative)
			code[off + zi.raw.imm[0].offset] ^= 1;
	rig_code(phys, code, n);
	assert_non_null(rig_block(phys));
}

static struct block *block_of(const struct sample *s, const struct way *way)
{
	u64 phys = CODE + 0x1000 * (u64)(s - samples), base = way->base;
	r.bt->code = way->code;
	r.bt->windows = way->windowed ? WINDOWS_ON : WINDOWS_OFF;
	if (way->windowed != (r.c->cpl == 3))
		rig_fresh(way->windowed ? 3 : 0);
	if (way->code == CODE_CHECKED)
		other_immediates(s, phys + 0x200);
	rig_code(phys + 0x200, s->at, (size_t)(s->end - s->at));
	if (base)
		rig_map(base + phys, phys, PG_P | PG_U);
	struct block *k = rig_block(base + phys + 0x200);
	struct error e;
	if (!k)
		fail_msg("%s has no block", s->name);
	assert_true((k->made_from != NULL) == (way->code == CODE_CHECKED));
	assert_true(k->page->klass.windowed == way->windowed);
	if (!verify_block(r.bt, k, s->at, &e))
		fail_msg("%s as it is: %s", s->name, e.msg);
	return k;
}

/* A block's code, both parts one after the other: [0, bytes) and [bytes, bytes + cold_bytes). */
static u32 size_of(const struct block *k) { return k->bytes + k->cold_bytes; }
static u8 *byte_of(const struct block *k, u32 n)
{
	return r.bt->rw + ((n < k->bytes ? k->checked : k->cold - k->bytes) - r.bt->rx) + n;
}
static void code_get(const struct block *k, u8 *to)
{
	memcpy(to, byte_of(k, 0), k->bytes);
	memcpy(to + k->bytes, byte_of(k, k->bytes), k->cold_bytes);
}
static void code_put(const struct block *k, const u8 *from, u32 at, u32 n)
{
	for (u32 i = at; i < at + n; i++)
		*byte_of(k, i) = from[i];
}

static u8 old[65536 * 2], now[65536 * 2]; /* the block under test as it was; the same changed */

/* ---- instructions -------------------------------------------------------------------------------------- */

struct host { ZydisDecodedInstruction zi; ZydisDecodedOperand zo[ZYDIS_MAX_OPERAND_COUNT]; u32 off; };

static ZydisDecoder decoder;
static void decoder_init(void) { ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64); }

/* The instruction that byte `at` of code is in; false: it is in a constant, or makes no sense. */
static bool host_at(const struct block *k, const u8 *code, u32 at, struct host *h)
{
	u32 end = at < k->bytes ? k->bytes : size_of(k);
	for (h->off = at < k->bytes ? 0 : k->bytes; h->off < end; h->off += h->zi.length) {
		while (h->off >= k->bytes && !code[h->off]) { /* before a constant */
			for (h->off++; ((u64)k->cold + h->off - k->bytes) & 7; h->off++)
				;
			h->off += 8;
			if (at < h->off)
				return false;
		}
		if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, code + h->off, end - h->off, &h->zi, h->zo)))
			return false;
		if (at < h->off + h->zi.length)
			return true;
	}
	return false;
}

static const char *text(const struct host *h, char to[128])
{
	ZydisFormatter f;
	ZydisFormatterInit(&f, ZYDIS_FORMATTER_STYLE_INTEL);
	ZydisFormatterFormatInstruction(&f, &h->zi, h->zo, h->zi.operand_count_visible, to, 128, h->off, NULL);
	return to;
}

/* ---- what may be accepted ---------------------------------------------------------------------------------- */

static bool same_operand(const ZydisDecodedOperand *a, const ZydisDecodedOperand *b)
{
	if (a->type != b->type || a->size != b->size)
		return false;
	if (a->type == ZYDIS_OPERAND_TYPE_REGISTER)
		return a->reg.value == b->reg.value;
	return a->type != ZYDIS_OPERAND_TYPE_MEMORY || (!memcmp(&a->mem.base, &b->mem.base, sizeof(a->mem.base)) && a->mem.index == b->mem.index &&
							 a->mem.scale == b->mem.scale && a->mem.disp.value == b->mem.disp.value && a->mem.segment == b->mem.segment);
}

/* The guest's instruction that the host's byte belongs to. */
static ZydisMnemonic guest_mnemonic(const struct sample *s, const struct block *k, u32 at)
{
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand zo[ZYDIS_MAX_OPERAND_COUNT];
	unsigned n = 0;
	while (n + 1 < k->n && k->map[n + 1].host <= at)
		n++;
	ZydisDecoderDecodeFull(&decoder, s->at + k->map[n].guest, (size_t)(s->end - s->at) - k->map[n].guest, &zi, zo);
	return zi.mnemonic;
}

/* An instruction as this one comes before it for the same guest instruction, or for one that always comes before. */
static bool came_before(const struct sample *s, const struct block *k, const struct host *a)
{
	unsigned n = 0;
	struct host h;
	while (n + 1 < k->n && k->map[n + 1].host <= a->off)
		n++;
	while (k->map[n].no_resume)
		n--;
	for (u32 off = k->map[n].host; off < a->off && host_at(k, old, off, &h); off += h.zi.length)
		if (!memcmp(old + off, old + a->off, a->zi.length))
			return true;
	return false;
}

static bool insn_exit(u64 id) { return (id & 15) == X_INSN || (id & 15) == X_GROUP || (id & 15) == X_WINDOW; }

/* Where a jump at its place in the block goes in the end, by way of other jumps; *insn: to an exit for
 * the interpreter; *again: to another. */
static const u8 *goes_to(const struct block *k, const struct host *h, bool *insn, bool *again)
{
	const u8 *to = byte_of(k, h->off) + h->zi.length + (i64)h->zo[0].imm.value.u;
	*insn = *again = false;
	for (unsigned n = 0; n < 4; n++) {
		struct host t;
		u32 at = to >= byte_of(k, 0) && to < byte_of(k, 0) + k->bytes ? (u32)(to - byte_of(k, 0)) :
			 to >= byte_of(k, k->bytes) && to < byte_of(k, k->bytes) + k->cold_bytes ? (u32)(to - byte_of(k, k->bytes)) + k->bytes : ~0u;
		if (at == ~0u || !host_at(k, old, at, &t) || t.off != at)
			return to;
		bool leaves = t.zi.mnemonic == ZYDIS_MNEMONIC_MOV && t.zo[0].type == ZYDIS_OPERAND_TYPE_MEMORY && t.zo[0].mem.disp.value == CTX(exit);
		*insn = leaves && insn_exit(t.zo[1].imm.value.u);
		*again = leaves && (t.zo[1].imm.value.u & 15) <= X_LINK1; /* X_GOTO, X_LINK0, X_LINK1 */
		if (t.zi.mnemonic == ZYDIS_MNEMONIC_MOV && t.zo[1].type == ZYDIS_OPERAND_TYPE_MEMORY && t.zo[1].mem.disp.value == CTX(save_rcx)) {
			to += t.zi.length;
			continue;
		}
		if (t.zi.mnemonic != ZYDIS_MNEMONIC_JMP || t.zo[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
			return to;
		to = byte_of(k, at) + t.zi.length + (i64)t.zo[0].imm.value.u;
	}
	return to;
}
/* Whether it is where blocks leave, by way of a gate or not: who leaves there the verifier knows from ctx.exit. */
static bool leaves_at(const u8 *x)
{
	const u8 *run = x - (r.bt->rw - r.bt->rx);
	return run == r.bt->exit_common || run == r.bt->exit_saved || run == r.bt->gate_common || run == r.bt->gate_saved;
}
/* Where a target is looked for, or left for at once. */
static bool looks_at(const u8 *x)
{
	const u8 *run = x - (r.bt->rw - r.bt->rx);
	return run == r.bt->lookup || run == r.bt->lookup_miss;
}
/* An exit for the interpreter is always right: that it is for this instruction the verifier knows. So it
 * knows where a link leads; what may be missing on the way is moving status flags that are not live. */
static bool same_jump(const struct block *k, const struct host *a, const struct host *b)
{
	bool ia, ib, again_a, again_b;
	const u8 *x = goes_to(k, a, &ia, &again_a), *y = goes_to(k, b, &ib, &again_b);
	return ib || x == y || again_b || (leaves_at(x) && leaves_at(y)) || (looks_at(x) && looks_at(y));
}

/* Nothing has written T between the last store or load of a group's slot and here. */
static bool kept_t(const struct sample *s, const struct block *k, u32 at)
{
	bool kept = false;
	struct host h;
	for (u32 off = k->map[0].host; off < at && host_at(k, old, off, &h); off += h.zi.length)
		for (unsigned n = 0; n < h.zi.operand_count; n++) {
			const ZydisDecodedOperand *o = &h.zo[n];
			if (o->type == ZYDIS_OPERAND_TYPE_MEMORY && h.zi.mnemonic == ZYDIS_MNEMONIC_MOV && o->mem.disp.value >= CTX(group) &&
			    o->mem.disp.value < CTX(group) + (i64)sizeof(r.bt->ctx->group))
				kept = true;
			else if (o->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, o->reg.value) == ZYDIS_REGISTER_R11 &&
				 o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
				kept = false;
		}
	return kept;
}

/* It makes an address in T of which nothing is used but in which window it is. */
static bool only_looked_at(const struct block *k, const struct host *a)
{
	struct host h = *a;
	while ((h.zi.mnemonic == ZYDIS_MNEMONIC_LEA || h.zi.mnemonic == ZYDIS_MNEMONIC_MOV || h.zi.mnemonic == ZYDIS_MNEMONIC_ADD) &&
	       h.zo[0].type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetId(h.zo[0].reg.value) == T)
		if (!host_at(k, old, h.off + h.zi.length, &h))
			return false;
	return h.off != a->off && h.zi.mnemonic == ZYDIS_MNEMONIC_SHR && h.zo[1].imm.value.u == WINDOW_BITS;
}
/* The same sum with another constant, or none. */
static bool same_but_constants(const struct host *a, const struct host *b)
{
	const ZydisDecodedOperand *x = &a->zo[1], *y = &b->zo[1];
	bool without = a->zi.mnemonic == ZYDIS_MNEMONIC_ADD && b->zi.mnemonic == ZYDIS_MNEMONIC_MOV; /* what was in T was the constant */
	if (b->zi.mnemonic != a->zi.mnemonic && !without)
		return a->zi.mnemonic == ZYDIS_MNEMONIC_LEA;
	if (x->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
		return y->type == x->type;
	return x->type == ZYDIS_OPERAND_TYPE_MEMORY && y->type == x->type && x->mem.base == y->mem.base && x->mem.index == y->mem.index && x->mem.scale == y->mem.scale;
}

/* Why an accepted change is right to be accepted. NULL: it is not. */
static const char *harmless(const struct sample *s, const struct block *k, const struct host *a, const struct host *b)
{
	char ta[128], tb[128];
	if (!strcmp(text(a, ta), text(b, tb)))
		return "another encoding of the same instruction";
	ZydisMnemonic m = a->zi.mnemonic, g = guest_mnemonic(s, k, a->off);
	if (g == ZYDIS_MNEMONIC_RDTSC || g == ZYDIS_MNEMONIC_RDTSCP || g == ZYDIS_MNEMONIC_PUSHFQ)
		return "the value of the time stamp and of RFLAGS is not followed";
	if (m == ZYDIS_MNEMONIC_MOV && a->zo[0].type == ZYDIS_OPERAND_TYPE_MEMORY && came_before(s, k, a) &&
	    (a->zo[0].mem.disp.value == CTX(save_rax) || a->zo[0].mem.disp.value == CTX(save_v)))
		return "the register was kept there before";
	i64 slot = a->zo[1].type == ZYDIS_OPERAND_TYPE_MEMORY ? a->zo[1].mem.disp.value - CTX(group) : -1;
	if (m == ZYDIS_MNEMONIC_MOV && slot >= 0 && slot < (i64)sizeof(r.bt->ctx->group) && (kept_t(s, k, a->off) || k->page->klass.windowed /* the same sum anew */))
		return "T was kept, and is what the slot has";
	if (k->page->klass.windowed && only_looked_at(k, a) && same_but_constants(a, b))
		return "of an address near by it is looked at whether it is in the window: the access itself is in it then, or faults";
	if (m == ZYDIS_MNEMONIC_LAHF && b->zi.mnemonic == ZYDIS_MNEMONIC_SAHF)
		return "which status flags are live is not looked at";
	if (m == ZYDIS_MNEMONIC_JMP && b->zi.meta.branch_type == ZYDIS_BRANCH_TYPE_NONE)
		return "it falls into an exit for the same instruction";
	if (m == ZYDIS_MNEMONIC_MOV && b->zi.mnemonic == m && a->zo[0].type == ZYDIS_OPERAND_TYPE_MEMORY && a->zo[0].mem.disp.value == CTX(exit) &&
	    insn_exit(b->zo[1].imm.value.u) && a->zo[1].imm.value.u >> 4 == b->zo[1].imm.value.u >> 4)
		return "the interpreter instead of a link";
	bool insn = false, again;
	if (b->zi.mnemonic == ZYDIS_MNEMONIC_JMP && b->zo[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
		goes_to(k, b, &insn, &again);
	if (insn)
		return "leaves for the interpreter, which is always right";
	if (m == ZYDIS_MNEMONIC_MOV && b->zi.mnemonic == ZYDIS_MNEMONIC_MOVSXD && b->zo[0].size == 32 && same_operand(&a->zo[0], &b->zo[0]) && same_operand(&a->zo[1], &b->zo[1]))
		return "MOVSXD of 32 bits is MOV";
	if (m != b->zi.mnemonic || a->zi.operand_count != b->zi.operand_count)
		return NULL;
	if (a->zi.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE && a->zo[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && same_jump(k, a, b))
		return "to the same place by another way, or to the interpreter";
	unsigned last = a->zi.operand_count_visible - 1u;
	for (unsigned n = 0; n <= last; n++) {
		const ZydisDecodedOperand *x = &a->zo[n], *y = &b->zo[n];
		if (x->type == ZYDIS_OPERAND_TYPE_MEMORY && y->type == x->type && x->mem.base == y->mem.index && x->mem.index == y->mem.base && x->mem.scale == 1 &&
		    y->mem.scale == 1 && x->mem.disp.value == y->mem.disp.value)
			return "base and index have changed places";
	}
	const ZydisDecodedOperand *ma = &a->zo[1], *mb = &b->zo[1];
	i64 la = ma->mem.disp.value - CTX(limit), lb = mb->mem.disp.value - CTX(limit);
	if (m == ZYDIS_MNEMONIC_CMP && ma->type == ZYDIS_OPERAND_TYPE_MEMORY && mb->type == ma->type && same_operand(&a->zo[0], &b->zo[0]) && la >= 0 && lb > la &&
	    lb < (i64)sizeof(r.bt->ctx->limit) && !(lb & 7))
		return "a test for an earlier crossing";
	if (m == ZYDIS_MNEMONIC_MOV && ma->type == ZYDIS_OPERAND_TYPE_MEMORY && mb->type == ma->type && a->zi.address_width == 32 && ma->mem.index == mb->mem.index &&
	    ma->mem.disp.value == 0 && (u32)mb->mem.disp.value == STORE_HALF)
		return "several loads by the entry for stores: who may store may load";
	u64 x = a->zo[last].imm.value.u, y = b->zo[last].imm.value.u;
	bool same = a->zo[last].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && b->zo[last].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
	for (unsigned n = 0; same && n < last; n++)
		same = same_operand(&a->zo[n], &b->zo[n]);
	if (same && m == ZYDIS_MNEMONIC_RORX && ((x ^ y) & 63) == 0)
		return "a count modulo 64";
	if (same && (m == ZYDIS_MNEMONIC_SHR || m == ZYDIS_MNEMONIC_SAR) && ((x ^ y) & 63) == 0)
		return "a count modulo 64";
	if (same && m == ZYDIS_MNEMONIC_TEST && (x & y) == x)
		return "a test for more alignment";
	if (same && m == ZYDIS_MNEMONIC_CMP && y < x && a->zo[0].type == ZYDIS_OPERAND_TYPE_REGISTER)
		return "a test for an earlier crossing, or fewer repetitions";
	int ra = a->zo[0].type == ZYDIS_OPERAND_TYPE_REGISTER ? ZydisRegisterGetId(a->zo[0].reg.value) : -1;
	int rb = b->zo[0].type == ZYDIS_OPERAND_TYPE_REGISTER ? ZydisRegisterGetId(b->zo[0].reg.value) : -1;
	bool halves = a->zo[0].size + b->zo[0].size == 96 && ra == rb;
	if (halves && ra == T && (m == ZYDIS_MNEMONIC_MOV || m == ZYDIS_MNEMONIC_AND || m == ZYDIS_MNEMONIC_LEA))
		return "the upper half of T is not used";
	if (halves && m == ZYDIS_MNEMONIC_MOVZX)
		return "the upper half is zero either way";
	return NULL;
}

/* ---- trying ------------------------------------------------------------------------------------------------------ */

static unsigned tried, accepted, wrong;

/* Byte `at` and others near it are changed. */
static void try_change(const struct sample *s, const struct block *k, u32 at, const char *what)
{
	struct error e;
	struct host a, b;
	char ta[128], tb[128];
	tried++;
	if (!verify_block(r.bt, k, s->at, &e))
		return;
	accepted++;
	code_get(k, now);
	if (!host_at(k, old, at, &a))
		return; /* before a constant, or after it: nobody comes there */
	if (!host_at(k, now, at, &b))
		fail_msg("%s: accepts what cannot be decoded, at +%#x", s->name, at);
	if (harmless(s, k, &a, &b))
		return;
	wrong++;
	print_error("%s, %s at +%#x: %s became %s, and is accepted\n", s->name, what, at, text(&a, ta), text(&b, tb));
}

static void each_sample(void (*change)(const struct sample *s, const struct block *k), unsigned at_least)
{
	tried = accepted = wrong = 0;
	decoder_init();
	for (unsigned n = 0; n < ARRAY_LEN(samples) * ARRAY_LEN(ways); n++) {
		const struct sample *s = &samples[n % ARRAY_LEN(samples)];
		struct block *k = block_of(s, &ways[n / ARRAY_LEN(samples)]);
		code_get(k, old);
		change(s, k);
		code_get(k, now);
		assert_memory_equal(old, now, size_of(k));
	}
	print_message("%u changes, %u of them harmless\n", tried, accepted - wrong);
	assert_int_equal(wrong, 0);
	assert_true(tried >= at_least);
}

/* ---- changes --------------------------------------------------------------------------------------------------------- */

static void bits(const struct sample *s, const struct block *k)
{
	for (u32 n = 0; n < size_of(k) * 8; n++) {
		*byte_of(k, n / 8) ^= (u8)(1 << (n & 7));
		try_change(s, k, n / 8, "a bit");
		code_put(k, old, n / 8, 1);
	}
}
static void every_bit(void **state) { each_sample(bits, 50000); }

static u64 seed = 0x9e3779b97f4a7c15;
static u64 rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

/* Other registers, scales, opcodes, prefixes, displacements: a byte of its own for each. */
static void other_bytes(const struct sample *s, const struct block *k)
{
	for (u32 n = 0; n < size_of(k); n++)
		for (unsigned t = 0; t < 4; t++) {
			u8 v = (u8)rnd();
			if (v == old[n])
				continue;
			*byte_of(k, n) = v;
			try_change(s, k, n, "a byte");
			code_put(k, old, n, 1);
		}
}
static void bytes(void **state) { each_sample(other_bytes, 50000); }

/* MOV RBP, RBP with as many DS prefixes as there is room for. */
static void nothing(u8 *at, unsigned len)
{
	static const u8 mov[] = { 0x48, 0x89, 0xed };
	while (len >= 3) {
		unsigned n = len < 6 ? len : 3;
		memset(at, 0x3e, n - 3);
		memcpy(at + n - 3, mov, 3);
		at += n;
		len -= n;
	}
	memset(at, 0x90, len);
}
/* An instruction that is not there: a missing check, save or restore. */
static void left_out(const struct sample *s, const struct block *k)
{
	struct host h;
	for (u32 off = 0; off < size_of(k); off++) {
		if (!host_at(k, old, off, &h) || h.off != off)
			continue;
		nothing(byte_of(k, off), h.zi.length);
		try_change(s, k, off, "without it");
		code_put(k, old, off, h.zi.length);
	}
}
static void no_instruction(void **state) { each_sample(left_out, 1000); }

/* ---- jumps ------------------------------------------------------------------------------------------------------------ */

/* Jumps to every place where an instruction begins, and to some between two. */
static void elsewhere(const struct sample *s, const struct block *k)
{
	struct host h, t;
	for (u32 off = 0; off < size_of(k); off++) {
		if (!host_at(k, old, off, &h) || h.off != off || h.zi.meta.branch_type == ZYDIS_BRANCH_TYPE_NONE || h.zi.raw.imm[0].size == 0)
			continue;
		u32 at = off + h.zi.raw.imm[0].offset, len = h.zi.raw.imm[0].size / 8u;
		i64 from = (i64)(byte_of(k, off) - byte_of(k, 0)) + h.zi.length, was = len == 4 ? (i32)ld32(old + at) : (i8)old[at];
		for (u32 to = 0; to < size_of(k); to++) {
			i64 rel = byte_of(k, to) - byte_of(k, 0) - from;
			if (rel == was || (len == 1 && rel != (i8)rel) || rel != (i32)rel || (host_at(k, old, to, &t) && t.off != to && to % 13))
				continue;
			u8 v[4];
			st32(v, (u32)rel);
			for (u32 n = 0; n < len; n++)
				*byte_of(k, at + n) = v[n];
			try_change(s, k, at, "a jump");
		}
		code_put(k, old, at, len);
	}
}
static void jumps(void **state) { each_sample(elsewhere, 10000); }

/* ---- what struct block says ----------------------------------------------------------------------------------------------- */

static const struct sample *sample(const char *name)
{
	for (unsigned n = 0; n < ARRAY_LEN(samples); n++)
		if (!strcmp(samples[n].name, name))
			return &samples[n];
	fail_msg("no sample %s", name);
	return NULL;
}

/* One field of one sample's block at a time. */
static void other_map(void **state)
{
	struct error e;
	unsigned n_tried = 0;
#define REFUSED(name, field, value) REFUSED_OF(WATCHED, name, field, value)
#define REFUSED_OF(way, name, field, value) do { \
		const struct sample *s_ = sample(name); \
		struct block *k = block_of(s_, way); \
		__typeof__(field) was_ = field; \
		field = (__typeof__(field))(value); \
		n_tried++; \
		if (verify_block(r.bt, k, s_->at, &e)) { \
			field = was_; \
			fail_msg("%s: %s = %s is accepted", name, #field, #value); \
		} \
		field = was_; \
	} while (0)
	REFUSED("sse", k->units, false);
	REFUSED("gates", k->map[1].gate, GATE_RDGSBASE);
	REFUSED("gates", k->map[8].gate, GATE_IRET);
	REFUSED("gate_iret", k->map[1].gate, GATE_NONE);
	REFUSED("gate_cr3", k->map[1].gate, GATE_SYSRET);
	REFUSED("gate_popf", k->map[1].gate_arg, 4);
	REFUSED("gate_popf", k->map[1].gate, GATE_IRET);
	REFUSED("gate_cr3", k->map[1].gate_arg, R_8);
	REFUSED("gate_cr3", k->map[1].gate_arg, 16);
	REFUSED("strings", k->map[0].gate_arg, GATE_REP | 2);
	REFUSED("strings", k->map[2].gate_arg, 0);
	REFUSED("strings", k->map[2].string, MAP_STOS);
	REFUSED("interp", k->map[1].gate_arg, GATE_REP | STRING_SCAS << GATE_OP);
	REFUSED("interp", k->map[1].gate_arg, GATE_REP | GATE_REPNE | STRING_CMPS << GATE_OP);
	REFUSED("interp", k->map[1].gate_arg, STRING_CMPS << GATE_OP);
	REFUSED("interp", k->map[1].gate, GATE_RDPKRU);
	REFUSED("interp", k->map[1].string, MAP_MOVS);
	REFUSED("ret", k->sp_back, -16);
	REFUSED("ret_imm", k->sp_back, -8);
	REFUSED("load", k->index, k->index + 1);
	REFUSED("load", k->page->id, k->page->id + 1);
	REFUSED("load", k->page->slot, k->page->slot ^ 1);
	REFUSED("kernel", k->page->cpl, 3);
	REFUSED("jmp_out", k->link[0].checked, false);
	REFUSED("jcc_out", k->link[0].checked, false);
	REFUSED("call_far_page", k->link[0].checked, false);
	REFUSED("call", k->link[1].checked, false);
	REFUSED("jmp", k->link[0].target, k->link[0].target + 1);
	REFUSED("jcc", k->link[1].target, k->link[1].target - 1);
	REFUSED("side", k->link[LINKS_LAST].target, k->link[LINKS_LAST].target + 1);
	REFUSED("side", k->link[LINKS_LAST].insn, 0);
	REFUSED("side", k->link[LINKS_LAST + 1].checked, false);
	REFUSED("side", k->link[LINKS_LAST + 1].site, NULL);
	REFUSED("jmp", k->link[0].stub, k->link[0].stub + 1);
	REFUSED("jmp", k->link[0].site, k->link[0].site + 1);
	REFUSED("jmp", k->link[0].site, NULL);
	REFUSED("load", k->stale, k->stale + 1);
	REFUSED("load", k->stale, k->stale_checked);
	REFUSED("load", k->stale_checked, k->checked);
	REFUSED("load", k->host, k->host + 1);
	REFUSED("load", k->host_units, k->host_units + 1);
	REFUSED("sse", k->host_units, k->host_units + 1);
	REFUSED("sse", k->host_units, k->checked);
	REFUSED("load", k->host, k->checked);
	REFUSED("load", k->n, k->n - 1);
	REFUSED("load", k->bytes, k->bytes - 1);
	REFUSED("load", k->map[0].host, k->map[0].host + 1);
	REFUSED("load", k->map[0].host, 0);
	REFUSED("load", k->map[1].host, k->map[1].host + 1);
	REFUSED("load", k->map[2].host, k->map[1].host);
	REFUSED("load", k->map[1].guest, k->map[1].guest + 1);
	REFUSED("store", k->map[2].guest, k->map[2].guest - 1);
	REFUSED("stack", k->map[1].victim, ENC_NONE);
	REFUSED("stack", k->map[1].victim_from, 0xffff);
	REFUSED("stack", k->map[1].commit, 0xffff);
	REFUSED("stack", k->map[4].commit, 0xffff);
	REFUSED("stack", k->map[13].commit, 0xffff);
	REFUSED("homeless", k->map[6].commit, 0xffff);
	REFUSED("homeless2", k->map[0].commit, 0xffff);
	REFUSED("loop", k->map[1].commit, 0xffff);
	REFUSED("call", k->map[0].commit, 0xffff);
	REFUSED("call_reg", k->map[0].commit, 0xffff);
	REFUSED("ret", k->map[0].commit, 0xffff);
	REFUSED("kernel", k->map[0].commit, 0xffff);
	REFUSED("kernel", k->map[1].commit, 0xffff);
	REFUSED("kernel", k->map[6].commit, 0xffff);
	REFUSED("kernel", k->map[7].commit, 0xffff);
	REFUSED("strings", k->map[0].string, 0);
	REFUSED("strings", k->map[2].string, MAP_STOS);
	REFUSED("strings", k->map[0].string_from, k->map[0].string_from + 1);
	REFUSED("strings", k->map[0].commit, 0xffff);
	REFUSED("flags", k->map[1].saved_then, false);
	REFUSED("flags", k->map[1].saved_fault, false);
	REFUSED("flags", k->map[1].saved, true);
	REFUSED("flags", k->map[2].saved, false);
	REFUSED("flags", k->map[1].prelude, 0);
	REFUSED("load", k->map[1].no_resume, false);
	REFUSED_OF(CHECKED, "varies", k->varies, 0);
	REFUSED_OF(CHECKED, "varies", k->varies, k->varies | 1);
	REFUSED_OF(CHECKED, "varies", k->varies, k->varies & (k->varies - 1));
	REFUSED_OF(CHECKED, "varies", k->made_from[0], k->made_from[0] ^ 1);
	REFUSED_OF(CHECKED, "varies", k->made_from, NULL);
	REFUSED_OF(CHECKED, "varies", k->page->host, k->page->host + 1);
	REFUSED_OF(CHECKED, "jmp", k->link[0].checked, false);
	REFUSED_OF(CHECKED, "jcc", k->link[1].checked, false);
	REFUSED_OF(WATCHED, "store", k->made_from, (u8 *)s_->at);
	print_message("%u fields changed\n", n_tried);
}

/* ---- 32-bit code ------------------------------------------------------------------------------------------------------------ */

/* What tells of an x87 instruction: itself, but for where its memory is, and the stores of FDP, FOP and FDS. */
static bool tells(const struct host *h)
{
	i64 to = h->zo[0].type == ZYDIS_OPERAND_TYPE_MEMORY ? h->zo[0].mem.disp.value : 0;
	return (h->zi.mnemonic == ZYDIS_MNEMONIC_MOV && (to == CTX(fdp) || to == CTX(x87_last) || to == CTX(x87_seg))) ||
	       (h->zi.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && h->zi.opcode >= 0xd8 && h->zi.opcode <= 0xdf);
}

/* Whether only the place of its memory operand is another; the verifier knows that it is some of the guest's. */
static bool moved_memory(const struct host *a, const struct host *b)
{
	return a->zi.mnemonic == b->zi.mnemonic && a->zi.opcode == b->zi.opcode && a->zi.opcode >= 0xd8 && a->zi.raw.modrm.reg == b->zi.raw.modrm.reg &&
	       a->zi.operand_count == b->zi.operand_count && a->zi.raw.modrm.mod != 3;
}

static void x87_pointers(void **state)
{
	static const struct sample s = { "x87_32", asm_x87_32, asm_x87_32_end };
	struct error e;
	char ta[128], tb[128];
	unsigned n_tried = 0;
	rig_code32();
	decoder_init();
	rig_code(CODE, s.at, (size_t)(s.end - s.at));
	struct block *k = rig_block(CODE);
	assert_non_null(k);
	assert_true(k->classes & 1u << FC_X87);
	if (!verify_block(r.bt, k, s.at, &e))
		fail_msg("as it is: %s", e.msg);
	code_get(k, old);
	for (u32 off = k->map[0].host; off < k->bytes; off++) {
		struct host h, b;
		if (!host_at(k, old, off, &h) || h.off != off || !tells(&h))
			continue;
		for (u32 bit = off * 8; bit < (off + h.zi.length) * 8; bit++, n_tried++) {
			*byte_of(k, bit / 8) ^= (u8)(1 << (bit & 7));
			bool taken = verify_block(r.bt, k, s.at, &e);
			code_get(k, now);
			if (taken && host_at(k, now, off, &b) && strcmp(text(&h, ta), text(&b, tb)) && !moved_memory(&h, &b))
				fail_msg("%s became %s, and is accepted", text(&h, ta), text(&b, tb));
			code_put(k, old, bit / 8, 1);
		}
		nothing(byte_of(k, off), h.zi.length);
		if (verify_block(r.bt, k, s.at, &e))
			fail_msg("without %s it is accepted", text(&h, ta));
		code_put(k, old, off, h.zi.length);
		n_tried++;
	}
	for (unsigned n = 0; n < 5; n++)
		for (unsigned bit = 1; bit < 1u << 16; bit <<= 1, n_tried++) {
			k->map[n].fop ^= (u16)bit;
			if (verify_block(r.bt, k, s.at, &e))
				fail_msg("instruction %u: bit %#x of FOP is accepted", n, bit);
			k->map[n].fop ^= (u16)bit;
		}
	print_message("%u changes\n", n_tried);
	assert_true(n_tried > 400);
}

/* Within a group values go on from instruction to instruction, so that the code's own AND may tell how many bits of
 * a bit's number there are: the word that the host's shifts name is then the one that sym_bit_word() says. */
static void bits_cut(void **state)
{
	static struct syms s;
	for (unsigned bits = 1; bits <= 32; bits++) {
		syms_reset(&s);
		sym bit = sym_low(&s, sym_fresh(&s), bits);
		assert_int_equal(sym_scale(&s, sym_sar(&s, bit, 6), 8), sym_bit_word(&s, bit, 64));
		assert_int_equal(sym_scale(&s, sym_sar(&s, sym_extend(&s, bit, 32), 5), 4), sym_bit_word(&s, bit, 32));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(every_bit, rig_up, rig_down),
		cmocka_unit_test_setup_teardown(bytes, rig_up, rig_down),
		cmocka_unit_test_setup_teardown(no_instruction, rig_up, rig_down),
		cmocka_unit_test_setup_teardown(jumps, rig_up, rig_down),
		cmocka_unit_test_setup_teardown(other_map, rig_up, rig_down),
		cmocka_unit_test_setup_teardown(x87_pointers, rig_up, rig_down),
		cmocka_unit_test(bits_cut),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
