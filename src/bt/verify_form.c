/* Which host instructions a block may hold at all: a list of what is allowed, by mnemonic for the
 * general registers, by ISA set for vector code (and then with a vector or mask register among the
 * explicit operands). Everything else is refused, whatever it does: SYSCALL, INT, WRPKRU, XSAVE,
 * WRGSBASE, ports, segment registers, strings, far and indirect branches ... */
#include "bt/verify.h"

/* ---- operands -------------------------------------------------------------------------------- */

static bool is_gpr_class(ZydisRegister r)
{
	ZydisRegisterClass k = ZydisRegisterGetClass(r);
	return k >= ZYDIS_REGCLASS_GPR8 && k <= ZYDIS_REGCLASS_GPR64;
}

bool operand_is_high8(const ZydisDecodedOperand *o)
{
	return o->type == ZYDIS_OPERAND_TYPE_REGISTER && o->reg.value >= ZYDIS_REGISTER_AH && o->reg.value <= ZYDIS_REGISTER_BH;
}

static int gpr_of(ZydisRegister r)
{
	if (!is_gpr_class(r))
		return -1;
	int id = ZydisRegisterGetId(r);
	return ZydisRegisterGetClass(r) == ZYDIS_REGCLASS_GPR8 && id >= 4 ? id - 4 : id;
}

int gpr_number(const ZydisDecodedOperand *o)
{
	return o->type == ZYDIS_OPERAND_TYPE_REGISTER ? gpr_of(o->reg.value) : -1;
}

bool reads_operand(const ZydisDecodedOperand *o) { return o->actions & ZYDIS_OPERAND_ACTION_MASK_READ; }
bool writes_operand(const ZydisDecodedOperand *o) { return o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE; }

bool reaches_bits(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo)
{
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_BT: case ZYDIS_MNEMONIC_BTS: case ZYDIS_MNEMONIC_BTR: case ZYDIS_MNEMONIC_BTC:
		return zo[0].type == ZYDIS_OPERAND_TYPE_MEMORY && zo[1].type == ZYDIS_OPERAND_TYPE_REGISTER;
	default:
		return false;
	}
}

u32 gprs_written(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo)
{
	u32 set = 0;
	for (unsigned k = 0; k < zi->operand_count; k++)
		if (gpr_number(&zo[k]) >= 0 && writes_operand(&zo[k]))
			set |= 1u << gpr_number(&zo[k]);
	return set;
}

/* ---- the lists ----------------------------------------------------------------------------------- */

#define M(name) case ZYDIS_MNEMONIC_##name:
#define CC(X) X(O) X(NO) X(B) X(NB) X(Z) X(NZ) X(BE) X(NBE) X(S) X(NS) X(P) X(NP) X(L) X(NL) X(LE) X(NLE)

static bool general(ZydisMnemonic m)
{
	switch (m) {
#define SETCC(cc) M(SET##cc) M(CMOV##cc)
	CC(SETCC)
#undef SETCC
	M(ADD) M(OR) M(ADC) M(SBB) M(AND) M(SUB) M(XOR) M(CMP) M(TEST) M(INC) M(DEC) M(NEG) M(NOT)
	M(MUL) M(IMUL) M(DIV) M(IDIV) M(CBW) M(CWDE) M(CDQE) M(CWD) M(CDQ) M(CQO)
	M(SHL) M(SHR) M(SAR) M(ROL) M(ROR) M(RCL) M(RCR) M(SHLD) M(SHRD)
	M(BT) M(BTS) M(BTR) M(BTC) M(BSF) M(BSR) M(BSWAP)
	M(MOV) M(MOVZX) M(MOVSX) M(MOVSXD) M(LEA) M(XCHG) M(XADD) M(CMPXCHG) M(CMPXCHG8B) M(CMPXCHG16B)
	M(LAHF) M(SAHF) M(CLC) M(STC) M(CMC) M(NOP) M(PAUSE) M(LFENCE) M(MFENCE) M(SFENCE)
	M(ANDN) M(BEXTR) M(BLSI) M(BLSMSK) M(BLSR) M(TZCNT) M(LZCNT) M(POPCNT)
	M(BZHI) M(MULX) M(PDEP) M(PEXT) M(RORX) M(SARX) M(SHLX) M(SHRX) M(ADCX) M(ADOX)
	M(BLCFILL) M(BLCI) M(BLCIC) M(BLCMSK) M(BLCS) M(BLSFILL) M(BLSIC) M(T1MSKC) M(TZMSK)
	M(MOVBE) M(MOVNTI) M(MOVDIRI) M(CRC32) M(RDRAND) M(RDSEED)
	M(RDTSC) M(RDTSCP) M(WRGSBASE)
		return true;
	default:
		return false;
	}
}

