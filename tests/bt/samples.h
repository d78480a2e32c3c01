/* Guest code of every kind that the translator treats in its own way: what the verifier's tests
 * begin with. Included once. */
#ifndef RING3_TESTS_BT_SAMPLES_H
#define RING3_TESTS_BT_SAMPLES_H

#include "bt_rig.h"

/* ---- loads, stores, both */
ASM(load, "mov rax, [rbx]\n mov ecx, [rbx + 8]\n movzx edx, word ptr [rsi + rdi*4 + 0x12345]\n movsx r8, byte ptr [r9 - 5]\n mov r10w, [rbp + r12]\n mov r14b, [r13]\n hlt");
ASM(store, "mov [rbx], rax\n mov [rbx + 8], ecx\n mov [rsi + rdi*8 - 0x1000], dx\n mov [r9 + 1], r10b\n mov qword ptr [rbp], -2\n mov byte ptr [r12 + r13*2], 7\n hlt");
ASM(rmw, "add [rbx], rax\n sub dword ptr [rcx + 4], 9\n lock xadd [rdi], rdx\n lock cmpxchg [rsi + r8], r9\n xchg [r10], r12d\n inc byte ptr [r13 + 3]\n neg word ptr [r14]\n shl qword ptr [rbp + 16], 3\n bts dword ptr [rbx], 5\n hlt");
ASM(both, "add rax, [rbx]\n cmp ecx, [rdx + 16]\n imul r8, [r9], 77\n test byte ptr [rsi], 1\n cmovz r10, [rdi]\n movbe r12d, [r13]\n popcnt r14, [rbp]\n mul qword ptr [rbx + 8]\n hlt");
/* Status flags live across an access. */
ASM(flags, "cmp rax, rbx\n mov rcx, [rdx]\n mov [rsi + 8], rcx\n adc r8, r9\n mov r10w, [rdi]\n setz r12b\n jz . - 0x20");
ASM(bits, "bt [rbx], rcx\n bts [rsi + rdi*4 + 0x12345], eax\n lock btr [r9], r11\n cmp rax, rbx\n btc [r10 + rdx], r15d\n setz r12b\n bt [rip + 0x1230], r8\n bts [rsp + 8], rsp\n hlt");
ASM(wide, "cmpxchg16b [rbx]\n cmpxchg8b [rsi]\n movnti [rdi], rax\n crc32 ecx, dword ptr [rdx]\n hlt");
/* ---- addresses */
ASM(rip, "mov rax, [rip + 0x1234]\n add dword ptr [rip + 0x100], 3\n lea rcx, [rip - 4]\n movaps xmm1, [rip + 0x1f0 - 0x20]\n mov rdx, [0x20000]\n mov byte ptr [0x20008], 1\n hlt");
ASM(segment, "mov rax, gs:[rbx + 8]\n mov fs:[rcx + rdx*2], esi\n mov rdi, gs:[0x28]\n add qword ptr fs:[0x10], 1\n .byte 0x65\n lea r8, [r9 + 4]\n hlt");
/* ---- groups: one inside the other, across what needs T, by copies and sums of their base */
ASM(group, "mov rax, [rbx]\n mov rcx, [rdx + 16]\n mov [rbx + 8], rax\n add r15, [rbx - 4]\n movsd xmm1, [rdx + rax*8]\n mov [rdx + 24], r11\n lea rsi, [rbx + 32]\n mov ah, [rsi]\n add rsi, 8\n mov r8d, [rsi - 16]\n push r15\n mov r9, [rdi]\n pop r15\n inc rsi\n mov [rsi + 3], r10b\n hlt");
ASM(group_index, "mov eax, [rbx + rcx*4]\n add eax, edx\n mov [rbx + rcx*4], eax\n mov r8, [r15 + 8]\n dec r15\n mov [r15 + 17], r8\n movups xmm0, [rsi + r11*8]\n movaps [rsi + r11*8 + 16], xmm0\n mov r9, gs:[0x28]\n add gs:[0x30], r9\n mov r10, fs:[rdi]\n cmp r10, fs:[rdi - 8]\n mov rbp, rsp\n push rbx\n mov r12, [rbp]\n leave\n ret");
/* ---- registers that have no host register of their own */
ASM(homeless, "mov r11, rax\n mov rbx, r15\n add r11, r15\n mov rax, [r11]\n mov [r15 + 8], rcx\n mov r11, [rdx]\n mov [rsi + r11*4], edi\n mov r15d, [r11 + r8]\n lea r11, [r15 + rbx*2 + 5]\n lea r15d, [rcx + 1]\n hlt");
ASM(homeless2, "mov eax, [r15 + r11*8 + 3]\n xor r11d, r11d\n inc r15\n mov [rbx], r11b\n mov r15w, [rcx]\n xchg r11, rax\n xchg r11, r15\n shl r11, cl\n bswap r15\n mulx r11, rax, rbx\n cmovz r11, rdx\n movzx r11d, al\n adc [rdi], r15\n hlt");
/* ---- the stack */
ASM(stack, "push rax\n push r11\n push 0x7f\n push -5\n pop rbx\n pop r15\n push rsp\n pop rsp\n mov [rsp + 8], rcx\n mov rdx, [rsp + rsi*8]\n add rsp, 0x20\n lea rsp, [rsp - 8]\n and rsp, -16\n leave\n push qword ptr [rbx + 8]\n hlt");
/* ---- branches */
ASM(call, "call . + 0x200");
ASM(call_far_page, "call . + 0x12345");
ASM(call_reg, "call rax");
ASM(call_r11, "call r11");
ASM(call_mem, "call [rbx + rcx*8]");
ASM(ret, "ret");
ASM(ret_imm, "ret 0x18");
ASM(jmp, "mov eax, 1\n jmp . + 0x33");
ASM(jmp_out, "jmp . - 0x4321");
ASM(jmp_reg, "jmp rdx");
ASM(jmp_mem, "jmp [rax*8 + 0x20000]");
ASM(jcc, "cmp rax, 5\n ja . - 0x40");
ASM(jcc_out, "test ecx, ecx\n jnz . - 0x5000");
/* Branches within the block. */
ASM(side, "cmp rax, 5\n ja . + 0x40\n mov rbx, [rcx + 8]\n add rbx, rax\n jnz . + 0x5000\n mov [rcx + 16], rbx\n and r15, rbx\n ret");
ASM(loop, "add rax, rcx\n loop . - 3");
ASM(jrcxz, "jrcxz . + 0x10");
ASM(jecxz, "jecxz . + 0x10");
ASM(fall, "nop\n add rax, 1\n nop\n hlt");
/* ---- registers only */
ASM(copy, "add rax, rbx\n sub cl, ah\n imul r9, r10, 5\n div r8\n cwde\n cqo\n bswap rdx\n setg sil\n cmovl rdi, rbp\n shld rax, rbx, 3\n sar r12, cl\n xchg rax, r13\n movabs r14, 0x123456789abcdef\n mov ecx, -1\n add rsp, 8\n mov rbp, rsp\n lahf\n sahf\n stc\n pdep rax, rbx, rcx\n andn edx, esi, edi\n rdrand r8\n hlt");
/* Immediates that may change, of each size and where each kind of instruction has them. */
ASM(varies, "mov eax, 0x11223344\n mov rcx, -5\n movabs rdx, 0x1122334455667788\n add ebx, 5\n sub rsi, 0x12345\n and dil, 0x7f\n cmp r8, -9\n adc r9d, 0x55555555\n test r10b, 3\n xor rsp, 16\n hlt");
/* ---- vectors */
ASM(sse, "movaps xmm0, [rbx]\n movups xmm1, [rcx + 1]\n addps xmm2, [rdx]\n movss xmm3, [rsi]\n movsd [rdi], xmm4\n movdqu [r8 + r9], xmm5\n pshufb xmm6, xmm7\n cvtsi2sd xmm8, r11\n movq rax, xmm9\n pinsrw xmm1, word ptr [rbp], 3\n movnti [rbx], ecx\n hlt");
ASM(avx, "vmovaps ymm0, [rbx]\n vmovups ymm1, [rcx + 3]\n vaddpd ymm2, ymm3, [rdx + r15*8]\n vmovd xmm4, [rsi]\n vpbroadcastd ymm5, [rdi]\n vextracti128 [r8], ymm6, 1\n vzeroupper\n vfmadd231sd xmm1, xmm2, [r9]\n hlt");
ASM(avx512, "vmovdqu64 zmm0, [rbx]\n vmovaps zmm16{k1}, [rcx]\n vaddps zmm1{k2}{z}, zmm2, [rdx]{1to16}\n vmovdqu8 [rsi]{k3}, zmm4\n kmovq k1, rax\n kmovw k2, [rdi]\n vpcompressd [r8]{k1}, zmm5\n vmovdqa32 [r9 + 64], zmm17\n hlt");
/* ---- strings; AH..BH beside memory */
ASM(strings, "rep stosq\n mov rax, rdi\n rep movsb\n stosw\n movsd\n hlt");
ASM(high8, "mov ah, [rbx]\n add [rcx + rdx*2 + 5], bh\n cmp dh, [rsi]\n movzx eax, ch\n hlt");
/* ---- by the interpreter, and other ends */
ASM(interp, "mov rax, rbx\n rep cmpsb\n hlt");
ASM(interp_middle, "mov rax, [rbx]\n rdpmc\n mov [rcx], rdx\n cpuid\n add rax, 1");
ASM(interp_middle2, "cld\n mov rax, [rbx]\n bt [rcx], dx\n fld1\n ret");
/* ---- what kernels do */
ASM(gates, "mov eax, 5\n rdfsbase r11\n wrgsbase rbx\n rdpkru\n mov cx, fs\n mov rsi, cr2\n wrpkru\n add rax, 1\n sysretq");
ASM(gate_cr3, "mov rax, rbx\n mov cr3, r9");
ASM(gate_popf, "push rax\n popfq\n add rax, 1\n hlt");
ASM(gate_iret, "pop rax\n iretq");
ASM(kernel, "cli\n swapgs\n clac\n mov eax, ds\n pushfq\n rdtsc\n stac\n sti\n nop\n add rax, 1\n hlt");

/* ---- 32-bit code; what it ends with is what FOP, FIP, FDS and FDP then tell of */
ASM32(x87_32, "fld1\n fmul st, st(2)\n fld qword ptr [ebx + ecx*4 + 0x1234]\n fadd st, st(3)\n fstp tbyte ptr ss:[edi - 5]\n jmp . + 0x33");

#define SAMPLES(X) X(load) X(store) X(rmw) X(both) X(flags) X(bits) X(wide) X(rip) X(segment) X(group) X(group_index) X(homeless) X(homeless2) X(stack) X(call) X(call_far_page) \
	X(call_reg) X(call_r11) X(call_mem) X(ret) X(ret_imm) X(jmp) X(jmp_out) X(jmp_reg) X(jmp_mem) X(jcc) X(jcc_out) X(side) X(loop) X(jrcxz) X(jecxz) \
	X(fall) X(copy) X(varies) X(sse) X(avx) X(avx512) X(interp) X(interp_middle) X(interp_middle2) X(kernel) X(gates) X(gate_cr3) X(gate_popf) X(gate_iret) X(strings) X(high8)

#endif
