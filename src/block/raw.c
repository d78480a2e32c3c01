/* Raw images: a file's or block device's bytes are the disk's.
 *
 * A file whose size is not of whole sectors is taken for the next larger size: its end reads as zeros,
 * and grows when it is written. Holes are not looked for (image_status does): to read one costs less than to ask. */
#include "block/image.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int raw_map(struct image *img, u64 offset, u64 len, struct map *m)
{
	*m = (struct map){ MAP_DATA, img, offset, len };
	return 0;
}

static int raw_plan_write(struct image *img, u64 offset, u64 len, struct plan *p)
{
	*p = (struct plan){ .kind = PLAN_DIRECT, .offset = offset, .len = len, .host = offset };
	return 0;
}

static int raw_plan_zero(struct image *img, u64 offset, u64 len, bool discard, bool unmap, struct plan *p)
{
	return raw_plan_write(img, offset, len, p);
}

static int raw_resize(struct image *img, u64 size)
{
	if (img->file->device)
		return EINVAL;
	int err = file_truncate(img->file, size);
	if (!err)
		img->size = size;
	return err;
}

static int raw_close(struct image *img)
{
	int err = img->read_only ? 0 : file_sync(img->file);

	file_close(img->file);
	free(img);
	return err;
}

static const struct format_ops raw_ops = {
	.name = "raw", .map = raw_map, .plan_write = raw_plan_write, .plan_zero = raw_plan_zero, .resize = raw_resize, .close = raw_close,
};

struct image *raw_open(struct file *f, unsigned flags, struct error *e)
{
	struct image *img = calloc(1, sizeof(*img));
	u64 size = 0;
	int err = img ? file_size(f, &size) : ENOMEM;

	if (err) {
		error_set(e, "%s: its size: %s", f->path, strerror(err));
		free(img);
		file_close(f);
		return NULL;
	}
	img->ops = &raw_ops;
	img->file = f;
	img->size = (size + BLOCK_SECTOR - 1) & ~(u64)(BLOCK_SECTOR - 1);
	img->granularity = f->block_bytes;
	img->read_only = f->read_only;
	return img;
}
