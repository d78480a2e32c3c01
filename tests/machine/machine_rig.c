#include <stdio.h>
#include <unistd.h>

#include "machine_rig.h"

static char names[N_FILES][64];

char *rig_file(int k, const void *data, size_t len)
{
	snprintf(names[k], sizeof(names[k]), "/tmp/ring3-test-%d-%d", (int)getpid(), k);
	FILE *f = fopen(names[k], "w");
	assert_non_null(f);
	assert_int_equal(fwrite(data, 1, len, f), len);
	assert_int_equal(fclose(f), 0);
	return names[k];
}

void rig_remove_files(void)
{
	for (int k = 0; k < N_FILES; k++)
		if (names[k][0])
			unlink(names[k]);
}

struct vm_config rig_config(void)
{
	static char none[] = "none";
	struct vm_config cfg = { .mem_bytes = 64 << 20, .cpus = 1, .icount = true, .n_serial = 1 };
	cfg.serial[0].kind = none;
	return cfg;
}

struct machine *rig_build(const struct vm_config *cfg)
{
	struct error e = { "" };
	struct machine *m = machine_new(cfg, &e);
	if (!m)
		fail_msg("%s", e.msg);
	return m;
}

void rig_refuses(const struct vm_config *cfg, const char *word)
{
	struct error e = { "" };
	struct machine *m = machine_new(cfg, &e);
	if (m) {
		machine_free(m);
		fail_msg("built, although: %s", word);
	}
	if (!strstr(e.msg, word))
		fail_msg("no \"%s\" in: %s", word, e.msg);
}

int rig_run(const struct vm_config *cfg)
{
	struct machine *m = rig_build(cfg);
	int status = -1;
	machine_run(m, &status);
	machine_free(m);
	return status;
}

u64 guest64(struct machine *m, u64 gpa)
{
	u64 v = 0;
	assert_true(mem_read(&m->mem, gpa, &v, 8));
	return v;
}
u32 guest32(struct machine *m, u64 gpa) { return (u32)guest64(m, gpa); }
