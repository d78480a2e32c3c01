/* A comparison under way: what compare.c (what must be equal) and known.c (what is known not to
 * be) share. */
#ifndef RING3_TESTS_DIFF_COMPARE_H
#define RING3_TESTS_DIFF_COMPARE_H

#include "diff.h"

struct check {
	const struct test *t;
	const struct decoded *d;
	const struct outcome *n, *e;
	struct comparison *c;
	bool differs, undefined;
	unsigned count;          /* fields that differ */
};

/* Whether known difference n (known.def) explains that the sides differ, first in field `first`. */
bool known_is(unsigned n, const struct check *k, const char *first);

#endif
