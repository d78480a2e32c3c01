/* qcow2 images: what only `ring3 img` does with them. Private to block/. */
#ifndef RING3_BLOCK_QCOW2_TOOL_H
#define RING3_BLOCK_QCOW2_TOOL_H

#include "block/qcow2.h"
#include "block/image_api.h"

/* A cluster's bytes, packed into at most cap; 0: it does not get smaller. */
u64 qcow2_pack(const struct qcow2 *q, const void *from, void *to, u64 cap);
/* The cluster at offset, packed, into an image that nobody else uses. */
int qcow2_write_packed(struct image *img, u64 offset, const void *data, u64 len);

/* Counts all that is named, and compares; repairs as it is asked to. An image that is opened for writing with its dirty
 * bit set is repaired by this before anything else. */
enum repair {
	REPAIR_NOTHING,
	REPAIR_COUNTS, /* at opening: only what not being closed explains; anything else is left as it is, and nothing is mended */
	REPAIR_ALL,
};
bool qcow2_check(struct qcow2 *q, enum repair repair, struct image_check *result, image_message_fn *say, void *arg, struct error *e);

/* COPIED where the count is 1, and nowhere else, in the active tables; how many entries were changed. */
int qcow2_fix_copied(struct qcow2 *q, u64 *fixed);
bool qcow2_snapshot_make(struct qcow2 *q, const char *name, struct error *e);
bool qcow2_snapshot_apply(struct qcow2 *q, const char *name, struct error *e);
bool qcow2_snapshot_delete(struct qcow2 *q, const char *name, struct error *e);
/* An image that is opened for reading shows the disk as it was then. */
bool qcow2_snapshot_show(struct qcow2 *q, const char *name, struct error *e);

#endif
