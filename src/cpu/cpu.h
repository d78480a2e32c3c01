/* cpu: the x86 architecture, engine-free. One struct cpu a processor, owned by its vCPU
 * thread; other threads touch only `events` (cpu_post_event) and what a comment says.
 *
 * Invariants
 *  1. Segment registers are their hidden parts: seg[] is loaded from descriptors once, later
 *     writes to a table in memory change nothing until a reload.
 *  2. Derived state (code_mode, mmu index, ebase, seg_fast, nofpu, slow) is never set by
 *     hand: whoever changes CR0/CR4/EFER/XCR0/RFLAGS/segments/DR7 calls the cpu_update_*
 *     function that owns it.
 *  3. Exceptions: cpu_raise*() leaves by longjmp to the engine's frame. A handler or a
 *     function here commits architectural state only after its last access that can fault.
 *     rip: an engine sets c->rip to the *next* instruction before a handler that is marked
 *     OF_ENDS runs; on a fault it puts back the start of the instruction, unless keep_rip.
 *  4. While an engine runs (between fpu_load and fpu_save) the guest's x87/MMX registers,
 *     x87 control words and MXCSR live in the host's own; vector registers, opmasks live in
 *     zmm[] and k[]. So no floating point and no long double in anything a vCPU calls. */
#ifndef RING3_CPU_H
#define RING3_CPU_H

#include <setjmp.h>

#include "base/base.h"
#include "cpu/nested_state.h"
#include "isa/isa.h"
#include "mem/apic_api.h"
#include "mem/mem.h"

/* ---- bits ------------------------------------------------------------------------------ */

enum {
	FL_CF = 1, FL_1 = 2, FL_PF = 4, FL_AF = 0x10, FL_ZF = 0x40, FL_SF = 0x80, FL_TF = 0x100,
	FL_IF = 0x200, FL_DF = 0x400, FL_OF = 0x800, FL_IOPL = 0x3000, FL_NT = 0x4000,
	FL_RF = 0x10000, FL_VM = 0x20000, FL_AC = 0x40000, FL_VIF = 0x80000, FL_VIP = 0x100000,
	FL_ID = 0x200000,
	FL_STATUS = FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF | FL_OF,
};
enum {
	CR0_PE = 1, CR0_MP = 2, CR0_EM = 4, CR0_TS = 8, CR0_ET = 0x10, CR0_NE = 0x20,
	CR0_WP = 0x10000, CR0_AM = 0x40000, CR0_NW = 0x20000000, CR0_CD = 0x40000000,
};
#define CR0_PG 0x80000000ull
enum {
	CR4_VME = 1, CR4_PVI = 2, CR4_TSD = 4, CR4_DE = 8, CR4_PSE = 0x10, CR4_PAE = 0x20,
	CR4_MCE = 0x40, CR4_PGE = 0x80, CR4_PCE = 0x100, CR4_OSFXSR = 0x200, CR4_OSXMMEXCPT = 0x400,
	CR4_UMIP = 0x800, CR4_LA57 = 0x1000, CR4_VMXE = 0x2000, CR4_SMXE = 0x4000,
	CR4_FSGSBASE = 0x10000, CR4_PCIDE = 0x20000, CR4_OSXSAVE = 0x40000, CR4_SMEP = 0x100000,
	CR4_SMAP = 0x200000, CR4_PKE = 0x400000, CR4_CET = 0x800000, CR4_PKS = 0x1000000,
};
enum {
	EFER_SCE = 1, EFER_LME = 0x100, EFER_LMA = 0x400, EFER_NXE = 0x800, EFER_SVME = 0x1000,
	EFER_LMSLE = 0x2000, EFER_FFXSR = 0x4000, EFER_TCE = 0x8000,
	EFER_AIBRSE = 0x200000,
};
enum vector {
	V_DE, V_DB, V_NMI, V_BP, V_OF, V_BR, V_UD, V_NM, V_DF, V_CSO, V_TS, V_NP, V_SS, V_GP,
	V_PF, V_MF = 16, V_AC, V_MC, V_XM, V_VE, V_CP, V_SX = 30,
};
enum { PF_P = 1, PF_W = 2, PF_U = 4, PF_RSVD = 8, PF_I = 16, PF_PK = 32 };

/* ---- segments -------------------------------------------------------------------------- */

/* attr: descriptor bytes 5 and 6 as VMX access rights: type 3:0, S 4, DPL 6:5, P 7,
 * AVL 12, L 13, D/B 14, G 15, unusable 16 (null selector). limit: in bytes, G applied. */
struct segment { u16 sel; u32 attr; u32 limit; u64 base; };
enum { SEG_TYPE = 15, SEG_S = 16, SEG_DPL = 0x60, SEG_P = 0x80, SEG_AVL = 0x1000, SEG_L = 0x2000,
       SEG_DB = 0x4000, SEG_G = 0x8000, SEG_UNUSABLE = 0x10000 };
