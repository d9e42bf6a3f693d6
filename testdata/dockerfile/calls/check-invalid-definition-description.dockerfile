# check=experimental=all
# foo this is the foo
ARG foo=bar
# base this is the base image
FROM scratch AS base
# definitely a bad comment
ARG version=latest
# definitely a bad comment
ARG foo=baz bar=qux
# not a description
#
ARG bit=bat
# not one

ARG far=away
