/* base: what every folder may use. Integer names, errors, logging, checked arithmetic,
 * the machine's clock and timers, the event loop, the key=value option parser, tables of counters.
 *
 * Three kinds of error (docs/errors.md): the user's or the host's travel up as
 * `bool` + `struct error`; the guest's become architectural faults or one rate-limited
 * log line; ours go through bug(). Nothing below cli/ ends the process otherwise. */
#ifndef RING3_BASE_H
#define RING3_BASE_H

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t i8;
typedef int16_t i16;
typedef int32_t i32;
typedef int64_t i64;
typedef unsigned __int128 u128;

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))
#define container_of(p, type, member) ((type *)((char *)(p) - offsetof(type, member)))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* Unaligned little-endian access to a byte buffer. */
static inline u16 ld16(const void *p) { u16 v; __builtin_memcpy(&v, p, 2); return v; }
static inline u32 ld32(const void *p) { u32 v; __builtin_memcpy(&v, p, 4); return v; }
static inline u64 ld64(const void *p) { u64 v; __builtin_memcpy(&v, p, 8); return v; }
static inline void st16(void *p, u16 v) { __builtin_memcpy(p, &v, 2); }
static inline void st32(void *p, u32 v) { __builtin_memcpy(p, &v, 4); }
static inline void st64(void *p, u64 v) { __builtin_memcpy(p, &v, 8); }

/* ---- errors (error.c) ------------------------------------------------------------- */

struct error {
	char msg[512]; /* one sentence: the option, the value, the reason, the nearest that works */
};

