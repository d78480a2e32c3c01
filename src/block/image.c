/* Images: which format a file has, chains of images, reading through them.
 *
 * Invariants
 *  1. A chain has at most MAX_CHAIN images; one that leads back to itself is an error, not a hang.
 *  2. All but the first image of a chain are opened and locked for reading only. */
#define LOG_TOPIC "block"
#include "block/image.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

const char *const block_format_words[] = { "auto", "raw", "qcow2", NULL };

bool image_probe(struct file *f, enum block_format *format, struct error *e)
{
	u8 magic[4];
	int err = file_read(f, 0, magic, sizeof(magic));

	if (err)
		return error_set(e, "%s: cannot be read: %s", f->path, strerror(err));
	*format = memcmp(magic, "QFI\xfb", 4) ? BLOCK_RAW : BLOCK_QCOW2;
	return true;
}

struct image *image_of_file(struct file *f, enum block_format format, unsigned flags, unsigned depth, struct error *e)
{
	bool probe = format == BLOCK_AUTO;

	if (probe && !image_probe(f, &format, e)) {
		file_close(f);
		return NULL;
	}
	struct image *img = format == BLOCK_QCOW2 ? qcow2_open(f, flags, depth, e) : raw_open(f, flags, e);
	if (img)
		img->probed_raw = probe && format == BLOCK_RAW;
	return img;
}

static struct image *open_at(const char *path, enum block_format format, unsigned flags, unsigned depth,
			     const struct file_hooks *hooks, struct error *e)
{
	if (depth == MAX_CHAIN) {
		error_set(e, "%s: more than %d images one below the other; do they lead back to the first?", path, MAX_CHAIN);
		return NULL;
	}
	struct file *f = file_open(path, !(flags & OPEN_WRITE), e);
	if (!f)
		return NULL;
	f->hooks = hooks;
	if (!(flags & OPEN_NO_LOCK) && !file_lock(f, flags & OPEN_WRITE, e)) {
		file_close(f);
		return NULL;
	}
	return image_of_file(f, format, flags, depth, e);
}

struct image *image_open(const char *path, enum block_format format, unsigned flags, const struct file_hooks *hooks, struct error *e)
{
	return open_at(path, format, flags, 0, hooks, e);
}

struct image *image_open_handed(int fd, const char *path, struct error *e)
{
	enum block_format format;
	struct file *f = file_handed(fd, path, e);

	if (f && file_lock(f, false, e) && image_probe(f, &format, e)) {
		if (format == BLOCK_RAW)
			return raw_open(f, 0, e);
		error_set(e, "%s: a qcow2 image; only raw ones can be put in while the machine runs (ring3 img convert makes one)", path);
	}
	if (f)
		file_close(f);
	return NULL;
}

struct image *image_open_below(const char *path, enum block_format format, unsigned flags, unsigned depth, struct error *e)
{
	return open_at(path, format, flags & OPEN_NO_LOCK, depth, NULL, e);
}

int image_close(struct image *img)
{
	int first = 0;

	while (img) {
		struct image *below = img->backing;
		int err = img->ops->close(img);
		if (!first)
			first = err;
		img = below;
	}
	return first;
}

int image_map(struct image *img, u64 offset, u64 len, struct map *m)
{
	for (;; img = img->backing) {
		if (offset >= img->size) { /* an image below that is smaller */
			*m = (struct map){ MAP_ZERO, img, 0, len };
			return 0;
		}
		len = MIN(len, img->size - offset);
		int err = img->ops->map(img, offset, len, m);
		if (err)
			return err;
		if (m->kind != MAP_BELOW)
			return 0;
		if (!img->backing) {
			m->kind = MAP_ZERO;
			return 0;
		}
		len = m->len;
	}
}

int image_status(struct image *img, u64 offset, u64 len, struct map *m)
{
	int err = image_map(img, offset, len, m);
	u64 n;

	if (!err && m->kind == MAP_DATA && !file_is_data(m->image->file, m->host, m->len, &n))
		*m = (struct map){ MAP_ZERO, m->image, 0, n };
	else if (!err && m->kind == MAP_DATA)
		m->len = n;
	return err;
}

int image_read(struct image *img, u64 offset, void *buf, u64 len)
{
	struct map m;
	int err = 0;

	for (u8 *to = buf; len && !err; to += m.len, offset += m.len, len -= m.len) {
		err = image_map(img, offset, len, &m);
		if (err)
			break;
		switch (m.kind) {
		case MAP_DATA: err = file_read(m.image->file, m.host, to, m.len); break;
		case MAP_COMPRESSED: err = m.image->ops->read_compressed(m.image, offset, to, m.len); break;
		default: memset(to, 0, m.len);
		}
	}
	return err;
}

char *image_backing_path(const char *of, const char *name)
{
	const char *slash = strrchr(of, '/');
	size_t dir = slash && name[0] != '/' ? (size_t)(slash - of) + 1 : 0;
	char *path = malloc(dir + strlen(name) + 1);

	if (path) {
		memcpy(path, of, dir);
		strcpy(path + dir, name);
	}
	return path;
}