struct dtable { u64 base; u16 limit; };

/* ---- translation lookaside buffer --------------------------------------------------------
 * Direct-mapped, one array per mmu index. A tag is the linear page | epoch (1..0xfff); 0 never
 * matches. Flushing is a new epoch; each PCID keeps its own. rtag set: may be read; wtag set:
 * may be written (dirty bit is set, page is RAM). Host address = linear + addend. */
struct tlb_entry {
	u64 rtag, wtag;
	u64 addend;
	struct page_code *code; /* never NULL where wtag is set */
};
#define TLB_BITS 12
#define TLB_SIZE (1u << TLB_BITS)
enum mmu_index {
	MMU_KERNEL,  /* CPL 0-2, SMAP off or AC set */
	MMU_SMAP,    /* CPL 0-2, user pages refused */
	MMU_USER,    /* CPL 3 */
	MMU_CHECK,   /* never filled: alignment checks or data breakpoints are on */
	N_MMU
};
struct code_tlb_entry { u64 tag; u64 gpa_page; u8 *host; struct page_code *code; };
#define CODE_TLB_SIZE 256u
/* Where fragments of pages above 4 KiB may be cached: a bit for each 4 MiB and for each GiB of
 * linear addresses, modulo 8 GiB and 32 GiB in either half of the address space. */
struct tlb_large { u64 m4[64]; u64 g1; bool any; };

enum access { ACC_READ = 0, ACC_WRITE = 1, ACC_EXEC = 2 };

/* ---- hooks: what a processor asks of the machine ------------------------------------------ */

struct cpu_hooks {
	void *arg;
	int (*int_ack)(void *arg);               /* vector to deliver, or -1: withdrawn (EV_INTR is cleared by who withdrew) */
	bool (*apic_msr_read)(void *arg, u32 msr, u64 *val);   /* 0x1b, 0x6e0, 0x800..0x8ff; false: #GP */
	bool (*apic_msr_write)(void *arg, u32 msr, u64 val);
	u8 (*get_tpr)(void *arg);
	void (*set_tpr)(void *arg, u8 tpr);
	void (*set_tsc_adjust)(void *arg, u64 adjust); /* the guest's TSC = clock_tsc + adjust */
	void (*triple_fault)(void *arg);         /* the machine resets or stops; c->stopped and ACT_SHUTDOWN are set before */
	void (*set_wakeup)(void *arg, u64 tsc);  /* EV_NESTED is posted once the guest's TSC has come to tsc; the last call counts */
	void (*eoi)(void *arg);                  /* end of interrupt to the local APIC, without a register access */
	void (*init)(void *arg);                 /* an INIT signal is taken: it resets the local APIC, too; without the lock */
	void (*ferr)(void *arg, bool level);     /* CR0.NE = 0: IRQ 13 */
	/* For an engine that runs LAPICs itself; machine lock held. lend: all of the machine's, NULL: they are the
	 * board's again, as apic_set last said. Meanwhile what the board has of them is a copy. */
	void (*apic_lend)(void *arg, const struct apic_runner *r);
	void (*apic_get)(void *arg, struct apic_state *s);
	void (*apic_set)(void *arg, const struct apic_state *s);
	void (*apic_eoi)(void *arg, u8 vector);  /* of a level-triggered interrupt; takes the lock itself */
	void (*failed)(void *arg, const char *why); /* the host cannot go on with it: the machine ends; c->stopped is set before */
};

/* ---- events posted to a processor ---------------------------------------------------------- */
enum {
	EV_INTR = 1,     /* level: a controller has an interrupt; gated by IF and shadows */
	EV_NMI = 2, EV_SMI = 4, EV_INIT = 8, EV_SIPI = 16,
	EV_EXIT = 32,    /* the engine returns to its caller (pause, stop, request) */
	EV_TLB = 64,     /* drop all cached translations */
	EV_TRAP = 128,   /* own thread: a debug trap or another trap is pending after this instruction */
	EV_VINTR = 256,  /* own thread, guest mode: a virtual interrupt, or an interrupt window, waits for IF */
	EV_NESTED = 512, /* own thread: guest mode wants something before the next instruction (nested_service) */
};

/* Why the engine must go one instruction at a time (c->slow). */
enum { SLOW_TF = 1, SLOW_DR7 = 2, SLOW_SHADOW = 4, SLOW_RF = 8, SLOW_LBR = 16, SLOW_NESTED = 32 };
enum { SHADOW_STI = 1, SHADOW_SS = 2 };
enum activity { ACT_RUN, ACT_HLT, ACT_SHUTDOWN, ACT_WAIT_SIPI, ACT_MWAIT };

struct cpu_model; /* cpuid.c */

struct exception {
	u8 vector;
	bool has_error, soft; /* soft: INT n, INT3, INTO: rip is after */
	u32 error;
	u64 cr2, dr6;
	u64 held_debug;       /* debug conditions that MOV SS put off; from cpu_exception() on */
};

