"""prior-bench: compare vision-language pre-training methods on chest X-rays under one protocol."""

__version__ = "0.1.0"
