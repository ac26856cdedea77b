# SPDX-License-Identifier: Apache-2.0
"""Weights: fetched, checked, read, and fitted into a network."""
