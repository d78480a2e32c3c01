/* Stubs: the guest's instruction encoded anew, between loads and stores of its operands.
 * AMD64 APM vol. 3 1.1 to 1.10 (legacy, VEX, XOP), SDM vol. 2 2.7 (EVEX).
 *
 *  1. Vector, MMX and opmask registers keep their numbers. Explicit general registers become
 *     r8.. in order of appearance, one for each register of the guest; implicit ones (EAX, ECX,
 *     EDX of PCMPxSTRx, EDX of MULX, AX of FNSTSW) are themselves.
 *  2. The memory operand is [rsi]: mod 0, rm 6, no SIB, no displacement, so that neither
 *     address size nor EVEX's scaled displacement is left.
 *  3. The encoding is made from the operands that Zydis found, not from the prefix bits, which
 *     mean less outside of 64-bit mode. What the operand size selects there is said by 66 and W.
 *  4. Flags that the manual leaves undefined are loaded before, so that what the processor
 *     leaves alone stays. Those that read a flag (ADCX, ADOX, FCMOV) write no other. */
#include <string.h>

#include "interp/native.h"

enum { AX = 0, DX = 2, RDI = 7, FIRST_FREE = 8, LAST_FREE = 11 };

struct gpr {
	u8 guest, host;
	u8 high;        /* AH..BH: byte 1 of guest */
	bool in, out;
};
/* What an instruction reads and writes of struct cpu. */
struct use {
	u32 vec_in, vec_out;
	u8 k_in, k_out;
	u8 n_gpr, next_free;
	struct gpr gpr[6];
	u32 flags_in, flags_out;
	unsigned width;  /* bytes of the widest vector register */
	bool bad;        /* an implicit register that stubs do not hold */
};

struct code { u8 *b; unsigned n; };
static void put(struct code *c, unsigned v) { c->b[c->n++] = (u8)v; }
static void put32(struct code *c, u32 v) { st32(c->b + c->n, v); c->n += 4; }
static void puts_(struct code *c, const char *bytes, unsigned n) { memcpy(c->b + c->n, bytes, n); c->n += n; }
#define PUTS(c, s) puts_(c, s, sizeof(s) - 1)

/* ModRM (and displacement) of [rdi + off]. */
static void put_field(struct code *c, unsigned reg, size_t off)
{
	if (off < 128) {
		put(c, 0x40 | (reg & 7) << 3 | RDI);
		put(c, (unsigned)off);
	} else {
		put(c, 0x80 | (reg & 7) << 3 | RDI);
		put32(c, (u32)off);
	}
}

/* ---- operands ------------------------------------------------------------------------------- */

static bool is_gpr(const ZydisDecodedOperand *o)
{
	if (o->type != ZYDIS_OPERAND_TYPE_REGISTER)
		return false;
	ZydisRegisterClass k = ZydisRegisterGetClass(o->reg.value);
	return k >= ZYDIS_REGCLASS_GPR8 && k <= ZYDIS_REGCLASS_GPR64;
}

/* Index of guest register and, of an 8-bit one, which byte. */
static unsigned gpr_index(const ZydisDecodedOperand *o, u8 *high)
{
	unsigned id = reg_number(o);
	*high = 0;
	if (ZydisRegisterGetClass(o->reg.value) != ZYDIS_REGCLASS_GPR8 || id < 4)
		return id;
	*high = id < 8;
	return id - 4;
}

static bool is_explicit(const ZydisDecodedOperand *o)
{
	return o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG || o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM ||
	       o->encoding == ZYDIS_OPERAND_ENCODING_NDSNDD;
}

static u8 use_gpr(struct use *u, const ZydisDecodedOperand *o)
{
	u8 high, guest = (u8)gpr_index(o, &high);
	bool fixed = !is_explicit(o);
	/* A part is kept where less than 32 bits or nothing at all may be written. */
	bool in = o->size < 32 || !(o->actions & ZYDIS_OPERAND_ACTION_WRITE) || (o->actions & ZYDIS_OPERAND_ACTION_MASK_READ) ||
		  (o->actions & ZYDIS_OPERAND_ACTION_CONDWRITE);
	bool out = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
	for (unsigned k = 0; k < u->n_gpr; k++) {
		struct gpr *g = &u->gpr[k];
		if (g->guest == guest && g->high == high && fixed == (g->host < FIRST_FREE)) {
			g->in |= in;
			g->out |= out;
			return g->host;
		}
	}
	u8 host = fixed ? guest : u->next_free++;
	if ((fixed && guest > DX) || host > LAST_FREE || u->n_gpr == ARRAY_LEN(u->gpr)) {
		u->bad = true;
		return 0;
	}
	u->gpr[u->n_gpr++] = (struct gpr){ .guest = guest, .host = host, .high = high, .in = in, .out = out };
	return host;
}

