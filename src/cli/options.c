/* The options of `ring3 run`: one table; long names, a few short ones, values by kv_parse
 * (first key optional, bare key true). What is on the command line takes the place of all of that name
 * in a file of --config. */
#define LOG_TOPIC "cli"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "sandbox/sandbox.h"

static const struct kv_key kernel_keys[] = {
	{ "path", KV_STR, offsetof(struct kernel_config, path), "the file" },
	{ "format", KV_STR, offsetof(struct kernel_config, format), "linux, linux32, pvh, multiboot, flat; default: by content" },
	{ "addr", KV_UINT, offsetof(struct kernel_config, addr), "flat: where to load it" },
	{ "entry", KV_UINT, offsetof(struct kernel_config, entry), "flat: where to start it; default addr" },
	{ "mode", KV_UINT, offsetof(struct kernel_config, mode), "flat: 16, 32 or 64" },
};
static const struct kv_key serial_keys[] = {
	{ "kind", KV_STR, offsetof(struct serial_config, kind), "stdio, file, pty, socket, none" },
	{ "path", KV_STR, offsetof(struct serial_config, path), "file and socket: where; pty: a link to make" },
};

static const struct kv_key firmware_keys[] = {
	{ "path", KV_STR, offsetof(struct firmware_config, path), "bios (SeaBIOS), uefi (OVMF), or the file of a ROM image" },
	{ "vars", KV_STR, offsetof(struct firmware_config, vars), "uefi: the file that keeps its variables; made if it is not there" },
};
static const struct kv_key boot_keys[] = {
	{ "order", KV_STR, offsetof(struct boot_config, order), "letters, the first one first: c disks, d CDs, n network; default cd, or n where there is neither" },
	{ "menu", KV_BOOL, offsetof(struct boot_config, menu), "the firmware offers its boot menu" },
	{ "wait", KV_UINT, offsetof(struct boot_config, wait_ms), "for so many ms; default 2500", 0, 65535 },
};
static const struct kv_key hop_keys[] = {
	{ "to", KV_STR, offsetof(struct hop_config, to), "the other engine, as of --engine; with keys of its own: to=bt,,cache=8M" },
	{ "every", KV_UINT, offsetof(struct hop_config, every), "so many microseconds of the machine's time; default 10000", 1, 1000000000 },
};
static const char *const disk_bus_words[] = { "auto", "virtio", "ide", "ahci", "nvme", NULL }; /* enum disk_bus */
static const struct kv_key console_keys[] = {
	{ "kind", KV_STR, offsetof(struct serial_config, kind), "stdio, file, pty, socket, none" },
	{ "path", KV_STR, offsetof(struct serial_config, path), "file and socket: where; pty: a link to make" },
	{ "name", KV_STR, offsetof(struct serial_config, name), "a channel (/dev/virtio-ports/NAME) instead of a console (hvc0)" },
};
static const struct kv_key disk_keys[] = {
	BLOCK_KEYS(struct vm_config, disk[0].image),
	{ "bus", KV_WORD, offsetof(struct vm_config, disk[0].bus), "auto (virtio; CDs ide), virtio, ide, ahci or nvme", .words = disk_bus_words },
	{ "serial", KV_STR, offsetof(struct vm_config, disk[0].serial), "what the guest reads as serial number, at most 20 characters" },
	{ "queues", KV_UINT, offsetof(struct vm_config, disk[0].queues), "request queues; default one a processor, at most 8", 1, 8 },
};
static const struct kv_key vnc_keys[] = { VNC_KEYS(struct vm_config, vnc) };
static const struct kv_key net_keys[] = { NET_KEYS(struct vm_config, net[0]) };
static const struct kv_key share_keys[] = { SHARE_KEYS(struct vm_config, share[0]) };

