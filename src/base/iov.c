/* Bytes in pieces: slices of a struct iovec's, and copies out of and into them. */
#include "base/base.h"

#include <string.h>
#include <sys/uio.h>

unsigned iov_slice(const struct iovec *iov, unsigned n, u64 off, u64 len, struct iovec *out)
{
	unsigned m = 0;

	for (unsigned k = 0; k < n && len; k++) {
		if (off >= iov[k].iov_len) {
			off -= iov[k].iov_len;
			continue;
		}
		u64 part = MIN(len, iov[k].iov_len - off);
		out[m++] = (struct iovec){ (u8 *)iov[k].iov_base + off, part };
		len -= part;
		off = 0;
	}
	return m;
}

static size_t copy(const struct iovec *iov, unsigned n, u64 off, u8 *buf, size_t len, bool write)
{
	size_t done = 0;

	for (unsigned k = 0; k < n && done < len; k++) {
		if (off >= iov[k].iov_len) {
			off -= iov[k].iov_len;
			continue;
		}
		size_t part = MIN(len - done, iov[k].iov_len - off);
		u8 *piece = (u8 *)iov[k].iov_base + off;
		memcpy(write ? piece : buf + done, write ? buf + done : piece, part);
		done += part;
		off = 0;
	}
	return done;
}

size_t iov_read(const struct iovec *iov, unsigned n, u64 off, void *buf, size_t len)
{
	return copy(iov, n, off, buf, len, false);
}

size_t iov_write(const struct iovec *iov, unsigned n, u64 off, const void *buf, size_t len)
{
	return copy(iov, n, off, (u8 *)(size_t)buf, len, true);
}
