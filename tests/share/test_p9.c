/* The server of 9P2000.L: what it does, what it refuses, and that nothing outside of the folder is reached. */
#include "p9_client.h"

/* ---- what it does --------------------------------------------------------------------------------- */

static void versions(void **state)
{
	assert_int_equal(version(1 << 30, "9P2000.L"), 0);
	assert_int_equal(ld32(t.in + 7), P9_MSIZE_MAX);
	assert_memory_equal(t.in + 11, "\10\0" "9P2000.L", 10);
	assert_int_equal(version(8192, "9P2000"), 0);
	assert_int_equal(ld32(t.in + 7), 8192);
	assert_memory_equal(t.in + 11, "\7\0unknown", 9);
	assert_int_equal(version(100, "9P2000.L"), EMSGSIZE);
	assert_int_equal(getattr(ROOT), EBADF); /* a version begins anew */
	assert_int_equal(attach(ROOT), 0);
	assert_int_equal(attach(ROOT), EINVAL); /* taken */
}

static void files(void **state)
{
	assert_int_equal(walk(ROOT, 1, "sub/deep"), 0);
	assert_int_equal(ld16(t.in + 7), 2);
	assert_int_equal(t.in[9], 0x80);
	assert_int_equal(t.in[9 + 13], 0);
	assert_int_equal(read_file(1, 0, 100), EBADF); /* not open */
	assert_int_equal(lopen(1, O_RDWR), 0);
	assert_int_equal(lopen(1, O_RDWR), EINVAL);
	assert_int_equal(read_file(1, 1, 100), 0);
	assert_int_equal(ld32(t.in + 7), 3);
	assert_memory_equal(t.in + 11, "eep", 3);
	assert_int_equal(write_file(1, 4, "er"), 0);
	assert_int_equal(ld32(t.in + 7), 2);
	assert_int_equal(with_fid(TFSYNC, 1), 0);
	host_has("in/sub/deep", "deeper");
	assert_int_equal(walk(1, 1, ""), EINVAL); /* an open one stays where it is */
	assert_int_equal(clunk(1), 0);
	assert_int_equal(clunk(1), EBADF);
	assert_int_equal(walk(ROOT, 1, ""), 0);
	assert_int_equal(lcreate(1, "new", O_WRONLY | O_EXCL | O_CREAT, 0640), 0);
	assert_int_equal(write_file(1, 0, "made"), 0);
	assert_int_equal(read_file(1, 0, 4), EBADF); /* for writing only */
	host_has("in/new", "made");
	struct stat st;
	stat(path_of("in/new"), &st);
	assert_int_equal(st.st_mode & 07777, 0640);
	assert_int_equal(walk(ROOT, 2, ""), 0);
	assert_int_equal(lcreate(2, "new", O_WRONLY | O_EXCL, 0640), EEXIST);
	assert_int_equal(lcreate(2, "new", O_WRONLY | O_TRUNC, 0600), 0); /* the one that is there */
	host_has("in/new", "");
	assert_int_equal(with_fid(TSTATFS, ROOT), 0);
	assert_int_equal(walk(ROOT, 3, "sub/no/deeper"), -2); /* as far as there is something */
	assert_int_equal(clunk(3), EBADF);
	assert_int_equal(walk(ROOT, 3, "no"), ENOENT);
	assert_int_equal(walk(ROOT, 3, "file/deeper"), -2);
	begin(TFLUSH);
	add(1, 2);
	assert_int_equal(send_message(), 0);
	begin(TXATTRWALK);
	add(ROOT, 4);
	add(9, 4);
	add_text("user.x");
	assert_int_equal(send_message(), EOPNOTSUPP);
}

/* A reply has no more than the client has room for, or negotiated. */
static void reads_are_bounded(void **state)
{
	char big[9000];

	assert_int_equal(version(8192, "9P2000.L"), 0);
	assert_int_equal(attach(ROOT), 0);
	memset(big, 'x', sizeof(big) - 1);
	big[sizeof(big) - 1] = 0;
	host_write("in/big", big);
	assert_int_equal(walk(ROOT, 1, "big"), 0);
	assert_int_equal(lopen(1, 0), 0);
	assert_int_equal(read_file(1, 0, 1 << 30), 0);
	assert_int_equal(ld32(t.in + 7), 8192 - 11);
	t.in[100] = 0x55;
	st32(t.out, (u32)t.len);
	assert_int_equal(send_raw(100), 0);
	assert_int_equal(ld32(t.in + 7), 100 - 11);
	assert_int_equal(t.in[100], 0x55);
	assert_int_equal(read_file(1, ~0ull - 5, 10), EINVAL);
	begin(TWRITE); /* more than there is */
	add(1, 4);
	add(0, 8);
	add(100, 4);
	assert_int_equal(send_message(), EINVAL);
}

