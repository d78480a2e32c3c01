/* CPUID: what the guest reads. Bits come from the feature table; the rest, leaf by leaf, from
 * the model and from the number of processors: one package, one thread a core, APIC ID =
 * number of the processor. Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E.
 *
 * Left out: performance counters (leaf 0xa is 0), RDT, SGX, thermal sensors. */
#include <string.h>

#include "cpu/features.h"
#include "cpu/svm.h"

enum { EAX, EBX, ECX, EDX };

#define LEAF_HYPERVISOR 0x40000000u
/* The LAPIC timer's clock, which CPUID calls the core crystal clock. */
#define CRYSTAL_KHZ 1000000u

static u32 max_basic(const struct cpu_model *m) { return model_is_amd(m) ? 0x16 : 0x1f; }
/* The vendor's last leaf, or that of a feature of the other vendor's that was asked for. */
static u32 max_extended(const struct cpu_model *m)
{
	u32 max = model_is_amd(m) ? 0x80000021 : 0x80000008;
	for (unsigned f = 0; f < N_FEATURES; f++)
		if (m->has[f])
			max = MAX(max, feature_table[f].leaf);
	return max;
}

static unsigned log2_ceil(unsigned n)
{
	unsigned b = 0;
	while ((1u << b) < n)
		b++;
	return b;
}

static u32 signature(const struct cpu_model *m)
{
	u32 family = m->family > 15 ? 15 : m->family;
	u32 v = m->stepping | (m->model & 15u) << 4 | family << 8 | (u32)(m->model >> 4) << 16;
	return m->family > 15 ? v | (m->family - 15u) << 20 : v;
}

static void feature_bits(const struct cpu_model *m, u32 leaf, u32 sub, u32 r[4])
{
	for (unsigned f = 0; f < N_FEATURES; f++) {
		const struct feature_info *i = &feature_table[f];
		if (i->leaf != leaf || i->sub != sub)
			continue;
		/* LMSLE_UNSUPPORTED is AMD's; where Intel reads, the bit is reserved. */
		bool bit = i->how == INV ? !m->has[f] && model_is_amd(m) : m->has[f];
		r[i->reg] |= (u32)bit << i->bit;
	}
}

static bool apic_enabled(const struct cpu *c)
{
	u64 base;
	if (!c->hooks || !c->hooks->apic_msr_read || !c->hooks->apic_msr_read(c->hooks->arg, 0x1b, &base))
		return true;
	return base & 0x800;
}

/* ---- basic leaves ---------------------------------------------------------------------- */

static void leaf_vendor(const struct cpu_model *m, u32 max, u32 r[4])
{
	r[EAX] = max;
	memcpy(&r[EBX], m->vendor, 4);
	memcpy(&r[EDX], m->vendor + 4, 4);
	memcpy(&r[ECX], m->vendor + 8, 4);
}

static void leaf_1(struct cpu *c, u32 r[4])
{
	const struct cpu_model *m = c->model;
	r[EAX] = signature(m);
	r[EBX] = 8u << 8 | MIN(c->n_cpus, 255u) << 16 | (c->index & 0xff) << 24;
	if (c->n_cpus > 1)
		r[EDX] |= 1u << 28; /* HTT: EBX 23:16 holds */
	if (c->cr4 & CR4_OSXSAVE)
		r[ECX] |= 1u << 27;
	if (!apic_enabled(c))
		r[EDX] &= ~(1u << 9);
	if (!model_is_amd(m) && !(c->msr.misc_enable & 1u << 18))
		r[ECX] &= ~(1u << 3); /* IA32_MISC_ENABLE: MONITOR off */
}

/* Caches: 32 KiB L1 each, 1 MiB L2 a core, 16 MiB L3 for all. */
struct cache { u8 type, level, shared; u16 ways; u32 sets; };
static const struct cache caches[] = {
	{ 1, 1, 0, 8, 64 }, { 2, 1, 0, 8, 64 }, { 3, 2, 0, 16, 1024 }, { 3, 3, 1, 16, 16384 },
};

/* Leaf 4, and 0x8000001d, which leaves the number of cores out. */
static void leaf_cache(const struct cpu *c, u32 sub, u32 r[4], bool cores)
{
	if (sub >= ARRAY_LEN(caches))
		return;
	const struct cache *k = &caches[sub];
	u32 ids = 1u << log2_ceil(c->n_cpus);
	u32 sharing = !k->shared ? 1 : cores ? ids : c->n_cpus;
	r[EAX] = k->type | (u32)k->level << 5 | 1u << 8 | (sharing - 1) << 14 | (cores ? (ids - 1) << 26 : 0);
	r[EBX] = 63 | (k->ways - 1u) << 22;
	r[ECX] = k->sets - 1;
}

/* MONITOR: lines of 64 bytes. No sub-states are counted, so that a system which may choose halts
 * with HLT, which wakes at once; MWAIT here looks at the line now and then. */
