/* Measures /dev/kvm: a virtual machine of 64 KiB with one processor runs a loop in 64-bit mode at CPL 0 and leaves
 * by an OUT, as often as it takes.
 *
 * What is measured is the process's processor time, of which the guest's is a part: so a host that is busy with
 * other things does not make KVM look slow. (Where a machine is made, no other thread is busy.) A KVM that does not come back,
 * from whatever, is called back after LIMIT_NS; one that does not even open keeps a child of ours instead (opens.c).
 * Linux Documentation/virt/kvm/api.rst. */
#define LOG_TOPIC "kvm"
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "kvm/kvm.h"
#include "kvm/probe_api.h"

/* A processor that runs the guest's code itself does the loop at an iteration or more in two clock cycles: 10^9
 * instructions a second. What emulates kernel code (a KVM without VT-x or AMD-V) decodes each instruction anew and
 * does 10^6 to 10^7. bt is near the processor's own speed; between the two nothing is known, and what is below this
 * would be no gain over bt. */
#define GOOD_IPS 200000000ull

#define RUN_NS 1000000ull      /* a run as long as this is measured well enough */
#define LIMIT_NS 1000000000ull
#define FIRST_ROUNDS 1000ull   /* 2 instructions each: 1 ms where KVM interprets */
#define LAST_ROUNDS (1ull << 26)

#define RAM_BYTES 0x10000ull
enum { CODE = 0x1000, PML4 = 0x2000, PDPT = 0x3000, PD = 0x4000, ROUNDS = 0x8000 };

static const u8 loop_code[] = {
	0x48, 0x8b, 0x0c, 0x25, 0x00, 0x80, 0x00, 0x00, /* mov rcx, [ROUNDS] */
	0x48, 0xff, 0xc9,                               /* dec rcx */
	0x75, 0xfb,                                     /* jnz to the DEC */
	0xe6, 0x80,                                     /* out 0x80, al */
	0xeb, 0xef,                                     /* jmp to the MOV */
};

struct probe {
	const struct kvm_host *h;
	int kvm, vm, vcpu;
	u8 *ram;
	struct kvm_run *run;
	size_t run_bytes;
	struct kvm_finding *f;
};

static bool fails(struct probe *p, enum kvm_verdict v, int err, const char *fmt, ...) PRINTF_LIKE(4, 5);
static bool fails(struct probe *p, enum kvm_verdict v, int err, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	size_t n = (size_t)snprintf(p->f->why, sizeof(p->f->why), "%s ", p->h->name);
	vsnprintf(p->f->why + n, sizeof(p->f->why) - n, fmt, ap);
	va_end(ap);
	p->f->verdict = v;
	p->f->err = err;
	return false;
}

static int ask(const struct probe *p, int fd, unsigned long request, void *arg) { return p->h->ioctl(p->h->arg, fd, request, arg); }

/* ---- calling it back ---------------------------------------------------------------------------------- */

/* A signal ends what waits within KVM with EINTR, where KVM can be interrupted, and takes the guest out by immediate_exit.
 * Again and again from the limit on: the first one may come between two requests. */
#define AGAIN_NS 10000000ull

static _Thread_local struct kvm_run *_Atomic watched;
static _Thread_local volatile sig_atomic_t late;

static void on_limit(int sig)
{
	struct kvm_run *r = atomic_load(&watched);
	(void)sig;
	late = 1;
	if (r)
		*(volatile u8 *)&r->immediate_exit = 1;
}

struct watch { struct sigaction before; timer_t timer; bool set; };

static void watch_begin(struct watch *w)
{
	late = 0;
	sigaction(SIGURG, &(struct sigaction){ .sa_handler = on_limit }, &w->before);
	struct sigevent ev = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGURG };
	ev._sigev_un._tid = gettid();
	const struct itimerspec t = { { 0, AGAIN_NS }, { LIMIT_NS / 1000000000, LIMIT_NS % 1000000000 } };
	w->set = !timer_create(CLOCK_MONOTONIC, &ev, &w->timer) && !timer_settime(w->timer, 0, &t, NULL);
}

static void watch_end(struct watch *w)
{
	if (w->set)
		timer_delete(w->timer);
	sigaction(SIGURG, &w->before, NULL);
}

/* ---- what it says ------------------------------------------------------------------------------- */

