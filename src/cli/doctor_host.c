/* `ring3 doctor`: the host: its processor and kernel, what the engines bt and interp need of them, disks, containment. */
#define LOG_TOPIC "cli"
#include <cpuid.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <linux/membarrier.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "cli/doctor.h"
#include "sandbox/sandbox.h"

void doctor_read_line(const char *path, char *buf, size_t cap)
{
	FILE *f = fopen(path, "r");

	if (!f || !fgets(buf, (int)cap, f))
		buf[0] = 0;
	buf[strcspn(buf, "\n")] = 0;
	if (f)
		fclose(f);
}

/* ---- the machine and its kernel ------------------------------------------------------------------- */

static void three_words(char out[13], unsigned a, unsigned b, unsigned c)
{
	memcpy(out, &a, 4);
	memcpy(out + 4, &b, 4);
	memcpy(out + 8, &c, 4);
	out[12] = 0;
}

bool doctor_in_machine(void)
{
	unsigned a, b, c = 0, d;

	return __get_cpuid(1, &a, &b, &c, &d) && c >> 31;
}

static void look_at_processor(struct findings *f)
{
	unsigned a, b, c, d, brand[13] = { 0 };
	char vendor[13];

	__cpuid(0, a, b, c, d);
	three_words(vendor, b, d, c);
	__cpuid(1, a, b, c, d);
	unsigned family = a >> 8 & 15, model = a >> 4 & 15;
	if (family == 6 || family == 15)
		model |= a >> 12 & 0xf0;
	if (family == 15)
		family += a >> 20 & 0xff;
	if ((unsigned)__get_cpuid_max(0x80000000, NULL) >= 0x80000004)
		for (unsigned k = 0; k < 3; k++)
			__cpuid(0x80000002 + k, brand[4 * k], brand[4 * k + 1], brand[4 * k + 2], brand[4 * k + 3]);
	const char *name = (const char *)brand;
	name += strspn(name, " ");
	finding_add(f, "host", "processor", FACT, "%s%s%s, family %u, model %u; %ld online", name, *name ? ", " : "", vendor, family, model,
		    sysconf(_SC_NPROCESSORS_ONLN));
}

static void look_at_hypervisor(struct findings *f)
{
	static const struct { const char *signature, *name; } known[] = {
		{ "KVMKVMKVM", "KVM" }, { "Microsoft Hv", "Hyper-V" }, { "VMwareVMware", "VMware" }, { "XenVMMXenVMM", "Xen" }, { "TCGTCGTCGTCG", "QEMU's TCG" },
		{ "bhyve bhyve ", "bhyve" }, { "prl hyperv  ", "Parallels" }, { "VBoxVBoxVBox", "VirtualBox" }, { "ACRNACRNACRN", "ACRN" },
	};
	unsigned a, b, c, d;
	char signature[13];

	if (!doctor_in_machine()) {
		finding_add(f, "host", "hypervisor", FACT, "none: this is the hardware itself");
		return;
	}
	__cpuid(0x40000000, a, b, c, d);
	three_words(signature, b, c, d);
	for (size_t k = 0; k < ARRAY_LEN(known); k++)
		if (!strcmp(signature, known[k].signature)) {
			finding_add(f, "host", "hypervisor", FACT, "%s: this is a virtual machine", known[k].name);
			return;
		}
	finding_add(f, "host", "hypervisor", FACT, "\"%s\": this is a virtual machine", signature);
}

static void look_at_kernel(struct findings *f)
{
	struct utsname u;

	if (!uname(&u))
		finding_add(f, "host", "kernel", FACT, "%s %s", u.sysname, u.release);
}

/* ---- what bt and interp need ------------------------------------------------------------------------ */

static void look_at_features(struct findings *f)
{
	bool bmi2 = __builtin_cpu_supports("bmi2"), fsgsbase = getauxval(AT_HWCAP2) & 2;

	finding_add(f, "bt", "BMI2", bmi2 ? GOOD : LACKS, "%s", bmi2 ? "the processor has it" : "the processor has it not, or it is hidden from this machine");
	struct finding *x = finding_add(f, "bt", "FSGSBASE", fsgsbase ? GOOD : LACKS, "%s",
					fsgsbase ? "programs may use it" : "the kernel does not let programs use it");
	if (!fsgsbase)
		finding_advise(x, "Linux 5.9 or later, without nofsgsbase on its command line");
}

