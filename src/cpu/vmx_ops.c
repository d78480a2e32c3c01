/* VMX instructions in root operation: what VMXON, VMCLEAR, VMPTRLD and the rest do once the handler has
 * settled #UD, VM exits and privilege. Intel SDM vol. 3 chapter 30.
 *
 * Every one of them ends by setting the six status flags: VMsucceed, VMfailInvalid (no current VMCS to
 * hold an error number) or VMfailValid. */
#include "cpu/vmx.h"
#include "cpu/vmx_api.h"

static void status(struct cpu *c, u64 flags) { cpu_set_rflags(c, flags, FL_STATUS); }
static void succeed(struct cpu *c) { status(c, 0); }
static void fail_invalid(struct cpu *c) { status(c, FL_CF); }

void vmx_fail(struct cpu *c, unsigned error)
{
	if (c->vmx->current == VMCS_NONE) {
		fail_invalid(c);
		return;
	}
	VF(INSN_ERROR) = error;
	status(c, FL_ZF);
}

bool vmx_cr0_valid(u64 cr0, bool unrestricted)
{
	u64 fixed = unrestricted ? VMX_CR0_FIXED & ~(CR0_PE | CR0_PG) : VMX_CR0_FIXED;
	return !(fixed & ~cr0) && !(cr0 >> 32);
}

bool vmx_cr4_valid(const struct cpu *c, u64 cr4) { return (cr4 & CR4_VMXE) && !(cr4 & ~cpu_cr4_valid(c)); }

/* ---- VMXON, VMXOFF ---------------------------------------------------------------------------- */

void vmx_on(struct cpu *c, u64 addr)
{
	struct vmx *v = c->vmx;
	if (!vmx_address(c, addr, 4096) || (u32)mem_phys_read(c->mem, addr, 4) != VMCS_REVISION) {
		fail_invalid(c);
		return;
	}
	v->on = true;
	v->vmxon = addr;
	v->current = VMCS_NONE;
	cpu_update_events(c); /* INIT is blocked in root operation */
	succeed(c);
}

void vmx_need_on_possible(struct cpu *c)
{
	const u64 need = FEATURE_LOCK | FEATURE_VMX_OUTSIDE_SMX;
	if (c->cpl || !vmx_cr0_valid(c->cr0, false) || !vmx_cr4_valid(c, c->cr4) ||
	    (c->vmx->feature_control & need) != need)
		cpu_gp0(c);
}

void vmx_off(struct cpu *c)
{
	vmcs_store(c);
	c->vmx->on = false;
	c->vmx->current = VMCS_NONE;
	mmu_spaces_flush(c);
	cpu_update_events(c);
	succeed(c);
}

void vmx_reset(struct cpu *c, bool init)
{
	u64 feature_control = init ? c->vmx->feature_control : 0;
	*c->vmx = (struct vmx){ .current = VMCS_NONE, .feature_control = feature_control };
}

bool vmx_in_operation(const struct cpu *c) { return c->vmx->on; }

/* ---- VMCLEAR, VMPTRLD, VMPTRST ------------------------------------------------------------------ */

void vmx_clear(struct cpu *c, u64 addr)
{
	struct vmx *v = c->vmx;
	if (!vmx_address(c, addr, 4096)) {
		vmx_fail(c, VME_VMCLEAR_ADDRESS);
		return;
	}
	if (addr == v->vmxon) {
		vmx_fail(c, VME_VMCLEAR_VMXON);
		return;
	}
	if (addr == v->current) {
		v->vmcs.launched = 0;
		vmcs_store(c);
		v->current = VMCS_NONE;
	} else {
		vmcs_region_clear(c, addr);
	}
	succeed(c);
}

void vmx_ptrld(struct cpu *c, u64 addr)
{
	struct vmx *v = c->vmx;
	if (!vmx_address(c, addr, 4096)) {
		vmx_fail(c, VME_VMPTRLD_ADDRESS);
		return;
	}
	if (addr == v->vmxon) {
		vmx_fail(c, VME_VMPTRLD_VMXON);
		return;
	}
	/* Of a shadow VMCS bit 31 is set; that there are shadow VMCSs is what the control tells. */
	if (((u32)mem_phys_read(c->mem, addr, 4) & ~VMCS_SHADOW) != VMCS_REVISION) {
		vmx_fail(c, VME_VMPTRLD_REVISION);
		return;
	}
	if (addr != v->current) {
		vmcs_store(c);
		vmcs_load(c, addr);
	}
	succeed(c);
}

