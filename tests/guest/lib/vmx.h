/* A small hypervisor by VT-x for the vmx guests: one VMCS, a guest that shares the host's memory, tables and IDT. Its code
 * is snippets that end in VMCALL. Intel SDM vol. 3 chapters 24 to 28 and appendices A to C. */
#ifndef VMX_H
#define VMX_H
#include "guest.h"

/* Fields, SDM appendix B. */
enum {
	VPID = 0, POSTED_VECTOR = 2, EPTP_INDEX = 4, G_ES = 0x800, G_CS = 0x802, G_SS = 0x804, G_DS = 0x806, G_FS = 0x808, G_GS = 0x80a,
	G_LDTR = 0x80c, G_TR = 0x80e, INTR_STATUS = 0x810, PML_INDEX = 0x812, H_ES = 0xc00, H_CS = 0xc02, H_SS = 0xc04, H_DS = 0xc06,
	H_FS = 0xc08, H_GS = 0xc0a, H_TR = 0xc0c,
	IO_A = 0x2000, IO_B = 0x2002, MSR_BITMAP = 0x2004, EXIT_STORE = 0x2006, EXIT_LOAD = 0x2008, ENTRY_LOAD = 0x200a,
	PML_ADDR = 0x200e, TSC_OFFSET = 0x2010, VAPIC = 0x2012, APIC_PAGE = 0x2014, POSTED_DESC = 0x2016, VMFUNC_CTL = 0x2018, EPTP = 0x201a,
	EOI_EXIT = 0x201c, EPTP_LIST = 0x2024, VMREAD_BITMAP = 0x2026, VMWRITE_BITMAP = 0x2028, XSS_EXIT = 0x202c, GPA = 0x2400, LINK = 0x2800,
	G_DEBUGCTL = 0x2802, G_PAT = 0x2804, G_EFER = 0x2806, G_PDPTE = 0x280a, G_PKRS = 0x2818,
	H_PAT = 0x2c00, H_EFER = 0x2c02, H_PKRS = 0x2c06,
	PIN = 0x4000, PROC = 0x4002, EXC_BITMAP = 0x4004, CR3_COUNT = 0x400a, EXIT = 0x400c, EXIT_STORE_N = 0x400e,
	EXIT_LOAD_N = 0x4010, ENTRY = 0x4012, ENTRY_LOAD_N = 0x4014, INJECT = 0x4016, INJECT_ERR = 0x4018, INJECT_LEN = 0x401a,
	TPR_THRESHOLD = 0x401c, PROC2 = 0x401e, PLE_GAP = 0x4020, PLE_WINDOW = 0x4022, ERROR = 0x4400, REASON = 0x4402, INTR_INFO = 0x4404, INTR_ERR = 0x4406,
	IDT_INFO = 0x4408, INSN_LEN = 0x440c, INSN_INFO = 0x440e,
	G_LIMIT = 0x4800, G_GDTR_LIMIT = 0x4810, G_IDTR_LIMIT = 0x4812, G_AR = 0x4814, G_BLOCK = 0x4824, G_ACTIVITY = 0x4826,
	TIMER = 0x482e, CR0_MASK = 0x6000, CR4_MASK = 0x6002, CR0_SHADOW = 0x6004, CR4_SHADOW = 0x6006, CR3_TARGET0 = 0x6008,
	QUAL = 0x6400, GLA = 0x640a, G_CR0 = 0x6800, G_CR3 = 0x6802, G_CR4 = 0x6804, G_BASE = 0x6806, G_GDTR = 0x6816,
	G_IDTR = 0x6818, G_DR7 = 0x681a, G_RSP = 0x681c, G_RIP = 0x681e, G_RFLAGS = 0x6820, G_DEBUG = 0x6822,
	G_SYSENTER_ESP = 0x6824, G_SYSENTER_EIP = 0x6826, H_CR0 = 0x6c00, H_CR3 = 0x6c02, H_CR4 = 0x6c04, H_FS_BASE = 0x6c06, H_GS_BASE = 0x6c08, H_TR_BASE = 0x6c0a,
	H_GDTR = 0x6c0c, H_IDTR = 0x6c0e, H_SYSENTER_ESP = 0x6c10, H_SYSENTER_EIP = 0x6c12, H_RSP = 0x6c14, H_RIP = 0x6c16,
};
enum { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_LDTR, SEG_TR };
enum { PIN_EXT = 1, PIN_NMI = 8, PIN_VNMI = 0x20, PIN_TIMER = 0x40, PIN_POSTED = 0x80 };
enum {
	INTR_WINDOW = 1 << 2, TSC_OFF = 1 << 3, X_HLT = 1 << 7, X_INVLPG = 1 << 9, X_MWAIT = 1 << 10, X_RDPMC = 1 << 11,
	X_RDTSC = 1 << 12, X_CR3_LOAD = 1 << 15, X_CR3_STORE = 1 << 16, X_CR8_LOAD = 1 << 19, X_CR8_STORE = 1 << 20,
	TPR_SHADOW = 1 << 21, NMI_WINDOW = 1 << 22, X_DR = 1 << 23, X_IO = 1 << 24, IO_BITMAPS = 1 << 25, MTF = 1 << 27,
	MSR_BITMAPS = 1 << 28, X_MONITOR = 1 << 29, X_PAUSE = 1 << 30,
};
#define SECONDARY 0x80000000u
enum {
	APIC_ACCESS = 1, EPT = 2, X_DESC = 4, RDTSCP = 8, X2APIC = 0x10, USE_VPID = 0x20, X_WBINVD = 0x40, UNRESTRICTED = 0x80, APIC_REGS = 0x100, VIRTUAL_INTR = 0x200, PAUSE_LOOP = 0x400,
	X_RDRAND = 0x800, INVPCID = 0x1000, VMFUNC = 0x2000, SHADOW = 0x4000, X_RDSEED = 0x10000, PML = 0x20000, XSAVES = 0x100000,
};
enum {
	HOST64 = 1 << 9, ACK = 1 << 15, EXIT_LOAD_PAT = 1 << 19, EXIT_LOAD_EFER = 1 << 21, SAVE_TIMER = 1 << 22, EXIT_LOAD_PKRS = 1 << 29,
	LOAD_DEBUG = 1 << 2, IA32E = 1 << 9, LOAD_PAT = 1 << 14, LOAD_EFER = 1 << 15, LOAD_PKRS = 1 << 22,
};
/* Exit reasons, SDM appendix C. */
enum {
	R_EXC, R_INTR, R_TRIPLE, R_INIT, R_SIPI, R_WINDOW = 7, R_NMI_WINDOW, R_TASK, R_CPUID, R_HLT = 12, R_INVD, R_INVLPG, R_RDPMC, R_RDTSC,
	R_VMCALL = 18, R_VMCLEAR, R_VMLAUNCH, R_VMPTRLD, R_VMPTRST, R_VMREAD, R_VMRESUME, R_VMWRITE, R_VMXOFF, R_VMXON, R_CR,
	R_DR, R_IO, R_RDMSR, R_WRMSR, R_BAD_GUEST, R_BAD_MSR, R_MWAIT = 36, R_MTF, R_MONITOR = 39, R_PAUSE, R_TPR = 43,
	R_APIC_ACCESS, R_EOI, R_GDTR_IDTR, R_LDTR_TR, R_EPT, R_MISCONFIG, R_INVEPT, R_RDTSCP, R_TIMER, R_INVVPID, R_WBINVD, R_XSETBV,
	R_APIC_WRITE, R_RDRAND, R_INVPCID, R_VMFUNC, R_RDSEED = 61, R_PML, R_XSAVES, R_XRSTORS,
};
#define FAILED 0x80000000u
#define WIDE (1ull << 46) /* beyond the width of physical addresses; vmx_checks looks whether it is */
/* What an instruction leaves: status flags as a kind. */
enum { SUCCEED, FAIL_INVALID, FAIL_VALID };

