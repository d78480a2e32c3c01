/* Between struct cpu and KVM: all of a processor, both ways.
 *
 *   struct cpu                 KVM's
 *   regs, rip, rflags          KVM_GET_REGS
 *   seg, tables, cr, efer, cpl KVM_GET_SREGS2 (KVM_GET_SREGS; then the PDPTEs come from memory). CPL is SS's DPL
 *   fxarea, zmm, k, pkru       KVM_GET_XSAVE, where the host's XSAVE has them; f..: its legacy area
 *   xcr0                       KVM_GET_XCRS
 *   dr                         KVM_GET_DEBUGREGS
 *   nmi_blocked, shadow        KVM_GET_VCPU_EVENTS
 *   engine_keeps               KVM_GET_NESTED_STATE (nested.c)
 *   msr                        KVM_GET_MSRS, those of model.c
 *   TSC                        an offset to the host's: the clock's and TSC_ADJUST
 * Events that nobody has taken yet (EV_*) are ours alone.
 *
 * What was last known to be in KVM is kept (`last`): what equals it is not put again.
 * Source: Documentation/virt/kvm/api.rst; SDM vol. 1 13.4 (the XSAVE area), 10.5 (its legacy part). */
#define LOG_TOPIC "kvm"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kvm/kvm_impl.h"

enum { XC_SSE = 1, XC_AVX, XC_OPMASK = 5, XC_ZMM_HI256, XC_HI16_ZMM, XC_PKRU = 9 };
enum { FX_FOP = 6, FX_FIP = 8, FX_FDP = 16, FX_MXCSR_MASK = 28, FX_ST = 32, FX_XMM = 160, XS_HEADER = 512 };

/* ---- segments, control registers -------------------------------------------------------------------- */

static void segment_put(struct kvm_segment *k, const struct segment *s)
{
	*k = (struct kvm_segment){ .base = s->base, .limit = s->limit, .selector = s->sel, .type = s->attr & SEG_TYPE,
		.s = s->attr >> 4 & 1, .dpl = s->attr >> 5 & 3, .present = s->attr >> 7 & 1, .avl = s->attr >> 12 & 1,
		.l = s->attr >> 13 & 1, .db = s->attr >> 14 & 1, .g = s->attr >> 15 & 1, .unusable = s->attr >> 16 & 1 };
}

static void segment_get(struct segment *s, const struct kvm_segment *k)
{
	*s = (struct segment){ .sel = k->selector, .base = k->base, .limit = k->limit,
		.attr = k->type | (u32)k->s << 4 | (u32)k->dpl << 5 | (u32)k->present << 7 | (u32)k->avl << 12 |
			(u32)k->l << 13 | (u32)k->db << 14 | (u32)k->g << 15 | (u32)(k->unusable || !k->present) << 16 };
}

static bool pae(const struct cpu *c) { return (c->cr0 & CR0_PG) && (c->cr4 & CR4_PAE) && !cpu_long(c); }

static u64 apic_base(const struct cpu *c)
{
	u64 v = 0xfee00000 | 0x800 | (c->bsp ? 0x100 : 0);
	if (c->hooks && c->hooks->apic_msr_read)
		c->hooks->apic_msr_read(c->hooks->arg, 0x1b, &v);
	return v;
}

static void sregs_put(const struct cpu *c, struct kvm_sregs2 *s, u64 tpr)
{
	struct kvm_segment *const seg[N_SREGS] = { &s->es, &s->cs, &s->ss, &s->ds, &s->fs, &s->gs, &s->ldt, &s->tr };
	for (unsigned k = 0; k < N_SREGS; k++)
		segment_put(seg[k], &c->seg[k]);
	s->ss.dpl = c->cpl & 3;
	s->gdt.base = c->gdtr.base;
	s->gdt.limit = c->gdtr.limit;
	s->idt.base = c->idtr.base;
	s->idt.limit = c->idtr.limit;
	s->cr0 = c->cr0;
	s->cr2 = c->cr2;
	s->cr3 = c->cr3;
	s->cr4 = c->cr4;
	s->cr8 = tpr >> 4;
	s->efer = c->efer;
	s->apic_base = apic_base(c);
	if (pae(c)) {
		s->flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
		memcpy(s->pdptrs, c->pdpte, sizeof(s->pdptrs));
	}
}

