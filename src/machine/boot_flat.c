/* Programs without a header: a flat binary at a given address and mode. */
#define LOG_TOPIC "boot"
#include <stdlib.h>
#include <string.h>

#include "machine/machine_impl.h"

bool boot_flat(struct machine *m, const struct blob *k, struct error *e)
{
	const struct kernel_config *f = &m->cfg->kernel;
	u64 mode = f->mode ? f->mode : 32;
	if (mode != 16 && mode != 32 && mode != 64)
		return error_set(e, "--kernel mode=%llu: 16, 32 or 64", (unsigned long long)mode);
	u64 addr = f->addr_set ? f->addr : mode == 16 ? 0x7c00 : 0x100000;
	m->entry = f->entry_set ? f->entry : addr;
	if (mode == 64 && !m->model.has[FEAT_LM])
		return error_set(e, "--kernel mode=64: --cpu %s has no long mode", m->cfg->cpu);
	if (mode != 16 && m->entry >= MEM_4G)
		return error_set(e, "--kernel entry=0x%llx: above 4 GiB, which is not mapped at the start", (unsigned long long)m->entry);
	if (mode == 16 && m->entry > 0x10ffef)
		return error_set(e, "--kernel entry=0x%llx: real mode reaches 0x10ffef", (unsigned long long)m->entry);
	/* Real mode needs neither, 32-bit mode no page tables. */
	static const struct boot_place places[] = { { BOOT_PAGES, BOOT_PAGES_END - BOOT_PAGES, "the page tables" }, BOOT_PLACE_GDT, { 0 } };
	if (!boot_check_place(m, places + (mode == 64 ? 0 : mode == 32 ? 1 : 2), addr, k->size, e))
		return false;
	if (!boot_put(m, "--kernel", addr, k->data, k->size, e))
		return false;
	acpi_build(m);
	m->entry_arg = m->entry_arg2 = 0;
	m->entry_stack = 0x7000;
	m->enter = mode == 16 ? enter_real : mode == 32 ? enter_protected : enter_long;
	m->boot_kind = mode == 16 ? "flat binary, real mode" : mode == 32 ? "flat binary, protected mode" : "flat binary, long mode";
	return true;
}
