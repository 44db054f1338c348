/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * IPv4 headers: which packets may be encoded, where MARK and key are, and what encode, decode and
 * the negotiation write. ip6.h has the same functions.
 */
#ifndef XMASQ_IP4_H
#define XMASQ_IP4_H

#include "csum.h"
#include "state.h"
#include "wire.h"

/* Bytes of the packet, its header included. */
static __always_inline __u32 ip_len(const struct ip_hdr *ip)
{
	return be16(ip->len);
}

static __always_inline __u8 ip_tos(const struct ip_hdr *ip)
{
	return ip->tos;
}

/* Not a fragment, and none can be made of it. */
static __always_inline int ip_whole(const struct ip_hdr *ip)
{
	return ip->frag == be16(IP_DF);
}

/* Without options. */
static __always_inline int ip_plain(const struct ip_hdr *ip)
{
	return ip->ver_ihl == 0x45;
}

/* Is it all there? */
static __always_inline int ip_complete(const struct ip_hdr *ip)
{
	return !(ip->frag & be16(IP_MF | IP_OFFSET));
}

/* Does what follows this header begin with the payload's own header? */
static __always_inline int ip_begins(const struct ip_hdr *ip)
{
	return ip->ver_ihl == 0x45 && !(ip->frag & be16(IP_OFFSET));
}

/* The checksum after old became new; the two differ in any field but the checksum. */
static __always_inline __sum16 ip_csum_update(const struct ip_hdr *old, const struct ip_hdr *new)
{
	const __u16 *o = (const __u16 *)old, *n = (const __u16 *)new;
	__u64 sum = (__u16)~old->check;

	sum += (__u16)~o[0] + n[0];
	sum += (__u16)~o[2] + n[2];
	sum += (__u16)~o[3] + n[3];
	sum += addr_sum_not(old->src, old->dst);
	sum += addr_sum(new->src, new->dst);
	return csum_fold(sum);
}

/* The same in numbers, without a look at the new header. diff: csum_diff() of the addresses. */
static __always_inline __sum16 ip_csum_move(const struct ip_hdr *old, __u32 diff, __u8 tos,
					    __be16 id, __be16 frag)
{
	__u64 sum = (__u64)diff + (__u16)~old->check;

	sum += (__u32)(__u16) ~(old->tos << 8) + (tos << 8);
	sum += (__u32)(__u16)~old->id + id;
	sum += (__u32)(__u16)~old->frag + frag;
	return csum_fold(sum);
}

static __always_inline __sum16 ip_csum(const struct ip_hdr *ip)
{
	const __u16 *w = (const __u16 *)ip;

	return csum_fold(addr_sum(ip->src, ip->dst) + w[0] + w[1] + w[2] + w[3] + w[4]);
}

/*
 * Is this the header of a packet that is ours by its DSCP? The checksum as ip_rcv sees it: right,
 * with either form of zero. A damaged header is the stack's to drop: its ID may be another flow's
 * key.
 */
static __always_inline int ip_sane(const struct ip_hdr *ip)
{
	__u16 diff = ip_csum(ip) - ip->check;

	return ip->ver_ihl == 0x45 && (!diff || (diff == 1 && ip->check == 0xffff));
}

/* Is the first byte of the payload needed to tell whether a packet may be encoded? */
static __always_inline int ip_needs_first(const struct ip_hdr *ip)
{
	return 0;
}

/* A quick look: is this packet like most, so that there is no reason against it and no variant? */
static __always_inline int ip_usual(const struct ip_hdr *ip, __u8 dmac0)
{
	const __u64 tunnels = 1ULL << IPPROTO_IPIP | 1ULL << IPPROTO_IPV6 | 1ULL << IPPROTO_GRE;

	return !((ip->ver_ihl ^ 0x45) | (ip->frag ^ be16(IP_DF)) | (dmac0 & 1) |
		 (tunnels >> (ip->proto & 63) & 1)) &&
	       be16(ip->len) > IP_HDR_LEN && ip->ttl >= XM_MIN_TTL;
}

/*
 * 0, or the counter of the reason why a packet with this header always takes the fallback.
 * Sets the flow's variant. first: the first byte behind the header, if that is needed.
 */
static __always_inline int ip_reason(const struct ip_hdr *ip, __u8 dmac0, __u8 first, __u8 *variant)
{
	*variant = 0;
	if (ip->ver_ihl != 0x45)
		return C_FB_OPTIONS;
	if (ip->frag != be16(IP_DF)) {
		if (ip->frag)
			return C_FB_FRAGMENT;
		if (be16(ip->len) > XM_NODF_MAX)
			return C_FB_DF_CLEAR;
		*variant = XM_VAR_NODF;
	}
	if (be16(ip->len) <= IP_HDR_LEN)
		return C_FB_LENGTH; /* an empty bounced packet takes a key back */
	/*
	 * Within tunnels GRO looks at the innermost IDs only, so it could join packets with
	 * different keys.
	 */
	if (ip->proto == IPPROTO_IPIP || ip->proto == IPPROTO_IPV6 || ip->proto == IPPROTO_GRE)
		return C_FB_TUNNEL_PROTO;
	if (ip->ttl < XM_MIN_TTL)
		return C_FB_TTL;
	if (dmac0 & 1)
		return C_FB_MULTICAST;
	return 0;
}

