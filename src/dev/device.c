/* What all devices share: birth and death, and state in and out.
 *
 * Saved form: for each entry of the class's state list, in any order,
 *   u8 length of the name, the name, u32 size, size bytes of value;
 * integers little-endian. A timer is 8 bytes: its deadline in ns of the machine's clock,
 * all ones when it is not armed. Memory is its pages that hold more than zeros, in ascending order:
 * u32 number, the page.
 *
 * Invariants
 *  1. device_load changes nothing unless the whole buffer is well formed and names each
 *     field of the class exactly once.
 *  2. A timer in the state list is safe to cancel from the moment device_new has made the
 *     device: its heap_pos says "not armed" before init runs.
 *
 * Threading: machine lock held, as for everything of a device. */
#include "dev/dev.h"

#include <stdlib.h>
#include <string.h>

#define TIMER_BYTES 8u
#define PAGE_RECORD (4u + PAGE_SIZE)
#define TIMER_OFF UINT64_MAX

#define DEVICE(part) &part##_class,
const struct device_class *const device_classes[] = {
#include "dev/devices.def"
	NULL,
};
#undef DEVICE

static bool field_is_timer(const struct state_field *f)
{
	return f->size == 0;
}

static u8 *field_memory(const struct device *d, const struct state_field *f)
{
	return *(u8 **)((char *)d + f->offset);
}

static bool is_zero(const u8 *page)
{
	static const u8 zeros[PAGE_SIZE];

	return !memcmp(page, zeros, PAGE_SIZE);
}

/* The next page from at on that holds more than zeros; f->memory: there is none. */
static u32 next_page(const struct device *d, const struct state_field *f, u32 at)
{
	const u8 *memory = field_memory(d, f);

	while (at < f->memory) {
		at += (u32)MIN(mem_hole(d->mem, memory + at), f->memory - at);
		if (at < f->memory && !is_zero(memory + at))
			break;
		at += at < f->memory ? PAGE_SIZE : 0;
	}
	return at;
}

static u32 memory_bytes(const struct device *d, const struct state_field *f)
{
	u32 n = 0;

	for (u32 at = next_page(d, f, 0); at < f->memory; at = next_page(d, f, at + PAGE_SIZE))
		n += PAGE_RECORD;
	return n;
}

static u32 field_bytes(const struct device *d, const struct state_field *f)
{
	return field_is_timer(f) ? TIMER_BYTES : f->memory ? memory_bytes(d, f) : f->size;
}

static struct timer *field_timer(const struct device *d, const struct state_field *f)
{
	return (struct timer *)((char *)d + f->offset);
}

struct device *device_new(const struct device_class *cls, const struct device *links, struct error *e)
{
	struct device *d = calloc(1, cls->size);

	if (!d) {
		error_set(e, "device %s: no memory for its state (%zu bytes)", cls->name, cls->size);
		return NULL;
	}
	if (links)
		*d = *links;
	d->cls = cls;
	for (const struct state_field *f = cls->state; f && f->name; f++)
		if (field_is_timer(f))
			field_timer(d, f)->heap_pos = -1;
	/* An init that fails undoes what it did itself, so destroy is not called for it. */
	if (cls->init && !cls->init(d, e)) {
		error_prefix(e, "device %s", cls->name);
		d->cls = NULL;
		free(d);
		return NULL;
	}
	if (cls->reset)
		cls->reset(d);
	return d;
}

void device_set_timers(struct device *d, struct timer_queue *q)
{
	for (const struct state_field *f = d->cls->state; f && f->name; f++)
		if (field_is_timer(f))
			timer_move(field_timer(d, f), q);
}

void device_free(struct device *d)
{
	if (!d)
		return;
	if (d->cls->destroy)
		d->cls->destroy(d);
	for (const struct state_field *f = d->cls->state; f && f->name; f++)
		if (field_is_timer(f) && timer_armed(field_timer(d, f)))
			timer_cancel(field_timer(d, f));
	free(d);
}

/* bytes: what memory_bytes has found; a guest that writes meanwhile gets no more into it. */
static void save_memory(const struct device *d, const struct state_field *f, u8 *to, u32 bytes)
{
	const u8 *memory = field_memory(d, f);

	for (u32 at = next_page(d, f, 0); at < f->memory && bytes; at = next_page(d, f, at + PAGE_SIZE)) {
		st32(to, at / PAGE_SIZE);
		memcpy(to + 4, memory + at, PAGE_SIZE);
		to += PAGE_RECORD;
		bytes -= PAGE_RECORD;
	}
	memset(to, 0, bytes);
}

size_t device_save(const struct device *d, u8 *buf, size_t cap)
{
	size_t at = 0;

	for (const struct state_field *f = d->cls->state; f && f->name; f++) {
		size_t name_len = strlen(f->name);
		u32 bytes = field_bytes(d, f);

		if (name_len > UINT8_MAX)
			bug("device %s: the name of state field %s is too long", d->cls->name, f->name);
		if (cap - at < 1 + name_len + 4 + (size_t)bytes)
			return 0;
		buf[at++] = (u8)name_len;
		memcpy(buf + at, f->name, name_len);
		at += name_len;
		st32(buf + at, bytes);
		at += 4;
		if (field_is_timer(f)) {
			const struct timer *t = field_timer(d, f);

			st64(buf + at, timer_armed(t) ? t->deadline : TIMER_OFF);
		} else if (f->memory) {
			save_memory(d, f, buf + at, bytes);
		} else {
			memcpy(buf + at, (const char *)d + f->offset, bytes);
		}
		at += bytes;
	}
	return at;
}

