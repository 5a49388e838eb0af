# bitqwen serve: docker build -t bitqwen . && docker run -p 127.0.0.1:8080:8080 -v models:/models bitqwen /models/qwen.gguf
FROM python:3.12-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --wheel-dir /wheels '.[serve]'

FROM python:3.12-slim-bookworm
RUN useradd --create-home --uid 1000 bitqwen
# Mounted, not copied: the wheels would stay in a layer of the image.
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links /wheels 'bitqwen[serve]'
USER 1000
ENV BITQWEN_CACHE=/home/bitqwen/cache
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
# Inside a container every address is the container's own: publish the port on the host's 127.0.0.1, or set a key.
ENTRYPOINT ["bitqwen", "serve", "--host", "0.0.0.0", "--insecure"]
