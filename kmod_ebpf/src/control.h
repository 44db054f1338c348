/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The key negotiation: OFFER (receiver of the flow), ACCEPT (sender), CONFIRM (receiver).
 * Each answer is the packet that asked for it, turned round in place.
 */
#ifndef XMASQ_CONTROL_H
#define XMASQ_CONTROL_H

#include "csum.h"
#include "event.h"
#include "pair.h"
#include "parse.h"
#include "route.h"
#include "seal.h"
#include "siphash.h"

#define SOLICIT_AGE (2 * NSEC_PER_SEC) /* an OFFER must follow the fallback packet so soon */
#define BACKOFF_MAX_MS 60000
#define CONFIRM_LOST_MS 1000
#define ANOTHER_KEY_MS                                                                             \
	64 /* OFFERs unanswered so long: perhaps the sender still has the key in use */
#define MAC_SEEN_FRESH (10 * NSEC_PER_SEC)
#define LEASE_MIN_MS 1000
#define RENEW_FIRST_MS 1000

/* Over all of the control payload but the authenticator, and the VTEP addresses. */
static __always_inline __u64 ctl_auth(const struct link *link, const struct ctl_frame *fr)
{
	const __u32 len = __builtin_offsetof(struct ctl, auth);
	struct scratch *scratch = scratch_get();
	char *w;

	if (!scratch)
		return 0;
	w = (char *)scratch->text;
	__builtin_memcpy(w, &fr->ctl, len);
	__builtin_memcpy(w + len, &fr->ip.dst, sizeof(addr_t));
	__builtin_memcpy(w + len + sizeof(addr_t), &fr->ip.src, sizeof(addr_t));
	return siphash_words(scratch->text, CTL_AUTH_WORDS, link->secret[0], link->secret[1]);
}

/* Fills in the headers of a control packet of len bytes, IP header included. */
static __always_inline void ctl_seal(const struct conf *conf, const struct link *link,
				     struct ctl_frame *fr, __u32 key, __u32 len)
{
	ip_control(&fr->ip, conf, key, len);
	fr->udp.src = link->port;
	fr->udp.dst = link->port;
	fr->udp.len = be16(len - IP_HDR_LEN);
	fr->udp.check = 0;
	fr->ctl.auth = link->flags & LINK_SECRET ? ctl_auth(link, fr) : 0;
}

static __always_inline void ctl_flow(const struct ctl_frame *fr, __u32 where, struct flow *f)
{
	__builtin_memset(f, 0, sizeof(*f));
	f->ifindex = where;
	f->sip = fr->ctl.sip;
	f->dip = fr->ctl.dip;
	__builtin_memcpy(f->smac, fr->ctl.smac, ETH_ALEN);
	__builtin_memcpy(f->dmac, fr->ctl.dmac, ETH_ALEN);
	f->dscp = fr->ctl.dscp & 0x3f;
	f->variant = fr->ctl.variant;
}

/* The packets that we encoded with this key were not decoded: the path eats them. */
static __always_inline void unused_key(struct __sk_buff *skb, struct pair *pair,
				       const struct ctl_frame *fr, __u64 now)
{
	struct pool *pool = pool_get();

	if (!pool)
		return;
	xm_spin_lock(&pool->lock);
	if (now >= pair->off_until)
		pair_off(pair, now);
	xm_spin_unlock(&pool->lock);
	event(skb, EV_PEER_OFF, 0, 0, &fr->ip.dst, &fr->ip.src, 0, pair->off_for / NSEC_PER_MSEC);
}

/*
 * The handlers return the device to send the answer from, which is the same packet with the
 * fields that they have changed; or 0.
 */

