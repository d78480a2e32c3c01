/* Open files: open, create, read, write, list, sync, lock.
 *
 * Locks are the guest's own: its kernel takes a lock among its own processes before it asks here, and each
 * is granted. Other machines and the host's programs are not held off by it. */
#define LOG_TOPIC "share"
#include "share/p9.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* Of the client's flags: those that mean something here. They are Linux's on x86. */
#define OPEN_FLAGS (O_ACCMODE | O_APPEND | O_DSYNC | O_SYNC)
#define ENTRY_BYTES 24u            /* of Rreaddir, before the name */
#define WRITE_HEADER 23u           /* of Twrite, before the data */
enum { LOCK_UNLOCK = 2, LOCK_SUCCESS = 0 };

/* ---- opening -------------------------------------------------------------------------------- */

/* Answers an open: fd is the fid's from now on. */
static int opened(struct call *c, struct fid *f, int fd, bool dir)
{
	struct stat st;
	int err = path_stat(fd, &st);

	if (err)
		close(fd);
	else
		err = fid_keep_open(c->s, f, fd, dir);
	if (err)
		return err;
	put_qid(c, &st);
	put(c, 0, 4); /* as much at once as fits a message */
	return 0;
}

static int open_path(struct call *c, struct fid *f, int path, u32 flags)
{
	bool dir;
	int fd = path_reopen(c->s, path, (int)(flags & (OPEN_FLAGS | O_TRUNC)), &dir);

	return fd < 0 ? fd : opened(c, f, fd, dir);
}

int p9_lopen(struct call *c)
{
	struct fid *f = get_fid(c);
	u32 flags = (u32)get(c, 4);

	if (c->error)
		return c->error;
	if (f->fd >= 0 || (flags & O_ACCMODE) == O_ACCMODE)
		return -EINVAL;
	if (c->s->read_only && (flags & (O_ACCMODE | O_TRUNC)))
		return -EROFS;
	int path = fid_open_path(c->s, f);
	if (path < 0)
		return path;
	int err = open_path(c, f, path, flags);
	close(path);
	return err;
}

/* A new file, or unless the client insists the one that is there. */
static int create_in(struct call *c, struct fid *f, int dir, const char *name, u32 flags, u32 mode)
{
	int fd = openat(dir, name, (int)(flags & OPEN_FLAGS) | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);

	if (fd >= 0) { /* as asked for, whatever this process's mask is */
		if (!fchmod(fd, mode & 07777))
			return opened(c, f, fd, false);
		int err = -errno;
		close(fd);
		return err;
	}
	if (errno != EEXIST || (flags & O_EXCL))
		return -errno;
	int path = path_child(dir, name);
	if (path < 0)
		return path;
	int err = open_path(c, f, path, flags);
	close(path);
	return err;
}

int p9_lcreate(struct call *c)
{
	char name[P9_NAME];
	struct fid *f = get_fid(c);

	get_name(c, name);
	u32 flags = (u32)get(c, 4), mode = (u32)get(c, 4);
	pass_over(c, 4); /* group: this process's */
	if (c->error)
		return c->error;
	if (f->fd >= 0 || (flags & O_ACCMODE) == O_ACCMODE)
		return -EINVAL;
	if (mode & (S_ISUID | S_ISGID))
		return -EPERM;
	struct node *n = node_child(c->s, f->node, name);
	if (!n)
		return -ENOMEM;
	int dir = fid_open_path(c->s, f);
	int err = dir < 0 ? dir : create_in(c, f, dir, name, flags, mode);
	if (dir >= 0)
		close(dir);
	if (!err)
		fid_move(c->s, f, n);
	node_put(c->s, n);
	return err;
}

/* ---- data -------------------------------------------------------------------------------------- */

/* The fid of an open file that is no directory, or NULL and the error. */
static struct fid *get_file(struct call *c)
{
	struct fid *f = get_fid(c);

	if (f && (f->fd < 0 || f->dir)) {
		c->error = f->fd < 0 ? -EBADF : -EISDIR;
		return NULL;
	}
	return f;
}

int p9_read(struct call *c)
{
	struct iovec iov[IOV_MAX];
	struct fid *f = get_file(c);
	u64 offset = get(c, 8), count = get(c, 4);

	if (c->error)
		return c->error;
	if (c->r->n_in > IOV_MAX)
		return -EINVAL;
	count = MIN(count, c->room - P9_DATA);
	unsigned n = iov_slice(c->r->in, c->r->n_in, P9_DATA, count, iov);
	ssize_t got = count ? preadv(f->fd, iov, (int)n, (off_t)offset) : 0;
	if (got < 0)
		return -errno;
	put(c, (u64)got, 4);
	c->data = (u64)got;
	return 0;
}

