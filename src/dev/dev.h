/* dev: one file a device, named by part; devices.def lists them.
 *
 * A device is its state struct (first member struct device), a register handler pair on the
 * memory or port bus, a list of the fields that are its state, and one struct device_class.
 * All handlers, timers and irq changes run with the machine lock (mem->lock) held.
 * A guest can bring any value in any order: it gets the datasheet's behaviour, an ignored
 * write, or all ones; never an assert, an exit, or an unbounded loop.
 * Devices know nothing of cpu/ or engine/: what they do to processors goes through
 * struct irq_sink and struct machine_hooks, filled by machine/. */
#ifndef RING3_DEV_H
#define RING3_DEV_H

#include "base/base.h"
#include "display/display.h"
#include "mem/apic_api.h"
#include "mem/mem.h"
#include "net/net.h"

/* ---- the common part ---------------------------------------------------------------- */

struct state_field { const char *name; u32 offset, size, memory; }; /* plain bytes, little-endian */
#define STATE(type, field) { #field, offsetof(type, field), sizeof(((type *)0)->field) }
#define STATE_TIMER(type, field) { #field, offsetof(type, field), 0 } /* size 0: a struct timer (deadline saved) */
/* A pointer to so many bytes of mem_device_ram: those are saved, without pages of zeros. */
#define STATE_MEMORY(type, field, bytes) { #field, offsetof(type, field), sizeof(((type *)0)->field), bytes }
#define STATE_END { NULL, 0, 0 }

struct device;
struct device_class {
	const char *name;            /* by part: "i8254" */
	const char *help;            /* one line */
	size_t size;                 /* of the state struct */
	bool (*init)(struct device *d, struct error *e); /* ports, regions, timers; links are set */
	void (*reset)(struct device *d);                 /* may be NULL */
	void (*destroy)(struct device *d);               /* may be NULL */
	void (*loaded)(struct device *d);                /* after state was loaded; may be NULL */
	/* Brings to its end what it has under way on the host: on the loop's thread, without the machine
	 * lock, vCPUs stopped. Before a reset and a save; may be NULL. */
	void (*drain)(struct device *d);
	const struct state_field *state;
};

struct machine_hooks;
struct irq_router;
struct pci_function;
struct device {
	const struct device_class *cls;
	struct mem *mem;
	struct clock *clock;
	struct irq_router *irqs;
	struct machine_hooks *hooks;
	struct loop *loop;           /* what must not hold up a vCPU is done on its thread */
	const struct pci_function *function; /* on PCI: its own, once pci_plug has been called */
	struct device *pci;          /* the host bridge that PCI functions are behind, or NULL */
};

/* Allocates, zeroes, fills the links, calls init and reset. */
struct device *device_new(const struct device_class *cls, const struct device *links, struct error *e);
/* Its timers go to another queue; before the guest runs. */
void device_set_timers(struct device *d, struct timer_queue *q);
void device_free(struct device *d);
/* State in and out: name/size/bytes per field, little-endian. Returns bytes written; 0 if cap is too small. */
size_t device_save(const struct device *d, u8 *buf, size_t cap);
bool device_load(struct device *d, const u8 *buf, size_t len, struct error *e);
extern const struct device_class *const device_classes[]; /* from devices.def, NULL at the end */

/* What a device may ask of the machine. Machine lock held; none of them blocks. */
struct machine_hooks {
	void *arg;
	void (*reset)(void *arg);                 /* system reset, soon */
	void (*power_off)(void *arg);             /* ACPI S5 */
	void (*exit_status)(void *arg, u32 code); /* isa-debug-exit: the process ends with (code << 1) | 1 */
	void (*cpu_init_signal)(void *arg);       /* INIT# on the boot processor (8042, port 92, cf9 soft) */
	void (*drop_page)(void *arg, u64 gpa_page);/* pc-testdev: forget cached translations of that page */
	void (*acpi_sleep)(void *arg, unsigned typ);
};

/* ---- interrupts --------------------------------------------------------------------- */

/* Lines into the interrupt controllers. GSI 0..23; ISA irq n is GSI n, except that the
 * machine wires ISA irq 0 to IOAPIC pin 2. Sets are levels; edges are derived by chips. */
