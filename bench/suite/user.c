/* Computation in user mode (user.*). A part of suite.c, which includes it. */

/* recursive fib: direct calls and returns.  Every optimisation that would
 * unroll or turn the recursion into a loop is off. */
__attribute__((noinline, noclone, optimize("O1", "no-optimize-sibling-calls", "no-inline")))
static u64 fib(u64 n)
{
	return n < 2 ? n : fib(n - 1) + fib(n - 2);
}
static u64 b_fib(u64 n)
{
	u64 s = 0;
	START();
	while (n--)
		s += fib(30);
	STOP();
	return s;
}

/* calls through a table of function pointers, pseudo-random target */
#define F(i, e) \
	static NOINLINE u64 fp##i(u64 x) { return e; }
F(0, x + 1) F(1, x ^ 0x55) F(2, x * 3) F(3, x - 7) F(4, x >> 1) F(5, x | 1) F(6, ~x) F(7, x << 2)
F(8, x + 99) F(9, x ^ 0x1234) F(10, x * 5) F(11, x - 3) F(12, x >> 2) F(13, x & ~8ull) F(14, -x) F(15, x << 1)
#undef F
static u64 (*volatile fps_v[16])(u64) = {fp0, fp1, fp2, fp3, fp4, fp5, fp6, fp7,
	fp8, fp9, fp10, fp11, fp12, fp13, fp14, fp15};
static u64 b_icall_mono(u64 n) /* one target, always the same */
{
	u64 x = 1;
	START();
	while (n--)
		x = fps_v[2](x);
	STOP();
	return x;
}
static u64 b_icall_poly(u64 n) /* 16 targets, unpredictable */
{
	u64 x = 1;
	u32 l = 1;
	START();
	while (n--) {
		l = l * 1664525u + 1013904223u;
		x = fps_v[l >> 28](x);
	}
	STOP();
	return x;
}

static int cmp_u32(const void *a, const void *b)
{
	u32 x = *(const u32 *)a, y = *(const u32 *)b;
	return (x > y) - (x < y);
}
static u64 b_qsort(u64 n)
{
	u32 *a = malloc(n * 4);
	u64 h = FNV0;
	for (u64 i = 0; i < n; i++)
		a[i] = rng() >> 20;
	START();
	qsort(a, n, 4, cmp_u32);
	STOP();
	for (u64 i = 0; i < n; i += 997)
		h = mix(h, a[i]);
	free(a);
	return h;
}

/* bytecode interpreters: one switch (one shared indirect jump) and one
 * with computed goto (an indirect jump per opcode).  Same program. */
