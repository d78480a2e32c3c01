/* The one door to Zydis: machine modes, decoder options, and what its errors mean to a
 * processor. Stateless, any thread. */
#include "isa/isa.h"

static const struct { ZydisMachineMode mode; ZydisStackWidth stack; } modes[] = {
	[CODE16] = { ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16 },
	[CODE32] = { ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32 },
	[CODE64] = { ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64 },
};

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
	ZydisDecoderEnableMode(&d, ZYDIS_DECODER_MODE_AMD_BRANCHES, (quirks & ISA_AMD_BRANCHES) != 0);
	ZyanStatus s = ZydisDecoderDecodeFull(&d, bytes, MIN(len, 15u), zi, zo);
	if (ZYAN_SUCCESS(s))
		return ISA_OK;
	if (s == ZYDIS_STATUS_NO_MORE_DATA)
		return len >= 15 ? ISA_TOO_LONG : ISA_SHORT;
	return s == ZYDIS_STATUS_INSTRUCTION_TOO_LONG ? ISA_TOO_LONG : ISA_INVALID;
}
