/* What KVM must offer, and a machine's VM. Documentation/virt/kvm/api.rst of the kernel.
 *
 * irqchip=own: the interrupt controllers are ours: KVM makes none, HLT, CR8 and the LAPIC's MSRs come out to us.
 * irqchip=split: the LAPICs are KVM's (irqchip.c). */
#define LOG_TOPIC "kvm"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kvm/kvm_impl.h"
#include "kvm/probe_api.h"

const struct kvm_extension kvm_required[] = {
#define NEED(cap, since) { KVM_CAP_##cap, "KVM_CAP_" #cap, since }
	NEED(USER_MEMORY, "2.6.25"), NEED(EXT_CPUID, "2.6.25"), NEED(MP_STATE, "2.6.26"), NEED(VCPU_EVENTS, "2.6.33"),
	NEED(DEBUGREGS, "2.6.35"), NEED(XSAVE, "2.6.36"), NEED(XCRS, "2.6.36"), NEED(READONLY_MEM, "3.7"),
	NEED(IMMEDIATE_EXIT, "4.13"), NEED(X86_USER_SPACE_MSR, "5.10"), NEED(X86_MSR_FILTER, "5.10"),
#undef NEED
};
const unsigned n_kvm_required = ARRAY_LEN(kvm_required);

/* Where Intel's processors without unrestricted guests keep what they need for real mode: 4 pages below the
 * firmware's ROM and above the LAPICs' page, where the machine has nothing. */
#define IDENTITY_MAP 0xfeffc000ull
#define TSS_PAGES 0xfeffd000ull

/* ---- opening -------------------------------------------------------------------------------------- */

static bool open_error(const struct kvm_host *h, int err, struct error *e)
{
	const char *hint = err == ETIMEDOUT ? "does not open within 1 s" : err == ENOENT ? "the kernel has no KVM, or its module (kvm_intel, kvm_amd) is not loaded"
		: err == EACCES || err == EPERM ? "this user may not open it; the group kvm may, as a rule"
		: err == ENODEV ? "the processor has no virtualization, or the firmware has switched it off" : strerror(err);
	return error_set(e, "%s: %s", h->name, hint);
}

static int extension(const struct kvm_host *h, int fd, int cap)
{
	return h->ioctl(h->arg, fd, KVM_CHECK_EXTENSION, (void *)(uintptr_t)cap);
}

static bool check(const struct kvm_host *h, int fd, struct error *e)
{
	int version = h->ioctl(h->arg, fd, KVM_GET_API_VERSION, NULL);
	if (version != KVM_API_VERSION)
		return error_set(e, "%s: version %d of its interface, not %d", h->name, version, KVM_API_VERSION);
	for (unsigned k = 0; k < n_kvm_required; k++)
		if (extension(h, fd, kvm_required[k].cap) <= 0)
			return error_set(e, "%s: without the extension %s, which Linux has since %s", h->name,
					 kvm_required[k].name, kvm_required[k].since);
	return true;
}

int kvm_open(struct error *e)
{
	const struct kvm_host *h = kvm_host();
	int fd = h->open(h->arg);
	if (fd < 0) {
		open_error(h, -fd, e);
		return -1;
	}
	if (check(h, fd, e))
		return fd;
	h->close(h->arg, fd);
	return -1;
}

bool kvm_usable(struct error *why_not)
{
	const struct kvm_host *h = kvm_host();
	int r = kvm_try_open(h), fd = r < 0 ? -1 : kvm_open(why_not);
	if (fd >= 0)
		h->close(h->arg, fd);
	return fd >= 0 || (r < 0 && open_error(h, -r, why_not));
}

bool vm_has(const struct kvm_host *h, int kvm_fd, int cap) { return extension(h, kvm_fd, cap) > 0; }

struct kvm_cpuid2 *vm_supported_cpuid(const struct kvm_host *h, int kvm_fd, struct error *e)
{
	for (u32 n = 128; n <= 4096; n *= 2) {
		struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + n * sizeof(c->entries[0]));
		if (!c)
			break;
		c->nent = n;
		int r = h->ioctl(h->arg, kvm_fd, KVM_GET_SUPPORTED_CPUID, c);
		if (r >= 0)
			return c;
		free(c);
		if (r == -E2BIG)
			continue;
		error_set(e, "%s: KVM_GET_SUPPORTED_CPUID: %s", h->name, strerror(-r));
		return NULL;
	}
	error_set(e, "%s: no memory for its CPUID", h->name);
	return NULL;
}

/* ---- the VM ------------------------------------------------------------------------------------------ */

/* mem->engine of all machines. */
static pthread_mutex_t vms_lock = PTHREAD_MUTEX_INITIALIZER;

static void vm_free(struct vm *vm)
{
	if (vm->fd >= 0)
		vm->host->close(vm->host->arg, vm->fd);
	if (vm->kvm_fd >= 0)
		vm->host->close(vm->host->arg, vm->kvm_fd);
	pthread_mutex_destroy(&vm->gate_lock);
	pthread_cond_destroy(&vm->gate_moved);
	free(vm->slots);
	free(vm->bells);
	free(vm->supported);
	free(vm);
}

static bool refused(const struct vm *vm, const char *what, int r, struct error *e)
{
	return error_set(e, "%s: %s: %s", vm->host->name, what, strerror(-r));
}

