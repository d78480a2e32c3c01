/* What the files of the local APIC (lapic*.c) share. Machine lock held everywhere. */
#ifndef RING3_LAPIC_IMPL_H
#define RING3_LAPIC_IMPL_H

#include "dev/dev.h"

/* Registers by number: the xAPIC offset >> 4, the x2APIC MSR - 0x800. */
enum lapic_reg {
	R_ID = 0x02, R_VERSION = 0x03, R_TPR = 0x08, R_APR = 0x09, R_PPR = 0x0a, R_EOI = 0x0b,
	R_RRD = 0x0c, R_LDR = 0x0d, R_DFR = 0x0e, R_SVR = 0x0f,
	R_ISR = 0x10, R_TMR = 0x18, R_IRR = 0x20, R_ESR = 0x28, R_ICR = 0x30, R_ICR_HIGH = 0x31,
	R_LVT = 0x32, R_TIMER_INITIAL = 0x38, R_TIMER_CURRENT = 0x39, R_TIMER_DIVIDE = 0x3e,
	R_SELF_IPI = 0x3f,
};

enum lapic_lvt { LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_COUNT };

#define LVT_MODE(v) (((v) >> 8) & 7)
#define LVT_REMOTE_IRR (1u << 14)
#define LVT_LEVEL (1u << 15)
#define LVT_MASKED (1u << 16)
#define LVT_TIMER_MODE(v) (((v) >> 17) & 3)
enum { TIMER_ONE_SHOT, TIMER_PERIODIC, TIMER_TSC_DEADLINE };

/* Delivery modes of LVT, ICR, MSI and IOAPIC. */
enum apic_mode { APIC_FIXED, APIC_LOWEST, APIC_SMI, APIC_RESERVED, APIC_NMI, APIC_INIT, APIC_SIPI, APIC_EXTINT };

/* Integrated APIC, six LVT entries, EOI broadcast can be suppressed. */
#define LAPIC_VERSION (0x14u | (LVT_COUNT - 1) << 16 | 1u << 24)
#define SVR_ENABLE 0x100u
#define SVR_EOI_SUPPRESS 0x1000u
#define ESR_SEND_ILLEGAL 0x20u
#define ESR_RECEIVE_ILLEGAL 0x40u
#define ESR_ILLEGAL_REGISTER 0x80u

#define APIC_BASE_DEFAULT 0xfee00000ull
#define APIC_BASE_BSP 0x100ull
#define APIC_BASE_X2 0x400ull
#define APIC_BASE_EN 0x800ull

/* One page where some LAPIC may be seen. */
struct lapic_window {
	struct lapic_bus *bus;
	u64 base;
	bool mapped;
	char name[20];
};

struct lapic {
	struct device d;
	struct lapic_bus *bus;
	struct irq_sink sink;
	struct lapic_features features;
	struct lapic_window window;   /* in use while base is not the default */
	u32 x2id;                     /* the initial APIC ID */
	u8 bsp;

	/* State, as saved. */
	u64 base;                     /* IA32_APIC_BASE */
	u32 id;                       /* xAPIC ID; x2APIC mode uses x2id */
	u32 tpr, ldr, dfr, svr;
	u32 esr, esr_pending;         /* what reads give; what the next write brings there */
	u32 icr, icr_high;
	u32 lvt[LVT_COUNT];
	u32 isr[8], irr[8], tmr[8];
	u32 lowest_count;             /* lowest-priority messages taken: the tie-breaker */
	u8 lint0;                     /* level of the pin */
	u8 extint;                    /* an ExtINT message waits for INTA */
	u8 intr;                      /* what set_intr was last told */
	/* Timer. */
	u32 timer_initial;
	u32 timer_divide;             /* the register */
	u8 timer_counting;
	u64 timer_expiry;             /* ns at which the count is zero, while counting */
	u64 timer_period;             /* ns from one zero to the next in periodic mode */
	u64 tsc_deadline;             /* of the guest's TSC; 0: not armed */
	u64 tsc_adjust;
	struct timer timer;
};

struct lapic_bus {
	struct device d;
	struct lapic **cpus;
	unsigned n, cap;
	struct ioapic *ioapic;
	const struct apic_runner *runner; /* NULL: they run here */
	struct lapic_window window;   /* the default page */
};

/* A message on the bus. */
struct apic_msg {
	u32 dest;
	bool dest32;                  /* dest is an x2APIC destination, 32 bits; else 8 */
	bool logical;
	bool level;                   /* trigger mode */
	u8 mode, vector;
};

/* lapic.c */
static inline bool lapic_is_x2(const struct lapic *l) { return l->base & APIC_BASE_X2; }
static inline bool lapic_soft_enabled(const struct lapic *l) { return l->svr & SVR_ENABLE; }
void lapic_error(struct lapic *l, u32 bit);
/* Into IRR. False: not taken (disabled, or an illegal vector). */
bool lapic_accept_fixed(struct lapic *l, u8 vector, bool level);
/* A local source asserts: delivers as the LVT entry says. */
void lapic_lvt_deliver(struct lapic *l, enum lapic_lvt n);
void lapic_update_intr(struct lapic *l);
u32 lapic_ppr(const struct lapic *l);
u32 lapic_apr(const struct lapic *l);
void lapic_eoi(struct lapic *l);
void lapic_reset_registers(struct lapic *l); /* all but IA32_APIC_BASE and the ID */

/* lapic_bus.c */
/* Gives a LAPIC away from the default page a window of its own, or takes it back. */
void lapic_place_window(struct lapic *l);
void lapic_unplug(struct lapic *l);

/* lapic_ipi.c */
void lapic_icr_write(struct lapic *l, u32 low, u32 dest);
void lapic_self_ipi(struct lapic *l, u8 vector);
/* From an IOAPIC or a device. True if at least one LAPIC took it. */
bool lapic_bus_deliver(struct lapic_bus *b, const struct apic_msg *m);

/* lapic_timer.c */
void lapic_timer_setup(struct lapic *l);
void lapic_timer_reset(struct lapic *l);
void lapic_timer_set_initial(struct lapic *l, u32 count);
void lapic_timer_set_divide(struct lapic *l, u32 val);
u32 lapic_timer_current(const struct lapic *l);
void lapic_timer_settle(struct lapic *l);
void lapic_timer_mode_changed(struct lapic *l, u32 old_lvt);
u64 lapic_tsc_deadline_read(const struct lapic *l);
void lapic_tsc_deadline_write(struct lapic *l, u64 deadline);
void lapic_tsc_changed(struct lapic *l);
void lapic_timer_lend(struct lapic *l);   /* the host's timer is off, the state stays */
void lapic_timer_back(struct lapic *l);
void lapic_timer_load(struct lapic *l, u32 initial, u32 current, u64 deadline); /* not armed */

/* lapic_lend.c */
static inline bool lapic_lent(const struct lapic *l) { return l->bus && l->bus->runner; }
bool lapic_lent_send(struct lapic_bus *b, const struct apic_msg *m);
struct msi lapic_msi_of(const struct apic_msg *m);

/* ioapic.c: tells the runner of the pins. */
void ioapic_tell_pins(struct ioapic *io);
/* ioapic.c: a LAPIC has become able to take what it did not take before. */
void ioapic_retry(struct ioapic *io);

#endif
