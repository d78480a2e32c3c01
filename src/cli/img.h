/* What `ring3 img` prints: private to cli/. */
#ifndef RING3_CLI_IMG_H
#define RING3_CLI_IMG_H

#include "block/image_api.h"

void img_print_info(const struct image_info *info);
void img_print_json(const struct image_info *info);
void img_print_snapshots(const struct image_info *info);

/* A bar on standard error, drawn at most ten times a second. */
struct progress {
	u64 last_ns;
	bool drawn;
};
void img_progress(void *progress, u64 done, u64 all);
void img_progress_end(struct progress *p);

#endif
