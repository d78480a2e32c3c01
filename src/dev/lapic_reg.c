/* The registers of a local APIC as the guest reaches them: the xAPIC page, x2APIC MSRs,
 * IA32_APIC_BASE and IA32_TSC_DEADLINE. SDM vol. 3, 11.4, 11.12.
 *
 * Both interfaces reach the same registers by one table; what xAPIC mode ignores, reserved
 * bits and read-only registers, is #GP in x2APIC mode. Rules of the state are in lapic.c. */
#define LOG_TOPIC "lapic"
#include "dev/lapic_impl.h"

#define MSR_APIC_BASE 0x1bu
#define MSR_TSC_DEADLINE 0x6e0u
#define MSR_X2APIC 0x800u

/* ---- the register table ------------------------------------------------------------- */

enum { XR = 1, XW = 2, MR = 4, MW = 8, XRW = XR | XW, MRW = MR | MW }; /* xAPIC, x2APIC: read, write */

struct lapic_register {
	u8 access;
	u32 valid;     /* bits that a write may set; others: #GP in x2APIC mode, else ignored */
	u32 read_only; /* of valid: accepted and ignored */
};
static const struct lapic_register registers[64] = {
	[R_ID] = { XRW | MR, 0xff000000, 0 },
	[R_VERSION] = { XR | MR, 0, 0 },
	[R_TPR] = { XRW | MRW, 0xff, 0 },
	[R_APR] = { XR, 0, 0 },
	[R_PPR] = { XR | MR, 0, 0 },
	[R_EOI] = { XW | MW, 0, 0 },
	[R_RRD] = { XR, 0, 0 },
	[R_LDR] = { XRW | MR, 0xff000000, 0 },
	[R_DFR] = { XRW, 0xf0000000, 0 },
	[R_SVR] = { XRW | MRW, 0x13ff, 0 },
	[R_ISR ... R_ISR + 7] = { XR | MR, 0, 0 },
	[R_TMR ... R_TMR + 7] = { XR | MR, 0, 0 },
	[R_IRR ... R_IRR + 7] = { XR | MR, 0, 0 },
	[R_ESR] = { XRW | MRW, 0, 0 },
	/* The delivery status bit is gone in x2APIC mode, yet processors accept it. */
	[R_ICR] = { XRW | MRW, 0x000cdfff, 0x1000 },
	[R_ICR_HIGH] = { XRW, 0xff000000, 0 },
	[R_LVT + LVT_TIMER] = { XRW | MRW, 0x000710ff, 0x1000 },
	[R_LVT + LVT_THERMAL] = { XRW | MRW, 0x000117ff, 0x1000 },
	[R_LVT + LVT_PERF] = { XRW | MRW, 0x000117ff, 0x1000 },
	[R_LVT + LVT_LINT0] = { XRW | MRW, 0x0001f7ff, 0x5000 },
	[R_LVT + LVT_LINT1] = { XRW | MRW, 0x0001f7ff, 0x5000 },
	[R_LVT + LVT_ERROR] = { XRW | MRW, 0x000110ff, 0x1000 },
	[R_TIMER_INITIAL] = { XRW | MRW, UINT32_MAX, 0 },
	[R_TIMER_CURRENT] = { XR | MR, 0, 0 },
	[R_TIMER_DIVIDE] = { XRW | MRW, 0xb, 0 },
	[R_SELF_IPI] = { MW, 0xff, 0 },
};

/* ---- registers ---------------------------------------------------------------------- */

static u32 reg_read(const struct lapic *l, unsigned r)
{
	bool x2 = lapic_is_x2(l);

	switch (r) {
	case R_ID: return x2 ? l->x2id : l->id << 24;
	case R_VERSION: return LAPIC_VERSION;
	case R_TPR: return l->tpr;
	case R_APR: return lapic_apr(l);
	case R_PPR: return lapic_ppr(l);
	case R_LDR: return x2 ? (l->x2id >> 4) << 16 | 1u << (l->x2id & 15) : l->ldr;
	case R_DFR: return l->dfr;
	case R_SVR: return l->svr;
	case R_ISR ... R_ISR + 7: return l->isr[r - R_ISR];
	case R_TMR ... R_TMR + 7: return l->tmr[r - R_TMR];
	case R_IRR ... R_IRR + 7: return l->irr[r - R_IRR];
	case R_ESR: return l->esr;
	case R_ICR: return l->icr;
	case R_ICR_HIGH: return l->icr_high;
	case R_LVT ... R_LVT + LVT_COUNT - 1: return l->lvt[r - R_LVT];
	case R_TIMER_INITIAL: return l->timer_initial;
	case R_TIMER_CURRENT: return lapic_timer_current(l);
	case R_TIMER_DIVIDE: return l->timer_divide;
	default: return 0;
	}
}

