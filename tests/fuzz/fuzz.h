/* A fuzz target is a fuzz_*.c with one function that takes bytes and must survive them. It is
 * linked with libFuzzer, or with replay.c, which runs the corpus and simple mutations of it. */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include <stdlib.h>
#include <string.h>

#include "base/base.h"

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);

/* Takes from the front of the input; zeros behind its end. */
struct input { const u8 *p; size_t left; };
static inline u64 take(struct input *in, unsigned bytes)
{
	u64 v = 0;
	size_t n = MIN((size_t)bytes, in->left);

	memcpy(&v, in->p, n);
	in->p += n;
	in->left -= n;
	return v;
}

/* A length that came before the bytes it is of. */
static inline size_t take_length(struct input *in, unsigned bytes)
{
	u64 v = take(in, bytes);

	return MIN(v, in->left);
}

#endif
