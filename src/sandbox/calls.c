/* The lists: which system calls a process needs, and with which arguments. A new use of the kernel anywhere in
 * the tree is a line here, with who needs it; what it lets an attacker do is to be asked first.
 *
 * Kept out, on purpose: all that takes a path or makes a descriptor of one; fork and exec; sockets that are not
 * there yet (machine); io_uring_setup and io_uring_register (a ring is restricted once, block/aio.c); kill;
 * ptrace and process_vm_*; memory that can be executed; changes of SIGSYS's handler.
 * clone3, whose arguments a filter cannot see, is "not there": the C library then takes clone. */
#define LOG_TOPIC "sandbox"
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <seccomp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sandbox/sandbox_impl.h"

#define END __NR_SCMP_ERROR

/* ---- calls with any arguments ------------------------------------------------------------- */

static const int both[] = {
	/* descriptors that are there */
	SCMP_SYS(read), SCMP_SYS(write), SCMP_SYS(readv), SCMP_SYS(writev), SCMP_SYS(close), SCMP_SYS(lseek), SCMP_SYS(fstat),
	SCMP_SYS(poll), SCMP_SYS(ppoll), SCMP_SYS(dup), SCMP_SYS(accept), SCMP_SYS(accept4), SCMP_SYS(shutdown),
	SCMP_SYS(recvfrom), SCMP_SYS(recvmsg), SCMP_SYS(sendto), SCMP_SYS(sendmsg), SCMP_SYS(getsockopt), SCMP_SYS(setsockopt),
	/* memory; mmap and mprotect are below; sysinfo: qsort, of how much there is */
	SCMP_SYS(sysinfo), SCMP_SYS(brk), SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(madvise),
	/* signals, threads, time */
	SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigreturn), SCMP_SYS(restart_syscall), SCMP_SYS(futex), SCMP_SYS(sched_yield),
	SCMP_SYS(getpid), SCMP_SYS(gettid), SCMP_SYS(exit), SCMP_SYS(exit_group), SCMP_SYS(getrandom),
	SCMP_SYS(clock_gettime), SCMP_SYS(clock_getres), SCMP_SYS(gettimeofday), SCMP_SYS(time), SCMP_SYS(nanosleep), SCMP_SYS(clock_nanosleep),
	END
};
static const int machine[] = {
	/* disks without io_uring, and with */
	SCMP_SYS(pread64), SCMP_SYS(pwrite64), SCMP_SYS(preadv), SCMP_SYS(pwritev), SCMP_SYS(fdatasync), SCMP_SYS(fsync),
	SCMP_SYS(fallocate), SCMP_SYS(ftruncate), SCMP_SYS(io_uring_enter), SCMP_SYS(msync),
	/* a CD that is put in, whose file ring3 ctl has opened: its thread's bell */
	SCMP_SYS(eventfd2),
	/* the loop */
	SCMP_SYS(epoll_wait), SCMP_SYS(epoll_pwait), SCMP_SYS(epoll_pwait2), SCMP_SYS(epoll_ctl), SCMP_SYS(timerfd_settime), SCMP_SYS(timer_settime), SCMP_SYS(timer_delete),
	/* threads: the pool of a disk without io_uring; kicks; code that changes under other processors; CPU masks: malloc */
	SCMP_SYS(set_robust_list), SCMP_SYS(rseq), SCMP_SYS(membarrier), SCMP_SYS(sigaltstack), SCMP_SYS(sched_getaffinity),
	SCMP_SYS(mincore),
	/* ends: the helper of the network; counters; a machine that does not end in time; the terminal's owner */
	SCMP_SYS(wait4), SCMP_SYS(getrusage), SCMP_SYS(alarm), SCMP_SYS(getpgrp), SCMP_SYS(getpgid),
	END
};
static const int net[] = {
	SCMP_SYS(connect), SCMP_SYS(bind), SCMP_SYS(listen), SCMP_SYS(getsockname), SCMP_SYS(getpeername),
	END
};

/* Where folders are shared; Landlock says which. */
static const int files[] = {
	SCMP_SYS(openat), SCMP_SYS(newfstatat), SCMP_SYS(readlinkat), SCMP_SYS(getdents64), SCMP_SYS(fstatfs), SCMP_SYS(statfs),
	END
};
static const int change_files[] = {
	SCMP_SYS(mkdirat), SCMP_SYS(unlinkat), SCMP_SYS(renameat), SCMP_SYS(renameat2), SCMP_SYS(linkat), SCMP_SYS(symlinkat),
	SCMP_SYS(mknodat), SCMP_SYS(fchmod), SCMP_SYS(fchmodat), SCMP_SYS(fchown), SCMP_SYS(fchownat), SCMP_SYS(utimensat),
	END
};

