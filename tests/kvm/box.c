/* See box.h. */
#include <errno.h>

#include "box.h"

/* ---- KVM ------------------------------------------------------------------------------------------------- */

u64 *box_msr(struct box *b, u32 index)
{
	for (unsigned k = 0; k < N_MSRS; k++)
		if (b->msr[k].index == index || !b->msr[k].index) {
			b->msr[k].index = index;
			return &b->msr[k].data;
		}
	fail_msg("too many MSRs");
	return NULL;
}

/* Of those that hold an address. */
static bool is_canonical(const struct box *b, u32 msr, u64 val)
{
	unsigned unused = b->sregs.cr4 & CR4_LA57 ? 7 : 16;
	return (msr != 0x175 && msr != 0x176 && msr != 0xc0000082 && msr != 0xc0000083 && msr != 0xc0000102) || (i64)(val << unused) >> unused == (i64)val;
}

/* IA32_FEATURE_CONTROL is Intel's. */
static int box_msrs(struct box *b, struct kvm_msrs *m, bool set)
{
	for (u32 k = 0; k < m->nmsrs; k++)
		if ((m->entries[k].index == 0x3a && b->nested.format == KVM_STATE_NESTED_FORMAT_SVM) ||
		    (set && !is_canonical(b, m->entries[k].index, m->entries[k].data)))
			return (int)k;
		else if (set)
			*box_msr(b, m->entries[k].index) = m->entries[k].data;
		else
			m->entries[k].data = *box_msr(b, m->entries[k].index);
	return (int)m->nmsrs;
}

/* Guest mode has registers and events of its own: those from before are the hypervisor's. */
static int box_nested(struct box *b, struct kvm_nested_state *s, bool set)
{
	if (!set) {
		assert_int_equal(s->size, NESTED_BYTES); /* less may be E2BIG */
		memcpy(s, &b->nested, NESTED_BYTES);
		return 0;
	}
	bool svm = s->format == KVM_STATE_NESTED_FORMAT_SVM, on = svm ? s->flags != KVM_STATE_NESTED_GIF_SET : s->hdr.vmx.vmxon_pa != ~0ull;
	assert_true(s->size <= NESTED_BYTES);
	if (on && !(svm ? b->sregs.efer & EFER_SVME : b->sregs.cr4 & CR4_VMXE))
		return -EINVAL;
	if (on && !svm && !*box_msr(b, 0x3a))
		return -EINVAL;
	if (!svm && s->flags & KVM_STATE_NESTED_GUEST_MODE) { /* the hypervisor's addresses are of 57 bits; its guest has a CR4 of its own */
		if (!(b->sregs.cr4 & CR4_LA57))
			return -EINVAL;
		b->sregs.cr4 = ld64(s->data.vmx[0].vmcs12);
	}
	memcpy(&b->nested, s, s->size);
	b->nested_sets++;
	if (s->flags & KVM_STATE_NESTED_GUEST_MODE) {
		b->regs = (struct kvm_regs){ .rip = 1 };
		b->events = (struct kvm_vcpu_events){ .nmi.pending = b->events.nmi.pending }; /* one that waits is nobody's yet */
	}
	return 0;
}

static int get_events(const struct box *b, struct kvm_vcpu_events *to)
{
	*to = b->events;
	to->flags |= KVM_VCPUEVENT_VALID_SMM;
	to->smi.latched_init = b->init;
	return 0;
}

/* What flags do not name stays; pending is for who says that he knows of payloads. */
static int set_events(struct box *b, const struct kvm_vcpu_events *from)
{
	struct kvm_vcpu_events *to = &b->events, was = *to;
	*to = *from;
	if (from->flags & KVM_VCPUEVENT_VALID_SMM)
		b->init = from->smi.latched_init;
	if (!(from->flags & KVM_VCPUEVENT_VALID_NMI_PENDING))
		to->nmi.pending = was.nmi.pending;
	if (!(from->flags & KVM_VCPUEVENT_VALID_SHADOW))
		to->interrupt.shadow = was.interrupt.shadow;
	if (!(from->flags & KVM_VCPUEVENT_VALID_PAYLOAD))
		to->exception.pending = to->exception_has_payload = 0;
	return 0;
}

