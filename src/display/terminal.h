/* Private to display/: the terminal on standard input. */
#ifndef RING3_TERMINAL_H
#define RING3_TERMINAL_H

#include <stdbool.h>

/* Makes it raw; false if standard input is no terminal, or is raw by this already. */
bool terminal_make_raw(void);

#endif
