/* A share and its thread. Requests wait in order; the thread carries out one after the other and puts it on
 * the list of those done, which the loop's thread empties.
 *
 * A call of the host's may come back late or never, where the folder is on a mount whose server is gone. So a
 * thread that is behind, in a session that is over, can be given up: the next requests get a thread of their
 * own, and the old one goes on alone until its call comes back, closes what it had open, and is gone.
 *
 * Invariants
 *  1. A worker's session and buffers are its thread's alone.
 *  2. A request's memory is touched under the lock only, and not once it is done: what comes back late is
 *     neither read from nor written into memory that is the guest's for other things by then.
 *  3. Requests carry the number of the session that they were submitted in. Before one of another is carried
 *     out, and when there is none, what the old session had open is closed.
 *  4. At most MAX_LOST threads are given up at a time; with so many, requests wait until one comes back. All
 *     together have no more files open than a share may. */
#define LOG_TOPIC "share"
#include "share/p9.h"
#include "base/signals_api.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_LOST 3u

struct worker {
	struct share *share;
	struct session session;
	u8 message[P9_MSIZE_MAX], reply[P9_MSIZE_MAX];
	/* The share's lock: */
	u32 current;              /* the number of its session */
	bool busy;
	struct share_request *doing;
	unsigned max_open;        /* files that it can have open until it is back under the lock */
	bool lost;                /* given up, or to end */
};

struct share {
	struct session first;     /* a worker's is one like it; nothing is open in it */
	struct loop *loop;
	struct loop_task task;
	char tag[SHARE_TAG_MAX + 1];
	bool dry;
	pthread_mutex_t lock;     /* all that follows */
	pthread_cond_t work, told;
	struct share_request *waiting, **waiting_end, *finished, **finished_end;
	u32 wanted;               /* the number of the submitter's session */
	struct worker *worker;    /* or NULL */
	unsigned n_lost, lost_open;
	bool closed;              /* the last worker frees all */
};

static void share_free(struct share *s)
{
	if (!s->dry)
		session_destroy(&s->first);
	pthread_mutex_destroy(&s->lock);
	pthread_cond_destroy(&s->work);
	pthread_cond_destroy(&s->told);
	free(s);
}

/* ---- the thread: all under the lock, but where it says so ----------------------------------- */

static void finish(struct share *s, struct share_request *r)
{
	r->next = NULL;
	*s->finished_end = r;
	s->finished_end = &r->next;
	loop_schedule(s->loop, &s->task);
}

/* What takes long, without the lock. */
static void carry_out(struct worker *w, struct share_request *own)
{
	struct share *s = w->share;

	w->busy = true;
	w->max_open = w->session.n_open + 1;
	pthread_mutex_unlock(&s->lock);
	if (own)
		p9_serve(&w->session, own);
	else
		session_reset(&w->session);
	pthread_mutex_lock(&s->lock);
	w->busy = false;
}

static void serve_one(struct worker *w, struct share_request *r)
{
	struct share *s = w->share;
	struct iovec out = { w->message, MIN(r->out_len, P9_MSIZE_MAX) }, in = { w->reply, MIN(r->in_len, P9_MSIZE_MAX) };
	struct share_request own = { .out = &out, .n_out = 1, .out_len = out.iov_len, .in = &in, .n_in = 1, .in_len = in.iov_len };

	if (!(s->waiting = r->next))
		s->waiting_end = &s->waiting;
	w->doing = r;
	iov_read(r->out, r->n_out, 0, w->message, out.iov_len);
	carry_out(w, &own);
	if (!w->doing)
		return; /* given up */
	w->doing = NULL;
	r->reply = iov_write(r->in, r->n_in, 0, w->reply, own.reply);
	finish(s, r);
}

static void step(struct worker *w)
{
	struct share *s = w->share;
	struct share_request *r = s->waiting;
	u32 next = r ? r->session : s->wanted;

	if (w->current != next) {
		carry_out(w, NULL);
		w->current = next;
	} else if (r) {
		serve_one(w, r);
	} else {
		pthread_cond_wait(&s->work, &s->lock);
		return;
	}
	pthread_cond_signal(&s->told);
}

static void start_worker(struct share *s);

/* The worker is gone but for its own thread's memory of it. */
static void leave(struct share *s, unsigned open)
{
	pthread_mutex_lock(&s->lock);
	s->lost_open -= open;
	bool last = !--s->n_lost && s->closed;
	if (s->waiting && !s->worker && !s->closed)
		start_worker(s);
	pthread_cond_signal(&s->told);
	pthread_mutex_unlock(&s->lock);
	if (last)
		share_free(s);
}

static void *serve(void *arg)
{
	struct worker *w = arg;
	struct share *s = w->share;

	pthread_mutex_lock(&s->lock);
	while (!w->lost)
		step(w);
	pthread_mutex_unlock(&s->lock);
	unsigned open = w->max_open;
	session_destroy(&w->session);
	free(w);
	leave(s, open);
	return NULL;
}

/* With the first request: whatever confines this process by then confines the thread. Where it cannot be now,
 * the next request tries again. */
static void start_worker(struct share *s)
{
	struct worker *w = s->n_lost < MAX_LOST ? calloc(1, sizeof(*w)) : NULL;
	pthread_t thread;
	sigset_t old;

	if (!w || !session_again(&w->session, &s->first)) {
		free(w);
		return;
	}
	w->share = s;
	w->current = s->waiting->session;
	w->session.max_open -= MIN(s->lost_open, w->session.max_open - 1);
	signals_for_others(&old);
	int err = pthread_create(&thread, NULL, serve, w);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (err) {
		log_warn("share %s: no thread: %s", s->tag, strerror(err));
		session_destroy(&w->session);
		free(w);
		return;
	}
	pthread_detach(thread);
	s->worker = w;
}

