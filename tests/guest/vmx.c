/* VT-x: every instruction's outcomes in root operation, exits with what they tell, event injection, EPT, unrestricted
 * guest, shadow VMCSs. The checks of a VM entry are vmx_checks.c, the exits' reasons all together vmx_exits.c. Intel SDM vol. 3 chapters 23 to 30. */
#include "lib/vmx.h"

const char guest_name[] = "vmx";

static u64 msr_list[4] __attribute__((aligned(16))), pml4b[512] PAGE, eptps[512] PAGE;

/* The same by VMRESUME under RFLAGS.TF. */
static noinline int enter_stepping(void)
{
	u64 f;
	__asm__ volatile("push %%rbp; push %%rbx\n"
			 "mov %[hrsp],%%edx; vmwrite %%rsp,%%rdx; mov %[hrip],%%edx; lea 3f(%%rip),%%rax; vmwrite %%rax,%%rdx\n"
			 "pushf; orl $0x100,(%%rsp); popf; vmresume\npushf; pop %%rax; jmp 4f\n"
			 "3: xor %%eax,%%eax\n4: pop %%rbx; pop %%rbp"
			 : "=a"(f) : [hrsp] "i"(H_RSP), [hrip] "i"(H_RIP)
			 : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "cc", "memory");
	return status(f);
}

/* ---- VMXON to VMXOFF ---------------------------------------------------------------------------------------- */

static void instructions(void)
{
	u64 p = at(vmxon_region), v = 0;
	u32 revision = (u32)rdmsr(0x480);
	TRY(vmxon(&p));
	check_trap("VMXON with CR4.VMXE clear", UD, 0);
	TRY(vmclear(&p));
	check_trap("VMCLEAR outside of VMX operation", UD, 0);
	write_cr4(read_cr4() | 0x2000);
	if (!(rdmsr(0x3a) & 1)) {
		TRY(vmxon(&p));
		check_trap("VMXON before FEATURE_CONTROL is locked", GP, 0);
		wrmsr(0x3a, 5);
	}
	TRY(wrmsr(0x3a, 5));
	check_trap("FEATURE_CONTROL is locked", GP, 0);
	write_cr0(read_cr0() | 0x20);
	v = p + 8;
	check_eq("VMXON of an address that is not aligned", vmxon(&v), FAIL_INVALID);
	vmxon_region[0] = revision ^ 1;
	check_eq("VMXON of another revision", vmxon(&p), FAIL_INVALID);
	vmxon_region[0] = revision;
	check_eq("VMXON", vmxon(&p), SUCCEED);
	TRY(write_cr4(read_cr4() & ~0x2000ul));
	check_trap("CR4.VMXE cannot be cleared", GP, 0);
	TRY(write_cr0(read_cr0() & ~0x20ul));
	check_trap("CR0.NE cannot be cleared", GP, 0);
	check_eq("VMXON again, no current VMCS", vmxon(&p), FAIL_INVALID);
	check_eq("VMREAD without a current VMCS", vmread(G_RIP, &v), FAIL_INVALID);
	vmptrst(&v);
	check_eq("VMPTRST without a current VMCS", v, ~0ull);
	check_eq("VMCLEAR of the VMXON region", vmclear(&p), FAIL_INVALID);
	p = at(vmcs);
	vmcs[0] = revision;
	check_eq("VMCLEAR", vmclear(&p), SUCCEED);
	check_eq("VMPTRLD", vmptrld(&p), SUCCEED);
	vmptrst(&v);
	check_eq("VMPTRST", v, p);
	static const struct { const char *name; int op; u64 off; u32 error; } bad[] = {
		{ "VMCLEAR, not aligned", 0, 1, 2 }, { "VMPTRLD, not aligned", 1, 1, 9 }, { "VMCLEAR beyond the address width", 0, WIDE, 2 },
		{ "VMPTRLD beyond the address width", 1, WIDE, 9 },
	};
	for (unsigned k = 0; k < ARRAY_LEN(bad); k++) {
		v = p + bad[k].off;
		check_eq(bad[k].name, bad[k].op ? vmptrld(&v) : vmclear(&v), FAIL_VALID);
		check_eq(fmt("%s: error", bad[k].name), rd(ERROR), bad[k].error);
	}
	v = WIDE / 2; /* nothing is there */
	check_eq("VMCLEAR within the address width", vmclear(&v), SUCCEED);
	check_eq("VMPTRLD within it: another revision", vmptrld(&v) == FAIL_VALID ? rd(ERROR) : 0, 11);
	v = at(vmxon_region);
	check_eq("VMCLEAR of the VMXON region, VMfailValid", vmclear(&v) == FAIL_VALID ? rd(ERROR) : 0, 3);
	check_eq("VMPTRLD of the VMXON region", vmptrld(&v) == FAIL_VALID ? rd(ERROR) : 0, 10);
	v = at(other);
	other[0] = revision ^ 2;
	check_eq("VMPTRLD of another revision", vmptrld(&v) == FAIL_VALID ? rd(ERROR) : 0, 11);
	v = at(vmxon_region);
	check_eq("VMXON in root operation", vmxon(&v) == FAIL_VALID ? rd(ERROR) : 0, 15);
	check_eq("VMREAD of no field", vmread(0x5000, &v) == FAIL_VALID ? rd(ERROR) : 0, 12);
	check_eq("VMWRITE of no field", vmwrite(0x5000, v) == FAIL_VALID ? rd(ERROR) : 0, 12);
	check_eq("VMWRITE", vmwrite(TSC_OFFSET, 0x123456789abcdef0), SUCCEED);
	check_eq("VMREAD of a high half", rd(TSC_OFFSET + 1), 0x12345678);
	vmwrite(TSC_OFFSET + 1, 0xffffffff00000001);
	check_eq("VMWRITE of a high half", rd(TSC_OFFSET), 0x19abcdef0);
	vmwrite(G_CS, 0xfffff1234);
	check_eq("a field of 16 bits", rd(G_CS), 0x1234);
	u64 f;
	__asm__ volatile("vmcall; pushf; pop %0" : "=r"(f) : : "cc", "memory");
	check_eq("VMCALL in root operation", status(f) == FAIL_VALID ? rd(ERROR) : 0, 1);
	check_eq("VMRESUME before VMLAUNCH", (launched = 1, enter()) == FAIL_VALID ? rd(ERROR) : 0, 5);
	launched = 0;
	u64 d[2] = { 0 };
	check_eq("INVEPT of no type", invept(0, d) == FAIL_VALID ? rd(ERROR) : 0, 28);
	check_eq("INVEPT of all", invept(2, d), SUCCEED);
	check_eq("INVVPID of VPID 0", invvpid(1, d) == FAIL_VALID ? rd(ERROR) : 0, 28);
	check_eq("INVVPID of all", invvpid(2, d), SUCCEED);
}

