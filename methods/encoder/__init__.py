"""An image encoder with weights from a file."""