/* By VMX operation, or GIF clear. */
static bool init_is_blocked(const struct box *b)
{
	bool svm = b->nested.format == KVM_STATE_NESTED_FORMAT_SVM;
	return svm ? !(b->nested.flags & KVM_STATE_NESTED_GIF_SET) : b->nested.hdr.vmx.vmxon_pa != ~0ull;
}

/* INIT and SIPI, as far as anybody looks: they are carried out here. SDM vol. 3, table 10-1; 9.4.4. */
static int get_mp_state(const struct rig *g, struct box *b, struct kvm_mp_state *to)
{
	if (b->init && !init_is_blocked(b)) {
		b->init = false;
		b->regs = (struct kvm_regs){ .rip = 0xfff0, .rdx = 0xa20f10, .rflags = 2 };
		b->sregs.cs.selector = 0xf000;
		b->sregs.cr0 = 0x60000010;
		b->events.nmi.pending = 0;
		memset(&b->lapic, 0, sizeof(b->lapic));
		b->lapic.regs[0xf0] = (char)0xff;
		b->mp.mp_state = g->cpu->bsp ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_INIT_RECEIVED;
	}
	if (b->sipi && b->mp.mp_state == KVM_MP_STATE_INIT_RECEIVED) {
		b->regs.rip = 0;
		b->sregs.cs.selector = (u16)(b->sipi << 8);
		b->sregs.cs.base = (u64)b->sipi << 12;
		b->mp.mp_state = KVM_MP_STATE_RUNNABLE;
	}
	if (!b->init)
		b->sipi = 0;
	*to = b->mp;
	return 0;
}

static int set_filter(struct rig *g, const struct kvm_msr_filter *f)
{
	g->filter = *f;
	for (unsigned k = 0; k < KVM_MSR_FILTER_MAX_RANGES; k++) {
		assert_true(f->ranges[k].nmsrs <= 8 * sizeof(g->bits[k]));
		if (f->ranges[k].nmsrs)
			memcpy(g->bits[k], f->ranges[k].bitmap, f->ranges[k].nmsrs / 8);
	}
	return 0;
}

static int every_feature(struct rig *g, struct kvm_cpuid2 *to)
{
	static const u32 leaves[][2] = { { 1, 0 }, { 7, 0 }, { 7, 1 }, { 7, 2 }, { 0xd, 1 }, { 0x14, 0 }, { 0x19, 0 }, { 0x80000001, 0 }, { 0x80000007, 0 }, { 0x80000008, 0 },
					 { 0x8000000a, 0 }, { 0x80000021, 0 } };
	to->nent = 0;
	for (unsigned k = 0; k < ARRAY_LEN(leaves); k++)
		to->entries[to->nent++] = (struct kvm_cpuid_entry2){ leaves[k][0], leaves[k][1], 0, ~0u, ~0u, ~0u, ~0u };
	for (unsigned k = 2; k < ARRAY_LEN(g->model.xsave_offset); k++)
		if (g->model.xcr0_mask >> k & 1)
			to->entries[to->nent++] = (struct kvm_cpuid_entry2){ 0xd, k, 0, 4, g->model.xsave_offset[k], 0, 0 };
	return 0;
}

/* KVM itself and its VM: it has every extension. */
static int on_vm_ioctl(struct rig *g, unsigned long request, void *p)
{
	switch (request) {
	case KVM_GET_API_VERSION: return KVM_API_VERSION;
	case KVM_CHECK_EXTENSION: return (uintptr_t)p == KVM_CAP_NESTED_STATE ? NESTED_BYTES : (uintptr_t)p == KVM_CAP_NR_MEMSLOTS ? 32 : 1;
	case KVM_GET_SUPPORTED_CPUID: return every_feature(g, p);
	case KVM_CREATE_VM: return FD_VM;
	case KVM_CREATE_VCPU: return (int)g->vcpus++;
	case KVM_ENABLE_CAP: g->caps[g->n_caps++ % ARRAY_LEN(g->caps)] = ((struct kvm_enable_cap *)p)->cap; return 0;
	case KVM_X86_SET_MSR_FILTER: return set_filter(g, p);
	default: return 0;
	}
}

static int on_open(void *arg) { return FD_KVM; }
static void on_close(void *arg, int fd) {}
static void *on_map(void *arg, int fd, size_t bytes, int *err) { return &((struct rig *)arg)->run; }
static void on_unmap(void *arg, void *at, size_t bytes) {}

