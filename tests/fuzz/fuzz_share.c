/* The server of a shared folder, spoken to by fuzz bytes, while someone on the host moves things about in
 * the folder. Beside it lies a secret: no reply may have it, and nothing may change there.
 *
 * Input: operations: u8 what; a message's type, then arguments until one of kind 7: u8 kind, and what it needs. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz.h"
#include "share/p9.h"

static char top[64];                  /* top/in is shared, top/out is not */
static const char *const names[] = { "a", "b", "dir", "dir2", "out", "out-file", "up", "fifo", "..", ".", "", "x/y", "secret", "nul" };
/* Not one string anywhere: it must not find its way into inputs. */
static u8 secret_byte(unsigned k) { return (u8)(0xa5 ^ k * 0x3d ^ k >> 2); }
#define SECRET 24u

static const char *in_top(const char *name)
{
	static char path[2][160];
	static int k;

	k ^= 1;
	snprintf(path[k], sizeof(path[k]), "%s/%s", top, name);
	return path[k];
}

static void create(const char *name, bool secret)
{
	int fd = open(in_top(name), O_WRONLY | O_CREAT | O_TRUNC, 0644);
	u8 bytes[SECRET];

	for (unsigned k = 0; k < SECRET; k++)
		bytes[k] = secret ? secret_byte(k) : (u8)('a' + k);
	if (fd < 0 || write(fd, bytes, SECRET) != SECRET)
		bug("%s: %s", name, strerror(errno));
	close(fd);
}

static int remove_one(const char *path, const struct stat *st, int what, struct FTW *f)
{
	if (f->level == 0)
		return 0;
	if (S_ISDIR(st->st_mode))
		chmod(path, 0700);
	return remove(path);
}

static void remove_top(void)
{
	nftw(top, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	rmdir(top);
}

static void populate(void)
{
	if (!top[0]) {
		snprintf(top, sizeof(top), "%s/ring3-fuzz-XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
		if (!mkdtemp(top))
			bug("%s: %s", top, strerror(errno));
		atexit(remove_top);
		mkdir(in_top("out"), 0755);
		create("out/secret", true);
		mkdir(in_top("in"), 0755);
	}
	nftw(in_top("in"), remove_one, 16, FTW_DEPTH | FTW_PHYS);
	chmod(in_top("in"), 0755);
	mkdir(in_top("in/dir"), 0755);
	create("in/a", false);
	create("in/dir/b", false);
	if (symlink("../out", in_top("in/out")) || symlink("../out/secret", in_top("in/out-file")) || symlink("..", in_top("in/up")) ||
	    mkfifo(in_top("in/fifo"), 0644))
		bug("%s: %s", top, strerror(errno));
}

static void check_outside(void)
{
	u8 bytes[SECRET + 1];
	struct stat st;
	int fd = open(in_top("out/secret"), O_RDONLY);

	if (fd < 0 || read(fd, bytes, sizeof(bytes)) != SECRET || fstat(fd, &st) || st.st_nlink != 1 || st.st_mode != (S_IFREG | 0644))
		bug("the secret is another file");
	close(fd);
	for (unsigned k = 0; k < SECRET; k++)
		if (bytes[k] != secret_byte(k))
			bug("the secret was changed");
	if (stat(in_top("out"), &st) || st.st_nlink != 2 || rmdir(in_top("out")) != -1 || errno != ENOTEMPTY || unlink(in_top("out/a")) != -1 ||
	    unlink(in_top("out/b")) != -1)
		bug("something was made outside of the folder");
}

static void check_reply(const u8 *reply, u64 len)
{
	for (u64 at = 0; at + SECRET <= len; at++) {
		unsigned k = 0;

		while (k < SECRET && reply[at + k] == secret_byte(k))
			k++;
		if (k == SECRET)
			bug("the secret was told");
	}
}

/* Arguments as they are made of: the fuzzer would take long to find lengths of texts. */
static size_t arguments(struct input *in, u8 *to, size_t cap)
{
	size_t len = 0;

	while (in->left && len + 300 < cap) {
		u8 kind = (u8)take(in, 1);
		const char *name = names[(kind >> 3) % ARRAY_LEN(names)];
		u64 val;

		switch (kind & 7) {
		case 0: val = kind >> 3 & 7; memcpy(to + len, &val, 4); len += 4; break; /* a fid */
		case 1:
			st16(to + len, (u16)strlen(name));
			memcpy(to + len + 2, name, strlen(name));
			len += 2 + strlen(name);
			break;
		case 2: val = take(in, 2); memcpy(to + len, &val, 4); len += 4; break;
		case 3: val = take(in, 2); memcpy(to + len, &val, 8); len += 8; break;
		case 4: val = take(in, 8); memcpy(to + len, &val, 8); len += 8; break;
		case 5: val = ~0ull; memcpy(to + len, &val, 4); len += 4; break;
		case 6: to[len++] = (u8)(kind >> 3); break;
		default: return len;
		}
	}
	return len;
}

/* Only in the folder itself: what is below may be a link out of it by now. */
static void someone_else(u8 what)
{
	switch (what >> 4 & 7) {
	case 0: rename(in_top("in/dir"), in_top("in/dir2")); break;
	case 1: rename(in_top("in/dir2"), in_top("in/dir")); break;
	case 2: rename(in_top("in/out"), in_top("in/dir")); break;
	case 3: rename(in_top("in/a"), in_top("in/b")); break;
	case 4: unlink(in_top("in/a")); (void)!symlink("../out/secret", in_top("in/a")); break;
	case 5: unlink(in_top("in/dir2")); (void)!symlink("../out", in_top("in/dir2")); break;
	case 6: rename(in_top("in/b"), in_top("in/dir2")); break;
	default: mkdir(in_top("in/dir"), 0755);
	}
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	static const u8 attach[] = "\x19\0\0\0\x68\1\0\0\0\0\0\xff\xff\xff\xff\0\0\0\0\0\0\0\0\0";
	static struct session s;
	static u8 out[4096], reply[9000];
	struct input in = { data, size };
	struct error e;

	populate();
	if (!session_init(&s, &(struct share_options){ .path = (char *)in_top("in"), .read_only = take(&in, 1) % 8 == 1 }, &e))
		bug("%s", e.msg);
	s.max_open = 8;
	memcpy(out, attach, sizeof(attach));
	size_t len = sizeof(attach);
	for (unsigned ops = 0; ops < 200; ops++) {
		struct iovec o[2] = { { out, MIN(len, 30) }, { out + MIN(len, 30), len - MIN(len, 30) } };
		struct iovec i[2] = { { reply, 13 }, { reply + 13, sizeof(reply) - 13 } };
		struct share_request r = { .out = o, .n_out = 2, .out_len = len, .in = i, .n_in = 2, .in_len = sizeof(reply) };

		p9_serve(&s, &r);
		if (r.reply < P9_HEADER || r.reply > sizeof(reply) || ld32(reply) != r.reply)
			bug("a reply of %llu bytes", (unsigned long long)r.reply);
		check_reply(reply, r.reply);
		if (!in.left)
			break;
		u8 what = (u8)take(&in, 1);
		if (what & 8)
			someone_else(what);
		out[4] = (u8)take(&in, 1) & 0x7f;
		len = P9_HEADER + arguments(&in, out + P9_HEADER, sizeof(out) - P9_HEADER);
		st32(out, what & 4 ? (u32)len : (u32)len + (what & 3));
	}
	session_destroy(&s);
	check_outside();
	return 0;
}
