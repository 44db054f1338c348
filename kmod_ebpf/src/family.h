/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One body of code for both families of the underlay: it is compiled once for each, with XM_FAMILY
 * 4 or 6. addr4.h and addr6.h have the types, ip4.h and ip6.h what differs between the headers. An
 * instance sees the frames of its own family only.
 */
#ifndef XMASQ_FAMILY_H
#define XMASQ_FAMILY_H

#ifndef XM_FAMILY
#define XM_FAMILY 4
#endif

#if XM_FAMILY == 4
#include "addr4.h"
#elif XM_FAMILY == 6
#include "addr6.h"
#else
#error "XM_FAMILY is 4 or 6"
#endif

#endif
