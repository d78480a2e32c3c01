/* A processor's state through the door, both ways, as the structures of <linux/kvm.h> have it. Written from the
 * documentation, not from the engine: where the two disagree one of them is wrong. SDM vol. 1 13.4, vol. 3 25.4. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fake_impl.h"

/* ---- registers ---------------------------------------------------------------------------------------- */

static void regs(struct cpu *c, struct kvm_regs *r, bool set)
{
	struct { unsigned mine; unsigned long long *its; } map[] = {
		{ R_AX, &r->rax }, { R_BX, &r->rbx }, { R_CX, &r->rcx }, { R_DX, &r->rdx }, { R_SI, &r->rsi }, { R_DI, &r->rdi }, { R_SP, &r->rsp },
		{ R_BP, &r->rbp }, { R_8, &r->r8 }, { R_9, &r->r9 }, { R_10, &r->r10 }, { R_11, &r->r11 }, { R_12, &r->r12 }, { R_13, &r->r13 },
		{ R_14, &r->r14 }, { R_15, &r->r15 },
	};
	for (unsigned k = 0; k < ARRAY_LEN(map); k++) {
		if (set)
			c->regs[map[k].mine] = *map[k].its;
		else
			*map[k].its = c->regs[map[k].mine];
	}
	if (set) {
		c->rip = r->rip;
		c->rflags = r->rflags | FL_1;
		cpu_update_mode(c);
	} else {
		r->rip = c->rip;
		r->rflags = c->rflags;
	}
}

static void segment(struct segment *s, struct kvm_segment *k, bool set)
{
	if (set) {
		*s = (struct segment){ k->selector, k->type | (u32)k->s << 4 | (u32)k->dpl << 5 | (u32)k->present << 7 | (u32)k->avl << 12 |
				       (u32)k->l << 13 | (u32)k->db << 14 | (u32)k->g << 15 | (u32)k->unusable << 16, k->limit, k->base };
		return;
	}
	u32 a = s->attr;
	*k = (struct kvm_segment){ .base = s->base, .limit = s->limit, .selector = s->sel, .type = a & 15, .s = a >> 4 & 1, .dpl = a >> 5 & 3,
		.present = a >> 7 & 1, .avl = a >> 12 & 1, .l = a >> 13 & 1, .db = a >> 14 & 1, .g = a >> 15 & 1, .unusable = a >> 16 & 1 };
}

static void tables_and_control(struct fake_vcpu *v, struct kvm_sregs2 *s, bool set)
{
	struct cpu *c = v->c;
	if (set) {
		c->gdtr = (struct dtable){ s->gdt.base, s->gdt.limit };
		c->idtr = (struct dtable){ s->idt.base, s->idt.limit };
		c->cr0 = s->cr0;
		c->cr2 = s->cr2;
		c->cr3 = s->cr3;
		c->cr4 = s->cr4;
		c->efer = s->efer;
		v->cr8 = (u8)s->cr8;
		return;
	}
	s->gdt.base = c->gdtr.base;
	s->gdt.limit = c->gdtr.limit;
	s->idt.base = c->idtr.base;
	s->idt.limit = c->idtr.limit;
	s->cr0 = c->cr0;
	s->cr2 = c->cr2;
	s->cr3 = c->cr3;
	s->cr4 = c->cr4;
	s->cr8 = v->cr8;
	s->efer = c->efer;
	s->apic_base = 0xfee00800 | (c->bsp ? 0x100 : 0);
}

