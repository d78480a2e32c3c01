/* Two processors: INIT, SIPI, IPIs of all kinds, locked instructions between them. SDM vol. 3 8.1,
 * 8.4, 10.6. */
#include "guest.h"

const char guest_name[] = "smp";

static volatile u32 count[256];
extern const u8 before_sleep[], at_hlt[], after_hlt[];

static bool on_irq(struct frame *f)
{
	if (f->vec != NMI && f->vec < 0x20)
		return false;
	if (f->vec == DONE)
		return false;
	__atomic_fetch_add(&count[f->vec], 1, __ATOMIC_SEQ_CST);
	if (f->vec == NMI && f->ip > (uptr)before_sleep && f->ip <= (uptr)at_hlt)
		f->ip = (uptr)after_hlt;
	if (f->vec != NMI)
		apic_write(0xb0, 0);
	return true;
}
static void ipi(u32 to, u32 icr)
{
	apic_write(0x310, to << 24);
	apic_write(0x300, icr);
}
static void reset_counts(void) { memset((void *)count, 0, sizeof(count)); }
static void window(void)
{
	__asm__ volatile("sti; nop; nop" : : : "memory");
	delay_us(50);
	__asm__ volatile("cli" : : : "memory");
}

/* ---- the other processor ------------------------------------------------------------------------------------ */

static volatile u32 ap_up, ap_id, work, work_done;
static volatile u64 shared[3] __attribute__((aligned(64)));
static volatile u32 want_me[2], inside, clashes;
enum { ROUNDS = 20000 };

/* Locked increments, one of them across a cache line and a page; Dekker's algorithm with XCHG as
 * its barrier. */
static u8 odd[8192] __attribute__((aligned(4096)));
static void compete(unsigned me)
{
	for (unsigned k = 0; k < ROUNDS; k++) {
		__asm__ volatile("lock incq %0" : "+m"(shared[0]) : : "cc");
		__asm__ volatile("lock addl $1,%0" : "+m"(*(u32 *)(odd + 4094)) : : "cc");
		u64 old = shared[1];
		while (!__atomic_compare_exchange_n(&shared[1], &old, old + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			;
		u64 one = 1;
		__asm__ volatile("lock xaddq %0,%1" : "+r"(one), "+m"(shared[2]) : : "cc");
	}
	for (unsigned k = 0; k < 2000; k++) {
		u32 v = 1;
		__asm__ volatile("xchgl %0,%1" : "+r"(v), "+m"(want_me[me]) : : "memory");
		if (want_me[!me]) {
			want_me[me] = 0;
			continue;
		}
		if (inside++)
			clashes++;
		inside--;
		want_me[me] = 0;
	}
}

/* STI; HLT ended by an NMI from the other processor, which may come at any point of it: none is
 * lost. The handler of one that came before HLT goes on behind it (a processor may hold off NMIs
 * after STI, or not). */
enum { SLEEPS = 300 };
static volatile u32 slept, ready, bad_wakes;
static void sleep_by_nmi(void)
{
	for (u32 k = 1; k <= SLEEPS; k++) {
		u32 before = count[NMI];
		__asm__ volatile(".globl before_sleep,at_hlt,after_hlt\nbefore_sleep: movl %1,%0; sti; at_hlt: hlt; after_hlt: cli"
			: "=m"(ready) : "r"(k) : "memory");
		bad_wakes += count[NMI] != before + 1;
		slept = k;
	}
}
static void wake_by_nmi(u32 to)
{
	for (u32 k = 1; k <= SLEEPS; k++) {
		while (ready != k)
			;
		for (volatile u32 spin = 0; spin < k % 64; spin++)
			;
		ipi(to, 0x4400);
		while (slept != k)
			;
	}
}

void ap_entry(void)
{
	apic_write(0xf0, 0x1ff);
	ap_id = apic_read(0x20) >> 24;
	ap_up++;
	if (work) {
		compete(1);
		work_done = 1;
	}
	for (;;) {
		__asm__ volatile("sti; hlt; cli" : : : "memory");
		if (work == 2)
			sleep_by_nmi();
		else if (work == 3)
			wake_by_nmi(0);
		if (work)
			work_done = 1;
		work = 0;
	}
}
static bool wait_for(volatile u32 *p, u32 want)
{
	for (unsigned k = 0; k < 10000 && *p != want; k++) /* a busy host runs the other processor late */
		delay_us(1000);
	return *p == want;
}

static void nmi_sleeps(void)
{
	reset_counts();
	work_done = 0;
	work = 2;
	ipi(1, 0x4070);
	wake_by_nmi(1);
	check("300 times STI HLT there, ended by an NMI from here", wait_for(&work_done, 1) && slept == SLEEPS);
	check_eq("each by one NMI", count[NMI], SLEEPS);
	reset_counts();
	slept = ready = work_done = 0;
	work = 3;
	ipi(1, 0x4070);
	sleep_by_nmi();
	check("300 times STI HLT here, ended by an NMI from there", wait_for(&work_done, 1) && slept == SLEEPS);
	check_eq("each by one NMI, too", count[NMI], SLEEPS);
	check_eq("none woke without", bad_wakes, 0);
}

static void second(void)
{
	start_ap(1);
	check("INIT, SIPI: the second processor runs at 8000", wait_for(&ap_up, 1));
	check_eq("its APIC ID", ap_id, 1);
	if (!ap_up)
		return;
	ipi(1, 0x4608);
	delay_us(2000);
	check_eq("a SIPI to a running processor is ignored", ap_up, 1);
	reset_counts();
	ipi(1, 0x4070);
	check("fixed IPI", wait_for(&count[0x70], 1));
	ipi(1, 0x4400);
	check("NMI IPI wakes HLT", wait_for(&count[2], 1));
	reset_counts();
	apic_write(0x300, 0xc4071);
	wait_for(&count[0x71], 1);
	delay_us(2000);
	check_eq("all but self", count[0x71], 1);
	reset_counts();
	apic_write(0x300, 0x84072);
	delay_us(2000);
	window();
	wait_for(&count[0x72], 2);
	check_eq("all with self", count[0x72], 2);
	reset_counts();
	ipi(0xff, 0x4073);
	delay_us(2000);
	window();
	wait_for(&count[0x73], 2);
	check_eq("physical ff: all", count[0x73], 2);
	/* Logical, flat: LDR by the guest itself only. */
	apic_write(0xd0, 1u << 24);
	apic_write(0xe0, 0xffffffff);
	reset_counts();
	ipi(1, 0x4874);
	window();
	check_eq("logical flat to this processor", count[0x74], 1);
	ipi(7, 0x4075);
	delay_us(500);
	check_eq("an IPI to nobody", count[0x75], 0);
	/* INIT again. */
	ipi(1, 0x4500);
	delay_us(10000);
	reset_counts();
	ipi(1, 0x4076);
	delay_us(3000);
	check_eq("after INIT it waits for SIPI", count[0x76], 0);
	work = 1;
	ipi(1, 0x4608);
	check("SIPI starts it again", wait_for(&ap_up, 2));
	compete(0);
	check("both come to the end", wait_for(&work_done, 1));
	check_eq("lock inc", shared[0], 2 * ROUNDS);
	check_eq("lock cmpxchg", shared[1], 2 * ROUNDS);
	check_eq("lock xadd", shared[2], 2 * ROUNDS);
	check_eq("lock add across a page", *(u32 *)(odd + 4094), 2 * ROUNDS);
	check_eq("stores before XCHG are seen: nobody clashes", clashes, 0);
	nmi_sleeps();
}


int main(void)
{
	trap_hook = on_irq;
	second();
	return 0;
}
