"""An image and a text encoder with weights from a file."""
