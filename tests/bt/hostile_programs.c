/* The programs themselves: what they try is in their names. Every one begins with the host's addresses in its registers
 * (hostile_fresh()), and may halt, shut down or go round for ever. */
#include <stdio.h>

#include "hostile.h"

/* ---- the host's code --------------------------------------------------------------------------------------- */

/* Jumps to where the host's code is: the cache, its shared code, libc. */
ASM(to_cache, "jmp rdi");
ASM(to_exit, "jmp r14");
ASM(to_exit_call, "call r14");
ASM(to_libc, "push r10\n ret");
ASM(to_heap, "lea rsp, [rsp-8]\n mov [rsp], rbx\n ret 8");
ASM(to_cache_mem, "mov [0x20000], rdi\n jmp [0x20000]");
ASM(to_exit_iret, "push 0x10\n push 0x30000\n push 2\n push 8\n push r14\n iretq");
ASM(to_exit_far, "push 8\n push r14\n .byte 0x48\n .byte 0xcb");
ASM(ret_stack, "mov rsp, r13\n ret");
ASM(ret_stack_push, "mov rsp, r13\n push rax\n call . + 5\n hlt");
ASM(host_stack, "mov rsp, r12\n push rax\n pop rcx\n leave\n ret");
ASM(host_stack_frame, "mov rbp, r12\n leave\n ret");

/* ---- hidden instructions -------------------------------------------------------------------------------- */

#define HIDDEN(name, bytes) ASM(hidden_##name, "mov eax, 231\n mov edi, 77\n lea rdx, [rip + 1f]\n jmp 1f\n .byte 0xb8\n1: .byte " bytes "\n nop\n nop\n nop\n hlt")
HIDDEN(syscall, "0x0f, 0x05");
HIDDEN(sysenter, "0x0f, 0x34");
HIDDEN(int80, "0xcd, 0x80");
HIDDEN(int3, "0xcc, 0x90");
HIDDEN(wrpkru, "0x0f, 0x01, 0xef");
HIDDEN(wrgsbase, "0xf3, 0x48, 0x0f, 0xae, 0xd8");
HIDDEN(wrfsbase, "0xf3, 0x48, 0x0f, 0xae, 0xd0");
HIDDEN(rdgsbase, "0xf3, 0x48, 0x0f, 0xae, 0xc8");
HIDDEN(rdfsbase, "0xf3, 0x48, 0x0f, 0xae, 0xc0");
HIDDEN(swapgs, "0x0f, 0x01, 0xf8");
HIDDEN(movgs, "0x8e, 0xe8");
HIDDEN(movfs, "0x8e, 0xe0");
HIDDEN(movss, "0x8e, 0xd0");
HIDDEN(popgs, "0x0f, 0xa9");
HIDDEN(lgs, "0x0f, 0xb5, 0x02");
HIDDEN(xsave, "0x0f, 0xae, 0x22");
HIDDEN(xrstor, "0x0f, 0xae, 0x2a");
HIDDEN(fxsave, "0x0f, 0xae, 0x02");
HIDDEN(clzero, "0x0f, 0x01, 0xfc");
HIDDEN(monitor, "0x0f, 0x01, 0xc8");
HIDDEN(vmcall, "0x0f, 0x01, 0xc1");
HIDDEN(xbegin, "0xc7, 0xf8, 0x00, 0x00, 0x00, 0x00");
HIDDEN(maskmovdqu, "0x66, 0x0f, 0xf7, 0xc1");
HIDDEN(retf, "0xcb");
HIDDEN(iret, "0x48, 0xcf");
HIDDEN(jmpfar, "0x48, 0xff, 0x2a");
HIDDEN(callfar, "0x48, 0xff, 0x1a");
HIDDEN(in, "0xed");
HIDDEN(out, "0xef");
HIDDEN(popf, "0x6a, 0x00, 0x9d");
HIDDEN(std, "0xfd");
HIDDEN(enter, "0xc8, 0xff, 0xff, 0x1f");
HIDDEN(invlpg, "0x0f, 0x01, 0x38");
HIDDEN(rdpmc, "0x0f, 0x33");
HIDDEN(rdmsr, "0x0f, 0x32");
HIDDEN(wrmsr, "0x0f, 0x30");
HIDDEN(movcr3, "0x0f, 0x22, 0xd8");
HIDDEN(lidt, "0x0f, 0x01, 0x1a");
HIDDEN(enqcmd, "0xf2, 0x0f, 0x38, 0xf8, 0x02");
HIDDEN(movdir64b, "0x66, 0x0f, 0x38, 0xf8, 0x02");
HIDDEN(tileload, "0xc4, 0xe2, 0x7b, 0x4b, 0x04, 0x0a");
HIDDEN(gather, "0xc4, 0xe2, 0x6d, 0x90, 0x04, 0x0a");
HIDDEN(senduipi, "0xf3, 0x0f, 0xc7, 0xf0");
HIDDEN(xsetbv, "0x0f, 0x01, 0xd1");
HIDDEN(ldmxcsr, "0x0f, 0xae, 0x12");
HIDDEN(ud2, "0x0f, 0x0b");
HIDDEN(prefixes, "0x65, 0x65, 0x64, 0x67, 0x66, 0xf2, 0xf3, 0x48, 0x8b, 0x00");
HIDDEN(gs_load, "0x65, 0x48, 0x8b, 0x04, 0x25, 0x00, 0xf0, 0xff, 0xff");
HIDDEN(gs_store, "0x65, 0x48, 0x89, 0x04, 0x25, 0x00, 0xf0, 0xff, 0xff");
HIDDEN(gs_table, "0x65, 0x67, 0x4c, 0x8b, 0x1c, 0xdd, 0x00, 0x00, 0x00, 0x00");
HIDDEN(rip_load, "0x48, 0x8b, 0x05, 0x00, 0x00, 0x00, 0x00");
HIDDEN(pop_rsp, "0x5c");
HIDDEN(xchg_rsp, "0x48, 0x94");

