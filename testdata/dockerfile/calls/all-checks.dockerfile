# check=experimental=InvalidDefinitionDescription
ARG VERSION
FROM --platform=$TARGETPLATFORM busybox:$VERSION$VARIENT as Base
FROM --platform=linux/amd64 busybox AS scratch
# nothing about it
FROM busybox AS base
MAINTAINER me
WORKDIR app
ENV A b
ENV API_KEY=1 PATH=$PAHT:/x
run echo \

  hi
COPY ignored .
EXPOSE 80/TCP 1.2.3.4:80:80
CMD echo one
CMD echo \
  two
