/* The event loop: descriptors, timeouts, posting across threads. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "test.h"
#include "base/base.h"

static struct loop *l;
static struct error e;

static int set_up(void **state)
{
	l = loop_new(&e);
	return l == NULL;
}

static int tear_down(void **state)
{
	loop_free(l);
	return 0;
}

static u64 now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (u64)ts.tv_sec * 1000000000u + (u64)ts.tv_nsec;
}

/* ---- posting ------------------------------------------------------------------------- */

enum { THREADS = 4, POSTS = 5000 };

struct message {
	int thread, n;
};

static int next_of[THREADS], total;
static pthread_t loop_thread;

static void receive(void *arg)
{
	struct message *msg = arg;

	assert_true(pthread_equal(pthread_self(), loop_thread));
	assert_int_equal(msg->n, next_of[msg->thread]++); /* in order, none twice, none lost */
	total++;
	free(msg);
}

static void *poster(void *arg)
{
	int thread = (int)(intptr_t)arg;

	for (int i = 0; i < POSTS; i++) {
		struct message *msg = malloc(sizeof(*msg));
		*msg = (struct message){ thread, i };
		loop_post(l, receive, msg);
	}
	return NULL;
}

static void post_across_threads(void **state)
{
	pthread_t t[THREADS];

	loop_thread = pthread_self();
	for (int i = 0; i < THREADS; i++)
		pthread_create(&t[i], NULL, poster, (void *)(intptr_t)i);
	u64 end = now_ns() + 20000000000ull;
	while (total < THREADS * POSTS && now_ns() < end)
		loop_turn(l, 5000000000ull); /* a lost wake-up shows as a time-out */
	for (int i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	assert_int_equal(total, THREADS * POSTS);
}

static int depth;

static void post_again(void *arg)
{
	if (++depth < 3)
		loop_post(l, post_again, NULL);
}

static void post_from_post(void **state)
{
	depth = 0;
	loop_post(l, post_again, NULL);
	for (int i = 1; i <= 3; i++) {
		loop_turn(l, 1000000000);
		assert_int_equal(depth, i);
	}
}

static void *waker(void *arg)
{
	usleep(20000);
	loop_wake(l);
	return NULL;
}

static void wake_and_timeout(void **state)
{
	pthread_t t;
	u64 start = now_ns();

	pthread_create(&t, NULL, waker, NULL);
	loop_turn(l, UINT64_MAX);
	u64 took = now_ns() - start;
	pthread_join(t, NULL);
	assert_true(took >= 15000000 && took < 5000000000ull);

	start = now_ns();
	loop_turn(l, 300000); /* less than a millisecond is not rounded to 0 or 1 */
	took = now_ns() - start;
	assert_true(took >= 300000);
	start = now_ns();
	loop_turn(l, 0);
	assert_true(now_ns() - start < 2000000000);
}

/* ---- descriptors --------------------------------------------------------------------- */

static int calls[3];

static void drain(void *arg, u32 events)
{
	int *fds = arg;
	char b;

	assert_true(events & EPOLLIN);
	assert_int_equal(read(fds[0], &b, 1), 1);
	calls[0]++;
}

static void readable(void **state)
{
	int fds[2];

	calls[0] = 0;
	assert_int_equal(pipe(fds), 0);
	assert_true(loop_add_fd(l, fds[0], EPOLLIN, drain, fds, &e));
	loop_turn(l, 0);
	assert_int_equal(calls[0], 0);
	assert_int_equal(write(fds[1], "ab", 2), 2);
	loop_turn(l, 0);
	assert_int_equal(calls[0], 1);
	loop_mod_fd(l, fds[0], 0);
	loop_turn(l, 0);
	assert_int_equal(calls[0], 1);
	loop_mod_fd(l, fds[0], EPOLLIN);
	loop_turn(l, 0);
	assert_int_equal(calls[0], 2);
	loop_del_fd(l, fds[0]);
	assert_int_equal(write(fds[1], "c", 1), 1);
	loop_turn(l, 0);
	assert_int_equal(calls[0], 2);
	close(fds[0]);
	close(fds[1]);
	assert_false(loop_add_fd(l, fds[0], EPOLLIN, drain, fds, &e));
}

static int pair[2][2];

static void delete_other(void *arg, u32 events)
{
	int self = (int)(intptr_t)arg;

	calls[self]++;
	loop_del_fd(l, pair[!self][0]);
}

/* Both are ready in the same batch; the first deletes the second, which must not be called. */
static void delete_in_batch(void **state)
{
	calls[0] = calls[1] = 0;
	for (int i = 0; i < 2; i++) {
		assert_int_equal(pipe(pair[i]), 0);
		assert_true(loop_add_fd(l, pair[i][0], EPOLLIN, delete_other, (void *)(intptr_t)i, &e));
		assert_int_equal(write(pair[i][1], "x", 1), 1);
	}
	loop_turn(l, 0);
	assert_int_equal(calls[0] + calls[1], 1);
	for (int i = 0; i < 2; i++) {
		close(pair[i][0]);
		close(pair[i][1]);
	}
}

static void count_eof(void *arg, u32 events)
{
	char b;

	assert_true(events & EPOLLIN);
	assert_int_equal(read(*(int *)arg, &b, 1), 0);
	if (++calls[0] == 2)
		loop_del_fd(l, *(int *)arg);
}

static void dev_null(void **state)
{
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	calls[0] = 0;
	assert_true(loop_add_fd(l, fd, EPOLLIN, count_eof, &fd, &e));
	loop_turn(l, 5000000000ull);
	assert_int_equal(calls[0], 1);
	loop_mod_fd(l, fd, 0);
	loop_turn(l, 1000);
	assert_int_equal(calls[0], 1);
	loop_mod_fd(l, fd, EPOLLIN);
	loop_turn(l, UINT64_MAX);
	loop_turn(l, 1000);
	assert_int_equal(calls[0], 2);
	close(fd);
}

/* ---- tasks ------------------------------------------------------------------------------- */

static struct loop_task tasks[3];

static void run_task(void *arg)
{
	struct loop_task *t = arg;

	u32 turns;

	assert_false(loop_is_idle(l, &turns)); /* the turn is not over */
	calls[t - tasks]++;
	if (t == &tasks[0] && calls[0] < 3)
		loop_schedule(l, t); /* the next turn's */
	if (t == &tasks[1])
		loop_cancel(l, &tasks[2]);
}

static void tasks_run_once(void **state)
{
	u32 turns, before;

	memset(calls, 0, sizeof(calls));
	assert_true(loop_is_idle(l, &before));
	for (int k = 0; k < 3; k++) {
		tasks[k] = (struct loop_task){ .fn = run_task, .arg = &tasks[k] };
		loop_schedule(l, &tasks[k]);
		loop_schedule(l, &tasks[k]);
	}
	assert_false(loop_is_idle(l, &turns));
	loop_turn(l, 0);
	assert_int_equal(calls[0], 1);
	assert_int_equal(calls[1], 1);
	assert_int_equal(calls[2], 0); /* taken out by the one before it */
	loop_turn(l, 0);
	loop_turn(l, 0);
	loop_turn(l, 0);
	assert_int_equal(calls[0], 3);
	loop_schedule(l, &tasks[2]);
	loop_turn(l, 0);
	assert_int_equal(calls[2], 1);
	assert_true(loop_is_idle(l, &turns));
	assert_true(turns != before);
}

/* ---- a host that forbids epoll_pwait2 -------------------------------------------------- */

/* The filter is this thread's alone. EPERM is what old container runtimes answer. */
static void *turn_without_pwait2(void *arg)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_epoll_pwait2, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { ARRAY_LEN(code), code };
	bool *skipped = arg;

	*skipped = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog);
	if (*skipped)
		return NULL;
	u64 start = now_ns();
	loop_turn(l, 20000000);
	if (now_ns() - start < 20000000)
		return "the turn did not wait";
	loop_wake(l);
	loop_turn(l, 30000000000ull);
	return now_ns() - start < 20000000000ull ? NULL : "the turn did not wake";
}

static void no_pwait2(void **state)
{
	bool skipped;
	pthread_t t;
	void *wrong;

	assert_int_equal(pthread_create(&t, NULL, turn_without_pwait2, &skipped), 0);
	assert_int_equal(pthread_join(t, &wrong), 0);
	if (wrong)
		fail_msg("%s", (char *)wrong);
	if (skipped)
		skip();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(post_across_threads, set_up, tear_down),
		cmocka_unit_test_setup_teardown(post_from_post, set_up, tear_down),
		cmocka_unit_test_setup_teardown(wake_and_timeout, set_up, tear_down),
		cmocka_unit_test_setup_teardown(readable, set_up, tear_down),
		cmocka_unit_test_setup_teardown(delete_in_batch, set_up, tear_down),
		cmocka_unit_test_setup_teardown(dev_null, set_up, tear_down),
		cmocka_unit_test_setup_teardown(tasks_run_once, set_up, tear_down),
		cmocka_unit_test_setup_teardown(no_pwait2, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
