/* Instructions run by the host's own: decoding to a stub and a handler, and the handlers of
 * those whose memory operand is plain. SDM vol. 2; which faults come before which: vol. 3 6.9.
 *
 * A handler checks that the unit may be used, translates the memory operand, and calls the
 * stub. What the instruction itself raises comes by native_trap.c.
 *
 *  1. c->fop, fip, fdp, fcs, fds follow the last x87 instruction that is not a control
 *     instruction, and change only after it has run.
 *  2. Alignment is checked before the page tables are looked at (#GP before #PF), and a
 *     pending x87 exception before either, by all that wait for it (x87, MMX). */
#include <stdlib.h>
#include <string.h>
#include <xmmintrin.h>

#include "cpu/nested_api.h"
#include "interp/native.h"

/* ---- life -------------------------------------------------------------------------------- */

bool native_init(struct cpu *c, struct error *e)
{
	struct native *n = calloc(1, sizeof(*n));
	if (!n)
		return error_set(e, "out of memory");
	n->cpu = c;
	n->zmm = __builtin_cpu_supports("avx512f");
	n->opmask64 = __builtin_cpu_supports("avx512bw");
	if (!arena_init(n, e)) {
		free(n);
		return false;
	}
	if (!trap_init(n, e)) {
		arena_destroy(n);
		free(n);
		return false;
	}
	interp_of(c)->native = n;
	return true;
}

void native_destroy(struct cpu *c)
{
	struct native *n = interp_of(c)->native;
	if (!n)
		return;
	trap_destroy(n);
	arena_destroy(n);
	free(n);
	interp_of(c)->native = NULL;
}

/* ---- helpers ------------------------------------------------------------------------------ */

#define MXCSR_MM (1u << 17) /* AMD: misaligned operands are allowed */
/* insn.rm */
enum {
	ALIGN_ALWAYS = 1, /* also where MXCSR.MM is set (MOVAPS and the like) */
	STORES_PART = 2,  /* the store may leave some or all of memory as it is */
};

bool native_misaligned(struct cpu *c, const struct insn *i)
{
	if ((i->rm & ALIGN_ALWAYS) || !(_mm_getcsr() & MXCSR_MM))
		cpu_gp0(c);
	return true;
}

void native_ferr(struct cpu *c, bool level)
{
	interp_of(c)->native->ferr = level;
	if (c->hooks && c->hooks->ferr)
		c->hooks->ferr(c->hooks->arg, level);
}

void x87_nothing_pending(struct cpu *c)
{
	if (unlikely(interp_of(c)->native->ferr))
		native_ferr(c, false);
}

/* For stubs only where the memory operand may fault: they wait by themselves. */
void x87_wait(struct cpu *c)
{
	u16 status;
	asm volatile("fnstsw %0" : "=a"(status));
	if (unlikely(status & 0x80))
		native_mf(c);
}

static __attribute__((noinline)) void load_slow(struct cpu *c, const struct insn *i, u64 lin, unsigned n)
{
	struct mem_ref r;
	insn_stub(i)(c, mem_begin(c, &r, lin, n, true, false, false));
	mem_end(c, &r);
}
static __attribute__((noinline)) void store_slow(struct cpu *c, const struct insn *i, u64 lin, unsigned n)
{
	struct mem_ref r;
	insn_stub(i)(c, mem_begin(c, &r, lin, n, i->rm & STORES_PART, true, false));
	mem_end(c, &r);
}

/* ---- vectors ------------------------------------------------------------------------------- */

OP(nat_reg)
{
	native_check(c, i);
	insn_stub(i)(c, NULL);
}

