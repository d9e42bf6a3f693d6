ARG BUILDKIT_SBOM_SCAN_CONTEXT=true
FROM alpine AS deps
ARG BUILDKIT_SBOM_SCAN_STAGE=deps,other
RUN deps
FROM alpine AS unscanned
RUN unscanned
FROM scratch
COPY --from=deps /a /
COPY --from=unscanned /b /
