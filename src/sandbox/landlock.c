/* Landlock: nothing by any path of the file system but shared folders, no TCP port (but for the network's helper), no abstract socket.
 * Linux Documentation/userspace-api/landlock.rst. The kernel's header of the build may be older than the
 * kernel of the run: the bits are named here, and cut to what the kernel knows.
 *
 * Signals are not confined here (LANDLOCK_SCOPE_SIGNAL): each thread enters by itself, and before Linux 6.15
 * threads of one process could then not signal each other; seccomp's list confines them. */
#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sandbox/sandbox_impl.h"

/* Of struct landlock_ruleset_attr; later fields are later ABIs. */
struct ruleset { u64 fs, net, scoped; };
#define FS_ABI1 0x1fffull          /* execute, write, read, make, remove ... */
#define FS_REFER (1ull << 13)      /* ABI 2 */
#define FS_TRUNCATE (1ull << 14)   /* ABI 3: by path; descriptors keep what they had when they were opened */
#define FS_IOCTL_DEV (1ull << 15)  /* ABI 5: as above */
#define NET_TCP 3ull               /* ABI 4: bind, connect */
#define SCOPE_ABSTRACT 1ull        /* ABI 6 */

#define FS_READ (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)

static bool add_folder(int set, const struct sandbox_folder *f, u64 handled, struct error *e)
{
	struct landlock_path_beneath_attr a = {
		.allowed_access = f->writable ? handled & ~(u64)LANDLOCK_ACCESS_FS_EXECUTE : FS_READ,
		.parent_fd = open(f->path, O_PATH | O_CLOEXEC),
	};
	bool ok = a.parent_fd >= 0 && !syscall(SYS_landlock_add_rule, set, LANDLOCK_RULE_PATH_BENEATH, &a, 0);

	if (!ok)
		error_set(e, "Landlock: %s: %s", f->path, strerror(errno));
	if (a.parent_fd >= 0)
		close(a.parent_fd);
	return ok;
}

int sandbox_landlock_abi(void)
{
	long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);

	return abi < 0 ? 0 : (int)abi;
}

int landlock_make(const struct sandbox_folder *folders, int n, bool tcp, struct error *e)
{
	long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);

	if (abi < 1) {
		error_set(e, "no Landlock on this host: %s", abi < 0 ? strerror(errno) : "an unknown version");
		return -1;
	}
	struct ruleset r = {
		.fs = FS_ABI1 | (abi >= 2 ? FS_REFER : 0) | (abi >= 3 ? FS_TRUNCATE : 0) | (abi >= 5 ? FS_IOCTL_DEV : 0),
		.net = abi >= 4 && !tcp ? NET_TCP : 0,
		.scoped = abi >= 6 ? SCOPE_ABSTRACT : 0,
	};
	size_t size = abi >= 6 ? sizeof(r) : abi >= 4 ? offsetof(struct ruleset, scoped) : offsetof(struct ruleset, net);
	int set = (int)syscall(SYS_landlock_create_ruleset, &r, size, 0);
	if (set < 0)
		error_set(e, "Landlock: %s", strerror(errno));
	for (int k = 0; set >= 0 && k < n; k++)
		if (!add_folder(set, &folders[k], r.fs, e)) {
			close(set);
			return -1;
		}
	return set;
}

bool landlock_restrict(int set)
{
	return !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) && !syscall(SYS_landlock_restrict_self, set, 0);
}
