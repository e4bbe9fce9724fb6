"""The exported model as a service: FastAPI and ONNX Runtime, without torch. `python -m serving --help` tells more."""
