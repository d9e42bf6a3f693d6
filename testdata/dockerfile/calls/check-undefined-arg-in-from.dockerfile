ARG TAG=1 DEBUG
FROM busybox:${TAG}${VERSION} AS bad
FROM --platform=linux/${MYARCH:-amd64}$BULIDARCH scratch AS worse
FROM scratch${DEBUG} AS good
FROM --platform=$BUILDPLATFORM scratch AS fine
