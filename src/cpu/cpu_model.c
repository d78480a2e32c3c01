/* What the guest's processor is: vendor, family, the features it has. Made once from --cpu,
 * never changed after, shared by all processors of a machine.
 *
 * Invariants
 *  1. has[f] only if ring3 can do f here: what the table says EMU, or HOST and the host has it
 *     (and its operating system keeps the registers that it needs).
 *  2. has[f] only if all that f requires is there too (requires[] below).
 *  3. A spec is read from left to right: "-f" also drops what requires f, "+f" also adds what f
 *     requires. So the same spec on two hosts with the same features gives the same model.
 * Sources: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E. */
#include <cpuid.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/features.h"

const struct feature_info feature_table[N_FEATURES] = {
#define CPUID_FEATURE(name, str, leaf, sub, reg, bit, how) { str, leaf, sub, reg, bit, how },
#include "cpu/cpuid.def"
#undef CPUID_FEATURE
};

/* f works only with needs. */
static const struct { u16 f, needs; } requires[] = {
#define R(f, needs) { FEAT_##f, FEAT_##needs }
	R(VME, FPU), R(MMX, FPU), R(FXSR, FPU), R(PSE36, PSE), R(MCE, MSR), R(MCA, MCE), R(MTRR, MSR),
	R(SEP, MSR), R(SYSCALL, MSR), R(PAT, MSR), R(APIC, MSR), R(X2APIC, APIC), R(ARAT, APIC),
	R(TSC_DEADLINE, APIC), R(TSC_DEADLINE, TSC), R(TSC_ADJUST, TSC), R(RDTSCP, TSC), R(INVTSC, TSC),
	R(PCID, PAE), R(NX, PAE), R(LM, PAE), R(LM, MSR), R(LM, PSE), R(LM, SYSCALL), R(LM, NX),
	R(PCID, LM), R(LA57, LM), R(PDPE1GB, LM), R(LAHF_LM, LM), R(FSGSBASE, LM), R(LMSLE, LM),
	R(PKU, LM), R(PKU, XSAVE), R(PKS, LM),
	R(3DNOW, MMX), R(3DNOWEXT, 3DNOW), R(MMXEXT, MMX), R(FXSR_OPT, FXSR),
	R(SSE, FXSR), R(SSE, MMX), R(SSE2, SSE), R(SSE3, SSE2), R(SSSE3, SSE3), R(SSE4_1, SSSE3),
	R(SSE4_2, SSE4_1), R(SSE4A, SSE3), R(PCLMULQDQ, SSE2), R(AES, SSE2), R(SHA, SSE2), R(GFNI, SSE2),
	R(XSAVE, FXSR), R(XSAVEOPT, XSAVE), R(XSAVEC, XSAVE), R(XGETBV1, XSAVE), R(XSAVES, XSAVEC),
	R(AVX, XSAVE), R(AVX, SSE4_2), R(AVX2, AVX), R(FMA, AVX), R(F16C, AVX), R(FMA4, AVX), R(XOP, AVX),
	R(VAES, AVX), R(VAES, AES), R(VPCLMULQDQ, AVX), R(VPCLMULQDQ, PCLMULQDQ), R(AVX_VNNI, AVX2),
	R(AVX512F, AVX2), R(AVX512F, FMA), R(AVX512F, F16C), R(AVX512DQ, AVX512F), R(AVX512IFMA, AVX512F),
	R(AVX512CD, AVX512F), R(AVX512BW, AVX512F), R(AVX512VL, AVX512F), R(AVX512VBMI, AVX512BW),
	R(AVX512VBMI2, AVX512BW), R(AVX512VNNI, AVX512F), R(AVX512BITALG, AVX512BW),
	R(AVX512VPOPCNTDQ, AVX512F), R(AVX512VP2INTERSECT, AVX512F), R(AVX512FP16, AVX512BW),
	R(AVX512BF16, AVX512BW),
	R(INTEL_STIBP, SPEC_CTRL), R(SPEC_CTRL_SSBD, SPEC_CTRL), R(BHI_CTRL, SPEC_CTRL), R(INVPCID, PAE), R(MWAITX, MONITOR),
	R(VMX, LM), R(SVM, LM), R(SKINIT, SVM), R(NPT, SVM), R(LBRV, SVM), R(SVML, SVM), R(NRIPS, SVM), R(TSCRATEMSR, SVM), R(VMCBCLEAN, SVM),
	R(FLUSHBYASID, SVM), R(DECODEASSISTS, SVM), R(PAUSEFILTER, SVM), R(PFTHRESHOLD, PAUSEFILTER), R(V_VMSAVE_VMLOAD, NPT),
	R(VGIF, SVM),
#undef R
};

