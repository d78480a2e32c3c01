/* guest: the little that a bare-metal test guest needs. One processor unless a guest starts
 * more; no interrupts unless it enables them; 32-bit guests run without paging, 64-bit ones on
 * an identity map of 4 GiB, user-accessible, in 2-MiB pages.
 *
 * A guest is a C file with main(). It asks questions with check*() and ends by returning; lib
 * prints `guest NAME: N passed, N failed` on port 0xe9 and leaves through port 0xf4: 0 all
 * passed, 1 some failed, 2 an exception that no test expected.
 *
 * TRY(code) runs code and catches what it raises: its value is the vector, NONE if there was no
 * exception, and `trap` then tells the rest. The processor comes back from wherever it was, any
 * ring or V86 included, to CPL 0 with flat segments and clear flags: IDT gates lead to CPL 0, on
 * the TSS's stack when they come from elsewhere. go() enters any mode through IRET; code there
 * says that it is done by INT DONE. */
#ifndef GUEST_H
#define GUEST_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char i8;
typedef short i16;
typedef int i32;
typedef long long i64;
typedef unsigned long uptr;
typedef _Bool bool;
#define true 1
#define false 0
#define NULL ((void *)0)
#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define STR_(x) #x
#define STR(x) STR_(x)
#define noinline __attribute__((noinline))

/* ---- checks ------------------------------------------------------------------------------ */

extern const char guest_name[]; /* each guest defines it */
void check(const char *name, bool ok);
void check_eq(const char *name, u64 got, u64 want);
/* An exception: vector, and error code (EC_ANY: not looked at). After TRY or go. */
#define EC_ANY 0xffffffffu
void check_trap(const char *name, int vector, u32 error);
/* A test that this processor cannot be asked; printed, not counted. */
void skip(const char *name, const char *why);
void say(const char *format, ...);             /* %s %d %u %x %c; %X: u64 */
const char *fmt(const char *format, ...);      /* for names: a static buffer, the next of eight */
_Noreturn void guest_exit(u32 code);
_Noreturn void die(const char *why);
int main(void);

/* ---- exceptions -------------------------------------------------------------------------- */

enum { NONE = -1, DE = 0, DB, NMI, BP, OF, BR, UD, NM, DF, CSO, TS, NP, SS, GP, PF, MF = 16, AC, MC, XM, DONE = 0x80 };

/* In the order in which the stubs push it. */
#ifdef __x86_64__
struct frame { u64 r15, r14, r13, r12, r11, r10, r9, r8, di, si, bp, bx, dx, cx, ax, vec, err, ip, cs, flags, sp, ss; };
#else
struct frame { u32 gs, fs, es, ds, di, si, bp, sp_, bx, dx, cx, ax, vec, err, ip, cs, flags, sp, ss, ves, vds, vfs, vgs; };
#endif
struct trap {
	int vec;
	u32 err;        /* 0 where there is none */
	uptr cr2;
	struct frame f; /* sp and ss: of the interrupted code */
	uptr at;        /* the stack pointer on entry, where the last pushed word lies */
	uptr raw[10];   /* the stack from there up, error code included if one was pushed */
	uptr entry_ss, entry_cs, entry_flags;
};
extern struct trap trap;
extern bool (*trap_hook)(struct frame *f); /* true: return to the interrupted code with *f */
extern volatile bool catch_armed;
int catch_set(void) __attribute__((returns_twice));
_Noreturn void catch_return(void);
#define TRY(...) ({ \
	trap.vec = NONE; \
	if (!catch_set()) { __VA_ARGS__; catch_armed = false; } \
	trap.vec; })

/* ---- tables ------------------------------------------------------------------------------ */

/* Selectors. */
#ifdef __x86_64__
enum { CODE = 0x08, DATA = 0x10, UCODE32 = 0x1b, UDATA = 0x23, UCODE = 0x2b, TSS_SEL = 0x30, CODE32 = 0x40, FREE = 10 };
#else
enum { CODE = 0x08, DATA = 0x10, UCODE = 0x1b, UDATA = 0x23, TSS_SEL = 0x28, DF_SEL = 0x30, CODE16 = 0x38, DATA16 = 0x40,
       CODE1 = 0x49, DATA1 = 0x51, CODE2 = 0x5a, DATA2 = 0x62, FREE = 13 };
