/* What a block may read and write beside the guest's memory: the space (context, ok slots, windows, page table, jump
 * cache), struct cpu, its own constants. Each place for its known ends, and nothing else. */
#include <string.h>

#include "bt/verify.h"

/* ---- the space: context, ok slots, page table ---------------------------------------------------------------- */

static const struct { i32 at; u8 slot; } slots[] = {
	{ CTX(home11), SL_HOME11 }, { CTX(home15), SL_HOME15 }, { CTX(save_rax), SL_RAX }, { CTX(save_rcx), SL_RCX },
	{ CTX(save_v), SL_V }, { CTX(save_t), SL_T }, { CTX(target), SL_TARGET }, { CTX(gs_base), SL_GS }, { CTX(kernel_gs_base), SL_KERNEL_GS },
};
static int slot_at(i64 disp)
{
	for (unsigned k = 0; k < ARRAY_LEN(slots); k++)
		if (slots[k].at == disp)
			return slots[k].slot;
	for (unsigned k = 0; k < N_SLOTS - SL_GROUP; k++)
		if (disp == CTX(group) + 8 * (i64)k)
			return SL_GROUP + (int)k;
	return -1;
}

/* A load of 8 bytes under 67h: a page-table entry. */
static bool table_load(struct verifier *v, const struct path *p, const struct hinsn *h, sym *value)
{
	const ZydisDecodedOperand *o = hinsn_memory(h);
	struct syms *s = &v->syms;
	if (o->size != 64 || writes_operand(o))
		return verify_bad(v, h->off, "the page table is only read, and by whole entries");
	if (o->mem.base == ZYDIS_REGISTER_NONE && o->mem.index == ZYDIS_REGISTER_NONE) {
		u32 at = (u32)o->mem.disp.value;
		if (at & 7)
			return verify_bad(v, h->off, "part of an entry");
		/* The same place is an entry for loads and, of another address, for stores: which it is here
		 * the access will say. */
		*value = sym_atom(s, AT_ENTRY_AT, 2, ++s->serial, at);
		return true;
	}
	if (o->mem.base != ZYDIS_REGISTER_NONE || o->mem.scale != 8 || ZydisRegisterGetClass(o->mem.index) != ZYDIS_REGCLASS_GPR32)
		return verify_bad(v, h->off, "a table entry that is not [index * 8]");
	const struct atom *index = sym_single(s, path_reg(v, p, o->mem.index));
	if (!index || index->kind != AT_ROR || index->n != 12)
		return verify_bad(v, h->off, "a table entry by what is no page number");
	u32 disp = (u32)o->mem.disp.value;
	if (disp != 0 && disp != STORE_HALF)
		return verify_bad(v, h->off, "a table entry in neither half");
	*value = sym_atom(s, AT_ENTRY, disp == STORE_HALF, index->of, ++s->serial);
	return true;
}

/* Of the jump cache: a tag to compare with, or, once that is known to be right, the host's address. */
bool path_jump_load(struct verifier *v, const struct path *p, const struct hinsn *h, sym *value)
{
	const ZydisDecodedOperand *o = hinsn_memory(h);
	struct syms *s = &v->syms;
	sym index = path_reg(v, p, o->mem.index);
	const struct atom *a = sym_single(s, index), *of;
	if (h->zi.address_width != 64 || o->size != 64 || writes_operand(o) || o->mem.base != ZYDIS_REGISTER_NONE || o->mem.scale != 8 || !a || a->kind != AT_LOW || a->n != 16 ||
	    !(of = sym_single(s, a->of)) || of->kind != AT_ROR || of->n != 2)
		return verify_bad(v, h->off, "a computed address in the space that is no place of the jump cache");
	if (o->mem.disp.value == JUMP_TAG_AT && h->zi.mnemonic == ZYDIS_MNEMONIC_CMP) {
		*value = index;
		return true;
	}
	if (o->mem.disp.value != JUMP_HOST_AT || (h->zi.mnemonic != ZYDIS_MNEMONIC_MOV && h->zi.mnemonic != ZYDIS_MNEMONIC_JMP) || !path_fact(v, p, FACT_TAG, of->of, index))
		return verify_bad(v, h->off, "the jump cache, but not for an address that is known to be in it");
	*value = sym_atom(s, AT_JUMP, 0, of->of, 0);
	return true;
}

