/* Decoded instructions, remembered by their bytes (memo.c). Private to bt/. */
#ifndef RING3_BT_MEMO_H
#define RING3_BT_MEMO_H

#include "interp/op_api.h"

#define MEMO_OPERANDS 6u /* of an instruction that is remembered, at most */

/* What is looked at most is small and apart from the decoder's words. */
struct known {
	u64 key;             /* its first bytes, `fixed` of them */
	const struct op *op; /* NULL: in no table */
	u8 fixed, length, mode;
	u8 flags_read, flags_written; /* status flags, as bits of LIVE_* (translate.c) */
	bool branch;
	const struct decoded *decoded;
};
struct decoded { ZydisDecodedInstruction zi; ZydisDecodedOperand zo[]; };
struct memo;
struct memo *memo_new(void); /* NULL: no memory; given back by free() */
/* The instruction that begins at `bytes`, of which `have` are there (16 may be read). Displacement and
 * immediate are those of one like it. Good until the next call. NULL: isa_decode() says that there is none. */
const struct known *memo_find(struct memo *m, const struct interp *in, enum code_mode mode, const u8 *bytes, unsigned have);
/* The same with its own values, operand_count of zo. */
void memo_take(const struct known *n, const u8 *bytes, ZydisDecodedInstruction *zi, ZydisDecodedOperand *zo);
/* Shifts and rotations: their count says which flags change (translate.c). */
bool insn_is_shift(ZydisMnemonic m);
u8 insn_flags_written(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo); /* certainly */
u8 insn_flags_read(const ZydisDecodedInstruction *zi);

#endif
