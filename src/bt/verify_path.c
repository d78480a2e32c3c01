/* One host instruction on a path: what it does to symbolic values, and whether it may. What it may do in memory
 * is in verify_mem.c and verify_space.c. */
#include <string.h>

#include "bt/verify.h"

/* ---- facts --------------------------------------------------------------------------------------- */

void path_add_fact(struct path *p, enum fact_kind kind, sym of, u32 n)
{
	if (p->n_facts < FACTS)
		p->facts[p->n_facts++] = (struct fact){ (u8)kind, of, n };
}

bool path_fact(const struct verifier *v, const struct path *p, enum fact_kind kind, sym of, u32 n)
{
	(void)v;
	for (unsigned k = 0; k < p->n_facts; k++) {
		const struct fact *f = &p->facts[k];
		if (f->kind != kind || f->of != of)
			continue;
		if (kind == FACT_FITS ? f->n >= n : kind == FACT_AT_MOST ? f->n <= n : f->n == n)
			return true;
	}
	return false;
}

/* The entry's lowest bit is in the lowest bit of this value: it, or NULL. odd: the other parts are. */
static const struct atom *parity_of_entry(const struct verifier *v, sym a, bool *odd, sym *entry)
{
	const struct expr *x = &v->syms.exprs[a];
	if (x->n != 1 || x->times[0] != 1)
		return NULL;
	const struct atom *t = &v->syms.atoms[x->atom[0]];
	*odd = x->konst & 1;
	*entry = x->atom[0];
	return t->kind == AT_ENTRY || t->kind == AT_ENTRY_AT ? t : NULL;
}

/* The guest's code is, from a byte of the block on, what it was compared with: is that what the block was
 * made from? */
static void code_seen(const struct verifier *v, struct path *p)
{
	unsigned at = p->test.of, n = p->test.n >> 32;
	u32 value = (u32)p->test.n;
	if (!memcmp(v->k->made_from + at, &value, n)) /* little-endian */
		p->code |= ((1ull << n) - 1) << at;
}

void path_condition(struct verifier *v, struct path *p, ZydisMnemonic m, bool taken)
{
	bool zero;
	if (m == ZYDIS_MNEMONIC_JZ)
		zero = taken;
	else if (m == ZYDIS_MNEMONIC_JNZ)
		zero = !taken;
	else if (p->test.kind == TEST_EQUAL && (m == ZYDIS_MNEMONIC_JNBE || m == ZYDIS_MNEMONIC_JBE)) {
		u64 most;
		if ((m == ZYDIS_MNEMONIC_JNBE) == taken || !sym_is_const(&v->syms, (sym)p->test.n, &most))
			return;
		const struct atom *t = sym_single(&v->syms, p->test.of);
		if (t && t->kind == AT_ROR && t->n == 12) /* the upper bits are the place in the page */
			path_add_fact(p, FACT_FITS, t->of, 4096 - (u32)(most >> 52));
		else if (most <= INT32_MAX)
			path_add_fact(p, FACT_AT_MOST, p->test.of, (u32)most);
		return;
	} else {
		return;
	}
	if (p->test.kind == TEST_CODE && zero)
		code_seen(v, p);
	if (p->test.kind == TEST_CMP && zero)
		path_add_fact(p, FACT_ZERO, sym_low(&v->syms, sym_add_const(&v->syms, p->test.of, -p->test.n), 32), 0);
	if (p->test.kind == TEST_EQUAL && zero)
		path_add_fact(p, FACT_EQUAL, p->test.of, (u32)p->test.n);
	if (p->test.kind == TEST_TAG && zero)
		path_add_fact(p, FACT_TAG, p->test.of, (u32)p->test.n);
	if (p->test.kind != TEST_AND)
		return;
	u64 mask = p->test.n;
	if (mask == ~0ull) {
		const struct atom *a = sym_single(&v->syms, p->test.of);
		path_add_fact(p, zero ? FACT_ZERO : FACT_NOT_ZERO, p->test.of, 0);
		if (!zero && a && a->kind == AT_ENTRY) /* entries are 0 or there */
			path_add_fact(p, FACT_PRESENT, v->syms.exprs[p->test.of].atom[0], 0);
		return;
	}
	if (zero)
		path_add_fact(p, FACT_CLEAR, p->test.of, (u32)mask);
	bool odd;
	sym entry;
	if (mask == 1 && parity_of_entry(v, p->test.of, &odd, &entry) && odd == zero)
		path_add_fact(p, FACT_PRESENT, entry, 0);
}
/* ---- addresses ---------------------------------------------------------------------------------------- */

