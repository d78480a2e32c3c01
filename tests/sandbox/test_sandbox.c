/* That the sandbox holds: each attempt is made by a process of its own, a child that has entered, by its first
 * thread or by one that was there before. What needs more than this host offers is skipped. */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test.h"
#include "sandbox/sandbox_impl.h"

enum how { BY_FIRST, BY_EARLIER_THREAD, BY_LATER_THREAD };

/* ---- children ------------------------------------------------------------------------------------ */

static pthread_barrier_t entered;
static void (*attempt)(void);

static void *earlier(void *arg)
{
	pthread_barrier_wait(&entered);
	if (attempt)
		attempt();
	return NULL;
}

static void *later(void *arg)
{
	attempt();
	return NULL;
}

static _Noreturn void child(enum how how, void (*fn)(void), bool (*enter)(struct error *))
{
	pthread_t t;
	struct error e;

	attempt = how == BY_EARLIER_THREAD ? fn : NULL;
	pthread_barrier_init(&entered, NULL, 2);
	if (pthread_create(&t, NULL, earlier, NULL))
		_exit(1);
	if (!enter(&e)) {
		fprintf(stderr, "%s\n", e.msg);
		_exit(2);
	}
	pthread_barrier_wait(&entered);
	pthread_join(t, NULL);
	if (how == BY_LATER_THREAD) {
		attempt = fn;
		if (pthread_create(&t, NULL, later, NULL))
			_exit(3);
		pthread_join(t, NULL);
	}
	if (how == BY_FIRST)
		fn();
	_exit(0);
}

