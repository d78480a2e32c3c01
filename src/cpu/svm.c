/* AMD-V's instructions, registers and interrupts: VMRUN and its like, the global interrupt flag, virtual
 * interrupts, VMLOAD and VMSAVE, the time that a guest sees. AMD APM vol. 2 chapter 15; vol. 3.
 *
 * SKINIT: the processor comes up in the loader as the manual has it, with the platform's part left out:
 * there is no TPM that the loader could be measured into, and no device exclusion vector. 15.27. */
#define LOG_TOPIC "cpu"
#include <string.h>

#include "cpu/mmu.h"
#include "cpu/seg.h"
#include "cpu/svm.h"
#include "cpu/svm_api.h"

void svm_reset(struct cpu *c, bool init)
{
	struct svm *s = c->svm;
	u64 vm_cr = s->vm_cr, hsave = s->hsave_pa, ratio = s->tsc_ratio, key = s->key;
	memset(s, 0, sizeof(*s));
	s->gif = true;
	s->tsc_ratio = TSC_RATIO_ONE;
	if (init) {
		s->vm_cr = vm_cr;
		s->hsave_pa = hsave;
		s->tsc_ratio = ratio;
		s->key = key;
	}
}

/* ---- interrupts ------------------------------------------------------------------------------ */

void svm_set_gif(struct cpu *c, bool on)
{
	c->svm->gif = on;
	c->nested.held = !on;
	cpu_update_events(c);
}

void svm_update_vintr(struct cpu *c)
{
	u32 v = c->svm->vintr;
	bool due = (v & V_IRQ) && ((v & V_IGN_TPR) || (v >> V_PRIO_SHIFT & 15) > (v & V_TPR)) &&
		   (!(v & V_GIF_ENABLE) || (v & V_GIF));
	if (due && c->nested.mode == NEST_SVM)
		cpu_post_event(c, EV_VINTR);
	else
		cpu_clear_event(c, EV_VINTR);
}

int svm_vintr(struct cpu *c)
{
	if (svm_wants(c, SVM_EXIT_VINTR))
		svm_exit(c, SVM_EXIT_VINTR, 0, 0);
	c->svm->vintr &= ~(u32)V_IRQ;
	svm_update_vintr(c);
	return c->svm->vector;
}

void svm_service(struct cpu *c)
{
	u64 event = c->svm->event;
	cpu_clear_event(c, EV_NESTED);
	c->svm->event = 0;
	if (event)
		exception_inject(c, event, c->svm->event_rip);
}

static bool tpr_is_virtual(const struct cpu *c) { return c->svm->vintr & V_INTR_MASKING; }

bool svm_tpr_read(struct cpu *c, u8 *tpr)
{
	*tpr = (u8)((c->svm->vintr & V_TPR) << 4);
	return tpr_is_virtual(c);
}

bool svm_tpr_write(struct cpu *c, u8 tpr)
{
	if (!tpr_is_virtual(c))
		return false;
	c->svm->vintr = (c->svm->vintr & ~(u32)V_TPR) | tpr >> 4;
	svm_update_vintr(c);
	return true;
}

/* ---- time ---------------------------------------------------------------------------------------- */

u64 svm_tsc(const struct cpu *c, u64 tsc)
{
	return (u64)((unsigned __int128)tsc * c->svm->tsc_ratio >> 32) + c->svm->tsc_offset;
}

/* ---- memory ---------------------------------------------------------------------------------------- */

u8 *svm_page(struct cpu *c, u64 pa)
{
	return pa & (PAGE_MASK | ~c->maxphyaddr_mask) ? NULL : mem_ram(c->mem, pa);
}

void svm_written(struct cpu *c, const u8 *p, unsigned n)
{
	mem_code_hit(c, mmu_code_of(c, p), (unsigned)((u64)(p - c->mem->ram) & PAGE_MASK), n);
}

/* ---- the instructions ---------------------------------------------------------------------------------- */

/* What all of them ask for. */
static void need_svm(struct cpu *c)
{
	if (!(c->efer & EFER_SVME) || !cpu_protected(c))
		cpu_ud(c);
	if (c->cpl)
		cpu_gp0(c);
}

