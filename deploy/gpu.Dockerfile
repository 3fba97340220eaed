# The server and its engines on NVIDIA GPUs; the host needs a driver for CUDA 13 and the NVIDIA Container Toolkit. From the
# repository's root:
#   docker build -f deploy/gpu.Dockerfile -t landiff-live:gpu .
FROM python:3.11-slim-bookworm AS build
WORKDIR /build
COPY deploy/constraints.txt pyproject.toml README.md LICENSE server.py ./
COPY engine engine
COPY kernels kernels
COPY streaming streaming
RUN python -m venv /opt/landiff
ENV PATH=/opt/landiff/bin:$PATH
# The wheels of torch bring CUDA's libraries.
RUN pip install --no-cache-dir -c constraints.txt '.[gpu,ray]'

FROM python:3.11-slim-bookworm
# Triton compiles a launcher for each kernel. Debian keeps no older versions that could be named.
# hadolint ignore=DL3008
RUN apt-get update && \
    apt-get install -y --no-install-recommends gcc libc6-dev && \
    rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/landiff /opt/landiff
RUN useradd --create-home --uid 10001 landiff && install -d -o landiff /state
USER 10001
ENV PATH=/opt/landiff/bin:$PATH PYTHONUNBUFFERED=1
VOLUME /state
EXPOSE 8000/tcp 40000-40063/udp
HEALTHCHECK --start-period=10m CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=3)"]
CMD ["landiff-live", "--host", "0.0.0.0", "--media-ports", "40000-40063", "--state", "/state"]