struct irq_router {
	struct i8259 *pic;     /* gets 0..15 */
	struct ioapic *ioapic; /* gets 0..23 */
	struct lapic_bus *lapic_bus; /* gets messages */
	u8 level[24];          /* bitwise or of sources, by source number 0..7 */
	bool hpet_legacy;      /* the HPET drives irq 0 and 8 in place of the i8254 and mc146818 */
};
/* Who holds a line. A line is high while any source holds it. */
enum irq_source {
	IRQ_SOURCE_DEVICE,     /* the one driver of an ISA line: what irq_set uses */
	IRQ_SOURCE_HPET = 1,
	IRQ_SOURCE_PCI = 2,    /* INTx sharers, one each: 2..6 */
	IRQ_SOURCE_TEST = 7,   /* pc-testdev */
};
/* The level of a line. A device that pulses an edge-triggered line drives it low, then high, and
 * leaves it high: as on the datasheet, the i8259 withdraws a request when its line falls. */
void irq_set(struct irq_router *r, unsigned gsi, bool level);
void irq_set_source(struct irq_router *r, unsigned gsi, unsigned source, bool level);
/* HPET's LEG_RT_CNF: while on, irq 0 and 8 hear only sources other than IRQ_SOURCE_DEVICE. */
void irq_set_hpet_legacy(struct irq_router *r, bool on);
/* A message-signalled interrupt: address and data as written by the device or IOAPIC. */
void irq_msi(struct irq_router *r, u64 addr, u32 data);

/* Out of the controllers, to one processor. Implemented by machine/ over cpu/. */
struct irq_sink {
	void *cpu;
	void (*set_intr)(void *cpu, bool level); /* INTR: this processor has something to acknowledge */
	void (*nmi)(void *cpu);
	void (*smi)(void *cpu);
	void (*init)(void *cpu);
	void (*sipi)(void *cpu, u8 vector);
};

/* i8259 pair (i8259.c), its ELCR at 0x4d0, 0x4d1 included */
struct i8259;
extern const struct device_class i8259_class;
void i8259_set_irq(struct i8259 *p, unsigned irq, bool level);
int i8259_ack(struct i8259 *p);       /* INTA: the vector (spurious 7/15 as the chip does) */
bool i8259_output(const struct i8259 *p);
void i8259_set_output(struct i8259 *p, void (*fn)(void *arg, bool level), void *arg); /* INTR pin */

/* LAPIC (lapic*.c): one a processor, all on one bus. Each is a
 * struct device of its own (its first member), so that device_save and device_load take it;
 * the bus frees them. Machine lock held where nothing else is said. */
struct lapic;
struct lapic_bus;
extern const struct device_class lapic_bus_class; /* the MMIO window at 0xfee00000 and MSI delivery */
extern const struct device_class lapic_class;
/* What CPUID tells the guest. Without the call: 36 address bits, x2APIC and TSC deadline there. */
struct lapic_features { u8 maxphyaddr; bool x2apic, tsc_deadline; };
struct lapic *lapic_add(struct lapic_bus *b, u32 apic_id, bool bsp, const struct irq_sink *sink);
void lapic_set_features(struct lapic *l, const struct lapic_features *f);
unsigned lapic_count(const struct lapic_bus *b);
struct lapic *lapic_at(struct lapic_bus *b, unsigned i); /* in the order of lapic_add */
u64 lapic_mmio_read(struct lapic *l, u32 off, unsigned size);
void lapic_mmio_write(struct lapic *l, u32 off, u32 val, unsigned size);
/* x2APIC MSRs 0x800..0x8ff and IA32_APIC_BASE, IA32_TSC_DEADLINE; false: #GP(0). Take the machine lock themselves. */
bool lapic_msr_read(struct lapic *l, u32 msr, u64 *val);
bool lapic_msr_write(struct lapic *l, u32 msr, u64 val);
/* The guest's TSC is clock_tsc() + adjust; a TSC deadline is a value of that. Takes the lock itself. */
void lapic_set_tsc_adjust(struct lapic *l, u64 adjust);
u8 lapic_get_tpr(struct lapic *l);    /* CR8 = tpr >> 4; these three take the lock themselves */
void lapic_set_tpr(struct lapic *l, u8 tpr);
void lapic_eoi_processor(struct lapic *l); /* by the processor itself (posted interrupts); takes the lock, too */
/* INTA: the vector to deliver; the spurious vector where the request is gone; -1: nothing of its
 * own, the PIC is to answer (i8259_ack) if lapic_accepts_pic. */
