# SPDX-License-Identifier: Apache-2.0
"""The CNI plugin xmasq-cni, and the agent that keeps a node's peers (docs/cni.md)."""