static void directories(void **state)
{
	char names[64][256];
	unsigned n = 0;
	u64 offset = 0;

	for (int k = 0; k < 20; k++) {
		char name[32];
		snprintf(name, sizeof(name), "in/many-%d", k);
		host_write(name, "");
	}
	assert_int_equal(walk(ROOT, 1, ""), 0);
	assert_int_equal(lopen(1, O_RDWR), EISDIR);
	assert_int_equal(lopen(1, O_DIRECTORY), 0);
	assert_int_equal(read_file(1, 0, 10), EISDIR);
	for (;;) {
		begin(TREADDIR);
		add(1, 4);
		add(offset, 8);
		add(100, 4);
		assert_int_equal(send_message(), 0);
		u32 len = ld32(t.in + 7);
		assert_in_range(len, 0, 100);
		if (!len)
			break;
		for (const u8 *p = t.in + 11; p < t.in + 11 + len; p += 24 + ld16(p + 22)) {
			snprintf(names[n], 256, "%.*s", ld16(p + 22), p + 24);
			if (!strcmp(names[n], "sub"))
				assert_true(p[0] == 0x80 && p[21] == 4);
			if (!strcmp(names[n], "..")) { /* nothing of what is above */
				struct stat st;
				stat(path_of("in"), &st);
				assert_int_equal(ld64(p + 5), st.st_ino);
			}
			n++;
			offset = ld64(p + 13);
		}
	}
	assert_int_equal(n, 20 + 2 + 2);
	for (unsigned a = 0; a < n; a++)
		for (unsigned b = 0; b < a; b++)
			assert_string_not_equal(names[a], names[b]);
	begin(TREADDIR);
	add(1, 4);
	add(0, 8);
	add(10, 4); /* room for no name */
	assert_int_equal(send_message(), EINVAL);
}

static void attributes(void **state)
{
	struct stat st;

	assert_int_equal(walk(ROOT, 1, "file"), 0);
	assert_int_equal(getattr(1), 0);
	assert_int_equal(attr_size(), 11);
	assert_int_equal(setattr(1, 1 | 8 | 0x10 | 0x20 | 0x80 | 0x100, 0751, 5), 0);
	stat(path_of("in/file"), &st);
	assert_int_equal(st.st_mode & 07777, 0751);
	assert_int_equal(st.st_size, 5);
	assert_int_equal(st.st_atim.tv_sec, 1000);
	assert_int_equal(st.st_atim.tv_nsec, 5);
	assert_int_equal(st.st_mtim.tv_sec, 2000);
	assert_int_equal(setattr(1, 1, 04755, 0), EPERM); /* set-user-ID */
	assert_int_equal(setattr(1, 1, 02755, 0), EPERM);
	assert_int_equal(setattr(ROOT, 8, 0, 0), EISDIR);
	assert_int_equal(setattr(1, 8, 0, ~0ull), EINVAL);
	stat(path_of("in/file"), &st);
	assert_int_equal(st.st_mode & 07777, 0751);
}

