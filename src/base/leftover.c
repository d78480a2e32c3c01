/* Files that a process has made and that go with it: sockets, links. It removes them at its end; a helper does
 * for it what it cannot, because it is contained or was killed.
 *
 * Invariants
 *  1. The helper removes what it was told of before the seal, and of that only what is still the file that it
 *     was then: what another has put in its place stays.
 *  2. Without a helper (none was asked for, or it is gone) the process removes by itself, up to the seal.
 * The descriptor to the helper is the process's, like its log: what is to go belongs to the process's end.
 * Threading: one thread, the loop's. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"

#define MAX_FILES 64
#define PATH_BYTES 4096
enum { ADD = 'a', REMOVE = 'r', SEAL = 's' };

static int helper = -1; /* the socket to it */
static bool sealed_now; /* this process removes nothing any more */

struct leftover { char *path; struct stat was; };

/* ---- the helper ------------------------------------------------------------------------ */

/* dead: who made it cannot say any more that this is it, and an inode's number may be used again. */
static void take_away(struct leftover *l, bool dead)
{
	struct stat now;

	if (l->path && !lstat(l->path, &now) && now.st_dev == l->was.st_dev && now.st_ino == l->was.st_ino &&
	    (!dead || !memcmp(&now.st_ctim, &l->was.st_ctim, sizeof(now.st_ctim))))
		unlink(l->path);
	free(l->path);
	l->path = NULL;
}

static void carry_out(struct leftover *files, bool *sealed, char what, const char *path)
{
	int free_one = -1;

	for (int k = 0; k < MAX_FILES; k++) {
		if (!files[k].path)
			free_one = k;
		else if (what == REMOVE && !strcmp(files[k].path, path))
			take_away(&files[k], false);
	}
	*sealed |= what == SEAL;
	if (what == ADD && !*sealed && free_one >= 0 && !lstat(path, &files[free_one].was))
		files[free_one].path = strdup(path);
}

static _Noreturn void helper_main(int fd)
{
	static struct leftover files[MAX_FILES];
	char text[PATH_BYTES + 2];
	bool sealed = false;
	ssize_t n;

	setsid(); /* signals to our process group are not for it */
	prctl(PR_SET_NAME, "ring3-leftover");
	signal(SIGTERM, SIG_IGN);
	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	dup2(fd, STDIN_FILENO);
	close_range(STDOUT_FILENO, ~0u, 0); /* nobody waits for our end of their pipes */
	while ((n = recv(STDIN_FILENO, text, sizeof(text) - 1, 0)) > 0 || (n < 0 && errno == EINTR)) {
		if (n <= 0)
			continue;
		text[n] = 0;
		carry_out(files, &sealed, text[0], text + 1);
		(void)!send(STDIN_FILENO, "", 1, MSG_NOSIGNAL);
	}
	for (int k = 0; k < MAX_FILES; k++)
		take_away(&files[k], true);
	_exit(0);
}

void leftover_guard(void)
{
	int ends[2];

	if (helper >= 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends))
		return;
	switch (fork()) {
	case 0:
		helper_main(ends[1]);
	case -1:
		close(ends[0]);
		break;
	default:
		helper = ends[0];
	}
	close(ends[1]);
}

/* ---- the process ------------------------------------------------------------------------- */

/* Sends, and waits until it is done. False: there is nobody. */
static bool tell(char what, const char *path)
{
	char text[PATH_BYTES + 1], answer;
	size_t len = strlen(path);
	ssize_t n;

	if (helper < 0 || len >= PATH_BYTES)
		return false;
	text[0] = what;
	memcpy(text + 1, path, len);
	if (send(helper, text, len + 1, MSG_NOSIGNAL) < 0)
		return false;
	while ((n = recv(helper, &answer, 1, 0)) < 0 && errno == EINTR)
		;
	return n == 1;
}

void leftover_add(const char *path) { (void)tell(ADD, path); }

void leftover_seal(void)
{
	(void)tell(SEAL, "");
	sealed_now = true;
}

void leftover_remove(const char *path)
{
	if (!tell(REMOVE, path) && !sealed_now)
		unlink(path);
}
