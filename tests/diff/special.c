/* What single instructions need so that most of their states do not end in the same fault or in
 * nothing: divisors that fit, counts that end, branch targets, selectors, images to load. */
#include <string.h>

#include "state.h"

static u64 gpr(const struct maker *m, unsigned r) { return m->t->r.gpr[r]; }
static unsigned opbytes(const struct maker *m) { return m->d->zi.operand_width / 8u; }
static u64 ones(unsigned bytes) { return bytes >= 8 ? ~0ull : (1ull << 8 * bytes) - 1; }

/* ---- before addresses ---------------------------------------------------------------------------- */

static void dividend(struct maker *m, bool is_signed)
{
	unsigned n = opbytes(m);
	if (!rnd_pct(m->g, 70))
		return;
	if (n == 1) {
		gpr_set(m, R_AX, (gpr(m, R_AX) & ~0xffffull) | (is_signed ? (u16)(i8)rnd(m->g) : rnd_below(m->g, 2048)));
		return;
	}
	u64 high = is_signed && gpr(m, R_AX) >> (8 * n - 1) & 1 ? ~0ull : 0;
	if (rnd_pct(m->g, 25))
		high += rnd_below(m->g, 3) - 1;
	if (!is_signed && rnd_pct(m->g, 30))
		high = rnd_below(m->g, 100);
	gpr_set(m, R_DX, (gpr(m, R_DX) & ~ones(n)) | (high & ones(n)));
}

static void repeat_count(struct maker *m)
{
	unsigned how = rnd_below(m->g, 100);
	u64 v = how < 75 ? rnd_below(m->g, 12) : how < 93 ? rnd_below(m->g, 400) : 4096 + rnd_below(m->g, 20000);
	if (m->d->zi.address_width == 32 && mode64(m) && rnd_pct(m->g, 50))
		v |= rnd(m->g) << 32;
	if (m->d->zi.address_width == 16 && rnd_pct(m->g, 50))
		v |= rnd(m->g) << 16 & 0xffff0000;
	gpr_set(m, R_CX, v);
}

static u16 pick_selector(struct rng *g)
{
	static const u16 some[] = { 0, 3, SEL_DATA, SEL_DATA, SEL_CODE32, SEL_CODE64, 0x10, 0x1b, 0x28, 7, 15, 23, 31,
				    4, 12, 5, 0x22, 0x30, 39 };
	return some[rnd_below(g, ARRAY_LEN(some))];
}

static bool takes_selector(ZydisMnemonic k)
{
	switch (k) {
	case ZYDIS_MNEMONIC_LAR: case ZYDIS_MNEMONIC_LSL: case ZYDIS_MNEMONIC_VERR: case ZYDIS_MNEMONIC_VERW:
	case ZYDIS_MNEMONIC_LLDT: case ZYDIS_MNEMONIC_LTR: case ZYDIS_MNEMONIC_ARPL:
		return true;
	default:
		return false;
	}
}
static bool is_segment(const ZydisDecodedOperand *o)
{
	return o->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(o->reg.value) == ZYDIS_REGCLASS_SEGMENT;
}
/* MOV, POP, LDS and the others, into a segment register. */
static bool loads_segment(const struct maker *m)
{
	for (unsigned k = 0; k < m->d->zi.operand_count; k++)
		if (is_segment(&m->d->zo[k]) && m->d->zo[k].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE &&
		    m->d->zi.meta.branch_type == ZYDIS_BRANCH_TYPE_NONE)
			return true;
	return false;
}

