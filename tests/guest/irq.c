/* Interrupts: two i8259, i8254, LAPIC and its timer, IOAPIC, TPR
 * and CR8, priorities, NMI blocking, HLT, x2APIC. Run with time that follows the instruction count,
 * so that a busy host loses no tick. Chips' datasheets; SDM vol. 3 6.7, 6.8, ch. 10. */
#include "guest.h"

const char guest_name[] = "irq";

static volatile u32 count[256], order[16], n_order;
static volatile u64 last_flags;
static bool nmi_nested;
static volatile u32 nmi_depth, nmi_max;
enum { NO_EOI = 1, PIC_EOI = 2 };
static u8 how[256];

static bool on_irq(struct frame *f)
{
	unsigned v = (unsigned)f->vec;
	if (v == NMI) {
		count[v]++;
		if (++nmi_depth > nmi_max)
			nmi_max = nmi_depth;
		if (nmi_nested && count[v] == 1) {
			apic_write(0x310, 0);
			apic_write(0x300, 0x4400);
			delay_us(100); /* it stays blocked until our IRET */
		}
		nmi_depth--;
		return true;
	}
	if (v < 0x20 || v == DONE)
		return false;
	count[v]++;
	if (n_order < 16)
		order[n_order++] = v;
	last_flags = f->flags;
	if (how[v] == PIC_EOI) {
		if (v >= 0x28)
			outb(0xa0, 0x20);
		outb(0x20, 0x20);
	} else if (how[v] != NO_EOI) {
		apic_write(0xb0, 0);
	}
	return true;
}

static void reset_counts(void)
{
	memset((void *)count, 0, sizeof(count));
	n_order = 0;
}
#define STI() __asm__ volatile("sti; nop; nop" : : : "memory")
#define CLI() __asm__ volatile("cli" : : : "memory")
static void window(void) { STI(); delay_us(50); CLI(); }
static void self_ipi(u8 v)
{
	apic_write(0x310, 0);
	apic_write(0x300, 0x44000 | v);
}

/* ---- i8259, i8254 ---------------------------------------------------------------------------- */

static void pic_init(void)
{
	outb(0x20, 0x11); outb(0x21, 0x20); outb(0x21, 4); outb(0x21, 1);
	outb(0xa0, 0x11); outb(0xa1, 0x28); outb(0xa1, 2); outb(0xa1, 1);
	outb(0x21, 0xff); outb(0xa1, 0xff);
	for (unsigned v = 0x20; v < 0x30; v++)
		how[v] = PIC_EOI;
}
static u8 pic_read(u16 port, u8 what) { outb(port, what); return inb(port); }
static void pit_rate(u8 mode, u16 n)
{
	outb(0x43, (u8)(0x30 | mode << 1));
	outb(0x40, (u8)n);
	outb(0x40, (u8)(n >> 8));
}

