/* AMD-V: who may use it, what VMRUN refuses, every intercept of an instruction with what it tells, both ways;
 * time, pause filter, last branches, VMLOAD and VMSAVE, SKINIT. AMD APM vol. 2 15.4 to 15.9, 15.23, 15.27,
 * 15.30 to 15.33, appendix C. */
#include "lib/svm.h"

const char guest_name[] = "svm";

/* ---- who may ------------------------------------------------------------------------------ */

SNIP(nothing, "nop");
extern const u8 user_vmmcall[];
__asm__(".pushsection .text\n.globl user_vmmcall\nuser_vmmcall:\nvmmcall\nint $0x80\n.popsection");

static void instructions(void)
{
	static struct vmcb other __attribute__((aligned(4096)));
	static const struct { const char *name; u8 code[4]; } all[] = {
		{ "VMRUN", { 0x0f, 0x01, 0xd8, 0xc3 } }, { "VMMCALL", { 0x0f, 0x01, 0xd9, 0xc3 } }, { "VMLOAD", { 0x0f, 0x01, 0xda, 0xc3 } },
		{ "VMSAVE", { 0x0f, 0x01, 0xdb, 0xc3 } }, { "STGI", { 0x0f, 0x01, 0xdc, 0xc3 } }, { "CLGI", { 0x0f, 0x01, 0xdd, 0xc3 } },
		{ "INVLPGA", { 0x0f, 0x01, 0xdf, 0xc3 } },
	};
	for (unsigned k = 0; k < ARRAY_LEN(all); k++) {
		bool stgi_too = k == 4 && has(0x80000001, 2, 12); /* with SKINIT STGI is there without SVME */
		TRY(__asm__ volatile("call *%1" : : "a"(&other), "r"(all[k].code) : "rcx", "memory"));
		check_trap(fmt("%s without EFER.SVME", all[k].name), stgi_too ? NONE : UD, 0);
	}
	wrmsr(VM_CR, 0x10);
	TRY(wrmsr(EFER, rdmsr(EFER) | EFER_SVME));
	check_trap("EFER.SVME with VM_CR.SVMDIS", GP, 0);
	wrmsr(VM_CR, 0);
	TRY(wrmsr(VM_HSAVE_PA, 0x1001));
	check_trap("VM_HSAVE_PA within a page", GP, 0);
	TRY(wrmsr(VM_HSAVE_PA, 1ull << 60));
	check_trap("VM_HSAVE_PA beyond memory", GP, 0);
	TRY(wrmsr(VM_CR, 0x20));
	check_trap("VM_CR, a reserved bit", GP, 0);
	svm_on();
	check_eq("VM_HSAVE_PA is kept", rdmsr(VM_HSAVE_PA), (uptr)hsave);
	TRY(wrmsr(VM_CR, 0x10));
	check_trap("VM_CR.SVMDIS with EFER.SVME", GP, 0);
	for (unsigned k = 0; k < ARRAY_LEN(all); k++) {
		if (k == 1)
			continue;
		u8 *p = user_stack;
		memcpy(p, all[k].code, 3);
		p[3] = 0xcd, p[4] = 0x80;
		check_eq(fmt("%s at CPL 3", all[k].name), (u64)user(p), GP);
	}
	check_eq("VMMCALL at CPL 3", (u64)user(user_vmmcall), UD);
	TRY(__asm__ volatile("vmmcall"));
	check_trap("VMMCALL of no guest", UD, 0);
	TRY(__asm__ volatile("vmrun" : : "a"((uptr)&other + 8)));
	check_trap("VMRUN, not at a page", GP, 0);
	TRY(__asm__ volatile("vmload" : : "a"(1ull << 60)));
	check_trap("VMLOAD beyond memory", GP, 0);
	TRY(__asm__ volatile("vmsave" : : "a"((uptr)&other + 0x800)));
	check_trap("VMSAVE, not at a page", GP, 0);
	u32 r[4];
	cpuid(0x8000000a, 0, r);
	check("CPUID: revision, ASIDs", r[0] == 1 && r[1] > 8);
}

/* ---- what VMRUN refuses ------------------------------------------------------------------------- */

