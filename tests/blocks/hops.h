/* Engine hops in the middle of programs. */
#ifndef RING3_TESTS_BLOCKS_HOPS_H
#define RING3_TESTS_BLOCKS_HOPS_H

#include "blocks.h"

/* The processor, which is in `home`, runs some instructions there, goes on in `away` until it ends or, some microseconds
 * later, is called back, and then to its end at home, where it is left. *seed: drawn from, and changed. */
enum run_exit hops_run(struct cpu *c, const struct engine_ops *home, const struct engine_ops *away, u64 *seed);
/* Programs that went on away from home, and those of them that were called back before their end. */
void hops_count(u64 *away, u64 *back);

#endif
