/* Networks' parts that need no machine: rules of forwarding, checksums, addresses, the socket's frames. */
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "test.h"
#include "net/net_impl.h"

static void forwards(void **state)
{
	static const struct { const char *text; struct forward want; } good[] = {
		{ "2222:22", { false, 0x7f000001, 2222, 22 } },
		{ "tcp:8080:80", { false, 0x7f000001, 8080, 80 } },
		{ "udp:5353:53", { true, 0x7f000001, 5353, 53 } },
		{ "0.0.0.0:1:65535", { false, 0, 1, 65535 } },
		{ "udp:10.1.2.3:4:5", { true, 0x0a010203, 4, 5 } },
	};
	static const char *const bad[] = { "", "22", ":", "0:22", "22:0", "65536:1", "1:65536", "x:22", "22:x", "icmp:1:2", "1.2.3:1:2", "1:2:3",
					   "2222:22 ", "-1:2", "tcp:", "::1:22:22", "1234567890123456789012345678901234567890123456789012345678901234" };
	struct forward f;
	struct error e;

	for (size_t k = 0; k < ARRAY_LEN(good); k++) {
		if (!forward_parse(good[k].text, strlen(good[k].text), &f, &e))
			fail_msg("%s", e.msg);
		assert_int_equal(f.udp, good[k].want.udp);
		assert_int_equal(f.addr, good[k].want.addr);
		assert_int_equal(f.host_port, good[k].want.host_port);
		assert_int_equal(f.guest_port, good[k].want.guest_port);
	}
	for (size_t k = 0; k < ARRAY_LEN(bad); k++)
		if (forward_parse(bad[k], strlen(bad[k]), &f, &e))
			fail_msg("taken: %s", bad[k]);
	assert_true(forward_parse("2222:22\n1:2", 7, &f, &e)); /* a line of several */
}

/* RFC 1071's example, and frames where the sum lies elsewhere. */
static void checksums(void **state)
{
	u8 frame[] = { 9, 9, 0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7, 0, 0 };
	struct net_offload o = { .flags = NET_NEEDS_CSUM, .csum_start = 2, .csum_offset = 8 };

	assert_true(net_checksum(&o, frame, sizeof(frame)));
	assert_int_equal(frame[10] << 8 | frame[11], 0xffff - 0xddf2);
	u8 odd[] = { 0x01, 0, 0, 0, 0x80 };
	o.csum_start = 0;
	o.csum_offset = 2;
	assert_true(net_checksum(&o, odd, 5));
	assert_int_equal(odd[2] << 8 | odd[3], 0xffff - 0x8100);
	u8 zero[] = { 0xff, 0xff, 0, 0 };
	assert_true(net_checksum(&o, zero, 4));
	assert_int_equal(ld16(zero + 2), 0xffff); /* never 0 */
	assert_false(net_checksum(&o, zero, 3));
	o.csum_start = 0xffff;
	o.csum_offset = 0xffff;
	assert_false(net_checksum(&o, frame, sizeof(frame)));
	o.flags = 0;
	assert_true(net_checksum(&o, frame, 0));
}

static void addresses(void **state)
{
	struct net_options o = { .kind = NET_USER };
	u8 a[6], b[6];
	struct error e;

	assert_true(net_mac(&o, 1, a, &e));
	assert_memory_equal(a, "\x52\x54\x00\x12\x34\x57", 6);
	o.kind = NET_SOCKET;
	assert_true(net_mac(&o, 0, a, &e) && net_mac(&o, 0, b, &e));
	assert_memory_not_equal(a, b, 6);
	o.mac = (char *)"02:00:00:00:aB:ff";
	assert_true(net_mac(&o, 5, a, &e));
	assert_memory_equal(a, "\x02\x00\x00\x00\xab\xff", 6);
	static const char *const bad[] = { "", "02:00:00:00:00", "02:00:00:00:00:00:00", "02-00-00-00-00-00", "03:00:00:00:00:00", "02:00:00:00:00:0g" };
	for (size_t k = 0; k < ARRAY_LEN(bad); k++) {
		o.mac = (char *)bad[k];
		assert_false(net_mac(&o, 0, a, &e));
		assert_non_null(strstr(e.msg, "mac="));
	}
}

/* ---- the socket -------------------------------------------------------------------------------- */

static struct loop *loop;
static u8 got[NET_FRAME_MAX];
static size_t got_len;
static unsigned frames, refuse;

static bool receive(void *arg, const struct net_offload *o, const u8 *frame, size_t len)
{
	if (refuse) {
		refuse--;
		return false;
	}
	memcpy(got, frame, len);
	got_len = len;
	frames++;
	return true;
}
static void writable(void *arg) { ++*(unsigned *)arg; }

