/* The event loop: file descriptors, functions posted from other threads, a timeout.
 *
 * Invariants
 *  1. A source whose loop_del_fd has returned is never called again, also when its event was
 *     in the batch being dispatched; its memory is freed after the batch.
 *  2. What loop_post was given runs once, in the order of posting, on the loop's thread; what
 *     is posted meanwhile waits for the next turn.
 *  3. A scheduled task is in the list once, and out of it before it runs: asked for meanwhile, it
 *     runs again in the next turn.
 *  4. Descriptors that epoll refuses (regular files, /dev/null) are always ready.
 * Threading: loop_wake, loop_post and loop_schedule from any thread; loop_wake also from signal handlers. The
 * others on the loop's thread, or before that thread turns it. */
#include "base/base.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define BATCH 32

struct source {
	struct source *next;
	int fd;
	bool dead;
	bool always; /* invariant 4 */
	u32 events;
	loop_fd_fn *fn;
	void *arg;
};

struct post {
	struct post *next;
	void (*fn)(void *);
	void *arg;
};

struct loop {
	int epfd, wakefd;
	bool no_pwait2;    /* the host's kernel is older than 5.11, or its container forbids the call */
	bool slack_set;
	bool dispatching;
	int n_dead, n_always;
	struct source *sources;
	pthread_mutex_t post_lock;
	struct post *posts, **posts_end; /* under post_lock */
	struct loop_task *tasks, **tasks_end; /* as well */
	u32 turn;                             /* as well: counts run_tasks */
	bool inside;                          /* as well: a turn's callbacks are being run */
};

struct loop *loop_new(struct error *e)
{
	struct loop *l = calloc(1, sizeof(*l));

	if (!l) {
		error_set(e, "event loop: out of memory");
		return NULL;
	}
	pthread_mutex_init(&l->post_lock, NULL);
	l->posts_end = &l->posts;
	l->tasks_end = &l->tasks;
	l->epfd = epoll_create1(EPOLL_CLOEXEC);
	l->wakefd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = NULL };
	if (l->epfd < 0 || l->wakefd < 0 || epoll_ctl(l->epfd, EPOLL_CTL_ADD, l->wakefd, &ev) < 0) {
		error_set(e, "event loop: %s", strerror(errno));
		loop_free(l);
		return NULL;
	}
	return l;
}

void loop_free(struct loop *l)
{
	if (!l)
		return;
	if (l->epfd >= 0)
		close(l->epfd);
	if (l->wakefd >= 0)
		close(l->wakefd);
	for (struct source *s = l->sources, *next; s; s = next) {
		next = s->next;
		free(s);
	}
	for (struct post *p = l->posts, *next; p; p = next) {
		next = p->next;
		free(p);
	}
	pthread_mutex_destroy(&l->post_lock);
	free(l);
}

/* ---- descriptors --------------------------------------------------------------------- */

static struct source *find_source(struct loop *l, int fd)
{
	for (struct source *s = l->sources; s; s = s->next) {
		if (s->fd == fd && !s->dead)
			return s;
	}
	return NULL;
}

bool loop_add_fd(struct loop *l, int fd, u32 epoll_events, loop_fd_fn *fn, void *arg, struct error *e)
{
	if (find_source(l, fd))
		bug("descriptor %d is in the event loop already", fd);
	struct source *s = calloc(1, sizeof(*s));
	if (!s)
		return error_set(e, "event loop: out of memory");
	s->fd = fd;
	s->events = epoll_events;
	s->fn = fn;
	s->arg = arg;
	struct epoll_event ev = { .events = epoll_events, .data.ptr = s };
	if (epoll_ctl(l->epfd, EPOLL_CTL_ADD, fd, &ev) < 0) {
		if (errno != EPERM) {
			free(s);
			return error_set(e, "event loop: descriptor %d: %s", fd, strerror(errno));
		}
		s->always = true;
		l->n_always++;
	}
	s->next = l->sources;
	l->sources = s;
	return true;
}

void loop_mod_fd(struct loop *l, int fd, u32 epoll_events)
{
	struct source *s = find_source(l, fd);

	if (!s)
		bug("descriptor %d is not in the event loop", fd);
	s->events = epoll_events;
	if (s->always)
		return;
	struct epoll_event ev = { .events = epoll_events, .data.ptr = s };
	if (epoll_ctl(l->epfd, EPOLL_CTL_MOD, fd, &ev) < 0)
		bug("event loop: descriptor %d: %s (closed before it was taken out?)", fd, strerror(errno));
}

static void free_dead(struct loop *l)
{
	for (struct source **p = &l->sources; *p && l->n_dead;) {
		struct source *s = *p;
		if (s->dead) {
			*p = s->next;
			l->n_dead--;
			free(s);
		} else {
			p = &s->next;
		}
	}
}

void loop_del_fd(struct loop *l, int fd)
{
	struct source *s = find_source(l, fd);

	if (!s)
		return;
	if (s->always)
		l->n_always--;
	else
		epoll_ctl(l->epfd, EPOLL_CTL_DEL, fd, NULL); /* fails when closed already: fine */
	s->dead = true;
	l->n_dead++;
	if (!l->dispatching)
		free_dead(l);
}

/* ---- from other threads -------------------------------------------------------------- */

void loop_wake(struct loop *l)
{
	int saved_errno = errno;
	u64 one = 1;
	ssize_t ignored = write(l->wakefd, &one, sizeof(one));

	(void)ignored; /* EAGAIN: it is awake 2^64-1 times already */
	errno = saved_errno;
}

