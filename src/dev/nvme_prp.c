/* The memory that an NVMe command names: Physical Region Pages. NVM Express 1.4, 4.3.
 *
 *   PRP 1   the first page, from an offset on   PRP 2   the second page, or a list of pages; the last
 *   entry of a list that fills its page is the next list, if more follow
 *
 * Pages that lie side by side become one piece. */
#include "dev/nvme_impl.h"

#include <string.h>

enum { DW_PRP1 = 6, DW_PRP2 = 8 };

static u64 field64(const struct nvme_command *c, unsigned dword) { return ld64(c->entry + 4 * dword); }

/* At most a page of memory at gpa. */
static u16 add(struct nvme_command *c, u64 gpa, u32 bytes)
{
	while (bytes) {
		u64 len = bytes;
		u8 *host = mem_dma(c->n->d.mem, gpa, &len);
		struct iovec *last = c->pieces ? &c->iov[c->pieces - 1] : NULL;

		if (!host)
			return NVME_TRANSFER_ERROR;
		if (last && (u8 *)last->iov_base + last->iov_len == host)
			last->iov_len += len;
		else if (c->pieces == (int)NVME_PIECES)
			return NVME_TRANSFER_ERROR;
		else
			c->iov[c->pieces++] = (struct iovec){ host, len };
		gpa += len;
		bytes -= (u32)len;
	}
	return NVME_OK;
}

static u16 add_list(struct nvme_command *c, u64 list, u32 bytes)
{
	u8 page[NVME_PAGE];
	u16 status = NVME_OK;

	if (list & 7)
		return NVME_BAD_PRP;
	while (bytes && !status) {
		u32 room = (NVME_PAGE - (u32)(list & (NVME_PAGE - 1))) / 8, needs = (bytes + NVME_PAGE - 1) / NVME_PAGE;
		bool more = needs > room;
		u32 n = more ? room - 1 : needs;

		if (!mem_read(c->n->d.mem, list, page, 8 * (n + more)))
			return NVME_TRANSFER_ERROR;
		for (u32 k = 0; k < n && !status; k++) {
			u32 part = MIN(bytes, NVME_PAGE);
			u64 gpa = ld64(page + 8 * k);
			status = gpa & (NVME_PAGE - 1) ? NVME_BAD_PRP : add(c, gpa, part);
			bytes -= part;
		}
		if (more && !status) {
			list = ld64(page + 8 * n);
			if (list & (NVME_PAGE - 1))
				return NVME_BAD_PRP;
		}
	}
	return status;
}

u16 nvme_map(struct nvme_command *c, u32 bytes)
{
	u64 first = field64(c, DW_PRP1), second = field64(c, DW_PRP2);
	u32 part = MIN(bytes, NVME_PAGE - (u32)(first & (NVME_PAGE - 1)));

	c->pieces = 0;
	if (c->entry[1] >> 6) /* PSDT: no scatter-gather lists */
		return NVME_BAD_FIELD;
	if (first & 3)
		return NVME_BAD_PRP;
	u16 status = add(c, first, part);
	bytes -= part;
	if (status || !bytes)
		return status;
	if (bytes > NVME_PAGE)
		return add_list(c, second, bytes);
	return second & (NVME_PAGE - 1) ? NVME_BAD_PRP : add(c, second, bytes);
}

u16 nvme_copy_out(struct nvme_command *c, const u8 *from, u32 bytes)
{
	u16 status = nvme_map(c, bytes);

	for (int k = 0; k < c->pieces && !status; k++) {
		memcpy(c->iov[k].iov_base, from, c->iov[k].iov_len);
		mem_dma_written(c->n->d.mem, c->iov[k].iov_base, c->iov[k].iov_len);
		from += c->iov[k].iov_len;
	}
	return status;
}

u16 nvme_copy_in(struct nvme_command *c, u8 *to, u32 bytes)
{
	u16 status = nvme_map(c, bytes);

	for (int k = 0; k < c->pieces && !status; k++) {
		memcpy(to, c->iov[k].iov_base, c->iov[k].iov_len);
		to += c->iov[k].iov_len;
	}
	return status;
}
