/* A TAP device of the host, with the kernel's offloads: frames carry a virtio header both ways.
 * Linux Documentation/networking/tuntap.rst. */
#define LOG_TOPIC "net"
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "net/net_impl.h"

#define HEADER_BYTES 12 /* with a count of buffers, that neither side uses here */

static ssize_t tap_read(struct net *n, struct net_offload *o)
{
	u8 header[HEADER_BYTES];
	struct iovec iov[] = { { header, sizeof(header) }, { n->frame, sizeof(n->frame) } };
	ssize_t len = readv(n->fd, iov, 2);

	if (len < 0 && errno != EAGAIN && errno != EINTR) { /* or epoll would tell of it without end */
		log_error("%s: %s; the network is down", n->text, errno == EBADFD ? "the interface is gone" : strerror(errno));
		net_lost(n);
		return -1;
	}
	if (len < (ssize_t)sizeof(header))
		return 0;
	memcpy(o, header, sizeof(*o));
	return len - (ssize_t)sizeof(header);
}

static bool tap_send(struct net *n, const struct net_offload *o, const struct iovec *iov, unsigned n_iov)
{
	struct iovec all[300];
	u8 header[HEADER_BYTES] = { 0 };

	if (n_iov + 1 > ARRAY_LEN(all))
		return true;
	memcpy(header, o, sizeof(*o));
	all[0] = (struct iovec){ header, sizeof(header) };
	memcpy(all + 1, iov, n_iov * sizeof(*iov));
	return writev(n->fd, all, (int)n_iov + 1) >= 0 || errno != EAGAIN; /* what the kernel refuses is lost */
}

void net_tap_set_offloads(struct net *n, unsigned can)
{
	unsigned flags = (can & NET_CAN_CSUM ? TUN_F_CSUM : 0) | (can & NET_CAN_TSO4 ? TUN_F_TSO4 : 0) |
			 (can & NET_CAN_TSO6 ? TUN_F_TSO6 : 0) | (can & NET_CAN_ECN ? TUN_F_TSO_ECN : 0);

	if (n->fd >= 0 && ioctl(n->fd, TUNSETOFFLOAD, flags))
		log_warn("%s: no offloads: %s", n->text, strerror(errno));
}

bool net_tap_open(struct net *n, const struct net_options *o, struct error *e)
{
	static const struct net_ops ops = { .read = tap_read, .send = tap_send };
	struct ifreq r = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	int size = HEADER_BYTES;

	n->ops = &ops;
	if (o->ifname && strlen(o->ifname) >= sizeof(r.ifr_name))
		return error_set(e, "tap: ifname=%s: at most %zu characters", o->ifname, sizeof(r.ifr_name) - 1);
	if (o->ifname)
		strcpy(r.ifr_name, o->ifname);
	n->fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (n->fd < 0)
		return error_set(e, "tap: /dev/net/tun: %s; --net user needs no privilege", strerror(errno));
	if (ioctl(n->fd, TUNSETIFF, &r) || ioctl(n->fd, TUNSETVNETHDRSZ, &size))
		return error_set(e, "tap: interface %s: %s%s", o->ifname ? o->ifname : "(new)", strerror(errno),
				 errno == EPERM ? "; make it for this user first: ip tuntap add NAME mode tap user USER" : "");
	n->offloads = true;
	net_tap_set_offloads(n, 0);
	snprintf(n->text, sizeof(n->text), "tap %s", r.ifr_name);
	return true;
}
