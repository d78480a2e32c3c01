/* A random program: what it is (privilege, handlers, where it lies), its instructions, its runs. */
#include "gen.h"
#include "world.h"

/* ---- slots and units -------------------------------------------------------------------------------------- */

void unit_begin(struct gen *e)
{
	if (e->n_units == MAX_UNITS) {
		e->full = true;
		return;
	}
	e->unit[e->n_units++] = e->p->n_slots;
}

struct slot *emit(struct gen *e, const void *bytes, unsigned n)
{
	static struct slot none;
	if (e->p->n_slots == MAX_SLOTS || !n) {
		e->full |= n != 0;
		return &none;
	}
	struct slot *s = &e->p->slot[e->p->n_slots++];
	memset(s, 0, sizeof(*s));
	memcpy(s->bytes, bytes, n);
	s->len = (u8)n;
	s->label = -1;
	return s;
}

struct slot *emit_fix(struct gen *e, const void *bytes, unsigned n, u8 kind, unsigned at, unsigned size, i16 label, i64 to)
{
	struct slot *s = emit(e, bytes, n);
	s->fix = kind;
	s->fix_at = (u8)at;
	s->fix_size = (u8)size;
	s->label = label;
	s->to = to;
	return s;
}

void load(struct gen *e, unsigned r, u64 v)
{
	u8 b[10] = { (u8)(0x48 | r >> 3), (u8)(0xb8 | (r & 7)) };
	if (v >> 32 == 0 && pct(e, 80)) {
		b[0] = 0x40 | (u8)(r >> 3);
		st32(b + 2, (u32)v);
		if (r < 8)
			emit(e, b + 1, 5);
		else
			emit(e, b, 6);
	} else if ((u64)(i64)(i32)v == v && pct(e, 80)) {
		b[1] = 0xc7;
		b[2] = (u8)(0xc0 | (r & 7));
		st32(b + 3, (u32)v);
		emit(e, b, 7);
	} else {
		st64(b + 2, v);
		emit(e, b, 10);
	}
	e->known[r] = true;
	e->value[r] = v;
}

void load_label(struct gen *e, unsigned r, i16 label, i64 to)
{
	if (pct(e, 50) && (u64)(to + 0x40000000) < 0x80000000u) /* lea r, [rip + d] */
		emit_fix(e, (u8[]){ (u8)(0x48 | r >> 3 << 2), 0x8d, (u8)(5 | (r & 7) << 3), 0, 0, 0, 0 }, 7, 'r', 3, 4, label, to);
	else
		emit_fix(e, (u8[10]){ (u8)(0x48 | r >> 3), (u8)(0xb8 | (r & 7)) }, 10, 'a', 2, 8, label, to);
	e->known[r] = false;
}

unsigned free_reg(struct gen *e)
{
	for (;;) {
		unsigned r = below(e, 16);
		if (r != R_SP && !kept(e, r))
			return r;
	}
}

void poke_bytes(struct gen *e, u64 lin, const void *bytes, unsigned n)
{
	if (e->p->n_pokes == MAX_POKES)
		return;
	struct poke *q = &e->p->poke[e->p->n_pokes++];
	memset(q, 0, sizeof(*q));
	q->lin = lin;
	q->len = (u8)MIN(n, sizeof(q->bytes));
	q->label = -1;
	memcpy(q->bytes, bytes, q->len);
}

void poke_label(struct gen *e, u64 lin, i16 label, i64 to)
{
	u64 zero = 0;
	unsigned n = e->p->n_pokes;
	poke_bytes(e, lin, &zero, 8);
	if (e->p->n_pokes > n) {
		e->p->poke[n].label = label;
		e->poke_unit[n] = (u16)(e->n_units - 1);
		e->p->poke[n].to = to;
	}
}

i16 unit_ahead(struct gen *e, unsigned most) { return (i16)(UNIT_LABEL + e->n_units + below(e, most)); }

/* ---- units to slots ------------------------------------------------------------------------------------------ */

static unsigned unit_of_slot(const struct gen *e, unsigned slot)
{
	unsigned u = e->n_units;
	while (u && e->unit[u - 1] > slot)
		u--;
	return u ? u - 1 : 0;
}

static i16 label_of(const struct gen *e, i16 label, unsigned from)
{
	if (label < UNIT_LABEL)
		return label;
	unsigned u = (unsigned)(label - UNIT_LABEL);
	/* Not into a loop past its counter. */
	for (unsigned k = 0; k < e->n_loops; k++)
		if (from < e->loop[k].from && u > e->loop[k].from && u <= e->loop[k].to)
			u = e->loop[k].from;
	return (i16)(u < e->n_units ? e->unit[u] : e->p->n_slots);
}

static void resolve(struct gen *e)
{
	struct program *p = e->p;
	for (unsigned k = 0; k < p->n_slots; k++)
		if (p->slot[k].fix)
			p->slot[k].label = label_of(e, p->slot[k].label, unit_of_slot(e, k));
	for (unsigned k = 0; k < p->n_pokes; k++)
		p->poke[k].label = label_of(e, p->poke[k].label, e->poke_unit[k]);
}

