/* Files by name. */
#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* May a file be made in the folder that path names? Else errno says why not. */
static bool folder_writable(const char *path)
{
	char folder[4096] = ".";
	const char *slash = strrchr(path, '/');
	size_t len = slash ? (size_t)(slash - path) + 1 : 1;

	if (len >= sizeof(folder)) {
		errno = ENAMETOOLONG;
		return false;
	}
	if (slash) {
		memcpy(folder, path, len);
		folder[len] = 0;
	}
	return !faccessat(AT_FDCWD, folder, W_OK | X_OK, AT_EACCESS);
}

bool file_check_writable(const char *what, const char *path, struct error *e)
{
	struct stat st;
	bool may;

	if (stat(path, &st))
		may = errno == ENOENT && *path && folder_writable(path);
	else if (S_ISDIR(st.st_mode))
		return error_set(e, "%s %s: cannot be written: %s", what, path, strerror(EISDIR));
	else
		may = !faccessat(AT_FDCWD, path, W_OK, AT_EACCESS);
	return may || error_set(e, "%s %s: cannot be written: %s", what, path, strerror(errno));
}

static int opened_without_waiting(const char *path, int flags)
{
	int fd = open(path, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0666);

	if (fd >= 0)
		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
	return fd;
}

int file_open_write(const char *what, const char *path, int how, struct error *e)
{
	int fd = opened_without_waiting(path, O_WRONLY | O_CREAT | how);

	if (fd < 0)
		error_set(e, "%s %s: cannot be written: %s%s", what, path, strerror(errno), errno == ENXIO ? " (a FIFO that nobody reads)" : "");
	return fd;
}

FILE *file_open_text(const char *path)
{
	int fd = opened_without_waiting(path, O_RDONLY);
	struct stat st;
	bool folder = fd >= 0 && !fstat(fd, &st) && S_ISDIR(st.st_mode);
	FILE *f = fd >= 0 && !folder ? fdopen(fd, "r") : NULL;

	if (!f && fd >= 0)
		close(fd);
	if (folder)
		errno = EISDIR;
	return f;
}
