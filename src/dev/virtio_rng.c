/* virtio-rng: an entropy device. VIRTIO 1.2, 5.4. Each writable buffer is filled from the host's
 * random number generator, at most CHUNK bytes of it: a driver asks again for more. */
#define LOG_TOPIC "virtio"
#include "dev/virtio.h"

#include <sys/random.h>

#define CHUNK 4096u

struct virtio_rng {
	struct virtio v;
};

static void fill(struct virtio *v, struct virtq_chain *c)
{
	u8 bytes[CHUNK];
	ssize_t n = getrandom(bytes, MIN(c->in_len, sizeof(bytes)), 0);

	virtq_push(v, c, chain_write(c, 0, bytes, n > 0 ? (size_t)n : 0));
}

static void rng_run(struct virtio *v, unsigned q) { virtq_each(v, q, fill); }

static const struct virtio_type rng_type = {
	.name = "virtio-rng",
	.id = VIRTIO_ID_RNG,
	.class_code = 0x00ff00,
	.run = rng_run,
};

static bool rng_init(struct device *d, struct error *e)
{
	struct virtio *v = container_of(d, struct virtio, d);

	v->n_queues = 1;
	v->queue_size[0] = 64;
	return virtio_init(v, &rng_type, e);
}

static void rng_reset(struct device *d) { virtio_reset(container_of(d, struct virtio, d)); }
static void rng_loaded(struct device *d) { virtio_loaded(container_of(d, struct virtio, d)); }
static void rng_destroy(struct device *d) { virtio_destroy(container_of(d, struct virtio, d)); }

static const struct state_field rng_state[] = { VIRTIO_STATE(struct virtio_rng), STATE_END };

const struct device_class virtio_rng_class = {
	.name = "virtio_rng",
	.help = "virtio entropy source",
	.size = sizeof(struct virtio_rng),
	.init = rng_init,
	.reset = rng_reset,
	.destroy = rng_destroy,
	.loaded = rng_loaded,
	.state = rng_state,
};
