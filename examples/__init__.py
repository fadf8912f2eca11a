"""Example media, and dubbing with an exported ONNX generator."""
