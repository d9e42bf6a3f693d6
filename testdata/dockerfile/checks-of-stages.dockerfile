ARG BASE
ARG PLATFORM=linux/arm64
FROM ${BASE:-alpine} as Build
FROM ${BASE}x AS reserved
FROM --platform=$TARGETPLATFORM alpine AS scratch
FROM --platform=linux/amd64 alpine AS fixed
FROM --platform=linux/amd64 alpine AS fixed-amd64
FROM --platform=$PLATFORM alpine AS build
FROM ${TYPO}alpine:${TARGETARCHX:-3} AS other
FROM ${TARGETARC}alpine AS last
