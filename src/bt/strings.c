/* STOS and MOVS, REP or not, where they stay within a page: the host's own instruction, on RDI and
 * RSI made host addresses for as long as it takes. Several pages of 64-bit code are gate.c's; all else (DF set,
 * a page without an entry, segments that are not flat, 16-bit addresses) is the interpreter's. SDM vol. 2 REP, STOS, MOVS. */
#include "bt/tr.h"

static bool is_stos(ZydisMnemonic m)
{
	return m == ZYDIS_MNEMONIC_STOSB || m == ZYDIS_MNEMONIC_STOSW || m == ZYDIS_MNEMONIC_STOSD || m == ZYDIS_MNEMONIC_STOSQ;
}
static bool is_movs(const ZydisDecodedInstruction *zi)
{
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_MOVSB: case ZYDIS_MNEMONIC_MOVSW: case ZYDIS_MNEMONIC_MOVSQ: return true;
	case ZYDIS_MNEMONIC_MOVSD: return zi->meta.category == ZYDIS_CATEGORY_STRINGOP;
	default: return false;
	}
}

bool string_possible(const struct translation *t, const struct tins *i)
{
	if (i->zi.address_width == 16 || (i->zi.address_width == 64) != (t->page->mode == CODE64) || !(is_stos(i->zi.mnemonic) || is_movs(&i->zi)))
		return false;
	for (unsigned k = 0; k < i->zi.operand_count && t->page->mode != CODE64; k++)
		if (i->zo[k].type == ZYDIS_OPERAND_TYPE_MEMORY && !legacy_flat(t, &i->zo[k]))
			return false;
	for (unsigned k = 0; k < i->zi.raw.prefix_count; k++) {
		u8 v = i->zi.raw.prefixes[k].value;
		if (((v == 0x64 || v == 0x65) && t->page->mode == CODE64) || v == 0xf2)
			return false;
	}
	return true;
}

static unsigned size_of(const struct tins *i) { return i->zi.operand_width / 8u; }
static bool has_rep(const struct tins *i)
{
	for (unsigned k = 0; k < i->zi.raw.prefix_count; k++)
		if (i->zi.raw.prefixes[k].value == 0xf3)
			return true;
	return false;
}

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
	bool rep = has_rep(i), movs = !is_stos(i->zi.mnemonic);
	if (t->page->mode != CODE64) {
		cut(e, movs, rep);
	} else {
		t->map[k].gate = GATE_STRING;
		t->map[k].gate_arg = (u8)((unsigned)__builtin_ctz(size) | (rep ? GATE_REP : 0));
	}
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
