/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The two hooks of the underlay device. Ingress sorts what bears MARK or BOUNCE; egress
 * announces and solicits with our fallback packets, makes OFFERs out of clones, and clears MARK
 * and BOUNCE from all that is not ours.
 */
#ifndef XMASQ_UNDERLAY_H
#define XMASQ_UNDERLAY_H

#include "control.h"
#include "decode.h"
#include "icmp.h"

/* The headers of a fallback packet from the outer IP header on. */
struct fallback_hdr {
	struct ip_hdr ip;
	struct udp_hdr udp;
	__u8 vxlan[VXLAN_HDR_LEN];
	struct eth_hdr eth;
	struct ip_hdr inner; /* 0 if it is no packet of our family */
	__u8 first; /* byte behind that, where it matters */
};

_Static_assert(sizeof(struct fallback_hdr) <= sizeof(((struct scratch *)0)->headers) &&
		       sizeof(struct ctl_frame) <= sizeof(((struct scratch *)0)->headers),
	       "headers fit");

#define OUTER_LEN (IP_HDR_LEN + UDP_HDR_LEN + VXLAN_HDR_LEN + ETH_HLEN)
#define INNER_OFF (ETH_HLEN + OUTER_LEN)

/* On the stack, inner lies on a word. */
_Static_assert(__builtin_offsetof(struct fallback_hdr, inner) == OUTER_LEN + 2,
	       "headers lie close");

static __always_inline __u32 vxlan_vni(const __u8 *h)
{
	return (__u32)h[4] << 16 | (__u32)h[5] << 8 | h[6];
}

/* Reads them from a packet that is as long as a tunnel packet at least. */
static __always_inline int load_headers(struct __sk_buff *skb, struct fallback_hdr *h)
{
	if (xm_skb_load_bytes(skb, ETH_HLEN, h, OUTER_LEN))
		return -1;
	if (h->eth.proto != be16(ETHERTYPE_IP) ||
	    xm_skb_load_bytes(skb, INNER_OFF, &h->inner, sizeof(h->inner))) {
		__builtin_memset(&h->inner, 0, sizeof(h->inner));
		return 0;
	}
	h->first = 0;
	if (ip_needs_first(&h->inner))
		xm_skb_load_bytes(skb, INNER_OFF + IP_HDR_LEN, &h->first, 1);
	return 0;
}

/* The flow of a fallback packet, as its sender's encode would see it; 0 if encodable. */
static __always_inline int inner_flow(const struct fallback_hdr *h, __u32 where, struct flow *f)
{
	const struct ip_hdr *ip = &h->inner;

	__builtin_memset(f, 0, sizeof(*f));
	if (h->eth.proto != be16(ETHERTYPE_IP))
		return -1;
	if (ip_reason(ip, h->eth.dst[0], h->first, &f->variant) || tos_local_use(ip_tos(ip)))
		return -1;
	f->ifindex = where;
	f->sip = ip->src;
	f->dip = ip->dst;
	__builtin_memcpy(f->smac, h->eth.src, ETH_ALEN);
	__builtin_memcpy(f->dmac, h->eth.dst, ETH_ALEN);
	f->dscp = ip_tos(ip) >> 2;
	return 0;
}

/* Is this MAC behind our link? */
static __always_inline int owns(const struct link *link, __u32 scope, const __u8 *mac, __u64 now)
{
	struct mac_key k = { .link = scope };
	struct mac_seen *seen;

	if (mac_equal(mac, link->mac))
		return 1;
	__builtin_memcpy(k.mac, mac, ETH_ALEN);
	seen = mac_get(&k);
	return seen && !addr_is_set(seen->peer) && now - seen->at < XM_OWN_AGE;
}

/* A MAC was seen at a peer. */
static __always_inline void peer_mac(struct link *link, __u32 scope, const __u8 *mac, addr_t peer,
				     __u64 now)
{
	struct mac_seen *seen, fresh = { .peer = peer, .at = now };
	struct mac_key k = { .link = scope };

	if (mac[0] & 1)
		return;
	__builtin_memcpy(k.mac, mac, ETH_ALEN);
	seen = mac_get(&k);
	if (seen && addr_equal(seen->peer, peer) && now - seen->at < NSEC_PER_SEC)
		return;
	/* One of ours is given up by the link's ingress hook, if the vxlan driver takes the frame.
	 */
	if (seen && !addr_is_set(seen->peer))
		return;
	if (seen)
		fresh.moved = seen->moved ||
			      (!addr_equal(seen->peer, peer) && link->flags & LINK_LEARNING);
	mac_set(&k, &fresh);
}

