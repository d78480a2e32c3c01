/* The memory around a program, and the program in it. base is what a mode's builder made; image is
 * base with a program's code, data and variables, and what both rigs are loaded from. */
#include <stdlib.h>
#include <string.h>

#include "world.h"

u8 *sys_page(struct world *w, unsigned k) { return w->base + SYS + k * 4096; }
u64 sys_lin(const struct world *w, unsigned k)
{
	return (w->mode == CODE64 ? 0xffffc00000000000ull : 0xe0000000ull) + k * 4096;
}
u64 vars_lin(const struct world *w, unsigned off) { return sys_lin(w, SYS_VARS) + off; }

enum { P = 1, W = 2, U = 4 };
#define NX (1ull << 63)

u64 letter_bits(char letter, bool kernel, bool nx, unsigned *fix)
{
	u64 user = kernel ? 0 : U, other = kernel ? U : 0, no_exec = nx ? NX : 0;
	*fix = 0;
	switch (letter) {
	case 'w': return P | W | user | no_exec;
	case 'r': return P | user | no_exec;
	case 'R': *fix = P | W; return P | user | no_exec;
	case 'x': return P | user;
	case 'X': return P | W | user;
	case 'n': return P | W | user | no_exec;
	case 'A': *fix = P; return W | user; /* all there but P */
	case 's': return P | W | other | no_exec;
	case 'S': *fix = kernel ? 0 : P | U; return P | W | other | no_exec;
	case 'b': return P | W | user | (nx ? 1ull << 51 : 0);
	default: return 0;
	}
}

/* ---- data: variants that stay what they are, so that a kept test means the same later ------------ */

static void data_page(u8 *out, u32 variant, unsigned page)
{
	struct rng g = { mix(variant, page) };
	memset(out, 0, 4096);
	if (!variant)
		return;
	if (variant == 1) {
		for (unsigned k = 0; k < 4096; k++)
			out[k] = (u8)(((page * 4096 + k) * 0x9e3779b1u) >> 24);
		return;
	}
	for (unsigned k = 0; k < 4096; k += 64)
		value_fill(&g, (enum value_kind)rnd_below(&g, N_VALS), out + k, 64);
}

enum { N_VARIANTS = 12 };
static const u8 *data_pages(u32 variant)
{
	static u8 pages[N_VARIANTS][N_DATA_PHYS * 4096];
	static bool made[N_VARIANTS];
	variant %= N_VARIANTS;
	for (unsigned k = 0; !made[variant] && k < N_DATA_PHYS; k++)
		data_page(pages[variant] + k * 4096, variant, k);
	made[variant] = true;
	return pages[variant];
}

/* ---- a program in memory ---------------------------------------------------------------------------- */

static void store(struct world *w, u64 lin, unsigned space, const u8 *bytes, unsigned n)
{
	for (unsigned k = 0; k < n; k++) {
		i64 at = world_phys(w, lin + k, space);
		if (at >= 0)
			w->image[at] = bytes[k];
	}
}

/* At an offset of the code window. */
static void store_code(struct world *w, u32 off, unsigned space, const u8 *bytes, unsigned n)
{
	for (unsigned k = 0; k < n && off + k < N_CODE_LETTERS * 4096; k++)
		w->image[code_phys(space, (off + k) >> 12) + ((off + k) & PAGE_MASK)] = bytes[k];
}

static void place_code(struct world *w, const struct program *p, const u32 *off)
{
	u8 bytes[16];
	for (unsigned s = 0; s < N_SPACES; s++) {
		for (unsigned k = 0; k < p->n_slots; k++) {
			slot_resolve(p, k, off, bytes);
			store_code(w, off[k], s, bytes, p->slot[k].len);
		}
		store_code(w, off[p->n_slots], s, bytes, program_end(p, bytes));
	}
	for (unsigned k = 0; k < p->n_edits; k++) {
		const struct edit *e = &p->edit[k];
		if (e->run == EDIT_ALT)
			store_code(w, off[e->slot] + e->off, 1, e->bytes, e->len);
	}
}

void world_program(struct world *w, const struct program *p)
{
	u32 off[MAX_SLOTS + 1];
	program_offsets(p, off);
	const u8 *data = data_pages(p->data);
	for (unsigned k = 0; k < N_SPACES * N_CODE_LETTERS; k++)
		memset(w->image + code_phys(0, k), 0xf4, 4096);
	for (unsigned k = 0; k < N_DATA_PHYS; k++)
		memcpy(w->image + data_phys(0, WIN_LOW, k), data + k * 4096, 4096);
	place_code(w, p, off);
	for (unsigned k = 0; k < p->n_pokes; k++) {
		const struct poke *q = &p->poke[k];
		u8 bytes[16];
		memcpy(bytes, q->bytes, sizeof(bytes));
		if (q->label >= 0)
			st64(bytes, label_address(p, off, q->label, q->to));
		store(w, q->lin, 0, bytes, q->len);
	}
	u8 *v = w->image + SYS + SYS_VARS * 4096;
	st32(v + VAR_FUEL, p->fuel);
	st32(v + VAR_STEPS, 300);
	st64(v + VAR_RESUME, label_address(p, off, p->resume, 0));
}

/* ---- looking up ------------------------------------------------------------------------------------------ */

i64 world_phys(const struct world *w, u64 lin, unsigned space)
{
	for (unsigned win = 0; win < N_WINDOWS; win++) {
		u64 c = lin - code_base(w->mode, win), d = lin - data_base(w->mode, win), b = lin - big_base(w->mode, win);
		if (c < N_CODE_LETTERS * 4096)
			return (i64)(code_phys(space, (unsigned)(c >> 12)) + (c & PAGE_MASK));
		if (d >= 4096 && d < (1 + N_DATA_PHYS) * 4096)
			return (i64)(data_phys(space, win, (unsigned)(d >> 12) - 1) + (d & PAGE_MASK));
		if (b < REGION_BYTES)
			return (i64)(REGION + b);
	}
	return -1;
}

/* ---- life --------------------------------------------------------------------------------------------------- */

static void add_page(struct world *w, u64 phys)
{
	if (w->n_pages == ARRAY_LEN(w->page))
		bug("too many pages");
	w->page[w->n_pages++] = (u16)(phys >> 12);
}

struct world *world_new(enum code_mode mode, bool exact_flags, struct error *e)
{
	struct world *w = calloc(1, sizeof(*w));
	if (!w || !(w->base = calloc(1, RAM_BYTES)) || !(w->image = calloc(1, RAM_BYTES))) {
		error_set(e, "out of memory");
		return NULL;
	}
	w->mode = mode;
	if (!world64_build(w, exact_flags)) {
		error_set(e, "this mode is not there yet");
		return NULL;
	}
	for (u64 p = TABLES; p < w->next_table; p += 4096)
		add_page(w, p);
	for (unsigned k = 0; k < N_SYS; k++)
		add_page(w, SYS + k * 4096ull);
	for (unsigned k = 0; k < N_SPACES * N_CODE_LETTERS; k++)
		add_page(w, code_phys(0, k));
	for (unsigned k = 0; k < N_DATA_PHYS; k++)
		add_page(w, data_phys(0, WIN_LOW, k));
	memcpy(w->image, w->base, RAM_BYTES);
	return w;
}

void world_free(struct world *w)
{
	if (!w)
		return;
	free(w->base);
	free(w->image);
	free(w);
}