/* ---- the ends of the address space, and of RAM ----------------------------------------------------------------- */

ASM(wrap_load, "mov rbp, -4\n mov rax, [rbp]\n hlt");
ASM(wrap_store, "mov rbp, -4\n mov [rbp], rax\n hlt");
ASM(wrap_vector, "mov rbp, -8\n movups [rbp], xmm0\n movups xmm1, [rbp]\n hlt");
ASM(wrap_push, "mov rsp, 4\n push rax\n push rbx\n hlt");
ASM(wrap_push0, "xor esp, esp\n push rax\n hlt");
ASM(wrap_disp, "xor ebp, ebp\n mov [rbp - 0x80], rax\n hlt");
ASM(wrap_index, "mov rbp, 0x8000000000000000\n mov [rbp + rbp + 0x20000], rax\n mov rcx, [rbp + rbp + 0x20000]\n mov [rdx], rcx\n hlt");
ASM(wrap_scale, "mov rbp, 0x2000000000000000\n mov [rbp*8 + 0x20008], rax\n hlt");
ASM(noncanonical_load, "mov rbp, 0x800000000000\n mov rax, [rbp - 1]\n hlt");
ASM(noncanonical_store, "mov rbp, 0x7ffffffffffc\n mov [rbp], rax\n hlt");
ASM(noncanonical_low, "mov rbp, 0xffff7ffffffffffc\n mov [rbp], rax\n mov rax, [rbp]\n hlt");
ASM(noncanonical_sp, "mov rsp, 0x8000000000000000\n push rax\n hlt");
ASM(noncanonical_sp_call, "mov rsp, 0x800000000004\n call . + 5\n hlt");
ASM(noncanonical_jump, "mov rax, 0x800000000000\n jmp rax");
ASM(noncanonical_ret, "mov rax, 0x8000000000000000\n push rax\n ret");
ASM(noncanonical_call, "mov rax, 0x7fffffffffff\n inc rax\n call rax");
ASM(noncanonical_string, "mov rdi, 0x7ffffffffff0\n mov ecx, 16\n rep stosq\n hlt");
ASM(noncanonical_fs, "mov rcx, 0xc0000100\n mov eax, 0xffffffff\n mov edx, 0x7fff\n wrmsr\n mov rax, fs:[0x7fffffff]\n mov fs:[1], rax\n hlt");
ASM(stack_odd, "mov rsp, 0x2fff9\n push rax\n push rax\n call . + 5\n ret 3\n hlt");
ASM(stack_page, "mov rsp, 0x30004\n push rax\n pop rbx\n call . + 5\n hlt");
ASM(enter_deep, "mov rsp, 0x20010\n enter 0xfff8, 31\n push rax\n hlt");

