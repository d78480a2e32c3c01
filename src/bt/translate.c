/* Translation of one block: decoding, what to do with each instruction, which status flags are
 * live, and the host code of everything that is no branch.
 *
 * Register-only instructions are copied, with RSP named r15; a memory operand is replaced by what
 * mempath.c makes; R11 and R15 are moved between T or a borrowed register and their homes. Where
 * none of that fits, the instruction is left to the interpreter: always a correct answer.
 * SDM vol. 2; flags by Zydis, amended where it says more than the processor does. */
#define LOG_TOPIC "bt"
#include <string.h>

#include "bt/host.h"
#include "bt/tr.h"

/* ---- flags ------------------------------------------------------------------------------------ */

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

static bool is_pushf(const ZydisDecodedInstruction *zi)
{
	return zi->mnemonic == ZYDIS_MNEMONIC_PUSHFQ || zi->mnemonic == ZYDIS_MNEMONIC_PUSHFD || zi->mnemonic == ZYDIS_MNEMONIC_PUSHF;
}

static void liveness(struct translation *t)
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

/* ---- what an instruction is ---------------------------------------------------------------------- */

static bool is_gpr_class(ZydisRegister r)
{
	ZydisRegisterClass k = ZydisRegisterGetClass(r);
	return k >= ZYDIS_REGCLASS_GPR8 && k <= ZYDIS_REGCLASS_GPR64;
}
static bool is_high8(ZydisRegister r) { return r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH; }
static unsigned gpr_of(ZydisRegister r)
{
	int id = ZydisRegisterGetId(r);
	if (ZydisRegisterGetClass(r) == ZYDIS_REGCLASS_GPR8 && id >= 4)
		return (unsigned)id - 4;
	return (unsigned)id;
}
static bool gpr_operand(const ZydisDecodedOperand *o) { return o->type == ZYDIS_OPERAND_TYPE_REGISTER && is_gpr_class(o->reg.value); }
static bool is_explicit(const ZydisDecodedOperand *o)
{
	return o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG || o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM ||
	       o->encoding == ZYDIS_OPERAND_ENCODING_NDSNDD || o->encoding == ZYDIS_OPERAND_ENCODING_OPCODE;
}

/* General registers that the instruction names or uses, addresses included. */
static u32 registers_used(const struct tins *i)
{
	u32 used = 0;
	for (unsigned k = 0; k < i->zi.operand_count; k++) {
		const ZydisDecodedOperand *o = &i->zo[k];
		if (gpr_operand(o))
			used |= 1u << gpr_of(o->reg.value);
		if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
			if (is_gpr_class(o->mem.base))
				used |= 1u << gpr_of(o->mem.base);
			if (is_gpr_class(o->mem.index))
				used |= 1u << gpr_of(o->mem.index);
		}
	}
	return used;
}
unsigned unused_register(const struct tins *i)
{
	static const u8 order[] = { RBX, RDX, RSI, RDI, RBP, R8, R9, R10, R12, R13 };
	u32 used = registers_used(i);
	for (unsigned k = 0; k < sizeof(order); k++)
		if (!(used >> order[k] & 1))
			return order[k];
	bug("an instruction that uses ten registers");
}

const ZydisDecodedOperand *memory_of(const struct tins *i)
{
	for (unsigned k = 0; k < i->zi.operand_count; k++)
		if (i->zo[k].type == ZYDIS_OPERAND_TYPE_MEMORY)
			return &i->zo[k];
	return NULL;
}

bool operand_ea(const struct translation *t, const struct tins *i, const ZydisDecodedOperand *o, struct ea *a)
{
	*a = (struct ea){ .base = ENC_NONE, .index = ENC_NONE };
	if (i->zi.address_width != 64)
		return false;
	if (i->kind == K_BITS) {
		a->bits = i->zo[1].size;
		a->bit = host_of(gpr_of(i->zo[1].reg.value));
	}
	if (o->mem.segment == ZYDIS_REGISTER_FS)
		a->seg = S_FS;
	else if (o->mem.segment == ZYDIS_REGISTER_GS)
		a->seg = S_GS;
	if (o->mem.base == ZYDIS_REGISTER_RIP) {
		a->konst = true;
		a->lin = t->lin + i->off + i->zi.length + (u64)o->mem.disp.value;
		return true;
	}
	if (o->mem.base == ZYDIS_REGISTER_NONE && o->mem.index == ZYDIS_REGISTER_NONE) {
		a->konst = true;
		a->lin = (u64)o->mem.disp.value;
		return true;
	}
	if (o->mem.base != ZYDIS_REGISTER_NONE)
		a->base = host_of(gpr_of(o->mem.base));
	if (o->mem.index != ZYDIS_REGISTER_NONE) {
		if (!is_gpr_class(o->mem.index))
			return false; /* VSIB */
		a->index = host_of(gpr_of(o->mem.index));
		a->scale = o->mem.scale == 8 ? 3 : o->mem.scale == 4 ? 2 : o->mem.scale == 2 ? 1 : 0;
	}
	a->disp = (i32)o->mem.disp.value;
	return true;
}

