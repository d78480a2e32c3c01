/* NVMe admin commands: queues, features, logs. NVM Express 1.4, chapter 5; numbers are those of the commands. */
#include "dev/nvme_impl.h"

#include <string.h>

enum { OP_DELETE_SQ = 0x00, OP_CREATE_SQ = 0x01, OP_GET_LOG = 0x02, OP_DELETE_CQ = 0x04, OP_CREATE_CQ = 0x05, OP_IDENTIFY = 0x06,
       OP_ABORT = 0x08, OP_SET_FEATURES = 0x09, OP_GET_FEATURES = 0x0a, OP_EVENT = 0x0c };
enum { LOG_ERRORS = 1, LOG_SMART = 2, LOG_FIRMWARE = 3 };
enum { QUEUE_CONTIGUOUS = 1, CQ_INTERRUPTS = 2 };
enum { SELECT_CURRENT, SELECT_DEFAULT, SELECT_SAVED, SELECT_CAPABILITIES };
#define SAVE (1u << 31)
#define CAP_CHANGEABLE 4u
#define DEFAULT_TEMPERATURE 343u /* kelvins */
#define IO_QUEUES (NVME_QUEUES - 1)
#define UNITS 1000u             /* of 512 bytes, as log 2 counts */

/* ---- queues --------------------------------------------------------------------------------------- */

/* What both kinds check: identifier, size, place. */
static u16 check_queue(const struct nvme_command *c, bool used)
{
	u32 id = nvme_dword(c, 10) & 0xffff, size = (nvme_dword(c, 10) >> 16) + 1;
	u64 base = ld64(c->entry + 24);

	if (!id || id >= NVME_QUEUES || used)
		return NVME_BAD_QUEUE;
	if (size < 2 || size > NVME_ENTRIES)
		return NVME_BAD_SIZE;
	if (!(nvme_dword(c, 11) & QUEUE_CONTIGUOUS))
		return NVME_BAD_FIELD;
	return !base || base & (NVME_PAGE - 1) ? NVME_BAD_PRP : NVME_OK;
}

static u32 queue_id(const struct nvme_command *c) { return MIN(nvme_dword(c, 10) & 0xffff, NVME_QUEUES); }

static u16 create_cq(struct nvme_command *c)
{
	struct nvme *n = c->n;
	u32 id = queue_id(c), vector = nvme_dword(c, 11) >> 16;
	u16 status = check_queue(c, id < NVME_QUEUES && n->cq[id].base);

	if (status)
		return status;
	if (vector >= NVME_QUEUES || (vector && !pci_msix_on(&n->pci)))
		return NVME_BAD_VECTOR;
	n->cq[id] = (struct nvme_cq){ .base = ld64(c->entry + 24), .size = (u16)((nvme_dword(c, 10) >> 16) + 1), .vector = (u16)vector,
				      .phase = 1, .interrupts = (nvme_dword(c, 11) & CQ_INTERRUPTS) != 0 };
	return NVME_OK;
}

static u16 create_sq(struct nvme_command *c)
{
	struct nvme *n = c->n;
	u32 id = queue_id(c), cq = nvme_dword(c, 11) >> 16;
	u16 status = check_queue(c, id < NVME_QUEUES && n->sq[id].base);

	if (status)
		return status;
	if (!cq || cq >= NVME_QUEUES)
		return NVME_BAD_QUEUE;
	if (!n->cq[cq].base)
		return NVME_BAD_CQ;
	n->sq[id] = (struct nvme_sq){ .base = ld64(c->entry + 24), .size = (u16)((nvme_dword(c, 10) >> 16) + 1), .cq = (u16)cq };
	return NVME_OK;
}

static u16 delete_cq(struct nvme_command *c)
{
	struct nvme *n = c->n;
	u32 id = queue_id(c);

	if (!id || id >= NVME_QUEUES || !n->cq[id].base)
		return NVME_BAD_QUEUE;
	for (unsigned k = 1; k < NVME_QUEUES; k++)
		if (n->sq[k].base && n->sq[k].cq == id)
			return NVME_BAD_DELETION;
	n->cq[id] = (struct nvme_cq){ 0 };
	nvme_update_pin(n);
	return NVME_OK;
}

void nvme_delete_now(struct nvme *n, unsigned sq)
{
	struct nvme_command *c = n->deleting[sq];

	n->deleting[sq] = NULL;
	n->sq[sq] = (struct nvme_sq){ 0 };
	nvme_end(c, NVME_OK);
}

/* Ends when the queue's commands have. */
static void delete_sq(struct nvme_command *c)
{
	struct nvme *n = c->n;
	u32 id = queue_id(c);

	if (!id || id >= NVME_QUEUES || !n->sq[id].base || n->deleting[id]) {
		nvme_end(c, NVME_BAD_QUEUE);
		return;
	}
	n->deleting[id] = c;
	if (!n->busy[id])
		nvme_delete_now(n, id);
}

/* ---- features ---------------------------------------------------------------------------------------- */

static u32 default_of(unsigned feature)
{
	switch (feature) {
	case FEAT_TEMPERATURE: return DEFAULT_TEMPERATURE;
	case FEAT_CACHE: return 1;
	default: return 0;
	}
}

static bool is_feature(u32 f)
{
	return f && f < NVME_FEATURES && f != 3;
}

/* Bits that a driver may set and that are kept; the others have no meaning here. */
static u32 kept_bits(unsigned feature)
{
	static const u32 bits[NVME_FEATURES] = { [FEAT_ARBITRATION] = 0xffffff07, [FEAT_TEMPERATURE] = 0x3fffff, [FEAT_RECOVERY] = 0xffff,
						 [FEAT_CACHE] = 1, [FEAT_COALESCING] = 0xffff, [FEAT_ATOMICITY] = 1, [FEAT_EVENTS] = 0xffff };

	return bits[feature];
}