static void pic(void)
{
	pic_init();
	apic_write(0xf0, 0x1ff);
	apic_write(0x350, 0x700); /* LINT0: ExtINT */
	check_eq("i8259: mask reads back", inb(0x21), 0xff);
	reset_counts();
	pit_rate(2, 1193);
	outb(0x21, 0xfe);
	delay_us(3000);
	check_eq("IRQ 0 pending, IF clear: none taken", count[0x20], 0);
	check("i8259: IRR shows it", pic_read(0x20, 0x0a) & 1);
	STI();
	delay_us(20000);
	CLI();
	check("i8254 mode 2 through the i8259: 20 in 20 ms", count[0x20] >= 15 && count[0x20] <= 27);
	check("IF set in the frame", last_flags & FL_IF);
	outb(0x21, 0xff);
	reset_counts();
	window();
	check_eq("masked: none", count[0x20], 0);
	/* One shot. */
	outb(0x21, 0xff);
	pit_rate(0, 1193);
	delay_us(2000);
	reset_counts();
	outb(0x21, 0xfe);
	pit_rate(0, 1193);
	STI();
	delay_us(5000);
	CLI();
	check_eq("i8254 mode 0: once", count[0x20], 1);
	/* HLT. */
	reset_counts();
	pit_rate(0, 1193);
	u64 t = rdtsc();
	__asm__ volatile("sti; hlt; cli" : : : "memory");
	check("HLT wakes by IRQ 0", count[0x20] == 1 && rdtsc() > t);
	/* In service blocks the same and lower ones until EOI. */
	how[0x20] = NO_EOI;
	reset_counts();
	pit_rate(0, 100);
	STI();
	delay_us(1000);
	CLI();
	check_eq("i8259: ISR before EOI", pic_read(0x20, 0x0b) & 1, 1);
	pit_rate(0, 100);
	STI();
	delay_us(1000);
	CLI();
	check_eq("no second one before EOI", count[0x20], 1);
	outb(0x20, 0x60); /* specific EOI of 0 */
	check_eq("i8259: ISR after a specific EOI", pic_read(0x20, 0x0b) & 1, 0);
	how[0x20] = PIC_EOI;
	window();
	check_eq("then the second comes", count[0x20], 2);
	outb(0x21, 0xff);
	/* Latch and status. */
	pit_rate(2, 0xffff);
	delay_us(10); /* loaded by the next tick */
	outb(0x43, 0x00);
	u32 a = inb(0x40);
	a |= (u32)inb(0x40) << 8;
	delay_us(500);
	outb(0x43, 0x00);
	u32 b = inb(0x40);
	b |= (u32)inb(0x40) << 8;
	check("i8254: latched counts go down", a > b && a - b > 300 && a - b < 20000);
	outb(0x43, 0xe2);
	check_eq("i8254: read-back status: mode 2, both bytes", inb(0x40) & 0x3f, 0x34);
	/* The second chip: RTC periodic, IRQ 8. */
	outb(0x70, 0x0a); outb(0x71, 0x26);
	outb(0x70, 0x0b); outb(0x71, (inb(0x71) | 0x40));
	outb(0x70, 0x0c); inb(0x71);
	reset_counts();
	outb(0xa1, 0xfe);
	outb(0x21, 0xfb);
	STI();
	for (unsigned k = 0; k < 20; k++) {
		delay_us(1000);
		CLI();
		outb(0x70, 0x0c);
		inb(0x71);
		STI();
	}
	CLI();
	check("mc146818 periodic through the second i8259", count[0x28] >= 8 && count[0x28] <= 30);
	outb(0x70, 0x0b); outb(0x71, inb(0x71) & ~0x40);
	outb(0x21, 0xff); outb(0xa1, 0xff);
	apic_write(0x350, 0x10000);
}

/* ---- LAPIC ---------------------------------------------------------------------------------------- */

/* Over RAM that was just read: no cached translation may lead to the RAM any more, and back. */
static void lapic_over_ram(void)
{
	static u32 page[1024] __attribute__((aligned(4096)));
	volatile u32 *p = page;
	u64 base = rdmsr(0x1b);
	p[0x30 / 4] = 0x12345678;
	check_eq("RAM where the LAPIC will be", p[0x30 / 4], 0x12345678);
	wrmsr(0x1b, (base & 0xfff) | (uptr)page);
	u32 version = p[0x30 / 4];
	p[0x80 / 4] = 0x70;
	u64 cr8;
	__asm__ volatile("mov %%cr8,%0" : "=r"(cr8));
	p[0x80 / 4] = 0;
	wrmsr(0x1b, base);
	check_eq("LAPIC moved over RAM: version", version & 0xf0, 0x10);
	check_eq("LAPIC moved over RAM: a write reaches it", cr8, 7);
	check_eq("the RAM is back, unchanged", p[0x30 / 4], 0x12345678);
	check_eq("the LAPIC is back, too", apic_read(0x30), version);
}