/* Faults by itself where it is not aligned: SSE's operands of 16 bytes, but for the moves that
 * say otherwise; the aligned moves of every width; CMPXCHG16B. */
bool checks_alignment(const ZydisDecodedInstruction *zi, unsigned size)
{
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_CMPXCHG16B:
	case ZYDIS_MNEMONIC_MOVAPS: case ZYDIS_MNEMONIC_MOVAPD: case ZYDIS_MNEMONIC_MOVDQA:
	case ZYDIS_MNEMONIC_VMOVAPS: case ZYDIS_MNEMONIC_VMOVAPD: case ZYDIS_MNEMONIC_VMOVDQA:
	case ZYDIS_MNEMONIC_VMOVDQA32: case ZYDIS_MNEMONIC_VMOVDQA64:
	case ZYDIS_MNEMONIC_MOVNTPS: case ZYDIS_MNEMONIC_MOVNTPD: case ZYDIS_MNEMONIC_MOVNTDQ: case ZYDIS_MNEMONIC_MOVNTDQA:
	case ZYDIS_MNEMONIC_VMOVNTPS: case ZYDIS_MNEMONIC_VMOVNTPD: case ZYDIS_MNEMONIC_VMOVNTDQ: case ZYDIS_MNEMONIC_VMOVNTDQA:
		return size >= 16;
	default:
		return false; /* MXCSR.MM may let the others be */
	}
}

/* Not so: none in ModRM, hidden ones, bit strings, several. */
bool one_operand_of_memory(const struct tins *i)
{
	unsigned n = 0;
	const ZydisDecodedOperand *m = NULL;
	for (unsigned k = 0; k < i->zi.operand_count; k++) {
		if (i->zo[k].type != ZYDIS_OPERAND_TYPE_MEMORY)
			continue;
		m = &i->zo[k];
		n++;
	}
	if (n != 1 || m->encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM || m->mem.type != ZYDIS_MEMOP_TYPE_MEM)
		return false;
	unsigned size = m->size / 8u;
	if (!size || size > 64 || ((size & (size - 1)) && !(size == 10 && is_x87(i))))
		return false;
	switch (i->zi.mnemonic) { /* a register counts bits beyond the operand */
	case ZYDIS_MNEMONIC_BT: case ZYDIS_MNEMONIC_BTS: case ZYDIS_MNEMONIC_BTR: case ZYDIS_MNEMONIC_BTC:
		if (i->zo[1].type == ZYDIS_OPERAND_TYPE_REGISTER)
			return false;
		break;
	default:
		break;
	}
	return true;
}

/* Memory operands that the path can take. */
static bool plain_memory(const struct translation *t, const struct tins *i)
{
	if (!one_operand_of_memory(i))
		return false;
	const ZydisDecodedOperand *m = memory_of(i);
	unsigned size = m->size / 8u;
	struct ea a;
	if (!operand_ea(t, i, m, &a) || !mem_possible(&a))
		return false;
	if (a.konst && !a.seg && (a.lin & PAGE_MASK) + size > 4096)
		return false;
	return true;
}

/* BT, BTS, BTR, BTC of memory by a register, without segment and homeless registers in the address. */
static bool bits_possible(const struct translation *t, const struct tins *i)
{
	const ZydisDecodedOperand *m = &i->zo[0];
	switch (i->zi.mnemonic) {
	case ZYDIS_MNEMONIC_BT: case ZYDIS_MNEMONIC_BTS: case ZYDIS_MNEMONIC_BTR: case ZYDIS_MNEMONIC_BTC: break;
	default: return false;
	}
	struct ea a;
	if (!gpr_operand(&i->zo[1]) || m->type != ZYDIS_OPERAND_TYPE_MEMORY || m->size < 32 || m->size != i->zo[1].size ||
	    !operand_ea(t, i, m, &a) || a.seg)
		return false;
	return a.konst ? a.lin - 1 == (u64)(i64)(i32)(a.lin - 1) && a.lin == (u64)(i64)(i32)a.lin : mem_possible(&a) && !at_home(a.base) && !at_home(a.index);
}

