/* Tables of counters: sums, ratios, the largest of a group, many columns, columns that end early. */
#include <stdlib.h>

#include "test.h"
#include "base/base.h"

static char *text;
static size_t text_len;

static void print(struct counters *t)
{
	free(text);
	FILE *f = open_memstream(&text, &text_len);
	assert_non_null(f);
	counters_print(t, f);
	fclose(f);
}

/* The row of that name, its blanks squeezed to one; "" where there is none. */
static const char *row(const char *name)
{
	static char out[512];
	size_t n = 0;
	for (char *line = text; line && *line; line = strchr(line, '\n') + 1) {
		char *start = line + strspn(line, " ");
		if (strncmp(start, name, strlen(name)))
			continue;
		for (char *p = start + strlen(name); *p != '\n' && n < sizeof(out) - 1; p++)
			if (*p != ' ' || (n && out[n - 1] != ' '))
				out[n++] = *p;
		break;
	}
	out[n] = 0;
	return out;
}

static void one_column(void **state)
{
	struct counters *t = counters_new("cpu");
	print(t);
	assert_string_equal(text, "");
	counters_column(t);
	counters_group(t, "things", 0);
	counter_add(t, "made", 12);
	counter_ratio(t, "each", 7, 2);
	counter_share(t, "full", 1, 8);
	counter_ratio(t, "of nothing", 1, 0);
	print(t);
	assert_string_equal(row("made"), "12"); /* and no sum of one */
	assert_string_equal(row("each"), "3.50");
	assert_string_equal(row("full"), "12.5 %");
	assert_string_equal(row("of nothing"), "-");
	assert_null(strstr(text, "total"));
	assert_true(!strncmp(strchr(text, '\n') + 1, "  things\n", 9));
	counters_free(t);
}

static void sums(void **state)
{
	struct counters *t = counters_new("cpu");
	for (unsigned k = 0; k < 3; k++) {
		counters_column(t);
		counters_group(t, "things", 0);
		counter_add(t, "made", 10 + k);
		counter_ratio(t, "each", 10 * k, k);
		if (k < 2)
			counter_add(t, "late", 5);
	}
	print(t);
	assert_string_equal(row("total"), "cpu 0 cpu 1 cpu 2");
	assert_string_equal(row("made"), "33 10 11 12");
	assert_string_equal(row("each"), "10.00 - 10.00 10.00");
	assert_string_equal(row("late"), "10 5 5 0");
	counters_free(t);
}

static void the_largest(void **state)
{
	static const char *const names[] = { "a", "b", "c", "d", "e", "f" };
	static const u64 n[2][6] = { { 1, 5, 0, 3, 3, 2 }, { 1, 0, 0, 3, 3, 0 } };
	struct counters *t = counters_new("cpu");
	for (unsigned k = 0; k < 2; k++) {
		counters_column(t);
		counters_group(t, "kinds", 3);
		for (unsigned r = 0; r < 6; r++)
			counter_add(t, names[r], n[k][r]);
		counters_group(t, "after", 0);
		counter_add(t, "last", k);
	}
	print(t);
	char *d = strstr(text, "    d "), *e = strstr(text, "    e "), *b = strstr(text, "    b ");
	assert_true(d && e && b && d < e && e < b);
	assert_string_equal(row("d"), "6 3 3");
	assert_string_equal(row("all others"), "4");
	assert_null(strstr(text, "    c "));
	assert_string_equal(row("last"), "1 0 1");
	counters_free(t);
}

static void many_columns(void **state)
{
	struct counters *t = counters_new("cpu");
	for (unsigned k = 0; k < 64; k++) {
		counters_column(t);
		counters_group(t, "kinds", 2);
		for (unsigned r = 0; r < 100; r++)
			counter_add(t, "x", r == k);
	}
	print(t);
	for (char *line = text; *line; line = strchr(line, '\n') + 1)
		assert_true(strchr(line, '\n') - line < 160);
	assert_non_null(strstr(text, "cpu 63"));
	counters_free(t);
	counters_free(NULL);
}

static int tear_down(void **state)
{
	free(text);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_column), cmocka_unit_test(sums), cmocka_unit_test(the_largest), cmocka_unit_test(many_columns),
	};
	return cmocka_run_group_tests(tests, NULL, tear_down);
}
