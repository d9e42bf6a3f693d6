FROM scratch
RUN --retry=2 --timeout=5m --memory=1g --cpus=2 make
# check=skip=KilnExtension
RUN --retry=2 make
