/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The datapath: maps and the programs. A packet's fate is in
 *
 *   link egress       encode.h    encoded, or on to the vxlan driver
 *   underlay ingress  underlay.h  sorts; decode.h restores or bounces; control.h negotiates
 *   underlay egress   underlay.h  announces, solicits, makes OFFERs, sanitises
 *   link ingress      below       notes which MACs are behind the tunnel
 *
 * and xmasq_flush, which user space runs.
 */
#include "maps.h"

#if XM_FAMILY == 6
#define xmasq_encode xmasq6_encode
#define xmasq_ingress xmasq6_ingress
#define xmasq_egress xmasq6_egress
#define xmasq_arrive xmasq6_arrive
#define xmasq_flush xmasq6_flush
#endif

BPF_TABLE("array", u32, struct conf, conf, 1);
BPF_TABLE("array", u32, struct pool, pool, 1);
/* Values that begin at a page's beginning, and so at a cache line's; nobody maps them. */
#define LINES (1U << 10) /* BPF_F_MMAPABLE */
BPF_F_TABLE("array", u32, struct link, links, MAX_LINKS, LINES);
BPF_TABLE("hash", u32, u32, link_ids, MAX_LINKS);
BPF_TABLE("hash", struct vni_key, u32, vnis, MAX_LINKS);
BPF_TABLE("hash", addr_t, struct vtep, vteps, MAX_LINKS);
BPF_TABLE("hash", u32, struct underlay, underlays, MAX_LINKS);
BPF_F_TABLE("array", u32, struct pair, pairs, MAX_PAIRS, LINES);
BPF_TABLE("hash", struct pair_key, u32, pair_ids, MAX_PAIRS);
BPF_TABLE("array", u32, u32, block_hints, BLOCK_HINTS);
BPF_TABLE("lru_hash", struct pair_key, u64, told, MAX_PAIRS * 2);
BPF_F_TABLE("array", u32, struct block, blocks, MAX_BLOCKS, LINES);
BPF_TABLE("lru_hash", struct flow, struct entry, flows, MAX_FLOWS);
BPF_TABLE("lru_hash", struct flow, struct solicit, solicits, MAX_OPEN);
BPF_TABLE("lru_hash", struct flow, struct pending, pendings, MAX_OPEN);
BPF_TABLE("lru_hash", struct txkey_key, struct txkey, txkeys, MAX_FLOWS);
BPF_TABLE("lru_hash", struct flow, struct grant, grants, MAX_FLOWS);
BPF_TABLE("lru_hash", struct mac_key, struct mac_seen, macs, MAX_FLOWS / 4);
BPF_TABLE("lru_hash", u64, struct big, bigs, MAX_FLOWS / 4);
BPF_TABLE("lru_hash", struct mac_key, u64, asked, MAX_PAIRS);
BPF_TABLE("percpu_array", u32, struct scratch, scratch, 1);
BPF_TABLE("percpu_array", u32, struct counters, stats, MAX_LINKS);
BPF_TABLE("array", u32, u32, listen, 1); /* a bit for each listener */
BPF_TABLE("percpu_array", u32, struct event, event_buf, 1);
BPF_PERF_OUTPUT(events); /* EVENT_LISTENERS entries for each CPU */

#include "state.h"

static __always_inline struct conf *conf_get(void)
{
	u32 k = 0;

	return conf.lookup(&k);
}

static __always_inline struct pool *pool_get(void)
{
	u32 k = 0;

	return pool.lookup(&k);
}

static __always_inline struct link *link_at(__u32 idx)
{
	return links.lookup(&idx);
}

static __always_inline __u32 *link_id(__u32 ifindex)
{
	return link_ids.lookup(&ifindex);
}

static __always_inline __u32 *vni_id(struct vni_key *k)
{
	return vnis.lookup(k);
}

static __always_inline struct vtep *vtep_get(addr_t addr)
{
	return vteps.lookup(&addr);
}

static __always_inline struct underlay *underlay_get(__u32 ifindex)
{
	return underlays.lookup(&ifindex);
}

static __always_inline struct pair *pair_at(__u32 idx)
{
	return pairs.lookup(&idx);
}