static int on_ioctl(void *arg, int fd, unsigned long request, void *p)
{
	struct rig *g = arg;
	struct box *b = &g->box[fd % N_BOXES];
	if (fd >= FD_KVM)
		return on_vm_ioctl(g, request, p);
	switch (request) {
#define KEPT(get, set, field) case get: memcpy(p, &b->field, sizeof(b->field)); return 0; case set: memcpy(&b->field, p, sizeof(b->field)); return 0
	KEPT(KVM_GET_REGS, KVM_SET_REGS, regs);
	KEPT(KVM_GET_SREGS2, KVM_SET_SREGS2, sregs);
	KEPT(KVM_GET_XSAVE, KVM_SET_XSAVE, xsave);
	KEPT(KVM_GET_XCRS, KVM_SET_XCRS, xcrs);
	KEPT(KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, debugregs);
	KEPT(KVM_GET_LAPIC, KVM_SET_LAPIC, lapic);
#undef KEPT
	case KVM_GET_MP_STATE: return get_mp_state(g, b, p);
	case KVM_SET_MP_STATE: b->mp = *(struct kvm_mp_state *)p; return 0;
	case KVM_GET_VCPU_EVENTS: return get_events(b, p);
	case KVM_SET_VCPU_EVENTS: return set_events(b, p);
	case KVM_GET_MSRS: case KVM_SET_MSRS: return box_msrs(b, p, request == KVM_SET_MSRS);
	case KVM_GET_NESTED_STATE: case KVM_SET_NESTED_STATE: return box_nested(b, p, request == KVM_SET_NESTED_STATE);
	case KVM_HAS_DEVICE_ATTR: return 0;
	case KVM_SET_CPUID2: return 0;
	case KVM_RUN: /* MOV CR8 and HLT */
		if (g->run.immediate_exit)
			return -EINTR;
		g->cr8 = (u8)g->run.cr8;
		g->run.cr8 = 9;
		g->run.exit_reason = KVM_EXIT_HLT;
		return 0;
	case KVM_SET_DEVICE_ATTR: b->tsc_offset = *(u64 *)(uintptr_t)((struct kvm_device_attr *)p)->addr; return 0;
	default: fail_msg("request %#lx", request); return -ENOTTY;
	}
}

/* ---- the board -------------------------------------------------------------------------------------------- */

static void apic_get(void *arg, struct apic_state *s) { *s = ((struct rig *)arg)->board; }
static void apic_set(void *arg, const struct apic_state *s) { ((struct rig *)arg)->board = *s; }
static u8 get_tpr(void *arg) { return ((struct rig *)arg)->board.page[0x80]; }
static void set_tpr(void *arg, u8 tpr) { ((struct rig *)arg)->board.page[0x80] = tpr; }
static bool apic_msr_read(void *arg, u32 msr, u64 *val)
{
	*val = ((struct rig *)arg)->board.base;
	return msr == 0x1b;
}
static void apic_lend(void *arg, const struct apic_runner *r) { ((struct rig *)arg)->lends++; }
static void failed(void *arg, const char *why)
{
	print_message("the engine gives up: %s\n", why);
	((struct rig *)arg)->failures++;
}

/* ---- the rig ----------------------------------------------------------------------------------------------- */

struct kvm_vcpu *box_vcpu_new(struct rig *g, int k)
{
	struct kvm_vcpu *v = calloc(1, sizeof(*v));
	struct error e;
	assert_non_null(v);
	v->vm = &g->vm;
	v->cpu = g->cpu;
	v->fd = k;
	g->cpu->engine = v;
	assert_true(state_init(v, &e));
	return v;
}