/* Bits that the other vendor's processors never have: off unless asked for by name. */
static const u16 intel_only[] = {
	FEAT_SPEC_CTRL, FEAT_INTEL_STIBP, FEAT_SPEC_CTRL_SSBD, FEAT_FLUSH_L1D, FEAT_ARCH_CAPABILITIES,
	FEAT_MD_CLEAR, FEAT_SERIALIZE, FEAT_SS, FEAT_BHI_CTRL, FEAT_MCDT_NO, FEAT_VMX, FEAT_PKS,
};
static const u16 amd_only[] = {
	FEAT_CR8_LEGACY, FEAT_SSE4A, FEAT_XOP, FEAT_FMA4, FEAT_TBM, FEAT_TOPOEXT, FEAT_MWAITX, FEAT_MMXEXT,
	FEAT_FXSR_OPT, FEAT_3DNOW, FEAT_3DNOWEXT, FEAT_CLZERO, FEAT_XSAVEERPTR, FEAT_IBPB, FEAT_STIBP,
	FEAT_LMSLE, FEAT_SSBD, FEAT_SSB_NO, FEAT_BTC_NO, FEAT_LFENCE_RDTSC, FEAT_NULL_SEL_CLR_BASE,
	FEAT_AUTO_IBRS, FEAT_SRSO_NO, FEAT_TSA_SQ_NO, FEAT_TSA_L1_NO, FEAT_SVM, FEAT_SKINIT, FEAT_NPT, FEAT_LBRV, FEAT_SVML,
	FEAT_NRIPS, FEAT_TSCRATEMSR, FEAT_VMCBCLEAN, FEAT_FLUSHBYASID, FEAT_DECODEASSISTS, FEAT_PAUSEFILTER,
	FEAT_PFTHRESHOLD, FEAT_V_VMSAVE_VMLOAD, FEAT_VGIF,
};
/* "+svm" brings its parts; "-npt" and the like after it take one away. */
static const u16 of_svm[] = {
	FEAT_SKINIT, FEAT_NPT, FEAT_LBRV, FEAT_SVML, FEAT_NRIPS, FEAT_TSCRATEMSR, FEAT_VMCBCLEAN, FEAT_FLUSHBYASID,
	FEAT_DECODEASSISTS, FEAT_PAUSEFILTER, FEAT_PFTHRESHOLD, FEAT_V_VMSAVE_VMLOAD, FEAT_VGIF,
};

/* The levels of the x86-64 psABI; each adds to the one before. */
static const u16 level1[] = {
	FEAT_FPU, FEAT_VME, FEAT_DE, FEAT_PSE, FEAT_TSC, FEAT_MSR, FEAT_PAE, FEAT_MCE, FEAT_CX8, FEAT_APIC,
	FEAT_SEP, FEAT_MTRR, FEAT_PGE, FEAT_MCA, FEAT_CMOV, FEAT_PAT, FEAT_PSE36, FEAT_CLFLUSH, FEAT_MMX,
	FEAT_FXSR, FEAT_SSE, FEAT_SSE2, FEAT_SYSCALL, FEAT_NX, FEAT_LM, FEAT_HYPERVISOR,
};
static const u16 level2[] = {
	FEAT_CX16, FEAT_LAHF_LM, FEAT_POPCNT, FEAT_SSE3, FEAT_SSSE3, FEAT_SSE4_1, FEAT_SSE4_2,
};
static const u16 level3[] = {
	FEAT_XSAVE, FEAT_AVX, FEAT_AVX2, FEAT_BMI1, FEAT_BMI2, FEAT_F16C, FEAT_FMA, FEAT_LZCNT, FEAT_MOVBE,
};
static const u16 level4[] = {
	FEAT_AVX512F, FEAT_AVX512BW, FEAT_AVX512CD, FEAT_AVX512DQ, FEAT_AVX512VL,
};
#define LIST(a) { a, ARRAY_LEN(a) }
static const struct { const u16 *list; size_t n; } levels[] = {
	LIST(level1), LIST(level2), LIST(level3), LIST(level4),
};

