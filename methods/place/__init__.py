"""PLACE (Wang et al., 2025), re-implemented from the abstract."""
