/* Exit qualifications and instruction information that are read off the instruction. Intel SDM vol. 3
 * 27.2.1, tables 27-8 to 27-14. */
#include "cpu/vmx.h"
#include "cpu/vmx_api.h"

enum { IDENTITY_SHIFT = 28, REG2_SHIFT = 28 };

static unsigned segment_number(const struct insn *i)
{
	if (i->seg <= S_GS)
		return i->seg;
	return i->base == R_SP || i->base == R_BP ? S_SS : S_DS;
}

static u32 address_size(const struct insn *i) { return (i->adsz == 8 ? 2u : i->adsz == 4 ? 1u : 0u) << 7; }

/* Where the operand is: scale, address size, memory or register, segment, index, base. */
static u32 operand_info(const struct insn *i, int reg1)
{
	if (!(i->flags & IF_MEM))
		return address_size(i) | 1u << 10 | (u32)(reg1 < 0 ? 0 : reg1) << 3;
	u32 v = i->scale | address_size(i) | segment_number(i) << 15;
	v |= i->index < 16 ? (u32)i->index << 18 : 1u << 22;
	v |= i->base < 16 ? (u32)i->base << 23 : 1u << 27;
	return v;
}

/* The displacement; of a RIP-relative operand its address. */
static u64 displacement(const struct cpu *c, const struct insn *i)
{
	if (!(i->flags & IF_MEM))
		return 0;
	return i->base == R_BLOCK ? c->regs[R_BLOCK] + (u64)i->disp : (u64)i->disp;
}

_Noreturn void vmx_leave_insn(struct cpu *c, const struct insn *i, unsigned reason, int reg1, int reg2)
{
	u32 info = operand_info(i, reg1) | (reg2 >= 0 ? (u32)reg2 << REG2_SHIFT : 0);
	vmx_leave_with(c, (struct vmx_exit){ .reason = reason, .qualification = displacement(c, i), .insn_info = info });
}

/* LGDT, SIDT, LLDT, STR and the rest; which: SGDT SIDT LGDT LIDT, SLDT STR LLDT LTR. */
_Noreturn void vmx_leave_descriptor(struct cpu *c, bool system, unsigned which)
{
	const struct insn *i = c->cur;
	u32 info = operand_info(i, i->r) | which << IDENTITY_SHIFT;
	if (!system && i->opsz != 2)
		info |= 1u << 11;
	vmx_leave_with(c, (struct vmx_exit){ .reason = system ? EXIT_LDTR_TR : EXIT_GDTR_IDTR,
					     .qualification = displacement(c, i), .insn_info = info });
}
