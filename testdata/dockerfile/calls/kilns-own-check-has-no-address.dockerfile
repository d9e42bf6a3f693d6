FROM scratch
RUN --retry=2 make
