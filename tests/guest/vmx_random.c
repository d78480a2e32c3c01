/* VT-x under random VMCSs: from a state that works, one to three fields changed, 100,000 times. Whatever the guest then
 * is, the entry fails as the manual has it or the guest leaves by an exit that exists, and the host goes on. Intel SDM
 * vol. 3 chapter 26. */
#include "lib/vmx.h"

const char guest_name[] = "vmx_random";

static u64 seed = 0x123456789;
static u64 dice(void)
{
	seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
	return seed;
}
static u64 odd_value(u64 old)
{
	switch (dice() % 6) {
	case 0: return old ^ 1ull << dice() % 64;
	case 1: return dice();
	case 2: return ~0ull;
	case 3: return 0;
	case 4: return old ^ (dice() & 0xff);
	default: return old + (dice() & 0xfff) * 4096;
	}
}

/* A page of VMCALLs: the only code that the guest can fetch; it can write nothing. */
extern u8 g_page[];
__asm__(".pushsection .text\n.balign 4096\n.globl g_page\ng_page: .rept 1365\nvmcall\n.endr\n.balign 4096\n.popsection");

static void ept_confined(void)
{
	ept_identity(pml4);
	for (unsigned k = 0; k < 4; k++)
		for (unsigned n = 0; n < 512; n++)
			if (pd[k][n] & 0x80)
				pd[k][n] &= ~6ull;
	for (unsigned n = 0; n < 512; n++)
		pt[n] &= ~6ull;
	pt[at(g_page) >> 12 & 511] |= 4;
	flush();
}

/* From a state that works, 1 to 3 fields changed: the manual's failure, or an entry and an exit, and the host goes on. Every
 * exception, HLT, I/O and the timer exit, so that whatever the guest is, it comes back and has changed nothing. */
static void random_states(void)
{
	static const u32 fields[] = {
		G_ES, G_CS, G_SS, G_DS, G_FS, G_GS, G_LDTR, G_TR, G_LIMIT, G_LIMIT + 2, G_LIMIT + 4, G_LIMIT + 14, G_AR, G_AR + 2,
		G_AR + 4, G_AR + 6, G_AR + 12, G_AR + 14, G_BASE, G_BASE + 2, G_BASE + 4, G_BASE + 10, G_BASE + 14, G_GDTR, G_IDTR,
		G_GDTR_LIMIT, G_IDTR_LIMIT, G_BLOCK, G_DEBUG, G_CR0, G_CR3, G_CR4, G_EFER, G_PAT, G_DR7, G_RSP, G_RIP, G_RFLAGS,
		G_DEBUGCTL, LINK, INJECT, INJECT_ERR, INJECT_LEN, CR0_MASK, CR4_MASK, CR0_SHADOW, CR4_SHADOW, VPID, TPR_THRESHOLD,
		APIC_PAGE, MSR_BITMAP, IO_A, IO_B, ENTRY, PROC, PROC2, TSC_OFFSET, CR3_COUNT, PML_INDEX, EPTP_LIST, VMREAD_BITMAP,
		ENTRY_LOAD_N, PIN, EXIT, G_PKRS, H_PKRS, G_SYSENTER_ESP, G_SYSENTER_EIP, G_AR + 8, G_AR + 10, G_LIMIT + 6, POSTED_VECTOR, POSTED_DESC,
	};
	enum { N = 100000 };
	ept_confined();
	unsigned entered = 0, refused = 0, bad_state = 0;
	for (unsigned n = 0; n < N; n++) {
		fresh(g_page);
		for (unsigned k = 0; k < ARRAY_LEN(fields); k++)
			if (fields[k] >= CR0_MASK && fields[k] <= CR4_SHADOW)
				wr(fields[k], 0);
		set_controls(PIN_TIMER, X_HLT | X_IO, EPT | UNRESTRICTED | USE_VPID);
		wr(VAPIC, at(other));
		wr(PML_ADDR, at(pml));
		wr(EPTP, at(pml4) | 3 << 3 | 6);
		wr(VPID, 1);
		wr(ENTRY_LOAD_N, 0);
		wr(G_PKRS, 0);
		wr(H_PKRS, 0);
		wr(POSTED_VECTOR, 0);
		for (unsigned k = dice() % 3 + 1; k; k--) {
			u32 f = fields[dice() % ARRAY_LEN(fields)];
			wr(f, odd_value(rd(f)));
		}
		wr(PIN, rd(PIN) | PIN_TIMER);
		wr(EXC_BITMAP, 0xffffffff);
		wr(TIMER, 4);
		if (enter() != SUCCEED)
			refused += rd(ERROR) == 7 || rd(ERROR) == 8;
		else if (rd(REASON) & FAILED)
			bad_state += (rd(REASON) & 0xffff) == R_BAD_GUEST || (rd(REASON) & 0xffff) == R_BAD_MSR;
		else
			entered++;
	}
	wr(ENTRY_LOAD_N, 0);
	check_eq("random states: each entered or refused", entered + refused + bad_state, N);
	check("random states: some of each", entered > N / 10 && refused > N / 50 && bad_state > N / 50);
}

int main(void)
{
	if (!vmx_there()) {
		skip("vmx_random", "this processor has no VT-x");
		return 0;
	}
	vmx_on();
	random_states();
	return 0;
}