/* ---- calls with some arguments -------------------------------------------------------------- */

struct rule { int call; unsigned n; struct scmp_arg_cmp args[2]; };
#define NO_EXEC SCMP_A2_64(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0)
#define EQ(k, v) SCMP_A##k##_32(SCMP_CMP_EQ, (u32)(v))

/* A thread, not a process, and in no namespace of its own. */
#define THREAD_MUST ((u64)(CLONE_VM | CLONE_SIGHAND | CLONE_THREAD))
#define THREAD_MAY ((u64)(CLONE_FS | CLONE_FILES | CLONE_SYSVSEM | CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID | CLONE_DETACHED))

static const struct rule both_rules[] = {
	{ SCMP_SYS(mmap), 1, { NO_EXEC } },
	{ SCMP_SYS(mprotect), 1, { NO_EXEC } },
	{ SCMP_SYS(rt_sigaction), 1, { SCMP_A0_64(SCMP_CMP_LT, SIGSYS) } },
	{ SCMP_SYS(rt_sigaction), 1, { SCMP_A0_64(SCMP_CMP_EQ, 32) } }, /* the C library's own two */
	{ SCMP_SYS(rt_sigaction), 1, { SCMP_A0_64(SCMP_CMP_EQ, 33) } },
	{ SCMP_SYS(fcntl), 1, { EQ(1, F_DUPFD_CLOEXEC) } },
	{ SCMP_SYS(fcntl), 1, { EQ(1, F_GETFL) } },
	{ SCMP_SYS(fcntl), 1, { EQ(1, F_SETFL) } },
	{ SCMP_SYS(fcntl), 1, { EQ(1, F_GETFD) } },
	{ SCMP_SYS(fcntl), 1, { EQ(1, F_SETFD) } },
	{ END, 0, { { 0 } } }
};
static const struct rule machine_rules[] = {
	{ SCMP_SYS(fcntl), 1, { EQ(1, F_OFD_SETLK) } },
	{ SCMP_SYS(fcntl), 1, { EQ(1, F_OFD_GETLK) } },
	{ SCMP_SYS(ioctl), 1, { EQ(1, TCGETS) } }, /* the terminal, raw and back; not TIOCSTI */
	{ SCMP_SYS(ioctl), 1, { EQ(1, TCSETS) } },
	{ SCMP_SYS(ioctl), 1, { EQ(1, TCSETSW) } },
	{ SCMP_SYS(ioctl), 1, { EQ(1, TCSETSF) } },
	{ SCMP_SYS(ioctl), 1, { EQ(1, TIOCGPGRP) } },
	{ SCMP_SYS(ioctl), 1, { EQ(1, TIOCGWINSZ) } },
	{ SCMP_SYS(ioctl), 1, { EQ(1, TUNSETOFFLOAD) } },
	{ SCMP_SYS(prctl), 1, { EQ(0, PR_SET_TIMERSLACK) } },
	{ SCMP_SYS(prctl), 1, { EQ(0, PR_SET_NAME) } },
	{ SCMP_SYS(clone), 1, { SCMP_A0_64(SCMP_CMP_MASKED_EQ, ~THREAD_MAY, THREAD_MUST) } },
	{ END, 0, { { 0 } } }
};
/* A processor that runs, its state in and out, memory slots that follow the map. Not: new VMs, processors,
 * devices or capabilities. */