struct cpu {
	/* what blocks touch */
	u64 regs[N_REGS];
	u64 rflags;             /* always whole and eager, bit 1 set */
	u64 rip;
	const struct insn *cur; /* the instruction under way */
	struct tlb_entry *tlb;  /* of the current mmu index */
	u64 epoch;              /* of the current address space: 1..0xfff */
	u64 ebase[8];           /* effective segment bases by enum sreg; [S_NONE] = 0 */
	u32 seg_fast;           /* bit 2*s: reads through s need no limit check, 2*s+1: writes */
	bool seg_check;         /* outside 64-bit mode, or LMSLE: look at seg_fast or check */
	u8 code_mode;           /* enum code_mode */
	u8 cpl;                 /* set by far transfers, IRET, tasks; cpu_update_mode forces 0 in real mode, 3 in V86 */
	u8 mmu;                 /* enum mmu_index */
	u64 sp_mask;            /* of stack pointer arithmetic: 0xffff, 0xffffffff, ~0 */
	_Atomic u32 events;
	u32 event_mask;         /* of events that matter now (EV_INTR only with IF and no shadow); may have too many */
	u32 if_events;          /* those that IF lets in: EV_INTR; in guest mode perhaps EV_VINTR */
	u64 icpt;               /* guest mode: bits by enum intercept (nested_api.h) */
	u32 slow;               /* SLOW_* */
	u8 nofpu[6];            /* by enum fpu_class: 0 or the vector (#NM, #UD) that its use raises */

	struct segment seg[N_SREGS];   /* ES..GS, LDTR (at S_LDTR), TR */
	struct dtable gdtr, idtr;
	u64 cr0, cr2, cr3, cr4, efer, xcr0, xss;
	u64 dr[8];
	u64 insn_tsc;           /* when the engine came to the instruction under way; 0: just now */
	u32 pkru;
	u8 shadow;              /* SHADOW_* after the previous instruction */
	u8 shadow_before;       /* SHADOW_* that the instruction under way stands in */
	u8 activity;            /* enum activity */
	bool nmi_blocked;
	_Atomic u32 nmis;       /* posted and not taken. Two that meet at one boundary are both taken, as where
				 * the first is at once; those that come while NMI is blocked are one */
	bool keep_rip;          /* the raiser has set rip itself (task switch) */
	bool stopped;           /* triple fault that the machine did not turn into a reset */
	_Atomic u8 sipi_vector; /* by the sender, before EV_SIPI is posted */
	u64 dr6_pending;        /* debug conditions met by the instruction under way */
	bool monitor_armed;
	u64 monitor_gpa;        /* of the line, 64-byte aligned */
	u8 monitor_line[64];    /* what MONITOR saw there */

	/* paging caches */
	u64 pdpte[4];           /* PAE: loaded at CR3 load */
	u64 epoch_next;
	u16 *pcid_epoch;        /* epoch of each PCID of the address space that is current, 0: none */
	struct tlb_space spaces[TLB_SPACES]; /* [0]: the host's */
	struct nested_counts nested_counts;
	u8 space;               /* the current one */
	u64 space_clock;
	struct tlb_entry tlbs[N_MMU][TLB_SIZE];
	struct code_tlb_entry code_tlb[2][CODE_TLB_SIZE]; /* supervisor, user */
	u64 maxphyaddr_mask;    /* bits of a physical address that exist */
	/* The engine forgets what it keyed by the linear addresses that differ from lin only in bits of
	 * mask, whatever the epoch. Not called where a new epoch does it: keys contain the epoch. */
	void (*on_tlb_flush)(struct cpu *c, u64 lin, u64 mask);
	/* Own store of len bytes at off hit decoded code of this page: the current block may be stale. */
	void (*on_code_written)(struct cpu *c, struct page_code *p, unsigned off, unsigned len);
	/* Bytes of this page have been marked (mem_code_mark) and will be read now, to be kept as decoded code.
	 * For an engine whose stores do not all look at the marks. */
	void (*on_code_marked)(struct cpu *c, struct page_code *p);
	void (*on_device)(struct cpu *c); /* icount mode: this instruction reached a device: look at events right after it */
	struct tlb_large tlb_large;
	u8 *alias;              /* two pages of address space: locked accesses that cross a page */
	u64 alias_off[2];       /* what is mapped there: offsets in RAM; UINT64_MAX: nothing */

	/* MSRs that are plain storage */
	struct {
		u64 star, lstar, cstar, fmask, kernel_gs_base, tsc_aux, tsc_adjust;
		u64 sysenter_cs, sysenter_esp, sysenter_eip, pat, pkrs, misc_enable, mtrr_def_type;
		u64 mtrr_fixed[11], mtrr_base[16], mtrr_mask[16];
		u64 spec_ctrl, debugctl, mcg_status, mcg_ctl, mc[32 * 4], hwcr, syscfg, other[16];
	} msr;
	u64 lbr[4];             /* last branch: from, to; last exception: from, to */