static void leaf_5(const struct cpu_model *m, u32 r[4])
{
	if (!m->has[FEAT_MONITOR])
		return;
	r[EAX] = r[EBX] = 64;
	r[ECX] = 3; /* extensions; masked interrupts can break */
}

static void leaf_7(const struct cpu *c, u32 sub, u32 r[4])
{
	if (sub)
		return;
	r[EAX] = model_is_amd(c->model) ? 1 : 2; /* the last sub-leaf */
	if (c->cr4 & CR4_PKE)
		r[ECX] |= 1u << 4;
}

static void leaf_topology(const struct cpu *c, u32 sub, u32 r[4])
{
	r[ECX] = sub & 0xff;
	r[EDX] = c->index;
	if (sub == 0) {
		r[EBX] = 1;
		r[ECX] |= 1u << 8; /* threads of a core */
	} else if (sub == 1) {
		r[EAX] = log2_ceil(c->n_cpus);
		r[EBX] = c->n_cpus;
		r[ECX] |= 2u << 8; /* cores of the package */
	}
}

static u32 xsave_size_standard(const struct cpu_model *m, u64 mask)
{
	u32 size = XSAVE_LEGACY_SIZE;
	for (unsigned k = XC_AVX; k < ARRAY_LEN(m->xsave_size); k++)
		if (mask >> k & 1)
			size = MAX(size, m->xsave_offset[k] + m->xsave_size[k]);
	return size;
}

static u32 xsave_size_compact(const struct cpu_model *m, u64 mask)
{
	u32 size = XSAVE_LEGACY_SIZE;
	for (unsigned k = XC_AVX; k < ARRAY_LEN(m->xsave_size); k++)
		if (mask >> k & 1)
			size += m->xsave_size[k];
	return size;
}

static void leaf_d(const struct cpu *c, u32 sub, u32 r[4])
{
	const struct cpu_model *m = c->model;
	if (!m->has[FEAT_XSAVE])
		return;
	if (sub == 0) {
		r[EAX] = (u32)m->xcr0_mask;
		r[EDX] = (u32)(m->xcr0_mask >> 32);
		r[EBX] = xsave_size_standard(m, c->xcr0);
		r[ECX] = xsave_size_standard(m, m->xcr0_mask);
	} else if (sub == 1) {
		if (m->has[FEAT_XSAVEC])
			r[EBX] = xsave_size_compact(m, c->xcr0 | c->xss);
		r[ECX] = (u32)m->xss_mask;
		r[EDX] = (u32)(m->xss_mask >> 32);
	} else if (sub < ARRAY_LEN(m->xsave_size) && (m->xcr0_mask | m->xss_mask) >> sub & 1) {
		r[EAX] = m->xsave_size[sub];
		r[EBX] = m->xsave_offset[sub];
		r[ECX] = m->xss_mask >> sub & 1;
	}
}

/* The best fraction num/den near tsc_khz / CRYSTAL_KHZ whose product with the crystal's kHz
 * still fits 32 bits, as Linux multiplies it: convergents of the continued fraction. */
static void tsc_ratio(u32 tsc_khz, u32 *num, u32 *den)
{
	u64 a = tsc_khz, b = CRYSTAL_KHZ, n0 = 0, n1 = 1, d0 = 1, d1 = 0;
	while (b) {
		u64 q = a / b, n2 = q * n1 + n0, d2 = q * d1 + d0, t = a % b;
		if (n2 * CRYSTAL_KHZ > 0xffffffff || d2 > 0xffffffff)
			break;
		n0 = n1, n1 = n2, d0 = d1, d1 = d2, a = b, b = t;
	}
	*num = d1 ? (u32)n1 : 0; /* 0: not enumerated */
	*den = d1 ? (u32)d1 : 0;
}

static void leaf_hypervisor(const struct cpu_model *m, u32 leaf, u32 r[4])
{
	if (leaf != LEAF_HYPERVISOR || !m->has[FEAT_HYPERVISOR])
		return;
	r[EAX] = LEAF_HYPERVISOR;
	memcpy(&r[EBX], "ring3 ring3 ", 12);
}

/* ---- extended leaves --------------------------------------------------------------------- */

static void leaf_ext_1(struct cpu *c, u32 r[4])
{
	const struct cpu_model *m = c->model;
	if (!model_is_amd(m)) {
		/* Intel shows SYSCALL to 64-bit code only. */
		if (!cpu_code64(c))
			r[EDX] &= ~(1u << 11);
		if (c->msr.misc_enable & MISC_ENABLE_NO_NX)
			r[EDX] &= ~(1u << 20);
		return;
	}
	u32 one[4] = { 0 };
	feature_bits(m, 1, 0, one);
	r[EAX] = signature(m);
	r[EDX] |= one[EDX] & 0x0183f3ff;
	if (!apic_enabled(c))
		r[EDX] &= ~(1u << 9);
	if (c->n_cpus > 1)
		r[ECX] |= 2; /* CMP_LEGACY: HTT means cores */
}

