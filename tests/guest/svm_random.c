/* AMD-V under random VMCBs: from a state that VMRUN takes, one to three fields changed, 100,000 times. Whatever the
 * guest then is, VMRUN refuses it or it leaves by an exit that exists, and nothing of ours has changed.
 *
 * The guest's world is a nested one of its own: its code, which it cannot write, a stack, its page tables. All
 * exceptions and what would reach the machine are intercepted, whatever was changed; a timer ends what runs on. AMD
 * APM vol. 2 15.5.1. */
#include "lib/svm.h"

const char guest_name[] = "svm_random";

enum { P = 1, W = 2, U = 4, RUNS = 100000 };
#define PAGE __attribute__((aligned(4096)))
static u64 npml4[512] PAGE, npdpt[512] PAGE, npd[512] PAGE, npt[16][512] PAGE;
static u64 tables[4][512] PAGE, stack[512] PAGE;
static u64 canary[512] PAGE;
static u8 code[4096] PAGE;
static struct vmcb host PAGE;

SNIP(guest_code, "push %rax; pop %rbx; mov %cr0,%rcx; mov %rcx,%cr0; mov %cr3,%rcx; mov %rcx,%cr3; pushf; popf; sti; nop; cli; "
		 "mov (%rsp),%rdx; rdtsc; pause; mov %rdx,-8(%rsp); mov %cr8,%rax; mov %rax,%cr8");

static u64 seed = 0x9e3779b97f4a7c15;
static u64 any(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed * 0x2545f4914f6cdd1d;
}

static void map(const void *page, u64 bits)
{
	uptr at = (uptr)page;
	npd[at >> 21] = (uptr)npt[at >> 21] | P | W | U;
	npt[at >> 21][at >> 12 & 511] = (at & ~0xfffull) | bits;
}

static void world(void)
{
	npml4[0] = (uptr)npdpt | P | W | U;
	npdpt[0] = (uptr)npd | P | W | U;
	map(code, P | U);
	map(stack, P | W | U);
	for (unsigned k = 0; k < 4; k++)
		map(tables[k], P | W | U);
	memcpy(code, guest_code, 128);
}

static void guest_tables(void)
{
	uptr at = (uptr)code;
	memset(tables, 0, sizeof(tables));
	tables[0][0] = (uptr)tables[1] | P | W | U;
	tables[1][0] = (uptr)tables[2] | P | W | U;
	tables[2][at >> 21] = (uptr)tables[3] | P | W | U;
	for (unsigned k = 0; k < 512; k++)
		tables[3][k] = (at >> 21 << 21) | (u64)k << 12 | P | W | U;
	memset(stack, 0, sizeof(stack));
}

static void base(void)
{
	memset(&vmcb, 0, sizeof(vmcb));
	vmcb.iopm = (uptr)iopm;
	vmcb.msrpm = (uptr)msrpm;
	vmcb.asid = 1;
	vmcb.vector = 0x42;
	vmcb.np = 1;
	vmcb.ncr3 = (uptr)npml4;
	vmcb.cs = vmcb_flat(CODE, 0xa9b);
	vmcb.ds = vmcb.es = vmcb.ss = vmcb_flat(DATA, 0xc93);
	vmcb.gdtr.limit = vmcb.idtr.limit = 0xffff;
	vmcb.efer = rdmsr(EFER);
	vmcb.cr0 = read_cr0();
	vmcb.cr3 = (uptr)tables[0];
	vmcb.cr4 = read_cr4();
	vmcb.dr6 = 0xffff0ff0;
	vmcb.dr7 = 0x400;
	vmcb.rflags = 2;
	vmcb.rip = (uptr)code;
	vmcb.rsp = (uptr)stack + 2048;
	vmcb.pat = rdmsr(0x277);
	vmcb.tlb_control = 1;
}

