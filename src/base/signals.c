/* Which thread gets signals. */
#include "base/signals_api.h"

#include "base/base.h"

#include <pthread.h>

void signals_for_others(sigset_t *old)
{
	/* SIGSYS: a call that the sandbox has stopped. */
	static const int ours[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS };
	sigset_t set;

	sigfillset(&set);
	for (unsigned k = 0; k < ARRAY_LEN(ours); k++)
		sigdelset(&set, ours[k]);
	pthread_sigmask(SIG_BLOCK, &set, old);
}