enum arg_type { A_FLAG, A_STR, A_SIZE, A_UINT, A_KERNEL, A_FIRMWARE, A_BOOT, A_SERIAL, A_CONSOLE, A_DISK, A_CD, A_NET, A_SHARE, A_BALLOON, A_VNC, A_SANDBOX, A_HOP };
struct option_row {
	const char *name;
	char letter;
	enum arg_type type;
	size_t offset;   /* in vm_config, or in cli_extra where extra is set */
	bool extra;
	const char *arg, *help;
	const struct kv_key *keys; /* of its value; their offsets count from offset */
	size_t n_keys;
};
#define CFG(f) offsetof(struct vm_config, f), false
#define ALL 0, false /* keys that count from vm_config */
#define EXT(f) offsetof(struct cli_extra, f), true
#define KEYS(k) k, ARRAY_LEN(k)
static const struct option_row rows[] = {
	{ "kernel", 'k', A_KERNEL, CFG(kernel), "FILE[,format=F,addr=A,entry=E,mode=M]", "bzImage, PVH or multiboot ELF, flat binary", KEYS(kernel_keys) },
	{ "initrd", 0, A_STR, CFG(initrd), "FILE", "initial RAM disk; multiboot: the module" },
	{ "append", 0, A_STR, CFG(append), "TEXT", "kernel command line" },
	{ "firmware", 0, A_FIRMWARE, CFG(firmware), "bios|uefi|FILE[,vars=F]", "SeaBIOS, OVMF or a ROM image, started at the reset vector", KEYS(firmware_keys) },
	{ "boot", 0, A_BOOT, CFG(boot), "ORDER[,menu,wait=MS]", "what firmware tries, as in cdn: disk, CD, network; its menu", KEYS(boot_keys) },
	{ "name", 0, A_STR, CFG(name), "NAME", "a name for ring3 ctl and ring3 list" },
	{ "memory", 'm', A_SIZE, CFG(mem_bytes), "SIZE", "RAM, e.g. 512M (the default), 4G; a bare number is MiB" },
	{ "cpus", 'c', A_UINT, CFG(cpus), "N", "processors; default 1" },
	{ "cpu", 0, A_STR, CFG(cpu), "MODEL[,+F,-F,F=on|off]", "processor model and features; default max; help lists them" },
	{ "engine", 'e', A_STR, CFG(engine), "NAME[,KEY=VALUE...]", "auto (the default), kvm, bt, interp; --help engine says more" },
	{ "serial", 0, A_SERIAL, CFG(serial), "KIND[,path=P]", "stdio (the default), file, pty, socket, none; may be given 4 times", KEYS(serial_keys) },
	{ "console", 0, A_CONSOLE, CFG(console), "KIND[,path=P,name=N]", "a virtio console, kinds as of --serial; may be given 7 times", KEYS(console_keys) },
	{ "disk", 0, A_DISK, ALL, "FILE[,bus=virtio|ide|ahci|nvme,format=F,read-only,snapshot,...]", "a disk: an image, raw or qcow2; may be given 16 times", KEYS(disk_keys) },
	{ "cdrom", 0, A_CD, ALL, "FILE|none[,bus=ide|ahci]", "a CD drive with that image, or empty", KEYS(disk_keys) },
	{ "net", 0, A_NET, ALL, "KIND[,model=virtio|e1000,forward=HOST:GUEST,mac=M,...]", "a network card: user (the default where a disk is booted), tap, socket, none; may be given 8 times", KEYS(net_keys) },
	{ "share", 0, A_SHARE, ALL, "FOLDER[,tag=NAME,read-only]", "a folder of the host, which the guest mounts by 9p; may be given 8 times", KEYS(share_keys) },
	{ "balloon", 0, A_BALLOON, ALL, "SIZE", "virtio-balloon: the guest gives free pages back; and SIZE of its memory (0: none) at once" },
	{ "rng", 0, A_FLAG, CFG(rng), NULL, "virtio-rng: the host's random numbers" },
	{ "vga", 0, A_STR, CFG(vga), "std|none", "a display card; default std with --firmware or --vnc, else none" },
	{ "vnc", 0, A_VNC, ALL, "[ADDR:]PORT|SOCKET[,password-file=F]", "the screen, keyboard and mouse for VNC viewers; 127.0.0.1 unless ADDR says otherwise", KEYS(vnc_keys) },
	{ "debugcon", 0, A_STR, CFG(debugcon), "FILE", "what the guest writes to port 0xe9 or 0x402" },
	{ "post-port", 0, A_UINT, CFG(post_port), "PORT", "print byte writes to that port to standard error" },
	{ "testdev", 0, A_FLAG, CFG(testdev), NULL, "the device of test suites: ports 0xe0-0xeb, 0x2000-0x2017, 0xff000000" },
	{ "no-reboot", 0, A_FLAG, CFG(no_reboot), NULL, "a reset ends the machine" },
	{ "reset-on-triple-fault", 0, A_FLAG, CFG(triple_fault_reset), NULL, "as a board does; else the machine stops with status 66" },
	{ "icount", 0, A_FLAG, CFG(icount), NULL, "deterministic: time follows the number of instructions (one processor)" },
	{ "hop", 0, A_HOP, CFG(hop), "ENGINE[,every=US]", "a test of engines: move the machine to ENGINE and back, again and again; needs --sandbox off", KEYS(hop_keys) },
	{ "max-insns", 0, A_UINT, CFG(max_insns), "N", "end with status 68 after N instructions (with --icount)" },
	{ "hash-every", 0, A_UINT, CFG(hash_every), "N", "hash processor and memory every N instructions (with --icount)" },
	{ "hash-file", 0, A_STR, CFG(hash_file), "FILE", "where the hashes go" },
	{ "hash-from", 0, A_UINT, CFG(hash_from), "N", "hash from that instruction on" },
	{ "hash-to", 0, A_UINT, CFG(hash_to), "N", "and up to that one" },
	{ "stats", 0, A_FLAG, CFG(stats), NULL, "count, and print the counters at the end; at any time: kill -USR1" },
	{ "sandbox", 0, A_SANDBOX, CFG(sandbox), "auto|on|off", "how this process is contained: by what this host offers (the default), fully, not" },
	{ "dry-run", 0, A_FLAG, CFG(dry_run), NULL, "build the machine, print it, start nothing" },
	{ "config", 0, A_STR, EXT(config), "FILE", "options from a file; so does FILE alone if it ends in .ini; those here take the place of its own" },
	{ "print-config", 0, A_FLAG, EXT(print_config), NULL, "print the options as such a file, start nothing" },
	{ "log", 0, A_STR, EXT(log), "LEVEL|TOPIC=LEVEL,...", "error, warn (the default), info, debug, trace" },
	{ "log-file", 0, A_STR, EXT(log_file), "FILE", "the log; default standard error" },
	{ "help", 'h', A_FLAG, EXT(done), NULL, "this list; --help OPTION for the keys of one" },
};

