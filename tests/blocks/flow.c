/* Where control goes: conditional branches ahead, loops with counters, calls and returns in pairs and not,
 * jumps through registers, memory and tables. */
#include "gen.h"

/* ---- branches ahead ------------------------------------------------------------------------------------- */

static void jcc(struct gen *e, i16 label)
{
	unsigned cc = below(e, 16);
	if (pct(e, 50))
		emit_fix(e, (u8[]){ (u8)(0x70 + cc), 0 }, 2, 'r', 1, 1, label, 0);
	else
		emit_fix(e, (u8[]){ 0x0f, (u8)(0x80 + cc), 0, 0, 0, 0 }, 6, 'r', 2, 4, label, 0);
}

static void branch_ahead(struct gen *e)
{
	unit_begin(e);
	i16 label = unit_ahead(e, 6);
	switch (below(e, 10)) {
	case 0: emit_fix(e, (u8[]){ 0xeb, 0 }, 2, 'r', 1, 1, label, 0); break;
	case 1: emit_fix(e, (u8[]){ 0xe9, 0, 0, 0, 0 }, 5, 'r', 1, 4, label, 0); break;
	case 2: /* JRCXZ, LOOP and its kin */
		if (!kept(e, R_CX)) {
			emit_fix(e, (u8[]){ (u8)(0xe0 + below(e, 4)), 0 }, 2, 'r', 1, 1, label, 0);
			e->known[R_CX] = false;
			break;
		}
		/* fall through */
	case 3: /* after a comparison of its own */
		emit(e, (u8[]){ 0x48, 0x39, (u8)(0xc0 | below(e, 64)) }, 3);
		jcc(e, label);
		break;
	case 4: /* two in a row */
		jcc(e, label);
		jcc(e, unit_ahead(e, 4));
		break;
	default: jcc(e, label);
	}
	if (pct(e, 2)) /* into the middle of something */
		e->p->slot[e->p->n_slots - 1].to = below(e, 4);
}

/* ---- loops -------------------------------------------------------------------------------------------------- */

static void loop_close(struct gen *e, unsigned r, i16 head)
{
	u8 rex = (u8)(0x48 | r >> 3), low = r & 7;
	switch (below(e, r == R_CX ? 6 : 4)) {
	case 0: emit(e, (u8[]){ rex, 0xff, (u8)(0xc8 | low) }, 3); break;                /* dec r */
	case 1: emit(e, (u8[]){ rex, 0x83, (u8)(0xe8 | low), 1 }, 4); break;             /* sub r, 1 */
	case 2: emit(e, (u8[]){ rex, 0x83, (u8)(0xc0 | low), 0xff }, 4); break;          /* add r, -1 */
	case 3: emit(e, (u8[]){ (u8)(0x40 | r >> 3), 0xff, (u8)(0xc8 | low) }, 3); break; /* dec r32 */
	default: emit_fix(e, (u8[]){ 0xe2, 0 }, 2, 'r', 1, 1, head, 0); return;          /* loop */
	}
	if (pct(e, 20))
		emit_fix(e, (u8[]){ 0x7f, 0 }, 2, 'r', 1, 1, head, 0); /* jg */
	else if (pct(e, 50))
		emit_fix(e, (u8[]){ 0x75, 0 }, 2, 'r', 1, 1, head, 0); /* jne */
	else
		emit_fix(e, (u8[]){ 0x0f, 0x85, 0, 0, 0, 0 }, 6, 'r', 2, 4, head, 0);
}

static unsigned counter(struct gen *e)
{
	for (;;) {
		unsigned r = pct(e, 40) ? (unsigned)R_CX : below(e, 16);
		if (e->counters >> r & 1 && !kept(e, r))
			return r;
	}
}

static void loop(struct gen *e)
{
	if (e->depth >= 2 || e->n_loops == ARRAY_LEN(e->loop)) {
		branch_ahead(e);
		return;
	}
	unsigned r = counter(e), how = below(e, 100);
	unit_begin(e);
	unsigned first = e->n_units - 1, mine = e->n_loops++;
	load(e, r, how < 70 ? 1 + below(e, 6) : how < 96 || e->depth ? 5 + below(e, e->depth ? 15 : 30) : 100 + below(e, 500));
	e->keep |= 1u << r;
	unsigned depth = e->depth;
	e->depth = e->value[r] > 50 ? 2 : depth + 1; /* long ones are the innermost */
	i16 head = (i16)(UNIT_LABEL + e->n_units);
	body(e, 1 + below(e, 5));
	e->depth = depth;
	e->keep &= ~(1u << r);
	unit_begin(e);
	loop_close(e, r, head);
	e->known[r] = false;
	e->loop[mine].from = (u16)first;
	e->loop[mine].to = (u16)(e->n_units - 1);
}

/* ---- calls, indirect jumps ---------------------------------------------------------------------------------- */

