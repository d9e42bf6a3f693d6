FROM busybox AS base
ARG VERSION=1.2
ENV A=1 B="two words"
LABEL org.example.title="A test" org.example.version=$VERSION

FROM base
MAINTAINER Somebody <somebody@example.org>
ARG VERSION=3
WORKDIR /srv/app
COPY hello .
COPY --chown=1:2 --chmod=0640 hello /opt/hello
RUN echo $VERSION >version
RUN <<END
echo one
echo two
END
USER 1000:1000
EXPOSE 80/tcp 53/udp
VOLUME ["/data", "/logs"]
SHELL ["/bin/sh", "-ec"]
HEALTHCHECK --interval=5s --retries=2 CMD test -f version
STOPSIGNAL SIGINT
ONBUILD RUN echo child
ENTRYPOINT ["cat"]
CMD hello