/*
 * May so many segments leave? One less than there is room for, so that no train of segments ends
 * right before another key's: receivers' GRO joins TCP packets with consecutive IDs.
 */
static __always_inline int segments_ok(const struct conf *conf, __u32 segs)
{
	return segs < 1U << (conf->seg_bits & 15);
}

static __always_inline __u32 key_bits(const struct conf *conf)
{
	return 16 - (conf->seg_bits & 15) + (conf->xbits & 3);
}

static __always_inline __u32 key_make(__u32 index)
{
	return index;
}

static __always_inline __be16 key_wire_id(const struct conf *conf, __u32 key)
{
	return be16((__u16)(key << (conf->seg_bits & 15)));
}

/*
 * Is the Identification 0 with this key? So it is in what a device has wiped it out of, and in what
 * a host's own stack answers, DSCP copied. Nobody is given such a key.
 */
static __always_inline int key_blank(const struct conf *conf, __u32 key)
{
	return !key_wire_id(conf, key);
}

/* base: conf.mark or conf.bounce. */
static __always_inline __u8 key_wire_dscp(const struct conf *conf, __u8 base, __u32 key)
{
	return base + ((key >> (16 - (conf->seg_bits & 15))) << 3);
}

static __always_inline __u32 wire_key(const struct conf *conf, __u8 base, const struct ip_hdr *ip)
{
	__u32 bits = conf->seg_bits & 15;
	__u32 high = (__u8)((ip->tos >> 2) - base) >> 3;

	return (high << (16 - bits)) | (be16(ip->id) >> bits);
}

/* What encode writes: the Identification, and above it the DSCP, as the TOS byte has it. */
static __always_inline __u32 wire_make(const struct conf *conf, __u32 key)
{
	return (__u32)key_wire_dscp(conf, conf->mark, key) << 18 | key_wire_id(conf, key);
}

/*
 * Encode: the container's header becomes the one on the wire. It is written directly, which only a
 * program on the link may do (docs/architecture.md). diff: what the addresses change in a sum.
 * summed: ip_summed(); here the header's checksum makes up for all changes, so it does not matter.
 */
static __always_inline int ip_encode(struct __sk_buff *skb, const struct ip_hdr *old,
				     const struct entry *e, __u32 diff, __u64 summed)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ip_hdr *ip = data + ETH_HLEN;
	__u8 tos = e->wire >> 16 | (old->tos & 3);
	__be16 id = (__be16)e->wire, frag = be16(IP_DF);

	if ((void *)(ip + 1) > end)
		return -1;
	ip->tos = tos;
	ip->id = id;
	ip->frag = frag;
	ip->check = ip_csum_move(old, diff, tos, id, frag);
	ip->src = e->local;
	ip->dst = e->peer;
	return 0;
}

/* Decode: the header on the wire becomes the container's. */
static __always_inline void ip_decode(struct __sk_buff *skb, struct ip_hdr *ip,
				      const struct ip_hdr *wire, addr_t sip, addr_t dip, __u8 dscp,
				      __u8 variant, __u32 diff, __u64 summed)
{
	__u8 tos = (dscp << 2) | (wire->tos & 3);
	__be16 id = 0, frag = wire->frag;

	if (variant & XM_VAR_NODF) {
		frag = 0;
		id = (__u16)xm_random(); /* it may be fragmented further on */
	}
	*ip = *wire;
	ip->tos = tos;
	ip->id = id;
	ip->frag = frag;
	ip->check = ip_csum_move(wire, diff, tos, id, frag);
	ip->src = sip;
	ip->dst = dip;
}

/* An encoded packet is sent back. */
static __always_inline void ip_bounce(struct ip_hdr *ip, const struct ip_hdr *wire,
				      const struct conf *conf)
{
	*ip = *wire;
	ip->tos += (conf->bounce - conf->mark) << 2;
	ip->src = wire->dst;
	ip->dst = wire->src;
	ip->check = ip_csum_update(wire, ip);
}

/* The header of a control packet of len bytes, header included; addresses are there already. */
static __always_inline void ip_control(struct ip_hdr *ip, const struct conf *conf, __u32 key,
				       __u32 len)
{
	ip->ver_ihl = 0x45;
	ip->tos = key_wire_dscp(conf, conf->mark, key) << 2;
	ip->len = be16(len);
	ip->id = key_wire_id(conf, key);
	ip->frag = be16(IP_DF);
	ip->ttl = 64;
	ip->proto = IPPROTO_UDP;
	ip->check = 0;
	ip->check = ip_csum(ip);
}

