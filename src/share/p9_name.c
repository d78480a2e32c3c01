/* Names and attributes: what there is in a directory, what a file is like.
 *
 * Files that the guest makes are this process's user's, whoever the guest takes itself for. Set-user-ID and
 * set-group-ID files, and device nodes, are refused: on the host they would be worth something. */
#define LOG_TOPIC "share"
#include "share/p9.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#define GETATTR_BASIC 0x7ffull
/* Tsetattr: which attributes. */
enum { SET_MODE = 1, SET_UID = 2, SET_GID = 4, SET_SIZE = 8, SET_ATIME = 0x10, SET_MTIME = 0x20, SET_CTIME = 0x40,
       SET_ATIME_TO = 0x80, SET_MTIME_TO = 0x100 };

/* ---- attributes ------------------------------------------------------------------------------ */

static void put_time(struct call *c, const struct timespec *t)
{
	put(c, (u64)t->tv_sec, 8);
	put(c, (u64)t->tv_nsec, 8);
}

int p9_getattr(struct call *c)
{
	static const struct timespec none;
	struct fid *f = get_fid(c);
	struct stat st;

	pass_over(c, 8); /* what it wants to know: it is told all */
	if (c->error)
		return c->error;
	int path = fid_open_path(c->s, f);
	if (path < 0)
		return path;
	int err = path_stat(path, &st);
	close(path);
	if (err)
		return err;
	put(c, GETATTR_BASIC, 8);
	put_qid(c, &st);
	put(c, st.st_mode, 4);
	put(c, st.st_uid, 4);
	put(c, st.st_gid, 4);
	put(c, st.st_nlink, 8);
	put(c, st.st_rdev, 8);
	put(c, (u64)st.st_size, 8);
	put(c, (u64)st.st_blksize, 8);
	put(c, (u64)st.st_blocks, 8);
	put_time(c, &st.st_atim);
	put_time(c, &st.st_mtim);
	put_time(c, &st.st_ctim);
	put_time(c, &none); /* birth */
	put(c, 0, 8);       /* generation, data version */
	put(c, 0, 8);
	return 0;
}

static int set_mode(struct session *s, int path, mode_t mode)
{
	struct stat st;
	int err = path_stat(path, &st);

	if (err)
		return err;
	if (S_ISLNK(st.st_mode))
		return -EOPNOTSUPP;
	if (!S_ISDIR(st.st_mode) && (mode & (S_ISUID | S_ISGID)))
		return -EPERM;
	return path_chmod(s, path, mode & 07777);
}

static int set_size(struct session *s, const struct fid *f, int path, u64 size)
{
	bool dir;

	if (f->fd >= 0 && !ftruncate(f->fd, (off_t)size))
		return 0;
	int fd = path_reopen(s, path, O_WRONLY, &dir); /* it is not open, or not to be written */
	if (fd < 0)
		return fd;
	int err = ftruncate(fd, (off_t)size) ? -errno : 0;
	close(fd);
	return err;
}

static struct timespec time_of(u32 valid, u32 set, u32 to, u64 sec, u64 nsec)
{
	if (!(valid & set))
		return (struct timespec){ .tv_nsec = UTIME_OMIT };
	if (!(valid & to))
		return (struct timespec){ .tv_nsec = UTIME_NOW };
	return (struct timespec){ (time_t)sec, (long)MIN(nsec, 999999999u) };
}

int p9_setattr(struct call *c)
{
	struct session *s = c->s;
	struct fid *f = get_fid(c);
	u32 valid = (u32)get(c, 4), mode = (u32)get(c, 4), uid = (u32)get(c, 4), gid = (u32)get(c, 4);
	u64 size = get(c, 8), t[4];

	for (unsigned k = 0; k < 4; k++)
		t[k] = get(c, 8);
	if (c->error)
		return c->error;
	int path = fid_open_path(s, f), err = 0;
	if (path < 0)
		return path;
	if (valid & SET_SIZE)
		err = set_size(s, f, path, size);
	if (!err && (valid & (SET_UID | SET_GID)) &&
	    fchownat(path, "", valid & SET_UID ? uid : (uid_t)-1, valid & SET_GID ? gid : (gid_t)-1, AT_EMPTY_PATH))
		err = -errno;
	if (!err && (valid & SET_MODE))
		err = set_mode(s, path, mode);
	if (!err && (valid & (SET_ATIME | SET_MTIME))) {
		struct timespec times[2] = { time_of(valid, SET_ATIME, SET_ATIME_TO, t[0], t[1]),
					     time_of(valid, SET_MTIME, SET_MTIME_TO, t[2], t[3]) };
		err = utimensat(path, "", times, AT_EMPTY_PATH) ? -errno : 0;
	}
	close(path);
	return err;
}

