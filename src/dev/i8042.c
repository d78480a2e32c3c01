/* i8042: the keyboard controller of the PS/2 (IBM PS/2 Technical Reference, "Keyboard and
 * Auxiliary Device Controller"), a keyboard and a mouse at its ports, and port 0x92.
 *
 *   0x60  data: of the controller, the keyboard or the mouse; written: a command's argument or a
 *         byte for the keyboard
 *   0x64  status; written: a command
 *         status: 0 OBF, 1 IBF (always 0), 2 self-test passed, 3 last write was a command,
 *         4 not locked, 5 OBF holds a byte of the mouse, 6 timeout
 *   0x92  bit 0: a rising edge is INIT to the processor; bit 1: A20
 *
 * A byte's way: a device queues its answers (ps2_put); feed() moves the oldest byte into the
 * empty output buffer, the controller's own answers first, then the keyboard's, then the
 * mouse's, each only while its port is enabled; irq 1 or 12 is high while the buffer holds a
 * byte of that port and the command byte allows it. A read of 0x60 empties the buffer, so the
 * line falls before the next byte makes it rise.
 *
 * Invariants
 *  1. A queue holds at most QUEUE bytes; what does not fit is dropped whole answer by answer.
 *  2. feed() ends each change; nobody else fills the buffer or drives irq 1 and 12.
 *
 * The pulse of the output port's bit 0 (command 0xfe) and port 0x92 reset the processor alone,
 * as on the board: a 286 program comes back from protected mode so. The machine decides what
 * comes at the reset vector. A20 is kept and read back; it masks nothing.
 * The mouse is a PS/2 one until a driver knocks: sample rates 200, 100 and 80 one after the other make it an
 * IntelliMouse (a wheel), 200, 200 and 80 one with five buttons (Microsoft, "Communicating with the
 * IntelliMouse"). What it moves while its queue is full adds up until there is room.
 *
 * Left out: passwords, the controller's RAM beyond its command byte.
 * Threading: machine lock held. */
#define LOG_TOPIC "i8042"
#include "dev/dev.h"

#include <string.h>

#define QUEUE 32u
#define AUX_FAR 10000 /* the most that adds up while nobody reads */

enum { ST_OBF = 0x01, ST_SYS = 0x04, ST_COMMAND = 0x08, ST_UNLOCKED = 0x10, ST_AUX = 0x20 };
enum { CB_KBD_INT = 0x01, CB_AUX_INT = 0x02, CB_SYS = 0x04, CB_KBD_OFF = 0x10, CB_AUX_OFF = 0x20, CB_TRANSLATE = 0x40 };
enum { OUT_NOT_RESET = 0x01, OUT_A20 = 0x02, OUT_KBD_INT = 0x10, OUT_AUX_INT = 0x20, OUT_FIXED = 0xcc };
enum { P92_RESET = 0x01, P92_A20 = 0x02 };
enum { ACK = 0xfa, RESEND = 0xfe, BAT_OK = 0xaa };
enum { KBD_IRQ = 1, AUX_IRQ = 12 };

struct queue { u8 len, byte[QUEUE]; };

struct i8042 {
	struct device d;
	/* the controller */
	u8 command_byte;
	u8 status;           /* ST_SYS, ST_COMMAND */
	u8 pending;          /* command that waits for its argument at 0x60; 0: none */
	u8 obf, obf_aux, data; /* the output buffer: full, with a byte of the mouse, the byte */
	u8 a20, port92;
	struct queue own, own_aux; /* answers of the controller; those that it passes off as the mouse's */
	/* the keyboard */
	struct queue kbd;
	u8 kbd_pending;      /* its command that waits for an argument */
	u8 kbd_scanning, kbd_set, kbd_leds, kbd_rate, kbd_last;
	u8 kbd_break_seen;   /* 0xf0 went through translation: the next byte is a release */
	/* the mouse */
	struct queue aux;
	u8 aux_pending;
	u8 aux_reporting, aux_remote, aux_wrap, aux_scale, aux_resolution, aux_rate, aux_last;
	u8 aux_id;           /* 0: packets of three bytes; 3: and the wheel's; 4: and two more buttons */
	u32 aux_rates;       /* the last three sample rates, the newest in the low byte */
	i32 aux_dx, aux_dy, aux_dz; /* moved since the last packet */
	u8 aux_buttons, aux_told; /* as they are; as the last packet said */
};

