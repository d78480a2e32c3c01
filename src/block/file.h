/* The host's files as the block layer uses them: private to block/. */
#ifndef RING3_BLOCK_FILE_H
#define RING3_BLOCK_FILE_H

#include <sys/types.h>
#include <sys/uio.h>

#include "base/base.h"

enum file_what { FILE_READ, FILE_WRITE, FILE_SYNC, FILE_TRUNCATE, FILE_PUNCH, FILE_ZERO };

/* What a test is told of each change of a file, and where it makes one fail. Called on the disk's
 * thread. begin: before; an errno instead of 0 makes the operation fail with it. end: after. Reads are
 * told as well. iov: of writes. */
struct file_hooks {
	int (*begin)(void *arg, enum file_what what, u64 offset, u64 len, const struct iovec *iov, int n_iov, u64 *id);
	void (*end)(void *arg, enum file_what what, u64 id, int error);
	void *arg;
};

struct file {
	int fd;
	char *path;
	bool read_only;
	bool device;      /* a block device: its size is fixed, what was never written is not zeros */
	bool unsafe;      /* file_sync does nothing */
	dev_t dev;
	ino_t ino;
	u32 block_bytes;  /* what the host writes at once */
	_Atomic int sync_error; /* of the first sync that failed: all later ones fail with it */
	const struct file_hooks *hooks;
};

/* NULL: e says why. Regular files and block devices only. */
struct file *file_open(const char *path, bool read_only, struct error *e);
/* Of a descriptor, which stays the caller's; regular files, read-only. */
struct file *file_handed(int fd, const char *path, struct error *e);
/* A file without a name, for what need not outlive the process. */
struct file *file_temporary(struct error *e);
/* A new file, empty; or a block device, as it is. An existing file is emptied once it could be locked. */
struct file *file_create(const char *path, struct error *e);
void file_close(struct file *f);
/* Against other openings, of this process too: one writer, or readers. Freed by file_close. Speaks
 * QEMU's protocol as well, so that the two keep out of each other's way. */
bool file_lock(struct file *f, bool write, struct error *e);

/* These return 0 or an errno. Reads behind the end of the file are zeros. */
int file_read(struct file *f, u64 offset, void *buf, u64 len);
int file_write(struct file *f, u64 offset, const void *buf, u64 len);
int file_sync(struct file *f);
int file_truncate(struct file *f, u64 size);
int file_punch(struct file *f, u64 offset, u64 len);  /* frees; reads as zeros */
int file_zero(struct file *f, u64 offset, u64 len);   /* zeros, allocated where the host can */
int file_size(const struct file *f, u64 *size);
/* Whether there is data at offset, and for how many of len bytes it goes on so. A host that does not
 * know says data. */
bool file_is_data(const struct file *f, u64 offset, u64 len, u64 *n);

/* For aio.c: one operation, blocking, without hooks; the result of the system call or -errno. */
int file_raw_sync(struct file *f);
int file_raw_punch(struct file *f, u64 offset, u64 len);
int file_raw_zero(struct file *f, u64 offset, u64 len);
static inline int file_begin(struct file *f, enum file_what what, u64 offset, u64 len, const struct iovec *iov, int n_iov, u64 *id)
{
	return f->hooks ? f->hooks->begin(f->hooks->arg, what, offset, len, iov, n_iov, id) : 0;
}
static inline void file_end(struct file *f, enum file_what what, u64 id, int error)
{
	if (f->hooks)
		f->hooks->end(f->hooks->arg, what, id, error);
}

#endif
