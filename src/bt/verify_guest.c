/* What a guest instruction asks for, decoded anew from its own bytes, and whether the host code has
 * done that: the guest's own instruction once, on the right registers, at the right address, and
 * every other register as it was. Values only; of status flags just that they are back where they
 * were kept. 64-bit code. */
#include <string.h>

#include "bt/verify.h"

/* ---- registers ------------------------------------------------------------------------------------ */

sym guest_start(struct verifier *v, unsigned guest) { return v->start[guest]; }

sym guest_value(const struct path *p, unsigned guest)
{
	switch (guest) {
	case R_11: return p->slot[SL_HOME11];
	case R_15: return p->slot[SL_HOME15];
	case R_SP: return p->reg[HOST_SP];
	default: return p->reg[guest];
	}
}

void guest_set(struct path *p, unsigned guest, sym value)
{
	if (is_homeless(guest))
		p->slot[guest == R_11 ? SL_HOME11 : SL_HOME15] = value;
	else
		p->reg[guest == R_SP ? (unsigned)HOST_SP : guest] = value;
}

/* As far as the mode looks at them. */
bool guest_equal(struct verifier *v, sym a, sym b)
{
	return a == b || (v->legacy && sym_low(&v->syms, a, 32) == sym_low(&v->syms, b, 32));
}

bool guest_untouched(struct verifier *v, const struct path *p, u32 off, int except, const char *where)
{
	for (unsigned g = 0; g < (v->legacy ? 8 : 16); g++)
		if ((int)g != except && !guest_equal(v, guest_value(p, g), guest_start(v, g)))
			return verify_bad(v, off, "guest register %u is not what it was, %s", g, where);
	if (p->slot[SL_GS] != v->start_gs || p->slot[SL_KERNEL_GS] != v->start_kernel_gs)
		return verify_bad(v, off, "a GS base is not what it was, %s", where);
	if (p->dirty)
		return verify_bad(v, off, "RFLAGS is not what it was, %s", where);
	return true;
}

bool guest_flags(struct verifier *v, const struct path *p, u32 off, bool saved, const char *where)
{
	if (v->root == ROOT_INSN && !v->g.known) /* which instruction writes flags for the guest is not known */
		return true;
	if (p->kept && !(saved ? p->ctx_flags : p->host_flags))
		return verify_bad(v, off, "status flags are not in %s, %s", saved ? "the context" : "the host's", where);
	return true;
}

/* ---- decoding ---------------------------------------------------------------------------------------- */

/* Instructions that come to nothing in the host's code. */
static bool is_hint(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_NOP: case ZYDIS_MNEMONIC_PREFETCHT0: case ZYDIS_MNEMONIC_PREFETCHT1: case ZYDIS_MNEMONIC_PREFETCHT2:
	case ZYDIS_MNEMONIC_PREFETCHNTA: case ZYDIS_MNEMONIC_PREFETCHW: case ZYDIS_MNEMONIC_PREFETCH: case ZYDIS_MNEMONIC_PREFETCHWT1:
	case ZYDIS_MNEMONIC_ENDBR64: case ZYDIS_MNEMONIC_ENDBR32:
		return true;
	default:
		return false;
	}
}

static enum guest_kind kind_of(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo)
{
	if (is_hint(zi->mnemonic))
		return G_NOP;
	if (zi->meta.category == ZYDIS_CATEGORY_STRINGOP)
		return G_STRING;
	bool direct = zi->operand_count && zo[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_PUSH: return G_PUSH;
	case ZYDIS_MNEMONIC_POP: return zo[0].type != ZYDIS_OPERAND_TYPE_MEMORY ? G_POP : G_OTHER;
	case ZYDIS_MNEMONIC_LEAVE: return G_LEAVE;
	case ZYDIS_MNEMONIC_CALL: return zi->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR ? G_OTHER : direct ? G_CALL : G_CALL_IND;
	case ZYDIS_MNEMONIC_JMP: return zi->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR ? G_OTHER : direct ? G_JMP : G_JMP_IND;
	case ZYDIS_MNEMONIC_RET: return zi->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR ? G_OTHER : G_RET;
	case ZYDIS_MNEMONIC_LOOP: case ZYDIS_MNEMONIC_LOOPE: case ZYDIS_MNEMONIC_LOOPNE: case ZYDIS_MNEMONIC_JRCXZ: case ZYDIS_MNEMONIC_JECXZ:
		return G_LOOP;
	case ZYDIS_MNEMONIC_CLI: case ZYDIS_MNEMONIC_STI: case ZYDIS_MNEMONIC_SWAPGS: case ZYDIS_MNEMONIC_STAC: case ZYDIS_MNEMONIC_CLAC:
	case ZYDIS_MNEMONIC_CLD: case ZYDIS_MNEMONIC_STD:
	case ZYDIS_MNEMONIC_PUSHFQ: case ZYDIS_MNEMONIC_RDTSC: case ZYDIS_MNEMONIC_RDTSCP:
		return G_SYSTEM;
	case ZYDIS_MNEMONIC_MOV:
		if (gpr_number(&zo[0]) >= 0 && zo[1].type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    (ZydisRegisterGetClass(zo[1].reg.value) == ZYDIS_REGCLASS_SEGMENT || zo[1].reg.value == ZYDIS_REGISTER_CR2))
			return G_SYSTEM;
		break;
	default: break;
	}
	if (zi->meta.category == ZYDIS_CATEGORY_COND_BR)
		return G_JCC;
	return zi->meta.branch_type != ZYDIS_BRANCH_TYPE_NONE ? G_OTHER : G_PLAIN;
}

