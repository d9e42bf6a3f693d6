FROM a AS s
FROM s AS s
RUN of the second
FROM scratch
COPY --from=s x y
