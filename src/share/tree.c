/* Files and their names: fids, and how a name becomes a descriptor without ever leaving the folder.
 *
 * A fid is of a node, a node is a name in a node, up to the folder itself. So a renamed directory takes
 * along what the client knows below it, and fids cost no descriptors until they are opened: a client that
 * caches has tens of thousands of them.
 *
 * Invariants
 *  1. A descriptor is found from the folder's by one name at a time, with O_PATH and O_NOFOLLOW. A name has
 *     no '/', and is neither "." nor "..". So a symbolic link is an end, never a way, and no step leads up.
 *  2. What is opened to be read or written is a regular file or a directory: looked at as O_PATH, then
 *     opened by that very descriptor (/proc/self/fd), so that nothing can be put in its place meanwhile.
 *     Devices, FIFOs and sockets are never opened.
 *  3. Nodes form a tree below `top`; those that are not gone are in the hash by (parent, name).
 *  4. Nodes, fids and open files are bounded. */
#define LOG_TOPIC "share"
#include "share/p9.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_FIDS 65536u
#define MAX_NODES (4 * MAX_FIDS)
#define MAX_DEPTH 1024u
#define MAX_OPEN 16384u

/* ---- nodes -------------------------------------------------------------------------------- */

static struct node **bucket_of(struct session *s, const struct node *dir, const char *name)
{
	u64 h = (u64)(size_t)dir * 0x9e3779b97f4a7c15;

	for (; *name; name++)
		h = (h ^ (u8)*name) * 0x100000001b3;
	return &s->nodes[(h ^ h >> 32) % TREE_BUCKETS];
}

static struct node *node_find(struct session *s, const struct node *dir, const char *name)
{
	struct node *n = *bucket_of(s, dir, name);

	while (n && (n->parent != dir || strcmp(n->name, name)))
		n = n->next;
	return n;
}

static void hash_in(struct session *s, struct node *n)
{
	struct node **b = bucket_of(s, n->parent, n->name);

	n->next = *b;
	*b = n;
}

static void hash_out(struct session *s, struct node *n)
{
	struct node **p = bucket_of(s, n->parent, n->name);

	while (*p != n)
		p = &(*p)->next;
	*p = n->next;
}

struct node *node_get(struct node *n)
{
	n->refs++;
	return n;
}

void node_put(struct session *s, struct node *n)
{
	while (!--n->refs) { /* never top, which has one for itself */
		struct node *parent = n->parent;

		if (!n->gone)
			hash_out(s, n);
		free(n->name);
		free(n);
		s->n_nodes--;
		n = parent;
	}
}

struct node *node_child(struct session *s, struct node *dir, const char *name)
{
	struct node *n = node_find(s, dir, name);

	if (n)
		return node_get(n);
	if (s->n_nodes == MAX_NODES || !(n = malloc(sizeof(*n))))
		return NULL;
	*n = (struct node){ .parent = dir, .refs = 1, .name = strdup(name) };
	if (!n->name) {
		free(n);
		return NULL;
	}
	node_get(dir);
	s->n_nodes++;
	hash_in(s, n);
	return n;
}

static void node_lose(struct session *s, struct node *n)
{
	hash_out(s, n);
	n->gone = true;
}

void node_removed(struct session *s, struct node *dir, const char *name)
{
	struct node *n = node_find(s, dir, name);

	if (n)
		node_lose(s, n);
}

static bool is_within(const struct node *n, const struct node *dir)
{
	while (n && n != dir)
		n = n->parent;
	return n == dir;
}

void node_renamed(struct session *s, struct node *from_dir, const char *from, struct node *to_dir, const char *to)
{
	struct node *n = node_find(s, from_dir, from);

	if (n && n == node_find(s, to_dir, to))
		return;
	node_removed(s, to_dir, to);
	if (!n)
		return;
	/* Into itself: the kernel refuses that, but not where someone on the host moves directories meanwhile. */
	char *name = is_within(to_dir, n) ? NULL : strdup(to);
	if (!name) {
		node_lose(s, n);
		return;
	}
	hash_out(s, n);
	free(n->name);
	n->name = name;
	n->parent = node_get(to_dir);
	hash_in(s, n);
	node_put(s, from_dir);
}

/* ---- descriptors ------------------------------------------------------------------------------ */