/* Scan code set 2 to set 1, as the controller's ROM does it. */
static const u8 set1_of[0x85] = {
	0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59,
	0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b,
	0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d,
	0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f,
	0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61,
	0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76,
	0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f,
	0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,
	0x80, 0x81, 0x82, 0x41, 0x54,
};

/* ---- queues and the output buffer ------------------------------------------------------- */

static bool put(struct queue *q, const u8 *bytes, size_t n)
{
	if (n > QUEUE - q->len)
		return false;
	memcpy(q->byte + q->len, bytes, n);
	q->len += (u8)n;
	return true;
}

#define PUT(q, ...) put(q, (const u8[]){ __VA_ARGS__ }, sizeof((u8[]){ __VA_ARGS__ }))

static u8 take(struct queue *q)
{
	u8 byte = q->byte[0];

	q->len--;
	memmove(q->byte, q->byte + 1, q->len);
	return byte;
}

/* A byte of the keyboard on its way to the buffer. False: swallowed (the release prefix). */
static bool translate(struct i8042 *k, u8 *byte)
{
	u8 b = *byte;

	if (!(k->command_byte & CB_TRANSLATE))
		return true;
	if (b == 0xf0) {
		k->kbd_break_seen = 1;
		return false;
	}
	*byte = b < sizeof(set1_of) ? set1_of[b] : b;
	if (k->kbd_break_seen)
		*byte |= 0x80;
	k->kbd_break_seen = 0;
	return true;
}

static void fill(struct i8042 *k, u8 byte, bool aux)
{
	k->data = byte;
	k->obf = 1;
	k->obf_aux = aux;
}

static void feed(struct i8042 *k)
{
	while (!k->obf) {
		u8 byte;

		if (k->own.len) {
			fill(k, take(&k->own), false);
		} else if (k->own_aux.len) {
			fill(k, take(&k->own_aux), true);
		} else if (k->kbd.len && !(k->command_byte & CB_KBD_OFF)) {
			byte = k->kbd_last = take(&k->kbd);
			if (translate(k, &byte))
				fill(k, byte, false);
		} else if (k->aux.len && !(k->command_byte & CB_AUX_OFF)) {
			byte = k->aux_last = take(&k->aux);
			fill(k, byte, true);
		} else {
			break;
		}
	}
	irq_set(k->d.irqs, KBD_IRQ, k->obf && !k->obf_aux && (k->command_byte & CB_KBD_INT));
	irq_set(k->d.irqs, AUX_IRQ, k->obf && k->obf_aux && (k->command_byte & CB_AUX_INT));
}

/* ---- the keyboard ------------------------------------------------------------------------- */

static void kbd_defaults(struct i8042 *k)
{
	k->kbd_set = 2;
	k->kbd_rate = 0x2b; /* 10.9 a second after 500 ms */
	k->kbd_pending = 0;
}

static void kbd_argument(struct i8042 *k, u8 command, u8 val)
{
	k->kbd_pending = 0;
	switch (command) {
	case 0xed:
		k->kbd_leds = val & 7;
		break;
	case 0xf3:
		k->kbd_rate = val & 0x7f;
		break;
	case 0xf0:
		if (val == 0) {
			PUT(&k->kbd, ACK, k->kbd_set);
			return;
		}
		if (val > 3) {
			PUT(&k->kbd, RESEND);
			return;
		}
		k->kbd_set = val;
		break;
	default: /* 0xfb..0xfd: a list of keys, until the next command */
		k->kbd_pending = command;
		break;
	}
	PUT(&k->kbd, ACK);
}

