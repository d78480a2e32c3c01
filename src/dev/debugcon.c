/* debugcon: a write-only console of one port, for firmware and kernels in their first steps.
 *
 * A byte written to 0xe9 (Bochs's port) or 0x402 (SeaBIOS's and OVMF's) goes to the backend; a
 * read gives 0xe9, by which a guest knows that somebody listens. What the backend does not take
 * at once is lost: there is no way to make such a guest wait.
 * Threading: machine lock held. */
#include "dev/dev.h"

#define PRESENT 0xe9

struct debugcon {
	struct device d;
	struct char_backend be;
};

static u64 debugcon_read(void *dev, u64 off, unsigned size)
{
	return PRESENT;
}

static void debugcon_write(void *dev, u64 off, u64 val, unsigned size)
{
	const struct debugcon *c = dev;
	u8 byte = (u8)val;

	if (c->be.write)
		c->be.write(c->be.arg, &byte, 1);
}

static const struct mmio_ops debugcon_ops = { debugcon_read, debugcon_write, 1, 1 };

void debugcon_attach(struct device *d, const struct char_backend *be)
{
	((struct debugcon *)d)->be = be ? *be : (struct char_backend){ 0 };
}

static bool debugcon_init(struct device *d, struct error *e)
{
	return mem_add_ports(d->mem, "debugcon", 0xe9, 1, &debugcon_ops, d, e) &&
	       mem_add_ports(d->mem, "debugcon firmware", 0x402, 1, &debugcon_ops, d, e);
}

static const struct state_field debugcon_state[] = { STATE_END };

const struct device_class debugcon_class = {
	.name = "debugcon",
	.help = "debug console at ports 0xe9 and 0x402",
	.size = sizeof(struct debugcon),
	.init = debugcon_init,
	.state = debugcon_state,
};
