/* VMX instructions for their handlers (interp/system_vmx.c); vmx_ops.c has what they do. */
#ifndef RING3_CPU_VMX_API_H
#define RING3_CPU_VMX_API_H

#include "cpu/cpu.h"

bool vmx_in_operation(const struct cpu *c); /* between VMXON and VMXOFF, guest mode too */
/* In root operation; each sets the status flags. addr, desc: the memory operand. */
void vmx_need_on_possible(struct cpu *c);   /* VMXON: #GP(0) unless CR0, CR4, FEATURE_CONTROL and CPL allow it */
void vmx_on(struct cpu *c, u64 addr);
void vmx_off(struct cpu *c);
void vmx_clear(struct cpu *c, u64 addr);
void vmx_ptrld(struct cpu *c, u64 addr);
u64 vmx_ptrst(struct cpu *c);
void vmx_succeed(struct cpu *c);
void vmx_fail(struct cpu *c, unsigned error); /* VMfail: VMfailValid with this number where there is a current VMCS */
bool vmx_read(struct cpu *c, u64 encoding, u64 *v); /* false: flags are set */
void vmx_write(struct cpu *c, u64 encoding, u64 v);
void vmx_launch_or_resume(struct cpu *c, bool launch);
void vmx_invept(struct cpu *c, u64 type, const u64 desc[2]);
void vmx_invvpid(struct cpu *c, u64 type, const u64 desc[2]);
/* An IRET that would end blocking by NMI: whether it does not, in guest mode. SDM 25.3. */
bool vmx_keeps_nmi_blocked(struct cpu *c);
/* Guest mode: leaves for the host with the instruction's displacement and information; reg2: its register operand. */
_Noreturn void vmx_leave_insn(struct cpu *c, const struct insn *i, unsigned reason, int reg1, int reg2);
bool vmx_shadowed(struct cpu *c, u64 encoding, bool write); /* VMREAD, VMWRITE that do not exit */
void vmx_vmfunc(struct cpu *c);             /* #UD, VM exit, or done */

#endif
