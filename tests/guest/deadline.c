/* The LAPIC's timer by TSC deadline: never early, once for each deadline, in the past at once, disarmed by 0 or by another
 * mode. How late it is is not looked at: the host may be busy. SDM vol. 3, 11.5.4.1. */
#include "guest.h"

const char guest_name[] = "deadline";

enum { DEADLINE = 0x6e0, LVT_TIMER = 0x320, TSC_MODE = 2 << 17, MASKED = 1 << 16, VECTOR = 0x61, TIMES = 40 };
static volatile u32 fired;
static volatile u64 at;

static bool on_timer(struct frame *f)
{
	if (f->vec != VECTOR)
		return false;
	at = rdtsc();
	fired++;
	apic_write(0xb0, 0);
	return true;
}

/* Until it has come. It must: a machine that loses it is ended by the test's time limit. */
static void sleep_until(u32 n)
{
	while (fired < n)
		__asm__ volatile("sti; hlt; cli" : : : "memory");
}

static void spin(u64 ticks)
{
	for (u64 end = rdtsc() + ticks; rdtsc() < end;)
		__asm__ volatile("sti; nop; cli" : : : "memory");
}

static void in_time(void)
{
	u32 early = 0, armed = 0;
	for (u32 k = 1; k <= TIMES; k++) {
		u64 when = rdtsc() + 100000 * k;
		wrmsr(DEADLINE, when);
		if (k & 1)
			sleep_until(k);
		while (fired < k) /* and without HLT */
			__asm__ volatile("sti; nop; cli" : : : "memory");
		early += at < when;
		armed += rdmsr(DEADLINE) != 0;
	}
	check_eq("each deadline fires once", fired, TIMES);
	check_eq("none too early", early, 0);
	check_eq("the MSR is 0 behind it", armed, 0);
}

static void others(void)
{
	fired = 0;
	wrmsr(DEADLINE, 1);
	sleep_until(1);
	check_eq("one that has passed fires at once", fired, 1);
	u64 far = rdtsc() + (1ull << 40); /* minutes: not while this runs, however busy the host */
	wrmsr(DEADLINE, far);
	check_eq("an armed one can be read", rdmsr(DEADLINE), far);
	wrmsr(DEADLINE, 0);
	check_eq("and is disarmed by 0", rdmsr(DEADLINE), 0);
	wrmsr(DEADLINE, far);
	apic_write(LVT_TIMER, VECTOR); /* one-shot */
	check_eq("another mode disarms", rdmsr(DEADLINE), 0);
	wrmsr(DEADLINE, rdtsc() + 1000);
	spin(5000000);
	check_eq("in which the MSR ignores writes", rdmsr(DEADLINE), 0);
	check_eq("so nothing has come", fired, 1);
	apic_write(LVT_TIMER, TSC_MODE | MASKED | VECTOR);
	check_eq("and does not come back", rdmsr(DEADLINE), 0);
	wrmsr(DEADLINE, rdtsc() + 1000);
	spin(5000000);
	check_eq("masked: nothing comes", fired, 1);
	apic_write(LVT_TIMER, TSC_MODE | VECTOR);
	wrmsr(DEADLINE, rdtsc() + 1000);
	sleep_until(2);
	check_eq("unmasked it does", fired, 2);
}

int main(void)
{
	u32 r[4];
	cpuid(1, 0, r);
	if (!(r[2] >> 24 & 1)) {
		skip("TSC deadlines", "this processor has none");
		return 0;
	}
	trap_hook = on_timer;
	apic_write(0xf0, 0x1ff);
	apic_write(LVT_TIMER, TSC_MODE | VECTOR);
	in_time();
	others();
	return 0;
}
