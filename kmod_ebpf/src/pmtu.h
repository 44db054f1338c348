/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Packets that take the fallback and do not fit the underlay with the tunnel header on. The vxlan
 * driver fragments them outside, which keeps them whole and is slow. So their sender is told of the
 * smaller MTU: by a clone that goes back into the link as an ICMP error (RFC 1191, RFC 8201). What
 * is inside may be of either family, whatever the underlay is.
 */
#ifndef XMASQ_PMTU_H
#define XMASQ_PMTU_H

#include "csum.h"
#include "parse.h"

#define PMTU_SMALL 512 /* frames up to here fit any underlay */
#define PMTU_QUOTED_L4 20
#define PMTU_HASH 0x9e3779b97f4a7c15ULL
#define IPV4_WORDS 10
#define IPV6_WORDS 20
#define IPV6_MIN_MTU 1280

/* The first words of a frame. */
struct big_frame {
	__be16 eth[ETH_HLEN / 2];
	__be16 w[IPV6_WORDS +
		 PMTU_QUOTED_L4 / 2]; /* IP header, and the beginning of what follows */
};

_Static_assert(sizeof(struct big_frame) <= sizeof(((struct scratch *)0)->headers), "it fits");

/* What all devices of the underlay can take; 0 if there are none. */
static __always_inline __u32 underlay_mtu(const struct link *link)
{
	__u32 mtu = ~0U;
	struct underlay *u;

#pragma unroll
	for (int i = 0; i < LINK_UNDERLAYS; i++) {
		if (!link->underlays[i])
			break;
		u = underlay_get(link->underlays[i]);
		if (u && u->mtu < mtu)
			mtu = u->mtu;
	}
	return mtu == ~0U ? 0 : mtu;
}

/* IP header and L4 header of the segments that a buffer leaves as, and their payload. */
static __always_inline __u32 segment_len(const struct __sk_buff *skb, const struct big_frame *h,
					 __u32 words, __u8 proto)
{
	__u32 l4 = UDP_HDR_LEN;

	if (!skb->gso_size)
		return skb->len - ETH_HLEN;
	if (proto == IPPROTO_TCP)
		l4 = (be16(h->w[words + 6]) >> 12) * 4;
	return words * 2 + l4 + skb->gso_size;
}

/* Where in the words of an L4 header a checksum may still be due, which a device fills in; or 0. */
static __always_inline __u32 csum_word(__u8 proto)
{
	return proto == IPPROTO_TCP ? 8 : proto == IPPROTO_UDP ? 3 : 0;
}

/*
 * Over IPv6 the vxlan driver drops what is too long. So that a flow of such packets gets its grant,
 * and keeps it, a clone goes in their place, cut short (encode.h, probe).
 */
static __always_inline void send_probe(struct __sk_buff *skb, struct conf *conf)
{
	mark_set(skb, conf, KIND_PROBE);
	xm_clone_redirect(skb, skb->ifindex, 0);
	mark_clear(skb);
}

/*
 * Link egress, on the way into the fallback. waits: the flow may yet get a grant. granted: it has
 * one, and this packet shall only renew it. limit: of what can be encoded, where that is why it is
 * not.
 */
static __always_inline void oversize(struct __sk_buff *skb, struct conf *conf, __u32 idx,
				     const struct link *link, int waits, int granted, __u32 limit,
				     __u64 now)
{
	struct scratch *scratch = scratch_get();
	struct big_frame *h;
	struct big fresh = {}, *big;
	__u32 room, words, len;
	int tell = 1, own = 0, splits;
	__u64 id;
	__u8 proto;

	if (likely(skb->len <= PMTU_SMALL && !skb->gso_size))
		return;
	room = underlay_mtu(link);
	if (!scratch || room <= VXLAN_OVERHEAD)
		return;
	room = limit ? limit : room - VXLAN_OVERHEAD;
	h = (void *)scratch->headers;
	if (skb->len - ETH_HLEN <= room || xm_skb_load_bytes(skb, 0, h, sizeof(*h)))
		return;
	if (h->eth[6] == be16(ETHERTYPE_IPV4)) {
		/*
		 * Version, no options; DF and nothing else. Others are fragmented as they wish, but
		 * not over IPv6.
		 */
		if (((__u8 *)h->w)[0] != 0x45 ||
		    (h->w[3] != be16(0x4000) && (XM_FAMILY == 4 || h->w[3])))
			return;
		words = IPV4_WORDS;
		proto = ((__u8 *)h->w)[9];
		own = XM_FAMILY == 4;
		/* An error is not answered by another one. */
		if (proto == IPPROTO_ICMP && ((__u8 *)h->w)[20] && ((__u8 *)h->w)[20] != 8)
			return;
	} else if (h->eth[6] == be16(ETHERTYPE_IPV6)) {
		words = IPV6_WORDS;
		proto = ((__u8 *)h->w)[6];
		own = XM_FAMILY == 6;
		if (room < IPV6_MIN_MTU ||
		    (proto == IPPROTO_ICMPV6 && !(((__u8 *)h->w)[40] & 0x80)))
			return;
	} else {
		return;
	}
	len = words == IPV4_WORDS ? segment_len(skb, h, IPV4_WORDS, proto)
				  : segment_len(skb, h, IPV6_WORDS, proto);
	if (len <= room || ((__u8 *)h->eth)[0] & 1)
		return;

	splits = XM_FAMILY == 4 || (skb->gso_size && proto == IPPROTO_TCP);
	if (!granted) {
		id = skb->ifindex;
#pragma unroll
		for (int i = 0; i < 6; i++)
			id = id * PMTU_HASH + h->eth[i];
		if (words == IPV4_WORDS) {
#pragma unroll
			for (int i = 6; i < IPV4_WORDS; i++)
				id = id * PMTU_HASH + h->w[i];
		} else {
#pragma unroll
			for (int i = 4; i < IPV6_WORDS; i++)
				id = id * PMTU_HASH + h->w[i];
		}
		big = big_get(&id);
		fresh.first = big ? big->first : now;
		fresh.told = big ? big->told : 0;
		if (waits && splits && !later_by(now, fresh.first, XM_OVERSIZE_PATIENCE))
			tell = 0;
		else if (big && big->told && !later_by(now, big->told, NSEC_PER_SEC))
			tell = 0;
		if (tell)
			fresh.told = now;
		if (!big || tell)
			big_set(&id, &fresh);
		if (tell) {
			mark_set(skb, conf, KIND_TOO_BIG);
			barrier();
			skb->cb[CB_KEY] = room;
			if (!xm_clone_redirect(skb, skb->ifindex, F_INGRESS))
				count(idx, C_TOO_BIG_TX);
			else
				count(idx, C_ERROR);
			mark_clear(skb);
			if (waits && !splits)
				send_probe(skb, conf);
		}
	}
	/*
	 * Where the link is a bridge port, the driver would send such an error too, at once and for
	 * every packet, and drop it: a flow that gets its grant a round trip later would keep to
	 * the smaller MTU for ten minutes.
	 */
	if (own || XM_FAMILY == 6)
		ip_let_split(skb, (struct ip_hdr *)h->w);
}