static void lvt_write(struct lapic *l, enum lapic_lvt n, u32 val)
{
	if (n == LVT_TIMER)
		lapic_timer_settle(l);
	u32 old = l->lvt[n], read_only = registers[R_LVT + n].read_only;

	l->lvt[n] = (val & ~read_only) | (old & read_only);
	if (!lapic_soft_enabled(l))
		l->lvt[n] |= LVT_MASKED;
	if (n == LVT_TIMER)
		lapic_timer_mode_changed(l, old);
	if (n == LVT_LINT0) {
		if (!(val & LVT_LEVEL))
			l->lvt[n] &= ~LVT_REMOTE_IRR;
		/* A level that was there while masked is seen now; an edge is lost. */
		else if (l->lint0)
			lapic_lvt_deliver(l, n);
	}
	lapic_update_intr(l);
}

static void svr_write(struct lapic *l, u32 val)
{
	bool was = lapic_soft_enabled(l);

	l->svr = val;
	if (!lapic_soft_enabled(l)) {
		for (int i = 0; i < LVT_COUNT; i++)
			l->lvt[i] |= LVT_MASKED;
		lapic_update_intr(l);
	} else if (!was && l->bus && l->bus->ioapic) {
		ioapic_retry(l->bus->ioapic);
	}
}

/* val: reserved bits are gone. */
static void reg_write(struct lapic *l, unsigned r, u32 val)
{
	switch (r) {
	case R_ID: l->id = val >> 24; break;
	case R_TPR: l->tpr = val; lapic_update_intr(l); break;
	case R_EOI: lapic_eoi(l); break;
	case R_LDR: l->ldr = val; break;
	case R_DFR: l->dfr = val | 0x0fffffff; break;
	case R_SVR: svr_write(l, val); break;
	case R_ESR:
		l->esr = l->esr_pending;
		l->esr_pending = 0;
		break;
	case R_ICR:
		l->icr = val & ~registers[r].read_only;
		lapic_icr_write(l, l->icr, lapic_is_x2(l) ? l->icr_high : l->icr_high >> 24);
		break;
	case R_ICR_HIGH: l->icr_high = val; break;
	case R_LVT ... R_LVT + LVT_COUNT - 1: lvt_write(l, (enum lapic_lvt)(r - R_LVT), val); break;
	case R_TIMER_INITIAL: lapic_timer_set_initial(l, val); break;
	case R_TIMER_DIVIDE: lapic_timer_set_divide(l, val); break;
	case R_SELF_IPI: lapic_self_ipi(l, (u8)val); break;
	default: break;
	}
}

/* ---- xAPIC: the page ---------------------------------------------------------------- */

static bool x_active(const struct lapic *l)
{
	return lapic_enabled(l) && !lapic_is_x2(l);
}

/* Registers are the low dword of each 16 bytes. Parts of that dword can be read; what lies
 * beyond it reads as zeros. */
u64 lapic_mmio_read(struct lapic *l, u32 off, unsigned size)
{
	unsigned shift = (off & 15) * 8, r = off >> 4;
	u64 ones = size >= 8 ? UINT64_MAX : (1ull << size * 8) - 1;

	if (!x_active(l))
		return ones;
	if (r >= ARRAY_LEN(registers) || !(registers[r].access & XR)) {
		/* EOI is write-only, which is not the error "illegal register address". */
		if (r >= ARRAY_LEN(registers) || !(registers[r].access & XW))
			lapic_error(l, ESR_ILLEGAL_REGISTER);
		return 0;
	}
	return shift >= 32 ? 0 : (u64)reg_read(l, r) >> shift & ones;
}

