/* VM entry: checks on the guest-state area. Intel SDM vol. 3 26.3.1, in its order. Nothing here changes
 * state: the caller answers with exit reason 33 and the qualification. */
#include "cpu/msr.h"
#include "cpu/vmx.h"

/* What the checks look at again and again. */
struct guest {
	u64 cr0, cr4, rflags;
	u32 entry, intr_info;
	bool ia32e, v86, unrestricted, ept;
};
enum { QUAL_PDPTE = 2, QUAL_NMI = 3, QUAL_LINK = 4 };

/* Slots of one segment: vmcs.def keeps selectors, limits, access rights and bases in this order. */
#define SEL(n) (c->vmx->vmcs.f[VMCS_GUEST_ES_SEL + (n)])
#define LIMIT(n) (c->vmx->vmcs.f[VMCS_GUEST_ES_LIMIT + (n)])
#define AR(n) (c->vmx->vmcs.f[VMCS_GUEST_ES_AR + (n)])
#define BASE(n) (c->vmx->vmcs.f[VMCS_GUEST_ES_BASE + (n)])
enum { ES, CS, SS, DS, FS, GS, LDTR, TR };

static bool usable(const struct cpu *c, unsigned n) { return !(AR(n) & SEG_UNUSABLE); }
static unsigned dpl(u64 ar) { return ar >> 5 & 3; }

/* ---- control and debug registers, MSRs ------------------------------------------------------------ */

static bool registers_valid(struct cpu *c, const struct guest *g)
{
	if (!vmx_cr0_valid(g->cr0, g->unrestricted) || ((g->cr0 & CR0_PG) && !(g->cr0 & CR0_PE)) || !vmx_cr4_valid(c, g->cr4))
		return false;
	if ((g->entry & ENTRY_LOAD_DEBUG) && (VF(GUEST_DEBUGCTL) & ~3ull))
		return false;
	if (g->ia32e && !((g->cr0 & CR0_PG) && (g->cr4 & CR4_PAE)))
		return false;
	if (!g->ia32e && (g->cr4 & CR4_PCIDE))
		return false;
	if (VF(GUEST_CR3) & ~c->maxphyaddr_mask)
		return false;
	if ((g->entry & ENTRY_LOAD_DEBUG) && VF(GUEST_DR7) >> 32)
		return false;
	if (!cpu_address_valid(c, VF(GUEST_SYSENTER_ESP)) || !cpu_address_valid(c, VF(GUEST_SYSENTER_EIP)))
		return false;
	if ((g->entry & ENTRY_LOAD_PAT) && !pat_valid(VF(GUEST_PAT)))
		return false;
	if ((g->entry & ENTRY_LOAD_PKRS) && VF(GUEST_PKRS) >> 32)
		return false;
	if (!(g->entry & ENTRY_LOAD_EFER))
		return true;
	u64 efer = VF(GUEST_EFER);
	bool lma = efer & EFER_LMA, lme = efer & EFER_LME;
	return !(efer & ~cpu_efer_valid(c)) && lma == g->ia32e && (!(g->cr0 & CR0_PG) || lma == lme);
}

/* ---- segments ----------------------------------------------------------------------------------------- */

static bool selectors_valid(struct cpu *c, const struct guest *g)
{
	if ((SEL(TR) & 4) || (usable(c, LDTR) && (SEL(LDTR) & 4)))
		return false;
	return g->v86 || g->unrestricted || (SEL(SS) & 3) == (SEL(CS) & 3);
}

static bool bases_valid(struct cpu *c, const struct guest *g)
{
	for (unsigned n = ES; n <= GS; n++)
		if (g->v86 && BASE(n) != SEL(n) << 4)
			return false;
	if (!cpu_address_valid(c, BASE(TR)) || !cpu_address_valid(c, BASE(FS)) || !cpu_address_valid(c, BASE(GS)))
		return false;
	if ((usable(c, LDTR) && !cpu_address_valid(c, BASE(LDTR))) || BASE(CS) >> 32)
		return false;
	for (unsigned n = ES; n <= DS; n++)
		if (usable(c, n) && BASE(n) >> 32)
			return false;
	return true;
}

/* G against the limit: a limit with low bits clear is not of pages, one above 1 MiB is not of bytes. */
static bool granularity_valid(u64 limit, u64 ar)
{
	if ((limit & 0xfff) != 0xfff && (ar & SEG_G))
		return false;
	return !(limit >> 20) || (ar & SEG_G);
}

static bool code_valid(struct cpu *c, const struct guest *g)
{
	u64 ar = AR(CS);
	unsigned type = ar & SEG_TYPE, ss = dpl(AR(SS));
	if (!(ar & SEG_S) || !(ar & SEG_P) || (ar & 0xfffe0f00))
		return false;
	switch (type) {
	case 3: if (!g->unrestricted || dpl(ar)) return false; break;
	case 9: case 11: if (dpl(ar) != ss) return false; break;
	case 13: case 15: if (dpl(ar) > ss) return false; break;
	default: return false;
	}
	return !(g->ia32e && (ar & SEG_L) && (ar & SEG_DB)) && granularity_valid(LIMIT(CS), ar);
}

