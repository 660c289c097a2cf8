"""Data: the Dataset interface, splits and fractions, report parsing, image decoding and the image store."""