/* The value of the operand gs:[...] that is read. */
bool path_space_load(struct verifier *v, struct path *p, const struct hinsn *h, sym *value)
{
	const ZydisDecodedOperand *o = hinsn_memory(h);
	i64 disp = o->mem.disp.value;
	if (h->zi.address_width == 32)
		return table_load(v, p, h, value);
	if (o->mem.base != ZYDIS_REGISTER_NONE || o->mem.index != ZYDIS_REGISTER_NONE)
		return path_jump_load(v, p, h, value);
	int n = slot_at(disp);
	i64 limit = disp - CTX(limit);
	if (o->size == 64 && limit >= 0 && limit < (i64)sizeof(v->b->ctx->limit) && !(limit & 7))
		*value = sym_const(&v->syms, limit_value((unsigned)limit / 8));
	else if (o->size == 16 && disp == CTX(flags)) {
		*value = sym_fresh(&v->syms);
		p->loads_flags = true;
	} else if (o->size == 8 && (disp == CTX(flags) || disp == CTX(flags) + 1))
		*value = sym_fresh(&v->syms);
	else if (o->size == 64 && disp >= WINDOW_AT && disp < WINDOW_AT + 8 * N_WINDOWS && !(disp & 7))
		*value = sym_atom(&v->syms, AT_WINDOW, (unsigned)(disp - WINDOW_AT) / 8, SYM_NONE, 0);
	else if (o->size == 64 && n >= 0)
		*value = p->slot[n];
	else if ((n == SL_HOME11 || n == SL_HOME15) && o->size < 64)
		*value = o->size == 32 ? sym_low(&v->syms, p->slot[n], 32) : sym_fresh(&v->syms);
	else if (o->size == 64 && disp == CTX(fs_base))
		*value = sym_atom(&v->syms, AT_SEGMENT, S_FS, SYM_NONE, 0);
	else if (o->size == 64 && disp == CTX(cpu))
		*value = sym_atom(&v->syms, AT_CPU, 0, SYM_NONE, 0);
	else if (o->size == 64 && (disp == CTX(gs_ac[0]) || disp == CTX(gs_ac[1])))
		*value = sym_atom(&v->syms, AT_SPACE, disp == CTX(gs_ac[1]), SYM_NONE, 0);
	else if (v->legacy && o->size == 32 && disp >= CTX(seg_base) && disp < CTX(seg_base) + 64 && !((disp - CTX(seg_base)) & 7))
		*value = sym_atom(&v->syms, AT_SEGMENT, 32 + (unsigned)(disp - CTX(seg_base)) / 8, SYM_NONE, 0);
	else if (v->legacy && ((o->size == 64 && disp >= CTX(seg_end) && disp < CTX(seg_end) + 128 && !((disp - CTX(seg_end)) & 7)) || (o->size == 32 && disp == CTX(target))))
		*value = sym_fresh(&v->syms);
	else if ((o->size == 64 && (disp == CTX(tsc_offset) || disp == CTX(tsc_aux))) || (o->size == 32 && disp == CTX(ac)))
		*value = sym_fresh(&v->syms);
	else if (o->size == 32 && (disp == CTX(units_off) || disp == CTX(x87_off) || (disp >= OK_AT && disp < OK_AT + (i64)N_OK * 4 && !(disp & 3))))
		*value = sym_atom(&v->syms, AT_WORD, 0, SYM_NONE, (u32)disp);
	else
		return verify_bad(v, h->off, "reads %u bits at gs:[%ld], which is nothing that a block may read", o->size, (long)disp);
	return true;
}

static bool x87_store(struct verifier *v, struct path *p, const struct hinsn *h, i64 disp);

