/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Link egress: a packet of a granted flow becomes an encoded packet and leaves through the
 * underlay; every other packet goes on to the vxlan driver, unmodified.
 */
#ifndef XMASQ_ENCODE_H
#define XMASQ_ENCODE_H

#include "csum.h"
#include "external.h"
#include "hop.h"
#include "parse.h"
#include "pmtu.h"
#include "route.h"
#include "seal.h"

#define ASK_LEN 64
/* Up to behind a checksum that a device may still have to write. */
#define PROBE_LEN (ETH_HLEN + IP_HDR_LEN + 60)

/* A source seen here is behind this host: what makes it the owner of that MAC. */
static __always_inline void own_mac(__u32 link, const __u8 *mac, __u64 now)
{
	struct mac_key k = { .link = link };
	struct mac_seen *seen, fresh = { .at = now };

	if (mac[0] & 1)
		return;
	__builtin_memcpy(k.mac, mac, ETH_ALEN);
	seen = mac_get(&k);
	if (seen && !addr_is_set(seen->peer) && !later_by(now, seen->at, NSEC_PER_SEC))
		return;
	mac_set(&k, &fresh);
}

/*
 * Tells the underlay's egress hook, which the vxlan driver calls on this CPU, what comes: it knows
 * this very packet by a stamp that no socket can set. f: the flow if it could have been encoded.
 */
static __always_inline void let_go(struct __sk_buff *skb, const struct link *link,
				   const struct flow *f, __u64 now)
{
	struct scratch *scratch = scratch_get();

	if (!scratch)
		return;
	scratch->let_go_at = now;
	scratch->missed_at = f ? now : 0;
	if (f)
		scratch->missed = *f;
	scratch->tx_gen = link->tx_gen;
	scratch->tc_index = skb->tc_index;
	if (!++scratch->stamp)
		scratch->stamp = 1;
	skb->tc_index = scratch->stamp;
}

/*
 * Sends the packet on to the vxlan driver. f: the flow if it could have been encoded; the next
 * three are for oversize(). scope: what MACs are kept by in an external link.
 */
static __always_inline int fallback(struct __sk_buff *skb, struct conf *conf, int reason,
				    const struct flow *f, int granted, __u32 limit, __u64 now,
				    __u32 scope)
{
	void *data, *end;
	__u32 *id = link_id(skb->ifindex);
	struct link *link;

	if (!id)
		return ACT_UNSPEC;
	link = link_at(*id);
	if (!link)
		return ACT_UNSPEC;
	if (link->flags & LINK_EXTERNAL && !scope)
		return ACT_UNSPEC; /* encode_external has had it */
	if (!now)
		now = tick_ns();
	if (!(link->flags & LINK_UP)) {
		count(*id, C_FB_OFF);
		if (!scope)
			oversize(skb, conf, *id, link, 0, 0, 0, now);
		return ACT_UNSPEC;
	}
	count(*id, reason);
	if (!scope)
		oversize(skb, conf, *id, link, !!f, granted, limit, now);
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + ETH_HLEN <= end)
		own_mac(scope ? scope : *id, ((struct eth_hdr *)data)->src, now);
	let_go(skb, link, f, now);
	return ACT_UNSPEC;
}

/* Segments that the packet leaves as. */
static __always_inline __u32 segments(const struct __sk_buff *skb)
{
	__u32 size = skb->gso_size;

	if (!size)
		return 1;
	if (skb->gso_segs)
		return skb->gso_segs;
	return skb->len / size + 1; /* a virtual machine's packet may leave it out */
}

/*
 * Asks the vxlan driver where it would send to the source of this frame: turned round and cut
 * short, it goes as far as the underlay's egress hook, which notes the peer and drops it
 * (underlay.h, answer). Where there is no such hook, a frame of an unknown type arrives and is
 * ignored.
 */
