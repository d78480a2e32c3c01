/* Tables of counters for people: a row a counter, a column each of several alike (processors),
 * and their sum.
 *
 *                                total        cpu 0        cpu 1
 *   blocks
 *     made                       12804         8113         4691
 *     host bytes a guest byte     5.31         5.29         5.34
 *
 * Invariants
 *  1. The first column brings the rows; every other has the same ones in the same order, but for
 *     columns that end early, whose missing cells are 0.
 *  2. Names outlive the table.
 *  3. A ratio's sum is that of its parts and wholes. A whole of 0 prints as "-".
 * Threading: a table is its maker's. */
#include "base/base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum row_kind { ROW_GROUP, ROW_COUNT, ROW_RATIO, ROW_SHARE };

struct row { const char *name; enum row_kind kind; unsigned top; };
struct cell { u64 part, whole; };

struct counters {
	const char *unit;     /* what a column is one of: "cpu" */
	struct row *rows;
	size_t n_rows, cap_rows;
	struct cell *cells;   /* column after column */
	size_t n_cells, cap_cells;
	unsigned n_columns;
	size_t at;            /* row that comes next in the last column */
	bool failed;          /* no memory: what is there is printed */
};

struct counters *counters_new(const char *unit)
{
	struct counters *t = calloc(1, sizeof(*t));
	if (t)
		t->unit = unit;
	return t;
}

void counters_free(struct counters *t)
{
	if (!t)
		return;
	free(t->rows);
	free(t->cells);
	free(t);
}

/* ---- filling -------------------------------------------------------------------------- */

static bool room(struct counters *t, void **at, size_t *cap, size_t n, size_t size)
{
	if (n <= *cap)
		return true;
	size_t want = MAX(n, *cap ? *cap * 2 : 64);
	void *p = realloc(*at, want * size);
	if (!p)
		return !(t->failed = true);
	*at = p;
	*cap = want;
	return true;
}

static void add(struct counters *t, struct row row, u64 part, u64 whole)
{
	if (t->failed || !t->n_columns)
		return;
	if (t->n_columns == 1) {
		if (!room(t, (void **)&t->rows, &t->cap_rows, t->n_rows + 1, sizeof(*t->rows)))
			return;
		t->rows[t->n_rows++] = row;
	}
	if (t->at >= t->n_rows)
		bug("counter \"%s\": more rows than the first column has", row.name);
	if (!room(t, (void **)&t->cells, &t->cap_cells, t->n_cells + 1, sizeof(*t->cells)))
		return;
	t->cells[t->n_cells++] = (struct cell){ part, whole };
	t->at++;
}

static void end_column(struct counters *t)
{
	while (t->n_columns && t->at < t->n_rows && !t->failed)
		add(t, t->rows[t->at], 0, 0);
}

void counters_column(struct counters *t)
{
	end_column(t);
	t->n_columns++;
	t->at = 0;
}

void counters_group(struct counters *t, const char *title, unsigned top)
{
	add(t, (struct row){ title, ROW_GROUP, top }, 0, 0);
}
void counter_add(struct counters *t, const char *name, u64 n)
{
	add(t, (struct row){ name, ROW_COUNT, 0 }, n, 1);
}
void counter_ratio(struct counters *t, const char *name, u64 part, u64 whole)
{
	add(t, (struct row){ name, ROW_RATIO, 0 }, part, whole);
}
void counter_share(struct counters *t, const char *name, u64 part, u64 whole)
{
	add(t, (struct row){ name, ROW_SHARE, 0 }, part, whole);
}

/* ---- printing ------------------------------------------------------------------------- */

#define NAME_WIDTH 40
#define CELL_WIDTH 14
#define COLUMNS 6u /* beside each other */

static struct cell sum(const struct counters *t, size_t row)
{
	struct cell s = { 0, 0 };
	for (unsigned k = 0; k < t->n_columns && k * t->n_rows + row < t->n_cells; k++) {
		s.part += t->cells[k * t->n_rows + row].part;
		s.whole += t->cells[k * t->n_rows + row].whole;
	}
	return s;
}

static void print_cell(FILE *f, enum row_kind kind, struct cell c)
{
	char text[32] = "-";
	if (kind == ROW_COUNT)
		snprintf(text, sizeof(text), "%llu", (unsigned long long)c.part);
	else if (c.whole && kind == ROW_RATIO)
		snprintf(text, sizeof(text), "%.2f", (double)c.part / (double)c.whole);
	else if (c.whole)
		snprintf(text, sizeof(text), "%.1f %%", 100 * (double)c.part / (double)c.whole);
	fprintf(f, " %*s", CELL_WIDTH, text);
}

/* first: the first column; 0 also prints the sum, if there is something to sum up. */
static void print_row(const struct counters *t, FILE *f, size_t row, unsigned first)
{
	const struct row *r = &t->rows[row];
	if (r->kind == ROW_GROUP) {
		fprintf(f, "  %s\n", r->name);
		return;
	}
	fprintf(f, "    %-*s", NAME_WIDTH - 4, r->name);
	if (!first && t->n_columns > 1)
		print_cell(f, r->kind, sum(t, row));
	for (unsigned k = first; k < t->n_columns && k < first + COLUMNS; k++)
		if (k * t->n_rows + row < t->n_cells)
			print_cell(f, r->kind, t->cells[k * t->n_rows + row]);
	fputc('\n', f);
}

static void print_head(const struct counters *t, FILE *f, unsigned first)
{
	fprintf(f, "%-*s", NAME_WIDTH, "");
	if (!first && t->n_columns > 1)
		fprintf(f, " %*s", CELL_WIDTH, "total");
	for (unsigned k = first; k < t->n_columns && k < first + COLUMNS; k++) {
		char head[32];
		snprintf(head, sizeof(head), "%s %u", t->unit, k);
		fprintf(f, " %*s", CELL_WIDTH, head);
	}
	fputc('\n', f);
}

/* The rows of a group that shows its largest only, those first; zeros are left out. */
static void print_top(const struct counters *t, FILE *f, size_t from, size_t end, unsigned top, unsigned first)
{
	u64 below = UINT64_MAX, shown = 0;
	size_t after = 0; /* of those that equal `below` */
	for (unsigned k = 0; k < top; k++) {
		size_t best = end;
		u64 most = 0;
		for (size_t r = from; r < end; r++) {
			u64 n = sum(t, r).part;
			if (n > most && (n < below || (n == below && r > after))) {
				best = r;
				most = n;
			}
		}
		if (best == end)
			return;
		print_row(t, f, best, first);
		below = most;
		after = best;
		shown += most;
	}
	u64 all = 0;
	for (size_t r = from; r < end; r++)
		all += sum(t, r).part;
	if (!first && all > shown)
		fprintf(f, "    %-*s %*llu\n", NAME_WIDTH - 4, "all others", CELL_WIDTH, (unsigned long long)(all - shown));
}

void counters_print(struct counters *t, FILE *f)
{
	end_column(t);
	for (unsigned first = 0; first < t->n_columns; first += COLUMNS) {
		print_head(t, f, first);
		for (size_t r = 0, end; r < t->n_rows; r = end) {
			end = r + 1;
			print_row(t, f, r, first);
			if (t->rows[r].kind != ROW_GROUP || !t->rows[r].top)
				continue;
			while (end < t->n_rows && t->rows[end].kind != ROW_GROUP)
				end++;
			print_top(t, f, r + 1, end, t->rows[r].top, first);
		}
	}
}