/* rAX's page; in the guest of a hypervisor that has VMLOAD and VMSAVE virtualized, a guest-physical one. */
static u8 *need_page(struct cpu *c, u64 pa, enum vm_insn x)
{
	if ((pa & PAGE_MASK) || (pa & ~c->maxphyaddr_mask))
		cpu_gp0(c);
	nested_check(c, ICPT_VM, x);
	if (c->nested.mode == NEST_SVM && (c->svm->virt_ext & VIRT_VMLOAD)) {
		enum access acc = x == VM_SAVE ? ACC_WRITE : ACC_READ;
		struct nested_page np;
		if (!nested_translate(c, pa, acc, NP_FINAL, &np))
			nested_paging_fault(c, pa, pa, acc, NP_FINAL);
		pa = np.gpa;
	}
	u8 *p = svm_page(c, pa);
	if (!p)
		cpu_gp0(c);
	return p;
}

void svm_vmrun_insn(struct cpu *c, u64 pa)
{
	need_svm(c);
	u8 *v = need_page(c, pa, VM_RUN);
	if (c->nested.mode)
		cpu_ud(c); /* in a guest of VT-x; AMD-V's must have it intercepted */
	memcpy(c->svm->image, v, sizeof(c->svm->image));
	if (svm_enter(c, pa))
		return;
	st64(v + VMCB_EXITCODE, SVM_EXIT_INVALID);
	svm_count_exit(c, SVM_EXIT_INVALID);
	st64(v + VMCB_EXITINFO1, 0);
	st64(v + VMCB_EXITINFO2, 0);
	st64(v + VMCB_EXITINTINFO, 0);
	svm_written(c, v, VMCB_BYTES);
	svm_set_gif(c, false);
}

void svm_vmload_insn(struct cpu *c, u64 pa)
{
	need_svm(c);
	svm_vmload(c, need_page(c, pa, VM_LOAD));
}

void svm_vmsave_insn(struct cpu *c, u64 pa)
{
	need_svm(c);
	u8 *p = need_page(c, pa, VM_SAVE);
	svm_vmsave(c, p);
	svm_written(c, p, VMCB_BYTES);
}

/* No hypervisor wants it: an undefined opcode. */
void svm_vmmcall_insn(struct cpu *c)
{
	nested_check(c, ICPT_VM, VM_MCALL);
	cpu_ud(c);
}

void svm_gif_insn(struct cpu *c, bool on)
{
	bool loader = on && cpu_has(c, FEAT_SKINIT) && cpu_protected(c) && !c->cpl; /* needs no SVME */
	if (!loader)
		need_svm(c);
	nested_check(c, ICPT_VM, on ? VM_STGI : VM_CLGI);
	if (c->nested.mode == NEST_SVM && (c->svm->vintr & V_GIF_ENABLE)) {
		c->svm->vintr = (c->svm->vintr & ~(u32)V_GIF) | (on ? V_GIF : 0);
		svm_update_vintr(c);
		return;
	}
	svm_set_gif(c, on);
}

void svm_invlpga_insn(struct cpu *c, u64 lin, u32 asid)
{
	need_svm(c);
	nested_check(c, ICPT_VM, VM_INVLPGA);
	(void)asid; /* translations of lin go from all spaces */
	mmu_invlpg(c, cpu_code64(c) ? lin : (u32)lin);
}

/* The secure loader block: 64 KiB at eax's upper half. Its header: entry point 15:0, length 31:16. */
void svm_skinit_insn(struct cpu *c)
{
	if (!cpu_has(c, FEAT_SKINIT) || !cpu_protected(c))
		cpu_ud(c);
	if (c->cpl)
		cpu_gp0(c);
	nested_check(c, ICPT_VM, VM_SKINIT);
	u32 base = (u32)c->regs[R_AX] & 0xffff0000;
	u16 entry = (u16)mem_phys_read(c->mem, base, 2);
	u64 tsc_ratio = c->svm->tsc_ratio, hsave = c->svm->hsave_pa, vm_cr = c->svm->vm_cr;
	u32 events = atomic_load(&c->events);
	bool nmi_blocked = c->nmi_blocked;
	cpu_reset(c, true);
	atomic_fetch_or(&c->events, events & ~(u32)(EV_VINTR | EV_NESTED));
	c->nmi_blocked = nmi_blocked;
	c->activity = ACT_RUN;
	c->svm->tsc_ratio = tsc_ratio;
	c->svm->hsave_pa = hsave;
	c->svm->vm_cr = vm_cr | VM_CR_R_INIT | 1 /* DPD: the debug port is off */ | 4 /* DIS_A20M */;
	c->regs[R_AX] = base;
	c->regs[R_SP] = base + 0x10000u;
	c->rip = base + entry;
	c->cr0 = CR0_PE | CR0_ET;
	c->seg[S_CS] = seg_flat(8, ATTR_CODE32);
	c->seg[S_SS] = seg_flat(16, ATTR_DATA32);
	svm_set_gif(c, false);
	cpu_update_mode(c);
}
