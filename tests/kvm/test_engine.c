/* The kvm engine against the fake KVM: guests, failures of every request, exits that nobody wants, storms of signals;
 * and what is measured of a KVM.
 *
 *   test_kvm_engine                                the cases below
 *   test_kvm_engine --guest ELF LOG CPUS [HOP]     a bare-metal guest of tests/guest; its exit status (tests/kvm/run)
 *   test_kvm_engine --options ENGINE               (before --guest) instead of "kvm" */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "test.h"
#include "fake_kvm.h"
#include "kvm/probe_api.h"
#include "machine/machine.h"

static struct fake_kvm *fake;

static int up(void **state)
{
	fake = fake_kvm_new();
	kvm_host_replace(fake_kvm_host(fake));
	alarm(120); /* against hangs */
	return 0;
}

static int down(void **state)
{
	alarm(0);
	kvm_host_replace(NULL);
	if (fake_kvm_complaint(fake)[0])
		print_error("against the rules of KVM: %s\n", fake_kvm_complaint(fake));
	if (fake_kvm_open_handles(fake))
		print_error("%u handles are open\n", fake_kvm_open_handles(fake));
	int wrong = fake_kvm_complaint(fake)[0] || fake_kvm_open_handles(fake);
	fake_kvm_free(fake);
	return wrong;
}

/* ---- machines -------------------------------------------------------------------------------------- */

static char kernel_file[] = "/tmp/ring3-kvm-XXXXXX";

static void put_kernel(const u8 *code, size_t n)
{
	static bool made;
	int fd = made ? -1 : mkstemp(kernel_file);
	made = true;
	if (fd >= 0)
		close(fd);
	FILE *f = fopen(kernel_file, "wb");
	assert_non_null(f);
	assert_int_equal(fwrite(code, 1, n, f), n);
	fclose(f);
}

/* 16-bit code at 7c00h; ends with status 33. */
static const u8 counting[] = {
	0xb9, 0xc8, 0x00, /* mov cx, 200 */
	0xe4, 0x61,       /* in al, 0x61 */
	0xe6, 0x80,       /* out 0x80, al */
	0xe2, 0xfa,       /* loop to the IN */
	0xb0, 0x10,       /* mov al, 0x10 */
	0xe6, 0xf4,       /* out 0xf4, al */
	0xf4, 0xeb, 0xfd, /* hlt; jmp to it */
};
enum { COUNTED = 33 };

static struct vm_config config(const char *engine)
{
	struct vm_config c = { .mem_bytes = 16 << 20, .cpus = 1, .engine = (char *)engine, .n_serial = 1, .sandbox = 2 };
	c.kernel.path = kernel_file;
	c.kernel.format = (char *)"flat";
	c.kernel.mode = 16;
	c.serial[0].kind = (char *)"none";
	return c;
}

/* The exit status; -1: the machine was not made, and *e says why. */
static int run(const struct vm_config *c, char *end, size_t cap, struct error *e)
{
	int status = -1;
	struct machine *m = machine_new(c, e);
	if (!m)
		return -1;
	machine_run(m, &status);
	snprintf(end, cap, "%s", machine_end_text(m));
	machine_free(m);
	return status;
}

static int run_counting(const char *engine, char *end, size_t cap, struct error *e)
{
	put_kernel(counting, sizeof(counting));
	struct vm_config c = config(engine);
	return run(&c, end, cap, e);
}

/* ---- the cases ------------------------------------------------------------------------------------------ */

static void runs_to_its_end(void **state)
{
	char end[512];
	struct error e;
	assert_int_equal(run_counting("kvm", end, sizeof(end), &e), COUNTED);
	assert_true(fake_kvm_count(fake, KVM_RUN) > 400); /* an exit for each port access */
}