/* The last page of RAM is mapped at 20000h, before a page that is not, or one that is the first of RAM. */
void hostile_end_of_ram(void)
{
	hostile_up();
	static const struct { const char *name; u8 code[16], n; u16 size; } kinds[] = {
#define K(name, size, ...) { name, { __VA_ARGS__ }, sizeof((u8[]){ __VA_ARGS__ }), size }
		K("16 bits", 2, 0x66, 0x89, 0x45, 0), K("32 bits", 4, 0x89, 0x45, 0), K("64 bits", 8, 0x48, 0x89, 0x45, 0),
		K("16 bits, load", 2, 0x66, 0x8b, 0x45, 0), K("64 bits, load", 8, 0x48, 0x8b, 0x45, 0),
		K("add", 8, 0x48, 0x01, 0x45, 0), K("lock xadd", 8, 0xf0, 0x48, 0x0f, 0xc1, 0x45, 0),
		K("cmpxchg16b", 16, 0x48, 0x0f, 0xc7, 0x4d, 0), K("movups", 16, 0x0f, 0x11, 0x45, 0), K("movups, load", 16, 0x0f, 0x10, 0x45, 0),
		K("movaps", 16, 0x0f, 0x29, 0x45, 0), K("addps", 16, 0x0f, 0x58, 0x45, 0), K("movntps", 16, 0x0f, 0x2b, 0x45, 0),
		K("vmovups", 32, 0xc5, 0xfc, 0x11, 0x45, 0), K("vmovaps", 32, 0xc5, 0xfc, 0x29, 0x45, 0), K("vmovdqu", 32, 0xc5, 0xfe, 0x6f, 0x45, 0),
		K("vmovdqu64", 64, 0x62, 0xf1, 0xfe, 0x48, 0x7f, 0x45, 0), K("vmovdqa64", 64, 0x62, 0xf1, 0xfd, 0x48, 0x7f, 0x45, 0),
		K("vmovdqu8 {k1}", 64, 0x62, 0xf1, 0x7f, 0x49, 0x7f, 0x45, 0), K("vmovdqa32 {k1}", 64, 0x62, 0xf1, 0x7d, 0x49, 0x7f, 0x45, 0),
		K("vpcompressd {k1}", 64, 0x62, 0xf2, 0x7d, 0x49, 0x8b, 0x45, 0), K("vmaskmovps", 32, 0xc4, 0xe2, 0x75, 0x2e, 0x45, 0),
		K("fstp m80", 10, 0xdb, 0x7d, 0), K("fld m80", 10, 0xdb, 0x6d, 0), K("fnstenv", 28, 0xd9, 0x75, 0), K("fxsave", 512, 0x0f, 0xae, 0x45, 0),
		K("xsave", 2048, 0x0f, 0xae, 0x65, 0), K("fbstp", 10, 0xdf, 0x75, 0), K("movbe", 8, 0x48, 0x0f, 0x38, 0xf1, 0x45, 0),
		K("rep stosq", 64, 0x48, 0x8d, 0x7d, 0, 0xb9, 8, 0, 0, 0, 0xf3, 0x48, 0xab), K("rep stosb", 64, 0x48, 0x8d, 0x7d, 0, 0xb9, 64, 0, 0, 0, 0xf3, 0xaa),
		K("rep movsb from", 64, 0x48, 0x8d, 0x75, 0, 0xbf, 0, 0, 3, 0, 0xb1, 64, 0xf3, 0xa4), K("push", 8, 0x48, 0x8d, 0x65, 8, 0x50),
		K("call", 8, 0x48, 0x8d, 0x65, 8, 0xe8, 0, 0, 0, 0), K("pop", 8, 0x48, 0x8d, 0x65, 0, 0x58), K("bts", 8, 0x48, 0x0f, 0xab, 0x45, 0),
		K("gather", 64, 0xc5, 0xf5, 0x76, 0xc9, 0xc4, 0xe2, 0x75, 0x90, 0x44, 0x15, 0), K("maskmovdqu", 16, 0x48, 0x8d, 0x7d, 0, 0x66, 0x0f, 0xf7, 0xc0),
#undef K
	};
	char name[96];
	for (unsigned k = 0; k < ARRAY_LEN(kinds); k++)
		for (unsigned next = 0; next < 2; next++) {
			snprintf(name, sizeof(name), "%s at the end of RAM, %s", kinds[k].name, next ? "RAM's start after it" : "nothing after it");
			hostile_fresh(0);
			rig_map(DATA, RAM_LAST, PG_P | PG_W | PG_U);
			rig_map(DATA + 4096, 0x0, next ? PG_P | PG_W | PG_U : 0);
			/* RBP goes from so far before the end to the end, by one; faults are skipped by the handler. */
			u8 code[64], n = 0;
			static const u8 begin[] = { 0x48, 0xbd };
			memcpy(code, begin, 2);
			st64(code + 2, DATA + 4096 - kinds[k].size - 4);
			n = 10;
			u8 loop = n;
			memcpy(code + n, kinds[k].code, kinds[k].n);
			n += kinds[k].n;
			static const u8 step[] = { 0x48, 0xff, 0xc5, 0x48, 0x81, 0xfd, 0x08, 0x10, 0x02, 0x00 };
			memcpy(code + n, step, sizeof(step));
			n += sizeof(step);
			code[n] = 0x72;
			code[n + 1] = (u8)(loop - (n + 2));
			code[n + 2] = 0xf4;
			rig_code(CODE, code, n + 3u);
			/* #PF, #GP, #AC: go on with the next RBP. */
			static const u8 skip[] = { 0xbc, 0x00, 0x00, 0x03, 0x00, 0x68, 0, 0, 1, 0, 0xc3 };
			u8 handler[sizeof(skip)];
			memcpy(handler, skip, sizeof(skip));
			st32(handler + 6, CODE + loop + kinds[k].n);
			rig_code(HANDLER, handler, sizeof(handler));
			for (unsigned m = 0; m < 8; m++)
				r.c->k[m] = next ? ~0ull : 0xc000000000008000; /* the far end alone */
			hostile_go();
			hostile_check(name);
		}
	hostile_down();
}

