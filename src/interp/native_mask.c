/* Instructions whose mask says which elements of memory they touch: AVX-512 masked operands,
 * VMASKMOV, MASKMOVDQU, compress and expand, gathers and scatters. SDM vol. 2 2.8 (exception
 * classes), 5.1 and the instructions themselves.
 *
 *  1. An element that is masked off is never accessed: no fault, no accessed or dirty bit.
 *     Where the whole operand lies in one page that the TLB holds, the host's instruction sees
 *     to that by itself. Else the active elements are moved one by one, lowest first, between
 *     guest memory and a buffer that the instruction then works on.
 *  2. A store probes all active elements before the first is written.
 *  3. A gather or scatter that faults has done the elements below the faulting one, and their
 *     mask bits are clear, so that it goes on where it stopped. */
#include <string.h>

#include "interp/native.h"

/* struct insn's imm of a masked operand. */
struct masked {
	u8 mask;       /* opmask register (0: none), or the vector register of VMASKMOV */
	u8 size;       /* bytes of an element in memory */
	u8 count;      /* elements in memory */
	u8 lanes;      /* elements that the mask governs; more than count with broadcast */
	bool packed;   /* compress, expand: the first popcount(mask) elements of memory */
	bool store;
	u8 bytes;      /* of the whole operand */
};
/* ... of a gather or scatter. */
struct vsib {
	u8 mask, index, data; /* registers */
	u8 index_size, size, count;
	bool evex;
};
#define INSN_INFO(type, i) ({ type v_; memcpy(&v_, &(i)->imm, sizeof(v_)); v_; })
_Static_assert(sizeof(struct masked) <= 8 && sizeof(struct vsib) <= 8, "they are kept in imm");

static inline u64 low_bits(unsigned n) { return n >= 64 ? ~0ull : (1ull << n) - 1; }

/* ---- masked operands --------------------------------------------------------------------------- */

/* Which elements of memory the mask makes active. */
static u64 active_elements(const struct masked *m, u64 mask)
{
	mask &= low_bits(m->lanes);
	if (m->packed)
		return low_bits((unsigned)__builtin_popcountll(mask));
	for (unsigned n = m->lanes; n > m->count; n /= 2)
		mask |= mask >> n / 2;
	return mask & low_bits(m->count);
}

static u64 element_lin(struct cpu *c, const struct insn *i, const struct masked *m, unsigned k)
{
	u64 ea = (insn_ea(c, i) + k * m->size) & addr_mask(i->adsz);
	return cpu_linear(c, i->seg, ea, m->size, m->store ? ACC_WRITE : ACC_READ);
}

/* One element; those of VMASKMOV, gathers and scatters are never checked for alignment. */
static u64 element_ld(struct cpu *c, u64 lin, unsigned size, bool checked)
{
	u64 v = 0;
	if (likely(checked || c->mmu != MMU_CHECK))
		return mem_ld(c, lin, size);
	mem_ld_bytes(c, lin, &v, size);
	return v;
}
static void element_st(struct cpu *c, u64 lin, u64 v, unsigned size, bool checked)
{
	if (likely(checked || c->mmu != MMU_CHECK))
		mem_st(c, lin, v, size);
	else
		mem_st_bytes(c, lin, &v, size);
}

/* Element by element. */
static __attribute__((noinline)) void masked_slow(struct cpu *c, const struct insn *i, const struct masked *m,
						  u64 active, bool checked)
{
	_Alignas(64) u8 buf[128];
	u8 *p = buf + ((insn_ea(c, i) + c->ebase[i->seg]) & 63);
	u64 bits;
	memset(buf, 0, sizeof(buf));
	for (bits = active; bits; bits &= bits - 1) {
		unsigned k = (unsigned)__builtin_ctzll(bits);
		u64 lin = element_lin(c, i, m, k);
		if (m->store) {
			if (checked)
				mem_check_aligned(c, lin, m->size);
			mem_probe(c, lin, m->size, ACC_WRITE);
			continue;
		}
		u64 v = element_ld(c, lin, m->size, checked);
		memcpy(p + k * m->size, &v, m->size);
	}
	insn_stub(i)(c, p);
	for (bits = m->store ? active : 0; bits; bits &= bits - 1) {
		unsigned k = (unsigned)__builtin_ctzll(bits);
		u64 v = 0;
		memcpy(&v, p + k * m->size, m->size);
		element_st(c, element_lin(c, i, m, k), v, m->size, checked);
	}
}

