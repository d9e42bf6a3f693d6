FROM alpine
COPY --link a /
COPY --link --chmod=644 b /
FROM scratch
COPY --link c /
COPY --link --chown=root:0 d /
