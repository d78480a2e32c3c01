/* Errors that travel up as bool + struct error, and bug(), which ends the process.
 *
 * Threading: all of it from any thread; the hook of bug() is per thread, since the state
 * worth dumping is that of the thread which found the mistake. */
#include "base/base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool error_set(struct error *e, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(e->msg, sizeof(e->msg), fmt, ap);
	va_end(ap);
	return false;
}

bool error_prefix(struct error *e, const char *fmt, ...)
{
	char msg[sizeof(e->msg)];
	va_list ap;

	va_start(ap, fmt);
	int n = vsnprintf(msg, sizeof(msg), fmt, ap);
	va_end(ap);
	if (n >= 0 && (size_t)n < sizeof(msg)) {
		size_t room = sizeof(msg) - (size_t)n;
		if (room > 1)
			snprintf(msg + n, room, ": %.*s", (int)(room - 1), e->msg);
	}
	memcpy(e->msg, msg, sizeof(msg));
	return false;
}

static _Thread_local void (*bug_hook)(void *);
static _Thread_local void *bug_hook_arg;

void bug_set_hook(void (*hook)(void *), void *arg)
{
	bug_hook = hook;
	bug_hook_arg = arg;
}

void bug_at(const char *file, int line, const char *fmt, ...)
{
	va_list ap;

	flockfile(stderr);
	fprintf(stderr, "ring3: bug at %s:%d: ", file, line);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	funlockfile(stderr);

	void (*hook)(void *) = bug_hook;
	bug_hook = NULL; /* a hook that fails does not come back here without end */
	if (hook)
		hook(bug_hook_arg);
	abort();
}