/* Receiver: a fallback packet of a peer that speaks xmasq. Offers a key if the flow is ours. */
static __always_inline int announced(struct __sk_buff *skb, struct conf *conf,
				     const struct fallback_hdr *h)
{
	__u32 vni = vxlan_vni(h->vxlan), idx, scope, pair_idx, fresh;
	struct pair_key tk = { .local = h->ip.dst, .peer = h->ip.src };
	struct mac_key mk = {};
	__u64 now = xm_boot_ns(), *told;
	struct grant *live, g;
	struct offer o = {};
	struct pair *pair;
	struct link *link;
	struct scratch *scratch = scratch_get();
	struct flow *f;
	int sent;

	if (!scratch)
		return ACT_UNSPEC;
	f = &scratch->flow;
	idx = link_by_vni(h->ip.dst, vni);
	link = link_at(idx);
	if (!idx || !link || !(link->flags & LINK_UP) || !link_there(skb, link, now))
		return ACT_UNSPEC;
	/*
	 * The host's firewall comes after this hook, and the vxlan driver after that. So keys go
	 * only to hosts that our own driver sends to: its FDB is what the operator trusts.
	 */
	told = told_get(&tk);
	if (!told || now - *told > XM_OWN_AGE) {
		/* Let the link's ingress hook ask, if the driver takes the frame in. */
		mk.link = idx;
		__builtin_memcpy(mk.mac, h->eth.src, ETH_ALEN);
		if (!(link->flags & LINK_EXTERNAL)) /* only who attaches metadata could answer */
			asked_set(&mk, now);
		count(idx, C_UNTOLD);
		return ACT_UNSPEC;
	}
	scope = mac_scope(link, idx, vni);
	peer_mac(link, scope, h->eth.src, h->ip.src, now);
	if (inner_flow(h, flow_where(link, idx, vni), f))
		return ACT_UNSPEC;
	if (!owns(link, scope, h->eth.dst, now)) {
		count(idx, C_NOT_OWNER);
		return ACT_UNSPEC;
	}
	if (now < conf->rx_hold) {
		count(idx, C_HELD);
		return ACT_UNSPEC;
	}
	f->peer = h->ip.src;
	live = grant_get(f);
	g.key = 0;
	g.backoff_ms = 1;
	if (live) {
		g = *live;
		if (now < g.next_offer)
			return ACT_UNSPEC;
	}
	if (!g.backoff_ms || g.backoff_ms > BACKOFF_MAX_MS)
		g.backoff_ms = BACKOFF_MAX_MS;
	pair_idx = pair_make(h->ip.dst, h->ip.src, now);
	pair = pair_at(pair_idx);
	if (!pair_idx || !pair) {
		count(idx, C_EXHAUSTED);
		event(skb, EV_EXHAUSTED, idx, f, &tk.local, &tk.peer, 0, 0);
		return ACT_UNSPEC;
	}
	pair->heard = now;
	fresh = nonce(conf, now);
	if ((g.backoff_ms >= ANOTHER_KEY_MS ||
	     !key_again(pair_idx, pair, f, link, g.key, fresh, now, &o)) &&
	    !key_new(conf, pair_idx, pair, f, link, idx, fresh, now, &o)) {
		count(idx, C_EXHAUSTED);
		event(skb, EV_EXHAUSTED, idx, f, &tk.local, &tk.peer, 0, 0);
		return ACT_UNSPEC;
	}
	g.key = o.key;
	g.next_offer = now + g.backoff_ms * NSEC_PER_MSEC;
	g.backoff_ms *= 2;
	if (g.backoff_ms > BACKOFF_MAX_MS)
		g.backoff_ms = BACKOFF_MAX_MS;
	grant_set(f, &g);

	mark_set(skb, conf, KIND_OFFER);
	barrier();
	skb->cb[CB_KEY] = o.key;
	barrier();
	skb->cb[CB_NONCE] = o.nonce;
	barrier();
	skb->cb[CB_LINK] = idx;
	barrier();
	sent = xm_clone_redirect(skb, skb->ifindex, 0);
	/* More than 0: the clone was dropped on its way, by make_offer or by a queue. */
	count(idx, !sent ? C_OFFER_TX : sent > 0 ? C_NO_ROOM : C_ERROR);
	mark_clear(skb);
	return ACT_UNSPEC;
}