/* The whole operand at once where the TLB has its page. */
static inline bool masked_fast(struct cpu *c, const struct insn *i, const struct masked *m)
{
	if (unlikely(c->seg_check))
		return false;
	u64 lin = insn_ea(c, i) + c->ebase[i->seg];
	if (!m->store) {
		u8 *p = host_read(c, lin, m->bytes);
		if (likely(p))
			insn_stub(i)(c, p);
		return p != NULL;
	}
	u8 *p = host_write(c, lin, m->bytes);
	if (unlikely(!p))
		return false;
	insn_stub(i)(c, p);
	host_written(c, lin, m->bytes);
	return true;
}

OP(nat_masked)
{
	native_check(c, i);
	struct masked m = INSN_INFO(struct masked, i);
	if (likely(masked_fast(c, i, &m)))
		return;
	u64 active = active_elements(&m, m.mask ? c->k[m.mask] : ~0ull);
	if (active && ((insn_ea(c, i) + c->ebase[i->seg]) & i->r3))
		native_misaligned(c, i);
	masked_slow(c, i, &m, active, true);
}

/* VMASKMOVPS and its kin: the mask is the elements' sign bits. */
OP(nat_vmaskmov)
{
	native_check(c, i);
	struct masked m = INSN_INFO(struct masked, i);
	if (likely(masked_fast(c, i, &m)))
		return;
	u64 active = 0;
	for (unsigned k = 0; k < m.count; k++)
		active |= (u64)(c->zmm[m.mask][(k + 1) * m.size - 1] >> 7) << k;
	masked_slow(c, i, &m, active, false);
}

/* ---- MASKMOVDQU, MASKMOVQ ------------------------------------------------------------------------ */

/* Bytes of data whose mask byte has its top bit set. As AMD's processors do, all n bytes must be
 * writable, whatever the mask. */
static void bytes_store(struct cpu *c, const struct insn *i, const u8 *data, const u8 *mask, unsigned n)
{
	u64 lin = insn_lin(c, i, n, ACC_WRITE);
	mem_check_aligned(c, lin, 8);
	mem_probe(c, lin, n, ACC_WRITE);
	for (unsigned k = 0; k < n; k++)
		if (mask[k] & 0x80)
			mem_st8(c, lin + k, data[k]);
}
OP(nat_maskmovdqu)
{
	native_check(c, i);
	struct masked m = INSN_INFO(struct masked, i);
	bytes_store(c, i, c->zmm[m.count], c->zmm[m.mask], 16);
}
OP(nat_maskmovq)
{
	u8 pair[16];
	native_check(c, i);
	insn_stub(i)(c, pair);
	bytes_store(c, i, pair, pair + 8, 8);
}

/* ---- gathers and scatters -------------------------------------------------------------------------- */

static bool vsib_active(const struct cpu *c, const struct vsib *v, unsigned k)
{
	return v->evex ? bit_of(c->k[v->mask], k) : c->zmm[v->mask][(k + 1) * v->size - 1] >> 7;
}
static void vsib_done(struct cpu *c, const struct vsib *v, unsigned k)
{
	if (v->evex)
		c->k[v->mask] &= ~(1ull << k);
	else
		memset(&c->zmm[v->mask][k * v->size], 0, v->size);
}
static u64 vsib_lin(struct cpu *c, const struct insn *i, const struct vsib *v, unsigned k, enum access acc)
{
	const u8 *p = &c->zmm[v->index][k * v->index_size];
	u64 index = v->index_size == 4 ? (u64)(i64)(i32)ld32(p) : ld64(p);
	u64 ea = (c->regs[i->base] + (index << i->scale) + (u64)i->disp) & addr_mask(i->adsz);
	return cpu_linear(c, i->seg, ea, v->size, acc);
}
OP(nat_gather)
{
	native_check(c, i);
	struct vsib v = INSN_INFO(struct vsib, i);
	unsigned length = v.count * MAX(v.index_size, v.size); /* of the vector */
	for (unsigned k = 0; k < v.count; k++) {
		if (vsib_active(c, &v, k)) {
			u64 x = element_ld(c, vsib_lin(c, i, &v, k, ACC_READ), v.size, false);
			memcpy(&c->zmm[v.data][k * v.size], &x, v.size);
			if (v.evex) /* each element is a write of the register: also where the next one faults */
				memset(c->zmm[v.data] + length, 0, 64 - length);
		}
		vsib_done(c, &v, k);
	}
	unsigned end = v.count * v.size;
	memset(c->zmm[v.data] + end, 0, 64 - end);
	if (v.evex)
		c->k[v.mask] = 0;
	else
		memset(c->zmm[v.mask], 0, 64);
}
OP(nat_scatter)
{
	native_check(c, i);
	struct vsib v = INSN_INFO(struct vsib, i);
	for (unsigned k = 0; k < v.count; k++) {
		if (vsib_active(c, &v, k)) {
			u64 x = 0;
			memcpy(&x, &c->zmm[v.data][k * v.size], v.size);
			element_st(c, vsib_lin(c, i, &v, k, ACC_WRITE), x, v.size, false);
		}
		vsib_done(c, &v, k);
	}
	c->k[v.mask] = 0;
}

