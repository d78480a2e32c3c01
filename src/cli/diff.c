/* `ring3 diff A B`: the first line at which two hash files differ. A line is
 * "icount hash rip ..." (machine/trace.c); with hash-every 1 over the interval that this
 * names, the line is the instruction. */
#define LOG_TOPIC "cli"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static FILE *open_run(const char *path)
{
	FILE *f = fopen(path, "r");
	if (!f)
		fprintf(stderr, "ring3: diff %s: %s\n", path, strerror(errno));
	return f;
}

static int compare(FILE *a, FILE *b)
{
	char la[4096], lb[4096], last[4096] = "(the start)\n";
	unsigned long long lines = 0;
	for (;;) {
		char *ra = fgets(la, sizeof(la), a), *rb = fgets(lb, sizeof(lb), b);
		if (!ra && !rb) {
			printf("no difference in %llu lines\n", lines);
			return lines ? 0 : 1;
		}
		if (!ra || !rb) {
			printf("%s is shorter; the last line of both:\n%s", ra ? "B" : "A", last);
			return 1;
		}
		if (strcmp(la, lb)) {
			printf("last equal\n  %sfirst different\nA %sB %s", last, la, lb);
			unsigned long long from = strtoull(last, NULL, 0), to = strtoull(la, NULL, 0);
			if (to > from + 1)
				printf("next: both runs again with --hash-every 1 --hash-from %llu --hash-to %llu\n", from, to);
			return 1;
		}
		memcpy(last, la, sizeof(last));
		lines++;
	}
}

int cli_diff(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "ring3 diff A B: two files made by ring3 run --icount --hash-every N --hash-file FILE\n");
		return EXIT_USAGE;
	}
	FILE *a = open_run(argv[0]), *b = a ? open_run(argv[1]) : NULL;
	int status = a && b ? compare(a, b) : EXIT_USAGE;
	if (a)
		fclose(a);
	if (b)
		fclose(b);
	return status;
}