/* One of RAX RCX RDX RBX RSI RDI: no odd encodings. */
static unsigned plain_reg(struct gen *e)
{
	static const u8 regs[] = { R_AX, R_CX, R_DX, R_BX, R_SI, R_DI };
	for (unsigned tries = 0; tries < 20; tries++) {
		unsigned r = regs[below(e, ARRAY_LEN(regs))];
		if (!kept(e, r))
			return r;
	}
	return R_AX;
}

/* Through a register, memory behind one, or RIP-relative memory; reg: FF /2 or /4. */
static void through(struct gen *e, unsigned op, i16 label, i64 to)
{
	unsigned r = pct(e, 60) ? plain_reg(e) : free_reg(e);
	u64 lin = good_target(e, 8);
	switch (below(e, 4)) {
	case 0:
		load_label(e, r, label, to);
		emit(e, (u8[]){ (u8)(0x40 | r >> 3), 0xff, (u8)(0xc0 | op << 3 | (r & 7)) }, 3);
		break;
	case 1:
		r = plain_reg(e);
		poke_label(e, lin, label, to);
		load(e, r, lin);
		emit(e, (u8[]){ 0xff, (u8)(op << 3 | r) }, 2);
		break;
	case 2:
		r = plain_reg(e);
		poke_label(e, lin, label, to);
		load(e, r, lin - 0x40);
		emit(e, (u8[]){ 0xff, (u8)(0x40 | op << 3 | r), 0x40 }, 3);
		break;
	default:
		lin = data_base(e->p->mode, e->p->run[0].window) + (lin & 0xffff);
		poke_label(e, lin, label, to);
		emit_fix(e, (u8[]){ 0xff, (u8)(op << 3 | 5), 0, 0, 0, 0 }, 6, 'r', 2, 4, -1, (i64)lin);
	}
}

static void call(struct gen *e)
{
	if (!e->n_functions) {
		branch_ahead(e);
		return;
	}
	i16 f = e->functions[below(e, e->n_functions)];
	unit_begin(e);
	if (pct(e, 60))
		emit_fix(e, (u8[]){ 0xe8, 0, 0, 0, 0 }, 5, 'r', 1, 4, f, 0);
	else
		through(e, 2, f, 0);
}

static void jump(struct gen *e)
{
	unit_begin(e);
	through(e, 4, unit_ahead(e, 5), pct(e, 2) ? below(e, 3) : 0);
}

static void push_ret(struct gen *e)
{
	unsigned r = free_reg(e);
	unit_begin(e);
	load_label(e, r, unit_ahead(e, 4), 0);
	emit(e, (u8[]){ (u8)(0x40 | r >> 3), (u8)(0x50 | (r & 7)) }, 2);
	emit(e, pct(e, 70) ? (u8[]){ 0xc3, 0 } : (u8[]){ 0xf3, 0xc3 }, 1);
}

/* jmp [table + r * 8], r of 0 to 3 from whatever a register holds. */
static void table(struct gen *e)
{
	unsigned a = plain_reg(e), b = plain_reg(e);
	u64 lin = data_base(e->p->mode, e->p->cpl ? WIN_LOW : WIN_KERN) + 4096 + below(e, 0xf00);
	if (a == b || e->p->n_pokes + 4 > MAX_POKES)
		return;
	unit_begin(e);
	for (unsigned k = 0; k < 4; k++)
		poke_label(e, lin + 8 * k, unit_ahead(e, 5), 0);
	load(e, a, lin);
	if (pct(e, 60)) { /* turns with the loop's counter */
		for (unsigned r = 0; r < 16; r++)
			if (kept(e, r))
				emit(e, (u8[]){ (u8)(0x48 | r >> 3 << 2), 0x89, (u8)(0xc0 | (r & 7) << 3 | b) }, 3);
	}
	emit(e, (u8[]){ 0x83, (u8)(0xe0 | b), 3 }, 3);
	emit(e, (u8[]){ 0xff, 0x24, (u8)(0xc0 | b << 3 | a) }, 3);
	e->known[b] = false;
}

void function(struct gen *e, unsigned k)
{
	e->functions[k] = (i16)e->p->n_slots;
	e->keep = e->counters;
	e->depth = 2; /* no loops */
	body(e, 1 + below(e, 3));
	e->depth = 0;
	e->keep = 0;
	unit_begin(e);
	switch (below(e, 8)) {
	case 0: emit(e, (u8[]){ 0xc2, (u8)(8 * below(e, 3)), 0 }, 3); break; /* ret 8 */
	case 1: emit(e, (u8[]){ 0xf3, 0xc3 }, 2); break;
	default: emit(e, (u8[]){ 0xc3 }, 1);
	}
	e->n_functions = k + 1;
}

void flow(struct gen *e)
{
	switch (below(e, 12)) {
	case 0: case 1: case 2: case 3: branch_ahead(e); break;
	case 4: case 5: case 6: loop(e); break;
	case 7: case 8: call(e); break;
	case 9: jump(e); break;
	case 10: push_ret(e); break;
	default: table(e);
	}
}
