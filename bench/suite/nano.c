/* One instruction or one round trip to the kernel (nano.*). A part of suite.c, which includes it. */

/* Single instructions and single kernel round trips, after the nanobenchmarks
 * of Adams and Agesen (ASPLOS 2006).  The runner prints ns per operation. */

#define LOOP(body, ...) \
	do { \
		u64 k_ = n; \
		START(); \
		do { \
			__asm__ volatile(body __VA_ARGS__); \
		} while (--k_); \
		STOP(); \
	} while (0)

static u64 b_n_loop(u64 n) { LOOP("nop"); return 0; }
static u64 b_n_syscall(u64 n) { LOOP("movl $39,%%eax\n\tsyscall", ::: "rax", "rcx", "r11", "memory"); return 0; }
static u64 b_n_in(u64 n)
{
	if (ioperm(0x80, 1, 1)) {
		why = "ioperm refused";
		return SKIP;
	}
	LOOP("inb $0x80,%%al", ::: "rax");
	ioperm(0x80, 1, 0);
	return 0;
}
static u64 b_n_out(u64 n)
{
	if (ioperm(0x80, 1, 1)) {
		why = "ioperm refused";
		return SKIP;
	}
	LOOP("outb %%al,$0x80", ::: "rax");
	ioperm(0x80, 1, 0);
	return 0;
}
__asm__(".p2align 6\nnano_ret: ret\n");
extern void nano_ret(void);
static u64 b_n_callret(u64 n) { LOOP("call nano_ret", ::: "memory"); return 0; }
static u64 b_n_icallret(u64 n) { LOOP("call *%0", ::"r"(nano_ret) : "memory"); return 0; }
static u64 b_n_retpoline(u64 n)
{
	LOOP("call 3f\n\tjmp 4f\n3:\tcall 2f\n1:\tpause\n\tlfence\n\tjmp 1b\n2:\tmovq %0,(%%rsp)\n\tret\n4:",
		::"r"(nano_ret) : "memory");
	return 0;
}
static u64 b_n_pgfault(u64 n) /* first touch of pages of a 16 MiB private mapping: touch time only */
{
	enum { SZ = 16 << 20 };
	double acc = 0;
	u64 rounds = (n * 4096 + SZ - 1) / SZ;
	done_ops = rounds * (SZ / 4096);
	while (rounds--) {
		u8 *p = map(SZ, RW, MADV_NOHUGEPAGE);
		double a = now();
		for (size_t i = 0; i < SZ; i += 4096)
			*(volatile u8 *)(p + i) = 1;
		acc += now() - a;
		munmap(p, SZ);
	}
	t0 = 0, t1 = acc;
	return 0;
}
static void on_fpe(int s, siginfo_t *si, void *uc)
{
	(void)s, (void)si;
	((ucontext_t *)uc)->uc_mcontext.gregs[REG_RIP] += 2; /* f7 f1 = div %ecx */
	sigs++;
}
static u64 b_n_divzero(u64 n)
{
	struct sigaction sa = {.sa_sigaction = on_fpe, .sa_flags = SA_SIGINFO};
	sigaction(SIGFPE, &sa, 0);
	sigs = 0;
	LOOP("xorl %%ecx,%%ecx\n\txorl %%edx,%%edx\n\t.byte 0xf7,0xf1", ::: "rax", "rcx", "rdx", "memory", "cc");
	signal(SIGFPE, SIG_DFL);
	return sigs;
}
static u64 b_n_ptemod(u64 n) /* one-page mprotect toggles with a touch: PTE write + TLB flush + refill */
{
	u8 *p = map(4096, RW, 0);
	u64 s = 0;
	p[0] = 1;
	START();
	for (u64 i = 0; i < n; i++) {
		mprotect(p, 4096, i & 1 ? RW : PROT_READ);
		s += *(volatile u8 *)p;
	}
	STOP();
	munmap(p, 4096);
	return s;
}
static u64 b_n_madvise(u64 n) /* MADV_DONTNEED + touch: unmap, flush, fault */
{
	u8 *p = map(4096, RW, 0);
	START();
	for (u64 i = 0; i < n; i++) {
		*(volatile u8 *)p = 1;
		madvise(p, 4096, MADV_DONTNEED);
	}
	STOP();
	munmap(p, 4096);
	return 0;
}
static u64 b_n_rdtsc(u64 n) { LOOP("rdtsc", ::: "rax", "rdx"); return 0; }
static u64 b_n_cpuid(u64 n) { LOOP("xorl %%eax,%%eax\n\txorl %%ecx,%%ecx\n\tcpuid", ::: "rax", "rbx", "rcx", "rdx"); return 0; }
static u64 b_n_pushf(u64 n) { LOOP("pushfq\n\tpopfq", ::: "memory", "cc"); return 0; }
static u64 b_n_div64(u64 n) { LOOP("movl $7,%%ecx\n\tmovl $1,%%edx\n\tdivq %%rcx", ::: "rax", "rcx", "rdx", "cc"); return 0; }
static u64 b_n_xadd(u64 n) { u64 v = 0; LOOP("lock xaddq %0,%1", :"+r"(n), "+m"(v)); return 0; }
static u64 b_n_cx16(u64 n)
{
	static u64 v[2] __attribute__((aligned(16)));
	LOOP("lock cmpxchg16b %0", :"+m"(v) : : "rax", "rbx", "rcx", "rdx", "cc");
	return 0;
}
static u64 b_n_fsload(u64 n) { LOOP("movq %%fs:0,%%rax\n\tmovq %%fs:8,%%rdx", ::: "rax", "rdx"); return 0; }
static u64 b_n_movseg(u64 n) { LOOP("movl %%ds,%%eax\n\tmovl %%eax,%%ds", ::: "rax"); return 0; }
static u64 b_n_xpage(u64 n) /* unaligned 8-byte load across a page boundary */
{
	u8 *p = map(8192, RW, 0);
	memset(p, 1, 8192);
	LOOP("movq (%0),%%rax", ::"r"(p + 4093) : "rax");
	munmap(p, 8192);
	return 0;
}
static u64 b_n_load(u64 n)
{
	static u64 v[64];
	LOOP("movq (%0),%%rax\n\tmovq 8(%0),%%rdx\n\tmovq 16(%0),%%rcx\n\tmovq 24(%0),%%rsi", ::"r"(v) : "rax", "rdx", "rcx", "rsi");
	return 0;
}
static u64 b_n_store(u64 n)
{
	static u64 v[64];
	LOOP("movq %0,(%0)\n\tmovq %0,8(%0)\n\tmovq %0,16(%0)\n\tmovq %0,24(%0)", ::"r"(v) : "memory");
	return 0;
}
static u64 b_n_lfence(u64 n) { LOOP("lfence", ::: "memory"); return 0; }
static u64 b_n_mfence(u64 n) { LOOP("mfence", ::: "memory"); return 0; }
static u64 b_n_pause(u64 n) { LOOP("pause"); return 0; }
static u64 b_n_mxcsr(u64 n) { u32 v = 0x1f80; LOOP("ldmxcsr %0\n\tstmxcsr %0", :"+m"(v)); return 0; }
static u64 b_n_fxsave(u64 n)
{
	static u8 a[512] __attribute__((aligned(64)));
	LOOP("fxsaveq %0\n\tfxrstorq %0", :"+m"(a));
	return 0;
}
static u64 b_n_addsd(u64 n) { LOOP("addsd %%xmm1,%%xmm0\n\tmulsd %%xmm2,%%xmm3", ::: "xmm0", "xmm1", "xmm2", "xmm3"); return 0; }
static u64 b_n_addpd(u64 n) { LOOP("addpd %%xmm1,%%xmm0\n\tmulpd %%xmm2,%%xmm3", ::: "xmm0", "xmm1", "xmm2", "xmm3"); return 0; }
static u64 b_n_paddd(u64 n) { LOOP("paddd %%xmm1,%%xmm0\n\tpxor %%xmm2,%%xmm3\n\tpshufd $27,%%xmm3,%%xmm4", ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4"); return 0; }
static u64 b_n_repmov16(u64 n)
{
	static u8 a[64], b[64];
	LOOP("movl $16,%%ecx\n\tmovq %0,%%rsi\n\tmovq %1,%%rdi\n\trep movsb", ::"r"(a), "r"(b) : "rcx", "rsi", "rdi", "memory");
	return 0;
}
static u64 b_n_getcpu(u64 n) /* lsl from a user program (what the vdso getcpu does without rdpid) */
{
	LOOP("movl $0x7b,%%eax\n\tlsl %%eax,%%eax", ::: "rax", "cc");
	return 0;
}