/* ---- pages chosen for what lies behind them ------------------------------------------------------------------------- */

/* The guest's page so that an address of the host's canaries shares its entry, as near as it comes. */
void hostile_chosen_pages(void)
{
	hostile_up();
	ASM(chosen, "mov rax, [rbp]\n mov [rbp], rax\n mov rcx, [rdi]\n mov [rdi], rax\n mov [rsi], rcx\n hlt");
	char name[64];
	for (unsigned n = 0; n < 3; n++)
		for (u64 off = 0; off < 8; off++) {
			u64 canary = hostile_canary(n) + off * 512, host = (u64)r.mem.ram + DATA + (canary & PAGE_MASK);
			/* guest + (host - guest) = host; host + d = canary: the address is guest + d, d a multiple of the step or not. */
			u64 guest = 0x10000000 + (canary & PAGE_MASK), to = guest + (canary - host);
			hostile_fresh(0);
			rig_map(guest & ~PAGE_MASK, DATA, PG_P | PG_W | PG_U);
			rig_code(CODE, asm_chosen, ASM_SIZE(chosen));
			r.c->regs[R_BP] = guest;
			r.c->regs[R_SI] = DATA + 0x800;
			r.c->regs[R_DI] = to;
			hostile_go();
			snprintf(name, sizeof(name), "canary %u + %lu by a page chosen for it", n, (unsigned long)off * 512);
			hostile_check(name);
		}
	hostile_down();
}

/* ---- segments -------------------------------------------------------------------------------------------------------- */

ASM(fs_host, "mov rbp, r11\n wrfsbase rbp\n mov rax, fs:[0x20000]\n mov fs:[0x20000], rax\n mov fs:[rsp - 0x10000], rcx\n hlt");
ASM(gs_host, "wrgsbase r15\n mov rax, gs:[0x20000]\n mov gs:[0x20000], rax\n hlt");
ASM(gs_context, "wrgsbase rdx\n mov rax, gs:[0]\n mov gs:[0], rax\n hlt");
ASM(gs_table, "wrgsbase r8\n mov rbp, 0x1000\n mov gs:[rbp*8], rax\n mov gs:[0], rax\n hlt");
ASM(gs_swap, "mov ecx, 0xc0000102\n mov eax, r15d\n mov rdx, r15\n shr rdx, 32\n wrmsr\n swapgs\n mov rax, gs:[0x20000]\n mov gs:[0x20000], rax\n swapgs\n hlt");
ASM(gs_minus, "mov rbp, -1\n wrgsbase rbp\n mov rax, gs:[0]\n mov gs:[1], rax\n hlt");
ASM(fs_null, "xor eax, eax\n mov fs, eax\n mov gs, eax\n mov rax, fs:[0x20000]\n mov gs:[-0x1000], rax\n hlt");
ASM(gs_negative, "mov gs:[-0x1000], rax\n mov rax, gs:[-0x1000]\n hlt");
ASM(gs_ctx_abs, "mov rax, gs:[0xfffffffffffff000]\n mov qword ptr gs:[0xfffffffffffff090], 0x41414141\n hlt");
ASM(seg_limits, "push 0\n push 0\n lgdt [rsp]\n mov eax, 0x10\n mov ds, eax\n hlt");
ASM(ldt_gs, "mov eax, 0x28\n lldt ax\n mov eax, 7\n mov gs, eax\n mov rax, gs:[0x100]\n hlt");
ASM(compat, "push 0x18\n lea rax, [rip + 1f]\n push rax\n .byte 0x48\n .byte 0xcb\n1: mov eax, [0x20000]\n mov [eax + ebx], ecx\n hlt");
ASM(stac_host, "stac\n mov [rax], rbx\n clac\n mov [rax], rbx\n hlt");

/* ---- floating point ------------------------------------------------------------------------------------------------------ */