static void refused(const char *name)
{
	vmcb.rip = (uptr)nothing;
	u64 code = vmrun_once();
	stgi();
	check_eq(fmt("refused: %s", name), code, X_INVALID);
	vmcb_init();
}

static void taken(const char *name)
{
	check_eq(fmt("taken: %s", name), run_at(nothing), X_VMMCALL);
	vmcb_init();
}

static void checks(void)
{
	vmcb_init();
	taken("a VMCB like ourselves");
	vmcb.efer &= ~(u64)EFER_SVME, refused("EFER.SVME clear");
	vmcb.efer |= 1 << 9, refused("EFER bit 9");
	vmcb.efer |= 1ull << 40, refused("EFER bit 40");
	vmcb.cr0 |= 1ull << 32, refused("CR0 bit 32");
	vmcb.cr0 |= 1 << 29, refused("CR0.NW without CD");
	vmcb.cr0 |= 3u << 29, taken("CR0.NW and CD");
	vmcb.cr0 |= 1 << 30, taken("CR0.CD");
	vmcb.cr3 |= 1ull << 60, refused("CR3 beyond memory");
	vmcb.cr4 |= 1 << 15, refused("CR4 bit 15");
	vmcb.cr4 |= 1ull << 33, refused("CR4 bit 33");
	vmcb.dr6 |= 1ull << 32, refused("DR6 bit 32");
	vmcb.dr7 |= 1ull << 32, refused("DR7 bit 32");
	vmcb.cr4 &= ~0x20ull, refused("long mode without PAE");
	vmcb.cr0 &= ~1ull, refused("long mode without PE");
	vmcb.cs.attr |= 0x400, refused("CS.L and CS.D in long mode");
	unwant(X_VMRUN), refused("VMRUN not intercepted");
	vmcb.asid = 0, refused("ASID 0");
	vmcb.asid = 2, taken("ASID 2");
	vmcb.msrpm = 1ull << 60, refused("MSR map beyond memory");
	vmcb.iopm = 1ull << 60, refused("I/O map beyond memory");
	vmcb.msrpm |= 0xfff, taken("MSR map, low bits");
	u32 r[4];
	cpuid(0x80000008, 0, r);
	u64 end = 1ull << (r[0] & 0xff);
	vmcb.iopm = end - 3 * 4096, taken("I/O map up to the last address");
	vmcb.iopm = end - 2 * 4096, refused("I/O map across the last address");
	vmcb.msrpm = end - 3 * 4096, taken("MSR map before the last page");
	vmcb.msrpm = end - 2 * 4096, refused("MSR map up to the last address");
	vmcb.eventinj = EVENT(EV_EXCEPTION, 2), refused("an exception with vector 2");
	vmcb.eventinj = EVENT(EV_EXCEPTION, 32), refused("an exception with vector 32");
	vmcb.eventinj = EVENT(1, 3), refused("an event of type 1");
	vmcb.eventinj = EVENT(5, 3), refused("an event of type 5");
	vmcb.eventinj = EVENT(5, 3) & 0x7fffffff, taken("an event that is not valid");
	vmcb.np = 1, vmcb.ncr3 = 1ull << 60, refused("nCR3 beyond memory");
	vmcb.np = 1, vmcb.ncr3 = read_cr3(), taken("nested paging");
	vmcb.np = 1, vmcb.ncr3 = read_cr3(), vmcb.pat = 2, refused("PAT with a reserved type");
	vmcb.fs.base = 0x800000000000, taken("FS.base that is not canonical: VMRUN does not load it");
	vmcb.idtr.base = 0x800000000000, taken("IDTR.base that is not canonical");
	/* Nothing of ours has changed. */
	check_eq("CR3 stays", read_cr3(), vmcb.cr3);
}

/* ---- intercepts of instructions ----------------------------------------------------------------- */

