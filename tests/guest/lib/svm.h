/* AMD-V from the hypervisor's side: the VMCB, and guests within a guest that run in the same
 * address space, on a stack of their own. AMD APM vol. 2 appendices B and C.
 *
 * A guest's code is a snippet of assembly: SNIP(name, "text"); it ends in VMMCALL, which is always intercepted. */
#ifndef SVM_H
#define SVM_H
#include "guest.h"

struct __attribute__((packed)) vmcb_seg { u16 sel, attr; u32 limit; u64 base; };
struct __attribute__((packed)) vmcb {
	u32 icpt[6];
	u8 r0[0x3c - 0x18];
	u16 pause_threshold, pause_count;
	u64 iopm, msrpm, tsc_offset;
	u32 asid;
	u8 tlb_control, r1[3];
	u32 vintr, vector;
	u64 shadow, exitcode, info1, info2;
	u64 exitintinfo;
	u64 np;
	u8 r2[16];
	u64 eventinj, ncr3, virt_ext;
	u64 clean, nrip;
	u8 n_bytes, bytes[15];
	u8 r3[0x400 - 0xe0];
	struct vmcb_seg es, cs, ss, ds, fs, gs, gdtr, ldtr, idtr, tr;
	u8 r4[43], cpl, r5[4];
	u64 efer;
	u8 r6[112];
	u64 cr4, cr3, cr0, dr7, dr6, rflags, rip;
	u8 r7[88];
	u64 rsp;
	u8 r8[24];
	u64 rax, star, lstar, cstar, sfmask, kernel_gs, sysenter_cs, sysenter_esp, sysenter_eip, cr2;
	u8 r9[32];
	u64 pat, debugctl, br_from, br_to, ex_from, ex_to;
	u8 r10[0x1000 - 0x698];
};
_Static_assert(sizeof(struct vmcb) == 4096, "one page");

enum { EFER_SVME = 0x1000, VM_CR = 0xc0010114, VM_HSAVE_PA = 0xc0010117, TSC_RATIO = 0xc0000104 };
enum { V_IRQ = 1 << 8, V_GIF = 1 << 9, V_PRIO = 1 << 16, V_IGN_TPR = 1 << 20, V_INTR_MASKING = 1 << 24, V_GIF_ENABLE = 1 << 25 };
enum {
	X_EXCEPTION = 0x40, X_INTR = 0x60, X_NMI, X_SMI, X_INIT, X_VINTR, X_CR0_SEL, X_IDTR_READ, X_GDTR_READ, X_LDTR_READ, X_TR_READ,
	X_IDTR_WRITE, X_GDTR_WRITE, X_LDTR_WRITE, X_TR_WRITE, X_RDTSC, X_RDPMC, X_PUSHF, X_POPF, X_CPUID, X_RSM, X_IRET, X_INTN,
	X_INVD, X_PAUSE, X_HLT, X_INVLPG, X_INVLPGA, X_IOIO, X_MSR, X_TASK_SWITCH, X_FERR_FREEZE, X_SHUTDOWN, X_VMRUN, X_VMMCALL,
	X_VMLOAD, X_VMSAVE, X_STGI, X_CLGI, X_SKINIT, X_RDTSCP, X_ICEBP, X_WBINVD, X_MONITOR, X_MWAIT, X_MWAIT_ARMED, X_XSETBV,
	X_INVPCID = 0xa2, X_NPF = 0x400,
};
#define X_INVALID (~0ull)
#define EVENT(type, vector) (1ull << 31 | (u64)(type) << 8 | (vector))
enum { EV_INTR = 0, EV_NMI = 2, EV_EXCEPTION = 3, EV_SOFT = 4 };

static struct vmcb vmcb __attribute__((aligned(4096)));
static u8 iopm[3 * 4096] __attribute__((aligned(4096))), msrpm[2 * 4096] __attribute__((aligned(4096)));
static u8 hsave[4096] __attribute__((aligned(4096))), nested_stack[4096] __attribute__((aligned(16)));
u64 nested_rbx, nested_rcx, nested_rdx; /* the nested guest's, before and after */

