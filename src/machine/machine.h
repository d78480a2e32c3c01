/* machine: the PC. Wiring of processors, memory and devices (pc.c, read top to bottom), the
 * tables that firmware would leave (acpi.c), boot loaders (boot_*.c), and its life: start,
 * pause, reset, stop (machine.c). One struct machine is one virtual machine; several fit in
 * a process. */
#ifndef RING3_MACHINE_H
#define RING3_MACHINE_H

#include "block/block.h"
#include "dev/dev.h"
#include "engine/engine.h"

/* What cli/ (or a machine file) asks for; strings are owned by the caller and may be NULL. */
struct serial_config {
	char *kind;        /* "stdio", "file", "pty", "socket", "none" */
	char *path;        /* file, socket (created and listened on); pty: a link to make */
	char *name;        /* virtio-console: a channel of that name, not a console */
};
struct kernel_config {
	char *path;
	char *format;      /* NULL: by content; "linux", "linux32", "pvh", "multiboot", "flat" */
	u64 addr;          /* flat: load address; default 0x7c00 (16), 0x100000 (32, 64) */
	bool addr_set;
	u64 entry;         /* flat: entry point; default addr */
	bool entry_set;
	u64 mode;          /* flat: 16 (real), 32 (protected, flat segments), 64 (long, first 4 GiB mapped 1:1) */
};
struct firmware_config {
	char *path;        /* "bios" (SeaBIOS), "uefi" (OVMF), or a ROM image that ends at 4 GiB and 1 MiB */
	char *vars;        /* uefi: the file that keeps the variables; NULL: they are forgotten */
};
struct boot_config {
	char *order;       /* c: disks, d: CDs, n: network; default "cdn" */
	bool menu;         /* firmware offers its menu */
	u64 wait_ms;       /* for so long; default 2500 */
};
struct hop_config {
	char *to;          /* an engine, as --engine names it; NULL: no hops */
	u64 every;         /* microseconds of the machine's time; default 10000 */
};
enum disk_bus { BUS_DEFAULT /* virtio, of a CD IDE */, BUS_VIRTIO, BUS_IDE, BUS_AHCI, BUS_NVME };
struct disk_config {
	struct block_options image; /* cd: the file "none" is an empty drive */
	bool cd;           /* a CD drive: not virtio */
	u32 bus;           /* enum disk_bus */
	char *serial;      /* what the guest reads as its serial number */
	u64 queues;        /* 0: one a processor, at most 8 */
};
#define MAX_SERIAL 4
#define MAX_CONSOLES 7
#define MAX_DISKS 16
#define MAX_NETS 8
#define MAX_SHARES 8
#define MAX_CPUS 64
struct vm_config {
	char *name;        /* by which ring3 ctl finds it; NULL: it does not */
	struct kernel_config kernel;
	char *initrd;      /* one file; multiboot: the module */
	char *append;
	struct firmware_config firmware;
	struct boot_config boot;
	u64 mem_bytes;     /* default 512 MiB */
	u64 cpus;
	char *engine;      /* "auto", "interp", "bt,cache=8M", ... */
	struct hop_config hop; /* processors move to another engine and back, again and again; needs SANDBOX_OFF */
	char *cpu;         /* model and features, "max" */
	struct serial_config serial[MAX_SERIAL];
	int n_serial;
	struct serial_config console[MAX_CONSOLES]; /* of virtio-console */
	int n_consoles;
	struct disk_config disk[MAX_DISKS];
	int n_disks;
	struct net_options net[MAX_NETS];
	int n_nets;
	struct share_options share[MAX_SHARES];
	int n_shares;
	bool rng;          /* virtio-rng */
	bool balloon;      /* virtio-balloon */
	u64 balloon_bytes; /* what it asks the guest to give back from the start */
	char *vga;         /* "std", "none"; NULL: std with firmware or VNC, else none */
	struct vnc_options vnc;
	char *debugcon;    /* file that port 0xe9 writes to; NULL: nowhere */
	u64 post_port;     /* a port whose byte writes are logged and printed; 0: none */
	bool testdev;      /* the device for test suites: pc-testdev */
	bool no_reboot;    /* a reset ends the machine */
	bool triple_fault_reset; /* a triple fault resets, as on a board; else it ends the machine */
	bool icount;       /* time follows the instruction count: two runs are identical; one vCPU */
	u64 hash_every;    /* print a hash of the state every N instructions (icount) to hash_file; 0: off */
	char *hash_file;
	u64 hash_from, hash_to; /* only between these instruction counts; 0, 0: all */
	u64 max_insns;     /* stop there; 0: no limit */
	bool stats;        /* count also what costs time to count; machine_print_stats at the end is the caller's */
	u32 sandbox;       /* enum sandbox_mode, of the process; who runs the machine enters it (sandbox.h) */
	bool dry_run;      /* to be looked at, never to be run: no file, terminal or socket is touched */
};

