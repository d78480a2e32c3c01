/* Private to share/: a session of 9P2000.L. Plan 9 manual, section 5; diod's protocol.md for the .L messages;
 * Linux's net/9p and fs/9p for what a client makes of it.
 *
 *   message   u32 size (of all of it), u8 type, u16 tag, arguments; a text is a u16 length and its bytes
 *   qid       u8 type, u32 version, u64 path: what a file is, whatever its name
 *   fid       a number by which the client names a file, open or not
 *
 * All functions return 0 (or a descriptor, a length) or a negative errno: those of Linux on x86 are the
 * protocol's. Threading: one thread at a time, the share's. */
#ifndef RING3_P9_H
#define RING3_P9_H

#include <limits.h>
#include <sys/stat.h>

#include "share/share.h"

#define P9_HEADER 7u
#define P9_DATA 11u              /* where the data of Rread and Rreaddir begins: behind the header and a count */
#define P9_MSIZE_MAX (512u << 10) /* of a message; Linux asks for 128 KiB, at most 500,000 bytes */
#define P9_MSIZE_MIN 4096u
#define P9_BUFFER 8192u          /* any message but for the data of reads and writes: 16 names, or 2 and a target */
#define P9_NAME (NAME_MAX + 1)
#define P9_MAX_WALK 16u

/* ---- files and their names (tree.c) --------------------------------------------------- */

struct node {
	struct node *parent;     /* NULL: the folder itself */
	struct node *next;       /* of the same hash */
	u32 refs;                /* fids and children */
	bool gone;               /* its name was removed, or is another file's now */
	char *name;
};

struct fid {
	struct fid *next;        /* of the same hash */
	u32 id;
	struct node *node;
	int fd;                  /* open for the client, or -1 */
	bool dir;                /* that is a directory */
};

#define TREE_BUCKETS 4096u
struct session {
	int root;                /* the folder, O_PATH */
	int proc;                /* /proc/self/fd */
	dev_t root_dev;
	bool read_only;
	u32 msize;
	struct node top;
	struct node *nodes[TREE_BUCKETS];
	struct fid *fids[TREE_BUCKETS];
	unsigned n_nodes, n_fids, n_open, max_open;
	u8 args[P9_BUFFER], reply[P9_BUFFER];
	u8 entries[32 << 10], listing[32 << 10]; /* of a directory: as the kernel gives them, as the client gets them */
};

bool session_init(struct session *s, const struct share_options *o, struct error *e);
bool session_again(struct session *s, const struct session *of); /* of the same folder; false: too many descriptors */
void session_reset(struct session *s);   /* no fids any more */
void session_destroy(struct session *s);

struct fid *fid_get(struct session *s, u32 id);                 /* or NULL */
int fid_new(struct session *s, u32 id, struct node *n);         /* takes a reference of its own */
void fid_move(struct session *s, struct fid *f, struct node *n);/* to another file; likewise */
void fid_free(struct session *s, struct fid *f);
int fid_keep_open(struct session *s, struct fid *f, int fd, bool dir); /* takes fd, also on an error */

/* The file of that name in a directory, whether there is one or not; with a reference. NULL: too many. */
struct node *node_child(struct session *s, struct node *dir, const char *name);
struct node *node_get(struct node *n);
void node_put(struct session *s, struct node *n);
void node_removed(struct session *s, struct node *dir, const char *name);
void node_renamed(struct session *s, struct node *from_dir, const char *from, struct node *to_dir, const char *to);

/* Descriptors, O_PATH: of a node; of what a fid names, though its name may be gone if it is open; of a name. */
int node_open(const struct session *s, const struct node *n);
int fid_open_path(struct session *s, const struct fid *f);
int path_child(int dir, const char *name);
/* Opens a regular file or a directory again to read or write it. flags: O_RDONLY, O_WRONLY, O_RDWR and others. */
int path_reopen(const struct session *s, int path, int flags, bool *dir);
int path_chmod(const struct session *s, int path, mode_t mode);

/* ---- a message (p9.c) ----------------------------------------------------------------- */

struct call {
	struct session *s;
	const struct share_request *r;
	u64 size;                /* of the message */
	u32 room;                /* the most that the reply may have */
	const u8 *at;            /* arguments that have not been taken */
	size_t left;
	int error;               /* of what was taken; the first one */
	size_t len;              /* of s->reply: what was put */
	u64 data;                /* bytes that lie in the request's `in` already, behind what was put */
};

u64 get(struct call *c, unsigned bytes);      /* at most 8 */
void pass_over(struct call *c, size_t bytes);
void get_text(struct call *c, char *buf, size_t cap);
void get_name(struct call *c, char name[P9_NAME]); /* of a file in a directory: not empty, no '/', not "." or ".." */
struct fid *get_fid(struct call *c);
void put(struct call *c, u64 val, unsigned bytes);
void put_text(struct call *c, const char *text, size_t len);
void put_qid(struct call *c, const struct stat *st);
u64 qid_path(const struct session *s, dev_t dev, ino_t ino);
u8 qid_type(mode_t mode);
int path_stat(int path, struct stat *st);

/* What types of messages do (p9_*.c). */
int p9_version(struct call *c);
int p9_attach(struct call *c);
int p9_walk(struct call *c);
int p9_flush(struct call *c);
int p9_clunk(struct call *c);
int p9_remove(struct call *c);
int p9_statfs(struct call *c);
int p9_getattr(struct call *c);
int p9_setattr(struct call *c);
int p9_readlink(struct call *c);
int p9_symlink(struct call *c);
int p9_mknod(struct call *c);
int p9_mkdir(struct call *c);
int p9_link(struct call *c);
int p9_rename(struct call *c);
int p9_renameat(struct call *c);
int p9_unlinkat(struct call *c);
int p9_lopen(struct call *c);
int p9_lcreate(struct call *c);
int p9_read(struct call *c);
int p9_write(struct call *c);
int p9_readdir(struct call *c);
int p9_fsync(struct call *c);
int p9_lock(struct call *c);
int p9_getlock(struct call *c);

/* Carries out a request; r->reply says how much of an answer there is. */
void p9_serve(struct session *s, struct share_request *r);

#endif