static bool stack_valid(struct cpu *c, const struct guest *g)
{
	u64 ar = AR(SS);
	if (!g->unrestricted && dpl(ar) != (SEL(SS) & 3))
		return false;
	/* Also of an unusable SS: its DPL is the CPL. */
	if (((AR(CS) & SEG_TYPE) == 3 || !(g->cr0 & CR0_PE)) && dpl(ar))
		return false;
	if (!usable(c, SS))
		return true;
	unsigned type = ar & SEG_TYPE;
	return (type == 3 || type == 7) && (ar & SEG_S) && (ar & SEG_P) && !(ar & 0xfffe0f00) &&
	       granularity_valid(LIMIT(SS), ar);
}

static bool data_valid(struct cpu *c, const struct guest *g, unsigned n)
{
	u64 ar = AR(n);
	unsigned type = ar & SEG_TYPE;
	if (!usable(c, n))
		return true;
	if (!(type & 1) || ((type & 8) && !(type & 2)) || !(ar & SEG_S) || !(ar & SEG_P) || (ar & 0xfffe0f00))
		return false;
	if (!g->unrestricted && type < 12 && dpl(ar) < (SEL(n) & 3))
		return false;
	return granularity_valid(LIMIT(n), ar);
}

static bool tr_valid(struct cpu *c, const struct guest *g)
{
	u64 ar = AR(TR);
	unsigned type = ar & SEG_TYPE;
	return (type == 11 || (type == 3 && !g->ia32e)) && !(ar & SEG_S) && (ar & SEG_P) && !(ar & 0xffff0f00) &&
	       granularity_valid(LIMIT(TR), ar);
}

static bool ldtr_valid(struct cpu *c)
{
	u64 ar = AR(LDTR);
	return !usable(c, LDTR) || ((ar & SEG_TYPE) == 2 && !(ar & SEG_S) && (ar & SEG_P) && !(ar & 0xfffe0f00) &&
				    granularity_valid(LIMIT(LDTR), ar));
}

static bool segments_valid(struct cpu *c, const struct guest *g)
{
	if (!selectors_valid(c, g) || !bases_valid(c, g))
		return false;
	if (g->v86) {
		for (unsigned n = ES; n <= GS; n++)
			if (LIMIT(n) != 0xffff || AR(n) != 0xf3)
				return false;
	} else if (!code_valid(c, g) || !stack_valid(c, g) || !data_valid(c, g, DS) || !data_valid(c, g, ES) ||
		   !data_valid(c, g, FS) || !data_valid(c, g, GS)) {
		return false;
	}
	return tr_valid(c, g) && ldtr_valid(c);
}

static bool tables_valid(struct cpu *c)
{
	return cpu_address_valid(c, VF(GUEST_GDTR_BASE)) && cpu_address_valid(c, VF(GUEST_IDTR_BASE)) &&
	       !(VF(GUEST_GDTR_LIMIT) >> 16) && !(VF(GUEST_IDTR_LIMIT) >> 16);
}

/* ---- RIP, RFLAGS ------------------------------------------------------------------------------------------ */

static bool rip_valid(struct cpu *c, const struct guest *g)
{
	if (!g->ia32e || !(AR(CS) & SEG_L) ? VF(GUEST_RIP) >> 32 : !cpu_address_valid(c, VF(GUEST_RIP)))
		return false;
	if ((g->rflags & 0xffffffffffc08028ull) || !(g->rflags & FL_1))
		return false;
	if (g->v86 && (g->ia32e || !(g->cr0 & CR0_PE)))
		return false;
	bool external = (g->intr_info & INTR_VALID) && (g->intr_info >> 8 & 7) == INTR_EXTERNAL;
	return !external || (g->rflags & FL_IF);
}

/* ---- what is no register ------------------------------------------------------------------------------------- */

enum { ACTIVE, HALTED, SHUT_DOWN, WAITING };

static bool activity_valid(struct cpu *c, const struct guest *g)
{
	unsigned vector = g->intr_info & 0xff, type = g->intr_info >> 8 & 7;
	u64 a = VF(GUEST_ACTIVITY);
	if (a > WAITING || (a == HALTED && dpl(AR(SS))))
		return false;
	if (a != ACTIVE && (VF(GUEST_INTERRUPTIBILITY) & (BLOCK_STI | BLOCK_MOV_SS)))
		return false;
	if (!(g->intr_info & INTR_VALID))
		return true;
	bool machine_check = type == INTR_HARD_EXC && vector == V_MC;
	switch (a) {
	case HALTED:
		return type == INTR_EXTERNAL || type == INTR_NMI || machine_check || (type == INTR_HARD_EXC && vector == V_DB) ||
		       type == INTR_OTHER;
	case SHUT_DOWN: return type == INTR_NMI || machine_check;
	case WAITING: return false;
	default: return true;
	}
}

