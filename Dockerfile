# docker build -t karmafunnel . ; docker run --rm -v "$PWD:/work" karmafunnel demo --out out/demo
FROM python:3.11-slim AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:3.11-slim
# LightGBM, faiss and torch share OpenMP's library
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /tmp/constraints.txt
COPY --from=build /wheel /tmp/wheel
# PyTorch's own index has builds for CPUs, without gigabytes of CUDA
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt \
        --extra-index-url https://download.pytorch.org/whl/cpu /tmp/wheel/*.whl \
    && rm -rf /tmp/wheel /tmp/constraints.txt \
    && useradd --create-home user && mkdir /work && chown user /work
USER user
WORKDIR /work
ENV OMP_WAIT_POLICY=passive
ENTRYPOINT ["karmafunnel"]
CMD ["--help"]
