/* What the parts of the generator share. A program grows from the front; a *unit* is what one call adds
 * (a register loaded, then the instruction that wants it), and labels are on units' starts. Registers'
 * values are followed along the straight line as long as they are known: that is how memory operands come
 * to point somewhere. It is a matter of aim alone: a program that goes other ways is as good. */
#ifndef RING3_TESTS_BLOCKS_GEN_H
#define RING3_TESTS_BLOCKS_GEN_H

#include <string.h>

#include "blocks.h"
#include "encode.h"

enum class {
	CL_ALU, CL_MOVE, CL_STACK, CL_STRING, CL_MULDIV, CL_BIT, CL_X87, CL_MMX, CL_SSE, CL_AVX, CL_EVEX, CL_SYSTEM, N_CLASSES
};

/* pool.c: an encoding of a class, rows alike often. */
const struct enc *pool_draw(const struct pool *p, enum class c, struct rng *g);
bool pool_has(const struct pool *p, enum class c);

enum { MAX_UNITS = 96, UNIT_LABEL = 1000 /* label: a unit, not a slot, until the program is whole */ };

struct gen {
	struct rng *g;
	struct program *p;
	const struct pool *pool;
	const struct finder *find;
	u16 unit[MAX_UNITS];   /* first slot of each */
	unsigned n_units;
	bool known[16];
	u64 value[16];
	u32 keep;              /* registers that nothing writes: counters of loops under way */
	u32 counters;          /* registers that may become counters: functions leave them alone */
	unsigned risk;         /* percent of memory operands that may fault or hit code */
	unsigned depth;        /* of loops */
	bool full;             /* no room for more */
	u8 weight[N_CLASSES];
	const struct world *world;
	struct { u16 from, to; } loop[12]; /* units: where the counter is loaded, the branch back */
	unsigned n_loops;
	u16 poke_unit[MAX_POKES]; /* the unit that goes through it */
	i16 functions[4];      /* slots where functions begin */
	unsigned n_functions;
};

static inline bool pct(struct gen *e, unsigned n) { return rnd_pct(e->g, n); }
static inline unsigned below(struct gen *e, unsigned n) { return rnd_below(e->g, n); }
static inline bool kept(const struct gen *e, unsigned r) { return e->keep >> r & 1; }

/* generate.c */
void unit_begin(struct gen *e);
struct slot *emit(struct gen *e, const void *bytes, unsigned n);
/* bytes with a place of `size` bytes at `at` to fill in. */
struct slot *emit_fix(struct gen *e, const void *bytes, unsigned n, u8 kind, unsigned at, unsigned size, i16 label, i64 to);
void load(struct gen *e, unsigned r, u64 v);                       /* MOV r, v */
void load_label(struct gen *e, unsigned r, i16 label, i64 to);     /* MOV r, address */
unsigned free_reg(struct gen *e);                                   /* neither kept nor RSP */
void poke_bytes(struct gen *e, u64 lin, const void *bytes, unsigned n);
void poke_label(struct gen *e, u64 lin, i16 label, i64 to);
i16 unit_ahead(struct gen *e, unsigned most);                       /* a label behind what comes next */

/* insn.c */
bool plain(struct gen *e);                         /* one unit with an instruction of the pool */
bool plain_of(struct gen *e, enum class c);
/* aim.c */
u64 pick_target(struct gen *e, unsigned size);     /* a linear address */
u64 good_target(struct gen *e, unsigned size);     /* one that can be written */
/* Makes the memory operands of d, whose bytes are those of s, point somewhere. */
void aim(struct gen *e, struct decoded *d, struct slot *s);
/* flow.c, smc.c, system.c: units */
void flow(struct gen *e);
void function(struct gen *e, unsigned k);
void self_modify(struct gen *e);
void system_unit(struct gen *e);
void body(struct gen *e, unsigned units);

#endif