static bool set_up(struct vm *vm, struct error *e)
{
	u64 identity = IDENTITY_MAP;
	int r;
	if (extension(vm->host, vm->kvm_fd, KVM_CAP_SET_TSS_ADDR) > 0 && (r = kvm_call(vm, vm->fd, KVM_SET_TSS_ADDR, (void *)TSS_PAGES)) < 0)
		return refused(vm, "KVM_SET_TSS_ADDR", r, e);
	if (extension(vm->host, vm->kvm_fd, KVM_CAP_SET_IDENTITY_MAP_ADDR) > 0 && (r = kvm_call(vm, vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity)) < 0)
		return refused(vm, "KVM_SET_IDENTITY_MAP_ADDR", r, e);
	struct kvm_enable_cap msrs = { .cap = KVM_CAP_X86_USER_SPACE_MSR,
				       .args = { KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER } };
	if ((r = kvm_call(vm, vm->fd, KVM_ENABLE_CAP, &msrs)) < 0)
		return refused(vm, "KVM_CAP_X86_USER_SPACE_MSR", r, e);
	/* What waits for a hypervisor's guest is then not taken for what is on its way, which the hypervisor would not see any more. */
	struct kvm_enable_cap payload = { .cap = KVM_CAP_EXCEPTION_PAYLOAD, .args = { 1 } };
	if (vm->nested_bytes && extension(vm->host, vm->kvm_fd, KVM_CAP_EXCEPTION_PAYLOAD) > 0 && (r = kvm_call(vm, vm->fd, KVM_ENABLE_CAP, &payload)) < 0)
		return refused(vm, "KVM_CAP_EXCEPTION_PAYLOAD", r, e);
	return (!vm->split || irqchip_set_up(vm, e)) && model_filter_msrs(vm, e);
}

/* Where KVM_GET_XSAVE has the components: as the host's XSAVE in its standard form. */
static void find_xsave(struct vm *vm)
{
	for (u32 k = 0; k < vm->supported->nent; k++) {
		const struct kvm_cpuid_entry2 *x = &vm->supported->entries[k];
		if (x->function == 0xd && x->index >= 2 && x->index < ARRAY_LEN(vm->xsave_offset) && x->eax &&
		    x->ebx + x->eax <= sizeof(struct kvm_xsave))
			vm->xsave_offset[x->index] = x->ebx;
	}
}

static struct vm *vm_new(struct mem *m, const struct kvm_options *o, struct error *e)
{
	struct vm *vm = calloc(1, sizeof(*vm));
	if (!vm) {
		error_set(e, "kvm: out of memory");
		return NULL;
	}
	pthread_mutex_init(&vm->gate_lock, NULL);
	pthread_cond_init(&vm->gate_moved, NULL);
	vm->host = kvm_host();
	vm->mem = m;
	vm->fd = -1;
	vm->pvclock = o->pvclock;
	vm->split = o->irqchip == IRQCHIP_SPLIT;
	if ((vm->kvm_fd = kvm_open(e)) < 0 || !(vm->supported = vm_supported_cpuid(vm->host, vm->kvm_fd, e))) {
		vm_free(vm);
		return NULL;
	}
	int bytes = kvm_call(vm, vm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, NULL), slots = extension(vm->host, vm->kvm_fd, KVM_CAP_NR_MEMSLOTS);
	vm->run_bytes = bytes > 0 ? (size_t)bytes : sizeof(struct kvm_run);
	vm->max_slots = slots > 0 ? (unsigned)slots : 32;
	int ring = extension(vm->host, vm->kvm_fd, KVM_CAP_COALESCED_MMIO);
	vm->ring_page = ring > 0 ? (unsigned)ring : 0;
	vm->ioeventfd = extension(vm->host, vm->kvm_fd, KVM_CAP_IOEVENTFD) > 0;
	int nested = vm->split ? extension(vm->host, vm->kvm_fd, KVM_CAP_NESTED_STATE) : 0;
	vm->nested_bytes = nested > 0 ? (size_t)nested : 0;
	vm->irqfd = extension(vm->host, vm->kvm_fd, KVM_CAP_IRQFD) > 0;
	vm->any_length = extension(vm->host, vm->kvm_fd, KVM_CAP_IOEVENTFD_ANY_LENGTH) > 0;
	vm->sregs2 = extension(vm->host, vm->kvm_fd, KVM_CAP_SREGS2) > 0;
	find_xsave(vm);
	for (unsigned tries = 0; tries < 100 && (vm->fd = kvm_call(vm, vm->kvm_fd, KVM_CREATE_VM, NULL)) == -EINTR; tries++)
		; /* a signal came before it had all its locks: an alarm's, in the hop of a machine that runs */
	if (vm->fd < 0)
		refused(vm, "KVM_CREATE_VM", vm->fd, e);
	if (vm->fd < 0 || !set_up(vm, e)) {
		vm_free(vm);
		return NULL;
	}
	return vm;
}

struct vm *vm_join(struct mem *m, const struct kvm_options *o, struct error *e)
{
	pthread_mutex_lock(&vms_lock);
	struct vm *vm = m->engine;
	if (!vm && (vm = m->engine = vm_new(m, o, e)))
		dirty_begin(vm);
	if (vm)
		vm->users++;
	pthread_mutex_unlock(&vms_lock);
	return vm;
}

void vm_leave(struct vm *vm)
{
	pthread_mutex_lock(&vms_lock);
	if (!--vm->users) {
		dirty_end(vm);
		vm->mem->engine = NULL;
		vm_free(vm);
	}
	pthread_mutex_unlock(&vms_lock);
}
