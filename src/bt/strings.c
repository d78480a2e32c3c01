/* STOS and MOVS, REP or not, where they stay within a page: the host's own instruction, on RDI and
 * RSI made host addresses for as long as it takes. Several pages, DF set, and the other string instructions are
 * gate_string.c's; all else (a page without an entry, segments that are not flat, addresses narrower than the code's) is the
 * interpreter's. SDM vol. 2 REP, STOS, MOVS. */
#include "bt/tr.h"

static enum gate_string_op op_of(const struct tins *i)
{
	switch (i->zi.opcode & 0xfe) {
	case 0xa4: return STRING_MOVS;
	case 0xa6: return STRING_CMPS;
	case 0xac: return STRING_LODS;
	case 0xae: return STRING_SCAS;
	default: return STRING_STOS;
	}
}

/* The REP prefix that counts: 0xf3, 0xf2 or 0; ~0: of both kinds. */
static unsigned rep_of(const struct tins *i)
{
	unsigned rep = 0;
	for (unsigned k = 0; k < i->zi.raw.prefix_count; k++) {
		u8 v = i->zi.raw.prefixes[k].value;
		if (v == 0xf2 || v == 0xf3)
			rep = rep && rep != v ? ~0u : v;
	}
	return rep;
}

/* A string instruction that there is a way for, here or through the gate. */
static bool possible(const struct translation *t, const struct tins *i)
{
	bool compares = op_of(i) == STRING_SCAS || op_of(i) == STRING_CMPS;
	if (i->zi.meta.category != ZYDIS_CATEGORY_STRINGOP || i->zi.opcode_map != ZYDIS_OPCODE_MAP_DEFAULT || (i->zi.opcode & 0xf0) != 0xa0)
		return false;
	if (i->zi.address_width == 16 || (i->zi.address_width == 64) != (t->page->mode == CODE64) || rep_of(i) > 0xf3 ||
	    (rep_of(i) == 0xf2 && !compares))
		return false;
	for (unsigned k = 0; k < i->zi.operand_count && t->page->mode != CODE64; k++)
		if (i->zo[k].type == ZYDIS_OPERAND_TYPE_MEMORY && !legacy_flat(t, &i->zo[k]))
			return false;
	for (unsigned k = 0; k < i->zi.raw.prefix_count && t->page->mode == CODE64; k++)
		if (i->zi.raw.prefixes[k].value == 0x64 || i->zi.raw.prefixes[k].value == 0x65)
			return false;
	return true;
}

bool string_possible(const struct translation *t, const struct tins *i)
{
	return possible(t, i) && (op_of(i) == STRING_STOS || op_of(i) == STRING_MOVS);
}

bool string_gated(const struct translation *t, const struct tins *i)
{
	return possible(t, i) && !string_possible(t, i);
}

u8 string_gate_arg(const struct tins *i)
{
	unsigned rep = rep_of(i);
	return (u8)((unsigned)__builtin_ctz(i->zi.operand_width / 8u) | (rep ? GATE_REP : 0u) | (rep == 0xf2 ? GATE_REPNE : 0u) | (unsigned)op_of(i) << GATE_OP);
}

static unsigned size_of(const struct tins *i) { return i->zi.operand_width / 8u; }
/* Leaves unless all that r points to, RCX (or one) times `size` bytes, lies in one page. */
static void same_page(struct translation *t, unsigned k, unsigned r, unsigned size, bool rep)
{
	struct emit *e = &t->e;
	if (rep)
		e_lea(e, T, M_SIB(r, RCX, (unsigned)__builtin_ctz(size), -1));
	else
		e_lea(e, T, M_BASE(r, (i32)size - 1));
	e_reg(e, E_W | 0x31, r, T);             /* xor r11, r */
	e_reg(e, E_W | 0xc1, 5, T); e8(e, 12);  /* shr r11, 12 */
	cold_add(t, e_jcc(e, CC_NZ), k);
}

static void entry(struct translation *t, unsigned k, unsigned to, unsigned addr, bool store)
{
	struct emit *e = &t->e;
	e_rorx(e, to, addr, 12);
	e_mem(e, E_W | E_GS | E_A32 | 0x8b, to, M_SIB(ENC_NONE, to, 3, store ? (i32)STORE_HALF : 0));
	e_reg(e, E_W | 0x85, to, to);           /* test */
	cold_add(t, e_jcc(e, CC_Z), k);
}

/* Outside 64-bit mode: the upper halves do not count, and may not stay. */
static void cut(struct emit *e, bool movs, bool rep)
{
	e_reg(e, 0x89, RDI, RDI);
	if (movs)
		e_reg(e, 0x89, RSI, RSI);
	if (rep)
		e_reg(e, 0x89, RCX, RCX);
}

void string_emit(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	unsigned size = size_of(i);
	bool rep = rep_of(i) != 0, movs = op_of(i) == STRING_MOVS;
	if (t->page->mode != CODE64)
		cut(e, movs, rep);
	t->map[k].gate = GATE_STRING;
	t->map[k].gate_arg = string_gate_arg(i);
	if (rep) { /* more than a page holds; also keeps the sum below from wrapping */
		e_reg(e, E_W | 0x81, 7, RCX);   /* cmp rcx, imm32 */
		e32(e, 4096 / size);
		cold_add(t, e_jcc(e, CC_NBE), k);
	}
	e_ctx_load(e, T, M_CTX(cpu));
	e_mem(e, 0xf7, 0, M_BASE(T, offsetof(struct cpu, rflags))); /* test dword, DF */
	e32(e, FL_DF);
	cold_add(t, e_jcc(e, CC_NZ), k);
	same_page(t, k, RDI, size, rep);
	if (movs) {
		same_page(t, k, RSI, size, rep);
		entry(t, k, T, RDI, true);
		e_ctx_store(e, T, M_CTX(save_t));
		entry(t, k, T, RSI, false);
		mark_commit(t, k);
		e_lea(e, RSI, M_SIB(RSI, T, 0, -1));
		e_ctx_store(e, T, M_CTX(target));
		e_mem(e, E_W | E_GS | 0x03, RDI, M_CTX(save_t)); /* add rdi, entry */
		e_reg(e, E_W | 0x83, 5, RDI); e8(e, 1);          /* sub rdi, 1 */
	} else {
		entry(t, k, T, RDI, true);
		e_ctx_store(e, T, M_CTX(save_t));
		mark_commit(t, k);
		e_lea(e, RDI, M_SIB(RDI, T, 0, -1));
	}
	t->map[k].string = movs ? MAP_MOVS : MAP_STOS;
	t->map[k].string_from = (u16)(e->p - (t->start + t->map[k].host));
	if (rep)
		e8(e, 0xf3);
	if (size == 2)
		e8(e, 0x66);
	if (size == 8)
		e8(e, 0x48);
	e8(e, (movs ? 0xa4u : 0xaau) | (size > 1));
	e_mem(e, E_W | E_GS | 0x2b, RDI, M_CTX(save_t)); /* sub rdi, entry */
	e_reg(e, E_W | 0x83, 0, RDI); e8(e, 1);          /* add rdi, 1 */
	if (movs) {
		e_mem(e, E_W | E_GS | 0x2b, RSI, M_CTX(target));
		e_reg(e, E_W | 0x83, 0, RSI); e8(e, 1);
	}
	if (t->page->mode != CODE64)
		cut(e, movs, false);
}