static void kbd_write(struct i8042 *k, u8 val)
{
	/* Arguments are below 0x80 but for the list of keys; a command always wins. */
	if (k->kbd_pending && val < 0xed) {
		kbd_argument(k, k->kbd_pending, val);
		return;
	}
	k->kbd_pending = 0;
	switch (val) {
	case 0xed: case 0xf0: case 0xf3: case 0xfb: case 0xfc: case 0xfd:
		k->kbd_pending = val;
		PUT(&k->kbd, ACK);
		break;
	case 0xee: /* echo */
		PUT(&k->kbd, 0xee);
		break;
	case 0xf2: /* identify: an MF2 keyboard */
		PUT(&k->kbd, ACK, 0xab, 0x83);
		break;
	case 0xf4: /* enable: what was typed before is forgotten */
		k->kbd.len = 0;
		k->kbd_scanning = 1;
		PUT(&k->kbd, ACK);
		break;
	case 0xf5: case 0xf6: /* defaults, and stop or go on */
		k->kbd.len = 0;
		kbd_defaults(k);
		k->kbd_scanning = val == 0xf6;
		PUT(&k->kbd, ACK);
		break;
	case 0xf7: case 0xf8: case 0xf9: case 0xfa: /* typematic and make/break of all keys of set 3 */
		PUT(&k->kbd, ACK);
		break;
	case 0xfe: /* the last byte again */
		PUT(&k->kbd, k->kbd_last);
		break;
	case 0xff:
		k->kbd.len = 0;
		kbd_defaults(k);
		k->kbd_leds = 0;
		k->kbd_scanning = 1;
		PUT(&k->kbd, ACK, BAT_OK);
		break;
	default:
		PUT(&k->kbd, RESEND);
		break;
	}
}

/* ---- the mouse ------------------------------------------------------------------------------ */

static void aux_forget(struct i8042 *k)
{
	k->aux_dx = k->aux_dy = k->aux_dz = 0;
	k->aux_told = k->aux_buttons;
}

static void aux_defaults(struct i8042 *k)
{
	k->aux_reporting = k->aux_remote = k->aux_wrap = 0;
	k->aux_scale = 1;
	k->aux_resolution = 2; /* 4 counts a millimetre */
	k->aux_rate = 100;
	k->aux_pending = 0;
	aux_forget(k);
}

/* What a packet can say of it; the rest stays for the next. */
static int take_moved(i32 *moved, int most)
{
	int n = MAX(-most, MIN(*moved, most));

	*moved -= n;
	return n;
}

/* Buttons and signs, then the movement, right and up positive, 9 bits each; of a wheel, towards the user. */
static size_t aux_packet(struct i8042 *k, u8 *p)
{
	int dx = take_moved(&k->aux_dx, 255), dy = take_moved(&k->aux_dy, 255);

	p[0] = (u8)(8 | (k->aux_buttons & 7) | (dx < 0 ? 0x10 : 0) | (dy < 0 ? 0x20 : 0));
	p[1] = (u8)dx;
	p[2] = (u8)dy;
	k->aux_told = k->aux_buttons;
	if (k->aux_id == 0)
		return 3;
	int dz = take_moved(&k->aux_dz, 7);
	p[3] = k->aux_id == 3 ? (u8)dz : (u8)((dz & 15) | (k->aux_buttons & 0x18) << 1);
	return 4;
}

static bool aux_listened_to(const struct i8042 *k) { return k->aux_reporting && !k->aux_remote && !k->aux_wrap; }

/* Packets of what there is to say, while there is room for a whole one. */
static void aux_report(struct i8042 *k)
{
	u8 p[4];

	if (!k->aux_id) /* without a wheel nothing of it is told later */
		k->aux_dz = 0;
	while (aux_listened_to(k) && QUEUE - k->aux.len >= sizeof(p) && (k->aux_dx || k->aux_dy || k->aux_dz || k->aux_buttons != k->aux_told))
		put(&k->aux, p, aux_packet(k, p));
}

static void aux_set_rate(struct i8042 *k, u8 rate)
{
	k->aux_rate = rate;
	k->aux_rates = (k->aux_rates << 8 | rate) & 0xffffff;
	if (k->aux_rates == (200 << 16 | 100 << 8 | 80))
		k->aux_id = 3;
	else if (k->aux_rates == (200 << 16 | 200 << 8 | 80))
		k->aux_id = 4;
}

