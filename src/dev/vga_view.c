/* What the card shows, followed over time: a display server looks again and again, and most of what it
 * sees is as it was. Of a linear mode's memory only lines that differ from the last look are drawn; of
 * planes and text, 256 KiB, all or nothing.
 *
 * Invariants
 *  1. copy is what was in vram at the last look, wherever that look went; the picture is drawn from
 *     copy and regs alone, so that it is what a card with that memory shows, whatever the guest writes
 *     meanwhile.
 *  2. A line is compared unless none of its pages was written since the last look, where the engine knows that
 *     (mem_written, asked before vram is read: what is written later is told next time).
 *  3. Where a register that the picture follows from has changed, every line counts as changed.
 * Threading: one thread a view. The machine lock is taken to copy the registers; vram stays in place
 * and is read while the guest writes it, as a display's beam would. */
#include "dev/vga_impl.h"

#include <stdlib.h>
#include <string.h>

#define PLANES_SIZE (4 * (PLANE_MASK + 1))

struct vga_view {
	const struct vga *card;
	struct vga regs;           /* as of the last look; its vram is copy */
	u8 *copy;
	struct screen_image image;
	u8 *changed;               /* a byte for each line */
	bool known;                /* what was written since the last look, page by page */
	u64 written[VRAM_SIZE / PAGE_SIZE / 64];
};

/* Not those that only say how the next access works: a drawing guest changes them all the time. */
static bool shows_the_same(const struct vga *a, const struct vga *b)
{
	return !memcmp(a->seq, b->seq, sizeof(a->seq)) && a->gr[GR_MODE] == b->gr[GR_MODE] && a->gr[GR_MISC] == b->gr[GR_MISC] &&
	       !memcmp(a->cr, b->cr, sizeof(a->cr)) && !memcmp(a->ar, b->ar, sizeof(a->ar)) && !((a->ar_index ^ b->ar_index) & ATTR_ON) &&
	       a->dac_mask == b->dac_mask && !memcmp(a->dac, b->dac, sizeof(a->dac)) && !memcmp(a->dispi, b->dispi, sizeof(a->dispi));
}

static bool set_size(struct vga_view *v, u32 width, u32 height)
{
	if (v->image.pixels && v->image.width == width && v->image.height == height)
		return true;
	free(v->image.pixels);
	free(v->changed);
	v->image = (struct screen_image){ width, height, calloc((size_t)width * height, sizeof(*v->image.pixels)) };
	v->changed = calloc(height, 1);
	return v->image.pixels && v->changed;
}

static bool is_linear(const struct vga *v) { return vga_dispi_on(v) && v->dispi[DISPI_BPP] != 4; }

static bool may_have_changed(const struct vga_view *v, u32 at, u32 n)
{
	for (u32 page = at / PAGE_SIZE; v->known && page <= (at + n - 1) / PAGE_SIZE; page++)
		if (v->written[page / 64] >> (page & 63) & 1)
			return true;
	return !v->known;
}

static void look_at_lines(struct vga_view *v, bool all)
{
	u32 bytes = (v->regs.dispi[DISPI_BPP] + 7u) / 8, first = v->regs.dispi[DISPI_X_OFFSET] * bytes, n = v->image.width * bytes;

	for (u32 y = 0; y < v->image.height; y++) {
		u32 at = vga_linear_at(&v->regs, y) + first;
		v->changed[y] = all || (may_have_changed(v, at, n) && memcmp(v->copy + at, v->card->vram + at, n));
		if (!v->changed[y])
			continue;
		memcpy(v->copy + at, v->card->vram + at, n);
		vga_draw_linear(&v->regs, y, v->image.width, v->image.pixels + (size_t)y * v->image.width);
	}
}

static void look_at_planes(struct vga_view *v, bool all)
{
	bool changed = all || memcmp(v->copy, v->card->vram, PLANES_SIZE);

	memset(v->changed, changed, v->image.height);
	if (!changed)
		return;
	memcpy(v->copy, v->card->vram, PLANES_SIZE);
	vga_draw(&v->regs, &v->image);
}

const struct screen_image *vga_view_look(struct vga_view *v, const u8 **changed)
{
	struct vga before = v->regs;
	u32 width, height;

	mem_lock(v->card->d.mem);
	mem_posted(v->card->d.mem);
	v->regs = *v->card;
	memset(v->written, 0, sizeof(v->written));
	v->known = mem_written(v->card->d.mem, v->card->vram, VRAM_SIZE, v->written);
	mem_unlock(v->card->d.mem);
	v->regs.vram = v->copy;
	vga_image_size(&v->regs, &width, &height);
	bool all = !v->image.pixels || width != v->image.width || height != v->image.height || !shows_the_same(&before, &v->regs);
	if (!set_size(v, width, height)) {
		free(v->image.pixels);
		v->image.pixels = NULL; /* the next look begins anew */
		return NULL;
	}
	(is_linear(&v->regs) ? look_at_lines : look_at_planes)(v, all);
	*changed = v->changed;
	return &v->image;
}

struct vga_view *vga_view_new(const struct device *d)
{
	struct vga_view *v = calloc(1, sizeof(*v));

	if (v && !(v->copy = calloc(1, VRAM_SIZE))) {
		free(v);
		return NULL;
	}
	if (v)
		v->card = (const struct vga *)d;
	return v;
}

void vga_view_free(struct vga_view *v)
{
	if (!v)
		return;
	free(v->copy);
	free(v->image.pixels);
	free(v->changed);
	free(v);
}