/* ---- decoding ------------------------------------------------------------------------------------------ */

/* Elements of a vector operation with broadcast; 0: none. */
static unsigned broadcast_lanes(ZydisBroadcastMode b)
{
	switch (b) {
	case ZYDIS_BROADCAST_MODE_1_TO_2: return 2;
	case ZYDIS_BROADCAST_MODE_1_TO_4: case ZYDIS_BROADCAST_MODE_2_TO_4: return 4;
	case ZYDIS_BROADCAST_MODE_1_TO_8: case ZYDIS_BROADCAST_MODE_2_TO_8: case ZYDIS_BROADCAST_MODE_4_TO_8: return 8;
	case ZYDIS_BROADCAST_MODE_1_TO_16: case ZYDIS_BROADCAST_MODE_2_TO_16:
	case ZYDIS_BROADCAST_MODE_4_TO_16: case ZYDIS_BROADCAST_MODE_8_TO_16: return 16;
	case ZYDIS_BROADCAST_MODE_1_TO_32: return 32;
	case ZYDIS_BROADCAST_MODE_1_TO_64: return 64;
	default: return 0;
	}
}

static bool is_packed(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_VCOMPRESSPD: case ZYDIS_MNEMONIC_VCOMPRESSPS: case ZYDIS_MNEMONIC_VPCOMPRESSB:
	case ZYDIS_MNEMONIC_VPCOMPRESSD: case ZYDIS_MNEMONIC_VPCOMPRESSQ: case ZYDIS_MNEMONIC_VPCOMPRESSW:
	case ZYDIS_MNEMONIC_VEXPANDPD: case ZYDIS_MNEMONIC_VEXPANDPS: case ZYDIS_MNEMONIC_VPEXPANDB:
	case ZYDIS_MNEMONIC_VPEXPANDD: case ZYDIS_MNEMONIC_VPEXPANDQ: case ZYDIS_MNEMONIC_VPEXPANDW:
		return true;
	default:
		return false;
	}
}

/* Exception classes with NF in their name access the whole operand; so do a few whose elements
 * in memory are not those of the mask, and which Zydis has in another class. */
static bool suppresses_faults(const ZydisDecodedInstruction *zi)
{
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_VDBPSADBW: case ZYDIS_MNEMONIC_VGF2P8AFFINEQB: case ZYDIS_MNEMONIC_VGF2P8AFFINEINVQB:
	case ZYDIS_MNEMONIC_VCVTNE2PS2BF16:
		return false;
	default:
		break;
	}
	switch (zi->meta.exception_class) {
	case ZYDIS_EXCEPTION_CLASS_E1: case ZYDIS_EXCEPTION_CLASS_E2: case ZYDIS_EXCEPTION_CLASS_E3:
	case ZYDIS_EXCEPTION_CLASS_E4: case ZYDIS_EXCEPTION_CLASS_E5: case ZYDIS_EXCEPTION_CLASS_E6:
	case ZYDIS_EXCEPTION_CLASS_E10: case ZYDIS_EXCEPTION_CLASS_E11:
		return true;
	default:
		return false;
	}
}

static bool quadword_index(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_VGATHERQPD: case ZYDIS_MNEMONIC_VGATHERQPS: case ZYDIS_MNEMONIC_VPGATHERQD:
	case ZYDIS_MNEMONIC_VPGATHERQQ: case ZYDIS_MNEMONIC_VSCATTERQPD: case ZYDIS_MNEMONIC_VSCATTERQPS:
	case ZYDIS_MNEMONIC_VPSCATTERQD: case ZYDIS_MNEMONIC_VPSCATTERQQ:
		return true;
	default:
		return false;
	}
}

