/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * IPv6 headers: which packets may be encoded, where MARK and key are, and what encode, decode and
 * the negotiation write. ip4.h has the same functions.
 *
 * The header has no checksum that would make up for its changes in skb->csum (CHECKSUM_COMPLETE),
 * so they are stored with F_RECOMPUTE_CSUM, or told it by ip_csum_tell(). bpf_l4_csum_replace with
 * F_PSEUDO_HDR takes the difference of the addresses off skb->csum, as if something else made up
 * for it; the two together are right.
 */
#ifndef XMASQ_IP6_H
#define XMASQ_IP6_H

#include "csum.h"
#include "state.h"
#include "wire.h"

#define IP6_VERSION 0x60000000U
#define IP6_LABEL 0x000fffffU

/* Bytes of the packet, its header included. */
static __always_inline __u32 ip_len(const struct ip_hdr *ip)
{
	return IP_HDR_LEN + be16(ip->len);
}

/* The traffic class. */
static __always_inline __u8 ip_tos(const struct ip_hdr *ip)
{
	return be32(ip->flow) >> 20;
}

static __always_inline __be32 ip_flow(__u8 tos, __u32 label)
{
	return be32(IP6_VERSION | (__u32)tos << 20 | label);
}

/* Not a fragment, and none can be made of it: routers never do. */
static __always_inline int ip_whole(const struct ip_hdr *ip)
{
	return ip->proto != IPPROTO_FRAGMENT;
}

/* The header is one of ours; extension headers count as what it carries. */
static __always_inline int ip_plain(const struct ip_hdr *ip)
{
	return (be32(ip->flow) & 0xf0000000U) == IP6_VERSION;
}

/* Is it all there? */
static __always_inline int ip_complete(const struct ip_hdr *ip)
{
	return ip->proto != IPPROTO_FRAGMENT;
}

/* Does what follows this header begin with the payload's own header? */
static __always_inline int ip_begins(const struct ip_hdr *ip)
{
	return ip_plain(ip);
}

/* Is this the header of a packet that is ours by its DSCP? */
static __always_inline int ip_sane(const struct ip_hdr *ip)
{
	return ip_plain(ip);
}

/* Is the first byte of the payload needed to tell whether a packet may be encoded? */
static __always_inline int ip_needs_first(const struct ip_hdr *ip)
{
	return ip->proto == IPPROTO_ICMPV6;
}

/* As for IPv4; here there is no quick look. */
static __always_inline int ip_usual(const struct ip_hdr *ip, __u8 dmac0)
{
	return 0;
}

/*
 * 0, or the counter of the reason why a packet with this header always takes the fallback.
 * Sets the flow's variant. first: the first byte behind the header, if that is needed.
 */
static __always_inline int ip_reason(const struct ip_hdr *ip, __u8 dmac0, __u8 first, __u8 *variant)
{
	*variant = 0;
	if (!ip_plain(ip))
		return C_FB_OPTIONS;
	if (!ip->len)
		return C_FB_LENGTH; /* or larger than 64 KB; an empty bounced packet takes a key
				       back */
	switch (ip->proto) {
	case IPPROTO_FRAGMENT:
		return C_FB_FRAGMENT;
	/* Extension headers: the checksum behind them would not be found, and be wrong on the wire.
	 */
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_AH:
	case IPPROTO_DSTOPTS:
	case IPPROTO_MH:
	case IPPROTO_HIP:
	case IPPROTO_SHIM6:
		return C_FB_OPTIONS;
	case IPPROTO_IPIP:
	case IPPROTO_IPV6:
	case IPPROTO_GRE:
		return C_FB_TUNNEL_PROTO;
	case IPPROTO_ICMPV6:
		/* Neighbour discovery means something on its own link only (RFC 4861). */
		if (first >= 133 && first <= 137)
			return C_FB_MULTICAST;
		break;
	}
	if (ip->hops < XM_MIN_TTL)
		return C_FB_TTL;
	if (dmac0 & 1 || (ip->dst.w[0] & be32(0xff000000)) == be32(0xff000000))
		return C_FB_MULTICAST;
	return 0;
}

/* The flow label is the same in all segments, however many; GRO joins only equal ones. */
static __always_inline int segments_ok(const struct conf *conf, __u32 segs)
{
	return 1;
}

/* Of an index: 16, and the check. */
static __always_inline __u32 key_bits(const struct conf *conf)
{
	return 20 - KEY_CHECK_BITS;
}

