/* VT-x: what an exit leaves behind and what an entry takes up, beyond vmx.c and vmx_exits.c: what is told of double faults,
 * windows in shadows, the virtual APIC's registers, filters of #PF, ports that wrap, scaled time, lists of MSRs, a VMCS's
 * region, and which translations stay. Intel SDM vol. 3 24.2, 25.2, 25.3, 26.4, 26.7.6, 27.2, 28.3, 28.4, 29.1, 29.4. */
#include "lib/vmx.h"

const char guest_name[] = "vmx_state";

enum { TSC_SCALING = 0x2000000, TSC_MULTIPLIER = 0x2032, PF_MASK = 0x4006, PF_MATCH = 0x4008 };
u64 seen;
static u32 page32(const u64 *page, u32 off) { return *(const volatile u32 *)((const u8 *)page + off); }

SNIPPET(g_nops, "nop; nop; nop");
SNIPPET(g_ud2, "ud2");
SNIPPET(g_pf, "mov $0x700000001000,%rax; 2: mov (%rax),%eax");
SNIPPET(g_iret, "iretq");
SNIPPET(g_in_wraps, "mov $0xffff,%edx; 2: in %dx,%ax");
SNIPPET(g_load, "mov scratch(%rip),%rax; mov %rax,seen(%rip)");
SNIPPET(g_tsc, "rdtsc; shl $32,%rdx; or %rdx,%rax; mov %rax,seen(%rip)");

/* ---- events -------------------------------------------------------------------------------------------------- */

static void events(void)
{
	fresh(g_ud2);
	wr(EXC_BITMAP, 1 << DF);
	wr(G_IDTR_LIMIT, 0);
	check_eq("#DF exits", run(), R_EXC);
	check_eq("#DF: interruption information", rd(INTR_INFO) & 0x800007ff, 0x80000308);
	check_eq("#DF: no IDT-vectoring information", rd(IDT_INFO) >> 31, 0);
	fresh(g_ud2);
	wr(EXC_BITMAP, 1 << UD);
	check_eq("#UD exits", run(), R_EXC);
	check_eq("... with RF, as its handler would find it", rd(G_RFLAGS) & FL_RF, FL_RF);
	fresh(g_nops);
	set_controls(PIN_NMI | PIN_VNMI, NMI_WINDOW, 0);
	wr(G_BLOCK, 2);
	check_eq("NMI window in the shadow of MOV SS", run(), R_NMI_WINDOW);
	check_eq("... after it", rd(G_RIP), at(g_nops) + 1);
	static const struct { const char *name; u32 bitmap, mask, match, reason; } t[] = {
		{ "#PF, bit set, match", 1 << PF, 0, 0, R_EXC }, { "#PF, bit set, no match", 1 << PF, 0, 1, R_TRIPLE },
		{ "#PF, bit clear, no match", 0, 0, 1, R_EXC }, { "#PF, bit clear, match", 0, 2, 0, R_TRIPLE },
		{ "#PF, bit set, its W bit does not match", 1 << PF, 2, 2, R_TRIPLE },
	};
	for (unsigned k = 0; k < ARRAY_LEN(t); k++) {
		fresh(g_pf);
		wr(EXC_BITMAP, t[k].bitmap);
		wr(PF_MASK, t[k].mask);
		wr(PF_MATCH, t[k].match);
		wr(G_IDTR_LIMIT, 0);
		check_eq(t[k].name, run(), t[k].reason);
	}
	wr(PF_MASK, 0);
	wr(PF_MATCH, 0);
}

/* ---- instructions ---------------------------------------------------------------------------------------------- */

static void instructions(void)
{
	fresh(g_in_wraps);
	set_controls(0, IO_BITMAPS, 0);
	wr(IO_A, at(zeros));
	wr(IO_B, at(zeros));
	check_eq("a port access that wraps, bitmaps clear", run(), R_IO);
	fresh(g_tsc);
	set_controls(0, TSC_OFF, TSC_SCALING);
	wr(TSC_OFFSET, 0);
	wr(TSC_MULTIPLIER, 5ull << 48);
	u64 before = rdtsc();
	check_eq("RDTSC, scaled", run(), R_VMCALL);
	check("... by 5", seen / 5 >= before && seen / 5 <= rdtsc());
}

/* ---- privilege, long mode ------------------------------------------------------------------------------------------- */