static bool open_it(struct probe *p)
{
	int err = -kvm_try_open(p->h);
	if (!err && (p->kvm = p->h->open(p->h->arg)) >= 0)
		return true;
	err = err ? err : -p->kvm;
	if (err == ETIMEDOUT || (err == EINTR && late))
		return fails(p, KVM_UNOPENED, err, "does not open within 1 s");
	switch (err) {
	case ENOENT: case ENXIO: case ENODEV:
		return fails(p, KVM_ABSENT, err, err == ENOENT ? "is not there" : "has no driver behind it");
	case EACCES: case EPERM:
		return fails(p, KVM_FORBIDDEN, err, "may not be opened by this user");
	default:
		return fails(p, KVM_UNOPENED, err, "cannot be opened: %s", strerror(err));
	}
}

static bool ask_it(struct probe *p)
{
	int api = ask(p, p->kvm, KVM_GET_API_VERSION, NULL);
	if (api < 0)
		return fails(p, KVM_OTHER_API, -api, "does not tell its version: %s", strerror(-api));
	p->f->api = api;
	if (api != KVM_API_VERSION)
		return fails(p, KVM_OTHER_API, 0, "has version %d of the interface, not %d", api, KVM_API_VERSION);
	for (unsigned k = 0; k < n_kvm_required; k++)
		if (ask(p, p->kvm, KVM_CHECK_EXTENSION, (void *)(uintptr_t)kvm_required[k].cap) <= 0) {
			p->f->lacks = kvm_required[k].name;
			return fails(p, KVM_LACKS, 0, "lacks %s, which Linux has since %s", kvm_required[k].name, kvm_required[k].since);
		}
	return true;
}

/* ---- a machine ------------------------------------------------------------------------------------ */

static bool request(struct probe *p, int fd, unsigned long number, void *arg, const char *name, int *result)
{
	int n = ask(p, fd, number, arg);
	if (result)
		*result = n;
	if (n == -EINTR && late)
		return fails(p, KVM_NO_MACHINE, -n, "makes no machine: no answer to %s within 1 s", name);
	return n >= 0 || fails(p, KVM_NO_MACHINE, -n, "makes no machine: %s: %s", name, strerror(-n));
}
#define REQUEST(fd, number, arg, result) request(p, fd, number, arg, #number, result)

static bool make_memory(struct probe *p)
{
	p->ram = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (p->ram == MAP_FAILED)
		return fails(p, KVM_NO_MACHINE, errno, "was not tried: no memory");
	memcpy(p->ram + CODE, loop_code, sizeof(loop_code));
	st64(p->ram + PML4, PDPT | 3);
	st64(p->ram + PDPT, PD | 3);
	st64(p->ram + PD, 0x83); /* 2 MiB at 0 */
	struct kvm_userspace_memory_region r = { .memory_size = RAM_BYTES, .userspace_addr = (u64)p->ram };
	return REQUEST(p->vm, KVM_SET_USER_MEMORY_REGION, &r, NULL);
}

/* Some KVMs refuse long mode to a processor that is not told to have it. */
static bool tell_cpuid(struct probe *p)
{
	enum { ROOM = 256 };
	struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + ROOM * sizeof(c->entries[0]));
	if (!c)
		return fails(p, KVM_NO_MACHINE, ENOMEM, "was not tried: no memory");
	c->nent = ROOM;
	bool ok = REQUEST(p->kvm, KVM_GET_SUPPORTED_CPUID, c, NULL) && REQUEST(p->vcpu, KVM_SET_CPUID2, c, NULL);
	free(c);
	return ok;
}