static const struct option_row *row_of(const char *name)
{
	for (size_t k = 0; k < ARRAY_LEN(rows); k++)
		if (!strcmp(rows[k].name, name))
			return &rows[k];
	return NULL;
}

static void help_row(const struct option_row *o)
{
	char left[80];

	snprintf(left, sizeof(left), "  %c%c%s --%s %s", o->letter ? '-' : ' ', o->letter ? o->letter : ' ', o->letter ? "," : " ", o->name,
		 o->arg ? o->arg : "");
	if (strlen(left) > 42)
		printf("%s\n%44s%s\n", left, "", o->help);
	else
		printf("%-44s%s\n", left, o->help);
}

static void help_all(void)
{
	printf("ring3 run [OPTION ...]\n\n");
	for (size_t k = 0; k < ARRAY_LEN(rows); k++)
		help_row(&rows[k]);
	printf("\nSizes take K, M, G. The serial console is this terminal: Ctrl-A x leaves, Ctrl-A h helps.\n"
	       "Exit status: 0 the guest powered off, (code<<1)|1 isa-debug-exit, 64 a wrong option, 65 cannot\n"
	       "start, 66 triple fault, 67 Ctrl-A x or a signal, 68 --max-insns, 70 the host failed.\n");
}

static bool help_one(const char *name)
{
	const struct option_row *o;
	char what[40];

	for (size_t k = 0; k < ARRAY_LEN(rows); k++)
		if (rows[k].keys && !strcmp(rows[k].name, name)) {
			snprintf(what, sizeof(what), "--%s", name);
			kv_help(what, rows[k].keys, rows[k].n_keys);
			return true;
		}
	if (!strcmp(name, "cpu"))
		cpu_model_help();
	else if (!strcmp(name, "engine"))
		engine_help();
	else if ((o = row_of(name)))
		help_row(o);
	else
		return false;
	return true;
}