/* The unit (enum fpu_class); -1: none. -2: not here. */
int unit_of(const struct tins *i)
{
	bool mmx = false, vector = false, opmask = false;
	for (unsigned k = 0; k < i->zi.operand_count; k++) {
		if (i->zo[k].type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		switch (ZydisRegisterGetClass(i->zo[k].reg.value)) {
		case ZYDIS_REGCLASS_MMX: mmx = true; break;
		case ZYDIS_REGCLASS_XMM: case ZYDIS_REGCLASS_YMM: case ZYDIS_REGCLASS_ZMM: vector = true; break;
		case ZYDIS_REGCLASS_MASK: opmask = true; break;
		default: break;
		}
	}
	switch (i->zi.mnemonic) {
	case ZYDIS_MNEMONIC_FWAIT: return FC_X87; /* which is off wherever FC_WAIT is */
	case ZYDIS_MNEMONIC_EMMS: return FC_MMX;
	case ZYDIS_MNEMONIC_LDMXCSR: case ZYDIS_MNEMONIC_STMXCSR: return FC_SSE;
	case ZYDIS_MNEMONIC_VLDMXCSR: case ZYDIS_MNEMONIC_VSTMXCSR:
	case ZYDIS_MNEMONIC_VZEROUPPER: case ZYDIS_MNEMONIC_VZEROALL: /* Zydis names no register */
		return FC_AVX;
	case ZYDIS_MNEMONIC_CVTSS2SI: case ZYDIS_MNEMONIC_CVTTSS2SI: case ZYDIS_MNEMONIC_CVTSD2SI: case ZYDIS_MNEMONIC_CVTTSD2SI:
		return FC_SSE; /* of memory they name no vector register */
	case ZYDIS_MNEMONIC_VCVTSS2SI: case ZYDIS_MNEMONIC_VCVTTSS2SI: case ZYDIS_MNEMONIC_VCVTSD2SI: case ZYDIS_MNEMONIC_VCVTTSD2SI:
		if (i->zi.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX)
			return FC_AVX;
		break;
	default: break;
	}
	switch (i->zi.encoding) {
	case ZYDIS_INSTRUCTION_ENCODING_3DNOW: return -2;
	case ZYDIS_INSTRUCTION_ENCODING_EVEX: return FC_AVX512;
	case ZYDIS_INSTRUCTION_ENCODING_LEGACY:
		return is_x87(i) ? FC_X87 : vector ? FC_SSE : mmx ? FC_MMX : -1;
	default: return opmask ? FC_AVX512 : vector ? FC_AVX : -1;
	}
}

enum kind interp_kind(const struct tins *i)
{
	bool rep = (i->op->flags & OF_STRING) && (i->zi.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE));
	for (unsigned k = 0; k < i->zi.raw.prefix_count; k++)
		rep |= (i->op->flags & OF_STRING) && (i->zi.raw.prefixes[k].value == 0xf3 || i->zi.raw.prefixes[k].value == 0xf2);
	return (i->op->flags & OF_ENDS) || rep ? K_INTERP_LAST : K_INTERP;
}

static bool eight_bytes_possible(const struct translation *t, const struct tins *i)
{
	struct ea a;
	return operand_ea(t, i, &i->zo[0], &a) && mem_possible(&a) && !(a.konst && !a.seg && (a.lin & PAGE_MASK) > 4088);
}

static enum kind stack_kind(const struct translation *t, const struct tins *i)
{
	if (i->zi.operand_width != 64)
		return K_INTERP;
	switch (i->zi.mnemonic) {
	case ZYDIS_MNEMONIC_PUSH:
		if (i->zo[0].type == ZYDIS_OPERAND_TYPE_MEMORY)
			return eight_bytes_possible(t, i) ? K_PUSH : K_INTERP;
		return (gpr_operand(&i->zo[0]) || i->zo[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) ? K_PUSH : K_INTERP;
	case ZYDIS_MNEMONIC_POP: return gpr_operand(&i->zo[0]) ? K_POP : K_INTERP;
	default: return K_LEAVE;
	}
}

static enum kind branch_kind(const struct translation *t, const struct tins *i)
{
	if (i->zi.operand_width == 16)
		return K_INTERP_LAST;
	const ZydisDecodedOperand *o = &i->zo[0];
	bool direct = o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
	bool memory = o->type == ZYDIS_OPERAND_TYPE_MEMORY;
	if (memory && i->zi.mnemonic != ZYDIS_MNEMONIC_RET && !eight_bytes_possible(t, i))
		return K_INTERP_LAST;
	switch (i->zi.mnemonic) {
	case ZYDIS_MNEMONIC_JMP: return direct ? K_JMP : K_JMP_IND;
	case ZYDIS_MNEMONIC_CALL: return direct ? K_CALL : K_CALL_IND;
	case ZYDIS_MNEMONIC_RET: return K_RET;
	case ZYDIS_MNEMONIC_LOOP: case ZYDIS_MNEMONIC_LOOPE: case ZYDIS_MNEMONIC_LOOPNE:
	case ZYDIS_MNEMONIC_JRCXZ: case ZYDIS_MNEMONIC_JECXZ:
		return K_LOOP;
	default: return K_JCC;
	}
}

bool is_hint(const ZydisDecodedInstruction *zi)
{
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_NOP: case ZYDIS_MNEMONIC_PREFETCHT0: case ZYDIS_MNEMONIC_PREFETCHT1: case ZYDIS_MNEMONIC_PREFETCHT2:
	case ZYDIS_MNEMONIC_PREFETCHNTA: case ZYDIS_MNEMONIC_PREFETCHW: case ZYDIS_MNEMONIC_PREFETCHWT1: case ZYDIS_MNEMONIC_PREFETCH:
	case ZYDIS_MNEMONIC_ENDBR64: case ZYDIS_MNEMONIC_ENDBR32:
		return true;
	default:
		return false;
	}
}

