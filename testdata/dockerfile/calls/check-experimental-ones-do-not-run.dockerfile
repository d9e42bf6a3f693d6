FROM scratch AS base
# a comment
ARG A