/* ---- the loop's side -------------------------------------------------------------------------- */

static void deliver(void *arg)
{
	struct share *s = arg;

	pthread_mutex_lock(&s->lock);
	struct share_request *r = s->finished;
	s->finished = NULL;
	s->finished_end = &s->finished;
	pthread_mutex_unlock(&s->lock);
	for (struct share_request *next; r; r = next) {
		next = r->next;
		r->done(r);
	}
}

void share_submit(struct share *s, struct share_request *r)
{
	pthread_mutex_lock(&s->lock);
	r->next = NULL;
	r->session = s->wanted;
	*s->waiting_end = r;
	s->waiting_end = &r->next;
	if (!s->worker)
		start_worker(s);
	pthread_cond_signal(&s->work);
	pthread_mutex_unlock(&s->lock);
}

void share_reset(struct share *s)
{
	pthread_mutex_lock(&s->lock);
	s->wanted++;
	pthread_cond_signal(&s->work);
	pthread_mutex_unlock(&s->lock);
}

/* ---- giving up: under the lock ------------------------------------------------------------------ */

static void lose_worker(struct share *s)
{
	struct worker *w = s->worker;

	w->lost = true;
	s->worker = NULL;
	s->n_lost++;
	if (!w->busy)
		w->max_open = w->session.n_open;
	s->lost_open += w->max_open;
	if (w->doing) {
		w->doing->reply = 0;
		finish(s, w->doing);
		w->doing = NULL;
	}
	pthread_cond_signal(&s->work);
}

/* What was submitted in sessions that are over is done now, whether it was carried out or not. */
static void give_up(struct share *s)
{
	if (s->worker && s->worker->current != s->wanted) {
		if (s->worker->busy)
			log_warn("share %s: the host's file system does not answer; it is waited for no longer", s->tag);
		lose_worker(s);
	}
	for (struct share_request *r; (r = s->waiting) && r->session != s->wanted; finish(s, r)) {
		if (!(s->waiting = r->next))
			s->waiting_end = &s->waiting;
		r->reply = 0;
	}
	if (s->waiting && !s->worker)
		start_worker(s);
}

void share_give_up(struct share *s)
{
	pthread_mutex_lock(&s->lock);
	give_up(s);
	pthread_mutex_unlock(&s->lock);
}

static bool has_work(const struct share *s)
{
	return s->waiting || (s->worker && (s->worker->busy || s->worker->current != s->wanted));
}

bool share_is_busy(struct share *s)
{
	pthread_mutex_lock(&s->lock);
	bool busy = has_work(s);
	pthread_mutex_unlock(&s->lock);
	return busy;
}

static struct timespec patience_ends(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_sec += SHARE_PATIENCE;
	return t;
}

void share_drain(struct share *s)
{
	struct timespec end = patience_ends();
	int err = 0;

	pthread_mutex_lock(&s->lock);
	while (has_work(s) && !err)
		err = pthread_cond_timedwait(&s->told, &s->lock, &end);
	if (has_work(s)) {
		s->wanted++;
		give_up(s);
	}
	pthread_mutex_unlock(&s->lock);
	deliver(s);
}

/* ---- opening ------------------------------------------------------------------------------------ */

const char *share_tag(const struct share *s) { return s->tag; }

static bool choose_tag(struct share *s, const struct share_options *o, struct error *e)
{
	size_t end = strlen(o->path);

	while (end > 1 && o->path[end - 1] == '/')
		end--;
	size_t start = end;
	while (start && o->path[start - 1] != '/')
		start--;
	const char *tag = o->tag ? o->tag : o->path + start;
	size_t len = o->tag ? strlen(tag) : end - start;
	if (!len || len > SHARE_TAG_MAX)
		return error_set(e, "tag=%.*s: between 1 and %u characters; the guest mounts it by that name", (int)MIN(len, 200u), tag, SHARE_TAG_MAX);
	memcpy(s->tag, tag, len);
	return true;
}

struct share *share_open(const struct share_options *o, bool dry_run, struct loop *loop, struct error *e)
{
	struct share *s;

	if (!o->path || !o->path[0]) {
		error_set(e, "needs a folder: --share FOLDER,tag=NAME");
		return NULL;
	}
	s = calloc(1, sizeof(*s));
	if (!s) {
		error_set(e, "out of memory");
		return NULL;
	}
	if (!choose_tag(s, o, e) || (!dry_run && !session_init(&s->first, o, e))) {
		free(s);
		return NULL;
	}
	s->dry = dry_run;
	s->loop = loop;
	s->task = (struct loop_task){ .fn = deliver, .arg = s };
	s->waiting_end = &s->waiting;
	s->finished_end = &s->finished;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->work, NULL);
	pthread_condattr_t monotonic;
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&s->told, &monotonic);
	pthread_condattr_destroy(&monotonic);
	return s;
}

void share_close(struct share *s)
{
	share_drain(s);
	struct timespec end = patience_ends();
	int err = 0;

	pthread_mutex_lock(&s->lock);
	if (s->worker)
		lose_worker(s);
	while (s->n_lost && !err)
		err = pthread_cond_timedwait(&s->told, &s->lock, &end);
	s->closed = true;
	bool left = s->n_lost; /* its last worker frees it; where none comes back, the process's end does */
	loop_cancel(s->loop, &s->task);
	pthread_mutex_unlock(&s->lock);
	if (!left)
		share_free(s);
}
