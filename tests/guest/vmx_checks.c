/* The checks of a VM entry, each both ways: with the value that is not allowed the entry fails with the right error
 * number or as exit reason 33 with the right qualification; with its neighbour that is allowed, and all else as before,
 * the guest is entered. In the order of the manual: Intel SDM vol. 3 26.2.1 (controls), 26.2.2 to 26.2.4 (the host's
 * state), 26.3.1 (the guest's).
 *
 * Whatever the guest then is, it comes back: all exceptions exit, its IDT is empty, a timer runs. */
#include "lib/vmx.h"

const char guest_name[] = "vmx_checks";

#define A(x) ((u64)(uptr)(x))
#define HIGH (1ull << 60)  /* in no canonical address */
/* Of control words: bits to be set; CLEAR: bits to be cleared. Other fields: the value. */
#define CLEAR(bits) ((u64)(bits) << 32)
#define EPTP_GOOD (A(pml4) + 0x1e)
enum { CTRL = 7, HOST = 8, GUEST = 33 };
enum mode { LONG, PAE, V86, REAL };

static u64 pdpt32_bad[4] PAGE;
static u64 msr_list[2] __attribute__((aligned(16)));

struct set { u32 field; u64 v; };
struct entry_case {
	const char *name;
	u8 mode;
	struct set with[5];
	u32 field; /* whose value decides */
	u64 bad, good;
	u32 why, qual;
};

static bool is_control(u32 f) { return f == PIN || f == PROC || f == PROC2 || f == EXIT || f == ENTRY; }
static void put(struct set s)
{
	if (is_control(s.field))
		s.v = (rd(s.field) | (u32)s.v) & ~(s.v >> 32);
	wr(s.field, s.v);
}

/* ---- guests -------------------------------------------------------------------------------------------------- */

/* At 800:0, where there is an INT3. */
static void mode16(bool v86)
{
	for (unsigned s = SEG_ES; s <= SEG_GS; s++)
		set_segment(s, 0x800, 0x8000, 0xffff, v86 ? 0xf3 : s == SEG_CS ? 0x9b : 0x93);
	wr(G_RIP, 0);
	wr(G_RSP, 0x1000);
	if (v86)
		wr(G_RFLAGS, 0x20002);
}

static void base(enum mode m)
{
	static const u32 zero[] = { EXIT_STORE_N, EXIT_LOAD_N, ENTRY_LOAD_N, INJECT_ERR, INJECT_LEN, TPR_THRESHOLD, CR3_COUNT, H_GS_BASE, H_SYSENTER_EIP,
				    G_SYSENTER_EIP, G_PKRS, H_PKRS, VMFUNC_CTL, POSTED_VECTOR, INTR_STATUS, EXC_BITMAP, CR0_MASK, CR4_MASK };
	fresh(g_nothing);
	set_controls(PIN_TIMER, X_HLT, 0);
	for (unsigned k = 0; k < ARRAY_LEN(zero); k++)
		wr(zero[k], 0);
	wr(VPID, 1);
	wr(EXC_BITMAP, 0xffffffff);
	wr(TIMER, 1000);
	wr(G_IDTR_LIMIT, 0);
	wr(EPTP, EPTP_GOOD);
	wr(VAPIC, A(zeros));
	if (m == PAE || m == V86)
		pae_guest();
	if (m == V86)
		mode16(true);
	if (m == REAL) {
		pae_guest();
		mode16(false);
		wr(G_CR0, 0x20);
		put((struct set){ PROC2, EPT | UNRESTRICTED });
	}
}

/* What became of the entry: 0 entered, else CTRL, HOST or GUEST. */
static u32 entry(u32 *qual)
{
	*qual = 0;
	int s = enter();
	if (s != SUCCEED)
		return s == FAIL_VALID ? (u32)rd(ERROR) : 0xff;
	if (!(rd(REASON) & FAILED))
		return 0;
	*qual = (u32)rd(QUAL);
	return (u16)rd(REASON);
}

static void both_ways(const struct entry_case *t)
{
	for (unsigned good = 0; good < 2; good++) {
		u32 qual;
		base(t->mode);
		for (unsigned k = 0; k < ARRAY_LEN(t->with) && t->with[k].field | t->with[k].v; k++)
			put(t->with[k]);
		put((struct set){ t->field, good ? t->good : t->bad });
		u32 why = entry(&qual);
		check_eq(fmt("%s: %s", t->name, good ? "enters" : "refused"), why | (u64)qual << 32, good ? 0 : t->why | (u64)t->qual << 32);
	}
}
#define ALL(table) \
	for (unsigned k_ = 0; k_ < ARRAY_LEN(table); k_++) \
		both_ways(&table[k_])

/* ---- controls ------------------------------------------------------------------------------------------------- */

/* An address field, once its control is there: aligned, and no wider than addresses are. */
static void address(const char *name, u32 field, u32 align, u64 good, struct set a, struct set b, struct set c)
{
	struct entry_case t = { name, LONG, { a, b, c, { VMWRITE_BITMAP, A(zeros) }, { IO_B, A(zeros) } }, field, good + align / 2, good, CTRL, 0 };
	both_ways(&t);
	t.bad = good + 1;
	both_ways(&t);
	t.bad = good | WIDE;
	both_ways(&t);
	t.bad = good | 1ull << 63;
	both_ways(&t);
}

