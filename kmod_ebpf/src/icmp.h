/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Underlay ingress: ICMP errors about encoded packets. A router quotes the header that we wrote;
 * the container gets the error with its own header back in place (RFC 792, RFC 1191). An error of
 * the peer's own stack says that nobody decodes there, and ends the grant.
 */
#ifndef XMASQ_ICMP_H
#define XMASQ_ICMP_H

#include "csum.h"
#include "decode.h"
#include "pair.h"
#include "parse.h"
#include "seal.h"

#define OFF_FLOW_FIRST_MS 10000
#define OFF_FLOW_LONGEST_MS 3600000

/* An error, with what every quote has of the packet in question. */
struct icmp_err {
	struct icmp_hdr icmp;
	struct ip_hdr ip;
	__be16 l4[4];
};

_Static_assert(sizeof(struct icmp_err) <= sizeof(((struct scratch *)0)->headers), "it fits");

#define ICMP_OFF (ETH_HLEN + IP_HDR_LEN)
#define QUOTED_L4 (ICMP_OFF + __builtin_offsetof(struct icmp_err, l4))

/*
 * The way to the peer does not take this flow's encoded packets, but may take the fallback's: no
 * key is accepted for it for a while, doubled each time until one is seen to be of use.
 */
static __always_inline void flow_off(struct entry *e, __u64 now)
{
	__u32 ms = e->off_ms;

	e->lease_end = 0; /* breaks the seal, too: dead for every reader */
	ms = ms ? ms * 2 : OFF_FLOW_FIRST_MS;
	if (ms > OFF_FLOW_LONGEST_MS)
		ms = OFF_FLOW_LONGEST_MS;
	e->off_ms = ms;
	e->off_until = now + (__u64)ms * NSEC_PER_MSEC;
}

/*
 * Moves the quoted L4 checksum back, if the quote reaches so far: adds to sum what that changes.
 * quoted: the header on the wire. len: of the whole packet.
 */
static __always_inline int icmp_quoted_csum(struct __sk_buff *skb, const struct ip_hdr *quoted,
					    __u32 diff, __u32 len, __u64 *sum)
{
	__u32 off = l4_csum_off(quoted->proto);
	__u16 had, has;

	if (!off || QUOTED_L4 + off + 2 > ETH_HLEN + len)
		return 0;
	if (xm_skb_load_bytes(skb, QUOTED_L4 + off, &had, sizeof(had)))
		return -1;
	has = csum_fold((__u64)diff + (__u16)~had);
	if (quoted->proto == IPPROTO_UDP)
		has = had ? has ? has : 0xffff : 0;
	*sum += (__u64)(__u16)~had + has;
	return xm_skb_store_bytes(skb, QUOTED_L4 + off, &has, sizeof(has), F_STORE);
}

/*
 * Puts the container's header back into the quote, and sends the error on in the name of the
 * flow's destination, as the kernel's own tunnels do (net/ipv4/ip_tunnel_core.c,
 * iptunnel_pmtud_build_icmp): a router's address means nothing to the container, and a host that
 * looks where it came from (rp_filter) would drop it.
 */
static __always_inline int icmp_deliver(struct __sk_buff *skb, struct conf *conf,
					const struct ip_hdr *wire, struct icmp_err *err,
					const struct flow *f, __u32 idx)
{
	__u32 diff = csum_diff(err->ip.src, err->ip.dst, f->sip, f->dip), len = ip_len(wire);
	__u64 sum = (__u16)~err->icmp.check;
	addr_t peer = err->ip.dst;
	struct ip_hdr ip;

	if (skb->len > ETH_HLEN + len && xm_skb_change_tail(skb, ETH_HLEN + len, 0))
		goto error;
	if (icmp_quoted_csum(skb, &err->ip, diff, len, &sum))
		goto error;
	/* What was right stays right, however much is quoted; what was wrong stays wrong. */
	sum += ip_sum_not(&err->ip);
	ip_quoted(&err->ip, f);
	sum += ip_sum(&err->ip);
	ip_error(&ip, wire, f->dip, f->sip);
	sum += icmp_pseudo_diff(wire, &ip);
	err->icmp.check = csum_fold(sum);
	if (store_eth(skb, f->smac, f->dmac) || ip_store(skb, &ip) ||
	    xm_skb_store_bytes(skb, ICMP_OFF, err, __builtin_offsetof(struct icmp_err, l4),
			       F_STORE))
		goto error;
	count(idx, C_ICMP_RX);
	return into_link(skb, conf, f->ifindex, peer);
error:
	count(idx, C_ERROR);
	return ACT_SHOT;
}

