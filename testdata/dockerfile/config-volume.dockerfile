FROM scratch
COPY a /
ARG V=/from/arg
VOLUME /a $V
VOLUME ["/b c", "$V/d"]