static void addresses(void)
{
	const struct set none = { VMREAD_BITMAP, A(zeros) }, shadowed = { PROC2, SHADOW }, apic = { PROC, TPR_SHADOW },
			 vid = { PROC2, VIRTUAL_INTR }, intr = { PIN, PIN_EXT | PIN_POSTED };
	address("I/O bitmap A", IO_A, 4096, A(zeros), (struct set){ PROC, IO_BITMAPS }, none, none);
	wr(IO_A, A(zeros));
	struct entry_case io_b = { "I/O bitmap B", LONG, { { PROC, IO_BITMAPS }, { IO_A, A(zeros) } }, IO_B, A(zeros) + 2048, A(zeros), CTRL, 0 };
	both_ways(&io_b);
	io_b.bad = WIDE;
	both_ways(&io_b);
	address("MSR bitmap", MSR_BITMAP, 4096, A(zeros), (struct set){ PROC, MSR_BITMAPS }, none, none);
	address("VMREAD bitmap", VMREAD_BITMAP, 4096, A(zeros), shadowed, shadowed, shadowed);
	struct entry_case w = { "VMWRITE bitmap", LONG, { shadowed, none }, VMWRITE_BITMAP, A(zeros) + 2048, A(zeros), CTRL, 0 };
	both_ways(&w);
	w.bad = WIDE;
	both_ways(&w);
	address("virtual-APIC page", VAPIC, 4096, A(zeros), apic, none, none);
	address("APIC-access page", APIC_PAGE, 4096, A(other), (struct set){ PROC2, APIC_ACCESS }, none, none);
	const struct entry_case posted[] = {
		{ "posted-interrupt descriptor, alignment", LONG, { apic, vid, intr }, POSTED_DESC, A(bitmap) + 32, A(bitmap) + 64, CTRL, 0 },
		{ "posted-interrupt descriptor, width", LONG, { apic, vid, intr }, POSTED_DESC, WIDE, A(bitmap), CTRL, 0 },
	};
	ALL(posted);
	address("page-modification log", PML_ADDR, 4096, A(pml), (struct set){ PROC2, EPT | PML }, none, none);
	address("EPTP list", EPTP_LIST, 4096, A(zeros), (struct set){ PROC2, EPT | VMFUNC }, (struct set){ VMFUNC_CTL, 1 }, none);
}

