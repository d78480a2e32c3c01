/* A processor's state between KVM and struct cpu: what one processor of KVM's had comes to the next one as it was, a
 * hypervisor's state in it, and in an order that KVM takes; what KVM's form has no room for stays. */
#include "box.h"

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
		struct rig *g = box_rig_new("max,vendor=intel,+vmx", true);
		struct box *a = &g->box[0], *b = &g->box[1];
		box_any_state(g, a, k & 1);
		box_any_vectors(g, a);
		a->events = (struct kvm_vcpu_events){ .interrupt.shadow = shadows[k / 2], .nmi.masked = k & 1 };
		g->cpu->msr.tsc_adjust = 12345;
		box_fetch(g, 0);
		assert_int_equal(g->cpu->shadow, k / 2 == 0 ? 0 : k / 2 == 1 ? SHADOW_STI : SHADOW_SS);
		nested_keep(g->v[0]);
		assert_null(g->cpu->engine_keeps);
		g->v[1] = box_vcpu_new(g, 1);
		assert_true(state_put(g->v[1]));
		assert_same(g);
		assert_int_equal(b->events.interrupt.shadow, shadows[k / 2]);
		assert_int_equal(b->events.nmi.masked, k & 1);
		assert_int_equal(b->nested_sets, 0);
		box_rig_free(g);
	}
}

/* Once more before the first run, too. */
static void a_hypervisors_state(void **state)
{
	for (unsigned k = 0; k < 8; k++) {
		struct rig *g = box_rig_new(hypervisors[k & 1], true);
		struct box *a = &g->box[0], *b = &g->box[1];
		bool l2 = k & 2;
		struct error e;
		box_any_state(g, a, false);
		box_any_vectors(g, a);
		box_hypervisors_state(g, a, l2);
		a->init = k / 4;
		box_any_msrs(g, a);
		box_fetch(g, 0);
		assert_true(g->v[0]->hypervisor && g->v[0]->l2 == l2 && g->cpu->engine_l2 == l2);
		nested_keep(g->v[0]);
		assert_non_null(g->cpu->engine_keeps);
		for (unsigned more = 0; more < k / 4; more++) {
			struct kvm_vcpu *v = box_vcpu_new(g, 1);
			assert_true(nested_take(v, &e));
			nested_keep(v);
			box_vcpu_free(v);
		}
		g->v[1] = box_vcpu_new(g, 1);
		assert_true(nested_take(g->v[1], &e));
		assert_null(g->cpu->engine_keeps);
		if (!state_put(g->v[1]))
			fail_msg("case %u: refused", k);
		assert_same(g);
		assert_int_equal(b->nested_sets, 1);
		assert_memory_equal(&a->nested, &b->nested, a->nested.size);
		assert_int_equal(b->init, k / 4);
		if (l2) /* flags: what KVM is to take */
			assert_memory_equal(&a->events, &b->events, offsetof(struct kvm_vcpu_events, flags));
		/* And from there on it is fetched and put as ever: not told again. */
		b->nested.size = NESTED_BYTES;
		box_fetch(g, 1);
		assert_true(g->v[1]->hypervisor && g->v[1]->l2 == l2);
		assert_true(state_put(g->v[1]));
		assert_int_equal(b->nested_sets, 1);
		box_rig_free(g);
	}
}

/* All of it by the engine: from VMXON and EFER.SVME on, to another of its own processors alone. */
static void a_hypervisor_hops(void **state)
{
	for (unsigned k = 0; k < 4; k++) {
		const struct kvm_options split = { .irqchip = IRQCHIP_SPLIT };
		struct rig *g = box_rig_new(hypervisors[k & 1], true);
		struct error e;
		kvm_host_replace(&g->host);
		assert_true(cpu_model_parse(&g->model, k & 1 ? "max,vendor=amd" : "max,vendor=intel", &g->clock, &e));
		assert_true(kvm_engine.fit_model(&g->model, &split, &e));
		g->cpu->engine_options = &split;
		g->cpu->n_cpus = 1;
		if (!kvm_engine.vcpu_init(g->cpu, &e))
			fail_msg("%s", e.msg);
		box_any_state(g, &g->box[0], false);
		box_any_vectors(g, &g->box[0]);
		box_hypervisors_state(g, &g->box[0], k & 2);
		box_any_msrs(g, &g->box[0]);
		kvm_of(g->cpu)->in_kvm = true;
		assert_true(state_get(kvm_of(g->cpu)));
		assert_true(kvm_engine.may_move(g->cpu, &kvm_engine, &split, &e));
		kvm_engine.vcpu_destroy(g->cpu);
		g->cpu->engine = NULL;
		if (!kvm_engine.vcpu_init(g->cpu, &e))
			fail_msg("%s", e.msg);
		assert_int_equal(g->box[1].lapic.regs[0x80], 0x50); /* there already for what others send */
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
		box_rig_free(g);
	}
}

