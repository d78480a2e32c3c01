/* From slots to bytes: where each instruction lies, what its labels are. Offsets count from the start
 * of the code window and are the same in each, so that a program can be entered through any. */
#include <string.h>

#include "blocks.h"

void program_init(struct program *p, enum code_mode mode)
{
	memset(p, 0, sizeof(*p));
	p->mode = (u8)mode;
	p->cpl = 3;
	p->at = 0x100;
	p->n_runs = 1;
	p->v.mxcsr = 0x1f80;
	p->v.fcw = 0x37f;
	for (unsigned k = 0; k < MAX_RUNS; k++)
		p->run[k].rflags = FL_1 | FL_IF;
}

void program_offsets(const struct program *p, u32 off[MAX_SLOTS + 1])
{
	u32 at = p->at;
	for (unsigned k = 0; k < p->n_slots; k++) {
		off[k] = at;
		at += p->slot[k].len;
	}
	off[p->n_slots] = at;
}

u64 label_address(const struct program *p, const u32 *off, i16 label, i64 to)
{
	if (label < 0)
		return (u64)to;
	return code_base(p->mode, p->run[0].window) + off[MIN((unsigned)label, p->n_slots)] + (u64)to;
}

void slot_resolve(const struct program *p, unsigned k, const u32 *off, u8 out[15])
{
	const struct slot *s = &p->slot[k];
	memcpy(out, s->bytes, 15);
	if (!s->fix)
		return;
	u64 v = label_address(p, off, s->label, s->to);
	if (s->fix == 'r')
		v -= code_base(p->mode, p->run[0].window) + off[k] + s->len;
	memcpy(out + s->fix_at, &v, MIN(s->fix_size, 15u - s->fix_at));
}

unsigned program_end(const struct program *p, u8 out[4])
{
	if (p->cpl == 0) {
		out[0] = 0xf4;
		return 1;
	}
	out[0] = 0xcd;
	out[1] = END_VECTOR;
	return 2;
}

/* Labels behind it move up; a label on it is then on what follows. */
static i16 label_without(i16 label, unsigned k) { return label > (i16)k ? (i16)(label - 1) : label; }

void program_remove_slot(struct program *p, unsigned k)
{
	memmove(&p->slot[k], &p->slot[k + 1], (p->n_slots - k - 1u) * sizeof(p->slot[0]));
	p->n_slots--;
	for (unsigned n = 0; n < p->n_slots; n++)
		p->slot[n].label = label_without(p->slot[n].label, k);
	for (unsigned n = 0; n < p->n_pokes; n++)
		p->poke[n].label = label_without(p->poke[n].label, k);
	p->entry = (u8)label_without(p->entry, k);
	p->resume = (u8)label_without(p->resume, k);
	unsigned kept = 0;
	for (unsigned n = 0; n < p->n_edits; n++) {
		struct edit e = p->edit[n];
		if (e.slot == k)
			continue;
		e.slot = (u8)label_without(e.slot, k);
		p->edit[kept++] = e;
	}
	p->n_edits = (u8)kept;
}

/* ---- floating point and vectors ------------------------------------------------------------------------ */

unsigned vector_bytes(const struct cpu *c)
{
	u64 x = c->model->xcr0_mask;
	return (x & 0xe0) == 0xe0 ? 64 : x & 4 ? 32 : 16;
}

/* Kept tests name seeds: what a seed means does not change. */
void vec_fill(struct vec_state *v, u64 seed, const struct cpu *c)
{
	struct rng g = { seed };
	unsigned bytes = vector_bytes(c), regs = bytes == 64 ? 32 : 16;
	memset(v, 0, sizeof(*v));
	for (unsigned k = 0; k < 32; k++) {
		u8 z[64];
		/* A quarter are small indices, for gathers. */
		if (k % 4 == 1) {
			for (unsigned n = 0; n < 64; n += 4)
				st32(z + n, n & 4 && k & 4 ? 0 : rnd_below(&g, 200) - 40);
		} else {
			value_fill(&g, (enum value_kind)rnd_below(&g, N_VALS), z, 64);
		}
		if (k < regs)
			memcpy(v->zmm[k], z, bytes);
	}
	for (unsigned k = 0; k < 8; k++) {
		u64 m = rnd_pct(&g, 25) ? ~0ull : rnd(&g);
		v->k[k] = bytes == 64 ? m : 0;
	}
	for (unsigned k = 0; k < 8; k++)
		value_fill(&g, VAL_F80, v->st[k], 10);
	u64 odd = rnd(&g), bits = rnd(&g);
	v->mxcsr = 0x1f80 | (bits & 0x6000);
	if (odd % 100 < 15)
		v->mxcsr ^= 0x80u << rnd_below(&g, 6); /* an exception that is not masked */
	v->mxcsr |= odd % 100 < 40 ? bits & 0x8040 : 0;
	v->fcw = (u16)(0x37f | (bits >> 16 & 0xc00));
	if (odd >> 8 & 1)
		v->fcw = (u16)((v->fcw & ~0x300u) | (bits >> 24 & 0x300));
	if ((odd >> 16) % 100 < 10)
		v->fcw &= (u16)~(1u << rnd_below(&g, 6));
	v->fsw = (u16)((bits >> 32 & 0x4700) | (odd >> 24 & 1 ? 0 : bits >> 40 & 0x3800));
	unsigned full = (odd >> 32) % 9; /* registers in use, from the top of the stack */
	for (unsigned k = 0; k < full; k++)
		v->ftw |= (u8)(1u << (((v->fsw >> 11) + k) & 7));
}