static void execution_controls(void)
{
	static const struct entry_case t[] = {
		{ "pin-based: a bit that must be 1", LONG, {}, PIN, CLEAR(2), 0, CTRL, 0 },
		{ "pin-based: a bit that must be 0", LONG, {}, PIN, 1 << 9, 0, CTRL, 0 },
		{ "primary: a bit that must be 1", LONG, {}, PROC, CLEAR(2), 0, CTRL, 0 },
		{ "primary: a bit that must be 0", LONG, {}, PROC, 1, 0, CTRL, 0 },
		{ "secondary: a bit that must be 0", LONG, {}, PROC2, 1 << 30, 0, CTRL, 0 },
		{ "secondary, not activated", LONG, { { PROC2, 1 << 30 } }, PROC, 0, CLEAR(SECONDARY), CTRL, 0 },
		{ "CR3 targets", LONG, {}, CR3_COUNT, 5, 4, CTRL, 0 },
		{ "TPR threshold: bits 31:4", LONG, { { PROC, TPR_SHADOW }, { VAPIC, A(bitmap) } }, TPR_THRESHOLD, 0x11, 1, CTRL, 0 },
		{ "TPR threshold over VTPR", LONG, { { PROC, TPR_SHADOW }, { VAPIC, A(bitmap) } }, TPR_THRESHOLD, 3, 2, CTRL, 0 },
		{ "TPR threshold over VTPR, accesses virtualized", LONG, { { PROC, TPR_SHADOW }, { VAPIC, A(bitmap) }, { TPR_THRESHOLD, 3 }, { APIC_PAGE, A(other) } },
		  PROC2, 0, APIC_ACCESS, CTRL, 0 },
		{ "TPR threshold, virtual-interrupt delivery", LONG, { { PROC, TPR_SHADOW }, { PIN, PIN_EXT }, { TPR_THRESHOLD, 0x30 } }, PROC2, 0, VIRTUAL_INTR, CTRL, 0 },
		{ "x2APIC mode without TPR shadow", LONG, { { PROC2, X2APIC } }, PROC, 0, TPR_SHADOW, CTRL, 0 },
		{ "APIC registers without TPR shadow", LONG, { { PROC2, APIC_REGS } }, PROC, 0, TPR_SHADOW, CTRL, 0 },
		{ "virtual-interrupt delivery without TPR shadow", LONG, { { PROC2, VIRTUAL_INTR }, { PIN, PIN_EXT } }, PROC, 0, TPR_SHADOW, CTRL, 0 },
		{ "virtual-interrupt delivery without external-interrupt exiting", LONG, { { PROC2, VIRTUAL_INTR }, { PROC, TPR_SHADOW } }, PIN, 0, PIN_EXT, CTRL, 0 },
		{ "x2APIC mode with an APIC-access page", LONG, { { PROC2, APIC_ACCESS }, { PROC, TPR_SHADOW }, { APIC_PAGE, A(other) } }, PROC2, X2APIC, 0, CTRL, 0 },
		{ "virtual NMIs without NMI exiting", LONG, { { PIN, PIN_VNMI } }, PIN, 0, PIN_NMI, CTRL, 0 },
		{ "NMI window without virtual NMIs", LONG, { { PROC, NMI_WINDOW }, { PIN, PIN_NMI } }, PIN, 0, PIN_VNMI, CTRL, 0 },
		{ "posted interrupts without virtual-interrupt delivery", LONG, { { PIN, PIN_EXT | PIN_POSTED }, { PROC, TPR_SHADOW }, { POSTED_DESC, A(bitmap) } },
		  PROC2, 0, VIRTUAL_INTR, CTRL, 0 },
		{ "posted interrupts without acknowledgement", LONG, { { PIN, PIN_EXT | PIN_POSTED }, { PROC, TPR_SHADOW }, { PROC2, VIRTUAL_INTR }, { POSTED_DESC, A(bitmap) } },
		  EXIT, CLEAR(ACK), ACK, CTRL, 0 },
		{ "posted interrupts: vector", LONG, { { PIN, PIN_EXT | PIN_POSTED }, { PROC, TPR_SHADOW }, { PROC2, VIRTUAL_INTR }, { POSTED_DESC, A(bitmap) } },
		  POSTED_VECTOR, 0x100, 0xff, CTRL, 0 },
		{ "VPID 0", LONG, { { PROC2, USE_VPID } }, VPID, 0, 0xffff, CTRL, 0 },
		{ "unrestricted guest without EPT", LONG, { { PROC2, UNRESTRICTED } }, PROC2, 0, EPT, CTRL, 0 },
		{ "page-modification log without EPT", LONG, { { PROC2, PML }, { PML_ADDR, A(pml) } }, PROC2, 0, EPT, CTRL, 0 },
		{ "EPTP: memory type 1", LONG, { { PROC2, EPT } }, EPTP, A(pml4) + 0x19, A(pml4) + 0x18, CTRL, 0 },
		{ "EPTP: memory type 5", LONG, { { PROC2, EPT } }, EPTP, A(pml4) + 0x1d, EPTP_GOOD, CTRL, 0 },
		{ "EPTP: memory type 7", LONG, { { PROC2, EPT } }, EPTP, A(pml4) + 0x1f, EPTP_GOOD, CTRL, 0 },
		{ "EPTP: 3 levels", LONG, { { PROC2, EPT } }, EPTP, A(pml4) + 0x16, EPTP_GOOD, CTRL, 0 },
		{ "EPTP: 5 levels", LONG, { { PROC2, EPT } }, EPTP, A(pml4) + 0x26, EPTP_GOOD, CTRL, 0 },
		{ "EPTP: bit 7", LONG, { { PROC2, EPT } }, EPTP, EPTP_GOOD + 0x80, EPTP_GOOD + 0x40, CTRL, 0 },
		{ "EPTP: bit 11", LONG, { { PROC2, EPT } }, EPTP, EPTP_GOOD + 0x800, EPTP_GOOD, CTRL, 0 },
		{ "EPTP: width", LONG, { { PROC2, EPT } }, EPTP, EPTP_GOOD + WIDE, EPTP_GOOD, CTRL, 0 },
		{ "VM functions: bit 1", LONG, { { PROC2, VMFUNC | EPT }, { EPTP_LIST, A(zeros) } }, VMFUNC_CTL, 2, 1, CTRL, 0 },
		{ "EPTP switching without EPT", LONG, { { PROC2, VMFUNC }, { EPTP_LIST, A(zeros) }, { VMFUNC_CTL, 1 } }, PROC2, 0, EPT, CTRL, 0 },
		{ "exit: a bit that must be 1", LONG, {}, EXIT, CLEAR(1), 0, CTRL, 0 },
		{ "exit: a bit that must be 0", LONG, {}, EXIT, 1u << 31, 0, CTRL, 0 },
		{ "exit saves a timer that there is not", LONG, { { EXIT, SAVE_TIMER } }, PIN, CLEAR(PIN_TIMER), PIN_TIMER, CTRL, 0 },
		{ "exit stores MSRs: alignment", LONG, { { EXIT_STORE_N, 1 } }, EXIT_STORE, A(msr_list) + 8, A(msr_list), CTRL, 0 },
		{ "exit stores MSRs: width", LONG, { { EXIT_STORE_N, 1 } }, EXIT_STORE, WIDE, A(msr_list), CTRL, 0 },
		{ "exit loads MSRs: alignment", LONG, { { EXIT_LOAD_N, 1 } }, EXIT_LOAD, A(msr_list) + 8, A(msr_list), CTRL, 0 },
		{ "exit loads MSRs: width", LONG, { { EXIT_LOAD_N, 1 } }, EXIT_LOAD, WIDE, A(msr_list), CTRL, 0 },
		{ "no MSRs to load at an exit", LONG, { { EXIT_LOAD, 8 } }, EXIT_LOAD_N, 1, 0, CTRL, 0 },
		{ "entry: a bit that must be 1", LONG, {}, ENTRY, CLEAR(1), 0, CTRL, 0 },
		{ "entry: a bit that must be 0", LONG, {}, ENTRY, 1u << 31, 0, CTRL, 0 },
		{ "entry to SMM", LONG, {}, ENTRY, 1 << 10, 0, CTRL, 0 },
		{ "dual-monitor treatment deactivated", LONG, {}, ENTRY, 1 << 11, 0, CTRL, 0 },
		{ "entry loads MSRs: alignment", LONG, { { ENTRY_LOAD_N, 1 } }, ENTRY_LOAD, A(msr_list) + 8, A(msr_list), CTRL, 0 },
		{ "entry loads MSRs: width", LONG, { { ENTRY_LOAD_N, 1 } }, ENTRY_LOAD, WIDE, A(msr_list), CTRL, 0 },
	};
	bitmap[16] = 0x20; /* VTPR of a virtual-APIC page there */
	ALL(t);
	bitmap[16] = 0;
	/* The last byte of a list is beyond the width of addresses. */
	u32 r[4];
	cpuid(0x80000008, 0, r);
	check_eq("the width of physical addresses", 1ull << (r[0] & 0xff), WIDE);
	struct entry_case end = { "entry loads MSRs: the list's end", LONG, { { ENTRY_LOAD_N, 2 }, { ENTRY_LOAD, WIDE - 16 } },
				  ENTRY_LOAD_N, 2, 0, CTRL, 0 };
	both_ways(&end);
}

/* ---- what is injected ----------------------------------------------------------------------------------------- */

/* SDM 26.2.1.3, in protected mode. */
static bool injectable(unsigned type, unsigned vector, bool error)
{
	const u32 with_error = 1u << DF | 1u << TS | 1u << NP | 1u << SS | 1u << GP | 1u << PF | 1u << AC;
	bool has_error = type == 3 && vector < 32 && with_error >> vector & 1;
	switch (type) {
	case 1: return false;
	case 2: return vector == NMI && !error;
	case 3: return vector < 32 && error == has_error;
	case 7: return !vector && !error;
	default: return !error;
	}
}

