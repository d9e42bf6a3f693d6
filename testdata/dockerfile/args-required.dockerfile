ARG VERSION
FROM alpine:${VERSION:?give-it-with---build-arg}
