/* The smallest user of /dev/kvm, for a guest that is a host itself: a program in a virtual machine of 64 MiB that
 * comes out by each of the usual ways, so many times, and says itself whether all was as it should be.
 *
 *     rounds [COUNT [ticks]]
 *
 * Each part of the program is run COUNT times (1000). Prints a line for each, with `ticks` also how many of the
 * processor's one time takes, then "rounds: ok"; exit status 0. What comes out to here: port I/O, MMIO, HLT, an interrupt
 * that waits for its window. What KVM itself answers: VMCALL or VMMCALL, CPUID, and page faults and CR3 where it shadows
 * the page tables. The interface: Documentation/virt/kvm/api.rst of the kernel. */
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define MEMORY (64ul << 20)
enum { AT_CODE = 0x1000, AT_GDT = 0x2000, AT_IDT = 0x3000, AT_PML4 = 0x4000, AT_PDPT = 0x5000, AT_PD = 0x6000, AT_PML4_TOO = 0x7000, AT_STACK = 0x10000,
       AT_DATA = 0x200000, AT_MMIO = 0x8000000, AT_NOTHING = 0x40000000 };
enum { PORT_PART = 0x10, PORT_VALUE = 0x11, PORT_FAILED = 0x12, VECTOR = 0x40 };

/* ---- the program inside ---------------------------------------------------------------------- */

/* rbp: COUNT, rbx: 1 for VMMCALL, 0 for VMCALL. Port 10h is told of each part's end (its number in al), 12h of a
 * failure. r15 counts what handlers are there for. */
asm(".pushsection .rodata\n"
    ".globl guest_start, guest_end, guest_page_fault, guest_interrupt\n"
    "guest_start:\n"
    ".macro part n\n"
    "	mov $\\n, %al\n"
    "	out %al, $0x10\n"
    "	mov %rbp, %r12\n"
    ".endm\n"
    ".macro again to\n"
    "	dec %r12\n"
    "	jnz \\to\n"
    ".endm\n"
    "	part 0\n"
    "1:	mov $0x7fff, %eax\n" /* no call of that number: -KVM_ENOSYS */
    "	test %rbx, %rbx\n"
    "	jz 2f\n"
    "	vmmcall\n"
    "	jmp 3f\n"
    "2:	vmcall\n"
    "3:	cmp $-1000, %rax\n"
    "	jne failed\n"
    "	again 1b\n"
    "	part 1\n"
    "1:	xor %eax, %eax\n"
    "	push %rbx\n"
    "	cpuid\n"
    "	pop %rbx\n"
    "	test %eax, %eax\n"
    "	jz failed\n"
    "	again 1b\n"
    "	part 2\n"
    "1:	mov %r12d, %eax\n" /* what was written less one comes back */
    "	out %eax, $0x11\n"
    "	in $0x11, %eax\n"
    "	lea -1(%r12), %ecx\n"
    "	cmp %ecx, %eax\n"
    "	jne failed\n"
    "	again 1b\n"
    "	part 3\n"
    "	mov $0x8000000, %edi\n"
    "1:	mov %r12d, 8(%rdi)\n"
    "	mov 8(%rdi), %eax\n"
    "	lea -1(%r12), %ecx\n"
    "	cmp %ecx, %eax\n"
    "	jne failed\n"
    "	again 1b\n"
    "	part 4\n"
    "1:	hlt\n"
    "	again 1b\n"
    "	part 5\n" /* an interrupt for each; the host sends one at each HLT */
    "	xor %r15d, %r15d\n"
    "1:	cli\n"
    "	mov $1, %al\n"
    "	out %al, $0x11\n" /* asks for it: it waits for the STI */
    "	lea 1(%r15), %r14\n"
    "	sti\n"
    "	nop\n"
    "	nop\n"
    "	cli\n"
    "	cmp %r14, %r15\n"
    "	jne failed\n"
    "	again 1b\n"
    "	part 6\n"
    "	xor %r15d, %r15d\n"
    "1:	movb $0, 0x40000000\n" /* 8 bytes */
    "	again 1b\n"
    "	cmp %rbp, %r15\n"
    "	jne failed\n"
    "	part 7\n" /* two address spaces that are the same */
    "	mov $0x4000, %eax\n"
    "	mov $0x7000, %ecx\n"
    "1:	mov %rcx, %cr3\n"
    "	xchg %rax, %rcx\n"
    "	mov 0x200000, %edx\n"
    "	again 1b\n"
    "	part 8\n" /* memory */
    "1:	mov $0x200000, %edi\n"
    "	mov $0x400000, %ecx\n"
    "	mov %r12, %rax\n"
    "2:	mov %rax, (%rdi)\n"
    "	add $4096, %rdi\n"
    "	cmp %rcx, %rdi\n"
    "	jb 2b\n"
    "	mov $0x200000, %edi\n"
    "2:	cmp %rax, (%rdi)\n"
    "	jne failed\n"
    "	add $4096, %rdi\n"
    "	cmp %rcx, %rdi\n"
    "	jb 2b\n"
    "	again 1b\n"
    "	part 9\n"
    "failed:	mov %r12d, %eax\n"
    "	out %eax, $0x12\n"
    "	hlt\n"
    "guest_page_fault:\n"
    "	inc %r15\n"
    "	addq $8, 8(%rsp)\n"
    "	add $8, %rsp\n"
    "	iretq\n"
    "guest_interrupt:\n"
    "	inc %r15\n"
    "	iretq\n"
    "guest_end:\n"
    ".popsection\n");
