"""ONNX to TensorRT engines, by classic TensorRT or by TensorRT for RTX: one nvinfer API, one path through it."""
