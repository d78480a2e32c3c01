/* The devices on the PCI bus that the configuration asks for, in this order, which is that of their slots. */
#define LOG_TOPIC "machine"
#include "machine/machine_impl.h"

bool pc_add_virtio(struct machine *m, struct error *e)
{
	return !m->cfg->rng || pc_add_device(m, &virtio_rng_class, NULL, e);
}
