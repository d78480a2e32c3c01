/* See p9_client.h. */
#include <ftw.h>

#include "p9_client.h"

struct p9_client t;

/* ---- messages ------------------------------------------------------------------------------- */

void add(u64 val, unsigned bytes)
{
	memcpy(t.out + t.len, &val, bytes);
	t.len += bytes;
}

void add_text(const char *text)
{
	add(strlen(text), 2);
	memcpy(t.out + t.len, text, strlen(text));
	t.len += strlen(text);
}

void begin(u8 type)
{
	t.len = 4;
	add(type, 1);
	add(77, 2);
}

static void on_done(struct share_request *r) { t.done = true; }

/* 0, or the error; the reply's arguments are at t.in + 7. */
int send_raw(u64 in_len)
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

int send_message(void)
{
	st32(t.out, (u32)t.len);
	int err = send_raw(sizeof(t.in));
	assert_int_equal(ld16(t.in + 5), 77);
	assert_int_equal(t.in[4], err ? 7 : t.out[4] + 1);
	return err;
}

int version(u32 msize, const char *text)
{
	begin(TVERSION);
	add(msize, 4);
	add_text(text);
	return send_message();
}

int attach(u32 fid)
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
int walk(u32 fid, u32 new_fid, const char *path)
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

int lopen(u32 fid, u32 flags)
{
	begin(TLOPEN);
	add(fid, 4);
	add(flags, 4);
	return send_message();
}

int lcreate(u32 fid, const char *name, u32 flags, u32 mode)
{
	begin(TLCREATE);
	add(fid, 4);
	add_text(name);
	add(flags, 4);
	add(mode, 4);
	add(0, 4);
	return send_message();
}

int write_file(u32 fid, u64 offset, const char *text)
{
	begin(TWRITE);
	add(fid, 4);
	add(offset, 8);
	add(strlen(text), 4);
	memcpy(t.out + t.len, text, strlen(text));
	t.len += strlen(text);
	return send_message();
}

int read_file(u32 fid, u64 offset, u32 count)
{
	begin(TREAD);
	add(fid, 4);
	add(offset, 8);
	add(count, 4);
	return send_message();
}

int clunk(u32 fid)
{
	begin(TCLUNK);
	add(fid, 4);
	return send_message();
}

int mkdir_in(u32 fid, const char *name, u32 mode)
{
	begin(TMKDIR);
	add(fid, 4);
	add_text(name);
	add(mode, 4);
	add(0, 4);
	return send_message();
}

int symlink_in(u32 fid, const char *name, const char *target)
{
	begin(TSYMLINK);
	add(fid, 4);
	add_text(name);
	add_text(target);
	add(0, 4);
	return send_message();
}

int mknod_in(u32 fid, const char *name, u32 mode)
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

int link_in(u32 dir, u32 fid, const char *name)
{
	begin(TLINK);
	add(dir, 4);
	add(fid, 4);
	add_text(name);
	return send_message();
}

int renameat_in(u32 from_dir, const char *from, u32 to_dir, const char *to)
{
	begin(TRENAMEAT);
	add(from_dir, 4);
	add_text(from);
	add(to_dir, 4);
	add_text(to);
	return send_message();
}

int unlink_in(u32 dir, const char *name, u32 flags)
{
	begin(TUNLINKAT);
	add(dir, 4);
	add_text(name);
	add(flags, 4);
	return send_message();
}

int with_fid(u8 type, u32 fid)
{
	begin(type);
	add(fid, 4);
	return send_message();
}

int getattr(u32 fid)
{
	begin(TGETATTR);
	add(fid, 4);
	add(0x7ff, 8);
	return send_message();
}
u64 attr_size(void) { return ld64(t.in + 7 + 8 + 13 + 4 + 4 + 4 + 8 + 8); }
u64 attr_path(void) { return ld64(t.in + 7 + 8 + 5); }

int setattr(u32 fid, u32 valid, u32 mode, u64 size)
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

const char *path_of(const char *name)
{
	static char path[2][4200];
	static int k;

	k ^= 1;
	snprintf(path[k], sizeof(path[k]), "%s/%s", t.dir, name);
	return path[k];
}

void host_write(const char *name, const char *text)
{
	FILE *f = fopen(path_of(name), "w");

	assert_non_null(f);
	fputs(text, f);
	fclose(f);
}

void host_has(const char *name, const char *want)
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

bool host_is(const char *name)
{
	struct stat st;

	return !lstat(path_of(name), &st);
}

void open_share(bool read_only)
{
	struct error e;

	t.share = share_open(&(struct share_options){ .path = (char *)path_of("in"), .tag = "t", .read_only = read_only }, false, t.loop, &e);
	if (!t.share)
		fail_msg("%s", e.msg);
	assert_int_equal(version(128 << 10, "9P2000.L"), 0);
	assert_int_equal(attach(ROOT), 0);
}

int setup(void **state)
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

int teardown(void **state)
{
	share_close(t.share);
	loop_free(t.loop);
	return nftw(t.dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

unsigned count_fds(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 4096; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}
