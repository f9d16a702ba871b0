# Two stages: build with the toolchain of rust-version, run on a small Debian.
FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends perl make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --locked --profile dist -p fletch

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates curl && rm -rf /var/lib/apt/lists/* \
    && useradd --system --home-dir /var/lib/fletch --create-home fletch
COPY --from=build /src/target/dist/fletch /usr/local/bin/fletch
USER fletch
VOLUME /var/lib/fletch
EXPOSE 9090 31337
HEALTHCHECK --interval=10s --timeout=3s CMD curl -fsS http://127.0.0.1:9090/-/healthy
ENTRYPOINT ["fletch"]
CMD ["serve", "--data-dir", "/var/lib/fletch", "--http-addr", "0.0.0.0:9090", "--flight-addr", "0.0.0.0:31337"]