#define KVM_CALL(request) { SCMP_SYS(ioctl), 1, { EQ(1, request) } }
static const struct rule kvm_rules[] = {
	KVM_CALL(KVM_RUN), KVM_CALL(KVM_INTERRUPT), KVM_CALL(KVM_NMI), KVM_CALL(KVM_SET_USER_MEMORY_REGION),
	KVM_CALL(KVM_GET_NESTED_STATE), KVM_CALL(KVM_SET_NESTED_STATE), KVM_CALL(KVM_GET_DIRTY_LOG), KVM_CALL(KVM_GET_REGS), KVM_CALL(KVM_SET_REGS), KVM_CALL(KVM_GET_SREGS), KVM_CALL(KVM_SET_SREGS),
	KVM_CALL(KVM_GET_SREGS2), KVM_CALL(KVM_SET_SREGS2), KVM_CALL(KVM_GET_XSAVE), KVM_CALL(KVM_SET_XSAVE),
	KVM_CALL(KVM_GET_XCRS), KVM_CALL(KVM_SET_XCRS), KVM_CALL(KVM_GET_MSRS), KVM_CALL(KVM_SET_MSRS),
	KVM_CALL(KVM_GET_DEBUGREGS), KVM_CALL(KVM_SET_DEBUGREGS), KVM_CALL(KVM_GET_VCPU_EVENTS), KVM_CALL(KVM_SET_VCPU_EVENTS),
	KVM_CALL(KVM_GET_LAPIC), KVM_CALL(KVM_SET_LAPIC), KVM_CALL(KVM_GET_MP_STATE), KVM_CALL(KVM_SET_MP_STATE),
	KVM_CALL(KVM_REGISTER_COALESCED_MMIO), KVM_CALL(KVM_UNREGISTER_COALESCED_MMIO),
	KVM_CALL(KVM_IOEVENTFD), KVM_CALL(KVM_IRQFD), KVM_CALL(KVM_SIGNAL_MSI), KVM_CALL(KVM_SET_GSI_ROUTING),
	KVM_CALL(KVM_SET_DEVICE_ATTR), /* the TSC's offset */
	{ END, 0, { { 0 } } }
};
#define INTERNET(family) { SCMP_SYS(socket), 1, { EQ(0, family) } }
static const struct rule net_rules[] = {
	INTERNET(AF_INET), INTERNET(AF_INET6),
	{ SCMP_SYS(ioctl), 1, { EQ(1, FIONREAD) } },
	{ SCMP_SYS(ioctl), 1, { EQ(1, FIONBIO) } },
	{ END, 0, { { 0 } } }
};

static const int none[] = { END };
static const struct rule no_rules[] = { { END, 0, { { 0 } } } };

/* ---- the filter ---------------------------------------------------------------------------------- */

static int allow(scmp_filter_ctx ctx, const int *calls, const struct rule *rules)
{
	int err = 0;

	for (; !err && *calls != END; calls++)
		err = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, *calls, 0);
	for (; !err && rules->call != END; rules++)
		err = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, rules->call, rules->n, rules->args);
	return err;
}

/* What is not just allowed or stopped. */
static int special(scmp_filter_ctx ctx)
{
	pid_t self = getpid();
	int err = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);

	/* Kicks, abort. */
	if (!err)
		err = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1, EQ(0, self));
	return err;
}

static int fill(scmp_filter_ctx ctx, unsigned calls)
{
	static const struct { unsigned when; const int *calls; const struct rule *rules; } lists[] = {
		{ CALLS_MACHINE | CALLS_NET, both, both_rules },
		{ CALLS_MACHINE, machine, machine_rules },
		{ CALLS_NET, net, net_rules },
		{ CALLS_KVM, none, kvm_rules },
		{ CALLS_FILES, files, no_rules },
		{ CALLS_CHANGE_FILES, change_files, no_rules },
	};
	int err = special(ctx);

	for (size_t k = 0; !err && k < ARRAY_LEN(lists); k++)
		if (calls & lists[k].when)
			err = allow(ctx, lists[k].calls, lists[k].rules);
	/* fstat by another name, which also takes paths: the C library looks so at a stream that is first used, and
	 * does without. The helper's are answered by paths.c. */
	if (!err && !(calls & (CALLS_NET | CALLS_FILES)))
		err = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(EACCES), SCMP_SYS(newfstatat), 0);
	return err;
}

bool sandbox_has_seccomp(void)
{
	u32 action = SECCOMP_RET_TRAP;

	return !syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action);
}

/* Looked up before they are needed: the handler must not allocate. The process's, like its filter. */
static char *names[512];

bool seccomp_enter(unsigned calls, struct error *e)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_TRAP);
	int err = ctx ? 0 : -ENOMEM;

	for (int k = 0; k < (int)ARRAY_LEN(names); k++)
		if (!names[k])
			names[k] = seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, k);
	if (!err)
		err = seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	if (!err)
		err = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_TSYNC, 1);
	if (!err) /* older libraries make a list of it, not a tree */
		seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	if (!err)
		err = fill(ctx, calls);
	if (!err)
		err = seccomp_load(ctx);
	if (ctx)
		seccomp_release(ctx);
	return !err || error_set(e, "seccomp: %s", strerror(-err));
}

const char *seccomp_name(int call)
{
	return call >= 0 && call < (int)ARRAY_LEN(names) && names[call] ? names[call] : "something unknown";
}