#define LOAD(n) \
OP(nat_load_##n) \
{ \
	native_check(c, i); \
	u64 lin = insn_lin(c, i, n, ACC_READ); \
	if (n >= 16 && unlikely(lin & i->r3)) \
		native_misaligned(c, i); \
	u8 *p = host_read(c, lin, n); \
	if (likely(p)) \
		insn_stub(i)(c, p); \
	else \
		load_slow(c, i, lin, n); \
}
#define STORE(n) \
OP(nat_store_##n) \
{ \
	native_check(c, i); \
	u64 lin = insn_lin(c, i, n, ACC_WRITE); \
	if (n >= 16 && unlikely(lin & i->r3)) \
		native_misaligned(c, i); \
	u8 *p = host_write(c, lin, n); \
	if (likely(p)) { \
		insn_stub(i)(c, p); \
		host_written(c, lin, n); \
	} else { \
		store_slow(c, i, lin, n); \
	} \
}
LOAD(1) LOAD(2) LOAD(4) LOAD(8) LOAD(16) LOAD(32) LOAD(64)
STORE(1) STORE(2) STORE(4) STORE(8) STORE(16) STORE(32) STORE(64)
#undef LOAD
#undef STORE
static op_fn *const loads[] = { nat_load_1, nat_load_2, nat_load_4, nat_load_8, nat_load_16, nat_load_32, nat_load_64 };
static op_fn *const stores[] = { nat_store_1, nat_store_2, nat_store_4, nat_store_8, nat_store_16, nat_store_32, nat_store_64 };

/* MXCSR.MM, which this host may know, faults where the processor model lacks it. */
OP(nat_ldmxcsr)
{
	native_check(c, i);
	u32 v = mem_ld32(c, insn_lin(c, i, 4, ACC_READ));
	if (v & ~(cpu_has(c, FEAT_MISALIGNSSE) ? 0xffffu | MXCSR_MM : 0xffffu))
		cpu_gp0(c);
	insn_stub(i)(c, &v);
}

static void zero_upper(struct cpu *c, unsigned from)
{
	for (unsigned r = 0; r < (cpu_code64(c) ? 16 : 8); r++)
		memset(c->zmm[r] + from, 0, 64 - from);
}
OP(nat_vzeroupper)
{
	native_check(c, i);
	zero_upper(c, 16);
}
OP(nat_vzeroall)
{
	native_check(c, i);
	zero_upper(c, 0);
}

/* ---- general registers ----------------------------------------------------------------------- */

OP(nat_gpr_reg)
{
	insn_stub(i)(c, NULL);
}
OP(nat_rdrand)
{
	nested_check(c, i->imm2 >> 8, 0);
	insn_stub(i)(c, NULL);
}
OP(nat_gpr_load)
{
	u64 lin = insn_lin(c, i, i->msz, ACC_READ);
	u8 *p = host_read(c, lin, i->msz);
	if (likely(p))
		insn_stub(i)(c, p);
	else
		load_slow(c, i, lin, i->msz);
}
OP(nat_gpr_store)
{
	u64 lin = insn_lin(c, i, i->msz, ACC_WRITE);
	u8 *p = host_write(c, lin, i->msz);
	if (likely(p)) {
		insn_stub(i)(c, p);
		host_written(c, lin, i->msz);
	} else {
		store_slow(c, i, lin, i->msz);
	}
}
/* VEX outside of 64-bit mode: not in real and V86 mode. */
OP(nat_gpr_vex_reg)
{
	if (!cpu_protected(c))
		cpu_ud(c);
	insn_stub(i)(c, NULL);
}
OP(nat_gpr_vex_load)
{
	if (!cpu_protected(c))
		cpu_ud(c);
	load_slow(c, i, insn_lin(c, i, i->msz, ACC_READ), i->msz);
}

/* ---- x87 --------------------------------------------------------------------------------------- */

/* imm2: the opcode for FOP. */
static inline void x87_done(struct cpu *c, const struct insn *i)
{
	c->fop = (u16)i->imm2;
	c->fip = rip_mask(c, insn_rip(c, i));
	c->fcs = c->seg[S_CS].sel;
}
static inline void x87_data(struct cpu *c, const struct insn *i, u64 ea)
{
	c->fdp = ea;
	c->fds = c->seg[i->seg].sel;
}

OP(nat_x87_reg)
{
	native_check(c, i);
	insn_stub(i)(c, NULL);
	x87_done(c, i);
}
/* Both return the operand's offset. An unmasked exception keeps a store from happening. */
static inline u64 wait_load(struct cpu *c, const struct insn *i)
{
	native_check(c, i);
	if (unlikely(c->seg_check))
		x87_wait(c);
	u64 ea = insn_ea(c, i);
	u64 lin = cpu_linear(c, i->seg, ea, i->msz, ACC_READ);
	u8 *p = unlikely(lin & i->r3) ? NULL : host_read(c, lin, i->msz);
	if (likely(p)) {
		insn_stub(i)(c, p);
		return ea;
	}
	x87_wait(c);
	if (lin & i->r3)
		native_misaligned(c, i);
	load_slow(c, i, lin, i->msz);
	return ea;
}
static inline u64 wait_store(struct cpu *c, const struct insn *i)
{
	native_check(c, i);
	if (unlikely(c->seg_check))
		x87_wait(c);
	u64 ea = insn_ea(c, i);
	u64 lin = cpu_linear(c, i->seg, ea, i->msz, ACC_WRITE);
	u8 *p = host_write(c, lin, i->msz);
	if (likely(p)) {
		insn_stub(i)(c, p);
		host_written(c, lin, i->msz);
		return ea;
	}
	x87_wait(c);
	store_slow(c, i, lin, i->msz);
	return ea;
}
OP(nat_x87_load)
{
	u64 ea = wait_load(c, i);
	x87_done(c, i);
	x87_data(c, i, ea);
}
OP(nat_x87_store)
{
	u64 ea = wait_store(c, i);
	x87_done(c, i);
	x87_data(c, i, ea);
}
/* MMX, FLDCW. */
OP(nat_wait_load)
{
	wait_load(c, i);
}
OP(nat_wait_store)
{
	wait_store(c, i);
}
/* FNCLEX, FNINIT. */
OP(nat_fnclex)
{
	native_check(c, i);
	insn_stub(i)(c, NULL);
	x87_nothing_pending(c);
}
OP(nat_fninit)
{
	native_check(c, i);
	insn_stub(i)(c, NULL);
	c->fop = c->fcs = c->fds = 0;
	c->fip = c->fdp = 0;
	x87_nothing_pending(c);
}

/* ---- decoding ------------------------------------------------------------------------------------ */

enum { NO_UNIT = -1 }; /* general registers only */

static int fpu_class_of(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo)
{
	bool mmx = false, vector = false, opmask = false;
	for (unsigned k = 0; k < zi->operand_count; k++) {
		if (zo[k].type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		switch (ZydisRegisterGetClass(zo[k].reg.value)) {
		case ZYDIS_REGCLASS_MMX: mmx = true; break;
		case ZYDIS_REGCLASS_XMM: case ZYDIS_REGCLASS_YMM: case ZYDIS_REGCLASS_ZMM: vector = true; break;
		case ZYDIS_REGCLASS_MASK: opmask = true; break;
		default: break;
		}
	}
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_FWAIT: return FC_WAIT;
	case ZYDIS_MNEMONIC_EMMS: case ZYDIS_MNEMONIC_FEMMS: return FC_MMX;
	case ZYDIS_MNEMONIC_LDMXCSR: case ZYDIS_MNEMONIC_STMXCSR: return FC_SSE;
	case ZYDIS_MNEMONIC_VLDMXCSR: case ZYDIS_MNEMONIC_VSTMXCSR: return FC_AVX;
	case ZYDIS_MNEMONIC_VZEROUPPER: case ZYDIS_MNEMONIC_VZEROALL: return FC_AVX; /* they name no register */
	case ZYDIS_MNEMONIC_CVTSS2SI: case ZYDIS_MNEMONIC_CVTTSS2SI: case ZYDIS_MNEMONIC_CVTSD2SI: case ZYDIS_MNEMONIC_CVTTSD2SI:
		return FC_SSE; /* of memory they name no vector register */
	case ZYDIS_MNEMONIC_VCVTSS2SI: case ZYDIS_MNEMONIC_VCVTTSS2SI: case ZYDIS_MNEMONIC_VCVTSD2SI: case ZYDIS_MNEMONIC_VCVTTSD2SI:
		if (zi->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX)
			return FC_AVX;
		break;
	default: break;
	}
	switch (zi->encoding) {
	case ZYDIS_INSTRUCTION_ENCODING_3DNOW:
		return FC_MMX;
	case ZYDIS_INSTRUCTION_ENCODING_EVEX:
		return FC_AVX512;
	case ZYDIS_INSTRUCTION_ENCODING_LEGACY:
		if (zi->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && zi->opcode >= 0xd8 && zi->opcode <= 0xdf)
			return FC_X87;
		return vector ? FC_SSE : mmx ? FC_MMX : NO_UNIT;
	default:
		return opmask ? FC_AVX512 : vector ? FC_AVX : NO_UNIT;
	}
}

static bool uses_mmx(const ZydisDecodedOperand *zo, unsigned n)
{
	for (unsigned k = 0; k < n; k++)
		if (zo[k].type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(zo[k].reg.value) == ZYDIS_REGCLASS_MMX)
			return true;
	return false;
}

static bool x87_control(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_FLDCW: case ZYDIS_MNEMONIC_FNSTCW: case ZYDIS_MNEMONIC_FNSTSW: case ZYDIS_MNEMONIC_FWAIT:
	case ZYDIS_MNEMONIC_FENI8087_NOP: case ZYDIS_MNEMONIC_FDISI8087_NOP: case ZYDIS_MNEMONIC_FSETPM287_NOP:
		return true;
	default:
		return false;
	}
}

/* The alignment that a memory operand must have, in bytes; sets ALIGN_ALWAYS. */
static unsigned alignment(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *mem, struct insn *out)
{
	unsigned bytes = mem->size / 8u;
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_MOVAPS: case ZYDIS_MNEMONIC_MOVAPD: case ZYDIS_MNEMONIC_MOVDQA:
	case ZYDIS_MNEMONIC_MOVNTPS: case ZYDIS_MNEMONIC_MOVNTPD: case ZYDIS_MNEMONIC_MOVNTDQ: case ZYDIS_MNEMONIC_MOVNTDQA:
	case ZYDIS_MNEMONIC_VMOVAPS: case ZYDIS_MNEMONIC_VMOVAPD: case ZYDIS_MNEMONIC_VMOVDQA:
	case ZYDIS_MNEMONIC_VMOVDQA32: case ZYDIS_MNEMONIC_VMOVDQA64:
	case ZYDIS_MNEMONIC_VMOVNTPS: case ZYDIS_MNEMONIC_VMOVNTPD: case ZYDIS_MNEMONIC_VMOVNTDQ: case ZYDIS_MNEMONIC_VMOVNTDQA:
		out->rm |= ALIGN_ALWAYS;
		return bytes;
	case ZYDIS_MNEMONIC_MOVUPS: case ZYDIS_MNEMONIC_MOVUPD: case ZYDIS_MNEMONIC_MOVDQU: case ZYDIS_MNEMONIC_LDDQU:
	case ZYDIS_MNEMONIC_PCMPESTRI: case ZYDIS_MNEMONIC_PCMPESTRM: case ZYDIS_MNEMONIC_PCMPISTRI: case ZYDIS_MNEMONIC_PCMPISTRM:
		return 1;
	/* Processors differ: the host's says. */
	case ZYDIS_MNEMONIC_SHA1MSG1: case ZYDIS_MNEMONIC_SHA1MSG2: case ZYDIS_MNEMONIC_SHA1NEXTE: case ZYDIS_MNEMONIC_SHA1RNDS4:
	case ZYDIS_MNEMONIC_SHA256MSG1: case ZYDIS_MNEMONIC_SHA256MSG2: case ZYDIS_MNEMONIC_SHA256RNDS2:
		return 1;
	default:
		return zi->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && bytes == 16 ? 16 : 1;
	}
}