/* The clone that announced() sent: writes an OFFER over it. */
static __always_inline int make_offer(struct __sk_buff *skb, struct conf *conf)
{
	__u32 idx = skb->cb[CB_LINK], key = skb->cb[CB_KEY], len = skb->len, room = CTL_HEADROOM;
	struct underlay *u = underlay_get(skb->ifindex);
	struct link *link = link_at(idx);
	struct ctl_frame fr = {};
	struct fallback_hdr h;
	struct flow f;

	if (!link || load_headers(skb, &h))
		return ACT_SHOT;
	if (inner_flow(&h, flow_where(link, idx, vxlan_vni(h.vxlan)), &f))
		return ACT_SHOT;
	fr.ip.src = h.ip.dst;
	fr.ip.dst = h.ip.src;
	fr.ctl.version = XM_VERSION;
	fr.ctl.type = XM_OFFER;
	fr.ctl.flags = conf->xbits & XM_CTL_XBITS;
	fr.ctl.seg_bits = conf->seg_bits;
	fr.ctl.vni = be32(vxlan_vni(h.vxlan));
	__builtin_memcpy(fr.ctl.smac, f.smac, ETH_ALEN);
	__builtin_memcpy(fr.ctl.dmac, f.dmac, ETH_ALEN);
	fr.ctl.sip = f.sip;
	fr.ctl.dip = f.dip;
	fr.ctl.dscp = f.dscp;
	fr.ctl.variant = f.variant;
	fr.ctl.key = be32(key);
	fr.ctl.lease_ms = be32(link->lease_ms);
	fr.ctl.nonce_b = skb->cb[CB_NONCE];

	/*
	 * A checksum may still be due in the old packet, so room is made at its head, and what is
	 * behind that checksum is trimmed. The kernel refuses to trim a tunnel packet that did not
	 * cross a wire (skb->encapsulation); that one's checksum is an inner one, far enough back
	 * for less room.
	 */
	if (len > CTL_TAIL && xm_skb_change_tail(skb, CTL_TAIL, 0)) {
		if (skb->gso_size || !u || len + CTL_HEADROOM_MIN > ETH_HLEN + u->mtu)
			return ACT_SHOT;
		if (len + CTL_HEADROOM > ETH_HLEN + u->mtu)
			room = CTL_HEADROOM_MIN;
	}
	if (xm_skb_change_head(skb, room, 0))
		return ACT_SHOT;
	ctl_seal(conf, link, &fr, key, skb->len - ETH_HLEN);
	if (xm_skb_store_bytes(skb, ETH_HLEN, &fr, sizeof(fr), 0))
		return ACT_SHOT;
	skb->mark = conf->magic | KIND_CONTROL;
	return redirect_routed(skb, skb->ifindex);
}

/* Is this UDP packet for a port? One that lacks its header is for none. */
static __always_inline int to_port(struct __sk_buff *skb, __be16 port)
{
	__u32 ports;

	return !l4_word(skb, 0, &ports) && (__be16)(ports >> 16) == port;
}

