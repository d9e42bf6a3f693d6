FROM scratch
MAINTAINER me
LABEL org.opencontainers.image.authors=me