/* State that translated code does not keep where the host's instruction looks. */
bool is_state(const ZydisDecodedInstruction *zi)
{
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_XLAT: case ZYDIS_MNEMONIC_LDMXCSR:
	case ZYDIS_MNEMONIC_STMXCSR: case ZYDIS_MNEMONIC_VLDMXCSR: case ZYDIS_MNEMONIC_VSTMXCSR: case ZYDIS_MNEMONIC_EMMS:
	case ZYDIS_MNEMONIC_FEMMS: case ZYDIS_MNEMONIC_FWAIT:
		return true;
	default:
		return false;
	}
}

void use_unit(struct translation *t, int unit)
{
	if (unit < 0)
		return;
	t->units |= unit > FC_MMX;
	t->classes |= (u8)(1u << unit);
	if (unit == FC_AVX512)
		t->b->ctx->zmm_high = true;
}

static enum kind classify(struct translation *t, struct tins *i)
{
	struct cpu *c = t->b->cpu;
	const struct op *o = i->op;
	if (!cpu_offers_isa(c, i->zi.meta.isa_set) || ((i->zi.attributes & ZYDIS_ATTRIB_HAS_LOCK) && !(o->flags & OF_LOCK)))
		return interp_kind(i);
	if (t->page->mode != CODE64)
		return legacy_kind(t, i);
	if (o->op_class == OC_BRANCH)
		return branch_kind(t, i);
	if (is_hint(&i->zi))
		return K_NOP;
	if (system_possible(t, i))
		return K_SYSTEM;
	if (system_gate(t, i))
		return system_gate(t, i) <= GATE_IRET ? K_GATE_LAST : K_GATE;
	if (string_possible(t, i))
		return K_STRING;
	if (o->op_class == OC_CALL || (o->flags & (OF_ENDS | OF_STRING | OF_PRIV)))
		return interp_kind(i);
	switch (i->zi.mnemonic) {
	case ZYDIS_MNEMONIC_LEA: return K_LEA;
	case ZYDIS_MNEMONIC_PUSH: case ZYDIS_MNEMONIC_POP: case ZYDIS_MNEMONIC_LEAVE: return stack_kind(t, i);
	case ZYDIS_MNEMONIC_CLD: case ZYDIS_MNEMONIC_STD: case ZYDIS_MNEMONIC_XLAT: case ZYDIS_MNEMONIC_FEMMS:
	case ZYDIS_MNEMONIC_FNINIT: case ZYDIS_MNEMONIC_FNCLEX: /* they take FERR# back */
		return K_INTERP;
	case ZYDIS_MNEMONIC_LDMXCSR: case ZYDIS_MNEMONIC_VLDMXCSR: /* MXCSR.MM is to fault where the guest has none */
		if (host_has_misalignsse() && !cpu_has(c, FEAT_MISALIGNSSE))
			return K_INTERP;
		break;
	default: break;
	}
	int unit = unit_of(i);
	if (unit == -2 || is_state(&i->zi))
		return K_INTERP;
	const ZydisDecodedOperand *m = memory_of(i);
	if (m && !plain_memory(t, i))
		return bits_possible(t, i) ? K_BITS : K_INTERP;
	if (!m && i->zi.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && (i->zi.opcode & 0xfc) == 0xa0)
		return K_INTERP;
	if (unit >= FC_SSE && c->nofpu[unit] == V_UD)
		return K_INTERP;
	if (unit >= 0)
		i->fop = x87_fop(i);
	use_unit(t, unit);
	return m ? K_MEM : K_COPY;
}

/* ---- host code ---------------------------------------------------------------------------------- */

struct data { u8 n; struct { u8 guest; bool read, write; } r[2]; bool too_many; };

