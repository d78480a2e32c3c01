/* isa_debug_exit: four ports at 0xf4 whose write ends the machine, for guests that are tests.
 *
 * A value v of 1, 2 or 4 bytes written to any of them ends the process with status
 * (v << 1) | 1, so that no guest can fake a clean exit of 0. Reads give 0. The status is made
 * by the machine; this device passes v on.
 * Threading: machine lock held. */
#include "dev/dev.h"

struct isa_debug_exit { struct device d; };

static u64 exit_read(void *dev, u64 off, unsigned size)
{
	return 0;
}

static void exit_write(void *dev, u64 off, u64 val, unsigned size)
{
	const struct device *d = dev;

	if (d->hooks && d->hooks->exit_status)
		d->hooks->exit_status(d->hooks->arg, (u32)val);
}

static const struct mmio_ops exit_ops = { exit_read, exit_write, 1, 4 };

static bool isa_debug_exit_init(struct device *d, struct error *e)
{
	return mem_add_ports(d->mem, "isa-debug-exit", 0xf4, 4, &exit_ops, d, e);
}

static const struct state_field isa_debug_exit_state[] = { STATE_END };

const struct device_class isa_debug_exit_class = {
	.name = "isa_debug_exit",
	.help = "port 0xf4: a write of v ends the machine with status (v << 1) | 1",
	.size = sizeof(struct isa_debug_exit),
	.init = isa_debug_exit_init,
	.state = isa_debug_exit_state,
};
