/* How often a hypervisor's guests were entered and left, by reason: rows of --stats. Names as in the manuals: Intel SDM
 * vol. 3 appendix C; AMD APM vol. 2 appendix C.
 *
 * Threading: counted by the processor's thread alone, read by any. */
#include "cpu/svm.h"
#include "cpu/vmx.h"

/* ---- VT-x ------------------------------------------------------------------------------------------ */

static const char *const vmx_names[] = {
	[EXIT_EXCEPTION] = "exception, NMI", [EXIT_INTERRUPT] = "external interrupt", [EXIT_TRIPLE_FAULT] = "triple fault",
	[EXIT_INIT] = "INIT", [EXIT_SIPI] = "SIPI", [EXIT_INTR_WINDOW] = "interrupt window", [EXIT_NMI_WINDOW] = "NMI window",
	[EXIT_TASK_SWITCH] = "task switch", [EXIT_CPUID] = "CPUID", [EXIT_GETSEC] = "GETSEC", [EXIT_HLT] = "HLT", [EXIT_INVD] = "INVD",
	[EXIT_INVLPG] = "INVLPG", [EXIT_RDPMC] = "RDPMC", [EXIT_RDTSC] = "RDTSC", [EXIT_RSM] = "RSM", [EXIT_VMCALL] = "VMCALL",
	[EXIT_VMCLEAR] = "VMCLEAR", [EXIT_VMLAUNCH] = "VMLAUNCH", [EXIT_VMPTRLD] = "VMPTRLD", [EXIT_VMPTRST] = "VMPTRST",
	[EXIT_VMREAD] = "VMREAD", [EXIT_VMRESUME] = "VMRESUME", [EXIT_VMWRITE] = "VMWRITE", [EXIT_VMXOFF] = "VMXOFF", [EXIT_VMXON] = "VMXON",
	[EXIT_CR] = "control register", [EXIT_DR] = "MOV DR", [EXIT_IO] = "I/O instruction", [EXIT_RDMSR] = "RDMSR", [EXIT_WRMSR] = "WRMSR",
	[EXIT_BAD_GUEST] = "entry failed: guest's state", [EXIT_BAD_MSR_LIST] = "entry failed: MSR list", [EXIT_MWAIT] = "MWAIT",
	[EXIT_MTF] = "monitor trap flag", [EXIT_MONITOR] = "MONITOR", [EXIT_PAUSE] = "PAUSE", [EXIT_TPR_THRESHOLD] = "TPR below threshold",
	[EXIT_APIC_ACCESS] = "APIC access", [EXIT_EOI] = "virtualized EOI", [EXIT_GDTR_IDTR] = "GDTR or IDTR", [EXIT_LDTR_TR] = "LDTR or TR",
	[EXIT_EPT_VIOLATION] = "EPT violation", [EXIT_EPT_MISCONFIG] = "EPT misconfiguration", [EXIT_INVEPT] = "INVEPT", [EXIT_RDTSCP] = "RDTSCP",
	[EXIT_TIMER] = "preemption timer", [EXIT_INVVPID] = "INVVPID", [EXIT_WBINVD] = "WBINVD", [EXIT_XSETBV] = "XSETBV",
	[EXIT_APIC_WRITE] = "APIC write", [EXIT_RDRAND] = "RDRAND", [EXIT_INVPCID] = "INVPCID", [EXIT_VMFUNC] = "VMFUNC", [EXIT_RDSEED] = "RDSEED",
	[EXIT_PML_FULL] = "page-modification log full", [EXIT_XSAVES] = "XSAVES", [EXIT_XRSTORS] = "XRSTORS",
};
_Static_assert(ARRAY_LEN(vmx_names) <= NESTED_EXITS, "a counter for each");

void vmx_count_exit(struct cpu *c, u32 reason) { c->nested_counts.by_reason[reason & 0xffff]++; }

/* ---- AMD-V ------------------------------------------------------------------------------------------- */

/* Exit codes from SVM_EXIT_INTR on are counters by themselves, those before by group. */
enum { CR_READ, CR_WRITE, DR_READ, DR_WRITE, EXCEPTION, FIRST_SINGLE, N_SINGLE = SVM_EXIT_INVPCID + 1 - SVM_EXIT_INTR,
       NPF = FIRST_SINGLE + N_SINGLE, REFUSED, N_SVM };