static int sregs(struct fake_vcpu *v, struct kvm_sregs2 *s, bool set)
{
	struct cpu *c = v->c;
	if (!set)
		*s = (struct kvm_sregs2){ 0 };
	struct kvm_segment *const its[N_SREGS] = { [S_ES] = &s->es, [S_CS] = &s->cs, [S_SS] = &s->ss, [S_DS] = &s->ds, [S_FS] = &s->fs,
						   [S_GS] = &s->gs, [S_LDTR] = &s->ldt, [S_TR] = &s->tr };
	/* What VM entry would refuse. */
	if (set && ((s->cr0 & CR0_PG) && !(s->cr0 & CR0_PE)))
		return -EINVAL;
	if (set && (s->efer & EFER_LMA) != ((s->cr0 & CR0_PG) && (s->efer & EFER_LME) ? EFER_LMA : 0))
		return -EINVAL;
	for (unsigned k = 0; k < N_SREGS; k++)
		segment(&c->seg[k], its[k], set);
	tables_and_control(v, s, set);
	bool pae = (c->cr0 & CR0_PG) && (c->cr4 & CR4_PAE) && !cpu_long(c);
	if (!set) {
		s->flags = pae ? KVM_SREGS2_FLAGS_PDPTRS_VALID : 0;
		memcpy(s->pdptrs, c->pdpte, pae ? sizeof(s->pdptrs) : 0);
		return 0;
	}
	c->cpl = s->ss.dpl;
	if (pae && s->flags & KVM_SREGS2_FLAGS_PDPTRS_VALID)
		memcpy(c->pdpte, s->pdptrs, sizeof(c->pdpte));
	else if (pae)
		mmu_load_pdptes(c, c->cr3);
	cpu_update_mode(c);
	mmu_flush_all(c);
	return 0;
}

static int old_sregs(struct fake_vcpu *v, struct kvm_sregs *s, bool set)
{
	struct kvm_sregs2 t = { 0 };
	const size_t same = offsetof(struct kvm_sregs, interrupt_bitmap);
	if (set)
		memcpy(&t, s, same);
	int result = sregs(v, &t, set);
	if (!set) {
		*s = (struct kvm_sregs){ 0 };
		memcpy(s, &t, same);
	}
	return result;
}

/* ---- floating point and vectors ----------------------------------------------------------------------------- */

static void piece(u8 *mine, u8 *its, unsigned n, bool set) { set ? memcpy(mine, its, n) : memcpy(its, mine, n); }

/* Component k, at `its`; NULL: its initial values come. */
static void component(struct cpu *c, unsigned k, u8 *its, bool set)
{
	static u8 zeros[64];
	for (unsigned n = 0; n < 16; n++) {
		if (k == 1)
			piece(c->zmm[n], its ? its + 16 * n : zeros, 16, set);
		else if (k == 2)
			piece(c->zmm[n] + 16, its ? its + 16 * n : zeros, 16, set);
		else if (k == 5 && n < 8)
			piece((u8 *)&c->k[n], its ? its + 8 * n : zeros, 8, set);
		else if (k == 6)
			piece(c->zmm[n] + 32, its ? its + 32 * n : zeros, 32, set);
		else if (k == 7)
			piece(c->zmm[16 + n], its ? its + 64 * n : zeros, 64, set);
		else if (k == 9 && !n)
			piece((u8 *)&c->pkru, its ? its : zeros, 4, set);
	}
}

static int xsave(struct fake_vcpu *v, u8 *area, bool set)
{
	struct cpu *c = v->c;
	const struct cpu_model *m = c->model;
	if (set) {
		u64 bv = ld64(area + 512);
		if (bv & ~m->xcr0_mask)
			return -EINVAL;
		c->fop = ld16(area + 6);
		c->fip = ld64(area + 8);
		c->fdp = ld64(area + 16);
		memcpy(c->fxarea, area, 160);
		if (!(bv & 1)) {
			memset(c->fxarea, 0, 160);
			st16(c->fxarea, 0x37f);
			st32(c->fxarea + 24, ld32(area + 24));
		}
		st16(c->fxarea + 6, 0);
		memset(c->fxarea + 8, 0, 16);
		component(c, 1, bv & 2 ? area + 160 : NULL, true);
		for (unsigned k = 2; k < 16; k++)
			if (m->xcr0_mask >> k & 1)
				component(c, k, bv >> k & 1 ? area + m->xsave_offset[k] : NULL, true);
		mmu_set_pkru(c, c->pkru);
		return 0;
	}
	memset(area, 0, sizeof(struct kvm_xsave));
	memcpy(area, c->fxarea, 160);
	st16(area + 6, c->fop);
	st64(area + 8, c->fip);
	st64(area + 16, c->fdp);
	st32(area + 28, fpu_mxcsr_mask(c));
	component(c, 1, area + 160, false);
	for (unsigned k = 2; k < 16; k++)
		if (m->xcr0_mask >> k & 1)
			component(c, k, area + m->xsave_offset[k], false);
	st64(area + 512, m->xcr0_mask);
	return 0;
}

