/* VT-x by a 32-bit hypervisor with PAE paging: an exit loads its PDPTEs, an entry the guest's. Intel SDM vol. 3 26.3.2.3,
 * 27.5.4. */
#include "lib/vmx.h"

const char guest_name[] = "vmx32";

enum { P = 1, W = 2, U = 4, PS = 0x80, LAST = 0xc0000000 };
static u64 root[4] __attribute__((aligned(32))), guest_root[4] __attribute__((aligned(32)));
static u64 dirs[4][512] PAGE, above[512] PAGE, below[512] PAGE;
u32 here = 0x1111, elsewhere = 0x2222;
#define OFFSET ((uptr)&here & 0x1fffff)
#define SEEN (*(volatile u32 *)(LAST + OFFSET))
SNIPPET(g_read, "mov nested_at,%eax; mov (%eax),%eax; mov %eax,nested_seen");
uptr nested_at;
u32 nested_seen;

/* The last GiB shows us through `above`; through `below` the 2 MiB behind us. */
static void paging(void)
{
	for (unsigned k = 0; k < 2048; k++)
		dirs[k / 512][k % 512] = (u64)k << 21 | P | W | U | PS;
	for (unsigned k = 0; k < 4; k++)
		root[k] = (uptr)dirs[k] | P;
	above[0] = ((uptr)&here & ~0x1ffffful) | P | W | PS;
	below[0] = above[0] + 0x200000;
	*(u32 *)((uptr)&here + 0x200000) = 0x3333;
	root[3] = (uptr)above | P;
	memcpy(guest_root, root, sizeof(root));
	write_cr4(read_cr4() | 0x20);
	write_cr3((uptr)root);
	write_cr0(read_cr0() | 0x80000000);
}

int main(void)
{
	if (!vmx_there()) {
		skip("vmx32", "no VMX");
		return 0;
	}
	paging();
	vmx_on();
	check_eq("PAE paging", SEEN, 0x1111);
	fresh(g_read);
	check_eq("a guest", run(), R_VMCALL);
	nested_at = (uptr)&SEEN;
	guest_root[3] = (uptr)below | P;
	fresh(g_read);
	wr(G_CR3, (uptr)guest_root);
	check_eq("a guest of other PDPTEs", run(), R_VMCALL);
	check_eq("... has its own", nested_seen, 0x3333);
	check_eq("... and after the exit we have ours", SEEN, 0x1111);
	root[3] = (uptr)below | P; /* no MOV to CR3: the processor's are as before */
	check_eq("PDPTEs are kept", SEEN, 0x1111);
	guest_root[3] = (uptr)above | P;
	check_eq("a guest", (wr(G_RIP, at(g_read)), run()), R_VMCALL);
	check_eq("... of PDPTEs that have changed in memory", nested_seen, 0x1111);
	check_eq("... the exit has loaded the host's anew", SEEN, 0x3333);
	/* From its fields, with EPT. */
	ept_identity(pml4);
	fresh(g_read);
	set_controls(0, 0, EPT);
	wr(EPTP, at(pml4) | 3 << 3 | 6);
	for (unsigned k = 0; k < 4; k++)
		wr(G_PDPTE + 2 * k, root[k]);
	check_eq("with EPT", run(), R_VMCALL);
	check_eq("... PDPTEs are the VMCS's", nested_seen, 0x3333);
	wr(G_PDPTE + 6, guest_root[3]);
	check_eq("... others", (wr(G_RIP, at(g_read)), run()), R_VMCALL);
	check_eq("... are those", nested_seen, 0x1111);
	check_eq("... and saved", rd(G_PDPTE + 6), guest_root[3]);
	check_eq("... the host's are its own", SEEN, 0x3333);
	return 0;
}
