"""torch -> ONNX: op translation, the op as an ONNX function body, graph passes, precision."""