bool path_space_store(struct verifier *v, struct path *p, const struct hinsn *h)
{
	const ZydisDecodedOperand *o = hinsn_memory(h), *from = &h->zo[1];
	i64 disp = o->mem.disp.value;
	if (v->root == ROOT_INSN && guest_is_own(v, h)) { /* a register at home */
		sym *home = &p->slot[slot_at(disp)];
		u64 by = from->type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? from->imm.value.u : 0;
		bool sum = o->size == 64 && from->type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
		if (sum && h->zi.mnemonic == ZYDIS_MNEMONIC_ADD)
			*home = sym_add_const(&v->syms, *home, by);
		else if (sum && h->zi.mnemonic == ZYDIS_MNEMONIC_SUB)
			*home = sym_add_const(&v->syms, *home, -by);
		else if (o->size == 64 && h->zi.mnemonic == ZYDIS_MNEMONIC_INC)
			*home = sym_add_const(&v->syms, *home, 1);
		else if (o->size == 64 && h->zi.mnemonic == ZYDIS_MNEMONIC_DEC)
			*home = sym_add_const(&v->syms, *home, ~0ull);
		else
			*home = sym_fresh(&v->syms);
		return true;
	}
	bool or_target = h->zi.mnemonic == ZYDIS_MNEMONIC_OR && disp == CTX(target) && h->zo[1].type == ZYDIS_OPERAND_TYPE_REGISTER;
	if (h->zi.mnemonic != ZYDIS_MNEMONIC_MOV && !or_target)
		return verify_bad(v, h->off, "writes to the space by another way than MOV");
	if (h->zi.address_width != 64 || o->mem.base != ZYDIS_REGISTER_NONE || o->mem.index != ZYDIS_REGISTER_NONE)
		return verify_bad(v, h->off, "writes to a computed address in the space");
	if (o->size == 32 && disp == CTX(exit) && from->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
		p->exit = (u32)from->imm.value.u;
		p->exit_set = true;
		p->foreign_exit = false;
		return true;
	}
	if (o->size == 32 && disp == CTX(ac) && from->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && verify_cpl0(v) &&
	    ((u32)from->imm.value.u == 0 || (u32)from->imm.value.u == FL_AC)) {
		p->dirty = true;
		p->ac = from->imm.value.u != 0;
		return true;
	}
	if (o->size == 16 && disp == CTX(flags) && gpr_number(from) == RAX) {
		p->ctx_flags = p->packing == 2 && p->reg[RAX] == p->packed;
		p->kept = true;
		return true;
	}
	if (disp == CTX(x87_last) || disp == CTX(x87_seg) || disp == CTX(fdp))
		return x87_store(v, p, h, disp);
	int n = slot_at(disp);
	if ((n == SL_GS || n == SL_KERNEL_GS) && !verify_cpl0(v))
		return verify_bad(v, h->off, "changes a GS base outside of the kernel");
	bool imm = from->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && (n == SL_HOME11 || n == SL_HOME15);
	if (n >= 0 && o->size == 64 && imm) {
		p->slot[n] = sym_const(&v->syms, from->imm.value.u);
		return true;
	}
	if (n < 0 || o->size != 64 || gpr_number(from) < 0)
		return verify_bad(v, h->off, "writes %u bits at gs:[%ld], which is nothing that a block may write", o->size, (long)disp);
	p->slot[n] = or_target ? sym_fresh(&v->syms) : p->reg[gpr_number(from)];
	return true;
}