#endif
/* access: descriptor byte 5; flags: high nibble of byte 6. */
enum { A_P = 0x80, A_DATA = 0x90, A_RW = 0x92, A_CODE = 0x98, A_XR = 0x9a, A_CONF = 0x9e, A_DOWN = 0x96, A_DPL1 = 0x20,
       A_DPL2 = 0x40, A_DPL3 = 0x60, A_LDT = 0x82, A_TSS16 = 0x81, A_TSS32 = 0x89, A_CALL16 = 0x84, A_TASK = 0x85,
       A_INT16 = 0x86, A_TRAP16 = 0x87, A_CALL32 = 0x8c, A_INT32 = 0x8e, A_TRAP32 = 0x8f };
enum { F_G = 8, F_B = 4, F_L = 2 };
#define GDT_N 256
extern u64 gdt[GDT_N], idt[512];
struct __attribute__((packed)) dtr { u16 limit; uptr base; };
u64 desc(u32 base, u32 limit, u32 access, u32 flags);
u64 gate(u32 sel, u32 offset, u32 access, u32 params);
static inline u16 sel(unsigned index, unsigned rpl) { return (u16)(index * 8 + rpl); }
void set_idt(unsigned vector, u32 access);     /* gate to lib's handler */
void load_tables(void);                        /* GDTR, IDTR as they were at the start */
extern u8 trap_stack[], user_stack[], user_stack_end[], trap_stack_end[];

#ifdef __x86_64__
/* A guest that starts a second processor (start_ap) defines what runs there, on a stack of its own,
 * with this processor's tables; exceptions there are not caught. Not waited for. */
void ap_entry(void);
void start_ap(u32 apic_id);
void apic_write(u32 reg, u32 v);
u32 apic_read(u32 reg);
void delay_us(u32 us);      /* by the i8254's channel 2 */
struct __attribute__((packed)) tss64 { u32 r0; u64 rsp[3]; u64 r1; u64 ist[8]; u16 r2, iomap; u8 bits[8193]; };
extern struct tss64 tss;
void idt_set64(unsigned vector, u16 sel, u64 offset, u32 access, unsigned ist);
#else
struct tss32 { u32 link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags, eax, ecx, edx, ebx, esp, ebp, esi, edi,
	       es, cs, ss, ds, fs, gs, ldt; u16 trace, iomap; };
extern struct { struct tss32 t; u8 redirect[32]; u8 io[8193]; } tss;
enum { TSS_IOMAP = sizeof(struct tss32) + 32 };
#endif

/* ---- other modes ------------------------------------------------------------------------- */

/* Where go() goes. Returns the vector that ended it; registers then are in trap.f. */
struct regs {
	uptr ax, bx, cx, dx, si, di, bp, sp, ip, flags;
#ifdef __x86_64__
	uptr r8, r9, r10, r11, r12, r13, r14, r15;
#endif
	u32 cs, ss, ds, es, fs, gs;
};
int go(const struct regs *r);
/* At CPL 3 on the user stack with flags 2; ip returns by INT DONE. */
struct regs user_regs(const void *ip);
int user(const void *ip);

