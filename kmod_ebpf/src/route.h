/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the routing table says of the way to a peer. Encoded packets leave by the device that the
 * flow's fallback packet has left by; these functions tell when that may no longer be right.
 */
#ifndef XMASQ_ROUTE_H
#define XMASQ_ROUTE_H

#include "parse.h"

#define LOOPBACK_IFINDEX 1 /* in every namespace */
#define WAY_NONE (~0U)

/*
 * The device by which the host itself would send to a peer: a lookup as the stack does it for its
 * own packets, that is, coming from the loopback device. WAY_NONE without a route, 0 if the kernel
 * does not tell (a host that does not forward, or, before Linux 6.9, an unresolved neighbour). Of
 * several ways at the same cost it is always the same one; what counts is that the answer stays.
 */
static __always_inline __u32 way_to(struct __sk_buff *skb, addr_t local, addr_t peer)
{
	struct bpf_fib_lookup fib = {};
	int ret;

	fib.ifindex = LOOPBACK_IFINDEX;
	ip_fib_ends(&fib, local, peer);
	ret = xm_fib_lookup(skb, &fib, sizeof(fib), 0);
	if (ret < 0 || ret == BPF_FIB_LKUP_RET_FWD_DISABLED)
		return 0;
	if (ret == BPF_FIB_LKUP_RET_SUCCESS || ret == BPF_FIB_LKUP_RET_NO_NEIGH)
		return fib.ifindex == LOOPBACK_IFINDEX ? 0 : fib.ifindex;
	return WAY_NONE;
}

/* Is there a way by this device, as far as the kernel tells? way: what way_to says. */
static __always_inline int way_by(struct __sk_buff *skb, __u32 way, __u32 oif, addr_t local,
				  addr_t peer)
{
	struct bpf_fib_lookup fib = {};
	int ret;

	if (!way || way == oif)
		return 1;
	fib.ifindex = oif;
	ip_fib_ends(&fib, local, peer);
	ret = xm_fib_lookup(skb, &fib, sizeof(fib), FIB_LOOKUP_OUTPUT);
	return ret == BPF_FIB_LKUP_RET_SUCCESS || ret == BPF_FIB_LKUP_RET_NO_NEIGH ||
	       ret == BPF_FIB_LKUP_RET_FWD_DISABLED;
}

/*
 * May a flow still leave by its entry's device? way and by: what way_to says now, and whether there
 * is a way by that device. Not if the answer has changed since the last CONFIRM. Where it is
 * another device than the entry's, there are several ways, or a policy: then the entry's own must
 * still be there.
 */
static __always_inline int way_stays(struct entry *live, __u64 way, __u64 by)
{
	if (likely(by && way == live->way))
		return 1;
	if (!way)
		return 1;
	if (!by || live->way)
		return 0;
	live->way = way;
	return 1;
}

/*
 * Has the device that a packet is to leave by our hook? A link may have been moved to another
 * namespace: the vxlan driver goes on to send from where it was made, but the programs at the link
 * run where it is now, and there the same index is another device's, or nobody's. A clone with our
 * mark finds out, once a tick: our hook notes it, and drops it (hook_shown). By any other device it
 * is nobody's frame, as both MAC addresses are 0, and the next one follows a second later at the
 * soonest.
 */
static __always_inline int way_hooked(struct __sk_buff *skb, struct conf *conf, struct link *link,
				      const struct entry *e, struct entry *live, __u64 now)
{
	__u64 *seen = &link->hooked[e->oif % LINK_UNDERLAYS], had = *seen;
	__u32 ms = now / (1 << 20), macs[3], none[3] = {};
	struct scratch *scratch = scratch_get();

	if (had >> 32 == e->oif && (__s32)(ms - (__u32)had) <= 0)
		return 1;
	if (!scratch || (link->away_at && !later_by(now, link->away_at, NSEC_PER_SEC)))
		return 0;
	scratch->hook = 0;
	if (xm_skb_load_bytes(skb, 0, macs, sizeof(macs)) ||
	    xm_skb_store_bytes(skb, 0, none, sizeof(none), 0))
		return 0;
	mark_set(skb, conf, KIND_WAY);
	xm_clone_redirect(skb, e->oif, 0);
	mark_clear(skb);
	xm_skb_store_bytes(skb, 0, macs, sizeof(macs), 0);
	if (scratch->hook == e->oif) {
		*seen = (__u64)e->oif << 32 | ms;
		return 1;
	}
	link->away_at = now;
	live->lease_end = 0; /* breaks the seal, too: dead for every reader */
	return 0;
}

/* Underlay egress, for such a clone. */
static __always_inline int hook_shown(struct __sk_buff *skb)
{
	struct scratch *scratch = scratch_get();

	if (scratch)
		scratch->hook = skb->ifindex;
	return ACT_SHOT;
}

/*
 * Underlay egress, for a fallback packet with a mark, by which a policy may have routed it: is its
 * next hop the one that an encoded packet would take from this device? The kernel must know its
 * address.
 */
static __always_inline int way_same(struct __sk_buff *skb, addr_t local, addr_t peer)
{
	struct bpf_fib_lookup fib = {};
	__u8 dmac[ETH_ALEN + 2];

	fib.ifindex = skb->ifindex;
	ip_fib_ends(&fib, local, peer);
	return !xm_fib_lookup(skb, &fib, sizeof(fib), FIB_LOOKUP_OUTPUT) &&
	       fib.ifindex == skb->ifindex && !xm_skb_load_bytes(skb, 0, dmac, ETH_ALEN) &&
	       mac_equal(dmac, fib.dmac);
}

#endif
