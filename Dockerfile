# The server's image, built from requirements.lock. Build: docker build -t nearcall .
# Run: docker run -p 8080:8080 --env-file .env -v nearcall:/data nearcall
# On Fly.io: see fly.toml and scripts/rollout. The image contains no secret: settings come from the environment.

# A tag can move. To pin the base image, pass its digest, which `docker buildx imagetools inspect
# python:3.11-slim-bookworm` prints: docker build --build-arg PYTHON=python:3.11-slim-bookworm@sha256:...
# On Fly.io, set it in fly.toml: [build.args] PYTHON = "..."
ARG PYTHON=python:3.11-slim-bookworm

# Always amd64, as Fly's Machines are: libsql-experimental has no wheel for Linux on arm64. On a Mac with Apple
# silicon Docker builds and runs the image by emulation.
FROM --platform=linux/amd64 ${PYTHON} AS build
WORKDIR /src
COPY requirements.lock ./
# The image's own pip installs into the environment, which gets no pip: nothing can be installed where calls run.
# Only wheels are allowed: a source package would run its own code here, and would need a compiler.
RUN python -m venv --without-pip /venv \
 && pip --python /venv/bin/python install --no-cache-dir --only-binary :all: --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY twiml twiml
COPY migrations migrations
RUN pip --python /venv/bin/python install --no-cache-dir --no-deps --no-build-isolation . \
 && pip --python /venv/bin/python uninstall --yes setuptools

FROM --platform=linux/amd64 ${PYTHON}
# Docker gives a new volume the owner that /data has here, and Fly's init gives its mount to USER at each start. The
# fixed user number keeps the files on a volume readable for the next image.
RUN groupadd --gid 10001 nearcall \
 && useradd --uid 10001 --gid nearcall --no-create-home --shell /usr/sbin/nologin nearcall \
 && mkdir /data && chown nearcall:nearcall /data
COPY --from=build /venv /venv
USER nearcall
# numpy gets one thread: it converts audio in pieces too small to share, and waiting threads would use CPU time.
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 NEARCALL_DATA_DIR=/data PORT=8080 OPENBLAS_NUM_THREADS=1
WORKDIR /data
EXPOSE 8080
# No shell, which would not pass on SIGTERM, and no entrypoint, because Fly runs release_command through it.
CMD ["nearcall", "serve", "--host", "0.0.0.0"]
