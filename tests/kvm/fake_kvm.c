/* The door, handles, memory slots, what a test has asked for. See fake_kvm.h. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fake_impl.h"

void fake_complain(struct fake_kvm *f, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	pthread_mutex_lock(&f->lock);
	if (!f->complaint[0])
		vsnprintf(f->complaint, sizeof(f->complaint), fmt, ap);
	pthread_mutex_unlock(&f->lock);
	va_end(ap);
}

/* ---- memory ---------------------------------------------------------------------------------------- */

struct mapping { u64 from, bytes, offset, inode; };

/* The mapping of this process that has these bytes; shared memory alone can be mapped a second time. */
static bool find_mapping(u64 at, u64 size, struct mapping *m)
{
	char line[512], mode[5];
	unsigned long long a, b, offset, inode;
	FILE *f = fopen("/proc/self/maps", "r");
	bool found = false;
	while (f && !found && fgets(line, sizeof(line), f))
		if (sscanf(line, "%llx-%llx %4s %llx %*s %llu", &a, &b, mode, &offset, &inode) == 5 && at >= a && at + size <= b && mode[3] == 's') {
			*m = (struct mapping){ a, b - a, offset, inode };
			found = true;
		}
	if (f)
		fclose(f);
	return found;
}

/* struct mem maps RAM once more by its file, for locked accesses across pages: the file is the user's then. */
static void take_file(struct fake_kvm *f, const struct mapping *m)
{
	struct stat st;
	for (int fd = 0; fd < 1024; fd++)
		if (fd != f->mem.fd && !fstat(fd, &st) && st.st_ino == m->inode && !(st.st_mode & S_IFCHR) && dup2(fd, f->mem.fd) >= 0)
			return;
}

