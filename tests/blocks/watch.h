/* The watchdog: an engine that does not come back is asked to (EV_EXIT and a kick). */
#ifndef RING3_TESTS_BLOCKS_WATCH_H
#define RING3_TESTS_BLOCKS_WATCH_H

#include "blocks.h"

void watch_start(void);                /* one thread for the process */
void watch_patience(unsigned ms);      /* how long a run may take */
void watch_begin(const struct engine_ops *ops, struct cpu *c);
void watch_end(void);

#endif
