/* Decimal adjustment, not in 64-bit mode: DAA DAS AAA AAS AAM AAD. The host cannot run them in
 * 64-bit mode, so results and flags are written out; flags that the manual leaves undefined
 * follow current processors (checked by tests/diff in a compatibility-mode segment). SDM vol. 2. */
#include "interp/op.h"

static u64 flags_szp(u8 v)
{
	return (v & 0x80 ? FL_SF : 0) | (v ? 0 : FL_ZF) | (__builtin_parity(v) ? 0 : FL_PF);
}

static void adjust_decimal(struct cpu *c, bool subtract)
{
	u8 al = reg_ld8(c, 0), old = al;
	bool old_cf = c->rflags & FL_CF, cf = false, af = false;
	if ((al & 15) > 9 || (c->rflags & FL_AF)) {
		cf = old_cf || (subtract ? al < 6 : al > 0xf9);
		al = (u8)(subtract ? al - 6 : al + 6);
		af = true;
	}
	if (old > 0x99 || old_cf) {
		al = (u8)(subtract ? al - 0x60 : al + 0x60);
		cf = true;
	}
	reg_st8(c, 0, al);
	flags_set(c, flags_szp(al) | (cf ? FL_CF : 0) | (af ? FL_AF : 0), FL_STATUS);
}
OP(op_daa) { adjust_decimal(c, false); }
OP(op_das) { adjust_decimal(c, true); }

static void adjust_ascii(struct cpu *c, bool subtract)
{
	u16 ax = reg_ld16(c, R_AX);
	bool adjust = (ax & 15) > 9 || (c->rflags & FL_AF);
	if (adjust)
		ax = (u16)(subtract ? ax - 0x106 : ax + 0x106);
	ax &= 0xff0f;
	reg_st16(c, R_AX, ax);
	flags_set(c, flags_szp((u8)ax) | (adjust ? FL_CF | FL_AF : 0), FL_STATUS);
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
	u8 al = (u8)(ax + (ax >> 8) * (u8)i->imm);
	reg_st16(c, R_AX, al);
	flags_set(c, flags_szp(al), FL_STATUS);
}