static void aux_status(struct i8042 *k)
{
	PUT(&k->aux, ACK,
	    (u8)((k->aux_remote ? 0x40 : 0) | (k->aux_reporting ? 0x20 : 0) | (k->aux_scale == 2 ? 0x10 : 0)),
	    k->aux_resolution, k->aux_rate);
}

static void aux_write(struct i8042 *k, u8 val)
{
	u8 packet[5];

	if (k->aux_wrap && val != 0xff && val != 0xec) {
		PUT(&k->aux, val);
		return;
	}
	if (k->aux_pending) {
		if (k->aux_pending == 0xf3)
			aux_set_rate(k, val);
		else
			k->aux_resolution = val;
		k->aux_pending = 0;
		PUT(&k->aux, ACK);
		return;
	}
	switch (val) {
	case 0xe6: case 0xe7: k->aux_scale = val == 0xe7 ? 2 : 1; break;
	case 0xe8: case 0xf3: k->aux_pending = val; break;
	case 0xe9: aux_status(k); return;
	case 0xea: k->aux_remote = 0; break;
	case 0xeb: /* a packet, moved or not */
		packet[0] = ACK;
		put(&k->aux, packet, 1 + aux_packet(k, packet + 1));
		return;
	case 0xec: k->aux_wrap = 0; break;
	case 0xee: k->aux_wrap = 1; break;
	case 0xf0: k->aux_remote = 1; break;
	case 0xf2: PUT(&k->aux, ACK, k->aux_id); return;
	case 0xf4: case 0xf5:
		k->aux_reporting = val == 0xf4;
		aux_forget(k); /* what it did before nobody was to hear */
		break;
	case 0xf6: aux_defaults(k); break;
	case 0xfe: PUT(&k->aux, k->aux_last); return;
	case 0xff:
		k->aux.len = k->aux_id = 0;
		aux_defaults(k);
		PUT(&k->aux, ACK, BAT_OK, 0x00);
		return;
	default: PUT(&k->aux, RESEND); return;
	}
	PUT(&k->aux, ACK);
}

/* ---- the controller --------------------------------------------------------------------------- */

static void init_signal(struct i8042 *k)
{
	if (k->d.hooks && k->d.hooks->cpu_init_signal)
		k->d.hooks->cpu_init_signal(k->d.hooks->arg);
}

static u8 output_port(const struct i8042 *k)
{
	return OUT_FIXED | OUT_NOT_RESET | (k->a20 ? OUT_A20 : 0) |
	       (k->obf && !k->obf_aux ? OUT_KBD_INT : 0) | (k->obf && k->obf_aux ? OUT_AUX_INT : 0);
}

static void output_port_write(struct i8042 *k, u8 val)
{
	k->a20 = !!(val & OUT_A20);
	if (!(val & OUT_NOT_RESET))
		init_signal(k);
}

static void command_byte_write(struct i8042 *k, u8 val)
{
	k->command_byte = val & 0x7f;
	k->status = (k->status & (u8)~ST_SYS) | (val & CB_SYS ? ST_SYS : 0);
}

static void command(struct i8042 *k, u8 val)
{
	k->pending = 0;
	switch (val) {
	case 0x20: PUT(&k->own, k->command_byte); break;
	case 0x60: case 0xd1: case 0xd2: case 0xd3: case 0xd4: k->pending = val; break;
	case 0xa4: PUT(&k->own, 0xf1); break; /* no password */
	case 0xa7: k->command_byte |= CB_AUX_OFF; break;
	case 0xa8: k->command_byte &= (u8)~CB_AUX_OFF; break;
	case 0xa9: case 0xab: PUT(&k->own, 0x00); break; /* both lines are good */
	case 0xaa:
		k->own.len = k->own_aux.len = k->obf = 0;
		command_byte_write(k, k->command_byte | CB_SYS);
		PUT(&k->own, 0x55);
		break;
	case 0xad: k->command_byte |= CB_KBD_OFF; break;
	case 0xae: k->command_byte &= (u8)~CB_KBD_OFF; break;
	case 0xc0: PUT(&k->own, 0x80); break; /* input port: not locked */
	case 0xd0: PUT(&k->own, output_port(k)); break;
	case 0xdd: case 0xdf: k->a20 = val == 0xdf; break;
	case 0xe0: PUT(&k->own, 0x00); break; /* test inputs: both clocks low, nothing is sent */
	default:
		if (val >= 0xf0) { /* pulses those of bits 0..3 that are 0 */
			if (!(val & OUT_NOT_RESET))
				init_signal(k);
		} else {
			log_guest("controller command %02x has no meaning", val);
		}
		break;
	}
}

