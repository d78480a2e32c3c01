/* Rules of the user network's port forwarding: [tcp:|udp:][ADDRESS:]HOSTPORT:GUESTPORT. */
#include <arpa/inet.h>
#include <string.h>

#include "net/net_impl.h"

static bool port(const char *text, u16 *out)
{
	u64 v;

	if (!parse_number(text, &v) || !v || v > 65535)
		return false;
	*out = (u16)v;
	return true;
}

bool forward_parse(const char *text, size_t len, struct forward *f, struct error *e)
{
	char copy[64], *at = copy;

	*f = (struct forward){ .addr = INADDR_LOOPBACK };
	if (len >= sizeof(copy))
		return error_set(e, "forward=%.*s: not a rule; as in 2222:22", (int)len, text);
	memcpy(copy, text, len);
	copy[len] = 0;
	if (!strncmp(at, "udp:", 4) || !strncmp(at, "tcp:", 4)) {
		f->udp = *at == 'u';
		at += 4;
	}
	char *guest = strrchr(at, ':'), *host = NULL;
	if (guest) {
		*guest++ = 0;
		host = strrchr(at, ':');
		if (host)
			*host++ = 0;
	}
	struct in_addr addr;
	if (host && inet_pton(AF_INET, at, &addr) != 1)
		return error_set(e, "forward=%.*s: %s is not an address of the host; as in 127.0.0.1:2222:22", (int)len, text, at);
	if (host)
		f->addr = ntohl(addr.s_addr);
	if (!guest || !port(host ? host : at, &f->host_port) || !port(guest, &f->guest_port))
		return error_set(e, "forward=%.*s: not a rule; as in 2222:22, the host's port first, or udp:5353:53", (int)len, text);
	return true;
}
