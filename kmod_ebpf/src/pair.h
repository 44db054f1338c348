/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * VTEP pairs and the keys that the receiver gives within one. Keys lie in blocks of 64, which a
 * pair takes when it needs them and loses when nothing in them is reserved any more; so the
 * table is bounded without anybody sweeping it. Everything that allocates holds pool.lock, where
 * the kernel allows no helper calls: pointers are looked up first and verified under the lock.
 */
#ifndef XMASQ_PAIR_H
#define XMASQ_PAIR_H

#include "parse.h"
#include "seal.h"

#define OFFER_HOLD (2 * NSEC_PER_SEC) /* an unanswered OFFER reserves its key so long */
#define OFF_FIRST (60 * NSEC_PER_SEC)
#define OFF_LONGEST (3600 * NSEC_PER_SEC)

static __always_inline __u32 pair_find(addr_t local, addr_t peer)
{
	struct pair_key k = { .local = local, .peer = peer };
	__u32 *id = pair_id(&k);
	struct pair *p;

	if (!id)
		return 0;
	p = pair_at(*id);
	return p && addr_equal(p->local, local) && addr_equal(p->peer, peer) ? *id : 0;
}

/* Finds the pair's index, or takes one whose pair has nothing live any more; 0 if all have. */
static __always_inline __u32 pair_make(addr_t local, addr_t peer, __u64 now)
{
	struct pair_key k = { .local = local, .peer = peer }, old = {};
	__u32 idx = pair_find(local, peer), *id;
	struct pool *pool = pool_get();

	if (idx || !pool)
		return idx;
#pragma clang loop unroll(disable)
	for (int try = 0; try < 4; try++) {
		__u32 hand = pool->pair_hand;
		struct pair *p;
		int taken = 0;

		idx = 1 + hand % (MAX_PAIRS - 1);
		p = pair_at(idx);
		if (!p)
			return 0;
		xm_spin_lock(&pool->lock);
		if (pool->pair_hand == hand) {
			pool->pair_hand = hand + 1;
			if (p->busy_until < now) {
				old.local = p->local;
				old.peer = p->peer;
				p->local = local;
				p->peer = peer;
				p->gen++;
				p->own_gen++;
				p->cursor = 0;
				p->strays = 0;
				p->off_until = 0;
				p->off_for = 0;
				p->heard = 0;
				p->busy_until = now + OFFER_HOLD;
				taken = 1;
			}
		}
		xm_spin_unlock(&pool->lock);
		if (taken) {
			id = pair_id(&old);
			if (id && *id == idx)
				pair_id_del(&old);
			return pair_id_set(&k, idx) ? 0 : idx;
		}
	}
	return 0;
}

static __always_inline void pair_busy(struct pair *p, __u64 until)
{
	if (p->busy_until < until)
		p->busy_until = until;
}

/* Lock held. No encoding towards this peer for a while, doubled each time. */
static __always_inline void pair_off(struct pair *p, __u64 now)
{
	p->gen++;
	p->strays = 0;
	p->off_for = p->off_for ? p->off_for * 2 : OFF_FIRST;
	if (p->off_for > OFF_LONGEST)
		p->off_for = OFF_LONGEST;
	p->off_until = now + p->off_for;
	pair_busy(p, p->off_until + p->off_for);
}

/* 1 + index of the block that holds a key of this pair, or 0. A hint until verified under the lock.
 */
static __always_inline __u32 block_id(const struct pair *p, __u32 key)
{
	__u32 n = key_index(key) / BLOCK_KEYS;

	opaque(n);
	return p->block[n % PAIR_BLOCKS];
}

static __always_inline struct block *block_of(const struct pair *p, __u32 key)
{
	__u32 id = block_id(p, key);

	return id ? block_at(id - 1) : 0;
}

static __always_inline struct slot *slot_in(struct block *b, __u32 key)
{
	return &b->slots[key_index(key) % BLOCK_KEYS];
}

static __always_inline struct slot *slot_of(struct pair *p, __u32 key)
{
	struct block *b = block_of(p, key);

	return b ? slot_in(b, key) : 0;
}

/* Where decode notes in which block it has last found a key of a pair. */
static __always_inline __u32 *block_hint(addr_t local, addr_t peer, __u32 key)
{
	__u32 at = addr_mix(local, peer) + key_index(key) / BLOCK_KEYS;

	return block_hint_at(at % BLOCK_HINTS);
}

static __always_inline int block_is(const struct block *b, __u32 idx, const struct pair *p,
				    __u32 key)
{
	return b->owner == idx + 1 && b->owner_gen == p->own_gen &&
	       b->base == key_index(key) / BLOCK_KEYS;
}

static __always_inline int slot_is(const struct slot *s, const struct flow *f, addr_t local,
				   __u32 key)
{
	return s->key == key && addr_equal(s->local, local) && addr_equal(s->peer, f->peer) &&
	       s->ifindex == f->ifindex && addr_equal(s->sip, f->sip) &&
	       addr_equal(s->dip, f->dip) && mac_equal(s->smac, f->smac) &&
	       mac_equal(s->dmac, f->dmac) && s->dscp == f->dscp && s->variant == f->variant;
}