static inline int status(u64 flags) { return flags & FL_CF ? FAIL_INVALID : flags & FL_ZF ? FAIL_VALID : SUCCEED; }
#define VMX_OP(name, text) \
	static inline int name(const u64 *p) \
	{ \
		uptr f; \
		__asm__ volatile(text " %1; pushf; pop %0" : "=r"(f) : "m"(*p) : "cc", "memory"); \
		return status(f); \
	}
VMX_OP(vmxon, "vmxon") VMX_OP(vmclear, "vmclear") VMX_OP(vmptrld, "vmptrld")
static inline int vmptrst(u64 *p)
{
	uptr f;
	__asm__ volatile("vmptrst %1; pushf; pop %0" : "=r"(f), "=m"(*p) : : "cc", "memory");
	return status(f);
}
#ifdef __x86_64__
static inline int vmread(u64 field, u64 *v)
{
	u64 f;
	__asm__ volatile("vmread %2,%1; pushf; pop %0" : "=r"(f), "=r"(*v) : "r"(field), "1"(*v) : "cc");
	return status(f);
}
static inline int vmwrite(u64 field, u64 v)
{
	u64 f;
	__asm__ volatile("vmwrite %1,%2; pushf; pop %0" : "=r"(f) : "r"(v), "r"(field) : "cc", "memory");
	return status(f);
}
#else
/* A field of 64 bits in halves. */
static inline int vmread(u64 field, u64 *v)
{
	u32 f, low = 0, high = 0;
	__asm__ volatile("vmread %2,%1; pushf; pop %0" : "=r"(f), "+r"(low) : "r"((u32)field) : "cc");
	if (field >> 13 == 1)
		__asm__ volatile("vmread %1,%0" : "+r"(high) : "r"((u32)field | 1) : "cc");
	*v = low | (u64)high << 32;
	return status(f);
}
static inline int vmwrite(u64 field, u64 v)
{
	u32 f;
	__asm__ volatile("vmwrite %1,%2; pushf; pop %0" : "=r"(f) : "r"((u32)v), "r"((u32)field) : "cc", "memory");
	if (field >> 13 == 1)
		__asm__ volatile("vmwrite %0,%1" : : "r"((u32)(v >> 32)), "r"((u32)field | 1) : "cc", "memory");
	return status(f);
}
#endif
static inline u64 rd(u64 field) { u64 v = 0; vmread(field, &v); return v; }
static inline void wr(u64 field, u64 v) { vmwrite(field, v); }
static inline int invept(u64 type, const u64 d[2])
{
	uptr f;
	__asm__ volatile("invept %1,%2; pushf; pop %0" : "=r"(f) : "m"(*(const u64(*)[2])d), "r"((uptr)type) : "cc", "memory");
	return status(f);
}
static inline int invvpid(u64 type, const u64 d[2])
{
	uptr f;
	__asm__ volatile("invvpid %1,%2; pushf; pop %0" : "=r"(f) : "m"(*(const u64(*)[2])d), "r"((uptr)type) : "cc", "memory");
	return status(f);
}