#define FP(name, text) ASM(fp_##name, "fninit\n mov rbp, 0x20000\n" text "\n hlt")
FP(unmask_x87, "mov word ptr [rbp], 0x300\n fldcw [rbp]\n fldz\n fld1\n fdiv st, st(1)\n mov rax, [rbx]\n fldz\n fwait");
FP(pending_exit, "mov word ptr [rbp], 0x300\n fldcw [rbp]\n fldz\n fld1\n fdiv st, st(1)\n cpuid\n rdmsr");
FP(pending_cpuid, "mov word ptr [rbp], 0x300\n fldcw [rbp]\n fldz\n fld1\n fdiv st, st(1)\n mov eax, 1\n cpuid\n cli\n sti\n hlt");
FP(stack_overflow, "mov word ptr [rbp], 0x33e\n fldcw [rbp]\n fldz\n fldz\n fldz\n fldz\n fldz\n fldz\n fldz\n fldz\n fldz\n fldz\n cpuid");
FP(mxcsr_unmask, "mov dword ptr [rbp], 0\n ldmxcsr [rbp]\n xorps xmm0, xmm0\n divss xmm1, xmm0\n sqrtps xmm2, [rbp]\n addps xmm0, [rcx]");
FP(mxcsr_bad, "mov dword ptr [rbp], -1\n ldmxcsr [rbp]\n vldmxcsr [rbp]");
FP(mxcsr_denormal, "mov dword ptr [rbp], 0x1e80\n ldmxcsr [rbp]\n mov dword ptr [rbp], 1\n addss xmm0, [rbp]\n cpuid");
FP(fldenv, "mov qword ptr [rbp], 0\n mov qword ptr [rbp + 8], -1\n mov qword ptr [rbp + 16], -1\n fldenv [rbp]\n fld1\n cpuid\n fld1");
FP(frstor, "mov rdi, rbp\n mov ecx, 108\n mov al, 0xff\n rep stosb\n mov word ptr [rbp], 0\n frstor [rbp]\n fld1\n cpuid\n fwait");
FP(fxrstor, "mov rdi, rbp\n mov ecx, 512\n xor eax, eax\n rep stosb\n mov word ptr [rbp + 2], 0x80ff\n fxrstor [rbp]\n cpuid\n fld1\n movaps xmm0, [rbp]");
FP(xrstor, "mov rdi, rbp\n mov ecx, 4096\n mov al, 0xff\n rep stosb\n mov eax, -1\n mov edx, -1\n xrstor [rbp]\n cpuid");
FP(xrstor_empty, "mov rdi, rbp\n mov ecx, 4096\n xor eax, eax\n rep stosb\n mov eax, -1\n mov edx, -1\n xrstor [rbp]\n cpuid\n vaddps zmm0, zmm1, zmm2");
FP(xsetbv_one, "mov eax, 1\n xor edx, edx\n xor ecx, ecx\n xsetbv\n vaddps ymm0, ymm1, [rbp]\n kmovq k1, rax");
FP(xsetbv_all, "mov eax, -1\n mov edx, -1\n xor ecx, ecx\n xsetbv\n vaddps zmm0, zmm1, [rbp]");
FP(ts, "mov rax, cr0\n or rax, 8\n mov cr0, rax\n vaddps zmm0, zmm1, [rbp]");
FP(ts_middle, "movups xmm0, [rbp]\n mov rax, cr0\n or rax, 8\n mov cr0, rax\n movups [rbp], xmm0");
FP(vectors_first, "movups [rbp], xmm0\n movups [rbp + 16], xmm15\n vmovdqu64 [rbp + 64], zmm31\n kmovq rax, k7\n mov [rbp + 128], rax");
FP(mmx_mix, "movq mm0, [rbp]\n fld1\n paddb mm0, mm1\n cpuid\n emms\n movq [rbp], mm7");
FP(gather_far, "mov rax, -1\n vmovq xmm0, rax\n vpbroadcastq ymm0, xmm0\n vpcmpeqd ymm1, ymm1, ymm1\n vpgatherqq ymm2, [rbp + ymm0*8], ymm1");
FP(gather_host, "vmovq xmm0, r11\n vpcmpeqd xmm1, xmm1, xmm1\n vpgatherqq xmm2, [rbp + xmm0], xmm1\n movups [rbp], xmm2");
FP(scatter_host, "vmovq xmm0, r11\n kxnorw k1, k1, k1\n vpscatterqq [rbp + xmm0]{k1}, xmm2");
FP(gather_wrap, "mov eax, -8\n vmovd xmm0, eax\n vpbroadcastd ymm0, xmm0\n vpcmpeqd ymm1, ymm1, ymm1\n xor edi, edi\n vpgatherdd ymm2, [rdi + ymm0], ymm1");

/* ---- strings ------------------------------------------------------------------------------------------------------------------ */

