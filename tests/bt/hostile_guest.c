/* A hypervisor around a hostile program, as small as there can be one: the program is its guest, by AMD-V with nested
 * paging or by VT-x with EPT. Guest-physical memory is memory, and what lies beyond RAM is there as without it, but for
 * the 2 MiB in which the hypervisor itself is. It takes exceptions and gives them back, carries out what VT-x cannot let
 * through (CPUID, XSETBV), and halts at any other exit, as the program's handlers would.
 *
 * Its state is in registers and in that memory; general registers are the guest's on the way in. AMD APM vol. 2
 * chapter 15, Intel SDM vol. 3 chapters 24 to 27. */
#include "cpu/svm.h"
#include "cpu/vmx.h"
enum {
#define VMCS(name, encoding) AT_##name = encoding,
#include "cpu/vmcs.def"
#undef VMCS
};
#include "hostile.h"

/* Addresses in the code below are these. */
enum { L1 = 0x800000, L1_CODE = L1, L1_EXIT = L1 + 0x800, L1_STACK = L1 + 0x2000, L1_EXITS = L1 + 0x2000, L1_REASON = L1 + 0x2008, L1_REGIONS = L1 + 0x2010,
       VMCB = L1 + 0x3000, VMXON = VMCB, VMCS_AT = L1 + 0x4000, BITMAPS = L1 + 0x5000, HSAVE = L1 + 0x9000, L1_PML4 = L1 + 0xa000,
       SECOND = L1 + 0xc000 /* its root */, FIELDS = L1 + 0x10000, L1_SIZE = 0x12000 };
/* Exceptions that come with nothing but their vector, or an error code: of an instruction that did not execute. */
enum { TAKEN = 0xb7c41 };

ASM(l1_svm, "push rcx\n push rdx\n mov ecx, 0xc0010117\n mov eax, 0x809000\n xor edx, edx\n wrmsr\n pop rdx\n pop rcx\n"
	 "1: mov eax, 0x803000\n vmrun rax\n push rbx\n push rcx\n inc dword ptr [0x802000]\n"
	 "mov rbx, [0x803070]\n mov [0x802008], rbx\n sub rbx, 0x40\n cmp rbx, 31\n ja 2f\n"
	 "cmp dword ptr [0x803088], 0\n js 2f\n" /* while another was delivered */
	 "mov ecx, 0x80000300\n or ecx, ebx\n mov eax, 0x27c00\n bt eax, ebx\n jnc 3f\n or ecx, 0x800\n"
	 "3: mov [0x8030a8], ecx\n mov ecx, [0x803078]\n mov [0x8030ac], ecx\n"
	 "cmp ebx, 14\n jne 4f\n mov rcx, [0x803080]\n mov [0x803640], rcx\n"
	 "4: pop rcx\n pop rbx\n jmp 1b\n"
	 "2: hlt\n jmp 2b");

ASM(l1_vmx, "push rax\n push rcx\n push rdx\n push rsi\n mov ecx, 0x3a\n mov eax, 5\n xor edx, edx\n wrmsr\n"
	 "vmxon [0x802010]\n vmclear [0x802018]\n vmptrld [0x802018]\n mov esi, 0x810000\n"
	 "1: mov rax, [rsi]\n cmp rax, -1\n je 3f\n mov rdx, [rsi + 8]\n vmwrite rax, rdx\n jbe 2f\n add rsi, 16\n jmp 1b\n"
	 "3: pop rsi\n pop rdx\n pop rcx\n pop rax\n vmlaunch\n"
	 "2: hlt\n jmp 2b");
ASM(l1_vmx_exit, "push rax\n push rbx\n push rcx\n push rdx\n inc dword ptr [0x802000]\n"
	      "mov eax, 0x4402\n vmread rbx, rax\n mov [0x802008], rbx\n"
	      "test ebx, ebx\n jz 4f\n cmp ebx, 10\n je 5f\n cmp ebx, 55\n je 6f\n"
	      "2: hlt\n jmp 2b\n"
	      "4: mov eax, 0x4408\n vmread rbx, rax\n test ebx, ebx\n js 2b\n"
	      "mov eax, 0x4404\n vmread rbx, rax\n and ebx, 0x80000fff\n mov eax, 0x4016\n vmwrite rax, rbx\n"
	      "mov eax, 0x4406\n vmread rcx, rax\n mov eax, 0x4018\n vmwrite rax, rcx\n"
	      "cmp bl, 14\n jne 7f\n mov eax, 0x6400\n vmread rcx, rax\n mov cr2, rcx\n"
	      "7: pop rdx\n pop rcx\n pop rbx\n pop rax\n vmresume\n jmp 2b\n"
	      "5: mov eax, [rsp + 24]\n mov ecx, [rsp + 8]\n cpuid\n mov [rsp + 24], rax\n mov [rsp + 16], rbx\n mov [rsp + 8], rcx\n mov [rsp], rdx\n jmp 8f\n"
	      "6: mov eax, [rsp + 24]\n mov ecx, [rsp + 8]\n mov edx, [rsp]\n xsetbv\n"
	      "8: mov eax, 0x440c\n vmread rbx, rax\n mov eax, 0x681e\n vmread rcx, rax\n add rcx, rbx\n vmwrite rax, rcx\n jmp 7b");