static void injection(void)
{
	static const struct entry_case t[] = {
		{ "injection: bit 12", LONG, {}, INJECT, 0x80001202, 0x80000202, CTRL, 0 },
		{ "injection: bit 30", LONG, {}, INJECT, 0xc0000202, 0x80000202, CTRL, 0 },
		{ "injection, not valid", LONG, {}, INJECT, 0xffffffff, 0x7fffffff, CTRL, 0 },
		{ "error code: bits 31:16", LONG, { { INJECT, 0x80000b0d } }, INJECT_ERR, 0x10000, 0x7fff, CTRL, 0 },
		{ "length of INT n", LONG, { { INJECT, 0x80000450 } }, INJECT_LEN, 16, 15, CTRL, 0 },
		{ "length of INT1", LONG, { { INJECT, 0x80000501 } }, INJECT_LEN, 16, 0, CTRL, 0 },
		{ "length of INT3", LONG, { { INJECT, 0x80000603 } }, INJECT_LEN, 16, 1, CTRL, 0 },
		{ "error code in real mode", REAL, {}, INJECT, 0x80000b0d, 0x8000030d, CTRL, 0 },
	};
	ALL(t);
	unsigned wrong = 0;
	for (unsigned n = 0; n < 8 * 40 * 2; n++) {
		unsigned type = n & 7, vector = n >> 4;
		bool error = n >> 3 & 1;
		u32 qual;
		base(LONG);
		wr(G_RFLAGS, 0x202);
		wr(INJECT, 0x80000000u | (error ? 0x800 : 0) | type << 8 | vector);
		wr(INJECT_LEN, 1);
		u32 want = injectable(type, vector, error) ? 0 : CTRL, got = entry(&qual);
		if (got != want && wrong++ < 4)
			say("type %u, vector %u, error code %u: %u\n", type, vector, error, got);
	}
	check_eq("injection: types, vectors, error codes", wrong, 0);
}

/* ---- the host's state -------------------------------------------------------------------------------------------- */

static void host_state(void)
{
	static const struct entry_case t[] = {
		{ "host SYSENTER_ESP", LONG, {}, H_SYSENTER_ESP, HIGH, 0xffff800000000000, HOST, 0 },
		{ "host SYSENTER_EIP", LONG, {}, H_SYSENTER_EIP, HIGH, 0xffff800000000000, HOST, 0 },
		{ "host FS base", LONG, {}, H_FS_BASE, HIGH, 0x1000, HOST, 0 }, { "host GS base", LONG, {}, H_GS_BASE, HIGH, 0x1000, HOST, 0 },
		{ "host TR base", LONG, {}, H_TR_BASE, HIGH, A(&tss), HOST, 0 },
		{ "host PAT: type 2", LONG, { { EXIT, EXIT_LOAD_PAT } }, H_PAT, 0x0007040600070402, 0x0007040600070406, HOST, 0 },
		{ "host PAT: type 3", LONG, { { EXIT, EXIT_LOAD_PAT } }, H_PAT, 0x0307040600070406, 0x0007040600070406, HOST, 0 },
		{ "host PAT: type 8", LONG, { { EXIT, EXIT_LOAD_PAT } }, H_PAT, 0x0007040608070406, 0x0007040600070406, HOST, 0 },
		{ "host PAT, not loaded", LONG, { { H_PAT, 2 } }, EXIT, EXIT_LOAD_PAT, 0, HOST, 0 },
		{ "host PKRS", LONG, { { EXIT, EXIT_LOAD_PKRS } }, H_PKRS, 1ull << 32, 0, HOST, 0 },
		{ "host PKRS, not loaded", LONG, { { H_PKRS, 1ull << 32 } }, EXIT, EXIT_LOAD_PKRS, 0, HOST, 0 },
		{ "host EFER: reserved", LONG, { { EXIT, EXIT_LOAD_EFER } }, H_EFER, 0xd02, 0xd01, HOST, 0 },
		{ "host EFER: LMA", LONG, { { EXIT, EXIT_LOAD_EFER } }, H_EFER, 0x901, 0xd01, HOST, 0 },
		{ "host EFER: LME", LONG, { { EXIT, EXIT_LOAD_EFER } }, H_EFER, 0xc01, 0xd01, HOST, 0 },
		{ "host EFER, not loaded", LONG, { { H_EFER, 0 } }, EXIT, EXIT_LOAD_EFER, 0, HOST, 0 },
		{ "host CS 0", LONG, {}, H_CS, 0, CODE, HOST, 0 }, { "host TR 0", LONG, {}, H_TR, 0, TSS_SEL, HOST, 0 },
		{ "host SS 0 is one", LONG, { { H_SS, 0 } }, H_CS, 0, CODE, HOST, 0 },
		{ "host address-space size", LONG, {}, EXIT, CLEAR(HOST64), HOST64, HOST, 0 },
	};
	static const struct { const char *name; u32 field; u16 good; } selectors[] = {
		{ "ES", H_ES, DATA }, { "CS", H_CS, CODE }, { "SS", H_SS, DATA }, { "DS", H_DS, DATA }, { "FS", H_FS, DATA }, { "GS", H_GS, DATA }, { "TR", H_TR, TSS_SEL },
	};
	static const struct { const char *name; bool cr4; u32 bit; } fixed[] = {
		{ "CR0.PE", false, 1 }, { "CR0.NE", false, 0x20 }, { "CR0.PG", false, 0x80000000 }, { "CR4.VMXE", true, 0x2000 }, { "CR4.PAE", true, 0x20 },
	};
	ALL(t);
	for (unsigned k = 0; k < ARRAY_LEN(selectors); k++) {
		for (unsigned bit = 1; bit < 8; bit <<= 1) {
			struct entry_case c = { fmt("host %s: bit %u", selectors[k].name, bit), LONG, {}, selectors[k].field, selectors[k].good | bit, selectors[k].good, HOST, 0 };
			both_ways(&c);
		}
	}
	for (unsigned k = 0; k < ARRAY_LEN(fixed); k++) {
		u64 good = fixed[k].cr4 ? read_cr4() : read_cr0();
		struct entry_case c = { fmt("host %s", fixed[k].name), LONG, {}, fixed[k].cr4 ? H_CR4 : H_CR0, good & ~(u64)fixed[k].bit, good, HOST, 0 };
		both_ways(&c);
	}
	struct entry_case cr3 = { "host CR3", LONG, {}, H_CR3, read_cr3() | WIDE, read_cr3(), HOST, 0 };
	both_ways(&cr3);
	struct entry_case wide = { "host CR0: bits 63:32", LONG, {}, H_CR0, read_cr0() | 1ull << 32, read_cr0(), HOST, 0 };
	both_ways(&wide);
	struct entry_case cr4 = { "host CR4: reserved", LONG, {}, H_CR4, read_cr4() | 1u << 31, read_cr4(), HOST, 0 };
	both_ways(&cr4);
	struct dtr g, i;
	__asm__ volatile("sgdt %0; sidt %1" : "=m"(g), "=m"(i));
	struct entry_case gdtr = { "host GDTR base", LONG, {}, H_GDTR, g.base | HIGH, g.base, HOST, 0 };
	both_ways(&gdtr);
	struct entry_case idtr = { "host IDTR base", LONG, {}, H_IDTR, i.base | HIGH, i.base, HOST, 0 };
	both_ways(&idtr);
	/* enter() writes H_RIP: once elsewhere. */
	u32 qual;
	base(LONG);
	wr(H_RIP, HIGH);
	host_rip_field = TSC_OFFSET;
	check_eq("host RIP: refused", entry(&qual), HOST);
	host_rip_field = H_RIP;
	check_eq("host RIP: enters", entry(&qual), 0);
}

