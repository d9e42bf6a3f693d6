FROM alpine AS one
RUN a
FROM one AS two
WORKDIR /w
RUN b
COPY c /
COPY --link d /
FROM two
RUN e