void lapic_mmio_write(struct lapic *l, u32 off, u32 val, unsigned size)
{
	unsigned r = off >> 4;

	/* Only aligned dwords are writes; the manual leaves the rest undefined. */
	if (!x_active(l) || size != 4 || (off & 15))
		return;
	if (r < ARRAY_LEN(registers) && (registers[r].access & XW))
		reg_write(l, r, val & registers[r].valid);
	else if (r >= ARRAY_LEN(registers) || !(registers[r].access & XR))
		lapic_error(l, ESR_ILLEGAL_REGISTER);
}

/* ---- MSRs --------------------------------------------------------------------------- */

static bool x2_read(struct lapic *l, unsigned r, u64 *val)
{
	if (!lapic_is_x2(l) || r >= ARRAY_LEN(registers) || !(registers[r].access & MR))
		return false;
	*val = reg_read(l, r);
	if (r == R_ICR)
		*val |= (u64)l->icr_high << 32;
	return true;
}

static bool x2_write(struct lapic *l, unsigned r, u64 val)
{
	if (!lapic_is_x2(l) || r >= ARRAY_LEN(registers) || !(registers[r].access & MW))
		return false;
	if ((u32)val & ~registers[r].valid)
		return false;
	if (r == R_ICR)
		l->icr_high = (u32)(val >> 32);
	else if (val >> 32)
		return false;
	reg_write(l, r, (u32)val);
	return true;
}

/* SDM 11.12.5: disabled -> xAPIC -> x2APIC -> disabled, and xAPIC -> disabled; else #GP. */
static bool base_write(struct lapic *l, u64 val)
{
	u64 mode = val & (APIC_BASE_EN | APIC_BASE_X2), old = l->base & (APIC_BASE_EN | APIC_BASE_X2);
	u64 valid = ((1ull << l->features.maxphyaddr) - 1) & ~PAGE_MASK;

	valid |= APIC_BASE_BSP | APIC_BASE_EN | (l->features.x2apic ? APIC_BASE_X2 : 0);
	if ((val & ~valid) || mode == APIC_BASE_X2)
		return false;
	if (mode != old) {
		if ((mode & APIC_BASE_X2) && old != APIC_BASE_EN)
			return false;
		if (mode == APIC_BASE_EN && (old & APIC_BASE_X2))
			return false;
	}
	l->base = val;
	if (mode != old && !mode) {
		u32 tpr = l->tpr;

		lapic_reset_registers(l);
		l->tpr = tpr;
		l->id = l->x2id & 0xff;
	}
	lapic_place_window(l);
	lapic_update_intr(l);
	return true;
}

static bool msr_read(struct lapic *l, u32 msr, u64 *val)
{
	switch (msr) {
	case MSR_APIC_BASE:
		*val = l->base;
		return true;
	case MSR_TSC_DEADLINE:
		*val = lapic_tsc_deadline_read(l);
		return l->features.tsc_deadline;
	case MSR_X2APIC ... MSR_X2APIC + 0xff:
		return x2_read(l, msr - MSR_X2APIC, val);
	default:
		return false;
	}
}

static bool msr_write(struct lapic *l, u32 msr, u64 val)
{
	switch (msr) {
	case MSR_APIC_BASE:
		return base_write(l, val);
	case MSR_TSC_DEADLINE:
		if (!l->features.tsc_deadline)
			return false;
		lapic_tsc_deadline_write(l, val);
		return true;
	case MSR_X2APIC ... MSR_X2APIC + 0xff:
		return x2_write(l, msr - MSR_X2APIC, val);
	default:
		return false;
	}
}

bool lapic_msr_read(struct lapic *l, u32 msr, u64 *val)
{
	mem_lock(l->d.mem);
	bool ok = msr_read(l, msr, val);

	mem_unlock(l->d.mem);
	return ok;
}

bool lapic_msr_write(struct lapic *l, u32 msr, u64 val)
{
	mem_lock(l->d.mem);
	bool ok = msr_write(l, msr, val);

	mem_unlock(l->d.mem);
	return ok;
}
