/* The engines, best first: what --engine auto tries in this order. */
#include <string.h>

#include "engine/engine.h"
#include "bt/bt.h"
#include "interp/interp.h"

const struct engine_ops *const engines[] = {
	&interp_engine,
	&bt_engine,
	NULL,
};

const struct engine_ops *engine_find(const char *name)
{
	for (unsigned k = 0; engines[k]; k++)
		if (!strcmp(engines[k]->name, name))
			return engines[k];
	return NULL;
}
