/* The MSR table's row, shared by msr.c (dispatch, plain registers) and msr_memory.c (memory
 * types, machine check). Private to cpu/. */
#ifndef RING3_CPU_MSR_H
#define RING3_CPU_MSR_H

#include "cpu/features.h"

struct msr_desc;
typedef bool msr_read_fn(struct cpu *c, const struct msr_desc *d, u32 msr, u64 *v);
typedef bool msr_write_fn(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v);

/* gate: below N_FEATURES the feature that brings the MSR, else one of these. */
enum { MSR_ALWAYS = N_FEATURES, MSR_INTEL, MSR_AMD, MSR_SPEC_CTRL, MSR_PRED_CMD, MSR_TSC_AUX };

/* first..last behave alike. read or write NULL: #GP(0). valid: writing another bit is #GP(0).
 * field: offset in struct cpu of the u64 (for ranges, of the first of an array); value: of
 * registers that always read the same. */
struct msr_desc {
	u32 first, last;
	const char *name;
	u16 gate;
	msr_read_fn *read;
	msr_write_fn *write;
	u64 valid;
	u32 field;
	u64 value;
};

msr_read_fn mtrr_fixed_read, mtrr_var_read;
msr_write_fn mtrr_fixed_write, mtrr_var_write, mtrr_def_write, pat_write;
msr_write_fn mc_bank_write, mcg_ctl_write;
bool pat_valid(u64 pat); /* the eight types exist */

#define MTRR_VARIABLE 8u /* pairs */
#define MC_BANKS 10u

#endif