/* ---- the guest's registers --------------------------------------------------------------------------------------- */

static void guest_registers(void)
{
	static const struct entry_case t[] = {
		{ "CR3", LONG, {}, G_CR3, WIDE, 0, GUEST, 0 },
		{ "CR0.PG without PE", REAL, {}, G_CR0, 0x80000020, 0x20, GUEST, 0 },
		{ "real mode without unrestricted guest", REAL, {}, PROC2, CLEAR(UNRESTRICTED), UNRESTRICTED, GUEST, 0 },
		{ "IA-32e mode without PG", REAL, { { G_CR4, 0x2020 } }, ENTRY, IA32E, 0, GUEST, 0 },
		{ "CR4.PCIDE outside of IA-32e mode", PAE, {}, G_CR4, 0x22020, 0x2020, GUEST, 0 },
		{ "DEBUGCTL", LONG, { { ENTRY, LOAD_DEBUG } }, G_DEBUGCTL, 1 << 16, 1, GUEST, 0 },
		{ "DEBUGCTL, not loaded", LONG, { { G_DEBUGCTL, 1 << 16 } }, ENTRY, LOAD_DEBUG, CLEAR(LOAD_DEBUG), GUEST, 0 },
		{ "DR7", LONG, { { ENTRY, LOAD_DEBUG } }, G_DR7, 1ull << 32, 0x400, GUEST, 0 },
		{ "DR7, not loaded", LONG, { { G_DR7, 1ull << 32 } }, ENTRY, LOAD_DEBUG, CLEAR(LOAD_DEBUG), GUEST, 0 },
		{ "SYSENTER_ESP", LONG, {}, G_SYSENTER_ESP, HIGH, 0xffff800000000000, GUEST, 0 },
		{ "SYSENTER_EIP", LONG, {}, G_SYSENTER_EIP, HIGH, 0xffff800000000000, GUEST, 0 },
		{ "PAT: type 2", LONG, { { ENTRY, LOAD_PAT } }, G_PAT, 0x0007040602070406, 0x0007040600070406, GUEST, 0 },
		{ "PAT, not loaded", LONG, { { G_PAT, 8 } }, ENTRY, LOAD_PAT, 0, GUEST, 0 },
		{ "PKRS", LONG, { { ENTRY, LOAD_PKRS } }, G_PKRS, 1ull << 63, 0xffff0000, GUEST, 0 },
		{ "PKRS, not loaded", LONG, { { G_PKRS, 1ull << 32 } }, ENTRY, LOAD_PKRS, 0, GUEST, 0 },
		{ "EFER: reserved", LONG, { { ENTRY, LOAD_EFER } }, G_EFER, 0x503, 0x501, GUEST, 0 },
		{ "EFER.LMA and the control", LONG, { { ENTRY, LOAD_EFER } }, G_EFER, 0x100, 0x500, GUEST, 0 },
		{ "EFER.LME and LMA", LONG, { { ENTRY, LOAD_EFER } }, G_EFER, 0x400, 0x500, GUEST, 0 },
		{ "EFER.LMA in a 32-bit guest", PAE, { { ENTRY, LOAD_EFER } }, G_EFER, 0x500, 0, GUEST, 0 },
		{ "EFER.LME without paging", REAL, { { ENTRY, LOAD_EFER } }, G_EFER, 0x400, 0x100, GUEST, 0 },
		{ "EFER, not loaded", LONG, { { G_EFER, 2 } }, ENTRY, LOAD_EFER, 0, GUEST, 0 },
		{ "GDTR base", LONG, {}, G_GDTR, HIGH, 0xffff800000000000, GUEST, 0 }, { "IDTR base", LONG, {}, G_IDTR, HIGH, 0x7fffffffffff, GUEST, 0 },
		{ "GDTR limit", LONG, {}, G_GDTR_LIMIT, 0x10000, 0xffff, GUEST, 0 }, { "IDTR limit", LONG, {}, G_IDTR_LIMIT, 0x10000, 0xffff, GUEST, 0 },
		{ "RIP", LONG, {}, G_RIP, HIGH, 0x7ffffffff000, GUEST, 0 },
		{ "RIP in compatibility mode", LONG, { { G_AR + 2, 0xc09b } }, G_RIP, 1ull << 32, 0xfffffffe, GUEST, 0 },
		{ "RIP in a 32-bit guest", PAE, {}, G_RIP, 1ull << 32, 0xfffffffe, GUEST, 0 },
		{ "RFLAGS: bit 1", LONG, {}, G_RFLAGS, 0, 2, GUEST, 0 },
		{ "RFLAGS.VM in IA-32e mode", LONG, {}, G_RFLAGS, 0x20002, 2, GUEST, 0 },
		{ "RFLAGS.VM in real mode", REAL, {}, G_RFLAGS, 0x20002, 2, GUEST, 0 },
		{ "external interrupt without IF", LONG, { { INJECT, 0x80000050 } }, G_RFLAGS, 2, 0x202, GUEST, 0 },
		{ "link pointer: alignment", LONG, {}, LINK, A(shadow) + 2048, A(shadow), GUEST, 4 },
		{ "link pointer: width", LONG, {}, LINK, WIDE, ~0ull, GUEST, 4 },
		{ "link pointer: the current VMCS", LONG, {}, LINK, A(vmcs), A(shadow), GUEST, 4 },
		{ "link pointer: revision", LONG, {}, LINK, A(zeros), A(shadow), GUEST, 4 },
		{ "link pointer: a shadow VMCS, and none wanted", LONG, {}, LINK, A(other), A(shadow), GUEST, 4 },
		{ "link pointer: no shadow VMCS, and one wanted", LONG, { { PROC2, SHADOW }, { VMREAD_BITMAP, A(zeros) }, { VMWRITE_BITMAP, A(zeros) } },
		  LINK, A(shadow), A(other), GUEST, 4 },
		{ "PDPTE in memory", PAE, {}, G_CR3, A(pdpt32_bad), A(pdpt32), GUEST, 2 },
		{ "PDPTE: bit 1", PAE, { { PROC2, EPT } }, G_PDPTE, A(pd) + 3, A(pd) + 1, GUEST, 2 },
		{ "PDPTE: bit 8", PAE, { { PROC2, EPT } }, G_PDPTE + 6, A(pd) + 0x101, A(pd) + 1, GUEST, 2 },
		{ "PDPTE: width", PAE, { { PROC2, EPT } }, G_PDPTE + 2, WIDE + 1, WIDE, GUEST, 2 },
	};
	static const u8 reserved[] = { 3, 5, 15, 22, 31, 32, 63 };
	ALL(t);
	for (unsigned k = 0; k < ARRAY_LEN(reserved); k++) {
		struct entry_case c = { fmt("RFLAGS: bit %u", reserved[k]), LONG, {}, G_RFLAGS, 2 | 1ull << reserved[k], 2 | FL_AC, GUEST, 0 };
		both_ways(&c);
	}
	const struct entry_case fixed[] = {
		{ "CR0.PE", LONG, {}, G_CR0, read_cr0() & ~1ul, read_cr0(), GUEST, 0 }, { "CR0.NE", LONG, {}, G_CR0, read_cr0() & ~0x20ul, read_cr0(), GUEST, 0 },
		{ "CR0.PG", LONG, {}, G_CR0, read_cr0() & 0x7fffffff, read_cr0(), GUEST, 0 },
		{ "CR0: bits 63:32", LONG, {}, G_CR0, read_cr0() | 1ull << 40, read_cr0(), GUEST, 0 },
		{ "CR4.VMXE", LONG, {}, G_CR4, read_cr4() & ~0x2000ul, read_cr4(), GUEST, 0 },
		{ "CR4.PAE in IA-32e mode", LONG, {}, G_CR4, read_cr4() & ~0x20ul, read_cr4(), GUEST, 0 },
		{ "CR4: reserved", LONG, {}, G_CR4, read_cr4() | 1u << 31, read_cr4(), GUEST, 0 },
	};
	ALL(fixed);
}