/* name: what follows --help, or NULL. */
static bool help(const char *name, struct error *e)
{
	if (!name || name[0] == '-') {
		help_all();
		return true;
	}
	return help_one(name) || error_set(e, "--help %s: no such option; see ring3 run --help", name);
}

static const struct option_row *find_row(const char *arg, const char **inline_value, struct error *e)
{
	const char *names[ARRAY_LEN(rows)];
	*inline_value = NULL;
	for (size_t k = 0; k < ARRAY_LEN(rows); k++) {
		size_t n = strlen(rows[k].name);
		names[k] = rows[k].name;
		if (arg[1] == '-' && !strncmp(arg + 2, rows[k].name, n) && (!arg[2 + n] || arg[2 + n] == '=')) {
			*inline_value = arg[2 + n] ? arg + 3 + n : NULL;
			return &rows[k];
		}
		if (arg[1] != '-' && rows[k].letter && arg[1] == rows[k].letter) {
			*inline_value = arg[2] ? arg + 2 : NULL;
			return &rows[k];
		}
	}
	const char *near = nearest_word(arg[1] == '-' ? arg + 2 : arg + 1, names, ARRAY_LEN(names));
	error_set(e, "%s: no such option; %s%s%s", arg, near ? "did you mean --" : "see ring3 run --help", near ? near : "", near ? "?" : "");
	return NULL;
}

static bool add_serial(struct vm_config *cfg, const char *value, struct error *e)
{
	if (cfg->n_serial == MAX_SERIAL)
		return error_set(e, "--serial: a PC has at most %d serial ports", MAX_SERIAL);
	return kv_parse("--serial", value, serial_keys, ARRAY_LEN(serial_keys), &cfg->serial[cfg->n_serial++], e);
}

static bool add_console(struct vm_config *cfg, const char *value, struct error *e)
{
	if (cfg->n_consoles == MAX_CONSOLES)
		return error_set(e, "--console: at most %d virtio consoles", MAX_CONSOLES);
	struct serial_config *c = &cfg->console[cfg->n_consoles++];
	if (!kv_parse("--console", value, console_keys, ARRAY_LEN(console_keys), c, e))
		return false;
	return !c->name || strlen(c->name) < VIRTIO_CONSOLE_NAME ||
	       error_set(e, "--console: name=%s: at most %u characters", c->name, VIRTIO_CONSOLE_NAME - 1);
}

/* The keys' offsets are those of the first disk, or card. */
static bool add_disk(struct vm_config *cfg, const char *value, struct error *e)
{
	if (cfg->n_disks == MAX_DISKS)
		return error_set(e, "--disk: at most %d disks", MAX_DISKS);
	return kv_parse("--disk", value, disk_keys, ARRAY_LEN(disk_keys), (char *)cfg + (size_t)cfg->n_disks++ * sizeof(cfg->disk[0]), e);
}

