/* Hardware virtualization: the instructions, whose work is cpu/'s (svm*.c, vmx*.c). Intel SDM volume 3
 * chapter 31; AMD APM volume 3. */
#include "cpu/svm_api.h"
#include "interp/system.h"

/* ---- AMD-V: addresses are in rAX, in the width of addresses */

static inline u64 rax_address(const struct cpu *c, const struct insn *i) { return c->regs[R_AX] & addr_mask(i->adsz); }

OP_END(op_vmrun) { svm_vmrun_insn(c, rax_address(c, i)); }
OP_END(op_vmload) { svm_vmload_insn(c, rax_address(c, i)); }
OP_END(op_vmsave) { svm_vmsave_insn(c, rax_address(c, i)); }
OP_END(op_vmmcall) { svm_vmmcall_insn(c); }
OP_END(op_stgi) { svm_gif_insn(c, true); }
OP_END(op_clgi) { svm_gif_insn(c, false); }
OP_END(op_invlpga) { svm_invlpga_insn(c, rax_address(c, i), (u32)c->regs[R_CX]); }
OP_END(op_skinit) { svm_skinit_insn(c); }

/* ---- there is no SMM to return from */
OP_END(op_rsm)
{
	nested_check(c, ICPT_RSM, 0);
	cpu_ud(c);
}
