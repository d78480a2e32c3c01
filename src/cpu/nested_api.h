/* nested: hypervisors inside. What is common to AMD-V (svm*.c) and VT-x (vmx*.c): guest mode, what may be
 * intercepted in it, how the processor leaves it, and the second dimension of paging.
 *
 * Words: the host (L1) runs in root operation, its guest (L2) in guest mode. All of this is the architecture's,
 * above the engines: an entry and an exit are changes of struct cpu's state.
 *
 *  1. c->icpt has a bit for each kind of thing that the hypervisor may want to see now; it is 0 outside of guest
 *     mode. A bit only says "ask": nested_intercept() looks at bitmaps, masks and values, and returns where the
 *     instruction is to go on.
 *  2. Who does such a thing says so with one line, nested_check(), at the place in its order of checks where
 *     the manuals have the intercept: after #UD and what privilege refuses, before memory operands. A handler
 *     has changed nothing by then.
 *  3. An exit leaves by longjmp, as exceptions do: svm.c or vmx.c notes why, then nested_unwind(). The engine
 *     puts RIP back to the start of the instruction; cpu_exception(), or the delivery that was under way,
 *     calls nested_finish(), which saves the guest's state and loads the host's.
 *  4. c->nested.vectoring is the event whose delivery is under way, through faults of it that are not
 *     intercepted: what EXITINTINFO and IDT-vectoring information tell.
 *  5. Events that are to be taken in guest mode are held by event.c alone: EV_VINTR while a virtual interrupt (or an
 *     interrupt window) waits for IF, EV_NESTED for whatever must be looked at before the next instruction.
 *
 * AMD APM vol. 2 chapter 15; Intel SDM vol. 3 chapters 25 to 29. */
#ifndef RING3_CPU_NESTED_API_H
#define RING3_CPU_NESTED_API_H

#include "cpu/cpu.h"

/* What a hypervisor may ask to see. In brackets: info. */
enum intercept {
	/* registers: nested_cr_read(), nested_cr_write() */
	ICPT_CR_READ, ICPT_CR_WRITE,
	ICPT_DR_READ, ICPT_DR_WRITE,       /* [number as the instruction has it; its general register is c->cur's] */
	ICPT_IDTR_READ, ICPT_GDTR_READ, ICPT_LDTR_READ, ICPT_TR_READ,     /* SIDT SGDT SLDT STR */
	ICPT_IDTR_WRITE, ICPT_GDTR_WRITE, ICPT_LDTR_WRITE, ICPT_TR_WRITE, /* LIDT LGDT LLDT LTR */
	ICPT_MSR_READ, ICPT_MSR_WRITE,     /* nested_msr_read(), nested_msr_write() */
	ICPT_XSETBV,
	/* events */
	ICPT_EXCEPTION,                    /* nested_exception() */
	ICPT_INTR, ICPT_NMI, ICPT_SMI, ICPT_INIT, ICPT_SIPI,
	ICPT_VINTR,                        /* a virtual interrupt could be taken; interrupt window */
	ICPT_NMI_WINDOW,
	ICPT_SHUTDOWN,                     /* also: triple fault */
	ICPT_FERR_FREEZE,
	ICPT_TASK_SWITCH,                  /* [selector | enum task_why << 16 | error code follows << 24 | ICPT_TASK_RF | error << 32] */
	/* instructions */
	ICPT_INTN, ICPT_ICEBP,             /* INT n [vector]; INT1 */
	ICPT_IRET, ICPT_PUSHF, ICPT_POPF,
	ICPT_HLT, ICPT_PAUSE, ICPT_MONITOR, ICPT_MWAIT, /* MONITORX, MWAITX, too */
	ICPT_CPUID, ICPT_RDTSC, ICPT_RDTSCP, ICPT_RDPMC, ICPT_RDPRU,
	ICPT_RDPID,
	ICPT_RDRAND, ICPT_RDSEED,          /* c->cur->imm2 3:0: the register */
	ICPT_INVD, ICPT_WBINVD,
	ICPT_INVLPG, ICPT_INVPCID,         /* [linear address, of INVPCID its descriptor's] */
	ICPT_IO,                           /* [port | size << 16 | IO_*] */
	ICPT_RSM, ICPT_XSAVES, ICPT_XRSTORS,
	ICPT_VM,                           /* VMRUN and its like, VMXON and its like [enum vm_insn] */
	N_INTERCEPTS
};
_Static_assert(N_INTERCEPTS <= 64, "c->icpt has 64 bits");
enum { IO_IN = 1 << 24, IO_STRING = 1 << 25 };
enum { ICPT_TASK_RF = 1 << 25 }; /* the flags that the old task would be saved with have RF */
enum vm_insn { VM_RUN, VM_MCALL, VM_LOAD, VM_SAVE, VM_STGI, VM_CLGI, VM_SKINIT, VM_INVLPGA };

#define ICPT_BIT(x) (1ull << (x))
static inline bool nested_wants(const struct cpu *c, enum intercept x) { return unlikely(c->icpt >> x & 1); }

