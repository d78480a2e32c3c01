#include "rig.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

struct rig_op {
	struct block_request req;
	struct iovec iov[3];
	struct rig *r;
	u8 *buf;
	u64 first, n;
	u64 step_submit;
	bool busy;
};
#define MAX_OP 512 /* sectors */

/* ---- scratch files ------------------------------------------------------------------------ */

static char folder[64];

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

static void remove_folder(void)
{
	nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

const char *scratch(void)
{
	if (!folder[0]) {
		strcpy(folder, access("/dev/shm", W_OK) ? "/tmp/ring3-block-XXXXXX" : "/dev/shm/ring3-block-XXXXXX");
		assert_non_null(mkdtemp(folder));
		atexit(remove_folder);
	}
	return folder;
}

char *scratch_file(const char *name)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", scratch(), name);
	return strdup(path);
}

u8 *load_file(const char *path, u64 *size)
{
	FILE *f = fopen(path, "r");
	struct stat st;

	assert_non_null(f);
	assert_int_equal(fstat(fileno(f), &st), 0);
	u8 *data = malloc((size_t)st.st_size + 1);
	assert_int_equal(fread(data, 1, (size_t)st.st_size, f), st.st_size);
	fclose(f);
	*size = (u64)st.st_size;
	return data;
}

void must_create(const char *path, const struct image_create *c)
{
	struct image_create with = *c;
	struct error e;

	with.file = path;
	if (!image_create(&with, &e))
		fail_msg("%s", e.msg);
}

/* ---- sectors ------------------------------------------------------------------------------ */

void rig_fill(u8 *buf, u64 sector, u32 value)
{
	for (int k = 0; k < 64; k++)
		st64(buf + 8 * k, value ? sector << 32 | value : 0);
}

bool rig_is(const u8 *buf, u64 sector, u32 value)
{
	u8 want[BLOCK_SECTOR];

	rig_fill(want, sector, value);
	return !memcmp(buf, want, sizeof(want));
}

static struct step *add_step(struct rig *r, u64 s, u32 value, bool maybe)
{
	struct sector *sec = &r->sectors[s];

	if (sec->n == sec->cap) {
		sec->cap = sec->cap ? sec->cap * 2 : 4;
		sec->steps = realloc(sec->steps, sec->cap * sizeof(*sec->steps));
		assert_non_null(sec->steps);
	}
	sec->steps[sec->n] = (struct step){ value, r->now, UINT64_MAX, maybe };
	return &sec->steps[sec->n++];
}

void rig_base(struct rig *r, u32 value, u64 first, u64 n)
{
	for (u64 s = first; s < first + n; s++) {
		r->sectors[s].n = 0;
		add_step(r, s, value, false)->done = 0;
	}
	r->last_value = MAX(r->last_value, value);
}

/* Has a sector a value that it may have? */
static void check_sector(struct rig *r, u64 s, const u8 *buf)
{
	struct sector *sec = &r->sectors[s];
	u32 k = sec->n;

	while (k--) {
		if (rig_is(buf, s, sec->steps[k].value))
			return;
		if (!sec->steps[k].maybe)
			break;
	}
	fail_msg("sector %llu has %08x in %08x, not %u", (unsigned long long)s, ld32(buf), ld32(buf + 4), sec->steps[sec->n - 1].value);
}

/* ---- the record --------------------------------------------------------------------------- */

static int on_begin(void *arg, enum file_what what, u64 offset, u64 len, const struct iovec *iov, int n_iov, u64 *id)
{
	struct rig *r = arg;

	if (r->fail_after && r->fail_what >> what & 1 && !--r->fail_after)
		return r->fail_errno;
	*id = UINT64_MAX;
	if (!r->recording || what == FILE_READ)
		return 0;
	if (r->n_changes == r->cap_changes) {
		r->cap_changes = r->cap_changes ? r->cap_changes * 2 : 1024;
		r->changes = realloc(r->changes, r->cap_changes * sizeof(*r->changes));
		assert_non_null(r->changes);
	}
	struct change *c = &r->changes[*id = r->n_changes++];
	*c = (struct change){ .what = what, .offset = offset, .len = len, .begin = r->now++, .end = UINT64_MAX };
	if (what == FILE_WRITE) {
		c->data = malloc(len);
		u8 *to = c->data;
		for (int k = 0; k < n_iov; k++) {
			memcpy(to, iov[k].iov_base, iov[k].iov_len);
			to += iov[k].iov_len;
		}
		assert_int_equal(to - c->data, len);
	}
	return 0;
}

