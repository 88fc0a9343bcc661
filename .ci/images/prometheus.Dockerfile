# Stands in for the official image where no registry is reachable: Debian's package.
FROM python:3.11-slim
# hadolint ignore=DL3008
RUN apt-get -qq update && apt-get -qq install -y --no-install-recommends prometheus >/dev/null && rm -rf /var/lib/apt/lists/* \
    && install -d -o 65534 -g 65534 /prometheus
USER 65534:65534
WORKDIR /prometheus
ENTRYPOINT ["prometheus"]