static __always_inline int ask(struct __sk_buff *skb, struct conf *conf)
{
	__u8 head[ETH_HLEN + 8] __attribute__((aligned(8)));
	__u8 buf[2 * ETH_ALEN];
	__u32 *id = link_id(skb->ifindex);
	struct link *link = id ? link_at(*id) : 0;

	mark_clear(skb);
	if (!link)
		return ACT_SHOT;
	if (skb->len > ASK_LEN && xm_skb_change_tail(skb, ASK_LEN, 0))
		return ACT_SHOT;
	if (xm_skb_load_bytes(skb, 0, buf, sizeof(buf)))
		return ACT_SHOT;
	__builtin_memcpy(head, buf + ETH_ALEN, ETH_ALEN);
	__builtin_memcpy(head + ETH_ALEN, buf, ETH_ALEN);
	*(__be16 *)(head + 2 * ETH_ALEN) = be16(ETHERTYPE_LOCAL);
	__builtin_memcpy(head + ETH_HLEN, &conf->tag, 8);
	if (xm_skb_store_bytes(skb, 0, head, sizeof(head), 0))
		return ACT_SHOT;
	let_go(skb, link, 0, tick_ns());
	return ACT_UNSPEC;
}

/*
 * The clone of a packet that the fallback cannot take: of the same flow, but short, and without
 * anything in it (RFC 8200, 4.7), it asks for a grant or shows where the FDB sends the flow.
 */
static __always_inline int probe(struct __sk_buff *skb, struct ip_hdr *ip, const struct flow *f,
				 __u64 now)
{
#if XM_FAMILY == 6
	__u32 *id = link_id(skb->ifindex);
	struct link *link = id ? link_at(*id) : 0;

	if (!link || !(link->flags & LINK_UP) || xm_skb_change_tail(skb, PROBE_LEN, 0))
		return ACT_SHOT;
	ip->proto = IPPROTO_NONE;
	ip->len = be16(PROBE_LEN - ETH_HLEN - IP_HDR_LEN);
	if (ip_store(skb, ip))
		return ACT_SHOT;
	let_go(skb, link, f, now);
	return ACT_UNSPEC;
#else
	return ACT_SHOT;
#endif
}

/* Would the fallback drop this packet? Then a probe asks in its place. */
static __always_inline int needs_probe(const struct __sk_buff *skb, const struct link *link,
				       const struct ip_hdr *ip, __u32 seg_len)
{
	__u32 mtu;

	if (XM_FAMILY == 4 || (skb->gso_size && ip->proto == IPPROTO_TCP))
		return 0;
	mtu = underlay_mtu(link);
	return mtu && seg_len + VXLAN_OVERHEAD > mtu;
}

/* Must a fallback packet show first that the FDB still sends this flow to the entry's peer? */
static __always_inline int is_stale(const struct entry *live, const struct link *link)
{
	return !(link->flags & LINK_UP) || live->gen != link->tx_gen;
}

/* A packet takes the fallback to ask for renewal; only the egress hook can say that it has left. */
static __always_inline void ask_anew(struct entry *live, const struct link *link, __u64 now)
{
	live->asked = now;
	live->gen = link->tx_gen - 1;
}

#if XM_EXTERNAL
#define OUTER struct outer
#else
#define OUTER int
#endif

/*
 * On to the vxlan driver, for this reason. It is set behind the branch, where only such packets
 * come by: else the compiler sets it in front, for all.
 */
#define FALL(why)                                                                                  \
	do {                                                                                       \
		reason = (why);                                                                    \
		opaque(reason);                                                                    \
		goto fallback;                                                                     \
	} while (0)

