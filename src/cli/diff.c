/* `ring3 diff A B`: the first line at which two hash files differ. A line is
 * "icount hash rip ..." (machine/trace.c); with hash-every 1 over the interval that this
 * names, the line is the instruction. */
#define LOG_TOPIC "cli"
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

struct side { FILE *f; const char *path; char line[4096]; };

static bool open_side(struct side *s, const char *path)
{
	s->path = path;
	s->f = file_open_text(path);
	if (!s->f)
		fprintf(stderr, "ring3: diff %s: %s\n", path, strerror(errno));
	return s->f;
}

/* 1: a line; 0: the end; -1: it is no hash file, or cannot be read, which has been told. The last line may lack its end: the
 * run was stopped then. */
static int next_line(struct side *s)
{
	errno = 0;
	if (!fgets(s->line, sizeof(s->line), s->f)) {
		if (!ferror(s->f))
			return 0;
		fprintf(stderr, "ring3: diff %s: %s\n", s->path, strerror(errno));
		return -1;
	}
	if (isdigit((u8)s->line[0]) && strstr(s->line, " cpu="))
		return 1;
	fprintf(stderr, "ring3: diff %s: no file of hashes; ring3 run --icount --hash-every N --hash-file FILE makes one\n", s->path);
	return -1;
}

static int compare(struct side *a, struct side *b)
{
	char last[sizeof(a->line)] = "(the start)\n";
	unsigned long long lines = 0;

	for (;; lines++) {
		int ra = next_line(a), rb = ra < 0 ? -1 : next_line(b);
		if (rb < 0)
			return EXIT_USAGE;
		if (!ra && !rb) {
			printf("no difference in %llu lines\n", lines);
			return lines ? 0 : 1;
		}
		if (!ra || !rb) {
			printf("%s is shorter; the last line of both:\n%s", ra ? "B" : "A", last);
			return 1;
		}
		if (strcmp(a->line, b->line)) {
			printf("last equal\n  %sfirst different\nA %sB %s", last, a->line, b->line);
			unsigned long long from = strtoull(last, NULL, 0), to = strtoull(a->line, NULL, 0);
			if (to > from + 1)
				printf("next: both runs again with --hash-every 1 --hash-from %llu --hash-to %llu\n", from, to);
			return 1;
		}
		memcpy(last, a->line, sizeof(last));
	}
}

static int help(FILE *f)
{
	fputs("ring3 diff A B\n\n  The first line at which two runs differ: two files made by\n"
	      "  ring3 run --icount --hash-every N --hash-file FILE\n\n"
	      "Exit status: 0 no difference, 1 a difference or nothing to compare, 64 a file that cannot be read.\n", f);
	return f == stdout ? 0 : EXIT_USAGE;
}

int cli_diff(int argc, char **argv)
{
	struct side a = { 0 }, b = { 0 };

	if (argc == 1 && (!strcmp(argv[0], "--help") || !strcmp(argv[0], "-h")))
		return help(stdout);
	if (argc != 2)
		return help(stderr);
	int status = open_side(&a, argv[0]) && open_side(&b, argv[1]) ? compare(&a, &b) : EXIT_USAGE;
	if (a.f)
		fclose(a.f);
	if (b.f)
		fclose(b.f);
	return status;
}
