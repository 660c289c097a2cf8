"""ImageNet weights as a reference."""
