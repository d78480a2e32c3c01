/* KVM_RUN: the interpreter, an instruction at a time, on the processor's own thread; exits. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "fake_impl.h"

static _Thread_local struct fake_vcpu *self;

/* ---- to and fro ---------------------------------------------------------------------------------------- */

static bool can_take(const struct cpu *c) { return (c->rflags & FL_IF) && !c->shadow; }

/* Leaves KVM_RUN, on the processor's thread; comes back with the next one. */
static void leave(struct fake_vcpu *v, int result, bool in_exit)
{
	v->run->cr8 = v->cr8;
	v->run->if_flag = (v->c->rflags & FL_IF) != 0;
	v->run->ready_for_interrupt_injection = !in_exit && v->vector < 0 && can_take(v->c);
	pthread_mutex_lock(&v->lock);
	v->result = result;
	v->in_exit = in_exit;
	v->ours = false;
	pthread_cond_broadcast(&v->changed);
	while (!v->ours && !v->end)
		pthread_cond_wait(&v->changed, &v->lock);
	v->in_exit = false;
	bool end = v->end;
	pthread_mutex_unlock(&v->lock);
	if (end)
		pthread_exit(NULL);
	v->cr8 = (u8)v->run->cr8;
	v->steps = 0;
}

static void leave_by(struct fake_vcpu *v, u32 reason, bool in_exit)
{
	v->run->exit_reason = reason;
	leave(v, 0, in_exit);
}

int fake_run(struct fake_vcpu *v)
{
	pthread_mutex_lock(&v->lock);
	v->ours = true;
	pthread_cond_broadcast(&v->changed);
	while (v->ours)
		pthread_cond_wait(&v->changed, &v->lock);
	int result = v->result;
	pthread_mutex_unlock(&v->lock);
	return result;
}

/* ---- in the middle of an instruction ----------------------------------------------------------------------- */

/* The bus holds its lock, which other processors may need before this one is back. */
static void exit_unlocked(u32 reason)
{
	struct fake_vcpu *v = self;
	mem_unlock(&v->f->mem);
	leave_by(v, reason, true);
	mem_lock(&v->f->mem);
}

static void mmio_exit(u64 gpa, void *data, unsigned size, bool write)
{
	struct kvm_run *r = self->run;
	r->mmio.phys_addr = gpa;
	r->mmio.len = size;
	r->mmio.is_write = write;
	memset(r->mmio.data, write ? 0 : 0xcc, 8);
	if (write)
		memcpy(r->mmio.data, data, size);
	exit_unlocked(KVM_EXIT_MMIO);
	if (!write)
		memcpy(data, r->mmio.data, size);
}

static u64 mmio_read(void *dev, u64 off, unsigned size)
{
	u64 val = 0;
	(void)dev;
	mmio_exit(off, &val, size, false);
	return val;
}
static void mmio_write(void *dev, u64 off, u64 val, unsigned size)
{
	(void)dev;
	if (!fake_bell_rings(self->f, off, size))
		mmio_exit(off, &val, size, true);
}
static void rom_write(void *slot, u64 off, u64 val, unsigned size) { mmio_exit(((struct fake_slot *)slot)->gpa + off, &val, size, true); }

static void port_exit(u64 port, u32 *val, unsigned size, bool write)
{
	struct kvm_run *r = self->run;
	r->io.direction = write ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
	r->io.port = (u16)port;
	r->io.size = (u8)size;
	r->io.count = 1;
	r->io.data_offset = DATA_AT;
	memcpy((u8 *)r + DATA_AT, val, 4);
	exit_unlocked(KVM_EXIT_IO);
	*val = 0;
	memcpy(val, (u8 *)r + DATA_AT, size);
}
/* dev: the first port of the range. */
static u64 port_read(void *dev, u64 off, unsigned size)
{
	u32 val = 0xcccccccc;
	port_exit((u64)dev + off, &val, size, false);
	return val;
}
static void port_write(void *dev, u64 off, u64 val, unsigned size)
{
	u32 v = (u32)val;
	port_exit((u64)dev + off, &v, size, true);
}

const struct mmio_ops fake_mmio = { mmio_read, mmio_write, 1, 8 }, fake_rom = { mmio_read, rom_write, 1, 8 }, fake_ports = { port_read, port_write, 1, 4 };

/* ---- the processor's own --------------------------------------------------------------------------------------- */

static int int_ack(void *arg)
{
	struct fake_vcpu *v = arg;
	int vector = v->vector;
	v->vector = -1;
	cpu_clear_event(v->c, EV_INTR);
	return vector;
}
static u8 get_tpr(void *arg) { return (u8)(((struct fake_vcpu *)arg)->cr8 << 4); }
static void set_tpr(void *arg, u8 tpr)
{
	struct fake_vcpu *v = arg;
	v->lowered |= tpr >> 4 < v->cr8;
	v->cr8 = tpr >> 4;
}
static void triple_fault(void *arg) { (void)arg; }
static void set_tsc_adjust(void *arg, u64 adjust) { (void)arg, (void)adjust; }

