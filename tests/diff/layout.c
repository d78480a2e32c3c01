/* The user address space that both sides share, and the defaults of a test. */
#include <string.h>

#include "diff.h"

/* A base of 0 below, one in the data pages (so that 16-bit addresses reach them), one that
 * wraps at 4 GiB, one with a limit. */
const struct ldt_entry ldt_entries[N_LDT] = {
	{ 0, 0xfffff }, { DATA_BASE, 0xfffff }, { 0xffff1000, 0xfffff }, { DATA_BASE, 2 },
};

const u8 *data_image(void)
{
	static u8 image[DATA_BYTES];
	static bool made;
	if (!made) {
		for (u32 k = 0; k < DATA_BYTES; k++)
			image[k] = data_pattern(k);
		made = true;
	}
	return image;
}

int data_offset(u64 lin)
{
	if (lin - DATA_BASE < DATA_BYTES)
		return (int)(lin - DATA_BASE);
	return lin - DATA_HIGH < DATA_BYTES ? (int)(lin - DATA_HIGH) : -1;
}

char page_letter(u64 lin)
{
	int off = data_offset(lin);
	if (off >= 0)
		return DATA_PAGES[off >> 12];
	return lin - CODE_BASE < CODE_BYTES ? CODE_PAGES[(lin - CODE_BASE) >> 12] : '-';
}

void test_init(struct test *t, enum code_mode mode)
{
	memset(t, 0, offsetof(struct test, patch));
	t->mode = mode;
	t->r.rip = CODE_BASE + 0x800;
	t->r.rflags = FL_1 | FL_IF;
	t->r.cs = mode == CODE64 ? SEL_CODE64 : SEL_CODE32;
	t->r.ss = SEL_DATA;
	t->r.ds = t->r.es = mode == CODE64 ? 0 : SEL_DATA;
	t->r.fs = t->r.gs = mode == CODE64 ? 0 : SEL_LDT0;
	t->r.v.mxcsr = 0x1f80;
	t->r.v.fcw = 0x37f;
}

void test_patch(struct test *t, u64 lin, const void *bytes, unsigned n)
{
	const u8 *p = bytes;
	while (n) {
		int off = data_offset(lin);
		/* Up to the end of the data pages; the memory stays one range in both views. */
		unsigned part = off < 0 ? 1 : MIN(n, (unsigned)(DATA_BYTES - off));
		if (off >= 0) {
			if (t->n_patches == MAX_PATCHES || t->pool_used + part > PATCH_POOL)
				return;
			t->patch[t->n_patches++] = (struct patch){ (u16)off, (u16)part, t->pool_used };
			memcpy(t->pool + t->pool_used, p, part);
			t->pool_used = (u16)(t->pool_used + part);
		}
		p += part;
		lin += part;
		n -= part;
	}
}

void test_peek(const struct test *t, u64 lin, void *bytes, unsigned n)
{
	u8 *out = bytes;
	for (unsigned k = 0; k < n; k++) {
		int off = data_offset(lin + k);
		out[k] = off < 0 ? 0 : data_image()[off];
		for (unsigned q = 0; off >= 0 && q < t->n_patches; q++)
			if ((unsigned)off - t->patch[q].off < t->patch[q].len)
				out[k] = t->pool[t->patch[q].at + (unsigned)off - t->patch[q].off];
	}
}