static void leaf_ext_cache(const struct cpu_model *m, u32 leaf, u32 r[4])
{
	if (leaf == 0x80000005 && model_is_amd(m)) {
		r[EAX] = r[EBX] = 0xff40ff40; /* 64 entries, fully associative */
		r[ECX] = r[EDX] = 32u << 24 | 8u << 16 | 1u << 8 | 64;
	} else if (leaf == 0x80000006) {
		r[ECX] = 1024u << 16 | 8u << 12 | (model_is_amd(m) ? 1u << 8 : 0) | 64;
		if (model_is_amd(m)) {
			r[EAX] = r[EBX] = 0x48006400; /* 1024 entries a level */
			r[EDX] = 32u << 18 | 8u << 12 | 1u << 8 | 64;
		}
	}
}

static void leaf_ext_8(const struct cpu *c, u32 r[4])
{
	const struct cpu_model *m = c->model;
	r[EAX] = m->has[FEAT_LM] ? m->phys_bits | (u32)m->lin_bits << 8 : 36 | 32u << 8;
	if (model_is_amd(m))
		r[ECX] = (c->n_cpus - 1) | log2_ceil(c->n_cpus) << 12;
}

static void leaf_extended(struct cpu *c, u32 leaf, u32 sub, u32 r[4])
{
	const struct cpu_model *m = c->model;
	switch (leaf) {
	case 0x80000000:
		r[EAX] = max_extended(m);
		if (model_is_amd(m))
			leaf_vendor(m, max_extended(m), r);
		break;
	case 0x80000001:
		leaf_ext_1(c, r);
		break;
	case 0x80000002: case 0x80000003: case 0x80000004:
		memcpy(r, m->brand + 16 * (leaf - 0x80000002), 16);
		break;
	case 0x80000005: case 0x80000006:
		leaf_ext_cache(m, leaf, r);
		break;
	case 0x80000008:
		leaf_ext_8(c, r);
		break;
	case 0x8000000a:
		if (m->has[FEAT_SVM]) {
			r[EAX] = 1;         /* revision */
			r[EBX] = SVM_ASIDS; /* with the host's */
		}
		break;
	case 0x8000001d:
		if (m->has[FEAT_TOPOEXT])
			leaf_cache(c, sub, r, false);
		break;
	case 0x8000001e:
		if (m->has[FEAT_TOPOEXT]) {
			r[EAX] = c->index;
			r[EBX] = c->index & 0xff;
		}
		break;
	}
}

static void leaf_basic(struct cpu *c, u32 leaf, u32 sub, u32 r[4])
{
	const struct cpu_model *m = c->model;
	bool intel = !model_is_amd(m);
	switch (leaf) {
	case 0:
		leaf_vendor(m, intel && c->msr.misc_enable & 1u << 22 ? 2 : max_basic(m), r);
		break;
	case 1:
		leaf_1(c, r);
		break;
	case 2:
		if (intel) {
			r[EAX] = 0x00feff01; /* leaf 4 tells the caches, the TLBs are not told */
			r[EBX] = 0xf0;
		}
		break;
	case 4:
		if (intel)
			leaf_cache(c, sub, r, true);
		break;
	case 5:
		leaf_5(m, r);
		break;
	case 7:
		leaf_7(c, sub, r);
		break;
	case 0xb:
		leaf_topology(c, sub, r);
		break;
	case 0xd:
		leaf_d(c, sub, r);
		break;
	case 0x15:
		tsc_ratio(m->tsc_khz, &r[EBX], &r[EAX]);
		r[ECX] = CRYSTAL_KHZ * 1000;
		break;
	case 0x16:
		r[EAX] = r[EBX] = (m->tsc_khz + 500) / 1000;
		r[ECX] = 100;
		break;
	case 0x1f:
		leaf_topology(c, sub, r);
		break;
	}
}

void cpu_cpuid(struct cpu *c, u32 leaf, u32 sub, u32 out[4])
{
	const struct cpu_model *m = c->model;
	memset(out, 0, 4 * sizeof(*out));
	if (leaf >= LEAF_HYPERVISOR && leaf <= LEAF_HYPERVISOR + 0xff) {
		leaf_hypervisor(m, leaf, out);
		return;
	}
	u32 max = leaf < 0x80000000 ? max_basic(m) : max_extended(m);
	if (leaf > max) {
		if (model_is_amd(m))
			return;
		leaf = max_basic(m); /* Intel answers with its last basic leaf */
	}
	bool indexed = leaf == 7 || leaf == 0xd;
	feature_bits(m, leaf, indexed ? sub : 0, out);
	if (leaf < 0x80000000)
		leaf_basic(c, leaf, sub, out);
	else
		leaf_extended(c, leaf, sub, out);
}