static const struct { const char *name; unsigned level; const char *help; } models[] = {
	{ "max", 0, "everything that ring3 can do on this host (the default)" },
	{ "host", 0, "as max, with the host's family, model, stepping and name" },
	{ "base", 1, "x86-64-v1: the first 64-bit processors" },
	{ "x86-64-v2", 2, "base and SSE4.2, POPCNT, CMPXCHG16B" },
	{ "x86-64-v3", 3, "x86-64-v2 and AVX2, BMI, FMA" },
	{ "x86-64-v4", 4, "x86-64-v3 and AVX-512 F, BW, CD, DQ, VL" },
};

/* ---- what the host has ------------------------------------------------------------------- */

struct host { bool has[N_FEATURES]; char vendor[13]; char brand[49]; u32 signature; };

static u64 host_xcr0(void)
{
	u32 a, b, ecx, d;
	__cpuid(1, a, b, ecx, d);
	if (!(ecx & (1u << 27)))
		return 3;
	u32 lo, hi;
	__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	return (u64)hi << 32 | lo;
}

static void host_names(struct host *h)
{
	u32 r[4];
	__cpuid(0, r[0], r[1], r[2], r[3]);
	memcpy(h->vendor, &r[1], 4);
	memcpy(h->vendor + 4, &r[3], 4);
	memcpy(h->vendor + 8, &r[2], 4);
	__cpuid(1, h->signature, r[1], r[2], r[3]);
	for (u32 k = 0; k < 3 && (u32)__get_cpuid_max(0x80000000, NULL) >= 0x80000004; k++) {
		__cpuid(0x80000002 + k, r[0], r[1], r[2], r[3]);
		memcpy(h->brand + 16 * k, r, 16);
	}
}

static void host_read(struct host *h)
{
	memset(h, 0, sizeof(*h));
	host_names(h);
	u64 xcr0 = host_xcr0();
	for (unsigned f = 0; f < N_FEATURES; f++) {
		const struct feature_info *i = &feature_table[f];
		u32 r[4];
		if ((u32)__get_cpuid_max(i->leaf & 0x80000000, NULL) < i->leaf)
			continue;
		__cpuid_count(i->leaf, i->sub, r[0], r[1], r[2], r[3]);
		if (i->leaf == 7 && i->sub) {
			u32 max, b, c, d;
			__cpuid_count(7, 0, max, b, c, d);
			if (max < i->sub)
				continue;
		}
		h->has[f] = r[i->reg] >> i->bit & 1;
	}
	if ((xcr0 & 6) != 6)
		h->has[FEAT_AVX] = false;
	if ((xcr0 & 0xe6) != 0xe6)
		h->has[FEAT_AVX512F] = false;
}

static bool offered(const struct host *h, unsigned f)
{
	switch (feature_table[f].how) {
	case EMU: case INV: return true;
	case HOST: return h->has[f];
	default: return false;
	}
}

/* ---- setting bits ------------------------------------------------------------------------ */

static void drop_with_dependents(struct cpu_model *m, unsigned f)
{
	m->has[f] = false;
	for (unsigned k = 0; k < ARRAY_LEN(requires); k++)
		if (requires[k].needs == f && m->has[requires[k].f])
			drop_with_dependents(m, requires[k].f);
}