/* ---- the guest's segments ------------------------------------------------------------------------------------------ */

/* types: those that may be, of a segment that is otherwise right. */
static const struct { const char *name; u8 seg; u32 ar, limit; u16 types; } segments[] = {
	{ "ES", SEG_ES, 0xc093, 0xffffffff, 0x88aa }, { "CS", SEG_CS, 0xa09b, 0xffffffff, 0xaa00 }, { "SS", SEG_SS, 0xc093, 0xffffffff, 0x88 },
	{ "DS", SEG_DS, 0xc093, 0xffffffff, 0x88aa }, { "FS", SEG_FS, 0xc093, 0xffffffff, 0x88aa }, { "GS", SEG_GS, 0xc093, 0xffffffff, 0x88aa },
	{ "LDTR", SEG_LDTR, 0x82, 0x67, 4 }, { "TR", SEG_TR, 0x8b, 0x67, 0x800 },
};

static void access_rights(void)
{
	for (unsigned k = 0; k < ARRAY_LEN(segments); k++) {
		u32 ar = segments[k].ar, f = G_AR + 2 * segments[k].seg, g = 0x8000;
		for (unsigned type = 0; type < 16; type++) {
			u32 qual, want = segments[k].types >> type & 1 ? 0 : GUEST;
			base(LONG);
			wr(f, (ar & ~15u) | type);
			check_eq(fmt("%s: type %u", segments[k].name, type), entry(&qual), want);
		}
		for (unsigned bit = 4; bit < 32; bit++) {
			if (bit == 5 || bit == 6 || (bit >= 12 && bit <= 16))
				continue; /* DPL, AVL, L, D, G, unusable */
			struct entry_case c = { fmt("%s: bit %u", segments[k].name, bit), LONG, {}, f, ar ^ 1u << bit, ar, GUEST, 0 };
			both_ways(&c);
		}
		const struct entry_case t[] = {
			{ fmt("%s: limit without G", segments[k].name), LONG, { { f, ar & ~g } }, G_LIMIT + 2 * segments[k].seg, 0x100000, 0xfffff, GUEST, 0 },
			{ fmt("%s: limit with G", segments[k].name), LONG, { { f, ar | g } }, G_LIMIT + 2 * segments[k].seg, 0xffffeffe, 0xffffefff, GUEST, 0 },
		};
		ALL(t);
		u32 qual, want = segments[k].seg == SEG_TR || segments[k].seg == SEG_CS ? GUEST : 0;
		base(LONG);
		wr(f, 0x1ff00);
		check_eq(fmt("%s: unusable, anything else", segments[k].name), entry(&qual), want);
	}
}

