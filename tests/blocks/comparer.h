/* A run of the comparer: what main.c (options), comparer.c (the loop, what differs) and selftest.c share. */
#ifndef RING3_TESTS_BLOCKS_COMPARER_H
#define RING3_TESTS_BLOCKS_COMPARER_H

#include "cells.h"

struct options {
	const char *engines, *model, *repro, *cases;
	unsigned mode, planted, ignore, stop_after;
	u64 count, seed, from; /* from: the first program's number, from 1 */
	bool exact, verbose, list, self_test, quiet, strict;
};

struct comparer {
	struct options o;
	struct engine_spec spec[3];
	char name[2][24];
	struct world *world;
	struct rig *rig[3];         /* A, B; a third that undefined.c turns */
	struct pool *pool;
	struct op_index index;
	struct finder find;
	struct cells cells;
	enum rig_end end[2];
	unsigned failed_run;
	struct finding { char text[160]; unsigned times; } finding[200];
	unsigned n_findings;
	u64 runs, endless, unsteady, undefined, differ, insns;
	u64 at_end, by_vector[256], elsewhere; /* how runs ended */
};

/* World, rigs, pool by o and spec. */
bool comparer_open(struct comparer *c, struct error *e);
void comparer_close(struct comparer *c);
void comparer_random(struct comparer *c);
/* One program as text; loud: shows it. False: it differs, or is no program. */
bool comparer_text(struct comparer *c, const char *text, bool loud, struct error *e);
/* A file of programs, one a line, # for comments; those of this mode. Returns how many failed. */
unsigned comparer_cases(struct comparer *c, unsigned *passed);
void comparer_tally(const struct comparer *c);
void comparer_findings(const struct comparer *c); /* of what differed, each kind once */
/* Every planted fault must be found, and what may differ must not be. Returns how many failed. */
unsigned comparer_self_test(struct comparer *c, unsigned *passed);

#endif
