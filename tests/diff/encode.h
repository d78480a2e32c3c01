/* The bytes of an instruction from its parts: what forms.c (all encodings) and encode.c (one of
 * them at random) share. */
#ifndef RING3_TESTS_DIFF_ENCODE_H
#define RING3_TESTS_DIFF_ENCODE_H

#include "diff.h"

struct bytes { u8 *b; unsigned n; };

/* What an encoding leaves open. Register numbers are whole: REX, VEX and EVEX bits follow. With
 * a memory operand rm is the base. */
struct fields {
	u8 reg, rm, vvvv, index, scale, mod;
	u8 w, l, aaa;
	bool z, sib, rex, short_vex;
	u8 n_pre, pre[4];
	u8 tail[16]; /* displacement and immediates */
};
/* Everything that e leaves open, at random. */
void enc_draw(const struct enc *e, struct fields *f, struct rng *g, enum code_mode mode);
/* 15 bytes, of which the returned number are before the tail. */
unsigned enc_bytes(const struct enc *e, const struct fields *f, enum code_mode mode, u8 *out);

#endif