static bool interruptibility_valid(struct cpu *c, const struct guest *g, u64 *qual)
{
	u64 s = VF(GUEST_INTERRUPTIBILITY);
	bool sti = s & BLOCK_STI, mov_ss = s & BLOCK_MOV_SS, injects = g->intr_info & INTR_VALID;
	unsigned type = g->intr_info >> 8 & 7;
	if ((s & ~0xfull) || (sti && mov_ss) || (sti && !(g->rflags & FL_IF)) || (s & BLOCK_SMI))
		return false;
	if (injects && type == INTR_EXTERNAL && (sti || mov_ss))
		return false;
	if (injects && type == INTR_NMI) {
		if (mov_ss || sti) {
			*qual = mov_ss ? QUAL_NMI : 0;
			return false;
		}
		if ((VF(PIN_CONTROLS) & PIN_VIRTUAL_NMI) && (s & BLOCK_NMI))
			return false;
	}
	return true;
}

static bool pending_debug_valid(struct cpu *c, const struct guest *g)
{
	u64 p = VF(GUEST_PENDING_DEBUG);
	if (p & ~(0xfull | PENDING_ENABLED | PENDING_BS | 1ull << 16))
		return false;
	if (p & 1ull << 16)
		return false; /* RTM: there is none */
	if (!(VF(GUEST_INTERRUPTIBILITY) & (BLOCK_STI | BLOCK_MOV_SS)) && VF(GUEST_ACTIVITY) != HALTED)
		return true;
	bool btf = VF(GUEST_DEBUGCTL) & 2;
	return !!(p & PENDING_BS) == ((g->rflags & FL_TF) && !btf);
}

static bool link_valid(struct cpu *c)
{
	u64 link = VF(LINK_POINTER);
	if (link == VMCS_NONE)
		return true;
	if (!vmx_address(c, link, 4096) || link == c->vmx->current)
		return false;
	bool shadowing = (VF(PROC_CONTROLS) & PROC_SECONDARY) && (VF(PROC2_CONTROLS) & PROC2_SHADOW);
	return (u32)mem_phys_read(c->mem, link, 4) == (VMCS_REVISION | (shadowing ? VMCS_SHADOW : 0));
}

/* ---- PDPTEs ------------------------------------------------------------------------------------------------------ */

static bool pdptes_valid(const struct cpu *c, const u64 pdpte[4])
{
	u64 rsvd = ~c->maxphyaddr_mask | 0x1e6;
	for (unsigned k = 0; k < 4; k++)
		if ((pdpte[k] & 1) && (pdpte[k] & rsvd))
			return false;
	return true;
}

static bool pae_valid(struct cpu *c, const struct guest *g)
{
	u64 pdpte[4];
	if (!(g->cr0 & CR0_PG) || !(g->cr4 & CR4_PAE) || g->ia32e)
		return true;
	for (unsigned k = 0; k < 4; k++)
		pdpte[k] = g->ept ? c->vmx->vmcs.f[VMCS_GUEST_PDPTE0 + k]
				  : mem_phys_read(c->mem, (VF(GUEST_CR3) & 0xffffffe0) + 8 * k, 8);
	return pdptes_valid(c, pdpte);
}

bool vmx_guest_valid(struct cpu *c, u64 *qual)
{
	u32 proc2 = VF(PROC_CONTROLS) & PROC_SECONDARY ? (u32)VF(PROC2_CONTROLS) : 0;
	struct guest g = { .cr0 = VF(GUEST_CR0), .cr4 = VF(GUEST_CR4), .rflags = VF(GUEST_RFLAGS),
			   .entry = (u32)VF(ENTRY_CONTROLS), .intr_info = (u32)VF(ENTRY_INTR_INFO),
			   .ia32e = VF(ENTRY_CONTROLS) & ENTRY_IA32E, .v86 = VF(GUEST_RFLAGS) & FL_VM,
			   .unrestricted = proc2 & PROC2_UNRESTRICTED, .ept = proc2 & PROC2_EPT };
	*qual = 0;
	if (!registers_valid(c, &g) || !segments_valid(c, &g) || !tables_valid(c) || !rip_valid(c, &g) ||
	    !activity_valid(c, &g) || !interruptibility_valid(c, &g, qual) || !pending_debug_valid(c, &g))
		return false;
	if (!link_valid(c)) {
		*qual = QUAL_LINK;
		return false;
	}
	if (!pae_valid(c, &g)) {
		*qual = QUAL_PDPTE;
		return false;
	}
	return true;
}
