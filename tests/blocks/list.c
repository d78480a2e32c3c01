/* A program for people: disassembled, with slots and labels. And what tests/diff asks of its host: here it is
 * the processor model's. */
#include <string.h>

#include "blocks.h"

static unsigned bytes_there = 16;
void vector_bytes_set(const struct cpu *c) { bytes_there = vector_bytes(c); }
unsigned host_vector_bytes(void) { return bytes_there; }
unsigned host_vector_regs(void) { return bytes_there == 64 ? 32 : 16; }

void program_list(const struct program *p, const struct finder *f, FILE *out)
{
	u32 off[MAX_SLOTS + 1];
	ZydisFormatter fmt;
	ZydisFormatterInit(&fmt, ZYDIS_FORMATTER_STYLE_INTEL);
	program_offsets(p, off);
	for (unsigned k = 0; k < p->n_slots; k++) {
		ZydisDecodedInstruction zi;
		ZydisDecodedOperand zo[ZYDIS_MAX_OPERAND_COUNT];
		u64 rip = code_base(p->mode, p->run[0].window) + off[k];
		u8 bytes[15];
		char text[128] = "(no instruction)";
		slot_resolve(p, k, off, bytes);
		if (isa_decode(p->mode, f->quirks, bytes, p->slot[k].len, &zi, zo) == ISA_OK)
			ZydisFormatterFormatInstruction(&fmt, &zi, zo, zi.operand_count_visible, text, sizeof(text), rip, NULL);
		fprintf(out, "  %3u%c %llx  %s", k, k == p->entry ? '>' : k == p->resume ? '*' : ' ', (unsigned long long)rip, text);
		if (p->slot[k].fix && p->slot[k].label >= 0)
			fprintf(out, "  ; slot %d", p->slot[k].label);
		fputc('\n', out);
	}
}

void program_mnemonics(const struct program *p, const struct finder *f, char *out, size_t cap)
{
	u32 off[MAX_SLOTS + 1];
	size_t n = 0;
	program_offsets(p, off);
	for (unsigned k = 0; k < p->n_slots && n + 32 < cap; k++) {
		ZydisDecodedInstruction zi;
		ZydisDecodedOperand zo[ZYDIS_MAX_OPERAND_COUNT];
		u8 bytes[15];
		slot_resolve(p, k, off, bytes);
		bool ok = isa_decode(p->mode, f->quirks, bytes, p->slot[k].len, &zi, zo) == ISA_OK;
		n += (size_t)snprintf(out + n, cap - n, "%s ", ok ? ZydisMnemonicGetString(zi.mnemonic) : "?");
	}
}
