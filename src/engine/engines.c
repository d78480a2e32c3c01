/* The engines, best first: what --engine auto tries in this order. And the option that names one. */
#define LOG_TOPIC "engine"
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"
#include "bt/bt.h"
#include "interp/interp.h"
#include "kvm/kvm.h"

const struct engine_ops *const engines[] = {
	&kvm_engine,
	&bt_engine,
	&interp_engine,
	NULL,
};

const struct engine_ops *engine_find(const char *name)
{
	for (unsigned k = 0; engines[k]; k++)
		if (!strcmp(engines[k]->name, name))
			return engines[k];
	return NULL;
}

/* ---- the option ------------------------------------------------------------------------------- */

static const struct kv_key name_only[] = { ENGINE_NAME };

static const struct kv_key *keys_of(const struct engine_ops *ops, size_t *n, size_t *bytes)
{
	*n = ops->n_keys ? ops->n_keys : ARRAY_LEN(name_only);
	*bytes = ops->n_keys ? ops->options_bytes : sizeof(char *);
	return ops->n_keys ? ops->keys : name_only;
}

void engine_options_free(const struct engine_ops *ops, void *options)
{
	size_t n, bytes;
	if (!options)
		return;
	const struct kv_key *keys = keys_of(ops, &n, &bytes);
	for (size_t k = 0; k < n; k++)
		if (keys[k].type == KV_STR)
			free(*(char **)(void *)((char *)options + keys[k].offset));
	free(options);
}

/* The first item of the list is the name, with its key or without. */
static void name_of(const char *text, char *name, size_t cap)
{
	if (!strncmp(text, "name=", 5))
		text += 5;
	snprintf(name, cap, "%.*s", (int)strcspn(text, ","), text);
}

/* Of what is passed over, the best one's reason is told: it is what the user may have expected. */
static const struct engine_ops *auto_from(unsigned first, bool icount, char *why, size_t cap)
{
	struct error found;
	for (unsigned k = first;; k++) {
		const struct engine_ops *o = engines[k];
		bool taken = icount && o->uncounted ? error_set(&found, "%s cannot count instructions (--icount)", o->name) : o->usable(&found);
		if (taken && o->worth)
			taken = o->worth(&found);
		if ((!taken && !k) || (taken && o->worth))
			snprintf(why, cap, "%s", found.msg);
		if (taken || !engines[k + 1]) {
			log_info("engine: %s (%s)", o->name, why);
			return o;
		}
	}
}

const struct engine_ops *engine_auto(bool icount, char *why, size_t cap)
{
	snprintf(why, cap, "the first that this host can run");
	return auto_from(0, icount, why, cap);
}

static bool no_such_engine(const char *name, struct error *e)
{
	const char *names[16] = { "auto" };
	size_t n = 1;
	for (unsigned k = 0; engines[k] && n < ARRAY_LEN(names); k++)
		names[n++] = engines[k]->name;
	const char *near = nearest_word(name, names, n);
	return error_set(e, "--engine %s: no such engine; %s%s%s", name, near ? "did you mean " : "see ",
			 near ? near : "--help engine", near ? "?" : "");
}

/* The options of text, whose engine is called `name` there, for ops. */
static bool take_options(const char *text, const char *name, const struct engine_ops *ops, struct engine_choice *choice, struct error *e)
{
	char what[96];
	struct error why;
	size_t n, bytes;
	const struct kv_key *keys = keys_of(ops, &n, &bytes);
	void *options = calloc(1, bytes);
	if (!options)
		return error_set(e, "--engine %s: out of memory", name);
	snprintf(what, sizeof(what), "--engine %s", ops->name);
	bool ok = kv_parse(what, text, keys, n, options, e);
	const char *said = *(char **)options; /* it may be given again, or go on after ",," */
	if (ok && strcmp(said, name))
		ok = error_set(e, "--engine %s: not together with %s", said, name);
	if (ok && !ops->usable(&why))
		ok = error_set(e, "--engine %s: %s", name, why.msg);
	if (!ok) {
		engine_options_free(ops, options);
		return false;
	}
	choice->ops = ops;
	choice->options = options;
	return true;
}

bool engine_choose(const char *text, bool icount, struct engine_choice *choice, struct error *e)
{
	char name[64];
	*choice = (struct engine_choice){ NULL };
	name_of(text, name, sizeof(name));
	if (strchr(name, '='))
		return error_set(e, "--engine %s: the name comes first, as in %s,%s", name, engines[0]->name, name);
	const struct engine_ops *ops = !strcmp(name, "auto") ? engine_auto(icount, choice->why, sizeof(choice->why)) : engine_find(name);
	return ops ? take_options(text, name, ops, choice, e) : no_such_engine(name, e);
}

bool engine_choose_next(const char *text, bool icount, const char *why_not, struct engine_choice *choice, struct error *e)
{
	char name[64];
	unsigned k = 0;
	while (engines[k] != choice->ops)
		k++;
	engine_options_free(choice->ops, choice->options);
	*choice = (struct engine_choice){ NULL };
	if (!engines[k + 1])
		return error_set(e, "%s", why_not);
	name_of(text, name, sizeof(name));
	snprintf(choice->why, sizeof(choice->why), "%s", why_not);
	return take_options(text, name, auto_from(k + 1, icount, choice->why, sizeof(choice->why)), choice, e);
}

void engine_help(void)
{
	printf("--engine auto[,KEY=VALUE...]\n  the first of these that this host can run, and that is worth it as far as that is measured\n");
	for (unsigned k = 0; engines[k]; k++) {
		const struct engine_ops *ops = engines[k];
		printf("--engine %s%s\n  %s\n", ops->name, ops->n_keys > 1 ? "[,KEY=VALUE...]" : "", ops->help);
		if (ops->n_keys > 1)
			kv_help_keys(ops->keys + 1, ops->n_keys - 1);
	}
}