/* Sender of the flow. */
static __always_inline __u32 on_offer(struct __sk_buff *skb, struct conf *conf, __u32 idx,
				      struct link *link, struct ctl_frame *fr, __u64 now)
{
	__u32 key = be32(fr->ctl.key), lease = be32(fr->ctl.lease_ms), nonce_b, pair_idx;
	struct txkey_key k = { .local = fr->ip.dst, .peer = fr->ip.src, .key = key };
	struct mac_key mk = { .link = mac_scope(link, idx, be32(fr->ctl.vni)) };
	struct mac_seen *seen;
	struct solicit *live_s, *s;
	struct txkey *live_t, *t;
	__u64 until;
	struct pending *live_p, *p;
	struct scratch *scratch = scratch_get();
	struct pair *pair;
	struct entry *e;
	struct flow *f;
	__u32 oif;

	if (!scratch)
		return 0;
	t = &scratch->txkey;
	p = &scratch->pending;
	s = &scratch->solicit;
	f = &scratch->flow;
	ctl_flow(fr, flow_where(link, idx, be32(fr->ctl.vni)), f);
	f->peer = fr->ip.src;
	live_s = solicit_get(f);
	if (!live_s) {
		count(idx, C_CTL_UNSOLICITED);
		return 0;
	}
	copy_words(s, live_s, sizeof(*s) / 8);
	if (s->seal != seal_solicit(f, s) || !addr_equal(s->local, fr->ip.dst) ||
	    now - s->at > SOLICIT_AGE) {
		count(idx, C_CTL_UNSOLICITED);
		return 0;
	}
	oif = s->oif;
	/* Not from a host other than the one that the destination was just heard at. */
	__builtin_memcpy(mk.mac, f->dmac, ETH_ALEN);
	seen = mac_get(&mk);
	if (seen && addr_is_set(seen->peer) && !addr_equal(seen->peer, fr->ip.src) &&
	    now - seen->at < MAC_SEEN_FRESH) {
		count(idx, C_CTL_UNSOLICITED);
		return 0;
	}
	if (now < conf->tx_hold) {
		count(idx, C_HELD);
		return 0;
	}
	if (lease > link->lease_ms)
		lease = link->lease_ms;
	pair_idx = pair_make(fr->ip.dst, fr->ip.src, now);
	pair = pair_at(pair_idx);
	if (!pair_idx || !pair) {
		count(idx, C_EXHAUSTED);
		return 0;
	}
	pair->heard = now;
	if (now < pair->off_until)
		return 0;
	f->peer = ADDR_ANY;
	e = flow_get(f);
	if (e && now < e->off_until)
		return 0;

	/* One key, one flow: whatever a receiver may have forgotten, its sender has not. */
	live_t = txkey_get(&k);
	if (live_t) {
		copy_words(t, live_t, sizeof(*t) / 8);
		if (t->seal != seal_txkey(&k, t) || (now < t->until && !flow_equal(&t->flow, f))) {
			count(idx, C_CTL_CONFLICT);
			event(skb, EV_CONFLICT, idx, f, &fr->ip.dst, &fr->ip.src, key, 0);
			return 0;
		}
	}
	until = now + (__u64)(lease + link->guard_ms) * NSEC_PER_MSEC;
	/* Never sooner than an earlier lease of the same flow said. */
	if (!live_t || !flow_equal(&t->flow, f) || t->until < until)
		t->until = until;
	t->flow = *f;
	t->seal = seal_txkey(&k, t);
	if (txkey_set(&k, t))
		return 0;