/* ---- exits of instructions ----------------------------------------------------------------------------------------- */

SNIPPET(g_cpuid, "cpuid");
SNIPPET(g_invlpg, "invlpg 0x1234");
SNIPPET(g_rdtsc, "rdtsc");
SNIPPET(g_rdtscp, "rdtscp");
SNIPPET(g_hlt, "hlt");
SNIPPET(g_pause, "pause");
SNIPPET(g_monitor, "lea scratch(%rip),%rax; xor %ecx,%ecx; xor %edx,%edx; 2: monitor");
SNIPPET(g_cr3w, "mov %cr3,%rdx; 2: mov %rdx,%cr3");
SNIPPET(g_cr3r, "mov %cr3,%rsi");
SNIPPET(g_cr8w, "xor %ebx,%ebx; 2: mov %rbx,%cr8");
SNIPPET(g_cr8r, "mov %cr8,%r9");
SNIPPET(g_drw, "xor %r10d,%r10d; 2: mov %r10,%db1");
SNIPPET(g_drr, "mov %db2,%rdi");
SNIPPET(g_in, "in $0x80,%al");
SNIPPET(g_out, "mov $0x1234,%dx; 2: out %eax,%dx");
SNIPPET(g_outs, "lea scratch(%rip),%rsi; mov $0x80,%dx; mov $1,%ecx; 2: rep outsb");
SNIPPET(g_rdmsr, "mov $0x277,%ecx; 2: rdmsr");
SNIPPET(g_wrmsr, "mov $0xc0000103,%ecx; xor %eax,%eax; xor %edx,%edx; 2: wrmsr");
SNIPPET(g_wbinvd, "wbinvd");
SNIPPET(g_invd, "invd");
SNIPPET(g_sgdt, "sgdt scratch(%rip)");
SNIPPET(g_lidt, "sidt scratch(%rip); 2: lidt scratch(%rip)");
SNIPPET(g_sldt, "sldt %ebx");
SNIPPET(g_str, "str 8(%rsp,%rcx,2)");
SNIPPET(g_vmread, "vmread %rax,%rbx");
SNIPPET(g_vmclear, "vmclear 16(%rsp)");
SNIPPET(g_vmxoff, "vmxoff");
SNIPPET(g_xsetbv, "xor %ecx,%ecx; xgetbv; 2: xsetbv");
SNIPPET(g_rdrand, "rdrand %r11d");
SNIPPET(g_lmsw, "mov $0xf,%ax; 2: lmsw %ax");
SNIPPET(g_clts, "clts");

