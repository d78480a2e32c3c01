/* A processor's state between KVM and struct cpu: what one processor of KVM's had comes to the next one as it was, a
 * hypervisor's state in it, and in an order that KVM takes; what KVM has half-way delivered is delivered, or goes on with it;
 * what KVM's form has no room for stays. KVM is a box here that keeps what it is given; a Linux that refuses an order does so here. */
#include <errno.h>

#include "test.h"
#include "kvm/kvm_impl.h"

enum { NESTED_BYTES = sizeof(struct kvm_nested_state) + 4096, N_MSRS = 64, N_BOXES = 2 };

/* A processor of KVM's. */
struct box {
	struct kvm_regs regs;
	struct kvm_sregs2 sregs;
	struct kvm_xsave xsave;
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debugregs;
	struct kvm_vcpu_events events;
	struct kvm_lapic_state lapic;
	struct kvm_mp_state mp;
	struct { u32 index; u64 data; } msr[N_MSRS];
	u64 tsc_offset;
	union { struct kvm_nested_state nested; u8 nested_bytes[NESTED_BYTES]; };
	unsigned nested_sets;
};

struct rig {
	struct kvm_host host;
	struct vm vm;
	struct mem mem;
	struct clock clock;
	struct cpu_model model;
	struct cpu_hooks hooks;
	struct cpu *cpu;
	struct kvm_vcpu *v[N_BOXES];
	struct box box[N_BOXES];
	struct apic_state board;
	u64 seed;
	unsigned failures, lends, vcpus;
	struct kvm_run run;
	u8 cr8;                   /* when KVM_RUN came */
	u32 caps[8];              /* of KVM_ENABLE_CAP */
	unsigned n_caps;
	struct kvm_msr_filter filter;
	u8 bits[KVM_MSR_FILTER_MAX_RANGES][0x600];
};

/* ---- KVM ------------------------------------------------------------------------------------------------- */

static u64 *box_msr(struct box *b, u32 index)
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
		b->events = (struct kvm_vcpu_events){ 0 };
	}
	return 0;
}

/* What flags do not name stays; pending is for who says that he knows of payloads. */
static void set_events(struct kvm_vcpu_events *to, const struct kvm_vcpu_events *from)
{
	struct kvm_vcpu_events was = *to;
	*to = *from;
	if (!(from->flags & KVM_VCPUEVENT_VALID_NMI_PENDING))
		to->nmi.pending = was.nmi.pending;
	if (!(from->flags & KVM_VCPUEVENT_VALID_SHADOW))
		to->interrupt.shadow = was.interrupt.shadow;
	if (!(from->flags & KVM_VCPUEVENT_VALID_PAYLOAD))
		to->exception.pending = to->exception_has_payload = 0;
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
enum { FD_KVM = 8, FD_VM };
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
	KEPT(KVM_GET_MP_STATE, KVM_SET_MP_STATE, mp);
#undef KEPT
	case KVM_GET_VCPU_EVENTS: *(struct kvm_vcpu_events *)p = b->events; return 0;
	case KVM_SET_VCPU_EVENTS: set_events(&b->events, p); return 0;
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

static struct kvm_vcpu *new_vcpu(struct rig *g, int k)
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

static struct rig *rig_new(const char *model, bool split)
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
	g->v[0] = new_vcpu(g, 0);
	return g;
}

static void vcpu_free(struct kvm_vcpu *v)
{
	if (v)
		free(v->last), free(v->nested), free(v);
}

static void rig_free(struct rig *g)
{
	vcpu_free(g->v[0]);
	vcpu_free(g->v[1]);
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

static void any_msrs(struct rig *g, struct box *b)
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
static void any_state(struct rig *g, struct box *b, bool pae)
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
	any_msrs(g, b);
}

static void any_vectors(struct rig *g, struct box *b)
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
static void hypervisors_state(struct rig *g, struct box *b, bool l2)
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
		b->events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_PAYLOAD;
	}
}

static void fetch(struct rig *g, unsigned k)
{
	g->v[k]->in_kvm = true;
	assert_true(state_get(g->v[k]));
	assert_false(g->v[k]->in_kvm);
}

#define SAME_BOX(g, field) do { if (memcmp(&(g)->box[0].field, &(g)->box[1].field, sizeof((g)->box[0].field))) fail_msg(#field " differs"); } while (0)