/* outer: of a packet in an external link; else null, which the compiler knows. */
static __always_inline int encode(struct __sk_buff *skb, const OUTER *outer)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	const struct flow *solicit = 0;
	__u64 l4_len, segs, len, seg_len, diff, way, by, summed;
	__u32 limit = 0;
	struct scratch *scratch;
	struct entry *live, e;
	struct ip_hdr old;
	struct conf *conf;
	struct link *link;
	struct pair *pair;
	struct eth_hdr *eth;
	struct hop *hop;
	struct flow f = {};
	int reason, granted = 0, probing = 0, stale, due;
	__u8 first = 0, variant;
	__u64 now = 0;

	conf = conf_get();
	scratch = scratch_get();
	if (!conf || !scratch)
		return ACT_UNSPEC;
	if (unlikely(marked(skb, conf) && (skb->mark & 0xf) == KIND_ASK))
		return ask(skb, conf);
	if (XM_FAMILY == 6 && marked(skb, conf) && (skb->mark & 0xf) == KIND_PROBE) {
		mark_clear(skb);
		probing = 1;
	}
	if (unlikely(skb->protocol != be16(ETHERTYPE_IP)))
		FALL(C_FB_NOT_IP);
	if (unlikely(skb->vlan_present))
		FALL(C_FB_VLAN);
	if (unlikely(data + ETH_HLEN + IP_HDR_LEN + 14 > end)) {
		len = ETH_HLEN + IP_HDR_LEN + 20;
		len = skb->len < len ? skb->len : len;
		xm_skb_pull_data(skb, len);
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
	}
	if (unlikely(data + ETH_HLEN + IP_HDR_LEN > end))
		FALL(C_FB_HEADER);
	eth = data;
	old = *(struct ip_hdr *)(data + ETH_HLEN);
	if (unlikely(eth->proto != be16(ETHERTYPE_IP)))
		FALL(C_FB_NOT_IP);
	if (ip_needs_first(&old)) {
		__u8 *at = data + ETH_HLEN + IP_HDR_LEN;

		if (unlikely((void *)(at + 1) > end))
			FALL(C_FB_HEADER);
		first = *at;
	}
	variant = 0;
	if (unlikely(!ip_usual(&old, eth->dst[0]))) {
		reason = ip_reason(&old, eth->dst[0], first, &variant);
		if (reason)
			goto fallback;
	}
	if (unlikely(tos_local_use(ip_tos(&old))))
		FALL(C_FB_DSCP);
	len = ip_len(&old);
	if (unlikely(ETH_HLEN + len != skb->len))
		FALL(C_FB_LENGTH);
	l4_len = len - IP_HDR_LEN;
	segs = segments(skb);
	seg_len = len;
	if (segs > 1) {
		if (unlikely(variant & XM_VAR_NODF))
			FALL(C_FB_DF_CLEAR);
		if (unlikely(!segments_ok(conf, segs)))
			FALL(C_FB_SEGMENTS);
		seg_len = IP_HDR_LEN + UDP_HDR_LEN + skb->gso_size;
		if (old.proto == IPPROTO_TCP) {
			__u8 *doff = data + ETH_HLEN + IP_HDR_LEN + 12;

			if (unlikely((void *)doff + 1 > end))
				FALL(C_FB_HEADER);
			seg_len = IP_HDR_LEN + (*doff >> 4) * 4 + skb->gso_size;
		}
	}
	f.from = eth_from(eth) | (__u64)(ip_tos(&old) >> 2) << 48 | (__u64)variant << 56;
	f.to = eth_to(eth);
	f.sip = old.src;
	f.dip = old.dst;
	f.ifindex = skb->ifindex;
#if XM_EXTERNAL
	if (outer)
		f.ifindex = outer->where;
#endif

	/* From here on the packet could be encoded, if its flow had a grant. */
	solicit = &f;
	now = clock_of(scratch);
	if (unlikely(probing))
		return probe(skb, &old, &f, now);
	live = flow_get(&f);
	if (unlikely(!live))
		FALL(C_FB_NO_GRANT);
	copy_words(&e, live, ENTRY_WORDS);
	if (unlikely(now >= e.lease_end))
		FALL(C_FB_EXPIRED);
	link = link_at(e.link);
	pair = pair_at(e.pair);
	if (unlikely(!link || !pair))
		FALL(C_FB_TORN);
	copy_words(&e.local, pair, ADDR_WORDS);
	if (unlikely(pair->gen != e.pair_gen))
		FALL(C_FB_EXPIRED);
	if (unlikely(e.seal != seal_entry(&f, &e)))
		FALL(C_FB_TORN);
	granted = 1;
#if XM_EXTERNAL
	/* Whoever has attached the metadata says where this packet goes, and it may be elsewhere.
	 */
	if (outer &&
	    ((outer->dst && outer->dst != e.peer) || (outer->src && outer->src != e.local)))
		FALL(C_FB_UNVOUCHED);