static bool add_cd(struct vm_config *cfg, const char *value, struct error *e)
{
	if (!add_disk(cfg, value, e))
		return error_prefix(e, "--cdrom");
	cfg->disk[cfg->n_disks - 1].cd = true;
	cfg->disk[cfg->n_disks - 1].image.read_only = true;
	return true;
}

static bool add_net(struct vm_config *cfg, const char *value, struct error *e)
{
	if (cfg->n_nets == MAX_NETS)
		return error_set(e, "--net: at most %d network cards", MAX_NETS);
	return kv_parse("--net", value, net_keys, ARRAY_LEN(net_keys), (char *)cfg + (size_t)cfg->n_nets++ * sizeof(cfg->net[0]), e);
}

static bool add_share(struct vm_config *cfg, const char *value, struct error *e)
{
	if (cfg->n_shares == MAX_SHARES)
		return error_set(e, "--share: at most %d folders", MAX_SHARES);
	return kv_parse("--share", value, share_keys, ARRAY_LEN(share_keys), (char *)cfg + (size_t)cfg->n_shares++ * sizeof(cfg->share[0]), e);
}

static bool kernel_option(struct vm_config *cfg, const char *value, struct error *e)
{
	struct kernel_config *k = &cfg->kernel;
	k->addr = k->entry = ~0ull;
	if (!kv_parse("--kernel", value, kernel_keys, ARRAY_LEN(kernel_keys), k, e))
		return false;
	k->addr_set = k->addr != ~0ull;
	k->entry_set = k->entry != ~0ull;
	return true;
}

static bool boot_option(struct boot_config *b, const char *value, struct error *e)
{
	b->wait_ms = 2500;
	if (!kv_parse("--boot", value, boot_keys, ARRAY_LEN(boot_keys), b, e))
		return false;
	size_t n = b->order ? strlen(b->order) : 0;
	return (n <= 3 && (!b->order || strspn(b->order, "cdn") == n)) ||
	       error_set(e, "--boot order=%s: up to three of the letters c (disks), d (CDs), n (network), as in cdn", b->order);
}

static bool hop_option(struct hop_config *h, const char *value, struct error *e)
{
	h->every = 10000;
	return kv_parse("--hop", value, hop_keys, ARRAY_LEN(hop_keys), h, e) && (h->to || error_set(e, "--hop: to which engine?"));
}

static bool sandbox_option(u32 *mode, const char *value, struct error *e)
{
	for (u32 k = 0; sandbox_words[k]; k++)
		if (!strcmp(value, sandbox_words[k])) {
			*mode = k;
			return true;
		}
	return error_set(e, "--sandbox %s: one of auto, on, off", value);
}

static bool apply(const struct option_row *o, const char *value, struct vm_config *cfg, struct cli_extra *x, struct error *e)
{
	void *field = (char *)(o->extra ? (void *)x : (void *)cfg) + o->offset;
	switch (o->type) {
	case A_FLAG:
		*(bool *)field = true;
		return true;
	case A_STR:
		free(*(char **)field);
		*(char **)field = strdup(value);
		return true;
	case A_SIZE: /* a bare number is MiB, as people write it */
		if (parse_number(value, field) && *(u64 *)field < 1ull << 40) {
			*(u64 *)field <<= 20;
			return true;
		}
		return parse_size(value, field) || error_set(e, "--%s %s: not a size; use digits and K, M, G or T, as in 512M", o->name, value);
	case A_UINT:
		return parse_number(value, field) || error_set(e, "--%s %s: not a number; use digits, as in 42 or 0x2a", o->name, value);
	case A_FIRMWARE:
		return kv_parse("--firmware", value, firmware_keys, ARRAY_LEN(firmware_keys), field, e);
	case A_BOOT:
		return boot_option(field, value, e);
	case A_KERNEL:
		return kernel_option(cfg, value, e);
	case A_CONSOLE:
		return add_console(cfg, value, e);
	case A_DISK:
		return add_disk(cfg, value, e);
	case A_CD:
		return add_cd(cfg, value, e);
	case A_NET:
		return add_net(cfg, value, e);
	case A_VNC:
		return kv_parse("--vnc", value, vnc_keys, ARRAY_LEN(vnc_keys), cfg, e) &&
		       (cfg->vnc.at || error_set(e, "--vnc: needs a port or the path of a socket"));
	case A_SHARE:
		return add_share(cfg, value, e);
	case A_SANDBOX:
		return sandbox_option(field, value, e);
	case A_HOP:
		return hop_option(field, value, e);
	case A_BALLOON:
		cfg->balloon = true;
		return parse_size(value, &cfg->balloon_bytes) || error_set(e, "--balloon %s: not a size; as in 256M, or 0", value);
	default:
		return add_serial(cfg, value, e);
	}
}

