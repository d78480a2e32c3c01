/* CDs that are put in and taken out while the machine runs. Drives are numbered in the order of their
 * options. Loop's thread. */
#define LOG_TOPIC "machine"
#include <string.h>

#include "machine/machine_impl.h"

/* Its number among the disks, or -1. */
static int disk_of(const struct machine *m, u64 drive, struct error *e)
{
	u64 n = 0;

	for (int k = 0; k < m->cfg->n_disks; k++)
		if (m->cfg->disk[k].cd && n++ == drive)
			return k;
	if (!n)
		error_set(e, "this machine has no CD drive; --cdrom none gives it an empty one");
	else
		error_set(e, "drive=%llu: there %s %llu, from 0 on", (unsigned long long)drive, n == 1 ? "is" : "are", (unsigned long long)n);
	return -1;
}

static void replace(struct machine *m, int k, struct block *blk)
{
	struct error e;
	struct block *old = atapi_change_medium(&m->mem, m->cd[k], blk);

	mem_lock(&m->mem); /* a processor with deterministic time looks at it */
	m->disk[k] = blk;
	mem_unlock(&m->mem);
	if (old && !block_close(old, &e))
		log_error("%s", e.msg);
}

bool machine_eject(struct machine *m, u64 drive, bool force, struct error *e)
{
	int k = disk_of(m, drive, e);

	if (k < 0)
		return false;
	if (!atapi_push_button(&m->mem, m->cd[k]) && !force)
		return error_set(e, "the guest has locked the drive; it was asked to let go, and may do it soon; with force it is not asked");
	replace(m, k, NULL);
	return true;
}

bool machine_insert(struct machine *m, u64 drive, const char *name, int fd, struct error *e)
{
	const struct block_options o = { .file = (char *)name, .read_only = true, .aio = BLOCK_AIO_THREADS, .in_order = m->cfg->icount, .handed = fd + 1 };
	int k = disk_of(m, drive, e);

	if (k < 0)
		return false;
	if (!atapi_push_button(&m->mem, m->cd[k]))
		return error_set(e, "the guest has locked the drive with the CD that is in it; it was asked to let go; eject force does not ask");
	struct block *blk = block_open(&o, m->loop, e);
	if (blk)
		replace(m, k, blk);
	return blk != NULL;
}