static __always_inline __u32 *pair_id(struct pair_key *k)
{
	return pair_ids.lookup(k);
}

static __always_inline __u32 *block_hint_at(__u32 at)
{
	return block_hints.lookup(&at);
}

static __always_inline int pair_id_set(struct pair_key *k, __u32 idx)
{
	return pair_ids.update(k, &idx);
}

static __always_inline void pair_id_del(struct pair_key *k)
{
	pair_ids.delete(k);
}

static __always_inline __u64 *told_get(struct pair_key *k)
{
	return told.lookup(k);
}

static __always_inline void told_set(struct pair_key *k, __u64 at)
{
	told.update(k, &at);
}

static __always_inline struct block *block_at(__u32 idx)
{
	return blocks.lookup(&idx);
}

static __always_inline struct entry *flow_get(struct flow *f)
{
	return flows.lookup(f);
}

static __always_inline int flow_set(struct flow *f, struct entry *e)
{
	return flows.update(f, e);
}

static __always_inline struct solicit *solicit_get(struct flow *f)
{
	return solicits.lookup(f);
}

static __always_inline void solicit_set(struct flow *f, struct solicit *s)
{
	solicits.update(f, s);
}

static __always_inline struct pending *pending_get(struct flow *f)
{
	return pendings.lookup(f);
}

static __always_inline int pending_set(struct flow *f, struct pending *p)
{
	return pendings.update(f, p);
}

static __always_inline int pending_del(struct flow *f)
{
	return pendings.delete(f);
}

static __always_inline struct txkey *txkey_get(struct txkey_key *k)
{
	return txkeys.lookup(k);
}

static __always_inline int txkey_set(struct txkey_key *k, struct txkey *t)
{
	return txkeys.update(k, t);
}

static __always_inline struct grant *grant_get(struct flow *f)
{
	return grants.lookup(f);
}

static __always_inline void grant_set(struct flow *f, struct grant *g)
{
	grants.update(f, g);
}

static __always_inline struct mac_seen *mac_get(struct mac_key *k)
{
	return macs.lookup(k);
}

static __always_inline void mac_set(struct mac_key *k, struct mac_seen *m)
{
	macs.update(k, m);
}

static __always_inline void mac_del(struct mac_key *k)
{
	macs.delete(k);
}

static __always_inline __u64 *asked_get(struct mac_key *k)
{
	return asked.lookup(k);
}

static __always_inline void asked_set(struct mac_key *k, __u64 at)
{
	asked.update(k, &at);
}

static __always_inline void asked_del(struct mac_key *k)
{
	asked.delete(k);
}

static __always_inline struct big *big_get(__u64 *k)
{
	return bigs.lookup(k);
}

static __always_inline void big_set(__u64 *k, struct big *b)
{
	bigs.update(k, b);
}

static __always_inline struct scratch *scratch_get(void)
{
	u32 k = 0;

	return scratch.lookup(&k);
}

static __always_inline struct counters *counters_at(__u32 idx)
{
	return stats.lookup(&idx);
}

static __always_inline __u32 *listeners_get(void)
{
	u32 k = 0;

	return listen.lookup(&k);
}

static __always_inline struct event *event_get(void)
{
	u32 k = 0;

	return event_buf.lookup(&k);
}

#include "event.h"

/* BCC writes this into events.perf_submit(): which entry of the array it goes to. */
#undef CUR_CPU_IDENTIFIER
#define CUR_CPU_IDENTIFIER slot

static __always_inline void event_out(struct __sk_buff *skb, struct event *e, __u32 listeners)
{
	__u64 slot = xm_cpu() * EVENT_LISTENERS;

#pragma clang loop unroll(disable)
	for (int i = 0; i < EVENT_LISTENERS; i++, slot++) {
		if (listeners >> i & 1)
			events.perf_submit(skb, e, sizeof(*e));
	}
}

#include "encode.h"
#include "underlay.h"

int xmasq_encode(struct __sk_buff *skb)
{
	return encode(skb, 0);
}

int xmasq_ingress(struct __sk_buff *skb)
{
	return underlay_ingress(skb);
}

int xmasq_egress(struct __sk_buff *skb)
{
	return underlay_egress(skb);
}

