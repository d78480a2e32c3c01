/* A virtio device's life: status, features, reset, who looks at a queue and when. VIRTIO 1.2, 2.1, 2.2, 3.
 * Invariants and threading: virtio.h. */
#define LOG_TOPIC "virtio"
#include "dev/virtio.h"

#include <string.h>

#define FEATURES_ALL (VIRTIO_F_ANY_LAYOUT | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX | VIRTIO_F_VERSION_1 | VIRTIO_F_RING_PACKED)

bool virtio_has(const struct virtio *v, u64 feature)
{
	return v->features & v->offered & feature; /* a driver may write what was not offered, and go on */
}

bool virtio_live(const struct virtio *v)
{
	return (v->status & VS_DRIVER_OK) && !(v->status & VS_NEEDS_RESET) && !v->resetting && pci_is_master(&v->pci);
}

bool virtio_queue_usable(const struct virtio *v, unsigned q)
{
	return q < v->n_queues && v->vq[q].enabled && virtio_live(v);
}

void virtio_lock(struct virtio *v) { mem_lock(v->d.mem); }
void virtio_unlock(struct virtio *v) { mem_unlock(v->d.mem); }

/* ---- queues' turns ------------------------------------------------------------------------- */

void virtio_kick(struct virtio *v, unsigned q)
{
	if (q >= v->n_queues)
		return;
	v->kicked |= 1u << q;
	loop_schedule(v->d.loop, &v->task);
}

void virtio_kick_all(struct virtio *v)
{
	for (unsigned q = 0; q < v->n_queues; q++)
		virtio_kick(v, q);
}

static void run_kicked(void *arg)
{
	struct virtio *v = arg;

	virtio_lock(v);
	u32 left = v->kicked;
	v->kicked = 0;
	for (; left; left &= left - 1) {
		unsigned q = (unsigned)__builtin_ctz(left);

		if (virtio_queue_usable(v, q))
			v->type->run(v, q);
	}
	virtio_unlock(v);
}

/* ---- interrupts ------------------------------------------------------------------------------ */

void virtio_interrupt(struct virtio *v, u16 vector, u8 isr_bit)
{
	if (pci_msix_on(&v->pci)) {
		if (vector != VIRTIO_NO_VECTOR)
			pci_msg(&v->pci, vector);
		return;
	}
	v->isr |= isr_bit;
	pci_irq(&v->pci, true);
}

void virtio_config_changed(struct virtio *v)
{
	v->generation++;
	if ((v->status & VS_DRIVER_OK) && !v->resetting)
		virtio_interrupt(v, v->config_vector, 2);
}

void virtio_break(struct virtio *v, const char *why)
{
	if (v->status & VS_NEEDS_RESET)
		return;
	if (ratelimit_ok(&v->complaints))
		log_info("%s in slot %u: the driver gave it %s; it waits for a reset", v->type->name, v->pci.dev, why);
	v->status |= VS_NEEDS_RESET;
	virtio_config_changed(v);
}

/* ---- status ------------------------------------------------------------------------------------ */

static void finish_reset(struct virtio *v)
{
	v->resetting = 0;
	memset(v->vq, 0, sizeof(v->vq));
	for (unsigned q = 0; q < v->n_queues; q++) {
		v->vq[q].size = v->queue_size[q];
		v->vq[q].vector = VIRTIO_NO_VECTOR;
	}
	v->features = 0;
	v->feature_select = v->driver_feature_select = 0;
	v->queue_select = 0;
	v->config_vector = VIRTIO_NO_VECTOR;
	v->status = v->isr = 0;
	v->kicked = 0;
	pci_irq(&v->pci, false);
}

static void begin_reset(struct virtio *v)
{
	v->epoch++;
	v->resetting = 1;
	if (v->type->reset)
		v->type->reset(v);
	if (v->resetting && !v->in_flight)
		finish_reset(v);
}

void virtq_drop(struct virtio *v, struct virtq_chain *c)
{
	v->in_flight--;
	if (v->resetting && !v->in_flight)
		finish_reset(v);
}

static bool features_fit(const struct virtio *v)
{
	return !(v->features & ~v->offered) && (!v->modern || virtio_has(v, VIRTIO_F_VERSION_1));
}

void virtio_set_status(struct virtio *v, u8 status)
{
	if (v->resetting)
		return;
	if (!status) {
		begin_reset(v);
		return;
	}
	u8 set = status & (u8)~v->status & (u8)~VS_NEEDS_RESET;
	if ((set & VS_FEATURES_OK) && !features_fit(v))
		set &= (u8)~VS_FEATURES_OK;
	v->status |= set;
	if (!(set & VS_DRIVER_OK))
		return;
	if (v->type->status)
		v->type->status(v);
	virtio_kick_all(v);
}

/* ---- life ---------------------------------------------------------------------------------------- */

bool virtio_init(struct virtio *v, const struct virtio_type *type, struct error *e)
{
	v->type = type;
	v->offered |= type->features | FEATURES_ALL;
	v->task = (struct loop_task){ .fn = run_kicked, .arg = v };
	if (!v->d.loop)
		return error_set(e, "it needs an event loop");
	return virtio_pci_init(v, e);
}

void virtio_destroy(struct virtio *v)
{
	loop_cancel(v->d.loop, &v->task);
	pci_unplug(&v->pci);
	virtio_bells_free(v);
}

void virtio_reset(struct virtio *v)
{
	begin_reset(v);
	finish_reset(v);
	pci_reset(&v->pci);
}

/* What only a damaged file can hold. A size that is no power of two is no damage: a driver may write it, and enable the queue
 * or not. */
static void queue_check(struct virtio *v, struct virtq *q, u16 most)
{
	if (!q->size || q->size > most) {
		q->size = most;
		q->enabled = 0;
	}
	if (virtio_has(v, VIRTIO_F_RING_PACKED)) {
		q->next_avail %= q->size;
		q->next_used %= q->size;
		q->signalled %= q->size;
	}
	q->enabled = q->enabled != 0;
	q->avail_wrap &= 1;
	q->used_wrap &= 1;
}

void virtio_loaded(struct virtio *v)
{
	v->epoch++;
	pci_loaded(&v->pci);
	for (unsigned q = 0; q < v->n_queues; q++)
		queue_check(v, &v->vq[q], v->queue_size[q]);
	if (v->resetting && !v->in_flight)
		finish_reset(v);
	pci_irq(&v->pci, v->isr != 0);
	virtio_kick_all(v);
}