int lapic_ack(struct lapic *l);
bool lapic_accepts_pic(const struct lapic *l); /* LINT0 in ExtINT mode and unmasked, or APIC globally disabled. Lent: as of lapic_set_state */
void lapic_set_lint0(struct lapic *l, bool level); /* the PIC's output */
void lapic_nmi_lint1(struct lapic *l);             /* an edge on LINT1, to which the board wires NMI */
void lapic_reset(struct lapic *l);
/* The processor carries out an INIT signal (sink->init said that one has come; it may hold it back, or a hypervisor take
 * it): all but base, mode and ID are as after a reset. Takes the lock. */
void lapic_init_taken(struct lapic *l);
bool lapic_enabled(const struct lapic *l);         /* IA32_APIC_BASE.EN: CPUID.1:EDX.APIC; no lock needed */
void lapic_bus_msi(struct lapic_bus *b, u64 addr, u32 data);
/* Somebody else runs them from now on (r stays the caller's); NULL: they run here again, from their state. The
 * 8259s' output then goes to the first processor's set_intr as it is. */
void lapic_bus_lend(struct lapic_bus *b, const struct apic_runner *r);
void lapic_get_state(struct lapic *l, struct apic_state *s);
void lapic_set_state(struct lapic *l, const struct apic_state *s);
/* The LAPIC of the calling vCPU thread; on other threads that of the first processor; NULL if none. */
struct lapic *lapic_current(struct lapic_bus *b);
void lapic_set_current(struct lapic *l);           /* by each vCPU thread before it runs, NULL at its end */

/* IOAPIC (ioapic.c), 24 pins, 0xfec00000 */
struct ioapic;
extern const struct device_class ioapic_class;
void ioapic_connect(struct ioapic *io, struct lapic_bus *bus); /* both ways: EOI broadcast comes back */
void ioapic_set_irq(struct ioapic *io, unsigned pin, bool level);
void ioapic_eoi(struct ioapic *io, u8 vector);

/* ---- the rest of the board ------------------------------------------------------------ */

extern const struct device_class i8254_class;    /* 0x40..0x43 and 0x61 (speaker gate, refresh toggle) */
extern const struct device_class mc146818_class; /* 0x70, 0x71 */
extern const struct device_class i8042_class;    /* 0x60, 0x64, 0x92 */
extern const struct device_class hpet_class;     /* 0xfed00000 */
extern const struct device_class acpi_pm_class;  /* PM1, PM timer, reset register, SMI command, ports below */
extern const struct device_class pci_host_class; /* 0xcf8, 0xcfc, i440FX at 00:00.0, PIIX3 at 00:01.0; 0xcf9 */
extern const struct device_class fw_cfg_class;   /* 0x510, 0x511, DMA at 0x514 */
extern const struct device_class isa_debug_exit_class; /* 0xf4, 4 ports */
extern const struct device_class debugcon_class; /* 0xe9, 0x402 */
extern const struct device_class testdev_class;  /* pc-testdev: 0xe0.., 0x2000.., 0xff000000 */
extern const struct device_class ide_class;      /* 0x1f0, 0x3f6, 0x170, 0x376, on PCI */
extern const struct device_class ahci_class;     /* on PCI */
extern const struct device_class e1000_class;    /* on PCI */
extern const struct device_class nvme_class;     /* on PCI */
extern const struct device_class pflash_class;   /* where pflash_attach puts it */
extern const struct device_class vga_class;      /* 0x3b0..0x3df, 0x1ce, 0xa0000, on PCI */
extern const struct device_class ns16550_class;  /* where ns16550_configure puts it */

/* ACPI ports */
#define ACPI_PM1_EVT 0x600   /* 4 bytes: status, enable */
#define ACPI_PM1_CNT 0x604   /* 2 bytes */
#define ACPI_PM_TMR 0x608    /* 4 bytes, 3.579545 MHz, 24 or 32 bits */
#define ACPI_GPE0 0x620      /* 4 bytes */
#define ACPI_SMI_CMD 0xb2
#define ACPI_ENABLE_CMD 0xf1  /* FADT: written to ACPI_SMI_CMD sets SCI_EN */
#define ACPI_DISABLE_CMD 0xf0
#define ACPI_SCI_GSI 9
#define ACPI_RESET_PORT 0xcf9 /* value 6 */