/* Fills *e and returns false, so that callers write `return error_set(e, ...)`. */
bool error_set(struct error *e, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* Puts "prefix: " before the message of e and returns false. */
bool error_prefix(struct error *e, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Our own mistake: prints file, line, message, runs the hook set by bug_set_hook (the
 * state dump) and aborts. Never reachable by anything a guest or a file can contain. */
_Noreturn void bug_at(const char *file, int line, const char *fmt, ...) PRINTF_LIKE(3, 4);
#define bug(...) bug_at(__FILE__, __LINE__, __VA_ARGS__)
void bug_set_hook(void (*hook)(void *), void *arg); /* per thread */

/* ---- files (file.c) ---------------------------------------------------------------- */

/* Whether path could be written, or made, as far as can be seen without touching it. what names the
 * option in the error. */
bool file_check_writable(const char *what, const char *path, struct error *e);
/* Opens path to be written, made if it is not there; how: O_TRUNC or O_APPEND. Never waits: a FIFO that nobody reads
 * is an error. A descriptor, or -1. */
int file_open_write(const char *what, const char *path, int how, struct error *e);
/* Opens path to be read as text. Never waits: a FIFO that nobody writes ends at once. NULL: errno. */
FILE *file_open_text(const char *path);

/* ---- bytes in pieces (iov.c) --------------------------------------------------------- */

struct iovec;
/* The pieces of bytes off..off+len-1 of the iov; returns how many. out: room for n. */
unsigned iov_slice(const struct iovec *iov, unsigned n, u64 off, u64 len, struct iovec *out);
/* Copies len bytes at off of the iov; how many there were. */
size_t iov_read(const struct iovec *iov, unsigned n, u64 off, void *buf, size_t len);
size_t iov_write(const struct iovec *iov, unsigned n, u64 off, const void *buf, size_t len);

/* ---- files that go with the process (leftover.c): sockets, links ---------------------- */

/* Forks the helper that removes them when this process is killed, or contained. Before there are threads. */
void leftover_guard(void);
void leftover_add(const char *path);    /* it has been made: it goes at the process's end at the latest */
void leftover_remove(const char *path); /* now */
void leftover_seal(void);               /* from here on nothing is added, and the helper alone removes */

/* ---- names to connect to (listen.c) ---------------------------------------------------- */

/* A Unix socket that listens at path, for this user alone; it goes with the process (leftover_add). A descriptor that does
 * not wait; -1: *e, also where somebody listens there already, or what is there is no socket. */
int listen_at_path(const char *path, int backlog, struct error *e);

/* ---- logging (log.c): the process's one log -------------------------------------------- */

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG, LOG_TRACE };

/* spec: "level" or "topic=level,topic=level,level"; e.g. "warn", "hpet=debug,info". Topics: topics.def.
 * file: NULL for stderr. */
bool log_configure(const char *spec, const char *file, struct error *e);
bool log_enabled(const char *topic, enum log_level lv);
void log_msg(const char *topic, enum log_level lv, const char *fmt, ...) PRINTF_LIKE(3, 4);
/* LOG_TOPIC is defined by each file that logs, before including this header. */
#define log_error(...) log_msg(LOG_TOPIC, LOG_ERROR, __VA_ARGS__)
#define log_warn(...) log_msg(LOG_TOPIC, LOG_WARN, __VA_ARGS__)
#define log_info(...) log_msg(LOG_TOPIC, LOG_INFO, __VA_ARGS__)
#define log_debug(...) do { if (log_enabled(LOG_TOPIC, LOG_DEBUG)) log_msg(LOG_TOPIC, LOG_DEBUG, __VA_ARGS__); } while (0)
/* The guest did something that has no meaning: at most `burst` lines a second per call site. */
struct ratelimit { _Atomic u64 window; _Atomic u32 count; };
bool ratelimit_ok(struct ratelimit *r);
#define log_guest(...) do { static struct ratelimit rl_; if (ratelimit_ok(&rl_)) log_msg(LOG_TOPIC, LOG_INFO, __VA_ARGS__); } while (0)

/* ---- the machine's clock and timers (clock.c) ----------------------------------------
 * One struct clock a machine. Two sources:
 *  real    ns = CLOCK_MONOTONIC since start (minus time spent paused); TSC = host TSC + offset
 *  icount  both follow the number of instructions that the boot vCPU has run, so that two
 *          runs are identical; the vCPU thread calls clock_advance() and timers fire there.
 * Timers are kept in queues; timer_queue_run() runs what is due with the machine lock held. The clock's own queue
 * is the event loop's thread's in real mode; what a processor alone is concerned with (its LAPIC's timer) is in one
 * that its thread looks after (timer_move). wake is told when a queue's earliest deadline moved forward. */

struct clock;
struct timer {
	void (*fn)(void *arg);
	void *arg;
	u64 deadline;  /* ns of the machine's clock */
	int heap_pos;  /* -1: not armed */
	u64 seq;       /* counts armings: the order of timers with the same deadline */
	struct timer_queue *queue;
};

struct timer_queue {
	struct clock *clock;
	struct timer **heap;
	int len, cap;
	_Atomic u64 next_deadline; /* UINT64_MAX when none */
	void (*wake)(void *arg);   /* machine lock held */
	void *wake_arg;
	u64 next_seq;
	bool running;              /* inside timer_queue_run */
};

struct clock {
	bool icount_mode;
	u64 tsc_hz;            /* of the guest's TSC; the host's in real mode */
	u64 ns_base;           /* real: CLOCK_MONOTONIC at ns 0 */
	u64 tsc_offset;        /* real: guest TSC = host TSC + tsc_offset */
	_Atomic u64 icount;    /* icount mode: instructions run so far */
	u64 icount_ns_mul;     /* icount mode: ns = icount * mul >> 16; default 1 ns an instruction */
	struct timer_queue timers;
	u64 paused_at;         /* 0: running; else CLOCK_MONOTONIC when the pause began */
	u64 paused_tsc;        /* host TSC then */
};

bool clock_init(struct clock *c, bool icount_mode, struct error *e);
void clock_destroy(struct clock *c);
u64 clock_ns(const struct clock *c);    /* any thread */
u64 clock_tsc(const struct clock *c);   /* any thread; the guest's TSC before IA32_TSC_ADJUST */
/* Both stand still from pause to resume, and go on from where they were. Machine lock held,
 * vCPUs stopped. In icount mode they do nothing: no instructions, no time. */
void clock_pause(struct clock *c);
void clock_resume(struct clock *c);
/* A saved machine is loaded: both go on from these values. As for clock_pause. */
void clock_set(struct clock *c, u64 ns, u64 tsc);
/* icount mode, boot vCPU's thread: so many instructions were run; when ns (then) has reached
 * timers.next_deadline, it takes the machine lock and calls timer_queue_run(). */
static inline void clock_advance(struct clock *c, u64 instructions)
{
	u64 n = atomic_load_explicit(&c->icount, memory_order_relaxed);
	atomic_store_explicit(&c->icount, n + instructions, memory_order_relaxed);
}
/* icount mode: all vCPUs halt, time goes on to ns at once (never backwards). */
void clock_advance_to(struct clock *c, u64 ns);
/* icount mode: the count of instructions at which clock_ns first reads ns or more. */
u64 clock_icount_at(const struct clock *c, u64 ns);
/* Real mode: CLOCK_MONOTONIC at so many ns of the machine's clock. Any thread. */
u64 clock_host_ns(const struct clock *c, u64 ns);
void timer_init(struct timer *t, struct clock *c, void (*fn)(void *), void *arg); /* in the clock's own queue */
/* To another queue, armed or not; machine lock held. In icount mode it stays: all timers are in one order there. */
void timer_move(struct timer *t, struct timer_queue *q);
void timer_arm(struct timer *t, u64 deadline_ns);  /* machine lock held; re-arms */
void timer_cancel(struct timer *t);
static inline bool timer_armed(const struct timer *t) { return t->heap_pos >= 0; }
void timer_queue_init(struct timer_queue *q, struct clock *c);
void timer_queue_destroy(struct timer_queue *q); /* what is armed no longer is */
/* Runs all timers whose deadline has passed, in order of (deadline, arming); callbacks may arm
 * and cancel timers, also their own. Returns ns until the next, UINT64_MAX if none, 0 if it
 * stopped early so as not to hold the lock for too long. Machine lock held. */
u64 timer_queue_run(struct timer_queue *q);

/* ---- event loop (loop.c): one thread, epoll; the console, timers, sockets ------------- */

struct loop;
struct loop *loop_new(struct error *e);
void loop_free(struct loop *l);
typedef void loop_fd_fn(void *arg, u32 epoll_events);
/* fd: also a regular file or /dev/null, which are always ready. */
bool loop_add_fd(struct loop *l, int fd, u32 epoll_events, loop_fd_fn *fn, void *arg, struct error *e);
void loop_mod_fd(struct loop *l, int fd, u32 epoll_events);
void loop_del_fd(struct loop *l, int fd);
void loop_wake(struct loop *l);                 /* any thread; async-signal-safe */
/* Any thread: runs fn(arg) on the loop's thread. */
void loop_post(struct loop *l, void (*fn)(void *), void *arg);
/* Something that is to be done on the loop's thread, once however often it was asked for since it
 * was last begun. The struct is the caller's and outlives the loop, or is taken out by loop_cancel. */
struct loop_task { void (*fn)(void *arg); void *arg; struct loop_task *next; u32 turn; bool queued; };
void loop_schedule(struct loop *l, struct loop_task *t); /* any thread */
void loop_cancel(struct loop *l, struct loop_task *t);   /* the loop's thread, or while it is not turned */
/* Any thread: no task waits, and the loop's thread is in no callback. *turns: a number of the last turn. */
bool loop_is_idle(struct loop *l, u32 *turns);
/* One turn: waits at most timeout_ns (UINT64_MAX: no limit) and dispatches. */
void loop_turn(struct loop *l, u64 timeout_ns);

/* ---- key=value options (kv.c) ---------------------------------------------------------
 * "disk.qcow2,snapshot,size=4G": the first item without '=' takes the name of the list's
 * first key; a later bare item is a boolean set to true; ",," is a literal comma. A key given
 * twice: the last counts, but for lists. String fields are NULL or malloced before, and the caller's to free
 * after, also after an error. */

enum kv_type { KV_STR, KV_BOOL, KV_UINT, KV_SIZE /* K, M, G, T suffix, bytes */, KV_WORD /* one of `words` */,
	       KV_LIST /* text; given again, the lines of all */ };
struct kv_key {
	const char *name;
	enum kv_type type;
	size_t offset;       /* of the field: char * (malloced), bool, u64, u64, u32 (which of the words), char * */
	const char *help;
	u64 min, max;        /* numbers and sizes; max 0: no limits */
	const char *const *words; /* NULL at the end */
};
/* `what` names the option in errors, e.g. "--serial". Errors name the nearest valid key. */
bool kv_parse(const char *what, const char *text, const struct kv_key *keys, size_t n_keys,
	      void *out, struct error *e);
void kv_help(const char *what, const struct kv_key *keys, size_t n_keys);
void kv_help_keys(const struct kv_key *keys, size_t n_keys); /* a line each */
bool parse_number(const char *text, u64 *out); /* decimal or 0x...; false if malformed or too large */
bool parse_size(const char *text, u64 *out);          /* "512M" -> bytes; false if malformed */
/* The closest of names to word by edit distance, or NULL when nothing is near. */
const char *nearest_word(const char *word, const char *const *names, size_t n);

/* ---- counters (counters.c): tables of them, for --stats ---------------------------------
 * A column for each of several that count alike: counters_column, then its rows, always the same
 * ones in the same order. Names are constants. */

struct counters;
struct counters *counters_new(const char *unit);  /* "cpu": columns are cpu 0, cpu 1, ...; NULL: no memory */
void counters_free(struct counters *t);
void counters_column(struct counters *t);
/* Rows up to the next group are its own. top: print only so many, the largest first; 0: all, in order. */
void counters_group(struct counters *t, const char *title, unsigned top);
void counter_add(struct counters *t, const char *name, u64 n);
void counter_ratio(struct counters *t, const char *name, u64 part, u64 whole); /* prints part / whole */
void counter_share(struct counters *t, const char *name, u64 part, u64 whole); /* in percent */
void counters_print(struct counters *t, FILE *f);
/* Another thread's counter. */
static inline u64 counter_read(const u64 *n) { return __atomic_load_n(n, __ATOMIC_RELAXED); }

#endif