/* ---- the rest -------------------------------------------------------------------------------------------------- */

static int msrs(struct fake_vcpu *v, struct kvm_msrs *m, bool set)
{
	for (u32 k = 0; k < m->nmsrs; k++) {
		struct kvm_msr_entry *x = &m->entries[k];
		u64 val = x->data;
		if (!(set ? msr_write(v->c, x->index, val) : msr_read(v->c, x->index, &val)))
			return (int)k;
		x->data = val;
	}
	return (int)m->nmsrs;
}

static void events(struct fake_vcpu *v, struct kvm_vcpu_events *e, bool set)
{
	struct cpu *c = v->c;
	if (!set) {
		*e = (struct kvm_vcpu_events){ .flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW };
		e->interrupt.injected = v->vector >= 0;
		e->interrupt.nr = (u8)MAX(v->vector, 0);
		e->interrupt.shadow = (u8)((c->shadow & SHADOW_STI ? KVM_X86_SHADOW_INT_STI : 0) | (c->shadow & SHADOW_SS ? KVM_X86_SHADOW_INT_MOV_SS : 0));
		e->nmi.pending = atomic_load(&c->nmis) != 0;
		e->nmi.masked = c->nmi_blocked;
		return;
	}
	v->vector = e->interrupt.injected ? e->interrupt.nr : -1;
	cpu_clear_event(c, EV_INTR);
	if (v->vector >= 0)
		cpu_post_event(c, EV_INTR);
	if (e->flags & KVM_VCPUEVENT_VALID_NMI_PENDING) {
		cpu_clear_event(c, EV_NMI);
		if (e->nmi.pending)
			cpu_post_event(c, EV_NMI);
	}
	c->nmi_blocked = e->nmi.masked;
	if (e->flags & KVM_VCPUEVENT_VALID_SHADOW)
		c->shadow = (u8)((e->interrupt.shadow & KVM_X86_SHADOW_INT_STI ? SHADOW_STI : 0) | (e->interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS ? SHADOW_SS : 0));
	cpu_update_events(c);
}

static void debugregs(struct cpu *c, struct kvm_debugregs *d, bool set)
{
	if (set) {
		memcpy(c->dr, d->db, sizeof(d->db));
		c->dr[6] = d->dr6;
		c->dr[7] = d->dr7;
		cpu_update_mode(c);
		return;
	}
	*d = (struct kvm_debugregs){ .dr6 = c->dr[6], .dr7 = c->dr[7] };
	memcpy(d->db, c->dr, sizeof(d->db));
}

static int xcrs(struct cpu *c, struct kvm_xcrs *x, bool set)
{
	if (set) {
		if (x->nr_xcrs != 1 || x->xcrs[0].xcr || x->xcrs[0].value & ~c->model->xcr0_mask || !(x->xcrs[0].value & 1))
			return -EINVAL;
		c->xcr0 = x->xcrs[0].value;
		cpu_update_mode(c);
		return 0;
	}
	*x = (struct kvm_xcrs){ .nr_xcrs = 1, .xcrs[0] = { .value = c->xcr0 } };
	return 0;
}

/* The offset is the guest's TSC less the host's. */
static int tsc_offset(struct fake_vcpu *v, const struct kvm_device_attr *a, bool set)
{
	if (a->group != KVM_VCPU_TSC_CTRL || a->attr != KVM_VCPU_TSC_OFFSET)
		return -ENXIO;
	if (set)
		v->clock.tsc_offset = *(const u64 *)(uintptr_t)a->addr;
	return 0;
}

