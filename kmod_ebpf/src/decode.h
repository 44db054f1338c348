/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Underlay ingress: an encoded packet is restored and enters the link; one with an unknown key
 * is bounced. At its sender, a bounced packet is restored and takes the fallback.
 */
#ifndef XMASQ_DECODE_H
#define XMASQ_DECODE_H

#include "csum.h"
#include "event.h"
#include "external.h"
#include "pair.h"
#include "parse.h"
#include "seal.h"

/* The IP packet's length, or 0 if the frame does not hold it. */
static __always_inline __u32 wire_len(const struct __sk_buff *skb, const struct ip_hdr *wire)
{
	__u32 len = ip_len(wire);

	if (!wire->len && skb->gso_size)
		return skb->len - ETH_HLEN; /* GRO made more than 64 KB of it (BIG TCP) */
	return len >= IP_HDR_LEN && ETH_HLEN + len <= skb->len ? len : 0;
}

static __always_inline int store_eth(struct __sk_buff *skb, const __u8 *dst, const __u8 *src)
{
	__u8 eth[ETH_HLEN + 2] __attribute__((aligned(8)));

	__builtin_memcpy(eth, dst, ETH_ALEN);
	__builtin_memcpy(eth + ETH_ALEN, src, ETH_ALEN);
	*(__be16 *)(eth + 2 * ETH_ALEN) = be16(ETHERTYPE_IP);
	return xm_skb_store_bytes(skb, 0, eth, ETH_HLEN, 0);
}

/* Puts the container's headers in place of the encoded ones. from, to: as in a flow. */
static __always_inline int restore(struct __sk_buff *skb, const struct ip_hdr *wire, addr_t sip,
				   addr_t dip, __u64 from, __u64 to)
{
	__u32 len = wire_len(skb, wire), diff = csum_diff(wire->src, wire->dst, sip, dip);
	struct {
		__u64 to; /* its first two bytes are in front of the packet's first */
		__u64 from;
		struct ip_hdr ip;
		struct l4_head l4;
	} head;
	__u64 summed;
	int more;

	/* Ethernet pads short frames on the wire; the container's frame had none. */
	if (skb->len > ETH_HLEN + len && xm_skb_change_tail(skb, ETH_HLEN + len, 0))
		return -1;
	summed = ip_summed(skb);
	more = l4_csum_copy(skb, wire, len - IP_HDR_LEN, diff, summed, &head.l4);
	if (more < 0)
		return -1;
	head.to = to << 16;
	head.from = from << 16 >> 16 | (__u64)be16(ETHERTYPE_IP) << 48;
	ip_decode(skb, &head.ip, wire, sip, dip, (__u8)(from >> 48), (__u8)(from >> 56), diff,
		  summed);
	return xm_skb_store_bytes(skb, 0, (__u8 *)&head + 2, ETH_HLEN + IP_HDR_LEN + more, 0);
}

/* Sends an encoded packet whose key nobody holds back to its sender, whole. */
static __always_inline int bounce(struct __sk_buff *skb, struct conf *conf,
				  const struct ip_hdr *wire)
{
	struct ip_hdr ip;

	ip_bounce(&ip, wire, conf);
	if (ip_store(skb, &ip))
		return ACT_SHOT;
	count(0, C_BOUNCE_TX);
	event(skb, EV_KEY_UNKNOWN, 0, 0, &wire->dst, &wire->src, wire_key(conf, conf->mark, wire),
	      0);
	mark_set(skb, conf, KIND_CONTROL);
	return redirect_routed(skb, skb->ifindex);
}

/* Has a packet come out of the link of a flow, as if the vxlan driver had received it from peer. */
static __always_inline int into_link(struct __sk_buff *skb, struct conf *conf, __u32 where,
				     addr_t peer)
{
	mark_set(skb, conf, KIND_DECODED);
#if XM_EXTERNAL
	if (unlikely(where & WHERE_EXTERNAL)) {
		struct link *link = link_at(where_link(where));

		if (!link)
			return ACT_SHOT;
		carry(skb, conf, where, peer);
		where = link->ifindex;
	}
#endif
	return xm_redirect(where, F_INGRESS);
}

/* Copies a slot to s. Is it that of this packet's key, and granted? */
static __always_inline int slot_reads(const struct slot *live, struct slot *s,
				      const struct ip_hdr *wire, __u32 key, __u64 now)
{
	copy_words(s, live, SLOT_WORDS);
	return s->key == key && addr_equal(s->peer, wire->src) && addr_equal(s->local, wire->dst) &&
	       now < s->valid && s->seal == seal_slot(s);
}

/*
 * The slot of an encoded packet's key, copied to s, and its link, if the packet can be decoded;
 * else null. This is all that says whose packet it is.
 */
static __always_inline struct slot *granted(struct __sk_buff *skb, const struct conf *conf,
					    const struct ip_hdr *wire, struct slot *s,
					    struct link **link)
{
	__u32 key = wire_key(conf, conf->mark, wire), idx;
	__u32 *hint = block_hint(wire->dst, wire->src, key);
	__u64 now = tick_ns();
	struct block *block;
	struct slot *live;
	struct pair *pair;

