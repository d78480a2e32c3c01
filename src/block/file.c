/* Image files: opening, locks, synchronous reads and writes, holes, fdatasync.
 *
 * Invariants
 *  1. Once a sync has failed every later one does: the kernel may have dropped the pages that it could
 *     not write and would report the next sync as good (fsync(2), NOTES).
 *  2. Locks are open-file-description locks: they go with the opening, not with the process, so that
 *     two disks of one process exclude each other as well.
 * The lock's bytes are those of QEMU 2.10 and later: a shared lock on byte 100+p says that permission p
 * is in use, one on 200+p that it must not be in use by another; an opener takes its own first and
 * then tests those that would conflict. */
#define LOG_TOPIC "block"
#include "block/file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CHUNK (1u << 30) /* one system call's most */

/* The C library's is newfstatat with an empty path, which a contained process must not call: it takes paths. */
static int stat_of(int fd, struct stat *st) { return (int)syscall(SYS_fstat, fd, st); }

/* ---- opening ------------------------------------------------------------------------ */

static struct file *file_of(int fd, const char *path, bool read_only, struct error *e)
{
	struct file *f = calloc(1, sizeof(*f));
	struct stat st;
	u32 physical;

	if (!f || !(f->path = strdup(path)) || stat_of(fd, &st)) {
		error_set(e, "%s: %s", path, strerror(errno));
		close(fd);
		free(f);
		return NULL;
	}
	f->fd = fd;
	f->read_only = read_only;
	f->dev = st.st_dev;
	f->ino = st.st_ino;
	f->device = S_ISBLK(st.st_mode);
	f->block_bytes = f->device && !ioctl(fd, BLKPBSZGET, &physical) ? physical : 4096;
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
		error_set(e, "%s: not a regular file or a block device", path);
		file_close(f);
		return NULL;
	}
	return f;
}

struct file *file_open(const char *path, bool read_only, struct error *e)
{
	/* O_NONBLOCK: a FIFO that nobody writes to would not let go. */
	int fd = open(path, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0) {
		bool ro = !read_only && (errno == EACCES || errno == EROFS || errno == EPERM);
		error_set(e, "%s: cannot be opened%s: %s%s", path, ro ? " for writing" : "", strerror(errno),
			  ro ? "; read-only or snapshot would do" : "");
		return NULL;
	}
	return file_of(fd, path, read_only, e);
}

struct file *file_handed(int fd, const char *path, struct error *e)
{
	struct stat st;

	if (stat_of(fd, &st) || !S_ISREG(st.st_mode)) { /* a contained process cannot ask a block device for its size */
		error_set(e, "%s: not a regular file", path);
		return NULL;
	}
	int own = dup(fd);
	if (own >= 0)
		return file_of(own, path, true, e);
	error_set(e, "%s: %s", path, strerror(errno));
	return NULL;
}

struct file *file_temporary(struct error *e)
{
	const char *dir = getenv("TMPDIR");

	if (!dir || !*dir)
		dir = "/var/tmp";
	int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0) { /* a file system without O_TMPFILE */
		char name[4096];
		snprintf(name, sizeof(name), "%s/ring3-XXXXXX", dir);
		fd = mkostemp(name, O_CLOEXEC);
		if (fd >= 0)
			unlink(name);
	}
	if (fd < 0) {
		error_set(e, "no temporary file in %s: %s; TMPDIR names another folder", dir, strerror(errno));
		return NULL;
	}
	struct file *f = file_of(fd, dir, false, e);
	if (f)
		f->unsafe = true;
	return f;
}

struct file *file_create(const char *path, struct error *e)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666);

	if (fd < 0) {
		error_set(e, "%s: cannot be made: %s", path, strerror(errno));
		return NULL;
	}
	struct file *f = file_of(fd, path, false, e);
	if (!f)
		return NULL;
	int err = 0;
	if (!file_lock(f, true, e) || (!f->device && (err = file_truncate(f, 0)))) {
		if (err)
			error_set(e, "%s: cannot be emptied: %s", path, strerror(err));
		file_close(f);
		return NULL;
	}
	return f;
}