static inline void want(unsigned code) { vmcb.icpt[code / 32] |= 1u << (code % 32); }
static inline void unwant(unsigned code) { vmcb.icpt[code / 32] &= ~(1u << (code % 32)); }
static inline void vmsave(void *p) { __asm__ volatile("vmsave" : : "a"(p) : "memory"); }
static inline void vmload(void *p) { __asm__ volatile("vmload" : : "a"(p) : "memory"); }
static inline void stgi(void) { __asm__ volatile("stgi" : : : "memory"); }
static inline void clgi(void) { __asm__ volatile("clgi" : : : "memory"); }

#define SNIP(name, text) \
	extern const u8 name[]; \
	__asm__(".pushsection .text\n.globl " #name "\n" #name ":\n" text "\nvmmcall\nhlt\n.popsection\n")

static inline struct vmcb_seg vmcb_flat(u16 sel, u16 attr) { return (struct vmcb_seg){ sel, attr, 0xffffffff, 0 }; }

/* A guest that is as we are. */
static inline void vmcb_init(void)
{
	struct __attribute__((packed)) { u16 limit; uptr base; } t;
	memset(&vmcb, 0, sizeof(vmcb));
	vmsave(&vmcb);
	want(X_VMRUN);
	want(X_VMMCALL);
	want(X_SHUTDOWN);
	vmcb.iopm = (uptr)iopm;
	vmcb.msrpm = (uptr)msrpm;
	vmcb.asid = 1;
	vmcb.tlb_control = 1;
	vmcb.cs = vmcb_flat(CODE, sizeof(uptr) == 8 ? 0xa9b : 0xc9b);
	vmcb.ds = vmcb.es = vmcb.ss = vmcb_flat(DATA, 0xc93);
	__asm__ volatile("sgdt %0" : "=m"(t));
	vmcb.gdtr = (struct vmcb_seg){ 0, 0, t.limit, t.base };
	__asm__ volatile("sidt %0" : "=m"(t));
	vmcb.idtr = (struct vmcb_seg){ 0, 0, t.limit, t.base };
	vmcb.efer = rdmsr(EFER);
	vmcb.cr0 = read_cr0();
	vmcb.cr3 = read_cr3();
	vmcb.cr4 = read_cr4();
	vmcb.dr6 = 0xffff0ff0;
	vmcb.dr7 = 0x400;
	vmcb.rflags = 2;
	vmcb.rsp = (uptr)nested_stack + sizeof(nested_stack);
	vmcb.pat = rdmsr(0x277);
}

/* VMRUN once; GIF is 0 afterwards. */
#ifdef __x86_64__
static noinline u64 vmrun_once(void)
{
	__asm__ volatile("push %%rbp; push %%rbx; push %%r12; push %%r13; push %%r14; push %%r15\n"
			 "mov nested_rbx, %%rbx; mov nested_rcx, %%rcx; mov nested_rdx, %%rdx\n"
			 "vmrun\n"
			 "mov %%rbx, nested_rbx; mov %%rcx, nested_rcx; mov %%rdx, nested_rdx\n"
			 "pop %%r15; pop %%r14; pop %%r13; pop %%r12; pop %%rbx; pop %%rbp"
			 : : "a"(&vmcb) : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory", "cc");
	return vmcb.exitcode;
}
#else
static noinline u64 vmrun_once(void)
{
	__asm__ volatile("push %%ebp; push %%ebx; mov nested_rbx, %%ebx; mov nested_rcx, %%ecx; mov nested_rdx, %%edx\n"
			 "vmrun\n"
			 "mov %%ebx, nested_rbx; mov %%ecx, nested_rcx; mov %%edx, nested_rdx; pop %%ebx; pop %%ebp"
			 : : "a"(&vmcb) : "ecx", "edx", "esi", "edi", "memory", "cc");
	return vmcb.exitcode;
}
#endif

static inline u64 run_at(const void *rip)
{
	vmcb.rip = (uptr)rip;
	vmcb.rsp = (uptr)nested_stack + sizeof(nested_stack);
	u64 code = vmrun_once();
	stgi();
	return code;
}

static inline bool svm_there(void) { return is_amd() && has(0x80000001, 2, 2); }
static inline void svm_on(void)
{
	wrmsr(VM_HSAVE_PA, (uptr)hsave);
	wrmsr(EFER, rdmsr(EFER) | EFER_SVME);
}

#endif
