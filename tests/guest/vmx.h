/* A small hypervisor by VT-x for vmx.c: one VMCS, a guest that shares the host's memory, tables and IDT. Its code
 * is snippets that end in VMCALL. Intel SDM vol. 3 chapters 24 to 28 and appendices A to C. */
#ifndef VMX_H
#define VMX_H
#include "guest.h"

/* Fields, SDM appendix B. */
enum {
	VPID = 0, EPTP_INDEX = 4, G_ES = 0x800, G_CS = 0x802, G_SS = 0x804, G_DS = 0x806, G_FS = 0x808, G_GS = 0x80a,
	G_LDTR = 0x80c, G_TR = 0x80e, PML_INDEX = 0x812, H_ES = 0xc00, H_CS = 0xc02, H_SS = 0xc04, H_DS = 0xc06,
	H_FS = 0xc08, H_GS = 0xc0a, H_TR = 0xc0c,
	IO_A = 0x2000, IO_B = 0x2002, MSR_BITMAP = 0x2004, EXIT_STORE = 0x2006, EXIT_LOAD = 0x2008, ENTRY_LOAD = 0x200a,
	PML_ADDR = 0x200e, TSC_OFFSET = 0x2010, VAPIC = 0x2012, APIC_PAGE = 0x2014, VMFUNC_CTL = 0x2018, EPTP = 0x201a,
	EPTP_LIST = 0x2024, VMREAD_BITMAP = 0x2026, VMWRITE_BITMAP = 0x2028, GPA = 0x2400, LINK = 0x2800,
	G_DEBUGCTL = 0x2802, G_PAT = 0x2804, G_EFER = 0x2806, H_PAT = 0x2c00, H_EFER = 0x2c02,
	PIN = 0x4000, PROC = 0x4002, EXC_BITMAP = 0x4004, CR3_COUNT = 0x400a, EXIT = 0x400c, EXIT_STORE_N = 0x400e,
	EXIT_LOAD_N = 0x4010, ENTRY = 0x4012, ENTRY_LOAD_N = 0x4014, INJECT = 0x4016, INJECT_ERR = 0x4018, INJECT_LEN = 0x401a,
	TPR_THRESHOLD = 0x401c, PROC2 = 0x401e, ERROR = 0x4400, REASON = 0x4402, INTR_INFO = 0x4404, INTR_ERR = 0x4406,
	IDT_INFO = 0x4408, INSN_LEN = 0x440c, INSN_INFO = 0x440e,
	G_LIMIT = 0x4800, G_GDTR_LIMIT = 0x4810, G_IDTR_LIMIT = 0x4812, G_AR = 0x4814, G_BLOCK = 0x4824, G_ACTIVITY = 0x4826,
	TIMER = 0x482e, CR0_MASK = 0x6000, CR4_MASK = 0x6002, CR0_SHADOW = 0x6004, CR4_SHADOW = 0x6006, CR3_TARGET0 = 0x6008,
	QUAL = 0x6400, GLA = 0x640a, G_CR0 = 0x6800, G_CR3 = 0x6802, G_CR4 = 0x6804, G_BASE = 0x6806, G_GDTR = 0x6816,
	G_IDTR = 0x6818, G_DR7 = 0x681a, G_RSP = 0x681c, G_RIP = 0x681e, G_RFLAGS = 0x6820, G_DEBUG = 0x6822,
	G_SYSENTER_ESP = 0x6824, H_CR0 = 0x6c00, H_CR3 = 0x6c02, H_CR4 = 0x6c04, H_FS_BASE = 0x6c06, H_TR_BASE = 0x6c0a,
	H_GDTR = 0x6c0c, H_IDTR = 0x6c0e, H_SYSENTER_ESP = 0x6c10, H_RSP = 0x6c14, H_RIP = 0x6c16,
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
	APIC_ACCESS = 1, EPT = 2, X_DESC = 4, RDTSCP = 8, X2APIC = 0x10, USE_VPID = 0x20, X_WBINVD = 0x40, UNRESTRICTED = 0x80, APIC_REGS = 0x100,
	X_RDRAND = 0x800, INVPCID = 0x1000, VMFUNC = 0x2000, SHADOW = 0x4000, X_RDSEED = 0x10000, PML = 0x20000, XSAVES = 0x100000,
};
enum { HOST64 = 1 << 9, ACK = 1 << 15, IA32E = 1 << 9 };
/* Exit reasons, SDM appendix C. */
enum {
	R_EXC, R_INTR, R_TRIPLE, R_WINDOW = 7, R_NMI_WINDOW, R_TASK, R_CPUID, R_HLT = 12, R_INVD, R_INVLPG, R_RDPMC, R_RDTSC,
	R_VMCALL = 18, R_VMCLEAR, R_VMLAUNCH, R_VMPTRLD, R_VMPTRST, R_VMREAD, R_VMRESUME, R_VMWRITE, R_VMXOFF, R_VMXON, R_CR,
	R_DR, R_IO, R_RDMSR, R_WRMSR, R_BAD_GUEST, R_BAD_MSR, R_MWAIT = 36, R_MTF, R_MONITOR = 39, R_PAUSE, R_TPR = 43,
	R_APIC_ACCESS, R_GDTR_IDTR = 46, R_LDTR_TR, R_EPT, R_MISCONFIG, R_INVEPT, R_RDTSCP, R_TIMER, R_INVVPID, R_WBINVD, R_XSETBV,
	R_RDRAND = 57, R_INVPCID, R_VMFUNC, R_RDSEED = 61, R_PML,
};
#define FAILED 0x80000000u
/* What an instruction leaves: status flags as a kind. */
enum { SUCCEED, FAIL_INVALID, FAIL_VALID };

static inline int status(u64 flags) { return flags & FL_CF ? FAIL_INVALID : flags & FL_ZF ? FAIL_VALID : SUCCEED; }
#define VMX_OP(name, text) \
	static inline int name(const u64 *p) \
	{ \
		u64 f; \
		__asm__ volatile(text " %1; pushf; pop %0" : "=r"(f) : "m"(*p) : "cc", "memory"); \
		return status(f); \
	}
VMX_OP(vmxon, "vmxon") VMX_OP(vmclear, "vmclear") VMX_OP(vmptrld, "vmptrld")
static inline int vmptrst(u64 *p)
{
	u64 f;
	__asm__ volatile("vmptrst %1; pushf; pop %0" : "=r"(f), "=m"(*p) : : "cc", "memory");
	return status(f);
}
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
static inline u64 rd(u64 field) { u64 v = 0; vmread(field, &v); return v; }
static inline void wr(u64 field, u64 v) { vmwrite(field, v); }
static inline int invept(u64 type, const u64 d[2])
{
	u64 f;
	__asm__ volatile("invept %1,%2; pushf; pop %0" : "=r"(f) : "m"(*(const u64(*)[2])d), "r"(type) : "cc", "memory");
	return status(f);
}
static inline int invvpid(u64 type, const u64 d[2])
{
	u64 f;
	__asm__ volatile("invvpid %1,%2; pushf; pop %0" : "=r"(f) : "m"(*(const u64(*)[2])d), "r"(type) : "cc", "memory");
	return status(f);
}

/* Guest code: text, then VMCALL for ever. */
#define SNIPPET(name, text) \
	extern u8 name[]; \
	__asm__(".pushsection .text\n.globl " #name "\n" #name ":\n" text "\n1: vmcall\njmp 1b\n.popsection\n")

#endif
