/* emit: host code, byte by byte. Only what the translator itself writes is here; the guest's own
 * instructions go through isa/encode. Host registers are named as the host does; see bt.h for what
 * they hold. Private to bt/. */
#ifndef RING3_BT_EMIT_H
#define RING3_BT_EMIT_H

#include "isa/encode_api.h"

enum host_reg { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };

/* Where code is written and where it will run: two mappings of the same bytes. */
struct emit {
	u8 *p, *end;       /* next byte, end of the room, in the writable mapping */
	ptrdiff_t to_run;  /* running address = p + to_run */
	bool full;         /* ran out of room: nothing of it may be used */
};

static inline u8 *emit_here(const struct emit *e) { return e->p + e->to_run; }
static inline void e8(struct emit *e, unsigned v)
{
	if (unlikely(e->p >= e->end))
		e->full = true;
	else
		*e->p++ = (u8)v;
}
static inline void e32(struct emit *e, u32 v)
{
	for (unsigned k = 0; k < 4; k++)
		e8(e, v >> 8 * k & 255);
}
static inline void e64(struct emit *e, u64 v) { e32(e, (u32)v); e32(e, (u32)(v >> 32)); }
static inline void ebytes(struct emit *e, const u8 *b, unsigned n)
{
	for (unsigned k = 0; k < n; k++)
		e8(e, b[k]);
}

/* Instruction attributes for e_reg and e_mem, ORed to an opcode of up to three bytes (0fXX as
 * 0x0fXX, 0f38XX as 0x0f38XX). */
#define E_W   0x1000000u /* 64-bit operand */
#define E_GS  0x2000000u
#define E_A32 0x4000000u
#define E_B   0x8000000u /* byte registers: SPL.. need REX */

struct marg { u8 base, index, scale; i32 disp; };
#define M_BASE(b, d) ((struct marg){ (b), ENC_NONE, 0, (i32)(d) })
#define M_SIB(b, i, s, d) ((struct marg){ (b), (i), (s), (i32)(d) })
#define M_ABS(d) ((struct marg){ ENC_NONE, ENC_NONE, 0, (i32)(d) })

static inline void e_opcode(struct emit *e, u32 op, unsigned rex)
{
	if (rex)
		e8(e, 0x40 | rex);
	op &= 0xffffff;
	if (op > 0xffff)
		e8(e, op >> 16);
	if (op > 0xff)
		e8(e, op >> 8 & 255);
	e8(e, op & 255);
}
/* op with a register in ModRM.rm. */
static inline void e_reg(struct emit *e, u32 op, unsigned reg, unsigned rm)
{
	unsigned rex = (op & E_W ? 8 : 0) | (reg >> 3 & 1) << 2 | (rm >> 3 & 1);
	if (op & E_B && (reg >= 4 || rm >= 4))
		rex |= 0x40;
	e_opcode(e, op, rex);
	e8(e, 0xc0 | (reg & 7) << 3 | (rm & 7));
}
/* op with memory in ModRM.rm. */
static inline void e_mem(struct emit *e, u32 op, unsigned reg, struct marg m)
{
	bool has_base = m.base != ENC_NONE, has_index = m.index != ENC_NONE;
	if (op & E_GS)
		e8(e, 0x65);
	if (op & E_A32)
		e8(e, 0x67);
	unsigned rex = (op & E_W ? 8 : 0) | (reg >> 3 & 1) << 2 | (has_index ? (m.index >> 3 & 1) << 1 : 0) | (has_base ? m.base >> 3 & 1 : 0);
	if (op & E_B && reg >= 4)
		rex |= 0x40;
	e_opcode(e, op, rex);
	unsigned r = (reg & 7) << 3;
	if (!has_base) {
		e8(e, r | 4);
		e8(e, (unsigned)m.scale << 6 | (has_index ? m.index & 7u : 4u) << 3 | 5);
		e32(e, (u32)m.disp);
		return;
	}
	unsigned mod = m.disp == 0 && (m.base & 7) != 5 ? 0 : m.disp == (i8)m.disp ? 1 : 2;
	if (!has_index && (m.base & 7) != 4) {
		e8(e, mod << 6 | r | (m.base & 7u));
	} else {
		e8(e, mod << 6 | r | 4);
		e8(e, (unsigned)m.scale << 6 | (has_index ? m.index & 7u : 4u) << 3 | (m.base & 7u));
	}
	if (mod == 1)
		e8(e, (u8)m.disp);
	else if (mod == 2)
		e32(e, (u32)m.disp);
}

