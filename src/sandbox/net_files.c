/* What the network's helper gets of files: the content of /etc/resolv.conf, for the guest's name server, and
 * nothing else. libslirp looks whether that file has changed (stat) and reads it again then (fopen).
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

static int resolv_conf = -1;
static bool answers; /* this process is the helper */

void net_files_open(void)
{
	resolv_conf = open(RESOLV_CONF, O_RDONLY | O_CLOEXEC);
	answers = true;
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

bool net_files_answer(siginfo_t *si, void *context)
{
	greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
	long result;

	if (!answers)
		return false;
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