static void exits(void)
{
	static const struct { const char *name; const u8 *code; u32 proc, proc2, reason, len; u64 qual; bool without; } t[] = {
		{ "CPUID", g_cpuid, 0, 0, R_CPUID, 2, 0, false }, { "INVLPG", g_invlpg, X_INVLPG, 0, R_INVLPG, 8, 0x1234, true },
		{ "RDTSC", g_rdtsc, X_RDTSC, 0, R_RDTSC, 2, 0, true }, { "RDTSCP", g_rdtscp, X_RDTSC, RDTSCP, R_RDTSCP, 3, 0, true },
		{ "HLT", g_hlt, X_HLT, 0, R_HLT, 1, 0, false }, { "PAUSE", g_pause, X_PAUSE, 0, R_PAUSE, 2, 0, true },
		{ "MONITOR", g_monitor, X_MONITOR, 0, R_MONITOR, 3, 0, true },
		{ "MOV to CR3", g_cr3w, X_CR3_LOAD, 0, R_CR, 3, 3 | 2 << 8, true }, { "MOV from CR3", g_cr3r, X_CR3_STORE, 0, R_CR, 3, 3 | 1 << 4 | 6 << 8, true },
		{ "MOV to CR8", g_cr8w, X_CR8_LOAD, 0, R_CR, 4, 8 | 3 << 8, true }, { "MOV from CR8", g_cr8r, X_CR8_STORE, 0, R_CR, 4, 8 | 1 << 4 | 9 << 8, true },
		{ "MOV to DR1", g_drw, X_DR, 0, R_DR, 4, 1 | 10 << 8, true }, { "MOV from DR2", g_drr, X_DR, 0, R_DR, 3, 2 | 1 << 4 | 7 << 8, true },
		{ "IN", g_in, X_IO, 0, R_IO, 2, 8 | 64 | 0x80 << 16, true }, { "OUT", g_out, X_IO, 0, R_IO, 1, 3 | 0x1234 << 16, true },
		{ "REP OUTSB", g_outs, X_IO, 0, R_IO, 2, 16 | 32 | 0x80 << 16, true },
		{ "IN, bitmap", g_in, IO_BITMAPS, 0, R_IO, 2, 8 | 64 | 0x80 << 16, false },
		{ "RDMSR", g_rdmsr, 0, 0, R_RDMSR, 2, 0, false }, { "WRMSR", g_wrmsr, 0, 0, R_WRMSR, 2, 0, false },
		{ "WBINVD", g_wbinvd, 0, X_WBINVD, R_WBINVD, 2, 0, true }, { "INVD", g_invd, 0, 0, R_INVD, 2, 0, false },
		{ "SIDT", g_sgdt, 0, X_DESC, R_GDTR_IDTR, 7, 0, true }, { "LIDT", g_lidt, 0, X_DESC, R_GDTR_IDTR, 7, 0, true },
		{ "SLDT", g_sldt, 0, X_DESC, R_LDTR_TR, 3, 0, true }, { "STR", g_str, 0, X_DESC, R_LDTR_TR, 5, 8, true },
		{ "VMREAD", g_vmread, 0, 0, R_VMREAD, 3, 0, false }, { "VMCLEAR", g_vmclear, 0, 0, R_VMCLEAR, 6, 16, false },
		{ "VMXOFF", g_vmxoff, 0, 0, R_VMXOFF, 3, 0, false }, { "RDRAND", g_rdrand, 0, X_RDRAND, R_RDRAND, 4, 0, true },
	};
	memset(bitmap, 0, sizeof(bitmap));
	((u8 *)bitmap)[0x80 / 8] |= 1;
	for (unsigned k = 0; k < ARRAY_LEN(t); k++) {
		fresh(t[k].code);
		wr(IO_A, at(bitmap));
		wr(IO_B, at(zeros));
		if (t[k].without) {
			set_controls(0, MSR_BITMAPS, RDTSCP);
			wr(MSR_BITMAP, at(zeros));
			check_eq(fmt("%s without an exit", t[k].name), run(), R_VMCALL);
		}
		fresh(t[k].code);
		set_controls(0, t[k].proc, t[k].proc2);
		u32 r = run();
		if (t[k].reason == R_GDTR_IDTR && t[k].code == g_lidt) { /* its SIDT first */
			wr(G_RIP, rd(G_RIP) + rd(INSN_LEN));
			r = run();
		}
		check_eq(fmt("%s exits", t[k].name), r, t[k].reason);
		check_eq(fmt("%s: length", t[k].name), rd(INSN_LEN), t[k].len);
		if (t[k].reason != R_GDTR_IDTR)
			check_eq(fmt("%s: qualification", t[k].name), rd(QUAL), t[k].qual);
	}
	check_eq("RDRAND: information", rd(INSN_INFO), 11 << 3 | 1 << 11);
	fresh(g_str);
	set_controls(0, 0, X_DESC);
	run();
	check_eq("STR: information", rd(INSN_INFO), 1 | 2 << 7 | SEG_SS << 15 | 1 << 18 | 4 << 23 | 1 << 28);
	fresh(g_rdmsr);
	set_controls(0, MSR_BITMAPS, 0);
	memset(bitmap, 0, sizeof(bitmap));
	((u8 *)bitmap)[0x277 / 8] |= 1 << (0x277 & 7);
	wr(MSR_BITMAP, at(bitmap));
	check_eq("RDMSR by the bitmap", run(), R_RDMSR);
	fresh(g_rdtscp);
	check_eq("RDTSCP that is not enabled: #UD", (wr(EXC_BITMAP, 1 << UD), run()), R_EXC);
	check_eq("... interruption information", rd(INTR_INFO), 0x80000306);
}