/* Its status as of waitpid; what it said on standard error goes to text. */
static int in_child(enum how how, void (*fn)(void), bool (*enter)(struct error *), char *text, size_t cap)
{
	int ends[2], status;
	size_t n = 0;
	ssize_t got;

	assert_int_equal(pipe(ends), 0);
	fflush(NULL);
	pid_t pid = fork();
	if (!pid) {
		dup2(ends[1], STDERR_FILENO);
		child(how, fn, enter);
	}
	close(ends[1]);
	while ((got = read(ends[0], text + n, cap - 1 - n)) > 0)
		n += (size_t)got;
	text[n] = 0;
	close(ends[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

static bool enter_machine(struct error *e) { return sandbox_enter(SANDBOX_ON, NULL, 0, false, NULL, e); }
static bool enter_seccomp(struct error *e)
{
	sandbox_catch();
	return seccomp_enter(CALLS_MACHINE, e);
}
static bool enter_landlock_only(struct error *e)
{
	int set = landlock_make(NULL, 0, false, e);

	sandbox_catch();
	return set >= 0 && threads_each(landlock_restrict, set, e);
}

static void nothing(void) { }

static void skip_without(bool (*enter)(struct error *))
{
	char text[1000];

#ifdef RING3_NO_SANDBOX
	skip();
#endif
	if (in_child(BY_FIRST, nothing, enter, text, sizeof(text)) != 0) {
		print_message("%s", text);
		skip();
	}
}

/* ---- what must not be done ------------------------------------------------------------------------- */

static void do_execve(void) { execve("/bin/true", (char *[]){ "true", NULL }, (char *[]){ NULL }); }
static void do_open(void) { (void)open("/etc/passwd", O_RDONLY); }
static void do_openat2(void) { (void)syscall(SYS_openat2, AT_FDCWD, "/etc/passwd", (u64[3]){ 0 }, 24); }
static void do_unlink(void) { unlink("/nonexistent"); }
static void do_fork(void) { (void)fork(); }
static void do_vfork(void) { (void)syscall(SYS_clone, CLONE_VM | CLONE_VFORK | SIGCHLD, 0, 0, 0, 0); }
static void do_namespace(void) { (void)syscall(SYS_clone, CLONE_VM | CLONE_SIGHAND | CLONE_THREAD | CLONE_NEWNET, 0, 0, 0, 0); }
static void do_socket(void) { (void)socket(AF_INET, SOCK_STREAM, 0); }
static void do_unix_socket(void) { (void)socket(AF_UNIX, SOCK_STREAM, 0); }
static void do_kill(void) { kill(1, 0); }
static void do_tgkill(void) { (void)syscall(SYS_tgkill, 1, 1, 0); }
static void do_ptrace(void) { ptrace(PTRACE_ATTACH, 1, 0, 0); }
static void do_read_other(void) { (void)syscall(SYS_process_vm_readv, 1, NULL, 0, NULL, 0, 0); }
static void do_uring(void) { (void)syscall(SYS_io_uring_setup, 8, NULL); }
static void do_map_code(void) { mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }
static void do_make_code(void) { static _Alignas(4096) char page[4096]; mprotect(page, 4096, PROT_READ | PROT_WRITE | PROT_EXEC); }
static void do_type_into_terminal(void) { ioctl(0, TIOCSTI, "x"); }
static void do_new_tap(void) { ioctl(0, TUNSETIFF, NULL); }
static void do_sigio(void) { fcntl(0, F_SETOWN, 1); }
static void do_no_handler(void) { syscall(SYS_rt_sigaction, SIGSYS, NULL, NULL, 8); }
static void do_no_handler_wide(void) { syscall(SYS_rt_sigaction, SIGSYS | 1ull << 32, NULL, NULL, 8); }
static void do_bpf(void) { (void)syscall(SYS_bpf, 0, NULL, 0); }
static void do_mount(void) { (void)syscall(SYS_mount, "/", "/", "", 0, ""); }
static void do_no_dump(void) { (void)syscall(SYS_prctl, 4 /* PR_SET_DUMPABLE */, 1); }

#define ATTEMPT(what, call) { #what, do_##what, call }
static const struct { const char *name; void (*fn)(void); const char *call; } attempts[] = {
	ATTEMPT(execve, "execve"), ATTEMPT(open, "openat"), ATTEMPT(openat2, "openat2"), ATTEMPT(unlink, "unlink"),
	ATTEMPT(fork, "clone"), ATTEMPT(vfork, "clone"), ATTEMPT(namespace, "clone"), ATTEMPT(socket, "socket"),
	ATTEMPT(unix_socket, "socket"), ATTEMPT(kill, "kill"), ATTEMPT(tgkill, "tgkill"), ATTEMPT(ptrace, "ptrace"),
	ATTEMPT(read_other, "process_vm_readv"), ATTEMPT(uring, "io_uring_setup"), ATTEMPT(map_code, "mmap"),
	ATTEMPT(make_code, "mprotect"), ATTEMPT(type_into_terminal, "ioctl"), ATTEMPT(new_tap, "ioctl"), ATTEMPT(sigio, "fcntl"),
	ATTEMPT(no_handler, "rt_sigaction"), ATTEMPT(no_handler_wide, "rt_sigaction"), ATTEMPT(bpf, "bpf"), ATTEMPT(mount, "mount"),
	ATTEMPT(no_dump, "prctl"),
};

static void attempts_end_the_process(void **state)
{
	char text[1000];

	skip_without(enter_seccomp);
	for (size_t k = 0; k < ARRAY_LEN(attempts); k++)
		for (enum how how = BY_FIRST; how <= BY_LATER_THREAD; how++) {
			int status = in_child(how, attempts[k].fn, enter_seccomp, text, sizeof(text));
			if (!WIFEXITED(status) || WEXITSTATUS(status) != SANDBOX_STATUS)
				fail_msg("%s, %d: status %#x: %s", attempts[k].name, (int)how, (unsigned)status, text);
			char want[100];
			snprintf(want, sizeof(want), "it called %s (", attempts[k].call);
			if (!strstr(text, want) || strchr(text, '\n') != text + strlen(text) - 1)
				fail_msg("%s: %s", attempts[k].name, text);
		}
}

/* Another architecture's numbers: the kernel itself ends the process. */
static void do_int80(void) { int n = 20; __asm__ volatile("int $0x80" : "+a"(n) : : "memory", "r8", "r9", "r10", "r11"); }
static void do_x32(void) { (void)syscall(0x40000000 | SYS_getpid); }

static void other_architectures(void **state)
{
	char text[1000];

	skip_without(enter_seccomp);
	int status = in_child(BY_FIRST, do_int80, enter_seccomp, text, sizeof(text));
	assert_true(WIFSIGNALED(status) && (WTERMSIG(status) == SIGSYS || WTERMSIG(status) == SIGSEGV)); /* SEGV: a kernel without it */
	status = in_child(BY_FIRST, do_x32, enter_seccomp, text, sizeof(text));
	assert_true(WIFSIGNALED(status) || WEXITSTATUS(status) == SANDBOX_STATUS);
}

/* A thread that blocks SIGSYS does not get away with it. */
static void do_blocked(void)
{
	sigset_t set;

	sigfillset(&set);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
	do_open();
}

static void blocked_signal(void **state)
{
	char text[1000];

	skip_without(enter_seccomp);
	int status = in_child(BY_EARLIER_THREAD, do_blocked, enter_seccomp, text, sizeof(text));
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
}

/* ---- what goes on working ----------------------------------------------------------------------------- */

/* On a thread this is an arena of its own, and when it shrinks malloc wants to look at a file. */
static void fill_an_arena(void)
{
	enum { N = 2000, BYTES = 60000 };
	static char *p[N];

	for (int k = 0; k < N; k++)
		p[k] = memset(malloc(BYTES), 1, BYTES);
	for (int k = N; k-- > 0;)
		free(p[k]);
}

static int compare(const void *a, const void *b) { return memcmp(a, b, 8); }

static void do_work(void)
{
	void *big = malloc(64 << 20), *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (!big || p == MAP_FAILED || mprotect(p, 4096, PROT_NONE) || munmap(p, 8192))
		_exit(10);
	memset(big, 1, 64 << 20);
	free(realloc(big, 128 << 20));
	static u64 many[4096];
	qsort(many, ARRAY_LEN(many), sizeof(*many), compare);
	fill_an_arena();
	if (open("/proc/sys/vm/overcommit_memory", O_RDONLY) >= 0 || errno != ENOENT)
		_exit(12);
	printf("to a stream that was not used before\n");
	fflush(stdout);
	usleep(10);
	if (raise(0))
		_exit(11);
}

static void machines_work(void **state)
{
	char text[1000];

	skip_without(enter_seccomp);
	for (enum how how = BY_FIRST; how <= BY_LATER_THREAD; how++) {
		int status = in_child(how, do_work, enter_seccomp, text, sizeof(text));
		if (status)
			fail_msg("%d: status %#x: %s", (int)how, (unsigned)status, text);
	}
}

/* ---- Landlock, without seccomp before it ---------------------------------------------------------------- */

static void expect_denied(void)
{
	struct stat st;

	if (open("/etc/passwd", O_RDONLY) >= 0 || errno != EACCES)
		_exit(20);
	if (open("/tmp/ring3-test-sandbox", O_RDWR | O_CREAT, 0600) >= 0 || errno != EACCES)
		_exit(21);
	if (execve("/bin/true", (char *[]){ "true", NULL }, (char *[]){ NULL }) != -1 || errno != EACCES)
		_exit(22);
	if (stat("/etc/passwd", &st)) /* Landlock's, not something else's doing */
		_exit(23);
}

static void landlock_holds(void **state)
{
	char text[1000];

	skip_without(enter_machine);
	for (enum how how = BY_FIRST; how <= BY_LATER_THREAD; how++) {
		int status = in_child(how, expect_denied, enter_landlock_only, text, sizeof(text));
		if (status)
			fail_msg("%d: status %#x: %s", (int)how, (unsigned)status, text);
	}
}

/* ---- shared folders -------------------------------------------------------------------------------------- */

static char shared[64];
static bool shared_writable;

static bool enter_sharing(struct error *e)
{
	return sandbox_enter(SANDBOX_ON, &(struct sandbox_folder){ shared, shared_writable }, 1, false, NULL, e);
}

static void use_share(void)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/new", shared);
	int fd = open(path, O_RDWR | O_CREAT, 0600);
	if ((fd >= 0) != shared_writable)
		_exit(30);
	if (fd >= 0 && unlinkat(AT_FDCWD, path, 0))
		_exit(31);
	snprintf(path, sizeof(path), "%s/file", shared);
	if (open(path, O_RDONLY) < 0)
		_exit(32);
	if (open("/etc/passwd", O_RDONLY) >= 0 || errno != EACCES)
		_exit(33);
	snprintf(path, sizeof(path), "%s/../ring3-test-outside", shared);
	if (open(path, O_RDWR | O_CREAT, 0600) >= 0 || errno != EACCES)
		_exit(34);
}

static void shared_folders(void **state)
{
	char text[1000], file[128];

	skip_without(enter_machine);
	strcpy(shared, "/tmp/ring3-test-XXXXXX");
	assert_non_null(mkdtemp(shared));
	snprintf(file, sizeof(file), "%s/file", shared);
	close(open(file, O_WRONLY | O_CREAT, 0600));
	for (int w = 0; w < 2; w++) {
		shared_writable = w;
		int status = in_child(BY_EARLIER_THREAD, use_share, enter_sharing, text, sizeof(text));
		if (status)
			fail_msg("writable %d: status %#x: %s", w, (unsigned)status, text);
	}
	int status = in_child(BY_FIRST, do_execve, enter_sharing, text, sizeof(text));
	assert_int_equal(WEXITSTATUS(status), SANDBOX_STATUS);
	unlink(file);
	rmdir(shared);
}

/* ---- the network's helper --------------------------------------------------------------------------------- */

/* It is of one thread. */
static int in_helper(void (*fn)(void), char *text, size_t cap)
{
	int ends[2], status;
	struct error e;
	size_t n = 0;
	ssize_t got;

	assert_int_equal(pipe(ends), 0);
	fflush(NULL);
	pid_t pid = fork();
	if (!pid) {
		dup2(ends[1], STDERR_FILENO);
		close(ends[1]);
		log_configure("error", NULL, &e);
		if (!sandbox_enter_net(SANDBOX_AUTO, &e))
			_exit(2);
		fn();
		_exit(0);
	}
	close(ends[1]);
	while ((got = read(ends[0], text + n, cap - 1 - n)) > 0)
		n += (size_t)got;
	text[n] = 0;
	close(ends[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

static char resolv[4096];

static void helper_works(void)
{
	struct stat st;
	char text[sizeof(resolv)] = "";
	FILE *f;

	if (socket(AF_INET, SOCK_STREAM, 0) < 0 || socket(AF_INET, SOCK_DGRAM, 0) < 0)
		_exit(40);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(a);
	if (bind(fd, (struct sockaddr *)&a, len) || getsockname(fd, (struct sockaddr *)&a, &len)) /* a port that nobody listens on */
		_exit(45);
	if (!connect(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&a, len) || errno != ECONNREFUSED)
		_exit(46);
	if (listen(fd, 1) || connect(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&a, len) || accept(fd, NULL, NULL) < 0)
		_exit(47);
	for (int k = 0; k < 3; k++) { /* again and again, from its beginning */
		if (*resolv && (stat("/etc/resolv.conf", &st) || !(f = fopen("/etc/resolv.conf", "r"))))
			_exit(41);
		if (*resolv && (fread(text, 1, sizeof(text) - 1, f) == 0 || strcmp(text, resolv) || fclose(f)))
			_exit(42);
	}
	if (open("/etc/passwd", O_RDONLY) >= 0 || errno != EACCES)
		_exit(43);
	if (open("/etc/resolv.conf", O_WRONLY) >= 0 || !stat("/etc/passwd", &st) || !access("/", R_OK))
		_exit(44);
}

static void helper_is_contained(void **state)
{
	static void (*const stopped[])(void) = { do_execve, do_unix_socket, do_unlink, do_fork, do_kill, do_ptrace, do_map_code, do_new_tap,
						 do_type_into_terminal, do_no_handler };
	char text[1000];
	FILE *f = fopen("/etc/resolv.conf", "r");

	skip_without(enter_seccomp);
	if (f) {
		resolv[fread(resolv, 1, sizeof(resolv) - 1, f)] = 0;
		fclose(f);
	}
	int status = in_helper(helper_works, text, sizeof(text));
	if (status)
		fail_msg("status %#x: %s", (unsigned)status, text);
	for (size_t k = 0; k < ARRAY_LEN(stopped); k++) {
		status = in_helper(stopped[k], text, sizeof(text));
		if (!WIFEXITED(status) || WEXITSTATUS(status) != SANDBOX_STATUS)
			fail_msg("%zu: status %#x: %s", k, (unsigned)status, text);
	}
}

/* ---- off -------------------------------------------------------------------------------------------------- */

static bool enter_off(struct error *e) { return sandbox_enter(SANDBOX_OFF, NULL, 0, false, NULL, e); }
static void can_open(void)
{
	if (open("/etc/passwd", O_RDONLY) < 0)
		_exit(50);
}

static void off(void **state)
{
	char text[1000];

	assert_int_equal(in_child(BY_FIRST, can_open, enter_off, text, sizeof(text)), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(attempts_end_the_process), cmocka_unit_test(other_architectures), cmocka_unit_test(blocked_signal),
		cmocka_unit_test(machines_work), cmocka_unit_test(landlock_holds), cmocka_unit_test(shared_folders),
		cmocka_unit_test(helper_is_contained), cmocka_unit_test(off),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
