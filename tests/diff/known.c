/* The differences of known.def, each recognized as narrowly as it can be. */
#include <string.h>

#include "compare.h"

/* What BT with a register adds to its operand's address. */
static u64 bit_offset_bytes(const struct check *k)
{
	const ZydisDecodedOperand *o = &k->d->zo[1];
	ZydisMnemonic n = k->d->zi.mnemonic;
	unsigned size = k->d->zi.operand_width;
	if ((n != ZYDIS_MNEMONIC_BT && n != ZYDIS_MNEMONIC_BTS && n != ZYDIS_MNEMONIC_BTR && n != ZYDIS_MNEMONIC_BTC) ||
	    o->type != ZYDIS_OPERAND_TYPE_REGISTER)
		return 0;
	i64 v = (i64)(k->t->r.gpr[ZydisRegisterGetId(o->reg.value)] << (64 - size)) >> (64 - size);
	return (u64)(v >> 3) & ~(u64)(size / 8 - 1);
}

/* A memory operand through FS or GS whose offset is not canonical while its linear address is. */
static bool offset_not_canonical(const struct check *k)
{
	for (unsigned n = 0; n < k->d->zi.operand_count && k->t->mode == CODE64; n++) {
		const ZydisDecodedOperand *o = &k->d->zo[n];
		if (o->type != ZYDIS_OPERAND_TYPE_MEMORY || o->mem.segment < ZYDIS_REGISTER_FS)
			continue;
		u64 off = operand_effective(k->t, k->d, n) + bit_offset_bytes(k);
		if ((u64)((i64)(off << 16) >> 16) != off)
			return true;
	}
	return false;
}
static bool known_amd_offset(const struct check *k, const char *first)
{
	(void)first;
	return k->n->vector == V_GP && !k->n->error && k->n->r.rip == k->t->r.rip && offset_not_canonical(k);
}

static bool known_amd_loop_prefix(const struct check *k, const char *first)
{
	(void)first;
	if (k->d->zi.mnemonic != ZYDIS_MNEMONIC_LOOPE && k->d->zi.mnemonic != ZYDIS_MNEMONIC_LOOPNE)
		return false;
	for (unsigned n = 0; n < k->d->zi.raw.prefix_count; n++)
		if (k->d->zi.raw.prefixes[n].value >= 0xf2)
			return true;
	return false;
}