/* ---- items: what was asked for, in order --------------------------------------------------------------- */

struct item { const struct option_row *row; char *value; }; /* value: of flags "on" */
struct items {
	struct item *item;
	size_t n;
	struct vm_config *cfg;
	struct cli_extra *x;
	const bool *given; /* by row: on the command line */
};

static bool add_item(struct items *l, const struct option_row *o, const char *value, struct error *e)
{
	struct item *more = realloc(l->item, (l->n + 1) * sizeof(*more));
	char *copy = strdup(value);

	if (more)
		l->item = more;
	if (!more || !copy) {
		free(copy);
		return error_set(e, "out of memory");
	}
	l->item[l->n++] = (struct item){ o, copy };
	return true;
}

static void free_items(struct items *l)
{
	for (size_t k = 0; k < l->n; k++)
		free(l->item[k].value);
	free(l->item);
}

static bool ends_in(const char *text, const char *end)
{
	size_t n = strlen(text), m = strlen(end);

	return n > m && !strcmp(text + n - m, end);
}

/* The command line. */
static bool read_arguments(int argc, char **argv, struct items *l, bool *given, struct error *e)
{
	for (int k = 0; k < argc; k++) {
		const char *value = argv[k];
		bool bare = argv[k][0] != '-' || !argv[k][1]; /* a disk, or a file of options */
		const struct option_row *o = bare ? row_of(ends_in(argv[k], ".ini") ? "config" : "disk") : find_row(argv[k], &value, e);

		if (!o)
			return false;
		if (o->type != A_FLAG && !value) {
			if (k + 1 == argc)
				return error_set(e, "%s: needs a value: --%s %s", argv[k], o->name, o->arg);
			value = argv[++k];
		}
		if (o->type == A_FLAG && value)
			return error_set(e, "--%s: takes no value", o->name);
		if (!strcmp(o->name, "help")) {
			return l->x->done = help(argv[k + 1], e); /* the last one is NULL */
		}
		if (!strcmp(o->name, "cpu") && !strcmp(value, "help")) {
			cpu_model_help();
			return l->x->done = true;
		}
		given[o - rows] = true;
		if (!add_item(l, o, value ? value : "on", e))
			return false;
	}
	return true;
}

/* ---- --config ---------------------------------------------------------------------------------------------- */

static const struct option_row *row_in_file(const char *name, bool section, struct error *e)
{
	const struct option_row *o = row_of(name);
	const char *names[ARRAY_LEN(rows)];
	size_t n = 0;

	for (size_t k = 0; k < ARRAY_LEN(rows); k++)
		if (!section || rows[k].keys)
			names[n++] = rows[k].name;
	if (o && (!strcmp(name, "config") || !strcmp(name, "help") || !strcmp(name, "print-config"))) {
		error_set(e, "%s: only on the command line", name);
		return NULL;
	}
	if (o && (!section || o->keys))
		return o;
	const char *near = nearest_word(name, names, n);
	if (o)
		error_set(e, "[%s]: has no keys; write %s = %s before the first section, or in [machine]", name, name, o->arg ? o->arg : "on");
	else
		error_set(e, section ? "[%s]: no such option%s%s%s" : "%s: no such option%s%s%s", name,
			  near ? "; did you mean " : "; see ring3 run --help", near ? near : "",
			  near ? "?" : "");
	return NULL;
}