static void data_write(struct i8042 *k, u8 val)
{
	u8 pending = k->pending;

	k->pending = 0;
	switch (pending) {
	case 0x60: command_byte_write(k, val); break;
	case 0xd1: output_port_write(k, val); break;
	case 0xd2: PUT(&k->own, val); break;
	case 0xd3: PUT(&k->own_aux, val); break;
	case 0xd4: /* speaking to a device opens its port */
		k->command_byte &= (u8)~CB_AUX_OFF;
		aux_write(k, val);
		break;
	default:
		k->command_byte &= (u8)~CB_KBD_OFF;
		kbd_write(k, val);
		break;
	}
}

/* off: 0 is port 0x60. */
static u64 data_read(void *dev, u64 off, unsigned size)
{
	struct i8042 *k = dev;
	u8 val = k->data;

	if (k->obf) {
		k->obf = 0;
		irq_set(k->d.irqs, k->obf_aux ? AUX_IRQ : KBD_IRQ, false); /* the falling edge */
		aux_report(k);
		feed(k);
	}
	return val;
}

static void data_port_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct i8042 *k = dev;

	k->status &= (u8)~ST_COMMAND;
	data_write(k, (u8)val);
	feed(k);
}

static u64 status_read(void *dev, u64 off, unsigned size)
{
	struct i8042 *k = dev;

	return k->status | ST_UNLOCKED | (k->obf ? ST_OBF : 0) | (k->obf && k->obf_aux ? ST_AUX : 0);
}

static void command_port_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct i8042 *k = dev;

	k->status |= ST_COMMAND;
	command(k, (u8)val);
	feed(k);
}

static u64 port92_read(void *dev, u64 off, unsigned size)
{
	struct i8042 *k = dev;

	return k->port92 | (k->a20 ? P92_A20 : 0);
}

static void port92_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct i8042 *k = dev;
	bool rises = val & ~k->port92 & P92_RESET;

	k->a20 = !!(val & P92_A20);
	k->port92 = val & P92_RESET;
	if (rises)
		init_signal(k);
}

static const struct mmio_ops data_ops = { data_read, data_port_write, 1, 1 };
static const struct mmio_ops command_ops = { status_read, command_port_write, 1, 1 };
static const struct mmio_ops port92_ops = { port92_read, port92_write, 1, 1 };

bool i8042_key(struct device *d, const u8 *bytes, size_t n)
{
	struct i8042 *k = (struct i8042 *)d;
	bool ok = k->kbd_scanning && put(&k->kbd, bytes, n);

	feed(k);
	return ok;
}

bool i8042_mouse(struct device *d, int dx, int dy, int dz, unsigned buttons)
{
	struct i8042 *k = (struct i8042 *)d;

	if (!k->aux_reporting || k->aux_wrap)
		return false;
	k->aux_dx = MAX(-AUX_FAR, MIN(k->aux_dx + MAX(-AUX_FAR, MIN(dx, AUX_FAR)), AUX_FAR));
	k->aux_dy = MAX(-AUX_FAR, MIN(k->aux_dy + MAX(-AUX_FAR, MIN(dy, AUX_FAR)), AUX_FAR));
	k->aux_dz = MAX(-AUX_FAR, MIN(k->aux_dz + MAX(-AUX_FAR, MIN(dz, AUX_FAR)), AUX_FAR));
	k->aux_buttons = buttons & 0x1f;
	aux_report(k);
	feed(k);
	return true;
}