int p9_write(struct call *c)
{
	struct iovec iov[IOV_MAX];
	struct fid *f = get_file(c);
	u64 offset = get(c, 8), count = get(c, 4);

	if (c->error)
		return c->error;
	if (count > c->size - WRITE_HEADER || c->r->n_out > IOV_MAX)
		return -EINVAL;
	unsigned n = iov_slice(c->r->out, c->r->n_out, WRITE_HEADER, count, iov);
	ssize_t done = count ? pwritev(f->fd, iov, (int)n, (off_t)offset) : 0;
	if (done < 0)
		return -errno;
	put(c, (u64)done, 4);
	return 0;
}

int p9_fsync(struct call *c)
{
	struct fid *f = get_fid(c);
	bool data_only = c->left >= 4 && get(c, 4); /* not there in the protocol's first form */

	if (c->error)
		return c->error;
	if (f->fd < 0)
		return -EBADF;
	return (data_only ? fdatasync(f->fd) : fsync(f->fd)) ? -errno : 0;
}

/* ---- directories ---------------------------------------------------------------------------------- */

/* As getdents64 gives them: u64 inode, u64 offset of the next, u16 length, u8 type, name. */
enum { D_OFFSET = 8, D_LENGTH = 16, D_TYPE = 18, D_NAME = 19 };

static u8 entry_type(u8 d_type) { return qid_type(d_type == DT_DIR ? S_IFDIR : d_type == DT_LNK ? S_IFLNK : S_IFREG); }

/* From s->entries, n bytes, to s->listing as far as they fit; how many bytes that made. */
static size_t convert_entries(struct session *s, const struct stat *dir, bool top, size_t n, size_t room)
{
	size_t len = 0;

	for (const u8 *d = s->entries; d < s->entries + n; d += ld16(d + D_LENGTH)) {
		const char *name = (const char *)d + D_NAME;
		size_t name_len = strlen(name);
		u8 *to = s->listing + len;

		if (name_len + ENTRY_BYTES > room - len)
			break;
		bool self = top && !strcmp(name, ".."); /* there is nothing above */
		to[0] = entry_type(d[D_TYPE]);
		st32(to + 1, 0);
		st64(to + 5, qid_path(s, dir->st_dev, self ? dir->st_ino : ld64(d)));
		st64(to + 13, ld64(d + D_OFFSET));
		to[21] = d[D_TYPE];
		st16(to + 22, (u16)name_len);
		memcpy(to + ENTRY_BYTES, name, name_len);
		len += ENTRY_BYTES + name_len;
	}
	return len;
}

int p9_readdir(struct call *c)
{
	struct session *s = c->s;
	struct fid *f = get_fid(c);
	u64 offset = get(c, 8), count = get(c, 4);
	struct stat st;

	if (c->error)
		return c->error;
	if (f->fd < 0 || !f->dir)
		return f->fd < 0 ? -EBADF : -ENOTDIR;
	if (fstat(f->fd, &st) || lseek(f->fd, (off_t)offset, SEEK_SET) < 0)
		return -errno;
	long n = syscall(SYS_getdents64, f->fd, s->entries, sizeof(s->entries));
	if (n < 0)
		return -errno;
	size_t len = convert_entries(s, &st, !f->node->parent, (size_t)n, MIN(MIN(count, c->room - P9_DATA), sizeof(s->listing)));
	if (n && !len)
		return -EINVAL;
	put(c, len, 4);
	c->data = iov_write(c->r->in, c->r->n_in, P9_DATA, s->listing, len);
	return 0;
}

/* ---- locks ------------------------------------------------------------------------------------------ */

int p9_lock(struct call *c)
{
	char client[P9_NAME];
	struct fid *f = get_fid(c);
	u8 type = (u8)get(c, 1);

	pass_over(c, 4 + 8 + 8 + 4); /* flags, start, length, process */
	get_text(c, client, sizeof(client));
	if (c->error)
		return c->error;
	if (f->fd < 0 || type > LOCK_UNLOCK)
		return f->fd < 0 ? -EBADF : -EINVAL;
	put(c, LOCK_SUCCESS, 1);
	return 0;
}

int p9_getlock(struct call *c)
{
	char client[P9_NAME];
	struct fid *f = get_fid(c);
	u8 type = (u8)get(c, 1);
	u64 start = get(c, 8), length = get(c, 8), process = get(c, 4);

	get_text(c, client, sizeof(client));
	if (c->error)
		return c->error;
	if (f->fd < 0 || type > LOCK_UNLOCK)
		return f->fd < 0 ? -EBADF : -EINVAL;
	put(c, LOCK_UNLOCK, 1); /* nobody holds it */
	put(c, start, 8);
	put(c, length, 8);
	put(c, process, 4);
	put_text(c, client, strlen(client));
	return 0;
}
