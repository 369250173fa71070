# One image for every role; the command says which (see compose.yaml).
#
#   docker build -t podwire .
#
# BASE may be any image with Python 3.11 or newer and its venv module.
ARG BASE=python:3.13-slim
FROM ${BASE}
WORKDIR /opt/podwire
# Dependencies first: they change less often than the code.
COPY requirements.lock ./
RUN python3 -m venv venv \
 && venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY emulator emulator
COPY agents agents
COPY etcd etcd
RUN venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation . \
 && rm -rf emulator agents etcd \
 && install -d -o 65534 -g 65534 -m 700 /var/lib/podwire /var/lib/etcd
ENV PATH=/opt/podwire/venv/bin:$PATH \
    PODWIRE_HOME=/var/lib/podwire \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 65534:65534
WORKDIR /var/lib/podwire
ENTRYPOINT ["podwire"]
