/* Instructions that were decoded before, by their bytes: most of what is translated has an encoding
 * that was translated already, but for a displacement or an immediate.
 *
 * Invariants
 *  1. An entry is what isa_decode() and op_of_insn() say of its first `fixed` bytes and of any others behind
 *     them, but for the displacement and the immediate, which memo_take() reads from the bytes at hand.
 *     Where more than those depends on them, `fixed` is the whole length.
 *  2. Nothing is taken from beyond the bytes that are said to be there.
 *
 * Which bytes to look for is a guess, by the first ones up to where ModRM would be; a wrong one costs a
 * decoding. Threading: a memo belongs to a vCPU. */
#include <stdlib.h>
#include <string.h>

#include "bt/memo.h"

#define ENTRIES 8192u
#define GUESSES 32768u
#define KEY_BYTES 8u

struct slot { ZydisDecodedInstruction zi; ZydisDecodedOperand zo[MEMO_OPERANDS]; };
struct memo {
	u8 guess[GUESSES];    /* `fixed` of the instruction that began so when it was decoded; 0: none */
	struct known entries[ENTRIES];
	struct slot slots[ENTRIES];
	struct known fresh;   /* what has no entry */
	struct { ZydisDecodedInstruction zi; ZydisDecodedOperand zo[ZYDIS_MAX_OPERAND_COUNT]; } fresh_decoded;
};

static u64 first_bytes(u64 key, unsigned n) { return n >= 8 ? key : key & ((1ull << n * 8) - 1); }
static u64 mix(u64 key, unsigned mode) { return (key ^ (u64)mode << 62) * 0x9e3779b97f4a7c15ull; }

/* Bytes up to ModRM, or to the opcode where there is none: as far as one can say without a table of all opcodes. */
static unsigned lead(const u8 *p)
{
	static const u8 prefix[256] = {
		[0x0f] = 1, [0x26] = 1, [0x2e] = 1, [0x36] = 1, [0x3e] = 1, [0x40 ... 0x4f] = 1, [0x64 ... 0x67] = 1,
		[0xf0] = 1, [0xf2] = 1, [0xf3] = 1, [0xc5] = 2, [0xc4] = 3, [0x62] = 4,
	};
	static const u8 bare[256] = { /* one-byte opcodes without ModRM */
		[0x50 ... 0x5f] = 1, [0x68] = 1, [0x6a] = 1, [0x70 ... 0x7f] = 1, [0x90 ... 0x9f] = 1, [0xa8 ... 0xa9] = 1,
		[0xb0 ... 0xbf] = 1, [0xc3] = 1, [0xc9] = 1, [0xcc] = 1, [0xe8 ... 0xe9] = 1, [0xeb] = 1,
	};
	unsigned n = 0;
	while (n < KEY_BYTES - 2 && prefix[p[n]])
		n += prefix[p[n]];
	bool map_0f = n && p[n - 1] == 0x0f;
	return (map_0f ? (p[n] & 0xf0) == 0x80 : bare[p[n]]) ? n + 1 : n + 2;
}
static u32 guess_slot(const u8 *bytes, u64 key, unsigned mode) { return (u32)(mix(first_bytes(key, lead(bytes)), mode) >> 49) & (GUESSES - 1); }
static struct known *entry_of(struct memo *m, u64 key, unsigned mode) { return &m->entries[(mix(key, mode) >> 48) & (ENTRIES - 1)]; }

static bool has_displacement(const ZydisDecodedOperand *o)
{
	return o->type == ZYDIS_OPERAND_TYPE_MEMORY && o->encoding != ZYDIS_OPERAND_ENCODING_NONE && o->mem.disp.has_displacement;
}

/* Whether other values of displacement and immediate change nothing else. */
static bool values_apart(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo)
{
	unsigned immediates = 0;
	if ((zi->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY && zi->encoding != ZYDIS_INSTRUCTION_ENCODING_VEX) ||
	    zi->raw.imm[1].size || insn_is_shift(zi->mnemonic))
		return false;
	for (unsigned k = 0; k < zi->operand_count; k++) {
		const ZydisDecodedOperand *o = &zo[k];
		if (o->type == ZYDIS_OPERAND_TYPE_POINTER)
			return false;
		if (has_displacement(o) && o->mem.disp.value != zi->raw.disp.value)
			return false;
		if (o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && (immediates++ || o->imm.value.u != zi->raw.imm[0].value.u))
			return false;
	}
	return immediates == (zi->raw.imm[0].size != 0); /* not so: a register's number is in its place */
}

