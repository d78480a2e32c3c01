/* Work of the guest's kernel (kernel.*), and its timers (time.*). A part of suite.c, which includes it. */

static u64 b_getpid(u64 n)
{
	u64 s = 0, k = n;
	START();
	while (k--)
		s += syscall(SYS_getpid) > 0;
	STOP();
	return s;
}
static u64 b_rw1(u64 n) /* 1-byte read from /dev/zero and write to /dev/null */
{
	int z = open("/dev/zero", O_RDONLY), w = open("/dev/null", O_WRONLY);
	char c = 1;
	u64 s = 0;
	if (z < 0 || w < 0)
		die("/dev/zero");
	START();
	while (n--) {
		s += read(z, &c, 1);
		s += write(w, &c, 1);
	}
	STOP();
	close(z), close(w);
	return s + c;
}
static u64 b_stat(u64 n)
{
	struct stat st;
	u64 s = 0;
	int fd = open("/tmp/.stat", O_CREAT | O_RDWR, 0600);
	if (fd < 0 || write(fd, "abc", 3) != 3)
		die("/tmp/.stat");
	START();
	while (n--)
		s += stat("/tmp/.stat", &st) == 0 ? st.st_size : 0;
	STOP();
	close(fd);
	unlink("/tmp/.stat");
	return s;
}
static u64 b_openclose(u64 n)
{
	u64 s = 0;
	close(open("/tmp/.oc", O_CREAT | O_RDWR, 0600));
	START();
	while (n--) {
		int fd = open("/tmp/.oc", O_RDONLY);
		s += fd >= 0;
		close(fd);
	}
	STOP();
	unlink("/tmp/.oc");
	return s;
}
static u64 b_createunlink(u64 n)
{
	char nm[64], buf[4096];
	u64 s = 0;
	memset(buf, 'a', sizeof buf);
	START();
	for (u64 i = 0; i < n; i++) {
		snprintf(nm, sizeof nm, "/tmp/.cu%lu", (unsigned long)(i & 1023));
		int fd = open(nm, O_CREAT | O_RDWR | O_TRUNC, 0600);
		s += write(fd, buf, sizeof buf);
		close(fd);
		if (i & 1)
			s += unlink(nm) == 0;
	}
	STOP();
	for (u64 i = 0; i < 1024; i++) {
		snprintf(nm, sizeof nm, "/tmp/.cu%lu", (unsigned long)i);
		unlink(nm);
	}
	return s;
}

static u64 b_pipe(u64 n) /* round trips between two processes */
{
	int a[2], b[2];
	char c = 'x';
	u64 s = 0;
	if (pipe(a) || pipe(b))
		die("pipe");
	pid_t p = fork();
	if (!p) {
		close(a[1]), close(b[0]);
		while (read(a[0], &c, 1) == 1)
			if (write(b[1], &c, 1) != 1)
				break;
		_exit(0);
	}
	close(a[0]), close(b[1]);
	START();
	while (n--) {
		if (write(a[1], &c, 1) != 1)
			die("write");
		s += read(b[0], &c, 1);
	}
	STOP();
	close(a[1]), close(b[0]);
	waitpid(p, 0, 0);
	return s;
}
static u64 b_pipe_bw(u64 n) /* 64 KiB blocks through a pipe */
{
	int a[2];
	static char buf[65536];
	u64 s = 0;
	if (pipe(a))
		die("pipe");
	pid_t p = fork();
	if (!p) {
		close(a[0]);
		while (n--)
			if (write(a[1], buf, sizeof buf) <= 0)
				break;
		_exit(0);
	}
	close(a[1]);
	START();
	for (ssize_t r; (r = read(a[0], buf, sizeof buf)) > 0;)
		s += r;
	STOP();
	close(a[0]);
	waitpid(p, 0, 0);
	return s;
}

static u32 fu; /* futex word: 0 = parent's turn, 1 = child's turn */
static long futex(u32 *p, int op, u32 v) { return syscall(SYS_futex, p, op | FUTEX_PRIVATE_FLAG, v, 0, 0, 0); }
static u64 fu_n;
static void *fu_thread(void *x)
{
	for (u64 i = 0; i < fu_n; i++) {
		while (__atomic_load_n(&fu, __ATOMIC_ACQUIRE) != 1)
			futex(&fu, FUTEX_WAIT, 0);
		__atomic_store_n(&fu, 0, __ATOMIC_RELEASE);
		futex(&fu, FUTEX_WAKE, 1);
	}
	return x;
}
static u64 b_futex(u64 n)
{
	pthread_t t;
	u64 s = 0;
	fu_n = n;
	fu = 0;
	if (pthread_create(&t, 0, fu_thread, 0))
		die("pthread_create");
	START();
	for (u64 i = 0; i < n; i++) {
		__atomic_store_n(&fu, 1, __ATOMIC_RELEASE);
		futex(&fu, FUTEX_WAKE, 1);
		while (__atomic_load_n(&fu, __ATOMIC_ACQUIRE) != 0)
			futex(&fu, FUTEX_WAIT, 1);
		s++;
	}
	STOP();
	pthread_join(t, 0);
	return s;
}