/* n: bytes; info1; without: how it ends where it is not wanted. */
u64 nested_desc[2];
#define INSNS(X) \
	X(cpuid, "cpuid", X_CPUID, 2, 0, X_VMMCALL) \
	X(rdtsc, "rdtsc", X_RDTSC, 2, 0, X_VMMCALL) \
	X(rdtscp, "rdtscp", X_RDTSCP, 3, 0, X_VMMCALL) \
	X(rdpmc, "rdpmc", X_RDPMC, 2, 0, X_EXCEPTION + GP) \
	X(pushf, "pushf; pop %rax", X_PUSHF, 1, 0, X_VMMCALL) \
	X(popf, "popf", X_POPF, 1, 0, X_VMMCALL) \
	X(invd, "invd", X_INVD, 2, 0, X_VMMCALL) \
	X(wbinvd, "wbinvd", X_WBINVD, 2, 0, X_VMMCALL) \
	X(pause, "pause", X_PAUSE, 2, 0, X_VMMCALL) \
	X(hlt, "hlt", X_HLT, 1, 0, 0) \
	X(invlpg, "invlpg 0x123456", X_INVLPG, 8, 0x123456, X_VMMCALL) \
	X(invlpga, ".byte 0x0f,0x01,0xdf", X_INVLPGA, 3, 0, X_VMMCALL) \
	X(in8, "in $0x80,%al", X_IOIO, 2, 0x800211, X_VMMCALL) \
	X(out32, "out %eax,$0x80", X_IOIO, 2, 0x800240, X_VMMCALL) \
	X(in16, "mov $0x80,%edx; .globl insn_in16_at; insn_in16_at: in %dx,%ax", X_IOIO, 2, 0x800221, X_VMMCALL) \
	X(rdmsr, "mov $0x10,%ecx; .globl insn_rdmsr_at; insn_rdmsr_at: rdmsr", X_MSR, 2, 0, X_VMMCALL) \
	X(wrmsr, "mov $0xc0000103,%ecx; .globl insn_wrmsr_at; insn_wrmsr_at: wrmsr", X_MSR, 2, 1, X_VMMCALL) \
	X(int80, "int $0x42", X_INTN, 2, 0x42, 0) \
	X(icebp, ".byte 0xf1", X_ICEBP, 1, 0, 0) \
	X(iret, "iretq", X_IRET, 2, 0, 0) \
	X(monitor, "lea nested_rbx,%rax; xor %ecx,%ecx; xor %edx,%edx; .globl insn_monitor_at; insn_monitor_at: monitor", X_MONITOR, 3, 0, X_VMMCALL) \
	X(mwait, "xor %ecx,%ecx; .globl insn_mwait_at; insn_mwait_at: mwait", X_MWAIT, 3, 0, X_VMMCALL) \
	X(sidt, "sidt nested_idt", X_IDTR_READ, 8, 0, X_VMMCALL) \
	X(sgdt, "sgdt nested_idt", X_GDTR_READ, 8, 0, X_VMMCALL) \
	X(sldt, "sldt %eax", X_LDTR_READ, 3, 0, X_VMMCALL) \
	X(str, "str %eax", X_TR_READ, 3, 0, X_VMMCALL) \
	X(lidt, "sidt nested_idt; .globl insn_lidt_at; insn_lidt_at: lidt nested_idt", X_IDTR_WRITE, 8, 0, X_VMMCALL) \
	X(lgdt, "sgdt nested_idt; .globl insn_lgdt_at; insn_lgdt_at: lgdt nested_idt", X_GDTR_WRITE, 8, 0, X_VMMCALL) \
	X(lldt, "xor %eax,%eax; .globl insn_lldt_at; insn_lldt_at: lldt %ax", X_LDTR_WRITE, 3, 0, X_VMMCALL) \
	X(ltr, "xor %eax,%eax; .globl insn_ltr_at; insn_ltr_at: ltr %ax", X_TR_WRITE, 3, 0, X_EXCEPTION + GP) \
	X(mov_cr0_r, "mov %cr0,%rbx", 0x00, 3, 1ull << 63 | 3, X_VMMCALL) \
	X(mov_cr3_r, "mov %cr3,%r9", 0x03, 4, 1ull << 63 | 9, X_VMMCALL) \
	X(mov_cr4_r, "mov %cr4,%rax", 0x04, 3, 1ull << 63, X_VMMCALL) \
	X(mov_cr8_r, "mov %cr8,%rax", 0x08, 4, 1ull << 63, X_VMMCALL) \
	X(smsw, "smsw %eax", 0x00, 3, 0, X_VMMCALL) \
	X(mov_cr0_w, "mov %cr0,%rsi; .globl insn_mov_cr0_w_at; insn_mov_cr0_w_at: mov %rsi,%cr0", 0x10, 3, 1ull << 63 | 6, X_VMMCALL) \
	X(mov_cr2_w, "mov %rax,%cr2", 0x12, 3, 1ull << 63, X_VMMCALL) \
	X(mov_cr3_w, "mov %cr3,%rdi; .globl insn_mov_cr3_w_at; insn_mov_cr3_w_at: mov %rdi,%cr3", 0x13, 3, 1ull << 63 | 7, X_VMMCALL) \
	X(mov_cr4_w, "mov %cr4,%rax; .globl insn_mov_cr4_w_at; insn_mov_cr4_w_at: mov %rax,%cr4", 0x14, 3, 1ull << 63, X_VMMCALL) \
	X(mov_cr8_w, "xor %eax,%eax; .globl insn_mov_cr8_w_at; insn_mov_cr8_w_at: mov %rax,%cr8", 0x18, 4, 1ull << 63, X_VMMCALL) \
	X(clts, "clts", 0x10, 2, 0, X_VMMCALL) \
	X(lmsw, "smsw %eax; .globl insn_lmsw_at; insn_lmsw_at: lmsw %ax", 0x10, 3, 0, X_VMMCALL) \
	X(cr0_sel, "mov %cr0,%rax; bts $18,%rax; .globl insn_cr0_sel_at; insn_cr0_sel_at: mov %rax,%cr0", X_CR0_SEL, 3, 1ull << 63, X_VMMCALL) \
	X(mov_dr3_r, "mov %dr3,%rbp", 0x23, 3, 5, X_VMMCALL) \
	X(mov_dr7_w, "mov $0x400,%ecx; .globl insn_mov_dr7_w_at; insn_mov_dr7_w_at: mov %rcx,%dr7", 0x37, 3, 1, X_VMMCALL) \
	X(vmload, "lea vmcb_spare,%rax; .globl insn_vmload_at; insn_vmload_at: vmload", X_VMLOAD, 3, 0, 0) \
	X(vmsave, "lea vmcb_spare,%rax; .globl insn_vmsave_at; insn_vmsave_at: vmsave", X_VMSAVE, 3, 0, X_VMMCALL) \
	X(vmrun, "lea vmcb_spare,%rax; .globl insn_vmrun_at; insn_vmrun_at: vmrun", X_VMRUN, 3, 0, 0) \
	X(stgi, "stgi", X_STGI, 3, 0, X_VMMCALL) \
	X(clgi, "clgi", X_CLGI, 3, 0, X_VMMCALL) \
	X(skinit, ".byte 0x0f,0x01,0xde", X_SKINIT, 3, 0, 0) \
	X(rsm, "rsm", X_RSM, 2, 0, X_EXCEPTION + UD) \
	X(invpcid, "xor %eax,%eax; .globl insn_invpcid_at; insn_invpcid_at: invpcid nested_desc,%rax", X_INVPCID, 10, (uptr)nested_desc, X_VMMCALL)

