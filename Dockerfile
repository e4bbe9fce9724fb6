# Two images. `train` holds all that `dvc repro` needs, and this repository; `serve` answers with an exported model and
# holds no PyTorch. What runs here is in docker/*.sh, which tests/test_docker.py runs too. docs/deploy.md says how both
# are built and used.
#
# The base is Debian 12 with Python 3.11, for all processors. Dependabot moves its digest.
FROM python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b AS base
ENV HOME=/tmp \
    PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONUTF8=1 \
    USER=petals
# By number, so that Kubernetes can see that it is not root.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin petals

# serve ----------------------------------------------------------------------------------------------------------------

FROM base AS serve-build
COPY docker/install.sh docker/serve.sh /build/docker/
COPY constraints.txt /build/
COPY serving /build/serving
COPY petals /build/petals
RUN /build/docker/install.sh /opt/venv /build/serving/requirements.txt /build/constraints.txt && \
    /build/docker/serve.sh /build /opt/venv /app

FROM base AS serve
COPY --from=serve-build /opt/venv /opt/venv
COPY --from=serve-build /app /app
COPY --chmod=0644 docker/health.py /app/health.py
WORKDIR /app
USER 10001:10001
ENV PETALS_MODEL=/model/model.onnx \
    PORT=8080
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 CMD ["python", "health.py"]
ENTRYPOINT ["python", "-m", "serving", "--host", "0.0.0.0"]

# train ----------------------------------------------------------------------------------------------------------------

FROM base AS git
RUN apt-get update && \
    apt-get install --yes --no-install-recommends "git=1:2.39.*" && \
    rm -rf /var/lib/apt/lists/*

# Only the commit that is checked out: no remote, no configuration and no history of whoever builds it.
FROM git AS checkout
COPY docker/checkout.sh /build/docker/
RUN --mount=type=bind,source=.git,target=/build/.git /build/docker/checkout.sh /build /opt/petals

# With CUDA, which is pip's own choice on Linux, or without:
# --build-arg PIP_EXTRA_INDEX_URL=<the index of PyTorch's CPU builds>
FROM git AS train
# For torch.compile.
RUN apt-get update && \
    apt-get install --yes --no-install-recommends "g++=4:12.2.*" && \
    rm -rf /var/lib/apt/lists/*
ARG PIP_EXTRA_INDEX_URL=
COPY docker/install.sh requirements.txt constraints.txt /build/
RUN /build/install.sh /opt/venv /build/requirements.txt /build/constraints.txt && \
    install --directory --owner=petals --group=petals /workspace
COPY --from=checkout /opt/petals /opt/petals
# The root file system may be read-only: DVC and Git write to /workspace alone, and so does torch.compile, as nothing in
# a tmpfs of Docker's may be executed; all else to /tmp.
ENV DVC_NO_ANALYTICS=1 \
    DVC_SITE_CACHE_DIR=/tmp/dvc \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all \
    PETALS_REPOSITORY=/opt/petals \
    PETALS_WORKSPACE=/workspace \
    TORCHINDUCTOR_CACHE_DIR=/workspace/petals/.petals/inductor
USER 10001:10001
VOLUME /workspace
WORKDIR /workspace
# It runs to its end and says by its exit status how it went: there is no health to ask after.
HEALTHCHECK NONE
ENTRYPOINT ["/opt/petals/docker/train.sh"]
CMD ["dvc", "repro"]