enum { CS1 = FREE * 8 | 1, UNUSABLE = 0x10000, DPL1 = 0x20 };
SNIPPET(g_privileged, "mov %cr0,%rax");
SNIPPET(g_to_1, "mov %rsp,%rax; push $1; push %rax; pushf; push $" STR(10 * 8 + 1) "; lea 3f(%rip),%rax; push %rax; iretq; 3: nop");
/* To compatibility mode, out of long mode; its own code goes on at the second VMCALL. */
SNIPPET(g_leave, "push $0x40; lea 3f(%rip),%rax; push %rax; lretq\n.code32\n3: mov %cr0,%eax; btr $31,%eax; mov %eax,%cr0; vmcall; mov %cr0,%eax; bts $31,%eax; mov %eax,%cr0\n.code64");

static void unrestricted(void)
{
	ept_identity(pml4);
	set_controls(0, 0, EPT | UNRESTRICTED);
	wr(EPTP, at(pml4) | 3 << 3 | 6);
}

/* CPL is SS.DPL, whatever CS's selector says and also where SS is null. SDM 24.4.1, 26.3.2.2, 27.3.2. */
static void privilege(void)
{
	fresh(g_privileged);
	unrestricted();
	wr(EXC_BITMAP, 1 << GP);
	wr(G_CS, CODE | 3);
	check_eq("RPL 3 of CS, DPL 0 of SS: CPL 0", run(), R_VMCALL);
	fresh(g_to_1);
	gdt[FREE] = desc(0, 0xfffff, A_XR | A_DPL1, F_G | F_L);
	check_eq("IRET to CPL 1 with a null SS", run(), R_VMCALL);
	check_eq("... SS is unusable, of DPL 1", rd(G_AR + 2 * SEG_SS) & (UNUSABLE | 0x60), UNUSABLE | DPL1);
	wr(EXC_BITMAP, 1 << GP);
	wr(G_RIP, at(g_privileged));
	check_eq("... which is CPL 1 for the next entry", run(), R_EXC);
	check_eq("... #GP of a privileged instruction", rd(INTR_INFO), 0x80000b0d);
	gdt[FREE] = 0;
}

/* The control "IA-32e mode guest" follows the guest. SDM 27.3.1. */
static void long_mode(void)
{
	fresh(g_leave);
	unrestricted();
	check_eq("paging off", run(), R_VMCALL);
	check_eq("... the next entry is not one to long mode", rd(ENTRY) & IA32E, 0);
	wr(G_RIP, rd(G_RIP) + 3);
	check_eq("paging on", run(), R_VMCALL);
	check_eq("... the next one is", rd(ENTRY) & IA32E, IA32E);
}

/* ---- lists of MSRs, the region ------------------------------------------------------------------------------------ */

static void memory(void)
{
	static u64 list[2 * 520] PAGE;
	u64 keep = rdmsr(0xc0000082), p = at(vmcs);
	for (unsigned k = 0; k < 520; k++)
		list[2 * k] = 0xc0000082, list[2 * k + 1] = keep;
	fresh(g_nops);
	wr(ENTRY_LOAD, at(list));
	wr(ENTRY_LOAD_N, 512);
	check_eq("512 MSRs at an entry", run(), R_VMCALL);
	fresh(g_nops);
	wr(ENTRY_LOAD_N, 513);
	check_eq("513 MSRs at an entry", run(), R_BAD_MSR | FAILED);
	check_eq("... which one", rd(QUAL), 513);
	wr(ENTRY_LOAD_N, 0);
	/* What somebody wrote into the region is no more than its fields have bits. */
	static u64 junk[512] PAGE;
	u64 j = at(junk);
	memset(junk, 0xff, sizeof(junk));
	junk[0] = (u32)rdmsr(0x480);
	vmclear(&j);
	check_eq("VMPTRLD of a region that was written to", vmptrld(&j), SUCCEED);
	check_eq("... a field of 16 bits", rd(G_CS), 0xffff);
	check_eq("... a field of 32 bits", rd(G_LIMIT), 0xffffffff);
	check_eq("... a field of 64 bits", rd(TSC_OFFSET), ~0ull);
	vmclear(&j);
	vmptrld(&p);
}

/* ---- the virtual APIC --------------------------------------------------------------------------------------------- */

SNIPPET(g_icr, "lea scratch(%rip),%rax; movl $0xffffffff,0x310(%rax)");
SNIPPET(g_self_low, "lea scratch(%rip),%rax; movl $0x4000f,0x300(%rax)");
SNIPPET(g_wide, "lea scratch(%rip),%rax; 2: mov 0x80(%rax),%rbx");

static void apic_guest(const void *code)
{
	fresh(code);
	memset(other, 0, sizeof(other));
	set_controls(PIN_EXT, TPR_SHADOW, APIC_ACCESS | APIC_REGS | 0x200 /* virtual-interrupt delivery */);
	wr(VAPIC, at(other));
	wr(APIC_PAGE, at(scratch));
	wr(INTR_STATUS, 0);
	wr(TPR_THRESHOLD, 0);
}