void acpi_pm_power_button(struct device *d);
void acpi_pm_gpe(struct device *d, unsigned n);   /* sets GPE0 status bit n, 0..15 */
void acpi_pm_wake(struct device *d);              /* after acpi_sleep: sets WAK_STS */
void mc146818_set_memory(struct device *d, u64 low_bytes, u64 high_bytes); /* CMOS 15..18,30..35,5b..5d */
void mc146818_set_byte(struct device *d, u8 index, u8 val); /* any other byte that firmware reads there */

/* fw_cfg contents: keyed and named files. Data is copied. */
bool fw_cfg_add_key(struct device *d, u16 key, const void *data, size_t len);
bool fw_cfg_add_file(struct device *d, const char *name, const void *data, size_t len);

/* Characters: a serial port's other end. The backend lives in cli/ or machine/. */
struct char_backend {
	void *arg;
	/* Device to host; any number of bytes; returns how many were taken (the rest is retried
	 * when the backend calls ns16550_can_write). Machine lock held; must not block. */
	size_t (*write)(void *arg, const u8 *buf, size_t len);
	/* The device has room for input again. */
	void (*can_receive)(void *arg, size_t room);
};
void ns16550_configure(struct device *d, u16 base, unsigned irq); /* before first use; registers the ports */
void ns16550_attach(struct device *d, const struct char_backend *be);
size_t ns16550_receive(struct device *d, const u8 *buf, size_t len); /* lock held; returns bytes taken */
void ns16550_can_write(struct device *d);                            /* lock held */
void ns16550_break(struct device *d);                                /* lock held */
void debugcon_attach(struct device *d, const struct char_backend *be);

/* The bytes, size of them, stay the caller's and outlive the device; page-aligned, as base. */
void pflash_attach(struct device *d, u64 base, u8 *bytes, u64 size);

/* A disk or CD drive of the IDE or AHCI controller. blk stays the caller's and outlives the device; NULL: a
 * CD drive without a medium. Before the machine runs. */
struct ata_drive_config { struct block *blk; bool cd; const char *serial; };
#define AHCI_PORTS 6u
void ide_attach(struct device *d, unsigned unit, const struct ata_drive_config *cfg); /* 0, 1 on the first channel, 2, 3 on the second */
bool ahci_attach(struct device *d, unsigned port, const struct ata_drive_config *cfg, struct error *e);
/* A CD drive while the machine runs: on the loop's thread, without the machine lock. */
struct ata_drive;
struct ata_drive *ide_drive_at(struct device *d, unsigned unit);
struct ata_drive *ahci_drive_at(struct device *d, unsigned port);
/* As its button: false if the guest has locked the drive, which is asked then to let go. */
bool atapi_push_button(struct mem *m, struct ata_drive *d);
/* Another medium, the tray closed; NULL: none, the tray open. Returns the one that was there, of which
 * nothing is under way any more. */
struct block *atapi_change_medium(struct mem *m, struct ata_drive *d, struct block *blk);
void nvme_attach(struct device *d, struct block *blk, const char *serial);

/* What the card shows now; the caller frees what is in *t and *s. False: no text mode, or no memory. */
bool vga_text(const struct device *d, struct screen_text *t);
bool vga_image(const struct device *d, struct screen_image *s);
/* The same, followed: each look brings the picture up to date and says which of its lines may have
 * changed (a byte each). The card outlives the view. Takes the machine lock itself, for the registers
 * alone. NULL: no memory; the picture is the view's, until the next look. */
struct vga_view;
struct vga_view *vga_view_new(const struct device *d);
const struct screen_image *vga_view_look(struct vga_view *v, const u8 **changed);
void vga_view_free(struct vga_view *v);

/* A key, as the bytes that a keyboard (scan code set 2) puts on its wire. All or nothing: false if the
 * device does not report now or has no room. */
bool i8042_key(struct device *d, const u8 *bytes, size_t n);   /* lock held */
/* A movement: counts to the right and up, turns of the wheel towards the user; buttons: 1 left, 2 right,
 * 4 middle, 8 and 16 more. What the guest does not read yet adds up. False: it does not listen. Lock held. */
bool i8042_mouse(struct device *d, int dx, int dy, int dz, unsigned buttons);

/* Called after the guest wrote a PAM register: pam[0..6] are registers 0x59..0x5f. */
void pci_host_on_pam(struct device *host, void (*fn)(void *arg, const u8 *pam), void *arg);

#include "dev/pci_api.h"
#include "dev/virtio_api.h"

/* As for virtio_net_attach. */
void e1000_attach(struct device *d, struct net *net, const u8 mac[NET_MAC_BYTES]);

#endif
