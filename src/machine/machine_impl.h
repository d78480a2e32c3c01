/* Private to machine/. */
#ifndef RING3_MACHINE_IMPL_H
#define RING3_MACHINE_IMPL_H

#include <stdio.h>

#include "display/display.h"
#include "machine/machine.h"

struct blob { u8 *data; u64 size; };
/* The kernel and its initrd: opened once, read again at each reset. */
struct boot_file { const char *path; int fd; };
#define PAM_AREAS 13

struct machine {
	const struct vm_config *cfg;
	struct mem mem;
	struct clock clock;
	struct loop *loop;
	struct cpu_model model;
	struct engine_choice engine; /* that all processors are in */
	struct engine_choice hop_to; /* --hop: where they are not now */
	struct timer hop_timer;
	_Atomic bool hop_due;
	u64 hops, hop_cpu_ns;         /* the process's time at the last one */
	unsigned hop_waits;

	struct irq_router irqs;
	struct machine_hooks hooks;
	struct device *devices[64];   /* in devices.def's order of creation */
	int n_devices;
	struct device *pic, *pit, *rtc, *ps2, *lapic_bus, *ioapic, *hpet, *acpi_pm, *pci, *fw_cfg, *vga, *ide, *balloon;
	u8 ide_units;                 /* taken, a bit each */
	struct device *ahci;          /* the newest controller */
	unsigned ahci_ports;          /* taken of it */
	struct device *uart[MAX_SERIAL];
	struct console *console[MAX_SERIAL];
	struct seat *seat;
	struct vnc *vnc;
	struct boot_file boot_file[2];
	int n_boot_files;
	struct blob firmware;
	struct blob flash;            /* UEFI's variables, mapped */
	int flash_fd;                 /* their file, or -1 */
	struct boot_device { char kind; char path[64]; } boot_devices[16]; /* see boot_config, bootorder */
	int n_boot_devices;
	struct pam_area { struct machine *m; u8 state; } pam[PAM_AREAS];
	FILE *hash_out;
	int hash_errno;               /* of the first write to it that failed */
	struct console *virtio_console[MAX_CONSOLES];
	struct console_link *console_link[MAX_SERIAL + MAX_CONSOLES]; /* consoles.c's */
	int n_links;
	struct console *debugcon;
	struct block *disk[MAX_DISKS];
	struct ata_drive *cd[MAX_DISKS]; /* where disk[k] is or was one */
	struct net *net[MAX_NETS];
	struct share *share[MAX_SHARES];

	struct machine_cpu {
		struct machine *m;
		struct cpu *cpu;
		struct vcpu *vcpu;
		struct lapic *lapic;
		struct cpu_hooks hooks;
		struct timer_queue timers; /* its thread runs them: the LAPIC's, and ... */
		struct timer wakeup;  /* cpu_hooks.set_wakeup */
		u64 wakeup_tsc;       /* when: of clock_tsc() */
		unsigned index;
	} cpus[MAX_CPUS];
	unsigned n_cpus;

	/* what the boot loader chose: applied to the boot processor after each reset */
	void (*enter)(struct machine *m, struct cpu *c);
	u64 entry, entry_arg, entry_arg2, entry_stack;
	const char *boot_kind;

	/* how it ends */
	_Atomic int want;         /* enum machine_want, by any thread */
	bool paused;
	_Atomic bool quit;        /* machine_quit */
	_Atomic bool stats_asked;
	enum machine_end end;
	u32 debug_exit_code;
	char end_text[512];
};

enum machine_want { WANT_NONE, WANT_RESET, WANT_END };

/* machine.c: requests, from any thread */
void machine_wake(struct machine *m);
void machine_want_reset(struct machine *m, const char *why);
void machine_want_end(struct machine *m, enum machine_end end, const char *why);
void machine_stop_cpus_soon(struct machine *m);
void machine_triple_fault(struct machine *m, struct cpu *c);
/* hop.c: --hop. */
bool hop_choose(struct machine *m, struct error *e);
void hop_start(struct machine *m);
void hop_carry_out(struct machine *m); /* by the loop's thread, where hop_due */
void hop_stop(struct machine *m);
/* consoles.c */
bool machine_serial_open(struct machine *m, int k, struct error *e);
bool machine_consoles_open(struct machine *m, struct device *virtio_console, struct error *e);
void machine_consoles_close(struct machine *m);
size_t machine_console_write(void *console, const u8 *buf, size_t len);

/* pc.c */
bool pc_build(struct machine *m, struct error *e);
void pc_reset(struct machine *m);     /* devices and processors to power-on state */
void pc_destroy(struct machine *m);

/* pc_disks.c */
bool pc_add_disks(struct machine *m, struct error *e);
/* "virtio", "ide", ...: where a disk is. */
const char *pc_disk_bus(const struct disk_config *c);
void pc_close_disks(struct machine *m); /* before their devices go */
/* What firmware may boot: kind as in boot_config's order; the path as Open Firmware writes it. */
void pc_boot_device(struct machine *m, char kind, const char *fmt, ...) PRINTF_LIKE(3, 4);
/* pc_virtio.c: what the configuration asks for on the PCI bus. */
bool pc_add_virtio(struct machine *m, struct error *e);
/* Networks, which may fork: before memory and threads. */
bool pc_open_nets(struct machine *m, struct error *e);
void pc_close_nets(struct machine *m);  /* after */
void pc_close_shares(struct machine *m); /* before their devices go */
/* NULL *out: not wanted. */
bool pc_add_device(struct machine *m, const struct device_class *cls, struct device **out, struct error *e);

