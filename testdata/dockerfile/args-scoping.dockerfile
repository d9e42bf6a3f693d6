ARG G=global
ARG TAG=latest
FROM alpine:${TAG} AS base
ARG G
ARG H=h-$G
ENV E=$H
ARG E=overrides
ENV H=env
RUN parent
FROM base AS child
# E is ENV's again, the rest is inherited
RUN child
ENV A=1 B=$A
ARG C=1 D=$C-$G
RUN last
