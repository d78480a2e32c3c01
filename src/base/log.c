/* The process's one log: levels, by topic, to stderr or a file.
 *
 * It is the process's state, not a machine's, on purpose: a line from any machine or
 * thread must find its way out without a pointer handed down to every function.
 *
 * Invariants
 *  1. A message is one line and one write(), so that lines of several threads do not mix.
 *  2. Logging allocates nothing and keeps errno: it may be called anywhere but from a
 *     signal handler.
 * Threading: log_msg from any thread. log_configure once, before there are other threads. */
#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAX_TOPICS 32
#define TOPIC_LEN 24
#define GUEST_BURST 10 /* lines a second of one log_guest() */

static const char *const level_names[] = { "error", "warn", "info", "debug", "trace" };

static const char *const topic_names[] = {
#define TOPIC(name) #name,
#include "base/topics.def"
#undef TOPIC
};

struct topic_level {
	char name[TOPIC_LEN];
	enum log_level level;
};

struct log_state {
	int fd;
	enum log_level level; /* of topics that are not listed */
	int n_topics;
	struct topic_level topics[MAX_TOPICS];
};

static struct log_state log_state = { .fd = STDERR_FILENO, .level = LOG_WARN };

static bool parse_level(const char *text, enum log_level *out, struct error *e)
{
	for (size_t i = 0; i < ARRAY_LEN(level_names); i++) {
		if (!strcmp(text, level_names[i])) {
			*out = (enum log_level)i;
			return true;
		}
	}
	const char *near = nearest_word(text, level_names, ARRAY_LEN(level_names));
	return error_set(e, "no log level \"%s\"%s%s%s; there are error, warn, info, debug, trace",
			 text, near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
}

static bool is_topic(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(topic_names); i++) {
		if (!strcmp(name, topic_names[i]))
			return true;
	}
	return false;
}

static bool no_such_topic(const char *name, struct error *e)
{
	const char *near = nearest_word(name, topic_names, ARRAY_LEN(topic_names));
	char all[256] = "";

	if (near)
		return error_set(e, "no log topic \"%s\"; did you mean %s?", name, near);
	for (size_t i = 0, n = 0; i < ARRAY_LEN(topic_names) && n < sizeof(all); i++)
		n += (size_t)snprintf(all + n, sizeof(all) - n, "%s%s", i ? ", " : "", topic_names[i]);
	return error_set(e, "no log topic \"%s\"; there are %s", name, all);
}

static bool parse_item(char *item, struct log_state *st, struct error *e)
{
	char *eq = strchr(item, '=');

	if (!eq)
		return parse_level(item, &st->level, e);
	*eq = 0;
	if (!is_topic(item))
		return no_such_topic(item, e);
	if (st->n_topics == MAX_TOPICS)
		return error_set(e, "more than %d log topics", MAX_TOPICS);
	struct topic_level *t = &st->topics[st->n_topics];
	if (!parse_level(eq + 1, &t->level, e))
		return error_prefix(e, "log topic %s", item);
	strcpy(t->name, item);
	st->n_topics++;
	return true;
}

bool log_configure(const char *spec, const char *file, struct error *e)
{
	struct log_state st = { .fd = STDERR_FILENO, .level = LOG_WARN };
	char text[512];

	if (spec && strlen(spec) >= sizeof(text))
		return error_set(e, "log levels: longer than %zu characters", sizeof(text) - 1);
	strcpy(text, spec ? spec : "");
	char *save = NULL;
	for (char *it = strtok_r(text, ",", &save); it; it = strtok_r(NULL, ",", &save)) {
		if (!parse_item(it, &st, e))
			return error_prefix(e, "--log");
	}
	if (file) {
		st.fd = file_open_write("--log-file", file, O_APPEND, e);
		if (st.fd < 0)
			return false;
	}
	if (log_state.fd != STDERR_FILENO)
		close(log_state.fd);
	log_state = st;
	return true;
}

bool log_enabled(const char *topic, enum log_level lv)
{
	/* The last mention of a topic counts. */
	for (int i = log_state.n_topics - 1; i >= 0; i--) {
		if (!strcmp(log_state.topics[i].name, topic))
			return lv <= log_state.topics[i].level;
	}
	return lv <= log_state.level;
}

void log_msg(const char *topic, enum log_level lv, const char *fmt, ...)
{
	if (!log_enabled(topic, lv))
		return;

	int saved_errno = errno;
	char line[6144]; /* a processor's state is about 2000 */
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	int n = snprintf(line, sizeof(line), "[%5lld.%06ld] %s %s: ", (long long)ts.tv_sec,
			 ts.tv_nsec / 1000, level_names[lv], topic);
	size_t len = MIN((size_t)MAX(n, 0), sizeof(line) / 2);

	va_list ap;
	va_start(ap, fmt);
	errno = saved_errno; /* for %m */
	n = vsnprintf(line + len, sizeof(line) - 1 - len, fmt, ap);
	va_end(ap);
	len = MIN(len + (size_t)MAX(n, 0), sizeof(line) - 2);
	line[len++] = '\n';
	ssize_t ignored = write(log_state.fd, line, len);
	(void)ignored; /* there is nowhere left to say so */
	errno = saved_errno;
}

bool ratelimit_ok(struct ratelimit *r)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
	/* 0 means never used, so windows count from 1. Two threads that change windows at the
	 * same time let a few lines more pass, no harm. */
	u64 now = (u64)ts.tv_sec + 1;
	if (atomic_load_explicit(&r->window, memory_order_relaxed) != now) {
		atomic_store_explicit(&r->window, now, memory_order_relaxed);
		atomic_store_explicit(&r->count, 0, memory_order_relaxed);
	}
	if (atomic_load_explicit(&r->count, memory_order_relaxed) >= GUEST_BURST)
		return false;
	return atomic_fetch_add_explicit(&r->count, 1, memory_order_relaxed) < GUEST_BURST;
}
