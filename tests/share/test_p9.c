/* The server of 9P2000.L, spoken to as a guest could: what it does, what it refuses, and that nothing outside
 * of the folder is reached. The folder lies in a scratch folder beside a secret. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "test.h"
#include "share/p9.h"

enum { TSTATFS = 8, TLOPEN = 12, TLCREATE = 14, TSYMLINK = 16, TMKNOD = 18, TRENAME = 20, TREADLINK = 22, TGETATTR = 24, TSETATTR = 26,
       TXATTRWALK = 30, TREADDIR = 40, TFSYNC = 50, TLOCK = 52, TGETLOCK = 54, TLINK = 70, TMKDIR = 72, TRENAMEAT = 74, TUNLINKAT = 76,
       TVERSION = 100, TATTACH = 104, TFLUSH = 108, TWALK = 110, TREAD = 116, TWRITE = 118, TCLUNK = 120, TREMOVE = 122 };
#define NOFID 0xffffffffu
#define ROOT 0u

static struct {
	char dir[64];            /* of all; the folder is dir/in, the secret dir/secret */
	struct loop *loop;
	struct share *share;
	u8 out[16384];
	size_t len;
	u8 in[1 << 20];
	struct share_request r;
	bool done;
} t;

/* ---- messages ------------------------------------------------------------------------------- */

static void add(u64 val, unsigned bytes)
{
	memcpy(t.out + t.len, &val, bytes);
	t.len += bytes;
}

static void add_text(const char *text)
{
	add(strlen(text), 2);
	memcpy(t.out + t.len, text, strlen(text));
	t.len += strlen(text);
}

static void begin(u8 type)
{
	t.len = 4;
	add(type, 1);
	add(77, 2);
}

static void on_done(struct share_request *r) { t.done = true; }

/* 0, or the error; the reply's arguments are at t.in + 7. */
static int send_raw(u64 in_len)
{
	struct iovec out = { t.out, t.len }, in = { t.in, in_len };

	t.r = (struct share_request){ .out = &out, .n_out = 1, .out_len = t.len, .in = &in, .n_in = 1, .in_len = in_len, .done = on_done };
	t.done = false;
	share_submit(t.share, &t.r);
	share_drain(t.share);
	assert_true(t.done);
	assert_in_range(t.r.reply, 7, in_len);
	assert_int_equal(ld32(t.in), t.r.reply);
	return t.in[4] == 7 ? (int)ld32(t.in + 7) : 0;
}

static int send_message(void)
{
	st32(t.out, (u32)t.len);
	int err = send_raw(sizeof(t.in));
	assert_int_equal(ld16(t.in + 5), 77);
	assert_int_equal(t.in[4], err ? 7 : t.out[4] + 1);
	return err;
}

static int version(u32 msize, const char *text)
{
	begin(TVERSION);
	add(msize, 4);
	add_text(text);
	return send_message();
}

static int attach(u32 fid)
{
	begin(TATTACH);
	add(fid, 4);
	add(NOFID, 4);
	add_text("root");
	add_text("");
	add(0, 4);
	return send_message();
}

/* path: names with '/' between; "" for none. */
static int walk(u32 fid, u32 new_fid, const char *path)
{
	char copy[4096], *save, *name;
	u16 n = 0;

	begin(TWALK);
	add(fid, 4);
	add(new_fid, 4);
	add(0, 2);
	snprintf(copy, sizeof(copy), "%s", path);
	for (name = strtok_r(copy, "/", &save); name; name = strtok_r(NULL, "/", &save), n++)
		add_text(name);
	st16(t.out + 15, n);
	int err = send_message();
	return err ? err : ld16(t.in + 7) == n ? 0 : -ld16(t.in + 7) - 1; /* as far as it came */
}

static int lopen(u32 fid, u32 flags)
{
	begin(TLOPEN);
	add(fid, 4);
	add(flags, 4);
	return send_message();
}

static int lcreate(u32 fid, const char *name, u32 flags, u32 mode)
{
	begin(TLCREATE);
	add(fid, 4);
	add_text(name);
	add(flags, 4);
	add(mode, 4);
	add(0, 4);
	return send_message();
}

static int write_file(u32 fid, u64 offset, const char *text)
{
	begin(TWRITE);
	add(fid, 4);
	add(offset, 8);
	add(strlen(text), 4);
	memcpy(t.out + t.len, text, strlen(text));
	t.len += strlen(text);
	return send_message();
}

static int read_file(u32 fid, u64 offset, u32 count)
{
	begin(TREAD);
	add(fid, 4);
	add(offset, 8);
	add(count, 4);
	return send_message();
}

static int clunk(u32 fid)
{
	begin(TCLUNK);
	add(fid, 4);
	return send_message();
}

