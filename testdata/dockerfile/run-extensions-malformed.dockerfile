FROM alpine
RUN --retry=101 make
RUN --retry=-1 make
RUN --timeout=30 make
RUN --timeout=1us make
RUN --memory=1m make
RUN --cpus=0 make
RUN --cpu=1 make
RUN --retry make