static bool add_with_needs(struct cpu_model *m, const struct host *h, unsigned f, const char *asked,
			   struct error *e)
{
	if (!offered(h, f))
		return error_set(e, "--cpu: %s%s%s: %s", asked,
				 strcmp(asked, feature_table[f].name) ? " needs " : "",
				 strcmp(asked, feature_table[f].name) ? feature_table[f].name : "",
				 feature_table[f].how == HOST ? "the host's CPU does not have it, and it would run there"
							      : "ring3 knows this feature but cannot do it yet");
	m->has[f] = m->asked[f] = true;
	for (unsigned k = 0; k < ARRAY_LEN(requires); k++)
		if (requires[k].f == f && !m->has[requires[k].needs] &&
		    !add_with_needs(m, h, requires[k].needs, asked, e))
			return false;
	return true;
}

/* Drops what lacks a requirement that the host cannot meet. */
static void drop_unmet(struct cpu_model *m)
{
	for (unsigned k = 0; k < ARRAY_LEN(requires); k++)
		if (m->has[requires[k].f] && !m->has[requires[k].needs])
			drop_with_dependents(m, requires[k].f);
}

static void start_max(struct cpu_model *m, const struct host *h)
{
	for (unsigned f = 0; f < N_FEATURES; f++)
		m->has[f] = offered(h, f);
	const u16 *other = model_is_amd(m) ? intel_only : amd_only;
	size_t n = model_is_amd(m) ? ARRAY_LEN(intel_only) : ARRAY_LEN(amd_only);
	for (size_t k = 0; k < n; k++)
		m->has[other[k]] = false;
	drop_unmet(m);
}

static bool start_level(struct cpu_model *m, const struct host *h, unsigned level, const char *name,
			struct error *e)
{
	for (unsigned l = 0; l < level; l++)
		for (size_t k = 0; k < levels[l].n; k++)
			if (!add_with_needs(m, h, levels[l].list[k], feature_table[levels[l].list[k]].name, e))
				return error_prefix(e, "model %s", name);
	return true;
}

/* ---- the text ---------------------------------------------------------------------------- */

/* "SSE4.1", "sse4-1" and "sse4_1" are one name. */
static bool same_name(const char *name, const char *text)
{
	for (; *text; name++, text++) {
		char t = *text == '.' || *text == '-' ? '_' : *text >= 'A' && *text <= 'Z' ? (char)(*text + 32) : *text;
		if (*name != t)
			return false;
	}
	return !*name;
}

static int feature_find(const char *text)
{
	for (unsigned f = 0; f < N_FEATURES; f++)
		if (same_name(feature_table[f].name, text))
			return (int)f;
	return -1;
}

static bool unknown_feature(const char *name, struct error *e)
{
	const char *names[N_FEATURES + ARRAY_LEN(models)];
	unsigned n = 0;
	for (unsigned f = 0; f < N_FEATURES; f++)
		names[n++] = feature_table[f].name;
	for (unsigned k = 0; k < ARRAY_LEN(models); k++)
		names[n++] = models[k].name;
	const char *near = nearest_word(name, names, n);
	return error_set(e, "--cpu: %s: no such feature or model%s%s%s", name, near ? "; did you mean " : "",
			 near ? near : "", near ? "?" : " (--help cpu lists them)");
}

static bool set_vendor(struct cpu_model *m, const char *v, struct error *e)
{
	if (!strcmp(v, "intel"))
		strcpy(m->vendor, "GenuineIntel");
	else if (!strcmp(v, "amd"))
		strcpy(m->vendor, "AuthenticAMD");
	else
		return error_set(e, "--cpu: vendor=%s: not a vendor that ring3 knows; intel or amd", v);
	return true;
}

static bool apply_item(struct cpu_model *m, const struct host *h, char *item, struct error *e)
{
	bool on = true;
	char *eq = strchr(item, '=');
	if (*item == '+' || *item == '-') {
		on = *item++ == '+';
		if (eq)
			return error_set(e, "--cpu: %s: either +feature, -feature or feature=on", item);
	} else if (eq) {
		*eq++ = 0;
		if (!strcmp(item, "vendor"))
			return true; /* read first, by find_vendor */
		if (strcmp(eq, "on") && strcmp(eq, "off"))
			return error_set(e, "--cpu: %s=%s: on or off", item, eq);
		on = !strcmp(eq, "on");
	}
	int f = feature_find(item);
	if (f < 0)
		return unknown_feature(item, e);
	for (unsigned k = 0; on && f == FEAT_SVM && k < ARRAY_LEN(of_svm); k++)
		m->has[of_svm[k]] = true;
	if (on)
		return add_with_needs(m, h, (unsigned)f, feature_table[f].name, e);
	drop_with_dependents(m, (unsigned)f);
	return true;
}