/* One NMI, or two that are due at one boundary: each is taken. */
static void one_nmi_and_two(void **state)
{
	static const u8 handler[] = { 0xff, 0x06, 0x00, 0x05, 0xcf }; /* inc word [0x500]; iret */
	static struct mem mem;
	static struct clock clk;
	static struct cpu_model model;
	static struct cpu_hooks hooks;
	struct error e;
	assert_true(mem_init(&mem, 1 << 20, &e) && clock_init(&clk, false, &e) && cpu_model_parse(&model, "max", &clk, &e));
	assert_true(kvm_engine.fit_model(&model, NULL, &e));
	struct cpu *c = cpu_new(0, &mem, &clk, &model, &hooks);
	memcpy(mem.ram + 0x1000, handler, sizeof(handler));
	st32(mem.ram + 4 * 2, 0x1000);
	mem.ram[0x2000] = 0xf4; /* hlt */
	c->seg[S_CS].sel = 0;
	c->seg[S_CS].base = 0;
	c->rip = 0x2000;
	c->regs[R_SP] = 0x3000;
	cpu_update_mode(c);
	assert_true(kvm_engine.vcpu_init(c, &e));
	for (unsigned n = 1; n <= 2; n++) {
		st16(mem.ram + 0x500, 0);
		c->rip = 0x2000;
		c->activity = ACT_RUN;
		for (unsigned k = 0; k < n; k++)
			cpu_post_event(c, EV_NMI);
		assert_int_equal(kvm_engine.run(c), RUN_HALT);
		assert_int_equal(ld16(mem.ram + 0x500), n);
		assert_int_equal(c->rip, 0x2001);
	}
	kvm_engine.vcpu_destroy(c);
	cpu_free(c);
	clock_destroy(&clk);
	mem_destroy(&mem);
}

/* One that waits while the guest takes none comes as soon as it does, if nothing else exits. */
static void an_interrupt_that_waits(void **state)
{
	static const u8 waiting[] = {
		0xfa, 0x31, 0xc0, 0x8e, 0xd8,                           /* cli; xor ax, ax; mov ds, ax */
		0xc7, 0x06, 0x80, 0x00, 0x49, 0x7c,                     /* mov word [0x80], handler */
		0x8c, 0x0e, 0x82, 0x00,                                 /* mov [0x82], cs */
		0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21,         /* the 8259: vectors from 0x20, */
		0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6, 0x21,
		0xb0, 0xfe, 0xe6, 0x21,                                 /* IRQ 0 alone */
		0xb0, 0x30, 0xe6, 0x43, 0xb0, 0x0a, 0xe6, 0x40, 0xb0, 0x00, 0xe6, 0x40, /* the 8254's counter 0, once, 10 */
		0xb0, 0x0a, 0xe6, 0x20,                                 /* reads are of the IRR */
		0xe4, 0x20, 0xa8, 0x01, 0x74, 0xfa,                     /* in al, 0x20; test al, 1; jz to the IN */
		0x66, 0xb9, 0x20, 0xa1, 0x07, 0x00, 0xfb,               /* mov ecx, 500000; sti */
		0x66, 0x49, 0x75, 0xfc,                                 /* dec ecx; jnz to it */
		0xb0, 0x11, 0xe6, 0xf4, 0xf4,                           /* no interrupt: another status */
		0xb0, 0x10, 0xe6, 0xf4, 0xf4,                           /* handler: mov al, 0x10; out 0xf4, al */
	};
	char end[512];
	struct error e;
	put_kernel(waiting, sizeof(waiting));
	struct vm_config c = config("kvm");
	assert_int_equal(run(&c, end, sizeof(end), &e), COUNTED);
}

/* As Linux gives up making a VM for a signal. */
static void a_signal_as_the_vm_is_made(void **state)
{
	char end[512];
	struct error e;
	fake_kvm_fail(fake, KVM_CREATE_VM, 0, EINTR);
	assert_int_equal(run_counting("kvm", end, sizeof(end), &e), COUNTED);
	assert_int_equal(fake_kvm_count(fake, KVM_CREATE_VM), 2);
}

/* EINTR again and again, wherever a signal may come. */
static void storms_of_signals(void **state)
{
	char end[512];
	struct error e;
	for (unsigned n = 1; n <= 4; n++) {
		fake_kvm_storm(fake, n);
		assert_int_equal(run_counting("kvm", end, sizeof(end), &e), COUNTED);
	}
}

