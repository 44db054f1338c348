/* SPDX-License-Identifier: GPL-2.0-only */
/* Stands in for the kernel's generated configuration, which BCC wants to see. */
#define CONFIG_BPF_SYSCALL 1
