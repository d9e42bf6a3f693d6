FROM scratch AS base
FROM scratch
COPY a /
