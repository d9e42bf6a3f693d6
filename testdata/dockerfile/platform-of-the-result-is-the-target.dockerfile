FROM --platform=$BUILDPLATFORM alpine
RUN x
