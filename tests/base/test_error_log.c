/* Errors, bug(), the log's levels and its rate limit. */
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test.h"
#define LOG_TOPIC "hpet"
#include "base/base.h"

static void prefix(void **state)
{
	struct error e;

	assert_false(error_set(&e, "size %d", 7));
	assert_false(error_prefix(&e, "--disk %s", "a"));
	assert_string_equal(e.msg, "--disk a: size 7");
	char longer[1000];
	memset(longer, 'x', sizeof(longer));
	longer[sizeof(longer) - 1] = 0;
	error_set(&e, "%s", longer);
	assert_int_equal(strlen(e.msg), sizeof(e.msg) - 1);
	error_prefix(&e, "p");
	assert_int_equal(strlen(e.msg), sizeof(e.msg) - 1);
	assert_memory_equal(e.msg, "p: xxx", 6);
	error_prefix(&e, "%s", longer);
	assert_int_equal(strlen(e.msg), sizeof(e.msg) - 1);
}

static void hook(void *arg)
{
	fprintf(stderr, "state %s\n", (const char *)arg);
}

static void bug_aborts(void **state)
{
	int fds[2], status;
	char out[512] = "";

	assert_int_equal(pipe(fds), 0);
	pid_t pid = fork();
	if (pid == 0) {
		signal(SIGABRT, SIG_DFL);
		dup2(fds[1], STDERR_FILENO);
		bug_set_hook(hook, "dumped");
		bug("index %d", 3);
	}
	close(fds[1]);
	size_t len = 0;
	for (ssize_t n; len < sizeof(out) - 1 && (n = read(fds[0], out + len, sizeof(out) - 1 - len)) > 0;)
		len += (size_t)n;
	close(fds[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
	assert_non_null(strstr(out, "test_error_log.c:"));
	assert_non_null(strstr(out, "index 3"));
	assert_non_null(strstr(out, "state dumped"));
}

static void log_levels(void **state)
{
	struct error e;

	assert_true(log_configure("hpet=debug,lapic=error,info", NULL, &e));
	assert_true(log_enabled("hpet", LOG_DEBUG));
	assert_false(log_enabled("hpet", LOG_TRACE));
	assert_false(log_enabled("lapic", LOG_WARN));
	assert_true(log_enabled("other", LOG_INFO));
	assert_false(log_enabled("other", LOG_DEBUG));
	assert_true(log_configure("", NULL, &e));
	assert_true(log_enabled("hpet", LOG_WARN));
	assert_false(log_enabled("hpet", LOG_INFO));
	assert_false(log_configure("hpet=debgu", NULL, &e));
	assert_non_null(strstr(e.msg, "did you mean \"debug\""));
	assert_non_null(strstr(e.msg, "hpet"));
	assert_false(log_configure("info,hpte=debug", NULL, &e));
	assert_non_null(strstr(e.msg, "\"hpte\"; did you mean hpet?"));
	assert_false(log_configure("=debug", NULL, &e));
	assert_false(log_configure("info", "/no/such/folder/log", &e));
	assert_non_null(strstr(e.msg, "/no/such/folder/log"));
	/* A spec that is wrong changes nothing. */
	assert_false(log_enabled("hpet", LOG_INFO));
}

static void guest_nonsense(void)
{
	for (int i = 0; i < 10000; i++)
		log_guest("nonsense %d", i);
}

static void log_file(void **state)
{
	char name[] = "/tmp/ring3-log-XXXXXX", text[4096];
	struct error e;
	int fd = mkstemp(name);

	assert_true(fd >= 0);
	assert_true(log_configure("info", name, &e));
	log_warn("one %d", 1);
	log_debug("not this");
	guest_nonsense();
	assert_true(log_configure("warn", NULL, &e));
	ssize_t n = read(fd, text, sizeof(text) - 1);
	close(fd);
	unlink(name);
	assert_true(n > 0);
	text[n] = 0;
	assert_non_null(strstr(text, "warn hpet: one 1\n"));
	assert_null(strstr(text, "not this"));
	int lines = 0;
	for (char *p = text; (p = strstr(p, "nonsense")); p++)
		lines++;
	assert_in_range(lines, 1, 30); /* 10 a second, and the second may have changed meanwhile */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(prefix), cmocka_unit_test(bug_aborts),
		cmocka_unit_test(log_levels), cmocka_unit_test(log_file),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