static u8 *at(u64 phys) { return r.mem.ram + phys; }

/* Each page of 512 GiB to itself but the hypervisor's; bits: of an entry, large: of one for a large page. */
static void second_level(u64 bits, u64 large)
{
	st64(at(SECOND), (SECOND + 0x1000) | bits);
	for (u64 k = 0; k < 512; k++) {
		st64(at(SECOND + 0x1000 + 8 * k), k ? k << 30 | bits | large : (SECOND + 0x2000) | bits);
		st64(at(SECOND + 0x2000 + 8 * k), k == L1 >> 21 ? 0 : k << 21 | bits | large);
	}
}

/* ---- the guest: what the processor's state is now -------------------------------------------------------- */

static void svm_guest(void)
{
	const struct cpu *c = r.c;
	u8 *v = at(VMCB);
	st32(v + VMCB_INTERCEPTS + 8, TAKEN);
	st32(v + VMCB_INTERCEPTS + 12, 1u << 31);  /* shutdown */
	st32(v + VMCB_INTERCEPTS + 16, 0x7f);      /* VMRUN and its like */
	st64(v + VMCB_IOPM, BITMAPS);
	st64(v + VMCB_MSRPM, BITMAPS);
	st32(v + VMCB_ASID, 1);
	st64(v + VMCB_NP_ENABLE, 1);
	st64(v + VMCB_NCR3, SECOND);
	static const struct { u16 to; u8 from; } segments[] = {
		{ VMCB_ES, S_ES }, { VMCB_CS, S_CS }, { VMCB_SS, S_SS }, { VMCB_DS, S_DS } }; /* the others are common to both */
	for (unsigned k = 0; k < ARRAY_LEN(segments); k++)
		svm_segment_put(v + segments[k].to, &c->seg[segments[k].from]);
	st32(v + VMCB_GDTR + 4, c->gdtr.limit);
	st64(v + VMCB_GDTR + 8, c->gdtr.base);
	st32(v + VMCB_IDTR + 4, c->idtr.limit);
	st64(v + VMCB_IDTR + 8, c->idtr.base);
	v[VMCB_CPL] = c->cpl;
	st64(v + VMCB_EFER, c->efer | EFER_SVME);
	st64(v + VMCB_CR0, c->cr0);
	st64(v + VMCB_CR3, c->cr3);
	st64(v + VMCB_CR4, c->cr4);
	st64(v + VMCB_DR6, 0xffff0ff0);
	st64(v + VMCB_DR7, 0x400);
	st64(v + VMCB_RFLAGS, c->rflags);
	st64(v + VMCB_RIP, c->rip);
	st64(v + VMCB_RSP, c->regs[R_SP]);
	st64(v + VMCB_RAX, c->regs[R_AX]);
	st64(v + VMCB_PAT, c->msr.pat);
	second_level(0x67, 0x80);
}

static u8 *fields;
static void field(u64 encoding, u64 v)
{
	st64(fields, encoding);
	st64(fields + 8, v);
	st64(fields + 16, ~0ull);
	fields += 16;
}
#define FIELD(name, v) field(AT_##name, v)

static void vmx_controls(void)
{
	struct cpu *c = r.c;
	FIELD(PIN_CONTROLS, vmx_allowed_pin(c).zero);
	FIELD(PROC_CONTROLS, vmx_allowed_proc(c).zero | PROC_SECONDARY | PROC_MSR_BITMAPS);
	FIELD(PROC2_CONTROLS, PROC2_EPT | PROC2_UNRESTRICTED | PROC2_VPID | ((PROC2_RDTSCP | PROC2_INVPCID | PROC2_XSAVES) & vmx_allowed_proc2(c).one));
	FIELD(EXIT_CONTROLS, vmx_allowed_exit(c).zero | EXIT_HOST64 | EXIT_SAVE_EFER | EXIT_LOAD_EFER);
	FIELD(ENTRY_CONTROLS, vmx_allowed_entry(c).zero | ENTRY_IA32E | ENTRY_LOAD_EFER);
	FIELD(EXCEPTION_BITMAP, TAKEN);
	FIELD(MSR_BITMAP, BITMAPS);
	FIELD(VPID, 1);
	FIELD(EPTP, SECOND | 3 << 3 | 6); /* 4 levels, write-back */
	FIELD(LINK_POINTER, VMCS_NONE);
	second_level(7, 0x80 | 6 << 3);
}

