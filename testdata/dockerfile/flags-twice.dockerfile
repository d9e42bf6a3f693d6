FROM alpine
COPY --from=a --from=b x /
RUN --network=none --network=host x
HEALTHCHECK --interval=1s --interval=2s CMD x
COPY --exclude=a --exclude=b x /
