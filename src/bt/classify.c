/* What an instruction is: its operands in the translator's terms, its unit, and the way that it is translated. What
 * has none is left to the interpreter: always a correct answer. SDM vol. 2. */
#include "bt/host.h"
#include "bt/tr.h"

static bool is_gpr_class(ZydisRegister r)
{
	ZydisRegisterClass k = ZydisRegisterGetClass(r);
	return k >= ZYDIS_REGCLASS_GPR8 && k <= ZYDIS_REGCLASS_GPR64;
}
bool is_high8(ZydisRegister r) { return r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH; }
unsigned gpr_of(ZydisRegister r)
{
	int id = ZydisRegisterGetId(r);
	if (ZydisRegisterGetClass(r) == ZYDIS_REGCLASS_GPR8 && id >= 4)
		return (unsigned)id - 4;
	return (unsigned)id;
}
bool gpr_operand(const ZydisDecodedOperand *o) { return o->type == ZYDIS_OPERAND_TYPE_REGISTER && is_gpr_class(o->reg.value); }
bool is_explicit(const ZydisDecodedOperand *o)
{
	return o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG || o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM ||
	       o->encoding == ZYDIS_OPERAND_ENCODING_NDSNDD || o->encoding == ZYDIS_OPERAND_ENCODING_OPCODE;
}

/* General registers that the instruction names or uses, addresses included. */
u32 registers_used(const struct tins *i)
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
	if (direct && t->page->mode == CODE64 && i->zi.mnemonic != ZYDIS_MNEMONIC_RET && !cpu_canonical(t->b->cpu, t->lin + i->off + i->zi.length + o->imm.value.u))
		return K_INTERP_LAST; /* the fault is the branch's */
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

/* Floating-point state whose instructions do more than the host's: they take FERR# back; MXCSR.MM is to fault
 * where the guest has none. */
bool is_left(const struct cpu *c, const ZydisDecodedInstruction *zi)
{
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_FNINIT: case ZYDIS_MNEMONIC_FNCLEX: case ZYDIS_MNEMONIC_FEMMS:
		return true;
	case ZYDIS_MNEMONIC_LDMXCSR: case ZYDIS_MNEMONIC_VLDMXCSR:
		return host_has_misalignsse() && !cpu_has(c, FEAT_MISALIGNSSE);
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

enum kind classify(struct translation *t, struct tins *i)
{
	struct cpu *c = t->b->cpu;
	const struct op *o = i->op;
	if (!cpu_offers_isa(c, i->zi.meta.isa_set) || ((i->zi.attributes & ZYDIS_ATTRIB_HAS_LOCK) && !(o->flags & OF_LOCK)))
		return interp_kind(i);
	if (unlikely(system_intercepted(t, i)))
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
	case ZYDIS_MNEMONIC_CLD: case ZYDIS_MNEMONIC_STD: case ZYDIS_MNEMONIC_XLAT:
		return K_INTERP;
	default: break;
	}
	int unit = unit_of(i);
	if (unit == -2 || is_left(c, &i->zi))
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
