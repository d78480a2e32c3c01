/* `ring3 doctor`: what this host offers ring3, what each engine can do here, and what the user can do about what is
 * missing. It changes nothing on the host. */
#define LOG_TOPIC "cli"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/doctor.h"

struct finding *finding_add(struct findings *f, const char *section, const char *name, enum mark mark, const char *fmt, ...)
{
	if (f->n == ARRAY_LEN(f->at))
		bug("more findings than room for them");
	struct finding *x = &f->at[f->n++];
	*x = (struct finding){ .section = section, .name = name, .mark = mark };
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(x->text, sizeof(x->text), fmt, ap);
	va_end(ap);
	return x;
}

void finding_advise(struct finding *f, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(f->advice, sizeof(f->advice), fmt, ap);
	va_end(ap);
}

/* ---- engines ---------------------------------------------------------------------------------- */

/* How many work. */
static unsigned look_at_engines(struct findings *f)
{
	unsigned n = 0;
	char why[200];

	for (unsigned k = 0; engines[k]; k++) {
		struct error e;
		bool usable = engines[k]->usable(&e);
		n += usable;
		finding_add(f, "engines", engines[k]->name, usable ? GOOD : LACKS, "%s", usable ? engines[k]->help : e.msg);
	}
	const struct engine_ops *taken = engine_auto(false, why, sizeof(why));
	finding_add(f, "engines", "auto", FACT, "takes %s (%s)", taken->name, why);
	return n;
}

/* ---- for people ---------------------------------------------------------------------------------- */

static void print_text(const struct findings *f)
{
	static const char *const marks[] = { "  ", "ok", "no" };
	const char *section = "";
	bool any = false;

	for (unsigned k = 0; k < f->n; k++) {
		const struct finding *x = &f->at[k];
		if (strcmp(x->section, section))
			printf("%s%s\n", *section ? "\n" : "", x->section);
		section = x->section;
		printf("  %s  %-18s %s\n", marks[x->mark], x->name, x->text);
		any |= x->advice[0] != 0;
	}
	if (any)
		puts("\nwhat can be done");
	for (unsigned k = 0; k < f->n; k++)
		if (f->at[k].advice[0])
			printf("  %-22s %s\n", f->at[k].name, f->at[k].advice);
}

/* ---- for programs --------------------------------------------------------------------------------- */

static void member(const char *name, const char *text)
{
	printf(", \"%s\": ", name);
	json_string(text);
}

static void print_json(const struct findings *f, bool works)
{
	static const char *const marks[] = { "fact", "ok", "lacks" };

	printf("{\n  \"works\": %s,\n  \"findings\": [", works ? "true" : "false");
	for (unsigned k = 0; k < f->n; k++) {
		const struct finding *x = &f->at[k];
		fputs(k ? ",\n    { \"section\": " : "\n    { \"section\": ", stdout);
		json_string(x->section);
		member("name", x->name);
		member("state", marks[x->mark]);
		member("text", x->text);
		if (x->advice[0])
			member("advice", x->advice);
		fputs(" }", stdout);
	}
	puts("\n  ]\n}");
}

/* ---- the verb --------------------------------------------------------------------------------------- */

static int help(FILE *out)
{
	fputs("ring3 doctor [--json]\n\n"
	      "  Looks at this host, changes nothing, and prints what ring3 can use of it: the processor, /dev/kvm and how\n"
	      "  fast it is, what the engines need, disks, containment; and what can be done about what is missing.\n\n"
	      "  --json              the same for programs\n\n"
	      "Exit status: 0 an engine works, 1 none does, 64 a wrong option.\n", out);
	return out == stdout ? 0 : EXIT_USAGE;
}

int cli_doctor(int argc, char **argv)
{
	static struct findings f;
	bool json = false;
	struct error e;

	for (int k = 0; k < argc; k++) {
		if (!strcmp(argv[k], "--help") || !strcmp(argv[k], "-h"))
			return help(stdout);
		if (strcmp(argv[k], "--json")) {
			fprintf(stderr, "ring3: doctor %s: no such option; see ring3 doctor --help\n", argv[k]);
			return EXIT_USAGE;
		}
		json = true;
	}
	f.n = 0;
	if (!log_configure("error", NULL, &e))
		return EXIT_USAGE;
	doctor_look_at_host(&f);
	doctor_look_at_kvm(&f);
	bool works = look_at_engines(&f) > 0;
	if (json)
		print_json(&f, works);
	else
		print_text(&f);
	return works ? 0 : 1;
}
