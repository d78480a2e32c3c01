/* Memory types and machine check: MTRRs and PAT, IA32_MCi. RAM here is always cached and never
 * fails, so they are storage with the manual's checks. Intel SDM volume 3, 11.11, 11.12, 15.3;
 * AMD APM volume 2, 7.7 (its RdMem and WrMem bits of fixed ranges are left out). */
#include "cpu/msr.h"

/* UC 0, WC 1, WT 4, WP 5, WB 6; UC- 7 in the PAT only. */
static bool type_valid(u8 t, bool pat)
{
	return t <= 1 || (t >= 4 && t <= 6) || (pat && t == 7);
}

static bool types_valid(u64 v, bool pat)
{
	for (unsigned k = 0; k < 8; k++)
		if (!type_valid((u8)(v >> 8 * k), pat))
			return false;
	return true;
}

/* SDM vol. 3 11.12.4. */
bool pat_valid(u64 pat) { return types_valid(pat, true); }

bool pat_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	if (!pat_valid(v))
		return false;
	c->msr.pat = v;
	return true;
}

bool mtrr_def_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	if (!type_valid((u8)v, false))
		return false;
	c->msr.mtrr_def_type = v;
	return true;
}

/* 0x250: one of 64-KiB ranges, 0x258 and 0x259: 16 KiB, 0x268..0x26f: 4 KiB. */
static unsigned fixed_index(u32 msr)
{
	return msr == 0x250 ? 0 : msr < 0x260 ? msr - 0x258 + 1 : msr - 0x268 + 3;
}

bool mtrr_fixed_read(struct cpu *c, const struct msr_desc *d, u32 msr, u64 *v)
{
	*v = c->msr.mtrr_fixed[fixed_index(msr)];
	return true;
}

bool mtrr_fixed_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	if (!types_valid(v, false))
		return false;
	c->msr.mtrr_fixed[fixed_index(msr)] = v;
	return true;
}

bool mtrr_var_read(struct cpu *c, const struct msr_desc *d, u32 msr, u64 *v)
{
	unsigned k = (msr - 0x200) / 2;
	*v = msr & 1 ? c->msr.mtrr_mask[k] : c->msr.mtrr_base[k];
	return true;
}

bool mtrr_var_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	unsigned k = (msr - 0x200) / 2;
	u64 address = c->maxphyaddr_mask & ~PAGE_MASK;
	if (msr & 1) {
		if (v & ~(address | 0x800))
			return false;
		c->msr.mtrr_mask[k] = v;
		return true;
	}
	if ((v & ~(address | 0xff)) || !type_valid((u8)v, false))
		return false;
	c->msr.mtrr_base[k] = v;
	return true;
}

bool mcg_ctl_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	if (v && v != ~0ull)
		return false;
	c->msr.mcg_ctl = v;
	return true;
}

/* CTL takes all ones or zeros; STATUS 0 only, unless AMD's HWCR.McStatusWrEn. ADDR and MISC take
 * anything: AMD's do, and for Intel's, of which the manual says 0 only, hypervisors have it so. */
bool mc_bank_write(struct cpu *c, const struct msr_desc *d, u32 msr, u64 v)
{
	/* Systems also clear bit 10 of AMD's bank 4 and bit 0 of bank 1. */
	const u64 cleared = msr == 0x400 + 4 * 4 ? 1u << 10 : msr == 0x400 + 4 ? 1 : 0;
	if (!(msr & 3) && v && (v | cleared) != ~0ull)
		return false;
	if ((msr & 3) == 1 && v && !(c->msr.hwcr & 1u << 18))
		return false;
	c->msr.mc[msr - 0x400] = v;
	return true;
}
