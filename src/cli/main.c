/* ring3's command line: verbs, and options to one struct vm_config. Nothing else: what an
 * option means is in machine/. Exit statuses: docs/exit-status.md. */
#define LOG_TOPIC "cli"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static int usage_top(FILE *f)
{
	fputs("ring3: an x86 virtual machine monitor\n"
	      "\n"
	      "  ring3 run [OPTION ...]     run a machine; ring3 run --help lists the options\n"
	      "  ring3 ctl NAME COMMAND     tell a running machine what to do; ring3 ctl --help\n"
	      "  ring3 list                 names of the running machines\n"
	      "  ring3 img VERB ...         disk images; ring3 img --help lists the verbs\n"
	      "  ring3 doctor [--json]      what this host offers ring3, and what can be done about the rest\n"
	      "  ring3 diff A B             find the first instruction at which two --hash-file runs differ\n"
	      "  ring3 --version            version and engines\n"
	      "  ring3 --help               this text\n", f);
	return f == stdout ? 0 : EXIT_USAGE;
}

static int version(void)
{
	printf("ring3 " RING3_VERSION "\nengines:");
	for (int k = 0; engines[k]; k++)
		printf(" %s", engines[k]->name);
	putchar('\n');
	return 0;
}

/* Files that are opened later must not become one of the standard three. */
static void have_standard_files(void)
{
	for (int fd = 0; fd < 3; fd++)
		if (fcntl(fd, F_GETFD) < 0)
			(void)!open("/dev/null", O_RDWR);
}

static int carry_out(int argc, char **argv)
{
	static const char *const verbs[] = { "run", "img", "ctl", "list", "doctor", "diff", "help", "--help", "--version" };
	if (argc < 2)
		return usage_top(stderr);
	const char *verb = argv[1];
	if (!strcmp(verb, "run"))
		return cli_run(argc - 2, argv + 2);
	if (!strcmp(verb, "ctl"))
		return cli_ctl(argc - 2, argv + 2);
	if (!strcmp(verb, "list"))
		return cli_list(argc - 2, argv + 2);
	if (!strcmp(verb, "img"))
		return cli_img(argc - 2, argv + 2);
	if (!strcmp(verb, "doctor"))
		return cli_doctor(argc - 2, argv + 2);
	if (!strcmp(verb, "diff"))
		return cli_diff(argc - 2, argv + 2);
	if (!strcmp(verb, "--help") || !strcmp(verb, "-h") || !strcmp(verb, "help"))
		return usage_top(stdout);
	if (!strcmp(verb, "--version") || !strcmp(verb, "-V"))
		return version();
	const char *near = nearest_word(verb, verbs, ARRAY_LEN(verbs));
	fprintf(stderr, "ring3: %s: no such command; %s%s%s\n", verb, near ? "did you mean " : "see ring3 --help",
		near ? near : "", near ? "?" : "");
	return EXIT_USAGE;
}

/* What was to be printed is there as a whole, or the status says that it is not. */
int main(int argc, char **argv)
{
	have_standard_files();
	int status = carry_out(argc, argv), err = fflush(stdout) ? errno : ferror(stdout) ? EIO : 0;
	if (!err)
		return status;
	fprintf(stderr, "ring3: standard output: cannot be written: %s\n", strerror(err));
	return status ? status : 1;
}