static u16 set_features(struct nvme_command *c)
{
	struct nvme *n = c->n;
	u32 f = nvme_dword(c, 10) & 0xff, val = nvme_dword(c, 11);

	if (!is_feature(f))
		return NVME_BAD_FIELD;
	if (nvme_dword(c, 10) & SAVE)
		return NVME_NOT_SAVEABLE;
	if (f == FEAT_POWER && (val & 31)) /* one state */
		return NVME_BAD_FIELD;
	if (f == FEAT_QUEUES) {
		if ((val & 0xffff) == 0xffff || val >> 16 == 0xffff)
			return NVME_BAD_FIELD;
		c->result = (IO_QUEUES - 1) << 16 | (IO_QUEUES - 1);
	}
	if (f == FEAT_VECTOR && (val & 0xffff) >= NVME_QUEUES)
		return NVME_BAD_FIELD;
	n->feature[f] = val & kept_bits(f);
	return NVME_OK;
}

static u32 current_of(const struct nvme_command *c, unsigned f)
{
	if (f == FEAT_QUEUES)
		return (IO_QUEUES - 1) << 16 | (IO_QUEUES - 1);
	if (f == FEAT_VECTOR) /* nothing of it is coalesced */
		return (nvme_dword(c, 11) & 0xffff) | 1u << 16;
	return c->n->feature[f];
}

static u16 get_features(struct nvme_command *c)
{
	u32 f = nvme_dword(c, 10) & 0xff, select = nvme_dword(c, 10) >> 8 & 7;

	if (!is_feature(f) || (f == FEAT_VECTOR && (nvme_dword(c, 11) & 0xffff) >= NVME_QUEUES))
		return NVME_BAD_FIELD;
	switch (select) {
	case SELECT_CURRENT: c->result = current_of(c, f); return NVME_OK;
	case SELECT_DEFAULT: case SELECT_SAVED: c->result = f == FEAT_QUEUES || f == FEAT_VECTOR ? current_of(c, f) : default_of(f); return NVME_OK;
	case SELECT_CAPABILITIES: c->result = kept_bits(f) ? CAP_CHANGEABLE : 0; return NVME_OK;
	default: return NVME_BAD_FIELD;
	}
}

/* ---- logs ------------------------------------------------------------------------------------------------ */

static void put_smart(const struct nvme *n, u8 *p)
{
	st16(p + 1, DEFAULT_TEMPERATURE - 35);
	p[3] = 100;                            /* spare */
	p[4] = 10;
	st64(p + 32, (n->read_units + UNITS - 1) / UNITS);
	st64(p + 48, (n->written_units + UNITS - 1) / UNITS);
	st64(p + 64, n->reads);
	st64(p + 80, n->writes);
	st64(p + 160, n->media_errors);
	st64(p + 176, n->errors);
}

static u16 get_log(struct nvme_command *c)
{
	u8 page[512] = { 0 }, answer[NVME_PAGE];
	u32 log = nvme_dword(c, 10) & 0xff, bytes = ((nvme_dword(c, 10) >> 16) + 1) * 4, length = sizeof(page);
	u64 from = ld64(c->entry + 48);

	switch (log) {
	case LOG_ERRORS: memcpy(page, c->n->last_error, 64); length = 64; break;
	case LOG_SMART: put_smart(c->n, page); break;
	case LOG_FIRMWARE: page[0] = 1; memcpy(page + 8, RING3_VERSION "        ", 8); break;
	default: return NVME_BAD_LOG;
	}
	if (nvme_dword(c, 11) & 0xffff || bytes > sizeof(answer) || from >= length || from & 3)
		return NVME_BAD_FIELD;
	memset(answer, 0, sizeof(answer));
	memcpy(answer, page + from, MIN(bytes, length - from));
	return nvme_copy_out(c, answer, bytes);
}

/* ---- the others ------------------------------------------------------------------------------------------- */

static u16 identify(struct nvme_command *c)
{
	u8 page[NVME_PAGE];

	if ((nvme_dword(c, 10) & 0xff) == 0 && nvme_dword(c, 1) != 1)
		return NVME_BAD_NAMESPACE;
	if (!nvme_identify(c->n, (u8)nvme_dword(c, 10), nvme_dword(c, 1), page))
		return NVME_BAD_FIELD;
	return nvme_copy_out(c, page, sizeof(page));
}

/* 0C: waits for something that does not come: nothing of this drive changes by itself. */
static void wait_for_event(struct nvme_command *c)
{
	struct nvme *n = c->n;

	if (n->aers == NVME_AERS) {
		nvme_end(c, NVME_TOO_MANY_AERS);
		return;
	}
	n->aer[n->aers++] = c->id;
	nvme_drop(c);
}

static u16 carry_out(struct nvme_command *c)
{
	switch (c->entry[0]) {
	case OP_CREATE_SQ: return create_sq(c);
	case OP_GET_LOG: return get_log(c);
	case OP_DELETE_CQ: return delete_cq(c);
	case OP_CREATE_CQ: return create_cq(c);
	case OP_IDENTIFY: return identify(c);
	case OP_ABORT: c->result = 1; return NVME_OK; /* 5.1: not aborted: it ends as it would have */
	case OP_SET_FEATURES: return set_features(c);
	case OP_GET_FEATURES: return get_features(c);
	default: return NVME_BAD_OPCODE;
	}
}

void nvme_admin(struct nvme_command *c)
{
	if (c->entry[0] == OP_DELETE_SQ)
		delete_sq(c);
	else if (c->entry[0] == OP_EVENT)
		wait_for_event(c);
	else
		nvme_end(c, carry_out(c));
}