u8 nested_idt[16], vmcb_spare[4096] __attribute__((aligned(4096)));
#define SNIPPET(name, text, code, n, info1, without) \
	SNIP(insn_##name, text); \
	extern const u8 insn_##name##_at[] __attribute__((weak));
INSNS(SNIPPET)
static const struct insn { const char *name; const u8 *from, *at; u32 code; u8 n; u64 info1; u32 without; } insns[] = {
#define ROW(name, text, code, n, info1, without) { #name, insn_##name, insn_##name##_at, code, n, info1, without },
	INSNS(ROW)
};

static void intercepts(void)
{
	for (unsigned k = 0; k < ARRAY_LEN(insns); k++) {
		const struct insn *i = &insns[k];
		const u8 *at = i->at ? i->at : i->from;
		vmcb_init();
		vmcb.icpt[2] = ~0u;
		vmcb.rax = 0;
		want(i->code);
		memset(iopm, 0xff, sizeof(iopm));
		memset(msrpm, 0xff, sizeof(msrpm));
		vmcb.rip = (uptr)i->from;
		*(u64 *)(nested_stack + sizeof(nested_stack) - 8) = 2; /* for POPF */
		vmcb.rsp = (uptr)nested_stack + sizeof(nested_stack) - 8;
		vmrun_once();
		stgi();
		check_eq(fmt("%s: exit code", i->name), vmcb.exitcode, i->code);
		check_eq(fmt("%s: RIP", i->name), vmcb.rip, (uptr)at);
		check_eq(fmt("%s: the next RIP", i->name), vmcb.nrip, (uptr)at + i->n);
		check_eq(fmt("%s: EXITINFO1", i->name), vmcb.info1, i->info1);
		check_eq(fmt("%s: EXITINTINFO", i->name), vmcb.exitintinfo, 0);
		if (i->code == X_IOIO)
			check_eq(fmt("%s: EXITINFO2", i->name), vmcb.info2, (uptr)at + i->n);
		if (!i->without)
			continue;
		unwant(i->code);
		vmcb.rsp = (uptr)nested_stack + sizeof(nested_stack) - 8;
		vmcb.rip = (uptr)i->from;
		vmcb.rax = 0;
		vmrun_once();
		stgi();
		check_eq(fmt("%s: not wanted", i->name), vmcb.exitcode, i->without);
	}
	memset(iopm, 0, sizeof(iopm));
	memset(msrpm, 0, sizeof(msrpm));
}

SNIP(user_hlt, "hlt");
SNIP(mwait_armed, "lea nested_rbx,%rax; xor %ecx,%ecx; xor %edx,%edx; monitor; mwait");
SNIP(cr0_mp, "mov %cr0,%rax; btc $1,%rax; mov %rax,%cr0");
SNIP(msr_beyond, "mov $0x4000,%ecx; rdmsr");
SNIP(in_two, "mov $0x81,%edx; in %dx,%ax");
SNIP(in_across, "mov $0x87,%edx; in %dx,%ax");
extern const u8 cpuid32[];
__asm__(".pushsection .text\n.code32\n.globl cpuid32\ncpuid32: cpuid; hlt\n.code64\n.popsection");
SNIP(rep_outs, "mov $0x80,%edx; mov $3,%ecx; lea nested_idt,%rsi; rep outsb %fs:(%rsi),%dx");

static void details(void)
{
	/* Privilege before the intercept. */
	vmcb_init();
	want(X_HLT);
	vmcb.icpt[2] = ~0u;
	vmcb.cpl = 3;
	vmcb.cs = vmcb_flat(UCODE, 0xafb);
	vmcb.ss = vmcb_flat(UDATA, 0xcf3);
	check_eq("HLT at CPL 3: #GP first", run_at(user_hlt), X_EXCEPTION + GP);
	vmcb_init();
	want(X_MWAIT_ARMED);
	check_eq("MWAIT, armed", run_at(mwait_armed), X_MWAIT_ARMED);
	vmcb_init();
	want(X_MWAIT_ARMED);
	check_eq("MWAIT, not armed", run_at(insn_mwait), X_VMMCALL);
	vmcb_init();
	want(X_CR0_SEL);
	check_eq("CR0.MP is none of the selective intercept's", run_at(cr0_mp), X_VMMCALL);
	vmcb_init();
	want(X_CR0_SEL);
	check_eq("LMSW is", run_at(insn_lmsw), X_CR0_SEL);
	vmcb_init();
	want(X_CR0_SEL);
	check_eq("CLTS is not", run_at(insn_clts), X_VMMCALL);
	/* Bitmaps. */
	vmcb_init();
	want(X_MSR);
	check_eq("an MSR whose bit is clear", run_at(insn_rdmsr), X_VMMCALL);
	check_eq("an MSR beyond the map", run_at(msr_beyond), X_MSR);
	msrpm[0x10 / 4] = 2 << 0x10 % 4 * 2;
	check_eq("the write bit says nothing of reads", run_at(insn_rdmsr), X_VMMCALL);
	msrpm[0x10 / 4] = 1 << 0x10 % 4 * 2;
	check_eq("the read bit", run_at(insn_rdmsr), X_MSR);
	msrpm[0x10 / 4] = 0;
	vmcb_init();
	want(X_IOIO);
	check_eq("a port whose bit is clear", run_at(in_two), X_VMMCALL);
	iopm[0x82 / 8] = 1 << 0x82 % 8;
	check_eq("the second of two ports", run_at(in_two), X_IOIO);
	iopm[0x82 / 8] = 0;
	iopm[0x88 / 8] = 1;
	check_eq("the second of two ports, in the next byte", run_at(in_across), X_IOIO);
	iopm[0x88 / 8] = 0;
	iopm[0x80 / 8] = 1;
	check_eq("REP OUTSB", run_at(rep_outs), X_IOIO);
	check_eq("REP OUTSB: EXITINFO1", vmcb.info1, 0x800000 | 4 << 10 | 4 << 7 | 1 << 4 | 12);
	check_eq("REP OUTSB: RCX", nested_rcx, 3);
	iopm[0x80 / 8] = 0;
	/* The last instruction of 4 GiB: 32-bit code goes on at 0. */
	vmcb_init();
	want(X_CPUID);
	vmcb.cs = (struct vmcb_seg){ CODE32, 0xc9b, 0xffffffff, (u32)(uptr)cpuid32 + 2 };
	check_eq("CPUID at the end of 32-bit code", run_at((void *)0xfffffffeull), X_CPUID);
	check_eq("CPUID at the end of 32-bit code: the next RIP", vmcb.nrip, 0);
}

/* ---- state that goes both ways ------------------------------------------------------------------------ */

SNIP(change, "mov $0x1234,%eax; mov $0x55,%ebx; mov %rax,%cr2; std; vmmcall");
static void state(void)
{
	vmcb_init();
	vmcb.rax = ~0ull;
	nested_rcx = 0xabcdef;
	u64 cr4 = read_cr4();
	vmcb.cr4 |= 1 << 2; /* TSD */
	check_eq("state: exit", run_at(change), X_VMMCALL);
	check_eq("RAX", vmcb.rax, 0x1234);
	check_eq("RBX", nested_rbx, 0x55);
	check_eq("RCX is kept", nested_rcx, 0xabcdef);
	check_eq("CR2", vmcb.cr2, 0x1234);
	check("RFLAGS.DF", vmcb.rflags & FL_DF);
	check("our DF stays", !(get_flags() & FL_DF));
	check_eq("our CR4 stays", read_cr4(), cr4);
	check_eq("DR7 is off", read_dr7(), 0x400);
	check_eq("CS", vmcb.cs.sel | (u64)vmcb.cs.attr << 16, CODE | 0xa9bull << 16);
	/* VMLOAD and VMSAVE. */
	static struct vmcb a __attribute__((aligned(4096))), b __attribute__((aligned(4096)));
	vmsave(&a);
	b = a;
	b.kernel_gs = 0x1234567;
	b.gs.base = 0x7654321;
	b.star = 0x23001000000000;
	b.fs.base = 0x0100800000000000; /* not canonical */
	vmload(&b);
	check_eq("VMLOAD: KernelGSBase", rdmsr(KERNEL_GS_BASE), 0x1234567);
	check_eq("VMLOAD: GS.base", rdmsr(GS_BASE), 0x7654321);
	check_eq("VMLOAD: STAR", rdmsr(STAR), 0x23001000000000);
	check_eq("VMLOAD makes bases canonical", rdmsr(FS_BASE), has(7, 2, 16) ? 0xff00800000000000 : 0xffff800000000000);
	memset(&b, 0, sizeof(b));
	vmsave(&b);
	check_eq("VMSAVE: GS.base", b.gs.base, 0x7654321);
	check_eq("VMSAVE: TR", b.tr.sel, a.tr.sel);
	check_eq("VMSAVE: TR.attr", b.tr.attr, a.tr.attr);
	vmload(&a);
	check_eq("VMLOAD: back", rdmsr(GS_BASE), a.gs.base);
}

/* ---- time ------------------------------------------------------------------------------------------- */

SNIP(tsc_twice, "rdtsc; mov %eax,%ebx; shl $32,%rdx; or %rdx,%rbx; mov $0x10,%ecx; rdmsr; shl $32,%rdx; or %rdx,%rax; mov %rax,%rcx");
static void time(void)
{
	vmcb_init();
	vmcb.tsc_offset = 1ull << 50;
	u64 before = rdtsc();
	run_at(tsc_twice);
	u64 after = rdtsc();
	check("TSC offset: RDTSC", nested_rbx - (1ull << 50) >= before && nested_rbx - (1ull << 50) <= after);
	check("TSC offset: RDMSR", nested_rcx - (1ull << 50) >= before && nested_rcx - (1ull << 50) <= after);
	wrmsr(TSC_RATIO, 1ull << 34);
	vmcb.tsc_offset = 0;
	before = rdtsc();
	run_at(tsc_twice);
	after = rdtsc();
	check("TSC ratio of 4", nested_rbx / 4 >= before && nested_rbx / 4 <= after);
	wrmsr(TSC_RATIO, 5ull << 32);
	before = rdtsc();
	run_at(tsc_twice);
	after = rdtsc();
	check("TSC ratio of 5", nested_rbx / 5 >= before && nested_rbx / 5 <= after);
	wrmsr(TSC_RATIO, 1ull << 32);
	TRY(wrmsr(TSC_RATIO, 1ull << 40));
	check_trap("TSC ratio, a reserved bit", GP, 0);
}

SNIP(pauses, "mov $10,%ecx; 1: pause; dec %ecx; jnz 1b");
static void filter(void)
{
	vmcb_init();
	want(X_PAUSE);
	vmcb.pause_count = 4;
	check_eq("the fifth PAUSE", run_at(pauses), X_PAUSE);
	check_eq("the fifth PAUSE: RCX", nested_rcx, 6);
	vmcb.pause_count = 10;
	check_eq("ten PAUSEs", run_at(pauses), X_VMMCALL);
	u32 r[4];
	cpuid(0x8000000a, 0, r);
	if (!(r[3] & 1 << 12))
		return;
	vmcb.pause_count = 4;
	vmcb.pause_threshold = 1;
	check_eq("PAUSEs that are further apart than the threshold", run_at(pauses), X_VMMCALL);
	vmcb.pause_threshold = 0xffff;
	u64 code = 0;
	for (unsigned k = 0; k < 100 && code != X_PAUSE; k++) /* a busy host may come between two of them */
		code = run_at(pauses);
	check_eq("PAUSEs within the threshold", code, X_PAUSE);
}

/* ---- last branches --------------------------------------------------------------------------------------- */

SNIP(lbr_branch, "jmp 1f; nop; .globl lbr_to; lbr_to: 1: nop");
extern const u8 lbr_to[];
static void last_branch(void)
{
	extern const u8 ours_from[], ours_to[];
	vmcb_init();
	wrmsr(0x1d9, 1);
	__asm__ volatile(".globl ours_from; ours_from: jmp 1f; nop; .globl ours_to; ours_to: 1: wrmsr" : : "c"(0x1d9), "a"(0), "d"(0));
	check_eq("our last branch: from", rdmsr(0x1db), (uptr)ours_from);
	check_eq("our last branch: to", rdmsr(0x1dc), (uptr)ours_to);
	vmcb.virt_ext = 1;
	vmcb.debugctl = 1;
	run_at(lbr_branch);
	check_eq("the guest's last branch: from", vmcb.br_from, (uptr)lbr_branch);
	check_eq("the guest's last branch: to", vmcb.br_to, (uptr)lbr_to);
	check_eq("ours is kept", rdmsr(0x1db), (uptr)ours_from);
	check_eq("DEBUGCTL is ours", rdmsr(0x1d9), 0);
}

/* ---- SKINIT ------------------------------------------------------------------------------------------------- */

/* The loader notes what it finds and comes back to long mode. Of its segments SS alone reaches all memory. */
struct landing { u32 eax, esp, edx, cr0, flags, cs, ss, ds, eip; } landing;
extern const u8 slb_code[], slb_end[];
__asm__(".pushsection .text\n.code32\n.globl slb_code\nslb_code:\n"
	"mov %eax,%ss:landing; mov %esp,%ss:landing+4; mov %edx,%ss:landing+8; pushf; pop %ebx; mov %ebx,%ss:landing+16; mov %cr0,%ebx; mov %ebx,%ss:landing+12\n"
	"mov %cs,%ebx; mov %ebx,%ss:landing+20; mov %ss,%ebx; mov %ebx,%ss:landing+24; mov %ds,%ebx; mov %ebx,%ss:landing+28\n"
	"call 1f; 1: pop %ebx; mov %ebx,%ss:landing+32\n"
	"lgdt %ss:skinit_gdtr; mov %ss:skinit_cr4,%eax; mov %eax,%cr4; mov %ss:skinit_cr3,%eax; mov %eax,%cr3\n"
	"mov $0xc0000080,%ecx; mov $0x1901,%eax; xor %edx,%edx; wrmsr; mov %ss:skinit_cr0,%eax; mov %eax,%cr0; ljmp $8,$skinit_back\n"
	".globl slb_end\nslb_end:\n.code64\n.popsection\n");
struct __attribute__((packed)) { u16 limit; u64 base; } skinit_gdtr, skinit_idtr;
u64 skinit_cr0, skinit_cr3, skinit_cr4, skinit_rsp;

static noinline void skinit_go(u32 at)
{
	__asm__ volatile("sgdt skinit_gdtr; sidt skinit_idtr; push %%rbp; push %%rbx; push %%r12; push %%r13; push %%r14; push %%r15; mov %%rsp,skinit_rsp\n"
			 ".byte 0x0f,0x01,0xde\n"
			 ".globl skinit_back; skinit_back: mov $0x10,%%ecx; mov %%ecx,%%ds; mov %%ecx,%%es; mov %%ecx,%%ss; mov skinit_rsp,%%rsp; lidt skinit_idtr\n"
			 "pop %%r15; pop %%r14; pop %%r13; pop %%r12; pop %%rbx; pop %%rbp\n"
			 : : "a"(at) : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory", "cc");
}

static void skinit(void)
{
	if (!has(0x80000001, 2, 12)) {
		skip("SKINIT", "not offered");
		return;
	}
	u8 *slb = (u8 *)0x1000000;
	u32 r[4];
	cpuid(1, 0, r);
	*(u16 *)slb = 0x40;
	*(u16 *)(slb + 2) = 0x200;
	memcpy(slb + 0x40, slb_code, (uptr)(slb_end - slb_code));
	skinit_cr0 = read_cr0(), skinit_cr3 = read_cr3(), skinit_cr4 = read_cr4();
	skinit_go(0x1000123);
	check_eq("SKINIT: EAX", landing.eax, 0x1000000);
	check_eq("SKINIT: ESP", landing.esp, 0x1010000);
	check_eq("SKINIT: EDX", landing.edx, r[0]);
	check_eq("SKINIT: CR0", landing.cr0, 0x11);
	check_eq("SKINIT: EFLAGS", landing.flags, 2);
	check_eq("SKINIT: CS, SS", landing.cs | (u64)landing.ss << 32, 8 | 16ull << 32);
	check("SKINIT: EIP", landing.eip > 0x1000040 && landing.eip < 0x1000100);
	check_eq("SKINIT: VM_CR.R_INIT", rdmsr(VM_CR) & 2, 2);
	TRY(apic_write(0x310, 0); apic_write(0x300, 0x40400); __asm__ volatile("nop"));
	check_trap("SKINIT: GIF holds NMI", NONE, 0);
	TRY(stgi(); __asm__ volatile("nop"));
	check_trap("SKINIT: NMI after STGI", NMI, 0);
	wrmsr(VM_CR, 0);
}

int main(void)
{
	if (!svm_there()) {
		skip("svm", "this processor has no AMD-V");
		return 0;
	}
	instructions();
	checks();
	intercepts();
	details();
	state();
	time();
	filter();
	last_branch();
	skinit();
	return 0;
}
