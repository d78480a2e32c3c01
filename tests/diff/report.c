/* What came of a run: a line for each form, the sums, what is wrong. */
#include "harness.h"

/* What is wrong with a form, or NULL. */
static const char *form_fault(const struct harness *h, unsigned row, bool *skipped)
{
	const char *absent = NULL;
	unsigned states = 0;
	bool any = false;
	*skipped = false;
	for (unsigned m = 0; m < 2; m++) {
		const struct tally *y = &h->tally[m][row];
		if (h->o.mode && h->o.mode != (m ? 64u : 32u))
			continue;
		if (y->differs)
			return "differs";
		if (y->encodings && !y->states && !y->why_none)
			return "no state could be made";
		if (y->states && y->why_none)
			return "listed in unlisted.def, but it runs";
		if (y->why_none || y->absent)
			absent = y->why_none ? y->why_none : "not in this processor model";
		states += y->states;
		any |= y->encodings != 0;
	}
	if (states)
		return NULL;
	*skipped = true;
	return absent || h->o.mode || any ? NULL : "no encoding was found";
}

static void print_tally(FILE *out, const struct tally *y)
{
	if (y->why_none)
		fprintf(out, " %8s %7s", "-", "");
	else
		fprintf(out, " %8u %7u", y->states, y->faults);
}

static void write_report(const struct harness *h, FILE *out)
{
	fprintf(out, "%llu states, %u a form, seed %llu, engine %s, %llu differ\n", (unsigned long long)h->total, h->o.states,
		(unsigned long long)h->o.seed, h->o.engine, (unsigned long long)h->total_differs);
	for (unsigned k = 0; k < known_count(); k++)
		fprintf(out, "known difference %s: %u states: %s\n", known_name(k), h->known[k], known_reason(k));
	fputc('\n', out);
	fprintf(out, "%-28s %8s %7s %8s %7s %8s %6s %8s  %s\n", "form", "64-bit", "faults", "32-bit", "faults", "undef",
		"known", "differ", "remark");
	for (unsigned row = 0; row <= isa_n_ops; row++) {
		const struct tally *a = &h->tally[1][row], *b = &h->tally[0][row];
		bool skipped;
		if (!wanted(h, row))
			continue;
		const char *fault = form_fault(h, row, &skipped);
		fprintf(out, "%-28s", row_name(row));
		print_tally(out, a);
		print_tally(out, b);
		fprintf(out, " %8u %6u %8u  %s\n", a->undefined + b->undefined, a->known + b->known, a->differs + b->differs,
			fault ? fault : a->why_none ? a->why_none : b->why_none ? b->why_none :
			skipped && (a->absent || b->absent) ? "not in this processor model" : "");
	}
}

int report_finish(struct harness *h, unsigned case_passed, unsigned case_failed, double seconds)
{
	unsigned passed = case_passed, failed = case_failed, skipped = 0;
	for (unsigned row = 0; row <= isa_n_ops; row++) {
		bool none;
		if (!wanted(h, row))
			continue;
		const char *fault = form_fault(h, row, &none);
		if (fault) {
			failed++;
			printf("%s: %s\n", row_name(row), fault);
		} else if (none) {
			skipped++;
		} else {
			passed++;
		}
	}
	for (unsigned k = 0; k < known_count(); k++)
		if (h->known[k])
			printf("known difference %s: %u\n", known_name(k), h->known[k]);
	if (h->unsteady)
		printf("in %u states the host did not do the same twice\n", h->unsteady);
	if (h->o.report) {
		FILE *out = fopen(h->o.report, "w");
		if (!out) {
			printf("%s: cannot be written\n", h->o.report);
			failed++;
		} else {
			write_report(h, out);
			fclose(out);
		}
	}
	printf("%llu states in %.1f s, %llu differ\n", (unsigned long long)h->total, seconds, (unsigned long long)h->total_differs);
	printf("%u passed, %u failed, %u skipped\n", passed, failed, skipped);
	return failed ? 1 : 0;
}