int p9_readlink(struct call *c)
{
	char target[PATH_MAX];
	struct fid *f = get_fid(c);

	if (c->error)
		return c->error;
	int path = fid_open_path(c->s, f);
	if (path < 0)
		return path;
	ssize_t n = readlinkat(path, "", target, sizeof(target));
	int err = n < 0 ? (errno == ENOENT ? -EINVAL : -errno) : 0; /* what is no link is no such file, says the kernel */
	close(path);
	if (!err)
		put_text(c, target, (size_t)n);
	return err;
}

int p9_statfs(struct call *c)
{
	struct fid *f = get_fid(c);
	struct statfs st;

	if (c->error)
		return c->error;
	int path = fid_open_path(c->s, f);
	if (path < 0)
		return path;
	int err = fstatfs(path, &st) ? -errno : 0;
	close(path);
	if (err)
		return err;
	put(c, (u64)st.f_type, 4);
	put(c, (u64)st.f_bsize, 4);
	put(c, st.f_blocks, 8);
	put(c, st.f_bfree, 8);
	put(c, st.f_bavail, 8);
	put(c, st.f_files, 8);
	put(c, st.f_ffree, 8);
	put(c, (u32)st.f_fsid.__val[0] | (u64)(u32)st.f_fsid.__val[1] << 32, 8);
	put(c, (u64)st.f_namelen, 4);
	return 0;
}

/* ---- new names ----------------------------------------------------------------------------------- */

/* Answers with what the name in dir is now; closes dir. err: of what made it. */
static int made(struct call *c, int dir, const char *name, int err)
{
	struct stat st;

	if (!err)
		err = fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) ? -errno : 0;
	if (!err)
		put_qid(c, &st);
	close(dir);
	return err;
}

int p9_symlink(struct call *c)
{
	char name[P9_NAME], target[PATH_MAX];
	struct fid *f = get_fid(c);

	get_name(c, name);
	get_text(c, target, sizeof(target));
	pass_over(c, 4); /* group */
	if (c->error)
		return c->error;
	int dir = fid_open_path(c->s, f);
	return dir < 0 ? dir : made(c, dir, name, symlinkat(target, dir, name) ? -errno : 0);
}

static int make_node(int dir, const char *name, u32 mode)
{
	if (S_ISREG(mode)) {
		int fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
		if (fd < 0)
			return -errno;
		int err = fchmod(fd, mode & 01777) ? -errno : 0;
		close(fd);
		return err;
	}
	if (S_ISFIFO(mode) || S_ISSOCK(mode))
		return mknodat(dir, name, mode & (S_IFMT | 0777), 0) ? -errno : 0;
	return S_ISCHR(mode) || S_ISBLK(mode) ? -EPERM : -EINVAL;
}

int p9_mknod(struct call *c)
{
	char name[P9_NAME];
	struct fid *f = get_fid(c);

	get_name(c, name);
	u32 mode = (u32)get(c, 4);
	pass_over(c, 8 + 4); /* device, group */
	if (c->error)
		return c->error;
	int dir = fid_open_path(c->s, f);
	return dir < 0 ? dir : made(c, dir, name, make_node(dir, name, mode));
}

static int make_dir(int dir, const char *name, u32 mode)
{
	if (mkdirat(dir, name, 0700))
		return -errno;
	int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	int err = fd < 0 || fchmod(fd, mode & 03777) ? -errno : 0;
	if (fd >= 0)
		close(fd);
	return err;
}