/* Where those bytes are in the arena, so that struct mem takes them for its own; NULL. */
static u8 *aliased(struct fake_kvm *f, u64 at, u64 size)
{
	struct mapping m;
	for (unsigned k = 0; k < f->n_aliases; k++)
		if (at - f->alias[k].userspace < f->alias[k].size && at + size <= f->alias[k].userspace + f->alias[k].size)
			return f->mem.ram + f->alias[k].at + (at - f->alias[k].userspace);
	if (f->n_aliases == ARRAY_LEN(f->alias) || !find_mapping(at, size, &m) || f->arena_used + m.bytes > ARENA_BYTES)
		return NULL;
	u8 *to = f->mem.ram + f->arena_used;
	if (mremap((void *)m.from, 0, m.bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED)
		return NULL;
	if (m.offset == f->arena_used)
		take_file(f, &m);
	f->alias[f->n_aliases++] = (struct fake_alias){ m.from, m.bytes, f->arena_used };
	f->arena_used += m.bytes;
	return to + (at - m.from);
}

static void flush_all(struct fake_kvm *f)
{
	for (unsigned k = 0; k < MAX_VCPUS; k++)
		if (f->open[H_VCPU + k])
			cpu_post_event(f->vcpu[k].c, EV_TLB);
}

static bool overlaps(const struct fake_kvm *f, const struct kvm_userspace_memory_region *r)
{
	for (unsigned k = 0; k < MAX_SLOTS; k++)
		if (k != r->slot && f->slot[k].size && r->guest_phys_addr < f->slot[k].gpa + f->slot[k].size &&
		    f->slot[k].gpa < r->guest_phys_addr + r->memory_size)
			return true;
	return false;
}

/* The log is what differs from a copy. */
static int set_log(struct fake_slot *s, u32 flags)
{
	if (!(flags & KVM_MEM_LOG_DIRTY_PAGES)) {
		free(s->logged);
		s->logged = NULL;
	} else if (!s->logged && (s->logged = malloc(s->size))) {
		memcpy(s->logged, (const u8 *)(uintptr_t)s->userspace, s->size);
	}
	return 0;
}

static int get_log(struct fake_kvm *f, const struct kvm_dirty_log *ask)
{
	struct fake_slot *s = ask->slot < MAX_SLOTS ? &f->slot[ask->slot] : NULL;
	u64 *bits = ask->dirty_bitmap;
	if (!s || !s->size || !s->logged)
		return -ENOENT;
	memset(bits, 0, (s->size / PAGE_SIZE + 63) / 64 * 8);
	for (u64 at = 0; at < s->size; at += PAGE_SIZE) {
		const u8 *now = (const u8 *)(uintptr_t)s->userspace + at;
		if (!memcmp(s->logged + at, now, PAGE_SIZE))
			continue;
		memcpy(s->logged + at, now, PAGE_SIZE);
		bits[at / PAGE_SIZE / 64] |= 1ull << (at / PAGE_SIZE & 63);
	}
	return 0;
}

static int set_slot(struct fake_kvm *f, const struct kvm_userspace_memory_region *r)
{
	struct error e;
	if (r->slot >= MAX_SLOTS || (r->guest_phys_addr | r->memory_size | r->userspace_addr) & PAGE_MASK || r->flags & ~(u32)(KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES))
		return -EINVAL;
	struct fake_slot *s = &f->slot[r->slot];
	if (!r->memory_size && !s->size)
		return -EINVAL;
	if (r->memory_size && s->size) /* flags alone may change, but for the one */
		return r->memory_size == s->size && r->guest_phys_addr == s->gpa && r->userspace_addr == s->userspace &&
		       !((r->flags ^ s->flags) & KVM_MEM_READONLY) ? set_log(s, r->flags) : -EINVAL;
	for (unsigned k = 0; !r->memory_size && k < MAX_VCPUS; k++)
		if (f->open[H_VCPU + k] && __atomic_load_n(&f->vcpu[k].ours, __ATOMIC_SEQ_CST))
			fake_complain(f, "slot %u goes while processor %u is in the guest", r->slot, k);
	if (r->memory_size && overlaps(f, r))
		return -EEXIST;
	mem_lock(&f->mem);
	int result = 0;
	if (!r->memory_size) {
		set_log(s, 0);
		mem_remove(&f->mem, s->name, s->gpa);
		s->size = 0;
	} else {
		*s = (struct fake_slot){ r->guest_phys_addr, r->memory_size, r->userspace_addr, r->flags & KVM_MEM_READONLY, "", NULL };
		snprintf(s->name, sizeof(s->name), "slot%u", r->slot);
		bool rom = r->flags & KVM_MEM_READONLY;
		u8 *host = rom ? (u8 *)(uintptr_t)r->userspace_addr : aliased(f, r->userspace_addr, r->memory_size);
		if (!host || !(rom ? mem_add_flash(&f->mem, s->name, s->gpa, s->size, host, &fake_rom, s, 2, &e)
				   : mem_add_ram(&f->mem, s->name, s->gpa, s->size, host, 2, &e))) {
			fake_complain(f, "slot %u cannot be had: %s", r->slot, host ? e.msg : "memory that is not shared, or too much");
			s->size = 0;
			result = -EFAULT;
		}
	}
	if (s->size)
		set_log(s, r->flags);
	mem_unlock(&f->mem);
	flush_all(f);
	return result;
}

/* What was mapped twice may be gone, and something else be there next time. */
static void forget_slots(struct fake_kvm *f)
{
	for (unsigned k = 0; k < MAX_SLOTS; k++)
		if (f->slot[k].size) {
			mem_remove(&f->mem, f->slot[k].name, f->slot[k].gpa);
			f->slot[k].size = 0;
			set_log(&f->slot[k], 0);
		}
	memset(f->bell, 0, sizeof(f->bell));
	f->n_aliases = 0;
	f->arena_used = 0;
}

/* ---- bells ------------------------------------------------------------------------------------------- */

/* fd -1: of whichever. */
static struct fake_bell *bell_at(struct fake_kvm *f, u64 gpa, int fd)
{
	for (unsigned n = 0; n < ARRAY_LEN(f->bell); n++)
		if (f->bell[n].used && f->bell[n].gpa == gpa && (fd < 0 || f->bell[n].fd == fd))
			return &f->bell[n];
	return NULL;
}

static int set_bell(struct fake_kvm *f, const struct kvm_ioeventfd *k)
{
	bool off = k->flags & KVM_IOEVENTFD_FLAG_DEASSIGN;
	if (k->flags & ~(u32)KVM_IOEVENTFD_FLAG_DEASSIGN || (k->len & (k->len - 1)) || k->len > 8)
		return -EINVAL;
	mem_lock(&f->mem);
	struct fake_bell *b = bell_at(f, k->addr, off ? k->fd : -1);
	int result = off == (b != NULL) ? 0 : off ? -ENOENT : -EEXIST;
	if (off && b)
		b->used = false;
	for (unsigned n = 0; !result && !off && n < ARRAY_LEN(f->bell); n++)
		if (!f->bell[n].used) {
			f->bell[n] = (struct fake_bell){ k->addr, k->len, k->fd, true };
			break;
		}
	mem_unlock(&f->mem);
	return result;
}

bool fake_bell_rings(struct fake_kvm *f, u64 gpa, unsigned size)
{
	const u64 once = 1;
	const struct fake_bell *b = bell_at(f, gpa, -1);
	return b && (!b->len || b->len == size) && write(b->fd, &once, sizeof(once)) == sizeof(once);
}

/* ---- requests ----------------------------------------------------------------------------------------- */

static int check_extension(const struct fake_kvm *f, int cap)
{
	if (cap == f->lack)
		return 0;
	for (unsigned k = 0; k < n_kvm_required; k++)
		if (cap == kvm_required[k].cap)
			return 1;
	return cap == KVM_CAP_NR_MEMSLOTS ? MAX_SLOTS : cap == KVM_CAP_NESTED_STATE ? 4096 : cap == KVM_CAP_SREGS2 || cap == KVM_CAP_IOEVENTFD || cap == KVM_CAP_IOEVENTFD_ANY_LENGTH ||
	       cap == KVM_CAP_TSC_DEADLINE_TIMER;
}

static int set_filter(struct fake_kvm *f, const struct kvm_msr_filter *m)
{
	if (!(m->flags & KVM_MSR_FILTER_DEFAULT_DENY))
		return -EINVAL;
	for (unsigned k = 0; k < MAX_FILTERS; k++) {
		free(f->filter[k].bits);
		f->filter[k].bits = NULL;
		f->filter[k].n = m->ranges[k].nmsrs;
		if (!m->ranges[k].nmsrs)
			continue;
		f->filter[k].flags = m->ranges[k].flags;
		f->filter[k].base = m->ranges[k].base;
		f->filter[k].bits = malloc(m->ranges[k].nmsrs / 8 + 1);
		memcpy(f->filter[k].bits, m->ranges[k].bitmap, (m->ranges[k].nmsrs + 7) / 8);
	}
	f->filtered = true;
	return 0;
}

static int create_vcpu(struct fake_kvm *f, unsigned index)
{
	if (index >= MAX_VCPUS || f->open[H_VCPU + index])
		return -EEXIST;
	f->vcpu[index] = (struct fake_vcpu){ .f = f, .vector = -1 };
	if (!fake_vcpu_start(&f->vcpu[index]))
		return -ENOMEM;
	f->open[H_VCPU + index] = true;
	return H_VCPU + (int)index;
}

static int ask_kvm(struct fake_kvm *f, unsigned long request, void *p)
{
	switch (request) {
	case KVM_GET_API_VERSION: return KVM_API_VERSION;
	case KVM_CHECK_EXTENSION: return check_extension(f, (int)(uintptr_t)p);
	case KVM_GET_VCPU_MMAP_SIZE: return RUN_BYTES;
	case KVM_GET_SUPPORTED_CPUID: return fake_supported_cpuid(f, p);
	case KVM_CREATE_VM:
		if (f->open[H_VM])
			return -EBUSY; /* one at a time */
		f->open[H_VM] = true;
		return H_VM;
	default: return -ENOTTY;
	}
}

static int ask_vm(struct fake_kvm *f, unsigned long request, void *p)
{
	switch (request) {
	case KVM_CHECK_EXTENSION: return check_extension(f, (int)(uintptr_t)p);
	case KVM_SET_USER_MEMORY_REGION: return set_slot(f, p);
	case KVM_GET_DIRTY_LOG: return get_log(f, p);
	case KVM_IOEVENTFD: return set_bell(f, p);
	case KVM_CREATE_VCPU: return create_vcpu(f, (unsigned)(uintptr_t)p);
	case KVM_X86_SET_MSR_FILTER: return set_filter(f, p);
	case KVM_ENABLE_CAP: return ((struct kvm_enable_cap *)p)->cap == KVM_CAP_X86_USER_SPACE_MSR ? 0 : -EINVAL;
	default: return -ENOTTY;
	}
}

static int ask_vcpu(struct fake_vcpu *v, unsigned long request, void *p)
{
	switch (request) {
	case KVM_RUN: return fake_run(v);
	case KVM_INTERRUPT:
		if (v->vector >= 0)
			return -EEXIST;
		if (!(v->c->rflags & FL_IF) || v->c->shadow)
			fake_complain(v->f, "KVM_INTERRUPT while the processor takes none");
		v->vector = (int)((struct kvm_interrupt *)p)->irq;
		cpu_post_event(v->c, EV_INTR);
		return 0;
	case KVM_NMI: cpu_post_event(v->c, EV_NMI); return 0;
	default: return fake_state(v, request, p);
	}
}

/* Counted; and whether this one is to fail. */
static int note(struct fake_kvm *f, unsigned long request)
{
	int err = 0;
	pthread_mutex_lock(&f->lock);
	unsigned k = 0;
	while (k < ARRAY_LEN(f->counts) - 1 && f->counts[k].request && f->counts[k].request != request)
		k++;
	f->counts[k].request = request;
	f->counts[k].n++;
	if (f->fail_request == request && !f->fail_after--) {
		f->fail_request = 0;
		f->failed = true;
		err = f->fail_errno;
	}
	bool hangs = f->hang_request == request;
	if (hangs)
		f->hang_request = 0;
	pthread_mutex_unlock(&f->lock);
	if (hangs) {
		pause();
		f->fail_errno = EINTR;
		return EINTR;
	}
	return err;
}

static int on_open(void *arg)
{
	struct fake_kvm *f = arg;
	if (note(f, FAKE_OPEN))
		return -f->fail_errno;
	f->open[H_KVM] = true;
	f->opens++;
	return H_KVM;
}

static void on_close(void *arg, int fd)
{
	struct fake_kvm *f = arg;
	if (fd < 0 || fd >= N_HANDLES || !f->open[fd]) {
		fake_complain(f, "close of %d, which is not open", fd);
		return;
	}
	if (fd >= H_VCPU)
		fake_vcpu_end(&f->vcpu[fd - H_VCPU]);
	if (fd == H_VM)
		forget_slots(f);
	f->open[fd] = fd == H_KVM && --f->opens;
}

static int on_ioctl(void *arg, int fd, unsigned long request, void *p)
{
	struct fake_kvm *f = arg;
	int err = note(f, request);
	if (fd < 0 || fd >= N_HANDLES || !f->open[fd]) {
		fake_complain(f, "request %#lx of %d, which is not open", request, fd);
		return -EBADF;
	}
	if (err)
		return -err;
	return fd == H_KVM ? ask_kvm(f, request, p) : fd == H_VM ? ask_vm(f, request, p) : ask_vcpu(&f->vcpu[fd - H_VCPU], request, p);
}

static void *on_map(void *arg, int fd, size_t bytes, int *err)
{
	struct fake_kvm *f = arg;
	bool ok = fd >= H_VCPU && fd < N_HANDLES && f->open[fd] && bytes <= RUN_BYTES;
	*err = ok ? 0 : EINVAL;
	return ok ? f->vcpu[fd - H_VCPU].run : NULL;
}

static void on_unmap(void *arg, void *at, size_t bytes) { (void)arg, (void)at, (void)bytes; }

/* ---- for tests ---------------------------------------------------------------------------------------------- */

struct fake_kvm *fake_kvm_new(void)
{
	struct fake_kvm *f = calloc(1, sizeof(*f));
	struct clock clock;
	struct error e;
	pthread_mutex_init(&f->lock, NULL);
	f->host = (struct kvm_host){ f, "the fake KVM", on_open, on_close, on_ioctl, on_map, on_unmap };
	if (!clock_init(&clock, false, &e) || !cpu_model_parse(&f->model, "max", &clock, &e) || !mem_init(&f->mem, ARENA_BYTES, &e) ||
	    !mem_add_mmio(&f->mem, "outside", 0, 1ull << 46, &fake_mmio, f, 1, &e) || !mem_add_ports(&f->mem, "ports", 0, 0x8000, &fake_ports, NULL, &e) || !mem_add_ports(&f->mem, "ports", 0x8000, 0x8000, &fake_ports, (void *)0x8000, &e))
		bug("no fake KVM: %s", e.msg);
	clock_destroy(&clock);
	return f;
}

void fake_kvm_free(struct fake_kvm *f)
{
	for (unsigned k = 0; k < MAX_FILTERS; k++)
		free(f->filter[k].bits);
	mem_destroy(&f->mem);
	free(f);
}

const struct kvm_host *fake_kvm_host(const struct fake_kvm *f) { return &f->host; }

void fake_kvm_fail(struct fake_kvm *f, unsigned long request, unsigned n, int err)
{
	pthread_mutex_lock(&f->lock);
	f->fail_request = request;
	f->fail_after = n;
	f->fail_errno = err;
	f->failed = false;
	pthread_mutex_unlock(&f->lock);
}

void fake_kvm_exit(struct fake_kvm *f, u32 reason, u64 subcode, unsigned n)
{
	pthread_mutex_lock(&f->lock);
	f->exit_reason = reason;
	f->exit_subcode = subcode;
	f->exit_after = n;
	f->exit_wanted = true;
	pthread_mutex_unlock(&f->lock);
}

void fake_kvm_hang(struct fake_kvm *f, unsigned long request) { f->hang_request = request; }
void fake_kvm_fast(struct fake_kvm *f) { f->fast = true; }
void fake_kvm_storm(struct fake_kvm *f, unsigned instructions) { f->storm = instructions; }
void fake_kvm_offer(struct fake_kvm *f, const struct cpu_model *m) { f->model = *m; }

void fake_kvm_lack(struct fake_kvm *f, int cap) { f->lack = cap; }

unsigned fake_kvm_count(const struct fake_kvm *f, unsigned long request)
{
	for (unsigned k = 0; k < ARRAY_LEN(f->counts); k++)
		if (f->counts[k].request == request)
			return f->counts[k].n;
	return 0;
}

const char *fake_kvm_complaint(const struct fake_kvm *f) { return f->complaint; }

unsigned fake_kvm_open_handles(const struct fake_kvm *f)
{
	unsigned n = 0;
	for (unsigned k = 0; k < N_HANDLES; k++)
		n += f->open[k];
	return n;
}
