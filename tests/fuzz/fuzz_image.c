/* Disk images: any bytes as a qcow2 (or raw) file. Opened for reading and for writing, read, written, discarded, flushed;
 * checked, repaired and checked again; described. Used or refused: never a crash, a hang, an access outside the file's
 * own, and what a repair has called sound is.
 *
 * Input: u8 what to do, u8 the file's size in 64 KiB (holes behind the bytes), then pieces of the file: u16 where
 * (in units of 64 bytes), u16 length, bytes; the last is to the input's end. */
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz.h"
#include "block/disk.h"
#include "block/qcow2_tool.h"

static int fd;
static char path[64];
static u8 buf[24 << 10];

static void make_file(struct input *in)
{
	u64 size = (take(in, 1) + 1) << 14;

	if (!fd) {
		fd = memfd_create("image", MFD_CLOEXEC);
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		log_configure("error", "/dev/null", &(struct error){ "" });
	}
	if (ftruncate(fd, 0) || ftruncate(fd, (off_t)size))
		abort();
	while (in->left) {
		u64 at = take(in, 2) * 64, n = take_length(in, 2), fits = at < size ? MIN(n, size - at) : 0;
		if (fits && pwrite(fd, in->p, fits, (off_t)at) != (ssize_t)fits)
			abort();
		in->p += n;
		in->left -= n;
		if (!n)
			break;
	}
}

/* What a guest does. Few pieces, far apart; writes only where they stay small: a file's size is not to explode. */
static void use(struct block *b, u8 what)
{
	u64 size = block_size(b);

	for (u64 k = 0; k < 5 && size >= sizeof(buf); k++) {
		u64 at = (size - sizeof(buf)) / 4 * k / BLOCK_SECTOR * BLOCK_SECTOR;
		block_read(b, at, buf, sizeof(buf));
		if (what & 4)
			block_write(b, at + 1024, buf, 8192 + 512 * k);
		if (what & 8)
			block_zero(b, at + 512 * k, 20480 - 512 * k, k & 1);
		if (what & 16)
			block_discard(b, at, sizeof(buf));
		if (k == 2)
			block_flush(b);
	}
	if (size < sizeof(buf))
		block_read(b, 0, buf, size);
}

static void open_it(u8 what, enum block_format format)
{
	struct block_options o = { .file = path, .format = format, .read_only = !(what & 2), .aio = BLOCK_AIO_INLINE };
	struct error e = { "" };
	struct block *b = block_open(&o, NULL, &e);

	if (!b && !e.msg[0])
		bug("refused without a reason");
	if (b) {
		use(b, what);
		block_close(b, &e);
	}
}

static void check_it(u8 what)
{
	struct image_check r;
	struct image_info info;
	struct error e = { "" };

	if (image_info_get(path, BLOCK_QCOW2, &info, &e))
		image_info_free(&info);
	if (!image_check(path, BLOCK_QCOW2, what & 32, &r, NULL, NULL, &e) || !(what & 32))
		return;
	if (r.corruptions == r.corruptions_mended && (!image_check(path, BLOCK_QCOW2, false, &r, NULL, NULL, &e) || r.corruptions || r.leaks))
		bug("not sound after its repair: %llu, %llu, %s", (unsigned long long)r.corruptions, (unsigned long long)r.leaks, e.msg);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	struct input in = { data, size };
	struct error e;
	u8 what = (u8)take(&in, 1);

	make_file(&in);
	if (what & 1)
		check_it(what);
	open_it(what, what & 128 ? BLOCK_AUTO : BLOCK_QCOW2);
	if (what & 64) {
		image_snapshot(path, BLOCK_AUTO, SNAPSHOT_MAKE, "new", &e);
		image_snapshot(path, BLOCK_AUTO, what & 1 ? SNAPSHOT_APPLY : SNAPSHOT_DELETE, "1", &e);
		image_resize(path, BLOCK_QCOW2, 4 << 20, true, &e);
		check_it(1);
	}
	return 0;
}