/* Each request that the engine makes, the first to the third time: an error that names it, or the end of the machine
 * with status 70, or it can do without. */
static void each_request_fails_once(void **state)
{
	static const struct { unsigned long number; const char *name; bool may_do_without; unsigned times; } requests[] = {
#define R(name, without) { name, #name, without, 3 }
#define ONCE(name, without) { name, #name, without, 1 } /* the next time is after the guest's end */
		R(FAKE_OPEN, false), R(KVM_GET_API_VERSION, false), R(KVM_CHECK_EXTENSION, false), R(KVM_CREATE_VM, false), R(KVM_GET_VCPU_MMAP_SIZE, true),
		R(KVM_GET_SUPPORTED_CPUID, false), R(KVM_ENABLE_CAP, false), R(KVM_X86_SET_MSR_FILTER, false), R(KVM_SET_USER_MEMORY_REGION, false),
		R(KVM_CREATE_VCPU, false), R(KVM_SET_CPUID2, false), R(KVM_SET_REGS, false), R(KVM_SET_SREGS2, false), R(KVM_SET_XSAVE, false),
		R(KVM_SET_XCRS, false), R(KVM_SET_MSRS, true), R(KVM_SET_DEBUGREGS, false), R(KVM_SET_VCPU_EVENTS, false), ONCE(KVM_GET_REGS, false),
		ONCE(KVM_GET_SREGS2, false), ONCE(KVM_GET_XSAVE, false), ONCE(KVM_GET_XCRS, false), R(KVM_GET_MSRS, true), ONCE(KVM_GET_DEBUGREGS, false),
		ONCE(KVM_GET_VCPU_EVENTS, false), R(KVM_HAS_DEVICE_ATTR, true), R(KVM_SET_DEVICE_ATTR, false), R(KVM_RUN, false),
#undef R
#undef ONCE
	};
	char end[512];
	struct error e;
	for (unsigned k = 0; k < ARRAY_LEN(requests); k++)
		for (unsigned n = 0; n < requests[k].times; n++) {
			unsigned before = fake_kvm_count(fake, requests[k].number);
			strcpy(e.msg, "");
			fake_kvm_fail(fake, requests[k].number, n, ENOMEM);
			fake_kvm_exit(fake, KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_EMULATION, 50); /* the interpreter does one: state goes out and in */
			int status = run_counting("kvm", end, sizeof(end), &e);
			bool came = fake_kvm_count(fake, requests[k].number) > before + n;
			fake_kvm_fail(fake, 0, 0, 0);
			if (status == COUNTED && (!came || requests[k].may_do_without))
				continue;
			if (status == -1 && !e.msg[0])
				fail_msg("%s, time %u: no machine, and no reason", requests[k].name, n);
			if (status != -1 && (status != 70 || !end[0]))
				fail_msg("%s, time %u: status %d (%s)", requests[k].name, n, status, end);
			if (!strstr(status == 70 ? end : e.msg, strerror(ENOMEM)) && requests[k].number != KVM_CHECK_EXTENSION && requests[k].number != KVM_GET_API_VERSION)
				fail_msg("%s, time %u: the reason is not told: %s", requests[k].name, n, status == 70 ? end : e.msg);
			if (fake_kvm_open_handles(fake))
				fail_msg("%s, time %u: %u handles stay open", requests[k].name, n, fake_kvm_open_handles(fake));
		}
}