static void turns(void)
{
	for (int k = 0; k < 20; k++)
		loop_turn(loop, 1000000);
}

static void a_socket(void **state)
{
	char path[64];
	unsigned can = 0;
	struct error e;
	struct net_options o = { .kind = NET_SOCKET, .path = path };
	static u8 big[60000];

	snprintf(path, sizeof(path), "/tmp/ring3-net-%d", (int)getpid());
	loop = loop_new(&e);
	struct net *a = net_open(&o, false, loop, &e), *b = net_open(&o, false, loop, &e);
	assert_non_null(a);
	assert_non_null(b);
	net_attach(a, &(struct net_card){ &can, receive, writable });
	net_attach(b, &(struct net_card){ &can, receive, writable });
	turns();
	struct iovec iov[] = { { (void *)"one ", 4 }, { (void *)"frame", 5 } };
	assert_true(net_send(b, &(struct net_offload){ 0 }, iov, 2));
	turns();
	assert_int_equal(frames, 1);
	assert_memory_equal(got, "one frame", 9);
	/* One that finds no room is held, and comes when there is some. */
	refuse = 1;
	assert_true(net_send(a, &(struct net_offload){ 0 }, iov, 1));
	turns();
	assert_int_equal(frames, 1);
	net_ready(b);
	turns();
	assert_int_equal(frames, 2);
	assert_int_equal(got_len, 4);
	/* More than the socket holds: refused, then writable; nothing is lost or out of order. */
	unsigned sent = 0;
	frames = 0;
	memset(big, 7, sizeof(big));
	for (; sent < 1000 && net_send(a, &(struct net_offload){ 0 }, &(struct iovec){ big, sizeof(big) }, 1); sent++)
		;
	assert_in_range(sent, 1, 999);
	turns();
	assert_true(can > 0);
	assert_int_equal(frames, sent);
	assert_int_equal(got_len, sizeof(big));
	assert_memory_equal(got, big, sizeof(big));
	net_close(b);
	turns();
	assert_true(net_send(a, &(struct net_offload){ 0 }, iov, 1)); /* without a peer: lost */
	/* A peer that talks nonsense is hung up on. */
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	strcpy(sa.sun_path, path);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	assert_int_equal(write(fd, "\xff\xff\xff\xff....", 8), 8);
	turns();
	u8 byte;
	assert_true(recv(fd, &byte, 1, MSG_DONTWAIT) <= 0);
	close(fd);
	net_close(a);
	assert_int_not_equal(access(path, F_OK), 0);
	loop_free(loop);
}

static void wrong_options(void **state)
{
	static const struct net_options bad[] = {
		{ .kind = NET_TAP, .forward = (char *)"1:2" }, { .kind = NET_USER, .path = (char *)"x" },
		{ .kind = NET_USER, .ifname = (char *)"x" }, { .kind = NET_SOCKET }, { .kind = NET_SOCKET, .path = (char *)"/nonexistent/x" },
		{ .kind = NET_USER, .forward = (char *)"1:2\nnonsense" },
	};
	struct error e;

	loop = loop_new(&e);
	for (size_t k = 0; k < ARRAY_LEN(bad); k++)
		assert_null(net_open(&bad[k], false, loop, &e));
	loop_free(loop);
}

/* An interface that is taken away ends the network, and is told once, not for ever. */
static void a_tap_that_goes(void **state)
{
	struct net_options o = { .kind = NET_TAP };
	char name[64], command[200];
	unsigned can = 0;
	struct error e;

	loop = loop_new(&e);
	struct net *n = net_open(&o, false, loop, &e);
	if (!n) {
		loop_free(loop);
		print_message("%s\n", e.msg);
		skip();
	}
	net_attach(n, &(struct net_card){ &can, receive, writable });
	assert_int_equal(sscanf(net_describe(n), "tap %63s", name), 1);
	snprintf(command, sizeof(command), "ip link set %s up && ip link del %s", name, name);
	if (system(command)) {
		net_close(n);
		loop_free(loop);
		skip();
	}
	(void)log_configure("error", "/dev/null", &e);
	turns();
	(void)log_configure("warn", NULL, &e);
	assert_int_equal(n->fd, -1);
	assert_int_equal(n->watched, 0);
	net_set_offloads(n, 0);
	assert_true(net_send(n, &(struct net_offload){ 0 }, &(struct iovec){ command, 60 }, 1));
	net_close(n);
	loop_free(loop);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(forwards), cmocka_unit_test(checksums), cmocka_unit_test(addresses), cmocka_unit_test(a_socket), cmocka_unit_test(a_tap_that_goes),
		cmocka_unit_test(wrong_options),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
