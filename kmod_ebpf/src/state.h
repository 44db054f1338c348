/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Access to the maps. BCC rewrites map calls only in the main text, which defines the functions
 * declared here; small helpers on top of them follow.
 */
#ifndef XMASQ_STATE_H
#define XMASQ_STATE_H

#include "maps.h"

static __always_inline struct conf *conf_get(void);
static __always_inline struct pool *pool_get(void);
static __always_inline struct link *link_at(__u32 idx);
static __always_inline __u32 *link_id(__u32 ifindex);
static __always_inline __u32 *vni_id(struct vni_key *k);
static __always_inline struct vtep *vtep_get(addr_t addr);
static __always_inline struct underlay *underlay_get(__u32 ifindex);
static __always_inline struct pair *pair_at(__u32 idx);
static __always_inline __u32 *pair_id(struct pair_key *k);
static __always_inline __u32 *block_hint_at(__u32 at);
static __always_inline int pair_id_set(struct pair_key *k, __u32 idx);
static __always_inline struct block *block_at(__u32 idx);
static __always_inline struct entry *flow_get(struct flow *f);
static __always_inline int flow_set(struct flow *f, struct entry *e);
static __always_inline struct solicit *solicit_get(struct flow *f);
static __always_inline void solicit_set(struct flow *f, struct solicit *s);
static __always_inline struct pending *pending_get(struct flow *f);
static __always_inline int pending_set(struct flow *f, struct pending *p);
static __always_inline int pending_del(struct flow *f);
static __always_inline struct txkey *txkey_get(struct txkey_key *k);
static __always_inline int txkey_set(struct txkey_key *k, struct txkey *t);
static __always_inline struct grant *grant_get(struct flow *f);
static __always_inline void grant_set(struct flow *f, struct grant *g);
static __always_inline struct mac_seen *mac_get(struct mac_key *k);
static __always_inline void mac_set(struct mac_key *k, struct mac_seen *m);
static __always_inline void mac_del(struct mac_key *k);
static __always_inline __u64 *told_get(struct pair_key *k);
static __always_inline void told_set(struct pair_key *k, __u64 at);
static __always_inline void pair_id_del(struct pair_key *k);
static __always_inline __u64 *asked_get(struct mac_key *k);
static __always_inline void asked_set(struct mac_key *k, __u64 at);
static __always_inline void asked_del(struct mac_key *k);
static __always_inline struct big *big_get(__u64 *k);
static __always_inline void big_set(__u64 *k, struct big *b);
static __always_inline struct scratch *scratch_get(void);
static __always_inline struct counters *counters_at(__u32 idx);

/* What skb->mark says between our programs: conf.magic and one of these. */
enum kind {
	KIND_ENCODED = 1, /* made by encode: may carry MARK */
	KIND_CONTROL, /* a control or a bounced packet, complete */
	KIND_OFFER, /* clone of a fallback packet, to become an OFFER */
	KIND_DECODED, /* on its way into the link */
	KIND_ASK, /* clone of a frame from the tunnel, to see where our FDB sends its answer */
	KIND_TOO_BIG, /* clone of a frame that leaves, to become an ICMP error to its sender */
	KIND_PROBE, /* clone of a frame that is too long for the fallback, which asks in its place
		     */
	KIND_WAY, /* clone of a frame that leaves, to see whether a device has our hook (route.h) */
};

/* skb->cb while such a mark is set. The key, nonce and link are an OFFER's only. */
#define CB_MARK 0 /* the mark that the packet had before */
#define CB_KEY 1
#define CB_NONCE 2
#define CB_LINK 3
#define CB_TC_INDEX 4
#define CB_PRIORITY CB_KEY /* while the mark waits in skb->priority */
#define CB_RESTORED CB_KEY /* without a mark, at the link's egress: conf.magic */

static __always_inline void count(__u32 link, enum counter which)
{
	struct counters *c = counters_at(link);

	if (c)
		c->c[which]++;
}

static __always_inline void count_bytes(__u32 link, enum counter which, __s64 packets, __s64 bytes)
{
	struct counters *c = counters_at(link);

	if (c) {
		c->c[which] += packets;
		c->c[which + 1] += bytes;
	}
}

static __always_inline void mark_set(struct __sk_buff *skb, struct conf *conf, enum kind kind)
{
	skb->cb[CB_MARK] = skb->mark;
	barrier();
	skb->cb[CB_TC_INDEX] = skb->tc_index;
	barrier();
	skb->tc_index = conf->stamp;
	skb->mark = conf->magic | kind;
}

/*
 * Is it marked by us? A socket can set skb->mark, and a macvlan of the underlay device keeps the
 * mark that a container's socket has set; tc_index neither can.
 */
static __always_inline int marked(const struct __sk_buff *skb, const struct conf *conf)
{
	return (skb->mark & ~0xfU) == conf->magic && skb->tc_index == conf->stamp;
}

static __always_inline void mark_clear(struct __sk_buff *skb)
{
	skb->mark = skb->cb[CB_MARK];
	skb->tc_index = skb->cb[CB_TC_INDEX];
}

/*
 * Sends a marked packet out by a device, by the route and to the neighbour that the kernel finds.
 * It asks for the route with skb->mark, and a rule of the host's own (ip rule, fwmark) may match
 * ours by chance. So that waits in skb->priority, which no route depends on, and which goes to 0
 * where a packet leaves a namespace, too.
 */
