/* Entering: first Landlock, thread by thread, then seccomp, all threads at once; and what becomes of a call
 * that is on no list.
 *
 * The kernel turns such a call into SIGSYS at once on its thread (seccomp(2), SECCOMP_RET_TRAP); it is not
 * carried out. The handler says what it was and ends the process. The filter lets nobody change that
 * handler; a thread that blocks SIGSYS is killed, with its process, by the kernel itself. */
#define LOG_TOPIC "sandbox"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "sandbox/sandbox_impl.h"

#ifndef SYS_SECCOMP /* si_code; the C library has it from 2.37 on */
#define SYS_SECCOMP 1
#endif

const char *const sandbox_words[] = { "auto", "on", "off", NULL };

/* The process's, like its filter. */
static void (*last_words)(void);

static _Noreturn void stopped(int call)
{
	char text[200];
	int n = snprintf(text, sizeof(text), "ring3: the sandbox stopped this process: it called %s (%d), which it never needs; "
			 "a bug of ring3, or an attack on it\n", seccomp_name(call), call);

	if (last_words)
		last_words();
	(void)!write(STDERR_FILENO, text, (size_t)MIN(n, (int)sizeof(text) - 1));
	_exit(SANDBOX_STATUS);
}

static void on_sigsys(int sig, siginfo_t *si, void *context)
{
	(void)sig;
	if (si->si_code == SYS_SECCOMP && !paths_answer(si, context))
		stopped(si->si_syscall);
	if (si->si_code != SYS_SECCOMP)
		threads_on_signal(si);
}

void sandbox_catch(void)
{
	sigaction(SIGSYS, &(struct sigaction){ .sa_sigaction = on_sigsys, .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK }, NULL);
}

static bool enter_landlock(const struct sandbox_folder *folders, int n, unsigned calls, struct error *e)
{
	/* The name server's file comes to the helper by seccomp (paths.c). */
	if (calls & CALLS_NET && !sandbox_has_seccomp())
		return error_set(e, "it would be without a name server, since this host has no seccomp");
	int set = landlock_make(folders, n, calls & CALLS_NET, e);
	bool ok = set >= 0 && threads_each(landlock_restrict, set, e);

	if (set >= 0)
		close(set);
	return ok;
}

static bool enter(enum sandbox_mode mode, unsigned calls, const struct sandbox_folder *folders, int n, struct error *e)
{
	struct error why;

#ifdef RING3_NO_SANDBOX
	error_set(&why, "this build has a sanitizer, whose runtime asks more of the kernel");
	if (mode == SANDBOX_ON)
		return error_set(e, "--sandbox on: %s", why.msg);
	log_info("not contained: %s", why.msg);
	return true;
#endif
	sandbox_catch();
	tzset(); /* what the C library would read later */
	bool by_landlock = enter_landlock(folders, n, calls, &why);
	if (!by_landlock) {
		if (mode == SANDBOX_ON)
			return error_set(e, "--sandbox on: %s; --sandbox auto does with what there is", why.msg);
		log_msg(LOG_TOPIC, n ? LOG_WARN : LOG_INFO, "Landlock does not contain this process%s: %s",
			n ? ", which can open files outside of the folders that it shares" : "", why.msg);
	}
	bool by_seccomp = seccomp_enter(calls, &why);
	if (!by_seccomp) {
		if (mode == SANDBOX_ON)
			return error_set(e, "--sandbox on: %s; --sandbox auto does with what there is", why.msg);
		log_info("seccomp does not contain this process: %s", why.msg);
	}
	if (by_landlock || by_seccomp)
		log_info("%s contained by %s", calls & CALLS_NET ? "the network's helper is" : "the machine is",
			 !by_landlock ? "seccomp" : !by_seccomp ? "Landlock" : "seccomp and Landlock");
	return true;
}

bool sandbox_enter(enum sandbox_mode mode, const struct sandbox_folder *folders, int n, bool kvm, void (*last)(void), struct error *e)
{
	unsigned calls = CALLS_MACHINE | (n ? CALLS_FILES : 0) | (kvm ? CALLS_KVM : 0);

	for (int k = 0; k < n; k++)
		calls |= folders[k].writable ? CALLS_CHANGE_FILES : 0;
	last_words = last;
	return mode == SANDBOX_OFF || enter(mode, calls, folders, n, e);
}

bool sandbox_enter_net(enum sandbox_mode mode, struct error *e)
{
	if (mode == SANDBOX_OFF)
		return true;
	paths_open_helpers();
	return enter(mode, CALLS_NET, NULL, 0, e);
}