ASM(rep_huge, "mov rcx, -1\n mov rdi, 0x20000\n rep stosq\n hlt");
ASM(rep_max, "mov rcx, 0x2000000000000000\n mov rdi, 0x20000\n mov rsi, rdi\n rep movsq\n hlt");
ASM(rep_wrap_count, "mov rcx, 0x2000000000000001\n mov rdi, 0x20ff8\n rep stosq\n hlt");
ASM(rep_wrap_top, "mov rcx, 16\n mov rdi, -64\n rep stosq\n hlt");
ASM(rep_backwards, "std\n mov rcx, 64\n mov rdi, 0x20000\n rep stosq\n cld\n hlt");
ASM(rep_backwards_low, "std\n mov rcx, 64\n xor edi, edi\n rep stosb\n cld\n hlt");
ASM(rep_zero, "xor ecx, ecx\n mov rdi, rax\n rep stosq\n mov rsi, rax\n rep movsb\n hlt");
ASM(rep_host, "mov rcx, 8\n mov rdi, rax\n rep stosq\n hlt");
ASM(rep_host_from, "mov rcx, 8\n mov rsi, rax\n mov rdi, 0x20000\n rep movsq\n hlt");
ASM(rep_32, "mov rcx, 0x100000010\n mov rdi, 0xffffffff00020000\n .byte 0x67\n rep stosb\n hlt");
ASM(rep_df_popf, "push 0x402\n popfq\n mov rcx, 64\n mov rdi, 0x20000\n rep stosb\n mov rdi, 0x20010\n rep movsb\n hlt");
ASM(rep_code, "lea rdi, [rip]\n mov ecx, 64\n mov al, 0xf4\n rep stosb\n nop\n hlt");
ASM(rep_tables, "mov edi, 0x100000\n mov ecx, 0x200000\n rep stosb\n hlt");
ASM(xlat_host, "lea rbx, [rax - 0x50]\n xlatb\n mov [0x20000], al\n hlt");
ASM(cmps_host, "mov rsi, rax\n mov rdi, rax\n mov ecx, 8\n repe cmpsb\n hlt");
ASM(outs_host, "mov rsi, rax\n mov ecx, 8\n mov edx, 0xe9\n rep outsb\n hlt");
ASM(ins_host, "mov rdi, rax\n mov ecx, 8\n mov edx, 0x60\n rep insb\n hlt");
ASM(bt_far, "mov rbp, -1\n shr rbp, 1\n bts qword ptr [0x20000], rbp\n btc [0x20000], r11\n hlt");

/* ---- calls and returns ------------------------------------------------------------------------------------------------------------ */

ASM(calls_deep, "mov ecx, 400000\n1: mov rsp, 0x30000\n call 2f\n2: dec ecx\n jnz 1b\n hlt");
ASM(calls_recursive, "mov rsp, 0x30000\n mov ecx, 300000\n1: mov rsp, 0x30000\n dec ecx\n jz 2f\n call 1b\n2: hlt");
ASM(returns_only, "mov ecx, 100000\n lea rax, [rip + 1f]\n1: dec ecx\n jz 2f\n mov rsp, 0x30000\n push rax\n ret\n2: hlt");
ASM(returns_elsewhere, "mov ecx, 1000\n1: call 2f\n nop\n jmp 3f\n2: add qword ptr [rsp], 1\n ret\n3: dec ecx\n jnz 1b\n hlt");
ASM(returns_middle, "mov ecx, 1000\n1: call 2f\n .byte 0x48, 0xb8, 0xf4, 0xf4, 0xf4, 0xf4, 0x90, 0x90, 0x90, 0x90\n dec ecx\n jnz 1b\n hlt\n2: ret");
ASM(returns_swapped, "mov ecx, 10000\n1: call 2f\n dec ecx\n jnz 1b\n hlt\n2: pop rax\n push rax\n mov rdx, rsp\n mov rsp, 0x2f000\n call 3f\n3: mov rsp, rdx\n ret");
ASM(stack_pivot, "mov ecx, 10000\n mov rbp, 0x28000\n1: call 2f\n dec ecx\n jnz 1b\n hlt\n2: xchg rsp, rbp\n push rax\n mov rax, [rbp]\n mov [rsp], rax\n ret 0");
ASM(call_over_code, "lea rsp, [rip + 1f + 8]\n call 1f\n1: nop\n nop\n nop\n nop\n nop\n nop\n nop\n nop\n nop\n hlt");
ASM(indirect_many, "mov ecx, 20000\n lea rbx, [rip + 1f]\n1: lea rax, [rbx + 0x100]\n and ecx, 0xfffffff\n dec ecx\n jz 2f\n mov rax, rbx\n jmp rax\n2: hlt");

/* ---- code that changes ------------------------------------------------------------------------------------------------------------ */

