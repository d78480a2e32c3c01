/* isa: instructions. Zydis finds the boundaries and operands; ops.def says, one line per
 * instruction form, which handler runs it and how a translator may treat it; struct insn is
 * the decoded result that engines keep in their blocks. */
#ifndef RING3_ISA_H
#define RING3_ISA_H

#include <Zydis/Zydis.h>

#include "base/base.h"

struct cpu;
struct insn;
typedef void op_fn(struct cpu *c, const struct insn *i);

enum reg {
	R_AX, R_CX, R_DX, R_BX, R_SP, R_BP, R_SI, R_DI,
	R_8, R_9, R_10, R_11, R_12, R_13, R_14, R_15,
	R_ZERO,  /* always 0: no base, no index */
	R_BLOCK, /* RIP of the current block's first instruction: the base of RIP-relative operands */
	N_REGS
};
enum sreg { S_ES, S_CS, S_SS, S_DS, S_FS, S_GS, S_NONE /* base 0 */, S_LDTR = S_NONE, S_TR, N_SREGS };

/* Translation class of DESIGN.md. */
enum op_class {
	OC_COPY,    /* no memory, no control flow: the host's own instruction */
	OC_REBASE,  /* as COPY once its memory operand is replaced */
	OC_CHECK,   /* guarded copy */
	OC_BRANCH,  /* near control flow */
	OC_CALL,    /* by the reference interpreter */
};

/* Operand form: what the table is keyed on, beside Zydis's mnemonic. R general register,
 * M memory, I immediate, S segment register, C control, D debug, F far or absolute pointer,
 * J relative branch. A: whatever Zydis decodes. E stands for both R and M. */
enum op_form {
	FORM_A, FORM_0, FORM_R, FORM_M, FORM_I, FORM_J, FORM_F, FORM_S,
	FORM_RR, FORM_RM, FORM_MR, FORM_RI, FORM_MI, FORM_RS, FORM_MS, FORM_SR, FORM_SM,
	FORM_RC, FORM_CR, FORM_RD, FORM_DR, FORM_IR, FORM_II,
	FORM_RRI, FORM_RMI, FORM_RRR, FORM_MRI, FORM_MRR,
	N_FORMS
};

enum op_flag {
	OF_ENDS = 1,     /* ends a block: branches, whatever may change mode, mappings, or what is pending */
	OF_PRIV = 2,     /* not a ring-3 instruction (CPL 0 or IOPL or system state): no native oracle */
	OF_LOCK = 4,     /* LOCK is allowed with a memory destination */
	OF_STRING = 8,   /* REP applies */
	OF_NATIVE = 32,  /* by the host's own instruction (interp/native.c) */
	OF_SRC = 16,     /* fn is chosen by the size of the second operand (MOVZX) */
};

struct op {
	u16 mnemonic;        /* ZydisMnemonic */
	u8 form;             /* enum op_form */
	u8 op_class;
	u8 flags;            /* enum op_flag */
	const char *name;    /* "ADD MR" */
	op_fn *fn[4];        /* by operand size 1, 2, 4, 8; equal where the handler looks itself */
	op_fn *rep[4];       /* OF_STRING: with a REP prefix; ends the block */
};
extern const struct op isa_ops[];  /* made of ops.def; lives in interp/, which has the handlers */
extern const unsigned isa_n_ops;

enum code_mode { CODE16, CODE32, CODE64 }; /* default operand and address size of CS */

/* Prefixes as the handler needs them. */
enum insn_flag {
	IF_LOCK = 1, IF_REP = 2, IF_REPNE = 4,
	IF_MEM = 8,      /* has a memory operand (base, index, scale, disp, seg are valid) */
	IF_LAST = 16,    /* ends its block */
	IF_STACK = 32,   /* accesses the stack (PUSH, CALL, ENTER), beside a memory operand it may have */
};

struct insn {
	op_fn *fn;
	u64 imm;         /* immediate, sign-extended to 64 bits; branch: target offset relative to block start; far: offset */
	i64 disp;        /* displacement; RIP-relative: relative to the block's start, base = R_BLOCK */
	void *aux;       /* native stub, or a handler's own */
	u32 imm2;        /* second immediate (ENTER level, far selector, EXTRQ) */
	u16 off;         /* of this instruction from its block's first byte */
	u16 op;          /* index into isa_ops */
	u8 len;          /* bytes */
	u8 flags;        /* enum insn_flag */
	u8 opsz, adsz;   /* bytes: operand 1, 2, 4, 8; address 2, 4, 8 */
	u8 seg;          /* of the memory operand, enum sreg */
	u8 base, index, scale; /* enum reg; scale is a shift count */
	u8 r;            /* first register operand as written (MOV r, x; MOV m, r): index; size 1: byte offset in cpu->regs (AH = 1) */
	u8 rm;           /* second register operand as written, coded alike. S, C, D operands: their number */
	u8 msz;          /* bytes of the memory operand, 0 if above 255 or none */
	u8 r3;           /* third register operand */
};

/* What a processor model changes in decoding. */
enum isa_quirk { ISA_AMD = 1 /* size of branches, 0F 0D, VPEXTRQ */, ISA_NO_TZCNT = 2, ISA_NO_LZCNT = 4, ISA_NO_WBNOINVD = 8, ISA_LOCK_CR8 = 16 };
enum isa_status { ISA_OK, ISA_INVALID /* #UD */, ISA_SHORT /* needs more bytes */, ISA_TOO_LONG /* #GP(0) */ };

/* Decodes with Zydis alone; at most 15 bytes are looked at. */
enum isa_status isa_decode(enum code_mode mode, unsigned quirks, const u8 *bytes, unsigned len,
			   ZydisDecodedInstruction *zi, ZydisDecodedOperand zo[ZYDIS_MAX_OPERAND_COUNT]);

#endif