static void names(void **state)
{
	assert_int_equal(mkdir_in(ROOT, "d", 01775), 0);
	struct stat st;
	stat(path_of("in/d"), &st);
	assert_int_equal(st.st_mode & 07777, 01775);
	assert_int_equal(mkdir_in(ROOT, "d", 0755), EEXIST);
	assert_int_equal(walk(ROOT, 1, "d"), 0);
	assert_int_equal(walk(ROOT, 2, "file"), 0);
	assert_int_equal(link_in(1, 2, "linked"), 0);
	host_has("in/d/linked", "hello world");
	assert_int_equal(symlink_in(1, "sym", "../file"), 0);
	assert_int_equal(walk(1, 3, "sym"), 0);
	assert_int_equal(with_fid(TREADLINK, 3), 0);
	assert_memory_equal(t.in + 7, "\7\0../file", 9);
	assert_int_equal(with_fid(TREADLINK, 2), EINVAL);
	assert_int_equal(unlink_in(ROOT, "d", 0), EISDIR);
	assert_int_equal(unlink_in(ROOT, "d", AT_REMOVEDIR), ENOTEMPTY);
	assert_int_equal(with_fid(TREMOVE, 3), 0);
	assert_int_equal(with_fid(TREMOVE, 3), EBADF); /* the fid goes with it */
	assert_false(host_is("in/d/sym"));
	assert_int_equal(with_fid(TREMOVE, 1), ENOTEMPTY); /* and where it fails */
	assert_int_equal(clunk(1), EBADF);
	begin(TRENAME);
	add(2, 4);
	add(ROOT, 4);
	add_text("renamed");
	assert_int_equal(send_message(), 0);
	assert_int_equal(getattr(2), 0);
	host_has("in/renamed", "hello world");
	assert_int_equal(walk(ROOT, 5, ""), 0);
	assert_int_equal(with_fid(TREMOVE, 5), EBUSY);
	assert_true(host_is("in"));
	assert_int_equal(mknod_in(ROOT, "regular", S_IFREG | 0604), 0);
	stat(path_of("in/regular"), &st);
	assert_int_equal(st.st_mode, S_IFREG | 0604);
}

/* What is known below a directory moves with it; what was replaced is not what is there now. */
static void renamed_directories(void **state)
{
	assert_int_equal(walk(ROOT, 1, "sub/deep"), 0);
	assert_int_equal(walk(ROOT, 2, "sub"), 0);
	assert_int_equal(renameat_in(ROOT, "sub", ROOT, "moved"), 0);
	assert_int_equal(getattr(1), 0);
	assert_int_equal(attr_size(), 4);
	assert_int_equal(walk(2, 3, "deep"), 0);
	assert_int_equal(walk(3, 4, "../../moved/../file"), 0);
	assert_int_equal(lopen(4, 0), 0);
	host_write("in/other", "another one");
	assert_int_equal(walk(ROOT, 5, "other"), 0);
	assert_int_equal(renameat_in(ROOT, "other", 2, "deep"), 0);
	assert_int_equal(getattr(1), ENOENT);
	assert_int_equal(getattr(5), 0);
	assert_int_equal(attr_size(), 11);
	assert_int_equal(walk(2, 6, "deep"), 0);
	assert_int_equal(getattr(6), 0);
	u64 path = attr_path();
	assert_int_equal(getattr(5), 0);
	assert_int_equal(attr_path(), path);
	assert_int_equal(renameat_in(ROOT, "moved", 2, "into-itself"), EINVAL);
	assert_int_equal(renameat_in(2, "deep", 2, "deep"), 0);
	assert_int_equal(getattr(6), 0);
}

static void removed_but_open(void **state)
{
	assert_int_equal(walk(ROOT, 1, "file"), 0);
	assert_int_equal(walk(ROOT, 2, "file"), 0);
	assert_int_equal(lopen(1, O_RDWR), 0);
	assert_int_equal(unlink_in(ROOT, "file", 0), 0);
	assert_int_equal(write_file(1, 11, "!"), 0);
	assert_int_equal(getattr(1), 0);
	assert_int_equal(attr_size(), 12);
	assert_int_equal(getattr(2), 0); /* the same file, though this one is not open */
	assert_int_equal(setattr(2, 8, 0, 3), 0);
	host_write("in/file", "a new one");
	assert_int_equal(getattr(2), 0);
	assert_int_equal(attr_size(), 3);
	assert_int_equal(clunk(1), 0);
	assert_int_equal(getattr(2), ENOENT);
	assert_int_equal(walk(ROOT, 1, "file"), 0);
	assert_int_equal(getattr(1), 0);
	assert_int_equal(attr_size(), 9);
}

static void locks(void **state)
{
	assert_int_equal(walk(ROOT, 1, "file"), 0);
	for (int open = 0; open < 2; open++) {
		begin(TLOCK);
		add(1, 4);
		add(1, 1);
		add(0, 4);
		add(0, 8);
		add(10, 8);
		add(1, 4);
		add_text("guest");
		assert_int_equal(send_message(), open ? 0 : EBADF);
		if (open)
			assert_int_equal(t.in[7], 0);
		else
			assert_int_equal(lopen(1, O_RDWR), 0);
	}
	begin(TGETLOCK);
	add(1, 4);
	add(1, 1);
	add(5, 8);
	add(10, 8);
	add(1, 4);
	add_text("guest");
	assert_int_equal(send_message(), 0);
	assert_int_equal(t.in[7], 2);
	assert_int_equal(ld64(t.in + 8), 5);
}

