"""The exported model as a service: FastAPI and ONNX Runtime, without torch. See `python -m serving --help`."""
