# The server, from the same lock as everything else. Build: docker build -t nearcall .
# Run: docker run -p 8080:8080 --env-file .env -v nearcall:/data nearcall
# On Fly.io: fly.toml and scripts/rollout. Nothing secret is in the image: settings come from the environment.

# A tag moves. To build on exactly one base, give its digest, which `docker buildx imagetools inspect
# python:3.11-slim-bookworm` prints: docker build --build-arg PYTHON=python:3.11-slim-bookworm@sha256:... and in
# fly.toml [build.args] PYTHON = "..."
ARG PYTHON=python:3.11-slim-bookworm

# Always amd64, as Fly's Machines are: libsql-experimental has no wheel for Linux on arm64. On a Mac with Apple
# silicon Docker builds and runs the image by emulation.
FROM --platform=linux/amd64 ${PYTHON} AS build
WORKDIR /src
COPY requirements.lock ./
# The image's own pip fills the environment, which gets none: nothing can be installed where calls are taken.
# Wheels only: a source package would run its own code here, and need a compiler.
RUN python -m venv --without-pip /venv \
 && pip --python /venv/bin/python install --no-cache-dir --only-binary :all: --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY twiml twiml
COPY migrations migrations
RUN pip --python /venv/bin/python install --no-cache-dir --no-deps --no-build-isolation . \
 && pip --python /venv/bin/python uninstall --yes setuptools

FROM --platform=linux/amd64 ${PYTHON}
# A volume belongs to whom the image says: Docker gives a new one the owner that /data has here, Fly's init gives its
# mount to USER at each start. With a fixed number the files on it stay readable for the next image.
RUN groupadd --gid 10001 nearcall \
 && useradd --uid 10001 --gid nearcall --no-create-home --shell /usr/sbin/nologin nearcall \
 && mkdir /data && chown nearcall:nearcall /data
COPY --from=build /venv /venv
USER nearcall
# One thread for numpy, which converts audio in pieces too small to share: threads that wait for work spin.
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 NEARCALL_DATA_DIR=/data PORT=8080 OPENBLAS_NUM_THREADS=1
WORKDIR /data
EXPOSE 8080
# No shell in between, which would keep SIGTERM to itself; no entrypoint, which Fly's release_command would go through.
CMD ["nearcall", "serve", "--host", "0.0.0.0"]
