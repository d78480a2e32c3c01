/* What `ring3 doctor` finds: private to cli/. */
#ifndef RING3_CLI_DOCTOR_H
#define RING3_CLI_DOCTOR_H

#include "base/base.h"

enum mark { FACT, GOOD, LACKS };
struct finding {
	const char *section, *name;
	enum mark mark;
	char text[200];
	char advice[240]; /* what the user can do about it; "": nothing, or it is good */
};
struct findings { struct finding at[64]; unsigned n; };

/* One more; its text is cut where it is too long. */
struct finding *finding_add(struct findings *f, const char *section, const char *name, enum mark mark, const char *fmt, ...) PRINTF_LIKE(5, 6);
void finding_advise(struct finding *f, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* doctor_host.c, doctor_kvm.c */
void doctor_look_at_host(struct findings *f);
void doctor_look_at_kvm(struct findings *f);
/* The processor is one of a virtual machine. */
bool doctor_in_machine(void);
/* The first line of a file without its end; "": it cannot be read. */
void doctor_read_line(const char *path, char *buf, size_t cap);

#endif