static void virtual_apic(void)
{
	apic_guest(g_nops);
	other[0x80 / 8] = 0x20;
	wr(INTR_STATUS, 0x5100);
	check_eq("an entry with SVI above VTPR", run(), R_VMCALL);
	check_eq("... VPPR is SVI's class", page32(other, 0xa0), 0x50);
	apic_guest(g_nops);
	other[0x80 / 8] = 0x73;
	wr(INTR_STATUS, 0x5100);
	run();
	check_eq("VPPR is VTPR where that is above", page32(other, 0xa0), 0x73);
	apic_guest(g_icr);
	check_eq("a write to ICR's high half", run(), R_VMCALL);
	check_eq("... keeps the destination alone", page32(other, 0x310), 0xff000000);
	apic_guest(g_self_low);
	check_eq("a self-IPI of vector 15", run(), R_APIC_WRITE);
	check_eq("... qualification", rd(QUAL), 0x300);
	apic_guest(g_wide);
	check_eq("8 bytes of the TPR", run(), R_APIC_ACCESS);
	check_eq("... qualification", rd(QUAL), 0x80);
}

/* ---- translations --------------------------------------------------------------------------------------------------- */

static void translations(void)
{
	u64 own = read_cr3(), d[2] = { 3 };
	scratch[0] = 0x1111;
	other[0] = 0x2222;
	/* The guest's own tables; ept_identity()'s entries mean the same there. */
	ept_identity(pml4);
	fresh(g_load);
	set_controls(0, 0, USE_VPID);
	wr(VPID, 3);
	wr(G_CR3, at(pml4));
	check_eq("a VPID's translation", (run(), seen), 0x1111);
	*scratch_entry() = at(other) | 0x37;
	check_eq("INVVPID", invvpid(1, d), SUCCEED);
	wr(G_RIP, at(g_load));
	check_eq("... ends it", (run(), seen), 0x2222);
	/* Without VPIDs an entry and an exit end ours, too. */
	*scratch_entry() = at(scratch) | 0x37;
	write_cr3(at(pml4));
	fresh(g_nops);
	u64 a = *(volatile u64 *)scratch;
	*scratch_entry() = at(other) | 0x37;
	run();
	u64 b = *(volatile u64 *)scratch;
	write_cr3(own);
	check_eq("our translation before an entry", a, 0x1111);
	check_eq("... and after the exit, without VPIDs", b, 0x2222);
}

/* ---- EPT ---------------------------------------------------------------------------------------------------------------- */

static void ept(void)
{
	u64 d[2] = { 0 };
	ept_identity(pml4);
	u64 good = *scratch_entry();
	/* The stack of an IRET, under blocking by virtual NMI. */
	*scratch_entry() = good & ~7ull;
	invept(2, d);
	fresh(g_iret);
	set_controls(PIN_NMI | PIN_VNMI, 0, EPT);
	wr(EPTP, at(pml4) | 3 << 3 | 6);
	wr(G_RSP, at(scratch));
	wr(G_BLOCK, 8);
	check_eq("IRET's stack is not there", run(), R_EPT);
	check_eq("... blocking by NMI has ended, which is told", rd(QUAL) & 0x1000, 0x1000);
	check_eq("... and is so", rd(G_BLOCK) & 8, 0);
	/* The guest's PML4 in a page that can only be read; its bits are set already. */
	memcpy(scratch, (void *)(uptr)(read_cr3() & ~0xfffull), 4096);
	for (unsigned n = 0; n < 512; n++)
		scratch[n] |= scratch[n] & 1 ? 0x20 : 0;
	*scratch_entry() = (good & ~7ull) | 1;
	for (unsigned ad = 0; ad < 2; ad++) {
		invept(2, d);
		fresh(g_nops);
		set_controls(0, 0, EPT);
		wr(EPTP, at(pml4) | 3 << 3 | 6 | ad << 6);
		wr(G_CR3, at(scratch));
		check_eq(fmt("tables in a read-only page, EPTP bit 6 %u", ad), run(), ad ? R_EPT : R_VMCALL);
	}
	check_eq("... read and written, while it translated", rd(QUAL) & 0x183, 0x83);
	*scratch_entry() = good;
	invept(2, d);
}

int main(void)
{
	if (!vmx_there()) {
		skip("vmx_state", "no VMX");
		return 0;
	}
	vmx_on();
	events();
	instructions();
	privilege();
	long_mode();
	memory();
	virtual_apic();
	translations();
	ept();
	return 0;
}
