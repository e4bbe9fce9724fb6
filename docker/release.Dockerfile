# A release: the service's image, named by digest, and one model in a layer on top. Its context is the model's folder.
# docs/deploy.md says why the model is in the image.
ARG SERVE
FROM ${SERVE}
COPY model.onnx /model/model.onnx