static bool enter_long_mode(struct probe *p)
{
	struct kvm_sregs s;
	if (!REQUEST(p->vcpu, KVM_GET_SREGS, &s, NULL))
		return false;
	const struct kvm_segment data = { .limit = 0xffffffff, .selector = 0x10, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1 };
	s.ds = s.es = s.ss = s.fs = s.gs = data;
	s.cs = (struct kvm_segment){ .limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
	s.cr0 = 0x80000031; /* PG, NE, ET, PE */
	s.cr3 = PML4;
	s.cr4 = 0x20; /* PAE */
	s.efer = 0x500; /* LMA, LME */
	struct kvm_regs r = { .rip = CODE, .rflags = 2 };
	return REQUEST(p->vcpu, KVM_SET_SREGS, &s, NULL) && REQUEST(p->vcpu, KVM_SET_REGS, &r, NULL);
}

static bool make_machine(struct probe *p)
{
	int bytes, err;
	if (!REQUEST(p->kvm, KVM_CREATE_VM, NULL, &p->vm) || !make_memory(p) || !REQUEST(p->vm, KVM_CREATE_VCPU, NULL, &p->vcpu) ||
	    !REQUEST(p->kvm, KVM_GET_VCPU_MMAP_SIZE, NULL, &bytes))
		return false;
	p->run_bytes = (size_t)bytes;
	p->run = p->h->map(p->h->arg, p->vcpu, p->run_bytes, &err);
	if (!p->run)
		return fails(p, KVM_NO_MACHINE, err, "makes no machine: its processor's page: %s", strerror(err));
	atomic_store(&watched, p->run);
	return tell_cpuid(p) && enter_long_mode(p);
}

static void unmake(struct probe *p)
{
	atomic_store(&watched, NULL);
	if (p->run)
		p->h->unmap(p->h->arg, p->run, p->run_bytes);
	const int handles[] = { p->vcpu, p->vm, p->kvm };
	for (size_t k = 0; k < ARRAY_LEN(handles); k++)
		if (handles[k] >= 0)
			p->h->close(p->h->arg, handles[k]);
	if (p->ram && p->ram != MAP_FAILED)
		munmap(p->ram, RAM_BYTES);
}

/* ---- measuring ------------------------------------------------------------------------------------------- */

static u64 used_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (u64)t.tv_sec * 1000000000 + (u64)t.tv_nsec;
}

/* Once through the loop and out. */
static bool run_once(struct probe *p, u64 rounds, u64 *ns)
{
	st64(p->ram + ROUNDS, rounds);
	u64 before = used_ns();
	int n;
	while ((n = ask(p, p->vcpu, KVM_RUN, NULL)) == -EINTR)
		if (late)
			return fails(p, KVM_NO_MACHINE, 0, "did not come back from %llu instructions of kernel code within 1 s", (unsigned long long)rounds * 2);
	*ns = used_ns() - before;
	if (n < 0)
		return fails(p, KVM_NO_MACHINE, -n, "runs no kernel code: %s", strerror(-n));
	if (p->run->exit_reason != KVM_EXIT_IO)
		return fails(p, KVM_NO_MACHINE, 0, "runs no kernel code: it left by exit %u", p->run->exit_reason);
	return true;
}

static bool measure(struct probe *p)
{
	u64 least = UINT64_MAX, ns = 0, rounds = FIRST_ROUNDS;
	for (int k = 0; k < 8; k++) {
		if (!run_once(p, 1, &ns))
			return false;
		least = MIN(least, ns);
	}
	while (run_once(p, rounds, &ns) && ns < RUN_NS && rounds < LAST_ROUNDS)
		rounds *= 8;
	if (p->f->verdict != KVM_GOOD)
		return false;
	p->f->exit_ns = least;
	p->f->ips = (u64)((double)rounds * 2e9 / (double)(ns > least ? ns - least : ns));
	return true;
}

static void judge(struct probe *p)
{
	double mips = (double)p->f->ips / 1e6;
	const char *fmt = mips < 10 ? "runs ring-0 code at %.1f MIPS%s" : "runs ring-0 code at %.0f MIPS%s";
	if (p->f->ips < GOOD_IPS)
		fails(p, KVM_SLOW, 0, fmt, mips, ": a software KVM");
	else
		fails(p, KVM_GOOD, 0, fmt, mips, "");
}

void kvm_probe(struct kvm_finding *f)
{
	struct probe p = { .h = kvm_host(), .kvm = -1, .vm = -1, .vcpu = -1, .f = f };
	struct watch w;
	*f = (struct kvm_finding){ .verdict = KVM_GOOD };
	watch_begin(&w);
	if (open_it(&p) && ask_it(&p) && make_machine(&p) && measure(&p))
		judge(&p);
	unmake(&p);
	watch_end(&w);
}

bool kvm_worth(struct error *found)
{
	struct kvm_finding f;
	kvm_probe(&f);
	error_set(found, "%s", f.why);
	return f.verdict == KVM_GOOD;
}