static void control_registers(void)
{
	fresh(g_lmsw);
	wr(CR0_MASK, 8);
	wr(CR0_SHADOW, 0);
	check_eq("LMSW of a masked bit", run(), R_CR);
	check_eq("... qualification", rd(QUAL), 3 << 4 | 0xfu << 16);
	fresh(g_clts);
	wr(CR0_SHADOW, 8);
	check_eq("CLTS of a masked bit", run(), R_CR);
	check_eq("... qualification", rd(QUAL), 2 << 4);
	fresh(g_clts);
	wr(CR0_SHADOW, 0);
	wr(G_CR0, read_cr0() | 8);
	check_eq("CLTS where the shadow is clear", run(), R_VMCALL);
	check_eq("... leaves TS", rd(G_CR0) & 8, 8);
	wr(CR0_MASK, 0);
	fresh(g_cr3w);
	set_controls(0, X_CR3_LOAD, 0);
	wr(CR3_COUNT, 1);
	wr(CR3_TARGET0, read_cr3());
	check_eq("MOV to CR3 of a target value", run(), R_VMCALL);
	wr(CR3_COUNT, 0);
}

/* What is refused before anything is checked. */
static void refused(void)
{
	u64 f;
	fresh(g_nothing);
	check_eq("VMLAUNCH", run(), R_VMCALL);
	wr(G_RIP, at(g_nothing));
	__asm__ volatile("mov %%ss,%%eax; mov %%eax,%%ss; vmresume; pushf; pop %0" : "=r"(f) : : "rax", "cc", "memory");
	check_eq("VMRESUME after MOV SS", status(f) == FAIL_VALID ? rd(ERROR) : 0, 26);
	launched = 0;
	check_eq("VMLAUNCH once more", enter() == FAIL_VALID ? rd(ERROR) : 0, 4);
	launched = 1;
}

SNIPPET(g_time, "rdtsc; shl $32,%rdx; or %rdx,%rax; mov %rax,scratch(%rip)");
static void msr_lists(void)
{
	fresh(g_nothing);
	u64 keep = rdmsr(0xc0000082);
	msr_list[0] = 0xc0000082;
	msr_list[1] = 0x1234;
	wr(ENTRY_LOAD, at(msr_list));
	wr(ENTRY_LOAD_N, 1);
	check_eq("entry loads MSRs", run(), R_VMCALL);
	check_eq("... LSTAR", rdmsr(0xc0000082), 0x1234);
	msr_list[1] = 0;
	wr(ENTRY_LOAD_N, 0);
	wr(EXIT_STORE, at(msr_list));
	wr(EXIT_STORE_N, 1);
	run_at(g_nothing);
	check_eq("an exit stores MSRs", msr_list[1], 0x1234);
	msr_list[0] = 0x10;
	u32 wrong = 0;
	for (u32 k = 0; k < 20000; k++) { /* where this moves from engine to engine, in every part of it */
		u64 before = rdtsc();
		run_at(g_time);
		wrong += !(scratch[0] > before && msr_list[1] > scratch[0] && msr_list[1] < rdtsc());
	}
	check_eq("... the TSC: the host's, between the guest's last look and the exit", wrong, 0);
	msr_list[0] = 0xc0000082;
	wr(EXIT_STORE_N, 0);
	msr_list[1] = keep;
	wr(EXIT_LOAD, at(msr_list));
	wr(EXIT_LOAD_N, 1);
	run_at(g_nothing);
	check_eq("an exit loads MSRs", rdmsr(0xc0000082), keep);
	wr(EXIT_LOAD_N, 0);
	msr_list[0] = FS_BASE;
	wr(ENTRY_LOAD_N, 1);
	check_eq("an MSR that no list may have", run_at(g_nothing), R_BAD_MSR | FAILED);
	check_eq("... which one", rd(QUAL), 1);
	wr(ENTRY_LOAD_N, 0);
}

