FROM scratch
COPY --chmod=0o755 a /