#define S(name) case ZYDIS_ISA_SET_##name:
#define S3(name) S(name##_128) S(name##_256) S(name##_512)
static bool vector_set(ZydisISASet s)
{
	switch (s) {
	S(SSE) S(SSE2) S(SSE3) S(SSSE3) S(SSE4) S(SSE42) S(SSE4A) S(SSE2MMX) S(SSSE3MMX) S(PENTIUMMMX) S(AES) S(PCLMULQDQ) S(SHA) S(GFNI)
	S(AVX) S(AVX2) S(AVXAES) S(AVX_GFNI) S(AVX_VNNI) S(F16C) S(FMA) S(FMA4) S(XOP) S(VAES) S(VPCLMULQDQ)
	S3(AVX512F) S(AVX512F_128N) S(AVX512F_SCALAR) S(AVX512F_KOP)
	S3(AVX512BW) S(AVX512BW_128N) S(AVX512BW_KOP)
	S3(AVX512DQ) S(AVX512DQ_128N) S(AVX512DQ_SCALAR) S(AVX512DQ_KOP)
	S3(AVX512CD) S3(AVX512_IFMA) S3(AVX512_VBMI) S3(AVX512_VBMI2) S3(AVX512_VNNI) S3(AVX512_BITALG) S3(AVX512_VPOPCNTDQ)
	S3(AVX512_BF16) S3(AVX512_GFNI) S3(AVX512_VAES) S3(AVX512_VPCLMULQDQ) S3(AVX512_VP2INTERSECT)
	S3(AVX512_FP16) S(AVX512_FP16_128N) S(AVX512_FP16_SCALAR)
		return true;
	default:
		return false;
	}
}

/* x87 without what moves the environment or the whole state, or takes FERR# back. */
static bool x87(const ZydisDecodedInstruction *zi)
{
	switch (zi->mnemonic) {
	M(FNINIT) M(FNCLEX) M(FLDENV) M(FNSTENV) M(FNSAVE) M(FRSTOR) M(FXSAVE) M(FXSAVE64) M(FXRSTOR) M(FXRSTOR64)
		return false;
	default:
		return (zi->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && zi->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
			zi->opcode >= 0xd8 && zi->opcode <= 0xdf) || zi->mnemonic == ZYDIS_MNEMONIC_FWAIT || zi->mnemonic == ZYDIS_MNEMONIC_EMMS;
	}
}

/* Vector code that may name no vector register. */
static bool nameless_vector(ZydisMnemonic m)
{
	switch (m) {
	M(LDMXCSR) M(STMXCSR) M(VLDMXCSR) M(VSTMXCSR) M(VZEROUPPER) M(VZEROALL)
	M(CVTSS2SI) M(CVTTSS2SI) M(CVTSD2SI) M(CVTTSD2SI) M(VCVTSS2SI) M(VCVTTSS2SI) M(VCVTSD2SI) M(VCVTTSD2SI)
	M(VCVTSS2USI) M(VCVTTSS2USI) M(VCVTSD2USI) M(VCVTTSD2USI) M(VCVTSH2SI) M(VCVTTSH2SI) M(VCVTSH2USI) M(VCVTTSH2USI)
		return true;
	default:
		return false;
	}
}

/* #GP or #AC unless the address is a multiple of the size, with no mode in which it is not. */
static bool needs_alignment(ZydisMnemonic m)
{
	switch (m) {
	M(CMPXCHG16B) M(MOVAPS) M(MOVAPD) M(MOVDQA) M(MOVNTPS) M(MOVNTPD) M(MOVNTDQ) M(MOVNTDQA)
	M(VMOVAPS) M(VMOVAPD) M(VMOVDQA) M(VMOVDQA32) M(VMOVDQA64) M(VMOVNTPS) M(VMOVNTPD) M(VMOVNTDQ) M(VMOVNTDQA)
		return true;
	default:
		return false;
	}
}

