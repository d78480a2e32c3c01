/* The devices on the PCI bus that the configuration asks for, in this order, which is that of their
 * slots; and what they are connected to. */
#define LOG_TOPIC "machine"
#include <string.h>

#include "machine/machine_impl.h"

bool pc_open_nets(struct machine *m, struct error *e)
{
	for (int k = 0; k < m->cfg->n_nets; k++)
		if (!(m->net[k] = net_open(&m->cfg->net[k], m->cfg->dry_run, m->loop, e)))
			return error_prefix(e, "--net");
	return true;
}

static bool add_net(struct machine *m, int k, struct error *e)
{
	u8 mac[NET_MAC_BYTES];
	struct device *d;

	if (m->cfg->net[k].kind == NET_NONE)
		return true;
	if (!net_mac(&m->cfg->net[k], (unsigned)k, mac, e))
		return error_prefix(e, "--net");
	bool e1000 = m->cfg->net[k].model == NET_E1000;
	if (!pc_add_device(m, e1000 ? &e1000_class : &virtio_net_class, &d, e))
		return false;
	(e1000 ? e1000_attach : virtio_net_attach)(d, m->net[k], mac);
	pc_boot_device(m, 'n', "/pci@i0cf8/ethernet@%x", d->function->dev);
	return true;
}

static bool add_consoles(struct machine *m, struct error *e)
{
	struct device *d;

	return pc_add_device(m, &virtio_console_class, &d, e) && machine_consoles_open(m, d, e);
}

static bool add_balloon(struct machine *m, struct error *e)
{
	if (!pc_add_device(m, &virtio_balloon_class, &m->balloon, e))
		return false;
	virtio_balloon_set_target(m->balloon, m->cfg->balloon_bytes);
	return true;
}

static bool has_balloon(const struct machine *m, struct error *e)
{
	return m->balloon || error_set(e, "this machine has no balloon; --balloon 0 gives it one");
}

bool machine_set_balloon(struct machine *m, u64 bytes, struct error *e)
{
	if (!has_balloon(m, e))
		return false;
	if (bytes >= m->mem.ram_size)
		return error_set(e, "a balloon of %lluM: the guest has %lluM in all", (unsigned long long)bytes >> 20,
				 (unsigned long long)m->mem.ram_size >> 20);
	mem_lock(&m->mem);
	virtio_balloon_set_target(m->balloon, bytes);
	mem_unlock(&m->mem);
	return true;
}

bool machine_get_balloon(struct machine *m, u64 *asked, u64 *given, struct error *e)
{
	if (!has_balloon(m, e))
		return false;
	mem_lock(&m->mem);
	*asked = virtio_balloon_target(m->balloon);
	*given = virtio_balloon_actual(m->balloon);
	mem_unlock(&m->mem);
	return true;
}

static bool add_share(struct machine *m, int k, struct error *e)
{
	struct device *d;

	if (!(m->share[k] = share_open(&m->cfg->share[k], m->cfg->dry_run, m->loop, e)))
		return error_prefix(e, "--share");
	for (int j = 0; j < k; j++)
		if (!strcmp(share_tag(m->share[j]), share_tag(m->share[k])))
			return error_set(e, "--share: tag=%s is another folder's already; give one of them another", share_tag(m->share[k]));
	if (!pc_add_device(m, &virtio_9p_class, &d, e))
		return false;
	virtio_9p_attach(d, m->share[k]);
	return true;
}

bool pc_add_virtio(struct machine *m, struct error *e)
{
	for (int k = 0; k < m->cfg->n_nets; k++)
		if (!add_net(m, k, e))
			return false;
	for (int k = 0; k < m->cfg->n_shares; k++)
		if (!add_share(m, k, e))
			return false;
	if (m->cfg->n_consoles && !add_consoles(m, e))
		return false;
	if (m->cfg->balloon && !add_balloon(m, e))
		return false;
	return !m->cfg->rng || pc_add_device(m, &virtio_rng_class, NULL, e);
}

void pc_close_shares(struct machine *m)
{
	for (int k = 0; k < MAX_SHARES; k++)
		if (m->share[k])
			share_close(m->share[k]);
}

void pc_close_nets(struct machine *m)
{
	for (int k = 0; k < MAX_NETS; k++)
		if (m->net[k])
			net_close(m->net[k]);
}
