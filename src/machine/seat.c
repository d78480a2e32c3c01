/* Who sits before the machine: its screen, keyboard and mouse, for the control socket and for VNC
 * viewers.
 *
 * Keys go to the keyboard one event (down, or up) every EVENT_NS of the machine's time, and wait
 * while it has no room or does not report: a guest that polls slowly loses nothing.
 * Threading: any thread; the machine lock is taken here. */
#define LOG_TOPIC "machine"
#include <stdlib.h>
#include <string.h>

#include "machine/machine_impl.h"

#define EVENT_NS 8000000ull
#define EVENTS 512u

struct key_event { u8 n, bytes[32]; }; /* what the keyboard has room for */
struct seat {
	struct machine *m;
	struct vga_view *view;            /* for VNC */
	struct timer timer;
	struct key_event events[EVENTS];  /* a ring: n from first on */
	unsigned first, n;
};

/* ---- keys ------------------------------------------------------------------------------------ */

static void send_next(void *arg)
{
	struct seat *s = arg;
	const struct key_event *k = &s->events[s->first];

	if (s->n && i8042_key(s->m->ps2, k->bytes, k->n)) {
		s->first = (s->first + 1) % EVENTS;
		s->n--;
	}
	if (s->n)
		timer_arm(&s->timer, clock_ns(&s->m->clock) + EVENT_NS);
}

static void queue(struct seat *s, const u8 *bytes, size_t n)
{
	struct key_event *k = &s->events[(s->first + s->n++) % EVENTS];

	k->n = (u8)n;
	memcpy(k->bytes, bytes, n);
}

static void start(struct seat *s)
{
	if (!timer_armed(&s->timer))
		timer_arm(&s->timer, clock_ns(&s->m->clock) + EVENT_NS);
}

/* Machine lock held. */
static bool queue_key(struct seat *s, const struct key_bytes *k, struct error *e)
{
	if (s->n + 2 > EVENTS)
		return error_set(e, "the guest does not read its keyboard: %u events wait already", s->n);
	if (MAX(k->n_make, k->n_release) > sizeof(s->events[0].bytes))
		return error_set(e, "too many keys at once for a keyboard");
	queue(s, k->make, k->n_make);
	if (k->n_release) /* Pause has none */
		queue(s, k->release, k->n_release);
	start(s);
	return true;
}

bool machine_press(struct machine *m, const char *keys, struct error *e)
{
	struct key_bytes k;

	if (!key_parse(keys, &k, e))
		return false;
	mem_lock(&m->mem);
	bool ok = queue_key(m->seat, &k, e);
	mem_unlock(&m->mem);
	return ok;
}

bool machine_type(struct machine *m, const char *text, struct error *e)
{
	for (; *text; text++) {
		char buf[2];
		const char *key = key_of_char(*text, buf);

		if (!key)
			return error_set(e, "the character %#x: no key of a US keyboard types it", (u8)*text);
		if (!machine_press(m, key, e))
			return false;
	}
	return true;
}

bool machine_mouse(struct machine *m, int dx, int dy, int wheel, unsigned buttons, struct error *e)
{
	mem_lock(&m->mem);
	bool ok = i8042_mouse(m->ps2, dx, dy, wheel, buttons);
	mem_unlock(&m->mem);
	return ok || error_set(e, "the guest does not listen to the mouse now");
}

/* ---- the screen -------------------------------------------------------------------------------- */

char *machine_screen_text(struct machine *m, struct error *e)
{
	struct screen_text t;

	if (!m->vga) {
		error_set(e, "this machine has no screen; --vga std gives it one");
		return NULL;
	}
	mem_lock(&m->mem);
	bool ok = vga_text(m->vga, &t);
	mem_unlock(&m->mem);
	if (!ok) {
		error_set(e, "the screen shows graphics; a screenshot shows them");
		return NULL;
	}
	char *text = screen_text_utf8(&t);
	free(t.cells);
	if (!text)
		error_set(e, "out of memory");
	return text;
}

bool machine_screen_image(struct machine *m, struct screen_image *s, struct error *e)
{
	if (!m->vga)
		return error_set(e, "this machine has no screen; --vga std gives it one");
	mem_lock(&m->mem);
	bool ok = vga_image(m->vga, s);
	mem_unlock(&m->mem);
	return ok || error_set(e, "out of memory for a picture of the screen");
}

/* ---- VNC ------------------------------------------------------------------------------------------ */

static const struct screen_image *viewer_look(void *arg, const u8 **changed)
{
	return vga_view_look(((struct machine *)arg)->seat->view, changed);
}

/* A guest that does not read its keyboard loses keys once EVENTS wait; releases find room longer, so that
 * none stays down. */
static void viewer_key(void *arg, u16 code, bool down)
{
	struct machine *m = arg;
	u8 bytes[KEY_CODE_BYTES];
	size_t n = key_code_bytes(code, down, bytes);

	mem_lock(&m->mem);
	if (n && m->seat->n < EVENTS - (down ? 64 : 0)) {
		queue(m->seat, bytes, n);
		start(m->seat);
	}
	mem_unlock(&m->mem);
}

static void viewer_pointer(void *arg, int dx, int dy, int wheel, unsigned buttons)
{
	struct error e; /* nobody to tell that the guest has no mouse driver */

	machine_mouse(arg, dx, -dy, wheel, buttons, &e);
}

bool seat_open_vnc(struct machine *m, struct error *e)
{
	const struct vnc_seat seat = { m, viewer_look, viewer_key, viewer_pointer };

	if (!m->cfg->vnc.at)
		return true;
	if (!m->vga)
		return error_set(e, "--vnc %s: there is nothing to see without a display card: not with --vga none", m->cfg->vnc.at);
	if (!(m->seat->view = vga_view_new(m->vga)))
		return error_set(e, "--vnc: out of memory");
	m->vnc = vnc_open(&m->cfg->vnc, m->cfg->name ? m->cfg->name : "ring3", m->cfg->dry_run, m->loop, &seat, e);
	return m->vnc || error_prefix(e, "--vnc");
}

void seat_close_vnc(struct machine *m)
{
	vnc_close(m->vnc);
	m->vnc = NULL;
	if (m->seat)
		vga_view_free(m->seat->view);
}

const char *machine_vnc_text(const struct machine *m) { return m->vnc ? vnc_describe(m->vnc) : NULL; }

/* ---- life ---------------------------------------------------------------------------------------- */

bool seat_new(struct machine *m, struct error *e)
{
	struct seat *s = calloc(1, sizeof(*s));

	if (!s)
		return error_set(e, "out of memory");
	s->m = m;
	timer_init(&s->timer, &m->clock, send_next, s);
	m->seat = s;
	return true;
}

/* Keys that were pressed before a reset are not the next system's. */
void seat_reset(struct machine *m)
{
	if (timer_armed(&m->seat->timer))
		timer_cancel(&m->seat->timer);
	m->seat->n = 0;
}

void seat_free(struct machine *m)
{
	if (m->seat)
		seat_reset(m);
	free(m->seat);
}