ASM(smc_next, "lea rax, [rip + 1f]\n mov ecx, 1000\n2: mov byte ptr [rax], 0x40\n mov word ptr [rax], 0xc0ff\n1: inc eax\n lea rax, [rip + 1b]\n dec ecx\n jnz 2b\n hlt");
ASM(smc_syscall, "lea rax, [rip + 1f]\n mov ecx, 231\n xchg rax, rcx\n mov edi, 77\n mov word ptr [rcx], 0x050f\n1: nop\n nop\n hlt");
ASM(smc_self, "lea rdi, [rip - 7]\n mov ecx, 64\n1: mov byte ptr [rdi], 0xf4\n inc rdi\n dec ecx\n jnz 1b\n hlt");
ASM(smc_alias_map, "mov rax, [0x100000]\n mov rbx, 0x10000\n mov byte ptr [rbx + 0x40], 0xf4\n jmp . + 0x20\n nop\n nop");
ASM(smc_prefix, "lea rax, [rip + 1f]\n mov ecx, 200\n2: xor byte ptr [rax], 0x21\n1: mov rdx, [rsp]\n dec ecx\n jnz 2b\n hlt");
ASM(smc_crossing, "mov rdi, 0x20ffd\n mov rax, 0x0000000000e8\n mov [rdi], rax\n mov byte ptr [rdi + 5], 0xf4\n mov ecx, 2\n jmp rdi");
ASM(smc_crossing_hot, "mov rdi, 0x20ffe\n mov ebx, 500\n1: mov rax, 0xc3cccccccc05\n mov [rdi], rax\n call rdi\n inc byte ptr [rdi + 2]\n dec ebx\n jnz 1b\n hlt");
ASM(smc_tables, "mov rax, cr3\n mov rbx, [rax]\n mov qword ptr [rax], 0\n mov rcx, [0x20000]\n mov cr3, rax\n mov rcx, [0x20000]\n hlt");
ASM(remap, "mov rcx, [0x20000]\n mov rax, [0x102000]\n and rax, -2\n mov [0x102000], rax\n mov rcx, [0x20008]\n invlpg [0x20000]\n mov rcx, [0x20010]\n hlt");
ASM(paging_off, "mov rax, cr0\n btr rax, 31\n mov cr0, rax\n hlt");
ASM(cr3_garbage, "mov rax, 0xfffffffff000\n mov cr3, rax\n mov rcx, [0x20000]\n hlt");
ASM(cr3_end, "mov rax, 0xfff000\n mov cr3, rax\n mov rcx, [0x20000]\n hlt");
ASM(la57, "mov rax, cr4\n or rax, 0x1000\n mov cr4, rax\n hlt");
ASM(msr_lstar, "mov ecx, 0xc0000082\n mov rax, r14\n mov rdx, r14\n shr rdx, 32\n wrmsr\n mov ecx, 0xc0000080\n rdmsr\n or eax, 1\n wrmsr\n syscall\n hlt");
ASM(idt_host, "push r14\n push r14\n lidt [rsp]\n int3\n hlt");
ASM(tss_host, "mov [0x4004], r12\n mov [0x4024], r12\n ud2");
ASM(debug_regs, "mov dr0, rax\n mov dr1, rcx\n mov eax, 0x000f0fff\n mov dr7, rax\n mov [rsp], rbx\n mov rbx, [0x20000]\n hlt");
ASM(trap_flag, "pushfq\n or qword ptr [rsp], 0x100\n popfq\n mov rax, [0x20000]\n hlt");
ASM(align_check, "mov rax, cr0\n bts rax, 18\n mov cr0, rax\n pushfq\n bts qword ptr [rsp], 18\n popfq\n mov rax, [0x20001]\n hlt");

#define NAMES(X) \
	X(to_cache) X(to_exit) X(to_exit_call) X(to_libc) X(to_heap) X(to_cache_mem) X(to_exit_iret) X(to_exit_far) X(ret_stack) X(ret_stack_push) \
	X(host_stack) X(host_stack_frame) X(wrap_load) X(wrap_store) X(wrap_vector) X(wrap_push) X(wrap_push0) X(wrap_disp) X(wrap_index) X(wrap_scale) \
	X(noncanonical_load) X(noncanonical_store) X(noncanonical_low) X(noncanonical_sp) X(noncanonical_sp_call) X(noncanonical_jump) X(noncanonical_ret) \
	X(noncanonical_call) X(noncanonical_string) X(noncanonical_fs) X(stack_odd) X(stack_page) X(enter_deep) X(fs_host) X(gs_host) X(gs_context) X(gs_table) \
	X(gs_swap) X(gs_minus) X(fs_null) X(gs_negative) X(gs_ctx_abs) X(seg_limits) X(ldt_gs) X(compat) X(stac_host) \
	X(fp_unmask_x87) X(fp_pending_exit) X(fp_pending_cpuid) X(fp_stack_overflow) X(fp_mxcsr_unmask) X(fp_mxcsr_bad) X(fp_mxcsr_denormal) X(fp_fldenv) \
	X(fp_frstor) X(fp_fxrstor) X(fp_xrstor) X(fp_xrstor_empty) X(fp_xsetbv_one) X(fp_xsetbv_all) X(fp_ts) X(fp_ts_middle) X(fp_vectors_first) X(fp_mmx_mix) \
	X(fp_gather_far) X(fp_gather_host) X(fp_scatter_host) X(fp_gather_wrap) \
	X(rep_huge) X(rep_max) X(rep_wrap_count) X(rep_wrap_top) X(rep_backwards) X(rep_backwards_low) X(rep_zero) X(rep_host) X(rep_host_from) X(rep_32) \
	X(rep_df_popf) X(rep_code) X(rep_tables) X(xlat_host) X(cmps_host) X(outs_host) X(ins_host) X(bt_far) \
	X(calls_deep) X(calls_recursive) X(returns_only) X(returns_elsewhere) X(returns_middle) X(returns_swapped) X(stack_pivot) X(call_over_code) X(indirect_many) \
	X(smc_next) X(smc_syscall) X(smc_self) X(smc_alias_map) X(smc_prefix) X(smc_crossing) X(smc_crossing_hot) X(smc_tables) X(remap) X(paging_off) \
	X(cr3_garbage) X(cr3_end) X(la57) X(msr_lstar) X(idt_host) X(tss_host) X(debug_regs) X(trap_flag) X(align_check) \
	X(hidden_syscall) X(hidden_sysenter) X(hidden_int80) X(hidden_int3) X(hidden_wrpkru) X(hidden_wrgsbase) X(hidden_wrfsbase) X(hidden_rdgsbase) \
	X(hidden_rdfsbase) X(hidden_swapgs) X(hidden_movgs) X(hidden_movfs) X(hidden_movss) X(hidden_popgs) X(hidden_lgs) X(hidden_xsave) X(hidden_xrstor) \
	X(hidden_fxsave) X(hidden_clzero) X(hidden_monitor) X(hidden_vmcall) X(hidden_xbegin) X(hidden_maskmovdqu) X(hidden_retf) X(hidden_iret) \
	X(hidden_jmpfar) X(hidden_callfar) X(hidden_in) X(hidden_out) X(hidden_popf) X(hidden_std) X(hidden_enter) X(hidden_invlpg) X(hidden_rdpmc) \
	X(hidden_rdmsr) X(hidden_wrmsr) X(hidden_movcr3) X(hidden_lidt) X(hidden_enqcmd) X(hidden_movdir64b) X(hidden_tileload) X(hidden_gather) \
	X(hidden_senduipi) X(hidden_xsetbv) X(hidden_ldmxcsr) X(hidden_ud2) X(hidden_prefixes) X(hidden_gs_load) X(hidden_gs_store) X(hidden_gs_table) \
	X(hidden_rip_load) X(hidden_pop_rsp) X(hidden_xchg_rsp)

