/* The few paths that are asked for after entering, and are no attack.
 *
 * The C library looks at some of its own, and does without: they are not there for it. All others end a machine's
 * process.
 *
 * The network's helper gets the content of /etc/resolv.conf, for the guest's name server, and is refused all
 * others. libslirp looks whether that file has changed (stat) and reads it again then (fopen).
 *
 * The calls are stopped by the filter, and answered here as the kernel would: from a descriptor that was
 * opened before. So a change of the file is seen, but not another file put in its place (rename): then the
 * name server stays what it was.
 * Runs in the handler of SIGSYS, which comes at a system call: the path is the process's own memory. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "sandbox/sandbox_impl.h"

#define RESOLV_CONF "/etc/resolv.conf"

/* malloc, when an arena shrinks; how many processors there are, for the number of arenas; how much memory, in qsort. */
static const char *const librarys[] = { "/proc/sys/vm/overcommit_memory", "/sys/devices/system/cpu/online", "/proc/stat", "/proc/cpuinfo",
					"/proc/meminfo" };

static int resolv_conf = -1;
static bool is_helper;

void paths_open_helpers(void)
{
	resolv_conf = open(RESOLV_CONF, O_RDONLY | O_CLOEXEC);
	is_helper = true;
}

static bool is_ours(const char *path) { return !strcmp(path, RESOLV_CONF); }

static long do_open(const char *path, int flags)
{
	if (!is_ours(path) || (flags & O_ACCMODE) != O_RDONLY)
		return -EACCES;
	if (resolv_conf < 0)
		return -ENOENT;
	lseek(resolv_conf, 0, SEEK_SET); /* its position is shared by all that were opened */
	int fd = dup(resolv_conf);
	return fd < 0 ? -errno : fd;
}

static long do_fstat(int fd, void *st)
{
	return syscall(SYS_fstat, fd, st) ? -errno : 0;
}

static long do_stat(const char *path, void *st)
{
	if (!is_ours(path))
		return -EACCES;
	return resolv_conf < 0 ? -ENOENT : do_fstat(resolv_conf, st);
}

static bool answer_helper(const siginfo_t *si, greg_t *r)
{
	long result;

	switch (si->si_syscall) {
	case SYS_open: result = do_open((const char *)r[REG_RDI], (int)r[REG_RSI]); break;
	case SYS_openat: result = do_open((const char *)r[REG_RSI], (int)r[REG_RDX]); break;
	case SYS_stat: result = do_stat((const char *)r[REG_RDI], (void *)r[REG_RSI]); break;
	case SYS_newfstatat:
		result = (r[REG_R10] & AT_EMPTY_PATH) && !*(const char *)r[REG_RSI] ? do_fstat((int)r[REG_RDI], (void *)r[REG_RDX])
										  : do_stat((const char *)r[REG_RSI], (void *)r[REG_RDX]);
		break;
	case SYS_access: case SYS_faccessat: case SYS_faccessat2: case SYS_readlink: case SYS_readlinkat: case SYS_lstat: case SYS_statx:
		result = -EACCES;
		break;
	default:
		return false;
	}
	r[REG_RAX] = result;
	return true;
}

static bool answer_library(const siginfo_t *si, greg_t *r)
{
	const char *path = si->si_syscall == SYS_openat ? (const char *)r[REG_RSI] : si->si_syscall == SYS_open ? (const char *)r[REG_RDI] : NULL;

	for (size_t k = 0; path && k < ARRAY_LEN(librarys); k++)
		if (!strcmp(path, librarys[k])) {
			r[REG_RAX] = -ENOENT;
			return true;
		}
	return false;
}

bool paths_answer(const siginfo_t *si, void *context)
{
	greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;

	return is_helper ? answer_helper(si, r) : answer_library(si, r);
}