#ifndef __x86_64__
/* A snippet of 16-bit code, run at 0x1000:0 by real() and v86(); ends by INT DONE. */
#define CODE16_SNIPPET(name, text) \
	extern const u8 name[], name##_end[]; \
	__asm__(".pushsection .rodata\n.code16\n.globl " #name "\n" #name ":\n" text \
		"\nint $0x80\n.globl " #name "_end\n" #name "_end:\n.byte 0\n.code32\n.popsection\n")
#define SNIP_SEG 0x1000u
#define SNIP_LIN (SNIP_SEG << 4)
struct regs regs16(void);       /* segments SNIP_SEG+0x1000.. : ds 0x2000, es 0x3000, ss:sp 0x4000:0x8000 */
void put16(const u8 *from, const u8 *end);
#define V86(name, regs) (put16(name, name##_end), go(regs))
/* Real mode. Exceptions and INT n come through the vector table; out: in trap (f, vec). */
#define REAL(name, regs) (put16(name, name##_end), real_run(regs, false))
#define UNREAL(name, regs) (put16(name, name##_end), real_run(regs, true))
int real_run(const struct regs *r, bool big); /* big: 4-GiB limits stay in DS, ES, FS, GS */
#endif

/* ---- processor --------------------------------------------------------------------------- */

static inline void outb(u16 p, u8 v) { __asm__ volatile("outb %0,%1" : : "a"(v), "Nd"(p)); }
static inline void outw(u16 p, u16 v) { __asm__ volatile("outw %0,%1" : : "a"(v), "Nd"(p)); }
static inline void outl(u16 p, u32 v) { __asm__ volatile("outl %0,%1" : : "a"(v), "Nd"(p)); }
static inline u8 inb(u16 p) { u8 v; __asm__ volatile("inb %1,%0" : "=a"(v) : "Nd"(p)); return v; }
static inline u32 inl(u16 p) { u32 v; __asm__ volatile("inl %1,%0" : "=a"(v) : "Nd"(p)); return v; }
#define RW_REG(name) \
	static inline uptr read_##name(void) { uptr v; __asm__ volatile("mov %%" #name ",%0" : "=r"(v) : : "memory"); return v; } \
	static inline void write_##name(uptr v) { __asm__ volatile("mov %0,%%" #name : : "r"(v) : "memory"); }
RW_REG(cr0) RW_REG(cr2) RW_REG(cr3) RW_REG(cr4)
RW_REG(dr0) RW_REG(dr1) RW_REG(dr2) RW_REG(dr3) RW_REG(dr6) RW_REG(dr7)
static inline u64 rdmsr(u32 n) { u32 a, d; __asm__ volatile("rdmsr" : "=a"(a), "=d"(d) : "c"(n)); return (u64)d << 32 | a; }
static inline void wrmsr(u32 n, u64 v) { __asm__ volatile("wrmsr" : : "c"(n), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }
static inline u64 rdtsc(void) { u32 a, d; __asm__ volatile("rdtsc" : "=a"(a), "=d"(d)); return (u64)d << 32 | a; }
static inline uptr get_flags(void) { uptr f; __asm__ volatile("pushf; pop %0" : "=r"(f)); return f; }
static inline void cpuid(u32 leaf, u32 sub, u32 r[4])
{
	__asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub));
}
/* A feature bit by leaf and register (0 EAX to 3 EDX). */
static inline bool has(u32 leaf, unsigned reg, unsigned bit)
{
	u32 r[4];
	cpuid(leaf & 0x80000000, 0, r);
	if (r[0] < leaf)
		return false;
	cpuid(leaf, 0, r);
	return r[reg] >> bit & 1;
}
static inline bool is_amd(void)
{
	u32 r[4];
	cpuid(0, 0, r);
	return r[1] == 0x68747541;
}
enum { EFER = 0xc0000080, STAR, LSTAR, CSTAR, FMASK, FS_BASE = 0xc0000100, GS_BASE, KERNEL_GS_BASE };
enum { FL_CF = 1, FL_PF = 4, FL_AF = 16, FL_ZF = 64, FL_SF = 128, FL_TF = 256, FL_IF = 512, FL_DF = 1024, FL_OF = 2048,
       FL_IOPL = 0x3000, FL_NT = 0x4000, FL_RF = 0x10000, FL_VM = 0x20000, FL_AC = 0x40000, FL_VIF = 0x80000, FL_VIP = 0x100000 };

void *memset(void *p, int c, uptr n);
void *memcpy(void *d, const void *s, uptr n);
int memcmp(const void *a, const void *b, uptr n);

#endif
