# The server and its engines on CPUs. From the repository's root:
#   docker build -f deploy/cpu.Dockerfile -t landiff-live:cpu .
FROM python:3.11-slim-bookworm AS build
WORKDIR /build
COPY deploy/constraints.txt pyproject.toml README.md LICENSE server.py ./
COPY engine engine
COPY kernels kernels
COPY streaming streaming
RUN python -m venv /opt/landiff
ENV PATH=/opt/landiff/bin:$PATH
# From its own index torch brings no CUDA libraries, which are some gigabytes.
RUN pip install --no-cache-dir -c constraints.txt --index-url https://download.pytorch.org/whl/cpu torch && \
    pip install --no-cache-dir -c constraints.txt '.[ray]'

FROM python:3.11-slim-bookworm
COPY --from=build /opt/landiff /opt/landiff
RUN useradd --create-home --uid 10001 landiff && install -d -o landiff /state
USER 10001
ENV PATH=/opt/landiff/bin:$PATH PYTHONUNBUFFERED=1
VOLUME /state
EXPOSE 8000/tcp 40000-40063/udp
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=3)"]
CMD ["landiff-live", "--host", "0.0.0.0", "--media-ports", "40000-40063", "--state", "/state"]