/* A short branch that is too far becomes a long one, or a NOP where there is none (LOOP). */
static void lengthen(struct program *p)
{
	u32 off[MAX_SLOTS + 1];
	for (bool again = true; again;) {
		again = false;
		program_offsets(p, off);
		for (unsigned k = 0; k < p->n_slots; k++) {
			struct slot *s = &p->slot[k];
			if (s->fix != 'r' || s->fix_size != 1)
				continue;
			i64 d = (i64)(label_address(p, off, s->label, s->to) - code_base(p->mode, p->run[0].window)) - (off[k] + s->len);
			if (d == (i8)d)
				continue;
			again = true;
			if ((s->bytes[0] & 0xf0) == 0x70) {
				s->bytes[1] = s->bytes[0] + 0x10;
				s->bytes[0] = 0x0f;
				s->fix_at = 2;
			} else if (s->bytes[0] == 0xeb) {
				s->bytes[0] = 0xe9;
			} else {
				*s = (struct slot){ .len = 1, .bytes = { 0x90 }, .label = -1 };
				break;
			}
			s->fix_size = 4;
			s->len = (u8)(s->fix_at + 4);
		}
	}
}

/* ---- the program as a whole ------------------------------------------------------------------------------- */

void body(struct gen *e, unsigned units)
{
	for (unsigned k = 0; k < units && !e->full; k++) {
		unsigned how = below(e, 100);
		if (how < 74)
			plain(e);
		else if (how < 90)
			flow(e);
		else if (how < 95)
			self_modify(e);
		else if (how < 98 || e->p->cpl == 0)
			system_unit(e);
		else
			plain(e);
	}
}

static void weights(struct gen *e)
{
	static const u8 usual[N_CLASSES] = {
		[CL_ALU] = 30, [CL_MOVE] = 26, [CL_STACK] = 7, [CL_STRING] = 3, [CL_MULDIV] = 3, [CL_BIT] = 10, [CL_X87] = 4,
		[CL_MMX] = 2, [CL_SSE] = 7, [CL_AVX] = 4, [CL_EVEX] = 3, [CL_SYSTEM] = 2,
	};
	memcpy(e->weight, usual, sizeof(usual));
	if (pct(e, 15)) /* much of one kind */
		e->weight[below(e, N_CLASSES)] += 60;
	if (pct(e, 40)) /* integers alone */
		e->weight[CL_X87] = e->weight[CL_MMX] = e->weight[CL_SSE] = e->weight[CL_AVX] = e->weight[CL_EVEX] = 0;
}

static void nature(struct gen *e)
{
	struct program *p = e->p;
	p->cpl = pct(e, 60) ? 3 : 0;
	p->idt = (u8)(pct(e, 40) ? IDT_HALT : pct(e, 70) ? IDT_GO : pct(e, 60) ? IDT_GO_STACK : IDT_HALT_STACK);
	p->fuel = (u8)(pct(e, 80) ? 1 + below(e, 8) : below(e, 30));
	p->options = (u8)((pct(e, 30) ? OPT_SMAP : 0) | (pct(e, 30) ? OPT_SMEP : 0) | (pct(e, 30) ? OPT_PCID : 0) |
			  (pct(e, 8) ? OPT_NOWP : 0) | (pct(e, 20) ? OPT_UMIP : 0));
	p->data = below(e, 12);
	p->run[0].window = (u8)(p->cpl ? (pct(e, 60) ? WIN_LOW : WIN_HIGH) : pct(e, 80) ? WIN_KERN :
				p->options & OPT_SMEP ? WIN_KERN : WIN_LOW);
	e->risk = pct(e, 45) ? 0 : 3 + below(e, 15);
	unsigned how = below(e, 100);
	p->at = (u16)(how < 55 ? 0x100 + below(e, 0xa00) : how < 92 ? 0x1000 - below(e, 220) : 0x2000 - below(e, 220));
	if (how >= 99)
		p->at = (u16)(0x4000 - below(e, 100)); /* into what cannot be executed */
}

static u64 flags(struct gen *e)
{
	u64 f = FL_1 | (rnd(e->g) & FL_STATUS) | (pct(e, 80) ? FL_IF : 0);
	static const struct { u32 bit; u8 percent; } rare[] = { { FL_DF, 10 }, { FL_AC, 4 }, { FL_ID, 5 }, { FL_NT, 2 }, { FL_IOPL, 5 } };
	for (unsigned k = 0; k < ARRAY_LEN(rare); k++)
		if (pct(e, rare[k].percent))
			f |= rare[k].bit;
	return f;
}