static void exits_that_nobody_wants(void **state)
{
	static const struct { u32 reason; u64 subcode; int status; const char *word; } exits[] = {
		{ KVM_EXIT_SHUTDOWN, 0, 66, "triple fault" },
		{ KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_DELIVERY_EV, 70, "internal error 3" },
		{ KVM_EXIT_INTERNAL_ERROR, 99, 70, "internal error 99" },
		{ KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_EMULATION, COUNTED, "" }, /* the interpreter does that instruction */
		{ KVM_EXIT_FAIL_ENTRY, 0x80000021, 70, "0x80000021" },
		{ KVM_EXIT_UNKNOWN, 0, 70, "KVM" },
		{ KVM_EXIT_SYSTEM_EVENT, 0, 70, "system event" },
		{ KVM_EXIT_HYPERCALL, 0, 70, "exit 3" },
		{ KVM_EXIT_INTR, 0, COUNTED, "" },
	};
	char end[512];
	struct error e;
	for (unsigned k = 0; k < ARRAY_LEN(exits); k++)
		for (unsigned n = 0; n < 200; n += 66) {
			fake_kvm_exit(fake, exits[k].reason, exits[k].subcode, n);
			int status = run_counting("kvm", end, sizeof(end), &e);
			if (status != exits[k].status || (status != COUNTED && !strstr(end, exits[k].word)))
				fail_msg("exit %u, %#llx, at entry %u: status %d: %s", exits[k].reason, (unsigned long long)exits[k].subcode, n, status, end);
		}
}

static void engine_hops(void **state)
{
	static const char *const ways[][2] = { { "kvm", "interp" }, { "kvm", "bt" }, { "bt", "kvm" }, { "interp", "kvm" }, { "kvm", "kvm" } };
	static const u8 long_counting[] = {
		0x66, 0x31, 0xc0,                               /* xor eax, eax */
		0x66, 0xb9, 0x40, 0x0d, 0x03, 0x00,             /* mov ecx, 200000 */
		0x66, 0x01, 0xc8,                               /* add eax, ecx */
		0x66, 0x49, 0x75, 0xf9,                         /* dec ecx; jnz */
		0x66, 0x3d, 0xa0, 0x4e, 0x19, 0xa8,             /* cmp eax, the low half of the sum */
		0x74, 0x04, 0xb0, 0x11, 0xeb, 0x02,             /* je to the 0x10; mov al, 0x11; jmp to the OUT */
		0xb0, 0x10, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd,
	};
	char end[512];
	struct error e;
	put_kernel(long_counting, sizeof(long_counting));
	for (unsigned k = 0; k < ARRAY_LEN(ways); k++) {
		struct vm_config c = config(ways[k][0]);
		c.hop = (struct hop_config){ (char *)ways[k][1], 3000 };
		int status = run(&c, end, sizeof(end), &e);
		if (status != COUNTED)
			fail_msg("%s and %s: status %d: %s", ways[k][0], ways[k][1], status, status < 0 ? e.msg : end);
	}
	assert_true(fake_kvm_count(fake, KVM_CREATE_VM) >= 5);
}

/* Neither there nor back: the machine ends, and its statistics do not look at an engine that is gone. */
static void a_hop_fails_both_ways(void **state)
{
	static const u8 forever[] = { 0xeb, 0xfe };
	struct vm_config c = config("kvm");
	struct error e;
	int status;
	put_kernel(forever, sizeof(forever));
	c.hop = (struct hop_config){ (char *)"kvm", 3000 };
	c.stats = true;
	struct machine *m = machine_new(&c, &e);
	assert_non_null(m);
	fake_kvm_lack(fake, KVM_CAP_XSAVE);
	machine_run(m, &status);
	fake_kvm_lack(fake, 0);
	machine_pause(m);
	machine_resume(m); /* of somebody's who does not know yet: nothing runs */
	machine_print_stats(m);
	assert_int_equal(status, 70);
	assert_non_null(strstr(machine_end_text(m), "no engine"));
	machine_free(m);
}

/* What KVM would do behind our back: a hypervisor in the guest, and the TSC deadline, whose MSR it does not filter. */
static void stays_out_of_the_model(void **state)
{
	static const char *const asked[][2] = { { "max,+vmx", "vmx" }, { "max,+svm", "svm" } };
	struct error e;
	put_kernel(counting, sizeof(counting));
	for (unsigned k = 0; k < ARRAY_LEN(asked); k++) {
		struct vm_config c = config("kvm");
		char end[512];
		c.cpu = (char *)asked[k][0];
		assert_int_equal(run(&c, end, sizeof(end), &e), -1);
		assert_non_null(strstr(e.msg, asked[k][1]));
	}
	for (unsigned k = 0; k < 2; k++) {
		struct clock clock;
		struct cpu_model m;
		assert_true(clock_init(&clock, false, &e));
		assert_true(cpu_model_parse(&m, k ? "max,vendor=amd" : "max,vendor=intel", &clock, &e));
		assert_true(m.has[FEAT_VMX] || m.has[FEAT_SVM]);
		fake_kvm_offer(fake, &m);
		assert_true(kvm_engine.fit_model(&m, NULL, &e));
		assert_false(m.has[FEAT_VMX] || m.has[FEAT_SVM] || m.has[FEAT_NPT] || m.has[FEAT_TSC_DEADLINE]);
		assert_true(m.has[FEAT_PAE]);
		clock_destroy(&clock);
	}
}

