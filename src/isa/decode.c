/* The one door to Zydis: machine modes, decoder options, and what its errors mean to a
 * processor. Stateless, any thread. */
#include <string.h>

#include "isa/isa.h"

static const struct { ZydisMachineMode mode; ZydisStackWidth stack; } modes[] = {
	[CODE16] = { ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16 },
	[CODE32] = { ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32 },
	[CODE64] = { ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64 },
};

static bool has_modrm(const ZydisDecodedInstruction *zi) { return zi->attributes & ZYDIS_ATTRIB_HAS_MODRM; }

/* Where Zydis 4.0 is wrong: with 32-bit addresses in 64-bit mode it takes SIB base 5 without
 * displacement size for r13d when REX.B is set; REX.B does not count there. */
static void amend_base(const ZydisDecodedInstruction *zi, ZydisDecodedOperand *zo)
{
	if (zi->address_width != 32 || !has_modrm(zi) || zi->raw.modrm.mod != 0 || zi->raw.modrm.rm != 4 ||
	    zi->raw.sib.base != 5)
		return;
	for (unsigned k = 0; k < zi->operand_count; k++) {
		if (zo[k].type != ZYDIS_OPERAND_TYPE_MEMORY || zo[k].mem.base != ZYDIS_REGISTER_R13D)
			continue;
		zo[k].mem.base = ZYDIS_REGISTER_NONE;
		zo[k].mem.disp.has_displacement = true;
		zo[k].mem.disp.value = zi->raw.disp.value;
	}
}

/* AMD's processors: in 64-bit mode 66h makes all near branches 16-bit ones (APM vol. 3, JMP,
 * CALL, RET). 0F 0D has no register form; VPEXTRQ and VPINSRQ outside 64-bit mode are not
 * VPEXTRD and VPINSRD. */
static bool amend_amd(enum code_mode mode, ZydisDecodedInstruction *zi, ZydisDecodedOperand *zo)
{
	bool wide = zi->attributes & ZYDIS_ATTRIB_HAS_REX && zi->raw.rex.W;
	if (zi->opcode_map == ZYDIS_OPCODE_MAP_0F && zi->opcode == 0x0d && zi->raw.modrm.mod == 3)
		return false;
	if (mode != CODE64)
		return (zi->mnemonic != ZYDIS_MNEMONIC_VPEXTRD && zi->mnemonic != ZYDIS_MNEMONIC_VPINSRD) ||
		       zi->encoding != ZYDIS_INSTRUCTION_ENCODING_VEX || !zi->raw.vex.W;
	if ((zi->meta.branch_type == ZYDIS_BRANCH_TYPE_NEAR || zi->meta.branch_type == ZYDIS_BRANCH_TYPE_SHORT) && !wide &&
	    zi->attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE) {
		zi->operand_width = 16;
		if (zo[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
			zo[0].size = 16;
	}
	return true;
}

/* F3 90 with REX.B is no PAUSE but XCHG with r8; F3 then means nothing. */
static bool is_xchg_r8(const ZydisDecodedInstruction *zi)
{
	return zi->mnemonic == ZYDIS_MNEMONIC_PAUSE && zi->attributes & ZYDIS_ATTRIB_HAS_REX && zi->raw.rex.B;
}

/* Decodes as if every prefix `gone` were DS, which says nothing new: so the length stays. */
static bool decode_without(const ZydisDecoder *d, const u8 *bytes, unsigned len, u8 gone, ZydisDecodedInstruction *zi,
			   ZydisDecodedOperand *zo)
{
	u8 b[15];
	memcpy(b, bytes, len);
	for (unsigned k = 0; k < len && (b[k] == 0x66 || b[k] == 0x67 || b[k] >= 0xf0 || (b[k] & 0xe7) == 0x26 ||
					 b[k] == 0x64 || b[k] == 0x65 || b[k] == gone); k++)
		b[k] = b[k] == gone ? 0x3e : b[k];
	return ZYAN_SUCCESS(ZydisDecoderDecodeFull(d, b, len, zi, zo));
}

/* AMD: MOV with CR0 under LOCK is MOV with CR8, in every mode (APM vol. 3, MOV CRn). */
static bool decode_lock_cr8(const ZydisDecoder *d, const u8 *bytes, unsigned len, ZydisDecodedInstruction *zi,
			    ZydisDecodedOperand *zo)
{
	if (!decode_without(d, bytes, len, 0xf0, zi, zo) || zi->mnemonic != ZYDIS_MNEMONIC_MOV)
		return false;
	for (unsigned k = 0; k < 2; k++) {
		if (zo[k].type == ZYDIS_OPERAND_TYPE_REGISTER && zo[k].reg.value == ZYDIS_REGISTER_CR0) {
			zo[k].reg.value = ZYDIS_REGISTER_CR8;
			return true;
		}
	}
	return false;
}

enum isa_status isa_decode(enum code_mode mode, unsigned quirks, const u8 *bytes, unsigned len,
			   ZydisDecodedInstruction *zi, ZydisDecodedOperand zo[ZYDIS_MAX_OPERAND_COUNT])
{
	ZydisDecoder d;
	ZydisDecoderInit(&d, modes[mode].mode, modes[mode].stack);
	/* Without the feature these are NOPs or the older instruction under the prefix. */
	ZydisDecoderEnableMode(&d, ZYDIS_DECODER_MODE_MPX, false);
	ZydisDecoderEnableMode(&d, ZYDIS_DECODER_MODE_CET, false);
	ZydisDecoderEnableMode(&d, ZYDIS_DECODER_MODE_CLDEMOTE, false);
	ZydisDecoderEnableMode(&d, ZYDIS_DECODER_MODE_WBNOINVD, !(quirks & ISA_NO_WBNOINVD));
	ZydisDecoderEnableMode(&d, ZYDIS_DECODER_MODE_TZCNT, !(quirks & ISA_NO_TZCNT));
	ZydisDecoderEnableMode(&d, ZYDIS_DECODER_MODE_LZCNT, !(quirks & ISA_NO_LZCNT));
	ZydisDecoderEnableMode(&d, ZYDIS_DECODER_MODE_AMD_BRANCHES, (quirks & ISA_AMD) != 0);
	ZyanStatus s = ZydisDecoderDecodeFull(&d, bytes, MIN(len, 15u), zi, zo);
	if (ZYAN_SUCCESS(s)) {
		if (is_xchg_r8(zi))
			decode_without(&d, bytes, zi->length, 0xf3, zi, zo);
		amend_base(zi, zo);
		return !(quirks & ISA_AMD) || amend_amd(mode, zi, zo) ? ISA_OK : ISA_INVALID;
	}
	if (s == ZYDIS_STATUS_ILLEGAL_LOCK && (quirks & ISA_LOCK_CR8) && decode_lock_cr8(&d, bytes, MIN(len, 15u), zi, zo))
		return ISA_OK;
	if (s == ZYDIS_STATUS_NO_MORE_DATA)
		return len >= 15 ? ISA_TOO_LONG : ISA_SHORT;
	return s == ZYDIS_STATUS_INSTRUCTION_TOO_LONG ? ISA_TOO_LONG : ISA_INVALID;
}