static bool near_branch(ZydisMnemonic m)
{
	switch (m) {
#define JCC(cc) M(J##cc)
	CC(JCC)
#undef JCC
	M(JMP) M(CALL) M(RET) M(JECXZ) M(JRCXZ) M(LOOP) M(LOOPE) M(LOOPNE)
		return true;
	default:
		return false;
	}
}

static u8 string_of(const ZydisDecodedInstruction *zi)
{
	if (zi->meta.category != ZYDIS_CATEGORY_STRINGOP)
		return 0;
	switch (zi->mnemonic) {
	M(STOSB) M(STOSW) M(STOSD) M(STOSQ)
		return MAP_STOS;
	M(MOVSB) M(MOVSW) M(MOVSD) M(MOVSQ)
		return MAP_MOVS;
	default:
		return 0;
	}
}

/* With no prefixes but REP, operand size and REX. */
static bool string_form(const struct hinsn *h)
{
	for (unsigned k = 0; k < h->zi.raw.prefix_count; k++) {
		u8 v = h->zi.raw.prefixes[k].value;
		if (!(v == 0xf3 && h->rep) && v != 0x66 && (v & 0xf0) != 0x40)
			return false;
	}
	return h->zi.address_width == 64;
}

/* ---- one instruction -------------------------------------------------------------------------------- */

