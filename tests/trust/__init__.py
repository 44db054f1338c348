# SPDX-License-Identifier: Apache-2.0
"""Trust: tagged traffic under every fault that the laboratory can make."""