static __always_inline int redirect_routed(struct __sk_buff *skb, __u32 oif)
{
	skb->cb[CB_PRIORITY] = skb->priority;
	barrier();
	skb->priority = skb->mark;
	barrier();
	skb->mark = 0;
	return xm_redirect_neigh(oif, 0, 0, 0);
}

/* There, the egress hook puts both back in their places. */
static __always_inline void mark_back(struct __sk_buff *skb, const struct conf *conf)
{
	if (skb->tc_index != conf->stamp || (skb->priority & ~0xfU) != conf->magic)
		return;
	skb->mark = skb->priority;
	barrier();
	skb->priority = skb->cb[CB_PRIORITY];
	barrier();
}

/* Index of the link with this VNI at a local VTEP address, or 0. */
static __always_inline __u32 link_by_vni(addr_t local, __u32 vni)
{
	struct vni_key k = { .local = local, .vni = vni };
	__u32 *id = vni_id(&k);

#if XM_EXTERNAL
	if (!id) {
		k.vni = VNI_ANY;
		id = vni_id(&k);
	}
#endif
	return id ? *id : 0;
}

/* What a flow has for its link: the ifindex; for an external link, its index and the VNI. */
static __always_inline __u32 flow_where(const struct link *link, __u32 idx, __u32 vni)
{
#if XM_EXTERNAL
	if (link->flags & LINK_EXTERNAL)
		return WHERE_EXTERNAL | (idx & (MAX_EXTERNAL - 1)) << 24 | (vni & 0xffffff);
#endif
	return link->ifindex;
}

/* What MACs are kept by: the link, or the VNI in an external one. */
static __always_inline __u32 mac_scope(const struct link *link, __u32 idx, __u32 vni)
{
#if XM_EXTERNAL
	if (link->flags & LINK_EXTERNAL)
		return flow_where(link, idx, vni);
#endif
	return idx;
}

/* Index of the link that a flow is of, or 0. */
static __always_inline __u32 where_link(__u32 where)
{
	__u32 *id;

#if XM_EXTERNAL
	if (where & WHERE_EXTERNAL)
		return where >> 24 & (MAX_EXTERNAL - 1);
#endif
	id = link_id(where);
	return id ? *id : 0;
}

/*
 * A MAC as the lower 48 bits of a word. An Ethernet header in a packet begins two bytes before a
 * word, so these accesses are aligned.
 */
static __always_inline __u64 eth_to(const struct eth_hdr *eth)
{
	const void *at = eth;

	return *(const __u16 *)at | (__u64) * (const __u32 *)(at + 2) << 16;
}

static __always_inline __u64 eth_from(const struct eth_hdr *eth)
{
	const void *at = eth;

	return *(const __u64 *)(at + ETH_ALEN) << 16 >> 16;
}

/* from: the protocol above the source MAC. */
static __always_inline void eth_put(void *at, __u64 to, __u64 from)
{
	*(__u16 *)at = to;
	*(__u32 *)(at + 2) = to >> 16;
	*(__u64 *)(at + ETH_ALEN) = from;
}

static __always_inline int mac_equal(const __u8 *a, const __u8 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3] && a[4] == b[4] &&
	       a[5] == b[5];
}

static __always_inline int flow_equal(const struct flow *a, const struct flow *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;
	__u64 diff = 0;

#pragma unroll
	for (int i = 0; i < FLOW_WORDS; i++)
		diff |= x[i] ^ y[i];
	return !diff;
}

/*
 * Boot time in ns, up to one tick old: reading the clock costs more than a table lookup. A lease
 * that is overrun by a tick is covered by the guard many times over.
 */
static __always_inline __u64 clock_of(struct scratch *s)
{
	__u64 tick = xm_jiffies();

	if (unlikely(s->tick != tick)) {
		s->now = xm_boot_ns();
		s->tick = tick;
	}
	return s->now;
}

static __always_inline __u64 tick_ns(void)
{
	struct scratch *s = scratch_get();

	return s ? clock_of(s) : xm_boot_ns();
}

/* Clocks of two CPUs may differ by a tick. */
static __always_inline int later_by(__u64 now, __u64 then, __u64 ns)
{
	return (__s64)(now - then) > (__s64)ns;
}

#define THERE_FOR NSEC_PER_MSEC

/*
 * Is the link's device still in this namespace? Others may have deleted or moved it: then what is
 * redirected to it would be lost, so peers must be sent back into the fallback. Looked up once a
 * tick, by the one helper that says so (net/core/filter.c, bpf_ipv4_fib_lookup).
 */
static __always_inline int link_there(struct __sk_buff *skb, struct link *link, __u64 now)
{
	struct bpf_fib_lookup fib;

	if (likely(!later_by(now, link->there_at, THERE_FOR)))
		return 1;
	__builtin_memset(&fib, 0, sizeof(fib));
	fib.family = XM_AF_INET;
	fib.ifindex = link->ifindex;
	if (xm_fib_lookup(skb, &fib, sizeof(fib), 0) == -XM_ENODEV) {
		link->there_at = 0;
		return 0;
	}
	link->there_at = now;
	return 1;
}

static __always_inline __u32 nonce(struct conf *conf, __u64 now)
{
	__u64 n = (conf->salt ^ now) * 0x9e3779b97f4a7c15ULL;

	n = (__u32)(n >> 32) ^ xm_random();
	return n ? (__u32)n : 1;
}

#endif