static void assert_same(struct rig *g)
{
	SAME_BOX(g, regs);
	SAME_BOX(g, sregs);
	SAME_BOX(g, xsave);
	SAME_BOX(g, xcrs);
	SAME_BOX(g, debugregs);
	SAME_BOX(g, lapic);
	SAME_BOX(g, mp);
	for (unsigned k = 0; model_msr(k); k++)
		if (g->v[1]->msr_there[k] && *box_msr(&g->box[0], model_msr(k)) != *box_msr(&g->box[1], model_msr(k)))
			fail_msg("MSR %#x differs", model_msr(k));
	assert_true(*box_msr(&g->box[0], 0x6e0) == *box_msr(&g->box[1], 0x6e0));
	assert_true(g->box[1].tsc_offset == g->clock.tsc_offset + g->cpu->msr.tsc_adjust);
}

/* ---- the cases ----------------------------------------------------------------------------------------------- */

/* No hypervisor: all by struct cpu. */
static void all_of_a_processor(void **state)
{
	static const u8 shadows[] = { 0, KVM_X86_SHADOW_INT_STI, KVM_X86_SHADOW_INT_MOV_SS };
	for (unsigned k = 0; k < 6; k++) {
		struct rig *g = rig_new("max,vendor=intel,+vmx", true);
		struct box *a = &g->box[0], *b = &g->box[1];
		any_state(g, a, k & 1);
		any_vectors(g, a);
		a->events = (struct kvm_vcpu_events){ .interrupt.shadow = shadows[k / 2], .nmi.masked = k & 1 };
		g->cpu->msr.tsc_adjust = 12345;
		fetch(g, 0);
		assert_int_equal(g->cpu->shadow, k / 2 == 0 ? 0 : k / 2 == 1 ? SHADOW_STI : SHADOW_SS);
		nested_keep(g->v[0]);
		assert_null(g->cpu->engine_keeps);
		g->v[1] = new_vcpu(g, 1);
		assert_true(state_put(g->v[1]));
		assert_same(g);
		assert_int_equal(b->events.interrupt.shadow, shadows[k / 2]);
		assert_int_equal(b->events.nmi.masked, k & 1);
		assert_int_equal(b->nested_sets, 0);
		rig_free(g);
	}
}

static const char *const hypervisors[] = { "max,vendor=intel,+vmx", "max,vendor=amd,+svm" };

/* Once more before the first run, too. */
static void a_hypervisors_state(void **state)
{
	for (unsigned k = 0; k < 8; k++) {
		struct rig *g = rig_new(hypervisors[k & 1], true);
		struct box *a = &g->box[0], *b = &g->box[1];
		bool l2 = k & 2;
		struct error e;
		any_state(g, a, false);
		any_vectors(g, a);
		hypervisors_state(g, a, l2);
		any_msrs(g, a);
		fetch(g, 0);
		assert_true(g->v[0]->hypervisor && g->v[0]->l2 == l2 && g->cpu->engine_l2 == l2);
		nested_keep(g->v[0]);
		assert_non_null(g->cpu->engine_keeps);
		for (unsigned more = 0; more < k / 4; more++) {
			struct kvm_vcpu *v = new_vcpu(g, 1);
			assert_true(nested_take(v, &e));
			nested_keep(v);
			vcpu_free(v);
		}
		g->v[1] = new_vcpu(g, 1);
		assert_true(nested_take(g->v[1], &e));
		assert_null(g->cpu->engine_keeps);
		if (!state_put(g->v[1]))
			fail_msg("case %u: refused", k);
		assert_same(g);
		assert_int_equal(b->nested_sets, 1);
		assert_memory_equal(&a->nested, &b->nested, a->nested.size);
		if (l2)
			assert_memory_equal(&a->events, &b->events, sizeof(a->events));
		/* And from there on it is fetched and put as ever: not told again. */
		b->nested.size = NESTED_BYTES;
		fetch(g, 1);
		assert_true(g->v[1]->hypervisor && g->v[1]->l2 == l2);
		assert_true(state_put(g->v[1]));
		assert_int_equal(b->nested_sets, 1);
		rig_free(g);
	}
}

