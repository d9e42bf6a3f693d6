FROM scratch AS src
ADD https://example.com/a.tar.gz /
FROM scratch
ARG SOURCE_DATE_EPOCH
ENV T=$SOURCE_DATE_EPOCH
COPY a /