static void on_end(void *arg, enum file_what what, u64 id, int error)
{
	struct rig *r = arg;

	if (id == UINT64_MAX || !r->recording)
		return;
	if (id < r->n_changes) {
		r->changes[id].end = r->now++;
		r->changes[id].failed = error;
	}
}

/* ---- requests ----------------------------------------------------------------------------- */

u64 rig_random(struct rig *r, u64 below)
{
	r->seed ^= r->seed << 13;
	r->seed ^= r->seed >> 7;
	r->seed ^= r->seed << 17;
	return r->seed % below;
}

void rig_init(struct rig *r, u64 sectors, u64 seed)
{
	memset(r, 0, sizeof(*r));
	r->n = sectors;
	r->seed = seed * 0x9e3779b97f4a7c15ull + 88172645463325252ull;
	r->sectors = calloc(sectors, sizeof(*r->sectors));
	r->ops = calloc(DEPTH, sizeof(*r->ops));
	r->now = 1;
	r->hooks = (struct file_hooks){ on_begin, on_end, r };
	for (int k = 0; k < DEPTH; k++) {
		r->ops[k].r = r;
		r->ops[k].buf = malloc(MAX_OP * BLOCK_SECTOR);
	}
	rig_base(r, 0, 0, sectors);
}

void rig_destroy(struct rig *r)
{
	for (u64 k = 0; k < r->n; k++)
		free(r->sectors[k].steps);
	for (u64 k = 0; k < r->n_changes; k++)
		free(r->changes[k].data);
	for (int k = 0; k < DEPTH; k++)
		free(r->ops[k].buf);
	free(r->ops);
	free(r->sectors);
	free(r->changes);
	free(r->flushes);
}

void rig_open(struct rig *r, const struct block_options *o, struct loop *loop)
{
	struct block_options with = *o;
	struct error e;

	with.hooks = &r->hooks;
	r->b = block_open(&with, loop, &e);
	if (!r->b)
		fail_msg("%s", e.msg);
	assert_int_equal(block_size(r->b), r->n * BLOCK_SECTOR);
}

void rig_close(struct rig *r)
{
	struct error e;

	rig_finish(r);
	if (!block_close(r->b, &e) && !r->errors_allowed)
		fail_msg("%s", e.msg);
	r->b = NULL;
}

static void op_done(struct block_request *req)
{
	struct rig_op *op = req->arg;
	struct rig *r = op->r;

	if (req->error && !r->errors_allowed)
		fail_msg("request %d: %s", req->op, strerror(req->error));
	r->errors += !!req->error;
	for (u64 k = 0; k < op->n; k++) {
		struct sector *s = &r->sectors[op->first + k];
		struct step *last = &s->steps[s->n - 1];
		s->busy = false;
		if (req->op == BLOCK_READ && !req->error)
			check_sector(r, op->first + k, op->buf + k * BLOCK_SECTOR);
		else if (req->op != BLOCK_READ) {
			last->done = r->now;
			last->maybe |= req->error != 0;
		}
	}
	if (req->op == BLOCK_FLUSH && !req->error) {
		r->flushes = realloc(r->flushes, (r->n_flushes + 1) * sizeof(*r->flushes));
		r->flushes[r->n_flushes].submit = op->step_submit;
		r->flushes[r->n_flushes++].done = r->now;
	}
	r->now++;
	op->busy = false;
	r->busy--;
	r->done_ops++;
}

static bool range_free(struct rig *r, u64 first, u64 n)
{
	for (u64 k = 0; k < n; k++)
		if (r->sectors[first + k].busy)
			return false;
	return true;
}

static enum block_op pick(struct rig *r)
{
	u64 k = rig_random(r, 100);