/* boot.c and boot_*.c: load into RAM, set enter/entry. */
bool boot_load(struct machine *m, struct error *e);
bool blob_read(struct blob *b, const char *option, const char *path, u64 max, struct error *e);
void blob_free(struct blob *b);
/* As blob_read, of a file that a reset reads again: the same one, whatever has its name then. */
bool boot_read(struct machine *m, struct blob *b, const char *option, const char *path, u64 max, struct error *e);
void boot_close(struct machine *m);
bool boot_linux(struct machine *m, const struct blob *k, struct error *e);
bool boot_elf(struct machine *m, const struct blob *k, struct error *e);  /* PVH or multiboot */
bool boot_multiboot(struct machine *m, const struct blob *k, struct error *e);
bool boot_flat(struct machine *m, const struct blob *k, struct error *e);
/* boot_bios.c: interrupt vectors, 8259s and 8254 as a BIOS leaves them. */
#define BOOT_BIOS_STUBS 0xf8000ull /* the vectors' handlers */
void boot_bios_state(struct machine *m);
/* Writes len bytes at gpa; false with an error naming what does not fit. */
bool boot_put(struct machine *m, const char *what, u64 gpa, const void *data, u64 len, struct error *e);
/* Guest memory that a loader, or the entry into its mode, fills after the kernel's own bytes. */
struct boot_place { u64 base, size; const char *what; };
/* Refuses size bytes of the kernel at addr where they lie over one of these, up to the one of size
 * 0, or over the ACPI tables. */
bool boot_check_place(const struct machine *m, const struct boot_place *p, u64 addr, u64 size, struct error *e);
#define BOOT_PLACE_GDT { BOOT_GDT, 0x20, "the GDT" }
/* Guest memory map as e820 types: 1 RAM, 2 reserved, 3 ACPI. Returns entries written. */
struct e820 { u64 base, size; u32 type; } __attribute__((packed));
int boot_e820(struct machine *m, struct e820 *out, int cap);
#define BOOT_ACPI_SIZE 0x20000ull
#define BOOT_RSDP 0xf0000ull
u64 boot_acpi_base(const struct machine *m);  /* top of low RAM, BOOT_ACPI_SIZE bytes */
/* Processor states that loaders use, and where they put their tables. */
#define BOOT_GDT 0x500ull      /* 32 bytes; not in real mode */
#define BOOT_PAGES 0x9000ull   /* 6 pages: PML4, PDPT, 4 page directories; long mode only */
#define BOOT_PAGES_END 0xf000ull
void enter_long(struct machine *m, struct cpu *c);      /* entry; RSI = entry_arg; 4 GiB 1:1 */
void enter_protected(struct machine *m, struct cpu *c); /* flat 32-bit; EAX, EBX, ESI by boot_kind */
void enter_real(struct machine *m, struct cpu *c);

/* firmware.c: maps the image; fills fw_cfg. */
bool boot_firmware(struct machine *m, struct error *e);
/* flash.c: OVMF's code on this host, or NULL; the variables that belong to that code, below m->firmware. */
const char *flash_code_path(void);
bool flash_open(struct machine *m, const char *code, struct error *e);
void flash_close(struct machine *m); /* after the devices */
/* Files of tables for fw_cfg. False: no memory. */
bool acpi_give(struct machine *m);   /* acpi.c */
bool smbios_give(struct machine *m); /* smbios.c */
#define SMBIOS_ENTRY 0x1fu           /* bytes of its entry point */

/* pam.c: RAM or ROM at C0000..FFFFF */
void pam_init(struct machine *m);            /* from then on as the host bridge's registers say */
void pam_firmware_loaded(struct machine *m); /* m->firmware is there */
void pam_all_ram(struct machine *m);         /* as firmware leaves it */

/* seat.c */
bool seat_new(struct machine *m, struct error *e);
bool seat_open_vnc(struct machine *m, struct error *e); /* the display card is there */
void seat_close_vnc(struct machine *m);                 /* before that goes */
void seat_reset(struct machine *m);
void seat_free(struct machine *m);

/* trace.c: checkpoints of --hash-every and --max-insns. */
bool trace_start(struct machine *m, struct error *e);
/* Ends the hash file. False: part of it could not be written, then or before. */
bool trace_stop(struct machine *m, struct error *e);

/* acpi.c: RSDP, XSDT, FADT, FACS, DSDT, MADT, HPET, MCFG-less. Returns the RSDP's address. */
u64 acpi_build(struct machine *m);
extern const u8 *const dsdt_aml; /* dsdt.c: dsdt.asl compiled */
extern const u32 dsdt_aml_size;

#endif