/* Did the path leave MARK and key alone? */
static __always_inline int ip_control_ok(const struct ip_hdr *ip, const struct conf *conf,
					 __u32 key)
{
	return ip->tos >> 2 == key_wire_dscp(conf, conf->mark, key) &&
	       ip->id == key_wire_id(conf, key) && ip->frag == be16(IP_DF);
}

/* Puts a header in the place of the packet's own. */
static __always_inline int ip_store(struct __sk_buff *skb, const struct ip_hdr *ip)
{
	return xm_skb_store_bytes(skb, ETH_HLEN, ip, sizeof(*ip), 0);
}

/* Writes another DSCP into the packet. */
static __always_inline int ip_set_dscp(struct __sk_buff *skb, __u8 tos, __u8 dscp)
{
	__u8 new_tos = (dscp << 2) | (tos & 3);

	if (new_tos == tos)
		return 0;
	if (xm_l3_csum_replace(skb, ETH_HLEN + 10, be16(tos), be16(new_tos), 2))
		return -1;
	return xm_skb_store_bytes(skb, ETH_HLEN + 1, &new_tos, 1, 0);
}

/*
 * Lets a packet that does not fit the underlay with the tunnel header on pass the vxlan driver:
 * with the header's reserved bit set, the driver fragments it outside (encode.h, pass_driver).
 */
static __always_inline void ip_let_split(struct __sk_buff *skb, const struct ip_hdr *old)
{
	struct ip_hdr ip = *old;

	ip.frag |= be16(IP_RESERVED);
	ip.check = ip_csum_update(old, &ip);
	ip_store(skb, &ip);
}

/* Takes that off again, from a packet within a tunnel packet. off: where it begins. */
static __always_inline void ip_let_split_end(struct __sk_buff *skb, __u32 off, struct ip_hdr *inner)
{
	struct ip_hdr old = *inner;

	if (inner->ver_ihl != 0x45 || inner->frag != be16(IP_DF | IP_RESERVED))
		return;
	inner->frag = be16(IP_DF);
	inner->check = ip_csum_update(&old, inner);
	/* The header's sum stays the same, and with it the outer UDP checksum. */
	xm_skb_store_bytes(skb, off, inner, sizeof(*inner), 0);
}

static __always_inline void ip_fib_ends(struct bpf_fib_lookup *fib, addr_t src, addr_t dst)
{
	fib->family = XM_AF;
	fib->ipv4_src = src;
	fib->ipv4_dst = dst;
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
	*nexthop = fib->ipv4_dst;
	return ret;
}

/* The sum of the header's words, and that of their complements. */
static __always_inline __u64 ip_sum(const struct ip_hdr *ip)
{
	return (__u64)(__u16)~ip_csum(ip) + ip->check;
}

static __always_inline __u64 ip_sum_not(const struct ip_hdr *ip)
{
	return (__u64)ip_csum(ip) + (__u16)~ip->check;
}

/* The header in an ICMP error's quote: as on the wire, it becomes the container's. */
static __always_inline void ip_quoted(struct ip_hdr *ip, const struct flow *f)
{
	struct ip_hdr wire = *ip;

	ip->tos = (f->dscp << 2) | (ip->tos & 3);
	ip->id = 0;
	ip->frag = f->variant & XM_VAR_NODF ? 0 : be16(IP_DF);
	ip->src = f->sip;
	ip->dst = f->dip;
	ip->check = ip_csum_update(&wire, ip);
}

/* The header of an ICMP error as the container gets it. */
static __always_inline void ip_error(struct ip_hdr *ip, const struct ip_hdr *wire, addr_t src,
				     addr_t dst)
{
	*ip = *wire;
	ip->tos = 0;
	ip->id = 0;
	ip->frag = be16(IP_DF);
	ip->src = src;
	ip->dst = dst;
	ip->check = ip_csum_update(wire, ip);
}

/* What other addresses in the header change in an ICMP checksum: it does not cover them. */
static __always_inline __u64 icmp_pseudo_diff(const struct ip_hdr *old, const struct ip_hdr *new)
{
	return 0;
}

/* ICMP errors (RFC 792): destination unreachable, time exceeded, parameter problem. */
static __always_inline int icmp_is_error(const struct icmp_hdr *h)
{
	return h->type == 3 || h->type == 11 || h->type == 12;
}

/* Fragmentation needed and DF set. */
static __always_inline int icmp_too_big(const struct icmp_hdr *h)
{
	return h->type == 3 && h->code == 4;
}

/*
 * The codes with which a firewall refuses a packet: protocol and port unreachable, which are hosts'
 * by right, and "administratively prohibited" (RFC 1812, 5.2.7.1).
 */
static __always_inline int icmp_refused(const struct icmp_hdr *h)
{
	return h->type == 3 &&
	       (h->code == 2 || h->code == 3 || h->code == 9 || h->code == 10 || h->code == 13);
}

#endif
