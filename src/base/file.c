/* Files by name. */
#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
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
