# SPDX-License-Identifier: Apache-2.0
"""An exhaustive model of the key negotiation: docs/model.md says what it holds and what it leaves out."""