/* ---- containment ----------------------------------------------------------------------------------- */

static int walk_one(u32 fid, u32 new_fid, const char *name, size_t len)
{
	begin(TWALK);
	add(fid, 4);
	add(new_fid, 4);
	add(1, 2);
	add(len, 2);
	memcpy(t.out + t.len, name, len);
	t.len += len;
	return send_message();
}

static void no_way_out_by_names(void **state)
{
	static const char *const bad[] = { "", ".", "..", "/", "../secret", "sub/deep", "/etc/passwd", "a/", "/a", NULL };
	u64 top;

	assert_int_equal(getattr(ROOT), 0);
	top = attr_path();
	assert_int_equal(walk(ROOT, 1, "../../../.."), 0); /* stays where it is */
	assert_int_equal(getattr(1), 0);
	assert_int_equal(attr_path(), top);
	assert_int_equal(walk(ROOT, 2, "file"), 0);
	for (int k = 0; bad[k]; k++) {
		const char *b = bad[k];

		if (strcmp(b, ".."))
			assert_int_equal(walk_one(1, 3, b, strlen(b)), EINVAL);
		assert_int_equal(lcreate(1, b, O_WRONLY, 0644), EINVAL);
		assert_int_equal(mkdir_in(1, b, 0755), EINVAL);
		assert_int_equal(symlink_in(1, b, "x"), EINVAL);
		assert_int_equal(mknod_in(1, b, S_IFREG | 0644), EINVAL);
		assert_int_equal(link_in(1, 2, b), EINVAL);
		assert_int_equal(unlink_in(1, b, 0), EINVAL);
		assert_int_equal(unlink_in(1, b, AT_REMOVEDIR), EINVAL);
		assert_int_equal(renameat_in(1, b, 1, "x"), EINVAL);
		assert_int_equal(renameat_in(1, "file", 1, b), EINVAL);
	}
	assert_int_equal(walk_one(1, 3, "file\0x", 6), EINVAL);
	char long_name[300];
	memset(long_name, 'a', sizeof(long_name));
	assert_int_equal(walk_one(1, 3, long_name, 255), ENOENT);
	assert_int_equal(walk_one(1, 3, long_name, 256), ENAMETOOLONG);
	/* Longer than the message, behind which those before have left what is no zero. */
	begin(TWALK);
	add(1, 4);
	add(3, 4);
	add(1, 2);
	add(20, 2);
	add(0x616161, 3);
	assert_int_equal(send_message(), EINVAL);
	host_has("in/file", "hello world");
	host_has("secret", "secret");
}

static void no_way_out_by_links(void **state)
{
	assert_int_equal(symlink_in(ROOT, "to-file", "../secret"), 0);
	assert_int_equal(symlink_in(ROOT, "to-dir", "../outside"), 0);
	assert_int_equal(symlink_in(ROOT, "to-root", "/"), 0);
	assert_int_equal(symlink_in(ROOT, "to-new", "../new"), 0);
	assert_int_equal(walk(ROOT, 1, "to-file"), 0);
	assert_int_equal(lopen(1, O_RDONLY), ELOOP);
	assert_int_equal(lopen(1, O_RDWR | O_TRUNC), ELOOP);
	assert_int_equal(setattr(1, 8, 0, 0), ELOOP);
	assert_int_equal(setattr(1, 1, 0777, 0), EOPNOTSUPP);
	assert_int_equal(setattr(1, 0x10 | 0x20 | 0x80 | 0x100, 0, 0), 0); /* the link's own */
	struct stat st;
	stat(path_of("secret"), &st);
	assert_int_not_equal(st.st_mtim.tv_sec, 2000);
	assert_int_equal(getattr(1), 0);
	assert_int_equal(t.in[7 + 8], 2); /* a link */
	assert_int_equal(walk(ROOT, 2, "to-dir/secret"), -2);
	assert_int_equal(walk(ROOT, 2, "to-root/etc"), -2);
	assert_int_equal(walk(ROOT, 2, "to-dir"), 0);
	assert_int_equal(lopen(2, O_RDONLY | O_DIRECTORY), ELOOP);
	assert_int_equal(walk(2, 3, "secret"), ENOTDIR);
	assert_int_equal(mkdir_in(2, "d", 0755), ENOTDIR);
	assert_int_equal(unlink_in(2, "secret", 0), ENOTDIR);
	assert_int_equal(renameat_in(ROOT, "file", 2, "file"), ENOTDIR);
	assert_int_equal(renameat_in(2, "secret", ROOT, "stolen"), ENOTDIR);
	assert_int_equal(link_in(2, 1, "x"), ENOTDIR);
	assert_int_equal(link_in(ROOT, 1, "same-link"), 0); /* of the link */
	assert_int_equal(walk(ROOT, 4, ""), 0);
	assert_int_equal(lcreate(4, "to-new", O_WRONLY, 0644), ELOOP);
	assert_int_equal(lcreate(4, "to-file", O_WRONLY | O_TRUNC, 0644), ELOOP);
	assert_false(host_is("new"));
	assert_false(host_is("outside/d"));
	host_has("secret", "secret");
	host_has("outside/secret", "secret");
	/* A directory that becomes a link under a fid. */
	assert_int_equal(walk(ROOT, 5, "sub"), 0);
	assert_int_equal(walk(ROOT, 6, "sub/deep"), 0);
	assert_int_equal(rename(path_of("in/sub"), path_of("in/was-sub")), 0);
	assert_int_equal(symlink("../outside", path_of("in/sub")), 0);
	assert_int_equal(walk(5, 7, "secret"), ENOTDIR);
	assert_int_equal(lopen(6, O_RDONLY), ENOTDIR);
}

