# The service in a container. Not reproducible yet: the base is named by version, not by digest.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
RUN pip install --no-cache-dir uv==0.13.8
COPY pyproject.toml uv.lock README.md LICENSE ./
COPY attestation attestation
COPY service service
RUN UV_PROJECT_ENVIRONMENT=/opt/tollseal uv sync --frozen --no-editable --extra service

FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --system --home /var/lib/tollseal --create-home tollseal \
    && install -d -o tollseal -g tollseal /var/lib/tollseal/ledger /var/lib/tollseal/cache
COPY --from=build /opt/tollseal /opt/tollseal
COPY --from=build /src/uv.lock /opt/tollseal/uv.lock
USER tollseal
WORKDIR /var/lib/tollseal
ENV PATH=/opt/tollseal/bin:$PATH TOLLSEAL_HOST=0.0.0.0 TOLLSEAL_CACHE_DIR=/var/lib/tollseal/cache
EXPOSE 8402
HEALTHCHECK --interval=30s --timeout=5s --start-period=10m \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8402/healthz', timeout=4)"]
ENTRYPOINT ["tollseal"]
CMD ["serve"]