static u64 b_pgfault(u64 n) /* n pages in 64 MiB rounds: mmap, touch, munmap */
{
	enum { SZ = 64 << 20 };
	u64 s = 0, rounds = (n * 4096 + SZ - 1) / SZ;
	done_ops = rounds * (SZ / 4096);
	START();
	while (rounds--) {
		u8 *p = map(SZ, RW, MADV_NOHUGEPAGE);
		for (size_t i = 0; i < SZ; i += 4096)
			p[i] = 1, s++;
		munmap(p, SZ);
	}
	STOP();
	return s;
}
static u64 b_thp(u64 n) /* the same with 2 MiB pages */
{
	enum { SZ = 64 << 20 };
	u64 s = 0;
	START();
	while (n--) {
		u8 *p = map(SZ, RW, MADV_HUGEPAGE);
		for (size_t i = 0; i < SZ; i += 4096)
			p[i] = 1, s++;
		munmap(p, SZ);
	}
	STOP();
	return s;
}
static u64 b_mprotect(u64 n) /* 64-page area: read-only, then writable, touching two pages */
{
	u8 *p = map(64 * 4096, RW, MADV_NOHUGEPAGE);
	u64 s = 0;
	memset(p, 1, 64 * 4096);
	START();
	for (u64 i = 0; i < n; i++) {
		mprotect(p, 64 * 4096, PROT_READ);
		s += p[(i & 63) * 4096];
		mprotect(p, 64 * 4096, RW);
		p[((i * 7) & 63) * 4096] = 1;
	}
	STOP();
	munmap(p, 64 * 4096);
	return s;
}
static u64 b_mmapfile(u64 n) /* map a 256 KiB tmpfs file shared, read it, unmap */
{
	enum { SZ = 256 << 10 };
	int fd = open("/tmp/.mm", O_CREAT | O_RDWR, 0600);
	u64 s = 0;
	if (fd < 0 || ftruncate(fd, SZ))
		die("/tmp/.mm");
	for (int i = 0; i < SZ; i += 4096)
		if (pwrite(fd, "z", 1, i) != 1)
			die("pwrite");
	START();
	while (n--) {
		u8 *p = mmap(0, SZ, PROT_READ, MAP_SHARED, fd, 0);
		for (int i = 0; i < SZ; i += 4096)
			s += p[i];
		munmap(p, SZ);
	}
	STOP();
	close(fd);
	unlink("/tmp/.mm");
	return s;
}

static volatile u64 sigs;
static void on_sig(int x) { (void)x, sigs++; }
static u64 b_signal(u64 n)
{
	struct sigaction sa = {.sa_handler = on_sig};
	pid_t pid = getpid();
	sigaction(SIGUSR1, &sa, 0);
	sigs = 0;
	START();
	while (n--)
		syscall(SYS_tgkill, pid, pid, SIGUSR1);
	STOP();
	return sigs;
}
static u8 *sp_page;
static void on_segv(int x)
{
	(void)x;
	sigs++;
	mprotect(sp_page, 4096, RW);
}
static u64 b_sigsegv(u64 n) /* GC-style write barrier: fault, handler unprotects, retry */
{
	struct sigaction sa = {.sa_handler = on_segv};
	sigaction(SIGSEGV, &sa, 0);
	sp_page = map(4096, RW, 0);
	sp_page[0] = 1;
	sigs = 0;
	START();
	while (n--) {
		mprotect(sp_page, 4096, PROT_READ);
		*(volatile u8 *)sp_page = 2;
	}
	STOP();
	munmap(sp_page, 4096);
	signal(SIGSEGV, SIG_DFL);
	return sigs;
}

