/* Faults on purpose, of the kinds that a translator may have: engine B with one of them must be found
 * out, or the comparer compares nothing. Each is put in around single steps. */
#ifndef RING3_TESTS_BLOCKS_PLANTED_H
#define RING3_TESTS_BLOCKS_PLANTED_H

#include "blocks.h"

enum { PLANTED_VEX = 13 /* needs AVX */ };
unsigned planted_count(void);              /* they count from 1 */
const char *planted_name(unsigned n);
void planted_loaded(struct rig *r, const struct engine_spec *s); /* memory is fresh */
/* One step, with the fault of s if it has one. */
enum run_exit planted_step(struct rig *r, const struct engine_spec *s);

#endif