static void segment_relations(void)
{
	static const struct entry_case t[] = {
		{ "TR in the LDT", LONG, {}, G_TR, TSS_SEL | 4, TSS_SEL, GUEST, 0 }, { "TR: type 3 in a 32-bit guest", PAE, {}, G_AR + 14, 0x89, 0x83, GUEST, 0 },
		{ "LDTR in the LDT", LONG, { { G_AR + 12, 0x82 } }, G_LDTR, 4, 8, GUEST, 0 }, { "LDTR in the LDT, unusable", LONG, { { G_LDTR, 4 } }, G_AR + 12, 0x82, 0x10000, GUEST, 0 },
		{ "SS.RPL and CS.RPL", LONG, {}, G_SS, DATA | 1, DATA, GUEST, 0 }, { "SS.RPL in real mode", REAL, { { G_SS, 0x801 } }, PROC2, CLEAR(UNRESTRICTED), 0, GUEST, 0 },
		{ "TR base", LONG, {}, G_BASE + 14, HIGH, 0xffff800000000000, GUEST, 0 }, { "FS base", LONG, {}, G_BASE + 8, HIGH, 0xffff800000000000, GUEST, 0 },
		{ "GS base", LONG, {}, G_BASE + 10, HIGH, 0xffff800000000000, GUEST, 0 }, { "LDTR base", LONG, { { G_AR + 12, 0x82 } }, G_BASE + 12, HIGH, 0, GUEST, 0 },
		{ "LDTR base, unusable", LONG, { { G_BASE + 12, HIGH } }, G_AR + 12, 0x82, 0x10000, GUEST, 0 }, { "CS base", LONG, {}, G_BASE + 2, 1ull << 32, 0xffffffff, GUEST, 0 },
		{ "ES base", LONG, {}, G_BASE, 1ull << 32, 0xffffffff, GUEST, 0 }, { "SS base", LONG, {}, G_BASE + 4, 1ull << 32, 0xffffffff, GUEST, 0 },
		{ "DS base", LONG, {}, G_BASE + 6, 1ull << 32, 0xffffffff, GUEST, 0 }, { "DS base, unusable", LONG, { { G_BASE + 6, 1ull << 32 } }, G_AR + 6, 0xc093, 0x10000, GUEST, 0 },
		{ "CS.DPL, not conforming", LONG, {}, G_AR + 2, 0xa0bb, 0xa09b, GUEST, 0 }, { "CS.DPL, conforming", LONG, {}, G_AR + 2, 0xa0bf, 0xa09f, GUEST, 0 },
		{ "CS with L and D", LONG, {}, G_AR + 2, 0xe09b, 0xa09b, GUEST, 0 }, { "CS: type 3 without unrestricted guest", LONG, { { PROC2, EPT }, { G_AR + 2, 0xa093 } }, PROC2, 0, UNRESTRICTED, GUEST, 0 },
		{ "CS: type 3, DPL", LONG, { { PROC2, EPT | UNRESTRICTED } }, G_AR + 2, 0xa0b3, 0xa093, GUEST, 0 },
		{ "SS.DPL and RPL", LONG, { { G_SS, UDATA }, { G_CS, UCODE }, { G_AR + 2, 0xa0fb } }, G_AR + 4, 0xc093, 0xc0f3, GUEST, 0 },
		{ "SS.DPL in real mode", REAL, { { G_AR + 2, 0x9f } }, G_AR + 4, 0xb3, 0x93, GUEST, 0 },
		{ "DS.DPL below RPL", LONG, { { G_DS, DATA | 3 } }, G_AR + 6, 0xc093, 0xc0f3, GUEST, 0 }, { "DS.DPL below RPL, conforming", LONG, { { G_DS, DATA | 3 } }, G_AR + 6, 0xc09b, 0xc09f, GUEST, 0 },
		{ "GS.DPL below RPL, unusable", LONG, { { G_GS, DATA | 3 } }, G_AR + 10, 0xc093, 0x10000, GUEST, 0 },
		{ "V86: CS base", V86, {}, G_BASE + 2, 0x8001, 0x8000, GUEST, 0 }, { "V86: GS base", V86, {}, G_BASE + 10, 0, 0x8000, GUEST, 0 },
		{ "V86: SS limit", V86, {}, G_LIMIT + 4, 0xfffff, 0xffff, GUEST, 0 }, { "V86: ES limit", V86, {}, G_LIMIT, 0xfffe, 0xffff, GUEST, 0 },
		{ "V86: CS access rights", V86, {}, G_AR + 2, 0xfb, 0xf3, GUEST, 0 }, { "V86: FS access rights", V86, {}, G_AR + 8, 0x100f3, 0xf3, GUEST, 0 },
	};
	ALL(t);
}

/* ---- what is no register -------------------------------------------------------------------------------------------- */