/* Of instructions that make many accesses. */
static bool many_accesses(const struct check *k)
{
	switch (k->d->zi.meta.category) {
	case ZYDIS_CATEGORY_XSAVE: case ZYDIS_CATEGORY_XSAVEOPT: return true;
	default: break;
	}
	switch (k->d->zi.mnemonic) {
	case ZYDIS_MNEMONIC_IRET: case ZYDIS_MNEMONIC_IRETD: case ZYDIS_MNEMONIC_IRETQ:
	case ZYDIS_MNEMONIC_FNSAVE: case ZYDIS_MNEMONIC_FRSTOR: case ZYDIS_MNEMONIC_FNSTENV: case ZYDIS_MNEMONIC_FLDENV:
	case ZYDIS_MNEMONIC_FXSAVE: case ZYDIS_MNEMONIC_FXRSTOR: case ZYDIS_MNEMONIC_FXSAVE64:
	case ZYDIS_MNEMONIC_FXRSTOR64: case ZYDIS_MNEMONIC_FBLD: case ZYDIS_MNEMONIC_FBSTP:
		return true;
	default: return false;
	}
}
/* Nothing but which fault it was. */
static bool other_fault(const struct check *k, const char *first)
{
	return k->n->r.rip == k->t->r.rip && k->e->r.rip == k->t->r.rip && k->n->vector != V_BP && k->e->vector != V_BP &&
	       k->count == 1 && (!strcmp(first, "cr2") || !strcmp(first, "vector"));
}
static bool known_access_order(const struct check *k, const char *first)
{
	/* A far CALL pushes twice: the one may miss its page and the other not be canonical. */
	if (k->d->zi.mnemonic == ZYDIS_MNEMONIC_CALL && k->d->zi.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
		return other_fault(k, first) && k->n->vector + k->e->vector == V_PF + V_SS;
	/* A scatter's elements, the one not canonical, the other missing: AMD's look at the addresses first. */
	if (k->d->zi.meta.category == ZYDIS_CATEGORY_SCATTER)
		return other_fault(k, first) && k->n->vector + k->e->vector == V_GP + V_PF;
	if (k->n->vector == V_AC && k->t->r.rflags & FL_AC && k->e->vector == V_GP)
		return other_fault(k, first) && many_accesses(k);
	/* Of a missing page and a read-only one the other error code comes with the other address. */
	bool other_page = !strcmp(first, "cr2") ? k->count == 1 : !strcmp(first, "error") && k->count == 2;
	return other_page && k->n->vector == V_PF && many_accesses(k) && k->n->cr2 != k->e->cr2 &&
	       k->n->cr2 - k->e->cr2 + 0x1000 < 0x2000;
}

/* Far returns look at the outer stack's slots even where none is popped. */
static bool known_amd_far_return(const struct check *k, const char *first)
{
	(void)first;
	if (k->d->zi.mnemonic != ZYDIS_MNEMONIC_IRET && k->d->zi.mnemonic != ZYDIS_MNEMONIC_IRETD &&
	    k->d->zi.mnemonic != ZYDIS_MNEMONIC_IRETQ &&
	    !(k->d->zi.mnemonic == ZYDIS_MNEMONIC_RET && k->d->zi.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR))
		return false;
	u64 up = k->n->cr2 - k->t->r.gpr[R_SP];
	bool slot = k->n->vector == V_PF && !(k->n->error & (PF_W | PF_I)) && up < 65536 + 40;
	return (slot || (k->n->vector == V_AC && k->t->r.rflags & FL_AC)) &&
	       (k->e->vector == V_GP || k->e->vector == V_NP || k->e->vector == V_SS || k->e->vector == V_PF);
}

/* POPA and PUSHA that fault half way have loaded and stored what came before. */
static bool known_partial_popa(const struct check *k, const char *first)
{
	(void)first;
	if (k->n->vector != V_PF || k->e->vector != V_PF || k->n->cr2 != k->e->cr2 || k->n->r.rip != k->t->r.rip ||
	    k->n->r.gpr[R_SP] != k->t->r.gpr[R_SP])
		return false;
	switch (k->d->zi.mnemonic) {
	case ZYDIS_MNEMONIC_POPA: case ZYDIS_MNEMONIC_POPAD: case ZYDIS_MNEMONIC_PUSHA: case ZYDIS_MNEMONIC_PUSHAD: return true;
	default: return false;
	}
}

/* PUNPCKL, UNPCKL and shifts need half of a 128-bit operand: with MXCSR.MM only that half is
 * accessed. */
static bool known_mm_half(const struct check *k, const char *first)
{
	(void)first;
	const char *name = ZydisMnemonicGetString(k->d->zi.mnemonic);
	if (!(k->t->r.v.mxcsr & 0x20000) || k->d->zi.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY ||
	    k->e->vector != V_PF ||
	    !(strstr(name, "unpckl") || !strncmp(name, "psll", 4) || !strncmp(name, "psrl", 4) || !strncmp(name, "psra", 4)))
		return false;
	return !(k->e->cr2 & PAGE_MASK); /* at the second page */
}

/* Bytes that the decoder refuses, with VEX or EVEX prefix: the manuals say #UD, processors look
 * at fewer of the reserved bits. */
static bool known_reserved_bits(const struct check *k, const char *first)
{
	(void)first;
	if (k->d->row >= 0 || k->e->vector != V_UD)
		return false;
	for (unsigned n = 0; n < k->t->len; n++) {
		u8 b = k->t->bytes[n];
		if (b == 0xc4 || b == 0xc5 || b == 0x62)
			return true;
		if (b != 0x66 && b != 0xf2 && b != 0xf3 && b != 0xf0)
			return false;
	}
	return false;
}

static bool known_amd_lock_verw(const struct check *k, const char *first)
{
	unsigned n = 0;
	bool lock = false;
	(void)first;
	for (; n + 2 < k->t->len && k->t->bytes[n] != 0x0f; n++)
		lock |= k->t->bytes[n] == 0xf0;
	return lock && k->e->vector == V_UD && k->t->bytes[n + 1] == 0 && (k->t->bytes[n + 2] & 0x38) == 0x28;
}

/* RF in the image of a single-step trap between two iterations. */
static bool known_rep_trap_rf(const struct check *k, const char *first)
{
	bool rep = k->d->zi.meta.category == ZYDIS_CATEGORY_STRINGOP && k->n->r.rip == k->t->r.rip;
	return rep && !strcmp(first, "rflags") && k->count == 1 && k->n->vector == V_DB && k->e->vector == V_DB &&
	       (k->n->r.rflags ^ k->e->r.rflags) == FL_RF;
}

/* A gather or scatter of which an element faults after others were done, under TF. */
static bool known_vsib_trap(const struct check *k, const char *first)
{
	ZydisInstructionCategory c = k->d->zi.meta.category;
	(void)first;
	return (c == ZYDIS_CATEGORY_SCATTER || c == ZYDIS_CATEGORY_GATHER || c == ZYDIS_CATEGORY_AVX2GATHER) &&
	       k->t->r.rflags & FL_TF && k->n->vector == V_DB && k->n->r.rip == k->t->r.rip && k->e->vector != V_DB &&
	       k->e->r.rip == k->t->r.rip;
}

/* Both operands of CMPS fault. */
static bool known_cmps_order(const struct check *k, const char *first)
{
	return other_fault(k, first) && !strncmp(ZydisMnemonicGetString(k->d->zi.mnemonic), "cmps", 4);
}

typedef bool known_fn(const struct check *k, const char *first);
#define KNOWN(name, reason) static known_fn known_##name;
#include "known.def"
#undef KNOWN
static const struct { const char *name, *reason; known_fn *is; } known[] = {
#define KNOWN(name, reason) { #name, reason, known_##name },
#include "known.def"
#undef KNOWN
	{ NULL, NULL, NULL },
};
unsigned known_count(void) { return ARRAY_LEN(known) - 1; }
const char *known_name(unsigned k) { return known[k].name; }
const char *known_reason(unsigned k) { return known[k].reason; }
bool known_is(unsigned n, const struct check *k, const char *first) { return known[n].is(k, first); }