#endif
	stale = is_stale(live, link);
	due = now + e.renew_ms * NSEC_PER_MSEC >= e.lease_end &&
	      later_by(now, live->asked, NSEC_PER_SEC);
	if (unlikely(stale || due)) {
		if (needs_probe(skb, link, &old, seg_len) &&
		    later_by(now, live->asked, 100 * NSEC_PER_MSEC)) {
			ask_anew(live, link, now);
			send_probe(skb, conf);
			data = (void *)(long)skb->data;
			end = (void *)(long)skb->data_end;
			due = 0;
			stale = is_stale(live, link); /* the egress hook has just seen it leave */
		}
		if (stale)
			FALL(C_FB_UNVOUCHED);
		if (due) {
			ask_anew(live, link, now);
			FALL(C_FB_RENEWAL);
		}
	}
	/* Another device may be the way to the peer by now. */
	hop = hop_at(scratch, &e);
	if (likely(hop_known(hop, hop_now(scratch, &e), &e))) {
		way = hop->way;
		by = hop->by;
	} else {
		int hooked = way_hooked(skb, conf, link, &e, live, now);

		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		if (!hooked) {
			granted = 0;
			FALL(C_FB_ROUTE);
		}
		way = way_to(skb, e.local, e.peer);
		by = way_by(skb, way, e.oif, e.local, e.peer);
		hop = hop_take(hop, hop_now(scratch, &e), &e, way, by);
	}
	if (unlikely(!way_stays(live, way, by))) {
		if (needs_probe(skb, link, &old, seg_len) &&
		    later_by(now, live->asked, 100 * NSEC_PER_MSEC)) {
			ask_anew(live, link, now);
			send_probe(skb, conf);
		}
		FALL(C_FB_ROUTE);
	}

	/* From here on it depends on the packet, not on the flow. */
	solicit = 0;
	granted = 0;
	if (old.proto == IPPROTO_UDP) {
		struct udp_hdr *udp = data + ETH_HLEN + IP_HDR_LEN;

		if (unlikely((void *)udp + 4 > end))
			FALL(C_FB_HEADER);
		if (unlikely(udp->dst == link->port))
			FALL(C_FB_TUNNEL_PORT);
	}
	if (unlikely(seg_len > e.mtu)) {
		limit = e.mtu;
		FALL(C_FB_MTU);
	}

	/* Counted here, where the table's lines are fetched beside those above. */
	count_bytes(e.link, C_ENCODED, 1, skb->len);
	diff = csum_diff(old.src, old.dst, e.local, e.peer);
	summed = ip_summed(skb);
	if (unlikely(l4_csum_write(skb, &old, l4_len, diff, summed))) {
		count_bytes(e.link, C_ENCODED, -1, -(__s64)skb->len);
		FALL(C_FB_HEADER);
	}
	if (unlikely(ip_encode(skb, &old, &e, diff, summed))) {
		count_bytes(e.link, C_ENCODED, -1, -(__s64)skb->len);
		count(e.link, C_ERROR); /* cannot be: it was there before */
		return ACT_SHOT;
	}
	if (unlikely(live->sent < USED_ENOUGH) && ++live->sent == USED_ENOUGH)
		live->sent_at = now;
	mark_set(skb, conf, KIND_ENCODED);
	return forward(skb, hop, &e);

fallback:
	if (probing)
		return ACT_SHOT;
#if XM_EXTERNAL
	if (outer)
		return fallback(skb, conf, reason, solicit, granted, limit, now, outer->where);
#endif
	return fallback(skb, conf, reason, solicit, granted, limit, now, 0);
}

#if XM_EXTERNAL
static __always_inline int encode_external(struct __sk_buff *skb)
{
	struct outer outer;
	struct link *link;
	__u32 idx;

	/* Without metadata the driver drops it, too. */
	if (outer_of(skb, &link, &idx, &outer))
		return ACT_UNSPEC;
	/*
	 * It has come out of a tunnel, and still has those metadata: a bridge without vlan_tunnel,
	 * for example. The driver sends no packet whose metadata are of reception; ours look
	 * otherwise.
	 */
	if (outer.dst == link->local)
		return ACT_SHOT;
	return encode(skb, &outer);
}
#endif

#endif
