/* Programs that change themselves: immediates, opcodes, whole instructions; the very next one, later ones,
 * ones behind in a loop; through the page that they run in or through another window on it. */
#include "gen.h"

/* What is changed: bytes that make sense before and after. */
struct victim { u8 len, bytes[8], at, size; u64 other; };

static struct victim pick(struct gen *e)
{
	unsigned r = free_reg(e), s = below(e, 16);
	u8 rex = (u8)(0x48 | r >> 3);
	u32 imm = (u32)value_int(e->g, 32);
	struct victim v = { 0 };
	switch (below(e, 6)) {
	case 0: /* mov r, imm32: the immediate */
		v = (struct victim){ 6, { (u8)(0x40 | r >> 3), (u8)(0xb8 | (r & 7)) }, 2, 4, value_int(e->g, 32) };
		st32(v.bytes + 2, imm);
		break;
	case 1: /* op r, imm32: one byte of it */
		v = (struct victim){ 7, { rex, 0x81, (u8)(0xc0 | below(e, 8) << 3 | (r & 7)) }, (u8)(3 + below(e, 4)), 1, rnd(e->g) & 0xff };
		st32(v.bytes + 3, imm);
		break;
	case 2: /* op r, imm8: which op */
		v = (struct victim){ 4, { rex, 0x83, (u8)(0xc0 | below(e, 8) << 3 | (r & 7)), (u8)imm }, 2, 1,
				     0xc0 | below(e, 8) << 3 | (r & 7) };
		break;
	case 3: /* op r, s: which op */
		v = (struct victim){ 3, { (u8)(rex | s >> 3 << 2), (u8)(1 + 8 * below(e, 8)), (u8)(0xc0 | (s & 7) << 3 | (r & 7)) }, 1, 1,
				     1 + 8 * below(e, 8) };
		break;
	case 4: /* a long NOP: two INCs and a short one */
		v = (struct victim){ 8, { 0x0f, 0x1f, 0x84 }, 0, 8, 0 };
		v.other = rex | 0xff00u | (0xc0u | (r & 7)) << 16 | (u64)rex << 24 | 0xffull << 32 | (u64)(0xc8 | (r & 7)) << 40 | 0x9066ull << 48;
		break;
	default: /* mov r, imm32: another register */
		v = (struct victim){ 5, { (u8)(0xb8 | (r & 7)) }, 0, 1, 0xb8 | (r & 7) };
		if ((r & 7) != R_SP && !kept(e, r & 7) && !kept(e, (r & 7) ^ 1) && ((r & 7) ^ 1) != R_SP)
			v.other ^= 1;
		else
			v = (struct victim){ 2, { 0xeb, 0x00 }, 0, 2, 0x9066 };
	}
	return v;
}

static void victim(struct gen *e, const struct victim *v)
{
	unit_begin(e);
	emit(e, v->bytes, v->len);
	for (unsigned r = 0; r < 16; r++)
		e->known[r] &= r == R_SP || pct(e, 90);
}

/* The window through which the code is written: mostly one that lets it. */
static i64 alias(struct gen *e)
{
	enum window run = e->p->run[0].window, w = run;
	unsigned page = (e->p->at + 60u) >> 12;
	if (pct(e, 85) && code_letters[run][page % N_CODE_LETTERS] != 'X')
		w = e->p->cpl ? (run == WIN_LOW ? WIN_HIGH : WIN_LOW) : WIN_HIGH;
	else if (pct(e, 30))
		w = e->p->cpl ? (enum window)below(e, 2) : (enum window)below(e, 3);
	return (i64)(code_base(e->p->mode, w) - code_base(e->p->mode, run));
}

/* Stores v->other there; the slot whose label is to be the victim's. */
static unsigned store(struct gen *e, const struct victim *v)
{
	i64 to = v->at + alias(e);
	unsigned r = free_reg(e), s = free_reg(e), at;
	unit_begin(e);
	if (pct(e, 35) && v->size <= 4 && to == v->at) { /* mov [rip + d], imm */
		u8 op[10] = { v->size == 1 ? 0xc6 : 0xc7, 0x05 };
		unsigned n = 2;
		if (v->size == 2)
			op[0] = 0x66, op[1] = 0xc7, op[2] = 0x05, n = 3;
		memcpy(op + n + 4, &v->other, v->size);
		at = e->p->n_slots;
		emit_fix(e, op, n + 4 + v->size, 'r', n, 4, 0, to);
		return at;
	}
	while (s == r)
		s = (s + 1) % 16 == R_SP || kept(e, (s + 1) % 16) ? free_reg(e) : (s + 1) % 16;
	load(e, s, v->other);
	at = e->p->n_slots;
	load_label(e, r, 0, to);
	u8 rex = (u8)(0x40 | s >> 3 << 2 | r >> 3 | (v->size == 8 ? 8 : 0)), mod = (u8)(0x40 | (s & 7) << 3 | (r & 7));
	u8 op = (u8)((pct(e, 70) ? 0x88 : 0x86) | (v->size > 1)); /* mov or xchg [r + 0], s */
	u8 bytes[8];
	unsigned n = 0;
	if (v->size == 2)
		bytes[n++] = 0x66;
	bytes[n++] = rex;
	bytes[n++] = op;
	bytes[n++] = mod;
	if ((r & 7) == 4)
		bytes[n++] = 0x24;
	bytes[n++] = 0;
	emit(e, bytes, n);
	e->known[s] = false;
	return at;
}

void self_modify(struct gen *e)
{
	struct victim v = pick(e);
	unsigned between = pct(e, 40) ? 0 : below(e, 3);
	if (e->depth && pct(e, 40)) { /* behind: the next turn of the loop runs it */
		victim(e, &v);
		i16 label = (i16)(UNIT_LABEL + e->n_units - 1);
		body(e, between);
		unsigned at = store(e, &v);
		if (!e->full)
			e->p->slot[at].label = label;
		return;
	}
	unsigned at = store(e, &v);
	body(e, between);
	victim(e, &v);
	if (!e->full)
		e->p->slot[at].label = (i16)(UNIT_LABEL + e->n_units - 1);
}