/* Leaves the guest, or returns: not intercepted after all. */
void nested_intercept(struct cpu *c, enum intercept x, u64 info);
static inline void nested_check(struct cpu *c, enum intercept x, u64 info)
{
	if (nested_wants(c, x))
		nested_intercept(c, x, info);
}

/* How an instruction comes to write or read CR0: of MOV, its general register counts. */
enum cr_how { CR_MOV, CR_CLTS, CR_LMSW, CR_SMSW };
/* The value that is to be written in the place of v; what a read gives in the place of v. Or an exit.
 * gpr: enum reg; CR_LMSW of memory: R_ZERO. */
u64 nested_cr_write_slow(struct cpu *c, unsigned cr, u64 v, enum cr_how how, unsigned gpr);
u64 nested_cr_read_slow(struct cpu *c, unsigned cr, u64 v, enum cr_how how, unsigned gpr);
static inline u64 nested_cr_write(struct cpu *c, unsigned cr, u64 v, enum cr_how how, unsigned gpr)
{
	return nested_wants(c, ICPT_CR_WRITE) ? nested_cr_write_slow(c, cr, v, how, gpr) : v;
}
static inline u64 nested_cr_read(struct cpu *c, unsigned cr, u64 v, enum cr_how how, unsigned gpr)
{
	return nested_wants(c, ICPT_CR_READ) ? nested_cr_read_slow(c, cr, v, how, gpr) : v;
}
/* RDMSR and WRMSR in guest mode. True: done, *v is the value read. Or an exit. May raise. */
bool nested_msr_read(struct cpu *c, u32 msr, u64 *v);
bool nested_msr_write(struct cpu *c, u32 msr, u64 v);
/* CR8 in guest mode. False: it is the processor's own. */
bool nested_tpr_read(struct cpu *c, u8 *tpr);
bool nested_tpr_write(struct cpu *c, u8 tpr);
/* The guest's TSC when the host's is tsc. */
u64 nested_tsc(const struct cpu *c, u64 tsc);

/* ---- leaving ------------------------------------------------------------------------------ */

/* c->exc.vector: no exception, but an exit that is to be finished. */
#define V_VMEXIT 0xfe
/* To the engine's frame, or to that of the delivery under way. */
_Noreturn void nested_unwind(struct cpu *c);
/* At c->rip: what the exit that was noted does. */
void nested_finish(struct cpu *c);
/* x is about to be delivered, or to become a double fault: leaves where it is intercepted. soft: by INT3 or INTO. */
void nested_exception(struct cpu *c, const struct exception *x);

/* ---- events (event.c) ----------------------------------------------------------------------- */

/* Between two instructions, first of all: the event that an entry injects, windows, timers. True: c->events have to
 * be looked at again. */
void nested_service(struct cpu *c);
/* A virtual interrupt is there and IF lets it in: its vector is taken, or -1. Or an exit. */
int nested_vintr(struct cpu *c);

/* For state hashes: what of a hypervisor's is neither in a register nor in memory, in this order; returns how much. */
#define NESTED_STATE_MAX 256u
unsigned nested_state(const struct cpu *c, u64 to[NESTED_STATE_MAX]);

/* For --stats: what struct nested_counts holds; nothing for a model without AMD-V and VT-x. Any thread. */
void nested_count(const struct cpu *c, struct counters *t);

/* ---- paging ------------------------------------------------------------------------------------ */

enum nested_what { NP_FINAL, NP_TABLE, NP_PEEK /* as NP_FINAL, and changes nothing */ };
/* A guest-physical page at the second level. used: its entries have their accessed bits, where there are any. */
struct nested_page { u64 gpa; u64 page_size; u8 may; /* MAY_* */ bool dirty, used; };
/* Where gpa is, for an access (enum access) to what the guest translated (NP_FINAL), or to an entry of its own
 * tables. lin: what the guest was translating. False: not allowed; nested_paging_fault() then leaves. */
bool nested_translate(struct cpu *c, u64 gpa, enum access acc, enum nested_what what, struct nested_page *p);
_Noreturn void nested_paging_fault(struct cpu *c, u64 lin, u64 gpa, enum access acc, enum nested_what what);

/* Accesses to c->nested.apic_page; off: of the page. The write has been carried out when it returns. Or an exit. */
u64 nested_apic_read(struct cpu *c, u32 off, unsigned n);
void nested_apic_write(struct cpu *c, u32 off, u64 v, unsigned n);
_Noreturn void nested_apic_fetch(struct cpu *c, u64 lin);

/* An entry or an exit changes to another address space: mmu_space_leave() before CR3 and what else paging depends on
 * change, mmu_space_enter() once they have. tag 0: the host's; root: that of the second level, with what its entries'
 * format depends on. Translations that were kept stay, unless flush is set (those of this tag), or what they depend on
 * is no longer what it was when they were left. */
void mmu_space_leave(struct cpu *c);
void mmu_space_enter(struct cpu *c, u64 tag, u64 root, bool flush);
/* The host runs, and drops translations of guests: of a tag; of a root's page (0: of all). */
void mmu_space_flush(struct cpu *c, u64 tag);
void mmu_root_flush(struct cpu *c, u64 root);
/* Drops those of every space. */
void mmu_spaces_flush(struct cpu *c);

#endif