/* Legacy forms that write all 16 bytes of their destination. */
static bool writes_all(const ZydisDecodedInstruction *zi)
{
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_MOVAPS: case ZYDIS_MNEMONIC_MOVAPD: case ZYDIS_MNEMONIC_MOVUPS: case ZYDIS_MNEMONIC_MOVUPD:
	case ZYDIS_MNEMONIC_MOVDQA: case ZYDIS_MNEMONIC_MOVDQU: case ZYDIS_MNEMONIC_LDDQU: case ZYDIS_MNEMONIC_MOVNTDQA:
	case ZYDIS_MNEMONIC_MOVD: case ZYDIS_MNEMONIC_MOVQ: case ZYDIS_MNEMONIC_PSHUFD:
	case ZYDIS_MNEMONIC_CVTDQ2PD: case ZYDIS_MNEMONIC_CVTDQ2PS:
		return true;
	default:
		return false;
	}
}

static void use_vector(struct use *u, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *o, unsigned width)
{
	unsigned r = reg_number(o);
	bool write = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
	/* Legacy forms and masks keep parts of their destination. */
	bool merges = zi->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && zi->raw.evex.aaa && !zi->raw.evex.z;
	bool keeps = (zi->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && !writes_all(zi)) || merges;
	if (!write || keeps || (o->actions & ZYDIS_OPERAND_ACTION_MASK_READ))
		u->vec_in |= 1u << r;
	if (write)
		u->vec_out |= 1u << r;
	u->width = MAX(u->width, width);
}

static void use_opmask(struct use *u, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *o)
{
	unsigned r = reg_number(o);
	if (o->encoding == ZYDIS_OPERAND_ENCODING_MASK) {
		if (r)
			u->k_in |= (u8)(1u << r);
		return;
	}
	bool pair = zi->mnemonic == ZYDIS_MNEMONIC_VP2INTERSECTD || zi->mnemonic == ZYDIS_MNEMONIC_VP2INTERSECTQ;
	u8 bits = (u8)(pair ? 3u << (r & 6) : 1u << r);
	if (!(o->actions & ZYDIS_OPERAND_ACTION_WRITE) || (o->actions & ZYDIS_OPERAND_ACTION_MASK_READ))
		u->k_in |= bits;
	if (o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
		u->k_out |= bits;
}

static void use_flags(struct use *u, const ZydisDecodedInstruction *zi)
{
	const ZydisAccessedFlags *f = zi->cpu_flags;
	if (!f)
		return;
	u->flags_in = f->tested & FL_STATUS;
	u->flags_out = (f->modified | f->set_0 | f->set_1 | f->undefined) & FL_STATUS;
	/* A few are said to write less than they do (VPTEST); FCOMI may write none. */
	bool carries = u->flags_in;
	if (u->flags_out && !carries && (u->flags_out != FL_STATUS || (f->undefined & FL_STATUS) || zi->opcode >= 0xd8))
		u->flags_in = u->flags_out = FL_STATUS;
}

/* Fills u and, of explicit registers, the numbers to encode. */
struct fields { u8 reg, rm, vvvv; };
static void operands_use(struct use *u, struct fields *f, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo)
{
	*u = (struct use){ .next_free = FIRST_FREE };
	*f = (struct fields){ .reg = zi->raw.modrm.reg, .rm = zi->raw.modrm.rm };
	for (unsigned k = 0; k < zi->operand_count; k++) {
		const ZydisDecodedOperand *o = &zo[k];
		if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
			if (o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM)
				f->rm = 6;
			continue;
		}
		if (o->type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		u8 number;
		switch (ZydisRegisterGetClass(o->reg.value)) {
		case ZYDIS_REGCLASS_GPR8: case ZYDIS_REGCLASS_GPR16: case ZYDIS_REGCLASS_GPR32: case ZYDIS_REGCLASS_GPR64:
			number = use_gpr(u, o);
			break;
		case ZYDIS_REGCLASS_XMM: use_vector(u, zi, o, 16); number = (u8)reg_number(o); break;
		case ZYDIS_REGCLASS_YMM: use_vector(u, zi, o, 32); number = (u8)reg_number(o); break;
		case ZYDIS_REGCLASS_ZMM: use_vector(u, zi, o, 64); number = (u8)reg_number(o); break;
		case ZYDIS_REGCLASS_MASK: use_opmask(u, zi, o); number = (u8)reg_number(o); break;
		case ZYDIS_REGCLASS_MMX: number = (u8)reg_number(o); break;
		default: continue;
		}
		if (o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG)
			f->reg = number;
		else if (o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM)
			f->rm = number;
		else if (o->encoding == ZYDIS_OPERAND_ENCODING_NDSNDD)
			f->vvvv = number;
	}
	use_flags(u, zi);
}

/* ---- the instruction -------------------------------------------------------------------------- */

/* Those whose operand size is chosen by 66 beside a mandatory prefix. */
static bool sized_by_66(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_POPCNT: case ZYDIS_MNEMONIC_LZCNT: case ZYDIS_MNEMONIC_TZCNT: case ZYDIS_MNEMONIC_CRC32:
	case ZYDIS_MNEMONIC_MOVBE: case ZYDIS_MNEMONIC_RDRAND: case ZYDIS_MNEMONIC_RDSEED:
		return true;
	default:
		return false;
	}
}