static int size_log2(unsigned bytes)
{
	return bytes && !(bytes & (bytes - 1)) && bytes <= 64 ? __builtin_ctz(bytes) : -1;
}

static op_fn *handler_x87(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *mem, bool store)
{
	if (zi->mnemonic == ZYDIS_MNEMONIC_FNINIT)
		return nat_fninit;
	if (zi->mnemonic == ZYDIS_MNEMONIC_FNCLEX)
		return nat_fnclex;
	return !mem ? nat_x87_reg : store ? nat_x87_store : nat_x87_load;
}

static op_fn *handler_gpr(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *mem, bool store)
{
	if (zi->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY && zi->machine_mode != ZYDIS_MACHINE_MODE_LONG_64)
		return mem ? nat_gpr_vex_load : nat_gpr_vex_reg;
	return !mem ? nat_gpr_reg : store ? nat_gpr_store : nat_gpr_load;
}

/* Sets fn from what the operands are; r, r3, rm, imm2 for it. */
static bool choose(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo,
		   const ZydisDecodedOperand *mem, struct insn *out)
{
	int unit = fpu_class_of(zi, zo);
	bool store = mem && (mem->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE);
	out->r = (u8)(unit == NO_UNIT ? 0 : unit);
	out->rm = 0;
	if (unit == FC_X87 || (zi->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && zi->raw.evex.aaa))
		out->rm = STORES_PART;
	out->r3 = mem ? (u8)(alignment(zi, mem, out) - 1) : 0;
	if (mem && native_decode_masked(zi, zo, mem, out))
		return true;
	if (zi->mnemonic == ZYDIS_MNEMONIC_VZEROUPPER) {
		out->fn = nat_vzeroupper;
	} else if (zi->mnemonic == ZYDIS_MNEMONIC_VZEROALL) {
		out->fn = nat_vzeroall;
	} else if (zi->mnemonic == ZYDIS_MNEMONIC_LDMXCSR || zi->mnemonic == ZYDIS_MNEMONIC_VLDMXCSR) {
		out->fn = nat_ldmxcsr;
	} else if (zi->mnemonic == ZYDIS_MNEMONIC_RDRAND || zi->mnemonic == ZYDIS_MNEMONIC_RDSEED) {
		out->imm2 = (zi->mnemonic == ZYDIS_MNEMONIC_RDRAND ? ICPT_RDRAND : ICPT_RDSEED) << 8 |
			    (unsigned)ZydisRegisterGetId(zo[0].reg.value);
		out->fn = nat_rdrand;
	} else if (unit == NO_UNIT) {
		out->fn = handler_gpr(zi, mem, store);
	} else if (unit == FC_X87 && !x87_control(zi->mnemonic)) {
		out->imm2 = (zi->opcode & 7u) << 8 | (unsigned)zi->raw.modrm.mod << 6 |
			    (unsigned)zi->raw.modrm.reg << 3 | zi->raw.modrm.rm;
		out->fn = handler_x87(zi, mem, store);
	} else if (mem && (uses_mmx(zo, zi->operand_count) || zi->mnemonic == ZYDIS_MNEMONIC_FLDCW)) {
		out->fn = store ? nat_wait_store : nat_wait_load;
	} else if (mem) {
		int k = size_log2(mem->size / 8u);
		if (k < 0)
			return false;
		out->fn = store ? stores[k] : loads[k];
	} else {
		out->fn = nat_reg;
	}
	return true;
}

int native_decode(struct cpu *c, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo,
		  const u8 *bytes, struct insn *out)
{
	struct native *n = interp_of(c)->native;
	const ZydisDecodedOperand *mem = NULL;
	for (unsigned k = 0; k < zi->operand_count && !mem; k++)
		if (zo[k].type == ZYDIS_OPERAND_TYPE_MEMORY)
			mem = &zo[k];
	u8 code[STUB_MAX];
	if (!choose(zi, zo, mem, out))
		return -1;
	if (native_in_c(zi))
		return 0;
	unsigned len = zi->mnemonic == ZYDIS_MNEMONIC_MASKMOVQ ? native_emit_maskmovq(zo, code) :
		       native_emit(n, zi, zo, bytes, code);
	if (!len)
		return -1;
	out->aux = arena_add(n, code, len);
	if (!out->aux)
		bug("the stub arena is full: native_full was not asked");
	return 0;
}