void hostile_all(void)
{
	hostile_up();
	static const struct { const char *name; const u8 *at, *end; } all[] = {
#define X(name) { #name, asm_##name, asm_##name##_end },
		NAMES(X)
#undef X
	};
	char name[64];
	for (unsigned n = 0; n < ARRAY_LEN(all); n++)
		for (unsigned cpl = 0; cpl <= 3; cpl += 3) {
			snprintf(name, sizeof(name), "%s at CPL %u", all[n].name, cpl);
			hostile_run(name, cpl, all[n].at, (size_t)(all[n].end - all[n].at));
		}
	hostile_down();
}

/* ---- random code ------------------------------------------------------------------------------------------------------------------------ */

static u64 seed = 0x123456789abcdef1;
static u64 rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

/* Pages of random bytes, with jumps that often lead into them again. */
void hostile_random(unsigned pages)
{
	hostile_up();
	char name[64];
	static u8 code[4096];
	for (unsigned n = 0; n < pages; n++) {
		u64 from = seed;
		for (unsigned k = 0; k < sizeof(code); k += 8) {
			u64 v = rnd();
			memcpy(code + k, &v, 8);
		}
		/* Prefixes and opcodes that matter come more often. */
		static const u8 often[] = { 0x65, 0x67, 0x48, 0x49, 0x4c, 0x0f, 0xf3, 0xc4, 0xc5, 0x62, 0x8b, 0x89, 0xff, 0xe8, 0xc3, 0x66 };
		for (unsigned k = 0; k < 1500; k++)
			code[rnd() & 4095] = often[rnd() & 15];
		hostile_fresh(n & 1 ? 3 : 0);
		rig_code(CODE, code, sizeof(code));
		/* Every exception begins again somewhere in the page: in 64-bit, 32-bit or 16-bit code. */
		static const u16 selectors[] = { 8, 0x18, 0x20 };
		u8 again[] = { 0x31, 0xc0, 0x8a, 0x05, 16, 0, 0, 0, 0xfe, 0x05, 10, 0, 0, 0, 0xbc, 0, 0, 3, 0, 0xc1, 0xe0, 4, 0xeb, 1, 0, 0x05, 0, 0, 1, 0,
			       0x6a, (u8)selectors[n % 3], 0x50, 0x48, 0xcb };
		again[4] = 24 - 8; /* the counter: byte 24 */
		again[10] = 24 - 14;
		rig_code(HANDLER, again, sizeof(again));
		st64(r.mem.ram + GDT + 0x18, 0x00cf9b000000ffff);
		st64(r.mem.ram + GDT + 0x20, 0x000f9b000000ffff);
		hostile_go();
		snprintf(name, sizeof(name), "random bytes, seed %#lx", (unsigned long)from);
		hostile_check(name);
	}
	hostile_down();
}
