/* virtio-9p: a folder of the host. VIRTIO 1.2, 5.9 (Linux: include/uapi/linux/virtio_9p.h). Queue 0 takes
 * requests: readable a message of 9P, writable room for the reply. What they say is share/'s; here is only
 * how they come and go.
 *
 * Invariants
 *  1. A request that is with share/ holds its chain until done is called, also over a reset.
 *  2. At most MAX_IN_FLIGHT are.
 *  3. A reset of the device ends the session: no file stays open for a driver that is gone. What the host
 *     has not answered by SHARE_PATIENCE later is given up, so that the reset comes to an end.
 * Left out of what is saved: the session. After a load its files are not open, and the guest mounts anew. */
#define LOG_TOPIC "virtio"
#include "dev/virtio.h"

#include <stdlib.h>
#include <string.h>

#define QUEUE_SIZE 128u     /* Linux makes chains of up to 128 pieces */
#define MAX_IN_FLIGHT 64u

enum { F_MOUNT_TAG = 1 << 0 };
enum { CFG_TAG_LEN = 0, CFG_TAG = 2, CFG_BYTES = CFG_TAG + SHARE_TAG_MAX };

struct request {
	struct virtio_9p *p;
	struct request *next;     /* in the list of free ones */
	struct share_request r;
	struct virtq_chain c;
};

struct virtio_9p {
	struct virtio v;
	struct share *share;      /* NULL: none; requests wait for ever */
	struct request *free;
	unsigned n_requests;      /* with share/ */
	struct timer late;        /* of a reset */
};

static struct virtio_9p *p9_of(struct virtio *v) { return container_of(v, struct virtio_9p, v); }

static struct request *request_get(struct virtio_9p *p)
{
	struct request *q = p->free;

	if (!q)
		return malloc(sizeof(*q));
	p->free = q->next;
	return q;
}

static void request_put(struct virtio_9p *p, struct request *q)
{
	q->next = p->free;
	p->free = q;
}

static void request_done(struct share_request *r)
{
	struct request *q = container_of(r, struct request, r);
	struct virtio_9p *p = q->p;

	virtio_lock(&p->v);
	virtq_push(&p->v, &q->c, r->reply);
	virtq_notify(&p->v, 0);
	request_put(p, q);
	if (p->n_requests-- == MAX_IN_FLIGHT)
		virtio_kick(&p->v, 0);
	virtio_unlock(&p->v);
}

/* False: there is none. */
static bool start_one(struct virtio_9p *p)
{
	struct request *q = request_get(p);

	if (!q)
		return false;
	struct virtq_chain *c = &q->c;
	if (!virtq_pop(&p->v, 0, c)) {
		request_put(p, q);
		return false;
	}
	if (c->out_len < SHARE_REQUEST_MIN || c->in_len < SHARE_REPLY_MIN) {
		virtio_break(&p->v, "a request without a header, or without room for a reply");
		virtq_drop(&p->v, c);
		request_put(p, q);
		return false;
	}
	q->p = p;
	q->r = (struct share_request){ .out = c->iov, .n_out = c->n_out, .out_len = c->out_len,
				       .in = c->iov + c->n_out, .n_in = c->n_in, .in_len = c->in_len, .done = request_done };
	p->n_requests++;
	share_submit(p->share, &q->r);
	return true;
}

static void p9_run(struct virtio *v, unsigned queue)
{
	struct virtio_9p *p = p9_of(v);

	if (!p->share)
		return;
	virtq_kicks_off(v, queue);
	for (unsigned k = 0; k < QUEUE_SIZE && p->n_requests < MAX_IN_FLIGHT; k++)
		if (!start_one(p))
			break;
	if (virtq_kicks_on(v, queue) && p->n_requests < MAX_IN_FLIGHT)
		virtio_kick(v, queue);
}

static void p9_config_read(struct virtio *v, u8 *config)
{
	const struct virtio_9p *p = p9_of(v);
	const char *tag = p->share ? share_tag(p->share) : "";

	st16(config + CFG_TAG_LEN, (u16)strlen(tag));
	memcpy(config + CFG_TAG, tag, strlen(tag));
}

/* Also where nothing is under way: that is the host's, and with deterministic time must not tell in the timers. */
static void p9_forget(struct virtio *v)
{
	struct virtio_9p *p = p9_of(v);

	if (!p->share)
		return;
	share_reset(p->share);
	timer_arm(&p->late, clock_ns(v->d.clock) + SHARE_PATIENCE * 1000000000ull);
}

static void p9_late(void *arg)
{
	struct virtio_9p *p = arg;

	share_give_up(p->share);
}

static const struct virtio_type p9_type = {
	.name = "virtio-9p",
	.id = VIRTIO_ID_9P,
	.class_code = 0x018000,
	.features = F_MOUNT_TAG,
	.config_read = p9_config_read,
	.run = p9_run,
	.reset = p9_forget,
};

void virtio_9p_attach(struct device *d, struct share *share)
{
	container_of(d, struct virtio_9p, v.d)->share = share;
}

/* ---- class ----------------------------------------------------------------------------------- */

static bool p9_init(struct device *d, struct error *e)
{
	struct virtio *v = container_of(d, struct virtio, d);

	v->n_queues = 1;
	v->queue_size[0] = QUEUE_SIZE;
	v->config_size = CFG_BYTES;
	timer_init(&container_of(v, struct virtio_9p, v)->late, d->clock, p9_late, container_of(v, struct virtio_9p, v));
	return virtio_init(v, &p9_type, e);
}

static void p9_reset(struct device *d) { virtio_reset(container_of(d, struct virtio, d)); }

static void p9_loaded(struct device *d)
{
	struct virtio *v = container_of(d, struct virtio, d);

	p9_forget(v);
	virtio_loaded(v);
}

static void p9_drain(struct device *d)
{
	struct virtio_9p *p = container_of(d, struct virtio_9p, v.d);

	if (p->share)
		share_drain(p->share);
}

static void p9_destroy(struct device *d)
{
	struct virtio_9p *p = container_of(d, struct virtio_9p, v.d);

	virtio_destroy(&p->v);
	if (timer_armed(&p->late))
		timer_cancel(&p->late);
	for (struct request *q = p->free, *next; q; q = next) {
		next = q->next;
		free(q);
	}
}

static const struct state_field p9_state[] = { VIRTIO_STATE(struct virtio_9p), STATE_END };

const struct device_class virtio_9p_class = {
	.name = "virtio_9p",
	.help = "virtio file system: a folder of the host",
	.size = sizeof(struct virtio_9p),
	.init = p9_init,
	.reset = p9_reset,
	.destroy = p9_destroy,
	.loaded = p9_loaded,
	.drain = p9_drain,
	.state = p9_state,
};