/* The n bytes at RIP, if they can be had. */
static bool code_at(struct cpu *c, u8 *bytes, unsigned n)
{
	for (unsigned k = 0; k < n; k++) {
		u64 gpa, lin = c->rip + k + c->ebase[S_CS];
		if (!mmu_peek(c, c->code_mode == CODE64 ? lin : (u32)lin, &gpa))
			return false;
		struct mem_page p = mem_page(c->mem, gpa);
		if (!p.host)
			return false;
		bytes[k] = p.host[gpa & PAGE_MASK];
	}
	return true;
}

/* An instruction of two bytes that was carried out here, or has raised #GP(0). */
static void finish(struct cpu *c, bool gp)
{
	bool tf = c->rflags & FL_TF;
	if (gp) {
		c->exc = (struct exception){ .vector = V_GP, .has_error = true };
		cpu_exception(c);
		return;
	}
	c->rip = c->code_mode == CODE64 ? c->rip + 2 : (u32)(c->rip + 2);
	c->shadow = 0;
	c->rflags &= ~(u64)FL_RF;
	c->icount++;
	cpu_update_events(c);
	cpu_after_insn(c, tf);
}

static bool let_through(const struct fake_kvm *f, u32 msr, bool write)
{
	if (!f->filtered)
		return true;
	for (unsigned k = 0; k < MAX_FILTERS; k++) {
		u32 n = msr - f->filter[k].base;
		if (f->filter[k].bits && n < f->filter[k].n && f->filter[k].flags & (write ? KVM_MSR_FILTER_WRITE : KVM_MSR_FILTER_READ))
			return f->filter[k].bits[n / 8] >> (n & 7) & 1;
	}
	return false;
}

static void msr_access(struct fake_vcpu *v, bool write)
{
	struct cpu *c = v->c;
	u32 msr = (u32)c->regs[R_CX];
	u64 val = (u32)c->regs[R_AX] | c->regs[R_DX] << 32;
	bool ok;
	if (let_through(v->f, msr, write)) {
		ok = write ? msr_write(c, msr, val) : msr_read(c, msr, &val);
	} else {
		v->run->msr.error = 0;
		v->run->msr.reason = KVM_MSR_EXIT_REASON_FILTER;
		v->run->msr.index = msr;
		v->run->msr.data = write ? val : 0;
		leave_by(v, write ? KVM_EXIT_X86_WRMSR : KVM_EXIT_X86_RDMSR, true);
		ok = !v->run->msr.error;
		val = v->run->msr.data;
	}
	if (ok && !write) {
		c->regs[R_AX] = (u32)val;
		c->regs[R_DX] = val >> 32;
	}
	finish(c, !ok);
}

/* As it was told by KVM_SET_CPUID2; what follows the processor's state is KVM's to fill in. */
static void cpuid(struct fake_vcpu *v)
{
	struct cpu *c = v->c;
	u32 leaf = (u32)c->regs[R_AX], sub = (u32)c->regs[R_CX], out[4] = { 0 }, live[4];
	for (u32 k = 0; v->cpuid && k < v->cpuid->nent; k++) {
		const struct kvm_cpuid_entry2 *x = &v->cpuid->entries[k];
		if (x->function != leaf || (x->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX && x->index != sub))
			continue;
		out[0] = x->eax, out[1] = x->ebx, out[2] = x->ecx, out[3] = x->edx;
		break;
	}
	cpu_cpuid(c, leaf, sub, live);
	const u32 osxsave = 1u << 27, ospke = 1u << 4;
	if (leaf == 1)
		out[2] = (out[2] & ~osxsave) | (live[2] & osxsave);
	if (leaf == 7 && !sub)
		out[2] = (out[2] & ~ospke) | (live[2] & ospke);
	if (leaf == 0xd && sub < 2)
		out[1] = live[1];
	c->regs[R_AX] = out[0], c->regs[R_BX] = out[1], c->regs[R_CX] = out[2], c->regs[R_DX] = out[3];
	finish(c, false);
}

/* What the interpreter would do by its own tables. True: it was done here. */
static bool by_tables(struct fake_vcpu *v)
{
	struct cpu *c = v->c;
	u8 b[2];
	if ((c->slow & ~(u32)(SLOW_RF | SLOW_SHADOW)) || !code_at(c, b, 2) || b[0] != 0x0f)
		return false;
	if (b[1] == 0xa2)
		cpuid(v);
	else if ((b[1] == 0x30 || b[1] == 0x32) && !c->cpl)
		msr_access(v, b[1] == 0x30);
	else
		return false;
	return true;
}

/* ---- the thread ------------------------------------------------------------------------------------------------- */

