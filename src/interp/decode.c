/* From Zydis's operands to struct insn: form, handler, registers, address parts. */
#include "interp/op_api.h"

/* Register operands: 8-bit ones as byte offsets in cpu->regs. */
static u8 reg_code(ZydisRegister r)
{
	int id = ZydisRegisterGetId(r);
	if (ZydisRegisterGetClass(r) == ZYDIS_REGCLASS_GPR8)
		return (u8)(id < 4 ? id * 8 : id < 8 ? (id - 4) * 8 + 1 : (id - 4) * 8);
	return (u8)(id < 0 ? 0 : id);
}
static u8 base_code(ZydisRegister r)
{
	if (r == ZYDIS_REGISTER_NONE)
		return R_ZERO;
	if (r == ZYDIS_REGISTER_RIP || r == ZYDIS_REGISTER_EIP)
		return R_BLOCK;
	return (u8)ZydisRegisterGetId(r);
}
static u8 seg_code(ZydisRegister r)
{
	return r >= ZYDIS_REGISTER_ES && r <= ZYDIS_REGISTER_GS ? (u8)(r - ZYDIS_REGISTER_ES) : S_DS;
}

static void memory_operand(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *o, struct insn *out)
{
	out->flags |= IF_MEM;
	out->seg = seg_code(o->mem.segment);
	out->base = base_code(o->mem.base);
	out->index = base_code(o->mem.index);
	out->scale = (u8)(o->mem.scale == 8 ? 3 : o->mem.scale == 4 ? 2 : o->mem.scale == 2 ? 1 : 0);
	out->disp = o->mem.disp.value;
	if (out->base == R_BLOCK)
		out->disp += zi->length;
	unsigned bytes = o->size / 8;
	out->msz = (u8)(bytes > 255 ? 0 : bytes);
}

/* The letters of FORM_*: R M I S C D J F. */
static char operand_kind(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *o)
{
	switch (o->type) {
	case ZYDIS_OPERAND_TYPE_MEMORY:
		return zi->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR ? 'F' : 'M';
	case ZYDIS_OPERAND_TYPE_IMMEDIATE:
		return o->imm.is_relative ? 'J' : 'I';
	case ZYDIS_OPERAND_TYPE_POINTER:
		return 'F';
	default:
		switch (ZydisRegisterGetClass(o->reg.value)) {
		case ZYDIS_REGCLASS_SEGMENT: return 'S';
		case ZYDIS_REGCLASS_CONTROL: return 'C';
		case ZYDIS_REGCLASS_DEBUG: return 'D';
		default: return 'R';
		}
	}
}

static const char form_letters[N_FORMS][4] = {
	[FORM_0] = "", [FORM_R] = "R", [FORM_M] = "M", [FORM_I] = "I", [FORM_J] = "J", [FORM_F] = "F",
	[FORM_S] = "S", [FORM_RR] = "RR", [FORM_RM] = "RM", [FORM_MR] = "MR", [FORM_RI] = "RI",
	[FORM_MI] = "MI", [FORM_RS] = "RS", [FORM_MS] = "MS", [FORM_SR] = "SR", [FORM_SM] = "SM",
	[FORM_RC] = "RC", [FORM_CR] = "CR", [FORM_RD] = "RD", [FORM_DR] = "DR", [FORM_IR] = "IR",
	[FORM_II] = "II", [FORM_RRI] = "RRI", [FORM_RMI] = "RMI", [FORM_RRR] = "RRR",
	[FORM_MRI] = "MRI", [FORM_MRR] = "MRR",
};

static enum op_form form_of(const char *letters)
{
	for (int f = FORM_0; f < N_FORMS; f++)
		if (!__builtin_strcmp(letters, form_letters[f]))
			return (enum op_form)f;
	return FORM_A;
}

static enum op_form form_of_insn(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo)
{
	char letters[8] = "";
	for (unsigned k = 0; k < MIN(zi->operand_count_visible, 4); k++)
		letters[k] = operand_kind(zi, &zo[k]);
	if (zi->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR && zi->mnemonic == ZYDIS_MNEMONIC_RET)
		return FORM_F;
	return form_of(letters);
}

static bool is_string(const ZydisDecodedInstruction *zi)
{
	return zi->meta.category == ZYDIS_CATEGORY_STRINGOP || zi->meta.category == ZYDIS_CATEGORY_IOSTRINGOP;
}

const struct op *op_of_insn(const struct op_index *x, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo)
{
	return op_find(x, zi->mnemonic, form_of_insn(zi, zo), is_string(zi));
}

/* Fills registers, immediates and memory. Register slots go r, rm, r3 in written order; with a
 * memory operand first, the register is r. */
