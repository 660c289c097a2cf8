"""PRIOR (Cheng et al., ICCV 2023)."""