	return k < 52 ? BLOCK_WRITE : k < 76 ? BLOCK_READ : k < 84 ? BLOCK_WRITE_ZEROES : k < 93 ? BLOCK_DISCARD : BLOCK_FLUSH;
}

static void begin_op(struct rig *r, struct rig_op *op)
{
	enum block_op what = pick(r);
	u64 n = rig_random(r, 8) ? 1 + rig_random(r, 24) : 1 + rig_random(r, MAX_OP), first;

	n = MIN(n, r->n);
	first = rig_random(r, r->n - n + 1);
	if (what == BLOCK_FLUSH)
		n = 0;
	if (!range_free(r, first, n))
		return;
	op->first = first;
	op->n = n;
	op->step_submit = r->now;
	u32 value = what == BLOCK_WRITE ? ++r->last_value : 0;
	for (u64 k = 0; k < n; k++) {
		r->sectors[first + k].busy = true;
		if (what != BLOCK_READ)
			add_step(r, first + k, value, what == BLOCK_DISCARD);
		if (what == BLOCK_WRITE)
			rig_fill(op->buf + k * BLOCK_SECTOR, first + k, value);
		else if (what == BLOCK_READ)
			memset(op->buf + k * BLOCK_SECTOR, 0xee, BLOCK_SECTOR);
	}
	u64 len = n * BLOCK_SECTOR, a = rig_random(r, len + 1), b = a + rig_random(r, len - a + 1); /* of three pieces, some empty */
	op->iov[0] = (struct iovec){ op->buf, a };
	op->iov[1] = (struct iovec){ op->buf + a, b - a };
	op->iov[2] = (struct iovec){ op->buf + b, len - b };
	op->req = (struct block_request){ .op = what, .offset = first * BLOCK_SECTOR, .len = len, .iov = op->iov, .n_iov = 3, .done = op_done, .arg = op,
					  .unmap = rig_random(r, 2), .fua = !rig_random(r, 16) };
	op->busy = true;
	r->busy++;
	r->now++;
	block_submit(r->b, &op->req);
}

static void turn(struct rig *r)
{
	if (r->b->loop)
		loop_turn(r->b->loop, UINT64_MAX);
	else
		block_poll(r->b, true);
}

void rig_finish(struct rig *r)
{
	while (r->busy)
		turn(r);
}

void rig_run(struct rig *r, u64 n)
{
	for (u64 target = r->done_ops + n; r->done_ops < target;) {
		for (int k = 0; k < DEPTH; k++)
			if (!r->ops[k].busy && rig_random(r, 3))
				begin_op(r, &r->ops[k]);
		if (r->busy)
			turn(r);
	}
}

void rig_verify(struct rig *r)
{
	u8 *buf = malloc(r->n * BLOCK_SECTOR);

	rig_finish(r);
	assert_int_equal(block_read(r->b, 0, buf, r->n * BLOCK_SECTOR), 0);
	for (u64 s = 0; s < r->n; s++)
		check_sector(r, s, buf + s * BLOCK_SECTOR);
	free(buf);
}

/* ---- crashes ------------------------------------------------------------------------------ */

static void need(struct crash *c, u64 size)
{
	if (size > c->cap) {
		u64 cap = MAX(size, c->cap * 2);
		c->durable = realloc(c->durable, cap);
		assert_non_null(c->durable);
		memset(c->durable + c->cap, 0, cap - c->cap);
		c->cap = cap;
	}
}

void crash_begin(struct crash *c, struct rig *r, const u8 *image, u64 size)
{
	*c = (struct crash){ .r = r };
	need(c, size);
	memcpy(c->durable, image, size);
	c->size = size;
	c->applied = calloc(1, r->n_changes + 1);
}

void crash_end(struct crash *c)
{
	free(c->durable);
	free(c->applied);
}