static bool is_vsib(const ZydisDecodedInstruction *zi)
{
	return zi->meta.category == ZYDIS_CATEGORY_AVX2GATHER || zi->meta.category == ZYDIS_CATEGORY_GATHER ||
	       zi->meta.category == ZYDIS_CATEGORY_SCATTER;
}

static void decode_vsib(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo,
			const ZydisDecodedOperand *mem, struct insn *out)
{
	struct vsib v = {
		.index = (u8)ZydisRegisterGetId(mem->mem.index), .index_size = quadword_index(zi->mnemonic) ? 8 : 4,
		.size = (u8)(mem->element_size / 8), .evex = zi->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX,
	};
	v.count = (u8)(zi->avx.vector_length / 8 / MAX(v.index_size, v.size));
	for (unsigned k = 0; k < zi->operand_count_visible; k++) {
		if (zo[k].encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG)
			v.data = (u8)reg_number(&zo[k]);
		else if (zo[k].encoding == ZYDIS_OPERAND_ENCODING_MASK || zo[k].encoding == ZYDIS_OPERAND_ENCODING_NDSNDD)
			v.mask = (u8)reg_number(&zo[k]);
	}
	out->index = R_ZERO;
	memcpy(&out->imm, &v, sizeof(v));
	out->fn = zi->meta.category == ZYDIS_CATEGORY_SCATTER ? nat_scatter : nat_gather;
}

/* The hidden operand at DS:rDI. */
static void decode_maskmov(const ZydisDecodedOperand *zo, const ZydisDecodedOperand *mem, struct insn *out)
{
	struct masked m = { .count = (u8)reg_number(&zo[0]), .mask = (u8)reg_number(&zo[1]) };
	out->base = R_DI;
	out->index = R_ZERO;
	out->disp = 0;
	out->seg = (u8)(mem->mem.segment - ZYDIS_REGISTER_ES);
	out->flags |= IF_MEM;
	memcpy(&out->imm, &m, sizeof(m));
}

bool native_decode_masked(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo,
			  const ZydisDecodedOperand *mem, struct insn *out)
{
	struct masked m = {
		.size = (u8)(mem->element_size / 8), .count = (u8)mem->element_count, .bytes = (u8)(mem->size / 8),
		.store = mem->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE, .packed = is_packed(zi->mnemonic),
	};
	if (is_vsib(zi)) {
		decode_vsib(zi, zo, mem, out);
		return true;
	}
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_MASKMOVQ: case ZYDIS_MNEMONIC_MASKMOVDQU: case ZYDIS_MNEMONIC_VMASKMOVDQU:
		decode_maskmov(zo, mem, out);
		out->fn = zi->mnemonic == ZYDIS_MNEMONIC_MASKMOVQ ? nat_maskmovq : nat_maskmovdqu;
		return true;
	case ZYDIS_MNEMONIC_VMASKMOVPS: case ZYDIS_MNEMONIC_VMASKMOVPD: case ZYDIS_MNEMONIC_VPMASKMOVD: case ZYDIS_MNEMONIC_VPMASKMOVQ:
		m.mask = (u8)reg_number(&zo[1]);
		m.lanes = m.count;
		memcpy(&out->imm, &m, sizeof(m));
		out->fn = nat_vmaskmov;
		return true;
	default:
		break;
	}
	/* Compress goes by elements without a mask, too. */
	if (zi->encoding != ZYDIS_INSTRUCTION_ENCODING_EVEX || (!zi->raw.evex.aaa && !(m.packed && m.store)) || !suppresses_faults(zi))
		return false;
	unsigned lanes = broadcast_lanes(zi->avx.broadcast.mode);
	m.mask = zi->raw.evex.aaa;
	m.lanes = (u8)(lanes ? lanes : m.count);
	memcpy(&out->imm, &m, sizeof(m));
	out->fn = nat_masked;
	return true;
}

bool native_in_c(const ZydisDecodedInstruction *zi)
{
	return is_vsib(zi) || zi->mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU || zi->mnemonic == ZYDIS_MNEMONIC_VMASKMOVDQU ||
	       zi->mnemonic == ZYDIS_MNEMONIC_VZEROUPPER || zi->mnemonic == ZYDIS_MNEMONIC_VZEROALL;
}