/* The check is the sum of the index's digits: it finds any damage to one of the five. */
static __always_inline __u32 key_make(__u32 index)
{
	__u32 check = index ^ (index >> 8);

	check ^= check >> 4;
	return index << KEY_CHECK_BITS | (check & 15);
}

/* IPv4 only. */
static __always_inline __be16 key_wire_id(const struct conf *conf, __u32 key)
{
	return 0;
}

/* No flow label. */
static __always_inline int key_blank(const struct conf *conf, __u32 key)
{
	return !key;
}

static __always_inline __u8 key_wire_dscp(const struct conf *conf, __u8 base, __u32 key)
{
	return base;
}

static __always_inline __u32 wire_key(const struct conf *conf, __u8 base, const struct ip_hdr *ip)
{
	return be32(ip->flow) & IP6_LABEL;
}

/* Tells skb->csum that a header's first word and addresses change. diff: csum_diff() of these. */
static __always_inline void ip_csum_tell(struct __sk_buff *skb, __be32 old, __be32 new, __u32 diff,
					 __u64 summed)
{
	if (unlikely(summed == CHECKSUM_COMPLETE))
		xm_csum_update(skb, csum_short((__u64)diff + (__u32)~old + new));
}

/* Decode: the header on the wire becomes the container's. */
static __always_inline void ip_decode(struct __sk_buff *skb, struct ip_hdr *ip,
				      const struct ip_hdr *wire, addr_t sip, addr_t dip, __u8 dscp,
				      __u8 variant, __u32 diff, __u64 summed)
{
	*ip = *wire;
	ip->flow = ip_flow((dscp << 2) | (ip_tos(wire) & 3), 0);
	ip->src = sip;
	ip->dst = dip;
	ip_csum_tell(skb, wire->flow, ip->flow, diff, summed);
}

/* An encoded packet is sent back. */
static __always_inline void ip_bounce(struct ip_hdr *ip, const struct ip_hdr *wire,
				      const struct conf *conf)
{
	*ip = *wire;
	ip->flow = ip_flow(ip_tos(wire) + ((conf->bounce - conf->mark) << 2),
			   be32(wire->flow) & IP6_LABEL);
	ip->src = wire->dst;
	ip->dst = wire->src;
}

/* The header of a control packet of len bytes, header included; addresses are there already. */
static __always_inline void ip_control(struct ip_hdr *ip, const struct conf *conf, __u32 key,
				       __u32 len)
{
	ip->flow = ip_flow(conf->mark << 2, key);
	ip->len = be16(len - IP_HDR_LEN);
	ip->proto = IPPROTO_UDP;
	ip->hops = 64;
}

/* Did the path leave MARK and key alone? */
static __always_inline int ip_control_ok(const struct ip_hdr *ip, const struct conf *conf,
					 __u32 key)
{
	return ip_tos(ip) >> 2 == conf->mark && (be32(ip->flow) & IP6_LABEL) == key;
}

/* Puts a header in the place of the packet's own. */
static __always_inline int ip_store(struct __sk_buff *skb, const struct ip_hdr *ip)
{
	return xm_skb_store_bytes(skb, ETH_HLEN, ip, sizeof(*ip), F_RECOMPUTE_CSUM);
}

/* What encode writes: the header's first word, without ECN. */
static __always_inline __u32 wire_make(const struct conf *conf, __u32 key)
{
	return be32(ip_flow(conf->mark << 2, key));
}

/* Encode: the container's header becomes the one on the wire. It is written directly, as IPv4's. */
static __always_inline int ip_encode(struct __sk_buff *skb, const struct ip_hdr *old,
				     const struct entry *e, __u32 diff, __u64 summed)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ip_hdr *ip = data + ETH_HLEN;
	__be32 flow = be32(e->wire | (__u32)(ip_tos(old) & 3) << 20);

	if ((void *)(ip + 1) > end)
		return -1;
	ip->flow = flow;
	ip->src = e->local;
	ip->dst = e->peer;
	ip_csum_tell(skb, old->flow, flow, diff, summed);
	return 0;
}

/* Writes another DSCP into the packet. */
static __always_inline int ip_set_dscp(struct __sk_buff *skb, __u8 tos, __u8 dscp)
{
	__u8 new_tos = (dscp << 2) | (tos & 3), head[2];

	if (new_tos == tos)
		return 0;
	if (xm_skb_load_bytes(skb, ETH_HLEN, head, sizeof(head)))
		return -1;
	head[0] = (head[0] & 0xf0) | new_tos >> 4;
	head[1] = (head[1] & 0x0f) | new_tos << 4;
	return xm_skb_store_bytes(skb, ETH_HLEN, head, sizeof(head), F_RECOMPUTE_CSUM);
}