extern const char guest_start[], guest_end[], guest_page_fault[], guest_interrupt[];
static const char *const part_names[] = { "hypercall", "CPUID", "port", "MMIO", "HLT", "interrupt", "page fault", "CR3", "memory" };
enum { PARTS = 9 };

/* ---- the machine --------------------------------------------------------------------------------- */

struct machine { int vm, vcpu; unsigned char *memory; struct kvm_run *run; };

static int ask(int fd, unsigned long request, unsigned long arg, const char *what)
{
	int r = ioctl(fd, request, arg);
	if (r < 0)
		err(1, "%s", what);
	return r;
}

static void put(struct machine *m, unsigned long at, uint64_t v) { memcpy(m->memory + at, &v, 8); }

static void gate(struct machine *m, unsigned vector, const char *handler)
{
	uint64_t to = AT_CODE + (uint64_t)(handler - guest_start);
	put(m, AT_IDT + 16 * vector, (to & 0xffff) | 8 << 16 | 0x8e00ull << 32 | (to >> 16) << 48);
	put(m, AT_IDT + 16 * vector + 8, 0);
}

static void load(struct machine *m)
{
	memcpy(m->memory + AT_CODE, guest_start, (size_t)(guest_end - guest_start));
	put(m, AT_GDT + 8, 0x00af9b000000ffff);
	put(m, AT_GDT + 16, 0x00cf93000000ffff);
	gate(m, 14, guest_page_fault);
	gate(m, VECTOR, guest_interrupt);
	put(m, AT_PML4, AT_PDPT | 3);
	put(m, AT_PML4_TOO, AT_PDPT | 3);
	put(m, AT_PDPT, AT_PD | 3);
	for (unsigned k = 0; k <= AT_MMIO >> 21; k++)
		put(m, AT_PD + 8 * k, (uint64_t)k << 21 | 0x83);
}

static void set_registers(struct machine *m, unsigned count)
{
	struct kvm_sregs s;
	ask(m->vcpu, KVM_GET_SREGS, (unsigned long)&s, "KVM_GET_SREGS");
	struct kvm_segment code = { .selector = 8, .limit = ~0u, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
	struct kvm_segment data = { .selector = 16, .limit = ~0u, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1 };
	s.cs = code;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	s.gdt = (struct kvm_dtable){ .base = AT_GDT, .limit = 23 };
	s.idt = (struct kvm_dtable){ .base = AT_IDT, .limit = 0xfff };
	s.cr0 = 0x80050033;
	s.cr3 = AT_PML4;
	s.cr4 = 0x620;
	s.efer = 0x500;
	ask(m->vcpu, KVM_SET_SREGS, (unsigned long)&s, "KVM_SET_SREGS");
	uint32_t eax = 0, ebx, ecx, edx;
	asm("cpuid" : "+a"(eax), "=b"(ebx), "=c"(ecx), "=d"(edx));
	struct kvm_regs r = { .rip = AT_CODE, .rsp = AT_STACK, .rflags = 2, .rbp = count, .rbx = ebx == 0x68747541 /* Auth */ };
	ask(m->vcpu, KVM_SET_REGS, (unsigned long)&r, "KVM_SET_REGS");
}

static void set_cpuid(int kvm, struct machine *m)
{
	struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entries[256]; } c = { .head.nent = 256 };
	ask(kvm, KVM_GET_SUPPORTED_CPUID, (unsigned long)&c, "KVM_GET_SUPPORTED_CPUID");
	ask(m->vcpu, KVM_SET_CPUID2, (unsigned long)&c, "KVM_SET_CPUID2");
}

