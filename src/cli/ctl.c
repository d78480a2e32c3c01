/* `ring3 ctl NAME COMMAND`, `ring3 list`: a running machine by its name. */
#define LOG_TOPIC "cli"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "control/control.h"

static int help(FILE *f)
{
	fputs("ring3 ctl NAME COMMAND\n\n"
	      "  status              running or paused\n"
	      "  pause, resume       processors and time stand still, go on\n"
	      "  reset               the reset button\n"
	      "  powerdown           the power button: the guest shuts down, if it wants to\n"
	      "  stop                ends the machine at once\n"
	      "  screen              what a text screen shows\n"
	      "  screenshot FILE     the screen as a PNG picture; - is standard output\n"
	      "  press KEYS ...      one after the other, as in: press down enter; together: ctrl-alt-delete\n"
	      "  type TEXT           as typed on a US keyboard\n"
	      "  mouse X Y [BUTTONS [WHEEL]]\n"
	      "                      moves right and up; buttons: 1 left, 2 right, 4 middle; the wheel turns\n"
	      "                      towards you\n"
	      "  balloon [SIZE]      asks the guest for so much of its memory; without SIZE: how much it was\n"
	      "                      asked for, and has given\n"
	      "  engine [NAME[,KEY=VALUE...]]\n"
	      "                      moves the running machine to another engine, as of --engine; without NAME: which\n"
	      "                      it is in. Only if it was started with --sandbox off\n"
	      "  insert FILE[,drive=N]\n"
	      "                      puts a CD into a drive; that which is in it goes. The first drive is 0\n"
	      "  eject [N][,force]   takes it out; a guest that has locked the drive is asked, unless by force\n", f);
	return f == stdout ? 0 : EXIT_USAGE;
}

static int fail(const char *what)
{
	fprintf(stderr, "ring3: %s\n", what);
	return 1;
}

static int write_file(const char *path, const char *data, size_t len)
{
	FILE *f = strcmp(path, "-") ? fopen(path, "wb") : stdout;
	bool ok = f && fwrite(data, 1, len, f) == len;

	if (f)
		ok = (f == stdout ? fflush(f) : fclose(f)) == 0 && ok;
	if (!ok)
		fprintf(stderr, "ring3: %s: %s\n", path, strerror(errno));
	return !ok;
}

/* The file that a command is about, opened: the machine itself opens none once it runs. -1: e says why. */
static int open_image(const char *arg, struct error *e)
{
	static const struct kv_key keys[] = { CD_INSERT_KEYS };
	struct cd_options o = { .drive = 0 };
	int fd = -1;

	if (kv_parse("insert", arg, keys, ARRAY_LEN(keys), &o, e) && !o.file)
		error_set(e, "insert: which file?");
	else if (o.file && (fd = open(o.file, O_RDONLY | O_CLOEXEC | O_NONBLOCK)) < 0)
		error_set(e, "%s: %s", o.file, strerror(errno));
	free(o.file);
	return fd;
}

int cli_ctl(int argc, char **argv)
{
	char line[4096] = "";
	struct error e;
	size_t len;

	if (argc < 2)
		return help(argc == 1 && !strcmp(argv[0], "--help") ? stdout : stderr);
	bool shot = !strcmp(argv[1], "screenshot");
	if (shot && argc != 3)
		return fail("screenshot: into which file? - is standard output"), EXIT_USAGE;
	for (int k = 1; k < (shot ? 2 : argc); k++) {
		size_t n = strlen(line);
		if ((size_t)snprintf(line + n, sizeof(line) - n, "%s%s", n ? " " : "", argv[k]) >= sizeof(line) - n)
			return fail("ctl: the command is too long"), EXIT_USAGE;
	}
	int fd = -1;
	if (!strcmp(argv[1], "insert") && (fd = open_image(argc > 2 ? line + strlen("insert ") : "", &e)) < 0)
		return fail(e.msg);
	char *answer = control_ask(argv[0], line, fd, &len, &e);
	if (fd >= 0)
		close(fd);
	if (!answer)
		return fail(e.msg);
	int status = write_file(shot ? argv[2] : "-", answer, len);
	free(answer);
	return status;
}

int cli_list(int argc, char **argv)
{
	if (argc && (!strcmp(argv[0], "--help") || !strcmp(argv[0], "-h")))
		return puts("ring3 list\n\n  The names of the running machines, one a line: those that were given one by --name."), 0;
	if (argc) {
		fprintf(stderr, "ring3: list %s: one too many; ring3 list takes nothing\n", argv[0]);
		return EXIT_USAGE;
	}
	char **names = control_names();

	for (char **p = names; p && *p; p++) {
		puts(*p);
		free(*p);
	}
	free(names);
	return 0;
}
