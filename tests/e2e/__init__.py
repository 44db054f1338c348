# SPDX-License-Identifier: Apache-2.0
"""Whole links between hosts and containers that are network namespaces (:mod:`tests.lab`)."""