struct rig *box_rig_new(const char *model, bool split)
{
	struct rig *g = calloc(1, sizeof(*g));
	struct error e;
	assert_non_null(g);
	g->seed = 88172645463325252ull;
	g->host = (struct kvm_host){ .arg = g, .name = "a box", .open = on_open, .close = on_close, .ioctl = on_ioctl, .map = on_map, .unmap = on_unmap };
	g->hooks = (struct cpu_hooks){ .arg = g, .apic_get = apic_get, .apic_set = apic_set, .apic_lend = apic_lend, .get_tpr = get_tpr, .set_tpr = set_tpr, .apic_msr_read = apic_msr_read, .failed = failed };
	assert_true(mem_init(&g->mem, 1 << 20, &e) && clock_init(&g->clock, false, &e) && cpu_model_parse(&g->model, model, &g->clock, &e));
	g->cpu = cpu_new(0, &g->mem, &g->clock, &g->model, &g->hooks);
	assert_non_null(g->cpu);
	g->vm = (struct vm){ .host = &g->host, .fd = FD_VM, .kvm_fd = FD_KVM, .mem = &g->mem, .sregs2 = true, .split = split, .nested_bytes = split ? NESTED_BYTES : 0 };
	memcpy(g->vm.xsave_offset, g->model.xsave_offset, MIN(sizeof(g->vm.xsave_offset), sizeof(g->model.xsave_offset)));
	for (int k = 0; k < N_BOXES; k++) {
		g->box[k].nested = (struct kvm_nested_state){ .size = NESTED_BYTES, .flags = KVM_STATE_NESTED_GIF_SET, .format = KVM_STATE_NESTED_FORMAT_SVM };
		if (g->model.has[FEAT_VMX]) {
			g->box[k].nested = (struct kvm_nested_state){ .size = NESTED_BYTES, .format = KVM_STATE_NESTED_FORMAT_VMX };
			g->box[k].nested.hdr.vmx.vmxon_pa = g->box[k].nested.hdr.vmx.vmcs12_pa = ~0ull;
		}
	}
	g->v[0] = box_vcpu_new(g, 0);
	return g;
}

void box_vcpu_free(struct kvm_vcpu *v)
{
	if (v)
		free(v->last), free(v->nested), free(v);
}

void box_rig_free(struct rig *g)
{
	box_vcpu_free(g->v[0]);
	box_vcpu_free(g->v[1]);
	g->cpu->engine = NULL;
	cpu_free(g->cpu);
	clock_destroy(&g->clock);
	mem_destroy(&g->mem);
	free(g);
}

static u64 any(struct rig *g)
{
	g->seed ^= g->seed << 13;
	g->seed ^= g->seed >> 7;
	return g->seed ^= g->seed << 17;
}

static void fill(struct rig *g, void *p, size_t n)
{
	for (size_t k = 0; k < n; k++)
		((u8 *)p)[k] = (u8)(any(g) >> 32);
}

static struct kvm_segment any_segment(struct rig *g)
{
	u64 r = any(g);
	return (struct kvm_segment){ .base = any(g), .limit = (u32)any(g), .selector = (u16)any(g), .type = r & 15, .present = 1, .dpl = r >> 4 & 3,
				     .db = r >> 6 & 1, .s = r >> 7 & 1, .l = r >> 8 & 1, .g = r >> 9 & 1, .avl = r >> 10 & 1, .unusable = r >> 11 & 1 };
}

void box_any_msrs(struct rig *g, struct box *b)
{
	for (unsigned k = 0; model_msr(k); k++)
		*box_msr(b, model_msr(k)) = (u64)((i64)(any(g) << 7) >> 7) | 1; /* canonical with 57 bits */
	const struct { u32 msr; u64 val; } limited[] = { { 0x3a, 5 }, { 0xc0010114, 8 }, { 0xc0010117, 0x123000 }, { 0xc0000104, 0x80000000 } };
	for (unsigned k = 0; k < ARRAY_LEN(limited); k++)
		*box_msr(b, limited[k].msr) = limited[k].val;
	for (unsigned k = 0; !(b->sregs.cr4 & CR4_LA57) && model_msr(k); k++)
		if (!is_canonical(b, model_msr(k), *box_msr(b, model_msr(k))))
			*box_msr(b, model_msr(k)) = 0xffff800000000000ull | k;
	*box_msr(b, 0x6e0) = any(g);
}