/* W, which outside of 64-bit mode is ignored where it would choose between 32 and 64 bits. */
static bool effective_w(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo, bool w)
{
	if (!w || zi->machine_mode == ZYDIS_MACHINE_MODE_LONG_64)
		return w;
	for (unsigned k = 0; k < zi->operand_count_visible; k++)
		if (is_gpr(&zo[k]))
			return false;
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_VPCMPESTRI: case ZYDIS_MNEMONIC_VPCMPESTRM: /* of their hidden registers */
	case ZYDIS_MNEMONIC_VMOVD: case ZYDIS_MNEMONIC_VPEXTRD: case ZYDIS_MNEMONIC_VPINSRD:
	case ZYDIS_MNEMONIC_VCVTSI2SD: case ZYDIS_MNEMONIC_VCVTSI2SS: case ZYDIS_MNEMONIC_VCVTSI2SH:
	case ZYDIS_MNEMONIC_VCVTUSI2SD: case ZYDIS_MNEMONIC_VCVTUSI2SS: case ZYDIS_MNEMONIC_VCVTUSI2SH:
		return false;
	default:
		return true;
	}
}

static void put_legacy(struct code *c, const ZydisDecodedInstruction *zi, const struct fields *f)
{
	u8 mandatory = 0;
	bool osz = sized_by_66(zi->mnemonic) && zi->operand_width == 16;
	for (unsigned k = 0; k < zi->raw.prefix_count; k++) {
		if (zi->raw.prefixes[k].type != ZYDIS_PREFIX_TYPE_MANDATORY)
			continue;
		if (zi->raw.prefixes[k].value == 0x66)
			osz = true;
		else
			mandatory = zi->raw.prefixes[k].value;
	}
	if (osz)
		put(c, 0x66);
	if (mandatory)
		put(c, mandatory);
	bool w = (zi->attributes & ZYDIS_ATTRIB_HAS_REX) && zi->raw.rex.W;
	unsigned rex = (unsigned)w << 3 | (f->reg >> 3 & 1u) << 2 | (f->rm >> 3 & 1u);
	if (rex)
		put(c, 0x40 | rex);
	switch (zi->opcode_map) {
	case ZYDIS_OPCODE_MAP_0F: put(c, 0x0f); break;
	case ZYDIS_OPCODE_MAP_0F38: PUTS(c, "\x0f\x38"); break;
	case ZYDIS_OPCODE_MAP_0F3A: PUTS(c, "\x0f\x3a"); break;
	case ZYDIS_OPCODE_MAP_0F0F: PUTS(c, "\x0f\x0f"); return; /* the opcode is the last byte */
	default: break;
	}
	put(c, zi->opcode);
}

/* Three-byte VEX and XOP; all bits but W, L and pp inverted. */
static void put_vex(struct code *c, unsigned first, unsigned map, bool w, unsigned vvvv, unsigned l, unsigned pp, const struct fields *f)
{
	put(c, first);
	put(c, (~f->reg >> 3 & 1u) << 7 | 0x40 | (~f->rm >> 3 & 1u) << 5 | map);
	put(c, (unsigned)w << 7 | (~vvvv & 15u) << 3 | l << 2 | pp);
}