/* Selectors and bit offsets in register operands. */
static void register_operands(struct maker *m)
{
	bool sel = takes_selector(mnemonic(m)) || loads_segment(m);
	for (unsigned k = 0; k < m->d->zi.operand_count_visible; k++) {
		const ZydisDecodedOperand *o = &m->d->zo[k];
		if (o->type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		ZydisRegisterClass c = ZydisRegisterGetClass(o->reg.value);
		if (c != ZYDIS_REGCLASS_GPR16 && c != ZYDIS_REGCLASS_GPR32 && c != ZYDIS_REGCLASS_GPR64)
			continue;
		unsigned r = (unsigned)ZydisRegisterGetId(o->reg.value);
		if (sel && rnd_pct(m->g, 90))
			gpr_set(m, r, (gpr(m, r) & ~0xffffull) | pick_selector(m->g));
	}
}

static void bit_offset(struct maker *m)
{
	const ZydisDecodedOperand *o = &m->d->zo[1];
	if (o->type == ZYDIS_OPERAND_TYPE_REGISTER && m->d->zo[0].type == ZYDIS_OPERAND_TYPE_MEMORY && rnd_pct(m->g, 85)) {
		unsigned r = (unsigned)ZydisRegisterGetId(o->reg.value);
		i64 v = (i64)rnd_below(m->g, 1024) - (rnd_pct(m->g, 40) ? 512 : 0);
		gpr_set(m, r, (gpr(m, r) & ~ones(opbytes(m))) | ((u64)v & ones(opbytes(m))));
	}
}

static void canonical_operand(struct maker *m)
{
	unsigned r = (unsigned)ZydisRegisterGetId(m->d->zo[0].reg.value);
	if (rnd_pct(m->g, 70))
		gpr_set(m, r, (u64)((i64)(gpr(m, r) << 17) >> 17));
}

/* EDX:EAX of the XSAVE family; ECX of XGETBV. */
static void component_mask(struct maker *m)
{
	if (rnd_pct(m->g, 60)) {
		gpr_set(m, R_AX, rnd_pct(m->g, 50) ? ~0ull : rnd(m->g) & 0xff);
		gpr_set(m, R_DX, rnd(m->g) & 1 ? 0 : ~0ull);
	}
}

void special_registers(struct maker *m)
{
	struct rng *g = m->g;
	if (m->d->zi.meta.category == ZYDIS_CATEGORY_STRINGOP || m->d->zi.meta.category == ZYDIS_CATEGORY_IOSTRINGOP)
		repeat_count(m);
	register_operands(m);
	switch (mnemonic(m)) {
	case ZYDIS_MNEMONIC_DIV: dividend(m, false); break;
	case ZYDIS_MNEMONIC_IDIV: dividend(m, true); break;
	case ZYDIS_MNEMONIC_BT: case ZYDIS_MNEMONIC_BTS: case ZYDIS_MNEMONIC_BTR: case ZYDIS_MNEMONIC_BTC:
		bit_offset(m);
		break;
	case ZYDIS_MNEMONIC_LOOP: case ZYDIS_MNEMONIC_LOOPE: case ZYDIS_MNEMONIC_LOOPNE:
	case ZYDIS_MNEMONIC_JCXZ: case ZYDIS_MNEMONIC_JECXZ: case ZYDIS_MNEMONIC_JRCXZ:
		if (rnd_pct(g, 60))
			gpr_set(m, R_CX, (rnd(g) << (rnd(g) & 1 ? 16 : 32)) | rnd_below(g, 3));
		break;
	case ZYDIS_MNEMONIC_LEAVE: case ZYDIS_MNEMONIC_ENTER:
		gpr_set(m, R_BP, DATA_BASE + 0x1000 + rnd_below(g, 0x4100));
		m->fixed |= rnd_pct(g, 85) ? 1u << R_BP : 0;
		break;
	case ZYDIS_MNEMONIC_CLZERO: /* its operand is no operand to the decoder */
		gpr_set(m, R_AX, (mode64(m) && rnd(g) & 1 ? DATA_HIGH : DATA_BASE) + rnd_below(g, DATA_BYTES));
		break;
	case ZYDIS_MNEMONIC_WRFSBASE: case ZYDIS_MNEMONIC_WRGSBASE: canonical_operand(m); break;
	case ZYDIS_MNEMONIC_XGETBV: case ZYDIS_MNEMONIC_XSETBV:
		if (rnd_pct(g, 70))
			gpr_set(m, R_CX, 0);
		break;
	case ZYDIS_MNEMONIC_XSAVE: case ZYDIS_MNEMONIC_XSAVE64: case ZYDIS_MNEMONIC_XSAVEC: case ZYDIS_MNEMONIC_XSAVEC64:
	case ZYDIS_MNEMONIC_XSAVEOPT: case ZYDIS_MNEMONIC_XSAVEOPT64: case ZYDIS_MNEMONIC_XRSTOR:
	case ZYDIS_MNEMONIC_XRSTOR64:
		component_mask(m);
		break;
	default:
		break;
	}
}

/* ---- after memory is filled ---------------------------------------------------------------------------- */

static void poke(struct maker *m, u64 lin, u64 v, unsigned n) { test_patch(m->t, lin, &v, n); }
static u64 peek(const struct maker *m, u64 lin, unsigned n)
{
	u64 v = 0;
	test_peek(m->t, lin, &v, n);
	return v;
}
static int first_memory(const struct maker *m)
{
	int k = memory_operand_of(m, false);
	return k >= 0 ? k : memory_operand_of(m, true);
}

/* J: the offset in the instruction. */
static bool aim_relative(struct maker *m)
{
	for (unsigned tries = 0; tries < 50; tries++) {
		unsigned size = m->d->zi.raw.imm[0].size / 8u;
		u64 next = m->t->r.rip + m->t->len;
		i64 rel = size == 1 ? (i8)rnd(m->g) : (i64)(pick_target(m) - next);
		if (size == 4 && rel != (i32)rel)
			continue;
		if (size == 2)
			rel = (i16)rnd(m->g);
		u64 to = next + (u64)rel;
		if (opbytes(m) == 2 && !(to & 0xffff))
			continue; /* the least address: whether it is there is the host's affair */
		if (to - m->t->r.rip < m->t->len)
			continue;
		memcpy(m->t->bytes + m->d->zi.raw.imm[0].offset, &rel, size);
		return maker_redecode(m);
	}
	return false;
}

static u16 code_selector(struct maker *m)
{
	return rnd_pct(m->g, 75) ? (rnd(m->g) & 1 ? SEL_CODE64 : SEL_CODE32) : pick_selector(m->g);
}

static bool branch(struct maker *m)
{
	const ZydisDecodedInstruction *zi = &m->d->zi;
	const ZydisDecodedOperand *o = &m->d->zo[0];
	unsigned n = opbytes(m);
	u64 to = pick_target(m);
	int mem = memory_operand_of(m, false), stack = memory_operand_of(m, true);
	if (zi->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR) {
		u64 at = mem >= 0 ? m->ea[mem] : stack >= 0 ? m->ea[stack] : 0;
		u16 sel = code_selector(m);
		if (o->type == ZYDIS_OPERAND_TYPE_POINTER) {
			memcpy(m->t->bytes + zi->raw.imm[0].offset, &to, zi->raw.imm[0].size / 8);
			memcpy(m->t->bytes + zi->raw.imm[1].offset, &sel, 2);
			return maker_redecode(m);
		}
		if (zi->mnemonic == ZYDIS_MNEMONIC_RET) {
			at = gpr(m, R_SP);
			poke(m, at, to, n);
			poke(m, at + n, (rnd(m->g) & ~0xffffull) | sel, n);
		} else {
			poke(m, at, to, n);
			poke(m, at + n, sel, 2);
		}
		return true;
	}
	if (zi->mnemonic == ZYDIS_MNEMONIC_RET) {
		poke(m, gpr(m, R_SP), to, n);
	} else if (mem >= 0) {
		if (m->ea[mem] != m->ea[MAX(stack, 0)] || stack < 0)
			poke(m, m->ea[mem], to, n);
	} else if (o->type == ZYDIS_OPERAND_TYPE_REGISTER) {
		unsigned r = (unsigned)ZydisRegisterGetId(o->reg.value);
		gpr_set(m, r, to);
		/* Through a register that is an address: it must not lead back to itself. */
		return gpr(m, r) - m->t->r.rip >= m->t->len;
	} else if (o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && o->imm.is_relative) {
		return aim_relative(m);
	}
	return true;
}

/* What IRET pops: RIP, CS, RFLAGS, RSP, SS. Never TF: the host would stop at the next one. */
static void iret_frame(struct maker *m)
{
	unsigned n = opbytes(m);
	u64 flags = (FL_1 | FL_IF | (rnd(m->g) & (FL_STATUS | FL_DF | FL_AC | FL_ID))) | (rnd_pct(m->g, 20) ? rnd(m->g) & 0x3f7fffull : 0);
	u64 frame[5] = { pick_target(m), code_selector(m), flags & ~(u64)FL_TF, gpr(m, R_SP),
			 rnd_pct(m->g, 80) ? SEL_DATA : pick_selector(m->g) };
	for (unsigned k = 0; k < 5; k++)
		poke(m, gpr(m, R_SP) + k * n, frame[k], n);
}

static void popped_flags(struct maker *m)
{
	poke(m, gpr(m, R_SP), rnd(m->g) & ~(u64)FL_TF, opbytes(m));
}

/* The accumulator equal to what is compared with it. */
static void exchange(struct maker *m, unsigned half)
{
	int k = first_memory(m);
	u64 lo, hi = 0;
	if (!rnd_pct(m->g, 50))
		return;
	if (k >= 0) {
		lo = peek(m, m->ea[k], half);
		hi = peek(m, m->ea[k] + half, half);
	} else {
		lo = gpr(m, (unsigned)ZydisRegisterGetId(m->d->zo[0].reg.value));
	}
	bool two = mnemonic(m) != ZYDIS_MNEMONIC_CMPXCHG;
	gpr_set(m, R_AX, two || half == 8 ? lo : (gpr(m, R_AX) & ~ones(half)) | (lo & ones(half)));
	if (two)
		gpr_set(m, R_DX, hi);
}

static void bounds(struct maker *m)
{
	unsigned n = opbytes(m), r = (unsigned)ZydisRegisterGetId(m->d->zo[0].reg.value);
	int k = first_memory(m);
	if (k < 0 || !rnd_pct(m->g, 70))
		return;
	i64 v = n == 2 ? (i16)gpr(m, r) : (i32)gpr(m, r);
	poke(m, m->ea[k], (u64)(v - rnd_below(m->g, 3) + (rnd_pct(m->g, 20) ? 1 : 0)), n);
	poke(m, m->ea[k] + n, (u64)(v + rnd_below(m->g, 3) - (rnd_pct(m->g, 20) ? 1 : 0)), n);
}

/* CMPS and SCAS: bytes that are equal for a while. */
static void equal_strings(struct maker *m)
{
	u8 same[48];
	if (!rnd_pct(m->g, 60))
		return;
	memset(same, (int)gpr(m, R_AX), sizeof(same));
	if (rnd(m->g) & 1) { /* all bytes of the accumulator are one */
		u64 v = (gpr(m, R_AX) & 0xff) * 0x0101010101010101ull;
		m->t->r.gpr[R_AX] = mode64(m) ? v : (u32)v;
	}
	same[rnd_below(m->g, sizeof(same))] ^= (u8)(rnd(m->g) & 1);
	for (unsigned k = 0; k < m->d->zi.operand_count; k++)
		if (m->d->zo[k].type == ZYDIS_OPERAND_TYPE_MEMORY)
			test_patch(m->t, m->ea[k] - (m->t->r.rflags & FL_DF ? 40 : 0), same, sizeof(same));
}

/* An image that FXRSTOR or XRSTOR takes, most of the time. */
static void state_image(struct maker *m, bool xrstor)
{
	u8 x[1024];
	int k = first_memory(m);
	if (k < 0)
		return;
	for (unsigned at = 0; at < sizeof(x); at += 8)
		st64(x + at, rnd(m->g));
	if (rnd_pct(m->g, 85))
		st32(x + 24, (u32)rnd(m->g) & 0xffff);
	st16(x + 2, ld16(x + 2) & 0x7f00); /* no pending exception */
	if (xrstor && rnd_pct(m->g, 85)) {
		memset(x + 512, 0, 64);
		u64 bv = rnd(m->g) & 0xe7;
		st64(x + 512, rnd_pct(m->g, 90) ? bv : rnd(m->g) & 0xffff);
		if (rnd_pct(m->g, 40))
			st64(x + 520, 1ull << 63 | bv | (rnd(m->g) & 0xe7));
	}
	test_patch(m->t, m->ea[k], x, xrstor ? sizeof(x) : 512);
}

static void selectors_in_memory(struct maker *m)
{
	int k = first_memory(m);
	if (k < 0 || !(takes_selector(mnemonic(m)) || loads_segment(m)))
		return;
	if (m->d->zi.operand_width == 64 && rnd_pct(m->g, 90)) /* where AMD's processors look, too */
		poke(m, m->ea[k] + 4, pick_selector(m->g), 2);
	u64 at = m->ea[k] + (m->d->zo[k].visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT && m->d->zo[k].size / 8u > 8 ?
			     0 : m->d->zo[k].size / 8u > opbytes(m) ? opbytes(m) : 0);
	if (rnd_pct(m->g, 90))
		poke(m, at, pick_selector(m->g), 2);
}

bool special_memory(struct maker *m)
{
	const ZydisDecodedInstruction *zi = &m->d->zi;
	int k = first_memory(m);
	selectors_in_memory(m);
	switch (mnemonic(m)) {
	case ZYDIS_MNEMONIC_INT:
		if (rnd_pct(m->g, 30))
			m->t->bytes[zi->raw.imm[0].offset] = 3 + (rnd(m->g) & 1);
		return maker_redecode(m) && zi->raw.imm[0].value.u != 0x80; /* a system call of the host's */
	case ZYDIS_MNEMONIC_ENTER:
		if (rnd_pct(m->g, 70))
			m->t->bytes[zi->raw.imm[0].offset + 1] = (u8)rnd_below(m->g, 8);
		return maker_redecode(m);
	case ZYDIS_MNEMONIC_CMPXCHG: exchange(m, opbytes(m)); return true;
	case ZYDIS_MNEMONIC_CMPXCHG8B: exchange(m, 4); return true;
	case ZYDIS_MNEMONIC_CMPXCHG16B: exchange(m, 8); return true;
	case ZYDIS_MNEMONIC_BOUND: bounds(m); return true;
	case ZYDIS_MNEMONIC_POPF: case ZYDIS_MNEMONIC_POPFD: case ZYDIS_MNEMONIC_POPFQ: popped_flags(m); return true;
	case ZYDIS_MNEMONIC_IRET: case ZYDIS_MNEMONIC_IRETD: case ZYDIS_MNEMONIC_IRETQ: iret_frame(m); return true;
	case ZYDIS_MNEMONIC_FXRSTOR: case ZYDIS_MNEMONIC_FXRSTOR64: state_image(m, false); return true;
	case ZYDIS_MNEMONIC_XRSTOR: case ZYDIS_MNEMONIC_XRSTOR64: state_image(m, true); return true;
	case ZYDIS_MNEMONIC_LDMXCSR: case ZYDIS_MNEMONIC_VLDMXCSR:
		if (k >= 0 && rnd_pct(m->g, 80))
			poke(m, m->ea[k], rnd(m->g) & 0xffff, 4);
		return true;
	default:
		break;
	}
	switch (zi->meta.category) {
	case ZYDIS_CATEGORY_STRINGOP:
		if (zi->attributes & (ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE))
			equal_strings(m);
		return true;
	case ZYDIS_CATEGORY_UNCOND_BR: case ZYDIS_CATEGORY_COND_BR: case ZYDIS_CATEGORY_CALL: case ZYDIS_CATEGORY_RET:
		return branch(m);
	default:
		return true;
	}
}