	nonce_b = fr->ctl.nonce_b;
	live_p = pending_get(f);
	if (live_p) {
		copy_words(p, live_p, sizeof(*p) / 8);
		if (p->seal != seal_pending(f, p) || !addr_equal(p->peer, fr->ip.src) ||
		    p->key != key || p->nonce_b != nonce_b || now - p->at > SOLICIT_AGE)
			live_p = 0;
	}
	if (!live_p) {
		p->peer = fr->ip.src;
		p->key = key;
		p->nonce_a = nonce(conf, now);
		p->nonce_b = nonce_b;
		p->oif = oif;
		p->lease_ms = lease;
		p->tx_gen = s->tx_gen;
		p->sent = 0;
		/* Not what may still be under way, beside the fallback packet that asked. */
		if (e && e->key == key && addr_equal(e->peer, fr->ip.src) && now < e->lease_end) {
			p->sent =
				e->sent >= USED_ENOUGH && s->at > e->sent_at + 500 * NSEC_PER_MSEC;
			e->sent = 0; /* as the receiver's count will be, with this ACCEPT */
		}
		p->at = now;
		p->seal = seal_pending(f, p);
		if (pending_set(f, p))
			return 0;
	}
	pair_busy(pair, t->until);
	fr->ctl.nonce_a = p->nonce_a;
	fr->ctl.flags = conf->xbits & XM_CTL_XBITS;
	fr->ctl.type = XM_ACCEPT;
	count(idx, C_ACCEPT_TX);
	return oif;
}

/* Receiver of the flow. */
static __always_inline __u32 on_accept(struct __sk_buff *skb, struct conf *conf, __u32 idx,
				       struct link *link, struct ctl_frame *fr, __u64 now)
{
	struct scratch *scratch = scratch_get();
	struct grant *live, g = { .key = be32(fr->ctl.key), .backoff_ms = 1 };
	__u32 pair_idx, used = 0;
	struct pair *pair;
	struct slot *slot;
	struct flow *f;
	int first;

	if (!scratch || !link_there(skb, link, now))
		return 0;
	f = &scratch->flow;
	ctl_flow(fr, flow_where(link, idx, be32(fr->ctl.vni)), f);
	f->peer = fr->ip.src;
	pair_idx = pair_find(fr->ip.dst, fr->ip.src);
	pair = pair_at(pair_idx);
	slot = pair ? slot_of(pair, g.key) : 0;
	first = !slot || slot->valid < now; /* a hint, for the event */
	if (!pair_idx || !pair ||
	    !key_confirm(pair_idx, pair, f, link, g.key, fr->ctl.nonce_b, now, &used)) {
		count(idx, C_CTL_NONCE);
		return 0;
	}
	pair->heard = now;
	/* Confirmed again, though nothing came: the CONFIRMs get lost. Not for every packet, then.
	 */
	live = grant_get(f);
	if (live && !used && live->backoff_ms > 1)
		g.backoff_ms =
			live->backoff_ms < CONFIRM_LOST_MS ? live->backoff_ms : CONFIRM_LOST_MS;
	g.next_offer = now + g.backoff_ms * NSEC_PER_MSEC;
	grant_set(f, &g);
	event(skb, first ? EV_KEY_GRANTED : EV_KEY_RENEWED, idx, f, &fr->ip.dst, &fr->ip.src, g.key,
	      link->lease_ms);
	fr->ctl.lease_ms = be32(link->lease_ms);
	fr->ctl.flags = (conf->xbits & XM_CTL_XBITS) | (used ? XM_CTL_USED : 0);
	fr->ctl.type = XM_CONFIRM;
	count(idx, C_CONFIRM_TX);
	return skb->ifindex;
}

/*
 * Before 5.12 the kernel does not tell a route's MTU, only that a length exceeds it: sixteen
 * questions find the longest that may go, bit by bit. Without branches, or the verifier looks at
 * every sequence of answers.
 */
static __always_inline __u32 route_mtu(struct __sk_buff *skb, const struct entry *e)
{
	struct bpf_fib_lookup fib;
	__u32 bit, too_long, mtu = 0;
	addr_t nexthop;

	for (bit = 1U << 15; bit; bit >>= 1) {
		__builtin_memset(&fib, 0, sizeof(fib));
		fib.ifindex = e->oif;
		too_long = ip_fib(skb, &fib, e->local, e->peer, mtu | bit, &nexthop);
		opaque(too_long);
		too_long = ((too_long ^ BPF_FIB_LKUP_RET_FRAG_NEEDED) - 1) >> 31;
		mtu |= bit & (too_long - 1);
	}
	return mtu;
}

