FROM alpine AS a
WORKDIR rel
ENV API_KEY=1 PUBLIC_KEY=2
ARG GITHUB_TOKEN
ENV old style
LABEL old style
CMD shell
CMD shell again
ENTRYPOINT shell
HEALTHCHECK NONE
HEALTHCHECK CMD x
EXPOSE 80/TCP 1:2
maintainer me
COPY $HOEM $PAHT /x
run echo \

  x
FROM scratch
SHELL ["/bin/sh", "-c"]
CMD shell