static void lapic(void)
{
	check_eq("LAPIC version", apic_read(0x30) & 0xf0, 0x10);
	check("IA32_APIC_BASE: enabled, boot processor, fee00000", (rdmsr(0x1b) & 0xfffff900) == 0xfee00900);
	reset_counts();
	self_ipi(0x61);
	check_eq("self IPI waits for IF", count[0x61], 0);
	check("IRR shows it", apic_read(0x200 + 0x10 * 3) & 2);
	window();
	check_eq("then comes once", count[0x61], 1);
	check("IRR and ISR are clear after EOI", !(apic_read(0x230) & 2) && !(apic_read(0x130) & 2));
	/* Priority: higher vectors first. */
	reset_counts();
	self_ipi(0x45); self_ipi(0x95); self_ipi(0x65);
	window();
	check("highest vector first", n_order == 3 && order[0] == 0x95 && order[1] == 0x65 && order[2] == 0x45);
	/* TPR, CR8. */
	reset_counts();
	apic_write(0x80, 0x60);
	self_ipi(0x65); self_ipi(0x75);
	window();
	check("TPR 60 holds 65, not 75", count[0x65] == 0 && count[0x75] == 1);
	u64 cr8;
	__asm__ volatile("mov %%cr8,%0" : "=r"(cr8));
	check_eq("CR8 is TPR 7:4", cr8, 6);
	__asm__ volatile("mov %0,%%cr8" : : "r"(5ul));
	check_eq("TPR is CR8", apic_read(0x80), 0x50);
	window();
	check_eq("CR8 5 lets 65 through", count[0x65], 1);
	STI();
	__asm__ volatile("mov %0,%%cr8" : : "r"(15ul));
	self_ipi(0xe5);
	delay_us(50);
	check_eq("CR8 15 holds all", count[0xe5], 0);
	__asm__ volatile("mov %0,%%cr8; nop; nop" : : "r"(0ul) : "memory");
	delay_us(10);
	CLI();
	check_eq("lowered: at once", count[0xe5], 1);
	/* PPR with one in service. */
	how[0x65] = NO_EOI;
	reset_counts();
	self_ipi(0x65);
	window();
	check_eq("PPR is the vector in service", apic_read(0xa0) & 0xf0, 0x60);
	self_ipi(0x61); self_ipi(0x72);
	window();
	check("in service: the same class waits, a higher one does not", count[0x61] == 0 && count[0x72] == 1);
	apic_write(0xb0, 0);
	window();
	check_eq("after EOI", count[0x61], 1);
	how[0x65] = 0;
	/* Illegal vectors. */
	apic_write(0x280, 0);
	apic_write(0x370, 0x100fe);
	apic_write(0x300, 0x44005);
	apic_write(0x280, 0);
	check("ESR: vector 5 is illegal", apic_read(0x280) & 0x60);
	apic_write(0x280, 0);
	/* Software disable. */
	reset_counts();
	apic_write(0xf0, 0x0ff);
	self_ipi(0x66);
	check("software-disabled: LVTs are masked", apic_read(0x320) & 0x10000);
	apic_write(0xf0, 0x1ff);
	CLI();
	window();
	/* Timer. */
	apic_write(0x3e0, 0xb); /* divide by 1 */
	apic_write(0x320, 0x68 | 0x10000);
	apic_write(0x380, 0xffffffff);
	delay_us(1000);
	u32 per_ms = 0xffffffffu - apic_read(0x390);
	check("timer counts down", per_ms > 1000);
	reset_counts();
	apic_write(0x320, 0x68);
	apic_write(0x380, per_ms);
	STI();
	delay_us(5000);
	CLI();
	check_eq("one shot: once", count[0x68], 1);
	check_eq("count stays 0", apic_read(0x390), 0);
	reset_counts();
	apic_write(0x320, 0x20068);
	apic_write(0x380, per_ms);
	STI();
	while (count[0x68] < 20) /* one block for ever: it must be interrupted in itself */
		;
	CLI();
	apic_write(0x380, 0);
	check("periodic: again and again, into a loop that does nothing else", count[0x68] >= 20);
	window();
	reset_counts();
	delay_us(3000);
	window();
	check_eq("initial count 0 stops it", count[0x68], 0);
	apic_write(0x3e0, 0x3); /* divide by 16 */
	apic_write(0x320, 0x10068);
	apic_write(0x380, 0xffffffff);
	delay_us(1000);
	u32 slow = 0xffffffffu - apic_read(0x390);
	check("divider 16", slow > per_ms / 40 && slow < per_ms / 4);
	apic_write(0x380, 0);
	if (has(1, 2, 24)) {
		u64 a = rdtsc();
		delay_us(1000);
		u64 tsc_ms = rdtsc() - a;
		reset_counts();
		apic_write(0x320, 0x40069);
		wrmsr(0x6e0, rdtsc() + 2 * tsc_ms);
		check("deadline armed reads back", rdmsr(0x6e0) != 0);
		__asm__ volatile("sti; hlt; cli" : : : "memory");
		check_eq("TSC deadline wakes HLT", count[0x69], 1);
		check_eq("deadline MSR reads 0 after it", rdmsr(0x6e0), 0);
		reset_counts();
		wrmsr(0x6e0, 1);
		window();
		check_eq("a deadline in the past: at once", count[0x69], 1);
		reset_counts();
		wrmsr(0x6e0, rdtsc() + tsc_ms);
		wrmsr(0x6e0, 0);
		STI();
		delay_us(3000);
		CLI();
		check_eq("deadline 0 disarms", count[0x69], 0);
		apic_write(0x320, 0x10069);
	} else {
		skip("TSC deadline", "not there");
	}
}

/* ---- IOAPIC -------------------------------------------------------------------------------------------- */

