/* AMD-V's instructions, for engines. c->rip is the next instruction; all may raise, or leave the guest. */
#ifndef RING3_CPU_SVM_API_H
#define RING3_CPU_SVM_API_H

#include "cpu/cpu.h"

void svm_vmrun_insn(struct cpu *c, u64 pa);
void svm_vmload_insn(struct cpu *c, u64 pa);
void svm_vmsave_insn(struct cpu *c, u64 pa);
void svm_vmmcall_insn(struct cpu *c);
void svm_gif_insn(struct cpu *c, bool on);        /* STGI, CLGI */
void svm_invlpga_insn(struct cpu *c, u64 lin, u32 asid);
void svm_skinit_insn(struct cpu *c);              /* the block's address in EAX */

#endif
