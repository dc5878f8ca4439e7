"""mmkd: multimodal knowledge distillation for sequential recommendation."""

__version__ = "0.1.0"