struct record { const char *name; size_t name_len; const u8 *value; u32 bytes; };

/* The record at *at, which moves behind it. False at a malformed one. */
static bool record_next(const u8 *buf, size_t len, size_t *at, struct record *r)
{
	size_t left = len - *at;

	r->name_len = buf[*at];
	if (left < 1 + r->name_len + 4)
		return false;
	r->name = (const char *)buf + *at + 1;
	r->bytes = ld32(buf + *at + 1 + r->name_len);
	left -= 1 + r->name_len + 4;
	if (left < r->bytes)
		return false;
	r->value = buf + *at + 1 + r->name_len + 4;
	*at += 1 + r->name_len + 4 + (size_t)r->bytes;
	return true;
}

static bool record_is(const struct record *r, const struct state_field *f)
{
	return strlen(f->name) == r->name_len && !memcmp(f->name, r->name, r->name_len);
}

/* Whole pages of the memory, each once. */
static bool memory_fits(const struct state_field *f, const struct record *r)
{
	u32 next = 0;

	for (u32 at = 0; at < r->bytes; at += PAGE_RECORD) {
		if (r->bytes - at < PAGE_RECORD || ld32(r->value + at) < next || ld32(r->value + at) >= f->memory / PAGE_SIZE)
			return false;
		next = ld32(r->value + at) + 1;
	}
	return true;
}

/* The machine lock is held; engines hear of what was code. */
static void set_page(struct device *d, u8 *at, const u8 *page)
{
	memcpy(at, page, PAGE_SIZE);
	mem_dma_written(d->mem, at, PAGE_SIZE);
}

static void load_memory(struct device *d, const struct state_field *f, const struct record *r)
{
	static const u8 zeros[PAGE_SIZE];
	u8 *memory = field_memory(d, f);

	for (u32 at = next_page(d, f, 0); at < f->memory; at = next_page(d, f, at + PAGE_SIZE))
		set_page(d, memory + at, zeros);
	for (u32 at = 0; at < r->bytes; at += PAGE_RECORD)
		set_page(d, memory + ld32(r->value + at) * PAGE_SIZE, r->value + at + 4);
}

static size_t count_fields(const struct device_class *cls)
{
	size_t n = 0;

	while (cls->state && cls->state[n].name)
		n++;
	return n;
}

/* Which field a record is of; n if of none. Records mostly come in the order of the fields: the search begins at hint. */
static size_t field_of(const struct device_class *cls, size_t n, size_t hint, const struct record *r)
{
	for (size_t k = 0; k < n; k++) {
		size_t at = (hint + k) % n;

		if (record_is(r, &cls->state[at]))
			return at;
	}
	return n;
}

/* Fills of[], a record for each of the n fields, or says what is wrong with the buffer. */
static bool find_records(const struct device *d, const u8 *buf, size_t len, struct record *of, size_t n, struct error *e)
{
	const char *who = d->cls->name;
	struct record r;

	for (size_t at = 0, k = 0; at < len; k++) {
		size_t start = at;

		if (!record_next(buf, len, &at, &r))
			return error_set(e, "state of device %s: cut short at byte %zu of %zu", who, start, len);
		k = field_of(d->cls, n, k, &r);
		if (k == n)
			return error_set(e, "state of device %s: unknown field '%.*s'", who, (int)r.name_len, r.name);
		const struct state_field *f = &d->cls->state[k];
		if (f->memory && !memory_fits(f, &r))
			return error_set(e, "state of device %s: field %s is not pages of %u KiB", who, f->name, f->memory >> 10);
		if (!f->memory && r.bytes != field_bytes(d, f))
			return error_set(e, "state of device %s: field %s has %u bytes, expected %u", who, f->name, r.bytes, field_bytes(d, f));
		if (of[k].name)
			return error_set(e, "state of device %s: field %s is there twice", who, f->name);
		of[k] = r;
	}
	for (size_t k = 0; k < n; k++)
		if (!of[k].name)
			return error_set(e, "state of device %s: field %s is missing", who, d->cls->state[k].name);
	return true;
}

static void load_field(struct device *d, const struct state_field *f, const struct record *r)
{
	if (f->memory) {
		load_memory(d, f, r);
	} else if (!field_is_timer(f)) {
		memcpy((char *)d + f->offset, r->value, r->bytes);
	} else {
		struct timer *t = field_timer(d, f);
		u64 deadline = ld64(r->value);

		if (deadline != TIMER_OFF)
			timer_arm(t, deadline);
		else if (timer_armed(t))
			timer_cancel(t);
	}
}

bool device_load(struct device *d, const u8 *buf, size_t len, struct error *e)
{
	size_t n = count_fields(d->cls);
	struct record *of = calloc(n + 1, sizeof(*of));

	if (!of)
		return error_set(e, "state of device %s: no memory to read it", d->cls->name);
	bool good = find_records(d, buf, len, of, n, e);
	for (size_t k = 0; good && k < n; k++)
		load_field(d, &d->cls->state[k], &of[k]);
	free(of);
	if (good && d->cls->loaded)
		d->cls->loaded(d);
	return good;
}
