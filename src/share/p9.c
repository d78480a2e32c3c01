/* A message: its arguments taken, its type's function called, its reply written. What sessions are made of:
 * version, attach, walk, flush, clunk. Layouts: p9.h.
 *
 * Invariants
 *  1. A message is copied, then judged; only the data of Twrite is not, which goes to the file as it is.
 *  2. Nothing is put beyond what the client negotiated, or gave as room. */
#define LOG_TOPIC "share"
#include "share/p9.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

enum { RLERROR = 7, TVERSION = 100, TWRITE = 118 };
#define NO_FID 0xffffffffu
enum { QT_DIR = 0x80, QT_SYMLINK = 0x02 };

/* ---- arguments and results ------------------------------------------------------------------ */

static void fail(struct call *c, int error)
{
	if (!c->error)
		c->error = error;
}

/* Where the next bytes of the message are, which are taken; NULL: there are not so many. */
static const u8 *take(struct call *c, size_t bytes)
{
	const u8 *at = c->at;

	if (c->left < bytes) {
		fail(c, -EINVAL);
		c->left = 0;
		return NULL;
	}
	c->at += bytes;
	c->left -= bytes;
	return at;
}

void pass_over(struct call *c, size_t bytes) { (void)take(c, bytes); }

u64 get(struct call *c, unsigned bytes)
{
	const u8 *at = take(c, bytes);
	u64 v = 0;

	if (at)
		memcpy(&v, at, bytes);
	return v;
}

void get_text(struct call *c, char *buf, size_t cap)
{
	size_t len = get(c, 2);

	buf[0] = 0;
	if (len > c->left || len >= cap || memchr(c->at, 0, len)) {
		fail(c, len > c->left ? -EINVAL : len >= cap ? -ENAMETOOLONG : -EINVAL);
		c->left = 0;
		return;
	}
	memcpy(buf, c->at, len);
	buf[len] = 0;
	c->at += len;
	c->left -= len;
}

void get_name(struct call *c, char name[P9_NAME])
{
	get_text(c, name, P9_NAME);
	if (!name[0] || !strcmp(name, ".") || !strcmp(name, "..") || strchr(name, '/'))
		fail(c, -EINVAL);
}

struct fid *get_fid(struct call *c)
{
	struct fid *f = fid_get(c->s, (u32)get(c, 4));

	if (!f)
		fail(c, -EBADF);
	return f;
}

void put(struct call *c, u64 val, unsigned bytes)
{
	if (bytes > P9_BUFFER - c->len) {
		fail(c, -EMSGSIZE);
		return;
	}
	memcpy(c->s->reply + c->len, &val, bytes);
	c->len += bytes;
}

void put_text(struct call *c, const char *text, size_t len)
{
	put(c, len, 2);
	if (len > P9_BUFFER - c->len) {
		fail(c, -EMSGSIZE);
		return;
	}
	memcpy(c->s->reply + c->len, text, len);
	c->len += len;
}

/* Inode numbers are one device's. Others, mounted below, must not be taken for the same files. */
u64 qid_path(const struct session *s, dev_t dev, ino_t ino)
{
	u64 other = dev == s->root_dev ? 0 : (u64)dev * 0x9e3779b97f4a7c15;

	return ino ^ (other << 32 | other >> 32);
}

u8 qid_type(mode_t mode) { return S_ISDIR(mode) ? QT_DIR : S_ISLNK(mode) ? QT_SYMLINK : 0; }

void put_qid(struct call *c, const struct stat *st)
{
	put(c, qid_type(st->st_mode), 1);
	put(c, (u32)(st->st_mtim.tv_nsec ^ (u64)st->st_mtim.tv_sec << 8 ^ (u64)st->st_size), 4);
	put(c, qid_path(c->s, st->st_dev, st->st_ino), 8);
}

int path_stat(int path, struct stat *st) { return fstatat(path, "", st, AT_EMPTY_PATH) ? -errno : 0; }

/* ---- sessions ---------------------------------------------------------------------------------- */

int p9_version(struct call *c)
{
	static const char known[] = "9P2000.L", unknown[] = "unknown";
	char version[64];
	u32 msize = (u32)get(c, 4);

	get_text(c, version, sizeof(version));
	if (c->error)
		return c->error;
	if (msize < P9_MSIZE_MIN)
		return -EMSGSIZE;
	session_reset(c->s);
	c->s->msize = MIN(msize, P9_MSIZE_MAX);
	put(c, c->s->msize, 4);
	if (!strcmp(version, known))
		put_text(c, known, strlen(known));
	else
		put_text(c, unknown, strlen(unknown));
	return 0;
}

int p9_attach(struct call *c)
{
	char user[P9_NAME], which[P9_NAME];
	u32 id = (u32)get(c, 4), auth = (u32)get(c, 4);
	struct stat st;

	get_text(c, user, sizeof(user));
	get_text(c, which, sizeof(which));
	pass_over(c, 4); /* the user's number: files are this process's user's */
	if (c->error)
		return c->error;
	if (auth != NO_FID)
		return -EOPNOTSUPP;
	if (which[0] && strcmp(which, "/"))
		return -ENOENT;
	int err = path_stat(c->s->root, &st);
	if (!err)
		err = fid_new(c->s, id, &c->s->top);
	if (!err)
		put_qid(c, &st);
	return err;
}