	/* hardware virtualization for the guest */
	struct nested nested;
	struct svm *svm;
	struct vmx *vmx;

	/* floating point and vectors */
	_Alignas(64) u8 zmm[32][64];
	u64 k[8];
	_Alignas(64) u8 fxarea[512];   /* x87 and MXCSR in FXSAVE64 layout while !fpu_live; XMM part unused */
	bool fpu_live;
	u16 fop; u64 fip, fdp; u16 fcs, fds; /* last x87 instruction and operand, kept by us */

	/* exceptions */
	jmp_buf jb;
	struct exception exc;
	int delivering;         /* exception being delivered, -1: none (double-fault rules); 256 + vector: an
				 * interrupt or INT1, benign. Starts at -1 */
	bool delivering_ext;    /* EXT of error codes meanwhile */
	u8 priv_back;           /* priv_enter() is in force: 1 + CPL + 16 * code_mode that priv_leave() puts back; 0: not */
	bool step_skip;         /* INT n, task switch, SYSCALL under TF: no single-step trap after this one */

	/* who it is */
	unsigned index;         /* vCPU number, also APIC ID */
	unsigned n_cpus;
	bool bsp;
	struct mem *mem;
	struct clock *clock;
	const struct cpu_model *model;
	const struct cpu_hooks *hooks;
	void *engine;           /* the engine's own per-vCPU state */
	const void *engine_options; /* of the machine: engine_ops.keys; NULL: the defaults */
	bool engine_l2;         /* the engine's: what is here are the registers of a guest of the guest's; a reset ends that */
	void *engine_keeps;     /* the engine's, which none but itself takes up again: from vcpu_destroy to the next vcpu_init; malloced */
	bool engine_rests;      /* the engine waits itself where the processor rests: run() is called all the same */
	bool measure;           /* count also what costs time to count (--stats) */
	const struct insn *first; /* of the block under way; NULL between instructions: cur - first are complete */
	u64 icount;             /* instructions completed before `first` */
	u64 icount_limit;       /* leave at this count; UINT64_MAX: none */
	u64 icount_skipped;     /* icount mode: clock->icount - icount, the time that halting passed over */
};

enum fpu_class { FC_X87, FC_WAIT, FC_MMX, FC_SSE, FC_AVX, FC_AVX512 };

static inline bool cpu_long(const struct cpu *c) { return c->efer & EFER_LMA; }
static inline bool cpu_code64(const struct cpu *c) { return c->code_mode == CODE64; }
static inline bool cpu_protected(const struct cpu *c) { return (c->cr0 & CR0_PE) && !(c->rflags & FL_VM); }
static inline bool cpu_v86(const struct cpu *c) { return (c->rflags & FL_VM) != 0; }
static inline bool cpu_real(const struct cpu *c) { return !(c->cr0 & CR0_PE); }
static inline unsigned cpu_iopl(const struct cpu *c) { return (c->rflags >> 12) & 3; }

/* ---- life (cpu.c) ---------------------------------------------------------------------- */
struct cpu *cpu_new(unsigned index, struct mem *mem, struct clock *clock, const struct cpu_model *model,
		    const struct cpu_hooks *hooks);
void cpu_free(struct cpu *c);
void cpu_reset(struct cpu *c, bool init);   /* power-on or INIT state; SDM 3 9.1.1 */
void cpu_dump(const struct cpu *c, char *buf, size_t cap); /* for people: registers, segments, control */
void cpu_post_event(struct cpu *c, u32 ev); /* any thread */
void cpu_unblock_nmi(struct cpu *c); /* IRET, a VM entry */
void cpu_clear_event(struct cpu *c, u32 ev);

/* ---- derived state (derive.c) ------------------------------------------------------------- */
void cpu_update_mode(struct cpu *c);    /* all below; after CR0/CR4/EFER/CS/SS/VM changed */
void cpu_update_segs(struct cpu *c);    /* ebase, seg_fast, sp_mask */
void cpu_update_mmu(struct cpu *c);     /* mmu index after CPL, AC, CR4.SMAP, CR0.AM, DR7 changed */
void cpu_update_fpu(struct cpu *c);     /* nofpu after CR0, CR4, XCR0 */
void cpu_update_events(struct cpu *c);  /* event_mask, slow after IF, TF, RF, shadow, DR7 */
/* POPF, IRET, and the rest: sets the bits of mask to val and updates what depends on them. */
void cpu_set_rflags(struct cpu *c, u64 val, u64 mask);