static const char *branch_form(const struct hinsn *h)
{
	const ZydisDecodedInstruction *zi = &h->zi;
	if (!near_branch(zi->mnemonic) || (zi->meta.branch_type != ZYDIS_BRANCH_TYPE_NEAR && zi->meta.branch_type != ZYDIS_BRANCH_TYPE_SHORT))
		return "a branch of a kind that no block holds";
	if (zi->mnemonic == ZYDIS_MNEMONIC_RET)
		return h->len == 1 ? NULL : "a RET that is not the plain one";
	if (h->zo[0].type == ZYDIS_OPERAND_TYPE_REGISTER)
		return zi->mnemonic == ZYDIS_MNEMONIC_JMP && h->zo[0].reg.value == ZYDIS_REGISTER_R11 ? NULL : "a branch to a register that is not T";
	if (h->zo[0].type == ZYDIS_OPERAND_TYPE_MEMORY)
		return zi->mnemonic == ZYDIS_MNEMONIC_CALL || zi->mnemonic == ZYDIS_MNEMONIC_JMP ? NULL : "a branch by memory";
	if (h->zo[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE || !h->zo[0].imm.is_relative)
		return "a branch to an odd place";
	if (zi->attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE)
		return "a branch with an operand-size prefix";
	return NULL;
}

static const char *memory_form(struct hinsn *h, const ZydisDecodedOperand *o)
{
	if (o->mem.type != ZYDIS_MEMOP_TYPE_MEM)
		return "a memory operand with a vector index, or of another odd kind";
	if (o->encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM)
		return "a memory operand that is not in ModRM";
	if (o->mem.base == ZYDIS_REGISTER_RIP) {
		h->constant = h->zi.mnemonic == ZYDIS_MNEMONIC_CMP && o->size == 64 && !(h->zi.attributes & ZYDIS_ATTRIB_HAS_SEGMENT);
		return h->constant ? NULL : "an operand relative to the host's RIP";
	}
	unsigned size = o->size / 8u;
	if (o->size % 8 || !size || size > 64)
		return "a memory operand of unknown size";
	switch (o->mem.segment) {
	case ZYDIS_REGISTER_GS:
		h->gs = true;
		break;
	case ZYDIS_REGISTER_DS: case ZYDIS_REGISTER_SS:
		if (h->zi.address_width != 64)
			return "a guest access with 32-bit addresses";
		break;
	default:
		return "a segment that is not ours";
	}
	h->aligned = needs_alignment(h->zi.mnemonic) && size >= 16 && !(size & (size - 1));
	return NULL;
}

static const char *register_form(struct hinsn *h, const ZydisDecodedOperand *o, bool *explicit_vector)
{
	bool shown = o->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT;
	switch (ZydisRegisterGetClass(o->reg.value)) {
	case ZYDIS_REGCLASS_GPR8: case ZYDIS_REGCLASS_GPR16: case ZYDIS_REGCLASS_GPR32: case ZYDIS_REGCLASS_GPR64:
		if (gpr_of(o->reg.value) == RSP && !h->branch)
			return "the host's RSP";
		return NULL;
	case ZYDIS_REGCLASS_XMM: case ZYDIS_REGCLASS_YMM: case ZYDIS_REGCLASS_ZMM: case ZYDIS_REGCLASS_MASK:
		h->vector = true;
		*explicit_vector |= shown;
		return NULL;
	case ZYDIS_REGCLASS_MMX:
		h->x87 = true;
		*explicit_vector |= shown;
		return NULL;
	case ZYDIS_REGCLASS_X87: case ZYDIS_REGCLASS_FLAGS:
		return NULL;
	case ZYDIS_REGCLASS_IP:
		return h->branch ? NULL : "the host's RIP";
	case ZYDIS_REGCLASS_SEGMENT: case ZYDIS_REGCLASS_CONTROL: case ZYDIS_REGCLASS_DEBUG: case ZYDIS_REGCLASS_TABLE:
	case ZYDIS_REGCLASS_TEST: case ZYDIS_REGCLASS_BOUND: case ZYDIS_REGCLASS_TMM:
		return "a system register";
	default:
		switch (o->reg.value) {
		case ZYDIS_REGISTER_MXCSR: case ZYDIS_REGISTER_X87CONTROL: case ZYDIS_REGISTER_X87STATUS: case ZYDIS_REGISTER_X87TAG:
			return NULL;
		default:
			return "a register that no block uses";
		}
	}
}

const char *form_check(struct hinsn *h)
{
	const ZydisDecodedInstruction *zi = &h->zi;
	bool explicit_vector = false;
	const char *why;
	h->mem = -1;
	h->branch = false;
	h->gs = h->vector = h->aligned = h->constant = false;
	h->x87 = x87(zi);
	h->rep = zi->attributes & ZYDIS_ATTRIB_HAS_REP;
	h->string = string_of(zi);
	if (h->string)
		return string_form(h) ? NULL : "a string instruction of an odd kind";
	h->branch = zi->meta.branch_type != ZYDIS_BRANCH_TYPE_NONE;
	if (h->branch && (why = branch_form(h)))
		return why;
	for (unsigned k = 0; k < zi->operand_count; k++) {
		const ZydisDecodedOperand *o = &h->zo[k];
		if (o->type == ZYDIS_OPERAND_TYPE_POINTER)
			return "a far pointer";
		if (o->type == ZYDIS_OPERAND_TYPE_REGISTER && (why = register_form(h, o, &explicit_vector)))
			return why;
		if (o->type != ZYDIS_OPERAND_TYPE_MEMORY || (h->branch && o->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN))
			continue; /* CALL's and RET's stack: the return stack */
		if (gpr_of(o->mem.base) == RSP || gpr_of(o->mem.index) == RSP)
			return "an address with the host's RSP";
		if (o->mem.type == ZYDIS_MEMOP_TYPE_AGEN && zi->mnemonic == ZYDIS_MNEMONIC_LEA) {
			if (o->mem.base == ZYDIS_REGISTER_RIP || o->mem.base == ZYDIS_REGISTER_EIP)
				return "an address relative to the host's RIP";
			continue;
		}
		if (h->mem >= 0)
			return "two memory operands";
		if ((why = memory_form(h, o)))
			return why;
		h->mem = (i8)k;
	}
	if (h->branch)
		return h->mem >= 0 && !h->gs ? "a branch by the guest's memory" : NULL;
	if ((zi->attributes & ZYDIS_ATTRIB_HAS_LOCK) && h->mem < 0)
		return "LOCK without memory";
	h->vector |= nameless_vector(zi->mnemonic);
	if (general(zi->mnemonic) || (vector_set(zi->meta.isa_set) && explicit_vector) || h->x87 || nameless_vector(zi->mnemonic))
		return NULL;
	return "an instruction that no block holds";
}