/* Anything that a processor in 64-bit mode, or in 32-bit mode with PAE, can be. */
void box_any_state(struct rig *g, struct box *b, bool pae)
{
	struct kvm_sregs2 *s = &b->sregs;
	struct kvm_segment *const seg[] = { &s->cs, &s->ds, &s->es, &s->fs, &s->gs, &s->ss, &s->tr, &s->ldt };
	fill(g, &b->regs, sizeof(b->regs));
	b->regs.rflags = (b->regs.rflags & 0x3f7fd7) | 2;
	for (unsigned k = 0; k < ARRAY_LEN(seg); k++)
		*seg[k] = any_segment(g);
	s->gdt.base = any(g), s->gdt.limit = (u16)any(g);
	s->idt.base = any(g), s->idt.limit = (u16)any(g);
	s->cr0 = 0x80050033, s->cr2 = any(g), s->cr3 = any(g) & 0xffffffffff000, s->cr4 = CR4_PAE | CR4_VMXE | (pae ? 0 : CR4_LA57), s->cr8 = 5;
	s->efer = pae ? 0 : EFER_LME | EFER_LMA | EFER_SVME;
	s->apic_base = 0xfee00900;
	s->flags = pae ? KVM_SREGS2_FLAGS_PDPTRS_VALID : 0;
	for (unsigned k = 0; pae && k < 4; k++)
		s->pdptrs[k] = any(g);
	fill(g, &b->lapic, sizeof(b->lapic));
	b->lapic.regs[0x80] = 0x50;
	b->xcrs = (struct kvm_xcrs){ .nr_xcrs = 1, .xcrs[0].value = g->model.xcr0_mask };
	fill(g, &b->debugregs, offsetof(struct kvm_debugregs, flags));
	b->mp.mp_state = KVM_MP_STATE_HALTED;
	box_any_msrs(g, b);
}

void box_any_vectors(struct rig *g, struct box *b)
{
	u8 *area = (u8 *)b->xsave.region;
	const struct { unsigned k, bytes; } parts[] = { { 2, 256 }, { 5, 64 }, { 6, 512 }, { 7, 1024 }, { 9, 4 } };
	u64 bv = 3;
	fill(g, area, 28);
	st16(area + 6, ld16(area + 6) & 0x7ff);
	fill(g, area + 32, 384);
	for (unsigned n = 0; n < ARRAY_LEN(parts); n++)
		if (g->model.xcr0_mask >> parts[n].k & 1) {
			fill(g, area + g->vm.xsave_offset[parts[n].k], parts[n].bytes);
			bv |= 1ull << parts[n].k;
		}
	st64(area + 512, bv);
}

/* VT-x's guest has 48 bits, its hypervisor 57. */
void box_hypervisors_state(struct rig *g, struct box *b, bool l2)
{
	struct kvm_nested_state *s = &b->nested;
	u32 size = l2 ? NESTED_BYTES : sizeof(*s);
	fill(g, (u8 *)s + sizeof(*s), NESTED_BYTES - sizeof(*s));
	s->size = size;
	s->flags = l2 ? KVM_STATE_NESTED_GUEST_MODE : 0; /* GIF clear */
	if (s->format == KVM_STATE_NESTED_FORMAT_VMX)
		s->hdr.vmx.vmxon_pa = 0x1000, s->hdr.vmx.vmcs12_pa = 0x2000;
	else
		s->hdr.svm.vmcb_pa = 0x3000;
	if (s->format == KVM_STATE_NESTED_FORMAT_VMX && l2) {
		b->sregs.cr4 &= ~(u64)CR4_LA57;
		st64(s->data.vmx[0].vmcs12, b->sregs.cr4);
	}
	if (l2) { /* whatever waits */
		fill(g, &b->events, sizeof(b->events));
		memset(&b->events.smi, 0, sizeof(b->events.smi));
		b->events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_PAYLOAD;
	}
}

void box_fetch(struct rig *g, unsigned k)
{
	g->v[k]->in_kvm = true;
	assert_true(state_get(g->v[k]));
	assert_false(g->v[k]->in_kvm);
}

struct rig *box_real_mode(void)
{
	struct rig *g = box_rig_new("max", false);
	struct box *b = &g->box[0];
	for (u32 n = 0; n < 256; n++)
		st32(g->mem.ram + 4 * n, 0x1000 + 16 * n);
	g->cpu->rip = 0x7c00;
	g->cpu->regs[R_SP] = 0x6000;
	g->cpu->seg[S_CS].sel = 0;
	g->cpu->seg[S_CS].base = 0;
	g->cpu->rflags = FL_1 | FL_IF;
	cpu_update_mode(g->cpu);
	assert_true(state_put(g->v[0]));
	b->regs.rip = 0x7c05;
	return g;
}