/* What x87.c keeps of the instruction that has just run. */
static bool x87_store(struct verifier *v, struct path *p, const struct hinsn *h, i64 disp)
{
	const ZydisDecodedOperand *o = hinsn_memory(h), *from = &h->zo[1];
	u16 fop = v->root == ROOT_INSN ? v->k->map[v->k_insn].fop : 0;
	bool imm = from->type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
	u64 value = imm ? from->imm.value.u : 0;
	if (h->zi.mnemonic != ZYDIS_MNEMONIC_MOV || o->size != (disp == CTX(fdp) ? 64 : 32) || !(fop & FOP_X87) || ((v->g.known || v->g.x87) && !p->own))
		return verify_bad(v, h->off, "x87 pointers that are not the instruction's to write");
	if (disp == CTX(x87_last)) {
		p->x87 |= X87_LAST;
		return (imm && (u32)value == exit_id(v->k->index, v->k_insn, X_INSN)) || verify_bad(v, h->off, "FIP of another instruction");
	}
	if (disp == CTX(x87_seg)) {
		p->x87 |= X87_SEG;
		return (imm && (fop & FOP_MEM) && value == (8u | (fop >> FOP_SEG & 7))) || verify_bad(v, h->off, "FDS of another segment");
	}
	p->x87 |= X87_FDP;
	sym s = imm ? sym_const(&v->syms, value) : gpr_number(from) >= 0 ? p->reg[gpr_number(from)] : SYM_NONE;
	return !(v->g.known || v->g.x87) || s == guest_offset(v) || verify_bad(v, h->off, "FDP that is not the operand's offset");
}

/* WRGSBASE: to the space that goes with ctx.ac. */
bool path_space_change(struct verifier *v, struct path *p, const struct hinsn *h)
{
	sym to = p->reg[gpr_number(&h->zo[0])];
	const struct atom *a = sym_single(&v->syms, to);
	if (!a || a->kind != AT_SPACE || !verify_cpl0(v) || h->zo[0].size != 64)
		return verify_bad(v, h->off, "a change of the space to what is none");
	if (!path_fact(v, p, FACT_NOT_ZERO, to, 0))
		return verify_bad(v, h->off, "a change of the space to one that may not be there");
	if (!p->dirty || p->ac != a->n)
		return verify_bad(v, h->off, "a change of the space that ctx.ac does not say");
	p->space_set = true;
	for (unsigned n = 0; n < p->n_facts;) /* entries of the other space */
		if (p->facts[n].kind == FACT_PRESENT)
			p->facts[n] = p->facts[--p->n_facts];
		else
			n++;
	return true;
}

/* ---- struct cpu ------------------------------------------------------------------------------------------------- */

#define CPU(field) offsetof(struct cpu, field)
enum { CLASS_EVENTS = 1 << 30, CLASS_EVENTS_NOT = 1 << 29 }; /* class_if_events(), and all others */
static const struct { u32 at; u16 size; u16 mnemonic; u32 imm; u16 guest; bool cpl0; } of_cpu[] = {
	{ CPU(rflags), 32, ZYDIS_MNEMONIC_AND, ~(u32)FL_IF, ZYDIS_MNEMONIC_CLI, true },
	{ CPU(event_mask), 32, ZYDIS_MNEMONIC_AND, CLASS_EVENTS_NOT, ZYDIS_MNEMONIC_CLI, true },
	{ CPU(events), 32, ZYDIS_MNEMONIC_CMP, 0, ZYDIS_MNEMONIC_STI, true },
	{ CPU(rflags), 32, ZYDIS_MNEMONIC_OR, FL_IF, ZYDIS_MNEMONIC_STI, true },
	{ CPU(event_mask), 32, ZYDIS_MNEMONIC_OR, CLASS_EVENTS, ZYDIS_MNEMONIC_STI, true },
	{ CPU(rflags), 64, ZYDIS_MNEMONIC_MOV, 0, ZYDIS_MNEMONIC_PUSHFQ, false },
	{ CPU(rflags), 32, ZYDIS_MNEMONIC_TEST, FL_DF, 0, false },
	{ CPU(rflags), 32, ZYDIS_MNEMONIC_AND, ~(u32)FL_DF, ZYDIS_MNEMONIC_CLD, false },
	{ CPU(rflags), 32, ZYDIS_MNEMONIC_OR, FL_DF, ZYDIS_MNEMONIC_STD, false },
};

static u32 immediate_of(const struct verifier *v, u32 imm)
{
	u32 events = class_if_events(&v->k->page->klass);
	return imm == CLASS_EVENTS ? events : imm == CLASS_EVENTS_NOT ? ~events : imm;
}

