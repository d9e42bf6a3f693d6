FROM alpine AS builder
FROM scratch
COPY --from=3 a /