static void no_devices(void **state)
{
	bool dev = !mknod(path_of("in/null"), S_IFCHR | 0666, 1 << 8 | 3);

	assert_int_equal(mknod_in(ROOT, "c", S_IFCHR | 0666), EPERM);
	assert_int_equal(mknod_in(ROOT, "b", S_IFBLK | 0666), EPERM);
	assert_int_equal(mknod_in(ROOT, "x", 0644), EINVAL);
	assert_int_equal(mknod_in(ROOT, "fifo", S_IFIFO | 0644), 0);
	assert_int_equal(walk(ROOT, 1, "fifo"), 0);
	assert_int_equal(lopen(1, O_RDONLY), EACCES); /* would never come back */
	assert_int_equal(walk(ROOT, 2, ""), 0);
	assert_int_equal(lcreate(2, "fifo", O_WRONLY, 0644), EACCES);
	if (dev) {
		assert_int_equal(walk(ROOT, 3, "null"), 0);
		assert_int_equal(lopen(3, O_RDWR), EACCES);
		assert_int_equal(lcreate(2, "null", O_RDWR, 0644), EACCES);
	}
	assert_int_equal(lcreate(2, "suid", O_RDWR, 04755), EPERM);
	assert_false(host_is("in/suid"));
}

static void read_only(void **state)
{
	share_close(t.share);
	open_share(true);
	assert_int_equal(walk(ROOT, 1, "file"), 0);
	assert_int_equal(walk(ROOT, 2, ""), 0);
	assert_int_equal(lopen(1, O_RDWR), EROFS);
	assert_int_equal(lopen(1, O_WRONLY), EROFS);
	assert_int_equal(lopen(1, O_RDONLY | O_TRUNC), EROFS);
	assert_int_equal(lcreate(2, "new", O_RDONLY, 0644), EROFS);
	assert_int_equal(mkdir_in(2, "d", 0755), EROFS);
	assert_int_equal(symlink_in(2, "s", "x"), EROFS);
	assert_int_equal(mknod_in(2, "n", S_IFREG | 0644), EROFS);
	assert_int_equal(link_in(2, 1, "l"), EROFS);
	assert_int_equal(renameat_in(2, "file", 2, "x"), EROFS);
	assert_int_equal(unlink_in(2, "file", 0), EROFS);
	assert_int_equal(setattr(1, 1, 0600, 0), EROFS);
	assert_int_equal(setattr(1, 0, 0, 0), EROFS);
	assert_int_equal(lopen(1, O_RDONLY), 0);
	assert_int_equal(write_file(1, 0, "x"), EROFS);
	assert_int_equal(read_file(1, 0, 5), 0);
	assert_memory_equal(t.in + 11, "hello", 5);
	assert_int_equal(with_fid(TREMOVE, 1), EROFS);
	host_has("in/file", "hello world");
}

/* ---- nonsense ------------------------------------------------------------------------------------------ */

