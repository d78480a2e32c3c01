/* The terminal on standard input: raw while a guest's console is on it, and as it was before
 * afterwards, however this process ended.
 *
 * Invariants
 *  1. `before` holds the settings to go back to from the moment `raw_now` is true.
 *  2. The guard is a child that does nothing but wait for its pipe: a byte means that the
 *     terminal was put back (or never touched); an end of file without one means that this
 *     process is gone, by SIGKILL say, and then the guard puts it back, unless somebody has
 *     changed the settings since.
 * The settings are the process's, so the state here is the process's, too.
 * Threading: the loop's thread; console_restore_terminal and console_raw_again from anywhere,
 * signal handlers included. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "display/display.h"
#include "display/terminal.h"

static struct termios before, raw;
static _Atomic bool raw_now;
static _Atomic int guard = -1; /* the pipe's end; -1: no guard */

/* In raw mode, but for our own messages, which have line ends like everybody's. */
static struct termios make_raw(const struct termios *t)
{
	struct termios r = *t;
	cfmakeraw(&r);
	r.c_oflag |= OPOST;
	return r;
}

static bool same(const struct termios *a, const struct termios *b)
{
	return a->c_iflag == b->c_iflag && a->c_oflag == b->c_oflag && a->c_lflag == b->c_lflag &&
	       !memcmp(a->c_cc, b->c_cc, sizeof(a->c_cc));
}

static _Noreturn void guard_main(int pipe_end)
{
	char byte;
	ssize_t n;

	setsid(); /* signals to our process group, and job control, are not for it */
	signal(SIGTERM, SIG_IGN);
	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	dup2(pipe_end, STDOUT_FILENO);
	close_range(STDERR_FILENO, ~0u, 0); /* nobody waits for our end of their pipes */
	do
		n = read(STDOUT_FILENO, &byte, 1);
	while (n < 0 && errno == EINTR);
	struct termios now;
	if (n == 0 && !tcgetattr(STDIN_FILENO, &now) && same(&now, &raw))
		tcsetattr(STDIN_FILENO, TCSANOW, &before);
	_exit(0);
}

void console_guard_terminal(void)
{
	int ends[2];

	if (atomic_load(&guard) >= 0 || !isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &before) || pipe(ends))
		return;
	/* As the kernel keeps them: some bits do not take. */
	raw = make_raw(&before);
	switch (fork()) {
	case 0:
		close(ends[1]);
		guard_main(ends[0]);
	case -1:
		close(ends[0]);
		close(ends[1]);
		return;
	}
	close(ends[0]);
	atomic_store(&guard, ends[1]);
}

bool terminal_make_raw(void)
{
	if (!isatty(STDIN_FILENO) || atomic_load(&raw_now) || tcgetattr(STDIN_FILENO, &before))
		return false;
	raw = make_raw(&before);
	atomic_store(&raw_now, true);
	tcsetattr(STDIN_FILENO, TCSANOW, &raw);
	return true;
}

/* In the background the terminal is another's, and touching it would stop us. */
static void set_terminal(const struct termios *t)
{
	pid_t owner = tcgetpgrp(STDIN_FILENO);

	if (owner < 0 || owner == getpgrp())
		tcsetattr(STDIN_FILENO, TCSANOW, t);
}

void console_raw_again(void)
{
	int saved_errno = errno;

	if (atomic_load(&raw_now))
		set_terminal(&raw);
	errno = saved_errno;
}

void console_restore_terminal(void)
{
	int saved_errno = errno;

	if (atomic_exchange(&raw_now, false))
		set_terminal(&before);
	int fd = atomic_exchange(&guard, -1);
	if (fd >= 0) {
		(void)!write(fd, "", 1);
		close(fd);
	}
	errno = saved_errno;
}
