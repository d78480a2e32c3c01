/* Which status flags are live: what each instruction writes for certain and reads, and what is read beyond
 * the block's ends. By Zydis, amended where it says more than the processor does. SDM vol. 1 app. A. */
#include <string.h>

#include "bt/tr.h"

enum { LIVE_ALL = FL_STATUS & 0xff }; /* OF is kept with them: as LIVE_OF */
#define LIVE_OF 2u /* bit 1 of RFLAGS is no flag */
static u8 live_bits(u32 flags) { return (u8)((flags & LIVE_ALL) | (flags & FL_OF ? LIVE_OF : 0)); }
#define EVERY_FLAG ((u8)(LIVE_ALL | LIVE_OF))

bool insn_is_shift(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_SHL: case ZYDIS_MNEMONIC_SHR: case ZYDIS_MNEMONIC_SAR: case ZYDIS_MNEMONIC_SHLD: case ZYDIS_MNEMONIC_SHRD:
	case ZYDIS_MNEMONIC_ROL: case ZYDIS_MNEMONIC_ROR: case ZYDIS_MNEMONIC_RCL: case ZYDIS_MNEMONIC_RCR:
		return true;
	default:
		return false;
	}
}

/* Flags that are certainly written. */
u8 insn_flags_written(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo)
{
	const ZydisAccessedFlags *f = zi->cpu_flags;
	if (!f)
		return 0;
	u8 sure = live_bits(f->modified | f->set_0 | f->set_1);
	if (insn_is_shift(zi->mnemonic)) {
		const ZydisDecodedOperand *count = &zo[zi->operand_count_visible - 1];
		bool some = count->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && (count->imm.value.u & (zi->operand_width == 64 ? 63 : 31));
		if (!some || zi->mnemonic == ZYDIS_MNEMONIC_RCL || zi->mnemonic == ZYDIS_MNEMONIC_RCR)
			return 0;
		if (zi->mnemonic == ZYDIS_MNEMONIC_ROL || zi->mnemonic == ZYDIS_MNEMONIC_ROR)
			return FL_CF;
		return zi->mnemonic == ZYDIS_MNEMONIC_SHLD || zi->mnemonic == ZYDIS_MNEMONIC_SHRD ? FL_CF | FL_ZF | FL_SF | FL_PF : EVERY_FLAG;
	}
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_AND: case ZYDIS_MNEMONIC_OR: case ZYDIS_MNEMONIC_XOR: case ZYDIS_MNEMONIC_TEST:
		return EVERY_FLAG; /* AF too, with whatever value */
	case ZYDIS_MNEMONIC_BSF: case ZYDIS_MNEMONIC_BSR:
		return FL_ZF;
	case ZYDIS_MNEMONIC_CMPXCHG8B: case ZYDIS_MNEMONIC_CMPXCHG16B:
		return FL_ZF;
	case ZYDIS_MNEMONIC_FCOMI: case ZYDIS_MNEMONIC_FCOMIP: case ZYDIS_MNEMONIC_FUCOMI: case ZYDIS_MNEMONIC_FUCOMIP:
		return 0; /* none where #IA is not masked */
	default:
		if (zi->meta.category == ZYDIS_CATEGORY_STRINGOP &&
		    (zi->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)))
			return 0; /* perhaps not once */
		return sure;
	}
}
/* Whether it writes any, perhaps. */
static bool flags_touched(const ZydisDecodedInstruction *zi)
{
	const ZydisAccessedFlags *f = zi->cpu_flags;
	return f && ((f->modified | f->set_0 | f->set_1 | f->undefined) & FL_STATUS);
}
u8 insn_flags_read(const ZydisDecodedInstruction *zi)
{
	return zi->cpu_flags ? live_bits(zi->cpu_flags->tested) : 0;
}

/* Flags live at `lin`, by looking at a few instructions there: in the page that the block depends
 * on anyway. */
static u8 live_at(struct translation *t, u64 lin)
{
	if ((lin & ~PAGE_MASK) != t->page->lin || t->page->selfcheck || t->b->exact_flags)
		return EVERY_FLAG;
	u8 live = EVERY_FLAG, sure = 0;
	unsigned off = lin & PAGE_MASK;
	for (unsigned k = 0; k < 8; k++) {
		u8 bytes[16] = { 0 };
		unsigned have = MIN(15u, 4096 - off);
		if (!have)
			break;
		u64 lines = 1ull << (off >> 6) | 1ull << ((off + have - 1) >> 6);
		if (lines & ~t->ahead)
			cache_watch(t->b, t->page, off, have); /* then read */
		t->ahead |= lines;
		memcpy(bytes, t->page->host + off, have);
		const struct known *n = memo_find(t->b->memo, &t->b->in, t->page->mode, bytes, have);
		if (!n)
			break;
		u8 reads = n->flags_read & ~sure;
		if (reads || n->branch)
			break;
		/* What goes to the interpreter shows them. */
		const struct op *o = n->op;
		if (!o || o->op_class == OC_CALL || (o->flags & OF_ENDS))
			break;
		sure |= n->flags_written;
		if (sure == EVERY_FLAG)
			return 0;
		off += n->length;
	}
	return live & ~sure;
}

bool is_pushf(const ZydisDecodedInstruction *zi)
{
	return zi->mnemonic == ZYDIS_MNEMONIC_PUSHFQ || zi->mnemonic == ZYDIS_MNEMONIC_PUSHFD || zi->mnemonic == ZYDIS_MNEMONIC_PUSHF;
}

void liveness(struct translation *t)
{
	struct tins *last = &t->ins[t->n - 1];
	u8 live = EVERY_FLAG;
	if (last->kind == K_JMP || last->kind == K_CALL)
		live = live_at(t, branch_target(t, t->n - 1));
	else if (last->kind == K_JCC || last->kind == K_LOOP)
		live = live_at(t, branch_target(t, t->n - 1)) | live_at(t, next_lin_of(t, t->n - 1));
	for (unsigned k = t->n; k-- > 0;) {
		struct tins *i = &t->ins[k];
		if (i->kind == K_JCC && k < t->n - 1)
			live |= live_at(t, branch_target(t, k));
		bool shown = i->kind == K_INTERP || i->kind >= K_INTERP_LAST || i->kind == K_GATE;
		if (shown || is_pushf(&i->zi) || t->b->exact_flags)
			live = EVERY_FLAG;
		u8 after = live, wrote = i->kind == K_NOP ? 0 : insn_flags_written(&i->zi, i->zo), reads = i->kind == K_NOP ? 0 : insn_flags_read(&i->zi);
		if (!shown && i->kind != K_NOP && !t->b->exact_flags)
			live = (u8)((live & ~wrote) | reads);
		else if (i->kind == K_NOP)
			live = after;
		i->live = live;
		i->writes = i->kind != K_NOP && flags_touched(&i->zi);
		i->wants = reads || (i->writes && (after & ~wrote));
	}
}