static void sregs_get(struct cpu *c, const struct kvm_sregs2 *s)
{
	const struct kvm_segment *const seg[N_SREGS] = { &s->es, &s->cs, &s->ss, &s->ds, &s->fs, &s->gs, &s->ldt, &s->tr };
	for (unsigned k = 0; k < N_SREGS; k++)
		segment_get(&c->seg[k], seg[k]);
	c->cpl = s->ss.dpl;
	c->gdtr = (struct dtable){ s->gdt.base, s->gdt.limit };
	c->idtr = (struct dtable){ s->idt.base, s->idt.limit };
	c->cr0 = s->cr0 | CR0_ET;
	c->cr2 = s->cr2;
	c->cr3 = s->cr3;
	c->cr4 = s->cr4;
	c->efer = s->efer;
	if (pae(c) && s->flags & KVM_SREGS2_FLAGS_PDPTRS_VALID)
		memcpy(c->pdpte, s->pdptrs, sizeof(c->pdpte));
	else if (pae(c))
		mmu_load_pdptes(c, c->cr3);
}

/* ---- floating point, vectors ---------------------------------------------------------------------------- */

/* The registers of a component: pieces of so many bytes, `stride` apart. */
struct pieces { u8 *first; unsigned stride, bytes, n; };

static struct pieces component(struct cpu *c, unsigned k)
{
	switch (k) {
	case XC_SSE: return (struct pieces){ c->zmm[0], 64, 16, 16 };
	case XC_AVX: return (struct pieces){ c->zmm[0] + 16, 64, 16, 16 };
	case XC_OPMASK: return (struct pieces){ (u8 *)c->k, 8, 8, 8 };
	case XC_ZMM_HI256: return (struct pieces){ c->zmm[0] + 32, 64, 32, 16 };
	case XC_HI16_ZMM: return (struct pieces){ c->zmm[16], 64, 64, 16 };
	case XC_PKRU: return (struct pieces){ (u8 *)&c->pkru, 4, 4, 1 };
	default: return (struct pieces){ 0 };
	}
}

/* Where a component is in KVM's area; 0: KVM has none of it. */
static u32 component_at(const struct kvm_vcpu *v, unsigned k)
{
	if (k == XC_SSE)
		return FX_XMM;
	return v->cpu->model->xcr0_mask >> k & 1 ? v->vm->xsave_offset[k] : 0;
}

static void xsave_put(struct kvm_vcpu *v, u8 *area)
{
	struct cpu *c = v->cpu;
	u64 bv = 3;
	memcpy(area, c->fxarea, FX_XMM);
	st16(area + FX_FOP, c->fop & 0x7ff);
	st64(area + FX_FIP, c->fip);
	st64(area + FX_FDP, c->fdp);
	st32(area + FX_MXCSR_MASK, 0);
	for (unsigned k = XC_SSE; k <= XC_PKRU; k++) {
		struct pieces p = component(c, k);
		u32 at = component_at(v, k);
		for (unsigned n = 0; at && n < p.n; n++)
			memcpy(area + at + n * p.bytes, p.first + n * p.stride, p.bytes);
		bv |= at && p.n ? 1ull << k : 0;
	}
	st64(area + XS_HEADER, bv);
}

