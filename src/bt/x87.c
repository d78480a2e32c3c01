/* x87 and MMX in translated code. Their registers are the host's own, so the instructions run as
 * they are; what is kept beside them is what an x87 instruction leaves in FOP, FIP, FCS, FDP and
 * FDS, which in the host's registers speak of the cache. SDM vol. 1 8.1.8, 8.1.9.
 *
 *  1. cpu->fop, fip, fcs, fdp, fds are right outside of translated code: whoever comes out of it
 *     calls x87_resolve before anything else.
 *  2. Within a block they follow from where it is left (insn_map.fop); of the blocks before that
 *     one, ctx.x87_last and x87_seg tell, which the last instruction of its kind before each
 *     branch stores. ctx.fdp is always right.
 *  3. An instruction of the interpreter's (FOP_INTERP) has left through 1: what is before it in
 *     its block is settled, whatever it did itself (FNINIT, FRSTOR).
 *  4. All of these are stored after the instruction has run: one that faults leaves them alone.
 *
 * A pending unmasked exception makes the host's next waiting instruction fault, before its memory
 * operand is touched; the interpreter then raises #MF or FERR#. Where the memory path has no
 * page for the operand, the interpreter waits before it looks for one. */
#include "bt/tr.h"

bool is_x87(const struct tins *i)
{
	return i->zi.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && i->zi.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
	       i->zi.opcode >= 0xd8 && i->zi.opcode <= 0xdf;
}

u16 x87_fop(const struct tins *i)
{
	switch (i->zi.mnemonic) { /* control instructions leave it alone */
	case ZYDIS_MNEMONIC_FLDCW: case ZYDIS_MNEMONIC_FNSTCW: case ZYDIS_MNEMONIC_FNSTSW: case ZYDIS_MNEMONIC_FNCLEX:
	case ZYDIS_MNEMONIC_FENI8087_NOP: case ZYDIS_MNEMONIC_FDISI8087_NOP: case ZYDIS_MNEMONIC_FSETPM287_NOP:
		return 0;
	default:
		break;
	}
	if (!is_x87(i))
		return 0;
	unsigned fop = FOP_X87 | (i->zi.opcode & 7u) << 8 | (unsigned)i->zi.raw.modrm.mod << 6 |
		       (unsigned)i->zi.raw.modrm.reg << 3 | i->zi.raw.modrm.rm;
	const ZydisDecodedOperand *m = memory_of(i);
	if (m) {
		ZydisRegister s = m->mem.segment;
		unsigned seg = s >= ZYDIS_REGISTER_ES && s <= ZYDIS_REGISTER_GS ? (unsigned)(s - ZYDIS_REGISTER_ES) : S_DS;
		fop |= FOP_MEM | seg << FOP_SEG;
	}
	return (u16)fop;
}

/* After the instruction itself. */
bool x87_after(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	u16 fop = i->fop, later = 0;
	if (!fop)
		return true;
	t->map[k].fop = fop;
	for (unsigned n = k + 1; n < t->n && t->ins[n].kind != K_JCC; n++)
		later |= t->ins[n].fop;
	if (!(later & FOP_X87))
		e_ctx_imm(e, M_CTX(x87_last), exit_id(t->index, k, X_INSN));
	if (!(fop & FOP_MEM))
		return true;
	if (!(later & FOP_MEM))
		e_ctx_imm(e, M_CTX(x87_seg), 8 | (fop >> FOP_SEG & 7));
	if (t->page->mode != CODE64)
		return legacy_offset(t, i, M_CTX(fdp));
	struct ea a;
	return operand_ea(t, i, memory_of(i), &a) && mem_offset(t, &a, M_CTX(fdp));
}

static void operation(const struct bt *b, const struct block *k, unsigned n)
{
	struct cpu *c = b->cpu;
	c->fop = k->map[n].fop & FOP_OPCODE;
	c->fip = rip_of(b, k->lin + k->map[n].guest);
	c->fcs = c->seg[S_CS].sel;
}

void x87_resolve(struct bt *b, u32 id)
{
	struct cpu *c = b->cpu;
	struct ctx *x = b->ctx;
	const struct block *k = b->block_list[id >> 10];
	enum exit_kind kind = id & 15;
	/* A block that was left by a branch has stored what is to be known of it; and a return may
	 * have come from elsewhere in between. */
	bool within = kind == X_INSN || kind == X_FAULT || kind == X_KICK || kind == X_GROUP || kind == X_WINDOW;
	bool operated = false, data = false;
	c->fdp = x->fdp;
	for (unsigned n = within ? id >> 4 & 63 : 0; n-- > 0 && !data;) {
		u16 fop = k->map[n].fop;
		if (fop == FOP_INTERP)
			operated = data = true;
		if ((fop & FOP_X87) && !operated) {
			operation(b, k, n);
			operated = true;
		}
		if (fop & FOP_MEM) {
			c->fds = c->seg[fop >> FOP_SEG & 7].sel;
			data = true;
		}
	}
	if (!operated && x->x87_last)
		operation(b, b->block_list[x->x87_last >> 10], x->x87_last >> 4 & 63);
	if (!data && x->x87_seg)
		c->fds = c->seg[x->x87_seg & 7].sel;
	x->x87_last = x->x87_seg = 0;
}
