/* `ring3 run`: parse, build, run, report. Signals: SIGINT, SIGTERM, SIGHUP end the machine
 * (status 67); a crash puts the terminal back first. */
#define LOG_TOPIC "cli"
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "display/display.h"

static struct machine *_Atomic running; /* for the signal handler alone */

static void on_signal(int sig)
{
	struct machine *m = atomic_load(&running);
	(void)sig;
	if (m)
		machine_quit(m);
	else
		_exit(67);
}
static void on_crash(int sig)
{
	console_restore_terminal();
	signal(sig, SIG_DFL);
	raise(sig);
}

static void catch_signals(void)
{
	static const int ends[] = { SIGINT, SIGTERM, SIGHUP };
	for (size_t k = 0; k < ARRAY_LEN(ends); k++)
		sigaction(ends[k], &(struct sigaction){ .sa_handler = on_signal }, NULL);
	sigaction(SIGABRT, &(struct sigaction){ .sa_handler = on_crash, .sa_flags = SA_RESETHAND }, NULL);
	sigaction(SIGSEGV, &(struct sigaction){ .sa_handler = on_crash, .sa_flags = SA_RESETHAND }, NULL);
	signal(SIGPIPE, SIG_IGN);
}

static int fail(int status, const struct error *e)
{
	fprintf(stderr, "ring3: %s\n", e->msg);
	return status;
}

static int run_machine(const struct vm_config *cfg, const struct cli_extra *x)
{
	struct error e;
	struct machine *m = machine_new(cfg, &e);
	if (!m)
		return fail(EXIT_START, &e);
	int status = 0;
	if (x->dry_run) {
		machine_print(m);
	} else {
		atomic_store(&running, m);
		enum machine_end end = machine_run(m, &status);
		atomic_store(&running, NULL);
		if (end != END_POWEROFF && end != END_DEBUG_EXIT) {
			console_restore_terminal();
			fprintf(stderr, "ring3: %s\n", machine_end_text(m));
		}
	}
	machine_free(m);
	return status;
}

int cli_run(int argc, char **argv)
{
	struct vm_config cfg;
	struct cli_extra x;
	struct error e;
	int status = 0;
	if (!options_parse(argc, argv, &cfg, &x, &e))
		status = fail(EXIT_USAGE, &e);
	else if (x.done)
		status = 0;
	else if (!log_configure(x.log ? x.log : "warn", x.log_file, &e))
		status = fail(EXIT_USAGE, &e);
	else {
		catch_signals();
		status = run_machine(&cfg, &x);
	}
	options_free(&cfg, &x);
	return status;
}