enum { LDI, MOV, ADD, ADDI, SUB, MUL, XOR, AND, SHR, SHL, LT, JNZ, JMP, LD, ST, CALL, RET_, HALT };
struct insn { u8 op, a, b, c; int32_t imm; };
static const struct insn prog[] = {
	/* 0*/ {LDI, 0, 0, 0, 0},         /* r0 = i = 0                      */
	/* 1*/ {LDI, 1, 0, 0, 12345},     /* r1 = lcg                        */
	/* 2*/ {LDI, 2, 0, 0, 1103515245},/* r2                              */
	/* 3*/ {LDI, 3, 0, 0, 0},         /* r3 = acc                        */
	/* 4*/ {LDI, 8, 0, 0, 255},       /* r8 = mask                       */
	/* 5*/ {LDI, 9, 0, 0, 16},        /* r9 = shift                      */
	/* 6*/ {MUL, 1, 1, 2, 0},         /* loop: r1 *= r2                  */
	/* 7*/ {ADDI, 1, 1, 0, 12345},
	/* 8*/ {SHR, 4, 1, 9, 0},
	/* 9*/ {AND, 4, 4, 8, 0},
	/*10*/ {LD, 5, 4, 0, 0},          /* r5 = mem[r4]                    */
	/*11*/ {ADD, 3, 3, 5, 0},
	/*12*/ {XOR, 5, 5, 1, 0},
	/*13*/ {ST, 4, 5, 0, 0},          /* mem[r4] = r5                    */
	/*14*/ {CALL, 0, 0, 0, 19},
	/*15*/ {ADDI, 0, 0, 0, 1},
	/*16*/ {LT, 6, 0, 7, 0},          /* r6 = i < n                      */
	/*17*/ {JNZ, 6, 0, 0, 6},
	/*18*/ {HALT, 0, 0, 0, 0},
	/*19*/ {AND, 6, 1, 9, 0},         /* sub: data-dependent branch      */
	/*20*/ {JNZ, 6, 0, 0, 23},
	/*21*/ {ADDI, 3, 3, 0, 7},
	/*22*/ {RET_, 0, 0, 0, 0},
	/*23*/ {SUB, 3, 3, 4, 0},
	/*24*/ {RET_, 0, 0, 0, 0},
};
static NOINLINE u64 interp_switch(const struct insn *p, u64 n)
{
	u64 r[16] = {0}, mem[256] = {0};
	u32 stk[16], sp = 0, pc = 0;
	r[7] = n;
	for (;;) {
		struct insn i = p[pc++];
		switch (i.op) {
		case LDI: r[i.a] = i.imm; break;
		case MOV: r[i.a] = r[i.b]; break;
		case ADD: r[i.a] = r[i.b] + r[i.c]; break;
		case ADDI: r[i.a] = r[i.b] + i.imm; break;
		case SUB: r[i.a] = r[i.b] - r[i.c]; break;
		case MUL: r[i.a] = r[i.b] * r[i.c]; break;
		case XOR: r[i.a] = r[i.b] ^ r[i.c]; break;
		case AND: r[i.a] = r[i.b] & r[i.c]; break;
		case SHR: r[i.a] = r[i.b] >> (r[i.c] & 63); break;
		case SHL: r[i.a] = r[i.b] << (r[i.c] & 63); break;
		case LT: r[i.a] = r[i.b] < r[i.c]; break;
		case JNZ: if (r[i.a]) pc = i.imm; break;
		case JMP: pc = i.imm; break;
		case LD: r[i.a] = mem[r[i.b] & 255]; break;
		case ST: mem[r[i.a] & 255] = r[i.b]; break;
		case CALL: stk[sp++ & 15] = pc; pc = i.imm; break;
		case RET_: pc = stk[--sp & 15]; break;
		default: return r[3];
		}
	}
}
static NOINLINE u64 interp_goto(const struct insn *p, u64 n)
{
	static const void *const L[] = {&&ldi, &&mov, &&add, &&addi, &&sub, &&mul, &&xor, &&and, &&shr,
		&&shl, &&lt, &&jnz, &&jmp, &&ld, &&st, &&call, &&ret, &&halt};
	u64 r[16] = {0}, mem[256] = {0};
	u32 stk[16], sp = 0, pc = 0;
	struct insn i;
	r[7] = n;
#define NEXT i = p[pc++]; goto *L[i.op]
	NEXT;
ldi:	r[i.a] = i.imm; NEXT;
mov:	r[i.a] = r[i.b]; NEXT;
add:	r[i.a] = r[i.b] + r[i.c]; NEXT;
addi:	r[i.a] = r[i.b] + i.imm; NEXT;
sub:	r[i.a] = r[i.b] - r[i.c]; NEXT;
mul:	r[i.a] = r[i.b] * r[i.c]; NEXT;
xor:	r[i.a] = r[i.b] ^ r[i.c]; NEXT;
and:	r[i.a] = r[i.b] & r[i.c]; NEXT;
shr:	r[i.a] = r[i.b] >> (r[i.c] & 63); NEXT;
shl:	r[i.a] = r[i.b] << (r[i.c] & 63); NEXT;
lt:	r[i.a] = r[i.b] < r[i.c]; NEXT;
jnz:	if (r[i.a]) pc = i.imm; NEXT;
jmp:	pc = i.imm; NEXT;
ld:	r[i.a] = mem[r[i.b] & 255]; NEXT;
st:	mem[r[i.a] & 255] = r[i.b]; NEXT;
call:	stk[sp++ & 15] = pc; pc = i.imm; NEXT;
ret:	pc = stk[--sp & 15]; NEXT;
halt:	return r[3];
#undef NEXT
}
static u64 b_interp_switch(u64 n)
{
	u64 s;
	START();
	s = interp_switch(prog, n);
	STOP();
	return s;
}
static u64 b_interp_goto(u64 n)
{
	u64 s;
	START();
	s = interp_goto(prog, n);
	STOP();
	return s;
}