/* How it ended; docs/exit-status.md. */
enum machine_end {
	END_POWEROFF,      /* status 0 */
	END_DEBUG_EXIT,    /* isa-debug-exit: status (code << 1) | 1 */
	END_RESET,         /* no_reboot: status 0 */
	END_TRIPLE_FAULT,  /* 66 */
	END_USER,          /* Ctrl-A x, or SIGTERM/SIGINT: 67 */
	END_LIMIT,         /* max_insns: 68 */
	END_ERROR,         /* host failed while running: 70 */
};

struct machine;

/* Builds everything, loads the kernel, starts nothing. */
struct machine *machine_new(const struct vm_config *cfg, struct error *e);
/* Runs to its end on the calling thread (the event loop's). *status: the process's exit status. */
enum machine_end machine_run(struct machine *m, int *status);
void machine_free(struct machine *m);
/* Asks it to end; any thread, and async-signal-safe. */
void machine_quit(struct machine *m);
/* The machine in words, for --dry-run. */
void machine_print(const struct machine *m);
const char *machine_end_text(const struct machine *m); /* one sentence why it ended */
const char *machine_serial_text(const struct machine *m, int k); /* "pty /dev/pts/3" */
const char *machine_console_text(const struct machine *m, int k); /* of virtio-console */
bool machine_on_terminal(const struct machine *m);               /* a console of it is a terminal, with Ctrl-A as escape */
const char *machine_vnc_text(const struct machine *m); /* "127.0.0.1:5900"; NULL: there is none */
/* ---- by the loop's thread, while it runs ---- */
struct loop *machine_loop(struct machine *m);
void machine_pause(struct machine *m);   /* processors and time stand still */
void machine_resume(struct machine *m);
bool machine_is_paused(const struct machine *m);
void machine_reset(struct machine *m);   /* as the reset button: soon */
void machine_power_button(struct machine *m);
/* All processors go on in another engine, named as by --engine; the guest does not notice. False: e says why, and
 * they go on in the one that they were in. Not in a contained process. */
bool machine_set_engine(struct machine *m, const char *text, struct error *e);
const char *machine_engine(const struct machine *m); /* its name */
const char *machine_engine_why(const struct machine *m); /* of --engine auto: what it went by; else "" */

/* ---- screen, keyboard, mouse (seat.c); any thread ---- */
/* What a text screen shows, as UTF-8, a line for each row; malloced. NULL: no text screen. */
char *machine_screen_text(struct machine *m, struct error *e);
bool machine_screen_image(struct machine *m, struct screen_image *s, struct error *e); /* pixels: malloced */
bool machine_press(struct machine *m, const char *keys, struct error *e); /* together: "ctrl-alt-delete"; see key_parse */
bool machine_type(struct machine *m, const char *text, struct error *e);
/* Counts to the right and up, turns of the wheel towards the user; buttons: 1 left, 2 right, 4 middle, 8, 16. */
bool machine_mouse(struct machine *m, int dx, int dy, int wheel, unsigned buttons, struct error *e);

/* The balloon: bytes of its memory that the guest is asked for, and how many it has given. Any thread. */
bool machine_set_balloon(struct machine *m, u64 bytes, struct error *e);
bool machine_get_balloon(struct machine *m, u64 *asked, u64 *given, struct error *e);

/* CDs, by the loop's thread (media.c). drive: counts from 0 in the order of the options. */
struct cd_options { char *file; u64 drive; bool force; };
#define CD_EJECT_KEYS \
	{ "drive", KV_UINT, offsetof(struct cd_options, drive), "which CD drive; the first is 0" }, \
	{ "force", KV_BOOL, offsetof(struct cd_options, force), "whatever the guest is doing with it" }
#define CD_INSERT_KEYS \
	{ "file", KV_STR, offsetof(struct cd_options, file), "a raw image" }, \
	{ "drive", KV_UINT, offsetof(struct cd_options, drive), "which CD drive; the first is 0" }
/* False where the guest has locked it, unless force: then it has been asked to let go. */
bool machine_eject(struct machine *m, u64 drive, bool force, struct error *e);
/* fd: of the image, which stays the caller's; name: for people. What was there goes. */
bool machine_insert(struct machine *m, u64 drive, const char *name, int fd, struct error *e);

/* Counters, for --stats: to standard error, by the thread of machine_run, or when it is done. */
void machine_print_stats(const struct machine *m);
void machine_ask_stats(struct machine *m); /* prints them soon; any thread, and async-signal-safe */

#endif