/*
 * The MTU on the way to the peer, and the next hop, if the kernel tells (a host that does not
 * forward gets BPF_FIB_LKUP_RET_FWD_DISABLED).
 */
static __always_inline void entry_route(struct __sk_buff *skb, struct entry *e)
{
	struct underlay *u = underlay_get(e->oif);
	struct bpf_fib_lookup fib = {};
	addr_t nexthop;
	__u32 mtu;
	int ret;

	e->mtu = u && u->mtu < 65535 ? u->mtu : 65535;
	if (!u)
		e->mtu = 0; /* no hook there, nobody to clear our mark: never encode */
	fib.ifindex = e->oif;
	ret = ip_fib(skb, &fib, e->local, e->peer, 1, &nexthop);
	if (ret == BPF_FIB_LKUP_RET_NOT_FWDED)
		e->mtu = 0; /* no way by that device: the kernel would take the peer for a neighbour
			     */
	if ((ret != BPF_FIB_LKUP_RET_SUCCESS && ret != BPF_FIB_LKUP_RET_NO_NEIGH) ||
	    fib.family != XM_AF || fib.ifindex != e->oif)
		return;
	e->route = 1;
	e->nexthop = nexthop;
	mtu = fib.tot_len; /* comes back as the MTU since 5.12 */
	if (mtu == 1)
		mtu = route_mtu(skb, e);
	if (mtu >= 576 && mtu < e->mtu)
		e->mtu = mtu;
}

/* Sender of the flow: from now on it is encoded. */
static __always_inline __u32 on_confirm(struct __sk_buff *skb, struct conf *conf, __u32 idx,
					struct link *link, struct ctl_frame *fr, __u64 now)
{
	__u32 lease = be32(fr->ctl.lease_ms), key = be32(fr->ctl.key), pair_idx;
	struct scratch *scratch = scratch_get();
	struct pending *live, *p;
	struct entry *e, *old;
	struct pair *pair;
	struct flow *f;
	__u32 renew;
	int first;

	if (!scratch)
		return 0;
	p = &scratch->pending;
	e = &scratch->entry;
	f = &scratch->flow;
	ctl_flow(fr, flow_where(link, idx, be32(fr->ctl.vni)), f);
	live = pending_get(f);
	if (!live) {
		count(idx, C_CTL_NONCE);
		return 0;
	}
	copy_words(p, live, sizeof(*p) / 8);
	if (lease > p->lease_ms)
		lease = p->lease_ms;
	if (p->seal != seal_pending(f, p) || !addr_equal(p->peer, fr->ip.src) || p->key != key ||
	    p->nonce_a != fr->ctl.nonce_a || p->nonce_b != fr->ctl.nonce_b ||
	    now - p->at >= (__u64)lease * NSEC_PER_MSEC || pending_del(f)) {
		count(idx, C_CTL_NONCE);
		return 0;
	}
	pair_idx = pair_find(fr->ip.dst, fr->ip.src);
	pair = pair_at(pair_idx);
	if (!pair_idx || !pair || now < pair->off_until)
		return 0;
	pair->heard = now;
	if (p->sent && !(fr->ctl.flags & XM_CTL_USED)) {
		unused_key(skb, pair, fr, now);
		count(idx, C_PATH_OFF);
		return 0;
	}
	if (fr->ctl.flags & XM_CTL_USED)
		pair->off_for = 0; /* the path is good: a later verdict starts small again */
	old = flow_get(f);
	if (old && now < old->off_until)
		return 0;
	first = !old || old->key != key || !addr_equal(old->peer, fr->ip.src) ||
		now >= old->lease_end;
	renew = lease / 2;
	/* The first renewal comes early: it tells whether encoded packets get through. */
	if (first && renew > RENEW_FIRST_MS)
		renew = RENEW_FIRST_MS;