	if (unlikely(!key || !hint))
		return 0;
	/* If it is the slot, it says so itself; nobody needs to ask whose block that is. */
	block = block_at(*hint);
	live = block ? slot_in(block, key) : 0;
	if (unlikely(!live || !slot_reads(live, s, wire, key, now))) {
		idx = pair_find(wire->dst, wire->src);
		pair = pair_at(idx);
		if (!idx || !pair)
			return 0;
		idx = block_id(pair, key);
		block = idx ? block_at(idx - 1) : 0;
		if (!block)
			return 0;
		*hint = idx - 1;
		live = slot_in(block, key);
		/* Also if a CONFIRM was just writing. */
		if (!slot_reads(live, s, wire, key, now))
			return 0;
	}
	*link = link_at(s->link);
	if (unlikely(!*link || (*link)->rx_gen != s->rx_gen ||
		     flow_where(*link, s->link, s->ifindex) != s->ifindex ||
		     !link_there(skb, *link, now)))
		return 0;
	return live;
}

/* live, s: as granted() has found them. */
static __always_inline int decode(struct __sk_buff *skb, struct conf *conf,
				  const struct ip_hdr *wire, struct slot *live,
				  const struct slot *s)
{
	__u32 len = ETH_HLEN + wire_len(skb, wire);

	/* Early, as in encode. */
	count_bytes(s->link, C_DECODED, 1, len);
	if (unlikely(!live->used))
		live->used = 1;
	if (unlikely(restore(skb, wire, s->sip, s->dip, s->from, s->to))) {
		count_bytes(s->link, C_DECODED, -1, -(__s64)len);
		count(s->link, C_ERROR);
		return ACT_SHOT;
	}
	return into_link(skb, conf, s->ifindex, s->peer);
}

/*
 * Something is wrong between us and a peer. Two such within ten seconds put the whole peer back
 * into the fallback, for a minute at first. end: all flows to it are to be negotiated anew at once.
 */
static __always_inline void suspect(struct __sk_buff *skb, addr_t local, addr_t peer, __u64 now,
				    int end)
{
	__u32 idx = pair_find(local, peer);
	struct pool *pool = pool_get();
	struct pair *pair;
	int off = 0;

	if (!idx || !pool)
		return;
	pair = pair_at(idx);
	if (!pair)
		return;
	xm_spin_lock(&pool->lock);
	if (now - pair->strays_since > 10 * NSEC_PER_SEC) {
		pair->strays_since = now;
		pair->strays = 0;
	}
	if (++pair->strays >= 2 && now >= pair->off_until) {
		pair_off(pair, now);
		off = 1;
	} else if (end) {
		pair->gen++;
	}
	xm_spin_unlock(&pool->lock);
	if (off) {
		count(0, C_PATH_OFF);
		event(skb, EV_PEER_OFF, 0, 0, &local, &peer, 0, pair->off_for / NSEC_PER_MSEC);
	}
}

/* The path, or somebody, spoils keys: a peer bounces packets with keys that we do not use. */
static __always_inline void stray(struct __sk_buff *skb, addr_t local, addr_t peer, __u32 key,
				  __u64 now)
{
	count(0, C_STRAY);
	event(skb, EV_PEER_STRAY, 0, 0, &local, &peer, key, 0);
	suspect(skb, local, peer, now, 0);
}

static __always_inline int bounced(struct __sk_buff *skb, struct conf *conf,
				   const struct ip_hdr *wire)
{
	struct txkey_key k = {
		.local = wire->dst,
		.peer = wire->src,
		.key = wire_key(conf, conf->bounce, wire),
	};
	__u64 now = xm_boot_ns();
	struct scratch *scratch = scratch_get();
	struct txkey *live, *t;
	struct entry *e;
	__u32 where, idx;

	if (!scratch || !wire_len(skb, wire))
		return ACT_UNSPEC;
	t = &scratch->txkey;
	count(0, C_BOUNCE_RX);
	live = txkey_get(&k);
	/* Empty: a key is taken back (xmasq_link/_withdraw.py), maybe one forgotten here. */
	if (!live && ip_len(wire) == IP_HDR_LEN)
		return ACT_SHOT;
	if (!live) {
		stray(skb, wire->dst, wire->src, k.key, now);
		return pair_find(wire->dst, wire->src) ? ACT_SHOT : ACT_UNSPEC;
	}
	copy_words(t, live, sizeof(*t) / 8);
	if (t->seal != seal_txkey(&k, t) || now >= t->until) {
		if (ip_len(wire) != IP_HDR_LEN)
			stray(skb, wire->dst, wire->src, k.key, now);
		return ACT_SHOT;
	}
	e = flow_get(&t->flow);
	if (e && e->key == k.key && addr_equal(e->peer, wire->src)) {
		if (e->lease_end)
			event(skb, ip_len(wire) == IP_HDR_LEN ? EV_FLOW_WITHDRAWN : EV_FLOW_BOUNCED,
			      0, &t->flow, &k.local, &k.peer, k.key, 0);
		e->lease_end = 0; /* breaks the seal, too: dead for every reader */
	}
	if (ip_len(wire) == IP_HDR_LEN)
		return ACT_SHOT;
	where = t->flow.ifindex;
	idx = where_link(where);
#if XM_EXTERNAL
	if (where & WHERE_EXTERNAL) {
		struct link *link = link_at(idx);

		if (!link || !(link->flags & LINK_EXTERNAL) || link->local != wire->dst)
			return ACT_SHOT;
		/* The peer that it was sent to, by what sent it or by the FDB. */
		if (outer_set(skb, where, wire->dst, wire->src))
			return ACT_SHOT;
		where = link->ifindex;
	}
#endif
	if (restore(skb, wire, t->flow.sip, t->flow.dip, t->flow.from, t->flow.to)) {
		count(idx, C_ERROR);
		return ACT_SHOT;
	}
	count(idx, C_RESTORED);
	skb->cb[CB_RESTORED] = conf->magic; /* a capture has seen it already (capture.c) */
	/* Out of the link once more: this time there is no grant. */
	return xm_redirect(where, 0);
}

#endif