void loop_post(struct loop *l, void (*fn)(void *), void *arg)
{
	struct post *p = malloc(sizeof(*p));

	if (!p)
		bug("out of memory for a posted call");
	*p = (struct post){ .fn = fn, .arg = arg };
	pthread_mutex_lock(&l->post_lock);
	*l->posts_end = p;
	l->posts_end = &p->next;
	pthread_mutex_unlock(&l->post_lock);
	loop_wake(l);
}

static void run_posts(struct loop *l)
{
	pthread_mutex_lock(&l->post_lock);
	struct post *p = l->posts;
	l->posts = NULL;
	l->posts_end = &l->posts;
	pthread_mutex_unlock(&l->post_lock);

	while (p) {
		struct post *next = p->next;
		p->fn(p->arg);
		free(p);
		p = next;
	}
}

void loop_schedule(struct loop *l, struct loop_task *t)
{
	pthread_mutex_lock(&l->post_lock);
	bool wake = !t->queued;
	if (wake) {
		t->queued = true;
		t->turn = l->turn;
		t->next = NULL;
		*l->tasks_end = t;
		l->tasks_end = &t->next;
	}
	pthread_mutex_unlock(&l->post_lock);
	if (wake)
		loop_wake(l);
}

void loop_cancel(struct loop *l, struct loop_task *t)
{
	pthread_mutex_lock(&l->post_lock);
	for (struct loop_task **p = &l->tasks; *p; p = &(*p)->next)
		if (*p == t) {
			*p = t->next;
			if (l->tasks_end == &t->next)
				l->tasks_end = p;
			break;
		}
	t->queued = false;
	pthread_mutex_unlock(&l->post_lock);
}

/* The first that was scheduled before this turn's began. */
static struct loop_task *take_task(struct loop *l)
{
	pthread_mutex_lock(&l->post_lock);
	struct loop_task *t = l->tasks && l->tasks->turn != l->turn ? l->tasks : NULL;
	if (t) {
		l->tasks = t->next;
		if (!l->tasks)
			l->tasks_end = &l->tasks;
		t->queued = false;
	}
	pthread_mutex_unlock(&l->post_lock);
	return t;
}

/* Those that there are now: one that schedules itself again leaves the descriptors their turn. */
static void run_tasks(struct loop *l)
{
	struct loop_task *t;

	pthread_mutex_lock(&l->post_lock);
	l->turn++;
	pthread_mutex_unlock(&l->post_lock);
	while ((t = take_task(l)))
		t->fn(t->arg);
}

bool loop_is_idle(struct loop *l, u32 *turns)
{
	pthread_mutex_lock(&l->post_lock);
	bool idle = !l->tasks && !l->inside;
	*turns = l->turn;
	pthread_mutex_unlock(&l->post_lock);
	return idle;
}

static void set_inside(struct loop *l, bool inside)
{
	pthread_mutex_lock(&l->post_lock);
	l->inside = inside;
	pthread_mutex_unlock(&l->post_lock);
}

/* ---- a turn -------------------------------------------------------------------------- */

/* epoll_wait with a timeout in ns. */
static int wait_events(struct loop *l, struct epoll_event *ev, u64 timeout_ns)
{
	struct timespec ts, *tp = NULL;

	if (timeout_ns == 0)
		return epoll_wait(l->epfd, ev, BATCH, 0);
	if (timeout_ns != UINT64_MAX) {
		ts.tv_sec = (time_t)(timeout_ns / 1000000000u);
		ts.tv_nsec = (long)(timeout_ns % 1000000000u);
		tp = &ts;
	}
	if (!l->no_pwait2) {
		int n = epoll_pwait2(l->epfd, ev, BATCH, tp, NULL);
		if (n >= 0 || errno == EINTR)
			return n;
		l->no_pwait2 = true; /* ENOSYS; or EPERM, from a container's older seccomp filter */
	}
	struct pollfd p = { .fd = l->epfd, .events = POLLIN };
	if (ppoll(&p, 1, tp, NULL) <= 0)
		return 0;
	return epoll_wait(l->epfd, ev, BATCH, 0);
}

static void dispatch_always(struct loop *l)
{
	/* Sources added by a callback go to the list's head: not before the next turn. */
	for (struct source *s = l->sources; s; s = s->next) {
		u32 ready = s->events & (EPOLLIN | EPOLLOUT);
		if (s->always && !s->dead && ready)
			s->fn(s->arg, ready);
	}
}

static bool any_always_ready(const struct loop *l)
{
	if (!l->n_always)
		return false;
	for (const struct source *s = l->sources; s; s = s->next) {
		if (s->always && !s->dead && (s->events & (EPOLLIN | EPOLLOUT)))
			return true;
	}
	return false;
}

void loop_turn(struct loop *l, u64 timeout_ns)
{
	struct epoll_event ev[BATCH];

	if (!l->slack_set) { /* timers of 50 us more than asked are too late for guests */
		prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
		l->slack_set = true;
	}
	bool always = any_always_ready(l);
	int n = wait_events(l, ev, always ? 0 : timeout_ns);

	set_inside(l, true);
	l->dispatching = true;
	for (int i = 0; i < n; i++) {
		struct source *s = ev[i].data.ptr;
		if (!s) {
			u64 count;
			ssize_t ignored = read(l->wakefd, &count, sizeof(count));
			(void)ignored;
		} else if (!s->dead) {
			s->fn(s->arg, ev[i].events);
		}
	}
	if (always)
		dispatch_always(l);
	run_posts(l);
	run_tasks(l);
	l->dispatching = false;
	free_dead(l);
	set_inside(l, false);
}