static void vmx_guest(void)
{
	const struct cpu *c = r.c;
	static const u8 segments[] = { S_ES, S_CS, S_SS, S_DS, S_FS, S_GS, S_LDTR, S_TR };
	for (unsigned k = 0; k < ARRAY_LEN(segments); k++) {
		const struct segment *s = &c->seg[segments[k]];
		field(AT_GUEST_ES_SEL + 2 * k, s->sel);
		field(AT_GUEST_ES_BASE + 2 * k, s->base);
		field(AT_GUEST_ES_LIMIT + 2 * k, s->limit);
		field(AT_GUEST_ES_AR + 2 * k, s->attr);
	}
	FIELD(GUEST_GDTR_BASE, c->gdtr.base);
	FIELD(GUEST_GDTR_LIMIT, c->gdtr.limit);
	FIELD(GUEST_IDTR_BASE, c->idtr.base);
	FIELD(GUEST_IDTR_LIMIT, c->idtr.limit);
	FIELD(GUEST_CR0, c->cr0 | CR0_NE);
	FIELD(GUEST_CR3, c->cr3);
	FIELD(GUEST_CR4, c->cr4 | CR4_VMXE);
	FIELD(GUEST_EFER, c->efer);
	FIELD(GUEST_DR7, 0x400);
	FIELD(GUEST_RFLAGS, c->rflags);
	FIELD(GUEST_RIP, c->rip);
	FIELD(GUEST_RSP, c->regs[R_SP]);
}

static void vmx_host(void)
{
	const struct cpu *c = r.c;
	FIELD(HOST_CS_SEL, 8);
	FIELD(HOST_SS_SEL, 16);
	FIELD(HOST_TR_SEL, c->seg[S_TR].sel);
	FIELD(HOST_TR_BASE, c->seg[S_TR].base);
	FIELD(HOST_GDTR_BASE, c->gdtr.base);
	FIELD(HOST_IDTR_BASE, c->idtr.base);
	FIELD(HOST_CR0, c->cr0 | CR0_NE);
	FIELD(HOST_CR3, L1_PML4);
	FIELD(HOST_CR4, c->cr4 | CR4_VMXE);
	FIELD(HOST_EFER, c->efer);
	FIELD(HOST_RIP, L1_EXIT);
	FIELD(HOST_RSP, L1_STACK);
}

/* ---- the host ------------------------------------------------------------------------------------------------ */

static void load(enum hostile_host host)
{
	rig_clear(L1, L1_SIZE);
	if (host == HOST_SVM) {
		svm_guest();
		rig_code(L1_CODE, asm_l1_svm, ASM_SIZE(l1_svm));
	} else {
		fields = at(FIELDS);
		vmx_controls();
		vmx_guest();
		vmx_host();
		rig_code(L1_CODE, asm_l1_vmx, ASM_SIZE(l1_vmx));
		rig_code(L1_EXIT, asm_l1_vmx_exit, ASM_SIZE(l1_vmx_exit));
		st64(at(L1_REGIONS), VMXON);
		st64(at(L1_REGIONS + 8), VMCS_AT);
		st32(at(VMXON), VMCS_REVISION);
		st32(at(VMCS_AT), VMCS_REVISION);
	}
	st64(at(L1_PML4), (L1_PML4 + 0x1000) | 3);
	st64(at(L1_PML4 + 0x1000), 0xe3); /* 1 GiB */
}

void hostile_guest_begin(enum hostile_host host)
{
	struct cpu *c = r.c;
	load(host);
	c->seg[S_CS] = (struct segment){ .sel = 8, .limit = 0xffffffff, .attr = 0xa09b };
	for (unsigned k = S_ES; k <= S_GS; k++)
		if (k != S_CS && (host == HOST_VMX || k <= S_DS))
			c->seg[k] = (struct segment){ .sel = 16, .limit = 0xffffffff, .attr = 0xc093 };
	c->cpl = 0;
	c->cr3 = L1_PML4;
	c->cr0 |= CR0_NE;
	c->cr4 |= host == HOST_VMX ? CR4_VMXE : 0;
	c->efer |= host == HOST_SVM ? EFER_SVME : 0;
	c->rflags = 2;
	c->rip = L1_CODE;
	c->regs[R_SP] = L1_STACK;
	mmu_flush_all(c);
	cpu_update_mode(c);
	cpu_update_fpu(c);
}

void hostile_guest_check(enum hostile_host host)
{
	/* The program runs, or has run. */
	bool was = r.c->nested.mode || ld32(at(L1_EXITS));
	bool refused = ld32(at(L1_EXITS)) == 1 && (host == HOST_SVM ? ld64(at(L1_REASON)) == SVM_EXIT_INVALID : ld64(at(L1_REASON)) & EXIT_ENTRY_FAILED);
	if (!was || refused)
		fail_msg("the guest was not entered: %u exits, the last for %#lx, at %#lx", ld32(at(L1_EXITS)), (unsigned long)ld64(at(L1_REASON)), (unsigned long)r.c->rip);
}
