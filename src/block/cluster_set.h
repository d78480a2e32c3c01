/* A set of cluster numbers: open addressing. Private to block/. */
#ifndef RING3_BLOCK_CLUSTER_SET_H
#define RING3_BLOCK_CLUSTER_SET_H

#include "base/base.h"

struct cluster_set {
	u64 *slots; /* number + 1; 0: empty */
	u64 n, cap; /* cap: 0 or a power of two */
};

bool cluster_set_reserve(struct cluster_set *s, u64 n); /* room for so many; false: out of memory */
bool cluster_set_add(struct cluster_set *s, u64 cluster, bool *was_there); /* false: out of memory */
bool cluster_set_has(const struct cluster_set *s, u64 cluster);
void cluster_set_remove(struct cluster_set *s, u64 cluster);
void cluster_set_destroy(struct cluster_set *s);

#endif