#define SINGLE(code) [FIRST_SINGLE + SVM_EXIT_##code - SVM_EXIT_INTR]
static const char *const svm_names[N_SVM] = {
	[CR_READ] = "CR read", [CR_WRITE] = "CR write", [DR_READ] = "DR read", [DR_WRITE] = "DR write", [EXCEPTION] = "exception",
	SINGLE(INTR) = "INTR", SINGLE(NMI) = "NMI", SINGLE(SMI) = "SMI", SINGLE(INIT) = "INIT", SINGLE(VINTR) = "VINTR",
	SINGLE(CR0_SELECTIVE) = "CR0 write, selective", SINGLE(IDTR_READ) = "IDTR read", SINGLE(GDTR_READ) = "GDTR read",
	SINGLE(LDTR_READ) = "LDTR read", SINGLE(TR_READ) = "TR read", SINGLE(IDTR_WRITE) = "IDTR write", SINGLE(GDTR_WRITE) = "GDTR write",
	SINGLE(LDTR_WRITE) = "LDTR write", SINGLE(TR_WRITE) = "TR write", SINGLE(RDTSC) = "RDTSC", SINGLE(RDPMC) = "RDPMC",
	SINGLE(PUSHF) = "PUSHF", SINGLE(POPF) = "POPF", SINGLE(CPUID) = "CPUID", SINGLE(RSM) = "RSM", SINGLE(IRET) = "IRET", SINGLE(INTN) = "INT n",
	SINGLE(INVD) = "INVD", SINGLE(PAUSE) = "PAUSE", SINGLE(HLT) = "HLT", SINGLE(INVLPG) = "INVLPG", SINGLE(INVLPGA) = "INVLPGA",
	SINGLE(IOIO) = "I/O instruction", SINGLE(MSR) = "RDMSR, WRMSR", SINGLE(TASK_SWITCH) = "task switch", SINGLE(FERR_FREEZE) = "FERR freeze",
	SINGLE(SHUTDOWN) = "shutdown", SINGLE(VMRUN) = "VMRUN", SINGLE(VMMCALL) = "VMMCALL", SINGLE(VMLOAD) = "VMLOAD", SINGLE(VMSAVE) = "VMSAVE",
	SINGLE(STGI) = "STGI", SINGLE(CLGI) = "CLGI", SINGLE(SKINIT) = "SKINIT", SINGLE(RDTSCP) = "RDTSCP", SINGLE(ICEBP) = "INT1",
	SINGLE(WBINVD) = "WBINVD", SINGLE(MONITOR) = "MONITOR", SINGLE(MWAIT) = "MWAIT", SINGLE(MWAIT_ARMED) = "MWAIT, armed",
	SINGLE(XSETBV) = "XSETBV", SINGLE(RDPRU) = "RDPRU", SINGLE(INVPCID) = "INVPCID", [NPF] = "nested page fault", [REFUSED] = "VMRUN refused",
};
_Static_assert(N_SVM <= NESTED_EXITS, "a counter for each");

void svm_count_exit(struct cpu *c, u64 code)
{
	unsigned k = code == SVM_EXIT_NPF ? NPF : code > SVM_EXIT_INVPCID ? REFUSED
		: code >= SVM_EXIT_INTR ? FIRST_SINGLE + (unsigned)code - SVM_EXIT_INTR
		: code >= SVM_EXIT_EXCEPTION ? EXCEPTION : (unsigned)code / 16;
	c->nested_counts.by_reason[k]++;
}

/* ---- the table ---------------------------------------------------------------------------------------- */

static void exits_by_reason(struct counters *t, const struct nested_counts *n, const char *const *names, size_t n_names)
{
	counters_group(t, "exits to the host", NESTED_EXITS);
	for (size_t k = 0; k < n_names; k++)
		if (names[k])
			counter_add(t, names[k], counter_read(&n->by_reason[k]));
}

void nested_count(const struct cpu *c, struct counters *t)
{
	const struct nested_counts *n = &c->nested_counts;
	bool svm = cpu_has(c, FEAT_SVM), vmx = cpu_has(c, FEAT_VMX);
	if (!svm && !vmx)
		return;
	counters_group(t, "hypervisors inside", 0);
	counter_add(t, "entries to a guest", counter_read(&n->entries));
	counter_add(t, "  the guest's translations kept", counter_read(&n->entries_kept));
	counter_add(t, "exits to the host", counter_read(&n->exits));
	counter_add(t, "  the host's translations kept", counter_read(&n->exits_kept));
	counter_add(t, "flushes of guests' translations", counter_read(&n->flushes));
	counter_add(t, "fields of shadow VMCSs read or written", counter_read(&n->shadowed));
	counter_add(t, "posted interrupts taken in a guest", counter_read(&n->posted));
	if (svm)
		exits_by_reason(t, n, svm_names, ARRAY_LEN(svm_names));
	if (vmx)
		exits_by_reason(t, n, vmx_names, ARRAY_LEN(vmx_names));
}
