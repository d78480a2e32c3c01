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

/* The image's name, without its folders: what a guest reads as serial number unless told otherwise. */
static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

static bool add_disk(struct machine *m, int k, struct error *e)
{
	const struct disk_config *c = &m->cfg->disk[k];
	struct device *d;

	if (m->cfg->dry_run)
		return pc_add_device(m, &virtio_blk_class, NULL, e);
	if (!c->image.file)
		return error_set(e, "--disk: needs a file");
	if (!(m->disk[k] = block_open(&c->image, m->loop, e)))
		return error_prefix(e, "--disk");
	if (!pc_add_device(m, &virtio_blk_class, &d, e))
		return false;
	virtio_blk_attach(d, m->disk[k], (unsigned)(c->queues ? c->queues : m->cfg->cpus),
			  c->serial ? c->serial : base_name(c->image.file));
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
	if (!pc_add_device(m, &virtio_net_class, &d, e))
		return false;
	virtio_net_attach(d, m->net[k], mac);
	return true;
}

static bool add_consoles(struct machine *m, struct error *e)
{
	struct device *d;

	return pc_add_device(m, &virtio_console_class, &d, e) && machine_consoles_open(m, d, e);
}

static bool add_balloon(struct machine *m, struct error *e)
{
	struct device *d;

	if (!pc_add_device(m, &virtio_balloon_class, &d, e))
		return false;
	virtio_balloon_set_target(d, m->cfg->balloon_bytes);
	return true;
}

bool pc_add_virtio(struct machine *m, struct error *e)
{
	for (int k = 0; k < m->cfg->n_disks; k++)
		if (!add_disk(m, k, e))
			return false;
	for (int k = 0; k < m->cfg->n_nets; k++)
		if (!add_net(m, k, e))
			return false;
	if (m->cfg->n_consoles && !add_consoles(m, e))
		return false;
	if (m->cfg->balloon && !add_balloon(m, e))
		return false;
	return !m->cfg->rng || pc_add_device(m, &virtio_rng_class, NULL, e);
}

void pc_close_disks(struct machine *m)
{
	struct error e;

	for (int k = 0; k < MAX_DISKS; k++)
		if (m->disk[k] && !block_close(m->disk[k], &e))
			log_error("--disk: %s", e.msg);
}

void pc_close_nets(struct machine *m)
{
	for (int k = 0; k < MAX_NETS; k++)
		if (m->net[k])
			net_close(m->net[k]);
}
