/* Something done by every thread of the process, for what the kernel lets a thread do to itself only: Landlock
 * before its ABI 8. Each is sent SIGSYS, whose handler does it and counts.
 *
 * Invariants
 *  1. Nobody makes threads meanwhile: the caller is the only one that does.
 *  2. Threads of the kernel's in the process (io_uring's, "iou-...") take no signals, and act with the
 *     credentials of whoever asks something of them. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "sandbox/sandbox_impl.h"

#define PATIENCE 10 /* seconds for one thread to do it */

/* Of the call under way: one at a time in a process. */
static bool (*_Atomic task)(int arg);
static int task_arg;
static sem_t task_done;
static _Atomic bool task_failed;

bool threads_on_signal(const siginfo_t *si)
{
	bool (*fn)(int) = atomic_load(&task);
	int saved_errno = errno;

	if (si->si_code != SI_TKILL || si->si_pid != getpid() || !fn)
		return false;
	if (!fn(task_arg))
		atomic_store(&task_failed, true);
	sem_post(&task_done);
	errno = saved_errno;
	return true;
}

static bool is_kernels(pid_t tid)
{
	char path[64], name[4] = "";

	snprintf(path, sizeof(path), "/proc/self/task/%d/comm", (int)tid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return true; /* it has ended */
	(void)!read(fd, name, 3);
	close(fd);
	return !strcmp(name, "iou");
}

static bool ask(pid_t tid)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += PATIENCE;
	if (syscall(SYS_tgkill, getpid(), tid, SIGSYS))
		return errno == ESRCH;
	while (sem_timedwait(&task_done, &until))
		if (errno != EINTR)
			return false;
	return true;
}

bool threads_each(bool (*fn)(int arg), int arg, struct error *e)
{
	DIR *d = opendir("/proc/self/task");
	const struct dirent *t;
	bool ok = true;

	if (!d)
		return error_set(e, "/proc/self/task: %s", strerror(errno));
	sem_init(&task_done, 0, 0);
	task_arg = arg;
	atomic_store(&task_failed, false);
	atomic_store(&task, fn);
	while (ok && (t = readdir(d))) {
		pid_t tid = (pid_t)atoi(t->d_name);
		if (tid > 0 && tid != gettid() && !is_kernels(tid))
			ok = ask(tid);
	}
	closedir(d);
	ok = ok && fn(arg) && !atomic_load(&task_failed);
	atomic_store(&task, NULL);
	return ok || error_set(e, "a thread did not take it on");
}