/* ---- exceptions (exception.c) ------------------------------------------------------------- */
_Noreturn void cpu_raise(struct cpu *c, unsigned vector);                 /* no error code */
_Noreturn void cpu_raise_err(struct cpu *c, unsigned vector, u32 error);
_Noreturn void cpu_raise_pf(struct cpu *c, u64 cr2, u32 error);
_Noreturn void cpu_raise_db(struct cpu *c, u64 dr6);                      /* fault-class #DB: dr6 BD, or B0-B3 of code */
/* Leaves like cpu_raise, without an exception: the engine looks at events and starts the same
 * instruction again (an x87 error with CR0.NE = 0 waits for its interrupt). */
_Noreturn void cpu_restart(struct cpu *c);
static inline _Noreturn void cpu_gp0(struct cpu *c) { cpu_raise_err(c, V_GP, 0); }
static inline _Noreturn void cpu_ud(struct cpu *c) { cpu_raise(c, V_UD); }
/* The processor stops, as after a triple fault. */
void cpu_shut_down(struct cpu *c);
/* After a longjmp to the engine's frame: delivers c->exc, turning faults on the way into
 * double and triple faults. Has its own setjmp frame; always returns. */
void cpu_exception(struct cpu *c);
/* INT n, INT3, INTO, INT1; c->rip is the next instruction. May raise. */
void cpu_soft_int(struct cpu *c, unsigned vector, bool int3_or_into, bool int1);
/* Delivers an external interrupt or NMI that was taken before; between instructions, always returns. */
void exception_external(struct cpu *c, unsigned vector, bool nmi);
/* Hardware events, between instructions: takes what is due by priority. Returns false if the
 * engine must leave (EV_EXIT, halted, stopped). */
bool cpu_service_events(struct cpu *c);
/* After each instruction in slow mode and when EV_TRAP: single-step and breakpoint traps. tf:
 * RFLAGS.TF before the instruction. */
void cpu_after_insn(struct cpu *c, bool tf);
/* Before an instruction in slow mode: instruction breakpoints (DR0-3); raises #DB. */
void cpu_code_breakpoint(struct cpu *c);
/* With SLOW_LBR: an instruction at from has gone to `to`, or an exception there has. */
void cpu_record_branch(struct cpu *c, u64 from, u64 to, bool exception);
void cpu_data_breakpoint(struct cpu *c, u64 lin, unsigned size, bool write, bool io);
enum { DR6_BD = 0x2000, DR6_BS = 0x4000, DR6_BT = 0x8000, DR7_GD = 0x2000 };

/* ---- segmentation (segment.c, far.c, task.c, syscall.c). Paths that raise leave state untouched. */
void seg_load(struct cpu *c, unsigned s, u16 sel);       /* MOV/POP/LDS: ES SS DS FS GS; mode-aware */
void seg_load_real(struct cpu *c, unsigned s, u16 sel);  /* real and V86: base = sel << 4, rest kept/fixed */
/* Slow half of address checks outside 64-bit mode: limit, type, null. Raises #GP/#SS. Returns linear. */
u64 seg_linear(struct cpu *c, unsigned s, u64 off, unsigned size, enum access acc);
void far_jmp(struct cpu *c, u16 sel, u64 off, unsigned opsz);
void far_call(struct cpu *c, u16 sel, u64 off, unsigned opsz);
void far_ret(struct cpu *c, unsigned opsz, unsigned pop_bytes);
void cpu_iret(struct cpu *c, unsigned opsz);
void cpu_syscall(struct cpu *c);
void cpu_sysret(struct cpu *c, unsigned opsz);
void cpu_sysenter(struct cpu *c);
void cpu_sysexit(struct cpu *c, unsigned opsz);
void seg_lldt(struct cpu *c, u16 sel);
void seg_ltr(struct cpu *c, u16 sel);
bool seg_lar(struct cpu *c, u16 sel, u32 *ar);           /* false: ZF = 0 */
bool seg_lsl(struct cpu *c, u16 sel, u32 *limit);
bool seg_verify(struct cpu *c, u16 sel, bool write);     /* VERR, VERW */
bool cpu_io_allowed(struct cpu *c, u16 port, unsigned size); /* IOPL, I/O bitmap; may raise #PF etc. */
enum task_why { TASK_JMP, TASK_CALL, TASK_IRET, TASK_GATE };
void task_switch(struct cpu *c, u16 sel, enum task_why why, bool push_error, u32 error);

/* ---- memory (walk.c, tlb.c, access.c) ----------------------------------------------------------- */

/* The result of a page walk. gpa and page_size: where the page is in the machine, and how much of it is there in one
 * piece; guest_page_size: the page as the tables of CR3 have it, which INVLPG ends whole. second: MAY_* by the second
 * level (nested_api.h), all without one. */
struct walk { u64 gpa; u64 page_size, guest_page_size; bool user, writable, nx, dirty; u8 pkey, second; };
/* Pure lookup without raising or setting A/D (debuggers, dumps). */
bool mmu_peek(struct cpu *c, u64 lin, u64 *gpa);
/* Of the MMU_GROUP aligned pages of 4 KiB that lin is in, those that the same accesses may reach as lin, by the
 * same level of tables, and whose accessed (write: and dirty) bits are set as lin's are: bit k is set and gpa[k]
 * is where page k is; gpa[k] of lin's own page is where the tables say now. None outside of long mode, with a second level, and where the
 * tables no longer allow the access. Changes nothing. SDM vol. 3 4.10.2.3: a
 * processor may know such translations ahead of their use. */