/* ---- class -------------------------------------------------------------------------------------- */

static bool i8042_init(struct device *d, struct error *e)
{
	return mem_add_ports(d->mem, "i8042 data", 0x60, 1, &data_ops, d, e) &&
	       mem_add_ports(d->mem, "i8042 command", 0x64, 1, &command_ops, d, e) &&
	       mem_add_ports(d->mem, "port 92", 0x92, 1, &port92_ops, d, e);
}

/* As a BIOS leaves it: keyboard with translation, interrupt on, both ports open, A20 open. */
static void i8042_reset(struct device *d)
{
	struct i8042 *k = (struct i8042 *)d;

	k->own.len = k->own_aux.len = k->kbd.len = k->aux.len = 0;
	k->obf = k->obf_aux = k->data = 0;
	k->status = k->pending = k->port92 = 0;
	k->a20 = 1;
	command_byte_write(k, CB_KBD_INT | CB_SYS | CB_TRANSLATE);
	kbd_defaults(k);
	k->kbd_scanning = 1;
	k->kbd_leds = k->kbd_last = k->kbd_break_seen = 0;
	k->aux_id = k->aux_buttons = 0;
	k->aux_rates = 0;
	aux_defaults(k);
	k->aux_last = 0;
	feed(k);
}

/* Values that only a damaged file can hold become ones that the code above can meet. */
static void i8042_loaded(struct device *d)
{
	struct i8042 *k = (struct i8042 *)d;
	struct queue *queues[] = { &k->own, &k->own_aux, &k->kbd, &k->aux };

	for (unsigned i = 0; i < ARRAY_LEN(queues); i++)
		queues[i]->len = (u8)MIN(queues[i]->len, QUEUE);
	k->a20 = k->a20 != 0;
	k->port92 &= P92_RESET;
	if (k->aux_id != 3 && k->aux_id != 4)
		k->aux_id = 0;
	k->aux_dx = MAX(-AUX_FAR, MIN(k->aux_dx, AUX_FAR));
	k->aux_dy = MAX(-AUX_FAR, MIN(k->aux_dy, AUX_FAR));
	k->aux_dz = MAX(-AUX_FAR, MIN(k->aux_dz, AUX_FAR));
	feed(k);
}

static const struct state_field i8042_state[] = {
	STATE(struct i8042, command_byte), STATE(struct i8042, status), STATE(struct i8042, pending),
	STATE(struct i8042, obf), STATE(struct i8042, obf_aux),
	STATE(struct i8042, data), STATE(struct i8042, a20), STATE(struct i8042, port92),
	STATE(struct i8042, own), STATE(struct i8042, own_aux),
	STATE(struct i8042, kbd), STATE(struct i8042, kbd_pending), STATE(struct i8042, kbd_scanning),
	STATE(struct i8042, kbd_set), STATE(struct i8042, kbd_leds), STATE(struct i8042, kbd_rate),
	STATE(struct i8042, kbd_last), STATE(struct i8042, kbd_break_seen),
	STATE(struct i8042, aux), STATE(struct i8042, aux_pending), STATE(struct i8042, aux_reporting),
	STATE(struct i8042, aux_remote), STATE(struct i8042, aux_wrap), STATE(struct i8042, aux_scale),
	STATE(struct i8042, aux_resolution), STATE(struct i8042, aux_rate), STATE(struct i8042, aux_last),
	STATE(struct i8042, aux_id), STATE(struct i8042, aux_rates), STATE(struct i8042, aux_dx), STATE(struct i8042, aux_dy),
	STATE(struct i8042, aux_dz), STATE(struct i8042, aux_buttons), STATE(struct i8042, aux_told),
	STATE_END
};

const struct device_class i8042_class = {
	.name = "i8042",
	.help = "keyboard controller with PS/2 keyboard and mouse, port 0x92",
	.size = sizeof(struct i8042),
	.init = i8042_init,
	.reset = i8042_reset,
	.loaded = i8042_loaded,
	.state = i8042_state,
};