/* What may be changed: all but the nested tables and the maps, which are this test's fence. */
static const struct { u16 at, size; } fields[] = {
	{ 0x00, 4 }, { 0x04, 4 }, { 0x0c, 4 }, { 0x10, 4 }, { 0x14, 4 }, { 0x3c, 2 }, { 0x3e, 2 }, { 0x50, 8 }, { 0x58, 4 }, { 0x5c, 1 },
	{ 0x60, 8 }, { 0x68, 8 }, { 0xa8, 8 }, { 0xb8, 8 }, { 0xc0, 4 }, { 0xc8, 8 }, { 0x400, 8 }, { 0x408, 8 }, { 0x410, 8 }, { 0x418, 8 },
	{ 0x420, 8 }, { 0x428, 8 }, { 0x430, 8 }, { 0x438, 8 }, { 0x460, 8 }, { 0x468, 8 }, { 0x480, 8 }, { 0x488, 8 }, { 0x4cb, 1 },
	{ 0x4d0, 8 }, { 0x548, 8 }, { 0x550, 8 }, { 0x558, 8 }, { 0x560, 8 }, { 0x568, 8 }, { 0x570, 8 }, { 0x578, 8 }, { 0x5d8, 8 },
	{ 0x5f8, 8 }, { 0x640, 8 }, { 0x668, 8 }, { 0x670, 8 }, { 0x678, 8 },
	{ 0x4d0, 8 }, { 0x548, 8 }, { 0x558, 8 }, { 0x570, 8 }, { 0x410, 8 }, /* once more what matters most */
};

static void change(void)
{
	unsigned k = any() % ARRAY_LEN(fields);
	u8 *p = (u8 *)&vmcb + fields[k].at;
	u64 v = 0;
	memcpy(&v, p, fields[k].size);
	switch (any() % 4) {
	case 0: case 1: v ^= 1ull << any() % (8 * fields[k].size); break;
	case 2: v ^= (1ull << any() % 32) | (1ull << any() % 32) | (1ull << any() % 32); break;
	default: v = any() >> any() % 64;
	}
	memcpy(p, &v, fields[k].size);
}

static void fence(void)
{
	vmcb.icpt[2] = ~0u;
	vmcb.icpt[3] |= 1u << (X_INTR - 96) | 1u << (X_NMI - 96) | 1u << (X_HLT - 96) | 1u << (X_IOIO - 96) | 1u << (X_MSR - 96) |
			1u << (X_TASK_SWITCH - 96) | 1u << (X_SHUTDOWN - 96);
	vmcb.icpt[4] = ~0u;
	vmcb.vintr |= V_INTR_MASKING;
}

static bool sound(u64 code)
{
	return code < 0xc0 || code == X_NPF || code == X_INVALID;
}

static bool on_tick(struct frame *f)
{
	if (f->vec != 0x70)
		return false;
	apic_write(0xb0, 0);
	return true;
}

int main(void)
{
	if (!svm_there()) {
		skip("svm_random", "this processor has no AMD-V");
		return 0;
	}
	svm_on();
	world();
	trap_hook = on_tick;
	memset(iopm, 0xff, sizeof(iopm));
	memset(msrpm, 0xff, sizeof(msrpm));
	vmsave(&host);
	apic_write(0xf0, 0x1ff);
	apic_write(0x3e0, 0xb);
	apic_write(0x320, 0x70);
	u64 cr0 = read_cr0(), cr3 = read_cr3(), cr4 = read_cr4(), efer = rdmsr(EFER), pat = rdmsr(0x277);
	unsigned refused = 0, left = 0, ended = 0, strange = 0, changed = 0, ticks = 0;
	for (unsigned n = 0; n < RUNS; n++) {
		if (n % 64 == 0)
			guest_tables();
		base();
		for (unsigned k = any() % 3 + 1; k; k--)
			change();
		fence();
		clgi();
		__asm__ volatile("sti");
		apic_write(0x380, 2000000);
		u64 exit = vmrun_once();
		apic_write(0x380, 0);
		stgi();
		__asm__ volatile("nop; cli");
		vmload(&host);
		refused += exit == X_INVALID;
		ended += exit == X_VMMCALL;
		ticks += exit == X_INTR;
		left += exit != X_INVALID && exit != X_VMMCALL;
		if (!sound(exit) && strange++ < 8)
			say("run %u: exit code %X\n", n, exit);
		changed += read_cr0() != cr0 || read_cr3() != cr3 || read_cr4() != cr4 || rdmsr(EFER) != efer || rdmsr(0x277) != pat || read_dr7() != 0x400;
	}
	for (unsigned k = 0; k < 512; k++)
		changed += canary[k] != 0;
	say("%u refused, %u to their end, %u others, %u of them by the timer\n", refused, ended, left, ticks);
	check("random VMCBs: exit codes that exist", !strange);
	check("random VMCBs: nothing of ours has changed", !changed);
	check("random VMCBs: of all kinds", refused > RUNS / 20 && ended > RUNS / 20 && left > RUNS / 20);
	return 0;
}