/*
 * A MAC that comes out of the tunnel has moved, and the driver has learned so: all flows of the
 * link let their next packet take the fallback, to see where it goes now.
 */
static __always_inline void moved(struct __sk_buff *skb, u32 idx, u32 where, struct mac_key *k)
{
	struct mac_seen *seen = mac_get(k);
	struct flow what = { .ifindex = where };
	struct link *link;
	addr_t peer;

	if (!seen || (addr_is_set(seen->peer) && !seen->moved))
		return;
	peer = seen->peer;
	if (addr_is_set(peer))
		seen->moved = 0;
	else
		mac_del(k);
	link = link_at(idx);
	if (link) {
		link->tx_gen++;
		count(idx, C_MOVED);
		__builtin_memcpy(what.smac, k->mac, ETH_ALEN);
		event(skb, EV_MAC_MOVED, idx, &what, &link->local, &peer, 0, 0);
	}
}

/* A MAC that comes out of the tunnel is not, or no more, behind this host. */
int xmasq_arrive(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct conf *c = conf_get();
	struct mac_key k = {};
	u32 *id;

	if (c && marked(skb, c) && (skb->mark & 0xf) == KIND_DECODED) {
		mark_clear(skb);
		return ACT_UNSPEC;
	}
	if (c && marked(skb, c) && (skb->mark & 0xf) == KIND_TOO_BIG)
		return too_big(skb, c);
	id = link_id(skb->ifindex);
	if (!id || data + ETH_HLEN > end)
		return ACT_UNSPEC;
	k.link = *id;
	__builtin_memcpy(k.mac, ((struct eth_hdr *)data)->src, ETH_ALEN);
	if (c && asked_get(&k)) {
		asked_del(&k);
		mark_set(skb, c, KIND_ASK);
		xm_clone_redirect(skb, skb->ifindex, 0);
		mark_clear(skb);
	}
	moved(skb, *id, skb->ifindex, &k);
	return ACT_UNSPEC;
}

#if XM_EXTERNAL
/* On external links, these run before xmasq_encode and xmasq_arrive, which leave their packets
 * alone. */
int xmasq_encode_md(struct __sk_buff *skb)
{
	return encode_external(skb);
}

int xmasq_arrive_md(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct conf *c = conf_get();
	struct mac_key k = {};
	struct outer outer;
	struct link *link;
	u32 idx;

	if (!c)
		return ACT_UNSPEC;
	if (marked(skb, c) && (skb->mark & 0xf) == KIND_DECODED) {
		if (carried(skb, c)) {
			count(0, C_ERROR);
			return ACT_SHOT;
		}
		mark_clear(skb);
		return ACT_UNSPEC;
	}
	if (data + ETH_HLEN > end || outer_of(skb, &link, &idx, &outer))
		return ACT_UNSPEC;
	k.link = outer.where;
	__builtin_memcpy(k.mac, ((struct eth_hdr *)data)->src, ETH_ALEN);
	moved(skb, idx, outer.where, &k);
	return ACT_UNSPEC;
}
#endif

/* What user space asks xmasq_flush for: behind the Ethernet header of a test run's packet. */
struct flush {
	__u32 block;
	__u32 slot;
	__u64 seal; /* of the slot as user space saw it */
};

/*
 * Ends one key before its time; it stays reserved. Never attached: user space runs it with
 * BPF_PROG_TEST_RUN, since only a program can hold the lock.
 */
int xmasq_flush(struct __sk_buff *skb)
{
	struct pool *p = pool_get();
	struct block *b;
	struct flush r;
	struct slot *s;
	int done = 0;

	if (!p || xm_skb_load_bytes(skb, ETH_HLEN, &r, sizeof(r)))
		return 0;
	b = block_at(r.block);
	if (!b)
		return 0;
	s = &b->slots[r.slot % BLOCK_KEYS];
	xm_spin_lock(&p->lock);
	if (s->seal == r.seal && s->valid) {
		s->valid = 0;
		s->offered = 0;
		s->seal = seal_slot(s);
		done = 1;
	}
	xm_spin_unlock(&p->lock);
	return done;
}
