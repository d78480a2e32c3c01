/* Decimal adjustment, not in 64-bit mode: DAA DAS AAA AAS AAM AAD. The host cannot run them in
 * 64-bit mode, so results and flags are written out; flags that the manual leaves undefined
 * follow current processors (checked by tests/diff in a compatibility-mode segment). SDM vol. 2. */
#include "interp/op_api.h"

static u64 flags_szp(u8 v)
{
	return (v & 0x80 ? FL_SF : 0) | (v ? 0 : FL_ZF) | (__builtin_parity(v) ? 0 : FL_PF);
}

/* Signed overflow of r = a + b or, with subtract, a - b; top: the sign bit. */
static u64 flag_of(unsigned a, unsigned b, unsigned r, unsigned top, bool subtract)
{
	return ((subtract ? a ^ b : ~(a ^ b)) & (a ^ r) & top) ? FL_OF : 0;
}

/* OF is that of one addition of all that is added. */
static void adjust_decimal(struct cpu *c, bool subtract)
{
	u8 al = reg_ld8(c, 0), old = al, by = 0;
	bool old_cf = c->rflags & FL_CF, cf = false, af = false;
	if ((al & 15) > 9 || (c->rflags & FL_AF)) {
		cf = old_cf || (subtract ? al < 6 : al > 0xf9);
		by = 6;
		af = true;
	}
	if (old > 0x99 || old_cf) {
		by |= 0x60;
		cf = true;
	}
	al = (u8)(subtract ? al - by : al + by);
	reg_st8(c, 0, al);
	flags_set(c, flags_szp(al) | (cf ? FL_CF : 0) | (af ? FL_AF : 0) | flag_of(old, by, al, 0x80, subtract), FL_STATUS);
}
OP(op_daa) { adjust_decimal(c, false); }
OP(op_das) { adjust_decimal(c, true); }

static void adjust_ascii(struct cpu *c, bool subtract)
{
	u16 old = reg_ld16(c, R_AX);
	bool adjust = (old & 15) > 9 || (c->rflags & FL_AF);
	u16 by = adjust ? 0x106 : 0, ax = (u16)(subtract ? old - by : old + by);
	reg_st16(c, R_AX, ax & 0xff0f);
	/* The undefined ones are those of the 16-bit addition. */
	u64 szp = (ax & 0x8000 ? FL_SF : 0) | (ax ? 0 : FL_ZF) | (flags_szp((u8)ax) & FL_PF);
	flags_set(c, szp | (adjust ? FL_CF | FL_AF : 0) | flag_of(old, by, ax, 0x8000, subtract), FL_STATUS);
}
OP(op_aaa) { adjust_ascii(c, false); }
OP(op_aas) { adjust_ascii(c, true); }

OP(op_aam)
{
	u8 base = (u8)i->imm, al = reg_ld8(c, 0);
	if (!base)
		cpu_raise(c, V_DE);
	reg_st16(c, R_AX, (u16)((al / base) << 8 | al % base));
	flags_set(c, flags_szp((u8)(al % base)), FL_STATUS);
}

OP(op_aad)
{
	u16 ax = reg_ld16(c, R_AX);
	u8 old = (u8)ax, by = (u8)((ax >> 8) * (u8)i->imm), al = (u8)(old + by);
	reg_st16(c, R_AX, al);
	/* The undefined ones are those of the addition. */
	flags_set(c, flags_szp(al) | (al < old ? FL_CF : 0) | ((old ^ by ^ al) & FL_AF) | flag_of(old, by, al, 0x80, false),
		  FL_STATUS);
}