static int mkdir_in(u32 fid, const char *name, u32 mode)
{
	begin(TMKDIR);
	add(fid, 4);
	add_text(name);
	add(mode, 4);
	add(0, 4);
	return send_message();
}

static int symlink_in(u32 fid, const char *name, const char *target)
{
	begin(TSYMLINK);
	add(fid, 4);
	add_text(name);
	add_text(target);
	add(0, 4);
	return send_message();
}

static int mknod_in(u32 fid, const char *name, u32 mode)
{
	begin(TMKNOD);
	add(fid, 4);
	add_text(name);
	add(mode, 4);
	add(1, 4);
	add(3, 4);
	add(0, 4);
	return send_message();
}

static int link_in(u32 dir, u32 fid, const char *name)
{
	begin(TLINK);
	add(dir, 4);
	add(fid, 4);
	add_text(name);
	return send_message();
}

static int renameat_in(u32 from_dir, const char *from, u32 to_dir, const char *to)
{
	begin(TRENAMEAT);
	add(from_dir, 4);
	add_text(from);
	add(to_dir, 4);
	add_text(to);
	return send_message();
}

static int unlink_in(u32 dir, const char *name, u32 flags)
{
	begin(TUNLINKAT);
	add(dir, 4);
	add_text(name);
	add(flags, 4);
	return send_message();
}

static int with_fid(u8 type, u32 fid)
{
	begin(type);
	add(fid, 4);
	return send_message();
}

static int getattr(u32 fid)
{
	begin(TGETATTR);
	add(fid, 4);
	add(0x7ff, 8);
	return send_message();
}
static u64 attr_size(void) { return ld64(t.in + 7 + 8 + 13 + 4 + 4 + 4 + 8 + 8); }
static u64 attr_path(void) { return ld64(t.in + 7 + 8 + 5); }

static int setattr(u32 fid, u32 valid, u32 mode, u64 size)
{
	begin(TSETATTR);
	add(fid, 4);
	add(valid, 4);
	add(mode, 4);
	add(0, 4);
	add(0, 4);
	add(size, 8);
	add(1000, 8);
	add(5, 8);
	add(2000, 8);
	add(7, 8);
	return send_message();
}

/* ---- the scratch folder ------------------------------------------------------------------------ */

static const char *path_of(const char *name)
{
	static char path[2][4200];
	static int k;

	k ^= 1;
	snprintf(path[k], sizeof(path[k]), "%s/%s", t.dir, name);
	return path[k];
}

static void host_write(const char *name, const char *text)
{
	FILE *f = fopen(path_of(name), "w");

	assert_non_null(f);
	fputs(text, f);
	fclose(f);
}

static void host_has(const char *name, const char *want)
{
	char got[4096] = { 0 };
	FILE *f = fopen(path_of(name), "r");

	if (!f)
		fail_msg("%s is not there", name);
	size_t n = fread(got, 1, sizeof(got) - 1, f);
	fclose(f);
	assert_int_equal(n, strlen(want));
	assert_string_equal(got, want);
}

static bool host_is(const char *name)
{
	struct stat st;

	return !lstat(path_of(name), &st);
}

static void open_share(bool read_only)
{
	struct error e;

	t.share = share_open(&(struct share_options){ .path = (char *)path_of("in"), .tag = "t", .read_only = read_only }, false, t.loop, &e);
	if (!t.share)
		fail_msg("%s", e.msg);
	assert_int_equal(version(128 << 10, "9P2000.L"), 0);
	assert_int_equal(attach(ROOT), 0);
}

static int setup(void **state)
{
	struct error e;

	memset(&t, 0, sizeof(t));
	strcpy(t.dir, "/tmp/ring3-test-p9-XXXXXX");
	assert_non_null(mkdtemp(t.dir));
	assert_int_equal(mkdir(path_of("in"), 0755), 0);
	assert_int_equal(mkdir(path_of("in/sub"), 0755), 0);
	assert_int_equal(mkdir(path_of("outside"), 0755), 0);
	host_write("secret", "secret");
	host_write("outside/secret", "secret");
	host_write("in/file", "hello world");
	host_write("in/sub/deep", "deep");
	t.loop = loop_new(&e);
	open_share(false);
	return 0;
}

static int remove_one(const char *path, const struct stat *st, int what, struct FTW *f) { return remove(path); }

static int teardown(void **state)
{
	share_close(t.share);
	loop_free(t.loop);
	return nftw(t.dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

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

static unsigned count_fds(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 4096; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
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

/* ---- a host's mount that does not answer: a lease of ours on a file, which the kernel waits for, makes one - */

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
		TEST(given_up), TEST(given_up_on_request), TEST(given_up_often), TEST(closed_meanwhile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
