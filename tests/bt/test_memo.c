/* Remembered instructions against the decoder: whatever came before, the memo says of the bytes at hand what
 * isa_decode() and op_of_insn() say, operand by operand. */
#include "test.h"

#include "bt/memo.h"

#define ROUNDS 400000u
#define SEEN 512u

static struct interp in;
static u64 state = 0x9e3779b97f4a7c15ull;
static u64 rnd(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

/* Bytes that begin as instructions do: prefixes, a map, an opcode. */
static void random_bytes(u8 *p)
{
	static const u8 prefixes[] = { 0x66, 0xf2, 0xf3, 0xf0, 0x67, 0x64, 0x65, 0x2e, 0x40, 0x41, 0x48, 0x49, 0x4c, 0x4d };
	for (unsigned k = 0; k < 16; k++)
		p[k] = (u8)rnd();
	unsigned n = 0;
	while (n < 4 && rnd() % 3 == 0)
		p[n++] = prefixes[rnd() % sizeof(prefixes)];
	switch (rnd() % 8) {
	case 0: case 1: p[n++] = 0x0f; break;
	case 2: p[n++] = 0x0f; p[n] = rnd() & 1 ? 0x38 : 0x3a; break;
	case 3: p[n] = rnd() & 1 ? 0xc5 : 0xc4; break;
	case 4: p[n] = rnd() & 1 ? 0x62 : 0x8f; break;
	default: break;
	}
}

/* Of what Zydis wrote; its padding, and what other kinds of operand have, is nothing. */
static void check_operand(const ZydisDecodedOperand *a, const ZydisDecodedOperand *b)
{
	assert_int_equal(a->type, b->type);
	assert_int_equal(a->encoding, b->encoding);
	assert_int_equal(a->actions, b->actions);
	assert_int_equal(a->visibility, b->visibility);
	assert_int_equal(a->size, b->size);
	switch (a->type) {
	case ZYDIS_OPERAND_TYPE_REGISTER:
		assert_int_equal(a->reg.value, b->reg.value);
		break;
	case ZYDIS_OPERAND_TYPE_MEMORY:
		assert_int_equal(a->mem.type, b->mem.type);
		assert_int_equal(a->mem.segment, b->mem.segment);
		assert_int_equal(a->mem.base, b->mem.base);
		assert_int_equal(a->mem.index, b->mem.index);
		assert_int_equal(a->mem.scale, b->mem.scale);
		assert_int_equal(a->mem.disp.has_displacement, b->mem.disp.has_displacement);
		assert_int_equal(a->mem.disp.value, b->mem.disp.value);
		break;
	case ZYDIS_OPERAND_TYPE_IMMEDIATE:
		assert_int_equal(a->imm.is_signed, b->imm.is_signed);
		assert_int_equal(a->imm.is_relative, b->imm.is_relative);
		assert_int_equal(a->imm.value.u, b->imm.value.u);
		break;
	default:
		assert_int_equal(a->ptr.segment, b->ptr.segment);
		assert_int_equal(a->ptr.offset, b->ptr.offset);
	}
}

/* True: there is an instruction. */
static bool check(struct memo *m, enum code_mode mode, const u8 *bytes, unsigned have)
{
	ZydisDecodedInstruction zi, got;
	ZydisDecodedOperand zo[ZYDIS_MAX_OPERAND_COUNT], got_zo[ZYDIS_MAX_OPERAND_COUNT];
	bool ok = isa_decode(mode, in.quirks, bytes, have, &zi, zo) == ISA_OK;
	const struct known *n = memo_find(m, &in, mode, bytes, have);
	assert_int_equal(n != NULL, ok);
	if (!ok)
		return false;
	assert_int_equal(n->length, zi.length);
	assert_ptr_equal(n->op, op_of_insn(&in.ops, &zi, zo));
	memset(&got, 0, sizeof(got));
	memo_take(n, bytes, &got, got_zo);
	/* Immediate and displacement first: what is wrong is then said best. */
	for (unsigned k = 0; k < zi.operand_count; k++)
		check_operand(&zo[k], &got_zo[k]);
	assert_int_equal(got.raw.disp.value, zi.raw.disp.value);
	assert_int_equal(got.raw.imm[0].value.u, zi.raw.imm[0].value.u);
	assert_int_equal(got.raw.imm[1].value.u, zi.raw.imm[1].value.u);
	assert_memory_equal(&got, &zi, sizeof(zi));
	return true;
}

/* New encodings, and old ones with other bytes at their ends. */
static void against_decoder(void **unused)
{
	(void)unused;
	static const unsigned quirks[] = { 0, ISA_AMD | ISA_LOCK_CR8, ISA_NO_TZCNT | ISA_NO_LZCNT | ISA_NO_WBNOINVD };
	static u8 seen[SEEN][16];
	for (unsigned q = 0; q < ARRAY_LEN(quirks); q++) {
		struct memo *m = memo_new();
		unsigned valid = 0;
		assert_non_null(m);
		in.quirks = quirks[q];
		for (unsigned k = 0; k < ROUNDS; k++) {
			u8 bytes[16];
			if (k < SEEN || rnd() % 4 == 0) {
				random_bytes(bytes);
			} else {
				memcpy(bytes, seen[rnd() % SEEN], 16);
				for (unsigned n = 1 + rnd() % 15; n < 16; n++)
					bytes[n] = rnd() % 4 ? (u8)rnd() : bytes[n];
			}
			unsigned have = rnd() % 8 ? 15 : 1 + (unsigned)(rnd() % 15);
			if (check(m, (enum code_mode)(rnd() % 3), bytes, have)) {
				memcpy(seen[rnd() % SEEN], bytes, 16);
				valid++;
			}
		}
		assert_true(valid > ROUNDS / 4);
		free(m);
	}
}

/* One like another is not decoded again: the same entry answers. */
static void is_remembered(void **unused)
{
	(void)unused;
	static const struct { u8 a[16], b[16]; bool same; } pairs[] = {
		{ { 0x48, 0x8b, 0x43, 0x10 }, { 0x48, 0x8b, 0x43, 0xf8 }, true },              /* mov rax, [rbx + 16]; - 8 */
		{ { 0xe8, 1, 2, 3, 4 }, { 0xe8, 0xf0, 0xff, 0xff, 0xff }, true },              /* call */
		{ { 0x81, 0xc1, 1, 0, 0, 0 }, { 0x81, 0xc1, 2, 0, 0, 0x80 }, true },           /* add ecx, imm32 */
		{ { 0xc7, 0x44, 0x24, 8, 1, 0, 0, 0 }, { 0xc7, 0x44, 0x24, 16, 9 }, true },    /* mov [rsp + 8], imm32 */
		{ { 0xc1, 0xe0, 0 }, { 0xc1, 0xe0, 1 }, false },                               /* shl eax, 0: flags stay */
		{ { 0x48, 0x8b, 0x43, 0x10 }, { 0x4c, 0x8b, 0x43, 0x10 }, false },
	};
	for (unsigned k = 0; k < ARRAY_LEN(pairs); k++) {
		struct memo *m = memo_new();
		const struct known *a = memo_find(m, &in, CODE64, pairs[k].a, 15), *b = memo_find(m, &in, CODE64, pairs[k].b, 15);
		assert_non_null(a);
		assert_non_null(b);
		assert_int_equal(a == b, pairs[k].same);
		free(m);
	}
}

int main(void)
{
	op_index_build(&in.ops);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(against_decoder),
		cmocka_unit_test(is_remembered),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
