/* What the harness asks of the translating engine beyond struct engine_ops. Apart from the rest,
 * since that engine's header has names of ours. */
#include "bt/bt.h"

void bt_exact(struct cpu *c); /* diff.h */
void bt_exact(struct cpu *c) { bt_of(c)->exact_flags = true; }
