/* Which instructions a processor model has: from Zydis's ISA sets (isa/features.def) to the
 * features of cpuid.def. SDM vol. 1 5.1 and the instruction reference's CPUID column. */
#include "cpu/cpu.h"

enum { ALWAYS, NEVER, ONE, BOTH };
static const struct { u8 rule; u16 first, second; } needs[ZYDIS_ISA_SET_MAX_VALUE + 1] = {
#define ISA(set, a, b) [ZYDIS_ISA_SET_##set] = { BOTH, FEAT_##a, FEAT_##b },
#define ISA1(set, a) [ZYDIS_ISA_SET_##set] = { ONE, FEAT_##a, 0 },
#define ISA0(set) [ZYDIS_ISA_SET_##set] = { NEVER, 0, 0 },
#include "isa/features.def"
#undef ISA
#undef ISA1
#undef ISA0
};

bool cpu_offers_isa(const struct cpu *c, ZydisISASet set)
{
	switch (needs[set].rule) {
	case ALWAYS: return true;
	case NEVER: return false;
	case ONE: return c->model->has[needs[set].first];
	default: return c->model->has[needs[set].first] && c->model->has[needs[set].second];
	}
}

unsigned cpu_isa_quirks(const struct cpu *c)
{
	return (c->model->vendor[0] == 'A' ? ISA_AMD : 0u) | (cpu_has(c, FEAT_BMI1) ? 0u : ISA_NO_TZCNT) |
	       (cpu_has(c, FEAT_LZCNT) ? 0u : ISA_NO_LZCNT) | (cpu_has(c, FEAT_WBNOINVD) ? 0u : ISA_NO_WBNOINVD) |
	       (cpu_has(c, FEAT_CR8_LEGACY) ? ISA_LOCK_CR8 : 0u);
}