static void operands(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo, struct insn *out)
{
	u8 *slots[3] = { &out->r, &out->rm, &out->r3 };
	unsigned n_regs = 0, n_imm = 0, n = MIN(zi->operand_count_visible, 4);
	for (unsigned k = 0; k < n; k++) {
		const ZydisDecodedOperand *o = &zo[k];
		switch (o->type) {
		case ZYDIS_OPERAND_TYPE_MEMORY:
			memory_operand(zi, o, out);
			break;
		case ZYDIS_OPERAND_TYPE_IMMEDIATE:
			if (n_imm++)
				out->imm2 = (u32)o->imm.value.u;
			else
				out->imm = o->imm.value.u;
			if (o->imm.is_relative)
				out->imm += zi->length;
			break;
		case ZYDIS_OPERAND_TYPE_POINTER:
			out->imm = o->ptr.offset;
			out->imm2 = o->ptr.segment;
			break;
		default:
			if (n_regs < 3)
				*slots[n_regs++] = operand_kind(zi, o) == 'S' ? seg_code(o->reg.value) : reg_code(o->reg.value);
		}
	}
}

static bool uses_stack(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo)
{
	for (unsigned k = zi->operand_count_visible; k < zi->operand_count; k++)
		if (zo[k].type == ZYDIS_OPERAND_TYPE_MEMORY && zo[k].mem.segment == ZYDIS_REGISTER_SS)
			return true;
	return zi->mnemonic == ZYDIS_MNEMONIC_ENTER || zi->mnemonic == ZYDIS_MNEMONIC_LEAVE;
}

/* String operations and others whose memory operand is hidden: only its segment matters. */
static void hidden_segment(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo, struct insn *out)
{
	for (unsigned k = 0; k < zi->operand_count; k++) {
		if (zo[k].type != ZYDIS_OPERAND_TYPE_MEMORY)
			continue;
		ZydisRegister b = zo[k].mem.base;
		if (b != ZYDIS_REGISTER_DI && b != ZYDIS_REGISTER_EDI && b != ZYDIS_REGISTER_RDI) {
			out->seg = seg_code(zo[k].mem.segment);
			return;
		}
	}
	/* Zydis shows no operand (CLZERO): the last of the prefixes; in 64-bit mode only FS and GS. */
	static const struct { u8 byte, seg; } prefix[] = {
		{ 0x26, S_ES }, { 0x2e, S_CS }, { 0x36, S_SS }, { 0x3e, S_DS }, { 0x64, S_FS }, { 0x65, S_GS },
	};
	bool flat = zi->machine_mode == ZYDIS_MACHINE_MODE_LONG_64;
	for (unsigned n = 0; n < zi->raw.prefix_count; n++)
		for (unsigned k = flat ? 4 : 0; k < ARRAY_LEN(prefix); k++)
			if (zi->raw.prefixes[n].value == prefix[k].byte)
				out->seg = prefix[k].seg;
}

/* The last of F2 and F3 counts, also where the manual gives a string operation only one of them. */
static u8 rep_prefix(const ZydisDecodedInstruction *zi)
{
	u8 rep = 0;
	for (unsigned k = 0; k < zi->raw.prefix_count; k++) {
		if (zi->raw.prefixes[k].value == 0xf3)
			rep = IF_REP;
		else if (zi->raw.prefixes[k].value == 0xf2)
			rep = IF_REPNE;
	}
	return rep;
}

static unsigned size_index(unsigned bytes)
{
	return bytes >= 8 ? 3 : bytes == 4 ? 2 : bytes == 2 ? 1 : 0;
}

enum isa_status interp_decode(struct cpu *c, enum code_mode mode, const u8 *bytes, unsigned avail, struct insn *out)
{
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand zo[ZYDIS_MAX_OPERAND_COUNT];
	struct interp *in = interp_of(c);
	enum isa_status st = isa_decode(mode, in->quirks, bytes, avail, &zi, zo);
	if (st != ISA_OK)
		return st;
	__builtin_memset(out, 0, sizeof(*out));
	out->len = zi.length;
	out->base = out->index = R_ZERO;
	out->seg = S_DS;
	out->opsz = (u8)(zi.operand_width / 8);
	out->adsz = (u8)(zi.address_width / 8);
	bool string = is_string(&zi);
	operands(&zi, zo, out);
	const struct op *o = op_of_insn(&in->ops, &zi, zo);
	if (!o || !cpu_offers_isa(c, zi.meta.isa_set))
		return ISA_INVALID;
	out->op = (u16)(o - isa_ops);
	if (zi.attributes & ZYDIS_ATTRIB_HAS_LOCK) {
		if (!(o->flags & OF_LOCK))
			return ISA_INVALID;
		out->flags |= IF_LOCK;
	}
	if (uses_stack(&zi, zo))
		out->flags |= IF_STACK;
	if (o->flags & OF_NATIVE)
		return native_decode(c, &zi, zo, bytes, out) ? ISA_INVALID : ISA_OK;
	if (!(out->flags & IF_MEM))
		hidden_segment(&zi, zo, out);
	if (o->flags & OF_ENDS)
		out->flags |= IF_LAST;
	unsigned size = o->flags & OF_SRC ? zo[1].size / 8u : out->opsz;
	out->fn = o->fn[size_index(size)];
	if (string)
		out->flags |= rep_prefix(&zi);
	if ((o->flags & OF_STRING) && (out->flags & (IF_REP | IF_REPNE))) {
		out->fn = o->rep[size_index(out->opsz)];
		out->flags |= IF_LAST;
	}
	return out->fn ? ISA_OK : ISA_INVALID;
}
