"""Encoders with weights of their own, by name: `timm:NAME`, `open-clip:NAME/PRETRAINED`, `hf:NAME or folder`."""
