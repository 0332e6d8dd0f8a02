"""Adapters to other frameworks, one file each, imported on demand.

They stand on `spatial_ensemble.smoothing` alone, and importing `spatial_ensemble` imports none of them.
"""