void file_close(struct file *f)
{
	if (!f)
		return;
	close(f->fd);
	free(f->path);
	free(f);
}

/* ---- locks -------------------------------------------------------------------------- */

enum { PERM_READ, PERM_WRITE, PERM_RESIZE = 3, PERMS = 4 };
#define LOCK_USED 100
#define LOCK_UNSHARED 200
#define LOCK_TRIES 20
#define LOCK_WAIT_US 20000

static int lock_byte(struct file *f, int cmd, short type, off_t at, struct flock *fl)
{
	*fl = (struct flock){ .l_type = type, .l_whence = SEEK_SET, .l_start = at, .l_len = 1 };
	return fcntl(f->fd, cmd, fl);
}

static bool conflict(struct file *f, off_t at)
{
	struct flock fl;

	return !lock_byte(f, F_OFD_GETLK, F_WRLCK, at, &fl) && fl.l_type != F_UNLCK;
}

/* Takes this opening's locks and looks for those of others: NULL, or who is in the way. */
static const char *try_lock(struct file *f, unsigned used, unsigned unshared)
{
	struct flock fl;

	for (int p = 0; p < PERMS; p++) {
		if ((used >> p & 1 && lock_byte(f, F_OFD_SETLK, F_RDLCK, LOCK_USED + p, &fl)) ||
		    (unshared >> p & 1 && lock_byte(f, F_OFD_SETLK, F_RDLCK, LOCK_UNSHARED + p, &fl))) {
			if (errno == EAGAIN || errno == EACCES)
				return "another program";
			log_info("%s: no locks on its file system: %s", f->path, strerror(errno));
			return NULL;
		}
	}
	for (int p = 0; p < PERMS; p++) {
		if (unshared >> p & 1 && conflict(f, LOCK_USED + p))
			return "another program that writes it";
		if (used >> p & 1 && conflict(f, LOCK_UNSHARED + p))
			return "another program; to read it (read-only, snapshot) may do";
	}
	return NULL;
}

bool file_lock(struct file *f, bool write, struct error *e)
{
	unsigned used = 1u << PERM_READ | (write ? 1u << PERM_WRITE | 1u << PERM_RESIZE : 0);
	unsigned unshared = 1u << PERM_WRITE | 1u << PERM_RESIZE;
	const char *who;

	/* The kernel closes what a killed process's io_uring was busy with a moment after its end. */
	for (int tries = 0; (who = try_lock(f, used, unshared)); tries++) {
		struct flock all = { .l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = LOCK_USED, .l_len = 2 * LOCK_UNSHARED - LOCK_USED };
		fcntl(f->fd, F_OFD_SETLK, &all);
		if (tries == LOCK_TRIES)
			return error_set(e, "%s: in use by %s", f->path, who);
		usleep(LOCK_WAIT_US);
	}
	return true;
}

/* ---- reading and writing ------------------------------------------------------------ */

static int do_read(struct file *f, u64 offset, u8 *buf, u64 len)
{
	while (len) {
		ssize_t n = pread(f->fd, buf, MIN(len, CHUNK), (off_t)offset);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno;
		if (!n) {
			memset(buf, 0, len);
			return 0;
		}
		buf += n;
		offset += (u64)n;
		len -= (u64)n;
	}
	return 0;
}

static int do_write(struct file *f, u64 offset, const u8 *buf, u64 len)
{
	while (len) {
		ssize_t n = pwrite(f->fd, buf, MIN(len, CHUNK), (off_t)offset);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? errno : EIO;
		buf += n;
		offset += (u64)n;
		len -= (u64)n;
	}
	return 0;
}

#define HOOKED(f, what, offset, len, iov, n_iov, call) do { \
	u64 id_ = 0; \
	int err_ = file_begin(f, what, offset, len, iov, n_iov, &id_); \
	if (err_) \
		return err_; \
	err_ = (call); \
	file_end(f, what, id_, err_); \
	return err_; \
} while (0)