/* A part of a change, sector by sector where rnd says so; NULL: all of it. */
static void apply(struct crash *c, const struct change *ch, struct rig *rnd)
{
	if (ch->what == FILE_TRUNCATE) {
		need(c, ch->offset);
		if (ch->offset < c->size)
			memset(c->durable + ch->offset, 0, c->size - ch->offset);
		c->size = ch->offset;
		return;
	}
	if (ch->what == FILE_SYNC)
		return;
	u64 end = ch->offset + ch->len;
	need(c, end);
	if (ch->what == FILE_WRITE)
		c->size = MAX(c->size, end);
	for (u64 at = ch->offset, n; at < end; at += n) {
		n = MIN(end, (at / BLOCK_SECTOR + 1) * BLOCK_SECTOR) - at;
		if (rnd && rig_random(rnd, 2))
			continue;
		if (ch->what == FILE_WRITE)
			memcpy(c->durable + at, ch->data + (at - ch->offset), n);
		else
			memset(c->durable + at, 0, n);
	}
}

/* The last sync that was over at the point: what was done before it began is durable. */
static u64 sync_before(const struct rig *r, u64 point)
{
	u64 begin = 0;

	for (u64 k = 0; k < r->n_changes && r->changes[k].begin < point; k++)
		if (r->changes[k].what == FILE_SYNC && r->changes[k].end < point)
			begin = r->changes[k].begin;
	return begin;
}

void crash_state(struct crash *c, u64 point, u64 seed, const char *path)
{
	struct rig *r = c->r;
	u64 sync = sync_before(r, point), k;
	struct rig rnd = { .seed = seed * 0x9e3779b97f4a7c15ull + 1 };

	for (k = c->next; k < r->n_changes && r->changes[k].begin < sync; k++) {
		if (r->changes[k].end < sync && !c->applied[k]) {
			apply(c, &r->changes[k], NULL);
			c->applied[k] = 1;
		}
		if (k == c->next && c->applied[k])
			c->next++;
	}
	struct crash now = { .r = r, .size = c->size };
	need(&now, c->size);
	memcpy(now.durable, c->durable, c->size);
	u64 how = rig_random(&rnd, 8); /* all of what is left, nothing, or parts */
	for (k = c->next; k < r->n_changes && r->changes[k].begin < point; k++) {
		if (c->applied[k] || r->changes[k].failed)
			continue;
		u64 fate = how == 0 ? 0 : how == 1 ? 1 : rig_random(&rnd, 3);
		if (fate != 1)
			apply(&now, &r->changes[k], fate == 0 ? NULL : &rnd);
	}
	FILE *f = fopen(path, "w");
	assert_non_null(f);
	assert_int_equal(fwrite(now.durable, 1, now.size, f), now.size);
	assert_int_equal(fclose(f), 0);
	free(now.durable);
}

static bool may_have(const struct sector *s, u64 i, const u8 *buf, u64 flushed, u64 point)
{
	u32 last = 0;

	for (u32 k = 0; k < s->n; k++)
		if (s->steps[k].done < flushed)
			last = k;
	for (u32 k = last + 1; k < s->n && s->steps[k].submit < point; k++)
		if (rig_is(buf, i, s->steps[k].value))
			return true;
	for (u32 k = last + 1; k--;) {
		if (rig_is(buf, i, s->steps[k].value))
			return true;
		if (!s->steps[k].maybe)
			return false;
	}
	return false;
}

void crash_verify(struct rig *r, u64 point, const char *path)
{
	struct block_options o = { .file = (char *)(uintptr_t)path };
	struct error e;
	struct block *b = block_open(&o, NULL, &e);
	u8 *buf = malloc(r->n * BLOCK_SECTOR);
	u64 flushed = 0;

	if (!b)
		fail_msg("point %llu: %s", (unsigned long long)point, e.msg);
	assert_int_equal(block_read(b, 0, buf, r->n * BLOCK_SECTOR), 0);
	for (u64 k = 0; k < r->n_flushes; k++)
		if (r->flushes[k].done < point)
			flushed = MAX(flushed, r->flushes[k].submit);
	for (u64 s = 0; s < r->n; s++)
		if (!may_have(&r->sectors[s], s, buf + s * BLOCK_SECTOR, flushed, point))
			fail_msg("point %llu: sector %llu has value %u of sector %u", (unsigned long long)point, (unsigned long long)s,
				 ld32(buf + s * BLOCK_SECTOR), ld32(buf + s * BLOCK_SECTOR + 4));
	free(buf);
	if (!block_close(b, &e))
		fail_msg("%s", e.msg);
}