int path_child(int dir, const char *name)
{
	int fd = openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

int node_open(const struct session *s, const struct node *n)
{
	const char *names[MAX_DEPTH];
	unsigned depth = 0;

	for (; n->parent; n = n->parent) {
		if (n->gone)
			return -ENOENT;
		if (depth == MAX_DEPTH)
			return -ENAMETOOLONG;
		names[depth++] = n->name;
	}
	int fd = openat(s->root, ".", O_PATH | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	while (depth && fd >= 0) {
		int next = path_child(fd, names[--depth]);

		close(fd);
		fd = next;
	}
	return fd;
}

/* What is open, and its name removed, goes on; by whichever of the client's fids it is open. */
int fid_open_path(struct session *s, const struct fid *f)
{
	int fd = f->fd >= 0 ? fcntl(f->fd, F_DUPFD_CLOEXEC, 0) : node_open(s, f->node);

	if (f->fd >= 0)
		return fd < 0 ? -errno : fd;
	for (unsigned b = 0; fd == -ENOENT && f->node->gone && b < TREE_BUCKETS; b++)
		for (const struct fid *o = s->fids[b]; o && fd == -ENOENT; o = o->next)
			if (o->node == f->node && o->fd >= 0) {
				fd = fcntl(o->fd, F_DUPFD_CLOEXEC, 0);
				if (fd < 0)
					return -errno;
			}
	return fd;
}

static void proc_name(int path, char name[16]) { snprintf(name, 16, "%d", path); }

int path_reopen(const struct session *s, int path, int flags, bool *dir)
{
	char name[16];
	struct stat st;
	int err = path_stat(path, &st);

	if (err)
		return err;
	*dir = S_ISDIR(st.st_mode);
	if (S_ISLNK(st.st_mode))
		return -ELOOP;
	if (!*dir && !S_ISREG(st.st_mode))
		return -EACCES;
	if (*dir && (flags & (O_ACCMODE | O_TRUNC)))
		return -EISDIR;
	proc_name(path, name);
	int fd = openat(s->proc, name, flags | O_CLOEXEC | O_NOCTTY);
	return fd < 0 ? -errno : fd;
}

int path_chmod(const struct session *s, int path, mode_t mode)
{
	char name[16];

	proc_name(path, name);
	return fchmodat(s->proc, name, mode, 0) ? -errno : 0;
}

/* ---- fids --------------------------------------------------------------------------------------- */

static struct fid **fid_slot(struct session *s, u32 id)
{
	struct fid **p = &s->fids[(id * 0x9e3779b1u >> 16) % TREE_BUCKETS];

	while (*p && (*p)->id != id)
		p = &(*p)->next;
	return p;
}

struct fid *fid_get(struct session *s, u32 id) { return *fid_slot(s, id); }

int fid_new(struct session *s, u32 id, struct node *n)
{
	struct fid **p = fid_slot(s, id);

	if (*p)
		return -EINVAL;
	if (s->n_fids == MAX_FIDS || !(*p = malloc(sizeof(**p))))
		return -ENOMEM;
	**p = (struct fid){ .id = id, .node = node_get(n), .fd = -1 };
	s->n_fids++;
	return 0;
}

void fid_move(struct session *s, struct fid *f, struct node *n)
{
	struct node *old = f->node;

	f->node = node_get(n);
	node_put(s, old);
}

void fid_free(struct session *s, struct fid *f)
{
	*fid_slot(s, f->id) = f->next;
	if (f->fd >= 0) {
		close(f->fd);
		s->n_open--;
	}
	node_put(s, f->node);
	free(f);
	s->n_fids--;
}

int fid_keep_open(struct session *s, struct fid *f, int fd, bool dir)
{
	if (s->n_open == s->max_open) {
		close(fd);
		return -EMFILE;
	}
	s->n_open++;
	f->fd = fd;
	f->dir = dir;
	return 0;
}

/* ---- life ----------------------------------------------------------------------------------------- */

/* A share's part of the descriptors that this process may have: a sixteenth, of as many as the host allows. */
static unsigned open_limit(void)
{
	struct rlimit l;

	if (getrlimit(RLIMIT_NOFILE, &l))
		return 64;
	if (l.rlim_cur < l.rlim_max) {
		l.rlim_cur = l.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &l);
		(void)getrlimit(RLIMIT_NOFILE, &l);
	}
	return (unsigned)MIN(MAX(l.rlim_cur / 16, 16u), MAX_OPEN);
}

bool session_init(struct session *s, const struct share_options *o, struct error *e)
{
	struct stat st;

	*s = (struct session){ .read_only = o->read_only, .msize = P9_MSIZE_MAX, .top.refs = 1, .max_open = open_limit() };
	s->root = open(o->path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (s->root < 0)
		return error_set(e, "%s: %s", o->path, errno == ENOTDIR ? "not a folder; only folders can be shared" : strerror(errno));
	s->proc = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	int err = s->proc < 0 ? -errno : path_stat(s->root, &st);
	if (err) {
		session_destroy(s);
		return error_set(e, "%s: %s: %s", o->path, s->proc < 0 ? "/proc/self/fd" : "its state", strerror(-err));
	}
	s->root_dev = st.st_dev;
	return true;
}

bool session_again(struct session *s, const struct session *of)
{
	*s = (struct session){ .read_only = of->read_only, .msize = P9_MSIZE_MAX, .top.refs = 1, .max_open = of->max_open, .root_dev = of->root_dev };
	s->root = fcntl(of->root, F_DUPFD_CLOEXEC, 0);
	s->proc = fcntl(of->proc, F_DUPFD_CLOEXEC, 0);
	if (s->root >= 0 && s->proc >= 0)
		return true;
	session_destroy(s);
	return false;
}

void session_reset(struct session *s)
{
	for (unsigned b = 0; b < TREE_BUCKETS; b++)
		while (s->fids[b])
			fid_free(s, s->fids[b]);
	s->msize = P9_MSIZE_MAX;
}

void session_destroy(struct session *s)
{
	session_reset(s);
	if (s->root >= 0)
		close(s->root);
	if (s->proc >= 0)
		close(s->proc);
}