static __always_inline int underlay_ingress(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct conf *conf;
	struct ip_hdr ip;
	struct vtep *vtep;
	int bounce_dscp, mark_dscp;
	__u8 dscp;

	/* For this host, and on this device: an untagged VLAN frame belongs to another one. */
	if (skb->protocol != be16(ETHERTYPE_IP) || skb->pkt_type != PACKET_HOST ||
	    skb->vlan_present)
		return ACT_UNSPEC;
	if (data + ETH_HLEN + IP_HDR_LEN > end) {
		if (xm_skb_pull_data(skb, ETH_HLEN + IP_HDR_LEN))
			return ACT_UNSPEC;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		if (data + ETH_HLEN + IP_HDR_LEN > end)
			return ACT_UNSPEC;
	}
	conf = conf_get();
	if (!conf)
		return ACT_UNSPEC;
	dscp = ip_tos(data + ETH_HLEN) >> 2;
	bounce_dscp = dscp_is(conf, conf->bounce, dscp);
	mark_dscp = dscp_is(conf, conf->mark, dscp);
	if (likely(!bounce_dscp && !mark_dscp &&
		   ((struct ip_hdr *)(data + ETH_HLEN))->proto != PROTO_ICMP))
		return ACT_UNSPEC;

	ip = *(struct ip_hdr *)(data + ETH_HLEN);
	if (!ip_sane(&ip))
		return ACT_UNSPEC;
	if (likely(mark_dscp && ip_whole(&ip) && wire_len(skb, &ip))) {
		struct slot *live, s;
		struct link *link;

		/* Encode never sends to the tunnel's port: what goes there is the tunnel. */
		live = granted(skb, conf, &ip, &s, &link);
		if (likely(live) && (ip.proto != IPPROTO_UDP || !to_port(skb, link->port)))
			return decode(skb, conf, &ip, live, &s);
	}
	vtep = vtep_get(ip.dst);
	if (!vtep)
		return ACT_UNSPEC;
	/* DF and our DSCP: a container's own. A router's error has another DSCP, or no DF. */
	if (ip.proto == PROTO_ICMP && ip_complete(&ip) &&
	    !((bounce_dscp || mark_dscp) && ip_whole(&ip)))
		return icmp_ingress(skb, conf, &ip, vtep->port);
	if (bounce_dscp)
		return ip_whole(&ip) ? bounced(skb, conf, &ip) : ACT_UNSPEC;
	if (ip.proto == IPPROTO_UDP && ip_begins(&ip) && to_port(skb, vtep->port)) {
		struct scratch *scratch = scratch_get();
		struct fallback_hdr *h;
		struct ctl_frame *fr;

		if (!scratch)
			return ACT_UNSPEC;
		h = (void *)scratch->headers;
		fr = (void *)scratch->headers;
		if (load_headers(skb, h))
			return ACT_UNSPEC;
		if (h->vxlan[0] & VXLAN_FLAG_I)
			return announced(skb, conf, h);
		if (xm_skb_load_bytes(skb, ETH_HLEN, fr, sizeof(*fr))) {
			count(0, C_CTL_BAD);
			return ACT_UNSPEC;
		}
		return control(skb, conf, fr);
	}
	if (!ip_whole(&ip))
		return ACT_UNSPEC;
	if (ip.proto == IPPROTO_TCP && !key_ok(conf, wire_key(conf, conf->mark, &ip)) &&
	    reset_ingress(skb, &ip))
		return ACT_UNSPEC;
	if (!wire_len(skb, &ip))
		return ACT_UNSPEC;
	/* A peer sends no such key: the path has wiped it out, and the peer shall know (stray). */
	if (key_blank(conf, wire_key(conf, conf->mark, &ip)) && !pair_find(ip.dst, ip.src))
		return ACT_UNSPEC;
	return bounce(skb, conf, &ip);
}

/* Sender: a packet of the vxlan driver leaves. An action, or 0 if it is none of our links'. */
static __always_inline int announce(struct __sk_buff *skb, struct conf *conf, addr_t src,
				    addr_t dst, __u8 tos)
{
	struct scratch *scratch;
	struct pair_key tk = { .local = src, .peer = dst };
	struct fallback_hdr h;
	struct link *link;
	struct flow f;
	__u64 now, *told;
	__u32 idx;

	if (load_headers(skb, &h) || !(h.vxlan[0] & VXLAN_FLAG_I))
		return 0;
	idx = link_by_vni(src, vxlan_vni(h.vxlan));
	link = link_at(idx);
	if (!idx || !link || h.udp.dst != link->port)
		return 0;
	ip_let_split_end(skb, INNER_OFF, &h.inner);
	if (!(link->flags & LINK_UP))
		return 0;
	if (ip_set_dscp(skb, tos, conf->mark))
		return 0;
	count(idx, C_ANNOUNCED);

	/* Only what encode has just let go on this CPU: nobody else's packet counts. */
	now = xm_boot_ns();
	scratch = scratch_get();
	if (!scratch || !scratch->let_go_at || skb->tc_index != scratch->stamp ||
	    now - scratch->let_go_at > 100 * NSEC_PER_MSEC)
		return ACT_UNSPEC;
	skb->tc_index = scratch->tc_index;
	told = told_get(&tk);
	if (!told || now - *told > NSEC_PER_SEC)
		told_set(&tk, now);
	if (h.eth.proto == be16(ETHERTYPE_LOCAL)) {
		__u64 tag;

		if (!xm_skb_load_bytes(skb, INNER_OFF, &tag, sizeof(tag)) && tag == conf->tag)
			return ACT_SHOT; /* only asked (encode.h, ask) */
	}
	if (!scratch->missed_at || (skb->mark && !way_same(skb, src, dst)) ||
	    !link_there(skb, link, now))
		return ACT_UNSPEC;
	if (!inner_flow(&h, flow_where(link, idx, vxlan_vni(h.vxlan)), &f) &&
	    flow_equal(&f, &scratch->missed)) {
		struct entry *e = flow_get(&f);
		struct solicit *live, s = { .local = src,
					    .oif = skb->ifindex,
					    .link = idx,
					    .tx_gen = scratch->tx_gen,
					    .at = now };

		if (e && addr_equal(e->peer, dst) && addr_equal(e->local, src))
			e->gen = scratch->tx_gen;
		f.peer = dst;
		live = solicit_get(&f);
		if (live && now - live->at < 100 * NSEC_PER_MSEC && live->oif == s.oif &&
		    live->tx_gen == s.tx_gen)
			return ACT_UNSPEC; /* one a while will do for a flow that stays in the
					      fallback */
		if (e && !addr_equal(e->peer, dst) && now < e->lease_end)
			event(skb, EV_FLOW_ELSEWHERE, idx, &f, &src, &f.peer, e->key, 0);
		s.seal = seal_solicit(&f, &s);
		solicit_set(&f, &s);
	}
	return ACT_UNSPEC;
}