#define MMU_GROUP 8u
/* The same for one page: whether the access may go by what the tables say now, without a change of theirs; where and
 * how large the page is. From then on INVLPG knows its size (c->tlb_large). */
bool mmu_used(struct cpu *c, u64 lin, bool write, struct walk *w);
/* Of a translation that is kept: where pages are larger than 4 KiB, INVLPG must end all of them. */
void mmu_note_size(struct cpu *c, u64 lin, const struct walk *w);
u32 mmu_neighbours(struct cpu *c, u64 lin, bool write, u64 *gpa);
/* The bits in which addresses of a page that may cover lin differ, as far as translations in use go. */
u64 mmu_page_mask(const struct cpu *c, u64 lin);
/* Translates for an instruction fetch by the current privilege; raises #PF/#GP. */
const struct code_tlb_entry *mmu_fetch_page(struct cpu *c, u64 lin);
void mmu_flush_all(struct cpu *c);               /* every PCID, globals too */
void mmu_flush_current(struct cpu *c);           /* the current address space */
void mmu_invlpg(struct cpu *c, u64 lin);
void mmu_invpcid(struct cpu *c, u64 type, u64 pcid, u64 lin); /* raises #GP for what INVPCID refuses */
void mmu_set_cr3(struct cpu *c, u64 val, bool noflush);
bool mmu_load_pdptes(struct cpu *c, u64 cr3);    /* false: #GP(0) due; before mmu_set_cr3 */
void mmu_set_pkru(struct cpu *c, u32 val);       /* WRPKRU, XRSTOR */
/* Whether lin is canonical for the current number of levels (48 or 57 bits). */
static inline bool cpu_canonical(const struct cpu *c, u64 lin)
{
	unsigned sh = c->cr4 & CR4_LA57 ? 7 : 16;
	return (u64)((i64)(lin << sh) >> sh) == lin;
}

u64 mem_ld_slow(struct cpu *c, u64 lin, unsigned size);
void mem_st_slow(struct cpu *c, u64 lin, u64 val, unsigned size);
void mem_code_hit(struct cpu *c, struct page_code *p, unsigned off, unsigned len); /* own store over decoded code */

/* Implicit supervisor accesses: descriptor tables, TSS, whatever CPL. Size 1..8. */
u64 sys_ld(struct cpu *c, u64 lin, unsigned size);
void sys_st(struct cpu *c, u64 lin, u64 val, unsigned size);

/* Any number of bytes at the current privilege; a write checks all pages before the first byte. */
void mem_ld_bytes(struct cpu *c, u64 lin, void *buf, unsigned n);
void mem_st_bytes(struct cpu *c, u64 lin, const void *buf, unsigned n);
/* #AC(0) where an operand of n bytes must be aligned and is not: mem_ld, mem_st and mem_begin do
 * it themselves, mem_ld_bytes, mem_st_bytes and mem_probe do not. */
void mem_check_aligned(struct cpu *c, u64 lin, unsigned n);
/* Raises what a write (or read) of n bytes would raise. */
void mem_probe(struct cpu *c, u64 lin, unsigned n, enum access acc);

/* A host pointer to n <= 128 bytes of guest memory for one instruction: direct where it is RAM
 * within a page, else a copy in buf, aligned like lin modulo 64. read: the copy is filled; write:
 * mem_end writes it back. locked: the pointer is the memory itself even across two pages of RAM
 * (an alias mapping), so that a host LOCK instruction on it is atomic for all vCPUs. */
struct mem_ref {
	u8 *host; u64 lin; struct page_code *code; u32 n; bool copied; bool write;
	bool alias;             /* copied, but host is an alias mapping of the memory itself */
	u8 n_parts;             /* copied: the pieces of the one or two pages; host NULL: not RAM */
	struct { u8 *host; struct page_code *code; u64 gpa; u32 n; } part[2];
	_Alignas(64) u8 buf[64 + 64 + 64];
};
u8 *mem_begin_slow(struct cpu *c, struct mem_ref *r, u64 lin, unsigned n, bool read, bool write, bool locked);
void mem_end_slow(struct cpu *c, struct mem_ref *r);

static inline struct tlb_entry *tlb_slot(struct cpu *c, u64 lin)
{
	return &c->tlb[(lin >> 12) & (TLB_SIZE - 1)];
}

/* One host access at any alignment (the attribute counts in a typedef only). */
typedef u8 u8_any;
typedef u16 u16_any __attribute__((aligned(1)));
typedef u32 u32_any __attribute__((aligned(1)));
typedef u64 u64_any __attribute__((aligned(1)));