sym path_reg(struct verifier *v, const struct path *p, ZydisRegister r)
{
	return r == ZYDIS_REGISTER_NONE ? sym_const(&v->syms, 0) : p->reg[ZydisRegisterGetId(r) & 15];
}

sym path_address(struct verifier *v, const struct path *p, const ZydisDecodedOperand *o)
{
	sym a = sym_add(&v->syms, path_reg(v, p, o->mem.base), sym_scale(&v->syms, path_reg(v, p, o->mem.index), o->mem.scale ? o->mem.scale : 1));
	return sym_add_const(&v->syms, a, (u64)o->mem.disp.value);
}

/* ---- what is done ------------------------------------------------------------------------------------------------ */

static bool keeps_flags(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_MOV: case ZYDIS_MNEMONIC_LEA: case ZYDIS_MNEMONIC_RORX: case ZYDIS_MNEMONIC_SHLX:
	case ZYDIS_MNEMONIC_LAHF: case ZYDIS_MNEMONIC_SETO:
		return true;
	default:
		return false;
	}
}

/* The immediate, as it is used at the operand's width. */
static u64 immediate(const ZydisDecodedOperand *o, unsigned width)
{
	return width == 64 ? o->imm.value.u : o->imm.value.u & ((1ull << width) - 1);
}