static u64 b_fork(u64 n) /* fork, child exits at once */
{
	u64 s = 0;
	START();
	while (n--) {
		pid_t p = fork();
		if (!p)
			_exit(7);
		int st;
		waitpid(p, &st, 0);
		s += WEXITSTATUS(st);
	}
	STOP();
	return s;
}
static u64 b_fork_cow(u64 n) /* fork with 32 MiB of touched memory, child writes 256 pages */
{
	enum { SZ = 32 << 20 };
	u8 *m = map(SZ, RW, MADV_NOHUGEPAGE);
	u64 s = 0;
	memset(m, 1, SZ);
	START();
	while (n--) {
		pid_t p = fork();
		if (!p) {
			for (int i = 0; i < 256; i++)
				m[(size_t)i * 32768] = 2;
			_exit(5);
		}
		int st;
		waitpid(p, &st, 0);
		s += WEXITSTATUS(st);
	}
	STOP();
	munmap(m, SZ);
	return s;
}
static u64 spawn_n(u64 n, const char *path, int mode)
{
	char *av[] = {(char *)path, 0};
	u64 s = 0;
	START();
	while (n--) {
		pid_t p;
		int st = -1;
		if (mode == 0) {
			p = fork();
			if (!p) {
				execve(path, av, environ);
				_exit(99);
			}
		} else if (posix_spawn(&p, path, 0, 0, av, environ))
			p = -1;
		if (p < 0 || waitpid(p, &st, 0) != p || st != 0) {
			why = path;
			errno = ENOEXEC;
			return SKIP;
		}
		s++;
	}
	STOP();
	return s;
}
static u64 b_fork_exec(u64 n) { return spawn_n(n, "/bench/true", 0); }
static u64 b_spawn(u64 n) { return spawn_n(n, "/bench/true", 1); }
static u64 b_spawn_dyn(u64 n) { return spawn_n(n, "/usr/bin/true", 1); }

static void *nop_thread(void *x) { return x; }
static u64 b_thread(u64 n)
{
	u64 s = 0;
	START();
	while (n--) {
		pthread_t t;
		if (pthread_create(&t, 0, nop_thread, 0))
			die("pthread_create");
		pthread_join(t, 0);
		s++;
	}
	STOP();
	return s;
}
static u64 b_yield(u64 n) /* sched_yield between two processes: context switch with CR3 load */
{
	pid_t p = fork();
	if (!p)
		for (;;)
			sched_yield();
	u64 s = 0;
	START();
	while (n--) {
		sched_yield();
		s++;
	}
	STOP();
	kill(p, SIGKILL);
	waitpid(p, 0, 0);
	return s;
}
static u64 b_unix(u64 n) /* datagram ping-pong over a socketpair */
{
	int v[2];
	char buf[128] = {0};
	u64 s = 0;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, v))
		die("socketpair");
	pid_t p = fork();
	if (!p) {
		close(v[0]);
		for (ssize_t r; (r = recv(v[1], buf, sizeof buf, 0)) > 0;)
			send(v[1], buf, r, 0);
		_exit(0);
	}
	close(v[1]);
	START();
	while (n--) {
		send(v[0], buf, sizeof buf, 0);
		s += recv(v[0], buf, sizeof buf, 0);
	}
	STOP();
	close(v[0]);
	waitpid(p, 0, 0);
	return s;
}
static u64 b_tcp(u64 n) /* n blocks of 64 KiB over loopback TCP */
{
	struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t sl = sizeof sa;
	static char buf[65536];
	u64 s = 0;
	int l = socket(AF_INET, SOCK_STREAM, 0);
	if (l < 0 || bind(l, (void *)&sa, sl) || listen(l, 1) || getsockname(l, (void *)&sa, &sl)) {
		why = "no loopback";
		return SKIP;
	}
	pid_t p = fork();
	if (!p) {
		int c = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(c, (void *)&sa, sl))
			_exit(1);
		while (n--)
			for (size_t o = 0; o < sizeof buf;) {
				ssize_t w = write(c, buf + o, sizeof buf - o);
				if (w <= 0)
					_exit(1);
				o += w;
			}
		_exit(0);
	}
	int c = accept(l, 0, 0);
	START();
	for (ssize_t r; (r = read(c, buf, sizeof buf)) > 0;)
		s += r;
	STOP();
	close(c), close(l);
	waitpid(p, 0, 0);
	return s;
}
static u64 b_nanosleep(u64 n) /* n sleeps of 100 us: the excess over n*100us is timer cost */
{
	struct timespec ts = {0, 100000};
	START();
	while (n--)
		nanosleep(&ts, 0);
	STOP();
	return 0;
}
static u64 b_itimer(u64 n) /* CPU-bound loop under a 1 ms interval timer: SIGALRM count must match */
{
	struct sigaction sa = {.sa_handler = on_sig};
	timer_t t;
	struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
	struct itimerspec its = {{0, 1000000}, {0, 1000000}};
	sigaction(SIGALRM, &sa, 0);
	sigs = 0;
	if (timer_create(CLOCK_MONOTONIC, &ev, &t))
		die("timer_create");
	START();
	timer_settime(t, 0, &its, 0);
	while (sigs < n)
		;
	STOP();
	timer_delete(t);
	return 0;
}
