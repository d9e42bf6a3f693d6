ARG IMAGE=alpine PLATFORM=linux/amd64
FROM --platform=$PLATFORM $IMAGE AS linux-amd64
ARG V=one W=${V}-two
ENV E=$V L="$V \$V" S='$V'
ADD --chown=$V --chmod=${MODE:-640} --checksum=${SUM:-sha256:1111111111111111111111111111111111111111111111111111111111111111} https://a.b/$V /$V
COPY --chown=$V:$V $V ${V%e}x /$V/
EXPOSE $PORT ${PORT:-80}
LABEL $V=$V "$V x"='$V'
STOPSIGNAL ${SIG:-SIGINT}
USER $V
VOLUME /$V ["/$V"]
WORKDIR /$V
RUN --mount=type=cache,id=$V,target=/$V,mode=${MODE:-700} x
