FROM alpine
RUN --retry=3 --timeout=1m30s --memory=1.5g --cpus=0.5 make
# check=skip=KilnExtension
RUN --retry=0 make check
