/* What a processor keeps for hardware virtualization (nested_api.h says how it works). Part of
 * struct cpu; included by cpu.h alone. */
#ifndef RING3_CPU_NESTED_STATE_H
#define RING3_CPU_NESTED_STATE_H

#include "base/base.h"

/* Whose guest mode the processor is in. */
enum nest { NEST_NONE, NEST_SVM, NEST_VMX };
/* What lets external interrupts in while in guest mode. */
enum intr_gate { INTR_BY_IF, INTR_OPEN, INTR_CLOSED };

struct nested {
	u8 mode;           /* enum nest */
	u8 intr_gate;      /* enum intr_gate */
	bool paging;       /* guest mode: guest-physical addresses go through nested_translate() */
	bool held;         /* interrupts, NMI, INIT and SMI are held pending: the global interrupt flag is 0 */
	bool step;         /* guest mode: nested_service() after each instruction */
	u64 apic_page;     /* machine address of the page whose accesses are virtualized; all ones: none */
	u64 vectoring;     /* the event on its way to its handler: VEC_*; 0: none */
};

/* Events as EVENTINJ, EXITINTINFO and VMX's interruption information have them: vector 7:0, type 10:8, error
 * code valid 11, valid 31; here with the error code in 63:32. */
enum { VEC_INTR = 0, VEC_NMI = 2, VEC_EXCEPTION = 3, VEC_SOFT_INT = 4, VEC_INT1 = 5, VEC_SOFT_EXCEPTION = 6 };
#define VEC_HAS_ERROR (1ull << 11)
#define VEC_VALID (1ull << 31)

/* An address space as translations are told apart by: the host's, or one of a guest's by its ASID or VPID and
 * second-level tables. Each has epochs of its own for its PCIDs, so that entries and exits keep translations. */
struct tlb_space {
	u64 tag;           /* ASID or VPID, and more where that is not enough; 0: the host's */
	u64 root;          /* nCR3 or EPTP; 0: no second level */
	u64 mode, cr3, pkrs; /* what else translations depend on: when it was left */
	u64 used;          /* when last entered */
	u16 pcid_epoch[4096]; /* epoch of each PCID, 0: none */
};
#define TLB_SPACES 8u

/* For --stats; written by the processor's thread, read by any. A translation is kept where the address space that is
 * gone to (ASID or VPID, second level, CR3 or PCID) has had some and nobody has asked for them to go. */
#define NESTED_EXITS 80u
struct nested_counts {
	u64 entries, entries_kept, exits, exits_kept; /* to a guest's address space, to the host's */
	u64 flushes;       /* of a guest's that had been entered: INVEPT, INVVPID, TLB_CONTROL */
	u64 shadowed;      /* VMREAD and VMWRITE of a shadow VMCS, which did not exit */
	u64 by_reason[NESTED_EXITS]; /* exits: nested_stats.c */
	u64 posted;        /* notifications of posted interrupts that the guest's virtual APIC took, without an exit */
};

#endif
