/* The sixteen conditions of Jcc, SETcc and CMOVcc on RFLAGS. SDM vol. 1 appendix B. */
#ifndef RING3_INTERP_COND_H
#define RING3_INTERP_COND_H

#include "interp/op_api.h"

#define CONDITIONS(X) X(O, 0) X(NO, 1) X(B, 2) X(NB, 3) X(Z, 4) X(NZ, 5) X(BE, 6) X(NBE, 7) \
	X(S, 8) X(NS, 9) X(P, 10) X(NP, 11) X(L, 12) X(NL, 13) X(LE, 14) X(NLE, 15)

static inline bool cond_O(const struct cpu *c) { return c->rflags & FL_OF; }
static inline bool cond_B(const struct cpu *c) { return c->rflags & FL_CF; }
static inline bool cond_Z(const struct cpu *c) { return c->rflags & FL_ZF; }
static inline bool cond_BE(const struct cpu *c) { return c->rflags & (FL_CF | FL_ZF); }
static inline bool cond_S(const struct cpu *c) { return c->rflags & FL_SF; }
static inline bool cond_P(const struct cpu *c) { return c->rflags & FL_PF; }
/* SF is bit 7, OF bit 11. */
static inline bool cond_L(const struct cpu *c) { return ((c->rflags >> 4) ^ c->rflags) & FL_SF; }
static inline bool cond_LE(const struct cpu *c) { return cond_L(c) || cond_Z(c); }
static inline bool cond_NO(const struct cpu *c) { return !cond_O(c); }
static inline bool cond_NB(const struct cpu *c) { return !cond_B(c); }
static inline bool cond_NZ(const struct cpu *c) { return !cond_Z(c); }
static inline bool cond_NBE(const struct cpu *c) { return !cond_BE(c); }
static inline bool cond_NS(const struct cpu *c) { return !cond_S(c); }
static inline bool cond_NP(const struct cpu *c) { return !cond_P(c); }
static inline bool cond_NL(const struct cpu *c) { return !cond_L(c); }
static inline bool cond_NLE(const struct cpu *c) { return !cond_LE(c); }

#endif
