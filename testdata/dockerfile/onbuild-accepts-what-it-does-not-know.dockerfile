FROM scratch
ONBUILD FUTURE --flag x
COPY a /
