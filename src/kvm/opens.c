/* Whether /dev/kvm opens, within a time. A driver that hangs keeps who opens it in a sleep that no signal ends; so a child
 * tries it first, and is left behind where it does not come back: the kernel ends it when it does.
 *
 * The child does nothing but open, and holds no descriptor of ours while it does. Threading: any thread; others may run.
 * open(2), pidfd_open(2). */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kvm/kvm.h"
#include "kvm/probe_api.h"

#define LIMIT_MS 1000u

/* errno is the exit status. */
static void try_it(const struct kvm_host *h)
{
	syscall(SYS_close_range, 0u, ~0u, 0u);
	int r = h->open(h->arg);
	_exit(r < 0 ? -r & 0xff : 0);
}

static u64 now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (u64)t.tv_sec * 1000 + (u64)t.tv_nsec / 1000000;
}

/* Signals begin it anew. */
static bool ends_within(int pidfd, u64 ms)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };
	u64 end = now_ms() + ms, now;
	while ((now = now_ms()) < end)
		if (poll(&p, 1, (int)(end - now)) == 1)
			return true;
	return false;
}

int kvm_try_open(const struct kvm_host *h)
{
	pid_t child = fork();
	if (!child)
		try_it(h);
	int pidfd = child > 0 ? (int)syscall(SYS_pidfd_open, child, 0u) : -1, status = 0;
	if (pidfd < 0) { /* no processes to be had; or a kernel that is too old for KVM's extensions */
		if (child > 0)
			waitpid(child, &status, 0);
		return 0;
	}
	bool ended = ends_within(pidfd, LIMIT_MS);
	if (!ended)
		kill(child, SIGKILL);
	if (waitpid(child, &status, ended ? 0 : WNOHANG) == child && ended)
		status = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
	close(pidfd);
	return ended ? -status : -ETIMEDOUT;
}
