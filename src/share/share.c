/* A share and its thread. Requests wait in order; the thread carries out one after the other and puts it on
 * the list of those done, which the loop's thread empties.
 *
 * Invariants
 *  1. The session is the thread's; the loop's thread touches it only where there is no thread.
 *  2. Requests carry the number of the session that they were submitted in. Before one of another is carried
 *     out, and when there is none, what the old session had open is closed. */
#define LOG_TOPIC "share"
#include "share/p9.h"
#include "base/signals_api.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

struct share {
	struct session *session;  /* NULL: a dry run */
	struct loop *loop;
	struct loop_task task;
	char tag[SHARE_TAG_MAX + 1];
	pthread_t thread;
	bool has_thread;
	pthread_mutex_t lock;     /* all that follows */
	pthread_cond_t work, told;
	struct share_request *waiting, **waiting_end, *finished, **finished_end;
	u32 current, wanted;      /* numbers of sessions: the thread's, the submitter's */
	bool busy, quit;
};

/* ---- the thread ---------------------------------------------------------------------------- */

static void run_one(struct share *s)
{
	struct share_request *r = s->waiting;
	bool other = s->current != (r ? r->session : s->wanted);

	s->current = r ? r->session : s->wanted;
	if (r && !(s->waiting = r->next))
		s->waiting_end = &s->waiting;
	s->busy = true;
	pthread_mutex_unlock(&s->lock);
	if (other)
		session_reset(s->session);
	if (r)
		p9_serve(s->session, r);
	pthread_mutex_lock(&s->lock);
	s->busy = false;
	if (r) {
		r->next = NULL;
		*s->finished_end = r;
		s->finished_end = &r->next;
		loop_schedule(s->loop, &s->task);
	}
	pthread_cond_signal(&s->told);
}

static void *serve(void *arg)
{
	struct share *s = arg;

	pthread_mutex_lock(&s->lock);
	while (!s->quit)
		if (s->waiting || s->current != s->wanted)
			run_one(s);
		else
			pthread_cond_wait(&s->work, &s->lock);
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

/* With the first request: whatever confines this process by then confines the thread. */
static void start_thread(struct share *s)
{
	sigset_t old;

	signals_for_others(&old);
	s->has_thread = !pthread_create(&s->thread, NULL, serve, s);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (!s->has_thread)
		bug("no thread for share %s", s->tag);
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
	if (!s->has_thread)
		start_thread(s);
	r->next = NULL;
	r->session = s->wanted;
	*s->waiting_end = r;
	s->waiting_end = &r->next;
	pthread_cond_signal(&s->work);
	pthread_mutex_unlock(&s->lock);
}

void share_reset(struct share *s)
{
	pthread_mutex_lock(&s->lock);
	if (s->has_thread)
		s->wanted++;
	pthread_cond_signal(&s->work);
	pthread_mutex_unlock(&s->lock);
}

/* Under the lock. */
static bool has_work(const struct share *s) { return s->has_thread && (s->busy || s->waiting || s->current != s->wanted); }

bool share_is_busy(struct share *s)
{
	pthread_mutex_lock(&s->lock);
	bool busy = has_work(s);
	pthread_mutex_unlock(&s->lock);
	return busy;
}

void share_drain(struct share *s)
{
	pthread_mutex_lock(&s->lock);
	while (has_work(s))
		pthread_cond_wait(&s->told, &s->lock);
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
	if (!s || !(s->session = calloc(1, sizeof(*s->session)))) {
		free(s);
		error_set(e, "out of memory");
		return NULL;
	}
	if (!choose_tag(s, o, e) || (!dry_run && !session_init(s->session, o, e))) {
		free(s->session);
		free(s);
		return NULL;
	}
	if (dry_run) {
		free(s->session);
		s->session = NULL;
	}
	s->loop = loop;
	s->task = (struct loop_task){ .fn = deliver, .arg = s };
	s->waiting_end = &s->waiting;
	s->finished_end = &s->finished;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->work, NULL);
	pthread_cond_init(&s->told, NULL);
	return s;
}

void share_close(struct share *s)
{
	share_drain(s);
	if (s->has_thread) {
		pthread_mutex_lock(&s->lock);
		s->quit = true;
		pthread_cond_signal(&s->work);
		pthread_mutex_unlock(&s->lock);
		pthread_join(s->thread, NULL);
	}
	loop_cancel(s->loop, &s->task);
	if (s->session)
		session_destroy(s->session);
	free(s->session);
	pthread_mutex_destroy(&s->lock);
	pthread_cond_destroy(&s->work);
	pthread_cond_destroy(&s->told);
	free(s);
}