static void put_evex(struct code *c, const ZydisDecodedInstruction *zi, bool w, const struct fields *f)
{
	const struct ZydisDecodedInstructionRawEvex *e = &zi->raw.evex;
	put(c, 0x62);
	put(c, (~f->reg >> 3 & 1u) << 7 | (~f->rm >> 4 & 1u) << 6 | (~f->rm >> 3 & 1u) << 5 | (~f->reg >> 4 & 1u) << 4 | e->mmm);
	put(c, (unsigned)w << 7 | (~f->vvvv & 15u) << 3 | 4 | e->pp);
	put(c, (unsigned)e->z << 7 | (unsigned)e->L2 << 6 | (unsigned)e->L << 5 | (unsigned)e->b << 4 |
		    (~f->vvvv >> 4 & 1u) << 3 | e->aaa);
}

/* Everything after ModRM, SIB and displacement: immediates, is4, 3DNow!'s opcode. */
static void put_tail(struct code *c, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo, const u8 *bytes)
{
	unsigned at = zi->raw.modrm.offset + 1u + (zi->raw.sib.offset ? 1 : 0) + zi->raw.disp.size / 8;
	for (; at < zi->length; at++)
		put(c, bytes[at]);
	for (unsigned k = 0; k < zi->operand_count; k++)
		if (zo[k].encoding == ZYDIS_OPERAND_ENCODING_IS4 && zi->machine_mode != ZYDIS_MACHINE_MODE_LONG_64)
			c->b[c->n - 1] &= 0x7f;
}

static bool put_instruction(struct code *c, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo,
			    const u8 *bytes, const struct fields *f)
{
	switch (zi->encoding) {
	case ZYDIS_INSTRUCTION_ENCODING_LEGACY:
	case ZYDIS_INSTRUCTION_ENCODING_3DNOW:
		put_legacy(c, zi, f);
		break;
	case ZYDIS_INSTRUCTION_ENCODING_VEX:
		put_vex(c, 0xc4, zi->raw.vex.m_mmmm, effective_w(zi, zo, zi->raw.vex.W), f->vvvv, zi->raw.vex.L, zi->raw.vex.pp, f);
		put(c, zi->opcode);
		break;
	case ZYDIS_INSTRUCTION_ENCODING_XOP:
		put_vex(c, 0x8f, zi->raw.xop.m_mmmm, effective_w(zi, zo, zi->raw.xop.W), f->vvvv, zi->raw.xop.L, zi->raw.xop.pp, f);
		put(c, zi->opcode);
		break;
	case ZYDIS_INSTRUCTION_ENCODING_EVEX:
		put_evex(c, zi, effective_w(zi, zo, zi->raw.evex.W), f);
		put(c, zi->opcode);
		break;
	default:
		return false;
	}
	if (zi->attributes & ZYDIS_ATTRIB_HAS_MODRM) {
		unsigned mod = zi->raw.modrm.mod == 3 ? 3 : 0;
		put(c, mod << 6 | (f->reg & 7u) << 3 | (f->rm & 7u));
		put_tail(c, zi, zo, bytes);
	}
	return true;
}

/* ---- loads and stores --------------------------------------------------------------------------- */

static void gpr_load(struct code *c, const struct gpr *g)
{
	if (g->high) { /* movzx r32, byte */
		if (g->host >= 8)
			put(c, 0x44);
		PUTS(c, "\x0f\xb6");
		put_field(c, g->host, offsetof(struct cpu, regs) + g->guest * 8u + 1);
		return;
	}
	put(c, 0x48 | (g->host >= 8 ? 4 : 0));
	put(c, 0x8b);
	put_field(c, g->host, offsetof(struct cpu, regs) + g->guest * 8u);
}
static void gpr_store(struct code *c, const struct gpr *g)
{
	put(c, 0x48 | (g->host >= 8 ? 4 : 0));
	put(c, 0x89);
	put_field(c, g->host, offsetof(struct cpu, regs) + g->guest * 8u);
}

/* MOVUPS in the encoding that goes with the instruction. */
static void vector_move(struct code *c, unsigned r, unsigned width, bool legacy, bool store)
{
	size_t off = offsetof(struct cpu, zmm) + r * 64u;
	if (width == 64) {
		put(c, 0x62);
		put(c, (~r >> 3 & 1) << 7 | 0x60 | (~r >> 4 & 1) << 4 | 1);
		PUTS(c, "\x7c\x48");
	} else if (!legacy) {
		put(c, 0xc5);
		put(c, (~r >> 3 & 1) << 7 | 0x78 | (width == 32 ? 4 : 0));
	} else {
		if (r >= 8)
			put(c, 0x44);
		put(c, 0x0f);
	}
	put(c, store ? 0x11 : 0x10);
	put(c, 0x80 | (r & 7) << 3 | RDI);
	put32(c, (u32)off);
}

