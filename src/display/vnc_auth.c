/* "VNC authentication" (RFC 6143, 7.2.2): the viewer encrypts 16 random bytes with DES, the password being
 * the key. Eight characters count, and whoever can read the connection can guess at leisure: it keeps
 * strangers out of a trusted network and is no more than that. docs/options.md says so.
 *
 * DES is nettle's (package nettle-dev). Without it ring3 has no password, and says so where one is asked for. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "display/vnc_impl.h"

#ifdef RING3_NETTLE
#include <nettle/des.h>
#include <nettle/memops.h>

bool vnc_response_is_right(const u8 password[VNC_PASSWORD], const u8 challenge[VNC_CHALLENGE], const u8 response[VNC_CHALLENGE])
{
	struct des_ctx des;
	u8 key[DES_KEY_SIZE], expected[VNC_CHALLENGE];

	/* The bits of each byte in opposite order, as the first VNC had them. A weak key is a key as well. */
	for (unsigned k = 0; k < DES_KEY_SIZE; k++) {
		key[k] = 0;
		for (unsigned bit = 0; bit < 8; bit++)
			key[k] |= (u8)((password[k] >> bit & 1) << (7 - bit));
	}
	des_set_key(&des, key);
	des_encrypt(&des, sizeof(expected), expected, challenge);
	return memeql_sec(expected, response, sizeof(expected));
}

static bool have_des(struct error *e) { return true; }
#else
bool vnc_response_is_right(const u8 password[VNC_PASSWORD], const u8 challenge[VNC_CHALLENGE], const u8 response[VNC_CHALLENGE])
{
	return false;
}

static bool have_des(struct error *e)
{
	return error_set(e, "password-file: this ring3 was built without nettle, which passwords need (Debian's package nettle-dev)");
}
#endif

bool vnc_make_challenge(u8 challenge[VNC_CHALLENGE])
{
	return getrandom(challenge, VNC_CHALLENGE, 0) == (ssize_t)VNC_CHALLENGE;
}

bool vnc_read_password(const char *path, u8 password[VNC_PASSWORD], struct error *e)
{
	struct stat st;
	char line[256];

	if (!have_des(e))
		return false;
	FILE *f = file_open_text(path);
	if (!f)
		return error_set(e, "password-file=%s: %s", path, strerror(errno));
	bool any = fgets(line, sizeof(line), f) != NULL;
	bool open_to_others = !fstat(fileno(f), &st) && S_ISREG(st.st_mode) && (st.st_mode & 077);
	fclose(f);
	if (any)
		line[strcspn(line, "\r\n")] = 0;
	if (!any || !*line)
		return error_set(e, "password-file=%s: its first line is the password, and it is empty", path);
	if (open_to_others)
		log_msg("vnc", LOG_WARN, "password-file=%s: others can read it; chmod 600 keeps it yours", path);
	if (strlen(line) > VNC_PASSWORD)
		log_msg("vnc", LOG_WARN, "password-file=%s: VNC looks at the first %u characters only", path, VNC_PASSWORD);
	memset(password, 0, VNC_PASSWORD);
	memcpy(password, line, MIN(strlen(line), (size_t)VNC_PASSWORD));
	explicit_bzero(line, sizeof(line));
	return true;
}