/* A reset after the last processor of KVM's is gone: the next one hears nothing of it. */
static void reset_on_the_way(void **state)
{
	for (unsigned k = 0; k < 4; k++) {
		struct rig *g = box_rig_new(hypervisors[k & 1], true);
		struct error e;
		box_any_state(g, &g->box[0], false);
		box_hypervisors_state(g, &g->box[0], k & 2);
		box_fetch(g, 0);
		nested_keep(g->v[0]);
		cpu_reset(g->cpu, false);
		g->v[1] = box_vcpu_new(g, 1);
		assert_true(nested_take(g->v[1], &e));
		assert_true(state_put(g->v[1]));
		assert_int_equal(g->box[1].nested_sets, 0);
		assert_false(g->v[1]->hypervisor || g->v[1]->l2);
		box_rig_free(g);
	}
}

/* It is not lost with a KVM that cannot have it, and a KVM that refuses it ends the machine. */
static void a_state_that_is_refused(void **state)
{
	struct rig *g = box_rig_new(hypervisors[0], true);
	struct error e;
	box_any_state(g, &g->box[0], false);
	box_hypervisors_state(g, &g->box[0], true);
	box_fetch(g, 0);
	nested_keep(g->v[0]);
	g->v[1] = box_vcpu_new(g, 1);
	g->vm.nested_bytes = 0;
	assert_false(nested_take(g->v[1], &e));
	assert_non_null(strstr(e.msg, "hypervisor"));
	assert_non_null(g->cpu->engine_keeps);
	g->vm.nested_bytes = NESTED_BYTES;
	assert_true(nested_take(g->v[1], &e));
	g->cpu->cr4 &= ~(u64)CR4_VMXE; /* of its guest: KVM does not take the one without the other */
	assert_false(state_put(g->v[1]));
	assert_int_equal(g->failures, 1);
	box_rig_free(g);
}

/* XSAVE's way to say that a component is as after INIT: what is in its place says nothing. */
static void components_as_after_init(void **state)
{
	struct rig *g = box_rig_new("max", false);
	u8 *area = (u8 *)g->box[0].xsave.region;
	const u8 zeros[64] = { 0 };
	box_any_state(g, &g->box[0], false);
	box_any_vectors(g, &g->box[0]);
	st32(area + 24, 0x1f80);
	st64(area + 512, 2); /* SSE alone */
	box_fetch(g, 0);
	assert_int_equal(ld16(g->cpu->fxarea), 0x37f);
	assert_int_equal(ld32(g->cpu->fxarea + 24), 0x1f80);
	assert_memory_equal(g->cpu->fxarea + 32, zeros, 64);
	assert_memory_equal(g->cpu->zmm[3], area + 160 + 3 * 16, 16);
	assert_memory_equal(g->cpu->zmm[3] + 16, zeros, 16);
	assert_int_equal(g->cpu->pkru, 0);
	box_rig_free(g);
}

/* Which need not be what SS says. */
static void the_privilege_level(void **state)
{
	struct rig *g = box_real_mode();
	box_fetch(g, 0);
	assert_int_equal(g->cpu->cpl, 0);
	g->cpu->cpl = 3;
	assert_true(state_put(g->v[0]));
	assert_int_equal(g->box[0].sregs.ss.dpl, 3);
	box_rig_free(g);
}

/* CR8, where the LAPICs are ours: what KVM_RUN comes back with is theirs. */
static void the_task_priority(void **state)
{
	struct rig *g = box_rig_new("max", false);
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
	box_rig_free(g);
}

/* KVM's form has no room for FCS and FDS: they stay while the instruction is the last one. */
static void selectors_of_the_fpu(void **state)
{
	struct rig *g = box_real_mode();
	struct cpu *c = g->cpu;
	u8 *area = (u8 *)g->box[0].xsave.region;
	for (unsigned k = 0; k < 4; k++) {
		box_fetch(g, 0);
		c->fip = 0x1234, c->fdp = 0x5678, c->fcs = 0x11, c->fds = 0x22, c->fop = 0x333;
		assert_true(state_put(g->v[0]));
		assert_int_equal(ld64(area + 8), 0x1234);
		assert_int_equal(ld64(area + 16), 0x5678);
		assert_int_equal(ld16(area + 6), 0x333);
		st64(area + 8, k & 1 ? 0x9999 : 0x1234);
		st64(area + 16, k & 2 ? 0xaaaa : 0x5678);
		box_fetch(g, 0);
		assert_int_equal(c->fip, k & 1 ? 0x9999 : 0x1234);
		assert_int_equal(c->fdp, k & 2 ? 0xaaaa : 0x5678);
		assert_int_equal(c->fcs, k & 1 ? 0 : 0x11);
		assert_int_equal(c->fds, k & 2 ? 0 : 0x22);
		assert_true(state_put(g->v[0]));
	}
	box_rig_free(g);
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
		struct rig *g = box_rig_new("max", false);
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
		box_rig_free(g);
	}
}

int main(void)
{
	log_configure("error", "/dev/null", &(struct error){ "" });
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_of_a_processor), cmocka_unit_test(a_hypervisors_state), cmocka_unit_test(a_hypervisor_hops),
		cmocka_unit_test(reset_on_the_way), cmocka_unit_test(a_state_that_is_refused), cmocka_unit_test(components_as_after_init),
		cmocka_unit_test(the_privilege_level), cmocka_unit_test(the_task_priority), cmocka_unit_test(a_vm_for_hypervisors),
		cmocka_unit_test(selectors_of_the_fpu),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