static bool exit_is_due(struct fake_kvm *f)
{
	pthread_mutex_lock(&f->lock);
	bool due = f->exit_wanted && !f->exit_after--;
	if (due)
		f->exit_wanted = false;
	pthread_mutex_unlock(&f->lock);
	return due;
}

static void wanted_exit(struct fake_vcpu *v)
{
	struct fake_kvm *f = v->f;
	struct kvm_run *r = v->run;
	if (f->exit_reason == KVM_EXIT_INTERNAL_ERROR) {
		r->internal.suberror = (u32)f->exit_subcode;
		r->internal.ndata = 2;
		r->internal.data[0] = 0x1234;
		r->internal.data[1] = 0x5678;
	} else if (f->exit_reason == KVM_EXIT_FAIL_ENTRY) {
		r->fail_entry.hardware_entry_failure_reason = f->exit_subcode;
		r->fail_entry.cpu = 3;
	}
	leave_by(v, f->exit_reason, false);
}

/* Between two instructions. True: it has left, and is back. */
static bool left(struct fake_vcpu *v)
{
	struct cpu *c = v->c;
	struct kvm_run *r = v->run;
	if (__atomic_load_n(&r->immediate_exit, __ATOMIC_SEQ_CST) || (v->f->storm && v->steps >= v->f->storm)) {
		leave(v, -EINTR, false);
		return true;
	}
	if (r->request_interrupt_window && v->vector < 0 && can_take(c)) {
		leave_by(v, KVM_EXIT_IRQ_WINDOW_OPEN, false);
		return true;
	}
	return false;
}

static void one_instruction(struct fake_vcpu *v)
{
	struct cpu *c = v->c;
	static const u8 loop[5] = { 0x48, 0xff, 0xc9, 0x75, 0xfb };
	u8 at[sizeof(loop)];
	v->steps++;
	v->lowered = false;
	if (v->f->fast && code_at(c, at, sizeof(at)) && !memcmp(at, loop, sizeof(at)) && c->regs[R_CX])
		c->regs[R_CX] = 1;
	bool event = atomic_load(&c->events) & c->event_mask;
	if (event || !by_tables(v))
		interp_step(c);
	if (c->stopped) {
		c->stopped = false;
		c->activity = ACT_RUN;
		leave_by(v, KVM_EXIT_SHUTDOWN, false);
	} else if (c->activity == ACT_HLT) {
		c->activity = ACT_RUN; /* who waits is the user */
		leave_by(v, KVM_EXIT_HLT, false);
	} else if (v->lowered) {
		leave_by(v, KVM_EXIT_SET_TPR, false);
	}
	c->activity = ACT_RUN; /* MWAIT does not wait */
}

static void *thread_main(void *arg)
{
	struct fake_vcpu *v = arg;
	self = v;
	leave(v, 0, false);
	for (;;) {
		if (v->steps == 0 && exit_is_due(v->f)) {
			v->steps++;
			wanted_exit(v);
		} else if (!left(v)) {
			one_instruction(v);
		}
	}
	return NULL;
}

/* ---- life ---------------------------------------------------------------------------------------------------------- */

bool fake_vcpu_start(struct fake_vcpu *v)
{
	static const struct cpu_hooks hooks = { .int_ack = int_ack, .get_tpr = get_tpr, .set_tpr = set_tpr, .triple_fault = triple_fault, .set_tsc_adjust = set_tsc_adjust };
	struct fake_kvm *f = v->f;
	struct error e;
	pthread_condattr_t a;
	v->hooks = hooks;
	v->hooks.arg = v;
	v->run = mmap(NULL, RUN_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (v->run == MAP_FAILED || !clock_init(&v->clock, false, &e))
		return false;
	v->c = cpu_new((unsigned)(v - f->vcpu), &f->mem, &v->clock, &f->model, &v->hooks);
	struct interp *in = calloc(1, sizeof(*in));
	if (!v->c || !in || !interp_init(v->c, in, &e))
		return false;
	v->c->activity = ACT_RUN;
	pthread_condattr_init(&a);
	pthread_mutex_init(&v->lock, NULL);
	pthread_cond_init(&v->changed, &a);
	v->ours = true;
	if (pthread_create(&v->thread, NULL, thread_main, v))
		return false;
	pthread_mutex_lock(&v->lock);
	while (v->ours)
		pthread_cond_wait(&v->changed, &v->lock);
	pthread_mutex_unlock(&v->lock);
	return true;
}

void fake_vcpu_end(struct fake_vcpu *v)
{
	pthread_mutex_lock(&v->lock);
	v->end = true;
	pthread_cond_broadcast(&v->changed);
	pthread_mutex_unlock(&v->lock);
	pthread_join(v->thread, NULL);
	struct interp *in = v->c->engine;
	interp_destroy(v->c);
	free(in);
	cpu_free(v->c);
	clock_destroy(&v->clock);
	munmap(v->run, RUN_BYTES);
	free(v->cpuid);
	pthread_cond_destroy(&v->changed);
	pthread_mutex_destroy(&v->lock);
}