static void build(struct machine *m, unsigned count)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		err(1, "/dev/kvm");
	if (ask(kvm, KVM_GET_API_VERSION, 0, "KVM_GET_API_VERSION") != 12)
		errx(1, "another KVM than that of the last eighteen years");
	m->vm = ask(kvm, KVM_CREATE_VM, 0, "KVM_CREATE_VM");
	m->memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (m->memory == MAP_FAILED)
		err(1, "memory");
	struct kvm_userspace_memory_region r = { .memory_size = MEMORY, .userspace_addr = (uint64_t)m->memory };
	ask(m->vm, KVM_SET_USER_MEMORY_REGION, (unsigned long)&r, "KVM_SET_USER_MEMORY_REGION");
	ask(m->vm, KVM_SET_TSS_ADDR, 0xfffbd000, "KVM_SET_TSS_ADDR");
	m->vcpu = ask(m->vm, KVM_CREATE_VCPU, 0, "KVM_CREATE_VCPU");
	int size = ask(kvm, KVM_GET_VCPU_MMAP_SIZE, 0, "KVM_GET_VCPU_MMAP_SIZE");
	m->run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
	if (m->run == MAP_FAILED)
		err(1, "the vCPU's page");
	set_cpuid(kvm, m);
	load(m);
	set_registers(m, count);
}

/* ---- what comes out ---------------------------------------------------------------------------------- */

struct part { unsigned exits, asked, taken; uint64_t since; };

/* What the program writes comes back less one. */
static void answer(uint32_t *kept, void *data, unsigned size, bool write)
{
	if (write) {
		*kept = 0;
		memcpy(kept, data, size);
	} else {
		uint32_t v = *kept - 1;
		memcpy(data, &v, size);
	}
}

/* An interrupt that was asked for is given as soon as it can be taken. */
static void interrupt(struct machine *m, struct part *p)
{
	if (p->asked == p->taken)
		return;
	m->run->request_interrupt_window = !m->run->ready_for_interrupt_injection;
	if (!m->run->ready_for_interrupt_injection)
		return;
	struct kvm_interrupt i = { .irq = VECTOR };
	ask(m->vcpu, KVM_INTERRUPT, (unsigned long)&i, "KVM_INTERRUPT");
	p->taken++;
}

static void end_part(unsigned number, const struct part *p, unsigned count, bool ticks)
{
	bool out = number >= 2 && number <= 5;
	if (out ? p->exits < count : p->exits)
		errx(1, "%s: %u exits for %u times", part_names[number], p->exits, count);
	printf("rounds: %u times %s, %u exits", count, part_names[number], p->exits);
	if (ticks)
		printf(", %lu ticks each", (unsigned long)((__builtin_ia32_rdtsc() - p->since) / count));
	putchar('\n');
}

static void run(struct machine *m, unsigned count, bool ticks)
{
	struct part p = { 0 };
	int part = -1;
	uint32_t kept = 0;
	for (;;) {
		ask(m->vcpu, KVM_RUN, 0, "KVM_RUN");
		void *io = (char *)m->run + m->run->io.data_offset;
		switch (m->run->exit_reason) {
		case KVM_EXIT_IO:
			if (m->run->io.port == PORT_FAILED)
				errx(1, "%s: wrong, %u before the end", part < 0 ? "start" : part_names[part], *(uint32_t *)io);
			if (m->run->io.port == PORT_PART) {
				if (part >= 0)
					end_part((unsigned)part, &p, count, ticks);
				if (*(unsigned char *)io != ++part)
					errx(1, "part %u begins after %d", *(unsigned char *)io, part - 1);
				if (part == PARTS)
					return;
				p = (struct part){ .since = __builtin_ia32_rdtsc() };
				break;
			}
			p.exits++;
			if (part == 5)
				p.asked++;
			else
				answer(&kept, io, m->run->io.size, m->run->io.direction == KVM_EXIT_IO_OUT);
			break;
		case KVM_EXIT_MMIO:
			if (m->run->mmio.phys_addr != AT_MMIO + 8)
				errx(1, "MMIO at %#llx", m->run->mmio.phys_addr);
			p.exits++;
			answer(&kept, m->run->mmio.data, m->run->mmio.len, m->run->mmio.is_write);
			break;
		case KVM_EXIT_HLT:
			p.exits++;
			break;
		case KVM_EXIT_IRQ_WINDOW_OPEN:
			break;
		default:
			errx(1, "KVM_RUN ends with %u", m->run->exit_reason);
		}
		interrupt(m, &p);
	}
}

int main(int argc, char **argv)
{
	struct machine m;
	unsigned count = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 0) : 1000;
	build(&m, count);
	run(&m, count, argc > 2);
	puts("rounds: ok");
	return 0;
}