int p9_mkdir(struct call *c)
{
	char name[P9_NAME];
	struct fid *f = get_fid(c);

	get_name(c, name);
	u32 mode = (u32)get(c, 4);
	pass_over(c, 4); /* group */
	if (c->error)
		return c->error;
	int dir = fid_open_path(c->s, f);
	return dir < 0 ? dir : made(c, dir, name, make_dir(dir, name, mode));
}

/* ---- names that come and go ------------------------------------------------------------------------- */

/* The directory that a fid's file has its name in. */
static int parent_open(struct session *s, const struct fid *f)
{
	if (!f->node->parent)
		return -EBUSY;
	return f->node->gone ? -ENOENT : node_open(s, f->node->parent);
}

int p9_link(struct call *c)
{
	char name[P9_NAME];
	struct fid *to = get_fid(c), *f = get_fid(c);

	get_name(c, name);
	if (c->error)
		return c->error;
	int from_dir = parent_open(c->s, f);
	if (from_dir < 0)
		return from_dir;
	int to_dir = fid_open_path(c->s, to);
	int err = to_dir < 0 ? to_dir : linkat(from_dir, f->node->name, to_dir, name, 0) ? -errno : 0;
	close(from_dir);
	if (to_dir >= 0)
		close(to_dir);
	return err;
}

/* Both directories, and then their nodes. */
static int move_name(struct session *s, int from_dir, struct node *from_node, const char *from, struct fid *to, const char *name)
{
	if (from_dir < 0)
		return from_dir;
	int to_dir = fid_open_path(s, to);
	int err = to_dir < 0 ? to_dir : renameat(from_dir, from, to_dir, name) ? -errno : 0;
	close(from_dir);
	if (to_dir >= 0)
		close(to_dir);
	if (!err)
		node_renamed(s, from_node, from, to->node, name);
	return err;
}

int p9_rename(struct call *c)
{
	char from[P9_NAME], name[P9_NAME];
	struct fid *f = get_fid(c), *to = get_fid(c);

	get_name(c, name);
	if (c->error)
		return c->error;
	int dir = parent_open(c->s, f);
	if (dir < 0)
		return dir;
	strcpy(from, f->node->name); /* the node's is about to change */
	return move_name(c->s, dir, f->node->parent, from, to, name);
}

int p9_renameat(struct call *c)
{
	char from[P9_NAME], name[P9_NAME];
	struct fid *f = get_fid(c);

	get_name(c, from);
	struct fid *to = get_fid(c);
	get_name(c, name);
	return c->error ? c->error : move_name(c->s, fid_open_path(c->s, f), f->node, from, to, name);
}

int p9_unlinkat(struct call *c)
{
	char name[P9_NAME];
	struct fid *f = get_fid(c);

	get_name(c, name);
	u32 flags = (u32)get(c, 4);
	if (c->error)
		return c->error;
	int dir = fid_open_path(c->s, f);
	if (dir < 0)
		return dir;
	int err = unlinkat(dir, name, (int)(flags & AT_REMOVEDIR)) ? -errno : 0;
	close(dir);
	if (!err)
		node_removed(c->s, f->node, name);
	return err;
}

static int remove_named(struct session *s, const struct fid *f)
{
	struct stat st;

	if (s->read_only)
		return -EROFS;
	int dir = parent_open(s, f);
	if (dir < 0)
		return dir;
	int err = fstatat(dir, f->node->name, &st, AT_SYMLINK_NOFOLLOW) ||
		  unlinkat(dir, f->node->name, S_ISDIR(st.st_mode) ? AT_REMOVEDIR : 0) ? -errno : 0;
	close(dir);
	return err;
}

/* The fid is gone in any case. */
int p9_remove(struct call *c)
{
	struct fid *f = get_fid(c);

	if (c->error)
		return c->error;
	int err = remove_named(c->s, f);
	if (!err && !f->node->gone)
		node_removed(c->s, f->node->parent, f->node->name);
	fid_free(c->s, f);
	return err;
}
