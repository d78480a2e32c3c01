/* share: a folder of the host as a guest sees it, through a server of 9P2000.L.
 *
 * The folder is all that there is: nothing outside of it can be named, read or changed through a
 * share, whatever is asked and whatever symbolic links lie in it (tree.c says how). Devices hand it
 * requests, a message each; a thread of the share's own carries them out, in order, and the event
 * loop's thread is told of each that is done. No call here waits for the host's files but share_open,
 * and share_close and share_drain, which wait SHARE_PATIENCE seconds at the most.
 *
 * What a device may rely on: done is called once for each request, on the loop's thread, never from
 * inside share_submit, and with no lock of this folder's held. Any bytes may be in a request.
 * Threading: share_submit, share_reset and share_give_up, any thread; the others on the loop's thread. */
#ifndef RING3_SHARE_H
#define RING3_SHARE_H

#include <sys/uio.h>

#include "base/base.h"

#define SHARE_TAG_MAX 32u      /* characters */
/* The least that a request must have: to read, a message's header; to write, an error's reply. */
#define SHARE_REQUEST_MIN 7u
#define SHARE_REPLY_MIN 11u
#define SHARE_PATIENCE 1u      /* seconds */

struct share_options {
	char *path;      /* the folder */
	char *tag;       /* the name by which the guest mounts it; NULL: that of the folder */
	bool read_only;
};
/* Rows of a kv_key table for the options at `member` of `type`; the path comes first. */
#define SHARE_KEYS(type, member) \
	{ "path", KV_STR, offsetof(type, member.path), "a folder of the host" }, \
	{ "tag", KV_STR, offsetof(type, member.tag), "the name by which the guest mounts it; default that of the folder" }, \
	{ "read-only", KV_BOOL, offsetof(type, member.read_only), "the guest cannot change it" }

struct share;
/* loop: whose thread is told. dry_run: nothing is opened. */
struct share *share_open(const struct share_options *o, bool dry_run, struct loop *loop, struct error *e);
/* As share_drain; after it nothing of the share is called. */
void share_close(struct share *s);
const char *share_tag(const struct share *s);

/* The caller owns it, and its pieces, from share_submit to done. */
struct share_request {
	const struct iovec *out, *in; /* the message; room for the reply */
	unsigned n_out, n_in;
	u64 out_len, in_len;          /* bytes, at least as above */
	void (*done)(struct share_request *r);
	u64 reply;                    /* at done: bytes written, from the begin of `in`; 0: it was given up */
	/* The share's, from share_submit to done. */
	struct share_request *next;
	u32 session;
};
void share_submit(struct share *s, struct share_request *r);
/* The guest's session is over: what it had open is closed, after the requests that were submitted before. */
void share_reset(struct share *s);
/* What was submitted before share_reset and is not carried out yet is done now, however long the host's files take: it may
 * still be carried out, or never. For who has waited long enough. */
void share_give_up(struct share *s);
/* Waits until nothing is under way; done is called for what was. What takes longer than SHARE_PATIENCE is given up, and the session with it. */
void share_drain(struct share *s);
bool share_is_busy(struct share *s);  /* any thread: something is being carried out, or waits for it */

#endif