/* A component whose bit in the header is clear has its initial values, wherever KVM has not written them. */
static void xsave_get(struct kvm_vcpu *v, const u8 *area)
{
	static const u8 zeros[64];
	struct cpu *c = v->cpu;
	u64 bv = ld64(area + XS_HEADER), fip = ld64(area + FX_FIP), fdp = ld64(area + FX_FDP);
	memcpy(c->fxarea, area, FX_XMM);
	if (!(bv & 1)) {
		memset(c->fxarea, 0, 24);
		st16(c->fxarea, 0x37f);
		memset(c->fxarea + FX_ST, 0, FX_XMM - FX_ST);
		fip = fdp = 0;
	}
	/* KVM's form has no selectors: those of an instruction that is still the last one stay. */
	c->fcs = fip == c->fip ? c->fcs : 0;
	c->fds = fdp == c->fdp ? c->fds : 0;
	c->fop = ld16(c->fxarea + FX_FOP) & 0x7ff;
	c->fip = fip;
	c->fdp = fdp;
	st16(c->fxarea + FX_FOP, 0);
	memset(c->fxarea + FX_FIP, 0, 16);
	for (unsigned k = XC_SSE; k <= XC_PKRU; k++) {
		struct pieces p = component(c, k);
		u32 at = component_at(v, k);
		for (unsigned n = 0; at && n < p.n; n++)
			memcpy(p.first + n * p.stride, bv >> k & 1 ? area + at + n * p.bytes : zeros, p.bytes);
	}
}

/* ---- MSRs ---------------------------------------------------------------------------------------------------- */

/* Of struct cpu; the order is model.c's. */
static u64 *msr_field(struct cpu *c, u32 msr)
{
	switch (msr) {
	case 0x174: return &c->msr.sysenter_cs;
	case 0x175: return &c->msr.sysenter_esp;
	case 0x176: return &c->msr.sysenter_eip;
	case 0x277: return &c->msr.pat;
	case 0xc0000081: return &c->msr.star;
	case 0xc0000082: return &c->msr.lstar;
	case 0xc0000083: return &c->msr.cstar;
	case 0xc0000084: return &c->msr.fmask;
	case 0xc0000102: return &c->msr.kernel_gs_base;
	case 0xc0000103: return &c->msr.tsc_aux;
	case 0xda0: return &c->xss;
	case 0x48: return &c->msr.spec_ctrl;
	case 0x1d9: return &c->msr.debugctl;
	default: bug("MSR %#x is moved and has no place", msr);
	}
}

static u64 msr_of(struct cpu *c, u32 msr)
{
	u64 val = 0;
	if (!model_msr_is_nested(msr))
		return *msr_field(c, msr);
	msr_read(c, msr, &val);
	return val;
}

static void msr_to(struct cpu *c, u32 msr, u64 val)
{
	if (!model_msr_is_nested(msr))
		*msr_field(c, msr) = val;
	else if (msr_of(c, msr) != val)
		msr_write(c, msr, val);
}

struct msr_list { struct kvm_msrs head; struct kvm_msr_entry e[STATE_MSRS]; };

static int msrs_move(const struct kvm_vcpu *v, unsigned long request, u64 *values)
{
	struct msr_list l = { 0 };
	u8 at[STATE_MSRS];
	for (u8 k = 0; model_msr(k); k++) {
		if (!v->msr_there[k])
			continue;
		at[l.head.nmsrs] = k;
		l.e[l.head.nmsrs++] = (struct kvm_msr_entry){ .index = model_msr(k), .data = values[k] };
	}
	int r = vcpu_call(v, request, &l);
	if (r >= 0 && (u32)r < l.head.nmsrs) { /* the number of those that went well */
		log_error("%s: processor %u: MSR %#x: %#llx is refused", v->vm->host->name, v->cpu->index, l.e[r].index, (unsigned long long)l.e[r].data);
		return -EINVAL;
	}
	for (u32 k = 0; r >= 0 && k < l.head.nmsrs; k++)
		values[at[k]] = l.e[k].data;
	return r;
}

static int tsc_move(const struct kvm_vcpu *v, unsigned long request, u64 *offset)
{
	struct kvm_device_attr a = { .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (u64)(uintptr_t)offset };
	return vcpu_call(v, request, &a);
}