/*
 * Link ingress: makes of the clone what its sender is to get, in the name of its destination (see
 * icmp.h). words: of its IP header.
 */
static __always_inline int too_big_frame(struct __sk_buff *skb, struct conf *conf, __u32 words)
{
	__u32 mtu = skb->cb[CB_KEY], at, len = words * 2 + PMTU_QUOTED_L4, total = len + 8;
	__be16 out[ETH_HLEN / 2 + IPV6_WORDS + 4];
	__be16 *ip = out + ETH_HLEN / 2, *icmp = ip + words;
	__u64 sum = 0, l4 = 0, pseudo = 0;
	struct big_frame h;
	__u8 proto;

	if (xm_skb_load_bytes(skb, 0, &h, ETH_HLEN + words * 2 + PMTU_QUOTED_L4))
		return ACT_SHOT;
	__builtin_memset(out, 0, sizeof(out));
#pragma unroll
	for (int i = 0; i < 3; i++) {
		out[i] = h.eth[3 + i];
		out[3 + i] = h.eth[i];
	}
	out[6] = h.eth[6];
	if (words == IPV4_WORDS) {
		ip[0] = be16(0x4500);
		ip[1] = be16(20 + total);
		ip[3] = be16(0x4000);
		ip[4] = be16(64 << 8 | IPPROTO_ICMP);
#pragma unroll
		for (int i = 0; i < 2; i++) {
			ip[6 + i] = h.w[8 + i];
			ip[8 + i] = h.w[6 + i];
			pseudo += (__u64)h.w[6 + i] + h.w[8 + i];
		}
		proto = be16(h.w[4]) & 0xff;
		pseudo += be16(proto) + be16(be16(h.w[1]) - 20);
#pragma unroll
		for (int i = 0; i < IPV4_WORDS; i++)
			sum += ip[i];
		ip[5] = csum_fold(sum);
		sum = 0;
		icmp[0] = be16(3 << 8 | 4);
	} else {
		ip[0] = be16(0x6000);
		ip[2] = be16(total);
		ip[3] = be16(IPPROTO_ICMPV6 << 8 | 64);
#pragma unroll
		for (int i = 0; i < 8; i++) {
			ip[4 + i] = h.w[12 + i];
			ip[12 + i] = h.w[4 + i];
			pseudo += (__u64)h.w[4 + i] + h.w[12 + i];
		}
		sum = pseudo + be16(IPPROTO_ICMPV6) + be16(total);
		proto = be16(h.w[3]) >> 8;
		pseudo += be16(proto) + h.w[2];
		icmp[0] = be16(2 << 8);
	}
	icmp[2] = be16(mtu >> 16);
	icmp[3] = be16(mtu);
#pragma unroll
	for (int i = 0; i < 10; i++)
		l4 += h.w[words + i];
	/*
	 * A device will still write the L4 checksum, over what is left of the packet by then, if
	 * the pseudo header's sum stands in its place. The sum of all of it, checksum included, is
	 * then the complement of that one, whatever it is about. Until then nobody looks at the
	 * ICMP checksum.
	 */
	at = csum_word(proto);
	if (at) {
		__u16 due = ~csum_fold(pseudo);

		if (h.w[words + at] == due)
			l4 = (__u16)~due;
	}
	sum += l4 + icmp[0] + icmp[2] + icmp[3];
#pragma unroll
	for (int i = 0; i < words; i++)
		sum += h.w[i];
	icmp[1] = csum_fold(sum);

	if (xm_skb_change_tail(skb, ETH_HLEN + len, 0) ||
	    xm_skb_change_head(skb, words * 2 + 8, 0) ||
	    xm_skb_store_bytes(skb, 0, out, ETH_HLEN + words * 2 + 8, 0))
		return ACT_SHOT;
	skb->mark = 0;
	mark_set(skb, conf, KIND_DECODED);
	/* Once more, so that the kernel finds the header in its new place. */
	return xm_redirect(skb->ifindex, F_INGRESS);
}

static __always_inline int too_big(struct __sk_buff *skb, struct conf *conf)
{
	return skb->protocol == be16(ETHERTYPE_IPV6) ? too_big_frame(skb, conf, IPV6_WORDS)
						     : too_big_frame(skb, conf, IPV4_WORDS);
}

#endif
