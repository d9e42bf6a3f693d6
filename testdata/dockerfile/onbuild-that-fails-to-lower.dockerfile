FROM alpine AS base
ONBUILD COPY --chmod=9 a b
FROM base