/*
 * Lets a packet that does not fit the underlay with the tunnel header on pass the vxlan driver,
 * which over IPv6 never fragments but drops it: a TCP packet that is still to be segmented gets
 * shorter segments. Growing and shrinking the headers does that, and nothing else; the kernel
 * refuses it for other protocols. What is inside may be IPv4.
 */
static __always_inline void ip_let_split(struct __sk_buff *skb, const struct ip_hdr *old)
{
	if (!skb->gso_size)
		return;
	if (xm_skb_adjust_room(skb, VXLAN_OVERHEAD, 0, F_ADJ_ROOM_NO_CSUM_RESET))
		return;
	xm_skb_adjust_room(skb, -VXLAN_OVERHEAD, 0,
			   F_ADJ_ROOM_FIXED_GSO | F_ADJ_ROOM_NO_CSUM_RESET);
}

/* Nothing to take off again. */
static __always_inline void ip_let_split_end(struct __sk_buff *skb, __u32 off, struct ip_hdr *inner)
{
}

static __always_inline void ip_fib_ends(struct bpf_fib_lookup *fib, addr_t src, addr_t dst)
{
	fib->family = XM_AF;
	__builtin_memcpy(fib->ipv6_src, &src, sizeof(src));
	__builtin_memcpy(fib->ipv6_dst, &dst, sizeof(dst));
}

/*
 * Asks the routing table whether a packet of this length may go; gives back what the helper says.
 * The next hop is good unless it is an error.
 */
static __always_inline int ip_fib(struct __sk_buff *skb, struct bpf_fib_lookup *fib, addr_t src,
				  addr_t dst, __u32 len, addr_t *nexthop)
{
	int ret;

	ip_fib_ends(fib, src, dst);
	fib->tot_len = len;
	ret = xm_fib_lookup(skb, fib, sizeof(*fib), FIB_LOOKUP_OUTPUT);
	__builtin_memcpy(nexthop, fib->ipv6_dst, sizeof(*nexthop));
	return ret;
}

/* The sum of the header's words, and that of their complements. */
static __always_inline __u64 ip_sum(const struct ip_hdr *ip)
{
	const __u32 *w = (const __u32 *)ip;

	return addr_sum(ip->src, ip->dst) + w[0] + w[1];
}

static __always_inline __u64 ip_sum_not(const struct ip_hdr *ip)
{
	const __u32 *w = (const __u32 *)ip;

	return addr_sum_not(ip->src, ip->dst) + (__u32)~w[0] + (__u32)~w[1];
}

/* The header in an ICMP error's quote: as on the wire, it becomes the container's. */
static __always_inline void ip_quoted(struct ip_hdr *ip, const struct flow *f)
{
	ip->flow = ip_flow((f->dscp << 2) | (ip_tos(ip) & 3), 0);
	ip->src = f->sip;
	ip->dst = f->dip;
}

/* The header of an ICMP error as the container gets it. */
static __always_inline void ip_error(struct ip_hdr *ip, const struct ip_hdr *wire, addr_t src,
				     addr_t dst)
{
	*ip = *wire;
	ip->flow = ip_flow(0, 0);
	ip->src = src;
	ip->dst = dst;
}

/* What other addresses in the header change in an ICMP checksum: it covers them. */
static __always_inline __u64 icmp_pseudo_diff(const struct ip_hdr *old, const struct ip_hdr *new)
{
	return addr_sum_not(old->src, old->dst) + addr_sum(new->src, new->dst);
}

/*
 * ICMPv6 errors (RFC 4443): destination unreachable, packet too big, time exceeded, parameter
 * problem.
 */
static __always_inline int icmp_is_error(const struct icmp_hdr *h)
{
	return h->type >= 1 && h->type <= 4;
}

static __always_inline int icmp_too_big(const struct icmp_hdr *h)
{
	return h->type == 2;
}

/*
 * The codes with which a firewall refuses a packet: administratively prohibited, port unreachable,
 * failed policy, reject route; and "unrecognized next header", which is a host's by right.
 */
static __always_inline int icmp_refused(const struct icmp_hdr *h)
{
	return (h->type == 1 && (h->code == 1 || h->code >= 4)) || (h->type == 4 && h->code == 1);
}

#endif
