# The service for a deployed model: no compiler, no PyTorch, not root.
#   docker build -t yolox .
#   docker run --rm -p 127.0.0.1:8000:8000 -v $PWD/deployed:/model:ro yolox
FROM python:3.12-slim AS wheel
RUN apt-get update && apt-get install --no-install-recommends -y g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
# OpenMP of the compiled kernels; the rest of what a deployed model needs are Python packages
RUN apt-get update && apt-get install --no-install-recommends -y libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 yolox
COPY constraints.txt /tmp/constraints.txt
RUN pip install --no-cache-dir -c /tmp/constraints.txt \
    numpy opencv-python-headless PyYAML filelock onnxruntime openvino fastapi uvicorn
COPY --from=wheel /wheels /tmp/wheels
RUN pip install --no-cache-dir --no-deps /tmp/wheels/*.whl
USER yolox
WORKDIR /home/yolox
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD \
    ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=3)"]
# 0.0.0.0 is inside the container: publish the port on the address that you mean
ENTRYPOINT ["yolox", "serve"]
CMD ["/model", "--host", "0.0.0.0", "--port", "8000"]