/* As interp and bt map what they make. */
static void look_at_executable_memory(struct findings *f)
{
	int fd = memfd_create("ring3-doctor", MFD_CLOEXEC);
	void *p = MAP_FAILED;

	if (fd >= 0 && !ftruncate(fd, 4096))
		p = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	bool ok = p != MAP_FAILED;
	struct finding *x = finding_add(f, "bt and interp", "memory to execute", ok ? GOOD : LACKS, "%s%s%s", ok ? "memfd_create and PROT_EXEC work" : fd < 0 ? "memfd_create: " : "PROT_EXEC: ",
					ok ? "" : strerror(errno), "");
	if (!ok)
		finding_advise(x, "some policy of this host forbids programs to make code (SELinux's execmem, a container's seccomp filter)");
	else
		munmap(p, 4096);
	if (fd >= 0)
		close(fd);
}

static void look_at_barrier(struct findings *f)
{
	long commands = syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0);
	bool ok = commands > 0 && commands & MEMBARRIER_CMD_PRIVATE_EXPEDITED;

	finding_add(f, "bt and interp", "membarrier", ok ? GOOD : FACT, "%s", ok ? "there" : "not there: translating code is slower");
}

/* Tables and windows of bt are terabytes of addresses, hardly any of which become memory. */
static void look_at_addresses(struct findings *f)
{
	struct rlimit l;
	char line[32];

	bool limited = !getrlimit(RLIMIT_AS, &l) && l.rlim_cur != RLIM_INFINITY;
	struct finding *x = finding_add(f, "bt", "address space", limited ? LACKS : GOOD, limited ? "limited to %llu MiB, of which the guest's memory and bt's tables take terabytes" : "without limit",
					(unsigned long long)l.rlim_cur >> 20);
	if (limited)
		finding_advise(x, "ulimit -v unlimited");
	doctor_read_line("/proc/sys/vm/max_map_count", line, sizeof(line));
	unsigned long maps = strtoul(line, NULL, 10);
	x = finding_add(f, "bt", "mappings", maps >= 65530 ? GOOD : FACT, "at most %s a process", line[0] ? line : "an unknown number");
	if (maps && maps < 65530)
		finding_advise(x, "as root: sysctl vm.max_map_count=262144; with few of them user code runs slower");
	doctor_read_line("/proc/sys/vm/overcommit_memory", line, sizeof(line));
	if (!strcmp(line, "2"))
		finding_advise(finding_add(f, "bt", "overcommit", LACKS, "the host promises no more memory than it has (vm.overcommit_memory=2)"),
			       "as root: sysctl vm.overcommit_memory=0");
}

/* ---- disks, containment ------------------------------------------------------------------------------- */

static void look_at_io_uring(struct findings *f)
{
	struct io_uring_params p = { 0 };
	long fd = syscall(SYS_io_uring_setup, 1, &p);

	if (fd >= 0) {
		finding_add(f, "disks", "io_uring", GOOD, "there");
		close((int)fd);
		return;
	}
	struct finding *x = finding_add(f, "disks", "io_uring", FACT, "not for this user (%s): threads do its work", strerror(errno));
	if (errno == EPERM)
		finding_advise(x, "as root: sysctl kernel.io_uring_disabled=0; in a container its seccomp filter may be the cause. Disks work without it");
}

static void look_at_containment(struct findings *f)
{
	bool filter = sandbox_has_seccomp();
	int abi = sandbox_landlock_abi();

	finding_add(f, "containment", "seccomp", filter ? GOOD : LACKS, "%s", filter ? "there" : "not there");
	if (abi)
		finding_add(f, "containment", "Landlock", GOOD, "version %d", abi);
	else
		finding_advise(finding_add(f, "containment", "Landlock", LACKS, "not there, or not switched on"), "Linux 5.13 or later with landlock among its security modules (lsm= on its command line)");
}

void doctor_look_at_host(struct findings *f)
{
	look_at_processor(f);
	look_at_hypervisor(f);
	look_at_kernel(f);
	look_at_executable_memory(f);
	look_at_barrier(f);
	look_at_features(f);
	look_at_addresses(f);
	look_at_io_uring(f);
	look_at_containment(f);
}