static unsigned fixed_bytes(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo)
{
	unsigned fixed = zi->length;
	if (!values_apart(zi, zo))
		return fixed;
	if (zi->raw.disp.size)
		fixed = MIN(fixed, zi->raw.disp.offset);
	if (zi->raw.imm[0].size)
		fixed = MIN(fixed, zi->raw.imm[0].offset);
	return fixed;
}

static const struct known *decode(struct memo *m, const struct interp *in, enum code_mode mode, const u8 *bytes, unsigned have, u64 key,
				  u8 *guess)
{
	struct known *n = &m->fresh;
	ZydisDecodedInstruction *zi = &m->fresh_decoded.zi;
	ZydisDecodedOperand *zo = m->fresh_decoded.zo;
	if (isa_decode(mode, in->quirks, bytes, have, zi, zo) != ISA_OK)
		return NULL;
	unsigned fixed = fixed_bytes(zi, zo);
	*n = (struct known){ .key = first_bytes(key, fixed), .op = op_of_insn(&in->ops, zi, zo), .fixed = (u8)fixed, .length = zi->length,
			     .mode = (u8)mode, .flags_read = insn_flags_read(zi), .flags_written = insn_flags_written(zi, zo),
			     .branch = zi->meta.branch_type != ZYDIS_BRANCH_TYPE_NONE, .decoded = (const void *)&m->fresh_decoded };
	if (fixed > KEY_BYTES || zi->operand_count > MEMO_OPERANDS)
		return n;
	*guess = (u8)fixed;
	struct known *e = entry_of(m, n->key, mode);
	struct slot *s = &m->slots[e - m->entries];
	s->zi = *zi;
	memcpy(s->zo, zo, zi->operand_count * sizeof(*zo));
	*e = *n;
	e->decoded = (const void *)s;
	return e;
}

const struct known *memo_find(struct memo *m, const struct interp *in, enum code_mode mode, const u8 *bytes, unsigned have)
{
	u64 key = ld64(bytes);
	u8 *guess = &m->guess[guess_slot(bytes, key, mode)];
	if (*guess) {
		const struct known *e = entry_of(m, first_bytes(key, *guess), mode);
		if (e->length && e->fixed == *guess && e->key == first_bytes(key, e->fixed) && e->mode == mode && e->length <= have)
			return e;
	}
	return decode(m, in, mode, bytes, MIN(have, 15u), key, guess);
}

/* Sign-extended. */
static i64 value_at(const u8 *p, unsigned bits)
{
	switch (bits) {
	case 8: return (i8)*p;
	case 16: return (i16)ld16(p);
	case 32: return (i32)ld32(p);
	default: return (i64)ld64(p);
	}
}

void memo_take(const struct known *n, const u8 *bytes, ZydisDecodedInstruction *zi, ZydisDecodedOperand *zo)
{
	*zi = n->decoded->zi;
	memcpy(zo, n->decoded->zo, zi->operand_count * sizeof(*zo));
	if (zi->operand_count < ZYDIS_MAX_OPERAND_COUNT) /* whoever looks for one more finds none */
		zo[zi->operand_count].type = ZYDIS_OPERAND_TYPE_UNUSED;
	if (n->fixed == n->length)
		return;
	if (zi->raw.disp.size)
		zi->raw.disp.value = value_at(bytes + zi->raw.disp.offset, zi->raw.disp.size);
	if (zi->raw.imm[0].size) {
		u64 v = (u64)value_at(bytes + zi->raw.imm[0].offset, zi->raw.imm[0].size);
		unsigned bits = zi->raw.imm[0].size;
		zi->raw.imm[0].value.u = zi->raw.imm[0].is_signed || bits == 64 ? v : v & ((1ull << bits) - 1);
	}
	for (unsigned k = 0; k < zi->operand_count; k++) {
		if (has_displacement(&zo[k]))
			zo[k].mem.disp.value = zi->raw.disp.value;
		else if (zo[k].type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
			zo[k].imm.value.u = zi->raw.imm[0].value.u;
	}
}

struct memo *memo_new(void) { return calloc(1, sizeof(struct memo)); }