static void registers(struct gen *e, struct run *r)
{
	for (unsigned k = 0; k < 16; k++)
		r->gpr[k] = pct(e, 55) ? pick_target(e, 8) : value_int(e->g, pct(e, 60) ? 64 : 32);
	if (pct(e, 97)) {
		u64 lin = good_target(e, 8);
		r->gpr[R_SP] = pct(e, 85) ? lin & ~7ull : lin;
		if ((lin & PAGE_MASK) < 0x100 && pct(e, 70))
			r->gpr[R_SP] += 0x800;
	}
	r->fs_base = pct(e, 50) ? 0 : pct(e, 60) ? below(e, 1u << 20) : pick_target(e, 8) & ~0xfffull;
	r->gs_base = pct(e, 50) ? 0 : pct(e, 60) ? (u64)-(i64)below(e, 1u << 20) : pick_target(e, 8) & ~0xfffull;
}

/* The same program again: other values, another window or space, instructions changed from outside. */
static void more_runs(struct gen *e)
{
	struct program *p = e->p;
	p->n_runs = (u8)(pct(e, 70) ? 1 : 2 + below(e, 3));
	for (unsigned k = 1; k < p->n_runs; k++) {
		struct run *r = &p->run[k];
		*r = p->run[0];
		for (unsigned n = 0; n < 16; n++)
			if (n != R_SP && pct(e, 20))
				r->gpr[n] = pct(e, 50) ? pick_target(e, 8) : value_int(e->g, 64);
		r->rflags ^= rnd(e->g) & FL_STATUS;
		r->space = pct(e, 30) ? below(e, N_SPACES) : p->run[k - 1].space;
		r->keep = pct(e, 50);
		if (pct(e, 25))
			r->window = p->cpl ? (u8)below(e, 2) : WIN_KERN;
	}
}

static void edits(struct gen *e)
{
	struct program *p = e->p;
	unsigned n = p->n_runs > 1 || p->cpl == 0 ? below(e, 4) : 0;
	for (unsigned k = 0; k < n && p->n_slots; k++) {
		struct edit *d = &p->edit[p->n_edits];
		unsigned slot = below(e, p->n_slots);
		const struct slot *s = &p->slot[slot];
		/* The last byte: of an immediate, a displacement, or registers; or all of it. */
		if (s->fix || s->len < 2)
			continue;
		*d = (struct edit){ .run = pct(e, 50) || p->n_runs == 1 ? EDIT_ALT : (u8)(1 + below(e, p->n_runs - 1)), .slot = (u8)slot };
		if (pct(e, 30)) {
			d->len = s->len;
			memset(d->bytes, 0x90, s->len);
		} else if (s->len > 3) {
			d->off = (u8)(s->len - 1);
			d->len = 1;
			d->bytes[0] = s->bytes[d->off] ^ (u8)(1 + below(e, 255));
		} else {
			continue;
		}
		p->n_edits++;
	}
}

/* Where handlers go on: mostly late in the program, and not in a loop whose counter nobody set. */
static void resume(struct gen *e)
{
	struct program *p = e->p;
	unsigned main = p->n_slots - p->entry, skip = pct(e, 75) ? main / 2 : 0;
	unsigned slot = p->entry + skip + below(e, main - skip + 1u), unit = unit_of_slot(e, slot);
	for (unsigned k = 0; k < e->n_loops; k++)
		if (slot < p->n_slots && unit > e->loop[k].from && unit <= e->loop[k].to)
			slot = e->unit[unit = e->loop[k].from];
	p->resume = (u8)slot;
}

void generate(struct program *p, struct rng *g, const struct pool *pool, const struct finder *f, const struct world *w)
{
	static struct gen e;
	memset(&e, 0, sizeof(e));
	program_init(p, w->mode);
	e.g = g;
	e.p = p;
	e.pool = pool;
	e.find = f;
	e.world = w;
	nature(&e);
	weights(&e);
	p->run[0].rflags = flags(&e);
	registers(&e, &p->run[0]);
	if (p->idt == IDT_GO && rnd_pct(g, 6))
		p->run[0].rflags |= FL_TF;
	if (rnd_pct(g, 5))
		p->run[0].vector = (u8)(INTR_VECTORS + rnd_below(g, 16));
	for (unsigned k = 0; k < 16; k++) {
		e.known[k] = true;
		e.value[k] = p->run[0].gpr[k];
	}
	e.counters = 1u << R_CX;
	while (__builtin_popcount(e.counters) < 4)
		e.counters |= 1u << rnd_below(g, 16) & ~(1u << R_SP);
	unsigned functions = rnd_pct(g, 70) ? 0 : 1 + rnd_below(g, 2), how = rnd_below(g, 100);
	for (unsigned k = 0; k < functions; k++)
		function(&e, k);
	p->entry = p->n_slots;
	body(&e, how < 45 ? 1 + rnd_below(g, 6) : how < 85 ? 4 + rnd_below(g, 12) : 12 + rnd_below(g, 24));
	resolve(&e);
	lengthen(p);
	resume(&e);
	more_runs(&e);
	edits(&e);
	p->vec_seed = rnd(g) | 1;
	vec_fill(&p->v, p->vec_seed, f->cpu);
}