static int set_cpuid(struct fake_vcpu *v, const struct kvm_cpuid2 *from)
{
	size_t bytes = sizeof(*from) + from->nent * sizeof(from->entries[0]);
	struct kvm_cpuid2 *copy = malloc(bytes);
	if (!copy)
		return -ENOMEM;
	memcpy(copy, from, bytes);
	free(v->cpuid);
	v->cpuid = copy;
	return 0;
}

int fake_state(struct fake_vcpu *v, unsigned long request, void *p)
{
	if (v->in_exit && !v->f->failed && request != KVM_HAS_DEVICE_ATTR)
		fake_complain(v->f, "request %#lx in the middle of an exit, which KVM_RUN has yet to complete", request);
	switch (request) {
	case KVM_GET_REGS: case KVM_SET_REGS: regs(v->c, p, request == KVM_SET_REGS); return 0;
	case KVM_GET_SREGS: case KVM_SET_SREGS: return old_sregs(v, p, request == KVM_SET_SREGS);
	case KVM_GET_SREGS2: case KVM_SET_SREGS2: return sregs(v, p, request == KVM_SET_SREGS2);
	case KVM_GET_XSAVE: case KVM_SET_XSAVE: return xsave(v, p, request == KVM_SET_XSAVE);
	case KVM_GET_XCRS: case KVM_SET_XCRS: return xcrs(v->c, p, request == KVM_SET_XCRS);
	case KVM_GET_MSRS: case KVM_SET_MSRS: return msrs(v, p, request == KVM_SET_MSRS);
	case KVM_GET_VCPU_EVENTS: case KVM_SET_VCPU_EVENTS: events(v, p, request == KVM_SET_VCPU_EVENTS); return 0;
	case KVM_GET_DEBUGREGS: case KVM_SET_DEBUGREGS: debugregs(v->c, p, request == KVM_SET_DEBUGREGS); return 0;
	case KVM_HAS_DEVICE_ATTR: return tsc_offset(v, p, false);
	case KVM_SET_DEVICE_ATTR: return tsc_offset(v, p, true);
	case KVM_SET_CPUID2: return set_cpuid(v, p);
	default: return -ENOTTY;
	}
}

/* ---- CPUID -------------------------------------------------------------------------------------------------------- */

static bool add_leaf(struct cpu *c, struct kvm_cpuid2 *to, u32 room, u32 leaf, u32 sub, bool indexed)
{
	u32 r[4];
	cpu_cpuid(c, leaf, sub, r);
	if (leaf == 0x80000001 && cpu_has(c, FEAT_SYSCALL))
		r[3] |= 1u << 11; /* Intel's shows it to 64-bit code alone; KVM says what there can be */
	if (to->nent == room)
		return false;
	to->entries[to->nent++] = (struct kvm_cpuid_entry2){ .function = leaf, .index = sub, .flags = indexed ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
							     .eax = r[0], .ebx = r[1], .ecx = r[2], .edx = r[3] };
	return true;
}

int fake_supported_cpuid(struct fake_kvm *f, struct kvm_cpuid2 *to)
{
	static const struct cpu_hooks hooks;
	struct clock clock;
	struct error e;
	u32 room = to->nent;
	bool ok = clock_init(&clock, false, &e);
	struct cpu *c = ok ? cpu_new(0, &f->mem, &clock, &f->model, &hooks) : NULL;
	to->nent = 0;
	for (u32 base = 0, k = 0; c && ok && k < 2; k++, base = 0x80000000) {
		u32 r[4];
		cpu_cpuid(c, base, 0, r);
		for (u32 leaf = base; ok && leaf <= r[0]; leaf++) {
			bool indexed = leaf == 7 || leaf == 0xd || leaf == 4 || leaf == 0xb;
			for (u32 sub = 0; ok && sub < (indexed ? 16u : 1u); sub++)
				ok = add_leaf(c, to, room, leaf, sub, indexed);
		}
	}
	cpu_free(c);
	clock_destroy(&clock);
	return ok && c ? 0 : -E2BIG;
}
