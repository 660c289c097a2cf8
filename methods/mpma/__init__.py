"""MPMA (Zhang et al., 2023), re-implemented from the abstract."""
