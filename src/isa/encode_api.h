/* Encodes a decoded instruction anew, for 64-bit mode, with other registers and another memory
 * operand: what the interpreter's stubs and the translator are made with. Prefixes that say
 * nothing there (segments, address size) are dropped; LOCK, operand size and mandatory ones stay. Of
 * 16-bit code the operand-size prefix comes and goes as the operand's size asks.
 * AMD64 APM vol. 3 1.1 to 1.10 (legacy, VEX, XOP); SDM vol. 2 2.7 (EVEX). */
#ifndef RING3_ISA_ENCODE_H
#define RING3_ISA_ENCODE_H

#include "isa/isa.h"

#define ENC_NONE 0xff
#define ENC_MAX 18 /* bytes of an encoded instruction at most, REX and a long displacement added */

/* Numbers to encode: 0-15 general, 0-31 vector. */
struct enc {
	u8 reg;            /* ModRM.reg */
	u8 rm;             /* ModRM.rm where it is a register, or the register in the opcode */
	u8 vvvv;           /* VEX, XOP, EVEX */
	bool mem;          /* ModRM.rm is memory: */
	u8 base, index;    /* ENC_NONE: none (no base: a 32-bit absolute address) */
	u8 scale;          /* shift count */
	u8 seg;            /* prefix byte 64h or 65h, or 0 */
	bool a32;          /* 67h */
	bool wide;         /* always a 32-bit displacement */
	i32 disp;
};

/* What the instruction has: registers by number, memory as decoded (RIP-relative is the caller's). */
void enc_of(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo, struct enc *x);
/* Returns the length, 0 if it cannot be: AH..BH beside a register that needs REX. INC and DEC of one byte
 * and 82h get the form that 64-bit mode has; so does a MOV of an absolute address where the caller has
 * set x->mem. */
unsigned enc_put(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo, const u8 *bytes, const struct enc *x, u8 *out);

#endif