/* ---- events --------------------------------------------------------------------------------------------------------------- */

SNIPPET(g_ud2, "ud2");
SNIPPET(g_int3, "int3");
SNIPPET(g_int1, ".byte 0xf1");
SNIPPET(g_int50, "int $0x50");
SNIPPET(g_pf, "mov $0x700000001000,%rax; 2: mov (%rax),%eax");
SNIPPET(g_sti, "sti; nop; nop");
SNIPPET(g_bad_iret, "mov $0x700000001000,%rsp; 2: iretq");
SNIPPET(g_sti_cpuid, "sti; cpuid");
SNIPPET(g_nops, "nop; nop; nop");
SNIPPET(g_handler, "nop");
SNIPPET(g_triple, "lidt zero_idt(%rip); int3");
__asm__(".pushsection .data\nzero_idt: .word 0\n.quad 0\n.popsection");

SNIPPET(g_mwait, "lea scratch(%rip),%rax; xor %ecx,%ecx; xor %edx,%edx; 2: monitor; mwait; jmp 2b");
static void events(void)
{
	enum { VECTOR = 0x50 };
	fresh(g_ud2);
	wr(EXC_BITMAP, 1 << UD);
	check_eq("#UD exits", run(), R_EXC);
	check_eq("#UD: information", rd(INTR_INFO), 0x80000306);
	check_eq("#UD: RIP", rd(G_RIP), at(g_ud2));
	fresh(g_int3);
	wr(EXC_BITMAP, 1 << BP);
	check_eq("INT3 exits", run(), R_EXC);
	check_eq("INT3: information", rd(INTR_INFO), 0x80000603);
	check_eq("INT3: length", rd(INSN_LEN), 1);
	fresh(g_int1);
	wr(EXC_BITMAP, 1 << DB);
	run();
	check_eq("INT1: information", rd(INTR_INFO), 0x80000501);
	fresh(g_pf);
	wr(EXC_BITMAP, 1 << PF);
	check_eq("#PF exits", run(), R_EXC);
	check_eq("#PF: information", rd(INTR_INFO), 0x80000b0e);
	check_eq("#PF: address", rd(QUAL), 0x700000001000);
	fresh(g_triple);
	wr(G_IDTR_LIMIT, 0);
	check_eq("triple fault", run(), R_TRIPLE);

	idt_set64(VECTOR, CODE, at(g_handler), A_INT32, 0);
	static const struct { const char *name; u32 info, len; } inj[] = {
		{ "external interrupt", 0x80000050, 0 }, { "software interrupt", 0x80000450, 2 }, { "privileged software exception", 0x80000550, 1 },
	};
	for (unsigned k = 0; k < ARRAY_LEN(inj); k++) {
		fresh(g_nops);
		wr(G_RFLAGS, 0x202);
		wr(INJECT, inj[k].info);
		wr(INJECT_LEN, inj[k].len);
		check_eq(fmt("injected %s", inj[k].name), run(), R_VMCALL);
		check_eq("... its handler ran", rd(G_RIP), at(g_handler) + 1);
		check_eq("... and would return", *(u64 *)(uptr)rd(G_RSP), at(g_nops) + inj[k].len);
		check_eq("... it is no longer valid", rd(INJECT) >> 31, 0);
	}
	/* A delivery that exits: #NP for the gate, with what was on its way. */
	idt[2 * VECTOR] &= ~(0x80ull << 40);
	fresh(g_int50);
	wr(EXC_BITMAP, 1 << NP);
	check_eq("INT n through an absent gate", run(), R_EXC);
	check_eq("... #NP", rd(INTR_INFO), 0x80000b0b);
	check_eq("... IDT-vectoring information", rd(IDT_INFO), 0x80000450);
	check_eq("... length", rd(INSN_LEN), 2);
	check_eq("... RIP", rd(G_RIP), at(g_int50));

	fresh(g_sti);
	set_controls(0, INTR_WINDOW, 0);
	check_eq("interrupt window", run(), R_WINDOW);
	check_eq("... after the shadow of STI", rd(G_RIP), at(g_sti) + 2);
	fresh(g_sti_cpuid);
	run();
	check_eq("CPUID in the shadow of STI: interruptibility", rd(G_BLOCK), 1);
	check_eq("... the shadow lasts", (set_controls(0, INTR_WINDOW | X_HLT, 0), wr(G_RIP, rd(G_RIP) + 2), run()), R_VMCALL);
	wr(G_BLOCK, 0);
	fresh(g_nops);
	set_controls(PIN_NMI | PIN_VNMI, NMI_WINDOW, 0);
	check_eq("NMI window", run(), R_NMI_WINDOW);
	check_eq("... at once", rd(G_RIP), at(g_nops));
	fresh(g_bad_iret);
	set_controls(PIN_NMI | PIN_VNMI, 0, 0);
	wr(EXC_BITMAP, 1 << PF);
	wr(G_BLOCK, 8);
	check_eq("IRET under blocking by virtual NMI faults", run(), R_EXC);
	check_eq("... and has ended it", rd(G_BLOCK) & 8, 0);
	check_eq("... which is told", rd(INTR_INFO), 0x80001b0e);
	fresh(g_pf);
	set_controls(PIN_NMI | PIN_VNMI, 0, 0);
	wr(EXC_BITMAP, 1 << PF);
	wr(G_BLOCK, 8);
	run();
	check_eq("... by no other instruction", rd(INTR_INFO), 0x80000b0e);
	check_eq("... blocking is as it was", rd(G_BLOCK) & 8, 8);
	fresh(g_nops);
	wr(EXC_BITMAP, 1 << DB);
	check_eq("VMRESUME under TF", enter_stepping(), SUCCEED);
	check_eq("... is no step of the guest's", rd(REASON), R_VMCALL);
	fresh(g_nops);
	wr(G_ACTIVITY, 9);
	check_eq("VMRESUME that fails late under TF", enter_stepping(), SUCCEED);
	check_eq("... is no step of the host's", rd(REASON), FAILED | R_BAD_GUEST);
	fresh(g_mwait);
	set_controls(PIN_TIMER, 0, 0);
	wr(TIMER, 100000);
	check_eq("preemption timer in MWAIT", run(), R_TIMER);
	check_eq("... activity state", rd(G_ACTIVITY), 0);
	fresh(g_nops);
	set_controls(0, MTF, 0);
	check_eq("monitor trap flag", run(), R_MTF);
	check_eq("... after one instruction", rd(G_RIP), at(g_nops) + 1);
	fresh(g_nops);
	set_controls(PIN_TIMER, 0, 0);
	wr(TIMER, 0);
	check_eq("preemption timer of 0", run(), R_TIMER);
	check_eq("... before the first instruction", rd(G_RIP), at(g_nops));
	fresh(g_nops);
	wr(TIMER, 0xffffffff);
	set_controls(PIN_TIMER, 0, 0);
	check_eq("a preemption timer that does not expire", run(), R_VMCALL);
	fresh(g_rdtsc);
	set_controls(0, TSC_OFF, 0);
	wr(TSC_OFFSET, 1ull << 62);
	check_eq("RDTSC with an offset", run(), R_VMCALL);
}

