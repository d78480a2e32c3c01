#include "virtio_rig.h"

struct rig rig;

struct rig_device { struct virtio v; };

static void answer(struct virtio *v, struct virtq_chain *c)
{
	static u8 fill[65536];

	rig.chains++;
	rig.out_len = c->out_len;
	rig.in_len = c->in_len;
	rig.n_out = c->n_out;
	rig.n_in = c->n_in;
	memset(rig.out, 0, sizeof(rig.out));
	chain_read(c, 0, rig.out, sizeof(rig.out));
	if (rig.keep) {
		rig.kept = *c;
		return;
	}
	memset(fill, RIG_FILL, sizeof(fill));
	virtq_push(v, c, chain_write(c, 0, fill, sizeof(fill)));
}

static void run(struct virtio *v, unsigned q) { virtq_each(v, q, answer); }
static const struct virtio_type type = { .name = "test", .id = VIRTIO_ID_RNG, .class_code = 0x00ff00, .run = run };

static bool rig_init(struct device *d, struct error *e)
{
	struct virtio *v = container_of(d, struct virtio, d);

	v->n_queues = 2;
	v->queue_size[0] = RIG_SIZE;
	v->queue_size[1] = 256;
	return virtio_init(v, &type, e);
}
static void rig_reset(struct device *d) { virtio_reset(container_of(d, struct virtio, d)); }
static void rig_loaded(struct device *d) { virtio_loaded(container_of(d, struct virtio, d)); }
static void rig_destroy(struct device *d) { virtio_destroy(container_of(d, struct virtio, d)); }
static const struct state_field state_list[] = { VIRTIO_STATE(struct rig_device), STATE_END };
static const struct device_class rig_class = {
	.name = "rig", .size = sizeof(struct rig_device), .init = rig_init, .reset = rig_reset, .loaded = rig_loaded,
	.destroy = rig_destroy, .state = state_list,
};

int rig_setup(void **state) { return rig_setup_with(&rig_class); }

int rig_setup_with(const struct device_class *cls)
{
	memset(&rig, 0, sizeof(rig));
	rig.b = board_new(cls);
	rig.v = container_of(rig.b->dev, struct virtio, d);
	rig.bar = ld32(rig.v->pci.config + PCI_BAR0 + 16) & ~15u;
	return 0;
}

int rig_teardown(void **state)
{
	board_free(rig.b);
	return 0;
}

u32 rig_get(unsigned off, unsigned size) { return (u32)mem_phys_read(&rig.b->mem, rig.bar + off, size); }
void rig_set(unsigned off, u32 val, unsigned size) { mem_phys_write(&rig.b->mem, rig.bar + off, val, size); }
u8 rig_status(void) { return (u8)rig_get(R_STATUS, 1); }
u16 rig_read16(u64 gpa)
{
	u16 v = 0;

	mem_read(&rig.b->mem, gpa, &v, 2);
	return v;
}
void rig_write16(u64 gpa, u16 val) { mem_write(&rig.b->mem, gpa, &val, 2); }

void rig_up(u64 features)
{
	static const u8 zeros[0x3000];

	mem_write(&rig.b->mem, RIG_DESC, zeros, sizeof(zeros));
	features |= VIRTIO_F_VERSION_1;
	mem_lock(&rig.b->mem);
	rig.v->pci.config[PCI_COMMAND] |= PCI_CMD_MASTER;
	pci_config_written(&rig.v->pci, PCI_COMMAND, 2);
	mem_unlock(&rig.b->mem);
	rig_set(R_STATUS, 0, 1);
	rig_set(R_STATUS, VS_ACKNOWLEDGE | VS_DRIVER, 1);
	for (u32 k = 0; k < 2; k++) {
		rig_set(R_DRIVER_SELECT, k, 4);
		rig_set(R_DRIVER, (u32)(features >> 32 * k), 4);
	}
	rig_set(R_STATUS, VS_ACKNOWLEDGE | VS_DRIVER | VS_FEATURES_OK, 1);
	assert_int_equal(rig_status(), VS_ACKNOWLEDGE | VS_DRIVER | VS_FEATURES_OK);
	rig_set(R_QUEUE_SELECT, 0, 2);
	rig_set(R_SIZE, RIG_SIZE, 2);
	rig_set(R_DESC, RIG_DESC, 4);
	rig_set(R_AVAIL, RIG_DRIVER, 4);
	rig_set(R_USED, RIG_DEVICE, 4);
	rig_set(R_ENABLE, 1, 2);
	rig_set(R_STATUS, VS_ACKNOWLEDGE | VS_DRIVER | VS_FEATURES_OK | VS_DRIVER_OK, 1);
	board_turn(rig.b);
}

void rig_kick(void)
{
	rig_set(R_NOTIFY, 0, 2);
	board_turn(rig.b);
}

void rig_desc_at(u64 at, u64 addr, u32 len, u16 flags, u16 next)
{
	u8 d[16];

	st64(d, addr);
	st32(d + 8, len);
	st16(d + 12, flags);
	st16(d + 14, next);
	mem_write(&rig.b->mem, at, d, sizeof(d));
}

void rig_desc(unsigned k, u64 addr, u32 len, u16 flags, u16 next) { rig_desc_at(RIG_DESC + 16 * k, addr, len, flags, next); }

void rig_offer(u16 head)
{
	u16 idx = rig_read16(RIG_DRIVER + 2);

	rig_write16(RIG_DRIVER + 4 + 2 * (idx % RIG_SIZE), head);
	rig_write16(RIG_DRIVER + 2, (u16)(idx + 1));
}

u16 rig_used(void) { return rig_read16(RIG_DEVICE + 2); }

u32 rig_used_len(unsigned k)
{
	u32 v = 0;

	mem_read(&rig.b->mem, RIG_DEVICE + 4 + 8 * (k % RIG_SIZE) + 4, &v, 4);
	return v;
}