/* pointer chase over a random cycle */
static u64 chase(u64 n, size_t nodes, int adv)
{
	size_t sz = nodes * 64;
	u8 *base = map(sz, RW, adv);
	u32 *perm = malloc(nodes * 4);
	for (u32 i = 0; i < nodes; i++)
		perm[i] = i;
	for (u32 i = nodes - 1; i; i--) {
		u32 j = rng() % i, t = perm[i]; /* Sattolo: a single cycle */
		perm[i] = perm[j];
		perm[j] = t;
	}
	for (u32 i = 0; i < nodes; i++)
		*(void **)(base + (size_t)i * 64) = base + (size_t)perm[i] * 64;
	void **p = (void **)base;
	START();
	for (u64 i = 0; i < n; i++)
		p = *p;
	STOP();
	u64 r = ((u8 *)p - base) / 64;
	free(perm);
	munmap(base, sz);
	return r + 1;
}
static u64 b_list_l1(u64 n) { return chase(n, 256, MADV_NOHUGEPAGE); }
static u64 b_list_big(u64 n) { return chase(n, 1 << 20, MADV_NOHUGEPAGE); }
static u64 b_list_huge(u64 n) { return chase(n, 1 << 20, MADV_HUGEPAGE); }

/* matrix multiply, double */
#define MN 256
static double ma[MN][MN] __attribute__((aligned(64))), mb[MN][MN] __attribute__((aligned(64))),
	mc[MN][MN] __attribute__((aligned(64)));
static void minit(void)
{
	for (int i = 0; i < MN; i++)
		for (int j = 0; j < MN; j++) {
			ma[i][j] = (i * 7 + j) % 13 * 0.25;
			mb[i][j] = (i + j * 5) % 11 * 0.5;
		}
	memset(mc, 0, sizeof mc);
}
static u64 msum(void) { return fnv(FNV0, mc, sizeof mc); }
__attribute__((optimize("no-tree-vectorize"))) static NOINLINE void mm_scalar(void)
{
	for (int i = 0; i < MN; i++)
		for (int k = 0; k < MN; k++) {
			double a = ma[i][k];
			for (int j = 0; j < MN; j++)
				mc[i][j] += a * mb[k][j];
		}
}
static NOINLINE void mm_sse2(void)
{
	for (int i = 0; i < MN; i++)
		for (int k = 0; k < MN; k += 2) {
			__m128d a = _mm_set1_pd(ma[i][k]), b = _mm_set1_pd(ma[i][k + 1]);
			for (int j = 0; j < MN; j += 4) {
				__m128d c0 = _mm_load_pd(&mc[i][j]), c1 = _mm_load_pd(&mc[i][j + 2]);
				c0 = _mm_add_pd(c0, _mm_mul_pd(a, _mm_load_pd(&mb[k][j])));
				c1 = _mm_add_pd(c1, _mm_mul_pd(a, _mm_load_pd(&mb[k][j + 2])));
				c0 = _mm_add_pd(c0, _mm_mul_pd(b, _mm_load_pd(&mb[k + 1][j])));
				c1 = _mm_add_pd(c1, _mm_mul_pd(b, _mm_load_pd(&mb[k + 1][j + 2])));
				_mm_store_pd(&mc[i][j], c0);
				_mm_store_pd(&mc[i][j + 2], c1);
			}
		}
}
__attribute__((target("avx2,fma"))) static NOINLINE void mm_avx2(void)
{
	for (int i = 0; i < MN; i++)
		for (int k = 0; k < MN; k += 2) {
			__m256d a = _mm256_set1_pd(ma[i][k]), b = _mm256_set1_pd(ma[i][k + 1]);
			for (int j = 0; j < MN; j += 8) {
				__m256d c0 = _mm256_load_pd(&mc[i][j]), c1 = _mm256_load_pd(&mc[i][j + 4]);
				c0 = _mm256_fmadd_pd(a, _mm256_load_pd(&mb[k][j]), c0);
				c1 = _mm256_fmadd_pd(a, _mm256_load_pd(&mb[k][j + 4]), c1);
				c0 = _mm256_fmadd_pd(b, _mm256_load_pd(&mb[k + 1][j]), c0);
				c1 = _mm256_fmadd_pd(b, _mm256_load_pd(&mb[k + 1][j + 4]), c1);
				_mm256_store_pd(&mc[i][j], c0);
				_mm256_store_pd(&mc[i][j + 4], c1);
			}
		}
}
static u64 mm(u64 n, void (*f)(void))
{
	minit();
	START();
	while (n--)
		f();
	STOP();
	return msum();
}
static u64 b_mm_scalar(u64 n) { return mm(n, mm_scalar); }
static u64 b_mm_sse2(u64 n) { return mm(n, mm_sse2); }
static u64 b_mm_avx2(u64 n)
{
	if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
		why = "no AVX2+FMA";
		return SKIP;
	}
	return mm(n, mm_avx2);
}

