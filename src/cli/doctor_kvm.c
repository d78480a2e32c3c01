/* `ring3 doctor`: hardware-assisted virtualization: the processor's, the kernel's modules, /dev/kvm and how good it is.
 *
 * Whether firmware has switched it off is in a register that only the kernel can read (IA32_FEATURE_CONTROL, SDM vol. 3
 * 24.7; VM_CR, APM vol. 2 15.30.1): the kernel strikes the flag from /proc/cpuinfo then, while CPUID keeps it. */
#define LOG_TOPIC "cli"
#include <cpuid.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/doctor.h"
#include "kvm/probe_api.h"

static const char section[] = "hardware virtualization";

/* ---- the processor ------------------------------------------------------------------------------ */

/* "vmx", "svm", as CPUID has it; NULL. */
static const char *extension(void)
{
	unsigned a, b, c = 0, d;

	if (__get_cpuid(1, &a, &b, &c, &d) && c & 1u << 5)
		return "vmx";
	return __get_cpuid(0x80000001, &a, &b, &c, &d) && c & 1u << 2 ? "svm" : NULL;
}

static bool kernel_has_flag(const char *flag)
{
	char *line = NULL, *word, *rest;
	size_t cap = 0;
	bool has = false;
	FILE *f = fopen("/proc/cpuinfo", "r");

	while (f && !has && getline(&line, &cap, f) > 0)
		if (!strncmp(line, "flags", 5)) {
			for (rest = line; !has && (word = strsep(&rest, " \t\n:"));)
				has = !strcmp(word, flag);
			break;
		}
	free(line);
	if (f)
		fclose(f);
	return has;
}

static void look_at_processor(struct findings *f)
{
	const char *flag = extension();

	if (!flag && doctor_in_machine()) {
		finding_advise(finding_add(f, section, "processor", LACKS, "neither vmx nor svm: the host of this virtual machine does not pass it on"),
			       "have nested virtualization switched on for this virtual machine by whoever runs its host (on KVM: kvm_intel or kvm_amd with nested=1, processor model host)");
	} else if (!flag) {
		finding_add(f, section, "processor", LACKS, "neither vmx nor svm: this processor has no VT-x or AMD-V");
	} else if (!kernel_has_flag(flag)) {
		finding_advise(finding_add(f, section, "processor", LACKS, "%s in CPUID, but struck from /proc/cpuinfo: the firmware has switched it off", flag),
			       "switch on %s in the firmware's setup (often under Processor or Security), then power off and on", *flag == 'v' ? "Intel Virtualization Technology (VT-x)" : "SVM Mode (AMD-V)");
	} else {
		finding_add(f, section, "processor", GOOD, "%s", flag);
	}
}

/* ---- the kernel ------------------------------------------------------------------------------------- */

static void look_at_modules(struct findings *f, const char *flag, bool opened)
{
	static const char *const known[] = { "kvm", "kvm_intel", "kvm_amd", "kvm_pvm" };
	char text[120] = "", path[80], nested[16];
	size_t n = 0;

	for (size_t k = 0; k < ARRAY_LEN(known); k++) {
		snprintf(path, sizeof(path), "/sys/module/%s", known[k]);
		if (access(path, F_OK))
			continue;
		n += (size_t)snprintf(text + n, sizeof(text) - n, "%s%s", n ? ", " : "", known[k]);
		snprintf(path, sizeof(path), "/sys/module/%s/parameters/nested", known[k]);
		doctor_read_line(path, nested, sizeof(nested));
		if (nested[0])
			n += (size_t)snprintf(text + n, sizeof(text) - n, " (nested=%s)", nested);
	}
	if (n || opened) {
		finding_add(f, section, "modules", n ? GOOD : FACT, "%s", n ? text : "none to be seen in /sys/module, but KVM is there");
		return;
	}
	struct finding *x = finding_add(f, section, "modules", LACKS, "none of kvm, kvm_intel, kvm_amd");
	if (flag)
		finding_advise(x, "load it, as root: modprobe %s", !strcmp(flag, "vmx") ? "kvm_intel" : "kvm_amd");
}

static void permissions(char *buf, size_t cap)
{
	struct stat st;

	buf[0] = 0;
	if (stat("/dev/kvm", &st))
		return;
	const struct passwd *p = getpwuid(st.st_uid);
	char owner[40];
	snprintf(owner, sizeof(owner), "%s", p ? p->pw_name : "");
	const struct group *g = getgrgid(st.st_gid);
	snprintf(buf, cap, " (mode %o, owner %s, group %s)", st.st_mode & 07777, owner, g ? g->gr_name : "?");
}

static void advise_on_access(struct finding *x, const struct kvm_finding *k, bool flag)
{
	struct stat st;
	const struct group *g = stat("/dev/kvm", &st) ? NULL : getgrgid(st.st_gid);
	const struct passwd *p = getpwuid(getuid());

	if (k->verdict == KVM_ABSENT && flag)
		finding_advise(x, "load the module; in a container it must be passed in: docker run --device /dev/kvm");
	else if (k->verdict == KVM_FORBIDDEN && g && (st.st_mode & 0060) == 0060 && g->gr_gid)
		finding_advise(x, "join its group, as root: usermod -aG %s %s; then log in again", g->gr_name, p ? p->pw_name : "USER");
	else if (k->verdict == KVM_FORBIDDEN)
		finding_advise(x, "as root: setfacl -m u:%s:rw /dev/kvm; in a container: docker run --device /dev/kvm", p ? p->pw_name : "USER");
}

static void look_at_device(struct findings *f, const struct kvm_finding *k, bool flag)
{
	bool opened = k->verdict != KVM_ABSENT && k->verdict != KVM_FORBIDDEN && k->verdict != KVM_UNOPENED;
	char how[120];

	permissions(how, sizeof(how));
	if (!opened) {
		advise_on_access(finding_add(f, section, "/dev/kvm", LACKS, "%s%s", strncmp(k->why, "/dev/kvm ", 9) ? k->why : k->why + 9, how), k, flag);
		return;
	}
	finding_add(f, section, "/dev/kvm", GOOD, "can be opened%s", how);
	if (k->verdict == KVM_OTHER_API)
		finding_add(f, section, "interface", LACKS, "%s", k->why);
	else if (k->lacks)
		finding_advise(finding_add(f, section, "interface", LACKS, "%s", k->why), "a newer kernel");
	else
		finding_add(f, section, "interface", GOOD, "version %d, with all extensions that are needed", k->api);
	if (k->verdict == KVM_NO_MACHINE)
		finding_add(f, section, "a machine", LACKS, "%s", k->why);
	if (k->ips)
		finding_add(f, section, "speed", k->verdict == KVM_GOOD ? GOOD : LACKS, "%.*f million instructions of kernel code a second, %.1f us for a port access%s",
			    k->ips < 10000000, (double)k->ips / 1e6, (double)k->exit_ns / 1e3, k->verdict == KVM_GOOD ? "" : ": a software KVM");
}

void doctor_look_at_kvm(struct findings *f)
{
	struct kvm_finding k;
	const char *flag = extension();

	kvm_probe(&k);
	look_at_processor(f);
	look_at_modules(f, flag, k.api != 0);
	look_at_device(f, &k, flag != NULL);
}