int file_read(struct file *f, u64 offset, void *buf, u64 len)
{
	if (offset + len > INT64_MAX || offset + len < offset)
		return EIO;
	HOOKED(f, FILE_READ, offset, len, NULL, 0, do_read(f, offset, buf, len));
}

int file_write(struct file *f, u64 offset, const void *buf, u64 len)
{
	struct iovec iov = { (void *)(uintptr_t)buf, len };

	if (offset + len > INT64_MAX || offset + len < offset)
		return EFBIG;
	HOOKED(f, FILE_WRITE, offset, len, &iov, 1, do_write(f, offset, buf, len));
}

int file_raw_sync(struct file *f)
{
	int err = atomic_load(&f->sync_error), none = 0;

	if (err || f->unsafe)
		return err;
	while (fdatasync(f->fd)) {
		if (errno == EINTR)
			continue;
		err = errno;
		atomic_compare_exchange_strong(&f->sync_error, &none, err); /* invariant 1 */
		return err;
	}
	return 0;
}

int file_sync(struct file *f)
{
	u64 id = 0;
	int err = file_begin(f, FILE_SYNC, 0, 0, NULL, 0, &id), none = 0;

	if (err) {
		atomic_compare_exchange_strong(&f->sync_error, &none, err);
		return err;
	}
	err = file_raw_sync(f);
	file_end(f, FILE_SYNC, id, err);
	return err;
}

int file_truncate(struct file *f, u64 size)
{
	HOOKED(f, FILE_TRUNCATE, size, 0, NULL, 0, ftruncate(f->fd, (off_t)size) ? errno : 0);
}

static int do_fallocate(struct file *f, int mode, u64 offset, u64 len)
{
	while (fallocate(f->fd, mode, (off_t)offset, (off_t)len))
		if (errno != EINTR)
			return errno;
	return 0;
}

/* Without fallocate: zeros by hand. */
static int write_zeros(struct file *f, u64 offset, u64 len)
{
	static const u8 zeros[64 << 10];
	int err = 0;

	for (u64 n; len && !err; offset += n, len -= n) {
		n = MIN(len, sizeof(zeros));
		err = do_write(f, offset, zeros, n);
	}
	return err;
}

int file_raw_punch(struct file *f, u64 offset, u64 len)
{
	int err = do_fallocate(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, len);

	return err == EOPNOTSUPP || err == ENOSYS || err == ENODEV ? write_zeros(f, offset, len) : err;
}

int file_raw_zero(struct file *f, u64 offset, u64 len)
{
	int err = do_fallocate(f, FALLOC_FL_ZERO_RANGE, offset, len);

	if (err == EOPNOTSUPP || err == EINVAL) /* block devices want KEEP_SIZE */
		err = do_fallocate(f, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, len);
	return err == EOPNOTSUPP || err == ENOSYS || err == ENODEV || err == EINVAL ? write_zeros(f, offset, len) : err;
}

int file_punch(struct file *f, u64 offset, u64 len)
{
	HOOKED(f, FILE_PUNCH, offset, len, NULL, 0, file_raw_punch(f, offset, len));
}

int file_zero(struct file *f, u64 offset, u64 len)
{
	HOOKED(f, FILE_ZERO, offset, len, NULL, 0, file_raw_zero(f, offset, len));
}

int file_size(const struct file *f, u64 *size)
{
	off_t end = lseek(f->fd, 0, SEEK_END); /* of a block device, too */

	if (end < 0)
		return errno;
	*size = (u64)end;
	return 0;
}

bool file_is_data(const struct file *f, u64 offset, u64 len, u64 *n)
{
	off_t data = lseek(f->fd, (off_t)offset, SEEK_DATA);

	*n = len;
	if (data < 0)
		return errno != ENXIO; /* ENXIO: a hole up to the end, or behind it */
	if ((u64)data > offset) {
		*n = MIN(len, (u64)data - offset);
		return false;
	}
	off_t hole = lseek(f->fd, (off_t)offset, SEEK_HOLE);
	if (hole > 0 && (u64)hole > offset)
		*n = MIN(len, (u64)hole - offset);
	return true;
}
