/* qcow2: another size. What is cut off is discarded first; a larger L1 table is written elsewhere, then the header
 * says size, table and its size in one write. */
#include "block/qcow2.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int discard_from(struct qcow2 *q, u64 size)
{
	struct image *img = &q->img;
	u64 at = (size + q->cluster_size - 1) & ~(q->cluster_size - 1);
	struct plan p;
	struct image *below = img->backing;
	int err = 0;

	img->backing = NULL; /* what is cut off need not read as zeros */
	for (; at < img->size && !err; at += p.len)
		err = img->ops->plan_zero(img, at, img->size - at, true, true, &p);
	img->backing = below;
	return err;
}

static int larger_l1(struct qcow2 *q, u64 n, u64 *at, u64 **l1)
{
	u64 bytes = to_clusters(q, n * 8) << q->cluster_bits;
	u64 *raw = calloc(1, bytes);

	*l1 = calloc(n, 8);
	int err = raw && *l1 ? alloc_table(q, to_clusters(q, n * 8), at) : ENOMEM;
	for (u32 k = 0; !err && k < q->l1_size; k++) {
		(*l1)[k] = q->l1[k];
		raw[k] = htobe64(q->l1[k]);
	}
	if (!err)
		err = file_write(q->img.file, *at, raw, bytes);
	free(raw);
	return err ? err : qcow2_settle(q);
}

int qcow2_resize(struct image *img, u64 size)
{
	struct qcow2 *q = qcow2_of(img);
	u64 per_l1 = q->cluster_bits + q->l2_bits, n = (size >> per_l1) + !!(size & ((1ull << per_l1) - 1));
	u64 at = q->l1_offset, *l1 = NULL;
	u8 field[24];
	int err = q->broken ? EIO : n * 8 > MAX_L1_BYTES ? EFBIG : 0;

	if (!err && size < img->size)
		err = discard_from(q, size);
	if (!err)
		err = qcow2_settle(q);
	if (!err && n > q->l1_size)
		err = larger_l1(q, n, &at, &l1);
	if (!err)
		err = file_read(img->file, H_SIZE, field, sizeof(field));
	st64(field, htobe64(size));
	st32(field + (H_L1 - H_SIZE), htobe32((u32)MAX(n, q->l1_size)));
	st64(field + (H_L1 - H_SIZE) + 4, htobe64(at));
	if (!err)
		err = header_write(q, H_SIZE, field, sizeof(field));
	if (!err)
		err = file_sync(img->file);
	if (err) {
		free(l1);
		return err;
	}
	img->size = size;
	if (l1) {
		u64 old = q->l1_offset >> q->cluster_bits, n_old = to_clusters(q, q->l1_size * 8ull);
		free(q->l1);
		q->l1 = l1;
		q->l1_offset = at;
		q->l1_size = (u32)n;
		free_now(q, old, n_old);
	}
	return qcow2_settle(q);
}
