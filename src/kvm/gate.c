/* The gate: KVM has no way to change a memory slot but to take it away and make another. A processor that was in the
 * guest then would find nothing where its page tables or its code are. So whoever changes one closes the gate first:
 * all processors come out and wait until the new slots are there.
 *
 * Who enters says so (in_run) and then looks at `changing`; who closes says so and then looks at in_run: one of them
 * sees the other. A kick is not lost: immediate_exit stays set until its processor is out (kvm_impl.h, invariant 4).
 * Who closes holds the machine lock, which nobody in KVM_RUN needs to come out. */
#include "kvm/kvm_impl.h"

static void leave(struct kvm_vcpu *v)
{
	struct vm *vm = v->vm;
	atomic_store(&v->in_run, false);
	if (likely(!atomic_load(&vm->changing)))
		return;
	pthread_mutex_lock(&vm->gate_lock);
	pthread_cond_broadcast(&vm->gate_moved);
	pthread_mutex_unlock(&vm->gate_lock);
}

static void enter(struct kvm_vcpu *v)
{
	struct vm *vm = v->vm;
	for (;;) {
		atomic_store(&v->in_run, true);
		if (likely(!atomic_load(&vm->changing)))
			return;
		leave(v);
		pthread_mutex_lock(&vm->gate_lock);
		while (atomic_load(&vm->changing))
			pthread_cond_wait(&vm->gate_moved, &vm->gate_lock);
		pthread_mutex_unlock(&vm->gate_lock);
	}
}

int gate_kvm_run(struct kvm_vcpu *v)
{
	enter(v);
	int r = vcpu_call(v, KVM_RUN, NULL);
	leave(v);
	return r;
}

void gate_close(struct vm *vm)
{
	atomic_store(&vm->changing, true);
	for (unsigned k = 0; k < KVM_VCPUS; k++) {
		struct kvm_vcpu *v = vm->vcpu[k];
		if (!v || !atomic_load(&v->in_run))
			continue;
		__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
		pthread_kill(v->self, KVM_SIG_KICK);
	}
	pthread_mutex_lock(&vm->gate_lock);
	for (unsigned k = 0; k < KVM_VCPUS; k++)
		while (vm->vcpu[k] && atomic_load(&vm->vcpu[k]->in_run))
			pthread_cond_wait(&vm->gate_moved, &vm->gate_lock);
	pthread_mutex_unlock(&vm->gate_lock);
}

void gate_open(struct vm *vm)
{
	pthread_mutex_lock(&vm->gate_lock);
	atomic_store(&vm->changing, false);
	pthread_cond_broadcast(&vm->gate_moved);
	pthread_mutex_unlock(&vm->gate_lock);
}

void gate_joined(struct kvm_vcpu *v)
{
	mem_lock(v->vm->mem);
	v->vm->vcpu[v->cpu->index] = v;
	mem_unlock(v->vm->mem);
}

void gate_leaves(struct kvm_vcpu *v)
{
	mem_lock(v->vm->mem);
	if (v->vm->vcpu[v->cpu->index] == v)
		v->vm->vcpu[v->cpu->index] = NULL;
	mem_unlock(v->vm->mem);
}