/* The vendor decides what a model starts with, so it is looked for before all else. */
static bool find_vendor(struct cpu_model *m, const struct host *h, const char *spec, struct error *e)
{
	char v[16] = "";
	const char *at = spec;
	set_vendor(m, strcmp(h->vendor, "AuthenticAMD") && strcmp(h->vendor, "HygonGenuine") ? "intel" : "amd", e);
	while ((at = strstr(at, "vendor=")) != NULL) {
		if (at == spec || at[-1] == ',') {
			snprintf(v, sizeof(v), "%.*s", (int)strcspn(at + 7, ","), at + 7);
			if (!set_vendor(m, v, e))
				return false;
		}
		at += 7;
	}
	return true;
}

/* ---- what follows from vendor and features -------------------------------------------------- */

static void set_identity(struct cpu_model *m)
{
	/* Models on which Linux takes no path for old mistakes: Sapphire Rapids, Milan. */
	m->family = model_is_amd(m) ? 0x19 : 6;
	m->model = model_is_amd(m) ? 0x01 : 0x8f;
	m->stepping = model_is_amd(m) ? 1 : 8;
	snprintf(m->brand, sizeof(m->brand), "ring3 virtual CPU (%s)", model_is_amd(m) ? "AMD" : "Intel");
}

static void set_host_identity(struct cpu_model *m, const struct host *h)
{
	u32 s = h->signature, family = s >> 8 & 15, model = s >> 4 & 15;
	if (family == 15 || family == 6)
		model |= (s >> 16 & 15) << 4;
	if (family == 15)
		family += s >> 20 & 0xff;
	m->family = (u8)family;
	m->model = (u8)model;
	m->stepping = s & 15;
	memcpy(m->brand, h->brand, sizeof(m->brand));
}

static void set_xsave(struct cpu_model *m)
{
	static const struct { u8 comp; u16 feature, offset, size; } layout[] = {
		{ XC_AVX, FEAT_AVX, 576, 256 },        { XC_OPMASK, FEAT_AVX512F, 1088, 64 },
		{ XC_ZMM_HI256, FEAT_AVX512F, 1152, 512 }, { XC_HI16_ZMM, FEAT_AVX512F, 1664, 1024 },
		{ XC_PKRU, FEAT_PKU, 2688, 8 },
	};
	m->xcr0_mask = m->xss_mask = 0;
	memset(m->xsave_offset, 0, sizeof(m->xsave_offset));
	memset(m->xsave_size, 0, sizeof(m->xsave_size));
	if (!m->has[FEAT_XSAVE])
		return;
	m->xcr0_mask = XC_BIT(XC_X87) | (m->has[FEAT_SSE] ? XC_BIT(XC_SSE) : 0);
	for (unsigned k = 0; k < ARRAY_LEN(layout); k++) {
		if (!m->has[layout[k].feature])
			continue;
		m->xcr0_mask |= XC_BIT(layout[k].comp);
		m->xsave_offset[layout[k].comp] = layout[k].offset;
		m->xsave_size[layout[k].comp] = layout[k].size;
	}
}

static void finish(struct cpu_model *m, const struct clock *clock)
{
	m->phys_bits = 46;
	m->lin_bits = m->has[FEAT_LA57] ? 57 : 48;
	m->tsc_khz = clock && clock->tsc_hz ? (u32)(clock->tsc_hz / 1000) : 1000000;
	set_xsave(m);
}