/* Lock held: reserves the key for the time that an OFFER may take. */
static __always_inline void slot_reserve(struct pair *p, struct block *b, struct slot *s, __u64 now)
{
	__u64 until = now + OFFER_HOLD;

	if (s->until < until)
		s->until = until;
	if (b->busy_until < s->until)
		b->busy_until = s->until;
	pair_busy(p, s->until);
}

/* What an OFFER needs to know. */
struct offer {
	__u32 key;
	__u32 nonce;
};

/*
 * Offers the key that the flow has already, if it still has it. Within two seconds the round
 * stays the same, so that an ACCEPT of a repeated OFFER is as good as one of the first.
 */
static __always_inline int key_again(__u32 idx, struct pair *p, const struct flow *f,
				     const struct link *link, __u32 key, __u32 fresh, __u64 now,
				     struct offer *o)
{
	struct pool *pool = pool_get();
	struct block *b = block_of(p, key);
	struct slot *s;
	int ok = 0;

	if (!pool || !b)
		return 0;
	s = slot_in(b, key);
	xm_spin_lock(&pool->lock);
	if (block_is(b, idx, p, key) && slot_is(s, f, link->local, key) &&
	    s->rx_gen == link->rx_gen && s->until >= now) {
		if (!s->offered || now - s->offered > OFFER_HOLD) {
			s->offered = now;
			s->nonce_b = fresh;
		}
		slot_reserve(p, b, s, now);
		o->key = key;
		o->nonce = s->nonce_b;
		ok = 1;
	}
	xm_spin_unlock(&pool->lock);
	return ok;
}

/* Gives the flow the next key that is free. The cursor goes round, so a key rests longest. */
static __always_inline int key_new(struct conf *conf, __u32 idx, struct pair *p,
				   const struct flow *f, const struct link *link, __u32 link_idx,
				   __u32 fresh, __u64 now, struct offer *o)
{
	struct pool *pool = pool_get();

	if (!pool)
		return 0;
#pragma clang loop unroll(disable)
	for (int try = 0; try < 6; try++) {
		__u32 cursor = p->cursor, hand = pool->block_hand, n;
		__u32 key = key_next(conf, cursor);
		struct block *b;
		struct slot *s;
		int ok = 0;

		n = key_index(key) / BLOCK_KEYS;
		opaque(n);
		n %= PAIR_BLOCKS;
		b = block_of(p, key);
		if (!b || !block_is(b, idx, p, key))
			b = block_at(hand % MAX_BLOCKS);
		if (!b)
			return 0;
		s = slot_in(b, key);

		xm_spin_lock(&pool->lock);
		if (p->cursor != cursor)
			goto unlock;
		if (!block_is(b, idx, p, key)) {
			if (pool->block_hand != hand)
				goto unlock;
			pool->block_hand = hand + 1;
			if (b->busy_until >= now)
				goto unlock;
			b->owner = idx + 1;
			b->owner_gen = p->own_gen;
			b->base = key_index(key) / BLOCK_KEYS;
			p->block[n] = hand % MAX_BLOCKS + 1;
		}
		p->cursor = key;
		if (s->until >= now)
			goto unlock;
		s->valid = 0;
		s->local = link->local;
		s->peer = f->peer;
		s->key = key;
		s->ifindex = f->ifindex;
		s->sip = f->sip;
		s->dip = f->dip;
		__builtin_memcpy(s->smac, f->smac, ETH_ALEN);
		__builtin_memcpy(s->dmac, f->dmac, ETH_ALEN);
		s->dscp = f->dscp;
		s->variant = f->variant;
		s->link = link_idx;
		s->rx_gen = link->rx_gen;
		s->seal = seal_slot(s);
		s->offered = now;
		s->nonce_b = fresh;
		s->used = 0;
		slot_reserve(p, b, s, now);
		o->key = key;
		o->nonce = fresh;
		ok = 1;
unlock:
		xm_spin_unlock(&pool->lock);
		if (ok)
			return 1;
	}
	return 0;
}

/*
 * An ACCEPT came: the grant runs from now. Each round is good once.
 * lease: ns; guard: ns, in which a packet under way still decodes.
 */
static __always_inline int key_confirm(__u32 idx, struct pair *p, const struct flow *f,
				       const struct link *link, __u32 key, __u32 nonce_b, __u64 now,
				       __u32 *used)
{
	__u64 until = now + (__u64)(link->lease_ms + link->guard_ms) * NSEC_PER_MSEC;
	struct pool *pool = pool_get();
	struct block *b = block_of(p, key);
	struct slot *s;
	int ok = 0;

	if (!pool || !b)
		return 0;
	s = slot_in(b, key);
	xm_spin_lock(&pool->lock);
	if (block_is(b, idx, p, key) && slot_is(s, f, link->local, key) &&
	    s->rx_gen == link->rx_gen && s->offered && s->nonce_b == nonce_b &&
	    now - s->offered <= OFFER_HOLD && s->until >= now) {
		s->offered = 0;
		s->nonce_b = 0;
		*used = s->used;
		s->used = 0;
		s->valid = until;
		s->seal = seal_slot(s);
		if (s->until < until)
			s->until = until;
		if (b->busy_until < s->until)
			b->busy_until = s->until;
		pair_busy(p, s->until);
		ok = 1;
	}
	xm_spin_unlock(&pool->lock);
	return ok;
}

#endif
