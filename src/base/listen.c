/* Names that others connect to: Unix sockets by a path. A socket that nobody listens on was left by a run that was
 * killed and gives way; whatever else has the name stays. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/base.h"

static int unix_socket(void) { return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0); }

static void remove_stale(const struct sockaddr_un *a)
{
	struct stat st;

	if (lstat(a->sun_path, &st) || !S_ISSOCK(st.st_mode))
		return;
	int fd = unix_socket();
	if (fd >= 0 && connect(fd, (const struct sockaddr *)a, sizeof(*a)) && errno == ECONNREFUSED)
		unlink(a->sun_path);
	if (fd >= 0)
		close(fd);
}

int listen_at_path(const char *path, int backlog, struct error *e)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	if (!*path || strlen(path) >= sizeof(a.sun_path)) {
		error_set(e, "%s: the path of a socket has 1 to %zu characters", path, sizeof(a.sun_path) - 1);
		return -1;
	}
	strcpy(a.sun_path, path);
	remove_stale(&a);
	int fd = unix_socket();
	/* The mode is that of the file which bind makes: nobody else's from the first moment. */
	if (fd >= 0 && !fchmod(fd, 0600) && !bind(fd, (struct sockaddr *)&a, sizeof(a))) {
		leftover_add(path);
		if (!listen(fd, backlog))
			return fd;
	}
	error_set(e, "%s: %s", path, errno == EADDRINUSE ? "the name is taken, by another machine or a file" : strerror(errno));
	if (fd >= 0)
		close(fd);
	return -1;
}