/* KVM's own LAPICs take deadlines, where they are there. */
static void deadlines_with_its_lapics(void **state)
{
	for (unsigned lacks = 0; lacks < 2; lacks++) {
		struct engine_choice to;
		struct clock clock;
		struct cpu_model m;
		struct error e;
		fake_kvm_lack(fake, lacks ? KVM_CAP_TSC_DEADLINE_TIMER : 0);
		assert_true(clock_init(&clock, false, &e));
		assert_true(cpu_model_parse(&m, "max", &clock, &e));
		assert_true(m.has[FEAT_TSC_DEADLINE]);
		assert_true(engine_choose("kvm,irqchip=split", false, &to, &e));
		assert_true(to.ops->fit_model(&m, to.options, &e));
		assert_int_equal(m.has[FEAT_TSC_DEADLINE], !lacks);
		engine_options_free(to.ops, to.options);
		clock_destroy(&clock);
	}
}

/* Nor VT-x and AMD-V, but where their interrupts are KVM's and KVM tells their state. */
static void hypervisors_with_its_lapics(void **state)
{
	static const struct { const char *cpu, *engine; int lack; bool has; } cases[] = {
		{ "max,vendor=intel,+vmx", "kvm,irqchip=split", 0, true }, { "max,vendor=intel,+vmx", "kvm,irqchip=split", KVM_CAP_NESTED_STATE, false },
		{ "max,vendor=intel,+vmx", "kvm", 0, false }, { "max,vendor=amd,+svm,-lbrv", "kvm,irqchip=split", 0, true },
		{ "max,vendor=amd,+svm,-lbrv", "kvm,irqchip=split", KVM_CAP_NESTED_STATE, false }, { "max,vendor=amd,+svm,-lbrv", "kvm", 0, false } };
	for (unsigned k = 0; k < ARRAY_LEN(cases); k++) {
		struct engine_choice to;
		struct clock clock;
		struct cpu_model m;
		struct error e;
		fake_kvm_lack(fake, cases[k].lack);
		assert_true(clock_init(&clock, false, &e));
		assert_true(cpu_model_parse(&m, cases[k].cpu, &clock, &e));
		fake_kvm_offer(fake, &m);
		assert_true(engine_choose(cases[k].engine, false, &to, &e));
		strcpy(e.msg, "");
		if (to.ops->fit_model(&m, to.options, &e) != cases[k].has) /* it was asked for */
			fail_msg("%s, without %d: %s", cases[k].engine, cases[k].lack, e.msg);
		assert_int_equal(m.has[FEAT_VMX] || (m.has[FEAT_SVM] && m.has[FEAT_NPT] && m.has[FEAT_NRIPS]), cases[k].has);
		assert_false(m.has[FEAT_LBRV]); /* its records would not be moved */
		engine_options_free(to.ops, to.options);
		clock_destroy(&clock);
	}
}