static bool file_section(void *arg, const char *name, struct error *e) { return row_in_file(name, true, e) != NULL; }

/* Into a machine that nobody builds: for the error alone. */
static bool file_key(void *arg, const char *section, const char *item, struct error *e)
{
	const struct option_row *o = row_of(section);
	struct vm_config scratch = { .n_serial = 1, .n_consoles = 1, .n_disks = 1, .n_nets = 1 };
	struct cli_extra x = { 0 };
	char what[40];

	snprintf(what, sizeof(what), "[%s]", section);
	bool ok = kv_parse(what, item, o->keys, o->n_keys, (char *)&scratch + o->offset, e);
	options_free(&scratch, &x);
	return ok;
}

static bool file_option(void *arg, const char *name, const char *value, struct error *e)
{
	struct items *l = arg;
	const struct option_row *o = row_in_file(name, false, e);

	if (!o)
		return false;
	if (l->given[o - rows])
		return true;
	if (o->type == A_FLAG) {
		struct { bool on; } flag = { false };
		const struct kv_key key = { name, KV_BOOL, 0, NULL };
		char item[80];

		snprintf(item, sizeof(item), "%s=%s", name, value);
		if (!kv_parse("[machine]", item, &key, 1, &flag, e))
			return false;
		if (!flag.on)
			return true;
		value = "on";
	}
	return apply(o, value, l->cfg, l->x, e) && add_item(l, o, value, e);
}

static bool read_files(const struct items *line, struct items *all, struct error *e)
{
	const struct config_ops ops = { all, file_section, file_key, file_option };

	for (size_t k = 0; k < line->n; k++)
		if (!strcmp(line->item[k].row->name, "config") && !config_read(line->item[k].value, &ops, e))
			return false;
	return true;
}

static bool print_config(const struct items *l, struct error *e)
{
	for (size_t k = 0; k < l->n; k++) {
		const char *name = l->item[k].row->name;
		if (strcmp(name, "config") && strcmp(name, "print-config") && !config_write(stdout, name, l->item[k].value, e))
			return false;
	}
	return true;
}

/* Files first, then what the command line says; all: what counts of both. */
static bool read_options(int argc, char **argv, struct items *all, struct error *e)
{
	bool given[ARRAY_LEN(rows)] = { false };
	struct items line = { .cfg = all->cfg, .x = all->x };

	all->given = given;
	bool ok = read_arguments(argc, argv, &line, given, e) && (all->x->done || read_files(&line, all, e));
	for (size_t k = 0; ok && !all->x->done && k < line.n; k++)
		ok = apply(line.item[k].row, line.item[k].value, all->cfg, all->x, e) && add_item(all, line.item[k].row, line.item[k].value, e);
	free_items(&line);
	return ok;
}

