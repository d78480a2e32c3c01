/* The door to /dev/kvm: the one place by which ring3 asks the kernel for anything of KVM's.
 *
 * A table of functions, so that a test can put a KVM of its own in the kernel's place: kvm_host_replace().
 * Requests, structures and exits are those of <linux/kvm.h>; a replacement answers what it offers and
 * -EINVAL or -ENOTTY to the rest, as the kernel does (Documentation/virt/kvm/api.rst).
 *
 * What a replacement must know of its user (kvm.h):
 *  - Handles are whatever it likes, from 0 on; they come back in ioctl, mmap and close. Descriptors
 *    within arguments (irqfd, ioeventfd) are the process's own eventfds.
 *  - KVM_RUN of a vCPU is called by that vCPU's thread alone, other requests by any, several at a time.
 *  - A kick sets kvm_run.immediate_exit, then sends the thread a signal, whose handler does nothing:
 *    KVM_RUN returns -EINTR soon; at once where immediate_exit was set before it began.
 *  - Memory is what KVM_SET_USER_MEMORY_REGION names, by its address in this process. */
#ifndef RING3_KVM_HOST_H
#define RING3_KVM_HOST_H

#include <linux/kvm.h>

#include "base/base.h"

struct kvm_host {
	void *arg;         /* given to each function */
	const char *name;  /* for messages: "/dev/kvm" */
	/* A handle of KVM itself, or -errno. */
	int (*open)(void *arg);
	void (*close)(void *arg, int fd);
	/* p: what the request takes: a structure, or a number cast to a pointer. 0 or more as the request says, or -errno. */
	int (*ioctl)(void *arg, int fd, unsigned long request, void *p);
	/* bytes of handle fd (a vCPU's: kvm_run) from its start, readable and writable. NULL: *err is the errno. */
	void *(*map)(void *arg, int fd, size_t bytes, int *err);
	void (*unmap)(void *arg, void *at, size_t bytes);
};

/* The kernel's, or what took its place. */
const struct kvm_host *kvm_host(void);
/* For tests, before there is a machine: from now on kvm_host() is h, which stays the caller's; NULL: the kernel's. */
void kvm_host_replace(const struct kvm_host *h);

#endif