/* Homeless registers among the explicit register operands. */
static void data_registers(const struct tins *i, struct data *d)
{
	*d = (struct data){ 0 };
	for (unsigned k = 0; k < i->zi.operand_count; k++) {
		const ZydisDecodedOperand *o = &i->zo[k];
		if (!gpr_operand(o) || is_high8(o->reg.value) || !is_homeless(gpr_of(o->reg.value)))
			continue;
		u8 g = (u8)gpr_of(o->reg.value);
		bool write = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
		/* BSF and BSR leave it where there is no bit. */
		bool keeps = i->zi.mnemonic == ZYDIS_MNEMONIC_BSF || i->zi.mnemonic == ZYDIS_MNEMONIC_BSR;
		bool read = keeps || (o->actions & (ZYDIS_OPERAND_ACTION_MASK_READ | ZYDIS_OPERAND_ACTION_CONDWRITE)) || o->size < 32;
		unsigned n = 0;
		while (n < d->n && d->r[n].guest != g)
			n++;
		if (n == 2) {
			d->too_many = true;
			return;
		}
		if (n == d->n)
			d->n++;
		d->r[n].guest = g;
		d->r[n].read |= read;
		d->r[n].write |= write;
	}
}

/* Puts host registers for guest ones into the fields of x. */
static void rename_fields(const struct tins *i, struct enc *x, const struct data *d, const u8 *stand_in)
{
	for (unsigned k = 0; k < i->zi.operand_count; k++) {
		const ZydisDecodedOperand *o = &i->zo[k];
		if (!gpr_operand(o) || is_high8(o->reg.value) || !is_explicit(o))
			continue;
		unsigned g = gpr_of(o->reg.value), h = host_of(g);
		for (unsigned n = 0; n < d->n; n++)
			if (d->r[n].guest == g)
				h = stand_in[n];
		if (o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG)
			x->reg = (u8)h;
		else if (o->encoding == ZYDIS_OPERAND_ENCODING_NDSNDD)
			x->vvvv = (u8)h;
		else
			x->rm = (u8)h;
	}
}

static bool put_insn(struct translation *t, const struct tins *i, const struct enc *x)
{
	u8 code[ENC_MAX + 8];
	unsigned n = enc_put(&i->zi, i->zo, i->bytes, x, code);
	ebytes(&t->e, code, n);
	return n != 0;
}

/* Whether the instruction does the same to a register and to memory of that size: no other address
 * by the other operand, no lock, no rest of the register to clear. */
static bool takes_memory(const struct tins *i)
{
	switch (i->zi.mnemonic) {
	case ZYDIS_MNEMONIC_ADD: case ZYDIS_MNEMONIC_ADC: case ZYDIS_MNEMONIC_SUB: case ZYDIS_MNEMONIC_SBB: case ZYDIS_MNEMONIC_AND:
	case ZYDIS_MNEMONIC_OR: case ZYDIS_MNEMONIC_XOR: case ZYDIS_MNEMONIC_CMP: case ZYDIS_MNEMONIC_TEST: case ZYDIS_MNEMONIC_MOV:
	case ZYDIS_MNEMONIC_MOVZX: case ZYDIS_MNEMONIC_MOVSX: case ZYDIS_MNEMONIC_MOVSXD:
	case ZYDIS_MNEMONIC_IMUL: case ZYDIS_MNEMONIC_MUL: case ZYDIS_MNEMONIC_DIV: case ZYDIS_MNEMONIC_IDIV:
	case ZYDIS_MNEMONIC_NOT: case ZYDIS_MNEMONIC_NEG: case ZYDIS_MNEMONIC_INC: case ZYDIS_MNEMONIC_DEC:
	case ZYDIS_MNEMONIC_SHL: case ZYDIS_MNEMONIC_SHR: case ZYDIS_MNEMONIC_SAR: case ZYDIS_MNEMONIC_ROL: case ZYDIS_MNEMONIC_ROR:
	case ZYDIS_MNEMONIC_POPCNT: case ZYDIS_MNEMONIC_LZCNT: case ZYDIS_MNEMONIC_TZCNT:
	case ZYDIS_MNEMONIC_CVTSI2SD: case ZYDIS_MNEMONIC_CVTSI2SS:
		return true;
	default:
		return i->zi.meta.category == ZYDIS_CATEGORY_CMOV || i->zi.meta.category == ZYDIS_CATEGORY_SETCC;
	}
}

/* The same instruction with its operands the other way round in ModRM, where there is one. False: none. */
static bool turned_round(ZydisDecodedInstruction *zi, struct enc *x)
{
	u8 op = zi->opcode;
	if (zi->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || zi->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT)
		return false;
	if ((op < 0x40 && (op & 7) < 4) || (op & 0xfc) == 0x88)
		zi->opcode ^= 2;
	else if ((op & 0xfe) != 0x84) /* TEST */
		return false;
	u8 r = x->reg;
	x->reg = x->rm;
	x->rm = r;
	return true;
}