u64 vmx_ptrst(struct cpu *c) { return c->vmx->current; }
void vmx_succeed(struct cpu *c) { succeed(c); }

/* ---- VMREAD, VMWRITE -------------------------------------------------------------------------------- */

/* Guest mode: VMREAD and VMWRITE that the bitmaps let through act on the VMCS of the link pointer. */
static u64 shadow_of(const struct cpu *c) { return c->nested.mode == NEST_VMX ? VF(LINK_POINTER) : VMCS_NONE; }

static bool field_known(struct cpu *c, u64 encoding, unsigned *slot)
{
	bool none = c->nested.mode == NEST_VMX ? shadow_of(c) == VMCS_NONE : c->vmx->current == VMCS_NONE;
	if (none) {
		fail_invalid(c);
		return false;
	}
	int s = vmcs_slot(encoding);
	if (s < 0) {
		vmx_fail(c, VME_FIELD); /* in guest mode, too, in the VMCS that is current */
		return false;
	}
	*slot = (unsigned)s;
	return true;
}

bool vmx_read(struct cpu *c, u64 encoding, u64 *v)
{
	unsigned slot;
	if (!field_known(c, encoding, &slot))
		return false;
	c->nested_counts.shadowed += c->nested.mode == NEST_VMX;
	*v = c->nested.mode == NEST_VMX ? vmcs_region_read(c, shadow_of(c), encoding, slot)
					 : vmcs_field_read(&c->vmx->vmcs, encoding, slot);
	return true;
}

void vmx_write(struct cpu *c, u64 encoding, u64 v)
{
	unsigned slot;
	if (!field_known(c, encoding, &slot))
		return;
	c->nested_counts.shadowed += c->nested.mode == NEST_VMX;
	if (c->nested.mode == NEST_VMX)
		vmcs_region_write(c, shadow_of(c), encoding, slot, v);
	else
		vmcs_field_write(&c->vmx->vmcs, encoding, slot, v);
	succeed(c);
}

/* ---- VMLAUNCH, VMRESUME ----------------------------------------------------------------------------------- */

void vmx_launch_or_resume(struct cpu *c, bool launch)
{
	struct vmx *v = c->vmx;
	if (v->current == VMCS_NONE || (v->vmcs.revision & VMCS_SHADOW)) {
		fail_invalid(c);
		return;
	}
	if (c->shadow_before & SHADOW_SS) {
		vmx_fail(c, VME_MOV_SS);
		return;
	}
	if (launch && v->vmcs.launched) {
		vmx_fail(c, VME_LAUNCH_NOT_CLEAR);
		return;
	}
	if (!launch && !v->vmcs.launched) {
		vmx_fail(c, VME_RESUME_NOT_LAUNCHED);
		return;
	}
	unsigned error = vmx_enter(c, launch);
	if (error)
		vmx_fail(c, error);
}

/* ---- INVEPT, INVVPID -------------------------------------------------------------------------------------------- */

void vmx_invept(struct cpu *c, u64 type, const u64 desc[2])
{
	if (type < 1 || type > 2 || (type == 1 && !ept_pointer_valid(c, desc[0]))) {
		vmx_fail(c, VME_INVALIDATE_OPERAND);
		return;
	}
	mmu_root_flush(c, type == 1 ? desc[0] : 0);
	succeed(c);
}

/* Types: 0 an address, 1 a VPID, 2 all, 3 a VPID but for global pages. */
void vmx_invvpid(struct cpu *c, u64 type, const u64 desc[2])
{
	u16 vpid = (u16)desc[0];
	bool bad = type > 3 || desc[0] >> 16 || (type != 2 && !vpid) || (type == 0 && !cpu_address_valid(c, desc[1]));
	if (bad) {
		vmx_fail(c, VME_INVALIDATE_OPERAND);
		return;
	}
	if (type == 2)
		mmu_root_flush(c, 0);
	else
		mmu_space_flush(c, VMX_TAG(vpid));
	succeed(c);
}
