/* A disk under random requests, held against a model of its sectors; and the record of all that was done
 * to the image's file, from which the states are made that a crash could have left.
 *
 * Each write fills its sectors with a value of its own. The model knows of each sector all values it was given, when
 * these requests were submitted and done, so that it can say which ones a sector may have after a crash. */
#ifndef TESTS_BLOCK_RIG_H
#define TESTS_BLOCK_RIG_H

#include "test.h"
#include "block/disk.h"
#include "block/qcow2_tool.h"

#define DEPTH 12

/* A value that a sector was given. */
struct step {
	u32 value;        /* 0: zeros */
	u64 submit, done; /* points of the record; done UINT64_MAX: not yet */
	bool maybe;       /* a discard: or it kept what it had */
};
struct sector {
	struct step *steps;
	u32 n, cap;
	bool busy;
};

/* A change of the file. */
struct change {
	enum file_what what;
	u64 offset, len, begin, end; /* end UINT64_MAX: not yet */
	u8 *data;
	bool failed;
};

struct rig_op;
struct rig {
	struct block *b;
	struct file_hooks hooks;
	u64 n;                    /* sectors */
	struct sector *sectors;
	u32 last_value;
	u64 seed;
	u64 now;                  /* the record's next point */
	bool recording;
	struct change *changes;
	u64 n_changes, cap_changes;
	struct { u64 submit, done; } *flushes;
	u64 n_flushes;
	u64 fail_after, fail_what; /* so many operations from now on one of fail_what (a bit set) fails; 0: none */
	int fail_errno;
	struct rig_op *ops;
	unsigned busy;
	u64 done_ops;
	bool errors_allowed;
	u64 errors;
};

void rig_init(struct rig *r, u64 sectors, u64 seed);
void rig_destroy(struct rig *r);
u64 rig_random(struct rig *r, u64 below);
/* Opens with the record's hooks. */
void rig_open(struct rig *r, const struct block_options *o, struct loop *loop);
void rig_close(struct rig *r);
/* So many random requests, up to DEPTH at a time on sectors of their own; reads are compared. */
void rig_run(struct rig *r, u64 n);
void rig_finish(struct rig *r);    /* waits for all */
void rig_verify(struct rig *r);    /* reads all */
/* All sectors were given `value` before the record began. */
void rig_base(struct rig *r, u32 value, u64 first, u64 n);
void rig_fill(u8 *buf, u64 sector, u32 value);
bool rig_is(const u8 *buf, u64 sector, u32 value);

/* ---- crashes ------------------------------------------------------------------------------ */

/* The file as it was when the record began. Then, for points that rise: what a crash then may have left, written
 * to path. */
struct crash {
	struct rig *r;
	u8 *durable;
	u64 size, cap;
	u64 next;         /* changes before it are in durable, if they are */
	u8 *applied;      /* of each change */
};
void crash_begin(struct crash *c, struct rig *r, const u8 *image, u64 size);
void crash_state(struct crash *c, u64 point, u64 seed, const char *path);
void crash_end(struct crash *c);
/* Whether the disk in path has what a crash at that point may leave; what it has becomes the model. */
void crash_verify(struct rig *r, u64 point, const char *path);

u8 *load_file(const char *path, u64 *size);
const char *scratch(void);             /* a folder, removed at the end */
char *scratch_file(const char *name);  /* malloced */
void must_create(const char *path, const struct image_create *c);

#endif