/* n-body, scalar double with sqrt and division */
static u64 b_nbody(u64 n)
{
	static const double init[5][7] = {
		{0, 0, 0, 0, 0, 0, 39.47841760435743},
		{4.84143144246472090, -1.16032004402742839, -.103622044471123109, .606326392995832, 2.81198684491626, -.02521836165988763, .037693674870389486},
		{8.34336671824457987, 4.12479856412430479, -.403523417114321381, -1.01077434617879236, 1.82566237123041186, .00841576137658415351, .011286326131968767},
		{12.8943695621391310, -15.1111514016986312, -.223307578892655734, 1.08279100644153536, .868713018169608220, -.0108326374013636358, .0017237240570597112},
		{15.3796971148509165, -25.9193146099879641, .179258772950371181, .979090732243897976, .594698998647676060, -.0347559555504078104, .0020336868699246304}};
	double b[5][7];
	memcpy(b, init, sizeof b);
	START();
	while (n--) {
		for (int i = 0; i < 5; i++)
			for (int j = i + 1; j < 5; j++) {
				double dx = b[i][0] - b[j][0], dy = b[i][1] - b[j][1], dz = b[i][2] - b[j][2];
				double d2 = dx * dx + dy * dy + dz * dz;
				double m = 0.001 / (d2 * _mm_cvtsd_f64(_mm_sqrt_sd(_mm_setzero_pd(), _mm_set_sd(d2))));
				b[i][3] -= dx * b[j][6] * m, b[i][4] -= dy * b[j][6] * m, b[i][5] -= dz * b[j][6] * m;
				b[j][3] += dx * b[i][6] * m, b[j][4] += dy * b[i][6] * m, b[j][5] += dz * b[i][6] * m;
			}
		for (int i = 0; i < 5; i++)
			for (int k = 0; k < 3; k++)
				b[i][k] += 0.001 * b[i][k + 3];
	}
	STOP();
	return fnv(FNV0, b, sizeof b);
}

/* x87: long double polynomial */
static u64 b_x87(u64 n)
{
	long double x = 0.5L, s = 0;
	START();
	while (n--) {
		x = x * 3.57L * (1.0L - x);
		s += x / (x + 1.0L);
	}
	STOP();
	double d = (double)s;
	return fnv(FNV0, &d, 8);
}

