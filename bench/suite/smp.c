/* Two threads at once (smp.*). A part of suite.c, which includes it. */

#define NT 2
static u64 smp_n;
static pthread_barrier_t bar;
static u64 run_threads(u64 n, void *(*f)(void *))
{
	pthread_t t[NT];
	u64 s = 0;
	cpu_set_t cs;
	if (sched_getaffinity(0, sizeof cs, &cs) || CPU_COUNT(&cs) < NT) {
		why = "one processor";
		return SKIP;
	}
	smp_n = n;
	pthread_barrier_init(&bar, 0, NT + 1);
	for (long i = 0; i < NT; i++)
		if (pthread_create(&t[i], 0, f, (void *)i))
			die("pthread_create");
	pthread_barrier_wait(&bar);
	START();
	for (int i = 0; i < NT; i++) {
		void *r;
		pthread_join(t[i], &r);
		s += (u64)r;
	}
	STOP();
	pthread_barrier_destroy(&bar);
	return s;
}
static void *th_fib(void *x)
{
	u64 s = 0;
	(void)x;
	pthread_barrier_wait(&bar);
	for (u64 i = 0; i < smp_n; i++)
		s += fib(30);
	return (void *)s;
}
static u64 b_smp_fib(u64 n) { return run_threads(n, th_fib); }
static u64 shared_ctr __attribute__((aligned(128)));
static void *th_xadd(void *x)
{
	(void)x;
	pthread_barrier_wait(&bar);
	for (u64 i = 0; i < smp_n; i++)
		__atomic_fetch_add(&shared_ctr, 1, __ATOMIC_SEQ_CST);
	return 0;
}
static u64 b_smp_xadd(u64 n)
{
	shared_ctr = 0;
	u64 r = run_threads(n, th_xadd);
	return r == SKIP ? r : shared_ctr;
}
static pthread_mutex_t mtx = PTHREAD_MUTEX_INITIALIZER;
static void *th_mutex(void *x)
{
	(void)x;
	pthread_barrier_wait(&bar);
	for (u64 i = 0; i < smp_n; i++) {
		pthread_mutex_lock(&mtx);
		shared_ctr++;
		pthread_mutex_unlock(&mtx);
	}
	return 0;
}
static u64 b_smp_mutex(u64 n)
{
	shared_ctr = 0;
	u64 r = run_threads(n, th_mutex);
	return r == SKIP ? r : shared_ctr;
}
static void *th_spin(void *x)
{
	u64 me = (u64)x;
	pthread_barrier_wait(&bar);
	for (u64 i = 0; i < smp_n; i++) {
		while ((__atomic_load_n(&shared_ctr, __ATOMIC_ACQUIRE) & 1) != me)
			__builtin_ia32_pause();
		__atomic_fetch_add(&shared_ctr, 1, __ATOMIC_RELEASE);
	}
	return 0;
}
static u64 b_smp_spin(u64 n) /* cache-line ping-pong */
{
	shared_ctr = 0;
	u64 r = run_threads(n, th_spin);
	return r == SKIP ? r : shared_ctr;
}
static void *th_mmap(void *x)
{
	u64 s = 0;
	(void)x;
	pthread_barrier_wait(&bar);
	for (u64 i = 0; i < smp_n; i++) {
		u8 *p = map(16 * 4096, RW, MADV_NOHUGEPAGE);
		for (int k = 0; k < 16; k++)
			p[k * 4096] = 1, s++;
		munmap(p, 16 * 4096);
	}
	return (void *)s;
}
static u64 b_smp_mmap(u64 n) { return run_threads(n, th_mmap); } /* TLB shootdowns */
static void *th_fork(void *x)
{
	u64 s = 0;
	(void)x;
	pthread_barrier_wait(&bar);
	for (u64 i = 0; i < smp_n; i++) {
		pid_t p;
		char *av[] = {"/bench/true", 0};
		if (posix_spawn(&p, av[0], 0, 0, av, environ) == 0)
			s += waitpid(p, 0, 0) == p;
	}
	return (void *)s;
}
static u64 b_smp_spawn(u64 n) { return run_threads(n, th_fork); }