/* ---- EPT ---------------------------------------------------------------------------------------------------------------------- */

SNIPPET(g_load, "mov scratch(%rip),%rax");
SNIPPET(g_store, "mov %rax,scratch+24(%rip)");
SNIPPET(g_fetch, "lea scratch(%rip),%rax; jmp *%rax");
SNIPPET(g_func, "xor %eax,%eax; mov $1,%ecx; vmfunc; mov scratch(%rip),%rax");
SNIPPET(g_func0, "mov $1,%eax; xor %ecx,%ecx; 2: vmfunc");

static void ept(void)
{
	static const struct { const char *name; const u8 *code; u64 rights; u32 reason; u64 qual; } t[] = {
		{ "load, all rights", g_load, 7, R_VMCALL, 0 }, { "load, not present", g_load, 0, R_EPT, 0x181 },
		{ "load, execute-only", g_load, 4, R_EPT, 0x181 | 4 << 3 }, { "store, read-only", g_store, 1, R_EPT, 0x182 | 1 << 3 },
		{ "store, read and execute", g_store, 5, R_EPT, 0x182 | 5 << 3 }, { "store, read and write", g_store, 3, R_VMCALL, 0 },
		{ "fetch, read and write", g_fetch, 3, R_EPT, 0x184 | 3 << 3 }, { "fetch, execute-only", g_fetch, 4, R_VMCALL, 0 },
		{ "write-only", g_load, 2, R_MISCONFIG, 0 }, { "write and execute", g_load, 6, R_MISCONFIG, 0 },
	};
	ept_identity(pml4);
	u64 good = *scratch_entry();
	((u8 *)scratch)[0] = 0x0f, ((u8 *)scratch)[1] = 0x01, ((u8 *)scratch)[2] = 0xc1; /* VMCALL */
	for (unsigned k = 0; k < ARRAY_LEN(t); k++) {
		fresh(t[k].code);
		ept_on(USE_VPID, 0);
		*scratch_entry() = (good & ~7ull) | t[k].rights;
		flush();
		check_eq(fmt("EPT: %s", t[k].name), run(), t[k].reason);
		if (t[k].reason == R_EPT)
			check_eq(fmt("EPT: %s: qualification", t[k].name), rd(QUAL) & 0xfff, t[k].qual);
		if (t[k].reason == R_EPT || t[k].reason == R_MISCONFIG)
			check_eq(fmt("EPT: %s: address", t[k].name), rd(GPA) & ~0xfffull, at(scratch));
	}
	*scratch_entry() = (good & ~0x38ull) | 2 << 3;
	flush();
	fresh(g_load);
	ept_on(0, 0);
	check_eq("EPT: a memory type that does not exist", run(), R_MISCONFIG);
	*scratch_entry() = good;
	flush();

	fresh(g_load);
	ept_on(0, 0x40);
	run();
	check_eq("EPT: accessed, not dirty", *scratch_entry() >> 8 & 3, 1);
	run_at(g_store);
	check_eq("EPT: dirty", *scratch_entry() >> 8 & 3, 3);
	*scratch_entry() = good;
	flush();
	fresh(g_store);
	ept_on(PML, 0x40);
	wr(PML_ADDR, at(pml));
	wr(PML_INDEX, 511);
	check_eq("page-modification log", run(), R_VMCALL);
	bool found = false;
	for (unsigned n = 511; n > (u16)rd(PML_INDEX) && n < 512; n--)
		found |= pml[n] == at(scratch);
	check("... has the page", found);
	*scratch_entry() = good;
	flush();
	fresh(g_store);
	ept_on(PML, 0x40);
	wr(PML_INDEX, 0xffff);
	check_eq("page-modification log full", run(), R_PML);
	wr(PML_INDEX, 511);
	*scratch_entry() = good;

	/* The second EPTP leads nowhere but through the same tables with one page absent. */
	memcpy(pml4b, pml4, sizeof(pml4));
	eptps[0] = at(pml4) | 3 << 3 | 6;
	eptps[1] = at(pml4b) | 3 << 3 | 6;
	flush();
	fresh(g_func);
	ept_on(VMFUNC, 0);
	wr(VMFUNC_CTL, 1);
	wr(EPTP_LIST, at(eptps));
	check_eq("VMFUNC 0", run(), R_VMCALL);
	check_eq("... switches EPTP", rd(EPTP), eptps[1]);
	eptps[1] = 0x123;
	fresh(g_func);
	ept_on(VMFUNC, 0);
	check_eq("VMFUNC 0 of an EPTP that is not valid", run(), R_VMFUNC);
	fresh(g_func0);
	ept_on(VMFUNC, 0);
	check_eq("VMFUNC 1", run(), R_VMFUNC);
	wr(VMFUNC_CTL, 0);
}

