# The server, from the same lock as everything else. Build: docker build -t nearcall .
# Run: docker run -p 8080:8080 --env-file .env -v nearcall:/data nearcall
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY requirements.lock ./
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY twiml twiml
COPY migrations migrations
RUN /venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 nearcall && mkdir /data && chown nearcall /data
COPY --from=build /venv /venv
USER nearcall
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 NEARCALL_DATA_DIR=/data PORT=8080
WORKDIR /data
EXPOSE 8080
CMD ["nearcall", "serve", "--host", "0.0.0.0"]