/* The model that the first item of spec names; *rest: the items after it. */
static unsigned find_model(const char *spec, const char **rest)
{
	size_t n = strcspn(spec, ",");
	*rest = spec;
	for (unsigned k = 0; k < ARRAY_LEN(models); k++)
		if (strlen(models[k].name) == n && !strncmp(spec, models[k].name, n)) {
			*rest = spec + n;
			return k;
		}
	return 0;
}

static bool apply_items(struct cpu_model *m, const struct host *h, const char *items, struct error *e)
{
	char *text = strdup(items), *save = NULL;
	if (!text)
		return error_set(e, "--cpu: out of memory");
	bool ok = true;
	for (char *item = strtok_r(text, ",", &save); ok && item; item = strtok_r(NULL, ",", &save))
		ok = apply_item(m, h, item, e);
	free(text);
	return ok;
}

bool cpu_model_parse(struct cpu_model *m, const char *spec, const struct clock *clock, struct error *e)
{
	struct host h;
	const char *items;
	host_read(&h);
	memset(m, 0, sizeof(*m));
	if (!find_vendor(m, &h, spec ? spec : "", e))
		return false;
	set_identity(m);
	unsigned k = find_model(spec ? spec : "", &items);
	if (!strcmp(models[k].name, "host") && !strcmp(m->vendor, h.vendor))
		set_host_identity(m, &h);
	if (!models[k].level)
		start_max(m, &h);
	else if (!start_level(m, &h, models[k].level, models[k].name, e))
		return false;
	if (clock && clock->icount_mode) { /* two runs are alike: no chance, unless asked for */
		drop_with_dependents(m, FEAT_RDRAND);
		drop_with_dependents(m, FEAT_RDSEED);
	}
	if (!apply_items(m, &h, items, e))
		return false;
	finish(m, clock);
	return true;
}

/* INV is left out: what its bit denies is seldom done by others, and they do not say so. */
static bool can_feature(const struct feature_info *i, cpu_can_fn *can, void *arg)
{
	return i->how != INV && can(arg, i->leaf, i->sub, i->reg, i->bit);
}

unsigned cpu_model_limit(struct cpu_model *m, cpu_can_fn *can, void *arg, char *names, size_t cap, const char **asked)
{
	const struct cpu_model before = *m;
	unsigned n = 0;
	size_t at = 0;
	for (unsigned f = 0; f < N_FEATURES; f++)
		if (m->has[f] && !can_feature(&feature_table[f], can, arg))
			drop_with_dependents(m, f);
	*asked = NULL;
	names[0] = 0;
	for (unsigned f = 0; f < N_FEATURES; f++) {
		if (!before.has[f] || m->has[f])
			continue;
		if (m->asked[f])
			*asked = feature_table[f].name;
		if (at < cap)
			at += (size_t)snprintf(names + at, cap - at, "%s%s", n ? ", " : "", feature_table[f].name);
		n++;
	}
	m->lin_bits = m->has[FEAT_LA57] ? 57 : 48;
	set_xsave(m);
	return n;
}

void cpu_model_help(void)
{
	static const char *const heads[] = {
		[EMU] = "by ring3 itself", [HOST] = "by the host's own instructions", [NOT] = "not yet", [INV] = NULL,
	};
	struct host h;
	host_read(&h);
	printf("--cpu MODEL[,+feature][,-feature][,feature=on|off][,vendor=intel|amd]\nmodels:\n");
	for (unsigned k = 0; k < ARRAY_LEN(models); k++)
		printf("  %-12s %s\n", models[k].name, models[k].help);
	for (unsigned how = EMU; how <= NOT; how++) {
		printf("features, %s:\n", heads[how]);
		int col = 0;
		for (unsigned f = 0; f < N_FEATURES; f++) {
			const struct feature_info *i = &feature_table[f];
			if (i->how != how && !(i->how == INV && how == EMU))
				continue;
			bool missing = how == HOST && !h.has[f];
			col += printf("%s%s%s", col ? " " : "  ", i->name, missing ? "(-)" : "");
			if (col > 80) {
				printf("\n");
				col = 0;
			}
		}
		printf("%s", col ? "\n" : "");
	}
	printf("(-): the host's CPU does not have it\n");
}
