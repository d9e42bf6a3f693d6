FROM alpine
ARG WHO=app:www
ARG M=u=rwX,go=rX
COPY --chown=$WHO --chmod=$M a /
COPY --chown=:5 b /
COPY --chown=root --chmod=04755 c /
COPY --chown=$UNSET d /