/* A write that only rings does not come out, where KVM has eventfds for such; where it has none, each does. */
static void doorbells(void **state)
{
	/* 32-bit code: finds the virtio-rng (1af4:1005) by 0cf8h, notifies its queue 1000 times by BAR 4, ends. */
	static const u8 notifying[] = {
		0xbb, 0x02, 0x00, 0x00, 0x00,                         /* mov ebx, 2 */
		0x89, 0xd8, 0xc1, 0xe0, 0x0b,                         /* next: mov eax, ebx; shl eax, 11 */
		0x0d, 0x00, 0x00, 0x00, 0x80,                         /* or eax, 0x80000000 */
		0xba, 0xf8, 0x0c, 0x00, 0x00, 0xef,                   /* mov edx, 0xcf8; out dx, eax */
		0xba, 0xfc, 0x0c, 0x00, 0x00, 0xed,                   /* mov edx, 0xcfc; in eax, dx */
		0x3d, 0xf4, 0x1a, 0x05, 0x10, 0x74, 0x0a,             /* cmp eax, 0x10051af4; je found */
		0x43, 0x83, 0xfb, 0x20, 0x75, 0xdd,                   /* inc ebx; cmp ebx, 32; jne next */
		0xb0, 0x11, 0xeb, 0x2b,                               /* mov al, 0x11; jmp end */
		0x89, 0xd8, 0xc1, 0xe0, 0x0b,                         /* found: mov eax, ebx; shl eax, 11 */
		0x0d, 0x20, 0x00, 0x00, 0x80,                         /* or eax, 0x80000020 */
		0xba, 0xf8, 0x0c, 0x00, 0x00, 0xef,                   /* mov edx, 0xcf8; out dx, eax */
		0xba, 0xfc, 0x0c, 0x00, 0x00, 0xed,                   /* mov edx, 0xcfc; in eax, dx */
		0x83, 0xe0, 0xf0, 0xb9, 0xe8, 0x03, 0x00, 0x00,       /* and eax, ~15; mov ecx, 1000 */
		0x66, 0xc7, 0x80, 0x00, 0x30, 0x00, 0x00, 0x00, 0x00, /* again: mov word [eax + 0x3000], 0 */
		0xe2, 0xf5, 0xb0, 0x10,                               /* loop again; mov al, 0x10 */
		0xe6, 0xf4, 0xf4, 0xeb, 0xfd,                         /* end: out 0xf4, al; hlt; jmp to it */
	};
	char end[512];
	struct error e;
	put_kernel(notifying, sizeof(notifying));
	for (unsigned lacks = 0; lacks < 2; lacks++) {
		struct vm_config c = config("kvm");
		unsigned before = fake_kvm_count(fake, KVM_RUN);
		c.kernel.mode = 32;
		c.rng = true;
		fake_kvm_lack(fake, lacks ? KVM_CAP_IOEVENTFD : 0);
		int status = run(&c, end, sizeof(end), &e);
		if (status != COUNTED)
			fail_msg("status %d: %s", status, status < 0 ? e.msg : end);
		unsigned runs = fake_kvm_count(fake, KVM_RUN) - before;
		if (lacks ? runs < 1000 : runs > 300)
			fail_msg("%u entries %s doorbells", runs, lacks ? "without" : "with");
	}
}

/* ---- what is measured --------------------------------------------------------------------------------------- */

static void a_software_kvm_is_found_out(void **state)
{
	struct kvm_finding f;
	struct sigaction before, after;
	assert_int_equal(sigaction(SIGURG, NULL, &before), 0);
	kvm_probe(&f);
	assert_int_equal(sigaction(SIGURG, NULL, &after), 0);
	assert_true(before.sa_handler == after.sa_handler);
	if (f.verdict != KVM_SLOW) /* as one that interprets */
		fail_msg("verdict %d: %s", f.verdict, f.why);
	assert_true(f.ips > 1000 && f.ips < 200000000);
	assert_non_null(strstr(f.why, "MIPS: a software KVM"));
	assert_int_equal(fake_kvm_open_handles(fake), 0);
}

