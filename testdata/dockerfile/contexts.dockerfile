FROM alpine AS replaced
RUN never
COPY --from=never x /
FROM replaced AS a
RUN a
FROM busybox AS b
RUN b
FROM golang:1.22
COPY --from=a / /a
COPY --from=b / /b
COPY --from=files sub/x* /c
COPY --from=repo . /d
RUN --mount=from=files,source=y,target=/y use