/* integer SSE2: sum of absolute differences over 16 KiB */
static u64 b_sse_int(u64 n)
{
	static u8 a[16384] __attribute__((aligned(64))), b[16384] __attribute__((aligned(64)));
	for (int i = 0; i < 16384; i++)
		a[i] = i * 7, b[i] = i * 13 + 5;
	__m128i acc = _mm_setzero_si128();
	START();
	while (n--) {
		for (int i = 0; i < 16384; i += 16) {
			__m128i x = _mm_load_si128((void *)(a + i)), y = _mm_load_si128((void *)(b + i));
			acc = _mm_add_epi64(acc, _mm_sad_epu8(x, y));
			acc = _mm_xor_si128(acc, _mm_packus_epi16(_mm_srli_epi16(x, 1), _mm_unpackhi_epi8(y, x)));
		}
	}
	STOP();
	u64 r[2];
	memcpy(r, &acc, 16);
	return mix(r[0], r[1]);
}

/* memory bandwidth through libc, and explicit string instructions */
static u64 memcpy_n(u64 n, size_t sz)
{
	u8 *a = map(sz, RW, MADV_HUGEPAGE), *b = map(sz, RW, MADV_HUGEPAGE);
	memset(a, 1, sz);
	memset(b, 2, sz);
	START();
	while (n--) {
		memcpy(b, a, sz);
		CLOBBER();
	}
	STOP();
	u64 r = fnv(FNV0, b, sz < 4096 ? sz : 4096);
	munmap(a, sz);
	munmap(b, sz);
	return r;
}
static u64 b_memcpy_64(u64 n) { return memcpy_n(n, 64); }
static u64 b_memcpy_32k(u64 n) { return memcpy_n(n, 32768); }
static u64 b_memcpy_32m(u64 n) { return memcpy_n(n, 32 << 20); }
static u64 b_strlen(u64 n)
{
	static char s[16384];
	u64 r = 0;
	memset(s, 'x', sizeof s - 1);
	START();
	while (n--) {
		char *p = s;
		KEEP(p);
		r += strlen(p);
	}
	STOP();
	return r;
}
static u64 b_rep_movsb(u64 n) /* short and long rep movs/stos */
{
	static u8 a[65536], b[65536];
	START();
	for (u64 i = 0; i < n; i++) {
		void *d = b + (i & 63), *s = a + (i & 31);
		size_t c = i % 100 == 0 ? 16384 : 40;
		__asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(c)::"memory");
		c = 32;
		d = a + (i & 127);
		__asm__ volatile("rep stosq" : "+D"(d), "+c"(c) : "a"(i) : "memory");
	}
	STOP();
	return fnv(FNV0, b, 4096);
}

/* sieve: byte stores, branches */
static u64 b_sieve(u64 n)
{
	enum { M = 1 << 20 };
	static u8 s[M];
	u64 c = 0;
	START();
	while (n--) {
		memset(s, 1, M);
		for (u32 i = 2; i * i < M; i++)
			if (s[i])
				for (u32 j = i * i; j < M; j += i)
					s[j] = 0;
		for (u32 i = 2; i < M; i++)
			c += s[i];
	}
	STOP();
	return c;
}

/* multi-word multiply with mul/add/adc: carry flags are live all the time */
static u64 b_bignum(u64 n)
{
	u64 a[32], r[64], h = FNV0;
	for (int i = 0; i < 32; i++)
		a[i] = rng();
	START();
	while (n--) {
		memset(r, 0, sizeof r);
		for (int i = 0; i < 32; i++) {
			u64 c = 0;
			for (int j = 0; j < 32; j++) {
				u64 lo, hi;
				__asm__("mulq %3\n\taddq %4,%%rax\n\tadcq $0,%%rdx\n\taddq %5,%%rax\n\tadcq $0,%%rdx"
					: "=&a"(lo), "=&d"(hi) : "0"(a[i]), "rm"(a[j]), "r"(r[i + j]), "r"(c) : "cc");
				r[i + j] = lo;
				c = hi;
			}
			r[i + 32] = c;
		}
		for (int i = 0; i < 32; i++)
			a[i] = r[i] ^ r[i + 16];
		a[0] |= 1;
	}
	STOP();
	for (int i = 0; i < 32; i++)
		h = mix(h, a[i]);
	return h;
}