/* Results that are followed; false: none of these. */
static bool followed(struct verifier *v, struct path *p, const struct hinsn *h, int to, sym *result)
{
	struct syms *s = &v->syms;
	const ZydisDecodedOperand *d = &h->zo[0], *a = &h->zo[1];
	unsigned w = d->size;
	if (to < 0 || (w != 32 && w != 64))
		return false;
	sym r;
	switch (h->zi.mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
		if (a->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
			r = sym_const(s, immediate(a, w));
		else if (gpr_number(a) >= 0)
			r = p->reg[gpr_number(a)];
		else
			return false;
		break;
	case ZYDIS_MNEMONIC_MOVZX:
		if (gpr_number(a) < 0 || a->size != 16)
			return false;
		r = sym_low(s, p->reg[gpr_number(a)], 16);
		break;
	case ZYDIS_MNEMONIC_LEA:
		r = path_address(v, p, a);
		if (h->zi.address_width != 64)
			r = sym_low(s, r, h->zi.address_width);
		break;
	case ZYDIS_MNEMONIC_ADD:
		if (a->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
			r = sym_add_const(s, p->reg[to], a->imm.value.u);
		else if (gpr_number(a) >= 0)
			r = sym_add(s, p->reg[to], p->reg[gpr_number(a)]);
		else
			return false;
		break;
	case ZYDIS_MNEMONIC_SUB:
		if (a->type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
			return false;
		r = sym_add_const(s, p->reg[to], -a->imm.value.u);
		break;
	case ZYDIS_MNEMONIC_INC: case ZYDIS_MNEMONIC_DEC:
		r = sym_add_const(s, p->reg[to], h->zi.mnemonic == ZYDIS_MNEMONIC_INC ? 1 : ~0ull);
		break;
	case ZYDIS_MNEMONIC_XOR:
		if (w != 64 || gpr_number(a) < 0)
			return false;
		r = sym_xor(s, p->reg[to], p->reg[gpr_number(a)]);
		break;
	case ZYDIS_MNEMONIC_SHR:
		if (w != 64 || a->type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
			return false;
		r = sym_shr(s, p->reg[to], a->imm.value.u & 63);
		break;
	case ZYDIS_MNEMONIC_SAR:
		if (w != 64 || a->type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
			return false;
		r = sym_sar(s, p->reg[to], a->imm.value.u & 63);
		break;
	case ZYDIS_MNEMONIC_MOVSXD:
		if (w != 64 || gpr_number(a) < 0 || a->size != 32)
			return false;
		r = sym_extend(s, p->reg[gpr_number(a)], 32);
		break;
	case ZYDIS_MNEMONIC_AND: {
		u64 mask = a->type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? immediate(a, w) : 0;
		if (!mask || (mask & (mask + 1)))
			return false;
		r = sym_low(s, p->reg[to], (unsigned)__builtin_popcountll(mask));
		break;
	}
	case ZYDIS_MNEMONIC_RORX:
		if (w != 64 || gpr_number(a) < 0)
			return false;
		r = sym_ror(s, p->reg[gpr_number(a)], h->zo[2].imm.value.u & 63);
		break;
	case ZYDIS_MNEMONIC_SHLX: {
		u64 n;
		if (w != 64 || gpr_number(a) < 0 || !sym_is_const(s, p->reg[gpr_number(&h->zo[2])], &n))
			return false;
		r = sym_shl(s, p->reg[gpr_number(a)], n & 63);
		break;
	}
	default:
		return false;
	}
	*result = w == 32 ? sym_low(s, r, 32) : r;
	return true;
}

static void set_test(struct verifier *v, struct path *p, const struct hinsn *h, sym operand)
{
	const ZydisDecodedOperand *d = &h->zo[0], *a = &h->zo[1];
	bool test = h->zi.mnemonic == ZYDIS_MNEMONIC_TEST;
	if (test && d->size == 64 && a->type == ZYDIS_OPERAND_TYPE_REGISTER && a->reg.value == d->reg.value) {
		p->test.kind = TEST_AND;
		p->test.of = operand;
		p->test.n = ~0ull;
		return;
	}
	if (a->type != ZYDIS_OPERAND_TYPE_IMMEDIATE || operand_is_high8(d) || !(test || h->zi.mnemonic == ZYDIS_MNEMONIC_CMP))
		return;
	if (test) {
		u64 mask = immediate(a, d->size);
		p->test.kind = TEST_AND;
		p->test.of = operand;
		p->test.n = mask;
	} else if (d->size == 64) {
		p->test.kind = TEST_EQUAL;
		p->test.of = operand;
		p->test.n = sym_const(&v->syms, a->imm.value.u);
	} else if (d->size == 32) {
		p->test.kind = TEST_CMP;
		p->test.of = sym_low(&v->syms, operand, 32);
		p->test.n = immediate(a, 32);
	}
}

/* Status flags on their way between the host's and ctx.flags, by way of RAX: LAHF, SETO AL, a store
 * of AX; a load of it, ADD AL, 7fh, SAHF. After the step; rax: what it was before. */
static void follow_flags(struct path *p, const struct hinsn *h, bool own, sym rax)
{
	const ZydisAccessedFlags *f = h->zi.cpu_flags;
	const ZydisDecodedOperand *d = &h->zo[0];
	bool al = gpr_number(d) == RAX && d->size == 8 && !operand_is_high8(d) && h->mem < 0, on = rax == p->packed;
	switch (own ? ZYDIS_MNEMONIC_INVALID : h->zi.mnemonic) {
	case ZYDIS_MNEMONIC_LAHF:
		p->packing = p->host_flags ? 1 : 0;
		p->kept = true;
		break;
	case ZYDIS_MNEMONIC_SETO:
		p->packing = al && on && p->packing == 1 && p->host_flags ? 2 : 0;
		break;
	case ZYDIS_MNEMONIC_ADD:
		p->host_flags = p->half_flags = false;
		if (!al || !on || p->packing != 2 || h->zo[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE || h->zo[1].imm.value.u != 0x7f)
			return;
		p->packing = 3;
		p->half_flags = true;
		break;
	case ZYDIS_MNEMONIC_SAHF:
		p->host_flags = on && p->half_flags && p->packing == 3;
		p->half_flags = false;
		return;
	default:
		if (!f || !(f->modified | f->set_0 | f->set_1 | f->undefined))
			return;
		p->host_flags = p->half_flags = false;
		if (own) { /* they are the instruction's now, and in the host's */
			p->host_flags = true;
			p->ctx_flags = false;
		}
		return;
	}
	p->packed = p->reg[RAX];
}

/* An instruction of the translator's own, rather than the guest's. */
static bool is_scaffold(struct verifier *v, const struct path *p, const struct hinsn *h)
{
	bool g_system = v->root == ROOT_INSN && v->g.kind == G_SYSTEM, g_string = v->root == ROOT_INSN && v->g.kind == G_STRING;
	if (h->string)
		return false;
	const ZydisDecodedOperand *d = &h->zo[0], *a = &h->zo[1];
	bool on_t = gpr_number(d) == T && !operand_is_high8(d);
	unsigned n;
	if (h->gs || path_code_at(v, p, h, &n))
		return true;
	switch (h->zi.mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
		return h->mem >= 0 || a->type == ZYDIS_OPERAND_TYPE_IMMEDIATE || d->size == 64 || (d->size == 32 && on_t) || g_system;
	case ZYDIS_MNEMONIC_LEA: case ZYDIS_MNEMONIC_RORX: case ZYDIS_MNEMONIC_SHLX: case ZYDIS_MNEMONIC_LAHF: case ZYDIS_MNEMONIC_SAHF:
		return true;
	case ZYDIS_MNEMONIC_AND: case ZYDIS_MNEMONIC_CMP:
		if (h->zi.mnemonic == ZYDIS_MNEMONIC_CMP && on_t && d->size == 64)
			return v->root == ROOT_RETURN || (h->mem < 0 && a->type == ZYDIS_OPERAND_TYPE_IMMEDIATE);
		return (on_t && d->size == 32 && a->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) || g_system || (g_string && gpr_number(d) == RCX);
	case ZYDIS_MNEMONIC_TEST:
		return (h->mem < 0 && (a->type == ZYDIS_OPERAND_TYPE_IMMEDIATE || g_system)) || g_string;
	case ZYDIS_MNEMONIC_SAR: case ZYDIS_MNEMONIC_MOVSXD:
		return on_t && v->root == ROOT_INSN && v->g.known && reaches_bits(&v->g.zi, v->g.zo);
	case ZYDIS_MNEMONIC_XOR:
		return g_string && on_t;
	case ZYDIS_MNEMONIC_SUB:
		return g_string && d->size == 64;
	case ZYDIS_MNEMONIC_SETO:
		return h->mem < 0 && gpr_number(d) == RAX && !operand_is_high8(d);
	case ZYDIS_MNEMONIC_ADD:
		return (p->packing == 2 && gpr_number(d) == RAX && d->size == 8) || g_system || (g_string && d->size == 64);
	case ZYDIS_MNEMONIC_SHR:
		return g_system || (g_string && on_t) || (on_t && a->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && a->imm.value.u == WINDOW_BITS);
	case ZYDIS_MNEMONIC_OR: case ZYDIS_MNEMONIC_SHL: case ZYDIS_MNEMONIC_MOVZX:
	case ZYDIS_MNEMONIC_RDTSC: case ZYDIS_MNEMONIC_RDTSCP: case ZYDIS_MNEMONIC_WRGSBASE:
		return g_system || (h->zi.mnemonic == ZYDIS_MNEMONIC_MOVZX && h->mem < 0 && a->size == 16);
	default:
		return false;
	}
}

bool path_step(struct verifier *v, struct path *p, const struct hinsn *h)
{
	struct syms *s = &v->syms;
	bool own = v->root == ROOT_INSN && guest_is_own(v, h);
	if (!own && v->g.known && v->root == ROOT_INSN && !is_scaffold(v, p, h))
		return verify_bad(v, h->off, "an instruction that is neither the guest's nor the translator's");
	if (!own && v->root != ROOT_INSN && v->root != ROOT_DEAD && !is_scaffold(v, p, h))
		return verify_bad(v, h->off, "an instruction that does not belong here");
	if (h->vector && !v->k->units)
		return verify_bad(v, h->off, "vector code in a block that does not ask for the units");
	if (h->x87 && !h->vector && !(v->k->classes & X87_CLASSES))
		return verify_bad(v, h->off, "x87 code in a block that does not ask for it");
	if (own && !guest_own_before(v, p, h))
		return false;
	if (v->g.x87 && h->x87 && v->root == ROOT_INSN && (!guest_same_x87(v, h) || p->own++))
		return verify_bad(v, h->off, "an x87 instruction that is not the guest's");
	if (h->string)
		return path_string(v, p, h);
	if (h->zi.mnemonic == ZYDIS_MNEMONIC_WRGSBASE && !path_space_change(v, p, h))
		return false;
	struct touch t = { 0 };
	u64 at;
	unsigned of_code = 0;
	bool code = !own && path_code_at(v, p, h, &of_code);
	sym loaded = SYM_NONE, result = SYM_NONE;
	if (h->constant) {
		if (v->root != ROOT_RETURN || !path_constant(v, h, &loaded))
			return verify_bad(v, h->off, "a constant that is none of the block's");
	} else if (h->mem >= 0 && h->gs) {
		if (writes_operand(hinsn_memory(h))) {
			if (!path_space_store(v, p, h))
				return false;
		} else if (!path_space_load(v, p, h, &loaded)) {
			return false;
		}
	} else if (h->mem >= 0 && path_at_cpu(v, p, h, &at)) {
		if (!path_cpu_access(v, p, h, at))
			return false;
		loaded = sym_fresh(s);
		if (h->zi.mnemonic == ZYDIS_MNEMONIC_CMP)
			p->events = loaded;
		else if (h->zi.mnemonic == ZYDIS_MNEMONIC_TEST)
			p->rflags = loaded;
	} else if (h->mem >= 0 && !code) {
		if (!path_guest_memory(v, p, h, &t))
			return false;
		loaded = sym_fresh(s);
		u64 imm;
		t.value = loaded;
		if (h->zi.mnemonic == ZYDIS_MNEMONIC_MOV && t.write && h->zo[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
			t.value = sym_const(s, (imm = h->zo[1].imm.value.u));
		else if (h->zi.mnemonic == ZYDIS_MNEMONIC_MOV && t.write && gpr_number(&h->zo[1]) >= 0)
			t.value = p->reg[gpr_number(&h->zo[1])];
		if (p->n_touch == TOUCHES)
			return verify_bad(v, h->off, "too many accesses to guest memory");
		if (v->g.known && !guest_access(v, p, h, &t))
			return false;
		p->touch[p->n_touch++] = t;
	}
	int to = gpr_number(&h->zo[0]);
	bool simple = to >= 0 && !operand_is_high8(&h->zo[0]) && writes_operand(&h->zo[0]);
	bool mov_load = h->zi.mnemonic == ZYDIS_MNEMONIC_MOV && loaded != SYM_NONE && simple;
	if (h->mem < 0 || h->zi.mnemonic == ZYDIS_MNEMONIC_LEA) {
		if (!simple || !followed(v, p, h, to, &result))
			result = SYM_NONE;
	} else if (code && simple) {
		result = path_code(v, of_code, hinsn_memory(h)->size / 8u, h->zo[0].size);
	} else if (mov_load && h->zo[0].size >= 32) {
		result = h->zo[0].size == 32 ? sym_low(s, loaded, 32) : loaded;
	} else if (h->gs && h->zi.mnemonic == ZYDIS_MNEMONIC_ADD && simple && h->zo[0].size >= 32) {
		result = sym_low(s, sym_add(s, p->reg[to], loaded), h->zo[0].size);
	} else if (h->gs && h->zi.mnemonic == ZYDIS_MNEMONIC_SUB && simple && h->zo[0].size == 64) {
		result = sym_add(s, p->reg[to], sym_scale(s, loaded, ~0ull));
	} else if (h->gs && !own && h->zi.mnemonic != ZYDIS_MNEMONIC_CMP && h->zi.mnemonic != ZYDIS_MNEMONIC_MOVZX && !writes_operand(hinsn_memory(h))) {
		return verify_bad(v, h->off, "reads the space by another way than MOV, MOVZX, ADD or CMP");
	}
	sym before = simple ? p->reg[to] : SYM_NONE, rax = p->reg[RAX];
	u32 written = gprs_written(&h->zi, h->zo);
	for (unsigned r = 0; r < 16; r++)
		if (written >> r & 1)
			p->reg[r] = r == (unsigned)to && result != SYM_NONE ? result : sym_fresh(s);
	if (!keeps_flags(h->zi.mnemonic)) {
		p->test.kind = TEST_NONE;
		if (code && h->zi.mnemonic == ZYDIS_MNEMONIC_CMP) {
			p->test.kind = TEST_CODE;
			p->test.of = (sym)of_code;
			p->test.n = (u64)(hinsn_memory(h)->size / 8u) << 32 | immediate(&h->zo[1], hinsn_memory(h)->size);
		} else if (own && h->gs) {
			;
		} else if (h->zi.mnemonic == ZYDIS_MNEMONIC_CMP && h->mem == 1 && to >= 0) {
			p->test.kind = h->constant || (h->gs && sym_is_const(s, loaded, &at)) ? TEST_EQUAL : h->gs ? TEST_TAG : TEST_NONE;
			p->test.of = p->reg[to];
			p->test.n = loaded;
		} else if (h->zi.mnemonic == ZYDIS_MNEMONIC_SHR && result != SYM_NONE && h->zo[0].size == 64) {
			p->test.kind = TEST_AND;
			p->test.of = result;
			p->test.n = ~0ull;
		} else if (h->mem < 0 && to >= 0)
			set_test(v, p, h, writes_operand(&h->zo[0]) ? before : p->reg[to]);
		else if ((h->zi.mnemonic == ZYDIS_MNEMONIC_CMP || h->zi.mnemonic == ZYDIS_MNEMONIC_TEST) && loaded != SYM_NONE)
			set_test(v, p, h, loaded);
	}
	follow_flags(p, h, own, rax);
	if (p->loads_flags) { /* MOVZX EAX, word ctx.flags */
		bool eax = h->zi.mnemonic == ZYDIS_MNEMONIC_MOVZX && to == RAX && h->zo[0].size == 32;
		p->packing = eax && p->ctx_flags ? 2 : 0;
		p->kept |= eax;
		p->packed = p->reg[RAX];
		p->loads_flags = false;
	}
	if (own)
		guest_own_after(v, p, h);
	p->at = h->off + h->len;
	return true;
}