static void what_is_wrong_is_told(void **state)
{
	static const struct { unsigned long request; int err; enum kvm_verdict verdict; const char *word; } cases[] = {
		{ FAKE_OPEN, ENOENT, KVM_ABSENT, "is not there" }, { FAKE_OPEN, ENODEV, KVM_ABSENT, "driver" }, { FAKE_OPEN, EACCES, KVM_FORBIDDEN, "this user" },
		{ FAKE_OPEN, EPERM, KVM_FORBIDDEN, "this user" }, { FAKE_OPEN, EMFILE, KVM_UNOPENED, "open files" },
		{ KVM_GET_API_VERSION, ENOTTY, KVM_OTHER_API, "version" }, { KVM_CREATE_VM, EBUSY, KVM_NO_MACHINE, "KVM_CREATE_VM" },
		{ KVM_SET_USER_MEMORY_REGION, EINVAL, KVM_NO_MACHINE, "MEMORY_REGION" }, { KVM_CREATE_VCPU, EEXIST, KVM_NO_MACHINE, "KVM_CREATE_VCPU" },
		{ KVM_SET_SREGS, EINVAL, KVM_NO_MACHINE, "KVM_SET_SREGS" }, { KVM_RUN, EFAULT, KVM_NO_MACHINE, "runs no kernel code" },
	};
	struct kvm_finding f;
	for (unsigned k = 0; k < ARRAY_LEN(cases); k++) {
		fake_kvm_fail(fake, cases[k].request, 0, cases[k].err);
		kvm_probe(&f);
		if (f.verdict != cases[k].verdict || !strstr(f.why, cases[k].word))
			fail_msg("case %u: verdict %d: %s", k, f.verdict, f.why);
		assert_int_equal(fake_kvm_open_handles(fake), 0);
	}
	fake_kvm_lack(fake, KVM_CAP_XSAVE);
	kvm_probe(&f);
	assert_int_equal(f.verdict, KVM_LACKS);
	assert_string_equal(f.lacks, "KVM_CAP_XSAVE");
	fake_kvm_lack(fake, 0);
	fake_kvm_exit(fake, KVM_EXIT_FAIL_ENTRY, 7, 3);
	kvm_probe(&f);
	if (f.verdict != KVM_NO_MACHINE || !strstr(f.why, "exit 9"))
		fail_msg("verdict %d: %s", f.verdict, f.why);
}

static void auto_passes_over_it(void **state)
{
	struct engine_choice c;
	struct error e;
	assert_true(engine_choose("auto", false, &c, &e));
	assert_string_not_equal(c.ops->name, "kvm");
	assert_non_null(strstr(c.why, "a software KVM"));
	engine_options_free(c.ops, c.options);
	fake_kvm_fail(fake, FAKE_OPEN, 0, EACCES);
	assert_true(engine_choose("auto", false, &c, &e));
	assert_string_not_equal(c.ops->name, "kvm");
	engine_options_free(c.ops, c.options);
	fake_kvm_fail(fake, 0, 0, 0); /* it was a child's open that failed */
	assert_true(engine_choose("kvm", false, &c, &e)); /* who asks for it by name gets it */
	assert_string_equal(c.ops->name, "kvm");
	engine_options_free(c.ops, c.options);
}

/* A KVM that does not come back, from whatever, does not keep ring3. */
static void what_hangs_is_called_back(void **state)
{
	static const struct { unsigned long request; enum kvm_verdict verdict; const char *word; } cases[] = {
		{ FAKE_OPEN, KVM_UNOPENED, "does not open" }, { KVM_CREATE_VM, KVM_NO_MACHINE, "KVM_CREATE_VM" },
		{ KVM_RUN, KVM_NO_MACHINE, "did not come back" },
	};
	struct kvm_finding f;
	for (unsigned k = 0; k < ARRAY_LEN(cases); k++) {
		fake_kvm_hang(fake, cases[k].request);
		kvm_probe(&f);
		if (f.verdict != cases[k].verdict || !strstr(f.why, cases[k].word) || !strstr(f.why, "within 1 s"))
			fail_msg("verdict %d: %s", f.verdict, f.why);
		assert_int_equal(fake_kvm_open_handles(fake), 0);
	}
	struct engine_choice c;
	struct error e;
	unsigned opens = fake_kvm_count(fake, FAKE_OPEN);
	fake_kvm_hang(fake, FAKE_OPEN);
	assert_true(engine_choose("auto", false, &c, &e));
	assert_string_not_equal(c.ops->name, "kvm");
	assert_non_null(strstr(c.why, "does not open within 1 s"));
	engine_options_free(c.ops, c.options);
	assert_false(engine_choose("kvm", false, &c, &e));
	assert_non_null(strstr(e.msg, "does not open within 1 s"));
	assert_int_equal(fake_kvm_count(fake, FAKE_OPEN), opens); /* children did */
}

