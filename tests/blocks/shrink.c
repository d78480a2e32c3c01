/* Makes a failing program smaller, as long as it fails: fewer runs, fewer instructions, plainer state. */
#include <string.h>

#include "blocks.h"

struct shrinker {
	struct program *p;
	bool (*fails)(void *arg, const struct program *p);
	void *arg;
	bool progress;
};

/* Keeps q if it fails, too. */
static bool try(struct shrinker *s, const struct program *q)
{
	if (!s->fails(s->arg, q))
		return false;
	*s->p = *q;
	s->progress = true;
	return true;
}

static void fewer_runs(struct shrinker *s)
{
	static struct program q;
	while (s->p->n_runs > 1) {
		q = *s->p;
		q.n_runs--;
		if (!try(s, &q))
			break;
	}
	for (unsigned k = 0; s->p->n_runs > 1 && k < s->p->n_runs;) {
		q = *s->p;
		memmove(&q.run[k], &q.run[k + 1], (q.n_runs - k - 1u) * sizeof(q.run[0]));
		q.n_runs--;
		if (!try(s, &q))
			k++;
	}
}

static void fewer_slots(struct shrinker *s)
{
	static struct program q;
	for (unsigned n = MAX(s->p->n_slots / 2u, 1u);; n /= 2) {
		for (unsigned k = 0; k + n <= s->p->n_slots && s->p->n_slots > n;) {
			q = *s->p;
			for (unsigned m = 0; m < n; m++)
				program_remove_slot(&q, k);
			if (!try(s, &q))
				k++;
		}
		if (n == 1)
			break;
	}
}

static bool is_nops(const struct slot *o)
{
	for (unsigned k = 0; k < o->len; k++)
		if (o->bytes[k] != 0x90)
			return false;
	return !o->fix;
}

/* Where what follows must stay in its place. */
static void nops(struct shrinker *s)
{
	static struct program q;
	for (unsigned k = 0; k < s->p->n_slots; k++) {
		if (is_nops(&s->p->slot[k]))
			continue;
		q = *s->p;
		q.slot[k] = (struct slot){ .len = q.slot[k].len };
		memset(q.slot[k].bytes, 0x90, q.slot[k].len);
		try(s, &q);
	}
}

static void number(struct shrinker *s, void *field, unsigned size, u64 to)
{
	static struct program q;
	size_t at = (size_t)((u8 *)field - (u8 *)s->p);
	q = *s->p;
	if (!memcmp((u8 *)&q + at, &to, size))
		return;
	memcpy((u8 *)&q + at, &to, size);
	try(s, &q);
}

static void plainer_runs(struct shrinker *s)
{
	static struct program def;
	struct program *p = s->p;
	program_init(&def, p->mode);
	for (unsigned k = 0; k < p->n_runs; k++) {
		struct run *r = &p->run[k];
		const struct run *d = k ? &p->run[0] : &def.run[0];
		number(s, &r->window, 1, d->window);
		number(s, &r->space, 1, d->space);
		number(s, &r->keep, 1, d->keep);
		number(s, &r->vector, 1, d->vector);
		number(s, &r->rflags, 8, d->rflags);
		number(s, &r->fs_base, 8, d->fs_base);
		number(s, &r->gs_base, 8, d->gs_base);
		for (unsigned n = 0; n < 16; n++) {
			number(s, &r->gpr[n], 8, d->gpr[n]);
			if (r->gpr[n] != d->gpr[n] && r->gpr[n] >> 32 == 0)
				number(s, &r->gpr[n], 8, r->gpr[n] & ~0xfffull);
		}
	}
}

static void plainer_memory(struct shrinker *s)
{
	static struct program q;
	for (unsigned k = 0; k < s->p->n_pokes;) {
		q = *s->p;
		memmove(&q.poke[k], &q.poke[k + 1], (q.n_pokes - k - 1u) * sizeof(q.poke[0]));
		q.n_pokes--;
		if (!try(s, &q))
			k++;
	}
	for (unsigned k = 0; k < s->p->n_edits;) {
		q = *s->p;
		memmove(&q.edit[k], &q.edit[k + 1], (q.n_edits - k - 1u) * sizeof(q.edit[0]));
		q.n_edits--;
		if (!try(s, &q))
			k++;
	}
	number(s, &s->p->data, 4, 0);
	if (s->p->data > 1)
		number(s, &s->p->data, 4, 1);
}

static void plainer_vectors(struct shrinker *s)
{
	static struct program q, def;
	struct vec_state *v = &s->p->v;
	program_init(&def, s->p->mode);
	q = *s->p;
	q.vec_seed = 0;
	q.v = def.v;
	if (memcmp(&q.v, v, sizeof(q.v)) && try(s, &q))
		return;
	number(s, &s->p->vec_seed, 8, 0); /* from here on as it is */
	for (unsigned k = 0; k < 32; k++) {
		q = *s->p;
		memset(q.v.zmm[k], 0, 64);
		if (memcmp(q.v.zmm[k], v->zmm[k], 64))
			try(s, &q);
	}
	for (unsigned k = 0; k < 8; k++) {
		q = *s->p;
		memset(q.v.st[k], 0, sizeof(q.v.st[k]));
		if (memcmp(q.v.st[k], v->st[k], sizeof(q.v.st[k])))
			try(s, &q);
		number(s, &v->k[k], 8, 0);
	}
	number(s, &v->mxcsr, 4, def.v.mxcsr);
	number(s, &v->fcw, 2, def.v.fcw);
	number(s, &v->fsw, 2, 0);
	number(s, &v->ftw, 1, 0);
}

static void plainer_program(struct shrinker *s)
{
	struct program *p = s->p;
	for (unsigned k = 0; k < 8; k++)
		if (p->options >> k & 1)
			number(s, &p->options, 1, p->options & ~(1u << k));
	number(s, &p->idt, 1, IDT_HALT);
	number(s, &p->fuel, 1, 0);
	if (p->fuel > 1)
		number(s, &p->fuel, 1, p->fuel / 2);
	number(s, &p->resume, 1, p->n_slots);
	number(s, &p->resume, 1, 0);
	number(s, &p->at, 2, 0x100);
}

void program_shrink(struct program *p, bool (*fails)(void *arg, const struct program *p), void *arg)
{
	struct shrinker s = { p, fails, arg, true };
	for (unsigned round = 0; s.progress && round < 4; round++) {
		s.progress = false;
		fewer_runs(&s);
		fewer_slots(&s);
		plainer_program(&s);
		plainer_runs(&s);
		plainer_memory(&s);
		plainer_vectors(&s);
	}
	nops(&s);
	fewer_slots(&s);
}