/* Guest code: text, then VMCALL for ever. */
#define SNIPPET(name, text) \
	extern u8 name[]; \
	__asm__(".pushsection .text\n.globl " #name "\n" #name ":\n" text "\n1: vmcall\njmp 1b\n.popsection\n")

/* Not every guest uses all of them. */
#define PAGE __attribute__((aligned(4096), unused))
static u64 vmxon_region[512] PAGE, vmcs[512] PAGE, other[512] PAGE, shadow[512] PAGE, bitmap[512] PAGE, zeros[512] PAGE;
static u64 stack[512] PAGE, pml4[512] PAGE, pdpt[512] PAGE, pd[4][512] PAGE, pt[512] PAGE, pml[512] PAGE, pdpt32[4] PAGE;
u64 scratch[512] PAGE;
static inline u64 at(const void *p) { return (uptr)p; }
static u32 launched;
static u32 host_rip_field = H_RIP; /* another one: H_RIP stays as it is */

/* Enters; SUCCEED once there was an exit or a failed entry. The guest leaves all general registers its own. */
#ifdef __x86_64__
static noinline int enter(void)
{
	u64 f;
	__asm__ volatile("push %%rbp; push %%rbx\n"
			 "mov %[hrsp],%%edx; vmwrite %%rsp,%%rdx; mov %[hrip],%%edx; lea 3f(%%rip),%%rax; vmwrite %%rax,%%rdx\n"
			 "cmpl $0,%[l]; jne 1f; vmlaunch; jmp 2f\n1: vmresume\n2: pushf; pop %%rax; jmp 4f\n"
			 "3: xor %%eax,%%eax\n4: pop %%rbx; pop %%rbp"
			 : "=a"(f) : [hrsp] "i"(H_RSP), [hrip] "m"(host_rip_field), [l] "m"(launched)
			 : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "cc", "memory");
	if (status(f) == SUCCEED && !(rd(REASON) & FAILED))
		launched = 1;
	return status(f);
}
#else
static noinline int enter(void)
{
	u32 f;
	__asm__ volatile("push %%ebp; push %%ebx\n"
			 "mov %[hrsp],%%edx; vmwrite %%esp,%%edx; mov %[hrip],%%edx; mov $3f,%%eax; vmwrite %%eax,%%edx\n"
			 "cmpl $0,%[l]; jne 1f; vmlaunch; jmp 2f\n1: vmresume\n2: pushf; pop %%eax; jmp 4f\n"
			 "3: xor %%eax,%%eax\n4: pop %%ebx; pop %%ebp"
			 : "=a"(f) : [hrsp] "i"(H_RSP), [hrip] "m"(host_rip_field), [l] "m"(launched) : "ecx", "edx", "esi", "edi", "cc", "memory");
	if (status(f) == SUCCEED && !(rd(REASON) & FAILED))
		launched = 1;
	return status(f);
}
#endif

/* Of this width. */
enum { IS64 = sizeof(uptr) == 8, HOST_WIDTH = IS64 ? HOST64 : 0, GUEST_WIDTH = IS64 ? IA32E : 0, CODE_AR = IS64 ? 0xa09b : 0xc09b };

/* ---- a guest that works --------------------------------------------------------------------------------- */

static inline u32 must(u32 msr, u32 want) { u64 v = rdmsr(msr); return (want | (u32)v) & (u32)(v >> 32); }

static inline void set_host(void)
{
	struct dtr g, i;
	__asm__ volatile("sgdt %0; sidt %1" : "=m"(g), "=m"(i));
	static const u32 fields[] = { H_ES, H_SS, H_DS, H_FS, H_GS };
	for (unsigned k = 0; k < ARRAY_LEN(fields); k++)
		wr(fields[k], DATA);
	wr(H_CS, CODE); wr(H_TR, TSS_SEL);
	wr(H_CR0, read_cr0()); wr(H_CR3, read_cr3()); wr(H_CR4, read_cr4());
	wr(H_FS_BASE, 0); wr(H_SYSENTER_ESP, 0); wr(H_TR_BASE, at(&tss)); wr(H_GDTR, g.base); wr(H_IDTR, i.base);
	wr(H_EFER, rdmsr(EFER)); wr(H_PAT, rdmsr(0x277));
	wr(G_GDTR, g.base); wr(G_GDTR_LIMIT, g.limit); wr(G_IDTR, i.base); wr(G_IDTR_LIMIT, i.limit);
}

static inline void set_segment(unsigned s, u32 selector, u64 base, u32 limit, u32 ar)
{
	wr(G_ES + 2 * s, selector); wr(G_BASE + 2 * s, base); wr(G_LIMIT + 2 * s, limit); wr(G_AR + 2 * s, ar);
}

/* As this processor is, at `code`, CPL 0. */
static inline void set_guest(const void *code)
{
	for (unsigned s = SEG_ES; s <= SEG_GS; s++)
		set_segment(s, s == SEG_CS ? CODE : DATA, 0, 0xffffffff, s == SEG_CS ? CODE_AR : 0xc093);
	set_segment(SEG_LDTR, 0, 0, 0, 0x10000);
	set_segment(SEG_TR, TSS_SEL, at(&tss), 0x67, 0x8b);
	wr(G_CR0, read_cr0()); wr(G_CR3, read_cr3()); wr(G_CR4, read_cr4());
	wr(G_SYSENTER_ESP, 0); wr(G_DR7, 0x400); wr(G_RFLAGS, 2); wr(G_RSP, at(stack + 500)); wr(G_RIP, at(code));
	wr(G_EFER, rdmsr(EFER)); wr(G_PAT, rdmsr(0x277)); wr(LINK, ~0ull);
	wr(G_BLOCK, 0); wr(G_ACTIVITY, 0); wr(G_DEBUG, 0); wr(G_DEBUGCTL, 0); wr(INJECT, 0);
}

static inline void set_controls(u32 pin, u32 proc, u32 proc2)
{
	wr(PIN, must(0x48d, pin));
	wr(PROC, must(0x48e, proc | SECONDARY));
	wr(PROC2, must(0x48b, proc2));
	wr(EXIT, must(0x48f, HOST_WIDTH | ACK));
	wr(ENTRY, must(0x490, GUEST_WIDTH));
	wr(EXC_BITMAP, 0);
	wr(CR3_COUNT, 0);
}

static inline void fresh(const void *code)
{
	set_controls(0, 0, 0);
	set_host();
	set_guest(code);
}

/* The guest that is there becomes one of 32 bits with PAE paging. */
static inline void pae_guest(void)
{
	wr(ENTRY, must(0x490, 0));
	wr(G_AR + 2, 0xc09b);
	wr(G_CR3, at(pdpt32));
	for (unsigned k = 0; k < 4; k++)
		wr(G_PDPTE + 2 * k, pdpt32[k] = at(pd[k]) | 1); /* EPT's 2-MiB entries mean the same, as far as bits count */
}

/* Runs from where the guest is; the exit's basic reason. */
static inline u32 run(void)
{
	if (enter() != SUCCEED)
		return 0xffff;
	return (u32)rd(REASON);
}
static inline u32 run_at(const void *code) { set_guest(code); return run(); }
SNIPPET(g_nothing, "");

/* ---- VMX operation ------------------------------------------------------------------------------------------- */

static inline bool vmx_there(void) { return has(1, 2, 5); }

/* Into VMX operation, with a current VMCS that is clear. */
static inline bool vmx_begin(void)
{
	u64 p = at(vmxon_region), m = at(vmcs);
	write_cr4(read_cr4() | 0x2000);
	write_cr0(read_cr0() | 0x20);
	if (!(rdmsr(0x3a) & 1))
		wrmsr(0x3a, 5);
	vmxon_region[0] = vmcs[0] = (u32)rdmsr(0x480);
	return vmxon(&p) == SUCCEED && vmclear(&m) == SUCCEED && vmptrld(&m) == SUCCEED;
}
static inline void vmx_on(void) { check("VMXON, VMCLEAR, VMPTRLD", vmx_begin()); }

/* ---- EPT ------------------------------------------------------------------------------------------------------- */

static inline void ept_identity(u64 *root)
{
	root[0] = at(pdpt) | 7;
	for (unsigned k = 0; k < 4; k++) {
		pdpt[k] = at(pd[k]) | 7;
		for (unsigned n = 0; n < 512; n++)
			pd[k][n] = (u64)k << 30 | (u64)n << 21 | 0xb7;
	}
	/* The 2 MiB that scratch lies in, by pages. */
	u64 base = at(scratch) >> 21;
	for (unsigned n = 0; n < 512; n++)
		pt[n] = base << 21 | n << 12 | 0x37;
	pd[0][base] = at(pt) | 7;
}
static inline u64 *scratch_entry(void) { return &pt[at(scratch) >> 12 & 511]; }
static inline void ept_on(u32 more, u64 flags)
{
	set_controls(0, 0, EPT | more);
	wr(EPTP, at(pml4) | 3 << 3 | 6 | flags);
	wr(VPID, 1);
}
static inline void flush(void) { u64 d[2] = { 0 }; invept(2, d); }

#endif
