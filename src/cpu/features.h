/* The feature table as data, shared by cpu_model.c (what a processor has) and cpuid.c (what
 * the guest reads). Private to cpu/. */
#ifndef RING3_CPU_FEATURES_H
#define RING3_CPU_FEATURES_H

#include "cpu/cpu.h"

enum feature_how { EMU, HOST, NOT, INV }; /* cpuid.def says what they mean */

struct feature_info {
	const char *name;
	u32 leaf;
	u8 sub, reg, bit; /* reg: 0 EAX, 1 EBX, 2 ECX, 3 EDX */
	u8 how;           /* enum feature_how */
};
extern const struct feature_info feature_table[N_FEATURES];

/* XSAVE state components. */
enum { XC_X87, XC_SSE, XC_AVX, XC_OPMASK = 5, XC_ZMM_HI256, XC_HI16_ZMM, XC_PKRU = 9 };
#define XC_BIT(n) (1ull << (n))
#define XSAVE_LEGACY_SIZE 576u /* the FXSAVE image and the XSAVE header */

/* IA32_MISC_ENABLE: the processor acts as if it had no execute-disable bit. */
#define MISC_ENABLE_NO_NX (1ull << 34)

static inline bool model_is_amd(const struct cpu_model *m) { return m->vendor[0] == 'A'; }

#endif