/* All of it by the engine: from VMXON and EFER.SVME on, to another of its own processors alone. */
static void a_hypervisor_hops(void **state)
{
	for (unsigned k = 0; k < 4; k++) {
		const struct kvm_options split = { .irqchip = IRQCHIP_SPLIT };
		struct rig *g = rig_new(hypervisors[k & 1], true);
		struct error e;
		kvm_host_replace(&g->host);
		assert_true(cpu_model_parse(&g->model, k & 1 ? "max,vendor=amd" : "max,vendor=intel", &g->clock, &e));
		assert_true(kvm_engine.fit_model(&g->model, &split, &e));
		g->cpu->engine_options = &split;
		g->cpu->n_cpus = 1;
		if (!kvm_engine.vcpu_init(g->cpu, &e))
			fail_msg("%s", e.msg);
		any_state(g, &g->box[0], false);
		any_vectors(g, &g->box[0]);
		hypervisors_state(g, &g->box[0], k & 2);
		any_msrs(g, &g->box[0]);
		kvm_of(g->cpu)->in_kvm = true;
		assert_true(state_get(kvm_of(g->cpu)));
		assert_true(kvm_engine.may_move(g->cpu, &kvm_engine, &split, &e));
		kvm_engine.vcpu_destroy(g->cpu);
		g->cpu->engine = NULL;
		if (!kvm_engine.vcpu_init(g->cpu, &e))
			fail_msg("%s", e.msg);
		assert_true(state_put(kvm_of(g->cpu)));
		SAME_BOX(g, regs);
		SAME_BOX(g, sregs);
		SAME_BOX(g, lapic);
		assert_int_equal(g->box[1].nested_sets, 1);
		assert_memory_equal(&g->box[0].nested, &g->box[1].nested, g->box[0].nested.size);
		g->box[1].nested.size = NESTED_BYTES;
		assert_true(state_get(kvm_of(g->cpu)));
		kvm_engine.vcpu_destroy(g->cpu);
		assert_int_equal(g->lends, 4);
		kvm_host_replace(NULL);
		rig_free(g);
	}
}

/* A reset after the last processor of KVM's is gone: the next one hears nothing of it. */
static void reset_on_the_way(void **state)
{
	for (unsigned k = 0; k < 4; k++) {
		struct rig *g = rig_new(hypervisors[k & 1], true);
		struct error e;
		any_state(g, &g->box[0], false);
		hypervisors_state(g, &g->box[0], k & 2);
		fetch(g, 0);
		nested_keep(g->v[0]);
		cpu_reset(g->cpu, false);
		g->v[1] = new_vcpu(g, 1);
		assert_true(nested_take(g->v[1], &e));
		assert_true(state_put(g->v[1]));
		assert_int_equal(g->box[1].nested_sets, 0);
		assert_false(g->v[1]->hypervisor || g->v[1]->l2);
		rig_free(g);
	}
}

/* It is not lost with a KVM that cannot have it, and a KVM that refuses it ends the machine. */
static void a_state_that_is_refused(void **state)
{
	struct rig *g = rig_new(hypervisors[0], true);
	struct error e;
	any_state(g, &g->box[0], false);
	hypervisors_state(g, &g->box[0], true);
	fetch(g, 0);
	nested_keep(g->v[0]);
	g->v[1] = new_vcpu(g, 1);
	g->vm.nested_bytes = 0;
	assert_false(nested_take(g->v[1], &e));
	assert_non_null(strstr(e.msg, "hypervisor"));
	assert_non_null(g->cpu->engine_keeps);
	g->vm.nested_bytes = NESTED_BYTES;
	assert_true(nested_take(g->v[1], &e));
	g->cpu->cr4 &= ~(u64)CR4_VMXE; /* of its guest: KVM does not take the one without the other */
	assert_false(state_put(g->v[1]));
	assert_int_equal(g->failures, 1);
	rig_free(g);
}

/* Interrupts that KVM's LAPIC has got since it was fetched are not lost where it is given anew. */
static void an_interrupt_that_comes_meanwhile(void **state)
{
	struct rig *g = rig_new("max", true);
	u8 *lapic = (u8 *)g->box[0].lapic.regs;
	any_state(g, &g->box[0], false);
	memset(lapic + 0x180, 0, 0x100); /* TMR, IRR */
	st32(lapic + 0x210, 1 << 3); /* 23h waits, edge */
	fetch(g, 0);
	st32(lapic + 0x210, 1 << 3 | 1 << 5); /* 25h, level */
	st32(lapic + 0x190, 1 << 5);
	g->board.page[0x80] = 0x70; /* somebody else has changed it */
	st32(g->board.page + 0x220, 1);
	assert_true(state_put(g->v[0]));
	assert_int_equal(lapic[0x80], 0x70);
	assert_int_equal(ld32(lapic + 0x210), 1 << 3 | 1 << 5);
	assert_int_equal(ld32(lapic + 0x190), 1 << 5);
	assert_int_equal(ld32(lapic + 0x220), 1);
	rig_free(g);
}