static sym register_or_zero(struct verifier *v, ZydisRegister r)
{
	return r == ZYDIS_REGISTER_NONE ? sym_const(&v->syms, 0) : guest_start(v, (unsigned)ZydisRegisterGetId(r) & 15);
}

static sym address_asked(struct verifier *v, const ZydisDecodedOperand *o)
{
	struct syms *s = &v->syms;
	sym a;
	if (o->mem.base == ZYDIS_REGISTER_RIP)
		a = sym_const(s, v->g.next);
	else
		a = sym_add(s, register_or_zero(v, o->mem.base), sym_scale(s, register_or_zero(v, o->mem.index), o->mem.scale ? o->mem.scale : 1));
	a = sym_add_const(s, a, (u64)o->mem.disp.value);
	if (o->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
		return sym_low(s, a, v->g.zi.address_width);
	if (o->mem.segment == ZYDIS_REGISTER_FS)
		a = sym_add(s, a, sym_atom(s, AT_SEGMENT, S_FS, SYM_NONE, 0));
	else if (o->mem.segment == ZYDIS_REGISTER_GS)
		a = sym_add(s, a, v->start_gs);
	return a;
}

sym guest_offset(struct verifier *v)
{
	const struct guest_insn *g = &v->g;
	if (g->mem < 0 || (g->known && g->ea == SYM_NONE))
		return SYM_NONE;
	ZydisDecodedOperand o = g->zo[g->mem];
	o.mem.segment = ZYDIS_REGISTER_DS;
	return sym_low(&v->syms, address_asked(v, &o), g->zi.address_width);
}

/* Bits of the block's bytes that are its immediate. */
static u64 immediate_bytes(const struct verifier *v)
{
	const struct guest_insn *g = &v->g;
	return ((1ull << g->zi.raw.imm[0].size / 8u) - 1) << (g->lin - v->k->lin + g->zi.raw.imm[0].offset);
}

static bool immediate_varies(const struct verifier *v) { return v->k->varies && (v->k->varies & immediate_bytes(v)); }

sym guest_immediate(struct verifier *v, unsigned w)
{
	const struct guest_insn *g = &v->g;
	if (!immediate_varies(v))
		return SYM_NONE;
	return path_code(v, (unsigned)(g->lin - v->k->lin) + g->zi.raw.imm[0].offset, g->zi.raw.imm[0].size / 8u, w);
}

/* What varies of it is an immediate that is read as a whole. */
static bool varies_well(struct verifier *v, unsigned off, unsigned len)
{
	u64 of_it = v->k->varies >> off & ((1ull << len) - 1);
	return !of_it || (v->g.kind == G_PLAIN && of_it << off == immediate_bytes(v) && v->g.zo[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE);
}

/* What the map must say of FOP and FDS, where it is not left to the interpreter. */
static u16 fop_asked(const struct guest_insn *g)
{
	switch (g->zi.mnemonic) {
	case ZYDIS_MNEMONIC_FLDCW: case ZYDIS_MNEMONIC_FNSTCW: case ZYDIS_MNEMONIC_FNSTSW:
	case ZYDIS_MNEMONIC_FENI8087_NOP: case ZYDIS_MNEMONIC_FDISI8087_NOP: case ZYDIS_MNEMONIC_FSETPM287_NOP:
		return 0;
	default:
		break;
	}
	if (g->zi.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || g->zi.opcode_map != ZYDIS_OPCODE_MAP_DEFAULT || (g->zi.opcode & 0xf8) != 0xd8)
		return 0;
	unsigned code = (g->zi.opcode & 7u) << 8 | (unsigned)g->zi.raw.modrm.mod << 6 | (unsigned)g->zi.raw.modrm.reg << 3 | g->zi.raw.modrm.rm;
	if (g->mem >= 0)
		code |= FOP_MEM | (unsigned)(g->zo[g->mem].mem.segment - ZYDIS_REGISTER_ES) << FOP_SEG;
	return (u16)(FOP_X87 | code);
}

bool guest_prepare(struct verifier *v, unsigned insn)
{
	struct guest_insn *g = &v->g;
	const struct block *k = v->k;
	*g = (struct guest_insn){ .known = v->guest && !v->legacy && insn < k->n, .mem = -1, .ea = SYM_NONE };
	if (!v->guest || insn >= k->n)
		return true;
	unsigned off = k->map[insn].guest, len = k->map[insn + 1].guest - off;
	if (isa_decode(k->page->mode, v->b->in.quirks, v->guest + off, MIN(len, 15u), &g->zi, g->zo) != ISA_OK || g->zi.length != len)
		return verify_bad(v, k->map[insn].host, "guest instruction %u is not %u bytes long", insn, len);
	g->lin = k->lin + off;
	g->next = g->lin + len;
	g->kind = (u8)kind_of(&g->zi, g->zo);
	g->writes = gprs_written(&g->zi, g->zo);
	if (k->varies && !varies_well(v, off, len))
		return verify_bad(v, k->map[insn].host, "code that varies is no immediate");
	for (unsigned n = 0; n < g->zi.operand_count; n++)
		if (g->zo[n].type == ZYDIS_OPERAND_TYPE_MEMORY && g->zo[n].encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM)
			g->mem = (i8)n;
	u16 fop = k->map[insn].fop;
	g->x87 = v->legacy && (fop & FOP_X87);
	if (fop != FOP_INTERP && fop != fop_asked(g))
		return verify_bad(v, k->map[insn].host, "FOP or FDS of another instruction");
	bool lea = g->zi.mnemonic == ZYDIS_MNEMONIC_LEA;
	if (g->mem >= 0 && g->known && (lea || g->zi.address_width == 64) && g->zo[g->mem].mem.type != ZYDIS_MEMOP_TYPE_VSIB)
		g->ea = address_asked(v, &g->zo[g->mem]);
	if (g->ea != SYM_NONE && reaches_bits(&g->zi, g->zo) && g->zo[0].size >= 32)
		g->ea = sym_add(&v->syms, g->ea, sym_bit_word(&v->syms, guest_start(v, (unsigned)gpr_number(&g->zo[1])), g->zo[0].size));
	return true;
}

/* ---- its own instruction ------------------------------------------------------------------------------- */

/* The guest register at whose home the host's instruction has its operand, in the guest's the register;
 * -1: it is not so. A MOV is not the guest's own: what it moves is known. */
static int home_operand(const struct verifier *v, const struct hinsn *h)
{
	const struct guest_insn *g = &v->g;
	const ZydisDecodedOperand *o = &h->zo[h->mem];
	if (g->mem >= 0 || h->zi.mnemonic == ZYDIS_MNEMONIC_MOV || reaches_bits(&h->zi, h->zo) || h->zi.address_width != 64 || o->mem.base != ZYDIS_REGISTER_NONE ||
	    o->mem.index != ZYDIS_REGISTER_NONE || (o->mem.disp.value != CTX(home11) && o->mem.disp.value != CTX(home15)))
		return -1;
	return o->mem.disp.value == CTX(home11) ? R_11 : R_15;
}

/* The same part of which guest register, there. */
static bool same_home(struct verifier *v, const struct path *p, const struct hinsn *h, const ZydisDecodedOperand *host, const ZydisDecodedOperand *guest)
{
	int gr = home_operand(v, h);
	if (gr < 0 || gpr_number(guest) != gr || operand_is_high8(guest) || host->size != guest->size || (writes_operand(guest) && guest->size == 32) ||
	    writes_operand(guest) != writes_operand(host))
		return verify_bad(v, h->off, "an operand that is not the guest's");
	if ((h->zi.mnemonic == ZYDIS_MNEMONIC_XCHG) || guest_value(p, (unsigned)gr) != guest_start(v, (unsigned)gr))
		return verify_bad(v, h->off, "the home of guest register %d does not hold it", gr);
	return true;
}

bool guest_is_own(const struct verifier *v, const struct hinsn *h)
{
	const struct guest_insn *g = &v->g;
	if (g->known && g->kind == G_STRING && h->string)
		return h->zi.mnemonic == g->zi.mnemonic && h->zi.address_width == g->zi.address_width;
	const struct insn_map *m = &v->k->map[v->k_insn];
	if (h->off < (u32)m->host + m->prelude || h->off >= m[1].host) /* LAHF, SAHF ... of the translator's */
		return false;
	if (!g->known || g->kind != G_PLAIN || h->zi.mnemonic != g->zi.mnemonic)
		return false;
	if (g->zi.mnemonic == ZYDIS_MNEMONIC_MOV && immediate_varies(v))
		return false; /* a load of it, and MOVs that lead there */
	if (h->gs)
		return home_operand(v, h) >= 0;
	bool mem = g->mem >= 0 && g->zo[g->mem].mem.type != ZYDIS_MEMOP_TYPE_AGEN;
	return mem == (h->mem >= 0);
}

/* Of general registers: the same part of which guest register. */
static bool same_gpr(struct verifier *v, const struct path *p, const struct hinsn *h, const ZydisDecodedOperand *host, const ZydisDecodedOperand *guest)
{
	int hr = gpr_number(host), gr = gpr_number(guest);
	if (hr < 0 || host->size != guest->size || operand_is_high8(host) != operand_is_high8(guest))
		return verify_bad(v, h->off, "an operand that is not the guest's");
	bool reads = reads_operand(guest) || guest->size < 32 || (guest->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) == ZYDIS_OPERAND_ACTION_CONDWRITE;
	if (reads && p->reg[hr] != guest_start(v, (unsigned)gr))
		return verify_bad(v, h->off, "host register %d does not hold guest register %d", hr, gr);
	return true;
}

static bool same_vector_form(const ZydisDecodedInstruction *a, const ZydisDecodedInstruction *b)
{
	return a->avx.vector_length == b->avx.vector_length && a->avx.mask.mode == b->avx.mask.mode && a->avx.mask.reg == b->avx.mask.reg &&
	       a->avx.broadcast.mode == b->avx.broadcast.mode && a->avx.rounding.mode == b->avx.rounding.mode && a->avx.has_sae == b->avx.has_sae;
}

bool guest_same_x87(const struct verifier *v, const struct hinsn *h)
{
	const struct guest_insn *g = &v->g;
	return g->zi.opcode == h->zi.opcode && g->zi.mnemonic == h->zi.mnemonic && g->zi.raw.modrm.reg == h->zi.raw.modrm.reg &&
	       (g->mem >= 0 ? h->mem >= 0 : h->mem < 0 && g->zi.raw.modrm.rm == h->zi.raw.modrm.rm);
}

bool guest_own_before(struct verifier *v, const struct path *p, const struct hinsn *h)
{
	const struct guest_insn *g = &v->g;
	if (p->own)
		return verify_bad(v, h->off, "the guest's instruction a second time");
	const ZydisAccessedFlags *f = g->zi.cpu_flags;
	if (p->kept && f && (f->tested & FL_STATUS) && !p->host_flags)
		return verify_bad(v, h->off, "the guest's instruction before its status flags are back");
	if (h->string)
		return (h->rep == (bool)(g->zi.attributes & ZYDIS_ATTRIB_HAS_REP) && (!h->rep || p->reg[RCX] == guest_start(v, R_CX)) &&
			(h->string != MAP_STOS || p->reg[RAX] == guest_start(v, R_AX))) ||
		       verify_bad(v, h->off, "a string instruction on other registers than the guest's");
	if (g->zi.operand_count != h->zi.operand_count || g->zi.operand_width != h->zi.operand_width)
		return verify_bad(v, h->off, "the guest's instruction in another form");
	if ((g->zi.attributes ^ h->zi.attributes) & ZYDIS_ATTRIB_HAS_LOCK)
		return verify_bad(v, h->off, "LOCK is not as the guest has it");
	if (!same_vector_form(&g->zi, &h->zi))
		return verify_bad(v, h->off, "another mask, broadcast or rounding than the guest's");
	bool turned = h->gs && h->zi.mnemonic == ZYDIS_MNEMONIC_TEST && g->zo[h->mem].type != ZYDIS_OPERAND_TYPE_IMMEDIATE &&
		      gpr_number(&g->zo[h->mem]) != home_operand(v, h);
	for (unsigned k = 0; k < g->zi.operand_count; k++) {
		const ZydisDecodedOperand *a = &h->zo[turned && k < 2 ? 1 - k : k], *b = &g->zo[k];
		if (b->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && immediate_varies(v)) {
			if (gpr_number(a) < 0 || operand_is_high8(a) || a->size != g->zo[0].size || p->reg[gpr_number(a)] != guest_immediate(v, a->size == 64 ? 64 : 32))
				return verify_bad(v, h->off, "not the immediate that the guest's code has by now");
			continue;
		}
		if (h->gs && a == &h->zo[h->mem]) {
			if (!same_home(v, p, h, a, b))
				return false;
			continue;
		}
		if (a->type != b->type)
			return verify_bad(v, h->off, "an operand of another kind than the guest's");
		switch (b->type) {
		case ZYDIS_OPERAND_TYPE_REGISTER:
			if (gpr_number(b) >= 0 ? !same_gpr(v, p, h, a, b) : a->reg.value != b->reg.value)
				return gpr_number(b) >= 0 ? false : verify_bad(v, h->off, "another register than the guest's");
			break;
		case ZYDIS_OPERAND_TYPE_IMMEDIATE:
			if (a->imm.value.u != b->imm.value.u)
				return verify_bad(v, h->off, "another immediate than the guest's");
			break;
		default:
			break; /* memory: guest_access */
		}
	}
	return true;
}

void guest_own_after(struct verifier *v, struct path *p, const struct hinsn *h)
{
	const struct guest_insn *g = &v->g;
	p->own++;
	for (unsigned k = 0; k < g->zi.operand_count; k++) {
		int gr = gpr_number(&g->zo[k]);
		if (gr < 0 || !writes_operand(&g->zo[k]))
			continue;
		p->out[gr] = h->gs && (int)k == h->mem ? guest_value(p, (unsigned)gr) : p->reg[gpr_number(&h->zo[k])];
		p->outs |= (u16)(1u << gr);
	}
}

bool guest_access(struct verifier *v, const struct path *p, const struct hinsn *h, const struct touch *t)
{
	const struct guest_insn *g = &v->g;
	struct syms *s = &v->syms;
	sym sp = guest_start(v, R_SP), below = sym_add_const(s, sp, (u64)-8);
	const ZydisDecodedOperand *o = g->mem >= 0 ? &g->zo[g->mem] : NULL;
	bool ok = false;
	switch (g->kind) {
	case G_PLAIN:
		ok = guest_is_own(v, h) && o && t->at == g->ea && t->size * 8 == o->size && t->write == writes_operand(o) && t->read == reads_operand(o);
		break;
	case G_CALL:
		ok = t->at == below && t->size == 8 && t->write;
		break;
	case G_SYSTEM:
		ok = g->zi.mnemonic == ZYDIS_MNEMONIC_PUSHFQ && t->at == below && t->size == 8 && t->write;
		break;
	case G_POP: case G_RET:
		ok = t->at == sp && t->size == 8 && !t->write;
		break;
	case G_LEAVE:
		ok = t->at == guest_start(v, R_BP) && t->size == 8 && !t->write;
		break;
	case G_JMP_IND:
		ok = o && t->at == g->ea && t->size == 8 && !t->write;
		break;
	case G_PUSH: case G_CALL_IND:
		ok = t->size == 8 && (t->write ? t->at == below : o && t->at == g->ea);
		break;
	default:
		break;
	}
	return ok || verify_bad(v, h->off, "an access to guest memory that is not the one asked for");
}

/* ---- its end ------------------------------------------------------------------------------------------------ */

static const struct touch *touched(const struct path *p, bool write)
{
	for (unsigned k = 0; k < p->n_touch; k++)
		if (p->touch[k].write == write)
			return &p->touch[k];
	return NULL;
}

/* Results that can be said without its instruction; SYM_NONE: others. */
static sym result_asked(struct verifier *v)
{
	const struct guest_insn *g = &v->g;
	const ZydisDecodedOperand *a = &g->zo[1];
	struct syms *s = &v->syms;
	unsigned w = g->zo[0].size;
	if ((w != 32 && w != 64) || gpr_number(&g->zo[0]) < 0)
		return SYM_NONE;
	sym r = SYM_NONE;
	if (g->zi.mnemonic == ZYDIS_MNEMONIC_LEA && g->ea != SYM_NONE)
		r = g->ea;
	else if (g->zi.mnemonic == ZYDIS_MNEMONIC_MOV && a->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
		r = guest_immediate(v, w) != SYM_NONE ? guest_immediate(v, w) : sym_const(s, a->imm.value.u);
	else if (g->zi.mnemonic == ZYDIS_MNEMONIC_MOV && gpr_number(a) >= 0)
		r = guest_start(v, (unsigned)gpr_number(a));
	else
		return SYM_NONE;
	return w == 32 ? sym_low(s, r, 32) : r;
}

/* What a register that it writes must hold; SYM_NONE: there is no saying. */
static sym register_asked(struct verifier *v, const struct path *p, unsigned r)
{
	const struct guest_insn *g = &v->g;
	struct syms *s = &v->syms;
	sym sp = guest_start(v, R_SP);
	const struct touch *load = touched(p, false);
	bool first = gpr_number(&g->zo[0]) == (int)r;
	switch (g->kind) {
	case G_PUSH: case G_CALL: case G_CALL_IND:
		return sym_add_const(s, sp, (u64)-8);
	case G_SYSTEM:
		return g->zi.mnemonic == ZYDIS_MNEMONIC_PUSHFQ ? sym_add_const(s, sp, (u64)-8) : guest_value(p, r); /* whatever it is */
	case G_POP:
		return first ? load ? load->value : SYM_NONE : sym_add_const(s, sp, 8);
	case G_LEAVE:
		return r == R_BP ? load ? load->value : SYM_NONE : sym_add_const(s, guest_start(v, R_BP), 8);
	case G_RET:
		return sym_add_const(s, sp, 8 + (g->zi.operand_count_visible ? g->zo[0].imm.value.u & 0xffff : 0));
	case G_PLAIN: {
		sym r0 = first ? result_asked(v) : SYM_NONE;
		return r0 != SYM_NONE ? r0 : p->outs >> r & 1 ? p->out[r] : SYM_NONE;
	}
	default:
		return p->outs >> r & 1 ? p->out[r] : SYM_NONE;
	}
}

/* What a store of the stack's must have written. */
static bool stored(struct verifier *v, const struct path *p, u32 off)
{
	const struct guest_insn *g = &v->g;
	const struct touch *t = touched(p, true);
	sym value = SYM_NONE;
	if (g->kind == G_PUSH && g->mem >= 0)
		value = touched(p, false) ? touched(p, false)->value : SYM_NONE;
	else if (g->kind == G_PUSH)
		value = g->zo[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? sym_const(&v->syms, g->zo[0].imm.value.u) : guest_start(v, (unsigned)gpr_number(&g->zo[0]));
	else if (g->kind == G_CALL || g->kind == G_CALL_IND)
		value = sym_const(&v->syms, g->next);
	else
		return true;
	return (t && t->value == value) || verify_bad(v, off, "what is pushed is not what it should be");
}

static unsigned accesses_asked(const struct guest_insn *g)
{
	bool mem = g->mem >= 0 && g->zo[g->mem].mem.type != ZYDIS_MEMOP_TYPE_AGEN;
	switch (g->kind) {
	case G_POP: case G_LEAVE: case G_CALL: case G_RET: return 1;
	case G_PUSH: case G_CALL_IND: return 1u + mem;
	case G_SYSTEM: return g->zi.mnemonic == ZYDIS_MNEMONIC_PUSHFQ;
	case G_PLAIN: case G_JMP_IND: return mem;
	default: return 0;
	}
}

/* A conditional branch in the middle. */
static bool may_branch(const struct block *k, unsigned insn)
{
	unsigned n = LINKS_LAST;
	while (n < k->n_links && k->link[n].insn != insn)
		n++;
	return n < k->n_links;
}

/* FOP, FIP, FDS, FDP: told, where nothing later before a branch does. */
static bool pointers_told(struct verifier *v, const struct path *p, u32 off)
{
	const struct block *k = v->k;
	u16 fop = k->map[v->k_insn].fop, later = 0;
	bool interp = false;
	for (unsigned n = v->k_insn + 1; n < k->n && !may_branch(k, n); n++) {
		later |= k->map[n].fop;
		interp |= k->map[n].fop == FOP_INTERP;
	}
	u8 want = 0;
	if ((fop & FOP_X87) && !(later & FOP_X87) && !interp)
		want |= X87_LAST;
	if ((fop & FOP_MEM) && !(later & FOP_MEM) && !interp)
		want |= X87_SEG;
	if (fop & FOP_MEM)
		want |= X87_FDP;
	return (p->x87 & want) == want || verify_bad(v, off, "x87 pointers are not told");
}

bool guest_done(struct verifier *v, const struct path *p, u32 off)
{
	const struct guest_insn *g = &v->g;
	if (g->x87)
		return p->own ? pointers_told(v, p, off) : verify_bad(v, off, "the guest's instruction is not there");
	if (!g->known)
		return true;
	if (g->kind == G_OTHER)
		return verify_bad(v, off, "an instruction for the interpreter that goes on");
	if (g->kind == G_NOP)
		return guest_untouched(v, p, off, -1, "after a hint");
	u32 writes = g->writes;
	if (g->kind == G_JCC || g->kind == G_JMP || g->kind == G_JMP_IND || g->kind == G_NOP)
		writes = 0;
	for (unsigned r = 0; r < 16; r++) {
		sym want = writes >> r & 1 ? register_asked(v, p, r) : guest_start(v, r);
		if (want == SYM_NONE)
			return verify_bad(v, off, "nothing has written guest register %u", r);
		if (guest_value(p, r) != want)
			return verify_bad(v, off, "guest register %u has a wrong value at the end", r);
	}
	bool swapped = g->zi.mnemonic == ZYDIS_MNEMONIC_SWAPGS;
	if (p->slot[swapped ? SL_KERNEL_GS : SL_GS] != v->start_gs || p->slot[swapped ? SL_GS : SL_KERNEL_GS] != v->start_kernel_gs)
		return verify_bad(v, off, "a GS base has a wrong value at the end");
	bool changes = g->zi.mnemonic == ZYDIS_MNEMONIC_CLI || g->zi.mnemonic == ZYDIS_MNEMONIC_STI || g->zi.mnemonic == ZYDIS_MNEMONIC_CLAC || g->zi.mnemonic == ZYDIS_MNEMONIC_STAC ||
		       g->zi.mnemonic == ZYDIS_MNEMONIC_CLD || g->zi.mnemonic == ZYDIS_MNEMONIC_STD;
	bool ac = g->zi.mnemonic == ZYDIS_MNEMONIC_CLAC || g->zi.mnemonic == ZYDIS_MNEMONIC_STAC;
	if (p->space_set != ac || (ac && p->ac != (g->zi.mnemonic == ZYDIS_MNEMONIC_STAC)))
		return verify_bad(v, off, "the space is not that of EFLAGS.AC");
	if (p->dirty != changes)
		return verify_bad(v, off, "RFLAGS is changed, or not, against what it asks for");
	bool asks_own = g->kind == G_PLAIN && result_asked(v) == SYM_NONE;
	if (asks_own && !p->own)
		return verify_bad(v, off, "the guest's instruction is not there");
	if (p->cpu_done != path_cpu_asked(v))
		return verify_bad(v, off, "not all of struct cpu is looked at and changed");
	if (p->n_touch != accesses_asked(g))
		return verify_bad(v, off, "%u accesses to guest memory, not %u", p->n_touch, accesses_asked(g));
	return stored(v, p, off) && pointers_told(v, p, off);
}

/* ---- branches ----------------------------------------------------------------------------------------------- */

/* The jump to link n is the guest's: by its condition, to its target. */
bool guest_link(struct verifier *v, const struct path *p, const struct hinsn *h, unsigned n)
{
	const struct guest_insn *g = &v->g;
	if (!g->known)
		return true;
	bool branch = g->kind == G_CALL || g->kind == G_JMP || g->kind == G_JCC || g->kind == G_LOOP;
	bool on = n == LINK_ON;
	if (!on && !branch)
		return verify_bad(v, h->off, "a jump to a target, but no branch");
	if (n >= LINKS_LAST && g->kind != G_JCC)
		return verify_bad(v, h->off, "a branch out of the middle that is not conditional");
	u64 want = !on ? g->next + g->zo[0].imm.value.u : g->next;
	if (v->k->link[n].target != want)
		return verify_bad(v, h->off, "link %u is for %#lx, not %#lx", n, (unsigned long)v->k->link[n].target, (unsigned long)want);
	if ((g->kind == G_JCC || g->kind == G_LOOP) && p->taken != !on)
		return verify_bad(v, h->off, "a conditional branch that goes the wrong way");
	if ((g->kind == G_CALL && !on) != (h->zi.mnemonic == ZYDIS_MNEMONIC_CALL) && v->root == ROOT_INSN)
		return verify_bad(v, h->off, "a call that is none, or the other way round");
	if ((g->kind == G_JMP || g->kind == G_CALL) && on)
		return verify_bad(v, h->off, "a jump that falls through");
	return true;
}

static enum gate gate_asked(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo)
{
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_SYSCALL: return GATE_SYSCALL;
	case ZYDIS_MNEMONIC_SYSRET: return zi->raw.rex.W ? GATE_SYSRET : GATE_NONE;
	case ZYDIS_MNEMONIC_IRETQ: return GATE_IRET;
	case ZYDIS_MNEMONIC_POPFQ: case ZYDIS_MNEMONIC_POPFD: return GATE_POPF;
	case ZYDIS_MNEMONIC_MOV: return zo[0].type == ZYDIS_OPERAND_TYPE_REGISTER && zo[0].reg.value == ZYDIS_REGISTER_CR3 ? GATE_CR3 : GATE_NONE;
	case ZYDIS_MNEMONIC_RDFSBASE: return GATE_RDFSBASE;
	case ZYDIS_MNEMONIC_RDGSBASE: return GATE_RDGSBASE;
	case ZYDIS_MNEMONIC_WRFSBASE: return GATE_WRFSBASE;
	case ZYDIS_MNEMONIC_WRGSBASE: return GATE_WRGSBASE;
	case ZYDIS_MNEMONIC_RDPKRU: return GATE_RDPKRU;
	case ZYDIS_MNEMONIC_WRPKRU: return GATE_WRPKRU;
	default: return zi->meta.category == ZYDIS_CATEGORY_STRINGOP && (zi->opcode & 0xf0) == 0xa0 ? GATE_STRING : GATE_NONE;
	}
}

/* Flat segments, addresses of the code's own width. */
static bool string_plain(const struct verifier *v)
{
	const struct guest_insn *g = &v->g;
	const struct code_page *p = v->k->page;
	for (unsigned n = 0; n < g->zi.operand_count; n++) {
		if (g->zo[n].type != ZYDIS_OPERAND_TYPE_MEMORY)
			continue;
		ZydisRegister s = g->zo[n].mem.segment;
		if (v->legacy ? !(p->klass.flat >> (s - ZYDIS_REGISTER_ES) & 1) : s == ZYDIS_REGISTER_FS || s == ZYDIS_REGISTER_GS)
			return false;
	}
	return g->zi.address_width == (v->legacy ? 32 : 64);
}

static u8 string_asked(const ZydisDecodedInstruction *zi)
{
	static const u8 ops[] = { STRING_MOVS, STRING_CMPS, 0, STRING_STOS, STRING_LODS, STRING_SCAS };
	unsigned size = zi->operand_width / 8u, arg = size == 8 ? 3 : size / 2;
	if (zi->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE))
		arg |= GATE_REP;
	if (zi->attributes & ZYDIS_ATTRIB_HAS_REPNE)
		arg |= GATE_REPNE;
	return (u8)(arg | (unsigned)ops[(zi->opcode - 0xa4) / 2] << GATE_OP);
}

bool guest_gate(const struct verifier *v)
{
	const struct insn_map *m = &v->k->map[v->k_insn];
	const ZydisDecodedInstruction *zi = &v->g.zi;
	enum gate g = gate_asked(zi, v->g.zo);
	const struct seg_class *c = &v->k->page->klass;
	if (g == GATE_POPF)
		return m->gate == g && m->gate_arg == zi->operand_width / 8u && zi->operand_width == (v->legacy ? 32 : 64) && (!v->legacy || (!c->sp16 && (c->flat >> S_SS & 1)));
	if (g != GATE_STRING)
		return m->gate == g && g != GATE_NONE && !v->legacy && m->gate_arg == (g == GATE_CR3 ? gpr_number(&v->g.zo[1]) : 0);
	u8 arg = string_asked(zi), op = arg >> GATE_OP;
	return m->gate == g && m->gate_arg == arg && string_plain(v) && m->string == (op == STRING_MOVS ? MAP_MOVS : op == STRING_STOS ? MAP_STOS : 0);
}

/* It is the target of the guest's indirect branch. */
bool guest_target(struct verifier *v, const struct path *p, const struct hinsn *h, sym target)
{
	const struct guest_insn *g = &v->g;
	if (!g->known)
		return true;
	const struct touch *load = touched(p, false);
	sym want;
	if (g->kind == G_RET || g->mem >= 0)
		want = load ? load->value : SYM_NONE;
	else
		want = guest_start(v, (unsigned)gpr_number(&g->zo[0]));
	return target == want || verify_bad(v, h->off, "T is not the branch's target");
}