static inline void e_mov(struct emit *e, unsigned to, unsigned from) { e_reg(e, E_W | 0x89, from, to); }
static inline void e_load(struct emit *e, unsigned r, struct marg m) { e_mem(e, E_W | 0x8b, r, m); }
static inline void e_store(struct emit *e, unsigned r, struct marg m) { e_mem(e, E_W | 0x89, r, m); }
static inline void e_lea(struct emit *e, unsigned r, struct marg m) { e_mem(e, E_W | 0x8d, r, m); }
/* A constant in the shortest form. */
static inline void e_const(struct emit *e, unsigned r, u64 v)
{
	if (v == (u32)v) {
		if (r >= 8)
			e8(e, 0x41);
		e8(e, 0xb8 | (r & 7));
		e32(e, (u32)v);
	} else if (v == (u64)(i32)v) {
		e_reg(e, E_W | 0xc7, 0, r);
		e32(e, (u32)v);
	} else {
		e8(e, 0x48 | (r >= 8));
		e8(e, 0xb8 | (r & 7));
		e64(e, v);
	}
}
/* RORX r64, r64, n: a rotation that leaves the flags alone (BMI2). */
static inline void e_rorx(struct emit *e, unsigned to, unsigned from, unsigned n)
{
	e8(e, 0xc4);
	e8(e, (to < 8) << 7 | 0x40 | (from < 8) << 5 | 3);
	e8(e, 0xfb);
	e8(e, 0xf0);
	e8(e, 0xc0 | (to & 7) << 3 | (from & 7));
	e8(e, n);
}
/* SHLX, SHRX to, from, count: likewise. */
static inline void e_shift(struct emit *e, unsigned pp, unsigned to, unsigned from, unsigned count)
{
	e8(e, 0xc4);
	e8(e, (to < 8) << 7 | 0x40 | (from < 8) << 5 | 2);
	e8(e, 0x80 | (~count & 15) << 3 | pp);
	e8(e, 0xf7);
	e8(e, 0xc0 | (to & 7) << 3 | (from & 7));
}
static inline void e_shlx(struct emit *e, unsigned to, unsigned from, unsigned count) { e_shift(e, 1, to, from, count); }
static inline void e_shrx(struct emit *e, unsigned to, unsigned from, unsigned count) { e_shift(e, 3, to, from, count); }

/* ---- jumps. Those to be filled in later return the place of their displacement. */
enum cc { CC_O, CC_NO, CC_B, CC_NB, CC_Z, CC_NZ, CC_BE, CC_NBE, CC_S, CC_NS, CC_P, CC_NP, CC_L, CC_NL, CC_LE, CC_NLE };

static inline u8 *e_jcc(struct emit *e, enum cc cc) { e8(e, 0x0f); e8(e, 0x80 | cc); e32(e, 0); return e->p - 4; }
static inline u8 *e_jmp(struct emit *e) { e8(e, 0xe9); e32(e, 0); return e->p - 4; }
static inline u8 *e_call(struct emit *e) { e8(e, 0xe8); e32(e, 0); return e->p - 4; }
static inline u8 *e_jrcxz(struct emit *e) { e8(e, 0xe3); e8(e, 0); return e->p - 1; }
static inline u8 *e_jmp8(struct emit *e) { e8(e, 0xeb); e8(e, 0); return e->p - 1; }
/* `at`: in the writable mapping; to: a running address. */
static inline void e_set32(struct emit *e, u8 *at, const u8 *to)
{
	if (!e->full)
		st32(at, (u32)(to - (at + 4 + e->to_run)));
}
static inline void e_here32(struct emit *e, u8 *at) { e_set32(e, at, emit_here(e)); }
static inline void e_here8(struct emit *e, u8 *at)
{
	if (e->full)
		return;
	ptrdiff_t d = e->p - (at + 1);
	if (d > 127)
		bug("short jump over %td bytes", d);
	*at = (u8)d;
}
static inline void e_jmp_to(struct emit *e, const u8 *to) { e_set32(e, e_jmp(e), to); }
static inline void e_jcc_to(struct emit *e, enum cc cc, const u8 *to) { e_set32(e, e_jcc(e, cc), to); }

#endif
