/* The other end of the control socket: where it is, and how it is asked. */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "control/control.h"

#define ANSWER_MAX (256u << 20)

/* $XDG_RUNTIME_DIR/ring3, or /tmp/ring3-UID; made if it is not there, and refused if it is another's. */
static bool folder(char *buf, size_t cap, struct error *e)
{
	const char *run = getenv("XDG_RUNTIME_DIR");
	struct stat st;

	if (run && *run)
		snprintf(buf, cap, "%s/ring3", run);
	else
		snprintf(buf, cap, "/tmp/ring3-%u", (unsigned)getuid());
	if (mkdir(buf, 0700) && errno != EEXIST)
		return error_set(e, "%s: %s", buf, strerror(errno));
	if (lstat(buf, &st) || !S_ISDIR(st.st_mode) || st.st_uid != getuid() || (st.st_mode & 077))
		return error_set(e, "%s: not a folder of yours alone (mode 700)", buf);
	return true;
}

bool control_path(const char *name, char *buf, size_t cap, struct error *e)
{
	char dir[256];
	size_t n = strlen(name);

	for (size_t k = 0; k < n; k++)
		if (!isalnum((u8)name[k]) && !strchr("-_.", name[k]))
			n = 0;
	if (!n || n > 40 || name[0] == '.')
		return error_set(e, "--name %.48s%s: up to 40 letters, digits and - _ .", name, strlen(name) > 48 ? "..." : "");
	if (!folder(dir, sizeof(dir), e))
		return false;
	return (size_t)snprintf(buf, cap, "%s/%s", dir, name) < cap || error_set(e, "%s/%s: the path is too long for a socket", dir, name);
}

static int dial(const char *name, struct error *e)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	if (!control_path(name, a.sun_path, sizeof(a.sun_path), e))
		return -1;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0)
		return fd;
	error_set(e, "%s: no machine of that name is running; ring3 list names those that are", name);
	if (fd >= 0)
		close(fd);
	return -1;
}

/* All that comes up to want bytes, or to a newline where want is 0. */
static size_t receive(int fd, char *buf, size_t want, size_t cap)
{
	size_t n = 0;

	while (want ? n < want : n < cap) {
		ssize_t k = read(fd, buf + n, want ? want - n : 1);
		if (k < 0 && errno == EINTR)
			continue;
		if (k <= 0)
			break;
		n += (size_t)k;
		if (!want && buf[n - 1] == '\n')
			break;
	}
	return n;
}

/* A line, and a descriptor with its first byte. */
static bool send_line(int to, const char *command, int fd)
{
	union { struct cmsghdr head; char room[CMSG_SPACE(sizeof(int))]; } c = { .head = { CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
	struct iovec iov = { (char *)command, strlen(command) };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = fd < 0 ? NULL : &c, .msg_controllen = fd < 0 ? 0 : sizeof(c.room) };

	memcpy(CMSG_DATA(&c.head), &fd, sizeof(fd));
	return sendmsg(to, &m, MSG_NOSIGNAL) == (ssize_t)iov.iov_len && send(to, "\n", 1, MSG_NOSIGNAL) == 1;
}

static char *ask(int fd, const char *name, const char *command, int with, size_t *len, struct error *e)
{
	char head[600], *data;

	if (strchr(command, '\n') || !send_line(fd, command, with)) {
		error_set(e, "%s: %s", name, strchr(command, '\n') ? "a command is one line" : strerror(errno));
		return NULL;
	}
	size_t n = receive(fd, head, 0, sizeof(head) - 1);
	head[n ? n - 1 : 0] = 0;
	if (n > 6 && !strncmp(head, "error ", 6)) {
		error_set(e, "%s: %.500s", name, head + 6);
		return NULL;
	}
	*len = strtoul(head + MIN(n, 3u), NULL, 10);
	data = strncmp(head, "ok ", 3) || *len > ANSWER_MAX ? NULL : malloc(*len + 1);
	if (!data || receive(fd, data, *len, *len) != *len) {
		free(data);
		error_set(e, "%s: it ended without an answer", name);
		return NULL;
	}
	data[*len] = 0;
	return data;
}

char *control_ask(const char *name, const char *command, int with, size_t *len, struct error *e)
{
	int fd = dial(name, e);
	char *data = fd < 0 ? NULL : ask(fd, name, command, with, len, e);

	if (fd >= 0)
		close(fd);
	return data;
}

char **control_names(void)
{
	char dir[256], **names = calloc(1, sizeof(*names));
	size_t n = 0, len;
	struct error e;
	DIR *d = names && folder(dir, sizeof(dir), &e) ? opendir(dir) : NULL;

	for (struct dirent *f; d && (f = readdir(d));) {
		char *answer = f->d_name[0] == '.' ? NULL : control_ask(f->d_name, "status", -1, &len, &e);
		char **more = answer ? realloc(names, (n + 2) * sizeof(*names)) : NULL;
		if (more) {
			names = more;
			names[n++] = strdup(f->d_name);
			names[n] = NULL;
		}
		free(answer);
	}
	if (d)
		closedir(d);
	return names;
}
