/* A hypervisor in the guest: what is made of KVM's nested state, and when it is ended. KVM is an answer here. */
#include <errno.h>

#include "test.h"
#include "kvm/kvm_impl.h"

#define NESTED_BYTES (sizeof(struct kvm_nested_state) + 4096)

struct rig {
	struct vm vm;
	struct kvm_host host;
	struct kvm_vcpu v;
	struct cpu cpu;
	struct cpu_model model;
	struct kvm_nested_state answer, last;
	struct state s;
	unsigned gets, sets;
	int fail;
};

static int on_ioctl(void *arg, int fd, unsigned long request, void *p)
{
	struct rig *g = arg;
	struct kvm_nested_state *s = p;
	if (g->fail)
		return g->fail;
	if (request == KVM_GET_NESTED_STATE) {
		assert_int_equal(s->size, NESTED_BYTES); /* KVM would say E2BIG */
		*s = g->answer;
		g->gets++;
		return 0;
	}
	assert_int_equal(request, KVM_SET_NESTED_STATE);
	g->last = *s;
	g->sets++;
	return 0;
}

static int setup(void **state)
{
	struct rig *g = calloc(1, sizeof(*g));
	assert_non_null(g);
	g->host = (struct kvm_host){ .arg = g, .name = "an answer", .ioctl = on_ioctl };
	g->vm = (struct vm){ .host = &g->host, .nested_bytes = NESTED_BYTES };
	g->v.vm = &g->vm;
	g->v.cpu = &g->cpu;
	g->cpu.model = &g->model;
	g->cpu.engine = &g->v;
	*state = g;
	return 0;
}

static int teardown(void **state)
{
	struct rig *g = *state;
	free(g->v.nested);
	free(g);
	return 0;
}

static void vt_x(void **state)
{
	struct rig *g = *state;
	struct kvm_sregs2 s = { .cr4 = CR4_VMXE }, reset = { 0 };
	struct error e;
	assert_int_equal(nested_fetch(&g->v, &g->s), 0);
	assert_int_equal(g->gets, 0); /* this processor has none */
	g->model.has[FEAT_VMX] = true;
	g->answer = (struct kvm_nested_state){ .format = KVM_STATE_NESTED_FORMAT_VMX, .hdr.vmx = { ~0ull, ~0ull, { 0 } } };
	assert_int_equal(nested_fetch(&g->v, &g->s), 0);
	assert_false(g->v.hypervisor); /* no VMXON yet */
	assert_true(nested_may_move(&g->cpu, &kvm_engine, NULL, &e));
	g->answer.hdr.vmx.vmxon_pa = 0x1000;
	assert_int_equal(nested_fetch(&g->v, &g->s), 0);
	assert_true(g->v.hypervisor && !g->v.l2);
	const struct kvm_options own = { .irqchip = IRQCHIP_OWN }, split = { .irqchip = IRQCHIP_SPLIT };
	assert_false(nested_may_move(&g->cpu, &interp_engine, NULL, &e));
	assert_false(nested_may_move(&g->cpu, &interp_engine, &split, &e)); /* options of its own */
	assert_false(nested_may_move(&g->cpu, &kvm_engine, NULL, &e));
	assert_false(nested_may_move(&g->cpu, &kvm_engine, &own, &e));
	assert_true(nested_may_move(&g->cpu, &kvm_engine, &split, &e));
	assert_int_equal(nested_forget(&g->v, &s), 0);
	assert_int_equal(g->sets, 0);
	s.cr4 = 0; /* its guest's CR4, as that one sees it */
	g->answer.flags = KVM_STATE_NESTED_GUEST_MODE;
	assert_int_equal(nested_fetch(&g->v, &g->s), 0);
	assert_true(g->v.l2);
	assert_int_equal(nested_forget(&g->v, &s), 0);
	assert_int_equal(g->sets, 0);
	g->cpu.engine_l2 = false; /* as cpu_reset leaves it */
	g->v.known = true;
	assert_int_equal(nested_forget(&g->v, &reset), 0);
	assert_int_equal(g->sets, 1);
	assert_int_equal(g->last.flags, 0);
	assert_true(g->last.hdr.vmx.vmxon_pa == ~0ull && g->last.hdr.vmx.vmcs12_pa == ~0ull);
	assert_false(g->v.hypervisor || g->v.l2 || g->v.known);
	assert_int_equal(nested_forget(&g->v, &reset), 0);
	assert_int_equal(g->sets, 1);
}

/* On by EFER.SVME; GIF, which is clear from VMRUN's end on, is in the state, too. */
static void amd_v(void **state)
{
	struct rig *g = *state;
	struct kvm_sregs2 on = { .efer = EFER_SVME }, reset = { 0 };
	struct error e;
	g->model.has[FEAT_SVM] = true;
	g->answer = (struct kvm_nested_state){ .format = KVM_STATE_NESTED_FORMAT_SVM, .flags = KVM_STATE_NESTED_GIF_SET };
	assert_int_equal(nested_fetch(&g->v, &g->s), 0);
	assert_false(g->v.hypervisor);
	assert_true(nested_may_move(&g->cpu, &interp_engine, NULL, &e));
	g->s.sregs = on;
	g->answer.flags = KVM_STATE_NESTED_GUEST_MODE;
	assert_int_equal(nested_fetch(&g->v, &g->s), 0);
	assert_true(g->v.hypervisor && g->v.l2 && g->cpu.engine_l2);
	assert_false(nested_may_move(&g->cpu, &interp_engine, NULL, &e));
	assert_non_null(strstr(e.msg, "AMD-V"));
	assert_int_equal(nested_forget(&g->v, &on), 0);
	assert_int_equal(g->sets, 0);
	g->cpu.engine_l2 = false;
	assert_int_equal(nested_forget(&g->v, &reset), 0);
	assert_int_equal(g->sets, 1);
	assert_int_equal(g->last.format, KVM_STATE_NESTED_FORMAT_SVM);
	assert_int_equal(g->last.flags, KVM_STATE_NESTED_GIF_SET);
	assert_false(g->v.hypervisor || g->v.l2 || g->v.known);
	g->answer.flags = 0;
	assert_int_equal(nested_fetch(&g->v, &g->s), 0);
	assert_true(g->v.hypervisor && !g->v.l2);
	assert_int_equal(nested_forget(&g->v, &on), 0);
	assert_int_equal(g->sets, 1);
	assert_int_equal(nested_forget(&g->v, &reset), 0);
	assert_int_equal(g->sets, 2);
}

static void refused(void **state)
{
	struct rig *g = *state;
	g->model.has[FEAT_VMX] = true;
	g->fail = -EINVAL;
	assert_int_equal(nested_fetch(&g->v, &g->s), -EINVAL);
	g->vm.nested_bytes = 0;
	assert_int_equal(nested_fetch(&g->v, &g->s), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(vt_x, setup, teardown),
		cmocka_unit_test_setup_teardown(amd_v, setup, teardown),
		cmocka_unit_test_setup_teardown(refused, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