/* Real mode in the guest: the second level alone translates. */
static void unrestricted(void)
{
	static const u8 code[] = { 0xb8, 0x34, 0x12, 0x8e, 0xd8, 0x0f, 0xa2 }; /* mov $0x1234,%ax; mov %ax,%ds; cpuid */
	memcpy((void *)0x8000ul, code, sizeof(code));
	flush();
	fresh(g_nothing);
	ept_on(UNRESTRICTED, 0);
	wr(ENTRY, must(0x490, 0));
	wr(G_CR0, 0x20);
	wr(G_CR4, 0x2000);
	for (unsigned s = SEG_ES; s <= SEG_GS; s++)
		set_segment(s, 0, 0, 0xffff, s == SEG_CS ? 0x9b : 0x93);
	wr(G_RIP, 0x8000);
	check_eq("unrestricted guest in real mode", run(), R_CPUID);
	check_eq("... RIP", rd(G_RIP), 0x8005);
	check_eq("... DS base", rd(G_BASE + 2 * SEG_DS), 0x12340);
	set_controls(0, 0, EPT);
	wr(EPTP, at(pml4) | 3 << 3 | 6);
	wr(ENTRY, must(0x490, 0));
	check_eq("... not without the control", run(), R_BAD_GUEST | FAILED);
}

/* ---- shadow VMCS ------------------------------------------------------------------------------------------------------------------ */