/* ICMP to one of our VTEP addresses. port: the tunnel's. */
static __always_inline int icmp_ingress(struct __sk_buff *skb, struct conf *conf,
					const struct ip_hdr *wire, __be16 port)
{
	struct scratch *scratch = scratch_get();
	struct txkey_key k = {};
	struct txkey *live, *t;
	struct icmp_err *err;
	struct link *link;
	struct entry *e;
	__u64 now;
	__u32 idx;

	if (!scratch)
		return ACT_UNSPEC;
	err = (void *)scratch->headers;
	t = &scratch->txkey;
	if (ip_len(wire) < IP_HDR_LEN + sizeof(*err) ||
	    xm_skb_load_bytes(skb, ICMP_OFF, err, sizeof(*err)) || !icmp_is_error(&err->icmp))
		return ACT_UNSPEC;
	k.local = err->ip.src;
	k.peer = err->ip.dst;
	k.key = wire_key(conf, conf->mark, &err->ip);
	/* Only encode makes such packets; the tunnel's own have its port. */
	if (!ip_plain(&err->ip) || !ip_whole(&err->ip) || !addr_equal(k.local, wire->dst) ||
	    !dscp_is(conf, conf->mark, ip_tos(&err->ip) >> 2) || !key_index(k.key) ||
	    key_blank(conf, k.key) || (err->ip.proto == IPPROTO_UDP && err->l4[1] == port))
		return ACT_UNSPEC;

	now = xm_boot_ns();
	live = txkey_get(&k);
	if (!live) {
		count(0, C_ICMP_STRAY);
		return ACT_SHOT;
	}
	copy_words(t, live, sizeof(*t) / 8);
	idx = where_link(t->flow.ifindex);
	link = idx ? link_at(idx) : 0;
	if (t->seal != seal_txkey(&k, t) || now >= t->until || !link || !(link->flags & LINK_UP) ||
	    flow_where(link, idx, t->flow.ifindex) != t->flow.ifindex ||
	    !addr_equal(link->local, wire->dst)) {
		count(0, C_ICMP_STRAY);
		return ACT_SHOT;
	}
	if (addr_equal(wire->src, k.peer)) {
		count(idx, C_PEER_GONE);
		event(skb, EV_PEER_GONE, 0, 0, &k.local, &k.peer, k.key, 0);
		suspect(skb, k.local, k.peer, now, 1);
		return ACT_SHOT;
	}
	e = flow_get(&t->flow);
	if (e && (e->key != k.key || !addr_equal(e->peer, k.peer)))
		e = 0;
	/* Nothing has been decoded yet: the path may take VXLAN, and not what is encoded. */
	if (e && !e->proven && icmp_refused(&err->icmp)) {
		flow_off(e, now);
		count(idx, C_ICMP_REFUSED);
		event(skb, EV_FLOW_REFUSED, idx, &t->flow, &k.local, &k.peer, k.key, 0);
		return ACT_SHOT;
	}
	/* Its sender had allowed to fragment it: so the fallback will. */
	if (e && t->flow.variant & XM_VAR_NODF && icmp_too_big(&err->icmp))
		flow_off(e, now);
	return icmp_deliver(skb, conf, wire, err, &t->flow, idx);
}

/*
 * TCP without a key, from a peer, with MARK: a host's own stack copies DSCP into a reset, which has
 * DF and Identification 0, over IPv6 any flow label. Nobody decodes there. Returns whether it is
 * one.
 */
static __always_inline int reset_ingress(struct __sk_buff *skb, const struct ip_hdr *wire)
{
	__u32 idx = pair_find(wire->dst, wire->src);
	__u8 flags;

	if (!idx || xm_skb_load_bytes(skb, ETH_HLEN + IP_HDR_LEN + 13, &flags, 1) ||
	    !(flags & TCP_RST))
		return 0;
	count(0, C_PEER_GONE);
	event(skb, EV_PEER_GONE, 0, 0, &wire->dst, &wire->src, 0, 0);
	suspect(skb, wire->dst, wire->src, xm_boot_ns(), 1);
	return 1;
}

#endif
