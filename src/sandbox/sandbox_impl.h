/* Private to sandbox/. */
#ifndef RING3_SANDBOX_IMPL_H
#define RING3_SANDBOX_IMPL_H

#include <signal.h>

#include "sandbox/sandbox.h"

void sandbox_catch(void); /* SIGSYS; before all that follows */

/* calls.c: loads the filter into all threads. */
enum { CALLS_MACHINE = 1, CALLS_NET = 2, CALLS_FILES = 4, CALLS_CHANGE_FILES = 8, CALLS_KVM = 16 };
bool seccomp_enter(unsigned calls, struct error *e);
const char *seccomp_name(int call); /* "openat"; async-signal-safe */

/* landlock.c: a set that allows nothing but these folders, and TCP or not, as a descriptor; -1: e says why. Then, for each thread: */
int landlock_make(const struct sandbox_folder *folders, int n, bool tcp, struct error *e);
bool landlock_restrict(int set); /* async-signal-safe */

/* threads.c: runs fn(arg), which is async-signal-safe, on all threads of the process. False: e says why, or fn
 * has failed on one of them. SIGSYS, which no thread may block, is how. */
bool threads_each(bool (*fn)(int arg), int arg, struct error *e);
bool threads_on_signal(const siginfo_t *si); /* of SIGSYS; false: it is not for threads_each */

/* paths.c: what calls on paths get that are expected. */
void paths_open_helpers(void);
bool paths_answer(const siginfo_t *si, void *context); /* of SIGSYS; false: not one of them */

#endif