/* KMOVQ or, without AVX512BW, KMOVW. */
static void opmask_move(const struct native *n, struct code *c, unsigned r, bool store)
{
	if (n->opmask64)
		PUTS(c, "\xc4\xe1\xf8");
	else
		PUTS(c, "\xc5\xf8");
	put(c, store ? 0x91 : 0x90);
	put_field(c, r, offsetof(struct cpu, k) + r * 8u);
}

#define FLAGS offsetof(struct cpu, rflags)
static void flags_load(struct code *c, u32 flags)
{
	if (flags & FL_OF) {
		PUTS(c, "\x0f\xba");     /* bt dword [rflags], 11 */
		put_field(c, 4, FLAGS);
		put(c, 11);
		PUTS(c, "\x0f\x92\xc0"); /* setc al */
		PUTS(c, "\x04\x7f");     /* add al, 7fh: OF = CF */
	}
	if (flags & ~(u32)FL_OF) {
		PUTS(c, "\x8a");         /* mov ah, [rflags]; sahf */
		put_field(c, 4, FLAGS);
		put(c, 0x9e);
	}
}
/* rflags = rflags & ~flags | the host's & flags. Clobbers eax, ecx. */
static void flags_store(struct code *c, u32 flags)
{
	PUTS(c, "\x0f\x90\xc0\x9f");         /* seto al; lahf */
	PUTS(c, "\x0f\xb6\xc8\xc1\xe1\x0b"); /* movzx ecx, al; shl ecx, 11 */
	PUTS(c, "\x0f\xb6\xc4\x09\xc8\x25"); /* movzx eax, ah; or eax, ecx; and eax, flags */
	put32(c, flags);
	PUTS(c, "\x48\x81");                 /* and qword [rflags], ~flags */
	put_field(c, 4, FLAGS);
	put32(c, ~flags);
	PUTS(c, "\x48\x09");                 /* or [rflags], rax */
	put_field(c, AX, FLAGS);
}

/* ---- the whole ------------------------------------------------------------------------------------ */

unsigned native_emit(const struct native *n, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo,
		     const u8 *bytes, u8 code[STUB_MAX])
{
	struct use u;
	struct fields f;
	struct code c = { code, 0 };
	operands_use(&u, &f, zi, zo);
	bool legacy = zi->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY;
	bool evex = zi->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX;
	unsigned in_width = legacy ? 16 : evex ? 64 : u.width;
	unsigned out_width = legacy ? 16 : n->zmm ? 64 : 32;

	if (u.flags_in)
		flags_load(&c, u.flags_in);
	for (unsigned k = 0; k < u.n_gpr; k++)
		if (u.gpr[k].in)
			gpr_load(&c, &u.gpr[k]);
	for (unsigned r = 0; r < 8; r++)
		if (bit_of(u.k_in, r))
			opmask_move(n, &c, r, false);
	for (unsigned r = 0; r < 32; r++)
		if (bit_of(u.vec_in, r))
			vector_move(&c, r, in_width, legacy, false);
	if (u.bad || !put_instruction(&c, zi, zo, bytes, &f))
		return 0;
	for (unsigned r = 0; r < 32; r++)
		if (bit_of(u.vec_out, r))
			vector_move(&c, r, out_width, legacy, true);
	for (unsigned r = 0; r < 8; r++)
		if (bit_of(u.k_out, r))
			opmask_move(n, &c, r, true);
	for (unsigned k = 0; k < u.n_gpr; k++)
		if (u.gpr[k].out)
			gpr_store(&c, &u.gpr[k]);
	if (u.flags_out)
		flags_store(&c, u.flags_out);
	if (!legacy && (u.width > 16 || (u.vec_in && in_width > 16)))
		PUTS(&c, "\xc5\xf8\x77"); /* vzeroupper */
	put(&c, 0xc3);
	return c.n;
}

unsigned native_reencode(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo, const u8 *bytes, u8 *code)
{
	struct use u;
	struct fields f;
	struct code c = { code, 0 };
	operands_use(&u, &f, zi, zo);
	return !u.bad && put_instruction(&c, zi, zo, bytes, &f) ? c.n : 0;
}

unsigned native_emit_maskmovq(const ZydisDecodedOperand *zo, u8 code[STUB_MAX])
{
	struct code c = { code, 0 };
	PUTS(&c, "\x0f\x7f"); /* movq [rsi], mm */
	put(&c, 6 | reg_number(&zo[0]) << 3);
	PUTS(&c, "\x0f\x7f"); /* movq [rsi + 8], mm */
	put(&c, 0x46 | reg_number(&zo[1]) << 3);
	put(&c, 8);
	put(&c, 0xc3);
	return c.n;
}
