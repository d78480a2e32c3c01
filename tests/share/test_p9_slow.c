/* A host's mount that does not answer: a lease of ours on a file, which the kernel waits for, makes one. */
#include <signal.h>

#include "p9_client.h"

static struct { struct share_request r; struct iovec out, in; u8 message[128], reply[64]; u64 len; bool done; } slow[6];

static void slow_done(struct share_request *r)
{
	for (unsigned k = 0; k < ARRAY_LEN(slow); k++)
		if (r == &slow[k].r)
			slow[k].done = true;
}

/* The message that is in t.out. */
static void submit_slow(unsigned k)
{
	memset(&slow[k], 0, sizeof(slow[k]));
	st32(t.out, (u32)t.len);
	memcpy(slow[k].message, t.out, t.len);
	slow[k].out = (struct iovec){ slow[k].message, t.len };
	slow[k].in = (struct iovec){ slow[k].reply, sizeof(slow[k].reply) };
	slow[k].r = (struct share_request){ .out = &slow[k].out, .n_out = 1, .out_len = t.len, .in = &slow[k].in, .n_in = 1,
					    .in_len = sizeof(slow[k].reply), .done = slow_done };
	share_submit(t.share, &slow[k].r);
}

static int lease_fd[3];

/* Opening in/slowK for writing waits until give_answers(), up to /proc/sys/fs/lease-break-time: 45 s. */
static void take_answers(unsigned k)
{
	char name[16];

	snprintf(name, sizeof(name), "in/slow%u", k);
	host_write(name, "hello world");
	signal(SIGIO, SIG_IGN); /* somebody waits */
	lease_fd[k] = open(path_of(name), O_RDONLY);
	if (fcntl(lease_fd[k], F_SETLEASE, F_RDLCK))
		skip(); /* a file system without leases */
}

/* False: whoever waited has waited until the kernel took the lease away. */
static bool give_answers(unsigned k)
{
	bool held = !fcntl(lease_fd[k], F_SETLEASE, F_UNLCK);

	close(lease_fd[k]);
	return held;
}

/* A request to open in/slowK, which the thread is carrying out then. */
static void submit_and_hang(unsigned k)
{
	char name[8];

	snprintf(name, sizeof(name), "slow%u", k);
	assert_int_equal(version(128 << 10, "9P2000.L"), 0);
	assert_int_equal(attach(ROOT), 0);
	assert_int_equal(walk(ROOT, 1, name), 0);
	begin(TLOPEN);
	add(1, 4);
	add(O_WRONLY, 4);
	submit_slow(k);
	while (fcntl(lease_fd[k], F_GETLEASE) == F_RDLCK)
		usleep(1000);
}

static void submit_getattr(unsigned k)
{
	begin(TGETATTR);
	add(ROOT, 4);
	add(0x7ff, 8);
	submit_slow(k);
}

/* A drain, as before the machine's reset, does not wait for it; what comes back late is written nowhere. */
static void given_up(void **state)
{
	unsigned before = count_fds();

	take_answers(0);
	submit_and_hang(0);
	submit_getattr(1);
	share_drain(t.share);
	assert_true(slow[0].done && slow[1].done);
	assert_int_equal(slow[0].r.reply, 0);
	assert_int_equal(slow[1].r.reply, 0);
	assert_false(share_is_busy(t.share));
	assert_int_equal(getattr(ROOT), EBADF); /* the session is over; the next one works */
	assert_int_equal(attach(ROOT), 0);
	assert_int_equal(walk(ROOT, 1, "slow0"), 0);
	assert_int_equal(lopen(1, O_RDONLY), 0);
	assert_int_equal(read_file(1, 0, 5), 0);
	assert_memory_equal(t.in + 11, "hello", 5);
	assert_true(give_answers(0));
	share_close(t.share); /* waits for what has come back */
	for (unsigned k = 0; k < sizeof(slow[0].reply); k++)
		assert_int_equal(slow[0].reply[k], 0);
	assert_in_range(count_fds(), 0, before - 2);
	open_share(false);
}

/* Only what belongs to sessions that are over is given up. */
static void given_up_on_request(void **state)
{
	take_answers(0);
	submit_and_hang(0);
	share_give_up(t.share);
	share_reset(t.share);
	submit_getattr(1);
	assert_true(share_is_busy(t.share));
	share_give_up(t.share);
	while (!slow[1].done)
		share_drain(t.share);
	assert_true(slow[0].done);
	assert_int_equal(slow[0].r.reply, 0);
	assert_int_equal(slow[1].r.reply, 11); /* an error: of the new session */
	assert_int_equal(slow[1].reply[4], 7);
	assert_true(give_answers(0));
}

/* Not ever more threads: with some in the host's hands, requests wait for one of them to come back. */
static void given_up_often(void **state)
{
	for (unsigned k = 0; k < 3; k++) {
		take_answers(k);
		submit_and_hang(k);
		share_reset(t.share);
		if (k < 2)
			share_give_up(t.share);
		else
			share_drain(t.share);
	}
	submit_getattr(3);
	share_drain(t.share);
	assert_true(slow[3].done);
	assert_int_equal(slow[3].r.reply, 0);
	submit_getattr(4);
	assert_true(share_is_busy(t.share));
	for (unsigned k = 0; k < 3; k++)
		assert_true(give_answers(k));
	while (!slow[4].done)
		share_drain(t.share);
	assert_int_equal(slow[4].reply[4], 7);
	for (unsigned k = 0; k < 3; k++)
		assert_true(slow[k].done && !slow[k].r.reply);
}

static void closed_meanwhile(void **state)
{
	take_answers(0);
	submit_and_hang(0);
	share_close(t.share);
	assert_true(slow[0].done);
	assert_int_equal(slow[0].r.reply, 0);
	assert_true(give_answers(0));
	open_share(false);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(given_up), TEST(given_up_on_request), TEST(given_up_often), TEST(closed_meanwhile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
