/* Compressed clusters: read, and packed for `img convert`. zlib: raw deflate with a window of 4 KiB; zstd: a
 * frame. What is stored may go on behind the compressed data, to the end of its last sector. */
#include "block/qcow2_tool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

static bool inflate_raw(const u8 *from, u64 len, u8 *to, u64 size)
{
	z_stream z = { .next_in = (u8 *)(uintptr_t)from, .avail_in = (unsigned)len, .next_out = to, .avail_out = (unsigned)size };

	if (inflateInit2(&z, -12) != Z_OK)
		return false;
	int r = inflate(&z, Z_FINISH);
	inflateEnd(&z);
	return (r == Z_STREAM_END || r == Z_BUF_ERROR) && !z.avail_out;
}

/* A frame may be shorter than what is stored, so that ZSTD_decompress would refuse what follows. */
static bool unzstd(const u8 *from, u64 len, u8 *to, u64 size)
{
	ZSTD_DCtx *ctx = ZSTD_createDCtx();
	ZSTD_inBuffer in = { from, len, 0 };
	ZSTD_outBuffer out = { to, size, 0 };
	size_t r = 1;

	while (ctx && out.pos < size) {
		size_t in_before = in.pos, out_before = out.pos;
		r = ZSTD_decompressStream(ctx, &out, &in);
		if (ZSTD_isError(r) || (in.pos == in_before && out.pos == out_before))
			break;
	}
	ZSTD_freeDCtx(ctx);
	return out.pos == size && !ZSTD_isError(r);
}

int qcow2_decompress(struct qcow2 *q, u64 entry, const u8 **plain)
{
	u64 offset, len;

	if (q->plain && q->plain_entry == entry) {
		*plain = q->plain;
		return 0;
	}
	if (!q->plain && !(q->plain = malloc(q->cluster_size)))
		return ENOMEM;
	if (!q->packed && !(q->packed = malloc(2 * q->cluster_size)))
		return ENOMEM;
	compressed_extent(q, entry, &offset, &len);
	q->plain_entry = 0;
	int err = file_read(q->img.file, offset, q->packed, len);
	if (err)
		return err;
	if (!(q->compression ? unzstd : inflate_raw)(q->packed, len, q->plain, q->cluster_size))
		return EIO;
	q->plain_entry = entry;
	*plain = q->plain;
	return 0;
}

/* ---- packing ---------------------------------------------------------------------------- */

static u64 deflate_raw(const u8 *from, u64 size, u8 *to, u64 cap)
{
	z_stream z = { .next_in = (u8 *)(uintptr_t)from, .avail_in = (unsigned)size, .next_out = to, .avail_out = (unsigned)cap };

	if (deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY) != Z_OK)
		return 0;
	int r = deflate(&z, Z_FINISH);
	deflateEnd(&z);
	return r == Z_STREAM_END ? cap - z.avail_out : 0;
}

u64 qcow2_pack(const struct qcow2 *q, const void *from, void *to, u64 cap)
{
	if (!q->compression)
		return deflate_raw(from, q->cluster_size, to, cap);
	size_t n = ZSTD_compress(to, cap, from, q->cluster_size, 3);
	return ZSTD_isError(n) ? 0 : n;
}

/* Room for len bytes: behind the last ones, if that is in a cluster that was begun and whose count can rise. */
static int pack_room(struct qcow2 *q, u64 len, u64 *offset)
{
	u64 left = q->pack_end & (q->cluster_size - 1) ? q->cluster_size - (q->pack_end & (q->cluster_size - 1)) : 0;
	u64 cluster, got, v;
	bool fresh;
	int err = 0;

	if (left) {
		err = refcount_get(q, q->pack_end >> q->cluster_bits, &v);
		if (err)
			return err;
		if (v == refcount_max(q))
			left = 0;
	}
	if (len > left) {
		err = alloc_clusters(q, 1, true, &cluster, &got, &fresh);
		if (err)
			return err;
		/* Only when the new cluster follows may the bytes go across. */
		if (!left || cluster << q->cluster_bits != q->pack_end + left)
			left = 0, q->pack_end = cluster << q->cluster_bits;
	}
	*offset = q->pack_end;
	return left ? refcount_set(q, *offset >> q->cluster_bits, v + 1) : 0;
}

int qcow2_write_packed(struct image *img, u64 offset, const void *data, u64 len)
{
	struct qcow2 *q = qcow2_of(img);
	u64 index = offset >> q->cluster_bits & ((1ull << q->l2_bits) - 1), at;
	struct table *t;
	int err = q->broken ? EIO : pack_room(q, len, &at);

	if (!err)
		err = file_write(img->file, at, data, len);
	if (!err)
		err = l2_for_write(q, offset >> (q->cluster_bits + q->l2_bits), &t);
	if (err)
		return err;
	u64 sectors = ((at & 511) + len - 1) / 512;
	u64 old = l2_entry_get(t, index);
	l2_entry_set(q, t, index, ENTRY_COMPRESSED_BIT | sectors << (62 - (q->cluster_bits - 8)) | at);
	free_entry_later(q, old);
	q->pack_end = at + len;
	return 0;
}
