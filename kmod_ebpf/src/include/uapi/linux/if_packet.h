/* SPDX-License-Identifier: GPL-2.0-only */
/* BCC includes this header by name; the datapath needs nothing of it. */