/* Without the attribute: by its value now, which KVM takes for one with other processors' where they are near. */
static int tsc_put(const struct kvm_vcpu *v, u64 offset)
{
	if (v->vm->tsc_offset)
		return tsc_move(v, KVM_SET_DEVICE_ATTR, &offset);
	struct msr_list l = { .head.nmsrs = 1, .e[0] = { .index = 0x10, .data = __builtin_ia32_rdtsc() + offset } };
	int r = vcpu_call(v, KVM_SET_MSRS, &l);
	return r < 0 ? r : 0;
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

static void regs_put(const struct cpu *c, struct kvm_regs *r)
{
	*r = (struct kvm_regs){ .rax = c->regs[R_AX], .rbx = c->regs[R_BX], .rcx = c->regs[R_CX], .rdx = c->regs[R_DX],
		.rsi = c->regs[R_SI], .rdi = c->regs[R_DI], .rsp = c->regs[R_SP], .rbp = c->regs[R_BP], .rip = c->rip, .rflags = c->rflags };
	memcpy(&r->r8, &c->regs[R_8], 8 * sizeof(u64));
}

static void regs_get(struct cpu *c, const struct kvm_regs *r)
{
	c->regs[R_AX] = r->rax, c->regs[R_BX] = r->rbx, c->regs[R_CX] = r->rcx, c->regs[R_DX] = r->rdx;
	c->regs[R_SI] = r->rsi, c->regs[R_DI] = r->rdi, c->regs[R_SP] = r->rsp, c->regs[R_BP] = r->rbp;
	memcpy(&c->regs[R_8], &r->r8, 8 * sizeof(u64));
	c->rip = r->rip;
	c->rflags = r->rflags | FL_1;
}
_Static_assert(offsetof(struct kvm_regs, r15) - offsetof(struct kvm_regs, r8) == 7 * sizeof(u64), "r8 to r15 in a row");

/* own: the LAPICs are ours, so that none but us gives KVM an NMI; or it has one that was taken over. */
static void events_put(const struct cpu *c, struct kvm_vcpu_events *e, bool own)
{
	e->nmi.masked = c->nmi_blocked;
	e->interrupt.shadow = (u8)((c->shadow & SHADOW_STI ? KVM_X86_SHADOW_INT_STI : 0) | (c->shadow & SHADOW_SS ? KVM_X86_SHADOW_INT_MOV_SS : 0));
	e->flags = KVM_VCPUEVENT_VALID_SHADOW | (own ? KVM_VCPUEVENT_VALID_NMI_PENDING : 0);
}

/* An INIT that waited in another processor of KVM's; what has come to this one already stays. */
static void events_moved(struct kvm_vcpu_events *e, const struct kvm_vcpu_events *from)
{
	e->flags &= ~(u32)KVM_VCPUEVENT_VALID_SMM;
	if ((e->smi.latched_init = from->smi.latched_init))
		e->flags |= KVM_VCPUEVENT_VALID_SMM;
	if (!e->nmi.pending)
		e->flags &= ~(u32)KVM_VCPUEVENT_VALID_NMI_PENDING;
}

static void events_get(struct cpu *c, const struct kvm_vcpu_events *e)
{
	c->nmi_blocked = e->nmi.masked;
	c->shadow = (u8)((e->interrupt.shadow & KVM_X86_SHADOW_INT_STI ? SHADOW_STI : 0) | (e->interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS ? SHADOW_SS : 0));
}

/* A processor that a reset has made wait takes a SIPI with no INIT before it. */
u32 mp_state(const struct cpu *c)
{
	return c->activity == ACT_HLT ? KVM_MP_STATE_HALTED : c->activity == ACT_WAIT_SIPI ? KVM_MP_STATE_INIT_RECEIVED : KVM_MP_STATE_RUNNABLE;
}

static u8 activity_of(u32 mp)
{
	return mp == KVM_MP_STATE_HALTED ? ACT_HLT : mp == KVM_MP_STATE_UNINITIALIZED || mp == KVM_MP_STATE_INIT_RECEIVED ? ACT_WAIT_SIPI : ACT_RUN;
}

/* struct cpu as KVM takes it. */
static void build(struct kvm_vcpu *v, struct state *s)
{
	struct cpu *c = v->cpu;
	u8 tpr = c->hooks && c->hooks->get_tpr ? c->hooks->get_tpr(c->hooks->arg) : 0;
	memset(s, 0, sizeof(*s));
	regs_put(c, &s->regs);
	sregs_put(c, &s->sregs, tpr);
	xsave_put(v, (u8 *)s->xsave.region);
	s->xcrs.nr_xcrs = 1;
	s->xcrs.xcrs[0].value = c->xcr0;
	memcpy(s->debugregs.db, c->dr, sizeof(s->debugregs.db));
	s->debugregs.dr6 = c->dr[6];
	s->debugregs.dr7 = c->dr[7];
	events_put(c, &s->events, !v->vm->split || v->last->events.nmi.pending);
	for (unsigned k = 0; model_msr(k); k++)
		s->msr[k] = v->msr_there[k] ? msr_of(c, model_msr(k)) : 0;
	s->tsc_offset = c->clock->tsc_offset + c->msr.tsc_adjust;
	if (!v->vm->split)
		return;
	s->mp.mp_state = mp_state(c);
	mem_lock(c->mem);
	c->hooks->apic_get(c->hooks->arg, &s->apic);
	mem_unlock(c->mem);
}

/* The older form is the same but for its end: PDPTEs that KVM reads from memory. */
int sregs_call(const struct kvm_vcpu *v, bool put, struct kvm_sregs2 *s)
{
	if (v->vm->sregs2)
		return vcpu_call(v, put ? KVM_SET_SREGS2 : KVM_GET_SREGS2, s);
	struct kvm_sregs old = { 0 };
	memcpy(&old, s, offsetof(struct kvm_sregs, interrupt_bitmap));
	int r = vcpu_call(v, put ? KVM_SET_SREGS : KVM_GET_SREGS, &old);
	if (r >= 0 && !put)
		memcpy(s, &old, offsetof(struct kvm_sregs, interrupt_bitmap));
	return r;
}
_Static_assert(offsetof(struct kvm_sregs, interrupt_bitmap) == offsetof(struct kvm_sregs2, flags), "alike up to there");

static int sregs_give(const struct kvm_vcpu *v, const struct kvm_sregs2 *s)
{
	struct kvm_sregs2 as_taken = *s;
	as_taken.cr4 |= nested_wider_cr4(v);
	return sregs_call(v, true, &as_taken);
}

#define SAME(field) (v->known && !memcmp(&s->field, &v->last->field, sizeof(s->field)))

/* As seldom as can be: another processor's IPI that came just then would be lost. */
static int apic_put(struct kvm_vcpu *v, const struct state *s)
{
	if (!v->known || !apic_same(&s->apic, &v->last->apic))
		return apic_give(v, &s->apic, &v->last->apic);
	return SAME(tsc_offset) ? 0 : apic_rearm(v, s->apic.tsc_deadline);
}

/* The name of the request that KVM refused, or NULL. */
static const char *put_all(struct kvm_vcpu *v, struct state *s, int *r)
{
	bool xsave = cpu_has(v->cpu, FEAT_XSAVE);
	if ((*r = nested_forget(v, &s->sregs)) < 0)
		return "KVM_SET_NESTED_STATE";
	if (!SAME(sregs) && (*r = sregs_give(v, &s->sregs)) < 0)
		return "KVM_SET_SREGS";
	if (!SAME(msr) && (*r = msrs_move(v, KVM_SET_MSRS, s->msr)) < 0) /* CR4.LA57 says which addresses are canonical */
		return "KVM_SET_MSRS";
	bool moved = v->untold;
	if ((*r = nested_tell(v)) < 0)
		return "KVM_SET_NESTED_STATE";
	if (!SAME(regs) && (*r = vcpu_call(v, KVM_SET_REGS, &s->regs)) < 0)
		return "KVM_SET_REGS";
	if (xsave && !SAME(xcrs) && (*r = vcpu_call(v, KVM_SET_XCRS, &s->xcrs)) < 0)
		return "KVM_SET_XCRS";
	if (!SAME(xsave) && (*r = vcpu_call(v, KVM_SET_XSAVE, &s->xsave)) < 0)
		return "KVM_SET_XSAVE";
	if (!SAME(tsc_offset) && (*r = tsc_put(v, s->tsc_offset)) < 0)
		return "the TSC's offset";
	if (!SAME(debugregs) && (*r = vcpu_call(v, KVM_SET_DEBUGREGS, &s->debugregs)) < 0)
		return "KVM_SET_DEBUGREGS";
	if (v->vm->split && (*r = apic_put(v, s)) < 0)
		return "KVM_SET_LAPIC";
	if (v->vm->split && !SAME(mp) && (*r = vcpu_call(v, KVM_SET_MP_STATE, &s->mp)) < 0)
		return "KVM_SET_MP_STATE";
	/* Always: what waits within KVM, an exception say, goes with it. But a hypervisor's guest's is KVM's to deliver. */
	if (v->l2)
		s->events = v->last->events;
	if (moved)
		events_moved(&s->events, &v->last->events);
	if ((!v->l2 || moved) && (*r = vcpu_call(v, KVM_SET_VCPU_EVENTS, &s->events)) < 0)
		return "KVM_SET_VCPU_EVENTS";
	return NULL;
}

static const char *get_all(struct kvm_vcpu *v, struct state *s, int *r)
{
	bool xsave = cpu_has(v->cpu, FEAT_XSAVE);
	*s = (struct state){ .tsc_offset = s->tsc_offset };
	/* First: an INIT or a SIPI that waits is carried out by it. */
	if (v->vm->split && (*r = vcpu_call(v, KVM_GET_MP_STATE, &s->mp)) < 0)
		return "KVM_GET_MP_STATE";
	if ((*r = vcpu_call(v, KVM_GET_VCPU_EVENTS, &s->events)) < 0)
		return "KVM_GET_VCPU_EVENTS";
	if ((*r = sregs_call(v, false, &s->sregs)) < 0)
		return "KVM_GET_SREGS";
	if ((*r = vcpu_call(v, KVM_GET_REGS, &s->regs)) < 0)
		return "KVM_GET_REGS";
	if (xsave && (*r = vcpu_call(v, KVM_GET_XCRS, &s->xcrs)) < 0)
		return "KVM_GET_XCRS";
	if ((*r = vcpu_call(v, KVM_GET_XSAVE, &s->xsave)) < 0)
		return "KVM_GET_XSAVE";
	if ((*r = msrs_move(v, KVM_GET_MSRS, s->msr)) < 0)
		return "KVM_GET_MSRS";
	if ((*r = vcpu_call(v, KVM_GET_DEBUGREGS, &s->debugregs)) < 0)
		return "KVM_GET_DEBUGREGS";
	if (v->vm->split && (*r = apic_fetch(v, &s->apic)) < 0)
		return "KVM_GET_LAPIC";
	if ((*r = nested_fetch(v, s)) < 0)
		return "KVM_GET_NESTED_STATE";
	return NULL;
}

bool state_put(struct kvm_vcpu *v)
{
	struct state s;
	int r;
	if (v->in_kvm)
		return true;
	v->stats.puts++;
	build(v, &s);
	const char *what = put_all(v, &s, &r);
	if (what)
		return kvm_failed(v, "%s refuses the state of the processor: %s: %s", v->vm->host->name, what, strerror(-r));
	*v->last = s;
	v->known = v->in_kvm = true;
	v->ready = !v->vm->split && (v->cpu->event_mask & EV_INTR);
	v->fresh = v->vm->split;
	if (v->vm->split)
		v->cpu->activity = ACT_RUN; /* whether it rests is KVM's to know now */
	return true;
}

/* The board's copy; *s then as it would be given back. */
static void apply_apic(struct kvm_vcpu *v, struct state *s)
{
	struct cpu *c = v->cpu;
	c->activity = activity_of(s->mp.mp_state);
	s->mp.mp_state = mp_state(c);
	s->apic.base = s->sregs.apic_base;
	mem_lock(c->mem);
	c->hooks->apic_set(c->hooks->arg, &s->apic);
	c->hooks->apic_get(c->hooks->arg, &s->apic);
	mem_unlock(c->mem);
}

/* struct cpu from s. */
static void apply(struct kvm_vcpu *v, struct state *s)
{
	struct cpu *c = v->cpu;
	regs_get(c, &s->regs);
	sregs_get(c, &s->sregs);
	xsave_get(v, (const u8 *)s->xsave.region);
	if (cpu_has(c, FEAT_XSAVE))
		c->xcr0 = s->xcrs.xcrs[0].value;
	memcpy(c->dr, s->debugregs.db, sizeof(s->debugregs.db));
	c->dr[6] = s->debugregs.dr6;
	c->dr[7] = s->debugregs.dr7;
	events_get(c, &s->events);
	for (unsigned k = 0; model_msr(k); k++)
		if (v->msr_there[k])
			msr_to(c, model_msr(k), s->msr[k]);
	if (v->vm->split)
		apply_apic(v, s);
	cpu_update_mode(c);
	mmu_flush_all(c); /* tables have changed unseen */
}

/* An exception that KVM has taken. What a #PF and a #DB leave in CR2 and DR6 it may have yet to write. */
static struct exception taken(const struct cpu *c, const struct kvm_vcpu_events *e)
{
	u64 left = e->exception_payload;
	bool pf = e->exception_has_payload && e->exception.nr == V_PF, db = e->exception_has_payload && e->exception.nr == V_DB;
	return (struct exception){ .vector = e->exception.nr, .has_error = e->exception.has_error_code, .error = e->exception.error_code,
				   .cr2 = pf ? left : c->cr2, .dr6 = (db ? left : c->dr[6]) & 0xe00f };
}

/* What KVM has taken and not yet delivered. */
static void settle(struct kvm_vcpu *v, const struct kvm_vcpu_events *e)
{
	struct cpu *c = v->cpu;
	if (e->nmi.pending)
		cpu_post_event(c, EV_NMI);
	if (e->exception.injected || e->exception.pending) {
		c->exc = taken(c, e);
		cpu_exception(c);
	} else if (e->nmi.injected) {
		c->nmi_blocked = true;
		exception_external(c, V_NMI, true);
	} else if (e->interrupt.injected) {
		exception_external(c, e->interrupt.nr, false);
	} else {
		return;
	}
	mem_device_wrote(c->mem); /* where the frame goes is the guest's choice */
}

bool state_fetch(struct kvm_vcpu *v)
{
	struct state *s = v->last;
	int r;
	v->stats.gets++;
	v->known = v->in_kvm = false;
	const char *what = get_all(v, s, &r);
	if (what)
		return kvm_failed(v, "%s does not give the state of the processor: %s: %s", v->vm->host->name, what, strerror(-r));
	apply(v, s);
	return true;
}

/* Lets KVM finish the instruction whose exit was handled. False: the machine cannot go on. */
static bool complete(struct kvm_vcpu *v)
{
	while (v->completing) {
		__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
		int r = gate_kvm_run(v);
		posted_carry_out(v);
		v->completing = false;
		if (r == -EINTR)
			return true;
		if (r < 0)
			return kvm_failed(v, "%s: KVM_RUN: %s", v->vm->host->name, strerror(-r));
		if (!exit_handle(v)) /* the rest of the same instruction */
			return false;
		if (!v->in_kvm)
			return true;
	}
	return true;
}

bool state_get(struct kvm_vcpu *v)
{
	if (!v->in_kvm)
		return true;
	if (!complete(v))
		return false;
	if (!v->in_kvm)
		return true;
	if (!state_fetch(v))
		return false;
	v->known = true;
	if (!v->l2)
		settle(v, &v->last->events);
	return true;
}

bool state_init(struct kvm_vcpu *v, struct error *e)
{
	struct kvm_device_attr a = { .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET };
	v->vm->tsc_offset = vcpu_call(v, KVM_HAS_DEVICE_ATTR, &a) >= 0;
	for (unsigned k = 0; model_msr(k); k++) {
		struct msr_list l = { .head.nmsrs = 1, .e[0].index = model_msr(k) };
		v->msr_there[k] = model_has_msr(v, model_msr(k)) &&
				  vcpu_call(v, KVM_GET_MSRS, &l) == 1 && vcpu_call(v, KVM_SET_MSRS, &l) == 1;
	}
	v->last = calloc(1, sizeof(*v->last));
	return v->last || error_set(e, "kvm: out of memory");
}
