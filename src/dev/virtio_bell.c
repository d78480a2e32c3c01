/* A virtio device's bells: an eventfd for each queue, which an engine may have the host's kernel ring in place of a
 * write to the queue's notification register (mmio_ops.doorbell). The processor goes on at once; the loop's thread,
 * which wakes for it, kicks the queue as the write would have.
 *
 * They are made when somebody first asks, and stay as long as the device. Machine lock held, but in on_ring. */
#define LOG_TOPIC "virtio"
#include "dev/virtio.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct bell { struct virtio *v; int fd; bool heard; };
struct virtio_bells { struct loop_task listen; struct bell of[VIRTIO_MAX_QUEUES]; };

static void on_ring(void *arg, u32 epoll_events)
{
	struct bell *b = arg;
	u64 times;

	(void)epoll_events;
	if (read(b->fd, &times, sizeof(times)) < 0)
		return; /* nobody has */
	virtio_lock(b->v);
	virtio_kick(b->v, (unsigned)(b - b->v->bells->of));
	virtio_unlock(b->v);
}

/* The loop takes descriptors from its own thread only. One that it cannot take is rung in vain, so it must not be silent. */
static void listen_all(void *arg)
{
	struct virtio *v = arg;
	struct error e;

	for (unsigned q = 0; q < v->n_queues; q++) {
		struct bell *b = &v->bells->of[q];
		if (b->fd < 0 || b->heard)
			continue;
		b->heard = loop_add_fd(v->d.loop, b->fd, EPOLLIN, on_ring, b, &e);
		if (!b->heard)
			log_error("%s: queue %u will not be looked at: %s", v->type->name, q, e.msg);
	}
}

static struct virtio_bells *bells_new(struct virtio *v)
{
	struct virtio_bells *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->listen = (struct loop_task){ .fn = listen_all, .arg = v };
	for (unsigned q = 0; q < VIRTIO_MAX_QUEUES; q++)
		s->of[q] = (struct bell){ v, -1, false };
	return s;
}

int virtio_bell(struct virtio *v, unsigned q)
{
	if (q >= v->n_queues || !(v->bells || (v->bells = bells_new(v))))
		return -1;
	struct bell *b = &v->bells->of[q];
	if (b->fd < 0 && (b->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
		log_info("%s: no eventfd for queue %u: %s", v->type->name, q, strerror(errno));
	else if (!b->heard)
		loop_schedule(v->d.loop, &v->bells->listen);
	return b->fd;
}

void virtio_bells_free(struct virtio *v)
{
	if (!v->bells)
		return;
	loop_cancel(v->d.loop, &v->bells->listen);
	for (unsigned q = 0; q < VIRTIO_MAX_QUEUES; q++) {
		if (v->bells->of[q].fd < 0)
			continue;
		loop_del_fd(v->d.loop, v->bells->of[q].fd);
		close(v->bells->of[q].fd);
	}
	free(v->bells);
	v->bells = NULL;
}
