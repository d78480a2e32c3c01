/* What the NVMe controller says of itself and its namespace. NVM Express 1.4, 5.15.2; numbers are bytes. */
#include "dev/nvme_impl.h"

#include <stdio.h>
#include <string.h>

enum { CNS_NAMESPACE = 0, CNS_CONTROLLER = 1, CNS_LIST = 2, CNS_DESCRIPTORS = 3 };

static void text(u8 *p, unsigned bytes, const char *s)
{
	size_t len = strlen(s);

	memset(p, ' ', bytes);
	memcpy(p, s, MIN(len, bytes));
}

static void controller(const struct nvme *n, u8 *p)
{
	st16(p, 0x1b36);
	st16(p + 2, 0x1af4);
	text(p + 4, 20, n->serial);
	text(p + 24, 40, "RING3 DISK");
	text(p + 64, 8, RING3_VERSION);
	p[72] = 6;
	p[77] = NVME_MDTS;
	st32(p + 80, 0x00010400);
	p[111] = 1;                            /* an I/O controller */
	p[258] = 3;                            /* aborts, */
	p[259] = NVME_AERS - 1;                /* event requests: at once */
	p[260] = 0x03;                         /* one firmware, which stays */
	p[261] = 0x04;                         /* logs by offset and length */
	st16(p + 266, 343);                    /* kelvins: too warm, */
	st16(p + 268, 373);                    /* far too warm */
	p[512] = 0x66;                         /* sizes of entries */
	p[513] = 0x44;
	st32(p + 516, 1);
	st16(p + 520, 0x000c);                 /* DATASET MANAGEMENT, WRITE ZEROES */
	p[525] = 0x07;                         /* a write cache; flushes of all namespaces */
	snprintf((char *)p + 768, 256, "nqn.2014-08.org.nvmexpress:ring3:%s", n->serial);
	st16(p + 2048, 2500);                  /* a power state, 25 W */
}

static void namespace_data(const struct nvme *n, u8 *p)
{
	u64 sectors = block_size(n->blk) / BLOCK_SECTOR;
	struct block_limits l;

	block_get_limits(n->blk, &l);
	st64(p, sectors);
	st64(p + 8, sectors);
	st64(p + 16, sectors);
	p[24] = 0x10 | (l.discard ? 1 : 0);    /* discards count, and the fields below */
	p[33] = l.discard ? 0x08 : 0;          /* WRITE ZEROES may deallocate */
	st16(p + 64, (u16)MIN(MAX(l.physical_sector / BLOCK_SECTOR, 1u) - 1, 0xffffu)); /* preferred: writes, */
	st16(p + 66, ld16(p + 64));            /* and where they begin; */
	st16(p + 68, (u16)MIN(MAX(l.granularity / BLOCK_SECTOR, 1u) - 1, 0xffffu));     /* discards */
	st16(p + 70, ld16(p + 68));
	st16(p + 72, ld16(p + 64));
	p[99] = block_read_only(n->blk);
	p[130] = 9;                            /* format 0: 512 bytes */
}

/* A UUID made of the serial number: the same each time. RFC 4122 version 8's bits: of nobody else's kind. */
static void descriptors(const struct nvme *n, u8 *p)
{
	u64 hash = 0xcbf29ce484222325;

	p[0] = 3;
	p[1] = 16;
	for (unsigned k = 0; k < 16; k++) {
		for (const char *s = n->serial; *s; s++)
			hash = (hash ^ (u8)*s) * 0x100000001b3;
		hash = (hash ^ k) * 0x100000001b3;
		p[4 + k] = (u8)(hash >> 32);
	}
	p[4 + 6] = (p[4 + 6] & 0x0f) | 0x80;
	p[4 + 8] = (p[4 + 8] & 0x3f) | 0x80;
}

bool nvme_identify(const struct nvme *n, u8 cns, u32 namespace, u8 *out)
{
	memset(out, 0, NVME_PAGE);
	switch (cns) {
	case CNS_NAMESPACE:
		if (n->blk)
			namespace_data(n, out);
		return true;
	case CNS_CONTROLLER: controller(n, out); return true;
	case CNS_LIST:
		if (n->blk && namespace < 1)
			st32(out, 1);
		return true;
	case CNS_DESCRIPTORS: descriptors(n, out); return namespace == 1;
	default: return false;
	}
}