u32 path_cpu_asked(const struct verifier *v)
{
	u32 set = 0;
	for (unsigned k = 0; k < ARRAY_LEN(of_cpu); k++)
		if (of_cpu[k].guest ? of_cpu[k].guest == v->g.zi.mnemonic : v->g.kind == G_STRING)
			set |= 1u << k;
	return v->g.kind == G_SYSTEM && v->g.zi.mnemonic == ZYDIS_MNEMONIC_MOV ? 1u << ARRAY_LEN(of_cpu) : set;
}

bool path_at_cpu(struct verifier *v, const struct path *p, const struct hinsn *h, u64 *at)
{
	const struct expr *x = &v->syms.exprs[path_address(v, p, hinsn_memory(h))];
	*at = x->konst;
	return x->n == 1 && x->times[0] == 1 && v->syms.atoms[x->atom[0]].kind == AT_CPU;
}

bool path_cpu_access(struct verifier *v, struct path *p, const struct hinsn *h, u64 at)
{
	const ZydisDecodedOperand *o = hinsn_memory(h), *other = &h->zo[1 - h->mem];
	bool write = writes_operand(o);
	if (o->mem.index != ZYDIS_REGISTER_NONE || (h->zi.attributes & ZYDIS_ATTRIB_HAS_SEGMENT))
		return verify_bad(v, h->off, "struct cpu by an odd address");
	bool lets_in = h->zi.mnemonic == ZYDIS_MNEMONIC_OR && !(other->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && (u32)other->imm.value.u == FL_DF);
	if (lets_in && !path_fact(v, p, FACT_ZERO, sym_low(&v->syms, p->events, 32), 0))
		return verify_bad(v, h->off, "lets interrupts in while one may be pending");
	if (write)
		p->dirty = true;
	for (unsigned k = 0; k < ARRAY_LEN(of_cpu); k++) {
		if (of_cpu[k].at != at || of_cpu[k].size != o->size || of_cpu[k].mnemonic != h->zi.mnemonic || (of_cpu[k].cpl0 && !verify_cpl0(v)) ||
		    (v->g.known && (of_cpu[k].guest ? v->g.zi.mnemonic != of_cpu[k].guest : v->g.kind != G_STRING)))
			continue;
		p->cpu_done |= 1u << k;
		if (h->zi.mnemonic == ZYDIS_MNEMONIC_MOV ? !write : other->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && (u32)other->imm.value.u == immediate_of(v, of_cpu[k].imm))
			return true;
	}
	p->cpu_done |= 1u << ARRAY_LEN(of_cpu);
	bool zx = h->zi.mnemonic == ZYDIS_MNEMONIC_MOVZX, of_system = !v->g.known || v->g.kind == G_SYSTEM;
	if (at == CPU(cr2) && o->size == 64 && h->zi.mnemonic == ZYDIS_MNEMONIC_MOV && !write && verify_cpl0(v) && of_system &&
	    (!v->g.known || v->g.zo[1].reg.value == ZYDIS_REGISTER_CR2))
		return true;
	for (unsigned s = S_ES; s <= S_GS; s++)
		if (at == CPU(seg) + s * sizeof(struct segment) + offsetof(struct segment, sel) && o->size == 16 && (zx || h->zi.mnemonic == ZYDIS_MNEMONIC_MOV) &&
		    !write && (!v->g.known || (v->g.kind == G_SYSTEM && ZydisRegisterGetId(v->g.zo[1].reg.value) == (int)s)))
			return true;
	return verify_bad(v, h->off, "an access to struct cpu that no instruction asks for");
}

/* The constant of 8 bytes that it names lies out of line and is no code. */
bool path_constant(struct verifier *v, const struct hinsn *h, sym *value)
{
	const struct block *k = v->k;
	u64 at = (u64)verify_pc(v, h->off) + h->len + (u64)hinsn_memory(h)->mem.disp.value - (u64)k->cold;
	if (at + 8 > k->cold_bytes || at > k->cold_bytes)
		return false;
	u8 *owned = v->owned + v->places - k->cold_bytes + at;
	for (unsigned n = 0; n < 8; n++)
		if (owned[n] == 1)
			return false;
	memset(owned, 2, 8); /* not to become code */
	*value = sym_const(&v->syms, ld64(k->cold + at));
	return true;
}
