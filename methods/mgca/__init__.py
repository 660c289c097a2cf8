"""MGCA (Wang et al., NeurIPS 2022)."""