static __always_inline int underlay_egress(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct conf *conf = conf_get();
	struct ip_hdr *ip;
	addr_t src, dst;
	__u8 tos, dscp;
	int empty;

	if (!conf)
		return ACT_UNSPEC;
	mark_back(skb, conf);
	if (marked(skb, conf)) {
		__u32 kind = skb->mark & 0xf;

		if (unlikely(kind == KIND_OFFER))
			return make_offer(skb, conf);
		if (unlikely(kind == KIND_WAY))
			return hook_shown(skb);
		mark_clear(skb);
		return ACT_UNSPEC;
	}
	if (skb->protocol != be16(ETHERTYPE_IP) || skb->vlan_present)
		return ACT_UNSPEC;
	if (data + ETH_HLEN + IP_HDR_LEN + UDP_HDR_LEN > end) {
		__u32 len = ETH_HLEN + IP_HDR_LEN + UDP_HDR_LEN;

		xm_skb_pull_data(skb, skb->len < len ? skb->len : len);
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		if (data + ETH_HLEN + IP_HDR_LEN > end) /* no memory, or no IP packet */
			return skb->len < ETH_HLEN + IP_HDR_LEN ? ACT_UNSPEC : ACT_SHOT;
	}
	ip = data + ETH_HLEN;
	tos = ip_tos(ip);
	empty = ip_len(ip) == IP_HDR_LEN;
	src = ip->src;
	dst = ip->dst;
	if (ip->proto == IPPROTO_UDP && ip_begins(ip) && !skb->ingress_ifindex) {
		struct udp_hdr *udp = data + ETH_HLEN + IP_HDR_LEN;
		struct vtep *vtep;

		if ((void *)(udp + 1) <= end) {
			__be16 port = udp->dst;

			vtep = conf->ports >> (be16(port) & 63) & 1 ? vtep_get(src) : 0;
			if (vtep && vtep->port == port) {
				int act = announce(skb, conf, src, dst, tos);

				if (act)
					return act;
			}
		}
	}
	dscp = tos >> 2;
	if (likely(!dscp_is(conf, conf->mark, dscp) && !dscp_is(conf, conf->bounce, dscp)))
		return ACT_UNSPEC;
	/* From our own raw socket: a key that is taken back (xmasq_link/_withdraw.py). */
	if (skb->priority == (conf->magic | KIND_CONTROL) && empty &&
	    dscp_is(conf, conf->bounce, dscp)) {
		skb->priority = 0;
		barrier();
		return ACT_UNSPEC;
	}
	/* Between two of our underlays, as a router: that is other hosts' business. */
	if (skb->ingress_ifindex && underlay_get(skb->ingress_ifindex) && !vtep_get(src))
		return ACT_UNSPEC;
	if (ip_set_dscp(skb, tos, 0)) {
		count(0, C_ERROR);
		return ACT_SHOT;
	}
	count(0, C_SANITISED);
	return ACT_UNSPEC;
}

#endif