/* XSAVE's way to say that a component is as after INIT: what is in its place says nothing. */
static void components_as_after_init(void **state)
{
	struct rig *g = rig_new("max", false);
	u8 *area = (u8 *)g->box[0].xsave.region;
	const u8 zeros[64] = { 0 };
	any_state(g, &g->box[0], false);
	any_vectors(g, &g->box[0]);
	st32(area + 24, 0x1f80);
	st64(area + 512, 2); /* SSE alone */
	fetch(g, 0);
	assert_int_equal(ld16(g->cpu->fxarea), 0x37f);
	assert_int_equal(ld32(g->cpu->fxarea + 24), 0x1f80);
	assert_memory_equal(g->cpu->fxarea + 32, zeros, 64);
	assert_memory_equal(g->cpu->zmm[3], area + 160 + 3 * 16, 16);
	assert_memory_equal(g->cpu->zmm[3] + 16, zeros, 16);
	assert_int_equal(g->cpu->pkru, 0);
	rig_free(g);
}

/* Real mode: the handler of vector N is at N * 16 + 0x1000. */
static struct rig *real_mode(void)
{
	struct rig *g = rig_new("max", false);
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

/* What KVM had begun is carried out here, once, and KVM does not do it again. */
static void half_way(void **state)
{
	static const struct { struct kvm_vcpu_events e; u8 vector; bool nmi; } cases[] = {
		{ { .interrupt = { .injected = 1, .nr = 0x31 } }, 0x31, false },
		{ { .nmi.injected = 1 }, 2, true },
		{ { .exception = { .injected = 1, .nr = 6 } }, 6, false },
		{ { .exception = { .pending = 1, .nr = 4 } }, 4, false },
		{ { .exception = { .injected = 1, .nr = 6 }, .interrupt = { .injected = 1, .nr = 0x31 } }, 6, false },
	};
	for (unsigned k = 0; k < ARRAY_LEN(cases); k++) {
		struct rig *g = real_mode();
		struct cpu *c = g->cpu;
		struct kvm_vcpu_events *e = &g->box[0].events;
		*e = cases[k].e;
		fetch(g, 0);
		if (c->rip != 0x1000u + 16 * cases[k].vector)
			fail_msg("case %u: rip %llx", k, (unsigned long long)c->rip);
		assert_int_equal(c->regs[R_SP], 0x6000 - 6);
		assert_int_equal(ld16(g->mem.ram + 0x6000 - 6), 0x7c05);
		assert_true(ld16(g->mem.ram + 0x6000 - 2) & FL_IF);
		assert_int_equal(c->nmi_blocked, cases[k].nmi);
		assert_true(state_put(g->v[0]));
		assert_int_equal(g->box[0].regs.rip, c->rip);
		assert_false(e->exception.injected || e->exception.pending || e->interrupt.injected || e->nmi.injected);
		assert_int_equal(e->nmi.masked, cases[k].nmi);
		rig_free(g);
	}
}

/* Which need not be what SS says. */
static void the_privilege_level(void **state)
{
	struct rig *g = real_mode();
	fetch(g, 0);
	assert_int_equal(g->cpu->cpl, 0);
	g->cpu->cpl = 3;
	assert_true(state_put(g->v[0]));
	assert_int_equal(g->box[0].sregs.ss.dpl, 3);
	rig_free(g);
}

/* CR8, where the LAPICs are ours: what KVM_RUN comes back with is theirs. */
static void the_task_priority(void **state)
{
	struct rig *g = rig_new("max", false);
	struct error e;
	kvm_host_replace(&g->host);
	assert_true(kvm_engine.fit_model(&g->model, NULL, &e));
	g->cpu->n_cpus = 1;
	g->cpu->activity = ACT_RUN;
	g->board.page[0x80] = 0x30;
	if (!kvm_engine.vcpu_init(g->cpu, &e))
		fail_msg("%s", e.msg);
	assert_int_equal(kvm_engine.run(g->cpu), RUN_HALT);
	assert_int_equal(g->cr8, 3);
	assert_int_equal(g->board.page[0x80], 0x90);
	kvm_engine.vcpu_destroy(g->cpu);
	kvm_host_replace(NULL);
	rig_free(g);
}

/* An NMI that waits in KVM is an event of ours, and given to KVM anew. */
static void an_nmi_that_waits(void **state)
{
	struct rig *g = real_mode();
	g->box[0].events.nmi.pending = g->box[0].events.nmi.masked = 1;
	fetch(g, 0);
	assert_true(atomic_load(&g->cpu->events) & EV_NMI);
	assert_true(g->cpu->nmi_blocked);
	assert_int_equal(g->cpu->rip, 0x7c05);
	assert_true(state_put(g->v[0]));
	assert_int_equal(g->box[0].events.nmi.pending, 0);
	assert_int_equal(g->box[0].events.nmi.masked, 1);
	rig_free(g);
}

/* With KVM's LAPICs it may come from another processor, between fetching and putting: that one stays KVM's. */
static void an_nmi_that_comes_meanwhile(void **state)
{
	struct rig *g = rig_new("max", true);
	struct kvm_vcpu_events *e = &g->box[0].events;
	any_state(g, &g->box[0], false);
	fetch(g, 0);
	e->nmi.pending = 1;
	assert_true(state_put(g->v[0]));
	assert_int_equal(e->nmi.pending, 1);
	fetch(g, 0);
	assert_true(atomic_load(&g->cpu->events) & EV_NMI);
	assert_true(state_put(g->v[0]));
	assert_int_equal(e->nmi.pending, 0); /* ours */
	rig_free(g);
}

/* Or before the processor goes for a hop: it is an event of ours then; a hypervisor's guest's goes on with that one's state. */
static void an_nmi_that_comes_late(void **state)
{
	for (unsigned k = 0; k < 4; k++) {
		bool l2 = k & 1, known = k & 2;
		struct rig *g = rig_new(hypervisors[0], true);
		struct kvm_vcpu *v = g->v[0];
		any_state(g, &g->box[0], false);
		if (l2)
			hypervisors_state(g, &g->box[0], true);
		g->box[0].events.nmi.pending = known;
		fetch(g, 0);
		assert_int_equal(atomic_load(&g->cpu->nmis), !l2 && known);
		g->box[0].events.nmi.pending = 1;
		g->vm.vcpu[0] = v;
		g->vm.n_vcpus = 1;
		g->vm.lent = true;
		irqchip_leaves(v);
		assert_int_equal(g->lends, 1);
		assert_int_equal(g->vm.n_vcpus, 0);
		assert_int_equal(atomic_load(&g->cpu->nmis), !l2); /* once */
		nested_keep(v);
		if (l2)
			assert_int_equal(((struct hypervisor *)g->cpu->engine_keeps)->events.nmi.pending, 1);
		rig_free(g);
	}
}

/* #PF, #DB that KVM has taken and that have not come to CR2 and DR6 yet. */
static void payloads(void **state)
{
	struct rig *g = real_mode();
	g->box[0].events = (struct kvm_vcpu_events){ .exception = { .pending = 1, .nr = V_PF }, .exception_has_payload = 1, .exception_payload = 0x12345678 };
	fetch(g, 0);
	assert_true(g->cpu->cr2 == 0x12345678);
	rig_free(g);
	g = real_mode();
	g->box[0].debugregs.dr6 = 0xffff0ff0;
	g->box[0].events = (struct kvm_vcpu_events){ .exception = { .pending = 1, .nr = V_DB }, .exception_has_payload = 1, .exception_payload = 0x4001 };
	fetch(g, 0);
	assert_int_equal(g->cpu->rip, 0x1010);
	assert_true((g->cpu->dr[6] & 0xe00f) == 0x4001);
	rig_free(g);
}

/* KVM's form has no room for FCS and FDS: they stay while the instruction is the last one. */
static void selectors_of_the_fpu(void **state)
{
	struct rig *g = real_mode();
	struct cpu *c = g->cpu;
	u8 *area = (u8 *)g->box[0].xsave.region;
	for (unsigned k = 0; k < 4; k++) {
		fetch(g, 0);
		c->fip = 0x1234, c->fdp = 0x5678, c->fcs = 0x11, c->fds = 0x22, c->fop = 0x333;
		assert_true(state_put(g->v[0]));
		assert_int_equal(ld64(area + 8), 0x1234);
		assert_int_equal(ld64(area + 16), 0x5678);
		assert_int_equal(ld16(area + 6), 0x333);
		st64(area + 8, k & 1 ? 0x9999 : 0x1234);
		st64(area + 16, k & 2 ? 0xaaaa : 0x5678);
		fetch(g, 0);
		assert_int_equal(c->fip, k & 1 ? 0x9999 : 0x1234);
		assert_int_equal(c->fdp, k & 2 ? 0xaaaa : 0x5678);
		assert_int_equal(c->fcs, k & 1 ? 0 : 0x11);
		assert_int_equal(c->fds, k & 2 ? 0 : 0x22);
		assert_true(state_put(g->v[0]));
	}
	rig_free(g);
}

static bool passes(const struct rig *g, u32 msr, u32 how)
{
	for (unsigned k = 0; k < KVM_MSR_FILTER_MAX_RANGES; k++) {
		const struct kvm_msr_filter_range *r = &g->filter.ranges[k];
		if (r->flags & how && msr - r->base < r->nmsrs)
			return g->bits[k][(msr - r->base) / 8] >> ((msr - r->base) & 7) & 1;
	}
	return !(g->filter.flags & KVM_MSR_FILTER_DEFAULT_DENY);
}

/* A VM whose guests may be hypervisors: KVM tells waiting exceptions from taken ones, and gets their MSRs. */
static void a_vm_for_hypervisors(void **state)
{
	static const struct { u32 msr; bool rd, wr, always; } msrs[] = {
		{ 0x3a, true, true, false }, { 0x480, true, false, false }, { 0x491, true, false, false }, { 0xc0000104, true, true, false },
		{ 0xc0010114, true, true, false }, { 0xc0010117, true, true, false }, { 0xc0010115, false, false, true }, { 0x492, false, false, true },
		{ 0x10, true, false, true }, { 0x8b, false, false, true }, { 0xc0000080, true, true, true }, { 0xc0000082, true, true, true } };
	for (unsigned split = 0; split < 2; split++) {
		struct rig *g = rig_new("max", false);
		const struct kvm_options o = { .irqchip = split ? IRQCHIP_SPLIT : IRQCHIP_OWN };
		struct error e;
		bool payload = false;
		kvm_host_replace(&g->host);
		struct vm *vm = vm_join(&g->mem, &o, &e);
		if (!vm)
			fail_msg("%s", e.msg);
		assert_int_equal(vm->nested_bytes, split ? NESTED_BYTES : 0);
		for (unsigned k = 0; k < g->n_caps; k++)
			payload |= g->caps[k] == KVM_CAP_EXCEPTION_PAYLOAD;
		assert_int_equal(payload, split);
		for (unsigned k = 0; k < ARRAY_LEN(msrs); k++) {
			bool there = split || msrs[k].always;
			if (passes(g, msrs[k].msr, KVM_MSR_FILTER_READ) != (there && msrs[k].rd) || passes(g, msrs[k].msr, KVM_MSR_FILTER_WRITE) != (there && msrs[k].wr))
				fail_msg("MSR %#x, LAPICs %s", msrs[k].msr, split ? "KVM's" : "ours");
		}
		vm_leave(vm);
		kvm_host_replace(NULL);
		rig_free(g);
	}
}

int main(void)
{
	log_configure("error", "/dev/null", &(struct error){ "" });
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_of_a_processor), cmocka_unit_test(a_hypervisors_state), cmocka_unit_test(a_hypervisor_hops), cmocka_unit_test(reset_on_the_way),
		cmocka_unit_test(a_state_that_is_refused), cmocka_unit_test(an_interrupt_that_comes_meanwhile), cmocka_unit_test(components_as_after_init),
		cmocka_unit_test(the_privilege_level), cmocka_unit_test(the_task_priority), cmocka_unit_test(half_way), cmocka_unit_test(an_nmi_that_waits),
		cmocka_unit_test(an_nmi_that_comes_meanwhile), cmocka_unit_test(an_nmi_that_comes_late), cmocka_unit_test(a_vm_for_hypervisors), cmocka_unit_test(payloads), cmocka_unit_test(selectors_of_the_fpu),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
