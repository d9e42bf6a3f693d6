FROM alpine AS base
ONBUILD COPY --chown=5 a /a
ONBUILD RUN echo $X
ONBUILD CMD shell
RUN base
FROM base AS child
ENV X=1
FROM child
RUN no triggers here