static void io_write(u32 reg, u32 v) { *(volatile u32 *)0xfec00000 = reg; *(volatile u32 *)0xfec00010 = v; }
static u32 io_read(u32 reg) { *(volatile u32 *)0xfec00000 = reg; return *(volatile u32 *)0xfec00010; }

static void ioapic(void)
{
	check_eq("IOAPIC: 24 pins", io_read(1) >> 16 & 0xff, 23);
	io_write(0x10 + 4, 0x12345678 & 0x1ffff);
	check("redirection entry: read-only bits stay 0", !(io_read(0x14) & 0x5000));
	io_write(0x15, 0);
	io_write(0x14, 0x0006a); /* pin 2: ISA IRQ 0, edge */
	reset_counts();
	pit_rate(2, 1193);
	STI();
	delay_us(10000);
	CLI();
	check("i8254 through IOAPIC pin 2", count[0x6a] >= 7 && count[0x6a] <= 15);
	io_write(0x14, 0x1006a);
	reset_counts();
	STI();
	delay_us(3000);
	CLI();
	check("masked pin", count[0x6a] <= 1);
	/* ns16550's transmitter empty, IRQ 4. */
	io_write(0x19, 0);
	io_write(0x18, 0x6b);
	reset_counts();
	outb(0x3fc, 0x0b);
	outb(0x3f9, 2);
	window();
	check_eq("ns16550: THR empty through pin 4", count[0x6b], 1);
	check_eq("ns16550: IIR says so, and that clears it", inb(0x3fa) & 0xf, 2 * (count[0x6b] == 1));
	outb(0x3f9, 0);
	io_write(0x18, 0x10000);
}

/* ---- NMI ------------------------------------------------------------------------------------------------------- */

static void nmis(void)
{
	reset_counts();
	nmi_nested = true;
	nmi_max = 0;
	apic_write(0x310, 0);
	apic_write(0x300, 0x4400);
	delay_us(1000);
	check("NMI within its handler waits for the IRET", count[NMI] == 2 && nmi_max == 1);
	nmi_nested = false;
}

/* ---- x2APIC -------------------------------------------------------------------------------------------------------- */

static void x2apic(void)
{
	if (!has(1, 2, 21)) {
		skip("x2APIC", "not there");
		return;
	}
	TRY(rdmsr(0x802));
	check_trap("x2APIC MSRs in xAPIC mode: #GP(0)", GP, 0);
	u32 id = apic_read(0x20) >> 24;
	wrmsr(0x1b, rdmsr(0x1b) | 0xc00);
	check_eq("x2APIC ID", rdmsr(0x802), id);
	check_eq("x2APIC LDR is made of the ID", rdmsr(0x80d), 1);
	TRY(wrmsr(0x802, 1));
	check_trap("write of a read-only register: #GP(0)", GP, 0);
	TRY(wrmsr(0x80b, 1));
	check_trap("EOI with another value than 0: #GP(0)", GP, 0);
	TRY(wrmsr(0x808, 0x100));
	check_trap("TPR bit 8: #GP(0)", GP, 0);
	TRY(rdmsr(0x80e));
	check_trap("DFR is not there: #GP(0)", GP, 0);
	TRY(rdmsr(0x831));
	check_trap("ICR high is not there: #GP(0)", GP, 0);
	TRY(wrmsr(0x1b, (rdmsr(0x1b) & ~0xc00ull) | 0x800));
	check_trap("from x2APIC to xAPIC: #GP(0)", GP, 0);
	trap.vec = NONE;
	wrmsr(0x830, 0x40000 | 0x77);
	reset_counts();
	how[0x77] = how[0x78] = NO_EOI;
	STI();
	delay_us(50);
	CLI();
	check_eq("self by ICR", count[0x77], 1);
	wrmsr(0x80b, 0);
	wrmsr(0x83f, 0x78);
	STI();
	delay_us(50);
	CLI();
	check_eq("SELF IPI register", count[0x78], 1);
	check("ISR by MSR", rdmsr(0x813) & 1 << 24);
	wrmsr(0x80b, 0);
	wrmsr(0x1b, rdmsr(0x1b) & ~0xc00ull);
	wrmsr(0x1b, rdmsr(0x1b) | 0x800);
	check("off, then xAPIC again", (rdmsr(0x1b) & 0xc00) == 0x800);
}

int main(void)
{
	trap_hook = on_irq;
	pic();
	lapic();
	lapic_over_ram();
	ioapic();
	nmis();
	x2apic();
	return 0;
}
