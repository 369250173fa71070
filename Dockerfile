# One image for every role: the command says which (see compose.yaml).
ARG BASE=python:3.13-slim
FROM ${BASE}
WORKDIR /opt/podwire
# Dependencies first: they change less often than the code.
COPY requirements.lock ./
RUN python3 -m venv /opt/podwire/venv \
 && /opt/podwire/venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY emulator emulator
COPY agents agents
COPY etcd etcd
RUN /opt/podwire/venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation .
ENV PATH=/opt/podwire/venv/bin:$PATH PODWIRE_HOME=/var/lib/podwire PYTHONUNBUFFERED=1
RUN mkdir -p /var/lib/podwire && chown 65534:65534 /var/lib/podwire
USER 65534:65534
ENTRYPOINT ["podwire"]