/* What one option cannot know of the others; and what follows from them. */
static bool check_options(struct vm_config *cfg, struct error *e)
{
	if ((cfg->hash_every || cfg->max_insns) && !cfg->icount)
		return error_set(e, "--hash-every and --max-insns count instructions: they need --icount");
	if (cfg->icount && cfg->cpus != 1)
		return error_set(e, "--icount: deterministic time works with one processor, not with --cpus %llu", (unsigned long long)cfg->cpus);
	if (!cfg->hash_every && (cfg->hash_file || cfg->hash_from || cfg->hash_to))
		return error_set(e, "--hash-file, --hash-from and --hash-to say where to and from where to hash: they need --hash-every N");
	if (cfg->hash_to && cfg->hash_from > cfg->hash_to)
		return error_set(e, "--hash-from %llu: after the last one to hash; at most %llu, which --hash-to says",
				 (unsigned long long)cfg->hash_from, (unsigned long long)cfg->hash_to);
	if (cfg->hop.to && cfg->sandbox != SANDBOX_OFF)
		return error_set(e, "--hop %s: a contained machine cannot make the executable memory of another engine: it needs --sandbox off", cfg->hop.to);
	if (cfg->n_disks && !cfg->kernel.path && !cfg->firmware.path)
		cfg->firmware.path = strdup("bios");
	/* A system from a disk expects a network; with deterministic time nothing comes from outside unasked. */
	if (cfg->n_disks && !cfg->kernel.path && !cfg->n_nets && !cfg->icount)
		cfg->net[cfg->n_nets++].kind = NET_USER;
	if (cfg->kernel.path && cfg->firmware.path)
		return error_set(e, "--kernel %s: not together with --firmware; firmware finds its own kernel", cfg->kernel.path);
	if (cfg->vga && strcmp(cfg->vga, "std") && strcmp(cfg->vga, "none"))
		return error_set(e, "--vga %s: no such card; std or none", cfg->vga);
	if ((cfg->initrd || cfg->append) && !cfg->kernel.path)
		return error_set(e, "--%s: needs --kernel FILE", cfg->initrd ? "initrd" : "append");
	for (int k = 0; k < cfg->n_nets; k++)
		cfg->net[k].sandbox = cfg->sandbox;
	bool taken = false; /* standard input, by a virtio console */
	for (int k = 0; k < cfg->n_consoles; k++)
		taken |= !cfg->console[k].kind || !strcmp(cfg->console[k].kind, "stdio");
	if (!cfg->n_serial)
		cfg->serial[cfg->n_serial++].kind = strdup(taken ? "none" : "stdio");
	return true;
}

bool options_parse(int argc, char **argv, struct vm_config *cfg, struct cli_extra *x, struct error *e)
{
	struct items all = { .cfg = cfg, .x = x };

	*cfg = (struct vm_config){ .mem_bytes = 512ull << 20, .cpus = 1 };
	*x = (struct cli_extra){ 0 };
	bool ok = read_options(argc, argv, &all, e);
	if (ok && !x->done)
		ok = check_options(cfg, e) && (!x->print_config || print_config(&all, e));
	x->done |= x->print_config;
	free_items(&all);
	return ok;
}

void options_free(struct vm_config *cfg, struct cli_extra *x)
{
	char *owned[] = { cfg->name, cfg->kernel.path, cfg->kernel.format, cfg->initrd, cfg->append, cfg->firmware.path, cfg->firmware.vars, cfg->boot.order, cfg->vga, cfg->vnc.at, cfg->vnc.password_file, cfg->engine, cfg->cpu, cfg->hop.to,
			  cfg->debugcon, cfg->hash_file, x->config, x->log, x->log_file };
	for (size_t k = 0; k < ARRAY_LEN(owned); k++)
		free(owned[k]);
	for (int k = 0; k < cfg->n_consoles; k++) {
		free(cfg->console[k].kind);
		free(cfg->console[k].path);
		free(cfg->console[k].name);
	}
	for (int k = 0; k < cfg->n_disks; k++) {
		free(cfg->disk[k].image.file);
		free(cfg->disk[k].serial);
	}
	for (int k = 0; k < cfg->n_nets; k++) {
		struct net_options *o = &cfg->net[k];
		char *texts[] = { o->forward, o->ifname, o->path, o->mac };
		for (size_t j = 0; j < ARRAY_LEN(texts); j++)
			free(texts[j]);
	}
	for (int k = 0; k < cfg->n_shares; k++) {
		free(cfg->share[k].path);
		free(cfg->share[k].tag);
	}
	for (int k = 0; k < cfg->n_serial; k++) {
		free(cfg->serial[k].kind);
		free(cfg->serial[k].path);
	}
}