SNIPPET(g_shadow, "mov $0x681e,%eax; vmread %rax,%rbx; mov %rbx,scratch(%rip); mov $0x5555,%ebx; mov $0x681c,%eax; vmwrite %rbx,%rax");

static void shadowing(void)
{
	u64 p = at(shadow), main = at(vmcs);
	shadow[0] = (u32)rdmsr(0x480) | 0x80000000;
	check_eq("VMCLEAR of a shadow VMCS", vmclear(&p), SUCCEED);
	check_eq("VMPTRLD of a shadow VMCS", vmptrld(&p), SUCCEED);
	wr(G_RIP, 0x7777);
	check_eq("VMLAUNCH of a shadow VMCS", (launched = 0, enter()), FAIL_INVALID);
	launched = 1;
	vmclear(&p);
	vmptrld(&main);
	fresh(g_shadow);
	set_controls(0, 0, SHADOW);
	wr(VMREAD_BITMAP, at(zeros));
	wr(VMWRITE_BITMAP, at(zeros));
	wr(LINK, p);
	check_eq("VMREAD and VMWRITE of a shadow VMCS", run(), R_VMCALL);
	check_eq("... read", scratch[0], 0x7777);
	vmptrld(&p);
	check_eq("... written", rd(G_RSP), 0x5555);
	vmptrld(&main);
	memset(bitmap, 0, sizeof(bitmap));
	((u8 *)bitmap)[0x681e / 8] |= 1 << (0x681e & 7);
	wr(VMREAD_BITMAP, at(bitmap));
	wr(G_RIP, at(g_shadow));
	wr(LINK, p);
	check_eq("VMREAD of a field that the bitmap has", run(), R_VMREAD);
	check_eq("... information", rd(INSN_INFO) & 0xf0000478, 1 << 10 | 3 << 3);
	wr(LINK, ~0ull);
}

/* ---- the APIC-access page without EPT ------------------------------------------------------------------ */

SNIPPET(g_beside, "lea scratch(%rip),%rax; mov $8,%ecx; 2: mov (%rax),%rdx; dec %ecx; jnz 2b; xor $0x1000,%rax\n"
	"mov 0x80(%rax),%ebx; mov %ebx,8+scratch(%rip)");

/* APIC version: the read is the virtual one, the write exits, and then nothing has been done. */
SNIPPET(g_xadd, "mov $5,%ebx; lea scratch(%rip),%rax; xor $0x1000,%rax; cmp %eax,%eax; 2: xadd %ebx,0x30(%rax)");

/* Beside a page that is used: what is known of that page's translation must not bring this one's. */
static void apic_page(void)
{
	ept_identity(pml4); /* the bits that count mean the same in the guest's own tables */
	*scratch_entry() = at(scratch) | 0x37;
	pt[(at(scratch) >> 12 & 511) ^ 1] = at(shadow) | 0x37;
	shadow[16] = 0xdead;
	other[16] = 0x70;
	fresh(g_beside);
	set_controls(0, TPR_SHADOW, APIC_ACCESS);
	wr(G_CR3, at(pml4));
	wr(VAPIC, at(other));
	wr(APIC_PAGE, at(shadow));
	check_eq("TPR on the APIC-access page", run(), R_VMCALL);
	check_eq("... is the virtual one", scratch[1], 0x70);
	set_guest(g_xadd);
	wr(G_CR3, at(pml4));
	wr(PROC2, must(0x48b, APIC_ACCESS | APIC_REGS));
	check_eq("XADD to a register that cannot be written", run(), R_APIC_ACCESS);
	check_eq("... qualification", rd(QUAL), 1 << 12 | 0x30);
	check_eq("... flags are as before", rd(G_RFLAGS) & FL_ZF, FL_ZF);
	other[16] = 0;
}

int main(void)
{
	if (!vmx_there()) {
		skip("vmx", "no VMX");
		return 0;
	}
	instructions();
	exits();
	control_registers();
	refused();
	msr_lists();
	events();
	ept();
	unrestricted();
	shadowing();
	apic_page();
	u64 f, p = at(vmcs), v;
	check_eq("VMCLEAR at the end", vmclear(&p), SUCCEED);
	__asm__ volatile("vmxoff; pushf; pop %0" : "=r"(f) : : "cc", "memory");
	check_eq("VMXOFF", status(f), SUCCEED);
	TRY(vmread(G_RIP, &v));
	check_trap("VMREAD after VMXOFF", UD, 0);
	write_cr4(read_cr4() & ~0x2000ul);
	check_eq("CR4.VMXE can be cleared again", read_cr4() & 0x2000, 0);
	return 0;
}
