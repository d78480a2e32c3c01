/* `ring3 run`: parse, build, run, report. Signals: SIGUSR1 prints the counters; SIGINT,
 * SIGTERM, SIGHUP end the machine (status 67); a crash puts the terminal back first; a bus error
 * that the host is the cause of is told and ends with status 70; SIGCONT makes the terminal raw
 * again. The process is contained (sandbox.h) before the guest's first instruction. A machine that does not end within PATIENCE of the signal, or within 1 s of another, is
 * left as it is: the process ends. */
#define LOG_TOPIC "cli"
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "control/control.h"
#include "display/display.h"
#include "sandbox/sandbox.h"

static struct machine *_Atomic running; /* for the signal handler alone */

#define PATIENCE 5 /* seconds */

static _Noreturn void end_at_once(int status, const char *why)
{
	console_restore_terminal();
	(void)!write(STDERR_FILENO, why, strlen(why));
	_exit(status);
}

static void on_signal(int sig)
{
	static _Atomic bool asked;
	struct machine *m = atomic_load(&running);
	if (sig == SIGALRM)
		end_at_once(67, "ring3: the machine did not stop in time after the signal; ended as it was\n");
	if (!m)
		end_at_once(67, "ring3: asked to end by a signal, before the machine ran\n");
	machine_quit(m);
	alarm(atomic_exchange(&asked, true) ? 1 : PATIENCE);
}
static void on_usr1(int sig)
{
	struct machine *m = atomic_load(&running);
	(void)sig;
	if (m)
		machine_ask_stats(m);
}
static void on_crash(int sig)
{
	console_restore_terminal();
	signal(sig, SIG_DFL);
	raise(sig);
}

/* The guest's locked accesses and its memory are the host's. */
static void on_bus_error(int sig, siginfo_t *si, void *context)
{
	(void)context;
	if (si->si_code == BUS_ADRALN)
		end_at_once(70, "ring3: a locked access of the guest crosses a cache line, and this host ends programs for that "
				"(split_lock_detect=fatal); with split_lock_detect=warn it would run\n");
	if (si->si_code == BUS_ADRERR)
		end_at_once(70, "ring3: the host has no memory left for the guest's; try a smaller -m\n");
	on_crash(sig);
}
static void on_continue(int sig)
{
	(void)sig;
	console_raw_again();
}

static void catch_signals(void)
{
	static const int ends[] = { SIGINT, SIGTERM, SIGHUP, SIGALRM };
	for (size_t k = 0; k < ARRAY_LEN(ends); k++)
		sigaction(ends[k], &(struct sigaction){ .sa_handler = on_signal }, NULL);
	sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = on_usr1, .sa_flags = SA_RESTART }, NULL);
	sigaction(SIGABRT, &(struct sigaction){ .sa_handler = on_crash, .sa_flags = SA_RESETHAND }, NULL);
	sigaction(SIGSEGV, &(struct sigaction){ .sa_handler = on_crash, .sa_flags = SA_RESETHAND }, NULL);
	sigaction(SIGBUS, &(struct sigaction){ .sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO }, NULL);
	sigaction(SIGCONT, &(struct sigaction){ .sa_handler = on_continue, .sa_flags = SA_RESTART }, NULL);
	signal(SIGPIPE, SIG_IGN);
}

static int fail(int status, const struct error *e)
{
	fprintf(stderr, "ring3: %s\n", e->msg);
	return status;
}

/* What is made under a name of the user's, or of ring3's, is to go with the machine. */
static bool makes_files(const struct vm_config *cfg)
{
	bool any = cfg->name || cfg->vnc.at;

	for (int k = 0; k < cfg->n_serial; k++)
		any |= cfg->serial[k].path != NULL;
	for (int k = 0; k < cfg->n_consoles; k++)
		any |= cfg->console[k].path != NULL;
	for (int k = 0; k < cfg->n_nets; k++)
		any |= cfg->net[k].path != NULL;
	return any;
}

/* All that the machine needs is open. */
static bool contain(const struct vm_config *cfg, const struct machine *m, struct error *e)
{
	struct sandbox_folder folders[MAX_SHARES];

	if (cfg->sandbox != SANDBOX_OFF)
		leftover_seal();
	for (int k = 0; k < cfg->n_shares; k++)
		folders[k] = (struct sandbox_folder){ cfg->share[k].path, !cfg->share[k].read_only };
	return sandbox_enter(cfg->sandbox, folders, cfg->n_shares, !strcmp(machine_engine(m), "kvm"), console_restore_terminal, e);
}

/* Where the machine can be seen, as far as the command line does not say. */
static void tell_where(const struct vm_config *cfg, const struct machine *m)
{
	if (cfg->engine && !strncmp(cfg->engine, "auto", 4)) /* asked for by name; else --log info tells */
		fprintf(stderr, "ring3: engine: %s (%s)\n", machine_engine(m), machine_engine_why(m));
	for (int k = 0; k < cfg->n_serial; k++)
		if (cfg->serial[k].kind && !strcmp(cfg->serial[k].kind, "pty"))
			fprintf(stderr, "ring3: serial %d: %s\n", k, machine_serial_text(m, k));
	for (int k = 0; k < cfg->n_consoles; k++)
		if (cfg->console[k].kind && !strcmp(cfg->console[k].kind, "pty"))
			fprintf(stderr, "ring3: console %d: %s\n", k, machine_console_text(m, k));
	if (cfg->vnc.at && machine_vnc_text(m) && strcmp(cfg->vnc.at, machine_vnc_text(m)))
		fprintf(stderr, "ring3: vnc: %s\n", machine_vnc_text(m));
	/* Firmware speaks to the screen, and many a system does: an empty terminal would tell nothing. */
	if (cfg->firmware.path && !cfg->vnc.at && (!cfg->vga || strcmp(cfg->vga, "none")) && machine_on_terminal(m))
		fprintf(stderr, "ring3: this is the serial console; Ctrl-A s shows the screen, --vnc gives it to viewers; Ctrl-A x leaves\n");
}

static int run_machine(const struct vm_config *cfg)
{
	struct error e;
	if (!cfg->dry_run)
		console_guard_terminal();
	if (!cfg->dry_run && makes_files(cfg))
		leftover_guard();
	struct machine *m = machine_new(cfg, &e);
	if (!m)
		return console_restore_terminal(), fail(EXIT_START, &e);
	int status = 0;
	if (cfg->dry_run) {
		machine_print(m);
	} else {
		tell_where(cfg, m);
		struct control *control = NULL;
		if ((cfg->name && !(control = control_open(m, cfg->name, &e))) || !contain(cfg, m, &e)) {
			control_close(control);
			return machine_free(m), console_restore_terminal(), fail(EXIT_START, &e);
		}
		atomic_store(&running, m);
		enum machine_end end = machine_run(m, &status);
		control_close(control);
		if (cfg->stats)
			machine_print_stats(m);
		if (end != END_POWEROFF && end != END_DEBUG_EXIT) {
			console_restore_terminal();
			fprintf(stderr, "ring3: %s\n", machine_end_text(m));
		}
	}
	atomic_store(&running, NULL);
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
		status = run_machine(&cfg);
	}
	options_free(&cfg, &x);
	return status;
}