static void any_bytes(void **state)
{
	u64 seed = 88172645463325252;

	for (int k = 0; k < 60000; k++) {
		seed ^= seed << 13;
		seed ^= seed >> 7;
		seed ^= seed << 17;
		begin((u8)(k % 128));
		unsigned n = seed % 60;
		for (unsigned j = 0; j < n; j++)
			add(seed >> 8 * (j % 8) & (j % 3 ? 0xff : 3), 1);
		st32(t.out, seed >> 60 == 1 ? (u32)seed : (u32)t.len);
		(void)send_raw(seed >> 40 & 1 ? sizeof(t.in) : 11 + (seed >> 41) % 40);
	}
	host_has("secret", "secret");
}

static void bounded(void **state)
{
	static struct session s;
	struct error e;
	u32 n = 0;

	assert_true(session_init(&s, &(struct share_options){ .path = (char *)path_of("in") }, &e));
	while (!fid_new(&s, n, &s.top) && n < 100000)
		n++;
	assert_in_range(n, 60000, 70000);
	assert_int_equal(fid_new(&s, n, &s.top), -ENOMEM);
	fid_free(&s, fid_get(&s, 5));
	assert_int_equal(fid_new(&s, n, &s.top), 0);
	assert_in_range(s.max_open, 16, 16384);
	s.max_open = 3;
	for (u32 k = 0; k < 3; k++)
		assert_int_equal(fid_keep_open(&s, fid_get(&s, k), dup(0), false), 0);
	unsigned open_now = count_fds();
	assert_int_equal(fid_keep_open(&s, fid_get(&s, 3), dup(0), false), -EMFILE);
	assert_int_equal(count_fds(), open_now);
	assert_int_equal(fid_get(&s, 3)->fd, -1);
	fid_free(&s, fid_get(&s, 0));
	assert_int_equal(fid_keep_open(&s, fid_get(&s, 3), dup(0), false), 0);
	/* A directory that the host has moved into itself, by what is known here, is nowhere: no way up from it goes round. */
	struct node *a = node_child(&s, &s.top, "a"), *b = node_child(&s, a, "b");
	node_renamed(&s, &s.top, "a", b, "c");
	assert_int_equal(node_open(&s, b), -ENOENT);
	node_put(&s, b);
	node_put(&s, a);
	session_destroy(&s);
	/* No deeper than a thousand directories. */
	assert_int_equal(walk(ROOT, 1, ""), 0);
	int err = 0;
	for (n = 0; n < 2000 && !err; n++)
		if (!(err = mkdir_in(1, "d", 0755)))
			err = walk(1, 1, "d");
	assert_int_equal(err, ENAMETOOLONG);
	assert_in_range(n, 1000, 1100);
}

static void nothing_stays_open(void **state)
{
	unsigned before = count_fds();

	for (u32 k = 1; k < 50; k++) {
		assert_int_equal(walk(ROOT, k, "file"), 0);
		assert_int_equal(lopen(k, 0), 0);
	}
	assert_int_equal(count_fds(), before + 49);
	assert_int_equal(walk(ROOT, 60, "no"), ENOENT);
	assert_int_equal(lopen(1, 0), EINVAL);
	share_reset(t.share);
	share_drain(t.share);
	assert_int_equal(count_fds(), before);
	assert_int_equal(getattr(ROOT), EBADF);
}

static void folders_that_cannot_be(void **state)
{
	struct error e;

	assert_null(share_open(&(struct share_options){ .path = (char *)path_of("in/file") }, false, t.loop, &e));
	assert_non_null(strstr(e.msg, "not a folder"));
	assert_null(share_open(&(struct share_options){ .path = (char *)path_of("no") }, false, t.loop, &e));
	assert_null(share_open(&(struct share_options){ 0 }, false, t.loop, &e));
	assert_null(share_open(&(struct share_options){ .path = "/", }, false, t.loop, &e)); /* no name for a tag */
	assert_non_null(strstr(e.msg, "tag="));
	struct share *s = share_open(&(struct share_options){ .path = (char *)path_of("in/sub///") }, false, t.loop, &e);
	assert_non_null(s);
	assert_string_equal(share_tag(s), "sub");
	share_close(s);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(versions), TEST(files), TEST(reads_are_bounded), TEST(directories), TEST(attributes), TEST(names),
		TEST(renamed_directories), TEST(removed_but_open), TEST(locks), TEST(no_way_out_by_names), TEST(no_way_out_by_links),
		TEST(no_devices), TEST(read_only), TEST(any_bytes), TEST(bounded), TEST(nothing_stays_open), TEST(folders_that_cannot_be),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
