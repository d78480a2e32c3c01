/* VMX instructions: which mode knows them, VM exits of a guest's, privilege, operands. What they do is cpu/vmx_ops.c's.
 * Intel SDM vol. 3 chapter 30. */
#include "cpu/vmx_api.h"
#include "interp/system.h"

enum { X_VMCALL = 18, X_VMCLEAR, X_VMLAUNCH, X_VMPTRLD, X_VMPTRST, X_VMREAD, X_VMRESUME, X_VMWRITE, X_VMXOFF, X_VMXON,
       X_INVEPT = 50, X_INVVPID = 53 };

static inline void need_vmx_mode(struct cpu *c)
{
	if (!cpu_protected(c) || (cpu_long(c) && !cpu_code64(c)))
		cpu_ud(c);
}

/* #UD outside of VMX operation, VM exit in a guest, #GP(0) above CPL 0. reg1, reg2: enum reg or -1. */
static inline void need_root(struct cpu *c, const struct insn *i, unsigned reason, int reg1, int reg2)
{
	if (!vmx_in_operation(c))
		cpu_ud(c);
	need_vmx_mode(c);
	if (c->nested.mode == NEST_VMX)
		vmx_leave_insn(c, i, reason, reg1, reg2);
	need_cpl0(c);
}

static u64 pointer(struct cpu *c, const struct insn *i) { return mem_ld64(c, insn_lin(c, i, 8, ACC_READ)); }

OP_END(op_vmxon)
{
	need_vmx_mode(c);
	if (!(c->cr4 & CR4_VMXE))
		cpu_ud(c);
	if (!vmx_in_operation(c)) {
		vmx_need_on_possible(c);
		vmx_on(c, pointer(c, i));
		return;
	}
	need_root(c, i, X_VMXON, -1, -1);
	vmx_fail(c, 15);
}

OP_END(op_vmxoff)
{
	need_root(c, i, X_VMXOFF, -1, -1);
	vmx_off(c);
}

OP_END(op_vmclear)
{
	need_root(c, i, X_VMCLEAR, -1, -1);
	vmx_clear(c, pointer(c, i));
}

OP_END(op_vmptrld)
{
	need_root(c, i, X_VMPTRLD, -1, -1);
	vmx_ptrld(c, pointer(c, i));
}

OP_END(op_vmptrst)
{
	need_root(c, i, X_VMPTRST, -1, -1);
	mem_st64(c, insn_lin(c, i, 8, ACC_WRITE), vmx_ptrst(c));
	vmx_succeed(c);
}

OP_END(op_vmlaunch)
{
	need_root(c, i, X_VMLAUNCH, -1, -1);
	vmx_launch_or_resume(c, true);
}

OP_END(op_vmresume)
{
	need_root(c, i, X_VMRESUME, -1, -1);
	vmx_launch_or_resume(c, false);
}

/* In a guest VMCALL exits whatever the mode; the host's is answered by nobody. */
OP_END(op_vmcall)
{
	if (!vmx_in_operation(c))
		cpu_ud(c);
	if (c->nested.mode == NEST_VMX)
		vmx_leave_insn(c, i, X_VMCALL, -1, -1);
	need_vmx_mode(c);
	need_cpl0(c);
	vmx_fail(c, 1);
}

/* ---- VMREAD, VMWRITE: in a guest perhaps of the shadow VMCS --------------------------------------------- */

static inline unsigned vm_size(const struct cpu *c) { return cpu_code64(c) ? 8 : 4; }

static u64 vm_field(struct cpu *c, const struct insn *i, unsigned reg, unsigned reason, int reg1, bool write)
{
	u64 field = reg_ld(c, reg, vm_size(c));
	if (!vmx_in_operation(c))
		cpu_ud(c);
	need_vmx_mode(c);
	if (c->nested.mode == NEST_VMX && !vmx_shadowed(c, field, write))
		vmx_leave_insn(c, i, reason, reg1, (int)reg);
	need_cpl0(c);
	return field;
}

OP_END(op_vmread_rr)
{
	u64 v, field = vm_field(c, i, i->rm, X_VMREAD, i->r, false);
	if (!vmx_read(c, field, &v))
		return;
	reg_st(c, i->r, v, vm_size(c));
	vmx_succeed(c);
}

OP_END(op_vmread_mr)
{
	u64 v, field = vm_field(c, i, i->r, X_VMREAD, -1, false);
	if (!vmx_read(c, field, &v))
		return;
	mem_st(c, insn_lin(c, i, vm_size(c), ACC_WRITE), v, vm_size(c));
	vmx_succeed(c);
}

OP_END(op_vmwrite_rr)
{
	u64 field = vm_field(c, i, i->r, X_VMWRITE, i->rm, true);
	vmx_write(c, field, reg_ld(c, i->rm, vm_size(c)));
}

OP_END(op_vmwrite_rm)
{
	u64 field = vm_field(c, i, i->r, X_VMWRITE, -1, true);
	vmx_write(c, field, mem_ld(c, insn_lin(c, i, vm_size(c), ACC_READ), vm_size(c)));
}

/* ---- INVEPT, INVVPID, VMFUNC ------------------------------------------------------------------------------- */

static u64 descriptor(struct cpu *c, const struct insn *i, u64 desc[2])
{
	u64 lin = insn_lin(c, i, 16, ACC_READ);
	desc[0] = mem_ld64(c, lin);
	desc[1] = mem_ld64(c, lin_add(c, lin, 8));
	return reg_ld(c, i->r, vm_size(c));
}

OP_END(op_invept)
{
	u64 desc[2];
	need_root(c, i, X_INVEPT, -1, i->r);
	u64 type = descriptor(c, i, desc);
	vmx_invept(c, type, desc);
}

OP_END(op_invvpid)
{
	u64 desc[2];
	need_root(c, i, X_INVVPID, -1, i->r);
	u64 type = descriptor(c, i, desc);
	vmx_invvpid(c, type, desc);
}

OP_END(op_vmfunc) { vmx_vmfunc(c); }
