# One image for all services of docker-compose.yml: api, worker and beat differ by their command alone.
FROM python:3.13-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY core core
COPY agent agent
COPY store store
COPY worker worker
COPY frontend frontend
COPY backend backend
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir -c constraints.txt '.[server,postgres,export]'

FROM python:3.13-slim-bookworm
COPY --from=build /venv /venv
RUN useradd --system --uid 10001 --create-home --home-dir /home/gradspectra gradspectra \
    && install --directory --owner=gradspectra --group=gradspectra /data
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    GRADSPECTRA_DATA=/data \
    GRADSPECTRA_HOST=0.0.0.0
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 7117
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7117/api/v1/health', timeout=4)"]
CMD ["gradspectra", "serve"]