/* With its only homeless register where that is at home, in memory. False: it has no such form. */
static bool at_its_home(struct translation *t, const struct tins *i, struct enc *x, const struct data *d)
{
	const ZydisDecodedOperand *home = NULL;
	if (d->n != 1 || t->page->mode != CODE64 || !takes_memory(i) || has_high8(i))
		return false;
	for (unsigned k = 0; k < i->zi.operand_count; k++) {
		const ZydisDecodedOperand *o = &i->zo[k];
		if (!gpr_operand(o) || gpr_of(o->reg.value) != d->r[0].guest)
			continue;
		if (home)
			return false;
		home = o;
	}
	if (home->size == 32 && (home->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
		return false; /* clears the upper half */
	if (home->size < 32 && (i->zi.mnemonic == ZYDIS_MNEMONIC_MOV || i->zi.mnemonic == ZYDIS_MNEMONIC_MOVSXD))
		return false;
	ZydisDecodedInstruction zi = i->zi;
	struct enc y = *x;
	rename_fields(i, &y, d, (u8[]){ T, T });
	if (home->encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM && (home->encoding != ZYDIS_OPERAND_ENCODING_MODRM_REG || !turned_round(&zi, &y)))
		return false;
	struct marg m = home_of(host_of(d->r[0].guest));
	y.mem = true;
	y.seg = 0x65;
	y.base = y.index = ENC_NONE;
	y.disp = m.disp;
	u8 code[ENC_MAX + 8];
	unsigned n = enc_put(&zi, i->zo, i->bytes, &y, code);
	ebytes(&t->e, code, n);
	return n != 0;
}

/* The instruction with stand-ins for homeless registers, around it their loads and stores. busy: T
 * is in use for the address. */
static bool with_data(struct translation *t, unsigned k, struct enc *x, bool busy)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	struct data d;
	data_registers(i, &d);
	if (!x->mem && at_its_home(t, i, x, &d))
		return true;
	u8 stand_in[2] = { T, T };
	unsigned spare = d.n ? unused_register(i) : 0;
	bool victim = false;
	for (unsigned n = 0; n < d.n; n++) {
		bool loads_only = busy && d.n == 1 && !d.r[0].read;
		if (n == 0 && (!busy || loads_only))
			continue;
		stand_in[n] = (u8)spare;
		victim = true;
	}
	if (busy && d.n == 2) /* one borrowed register only */
		return false;
	if (d.n || i->fop)
		mark_commit(t, k);
	if (victim) {
		e_ctx_store(e, spare, M_CTX(save_v));
		mark_victim(t, k, spare);
	}
	for (unsigned n = 0; n < d.n; n++)
		if (d.r[n].read)
			e_ctx_load(e, stand_in[n], home_of(host_of(d.r[n].guest)));
	rename_fields(i, x, &d, stand_in);
	if (!put_insn(t, i, x))
		return false;
	for (unsigned n = 0; n < d.n; n++)
		if (d.r[n].write)
			e_ctx_store(e, stand_in[n], home_of(host_of(d.r[n].guest)));
	if (victim)
		e_ctx_load(e, spare, M_CTX(save_v));
	return true;
}

/* Whether the translation overwrites status flags on its way. */
static bool needs_flags_away(const struct translation *t, unsigned k)
{
	const struct tins *i = &t->ins[k];
	bool member = i->group == GROUP_MEMBER;
	if (member && (i->kind == K_MEM || i->kind == K_PUSH || i->kind == K_POP || i->kind == K_LEAVE))
		return false;
	if (member && i->kind == K_CALL)
		return branch_far(t, next_lin_of(t, k) + i->zo[0].imm.value.u);
	switch ((enum kind)i->kind) {
	case K_MEM: case K_BITS: case K_PUSH: case K_POP: case K_LEAVE: case K_SYSTEM: case K_STRING: case K_CALL: case K_CALL_IND: case K_JMP_IND: case K_RET:
		return true;
	case K_JMP: return branch_far(t, branch_target(t, k));
	default: return false;
	}
}

/* Moves status flags to where the instruction wants them. The instruction itself reads them, or
 * keeps some: in the host's, when it comes to its own host instruction. */
static void prelude(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	struct tins *i = &t->ins[k];
	struct insn_map *m = &t->map[k];
	m->saved = t->saved;
	if (needs_flags_away(t, k)) {
		bool far = i->kind == K_CALL_IND || i->kind == K_JMP_IND || i->kind == K_RET || is_pushf(&i->zi);
		if (!t->saved && (i->live || far)) {
			flags_save(e, t_before(t, k));
			t->saved = true;
		}
	} else if (t->saved && ((i->live && i->wants) || i->kind == K_JMP || i->kind == K_JCC || i->kind == K_LOOP)) {
		flags_restore(e, t_before(t, k));
		t->saved = false;
	}
	m->saved_then = m->saved_fault = t->saved;
	m->prelude = (u8)(e->p - (t->start + m->host));
}

/* Before the instruction's own host instruction, where the way to it has overwritten the flags. */
void flags_for_insn(struct translation *t, unsigned k)
{
	if (t->saved && t->ins[k].wants) {
		mark_commit(t, k);
		flags_restore(&t->e, T_HELD);
		t->saved = false;
		t->map[k].saved_fault = false;
	}
}

static bool emit_copy(struct translation *t, unsigned k)
{
	struct enc x;
	const struct tins *i = &t->ins[k];
	if (i->varies) {
		selfcheck_operand(t, k);
		return true;
	}
	if (i->zi.mnemonic == ZYDIS_MNEMONIC_PAUSE || !(i->zi.attributes & ZYDIS_ATTRIB_HAS_MODRM)) {
		/* Named in the opcode, or nothing at all. */
		u32 used = registers_used(i);
		if (!(used & (1u << R_SP | 1u << R_11 | 1u << R_15))) {
			ebytes(&t->e, i->bytes, i->zi.length);
			return true;
		}
	}
	enc_of(&i->zi, i->zo, &x);
	return with_data(t, k, &x, false);
}

bool has_high8(const struct tins *i)
{
	for (unsigned k = 0; k < i->zi.operand_count_visible; k++)
		if (i->zo[k].type == ZYDIS_OPERAND_TYPE_REGISTER && is_high8(i->zo[k].reg.value))
			return true;
	return false;
}

/* AH..BH beside memory: no register of the address may need REX. */
bool with_high8(struct translation *t, unsigned k, struct enc *x)
{
	struct emit *e = &t->e;
	unsigned spare = unused_register(&t->ins[k]);
	if (spare >= R8)
		return false;
	e_lea(e, T, (struct marg){ x->base, x->index, x->scale, x->disp });
	mark_commit(t, k);
	e_ctx_store(e, spare, M_CTX(save_v));
	mark_victim(t, k, spare);
	e_mov(e, spare, T);
	x->base = (u8)spare;
	x->index = ENC_NONE;
	x->disp = 0;
	if (!put_insn(t, &t->ins[k], x))
		return false;
	e_ctx_load(e, spare, M_CTX(save_v));
	return true;
}

static bool emit_memory(struct translation *t, unsigned k)
{
	const struct tins *i = &t->ins[k];
	const ZydisDecodedOperand *m = memory_of(i);
	struct enc x;
	struct ea a;
	struct data d;
	data_registers(i, &d);
	if (d.n > 1)
		return false;
	enc_of(&i->zi, i->zo, &x);
	unsigned size = m->size / 8u;
	bool store = m->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
	enum crossing how = size == 1 || checks_alignment(&i->zi, size) ? NO_CROSSING : MAY_CROSS;
	operand_ea(t, i, m, &a);
	mem_operand(t, k, &a, size, store, how, unused_register(i), &x);
	flags_for_insn(t, k);
	return has_high8(i) ? with_high8(t, k, &x) : with_data(t, k, &x, true);
}

static bool emit_lea(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	const ZydisDecodedOperand *o = &i->zo[1];
	unsigned to = host_of(gpr_of(i->zo[0].reg.value)), size = i->zi.operand_width, r = at_home(to) ? T : to;
	u32 op = (size == 64 ? E_W : 0) | (i->zi.address_width == 32 ? E_A32 : 0) | 0x8d;
	if (o->mem.base == ZYDIS_REGISTER_RIP && size != 16) {
		u64 lin = next_lin_of(t, k) + (u64)o->mem.disp.value;
		e_const(e, r, size == 64 ? lin : (u32)lin);
	} else if (size == 16 || o->mem.base == ZYDIS_REGISTER_RIP || o->mem.base == ZYDIS_REGISTER_EIP) {
		return false;
	} else {
		bool has_base = o->mem.base != ZYDIS_REGISTER_NONE, has_index = o->mem.index != ZYDIS_REGISTER_NONE;
		unsigned base = has_base ? host_of(gpr_of(o->mem.base)) : ENC_NONE, index = has_index ? host_of(gpr_of(o->mem.index)) : ENC_NONE;
		unsigned spare = RBX;
		bool both = has_base && has_index && at_home(base) && at_home(index);
		if (both) {
			spare = unused_register(i);
			mark_commit(t, k);
			e_ctx_store(e, spare, M_CTX(save_v));
			e_ctx_load(e, spare, home_of(index));
			index = spare;
		}
		if (has_base && at_home(base)) {
			e_ctx_load(e, T, home_of(base));
			base = T;
		}
		if (has_index && at_home(index)) {
			e_ctx_load(e, T, home_of(index));
			index = T;
		}
		unsigned scale = o->mem.scale == 8 ? 3 : o->mem.scale == 4 ? 2 : o->mem.scale == 2 ? 1 : 0;
		e_mem(e, op, r, (struct marg){ (u8)base, (u8)index, (u8)scale, (i32)o->mem.disp.value });
		if (both)
			e_ctx_load(e, spare, M_CTX(save_v));
	}
	if (at_home(to))
		e_ctx_store(e, T, home_of(to));
	return true;
}

/* ---- the stack ------------------------------------------------------------------------------------ */

/* The value is in ctx.target. */
void push_target(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	struct enc x = { 0 };
	mem_operand(t, k, &(struct ea){ .base = HOST_SP, .index = ENC_NONE, .disp = -8 }, 8, true, MAY_CROSS, RBX, &x);
	mark_commit(t, k);
	e_ctx_store(e, RBX, M_CTX(save_v));
	mark_victim(t, k, RBX);
	e_ctx_load(e, RBX, M_CTX(target));
	e_store(e, RBX, (struct marg){ x.base, x.index, x.scale, x.disp });
	e_ctx_load(e, RBX, M_CTX(save_v));
	e_lea(e, HOST_SP, M_BASE(HOST_SP, -8));
}

static bool emit_push_memory(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	struct ea a;
	struct enc x = { 0 };
	operand_ea(t, i, &i->zo[0], &a);
	mem_operand(t, k, &a, 8, false, MAY_CROSS, unused_register(i), &x);
	e_load(e, T, (struct marg){ x.base, x.index, x.scale, x.disp });
	e_ctx_store(e, T, M_CTX(target));
	push_target(t, k);
	return true;
}

static bool emit_push(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	if (i->zo[0].type == ZYDIS_OPERAND_TYPE_MEMORY)
		return emit_push_memory(t, k);
	struct enc x = { 0 };
	mem_operand(t, k, &(struct ea){ .base = HOST_SP, .index = ENC_NONE, .disp = -8 }, 8, true, MAY_CROSS, RBX, &x);
	struct marg m = { x.base, x.index, x.scale, x.disp };
	if (gpr_operand(&i->zo[0])) {
		unsigned r = host_of(gpr_of(i->zo[0].reg.value));
		if (at_home(r)) {
			mark_commit(t, k);
			e_ctx_store(e, RBX, M_CTX(save_v));
			mark_victim(t, k, RBX);
			e_ctx_load(e, RBX, home_of(r));
			e_store(e, RBX, m);
			e_ctx_load(e, RBX, M_CTX(save_v));
		} else {
			e_store(e, r, m);
		}
	} else {
		e_mem(e, E_W | 0xc7, 0, m);
		e32(e, (u32)i->zo[0].imm.value.u);
	}
	e_lea(e, HOST_SP, M_BASE(HOST_SP, -8));
	return true;
}

static bool emit_pop(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	unsigned r = host_of(gpr_of(t->ins[k].zo[0].reg.value));
	struct enc x = { 0 };
	mem_operand(t, k, &(struct ea){ .base = HOST_SP, .index = ENC_NONE }, 8, false, MAY_CROSS, RBX, &x);
	struct marg m = { x.base, x.index, x.scale, x.disp };
	unsigned to = at_home(r) ? T : r;
	mark_commit(t, k);
	e_load(e, to, m);
	if (at_home(r))
		e_ctx_store(e, T, home_of(r));
	if (r != HOST_SP)
		e_lea(e, HOST_SP, M_BASE(HOST_SP, 8));
	return true;
}

static bool emit_leave(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	struct enc x = { 0 };
	mem_operand(t, k, &(struct ea){ .base = RBP, .index = ENC_NONE }, 8, false, MAY_CROSS, RBX, &x);
	e_load(e, T, (struct marg){ x.base, x.index, x.scale, x.disp });
	mark_commit(t, k);
	e_lea(e, HOST_SP, M_BASE(RBP, 8));
	e_mov(e, RBP, T);
	return true;
}

static bool emit_insn(struct translation *t, unsigned k)
{
	if (t->page->mode != CODE64)
		return legacy_emit(t, k);
	switch (t->ins[k].kind) {
	case K_COPY: return emit_copy(t, k);
	case K_MEM: case K_BITS: return emit_memory(t, k);
	case K_LEA: return emit_lea(t, k);
	case K_PUSH: return emit_push(t, k);
	case K_POP: return emit_pop(t, k);
	case K_LEAVE: return emit_leave(t, k);
	case K_SYSTEM: return system_emit(t, k);
	case K_STRING: string_emit(t, k); return true;
	case K_NOP: return true;
	case K_INTERP: case K_INTERP_LAST: case K_GATE: case K_GATE_LAST: return false;
	default: branch_emit(t, k); return true;
	}
}

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
