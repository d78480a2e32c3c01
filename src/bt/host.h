#ifndef RING3_BT_HOST_H
#define RING3_BT_HOST_H

#include <stdbool.h>

/* WRGSBASE may be executed (CR4.FSGSBASE; Linux 5.9 and later say so). */
bool host_has_fsgsbase(void);
/* MXCSR.MM exists (AMD). */
bool host_has_misalignsse(void);

#endif