/* auto takes a good KVM; one that cannot have the processors asked for is passed over, and it is said why. */
static void auto_gives_way_to_cpu(void **state)
{
	static const struct { const char *cpu, *engine, *why; } cases[] = { { "max", "kvm", "MIPS" }, { "max,+svm", NULL, "svm" } };
	struct error e;
	put_kernel(counting, sizeof(counting));
	fake_kvm_fast(fake);
	for (unsigned k = 0; k < ARRAY_LEN(cases); k++) {
		struct vm_config c = config("auto");
		int status = 0;
		c.cpu = (char *)cases[k].cpu;
		struct machine *m = machine_new(&c, &e);
		if (!m)
			fail_msg("%s: %s", cases[k].cpu, e.msg);
		machine_run(m, &status);
		bool as_said = cases[k].engine ? !strcmp(machine_engine(m), cases[k].engine) : strcmp(machine_engine(m), "kvm") != 0;
		if (!as_said || !strstr(machine_engine_why(m), cases[k].why))
			fail_msg("%s: engine %s (%s)", cases[k].cpu, machine_engine(m), machine_engine_why(m));
		assert_int_equal(status, COUNTED);
		machine_free(m);
	}
}

/* However good a KVM is: it is not even asked. */
static void auto_with_deterministic_time_counts(void **state)
{
	struct engine_choice c;
	struct error e;
	assert_true(engine_choose("auto", true, &c, &e));
	assert_string_not_equal(c.ops->name, "kvm");
	assert_false(c.ops->uncounted);
	assert_non_null(strstr(c.why, "--icount"));
	assert_int_equal(fake_kvm_count(fake, FAKE_OPEN), 0);
	engine_options_free(c.ops, c.options);
}

/* ---- guests ----------------------------------------------------------------------------------------------------- */

static int run_guest(char **argv, const char *engine)
{
	struct vm_config c = config(engine);
	struct error e;
	char end[512] = "";
	up(NULL);
	alarm(0);
	c.mem_bytes = 128 << 20;
	c.kernel.path = argv[0];
	c.kernel.format = (char *)"multiboot";
	c.kernel.mode = 0;
	c.debugcon = argv[1];
	c.cpus = strtoull(argv[2], NULL, 0);
	c.hop = (struct hop_config){ argv[3], 5000 };
	int status = run(&c, end, sizeof(end), &e);
	if (status < 0)
		fprintf(stderr, "%s\n", e.msg);
	if (down(NULL))
		status = 99;
	return status < 0 ? 65 : status;
}

int main(int argc, char **argv)
{
	const char *engine = "kvm";
	if (argc > 2 && !strcmp(argv[1], "--options"))
		engine = argv[2], argv += 2, argc -= 2;
	if (argc > 4 && !strcmp(argv[1], "--guest"))
		return run_guest(argv + 2, engine);
	log_configure("error", "/dev/null", &(struct error){ "" });
#define T(f) cmocka_unit_test_setup_teardown(f, up, down)
	const struct CMUnitTest tests[] = {
		T(runs_to_its_end), T(one_nmi_and_two), T(an_interrupt_that_waits), T(a_signal_as_the_vm_is_made), T(storms_of_signals), T(each_request_fails_once), T(exits_that_nobody_wants), T(engine_hops), T(a_hop_fails_both_ways), T(stays_out_of_the_model), T(deadlines_with_its_lapics), T(hypervisors_with_its_lapics), T(doorbells),
		T(a_software_kvm_is_found_out), T(what_is_wrong_is_told), T(auto_passes_over_it), T(what_hangs_is_called_back), T(auto_gives_way_to_cpu), T(auto_with_deterministic_time_counts),
	};
	int failed = cmocka_run_group_tests(tests, NULL, NULL);
	unlink(kernel_file);
	return failed;
}