/* One step from *n and *fd, which go there. */
static int step(struct call *c, const char *name, struct node **n, int *fd)
{
	struct session *s = c->s;
	bool up = !strcmp(name, "..");
	struct node *to = !up ? node_child(s, *n, name) : node_get((*n)->parent ? (*n)->parent : *n);
	struct stat st;

	if (!to)
		return -ENOMEM;
	int next = up ? node_open(s, to) : path_child(*fd, name);
	int err = next < 0 ? next : path_stat(next, &st);
	if (err) {
		if (next >= 0)
			close(next);
		node_put(s, to);
		return err;
	}
	close(*fd);
	node_put(s, *n);
	*fd = next;
	*n = to;
	put_qid(c, &st);
	return 0;
}

/* newfid is made, or fid moved, once all steps were done. */
static int arrive(struct call *c, struct fid *f, u32 new_id, struct node *n)
{
	if (new_id != f->id)
		return fid_new(c->s, new_id, n);
	fid_move(c->s, f, n);
	return 0;
}

int p9_walk(struct call *c)
{
	char name[P9_NAME];
	struct fid *f = get_fid(c);
	u32 new_id = (u32)get(c, 4), wanted = (u32)get(c, 2), done = 0;

	if (c->error)
		return c->error;
	if (wanted > P9_MAX_WALK || (new_id == f->id && f->fd >= 0))
		return -EINVAL;
	if (new_id != f->id && fid_get(c->s, new_id))
		return -EINVAL;
	struct node *n = node_get(f->node);
	int err = 0, fd = wanted ? node_open(c->s, n) : -1;
	put(c, 0, 2);
	if (wanted && fd < 0)
		err = fd;
	for (; !err && done < wanted; done += !err) {
		get_text(c, name, sizeof(name));
		if (!c->error && strcmp(name, "..") && (!name[0] || !strcmp(name, ".") || strchr(name, '/')))
			c->error = -EINVAL;
		err = c->error ? c->error : step(c, name, &n, &fd);
	}
	if (fd >= 0)
		close(fd);
	if (err && done && !c->error)
		err = 0; /* how far it came is the answer */
	else if (!err)
		err = arrive(c, f, new_id, n);
	node_put(c->s, n);
	st16(c->s->reply + P9_HEADER, (u16)done);
	return err;
}

/* Requests are carried out in order: the one to be flushed has been. */
int p9_flush(struct call *c)
{
	pass_over(c, 2);
	return c->error;
}

int p9_clunk(struct call *c)
{
	struct fid *f = get_fid(c);

	if (f)
		fid_free(c->s, f);
	return c->error;
}

static int not_offered(struct call *c)
{
	return -EOPNOTSUPP;
}

/* ---- dispatch ------------------------------------------------------------------------------------ */

/* By the type of the request; the reply's is one more. */
static const struct { int (*serve)(struct call *c); bool changes; } types[] = {
	[8] = { p9_statfs },        [12] = { p9_lopen },        [14] = { p9_lcreate, true }, [16] = { p9_symlink, true },
	[18] = { p9_mknod, true },  [20] = { p9_rename, true }, [22] = { p9_readlink },      [24] = { p9_getattr },
	[26] = { p9_setattr, true },
	[30] = { not_offered },     [32] = { not_offered },     /* extended attributes */
	[40] = { p9_readdir },      [50] = { p9_fsync },        [52] = { p9_lock },          [54] = { p9_getlock },
	[70] = { p9_link, true },   [72] = { p9_mkdir, true },  [74] = { p9_renameat, true }, [76] = { p9_unlinkat, true },
	[TVERSION] = { p9_version },
	[102] = { not_offered },    /* authentication */
	[104] = { p9_attach },      [108] = { p9_flush },       [110] = { p9_walk },         [116] = { p9_read },
	[TWRITE] = { p9_write, true }, [120] = { p9_clunk },    [122] = { p9_remove },
};

static int serve(struct call *c, u8 type)
{
	if (type >= ARRAY_LEN(types) || !types[type].serve)
		return -EOPNOTSUPP;
	if (types[type].changes && c->s->read_only)
		return -EROFS;
	int err = types[type].serve(c);
	if (!err)
		err = c->error;
	return !err && c->len + c->data > c->room ? -EMSGSIZE : err;
}

void p9_serve(struct session *s, struct share_request *r)
{
	u64 have = iov_read(r->out, r->n_out, 0, s->args, MIN(r->out_len, P9_BUFFER));
	u32 size = ld32(s->args);
	u8 type = s->args[4];
	struct call c = { .s = s, .r = r, .size = size, .room = (u32)MIN(r->in_len, s->msize), .at = s->args + P9_HEADER, .len = P9_HEADER };
	/* What lies behind the buffer is missed by all but Twrite, whose data it is. */
	bool whole = size >= P9_HEADER && size <= r->out_len && size <= P9_MSIZE_MAX && have >= P9_HEADER;

	c.left = whole ? MIN(size, have) - P9_HEADER : 0;
	int err = whole ? serve(&c, type) : -EINVAL;
	if (err) {
		type = RLERROR - 1;
		c.len = P9_HEADER;
		c.data = 0;
		put(&c, (u32)-err, 4);
	}
	st32(s->reply, (u32)(c.len + c.data));
	s->reply[4] = (u8)(type + 1);
	st16(s->reply + 5, ld16(s->args + 5));
	iov_write(r->in, r->n_in, 0, s->reply, c.len);
	r->reply = c.len + c.data;
}