static void non_register(void)
{
	enum { STI = 1, MOV_SS = 2, SMI = 4, NMIS = 8, HALTED = 1, SHUT_DOWN = 2, WAITING = 3, BS = 1 << 14 };
	static const struct entry_case t[] = {
		{ "activity 4", LONG, {}, G_ACTIVITY, 4, HALTED, GUEST, 0 },
		{ "halted at CPL 3", LONG, { { G_SS, UDATA }, { G_AR + 4, 0xc0f3 }, { G_CS, UCODE }, { G_AR + 2, 0xa0fb } }, G_ACTIVITY, HALTED, 0, GUEST, 0 },
		{ "shut down at CPL 3", LONG, { { G_SS, UDATA }, { G_AR + 4, 0xc0f3 }, { G_CS, UCODE }, { G_AR + 2, 0xa0fb } }, G_ACTIVITY, HALTED, SHUT_DOWN, GUEST, 0 },
		{ "halted, blocking by STI", LONG, { { G_RFLAGS, 0x202 }, { G_BLOCK, STI } }, G_ACTIVITY, HALTED, 0, GUEST, 0 },
		{ "shut down, blocking by MOV SS", LONG, { { G_BLOCK, MOV_SS } }, G_ACTIVITY, SHUT_DOWN, 0, GUEST, 0 },
		{ "halted, #PF injected", LONG, { { INJECT, 0x80000b0e } }, G_ACTIVITY, HALTED, 0, GUEST, 0 },
		{ "halted, INT n or an interrupt injected", LONG, { { G_ACTIVITY, HALTED }, { G_RFLAGS, 0x202 } }, INJECT, 0x80000450, 0x80000050, GUEST, 0 },
		{ "halted, #UD or #DB injected", LONG, { { G_ACTIVITY, HALTED } }, INJECT, 0x80000306, 0x80000301, GUEST, 0 },
		{ "halted, INT3 or #MC injected", LONG, { { G_ACTIVITY, HALTED } }, INJECT, 0x80000603, 0x80000312, GUEST, 0 },
		{ "halted, INT1 or an NMI injected", LONG, { { G_ACTIVITY, HALTED } }, INJECT, 0x80000501, 0x80000202, GUEST, 0 },
		{ "halted, #DE or the trap flag's exit injected", LONG, { { G_ACTIVITY, HALTED } }, INJECT, 0x80000300, 0x80000700, GUEST, 0 },
		{ "shut down, an interrupt or an NMI injected", LONG, { { G_ACTIVITY, SHUT_DOWN }, { G_RFLAGS, 0x202 } }, INJECT, 0x80000050, 0x80000202, GUEST, 0 },
		{ "shut down, #DB or #MC injected", LONG, { { G_ACTIVITY, SHUT_DOWN } }, INJECT, 0x80000301, 0x80000312, GUEST, 0 },
		{ "waiting for SIPI, an NMI injected", LONG, { { INJECT, 0x80000202 } }, G_ACTIVITY, WAITING, SHUT_DOWN, GUEST, 0 },
		{ "blocking: bit 4", LONG, {}, G_BLOCK, 0x10, NMIS, GUEST, 0 }, { "blocking: bit 31", LONG, {}, G_BLOCK, 0x80000000, 0, GUEST, 0 },
		{ "blocking by STI and MOV SS", LONG, { { G_RFLAGS, 0x202 } }, G_BLOCK, STI | MOV_SS, STI, GUEST, 0 },
		{ "blocking by STI without IF", LONG, { { G_BLOCK, STI } }, G_RFLAGS, 2, 0x202, GUEST, 0 },
		{ "blocking by SMI outside of SMM", LONG, {}, G_BLOCK, SMI, MOV_SS, GUEST, 0 },
		{ "an interrupt injected, blocking by STI", LONG, { { INJECT, 0x80000050 }, { G_RFLAGS, 0x202 } }, G_BLOCK, STI, NMIS, GUEST, 0 },
		{ "an interrupt injected, blocking by MOV SS", LONG, { { INJECT, 0x80000050 }, { G_RFLAGS, 0x202 } }, G_BLOCK, MOV_SS, 0, GUEST, 0 },
		{ "an NMI injected, blocking by MOV SS", LONG, { { INJECT, 0x80000202 } }, G_BLOCK, MOV_SS, NMIS, GUEST, 3 },
		{ "an NMI injected, blocking by virtual NMI", LONG, { { INJECT, 0x80000202 }, { PIN, PIN_NMI | PIN_VNMI } }, G_BLOCK, NMIS, 0, GUEST, 0 },
		{ "INT n injected, blocking by MOV SS", LONG, { { INJECT, 0x80000450 } }, G_BLOCK, MOV_SS | STI, MOV_SS, GUEST, 0 },
		{ "pending debug exceptions: bit 4", LONG, {}, G_DEBUG, 0x10, 0xf, GUEST, 0 }, { "pending debug exceptions: bit 13", LONG, {}, G_DEBUG, 1 << 13, 1 << 12, GUEST, 0 },
		{ "pending debug exceptions: bit 63", LONG, {}, G_DEBUG, 1ull << 63, 0, GUEST, 0 }, { "pending debug exceptions: RTM", LONG, {}, G_DEBUG, 0x11000, 0x1000, GUEST, 0 },
		{ "BS clear, TF set behind STI", LONG, { { G_BLOCK, STI }, { G_RFLAGS, 0x302 } }, G_DEBUG, 0, BS, GUEST, 0 },
		{ "BS set, TF clear behind STI", LONG, { { G_BLOCK, STI }, { G_RFLAGS, 0x202 } }, G_DEBUG, BS, 0, GUEST, 0 },
		{ "BS clear, TF set behind MOV SS", LONG, { { G_BLOCK, MOV_SS }, { G_RFLAGS, 0x102 } }, G_DEBUG, 0, BS, GUEST, 0 },
		{ "BS set under BTF behind MOV SS", LONG, { { G_BLOCK, MOV_SS }, { G_RFLAGS, 0x102 }, { G_DEBUG, BS } }, G_DEBUGCTL, 2, 0, GUEST, 0 },
		{ "BS clear, TF set, halted", LONG, { { G_ACTIVITY, HALTED }, { G_RFLAGS, 0x102 } }, G_DEBUG, 0, BS, GUEST, 0 },
		{ "BS set, TF clear, halted", LONG, { { G_ACTIVITY, HALTED } }, G_DEBUG, BS, 0, GUEST, 0 },
		{ "BS set, TF clear", LONG, { { G_DEBUG, BS } }, G_ACTIVITY, HALTED, 0, GUEST, 0 },
	};
	ALL(t);
}

int main(void)
{
	if (!vmx_there()) {
		skip("vmx_checks", "this processor has no VT-x");
		return 0;
	}
	vmx_on();
	ept_identity(pml4);
	pdpt32_bad[0] = A(pd) | 3;
	shadow[0] = (u32)rdmsr(0x480);
	other[0] = shadow[0] | 0x80000000;
	msr_list[0] = LSTAR;
	*(u8 *)0x8000ul = 0xcc;
	addresses();
	execution_controls();
	injection();
	host_state();
	guest_registers();
	access_rights();
	segment_relations();
	non_register();
	return 0;
}
