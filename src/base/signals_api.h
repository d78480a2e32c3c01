/* Which thread gets signals. */
#ifndef RING3_BASE_SIGNALS_API_H
#define RING3_BASE_SIGNALS_API_H

#include <signal.h>

/* All signals are for the program's first thread, but those that a thread's own instructions and calls bring
 * about: blocks the others. *old, if not NULL: the mask before. */
void signals_for_others(sigset_t *old);

#endif
