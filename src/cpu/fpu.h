/* Private to cpu/: the image through which fpu.c and xsave.c see x87 and MXCSR. */
#ifndef RING3_CPU_FPU_H
#define RING3_CPU_FPU_H

#include "cpu/cpu.h"

/* Offsets of the FXSAVE64 layout; SDM vol. 1 10.5.1. FTW is one bit a physical register. */
enum { FX_FCW = 0, FX_FSW = 2, FX_FTW = 4, FX_FOP = 6, FX_FIP = 8, FX_FDP = 16, FX_MXCSR = 24, FX_MXCSR_MASK = 28,
       FX_ST = 32, FX_XMM = 160 };
#define MXCSR_DEFAULT 0x1f80u

struct fx_image { _Alignas(64) u8 b[512]; };

/* The guest's x87 state and MXCSR, wherever they are now. The pointers (FOP, FIP, FDP) in an
 * image read are the guest's, in FXSAVE64 format or, if !wide, with 32-bit offsets and selectors.
 * The XMM part is not meant. */
void fpu_image_get(const struct cpu *c, struct fx_image *x, bool wide);
/* Makes a wide one of those the other kind. */
void fpu_image_narrow(const struct cpu *c, struct fx_image *x);
/* MXCSR in x must be valid. Takes the pointers too. */
void fpu_image_put(struct cpu *c, const struct fx_image *x, bool wide);
/* Makes the x87 part of x what FNINIT and zero registers are (XRSTOR's initial state). */
void fpu_image_init_x87(struct fx_image *x);
u32 fpu_mxcsr_get(const struct cpu *c);
void fpu_mxcsr_set(struct cpu *c, u32 v); /* v has passed fpu_mxcsr_mask */

#endif
