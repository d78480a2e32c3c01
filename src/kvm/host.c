/* The kernel's /dev/kvm. See host.h. */
#include "kvm/host.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

static int kernel_open(void *arg)
{
	(void)arg;
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static void kernel_close(void *arg, int fd)
{
	(void)arg;
	close(fd);
}

static int kernel_ioctl(void *arg, int fd, unsigned long request, void *p)
{
	(void)arg;
	int n = ioctl(fd, request, p);
	return n < 0 ? -errno : n;
}

static void *kernel_map(void *arg, int fd, size_t bytes, int *err)
{
	(void)arg;
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	*err = at == MAP_FAILED ? errno : 0;
	return at == MAP_FAILED ? NULL : at;
}

static void kernel_unmap(void *arg, void *at, size_t bytes)
{
	(void)arg;
	munmap(at, bytes);
}

static const struct kvm_host kernel = { NULL, "/dev/kvm", kernel_open, kernel_close, kernel_ioctl, kernel_map, kernel_unmap };

/* The process's, as /dev/kvm is; changed by tests alone. */
static const struct kvm_host *_Atomic current = &kernel;

const struct kvm_host *kvm_host(void) { return atomic_load_explicit(&current, memory_order_relaxed); }

void kvm_host_replace(const struct kvm_host *h) { atomic_store(&current, h ? h : &kernel); }