#define MEM_LD(bits) \
static inline u##bits mem_ld##bits(struct cpu *c, u64 lin) \
{ \
	struct tlb_entry *e = tlb_slot(c, lin); \
	if (likely(e->rtag == ((lin & ~PAGE_MASK) | c->epoch) && (lin & PAGE_MASK) <= 4096 - bits / 8)) \
		return *(const volatile u##bits##_any *)(lin + e->addend); \
	return (u##bits)mem_ld_slow(c, lin, bits / 8); \
}
MEM_LD(8) MEM_LD(16) MEM_LD(32) MEM_LD(64)
#undef MEM_LD

#define MEM_ST(bits) \
static inline void mem_st##bits(struct cpu *c, u64 lin, u##bits v) \
{ \
	struct tlb_entry *e = tlb_slot(c, lin); \
	if (likely(e->wtag == ((lin & ~PAGE_MASK) | c->epoch) && (lin & PAGE_MASK) <= 4096 - bits / 8)) { \
		*(volatile u##bits##_any *)(lin + e->addend) = v; \
		if (unlikely(atomic_load_explicit(&e->code->lines, memory_order_relaxed))) \
			mem_code_hit(c, e->code, lin & PAGE_MASK, bits / 8); \
		return; \
	} \
	mem_st_slow(c, lin, v, bits / 8); \
}
MEM_ST(8) MEM_ST(16) MEM_ST(32) MEM_ST(64)
#undef MEM_ST

/* Read-modify-write (or write with read = false) of n bytes. */
static inline u8 *mem_begin(struct cpu *c, struct mem_ref *r, u64 lin, unsigned n, bool read, bool write, bool locked)
{
	struct tlb_entry *e = tlb_slot(c, lin);
	u64 tag = (lin & ~PAGE_MASK) | c->epoch;
	if (likely((write ? e->wtag : e->rtag) == tag && (!(read && write) || e->rtag == tag) &&
		   (lin & PAGE_MASK) + n <= 4096)) {
		r->host = (u8 *)(lin + e->addend);
		r->lin = lin; r->n = n; r->code = e->code; r->copied = false; r->write = write;
		return r->host;
	}
	return mem_begin_slow(c, r, lin, n, read, write, locked);
}
static inline void mem_end(struct cpu *c, struct mem_ref *r)
{
	if (!r->write)
		return;
	if (likely(!r->copied)) {
		if (unlikely(atomic_load_explicit(&r->code->lines, memory_order_relaxed)))
			mem_code_hit(c, r->code, r->lin & PAGE_MASK, r->n);
		return;
	}
	mem_end_slow(c, r);
}

/* Linear address of off in segment s for an access of size bytes: the checks of the current mode. */
static inline u64 cpu_linear(struct cpu *c, unsigned s, u64 off, unsigned size, enum access acc)
{
	if (unlikely(c->seg_check)) {
		if (likely((c->seg_fast >> (2 * s + (acc == ACC_WRITE))) & 1) && likely(!((u32)off > 0xffffffffu - (size - 1))))
			return (u32)(off + c->ebase[s]);
		return seg_linear(c, s, off, size, acc);
	}
	return off + c->ebase[s];
}

/* Explicit accesses of another privilege level (a handler's stack): between the two, mem_ld and
 * mem_st act as at cpl, with 64-bit addresses where wide. A fault in between undoes it
 * (cpu_raise). Does not nest. */
void priv_enter(struct cpu *c, unsigned cpl, bool wide);
void priv_leave(struct cpu *c);

/* ---- control, MSRs, CPUID (control.c, msr.c, cpuid.c, fpu.c) ------------------------------- */
void cpu_write_cr0(struct cpu *c, u64 v);   /* raise #GP on what the manual forbids */
void cpu_write_cr3(struct cpu *c, u64 v);
void cpu_write_cr4(struct cpu *c, u64 v);
void cpu_write_cr8(struct cpu *c, u64 v);
u64 cpu_read_cr(struct cpu *c, unsigned n);
void cpu_write_dr(struct cpu *c, unsigned n, u64 v);
u64 cpu_read_dr(struct cpu *c, unsigned n);
void cpu_write_xcr(struct cpu *c, u32 n, u64 v);
bool msr_read(struct cpu *c, u32 msr, u64 *v);   /* false: #GP(0) */
bool msr_write(struct cpu *c, u32 msr, u64 v);
void msr_power_on(struct cpu *c);                /* values after RESET# (INIT leaves MSRs alone) */
u64 cpu_tsc(struct cpu *c);
/* Instructions completed up to now, also in the middle of a block. */
static inline u64 cpu_icount(const struct cpu *c) { return c->icount + (c->first ? (u64)(c->cur - c->first) : 0); }
/* Before anything that reads the clock or a device: with deterministic time it must show this very
 * instruction. */
static inline void cpu_clock_sync(struct cpu *c)
{
	if (likely(!c->clock->icount_mode))
		return;
	u64 now = cpu_icount(c) + c->icount_skipped;
	if (now > atomic_load_explicit(&c->clock->icount, memory_order_relaxed))
		atomic_store_explicit(&c->clock->icount, now, memory_order_relaxed);
}
/* As cpu_clock_sync, before an access to a port: the run ends behind the block, so that what the device has begun on other
 * threads ends between the same two instructions in each run (vcpu.c). */
static inline void cpu_port_sync(struct cpu *c)
{
	cpu_clock_sync(c);
	if (unlikely(c->clock->icount_mode))
		c->icount_limit = 0;
}
/* The same before a memory access that reaches a device: the block, too, ends after it, so that
 * what the device raises is seen between the same two instructions however blocks were cut. */
static inline void cpu_device_sync(struct cpu *c)
{
	cpu_port_sync(c);
	if (unlikely(c->clock->icount_mode) && c->on_device)
		c->on_device(c);
}
/* Whether this model has the feature(s) that a Zydis ISA set needs. */
bool cpu_offers_isa(const struct cpu *c, ZydisISASet set);
unsigned cpu_isa_quirks(const struct cpu *c); /* enum isa_quirk, for isa_decode */

/* Features by name; the table is cpuid.def: feature, leaf, subleaf, register, bit, engines, default. */
enum cpu_feature {
#define CPUID_FEATURE(name, str, leaf, sub, reg, bit, how) FEAT_##name,
#include "cpu/cpuid.def"
#undef CPUID_FEATURE
	N_FEATURES
};
struct cpu_model {
	char vendor[13];
	char brand[49];
	u8 family, model, stepping;
	u8 phys_bits, lin_bits;
	bool has[N_FEATURES];
	bool asked[N_FEATURES]; /* by name, or by that of a model which is a list */
	u32 tsc_khz;
	u32 xsave_offset[16], xsave_size[16];
	u64 xcr0_mask, xss_mask;
};
/* Whether v is an address of the processor's full width, whatever CR4.LA57: what MSRs, hidden bases,
 * descriptor tables and INVPCID take. */
static inline bool cpu_address_valid(const struct cpu *c, u64 v)
{
	unsigned sh = 64 - c->model->lin_bits;
	return (u64)((i64)(v << sh) >> sh) == v;
}
/* spec: "max", "host", "base", a named model, then ",+feat,-feat,feat=on|off,vendor=intel|amd". */
bool cpu_model_parse(struct cpu_model *m, const char *spec, const struct clock *clock, struct error *e);
/* Takes away what another cannot do, and what needs it: can says of each bit of CPUID whether that other has it
 * (reg: 0 EAX .. 3 EDX). Returns how many were taken; names: them, with commas, as many as fit; *asked: one of
 * them that was asked for, or NULL. */
typedef bool cpu_can_fn(void *arg, u32 leaf, u32 sub, unsigned reg, unsigned bit);
unsigned cpu_model_limit(struct cpu_model *m, cpu_can_fn *can, void *arg, char *names, size_t cap, const char **asked);
void cpu_model_help(void);
static inline bool cpu_has(const struct cpu *c, enum cpu_feature f) { return c->model->has[f]; }
void cpu_cpuid(struct cpu *c, u32 leaf, u32 sub, u32 out[4]); /* EAX EBX ECX EDX */

/* x87/MXCSR between struct cpu and the host's registers; on the vCPU's thread. */
void fpu_load(struct cpu *c);
void fpu_save(struct cpu *c);
void fpu_reset(struct cpu *c, bool init_only_x87); /* true: what FNINIT does; false: power-on */
void fpu_fxsave(struct cpu *c, u64 lin, unsigned opsz);
void fpu_fxrstor(struct cpu *c, u64 lin, unsigned opsz);
void fpu_fnstenv(struct cpu *c, u64 lin, unsigned opsz, bool save); /* FNSTENV, FNSAVE */
void fpu_fldenv(struct cpu *c, u64 lin, unsigned opsz, bool rstor); /* FLDENV, FRSTOR */
enum xsave_kind { XS_SAVE, XS_OPT, XS_C, XS_S };
/* Bytes that a save with the registers as they are may take. */
unsigned fpu_xsave_size(const struct cpu *c, enum xsave_kind k);
/* ... that a restore looks at, by the header's XSTATE_BV and XCOMP_BV. */
unsigned fpu_xrstor_size(const struct cpu *c, u64 bv, u64 xcomp, bool supervisor);
void fpu_xsave(struct cpu *c, u64 lin, unsigned opsz, enum xsave_kind k);
void fpu_xrstor(struct cpu *c, u64 lin, unsigned opsz, bool supervisor);
u64 fpu_xinuse(struct cpu *c);
u32 fpu_mxcsr_mask(const struct cpu *c); /* the MXCSR bits that exist: LDMXCSR raises #GP for others */

#endif