/* conditional instructions of every flavour: setcc, cmov, bt, rotates, sbb */
static u64 b_flags(u64 n)
{
	u64 a = 0x123456789abcdefull, b = 0xfedcba987654321ull, c = 0;
	START();
	for (u64 i = 0; i < n; i++) {
		u64 t;
		__asm__("cmpq %2,%0\n\tsetl %b3\n\tmovzbl %b3,%k3\n\taddq %3,%1\n\t"
			"btq $13,%0\n\tadcq $5,%1\n\trolq $7,%0\n\tsubq %1,%0\n\tsbbq %3,%3\n\t"
			"xorq %3,%1\n\ttestq %0,%0\n\tcmovsq %2,%3\n\taddq %3,%0\n\tshrq $3,%3\n\tadcq %3,%1\n\t"
			"incq %2\n\tjo 1f\n\tdecl %k3\n\tjp 1f\n\tnegq %2\n1:"
			: "+r"(a), "+r"(b), "+r"(c), "=&q"(t) : : "cc");
	}
	STOP();
	return mix(mix(mix(FNV0, a), b), c);
}

/* SHA-256 in plain C: rotates, xors, adds on 32-bit registers */
static const u32 K256[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
#define ROR(x, k) ((x) >> (k) | (x) << (32 - (k)))
static NOINLINE void sha_block(u32 *h, const u8 *p)
{
	u32 w[64], s[8];
	for (int i = 0; i < 16; i++) {
		memcpy(&w[i], p + i * 4, 4);
		w[i] = __builtin_bswap32(w[i]);
	}
	for (int i = 16; i < 64; i++)
		w[i] = w[i - 16] + w[i - 7] + (ROR(w[i - 15], 7) ^ ROR(w[i - 15], 18) ^ w[i - 15] >> 3) +
			(ROR(w[i - 2], 17) ^ ROR(w[i - 2], 19) ^ w[i - 2] >> 10);
	memcpy(s, h, 32);
	for (int i = 0; i < 64; i++) {
		u32 a = s[7] + (ROR(s[4], 6) ^ ROR(s[4], 11) ^ ROR(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + K256[i] + w[i];
		u32 b = (ROR(s[0], 2) ^ ROR(s[0], 13) ^ ROR(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
		s[7] = s[6], s[6] = s[5], s[5] = s[4], s[4] = s[3] + a, s[3] = s[2], s[2] = s[1], s[1] = s[0], s[0] = a + b;
	}
	for (int i = 0; i < 8; i++)
		h[i] += s[i];
}
static u64 b_sha256_c(u64 n)
{
	u32 h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
	u8 blk[64];
	for (int i = 0; i < 64; i++)
		blk[i] = i;
	START();
	while (n--)
		sha_block(h, blk);
	STOP();
	return fnv(FNV0, h, 32);
}

/* malloc/free with a binary-tree shape (allocator, TLS accesses, branches) */
struct node { struct node *l, *r; };
static NOINLINE struct node *mk(int d)
{
	struct node *n = malloc(sizeof *n);
	if (d)
		n->l = mk(d - 1), n->r = mk(d - 1);
	else
		n->l = n->r = 0;
	return n;
}
static NOINLINE u64 rm(struct node *n)
{
	u64 c = 1;
	if (n->l)
		c += rm(n->l) + rm(n->r);
	free(n);
	return c;
}
static u64 b_bintree(u64 n)
{
	u64 c = 0;
	START();
	while (n--)
		c += rm(mk(14));
	STOP();
	return c;
}

/* Guest JITs: code written at run time */
static u64 b_smc_patch(u64 n) /* rewrite one immediate in place, call once */
{
	u8 *p = map(4096, RWX, 0);
	static const u8 code[] = {0xb8, 0, 0, 0, 0, 0x01, 0xf8, 0xc3}; /* mov $imm,%eax; add %edi,%eax; ret */
	u64 s = 0;
	memcpy(p, code, sizeof code);
	START();
	for (u64 i = 0; i < n; i++) {
		u32 v = (u32)(i * 3);
		memcpy(p + 1, &v, 4);
		CLOBBER();
		s += ((u32(*)(u32))(void *)p)((u32)i);
	}
	STOP();
	munmap(p, 4096);
	return s;
}
static u64 b_smc_data(u64 n) /* code and hot data share a page (data 1 KiB away) */
{
	u8 *p = map(4096, RWX, 0);
	static const u8 code[] = {0x48, 0x01, 0x3d, 0xf9, 0x07, 0x00, 0x00, 0xc3}; /* add %rdi,0x7f9(%rip); ret */
	memcpy(p, code, sizeof code);
	void (*f)(u64) = (void *)p;
	START();
	for (u64 i = 0; i < n; i++)
		f(i);
	STOP();
	u64 r;
	memcpy(&r, p + 0x800, 8);
	munmap(p, 4096);
	return r;
}
static size_t emit(u8 *p, u64 seed) /* about 100 bytes of straight code with a branch or two */
{
	u8 *q = p;
	*q++ = 0x89, *q++ = 0xf8; /* mov %edi,%eax */
	for (int k = 0; k < 12; k++) {
		u32 imm = (u32)(seed >> (k & 15)) * 2654435761u;
		switch ((seed >> (k * 3)) & 3) {
		case 0: *q++ = 0x05; memcpy(q, &imm, 4), q += 4; break;             /* add $imm,%eax */
		case 1: *q++ = 0x35; memcpy(q, &imm, 4), q += 4; break;             /* xor $imm,%eax */
		case 2: *q++ = 0xa8, *q++ = 1 << (k & 7), *q++ = 0x74, *q++ = 2,    /* test $,%al; jz +2 */
			*q++ = 0xf7, *q++ = 0xd0; break;                            /* not %eax */
		case 3: *q++ = 0xc1, *q++ = 0xc0, *q++ = (k & 15) + 1; break;       /* rol $,%eax */
		}
	}
	*q++ = 0xc3;
	return q - p;
}
static u64 b_jit_cold(u64 n) /* fresh code, each function called 3 times */
{
	enum { SZ = 16 << 20 };
	u8 *p = map(SZ, RWX, MADV_NOHUGEPAGE);
	size_t o = 0;
	u64 s = 0, k = 88172645463325252ull;
	START();
	for (u64 i = 0; i < n; i++) {
		k ^= k << 13, k ^= k >> 7, k ^= k << 17;
		if (o + 256 > SZ)
			o = 0;
		size_t l = emit(p + o, k);
		CLOBBER();
		u32 (*f)(u32) = (void *)(p + o);
		s += f((u32)i);
		s += f((u32)s);
		s += f((u32)i + 1);
		o += (l + 15) & ~15ul;
	}
	STOP();
	munmap(p, SZ);
	return s;
}
static u64 b_jit_wx(u64 n) /* W^X: mprotect RW, write, mprotect RX, call 50 times */
{
	enum { SZ = 1 << 20 };
	u8 *p = map(SZ, RW, MADV_NOHUGEPAGE);
	size_t o = 0;
	u64 s = 0, k = 88172645463325252ull;
	START();
	for (u64 i = 0; i < n; i++) {
		k ^= k << 13, k ^= k >> 7, k ^= k << 17;
		if (o + 4096 > SZ)
			o = 0;
		mprotect(p + (o & ~4095ul), 4096, RW);
		size_t l = emit(p + o, k);
		mprotect(p + (o & ~4095ul), 4096, PROT_READ | PROT_EXEC);
		u32 (*f)(u32) = (void *)(p + o);
		for (int j = 0; j < 50; j++)
			s += f((u32)s);
		o += l > 200 ? 512 : 256;
	}
	STOP();
	munmap(p, SZ);
	return s;
}

static u64 b_clock(u64 n)
{
	struct timespec ts;
	START();
	while (n--)
		clock_gettime(CLOCK_MONOTONIC, &ts);
	STOP();
	return 0;
}
