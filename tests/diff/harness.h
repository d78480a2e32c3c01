/* A run of the harness: what main.c (the loop) and report.c (what came of it) share. */
#ifndef RING3_TESTS_DIFF_HARNESS_H
#define RING3_TESTS_DIFF_HARNESS_H

#include <string.h>

#include "diff.h"

struct options {
	const char *engine, *model, *pattern, *report, *repro, *cases;
	unsigned states, mode;  /* mode 0: both */
	u64 seed;
	bool show_undefined, verbose;
};

/* What became of one row of isa_ops in one mode. */
struct tally { unsigned states, faults, undefined, known, differs, encodings, absent; const char *why_none; };

struct harness {
	struct options o;
	struct side *side;
	struct op_index index;
	struct finder find;
	struct tally *tally[2];          /* CODE32, CODE64 */
	unsigned known[64];
	u64 total, total_differs;
	u64 native_hash;                 /* of the host's last outcome, where it differs or unsure */
	bool unsure;
	unsigned unsteady;               /* states in which the host gave two answers */
	unsigned shown;
	bool progress;
	struct outcome native, engine;   /* of the last run */
};

/* The row behind the last stands for what is no instruction. */
#define INVALID_NAME "no instruction"
static inline const char *row_name(unsigned row) { return row < isa_n_ops ? isa_ops[row].name : INVALID_NAME; }
static inline bool wanted(const struct harness *h, unsigned row)
{
	return !h->o.pattern || strstr(row_name(row), h->o.pattern);
}

/* Prints what failed and the sums, writes the report; the exit status. */
int report_finish(struct harness *h, unsigned case_passed, unsigned case_failed, double seconds);

#endif