	__builtin_memset(e, 0, sizeof(*e));
	e->lease_end = p->at + (__u64)lease * NSEC_PER_MSEC;
	e->renew_ms = lease - renew;
	e->local = fr->ip.dst;
	e->peer = fr->ip.src;
	e->oif = p->oif;
	e->pair_gen = pair->gen;
	e->pair = pair_idx;
	e->link = idx;
	e->wire = wire_make(conf, key);
	e->key = key;
	entry_route(skb, e);
	e->way = way_to(skb, e->local, e->peer);
	e->seal = seal_entry(f, e);
	e->gen = p->tx_gen;
	e->proven = !!(fr->ctl.flags & XM_CTL_USED) || (!first && old->proven);
	e->off_ms = e->proven || !old ? 0 : old->off_ms;
	flow_set(f, e);
	event(skb, first ? EV_FLOW_ENCODED : EV_FLOW_RENEWED, idx, f, &e->local, &e->peer, key,
	      lease);
	return 0;
}

/* A control packet to one of our VTEP addresses and its port. */
static __always_inline int control(struct __sk_buff *skb, struct conf *conf, struct ctl_frame *fr)
{
	__u64 now = xm_boot_ns();
	__u32 idx, key, oif;
	struct link *link;
	addr_t src;

	if (fr->ctl.version != XM_VERSION) {
		count(0, C_CTL_VERSION);
		return ACT_SHOT;
	}
	idx = link_by_vni(fr->ip.dst, be32(fr->ctl.vni));
	link = link_at(idx);
	if (!idx || !link || fr->udp.dst != link->port) {
		count(0, C_CTL_BAD);
		return ACT_SHOT;
	}
	if (!(link->flags & LINK_UP))
		return ACT_SHOT;
	key = be32(fr->ctl.key);
	if (fr->ctl.seg_bits != conf->seg_bits ||
	    (fr->ctl.flags & XM_CTL_XBITS) != (conf->xbits & XM_CTL_XBITS) || !key_ok(conf, key) ||
	    be32(fr->ctl.lease_ms) < LEASE_MIN_MS) {
		count(idx, C_CTL_PARAMS);
		event(skb, EV_CTL_REFUSED, idx, 0, &fr->ip.dst, &fr->ip.src, key, C_CTL_PARAMS);
		return ACT_SHOT;
	}
	if (link->flags & LINK_SECRET ? fr->ctl.auth != ctl_auth(link, fr) : fr->ctl.auth != 0) {
		count(idx, C_CTL_AUTH);
		event(skb, EV_CTL_REFUSED, idx, 0, &fr->ip.dst, &fr->ip.src, key, C_CTL_AUTH);
		return ACT_SHOT;
	}
	/* A path that spoils either would spoil the encoded packets too (I6). */
	if (!ip_control_ok(&fr->ip, conf, key)) {
		count(idx, C_CTL_PATH);
		event(skb, EV_CTL_REFUSED, idx, 0, &fr->ip.dst, &fr->ip.src, key, C_CTL_PATH);
		return ACT_SHOT;
	}
	switch (fr->ctl.type) {
	case XM_OFFER:
		count(idx, C_OFFER_RX);
		oif = on_offer(skb, conf, idx, link, fr, now);
		break;
	case XM_ACCEPT:
		count(idx, C_ACCEPT_RX);
		oif = on_accept(skb, conf, idx, link, fr, now);
		break;
	case XM_CONFIRM:
		count(idx, C_CONFIRM_RX);
		oif = on_confirm(skb, conf, idx, link, fr, now);
		break;
	default:
		count(idx, C_CTL_BAD);
		return ACT_SHOT;
	}
	if (!oif)
		return ACT_SHOT;
	/* Turned round, it goes by the route of the moment. */
	src = fr->ip.src;
	fr->ip.src = fr->ip.dst;
	fr->ip.dst = src;
	ctl_seal(conf, link, fr, key, skb->len - ETH_HLEN);
	if (xm_skb_store_bytes(skb, ETH_HLEN, fr, sizeof(*fr), 0))
		return ACT_SHOT;
	mark_set(skb, conf, KIND_CONTROL);
	return redirect_routed(skb, oif);
}

#endif
